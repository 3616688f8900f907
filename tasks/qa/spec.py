"""What a `qa` task can be told: one schema for a YAML file and for `--data.options`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import regex
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from latent_cot import disk, tools
from latent_cot.tasks.files import in_full
from latent_cot.types import UsageError, did_you_mean

MAX_BYTES = 2**16
"""Of a YAML file."""
FOREIGN = {
    "dataset_path": "data",
    "dataset": "data",
    "training_split": "data",
    "test_split": "test",
    "doc_to_text": "prompt",
    "input": "question",
    "doc_to_target": "answer",
    "target": "answer",
    "doc_to_choice": "choices",
    "filter_list": "extract",
    "metric_list": "grade",
    "scorer": "grade",
    "until": "stop",
}
"""What lm-eval and inspect_ai call it -> what it is called here."""
FIELD = re.compile(r"\{\{?\s*(\w+)\s*\}?\}")
"""A column in a text that is filled."""
GRADES = ("exact", "text", "number")
_EXTRACT = re.compile(r"last-number|last-result|choice|(?:after|regex):.+", re.DOTALL)


def _listed(value: Any) -> Any:
    """Flags write a list with commas."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


Listed = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class Spec(BaseModel):
    """The settings of a task of questions and answers. All have defaults but `data`."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    data: Listed = ()
    """Where the rows are: files, folders, or data sets of the hub."""
    test: str = "0.2"
    """The test questions: files likewise, or a share of `data`."""
    split_column: str | None = None
    """The column that says which rows are for `train`, `validation` and `test`, instead."""
    skip_bad: bool = False
    """Leave out and count rows that cannot be used, instead of refusing the data."""

    question: str = "question"
    """The column of the question ..."""
    answer: str = "answer"
    """... that of its right answer ..."""
    rationale: str | None = "rationale"
    """... that of a rationale, which need not be there ..."""
    choices: str | Listed | None = None
    """... and that of its choices; or a list of choices, the same for all questions."""
    answer_marker: str | None = None
    """In the column of the answer, the text between a rationale and the answer: `####` in GSM8K."""

    prompt: str | None = None
    """What the model reads: `{column}` stands for what a row has there."""
    target: str = "The answer is {answer}."
    """What follows a rationale: it is likely behind a good one."""
    chat: bool = True
    """Put the prompt through the model's own chat template, if it has one: the rationale is the assistant's turn."""
    opening: str = ""
    """How the assistant's turn begins, such as `<think>`. With a chat template only."""

    extract: Annotated[str, Field(pattern=_EXTRACT.pattern)] | None = None
    """How the answer is read off a rationale: `last-result` of a tool, `last-number`, `after:TEXT`, `regex:PATTERN`, or
    the likeliest `choice` behind it. Default: the last result if there are tools, a choice if there are choices, else
    what follows `So the answer is`."""
    grade: str | None = None
    """When an answer is right: `exact`, `text` (but for case, punctuation and articles), `number`, or a Python function
    `FILE.py:NAME` of answer and right answer. Default: as numbers if numbers are read, else as text."""
    tolerance: Annotated[float, Field(ge=0, le=1)] = 0.0
    """By which share of the right answer a number may be off."""

    tools: Listed = ()
    """Tools that a rationale may call, by name or file."""
    stop: str | None = "\n"
    """The text that ends a rationale; none: the end of the text."""
    step: str | None = None
    """The text that ends a step, beside a tool's result; none: no text does. Default: a full stop; none with
    `last-result`."""
    alphabet: str | None = None
    """The characters of a rationale; none: all."""

    @field_validator("test", mode="before")
    @classmethod
    def _files(cls, value: Any) -> Any:
        return ",".join(map(str, value)) if isinstance(value, list | tuple) else value

    @field_validator("question", "answer", "test")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("a name that is not empty")
        return value

    @field_validator("target")
    @classmethod
    def _tells_the_answer(cls, value: str) -> str:
        if set(FIELD.findall(value)) != {"answer"}:
            raise ValueError("a text with {answer} in it, and no other column: the reward is how likely it is")
        return value

    @field_validator("choices")
    @classmethod
    def _different(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if isinstance(value, tuple) and (len(value) < 2 or len(set(value)) < len(value)):
            raise ValueError("a column, or at least 2 choices that differ")
        return value

    @field_validator("stop", "step", "alphabet", "rationale", "answer_marker", "split_column", "choices", mode="before")
    @classmethod
    def _none_if_empty(cls, value: Any) -> Any:
        return None if value in ("", "none", "null") else value

    @field_validator("stop", "step", "alphabet", "prompt", "target", "opening")
    @classmethod
    def _line_breaks(cls, value: str | None) -> str | None:
        return value and value.replace("\\n", "\n")  # a shell has no way to write one

    @field_validator("choices", mode="before")
    @classmethod
    def _listed_if_several(cls, value: Any) -> Any:
        return _listed(value) if isinstance(value, str) and "," in value else value

    @field_validator("test")
    @classmethod
    def _a_share_or_files(cls, value: str) -> str:
        share = _number(value)
        if (share is not None and not 0 < share < 1) or re.fullmatch(r"[\d.,]+\s*%|\d+,\d+", value):
            raise ValueError("a share between 0 and 1, such as 0.2, or files")
        return value

    @field_validator("extract")
    @classmethod
    def _searchable(cls, value: str | None) -> str | None:
        if value is not None and value.startswith("regex:"):
            try:
                compiled = regex.compile(value.removeprefix("regex:"))
            except regex.error as error:
                raise ValueError(f"a regular expression: {error}") from None
            if compiled.groups > 1:
                raise ValueError(
                    "a regular expression of at most one group, which is the answer; write (?:...) for others"
                )
        return value

    @field_validator("grade")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value not in (None, *GRADES) and ".py:" not in str(value):
            raise ValueError(f"{', '.join(GRADES)}, or FILE.py:NAME.{did_you_mean(str(value), GRADES)}")
        return value

    @property
    def share(self) -> float | None:
        """The share of the rows that are test questions; None if `test` names files."""
        return _number(self.test)

    def with_options(self, options: Mapping[str, str]) -> Spec:
        """These settings, with those of `--data.options` in their place. Raises UsageError."""
        return checked({**self.model_dump(exclude_unset=True), **options}, lambda name: f"--data.options {name}")


def read_spec(file: str) -> Spec:
    """The settings in a YAML file; its files are looked up from where it lies. Raises UsageError naming the line."""
    text = disk.user_text(file, MAX_BYTES)
    try:
        top = yaml.compose(text, yaml.BaseLoader)
        record = yaml.load(text, yaml.BaseLoader)  # all is text, as in flags: `no` is a choice, not false
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise UsageError(f"{file}{f':{mark.line + 1}' if mark else ''}: not valid YAML: {error}") from None
    if not isinstance(record, dict) or top is None:
        raise UsageError(f"{file}: must be a mapping of settings such as `data: train.jsonl`")
    lines: dict[str, int] = {}
    for key, _ in top.value:
        if key.value in lines:
            raise UsageError(f"{file}:{key.start_mark.line + 1}: {key.value!r} is there twice")
        lines[str(key.value)] = key.start_mark.line + 1
    if record.get("answer_marker") == "" and "#" in text.splitlines()[lines["answer_marker"] - 1]:
        where = f"{file}:{lines['answer_marker']}"
        raise UsageError(f'{where}: a # begins a comment in YAML: put the marker into quotes, answer_marker: "####"')
    found = checked({str(key): value for key, value in record.items()}, lambda name: f"{file}:{lines[name]}: {name}")
    for name in found.tools:
        if ".py" not in name and name not in tools.names():
            unknown = f"unknown tool {name!r}.{did_you_mean(name, tools.names())}"
            raise UsageError(f"{file}:{lines['tools']}: tools: {unknown}")
    folder = disk.expanded(file).absolute().parent
    return found.model_copy(
        update={
            "data": tuple(in_full(one, folder) for one in found.data),
            "test": found.test if found.share else ",".join(in_full(one, folder) for one in _listed(found.test)),
            "tools": tuple(in_full(one, folder) if ".py" in one else one for one in found.tools),
            "grade": found.grade if found.grade in (None, *GRADES) else in_full(found.grade, folder),
        }
    )


def checked(record: Mapping[str, Any], named: Any) -> Spec:
    """The settings of a mapping. Raises UsageError for the first that is unknown or cannot be.

    Args:
        named: a setting's name -> what errors call it, with its place.
    """
    for name in record:
        if name not in Spec.model_fields:
            meant = FOREIGN.get(name)
            hint = f" Did you mean {meant!r}?" if meant else did_you_mean(name, Spec.model_fields)
            raise UsageError(f"{named(name)} is no setting of a qa task.{hint}")
    try:
        return Spec.model_validate(dict(record))
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        message = found["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        if found["type"] == "string_pattern_mismatch":
            message = "last-number, last-result, choice, after:TEXT or regex:PATTERN"
        raise UsageError(f"{named(str(found['loc'][0]))} should be {message}") from None
