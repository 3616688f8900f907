"""Test questions, asked and graded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from rich.console import Console

from latent_cot.api.results import Evaluation
from latent_cot.evaluation import outcomes
from latent_cot.evaluation.evaluate import Accuracy, figure_of, measure
from latent_cot.methods.method import Method
from latent_cot.model.lm import Adapter
from latent_cot.report.terminal import Items


def evaluate(loop: Method, reasoners: Sequence[Adapter], found: Evaluation, *, seed: int, progress: bool) -> None:
    """Ask each reasoner the questions of `found`, and put into it what comes of them: see `Run.evaluate`.

    Args:
        loop: its `test_rules` are as they were afterwards.
    """
    rules, decoding = loop.test_rules, {**found.decoding, "seed": seed}
    loop.test_rules = replace(rules, max_tokens=decoding.pop("max_tokens"))
    if loop.task.is_measured:
        decoding["n"] = decoding.pop("samples")
    total = len(reasoners) * sum(len(split.examples) for split in found.splits.values())
    try:
        with Items(Console(stderr=True, quiet=not progress), "questions", total) as items:
            for name, (split, questions) in product(reasoners, found.splits.items()):
                n = len(questions.examples)
                if loop.task.is_measured:
                    measured = loop.sample_tests(name, questions.examples, **decoding)
                    values = measure(loop.task, measured)
                    figures = {metric: figure_of(of_metric, n).to_json() for metric, of_metric in values.items()}
                    found.measured.setdefault(name, {})[split] = measured
                    found.records.extend(outcomes.of_measured(name, split, measured, values))
                    items.advance(n)
                else:
                    answered = []
                    for outcome in loop.answers(name, questions.examples, **decoding):
                        answered.append(outcome)
                        items.advance()
                    figures = Accuracy(sum(outcome.correct for outcome in answered), n).to_json()
                    found.outcomes.setdefault(name, {})[split] = answered
                    found.records.extend(outcomes.of_answered(name, split, outcome) for outcome in answered)
                found.figures.setdefault(name, {})[split] = figures
    finally:
        loop.test_rules = rules
