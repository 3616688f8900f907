"""What a round of EM takes on one device: its parts, from a configuration and from how long texts are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from latent_cot.config.methods import METHODS, draws_samples, has_safeguard, may_begin_as_p
from latent_cot.config.schema import COMPLETE_ONLY, DIAGNOSTIC_SAMPLES, RunConfig, trained_tokens
from latent_cot.planning.cost import Cost, CostModel, batches


@dataclass(frozen=True)
class Texts:
    """Tokens of what is read and written; means, but for `longest`."""

    prompt: float
    chain: float
    longest: float
    """Of the chains that are sampled at once: decoding goes on until it ends."""
    answer: float
    states: float
    """Prefixes of a chain after which Y is scored."""
    distinct: float
    """Share of the sampled tokens that are run: chains of a question share what they begin with."""

    @property
    def context(self) -> float:
        """What a token of a chain attends to."""
        return self.prompt + self.chain / 2


def sample(costs: CostModel, texts: Texts, prompts: float, samples: float, places: float) -> Cost:
    """Chains of so many prompts, at most `places` at once: those that wait take the places of those that end."""
    tokens = prompts * samples * texts.distinct * texts.chain
    waiting = max(0.0, prompts * samples - places)
    steps = texts.longest + waiting * texts.chain / places
    return costs.rollout(prompts, texts.prompt, tokens / steps, steps)


def tree_tokens(texts: Texts, questions: float, samples: float) -> float:
    """Of the token trees of so many questions."""
    return questions * (texts.prompt + samples * texts.distinct * texts.chain)


def reward(costs: CostModel, texts: Texts, questions: float, samples: float, max_tokens: int) -> Cost:
    """log p of every prefix and of Y behind it; Y's last token needs no node."""
    states = questions * samples * texts.distinct * texts.states
    tokens = tree_tokens(texts, questions, samples) + states * (texts.answer - 1)
    return costs.score(tokens, texts.context, batches(tokens, max_tokens), states * texts.answer)


def e_step(
    costs: CostModel, texts: Texts, questions: float, samples: float, max_tokens: int, trained: int
) -> dict[str, Cost]:
    """A step: sample, score under p, update q, merge q. A pass of the update has `trained` tokens at most."""
    tokens = tree_tokens(texts, questions, samples)
    return {
        "rollout": sample(costs, texts, questions, samples, questions * samples),
        "reward": reward(costs, texts, questions, samples, max_tokens),
        "update": costs.update(tokens, texts.context, batches(tokens, trained), 0),
        "merge": costs.merge(),
    }


def m_step(costs: CostModel, texts: Texts, size: float, max_tokens: int) -> Cost:
    """An update of p on `size` texts X Z Y."""
    tokens = size * (texts.prompt + texts.chain + texts.answer - 1)
    return costs.update(tokens, texts.context, batches(tokens, max_tokens), size * texts.answer)


def e_step_memory(costs: CostModel, texts: Texts, questions: float, samples: float, max_tokens: int) -> float:
    """Bytes of the activations of an update of q; paths through a tree are padded to the longest, and a question's tree
    is never divided."""
    tokens = max(tree_tokens(texts, 1, samples), min(tree_tokens(texts, questions, samples), max_tokens))
    return costs.activations(tokens, texts.prompt + texts.longest)


def m_step_memory(costs: CostModel, texts: Texts, size: float, max_tokens: int) -> dict[str, float]:
    """Bytes of the activations and logits of an update of p."""
    length = texts.prompt + texts.chain + texts.answer - 1
    tokens = max(length, min(size * length, max_tokens))
    logits = costs.logits(tokens / length * texts.answer)
    return {"M-step: activations": costs.activations(tokens, length), "M-step: logits": logits}


def lessons(config: RunConfig, texts: Texts) -> Texts:
    """What is learned: longer by the questions that augmentation joins to a text, half of the largest number on
    average."""
    a = config.augmentation
    return replace(texts, prompt=texts.prompt * (1 + a.history_dropout * a.concat_questions / 2))


@dataclass(frozen=True)
class Round:
    """Costs on each device, and its memory."""

    initial: Mapping[str, Cost]
    """Part -> round 0's."""
    later: Mapping[str, Cost]
    """Part -> that of each round behind it."""
    held: Mapping[str, float]
    """Part -> bytes, all the time."""
    working: Mapping[str, float]
    """Part -> bytes, some of the time."""
    samplers: float
    """Samplers that keep one trainer busy: the time of a batch's rollout and reward, divided by that of its updates."""

    @property
    def peak(self) -> float:
        """Bytes. What a phase needs is given back before the next."""
        phases = ("rollout", "E-step", "M-step")
        return sum(self.held.values()) + max(
            sum(value for part, value in self.working.items() if part.startswith(phase)) for phase in phases
        )


def plan(config: RunConfig, texts: Texts, costs: CostModel, devices: int, splits: int) -> Round:
    """Round 0 and a round on each of so many devices, which divide the questions of each step among them.

    `splits`: of the test.
    """
    c, e, m = config, config.e_step, config.m_step
    limit, trained = config.max_batch_tokens, trained_tokens(config)
    lesson = lessons(c, texts)
    alone = replace(texts, distinct=1.0)  # one chain a question

    def share(items: int) -> int:
        return math.ceil(items / devices)

    rewarded = replace(texts, states=1.0) if e.objective in COMPLETE_ONLY else texts
    step = e_step(costs, rewarded, share(e.questions), e.samples, limit, trained)
    prior = e.prior == "sampler"
    if prior:  # log p(Z | X) is that of q as it was
        tokens = tree_tokens(texts, share(e.questions), e.samples)
        step["reward"] += costs.score(tokens, texts.context, batches(tokens, limit), 0)
    if e.updates > 1:
        # log q of what may be learned again, and that: of twice as many questions, of which hardly more than a chain
        # each weighs anything.
        tokens = tree_tokens(texts, share(e.questions), e.samples)
        step["update"] += costs.score(tokens, texts.context, batches(tokens, limit), 0)
        step["update"] += e_step(costs, alone, share(2 * e.questions), 1, limit, trained)["update"] * (e.updates - 1)
    questions = (c.data.demonstrations + c.data.unlabelled) * m.samples
    places = min(questions, c.rollout.batch_size)
    recalled = Cost()
    if c.rounds > 1 and e.updates > 1 and draws_samples(c):  # in a later round: what was drawn, under p and q
        tokens = tree_tokens(alone, share(questions), 1)
        recalled = reward(costs, replace(alone, states=1.0), share(questions), 1, limit)
        recalled += costs.score(tokens, texts.context, batches(tokens, limit), 0)
    tests = share(splits * c.evaluation.size * (c.evaluation.samples or c.evaluation.votes))
    tested_at_once = 2 * c.rollout.batch_size
    tested = sample(costs, alone, tests, 1, tested_at_once) if tests else Cost()
    checked = share(min(c.evaluation.diagnostics, c.data.validation))
    compared = sample(costs, texts, checked, DIAGNOSTIC_SAMPLES, c.rollout.batch_size)
    scored = reward(costs, rewarded, checked, DIAGNOSTIC_SAMPLES, limit)
    starts = c.rounds > 1 and may_begin_as_p(c)
    tested_longest = max(texts.longest, c.evaluation.max_tokens)
    first = m_step(costs, lesson, share(c.init_step.batch_size), trained)
    learn_first = (c.p_init == "demonstrations") + (c.q_sees == "question-and-answer" and c.rounds > 0)
    return Round(
        initial={
            "fine-tuning": first * c.init_step.steps * learn_first * (c.data.demonstrations > 0),
            "evaluation": tested * c.evaluation.every_round,
        },
        later={
            **{f"E-step: {part}": cost * e.steps for part, cost in step.items()},
            "draw": sample(costs, alone, share(places), 1, places) * batches(questions, places) + recalled,
            "M-step": m_step(costs, lesson, share(m.batch_size), trained) * m.steps,
            # Of q twice, under q and p; by q's, of p before and after; in a later round perhaps of p as q besides. Each
            # pass puts p back, and forth again.
            "checks": compared * (3 + starts)
            + scored * (7 + 2 * starts)
            + costs.merge() * (2 * batches(checked * DIAGNOSTIC_SAMPLES, c.rollout.batch_size))
            if checked
            else Cost(),
            "evaluation": tested * len(METHODS[c.method].reasoners(c, False)),
        },
        held=costs.held(2 + prior, 2 + has_safeguard(c) + prior),
        working={
            "rollout: keys and values": max(
                costs.cache(share(e.questions) * e.samples * texts.distinct, texts.prompt + texts.longest),
                costs.cache(min(tests, tested_at_once), texts.prompt + tested_longest),
            ),
            "E-step: activations": e_step_memory(costs, texts, share(e.questions), e.samples, trained),
            **m_step_memory(costs, lesson, share(m.batch_size), trained),
        },
        samplers=(step["rollout"].seconds + step["reward"].seconds) / step["update"].seconds if e.steps else 0.0,
    )
