"""The reasoners p and q of a run: what they read of a question, and how they are tested.

`Method` (`method.py`) trains them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain
from typing import Any

import torch

from latent_cot.config.methods import METHODS
from latent_cot.config.schema import RunConfig, tested_chains
from latent_cot.evaluation.evaluate import (
    NO_RATIONALE,
    Accuracy,
    Judge,
    Outcome,
    figures,
    majority,
    read_answers,
    score_by_base,
)
from latent_cot.methods.phases import Resumable, phase
from latent_cot.methods.seeding import seed_of, slices
from latent_cot.methods.state import Info, Phase, State
from latent_cot.model.lm import LanguageModel
from latent_cot.rationales.batch import Trajectories
from latent_cot.rationales.chain import ChainRules, encode_rationale
from latent_cot.rationales.reward import own_log_reward
from latent_cot.rationales.rollout import Counts, rollout
from latent_cot.rationales.scoring import Group, Query, Scores, score_rows
from latent_cot.types import Example, Measured, Rationale, Reasoner, Sample, Task, TaskData

BATCHES_AT_ONCE = 4
"""Batches of chains in a unit of tests. A chain that is done gives its place to the next question, so that only the end
of a unit runs partly empty."""


def tells_right(task: Task, questions: Sequence[Example]) -> bool:
    """Whether a rationale of such questions is right or wrong by itself."""
    return task.has_own_reward or not (task.is_measured or any(map(task.candidates, questions)))


class Evaluator(Resumable):
    """The two reasoners of a run, their task, and its questions.

    Args:
        config: all settings.
        lm: the model with its adapters p and q.
        task, data: what to learn, and from which examples.
        tests: the test questions of each split.
        rules: what a rationale may look like in training ...
        test_rules: ... and in tests.
        state: on resuming, where the run is. The adapters are then as saved; else they are made afresh.
        restore: on resuming, puts the saved optimiser state into an optimiser.
    """

    def __init__(
        self,
        config: RunConfig,
        lm: LanguageModel,
        task: Task,
        data: TaskData,
        tests: Mapping[str, Sequence[Example]],
        rules: ChainRules,
        test_rules: ChainRules,
        *,
        state: State | None = None,
        restore: Callable[[torch.optim.Optimizer], None] | None = None,
    ) -> None:
        self.config, self.lm, self.task, self.data = config, lm, task, data
        self.tests, self.rules, self.test_rules = tests, rules, test_rules
        self._restore = restore
        if state is None:
            for adapter in ("p", "q"):
                lm.reset_adapter(adapter, seed=seed_of(config.seed, adapter))
        super().__init__(state or State())
        self.demonstrations = [encode_rationale(d.z or "", rules) for d in data.demonstrations]
        self.questions = [*data.demonstrations, *data.unlabelled]

    # -- who they are --------------------------------------------------------------------------------

    @property
    def reasoners(self) -> tuple[Reasoner, ...]:
        """Which adapters can answer test questions, once the method has trained them."""
        return METHODS[self.config.method].reasoners(self.config, self.task.answer_given)

    def sampler_of(self, reasoner: Reasoner) -> Reasoner | None:
        """Who writes a reasoner's rationales in tests. None: nobody, it answers at once."""
        return reasoner

    def judge_of(self, reasoner: Reasoner) -> Judge:
        """Who decides among candidates after them: p itself; for q, which learns to write rationales only, the base
        model."""
        return "p" if reasoner == "p" else "base"

    # -- what they read ------------------------------------------------------------------------------

    @property
    def n_shown(self) -> int:
        """Demonstrations before p's questions: with `p_init: prompt`, as long as p is the base model."""
        return self.config.shots if self.config.p_init == "prompt" and not self.state.model_trained else 0

    @property
    def model_prefix(self) -> str:
        """Those demonstrations as text, the tools' results written out."""
        return self._shown_before(lambda example: example.x, lambda example: example.y)

    def _shown_before(self, read: Callable[[Example], str], answer: Callable[[Example], str | None]) -> str:
        """Demonstrations as text: what is read of each, its rationale, and its answer, or the stop."""
        shown = zip(self.data.demonstrations[: self.n_shown], self.demonstrations, strict=False)
        stop, gap = self.task.stop or "", " " if self.rules.codec.begins_a_line else ""
        return "".join(f"{read(e)}{gap}{z.text}{stop if answer(e) is None else answer(e)}\n" for e, z in shown)

    def q_reads(self, example: Example) -> bool:
        """Whether q can be given it: a q that sees Y has learned no prompt without, unless the task has no Y."""
        known = example.y is not None or example.answer is not None
        return self.config.q_sees == "question" or known or self.task.has_own_reward

    def query(self, example: Example, *, for_q: bool = True) -> Query:
        """A training question as q and p read it. `for_q` False: q is not asked, and its prompt is left empty."""
        codec = self.rules.codec
        return Query(
            example,
            policy_prompt=codec.encode_prompt(self._seen_by_sampler(example)) if for_q else (),
            model_prompt=codec.encode_prompt(self.model_prefix + example.x),
            answer=codec.encode(example.y or ""),
        )

    def test_prompt(self, reasoner: Reasoner, example: Example) -> list[int]:
        """What a reasoner reads of a test question, demonstrations before it included."""
        return self.rules.codec.encode_prompt(self.test_text(reasoner, example))

    def test_text(self, reasoner: Reasoner, example: Example) -> str:
        """The same as text."""
        if reasoner == "q":
            return self._seen_by_sampler(example)
        if not self.task.answer_given:
            return self.model_prefix + example.x
        read = self.task.posterior_prompt
        return self._shown_before(read, lambda example: None) + read(example)

    def _seen_by_sampler(self, example: Example) -> str:
        return example.x if self.config.q_sees == "question" else self.task.posterior_prompt(example)

    # -- what they write -----------------------------------------------------------------------------

    @cached_property
    def tells_right(self) -> bool:
        """Whether a rationale of these questions is right or wrong by itself."""
        return tells_right(self.task, self.questions)

    def is_correct(self, example: Example, rationale: Rationale) -> bool:
        """Does a rationale arrive at the example's answer, or is it worth anything by the task's own reward? True where
        nobody can tell: with candidates, which only p can pick, and where there is no right answer."""
        if self.task.has_own_reward:
            return own_log_reward(self.task, example, rationale, len(rationale), self.rules.codec) > -math.inf
        if self.task.is_measured or self.task.candidates(example) is not None:
            return True
        return self.task.grade(example, self.task.answer(rationale))

    def are_correct(self, asked: Sequence[tuple[Example, Rationale]]) -> list[bool]:
        """`is_correct` of each of these, found by one process: a grader of the user's own may take its time, and say
        something else when it is asked again."""
        processes = self.lm.processes
        return processes.join([self.is_correct(*one) for one in processes.share(asked)])

    def marks(self, trajectories: Sequence[Trajectories]) -> Callable[[Example, Rationale], bool]:
        """`is_correct` of these rationales, each asked once."""
        asked = [(t.query.example, rationale) for t in trajectories for rationale in t.rationales]
        found = {(e.key, z): right for (e, z), right in zip(asked, self.are_correct(asked), strict=True)}
        return lambda example, rationale: found[example.key, rationale]

    @property
    def test_batch_size(self) -> int:
        """Chains decoded at once: twice as many as in training, of which nothing but the tokens is kept."""
        return 2 * self.config.rollout.batch_size

    @property
    def draws_as_it_is(self) -> bool:
        """What `draw_tests` draws at temperature 1 has the reasoner's own distribution."""
        return True

    def at_once(self, questions: int, samples: int) -> list[range]:
        """So many questions, in parts that are sampled together, so many rationales of each."""
        return slices(questions, BATCHES_AT_ONCE * max(1, self.test_batch_size // samples))

    def draw_tests(
        self, reasoner: Reasoner, examples: Sequence[Example], *, n: int, seed: int, **sampling: Any
    ) -> list[Counts]:
        """`n` rationales for each test question, sampled from a reasoner: a method may decode in another way.
        `sampling`: temperature and top_p of `rollout`."""
        prompts = [self.test_prompt(reasoner, example) for example in examples]
        generator = torch.Generator().manual_seed(seed)
        counts: list[Counter[Rationale]] = [Counter() for _ in prompts]
        for drawn in self._rollouts_of(reasoner, prompts, generator, n=n, **sampling):
            for count, rationales in zip(counts, drawn, strict=True):
                count.update(rationales)
        return list(counts)

    def rationales_of(
        self, reasoner: Reasoner, examples: Sequence[Example], *, n: int, **how: Any
    ) -> tuple[Reasoner | None, list[Counts]]:
        """Who writes a reasoner's rationales in tests, and what `draw_tests` draws of it; n times the empty one, where
        nobody does."""
        writer = self.sampler_of(reasoner)
        if writer is None:
            return None, [Counter({NO_RATIONALE: n}) for _ in examples]
        return writer, self.draw_tests(writer, examples, n=n, **how)

    def sample_tests(
        self, reasoner: Reasoner, examples: Sequence[Example], *, seed: int, **other: Any
    ) -> list[Measured]:
        """Rationales for test questions of a task that has figures of them, with the base model's opinion.
        `other`: n and temperature, where they are not those of the configuration."""
        return self._measured(reasoner, examples, self._samples(reasoner, examples, seed=seed, **other))

    def _samples(
        self, reasoner: Reasoner, examples: Sequence[Example], *, seed: int, **other: Any
    ) -> list[list[Sample]]:
        c, codec = self.config.evaluation, self.rules.codec
        sampling = {"n": c.samples or self.task.samples, "temperature": c.temperature, **other}
        _, counts = self.rationales_of(reasoner, examples, seed=seed, **sampling)
        groups = [
            Group(codec.encode_prompt(example.x), list(of_one), codec.encode(example.y or ""))
            for example, of_one in zip(examples, counts, strict=True)
        ]
        return score_by_base(self.lm, self.task, groups, counts, codec, max_tokens=self.config.max_batch_tokens)

    def answer_tests(
        self, reasoner: Reasoner, examples: Sequence[Example], *, seed: int, votes: int, temperature: float
    ) -> Iterator[Outcome]:
        """A reasoner's answers to test questions that have right answers: the majority of `votes` rationales each."""
        sampler = self.sampler_of(reasoner)
        generator = torch.Generator().manual_seed(seed)
        for members in self.at_once(len(examples), votes):
            batch = [examples[i] for i in members]
            sampled: list[list[Rationale]] = [[NO_RATIONALE] for _ in batch]
            if sampler is not None:
                prompts = [self.test_prompt(sampler, example) for example in batch]
                drawn = self._rollouts_of(sampler, prompts, generator, n=votes, temperature=temperature)
                sampled = [list(chain.from_iterable(of_one)) for of_one in zip(*drawn, strict=True)]
            for example, rationales, answers in zip(batch, sampled, self.decide(reasoner, batch, sampled), strict=True):
                answer = majority(answers, partial(self._same_answer, example))
                yield Outcome(example, rationales, answers, answer, self.task.grade(example, answer))

    def decide(
        self, reasoner: Reasoner, examples: Sequence[Example], rationales: Sequence[Sequence[Rationale]]
    ) -> list[list[str | None]]:
        """A reasoner's answer to each question after each of these rationales for it."""
        reader = self.sampler_of(reasoner) or reasoner
        if self.config.q_sees == "question-and-answer":
            reader = "p"  # q's prompt gives the answer away
        prompts = [self.test_prompt(reader, example) for example in examples]
        judge = self.judge_of(reasoner)
        limit = self.config.max_batch_tokens
        return read_answers(self.lm, judge, self.task, examples, prompts, rationales, self.test_rules, max_tokens=limit)

    def _same_answer(self, example: Example, answer: str, other: str) -> bool:
        """Whether an answer would be right if the other one were: `1,000` and `1000` where numbers count."""
        return self.task.grade(replace(example, answer=other), answer)

    def _rollouts_of(
        self,
        sampler: Reasoner,
        prompts: Sequence[Sequence[int]],
        generator: torch.Generator,
        *,
        n: int,
        **sampling: Any,
    ) -> Iterator[list[list[Rationale]]]:
        """`n` rationales for each prompt, some at a time: of 100,000 at once the logits alone take 20 GB."""
        size = self.test_batch_size
        sampling |= {"batch_size": size, "generator": generator, "max_tokens": self.config.max_batch_tokens}
        for some in slices(n, size):
            yield rollout(self.lm, sampler, prompts, self.test_rules, n=len(some), **sampling)

    def scores(self, reasoner: Reasoner, groups: Sequence[Group]) -> list[Scores]:
        """Log-probabilities of each group's rationales under a reasoner, on the CPU and without gradients."""
        size = self.config.max_batch_tokens
        return score_rows(self.lm, self.lm.merged(reasoner), groups, self.rules.codec, max_tokens=size)

    def _measured(
        self, reasoner: Reasoner, examples: Sequence[Example], samples: Sequence[Sequence[Sample]]
    ) -> list[Measured]:
        found = []
        for example, of_example in zip(examples, samples, strict=True):
            texts = self.task.texts(example)
            listed = None if texts is None else list[float]()
            if texts:
                rationales = [encode_rationale(text, self.test_rules) for text in texts]
                (scores,) = self.scores(reasoner, [Group(self.test_prompt(reasoner, example), rationales)])
                listed = scores.log_complete.tolist()
            found.append(Measured(example, of_example, listed))
        return found

    # -- the evaluation, a phase of every method -----------------------------------------------------

    @property
    def rounds(self) -> int:
        """How many there are after round 0."""
        return self.config.rounds if METHODS[self.config.method].has_rounds else 1

    @phase(
        lambda self, number: len(self._evaluation_units(number)),
        when=lambda self, number: (
            bool(self.tests)
            and (self.config.evaluation.every_round or number == self.rounds or self._was_tested(number))
        ),
    )
    def evaluate(self, at: Phase) -> Iterator[Info]:
        """The accuracy of each reasoner on each test split, or the task's own figures of its rationales."""
        yield from self._measure(at) if self.task.is_measured else self._grade(at)

    def _was_tested(self, number: int) -> bool:
        """As the last of fewer rounds was, when a finished run has been given more."""
        return str(number) in {**self.state.right, **self.state.metrics}

    def _grade(self, at: Phase) -> Iterator[Info]:
        units = self._evaluation_units(at.round)
        for unit in range(self.state.unit, len(units)):
            reasoner, split, members = units[unit]
            # Reasoners with the same sampler decide after the same rationales.
            alike = [
                (self.sampler_of(one), *where) == (self.sampler_of(reasoner), split, members) for one, *where in units
            ]
            marks = self.mark(reasoner, [self.tests[split][i] for i in members], alike.index(True))
            of_reasoner = self.state.right.setdefault(str(at.round), {}).setdefault(reasoner, {})
            of_reasoner[split] = of_reasoner.get(split, "") + marks
            yield {"reasoner": reasoner, "split": split, **Accuracy.of(of_reasoner[split]).to_json()}

    def _measure(self, at: Phase) -> Iterator[Info]:
        """The samples of a split are kept in the state until it is complete: its figures need all of them."""
        units = self._evaluation_units(at.round)
        for unit in range(self.state.unit, len(units)):
            reasoner, split, members = units[unit]
            if members.start == 0:
                self.state.sampled = []
            examples = [self.tests[split][i] for i in members]
            seed = self.unit_seed(unit)
            self.state.sampled += self._samples(reasoner, examples, seed=seed)
            if members.stop < len(self.tests[split]):
                yield {"reasoner": reasoner, "split": split, "questions": members.stop}
                continue
            questions = self._measured(reasoner, self.tests[split], self.state.sampled)
            found = {name: figure.to_json() for name, figure in figures(self.task, questions).items()}
            of_round = self.state.metrics.setdefault(str(at.round), {})
            of_round.setdefault(reasoner, {})[split] = found
            self.state.sampled = []
            yield {"reasoner": reasoner, "split": split, "questions": members.stop, "metrics": found}

    def mark(self, reasoner: Reasoner, examples: Sequence[Example], unit: int) -> str:
        """For each question "1" if its answer is right, else "0"."""
        c = self.config.evaluation
        seed = self.unit_seed(unit)
        outcomes = self.answer_tests(reasoner, examples, seed=seed, votes=c.votes, temperature=c.temperature)
        return self.lm.processes.of_main("".join("1" if outcome.correct else "0" for outcome in outcomes))

    def _evaluation_units(self, number: int) -> list[tuple[Reasoner, str, range]]:
        chains = tested_chains(self.config, self.task)
        reasoners: tuple[Reasoner, ...] = self.reasoners if number else ("p",)
        return [
            (reasoner, split, members)
            for reasoner in reasoners
            for split, questions in self.tests.items()
            for members in self.at_once(len(questions), chains)
        ]

    def unit_seed(self, unit: int) -> int:
        return seed_of(self.config.seed, self.state.phase, unit)
