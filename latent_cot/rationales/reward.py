"""The reward of rationales: log p(z_{1:i} Y | X) at every prefix where stopping is allowed, or the task's own."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

import torch
from transformers import PreTrainedModel

from latent_cot.model.lm import LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.objectives import last_state
from latent_cot.rationales.scoring import Group, Scores, log_stop_before_answer, score_in_batches
from latent_cot.types import Example, Rationale, Task

FREE_WORDS = 3
"""So many words in a row may be those of Y: names and phrases come again."""


def other_answers(task: Task, example: Example, codec: TextCodec) -> list[list[int]]:
    """Token ids of the candidates for an example's answer that are not its own; none where there are no candidates."""
    candidates = task.candidates(example) or {}
    return [codec.encode(text) for answer, text in candidates.items() if answer != example.answer]


@dataclass(frozen=True)
class Comparison:
    """What Y adds to log R, if not just log p(Y | X Z): more of it, or less; and, where Y is one of a few candidates,
    how it compares with the others."""

    task: Task
    normalised: bool = False
    """log p(Y | X Z) divided by the sum of that of all candidates, instead of log p(Y | X Z)."""
    penalty: float = 0.0
    """Nats that a rationale loses after which another candidate is likelier than Y."""
    weight: float = 1.0
    """w: log R is log p(Z | X) + w log p(Y | X Z), or the latter normalised, less the penalty."""

    def against(self, examples: Sequence[Example], groups: Sequence[Group], codec: TextCodec) -> list[Group]:
        """The groups with the other candidates, so that these are scored too."""
        return [
            replace(group, others=other_answers(self.task, example, codec))
            for example, group in zip(examples, groups, strict=True)
        ]

    def __call__(self, scores: Scores) -> torch.Tensor:
        """(B, N + 1), in nats."""
        if not scores.log_others.shape[-1]:
            return self.weight * scores.log_y
        log_y = scores.log_y
        if self.normalised:  # a question without candidates may stand in the same batch
            alone = scores.log_others.isneginf().all(-1)
            log_y = torch.where(alone, scores.log_y, normalised_log_y(scores))
        return self.weight * log_y - self.penalty * (scores.log_others.amax(-1) > scores.log_y)


@dataclass(frozen=True)
class Prior:
    """What a rationale is worth before Y is looked at, where that is not log p(Z ⊤ | X): log q₀(Z ⊤ | X[, Y]), of the
    sampler q₀ before its first E-step.

    q is then trained towards q₀(Z) p(Y | X Z), the optimum of a policy whose divergence from where it started is
    penalised (Korbak et al., "RL with KL penalties is better viewed as Bayesian inference", EMNLP 2022 Findings).
    """

    prompt: Callable[[Example], Sequence[int]]
    """Token ids that q₀ reads of an example."""

    @torch.no_grad()
    def log_probs(
        self,
        lm: LanguageModel,
        examples: Sequence[Example],
        groups: Sequence[Group],
        codec: TextCodec,
        *,
        max_tokens: int,
    ) -> list[torch.Tensor]:
        """log q₀(z_{1:i} ⊤) of every prefix: (B_g, N_g + 1) for each group, on the CPU; of any use at states only."""
        read = [Group(self.prompt(example), group.rationales) for example, group in zip(examples, groups, strict=True)]
        found: dict[int, torch.Tensor] = {}
        for batch, scores in score_in_batches(lm, lm.merged("prior"), read, codec, max_tokens=max_tokens):
            log_q = (torch.nn.functional.pad(scores.log_pf.cumsum(1), (1, 0)) + scores.log_pterm).cpu()
            found.update(_by_group(log_q, scores, batch, groups))
        return [found[g] for g in range(len(groups))]


def normalised_log_y(scores: Scores) -> torch.Tensor:
    """(B, N + 1) log-probability of Y among the candidates after each scored prefix, in nats."""
    return scores.log_y - torch.cat([scores.log_y[..., None], scores.log_others], -1).logsumexp(-1)


@dataclass(frozen=True)
class Reward:
    """log R, untempered, in nats: what the methods that sample rationales learn from."""

    lm: LanguageModel
    codec: TextCodec
    task: Task | None = None
    """The task, if its reward is one of its own. None: the reward is p(X Z ⊤ Y), see `prefix_log_rewards`."""
    tool_tokens: bool = False
    """Whether log p of a tool's tokens counts: see `prefix_log_rewards`."""
    max_tokens: int = 4096
    """Padded size of a forward pass; bounds memory."""
    comparison: Comparison | None = None
    """How Y counts, if not by log p(Y | X Z)."""
    prior: Prior | None = None
    """How Z counts, if not by log p(Z | X); for a reward that is not the task's own."""
    copy_penalty: float = 0.0
    """Nats that a rationale loses for each word, of those that it has copied from Y, after the `FREE_WORDS` first."""

    def of_prefixes(
        self, examples: Sequence[Example], groups: Sequence[Group], *, ends_only: bool = False
    ) -> list[torch.Tensor]:
        """log R(z_{1:i} ⊤) of every prefix of the rationales of each question, which p reads as in its group. Several
        processes divide the questions among them.

        Returns for each group a (B_g, N_g + 1) tensor on the CPU; −inf where the prefix is no state. With `ends_only`
        only those of the complete rationales have to be known, and where Y is scored the others are −inf.
        """
        share = self.lm.processes.share(range(len(groups)))
        own = self._of_prefixes([examples[g] for g in share], [groups[g] for g in share], ends_only=ends_only)
        if self.copy_penalty:
            for g, table in zip(share, own, strict=True):
                for row, rationale in zip(table, groups[g].rationales, strict=True):
                    for n in row.isfinite().nonzero()[:, 0].tolist():
                        row[n] -= self._penalty(examples[g], rationale, n)
        return self.lm.processes.join(own)

    def _of_prefixes(
        self, examples: Sequence[Example], groups: Sequence[Group], *, ends_only: bool
    ) -> list[torch.Tensor]:
        if self.task is None:
            return prefix_log_rewards(
                self.lm,
                self.lm.merged("p"),
                groups if self.comparison is None else self.comparison.against(examples, groups, self.codec),
                self.codec,
                tool_tokens=self.tool_tokens,
                max_tokens=self.max_tokens,
                comparison=self.comparison,
                prior=self._prior(examples, groups),
                ends_only=ends_only,
            )
        return [
            own_log_rewards(self.task, example, group.rationales, self.codec)
            for example, group in zip(examples, groups, strict=True)
        ]

    @torch.no_grad()
    def of_complete(
        self, examples: Sequence[Example], groups: Sequence[Group]
    ) -> Iterator[tuple[list[int], Scores, torch.Tensor]]:
        """log R of the complete rationales only, and what p makes of them, in one pass of p.

        Yields the indices of the groups of each micro-batch, their scores under p and, (B,) on the CPU, their
        log-rewards.
        """
        prior = self._prior(examples, groups)
        if self.comparison is not None:
            groups = self.comparison.against(examples, groups, self.codec)
        scored = score_in_batches(
            self.lm,
            self.lm.merged("p"),
            groups,
            self.codec,
            max_tokens=self.max_tokens,
            answers_at="end" if self.task is None else "none",
            tool_tokens=self.tool_tokens,
        )
        for members, scores in scored:
            if self.task is None:
                # Y was scored at the ends only: what a comparison makes of the other prefixes means nothing.
                log_y = scores.log_y if self.comparison is None else self.comparison(scores)
                if prior is None:
                    stop = log_stop_before_answer(scores, [groups[g] for g in members], self.codec.stop_id)
                    log_z = scores.log_pf.sum(1) + scores.log_tool.sum(1) + _at_ends(stop, groups, members)
                else:
                    log_z = torch.cat([_at_ends(prior[g], groups, [g]) for g in members]).to(log_y.device)
                log_reward = log_z + _at_ends(log_y, groups, members)
            else:
                rewards = [
                    own_log_reward(self.task, examples[g], rationale, len(rationale), self.codec)
                    for g in members
                    for rationale in groups[g].rationales
                ]
                log_reward = torch.tensor(rewards)
            if self.copy_penalty:
                penalties = [
                    self._penalty(examples[g], rationale, len(rationale))
                    for g in members
                    for rationale in groups[g].rationales
                ]
                log_reward = log_reward - torch.tensor(penalties, device=log_reward.device)
            yield members, scores, log_reward.cpu()

    def _penalty(self, example: Example, rationale: Rationale, n: int) -> float:
        """Of its first n tokens."""
        copied = copied_words(self.codec.decode(rationale.tokens[:n]), example.y or "")
        return self.copy_penalty * max(0, copied - FREE_WORDS)

    def _prior(self, examples: Sequence[Example], groups: Sequence[Group]) -> list[torch.Tensor] | None:
        if self.prior is None:
            return None
        return self.prior.log_probs(self.lm, examples, groups, self.codec, max_tokens=self.max_tokens)


@torch.no_grad()
def prefix_log_rewards(
    lm: LanguageModel,
    model: PreTrainedModel,
    groups: Sequence[Group],
    codec: TextCodec,
    *,
    tool_tokens: bool = False,
    max_tokens: int = 4096,
    comparison: Comparison | None = None,
    prior: Sequence[torch.Tensor] | None = None,
    ends_only: bool = False,
) -> list[torch.Tensor]:
    """log R(z_{1:i} ⊤) = log p(X z_{1:i} ⊤ Y) − log p(X), untempered, in nats, for every state.

    Which tokens count:

    * each token of the rationale that the policy chose: log p over the allowed alphabet (and the stop,
      where it is allowed), as p itself would have sampled it; with a `prior` that instead;
    * a tool's tokens: not at all, since the tool writes them whatever p thinks; or, with `tool_tokens`,
      log p over the whole vocabulary, as the paper's code does;
    * each token of Y, over the whole vocabulary. Y's first token is where p ends the rationale. With a `comparison`
      it is this that says what Y adds;
    * the stop: where Y begins with it (". The answer is"), as Y's first token. Where Y does not, log p of stopping
      here, over the allowed alphabet: that is how p ends a rationale when it writes one, and what the M-step learns. A
      forced stop has probability one. With a `prior` its own stop counts instead.

    Args:
        model: the frozen p, `lm.merged("p")`.
        groups: with their answers, and with the other candidates for a `comparison`.
        max_tokens: padded size of a forward pass; bounds memory.
        prior: what `Prior.log_probs` makes of the groups.
        ends_only: score Y behind the complete rationales only; the rewards of the other prefixes are −inf.

    Returns for each group a (B_g, N_g + 1) tensor on the CPU; −inf where the prefix is no state.
    """
    rewards: list[torch.Tensor | None] = [None] * len(groups)
    at = "end" if ends_only else "states"
    scored = score_in_batches(lm, model, groups, codec, max_tokens=max_tokens, answers_at=at, tool_tokens=tool_tokens)
    for batch, scores in scored:
        states = last_state(scores.states) if ends_only else scores.states
        log_y = scores.log_y if comparison is None else comparison(scores)
        tokens = (scores.log_pf + scores.log_tool).cumsum(1)
        stop = log_stop_before_answer(scores, [groups[g] for g in batch], codec.stop_id)
        prefix = torch.nn.functional.pad(tokens, (1, 0)) + stop if prior is None else torch.zeros_like(log_y)
        reward = torch.where(states, prefix + log_y, -torch.inf).cpu()
        for g, rows in _by_group(reward, scores, batch, groups):
            rewards[g] = rows if prior is None else rows + prior[g]
    return rewards  # type: ignore[return-value]


def _by_group(
    table: torch.Tensor, scores: Scores, batch: Sequence[int], groups: Sequence[Group]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Each group of a micro-batch with its rows of a (B, N + 1) table on the CPU, as long as its longest rationale."""
    for k, g in enumerate(batch):
        longest = max(len(rationale) for rationale in groups[g].rationales)
        yield g, table[scores.group.cpu() == k][:, : longest + 1]


def copied_words(text: str, source: str) -> int:
    """The length of the longest run of words that both have; case and punctuation do not count."""
    a, b = (re.findall(r"\w+(?:'\w+)*", one.casefold()) for one in (text, source))
    return SequenceMatcher(None, a, b, autojunk=False).find_longest_match().size


def _at_ends(table: torch.Tensor, groups: Sequence[Group], members: Sequence[int]) -> torch.Tensor:
    """(B,) what `table` (B, N + 1) has at the end of each rationale of these groups."""
    ends = torch.tensor([len(rationale) for g in members for rationale in groups[g].rationales], device=table.device)
    return table.gather(1, ends[:, None])[:, 0]


def own_log_rewards(task: Task, example: Example, rationales: Sequence[Rationale], codec: TextCodec) -> torch.Tensor:
    """The task's own log R of every prefix of a question's B rationales: (B, N + 1), −inf where it is no state."""
    rewards = torch.full((len(rationales), max(map(len, rationales)) + 1), -torch.inf)
    known: dict[tuple[int, ...], float] = {}  # most rationales begin alike
    for row, rationale in enumerate(rationales):
        for n, is_state in enumerate(rationale.states):
            prefix = rationale.tokens[:n]
            if is_state and prefix not in known:
                known[prefix] = own_log_reward(task, example, rationale, n, codec)
            if is_state:
                rewards[row, n] = known[prefix]
    return rewards


def own_log_reward(task: Task, example: Example, rationale: Rationale, n: int, codec: TextCodec) -> float:
    """The task's own log R of the first n tokens of a rationale; −inf if the tokenizer would cut their text into
    others: else a text would count as often as it can be spelled."""
    value = task.log_reward(example, codec.decode(rationale.tokens[:n]))
    return value if value > -math.inf and _is_canonical(rationale, n, codec) else -math.inf


def _is_canonical(rationale: Rationale, n: int, codec: TextCodec) -> bool:
    """Are the first n tokens those of the tokenizer? As in `encode_rationale`, what stands between two tool calls is
    encoded by itself; the tools' results are none of the policy's."""
    starts = [0, *(call.position + call.n_tokens for call in rationale.calls)]
    ends = [*(call.position for call in rationale.calls), n]
    pieces = [rationale.tokens[start : min(end, n)] for start, end in zip(starts, ends, strict=True) if start < n]
    return all(codec.encode(codec.decode(piece)) == list(piece) for piece in pieces)
