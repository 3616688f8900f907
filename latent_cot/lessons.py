"""Lessons: what a rationale is learned behind in an M-step, varied so that p finds its place by what is written.

A model that only ever sees short chains learns where to look by counting steps and tokens: right on all chains as
short, wrong on longer ones. Two variations take away what could be counted:

* the steps before a random one are dropped, so that the next one has to follow from the question and the last step;
  steps of other rationales may stand in their place, as many as there would be in a longer chain;
* positions are left out at random between words, so that the same text stands at other distances (after the random
  positions of Ruoss et al., "Randomized Positional Encodings Boost Length Generalization of Transformers", ACL 2023).

Rollouts and tests know nothing of either.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from latent_cot.scoring import Group
from latent_cot.text import TextCodec
from latent_cot.types import Rationale

WORDS_WITH_GAPS = 0.3
"""Share of a prompt's words before which a varied lesson leaves out positions."""


def vary(
    lesson: Group,
    others: Sequence[Rationale],
    codec: TextCodec,
    rng: random.Random,
    *,
    history_dropout: float,
    strange_steps: int,
    gap_share: float,
    largest_gap: int,
) -> Group:
    """The lesson of one rationale, or a variation of it.

    Args:
        others: rationales of other questions.
        history_dropout: probability that the steps before a random one are dropped.
        strange_steps: how many steps of others may take their place, at most.
        gap_share: probability that positions are left out.
        largest_gap: how many at one place, at most.
    """
    if rng.random() < history_dropout:
        lesson = drop_history(lesson, others, codec, rng, strange=strange_steps)
    if rng.random() < gap_share:
        lesson = leave_gaps(lesson, codec, rng, largest=largest_gap)
    return lesson


def drop_history(
    lesson: Group, others: Sequence[Rationale], codec: TextCodec, rng: random.Random, *, strange: int
) -> Group:
    """Go on behind a random complete step: the question, up to `strange` steps of others, that step, what follows.

    Up to that step nothing is learned. Without strange steps before it, it loses the punctuation that joined it to
    the one before. Where it is the first one, and where there is none, the lesson stays as it is.
    """
    (rationale,) = lesson.rationales
    steps = steps_of(rationale)
    if len(steps) < 2:
        return lesson
    k = rng.randrange(len(steps))
    if k == 0:
        return lesson
    strangers = [step for other in others for step in steps_of(other)[1:]]
    number = rng.randint(0, strange) if strangers else 0
    before = [token for _ in range(number) for token in rng.choice(strangers)]
    context = [*before, *steps[k]]
    while context and _joins(codec.pieces[context[0]]):
        context = context[1:]
    end = step_ends(rationale)[k]
    rest = replace(
        rationale,
        tokens=rationale.tokens[end:],
        chosen=rationale.chosen[end:],
        states=rationale.states[end:],
        text=codec.decode(rationale.tokens[end:]),
        calls=tuple(replace(call, position=call.position - end) for call in rationale.calls if call.position > end),
    )
    return replace(lesson, prompt=[*lesson.prompt, *context], rationales=[rest])


def steps_of(rationale: Rationale) -> list[tuple[int, ...]]:
    """The tokens of each step, with what joins it to the one before."""
    return [rationale.tokens[begin:end] for begin, end in pairwise([0, *step_ends(rationale)])]


def step_ends(rationale: Rationale) -> list[int]:
    """Numbers of tokens after which the chain may stop; 0 is left out."""
    return [i for i, state in enumerate(rationale.states) if state and i]


def leave_gaps(lesson: Group, codec: TextCodec, rng: random.Random, *, largest: int) -> Group:
    """Leave out 1 to `largest` positions before some of the prompt's words, and 0 to `largest` before each step.

    A word is what begins with a space; its tokens stay together, as do those of a step.
    """
    (rationale,) = lesson.rationales
    words = (codec.pieces[token][:1].isspace() and rng.random() < WORDS_WITH_GAPS for token in lesson.prompt)
    before_words = [rng.randint(1, largest) if word else 0 for word in words]
    starts = {0, *step_ends(rationale)}
    before_steps = [rng.randint(0, largest) if i in starts else 0 for i in range(len(rationale))]
    return replace(lesson, gaps=[*before_words, *before_steps])


def _joins(piece: str) -> bool:
    """Is it punctuation only, such as the comma between two steps?"""
    return not any(character.isalnum() or character.isspace() for character in piece)
