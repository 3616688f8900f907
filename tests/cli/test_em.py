"""`latent-cot em`: a run from end to end, stopped and resumed, and where its settings come from."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from latent_cot.config.settings import from_dict
from latent_cot.methods.method import Method
from latent_cot.methods.state import Phase
from latent_cot.report.terminal import Display
from tests.cli.conftest import SMOKE, Cli, environment, spawn


def units(folder: Path) -> Counter[tuple[int, str, int]]:
    """How often each unit of work is in the event log."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return Counter((e["round"], e["kind"], e["unit"]) for e in events if e["kind"] != "note")


def adapters(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name / "adapter_model.safetensors").read_bytes() for name in "pq"}


def test_a_run_from_end_to_end(default_run: Path) -> None:
    results = json.loads((default_run / "results.json").read_text())
    assert set(results["accuracy"]) == {"0", "1"}
    assert set(results["accuracy"]["1"]) == {"p"}, "q has read the answers"
    assert set(results["accuracy"]["1"]["p"]) == {"3-operands", "4-operands"}
    assert results["accuracy"]["1"]["p"]["3-operands"]["n"] == 8
    assert json.loads((default_run / "run.json").read_text())["status"] == "finished"
    assert all(n == 1 for n in units(default_run).values())
    config = from_dict(yaml.safe_load((default_run / "config.yaml").read_text()), "x")
    assert config.rounds == 1  # the preset's
    assert Path(config.model).is_absolute()


def test_json_leaves_standard_output_alone(tmp_path: Path, tiny_model_dir: Path) -> None:
    folder = tmp_path / "run"
    process = spawn(*SMOKE, "--rounds", 0, "--model", tiny_model_dir, "--output-dir", folder, "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["run"] == str(folder)
    assert json.loads(out)["accuracy"].keys() == {"0"}
    assert "init 2/2" in err  # plain lines where there is no terminal
    assert "\x1b" not in err
    assert "Traceback" not in err


def test_a_signal_saves_and_a_resumed_run_is_the_same_run(
    cli: Cli,
    tmp_path: Path,
    tiny_model_dir: Path,
    default_run: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "run"
    show = Display.on_unit

    def interrupt(self: Display, loop: Method, phase: Phase, info: Mapping[str, Any]) -> None:
        show(self, loop, phase, info)
        if (phase.name, loop.state.unit) == ("e_step", 1):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Display, "on_unit", interrupt)
        stopped = cli(*SMOKE, "--model", tiny_model_dir, "--output-dir", folder)
    assert stopped.status == 130
    assert f"latent-cot em --output-dir {folder} --resume" in stopped.out
    assert not (folder / "results.json").exists()
    assert json.loads((folder / "run.json").read_text())["status"] == "stopped"

    resumed = cli("em", "--output-dir", folder, "--resume", "--task", "arithmetic", "--seed", 0, "--json")
    assert resumed.status == 0, resumed.err
    assert units(folder) == units(default_run)
    assert resumed.json["accuracy"] == json.loads((default_run / "results.json").read_text())["accuracy"]
    assert adapters(folder) == adapters(default_run)


def test_the_same_command_starts_goes_on_and_leaves_what_is_finished(
    cli: Cli, tmp_path: Path, tiny_model_dir: Path, default_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a job does that a cluster stops and starts again."""
    folder = tmp_path / "run"
    command = [*SMOKE, "--model", tiny_model_dir, "--seed", 0, "--output-dir", folder, "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(Display, "on_unit", lambda *_: signal.raise_signal(signal.SIGINT))
        assert cli(*command).status == 130
    assert len(units(folder)) == 1
    done = cli(*command)
    assert done.status == 0 and "The bound on it (ELBO) in round 1: -" in done.out
    assert units(folder) == units(default_run) and adapters(folder) == adapters(default_run)
    elbo = json.loads((folder / "results.json").read_text())["elbo"]["1"]
    assert f"after the M-step {elbo['after']:.2f}" in done.out
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json*")}
    again = cli(*command, "--json")
    assert again.status == 0 and "Finished already" in again.err
    assert again.json["accuracy"] == json.loads((default_run / "results.json").read_text())["accuracy"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.json*")} == before


def test_a_finished_run_goes_on_to_more_rounds(
    cli: Cli, tmp_path: Path, tiny_model_dir: Path, default_run: Path
) -> None:
    longer, whole = Path(shutil.copytree(default_run, tmp_path / "longer")), tmp_path / "whole"
    called = cli("em", "--output-dir", longer, "--resume", "--rounds", 2)
    assert called.status == 0, called.err
    assert "The run goes on to 2 rounds; it had 1." in called.out
    assert cli(*SMOKE, "--model", tiny_model_dir, "--output-dir", whole, "--rounds", 2).status == 0
    assert units(longer) == units(whole) and adapters(longer) == adapters(whole)
    settings = [yaml.safe_load((folder / "config.yaml").read_text()) | {"output_dir": ""} for folder in (longer, whole)]
    assert settings[0] == settings[1]


def test_a_round_that_was_the_last_one_stays_tested(cli: Cli, tmp_path: Path, tiny_model_dir: Path) -> None:
    """Phases are counted: without that test of round 1 the run would be somewhere else."""
    folder = tmp_path / "run"
    command = [*SMOKE, "--model", tiny_model_dir, "--evaluation.no-every-round", "--output-dir", folder, "--json"]
    first = cli(*command)
    assert first.status == 0, first.err
    longer = cli("em", "--output-dir", folder, "--resume", "--rounds", 2, "--json")
    assert longer.status == 0, longer.err
    assert list(first.json["accuracy"]) == ["1"] and list(longer.json["accuracy"]) == ["1", "2"]
    assert longer.json["accuracy"]["1"] == first.json["accuracy"]["1"]


def test_a_run_without_tests_goes_on_to_more_rounds(cli: Cli, tmp_path: Path, tiny_model_dir: Path) -> None:
    folder, file = tmp_path / "run", tmp_path / "untested.yaml"
    file.write_text("evaluation: {splits: [], every_round: false}\n")
    command = [*SMOKE, "--config", file, "--model", tiny_model_dir, "--output-dir", folder]
    first = cli(*command)
    assert first.status == 0, first.err
    longer = cli("em", "--output-dir", folder, "--resume", "--rounds", 2)
    assert longer.status == 0, longer.err


def test_code_that_a_whole_command_names_is_the_users_own(
    cli: Cli, tmp_path: Path, tiny_model_dir: Path, default_run: Path
) -> None:
    folder, tool = Path(shutil.copytree(default_run, tmp_path / "run")), tmp_path / "tool.py"
    tool.touch()
    file = folder / "config.yaml"
    settings = yaml.safe_load((default_run / "config.yaml").read_text())
    settings["rollout"]["tools"] = [str(tool)]
    file.write_text(yaml.safe_dump(settings))
    resume = ["--output-dir", folder, "--resume", "--print-config"]
    for argv in (["em", *resume], ["em", *resume, "--rollout.tools", tool]):
        refused = cli(*argv)
        assert refused.status == 2 and "names code to run" in refused.err and "--trust-code" in refused.err
    assert cli(*SMOKE, "--model", tiny_model_dir, *resume, "--rollout.tools", tool).status == 0


def test_a_run_does_not_go_on_with_other_training_data(
    cli: Cli, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has saved refers to questions by their place."""
    rows = [json.dumps({"question": f"{k} + 1", "answer": k + 1}) + "\n" for k in range(9)]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(rows))
    command = [*SMOKE, "--model", tiny_model_dir, "--output-dir", tmp_path / "run", "--data.train-file", file]
    sizes = [
        "--data.demonstrations",
        0,
        "--data.unlabelled",
        6,
        "--data.validation",
        2,
        "--p-init",
        "base",
        "--rounds",
        1,
    ]
    with monkeypatch.context() as patch:
        patch.setattr(Display, "on_unit", lambda *_: signal.raise_signal(signal.SIGINT))
        assert cli(*command, *sizes).status == 130
    file.write_text("".join(reversed(rows)))
    refused = cli("em", "--output-dir", tmp_path / "run", "--resume")
    assert refused.status == 2
    assert "training data are not those that this run began with" in refused.err and str(file) in refused.err
    file.write_text("".join(rows))
    assert cli("em", "--output-dir", tmp_path / "run", "--resume").status == 0


def test_a_finished_run_without_checkpoints_is_not_begun_anew(
    cli: Cli, default_run: Path, tmp_path: Path, tiny_model_dir: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(default_run, folder)
    shutil.rmtree(folder / "checkpoints")
    files = {path: path.read_bytes() for path in folder.rglob("*.json*")}
    assert "Finished already" in cli("em", "--output-dir", folder, "--resume").out
    refused = cli("em", "--output-dir", folder, "--resume", "--rounds", 2)
    assert refused.status == 2
    assert "is finished, and its checkpoints are gone" in refused.err
    assert {path: path.read_bytes() for path in folder.rglob("*.json*")} == files
    assert cli("eval", folder, "--split", "3-operands", "--size", 2).status == 0
    assert cli("sample", folder, "--question", "1 + 2 + 3").status == 0
    assert cli("export", folder, tmp_path / "exported").status == 0


@pytest.mark.parametrize("output", ["/dev/full", "closed pipe"])
def test_a_run_outlives_its_output(tmp_path: Path, tiny_model_dir: Path, output: str) -> None:
    if output == "/dev/full" and not Path(output).exists():
        pytest.skip("there is no /dev/full")
    reader, writer = os.pipe()
    os.close(reader)
    folder = tmp_path / "run"
    command = [*SMOKE, "--rounds", "0", "--model", str(tiny_model_dir), "--output-dir", str(folder)]
    with open(writer, "w") as closed, open(output if output == "/dev/full" else os.devnull, "w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "latent_cot.cli", *command],
            env=environment(),
            stdout=full if output == "/dev/full" else closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
            check=False,
        )
    assert json.loads((folder / "run.json").read_text())["status"] == "finished", process.stderr
    assert "Traceback" not in process.stderr
    if output == "closed pipe":
        assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_run_without_enough_memory_says_what_to_do(
    cli: Cli, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    folder = tmp_path / "run"
    monkeypatch.setattr(Display, "on_unit", fail)
    called = cli(*SMOKE, "--rounds", "0", "--model", tiny_model_dir, "--output-dir", folder)
    assert called.status == 2 and "out of memory" in called.err
    assert "lower max_batch_tokens" in " ".join(called.err.split())
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"


CLOSED = """
import json, os, signal, sys
for number in (0, 1, 2):
    os.close(number)
sys.stdin = sys.stdout = sys.stderr = None
from latent_cot.cli import main
from latent_cot.report.terminal import Display
Display.on_unit = lambda *_: os.kill(os.getpid(), signal.SIGHUP)
sys.exit(main(json.loads(sys.argv[1])))
"""


def test_a_run_whose_terminal_is_closed_is_saved(tmp_path: Path, tiny_model_dir: Path) -> None:
    folder = tmp_path / "run"
    command = [*SMOKE, "--rounds", "0", "--model", str(tiny_model_dir), "--output-dir", str(folder)]
    process = subprocess.run(
        [sys.executable, "-c", CLOSED, json.dumps(command)], env=environment(), timeout=100, check=False
    )
    assert process.returncode == 128 + signal.SIGHUP
    assert json.loads((folder / "run.json").read_text())["status"] == "stopped"
    assert len(units(folder)) == 1 and list((folder / "checkpoints").iterdir())
    assert (folder / ".lock").read_bytes() == b""  # what was to be said on standard error is in no file


def test_a_run_that_fails_says_so(
    cli: Cli, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def fail(*_: Any) -> None:
        raise RuntimeError("the GPU has fallen off the bus")

    with monkeypatch.context() as patch:
        patch.setattr(Display, "on_unit", fail)
        with pytest.raises(RuntimeError):
            cli(*SMOKE, "--rounds", "0", "--model", tiny_model_dir, "--output-dir", folder)
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    assert "Failed: RuntimeError: the GPU has fallen off the bus" in (folder / "events.jsonl").read_text()
    assert cli("em", "--output-dir", folder, "--resume").status == 0
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def test_a_second_signal_aborts_at_once(
    cli: Cli, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt_twice(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Display, "on_unit", interrupt_twice)
    called = cli(*SMOKE, "--model", tiny_model_dir, "--output-dir", tmp_path / "run")
    assert called.status == 130
    assert "error: interrupted" in called.err
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_to_a_process(cli: Cli, tmp_path: Path, tiny_model_dir: Path) -> None:
    folder = tmp_path / "run"
    more = ["--model", tiny_model_dir, "--output-dir", folder, "--init-step.steps", 60, "--rounds", 0]
    process = spawn(*SMOKE, *more)
    deadline = time.monotonic() + 60
    while not (folder / "events.jsonl").exists() or '"init"' not in (folder / "events.jsonl").read_text():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "--resume" in out
    assert "Traceback" not in err
    done = sum(units(folder).values())
    assert 0 < done < 60

    assert cli("em", "--output-dir", folder, "--resume").status == 0
    assert all(n == 1 for n in units(folder).values())
    assert max(unit for _, kind, unit in units(folder) if kind == "init") == 60


def test_flags_override_the_file_and_the_file_the_preset(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("{rounds: 5, seed: 6, e_step: {steps: 7, huber_delta: 1.5}}")
    flags = ["--seed", 8, "--e-step.huber-delta", "None", "--data.options", "digits", 2]
    printed = cli("em", "--preset=smoke", "--config", file, "--print-config", *flags)
    assert printed.status == 0
    config = from_dict(yaml.safe_load(printed.out), "x")
    assert (config.rounds, config.seed, config.e_step.steps) == (5, 8, 7)
    assert config.e_step.huber_delta is None
    assert config.data.options == {"digits": "2"}
    assert config.e_step.questions == 4  # the preset's
    assert config.output_dir is None  # that of another seed or method would be another


def test_the_options_of_a_task_are_put_together(cli: Cli, tmp_path: Path) -> None:
    """Those of the preset or the file, and of each flag."""
    file = tmp_path / "mine.yaml"
    file.write_text("data: {options: {digits: 1, operators: +}}\n")
    flags = ["--data.options", "digits", 2, "--rounds", 1, "--data.options", "operands", 3]
    printed = cli("em", "--config", file, "--print-config", *flags)
    assert printed.status == 0, printed.err
    assert yaml.safe_load(printed.out)["data"]["options"] == {"digits": "2", "operators": "+", "operands": "3"}


def test_settings_of_another_task_are_refused(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "printed.yaml"
    file.write_text(cli("em", "--print-config").out)
    refused = cli("em", "--config", file, "--task", "continuation", "--print-config")
    assert refused.status == 2 and "--task continuation: the settings in" in refused.err
    assert "are those of arithmetic" in refused.err.replace("\n", " ")
    assert cli("em", "--config", file, "--task", "arithmetic", "--seed", 3, "--print-config").status == 0


def test_the_printed_configuration_is_a_configuration(cli: Cli, tmp_path: Path) -> None:
    printed = cli("em", "--preset", "paper", "--print-config").out
    file = tmp_path / "printed.yaml"
    file.write_text(printed)
    assert cli("em", "--config", file, "--print-config").out == printed
