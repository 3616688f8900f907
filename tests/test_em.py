"""The loop: a run is the same when repeated, and when stopped and resumed anywhere."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from latent_cot.chain import ChainRules
from latent_cot.config import EMConfig, EStepConfig, EvaluationConfig, MStepConfig, RolloutConfig
from latent_cot.em import EM, ROUND, _draw_distinct, _slices
from latent_cot.lm import ADAPTERS, LanguageModel
from latent_cot.optimizer_state import load_optimizer, save_optimizer
from latent_cot.state import State
from latent_cot.text import TextCodec
from latent_cot.types import DataRequest, Example, Rationale
from tests.worlds import CountTool, PlainTask, ToyTask, language_model

FIT = MStepConfig(steps=3, batch_size=2, samples=2, keep="all", learning_rate=1e-2, warmup=1)
CONFIG = EMConfig(
    rounds=2,
    rollout=RolloutConfig(granularity="step", max_tokens=6, batch_size=6),
    e_step=EStepConfig(
        steps=4,
        questions=2,
        samples=3,
        on_policy=0.4,
        tempered=0.3,
        replay=0.3,
        learning_rate=1e-2,
        warmup=1,
        reward_horizon=3,
    ),
    init_step=FIT,
    m_step=FIT,
    evaluation=EvaluationConfig(
        max_tokens=8, batch_size=4, votes=2, temperature=1.0, diagnostics=2, diagnostic_samples=4
    ),
)
VARIANTS = {
    "q sees X": CONFIG,
    "q sees X and Y": dataclasses.replace(
        CONFIG, condition="xy", e_step=dataclasses.replace(CONFIG.e_step, objective="subtb", huber=None)
    ),
    "prompt": dataclasses.replace(CONFIG, init="prompt", shots=2, rounds=1),
    "log Z is learned": dataclasses.replace(
        CONFIG, rounds=1, e_step=dataclasses.replace(CONFIG.e_step, objective="tb")
    ),
}


@pytest.fixture(scope="module")
def lm(tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model("llama"), perturb=False)


def make(lm: LanguageModel, config: EMConfig, task: ToyTask | None = None, **arguments: Any) -> EM:
    task = task or ToyTask()
    codec = TextCodec(lm.tokenizer, allowed_characters=task.allowed_characters)
    tools = [CountTool()] if task.tools else []
    rules = ChainRules(codec, tools, config.rollout.granularity, max_tokens=config.rollout.max_tokens)
    test_rules = dataclasses.replace(rules, max_tokens=config.evaluation.max_tokens)
    data, tests = task.load(DataRequest()), {"test": task.split("test")}
    return EM(config, lm, task, data, tests, rules, test_rules, **arguments)


def outcome(em: EM) -> dict[str, Any]:
    """Everything a run leaves, exactly."""
    return {
        "state": json.loads(json.dumps(em.state.to_json())),
        "buffer": json.loads(json.dumps(em.buffer.state_dict())),
        "log_z": em.log_z.tolist(),
        **{adapter: [w.tolist() for w in em.lm.parameters(adapter).values()] for adapter in ADAPTERS},
    }


def save(em: EM, folder: Path) -> str:
    """As the session does it."""
    for adapter in ADAPTERS:
        em.lm.save_adapter(adapter, folder / adapter)
    if em.optimiser is not None:
        save_optimizer(em.optimiser.adam, folder)
    return json.dumps({"em": em.state.to_json(), "buffer": em.buffer.state_dict(), "log_z": em.log_z.tolist()})


def resume(lm: LanguageModel, config: EMConfig, folder: Path, saved: str) -> EM:
    """In a process that knows nothing: its adapters hold something else."""
    record = json.loads(saved)
    for adapter in ADAPTERS:
        lm.reset_adapter(adapter, seed=99)
        lm.dense(adapter)
    em = make(lm, config, state=State.from_json(record["em"]), restore=lambda adam: load_optimizer(adam, folder))
    em.buffer.load_state_dict(record["buffer"])
    em.log_z.data.copy_(torch.tensor(record["log_z"]))
    for adapter in ADAPTERS:
        lm.load_adapter(adapter, folder / adapter)
    return em


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_stopped_run_is_the_run_that_was_never_stopped(lm: LanguageModel, config: EMConfig, tmp_path: Path) -> None:
    em = make(lm, config)
    phases = [(phase.round, phase.name) for phase, _ in em.run()]
    expected = outcome(em)
    assert len(expected["buffer"]) > 0
    assert sum(map(len, expected["state"]["posterior"]["1"].values())) == 4

    again = make(lm, config)
    assert [(phase.round, phase.name) for phase, _ in again.run()] == phases
    assert outcome(again) == expected, "the same seed gave another run"

    for k in (1, 2, 5):  # 1: stopped after each unit, in each phase
        em, done, parts = make(lm, config), False, 0
        while not done:
            done = True
            for unit, _ in enumerate(em.run(), 1):
                if unit == k:
                    done = False
                    break
            if not done:
                folder = tmp_path / f"{k}-{parts}"
                parts += 1
                em = resume(lm, config, folder, save(em, folder))
        assert parts == len(phases) // k
        assert outcome(em) == expected, f"stopped after each {k} units"


def test_another_seed_gives_another_run(lm: LanguageModel) -> None:
    results = []
    for seed in (0, 1):
        em = make(lm, dataclasses.replace(CONFIG, rounds=1, seed=seed))
        list(em.run())
        results.append(outcome(em))
    assert results[0]["p"] != results[1]["p"]
    assert results[0]["state"]["drawn"] != results[1]["state"]["drawn"]


def test_the_phases_and_their_units(lm: LanguageModel) -> None:
    em = make(lm, CONFIG)
    assert [(phase.round, phase.name) for phase in em.phases] == [
        (0, "init"),
        (0, "evaluate"),
        *((number, name) for number in (1, 2) for name in ROUND),
    ]
    counts = Counter((phase.round, phase.name) for phase, _ in em.run())
    assert counts == {(phase.round, phase.name): em.units(phase) for phase in em.phases}
    # 3 test questions, 4 // 2 a batch: two units for each reasoner; before the first round only p is tested
    assert em.units(em.phases[1]) == 2
    assert em.units(em.phases[-1]) == 4
    assert set(em.state.results()["accuracy"]["0"]) == {"p"}
    assert set(em.state.results()["accuracy"]["2"]) == {"p", "q"}
    assert all(figures["test"]["n"] == 3 for figures in em.state.results()["accuracy"]["2"].values())
    assert em.state.results()["posterior"]["2"]["after"]["n"] == 2


def test_each_phase_trains_what_it_should(lm: LanguageModel) -> None:
    """init and M-step: p only; E-step: q only, from q = p; drawing and testing: neither."""

    def weights() -> dict[str, list[list[float]]]:
        return {a: [w.tolist() for w in lm.parameters(a).values()] for a in ADAPTERS}

    em = make(lm, dataclasses.replace(CONFIG, rounds=1))
    before = weights()
    changed: dict[str, set[str]] = {}
    for phase, _ in em.run():
        after = weights()
        changed.setdefault(phase.name, set()).update(a for a in ADAPTERS if after[a] != before[a])
        before = after
        if phase.name == "prepare":
            assert after["p"] == after["q"]
    assert changed == {
        "init": {"p"},
        "evaluate": set(),
        "prepare": {"q"},
        "e_step": {"q"},
        "diagnose": set(),
        "draw": set(),
        "m_step": {"p"},
    }


def test_what_q_and_p_read(lm: LanguageModel) -> None:
    """With condition xy the answer is in q's prompt, never in p's."""
    task = ToyTask()
    example = task.example("ab")
    prompts: dict[Literal["x", "xy"], str] = {"x": "ab?", "xy": "ab?. It is 3."}
    for condition, seen in prompts.items():
        em = make(lm, dataclasses.replace(CONFIG, condition=condition))
        query = em.query(example)
        codec = em.rules.codec
        assert codec.decode(query.policy_prompt) == seen
        assert codec.decode(query.model_prompt) == "ab?"
        assert codec.decode(query.answer) == ". It is 3."
        assert em.reasoners == (("q", "p") if condition == "x" else ("p",))


def test_demonstrations_in_the_prompt_until_p_is_trained(lm: LanguageModel) -> None:
    """With the tools' results in them."""
    em = make(lm, dataclasses.replace(CONFIG, init="prompt", shots=2))
    shown = "a? a= 2. It is 2.\nab? ab= 3. It is 3.\n"
    assert em.model_prefix == shown
    codec = em.rules.codec
    query = em.query(ToyTask().example("c"))
    assert codec.decode(query.model_prompt) == shown + "c?"
    assert codec.decode(query.policy_prompt) == "c?"
    for _ in em.run():
        trained = any(phase.name == "m_step" for phase in em.phases[: em.state.phase])
        assert em.model_prefix == ("" if trained else shown)


@pytest.mark.parametrize("condition", ["x", "xy"])
def test_a_task_without_tools_and_demonstrations(lm: LanguageModel, condition: Any) -> None:
    """Its answers are candidates, its chains may stop anywhere, and p starts from the base model."""
    config = dataclasses.replace(
        CONFIG,
        condition=condition,
        rounds=1,
        init="base",
        rollout=RolloutConfig(granularity="token", max_tokens=4, batch_size=6),
    )
    em = make(lm, config, PlainTask())
    infos = [(phase.name, info) for phase, info in em.run()]
    assert [name for name, _ in infos].count("m_step") == 3
    assert "init" not in dict(infos)
    assert "prepare" not in dict(infos), "there are no validation questions to look at"
    assert all(torch.isfinite(torch.tensor(info["loss"])) for name, info in infos if "loss" in info)
    assert em.state.results()["accuracy"]["1"]["p"]["test"]["n"] == 3
    assert not any(rationale.calls for _, rationale in em.state.drawn)


def test_only_right_rationales_are_kept(lm: LanguageModel) -> None:
    keep = dataclasses.replace(FIT, keep="correct")
    em = make(lm, dataclasses.replace(CONFIG, rounds=1, m_step=keep))
    kept = drawn = 0
    for phase, info in em.run():
        if phase.name == "draw":
            kept, drawn = kept + info["kept"], drawn + info["drawn"]
    assert drawn == 12
    assert kept == len(em.state.drawn)
    task = ToyTask()
    for question, rationale in em.state.drawn:
        assert task.grade(em.questions[question], task.answer(rationale))


def test_a_round_without_a_right_rationale_leaves_p_alone(lm: LanguageModel) -> None:
    class Impossible(ToyTask):
        def grade(self, example: Example, answer: str | None) -> bool:
            return False

    config = dataclasses.replace(CONFIG, rounds=1, m_step=dataclasses.replace(FIT, keep="correct"))
    em = make(lm, config, Impossible())
    notes, units, before = [], 0, None
    for phase, info in em.run():
        if phase.name == "m_step":
            notes.append(info)
            assert before == [w.tolist() for w in lm.parameters("p").values()]
            # Stopped here and resumed, there is nothing left to do in this phase.
            rest = make(lm, config, Impossible(), state=State.from_json(em.state.to_json()))
            units = sum(phase.name == "m_step" for phase, _ in rest.run())
        before = [w.tolist() for w in lm.parameters("p").values()]
    assert em.state.drawn == []
    assert [set(info) for info in notes] == [{"note"}]
    assert units == 0, "the note came again"


def test_the_buffer_is_that_of_the_present_p(lm: LanguageModel) -> None:
    """Seeded with the demonstrations, and emptied when p has changed."""
    em = make(lm, dataclasses.replace(CONFIG, e_step=dataclasses.replace(CONFIG.e_step, buffer_tolerance=0.0)))
    seen: list[dict[str, float]] = []
    for phase, _ in em.run():
        if phase.name == "e_step" and em.state.unit == 1:
            seen.append({item.rationale.text: item.priority for item in em.buffer.stored("a")})
            assert em.demonstrations[0].text in seen[-1]
    assert len(seen) == 2
    assert all(seen[0][text] != seen[1][text] for text in seen[0].keys() & seen[1].keys())


def test_the_reward_temperature(lm: LanguageModel) -> None:
    c = dataclasses.replace(CONFIG.e_step, reward_temperature=1.0, final_reward_temperature=0.5, reward_horizon=10)
    em = make(lm, dataclasses.replace(CONFIG, e_step=c))
    assert [em.reward_temperature(step) for step in (0, 5, 10, 50)] == pytest.approx([1.0, 0.75, 0.5, 0.5])


def test_a_state_survives_json() -> None:
    rationale = Rationale((1, 2), (True, False), (True, False, True), "ab", cut=True)
    state = State(
        phase=3,
        unit=2,
        drawn=[(4, rationale)],
        tally={"0": {"p": {"test": [1, 2]}}},
        posterior={"1": {"before": [{"ess": 0.5}]}},
    )
    assert State.from_json(json.loads(json.dumps(state.to_json()))) == state


def test_questions_are_drawn_without_repetition_and_by_weight() -> None:
    rng = random.Random(0)
    weights = [1.0, 3.0, 0.0, 1.0]
    first: Counter[int] = Counter()
    for _ in range(4000):
        drawn = _draw_distinct(weights, 2, rng)
        assert len(set(drawn)) == 2
        assert 2 not in drawn
        first[drawn[0]] += 1
    for i, weight in enumerate(weights):
        assert first[i] / 4000 == pytest.approx(weight / 5, abs=0.03)
    assert sorted(_draw_distinct(weights, 10, rng)) == [0, 1, 3]


def test_slices_cover_everything_once() -> None:
    for n in range(8):
        for size in range(1, 5):
            assert [i for part in _slices(n, size) for i in part] == list(range(n))
            assert all(0 < len(part) <= size for part in _slices(n, size))
