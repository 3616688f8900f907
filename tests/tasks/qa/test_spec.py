"""What a `qa` task can be told, in a YAML file or by options."""

from __future__ import annotations

from pathlib import Path

import pytest

from latent_cot import tasks
from latent_cot.tasks.qa.spec import Spec, read_spec
from latent_cot.tasks.qa.task import QA
from latent_cot.types import UsageError
from tests import samples


def task_file(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_a_file_and_options_are_one_schema(tmp_path: Path) -> None:
    samples.write_all(tmp_path)
    file = task_file(
        tmp_path,
        'data: [gsm8k-train.jsonl]\ntest: gsm8k-test.jsonl\nanswer_marker: "####"\ntools: calculator\n'
        "tolerance: 0.01\nskip_bad: yes\nstop: null\nstep: '\\n'\n",
    )
    options = {"data": f"{tmp_path}/gsm8k-train.jsonl", "test": f"{tmp_path}/gsm8k-test.jsonl", "tools": "calculator"}
    options |= {"answer_marker": "####", "tolerance": "0.01", "skip_bad": "true", "stop": "none", "step": "\\n"}
    written, given = tasks.load(file), tasks.load("qa").configured(options)
    assert isinstance(written, QA) and isinstance(given, QA)
    assert written.spec == given.spec
    assert (written.name, given.name) == ("mine", "qa")
    assert (written.spec.stop, written.spec.step, written.spec.skip_bad) == (None, "\n", True)
    other = written.configured({"tolerance": "0.5"})
    assert (other.spec.tolerance, other.spec.data, other.name) == (0.5, written.spec.data, "mine")
    assert written.configured({"skip_bad": "yes"}) is written


def test_words_that_yaml_takes_for_truth_values_are_choices(tmp_path: Path) -> None:
    assert read_spec(task_file(tmp_path, "data: a.csv\nchoices: [no, yes]\n")).choices == ("no", "yes")
    assert Spec().with_options({"choices": "no,yes"}).choices == ("no", "yes")
    assert Spec().with_options({"choices": "options"}).choices == "options"


def test_what_is_left_empty_is_not_there(tmp_path: Path) -> None:
    names = ("choices", "answer_marker", "split_column", "rationale", "stop")
    spec = read_spec(task_file(tmp_path, "data: a.csv\n" + "".join(f"{name}:\n" for name in names)))
    assert [getattr(spec, name) for name in names] == [None] * len(names)


def test_files_are_looked_up_beside_the_yaml_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    for name in ("a.csv", "b.csv", "tool.py", "grade.py", "calculator"):
        (tmp_path / "there" / name).touch()
    text = "data: a.csv, hub:owner/name\ntest: b.csv\ntools: [calculator, tool.py:Tool]\ngrade: grade.py:same\n"
    task_file(tmp_path / "there", text)
    monkeypatch.chdir(tmp_path)
    spec, here = read_spec("there/mine.yaml"), f"{tmp_path}/there"
    assert spec.data == (f"{here}/a.csv", "hub:owner/name")
    assert spec.test == f"{here}/b.csv"
    assert spec.tools == ("calculator", f"{here}/tool.py:Tool")
    assert spec.grade == f"{here}/grade.py:same"


def test_a_file_that_is_elsewhere_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "a.csv").touch()
    task_file(tmp_path / "there", "data: a.csv\ntest: 0.5\ngrade: number\n")
    monkeypatch.chdir(tmp_path)
    spec = read_spec("there/mine.yaml")
    assert spec.data == (f"{tmp_path}/there/a.csv",)
    assert (spec.test, spec.grade) == ("0.5", "number")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: a.csv\nqestion: q\n", "mine.yaml:2: qestion is no setting of a qa task. Did you mean 'question'?"),
        (
            "data: a.csv\n\ndoc_to_text: q\n",
            "mine.yaml:3: doc_to_text is no setting of a qa task. Did you mean 'prompt'?",
        ),
        ("data: a.csv\ndata: b.csv\n", "mine.yaml:2: 'data' is there twice"),
        ("data: a.csv\ntolerance: 3\n", "mine.yaml:2: tolerance should be less than or equal to 1"),
        ("data: a.csv\ntest: 5\n", "mine.yaml:2: test should be a share between 0 and 1, such as 0.2, or files"),
        ("data: a.csv\nskip_bad: perhaps\n", "mine.yaml:2: skip_bad should be a valid boolean"),
        (
            "data: a.csv\nextract: first\n",
            "mine.yaml:2: extract should be last-number, last-result, choice, after:TEXT",
        ),
        ("data: a.csv\nextract: 'regex:(a'\n", "mine.yaml:2: extract should be a regular expression: missing )"),
        ("data: a.csv\nextract: 'regex:(a)(b)'\n", "of at most one group"),
        (
            "data: a.csv\ngrade: exat\n",
            "mine.yaml:2: grade should be exact, text, number, or FILE.py:NAME. Did you mean",
        ),
        ("data: a.csv\nanswer: {a: b}\n", "mine.yaml:2: answer should be a valid string"),
        ("data: a.csv\nextract: choice\n", "mine.yaml: extract choice: name the `choices`"),
        ("data: a.csv\nextract: last-result\n", "mine.yaml: extract last-result: name the `tools`"),
        ("data: a.csv\nprompt: What?\n", "mine.yaml: prompt 'What?' has no column"),
        ("data: a.csv\ntarget: Done.\n", "mine.yaml:2: target should be a text with {answer} in it"),
        ("data: a.csv\ntarget: '{answer} {colour}'\n", "mine.yaml:2: target should be a text with {answer} in it"),
        ("data: a.csv\nchoices: [a]\n", "mine.yaml:2: choices should be a column, or at least 2"),
        ("data: a.csv\nchoices: [a, b, a]\n", "mine.yaml:2: choices should be a column, or at least 2"),
        *((f"data: a.csv\n{name}:\n", f"mine.yaml:2: {name} should be") for name in ("question", "test", "target")),
        (
            "data: a.csv\ntools: calcluator\n",
            "mine.yaml:2: tools: unknown tool 'calcluator'. Did you mean 'calculator'?",
        ),
        ("data: a.csv\ntolerance: 0.1\n", "mine.yaml: tolerance 0.1: answers are graded as text; add grade number"),
        ("data: a.csv\nalphabet: abc\n", "mine.yaml: alphabet: no rationale could write 'So the answer is'"),
        ("question: q\n", "mine.yaml: names no `data`"),
        ("data: [a\n", "mine.yaml:2: not valid YAML"),
        ("- a\n", "mine.yaml: must be a mapping"),
        ("", "mine.yaml: must be a mapping"),
        ("a: " + "b" * 70_000, "mine.yaml: larger than 64 KiB"),
    ],
)
def test_a_bad_file_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        tasks.load(task_file(tmp_path, text))
    assert str(tmp_path / message.partition(":")[0]) in str(refused.value) or message == "of at most one group"
    assert message in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_marker_of_crosses_is_put_into_quotes(tmp_path: Path) -> None:
    file = task_file(tmp_path, "data: x.csv\nanswer_marker: ####\n")
    with pytest.raises(UsageError, match=r'mine\.yaml:2: a # begins a comment in YAML.*answer_marker: "####"'):
        read_spec(file)
    assert read_spec(task_file(tmp_path, 'data: x.csv\nanswer_marker: "####"\n')).answer_marker == "####"
    assert read_spec(task_file(tmp_path, "data: x.csv\nanswer_marker:\n")).answer_marker is None


@pytest.mark.parametrize("share", ["20%", "0,2", "12.5 %", "1.5"])
def test_a_share_is_a_number_between_0_and_1(share: str) -> None:
    with pytest.raises(UsageError, match=r"a share between 0 and 1, such as 0\.2"):
        tasks.load("qa").configured({"data": "x.csv", "test": share})


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"none\.yaml: cannot be read"):
        tasks.load("none.yaml")


def test_a_bad_option_names_its_flag() -> None:
    with pytest.raises(UsageError, match=r"--data\.options promt is no setting of a qa task\. Did you mean 'prompt'"):
        tasks.load("qa").configured({"promt": "x"})
    with pytest.raises(UsageError, match=r"--data\.options tolerance should be a valid number"):
        tasks.load("qa").configured({"tolerance": "x"})


def test_yaml_that_grows_is_no_danger(tmp_path: Path) -> None:
    """Aliases of aliases: nine lines that would be a thousand million words."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 10)]
    with pytest.raises(UsageError, match=r"mine\.yaml:1: a0 is no setting"):
        tasks.load(task_file(tmp_path, "\n".join(lines)))
    lines = [line.replace(f"a{k}:", "data:" if k == 9 else f"a{k}:") for k, line in enumerate(lines)]
    with pytest.raises(UsageError) as refused:
        tasks.load(task_file(tmp_path, "\n".join(lines)))
    assert len(str(refused.value)) < 300
