"""Lessons: what a rationale is learned behind in an M-step, varied so that p finds its place by what is written.

A model that only ever sees short chains learns where to look by counting steps and tokens: right on all chains as
short, wrong on longer ones. Three variations take away what could be counted:

* the steps before a random one are dropped, so that the next one has to follow from the question and the last step, or
  the last few; steps of other rationales may stand in their place, as many as there would be in a longer chain;
* what is asked in other questions stands beside what is asked in this one, within the words that all questions have in
  common: a place in the question is not told by what is counted from its beginning or its end;
* positions are left out at random between words, so that the same text stands at other distances (after the random
  positions of Ruoss et al., "Randomized Positional Encodings Boost Length Generalization of Transformers", ACL 2023).

Rollouts and tests know nothing of them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, pairwise, takewhile

from latent_cot.scoring import Group
from latent_cot.text import TextCodec
from latent_cot.types import Rationale


def vary(
    lesson: Group,
    others: Sequence[Group],
    codec: TextCodec,
    rng: random.Random,
    *,
    history_dropout: float,
    strange_steps: int,
    kept_steps: int,
    strange_questions: int,
    gap_share: float,
    words_with_gaps: float,
    largest_gap: int,
) -> Group:
    """The lesson of one rationale, or a variation of it.

    Args:
        others: the lessons of other rationales.
        history_dropout: probability that the steps before a random one are dropped.
        strange_steps: how many steps of others may take their place, at most.
        kept_steps: how many of the last steps are not dropped.
        strange_questions: how many of the others' questions stand in the question, at most, if steps are dropped.
        gap_share: probability that positions are left out.
        words_with_gaps: before this share of the prompt's words.
        largest_gap: how many at one place, at most.
    """
    if rng.random() < history_dropout:
        prompt = ask_others_too(lesson.prompt, [o.prompt for o in others], codec, rng, most=strange_questions)
        asked = replace(lesson, prompt=prompt)
        dropped = drop_history(asked, others, codec, rng, strange=strange_steps, kept=kept_steps)
        # Only steps that are kept tell which of the questions is meant: a whole chain has its own question alone.
        lesson = lesson if dropped is asked else dropped
    if rng.random() < gap_share:
        lesson = leave_gaps(lesson, codec, rng, share=words_with_gaps, largest=largest_gap)
    return lesson


def drop_history(
    lesson: Group, others: Sequence[Group], codec: TextCodec, rng: random.Random, *, strange: int, kept: int = 1
) -> Group:
    """Go on behind a random complete step: the question, up to `strange` steps of others, the last `kept` steps up to
    that one, what follows.

    Up to that step nothing is learned. Without strange steps before them, the kept ones lose the punctuation that
    joined them to the one before. Where it is the first step, and where there is none, the lesson stays as it is.
    """
    (rationale,) = lesson.rationales
    steps = steps_of(rationale)
    if len(steps) < 2:
        return lesson
    k = rng.randrange(len(steps))
    if k == 0:
        return lesson
    strangers = [step for other in others for z in other.rationales for step in steps_of(z)[1:]]
    number = rng.randint(0, strange) if strangers else 0
    before = [token for _ in range(number) for token in rng.choice(strangers)]
    first = max(0, k + 1 - kept)
    if before and first == 0:  # what joins it to them is in the second step
        before += takewhile(lambda token: _joins(codec.pieces[token]), steps[1])
    context = [*before, *chain.from_iterable(steps[first : k + 1])]
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


def ask_others_too(
    prompt: Sequence[int], others: Sequence[Sequence[int]], codec: TextCodec, rng: random.Random, *, most: int
) -> list[int]:
    """A prompt with what 0 to `most` others have of their own beside its own: `Question: 1 + 1 2 - 3 = ?`.

    All begin and end with the same tokens; what is between them is a prompt's own, a space before it included. The
    order is random.
    """
    if not (most and others):
        return list(prompt)
    asked = [rng.choice(others) for _ in range(rng.randint(0, most))]
    if not asked:
        return list(prompt)
    begin = _in_common([prompt, *others])
    while begin and codec.pieces[prompt[begin - 1]].isspace():
        begin -= 1
    end = _in_common([one[begin:][::-1] for one in (prompt, *others)])
    own = [one[begin : len(one) - end] for one in (*asked, prompt)]
    rng.shuffle(own)
    return [*prompt[:begin], *chain.from_iterable(own), *prompt[len(prompt) - end :]]


def _in_common(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all begin with."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*texts, strict=False)))


def steps_of(rationale: Rationale) -> list[tuple[int, ...]]:
    """The tokens of each step, with what joins it to the one before."""
    return [rationale.tokens[begin:end] for begin, end in pairwise([0, *step_ends(rationale)])]


def step_ends(rationale: Rationale) -> list[int]:
    """Numbers of tokens after which the chain may stop; 0 is left out."""
    return [i for i, state in enumerate(rationale.states) if state and i]


def leave_gaps(lesson: Group, codec: TextCodec, rng: random.Random, *, share: float, largest: int) -> Group:
    """Leave out 1 to `largest` positions before a share of the prompt's words, and 0 to `largest` before each step.

    A word is what begins with a space; its tokens stay together, as do those of a step.
    """
    (rationale,) = lesson.rationales
    words = (codec.pieces[token][:1].isspace() and rng.random() < share for token in lesson.prompt)
    before_words = [rng.randint(1, largest) if word else 0 for word in words]
    starts = {0, *step_ends(rationale)}
    before_steps = [rng.randint(0, largest) if i in starts else 0 for i in range(len(rationale))]
    return replace(lesson, gaps=[*before_words, *before_steps])


def _joins(piece: str) -> bool:
    """Is it punctuation only, such as the comma between two steps?"""
    return not any(character.isalnum() or character.isspace() for character in piece)
