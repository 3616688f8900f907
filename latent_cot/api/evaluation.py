"""Test questions, asked and graded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from latent_cot.api.results import Evaluation
from latent_cot.evaluation import outcomes
from latent_cot.evaluation.evaluate import Accuracy, Outcome, figure_of, measure
from latent_cot.methods.method import Method
from latent_cot.model.lm import Adapter
from latent_cot.report.terminal import Items
from latent_cot.types import Example, Task


def evaluate(loop: Method, reasoners: Sequence[Adapter], found: Evaluation, *, seed: int, progress: bool) -> None:
    """Ask each reasoner the questions of `found`, and put into it what comes of them: see `Run.evaluate`.

    Args:
        loop: its `test_rules` are as they were afterwards.
    """
    rules = loop.test_rules
    loop.test_rules = replace(rules, max_tokens=found.decoding["max_tokens"])
    decoding = {name: found.decoding[name] for name in ("votes", "temperature") if name in found.decoding}
    total = len(reasoners) * sum(len(split.examples) for split in found.splits.values())
    console = Console(stderr=True, quiet=not progress)
    try:
        with Items(console, "questions", total) as items:
            for name in reasoners:
                for split, questions in found.splits.items():
                    if loop.task.is_measured:
                        _measure(loop, loop.task, name, split, questions.examples, found, seed)
                        items.advance(len(questions.examples))
                        continue
                    answered: list[Outcome] = []
                    for outcome in loop.answer_tests(name, questions.examples, seed=seed, **decoding):
                        answered.append(outcome)
                        items.advance()
                    right = sum(outcome.correct for outcome in answered)
                    found.outcomes.setdefault(name, {})[split] = answered
                    found.figures.setdefault(name, {})[split] = Accuracy(right, len(answered)).to_json()
                    found.records.extend(outcomes.of_answered(name, split, outcome) for outcome in answered)
    finally:
        loop.test_rules = rules


def _measure(
    loop: Method,
    task: Task,
    reasoner: Adapter,
    split: str,
    examples: Sequence[Example],
    found: Evaluation,
    seed: int,
) -> None:
    n, temperature = found.decoding["samples"], found.decoding["temperature"]
    measured = loop.sample_tests(reasoner, examples, seed=seed, n=n, temperature=temperature)
    values = measure(task, measured)
    figures = {metric: figure_of(of_metric, len(examples)).to_json() for metric, of_metric in values.items()}
    found.figures.setdefault(reasoner, {})[split] = figures
    found.measured.setdefault(reasoner, {})[split] = measured
    found.records.extend(outcomes.of_measured(reasoner, split, measured, values))
