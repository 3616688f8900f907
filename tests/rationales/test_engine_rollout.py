"""What is taken of what an engine writes. (What it is asked for, and what comes of it: test_engines.py.)"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest

from latent_cot.model.engine import Completion, Request
from latent_cot.model.text import TextCodec
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.engine_rollout import rollout
from latent_cot.types import UsageError
from tests.tiny import build_tokenizer
from tests.worlds import ALPHABET


@pytest.mark.parametrize("more", [{"min_tokens": 3}, {"granularity": "step", "step_delimiter": ","}])
def test_an_engine_may_write_what_it_was_asked_for_only(more: dict[str, object]) -> None:
    codec = TextCodec(build_tokenizer(), allowed_characters=ALPHABET)
    rules = ChainRules(codec, max_tokens=5, **more)  # type: ignore[arg-type]
    one, outside = codec.encode("1a")  # "a" is not in the alphabet
    for wrong in ([one] * 6, [one, codec.stop_id], [], [outside]):
        written = [Completion(wrong, [-1.0] * len(wrong))]
        with pytest.raises(UsageError, match="which no rationale may be"):
            rollout(partial(_answer, written), [[5]], rules)


def _answer(written: list[Completion], asked: Sequence[Request]) -> list[Completion]:
    return written * len(asked)
