"""What is special about word problems: their files, what is dropped from them, what is right, what went wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latent_cot.config.settings import load_config
from latent_cot.model.text import TextCodec
from latent_cot.rationales.chain import Chain, ChainRules
from latent_cot.tasks.word_problems import TASK
from latent_cot.tasks.word_problems.task import OWN_QUESTIONS, WordProblems
from latent_cot.tools.calculator import Calculator
from latent_cot.types import DataRequest, Rationale, UsageError
from tests.tiny import build_tokenizer

ROWS: list[dict[str, Any]] = [
    {"question": f"Ann has {n} pens and buys {n + 3} more. How many has she?", "answer": str(2 * n + 3)}
    | {"equation": f"x={n}.0+{n + 3}.0"}
    for n in range(2, 14)
]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chain(text: str, task: WordProblems = TASK) -> Rationale:
    """The chain that writes `text`, which has no results."""
    codec = TextCodec(build_tokenizer(), stop=task.stop, allowed_characters=task.allowed_characters, allows=task.allows)
    written = Chain(ChainRules(codec, [Calculator()], max_tokens=200))
    for token in codec.encode(text):
        assert codec.action_index[token] >= 0
        written.push(token)
    return written.finish()


def test_prompts() -> None:
    example = TASK.example(" Ann has 2 pens\nand buys 3. How many has she? ", "5.0")
    assert example.x == "Question: Ann has 2 pens and buys 3. How many has she? Answer:"
    assert example.y == "\nThe answer is 5."
    assert example.y.startswith(TASK.stop or "")
    assert TASK.posterior_prompt(example) == f"{example.x.removesuffix(' Answer:')} The answer is 5. Answer:"
    assert TASK.example(example.x, "5") == example
    with pytest.raises(UsageError, match="answer is needed"):
        TASK.posterior_prompt(TASK.example("2 pens and 3 pens?"))


@pytest.mark.parametrize("variant", ["equations", "words"])
def test_the_alphabet_has_no_line_break_but_the_stop(variant: str) -> None:
    task = TASK.configured({"form": variant})
    codec = TextCodec(
        build_tokenizer(merges=[("\n", "\n")]),
        stop=task.stop,
        allowed_characters=task.allowed_characters,
        allows=task.allows,
    )
    assert [i for i in codec.actions.tolist() if "\n" in codec.pieces[i]] == [codec.stop_id]
    assert codec.pieces[codec.stop_id] == "\n"
    words = [i for i in codec.actions.tolist() if codec.pieces[i].isalpha()]
    assert bool(words) == (variant == "words")


def test_own_questions() -> None:
    own = TASK.read(OWN_QUESTIONS)
    assert len(own) == 72 and all(example.z for example in own)
    for example in own:
        reached = TASK.answer(chain(example.z or ""))
        assert TASK.grade(example, reached), example
    data = TASK.load(DataRequest(demonstrations=10, unlabelled=30, validation=8))
    used = {e.question for e in (*data.demonstrations, *data.unlabelled, *data.validation)}
    assert len(used) == 48 and not used & {e.question for e in TASK.split("test")}
    with pytest.raises(UsageError, match=r"--data\.unlabelled.*has 38 different examples for this, not 1008.*larger"):
        TASK.load(DataRequest(demonstrations=10, unlabelled=1000, validation=8))


def test_kinds_of_rows(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "7 and 2?", "answer": 14, "equation": "x=(7.0*2.0)"},
        {"question": "48 clips?", "answer": "So 48/2 = <<48/2=24>>24.\nIn all <<48+24=72>>72.\n#### 72"},
        {"question": "48 pens?", "answer": "72", "rationale": "48 / 2 = 24, 48 + 24 = 72"},
        {"question": "48 cups?", "answer": 1000.5},
        {"question": "80 of 6?", "answer": "13.333333333333334", "equation": "x=80/6"},
        {"question": "6 pens?", "answer": "5", "equation": "X-6=52"},
        {"question": "80 cups?", "answer": "#### 1,000"},
    ]
    read = TASK.read(write(tmp_path / "a.jsonl", rows))
    both = " 48 / 2 =, 48 + 24 ="
    assert [e.z for e in read] == [" 7 * 2 =", both, both, None, " 80 / 6 =", None, None]
    assert [e.answer for e in read] == ["14", "72", "72", "1000.5", "40/3", "5", "1000"]
    assert TASK.grade(read[4], "13.333333333333334") and TASK.grade(read[4], "40/3")
    (rounded,) = TASK.read(
        write(tmp_path / "b.jsonl", [{"question": "2 of 3?", "answer": "0.6667", "equation": "2/3"}])
    )
    assert rounded.answer == "2/3" and not TASK.grade(rounded, "0.666")
    assert TASK.grade(rounded, "0.6667") and TASK.grade(rounded, "2/3"), "what the row says is right too"
    wrong = replace(rounded, answer="5")  # as votes are compared
    assert not TASK.grade(wrong, "2/3") and not TASK.grade(wrong, "0.6667") and TASK.grade(wrong, "5")
    table = tmp_path / "a.csv"
    table.write_text('question,answer,equation\n"7 and 2, is?",14,x=7*2\n')
    assert TASK.read(str(table))[0].z == " 7 * 2 ="
    words = TASK.configured({"form": "words"}).read(str(tmp_path / "a.jsonl"))
    assert [e.z for e in words[:3]] == [" 7 * 2 =", " So: 48 / 2 =. In all: 48 + 24 =", both]


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"question": "2 pens?", "answer": "0,5"}, r":2: the answer '0,5' is no number"),
        ({"question": "2 pens?", "answer": "18%"}, r":2: the answer '18%' is no number"),
        ({"question": "2 pens?", "answer": "<<1+1=2>>2\n#### two"}, r":2: the answer ' two' is no number"),
        ({"question": "2 pens?", "answer": None}, r":2: the field 'answer' must be a string"),
        ({"question": "2 pens?", "answer": True}, r":2: the field 'answer' must be a string"),
        ({"question": "2 pens?"}, r":2: the field 'answer' is missing"),
        ({"answer": "2"}, r":2: the field 'question' is missing"),
        ({"question": "How many pens?", "answer": "2"}, r":2: question 'How many pens\?': write one with a number"),
        ({"question": "2 " * 1001, "answer": "2"}, r":2: .*of up to 2,000 characters"),
        ({"question": "2 pens?", "answer": "5", "rationale": "2 + 2 = 4"}, r":2: rationale '2 \+ 2 = 4': its value"),
        ({"question": "2 pens?", "answer": "5", "equation": 3}, r":2: the field 'equation' must be a string"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        TASK.read(write(tmp_path / "a.jsonl", [ROWS[0], row]))


def test_what_is_dropped_is_counted(tmp_path: Path) -> None:
    extra: list[dict[str, Any]] = [
        {**ROWS[0], "question": ROWS[0]["question"].upper().replace(".", " . "), "equation": "x=1"},  # repeats
        {**ROWS[1], "answer": "0"},  # contradicts
        {"question": "Of 2 pens?", "answer": "4", "equation": "X-6=52"},
        {"question": "Of 3 pens?", "answer": "4", "equation": "x=2+3"},
    ]
    train = write(tmp_path / "train.jsonl", [*ROWS, *extra])
    test = write(tmp_path / "test.jsonl", [{**row, "question": row["question"].lower()} for row in ROWS[2:5]])
    more = write(tmp_path / "more.jsonl", ROWS[5:6])
    request = DataRequest(3, 4, 1, seed=1, train_file=train, options={"tests": f"{test}, {more}"})
    data = TASK.load(request)
    used = {e.question for e in (*data.demonstrations, *data.unlabelled, *data.validation)}
    assert len(used) == 8 and not used & {row["question"] for row in ROWS[1:6]}
    assert data.notes == (
        f"{train}: 9 questions of 16 rows, 7 of them with a rationale.",
        "1 rows dropped: repeated.",
        "2 rows dropped: with different answers to one question.",
        "4 rows dropped: in a test file.",
        f"1 rationales dropped: an equation with its unknown not alone on the left (the first: {train}:15).",
        f"1 rationales dropped: its value is not the answer (the first: {train}:16).",
    )
    assert TASK.load(request) == data
    assert all(e.z for e in data.demonstrations) and not any(e.z for e in data.unlabelled)
    assert TASK.split(test) == TASK.read(test)


@pytest.mark.parametrize(("given", "text"), [(0.00001, "0.00001"), (1e16, "1" + 16 * "0"), (-2.5, "-2.5"), (5.0, "5")])
def test_a_json_number_is_read_however_python_writes_it(tmp_path: Path, given: float, text: str) -> None:
    (example,) = TASK.read(write(tmp_path / "a.jsonl", [{"question": "2 pens?", "answer": given}]))
    assert example.answer == text


def test_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "2 pens?", "answer": 1e999}\n')
    with pytest.raises(UsageError, match=r"a\.jsonl:1: "):
        TASK.read(str(tmp_path / "a.jsonl"))


def test_rows_that_agree_are_kept(tmp_path: Path) -> None:
    """One said 0.667, the other 2/3: both were dropped as if nobody knew which is right."""
    row = {"question": "Of 2 pens and 3?", "answer": "0.667"}
    for both in ([row, row | {"equation": "2/3"}], [row | {"equation": "2/3"}, row], [row, row | {"answer": "0.6667"}]):
        data = TASK.load(DataRequest(0, 1, 0, train_file=write(tmp_path / "a.jsonl", both)))
        assert [example.answer for example in data.unlabelled] == ["2/3" if "equation" in str(both) else "0.667"]
        assert "1 rows dropped: repeated." in data.notes
    apart = [row | {"equation": "2/3"}, row | {"answer": "0.668"}]
    data = TASK.load(DataRequest(0, 0, 0, train_file=write(tmp_path / "a.jsonl", [*apart, ROWS[0]])))
    assert "2 rows dropped: with different answers to one question." in data.notes


def test_a_rounded_equation_gives_no_rationale_and_no_answer(tmp_path: Path) -> None:
    """(1.6667 − 0.75) / 0.6667 is 9167/6667; the answer to the question is 1.375."""
    row = {
        "question": "Of 1.6667 tons, less 0.75, each 0.6667?",
        "answer": "1.375",
        "equation": "x=(1.6667-0.75)/0.6667",
    }
    exact = {"question": "Of 4 tons, each 6?", "answer": "0.66666667", "equation": "x=4/6"}
    long = {
        "question": "Of 1 pen and 2?",
        "answer": "78",
        "equation": "x=" + "+".join(f"({n}.0)" for n in range(1, 13)),
    }
    rounded, cut, summed = TASK.read(write(tmp_path / "a.jsonl", [row, exact, long]))
    assert (rounded.answer, rounded.z, rounded.meta["unusable"]) == ("1.375", None, "its numbers are rounded")
    assert (cut.answer, cut.z) == ("2/3", " 4 / 6 =")
    assert len(long["equation"]) > 64 and summed.answer == "78" and (summed.z or "").count("=") == 11


def test_the_repeat_with_a_rationale_is_kept(tmp_path: Path) -> None:
    bare = {name: ROWS[0][name] for name in ("question", "answer")}
    data = TASK.load(DataRequest(1, 0, 0, train_file=write(tmp_path / "a.jsonl", [bare, ROWS[0]])))
    assert data.demonstrations[0].z == " 2 + 5 ="


def test_options() -> None:
    with pytest.raises(UsageError, match=r"no option 'frm'.*Did you mean 'form'"):
        TASK.load(DataRequest(options={"frm": "words"}))
    with pytest.raises(UsageError, match=r"form word: .*Did you mean 'words'"):
        TASK.configured({"form": "word"})
    with pytest.raises(UsageError, match=r"no-such\.jsonl"):
        TASK.load(DataRequest(options={"tests": "no-such.jsonl"}))
    assert TASK.configured({"form": "words"}).allowed_characters is None
    assert TASK.allowed_characters is not None


def test_grading() -> None:
    example = TASK.example("2 pens?", "1000.5")
    for right in ("1,000.5", "1000.50", "$1000.5", "2001/2", "1000.5000001"):
        assert TASK.grade(example, right)
    for wrong in ("1000", "1000.51", "1000,5", "-1000.5", "", "one", None):
        assert not TASK.grade(example, wrong)
    assert not TASK.grade(TASK.example("2 pens?", "0"), "0.0000001")


def test_the_answer_is_the_result_that_ends_the_chain() -> None:
    assert TASK.answer(chain(" 7 / 12 =, 7/12 * 6 =")) == "3.5"
    assert TASK.answer(chain(" 7 + 2 =,")) is None
    assert TASK.answer(chain("")) is None
    assert TASK.answer(chain(" 7 / 0 =")) is None


@pytest.mark.parametrize(
    ("text", "category"),
    [
        (" 7 + 2 =, 9 + 30 =", "wrong operation"),
        (" 2 * 7 =, 30 - 14 =", "wrong operation"),
        (" 7 * 30 =", "wrong operand"),
        (" 7 * 2 =, 14 - 7 =", "wrong operand"),
        (" 2 * 7 =", "missing step"),
        (" 7 * 3 =, 21 - 30 =", "misread number"),
        (" 7 * 2 =, 15 - 30 =", "misread number"),
        (" 7 * 2 =, 14 / 0 =", None),  # failed call, of all tasks
        (" 7 * 2 =, 14", None),  # no answer
        ("", None),
        (" 7 * 2 =, 14 - 30 =, 14 * 1 =", "wrong operand"),
        (" 7 * 2 =, 7 * 2 =", "missing step"),  # a step twice is one of the solution's
    ],
)
def test_mistakes(text: str, category: str | None) -> None:
    example = replace(TASK.example("7 boxes of 2, less 30?", "-16"), z=" 7 * 2 =, 14 - 30 =")
    assert TASK.mistake(example, chain(text)) == category


def test_a_chain_that_was_cut_has_not_left_out_a_step() -> None:
    example = replace(TASK.example("7 boxes of 2, less 30?", "-16"), z=" 7 * 2 =, 14 - 30 =")
    assert TASK.mistake(example, replace(chain(" 7 * 2 ="), truncated=True)) is None


def test_mistakes_without_a_solution() -> None:
    example = TASK.example("Seven boxes of 2, less 30%?", "9.8")
    assert TASK.mistake(example, chain(" 7 * 2 =, 14 * 0.3 =")) is None
    assert TASK.mistake(example, chain(" 7 * 5 =")) == "misread number"


@pytest.mark.parametrize("preset", ["smoke", "cpu", "paper"])
def test_presets(preset: str) -> None:
    config = load_config(preset, task="word_problems")
    task = TASK.configured(config.data.options)
    assert task.form == ("words" if preset == "paper" else "equations")
    if preset == "smoke":
        assert sum((config.data.demonstrations, config.data.unlabelled, config.data.validation)) <= 48


# -- the published sets, which are no part of this repository --------------------------------------------


def test_published_sets(shared_data: Path) -> None:
    published = shared_data / "word-problems"
    train = published / "mawps-train.jsonl"
    tests = [str(published / f"{name}-test.jsonl") for name in ("mawps", "svamp", "multiarith")]
    request = DataRequest(50, 1000, 100, train_file=str(train), options={"tests": ",".join(tests)})
    data = TASK.load(request)
    tested = {" ".join(e.question.lower().split()) for name in tests for e in TASK.split(name)}
    training = [*data.demonstrations, *data.unlabelled, *data.validation]
    assert not tested & {" ".join(e.question.lower().split()) for e in training}
    assert any("in a test file" in note for note in data.notes)
    letters = [
        {"".join(c for c in e.question.lower() if c.isalnum()) for e in part}
        for part in (training, (e for name in tests for e in TASK.split(name)))
    ]
    assert not letters[0] & letters[1], "the same letters and digits"
    for example in data.demonstrations:
        assert TASK.grade(example, TASK.answer(chain(example.z or "")))
