"""Lessons: what a rationale is learned behind in an M-step, varied so that p finds its place by what is written.

A model that only ever sees short chains learns where to look by counting steps and tokens: right on all chains as
short, wrong on longer ones. Both variations take away what could be counted, and leave the text alone:

* the steps before a random one are dropped, so that the next one has to follow from the question and the last step;
* positions are left out at random between words, so that the same text stands at other distances (after the random
  positions of Ruoss et al., "Randomized Positional Encodings Boost Length Generalization of Transformers", ACL 2023).

Rollouts and tests know nothing of either.
"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

from latent_cot.scoring import Group
from latent_cot.text import TextCodec
from latent_cot.types import Rationale

WORDS_WITH_GAPS = 0.3
"""Share of a prompt's words before which a varied lesson leaves out positions."""


def vary(
    lesson: Group, codec: TextCodec, rng: random.Random, *, history_dropout: float, gap_share: float, largest_gap: int
) -> Group:
    """The lesson of one rationale, or a variation of it.

    Args:
        history_dropout: probability that the steps before a random one are dropped.
        gap_share: probability that positions are left out.
        largest_gap: how many at one place, at most.
    """
    if rng.random() < history_dropout:
        lesson = drop_history(lesson, codec, rng)
    if rng.random() < gap_share:
        lesson = leave_gaps(lesson, codec, rng, largest=largest_gap)
    return lesson


def drop_history(lesson: Group, codec: TextCodec, rng: random.Random) -> Group:
    """Go on behind a random complete step: the question, that step as if it were the first, what follows.

    The step itself, and the punctuation that joins it to the ones before, are not learned. Where the step is the
    first one, and where there is none, the lesson stays as it is.
    """
    (rationale,) = lesson.rationales
    steps = list(pairwise([0, *step_ends(rationale)]))
    if len(steps) < 2:
        return lesson
    begin, end = rng.choice(steps)
    if begin == 0:
        return lesson
    while begin < end and _joins(codec.pieces[rationale.tokens[begin]]):
        begin += 1
    rest = replace(
        rationale,
        tokens=rationale.tokens[end:],
        chosen=rationale.chosen[end:],
        states=rationale.states[end:],
        text=codec.decode(rationale.tokens[end:]),
        calls=tuple(replace(call, position=call.position - end) for call in rationale.calls if call.position > end),
    )
    return replace(lesson, prompt=[*lesson.prompt, *rationale.tokens[begin:end]], rationales=[rest])


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
