"""Questions of one's own from the command line: no code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

import latent_cot as lc
from latent_cot import tasks
from latent_cot.tasks.qa.task import QA
from latent_cot.types import UsageError
from tests import samples
from tests.cli.conftest import Cli, environment

SMOKE = ["--preset", "smoke", "--precision", "fp32"]
GSM8K = ["--task", "qa", "--data.options", "data", "gsm8k-train.jsonl", "test", "gsm8k-test.jsonl"]
GSM8K += ["answer_marker", "####", "tools", "calculator"]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the commands run in, with rows of published forms."""
    samples.write_all(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_gsm8k_without_code(
    cli: Cli,
    files: Path,
    tiny_model_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same by `em` is in the documentation, which is run."""
    called = cli("fit", "--method", "few-shot", *GSM8K, *SMOKE, "--model", tiny_model_dir, "--output-dir", "run")
    assert called.status == 0, called.err
    assert "test" in called.out
    options = yaml.safe_load(Path("run/config.yaml").read_text())["data"]["options"]
    assert options["data"] == f"{files}/gsm8k-train.jsonl" and options["test"] == f"{files}/gsm8k-test.jsonl"
    (files / "elsewhere").mkdir()
    monkeypatch.chdir(files / "elsewhere")
    called = cli("eval", files / "run", "--max-tokens", 8, "--json")
    assert called.status == 0, called.err
    assert called.json["results"]["p"]["test"]["n"] == 6
    called = cli("eval", files / "run", "--split", "operands=2..4")
    assert called.status == 2 and "has no splits along a number, such as 'operands=2..4'" in called.err
    (files / "gsm8k-train.jsonl").rename("train.jsonl")
    for argv in (["eval", files / "run"], ["em", "--resume", "--output-dir", files / "run"]):
        called = cli(*argv)
        assert called.status == 2
        assert (
            f"{files}/run/config.yaml: its `data.options.data` is {files}/gsm8k-train.jsonl, which is not" in called.err
        )
    run = lc.load(files / "run")
    assert run.status == "finished"
    with pytest.raises(UsageError, match=r"config\.yaml: its `data\.options\.data` is"):
        lc.resume(run, progress=False)


def test_a_question_without_an_answer_is_one_for_p_where_q_sees_it(cli: Cli, files: Path, tiny_model_dir: Path) -> None:
    """A q that sees Y has learned no prompt without it: log q of one would mean nothing."""
    called = cli("fit", "--method", "em", *GSM8K, *SMOKE, "--model", tiny_model_dir, "--output-dir", "run")
    assert called.status == 0, called.err
    question = "Ann has 2 figs and 9 nuts. How many are that?"
    asked = ["sample", "run", "--question", question, "-n", 2]
    (first, *_) = cli(*asked, "--json").json["samples"]
    assert first["log_q"] is None and first["log_reward"] is None and first["log_p"] < 0
    assert cli(*asked).status == 0
    (first, *_) = cli(*asked, "--answer", "11", "--json").json["samples"]
    assert first["log_q"] < 0 and first["log_reward"] < 0
    refused = cli(*asked, "--reasoner", "q")
    assert refused.status == 2 and "its answer is needed to sample from q(Z | X, Y)" in refused.err
    written = lc.load("run").score(question, " 2 + 9 = 11")
    assert written[0].log_q is None and written.colour_by == "p" and written._repr_html_()


def test_a_task_file_and_its_options(cli: Cli, files: Path) -> None:
    Path("mine.yaml").write_text("data: sheet.csv\nquestion: item\nanswer: colour\nrationale: why\n")
    called = cli("em", "--task", "mine.yaml", "--print-config")
    assert called.status == 0
    assert yaml.safe_load(called.out)["rollout"]["max_tokens"] == 320  # of the presets of qa
    called = cli("em", "--task", "mine.yaml", "--data.options", "qestion", "x", *SMOKE)
    assert called.status == 2
    assert "--data.options qestion is no setting of a qa task. Did you mean 'question'?" in called.err


@pytest.mark.parametrize(
    "task", ["word_problems", "qa", "arithmetic", "infilling", "continuation", "subjectivity"], ids=lambda name: name
)
def test_bad_rows_are_told_before_torch_is_imported(files: Path, task: str) -> None:
    """All of them, whatever the task."""
    bad = files / "bad.jsonl"
    bad.write_text('{"question": 1}\n{"answer": 2}\n[]\n{"question": null}\n')
    named = ["--data.options", "data", str(bad)] if task == "qa" else ["--data.train-file", str(bad)]
    code = (
        "import sys; from latent_cot.cli import main; "
        f"status = main({['fit', '--task', task, '--method', 'gflownet', *named]}); "
        "sys.exit('torch was imported' if 'torch' in sys.modules else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    for line in range(1, 5):
        assert f"{bad}:{line}: " in done.stderr
    assert "4 of 4 rows cannot be used" in done.stderr


def test_a_question_with_choices_is_shown(cli: Cli, files: Path, tiny_model_dir: Path) -> None:
    """No bare question is known of it: people read the prompt, in one line."""
    Path("arc.yaml").write_text("data: arc.jsonl\nchoices: choices\nanswer: answerKey\n")
    short = ["--rollout.max-tokens", 8, "--evaluation.max-tokens", 8]
    called = cli("em", "--task", "arc.yaml", *SMOKE, *short, "--model", tiny_model_dir, "--output-dir", "run")
    assert called.status == 0, called.err
    shown = [json.loads(line)["question"] for line in Path("run/rationales.jsonl").read_text().splitlines()]
    assert shown and all("Which of these can swim" in question for question in shown)
    assert "Which of these can swim" in " ".join(called.out.split("│"))


CODE = "from pathlib import Path\nPath('ran').touch()\n\ndef same(answer, right):\n    return answer == right\n"


@pytest.mark.parametrize(
    "argv",
    [
        ("em", "--task", "mine.yaml"),
        ("eval", "MODEL", "--task", "mine.yaml"),
        ("compare", "--task", "mine.yaml", "--methods", "few-shot"),
        ("em", "--task", "tool.yaml"),
        ("verify", "--task", "mine.yaml"),
    ],
)
def test_code_that_a_task_file_names_runs_on_the_users_word(
    cli: Cli, files: Path, tiny_model_dir: Path, argv: Sequence[str]
) -> None:
    Path("grade.py").write_text(CODE)
    for name, line in (("mine", "grade: grade.py:same"), ("tool", "tools: grade.py:same")):
        Path(f"{name}.yaml").write_text(f"data: sheet.csv\nquestion: item\nanswer: colour\n{line}\nextract: after:x\n")
    argv = [str(tiny_model_dir) if word == "MODEL" else word for word in argv]
    called = cli(*argv, *(["--model", tiny_model_dir] if argv[0] not in ("eval", "verify") else []))
    assert called.status == 2
    assert "names code to run: " in called.err and f"{files}/grade.py:same. If you trust it" in called.err
    assert not Path("ran").exists()
    with pytest.raises(UsageError, match="names code to run"):
        lc.train(task=argv[argv.index("--task") + 1], model=str(tiny_model_dir), output_dir="other", progress=False)
    assert not Path("ran").exists() and not Path("other").exists()


def test_a_flag_may_complete_a_file(files: Path) -> None:
    """By itself it is no task: `extract: choice` wants choices, and there are no data."""
    Path("half.yaml").write_text("question: item\nanswer: colour\nextract: choice\n")
    task = tasks.load("half.yaml", {"data": "sheet.csv", "choices": "colour"})
    assert isinstance(task, QA) and task.extract == "choice" and task.spec.data == ("sheet.csv",)
    with pytest.raises(UsageError, match=r"half\.yaml"):
        tasks.load("half.yaml")


def test_a_grader_of_ones_own(cli: Cli, files: Path, tiny_model_dir: Path) -> None:
    Path("grade.py").write_text(CODE)
    Path("mine.yaml").write_text("data: sheet.csv\nquestion: item\nanswer: colour\ngrade: grade.py:same\n")
    arguments = ["--task", "mine.yaml", *SMOKE, "--model", tiny_model_dir, "--output-dir", "run", "--trust-code"]
    called = cli("fit", "--method", "decode", *arguments)
    assert called.status == 0, called.err
    assert Path("ran").exists()
    assert "--trust-code" in called.out
    called = cli("eval", "run", "--size", 2)
    assert called.status == 2 and "names code to run: " in called.err
    assert cli("eval", "run", "--size", 2, "--max-tokens", 4, "--trust-code").status == 0
