"""Signs that the sampler q has gone wrong, in figures that may look perfect: variance 0 and an effective sample size of
100 % are also those of a q that writes one and the same wrong chain each time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from latent_cot.config.methods import METHODS

if TYPE_CHECKING:
    from latent_cot.config.schema import RunConfig
    from latent_cot.methods.state import Phase

PATIENCE = 3
"""Steps in a row that have to show a sign: one step sees few questions. Figures of validation questions need one."""
LOG_Z_MARGIN = 2.0
"""Nats above 0 that a step's rough estimate of log Z may be: a reward floor and chance lift it by up to 1."""
MANY_PASSES = 50.0
"""An M-step that learns each rationale more often than this: the main job does so 7 times."""
RIGHT = 0.1
"""Share of right chains below which nothing is right."""
LOOK_PERFECT = ("variance", "ess")
"""Figures that a q with one chain a question has at their best: they mean nothing there, and are not shown."""
_TRAINED_BY = {"init": "init_step", "start_q": "init_step", "m_step": "m_step", "fit": "m_step"}
"""Phase -> the section with its learning rate; that of others is the E-step's."""
_DIAGNOSED = ("diagnose_before", "diagnose", "validate")


def has_one_chain(info: Mapping[str, Any], *, own_reward: bool) -> bool:
    """Whether all samples of a question are the same chain, for each question, and not known to be right.

    Args:
        info: the figures of a unit of work, or of validation questions.
        own_reward: the task has a reward of its own; `accuracy` says then only whether a chain is worth anything.
    """
    accuracy = info.get("accuracy")
    known_right = accuracy is not None and accuracy >= RIGHT  # NaN: not known
    return info.get("single") == 1 and (own_reward or not known_right)


def signs(phase: Phase, info: Mapping[str, Any], config: RunConfig, *, own_reward: bool) -> Iterator[tuple[str, str]]:
    """Each sign of trouble in the figures of a unit of work: what it is, and a sentence on it with a remedy.

    Args:
        info: a figure that is NaN is not known; but a gradient that is no finite number is a sign by itself.
        own_reward: the task has a reward of its own, which is no probability.
    """
    e = config.e_step
    rate = f"a lower --e-step.learning-rate (it is {e.learning_rate:g})"
    teach = "more --data.demonstrations or --init-step.steps"
    if METHODS[config.method].reads(config, "e_step.tempered_share"):
        teach += f", or explore: a higher --e-step.tempered-share (it is {e.tempered_share:g})"
    norms = [info[name] for name in ("gradient_norm", "forward_kl_gradient_norm") if info.get(name) is not None]
    info = {name: value for name, value in info.items() if not (isinstance(value, float) and math.isnan(value))}
    if has_one_chain(info, own_reward=own_reward):
        knows = info.get("accuracy") is not None and not own_reward
        what = "and it is wrong" if knows else "which is right only if no other is any good"
        yield (
            "one_chain",
            f"q has collapsed: all samples of a question are the same chain, {what}. Variance 0 and ESS 100 % mean "
            f"nothing then. Begin again with {rate}, or with {teach}",
        )
    if not all(map(math.isfinite, norms)):
        section = _TRAINED_BY.get(phase.name, "e_step")
        lower = (
            f"a lower --{section.replace('_', '-')}.learning-rate (it is {getattr(config, section).learning_rate:g})"
        )
        yield (
            "diverged",
            "training is coming apart: the gradient is infinite, or no number. Such steps are left out, and too many "
            f"in a row end the run. Begin again with {lower}",
        )
    elif phase.name == "e_step" and not any(norms) and (info.get("accuracy") or 0.0) < RIGHT:
        yield (
            "nothing",
            "q learns nothing: no rationale that was sampled is worth anything, or none more than another (a variance "
            f"of 0 is no success then). Begin again with {teach}",
        )
    if (passes := info.get("passes") or 0.0) > MANY_PASSES:
        yield (
            "by_heart",
            f"the M-step has so few rationales that it learns each {passes:.0f} times: p may know them by heart and "
            "little else. Begin again with more --data.demonstrations, --data.unlabelled or --m-step.samples, or with "
            f"fewer --m-step.steps (they are {config.m_step.steps})",
        )
    if (info.get("cut") or 0.0) > 0.99:
        tokens = config.rollout.max_tokens
        yield (
            "cut",
            f"every chain is cut at {tokens} tokens before q stops by itself, so that none is a whole one. Raise "
            "--rollout.max-tokens or, if chains run on and on, teach it to stop: more --init-step.steps",
        )
    plain = not own_reward and info.get("reward_temperature", 1.0) == 1
    if plain and (log_z := info.get("log_z") or 0.0) > LOG_Z_MARGIN:
        yield (
            "log_z",
            f"q is coming apart: log Z(X) is estimated as {log_z:.1f} nats, and log p(Y | X) cannot be above 0. "
            f"Begin again with {rate}",
        )
    back = "It is taken back: {} is what it was before. " if info.get("taken_back") else ""
    if fall := info.get("elbo_fell"):
        yield (
            "elbo_fell",
            f"the E-step has taken q farther from the posterior: the ELBO fell for {fall} validation questions and "
            f"rose for {info.get('elbo_rose')}. {back.format('q')}Begin again with {rate}, more --e-step.samples or "
            "--data.demonstrations, or leave the E-step out: --e-step.steps 0",
        )
    if fall := info.get("log_y_fell"):
        m = config.m_step
        yield (
            "log_y_fell",
            f"the M-step has lowered log p(Y | X) of {fall} validation questions and raised that of "
            f"{info.get('log_y_rose')}. {back.format('p')}Begin again with fewer --m-step.steps (they are "
            f"{m.steps}), a lower --m-step.learning-rate (it is {m.learning_rate:g}) or more questions; "
            "--no-safeguard would take it all the same",
        )


class Watch:
    """Adds to the figures of each unit of work what they are a sign of."""

    def __init__(self, config: RunConfig, *, own_reward: bool) -> None:
        self.config, self.own_reward = config, own_reward
        self._phase: Phase | None = None
        self._in_a_row: dict[str, int] = {}
        self._said = set[tuple[int, str]]()  # in which round what

    def see(self, phase: Phase, info: dict[str, Any]) -> dict[str, Any]:
        """`info` with `one_chain`, if that is so, and `warning`, a sentence, the first time in a round that a sign
        has lasted."""
        if phase != self._phase:
            self._phase, self._in_a_row = phase, {}
        found = dict(signs(phase, info, self.config, own_reward=self.own_reward))
        self._in_a_row = {name: self._in_a_row.get(name, 0) + 1 for name in found}
        needed = 1 if phase.name in _DIAGNOSED else PATIENCE
        new = [name for name, times in self._in_a_row.items() if times >= needed]
        texts = [found[name] for name in new if (phase.round, name) not in self._said]
        self._said |= {(phase.round, name) for name in new}
        one_chain = {"one_chain": True} if "one_chain" in found else {}
        return {**info, **one_chain, **({"warning": "; ".join(texts)} if texts else {})}
