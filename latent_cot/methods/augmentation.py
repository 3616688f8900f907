"""Lessons: what a rationale is learned behind in an M-step, varied so that p finds its place by what is written.

A model that only ever sees short chains learns where to look by counting steps and tokens: right on all chains as
short, wrong on longer ones. Three variations take away what could be counted:

* the steps before a random one are dropped, so that the next one has to follow from the question and the last step, or
  the last few; steps of other rationales may stand in their place, as many as there would be in a longer chain;
* words of other questions stand before and behind what is asked, joined to it at a word that both have: a place in the
  question is not told by what is counted from its beginning or its end;
* positions are left out at random between words, so that the same text stands at other distances (after the random
  positions of Ruoss et al., "Randomized Positional Encodings Boost Length Generalization of Transformers", ACL 2023).

Rollouts and tests know nothing of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, dropwhile, pairwise, takewhile

from latent_cot.model.text import TextCodec
from latent_cot.rationales.scoring import Group
from latent_cot.types import Rationale

KEPT_STEPS = 2
"""So many of the last steps are not dropped. A single one may not tell where in the question it belongs, if that
repeats itself."""
WORDS_WITH_GAPS = 0.3
"""The share of the prompt's words before which positions are left out. Where most words have a gap, p unlearns to look
at the next word."""
JOINTS = 8
"""How often questions to be joined are drawn, at most, until they make one that may be learned from."""
LARGEST_GAP = 12
"""How many positions are left out at one place, at most."""


def vary(
    lesson: Group,
    others: Sequence[Group],
    codec: TextCodec,
    rng: random.Random,
    *,
    frame: tuple[int, int],
    held_out: Callable[[Sequence[int]], bool],
    history_dropout: float,
    distractor_steps: int,
    concat_questions: int,
    gap_share: float,
) -> Group:
    """The lesson of one rationale, or a variation of it.

    Args:
        others: the lessons of other rationales.
        frame: of all training prompts, from `frame_of`.
        held_out: whether a prompt is that of a test or validation question, which joined questions may not become.
        history_dropout: probability that the steps before a random one are dropped.
        distractor_steps: how many steps of others may take their place, at most.
        concat_questions: how many of the others' questions are joined to the question, on either side, at most.
        gap_share: probability that positions are left out.
    """
    if rng.random() < history_dropout:
        dropped = drop_history(lesson, others, codec, rng, distractors=distractor_steps, kept=KEPT_STEPS)
        if concat_questions:
            dropped = join_questions(
                dropped, len(lesson.prompt), others, codec, rng, frame=frame, most=concat_questions, held_out=held_out
            )
        lesson = dropped
    if rng.random() < gap_share:
        lesson = leave_gaps(lesson, codec, rng, share=WORDS_WITH_GAPS, largest=LARGEST_GAP)
    return lesson


def drop_history(
    lesson: Group, others: Sequence[Group], codec: TextCodec, rng: random.Random, *, distractors: int, kept: int = 1
) -> Group:
    """Go on behind a random complete step: the question, up to `distractors` steps of others, the last `kept` steps up
    to that one, what follows.

    Up to that step nothing is learned. Without distractors before them, the kept ones lose the punctuation that
    joined them to the one before. Where it is the first step, and where there is none, the lesson stays as it is.
    """
    (rationale,) = lesson.rationales
    steps = steps_of(rationale)
    last = len(steps) - (rationale.truncated and not lesson.answer)  # behind the last step there is nothing to learn
    if last < 2 or not (k := rng.randrange(last)):
        return lesson
    steps_of_others = [step for other in others for z in other.rationales for step in steps_of(z)[1:]]
    number = rng.randint(0, distractors) if steps_of_others else 0
    before = [token for _ in range(number) for token in rng.choice(steps_of_others)]
    first = max(0, k + 1 - kept)
    if before and first == 0:  # what joins it to them is in the second step
        before += takewhile(lambda token: _joins(codec.pieces[token]), steps[1])
    context = dropwhile(lambda token: _joins(codec.pieces[token]), chain(before, *steps[first : k + 1]))
    end = step_ends(rationale)[k]
    rest = replace(
        rationale,
        tokens=rationale.tokens[end:],
        policy_mask=rationale.policy_mask[end:],
        states=rationale.states[end:],
        text=codec.decode(rationale.tokens[end:]),
        calls=tuple(replace(call, position=call.position - end) for call in rationale.calls if call.position > end),
    )
    return replace(lesson, prompt=[*lesson.prompt, *context], rationales=[rest])


def join_questions(
    lesson: Group,
    asked: int,
    others: Sequence[Group],
    codec: TextCodec,
    rng: random.Random,
    *,
    frame: tuple[int, int],
    most: int,
    held_out: Callable[[Sequence[int]], bool],
) -> Group:
    """Join words of 0 to `most` others before what is asked, and of as many behind it.

    `9 - 4 + 1`, `1 + 2 - 3` and `6 - 3 + 7` make `9 - 4 + 1 + 2 - 3 + 7`: two questions are joined at a word that both
    have, so that the joint looks like any other place. What is asked is what lies within the `frame`.

    Before it they stand only where the lesson has steps to go on from, which say what place is meant. Behind it they
    stand only where there is a step to learn; then the lesson's own steps are all that is learned, since how the joined
    question's chain ends, and its Y, are not known. Where they make a question that is held out, others are drawn, at
    most `JOINTS` times; after that the question stays as it is.

    Args:
        asked: the number of the prompt's tokens that are the question; a rationale's steps may stand behind them.
    """
    question, context = lesson.prompt[:asked], lesson.prompt[asked:]
    (rationale,) = lesson.rationales
    prompts = [question, *(other.prompt for other in others)]
    begin, end = frame
    own, *theirs = (_words(prompt[begin : len(prompt) - end], codec) for prompt in prompts)
    if not own:
        return lesson
    for _ in range(JOINTS):
        words, goes_on = own, False
        for _ in range(rng.randint(0, most) if context else 0):
            heads = [text[:i] for text in theirs for i in range(1, len(text)) if text[i] == words[0]]
            words = [*rng.choice(heads), *words] if heads else words
        for _ in range(rng.randint(0, most) if rationale.tokens else 0):
            tails = [text[i + 1 :] for text in theirs for i in range(len(text) - 1) if text[i] == words[-1]]
            words = [*words, *rng.choice(tails)] if tails else words
            goes_on = goes_on or bool(tails)
        joined = [*question[:begin], *chain.from_iterable(words), *question[len(question) - end :]]
        if words == own:
            return lesson
        if held_out(joined):
            continue
        if goes_on:  # how the chain of the joined question ends is not known
            rest = replace(rationale, truncated=True)
            return replace(lesson, prompt=[*joined, *context], rationales=[rest], answer=())
        return replace(lesson, prompt=[*joined, *context])
    return lesson


def frame_of(prompts: Sequence[Sequence[int]], codec: TextCodec) -> tuple[int, int]:
    """How many tokens all these prompts begin with, and how many they end with. They have to be all there are in
    training: a few questions may well end with the same operand too, which is then no part of the frame."""
    begin = _in_common(prompts)
    while begin and codec.pieces[prompts[0][begin - 1]].isspace():
        begin -= 1
    return begin, _in_common([prompt[begin:][::-1] for prompt in prompts])


def _words(tokens: Sequence[int], codec: TextCodec) -> list[tuple[int, ...]]:
    """The tokens of each word; a word is what begins with a space."""
    starts = [i for i, token in enumerate(tokens) if not i or codec.pieces[token][:1].isspace()]
    return [tuple(tokens[i:j]) for i, j in pairwise([*starts, len(tokens)])]


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
