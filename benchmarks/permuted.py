"""Test questions of arithmetic that are a training question with its operands in another order: how many there are, and
how many of the others are right.

    python -m benchmarks.permuted docs/results/arithmetic.json

`1 + 2 - 3` and `2 - 3 + 1` add up the same numbers. They are two questions, in other steps, so that one may be in a
test and the other in training; a reader may want to know what is left without the former.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from latent_cot.evaluation.evaluate import Accuracy
from latent_cot.evaluation.splits import splits_of
from latent_cot.tasks.arithmetic import TASK
from latent_cot.tasks.arithmetic.examples import parse_question
from latent_cot.types import DataRequest, Example


def terms(question: str) -> tuple[tuple[int, str], ...]:
    """The operands of a sum with their signs, in order of size: the same for each order of adding them up."""
    expression = parse_question(question)
    if "*" in expression.operators:
        raise ValueError(f"{question}: products have no signed operands")
    return tuple(sorted(zip(expression.operands, ("+", *expression.operators), strict=True)))


def permuted(test: Sequence[Example], training: Collection[Example]) -> list[bool]:
    """Which test questions have the signed operands of a training question."""
    seen = {terms(example.question) for example in training}
    return [terms(example.question) in seen for example in test]


def table(comparison: Any) -> list[str]:
    """Rows of Markdown: for each variant, reasoner and split, over the seeds whose records say which are right."""
    cells: dict[tuple[str, str, str], list[tuple[bool, bool]]] = defaultdict(list)
    seeds: dict[str, set[int]] = defaultdict(set)
    for run in comparison["runs"]:
        if "right" not in run:
            continue
        seeds[run["variant"]].add(run["config"]["seed"])
        data = run["config"]["data"]
        names = ("demonstrations", "validation", "train_file", "options")
        unlabelled = data["unlabelled"] if "unlabelled" in data else data["pairs"]  # its name in older records
        settings = {name: data[name] for name in names}
        loaded = TASK.load(DataRequest(seed=run["config"]["seed"], unlabelled=unlabelled, **settings))
        training = [*loaded.demonstrations, *loaded.unlabelled]
        for reasoner, splits in run["right"].items():
            for split, marks in splits.items():
                seen = [*training, *loaded.validation]
                asked = splits_of(TASK, [TASK.sweep(split)], size=len(marks), seen=seen)[split].examples
                again = permuted(asked, training)
                pairs = zip(again, (mark == "1" for mark in marks), strict=True)
                cells[run["variant"], reasoner, split].extend(pairs)
    rows = [
        "| | split | questions | permuted | right, all | right, without these |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (variant, reasoner, split), found in cells.items():
        others = [right for again, right in found if not again]
        shown = [_share(right, len(seeds[variant])) for right in ([right for _, right in found], others)]
        row = [f"{variant}, {reasoner}", split, f"{len(found):,}", f"{len(found) - len(others):,}", *shown]
        rows.append(f"| {' | '.join(row)} |")
    return rows


def _share(right: Sequence[bool], seeds: int) -> str:
    """In %, with Wilson's 95 % interval for one seed's questions."""
    if not right:
        return "–"
    low, high = Accuracy(round(sum(right) / seeds), round(len(right) / seeds)).interval()
    return f"{100 * sum(right) / len(right):.1f} ({100 * low:.1f}–{100 * high:.1f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", nargs="+", type=Path, help="a comparison.json")
    for path in parser.parse_args().record:
        print("\n".join(table(json.loads(path.read_text(encoding="utf-8")))))
