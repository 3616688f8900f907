"""Rationales to look at: those of one question, sampled or written by hand, and those that a run has logged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, overload

from latent_cot.api import show
from latent_cot.api.frames import data_frame, data_set
from latent_cot.methods.scored import ScoredRationale
from latent_cot.model.lm import Adapter
from latent_cot.run.printable import printable
from latent_cot.run.run_folder import RATIONALES, RunFolder
from latent_cot.types import Example, Rationale, UsageError, rationale_from_json

if TYPE_CHECKING:
    import datasets
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Rationales(Sequence[ScoredRationale]):
    """The distinct rationales of one question, those with most weight first.

    In a notebook it shows a table in which each token is coloured by how likely it was.
    """

    example: Example
    """The question, and its answer as far as it is known."""
    items: tuple[ScoredRationale, ...]
    reasoner: Adapter | None
    """Who wrote them: "q" or "p"; None: they were given by hand."""
    ess: float | None
    """Effective sample size of the weights as a share of the samples: 1 if all weigh the same, near 1 / n if one
    carries all of it. None where there are no weights."""
    bound: float | None
    """Importance-weighted lower bound on log p(Y | X), nats; None likewise."""
    colour_by: Adapter
    """Whose log-probabilities colour the tokens."""

    @property
    def question(self) -> str:
        return self.example.question

    @property
    def n(self) -> int:
        """How many were sampled; `len` is how many of them are distinct."""
        return sum(item.count for item in self.items)

    def coloured_by(self, adapter: Adapter) -> Rationales:
        """The same rationales, coloured by log q ("q") or log p ("p"). Raises UsageError where there is no q."""
        if adapter == "q" and any(item.log_q is None for item in self.items):
            raise UsageError("there is no q here: colour by p")
        return replace(self, colour_by=adapter)

    def to_pandas(self) -> pd.DataFrame:
        """A row a rationale. For the tokens of one: `pandas.DataFrame(rationales[0].tokens)`."""
        return data_frame(map(_row, self.items), columns=_COLUMNS)

    def to_dataset(self) -> datasets.Dataset:
        """The same as a `datasets.Dataset`, each with its question."""
        return data_set({"question": self.question, **_row(item)} for item in self.items)

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> ScoredRationale: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ScoredRationale]: ...
    def __getitem__(self, index: int | slice) -> ScoredRationale | Sequence[ScoredRationale]:
        return self.items[index]

    def __repr__(self) -> str:
        rows = [
            (
                show.figure(item.weight, "{:.0%}"),
                f"×{item.count}",
                show.chain_text(item),
                "–" if item.answer is None else item.answer,
                _RIGHT[item.correct],
                show.figure(item.log_q),
                show.figure(item.log_p),
                show.figure(item.log_reward),
            )
            for item in self.items
        ]
        headings = ("weight", "n", "rationale", "answer", "", "log q", "log p", "log R")
        return f"{printable(self._title)}\n{show.text_table(headings, rows)}"

    def _repr_html_(self) -> str:
        rows = [
            (
                "<td>–</td>" if item.weight is None else show.bar_cell(item.weight, f"{100 * item.weight:.0f} %"),
                f"×{item.count}",
                show.chain_html(item, self.colour_by),
                f"{'–' if item.answer is None else show.escaped(item.answer)} {_RIGHT[item.correct]}",
                show.figure(item.log_q),
                show.figure(item.log_p),
                show.figure(item.log_reward),
            )
            for item in self.items
        ]
        headings = ("weight", "", "rationale", "answer", "log q", "log p", "log R")
        return show.page(
            f"<div><b>{show.escaped(self._title)}</b></div>",
            show.html_table(headings, rows, numbers=(1, 4, 5, 6)),
            show.legend(self.colour_by, tools=any(item.rationale.calls for item in self.items)),
        )

    @property
    def _title(self) -> str:
        title = self.question
        if self.reasoner is not None:
            title += f": {self.n} from {self.reasoner}, {len(self)} distinct"
        if self.ess is not None:
            title += f", ESS {show.figure(self.ess, '{:.0%}')}, bound {show.figure(self.bound)}"
        return title


_RIGHT = {True: "✓", False: "✗", None: ""}
_COLUMNS = (
    "text",
    "count",
    "weight",
    "log_q",
    "log_p",
    "log_reward",
    "answer",
    "correct",
    "n_tokens",
    "calls",
    "truncated",
)


def _row(item: ScoredRationale) -> dict[str, Any]:
    values = {name: getattr(item, name) for name in _COLUMNS[:8]}
    rationale = item.rationale
    return {**values, "n_tokens": len(rationale), "calls": len(rationale.calls), "truncated": rationale.truncated}


# -- logged ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoggedRationale:
    """A rationale that was sampled while a run trained."""

    round: int
    phase: str
    unit: int
    """The unit of work within that phase, such as the step of the E-step, from 1."""
    question: str
    rationale: Rationale
    log_reward: float | None
    """log R of it at that time, nats; None: it was not finite."""
    count: int
    """How often it was among the samples of its question."""


class LoggedRationales:
    """What a run has kept of the rationales it sampled (`rationales.jsonl`), in order. Iterating reads the file."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def __iter__(self) -> Iterator[LoggedRationale]:
        """Raises UsageError, naming the line, for a record that is not one of a rationale."""
        for number, record in enumerate(self._folder.rationales(), 1):
            try:
                yield LoggedRationale(**{**record, "rationale": rationale_from_json(record["rationale"])})
            except (KeyError, TypeError) as error:
                file = self._folder.path / RATIONALES
                raise UsageError(f"{file}, line {number}: no record of a rationale ({error}); take it out") from error

    def to_pandas(self) -> pd.DataFrame:
        """A row a rationale: its text and figures, not its token ids."""
        return data_frame(map(_logged_row, self), columns=_LOGGED_COLUMNS)

    def to_dataset(self) -> datasets.Dataset:
        """A row a rationale, as a `datasets.Dataset`: its token ids, masks and tool calls too."""
        return data_set({**_logged_row(one), **_token_columns(one.rationale)} for one in self)

    def __repr__(self) -> str:
        return f"<the logged rationales of {self._folder.path}: iterate, .to_pandas(), .to_dataset()>"


_LOGGED_COLUMNS = (
    "round",
    "phase",
    "unit",
    "question",
    "text",
    "log_reward",
    "count",
    "n_tokens",
    "calls",
    "truncated",
)


def _logged_row(one: LoggedRationale) -> Mapping[str, Any]:
    z = one.rationale
    own = {name: getattr(one, name) for name in ("round", "phase", "unit", "question", "log_reward", "count")}
    return {**own, "text": z.text, "n_tokens": len(z), "calls": len(z.calls), "truncated": z.truncated}


def _token_columns(z: Rationale) -> Mapping[str, Any]:
    calls = [asdict(call) for call in z.calls]
    return {"tokens": list(z.tokens), "policy_mask": list(z.policy_mask), "states": list(z.states), "tool_calls": calls}
