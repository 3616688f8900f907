"""The methods that can be compared, by name: EM and the baselines. Each is a `Method`, with its algorithm on a page.

All start from the same initial p, see the same examples under the same rules, and are decoded and graded by
the same code. This only names them: `methods.method.method_class` imports the class of one. `methods.yaml` has the
values that they have of their own for shared settings.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple

from latent_cot.config.schema import EStepConfig, RunConfig
from latent_cot.types import Reasoner, UsageError


class PlannedBudget(NamedTuple):
    """What training may cost, or is going to cost. Round 0 (`init_step`), which all methods share, is left out, and
    so is what a q that sees Y learns before its first round."""

    trajectories: int
    """Rationales sampled."""
    gradient_steps: int
    """Optimiser steps."""


_OF_BALANCE = (
    *("e_step.objective", "e_step.huber_delta", "e_step.reward_temperatures", "e_step.reward_temperature_steps"),
    *("e_step.prior", "e_step.tempered_share", "e_step.temperatures", "e_step.replay_share", "e_step.mix_replay"),
)
"""Settings of an E-step that is a GFlowNet's: other methods sample from q itself, at temperature 1, and replay none."""


Reasoners = tuple[Reasoner, ...]


@dataclass(frozen=True)
class MethodSpec:
    """An entry of the registry."""

    description: str
    """One line for `latent-cot methods`."""
    target: str
    """`module:class` of its loop."""
    reasoners: Callable[[RunConfig, bool], Reasoners] = lambda config, answer_given: ("p",)
    """Which adapters answer questions in the end, given whether the answer is part of a test question. Empty: there is
    nothing that can be tested."""
    prompts: bool = False
    """Whether p reads `shots` demonstrations before the question, whatever `p_init` is."""
    learns_demonstrations: bool = False
    """Whether it learns the demonstrations alone, until validation tells it to stop; without any p answers at once."""
    fewest_samples: int = 1
    """`e_step.samples` must be at least that: it compares the rationales of a question."""
    q_sees: Literal["question", "question-and-answer"] | None = None
    """What q must see; None: what the user likes."""
    has_balance: bool = False
    """Whether q is trained by an objective of `objectives.balance`; only such a q has an `e_step.prior`."""
    samples: bool = False
    """Whether it samples `e_step.questions` x `e_step.samples` rationales in each of `e_step.steps`."""
    trains_q: bool = False
    """Whether q is trained in each of these, by `e_step.updates` optimiser steps."""
    fine_tunes: Callable[[RunConfig], bool] = lambda config: False
    """Whether p is fine-tuned as `m_step` says."""
    draws: bool = False
    """Whether `m_step.samples` rationales of each question are drawn for that."""
    safeguarded: bool = False
    """Whether it can take back training that `safeguard` forbids."""
    has_rounds: bool = False
    """Whether all this is done `rounds` times."""
    unread: Collection[str] = ()
    """Settings of `m_step` that it does not read though it fine-tunes."""

    def ignores(self, config: RunConfig) -> Collection[str]:
        """Settings, and sections of them, that it does not read, beside those of other methods."""
        unread = {
            "rounds": not self.has_rounds,
            "q_sees": not self.trains_q,
            "evaluation.diagnostics": not self.trains_q,
            "safeguard": not self.safeguarded,
            "shots": not shows_demonstrations(config),
            **dict.fromkeys(("p_init", "init_step", "augmentation"), self.prompts),
        }
        of_m_step = self.unread if self.fine_tunes(config) else ("m_step",)
        return (*(name for name, is_unread in unread.items() if is_unread), *self._unread_e_step, *of_m_step)

    def reads(self, config: RunConfig, path: str) -> bool:
        """Whether it reads this setting of a section, such as `m_step.target`."""
        return {path, path.partition(".")[0]}.isdisjoint(self.ignores(config))

    @property
    def _unread_e_step(self) -> Collection[str]:
        if self.has_balance:
            return ()
        if self.trains_q:
            return _OF_BALANCE
        read = ("steps", "questions", "samples") if self.samples else ()
        return [f"e_step.{one.name}" for one in fields(EStepConfig) if one.name not in read]

    def drawn(self, config: RunConfig) -> int:
        """Rationales that are drawn for the M-step of a round."""
        questions = config.data.demonstrations + config.data.unlabelled
        return questions * config.m_step.samples if self.draws and self.fine_tunes(config) else 0

    def sampled(self, config: RunConfig) -> int:
        """Rationales that a step samples, of different questions where q is trained."""
        e, data = config.e_step, config.data
        different = data.unlabelled + (data.demonstrations if e.demonstration_weight else 0)
        return (min(e.questions, different) if self.trains_q else e.questions) * e.samples

    def planned(self, config: RunConfig) -> PlannedBudget:
        """What a configuration costs. Replayed rationales, early stopping and, where samples are learned again, too
        few with a right rationale make it less."""
        e = config.e_step
        sampled = e.steps * self.sampled(config) if self.samples else 0
        steps = e.steps * e.updates if self.trains_q else 0
        steps += config.m_step.steps if self.fine_tunes(config) else 0
        rounds = config.rounds if self.has_rounds else 1
        return PlannedBudget(rounds * (sampled + self.drawn(config)), rounds * steps)

    def fit_to_budget(self, config: RunConfig, budget: PlannedBudget) -> RunConfig:
        """The configuration with its numbers of steps such that it costs at most so much, and hardly less; but for an
        M-step after q's training, which keeps at least its own number of steps. Raises UsageError for too little."""
        e, drawn = config.e_step, self.drawn(config)
        rounds = max(1, config.rounds) if self.has_rounds else 1
        if self.samples:
            of_step = self.sampled(config) if e.steps else 0
            if budget.trajectories // rounds < of_step + drawn:
                least = rounds * (of_step + drawn)
                raise UsageError(f"--budget: too few trajectories; a single step takes {least} of them; give more")
            if of_step:  # of fewer steps the same share warms up
                steps = (budget.trajectories // rounds - drawn) // of_step
                warmup = e.warmup if steps >= e.steps else e.warmup * steps // e.steps
                config = replace(config, e_step=replace(e, steps=steps, warmup=warmup))
        if self.fine_tunes(config) and not self.has_balance:  # EM's own variants have each a full M-step
            steps = budget.gradient_steps // rounds
            if self.trains_q:  # what q's training leaves, and at least its own
                steps = max(steps - config.e_step.steps * config.e_step.updates, config.m_step.steps)
            if not self.samples and not config.sft.check_every:  # it takes them all: no more than suit it
                steps = min(steps, config.m_step.steps)
            if not steps and config.m_step.steps:
                raise UsageError(f"--budget: too few gradient steps; {rounds} rounds take one each at least; give more")
            config = replace(config, m_step=replace(config.m_step, steps=steps))
        return config


def _em_reasoners(config: RunConfig, answer_given: bool) -> Reasoners:
    """A q that sees Y can be tested only where tests give it; p has learned to write Y, not to read it. Without a round
    there is no q."""
    if not config.rounds:
        return ("p",)
    if config.q_sees == "question":
        return ("q", "p")
    return ("q",) if answer_given else ("p",)


_EM = MethodSpec(
    "EM: a GFlowNet E-step on q(Z | X, Y), or on q(Z | X) with --q-sees question, and an M-step on p",
    "latent_cot.em:EM",
    reasoners=_em_reasoners,
    has_balance=True,
    samples=True,
    trains_q=True,
    fine_tunes=lambda config: True,
    draws=True,
    safeguarded=True,
    has_rounds=True,
)

_PPO = MethodSpec(
    "proximal policy optimisation of q(Z | X), the reward that of the E-step less a KL to the initial p",
    "latent_cot.methods.policy_gradient:PPO",
    fewest_samples=2,
    reasoners=lambda config, answer_given: ("q", "p") if config.policy_gradient.fine_tune else ("q",),
    q_sees="question",
    samples=True,
    trains_q=True,
    fine_tunes=lambda config: config.policy_gradient.fine_tune,
    draws=True,
)

METHODS: Mapping[str, MethodSpec] = {
    "few-shot": MethodSpec(
        "prompting: `shots` demonstrations before the question, nothing is trained",
        "latent_cot.methods.few_shot:FewShot",
        prompts=True,
    ),
    "decode": MethodSpec(
        "decoding the initial p: by sampling, nucleus, beam or diverse beam; nothing else is trained",
        "latent_cot.methods.decoding:Decoding",
    ),
    "sft": MethodSpec(
        "supervised fine-tuning on the demonstrations, stopped early by validation",
        "latent_cot.methods.sft:SFT",
        learns_demonstrations=True,
        fine_tunes=lambda config: True,
        unread=("m_step.samples", "m_step.temperature", "m_step.keep", "m_step.weighted", "m_step.target"),
    ),
    "ppo": _PPO,
    "grpo": replace(
        _PPO,
        description="group-relative policy optimisation (GRPO) of q(Z | X) with the same reward",
        target="latent_cot.methods.policy_gradient:GRPO",
    ),
    "rejection": MethodSpec(
        "rejection-sampling EM (STaR, ReST-EM): fine-tune on sampled chains that reach Y",
        "latent_cot.methods.rejection:Rejection",
        samples=True,
        fine_tunes=lambda config: True,
        has_rounds=True,
        unread=("m_step.samples", "m_step.keep", "m_step.weighted"),
    ),
    "forward-kl": replace(
        _EM,
        description="EM with an E-step by forward KL: q learns its own samples, by their posterior weight",
        target="latent_cot.methods.forward_kl:ForwardKL",
        has_balance=False,
    ),
    "gflownet": MethodSpec(
        "the E-step alone: a GFlowNet sampler q(Z | X), or q(Z | X, Y) where tests give Y",
        "latent_cot.em:GFlowNet",
        reasoners=lambda config, answer_given: ("q",) if config.q_sees == "question" or answer_given else (),
        has_balance=True,
        samples=True,
        trains_q=True,
        safeguarded=True,
    ),
    "em": _EM,
    "em-x": replace(
        _EM, description="EM with the sampler q(Z | X), which can answer test questions itself", q_sees="question"
    ),
}
"""A method's name -> what it is."""


FEWEST_TO_JUDGE = 6
"""Validation questions that can show a clear fall (`evaluation.diagnostics.clear_fall`); fewer cannot."""


def shows_demonstrations(config: RunConfig) -> bool:
    """Whether p's prompts may show some."""
    return METHODS[config.method].prompts or config.p_init == "prompt"


def has_safeguard(config: RunConfig) -> bool:
    """Whether training that makes the validation questions less likely is taken back."""
    return config.safeguard and METHODS[config.method].safeguarded and config.evaluation.diagnostics > 0


def draws_samples(config: RunConfig) -> bool:
    """Whether what is drawn for the M-step comes from q itself, at temperature 1 and without weights: then the next
    E-step may learn it. (Wrong chains may have been dropped.)"""
    return config.m_step.temperature == 1 and not config.m_step.weighted


def may_begin_as_p(config: RunConfig) -> bool:
    """Whether q begins a later round as p, if that is the better start: where both read X only and write rationales,
    and q is trained to raise the ELBO, by which they are compared."""
    alike = config.q_sees == "question" and config.m_step.target == "joint"
    return has_safeguard(config) and METHODS[config.method].has_balance and alike and config.e_step.steps > 0
