"""What every task keeps to, built-in or not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from latent_cot.evaluation.evaluate import figures
from latent_cot.tasks.common import drop_seen, repeats
from latent_cot.types import (
    DataRequest,
    Example,
    Measured,
    Rationale,
    Sample,
    Task,
    TaskData,
    UsageError,
)

SMALL = DataRequest(demonstrations=10, unlabelled=40, validation=20, seed=3)
FEW = {
    "continuation": DataRequest(demonstrations=0, unlabelled=40, validation=3, seed=3),
    "infilling": DataRequest(demonstrations=4, unlabelled=8, validation=3, seed=3),
    "qa": DataRequest(demonstrations=6, unlabelled=18, validation=4, seed=3),
    "subjectivity": DataRequest(demonstrations=0, unlabelled=6, validation=2, seed=3),
    "word_problems": DataRequest(demonstrations=10, unlabelled=30, validation=8, seed=3),
}
"""For tasks that have only so many examples without a file of the user's. (A new one is told by `load`.)"""
GENERATED = {"arithmetic", "parity", "elapsed", "middle"}
"""Tasks that make their questions themselves: they need no files, and have as many as they like."""


@pytest.fixture(scope="module")
def small(task: Task) -> DataRequest:
    return FEW.get(task.name, SMALL)


@pytest.fixture(scope="module")
def data(task: Task, small: DataRequest) -> TaskData:
    return task.load(small)


@pytest.fixture(scope="module")
def splits(task: Task, data: TaskData) -> dict[str, list[Example]]:
    return {name: task.split(name) for name in task.default_splits}


def everything(data: TaskData) -> tuple[Example, ...]:
    return (*data.demonstrations, *data.unlabelled, *data.validation)


def test_describes_itself(task: Task) -> None:
    assert isinstance(task, Task)
    assert task.name.isidentifier()
    assert task.description
    assert "\n" not in task.description
    assert task.default_splits
    assert all(isinstance(name, str) for name in (*task.tools, *task.default_splits))


def test_gives_what_is_asked_for(task: Task, data: TaskData, small: DataRequest) -> None:
    assert len(data.unlabelled) == (1 if task.one_question else small.unlabelled)
    assert len(data.validation) == small.validation
    assert len(data.demonstrations) in (0, small.demonstrations)  # 0: a task without rationales
    assert all(example.z is not None for example in data.demonstrations)
    assert all(example.z is None for example in data.unlabelled)


def test_texts_join_without_stray_spaces(task: Task, data: TaskData) -> None:
    for example in everything(data):
        assert example.x == example.x.rstrip()
        if example.y is None:
            assert task.has_own_reward
        else:
            assert example.y
            assert not example.y[0].isalnum()
        assert example.z is None or example.z.startswith(" ")
        if task.has_own_reward or example.answer is not None:
            prompt = task.posterior_prompt(example)
            assert prompt == prompt.rstrip()


def test_what_reads_the_answer_needs_one(task: Task, data: TaskData) -> None:
    """But for a task with a reward of its own: what a q learns that sees Y is then q(Z | X)."""
    for example in everything(data)[:3]:
        if task.has_own_reward:
            assert task.posterior_prompt(example) == example.x
        else:
            if not task.is_measured:
                assert example.answer is not None and example.answer in task.posterior_prompt(example)
            with pytest.raises(UsageError, match=r"question .* is needed"):
                task.posterior_prompt(replace(example, y=None, answer=None))


def test_demonstrations_are_made_of_the_allowed_characters(task: Task, data: TaskData) -> None:
    if task.allowed_characters is not None:
        assert set("".join(example.z or "" for example in data.demonstrations)) <= set(task.allowed_characters)


def test_gold_answer_passes_its_own_grader(task: Task, data: TaskData, splits: dict[str, list[Example]]) -> None:
    if task.is_measured:
        pytest.skip("it has no right answers")
    for example in (*everything(data), *(e for split in splits.values() for e in split)):
        assert example.answer is not None
        assert task.grade(example, example.answer)


def test_no_answer_is_never_right(task: Task, data: TaskData) -> None:
    assert not any(task.grade(example, None) for example in everything(data))


def test_grader_tells_answers_apart(task: Task, data: TaskData) -> None:
    if task.is_measured:
        pytest.skip("it has no right answers")
    answers = {example.answer for example in data.unlabelled}
    assert len(answers) > 1
    for example in data.unlabelled:
        assert sum(task.grade(example, answer) for answer in answers) == 1


def test_candidates_hold_the_answer_and_its_text(task: Task, data: TaskData) -> None:
    for example in everything(data):
        candidates = task.candidates(example)
        if candidates is not None:
            assert example.answer is not None
            assert candidates[example.answer] == example.y


def test_example_round_trips(task: Task, data: TaskData) -> None:
    for example in everything(data):
        for text in (example.question, example.x):
            again = task.example(text, example.answer)
            assert (again.x, again.y, again.answer, again.question) == (
                example.x,
                example.y,
                example.answer,
                example.question,
            )


def test_example_refuses_what_is_no_question(task: Task) -> None:
    for text in ("", "   ") + (("a question of no task",) if task.name in GENERATED else ()):
        with pytest.raises(UsageError):
            task.example(text)


def test_load_depends_on_the_seed_alone(task: Task, small: DataRequest, data: TaskData) -> None:
    assert task.load(small) == data
    other = task.load(replace(small, seed=4))
    if task.one_question:
        assert [e.z for e in other.demonstrations] != [e.z for e in data.demonstrations]
    else:
        assert [e.question for e in other.unlabelled] != [e.question for e in data.unlabelled]


def test_training_validation_and_tests_are_apart(task: Task, data: TaskData, splits: dict[str, list[Example]]) -> None:
    training = (*data.demonstrations, *data.unlabelled)
    if not task.one_question:
        assert repeats(everything(data)) == 0
        assert drop_seen(list(data.validation), training)[1] == 0
        for split in splits.values():
            assert drop_seen(split, (*training, *data.validation))[1] == 0


def test_splits_are_the_same_every_time(task: Task, splits: dict[str, list[Example]]) -> None:
    for name, split in splits.items():
        assert task.split(name) == split
        assert task.split(name, 7) == split[:7]
        if task.name in GENERATED:
            assert len(split) >= 500
            assert repeats(split) == 0


def test_unknown_split_names_the_known(task: Task) -> None:
    with pytest.raises(UsageError, match=task.default_splits[0]):
        task.split(task.default_splits[0] + "x")


def test_absent_file_is_named(task: Task) -> None:
    with pytest.raises(UsageError, match=r"no-such-file\.jsonl"):
        task.read("no-such-file.jsonl")


def test_sweeps_name_splits(task: Task) -> None:
    for name in task.default_splits:
        sweep = task.sweep(name)
        assert sweep.axes == ()
        assert list(sweep.points) == [name]
        numbers = sweep.points[name]
        assert all({axis: e.meta[axis] for axis in numbers} == numbers for e in task.split(name, 5))
    with pytest.raises(UsageError):
        [*map(task.split, task.sweep(task.default_splits[0] + "x").points)]


def test_mistakes_are_among_those_declared(task: Task, splits: dict[str, list[Example]]) -> None:
    assert all(task.mistakes.values())
    empty = Rationale((), (), (True,), "")
    for split in splits.values():
        assert task.mistake(split[0], empty) in {*task.mistakes, None}


def test_its_own_reward_is_that_of_a_text(task: Task, data: TaskData) -> None:
    if not task.has_own_reward:
        pytest.skip("its reward is p(X Z Y)")
    for example in data.demonstrations:
        assert -math.inf < task.log_reward(example, example.z or "") < math.inf
    for text in ("", " ", "\x00", "\ud800", "7" * 100_000, " __import__('os')"):
        assert task.log_reward(data.unlabelled[0], text) < math.inf


def test_listed_texts_are_all_that_is_worth_anything(task: Task, data: TaskData) -> None:
    texts = task.texts(data.unlabelled[0])
    if texts is None:
        pytest.skip("it lists none")
    assert len(set(texts)) == len(texts) > 1
    if task.has_own_reward:
        assert all(task.log_reward(data.unlabelled[0], text) > -math.inf for text in texts)
    assert {example.z for example in data.demonstrations} <= set(texts)


def test_a_task_of_figures_measures_what_it_names(task: Task, splits: dict[str, list[Example]]) -> None:
    if not task.is_measured:
        pytest.skip("it has right answers")
    assert task.samples >= 1
    assert task.metrics
    for metric in task.metrics.values():
        assert metric.description and "\n" not in metric.description
        assert metric.format.format(0.5)
    assert task.answer(Rationale((), (), (True,), "")) is None
    score = -3.0 if task.scored else None
    texts = (" It rained all day", " 17", "")
    samples = [Sample(Rationale((), (), (True,), text), score, score, count) for count, text in enumerate(texts, 1)]
    for split in splits.values():
        questions = [Measured(example, samples[k % 2 :]) for k, example in enumerate(split[:3])]
        try:
            found = figures(task, questions)
        except UsageError as error:
            pytest.skip(f"a package is not here: {error}")
        assert found.keys() <= task.metrics.keys()
        assert found
