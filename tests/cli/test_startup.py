"""Help and lists come at once, and a mistyped name is answered."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import latent_cot
from latent_cot import tasks, tools
from latent_cot.cli import COMMANDS
from latent_cot.cli.fit import COMMON
from latent_cot.config.settings import flag
from tests.cli.conftest import Cli, environment

QUICK = [
    *("--help", "em --help", "em --print-config", "eval --help", "tasks", "tools"),
    *("fit --help", "compare --help", "compare --dry-run", "methods"),
    *("plan --help", "plan --model 7b --gpus 8 --gpu h100"),
    "plan --gpu h100 --prompt-tokens 16 --chain-tokens 24 --answer-tokens 8 --states 3",
]


@pytest.fixture(scope="module")
def begun() -> dict[str, tuple[int, bool, list[str]]]:
    """Command -> its status, whether it has printed anything, and what is heavy among all that has been imported."""
    code = (
        "import io, json, sys; from contextlib import redirect_stdout; from latent_cot.cli import main; found = {}\n"
        f"for line in {QUICK}:\n"
        "    with redirect_stdout(io.StringIO()) as out: status = main(line.split())\n"
        "    heavy = {'torch', 'transformers', 'peft', 'datasets', 'sympy'} & set(sys.modules)\n"
        "    found[line] = status, bool(out.getvalue()), sorted(heavy)\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    return {line: tuple(of) for line, of in json.loads(done.stdout).items()}


@pytest.mark.parametrize("line", QUICK)
def test_it_does_not_wait_for_torch(begun: dict[str, tuple[int, bool, list[str]]], line: str) -> None:
    assert begun[line] == (0, True, [])


def test_help_names_every_command(cli: Cli) -> None:
    called = cli("--help")
    assert called.status == 0
    assert all(f"  {name}" in called.out for name in COMMANDS)
    assert cli().status == 2  # without a command


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(cli: Cli, command: str) -> None:
    called = cli(command, "--help")
    assert called.status == 0
    assert f"usage: latent-cot {command}" in called.out
    assert not called.err


def test_every_setting_is_explained(cli: Cli) -> None:
    out = cli("em", "--help-all").out
    for name in ("--task", "--e-step.learning-rate", "--evaluation.splits", "--resume", "--config"):
        assert name in out
    assert "AdamW's peak learning rate." in out


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("argv", [[], *([name] for name in COMMANDS)])
def test_help_breaks_no_word(cli: Cli, monkeypatch: pytest.MonkeyPatch, argv: list[str], width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = cli(*argv, "--help").out.splitlines()
    assert all(len(line) <= width or len(line.split()) <= 2 for line in lines), max(lines, key=len)


@pytest.mark.parametrize("argv", [[], *([name] for name in COMMANDS if name != "fit")])  # whose METHODs may not fit
def test_help_has_the_same_words_at_any_width(cli: Cli, monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    found = []
    for width in (60, 80, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        found.append({word for word in cli(*argv, "--help").out.split() if set(word) - set("-─│╭╮╰╯")})
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("command", ["eval", "tasks"])
def test_help_on_a_terminal_is_that_of_a_pipe(command: str) -> None:
    """Colours are no characters of a line, and would be counted as such."""
    ours, theirs = pty.openpty()
    run = {**environment(), "COLUMNS": "80", "TERM": "xterm-256color"}
    command_line = [sys.executable, "-m", "latent_cot.cli", command, "--help"]
    shown = b""
    with subprocess.Popen(command_line, env=run, stdout=theirs, stderr=theirs):
        os.close(theirs)
        with suppress(OSError):  # at the end
            while part := os.read(ours, 65536):
                shown += part
    os.close(ours)
    piped = subprocess.run(command_line, env=run, capture_output=True, text=True, check=True).stdout
    assert shown.decode().replace("\r\n", "\n") == piped


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", ["em", "fit"])
def test_the_common_settings_fit_three_screens(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    out = cli(command, "--help").out
    assert len(out.splitlines()) <= 72 and max(map(len, out.splitlines())) <= width
    places = [out.index(f"\n  {flag(path)} ") for path in COMMON if (command, path) != ("em", "method")]
    assert places == sorted(places)
    assert all(f"\n  {name}" in out for name in ("--preset", "--config", "--resume", "--json"))
    assert "--help-all" in out and "--e-step.warmup" not in out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_an_output_that_cannot_be_written() -> None:
    command = [sys.executable, "-m", "latent_cot.cli", "tools"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the disk is full"), done.stderr


def test_json_stands_alone() -> None:
    """Somebody's tool prints while it is loaded, and so does a library in C++, past Python."""
    program = (
        "import os, sys\nfrom latent_cot import tools\nfrom latent_cot.cli import main\nload = tools.load\n"
        "tools.load = lambda name: (print('a tool'), os.write(1, b'a library\\n'), load(name))[-1]\n"
        "sys.exit(main(['tools', '--json']))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert [tool["name"] for tool in json.loads(done.stdout)] == tools.names()
    assert {"a tool", "a library"} <= set(done.stderr.split("\n"))


@pytest.mark.parametrize("argv", [["tools"], ["--help"], ["em", "--help"]])
def test_nobody_reads_to_the_end(argv: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "latent_cot.cli", *argv]
    with open(writer, "w") as closed:
        done = subprocess.run(command, env=environment(), stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_answers_are_written_though_nobody_reads_the_figures(finished: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    answers = tmp_path / "answers.jsonl"
    command = [sys.executable, "-m", "latent_cot.cli", *map(str, ("eval", finished, "--size", 2, "--answers", answers))]
    with open(writer, "w") as closed:
        done = subprocess.run(command, env=environment(), stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert answers.read_text()


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"latent-cot {latent_cot.__version__}\n"


@pytest.mark.parametrize(("command", "names"), [("tasks", tasks.names()), ("tools", tools.names())])
def test_lists(cli: Cli, command: str, names: list[str]) -> None:
    called = cli(command, "--json")
    assert [entry["name"] for entry in json.loads(called.out)] == names
    text = cli(command).out
    assert all(f"{name}: " in text for name in names)
    assert "README.md" in text
