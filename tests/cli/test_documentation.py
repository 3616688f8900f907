"""Every command that the documentation shows is run, on the tiny model."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import SMOKE, Cli
from tests.conftest import ROOT


def documented() -> list[str]:
    """The latent-cot commands of all shell blocks, comments cut off."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("t*/README.md"))]
    commands = []
    for page in pages:
        for block in re.findall(r"^```(?:sh)?\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            for line in block.splitlines():
                command = line.split("  #")[0].strip()
                if command.startswith("latent-cot "):
                    commands.append(command)
    return list(dict.fromkeys(commands))


def documented_benchmarks() -> list[str]:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    return [line.split("  #")[0].strip() for line in re.findall(r"^python -m benchmarks\..*$", text, re.MULTILINE)]


@pytest.mark.parametrize("command", documented_benchmarks())
def test_a_documented_benchmark_works(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In small, on the tiny model."""
    module, *arguments = shlex.split(command)[2:]
    if "--grpo-tokens" in arguments:
        pytest.importorskip("trl", reason="the extra `bench` is not installed")
    small = {"benchmarks.estep": ["--steps", "1"], "benchmarks.scaling": ["--repeats", "1", "--buffer-size", "1000"]}
    assert importlib.import_module(module).main([*arguments, "--model", "tiny", "--json", *small[module]]) == 0
    assert json.loads(capsys.readouterr().out)


def test_there_are_commands() -> None:
    assert len(documented()) >= 10
    assert len(documented_benchmarks()) >= 3


@pytest.mark.parametrize("command", documented())
def test_a_documented_command_works(
    command: str,
    cli: Cli,
    tmp_path: Path,
    tiny_model_dir: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("questions.jsonl").write_text('{"question": "12 + 7 - 5", "answer": 14}\n')
    Path("mine.yaml").write_text("rounds: 1\n")
    Path("variants.yaml").write_text("short: {method: em, overrides: {rounds: 1}}\nlong: {method: em}\n")
    for name, first in {"test.json": "60", "train.json": "70", "hw.json": "80"}.items():  # in the published form
        rows = [{"str_query": f"Question: {n} - 0 - 4 = ? Answer:", "num_sol": int(n) - 4} for n in (first, "90")]
        Path(name).write_text(json.dumps(rows[: 2 if name == "test.json" else 1]))
    command, _, target = command.partition(" > ")
    arguments = [str(tiny_model_dir) if word == "smollm2-135m" else word for word in shlex.split(command)[1:]]
    if arguments[0] == "verify":
        pytest.skip("its quick form is run by tests/test_verify.py; in full it takes minutes")
    if arguments[0] == "eval":
        arguments += ["--size", "3", "--max-tokens", "8"]
    if arguments[0] == "compare":
        # In full where it is meant to be quick; else what it would do is shown.
        quick = ["--set", "precision=fp32"] if "smoke" in arguments else ["--dry-run"]
        arguments += ["--model", str(tiny_model_dir), *quick]
    starts_a_run = arguments[0] in ("em", "fit") and not {"--resume", "--print-config"} & set(arguments)
    if starts_a_run:
        smoke = [arguments[0], *SMOKE[1:]]
        arguments = [*smoke, "--model", str(tiny_model_dir), *arguments[1:]]
    else:
        shutil.copytree(finished, "runs/mine")
    called = cli(*arguments)
    assert called.status == 0, called.err
    if target:
        assert called.out == (cli(*arguments).out), "not the same twice"
