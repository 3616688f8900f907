"""Decoding an untrained model: what a task's figures are worth without learning anything.

The strategies are those that sentences are usually decoded by. All choose from the alphabet that q chooses from, stop
where it may stop, and give as many rationales for a question; with `multiple` k they may spend k times as many chains
on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from latent_cot.config.schema import RunConfig, tool_names
from latent_cot.methods.method import Method
from latent_cot.methods.phases import Steps
from latent_cot.rationales.beam import beam_search
from latent_cot.rationales.rollout import Counts
from latent_cot.rationales.scoring import Group
from latent_cot.types import Example, Reasoner, Task, TaskData, UsageError

TOP_P = 0.95
"""`nucleus`: the probability that the tokens it samples from come to."""
DIVERSITY_PENALTY = 1.0
"""`diverse-beam`: nats a token is less likely for each group that has chosen it at this step. There are as many groups
as rationales are asked for, and each gives its likeliest one."""


class Decoding(Method):
    """Nothing is trained, but for the initial p that all methods start from."""

    @classmethod
    def check(cls, config: RunConfig, task: Task, data: TaskData) -> None:
        super().check(config, task, data)
        c, it = config.decode, f"--decode.strategy {config.decode.strategy}"
        if not task.is_measured and not _is_plain(config):
            raise UsageError(f"{it}: the task {task.name} has right answers; give sample and --decode.multiple 1")
        draws = "beam" not in c.strategy and not _is_plain(config)
        if draws and config.evaluation.temperature == 0:
            what = f"{it} --decode.multiple {c.multiple}"
            raise UsageError(f"{what}: chains are the same at --evaluation.temperature 0; give a higher one")
        if tool_names(config, task) and c.strategy in ("beam", "diverse-beam"):
            raise UsageError(f"{it}: its chains cannot call tools; give rollout: {{tools: []}} in --config")

    def algorithm(self) -> Steps:
        yield from self.init(0)
        yield from self.evaluate(0)

    @property
    def rounds(self) -> int:
        return 0

    @property
    def draws_as_it_is(self) -> bool:
        return _is_plain(self.config)

    def draw_tests(
        self, reasoner: Reasoner, examples: Sequence[Example], *, n: int, seed: int, **sampling: Any
    ) -> list[Counts]:
        c = self.config.decode
        prompts = [self.test_prompt(reasoner, example) for example in examples]
        if c.strategy in ("beam", "diverse-beam"):
            return [self._search(reasoner, prompt, n) for prompt in prompts]
        top_p = TOP_P if c.strategy == "nucleus" else 1.0
        counts = super().draw_tests(reasoner, examples, n=n * c.multiple, seed=seed, top_p=top_p, **sampling)
        return counts if c.multiple == 1 else self._likeliest(reasoner, prompts, counts, n)

    def _search(self, reasoner: Reasoner, prompt: Sequence[int], n: int) -> Counts:
        """The n likeliest of a beam; or the likeliest of each of n groups, some of which may agree."""
        c, rules = self.config.decode, self.test_rules
        diverse, model = c.strategy == "diverse-beam", self.lm.merged(reasoner)
        groups, penalty = (n, DIVERSITY_PENALTY) if diverse else (1, 0.0)
        found = beam_search(self.lm, model, prompt, rules, beams=n * c.multiple, groups=groups, penalty=penalty)
        kept = [group[0] for group in found if group] if diverse else found[0][:n]
        return Counter([one.rationale for one in kept])

    def _likeliest(
        self, reasoner: Reasoner, prompts: Sequence[Sequence[int]], sampled: Sequence[Counts], n: int
    ) -> list[Counts]:
        """Of each question's distinct rationales the n that are likeliest under the reasoner, each once. The stop of
        one that was cut counts as well, as in a beam."""
        groups = [
            Group(prompt, [replace(rationale, truncated=False) for rationale in counts])
            for prompt, counts in zip(prompts, sampled, strict=True)
        ]
        kept = list[Counts]()
        for rationales, scores in zip(map(list, sampled), self.scores(reasoner, groups), strict=True):
            best = scores.log_complete.argsort(descending=True)[:n].tolist()
            kept.append(dict.fromkeys((rationales[i] for i in best), 1))
        return kept


def _is_plain(config: RunConfig) -> bool:
    """Rationales are sampled, and all are kept."""
    return config.decode.strategy == "sample" and config.decode.multiple == 1
