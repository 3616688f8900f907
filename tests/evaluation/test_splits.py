"""Which questions a test asks."""

from __future__ import annotations

import pytest

from latent_cot import tasks
from latent_cot.evaluation.splits import splits_of
from latent_cot.types import Example, Sweep, UsageError
from tests.worlds import ToyTask


def test_a_split_that_has_no_more_gives_what_it_has() -> None:
    task = tasks.load("arithmetic")
    name, numbers = "2-operands", {"operands": 2}
    (all_there,) = splits_of(task, [Sweep("x", (), {name: numbers})], size=47).values()
    assert len(all_there.examples) == 47
    (found,) = splits_of(task, [Sweep("x", (), {name: numbers})], size=47, seen=all_there.examples[:1]).values()
    assert len(found.examples) == 46 and found.dropped == 1


class Repeating(ToyTask):
    """Its split draws from three questions, again and again."""

    def split(self, name: str, n: int | None = None) -> list[Example]:
        assert n is not None and n < 1000, "it is asked for more and more"
        return [Example("abc"[k % 3] + "?", None, ". It is 1.", "1", "abc"[k % 3]) for k in range(n)]


def test_a_split_that_repeats_what_was_seen_is_not_asked_for_ever() -> None:
    task = Repeating()
    seen = task.split("test", 3)
    (found,) = splits_of(task, [Sweep("test", (), {"test": {}})], size=5, seen=seen[:1]).values()
    assert len(found.examples) == 5 and found.dropped
    with pytest.raises(UsageError, match=r"test: all of its .* questions are of training or validation"):
        splits_of(task, [Sweep("test", (), {"test": {}})], size=5, seen=seen)
