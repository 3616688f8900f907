"""Which questions a test asks."""

from __future__ import annotations

from latent_cot import tasks
from latent_cot.evaluation.splits import splits_of
from latent_cot.types import Sweep


def test_a_split_that_has_no_more_gives_what_it_has() -> None:
    task = tasks.load("arithmetic")
    name, numbers = "2-operands", {"operands": 2}
    (all_there,) = splits_of(task, [Sweep("x", (), {name: numbers})], size=47).values()
    assert len(all_there.examples) == 47
    (found,) = splits_of(task, [Sweep("x", (), {name: numbers})], size=47, seen=all_there.examples[:1]).values()
    assert len(found.examples) == 46 and found.dropped == 1
