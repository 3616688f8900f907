"""Test questions, asked and graded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from latent_cot.api.progress import counting
from latent_cot.api.results import Evaluation
from latent_cot.evaluation.evaluate import Accuracy, Mistakes, Outcome, answer_questions
from latent_cot.evaluation.measure import figures
from latent_cot.methods.loop import Loop
from latent_cot.model.lm import Adapter
from latent_cot.types import Example, MeasuredTask


def evaluate(
    loop: Loop,
    reasoners: Sequence[Adapter],
    splits: Mapping[str, Sequence[Example]],
    *,
    points: Mapping[str, Mapping[str, Any]],
    votes: int,
    temperature: float | None,
    max_tokens: int | None,
    seed: int,
    progress: bool,
) -> Evaluation:
    """Each reasoner on each split: see `Run.evaluate`.

    Args:
        loop: its `test_rules` are as they were afterwards.
        temperature: None: the configuration's, for a task with metrics.
    """
    task, rules = loop.task, loop.test_rules
    metrics = task.metrics if isinstance(task, MeasuredTask) else {}
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in reasoners}
    outcomes: dict[str, dict[str, list[Outcome]]] = {}
    mistakes: dict[str, dict[str, Mistakes]] = {}
    loop.test_rules = rules if max_tokens is None else replace(rules, max_tokens=max_tokens)
    total = len(reasoners) * sum(map(len, splits.values()))
    try:
        with counting("questions", total, shown=progress) as advance:
            for name in reasoners:
                for split, examples in splits.items():
                    if isinstance(task, MeasuredTask):
                        measured = loop.sample_tests(name, examples, seed=seed, temperature=temperature)
                        found[name][split] = {m: f.to_json() for m, f in figures(task, measured).items()}
                        advance(len(examples))
                        continue
                    of_split = outcomes.setdefault(name, {}).setdefault(split, [])
                    wrong = mistakes.setdefault(name, {}).setdefault(split, Mistakes(task))
                    for outcome in answer_questions(
                        loop.lm,
                        loop.sampler_of(name),
                        task,
                        examples,
                        loop.test_rules,
                        judge=loop.judge_of(name),
                        prefix=loop.model_prefix if loop.sampler_of(name) != "q" else "",
                        votes=votes,
                        temperature=temperature or 0.0,
                        batch_size=loop.test_batch_size,
                        generator=torch.Generator().manual_seed(seed),
                    ):
                        of_split.append(outcome)
                        if not outcome.correct:
                            wrong.add(outcome)
                        advance(1)
                    right = sum(outcome.correct for outcome in of_split)
                    found[name][split] = Accuracy(right, len(of_split)).to_json()
    finally:
        loop.test_rules = rules
    return Evaluation(found, points, outcomes, mistakes, metrics)
