"""A task's own reward: which token sequences have it, what the methods make of it, and what q becomes."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from latent_cot.config.schema import PolicyGradientConfig
from latent_cot.config.settings import with_method
from latent_cot.em import EM
from latent_cot.evaluation.diagnostics import diagnose, mean_figures
from latent_cot.methods.e_step import Behaviour, balance_step, collect
from latent_cot.model.lm import LanguageModel
from latent_cot.model.optimise import AdapterOptimiser, Schedule
from latent_cot.model.text import TextCodec
from latent_cot.rationales.buffer import ReplayBuffer
from latent_cot.rationales.chain import ChainRules, encode_rationale
from latent_cot.rationales.experience import gather
from latent_cot.rationales.reward import Reward, own_log_rewards
from latent_cot.rationales.scoring import Group, Query, score, score_rows
from latent_cot.tasks.random_numbers import TASK
from latent_cot.types import DataRequest, Example, ToolError, UsageError
from latent_cot.verify.exact import enumerate_rationales, log_probs
from tests.loops import CONFIG, make
from tests.tiny import build_tokenizer
from tests.worlds import CountTool, ToyTask, language_model

EXAMPLE = Example("x", question="x")


class Lengths(ToyTask):
    """Worth the text's length; nothing if there is an `a` in it."""

    def log_reward(self, example: Example, text: str) -> float:
        return -math.inf if "a" in text else -float(len(text))


@pytest.fixture(scope="module")
def lm(tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model("multi_digit"))


def rules_of(lm: LanguageModel, characters: str, tools: tuple[CountTool, ...] = (), max_tokens: int = 3) -> ChainRules:
    return ChainRules(TextCodec(lm.tokenizer, allowed_characters=characters), tools, max_tokens=max_tokens)


@pytest.mark.parametrize("tools", [(), (CountTool(),)])
def test_each_text_counts_once(lm: LanguageModel, tools: tuple[CountTool, ...]) -> None:
    """A number of two digits is one token or two: of all ways to spell a text, a prefix's too, the tokenizer's has the
    reward."""
    rules = rules_of(lm, "12a=", tools)
    rationales = enumerate_rationales(rules)
    rewards = own_log_rewards(Lengths(), EXAMPLE, rationales, rules.codec)
    spelled: Counter[str] = Counter()
    for rationale, row in zip(rationales, rewards.tolist(), strict=True):
        for n in range(len(rationale) + 1):
            if not rationale.states[n] or "a" in (text := rules.codec.decode(rationale.tokens[:n])):
                assert row[n] == -math.inf
            elif row[n] > -math.inf:
                assert row[n] == -len(text)
        assert all(value == -math.inf for value in row[len(rationale) + 1 :])
        if row[len(rationale)] > -math.inf:
            spelled[rationale.text] += 1
            if not rationale.calls:
                assert encode_rationale(rationale.text, rules).tokens == rationale.tokens
    assert set(spelled.values()) == {1}
    assert set(spelled) == {r.text for r in rationales if "a" not in r.text and _fits(r.text, rules)}
    assert len(spelled) < sum("a" not in r.text for r in rationales)


def test_each_text_counts_once_where_calls_fail() -> None:
    """ " ==" is one token, or " =" and "=": two calls that fail, or one. "=," is one too, but no action."""

    class Broken(CountTool):
        def __call__(self, request: str) -> str:
            raise ToolError("no")

    merges = [(" ", "="), (" =", "="), ("=", "="), ("=", ","), (" =", ",")]
    codec = TextCodec(build_tokenizer(merges=merges), allowed_characters=" =,1", triggers=["="])
    rationales = enumerate_rationales(ChainRules(codec, [Broken()], max_tokens=3))
    rewards = own_log_rewards(Lengths(), EXAMPLE, rationales, codec, ends_only=True)
    worth = Counter(
        rationale.text for rationale, row in zip(rationales, rewards, strict=True) if row[len(rationale)] > -math.inf
    )
    assert set(worth.values()) == {1}
    assert {" ==", "==", " =,", " ==,", "=1="} <= set(worth)
    short = {rationale.text for rationale in rationales if len(codec.encode_chosen(rationale.text)) <= 3}
    assert set(worth) == short


def _fits(text: str, rules: ChainRules) -> bool:
    """Whether the text can be written in its own tokens, a result of the counting tool being two of them."""
    pieces = text.split("=")
    own = [pieces[0], *(piece[2:] if rules.tools else piece for piece in pieces[1:])]
    marked = [piece + "=" for piece in own[:-1]] + own[-1:]
    tokens = [rules.codec.encode(piece) for piece in marked] if rules.tools else [rules.codec.encode(text)]
    return sum(map(len, tokens)) <= rules.max_tokens


@pytest.mark.parametrize("own", [True, False])
def test_complete_rationales_have_the_reward_of_their_last_prefix(lm: LanguageModel, own: bool) -> None:
    rules = rules_of(lm, "12a=", (CountTool(),))
    rationales = enumerate_rationales(rules)
    groups = [Group([5, 6], rationales[::7], [7, 8]), Group([6], rationales[3::11], [9])]
    reward = Reward(lm, rules.codec, Lengths() if own else None, tool_tokens=True, max_tokens=2000)
    prefixes = reward.of_prefixes([EXAMPLE, EXAMPLE], groups)
    found = reward.score([EXAMPLE, EXAMPLE], groups, ends_only=True, reference=True)
    for group, of_prefixes, (of_complete, reference) in zip(groups, prefixes, found, strict=True):
        with torch.no_grad():
            scores = score(lm, lm.merged("p"), [group], rules.codec)
        torch.testing.assert_close(reference, scores.log_actions)
        for rationale, expected, row in zip(group.rationales, of_prefixes, of_complete, strict=True):
            end = len(rationale)
            assert float(row[end]) == pytest.approx(float(expected[end]), abs=1e-4)
            assert torch.isinf(row[:end]).all()


def test_p_is_run_only_where_it_is_read(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward of the task's own is read off the text; p's log-probabilities beside it are PPO's and GRPO's alone."""
    rules, passes, run = rules_of(lm, "12a=", ()), list[int](), LanguageModel.hidden

    def hidden(*given: Any) -> torch.Tensor:
        passes.append(len(given))
        return run(*given)

    monkeypatch.setattr(LanguageModel, "hidden", hidden)
    query, rationales = Query(EXAMPLE, [5], [6], []), enumerate_rationales(rules)[:9]
    reward = Reward(lm, rules.codec, Lengths(), max_tokens=2000)
    seen = gather([query], [rationales], reward)
    assert not passes
    with_p = gather([query], [rationales], reward, reference=True)
    assert passes and bool((with_p.reference != 0).any())
    torch.testing.assert_close(seen.log_reward, with_p.log_reward)


class Uniform(ToyTask):
    """Some numbers of one token or two behind a space are worth 1."""

    worth = (" 1", " 2", " 11", " 12", " 21", " 22", " 212")

    def log_reward(self, example: Example, text: str) -> float:
        return 0.0 if text in self.worth else -math.inf


def test_q_becomes_uniform(tiny_model: Callable[[str], Path]) -> None:
    """Over all the rationales there are, each spelling of a number among them. q starts as the base model, and samples
    hot enough to find them all: else, with most seeds, one is lost."""
    lm = language_model(tiny_model("multi_digit"), rank=32, perturb=False)
    rules, task = rules_of(lm, " 12"), Uniform()
    query = Query(EXAMPLE, [5, 6], [5, 6], [])
    reward = Reward(lm, rules.codec, task)
    rationales = enumerate_rationales(rules)
    log_reward = own_log_rewards(task, EXAMPLE, rationales, rules.codec)
    ends = torch.tensor([len(rationale) for rationale in rationales])[:, None]
    target = log_reward.gather(1, ends)[:, 0].double().softmax(0)
    assert sorted(target.tolist())[-8:] == pytest.approx([0, *[1 / 7] * 7])

    def total_variation() -> float:
        q = log_probs(lm.merged("q"), query.policy_prompt, rationales, rules.codec).exp()
        assert float(q.sum()) == pytest.approx(1, abs=1e-4)
        return float((q - target).abs().sum()) / 2

    before = total_variation()
    steps = 200
    log_z = [torch.nn.Parameter(torch.zeros(()))]
    schedule = Schedule(5e-3, steps, 5, "cosine")
    optimiser = AdapterOptimiser(lm.parameters("q"), schedule, 0.3, log_z=log_z, log_z_rate=0.1)
    buffer = ReplayBuffer(tolerance=0)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        behaviour = [Behaviour(4.0, tempered_share=0.4)]
        batches = collect(lm, [query], behaviour, rules, buffer, reward, samples=64, generator=generator)
        balance_step(
            lm,
            batches,
            rules,
            optimiser,
            step,
            objective="prefix-tb",
            reward_temperature=1.0,
            reward_floor=8.0,
            huber_delta=10.0,
            max_tokens=5000,
            log_z=log_z,
        )
    assert before > 0.9
    assert total_variation() < 0.04
    assert log_z[0].item() == pytest.approx(math.log(7), abs=0.2)
    texts = Group(query.policy_prompt, [encode_rationale(text, rules) for text in task.worth])
    (listed,) = score_rows(lm, lm.merged("q"), [texts], rules.codec, max_tokens=5000)
    assert float(listed.log_complete.exp().sum()) > 0.96
    (figures,) = diagnose(
        lm,
        [query],
        rules,
        reward,
        n=400,
        reward_temperature=1.0,
        reward_floor=8.0,
        complete_only=False,
        max_tokens=5000,
        generator=torch.Generator().manual_seed(0),
    )
    assert figures.bound == pytest.approx(math.log(7), abs=0.05)
    assert figures.ess > 0.95


def test_samples_that_are_worth_nothing_have_figures_too(lm: LanguageModel) -> None:
    rules = rules_of(lm, "abc")
    example = TASK.example("0..9")
    query = Query(example, [5, 6], [5, 6], [])
    (figures,) = diagnose(
        lm,
        [query],
        rules,
        Reward(lm, rules.codec, TASK),
        n=8,
        reward_temperature=1.0,
        reward_floor=None,
        complete_only=False,
        max_tokens=500,
        generator=torch.Generator().manual_seed(0),
    )
    assert figures.ess == 0
    assert figures.bound == -math.inf
    assert math.isnan(figures.variance) and math.isnan(figures.log_z)
    assert figures.censored == 1
    known = {**vars(figures), "variance": 3.0, "log_z": 1.0}
    assert mean_figures([vars(figures), known])["variance"] == 3


@dataclasses.dataclass
class ShortTask(ToyTask):
    """Shorter chains are better; there is no Y."""

    name: str = "short"
    tools: tuple[str, ...] = ()
    allowed_characters: str | None = " abc"

    def example(self, question: str, answer: str | None = None) -> Example:
        return Example(f"{question}?", None, f" {question}", None, question)

    def log_reward(self, example: Example, text: str) -> float:
        return -4.0 * len(text) if text else -math.inf


@pytest.mark.parametrize("method", ["gflownet", "ppo", "grpo", "forward-kl", "rejection", "em"])
def test_every_method_learns_from_it(tiny_model: Callable[[str], Path], method: str) -> None:
    lm = language_model(tiny_model("llama"), perturb=False)
    policy = PolicyGradientConfig(kl=0.0)
    e_step = dataclasses.replace(CONFIG.e_step, steps=12, samples=16, replay_share=0.0)
    rollout = dataclasses.replace(CONFIG.rollout, granularity="token")
    changes: dict[str, Any] = {"rollout": rollout, "e_step": e_step, "policy_gradient": policy, "rounds": 1}
    config = dataclasses.replace(with_method(CONFIG, method), **changes, m_step=CONFIG.m_step)
    loop = make(lm, dataclasses.replace(config, q_sees="question"), ShortTask())
    infos = [(phase.name, info) for phase, info in loop.run()]
    if method == "rejection":  # which has no sampler to train
        losses = [info["loss"] for name, info in infos if name == "m_step"]
        assert losses[-1] < losses[0]
    else:
        rewards = [info["log_reward"] for name, info in infos if name in ("e_step", "policy") and "log_reward" in info]
        assert statistics.median(rewards[-4:]) > statistics.median(rewards[:4]) + 1


def test_no_weights_where_the_reward_is_no_probability(tiny_model: Callable[[str], Path]) -> None:
    rollout = dataclasses.replace(CONFIG.rollout, granularity="token")
    config = dataclasses.replace(CONFIG, rollout=rollout, m_step=dataclasses.replace(CONFIG.m_step, weighted=True))
    with pytest.raises(UsageError, match=r"--m-step\.weighted"):
        EM.check(config, ShortTask(), ShortTask().load(DataRequest()))
    prior = dataclasses.replace(CONFIG, e_step=dataclasses.replace(CONFIG.e_step, prior="sampler"))
    with pytest.raises(UsageError, match=r"--e-step\.prior: .* a reward of its own"):
        EM.check(prior, ShortTask(), ShortTask().load(DataRequest()))


def test_a_text_that_is_spelled_otherwise_is_not_right(tiny_model: Callable[[str], Path]) -> None:
    """It is worth nothing, so nothing may be learned from it by those that keep what is right."""
    lm = language_model(tiny_model("multi_digit"), perturb=False)
    rollout = dataclasses.replace(CONFIG.rollout, granularity="token")
    loop = make(lm, dataclasses.replace(CONFIG, rollout=rollout), ShortTask())
    rationales = enumerate_rationales(dataclasses.replace(loop.rules, max_tokens=2))
    rewards = own_log_rewards(ShortTask(), loop.questions[0], rationales, loop.rules.codec)
    worth = [bool(row[len(rationale)] > -math.inf) for rationale, row in zip(rationales, rewards, strict=True)]
    assert [loop.is_correct(loop.questions[0], rationale) for rationale in rationales] == worth
    assert any(worth) and not all(worth)
