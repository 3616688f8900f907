"""What is looked at before a run begins: tools that nothing calls, demonstrations that arrive nowhere, and the like."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from latent_cot import tasks, tools
from latent_cot.config.methods import FEWEST_TO_JUDGE, METHODS, has_safeguard, shows_demonstrations
from latent_cot.config.schema import DataConfig, RunConfig, data_request, tested_splits, tool_names
from latent_cot.evaluation.splits import splits_of
from latent_cot.tasks.common import name_of
from latent_cot.types import Example, Sweep, Task, TaskData, Tool, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from latent_cot.model.limits import Limit
    from latent_cot.model.text import TextCodec
    from latent_cot.rationales.chain import ChainRules


MAX_TOKENS = 100_000
"""Up to which the tokens of a demonstration are counted."""


@dataclass(frozen=True)
class Examples:
    """What a run learns from and is tested with."""

    task: Task
    tools: Sequence[Tool]
    data: TaskData
    tests: Mapping[str, Sequence[Example]]
    notes: Sequence[str]
    """Sentences the user should see."""


def load_examples(config: RunConfig, *, load_data: bool = True) -> Examples:
    """Load the task, its tools and, unless `load_data` is false, its data. No torch is imported for it: whoever has bad
    rows need not wait for a model. Raises UsageError for whatever the user can put right."""
    task = tasks.load(config.task, config.data.options)
    if not METHODS[config.method].reasoners(config, task.answer_given):
        why = f"the tests of {task.name} do not give the answer, which q would have to read, and there is nobody else"
        raise UsageError(f"--q-sees {config.q_sees}: {why} to test; give --q-sees question")
    names = tool_names(config, task)
    chain_tools = [tools.load(name) for name in names]
    if not load_data:
        return Examples(task, chain_tools, TaskData((), (), ()), {}, ())
    task.require()
    data = task.load(data_request(config))
    check_tools(task, names, chain_tools)
    notes = [*data.notes, *check_examples(task, data, config.data)]
    seen = [*data.demonstrations, *data.unlabelled, *data.validation]
    size = config.evaluation.size
    named = [Sweep(name, (), {name: {}}) for name in tested_splits(config, task)]
    splits = splits_of(task, named, size=size, seen=seen) if named else {}
    notes += [
        f"Split {name}: {s.dropped} questions of training or validation were dropped."
        for name, s in splits.items()
        if s.dropped
    ]
    ways = config.decode.strategy if config.method == "decode" else "sample"
    n = config.evaluation.samples or task.samples
    if task.is_measured and n > 1 and config.evaluation.temperature == 0 and "beam" not in ways:
        notes.append(f"All {n} rationales of a test question will be the same one: --evaluation.temperature is 0.")
    judges = min(len(data.validation), config.evaluation.diagnostics)
    if has_safeguard(config) and config.rounds and judges < FEWEST_TO_JUDGE:
        why = f"judging takes {FEWEST_TO_JUDGE} validation questions, and it has {judges or 'none'}"
        flags = "--data.validation, --evaluation.diagnostics"
        notes.append(f"Training that does harm will not be taken back: {why} ({flags}).")
    notes += _on_what_q_sees(config, task, data)
    if shows_demonstrations(config) and 0 < (there_are := len(data.demonstrations)) < config.shots:
        notes.append(f"--shots {config.shots}: the prompt shows {there_are} demonstrations, which are all there are.")
    return Examples(task, chain_tools, data, {name: split.examples for name, split in splits.items()}, notes)


def _on_what_q_sees(config: RunConfig, task: Task, data: TaskData) -> Iterator[str]:
    """A sentence where q reads the answer, so that p writes the rationales of tests, and has not learned to."""
    spec, remedy = METHODS[config.method], "in tests p writes them, unless --q-sees question lets q do it"
    if not spec.trains_q or config.q_sees == "question" or task.answer_given:
        return
    if spec.draws and spec.reads(config, "m_step.target") and config.m_step.target != "joint":
        yield f"p only learns to decide, after rationales of a q that has read the answer: {remedy}."
    elif task.has_own_reward and all(one.answer is None for one in data.unlabelled):
        yield f"There is no answer that q could read before its rationales: {remedy}."


def check_examples(task: Task, data: TaskData, asked: DataConfig) -> list[str]:
    """A sentence on how many there are, if that is fewer than were asked for, and on what is odd about them.

    Raises UsageError if there are none, and for one without an answer, which is what a method learns from.
    """
    parts = {"demonstrations": data.demonstrations, "unlabelled": data.unlabelled, "validation": data.validation}
    if not (data.demonstrations or data.unlabelled):
        why = " ".join(data.notes) or "look at the task's `load` and at its data"
        raise UsageError(f"{task.name} has no examples to train with: {why}")
    for part, examples in parts.items():
        for example in examples:
            if example.y is None and not task.has_own_reward:
                lacks = "its `y`, the answer as p writes it, is missing" if example.answer else "no answer"
                raise UsageError(f"{name_of(example)}: {lacks}, and --data.{part} need one; add it, or leave it out")
            if part == "demonstrations" and example.z is None:
                raise UsageError(f"{name_of(example)}: a demonstration without a rationale; give it its `z`")
            candidates = task.candidates(example)
            if candidates is not None and example.answer is not None and example.answer not in candidates:
                raise UsageError(f"{name_of(example)}: its answer {example.answer!r} is none of {sorted(candidates)}")
    fewer = [f"{len(e)} of {n} {part}" for part, e in parts.items() if len(e) < (n := getattr(asked, part))]
    notes = [f"There are {', '.join(fewer)}."] if fewer else []
    if more := [f"{len(e)} {part} ({n})" for part, e in parts.items() if len(e) > (n := getattr(asked, part))]:
        notes.append(f"The task gives more than was asked for: {', '.join(more)}.")
    answers = defaultdict[str, set[str | None]](set)
    for example in (*data.demonstrations, *data.unlabelled):
        answers[example.x].add(example.answer)
    if several := [example for example in data.unlabelled if len(answers[example.x]) > 1]:
        first = f"the first is {name_of(several[0])}"
        notes.append(f"{len(several)} training examples have a question that has another answer elsewhere: {first}.")
    learned = {example.x for example in (*data.demonstrations, *data.unlabelled)}
    known = [example for example in data.validation if example.x in learned]
    if known and not task.one_question:
        first = f"the first is {name_of(known[0])}"
        notes.append(f"{len(known)} validation questions are training questions, and say nothing of others: {first}.")
    notes += _joints(task, data)
    if spaced := [example for part in parts.values() for example in part if example.x.endswith(" ")]:
        why = "to most models a word after a space is another than one with a space in it"
        notes.append(f"{len(spaced)} prompts end with a space ({why}): the first is {name_of(spaced[0])}.")
    return notes


def _joints(task: Task, data: TaskData) -> Iterator[str]:
    """Sentences on what stands where X, Z and Y meet, and on Y that cannot be told from each other."""
    examples = [*data.demonstrations, *data.unlabelled]
    bare = [one for one in data.demonstrations if one.z and one.z[0].isalnum() and one.x[-1:].strip()]
    if bare and not task.chat:
        why = "most models would begin it with a space, and another token"
        yield f"{len(bare)} rationales begin directly behind the question ({why}): the first is {name_of(bare[0])}."
    if joined := [one for one in examples if one.y and one.y[0].isalnum()]:
        why = "a space, or the stop, is missing"
        yield f"{len(joined)} `y` begin directly behind the rationale ({why}): the first is {name_of(joined[0])}."
    if task.has_own_reward:
        return
    if empty := [one for one in examples if one.y is not None and not one.y.strip()]:
        why = "any rationale explains it"
        yield f"{len(empty)} `y` have no text ({why}): the first is {name_of(empty[0])}."
    answers = {one.answer for one in examples}
    if len(answers) > 1 and len({one.y for one in examples}) == 1:
        yield f"All `y` are the same, of {len(answers)} answers: p would learn nothing of these."


def check_tools(task: Task, names: Sequence[str], chain_tools: Sequence[Tool]) -> None:
    """Raises UsageError for a tool that no chain of the task could call."""
    triggers: dict[str, str] = {}
    for name, tool in zip(names, chain_tools, strict=True):
        it = f"--rollout.tools {name}: its trigger {tool.trigger!r}"
        for trigger, other in triggers.items():
            if trigger in tool.trigger or tool.trigger in trigger:  # the shorter one would be called before the other
                raise UsageError(f"{it} and that of {other}, {trigger!r}, cannot be told apart; leave one out")
        triggers[tool.trigger] = name
        strange = [c for c in tool.trigger if task.allowed_characters is not None and c not in task.allowed_characters]
        if strange:
            which = f"{strange[0]!r}, which is not among the characters of a rationale of {task.name}"
            remedy = "give the tool another trigger, or leave it out"
            if name in task.tools:
                it, remedy = (
                    f"{task.name}: the trigger {tool.trigger!r} of its tool {name}",
                    "add it to allowed_characters",
                )
            raise UsageError(f"{it} has {which}; {remedy}")


def codec_of(tokenizer: PreTrainedTokenizerBase, task: Task, chain_tools: Sequence[Tool]) -> TextCodec:
    """How a tokenizer reads and writes the texts of a task, with these tools."""
    from latent_cot.model.text import TextCodec

    return TextCodec(
        tokenizer,
        stop=task.stop,
        allowed_characters=task.allowed_characters,
        allows=task.allows,
        triggers=[tool.trigger for tool in chain_tools],
        chat=task.chat,
        opening=task.opening,
    )


def check_triggers(rules: ChainRules) -> None:
    """Raises UsageError for a tool's trigger, or the delimiter of steps, that no token of a rationale can end: to this
    tokenizer a character that is allowed may be several tokens, which are not."""
    chosen, why = rules.allowed[False], "no token that a rationale may have with this model ends"
    for tool in rules.tools:
        if rules.asking[tool.trigger].isdisjoint(chosen):
            remedy = "give the tool another trigger, leave it out (--rollout.tools), or take another --model"
            raise UsageError(f"tool {tool.name}: {why} its trigger {tool.trigger!r}; {remedy}")
    delimiter = rules.step_delimiter if rules.granularity == "step" else None
    if delimiter is not None and rules.delimiting.isdisjoint(chosen):
        remedy = "give the task another one, --rollout.granularity token, or another --model"
        raise UsageError(f"{why} the task's step_delimiter {delimiter!r}; {remedy}")


def check_lengths(config: RunConfig, found: Examples, rules: ChainRules, limit: Limit | None) -> list[str]:
    """A sentence on questions behind which the longest rationale, or what tools put into it, has no room.

    Raises UsageError where a question and its answer alone are longer than a text may be: it could come up hours after
    a run has begun."""
    from latent_cot.rationales.chain import MAX_RESULT_TOKENS

    if limit is None:
        return []
    codec, max_tokens = rules.codec, max(config.rollout.max_tokens, config.evaluation.max_tokens)
    most, narrow, tight = f"the model's texts have {limit.tokens} at most ({limit.reason})", 0, 0
    before = _shown_tokens(config, found.data, codec)
    for example, given in _asked(config, found):
        tokens = before + len(codec.encode_prompt(example.x)) + len(codec.encode(example.y or ""))
        if given:
            shown = before if found.task.answer_given else 0
            tokens = max(tokens, shown + len(codec.encode_prompt(found.task.posterior_prompt(example))))
        if tokens >= limit.tokens:
            fewer = "give fewer --shots, " if before else ""
            remedy = f"{fewer}take the question out, or give another model"
            raise UsageError(f"{name_of(example)} has {tokens} tokens, without a rationale, and {most}; {remedy}")
        narrow += tokens + max_tokens > limit.tokens
        tight += tokens + max_tokens + MAX_RESULT_TOKENS > limit.tokens
    said = ""
    if narrow:
        why = f"behind {narrow} questions there is no room for a rationale of {max_tokens} tokens"
        shots = ", --shots" if before else ""
        ends = f"and one that fills it ends the run (--rollout.max-tokens, --evaluation.max-tokens{shots})"
        said = f"In tokens, {most}: {why}, {ends}."
    if tight and rules.tools:
        why = f"What a tool puts in, {MAX_RESULT_TOKENS} tokens at most a call, counts too"
        so = "" if narrow else f", of {limit.tokens} ({limit.reason}): --rollout.max-tokens, --evaluation.max-tokens"
        said += f"{' ' if said else ''}{why}, and behind {tight} questions a full rationale leaves less room{so}."
    return [said] if said else []


def _shown_tokens(config: RunConfig, data: TaskData, codec: TextCodec) -> int:
    """Tokens of the demonstrations before each question that p reads, without the tools' results."""
    if not shows_demonstrations(config):
        return 0
    shown = (data.demonstrations or data.unlabelled)[: config.shots]
    return sum(len(codec.encode(f"{one.x}{one.z or ''}{one.y or ''}\n")) for one in shown)


def _asked(config: RunConfig, found: Examples) -> Iterator[tuple[Example, bool]]:
    """Each question, and whether somebody reads its answer with it: q in training, or a reasoner in tests."""
    data, to_q = found.data, config.q_sees == "question-and-answer" and METHODS[config.method].trains_q
    for part in (data.demonstrations, data.unlabelled, data.validation):
        yield from ((example, to_q) for example in part)
    for split in found.tests.values():
        yield from ((example, found.task.answer_given) for example in split)


def long_prompts(
    config: RunConfig, data: TaskData, examples: Iterable[Example], codec: TextCodec, positions: int | None
) -> Iterator[str]:
    """A sentence on prompts, with the demonstrations that they show, that are longer than the texts that the model was
    trained with, where it can read them.

    Args:
        positions: how many tokens these had at most, as its configuration says.
    """
    if positions is None:
        return
    room = positions - _shown_tokens(config, data, codec)
    # A token has a byte or more, and a chat template some dozens.
    may_be = [example.x for example in examples if len(example.x.encode()) + 64 > room]
    if n := sum(len(codec.encode_prompt(x)) > room for x in may_be):
        yield f"The prompts of {n} questions have more tokens than the model's max_position_embeddings, {positions}."


def check_demonstrations(
    task: Task, examples: Sequence[Example], rules: ChainRules, *, what: str = "demonstrations"
) -> list[str]:
    """A sentence on those that do not arrive at their own answer; none, if all do.

    Raises UsageError for one that q could not write, and if none arrives. `what`: these are, in words.
    """
    from latent_cot.rationales.chain import encode_rationale

    rationales = []
    for example in examples:
        try:
            rationales.append(encode_rationale(example.z or "", replace(rules, max_tokens=MAX_TOKENS)))
        except UsageError as error:
            source = example.meta.get("source")
            raise UsageError(f"{source}: {error}" if source else str(error)) from error
    tokens = [sum(rationale.policy_mask) for rationale in rationales]
    if longest := max((n for n in tokens if n > rules.max_tokens), default=0):
        n = sum(n > rules.max_tokens for n in tokens)
        long = f"{n} of {len(tokens)} {what} have more than {rules.max_tokens} tokens"
        which = name_of(examples[tokens.index(longest)])
        # One more: what is as long as may be is stopped by force, and teaches no stop.
        remedy = f"raise --rollout.max-tokens, to {longest + 1} for all"
        raise UsageError(f"{long}: {remedy}; the longest is that of {which}")
    full = [example for example, n in zip(examples, tokens, strict=True) if n == rules.max_tokens]
    why = f"have {rules.max_tokens} tokens, as many as a rationale may have, and teach no stop"
    remedy = f"--rollout.max-tokens {rules.max_tokens + 1} mends it; the first is that of"
    notes = [f"{len(full)} of {len(tokens)} {what} {why}: {remedy} {name_of(full[0])}."] if full else []
    if task.is_measured or task.has_own_reward or any(map(task.candidates, examples)):
        return notes  # there is no answer to be read off a rationale
    answers = [task.answer(rationale) for rationale in rationales]
    wrong = [k for k, example in enumerate(examples) if not task.grade(example, answers[k])]
    if not wrong:
        return notes
    example, answer = examples[wrong[0]], answers[wrong[0]]
    first = f"{example.asked!r} at {answer!r}, not at {example.answer!r}{_failed(task)}"
    if len(wrong) > len(examples) / 2:
        remedy = "look at the task's `answer` and `grade`, and at the examples' `z` and `answer`"
        some = "no demonstration" if len(wrong) == len(examples) else f"{len(wrong)} of {len(examples)} demonstrations"
        what = "arrives at its" if len(wrong) == len(examples) else "do not arrive at their"
        raise UsageError(f"{some} of {task.name} {what} own answer: {first}; {remedy}")
    return [*notes, f"{len(wrong)} of {len(examples)} demonstrations do not arrive at their own answer: {first}."]


def _failed(task: Task) -> str:
    """What the functions of a task of the user's own have done instead of answering: without it there is no answer."""
    failures = getattr(getattr(task, "guard", None), "failures", {})
    what = ", ".join(f"`{member}` gave {kind}" for member, kind in failures if member in ("answer", "grade"))
    return f" ({what})" if what else ""
