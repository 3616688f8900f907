"""How long a task's texts are."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from latent_cot import tasks
from latent_cot.config.settings import load_config
from latent_cot.planning import lengths
from latent_cot.planning.lengths import lengths_of

CONFIG = load_config()
TASK = tasks.load("arithmetic")


def test_an_estimate_comes_near_what_is_counted(tiny_model_dir: Path) -> None:
    counted, estimated = (lengths_of(replace(CONFIG, model=model), TASK) for model in (str(tiny_model_dir), "7b"))
    assert (counted.how, estimated.how) == ("counted", "estimated")
    for name in ("prompt", "chain", "answer"):  # the tiny model's tokens are shorter than those of others
        assert counted.tokens[name] / 3 < estimated.tokens[name] < 1.2 * counted.tokens[name]


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("", 0, 0),
        ("6 - 0 - 4 = ?", 6, 8),
        ("a plain sentence of seven words.", 7, 8),
        ("\u4f60\u597d\u4e16\u754c", 4, 4),
    ],
)
def test_an_estimate_of_tokens(text: str, least: int, most: int) -> None:
    assert least <= lengths._estimate(text) <= most


def test_a_sampler_that_sees_the_answer_reads_more() -> None:
    usual, seen = (
        lengths_of(replace(CONFIG, model="7b", q_sees=sees), TASK) for sees in ("question", "question-and-answer")
    )
    assert seen.tokens["prompt"] > usual.tokens["prompt"] + 3
    assert seen.tokens["answer"] == usual.tokens["answer"] and usual.how == "estimated" and usual.examples == 250


def test_how_many_examples_there_are(tmp_path: Path) -> None:
    """A plan is of these, not of as many as were asked for."""
    rows = "".join(f"What is {k} and {k}?,{2 * k}\n" for k in range(40))
    (tmp_path / "mine.csv").write_text(f"question,answer\n{rows}")
    (tmp_path / "mine.yaml").write_text("data: mine.csv\n")
    config = replace(load_config(task=str(tmp_path / "mine.yaml")), model="7b")
    found = lengths_of(config, tasks.load(config.task))
    assert found.data["demonstrations"] == 0 and 0 < sum(found.data.values()) <= 40
    as_asked = {"demonstrations": 50, "unlabelled": 1000, "validation": CONFIG.data.validation}
    assert lengths_of(replace(CONFIG, model="7b"), TASK).data == as_asked


def test_what_a_folder_holds_beside_files_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "tokenizer.json")
    found = lengths_of(replace(CONFIG, model=str(tmp_path)), TASK)
    assert found.how == "estimated" and found.why_not is not None and "is not on this machine" in found.why_not


def test_a_demonstration_that_cannot_be_written_is_estimated(tiny_model_dir: Path) -> None:
    """A run would refuse it; a plan says why it did not count."""
    config = replace(CONFIG, model=str(tiny_model_dir), rollout=replace(CONFIG.rollout, min_tokens=39))
    found = lengths_of(config, TASK)
    assert found.how == "estimated" and found.why_not is not None and "demonstration" in found.why_not
