"""Every command and block of code that the documentation shows is run, on the tiny model.

What a fenced block is, its language says: `sh` holds commands, a line each; `python` is run, all of a page's blocks as
one program; `json` and `yaml` have to be readable; `text`, and a block without a language, is no code. A `text` block
titled "prints" is what the Python block before it prints. A comment on the line before a block says the rest:

    <!-- file: NAME -->         it is this file, which lies in the folder where everything is run
    <!-- not run: REASON -->    it cannot be run here
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
import runpy
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from accelerate.state import AcceleratorState

from latent_cot import tasks
from latent_cot.cli import main
from latent_cot.config import settings
from latent_cot.planning import measure
from latent_cot.planning.hardware import GPUS
from tests import samples
from tests.cli.conftest import SMOKE, Cli
from tests.conftest import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(path for folder in ("tasks", "tools") for path in (ROOT / folder).rglob("README.md")),
]

BLOCK = re.compile(
    r"^(?:<!-- (?P<kind>file|not run): (?P<note>.*?) -->\n)?"
    r'^```(?P<language>\w*)(?: title="(?P<title>.*?)")?\n(?P<text>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)

NAME = re.compile(r"`(latent_cot(?:\.(?!(?:py|json|yaml)`)\w+)+)`")
"""Of code, not of a file."""

SETTING_UP = ("python3 -m venv ", ".venv/bin/", "source .venv/", ".ci/run", "pip install ", "python -m pytest ")
"""How commands begin that set up and test the project: CI does that."""


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    language: str
    text: str
    title: str | None = None
    file: str | None = None
    not_run: str | None = None


def blocks() -> list[Block]:
    """Those of all pages, in order."""
    found = []
    for page in PAGES:
        for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
            notes = {"file": None, "not run": None} | ({match["kind"]: match["note"]} if match["kind"] else {})
            found.append(Block(page, match["language"], match["text"], match["title"], notes["file"], notes["not run"]))
    return found


def lines_of_shell() -> list[str]:
    """All documented commands, comments cut off, those of several lines put together."""
    lines = []
    for block in blocks():
        if block.language == "sh" and not block.not_run:
            lines += [line.split(" # ")[0].strip() for line in block.text.replace("\\\n", " ").splitlines()]
    return [line for line in dict.fromkeys(lines) if line and not line.startswith("#")]


def documented() -> list[str]:
    return [line for line in lines_of_shell() if line.startswith("latent-cot ")]


def documented_benchmarks() -> list[str]:
    return [line for line in lines_of_shell() if line.startswith("python -m benchmarks.")]


def test_there_are_commands() -> None:
    assert len(documented()) >= 30
    assert len(documented_benchmarks()) >= 3


def test_every_line_of_shell_is_one_that_is_run() -> None:
    known = {*documented(), *documented_benchmarks()}
    other = [line for line in lines_of_shell() if line not in known and not line.startswith(SETTING_UP)]
    assert not other, "neither run here nor by CI: change it, or say why with <!-- not run: REASON -->"


def test_no_command_hides_where_it_is_not_seen() -> None:
    """In an indented block, or in one without a language."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        outside = BLOCK.sub("", text)
        hidden = [line for line in outside.splitlines() if line.startswith(("    latent-cot ", "    $ "))]
        plain = [b.text for b in blocks() if b.page == page and b.language in ("", "text") and "latent-cot " in b.text]
        assert not hidden and not plain, f"{page}: {hidden} {plain}"
        assert outside.count("```") == 0, f"{page}: a block that is not read as one"


def test_every_language_is_one_that_is_checked() -> None:
    assert {block.language for block in blocks()} <= {"sh", "python", "json", "yaml", "diff", "text", ""}


@pytest.mark.parametrize("block", [b for b in blocks() if b.language in ("json", "yaml") and not b.not_run], ids=str)
def test_a_documented_file_can_be_read(block: Block) -> None:
    if block.language == "yaml":
        assert yaml.safe_load(block.text)
    else:  # one object, or one a line
        lines = [block.text] if block.text.startswith("{\n") else block.text.splitlines()
        assert all(isinstance(json.loads(line), dict) for line in lines)


@pytest.fixture
def folder(tmp_path: Path, default_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where everything is run: the documented files, the tasks' own data files, and a finished run, twice."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("latent_cot.cli.plan.user_cache_path", lambda *_, **__: tmp_path)
    for data in (path for suffix in ("csv", "jsonl", "json", "txt") for path in ROOT.glob(f"tasks/*/*.{suffix}")):
        shutil.copy(data, data.name)
    for block in blocks():
        if block.file is not None:
            Path(block.file).write_text(block.text, encoding="utf-8")
    samples.write_all(tmp_path)
    Path("mine.yaml").write_text("rounds: 1\n")
    for name, first in {"test.json": "60", "train.json": "70", "hw.json": "80"}.items():  # in the published form
        rows = [{"str_query": f"Question: {n} - 0 - 4 = ? Answer:", "num_sol": int(n) - 4} for n in (first, "90")]
        Path(name).write_text(json.dumps(rows[: 2 if name == "test.json" else 1]))
    for name in ("mine", "other"):
        shutil.copytree(default_run, f"runs/{name}")
    return tmp_path


def task_of(run: str) -> str:
    """The task of a run folder in the documentation: that of the command that makes it, or the one in its name."""
    for command in documented():
        words = shlex.split(command)
        if "--task" in words and words[-2:] == ["--output-dir", run]:
            return words[words.index("--task") + 1]
    return next((task for task in tasks.names() if run.startswith(f"runs/{task}")), "arithmetic")


@pytest.fixture(scope="session")
def run_of(default_run: Path, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Task -> a finished run of it."""

    @functools.cache
    def make(task: str) -> Path:
        if task == "arithmetic":
            return default_run
        run = tmp_path_factory.mktemp("other") / "run"
        AcceleratorState._reset_state(reset_partial_state=True)
        smoke = ["fit", "--method", "gflownet", "--task", task, *SMOKE[3:], "--model", str(tiny_model_dir)]
        assert main([*smoke, "--output-dir", str(run)]) == 0
        return run

    return make


CHEAP = ["--evaluation.size", "2", "--evaluation.max-tokens", "8", "--evaluation.diagnostics", "1"]
"""Most of the time of a short run goes into its tests, which other runs here have in full."""


@pytest.mark.parametrize("command", documented())
def test_a_documented_command_works(
    command: str,
    cli: Cli,
    folder: Path,
    tiny_model_dir: Path,
    run_of: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command, _, target = command.partition(" > ")
    arguments = [str(tiny_model_dir) if word == "smollm2-135m" else word for word in shlex.split(command)[1:]]
    for word in arguments[1:]:
        if word.startswith("runs/") and not Path(word).exists() and "--output-dir" not in arguments:
            shutil.copytree(run_of(task_of(word)), word)
    if arguments[0] == "plan":  # tests/planning/test_measure.py measures this machine
        monkeypatch.setattr(measure, "this_machine", lambda precision: GPUS["l4"])
    if arguments[0] == "verify":
        pytest.skip("its quick form is run by tests/methods/test_verify.py; in full it takes minutes")
    if arguments[0] == "eval":
        arguments += ["--size", "3", "--max-tokens", "8"]
    if arguments[0] == "report" and "--no-model" not in arguments:
        arguments += ["--questions", "1", "-n", "4"]
    if arguments[0] == "compare":
        # Where it is meant to be quick with the methods it names, or with two of all; else what it would do is shown.
        few = [] if "--methods" in arguments else ["--methods", "few-shot,sft"]
        cheap = ["--set", "precision=fp32", "--set", "evaluation.size=2", "--set", "evaluation.max_tokens=8"]
        quick = [*few, *cheap] if "smoke" in arguments else ["--dry-run"]
        arguments += ["--model", str(tiny_model_dir), *quick]
    for k, word in enumerate(arguments):
        if word.endswith(".steps"):  # as many as `smoke` has
            arguments[k + 1] = "2"
    if arguments[0] in ("em", "fit") and not {"--resume", "--print-config"} & set(arguments):
        shutil.rmtree("runs/mine")
        arguments = [arguments[0], *SMOKE[1:], "--model", str(tiny_model_dir), *CHEAP, *arguments[1:]]
    called = cli(*arguments)
    assert called.status == 0, called.err
    if target:
        assert called.out == cli(*arguments).out, "not the same twice"


@pytest.mark.parametrize("command", documented_benchmarks())
def test_a_documented_benchmark_works(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In small, on the tiny model; of `estep` and `scaling` a part, since tests/benchmarks runs the others."""
    module, *arguments = shlex.split(command)[2:]
    if {"--grpo", "--sft"} & set(arguments):
        pytest.importorskip("trl", reason="the extra `bench` is not installed")
    small = {
        "benchmarks.breakdown": ["--preset", "smoke", "--units", "1"],
        "benchmarks.estep": ["--steps", "1", "--workload", "untrained"],
        "benchmarks.finetune": ["--steps", "1"],
        "benchmarks.scaling": ["--repeats", "1", "--section", "tools"],
    }
    tiny = [] if module == "benchmarks.samplers" else ["--model", "tiny", *small[module]]
    assert importlib.import_module(module).main([*arguments, "--json", *tiny]) == 0
    assert json.loads(capsys.readouterr().out)


def programs() -> dict[str, list[tuple[str, str | None]]]:
    """Page -> its Python blocks, each with what it is said to print."""
    found: dict[str, list[tuple[str, str | None]]] = {}
    for block, following in zip(blocks(), [*blocks()[1:], None], strict=True):
        if block.language == "python" and not block.not_run and not block.file:
            said = following if following is not None and following.page == block.page else None
            prints = said.text if said is not None and said.title == "prints" else None
            found.setdefault(block.page.relative_to(ROOT).as_posix(), []).append((block.text, prints))
    return found


@pytest.mark.parametrize("page", programs())
def test_documented_python_works(
    page: str,
    folder: Path,
    tiny_model_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the smallest settings in place of the default ones."""
    monkeypatch.setattr(settings, "DEFAULT_PRESET", "smoke")
    steps = programs()[page]
    end = "-- end of block --"
    text = f"print({end!r})\n".join(source + "\n" for source, _ in steps)
    text = text.replace("smollm2-135m", tiny_model_dir.as_posix()).replace('"cpu"', '"smoke"')
    text = re.sub(r'("?\b(?:size|samples)"?\s*[=:]\s*)\d+', r"\g<1>4", text)
    Path("page.py").write_text(text, encoding="utf-8")
    capsys.readouterr()
    runpy.run_path("page.py", run_name="__main__")
    printed = capsys.readouterr().out.split(f"{end}\n")
    for (source, prints), out in zip(steps, printed, strict=True):
        assert prints is None or out == prints, f"printed by\n{source}"


def test_the_names_of_code_exist() -> None:
    """Such as `latent_cot.em.EM.e_step`: on the site each is a link to its documentation."""
    for page in PAGES:
        for name in sorted(set(NAME.findall(page.read_text(encoding="utf-8")))):
            assert exists(name), f"{page.relative_to(ROOT)}: there is no {name}"


def exists(name: str) -> bool:
    """Is this a module, or what a module has, such as a class, its method or its field?"""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            fields = inspect.get_annotations(found) if inspect.isclass(found) else {}
            if not hasattr(found, part) and part not in fields:
                return False
            found = getattr(found, part, None)
        return True
    return False
