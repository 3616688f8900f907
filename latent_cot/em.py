"""THE LOOP.

    round 0     p ← the base model, or the base model fine-tuned on the demonstrations
    round 1     imitate  where q sees Y: q ← p, fine-tuned on the demonstrations as q sees them
    round r     prepare  where q sees X only: q ← p; compare q with the posterior (diagnostics.py)
                E-step   train q(Z | X[, Y]) towards p(X Z Y)                      (e_step.py)
                diagnose compare q with the posterior
                draw     rationales Z ~ q for the training questions
                M-step   fine-tune p on (X, Z, Y)                                  (m_step.py)
    after each  evaluate p and, where it sees X only, q                            (evaluate.py)

`EM.run` goes through these phases. A phase is a generator that does one unit of work (an optimiser step,
a batch of questions) between two `yield`s; between units the run can be saved, stopped and resumed. All
randomness of a unit is seeded by its place in the loop, so there is no random state to save, and a
resumed run is the run that was never stopped.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from latent_cot import m_step
from latent_cot.buffer import ReplayBuffer, rationale_to_json
from latent_cot.chain import ChainRules, encode_rationale
from latent_cot.config import EMConfig, MStepConfig
from latent_cot.diagnostics import diagnose, mean_figures
from latent_cot.e_step import Batch, Behaviour, Query, collect, describe, update
from latent_cot.evaluate import Accuracy, answer_questions
from latent_cot.lm import Adapter, LanguageModel
from latent_cot.objectives import LEARNS_LOG_Z
from latent_cot.optimise import AdapterOptimiser, Schedule
from latent_cot.reward import prefix_log_rewards
from latent_cot.rollout import rollout
from latent_cot.scoring import Group
from latent_cot.state import Phase, State
from latent_cot.types import Example, Rationale, Task, TaskData

Info = dict[str, Any]

ROUND = ("prepare", "e_step", "diagnose", "draw", "m_step", "evaluate")
"""The phases of a round, in order."""


class EM:
    """One run of the loop.

    Args:
        config: all settings.
        lm: the model with its adapters p and q.
        task, data: what to learn, and from which examples.
        tests: the test questions of each split.
        rules: what a rationale may look like in training ...
        test_rules: ... and in tests.
        restore: on resuming, puts the saved optimiser state into an optimiser.
    """

    def __init__(
        self,
        config: EMConfig,
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
        self.buffer = ReplayBuffer(config.e_step.buffer_capacity, config.e_step.buffer_tolerance)
        self.state = state or State()
        self.optimiser: AdapterOptimiser | None = None
        self.log_z = torch.nn.Parameter(torch.zeros(len(data.demonstrations) + len(data.pairs)))
        """log Z(X) of each training question, for an objective that learns it."""
        self._restore = restore
        self.demonstrations = [encode_rationale(d.z or "", rules) for d in data.demonstrations]
        self.questions = [*data.demonstrations, *data.pairs]
        self.phases = [Phase(0, "init"), Phase(0, "evaluate")]
        if config.condition == "xy" and config.rounds:
            self.phases.append(Phase(1, "imitate"))
        for number in range(1, config.rounds + 1):
            self.phases += [Phase(number, name) for name in ROUND]
        if state is None:
            for adapter in ("p", "q"):
                lm.reset_adapter(adapter, seed=_seed(config.seed, adapter))

    # -- the loop ------------------------------------------------------------------------------------

    def run(self) -> Iterator[tuple[Phase, Info]]:
        """Go through the loop from where `state` is. After each unit its figures are yielded, and the
        caller may save, or stop for good: what it has then is the state after that unit."""
        work = {
            "init": self.init,
            "imitate": self.imitate,
            "prepare": self.prepare,
            "e_step": self.e_step,
            "diagnose": self.diagnose,
            "draw": self.draw,
            "m_step": self.m_step,
            "evaluate": self.evaluate,
        }
        while self.state.phase < len(self.phases):
            phase = self.phases[self.state.phase]
            for info in work[phase.name](phase):
                self.state.unit += 1
                yield phase, info
            self.state.phase += 1
            self.state.unit = 0
            self.optimiser = None

    def units(self, phase: Phase) -> int:
        """The number of units of a phase, for a progress display."""
        c = self.config
        if phase.name == "init":
            return c.init_step.steps if c.init == "demonstrations" and self.demonstrations else 0
        if phase.name == "imitate":
            return c.init_step.steps if self.demonstrations else 0
        if phase.name in ("prepare", "diagnose"):
            return len(self._diagnostic_units)
        if phase.name == "e_step":
            return c.e_step.steps
        if phase.name == "draw":
            return len(_slices(len(self.questions), self._questions_per_draw))
        if phase.name == "m_step":
            present = self.state.phase < len(self.phases) and self.phases[self.state.phase] == phase
            return 1 if present and not self.state.drawn else c.m_step.steps
        return len(self._evaluation_units(phase))

    # -- the phases ----------------------------------------------------------------------------------

    def init(self, phase: Phase) -> Iterator[Info]:
        """p before the first round: fine-tuned on the demonstrations' own rationales, if so configured."""
        if self.config.init == "demonstrations" and self.demonstrations:
            yield from self._fit("p", list(enumerate(self.demonstrations)), self.config.init_step)

    def imitate(self, phase: Phase) -> Iterator[Info]:
        """A start for a q that sees Y: its prompt is one that p has never read."""
        if self.state.unit == 0:
            self.lm.copy_adapter("p", "q")
        if self.demonstrations:
            yield from self._fit("q", list(enumerate(self.demonstrations)), self.config.init_step)

    def prepare(self, phase: Phase) -> Iterator[Info]:
        """q ← p, if q reads what p reads. How far q is from the posterior is what the E-step starts from."""
        c = self.config
        if self.state.unit == 0 and c.condition == "x" and (phase.round == 1 or c.e_step.start == "p"):
            self.lm.copy_adapter("p", "q")
        yield from self.diagnose(phase)

    def e_step(self, phase: Phase) -> Iterator[Info]:
        """Train q towards q(Z | X[, Y]) ∝ p(X Z Y), from where it is."""
        c = self.config.e_step
        if self.state.unit == 0:
            self._fill_buffer()
        schedule = Schedule(c.learning_rate, c.steps, c.warmup, c.decay)
        if self.state.unit == 0:
            before = self.state.posterior.get(str(phase.round), {}).get("before")
            self.log_z.data.fill_(mean_figures(before)["log_z"] if before else 0.0)
        log_z = self.log_z if c.objective in LEARNS_LOG_Z else None
        optimiser = self._new_optimiser("q", schedule, c.clip, log_z=log_z, log_z_rate=c.log_z_learning_rate)
        weights = [c.demonstration_weight] * len(self.data.demonstrations) + [c.pair_weight] * len(self.data.pairs)
        for step in range(self.state.unit, c.steps):
            rng = random.Random(self._unit_seed(step))
            generator = torch.Generator().manual_seed(rng.getrandbits(60))
            torch.manual_seed(rng.getrandbits(60))  # for LoRA's dropout
            chosen = _draw_distinct(weights, c.questions, rng)
            batches = collect(
                self.lm,
                [self.query(self.questions[i]) for i in chosen],
                [self._behaviour(rng) for _ in chosen],
                self.rules,
                self.buffer,
                samples=c.samples,
                tool_tokens=c.score_tool_tokens,
                max_tokens=c.max_batch_tokens,
                generator=generator,
            )
            temperature = self.reward_temperature(step)
            info = update(
                self.lm,
                batches,
                self.rules,
                optimiser,
                step,
                objective=c.objective,
                reward_temperature=temperature,
                reward_floor=c.reward_floor,
                huber=c.huber,
                max_tokens=c.max_batch_tokens,
                log_z=None if log_z is None else [log_z[i] for i in chosen],
            )
            figures = describe(batches, self.is_correct)
            yield {**vars(info), **figures, "reward_temperature": temperature, "samples": _samples(batches)}

    def diagnose(self, phase: Phase) -> Iterator[Info]:
        """Compare q with the posterior on validation questions."""
        c, e = self.config.evaluation, self.config.e_step
        units = self._diagnostic_units
        for unit in range(self.state.unit, len(units)):
            figures = diagnose(
                self.lm,
                [self.query(self.data.validation[i]) for i in units[unit]],
                self.rules,
                n=c.diagnostic_samples,
                reward_temperature=self.reward_temperature(e.steps),
                reward_floor=e.reward_floor,
                tool_tokens=e.score_tool_tokens,
                max_tokens=e.max_batch_tokens,
                generator=torch.Generator().manual_seed(self._unit_seed(unit)),
            )
            when = "before" if phase.name == "prepare" else "after"
            found = self.state.posterior.setdefault(str(phase.round), {}).setdefault(when, [])
            found.extend(vars(f) for f in figures)
            yield mean_figures(found)

    def draw(self, phase: Phase) -> Iterator[Info]:
        """Rationales from q for every training question."""
        c = self.config.m_step
        if self.state.unit == 0:
            self.state.drawn = []
        slices = _slices(len(self.questions), self._questions_per_draw)
        for unit in range(self.state.unit, len(slices)):
            members = slices[unit]
            sampled = rollout(
                self.lm,
                self.lm.dense("q"),
                [self.query(self.questions[i]).policy_prompt for i in members],
                self.rules,
                n=c.samples,
                temperature=c.temperature,
                generator=torch.Generator().manual_seed(self._unit_seed(unit)),
            )
            pairs = [(i, rationale) for i, group in zip(members, sampled, strict=True) for rationale in group]
            right = [self.is_correct(self.questions[i], rationale) for i, rationale in pairs]
            kept = [pair for pair, ok in zip(pairs, right, strict=True) if ok or c.keep == "all"]
            self.state.drawn.extend(kept)
            yield {"drawn": len(pairs), "kept": len(kept), "accuracy": sum(right) / len(right)}

    def m_step(self, phase: Phase) -> Iterator[Info]:
        """Fine-tune p on the rationales drawn from q."""
        if self.state.drawn:
            yield from self._fit("p", self.state.drawn, self.config.m_step)
            self.state.model_trained = self.state.model_trained or self.config.m_step.steps > 0
        elif self.state.unit == 0:
            yield {"note": "no rationale arrives at its answer: p stays as it is"}

    def evaluate(self, phase: Phase) -> Iterator[Info]:
        """The accuracy of each reasoner on each test split."""
        c = self.config.evaluation
        units = self._evaluation_units(phase)
        for unit in range(self.state.unit, len(units)):
            reasoner, split, members = units[unit]
            outcomes = answer_questions(
                self.lm,
                reasoner,
                self.task,
                [self.tests[split][i] for i in members],
                self.test_rules,
                prefix=self.model_prefix if reasoner == "p" else "",
                votes=c.votes,
                temperature=c.temperature,
                batch_size=c.batch_size,
                generator=torch.Generator().manual_seed(self._unit_seed(unit)),
            )
            right = sum(outcome.correct for outcome in outcomes)
            of_round = self.state.tally.setdefault(str(phase.round), {})
            tally = of_round.setdefault(reasoner, {}).setdefault(split, [0, 0])
            tally[0] += right
            tally[1] += len(members)
            yield {"reasoner": reasoner, "split": split, **Accuracy(*tally).to_json()}

    # -- what the phases share -----------------------------------------------------------------------

    @property
    def model_prefix(self) -> str:
        """Demonstrations before p's questions, as long as p is the base model with `init: prompt`."""
        if self.config.init != "prompt" or self.state.model_trained:
            return ""
        shown = zip(self.data.demonstrations[: self.config.shots], self.demonstrations, strict=False)
        return "".join(f"{example.x}{rationale.text}{example.y}\n" for example, rationale in shown)

    @property
    def reasoners(self) -> tuple[Adapter, ...]:
        """Which adapters can answer a question whose answer is not known."""
        return ("q", "p") if self.config.condition == "x" else ("p",)

    def query(self, example: Example) -> Query:
        """A training question as q and p read it."""
        codec = self.rules.codec
        seen = example.x if self.config.condition == "x" else self.task.posterior_prompt(example)
        return Query(
            example,
            policy_prompt=codec.encode_prompt(seen),
            model_prompt=codec.encode_prompt(self.model_prefix + example.x),
            answer=codec.encode(example.y or ""),
        )

    def is_correct(self, example: Example, rationale: Rationale) -> bool:
        """Does a rationale arrive at the example's answer? With candidates, which only p can tell, True."""
        if self.task.candidates(example) is not None:
            return True
        return self.task.grade(example, self.task.answer(rationale))

    def reward_temperature(self, step: int) -> float:
        """T of log R / T at a step of the E-step."""
        c = self.config.e_step
        share = min(1.0, step / max(1, c.reward_horizon))
        return c.reward_temperature + (c.final_reward_temperature - c.reward_temperature) * share

    def _fit(self, adapter: Adapter, records: Sequence[tuple[int, Rationale]], c: MStepConfig) -> Iterator[Info]:
        """Raise the likelihood of (training question, rationale) under an adapter, each step one unit."""
        codec = self.rules.codec
        optimiser = self._new_optimiser(adapter, Schedule(c.learning_rate, c.steps, c.warmup, c.decay), c.clip)
        order_seed = f"{self.config.seed}/{self.state.phase}"
        for step in range(self.state.unit, c.steps):
            torch.manual_seed(self._unit_seed(step))  # for LoRA's dropout
            groups = []
            for k in m_step.epoch_batch(len(records), c.batch_size, step, order_seed):
                question, rationale = records[k]
                query = self.query(self.questions[question])
                prompt = query.policy_prompt if adapter == "q" else codec.encode_prompt(self.questions[question].x)
                groups.append(Group(prompt, [rationale], query.answer))
            yield vars(
                m_step.update(self.lm, adapter, groups, self.rules, optimiser, step, max_tokens=c.max_batch_tokens)
            )

    def _new_optimiser(self, adapter: Adapter, schedule: Schedule, clip: float, **log_z: Any) -> AdapterOptimiser:
        self.optimiser = AdapterOptimiser(self.lm.parameters(adapter), schedule, clip, **log_z)
        if self.state.unit and self._restore is not None:
            self._restore(self.optimiser.adam)
        self._restore = None
        return self.optimiser

    def _fill_buffer(self) -> None:
        self.buffer.clear()
        c = self.config.e_step
        if not (c.seed_buffer and c.replay and self.demonstrations):
            return
        queries = [self.query(example) for example in self.data.demonstrations]
        groups = [
            Group(query.model_prompt, [rationale], query.answer)
            for query, rationale in zip(queries, self.demonstrations, strict=True)
        ]
        rewards = prefix_log_rewards(
            self.lm,
            self.lm.dense("p"),
            groups,
            self.rules.codec,
            tool_tokens=c.score_tool_tokens,
            max_tokens=c.max_batch_tokens,
        )
        for query, rationale, reward in zip(queries, self.demonstrations, rewards, strict=True):
            self.buffer.add(query.example.question, rationale, reward[0].tolist())

    def _behaviour(self, rng: random.Random) -> Behaviour:
        """On-policy and tempered rationales are mixed within a question: the on-policy ones tell how good its
        rationales can be, without which a batch of hot, worthless chains would be compared among itself."""
        c = self.config.e_step
        sampled = c.on_policy + c.tempered
        # Where the buffer has nothing yet for this question, a replay falls back on sampling.
        replay = rng.random() < c.replay / (sampled + c.replay)
        heat = rng.uniform(c.temperature_low, c.temperature_high)
        return Behaviour(heat, share=c.tempered / sampled if sampled else 0.0, replay=replay)

    def _evaluation_units(self, phase: Phase) -> list[tuple[Adapter, str, range]]:
        c = self.config.evaluation
        reasoners: tuple[Adapter, ...] = self.reasoners if phase.round else ("p",)
        return [
            (reasoner, split, members)
            for reasoner in reasoners
            for split, questions in self.tests.items()
            for members in _slices(len(questions), max(1, c.batch_size // c.votes))
        ]

    @property
    def _diagnostic_units(self) -> list[range]:
        c = self.config.evaluation
        questions = min(c.diagnostics, len(self.data.validation))
        return _slices(questions, max(1, self.config.rollout.batch_size // c.diagnostic_samples))

    @property
    def _questions_per_draw(self) -> int:
        return max(1, self.config.rollout.batch_size // self.config.m_step.samples)

    def _unit_seed(self, unit: int) -> int:
        return _seed(self.config.seed, self.state.phase, unit)


def _seed(*parts: object) -> int:
    """A seed that depends on all of `parts`, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def _slices(n: int, size: int) -> list[range]:
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def _draw_distinct(weights: Sequence[float], k: int, rng: random.Random) -> list[int]:
    """k different indices, drawn one after the other with probability ∝ weight (Efraimidis & Spirakis, 2006)."""
    keys = [(rng.random() ** (1 / weight), i) for i, weight in enumerate(weights) if weight > 0]
    return [i for _, i in sorted(keys, reverse=True)[:k]]


def _samples(batches: Sequence[Batch], n: int = 2) -> list[Info]:
    """A few rationales of a step, for people to read: the most frequent of the first questions."""
    samples = []
    for batch in batches[:n]:
        best = max(range(len(batch.rationales)), key=lambda k: batch.counts[k])
        rationale = batch.rationales[best]
        samples.append(
            {
                "question": batch.query.example.question,
                "rationale": rationale_to_json(rationale),
                "log_reward": float(batch.log_reward[best, len(rationale)]),
                "count": batch.counts[best],
            }
        )
    return samples
