"""PPO and GRPO: q(Z | X) starts from the initial p, samples rationales, and is pulled towards those of
high reward by the clipped surrogate. p, which gives the reward and is what q is kept near to, stays as it is; or it is
fine-tuned in the end on what q writes (`fine_tune`), as in EM.

Where the E-step makes q(Z) proportional to the reward, this makes q prefer the highest one.

PPO (Schulman et al., 2017) is as it is used on language models (Ziegler et al., 2019; Ouyang et al., 2022). The reward
is that of the E-step, at the end of the rationale, raised to the floor where it is lower; each action pays kl · (log q
− log p) for leaving the initial p. An action's advantage is what it could still earn, less the mean of what its
question's other rationales earned, divided by its root mean square over the batch (plus `DEVIATION_FLOOR`, lest a batch
in which nothing is left to learn be blown up to the usual size). Left out: a value head. It would have to be learned
from a hundred batches, beside an adapter that moves, to predict a reward that comes only at the end; the mean of the
question's other samples is an unbiased baseline that costs nothing (Ahmadian et al., "Back to Basics", 2024; Kazemnejad
et al., "VinePPO", 2024). With it goes generalised advantage estimation. Also left out: mini-batches within a batch, and
an adaptive weight of the KL.

GRPO (Shao et al., "DeepSeekMath", 2024) gives all actions of a rationale the same advantage: its reward compared with
those of its question's other rationales. The KL to the initial p is a term of the loss. With
`--policy-gradient.reward correct` it is the usual one, whose reward is 0 or 1.

Where an engine samples (`model.engine`), each action is weighted by how much likelier the present q finds it
(`truncated_weights`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from latent_cot.config.schema import RunConfig, trained_tokens
from latent_cot.methods.evaluator import tells_right
from latent_cot.methods.method import Method
from latent_cot.methods.phases import Steps, phase
from latent_cot.methods.state import Info, Phase
from latent_cot.model.lm import LanguageModel
from latent_cot.model.optimise import AdapterOptimiser
from latent_cot.objectives.balance import IMPOSSIBLE, best_of_group
from latent_cot.objectives.policy_gradient import (
    clipped_surrogate,
    kl_penalty,
    leave_one_out,
    normalised,
    returns_to_go,
    truncated_weights,
)
from latent_cot.rationales.batch import describe, shown_samples
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.experience import Experience, action_log_probs, log_probs_by_sampler, policy_log_probs
from latent_cot.types import Task, TaskData, UsageError

CLIP_RANGE = 0.2
"""The ratio of new to old probability counts between 1 minus and 1 plus this."""
DEVIATION_FLOOR = 0.1
"""Added to what advantages are divided by (GRPO: the standard deviation of a question's rewards; PPO: the advantages'
root mean square over the batch), so that differences far below it, in units of the reward, are not blown up."""


WEIGHT_CAP = 2.0
"""The largest importance weight of an action that another policy has sampled than the one that is trained."""


class PolicyGradient(Method):
    """A method that maximises the reward of q's rationales."""

    kl_in_loss: bool
    """Whether the KL to p is a term of the loss, and not part of the reward."""

    @abstractmethod
    def advantages(self, experience: Experience, old: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
        """(B, S) the advantage of each action. `old` (B, S) are its log-probabilities under the q that sampled,
        `reward` (B,) those of the complete rationales."""

    @classmethod
    def check(cls, config: RunConfig, task: Task, data: TaskData) -> None:
        super().check(config, task, data)
        by_answer = config.policy_gradient.reward == "correct"
        if by_answer and not tells_right(task, [*data.demonstrations, *data.unlabelled]):
            what = f"a rationale of {task.name} is not right or wrong by itself"
            raise UsageError(f"--policy-gradient.reward correct: {what}; leave it out")

    def algorithm(self) -> Steps:
        yield from self.init(0)
        yield from self.evaluate(0)
        yield from self.start_q(1)
        yield from self.diagnose_before(1)
        yield from self.policy(1)
        yield from self.diagnose(1)
        if self.config.policy_gradient.fine_tune:
            yield from self.draw(1)
            yield from self.m_step(1)
        yield from self.evaluate(1)

    @phase(lambda self, _: self.config.e_step.steps)
    def policy(self, at: Phase) -> Iterator[Info]:
        """Train q; a unit is a batch of rollouts and the gradient steps on it."""
        c = self.config.policy_gradient
        e = self.config.e_step
        tokens = self.config.max_batch_tokens
        optimiser = self.sampler_optimiser()
        for step, (chosen, rollouts), timing in self.rollouts_of_steps(self._rollouts):
            self.count_sampled(rollouts)
            experience = self._experience(chosen, rollouts, reference=True)
            marks = self.marks(experience.trajectories)
            if c.reward == "correct":
                scored = [(t.query.example, rationale) for t in experience.trajectories for rationale in t.rationales]
                reward = torch.tensor([float(marks(*one)) for one in scored])
            else:
                reward = floored(experience, e.reward_floor)
            with self.lm.trainable("q") as model:  # not its merged copy: in bf16 the first ratios would not be 1
                old = action_log_probs(self.lm, model, experience, self.rules.codec, max_tokens=tokens)
            info = policy_gradient_step(
                self.lm,
                experience,
                old,
                self.advantages(experience, old, reward),
                self.rules,
                optimiser,
                step,
                epochs=e.updates,
                kl=c.kl if self.kl_in_loss else 0.0,
                max_tokens=trained_tokens(self.config),
                sampler=log_probs_by_sampler(experience) if self.lm.engine is not None else None,
            )
            self.state.budget.gradient_steps += e.updates
            yield {
                **vars(info),
                **describe(experience.trajectories, marks if self.tells_right else None),
                **timing,
                "samples": shown_samples(experience.trajectories),
            }


class PPO(PolicyGradient):
    """Proximal policy optimisation with a group baseline."""

    kl_in_loss = False

    def advantages(self, experience: Experience, old: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
        c = self.config.policy_gradient
        return ppo_advantages(experience, old, reward, kl=c.kl)


class GRPO(PolicyGradient):
    """Group-relative policy optimisation."""

    kl_in_loss = True

    def advantages(self, experience: Experience, old: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
        advantage = normalised(reward, experience.count, experience.group, floor=DEVIATION_FLOOR)
        return torch.where(experience.mask, advantage[:, None], 0.0)


def ppo_advantages(experience: Experience, old: torch.Tensor, reward: torch.Tensor, *, kl: float) -> torch.Tensor:
    """(B, S) as PPO has them; `old` and `reward` as in `PolicyGradient.advantages`."""
    mask = experience.mask
    # The baseline is one number a rationale, formed of whole returns; what an action has paid before it is sunk.
    whole = reward - kl * torch.where(mask, old - experience.reference, 0.0).sum(1)
    baseline = whole - leave_one_out(whole, experience.count, experience.group)
    to_go = returns_to_go(reward, old, experience.reference, mask, kl=kl)
    advantage = torch.where(mask, to_go - baseline[:, None], 0.0)
    actions = experience.count[:, None] * mask
    scale = ((actions * advantage**2).sum() / actions.sum()).sqrt()
    return advantage / (scale + DEVIATION_FLOOR)


@dataclass(frozen=True)
class PolicyInfo:
    """What the gradient steps on a batch saw; means over the sampled rationales, and over the steps."""

    loss: float
    kl: float
    """Estimate of KL(q || p) of a rationale, nats (the mean of log q − log p), by q as it is before the batch."""
    clipped: float
    """Share of actions whose gradient the clipping has cut off."""
    weight_cut: float
    """Share of actions whose importance weight `WEIGHT_CAP` has cut; 0 where q itself has sampled."""
    gradient_norm: float


def floored(experience: Experience, floor: float | None) -> torch.Tensor:
    """(B,) log-rewards, those too far below the best of their question raised. Of a question without a possible
    rationale all are 0."""
    log_reward, group = experience.log_reward, experience.group
    best = best_of_group(log_reward[:, None], torch.ones_like(log_reward, dtype=torch.bool)[:, None], group)[group]
    least = best - (IMPOSSIBLE if floor is None else floor)
    return torch.maximum(log_reward, torch.where(best.isfinite(), least, 0.0))


def policy_gradient_step(
    lm: LanguageModel,
    experience: Experience,
    old: torch.Tensor,
    advantage: torch.Tensor,
    rules: ChainRules,
    optimiser: AdapterOptimiser,
    step: int,
    *,
    epochs: int,
    kl: float,
    max_tokens: int,
    sampler: torch.Tensor | None = None,
) -> PolicyInfo:
    """`epochs` gradient steps of q on the clipped surrogate plus `kl` times the KL penalty, each on the whole batch.

    `sampler`: (B, S) log-probabilities of the actions under the policy that sampled, where that is another than the q
    of `old`. The surrogate is then weighted (`truncated_weights`); the KL penalty is not.
    """
    weight, cut = truncated_weights(old, old if sampler is None else sampler, experience.mask, cap=WEIGHT_CAP)
    advantage = weight * advantage  # as good as weighting the surrogate, since no weight is negative
    n = float(experience.count.sum())
    actions = float((experience.count[:, None] * experience.mask).sum())
    loss_sum = clipped = norms = 0.0
    for _ in range(epochs):
        with lm.trainable("q") as model:
            for rows, log_prob in policy_log_probs(lm, model, experience, rules.codec, max_tokens=max_tokens):
                there = log_prob.device
                mask, count = experience.mask[rows].to(there), experience.count[rows].to(there)
                losses, cut_off = clipped_surrogate(
                    log_prob, old[rows].to(there), advantage[rows].to(there), mask, clip_range=CLIP_RANGE
                )
                if kl:
                    losses = losses + kl * kl_penalty(log_prob, experience.reference[rows].to(there), mask)
                loss = (count * losses).sum() / n
                lm.accelerator.backward(loss)
                loss_sum += float(loss.detach())
                clipped += float((count * cut_off).sum())
            norms += optimiser.step(step)
    loss_sum, clipped = lm.processes.sum([loss_sum, clipped])
    drift = (experience.count * (old - experience.reference).mul(experience.mask).sum(1)).sum() / n
    weight_cut = float((experience.count * cut).sum()) / actions
    return PolicyInfo(loss_sum / epochs, float(drift), clipped / (epochs * actions), weight_cut, norms / epochs)
