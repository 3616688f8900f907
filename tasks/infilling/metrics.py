"""How good infilled sentences are: beside the one that was there, and for the ending that follows.

All texts are compared without their final full stop, which every infill has. A model wrote them: of each at most
`MAX_CHARACTERS` are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from math import nan
from typing import Any

from latent_cot.tasks import embeddings
from latent_cot.tasks.common import distinct_n
from latent_cot.tasks.embeddings import cosines
from latent_cot.types import Measured, Metric, UsageError

MAX_CHARACTERS = 1_000

METRICS: Mapping[str, Metric] = {
    "ending": Metric("log p(Y | X Z) of the ending, under the base model, nats", format="{:.2f}"),
    "infill": Metric("log p(Z | X) of the infill itself, under the base model, nats", "neither", "{:.2f}"),
    "bleu-4": Metric("BLEU-4 with the sentence that was there as the reference, 0 to 100", format="{:.2f}"),
    "chrf": Metric("chrF with it as the reference, 0 to 100", format="{:.2f}"),
    "gleu": Metric("GLEU with it as the reference, 0 to 100", format="{:.2f}"),
    "similarity": Metric("cosine of its and that sentence's embeddings, -1 to 1", format="{:.3f}"),
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
    # The cosine of an infill and its reference: all are embedded at once.
    pairs = [(bounded(s.rationale.text), bounded(q.example.z)) for q in questions if q.example.z for s in q.samples]
    similarity = dict(zip(pairs, cosines(pairs), strict=True))

    def compare(metric: Callable[[str, str], float]) -> list[float]:
        """Each question's mean over its infills, beside its reference."""
        return [_beside_reference(question, metric) for question in questions]

    spoken = [(words(bounded(s.rationale.text)), s.count) for q in questions for s in q.samples]

    return {
        "ending": [q.mean(lambda s: nan if s.log_y is None else s.log_y) for q in questions],
        "infill": [q.mean(lambda s: nan if s.log_z is None else s.log_z) for q in questions],
        "bleu-4": compare(bleu),
        "chrf": compare(chrf),
        "gleu": compare(gleu),
        "similarity": compare(lambda text, reference: similarity[text, reference]),
        "distinct-1": distinct_n(spoken, 1),
        "distinct-2": distinct_n(spoken, 2),
        "words": [q.mean(lambda s: len(words(bounded(s.rationale.text)))) for q in questions],
        "cut": [q.mean(lambda s: s.rationale.truncated) for q in questions],
    }


def _beside_reference(question: Measured, metric: Callable[[str, str], float]) -> float:
    reference = bounded(question.example.z or "")
    return question.mean(lambda s: metric(bounded(s.rationale.text), reference)) if reference else nan


def bounded(text: str) -> str:
    """The text without spaces and a full stop at its ends, and of at most `MAX_CHARACTERS`."""
    return text.strip().removesuffix(".")[:MAX_CHARACTERS]


def bleu(text: str, reference: str) -> float:
    """Sentence BLEU-4, 0 to 100, as sacrebleu advises for sentences: exponential smoothing, and no n-gram longer than
    the text."""
    return float(_sacrebleu()[0].sentence_score(text, [reference]).score)


def chrf(text: str, reference: str) -> float:
    """Sentence chrF, 0 to 100, with sacrebleu's defaults: characters up to six, no words, beta 2."""
    return float(_sacrebleu()[1].sentence_score(text, [reference]).score)


def gleu(text: str, reference: str) -> float:
    """Sentence GLEU, 0 to 100: matching n-grams up to four, as a share of those of the longer of the two."""
    from nltk.translate.gleu_score import sentence_gleu

    return 100 * float(sentence_gleu([words(reference)], words(text)))


def words(text: str) -> list[str]:
    """Words and punctuation marks, split by sacrebleu's standard tokenizer, as for BLEU."""
    split: str = _sacrebleu()[0].tokenizer(text)
    return split.split()


@cache
def _sacrebleu() -> tuple[Any, Any]:
    """BLEU and chrF."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return BLEU(max_ngram_order=4, tokenize="13a", effective_order=True), CHRF()
