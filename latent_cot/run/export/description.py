"""What there is to say of an exported reasoner: how it is used, what it was trained on, how good it is."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latent_cot.methods.loop import Loop
from latent_cot.model import weights
from latent_cot.model.lm import Adapter
from latent_cot.run.run_folder import RunFolder
from latent_cot.run.session import state_in
from latent_cot.types import Example, Task, Tool, UsageError

_EXAMPLES = 50
"""Examples that a prompt's form must hold for."""


@dataclass(frozen=True)
class Base:
    """The base model of an export."""

    folder: Path
    """Where it is on this machine."""
    name: str
    """What others load it by: its name on the hub, or `folder`."""
    on_hub: bool
    revision: str | None
    """The snapshot on the hub; None: not known, or not from there."""
    source: str
    """Where these weights came from, in words."""
    licence: str | None
    """As the hub abbreviates it, e.g. `"apache-2.0"`; None: not known on this machine."""
    dequantised: bool
    """Whether they are an approximation of the weights on the hub."""

    @property
    def short_name(self) -> str:
        return Path(self.name).name

    @classmethod
    def of(cls, model: str) -> Base:
        """That of the configuration's `model`. Raises UsageError as `weights.resolve` does."""
        folder = weights.resolve(model)
        found = weights.provenance(folder)
        hub_id, revision, licence = found.get("hub_id"), found.get("revision"), weights.licence(folder)
        if hub_id is None:
            return cls(folder, str(folder), False, None, "a local folder", licence, False)
        if "gguf_sha256" in found:
            text = f"{found['source']}: 4-bit weights, de-quantised (sha256 of the file: {found['gguf_sha256']})"
            return cls(folder, hub_id, True, None, text, licence, True)
        return cls(folder, hub_id, True, revision, f"the hub, revision {revision}", licence, False)


@dataclass(frozen=True)
class ToolForm:
    """A tool that chains call."""

    name: str
    description: str
    trigger: str
    function: str
    """The name of its function in `portable`."""
    portable: str
    """Python source, see `types.Tool`."""
    is_left_to_write: bool = False
    """The tool has no portable form: the source is a function for the reader to fill in."""


@dataclass(frozen=True)
class Outcome:
    """What the run found out about this reasoner."""

    finished: bool
    """If not, the weights are those of the newest checkpoint, and may be later than the figures."""
    round: int | None
    """Of the figures; None: nothing was evaluated yet."""
    accuracy: Mapping[str, Mapping[str, Any]]
    """Split -> `Accuracy.to_json()`."""
    metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """Split -> metric -> `measure.Figure.to_json()`."""
    posterior: Mapping[str, Mapping[str, float]]
    """"before" and "after" q's training in that round -> figure -> its mean over the validation questions."""
    decoding: Mapping[str, Any]
    """How the tests were decoded."""


@dataclass(frozen=True)
class Description:
    """Everything but the weights."""

    task: str
    task_description: str
    reasoner: Adapter
    method: str
    q_sees: str
    """What q sees: "question", or "question-and-answer"."""
    own_reward: bool
    """Whether the task has a reward of its own, instead of p(X Z Y)."""
    seed: int
    rounds: int
    dtype: str
    """Of the weights with which it was trained and tested, e.g. `"bfloat16"`."""
    trust_remote_code: bool

    prompt: str
    """With {question} and, where the answer is given, {answer}; `"{prompt}"` if no such form was found."""
    fields: tuple[str, ...]
    example: str | tuple[str, str]
    """A test question, in the form that these fields ask for."""
    special_tokens: bool
    """Whether a prompt begins with the tokenizer's special tokens, where it has some."""
    stop: str
    stop_id: int
    allowed_characters: str | None
    forbidden: tuple[int, ...]
    """Tokens that the task does not allow although they are made of allowed characters."""
    granularity: str
    step_delimiter: str | None
    min_tokens: int
    max_tokens: int
    tools: tuple[ToolForm, ...]
    answer: str | None
    """Python source of `answer`, see `types.Task.portable`; None: not read off the chain by a portable function."""
    candidates: Mapping[str, str] | None
    """Answer -> its text behind a chain, if the answer is the likeliest of a few."""
    judge: str
    """By which model: "p", the one that is exported, or "base"."""
    writes_rationales: bool
    """If not, the answer follows the question at once."""

    demonstrations: int
    unlabelled: int
    data_notes: tuple[str, ...]
    data_files: tuple[str, ...]
    """Names, without folders, of the files that the examples came from."""
    outcome: Outcome
    budget: Mapping[str, float]
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Without the programs, which are in the model card, and the tokens that are in the generation settings."""
        record = asdict(self)
        del record["answer"], record["forbidden"]
        for tool in record["tools"]:
            del tool["portable"], tool["function"], tool["is_left_to_write"]
        return record


def describe(loop: Loop, reasoner: Adapter, folder: RunFolder, examples: Sequence[Example]) -> Description:
    """Gather it.

    Args:
        loop: with the run's adapters and its training data, see `reasoners.load`.
        examples: test questions, at least one.

    Raises UsageError if it cannot be used by itself, or a portable form or the run's files are broken.
    """
    sampler = loop.sampler_of(reasoner)
    if sampler not in (None, reasoner):
        raise UsageError(
            f"--reasoner {reasoner}: in this run it decides after the rationales of {sampler} and writes none, so that "
            f"it cannot answer by itself; export {sampler}"
        )
    c, rules, codec = loop.config, loop.test_rules, loop.test_rules.codec
    prompt, fields, example = _prompt(loop, reasoner, examples[:_EXAMPLES])
    text = loop.test_text(reasoner, examples[0])
    special = list(loop.lm.tokenizer(text)["input_ids"]) == codec.encode_prompt(text)
    results, finished = _results(folder)
    about = folder.read_json("run.json")
    files = [Path(name.strip()) for name in (c.data.train_file or "").split(",") if name.strip()]
    return Description(
        task=loop.task.name,
        task_description=loop.task.description,
        reasoner=reasoner,
        method=c.method,
        q_sees=c.q_sees,
        own_reward=loop.task.has_own_reward,
        seed=c.seed,
        rounds=c.rounds,
        dtype=str(next(loop.lm.peft.get_base_model().parameters()).dtype).removeprefix("torch."),
        trust_remote_code=c.trust_remote_code,
        prompt=prompt,
        fields=fields,
        example=example,
        special_tokens=special,
        stop=codec.pieces[codec.stop_id],
        stop_id=codec.stop_id,
        allowed_characters=loop.task.allowed_characters,
        forbidden=_forbidden(loop),
        granularity=rules.granularity,
        step_delimiter=rules.step_delimiter,
        min_tokens=rules.min_tokens,
        max_tokens=rules.max_tokens,
        tools=tuple(_tool(tool) for tool in rules.tools),
        answer=_answer_source(loop),
        candidates=_candidates(loop, examples),
        judge=loop.judge_of(reasoner),
        writes_rationales=sampler is not None,
        demonstrations=len(loop.data.demonstrations),
        unlabelled=len(loop.data.unlabelled),
        data_notes=tuple(_without_folders(note, files) for note in loop.data.notes),
        data_files=tuple(path.name for path in files),
        outcome=_outcome(results, reasoner, finished),
        budget=results["budget"],
        versions=about["versions"],
    )


def _prompt(
    loop: Loop, reasoner: Adapter, examples: Sequence[Example]
) -> tuple[str, tuple[str, ...], str | tuple[str, str]]:
    """The form of a test prompt, its fields, and an example of them: found by putting the question, and the answer,
    of one example in, and kept if it gives the prompts of all."""
    first = examples[0]
    prompts = [loop.test_text(reasoner, example) for example in examples]
    escaped = prompts[0].replace("{", "{{").replace("}", "}}")
    question = first.question.replace("{", "{{").replace("}", "}}")
    before, _, after = escaped.rpartition(question)
    form = f"{before}{{question}}{after}"
    if question and all(form.format(question=e.question) == p for e, p in zip(examples, prompts, strict=True)):
        return form, ("question",), first.question
    head, _, tail = after.rpartition((first.answer or "").replace("{", "{{").replace("}", "}}"))
    form = f"{before}{{question}}{head}{{answer}}{tail}"
    if question and all(
        form.format(question=e.question, answer=e.answer) == p for e, p in zip(examples, prompts, strict=True)
    ):
        return form, ("question", "answer"), (first.question, first.answer or "")
    return "{prompt}", ("prompt",), prompts[0]


def _forbidden(loop: Loop) -> tuple[int, ...]:
    if type(loop.task).allows is Task.allows:
        return ()
    codec = loop.test_rules.codec
    characters = None if loop.task.allowed_characters is None else set(loop.task.allowed_characters)
    choices = {*codec.actions.tolist(), *loop.lm.tokenizer.all_special_ids}
    return tuple(
        token
        for token, piece in enumerate(codec.pieces)
        if token not in choices and (characters is None or (piece and set(piece) <= characters))
    )


def _tool(tool: Tool) -> ToolForm:
    function = tool.name.replace("-", "_")
    portable = getattr(tool, "portable", None)
    if portable is None:
        source = (
            f"def {function}(text: str) -> str | None:\n"
            f'    raise NotImplementedError("write here what the tool {tool.name} does: the text to put behind `text`")'
        )
        return ToolForm(tool.name, tool.description, tool.trigger, function, source, is_left_to_write=True)
    if function not in _functions(portable):
        raise UsageError(f"tool {tool.name}: its `portable` must define a function {function}(text), see types.Tool")
    return ToolForm(tool.name, tool.description, tool.trigger, function, portable)


def _answer_source(loop: Loop) -> str | None:
    if loop.task.portable is not None and "answer" not in _functions(loop.task.portable):
        raise UsageError(f"task {loop.task.name}: its `portable` must define answer(text, result), see types.Task")
    return loop.task.portable


def _functions(source: str) -> set[str]:
    try:
        return {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    except SyntaxError:
        return set()


def _candidates(loop: Loop, examples: Sequence[Example]) -> Mapping[str, str] | None:
    """None too where they differ from question to question."""
    found = [loop.task.candidates(example) for example in examples[:_EXAMPLES]]
    return found[0] if all(one == found[0] for one in found) else None


def _without_folders(text: str, files: Sequence[Path]) -> str:
    """Where somebody keeps a file is nobody else's business."""
    for path in files:
        text = text.replace(str(path), path.name)
    return text


def _results(folder: RunFolder) -> tuple[dict[str, Any], bool]:
    """Those of the run, or of its newest checkpoint; and whether it is finished."""
    if (folder.path / "results.json").exists():
        return folder.read_json("results.json"), True
    checkpoint = folder.latest()
    assert checkpoint is not None  # its adapters have been loaded
    return state_in(checkpoint).results(), False


def _outcome(results: Mapping[str, Any], reasoner: Adapter, finished: bool) -> Outcome:
    accuracy, metrics = results.get("accuracy", {}), results.get("metrics", {})
    tested = [int(n) for found in (accuracy, metrics) for n, of_round in found.items() if reasoner in of_round]
    number = max(tested, default=None)
    posterior = results.get("posterior", {}).get(str(number), {})
    return Outcome(
        finished=finished,
        round=number,
        accuracy=accuracy.get(str(number), {}).get(reasoner, {}),
        metrics=metrics.get(str(number), {}).get(reasoner, {}),
        posterior={when: posterior[when] for when in ("before", "after") if when in posterior},
        decoding=results.get("decoding", {}),
    )
