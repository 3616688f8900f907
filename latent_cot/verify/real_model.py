"""How far q is from the exact posterior of a real language model, on questions whose rationales can be listed.

`Task.texts` lists them, such as all equations of one and two steps over the numbers of a word problem. Each is scored
under p, so that log Z(X), the posterior and q's distance from it are sums, not estimates, but for what is not listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import torch

from latent_cot.em import EM
from latent_cot.methods.phases import Steps, phase
from latent_cot.methods.state import Info, Phase
from latent_cot.rationales.batch import score_sampled
from latent_cot.rationales.chain import encode_rationale
from latent_cot.rationales.scoring import Group
from latent_cot.types import Example, Rationale, UsageError
from latent_cot.verify.exact import Distance, distance, log_partition

QUESTIONS = 16
"""Validation questions that are compared, at most."""
MAX_TEXTS = 1000
"""Questions with more of them are left out: they would take minutes each."""


@dataclass(frozen=True, kw_only=True)
class ListedFigures(Distance):
    """Of one question, or means over several; sums over its listed rationales."""

    log_z: float
    """log Σ p(Z Y | X), nats: log p(Y | X), but for what is not listed."""
    posterior_right: float
    """The posterior's share of rationales that arrive at Y."""
    q_right: float
    """q's probability of these."""


def figures(log_reward: torch.Tensor, log_q: torch.Tensor, right: torch.Tensor) -> ListedFigures:
    """The figures of one question.

    Args:
        log_reward, log_q: (K,) log p(Z Y | X) and log q(Z) of each listed rationale, nats.
        right: (K,) bool, does it arrive at Y?
    """
    log_z = log_partition(log_reward)
    return ListedFigures(
        **vars(distance(log_q, log_reward)),
        log_z=log_z,
        posterior_right=float((log_reward - log_z).exp()[right].sum()),
        q_right=float(log_q.exp()[right].sum()),
    )


class CheckedEStep(EM):
    """Round 0 and one E-step of EM. Before and after it q is compared with the exact posterior."""

    def algorithm(self) -> Steps:
        yield from self.init(0)
        yield from self.start_q(1)
        yield from self.compare_before(1)
        yield from self.e_step(1)
        yield from self.compare(1)

    @phase(lambda self, _: len(self.chosen))
    def compare_before(self, at: Phase) -> Iterator[Info]:
        yield from map(vars, self._compared())

    @phase(lambda self, _: len(self.chosen))
    def compare(self, at: Phase) -> Iterator[Info]:
        yield from map(vars, self._compared())

    def _compared(self) -> Iterator[ListedFigures]:
        for (example, rationales), log_reward in zip(self.chosen, self._log_rewards, strict=True):
            (scores,) = self.scores("q", [Group(self.query(example).policy_prompt, rationales)])
            right = torch.tensor([self.is_correct(example, rationale) for rationale in rationales])
            yield figures(log_reward.double(), scores.log_complete.double(), right)

    @cached_property
    def chosen(self) -> list[tuple[Example, list[Rationale]]]:
        """The compared questions, with their rationales. Raises UsageError if there is none."""
        listed = ((example, self.task.texts(example) or ()) for example in self.data.validation)
        few = ((example, self._possible(texts)) for example, texts in listed if len(texts) <= MAX_TEXTS)
        if not (found := list(islice((one for one in few if one[1]), QUESTIONS))):
            raise UsageError(f"{self.task.name} lists the rationales of none of its validation questions")
        return found

    def _possible(self, texts: Sequence[str]) -> list[Rationale]:
        """What a chain can be: a text may be too long, or a call in it fail."""
        found = []
        for text in texts:
            try:
                found.append(encode_rationale(text, self.rules))
            except UsageError:
                continue
        return found

    @cached_property
    def _log_rewards(self) -> list[torch.Tensor]:
        """log p(Z Y | X) of each of their rationales under p, which the E-step leaves as it is."""
        queries = [self.query(example) for example, _ in self.chosen]
        scored = score_sampled(queries, [rationales for _, rationales in self.chosen], self.reward, ends_only=True)
        return [of_question.log_reward_at_end for of_question in scored]
