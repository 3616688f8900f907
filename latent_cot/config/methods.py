"""The methods that can be compared, by name: EM and the baselines. Each is a `Loop` in a file of its own.

All start from the same initial p, see the same examples under the same rules, and are decoded and graded by
the same code. This only names them: `methods.loop.method_class` imports the class of one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from latent_cot.config.schema import RunConfig
from latent_cot.types import UsageError


class PlannedBudget(NamedTuple):
    """What training may cost, or is going to cost. Round 0 (`init_step`), which all methods share, is left out."""

    trajectories: int
    """Rationales sampled."""
    gradient_steps: int
    """Optimiser steps."""


@dataclass(frozen=True)
class Method:
    """An entry of the registry."""

    description: str
    """One line for `latent-cot methods`."""
    target: str
    """`module:class` of its loop."""
    planned: Callable[[RunConfig], PlannedBudget]
    """What a configuration costs. Replayed rationales and early stopping make it less."""
    fit_to_budget: Callable[[RunConfig, PlannedBudget], RunConfig]
    """The configuration with its numbers of steps such that it costs at most so much, and hardly less."""
    reasoners: Callable[[RunConfig, bool], tuple[Literal["p", "q"], ...]] = lambda config, answer_given: ("p",)
    """Which adapters answer questions in the end, given whether the answer is part of a test question. None: there is
    nothing that can be tested."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of its own, between those of the preset and of the user."""
    q_sees: Literal["question", "question-and-answer"] | None = None
    """What q must see; None: what the user likes."""
    has_e_step: bool = False
    """Whether it has an E-step's sampler, which `e_step.prior` can go back to."""
    ignores: Callable[[RunConfig], Collection[str]] = lambda config: ()
    """Settings, and sections of them, that it does not read, beside those of other methods."""

    @property
    def implied(self) -> Mapping[str, Any]:
        """`settings`, and what q must see."""
        return self.settings if self.q_sees is None else {**self.settings, "q_sees": self.q_sees}


def _questions(config: RunConfig) -> int:
    return config.data.demonstrations + config.data.unlabelled


def _drawn(config: RunConfig) -> int:
    """How many rationales are drawn for an M-step."""
    return _questions(config) * config.m_step.samples


def _em_planned(config: RunConfig) -> PlannedBudget:
    e, m = config.e_step, config.m_step
    trajectories = e.steps * e.questions * e.samples + _drawn(config)
    return PlannedBudget(config.rounds * trajectories, config.rounds * (e.steps + m.steps))


def _em_reasoners(config: RunConfig, answer_given: bool) -> tuple[Literal["p", "q"], ...]:
    """A q that sees Y can be tested only where tests give it; p has learned to write Y, not to read it."""
    if config.q_sees == "question":
        return ("q", "p")
    return ("q",) if answer_given else ("p",)


def _em_fit_to_budget(config: RunConfig, spend: PlannedBudget) -> RunConfig:
    e = config.e_step
    drawn = _drawn(config)
    of_round = spend.trajectories // max(1, config.rounds)
    if not e.steps:
        _steps(of_round, drawn, rounds=config.rounds)
        return config
    steps = _steps(of_round - drawn, e.questions * e.samples, drawn, config.rounds)
    return replace(config, e_step=replace(e, steps=steps))


def _planned_by(section: str) -> Callable[[RunConfig], PlannedBudget]:
    """Of a method that samples `questions` x `samples` rationales a step, as this section says."""

    def planned(config: RunConfig) -> PlannedBudget:
        c = getattr(config, section)
        return PlannedBudget(c.steps * c.questions * c.samples, c.steps * getattr(c, "epochs", 1))

    return planned


def _fit_to_budget_by(section: str, drawn: int = 0) -> Callable[[RunConfig, PlannedBudget], RunConfig]:
    def fit_to_budget(config: RunConfig, spend: PlannedBudget) -> RunConfig:
        c = getattr(config, section)
        scaled: Any = {section: replace(c, steps=_steps(spend.trajectories - drawn, c.questions * c.samples, drawn))}
        return replace(config, **scaled)

    return fit_to_budget


def _policy_gradient(name: Literal["ppo", "grpo"], description: str, target: str) -> Method:
    """A method that samples as its section says and may draw for an M-step in the end, as EM does."""

    def fine_tunes(config: RunConfig) -> bool:
        return bool(getattr(config, name).fine_tune)

    def planned(config: RunConfig) -> PlannedBudget:
        spend = _planned_by(name)(config)
        if not fine_tunes(config):
            return spend
        return PlannedBudget(spend.trajectories + _drawn(config), spend.gradient_steps + config.m_step.steps)

    def fit_to_budget(config: RunConfig, spend: PlannedBudget) -> RunConfig:
        return _fit_to_budget_by(name, _drawn(config) if fine_tunes(config) else 0)(config, spend)

    return Method(
        description,
        target,
        planned,
        fit_to_budget,
        reasoners=lambda config, answer_given: ("q", "p") if fine_tunes(config) else ("q",),
        q_sees="question",
        ignores=lambda config: () if fine_tunes(config) else ("m_step",),
    )


def _sft_fit_to_budget(config: RunConfig, spend: PlannedBudget) -> RunConfig:
    return replace(config, sft=replace(config.sft, steps=spend.gradient_steps))


def _rejection_planned(config: RunConfig) -> PlannedBudget:
    c = config.rejection
    return PlannedBudget(c.rounds * c.trajectories, c.rounds * c.steps)


def _rejection_fit_to_budget(config: RunConfig, spend: PlannedBudget) -> RunConfig:
    c = config.rejection
    trajectories = _steps(spend.trajectories, max(1, c.rounds))
    steps = spend.gradient_steps // max(1, c.rounds)
    return replace(config, rejection=replace(c, trajectories=trajectories, steps=steps))


def _forward_kl_planned(config: RunConfig) -> PlannedBudget:
    c = config.forward_kl
    trajectories = c.steps * c.questions * c.samples + _drawn_by_forward_kl(config)
    return PlannedBudget(c.rounds * trajectories, c.rounds * (c.steps + config.m_step.steps))


def _forward_kl_fit_to_budget(config: RunConfig, spend: PlannedBudget) -> RunConfig:
    c, drawn = config.forward_kl, _drawn_by_forward_kl(config)
    of_round = spend.trajectories // max(1, c.rounds)
    steps = _steps(of_round - drawn, c.questions * c.samples, drawn, c.rounds)
    return replace(config, forward_kl=replace(c, steps=steps))


def _drawn_by_forward_kl(config: RunConfig) -> int:
    return min(_questions(config), config.forward_kl.model_questions) * config.forward_kl.model_samples


def _steps(trajectories: int, of_step: int, drawn: int = 0, rounds: int = 1) -> int:
    """How many steps of `of_step` trajectories there can be. Raises UsageError if there is none."""
    if trajectories < of_step:
        least = rounds * (of_step + drawn)
        raise UsageError(f"--budget: too few trajectories; a single step takes {least} of them; give more")
    return trajectories // of_step


_DRAWING = ("m_step.samples", "m_step.temperature", "m_step.keep", "m_step.weighted")
"""How EM draws what its M-step learns."""

METHODS: Mapping[str, Method] = {
    "few-shot": Method(
        "prompting: k demonstrations before the question, nothing is trained",
        "latent_cot.methods.few_shot:FewShot",
        planned=lambda _: PlannedBudget(0, 0),
        fit_to_budget=lambda config, _: config,
        ignores=lambda config: ("m_step",),
    ),
    "decode": Method(
        "decoding the initial p: by sampling, nucleus, beam or diverse beam; nothing else is trained",
        "latent_cot.methods.decoding:Decoding",
        planned=lambda _: PlannedBudget(0, 0),
        fit_to_budget=lambda config, _: config,
        ignores=lambda config: ("m_step",),
    ),
    "sft": Method(
        "supervised fine-tuning on the demonstrations, stopped early by validation",
        "latent_cot.methods.sft:SFT",
        planned=lambda config: PlannedBudget(0, config.sft.steps),
        fit_to_budget=_sft_fit_to_budget,
        ignores=lambda config: ("m_step",),
    ),
    "ppo": _policy_gradient(
        "ppo",
        "proximal policy optimisation of q(Z | X), the reward that of the E-step less a KL to the initial p",
        "latent_cot.methods.ppo:PPO",
    ),
    "grpo": _policy_gradient(
        "grpo",
        "group-relative policy optimisation (GRPO, or RLOO) of q(Z | X) with the same reward",
        "latent_cot.methods.grpo:GRPO",
    ),
    "rejection": Method(
        "rejection-sampling EM (STaR, ReST-EM): fine-tune on sampled chains that reach Y",
        "latent_cot.methods.rejection:Rejection",
        planned=_rejection_planned,
        fit_to_budget=_rejection_fit_to_budget,
        ignores=lambda config: ("m_step.steps", *_DRAWING),
    ),
    "forward-kl": Method(
        "q(Z | X, Y) by forward KL and an importance-weighted M-step (Variational Reasoning)",
        "latent_cot.methods.forward_kl:ForwardKL",
        planned=_forward_kl_planned,
        fit_to_budget=_forward_kl_fit_to_budget,
        reasoners=_em_reasoners,
        settings={"q_sees": "question-and-answer"},
        ignores=lambda config: _DRAWING,
    ),
    "gflownet": Method(
        "the E-step alone: a GFlowNet sampler q(Z | X), or q(Z | X, Y) where tests give Y",
        "latent_cot.em:GFlowNet",
        planned=_planned_by("e_step"),
        fit_to_budget=_fit_to_budget_by("e_step"),
        has_e_step=True,
        reasoners=lambda config, answer_given: ("q",) if config.q_sees == "question" or answer_given else (),
        ignores=lambda config: ("m_step",),
    ),
    "em": Method(
        "EM: a GFlowNet E-step on q(Z | X), or on q(Z | X, Y) with --q-sees question-and-answer, and an M-step on p",
        "latent_cot.em:EM",
        planned=_em_planned,
        fit_to_budget=_em_fit_to_budget,
        has_e_step=True,
        reasoners=_em_reasoners,
    ),
    "em-xy": Method(
        "EM with the sampler q(Z | X, Y), which sees the answer",
        "latent_cot.em:EM",
        planned=_em_planned,
        fit_to_budget=_em_fit_to_budget,
        has_e_step=True,
        reasoners=_em_reasoners,
        q_sees="question-and-answer",
    ),
}
"""Method's name -> what it is."""
