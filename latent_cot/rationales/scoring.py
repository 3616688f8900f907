"""To score: the log-probabilities of rationales under an adapter, teacher-forced, one token tree a question.

Both reasoners define the probability of a rationale in the same way, by the process that samples it: at
each prefix a softmax over the actions (the allowed tokens, and the stop where it is allowed); a tool's
tokens have probability one. Sampling, the policy's log q, the reward's log p and the M-step's likelihood
all use it; but where Y begins with the stop, p's stop is a token of Y, which is taken among all tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import groupby

import torch
from torch.nn.functional import log_softmax, pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from latent_cot.model.lm import LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.model.tree import ROW_MULTIPLE, TokenTree, micro_batches
from latent_cot.types import Example, Rationale

# Rows of full-vocabulary logits computed at once: they stay in the cache, and take 64 x V x 4 bytes without gradients.
_VOCABULARY_ROWS = 64
BLOCK = 2**23
"""Logits of actions that are made at once: 32 MB, and about three times as much in a backward pass."""


@dataclass(frozen=True)
class Query:
    """One training question of a step, as both sides read it."""

    example: Example
    policy_prompt: Sequence[int]
    """What q reads: X, or X and Y."""
    model_prompt: Sequence[int]
    """What p reads: X."""
    answer: Sequence[int]
    """Y's tokens."""


@dataclass(frozen=True)
class Group:
    """The distinct rationales of one question, to be scored together."""

    prompt: Sequence[int]
    """Token ids before the rationale."""
    rationales: Sequence[Rationale]
    answer: Sequence[int] = ()
    """Token ids of Y; empty where Y is not scored."""
    others: Sequence[Sequence[int]] = ()
    """Token ids of the answers that Y is compared with, where it is one of a few candidates; scored where Y is."""
    gaps: Sequence[int] = ()
    """How many positions to leave out before each token of the prompt and of the rationale, of which there is but one;
    empty: none."""

    def stop_in_answer(self, codec: TextCodec) -> bool:
        """Whether Y begins with the stop, as ". The answer is" does."""
        return list(self.answer[:1]) == [codec.stop_id]


@dataclass(frozen=True)
class Scores:
    """Log-probabilities, in nats, of B rationales of at most N tokens; 0 where padded or not a state."""

    log_pf: torch.Tensor
    """(B, N) of each token the policy chose; 0 for a tool's tokens."""
    log_pterm: torch.Tensor
    """(B, N + 1) of stopping at each prefix that is a state; 0 at the end of a rationale that was cut."""
    log_y: torch.Tensor
    """(B, N + 1) of the whole answer Y after each scored prefix; 0 where not asked for."""
    log_others: torch.Tensor
    """(B, N + 1, C) of each of up to C other answers, likewise; −inf where a group has fewer."""
    log_tool: torch.Tensor
    """(B, N) of each of a tool's tokens under the whole vocabulary; 0 elsewhere or where not asked for."""
    states: torch.Tensor
    """(B, N + 1) bool: prefixes at which stopping is allowed."""
    group: torch.Tensor
    """(B,) long: the group each rationale belongs to, counted from 0."""
    ends: torch.Tensor
    """(B,) long: the number of tokens of each rationale."""
    stop_in_answer: torch.Tensor
    """(B,) bool: Y begins with the stop, so that `log_y` has its log-probability."""

    def at_end(self, table: torch.Tensor) -> torch.Tensor:
        """(B,) what `table` (B, N + 1) has at the end of each rationale."""
        return table.gather(1, self.ends[:, None])[:, 0]

    @property
    def log_complete(self) -> torch.Tensor:
        """(B,) log-probability of each complete rationale, its stop included unless that was forced."""
        return self.log_pf.sum(1) + self.at_end(self.log_pterm)

    @property
    def log_actions(self) -> torch.Tensor:
        """(B, N + 1) log-probability of each action: of the tokens that the policy chose and, behind the last token, of
        the stop; 0 where there is no action."""
        stop = self.at_end(self.log_pterm)[:, None]
        return pad(self.log_pf, (0, 1)).scatter(1, self.ends[:, None], stop)

    @property
    def log_stop(self) -> torch.Tensor:
        """(B, N + 1) log-probability of stopping at each state, where Y does not begin with the stop, and so does not
        say it; 0 where it does, and for a forced stop."""
        return self.log_pterm * ~self.stop_in_answer[:, None]

    @property
    def log_choice(self) -> torch.Tensor:
        """(B, N + 1) log-probability of Y among the candidates after each scored prefix."""
        return self.log_y - torch.cat([self.log_y[..., None], self.log_others], -1).logsumexp(-1)

    def of_groups(self) -> list[Scores]:
        """Those of each group by itself, on the CPU, with the columns of its longest rationale."""
        tables = {name: table.cpu() for name, table in vars(self).items()}
        group, ends, padded = tables["group"], tables["ends"], self.log_pf.shape[1]
        found = []
        for g in range(int(group.max()) + 1):
            own = group == g
            excess = padded - int(ends[own].max())
            narrowed = {name: t[own] if t.ndim == 1 else t[own, : t.shape[1] - excess] for name, t in tables.items()}
            found.append(Scores(**{**narrowed, "group": torch.zeros_like(ends[own])}))
        return found

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """Those of the parts of one group, as those of one."""
        if len(parts) == 1:
            return parts[0]

        def whole(tables: Sequence[torch.Tensor]) -> torch.Tensor:
            if tables[0].ndim == 1:
                return torch.cat(list(tables))
            if tables[0].ndim == 3:  # behind the group's own candidates, -inf: as many as the batch of the part needed
                least = min(table.shape[2] for table in tables)
                tables = [table[..., :least] for table in tables]
            return pad_sequence([row for table in tables for row in table], batch_first=True)

        return cls(**{name: whole([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def score(
    lm: LanguageModel,
    model: PreTrainedModel,
    groups: Sequence[Group],
    codec: TextCodec,
    *,
    answers_at: str = "none",
    tool_tokens: bool = False,
) -> Scores:
    """Score every rationale of `groups` in one forward pass.

    Args:
        model: `lm.merged(...)`, or the model that `lm.trainable(...)` gives, for gradients.
        answers_at: after which prefixes to score Y: "none", "states" (all of them) or "end".
        tool_tokens: whether to fill `log_tool`.
    """
    return _score(lm, model, [_Layout(group, answers_at) for group in groups], codec, tool_tokens=tool_tokens)


def score_in_batches(
    lm: LanguageModel,
    model: PreTrainedModel,
    groups: Sequence[Group],
    codec: TextCodec,
    *,
    max_tokens: int,
    answers_at: str = "none",
    tool_tokens: bool = False,
) -> Iterator[tuple[list[int], Scores]]:
    """`score`, in micro-batches of whole groups that pad to at most `max_tokens` tokens.

    Yields the indices of the groups of each micro-batch and their scores.
    """
    layouts = [_Layout(group, answers_at) for group in groups]
    for batch in micro_batches([layout.tree for layout in layouts], max_tokens):
        yield batch, _score(lm, model, [layouts[g] for g in batch], codec, tool_tokens=tool_tokens)


@torch.no_grad()
def score_rows(
    lm: LanguageModel,
    model: PreTrainedModel,
    groups: Sequence[Group],
    codec: TextCodec,
    *,
    max_tokens: int,
    answers_at: str = "none",
    tool_tokens: bool = False,
) -> list[Scores]:
    """Each group's scores, on the CPU and without gradients, for whoever reads a rationale's by itself.

    In micro-batches as of `score_in_batches`; but where a group's tree has more than `max_tokens` tokens, in parts that
    have no more, or are of one rationale.
    """
    layouts = [(g, layout) for g, group in enumerate(groups) for layout in _layouts(group, answers_at, max_tokens)]
    scored: dict[int, Scores] = {}
    for batch in micro_batches([layout.tree for _, layout in layouts], max_tokens):
        scores = _score(lm, model, [layouts[k][1] for k in batch], codec, tool_tokens=tool_tokens)
        scored.update(zip(batch, scores.of_groups(), strict=True))
    parts = [(g, scored[k]) for k, (g, _) in enumerate(layouts)]
    return [Scores.joined([part for _, part in own]) for _, own in groupby(parts, lambda part: part[0])]


def _score(
    lm: LanguageModel, model: PreTrainedModel, layouts: Sequence[_Layout], codec: TextCodec, *, tool_tokens: bool
) -> Scores:
    hidden = lm.hidden(model, [layout.tree for layout in layouts])
    cells = _cells(layouts, codec, tool_tokens=tool_tokens)
    group_of = [g for g, layout in enumerate(layouts) for _ in layout.group.rationales]
    rationales = [rationale for layout in layouts for rationale in layout.group.rationales]
    size = len(rationales)
    longest = max((len(r) for r in rationales), default=0)
    device = hidden.device
    reads = {read: k for k, read in enumerate(sorted({(e, a) for *_, e, a in (*cells.chosen, *cells.stops)}))}
    log_probs = _log_probs(lm, hidden, list(cells.prefixes), list(reads), codec)

    def filled(shape: tuple[int, ...], of: Sequence[_Cell]) -> torch.Tensor:
        if not of:
            return log_probs.new_zeros(shape)
        b, i, read = _columns([(b, i, reads[entry, action]) for b, i, entry, action in of], device)
        return log_probs.new_zeros(shape).index_put((b, i), log_probs[read])

    most = max((len(layout.group.others) for layout in layouts), default=0)
    log_answers = _sum_into((size, longest + 1, 1 + most), cells.answers, lm, hidden)
    others_of = torch.tensor([len(layouts[g].group.others) for g in group_of], device=device)
    fewer = torch.arange(most, device=device) >= others_of[:, None]  # (B, C)
    return Scores(
        log_pf=filled((size, longest), cells.chosen),
        log_pterm=filled((size, longest + 1), cells.stops),
        log_y=log_answers[..., 0],
        log_others=log_answers[..., 1:].masked_fill(fewer[:, None], -torch.inf),
        log_tool=_sum_into((size, longest), cells.tool, lm, hidden),
        states=torch.tensor(
            [[*z.states, *[False] * (longest - len(z))] for z in rationales], dtype=torch.bool, device=device
        ),
        group=torch.tensor(group_of, device=device),
        ends=torch.tensor([len(rationale) for rationale in rationales], device=device),
        stop_in_answer=torch.tensor([layouts[g].group.stop_in_answer(codec) for g in group_of], device=device),
    )


_Cell = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Cells:
    """Which cells of the tables of `Scores` are filled, and from what. b counts all the rationales, i is the number of
    tokens of a prefix, and a row is that of a node among the hidden states of all trees."""

    prefixes: dict[tuple[int, bool], int] = field(default_factory=dict)
    """(row, may a chain stop there) of each distinct prefix that has an action -> its number."""
    chosen: list[_Cell] = field(default_factory=list)
    """(b, i, number of the prefix, action) of each token that the policy chose."""
    stops: list[_Cell] = field(default_factory=list)
    """(b, i, number of the prefix, action) of each stop that was not forced."""
    tool: list[_Cell] = field(default_factory=list)
    """(b, i, row, token) of each token of a tool."""
    answers: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    """(b, i, k, row, token) of each token of the k-th answer behind a prefix; Y is the answer 0."""


def _cells(layouts: Sequence[_Layout], codec: TextCodec, *, tool_tokens: bool) -> _Cells:
    """Those of all rationales of these groups. `tool_tokens`: with those of a tool's tokens."""
    cells = _Cells()
    index_of = codec.action_index.tolist()
    b = offset = 0
    for layout in layouts:
        for rationale, prefixes, answers in zip(layout.group.rationales, layout.prefixes, layout.answers, strict=True):
            last = len(rationale)
            for i, node in enumerate(prefixes):
                stops = rationale.states[i] and not (i == last and rationale.truncated)
                chosen = i < last and rationale.policy_mask[i]
                if stops or chosen:
                    entry = cells.prefixes.setdefault((offset + node, stops), len(cells.prefixes))
                if stops:
                    cells.stops.append((b, i, entry, codec.stop_index))
                if chosen:
                    cells.chosen.append((b, i, entry, index_of[rationale.tokens[i]]))
                elif i < last and tool_tokens:
                    cells.tool.append((b, i, offset + node, rationale.tokens[i]))
            for i, branches in answers:
                cells.answers.extend(
                    (b, i, k, offset + parent, token) for k, branch in enumerate(branches) for parent, token in branch
                )
            b += 1
        offset += len(layout.tree)
    return cells


class _Layout:
    """A group's tree, and where the prefixes of its rationales are in it."""

    def __init__(self, group: Group, answers_at: str) -> None:
        self.group = group
        self.tree = TokenTree()
        if group.gaps and len(group.rationales) > 1:
            raise ValueError("gaps are those of a single rationale")
        n = len(group.prompt)
        root = self.tree.extend(-1, group.prompt, gaps=group.gaps[:n])[-1]
        self.prefixes = [
            [root, *self.tree.extend(root, rationale.tokens, gaps=group.gaps[n:])] for rationale in group.rationales
        ]
        self.answers: list[list[tuple[int, list[list[tuple[int, int]]]]]] = []
        """For each rationale (i, [[(parent node, token) of each token] of Y and of each other answer]) for each prefix
        after which they are scored. Answers that begin alike share these nodes."""
        answers = [group.answer, *group.others] if group.answer and answers_at != "none" else []
        branches = cache(lambda node: [self._branch(node, answer) for answer in answers])
        for rationale, prefixes in zip(group.rationales, self.prefixes, strict=True):
            last = len(rationale)
            scored = [i for i in range(last + 1) if i == last or (answers_at == "states" and rationale.states[i])]
            self.answers.append([(i, branches(prefixes[i])) for i in scored if answers])

    def _branch(self, node: int, answer: Sequence[int]) -> list[tuple[int, int]]:
        # The last token of an answer predicts nothing that is scored: it needs no node.
        path = self.tree.extend(node, answer[:-1], branch="answer")
        return list(zip([node, *path], answer, strict=True))


def _layouts(group: Group, answers_at: str, max_tokens: int) -> Iterator[_Layout]:
    """A group's, or those of as many parts of it as it takes for trees of at most `max_tokens` tokens. What rationales
    share decides how many that are, and Y, which may stand behind each prefix: so the trees are made and counted."""
    layout, half = _Layout(group, answers_at), len(group.rationales) // 2
    if half and len(layout.tree) > max_tokens:
        for some in (group.rationales[:half], group.rationales[half:]):
            yield from _layouts(replace(group, rationales=some), answers_at, max_tokens)
    else:
        yield layout


def _log_probs(
    lm: LanguageModel,
    hidden: torch.Tensor,
    prefixes: list[tuple[int, bool]],
    reads: Sequence[tuple[int, int]],
    codec: TextCodec,
) -> torch.Tensor:
    """The log-probability of each action of `reads`, which are sorted pairs of prefix and action.

    A prefix is a row of `hidden`, and whether a chain may stop there. Of each one or two probabilities are read, of
    perhaps all of a vocabulary: the table of all is made in blocks, and, where there are several, made again in the
    backward pass instead of kept.
    """
    device = hidden.device
    actions = codec.actions.to(device)
    is_stop = torch.arange(len(actions), device=device) == codec.stop_index

    def of_block(states: torch.Tensor, blocked: torch.Tensor, *read: torch.Tensor) -> torch.Tensor:
        logits = lm.logits(states, actions)
        return log_softmax(logits.masked_fill(blocked[:, None] & is_stop, -torch.inf), -1)[read]

    size = max(1, BLOCK // len(actions) // ROW_MULTIPLE) * ROW_MULTIPLE
    again = partial(checkpoint, of_block, use_reentrant=False, preserve_rng_state=False)
    made = again if len(prefixes) > size else of_block
    found = [hidden.new_zeros(0, dtype=torch.float32)]
    for block, own in groupby(reads, lambda read: read[0] // size):
        first = block * size
        among = prefixes[first : first + size]
        among += [(0, True)] * (-len(among) % ROW_MULTIPLE)  # read by nothing
        rows, stops = _columns(among, device)
        found.append(made(hidden[rows], stops == 0, *_columns([(e - first, a) for e, a in own], device)))
    return torch.cat(found)


def _columns(cells: Sequence[tuple[int, ...]], device: torch.device) -> Sequence[torch.Tensor]:
    return torch.tensor(cells, device=device).unbind(1)


def _sum_into(
    shape: tuple[int, ...],
    cells: Sequence[tuple[int, ...]],
    lm: LanguageModel,
    hidden: torch.Tensor,
) -> torch.Tensor:
    """For each (*place, row, token) add log softmax(logits[row])[token], over the whole vocabulary, to that place of a
    zero tensor of this shape."""
    total = torch.zeros(shape, device=hidden.device)
    if not cells:
        return total
    distinct = sorted({(row, token) for *_, row, token in cells})
    place = {key: k for k, key in enumerate(distinct)}
    rows, tokens = _columns(distinct, hidden.device)
    values = torch.cat(
        [
            -torch.nn.functional.cross_entropy(lm.logits(hidden[r]), t, reduction="none")
            for r, t in zip(rows.split(_VOCABULARY_ROWS), tokens.split(_VOCABULARY_ROWS), strict=True)
        ]
    )
    *where, _, _ = _columns(cells, hidden.device)
    which = torch.tensor([place[row, token] for *_, row, token in cells], device=hidden.device)
    return total.index_put(tuple(where), values[which], accumulate=True)
