"""What is refused, or told, before a run begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from latent_cot.checks import check_demonstrations, check_tools
from latent_cot.errors import UsageError
from latent_cot.types import DataRequest
from tests.loops import CONFIG, make
from tests.worlds import CountTool, PlainTask, ToyTask, language_model


class Arrow(CountTool):
    name = "arrow"
    trigger = "->"


def test_tools_that_could_never_be_called() -> None:
    task = ToyTask()
    check_tools(task, ["count"], [CountTool()])
    with pytest.raises(UsageError, match=r"--rollout\.tools other: its trigger '=' is that of count too"):
        check_tools(task, ["count", "other"], [CountTool(), CountTool()])
    with pytest.raises(UsageError, match=r"--rollout\.tools arrow: its trigger '->' has '-', which is not among"):
        check_tools(task, ["count", "arrow"], [CountTool(), Arrow()])
    check_tools(PlainTask(), ["arrow"], [Arrow()])  # whose rationales are of any characters


def test_demonstrations_arrive_at_their_answers(tiny_model: Callable[[str], Path]) -> None:
    task, rules = ToyTask(), make(language_model(tiny_model("llama"), perturb=False), CONFIG).rules
    right = task.load(DataRequest()).demonstrations
    assert check_demonstrations(task, right, rules) == []
    wrong = dataclasses.replace(right[0], answer="77")
    (note,) = check_demonstrations(task, [*right, wrong], rules)
    assert note == "1 of 3 demonstrations do not arrive at their own answer: 'a' at '2', not at '77'."
    with pytest.raises(UsageError, match="no demonstration of toy arrives at its own answer: 'a' at '2', not at '77'"):
        check_demonstrations(task, [wrong], rules)
    written = dataclasses.replace(right[0], z=" zz=", meta={"source": "mine.jsonl:3"})
    with pytest.raises(UsageError, match=r"^mine\.jsonl:3: demonstration"):
        check_demonstrations(task, [written], rules)


def test_where_an_answer_is_picked_among_candidates_it_is_not_read_off(tiny_model: Callable[[str], Path]) -> None:
    task = PlainTask()
    config = dataclasses.replace(CONFIG, rollout=dataclasses.replace(CONFIG.rollout, granularity="token"))
    rules = make(language_model(tiny_model("llama"), perturb=False), config, task).rules
    shown = dataclasses.replace(task.load(DataRequest()).pairs[0], z=" b")
    assert check_demonstrations(task, [shown], rules) == []
