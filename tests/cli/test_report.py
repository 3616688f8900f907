"""`latent-cot report`: it writes the page, and says what is wrong."""

from __future__ import annotations

import errno
import gc
import json
import re
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest

from latent_cot import disk
from latent_cot.run import reasoners
from tests.cli.conftest import Cli

SMALL = ["--questions", 2, "-n", 3]


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to write into."""
    return Path(shutil.copytree(finished, tmp_path / "mine"))


def data_of(page: Path) -> dict[str, Any]:
    match = re.search(r'id="report-data">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert match is not None
    data: dict[str, Any] = json.loads(match[1])
    return data


def test_a_report_of_a_run(cli: Cli, run: Path) -> None:
    called = cli("report", run, *SMALL)
    assert called.status == 0, called.err
    assert "written: " in called.out
    (shown,) = data_of(run / "report.html")["runs"]
    assert shown["name"] == "mine"
    assert shown["status"] == "finished"
    samples = shown["samples"]
    assert samples["reasoner"] == "p", "as the README has it"
    assert [beside["reasoner"] for beside in samples["beside"]] == ["q"]
    splits = [question["split"] for question in samples["questions"]]
    assert splits == ["validation"] * 2 + ["3-operands"] * 2 + ["4-operands"] * 2
    assert all(sum(chain["count"] for chain in question["chains"]) == 3 for question in samples["questions"])


def test_a_q_that_has_read_the_answers_is_shown_beside_p(cli: Cli, default_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(default_run, tmp_path / "mine"))
    assert cli("report", run, *SMALL).status == 0
    (shown,) = data_of(run / "report.html")["runs"]
    samples = shown["samples"]
    assert (samples["reasoner"], samples["sees_answer"]) == ("p", False)
    assert [(beside["reasoner"], beside["sees_answer"]) for beside in samples["beside"]] == [("q", True)]
    assert {row["reasoner"] for row in shown["accuracy"]} == {"p"}


def test_from_the_logs_alone(cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latent_cot.run.reasoners.load", None)
    called = cli("report", run, "--no-model")
    assert called.status == 0, called.err
    (shown,) = data_of(run / "report.html")["runs"]
    assert shown["samples"] is None
    assert shown["logged"] and shown["steps"] and shown["accuracy"]


def test_logs_can_be_looked_at_without_the_data(cli: Cli, run: Path) -> None:
    file = run / "config.yaml"
    missing = re.sub("(?m)^  train_file: .*", "  train_file: /no/such/rows.jsonl", file.read_text())
    assert "/no/such/rows.jsonl" in missing
    file.write_text(missing)
    assert "/no/such/rows.jsonl" in cli("report", run).err
    called = cli("report", run, "--no-model")
    assert called.status == 0 and "Its data cannot be read, and are not described" in " ".join(called.out.split())
    (shown,) = data_of(run / "report.html")["runs"]
    assert shown["steps"] and "data" not in dict(shown["facts"])


def test_a_split_without_a_model_is_refused(cli: Cli, run: Path) -> None:
    called = cli("report", run, "--no-model", "--split", "nope")
    assert called.status == 2 and "--split: with --no-model no question is sampled" in called.err


def test_a_full_disk_does_not_ask_for_flags_that_there_are_not(
    cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "write", fill)
    called = cli("report", run, "--no-model")
    assert called.status == 2
    assert "the disk is full); free space and repeat the command, or write elsewhere" in " ".join(called.err.split())


def test_runs_of_a_comparison_have_different_names(cli: Cli, run: Path, tmp_path: Path) -> None:
    folders = [shutil.copytree(run, tmp_path / name / "seed0") for name in ("em", "sft")]
    assert cli("report", *folders, "--no-model", "-o", tmp_path / "r.html").status == 0
    assert [one["name"] for one in data_of(tmp_path / "r.html")["runs"]] == ["em/seed0", "sft/seed0"]
    folders += [shutil.copytree(run, tmp_path / name / "mine") for name in ("first", "second")]
    folders += [shutil.copytree(run, tmp_path / "again" / "em" / "seed0")]
    assert cli("report", *folders, "--no-model", "-o", tmp_path / "r.html").status == 0
    above = tmp_path.name
    names = [f"{above}/em/seed0", "sft/seed0", "first/mine", "second/mine", "again/em/seed0"]
    assert [one["name"] for one in data_of(tmp_path / "r.html")["runs"]] == names


def test_two_runs_and_a_split_of_ones_choice(cli: Cli, run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    called = cli("report", run, other, *SMALL, "--split", "operands=5..6", "-o", tmp_path / "both.html")
    assert called.status == 0, called.err
    shown = data_of(tmp_path / "both.html")["runs"]
    assert [one["name"] for one in shown] == ["mine", "other"]
    assert shown[0]["samples"] == shown[1]["samples"]
    assert {question["split"] for question in shown[0]["samples"]["questions"]} == {"5-operands", "6-operands"}


def test_the_rationales_are_those_that_were_asked_for(cli: Cli, run: Path) -> None:
    called = cli("report", run, *SMALL, "--split", "validation", "--reasoner", "q", "--seed", 3, "--temperature", 0.5)
    assert called.status == 0, called.err
    (samples,) = (one["samples"] for one in data_of(run / "report.html")["runs"])
    assert (samples["reasoner"], samples["beside"]) == ("q", [])
    assert (samples["seed"], samples["temperature"], samples["n"]) == (3, 0.5, 3)


def test_one_runs_model_is_in_memory_at_a_time(
    cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[object]] = []
    load = reasoners.load

    def loaded(*arguments: Any) -> object:
        gc.collect()
        assert not [one for one in made if one() is not None]
        loop = load(*arguments)
        made.append(weakref.ref(loop.lm))
        return loop

    monkeypatch.setattr(reasoners, "load", loaded)
    called = cli("report", run, shutil.copytree(run, tmp_path / "other"), *SMALL, "--split", "validation")
    assert called.status == 0, called.err
    assert len(made) == 2


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ([], ["no run is named"]),
        (["absent"], ["absent"]),
        (["{run}", "--questions", "0"], ["--questions is 0"]),
        (["{run}", "--temperature", "-1"], ["--temperature is -1"]),
        (["{run}", "-o", "report.pdf"], ["--output report.pdf: a report is an HTML file"]),
        (
            ["{run}", "-o", "absent/report.html"],
            ["--output absent/report.html", "there is no folder absent; make it first"],
        ),
        (["{run}", "--split", "nothing"], ["no test split 'nothing'"]),
    ],
)
def test_bad_options(cli: Cli, finished: Path, options: list[str], parts: list[str]) -> None:
    called = cli("report", *(option.format(run=finished) for option in options))
    assert called.status == 2
    assert all(part in called.err.replace("\n", " ") for part in parts), called.err


def test_a_model_is_no_run(cli: Cli, tiny_model_dir: Path) -> None:
    called = cli("report", tiny_model_dir)
    assert called.status == 2
    assert "a base model has no report" in called.err
