"""One q for several tasks: loops that take turns with the same adapters."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from latent_cot.cli import main
from latent_cot.config.schema import RunConfig
from latent_cot.methods.method import Method
from latent_cot.methods.state import Phase
from latent_cot.model.lm import LanguageModel
from latent_cot.report.terminal import Display
from latent_cot.run import mixture
from latent_cot.run.mixture import newest_in_common, place, run_in_turns
from latent_cot.run.run_folder import RunFolder
from latent_cot.run.session import Stopped
from latent_cot.types import UsageError
from tests.conftest import ROOT
from tests.loops import CONFIG, make, outcome
from tests.worlds import PlainTask, ToyTask, language_model

TOKENS = dataclasses.replace(CONFIG.rollout, granularity="token")
PLAIN = dataclasses.replace(CONFIG, rollout=TOKENS, rounds=1, p_init="base")
TOY = dataclasses.replace(CONFIG, rounds=1)


class Part:
    """What `session.Running` is to a mixture, without a folder."""

    def __init__(self, loop: Method, log: list[tuple[str, int, str]] | None = None) -> None:
        self.loop, self.log, self.stopped = loop, [] if log is None else log, False
        self.units = loop.run()
        self.saved: list[int] = []

    def advance(self) -> bool:
        found = next(self.units, None)
        if found is not None:
            self.log.append((self.loop.task.name, found[0].round, found[0].name))
        return found is not None

    def save(self, *, turn: int) -> None:
        self.saved.append(turn)

    def stop(self, *, turn: int) -> None:
        self.stopped = True
        self.save(turn=turn)

    def finish(self, *, turn: int) -> dict[str, Any]:
        self.save(turn=turn)
        return self.loop.state.results()


@pytest.fixture
def lm(tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model("llama"), perturb=False)


def turns(parts: list[Part], **options: Any) -> list[dict[str, Any]]:
    return run_in_turns(parts, **options)  # type: ignore[arg-type]


def test_one_task_in_turns_with_none_is_its_own_run(lm: LanguageModel) -> None:
    alone = make(lm, TOY)
    list(alone.run())
    expected = outcome(alone)
    part = Part(make(lm, TOY))
    turns([part])
    assert outcome(part.loop) == expected


def test_a_phase_begins_when_all_are_done_with_the_one_before(lm: LanguageModel) -> None:
    log: list[tuple[str, int, str]] = []
    longer = dataclasses.replace(PLAIN, e_step=dataclasses.replace(PLAIN.e_step, steps=8))
    parts = [Part(make(lm, TOY), log), Part(make(lm, longer, PlainTask()), log)]
    results = turns(parts)
    order = [(phase.round, phase.name) for phase in parts[0].loop.phases]
    places = [order.index((number, phase)) for _, number, phase in log]
    assert places == sorted(places)
    steps = [name for name, _, phase in log if phase == "e_step"]
    assert steps.count("toy") == 4
    assert steps.count("plain") == 8
    assert steps == ["toy", "plain", "plain"] * 4  # in proportion
    assert all(result["accuracy"]["1"] for result in results)


def test_they_share_one_q_and_each_has_its_own_rules(lm: LanguageModel) -> None:
    parts = [Part(make(lm, TOY)), Part(make(lm, PLAIN, PlainTask()))]
    turns(parts)
    toy, plain = (part.loop for part in parts)
    assert toy.lm is plain.lm
    assert toy.rules.tools and not plain.rules.tools
    assert toy.rules.granularity != plain.rules.granularity
    assert len(toy.rules.codec.actions) < len(plain.rules.codec.actions)


@pytest.mark.parametrize("q_sees", ["question", "question-and-answer"])
@pytest.mark.parametrize("first", ["toy", "plain"])
def test_adapters_are_copied_before_anybody_learns(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, q_sees: Any, first: str
) -> None:
    """The plain task has no units of imitation and none of the comparison with the posterior."""
    log: list[tuple[str, int, str]] = []
    parts = [
        Part(make(lm, dataclasses.replace(TOY, q_sees=q_sees), ToyTask()), log),
        Part(make(lm, dataclasses.replace(PLAIN, q_sees=q_sees), PlainTask()), log),
    ]
    copied: list[set[str]] = []
    copy = lm.copy_adapter

    def noted(source: Any, target: Any) -> None:
        copied.append({phase for _, _, phase in log})
        copy(source, target)

    monkeypatch.setattr(lm, "copy_adapter", noted)
    turns(parts if first == "toy" else parts[::-1])
    phases = {phase for name, _, phase in log if name == "plain"}
    assert "e_step" in phases and "diagnose_before" not in phases and "warm_start_q" not in phases
    assert len(copied) == 2 and not any(before & {"warm_start_q", "e_step"} for before in copied)


def test_tasks_with_other_phases_do_not_fit(lm: LanguageModel) -> None:
    two: RunConfig = dataclasses.replace(PLAIN, rounds=2)
    with pytest.raises(UsageError, match=r"--rounds is 1 for .* and 2 for"):
        turns([Part(make(lm, TOY)), Part(make(lm, two, PlainTask()))])


def test_all_parts_are_stopped(lm: LanguageModel) -> None:
    parts = [Part(make(lm, TOY)), Part(make(lm, PLAIN, PlainTask()))]
    with pytest.raises(Stopped):
        turns(parts, should_stop=lambda: len(parts[0].log) == 2)
    assert all(part.stopped for part in parts)
    assert parts[0].saved == parts[1].saved
    assert parts[0].saved[-1] == sum(len(part.log) for part in parts)


def test_parts_are_saved_together(lm: LanguageModel) -> None:
    parts = [Part(make(lm, TOY)), Part(make(lm, PLAIN, PlainTask()))]
    turns(parts, turn=7, save_every=0.0)
    n = sum(len(part.log) for part in parts)
    assert parts[0].saved == parts[1].saved == [*range(8, 8 + n), 7 + n]


def nothing(target: Path) -> None:
    pass


def test_what_belongs_together(tmp_path: Path) -> None:
    """A process that is killed between the saves of two parts leaves one of them a save older."""
    folders = [RunFolder.create(tmp_path / name, {}) for name in "ab"]
    assert newest_in_common(folders) == (0, [None, None])
    folders[0].save({"turn": 3}, nothing)
    assert newest_in_common(folders) == (0, [None, None])
    folders[1].save({"turn": 3}, nothing)
    folders[0].save({"turn": 5}, nothing)
    turn, (first, second) = newest_in_common(folders)
    assert turn == 3
    assert first and second and first.state == second.state == {"turn": 3}
    folders[1].save({"turn": None}, nothing)  # gone on with by itself
    assert newest_in_common(folders)[0] == 3


@pytest.mark.parametrize("finished", [True, False])
def test_without_a_save_in_common_nothing_is_begun_anew(tmp_path: Path, finished: bool) -> None:
    folders = [RunFolder.create(tmp_path / name, {}) for name in "ab"]
    folders[0].save({"turn": 3}, nothing)
    if finished:
        folders[0].write_json("results.json", {})
    else:
        folders[0].save({"turn": 5}, nothing)
    with pytest.raises(UsageError, match=r"a: .*turn 3.*; b: none"):
        newest_in_common(folders)


def test_phases_without_work_are_passed_over(lm: LanguageModel) -> None:
    loop = make(lm, PLAIN, PlainTask())
    assert loop.units(loop.phases[0]) == 0
    assert place(loop) == (1, 0.0)
    units = loop.run()
    next(units)
    assert [phase.name for phase in loop.phases[1:4]] == ["evaluate", "diagnose_before", "e_step"]
    assert loop.units(loop.phases[2]) == 0
    assert place(loop) == (3, 0.0)
    for _ in units:
        pass
    assert place(loop) == (len(loop.phases), 0.0)


SMOKE = ["em", "--task", "arithmetic,random_numbers", "--preset", "smoke", "--precision", "fp32"]


@pytest.mark.parametrize(("task", "phase", "unit"), [("arithmetic", "init", 1), ("random_numbers", "e_step", 1)])
def test_stopped_and_gone_on_with(
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    task: str,
    phase: str,
    unit: int,
) -> None:
    command = [*SMOKE, "--model", str(tiny_model_dir)]
    assert main([*command, "--output-dir", str(tmp_path / "whole")]) == 0
    show = Display.on_unit

    def interrupt(self: Display, loop: Method, at: Phase, info: Mapping[str, Any]) -> None:
        show(self, loop, at, info)
        if (loop.task.name, at.name, loop.state.unit) == (task, phase, unit):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Display, "on_unit", interrupt)
        assert main([*command, "--output-dir", str(tmp_path / "parts")]) == 130
    resume = next(line.strip() for line in capsys.readouterr().out.splitlines() if line.endswith(" --resume"))
    assert not (tmp_path / "parts" / task / "results.json").exists()
    assert main(shlex.split(resume)[1:]) == 0
    for name in ("arithmetic", "random_numbers"):
        whole, parts = (tmp_path / run / name for run in ("whole", "parts"))
        for adapter in "pq":
            file = Path(adapter) / "adapter_model.safetensors"
            assert (whole / file).read_bytes() == (parts / file).read_bytes()
        a, b = (json.loads((run / "results.json").read_text()) for run in (whole, parts))
        assert {**a, "resources": None} == {**b, "resources": None}


def test_the_command(tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    command = [*SMOKE, "--model", str(tiny_model_dir), "--json", "--output-dir", str(folder)]
    assert main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed["tasks"]) == {"arithmetic", "random_numbers"}
    assert set(printed["tasks"]["arithmetic"]["accuracy"]["1"]) == {"q", "p"}
    assert set(printed["tasks"]["random_numbers"]["metrics"]["1"]) == {"q", "p"}
    for adapter in ("p", "q"):
        a, b = (load_file(folder / task / adapter / "adapter_model.safetensors") for task in printed["tasks"])
        assert a.keys() == b.keys()
        assert all(bool((a[name] == b[name]).all()) for name in a)
    assert main(["eval", str(folder / "random_numbers"), "--samples", "300", "--json"]) == 0
    capsys.readouterr()
    assert main(command) == 2
    assert "arithmetic: holds a run" in capsys.readouterr().err
    assert main([*SMOKE, "--model", str(tiny_model_dir), "--output-dir", str(folder / "arithmetic")]) == 2
    assert "holds a run; go on with it by --resume" in capsys.readouterr().err

    for checkpoint in (folder / "random_numbers" / "checkpoints").iterdir():
        shutil.rmtree(checkpoint)
    results = (folder / "arithmetic" / "results.json").read_bytes()
    assert main(["em", "--task", "arithmetic,random_numbers", "--output-dir", str(folder), "--resume"]) == 2
    assert "random_numbers: none" in capsys.readouterr().err
    assert (folder / "arithmetic" / "results.json").read_bytes() == results
    assert list((folder / "arithmetic" / "checkpoints").iterdir())


def test_the_documented_command_can_begin(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its tasks agree in what they have to."""
    text = (ROOT / "docs" / "several-tasks.md").read_text()
    command = next(line for line in text.splitlines() if line.startswith("latent-cot em"))
    begun: list[int] = []

    def stop(parts: list[Any], **_: Any) -> None:
        begun.append(len(parts))
        raise Stopped

    monkeypatch.setattr(mixture, "run_in_turns", stop)
    argv = [*shlex.split(command)[1:], "--model", str(tiny_model_dir), "--output-dir", str(tmp_path / "run")]
    assert main(argv) == 130
    assert begun == [2]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ([], ["--precision is auto for arithmetic and fp32 for random_numbers", "give one value for all"]),
        (
            ["--precision", "fp32"],
            ["--evaluation.every-round is True for arithmetic and False for random_numbers"],
        ),
    ],
)
def test_tasks_that_do_not_fit_leave_no_folder(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], parts: list[str]
) -> None:
    command = ["em", "--task", "arithmetic,random_numbers", "--model", str(tiny_model_dir), *flags]
    assert main([*command, "--output-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in parts), error
    assert not (tmp_path / "run").exists()


def test_folders_are_made_for_all_tasks_or_none(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SMOKE, "--model", str(tiny_model_dir), "--output-dir", str(tmp_path / "run")]
    other = tmp_path / "run" / "random_numbers" / "mine.txt"
    other.parent.mkdir(parents=True)
    other.touch()
    assert main(command) == 2
    assert "random_numbers: is not empty" in capsys.readouterr().err
    assert not (tmp_path / "run" / "arithmetic").exists() and other.exists()

    shutil.rmtree(tmp_path / "run")
    create = RunFolder.create

    def failing(path: Path, config: dict[str, Any]) -> RunFolder:
        if path.name == "random_numbers":
            raise UsageError("the disk is full")
        return create(path, config)

    monkeypatch.setattr(RunFolder, "create", failing)
    assert main(command) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--task", "arithmetic,arithmetic"], "name each task once"),
        (["--task", "arithmetic,"], "name each task once"),
        (["--task", "arithmetic,random_number"], "Did you mean"),
        (["--task", "arithmetic,random_numbers", "--print-config", "--json"], "--print-config prints YAML"),
        (["--task", "arithmetic,random_numbers", "--resume"], "no such folder"),
        (["--task", "arithmetic,random_numbers", "--resume", "--rounds", "2"], "with --resume a run goes on"),
    ],
)
def test_what_the_command_refuses(flags: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--preset", "smoke", *flags]) == 2
    assert part.lower() in capsys.readouterr().err.lower()


def test_the_configurations_of_all_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--task", "arithmetic,random_numbers", "--rounds", "1", "--print-config"]) == 0
    first, second = capsys.readouterr().out.split("---\n")
    assert "objective: pooled-subtb" in first and "objective: prefix-tb" in second
    assert "rounds: 1" in first and "rounds: 1" in second
