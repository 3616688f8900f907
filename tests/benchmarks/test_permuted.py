"""Questions that are others with their operands in another order."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from benchmarks.permuted import permuted, table, terms
from latent_cot.tasks.arithmetic import TASK
from latent_cot.types import DataRequest


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1 + 2 - 3", "2 - 3 + 1", True),
        ("1 + 2 - 3", "2 + 1 - 3", True),
        ("1 + 2 - 3", "3 + 2 - 1", False),
        ("1 + 2 - 3", "1 - 2 + 3", False),
        ("1 + 2 + 2", "1 + 2", False),
        ("5 - 0 + 2", "5 + 0 + 2", False),
    ],
)
def test_the_order_of_the_operands_does_not_count(one: str, other: str, same: bool) -> None:
    assert (terms(one) == terms(other)) is same
    assert permuted([TASK.example(one)], [TASK.example(other)]) == [same]


def test_products_are_refused() -> None:
    with pytest.raises(ValueError, match="products"):
        terms("1 + 2 * 3")


def test_a_table_of_records() -> None:
    """Counted as by eye, with every ordering of each training question listed."""
    data: dict[str, Any] = {"demonstrations": 5, "unlabelled": 300, "validation": 0, "train_file": None, "options": {}}
    loaded = TASK.load(DataRequest(5, 300, 0, seed=3))
    orders = set()
    for example in (*loaded.demonstrations, *loaded.unlabelled):
        first, *rest = example.question.split()
        parts = [f"+ {first}", *(f"{sign} {number}" for sign, number in zip(rest[::2], rest[1::2], strict=True))]
        orders |= {" ".join(order).removeprefix("+ ") for order in itertools.permutations(parts) if order[0][0] == "+"}
    test = TASK.split("3-operands", 40)
    marks = "".join("01"[k % 3 > 0] for k in range(40))
    left = [mark for mark, example in zip(marks, test, strict=True) if example.question not in orders]
    assert 0 < len(left) < 40
    run = {"variant": "em", "config": {"seed": 3, "data": data}, "right": {"p": {"3-operands": marks}}}
    *_, row = table({"runs": [run]})
    assert row.startswith(f"| em, p | 3-operands | 40 | {40 - len(left)} | 65.0 (")
    assert f"| {100 * left.count('1') / len(left):.1f} (" in row
    more = {**run, "variant": "sft", "config": {"seed": 4, "data": data}}
    assert row in table({"runs": [run, more]}), "an interval is of the variant's own seeds"
