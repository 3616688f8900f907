"""Updates and figures against those computed by hand, in a double loop, or by autograd from the formula."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from latent_cot.config.schema import PolicyGradientConfig
from latent_cot.evaluation.diagnostics import diagnose
from latent_cot.methods import e_step, forward_kl_steps, likelihood, policy_gradient
from latent_cot.methods.policy_gradient import CLIP_RANGE, GRPO, PPO, floored
from latent_cot.methods.state import Seen
from latent_cot.model.lm import LanguageModel
from latent_cot.model.optimise import Schedule
from latent_cot.model.text import TextCodec
from latent_cot.objectives.balance import IMPOSSIBLE, Balance, below_floor, temper, trajectory_balance
from latent_cot.objectives.importance import importance_weights
from latent_cot.rationales.batch import action_mask
from latent_cot.rationales.chain import ChainRules
from latent_cot.rationales.experience import Experience, action_log_probs, gather, policy_log_probs, weigh
from latent_cot.rationales.reward import Reward
from latent_cot.rationales.rollout import rollout
from latent_cot.rationales.scoring import Group, score
from latent_cot.types import Rationale, Reasoner
from tests.methods.test_e_step import queries
from tests.methods.test_likelihood import NoStep
from tests.worlds import FakeTool, language_model, random_chain


@pytest.fixture(scope="module")
def lm(tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model("llama"))


@pytest.fixture(scope="module")
def rules(lm: LanguageModel) -> ChainRules:
    return ChainRules(TextCodec(lm.tokenizer, allowed_characters="1,="), [FakeTool()], max_tokens=5)


@pytest.fixture(scope="module")
def seen(lm: LanguageModel, rules: ChainRules) -> Experience:
    """Three questions with three distinct rationales each, one of them twice."""
    asked = queries(3)
    rng = random.Random(0)
    sampled = []
    for _ in asked:
        pool = [random_chain(rules, rng, k) for k in (1, 3, 5)]
        sampled.append([pool[0], pool[0], pool[1], pool[2]])
    return gather(asked, sampled, Reward(lm, rules.codec, max_tokens=200), reference=True)


def no_step(lm: LanguageModel, adapter: Reasoner) -> Any:
    """An optimiser that keeps the gradient and takes no step."""
    for weight in lm.parameters(adapter).values():
        weight.grad = None
    return NoStep(lm.parameters(adapter), Schedule(1.0, 1, 0, "constant"), 1e9)


def log_probs_of(lm: LanguageModel, model: Any, experience: Experience, rules: ChainRules) -> torch.Tensor:
    """(B,) log-probability of each complete rationale under `model`."""
    found = torch.zeros_like(experience.log_reward)
    with torch.no_grad():
        for rows, log_prob in policy_log_probs(lm, model, experience, rules.codec, max_tokens=200):
            found[rows] = log_prob.sum(1)
    return found


def autograd(loss: torch.Tensor, optimiser: Any) -> torch.Tensor:
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, optimiser.weights)])


# -- policy gradients ------------------------------------------------------------------------------------


def test_actions_are_what_was_chosen_and_a_stop_that_was_not_forced() -> None:
    stopped = Rationale((1, 2), (True, False), (True, False, True), "")
    cut = Rationale((1,), (True,), (True, True), "", truncated=True)
    assert action_mask([stopped, cut], 4).tolist() == [[True, False, True, False], [True, False, False, False]]


def test_advantages_of_ppo() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    old = torch.tensor([[-1.0, -2.0], [-1.0, 0.0]])
    reference = torch.tensor([[-2.0, -4.0], [-3.0, 0.0]])  # log ratios 1, 2 | 2
    reward = torch.tensor([-5.0, -1.0])
    experience = Experience([], [], torch.tensor([2.0, 1.0]), torch.tensor([0, 0]), mask, reference, reward)
    settings = PolicyGradientConfig(kl=0.5)
    of = SimpleNamespace(config=SimpleNamespace(policy_gradient=settings))
    found = PPO.advantages(cast("PPO", of), experience, old, reward)
    # The whole: -6.5 (twice), -2. The others' mean: (-6.5 - 2) / 2 = -4.25 | -6.5. To go: -6.5, -6 | -2.
    raw = torch.tensor([[-2.25, -1.75], [4.5, 0.0]])
    scale = math.sqrt((2 * (2.25**2 + 1.75**2) + 4.5**2) / 5)
    torch.testing.assert_close(found, raw / (scale + 0.1))


def test_advantages_of_grpo() -> None:
    mask, none = torch.tensor([[True, True], [True, False]]), torch.zeros(2, 2)
    reward = torch.tensor([0.0, 1.0])
    experience = Experience([], [], torch.tensor([3.0, 1.0]), torch.tensor([0, 0]), mask, none, reward)
    found = GRPO.advantages(cast("GRPO", None), experience, none, reward)
    # Of 0, 0, 0, 1 the mean is 0.25, the standard deviation 0.5.
    torch.testing.assert_close(found, torch.tensor([[-0.25, -0.25], [0.75, 0.0]]) / (0.5 + 0.1))


@pytest.mark.parametrize(("floor", "raised"), [(10.0, [-15.0, -15.0]), (None, [-40.0, -5.0 - IMPOSSIBLE])])
def test_rewards_far_below_the_best_of_their_question_are_raised(floor: float | None, raised: list[float]) -> None:
    """Where nothing is worth anything, all are alike."""
    log_reward, group = torch.tensor([-5.0, -40.0, -math.inf, -math.inf, -30.0]), torch.tensor([0, 0, 0, 1, 2])
    nothing = torch.zeros(5, 1)
    found = floored(Experience([], [], torch.ones(5), group, nothing.bool(), nothing, log_reward), floor)
    assert found.tolist() == [-5.0, *raised, 0.0, -30.0]


@pytest.mark.parametrize("moved", [0.0, 0.5])
@pytest.mark.parametrize("behind", [None, 1.0])
def test_a_policy_gradient_with_a_kl_penalty(
    lm: LanguageModel, rules: ChainRules, seen: Experience, behind: float | None, moved: float
) -> None:
    """Of q's own samples, or of another policy's, whose log-probabilities differ by about a nat; in the first step on
    them, or where q has moved by half a nat since."""
    with lm.trainable("q") as model:
        old = action_log_probs(lm, model, seen, rules.codec, max_tokens=200)
    generator = torch.Generator().manual_seed(0)
    advantage = torch.where(seen.mask, torch.randn(seen.mask.shape, generator=generator), 0.0)
    old = old + moved * torch.randn(seen.mask.shape, generator=generator)
    sampler = None if behind is None else old + behind * torch.randn(seen.mask.shape, generator=generator)
    optimiser = no_step(lm, "q")
    info = policy_gradient.policy_gradient_step(
        lm, seen, old, advantage, rules, optimiser, 0, epochs=1, kl=0.7, max_tokens=200, sampler=sampler
    )
    total, cut, actions, drift, clipped = torch.zeros(()), 0.0, 0.0, 0.0, 0.0
    with lm.trainable("q") as model:
        for rows, log_p in policy_log_probs(lm, model, seen, rules.codec, max_tokens=200):
            for k, row in enumerate(rows):
                for i in range(log_p.shape[1]):
                    if seen.mask[row, i]:
                        ratio = 1.0 if sampler is None else float((old[row, i] - sampler[row, i]).exp())
                        gap = seen.reference[row, i] - log_p[k, i]
                        change, worth = (log_p[k, i] - old[row, i]).exp(), advantage[row, i]
                        free, held = change * worth, change.clamp(1 - CLIP_RANGE, 1 + CLIP_RANGE) * worth
                        gain = min(ratio, 2.0) * torch.minimum(free, held)
                        clipped += float(seen.count[row]) * bool(held < free)
                        total = total + seen.count[row] * (0.7 * (gap.exp() - gap - 1) - gain)
                        cut += float(seen.count[row]) * (ratio > 2)
                        actions += float(seen.count[row])
                        drift += float(seen.count[row] * (old[row, i] - seen.reference[row, i]))
        expected = autograd(total / seen.count.sum(), optimiser)
    torch.testing.assert_close(optimiser.gradient, expected, rtol=1e-3, atol=1e-5)
    assert info.kl == pytest.approx(drift / 12, rel=1e-4)
    assert info.weight_cut == pytest.approx(cut / actions) and (cut > 0) == (sampler is not None)
    assert info.clipped == pytest.approx(clipped / actions) and (clipped > 0) == (moved > 0)


# -- dropout ---------------------------------------------------------------------------------------------


def test_only_fine_tuning_drops_out(tiny_model: Callable[[str], Path], rules: ChainRules, seen: Experience) -> None:
    lm = language_model(tiny_model("llama"))
    for _, layer in lm._adapted:
        layer.lora_dropout["q"] = nn.Dropout(0.5)
    groups = [t.policy_group for t in seen.trajectories]
    one = torch.ones(3)
    samples = [forward_kl_steps.Samples(list(group.rationales), one, one, one, 0.0) for group in groups]
    balance: dict[str, Any] = {"objective": "vargrad", "reward_floor": None, "huber_delta": None}
    updates: dict[str, Callable[..., object]] = {
        "likelihood": partial(likelihood.likelihood_step, lm, "q", groups, rules),
        "balance": partial(e_step.balance_step, lm, seen.trajectories, rules, reward_temperature=1.0, **balance),
        "forward KL": partial(forward_kl_steps.forward_kl_step, lm, groups, samples, rules, divisor=3),
    }

    def gradient(name: str, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        optimiser = no_step(lm, "q")
        updates[name](optimiser, 0, max_tokens=200)
        found: torch.Tensor = optimiser.gradient
        return found

    drops_out = {name for name in updates if not torch.equal(gradient(name, 0), gradient(name, 1))}
    assert drops_out == {"likelihood"}


# -- weighted likelihoods --------------------------------------------------------------------------------


def test_importance_weights_are_p_over_q(lm: LanguageModel, rules: ChainRules, seen: Experience) -> None:
    weight, _ = weigh(lm, seen, rules.codec, max_tokens=200)
    log_q = log_probs_of(lm, lm.merged("q"), seen, rules)
    for g in range(3):
        rows = (seen.group == g).nonzero()[:, 0]
        expected = (seen.count[rows].log() + seen.log_reward[rows] - log_q[rows]).softmax(0)
        torch.testing.assert_close(weight[rows], expected, rtol=1e-3, atol=1e-5)


def test_what_an_engine_sampled_from_an_older_q_is_weighed_by_that_q(
    lm: LanguageModel, rules: ChainRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """p stands for the q that has been trained since."""
    asked, settings = queries(3), {"max_tokens": 200}
    prompts = [query.policy_prompt for query in asked]
    sampled = rollout(lm, "q", prompts, rules, n=6, generator=torch.Generator().manual_seed(0))
    seen = gather(asked, sampled, Reward(lm, rules.codec, max_tokens=200), reference=True)
    expected, before = weigh(lm, seen, rules.codec, **settings)
    now = lm.merged("p")
    monkeypatch.setattr(lm, "merged", lambda adapter: now)
    by_now, _ = weigh(lm, seen, rules.codec, **settings)
    assert (by_now - expected).abs().max() > 0.01
    monkeypatch.setattr(lm, "engine", object())
    found, after = weigh(lm, seen, rules.codec, **settings)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(after.bound, before.bound, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("b", [0.0, 0.4])
@pytest.mark.parametrize("sampled_by", ["q", "p"])
def test_a_forward_kl_step_is_the_weighted_likelihood(
    lm: LanguageModel,
    rules: ChainRules,
    seen: Experience,
    monkeypatch: pytest.MonkeyPatch,
    sampled_by: Reasoner,
    b: float,
) -> None:
    """Weighed by the copy that has sampled, in bf16 another q than the one that is trained: p stands for it. Less b
    times what the q that is trained gives the samples."""
    copy = lm.merged(sampled_by)
    log_sampled = log_probs_of(lm, copy, seen, rules)
    weight, _ = importance_weights(seen.log_reward, log_sampled, seen.count, seen.group)
    monkeypatch.setattr(lm, "merged", lambda adapter: copy)
    optimiser = no_step(lm, "q")
    weighed, _ = weigh(lm, seen, rules.codec, max_tokens=200)
    groups = [t.policy_group for t in seen.trajectories]
    samples = []
    for g, group in enumerate(groups):
        own = seen.group == g
        log_seen = seen.count[own].log() - log_sampled[own]
        samples.append(forward_kl_steps.Samples(list(group.rationales), weighed[own], seen.count[own], log_seen, b))
    forward_kl_steps.forward_kl_step(lm, groups, samples, rules, optimiser, 0, max_tokens=200, divisor=3)
    total = torch.zeros(())
    with lm.trainable("q") as model:
        for rows, log_q in policy_log_probs(lm, model, seen, rules.codec, max_tokens=200):
            total = total - (weight[rows] * log_q.sum(1)).sum()
            group_of = seen.group[rows]
            for g in group_of.unique():
                own = group_of == g
                of_q = log_q[own].sum(1)
                given = (seen.count[rows][own].log() - log_sampled[rows][own] + of_q.detach()).softmax(0)
                total = total + b * (given * of_q).sum()
        expected = autograd(total / 3, optimiser)
    torch.testing.assert_close(optimiser.gradient, expected, rtol=1e-2, atol=1e-4)


def test_few_samples_do_not_move_a_q_that_is_the_posterior(
    lm: LanguageModel, rules: ChainRules, seen: Experience
) -> None:
    """They would be learned by heart. A rationale that is worth more than q gives it is learned."""
    log_q = log_probs_of(lm, lm.merged("q"), seen, rules).tolist()
    groups = [t.policy_group for t in seen.trajectories]

    def gradient(more: float) -> float:
        columns = zip(seen.group.tolist(), seen.rationales, seen.count.int().tolist(), log_q, strict=True)
        records = [
            Seen(g, z, n, of_z - 7 + more * (k % 3 == 0), of_z, True) for k, (g, z, n, of_z) in enumerate(columns)
        ]
        samples = forward_kl_steps.samples_of(records, baseline=True)
        optimiser = no_step(lm, "q")
        targets = [samples[g] for g in range(len(groups))]
        forward_kl_steps.forward_kl_step(lm, groups, targets, rules, optimiser, 0, max_tokens=200, divisor=3)
        return float(optimiser.gradient.norm())

    assert gradient(0.0) < 1e-3 * gradient(1.0)


@pytest.mark.parametrize("weights", [(0.25, 1.75), (0.002, 0.002)])
def test_weights_of_the_m_step_scale_each_likelihood(
    lm: LanguageModel, rules: ChainRules, weights: Sequence[float]
) -> None:
    """Also where all of a batch are light: it then counts for less than another."""
    rng = random.Random(1)
    groups = [Group([5, 6], [random_chain(rules, rng, k)], [4, 5]) for k in (2, 4)]

    def gradient(of: Sequence[Group], weights: Sequence[float]) -> torch.Tensor:
        optimiser = no_step(lm, "p")
        likelihood.likelihood_step(
            lm, "p", of, rules, optimiser, 0, max_tokens=1, weights=[[weight] for weight in weights]
        )
        found: torch.Tensor = optimiser.gradient
        return found

    tokens = [likelihood._tokens(group, rules.codec)[0] for group in groups]
    alone = [gradient([group], [1.0]) for group in groups]
    expected = sum(w * n * g for w, n, g in zip(weights, tokens, alone, strict=True)) / sum(tokens)
    torch.testing.assert_close(gradient(groups, weights), expected, rtol=1e-3, atol=1e-6)


# -- balance and its figures -----------------------------------------------------------------------------


def test_a_learned_log_z_with_a_floor_and_a_cap() -> None:
    """What is below the floor counts where it is too likely only, and large residuals linearly."""
    states, group = torch.ones(3, 1, dtype=torch.bool), torch.zeros(3, dtype=torch.long)
    censored = torch.tensor([[False], [True], [True]])
    a, log_z = torch.tensor([[20.0], [5.0], [-4.0]]), torch.tensor([0.0])
    balance = Balance(a, states, group, torch.ones(3), log_z=log_z, censored=censored, huber_delta=10.0)
    loss, _ = trajectory_balance(balance)
    assert float(loss) == pytest.approx((2 * 10 * 20 - 10**2 + 0 + 4**2) / 3)


def test_samples_that_are_worth_nothing_do_not_move_log_z() -> None:
    states, group = torch.ones(2, 1, dtype=torch.bool), torch.tensor([0, 0])
    rewards = torch.full((2, 1), -math.inf)
    a = (temper(rewards, states, group) + torch.tensor([[3.0], [2.0]])).requires_grad_()
    log_z = torch.tensor([4.6], requires_grad=True)
    censored = below_floor(rewards, states, group, None)
    loss, _ = trajectory_balance(Balance(a, states, group, torch.ones(2), log_z=log_z, censored=censored))
    loss.sum().backward()
    assert log_z.grad is not None and float(log_z.grad) == 0
    assert float(loss.detach()) == 0


@pytest.mark.parametrize("complete_only", [False, True])
def test_the_figures_of_a_posterior(complete_only: bool, lm: LanguageModel, rules: ChainRules) -> None:
    asked = queries(3)
    reward = Reward(lm, rules.codec, max_tokens=200)
    temperature, floor, n = 0.5, 6.0, 12
    found = diagnose(
        lm,
        asked,
        rules,
        reward,
        n=n,
        reward_temperature=temperature,
        reward_floor=floor,
        complete_only=complete_only,
        max_tokens=200,
        generator=torch.Generator().manual_seed(3),
    )
    prompts = [query.policy_prompt for query in asked]
    sampled = rollout(lm, "q", prompts, rules, n=n, generator=torch.Generator().manual_seed(3))
    some_below = False
    for query, rationales, figures in zip(asked, sampled, found, strict=True):
        (rewards,) = reward.of_prefixes([query.example], [Group(query.model_prompt, rationales, query.answer)])
        with torch.no_grad():
            scores = score(lm, lm.merged("q"), [Group(query.policy_prompt, rationales)], rules.codec)
        ends = [float(rewards[b, len(rationale)]) for b, rationale in enumerate(rationales)]
        best = max(ends) if complete_only else float(rewards.max())
        flows: list[tuple[float, bool]] = []
        weights, mass = [], {}
        for b, rationale in enumerate(rationales):
            log_q = 0.0
            for i in range(len(rationale) + 1):
                if rationale.states[i]:
                    stopped = log_q + float(scores.log_pterm[b, i])
                    worth = float(rewards[b, i])
                    if i == len(rationale):  # where a chain has stopped there is no floor
                        flows.append((worth / temperature - stopped, False))
                    elif not complete_only:
                        flows.append((max(worth, best - floor) / temperature - stopped, worth < best - floor))
                if i < len(rationale):
                    log_q += float(scores.log_pf[b, i])
            weights.append(ends[b] - stopped)
            mass[rationale] = math.exp(stopped)
        known = [flow for flow, below in flows if not below]
        mean = sum(known) / len(known)
        variance = sum((min(flow - mean, 0) if below else flow - mean) ** 2 for flow, below in flows) / len(flows)
        w = torch.tensor(weights, dtype=torch.float64)
        some_below |= any(below for _, below in flows)
        assert figures.variance == pytest.approx(variance, rel=1e-3)
        assert figures.log_z == pytest.approx(mean, abs=1e-3)
        assert figures.censored == pytest.approx(sum(below for _, below in flows) / len(flows))
        assert figures.bound == pytest.approx(float(w.logsumexp(0)) - math.log(n), abs=1e-3)
        assert figures.elbo == pytest.approx(float(w.mean()), abs=1e-3)
        assert figures.ess == pytest.approx(float((2 * w.logsumexp(0) - (2 * w).logsumexp(0)).exp()) / n, rel=1e-3)
        assert figures.mass == pytest.approx(sum(mass.values()), rel=1e-3)
        assert figures.cut == sum(rationale.truncated for rationale in rationales) / n
    assert some_below != complete_only
