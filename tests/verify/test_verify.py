"""The exact reference against sums by hand and against the engine; q against the exact posterior."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from latent_cot.cli import main
from latent_cot.config.schema import EStepConfig
from latent_cot.objectives.balance import temper
from latent_cot.rationales.scoring import Group, score
from latent_cot.verify import exact, run
from latent_cot.verify.faults import FAULTS, injected
from latent_cot.verify.run import train
from latent_cot.verify.staleness import LaggingSampler
from latent_cot.verify.worlds import WORLDS, Settings, World, build
from tests.worlds import prefix_log_rewards


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _last_logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits
    return logits[0, -1].double()


def _walk(world: World, model: PreTrainedModel, prompt: list[int], tokens: list[int]) -> tuple[float, float]:
    """log-probability of some letters from `plain`, and of the stop behind them, one token at a time."""
    total = 0.0
    for i, token in enumerate([*tokens, world.rules.codec.stop_id]):
        log_probs = _last_logits(model, [*prompt, *tokens[:i]]).log_softmax(0)
        if i == len(tokens):
            return total, float(log_probs[token])
        total += float(log_probs[token])
    raise AssertionError


@pytest.mark.parametrize("name", WORLDS)
def test_list_of_rationales_is_complete(name: str) -> None:
    """q sums to one over it, without being normalised."""
    world = build(WORLDS[name])
    rationales = exact.enumerate_rationales(world.rules)
    assert len(set(rationales)) == len(rationales) <= 20_000
    for query in world.queries:
        log_q = exact.log_probs(world.lm.merged("q"), query.policy_prompt, rationales, world.rules.codec)
        assert float(log_q.exp().sum()) == pytest.approx(1, abs=1e-5)


def test_number_of_rationales_by_hand() -> None:
    sizes = {name: len(exact.enumerate_rationales(build(spec).rules)) for name, spec in WORLDS.items()}
    assert sizes["plain"] == 1 + 7 + 7**2 + 7**3
    assert sizes["constrained"] == sum(3**n for n in range(6))
    # Chains of five letters are cut; shorter ones, the empty one aside, end with the delimiter.
    assert sizes["steps"] == 1 + sum(3 ** (n - 1) for n in range(1, 5)) + 3**5
    assert sizes["tool"] == sum(3**n for n in range(5))


def test_tool_world_has_every_kind_of_call() -> None:
    rationales = exact.enumerate_rationales(build(WORLDS["tool"]).rules)
    calls = [call for rationale in rationales for call in rationale.calls]
    assert {call.n_tokens for call in calls} == {0, 1, 2, 3}
    assert any(call.error for call in calls) and any(call.result == "" for call in calls)


@torch.no_grad()
def test_scores_by_hand() -> None:
    world = build(WORLDS["plain"])
    codec, query = world.rules.codec, world.queries[0]
    rationales = exact.enumerate_rationales(world.rules)
    p, q = world.lm.merged("p"), world.lm.merged("q")
    prompt = list(query.model_prompt)
    log_q = exact.log_probs(q, prompt, rationales, codec)
    log_joint = exact.log_probs(p, prompt, rationales, codec, query.answer)
    for tokens in ([], [3], [2, 5], [1, 1, 4]):
        k = next(k for k, r in enumerate(rationales) if list(r.tokens) == tokens)
        log_z, log_stop = _walk(world, q, prompt, tokens)
        # A full chain has no choice: it must stop, and its last token was chosen among all others.
        assert float(log_q[k]) == pytest.approx(log_z + (0.0 if len(tokens) == 3 else log_stop), abs=1e-4)
        log_z, log_stop = _walk(world, p, prompt, tokens)
        log_y = 0.0
        for i, token in enumerate(query.answer):
            before = [*prompt, *tokens, *query.answer[:i]]
            log_y += float(_last_logits(p, before).log_softmax(0)[token])
        ended = log_z + (0.0 if len(tokens) == 3 else log_stop)
        assert float(log_joint[k]) == pytest.approx(ended + log_y, abs=1e-4)


@pytest.mark.parametrize("name", WORLDS)
def test_agrees_with_the_engine(name: str) -> None:
    """`score` and `prefix_log_rewards` give the same log q and log p(Z Y | X), for every rationale."""
    world = build(WORLDS[name])
    codec = world.rules.codec
    rationales = exact.enumerate_rationales(world.rules)
    ends = torch.tensor([len(rationale) for rationale in rationales])[:, None]
    with torch.no_grad():  # so that q differs from p
        for weight in world.lm.parameters("q").values():
            weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)))
    world.lm.copy_adapter("q", "q")  # its merged copy is out of date
    for query in world.queries:
        with torch.no_grad():
            scores = score(world.lm, world.lm.merged("q"), [Group(query.policy_prompt, rationales)], codec)
        log_q = scores.log_pf.sum(1) + scores.log_pterm.gather(1, ends)[:, 0]
        expected = exact.log_probs(world.lm.merged("q"), query.policy_prompt, rationales, codec)
        torch.testing.assert_close(log_q.double(), expected, atol=1e-4, rtol=0)

        group = Group(query.model_prompt, rationales, query.answer)
        (rewards,) = prefix_log_rewards(world.lm, [group], codec)
        joint = exact.log_probs(world.lm.merged("p"), query.model_prompt, rationales, codec, query.answer)
        torch.testing.assert_close(rewards.gather(1, ends)[:, 0].double(), joint, atol=1e-4, rtol=0)


def test_distance_by_hand() -> None:
    log_joint = torch.tensor([0.3, 0.1]).double().log()
    assert exact.log_partition(log_joint) == pytest.approx(math.log(0.4))
    found = exact.distance(torch.tensor([0.5, 0.5]).double().log(), log_joint)
    assert found.kl == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert found.total_variation == pytest.approx(0.25) and found.mass == pytest.approx(1)
    itself = exact.distance(log_joint - exact.log_partition(log_joint), log_joint)
    assert itself.kl == pytest.approx(0, abs=1e-12) and itself.total_variation == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", WORLDS)
def test_worlds_are_no_easy_ones(name: str) -> None:
    """The posterior is far from where q starts, and from uniform; no rationale has nearly all of it."""
    world = build(WORLDS[name])
    rationales = exact.enumerate_rationales(world.rules)
    for query in world.queries:
        joint = exact.log_probs(world.lm.merged("p"), query.model_prompt, rationales, world.rules.codec, query.answer)
        log_p = joint - exact.log_partition(joint)
        start = exact.log_probs(world.lm.merged("q"), query.policy_prompt, rationales, world.rules.codec)
        entropy = -float((log_p.exp() * log_p).sum())
        assert exact.distance(start, joint).kl > 0.5
        least = 2.0 if WORLDS[name].floor is None else 1.0  # where rewards are far apart, few rationales share the mass
        assert least < entropy < math.log(len(rationales)) - 0.5
        assert float(log_p.max().exp()) < 0.6


def test_fault_ends_with_its_block() -> None:
    for fault in FAULTS.values():
        before = getattr(fault.module, fault.name)
        with injected(fault):
            assert getattr(fault.module, fault.name) is not before
        assert getattr(fault.module, fault.name) is before


def test_shifted_reward_is_that_of_the_state_before() -> None:
    log_reward = torch.tensor([[-1.0, -torch.inf, -3.0, -4.0, 0.0]])
    states = torch.tensor([[True, False, True, True, False]])
    shifted = FAULTS["shifted-reward"].faulty(temper)(log_reward, states, torch.tensor([0]))
    assert shifted.tolist() == [[-1.0, 0.0, -1.0, -3.0, 0.0]]


def test_quick_run_passes(capsys: pytest.CaptureFixture[str]) -> None:
    """The whole of the engine, sampler to optimiser, learns the posterior where it can be listed."""
    assert main(["verify", "--quick", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["passed"] is True
    cases = {(r["world"], r["objective"]) for r in output["results"]}
    assert cases == {(w, o) for w in run.QUICK_WORLDS for o in run.QUICK_OBJECTIVES}
    for result in output["results"]:
        assert result["max"]["kl"] <= 0.01 < result["max"]["kl_before"]
        assert result["max"]["total_variation"] <= 0.03 and result["max"]["log_z_error"] <= 0.02


def test_ems_own_e_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both losses, the floor, the Huber cap, bounded gradients, hotter samples and a tool, all at once."""
    monkeypatch.setitem(WORLDS, "floor", replace(WORLDS["floor"], steps=200))
    result = run.run_case(run.Case("floor", run.BY_EM), Settings())
    assert result.case.steps == 100 and result.case.required and result.case.floor == EStepConfig().reward_floor
    assert result.worst("kl") < 0.03 < 3 < result.worst("kl_before")


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_ems_own_e_step_learns_every_world(world: str) -> None:
    assert run.run_case(run.Case(world, run.BY_EM), Settings()).learned


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_noticed(name: str) -> None:
    result = run.run_case(run.Case(FAULTS[name].world, FAULTS[name].objective, name), Settings())
    assert result.ok and not result.learned
    assert result.worst("kl") > 5 * run.KL_LIMIT


def test_untrained_sampler_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits are not so wide that anything passes."""
    monkeypatch.setitem(WORLDS, "xy", replace(WORLDS["xy"], steps=2))
    case = run.Case("xy", "subtb")
    result = run.run_case(case, replace(Settings(), learning_rate=0.0, samples=2))
    assert not result.learned and not result.ok
    assert result.worst("kl") == pytest.approx(result.worst("kl_before"), abs=1e-6)
    assert replace(result, case=replace(case, fault="no-s0")).ok


@pytest.mark.parametrize(("objective", "status"), [("subtb", 1), ("tb", 0)])  # tb need not learn it
def test_its_status_is_its_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], objective: str, status: int
) -> None:
    monkeypatch.setitem(WORLDS, "xy", replace(WORLDS["xy"], steps=2))
    assert main(["verify", "--world", "xy", "--objective", objective, "--json"]) == status
    out, err = capsys.readouterr()
    assert json.loads(out)["passed"] is (status == 0)
    assert ("FAILED" in err) is (status == 1)


def test_same_seed_same_sampler() -> None:
    weights = []
    for _ in range(2):
        world = build(WORLDS["tool"])
        train(world, "pooled-subtb", 3, replace(Settings(), samples=8))
        weights.append(torch.cat([w.flatten() for w in world.lm.parameters("q").values()]))
    assert torch.equal(*weights)


@torch.no_grad()
@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_the_sampler_is_some_steps_behind(staleness: int) -> None:
    """What samples is q of K steps ago, or of the start; afterwards q is what the optimiser has made of it."""
    lm = build(WORLDS["xy"]).lm
    prompt, weight = torch.tensor([[1, 2]]), next(iter(lm.parameters("q").values()))
    sampler = LaggingSampler(lm, staleness)
    logits = []
    for step in range(6):
        logits.append(lm.merged("q")(input_ids=prompt).logits.clone())
        with sampler.sampling():
            found = lm.merged("q")(input_ids=prompt).logits
        torch.testing.assert_close(found, logits[max(0, step - staleness)], rtol=0, atol=0)
        torch.testing.assert_close(lm.merged("q")(input_ids=prompt).logits, logits[-1], rtol=0, atol=0)
        weight.add_(0.1)  # an optimiser's step
        lm.copy_adapter("q", "q")  # its merged copy is out of date
    assert all(not torch.equal(one, logits[0]) for one in logits[1:])


def test_staleness_changes_what_is_learned_from() -> None:
    """The first step's sampler is q itself; from the second on it is behind."""
    weights = []
    for staleness, steps in [(0, 1), (8, 1), (0, 2), (8, 2)]:
        world = build(WORLDS["tool"])
        train(world, "pooled-subtb", steps, replace(Settings(), samples=8, warmup=0), staleness=staleness)
        weights.append(torch.cat([w.detach().flatten() for w in world.lm.parameters("q").values()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[2], weights[3])


def test_a_stale_sampler_is_slower_under_a_floor_only() -> None:
    for name, spec in WORLDS.items():
        slowdown = 2 if spec.floor else 1
        assert run.Case(name, "vargrad", staleness=8).steps == slowdown * run.Case(name, "vargrad").steps


@pytest.mark.slow
def test_a_stale_sampler_does_no_harm() -> None:
    """Balance asks of no trajectory where it comes from; what the buffer replays is older still."""
    assert run.run_case(run.Case("xy", "pooled-subtb", staleness=8), Settings()).learned


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--staleness", "-1"], "--staleness -1: give 0 or more steps"),
        (["--staleness", "8", "--objective", "em"], "leave --objective em out"),
        (["--task", "word_problems", "--staleness", "8"], "--staleness and --quick are of the worlds"),
        (["--world", "plan"], "--world plan: unknown. Did you mean 'plain'?"),
        (["--objective", "sub-tb"], "--objective sub-tb: unknown. Did you mean 'subtb'?"),
    ],
)
def test_unknown_names(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *arguments]) == 2
    assert message in capsys.readouterr().err
