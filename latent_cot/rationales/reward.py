"""The reward of rationales: log p(z_{1:i} Y | X) at every prefix where stopping is allowed, or the task's own."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

import torch

from latent_cot.config.schema import EStepConfig
from latent_cot.config.settings import flag
from latent_cot.model.lm import AdapterName, LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.objectives.balance import last_state
from latent_cot.rationales.scoring import Group, Scores, score_rows
from latent_cot.types import JOINT, Example, Rationale, Task, UsageError

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
    """Nats taken off a rationale if, after it, another candidate is likelier than Y."""
    weight: float = 1.0
    """w: log R is log p(Z | X) + w log p(Y | X Z), or the latter normalised, less the penalty."""

    def __call__(self, scores: Scores) -> torch.Tensor:
        """(B, N + 1), in nats."""
        if not scores.log_others.shape[-1]:
            return self.weight * scores.log_y
        log_y = scores.log_y
        if self.normalised:  # a question without candidates may stand in the same batch
            alone = scores.log_others.isneginf().all(-1)
            log_y = torch.where(alone, scores.log_y, scores.log_choice)
        return self.weight * log_y - self.penalty * (scores.log_others.amax(-1) > scores.log_y)

    def log_stop(self, scores: Scores) -> torch.Tensor:
        """(B, N + 1), in nats, of the stop. All candidates begin with it where Y does, so that a Y that is compared
        with them does not say it."""
        if not (self.normalised and scores.log_others.shape[-1]):
            return scores.log_stop
        alone = scores.log_others.isneginf().all(-1)
        return torch.where(alone, scores.log_stop, scores.log_pterm)


@dataclass(frozen=True)
class Reward:
    """log R, untempered, in nats: what the methods that sample rationales learn from."""

    lm: LanguageModel
    codec: TextCodec
    task: Task | None = None
    """The task, if its reward is one of its own. None: the reward is p(Z ⊤ Y | X), see `log_joint`."""
    tool_tokens: bool = False
    """Whether log p of a tool's tokens counts: see `log_joint`."""
    max_tokens: int = 4096
    """Padded size of a forward pass; bounds memory, whatever the size of a group."""
    comparison: Comparison | None = None
    """How Y counts, if not by log p(Y | X Z)."""
    prior: Callable[[Example], Sequence[int]] | None = None
    """Token ids that q₀, the sampler before its first E-step, reads of an example: its log q₀(Z ⊤ | X[, Y]) then counts
    instead of log p(Z ⊤ | X), where the reward is not the task's own.

    q is so trained towards q₀(Z) p(Y | X Z), the optimum of a policy whose divergence from where it started is
    penalised (Korbak et al., "RL with KL penalties is better viewed as Bayesian inference", EMNLP 2022 Findings)."""
    copy_penalty: float = 0.0
    """Nats that a rationale loses for each word, of those that it has copied from Y, after the `FREE_WORDS` first."""

    @property
    def name(self) -> str:
        """What log R is, for whoever reads its figures. Only `JOINT` adds up to p(Y | X) over all rationales."""
        if self.task is not None:
            return "the task's own log-reward"
        plain = not (self.tool_tokens or self.comparison or self.prior or self.copy_penalty)
        return JOINT if plain else f"{JOINT}, changed by settings of the E-step"

    def of_prefixes(
        self, examples: Sequence[Example], groups: Sequence[Group], *, ends_only: bool = False
    ) -> list[torch.Tensor]:
        """log R(z_{1:i} ⊤) of every prefix of the rationales of each question, which p reads as in its group. Several
        processes divide the questions among them.

        Returns for each group a (B_g, N_g + 1) tensor on the CPU; −inf where the prefix is no state and, with
        `ends_only`, of all but the complete rationales.
        """
        return [table for table, _ in self.score(examples, groups, ends_only=ends_only, reference=False)]

    @torch.no_grad()
    def score(
        self, examples: Sequence[Example], groups: Sequence[Group], *, ends_only: bool, reference: bool
    ) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """`of_prefixes`, and with `reference` p's `Scores.log_actions` likewise, in one pass of p."""
        share = self.lm.processes.share(range(len(groups)))
        examples, groups = [examples[g] for g in share], [groups[g] for g in share]
        scored: Sequence[Scores] = ()
        if self.task is None or reference:
            compared = groups
            if self.comparison is not None:  # the other candidates are scored too
                others = [other_answers(self.comparison.task, example, self.codec) for example in examples]
                compared = [replace(group, others=own) for group, own in zip(groups, others, strict=True)]
            at = "none" if self.task is not None else "end" if ends_only else "states"
            scored = self._scores("p", compared, answers_at=at, tool_tokens=self.tool_tokens)
        if self.task is not None:
            tables = [
                own_log_rewards(self.task, example, group.rationales, self.codec, ends_only=ends_only)
                for example, group in zip(examples, groups, strict=True)
            ]
        else:
            priors = self._log_priors(examples, groups)
            tables = [self._joint(*one, ends_only=ends_only) for one in zip(scored, priors, strict=True)]
        if self.copy_penalty:
            for example, group, table in zip(examples, groups, tables, strict=True):
                for row, rationale in zip(table, group.rationales, strict=True):
                    for n in row.isfinite().nonzero()[:, 0].tolist():
                        copied = copied_words(self.codec.decode(rationale.tokens[:n]), example.y or "")
                        row[n] -= self.copy_penalty * max(0, copied - FREE_WORDS)
        references = [scores.log_actions for scores in scored] if reference else [None] * len(groups)
        return self.lm.processes.join(list(zip(tables, references, strict=True)))

    def _joint(self, scores: Scores, prior: torch.Tensor | None, *, ends_only: bool) -> torch.Tensor:
        """`log_joint`, with Y as the `comparison` has it."""
        log_y, log_stop = scores.log_y, scores.log_stop
        if self.comparison is not None:
            log_y = self.comparison(scores)
            log_stop = self.comparison.log_stop(scores)
        return log_joint(scores, log_y, log_stop, ends_only=ends_only, prior=prior)

    def _log_priors(self, examples: Sequence[Example], groups: Sequence[Group]) -> Sequence[torch.Tensor | None]:
        """log q₀(z_{1:i} ⊤) of every prefix, a (B_g, N_g + 1) tensor for each group; of any use at states only. None
        where it is p's that counts."""
        if self.prior is None:
            return [None] * len(groups)
        read = [Group(self.prior(example), group.rationales) for example, group in zip(examples, groups, strict=True)]
        scored = self._scores("prior", read)
        return [torch.nn.functional.pad(scores.log_pf.cumsum(1), (1, 0)) + scores.log_pterm for scores in scored]

    def _scores(self, adapter: AdapterName, groups: Sequence[Group], **settings: Any) -> list[Scores]:
        model = self.lm.merged(adapter)
        return score_rows(self.lm, model, groups, self.codec, max_tokens=self.max_tokens, **settings)


def refuse_idle_reward_settings(c: EStepConfig, task: Task, questions: Sequence[Example]) -> None:
    """Raises UsageError for a setting of the reward that would change none of these questions' rationales."""
    changed = {
        "prior": c.prior != "model",
        "score_tool_tokens": c.score_tool_tokens,
        "answer_weight": c.answer_weight != 1,
        "answer_reward": c.answer_reward != "joint",
        "wrong_candidate_penalty": c.wrong_candidate_penalty > 0,
        "copy_penalty": c.copy_penalty > 0,
    }
    why = dict[str, str]()
    if c.prior == "sampler":
        why["score_tool_tokens"] = "what q wrote before its training has no tokens of a tool's"
    if not any(map(task.candidates, questions)):
        no_candidates = f"no question of {task.name} has candidates that Y could be compared with"
        why |= dict.fromkeys(("answer_reward", "wrong_candidate_penalty"), no_candidates)
    if not any(example.y for example in questions):
        why["copy_penalty"] = f"no question of {task.name} has a Y that could be copied"
    if task.has_own_reward:
        own = f"{task.name} has a reward of its own, of which this is no part"
        why |= {name: own for name in changed if name != "copy_penalty"}  # which is taken off that too
    for name, reason in why.items():
        if changed[name]:
            raise UsageError(f"{flag(f'e_step.{name}')}: {reason}; leave it out")


def log_joint(
    scores: Scores,
    log_y: torch.Tensor,
    log_stop: torch.Tensor,
    *,
    ends_only: bool,
    prior: torch.Tensor | None = None,
) -> torch.Tensor:
    """log R(z_{1:i} ⊤) = log p(X z_{1:i} ⊤ Y) − log p(X), untempered, in nats, for every state.

    These tokens count, and no others.

    * Each token of the rationale that the policy chose: log p over the allowed alphabet (and the stop,
      where it is allowed), as p itself would have sampled it;
    * a tool's tokens: not at all, since the tool writes them whatever p thinks; or, where they were scored
      (`tool_tokens`), log p over the whole vocabulary, as the paper's code does;
    * each token of Y, over the whole vocabulary;
    * the stop: where Y begins with it (". The answer is"), as Y's first token. Where Y does not, or only says which of
      several candidates it is, log p of stopping here, over the allowed alphabet: that is how p ends a rationale when
      it writes one, and what the M-step learns. A forced stop adds nothing by itself; but
      where Y begins with the stop, that token is scored behind a cut chain as behind any other.

    Args:
        scores: of the frozen p.
        log_y: (B, N + 1) `scores.log_y`, or what a `Comparison` makes of it.
        log_stop: (B, N + 1) `scores.log_stop`, or what a `Comparison` makes of it.
        ends_only: Y was scored behind the complete rationales only.
        prior: (B, N + 1) log-probability of the tokens and the stop that counts instead of p's.

    Returns (B, N + 1); −inf where the prefix is no state and, with `ends_only`, of all but the complete rationales.
    """
    states = last_state(scores.states) if ends_only else scores.states
    if prior is None:
        prior = torch.nn.functional.pad((scores.log_pf + scores.log_tool).cumsum(1), (1, 0)) + log_stop
    return torch.where(states, prior + log_y, -torch.inf)


def copied_words(text: str, source: str) -> int:
    """The length of the longest run of words that both have; case and punctuation do not count."""
    a, b = (re.findall(r"\w+(?:'\w+)*", one.casefold()) for one in (text, source))
    return SequenceMatcher(None, a, b, autojunk=False).find_longest_match().size


def own_log_rewards(
    task: Task,
    example: Example,
    rationales: Sequence[Rationale],
    codec: TextCodec,
    *,
    ends_only: bool = False,
) -> torch.Tensor:
    """The task's own log R of every prefix of a question's B rationales: (B, N + 1), −inf where it is no state and,
    with `ends_only`, of all but the complete rationales."""
    rewards = torch.full((len(rationales), max(map(len, rationales)) + 1), -torch.inf)
    known: dict[tuple[int, ...], float] = {}  # most rationales begin alike
    for row, rationale in enumerate(rationales):
        for n, is_state in enumerate(rationale.states):
            if is_state and (n == len(rationale) or not ends_only):
                if (prefix := rationale.tokens[:n]) not in known:
                    known[prefix] = own_log_reward(task, example, rationale, n, codec)
                rewards[row, n] = known[prefix]
    return rewards


def own_log_reward(task: Task, example: Example, rationale: Rationale, n: int, codec: TextCodec) -> float:
    """The task's own log R of the first n tokens of a rationale; −inf if the tokenizer would cut their text into
    others: else a text would count as often as it can be spelled."""
    value = task.log_reward(example, codec.decode(rationale.tokens[:n]))
    return value if value > -math.inf and _is_canonical(rationale, n, codec) else -math.inf


def _is_canonical(rationale: Rationale, n: int, codec: TextCodec) -> bool:
    """Are the first n tokens those of the tokenizer? What stands between two results is encoded by itself; the results
    are none of the policy's. A call that wrote nothing parts nothing: " ==" is two triggers as one token is."""
    written = [call for call in rationale.calls if call.n_tokens]
    starts = [0, *(call.position + call.n_tokens for call in written)]
    ends = [*(call.position for call in written), n]
    pieces = [rationale.tokens[start : min(end, n)] for start, end in zip(starts, ends, strict=True) if start < n]
    return all(codec.encode_chosen(codec.decode(piece)) == list(piece) for piece in pieces)
