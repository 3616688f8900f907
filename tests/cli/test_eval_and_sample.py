"""`latent-cot eval` and `latent-cot sample` on a finished run and on an untrained model."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

import latent_cot as lc
from latent_cot import tasks
from latent_cot.config.schema import data_request
from latent_cot.config.settings import load_config
from latent_cot.tasks.arithmetic.mistakes import MISTAKES
from tests.cli.conftest import SMOKE, Cli

QUESTION = "6 - 0 - 4 - 8"


def test_eval_of_both_reasoners(cli: Cli, finished: Path) -> None:
    called = cli("eval", finished, "--split", "3-operands", "--split", "operands=4,digits=2", "--size", 6, "--json")
    assert called.status == 0, called.err
    found = called.json
    assert found["run"] == str(finished)
    assert found["decoding"] == {"max_tokens": 40, "votes": 1, "temperature": 0.0}
    assert found["dropped"] == {"3-operands": 0, "4-operands-2-digits": 0}
    assert found["curves"] == []
    assert "errors" not in found
    assert set(found["results"]) == {"q", "p"}
    for splits in found["results"].values():
        assert {name: figures["n"] for name, figures in splits.items()} == found["dropped"] | {
            "3-operands": 6,
            "4-operands-2-digits": 6,
        }
        low, high = splits["3-operands"]["interval_95"]
        assert low <= splits["3-operands"]["accuracy"] <= high


def test_eval_agrees_with_the_run(cli: Cli, finished: Path) -> None:
    recorded = json.loads((finished / "results.json").read_text())["accuracy"]["1"]
    found = cli("eval", finished, "--split", "3-operands", "--size", 8, "--json").json["results"]
    assert found == {name: {"3-operands": splits["3-operands"]} for name, splits in recorded.items()}


def test_eval_of_a_model_with_votes(cli: Cli, tiny_model_dir: Path) -> None:
    options = ["--split", "3-operands", "--size", 3, "--votes", 2, "--max-tokens", 8]
    found = cli("eval", tiny_model_dir, *options, "--json").json
    assert found["run"] is None
    assert set(found["results"]) == {"p"}
    assert found["decoding"] == {"max_tokens": 8, "votes": 2, "temperature": 0.5}
    table = cli("eval", tiny_model_dir, *options)
    assert "3-operands" in table.out
    assert "votes 2" in table.out


def test_eval_drops_what_was_trained_on(cli: Cli, finished: Path, tmp_path: Path) -> None:
    training = tasks.load("arithmetic").load(data_request(load_config("smoke")))
    seen = [training.demonstrations[0], *training.unlabelled[:2], training.validation[0]]
    rows = [{"question": e.question, "answer": int(e.answer or "")} for e in seen]
    rows += [{"question": "90 + 1", "answer": 91}, {"question": "90 + 1", "answer": 91}]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    called = cli("eval", finished, "--data", file, "--reasoner", "q", "--json")
    assert called.json["dropped"] == {str(file): 4}
    assert called.json["results"]["q"][str(file)]["n"] == 2
    assert "4 questions of training or validation were dropped; 1 repeat" in called.err.replace("\n", " ")
    assert "p" not in called.json["results"]


def test_eval_along_a_number(cli: Cli, finished: Path, tmp_path: Path) -> None:
    plot = tmp_path / "curve.svg"
    options = ["eval", finished, "--split", "operands=3..5", "--split", "8-operands", "--size", 4, "--plot", plot]
    found = cli(*options, "--json").json
    assert found["curves"] == [
        {
            "axes": ["operands"],
            "points": [
                {"split": f"{n}-operands", "operands": n, "trained": trained}
                for n, trained in ((3, True), (4, True), (5, False))
            ],
        }
    ]
    splits = [f"{n}-operands" for n in (3, 4, 5, 8)]
    assert all(list(of_reasoner) == splits for of_reasoner in found["results"].values())
    drawn = plot.read_bytes()
    assert b"<svg" in drawn
    shown = cli(*options)
    assert shown.status == 0, shown.err
    assert re.search(r"\b3\*.*\n.*\b4\*.*\n.*\b5 ", shown.out)
    assert "8-operands" in shown.out
    assert "3-operands" not in shown.out  # it is on the curve
    assert plot.read_bytes() == drawn


def test_errors(cli: Cli, finished: Path) -> None:
    options = ["eval", finished, "--split", "operands=3,4", "--size", 6, "--reasoner", "p", "--errors"]
    found = cli(*options, "--json").json
    for split, figures in found["results"]["p"].items():
        rows = found["errors"]["p"][split]
        assert sum(row["count"] for row in rows) == figures["n"] - figures["correct"] > 0
        assert sum(row["share"] for row in rows) == pytest.approx(1)
        for row in rows:
            assert row["category"] in MISTAKES
            assert row["meaning"] == MISTAKES[row["category"]]
            assert row["example"]["right"] != row["example"]["answer"]
    shown = cli(*options)
    assert shown.status == 0, shown.err
    assert "of 12 answers are wrong" in shown.out
    assert all(row["category"] in shown.out for rows in found["errors"]["p"].values() for row in rows)


ANSWER_KEYS = {"reasoner", "split", "question", "gold", "answer", "correct", "mistake", "chain"}


def test_answers_question_by_question(cli: Cli, finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text("what was there before\n")
    options = ["eval", finished, "--split", "operands=3,4", "--size", 3, "--errors", "--answers", file]
    found = cli(*options, "--json").json
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 12 and all(row.keys() == ANSWER_KEYS for row in rows)
    questions = [one.question for one in tasks.load("arithmetic").split("3-operands", 3)]
    for reasoner, splits in found["results"].items():
        for split, figures in splits.items():
            own = [row for row in rows if (row["reasoner"], row["split"]) == (reasoner, split)]
            assert sum(row["correct"] for row in own) == figures["correct"]
            assert split != "3-operands" or [row["question"] for row in own] == questions
            wrong = [row["mistake"] for row in own if not row["correct"]]
            assert sorted(set(wrong)) == sorted(row["category"] for row in found["errors"][reasoner][split])
    shown = cli(*options)
    assert shown.status == 0 and f"written: {file} (12 lines)" in shown.out


def test_answers_do_not_overwrite_the_questions(cli: Cli, finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "1 + 2 - 3 + 9 - 4", "answer": 5}\n')
    before = file.read_text()
    (tmp_path / "link.jsonl").symlink_to(file)
    for name in (file, tmp_path / "link.jsonl"):
        called = cli("eval", finished, "--data", file, "--answers", name)
        assert called.status == 2 and "is the file that the questions are in" in called.err
    assert file.read_text() == before


def published(folder: Path, name: str, *questions: str) -> Path:
    """A file in the form of those published with the paper."""
    examples = [tasks.load("arithmetic").example(question) for question in questions]
    rows = [{"str_query": example.x, "num_sol": int(example.answer or "")} for example in examples]
    path = folder / name
    path.write_text(json.dumps(rows))
    return path


def test_excluded_questions_are_dropped(cli: Cli, finished: Path, tmp_path: Path) -> None:
    test = published(tmp_path, "1digit_3_op+-_test.json", "60 - 0 - 40", "70 - 3 + 1", "70 - 3 + 1", "80 - 3 + 1")
    train = published(tmp_path, "train.json", "60 - 0 - 40", "1 + 1")
    other = published(tmp_path, "hw.json", "80 - 3 + 1")
    options = ["eval", finished, "--data", test, "--exclude", train, "--exclude", other, "--json"]
    called = cli(*options, "--size", 1)
    assert called.json["dropped"] == {str(test): 2}
    assert {splits[str(test)]["n"] for splits in called.json["results"].values()} == {1}
    called = cli(*options)
    assert {splits[str(test)]["n"] for splits in called.json["results"].values()} == {2}
    assert "2 questions of training, validation or an excluded file were dropped; 1 repeat" in called.err.replace(
        "\n", " "
    )
    # Of a split, others take the place of those that are excluded.
    first = [one.question for one in tasks.load("arithmetic").split("3-operands", 2)]
    one = published(tmp_path, "one.json", first[0])
    called = cli("eval", finished, "--split", "3-operands", "--exclude", one, "--size", 2, "--json", "--reasoner", "p")
    assert called.json["results"]["p"]["3-operands"]["n"] == 2
    refused = cli("eval", finished, "--data", train, "--exclude", train)
    assert refused.status == 2
    assert "nothing is left" in refused.err


def test_the_published_test_files(cli: Cli, tiny_model_dir: Path, shared_data: Path) -> None:
    """Their rows that are in the published training files are dropped, and counted."""
    folder = shared_data / "arithmetic" / "arithmetic_with_tool"
    tests = [folder / f"1digit_{n}_op+-_test.json" for n in (3, 4, 5)]
    options = ["eval", tiny_model_dir, "--max-tokens", 2, "--size", 1, "--json"]
    options += [word for path in tests for word in ("--data", path)]
    assert list(cli(*options).json["dropped"].values()) == [0, 0, 0]
    for name in ("1digit_34_op+-_train_50.json", "1digit_34_op+-_hw.json"):
        options += ["--exclude", folder / name]
    assert list(cli(*options).json["dropped"].values()) == [115, 56, 0]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--plot", "a.svg"], ["--plot a.svg", "nothing to draw"]),
        (["--plot", "a.gif", "--split", "operands=3..5"], ["must end with .svg, .pdf, .png"]),
        (["--plot", "absent/a.svg", "--split", "operands=3..5"], ["there is no folder absent; make it first"]),
        (["--split", "operands=3..x"], ["'3..x' is no number"]),
        (["--split", "operands=2..64,digits=1,2"], ["at most 100"]),
        (["--answers", "absent/a.jsonl"], ["--answers absent/a.jsonl", "there is no folder absent; make it first"]),
        (["--answers", "."], ["--answers .", "a folder"]),
        (["--exclude", "absent.json"], ["absent.json", "no such file"]),
    ],
)
def test_bad_options(cli: Cli, finished: Path, options: list[str], parts: list[str]) -> None:
    called = cli("eval", finished, *options)
    assert called.status == 2
    assert all(part in called.err.replace("\n", " ") for part in parts), called.err


def test_sample_of_a_run(cli: Cli, finished: Path) -> None:
    options = ["sample", finished, "--question", QUESTION, "-n", 5]
    called = cli(*options, "--json")
    assert called.status == 0, called.err
    found = called.json
    assert found["reasoner"] == found["writer"] == "q"
    assert found["gold"] == "-6"
    assert 0 < found["ess"] <= 1 and found["bound"] < 0 < found["bound_error"]
    samples = found["samples"]
    assert sum(sample["count"] for sample in samples) == 5
    rewards = [sample["log_reward"] for sample in samples]
    assert rewards == sorted(rewards, reverse=True)
    assert all(math.isfinite(s["log_prob"]) and s["log_prob"] < 0 for s in samples)
    assert all(sample["correct"] == (sample["answer"] == "-6") for sample in samples)
    assert cli(*options, "--json").out == called.out  # the seed decides
    assert cli(*options, "--json", "--seed", 1).out != called.out
    table = cli(*options)
    assert f"{QUESTION}: 5 from q" in table.out


def test_sample_marks_repeated_rationales(cli: Cli, tiny_model_dir: Path) -> None:
    found = cli("sample", tiny_model_dir, "--question", QUESTION, "--temperature", 0, "-n", 3, "--json").json
    assert found["reasoner"] == "p"
    assert [sample["count"] for sample in found["samples"]] == [3]


@pytest.mark.parametrize("reasoner", ["p", "q"])
def test_sample_from_either(cli: Cli, finished: Path, reasoner: str) -> None:
    found = cli("sample", finished, "--question", QUESTION, "-n", 1, "--reasoner", reasoner, "--json").json
    assert found["reasoner"] == reasoner


def test_sample_of_a_file(cli: Cli, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latent_cot.report.terminal.LINE_SECONDS", 0.0)
    file, output = tmp_path / "mine.jsonl", tmp_path / "rationales.jsonl"
    golds = {QUESTION: "-6", "1 + 2": "3", "3 - 1 + 5": "7"}
    file.write_text("".join(json.dumps({"question": one, "answer": int(gold)}) + "\n" for one, gold in golds.items()))
    output.write_text("what was there before\n")
    options = ["sample", finished, "--data", file, "-n", 3, "--output", output]
    called = cli(*options)
    assert called.status == 0, called.err
    assert "questions 3/3" in called.err and "0:00:00 left" in called.err
    text = output.read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert f"written: {output} (3 questions, {len(rows)} rationales)" in called.out
    assert list(dict.fromkeys(row["question"] for row in rows)) == list(golds)
    for question, gold in golds.items():
        own = [row for row in rows if row["question"] == question]
        assert {row["gold"] for row in own} == {gold} and sum(row["count"] for row in own) == 3
        assert sum(row["weight"] for row in own) == pytest.approx(1)
        assert all(row["correct"] == (row["answer"] == gold) for row in own)
        assert all(math.isfinite(row[name]) for row in own for name in ("log_q", "log_p", "log_reward"))
    # The first question alone is written as by `--question`.
    file.write_text(json.dumps({"question": QUESTION, "answer": -6}) + "\n")
    found = cli(*options, "--json").json
    assert (found["questions"], found["output"]) == (1, str(output))
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == found["rationales"]
    single = cli("sample", finished, "--question", QUESTION, "-n", 3, "--json").json["samples"]
    assert [(row["text"], row["log_q"]) for row in rows] == [(one["text"], one["log_q"]) for one in single]
    # A text file has a question a line.
    lines = tmp_path / "mine.txt"
    lines.write_text(f"{QUESTION}\n\n")
    assert cli("sample", finished, "--data", lines, "-n", 3, "--output", output).status == 0
    assert [json.loads(line) for line in output.read_text().splitlines()] == rows
    lines.write_text(f"{QUESTION}\n\nno sum\n")
    refused = cli("sample", finished, "--data", lines, "--output", output)
    assert refused.status == 2 and "mine.txt:3" in refused.err and "no sum" in refused.err


def test_sample_of_questions_without_answers(cli: Cli, tmp_path: Path, tiny_model_dir: Path) -> None:
    """Where the task cannot work them out."""
    lines, output = tmp_path / "mine.txt", tmp_path / "rationales.jsonl"
    lines.write_text("Tom has 3 pens and buys 4 more. How many has he?\n")
    command = ["sample", tiny_model_dir, "--task", "word_problems", "--data", lines, "-n", 2, "--output", output]
    assert cli(*command).status == 0
    for row in map(json.loads, output.read_text().splitlines()):
        assert row["question"].startswith("Tom") and math.isfinite(row["log_p"])
        assert {row[name] for name in ("gold", "log_reward", "correct", "weight")} == {None}


def test_a_stopped_file_of_rationales_has_whole_lines(
    cli: Cli, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, output = tmp_path / "mine.jsonl", tmp_path / "rationales.jsonl"
    file.write_text("".join(json.dumps({"question": f"{n} + 1", "answer": n + 1}) + "\n" for n in range(4)))
    asked: list[str] = []
    scored = lc.Run._scored

    def stopped(self: lc.Run, loop: object, example: lc.Example, *arguments: object, **more: object) -> object:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(example.question)
        return scored(self, loop, example, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(lc.Run, "_scored", stopped)
    assert cli("sample", finished, "--data", file, "--output", output, "-n", 2).status == 130
    lines = output.read_text().splitlines(keepends=True)
    assert {json.loads(line)["question"] for line in lines} == {"0 + 1", "1 + 1"}
    assert all(line.endswith("\n") for line in lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --question TEXT, or --data FILE and --output FILE.jsonl"),
        (["--question", "1 + 2", "--data", "mine.jsonl"], "give --question TEXT, or --data FILE"),
        (["--data", "mine.jsonl"], "--data mine.jsonl: add --output FILE.jsonl"),
        (["--question", "1 + 2", "--output", "a.jsonl"], "--output a.jsonl: is for the questions of --data FILE"),
        (["--data", "mine.jsonl", "--output", "a.jsonl", "--answer", "3"], "--answer: is that of --question"),
        (["--data", "mine.jsonl", "--output", "mine.jsonl"], "--output mine.jsonl: is the file that the questions are"),
        (
            ["--data", "mine.jsonl", "--output", "absent/a.jsonl"],
            "--output absent/a.jsonl: there is no folder absent; make it first",
        ),
        (["--data", "absent.jsonl", "--output", "a.jsonl"], "absent.jsonl: no such file"),
    ],
)
def test_bad_options_of_sample(
    cli: Cli, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text('{"question": "1 + 2"}\n')
    called = cli("sample", finished, *options)
    assert called.status == 2
    assert message in " ".join(called.err.split())
    assert not Path("a.jsonl").exists() and Path("mine.jsonl").read_text() == '{"question": "1 + 2"}\n'


def test_a_sampler_that_sees_the_answer_is_sampled_but_not_tested(
    cli: Cli, tmp_path: Path, tiny_model_dir: Path
) -> None:
    folder = tmp_path / "run"
    settings = ["--p-init", "prompt", "--evaluation.size", 2]
    assert cli(*SMOKE, *settings, "--model", tiny_model_dir, "--output-dir", folder).status == 0
    options = ["eval", folder, "--split", "3-operands", "--size", 2]
    assert set(cli(*options, "--json").json["results"]) == {"p"}
    refused = cli(*options, "--reasoner", "q")
    assert refused.status == 2
    assert "--reasoner q: in this run q sees the answer" in refused.err
    sampled = cli("sample", folder, "--question", QUESTION, "--reasoner", "q", "-n", 2, "--json")
    assert sampled.json["reasoner"] == "q"


FAILS = """
from latent_cot.tasks.plain import PlainTask
from latent_cot.types import Example, TaskData


class Fails(PlainTask):
    name, description, default_splits = "fails", "fails now and then", ("test",)
    asked = 0

    def example(self, question, answer=None):
        return Example(f"Say {question}:", answer="a", question=question)

    def load(self, request):
        return TaskData((), (), ())

    def split(self, name, size=None):
        return [self.example(str(n)) for n in range(6)]

    def answer(self, rationale):
        Fails.asked += 1
        return {}["moon"] if Fails.asked % 3 == 0 else "a"
"""


def test_code_that_fails_is_told(cli: Cli, tmp_path: Path, tiny_model_dir: Path) -> None:
    """An answer counts as wrong then, so that the figure alone would be of something else."""
    (tmp_path / "fails.py").write_text(FAILS)
    task = ["--task", tmp_path / "fails.py"]
    called = cli("eval", tiny_model_dir, *task, "--max-tokens", 2, "--json")
    assert called.status == 0, called.err
    assert called.json["results"]["p"]["test"]["correct"] == 4
    (note,) = [note for note in called.json["notes"] if "calls failed" in note]
    assert "2 of 6 calls failed: 2 KeyError" in note and note in called.err.replace("\n", " ")
    called = cli("sample", tiny_model_dir, *task, "--question", "x", "-n", 6)
    assert called.status == 0 and "calls failed" in called.out.replace("\n", " ")
