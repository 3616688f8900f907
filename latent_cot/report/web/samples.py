"""What only the run's model can tell: rationales of questions that it was not trained on, scored token by token.

The distinct rationales of a question are one prefix tree: what they share is stored, and shown, once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from latent_cot.methods.method import Method
from latent_cot.methods.scored import ScoredRationale, Weighed, score_rationales
from latent_cot.methods.seeding import seed_of, slices
from latent_cot.objectives.importance import bound_error
from latent_cot.report.web.logs import Json, rounded, segments
from latent_cot.types import Example, Reasoner

QUESTIONS_AT_ONCE = 16
GREEDY_QUESTIONS = 2
"""Of each split, for the comparison of before and after."""


def sample(
    loop: Method,
    questions: Mapping[str, Sequence[Example]],
    reasoners: Sequence[Reasoner],
    *,
    samples: int,
    temperature: float,
    seed: int,
    has_q: bool = True,
    on_done: Callable[[int], None] = lambda n: None,
) -> Json:
    """Sample rationales for each question of each split and score them under who wrote them and under p.

    The loop's adapter p is reset in the end, for the comparison with the untrained model: use the loop for nothing
    else afterwards.

    Args:
        reasoners: who writes the rationales: the sampler q, p, or both. Those of the first lead; those of the others
            are `beside` them.
        samples: rationales a question.
        has_q: whether the run has come to make its q.
        on_done: called with the number of questions that have just been done.
    """
    settings: dict[str, Any] = {"samples": samples, "temperature": temperature, "seed": seed}
    lead, *others = (_sampled_from(loop, questions, one, on_done=on_done, **settings) for one in reasoners)
    answering = tuple(one for one in loop.reasoners if one == "p" or has_q)
    return {**lead, "beside": others, "before_after": _before_after(loop, questions, (*answering, *reasoners))}


def _sampled_from(
    loop: Method,
    questions: Mapping[str, Sequence[Example]],
    reasoner: Reasoner,
    *,
    samples: int,
    temperature: float,
    seed: int,
    on_done: Callable[[int], None],
) -> Json:
    vocabulary: dict[str, int] = {}
    found: list[Json] = []
    for split, examples in questions.items():
        for part in slices(len(examples), QUESTIONS_AT_ONCE):
            own_seed = seed_of("report", seed, split, part.start)
            of_part = [examples[i] for i in part]
            for example, weighed in _draw(loop, reasoner, of_part, samples, temperature, own_seed):
                scored = weighed.rationales
                tree, leaves = _tree(scored, vocabulary)
                chains = [
                    {"leaf": leaf, "count": one.count, **_outcome(one)}
                    for leaf, one in zip(leaves, scored, strict=True)
                ]
                about = {"split": split, "question": example.asked, "prompt": example.x, "answer": example.answer}
                figures = {"ess": rounded(weighed.ess), "bound": rounded(weighed.bound)}
                error = bound_error(weighed.ess, samples) if weighed.ess else None
                found.append({**about, **figures, "bound_error": rounded(error), **tree, "chains": chains})
                on_done(1)
    return {
        "reasoner": reasoner,
        "sees_answer": reasoner == "q" and loop.config.q_sees == "question-and-answer",
        "log_reward": loop.reward.name,
        "n": samples,
        "temperature": temperature,
        "seed": seed,
        "tokens": list(vocabulary),
        "questions": found,
    }


def _draw(
    loop: Method, reasoner: Reasoner, examples: Sequence[Example], n: int, temperature: float, seed: int
) -> Iterator[tuple[Example, Weighed]]:
    """Each question with the distinct rationales that were sampled for it, as in tests: see `Run.sample`."""
    writer, drawn = loop.rationales_of(reasoner, examples, n=n, temperature=temperature, seed=seed)
    proposal = writer if temperature == 1 and loop.draws_as_it_is else None
    for example, counts in zip(examples, drawn, strict=True):
        yield (
            example,
            score_rationales(loop, example, counts, with_q=writer == "q", proposal=proposal, reasoner=reasoner),
        )


def _tree(rationales: Sequence[ScoredRationale], vocabulary: dict[str, int]) -> tuple[Json, list[int]]:
    """The prefix tree of a question's rationales as columns, one entry a node, and the last node of each rationale.

    Node 0 is the empty rationale; a parent comes before its children. Where there is no q, p is the sampler.
    """
    node_of: dict[tuple[int, ...], int] = {}
    nodes: list[Json] = []
    calls: list[Json] = []
    for scored in rationales:
        z, by_sampler = scored.rationale, "log_p" if scored.log_q is None else "log_q"
        stops = {stop.position: stop for stop in scored.stops}
        for i in range(len(z) + 1):
            if z.tokens[:i] in node_of:
                continue
            node = node_of[z.tokens[:i]] = len(nodes)
            token, stop = scored.tokens[i - 1] if i else None, stops.get(i)
            chosen_stop = None if z.truncated and i == len(z) else stop
            nodes.append(
                {
                    "parent": node_of[z.tokens[: i - 1]] if i else -1,
                    "token": vocabulary.setdefault(token.text, len(vocabulary)) if token else None,
                    "log_q": _nats(token, by_sampler),
                    "log_p": _nats(token, "log_p"),
                    "stop_q": _nats(chosen_stop, by_sampler),
                    "stop_p": _nats(chosen_stop, "log_p"),
                    "log_reward": _nats(stop, "log_reward"),
                }
            )
            for call in (call for call in z.calls if call.position == i):
                told = {name: getattr(call, name) for name in ("tool", "request", "result", "error")}
                calls.append({"node": node, **told})
    columns = {name: [row[name] for row in nodes] for name in nodes[0]}
    return {"nodes": columns, "calls": calls}, [node_of[one.rationale.tokens] for one in rationales]


def _outcome(scored: ScoredRationale) -> Json:
    """What became of a rationale."""
    return {"cut": scored.rationale.truncated, "answer": scored.answer, "right": scored.correct}


def _before_after(
    loop: Method, questions: Mapping[str, Sequence[Example]], reasoners: Sequence[Reasoner]
) -> list[Json]:
    """The likeliest rationale of a few questions of each split, from the untrained model and from the run's."""
    chosen = [(split, example) for split, examples in questions.items() for example in examples[:GREEDY_QUESTIONS]]

    def greedy(name: Reasoner) -> list[Json]:
        drawn = _draw(loop, name, [example for _, example in chosen], n=1, temperature=0.0, seed=0)
        firsts = [weighed.rationales[0] for _, weighed in drawn]
        return [{**_outcome(one), "text": segments(one.rationale)} for one in firsts]

    adapters: tuple[Reasoner, ...] = ("p", "q")
    by: dict[str, list[Json]] = {name: greedy(name) for name in adapters if name in reasoners}
    loop.lm.reset_adapter("p", seed=0)  # a fresh adapter changes nothing: p is the base model ...
    loop.state.m_steps = 0  # ... and reads and writes as before any M-step
    found = {"base": greedy("p"), **by}
    return [
        {
            "split": split,
            "question": example.asked,
            "answer": example.answer,
            "by": {name: outcomes[k] for name, outcomes in found.items()},
        }
        for k, (split, example) in enumerate(chosen)
    ]


def _nats(scored: object, name: str) -> float | None:
    """A figure of a token or a stop to a thousandth of a nat; None for −∞, and where there is no such token or stop."""
    value = getattr(scored, name, None)
    return round(value, 3) + 0.0 if value is not None and math.isfinite(value) else None  # + 0.0: no "-0.0"
