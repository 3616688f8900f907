"""The results of a run, and of an evaluation: figures with intervals, as tables, data frames and HTML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latent_cot.api import show
from latent_cot.api.frames import data_frame
from latent_cot.report.terminal import metric_text
from latent_cot.types import Metric, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from latent_cot.evaluation.evaluate import Mistakes, Outcome

Figures = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Column -> split -> `Accuracy.to_json()`, or metric -> `Figure.to_json()`."""


class Results(Mapping[str, Any]):
    """What `results.json` holds, as a mapping: accuracies (or metrics) by round, reasoner and split, how near q came to
    the posterior, what it cost. In a notebook it shows the accuracies.

    Args:
        record: the file's content.
        metrics: the task's, if it has no right answers.
        splits: the test splits in the order in which they are shown.
    """

    def __init__(self, record: Mapping[str, Any], metrics: Mapping[str, Metric], splits: Sequence[str]) -> None:
        self._record, self._metrics, self._order = record, metrics, splits

    def __getitem__(self, key: str) -> Any:
        return self._record[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._record)

    def __len__(self) -> int:
        return len(self._record)

    def to_pandas(self) -> pd.DataFrame:
        """A row for each round, reasoner and split: accuracy, low and high (95 % interval), correct, n. For a task with
        metrics instead of right answers, a row for each metric too: value, low, high, n."""
        return data_frame(
            {"round": number, **row}
            for number, of_round in self._rounds
            for row in figure_rows(of_round, self._metrics)
        )

    @property
    def _rounds(self) -> list[tuple[int, Figures]]:
        """Rounds and splits in their order; the file is sorted by name."""
        place = {split: k for k, split in enumerate(self._order)}
        kind = "metrics" if self._metrics else "accuracy"
        try:
            found = self[kind]
            return [
                (
                    int(number),
                    {
                        reasoner: dict(sorted(splits.items(), key=lambda item: place.get(item[0], len(place))))
                        for reasoner, splits in found[number].items()
                    },
                )
                for number in sorted(found, key=int)
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"results.json: its part {kind!r} is not as a run writes it ({error!r})") from error

    @property
    def _columns(self) -> dict[str, Mapping[str, Mapping[str, Any]]]:
        return {f"round {r}, {name}": splits for r, of_round in self._rounds for name, splits in of_round.items()}

    def __repr__(self) -> str:
        return figures_text(self._columns, self._metrics)

    def html(self) -> str:
        """The table, without its style."""
        return figures_html(self._columns, self._metrics)

    def _repr_html_(self) -> str:
        return show.page(self.html())


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What came of test questions. In a notebook it shows the figures of each split."""

    figures: Figures
    """Reasoner -> split -> accuracy, correct, n and interval_95; for a task with metrics, metric -> value, n and
    interval_95."""
    points: Mapping[str, Mapping[str, Any]]
    """Split -> the numbers that it stands for, such as `operands` and `digits`, and `trained`: were there such
    questions in training? Only of splits that were asked for, and of a task that has such numbers."""
    outcomes: Mapping[str, Mapping[str, Sequence[Outcome]]]
    """Reasoner -> split -> what became of each question; empty for a task with metrics."""
    mistakes: Mapping[str, Mapping[str, Mistakes]]
    """Reasoner -> split -> what the wrong answers did wrong."""
    metrics: Mapping[str, Metric]
    """The task's metrics; empty if it has right answers."""

    def to_pandas(self) -> pd.DataFrame:
        """A row for each reasoner and split (and metric): its numbers, the figure, low and high (95 % interval), n."""
        rows = figure_rows(self.figures, self.metrics)
        return data_frame({**row, **self.points.get(row["split"], {})} for row in rows)

    def answers(self) -> pd.DataFrame:
        """A row for each reasoner and question: split, question, gold, answer, correct, mistake, chain. With several
        votes the chain is the first that arrives at the answer."""
        return data_frame(self._answers(), columns=_ANSWERS)

    def _answers(self) -> Iterator[dict[str, Any]]:
        from latent_cot.evaluation.evaluate import mistake

        for reasoner, splits in self.outcomes.items():
            for split, outcomes in splits.items():
                task = self.mistakes[reasoner][split].task
                for one in outcomes:
                    chain = next(z for z, a in zip(one.rationales, one.answers, strict=True) if a == one.answer)
                    what = None if one.correct else mistake(task, one.example, chain, one.answer)
                    own = (reasoner, split, one.example.question, one.example.answer, one.answer, one.correct, what)
                    yield dict(zip(_ANSWERS, (*own, chain.text), strict=True))

    def mistakes_of(self, reasoner: str) -> pd.DataFrame:
        """The categories of mistakes over all splits, the most frequent first: how often, their share of the wrong
        answers, what they mean, and the first question with its chain."""
        from latent_cot.evaluation.evaluate import Mistakes

        of_splits = list(self.mistakes[reasoner].values())
        pooled = Mistakes(of_splits[0].task)
        for one in of_splits:
            pooled.merge(one)
        return data_frame(
            (
                {
                    **{key: row[key] for key in ("category", "count", "share", "meaning")},
                    **{key: row["example"][key] for key in ("question", "right", "answer", "chain")},
                }
                for row in pooled.to_json()
            ),
            columns=("category", "count", "share", "meaning", "question", "right", "answer", "chain"),
        )

    def __repr__(self) -> str:
        return figures_text(self.figures, self.metrics)

    def _repr_html_(self) -> str:
        return show.page(figures_html(self.figures, self.metrics))


_ANSWERS = ("reasoner", "split", "question", "gold", "answer", "correct", "mistake", "chain")


def figure_rows(figures: Figures, metrics: Mapping[str, Metric]) -> Iterator[dict[str, Any]]:
    """A row for each reasoner and split, or for each of their metrics."""
    for reasoner, splits in figures.items():
        for split, found in splits.items():
            head = {"reasoner": reasoner, "split": split}
            if metrics:
                for name in metrics:
                    if name in found:
                        low, high = found[name]["interval_95"] or (None, None)
                        value = {"metric": name, "value": found[name]["value"]}
                        yield {**head, **value, "low": low, "high": high, "n": found[name]["n"]}
            else:
                low, high = found["interval_95"]
                bounds = {"accuracy": found["accuracy"], "low": low, "high": high}
                yield {**head, **bounds, "correct": found["correct"], "n": found["n"]}


def figures_html(columns: Figures, metrics: Mapping[str, Metric]) -> str:
    """A table of splits (and metrics) by columns; accuracies as bars, with their intervals."""
    headings = [show.escaped(name) for name in columns]
    if metrics:
        rows = [[show.escaped(cell) for cell in row] for row in _metric_rows(columns, metrics)]
        return show.html_table(["split", "metric (95 % interval)", *headings], rows, numbers=range(2, len(columns) + 2))
    rows = []
    for split in _splits(columns):
        found = [splits.get(split) for splits in columns.values()]
        cells = [show.accuracy_cell(f["accuracy"], *f["interval_95"]) if f and f["n"] else "–" for f in found]
        rows.append([show.escaped(split), *cells])
    return show.html_table(["% right (95 % interval)", *headings], rows, numbers=range(1, len(columns) + 1))


def figures_text(columns: Figures, metrics: Mapping[str, Metric]) -> str:
    """The same as aligned text."""
    if metrics:
        return show.text_table(["split", "metric (95 % interval)", *columns], _metric_rows(columns, metrics))
    rows = []
    for split in _splits(columns):
        cells = []
        for splits in columns.values():
            found = splits.get(split)
            if not found or not found["n"]:
                cells.append("–")
            else:
                low, high = found["interval_95"]
                cells.append(f"{100 * found['accuracy']:.0f} ({100 * low:.0f}–{100 * high:.0f})")
        rows.append([split, *cells])
    return show.text_table(["% right (95 % interval)", *columns], rows)


def _metric_rows(columns: Figures, metrics: Mapping[str, Metric]) -> Iterator[list[str]]:
    for split in _splits(columns):
        for name, metric in metrics.items():
            found = [splits.get(split, {}).get(name) for splits in columns.values()]
            if any(figure is not None for figure in found):
                yield [split, name, *(metric_text(figure, metric) for figure in found)]


def _splits(columns: Figures) -> list[str]:
    """In the order in which they come."""
    return list(dict.fromkeys(split for splits in columns.values() for split in splits))
