"""Whatever the user gets wrong: status 2, an error that names it and says what to do, no traceback."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import latent_cot
from latent_cot.types import UsageError
from tests.cli.conftest import SMOKE, Called, Cli
from tests.tiny import build_tiny_model

LOADING = re.compile(r"(Loading .+ \.\.\.\n)?")
"""All that a command may say on standard output before it fails."""


def assert_refused(called: Called, *parts: str) -> None:
    """Status 2, one error line with all of `parts`, and nothing on standard output, unless the model was loaded."""
    assert called.status == 2, called
    assert LOADING.fullmatch(called.out)
    assert "Traceback" not in called.err
    assert called.err.startswith("error: "), called.err
    assert called.err.count("\n") == 1, called.err
    for part in parts:
        assert part in called.err


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["tols"], ["'tols'", "Did you mean 'tools'?"]),
        (["--helpp"], ["unknown option '--helpp'"]),
        (["em", "--preset", "papr"], ["--preset papr", "Did you mean 'paper'?"]),
        (["em", "--task", "arithmetic,random_numbers"], ["--task arithmetic,random_numbers: ", "give one task"]),
        (["em", "--config", "absent.yaml"], ["absent.yaml: cannot be read", "No such file"]),
        (["em", "--e-step.replay-share=-1"], ["--e-step.replay-share is -1"]),
        (["em", "--rounds", "-1"], ["--rounds is -1"]),
        (["em", "--resume", "--output-dir", "absent"], ["absent", "no run folder", "--output-dir"]),
        (["em", "--output-dir", "/dev/null/run"], ["--output-dir /dev/null/run", "another folder"]),
        (["eval", "absent-model"], ["absent-model", "no folder"]),
        (["eval", "smollm2-135"], ["smollm2-135", "Did you mean 'smollm2-135m'?"]),
        (["eval", ".", "--votes", "0"], ["--votes is 0"]),
        (
            ["eval", ".", "--votes", "3", "--temperature", "0"],
            ["--votes is 3", "give a --temperature above 0, or --votes 1"],
        ),
        (["eval", ".", "--temperature", "nan"], ["--temperature is nan"]),
        (["eval", ".", "--temperature", "1e39"], ["--temperature is 1e+39", "from 0.001 to 1000"]),
        (["sample", ".", "--question", "1 + 1", "--temperature", "1e-45"], ["--temperature is", "0, which is greedy"]),
        (["eval", "."], ["neither a run (no config.yaml) nor a model (no config.json)"]),
        (["eval", "../absent"], ["absent: no such folder", "--output-dir of a run"]),
        (["eval", "runs/nope"], ["runs/nope: no such folder", "--output-dir of a run"]),
        (["report", "nope"], ["nope: no folder and no model", "--output-dir of a run"]),
        (["eval", "a" * 300], ["aaa...: a name of more than 255 bytes"]),
        (["sample", "a" * 300, "--question", "1 + 1"], ["aaa...: a name of more than 255 bytes"]),
        (["sample", ".", "--question", "1 + 1", "-n", "0"], ["-n is 0"]),
    ],
)
def test_bad_arguments(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(cli(*argv), *parts)
    assert not list(tmp_path.iterdir())  # nothing is left behind


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["em", "--e-step.learnin-rate", "1"], ["--e-step.learnin-rate", "--e-step.learning-rate"]),
        (["em", "--e-step.learning-rate", "fast"], ["--e-step.learning-rate", "fast"]),
        (["em", "--e-step.decay", "cosin"], ["--e-step.decay", "cosine"]),
        (["em", "--e-step.objective", "sub-tb"], ["--e-step.objective", "subtb"]),
        (["em", "--seed"], ["--seed"]),
        (["eval"], ["required"]),
        (["sample", "x"], ["--question"]),
        (["tasks", "--jsn"], ["--jsn", "--json"]),
    ],
)
def test_bad_flags(cli: Cli, argv: list[str], parts: list[str]) -> None:
    """Found by the parser of the flags, which has a form of its own for errors."""
    called = cli(*argv)
    assert called.status == 2
    assert not called.out
    assert "Traceback" not in called.err
    for part in parts:
        assert part in called.err


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--task", "arithmetik"], ["'arithmetik'", "Did you mean 'arithmetic'?"]),
        (["--task", "absent.py"], ["absent.py: no such task file"]),
        (["--model", "absent-model"], ["--model absent-model"]),
        (["--model", "./absent"], ["--model ./absent", "no such folder"]),
        (["--evaluation.splits", "3-operandz"], ["'3-operandz'", "Did you mean '3-operands'?"]),
        (["--data.options", "operandz", "3"], ["'operandz'", "Did you mean 'operands'?"]),
        (["--data.unlabelled", "2000000"], ["2000000 questions"]),
        (["--rollout.tools", "calculater"], ["'calculater'", "Did you mean 'calculator'?"]),
        (["--lora.target-modules", "q_prj"], ["--lora.target-modules q_prj"]),
        (["--rollout.max-tokens", "5"], ["--rollout.max-tokens"]),
    ],
)
def test_bad_settings_leave_no_folder(
    cli: Cli, tmp_path: Path, tiny_model_dir: Path, flags: list[str], parts: list[str]
) -> None:
    folder = tmp_path / "run"
    model = [] if "--model" in flags else ["--model", tiny_model_dir]
    assert_refused(cli(*SMOKE, *model, "--output-dir", folder, *flags), *parts)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["no examples"]),
        ('{"question": "1 + 1", "answer": 3}\n', [":1", "answer is 3", "1 + 1 = 2"]),
        ('{"question": "1 + 1", "answer": 2}\n{"question": \n', [":2", "not valid JSON"]),
        ('{"question": "1 + 1"}\n', [":1", "'answer' is missing"]),
        ('{"question": "__import__(1)", "answer": 2}\n', [":1", "write it like"]),
    ],
)
def test_bad_data(
    cli: Cli, tmp_path: Path, tiny_model_dir: Path, finished: Path, content: str, parts: list[str]
) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(content)
    train = cli(*SMOKE, "--model", tiny_model_dir, "--output-dir", tmp_path / "run", "--data.train-file", file)
    assert_refused(train, str(file), *parts)
    assert_refused(cli("eval", finished, "--data", file), str(file), *parts)


def test_a_run_is_not_overwritten(cli: Cli, tiny_model_dir: Path, finished: Path) -> None:
    before = (finished / "results.json").read_bytes()
    called = cli(*SMOKE, "--model", tiny_model_dir, "--output-dir", finished)
    assert_refused(called, f"--output-dir {finished}", "--resume")
    assert (finished / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--e-step.steps", 3], ["--e-step.steps", "leave it out"]),
        (["--e_step.steps=3"], ["--e-step.steps", "leave it out"]),
        (["--seed", 1], ["--seed 1", "has seed 0"]),
        (["--model", "smollm2-135m"], ["--model smollm2-135m", "has model"]),
        (["--task", "other"], ["--task other", "has task arithmetic"]),
        (["--rounds", 0], ["--rounds 0", "has rounds 1"]),
        (["--no-safeguard"], ["--safeguard False", "has safeguard True"]),
        (["--preset", "paper"], ["--preset paper: ", " there, and ", "in the run in"]),
    ],
)
def test_resuming_with_other_settings(cli: Cli, finished: Path, flags: list[object], parts: list[str]) -> None:
    assert_refused(cli("em", "--output-dir", finished, "--resume", *flags), *parts)


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["eval", "--split", "3-operandz"], ["'3-operandz'"]),
        (["eval", "--task", "other"], ["--task other", "leave it out"]),
        (["sample", "--question", "six minus one"], ["'six minus one'", "write it like"]),
        (["sample", "--question", "1 + 1", "--answer", "3"], ["the answer is 2"]),
    ],
)
def test_bad_questions_to_a_run(cli: Cli, finished: Path, argv: list[str], parts: list[str]) -> None:
    assert_refused(cli(argv[0], finished, *argv[1:]), *parts)


def test_an_untrained_model_has_no_sampler(cli: Cli, tiny_model_dir: Path) -> None:
    assert_refused(cli("eval", tiny_model_dir, "--reasoner", "q"), "--reasoner q", "p only")


def _cut_short(folder: Path, _: Path) -> None:
    file = folder / "p" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def _of_another_model(folder: Path, scratch: Path) -> None:
    """The base model is replaced by one of another architecture."""
    other = build_tiny_model(scratch / "gpt2", variant="gpt2")
    config = folder / "config.yaml"
    lines = [f"model: {other}" if line.startswith("model:") else line for line in config.read_text().splitlines()]
    config.write_text("\n".join(lines))


def _broken_config(folder: Path, _: Path) -> None:
    (folder / "config.yaml").write_text("rounds: [")


def _unknown_setting(folder: Path, _: Path) -> None:
    with (folder / "config.yaml").open("a") as file:
        file.write("colour: red\n")


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (_cut_short, "adapter_model.safetensors"),
        (_of_another_model, "adapter of another model"),
        (_broken_config, "config.yaml"),
        (_unknown_setting, "unknown setting 'colour'"),
    ],
)
def test_a_damaged_run(
    cli: Cli, finished: Path, tmp_path: Path, damage: Callable[[Path, Path], None], part: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    damage(folder, tmp_path)
    called = cli("eval", folder, "--split", "3-operands", "--size", 2)
    assert called.status == 2
    assert LOADING.fullmatch(called.out)
    assert "Traceback" not in called.err
    assert part in called.err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["compare", "--preset", "smoke", "--dry-run", "--json"], "--json: --dry-run prints commands"),
        (["em", "--preset", "smoke", "--print-config", "--json"], "--json: --print-config prints YAML"),
    ],
)
def test_json_of_what_is_none(cli: Cli, arguments: list[str], part: str) -> None:
    called = cli(*arguments)
    assert called.status == 2 and part in called.err and not called.out


def test_a_finished_run_needs_no_checkpoints(cli: Cli, finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    for file in folder.glob("checkpoints/*/*.json"):
        file.write_text("{")
    for command in ("eval", "sample"):
        asked = ["--split", "3-operands", "--size", 2] if command == "eval" else ["--question", "1 + 2", "-n", 2]
        found, expected = (cli(command, one, *asked, "--json") for one in (folder, finished))
        assert found.status == expected.status == 0, found.err
        assert found.out.replace(str(folder), str(finished)) == expected.out
    (folder / "results.json").unlink()
    called = cli("sample", folder, "--question", "1 + 2")
    assert called.status == 2 and "no checkpoint is intact" in called.err


def test_a_checkpoint_cut_short(cli: Cli, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for file in folder.glob("checkpoints/*/p/adapter_model.safetensors"):  # of a slow run there are two
        file.write_bytes(file.read_bytes()[:1000])
    called = cli("em", "--output-dir", folder, "--resume")
    assert called.status == 2
    assert "Traceback" not in called.err
    for part in ("adapter_model.safetensors has changed", "another --output-dir"):
        assert part in called.err


def test_a_hostile_name_cannot_steer_the_terminal(cli: Cli, tmp_path: Path) -> None:
    called = cli("eval", "\x1b]0;owned\x07[bold]x[/bold]\r")
    assert called.status == 2
    assert "\x1b" not in called.err and "\r" not in called.err and "\x07" not in called.err
    assert "\\x1b]0;owned\\x07[bold]x[/bold]\\r" in called.err


def test_a_run_that_is_not_there(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no name on the hub: those that are there are told."""
    for name in ("one", "two"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").touch()
    for argv in (["eval", tmp_path / "runs" / "tow"], ["export", tmp_path / "runs" / "tow", tmp_path / "out"]):
        assert_refused(cli(*argv), "tow: no such folder", "one, two")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()  # of models that were cloned from the hub, say: others may still be there
    called = cli("eval", "owner/name")
    assert called.status == 2 and "no such folder" not in called.err and "hub" in called.err
    assert "owner/name: no folder of a run, and as a model" in called.err and "--model owner" not in called.err
    for name in ("runs/nope", "nope", "absent/a/b"):
        with pytest.raises(UsageError, match=f"^{name}: "):
            latent_cot.load(name)
    (tmp_path / "all" / "em" / "seed0").mkdir(parents=True)
    (tmp_path / "all" / "em" / "seed0" / "config.yaml").touch()
    (tmp_path / "all" / "comparison.json").touch()
    assert_refused(cli("eval", tmp_path / "all"), "all: a comparison", "such as", "em/seed0")
    assert_refused(cli("eval", tmp_path / "all" / "em"), "em: a folder of runs", "such as", "em/seed0")
    assert_refused(cli("eval", tmp_path / "runs"), "runs: a folder of runs; give one of them, such as", "runs/one")
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "adapter_config.json").touch()
    assert_refused(cli("sample", tmp_path / "exported", "--question", "1 + 1"), "an exported adapter", "with --merge")
    assert_refused(cli("compare", "--output-dir", tmp_path / "runs" / "one"), "holds a run; give another folder")


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--method", "decode", "--decode.strategy", "beam"], ["--decode.strategy beam", "has right answers"]),
        (["--method", "sft", "--data.demonstrations", "0"], ["--method sft learns --data.demonstrations"]),
        (
            ["--m-step.target", "candidates", "--augmentation.concat-questions", "0"],
            ["--m-step.target candidates", "give joint or answer"],
        ),
        (["--task", "random_numbers", "--m-step.weighted"], ["--m-step.weighted", "a reward of its own"]),
        (["--rollout.tools", "calculator", "calculator"], ["--rollout.tools calculator: its trigger '='"]),
        # What would change no reward.
        (
            ["--task", "random_numbers", "--e-step.answer-weight", "2"],
            ["--e-step.answer-weight", "a reward of its own"],
        ),
        (["--task", "random_numbers", "--e-step.prior", "sampler"], ["--e-step.prior", "a reward of its own"]),
        (["--task", "random_numbers", "--e-step.copy-penalty", "5"], ["--e-step.copy-penalty", "has a Y"]),
        (
            ["--task", "random_numbers", "--method", "ppo", "--e-step.answer-weight", "2"],
            ["--e-step.answer-weight", "a reward of its own"],
        ),
        (
            ["--method", "forward-kl", "--e-step.wrong-candidate-penalty", "5"],
            ["wrong-candidate-penalty", "candidates"],
        ),
        (
            ["--e-step.answer-reward", "normalised"],
            ["--e-step.answer-reward", "no question of arithmetic has candidates"],
        ),
        (["--e-step.wrong-candidate-penalty", "5"], ["--e-step.wrong-candidate-penalty", "candidates"]),
        (
            ["--e-step.prior", "sampler", "--e-step.score-tool-tokens"],
            ["--e-step.score-tool-tokens", "before its training"],
        ),
    ],
)
def test_what_a_method_cannot_do_is_told_before_a_model_is_loaded(
    cli: Cli, tmp_path: Path, argv: list[str], parts: list[str]
) -> None:
    folder = tmp_path / "run"
    assert_refused(cli("fit", *argv, "--model", "absent-model", "--output-dir", folder), *parts)
    assert not folder.exists()


@pytest.mark.parametrize("key", ["model", "data.train_file"])
def test_a_run_whose_files_were_moved_says_which(cli: Cli, finished: Path, tmp_path: Path, key: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    section, _, name = key.rpartition(".")
    (config[section] if section else config)[name] = "/no/such/place"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    parts = [f"{folder / 'config.yaml'}", f"`{key}` is /no/such/place", "not there any more"]
    assert_refused(cli("eval", folder), *parts)
    assert_refused(cli("em", "--output-dir", folder, "--resume"), *parts)
    if key != "model":  # whoever answers needs no data
        assert cli("sample", folder, "--question", "1 + 2", "-n", 1).status == 0


@pytest.mark.parametrize("argv", [["eval", "locked"], ["report", "locked"], ["em", "--output-dir", "locked"]])
def test_a_folder_that_may_not_be_looked_into(cli: Cli, monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    """As the kernel has it, but for root, whom it refuses nothing."""

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    monkeypatch.setattr(os.path, "exists", lambda _: True)
    assert_refused(cli(*argv), "locked", "Permission denied; have its permissions changed, or give another path")


def test_others_may_read_a_run_as_the_umask_has_it(finished: Path) -> None:
    """safetensors' own writer lets nobody else."""
    files = [file for file in finished.rglob("*") if file.is_file() and not file.name.startswith(".")]
    assert {oct(file.stat().st_mode) for file in files} == {oct((finished / "config.yaml").stat().st_mode)}
