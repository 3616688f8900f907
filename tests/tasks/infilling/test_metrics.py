"""Figures of infills, against what comes out by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest

from latent_cot import configure, load
from latent_cot.run.preflight import load_examples
from latent_cot.tasks import embeddings
from latent_cot.tasks.infilling import metrics
from latent_cot.tasks.infilling import task as stories
from latent_cot.types import Measured, Rationale, Sample, UsageError


def sample(
    text: str, count: int = 1, *, log_z: float | None = None, log_y: float | None = None, cut: bool = False
) -> Sample:
    return Sample(Rationale((1,), (True,), (True, True), text, cut), log_z, log_y, count)


def question(*samples: Sample, middle: str | None = "a b c d.") -> Measured:
    return Measured(stories.build("A beginning.", middle, "An ending."), samples)


def values(found: Mapping[str, float | Sequence[float]], name: str) -> list[float]:
    value = found[name]
    assert isinstance(value, list)
    return value


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("a b c d", "a b c d", 100),
        ("a b c d x", "a b c d e", 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)),
        ("a b", "a b c d", 100 * math.exp(1 - 4 / 2)),  # all there is matches, but it is short
        ("a c b", "a b c", 100 * (3 / 3 * (1 / 2) / 2 * (1 / 4) / 1) ** (1 / 3)),  # 1/2, 1/4: smoothed counts
        ("x y z w", "a b c d", 0),
        ("", "a b c d", 0),
    ],
)
def test_bleu(text: str, reference: str, expected: float) -> None:
    assert metrics.bleu(text, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("abc", "abc", 100),
        # Precision 1; recall 2/3 of the letters, 1/2 of the pairs; beta 2 weighs recall four times.
        ("ab", "abc", 100 * 5 * (7 / 12) / (4 + 7 / 12)),
        ("xyz", "abc", 0),
        ("", "abc", 0),
    ],
)
def test_chrf(text: str, reference: str, expected: float) -> None:
    assert metrics.chrf(text, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("a b c d", "a b c d", 100),
        ("a b", "a b c", 100 * 3 / 6),  # 3 n-grams of 6
        ("a b c", "a b", 100 * 3 / 6),
        ("x", "a b", 0),
        ("", "a b", 0),
    ],
)
def test_gleu(text: str, reference: str, expected: float) -> None:
    assert metrics.gleu(text, reference) == pytest.approx(expected)


def test_words_and_punctuation_are_apart() -> None:
    assert metrics.words("Then, at 3, it's over") == ["Then", ",", "at", "3", ",", "it's", "over"]


def test_figures_of_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample as often as it was drawn; NaN where there is no reference, or no score."""
    monkeypatch.setattr(metrics, "cosines", lambda pairs: [1.0 if a == b else 0.5 for a, b in pairs])
    questions = [
        question(sample(" a b c d", 3, log_z=-2, log_y=-8), sample(" x y", 1, log_z=-4, log_y=-12, cut=True)),
        question(sample(" a b c d", log_y=-1), middle=None),
    ]
    found = metrics.measure(questions)
    assert list(found) == list(metrics.METRICS)
    assert values(found, "ending") == [-9, -1]
    assert values(found, "infill") == pytest.approx([-2.5, math.nan], nan_ok=True)
    for name in ("bleu-4", "chrf", "gleu"):
        assert values(found, name) == pytest.approx([75, math.nan], nan_ok=True)
    assert values(found, "similarity") == pytest.approx([0.875, math.nan], nan_ok=True)
    assert values(found, "words") == [3.5, 4]
    assert values(found, "cut") == [0.25, 0]
    assert found["distinct-1"] == 6 / 18


def test_the_full_stop_does_not_count() -> None:
    """Neither of the reference, which every example lacks, nor of a rationale."""
    assert metrics.bounded(" She left.") == metrics.bounded(" She left") == "She left"


def test_long_texts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "cosines", lambda pairs: [0.0] * len(pairs))
    found = metrics.measure([question(sample(" " + "ab " * 1_000_000, log_z=0, log_y=0))])
    assert values(found, "words") == [math.ceil(metrics.MAX_CHARACTERS / 3)]


@pytest.mark.parametrize("package", ["sacrebleu", "nltk", embeddings.PACKAGE])
def test_a_missing_package_is_named_before_anything_is_trained(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> object:
        return None if name == package else object()

    monkeypatch.setattr(metrics, "find_spec", find)
    monkeypatch.setattr(embeddings, "find_spec", find)
    with pytest.raises(UsageError, match=r"pip install 'latent-cot\[.*embeddings\]'"):
        load_examples(configure(task="infilling"))
    with pytest.raises(UsageError, match=r"pip install 'latent-cot\[.*embeddings\]'"):
        load("smollm2-135m", task="infilling").evaluate()


def test_similarity_is_that_of_meaning() -> None:
    found = metrics.measure(
        [
            question(sample(" The dog was very happy"), middle="The puppy felt so glad."),
            question(sample(" The train was two hours late"), middle="The puppy felt so glad."),
            question(sample(" The puppy felt so glad"), middle="The puppy felt so glad."),
        ]
    )
    near, far, same = values(found, "similarity")
    assert far + 0.2 < near < same == pytest.approx(1, abs=1e-5)
