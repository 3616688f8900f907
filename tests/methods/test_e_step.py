"""Collecting and updating: the whole E-step's loss and gradient against the oracles."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from latent_cot.config.schema import EStepConfig, RunConfig
from latent_cot.methods import e_step
from latent_cot.methods.e_step import Behaviour, _temperatures, balance_step, collect, offer
from latent_cot.methods.exploration import draw_behaviour
from latent_cot.methods.state import Phase
from latent_cot.methods.trouble import PATIENCE, Watch
from latent_cot.model.architecture import Trees
from latent_cot.model.lm import LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.objectives import OBJECTIVES
from latent_cot.rationales.batch import Trajectories, describe
from latent_cot.rationales.buffer import ReplayBuffer
from latent_cot.rationales.chain import ChainRules, Granularity, check_rationale
from latent_cot.rationales.reward import Reward
from latent_cot.rationales.scoring import Group, Query
from latent_cot.types import Example, Rationale
from tests.oracles import scoring
from tests.oracles import subtb as oracle
from tests.worlds import FakeTool, language_model


@pytest.fixture(scope="module")
def lm(tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model("llama"))


@pytest.fixture(scope="module")
def rules(lm: LanguageModel) -> ChainRules:
    """Few characters, so that the tool is called in most chains."""
    return ChainRules(TextCodec(lm.tokenizer, allowed_characters="1,="), [FakeTool()], max_tokens=5)


def queries(n: int) -> list[Query]:
    rng = random.Random(0)
    return [
        Query(
            Example(f"x{i}", question=f"x{i}"),
            policy_prompt=[rng.randrange(90) for _ in range(rng.randint(1, 7))],
            model_prompt=[rng.randrange(90) for _ in range(rng.randint(1, 7))],
            answer=[rng.randrange(90) for _ in range(rng.randint(1, 4))],
        )
        for i in range(n)
    ]


def gather(
    lm: LanguageModel,
    rules: ChainRules,
    buffer: ReplayBuffer,
    *,
    replay: float = 0.0,
    n: int = 3,
    samples: int = 6,
    tool_tokens: bool = False,
    seed: int = 0,
    step: int = 0,
    ends_only: bool = False,
    temperature: float = 1.5,
) -> list[Trajectories]:
    return collect(
        lm,
        queries(n),
        [Behaviour(temperature=temperature, replay_share=replay)] * n,
        rules,
        buffer,
        Reward(lm, rules.codec, tool_tokens=tool_tokens, max_tokens=500),
        samples=samples,
        generator=torch.Generator().manual_seed(seed),
        step=step,
        ends_only=ends_only,
    )


class Recorder:
    """In the place of an optimiser: keeps the gradient and changes nothing."""

    def __init__(self, lm: LanguageModel) -> None:
        self.weights = [weight for _, weight in sorted(lm.parameters("q").items())]
        self.gradient = torch.empty(0)

    def step(self, number: int) -> float:
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights]
        self.gradient = torch.cat([g.flatten() for g in gradients])
        for weight in self.weights:
            weight.grad = None
        return float(self.gradient.norm())


def store(buffer: ReplayBuffer, batches: Sequence[Trajectories]) -> None:
    """What was sampled, and no prefix of it."""
    for batch in batches:
        for rationale, row in zip(batch.rationales, batch.log_reward.tolist(), strict=True):
            buffer.add(batch.query.example.key, rationale, row)


def measure(
    lm: LanguageModel, batches: Sequence[Trajectories], rules: ChainRules, **options: Any
) -> tuple[Any, torch.Tensor]:
    recorder = Recorder(lm)
    settings: dict[str, Any] = {
        "objective": "pooled-subtb",
        "reward_temperature": 1.0,
        "reward_floor": None,
        "huber_delta": None,
        "max_tokens": 500,
    }
    info = balance_step(lm, batches, rules, recorder, 0, **{**settings, **options})  # type: ignore[arg-type]
    return info, recorder.gradient


@pytest.mark.parametrize("objective", sorted(name for name, one in OBJECTIVES.items() if one.complete_only))
def test_the_rewards_of_ends_are_enough_for_some(lm: LanguageModel, rules: ChainRules, objective: str) -> None:
    """The loss and the gradient are the same, also of what is replayed; the others need those of the prefixes."""
    found = []
    for ends_only in (False, True):
        buffer = ReplayBuffer(tolerance=0)
        store(buffer, gather(lm, rules, ReplayBuffer(), seed=1, ends_only=ends_only))
        batches = gather(lm, rules, buffer, replay=0.5, ends_only=ends_only)
        log_z = [torch.tensor(0.5)] * len(batches) if OBJECTIVES[objective].log_z_rate else None
        found.append(measure(lm, batches, rules, objective=objective, reward_floor=8.0, log_z=log_z))
        without = measure(lm, batches, rules)[0].loss
        assert (without > 1e4) == ends_only
    (every, gradient), (ends, gradient_of_ends) = found
    assert ends.loss == pytest.approx(every.loss, rel=1e-5)
    assert ends.variance == pytest.approx(every.variance, rel=1e-5)
    torch.testing.assert_close(gradient_of_ends, gradient)


def test_collected_rewards_and_counts(lm: LanguageModel, rules: ChainRules) -> None:
    buffer = ReplayBuffer(tolerance=0)
    batches = gather(lm, rules, buffer, tool_tokens=True)
    codec = rules.codec
    calls = 0
    for batch, query in zip(batches, queries(3), strict=True):
        assert batch.query == query
        assert sum(batch.counts) == 6
        assert batch.sampled == batch.counts
        assert len(set(batch.rationales)) == len(batch.rationales)
        for rationale, row in zip(batch.rationales, batch.log_reward, strict=True):
            calls += len(rationale.calls)
            with torch.no_grad():
                expected = scoring.log_reward(
                    lm.merged("p"),
                    query.model_prompt,
                    rationale,
                    query.answer,
                    codec.actions.tolist(),
                    codec.stop_id,
                    tool_tokens=True,
                )
            size = len(rationale) + 1
            torch.testing.assert_close(row[:size].double(), expected, atol=1e-4, rtol=1e-6)
            assert bool((row[size:] == -math.inf).all())
        stored = {item.rationale: item.log_reward for item in buffer.stored(query.example.key)}
        for rationale, row in zip(batch.rationales, batch.log_reward, strict=True):
            assert stored[rationale] == tuple(row[: len(rationale) + 1].tolist())
    assert calls > 3


def flow_table(
    batch: Trajectories, model: Any, rules: ChainRules, floor: float | None, *, ends_only: bool
) -> tuple[torch.Tensor, ...]:
    """a (B, S) by the oracles, at reward temperature 0.7, with the states and those that are below the floor: prefixes
    far below the best of the question, of its complete rationales only if these alone count."""
    codec = rules.codec
    size = max(map(len, batch.rationales)) + 1
    best = max(
        float(row[i])
        for rationale, row in zip(batch.rationales, batch.log_reward, strict=True)
        for i in range(len(rationale) * ends_only, len(rationale) + 1)
    )
    least = -math.inf if floor is None else best - floor
    rows = []
    states = torch.zeros(len(batch.rationales), size, dtype=torch.bool)
    censored = torch.zeros_like(states)
    for b, (rationale, row) in enumerate(zip(batch.rationales, batch.log_reward, strict=True)):
        n = len(rationale) + 1
        log_pf, log_pterm = scoring.log_policy(
            model, batch.query.policy_prompt, rationale, codec.actions.tolist(), codec.stop_id
        )
        states[b, :n] = torch.tensor(rationale.states)
        censored[b, : n - 1] = states[b, : n - 1] & (row[: n - 1] < least)
        raised = torch.cat([row[: n - 1].double().clamp(min=least), row[n - 1 : n].double()]) / 0.7
        flow = iter(oracle.flow(raised, log_pf, log_pterm, rationale.states))
        zero = torch.zeros((), dtype=torch.float64)
        rows.append(torch.stack([next(flow) if state else zero for state in states[b]]))
    return torch.stack(rows), states, censored


def modes() -> Iterator[tuple[str, float | None, float | None, Granularity, Trees]]:
    """Of a chain that may stop anywhere, or after steps only, as by default: all. Of other trees, some."""
    squared_and_huber = [(None, None), (None, 3.0), (6.0, None), (6.0, 3.0)]
    for objective, (floor, huber_delta) in itertools.product(sorted(OBJECTIVES), squared_and_huber):
        yield objective, floor, huber_delta, "token", "flat"
        yield objective, floor, huber_delta, "step", "flat"
    for trees in ("masked", "paths"):
        yield "pooled-subtb", 6.0, 3.0, "step", trees
        yield "subtb", None, None, "token", trees


@pytest.mark.parametrize(("objective", "floor", "huber_delta", "granularity", "trees"), list(modes()))
def test_loss_and_gradient_are_the_oracles(
    tiny_model: Callable[[str], Path],
    objective: str,
    floor: float | None,
    huber_delta: float | None,
    granularity: Granularity,
    trees: Trees,
) -> None:
    """Through the model, in every mode at once, with weights and a tool: what the tool writes moves no gradient, and
    what is below the floor moves that of the rest of its question."""
    lm = language_model(tiny_model("llama"), trees=trees)
    codec = TextCodec(lm.tokenizer, allowed_characters="1,=")
    rules = ChainRules(codec, [FakeTool()], granularity, max_tokens=4 if granularity == "token" else 8)
    batches = gather(lm, rules, ReplayBuffer(), n=2, samples=6)
    for batch, weights in zip(batches, ([3, 1, 2, 1, 1, 2], [1, 4, 1, 1, 2, 1]), strict=True):
        batch.counts[:] = weights[: len(batch.rationales)]  # type: ignore[index]
    assert any(not all(r.policy_mask) for batch in batches for r in batch.rationales)
    log_z = [torch.tensor(-9.0), torch.tensor(-4.0)] if OBJECTIVES[objective].log_z_rate else None
    options: dict[str, Any] = {
        "objective": objective,
        "reward_floor": floor,
        "huber_delta": huber_delta,
        "log_z": log_z,
    }
    info, gradient = measure(lm, batches, rules, reward_temperature=0.7, max_tokens=30, **options)
    total, below = torch.zeros((), dtype=torch.float64), 0
    with lm.trainable("q") as model:
        for g, batch in enumerate(batches):
            a, states, censored = flow_table(batch, model, rules, floor, ends_only=OBJECTIVES[objective].complete_only)
            below += int(censored.sum())
            weight = torch.tensor(batch.counts, dtype=torch.float64)
            z = None if log_z is None else log_z[g].double()
            total = total + oracle.question_loss(objective, a, states, weight, censored, huber_delta, z) / len(batches)
        expected = torch.autograd.grad(total, [w for _, w in sorted(lm.parameters("q").items())])
    if not OBJECTIVES[objective].complete_only:
        assert (below > 0) == (floor is not None)
    elif granularity == "token" and floor is None:  # a chain that is cut within a step is worth nothing
        assert not below
    assert info.loss == pytest.approx(float(total.detach()), rel=1e-3)
    flat = torch.cat([g.flatten() for g in expected])
    assert float(flat.norm()) > 0.5
    torch.testing.assert_close(gradient, flat, rtol=1e-2, atol=1e-3 * float(flat.abs().max()))


@pytest.mark.parametrize("objective", sorted(name for name, one in OBJECTIVES.items() if not one.log_z_rate))
@pytest.mark.parametrize("huber_delta", [None, 3.0])
def test_a_replayed_step_is_the_fresh_one(
    lm: LanguageModel, rules: ChainRules, objective: str, huber_delta: float | None
) -> None:
    """The same loss and gradient: the tools' output, the masks and the rewards come back from the buffer."""
    buffer = ReplayBuffer(tolerance=0)
    fresh = gather(lm, rules, ReplayBuffer())
    store(buffer, fresh)
    state = buffer.state_dict()
    buffer.load_state_dict(state, rules.codec)
    once = [Trajectories(b.query, b.rationales, [1] * len(b.rationales), b.log_reward, b.sampled) for b in fresh]
    replayed = gather(lm, rules, buffer, replay=1.0, seed=1)
    assert any(r.calls for batch in replayed for r in batch.rationales)
    assert not any(any(batch.sampled) for batch in replayed)
    for a, b in zip(once, replayed, strict=True):
        assert set(a.rationales) == set(b.rationales)
    expected, expected_gradient = measure(lm, once, rules, objective=objective, huber_delta=huber_delta)
    found, gradient = measure(lm, replayed, rules, objective=objective, huber_delta=huber_delta)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.variance == pytest.approx(expected.variance, rel=1e-5)
    assert found.log_z == pytest.approx(expected.log_z, rel=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


def test_the_buffer_is_offered_the_best_prefix_too(lm: LanguageModel, rules: ChainRules) -> None:
    """Where it is worth more than the whole, with the reward that it has by itself; the empty one never."""
    buffer, prefixes = ReplayBuffer(tolerance=0), 0
    for batch in gather(lm, rules, buffer, samples=32):
        expected: dict[tuple[int, ...], float] = {}
        for rationale, row in zip(batch.rationales, batch.log_reward.tolist(), strict=True):
            states = [i for i, is_state in enumerate(rationale.states) if is_state and i]
            best = max(states, key=row.__getitem__, default=0)
            prefixes += best < len(rationale)
            expected |= {rationale.tokens[:i]: row[i] for i in (best, len(rationale))}
        stored = {item.rationale: item.priority for item in buffer.stored(batch.query.example.key)}
        assert {z.tokens: reward for z, reward in stored.items()} == expected
        group = Group(batch.query.model_prompt, list(stored), batch.query.answer)
        (table,) = Reward(lm, rules.codec, max_tokens=500).of_prefixes([batch.query.example], [group])
        for rationale, row in zip(stored, table.tolist(), strict=True):
            assert row[len(rationale)] == pytest.approx(stored[rationale], abs=1e-4)
            check_rationale(rationale, rules.codec)
    assert prefixes


def test_of_equal_prefixes_the_longest_is_offered(rules: ChainRules) -> None:
    """As where a right number is all that counts: 100 is found in `1001`, and not 1 and 10 alone."""
    tokens = tuple(rules.codec.encode("11,1"))
    rationale = Rationale(tokens, (True,) * 4, (True,) * 5, "11,1")
    row = torch.tensor([[-math.inf, 0.0, 0.0, 0.0, -math.inf]])
    buffer = ReplayBuffer(tolerance=0)
    (query,) = queries(1)
    offer(buffer, Trajectories(query, [rationale], [1], row, [1]), rules.codec)
    assert [item.rationale.text for item in buffer.stored(query.example.key)] == ["11,", "11,1"]


def test_what_keeps_nothing_is_offered_nothing(
    lm: LanguageModel, rules: ChainRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look for the best prefix of each rationale takes time: a run that replays nothing does not."""
    offered = []
    monkeypatch.setattr(e_step, "offer", lambda buffer, *_: offered.append(buffer))
    gather(lm, rules, ReplayBuffer(0))
    assert not offered
    gather(lm, rules, ReplayBuffer())
    assert len(offered) == 3


def test_replay_falls_back_on_the_policy_and_draws_by_reward(lm: LanguageModel, rules: ChainRules) -> None:
    buffer = ReplayBuffer(tolerance=0)
    assert all(sum(batch.sampled) == 6 for batch in gather(lm, rules, buffer, replay=1.0))
    replayed = gather(lm, rules, buffer, replay=1.0, samples=2)
    assert not any(any(batch.sampled) for batch in replayed)
    held = [len(buffer.stored(batch.query.example.key)) for batch in replayed]
    assert [sum(batch.counts) for batch in replayed] == [min(2, of_one) for of_one in held] and max(held) > 2


def test_sampled_and_replayed_ones_of_a_question_are_one_batch(lm: LanguageModel, rules: ChainRules) -> None:
    buffer = ReplayBuffer(tolerance=0)
    gather(lm, rules, buffer, seed=2)
    stored = {q.example.key: {s.rationale: s.log_reward for s in buffer.stored(q.example.key)} for q in queries(3)}
    both = 0
    for batch in gather(lm, rules, buffer, replay=1 / 3, samples=6, seed=1):
        known = stored[batch.query.example.key]
        assert sum(batch.counts) == 6
        assert sum(batch.sampled) == 4
        assert len(set(batch.rationales)) == len(batch.rationales)
        for rationale, count, sampled, row in zip(
            batch.rationales, batch.counts, batch.sampled, batch.log_reward, strict=True
        ):
            both += 0 < sampled < count
            size = len(rationale) + 1
            assert sampled or row[:size].tolist() == list(known[rationale])
            assert bool((row[size:] == -math.inf).all())
            if rationale in known:
                assert row[:size].tolist() == pytest.approx(known[rationale], abs=1e-4)
    assert both, "no rationale was both sampled and replayed: the merge of counts was not tested"


@pytest.mark.parametrize("objective", ["subtb", "pooled-subtb"])
def test_micro_batches_and_order_change_nothing(lm: LanguageModel, rules: ChainRules, objective: str) -> None:
    batches = gather(lm, rules, ReplayBuffer(), n=4)
    expected, expected_gradient = measure(lm, batches, rules, objective=objective)
    for order, max_tokens in (([0, 1, 2, 3], 1), ([3, 1, 0, 2], 200), ([2, 3, 1, 0], 10_000)):
        found, gradient = measure(lm, [batches[i] for i in order], rules, objective=objective, max_tokens=max_tokens)
        assert found.loss == pytest.approx(expected.loss, rel=1e-4)
        assert found.log_z == pytest.approx(expected.log_z, rel=1e-4)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-2, atol=1e-3 * float(gradient.abs().max()))


@pytest.mark.parametrize("floor", [None, 20.0])
def test_impossible_rationales_leave_the_gradient_finite(
    lm: LanguageModel, rules: ChainRules, floor: float | None
) -> None:
    batches = gather(lm, rules, ReplayBuffer())
    batches[0].log_reward.fill_(-math.inf)
    batches[1].log_reward[0] = -math.inf
    info, gradient = measure(lm, batches, rules, reward_floor=floor)
    assert math.isfinite(info.loss)
    assert bool(gradient.isfinite().all())


def test_only_q_is_trained(lm: LanguageModel, rules: ChainRules) -> None:
    batches = gather(lm, rules, ReplayBuffer())
    measure(lm, batches, rules)
    assert all(weight.grad is None for weight in lm.parameters("p").values())


def test_the_trajectory_balance_of_the_right_question(lm: LanguageModel, rules: ChainRules) -> None:
    """Micro-batches reorder the questions; each must meet its own log Z."""
    batches = gather(lm, rules, ReplayBuffer(), n=3)
    gradients = []
    for max_tokens in (1, 10_000):
        log_z = torch.tensor([-20.0, -30.0, -10.0], requires_grad=True)
        measure(lm, batches, rules, objective="tb", log_z=list(log_z), max_tokens=max_tokens)
        assert log_z.grad is not None
        gradients.append(log_z.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


def test_what_is_replayed_has_an_age(lm: LanguageModel, rules: ChainRules) -> None:
    """It survives a checkpoint, and is told where nothing was sampled too."""
    buffer = ReplayBuffer(tolerance=0)
    assert {"replayed", "age"}.isdisjoint(describe(gather(lm, rules, buffer, seed=2, step=2)))
    buffer.load_state_dict(buffer.state_dict(), rules.codec)
    figures = describe(gather(lm, rules, buffer, replay=1 / 3, seed=1, step=7))
    assert figures["replayed"] == pytest.approx(1 / 3) and figures["age"] == 5
    figures = describe(gather(lm, rules, buffer, replay=1.0, samples=2, step=9))
    assert figures.keys() == {"replayed", "age"} and figures["replayed"] == 1 and 2 <= figures["age"] <= 7


def test_figures_of_a_step(lm: LanguageModel, rules: ChainRules) -> None:
    batches = gather(lm, rules, ReplayBuffer())

    def right(example: Example, rationale: Rationale) -> bool:
        return len(rationale) > 3

    figures = describe(batches, right)
    listed = [r for batch in batches for r, n in zip(batch.rationales, batch.counts, strict=True) for _ in range(n)]
    assert len(listed) == 18
    assert figures["accuracy"] == pytest.approx(sum(len(r) > 3 for r in listed) / 18)
    assert figures["cut"] == pytest.approx(sum(r.truncated for r in listed) / 18)
    assert figures["distinct"] == pytest.approx(sum(len(batch.rationales) for batch in batches) / 18)
    failed = [any(call.result is None for call in r.calls) for r in listed]
    assert 0 < sum(failed) < 18
    assert figures["failed_calls"] == pytest.approx(sum(failed) / 18)
    assert describe([], right) == {}


def of_question(sampled: Sequence[int], replayed: int = 0) -> Trajectories:
    """Rationales of which each was sampled so often, and one more that was replayed."""
    rationales = [Rationale((i,), (True,), (True, True), str(i)) for i in range(len(sampled) + 1)]
    counts = [*sampled, replayed]
    query = Query(Example("x"), [1], [1], [])
    return Trajectories(query, rationales, counts, torch.zeros(len(counts), 2), [*sampled, 0], ages=(1,) * replayed)


@pytest.mark.parametrize(
    ("questions", "share"),
    [
        ([of_question([8]), of_question([8])], 1.0),
        ([of_question([4], 4), of_question([4], 4)], 1.0),  # --e-step.mix-replay
        ([of_question([4], 4), of_question([3, 1], 4)], 0.5),
        ([of_question([1], 7), of_question([4], 4)], 1.0),  # of the first nothing can be told
        ([of_question([0], 8), of_question([3, 1], 4)], 0.0),
    ],
)
def test_questions_with_one_chain(questions: list[Trajectories], share: float) -> None:
    """What was replayed is no chain that q writes now."""
    assert describe(questions)["single"] == share
    watch = Watch(RunConfig(), own_reward=False)
    for _ in range(PATIENCE):
        seen = watch.see(Phase(1, "e_step"), {**describe(questions, lambda example, z: False), "gradient_norm": 1.0})
    assert ("collapsed" in seen.get("warning", "")) == (share == 1)


def test_the_mean_reward_is_that_of_what_was_sampled_and_is_worth_anything() -> None:
    questions = [of_question([3, 1], 4), of_question([2])]
    for question, rewards in zip(questions, ([-1.0, -9.0, -50.0], [-math.inf, -50.0]), strict=True):
        question.log_reward[:, 1] = torch.tensor(rewards)
    assert describe(questions)["log_reward"] == -3.0
    assert "log_reward" not in describe(questions[1:])


def test_of_one_sample_nothing_can_be_told() -> None:
    assert "single" not in describe([of_question([1]), of_question([1])])


def test_on_policy_and_tempered_rationales_are_mixed_within_a_question() -> None:
    assert _temperatures(Behaviour(1.3, tempered_share=0.25), 8) == [1.3] * 2 + [1.0] * 6
    assert _temperatures(Behaviour(), 3) == [1.0] * 3


@pytest.mark.parametrize("mix", [False, True])
def test_what_is_replayed_is_a_share_of_each_question_or_of_the_questions(mix: bool) -> None:
    config, rng = EStepConfig(replay_share=0.25, mix_replay=mix), random.Random(0)
    shares = [draw_behaviour(config, rng).replay_share for _ in range(4000)]
    assert set(shares) == ({0.25} if mix else {0.0, 1.0})
    assert sum(shares) / 4000 == pytest.approx(0.25, abs=0.03)


def test_what_is_replayed_tells_nothing_of_the_present_sampler(lm: LanguageModel, rules: ChainRules) -> None:
    """Its log-probabilities are of an older q; a buffer that was saved and read again has none either."""
    buffer = ReplayBuffer(tolerance=0)
    fresh = gather(lm, rules, buffer, temperature=1.0)
    assert None not in {z.log_probs for t in fresh for z in t.rationales}
    again = gather(lm, rules, buffer, replay=1.0, seed=1)
    assert any(t.ages for t in again)
    assert {z.log_probs for t in again for z in t.rationales} == {None}
