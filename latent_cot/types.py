"""What flows through the toolkit, and what others implement: a `Task`, a `Tool`.

Notation, everywhere in the code:

* ``X`` the question, ``Z`` the rationale (the latent chain of thought), ``Y`` the answer's text.
* ``s_i`` the prefix ``z_{1:i}`` of a rationale; ``s_0`` is the empty rationale.
* ``⊤`` the stop: the move that ends a rationale. It is not one of Z's tokens.
* A *state* is a prefix at which stopping is allowed.

A tool's output is a move of the environment: it is attended to, has probability one under the
policy, and its interior is not a state. Hence two masks, never one: `Rationale.policy_mask` says which
tokens the policy chose, `Rationale.states` at which prefixes it may stop.

This module imports neither torch nor transformers: a task or a tool needs nothing else.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol, runtime_checkable

Reasoner = Literal["p", "q"]
"""Who reasons: p, the model, or q, the sampler."""


@dataclass(frozen=True, slots=True)
class Example:
    """One question with what is known of its answer."""

    x: str
    """The question as the model reads it, up to where the rationale begins. No trailing space."""
    y: str | None = None
    """The answer's text as it follows a complete rationale, with its leading space or punctuation
    (`". The answer is 14."`). The reward scores all of its tokens. None: unknown (test time)."""
    z: str | None = None
    """A demonstrated rationale as the model would write it: with its leading space, and *without* the
    tools' results, which are put in when it is encoded. None: not seen."""
    answer: str | None = None
    """The gold answer that `Task.grade` compares with, e.g. `"14"`."""
    question: str = ""
    """The bare question, e.g. `"12 + 7 - 5"`: identifies the example, and is what a user types."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Whatever the task wants to keep: number of operands, source file and line."""

    @property
    def asked(self) -> str:
        """The question as people read it: the bare one, or X where the task leaves that out."""
        return self.question or self.x

    @property
    def key(self) -> str:
        """X and Y, or the answer where there is no Y. The same key, the same posterior. (Two stories may begin alike
        and end differently; a task's own reward may depend on the answer.)"""
        return f"{self.x}\0{(self.answer or '') if self.y is None else self.y}"


JOINT = "log p(Z Y | X)"
"""What log R is, where nothing else was asked for: what it adds up to over all rationales is log p(Y | X)."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One request of a chain and what came of it."""

    tool: str
    position: int
    """Number of rationale tokens before the result (the asking token is at `position - 1`)."""
    request: str
    """What the tool read, e.g. `"6 - 0"`."""
    result: str | None
    """The text that was injected; None if the call failed."""
    error: str | None = None
    """Why it failed."""
    n_tokens: int = 0
    """Number of tokens injected: `tokens[position : position + n_tokens]`."""


@dataclass(frozen=True, slots=True)
class Rationale:
    """One trajectory: a chain of n tokens, the tools' included, the stop not included."""

    tokens: tuple[int, ...]
    """z_{1:n}: n token ids."""
    policy_mask: tuple[bool, ...]
    """n flags: did the policy choose this token (True) or did a tool write it (False)?"""
    states: tuple[bool, ...]
    """n + 1 flags: may the chain stop at the prefix of i tokens? Entry 0 is s_0. The last entry is
    True: a chain ends at a state, or it is `truncated` there by force."""
    text: str
    """The decoded chain, the tools' results included."""
    truncated: bool = False
    """It reached the maximum length and was stopped by force: log q(⊤ | s_n) = 0."""
    calls: tuple[ToolCall, ...] = ()
    log_probs: tuple[float, ...] | None = field(default=None, compare=False)
    """Log-probability of each action, the chosen tokens and the stop that follows, by what sampled it at temperature 1,
    in nats. It is not saved. None: sampled otherwise, or not at all."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def failed(self) -> bool:
        """A tool refused one of its requests."""
        return any(call.error is not None for call in self.calls)


@dataclass(frozen=True, slots=True)
class DataRequest:
    """What a run asks of a task's data."""

    demonstrations: int = 50
    """Number of examples (X, Z, Y) to train with; a task without rationales ignores it."""
    unlabelled: int = 1000
    """Number of examples (X, Y), their rationale unseen."""
    validation: int = 200
    """Number of examples (X, Y) kept out of training and out of the tests, for diagnostics and tuning."""
    seed: int = 0
    train_file: str | None = None
    """Read training examples from this file instead of the task's own source."""
    options: Mapping[str, str] = field(default_factory=dict)
    """The task's own settings by name (`operands=3,4`); the task checks them."""


@dataclass(frozen=True, slots=True)
class TaskData:
    """A task's training side. Test splits are asked for by name: `Task.split`."""

    demonstrations: tuple[Example, ...]
    unlabelled: tuple[Example, ...]
    validation: tuple[Example, ...]
    notes: tuple[str, ...] = ()
    """Sentences the user should see: where the data came from, what was dropped and how much."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """Test splits that differ in one or more numbers, such as that of operands: the points of a curve."""

    pattern: str
    """What the user wrote, e.g. `"operands=3..10"`."""
    axes: tuple[str, ...]
    """The numbers that vary, e.g. `("operands",)`; empty if the pattern names a single split. Each is a key
    of the questions' `Example.meta`, so that the values trained on can be told from the others."""
    points: Mapping[str, Mapping[str, int]]
    """Split's name -> number -> value, of those that vary and of those that do not."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A distinct rationale of a test question, with what the base model, without any adapter, thinks of it."""

    rationale: Rationale
    log_z: float | None = None
    """log p(Z | X), nats, over the whole vocabulary, a tool's tokens included; None where the task does not ask for
    it."""
    log_y: float | None = None
    """log p(Y | X Z), nats, likewise; None where Y is not known either."""
    count: int = 1
    """How often it was sampled."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A test question and the rationales that a reasoner gave for it."""

    example: Example
    samples: Sequence[Sample]
    """The distinct ones, in order of first occurrence: a figure of all samples weighs each by its `count`."""
    listed: Sequence[float] | None = None
    """log-probability under the reasoner of each of `Task.texts`, the stop included, at temperature 1, nats;
    None where the task lists none."""

    @property
    def n(self) -> int:
        """How many rationales were sampled."""
        return sum(sample.count for sample in self.samples)

    def mean(self, value: Callable[[Sample], float]) -> float:
        """Of a value over all samples; NaN if there are none."""
        return sum(sample.count * value(sample) for sample in self.samples) / self.n if self.samples else math.nan


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of rationales."""

    description: str
    """One line: what it is, its unit."""
    better: Literal["higher", "lower", "neither"] = "higher"
    format: str = "{:.3g}"
    """How a table shows it."""


class Task(ABC):
    """A kind of question. It knows nothing of models; an algorithm knows nothing of a task's name.

    Every task says its `name`, `description` and `default_splits`, and has `load`, `split`, `read` and `example`.
    Beside them it has one of three: `answer`, for an answer that is read off the rationale; `candidates`, for one that
    is picked; or `metrics` and `measure`, for figures of the rationales in place of right answers. All else has the
    default that is written here.
    """

    name: str
    description: str
    """One line for `latent-cot tasks`."""
    default_splits: tuple[str, ...]
    """The test splits that are evaluated when none is named."""
    tools: tuple[str, ...] = ()
    """The tools a chain may call: a name, or FILE.py:NAME with the file in full, such as `f"{__file__}:modulo"`."""
    stop: str | None = None
    """The text whose token ends a rationale; None: the tokenizer's end-of-sequence token."""
    allowed_characters: str | None = None
    """Rationales consist of tokens made of these characters only; None: of any token."""
    step_delimiter: str | None = None
    """Text that ends a complete step. None: a step ends with a tool's result."""
    chat: bool = False
    """X is the user's turn of the model's own chat template, where it has one, and a rationale the assistant's."""
    opening: str = ""
    """How that turn begins, such as `<think>`: a part of the prompt."""
    code: tuple[str, ...] = ()
    """The user's Python files that a task without code of its own names, such as a grader's: in a file or a run that
    came from somebody else they are run on the user's word only."""
    one_question: bool = False
    """The task has a single question, in training and in tests alike: what is tested is the distribution that was
    learned for it, so that nothing is kept out of training."""
    portable: str | None = None
    """Python source for exported models. It needs the standard library only and defines
    `answer(text: str, result: str | None) -> str | None`, from a complete chain, and what a tool wrote if the chain
    ends with that, to the answer it arrives at."""

    # -- data --

    def configured(self, options: Mapping[str, str]) -> Task:
        """The task as it is in a run with these options (`DataRequest.options`), where they decide more than which data
        there are: of which characters a rationale consists, say. Raises UsageError for options that cannot be."""
        return self

    @abstractmethod
    def load(self, request: DataRequest) -> TaskData:
        """Training and validation examples. Raises UsageError for bad files or options."""

    @abstractmethod
    def split(self, name: str, size: int | None = None) -> list[Example]:
        """The test split called `name`, the same questions every time and none from `load`'s source;
        its first `size` examples. Raises UsageError for an unknown name."""

    @abstractmethod
    def read(self, path: str) -> list[Example]:
        """Examples from a file, for training or testing. Raises UsageError naming file and line."""

    @abstractmethod
    def example(self, question: str, answer: str | None = None) -> Example:
        """An example from what a user types. Raises UsageError if it is no question of this task."""

    def sweep(self, pattern: str) -> Sweep:
        """The splits that a pattern stands for, a single one or many; `split` knows each by its name.
        Raises UsageError for a pattern that cannot be."""
        return Sweep(pattern, (), {pattern: {}})

    def can_be_joined(self, examples: Sequence[Example]) -> bool:
        """Whether the steps of these examples are right in a text, too, in which their questions are joined to others
        (`augmentation.concat_questions`): a sum goes on behind its last operand, a product takes it away."""
        return True

    def is_held_out(self, prompt: str) -> bool:
        """Whether the question that this prompt ends with is one for validation or tests, as far as the task can tell.
        Training questions that are joined may not make one. (The run's own are known without it.)"""
        return False

    # -- prompts and rationales --

    def posterior_prompt(self, example: Example) -> str:
        """What q(Z | X, Y) reads before the rationale: both X and Y; X alone where a task with a reward of its own has
        no Y. No trailing space. Raises UsageError for a question whose answer it needs, and nobody knows."""
        if example.answer is not None:
            return f"The answer is {example.answer}. {example.x}"
        if self.has_own_reward:
            return example.x
        raise UsageError(f"question {example.asked!r:.80}: its answer is needed to sample from q(Z | X, Y)")

    def seed_prompt(self, example: Example) -> str | None:
        """A prompt that knows the answer, such as a wishful `"... objective because it is"`. What p writes behind it
        fills the replay buffer. No trailing space. None: the task has no such prompt."""
        return None

    def allows(self, piece: str) -> bool:
        """May a token that adds this text be part of a rationale? Asked of those that `allowed_characters` allows, but
        not of the stop."""
        return True

    def log_reward(self, example: Example, text: str) -> float:
        """log R of a rationale that is `text`, in nats, up to a constant of the question; −inf if it is worth
        nothing. A task that defines it has a reward of its own, instead of p(X Z Y). Its examples need no Y; where
        they have none, a model that is fine-tuned on a rationale learns the stop behind it. A pure function of text
        that a model wrote: bounded, and it never evaluates it.

        Of the token sequences that spell one text only the tokenizer's own has this reward, the others have
        none: else a text would count as often as there are ways to cut it into tokens.
        """
        raise NotImplementedError(f"{self.name} has no reward of its own")

    @property
    def has_own_reward(self) -> bool:
        """Whether the task defines `log_reward`."""
        return type(self).log_reward is not Task.log_reward

    def texts(self, example: Example) -> Sequence[str] | None:
        """The different texts of all rationales that are worth anything, or nearly so, without the tools' results, at
        most some thousands: then figures of them can be exact. None: they cannot be listed."""
        return None

    # -- right answers --

    def candidates(self, example: Example) -> Mapping[str, str] | None:
        """Answer -> its text Y, if the answer is one of a few and is picked by log p(Y | X Z);
        None if it is read off the rationale by `answer`."""
        return None

    def answer(self, rationale: Rationale) -> str | None:
        """The answer a rationale arrives at; None if it arrives at none (never a stand-in value)."""
        return None

    def grade(self, example: Example, answer: str | None) -> bool:
        """Is `answer` right? None is never right."""
        return answer is not None and answer == example.answer

    mistakes: Mapping[str, str] = MappingProxyType({})
    """Category of wrong chains -> what it means, one line; in the order in which they are shown."""

    def mistake(self, example: Example, rationale: Rationale) -> str | None:
        """The one category of a chain that does not arrive at the right answer; None: the rule for all tasks decides.
        A pure function of text that a model wrote: bounded, and it never evaluates it."""
        return None

    # -- figures of the rationales, in place of right answers: no accuracy of such a task is shown --

    metrics: Mapping[str, Metric] = MappingProxyType({})
    """Metric's name -> what it is, in the order in which they are shown."""
    samples: int = 1
    """Rationales sampled for each test question where the user does not say."""
    scored: bool = False
    """Whether `measure` needs `Sample.log_z` and `Sample.log_y`: they cost a pass of the base model."""
    answer_given: bool = False
    """Whether Y is part of the question in tests too, as between the beginning and the ending of a story: then
    reasoners read `posterior_prompt`, and q(Z | X, Y) is the one to test."""

    @property
    def is_measured(self) -> bool:
        """Whether the task has `metrics` instead of right answers."""
        return bool(self.metrics)

    def measure(self, questions: Sequence[Measured]) -> Mapping[str, float | Sequence[float]]:
        """Metric's name -> a number of all questions together, or one of each question (whose mean and interval
        are shown; NaN: undefined for that question, which is then left out). The names are among those of
        `metrics`; one that does not apply may be missing. Called once a split, with all of its questions."""
        return {}

    def require(self) -> None:
        """Raises UsageError if a package that `measure` needs is not installed, naming the extra. It is called before
        anything is trained or sampled."""
        return


@runtime_checkable
class Tool(Protocol):
    """Something a chain can call while it is generated.

    After each token the chain's text is compared with `trigger`; if the chain now ends with it, the
    tool is called with what `request` reads off the chain, and the result's tokens are injected. A function
    becomes a tool by the decorator `latent_cot.tools.tool`.

    A tool may have a member `portable` besides: Python source for exported models, which needs the standard library
    only and defines a function with the tool's name (`-` as `_`), `(text: str) -> str | None`, from the chain's text up
    to and including the trigger to the text that is injected; None where the tool refuses.
    """

    name: str
    description: str
    """One line for `latent-cot tools`."""
    trigger: str
    """A chain whose text ends with this asks for the tool, e.g. `"="`."""

    def request(self, text: str) -> str:
        """What the tool reads, given the chain's text up to and including the trigger."""
        ...

    def __call__(self, request: str) -> str:
        """The text to inject after the trigger, its leading space included. Pure, bounded in time and
        size. Raises ToolError for anything it cannot or may not answer; nothing else."""
        ...


# -- to JSON ---------------------------------------------------------------------------------------------------


def rationale_to_json(rationale: Rationale) -> dict[str, Any]:
    """As `rationales.jsonl` has it."""
    record = asdict(rationale)
    del record["log_probs"]
    return record


def finite(value: Any) -> Any:
    """`value` with NaN and infinities, which JSON cannot express, replaced by None; tuples become lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


# -- errors: the two that a user or a model can cause; everything else is a bug and keeps its traceback --


class UsageError(Exception):
    """Something the user can put right: a flag, a file, a folder, a model's name.

    The message names the file, the line or the flag, says what is wrong and what to do about it.
    The command line prints it without a traceback and exits with status 2.
    """


class CodeError(UsageError):
    """A fault of somebody's own code, and not of the row of data that it was asked about."""


class ToolError(Exception):
    """A tool cannot, or may not, answer the chain's request. The chain goes on without a result."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` if a known name is close, else `" Known: a, b."`; empty if none is known."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Known: {', '.join(names)}." if names else ""


def first_line(error: BaseException) -> str:
    """An error's first line, or its type's name if it has none, at most 200 characters of it."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(". ")
