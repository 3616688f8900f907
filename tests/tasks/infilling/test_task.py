"""Stories: where they come from, how they are split, what the models read of them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from latent_cot.tasks.common import share_of
from latent_cot.tasks.infilling import TASK
from latent_cot.tasks.infilling import task as stories
from latent_cot.types import DataRequest, Example, Rationale, UsageError
from tests.conftest import ROOT

SHARES = ("train", "validation", "test")
GLUCOSE = ROOT / ".." / "shared" / "data" / "roc-stories-glucose" / "stories.csv"
STORY = ("Mara sowed beans.", "It did not rain.", "The soil was dry.", "She watered them at night.", "They grew tall.")


def table(path: Path, *rows: tuple[str, ...]) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([stories.SENTENCES, *rows])
    return str(path)


def test_the_parts_of_a_story(tmp_path: Path) -> None:
    (example,) = TASK.read(path := table(tmp_path / "one.csv", STORY))
    assert example == Example(
        x="Mara sowed beans. It did not rain. The soil was dry.",
        z=" She watered them at night",
        y=". They grew tall.",
        answer="They grew tall.",
        question="Mara sowed beans. It did not rain. The soil was dry.",
        meta={"source": f"{path}:2"},
    )
    assert (TASK.posterior_prompt(example) + (example.z or "") + (TASK.stop or "")).splitlines() == [
        "Beginning: Mara sowed beans. It did not rain. The soil was dry.",
        "Ending: They grew tall.",
        "Middle: She watered them at night.",
    ]


def test_it_is_measured_with_the_ending_given() -> None:
    assert TASK.is_measured
    assert TASK.answer_given
    assert TASK.answer(Rationale((1,), (True,), (True, True), " They grew tall")) is None


@pytest.mark.parametrize(
    ("middle", "usable"),
    [
        ("She watered them at night.", True),
        ("She watered, weeded & fed them (all 12).", True),
        ("She watered them!", False),
        ("Did she water them?", False),
        ("She watered them at 7 p.m. sharp.", False),
        ('She said "grow" to all of them.', False),
        ("She fed them café au lait.", False),
        ("She watered them.", False),  # three words
    ],
)
def test_which_middles_a_chain_can_be(middle: str, usable: bool) -> None:
    assert stories.can_be_written(stories.build("A beginning.", middle, "An ending.")) == usable


def test_shares_of_a_file(tmp_path: Path) -> None:
    """Every story is in the share of its beginning's hash; the first of those that begin alike is taken."""
    rows = [(f"Number {i}.", *STORY[1:]) for i in range(40)]
    again = ("Number 3.", *STORY[1:4], "They died.")
    path = table(tmp_path / "many.csv", *rows, again, ("Number 99.", *STORY[1:3], "Rain!", STORY[4]))
    shares = {share: TASK.share(path, share) for share in SHARES}
    assert len(TASK.read(path)) == 42
    assert sum(map(len, shares.values())) == 40
    for share, examples in shares.items():
        assert examples
        assert {share_of(example.question) for example in examples} == {share}
        assert [e.question for e in examples] == sorted(
            (e.question for e in examples), key=lambda q: int(q[7:9].strip("."))
        )
    assert "They died." not in {example.answer for of in shares.values() for example in of}


def test_a_file_is_trained_on_and_tested_with(tmp_path: Path) -> None:
    path = table(tmp_path / "many.csv", *((f"Number {i}.", *STORY[1:]) for i in range(60)))
    data = TASK.load(DataRequest(demonstrations=10, unlabelled=5, validation=3, train_file=path))
    assert all(example.z for example in (*data.demonstrations, *data.validation))
    assert not any(example.z for example in data.unlabelled)
    trained = {example.question for example in (*data.demonstrations, *data.unlabelled, *data.validation)}
    assert len(trained) == 18
    assert trained.isdisjoint(example.question for example in TASK.split(path))
    assert all(example.z for example in TASK.split(path))
    assert f"{path}: " in data.notes[0]
    more = TASK.load(DataRequest(demonstrations=12, unlabelled=5, validation=3, train_file=path))
    assert more.demonstrations[:10] == data.demonstrations


def test_own_stories() -> None:
    """All can be used; enough for a smoke test."""
    assert [len(TASK.share(TASK.own, share)) for share in SHARES] == [14, 3, 7]
    assert len(TASK.read(TASK.own)) == 24
    assert TASK.split("test") == TASK.share(TASK.own, "test")


@pytest.mark.skipif(not GLUCOSE.is_file(), reason="the stories of GLUCOSE are not here")
def test_the_sizes_that_the_readme_gives() -> None:
    sizes = [len(TASK.share(str(GLUCOSE), share)) for share in SHARES]
    text = (ROOT / "tasks" / "infilling" / "README.md").read_text()
    counts = " | ".join(f"{n:,}" for n in (*sizes, 1_769 - sum(sizes)))
    assert f"| 1,769 | {counts} |" in text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(*STORY[:4], " ")], "bad.csv:2: the ending is empty"),
        ([STORY, (*STORY[:3], "", STORY[4])], "bad.csv:3: the middle is empty"),
        ([("a " * 2_000, *STORY[1:])], "bad.csv:2: the beginning 'a a"),
    ],
)
def test_bad_stories(tmp_path: Path, rows: list[tuple[str, ...]], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        TASK.read(table(tmp_path / "bad.csv", *rows))
    assert message in str(refused.value)


def test_a_file_without_the_columns(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("title,text\nBeans,Mara sowed beans.\n")
    with pytest.raises(UsageError, match=r"bad.csv:2: the field 'sentence1' is missing; found: text, title"):
        TASK.read(str(tmp_path / "bad.csv"))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (DataRequest(demonstrations=14, unlabelled=1, validation=1), "--data.demonstrations and --data.unlabelled"),
        (DataRequest(demonstrations=2, unlabelled=2, validation=4), "has 3 different examples for this, not 4"),
        (DataRequest(demonstrations=1, unlabelled=-2, validation=1), "not -1"),
        (DataRequest(demonstrations=2, unlabelled=2, validation=1, options={"operands": "3"}), "no option 'operands'"),
    ],
)
def test_requests_that_cannot_be_met(request_: DataRequest, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        TASK.load(request_)
    assert message in str(refused.value)


def test_no_ending_no_prompt() -> None:
    with pytest.raises(UsageError, match="its ending is needed"):
        TASK.posterior_prompt(TASK.example("Mara sowed beans."))


def test_a_file_without_test_stories(tmp_path: Path) -> None:
    beginning = next(f"Number {i}." for i in range(99) if share_of(f"Number {i}. {STORY[1]} {STORY[2]}") == "train")
    path = table(tmp_path / "train.csv", (beginning, *STORY[1:]))
    with pytest.raises(UsageError, match=r"train\.csv: no example of it is one for tests"):
        TASK.split(path)
