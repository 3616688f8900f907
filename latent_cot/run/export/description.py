"""What there is to say of an exported reasoner: how it is used, what it was trained on, how good it is."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latent_cot import disk
from latent_cot.methods.method import Method
from latent_cot.methods.trouble import LOOK_PERFECT, has_one_chain
from latent_cot.model import weights
from latent_cot.run import schemas
from latent_cot.run.paths import train_files
from latent_cot.run.run_folder import RunFolder
from latent_cot.run.session import state_in
from latent_cot.types import Example, Reasoner, Tool, UsageError

_FOLDERS = re.compile(r"(?<![\w:/.])/(?:[^/\s]+/)+")
"""The folders of an absolute path."""
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

    @classmethod
    def of(cls, model: str) -> Base:
        """That of the configuration's `model`. Raises UsageError as `weights.resolve` does."""
        folder = weights.resolve(model)
        found = weights.provenance(folder)
        hub_id, revision = found.get("hub_id"), found.get("revision")
        licence = weights.LICENCE if hub_id == weights.HUB_ID else None
        if hub_id is None:
            return cls(folder, str(folder), False, None, "a local folder", licence, False)
        if "gguf_sha256" in found:
            text = (
                f"{found.get('source', '?')}: 4-bit weights, de-quantised (sha256 of the file: {found['gguf_sha256']})"
            )
            return cls(folder, hub_id, True, None, text, licence, True)
        return cls(folder, hub_id, True, revision, f"the hub, revision {revision}", licence, False)


def describe(
    loop: Method,
    reasoner: Reasoner,
    folder: RunFolder,
    examples: Sequence[Example],
    *,
    other_data: bool = False,
    other_model: bool = False,
    other_precision: bool = False,
) -> dict[str, Any]:
    """Everything but the weights: what the model card is made of and, but for the programs, `latent_cot.json`.

    Args:
        loop: with the run's adapters and its training data, see `reasoners.load`.
        examples: test questions, at least one.
        other_data: the loop's training data are not those that the run has learned from: nothing is said of them.
        other_model: its base model is not the one that the run was trained with.
        other_precision: it is loaded in another precision.

    Raises UsageError if it cannot be used by itself, or a portable form or the run's files are broken.
    """
    sampler = loop.sampler_of(reasoner)
    if sampler not in (None, reasoner):
        why = f"in this run it decides after the rationales of {sampler} and writes none"
        raise UsageError(f"--reasoner {reasoner}: {why}, so that it cannot answer by itself; export {sampler}")
    c, rules, codec = loop.config, loop.test_rules, loop.test_rules.codec
    prompt, fields, example = _prompt(loop, reasoner, examples[:_EXAMPLES])
    text = codec.prompt_text(loop.test_text(reasoner, examples[0]))
    files = train_files(c)
    candidates = [loop.task.candidates(one) for one in examples]
    split = {} if codec.chat else {"split_special_tokens": True}  # a chat template's own are in the text
    ids, plain = (list(loop.lm.tokenizer(text, add_special_tokens=one, **split)["input_ids"]) for one in (True, False))
    wanted = loop.test_prompt(reasoner, examples[0])
    # Without a finished run, the weights are those of the newest checkpoint, and may be later than the figures.
    finished = (folder.path / "results.json").exists()
    checkpoint = None if finished else folder.latest()
    if checkpoint is None:
        results = folder.results
    else:
        results = state_in(checkpoint).results()
        saved = {**results, "resources": checkpoint.state.get("resources")}
        disk.decoded(schemas.Results, saved, str(checkpoint.path / "state.json"))
    return {
        "task": loop.task.name,
        "task_description": loop.task.description,
        "reasoner": reasoner,
        **{name: getattr(c, name) for name in ("method", "q_sees", "seed", "rounds", "trust_remote_code")},
        "log_reward": loop.reward.name,
        # Of the weights as they are loaded: as they were trained and tested, unless `other_precision`.
        "dtype": str(loop.lm.dtype).removeprefix("torch."),
        "prompt": prompt,
        "fields": fields,
        "example": example,
        # Whether a prompt has the tokenizer's own special tokens; and, if not, those that it begins with.
        "special_tokens": ids == wanted,
        "begins": wanted[: -len(plain)] if ids != wanted and wanted[-len(plain) :] == plain else [],
        # Special tokens that the text of a prompt names are those tokens, of a chat template; else they are characters.
        "chat": codec.chat,
        "turn": _turn(loop, prompt) if codec.chat and fields != ["prompt"] else None,
        "stop": codec.pieces[codec.stop_id],
        "stop_id": codec.stop_id,
        "allowed_characters": loop.task.allowed_characters,
        "forbidden": _forbidden(loop),
        **{name: getattr(rules, name) for name in ("granularity", "step_delimiter", "min_tokens", "max_tokens")},
        "tools": [_tool(tool) for tool in rules.tools],
        "answer": _portable(loop.task, f"task {loop.task.name}", "answer", "text, result"),
        # Answer -> its text behind a chain; none where they differ from question to question.
        "candidates": candidates[0] if all(one == candidates[0] for one in candidates) else None,
        "candidates_differ": any(candidates) and any(one != candidates[0] for one in candidates),
        "judge": loop.judge_of(reasoner),
        "writes_rationales": sampler is not None,  # else the answer follows the question at once
        "other_data": other_data,
        "other_model": other_model,
        "other_precision": other_precision,
        # None: the data are others than those that it was trained on.
        "demonstrations": None if other_data else len(loop.data.demonstrations),
        "unlabelled": None if other_data else len(loop.data.unlabelled),
        "data_notes": [] if other_data else [_without_folders(note, files) for note in loop.data.notes],
        "data_files": [] if other_data else [_name(file) for file in files],
        "outcome": {"finished": finished, **_outcome(results, loop, reasoner)},
        "budget": results["budget"],
        "versions": folder.about.versions,
    }


def _collapsed(figures: Mapping[str, Any], *, own_reward: bool) -> dict[str, None]:
    """Nothing in place of figures that only look perfect."""
    return dict.fromkeys(LOOK_PERFECT) if has_one_chain(figures, own_reward=own_reward) else {}


def _name(file: str) -> str:
    """A file by its name only: where somebody keeps it is nobody else's business. Of what is no file, all of it."""
    return Path(file).name if Path(file).is_absolute() else file


def _without_folders(text: str, files: Sequence[str]) -> str:
    """A text in which no file has its folder. `files`: those that it may name; spaces are part of their names."""
    for file in files:
        text = text.replace(file, _name(file))
    return _FOLDERS.sub("", text)


def _prompt(
    loop: Method, reasoner: Reasoner, examples: Sequence[Example]
) -> tuple[str, list[str], str | tuple[str, str]]:
    """The form of a test prompt, its fields, and an example of them: found by putting the question, and the answer,
    of one example in, and kept if it gives the prompts of all."""
    first = examples[0]
    prompts = [loop.test_rules.codec.prompt_text(loop.test_text(reasoner, example)) for example in examples]
    texts = (prompts[0], first.question, first.answer or "")
    prompt, question, answer = (text.replace("{", "{{").replace("}", "}}") for text in texts)
    before, _, after = prompt.rpartition(question or "\0")
    head, _, tail = after.rpartition(answer or "\0")  # which is in no prompt
    forms: list[tuple[str, list[str], str | tuple[str, str]]] = [
        (f"{before}{{question}}{after}", ["question"], first.question),
        (f"{before}{{question}}{head}{{answer}}{tail}", ["question", "answer"], (first.question, first.answer or "")),
    ]
    for found in forms if question else []:
        if [found[0].format(question=e.question, answer=e.answer) for e in examples] == prompts:
            return found
    return "{prompt}", ["prompt"], prompts[0]


def _turn(loop: Method, prompt: str) -> tuple[str, str, str]:
    """Of a chat template's prompt what stands before the user's turn, the form of that turn, and what stands behind it:
    the run encodes each by itself where a question names a special token."""
    head, tail = loop.test_rules.codec.around_turn
    before, behind = (text.replace("{", "{{").replace("}", "}}") for text in (head, tail))
    return head, prompt.removeprefix(before).removesuffix(behind), tail


def _forbidden(loop: Method) -> list[int]:
    """Tokens of the model that a chain may not have: special ones, and what the task does not allow."""
    model: Any = loop.lm.peft.get_base_model()
    every = range(model.config.get_text_config().vocab_size)  # those that no text has too
    return sorted(set(every) - set(loop.test_rules.codec.actions.tolist()))


def _tool(tool: Tool) -> dict[str, Any]:
    """A tool that chains call: its `function` is in the Python source `portable`, or is left to the reader to write."""
    function = tool.name.replace("-", "_")
    source = _portable(tool, f"tool {tool.name}", function, "text")
    todo = f"write here what the tool {tool.name} does: the text to put behind `text`"
    blank = f'def {function}(text: str) -> str | None:\n    raise NotImplementedError("{todo}")'
    form = {"name": tool.name, "description": tool.description, "trigger": tool.trigger}
    return {**form, "function": function, "portable": source or blank, "is_left_to_write": source is None}


def _portable(owner: object, name: str, function: str, arguments: str) -> str | None:
    """The portable form of a task or a tool. Raises UsageError if it does not define the function."""
    source: str | None = getattr(owner, "portable", None)
    if source is None:
        return None
    with suppress(SyntaxError):
        if function in [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]:
            return source
    raise UsageError(f"{name}: its `portable` must define {function}({arguments}), see that of types.Task and .Tool")


def _outcome(results: Mapping[str, Any], loop: Method, reasoner: Reasoner) -> dict[str, Any]:
    """What the run found out about this reasoner in its last tested round; None: nothing was evaluated yet."""
    accuracy = results.get("accuracy", {})
    metrics = results.get("metrics", {})
    tested = [int(n) for found in (accuracy, metrics) for n, of_round in found.items() if reasoner in of_round]
    number = max(tested, default=None)
    posterior = results.get("posterior", {}).get(str(number), {})
    evaluation, own = loop.config.evaluation, loop.task.has_own_reward
    usual = {name: getattr(evaluation, name) for name in ("max_tokens", "votes", "temperature")}
    return {
        "round": number,
        **{
            kind: {_name(split): of for split, of in found.get(str(number), {}).get(reasoner, {}).items()}
            for kind, found in (("accuracy", accuracy), ("metrics", metrics))
        },
        "posterior": {
            when: {**posterior[when], **_collapsed(posterior[when], own_reward=own)}
            for when in ("before", "after")
            if when in posterior
        },
        "taken_back": [phase for of_round, phase in results.get("taken_back", ()) if of_round == number],
        "decoding": results.get("decoding") or usual,
    }
