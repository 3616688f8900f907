"""How likely and how diverse the continuations of a prompt are.

A continuation is scored with its full stop: log p(Z . | X), under the base model for every method. One that reached the
largest number of tokens is no sentence: a full stop put behind it would be scored, and nobody wrote it. A model wrote
the texts: of each at most `MAX_CHARACTERS` are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from latent_cot.tasks.common import distinct_n
from latent_cot.tasks.embeddings import diversities
from latent_cot.types import Measured, Metric, Sample

MAX_CHARACTERS = 1_000

METRICS: Mapping[str, Metric] = {
    "max-likelihood": Metric(
        "log p(Z . | X) of a prompt's likeliest continuation, under the base model, nats", format="{:.2f}"
    ),
    "mean-likelihood": Metric("mean log p(Z . | X) of a prompt's continuations, likewise", format="{:.2f}"),
    "token-likelihood": Metric(
        "mean log p(Z . | X) per token, the full stop counted, of a prompt's continuations, likewise", format="{:.3f}"
    ),
    "diversity": Metric(
        "1 - mean cosine of the sentence embeddings of a prompt's continuations, over all pairs",
        format="{:.3f}",
    ),
    "distinct": Metric("different continuations of a prompt, as a share of all", format="{:.3f}"),
    "distinct-2": Metric("different pairs of neighbouring words of them, as a share of all pairs", format="{:.3f}"),
    "words": Metric("words of a continuation", "neither", "{:.1f}"),
    "finished": Metric(
        "share of continuations that came to their full stop; the other figures leave out those that did not",
        format="{:.3f}",
    ),
}
"""Metric's name -> what it is. Each is a mean over prompts."""


def measure(questions: Sequence[Measured]) -> dict[str, Sequence[float]]:
    """The figures of `METRICS`, one of each prompt; NaN where a prompt has too few finished continuations for it.

    Raises UsageError if the embedding model is not installed.
    """
    ended = [replace(q, samples=[s for s in q.samples if not s.rationale.truncated]) for q in questions]
    return {
        "max-likelihood": [max((_likelihood(s) for s in q.samples), default=math.nan) for q in ended],
        "mean-likelihood": [q.mean(_likelihood) for q in ended],
        "token-likelihood": [q.mean(lambda s: _likelihood(s) / (len(s.rationale) + 1)) for q in ended],
        "diversity": diversities([[(f"{_text(s)}.", s.count) for s in q.samples] for q in ended]),
        "distinct": [len({_text(s) for s in q.samples}) / q.n if q.n else math.nan for q in ended],
        "distinct-2": [distinct_n([(_text(s).lower().split(), s.count) for s in q.samples], 2) for q in ended],
        "words": [q.mean(lambda s: len(_text(s).split())) for q in ended],
        "finished": [q.mean(lambda s: not s.rationale.truncated) for q in questions],
    }


def _text(sample: Sample) -> str:
    return sample.rationale.text[:MAX_CHARACTERS].strip()


def _likelihood(sample: Sample) -> float:
    """log p(Z . | X), nats."""
    return math.nan if sample.log_z is None or sample.log_y is None else sample.log_z + sample.log_y
