"""What rejection sampling keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from latent_cot.methods.rejection import Rejection
from latent_cot.types import Example
from tests.loops import CONFIG, make
from tests.worlds import PlainTask, language_model


def test_where_answers_are_picked_p_says_which_rationales_are_right(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three questions p picks "a" each time, which is right for one."""

    def picked(_: Rejection, reasoner: str, examples: Sequence[Example], rationales: Sequence[Any]) -> list[list[str]]:
        assert reasoner == "p" and all(len(of_one) == 1 for of_one in rationales)
        return [["a"] for _ in examples]

    monkeypatch.setattr(Rejection, "decide", picked)
    rollout = dataclasses.replace(CONFIG.rollout, granularity="token")
    evaluation = dataclasses.replace(CONFIG.evaluation, every_round=False)
    config = dataclasses.replace(CONFIG, method="rejection", rounds=1, rollout=rollout, evaluation=evaluation)
    loop = make(language_model(tiny_model("llama")), config, PlainTask())
    for phase, info in loop.run():
        if phase.name == "sample":
            assert 0 < info["accuracy"] < 1
        if phase.name == "m_step":
            break
    kept = {one.question for one in loop.state.drawn}
    assert {loop.questions[i].answer for i in kept} == {"a"}
