"""A sampler that has gone wrong is told by its figures, which may look perfect, and healthy ones are left alone."""

from __future__ import annotations

import math
from typing import Any

import pytest

from latent_cot.config.methods import FEWEST_TO_JUDGE
from latent_cot.config.schema import RunConfig
from latent_cot.evaluation.diagnostics import clear_fall, mean_figures
from latent_cot.methods.state import Phase
from latent_cot.methods.trouble import PATIENCE, Watch, has_one_chain

STEP, BEFORE, AFTER = Phase(1, "e_step"), Phase(1, "diagnose_before"), Phase(1, "diagnose")
HEALTHY = {
    "variance": 1.4,
    "log_z": 0.4,
    "distinct": 0.14,
    "single": 0.6,
    "accuracy": 0.98,
    "cut": 0.0,
    "reward_temperature": 1.0,
}


def warnings(phase: Phase, *infos: dict[str, Any], own_reward: bool = False) -> list[str]:
    watch = Watch(RunConfig(), own_reward=own_reward)
    return [text for info in infos if (text := watch.see(phase, info).get("warning"))]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"single": 1.0, "accuracy": 0.0, "variance": 0.0}, ["collapsed", "it is wrong", "--e-step.learning-rate"]),
        ({"single": 1.0, "accuracy": None, "variance": 0.0}, ["collapsed", "only if no other is any good"]),
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


def test_both_losses_of_an_e_step_are_watched() -> None:
    apart = HEALTHY | {"gradient_norm": 1.0, "forward_kl_gradient_norm": math.nan}
    (text,) = warnings(STEP, *[apart] * PATIENCE)
    assert "coming apart" in text
    nothing_new = HEALTHY | {"accuracy": 0.0, "gradient_norm": 0.0}
    (text,) = warnings(STEP, *[nothing_new] * PATIENCE)
    assert "learns nothing" in text
    assert not warnings(STEP, *[nothing_new | {"forward_kl_gradient_norm": 0.4}] * PATIENCE)


def test_an_m_step_on_a_handful_of_rationales_is_told() -> None:
    few = {"loss": 0.01, "gradient_norm": 0.1, "passes": 98.0}
    (text,) = warnings(Phase(1, "m_step"), *[few] * 40)
    assert "each 98 times" in text and "--m-step.steps (they are 40)" in text
    assert not warnings(Phase(1, "m_step"), *[few | {"passes": 7.0}] * 40)


def test_a_collapse_is_told_of_validation_questions_at_once() -> None:
    one_chain = {"single": 1.0, "accuracy": 0.0, "variance": 0.0, "ess": 1.0, "log_z": -9.0, "cut": 0.0}
    for phase in (BEFORE, AFTER):
        assert len(warnings(phase, one_chain, one_chain)) == 1
    assert Watch(RunConfig(), own_reward=False).see(AFTER, one_chain)["one_chain"] is True
    assert not warnings(AFTER, one_chain | {"accuracy": 0.9}), "a sure q that is right has learned"
    for unknown in (None, math.nan):
        assert has_one_chain(one_chain | {"accuracy": unknown}, own_reward=False)
    assert len(warnings(AFTER, one_chain | {"accuracy": 1.0}, own_reward=True)) == 1, "all alike is no success there"


def test_an_e_step_that_lowers_the_bound_is_told() -> None:
    (text,) = warnings(AFTER, HEALTHY, HEALTHY | {"elbo_fell": 24, "elbo_rose": 8})
    assert "fell for 24 validation questions and rose for 8" in text and "--e-step.steps 0" in text


@pytest.mark.parametrize(
    ("rises", "fall"),
    [
        ([-1.0] * 6, (6, 0)),
        ([-1.0] * 5, None),  # may be chance: 1 / 32
        ([-1.0] * 23 + [5.0] * 9, (23, 9)),  # though the mean has risen
        ([-1.0] * 22 + [0.2] * 10, None),
        ([-0.09] * 50, None),  # hardly anything
        ([-0.09] * 50 + [-0.11] * 6, (6, 0)),
        ([-math.inf] * 6, (6, 0)),
        ([-math.inf] * 6 + [math.inf] * 2, None),
        ([math.nan] * 6, None),
        ([1.0] * 32, None),
        ([], None),
    ],
)
def test_a_fall_beyond_chance(rises: list[float], fall: tuple[int, int] | None) -> None:
    """inf: a question that was impossible is no longer; NaN: it was and still is."""
    before = [-math.inf if not rise < math.inf else -3.0 for rise in rises]
    after = [-3.0 if rise == math.inf else -math.inf if math.isnan(rise) else -3.0 + rise for rise in rises]
    assert clear_fall(before, after) == fall


@pytest.mark.parametrize(
    ("bounds", "error"), [([-1.0, -4.0, math.nan, -4.0], 1.0), ([-1.0], math.nan), ([-1.0, -math.inf], math.nan)]
)
def test_the_error_of_a_mean_bound(bounds: list[float], error: float) -> None:
    means = mean_figures([{"bound": bound} for bound in bounds])
    assert means["bound_error"] == pytest.approx(error, nan_ok=True)


@pytest.mark.parametrize("n", range(12))
def test_how_many_questions_can_show_a_fall(n: int) -> None:
    assert (clear_fall([0.0] * n, [-1.0] * n) is not None) == (n >= FEWEST_TO_JUDGE)


def test_what_was_taken_back_is_told() -> None:
    fell = {"log_y_fell": 24, "log_y_rose": 8, "taken_back": True}
    (text,) = warnings(Phase(1, "validate"), {"log_y_before": -1.0}, fell)
    assert (
        "of 24 validation questions and raised that of 8" in text
        and "p is what it was before" in text
        and "--no-safeguard" in text
    )
    (text,) = warnings(AFTER, HEALTHY | {"elbo_fell": 24, "elbo_rose": 8, "taken_back": True})
    assert "q is what it was before" in text


def test_what_nobody_knows_is_no_wrong_chain_known() -> None:
    unknown = {"single": 1.0, "accuracy": float("nan"), "variance": 0.0, "cut": 0.0}
    (text,) = warnings(AFTER, unknown)
    assert "only if no other is any good" in text and "it is wrong" not in text


def test_a_round_is_told_once() -> None:
    watch, cut = Watch(RunConfig(), own_reward=False), HEALTHY | {"cut": 1.0}
    phases = [BEFORE, *[STEP] * 5, AFTER, Phase(2, "diagnose")]
    assert ["warning" in watch.see(phase, cut) for phase in phases] == [True, *[False] * 6, True]


def test_an_e_step_that_learns_nothing_is_told() -> None:
    """Where no sample is worth anything, variance 0 is no success."""
    idle = HEALTHY | {"variance": 0.0, "gradient_norm": 0.0, "accuracy": 0.0}
    (text,) = warnings(STEP, *[idle] * (PATIENCE + 1), own_reward=True)
    assert "learns nothing" in text and "--init-step.steps" in text
    assert not warnings(STEP, *[idle | {"accuracy": 1.0}] * 9), "all are right, and none more than another"


@pytest.mark.parametrize("gradient_norm", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("name", "rate"), [("e_step", "--e-step"), ("policy", "--e-step"), ("m_step", "--m-step"), ("init", "--init-step")]
)
def test_a_gradient_that_is_no_number_is_not_learning_nothing(name: str, rate: str, gradient_norm: float) -> None:
    bad = HEALTHY | {"loss": math.nan, "accuracy": 0.05, "gradient_norm": gradient_norm}
    (text,) = warnings(Phase(1, name), *[bad] * (PATIENCE + 1))
    assert "coming apart: the gradient is infinite, or no number" in text and f"a lower {rate}.learning-rate" in text
    assert "demonstrations" not in text


def test_a_figure_that_is_no_number_has_fallen() -> None:
    assert clear_fall([-1.0] * 20, [math.nan] * 20) == (20, 0)


def test_figures_of_an_edited_log_are_no_error() -> None:
    (text,) = warnings(AFTER, HEALTHY | {"elbo_fell": 3})
    assert "fell for 3 validation questions" in text


def test_what_is_no_sign() -> None:
    assert not has_one_chain({"distinct": 1.0, "accuracy": 0.0}, own_reward=False), "there is one sample only"
    assert not has_one_chain({"single": 0.9, "accuracy": 0.0}, own_reward=False), "of one question there are more"
    tempered = HEALTHY | {"log_z": 9.0, "reward_temperature": 2.0}
    assert not warnings(STEP, *[tempered] * 9), "log Z of a tempered reward may be above 0"
    assert not warnings(STEP, *[HEALTHY | {"log_z": 9.0}] * 9, own_reward=True), "and that of another reward"
