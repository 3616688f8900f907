"""What the runs of all methods have in common: EM (`em.py`) and what it is compared with are each a `Method`.

Here are the phases (`phases.py`) that several methods share: the fine-tuning on demonstrations that all but few-shot
prompting start from, the comparison of q with the posterior, drawing rationales, and the M-step. How rationales are
learned is in `fine_tuning.py`; what p and q read, and their evaluation, are in `evaluator.py`.
"""

from __future__ import annotations

import pkgutil
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from statistics import fmean
from typing import Any, cast

import torch

from latent_cot.config.methods import METHODS, has_safeguard, may_begin_as_p
from latent_cot.config.schema import DIAGNOSTIC_SAMPLES, RunConfig
from latent_cot.evaluation.diagnostics import clear_fall, diagnose, mean_figures
from latent_cot.methods import likelihood
from latent_cot.methods.async_rollout import Rollouts, ahead
from latent_cot.methods.fine_tuning import FineTuning
from latent_cot.methods.phases import phase
from latent_cot.methods.seeding import draw_distinct, slices
from latent_cot.methods.state import Info, Phase, Seen, WeightedRationale
from latent_cot.model.optimise import AdapterOptimiser, Schedule
from latent_cot.objectives import OBJECTIVES
from latent_cot.objectives.importance import NEGLIGIBLE
from latent_cot.rationales.batch import shown
from latent_cot.rationales.chain import check_rationale
from latent_cot.rationales.experience import Experience, gather, weigh
from latent_cot.rationales.reward import Comparison, Reward, other_answers, refuse_idle_reward_settings
from latent_cot.rationales.rollout import Counts, Draw, rollout
from latent_cot.rationales.scoring import Group
from latent_cot.types import Example, Rationale, Reasoner, Task, TaskData, UsageError


class Method(FineTuning):
    """One run of a method."""

    @cached_property
    def joint_reward(self) -> Reward:
        """log p(Z Y | X), whatever the reward of q's training adds to it: what the M-step's weights are made of."""
        return Reward(self.lm, self.rules.codec, max_tokens=self.config.max_batch_tokens)

    @cached_property
    def reward(self) -> Reward:
        """What q's rationales are worth in training."""
        e, task = self.config.e_step, self.task
        normalised = e.answer_reward == "normalised"
        compared = normalised or e.wrong_candidate_penalty > 0 or e.answer_weight != 1
        return Reward(
            self.lm,
            self.rules.codec,
            task=task if task.has_own_reward else None,
            tool_tokens=e.score_tool_tokens,
            max_tokens=self.config.max_batch_tokens,
            comparison=Comparison(task, normalised, e.wrong_candidate_penalty, e.answer_weight) if compared else None,
            copy_penalty=e.copy_penalty,
        )

    @classmethod
    def check(cls, config: RunConfig, task: Task, data: TaskData) -> None:
        """Raises UsageError where the method cannot do what the configuration asks with these examples. It is called
        before the model is loaded; a method adds what it needs."""
        spec, name, c = METHODS[config.method], task.name, config.m_step
        questions = [*data.demonstrations, *data.unlabelled]
        if spec.reads(config, "m_step.target"):
            if c.target == "candidates" and not all(map(task.candidates, questions)):
                raise UsageError(
                    f"--m-step.target candidates: some questions of {name} have none; give joint or answer"
                )
            if c.target == "answer" and not all(example.y for example in questions):
                raise UsageError(f"--m-step.target answer: {name} has questions without an answer; give joint")
        trained = spec.fine_tunes(config) and (config.rounds > 0 or not spec.has_rounds)
        if task.answer_given and spec.samples and trained and "p" in spec.reasoners(config, True):
            why = f"tests of {name} give the answer, which its p does not learn to read"
            may_read = spec.trains_q and spec.q_sees is None
            remedy = "--q-sees question-and-answer" if may_read else "--method sft, gflownet or em"
            raise UsageError(f"--method {config.method}: {why}; give {remedy}")
        if config.augmentation.concat_questions and not task.can_be_joined(questions):
            why = f"in questions of {name} that are joined the steps would be others"
            raise UsageError(f"--augmentation.concat-questions: {why}; give 0")
        if spec.trains_q:
            asked = (*data.unlabelled, *(data.demonstrations if config.e_step.demonstration_weight else ()))
            if config.e_step.steps and not asked:
                remedy = "raise it, or give questions without a rationale"
                raise UsageError(f"--e-step.demonstration-weight is 0, and there are demonstrations only: {remedy}")
            rewarded = config.e_step if spec.has_balance else replace(config.e_step, prior="model")
            refuse_idle_reward_settings(rewarded, task, questions)
            if config.q_sees == "question-and-answer":
                for example in (*questions, *data.validation):
                    try:
                        task.posterior_prompt(example)
                    except UsageError as error:
                        raise UsageError(f"{error}; give it, or --q-sees question") from error
        if c.weighted and spec.reads(config, "m_step.weighted"):
            if task.has_own_reward:
                raise UsageError(f"--m-step.weighted: {name} has a reward of its own, not a probability; leave it out")
            if c.temperature != 1 or c.samples == 1:
                temperature = f"--m-step.temperature 1 (here {c.temperature:g})"
                samples = f"--m-step.samples above 1 (here {c.samples})"
                raise UsageError(f"--m-step.weighted needs {temperature} and {samples}; give them, or leave it out")

    def sampler_of(self, reasoner: Reasoner) -> Reasoner | None:
        """q writes for a p that has learned to decide after q's rationales, and not to write any itself."""
        drawn = self.state.model_trained and any(phase.name == "draw" for phase in self.phases)
        decides_only = drawn and self.config.m_step.target != "joint"
        return "q" if decides_only and self.config.q_sees == "question" else reasoner

    def state_dict(self) -> dict[str, Any]:
        """All that has to be saved beside the adapters and the optimiser, as JSON. A method adds its own."""
        return {"loop": self.state.to_json()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over what a method has added to `state_dict`: nothing, unless it says otherwise. Raises ValueError for
        what cannot be this method's with these questions and this model: a checkpoint may come from somebody else."""
        state = self.state
        phases = self.phases
        tests = {name: len(questions) for name, questions in self.tests.items()}
        if state.phase > len(phases) or state.unit > (self.units(phases[state.phase]) if phases[state.phase :] else 0):
            raise ValueError(f"it is at unit {state.unit} of phase {state.phase}, which there is not")
        kept: list[WeightedRationale | Seen] = [*state.drawn, *state.seen]
        if any(one.question >= len(self.questions) for one in kept):
            raise ValueError("a rationale is of no training question")
        marks = (
            (split, of)
            for of_round in state.right.values()
            for splits in of_round.values()
            for split, of in splits.items()
        )
        if any(len(of) > tests.get(split, 0) for split, of in marks):
            raise ValueError("more questions were answered than a test split has")
        samples = (one.rationale for of_question in state.sampled for one in of_question)
        for rationale in (*(one.rationale for one in kept), *samples):
            check_rationale(rationale, self.rules.codec)

    # -- phases that methods share -------------------------------------------------------------------

    @phase(lambda self, _: self.config.init_step.steps if self._learns_demonstrations else 0)
    def init(self, at: Phase) -> Iterator[Info]:
        """p before the first round: fine-tuned on the demonstrations' own rationales, if so configured."""
        if self._learns_demonstrations:
            yield from self.fine_tune("p", self.demonstrated, self.init_step)

    @phase(
        lambda self, _: self.config.init_step.steps if self.demonstrations and self._q_reads_y else 0,
        when=lambda self, number: number == 1 or not (self._q_reads_y or self.config.e_step.steps),
    )
    def start_q(self, at: Phase) -> Iterator[Info]:
        """q ← p; a q that reads Y is then fine-tuned on the demonstrations, for p has never read its prompt. In later
        rounds only a q that has no training of its own begins as p."""
        if self.state.unit == 0:
            self.lm.copy_adapter("p", "q")
        if self.demonstrations and self._q_reads_y:
            yield from self.fine_tune("q", self.demonstrated, self.init_step)
        if self.reward.prior is not None and at.round == 1:  # part of q's reward: what q is now
            self.lm.copy_adapter("q", "prior")

    @phase(lambda self, _: len(self._diagnostic_units))
    def diagnose_before(self, at: Phase) -> Iterator[Info]:
        """How far q is from the posterior before its training. Where p is clearly nearer by now, q begins as p."""
        compares = at.round > 1 and self._may_begin_as_p
        units = self._diagnostic_units
        for unit in range(self.state.unit, len(units)):
            is_last = unit == len(units) - 1
            of_round = self.state.posterior.setdefault(str(at.round), {})
            of_q = of_round.setdefault("before", [])
            of_p = of_round.setdefault("of_p", []) if compares else []
            compares = compares and len(of_p) == len(of_q)  # else it was switched on by a user in the middle of this
            of_q += self._diagnose(unit, "q")
            note: Info = {}
            if compares:
                of_p += self._diagnose(unit, "p")
                note = self._begin_as_p_if_nearer(at, of_round) if is_last else {}
            if is_last:
                of_round.pop("of_p", None)
                if self.safeguard:
                    self.lm.copy_adapter("q", "kept")
            yield self._means(of_round["before"]) | note

    @phase(lambda self, _: len(self._diagnostic_units))
    def diagnose(self, at: Phase) -> Iterator[Info]:
        """How far q is from the posterior after it. If it is clearly farther than before, q is put back."""
        units = self._diagnostic_units
        for unit in range(self.state.unit, len(units)):
            found = self.state.posterior.setdefault(str(at.round), {}).setdefault("after", [])
            found += self._diagnose(unit, "q")
            yield self._means(found) | (self._put_back_if_fallen(at, found) if unit == len(units) - 1 else {})

    def _diagnose(self, unit: int, sampler: Reasoner) -> list[dict[str, float]]:
        """Figures of q, or of p in its place, beside the posterior, of each validation question of a unit."""
        e, spec = self.config.e_step, METHODS[self.config.method]
        figures = diagnose(
            self.lm,
            [self.query(self.data.validation[i]) for i in self._diagnostic_units[unit]],
            self.rules,
            self.reward,
            sampler=sampler,
            n=DIAGNOSTIC_SAMPLES,
            reward_temperature=self.final_reward_temperature,
            reward_floor=e.reward_floor,
            complete_only=spec.has_balance and OBJECTIVES[e.objective].complete_only,
            max_tokens=self.config.max_batch_tokens,
            generator=torch.Generator().manual_seed(self.unit_seed(unit)),
            is_correct=self.is_correct if self.tells_right else None,
        )
        return self.lm.processes.of_main([vars(f) for f in figures])

    def _means(self, found: Sequence[Mapping[str, float]]) -> Info:
        tempered = self.final_reward_temperature != 1
        return mean_figures(found) | ({"reward_temperature": self.final_reward_temperature} if tempered else {})

    def _begin_as_p_if_nearer(self, at: Phase, of_round: dict[str, list[dict[str, float]]]) -> Info:
        """q ← p, if q's ELBO is lower than p's for more validation questions than chance explains. Else q goes on from
        where it is: what its E-steps have learned is in no p."""
        lower = clear_fall(*([of["elbo"] for of in of_round[name]] for name in ("of_p", "before")))
        if lower is None:
            return {}
        self.lm.copy_adapter("p", "q")
        of_round["before"] = of_round["of_p"]
        self.state.begun_as_p.append(at.round)
        note = f"q begins as p: its ELBO is higher for {lower.fell} validation questions and lower for {lower.rose}"
        return {"note": note}

    def _put_back_if_fallen(self, at: Phase, found: Sequence[Mapping[str, float]]) -> Info:
        """Did q's training lower the ELBO of more questions than chance explains, of those that it changed? Then q is
        put back, except in forward-kl. Not asked where training does not aim at the ELBO: in PPO and GRPO, and at
        another reward temperature than 1."""
        before = self.state.posterior[str(at.round)].get("before", [])
        spec = METHODS[self.config.method]
        both = list(zip(before, found, strict=False))  # a run may have gone on with more of them, or with fewer
        fall = clear_fall([of["elbo"] for of, _ in both], [of["elbo"] for _, of in both])
        if fall is None or not spec.safeguarded or self.final_reward_temperature != 1:
            return {}
        back = self.safeguard and spec.has_balance
        if back:
            self.lm.copy_adapter("kept", "q")
            self.state.taken_back.append((at.round, "e_step"))
        return {"elbo_fell": fall.fell, "elbo_rose": fall.rose, "taken_back": back}

    @phase(lambda self, _: len(self._draw_units))
    def draw(self, at: Phase) -> Iterator[Info]:
        """Rationales from q for every training question."""
        c = self.config.m_step
        if self.state.unit == 0:
            self.state.drawn = []
        for unit in range(self.state.unit, len(self._draw_units)):
            members = self._draw_units[unit]
            sampled = self.sample_questions("q", members, self.unit_seed(unit), n=c.samples, temperature=c.temperature)
            drawn = [(i, rationale) for i, of_i in zip(members, sampled, strict=True) for rationale in of_i]
            right = self.are_correct([(self.questions[i], rationale) for i, rationale in drawn])
            chosen = [WeightedRationale(*one) for one, ok in zip(drawn, right, strict=True) if ok or c.keep == "all"]
            kept = chosen
            if c.weighted and chosen:
                of_question: dict[int, list[Rationale]] = {}
                for one in chosen:
                    of_question.setdefault(one.question, []).append(one.rationale)
                kept = self._weigh(
                    list(of_question), self._experience(of_question, of_question.values(), self.joint_reward)
                )
            self.state.drawn.extend(one._replace(rationale=replace(one.rationale, log_probs=None)) for one in kept)
            share = {"accuracy": sum(right) / len(right)} if self.tells_right else {}
            samples = [shown(self.questions[i], rationale) for i, rationale in drawn[: 2 * c.samples : c.samples]]
            yield {"drawn": len(drawn), "kept": len(kept), **share, "samples": samples}

    @phase(lambda self, number: self._m_step_units(number))
    def m_step(self, at: Phase) -> Iterator[Info]:
        """Fine-tune p on the rationales that were drawn."""
        if self.state.unit == 0:
            if self.safeguard:
                self.lm.copy_adapter("p", "kept")
            self.start_model()
            self.state.m_steps += bool(self.state.drawn) and self.config.m_step.steps > 0
        if self.state.drawn:
            passes = self.config.m_step.steps * self.config.m_step.batch_size / len(self.state.drawn)
            for info in self.fine_tune("p", self.state.drawn, self.config.m_step):
                yield {**info, "passes": passes}
        elif self.state.unit == 0:
            yield {"note": "no rationale arrives at its answer: p stays as it is"}

    @phase(lambda self, _: len(self._diagnostic_units), when=lambda self, _: self._can_validate)
    def validate(self, at: Phase) -> Iterator[Info]:
        """Did p's training lower log p(Y | X) of more validation questions than chance explains, of those that it
        changed? Then p is put back."""
        if not self.state.drawn or not self.config.m_step.steps:
            return
        units = self._diagnostic_units
        found = self.state.log_y.setdefault(str(at.round), {"before": [], "after": []})
        bound = self.state.elbo.setdefault(str(at.round), {"before": [], "after": []})
        # A p that only decides would read Y off the rationales of a q that has read it: in tests it has its own.
        leaks = self._q_reads_y and self.config.m_step.target != "joint"
        writer: Reasoner = "p" if leaks else "q"
        for unit in range(self.state.unit, len(units)):
            generator = torch.Generator().manual_seed(self.unit_seed(unit))
            examples = [self.data.validation[i] for i in units[unit]]
            queries = list(map(self.query, examples))
            prompts = [query.model_prompt if leaks else query.policy_prompt for query in queries]
            n = DIAGNOSTIC_SAMPLES
            most = self.config.max_batch_tokens
            drawn = rollout(self.lm, writer, prompts, self.rules, n=n, generator=generator, max_tokens=most)
            counts = list(map(Counter, drawn))
            weights = likelihood.evidence_weights(self.lm, prompts, counts, self.rules, **self._evidence)
            for when in ("after", "before"):
                evidence = self._log_evidence(examples, counts, weights)
                found[when] += [one.log_y for one in evidence]
                bound[when] += [one.elbo for one in evidence]
                self._exchange_p(-1 if when == "after" else 1)
            figures: Info = {f"log_y_{when}": fmean(of) for when, of in found.items()}
            if unit == len(units) - 1 and (fall := clear_fall(found["before"], found["after"])):
                self._exchange_p(-1)
                self.state.taken_back.append((at.round, "m_step"))
                figures |= {"log_y_fell": fall.fell, "log_y_rose": fall.rose, "taken_back": True}
            yield figures

    def _exchange_p(self, m_steps: int) -> None:
        """Make p what it was before its last training, and keep what it is; or the other way round."""
        self.lm.swap_adapters("p", "kept")
        self.state.m_steps += m_steps

    def _log_evidence(
        self, examples: Sequence[Example], counts: Sequence[Counts], weights: Sequence[torch.Tensor]
    ) -> list[likelihood.Evidence]:
        """By p as it is, and as it reads X, which may depend on whether it has been trained."""
        groups = []
        for query, of_question in zip(map(self.query, examples), counts, strict=True):
            compared = self.config.m_step.target == "candidates"
            others = other_answers(self.task, query.example, self.rules.codec) if compared else ()
            groups.append(Group(query.model_prompt, list(of_question), query.answer, others))
        found = likelihood.log_evidence(self.lm, groups, counts, weights, self.rules, **self._evidence)
        return self.lm.processes.of_main(found)

    @property
    def _evidence(self) -> dict[str, Any]:
        return {"target": self.config.m_step.target, "max_tokens": self.config.max_batch_tokens}

    # -- what they share -----------------------------------------------------------------------------

    def start_model(self) -> None:
        """Before an M-step: p goes on from where it is. Rejection sampling begins again here."""

    @property
    def final_reward_temperature(self) -> float:
        """T of the log R / T that q is trained towards in the end."""
        return 1.0

    def sample_questions(
        self, adapter: Reasoner, members: Sequence[int], seed: int, *, n: int = 1, temperature: float = 1.0
    ) -> list[list[Rationale]]:
        """`n` rationales for each of these training questions, on the budget."""
        queries = [self.query(self.questions[i]) for i in members]
        prompts = [query.policy_prompt if adapter == "q" else query.model_prompt for query in queries]
        sampling: dict[str, Any] = {
            "temperature": temperature,
            "generator": torch.Generator().manual_seed(seed),
            "max_tokens": self.config.max_batch_tokens,
        }
        sampled: list[list[Rationale]] = [[] for _ in prompts]
        for some in slices(n, self.config.rollout.batch_size):  # no more of a question are sampled at once
            drawn = rollout(self.lm, adapter, prompts, self.rules, n=len(some), **sampling)
            for of_one, rationales in zip(sampled, drawn, strict=True):
                of_one.extend(rationales)
        self.count_sampled(sampled)
        return sampled

    def count_sampled(self, sampled: Iterable[Sequence[Rationale]]) -> None:
        """Put what was sampled on the budget."""
        for rationales in sampled:
            self.state.budget.sampled(rationales)

    def rollouts_of_steps(
        self, sample: Callable[[int, Draw], Rollouts]
    ) -> Iterator[tuple[int, Rollouts, Mapping[str, float]]]:
        """The steps of the present phase that are left, each with what `sample` makes of it by q, and how that came to
        be: in its turn, or ahead."""
        first, c = self.state.unit, self.config.e_step
        draw = partial(rollout, self.lm, "q", max_tokens=self.config.max_batch_tokens)
        found: Iterator[tuple[Rollouts, Mapping[str, float]]]
        found = ((sample(step, draw), {}) for step in range(first, c.steps))
        if c.max_staleness:
            found = ahead(self.lm, sample, first, c.steps, c.max_staleness)
        for step in range(first, c.steps):
            torch.manual_seed(self.unit_seed(step))  # nothing of ours draws from it; a model's own code may
            yield step, *next(found)

    @cached_property
    def question_weights(self) -> list[float]:
        """How often each training question is asked, relative to the others."""
        n = len(self.data.demonstrations)
        return [self.config.e_step.demonstration_weight] * n + [1.0] * len(self.data.unlabelled)

    def _rollouts(self, step: int, draw: Draw) -> tuple[list[int], Sequence[Sequence[Rationale]]]:
        """Training questions drawn for this step, and rationales from q for them, as many as an E-step samples."""
        c, rng = self.config.e_step, random.Random(self.unit_seed(step))
        chosen = draw_distinct(self.question_weights, c.questions, rng)
        prompts = [self.query(self.questions[i]).policy_prompt for i in chosen]
        generator = torch.Generator().manual_seed(rng.getrandbits(60))
        return chosen, draw(prompts, self.rules, n=c.samples, generator=generator)

    def _experience(
        self,
        members: Iterable[int],
        sampled: Iterable[Sequence[Rationale]],
        reward: Reward | None = None,
        *,
        reference: bool = False,
    ) -> Experience:
        """What was sampled for these training questions. `reward`: None is that of training. `reference`: as in
        `gather`."""
        queries = [self.query(self.questions[i]) for i in members]
        return gather(queries, list(sampled), reward or self.reward, reference=reference)

    def _weigh(self, members: Sequence[int], experience: Experience) -> list[WeightedRationale]:
        """The distinct rationales sampled from q, with weights that add up to `m_step.samples` for each question;
        without those that weigh nothing."""
        weight, _ = weigh(self.lm, experience, self.rules.codec, max_tokens=self.config.max_batch_tokens)
        sampled = torch.zeros(len(members)).index_add(0, experience.group.cpu(), experience.count.float().cpu())
        rows = zip(experience.group.tolist(), experience.rationales, weight.tolist(), strict=True)
        n = self.config.m_step.samples
        kept = [(g, rationale, w) for g, rationale, w in rows if w * sampled[g] > NEGLIGIBLE]
        return [WeightedRationale(members[g], rationale, n * w) for g, rationale, w in kept]

    def sampler_optimiser(self, **log_z: Any) -> AdapterOptimiser:
        """That of q's training. `log_z`: as `AdapterOptimiser` has them."""
        c = self.config.e_step
        return self.new_optimiser("q", Schedule(c.learning_rate, c.steps, c.warmup, c.decay), c.max_grad_norm, **log_z)

    @property
    def safeguard(self) -> bool:
        """Whether training that makes the validation questions less likely is taken back."""
        return has_safeguard(self.config) and bool(self._diagnostic_units)

    @property
    def _may_begin_as_p(self) -> bool:
        comparable = self.safeguard and self.final_reward_temperature == 1  # else the ELBO is not what q is trained by
        return comparable and self.state.model_trained and may_begin_as_p(self.config)

    @property
    def _can_validate(self) -> bool:
        return self.safeguard and not self.task.has_own_reward and all(one.y for one in self.data.validation)

    @property
    def _q_reads_y(self) -> bool:
        return self.config.q_sees == "question-and-answer"

    @property
    def _learns_demonstrations(self) -> bool:
        return self.config.p_init == "demonstrations" and bool(self.demonstrations)

    def _m_step_units(self, number: int) -> int:
        phases, place = self.phases, self.state.phase
        present = place < len(phases) and phases[place] == Phase(number, "m_step")
        return 1 if present and not self.state.drawn else self.config.m_step.steps

    @property
    def _draw_units(self) -> list[range]:
        return self._batches_of(len(self.questions), self.config.m_step.samples)

    @property
    def _diagnostic_units(self) -> list[range]:
        return self._batches_of(min(self.config.evaluation.diagnostics, len(self.data.validation)), DIAGNOSTIC_SAMPLES)

    def _batches_of(self, n: int, samples: int) -> list[range]:
        """n questions in batches of which each has room for so many rationales a question."""
        return slices(n, max(1, self.config.rollout.batch_size // samples))


def method_class(name: str) -> type[Method]:
    """The loop of a method in the registry."""
    return cast("type[Method]", pkgutil.resolve_name(METHODS[name].target))
