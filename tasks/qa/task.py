"""Questions and answers of the user's own, told by a YAML file or by options: no code."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from latent_cot import tools
from latent_cot.tasks.common import PORTABLE_LAST_RESULT, last_result, words
from latent_cot.tasks.files import HUB, BadValue, Row, examples_of, field, kind_of, read_rows, shorten
from latent_cot.tasks.plain import drawn_data, prompt_words, source_of_split
from latent_cot.tasks.qa import answers
from latent_cot.tasks.qa.same_text import same_text
from latent_cot.tasks.qa.spec import FIELD, Spec, read_spec
from latent_cot.tasks.qa.typed import LETTERS, Form
from latent_cot.tasks.word_problems import working
from latent_cot.tools.calculator import Calculator, written
from latent_cot.types import DataRequest, Example, Rationale, Task, TaskData, ToolError, UsageError

MAX_CHARACTERS = 10_000
"""Of a question, an answer or a rationale."""
OWN_QUESTIONS = Spec(data=(str(Path(__file__).with_name("questions.csv")),), split_column="split")
"""A few, to try it with."""

_REMEDY = "; correct them, or leave them out with --data.options skip_bad true (a task's file: skip_bad: true)"
_DIGITS = re.compile("[0-9]{1,3}")


class _Digits(NamedTuple):
    """An answer in digits, of a row whose choices a column has, without labels."""

    number: int
    choices: int
    """How many there are."""
    is_text: bool
    """Whether it is the text of one of them."""
    in_json: bool
    """Whether it is a JSON number."""
    among_digits: bool
    """Whether one of the choices is in digits, too."""


class QA(Task):
    """Questions and answers of any kind, as a `Spec` describes them."""

    description = "questions and answers of your own, by options or a YAML file: no code"
    default_splits = ("test",)

    def __init__(self, spec: Spec = OWN_QUESTIONS, name: str = "qa") -> None:
        s = self.spec = spec
        self.name = name
        default = "last-result" if s.tools else "choice" if s.choices else answers.AFTER
        self.extract = s.extract or default
        self.tools = s.tools
        self.stop = s.stop
        self.allowed_characters = s.alphabet
        self.opening = s.opening
        self.chat = s.chat
        of_text = None if self.extract == "last-result" else "."
        self.step_delimiter = s.step if "step" in s.model_fields_set else of_text
        self.grading = s.grade or ("number" if self.extract.startswith("last-") else "text")
        own = [self.grading] if ".py:" in self.grading else []
        self.code = (*own, *(tool for tool in self.tools if tool not in tools.names()))
        self._lettered = isinstance(s.choices, str)
        form = "Question: {question}\n{choices}\nAnswer:" if self._lettered else "Question: {question} Answer:"
        self._prompt = s.prompt or form
        self._digits_in: dict[str, Set[_Digits]] = {}
        self._form = Form(self._prompt, None if isinstance(s.choices, str) else s.choices or ())
        if self.extract == "last-result":
            self.portable = PORTABLE_LAST_RESULT
        elif self.extract != "choice":
            self.portable = answers.portable(answers.pattern_of(self.extract))
        elif not s.choices:
            raise UsageError("extract choice: name the `choices`: a column, or a list of them")
        if self.extract == "last-result" and not s.tools:
            raise UsageError("extract last-result: name the `tools` that give results, such as calculator")
        if s.split_column is not None and s.share is None:
            raise UsageError(
                f"test {s.test} and split_column {s.split_column}: both say which rows are tests; give one"
            )
        if s.tolerance and self.grading != "number":
            raise UsageError(f"tolerance {s.tolerance:g}: answers are graded as {self.grading}; add grade number")
        if self.stop is not None and self.stop == self.step_delimiter:
            raise UsageError(f"stop {self.stop!r} ends each step, too: no rationale could have two; give another one")
        marker = self.extract.removeprefix("after:") if self.extract.startswith("after:") else ""
        if s.alphabet is not None and (lacking := sorted(set(marker) - set(s.alphabet))):
            why = f"no rationale could write {marker!r}, which its answer follows"
            raise UsageError(f"alphabet: {why}; add {lacking[0]!r}, or give another extract")
        if not FIELD.search(self._prompt):
            raise UsageError(f"prompt {shorten(self._prompt)} has no column; write one in braces, such as {{question}}")
        if told := [name for name in FIELD.findall(self._prompt) if name in (s.answer, s.rationale)]:
            why = f"shows {told[0]!r}, which is to be found out"
            raise UsageError(f"prompt {shorten(self._prompt)} {why}; end it before that column")

    def configured(self, options: Mapping[str, str]) -> QA:
        """With the options in place of what the YAML file says. Raises UsageError."""
        if not options:
            return self
        spec = (Spec() if self.spec is OWN_QUESTIONS else self.spec).with_options(options)
        spec = spec if spec.data else spec.model_copy(update={"data": OWN_QUESTIONS.data})
        return self if spec == self.spec else QA(spec, self.name)

    # -- data --

    def load(self, request: DataRequest) -> TaskData:
        """Examples of the rows that are no test questions, as many as are asked for or as there are."""
        task = self.configured(request.options)
        if request.train_file is not None:
            raise UsageError("--data.train-file: the rows of qa are named by the option `data`; leave it out")
        tests, train, validation, skipped = task._tests, *task._training
        tested = {prompt_words(example) for example in (*tests[0], *validation)}
        asked = replace(request, validation=0) if validation else request
        data = drawn_data(", ".join(task.spec.data), train, tested, asked, task.grade, fewer=True)
        notes = data.notes
        if task.spec.split_column is not None or task.spec.share is not None:
            notes = (f"{len(tests[0])} rows of the data are test questions.", *notes)
        if skipped := [*skipped, *tests[1]]:
            notes += (f"{len(skipped)} rows left out that cannot be used, the first: {skipped[0]}.",)
        return replace(data, validation=tuple(validation[: request.validation]) or data.validation, notes=notes)

    def split(self, name: str, size: int | None = None) -> list[Example]:
        """`"test"`: what the settings say; or all of a file or a data set, by its name, in its order."""
        if name in self.default_splits:
            return self._tests[0][:size]
        return self.read(source_of_split(self, name, ""))[:size]

    def read(self, path: str) -> list[Example]:
        self._load_code()
        rows = self._rows(path)
        self._refuse_unknown_columns(path, rows, split=None)  # all of it are tests, whatever it says
        return examples_of(rows, self._builder([path]))

    def _read(self, sources: Sequence[str]) -> tuple[list[Example], list[str]]:
        """The examples of the rows, and why others were left out."""
        skipped: list[str] = []
        self._load_code()
        sources = [source.strip() for source in sources]
        rows = [row for source in sources for row in self._rows(source)]
        self._refuse_unknown_columns(", ".join(sources), rows, split=self.spec.split_column)
        bad = skipped if self.spec.skip_bad else None
        return examples_of(rows, self._builder(sources), bad, remedy=_REMEDY), skipped

    def _rows(self, source: str) -> list[Row]:
        """A source's, whose answers in digits are kept: they are told apart for all sources at once."""
        rows, found = read_rows(source), set[_Digits]()
        for row in rows if isinstance(self.spec.choices, str) else ():
            value, marker = row[1].get(self.spec.answer), self.spec.answer_marker
            if isinstance(value, str) and marker is not None:
                value = value.rpartition(marker)[2]
            with suppress(UsageError):
                choices, shown, labels = self._choices(row)
                if not labels and not isinstance(value, bool) and (digits := _DIGITS.fullmatch(str(value).strip())):
                    among = any(map(_DIGITS.fullmatch, shown))
                    number = int(digits[0])
                    found.add(_Digits(number, len(choices), digits[0] in shown, isinstance(value, int), among))
        self._digits_in[source] = found
        return rows

    def _builder(self, sources: Sequence[str]) -> Callable[[Row], Example]:
        """What makes an example of each of the sources' rows, which have been read. Where a column has the choices, an
        answer in digits may be a choice's text or its number, from 0. Where no choice is in digits it is a number; else
        `_numbered` says what all are."""
        if not isinstance(self.spec.choices, str):
            return partial(self._of_row, numbered=False)
        found = set[_Digits]().union(*(self._digits_in[source] for source in sources))
        if not any(one.among_digits for one in found):
            if any(one.number == one.choices for one in found) and min(found).number == 1:
                name = repr(self.spec.answer)
                raise UsageError(
                    f"{name} numbers the choices from 1, and here the first is 0: subtract 1, or write letters"
                )
            return partial(self._of_row, numbered=True)
        try:
            numbered = self._numbered
        except UsageError as error:
            why = "all rows of `data` and `test` tell whether answers in digits are choices' texts or their numbers"
            raise UsageError(f"{', '.join(sources)}: {why}: {error}") from None
        return partial(self._of_row, numbered=_are_numbers(found) if numbered is None else numbered)

    @cached_property
    def _numbered(self) -> bool | None:
        """Whether answers in digits are the numbers of choices, by all rows of `data` and `test`: a file that is read
        later has the labels that it would have there. None if these have none."""
        tests = self.spec.test.split(",") if self.spec.share is None else []
        sources = [*self.spec.data, *map(str.strip, tests)]
        for source in sources:
            if source not in self._digits_in:
                self._rows(source)
        found = set[_Digits]().union(*(self._digits_in[source] for source in sources))
        return _are_numbers(found) if found else None

    def _refuse_unknown_columns(self, sources: str, rows: Sequence[Row], *, split: str | None) -> None:
        """One error for all rows, where a setting names a column that none has."""
        s, columns = self.spec, {name for _, fields in rows for name in fields}
        named = {"question": s.question, "answer": s.answer, "split_column": split}
        named |= {"choices": s.choices if isinstance(s.choices, str) else None}
        named |= {"rationale": s.rationale if s.rationale != Spec().rationale else None}
        own = Spec().rationale or ""
        if s.rationale == own and own not in columns and (meant := [n for n in columns if n.casefold() == own]):
            remedy = f"name it, `rationale: {meant[0]}`, or give `rationale: none`"
            raise UsageError(f"{sources}: nobody reads the column {meant[0]!r}; {remedy}")
        of_prompt = (name for name in FIELD.findall(self._prompt) if name not in ("question", "choices"))
        for setting, name in (*named.items(), *(("prompt", name) for name in of_prompt)):
            if columns and name is not None and name not in columns:
                there = ", ".join(sorted(columns))
                raise UsageError(f"{sources}: the setting `{setting}` names the column {name!r}; there are {there}")

    @cached_property
    def _training(self) -> tuple[list[Example], list[Example], list[str]]:
        """Those for training, for validation, and why rows were left out."""
        read, skipped = self._data
        train, validation = ([e for e in read if self._part(e) == name] for name in ("train", "validation"))
        return train, validation, skipped

    @cached_property
    def _tests(self) -> tuple[list[Example], list[str]]:
        """The test questions, and why rows of their own files were left out."""
        if self.spec.share is None and self.spec.split_column is None:
            return self._read(self.spec.test.split(","))
        found = [example for example in self._data[0] if self._part(example) == "test"]
        if not found:
            read, skipped = self._data
            why = "look at `test` and `split_column`"
            if skipped and not read:
                why = f"all {len(skipped)} rows are left out, the first: {skipped[0]}"
            raise UsageError(f"{', '.join(self.spec.data)}: no test question; {why}")
        return found, []

    @cached_property
    def _data(self) -> tuple[list[Example], list[str]]:
        return self._read(self.spec.data)

    def _part(self, example: Example) -> str:
        """Which one a row of `data` is in: `train`, `validation` or `test`."""
        if self.spec.split_column is not None:
            return str(example.meta.get("split", "train"))
        return "test" if example.meta.get("place", 1) < (self.spec.share or 0) else "train"

    # -- examples --

    def example(self, question: str, answer: str | None = None) -> Example:
        r"""The question, or the whole prompt that holds it; the latter if the prompt has other columns too. There `\n`
        may stand for a line break. Raises UsageError for a text that is no such prompt."""
        text = question.strip()
        if not text or len(text) > MAX_CHARACTERS:
            raise UsageError(f"question {shorten(question)}: write 1 to {MAX_CHARACTERS:,} characters")
        if set(FIELD.findall(self._prompt)) - {"question"}:
            x = self._whole(text)
            choices = self._form.letters(x) if self._form.choices is None else self._form.choices
            return self._build(x, "", answer, tuple(choices))
        before, after = FIELD.split(self._prompt)[::2][:2] if len(FIELD.findall(self._prompt)) == 1 else ("", "")
        bare = text.removeprefix(before.lstrip()).removesuffix(after.rstrip()).strip()
        if not bare:
            raise UsageError(f"question {shorten(question)}: it is empty")
        choices = self.spec.choices if isinstance(self.spec.choices, tuple) else ()
        return self._build(self._filled({"question": bare}), bare, answer, choices)

    def candidates(self, example: Example) -> Mapping[str, str] | None:
        if self.extract != "choice":
            return None
        return {choice: self._target(choice) for choice in example.meta.get("choices", ())} or None

    def answer(self, rationale: Rationale) -> str | None:
        if self.extract in ("last-result", "choice"):
            return last_result(rationale) if self.extract == "last-result" else None
        return answers.find(answers.pattern_of(self.extract), rationale.text)

    def grade(self, example: Example, answer: str | None) -> bool:
        if answer is None or example.answer is None:
            return False
        if self._grader is not None:
            verdict: bool = self._grader(answer, example.answer)
            return verdict  # as it is: whoever guards somebody's code refuses what is neither True nor False
        if self.extract == "choice":
            return answer == example.answer
        if self.grading == "number":
            return answers.same_number(answer, example.answer, self.spec.tolerance)
        if self.grading == "exact":
            return answers.bare(answer) == answers.bare(example.answer)
        return same_text(answer, example.answer)

    def allows(self, piece: str) -> bool:
        """A rationale that a line break ends is one line."""
        return self.stop != "\n" or "\n" not in piece

    @cached_property
    def _grader(self) -> Any:
        return answers.grader(self.grading) if ".py:" in self.grading else None

    @cached_property
    def _loaded_tools(self) -> list[Any]:
        return [tools.load(name) for name in self.tools]

    def _load_code(self) -> None:
        """Before a row is read: what is wrong with the code is no fault of a row's. Raises UsageError."""
        _ = self._loaded_tools, self._grader

    def _filled(self, fields: Mapping[str, Any]) -> str:
        return FIELD.sub(lambda match: str(fields[match[1]]), self._prompt).strip()

    def _target(self, answer: str) -> str:
        twice = answer.endswith(".") and not answer.endswith("..") and "{answer}." in self.spec.target
        stop, target = self.stop or "\n", FIELD.sub(lambda _: answer[:-1] if twice else answer, self.spec.target)
        return f"{stop}{'' if stop[-1].isspace() or target[:1].isspace() else ' '}{target}"

    def _build(self, x: str, question: str, answer: str | None, choices: Sequence[str]) -> Example:
        if answer is not None and self.grading == "number":
            value = answers.number_of(answer)
            if value is None:
                message = f"the answer {shorten(answer)} is no number; write it like 72, -3.5, $1,000 or 3/4"
                raise BadValue(message, "no number", self._instead_of_numbers())
            answer = written(value)
        if answer is not None and self.spec.choices and answer not in choices:
            raise UsageError(f"the answer {shorten(answer)} is none of {', '.join(choices) or 'the choices'}")
        if (
            answer is not None
            and self.extract.startswith("after:")
            and ("\n" in answer or answers.bare(answer) is None)
        ):
            why = "has a line break" if "\n" in answer else "is punctuation only"
            raise UsageError(f"the answer {shorten(answer)} {why}: `extract: {self.extract}` never reads that")
        y = None if answer is None else self._target(answer)
        return Example(x, y, None, answer, question, {"choices": tuple(choices)} if self.spec.choices else {})

    def _instead_of_numbers(self) -> str:
        """What to do where the answers are no numbers: nobody need have asked for numbers."""
        why, instead = "of `grade: number`", "`grade: text`"
        if self.extract.startswith("last-"):  # which a text could not be read by
            instead += f" and `extract: {answers.AFTER}`"
            by = "`tools`" if self.spec.extract is None else f"`extract: {self.extract}`"
            why = why if self.spec.grade else f"{by} sets `grade: number`"
        return f"; answers are compared as numbers because {why}: for texts set {instead}, or take the units out"

    def _whole(self, text: str) -> str:
        """The filled prompt that somebody has typed. Raises UsageError, showing one, for another text."""
        x = self._form.read(text)
        if x is None:
            some = self._some_prompt()
            shown = some if len(some) <= 160 else f"{some[:90]}...{some[-60:]}"
            form = f"{self.name} is asked whole prompts, of the form {shown!r}"
            raise UsageError(rf"question {shorten(text)}: {form}; write all of it, \n for a line break")
        return x

    def _some_prompt(self) -> str:
        """That of the first row that can be used; one with dots where the rows are on the hub or cannot be read."""
        for source in self.spec.data[:1]:
            with suppress(UsageError):
                for row in [] if source.startswith(HUB) else read_rows(source):
                    with suppress(UsageError):
                        return self._of_row(row, numbered=False).x
        return self._form.dotted

    # -- rows --

    def _of_row(self, row: Row, numbered: bool) -> Example:
        s, fields = self.spec, row[1]
        question, answer = _text(row, s.question), _text(row, s.answer)
        rationale = _text(row, s.rationale, required=False) if s.rationale else None
        if s.answer_marker is not None:
            before, found, answer = answer.rpartition(s.answer_marker)
            if not found or not answer.strip():
                raise UsageError(f"{s.answer!r} has no answer behind {s.answer_marker!r}")
            rationale, answer = rationale or before.strip() or None, answer.strip()
        choices, shown, labels = self._choices(row)
        if choices:
            names = (labels, shown, choices)
            answer = _chosen(fields.get(s.answer), answer, names, numbered=numbered and not labels)
        listed = "\n".join(f"{a}. {b}" for a, b in zip(choices, shown, strict=True))
        given = {"question": question, "choices": listed if self._lettered else ", ".join(choices)}
        columns = dict.fromkeys(FIELD.findall(self._prompt))
        for name in fields:
            if not re.fullmatch(r"\w+", name) and re.search(rf"\{{\s*{re.escape(name)}\s*\}}", self._prompt):
                raise UsageError(
                    f"the column {shorten(name)} cannot stand in a prompt; name it by letters, digits and _"
                )
        texts = {name: given[name] if name in given else _text(row, name) for name in columns}
        example = self._build(self._filled(texts), question if columns.keys() == {"question"} else "", answer, choices)
        meta = dict(example.meta)
        if self._lettered:  # in whichever order its choices are, it is the same question with the same answer
            meta["means"] = shown[choices.index(answer)]
            meta["asked"] = f"{self._filled(texts | {'choices': ''})} {' '.join(sorted(shown))}"
        if s.split_column is None and s.share is not None:
            asked = {s.question if name == "question" else name: text for name, text in texts.items()}
            asked = {**asked, s.question: question, "choices": " ".join(sorted(shown)) if self._lettered else ""}
            meta["place"] = _place(asked)
        if s.split_column is not None and s.split_column in fields:
            meta["split"] = _split(_text(row, s.split_column))
        z = None
        if rationale is not None:
            try:
                z = self._rationale(rationale, example)
            except working.Unusable as why:
                meta["unusable"] = str(why)
        return replace(example, z=z, meta=meta)

    def _choices(self, row: Row) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
        """The answers that there are, what each says, and what the row calls it. Where a column has the choices, the
        answers are letters."""
        name = self.spec.choices
        if not isinstance(name, str):
            return name or (), name or (), ()
        value: Any = row[1].get(name)
        labels: Any = []
        if isinstance(value, dict):  # as ARC has them
            value, labels = value.get("text"), value.get("label", [])
        if isinstance(value, str):
            value = [part.strip() for part in value.split("|")]
        if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
            raise UsageError(f"the choices {name!r} must be a list of texts, or a text with | between them")
        if not 2 <= len(value) <= len(LETTERS) or len(set(value)) < len(value):
            raise UsageError(f"there must be 2 to {len(LETTERS)} different choices, not {shorten(', '.join(value))}")
        if not isinstance(labels, list) or len(labels) not in (0, len(value)):
            raise UsageError(f"the choices {name!r} must have as many labels as texts, or none")
        return LETTERS[: len(value)], value, labels

    def _rationale(self, text: str, example: Example) -> str:
        """As a chain writes it: on one line if a line break ends it, without the tools' results. Raises Unusable."""
        result, delimiter = None, self.step_delimiter
        if "calculator" in self.tools and "<<" in text:
            value = working.number(example.answer or "") if self.grading == "number" else None
            z, result = working.linearise(working.of_annotated(text), value, words=True)
        else:
            z = " " + (" ".join(text.split()) if self.stop == "\n" else text.strip())
            if self._loaded_tools:
                z, result = _without_results(z, self._loaded_tools)
        if self.extract.startswith("after:") and (marker := self.extract.removeprefix("after:")) not in z:
            if said := _SAID.search(z):  # the answer is said already, and may be another one
                if not self.grade(example, said[1].rstrip(" .!")):
                    raise working.Unusable("with another answer than the row has, or none")
                z = z[: said.start()].rstrip() or z
            z += f"{'' if z[-1] in '.!?' else '.'} {marker} {example.answer}"
        if delimiter is not None and not z.endswith((delimiter, *(tool.trigger for tool in self._loaded_tools))):
            z += delimiter
        if self.extract == "last-result":
            z = z.rstrip(" .")
            if not z.endswith(tuple(tool.trigger for tool in self._loaded_tools)):
                raise working.Unusable("without a tool's result at the end")
        if self.stop is not None and self.stop in z:
            raise working.Unusable(f"with {self.stop!r}, which ends a rationale, in it")
        if self.allowed_characters is not None and (strange := sorted(set(z) - set(self.allowed_characters))):
            raise working.Unusable(f"with {strange[0]!r} and other characters that are not in the alphabet")
        if self.extract != "choice":
            found = result if self.extract == "last-result" else self.answer(Rationale((), (), (True,), z))
            if not self.grade(example, found):
                raise working.Unusable("with another answer than the row has, or none")
        return z


_SAID = re.compile(r"(?i)\b(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:final\s+)?answer\s+is:?\s+(.+)\Z")
"""How people end a rationale."""


def from_file(file: str, options: Mapping[str, str]) -> QA:
    """The task that a YAML file describes, with the options in place of what it says. Raises UsageError, naming the
    file."""
    spec = read_spec(file)
    spec = spec.with_options(options) if options else spec
    if not spec.data:
        raise UsageError(f"{file}: names no `data`; add a file, a folder or a data set: `data: train.jsonl`")
    try:
        return QA(spec, Path(file).stem)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None


def _text(row: Row, name: str, required: bool = True) -> Any:
    """A row's field as text that is not empty; None if it may be absent."""
    where, fields = row
    value = fields.get(name)
    if value is None or (not required and isinstance(value, str) and not value.strip()):
        if required and name in fields:
            raise UsageError(f"{where}: the field {name!r} must be a text or a number, not {kind_of(value)}")
        return field(row, name, str) if required else None  # which says that it is missing
    if not isinstance(value, str | int | float) or value != value or value in (float("inf"), -float("inf")):
        what = "a number that is not finite" if isinstance(value, float) else kind_of(value)
        raise UsageError(f"{where}: the field {name!r} must be a text or a finite number, not {what}")
    text = f"{Decimal(repr(value)):f}" if isinstance(value, float) else str(value).strip()
    if not text or len(text) > MAX_CHARACTERS:
        length = f"more than {MAX_CHARACTERS:,}" if text else "0"
        raise UsageError(f"{where}: the field {name!r} has {length} characters; write 1 to {MAX_CHARACTERS:,}")
    if bad := next((c for c in text if c < " " and c not in "\n\r\t"), None):
        raise UsageError(f"{where}: the field {name!r} has the control character {bad!r}; take it out")
    return text


def _chosen(value: Any, answer: str, names: Sequence[Sequence[str]], *, numbered: bool) -> str:
    """The choice that a row's answer names: by its label, text or letter or, from 0, by its number, which `numbered`
    takes first; a truth value by `true` and `false` or `yes` and `no`, where these are the choices. Raises
    UsageError."""
    _, shown, choices = names
    if isinstance(value, bool):
        said = ("true", "yes") if value else ("false", "no")
        if meant := [choice for choice, text in zip(choices, shown, strict=True) if text.casefold() in said]:
            return meant[0]
        answer = str(int(value))
    number = int(answer) if _DIGITS.fullmatch(answer) else len(choices)
    if numbered and number < len(choices):
        return choices[number]
    for known in names:
        if answer in (exact := list(map(str, known))):
            return choices[exact.index(answer)]
    for known in names:  # in other capitals, where that names one
        if (folded := [str(name).casefold() for name in known]).count(answer.casefold()) == 1:
            return choices[folded.index(answer.casefold())]
    listed = list(shown) == list(choices) and not any(map(_DIGITS.fullmatch, shown))
    if number < len(choices) and (isinstance(value, bool) or listed):
        return choices[number]
    which = f", which are numbered 0 to {len(choices) - 1}" if _DIGITS.fullmatch(answer) and numbered else ""
    raise UsageError(f"the answer {shorten(answer)} is none of the choices {', '.join(shown)}{which}")


def _are_numbers(found: Set[_Digits]) -> bool:
    """Whether answers in digits are the numbers of choices. Where no choice is in digits they are; else they are the
    first that all can be, texts or numbers, and JSON numbers a number first."""
    as_texts, as_numbers = all(one.is_text for one in found), all(one.number < one.choices for one in found)
    in_json = any(one.in_json for one in found)
    among = any(one.among_digits for one in found)
    return not among or (as_numbers and (in_json or not as_texts))


def _split(name: str) -> str:
    """A row's share, as data sets call it. Raises UsageError."""
    known = {"train": "train", "training": "train", "test": "test"}
    known |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
    if name.lower() not in known:
        raise UsageError(f"the split {shorten(name)} is none of train, validation, test")
    return known[name.lower()]


def _place(asked: Mapping[str, str]) -> float:
    """Of a question among all, from 0 to 1: a hash of its columns decides, the same everywhere and for all prompts that
    show these."""
    text = " ".join(words(" ".join(asked[name] for name in sorted(asked))))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def _without_results(text: str, tools: Sequence[Any]) -> tuple[str, str | None]:
    """A written rationale without what its tools write, and the last result. Raises Unusable."""
    kept, seen, rest, result = "", "", text, None
    while ends := [rest.index(tool.trigger) + len(tool.trigger) for tool in tools if tool.trigger in rest]:
        asked, rest = rest[: min(ends)], rest[min(ends) :]
        kept, seen = kept + asked, seen + asked
        tool = next(tool for tool in tools if seen.endswith(tool.trigger))
        try:
            result = str(tool(tool.request(seen)))
        except ToolError:
            raise working.Unusable("with a call that its tool refuses") from None
        if (length := _stated(rest, result, isinstance(tool, Calculator))) is not None:
            rest = rest[length:]
        elif re.match(r"\s*[-\u2212]?(?:\$\s?)?\.?\d", rest):
            raise working.Unusable("with a stated result that its tool does not give")
        seen += result
    return kept + rest, result


def _stated(text: str, result: str, is_number: bool) -> int | None:
    """The length of what a text states first, if that is a tool's result; else None. A number may be written
    otherwise: `$7`, `1,000` and `0.50`."""
    end = r"(?!\w|[.,/]\d)"
    if is_number and (found := working.RESULT.match(text)) and re.match(end, text[found.end() :]):
        return found.end() if working.near(Fraction(result.strip()), working.number(found[0])) else None
    same = re.match(rf"\s*{re.escape(result.strip())}{end}", text, re.IGNORECASE)
    return same.end() if same else None
