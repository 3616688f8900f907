"""A million texts for the calculator: each has a result or ToolError, within 5 ms. A tenth is in `tests/tools`."""

from __future__ import annotations

import pytest

from tests.attack.cases import FULL, SEED, TALLY
from tests.tools.test_calculator import fuzz

PART = 100_000


@pytest.mark.skipif(not FULL, reason="in full only")
@pytest.mark.parametrize("part", range(10))
def test_texts(part: int) -> None:
    _, results = fuzz(PART, seed=1000 * SEED + part)
    TALLY["test_texts", "with a result"] += results
    TALLY["test_texts", "ToolError"] += PART - results
