"""Grading, voting and intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from latent_cot.evaluation.evaluate import MISTAKES, Accuracy, Mistakes, Outcome, majority, mistake
from latent_cot.model.lm import LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.rationales.chain import ChainRules
from latent_cot.types import Example, Rationale, ToolCall
from tests.loops import answer_questions
from tests.oracles import scoring
from tests.worlds import CountTool, PlainTask, ToyTask, language_model


@pytest.fixture(scope="module")
def lm(tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model("llama"))


def test_majority() -> None:
    assert majority(["3", "4", "4"]) == "4"
    assert majority(["3", "4", "4", "3"]) == "3", "the earliest of equally frequent ones"
    assert majority([None, None, "7"]) == "7", "chains without an answer do not vote"
    assert majority([None, None]) is None
    assert majority([]) is None
    same = ["1,000", "5", "1000", "5", "1000.0"]
    assert majority(same) == "5"
    assert majority(same, lambda one, other: float(one.replace(",", "")) == float(other.replace(",", ""))) == "1,000"


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [  # Wilson (1927), without continuity correction
        (0, 10, 0.0, 0.277533),
        (8, 10, 0.490162, 0.943318),
        (10, 10, 0.722467, 1.0),
        (81, 263, 0.255275, 0.366207),  # Newcombe (1998), table I
        (15, 148, 0.062386, 0.160533),  # the same
    ],
)
def test_wilson_interval(correct: int, n: int, low: float, high: float) -> None:
    found = Accuracy(correct, n).interval()
    assert found == pytest.approx((low, high), abs=1e-4)
    z, share = 1.959964, correct / n
    centre, spread = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    assert found == pytest.approx(((centre - spread) / (1 + z**2 / n), (centre + spread) / (1 + z**2 / n)), abs=1e-5)


def test_accuracy_of_no_question() -> None:
    assert math.isnan(Accuracy(0, 0).value)
    assert Accuracy(0, 0).interval() == (0.0, 1.0)
    assert Accuracy(1, 4).to_json() == {
        "accuracy": 0.25,
        "correct": 1,
        "n": 4,
        "interval_95": list(Accuracy(1, 4).interval()),
    }


@dataclass
class MinusOneTask(ToyTask):
    """Its answers are what a stand-in for a failed parse would look like: -1, "None", ""."""

    gold: list[str] = field(default_factory=lambda: ["-1", "None", "", "0"])

    def example(self, question: str, answer: str | None = None) -> Example:
        return Example(f"{question}?", ".", None, answer, question)


def test_a_chain_without_an_answer_is_never_right(lm: LanguageModel) -> None:
    """The reference code reads -1 off such a chain, and is right where the answer is -1."""
    task = MinusOneTask()
    examples = [task.example("a", answer) for answer in task.gold]
    rules = ChainRules(TextCodec(lm.tokenizer, allowed_characters="ab"), max_tokens=3)
    outcomes = list(answer_questions(lm, "q", task, examples, rules, votes=3, temperature=1.0))
    assert len(outcomes) == 4
    for outcome in outcomes:
        assert list(outcome.answers) == [None] * 3
        assert outcome.answer is None
        assert not outcome.correct


class NumberTask(ToyTask):
    """Numbers count, however they are written."""

    said: tuple[str, ...] = ("1,000", "5", "1000", "5", "1000.0")

    def grade(self, example: Example, answer: str | None) -> bool:
        return answer is not None and float(answer.replace(",", "")) == float(str(example.answer).replace(",", ""))

    def answer(self, rationale: Rationale) -> str | None:
        first, *others = self.said
        self.said = (*others, first)
        return first


def test_equal_answers_vote_together(lm: LanguageModel) -> None:
    rules = ChainRules(TextCodec(lm.tokenizer, allowed_characters="ab"), max_tokens=1)
    example = Example("a?", answer="1000")
    (found,) = answer_questions(lm, "q", NumberTask(), [example], rules, votes=5, temperature=1.0)
    assert (found.answer, found.correct) == ("1,000", True)


def test_the_answers_of_a_task_with_a_tool(lm: LanguageModel) -> None:
    task = ToyTask()
    examples = [Example("a?", None, None, gold, "a") for gold in map(str, range(10))]
    rules = ChainRules(TextCodec(lm.tokenizer, allowed_characters="a="), [CountTool()], max_tokens=6)
    outcomes = list(
        answer_questions(
            lm,
            "q",
            task,
            examples,
            rules,
            votes=5,
            temperature=1.0,
            batch_size=12,
        )
    )
    assert [outcome.example for outcome in outcomes] == examples
    assert any(outcome.correct for outcome in outcomes)
    for outcome in outcomes:
        assert len(outcome.rationales) == len(outcome.answers) == 5
        for rationale, answer in zip(outcome.rationales, outcome.answers, strict=True):
            assert answer == task.answer(rationale)
        assert outcome.answer == majority(outcome.answers)
        assert outcome.correct == (outcome.answer == outcome.example.answer)


def test_candidates_are_picked_by_their_likelihood_after_the_rationale(lm: LanguageModel) -> None:
    """Y's whole text is scored, also where the candidates' lengths differ."""
    task = PlainTask()
    codec = TextCodec(lm.tokenizer, allowed_characters="abcd ")
    examples = [task.example(question) for question in ("aab", "bba", "abab")]
    rules = ChainRules(codec, max_tokens=3)
    model = lm.merged("p")
    seen: list[Rationale] = []
    for outcome in answer_questions(lm, "p", task, examples, rules, prefix="Hm. ", votes=4, temperature=1.0):
        candidates = task.candidates(outcome.example)
        assert candidates is not None
        prompt = codec.encode_prompt("Hm. " + outcome.example.x)
        for rationale, answer in zip(outcome.rationales, outcome.answers, strict=True):
            with torch.no_grad():
                score = {
                    name: float(scoring.log_text(model, [*prompt, *rationale.tokens], codec.encode(text)))
                    for name, text in candidates.items()
                }
            assert answer == max(score, key=lambda name: score[name])
            seen.append(rationale)
    assert len(set(seen)) > 3


# -- what the wrong ones did wrong -----------------------------------------------------------------


def chain(text: str, *, cut: bool = False, failed: bool = False) -> Rationale:
    n = len(text)
    calls = (ToolCall("count", n, text, None, "refused"),) if failed else ()
    return Rationale(tuple(map(ord, text)), (True,) * n, (True,) * (n + 1), text, cut, calls)


@pytest.mark.parametrize(
    ("rationale", "answer", "category"),
    [
        (chain("a"), "3", "wrong answer"),
        (chain("a"), None, "no answer"),
        (chain("a", failed=True), None, "failed call"),
        (chain("a", failed=True), "3", "failed call"),
        (chain("a", failed=True, cut=True), None, "token limit"),
    ],
)
def test_the_rule_for_all_tasks(rationale: Rationale, answer: str | None, category: str) -> None:
    assert mistake(ToyTask(), Example("a?", answer="4"), rationale, answer) == category
    assert category in MISTAKES


class OpinionatedTask(ToyTask):
    """Knows one mistake, and leaves the others to the rule for all tasks."""

    mistakes = {"shouting": "in capitals", "no answer": "its own words"}  # noqa: RUF012

    def mistake(self, example: Example, rationale: Rationale) -> str | None:
        return "shouting" if rationale.text.isupper() else None


def outcome(question: str, *chains: tuple[str, str | None]) -> Outcome:
    answers = [answer for _, answer in chains]
    example = Example(f"{question}?", answer="4", question=question)
    return Outcome(example, [chain(text) for text, _ in chains], answers, majority(answers), False)


def test_mistakes_are_counted_once_with_their_first_example() -> None:
    found = Mistakes(OpinionatedTask())
    found.add(outcome("u", ("b", None)))
    found.add(outcome("v", ("c", "3"), ("C", "5"), ("D", "5")))  # the vote is for 5: the first with it is C
    found.add(outcome("w", ("E", "3")))
    found.add(outcome("x", ("d", "3")))
    found.add(outcome("y", ("F", "3")))
    rows = found.to_json()
    assert [(row["category"], row["count"], row["share"]) for row in rows] == [
        ("shouting", 3, 0.6),
        ("no answer", 1, 0.2),
        ("wrong answer", 1, 0.2),
    ]
    assert [row["meaning"] for row in rows] == ["in capitals", "its own words", MISTAKES["wrong answer"]]
    assert rows[0]["example"] == {"question": "v", "right": "4", "answer": "5", "chain": "C"}
    assert rows[2]["example"] == {"question": "x", "right": "4", "answer": "3", "chain": "d"}


def test_no_mistakes() -> None:
    assert Mistakes(ToyTask()).to_json() == []
