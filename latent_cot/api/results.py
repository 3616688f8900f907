"""The results of a run, and of an evaluation: figures with intervals, as tables, data frames and HTML."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from latent_cot.evaluation import outcomes
from latent_cot.evaluation.outcomes import Question
from latent_cot.report.plots import Curve
from latent_cot.report.tables import Figures, Table, data_frame, figure_table, page
from latent_cot.types import Example, Measured, Metric, Task, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from latent_cot.evaluation.evaluate import Mistakes, Outcome
    from latent_cot.evaluation.splits import Split


class Results(UserDict[str, Any]):
    """What `results.json` holds, as a mapping: accuracies (or metrics) by round, reasoner and split, how near q came to
    the posterior, what it cost. In a notebook it shows the accuracies.

    Args:
        record: the file's content.
        metrics: the task's, if it has no right answers.
        splits: the test splits in the order in which they are shown.
    """

    def __init__(self, record: Mapping[str, Any], metrics: Mapping[str, Metric], splits: Sequence[str]) -> None:
        super().__init__(record)
        self._metrics = dict(metrics)  # a read-only mapping could not be copied
        self._order = tuple(splits)

    def to_pandas(self) -> pd.DataFrame:
        """A row for each round, reasoner and split: accuracy, low and high (95 % interval), correct, n. For a task with
        metrics instead of right answers, a row for each metric too: value, low, high, n."""
        return data_frame(
            {"round": number, **row}
            for number, of_round in self._rounds.items()
            for row in figure_rows(of_round, self._metrics)
        )

    @property
    def _rounds(self) -> dict[int, Figures]:
        """Rounds and splits in their order; the file is sorted by name."""
        place = {split: k for k, split in enumerate(self._order)}
        kind = "metrics" if self._metrics else "accuracy"
        try:
            return {
                number: {
                    reasoner: dict(sorted(splits.items(), key=lambda item: place.get(item[0], len(place))))
                    for reasoner, splits in self[kind][str(number)].items()
                }
                for number in sorted(map(int, self[kind]))
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"results.json: its part {kind!r} is not as a run writes it ({error!r})") from error

    def table(self) -> Table:
        """A column for each reasoner of each round."""
        columns = {
            f"round {r}, {name}": splits for r, of_round in self._rounds.items() for name, splits in of_round.items()
        }
        return figure_table(columns, self._metrics)

    def __repr__(self) -> str:
        return self.table().text()

    def _repr_html_(self) -> str:
        return page(self.table().html())


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What came of test questions. In a notebook it shows the figures of each split."""

    task: Task
    splits: Mapping[str, Split]
    """The questions, and how many were left out."""
    curves: Sequence[Curve]
    """Splits along a number, of those that were asked for."""
    points: Mapping[str, Mapping[str, Any]]
    """Split -> the numbers that it stands for, such as `operands` and `digits`, and `trained`: were there such
    questions in training? Only of splits that were asked for, and of a task that has such numbers."""
    decoding: Mapping[str, Any]
    """`max_tokens`, `temperature`, and `votes`, or `samples` for a task with metrics."""
    figures: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """Reasoner -> split -> accuracy, correct, n and interval_95; for a task with metrics, metric -> value, n and
    interval_95."""
    outcomes: Mapping[str, Mapping[str, Sequence[Outcome]]]
    """Reasoner -> split -> what became of each question; empty for a task with metrics."""
    measured: Mapping[str, Mapping[str, Sequence[Measured]]]
    """Reasoner -> split -> the rationales that the metrics are made of."""
    questions: Mapping[str, Mapping[Question, Mapping[str, float]]]
    """Reasoner -> question -> figure -> value, of those that each question has."""

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """The task's metrics; empty if it has right answers."""
        return self.task.metrics if self.task.is_measured else {}

    def all_mistakes_of(self, reasoner: str, split: str | None = None) -> Mistakes:
        """What a reasoner's wrong answers did wrong, on a split or over all of them."""
        from latent_cot.evaluation.evaluate import Mistakes

        if reasoner not in self.figures:
            raise UsageError(f"reasoner {reasoner!r}: those that were asked are {', '.join(self.figures)}")
        found = Mistakes(self.task)
        for outcome in chain.from_iterable(
            of for name, of in self.outcomes.get(reasoner, {}).items() if split in (None, name)
        ):
            if not outcome.correct:
                found.add(outcome)
        return found

    def to_pandas(self) -> pd.DataFrame:
        """A row for each reasoner and split (and metric): its numbers, the figure, low and high (95 % interval), n."""
        rows = figure_rows(self.figures, self.metrics)
        return data_frame({**row, **self.points.get(row["split"], {})} for row in rows)

    def answers(self) -> pd.DataFrame:
        """A row for each reasoner and question: split, question, gold, answer, correct, mistake, chain. With several
        votes the chain is the first that arrives at the answer. For a task with metrics: split, question, gold, those
        of its figures that each question has, rationales with their counts."""
        return data_frame(self.records(), columns=_MEASURED if self.metrics else _ANSWERS)

    def records(self) -> Iterator[dict[str, Any]]:
        """The rows of `answers`, one after the other."""
        return self._measured_records() if self.metrics else self._answer_records()

    def _answer_records(self) -> Iterator[dict[str, Any]]:
        from latent_cot.evaluation.evaluate import mistake

        for reasoner, splits in self.outcomes.items():
            for split, of_split in splits.items():
                for one in of_split:
                    category = None if one.correct else mistake(self.task, one.example, one.chain, one.answer)
                    yield {
                        **_asked(reasoner, split, one.example),
                        "answer": one.answer,
                        "correct": one.correct,
                        "mistake": category,
                        "chain": one.chain.text,
                    }

    def _measured_records(self) -> Iterator[dict[str, Any]]:
        for reasoner, splits in self.measured.items():
            for split, of_split in splits.items():
                figures = [of for question, of in self.questions[reasoner].items() if question.split == split]
                for one, of_one in zip(of_split, figures, strict=True):
                    rationales = [{"text": sample.rationale.text, "count": sample.count} for sample in one.samples]
                    yield {
                        **_asked(reasoner, split, one.example),
                        "figures": dict(of_one),
                        "rationales": rationales,
                    }

    def difference(self, other: Evaluation) -> pd.DataFrame:
        """This less another evaluation of the same questions: a row for each reasoner, split and figure, with what
        `evaluation.outcomes.Difference` says of them, its 95 % interval over the questions among that. Reasoners
        of the same name are compared; or, where both have one only, these. Raises UsageError where there is nothing to
        compare."""
        pairs = [(name, name) for name in self.questions if name in other.questions]
        if len(self.questions) == len(other.questions) == 1:
            pairs = list(zip(self.questions, other.questions, strict=True))
        rows = [
            {"reasoner": first, "against": second, "split": split, "figure": name, **one.to_json()}
            for first, second in pairs
            for split, figures in outcomes.differences([self.questions[first]], [other.questions[second]]).items()
            for name, one in figures.items()
        ]
        if not rows:
            raise UsageError("these evaluations have no reasoner and no question in common")
        return data_frame(rows)

    def mistakes_of(self, reasoner: str) -> pd.DataFrame:
        """The categories of mistakes over all splits, the most frequent first: how often, their share of the wrong
        answers, what they mean, and the first question with its chain."""
        rows = ({**row, **row["example"]} for row in self.all_mistakes_of(reasoner).to_json())
        return data_frame(rows, columns=_MISTAKES)

    def __repr__(self) -> str:
        return figure_table(self.figures, self.metrics).text()

    def _repr_html_(self) -> str:
        return page(figure_table(self.figures, self.metrics).html())


_ANSWERS = ("reasoner", "split", "question", "gold", "answer", "correct", "mistake", "chain")
_MEASURED = ("reasoner", "split", "question", "gold", "figures", "rationales")
_MISTAKES = ("category", "count", "share", "meaning", "question", "right", "answer", "chain")


def _asked(reasoner: str, split: str, example: Example) -> dict[str, Any]:
    """Who was asked what."""
    return {"reasoner": reasoner, "split": split, "question": example.asked, "gold": example.answer}


def figure_rows(figures: Figures, metrics: Mapping[str, Metric]) -> Iterator[dict[str, Any]]:
    """A row for each reasoner and split, or for each of their metrics."""
    for reasoner, splits in figures.items():
        for split, found in splits.items():
            head = {"reasoner": reasoner, "split": split}
            for name, figure in ((m, found[m]) for m in metrics if m in found) if metrics else [("", found)]:
                low, high = figure["interval_95"] or (None, None)
                own = {"metric": name, "value": figure["value"]} if metrics else {"accuracy": figure["accuracy"]}
                counts = {key: figure[key] for key in ("correct", "n") if key in figure}
                yield {**head, **own, "low": low, "high": high, **counts}
