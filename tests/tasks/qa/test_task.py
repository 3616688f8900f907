"""Questions and answers of one's own: rows of published forms, how answers are read and graded, what is kept apart."""

from __future__ import annotations

import json
import runpy
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_cot import tasks
from latent_cot.model.text import TextCodec
from latent_cot.rationales.chain import ChainRules, encode_rationale
from latent_cot.run.printable import printable
from latent_cot.tasks.plain import prompt_words
from latent_cot.tasks.qa import answers
from latent_cot.tasks.qa.same_text import same_text
from latent_cot.tasks.qa.task import QA
from latent_cot.tools.calculator import Calculator
from latent_cot.types import CodeError, DataRequest, Rationale, UsageError
from tests import samples
from tests.tiny import build_tokenizer

GOOD = {"question": "What is up?", "answer": "the sky"}


def qa(**options: str) -> QA:
    task = tasks.load("qa").configured(options)
    assert isinstance(task, QA)
    return task


def chain(text: str) -> Rationale:
    return Rationale((), (), (True,), text)


def rows(folder: Path, *records: dict[str, Any]) -> str:
    return samples.write_rows(folder / "rows.jsonl", records)


def one(folder: Path, record: dict[str, Any], **options: str) -> Any:
    file = rows(folder, record)
    (example,) = qa(data=file, **options).read(file)
    return example


# -- published forms -------------------------------------------------------------------------------------


def test_gsm8k(tmp_path: Path) -> None:
    samples.write_all(tmp_path)
    options = {"data": f"{tmp_path}/gsm8k-train.jsonl", "test": f"{tmp_path}/gsm8k-test.jsonl"}
    task = qa(**options, answer_marker="####", tools="calculator")
    example = task.read(f"{tmp_path}/gsm8k-test.jsonl")[0]
    assert (example.answer, example.y) == ("166", "\nThe answer is 166.")
    assert example.z == " She has: 40 + 43 = pens. She pays: 83 * 2 ="
    rules = ChainRules(TextCodec(build_tokenizer(), stop=task.stop), [Calculator()], "step", max_tokens=200)
    assert task.answer(encode_rationale(example.z, rules)) == "166"
    assert task.grade(example, "166.0") and not task.grade(example, "165") and not task.grade(example, None)
    data = task.load(DataRequest(10, 8, 4, options=options | {"answer_marker": "####", "tools": "calculator"}))
    assert [len(part) for part in (data.demonstrations, data.unlabelled, data.validation)] == [10, 8, 4]
    assert len(task.split("test")) == 6


@pytest.mark.parametrize(
    ("rationale", "z"),
    [
        ("2 + 3 = 5, 5 * 2 = 10", " 2 + 3 =, 5 * 2 ="),
        ("2 + 3 =, 5 * 2 =", " 2 + 3 =, 5 * 2 ="),
        ("2 + 3 =5, 5 * 2=10.", " 2 + 3 =, 5 * 2="),
        ("2 + 3 = 6, 5 * 2 = 10", "with a stated result that its tool does not give"),
        ("2 + 3 = 50, 5 * 2 = 10", "with a stated result that its tool does not give"),
        ("2 + 3 = 5, 5 * 3 = 15", "with another answer than the row has, or none"),
        ("2 + x = 5, 5 * 2 = 10", "with a call that its tool refuses"),
        ("it is 10", "without a tool's result at the end"),
        ("500 * 0.02 = 10,000", "with a stated result that its tool does not give"),
        ("20 / 2 = 10/3", "with a stated result that its tool does not give"),
        ("0 - 10 = \N{MINUS SIGN}10", "with another answer than the row has, or none"),
        ("12 + 3 = - 5 =", " 12 + 3 = - 5 ="),  # less five: none is stated
        ("2 + 5 = $7, 7 + 3 = $ 10", " 2 + 5 =, 7 + 3 ="),
        ("500 + 500 = 1,000, 1000 / 100 = 10.0.", " 500 + 500 =, 1000 / 100 ="),
        ("1 / 2 = 0.50, 0.5 * 20 = 10", " 1 / 2 =, 0.5 * 20 ="),
        ("1 / 2 = .5, 0.5 * 20 = 10", " 1 / 2 =, 0.5 * 20 ="),
        ("3 - 5 = \N{MINUS SIGN}2, -2 * -5 = 10", " 3 - 5 =, -2 * -5 ="),
        ("3 - 5 = -$2, -2 * -5 = 10", " 3 - 5 =, -2 * -5 ="),
        ("2 / 3 = 0.667, 2/3 * 15 = 10", " 2 / 3 =, 2/3 * 15 ="),
        ("1 / 2 = .6, 0.5 * 20 = 10", "with a stated result that its tool does not give"),
        ("2 + 5 = $ 8, 7 + 3 = 10", "with a stated result that its tool does not give"),
        ("500 + 500 = 1,0000, 1000 / 100 = 10", "with a stated result that its tool does not give"),
    ],
)
def test_written_results_are_left_to_the_tool(tmp_path: Path, rationale: str, z: str) -> None:
    example = one(tmp_path, {"question": "q", "answer": 10, "rationale": rationale}, tools="calculator")
    assert z in (example.z, example.meta.get("unusable"))


def test_arc(tmp_path: Path) -> None:
    samples.write_all(tmp_path)
    task = qa(data=f"{tmp_path}/arc.jsonl", choices="choices", answer="answerKey")
    found = task.read(f"{tmp_path}/arc.jsonl")
    assert (
        found[1].x == "Question: Which of these can swim, by question 1?\nA. fish\nB. cloud\nC. chair\nD. rock\nAnswer:"
    )
    assert {example.answer for example in found} == set("ABCD")
    for example in found:
        swims = next(line[0] for line in example.x.splitlines() if line.endswith("fish"))
        assert example.answer == swims
        candidates = task.candidates(example)
        assert candidates is not None and candidates[swims] == example.y == f"\nThe answer is {swims}."
        again = task.example(example.x, example.answer)
        assert (again.x, again.y, task.candidates(again)) == (example.x, example.y, candidates)


def test_choices_in_another_order_are_the_same_question(tmp_path: Path) -> None:
    """Asked twice, with the same answer, it is one; in a test, it is in no training; another answer drops both."""

    def row(question: str, choices: str, answer: str) -> str:
        return json.dumps({"question": question, "options": choices, "answer": answer})

    rows = [row("Which is red?", "rust|snow|coal", "A"), row("Which is red?", "snow|coal|rust", "C")]
    rows += [
        row("Which is wet?", "sand|rain", "B"),
        row("Which is hot?", "ice|fire", "B"),
        row("Which?", "cat|dog", "A"),
    ]
    rows += [row("Which?", "dog|cat", "A"), *(row(f"{n}?", "cat|dog", "A") for n in range(4))]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    (tmp_path / "tests.jsonl").write_text(row("Which is wet?", "rain|sand", "A"))
    task = qa(data=f"{tmp_path}/rows.jsonl", test=f"{tmp_path}/tests.jsonl", choices="options")
    data = task.load(DataRequest(demonstrations=0, unlabelled=20, validation=0))
    asked = [example.x.splitlines()[0] for example in data.unlabelled]
    assert sorted(asked) == sorted(f"Question: {q}?" for q in ("Which is red", "Which is hot", *"0123"))
    assert any("1 rows dropped: in a test file" in note for note in data.notes)
    assert any("2 rows dropped: with different answers to one question" in note for note in data.notes)
    assert any("1 rows dropped: repeated" in note for note in data.notes)


@pytest.mark.parametrize(
    ("answers", "options", "kept"),
    [
        (("Paris", "the paris."), {"grade": "text"}, True),
        (("Paris", "paris"), {"grade": "exact"}, False),
        (("0.667", "2/3"), {"grade": "number"}, True),
        (("2/3", "0.667", "0.6667"), {"grade": "number"}, True),
        (("2/3", "0.667", "0.668"), {"grade": "number"}, False),
        (("few", "a few"), {"choices": "few,a few"}, False),
    ],
)
def test_answers_that_the_grade_calls_the_same_are_no_others(
    tmp_path: Path, answers: tuple[str, ...], options: dict[str, str], kept: bool
) -> None:
    options |= {"data": rows(tmp_path, *({"question": "Which?", "answer": answer} for answer in answers))}
    options |= {"test": samples.write_rows(tmp_path / "t.jsonl", [{"question": "t", "answer": answers[0]}])}
    data = qa().load(DataRequest(0, 9, 0, options=options))
    assert [example.answer for example in data.unlabelled] == [answers[0]] * kept
    why = "repeated" if kept else "with different answers to one question"
    assert f"{len(answers) - kept} rows dropped: {why}." in data.notes


def test_boolq(tmp_path: Path) -> None:
    """Truth values number the choices; a prompt may have any column, and is then what a user types."""
    samples.write_all(tmp_path)
    task = qa(
        data=f"{tmp_path}/boolq.jsonl", choices="no,yes", prompt="{passage}\\nQuestion: {{ question }}?\\nAnswer:"
    )
    found = task.read(f"{tmp_path}/boolq.jsonl")
    assert found[0].x == "0 divided by 2 is 0.0.\nQuestion: is 0 even?\nAnswer:"
    assert [example.answer for example in found[:3]] == ["yes", "no", "yes"]
    assert task.candidates(found[0]) == {"no": "\nThe answer is no.", "yes": "\nThe answer is yes."}
    assert found[0].question == "" and task.example(found[0].x, "yes").x == found[0].x


ARC = "Question: Which of these can swim, by question 1?\nA. fish\nB. cloud\nC. chair\nD. rock\nAnswer:"


@pytest.mark.parametrize(
    "text",
    [
        "Is 3 odd?",
        "Question: Is 3 odd?\nAnswer:",
        "Question: Is 3 odd? A. yes B. no Answer:",
        "Question: Is 3 odd?\nA. yes\nAnswer:",
        "Question: Is 3 odd?\nB. yes\nC. no\nAnswer:",
        "Question: Is 3 odd?\nA. yes\nB. no",
        "Is 3 odd?\nA. yes\nB. no\nAnswer:",
    ],
)
def test_what_is_no_prompt_with_choices_is_refused(tmp_path: Path, text: str) -> None:
    """It was asked as it stood, which nobody had trained on."""
    samples.write_all(tmp_path)
    task = qa(data=f"{tmp_path}/arc.jsonl", choices="choices", answer="answerKey")
    with pytest.raises(UsageError) as refused:
        task.example(text, "yes")
    shown = samples.arc(1)[0]["question"] + r"\nA. rock\nB. fish\nC. cloud\nD. chair\nAnswer:'"
    assert str(refused.value).startswith(f"question {text!r}: ") and shown in str(refused.value)
    assert r"write all of it, \n for a line break" in str(refused.value) and "\n" not in str(refused.value)


def test_a_prompt_may_be_typed_as_it_is_shown(tmp_path: Path) -> None:
    samples.write_all(tmp_path)
    task = qa(data=f"{tmp_path}/arc.jsonl", choices="choices", answer="answerKey")
    typed = task.example(printable(ARC), "A")
    assert (typed.x, typed.meta["choices"]) == (ARC, tuple("ABCD"))
    latex = ARC.replace("swim", r"\nearrow")  # no line break where the rest has them
    assert task.example(latex).x == latex
    with pytest.raises(UsageError, match="the answer 'E' is none of A, B, C, D"):
        task.example(ARC, "E")


def test_the_last_list_of_letters_is_that_of_the_choices(tmp_path: Path) -> None:
    text = "Question: Who?\nA. Smith said:\nB. Jones knows.\nA. ann\nand bob\nB. bob\nC. cat\nAnswer:"
    assert qa(data="x.csv", choices="options").example(text).meta["choices"] == tuple("ABC")
    file = rows(tmp_path, {"question": "Who is it?", "options": "ann|bob", "answer": "A"})
    task = qa(data=file, choices="options", prompt="{question} {{ choices }} So?")  # A begins no line
    (example,) = task.read(file)
    assert task.example(example.x, "A").meta["choices"] == tuple("AB")
    with pytest.raises(UsageError, match=r"of the form 'Who is it\? A\. ann\\nB\. bob So\?'"):
        task.example("Who is it? So?")


def test_what_lacks_a_column_is_refused(tmp_path: Path) -> None:
    samples.write_all(tmp_path)
    settings = {"choices": "no,yes", "prompt": "{passage}\\nQuestion: {question}?\\nOf {choices}:"}
    task = qa(data=f"{tmp_path}/boolq.jsonl", **settings)
    whole = "0 divided by 2 is 0.0.\nQuestion: is 0 even?\nOf no, yes:"
    assert task.example(printable(whole), "yes").x == task.example(whole, "yes").x == whole
    for text in (
        "is 0 even",
        whole.removesuffix(":"),
        whole.replace("no, yes", "yes, no"),
        whole.partition("\n")[2],
        "0.\nQuestion: ?\nOf no, yes:",
    ):
        with pytest.raises(UsageError) as refused:
            task.example(text)
        assert repr(whole) in str(refused.value)
    for data in ("x.csv", "hub:owner/name"):  # which nobody reads for it
        with pytest.raises(UsageError) as refused:
            qa(data=data, **settings).example("is 0 even")
        assert r"of the form '...\nQuestion: ...?\nOf no, yes:'" in str(refused.value)
    long = rows(tmp_path, {"passage": "so " * 3000, "question": "is it", "answer": True})
    with pytest.raises(UsageError) as refused:
        qa(data=long, **settings).example("is it")
    assert len(str(refused.value)) < 300 and "...o so" in str(refused.value)
    assert r"\nQuestion: is it?\nOf no, yes:'" in str(refused.value)


def test_a_spreadsheet(tmp_path: Path) -> None:
    samples.write_all(tmp_path)
    task = qa(data=f"{tmp_path}/sheet.csv", question="item", answer="colour", rationale="why")
    found = task.read(f"{tmp_path}/sheet.csv")
    assert (found[0].z, found[0].answer) == (" 0 is even. So the answer is blue.", "blue")
    assert task.answer(chain(found[0].z or "")) == "blue"
    assert task.grade(found[0], "Blue")


@pytest.mark.parametrize(
    ("options", "given", "read"),
    [
        *(("rock|fish|cloud", *names) for names in [("b", "B"), ("C", "C"), ("2", "C"), (2, "C"), ("Fish", "B")]),
        ("8|2|24", 2, "C"),  # a number of a list of texts: MMLU's
        ("8|2|24", "2", "B"),
        ({"text": ["8", "4"], "label": ["1", "2"]}, 1, "A"),
        ("yes|no", True, "A"),
        ("False|True", True, "B"),
        ("wet|dry", True, "B"),
    ],
)
def test_the_ways_to_name_a_choice(tmp_path: Path, options: Any, given: Any, read: str) -> None:
    record = {"question": "q", "options": options, "answer": given}
    assert one(tmp_path, record, choices="options").answer == read


@pytest.mark.parametrize(
    ("rows", "read"),
    [
        ([("1|2|14", "1"), ("8|4|2", "2")], "AC"),  # all are texts
        ([("1|2|14", "1"), ("8|4|6", "2")], "BC"),  # the second is none
        ([("1|2|14", 1), ("8|4|2", 2)], "BC"),  # all are numbers
        ([("1|2|14", 1), ("8|4|2", 4)], "AB"),  # the second is none
        ([("1|2|14", "1"), ("8|4|6", "b")], "AB"),
        ([("1|2|14", "1"), ("wet|dry", True)], "AB"),
    ],
)
def test_answers_in_digits_are_all_texts_or_all_numbers(tmp_path: Path, rows: list[tuple[str, Any]], read: str) -> None:
    """Not some rows' by the one reading and some by the other, which labels them wrong without a word."""
    file = tmp_path / "rows.jsonl"
    records = [{"question": f"q{n}", "options": options, "answer": given} for n, (options, given) in enumerate(rows)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    task = qa(data=str(file), choices="options", prompt="{question} {choices}")
    assert "".join(example.answer or "" for example in task.read(str(file))) == read
    assert "".join(example.answer or "" for example in task._data[0]) == read


def test_answers_in_digits_behind_a_marker_are_read_as_others_are(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    options = ["1", "2", "3", "4"]
    records = [{"question": f"q{n}", "options": options, "answer": f"so it is #### {n}"} for n in (2, 1, 3, 4)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    task = qa(data=str(file), choices="options", prompt="{question} {choices}", answer_marker="####")
    assert "".join(example.answer or "" for example in task.read(str(file))) == "BACD"


@pytest.mark.parametrize(
    ("rationale", "z"),
    [
        ("14 + 22 = 36. The answer is 41.", None),
        ("14 + 22 = 36, so the answer is 41", None),
        ("14 + 22 = 36. The answer is 36.", " 14 + 22 = 36. So the answer is 36"),
        ("14 + 22 = 36. So the answer is 36", " 14 + 22 = 36. So the answer is 36"),
        ("The answer is 36.", " The answer is 36. So the answer is 36"),
        ("14 + 22 = 36.", " 14 + 22 = 36. So the answer is 36"),
    ],
)
def test_a_rationale_that_says_the_answer_is_taken_at_its_word(tmp_path: Path, rationale: str, z: str | None) -> None:
    """What is put behind it is the row's answer, whatever stands before."""
    row = {"question": "What is 14 plus 22?", "answer": 36, "rationale": rationale}
    made = one(tmp_path, row)
    assert (made.z or "").rstrip(".") == (z or "")
    assert (made.meta.get("unusable") == "with another answer than the row has, or none") == (z is None)


def test_where_no_rationale_can_be_used_nothing_begins(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"question": f"q {n}?", "answer": n, "rationale": f"It is {n} * 1 = {n}. Good."} for n in range(9)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    why = (
        r"none of 8 rationales can be used, 8 of them dropped .* \(the first: .*rows\.jsonl:1\); mend them, or give --"
    )
    with pytest.raises(UsageError, match=why):
        qa(data=str(file), tools="calculator").load(DataRequest(2, 2, 0))


def test_a_column_in_other_capitals_is_no_rationale_that_nobody_reads(tmp_path: Path) -> None:
    row = {"question": "q?", "answer": "a", "Rationale": "So it is."}
    with pytest.raises(UsageError, match="nobody reads the column 'Rationale'; name it, `rationale: Rationale`"):
        one(tmp_path, row)
    assert one(tmp_path, row, rationale="Rationale").z and not one(tmp_path, row, rationale="none").z


@pytest.mark.parametrize(("answer", "said"), [("No.", "No."), ("No", "No."), ("and so on...", "and so on....")])
def test_the_full_stop_of_an_answer_is_not_written_twice(tmp_path: Path, answer: str, said: str) -> None:
    assert one(tmp_path, {"question": "q?", "answer": answer}).y == f"\nThe answer is {said}"


def test_a_stop_that_ends_each_step_is_refused() -> None:
    with pytest.raises(UsageError, match=r"stop '\.' ends each step, too"):
        qa(data="x.csv", stop=".")
    assert qa(data="x.csv", stop=".", step="none").step_delimiter is None
    assert (qa(data="x.csv").step_delimiter, qa(data="x.csv", step=";").step_delimiter) == (".", ";")


def test_test_files_are_a_list_like_others(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("data: [a.jsonl, b.jsonl]\ntest: [c.jsonl, d.jsonl]\n")
    task = tasks.load(str(tmp_path / "mine.yaml"))
    assert isinstance(task, QA)
    assert [Path(name).name for name in task.spec.test.split(",")] == ["c.jsonl", "d.jsonl"]


def test_a_row_has_one_choice_wherever_it_is_read(tmp_path: Path) -> None:
    """Training read a choice's text, and a test file of one of its rows a number: right answers were wrong."""

    def written(name: str, *records: tuple[str, Any]) -> str:
        return samples.write_rows(
            tmp_path / name, [{"question": a, "options": a, "answer": given} for a, given in records]
        )

    texts, numbers = [("1|2|14", "1"), ("8|4|2", "2")], [("1|2|14", "1"), ("8|4|6", "2")]
    data, part = written("data.jsonl", *numbers), written("part.jsonl", numbers[0])
    task = qa(data=data, choices="options", test=part)
    assert [e.answer for e in (*task._training[0], *task.split("test"), *task.read(part))] == ["B", "C", "B", "B"]
    assert [e.answer for e in qa(data=data, choices="options").read(part)] == ["B"]
    either = written("either.jsonl", *texts)  # alone they would be texts, but the tests can be numbers only
    task = qa(data=either, choices="options", test=data)
    assert [e.answer for e in (*task._training[0], *task.split("test"))] == ["B", "C", "B", "C"]
    assert [e.answer for e in qa(data=either, choices="options").read(either)] == ["A", "C"]
    letters = written("letters.jsonl", ("1|2|14", "A"))
    assert [e.answer for e in qa(data=letters, choices="options").read(part)] == ["A"]  # as its own rows are
    assert [e.answer for e in qa(choices="options").read(part)] == ["A"]
    with pytest.raises(UsageError, match=r"part\.jsonl: all rows of `data` and `test` tell .*: none\.jsonl: no such f"):
        qa(data="none.jsonl", choices="options").read(part)
    words = written("words.jsonl", ("rock|fish", "1"))
    assert [e.answer for e in qa(data="none.jsonl", choices="options").read(words)] == ["B"]  # it cannot be a text


def test_choices_that_differ_in_capitals(tmp_path: Path) -> None:
    for named, read in (("mW", "A"), ("MW", "B")):
        record = {"question": "q", "options": "mW|MW", "answer": named}
        assert one(tmp_path, record, choices="options").answer == read
        assert one(tmp_path, {"question": "q", "answer": named}, choices="mW,MW").answer == named
    with pytest.raises(UsageError, match="none of the choices mW, MW"):
        one(tmp_path, {"question": "q", "answer": "Mw"}, choices="mW,MW")


def test_choices_numbered_from_1_are_told_and_not_left_out(tmp_path: Path) -> None:
    records = [{"question": f"q{n}", "options": "a|b|c", "answer": n} for n in (1, 2, 3)]
    for answers_of, refused in ((records, True), ([*records, {**records[0], "answer": 0}], False)):
        task = qa(data=rows(tmp_path, *answers_of), choices="options", prompt="{question} {choices}", skip_bad="true")
        if refused:
            with pytest.raises(UsageError, match="numbers the choices from 1"):
                _ = task._data
        else:
            assert "".join(example.answer or "" for example in task._data[0]) == "BCA"


@pytest.mark.parametrize("answer", ["U.S.", "Yahoo!", '"Hamlet"', "5."])
def test_an_exact_answer_with_punctuation_around_it_can_be_right(tmp_path: Path, answer: str) -> None:
    task = qa(data="x.csv", grade="exact")
    (example,) = task.read(rows(tmp_path, {"question": "q", "answer": answer}))
    assert task.grade(example, task.answer(chain(f" So the answer is {answer}.")))
    assert not task.grade(example, task.answer(chain(f" So the answer is {answer.lower()}x.")))


@pytest.mark.parametrize(("answer", "why"), [("?", "is punctuation only"), ("x\ny", "has a line break")])
def test_an_answer_that_no_chain_can_state_is_refused(tmp_path: Path, answer: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        one(tmp_path, {"question": "q", "answer": answer})


def test_an_answer_in_digits_that_can_be_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the answer '7' is none of the choices 1, 2"):
        one(tmp_path, {"question": "q", "options": "1|2", "answer": 7}, choices="options")


@pytest.mark.parametrize(
    ("choices", "given", "read"), [("yes,no", False, "no"), ("no,yes", False, "no"), ("1,2,3", 2, "2")]
)
def test_the_ways_to_name_one_of_the_same_choices(tmp_path: Path, choices: str, given: Any, read: str) -> None:
    assert one(tmp_path, {"question": "q", "answer": given}, choices=choices).answer == read


def test_digits_among_the_same_choices_are_texts(tmp_path: Path) -> None:
    """Else labels from 0 to 4 would be 1, 1, 2, 3, 4."""
    with pytest.raises(UsageError, match="the answer '0' is none of the choices 1, 2, 3"):
        one(tmp_path, {"question": "q", "answer": 0}, choices="1,2,3")


def test_files_beside_the_project(shared_data: Path) -> None:
    """The published GSM8K: as many rationales as `word_problems` makes of it."""
    folder = shared_data / "gsm8k"
    task = qa(data=f"{folder}/train.jsonl", test=f"{folder}/test.jsonl", answer_marker="####", tools="calculator")
    tests = task.split("test")
    assert len(tests) == 1319
    assert all(example.answer for example in tests)


# -- how an answer is read -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extract", "text", "answer"),
    [
        ("last-number", " 3 and then 4, so $1,200.50 in all.", "$1,200.50"),
        ("last-number", " it is 3-5", "5"),
        ("last-number", " it is -5.", "-5"),
        ("last-number", " a 3/4 share", "3/4"),
        ("last-number", " none", None),
        ("last-number", " the loss is -$1,000.", "-$1,000"),
        ("last-number", " x = .5", ".5"),
        ("last-number", " it is 0.5/2", "0.5/2"),
        ("last-number", " it is \N{MINUS SIGN}5.", "\N{MINUS SIGN}5"),
        ("last-number", " a 7, or 0,5", "7"),
        ("last-number", " a 7, or 2.25,5", "7"),
        ("last-number", " a 7, or 1e-3", "7"),
        ("last-number", " 3, 4", "4"),
        *(("last-number", f" a 7, or {one}", "7") for one in ("3 1/2", "3½", "3 ½", "3⁄4", "1.000.000", "1_000")),
        *(("last-number", f" a 7, or {one}.", "7") for one in ("5 000", "-12 345 678.5", "5\u202f000", "1'000")),
        *(("last-number", f" a 7, or {one}", "7") for one in ("100 200 300", "1/2.5", "12/05/2024")),
        ("last-number", " 7 and 3 4", "4"),
        ("last-number", " in 1999 100", "100"),
        ("last-number", " a 7\n100", "100"),
        ("last-number", " 24/7.", "24/7"),
        ("after:####", " a #### 1 #### 2 ", "2"),
        ("after:So it is", " So it is the sky.", "the sky"),
        ("after:So it is", " So it is", None),
        ("after:So it is", " the sky", None),
        ("after:.*", " .* the sky", "the sky"),
        (r"regex:\(([A-D])\)", " (A) no, (C).", "C"),
        (r"regex:[A-D]", " A, B", "B"),
        (r"regex:[A-D]", "", None),
        (r"regex:answer(?: is (\d+))?", "my answer", None),
    ],
)
def test_an_answer_is_read_off_a_chain(tmp_path: Path, extract: str, text: str, answer: str | None) -> None:
    """And an exported model reads the same."""
    task = qa(data="x.csv", extract=extract)
    assert task.answer(chain(text)) == answer
    (tmp_path / "portable.py").write_text(task.portable or "")
    assert runpy.run_path(str(tmp_path / "portable.py"))["answer"](text, None) == answer


def test_a_pattern_that_takes_for_ever_finds_nothing() -> None:
    task = qa(data="x.csv", extract=r"regex:(?:a|a|aa)+$")
    began = time.monotonic()
    assert task.answer(chain(" " + "a" * 5000 + "b")) is None
    assert time.monotonic() - began < 20 * answers.SECONDS


def test_a_long_chain_is_read_from_its_end() -> None:
    task = qa(data="x.csv", extract="last-number")
    assert task.answer(chain("7 " * 100_000 + "8")) == "8"
    assert task.answer(chain("7 " + "x" * answers.MAX_CHARACTERS)) is None


# -- when it is right ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grade", "answer", "right"),
    [
        ("exact", "the sky", True),
        ("exact", "The sky", False),
        ("text", " A  Sky! ", True),
        ("text", "skies", False),
        ("text", "...", False),
    ],
)
def test_texts_are_compared(tmp_path: Path, grade: str, answer: str, right: bool) -> None:
    task = qa(data="x.csv", grade=grade)
    assert task.grade(one(tmp_path, GOOD, grade=grade), answer) is right


@pytest.mark.parametrize(
    ("right", "answer", "same"),
    [
        ("-5", "5", False),
        ("-5", "\N{MINUS SIGN}5.0", True),
        ("3.5", "3 5", False),
        ("1,000", "1000", True),
        ("C", "C++", False),
        ("C++", "c++.", True),
        ("A", "a", True),
        ("A", "the A", True),
        ("A", "the", False),
        ("2 to 5", "2-5", False),
        ("3-5 days", "3 5 days", False),
        ("3-5 days", "3 - 5 days", True),
        ("3-5", "3, 5", False),
        ("1914–1918", "1914-1918", True),
        ("10-30", "10:30", False),
        ("2x-1", "2x - 1", True),
        ("(x+1)-(y)", "(x+1) - (y)", True),
        ("vitamin B-12", "vitamin B 12", True),  # no sign, but a hyphen
        ("5 -3", "5 - 3", False),
        ("x > 5", "x < 5", False),
        ("n + 1", "n - 1", False),
        ("2^3", "2*3", False),
        ("-x", "x", False),
        ("A∪B", "A∩B", False),
        (".5 m", "5 m", False),
        ("1,000 dollars", "1000 dollars", True),
        ("की", "का", False),
        ("café", "cafe\N{COMBINING ACUTE ACCENT}", True),
        ("Paris", "**Paris**", True),
    ],
)
def test_signs_and_points_count_in_texts(right: str, answer: str, same: bool) -> None:
    assert same_text(answer, right) is same


@pytest.mark.parametrize(
    ("right", "answer", "same"),
    [
        ("3.0×10⁸ m/s", "3.0×10² m/s", False),
        ("3.0×10⁸ m/s", "3.0×10 m/s", False),
        ("3.0×10⁸", "3.0x10^8", True),
        (r"$3\times 10^{8}$", "3e8", True),
        ("10⁻³", "10^–3", True),
        ("2^3×10^2", "2^300", False),
        ("x²", "x³", False),
        ("H₂O", "H2O", True),
        ("10 €", "10 $", False),
        ("$10", "10", False),
        ("10 €", "€10.00", True),
        ("50%", "50", False),
        ("50 %", "50%", True),
        ("12 %", "12 ‰", False),
        ("5′", "5″", False),
        ("–3 m", "3 m", False),
        ("–3 m", "-3 m", True),
        ("1914–1918", "1914-1918", True),
        ("$5–$10", "$5-$10", True),
        ("3.0 m", "3 m", True),
        ("+3 m", "3 m", True),
        ("x +3", "x 3", False),
        ("3/4", "0.75", True),
        ("1½", "1 1/2.", True),
        ("½ cup", "¼ cup", False),
        ("2,05 m", "2,5 m", False),
        ("1,2,3", "1, 2, 3", True),
        ("1.10.2", "1.1.2", False),
        ("(3+4)/2", "(3+4)*2", False),
        ("2 x 3", "2*3", True),
        ("vitamin A", "vitamin", False),
        ("A, B", "B", False),
        ("a-b", "b", False),
        ("room 5a", "room 5", False),
        ("The sky", "**The** sky", True),
        ("the, sky", "sky", True),
        ("a: sky", "A 'sky'", True),
    ],
)
def test_what_no_word_says_counts_in_texts(right: str, answer: str, same: bool) -> None:
    """Wrong answers were right: powers, signs of currencies and of percent, and dashes were left out."""
    assert same_text(answer, right) is same_text(right, answer) is same


@pytest.mark.parametrize(
    ("right", "answer", "same"),
    [
        ("\N{MINUS SIGN} 5", "5", False),
        ("\N{MINUS SIGN} 5", "-5", True),
        ("- 5", "5", False),
        ("(- 5)", "-5", True),
        ("– $5.00.", "-$5", True),
        ("- 3/4", "-0.75", True),
        ("- 5 m", "5 m", True),  # of a list
        ("- Paris", "Paris", True),
        ("Paris -", "Paris", True),
        ("\N{MINUS SIGN} x", "x", False),
        ("x = \N{MINUS SIGN} 5", "x = -5", True),
        ("n \N{MINUS SIGN} 1", "n - 1", True),
        ("-√2", "√2", False),
        ("-∞", "∞", False),
        ("-(x+1)", "(x+1)", False),
        ("A-", "A", False),
        ("A-", "A+", False),
        ("A-", "**A\N{MINUS SIGN}**.", True),
        ("A-, B+", "A, B+", False),
        ("O2-", "O2", False),
        ("well-known", "well known", True),
        ("pre- and post-war", "pre and post war", True),
        ("!=5", "=5", False),
        ("x != 5", "x ≠ 5", True),
        ("5'3\"", "5\"3'", False),
        ("5' tall", '5" tall', False),
        ("5' tall", "5′ tall", True),
        ("\"5\" apples, '3' pears", "5 apples, 3 pears", True),
        ("U.S.", "US", True),
        ("the U.S.A.", "USA", True),
        ("5 p.m.", "5 pm", True),
        ("3.5", "35", False),
        ("don't", "dont", True),
        ("I’m", "im", True),
        ("1990's", "1990s", True),
        ("f'g", "fg", False),
    ],
)
def test_signs_are_told_from_punctuation_in_texts(right: str, answer: str, same: bool) -> None:
    assert same_text(answer, right) is same_text(right, answer) is same


PIECES = "3 3.0 -3 –3 +3 10 1,000 2,05 ⁸ ₂ ^ ^8 × x × * / % ‰ € $ ′ ″ - – ½ a A the B m sky e8 ( ) . , ! ' _"
PIECES += " != \" A- U.S. don't √ \N{MINUS SIGN}"
WORDS = "sky a H₂O x² 3.0 -4 1,000 50% 10€ C++ m/s Straße U.S. don't A- 5′"
PARTS = st.sampled_from(PIECES.split())
TEXTS = st.lists(st.one_of(PARTS, st.just(" ")), max_size=10).map("".join) | st.text(max_size=20)


@given(TEXTS, TEXTS, TEXTS)
def test_the_same_text_is_an_equivalence(one: str, two: str, three: str) -> None:
    """Votes are counted by it."""
    assert same_text(one, one)
    assert same_text(one, two) == same_text(two, one)
    if same_text(one, two) and same_text(two, three):
        assert same_text(one, three)


@given(st.lists(st.sampled_from(WORDS.split()), min_size=1, max_size=4))
def test_case_punctuation_and_articles_do_not_count_in_texts(words: list[str]) -> None:
    text = " ".join(words)
    others = (text.upper(), f" {text}. ", "; ".join(words), f"“{text}”!", f"**{text}**", f"The {text}", f"({text})")
    assert [other for other in others if not same_text(other, text)] == []


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3), st.integers(0, 3))
def test_numbers_in_texts_are_numbers(value: Decimal, zeros: int) -> None:
    text = f"{value:f}"
    assert same_text(f"{text}{'0' * zeros} m", f"{text.rstrip('0').rstrip('.')} m")
    assert not same_text(f"{text} m", f"{value + 1:f} m")


@pytest.mark.parametrize("part", ["^", "1 ", "1,", "$x", "9", "1e1", "1×10", "1 × 10 ^ ", "a ", "(", "€ ", " "])
def test_a_long_text_is_compared_at_once(part: str) -> None:
    text, began = part * (answers.MAX_CHARACTERS // len(part)), time.monotonic()
    assert not same_text(text, f"{text}b")
    assert time.monotonic() - began < 1


def test_a_number_that_is_a_part_of_another_is_none(tmp_path: Path) -> None:
    """`10` was read off `10⁸`, and 5 off `–5` with a dash."""
    task = qa(data="x.csv", extract="last-number")
    for text in ("10⁸", "3.0×10⁸", "3 x 10^8", "10^-8", "10^8"):
        assert task.answer(chain(f" 7, or {text}.")) == "7"
    example = one(tmp_path, {"question": "q", "answer": "–5"}, extract="last-number")
    assert example.answer == "-5"
    assert task.grade(example, task.answer(chain(" it is –5."))) and not task.grade(example, "5")


def test_numbers_are_compared(tmp_path: Path) -> None:
    example = one(tmp_path, {"question": "q", "answer": "$1,000"}, extract="last-number")
    assert example.answer == "1000"
    task = qa(data="x.csv", extract="last-number")
    assert task.grade(example, "1000.0") and not task.grade(example, "1001") and not task.grade(example, "many")
    assert qa(data="x.csv", extract="last-number", tolerance="0.01").grade(example, "1010")
    assert not qa(data="x.csv", extract="last-number", tolerance="0.01").grade(example, "1011")
    assert not answers.same_number("1234568", "1234567", 0.0)
    assert answers.same_number("\N{MINUS SIGN}5", "-5", 0.0)


def test_a_function_of_ones_own_grades(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def same(answer, right):\n    return answer[0] == right[0]\n")
    task = qa(data="x.csv", grade=f"{tmp_path}/mine.py:same")
    assert task.code == (f"{tmp_path}/mine.py:same",)
    example = one(tmp_path, GOOD)
    assert task.grade(example, "two") and not task.grade(example, "sky")
    for name, message in (("mine.py:other", "the file has no function other"), ("none.py:same", "no such file")):
        with pytest.raises(UsageError, match=message):
            qa(data="x.csv", grade=f"{tmp_path}/{name}").grade(example, "two")


@pytest.mark.parametrize("file", [True, False])
@pytest.mark.parametrize(("body", "what"), [("0.2", "a float"), ("'no'", "a str"), ("None", "None"), ("1", "an int")])
def test_a_grader_that_gives_no_truth_value_is_told(tmp_path: Path, file: bool, body: str, what: str) -> None:
    """A score and a word made all answers right."""
    (tmp_path / "mine.py").write_text(f"def f(answer, right):\n    return {body}\n")
    (tmp_path / "mine.yaml").write_text("data: x.csv\ngrade: mine.py:f\n")
    if file:
        task = tasks.load(f"{tmp_path}/mine.yaml")
    else:
        task = tasks.load("qa", {"grade": f"{tmp_path}/mine.py:f"})
    example = one(tmp_path, GOOD)
    assert task.grade(example, "x") is False
    with pytest.raises(UsageError, match=f"20 of 20 calls failed: 20 {what} instead of True or False.*mend it"):
        _ = [task.grade(example, "x") for _ in range(30)]


def test_a_broken_grader_is_no_fault_of_the_rows(tmp_path: Path) -> None:
    """Nor left out with `skip_bad`: nothing that it says of a row is true."""
    (tmp_path / "mine.py").write_text("def f(answer):\n    return True\n")
    records = [{"question": f"q{k}", "answer": "a", "rationale": "So. The answer is a"} for k in range(40)]
    samples.write_rows(tmp_path / "rows.jsonl", records)
    for skip in ("true", "false"):
        (tmp_path / "mine.yaml").write_text(f"data: rows.jsonl\ngrade: mine.py:f\nskip_bad: {skip}\n")
        task = tasks.load(f"{tmp_path}/mine.yaml")
        with pytest.raises(CodeError, match=r"rows\.jsonl:\d+: task mine, .*\.py:f: 20 of 20 .*`grade` gave TypeErr"):
            task.load(DataRequest(5, 5, 0))


def test_a_prompt_that_tells_the_answer_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^prompt 'Q: {question} A: {answer}' shows 'answer', which is to be found"):
        qa(prompt="Q: {question} A: {answer}")
    with pytest.raises(UsageError, match=r"shows 'why', which is to be found out; end it before that column"):
        qa(prompt="{question} {why}:", rationale="why")


def test_a_column_of_rationales_that_no_row_has(tmp_path: Path) -> None:
    """By its usual name it may be missing; one that was named is a mistake."""
    data = rows(tmp_path, {"question": "q", "answer": "a", "why": "b"})
    qa(data=data).read(data)
    with pytest.raises(UsageError, match="`rationale` names the column 'wyh'; there are answer, question, why"):
        qa(data=data, rationale="wyh").read(data)


def test_one_number_out_of_range_is_the_fault_of_its_row(tmp_path: Path) -> None:
    choices = ["cat", "dog", "cod", "ant"]
    records = [{"question": f"q{k}", "options": choices, "answer": 4 if k == 8 else k % 4} for k in range(12)]
    data = rows(tmp_path, *records)
    with pytest.raises(UsageError, match=r"rows\.jsonl:9: the answer '4' is none of .*, which are numbered 0 to 3$"):
        qa(data=data, choices="options", prompt="{question} {choices}").read(data)


@pytest.mark.parametrize("skip_bad", ["false", "true"])
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ({"tools": "none.py"}, "none.py: no such tool file"),
        ({"grade": "none.py:same"}, "grade none.py:same: there is no"),
    ],
)
def test_code_that_is_not_there_is_no_fault_of_the_rows(
    tmp_path: Path, code: dict[str, str], message: str, skip_bad: str
) -> None:
    """Each row with a rationale was refused for it, or left out in silence."""
    records = [{"question": f"q{k}", "answer": 5, "rationale": "It is 5."} for k in range(60)]
    options = {"data": rows(tmp_path, *records), "extract": "last-number", "skip_bad": skip_bad, **code}
    for ask in (lambda task: task.split("test"), lambda task: task.read(options["data"])):
        with pytest.raises(UsageError) as refused:
            ask(qa(**options))
        assert str(refused.value).startswith(message)
    with pytest.raises(UsageError) as refused:
        qa().load(DataRequest(5, 5, 0, options=options))
    assert str(refused.value).startswith(message)


def test_a_tool_of_ones_own_is_code() -> None:
    assert qa(data="x.csv", tools="calculator,./mine.py:Tool").code == ("./mine.py:Tool",)
    assert qa(data="x.csv", tools="calculator", grade="exact").code == ()


# -- rationales ------------------------------------------------------------------------------------------


def test_a_rationale_that_cannot_be_is_dropped_and_counted(tmp_path: Path) -> None:
    bad = [
        ({"rationale": "It is 7."}, {"extract": "last-number"}, "with another answer than the row has"),
        ({"rationale": "a;b"}, {"alphabet": "ab .", "choices": "5,6"}, "with ';' and other characters"),
        ({"rationale": "a stop b"}, {"stop": "stop", "choices": "5,6"}, "with 'stop', which ends a rationale"),
    ]
    for record, options, reason in bad:
        example = one(tmp_path, {"question": "q", "answer": 5, **record}, **options)
        assert example.z is None
        assert example.meta["unusable"].startswith(reason)
    records = [{"question": f"q{k}", "answer": 5, "rationale": f"It is {k}."} for k in range(4, 12)]
    options = {"data": rows(tmp_path, *records), "extract": "last-number", "test": str(tmp_path / "rows.jsonl")}
    test = samples.write_rows(tmp_path / "test.jsonl", [{"question": "t", "answer": 1}])
    data = qa().load(DataRequest(5, 5, 0, options=options | {"test": test}))
    assert [example.z for example in data.demonstrations] == [" It is 5."]
    reason = "with another answer than the row has, or none"
    assert f"7 rationales dropped: {reason} (the first: {tmp_path}/rows.jsonl:1)." in data.notes


def test_a_blank_rationale_is_none(tmp_path: Path) -> None:
    """And of two rows with the same question the one that has one is kept."""
    for blank in ("", "  ", None):
        assert one(tmp_path, GOOD | {"rationale": blank}).z is None
    file = tmp_path / "sheet.csv"
    lines = [f"q{n},{n},{'' if n > 2 else f'So the answer is {n}'}" for n in (0, 1, 2, *range(40))]
    file.write_text("\n".join(["question,answer,rationale", *lines[3:], *lines[:3]]) + "\n")
    data = qa(data=str(file), test="0.2").load(DataRequest(20, 20, 4, options={"data": str(file), "test": "0.2"}))
    shown = {example.question for example in data.demonstrations}
    assert shown and shown <= {"q0", "q1", "q2"}
    assert all(example.z == f" So the answer is {example.answer}." for example in data.demonstrations)


def test_of_choices_only_the_right_one_is_right(tmp_path: Path) -> None:
    """Though as texts they are the same but for an article."""
    example = one(tmp_path, GOOD | {"answer": "a few"}, choices="few,a few", extract="choice")
    assert [qa(data="x.csv", choices="few,a few").grade(example, answer) for answer in ("few", "a few")] == [
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"question": "qestion"}, "`question` names the column 'qestion'; there are answer, question"),
        ({"prompt": "{title} {question}"}, "`prompt` names the column 'title'"),
        ({"choices": "choice"}, "`choices` names the column 'choice'"),
    ],
)
def test_a_column_that_no_row_has_is_told_once(tmp_path: Path, options: dict[str, str], message: str) -> None:
    for more in ({}, {"skip_bad": "true"}):
        data = rows(tmp_path, *[GOOD] * 60)
        for split in ("test", data):  # as `eval --data FILE` asks for it
            with pytest.raises(UsageError, match=message) as refused:
                qa(data=data, **options, **more).split(split)
            assert str(refused.value).startswith(f"{data}: the setting ") and "\n" not in str(refused.value)


def test_a_file_of_tests_needs_no_column_of_splits(tmp_path: Path) -> None:
    assert len(qa(data="x.csv", split_column="part").split(rows(tmp_path, GOOD))) == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            {"tools": "calculator"},
            "`tools` sets `grade: number`: for texts set `grade: text` and",
        ),
        (
            {"extract": "last-number"},
            "`extract: last-number` sets `grade: number`: for texts set `grade: text` and",
        ),
        ({"grade": "number"}, "of `grade: number`: for texts set `grade: text`, or take the units out"),
    ],
)
def test_answers_with_units_are_told_once_with_what_to_do(tmp_path: Path, options: dict[str, str], why: str) -> None:
    """It was fifty lines, and to leave all rows out."""
    records = [{"question": f"q{k}", "answer": f"{k} apples"} for k in range(60)]
    for more in ([], [{"question": "q", "answer": 5}] * 20):
        with pytest.raises(UsageError) as refused:
            qa(data=rows(tmp_path, *records, *more), **options).split("test")
        alike, count = str(refused.value).splitlines()
        assert alike.startswith(f"{tmp_path}/rows.jsonl:1, 2, 3, 4 and 56 more: the answer '0 apples' is no number")
        assert f"{60 + len(more)} rows cannot be used; answers are compared as numbers because {why}" in count
        assert "skip_bad" not in count
    with pytest.raises(UsageError, match="60 of 180 rows cannot be used; correct them, or leave them out"):
        qa(data=rows(tmp_path, *records, *more * 6), **options).split("test")


def test_what_is_told_of_answers_with_units_works(tmp_path: Path) -> None:
    told = {"tools": "calculator", "grade": "text", "extract": "after:So the answer is"}
    record = {"question": "q", "answer": "63 apples", "rationale": "60 + 3 = 63."}
    example = one(tmp_path, record, **told)
    assert example.z == " 60 + 3 =. So the answer is 63 apples."
    assert qa(data="x.csv", **told).grade(example, "63 Apples")


@pytest.mark.parametrize(("answer", "choices"), [("63 apples", ""), ("B", "62|63")])
def test_annotated_rationales_of_answers_that_are_no_numbers(tmp_path: Path, answer: str, choices: str) -> None:
    """All were dropped: a value was compared with what is none."""
    told = {"tools": "calculator", "grade": "text", "extract": "after:So the answer is", "answer_marker": "####"}
    record = {"question": "q", "answer": f"She has 60+3=<<60+3=63>>63 of them.\n#### {answer}", "options": choices}
    more = {"choices": "options"} if choices else {}
    example = one(tmp_path, record, **told, **more)
    assert (example.answer, example.z) == (answer, f" She has: 60 + 3 =. So the answer is {answer}.")
    wrong = record | {"answer": "60+3=<<60+3=63>>63\n#### 64"}
    assert one(tmp_path, wrong, **told | {"grade": "number"}).meta["unusable"] == "its value is not the answer"


def test_where_all_rows_are_left_out_it_is_told_why(tmp_path: Path) -> None:
    data = rows(tmp_path, *[GOOD | {"answer": ""}] * 3)
    with pytest.raises(UsageError, match=r"all 3 rows are left out, the first: .*'answer' has 0 characters"):
        qa(data=data, skip_bad="true").split("test")


def test_a_column_that_cannot_stand_in_the_prompt(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the column 'Q id' cannot stand in a prompt"):
        one(tmp_path, GOOD | {"Q id": "7"}, prompt="{question} {Q id} A")
    assert one(tmp_path, GOOD, prompt='{question} {"x": 1}').x == 'What is up? {"x": 1}'


def test_line_breaks(tmp_path: Path) -> None:
    record = {"question": "q", "answer": 5, "rationale": "It is\n 5."}
    assert one(tmp_path, record, extract="last-number").z == " It is 5."
    assert one(tmp_path, record, extract="last-number", stop="").z == " It is\n 5."
    assert not qa().allows("\n") and qa(stop="").allows("\n")
    assert one(tmp_path, record, stop="").y == "\nThe answer is 5."
    assert one(tmp_path, record, stop="</think>", target="It is {answer}").y == "</think> It is 5"


# -- splits ----------------------------------------------------------------------------------------------


def test_shares_are_apart_and_stay(tmp_path: Path) -> None:
    data = samples.write_rows(tmp_path / "d.jsonl", samples.boolq(200))
    options = {"data": data, "choices": "no,yes", "prompt": "{passage} {question}?", "test": "0.3"}
    task = qa(**options)
    tests = {prompt_words(example) for example in task.split("test")}
    assert 40 <= len(tests) <= 80
    found = task.load(DataRequest(0, 1000, 20, options=options))
    trained = {prompt_words(example) for example in (*found.unlabelled, *found.validation)}
    assert not trained & tests and len(trained) + len(tests) == 200
    samples.write_rows(tmp_path / "d.jsonl", samples.boolq(100))
    assert {prompt_words(example) for example in qa(**options | {"skip_bad": "true"}).split("test")} < tests


@pytest.mark.parametrize(
    ("records", "settings", "prompts"),
    [
        (samples.boolq(100), {}, ["Question: {question} Answer:", "{question}?", "{{ question }} So, so:"]),
        (
            samples.boolq(100),
            {"choices": "no,yes"},
            ["{passage}\\n{question}?", "{question} See: {passage}", "{passage} {question} {choices}:"],
        ),
        (
            samples.arc(100),
            {"choices": "choices", "answer": "answerKey"},
            ["{question}\\n{choices}", "Of {choices}: {question}"],
        ),
        (
            [{"item": f"q {k}", "answer": str(k)} for k in range(100)],
            {"question": "item"},
            ["Question: {question} Answer:", "{item}!", "{question} ({item})"],
        ),
    ],
)
def test_prompts_over_the_same_columns_share_their_tests(
    tmp_path: Path, records: list[dict[str, Any]], settings: dict[str, str], prompts: list[str]
) -> None:
    """A test question of one prompt was trained on with another: they could not be compared."""
    data = rows(tmp_path, *records)
    tests = []
    for prompt in prompts:
        task = qa(data=data, prompt=prompt, test="0.3", **settings)
        tests.append([example.meta["source"] for example in task.split("test")])
        trained, _, _ = task._training
        assert len(tests[0]) + len(trained) == 100
    assert 10 <= len(tests[0]) <= 50 and all(one == tests[0] for one in tests)


def test_equal_questions_are_in_one_share(tmp_path: Path) -> None:
    """But for case and punctuation, and the order of lettered choices."""
    first = [{"question": f"Is it {k}?", "options": "cat|dog", "answer": "A"} for k in range(40)]
    again = [{"question": f"is it  {k}", "options": "dog|cat", "answer": "B"} for k in range(40)]
    task = qa(data=rows(tmp_path, *first, *again), choices="options", test="0.5")
    asked = [example.x.partition("\n")[0] for example in task.split("test")]
    tests = [" ".join(text.casefold().rstrip("?").split()) for text in asked]
    assert 20 < len(tests) < 60 and all(tests.count(one) == 2 for one in tests)


def test_what_is_in_a_test_file_is_kept_out_of_training(tmp_path: Path) -> None:
    data = samples.write_rows(tmp_path / "d.jsonl", samples.gsm8k(10))
    test = samples.write_rows(tmp_path / "t.jsonl", [{"question": "Who?", "answer": "#### 1"}, *samples.gsm8k(3)])
    options = {"data": data, "test": test, "answer_marker": "####", "tools": "calculator"}
    found = qa().load(DataRequest(3, 3, 1, options=options))
    assert "3 rows dropped: in a test file." in found.notes
    assert len(found.demonstrations) + len(found.unlabelled) + len(found.validation) == 7


def test_a_column_may_say_the_split(tmp_path: Path) -> None:
    names = ["train", "Test", "dev", "training", "train"]
    records = [{"question": f"q{k}", "answer": f"a{k}", "part": name} for k, name in enumerate(names)]
    options = {"data": rows(tmp_path, *records), "split_column": "part"}
    found = qa().load(DataRequest(0, 9, 9, options=options))
    assert {example.question for example in found.unlabelled} == {"q0", "q3", "q4"}
    assert [example.question for example in found.validation] == ["q2"]
    assert [example.question for example in qa(**options).split("test")] == ["q1"]
    many = [{"question": f"r{k}", "answer": "a", "part": "train"} for k in range(20)]
    options["data"] += f",{samples.write_rows(tmp_path / 'many.jsonl', many)}"
    assert len(qa().load(DataRequest(0, 99, 9, options=options)).unlabelled) == 23  # none is set aside besides
    with pytest.raises(UsageError, match="`split_column` names the column 'other'; there are answer, part, question"):
        qa(**options | {"split_column": "other"}).split("test")
    with pytest.raises(UsageError, match="both say which rows are tests; give one"):
        qa(**options | {"test": "tests.jsonl"})


def test_as_many_as_there_are(tmp_path: Path) -> None:
    data = rows(tmp_path, *[{"question": f"{k}?", "answer": str(k), "rationale": "so"} for k in range(60)])
    test = samples.write_rows(tmp_path / "t.jsonl", [GOOD])
    found = qa().load(DataRequest(1000, 1000, 1000, options={"data": data, "test": test}))
    assert [len(part) for part in (found.demonstrations, found.unlabelled, found.validation)] == [48, 0, 12]


@pytest.mark.parametrize("name", ["operands=2..4", "operands=3,5,digits=2", "operands=4,operators=+-*"])
def test_there_are_no_splits_along_a_number(name: str) -> None:
    with pytest.raises(UsageError) as refused:
        qa().split(name)
    assert str(refused.value).startswith(f"qa has no splits along a number, such as {name!r}. It is `test`, or a file")


def test_the_data_are_named_in_one_way() -> None:
    with pytest.raises(UsageError, match=r"--data\.train-file: the rows of qa are named by the option `data`"):
        qa().load(DataRequest(train_file="x.csv"))


# -- bad rows --------------------------------------------------------------------------------------------

BAD: dict[str, str] = {
    '{"question": "q"': "not valid JSON",
    "[1]": "expected a JSON object",
    "3": "expected a JSON object {...}, found an integer",
    "[" * 4_500 + "]" * 4_500: "brackets are nested too deep",
    '{"question": "q", "answer": ' + "2" * 5_000 + "}": "a number of more than",
    '{"question": "' + "q" * 10_000 + '"}': "a line of more than 10,000 characters",
    '{"question": "\udcff"}': "not UTF-8 text",
    '{"answer": "A", "choices": ["a", "b"]}': "the field 'question' is missing; found: answer, choices",
    '{"question": null, "answer": "A", "choices": ["a", "b"]}': "'question' must be a text or a number, not null",
    '{"question": "  ", "answer": "A", "choices": ["a", "b"]}': "the field 'question' has 0 characters",
    '{"question": ["q"], "answer": "A", "choices": ["a", "b"]}': "must be a text or a finite number, not a list",
    '{"question": "q\\u0000", "answer": "A", "choices": ["a", "b"]}': "has the control character",
    '{"question": "q", "choices": ["a", "b"]}': "the field 'answer' is missing",
    '{"question": "q", "answer": NaN, "choices": ["a", "b"]}': "the field 'answer' must be a text or a finite number",
    '{"question": "q", "answer": "C", "choices": ["a", "b"]}': "the answer 'C' is none of the choices a, b",
    '{"question": "q", "answer": 2, "choices": ["a", "b"]}': "the answer '2' is none of the choices",
    '{"question": "q", "answer": "A"}': "the choices 'choices' must be a list of texts",
    '{"question": "q", "answer": "A", "choices": [1, 2]}': "must be a list of texts",
    '{"question": "q", "answer": "A", "choices": "a"}': "there must be 2 to 26 different choices, not 'a'",
    '{"question": "q", "answer": "A", "choices": ["a", "a"]}': "different choices",
    '{"question": "q", "answer": "A", "choices": {"text": ["a", "b"], "label": ["A"]}}': "as many labels as texts",
    '{"question": "q", "answer": "A", "choices": {"text": ["a", "b"], "label": 3}}': "as many labels as texts",
    '{"question": "q", "answer": "' + "9" * 5_000 + '", "choices": ["a", "b"]}': "is none of the choices a, b",
    '{"question": "q", "answer": "A", "choices": ["a", "b"], "rationale": {}}': "'rationale' must be a text",
    '{"question": "q", "answer": "A", "choices": ["a", "b"], "part": "x"}': "the split 'x' is none of train",
}
OPTIONS = {"choices": "choices", "split_column": "part"}


def bad_file(path: Path) -> str:
    good = [json.dumps(GOOD | {"answer": "B", "choices": ["a", "b"], "question": f"q{k}"}) for k in range(9)]
    path.write_bytes("\n".join([*good, *BAD]).encode(errors="surrogateescape"))
    return str(path)


def test_twenty_kinds_of_bad_rows_are_one_list(tmp_path: Path) -> None:
    path = bad_file(tmp_path / "bad.jsonl")
    began = time.monotonic()
    with pytest.raises(UsageError) as refused:
        qa().load(DataRequest(options={"data": path, **OPTIONS}))
    assert time.monotonic() - began < 2
    *listed, count = str(refused.value).splitlines()
    assert len(listed) == len(BAD) >= 20
    for number, (line, reason) in enumerate(zip(listed, BAD.values(), strict=True), start=10):
        assert line.startswith(f"{path}:{number}: ") and reason in line
        assert len(line) < len(path) + 200
    assert count.startswith(f"{len(BAD)} of {len(BAD) + 9} rows cannot be used; correct them, or leave them out")


def test_bad_rows_are_counted_instead(tmp_path: Path) -> None:
    options = {"data": bad_file(tmp_path / "bad.jsonl"), "choices": "choices", "skip_bad": "true"}
    options["test"] = samples.write_rows(tmp_path / "t.jsonl", [{"question": "t"}, *samples.arc(2)])
    options["test"] = samples.write_rows(tmp_path / "t.jsonl", [{}, {**GOOD, "choices": "the sky|the sea"}])
    data = qa().load(DataRequest(0, 20, 2, options=options))
    assert len(data.unlabelled) + len(data.validation) == 10  # one is bad for its split only
    (note,) = [note for note in data.notes if "left out" in note]
    assert note.startswith(f"{len(BAD)} rows left out that cannot be used, the first: {tmp_path}/bad.jsonl:10: ")
