from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from latent_cot.config.settings import load_config
from latent_cot.evaluation.splits import numbers_of
from latent_cot.run.preflight import load_examples
from latent_cot.tasks.arithmetic import TASK
from latent_cot.tasks.common import share_of
from latent_cot.types import DataRequest, Example, Rationale, Sweep, ToolCall, UsageError


def test_the_papers_example() -> None:
    example = TASK.example("6 - 0 - 4")
    assert example == Example(
        x="Question: 6 - 0 - 4 = ? Answer:",
        y=". The answer is 2.",
        answer="2",
        question="6 - 0 - 4",
        meta={"operands": 3, "digits": 1, "operators": "-"},
    )
    assert TASK.posterior_prompt(example) == "Question: 6 - 0 - 4 = ? The answer is 2. Answer:"
    assert TASK.candidates(example) is None


@pytest.mark.parametrize(
    "text",
    [
        "6-0-4",
        "6 - 0 - 4 =",
        "6 - 0 - 4 = ?",
        " 6 − 00 - 4?",
        "Question: 6 - 0 - 4 = ? Answer:",
        "Question: 6-0-4",
    ],
)
def test_what_a_user_types(text: str) -> None:
    assert TASK.example(text) == TASK.example(text, " +2 ") == TASK.example("6 - 0 - 4")


def test_what_a_user_types_wrongly() -> None:
    with pytest.raises(UsageError, match=r"question 'six': expected an integer at 'six'; write it like '6 - 0 - 4'"):
        TASK.example("six")
    with pytest.raises(UsageError, match=r"'6 - 0 - 4': the answer is 2, not '3'"):
        TASK.example("6 - 0 - 4", "3")
    with pytest.raises(UsageError, match="not 'two'"):
        TASK.example("6 - 0 - 4", "two")
    with pytest.raises(UsageError) as raised:
        TASK.example("x" * 10**6)
    assert len(str(raised.value)) < 300


def test_posterior_needs_the_answer() -> None:
    with pytest.raises(UsageError, match="its answer is needed"):
        TASK.posterior_prompt(Example(x="Question: 1 + 1 = ? Answer:", question="1 + 1"))


# Answers


def chain(*calls: tuple[str | None, int, int], n_tokens: int) -> Rationale:
    """Of calls (result, position, number of tokens injected)."""
    return Rationale(
        tokens=(0,) * n_tokens,
        policy_mask=(True,) * n_tokens,
        states=(True,) * (n_tokens + 1),
        text="",
        calls=tuple(
            ToolCall("calculator", position, "?", result, None if result else "refused", injected)
            for result, position, injected in calls
        ),
    )


def test_answer_is_the_last_result() -> None:
    assert TASK.answer(chain((" 6", 4, 1), (" -12", 10, 3), n_tokens=13)) == "-12"


def test_no_answer_without_a_completed_step() -> None:
    assert TASK.answer(chain(n_tokens=0)) is None
    assert TASK.answer(chain(n_tokens=9)) is None
    assert TASK.answer(chain((" 6", 4, 1), (None, 10, 0), n_tokens=10)) is None
    assert TASK.answer(chain((" 6", 4, 1), n_tokens=8)) is None  # ", 6 -": cut within a step
    assert TASK.answer(chain((" 6", 4, 1), n_tokens=6)) is None  # ","


def test_no_answer_is_not_minus_one() -> None:
    """The paper's code read a chain without an answer as -1, and counted it as right here."""
    example = TASK.example("3 - 4")
    assert example.answer == "-1"
    assert TASK.grade(example, "-1")
    assert not TASK.grade(example, TASK.answer(chain(n_tokens=9)))
    assert not TASK.grade(example, None)


@pytest.mark.parametrize("answer", ["0", "-0", "+0", " 0", "000"])
def test_zero_is_zero(answer: str) -> None:
    assert TASK.grade(TASK.example("4 - 4"), answer)


@pytest.mark.parametrize("answer", ["", " ", "0.0", "0/1", "zero", "0,", "1", "٠", "1e0", "0" * 10**6])
def test_what_is_no_integer_is_wrong(answer: str) -> None:
    assert not TASK.grade(TASK.example("4 - 4"), answer)


def test_long_answers_are_compared_exactly() -> None:
    example = TASK.example(f"{10**11 + 1} * {10**11}")
    assert TASK.grade(example, str(10**22 + 10**11))
    assert not TASK.grade(example, str(10**22 + 10**11 + 1))  # equal as floats


@given(st.text(max_size=10))
def test_grade_takes_any_text(answer: str) -> None:
    example = TASK.example("4 + 4")
    assert TASK.grade(example, answer) == (re.fullmatch(r"\s*\+?0*8\s*", answer) is not None)


def test_unlabelled_example_is_never_right() -> None:
    assert not TASK.grade(Example(x="?"), "1")


# Data


def test_default_request() -> None:
    data = TASK.load(DataRequest())
    assert (len(data.demonstrations), len(data.unlabelled), len(data.validation)) == (50, 1000, 200)
    for examples in (data.demonstrations, data.unlabelled, data.validation):
        counts = [example.meta["operands"] for example in examples]
        assert counts.count(3) == counts.count(4) == len(examples) // 2
    assert {share_of(e.question) for e in (*data.demonstrations, *data.unlabelled)} == {"train"}
    assert len({e.question for e in (*data.demonstrations, *data.unlabelled)}) == 1050


def test_fewer_demonstrations_are_the_first_ones() -> None:
    few, many = (TASK.load(DataRequest(demonstrations=n, unlabelled=5)).demonstrations for n in (10, 50))
    assert many[:10] == few


def test_demonstrations_run_on_the_calculator() -> None:
    """The chains ask for what the tool grants, and arrive at the answer."""
    from latent_cot import tools

    calculator = tools.load("calculator")
    for options in ({}, {"operators": "+-*", "operands": "2..6", "digits": "1,2"}, {"digits": "11"}):
        for example in TASK.load(DataRequest(unlabelled=0, validation=0, options=options)).demonstrations:
            assert example.z is not None
            text = ""
            for step in example.z.split(calculator.trigger)[:-1]:
                text += step + calculator.trigger
                text += calculator(calculator.request(text))
            assert text.rpartition("=")[2].strip() == example.answer


@pytest.mark.parametrize("name", ["demonstrations", "unlabelled", "validation"])
def test_bad_counts(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        TASK.load(DataRequest(**{name: -1}))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=rf"100000 questions asked for \({name}.*, but only \d+ exist"):
        TASK.load(DataRequest(**{name: 100_000}, options={"operands": "3"}))  # type: ignore[arg-type]


def test_too_few_questions_exist() -> None:
    with pytest.raises(UsageError, match="1000 questions asked for"):
        TASK.load(DataRequest(options={"operands": "2"}))


def test_unknown_option() -> None:
    with pytest.raises(UsageError, match="Did you mean 'digits'"):
        TASK.load(DataRequest(options={"digit": "2"}))


# Splits


def test_splits_are_pinned() -> None:
    """Results on these splits are compared across versions: a change here needs a line in the changelog."""
    text = "\n".join(e.question for name in TASK.default_splits for e in TASK.split(name))
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "de1ea15322c518b9ed3fb3aca91b3214ae72e5623265a01a42afb24c8494e031"
    )


@pytest.mark.parametrize(
    ("name", "operands", "digits"), [("8-operands", 8, 1), ("6-digits", 3, 6), ("operands=5,digits=2", 5, 2)]
)
def test_split_holds_what_its_name_says(name: str, operands: int, digits: int) -> None:
    split = TASK.split(name)
    assert len(split) == 500
    for example in split:
        assert share_of(example.question) == "test"
        assert (example.meta["operands"], example.meta["digits"]) == (operands, digits)
        assert set(example.meta["operators"]) <= set("+-")
        assert example.z is None


def test_names_of_one_split() -> None:
    for names in (
        ("5-operands", "5-operand", "operands=5", "operands=5,digits=1", " digits = 1, operands = 5"),
        ("3-digits", "3-digit", "digits=3", "operands=3,digits=3"),
        ("10-operands", "operands=10"),
        ("5-operands-2-digits", "operands=5,digits=2", "5-operand-2-digit", "digits=2,operands=5"),
        ("operators=+-*", "operators=×,+,-"),
    ):
        splits = [TASK.split(name, 20) for name in names]
        assert all(split == splits[0] for split in splits)


def test_split_sizes() -> None:
    assert len(TASK.split("operands=2")) < 100  # all there are
    assert TASK.split("5-operands", 0) == []
    larger = TASK.split("5-operands", 700)
    assert larger[:500] == TASK.split("5-operands")
    assert len({e.question for e in larger}) == 700
    assert TASK.split("operands=2", 500) == TASK.split("operands=2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("5-operandz", "no test split '5-operandz'. Did you mean '5-operands'"),
        ("five", "or is a file such as mine.jsonl"),
        ("operands=3..x", "'3..x' is no number"),
        ("mine.jsonl", "mine.jsonl: no such file"),
        ("34", "operands=5,digits=2"),
        ("1-operands", "no number from 2 to 64"),
        ("99-digits", "no number from 1 to 12"),
        ("operand=5", "Did you mean 'operands'"),
        ("operands=5,operands=6", "an option is named twice"),
        ("5,operands=6", "no option '5'"),
        ("operands=", "'' is no number"),
        ("-2-digits", "no test split"),
        ("5-operands-", "no test split"),
        ("2-digits-5-operands", "no test split"),
        ("validation-", "no test split"),
        ("validation-validation-5-operands", "no test split"),
        ("operands=3..5", "names 3 splits, from 3-operands to 5-operands; name one"),
    ],
)
def test_bad_splits(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        TASK.split(name)


@pytest.mark.parametrize("name", ["5-operands", "operands=5", "operands=5,digits=1", "5-operands-1-digits"])
def test_a_split_has_its_numbers_by_any_of_its_names(name: str) -> None:
    assert numbers_of(TASK, name) == {"operands": 5, "digits": 1}


def test_a_file_is_a_split(tmp_path: Path) -> None:
    """As in other tasks: `--evaluation.splits` and `eval --split` take one."""
    file = tmp_path / "operands=4.jsonl"
    file.write_text("".join(f'{{"question": "{n} + 2", "answer": {n + 2}}}\n' for n in range(5)))
    assert [example.question for example in TASK.split(str(file))] == [f"{n} + 2" for n in range(5)]
    assert TASK.split(str(file), 3) == TASK.read(str(file))[:3]
    assert TASK.sweep(str(file)) == Sweep(str(file), (), {str(file): {}})
    assert numbers_of(TASK, str(file)) is None
    config = load_config("smoke")
    found = load_examples(replace(config, evaluation=replace(config.evaluation, splits=(str(file), "3-operands"))))
    assert [example.answer for example in found.tests[str(file)]] == ["2", "3", "4", "5", "6"]


def test_validation_splits() -> None:
    for name in ("3-operands", "5-operands", "2-digits", "operands=4,operators=+-*"):
        examples = TASK.split(f"validation-{name}", 200)
        assert len({e.question for e in examples}) == 200
        assert all(share_of(e.question) == "validation" for e in examples)
        assert all(e.meta["operands"] == TASK.split(name, 1)[0].meta["operands"] for e in examples)
    assert TASK.split("validation-operands=5", 20) == TASK.split("validation-5-operands", 20)
    assert list(TASK.sweep("validation-operands=3..5").points) == [f"validation-{n}-operands" for n in (3, 4, 5)]


# Sweeps


@pytest.mark.parametrize(
    ("pattern", "axes", "names"),
    [
        ("operands=3..6", ("operands",), ["3-operands", "4-operands", "5-operands", "6-operands"]),
        ("operands=3,4,5,6,8,10", ("operands",), [f"{n}-operands" for n in (3, 4, 5, 6, 8, 10)]),
        ("digits=1..3", ("digits",), ["3-operands", "2-digits", "3-digits"]),
        ("operands=5,digits=2..4", ("digits",), [f"5-operands-{n}-digits" for n in (2, 3, 4)]),
        (
            "digits=1,2,operands=3,5",
            ("operands", "digits"),
            ["3-operands", "2-digits", "5-operands", "5-operands-2-digits"],
        ),
        ("5-operands-2-digits", (), ["5-operands-2-digits"]),
        ("operands=4,operators=+-*", (), ["operands=4,digits=1,operators=+-*"]),
    ],
)
def test_sweep(pattern: str, axes: tuple[str, ...], names: list[str]) -> None:
    sweep = TASK.sweep(pattern)
    assert (sweep.pattern, sweep.axes, list(sweep.points)) == (pattern, axes, names)
    for name, numbers in sweep.points.items():
        for example in TASK.split(name, 20):
            assert {axis: example.meta[axis] for axis in ("operands", "digits")}.items() <= numbers.items()
            assert example.meta.get("products", 0) <= numbers.get("products", 0)  # not each question has one
            assert share_of(example.question) == "test"


@given(st.integers(2, 12), st.integers(1, 6), st.sampled_from(["+-", "+-*", "*"]))
def test_each_point_is_a_split_of_that_name(n: int, digits: int, operators: str) -> None:
    assume("*" not in operators or (n - 1) * digits <= 12)
    pattern = f"operands={n},digits={digits},operators={operators}"
    (name,) = TASK.sweep(pattern).points
    assert TASK.split(name, 5) == TASK.split(pattern, 5)
    assert list(TASK.sweep(name).points) == [name]


def test_points_have_500_questions() -> None:
    for name in (*TASK.sweep("operands=3..10").points, *TASK.sweep("digits=1..6").points):
        assert len(TASK.split(name)) == 500


def test_too_many_points() -> None:
    with pytest.raises(UsageError, match="names 126 test splits; at most 100"):
        TASK.sweep("operands=2..64,digits=1,2")


def test_readme_names_every_split() -> None:
    text = (Path(__file__).parents[3] / "tasks" / "arithmetic" / "README.md").read_text()
    assert all(f"`{name}`" in text for name in TASK.default_splits)


def test_readme_file_example_is_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "tasks" / "arithmetic" / "README.md").read_text()
    (block,) = re.findall(r"```json\n(.*?)```", text, flags=re.DOTALL)
    path = tmp_path / "readme.jsonl"
    path.write_text(block)
    assert [e.answer for e in TASK.read(str(path))] == ["14", "16"]
