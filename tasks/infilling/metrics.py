"""How good infilled sentences are: beside the one that was there, and for the ending that follows.

All texts are compared without their final full stop, which every infill has. A model wrote them: of each at most
`MAX_CHARACTERS` are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.util import find_spec
from math import nan
from typing import TYPE_CHECKING

from latent_cot.tasks import embeddings
from latent_cot.tasks.embeddings import cosines
from latent_cot.types import Measured, Metric, Sample, UsageError

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

MAX_CHARACTERS = 1_000

METRICS: Mapping[str, Metric] = {
    "ending": Metric("log p(Y | X Z) of the ending, under the base model, nats", format="{:.2f}", axis="y"),
    "infill": Metric("log p(Z | X) of the infill itself, under the base model, nats", "neither", "{:.2f}"),
    "bleu-4": Metric("BLEU-4 with the sentence that was there as the reference, 0 to 100", format="{:.2f}"),
    "chrf": Metric("chrF with it as the reference, 0 to 100", format="{:.2f}"),
    "gleu": Metric("GLEU with it as the reference, 0 to 100", format="{:.2f}"),
    "similarity": Metric("cosine of its and that sentence's embeddings, -1 to 1", format="{:.3f}", axis="x"),
    "distinct-1": Metric("different words of all infills, as a share of their words", format="{:.3f}"),
    "distinct-2": Metric("different pairs of neighbouring words, likewise", format="{:.3f}"),
    "words": Metric("words of an infill", "neither", "{:.1f}"),
    "cut": Metric("share of infills that reached the largest number of tokens", "lower", "{:.3f}"),
}
"""Metric's name -> what it is. Each is a mean over a question's infills, but for the two of all infills together."""


def require() -> None:
    """Raises UsageError, naming the extra, if a package that the figures need is not installed. Loads nothing."""
    for package in ("sacrebleu", "nltk"):
        if find_spec(package) is None:
            raise UsageError(f"infills are measured with {package}: pip install 'latent-cot[text-metrics,embeddings]'")
    embeddings.require()


def measure(questions: Sequence[Measured]) -> dict[str, float | Sequence[float]]:
    """The figures of `METRICS`. What a question does not have, a reference or a score, makes its figure NaN.

    Raises UsageError as `require` does.
    """
    require()
    return {
        "ending": [_mean(q, lambda s: nan if s.log_y is None else s.log_y) for q in questions],
        "infill": [_mean(q, lambda s: nan if s.log_z is None else s.log_z) for q in questions],
        "bleu-4": _against_reference(questions, bleu),
        "chrf": _against_reference(questions, chrf),
        "gleu": _against_reference(questions, gleu),
        "similarity": _against_reference(questions, _similarities(questions)),
        "distinct-1": distinct(questions, 1),
        "distinct-2": distinct(questions, 2),
        "words": [_mean(q, lambda s: len(words(bounded(s.rationale.text)))) for q in questions],
        "cut": [_mean(q, lambda s: s.rationale.truncated) for q in questions],
    }


def bounded(text: str) -> str:
    """The text without spaces and a full stop at its ends, and of at most `MAX_CHARACTERS`."""
    return text.strip().removesuffix(".")[:MAX_CHARACTERS]


def bleu(text: str, reference: str) -> float:
    """Sentence BLEU-4, 0 to 100, as sacrebleu advises for sentences: exponential smoothing, and no n-gram longer than
    the text."""
    return float(_bleu().sentence_score(text, [reference]).score)


def chrf(text: str, reference: str) -> float:
    """Sentence chrF, 0 to 100, with sacrebleu's defaults: characters up to six, no words, beta 2."""
    return float(_chrf().sentence_score(text, [reference]).score)


def gleu(text: str, reference: str) -> float:
    """Sentence GLEU, 0 to 100: matching n-grams up to four, as a share of those of the longer of the two."""
    from nltk.translate.gleu_score import sentence_gleu

    return 100 * float(sentence_gleu([words(reference)], words(text)))


def distinct(questions: Sequence[Measured], n: int) -> float:
    """Different n-grams of words of all infills as a share of all of them (distinct-n); NaN if there is none."""
    different: set[tuple[str, ...]] = set()
    total = 0
    for sample in (sample for question in questions for sample in question.samples):
        of = words(bounded(sample.rationale.text))
        grams = [tuple(of[i : i + n]) for i in range(len(of) - n + 1)]
        different.update(grams)
        total += sample.count * len(grams)
    return len(different) / total if total else nan


def words(text: str) -> list[str]:
    """Words and punctuation marks, split by sacrebleu's standard tokenizer, as for BLEU."""
    split: str = _bleu().tokenizer(text)
    return split.split()


def _similarities(questions: Sequence[Measured]) -> Callable[[str, str], float]:
    """The cosine of an infill and its reference: all are embedded at once."""
    pairs = [
        (bounded(sample.rationale.text), bounded(question.example.z))
        for question in questions
        if question.example.z is not None
        for sample in question.samples
    ]
    found = dict(zip(pairs, cosines(pairs), strict=True))
    return lambda text, reference: found[text, reference]


def _against_reference(questions: Sequence[Measured], compare: Callable[[str, str], float]) -> list[float]:
    figures = []
    for question in questions:
        reference = bounded(question.example.z or "")
        compared = partial(_compare, compare, reference)
        figures.append(nan if question.example.z is None else _mean(question, compared))
    return figures


def _compare(compare: Callable[[str, str], float], reference: str, sample: Sample) -> float:
    return compare(bounded(sample.rationale.text), reference)


def _mean(question: Measured, value: Callable[[Sample], float]) -> float:
    """Over all infills of a question."""
    return sum(sample.count * value(sample) for sample in question.samples) / question.n


@cache
def _bleu() -> BLEU:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(max_ngram_order=4, tokenize="13a", effective_order=True)


@cache
def _chrf() -> CHRF:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
