"""How an answer is read off a rationale."""

from __future__ import annotations

import pytest

from latent_cot.tasks.qa.answers import pattern_of, portable


@pytest.mark.parametrize(
    ("extract", "exported"),
    [
        ("last-number", True),
        ("after:{result}", True),
        (r"regex:(\d{1,3}) apples", True),
        (r"regex:\{(\w+ed)\}", True),
        ("regex:[[:digit:]]+", False),  # `re` reads a class of these characters, and warns
        ("regex:(?:answer){e<=1}", False),  # `re` reads these characters
        (r"regex:\p{Lu}", False),
    ],
)
def test_a_pattern_that_means_something_else_elsewhere_is_not_exported(extract: str, exported: bool) -> None:
    assert (portable(pattern_of(extract)) is not None) == exported
