"""Rationales of one question with their scores: what q, p and the reward make of each token and stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from latent_cot.methods.method import Method
from latent_cot.objectives.importance import importance_weights
from latent_cot.rationales.batch import score_sampled
from latent_cot.rationales.scoring import Group, Scores
from latent_cot.types import Example, Rationale, Reasoner


@dataclass(frozen=True)
class Token:
    """A token of a rationale."""

    text: str
    chosen: bool
    """Did the reasoner choose it, or did a tool write it?"""
    log_q: float | None
    """log q of it given what is before, nats; None for a tool's token, and where there is no q."""
    log_p: float | None
    """log p of it, likewise."""


@dataclass(frozen=True)
class Stop:
    """A prefix at which a chain may stop."""

    position: int
    """Number of tokens before it; 0 is the empty rationale."""
    log_q: float | None
    """log q(⊤ | prefix), nats; 0 at the end of a chain that was cut; None where there is no q."""
    log_p: float
    """log p(⊤ | prefix), likewise."""
    log_reward: float | None
    """log R of the prefix as a complete rationale, nats: log p(z_{1:i} Y | X), unless the task or the E-step's settings
    change it (`Reward.name`); None: Y is not known."""


@dataclass(frozen=True, repr=False)
class ScoredRationale:
    """A distinct rationale of a question."""

    rationale: Rationale
    count: int
    """How often it was sampled."""
    log_q: float | None
    """log q(Z | X), or log q(Z | X, Y) in a run whose q sees the answer: the stop included, at temperature 1, nats.
    None where there is no q, or none that can read the question: Y is not known."""
    log_p: float
    """log p(Z | X), likewise; behind the prompt that tests give p, which has the answer too in a task whose tests
    give it (infilling), where log R does not."""
    log_reward: float | None
    """log R, likewise, nats; None: Y is not known."""
    weight: float | None
    """Its share of the posterior, as the sample tells: R / the probability it was sampled with, times `count`, over the
    sum of these. None where that cannot be told: Y is not known, or the sample is none of temperature 1."""
    answer: str | None
    """The answer it arrives at."""
    correct: bool | None
    """None: the right answer is not known."""
    tokens: tuple[Token, ...]
    stops: tuple[Stop, ...]
    """The prefixes at which it may stop, the whole rationale last."""

    @property
    def text(self) -> str:
        """The tools' results included."""
        return self.rationale.text

    def __repr__(self) -> str:
        figures = (f"{name} {getattr(self, name)}" for name in ("log_q", "log_p", "log_reward", "weight"))
        return f"<{self.text!r:.100}, {len(self.tokens)} tokens, ×{self.count}, {', '.join(figures)}>"

    def log_prob(self, reasoner: Reasoner) -> float:
        """log q or log p. Raises ValueError where there is no q."""
        value = self.log_q if reasoner == "q" else self.log_p
        if value is None:
            raise ValueError("there is no q")
        return value


@dataclass(frozen=True)
class Weighed:
    """The rationales of a question with their weights."""

    rationales: Sequence[ScoredRationale]
    """In the order in which they were given."""
    ess: float | None
    """Effective sample size of the weights as a share of the samples: 1 if all weigh the same."""
    bound: float | None
    """log of the mean weight, nats: in expectation a lower bound on log Z(X), which is log p(Y | X) where R is
    p(Z Y | X)."""


@torch.no_grad()
def score_rationales(
    loop: Method,
    example: Example,
    counts: Mapping[Rationale, int],
    *,
    with_q: bool,
    proposal: Reasoner | None,
    reasoner: Reasoner,
) -> Weighed:
    """What q, p and the reward make of a question's rationales.

    Args:
        counts: distinct rationale -> how often it was sampled.
        with_q: whether there is a q to score them with, which can read the question; p there is always.
        proposal: the reasoner that they were sampled from, at temperature 1; None: from none, so that they have no
            weights.
        reasoner: whose answers after them are told.
    """
    query = loop.query(example, for_q=with_q)
    rationales = list(counts)
    adapters: tuple[Reasoner, ...] = ("q", "p") if with_q else ("p",)
    prompts = {"q": query.policy_prompt, "p": loop.test_prompt("p", example)}
    tables = {name: loop.scores(name, [Group(prompts[name], rationales)])[0] for name in adapters}
    unknown: list[Any] = [None] * len(rationales)
    empty: list[Any] = [[None] * (max(map(len, rationales)) + 1)] * len(rationales)
    p_tokens, p_stops, log_p = _listed(tables["p"])
    q_tokens, q_stops, log_q = _listed(tables["q"]) if with_q else (empty, empty, unknown)

    log_rewards, weights, ess, bound = empty, unknown, None, None
    if example.y is not None or loop.reward.task is not None:
        (scored,) = score_sampled([query], [rationales], loop.reward)
        log_rewards = scored.log_reward.tolist()
        if proposal is not None:
            group = torch.zeros(len(rationales), dtype=torch.long)
            count = torch.tensor(list(counts.values()), dtype=torch.float64)
            log_proposal = tables[proposal].log_complete.double()
            weight, info = importance_weights(scored.log_reward_at_end.double(), log_proposal, count, group)
            weights, ess, bound = weight.tolist(), float(info.ess), float(info.bound)

    graded = example.answer is not None and not loop.task.is_measured
    (answers,) = loop.decide(reasoner, [example], [rationales])
    found = []
    for b, rationale in enumerate(rationales):
        texts = zip(pieces(rationale.tokens, loop.rules.codec.decode), rationale.policy_mask, strict=True)
        tokens = [
            Token(text, chosen, q_tokens[b][i] if chosen else None, p_tokens[b][i] if chosen else None)
            for i, (text, chosen) in enumerate(texts)
        ]
        states = [i for i, is_state in enumerate(rationale.states) if is_state]
        stops = [Stop(i, q_stops[b][i], p_stops[b][i], log_rewards[b][i]) for i in states]
        log_probs = (log_q[b], log_p[b], log_rewards[b][len(rationale)], weights[b])
        correct = loop.task.grade(example, answers[b]) if graded else None
        told = (*log_probs, answers[b], correct)
        found.append(ScoredRationale(rationale, counts[rationale], *told, tuple(tokens), tuple(stops)))
    return Weighed(found, ess, bound)


def _listed(scores: Scores) -> tuple[list[list[float]], list[list[float]], list[float]]:
    """Log-probabilities of each rationale's tokens, of stopping at its prefixes, and of all of it."""
    return scores.log_pf.tolist(), scores.log_pterm.tolist(), scores.log_complete.tolist()


def pieces(tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """The text that each token adds; together they are the text of all. A character that several tokens make up
    belongs to the last of them."""
    found, shown = [], 0
    for i in range(1, len(tokens) + 1):
        text = decode(tokens[:i])
        incomplete = text.endswith("\N{REPLACEMENT CHARACTER}") and i < len(tokens)
        found.append("" if incomplete else text[shown:])
        shown = shown if incomplete else len(text)
    return found
