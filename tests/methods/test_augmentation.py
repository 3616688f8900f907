"""Variations of what a rationale is learned behind."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from latent_cot import tasks, tools
from latent_cot.config.schema import data_request
from latent_cot.config.settings import load_config
from latent_cot.methods import likelihood
from latent_cot.methods.augmentation import drop_history, frame_of, join_questions, leave_gaps, step_ends, vary
from latent_cot.methods.likelihood import LikelihoodInfo
from latent_cot.methods.method import method_class
from latent_cot.methods.state import WeightedRationale
from latent_cot.model.lm import LanguageModel
from latent_cot.model.text import TextCodec
from latent_cot.rationales.chain import ChainRules, encode_rationale
from latent_cot.rationales.scoring import Group, score
from latent_cot.tasks.arithmetic.examples import parse_question
from latent_cot.tasks.common import share_of
from latent_cot.types import DataRequest, Example
from tests.worlds import language_model

CHAIN = " 5 + 9 =, 14 - 3 =, 11 + 8 ="


@pytest.fixture(scope="module", params=["llama", "gpt2", "multi_digit"])
def lm(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> LanguageModel:
    return language_model(tiny_model(request.param))


@pytest.fixture(scope="module")
def rules(lm: LanguageModel) -> ChainRules:
    codec = TextCodec(lm.tokenizer, stop=".", allowed_characters=" ,.0123456789=+-*")
    return ChainRules(codec, [tools.load("calculator")], granularity="step", max_tokens=60)


@pytest.fixture
def lesson(rules: ChainRules) -> Group:
    prompt = rules.codec.encode_prompt("Question: 5 + 9 - 3 + 8 = ? Answer:")
    return Group(prompt, [encode_rationale(CHAIN, rules)], rules.codec.encode(". The answer is 19."))


def test_what_is_left_goes_on_behind_the_question_and_one_step(lesson: Group, rules: ChainRules) -> None:
    """Every outcome is one of: the whole chain, or question + step k without its comma + the steps behind k."""
    codec, whole = rules.codec, lesson.rationales[0]
    steps = [" 5 + 9 = 14", " 14 - 3 = 11", " 11 + 8 = 19"]
    expected = {("", ", ".join(step.strip() for step in steps))}
    expected |= {(steps[k], ",".join(["", *steps[k + 1 :]])) for k in (1, 2)}
    found = set()
    for seed in range(40):
        dropped = drop_history(lesson, [], codec, random.Random(seed), distractors=3)
        (rest,) = dropped.rationales
        kept = codec.decode(dropped.prompt[len(lesson.prompt) :])
        found.add((kept, rest.text if kept else rest.text.strip()))
        assert dropped.prompt[: len(lesson.prompt)] == lesson.prompt and dropped.answer == lesson.answer
        assert len(rest.tokens) == len(rest.policy_mask) == len(rest.states) - 1
        for call in rest.calls:
            assert codec.decode(rest.tokens[call.position : call.position + call.n_tokens]) == call.result
        n = len(rest.tokens)
        assert rest.tokens == whole.tokens[len(whole) - n :] and rest.policy_mask == whole.policy_mask[len(whole) - n :]
        assert rest.states == whole.states[len(whole) - n :]
    assert found == expected


def test_strange_steps_stand_where_the_dropped_ones_stood(lesson: Group, rules: ChainRules) -> None:
    codec, other = rules.codec, Group([], [encode_rationale(" 1 + 1 =, 2 + 2 =, 4 + 4 =", rules)])
    contexts = set()
    for seed in range(200):
        dropped = drop_history(lesson, [other], codec, random.Random(seed), distractors=2)
        contexts.add(codec.decode(dropped.prompt[len(lesson.prompt) :]))
    strange = [" 2 + 2 = 4", " 4 + 4 = 8"]
    for own in (" 14 - 3 = 11", " 11 + 8 = 19"):
        befores = ["", *(f"{a}," for a in strange), *(f"{a},{b}," for a in strange for b in strange)]
        assert {before + own for before in befores} <= contexts
    assert len(contexts) == 1 + 2 * 7


def test_some_of_the_last_steps_are_kept(lesson: Group, rules: ChainRules) -> None:
    """The first of them is joined to what stands before it, if anything does."""
    codec, other = rules.codec, Group([], [encode_rationale(" 1 + 1 =, 2 + 2 =", rules)])
    contexts = set()
    for seed in range(300):
        dropped = drop_history(lesson, [other], codec, random.Random(seed), distractors=1, kept=3)
        contexts.add(codec.decode(dropped.prompt[len(lesson.prompt) :]))
    steps, strange = [" 5 + 9 = 14", " 14 - 3 = 11", " 11 + 8 = 19"], " 2 + 2 = 4"
    kept = [",".join(steps[:2]), ",".join(steps)]
    assert contexts == {"", *kept, *(f"{strange},{own}" for own in kept)}


def test_behind_the_last_step_of_a_cut_chain_there_is_nothing_to_learn(lesson: Group, rules: ChainRules) -> None:
    """Neither a stop, which was forced, nor Y, where a task has none."""
    (rationale,) = lesson.rationales
    cut = replace(lesson, rationales=[replace(rationale, truncated=True)])

    def rests(of: Group) -> set[int]:
        found = [drop_history(of, [], rules.codec, random.Random(seed), distractors=0) for seed in range(40)]
        return {len(one.rationales[0]) for one in found}

    assert 0 in rests(cut) and 0 not in rests(replace(cut, answer=())) != {len(rationale)}


def test_a_chain_of_one_step_stays_as_it_is(rules: ChainRules) -> None:
    lesson = Group([1, 2], [encode_rationale(" 5 + 9 =", rules)])
    assert drop_history(lesson, [], rules.codec, random.Random(0), distractors=0) is lesson


def asked(group: Group, codec: TextCodec) -> str:
    """What is asked in a prompt of these tests."""
    return codec.decode(group.prompt).partition("Question: ")[2].partition(" = ?")[0]


def questions(codec: TextCodec, *texts: str) -> list[Group]:
    return [Group(codec.encode_prompt(f"Question: {text} = ? Answer:"), []) for text in texts]


def nothing_is_held_out(prompt: Sequence[int]) -> bool:
    return False


def joined_to(
    lesson: Group,
    asked: int,
    others: list[Group],
    codec: TextCodec,
    seed: int,
    most: int,
    held_out: Callable[[Sequence[int]], bool] = nothing_is_held_out,
) -> Group:
    """Where there are no other questions in training."""
    frame = frame_of([lesson.prompt[:asked], *(other.prompt for other in others)], codec)
    rng = random.Random(seed)
    return join_questions(lesson, asked, others, codec, rng, frame=frame, most=most, held_out=held_out)


def test_questions_are_not_joined_to_one_that_is_held_out(lesson: Group, rules: ChainRules) -> None:
    """Others are drawn instead; where there are none, the question stays as it is."""
    codec, own = rules.codec, "5 + 9 - 3 + 8"
    start = Group([*lesson.prompt, *codec.encode(" 5 + 9 = 14")], lesson.rationales, lesson.answer)
    others = questions(codec, "1 - 5 + 2", "7 + 8 - 6", "4 - 2 + 3")
    one = codec.encode_prompt(f"Question: {own} - 6 = ? Answer:")
    found = [joined_to(start, len(lesson.prompt), others, codec, seed, 1, one.__eq__) for seed in range(100)]
    assert {asked(joined, codec) for joined in found} == {own, f"1 - {own}", f"1 - {own} - 6"}
    assert all(joined.prompt[-7:] == start.prompt[-7:] for joined in found)
    for seed in range(20):
        assert joined_to(start, len(lesson.prompt), others, codec, seed, 1, lambda _: True) == start


def asked_in_lessons(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, steps: int, held_out: Sequence[Example] = ()
) -> tuple[list[str], set[str]]:
    """What is asked in the lessons of so many steps of an M-step with arithmetic's own settings, and which questions
    are demonstrated. `held_out`: test and validation questions besides some of arithmetic's own."""
    config = load_config(task="arithmetic")
    assert config.augmentation.concat_questions and config.augmentation.history_dropout
    task = tasks.load("arithmetic")
    codec = TextCodec(lm.tokenizer, stop=task.stop, allowed_characters=task.allowed_characters)
    rules = ChainRules(codec, [tools.load("calculator")], config.rollout.granularity, max_tokens=60)
    tests = {name: task.split(name, 200) for name in ("4-operands", "5-operands")} | {"own": list(held_out[::2])}
    data = task.load(data_request(config))
    data = replace(data, validation=(*data.validation, *held_out[1::2]))
    loop = method_class("em")(config, lm, task, data, tests, rules, rules)
    made: list[Group] = []

    def learned(lm: Any, adapter: Any, groups: list[Group], *_: Any, **__: Any) -> LikelihoodInfo:
        made.extend(groups)
        return LikelihoodInfo(0.0, 0.0)

    monkeypatch.setattr(likelihood, "likelihood_step", learned)
    records = [
        WeightedRationale(i, encode_rationale(example.z or "", rules)) for i, example in enumerate(data.demonstrations)
    ]
    loop.optimiser = cast(Any, object())
    for step in range(steps):
        loop.fine_tuning_step("p", records, config.m_step, step, sees_answer=False)
    return [asked(group, codec) for group in made], {example.question for example in data.demonstrations}


def test_no_lesson_has_a_question_of_another_share(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    found, own = asked_in_lessons(lm, monkeypatch, 60)
    assert all(share_of(question) == "train" for question in found)
    longer = [question for question in found if question not in own]
    assert len(longer) > 0.4 * len(found)
    assert {len(parse_question(question).operands) for question in longer} >= {4, 5, 6, 7, 8}


def test_no_lesson_is_a_test_or_validation_question(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the task itself cannot tell which are held out, as with a file of the user's."""
    monkeypatch.setattr(type(tasks.load("arithmetic")), "is_held_out", lambda self, text: False)
    found, own = asked_in_lessons(lm, monkeypatch, 30)
    joined = sorted(set(found) - own)
    held_out = [tasks.load("arithmetic").example(question) for question in joined[: len(joined) // 2]]
    again, _ = asked_in_lessons(lm, monkeypatch, 30, held_out)
    assert len(held_out) > 50 and not {example.question for example in held_out} & set(again)
    assert len(set(again) & set(joined)) > 20, "what is not held out is asked again"


def test_questions_are_joined_at_a_word_that_both_have(lesson: Group, rules: ChainRules) -> None:
    """Every outcome, of a lesson that goes on from a step and of a whole chain."""
    codec, own = rules.codec, "5 + 9 - 3 + 8"
    others = questions(codec, "1 - 5 + 2", "7 + 8 - 6", "4 - 2 + 3")
    found = {}
    for context in ("", " 5 + 9 = 14"):
        tokens = codec.encode(context)
        start = Group([*lesson.prompt, *tokens], lesson.rationales, lesson.answer)
        for seed in range(100):
            joined = joined_to(start, len(lesson.prompt), others, codec, seed, 1)
            assert not context or joined.prompt[-len(tokens) :] == tokens
            found[asked(joined, codec)] = (joined.answer == lesson.answer, joined.rationales[0].truncated)
    complete, open_end = (True, False), (False, True)
    assert found == {
        own: complete,
        f"1 - {own}": complete,
        f"{own} - 6": open_end,
        f"1 - {own} - 6": open_end,
    }


def test_a_joint_looks_like_any_other_place(lesson: Group, rules: ChainRules) -> None:
    """Two words stand side by side only where they do in one of the questions, and the own question is whole."""
    codec, own = rules.codec, "5 + 9 - 3 + 8"
    texts = ["1 - 5 + 2", "7 + 8 - 6 - 5", "4 - 2 + 3", "6 + 1 - 1 + 4"]
    known = {pair for text in [own, *texts] for pair in pairwise(text.split())}
    lengths = set()
    for seed in range(200):
        start = Group([*lesson.prompt, *codec.encode(" 5 + 9 = 14")], lesson.rationales, lesson.answer)
        others = questions(codec, *texts)
        joined = asked(joined_to(start, len(lesson.prompt), others, codec, seed, 3), codec)
        assert own in joined and set(pairwise(joined.split())) <= known
        lengths.add(len(joined.split()))
    assert min(lengths) == 7 and max(lengths) > 14


def test_nothing_is_joined_where_nothing_could_be_learned_of_it(lesson: Group, rules: ChainRules) -> None:
    """Before a first step nothing says where to begin; behind a last one nothing says how to go on."""
    codec, others = rules.codec, questions(rules.codec, "1 - 5 + 2", "7 + 8 - 6")
    nothing_left = replace(lesson, rationales=[encode_rationale("", rules)])
    for seed in range(20):
        whole = joined_to(lesson, len(lesson.prompt), others, codec, seed, 2)
        assert asked(whole, codec).startswith("5 + 9")
        last = joined_to(nothing_left, len(lesson.prompt), others, codec, seed, 2)
        assert asked(last, codec).endswith("3 + 8") and last.answer == lesson.answer
    strangers = questions(codec, "1 + 1")
    assert joined_to(lesson, len(lesson.prompt), strangers, codec, 0, 2) == lesson
    assert joined_to(lesson, len(lesson.prompt), [lesson], codec, 0, 2) == lesson


@pytest.mark.parametrize("operators", ["+-", "+-*"])
def test_joined_questions_have_the_steps_of_their_sum_but_not_of_a_product(rules: ChainRules, operators: str) -> None:
    """What `Task.can_be_joined` tells: behind a joined question, the steps that are learned are its first ones."""
    task, codec, rng = tasks.load("arithmetic"), rules.codec, random.Random(0)
    made = task.load(DataRequest(60, 0, 0, options={"operators": operators})).demonstrations
    prompts = [codec.encode_prompt(example.x) for example in made]
    lessons = [
        Group(prompt, [encode_rationale(example.z or "", rules)], codec.encode(example.y or ""))
        for prompt, example in zip(prompts, made, strict=True)
    ]
    wrong, joined, frame = 0, 0, frame_of(prompts, codec)
    # A batch may be small, and its questions end with the same operand by chance.
    chosen = [(lesson, rng.sample(lessons, n)) for n in (1, 2, 3, 8) for lesson in lessons for _ in range(10)]
    for lesson, others in [*chosen, *((lesson, lessons) for lesson in lessons)]:
        found = join_questions(
            lesson, len(lesson.prompt), others, codec, rng, frame=frame, most=2, held_out=nothing_is_held_out
        )
        if not found.answer:
            learned = [call.request for call in found.rationales[0].calls]
            right = [step.text for step in parse_question(codec.decode(found.prompt)).steps()]
            joined, wrong = joined + 1, wrong + (learned != right[: len(learned)])
    assert joined > 200
    assert (wrong == 0) == task.can_be_joined(made) == ("*" not in operators)


def test_gaps_are_before_words_and_steps_only(lesson: Group, rules: ChainRules) -> None:
    codec, (rationale,) = rules.codec, lesson.rationales
    seen, least = [0] * (len(lesson.prompt) + len(rationale)), 7
    for seed in range(200):
        gaps = leave_gaps(lesson, codec, random.Random(seed), share=0.3, largest=7).gaps
        assert len(gaps) == len(seen) and all(0 <= gap <= 7 for gap in gaps)
        seen = [max(a, b) for a, b in zip(seen, gaps, strict=True)]
        least = min(least, gaps[len(lesson.prompt)])
    n = len(lesson.prompt)
    for i, token in enumerate(lesson.prompt):
        piece = codec.pieces[token]
        assert seen[i] == (7 if piece.startswith(" ") else 0), piece
    starts = {0, *step_ends(rationale)} - {len(rationale)}
    assert {i for i, gap in enumerate(seen[n:]) if gap} == starts and max(seen[n:]) == 7
    assert least == 0, "some steps have none before them"


def test_a_varied_lesson_is_reproducible_and_one_without_shares_is_the_same(lesson: Group, rules: ChainRules) -> None:
    def varied(seed: int, share: float) -> Group:
        return vary(
            lesson,
            [lesson],
            rules.codec,
            random.Random(seed),
            frame=(0, 0),
            held_out=nothing_is_held_out,
            history_dropout=share,
            distractor_steps=2,
            concat_questions=1 if share else 0,
            gap_share=share,
        )

    assert varied(3, 1.0) == varied(3, 1.0) != varied(4, 1.0)
    assert varied(0, 0.0) is lesson


def test_gaps_change_positions_and_nothing_else(lesson: Group, rules: ChainRules, lm: LanguageModel) -> None:
    """Against a plain forward pass of the same tokens at those positions; and the same gap before all is no gap."""
    model, codec = lm.merged("p"), rules.codec
    (rationale,) = lesson.rationales
    gapped = leave_gaps(lesson, codec, random.Random(1), share=0.3, largest=9)
    assert any(gapped.gaps)
    scores = score(lm, model, [gapped], codec, answers_at="end", tool_tokens=True)
    tokens = [*lesson.prompt, *rationale.tokens, *lesson.answer]
    gaps = [*gapped.gaps, *[0] * len(lesson.answer)]
    positions = torch.tensor([gap + 1 for gap in gaps]).cumsum(0) - 1
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens]), position_ids=positions[None]).logits[0].float()
    n = len(lesson.prompt) + len(rationale)
    plain = logits[n - 1 : -1].log_softmax(-1).gather(1, torch.tensor(lesson.answer)[:, None]).sum()
    torch.testing.assert_close(scores.log_y[0, len(rationale)], plain, atol=1e-4, rtol=1e-4)
    straight = score(lm, model, [lesson], codec, answers_at="end").log_y[0, len(rationale)]
    assert abs(float(straight - plain)) > 1e-3


def test_trees_that_differ_in_positions_share_no_beginning(lesson: Group, rules: ChainRules, lm: LanguageModel) -> None:
    model, codec = lm.merged("p"), rules.codec
    groups = [leave_gaps(lesson, codec, random.Random(seed), share=0.3, largest=9) for seed in (1, 2)] + [lesson]
    together = score(lm, model, groups, codec, answers_at="end")
    for row, group in enumerate(groups):
        alone = score(lm, model, [group], codec, answers_at="end")
        torch.testing.assert_close(together.log_pf[row], alone.log_pf[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.log_y[row], alone.log_y[0], atol=1e-4, rtol=1e-4)


def test_gaps_of_several_rationales_are_refused(lesson: Group, rules: ChainRules, lm: LanguageModel) -> None:
    gapped = leave_gaps(lesson, rules.codec, random.Random(1), share=0.3, largest=9)
    twice = Group(gapped.prompt, [*gapped.rationales, *gapped.rationales], gaps=gapped.gaps)
    with pytest.raises(ValueError, match="single rationale"):
        score(lm, lm.merged("p"), [twice], rules.codec)
