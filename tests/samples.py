"""Rows in the form of published data sets, made up for the tests."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ANSWER_MARKER = "####"


def gsm8k(n: int, first: int = 2) -> list[dict[str, Any]]:
    """As GSM8K's: the solution with the calculator's annotations, then the answer."""
    return [
        {
            "question": f"Ann has {k} pens and buys {k + 3} more. She pays 2 dollars for each. What does she pay?",
            "answer": f"She has {k}+{k + 3}=<<{k}+{k + 3}={2 * k + 3}>>{2 * k + 3} pens.\n"
            f"She pays {2 * k + 3}*2=$<<{2 * k + 3}*2={4 * k + 6}>>{4 * k + 6}.\n{ANSWER_MARKER} {4 * k + 6}",
        }
        for k in range(first, first + n)
    ]


def arc(n: int) -> list[dict[str, Any]]:
    """As ARC's: choices with labels, some of them numbers, and the key of the right one."""
    things = ("rock", "fish", "cloud", "chair")
    return [
        {
            "id": f"Q{k}",
            "question": f"Which of these can swim, by question {k}?",
            "choices": {"text": [*things[k % 4 :], *things[: k % 4]], "label": list("1234" if k % 2 else "ABCD")},
            "answerKey": ("1234" if k % 2 else "ABCD")[(1 - k) % 4],
        }
        for k in range(n)
    ]


def boolq(n: int) -> list[dict[str, Any]]:
    """As BoolQ's: a passage, a question, and a truth value."""
    return [
        {"question": f"is {k} even", "passage": f"{k} divided by 2 is {k / 2}.", "answer": k % 2 == 0} for k in range(n)
    ]


SHEET = "item;colour;why\n" + "".join(
    f"thing {k};{'red' if k % 2 else 'blue'};{k} is {'odd' if k % 2 else 'even'}.\n" for k in range(24)
)
"""A spreadsheet of one's own, as some of them export it."""


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_all(folder: Path) -> None:
    """The files that `tasks/qa/README.md` names."""
    write_rows(folder / "gsm8k-train.jsonl", gsm8k(24))
    write_rows(folder / "gsm8k-test.jsonl", gsm8k(6, first=40))
    write_rows(folder / "arc.jsonl", arc(24))
    write_rows(folder / "boolq.jsonl", boolq(24))
    (folder / "sheet.csv").write_text(SHEET, encoding="utf-8")
