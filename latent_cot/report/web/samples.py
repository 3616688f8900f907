"""What only the run's model can tell: rationales of questions that it was not trained on, scored token by token.

The distinct rationales of a question are one prefix tree: what they share is stored, and shown, once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from latent_cot.evaluation.evaluate import read_answers
from latent_cot.methods.method import Method
from latent_cot.methods.scored import ScoredRationale, score_rationales
from latent_cot.methods.seeding import seed_of, slices
from latent_cot.model.lm import Adapter
from latent_cot.report.web.logs import Json, segments
from latent_cot.types import Example, Rationale

QUESTIONS_AT_ONCE = 16
GREEDY_QUESTIONS = 2
"""Of each split, for the comparison of before and after."""


@dataclass(frozen=True)
class Settings:
    """What is sampled."""

    reasoner: Adapter
    """Who writes the rationales: the sampler q, or p."""
    samples: int
    """Rationales a question."""
    temperature: float
    seed: int


def sample(
    loop: Method,
    questions: Mapping[str, Sequence[Example]],
    settings: Settings,
    on_done: Callable[[int], None] = lambda n: None,
) -> Json:
    """Sample rationales for each question of each split and score them under the sampler and under p.

    The loop's adapter p is reset in the end, for the comparison with the untrained model: use the loop for nothing
    else afterwards.

    Args:
        on_done: called with the number of questions that have just been done.
    """
    vocabulary: dict[str, int] = {}
    found: list[Json] = []
    for split, examples in questions.items():
        for part in slices(len(examples), QUESTIONS_AT_ONCE):
            seed = seed_of("report", settings.seed, split, part.start)
            for example, counts in _draw(loop, [examples[i] for i in part], settings, seed):
                scored = score_rationales(loop, example, counts, with_q=settings.reasoner == "q", proposal=None)
                tree, leaves = _tree(scored.rationales, vocabulary)
                chains = _outcomes(loop, settings.reasoner, example, list(counts))
                found.append(
                    {
                        "split": split,
                        "question": example.question,
                        "prompt": example.x,
                        "answer": example.answer,
                        **tree,
                        "chains": [
                            {"leaf": leaf, "count": count, **chain}
                            for leaf, count, chain in zip(leaves, counts.values(), chains, strict=True)
                        ],
                    }
                )
                on_done(1)
    return {
        "reasoner": settings.reasoner,
        "sees_answer": settings.reasoner == "q" and loop.config.q_sees == "question-and-answer",
        "own_reward": loop.reward.task is not None,
        "n": settings.samples,
        "temperature": settings.temperature,
        "seed": settings.seed,
        "tokens": list(vocabulary),
        "questions": found,
        "before_after": _before_after(loop, questions, settings.reasoner),
    }


def _draw(
    loop: Method, examples: Sequence[Example], settings: Settings, seed: int
) -> list[tuple[Example, Mapping[Rationale, int]]]:
    """Each question with how often each distinct rationale was sampled."""
    n, temperature = settings.samples, settings.temperature
    counts = loop.draw_tests(settings.reasoner, examples, n=n, temperature=temperature, seed=seed)
    return list(zip(examples, counts, strict=True))


def _tree(rationales: Sequence[ScoredRationale], vocabulary: dict[str, int]) -> tuple[Json, list[int]]:
    """The prefix tree of a question's rationales as columns, one entry a node, and the last node of each rationale.

    Node 0 is the empty rationale; a parent comes before its children. Where there is no q, p is the sampler.
    """
    columns: dict[str, list[Any]] = {}
    calls: list[Json] = []
    child: dict[tuple[int, int], int] = {}
    leaves: list[int] = []

    def add(scored: ScoredRationale, i: int, parent: int) -> int:
        """The node of the first i tokens of a rationale."""
        z = scored.rationale
        token = scored.tokens[i - 1] if i else None
        stop = next((stop for stop in scored.stops if stop.position == i), None)
        forced = z.truncated and i == len(z)
        values = {
            "parent": parent,
            "token": None if token is None else vocabulary.setdefault(token.text, len(vocabulary)),
            "log_q": None if token is None else _nats(token.log_p if scored.log_q is None else token.log_q),
            "log_p": None if token is None else _nats(token.log_p),
            "stop_q": None if stop is None or forced else _nats(stop.log_p if scored.log_q is None else stop.log_q),
            "stop_p": None if stop is None or forced else _nats(stop.log_p),
            "log_reward": None if stop is None else _nats(stop.log_reward),
        }
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
        return len(columns["parent"]) - 1

    for scored in rationales:
        node = 0 if columns else add(scored, 0, -1)
        asked = {call.position: call for call in scored.rationale.calls}
        for i, token in enumerate(scored.rationale.tokens, 1):
            if (node, token) not in child:
                child[node, token] = add(scored, i, node)
                if i in asked:
                    call = {name: getattr(asked[i], name) for name in ("tool", "request", "result", "error")}
                    calls.append({"node": child[node, token], **call})
            node = child[node, token]
        leaves.append(node)
    return {"nodes": columns, "calls": calls}, leaves


def _outcomes(loop: Method, reasoner: Adapter, example: Example, rationales: Sequence[Rationale]) -> list[Json]:
    """What became of each rationale."""
    # Among candidates the judge decides by the question alone, even where the sampler has seen Y.
    prompt = loop.test_rules.codec.encode_prompt((loop.model_prefix if reasoner == "p" else "") + example.x)
    (answers,) = read_answers(
        loop.lm, loop.judge_of(reasoner), loop.task, [example], [prompt], [rationales], loop.test_rules
    )
    gradable = example.answer is not None and not loop.task.is_measured
    return [
        {"cut": z.truncated, "answer": answer, "right": loop.task.grade(example, answer) if gradable else None}
        for z, answer in zip(rationales, answers, strict=True)
    ]


def _before_after(loop: Method, questions: Mapping[str, Sequence[Example]], reasoner: Adapter) -> list[Json]:
    """The likeliest rationale of a few questions of each split, from the untrained model and from the run's."""
    chosen = [(split, example) for split, examples in questions.items() for example in examples[:GREEDY_QUESTIONS]]
    examples = [example for _, example in chosen]
    adapters: tuple[Adapter, ...] = ("p", "q")
    by = {name: _greedy(loop, name, examples) for name in adapters if name in loop.reasoners or name == reasoner}
    loop.lm.reset_adapter("p", seed=0)  # a fresh adapter changes nothing: p is the base model
    before = _greedy(loop, "p", examples)
    return [
        {
            "split": split,
            "question": example.question,
            "answer": example.answer,
            "by": {"base": before[k], **{name: outcomes[k] for name, outcomes in by.items()}},
        }
        for k, (split, example) in enumerate(chosen)
    ]


def _greedy(loop: Method, reasoner: Adapter, examples: Sequence[Example]) -> list[Json]:
    settings = Settings(reasoner, samples=1, temperature=0.0, seed=0)
    found = []
    for example, counts in _draw(loop, examples, settings, seed=0):
        (rationale,) = counts
        (outcome,) = _outcomes(loop, reasoner, example, [rationale])
        found.append({**outcome, "text": segments(asdict(rationale))})
    return found


def _nats(value: float | None) -> float | None:
    """To a thousandth of a nat; None for −∞."""
    return round(value, 3) + 0.0 if value is not None and math.isfinite(value) else None  # + 0.0: no "-0.0"
