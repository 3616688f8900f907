"""Figures of sampled rationales, for tasks that have no right answers (`types.Task.metrics`).

For each test question rationales are drawn from a reasoner, each distinct one is scored once under the base
model, and the task makes figures of them. A likelihood is always the base model's, over its whole vocabulary: a
reasoner that judged its own rationales would find them as likely as it has made them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import starmap
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from latent_cot.evaluation import intervals
from latent_cot.model.lm import LanguageModel
from latent_cot.model.tree import TokenTree, micro_batches
from latent_cot.rationales.chain import Chain, ChainRules, encode_rationale
from latent_cot.rationales.rollout import count_distinct, rollout
from latent_cot.rationales.scoring import Group, score
from latent_cot.types import Measured, Rationale, Sample, Task

MANY = 256
"""From this number of rationales a question on, they are counted rather than sampled one by one."""

# Chains that are run at once, and rows of full-vocabulary logits: both bound memory.
_CHAINS_AT_ONCE = 512
_VOCABULARY_ROWS = 64

Counts = Mapping[Rationale, int]
"""Distinct rationale -> how often it was sampled, in order of first occurrence."""


# -- drawing -----------------------------------------------------------------------------------------------


def draw(
    lm: LanguageModel,
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    rules: ChainRules,
    *,
    n: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    batch_size: int = 128,
    generator: torch.Generator | None = None,
) -> list[Counts]:
    """`n` rationales for each prompt, as counts of the distinct ones.

    Args:
        model: the weights to sample from, e.g. `lm.merged("q")`.
        temperature: 0 is greedy.
        top_p: below 1, nucleus sampling, as `rollout` does it.
        batch_size: about how many chains are in progress at once.
        generator: on the CPU. The same generator state gives the same rationales.
    """
    settings: dict[str, Any] = {"n": n, "temperature": temperature, "generator": generator}
    if n >= MANY and top_p == 1:
        return [count_samples(lm, model, prompt, rules, **settings) for prompt in prompts]
    sampled = rollout(lm, model, prompts, rules, batch_size=max(n, batch_size), top_p=top_p, **settings)
    return [count_distinct(rationales) for rationales in sampled]


@torch.no_grad()
def count_samples(
    lm: LanguageModel,
    model: PreTrainedModel,
    prompt: Sequence[int],
    rules: ChainRules,
    *,
    n: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Counts:
    """How often each rationale occurs among `n` samples of one prompt.

    Token by token, the samples that share a chain are divided among its continuations, as a multinomial does. Time and
    memory grow with the number of distinct chains, not with n: 100,000 samples of a number cost as much as the numbers
    there are. Chains are run from the prompt on at each token, which is nothing for short ones; long ones, which hardly
    ever occur twice, are `rollout`'s business.
    """
    finished: dict[Rationale, int] = {}
    going: list[tuple[Chain, int]] = [(Chain(rules), n)]
    while going:
        longer: list[tuple[Chain, int]] = []
        for start in range(0, len(going), _CHAINS_AT_ONCE):
            chains = going[start : start + _CHAINS_AT_ONCE]
            for (chain, _), counts in zip(
                chains, _divide(lm, model, prompt, chains, rules, temperature, generator), strict=True
            ):
                for action, count in counts.items():
                    if action == rules.codec.stop_index:
                        finished[chain.finish()] = count
                        continue
                    branch = chain.copy()
                    branch.push(int(rules.codec.actions[action]))
                    if branch.full:
                        finished[branch.finish()] = count
                    else:
                        longer.append((branch, count))
        going = longer
    return finished


def _divide(
    lm: LanguageModel,
    model: PreTrainedModel,
    prompt: Sequence[int],
    chains: Sequence[tuple[Chain, int]],
    rules: ChainRules,
    temperature: float,
    generator: torch.Generator | None,
) -> Iterator[dict[int, int]]:
    """Action -> how many of a chain's samples choose it next, for each chain."""
    tree = TokenTree()
    root = tree.extend(-1, prompt)[-1]
    ends = [[root, *tree.extend(root, chain.tokens)][-1] for chain, _ in chains]
    hidden = lm.hidden(model, [tree])[torch.tensor(ends, device=lm.device)]
    actions = rules.codec.actions.to(lm.device)
    for start in range(0, len(chains), _VOCABULARY_ROWS):
        logits = lm.logits(hidden[start : start + _VOCABULARY_ROWS], actions).cpu().double()
        for row, (chain, count) in zip(logits, chains[start : start + _VOCABULARY_ROWS], strict=False):
            if not chain.may_stop:
                row[rules.codec.stop_index] = -torch.inf
            if temperature == 0:
                yield {int(row.argmax()): count}
                continue
            cumulative = (row / temperature).softmax(-1).cumsum(-1)
            points = torch.rand(count, dtype=torch.float64, generator=generator) * cumulative[-1]
            # The first entry above a point, so never an action of probability 0; a point may be rounded up to the end.
            drawn = torch.searchsorted(cumulative, points, right=True).clamp(max=int(cumulative.argmax()))
            which, counts = drawn.unique(return_counts=True)
            yield dict(zip(which.tolist(), counts.tolist(), strict=True))


# -- scoring -----------------------------------------------------------------------------------------------


@torch.no_grad()
def score_texts(
    lm: LanguageModel, model: PreTrainedModel, groups: Sequence[Group], *, max_tokens: int = 4096
) -> list[list[tuple[float, float | None]]]:
    """(log p(Z | X), log p(Y | X Z)) of each rationale of each group, over the whole vocabulary, in nats.

    All of Z's tokens count, a tool's included; the stop does not, but for what Y says of it. The second is None in a
    group without an answer.

    Args:
        max_tokens: padded size of a forward pass; bounds memory.
    """
    parts = [(g, part) for g, group in enumerate(groups) for part in _parts(group, max_tokens)]
    layouts = [_Layout(part) for _, part in parts]
    scores: list[list[tuple[float, float | None]]] = [[] for _ in parts]
    for batch in micro_batches([layout.tree for layout in layouts], max_tokens):
        hidden = lm.hidden(model, [layouts[k].tree for k in batch])
        offset = 0
        for k in batch:
            layout, known = layouts[k], bool(parts[k][1].answer)
            log_p = _log_probs(lm, hidden, [(offset + parent, token) for parent, token in layout.moves])
            offset += len(layout.tree)
            for z, y in layout.paths:
                log_y = math.fsum(log_p[move] for move in y) if known else None
                scores[k].append((math.fsum(log_p[move] for move in z), log_y))
    found: list[list[tuple[float, float | None]]] = [[] for _ in groups]
    for (g, _), of_part in zip(parts, scores, strict=True):
        found[g].extend(of_part)
    return found


def _parts(group: Group, max_tokens: int) -> Iterator[Group]:
    """A group in parts whose trees have at most `max_tokens` nodes, or one rationale."""
    part: list[Rationale] = []
    size = len(group.prompt)
    for rationale in group.rationales:
        own = len(rationale) + len(group.answer)
        if part and size + own > max_tokens:
            yield Group(group.prompt, part, group.answer)
            part, size = [], len(group.prompt)
        part.append(rationale)
        size += own
    if part:
        yield Group(group.prompt, part, group.answer)


class _Layout:
    """A group's tree, and where the tokens of its rationales and of Y after them are in it."""

    def __init__(self, group: Group) -> None:
        self.tree = TokenTree()
        self.moves: list[tuple[int, int]] = []
        """(parent node, token), each once."""
        self.paths: list[tuple[list[int], list[int]]] = []
        """Of each rationale: the moves of Z, and those of Y."""
        self._place: dict[tuple[int, int], int] = {}
        root = self.tree.extend(-1, group.prompt)[-1]
        for rationale in group.rationales:
            nodes = [root, *self.tree.extend(root, rationale.tokens)]
            # The last token of Y predicts nothing that is scored: it needs no node.
            after = [nodes[-1], *self.tree.extend(nodes[-1], group.answer[:-1])]
            self.paths.append(
                (
                    list(starmap(self._move, zip(nodes, rationale.tokens, strict=False))),
                    list(starmap(self._move, zip(after, group.answer, strict=False))),
                )
            )

    def _move(self, parent: int, token: int) -> int:
        place = self._place.setdefault((parent, token), len(self.moves))
        if place == len(self.moves):
            self.moves.append((parent, token))
        return place


def _log_probs(lm: LanguageModel, hidden: torch.Tensor, moves: Sequence[tuple[int, int]]) -> list[float]:
    """log softmax(logits[row])[token] of each (row, token)."""
    if not moves:
        return []
    rows, tokens = torch.tensor(moves, device=hidden.device).unbind(1)
    parts = zip(rows.split(_VOCABULARY_ROWS), tokens.split(_VOCABULARY_ROWS), strict=True)
    values = [-torch.nn.functional.cross_entropy(lm.logits(hidden[r]), t, reduction="none") for r, t in parts]
    found: list[float] = torch.cat(values).tolist()
    return found


def judge(
    lm: LanguageModel, task: Task, groups: Sequence[Group], counts: Sequence[Counts], *, max_tokens: int
) -> list[list[Sample]]:
    """Each question's distinct rationales with their counts and, where the task asks for it, the base model's scores.

    Args:
        groups: what the base model reads: X, the rationales of `counts`, and Y where it is known.
    """
    if not task.scored:
        return [[Sample(rationale, count=count) for rationale, count in of_one.items()] for of_one in counts]
    with lm.without_adapters() as base:
        scores = score_texts(lm, base, groups, max_tokens=max_tokens)
    return [
        [
            Sample(rationale, log_z, log_y, count)
            for (rationale, count), (log_z, log_y) in zip(of_one.items(), of_scores, strict=True)
        ]
        for of_one, of_scores in zip(counts, scores, strict=True)
    ]


@torch.no_grad()
def log_probs_of_texts(
    lm: LanguageModel, model: PreTrainedModel, prompt: Sequence[int], texts: Sequence[str], rules: ChainRules
) -> list[float]:
    """log-probability of each text as a complete rationale, the stop included, spelled as the tokenizer does; nats.

    Raises UsageError for a text that is none, such as one of too many tokens.
    """
    found: list[float] = []
    for start in range(0, len(texts), _CHAINS_AT_ONCE):
        rationales = [encode_rationale(text, rules) for text in texts[start : start + _CHAINS_AT_ONCE]]
        scores = score(lm, model, [Group(prompt, rationales)], rules.codec)
        ends = torch.tensor([[len(rationale)] for rationale in rationales], device=scores.log_pterm.device)
        found += (scores.log_pf.sum(1) + scores.log_pterm.gather(1, ends)[:, 0]).tolist()
    return found


# -- figures -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A metric's value on a split."""

    value: float
    """The mean over the questions, or the number of all of them together."""
    n: int
    """Questions."""
    interval_95: tuple[float, float] | None = None
    """Bootstrap over the questions; None for a number of all of them together, and for fewer than two questions."""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "interval_95": None if self.interval_95 is None else list(self.interval_95)}


def figures(task: Task, questions: Sequence[Measured]) -> dict[str, Figure]:
    """Metric's name -> its value on these questions, in the task's order."""
    return {name: figure_of(found, len(questions)) for name, found in measure(task, questions).items()}


def measure(task: Task, questions: Sequence[Measured]) -> dict[str, float | Sequence[float]]:
    """What `task.measure` finds, in the task's order, once it is checked."""
    found = task.measure(questions)
    unknown = found.keys() - task.metrics.keys()
    if unknown:
        raise ValueError(f"the task measures {', '.join(sorted(unknown))}, which its `metrics` do not name")
    for values in found.values():
        if isinstance(values, Sequence) and len(values) != len(questions):
            raise ValueError(f"a metric has {len(values)} values for {len(questions)} questions")
    return {name: found[name] for name in task.metrics if name in found}


def figure_of(found: float | Sequence[float], n: int) -> Figure:
    """A metric's value on n questions, given its value on all together, or those on each."""
    if not isinstance(found, Sequence):
        return Figure(float(found), n)
    values = np.array([value for value in found if not math.isnan(value)], dtype=float)
    if not len(values):
        return Figure(math.nan, 0)
    return Figure(float(values.mean()), len(values), intervals.of_mean(values))
