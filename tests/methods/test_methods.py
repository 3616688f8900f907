"""What holds for every method: it can be stopped anywhere, it spends what was planned, it learns what it should."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from latent_cot import tasks
from latent_cot.config.methods import METHODS, PlannedBudget
from latent_cot.config.schema import DataConfig, EStepConfig, RunConfig, SFTConfig
from latent_cot.config.settings import check, load_config, other_settings, with_method
from latent_cot.methods.few_shot import FewShot
from latent_cot.methods.method import Method, method_class
from latent_cot.methods.rejection import PER_QUESTION
from latent_cot.model.lm import ADAPTERS, LanguageModel
from latent_cot.model.tree import TokenTree
from latent_cot.rationales.scoring import Group
from latent_cot.tasks.random_numbers import TASK
from latent_cot.types import JOINT, DataRequest, Example, Rationale, UsageError
from tests.loops import CONFIG, make, outcome, run_in_parts
from tests.measured import LengthTask
from tests.worlds import ToyTask, language_model

WORLD = dataclasses.replace(
    CONFIG,
    data=dataclasses.replace(CONFIG.data, demonstrations=2, unlabelled=4, validation=2),
    e_step=dataclasses.replace(CONFIG.e_step, replay_share=0.0),
    shots=2,
    sft=SFTConfig(check_every=2),
)
"""A configuration for any method, in the toy world: 2 demonstrations, 4 pairs, 2 validation questions."""

SFT = dataclasses.replace(WORLD.m_step, steps=5)


def config_of(method: str, **changes: Any) -> RunConfig:
    """Of the settings that a method has of its own without those that would take long."""
    own = with_method(WORLD, method)
    m_step = SFT if method == "sft" else WORLD.m_step
    config = dataclasses.replace(own, **{"e_step": WORLD.e_step, "m_step": m_step, **changes})
    check(config)
    return config


def policy(method: str, **changes: Any) -> dict[str, Any]:
    """The settings of a policy gradient, but for these."""
    return {"policy_gradient": dataclasses.replace(with_method(WORLD, method).policy_gradient, **changes)}


@pytest.fixture(scope="module")
def lm(tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model("llama"), perturb=False)


def weights(loop: Method) -> dict[str, list[list[float]]]:
    return {adapter: [w.tolist() for w in loop.lm.parameters(adapter).values()] for adapter in ADAPTERS}


FINE_TUNED = {name: policy(name, fine_tune=True) for name in ("ppo", "grpo")}
"""What makes a policy gradient go on as EM does."""

AGAIN = {"e_step": dataclasses.replace(WORLD.e_step, samples=12, updates=3, tempered_share=0.0, replay_share=0.0)}
"""What makes forward KL, and EM, learn again what they have seen, here where few chains are right."""


@pytest.mark.parametrize(
    ("method", "changes"),
    [  # EM: see test_em.py
        *((name, {}) for name in METHODS if name not in ("em", "em-x")),
        *FINE_TUNED.items(),
        ("forward-kl", AGAIN),
    ],
)
def test_a_stopped_run_is_the_run_that_was_never_stopped(
    lm: LanguageModel, method: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    config = config_of(method, **changes)
    loop = make(lm, config)
    units: dict[tuple[int, str], int] = {}
    for phase, _ in loop.run():
        units[phase.round, phase.name] = units.get((phase.round, phase.name), 0) + 1
    expected = outcome(loop)
    last = max(loop.state.results()["accuracy"], key=int)
    assert set(loop.state.results()["accuracy"][last]) == set(loop.reasoners)
    assert units == {(phase.round, phase.name): n for phase in loop.phases if (n := loop.units(phase))}
    assert outcome(run_in_parts(lm, config, tmp_path, 1)) == expected, "stopped after each unit"


def test_a_run_with_dropout_is_repeatable_and_can_be_stopped(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    lm, config = language_model(tiny_model("llama"), perturb=False), config_of("sft")
    outcomes = []
    for dropout in (0.0, 0.5):
        for _, layer in lm._adapted:
            layer.lora_dropout["p"] = nn.Dropout(dropout)
        loop = make(lm, config)
        list(loop.run())
        outcomes.append(outcome(loop))
    assert outcomes[0]["p"] != outcomes[1]["p"]
    assert outcome(run_in_parts(lm, config, tmp_path, 1)) == outcomes[1]


class AllRight(ToyTask):
    def grade(self, example: Example, answer: str | None) -> bool:
        return True


@pytest.mark.parametrize("method", ["em", "forward-kl", "ppo", "grpo"])
def test_a_pass_with_a_gradient_has_a_third_of_the_tokens(
    lm: LanguageModel, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps what is in each layer. A question's own rationales are never divided."""
    passes: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    hidden = LanguageModel.hidden

    def recorded(self: LanguageModel, model: Any, trees: Sequence[TokenTree]) -> Any:
        passes[torch.is_grad_enabled()].append((len(trees), len(trees) * max(map(len, trees))))
        return hidden(self, model, trees)

    monkeypatch.setattr(LanguageModel, "hidden", recorded)
    e_step = dataclasses.replace(WORLD.e_step, questions=4, samples=4)
    loop = make(lm, dataclasses.replace(config_of(method, e_step=e_step), max_batch_tokens=120), AllRight())
    for _ in loop.run():
        pass
    for trains, limit in ((True, 40), (False, 120)):
        several = [tokens for trees, tokens in passes[trains] if trees > 1]
        assert several and max(several) <= limit
    assert max(tokens for _, tokens in passes[False]) > 40


NO_E_STEP = {"e_step": dataclasses.replace(WORLD.e_step, steps=0)}


@pytest.mark.parametrize(
    ("method", "changes"),
    [*((name, {}) for name in METHODS), *FINE_TUNED.items(), ("em", NO_E_STEP), ("em", AGAIN), ("forward-kl", AGAIN)],
)
def test_it_spends_what_was_planned(lm: LanguageModel, method: str, changes: dict[str, Any]) -> None:
    config = config_of(method, **changes)
    loop = make(lm, config, AllRight())  # from a question without a right chain forward KL learns nothing
    shared = 0
    for phase, _ in loop.run():
        shared += phase.name in ("init", "start_q")
    spent = loop.state.budget
    assert PlannedBudget(spent.trajectories, spent.gradient_steps - shared) == METHODS[method].planned(config)
    assert spent.tokens >= spent.trajectories or not spent.trajectories


def after_round_0(lm: LanguageModel, method: str, changes: Mapping[str, Any]) -> Mapping[str, str]:
    """Which answers are right then."""
    loop = make(lm, config_of(method, **changes))
    for phase, _ in loop.run():
        if phase.name not in ("init", "evaluate"):
            break
    return loop.state.right["0"]["p"]


@pytest.fixture(scope="module")
def at_first(lm: LanguageModel) -> Mapping[str, str]:
    return after_round_0(lm, "em", {})


ALL_TRAINED = [*((name, {}) for name in METHODS if name != "few-shot"), *FINE_TUNED.items()]


@pytest.mark.parametrize(("method", "changes"), ALL_TRAINED)
def test_all_start_from_the_same_model_and_are_tested_alike(
    lm: LanguageModel, at_first: Mapping[str, str], method: str, changes: dict[str, Any]
) -> None:
    assert after_round_0(lm, method, changes) == at_first


OTHER_M_STEP = dataclasses.replace(
    CONFIG.m_step,
    steps=7,
    batch_size=3,
    samples=1,
    temperature=0.3,
    keep="correct",
    weighted=True,
    learning_rate=1e-3,
    warmup=0,
    target="answer",
)


OTHER_E_STEP = EStepConfig(
    steps=5,
    questions=3,
    samples=4,
    max_staleness=1,
    updates=2,
    demonstration_weight=9.0,
    objective="tb",
    huber_delta=None,
    reward_floor=3.0,
    reward_temperatures=(0.5, 2.0),
    reward_temperature_steps=1,
    prior="sampler",
    answer_reward="normalised",
    answer_weight=2.0,
    wrong_candidate_penalty=1.0,
    copy_penalty=1.0,
    score_tool_tokens=True,
    tempered_share=1.0,
    temperatures=(1.1, 1.2),
    replay_share=0.6,
    mix_replay=True,
    learning_rate=1e-3,
    warmup=0,
    decay="constant",
    max_grad_norm=1e-3,
)


def outcome_of(lm: LanguageModel, config: RunConfig) -> dict[str, Any]:
    loop = make(lm, config)
    list(loop.run())
    return outcome(loop)


@pytest.mark.parametrize(
    ("method", "changes"),
    [*((name, {}) for name, method in METHODS.items() if method.ignores(WORLD)), ("gflownet", AGAIN)],
)
def test_settings_that_it_does_not_read_change_nothing(lm: LanguageModel, method: str, changes: dict[str, Any]) -> None:
    own = config_of(method, **changes)
    unread, other = METHODS[method].ignores(own), {}
    for section, others in (("m_step", OTHER_M_STEP), ("e_step", OTHER_E_STEP)):
        names = [one.name for one in dataclasses.fields(others) if {section, f"{section}.{one.name}"} & {*unread}]
        of_section = getattr(own, section)
        if section == "e_step" or section not in unread:
            assert all(getattr(of_section, name) != getattr(others, name) for name in names if name != "interpolation")
        other[section] = dataclasses.replace(of_section, **{name: getattr(others, name) for name in names})
    changed = dataclasses.replace(own, **other)
    assert not other_settings(own, changed)
    assert outcome_of(lm, own) == outcome_of(lm, changed)


@pytest.mark.parametrize(
    ("method", "changes", "name"),
    [("gflownet", AGAIN, "e_step.updates"), ("rejection", {}, "e_step.questions"), ("ppo", {}, "e_step.warmup")],
)
def test_settings_that_it_reads_make_another_run(
    lm: LanguageModel, method: str, changes: dict[str, Any], name: str
) -> None:
    own, (section, field) = config_of(method, **changes), name.split(".")
    of_section = getattr(own, section)
    other = dataclasses.replace(of_section, **{field: getattr(of_section, field) + 1})
    changed = dataclasses.replace(own, **{section: other})
    assert [path for path, *_ in other_settings(own, changed)] == [name]
    assert outcome_of(lm, own) != outcome_of(lm, changed)


@pytest.mark.parametrize("method", METHODS)
def test_more_rounds_are_another_run_where_there_are_rounds(method: str) -> None:
    own = config_of(method)
    found = other_settings(own, dataclasses.replace(own, rounds=own.rounds + 3))
    assert [path for path, *_ in found] == (["rounds"] if METHODS[method].has_rounds else [])


@pytest.mark.parametrize("method", METHODS)
def test_it_is_tested_after_the_last_round_only_if_so_configured(lm: LanguageModel, method: str) -> None:
    evaluation = dataclasses.replace(CONFIG.evaluation, every_round=False)
    loop = make(lm, config_of(method, evaluation=evaluation))
    assert [phase.name for phase in loop.phases].count("evaluate") == 1
    assert loop.phases[-1].name == "evaluate"


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_is_kept(method: str) -> None:
    """Hardly less, and never more; and the default is what EM spends."""
    config = with_method(RunConfig(), method)
    own = METHODS["em"].planned(RunConfig())
    for spend in (own, PlannedBudget(20_000, 500)):
        planned = METHODS[method].planned(METHODS[method].fit_to_budget(config, spend))
        assert planned.trajectories <= spend.trajectories
        if planned.trajectories:
            assert planned.trajectories > 0.98 * spend.trajectories
    if method != "gflownet":  # whose E-step is by default one of EM's, not two with what is drawn
        assert METHODS[method].planned(METHODS[method].fit_to_budget(config, own)) == METHODS[method].planned(config)


def test_a_budget_counts_what_a_step_can_ask() -> None:
    """A step asks different questions: of five there are no eight. Rejection sampling goes through them again."""
    few = dataclasses.replace(RunConfig(), data=DataConfig(5, 0, 0))
    own = METHODS["em"].planned(few)
    assert own.trajectories == few.rounds * (few.e_step.steps * 5 * few.e_step.samples + 5)
    for method in ("gflownet", "grpo", "ppo", "rejection"):
        fitted = METHODS[method].fit_to_budget(with_method(few, method), own)
        planned = METHODS[method].planned(fitted).trajectories
        assert 0.9 * own.trajectories < planned <= own.trajectories
    none = dataclasses.replace(
        few, data=DataConfig(5, 3, 0), e_step=dataclasses.replace(few.e_step, demonstration_weight=0)
    )
    assert METHODS["gflownet"].planned(none).trajectories == few.e_step.steps * 3 * few.e_step.samples


def test_fewer_steps_warm_up_for_fewer() -> None:
    own = RunConfig()
    fitted = METHODS["em"].fit_to_budget(dataclasses.replace(own, rounds=3), METHODS["em"].planned(own))
    assert 0 < fitted.e_step.steps < own.e_step.steps
    assert fitted.e_step.warmup == own.e_step.warmup * fitted.e_step.steps // own.e_step.steps
    assert METHODS["em"].fit_to_budget(own, METHODS["em"].planned(own)) == own


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_a_budget_has_room_for_what_is_drawn_afterwards(name: str) -> None:
    config = with_method(RunConfig(), name)
    fine_tuned = dataclasses.replace(config, **policy(name, fine_tune=True))
    within = METHODS[name].fit_to_budget(fine_tuned, PlannedBudget(3610, 480))
    assert within.e_step.steps == (3610 - 1050) // 64
    assert METHODS[name].planned(within) == PlannedBudget(3610, 480), "the M-step has what is left"
    few = METHODS[name].fit_to_budget(fine_tuned, PlannedBudget(3610, 40))
    assert few.m_step == fine_tuned.m_step, "never fewer than its own"


def test_a_budget_leaves_out_an_e_step_that_is_left_out() -> None:
    config = RunConfig(e_step=dataclasses.replace(RunConfig().e_step, steps=0))
    assert METHODS["em"].fit_to_budget(config, PlannedBudget(2100, 80)) == config
    with pytest.raises(UsageError, match=r"--budget: too few .* takes 2100"):
        METHODS["em"].fit_to_budget(config, PlannedBudget(2099, 80))


@pytest.mark.parametrize("method", ["ppo", "grpo", "forward-kl", "gflownet", "em"])
def test_a_budget_that_is_too_small(method: str) -> None:
    with pytest.raises(UsageError, match="--budget: too few"):
        METHODS[method].fit_to_budget(with_method(RunConfig(), method), PlannedBudget(10, 10))


@pytest.mark.parametrize(("method", "changes"), FINE_TUNED.items())
def test_a_policy_gradient_goes_on_as_em_does(lm: LanguageModel, method: str, changes: dict[str, Any]) -> None:
    """The policy trains q only, the M-step p only, on what q has drawn of every question."""
    loop = make(lm, config_of(method, **changes))
    assert loop.reasoners == ("q", "p")
    before = weights(loop)
    changed: dict[str, set[str]] = {}
    for phase, _ in loop.run():
        after = weights(loop)
        changed.setdefault(phase.name, set()).update(a for a in ADAPTERS if after[a] != before[a])
        before = after
    assert (changed["policy"], changed["draw"], changed["m_step"]) == ({"q"}, set(), {"p"})
    assert {one.question for one in loop.state.drawn} == set(range(len(loop.questions)))  # WORLD keeps all


def test_few_shot_shows_demonstrations_and_trains_nothing(lm: LanguageModel) -> None:
    loop = make(lm, config_of("few-shot"))
    assert isinstance(loop, FewShot)
    assert loop.model_prefix == "a? a= 2. It is 2.\nab? ab= 3. It is 3.\n"
    before = weights(loop)
    list(loop.run())
    assert weights(loop) == before
    assert make(lm, config_of("few-shot", shots=0)).model_prefix == ""


def test_few_shot_has_answers_to_show() -> None:
    asked = RunConfig(method="few-shot", task="random_numbers", shots=1, data=DataConfig(0, 1, 0))
    with pytest.raises(UsageError, match=r"--shots 1: the examples of random_numbers have no answer"):
        FewShot.check(asked, TASK, TASK.load(DataRequest(demonstrations=0, unlabelled=1, validation=0)))


def test_few_shot_shows_how_a_rationale_is_written_where_the_answer_is_read_off_it() -> None:
    asked = RunConfig(method="few-shot", data=DataConfig(0, 8, 0))
    arithmetic = tasks.load("arithmetic")
    with pytest.raises(UsageError, match="arithmetic reads the answer off a rationale, and none is shown"):
        FewShot.check(asked, arithmetic, arithmetic.load(DataRequest(demonstrations=0, unlabelled=8, validation=0)))


def test_few_shot_writes_sentences_where_there_is_nothing_to_answer(lm: LanguageModel) -> None:
    """In tests, and where its rationales are shown."""
    rollout = dataclasses.replace(WORLD.rollout, granularity="token")
    config = config_of("few-shot", shots=0, rollout=rollout, data=DataConfig(0, 2, 0))
    loop = make(lm, config, LengthTask())
    loop.data, loop.demonstrations = dataclasses.replace(loop.data, demonstrations=()), []
    writer, drawn = loop.rationales_of("p", loop.tests["test"], n=3, seed=0, temperature=1.0)
    assert writer == "p" and any(len(z) for of_one in drawn for z in of_one)
    (measured, *_) = loop.sample_tests("p", loop.tests["test"], seed=0, n=3, temperature=1.0)
    assert {one.rationale for one in measured.samples} == set(drawn[0])


@pytest.mark.parametrize("task", ["subjectivity", "random_numbers"])
def test_what_q_sees_is_the_tasks_own_for_each_way_of_training_it(task: str) -> None:
    seen = {method: load_config(task=task, method=method).q_sees for method in ("em", "gflownet", "forward-kl")}
    assert set(seen.values()) == {"question"}
    assert load_config(method="forward-kl").q_sees == "question-and-answer"


@pytest.mark.parametrize("method", ["em", "rejection"])
def test_a_p_in_the_middle_of_its_training_is_no_untrained_one(lm: LanguageModel, method: str) -> None:
    """Stopped there, it is sampled from without the demonstrations that it is not being trained behind."""
    loop = make(lm, config_of(method, p_init="prompt", shots=2, m_step=dataclasses.replace(WORLD.m_step, steps=3)))
    trained = []
    for phase, _ in loop.run():
        if phase.name == "m_step":
            trained.append((loop.state.m_steps, loop.test_text("p", loop.data.validation[0])))
    assert len(trained) >= 3 and set(trained[:3]) == {(1, loop.data.validation[0].x)}


def test_without_a_question_to_draw_nothing_begins() -> None:
    """Rows may all have rationales, whatever was asked for."""
    config = config_of("em", e_step=dataclasses.replace(WORLD.e_step, demonstration_weight=0.0))
    task = ToyTask()
    data = dataclasses.replace(task.load(DataRequest()), unlabelled=())
    with pytest.raises(UsageError, match=r"--e-step\.demonstration-weight is 0, and there are demonstrations only"):
        method_class("em").check(config, task, data)
    method_class("em").check(config_of("em"), task, data)
    method_class("sft").check(config_of("sft", e_step=config.e_step), task, data)


@pytest.mark.parametrize("method", ["em", "forward-kl", "grpo"])
def test_a_grader_is_asked_once_for_each_rationale(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """It may take its time, and what is logged is then what was learned from."""
    loop = make(lm, config_of(method, evaluation=dataclasses.replace(WORLD.evaluation, diagnostics=0)))
    steps = ("policy" if method == "grpo" else "e_step",)
    asked: list[tuple[str, Rationale]] = []
    really = loop.is_correct

    def is_correct(example: Example, rationale: Rationale) -> bool:
        asked.append((example.key, rationale))
        return really(example, rationale)

    monkeypatch.setattr(loop, "is_correct", is_correct)
    found = 0
    for phase, info in loop.run():
        if phase.name in steps:
            assert len(asked) == len(set(asked)) > 0 and "accuracy" in info
            found += 1
        asked.clear()
    assert found


@pytest.mark.parametrize("task", tasks.names())
def test_a_report_knows_whether_the_reward_is_the_joint_probability(lm: LanguageModel, task: str) -> None:
    e = load_config(task=task).e_step
    loop = make(lm, dataclasses.replace(WORLD, e_step=e))
    loop.task = tasks.load(task)
    assert (loop.reward.name == JOINT) == (e.rewards_joint and not loop.task.has_own_reward)


def test_forward_kl_without_an_e_step(lm: LanguageModel) -> None:
    """q is then the present p in each round, and there is nothing to compare."""
    loop = make(lm, config_of("forward-kl", q_sees="question", **NO_E_STEP))
    names = [phase.name for phase in loop.phases]
    assert {"e_step", "diagnose"}.isdisjoint(names)
    assert names.count("start_q") == names.count("draw") == loop.rounds == 2
    drawn = {phase.round: weights(loop) for phase, _ in loop.run() if phase.name == "draw"}
    assert all(of["q"] == of["p"] for of in drawn.values()) and drawn[1] != drawn[2]


class Scripted(ToyTask):
    """Counts the validation checks, and says how many answers are right in each."""

    def __init__(self, right: list[int]) -> None:
        super().__init__()
        self.right, self.asked = right, 0

    def grade(self, example: Example, answer: str | None) -> bool:
        if example.question not in ("bc", "cba"):
            return False
        check, place = divmod(self.asked, 2)
        self.asked += 1
        return place < self.right[check]


def test_sft_stops_early_and_keeps_the_best(lm: LanguageModel) -> None:
    m_step = dataclasses.replace(SFT, steps=40, interpolation=1.0)
    loop = make(lm, config_of("sft", m_step=m_step), Scripted([0, 1, 1, 2, 2, 1, 0, 0]))
    seen = []
    for phase, info in loop.run():
        if phase.name == "fit":
            assert "note" not in info
            seen.append((info["validation"], weights(loop)["p"]))
        elif phase.round == 1:
            break
    assert loop.state.checks == [0, 1, 1, 2, 2, 1, 0]  # three without a new best
    assert loop.state.budget.gradient_steps == 3 + 6 * 2
    assert weights(loop)["p"] == seen[3][1], "not the best one"
    assert seen[4][1] != seen[3][1]


def test_sft_stops_by_the_loss_where_nothing_is_right(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 1.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr("latent_cot.methods.likelihood.held_out_loss", lambda *_, **__: next(losses))
    m_step = dataclasses.replace(SFT, steps=40, interpolation=1.0)
    rollout = dataclasses.replace(WORLD.rollout, granularity="token")
    loop = make(lm, config_of("sft", m_step=m_step, rollout=rollout), LengthTask())
    seen = []
    for phase, info in loop.run():
        if phase.name == "fit":
            seen.append((info["validation_loss"], info["best_loss"], weights(loop)["p"]))
        elif phase.round == 1:
            break
    assert loop.state.checks == [-3, -1, -2, -2, -2]
    assert [told for *told, _ in seen] == [[3, 3], [1, 1], [2, 1], [2, 1], [2, 1]]
    assert weights(loop)["p"] == seen[1][2] != seen[-1][2]


def test_sft_checks_p_behind_the_prompt_that_it_is_tested_with(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untrained p reads demonstrations first; without them training would look better than it is."""
    asked: list[list[list[int]]] = []

    def held_out_loss(lm: LanguageModel, adapter: str, groups: Sequence[Group], *_: Any, **__: Any) -> float:
        asked.append([list(group.prompt) for group in groups])
        return 1.0

    monkeypatch.setattr("latent_cot.methods.likelihood.held_out_loss", held_out_loss)
    rollout = dataclasses.replace(WORLD.rollout, granularity="token")
    loop = make(lm, config_of("sft", p_init="prompt", shots=2, rollout=rollout), LengthTask())
    shown = [loop.test_prompt("p", example) for example in loop.data.validation]
    for phase, _ in loop.run():
        if phase.round == 1 and phase.name != "fit":
            break
    bare = [loop.rules.codec.encode_prompt(example.x) for example in loop.data.validation]
    assert asked[0] == shown != bare and len(asked) > 1 and all(prompts == bare for prompts in asked[1:])


def test_sft_ends_with_an_interpolation(lm: LanguageModel) -> None:
    found = {}
    for share in (1.0, 0.5):
        m_step = dataclasses.replace(SFT, interpolation=share)
        list(make(lm, config_of("sft", sft=SFTConfig(check_every=0), m_step=m_step)).run())
        found[share] = {name: weight.clone() for name, weight in lm.parameters("p").items()}
    for name, weight in found[1.0].items():
        torch.testing.assert_close(found[0.5][name], weight * (0.5 if "lora_B" in name else 1.0))


def test_sft_that_is_best_untrained_reads_what_it_read_then(lm: LanguageModel) -> None:
    """Prompted p sees demonstrations before its training and none after it."""
    m_step = dataclasses.replace(SFT, steps=10, interpolation=0.5)
    loop = make(lm, config_of("sft", p_init="prompt", shots=2, m_step=m_step), Scripted([2, 1, 1, 1]))
    asked, start = loop.test_text("p", loop.data.validation[0]), weights(loop)["p"]
    notes = []
    for phase, info in loop.run():
        if phase.round == 1 and phase.name != "fit":
            break
        notes.append(info.get("note"))
    assert loop.state.checks == [2, 1, 1, 1]
    assert notes[-1] == "no check was better than the first: p stays as it is" and not any(notes[:-1])
    assert loop.test_text("p", loop.data.validation[0]) == asked != loop.data.validation[0].x
    assert weights(loop)["p"] == start, "what was not trained is not interpolated"


def test_sft_is_not_stopped_by_the_loss_of_rationales_that_there_are_not(lm: LanguageModel) -> None:
    task, data = LengthTask(), LengthTask().load(DataRequest())
    bare = tuple(dataclasses.replace(example, z=None) for example in data.validation)
    method, config = method_class("sft"), config_of("sft")
    method.check(config, task, data)
    without = dataclasses.replace(data, validation=bare)
    with pytest.raises(UsageError, match=r"^2 of 2 validation questions have no rationale, .*--sft\.check-every 0"):
        method.check(config, task, without)
    method.check(dataclasses.replace(config, sft=SFTConfig(check_every=0)), task, without)


def test_sft_without_checks_takes_all_steps(lm: LanguageModel) -> None:
    m_step = dataclasses.replace(SFT, steps=25, interpolation=1.0)
    loop = make(lm, config_of("sft", sft=SFTConfig(check_every=0), m_step=m_step), Scripted([]))
    seen = []
    for phase, info in loop.run():
        if phase.name == "fit":
            assert "validation" not in info
            seen.append(weights(loop)["p"])
        elif phase.round == 1:
            break
    assert loop.state.budget.gradient_steps == 3 + 25
    assert weights(loop)["p"] == seen[-1] != seen[-2]


@pytest.mark.parametrize("method", ["ppo", "grpo", "gflownet"])
def test_the_sampler_learns_and_the_model_stays(lm: LanguageModel, method: str) -> None:
    loop = make(lm, config_of(method))
    initial = None
    for phase, _ in loop.run():
        if phase.name == "diagnose_before":
            initial = weights(loop)["p"]
            assert weights(loop)["q"] == initial
    assert weights(loop)["p"] == initial
    assert weights(loop)["q"] != initial


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_policy_gradient_raises_the_reward(lm: LanguageModel, method: str) -> None:
    """Not a claim about the method: a sign error would lower it."""
    e_step = dataclasses.replace(WORLD.e_step, steps=25, questions=6, samples=16, reward_floor=10.0)
    settings = policy(method, kl=0.0)
    loop = make(lm, config_of(method, e_step=e_step, **settings))
    rewards = [info["log_reward"] for phase, info in loop.run() if phase.name == "policy"]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 2


@pytest.mark.parametrize("reward", ["correct", "log-reward"])
def test_a_reward_of_right_or_wrong(lm: LanguageModel, reward: Any) -> None:
    """Where no chain is right there is nothing to learn; the log-reward still tells them apart."""
    loop = make(lm, config_of("grpo", **policy("grpo", reward=reward, kl=0.0)), Scripted([0] * 99))
    norms = [info["gradient_norm"] for phase, info in loop.run() if phase.name == "policy"]
    assert norms and all((norm == 0) == (reward == "correct") for norm in norms)


def test_rejection_keeps_right_distinct_chains_and_starts_afresh(lm: LanguageModel) -> None:
    e_step = dataclasses.replace(WORLD.e_step, steps=10)
    loop = make(lm, config_of("rejection", e_step=e_step))
    task, initial = ToyTask(), None
    for phase, info in loop.run():
        if phase.name == "sample" and initial is None:
            initial = weights(loop)["p"]
            assert weights(loop)["q"] == initial
        if phase.name == "m_step":
            drawn = [(d.question, d.rationale.tokens) for d in loop.state.drawn]
            assert len(set(drawn)) == len(drawn)
            assert all([q for q, _ in drawn].count(q) <= PER_QUESTION for q, _ in drawn)
            for d in loop.state.drawn:
                assert task.grade(loop.questions[d.question], task.answer(d.rationale))
            assert "loss" in info
        if phase.name == "sample":
            shown = info["samples"]
            assert 0 < len(shown) <= 2 and {one["question"] for one in shown} <= {x.question for x in loop.questions}
    assert weights(loop)["q"] == initial, "the starting point has moved"


@pytest.mark.parametrize(
    ("method", "changes", "parts"),
    [
        ("few-shot", {"shots": 3}, ["--shots is 3", "2 --data.demonstrations"]),
        ("sft", {"data": dataclasses.replace(WORLD.data, validation=0)}, ["--method sft", "--data.validation"]),
        ("ppo", {"e_step": dataclasses.replace(WORLD.e_step, samples=1)}, ["--e-step.samples is 1"]),
        ("grpo", policy("grpo", kl=-0.5), ["--policy-gradient.kl is -0.5"]),
    ],
)
def test_settings_that_make_no_sense(method: str, changes: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        config_of(method, **changes)
    assert all(part in str(refused.value) for part in parts)


@pytest.mark.parametrize(("method", "q_sees"), [("em-x", "question-and-answer"), ("ppo", "question-and-answer")])
def test_a_condition_that_contradicts_the_method(method: str, q_sees: Any) -> None:
    with pytest.raises(UsageError, match=f"--q-sees {q_sees}"):
        check(dataclasses.replace(with_method(WORLD, method), q_sees=q_sees))
