"""A run, or a base model as it is: look at what it left, sample from it, score with it, test it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import product
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from rich.console import Console

from latent_cot import disk, tasks
from latent_cot.api.results import Evaluation, Results
from latent_cot.config.schema import RunConfig, sampling_temperature, tested_splits
from latent_cot.evaluation import outcomes
from latent_cot.evaluation.splits import Split, splits_of
from latent_cot.report.plots import Curve
from latent_cot.report.tables import data_frame, escaped, page
from latent_cot.report.terminal import Items, say
from latent_cot.run import reasoners
from latent_cot.run.paths import with_absolute_paths
from latent_cot.run.printable import printable
from latent_cot.run.run_folder import RunFolder
from latent_cot.tools._foreign import failures
from latent_cot.types import Example, Rationale, Reasoner, Task, TaskData, UsageError, first_line

if TYPE_CHECKING:
    import pandas as pd

    from latent_cot.api.rationales import LoggedRationales, Rationales
    from latent_cot.methods.method import Method
    from latent_cot.methods.scored import ScoredRationale
    from latent_cot.run.schemas import LoggedRationale


def load(target: str | Path | Run, *, task: str | Path | None = None, trust_code: bool = False) -> Run:
    """A run by its folder, or a base model (a hub name or a folder) as it is; a `Run` is given back.

    Reads a few small files; the model is loaded when it is first needed.

    Args:
        task: of a base model: a task's name, or a YAML or Python file that defines one. None: arithmetic. A run has its
            own.
        trust_code: the configuration of a run may name Python files (a task, a tool, a model's own code). They are run
            only if you say so: a folder that somebody else gave you may name anything.

    Raises UsageError.
    """
    if isinstance(target, Run):
        return target
    if not isinstance(target, str | Path):
        raise UsageError(f"load takes the folder of a run, or a model's folder or name, and no {type(target).__name__}")
    source = reasoners.find(str(target), task_name(task), trusted=trust_code)
    # The working directory may change before the model is loaded. (A run's own files are named in full already.)
    return Run(source if source.folder else replace(source, config=with_absolute_paths(source.config)))


def task_name(task: str | Path | None) -> str | None:
    """The name or file of a task. Raises UsageError for another object, such as a task itself."""
    if task is not None and not isinstance(task, str | Path):
        raise UsageError(f"a task is given by its name, or by the file that defines it, and no {type(task).__name__}")
    return None if task is None else str(task)


class Run:
    """What `load` and `train` return."""

    def __init__(self, source: reasoners.Source, loop: Method | None = None) -> None:
        self._source, self._loop = source, loop
        self._as_of = source.folder.newest if source.folder else None
        self.while_loading: Callable[[], AbstractContextManager[object]] = nullcontext
        """What is entered while the model is loaded: it may tell the user."""
        self.notes: list[str] = []
        """Sentences on what has changed since it was trained: its training data, its base model."""
        self.on_note: Callable[[str], None] = partial(say, Console(stderr=True))
        """What tells the user of each of these, once."""
        self.task: Task = tasks.load(source.config.task, source.config.data.options)
        """The task: `run.task.split("5-operands", 10)` gives test questions."""

    @property
    def source(self) -> reasoners.Source:
        """What was named. Where the run has gone on since, what was read and loaded of it is let go."""
        newest = self._source.folder.newest if self._source.folder else None
        if newest not in (None, self._as_of):  # None: it was deleted, and what is in memory is the last of it
            self._as_of = newest
            self.forget()
        return self._source

    # -- what it left --------------------------------------------------------------------------------

    @property
    def config(self) -> RunConfig:
        """All settings."""
        return self.source.config

    @property
    def path(self) -> Path | None:
        """The run's folder, in full; None for a base model."""
        return self.source.folder.path if self.source.folder else None

    @property
    def reasoners(self) -> tuple[Reasoner, ...]:
        """Those that can be tested: of "q", the sampler, and "p", the model."""
        return self.source.reasoners

    @property
    def status(self) -> str:
        """One of "finished", "stopped", "failed", "running" (or killed), and "untrained" for a base model."""
        if self.source.folder is None:
            return "untrained"
        return self.source.folder.about.status

    @property
    def results(self) -> Results:
        """The accuracies of each round, and the rest of `results.json`. Raises UsageError for an unfinished run."""
        record = self.folder("results").results
        return Results(record, self.task.metrics, tested_splits(self.config, self.task))

    @property
    def events(self) -> pd.DataFrame:
        """The event log so far, a row an event: `kind` (the phase), round, unit, and the figures of that kind."""
        frame = data_frame(self.folder("events").events())
        if "time" in frame:
            import pandas as pd

            frame["time"] = pd.to_datetime(frame["time"], format="ISO8601", utc=True, errors="coerce")
        for name in ("round", "unit", "n", "correct"):  # a note has none: with NaN they would be fractions
            if name in frame:
                with suppress(TypeError, ValueError):
                    frame[name] = frame[name].astype("Int64")
        return frame

    def rationales(self) -> LoggedRationales:
        """The rationales that were logged while it trained, a few of each step."""
        from latent_cot.api.rationales import LoggedRationales

        return LoggedRationales(self.folder("logged rationales"))

    # -- ask it --------------------------------------------------------------------------------------

    @overload
    def sample(  # type: ignore[overload-overlap]  # a text is an iterable of texts, too
        self,
        question: str | Example,
        n: int = 8,
        *,
        reasoner: Reasoner | None = None,
        answer: str | int | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        progress: bool = True,
    ) -> Rationales: ...
    @overload
    def sample(
        self,
        question: Iterable[str | Example],
        n: int = 8,
        *,
        reasoner: Reasoner | None = None,
        answer: None = None,
        temperature: float = 1.0,
        seed: int = 0,
        progress: bool = True,
    ) -> list[Rationales]: ...
    def sample(
        self,
        question: str | Example | Iterable[str | Example],
        n: int = 8,
        *,
        reasoner: Reasoner | None = None,
        answer: str | int | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        progress: bool = True,
    ) -> Rationales | list[Rationales]:
        """Sample `n` rationales for a question and score the distinct ones under q and p; of several questions, which
        are sampled together, a list.

        Args:
            question: what a user types, or an example of the task; or several, such as `run.task.read("mine.jsonl")`.
            reasoner: who samples; None: q if it has one that sees the question only, else p. As in tests, q writes for
                a p that has learned to decide only (`m_step.target`).
            answer: the question's answer, where the task cannot work it out: for the log-reward, the weights, for right
                or wrong, and for a q that sees it. Of several questions each is an example that has its own.
            temperature: of the sampling; 0 is greedy. All log-probabilities are those of temperature 1.
            seed: the same seed gives the same rationales for the same questions; for more of them, or other noise, give
                another.
            progress: of several questions, show how far it has got.

        Raises UsageError if it is no question of this task.
        """
        several = isinstance(question, Iterable) and not isinstance(question, str)
        if several and answer is not None:
            remedy = "give examples that have their own: run.task.example(question, answer)"
            raise UsageError(f"answer {answer!r:.80}: is that of one question, and there are several; {remedy}")
        check_sampling(n=n, temperature=temperature, seed=seed)
        given: Any = question if several else [question]
        examples = [self._example(one, answer) for one in given]
        sampling: dict[str, Any] = {"reasoner": reasoner, "temperature": temperature, "seed": seed}
        found = list(self.sample_each(examples, n, **sampling, progress=progress and several))
        return found if several else found[0]

    def sample_each(
        self,
        examples: Sequence[Example],
        n: int,
        *,
        reasoner: Reasoner | None,
        temperature: float,
        seed: int,
        progress: bool,
    ) -> Iterator[Rationales]:
        """What `sample` gives of each question, as it comes: there may be more than memory has room for."""
        asked = reasoner or self.reasoners[0]
        if asked not in self.adapters:
            self.source.require(asked)
        loop = self.in_memory()

        from latent_cot.methods.seeding import seed_of  # here, as torch comes with it

        for example in examples:  # what cannot be asked is told before the others have been
            loop.test_text(loop.sampler_of(asked) or asked, example)
        as_it_is = temperature == 1 and loop.draws_as_it_is
        with Items(Console(stderr=True, quiet=not progress), "questions", len(examples)) as items:
            for part in loop.at_once(len(examples), n):
                batch = [examples[i] for i in part]
                own_seed = seed_of("sample", seed, part.start) if part.start else seed
                writer, drawn = loop.rationales_of(asked, batch, n=n, temperature=temperature, seed=own_seed)
                for example, counts in zip(batch, drawn, strict=True):
                    weighed = writer is not None and as_it_is
                    yield self._scored(loop, example, counts, writer or asked, weighed=weighed, reasoner=asked)
                    items.advance()
        self._tell_failures(loop)

    def score(
        self,
        question: str | Example,
        *rationales: str | Rationale | ScoredRationale | LoggedRationale,
        answer: str | int | None = None,
    ) -> Rationales:
        """What q and p make of rationales, token by token: of texts that you write, such as `" 6 - 0 = 6, 6 - 4 = 2"`,
        and of those that a run has sampled or logged.

        A text begins with its leading space. A tool's result is put in where it is not written. Of equal rationales the
        result has one, so that it may have fewer than were given; `text` tells which it is.

        Raises UsageError for a text with a token that is not allowed, with a call that fails, or with an end where a
        chain may not stop. It is taken for a slip: a model may well write a call that fails, and its chain be cut. What
        was sampled is taken with all that, by its tokens, if this run's tokenizer and tools give the same ones.
        """
        from latent_cot.rationales.chain import encode_rationale, replayed

        check_sampling(rationales=len(rationales))
        given = [_text_or_tokens(one) for one in rationales]
        loop = self.in_memory()
        example = self._example(question, answer)
        rules = loop.test_rules
        encoded = [
            replayed(one, rules)
            if isinstance(one, Rationale)
            else encode_rationale(disk.refuse_surrogates(one, "rationale"), rules, written=True)
            for one in given
        ]
        return self._scored(loop, example, dict.fromkeys(encoded, 1), None, weighed=False, reasoner="p")

    def evaluate(
        self,
        split: str | Sequence[str] | None = None,
        *,
        files: str | Path | Sequence[str | Path] | None = None,
        reasoner: Reasoner | None = None,
        size: int | None = None,
        votes: int = 1,
        samples: int | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        exclude: str | Path | Sequence[str | Path] | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> Evaluation:
        """Ask test questions that the run was not trained on, and grade the answers.

        Args:
            split: a test split, such as `"5-operands"`, several along a number, `"operands=3..8"`, or a list of these.
                None given: the task's own.
            files: a file of questions, in the task's format, or several.
            reasoner: "q" or "p"; None: all that answer test questions.
            size: the first questions of each split only; None: all of them.
            votes: chains a question; above 1 the majority of their answers decides.
            samples: rationales a question, for a task with metrics; None: the run's, or as many as the task likes.
            temperature: 0 is greedy; None: 0, or 0.5 with several votes; of a task with metrics, the run's own.
            max_tokens: tokens a chain may choose; None: the run's `evaluation.max_tokens`.
            exclude: a file, or several, whose questions are left out.
            seed: of the sampling.
            progress: show how far it has got.

        Raises UsageError for an unknown split, a bad file, or a reasoner that cannot answer.
        """
        check_sampling(
            votes=votes, samples=samples, size=size, max_tokens=max_tokens, temperature=temperature, seed=seed
        )
        check_for_task(self.task, votes=votes, samples=samples)
        configured = self.config.evaluation
        own, usual = {"votes": votes}, 0.0 if votes == 1 else 0.5
        if self.task.is_measured:
            own = {"samples": samples or configured.samples or self.task.samples}
            usual = configured.temperature
        temperature = usual if temperature is None else temperature
        decoding = {"max_tokens": max_tokens or configured.max_tokens, **own, "temperature": temperature}
        self.task.require()
        if temperature == 0 and own.get("samples", 1) > 1:
            self._tell(f"All {own['samples']} rationales of a question are the same one: the temperature is 0.")
        if reasoner is not None:
            self.source.require(reasoner)
        named = _names("split", split)
        asked = _names("files", files)
        left_out = _names("exclude", exclude)
        sweeps = [self.task.sweep(pattern) for pattern in named]
        data = self.training_data()
        training = [*data.demonstrations, *data.unlabelled]
        splits = splits_of(
            self.task, sweeps, files=asked, exclude=left_out, size=size, seen=[*training, *data.validation]
        )
        curves = [Curve.of(sweep, training) for sweep in sweeps]
        points = {
            split: {**numbers, "trained": split in curve.trained}
            for curve in curves
            for split, numbers in curve.points.items()
            if numbers
        }
        names = [reasoner] if reasoner else self.reasoners
        loop = self.in_memory()
        found = _asked(loop, self.task, splits, names, {**decoding, "seed": seed}, progress=progress)
        self._tell_failures(loop)
        return Evaluation(self.task, splits, [curve for curve in curves if curve.axes], points, decoding, **found)

    def export(
        self, folder: str | Path, *, reasoner: Reasoner | None = None, merge: bool = False, force: bool = False
    ) -> Path:
        """Write a reasoner into a folder that works without this package: weights, tokenizer, settings, model card
        (`docs/exporting.md`). Returns the folder.

        Args:
            reasoner: "q" or "p"; None: q, where it answers questions.
            merge: the base model's weights with the adapter's in them, instead of the adapter alone.
            force: replace what an earlier export has left in the folder.

        Raises UsageError for a base model, and for a folder that is not free.
        """
        from latent_cot.run.export.whole import export

        target = disk.expanded(folder)
        of_run = self.folder("adapter to export")
        done = export(self.source, of_run, self.task, target, reasoner=reasoner, merge=merge, force=force)
        for note in done.notes:
            self._tell(note)
        if done.left_to_write:
            self._tell(f"The card's program lacks {', '.join(done.left_to_write)} (docs/exporting.md).")
        return target

    # -- how it looks --------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"<{printable(self._title)}>"

    def _repr_html_(self) -> str:
        parts = [f"<div><b>{escaped(self._title)}</b></div>"]
        if self.source.folder is not None and (self.source.folder.path / "results.json").exists():
            parts.append(self.results.table().html())
        return page(*parts)

    @property
    def _title(self) -> str:
        c = self.config
        model = Path(c.model).name if Path(c.model).is_dir() else c.model
        if self.source.folder is None:
            return f"{model} as it is, on {self.task.name}"
        status = "its run.json cannot be read"
        with suppress(UsageError):
            status = self.status
        return f"{self.source.folder.given}: {c.method} on {self.task.name} with {model}, seed {c.seed}, {status}"

    # -- what these need -----------------------------------------------------------------------------

    @property
    def adapters(self) -> tuple[Reasoner, ...]:
        """Those that were trained: a q that sees the answer can be sampled from and scored with, though not tested."""
        return ("q", "p") if self.source.has_q else ("p",)

    def in_memory(self) -> Method:
        """The model with its adapters: loaded once, and again where the run has gone on since."""
        source = self.source  # first: it may let go of the loop
        if self._loop is None:
            with self.while_loading():
                data = reasoners.needed_data(source, self.task)
                self._loop = reasoners.load(source, data)
            self._tell(reasoners.other_task(source))
            self._tell(reasoners.other_data(source, data))
            self._tell(reasoners.other_model(source, self._loop.lm))
            self._tell(reasoners.other_precision(source, self._loop.lm))
        return self._loop

    def training_data(self) -> TaskData:
        """The examples that it learned from, as its task and its files have them now; none for a base model. Where they
        have changed since, the user is told."""
        data = reasoners.training_data(self.source, self.task)
        self._tell(reasoners.other_data(self.source, data))
        return data

    def _tell(self, note: str | None) -> None:
        if note is not None and note not in self.notes:
            self.notes.append(note)
            self.on_note(note)

    def _tell_failures(self, loop: Method) -> None:
        """Where code of the user's own has failed, an answer counts as wrong."""
        for note in failures((self.task, loop.task, *loop.rules.tools)):
            self._tell(note)

    def _example(self, question: str | Example, answer: str | int | None) -> Example:
        if not isinstance(question, str | Example):
            raise UsageError(f"a question is a text, or an Example: {question!r:.80}")
        if isinstance(question, Example) and answer is not None:
            raise UsageError(f"answer {answer!r:.80}: an Example has its own (`answer`, and `y`); put it in there")
        if type(answer) is int:  # as in a file
            answer = str(answer)
        if not isinstance(answer, str | None):
            raise UsageError(f"an answer is a text, or a whole number: {answer!r:.80}")
        try:
            example = question if isinstance(question, Example) else self.task.example(question, answer)
        except ValueError as error:  # of a task of the user's own, which is to raise UsageError
            raise UsageError(f"no question of {self.task.name}: {question!r:.80} ({first_line(error)})") from error
        for text in (example.x, example.y, example.z, example.answer, example.question):
            disk.refuse_surrogates(text or "", "question")
        return example

    def _scored(
        self,
        loop: Method,
        example: Example,
        counts: Mapping[Any, int],
        sampler: Reasoner | None,
        *,
        weighed: bool,
        reasoner: Reasoner,
    ) -> Rationales:
        from latent_cot.api.rationales import Rationales
        from latent_cot.methods.scored import score_rationales

        with_q = "q" in self.adapters and loop.q_reads(example)
        found = score_rationales(
            loop,
            example,
            counts,
            with_q=with_q,
            proposal=sampler if weighed else None,
            reasoner=reasoner,
        )
        items = list(found.rationales)
        if sampler is not None:
            items.sort(key=lambda item: (item.weight or 0.0, item.log_reward or 0.0, item.log_p), reverse=True)
        colour = sampler or ("q" if with_q else "p")
        return Rationales(example, tuple(items), sampler, found.ess, found.bound, colour, loop.reward.name)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is loaded by its path, in another process too. (Whoever unpickles trusts what is pickled.)"""
        folder, task = (self.path, None) if self.source.folder else (self.config.model, self.config.task)
        return _loaded, (str(folder), task)

    def forget(self) -> None:
        """Let go of the model in memory, and of what was read of its checkpoints: they are loaded again when they are
        needed, as they are on disk then."""
        self._loop, self._source = None, replace(self._source)

    def folder(self, what: str) -> RunFolder:
        """Where it lies on disk. Raises UsageError for a base model, which has no `what`."""
        if self.source.folder is None:
            raise UsageError(f"{self.config.model}: a base model has no {what}; load a run's folder")
        return self.source.folder


def _loaded(target: str, task: str | None) -> Run:
    return load(target, task=task, trust_code=True)


def _names(what: str, given: object) -> list[str]:
    """Names, of one or several; None: of none. Raises UsageError for what holds others than texts and paths."""
    if given is None:
        return []
    several = [given] if isinstance(given, str | Path) else list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(one, str | Path) for one in several):
        raise UsageError(f"{what} is {given!r:.80}; give a name, or a list of names")
    return [str(one) for one in several]


def _text_or_tokens(given: object) -> str | Rationale:
    """A rationale as `Run.score` is given it: its text or, of one that was sampled, its tokens. Raises UsageError."""
    own = getattr(given, "rationale", given)  # of a ScoredRationale, a LoggedRationale
    if isinstance(own, str | Rationale):
        return own
    remedy = "give texts, or rationales that were sampled: score(question, *texts)"
    raise UsageError(f"a rationale is a text, and no {type(given).__name__}; {remedy}")


def _asked(
    loop: Method,
    task: Task,
    splits: Mapping[str, Split],
    names: Sequence[Reasoner],
    decoding: Mapping[str, Any],
    *,
    progress: bool,
) -> dict[str, dict[str, dict[Any, Any]]]:
    """Each reasoner is asked the questions: what `Evaluation` has of its answers.

    Args:
        loop: its `test_rules` are as they were afterwards.
    """
    from latent_cot.evaluation.evaluate import Accuracy, figure_of, measure

    how, rules = dict(decoding), loop.test_rules
    loop.test_rules = replace(rules, max_tokens=how.pop("max_tokens"))
    if task.is_measured:
        how["n"] = how.pop("samples")
    found: dict[str, dict[str, dict[Any, Any]]] = {
        field: {} for field in ("figures", "outcomes", "measured", "questions")
    }
    total = len(names) * sum(len(split.examples) for split in splits.values())
    try:
        with Items(Console(stderr=True, quiet=not progress), "questions", total) as items:
            for name, (split, questions) in product(names, splits.items()):
                n = len(questions.examples)
                if task.is_measured:
                    measured = loop.sample_tests(name, questions.examples, **how)
                    values = measure(task, measured)
                    figures: dict[str, Any] = {m: figure_of(of, n).to_json() for m, of in values.items()}
                    found["measured"].setdefault(name, {})[split] = measured
                    of_each = {m: list(of) for m, of in values.items() if isinstance(of, Sequence)}
                    items.advance(n)
                else:
                    answered = []
                    for outcome in loop.answer_tests(name, questions.examples, **how):
                        answered.append(outcome)
                        items.advance()
                    figures = Accuracy(sum(outcome.correct for outcome in answered), n).to_json()
                    found["outcomes"].setdefault(name, {})[split] = answered
                    of_each = {outcomes.RIGHT: [float(outcome.correct) for outcome in answered]}
                found["questions"].setdefault(name, {}).update(
                    outcomes.of_questions(split, questions.examples, of_each)
                )
                found["figures"].setdefault(name, {})[split] = figures
    finally:
        loop.test_rules = rules
    return found


MOST = 1_000_000
"""Chains of a question, tokens of a chain, questions of a split."""


_NEED_NOT_BE = ("samples", "size", "max_tokens")


def check_for_task(task: Task, prefix: str = "", *, votes: int, samples: int | None) -> None:
    """Raises UsageError for votes where there are no right answers, and for samples where there are. `prefix`: `--`, if
    these are flags."""
    if samples is not None and not task.is_measured:
        why = f"the task {task.name} has right answers; it has chains that vote"
        raise UsageError(f"{prefix}samples: {why}: use {prefix}votes")
    if votes > 1 and task.is_measured:
        raise UsageError(f"{prefix}votes: the task {task.name} has no right answers, only figures; leave it out")


def check_sampling(prefix: str = "", temperature: float | None = None, seed: int = 0, **counts: int | None) -> None:
    """Raises UsageError, naming the setting, for a temperature that nothing can be sampled at, a count below 1 or
    beyond `MOST`, a seed that there is not, several votes at temperature 0, and what is no number.

    Args:
        prefix: `--`, if these are flags.
        counts: None, of one of `_NEED_NOT_BE`: the default.
    """
    for name, value in {**counts, "seed": seed}.items():
        if not isinstance(value, Integral) and not (value is None and name in _NEED_NOT_BE):
            raise UsageError(f"{prefix}{name} is {value!r:.40}; it must be a whole number")
    heat: object = temperature  # what a caller without a type checker has given
    if not isinstance(heat, Real | None):
        raise UsageError(f"{prefix}temperature is {heat!r:.40}; it must be a number")
    for name, value in counts.items():
        written = prefix + (name.replace("_", "-") if prefix else name)
        if value is not None and value < 1:
            raise UsageError(f"{written} is {value}; it must be at least 1")
        if value is not None and value > MOST:
            raise UsageError(f"{written} is {value!s:.12}...; it must be at most {MOST:,}")
    if not 0 <= seed < 2**32:
        raise UsageError(f"{prefix}seed is {seed!s:.12}; it must be from 0 to {2**32 - 1}")
    try:
        sampling_temperature(0 if temperature is None else temperature)
    except ValueError as error:
        raise UsageError(f"{prefix}temperature is {temperature:g}; it must be {error}") from error
    if temperature == 0 and (votes := counts.get("votes") or 1) > 1:
        remedy = f"give a {prefix}temperature above 0, or {prefix}votes 1"
        raise UsageError(f"{prefix}votes is {votes}: at temperature 0 all chains of a question are the same; {remedy}")
