"""Rationales to look at: those of one question, sampled or written by hand, and those that a run has logged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, get_args, overload

from latent_cot.api import show
from latent_cot.report.tables import Table, bar, data_frame, escaped, page
from latent_cot.report.terminal import RATIONALE_HEADING
from latent_cot.run.printable import printable
from latent_cot.run.run_folder import RunFolder
from latent_cot.run.schemas import LoggedRationale
from latent_cot.types import JOINT, Example, Rationale, Reasoner, UsageError

if TYPE_CHECKING:
    import datasets
    import pandas as pd

    from latent_cot.methods.scored import ScoredRationale


@dataclass(frozen=True, repr=False)
class Rationales(Sequence["ScoredRationale"]):  # which is imported with torch
    """The distinct rationales of one question, those with most weight first.

    In a notebook it shows a table in which each token is coloured by how likely it was.
    """

    example: Example
    """The question, and its answer as far as it is known."""
    items: tuple[ScoredRationale, ...]
    reasoner: Reasoner | None
    """Who wrote them: "q" or "p"; None: they were given by hand."""
    ess: float | None
    """Effective sample size of the weights as a share of the samples: 1 if all weigh the same, near 1 / n if one
    carries all of it. None where there are no weights."""
    bound: float | None
    """Importance-weighted lower bound on log Z(X), nats, which is log p(Y | X) where R is p(Z Y | X); None likewise."""
    colour_by: Reasoner
    """Whose log-probabilities colour the tokens."""
    log_reward: str = JOINT
    """What log R is."""

    @property
    def question(self) -> str:
        return self.example.asked

    @property
    def bound_error(self) -> float | None:
        """The standard error of `bound`, nats. Where R is p(Z Y | X), a `bound` above 0 is chance. None likewise."""
        from latent_cot.objectives.importance import bound_error

        return bound_error(self.ess, self.n) if self.ess else None

    @property
    def n(self) -> int:
        """How many were sampled; `len` is how many of them are distinct."""
        return sum(item.count for item in self.items)

    def coloured_by(self, adapter: Reasoner) -> Rationales:
        """The same rationales, coloured by log q ("q") or log p ("p"). Raises UsageError where there is no q."""
        if adapter not in get_args(Reasoner):
            raise UsageError(f"colour by {adapter!r}: give 'q' or 'p'")
        if adapter == "q" and any(item.log_q is None for item in self.items):
            raise UsageError("there is no q here: colour by p")
        return replace(self, colour_by=adapter)

    def to_pandas(self) -> pd.DataFrame:
        """A row a rationale. For the tokens of one: `pandas.DataFrame(rationales[0].tokens)`."""
        return data_frame(map(row, self.items))

    def to_dataset(self) -> datasets.Dataset:
        """The same as a `datasets.Dataset`, each with its question."""
        return _data_set({"question": self.question, **row(item)} for item in self.items)

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> ScoredRationale: ...
    @overload
    def __getitem__(self, index: slice) -> Rationales: ...
    def __getitem__(self, index: int | slice) -> ScoredRationale | Rationales:
        """One of them, or some: `ess` and `bound` are of all of them only."""
        if not isinstance(index, slice):
            return self.items[index]
        items = self.items[index]
        whole = len(items) == len(self.items)
        return replace(self, items=items, ess=self.ess if whole else None, bound=self.bound if whole else None)

    def table(self) -> Table:
        return Table(
            {
                "weight": ["–" if z.weight is None else bar(z.weight, f"{100 * z.weight:.0f} %") for z in self.items],
                "n": [f"×{z.count}" for z in self.items],
                RATIONALE_HEADING: [show.chain(z, self.colour_by) for z in self.items],
                "answer": [f"{'–' if z.answer is None else z.answer} {_RIGHT[z.correct]}" for z in self.items],
            },
            {
                "log q": [show.figure(z.log_q) for z in self.items],
                "log p": [show.figure(z.log_p) for z in self.items],
                "log R": [show.figure(z.log_reward) for z in self.items],
            },
        )

    def __repr__(self) -> str:
        return f"{printable(self.title)}\n{self.table().text()}"

    def _repr_html_(self) -> str:
        return page(
            f"<div><b>{escaped(self.title)}</b></div>",
            self.table().html(),
            show.legend(self.colour_by, tools=any(item.rationale.calls for item in self.items)),
        )

    @property
    def title(self) -> str:
        title = self.question
        if self.reasoner is not None:
            title += f": {self.n} from {self.reasoner}, {len(self)} distinct"
        if self.ess is not None:
            total = "log p(Y | X)" if self.log_reward == JOINT else "log Z"
            title += f", ESS {show.figure(self.ess, '{:.0%}')}, {total} ≈ {show.figure(self.bound)}"
            title += f" ± {show.figure(self.bound_error)}"
        return title


_RIGHT = {True: "✓", False: "✗", None: ""}


def row(item: ScoredRationale) -> dict[str, Any]:
    """Its figures and text, without its tokens, which mean nothing outside."""
    names = ("text", "count", "weight", "log_q", "log_p", "log_reward", "answer", "correct")
    return {**{name: getattr(item, name) for name in names}, **_sizes(item.rationale)}


def _sizes(z: Rationale) -> dict[str, Any]:
    return {"n_tokens": len(z), "calls": len(z.calls), "truncated": z.truncated}


# -- logged ------------------------------------------------------------------------------------------------


class LoggedRationales:
    """What a run has kept of the rationales it sampled (`rationales.jsonl`), in order. Iterating reads the file."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def __iter__(self) -> Iterator[LoggedRationale]:
        """Raises UsageError, naming the line, for one that is not of a rationale."""
        return self._folder.rationales()

    def to_pandas(self) -> pd.DataFrame:
        """A row a rationale: its text and figures, not its token ids."""
        return data_frame(map(_logged_row, self))

    def to_dataset(self) -> datasets.Dataset:
        """A row a rationale, as a `datasets.Dataset`: its token ids, masks and tool calls too."""
        return _data_set({**_logged_row(one), **_token_columns(one.rationale)} for one in self)

    def __repr__(self) -> str:
        return f"<the logged rationales of {self._folder.path}: iterate, .to_pandas(), .to_dataset()>"


_LOGGED = ("round", "phase", "unit", "question", "log_reward", "count")


def _logged_row(one: LoggedRationale) -> dict[str, Any]:
    return {**{name: getattr(one, name) for name in _LOGGED}, "text": one.rationale.text, **_sizes(one.rationale)}


def _token_columns(z: Rationale) -> dict[str, Any]:
    calls = [asdict(call) for call in z.calls]
    return {"tokens": list(z.tokens), "policy_mask": list(z.policy_mask), "states": list(z.states), "tool_calls": calls}


def _data_set(records: Iterable[dict[str, Any]]) -> datasets.Dataset:
    """A row a record, in memory."""
    import datasets

    return datasets.Dataset.from_list(list(records))
