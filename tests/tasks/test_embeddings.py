"""Sentence embeddings: nearness, diversity, and what is said where the model is not installed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from latent_cot.tasks import embeddings
from latent_cot.types import UsageError

TEXTS = ["A cat sat on the mat.", "A kitten was sitting on the rug.", "Interest rates rose in May.", ""]


@pytest.fixture(autouse=True)
def _installed() -> None:
    pytest.importorskip(embeddings.PACKAGE)


def test_unit_vectors_in_the_order_of_the_texts() -> None:
    found = embeddings.embed([*TEXTS, TEXTS[0]])
    assert found.shape == (5, 384)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    assert (found[4] == found[0]).all()
    for k, text in enumerate(TEXTS):  # a batch gives what its texts give alone
        assert found[k] == pytest.approx(embeddings.embed([text])[0], abs=1e-5)
    assert embeddings.embed([]).shape == (0, 384)


def test_nearness_is_nearness_of_meaning() -> None:
    near, far, same = embeddings.cosines([(TEXTS[0], TEXTS[1]), (TEXTS[0], TEXTS[2]), (TEXTS[2], TEXTS[2])])
    assert far < 0.2 < 0.5 < near < 0.9
    assert same == pytest.approx(1.0, abs=1e-5)


def test_diversity_is_one_less_the_mean_cosine_of_all_pairs() -> None:
    sets = [[(TEXTS[0], 2), (TEXTS[1], 1), (TEXTS[2], 3)], [(TEXTS[3], 4)], [(TEXTS[0], 1)], []]
    found = embeddings.diversities(sets)
    drawn = [text for text, count in sets[0] for _ in range(count)]
    vectors = embeddings.embed(drawn)
    pairs = [float(vectors[i] @ vectors[j]) for i, j in itertools.combinations(range(len(drawn)), 2)]
    assert found[0] == pytest.approx(1 - sum(pairs) / len(pairs), abs=1e-5)
    assert found[1] == pytest.approx(0.0, abs=1e-5)
    assert math.isnan(found[2]) and math.isnan(found[3])


def test_without_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "PACKAGE", "no_such_package")
    with pytest.raises(UsageError, match=r"latent-cot\[embeddings\]"):
        embeddings.require()
