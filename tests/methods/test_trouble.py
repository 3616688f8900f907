"""A sampler that has gone wrong is told by its figures, which may look perfect, and healthy ones are left alone."""

from __future__ import annotations

import math
from typing import Any

import pytest

from latent_cot.config.schema import RunConfig
from latent_cot.evaluation.diagnostics import clear_fall
from latent_cot.methods.state import Phase
from latent_cot.methods.trouble import PATIENCE, Watch, has_one_chain

STEP, BEFORE, AFTER = Phase(1, "e_step"), Phase(1, "diagnose_before"), Phase(1, "diagnose")
HEALTHY = {"variance": 1.4, "log_z": 0.4, "distinct": 0.14, "accuracy": 0.98, "cut": 0.0, "reward_temperature": 1.0}


def warnings(phase: Phase, *infos: dict[str, Any], own_reward: bool = False) -> list[str]:
    watch = Watch(RunConfig(), own_reward=own_reward)
    return [text for info in infos if (text := watch.see(phase, info).get("warning"))]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"distinct": 1 / 8, "accuracy": 0.0, "variance": 0.0}, ["collapsed", "it is wrong", "--e-step.learning-rate"]),
        ({"distinct": 1 / 8, "accuracy": None, "variance": 0.0}, ["collapsed", "only if no other is any good"]),
        ({"cut": 1.0}, ["cut at", "--rollout.max-tokens"]),
        ({"log_z": 3.0}, ["coming apart", "3.0 nats", "cannot be above 0", "--e-step.learning-rate"]),
    ],
)
def test_trouble_that_lasts_is_said_once_with_a_remedy(change: dict[str, Any], parts: list[str]) -> None:
    bad = HEALTHY | change
    assert not warnings(STEP, HEALTHY)
    assert not warnings(STEP, *[bad] * (PATIENCE - 1), HEALTHY, bad), "a step sees few questions"
    (text,) = warnings(STEP, *[bad] * (PATIENCE + 3))
    assert all(part in text for part in parts), text


def test_a_collapse_is_told_of_validation_questions_at_once() -> None:
    one_chain = {"distinct": 1.0, "accuracy": 0.0, "variance": 0.0, "ess": 1.0, "log_z": -9.0, "cut": 0.0}
    for phase in (BEFORE, AFTER):
        assert len(warnings(phase, one_chain, one_chain)) == 1
    assert Watch(RunConfig(), own_reward=False).see(AFTER, one_chain)["one_chain"] is True
    assert not warnings(AFTER, one_chain | {"accuracy": 0.9}), "a sure q that is right has learned"
    assert len(warnings(AFTER, one_chain | {"accuracy": 1.0}, own_reward=True)) == 1, "all alike is no success there"


def test_an_e_step_that_lowers_the_bound_is_told() -> None:
    (text,) = warnings(AFTER, HEALTHY, HEALTHY | {"elbo_fell": 0.5})
    assert "fell by 0.50 nats" in text and "--e-step.steps 0" in text


@pytest.mark.parametrize(
    ("rises", "fall"),
    [
        ([-1.0, -2.0, -1.5, -1.2], 1.425),
        ([-1.0, -2.0, -1.5, -1.2, -math.inf], 1.425),  # a question where q found nothing
        ([0.1] * 20 + [-math.inf] * 5, None),  # 5 of 5 may be chance
        ([0.1] * 20 + [-math.inf] * 6, math.inf),
        ([-1.0, 2.0, -1.5, 1.2], None),
        ([1.0, 2.0, 1.5, 1.2], None),
        ([0.0, 0.0, 0.0, 0.0], None),
        ([-1.0], None),
    ],
)
def test_a_fall_beyond_chance(rises: list[float], fall: float | None) -> None:
    before = [-3.0 - k for k in range(len(rises))]
    found = clear_fall(before, [one + rise for one, rise in zip(before, rises, strict=True)])
    assert found is None if fall is None else found == pytest.approx(fall)


def test_questions_lost_are_set_against_those_found() -> None:
    before, after = [-1.0] * 6 + [-math.inf] * 2, [-math.inf] * 6 + [-1.0] * 2
    assert clear_fall(before, after) is None
    assert clear_fall(before[:6], after[:6]) == math.inf
    assert clear_fall(after, before) is None


def test_what_was_taken_back_is_told() -> None:
    fell = {"log_y_fell": 0.25, "taken_back": True}
    (text,) = warnings(Phase(1, "validate"), {"log_y_before": -1.0}, fell)
    assert "by 0.25 nats" in text and "p is what it was before" in text and "--no-safeguard" in text
    (text,) = warnings(AFTER, HEALTHY | {"elbo_fell": 0.5, "taken_back": True})
    assert "q is what it was before" in text


def test_what_nobody_knows_is_no_wrong_chain_known() -> None:
    unknown = {"distinct": 1.0, "accuracy": float("nan"), "variance": 0.0, "cut": 0.0}
    (text,) = warnings(AFTER, unknown)
    assert "only if no other is any good" in text and "it is wrong" not in text


def test_a_round_is_told_once() -> None:
    watch, cut = Watch(RunConfig(), own_reward=False), HEALTHY | {"cut": 1.0}
    phases = [BEFORE, *[STEP] * 5, AFTER, Phase(2, "diagnose")]
    assert ["warning" in watch.see(phase, cut) for phase in phases] == [True, *[False] * 6, True]


def test_what_is_no_sign() -> None:
    assert not has_one_chain({}, 8, own_reward=False), "nothing was sampled"
    assert not has_one_chain({"distinct": 1.0, "accuracy": 0.0}, 1, own_reward=False), "there is one sample only"
    tempered = HEALTHY | {"log_z": 9.0, "reward_temperature": 2.0}
    assert not warnings(STEP, *[tempered] * 9), "log Z of a tempered reward may be above 0"
    assert not warnings(STEP, *[HEALTHY | {"log_z": 9.0}] * 9, own_reward=True), "and that of another reward"
