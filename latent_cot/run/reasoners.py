"""What can be sampled and tested: the reasoners of a run, or a base model as it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_cot import disk, tasks
from latent_cot.config.methods import METHODS, shows_demonstrations
from latent_cot.config.schema import RunConfig, data_request
from latent_cot.config.settings import check, from_dict, load_config, refuse_code, refuse_task_code
from latent_cot.model.weights import DEFAULT_MODEL, in_hub_cache
from latent_cot.run.paths import changed_task, refuse_moved
from latent_cot.run.run_folder import RunFolder
from latent_cot.run.schemas import Trained
from latent_cot.tasks.common import training_digest
from latent_cot.types import Reasoner, Task, TaskData, UsageError, did_you_mean

if TYPE_CHECKING:
    from latent_cot.methods.method import Method
    from latent_cot.model.lm import LanguageModel
    from latent_cot.run.session import Session


_LONGEST_NAME = 96
"""Of a model on the hub, in characters."""


_IN_RESULTS = {"training": "training", "weights": "weights", "task": "task_files"}
"""What a checkpoint says -> its name in `results.json`."""


@dataclass(frozen=True)
class Source:
    """What the user named: a run folder, or a base model."""

    config: RunConfig
    folder: RunFolder | None
    """None: a base model, whose only reasoner is p, the model itself."""

    @cached_property
    def reasoners(self) -> tuple[Reasoner, ...]:
        """Those that answer test questions."""
        if self.folder is None or (METHODS[self.config.method].trains_q and not self.has_q):
            return ("p",)
        task = tasks.load(self.config.task, self.config.data.options)
        return METHODS[self.config.method].reasoners(self.config, task.answer_given)

    @cached_property
    def has_q(self) -> bool:
        """Whether the run has made a q. It does so at the beginning of its first round: before, the adapter's weights
        are the base model's."""
        spec = METHODS[self.config.method]
        if self.folder is None or not spec.trains_q or (spec.has_rounds and not self.config.rounds):
            return False
        phases = disk.decoded(list[tuple[int, str]], self.began_with.get("phases", []), f"{self.folder.path}: phases")
        return self.finished or not phases or phases[-1][0] > 0

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end; a base model needs none."""
        return self.folder is None or (self.folder.path / "results.json").exists()

    @cached_property
    def began_with(self) -> Mapping[str, Any]:
        """What its newest checkpoint says that a run has learned from and with: `training` and `weights`, among others,
        are digests of the data and the base model. Where none is left, what `results.json` says of that; nothing for a
        base model."""
        with suppress(UsageError):  # they are damaged
            checkpoint = self.folder.latest() if self.folder is not None else None
            if checkpoint is not None:
                return checkpoint.state
        if self.folder is None or not self.finished:
            return {}
        with suppress(UsageError):
            found = self.folder.results
            return {name: found[of] for name, of in _IN_RESULTS.items() if of in found}
        return {}

    def describe(self) -> dict[str, str | None]:
        run = str(self.folder.given) if self.folder else None
        return {"run": run, "model": self.config.model, "task": self.config.task}

    def require(self, reasoner: Reasoner) -> None:
        """Raises UsageError if it cannot answer."""
        if reasoner in self.reasoners:
            return
        other = " or ".join(self.reasoners)
        why = f"a run of {self.config.method} answers with {other}"
        if self.folder is None:
            why = "an untrained model has the reasoner p only"
        elif reasoner == "q" and METHODS[self.config.method].trains_q and not self.has_q:
            why = "this run has not come to its first round" if self.config.rounds else "without a round there is no q"
        elif reasoner == "q" and METHODS[self.config.method].trains_q and self.config.q_sees == "question-and-answer":
            why = "in this run q sees the answer (--q-sees question-and-answer), so that it answers nothing new"
        raise UsageError(f"--reasoner {reasoner}: {why}; use {other}")


def find(target: str, task: str | None, *, trusted: bool = False) -> Source:
    """A run folder if `target` has a config.yaml, else a base model. Raises UsageError for neither, and for a run
    whose configuration names code unless it is `trusted`."""
    path = disk.expanded(target)
    if not os.path.exists(path):  # it takes names of any length
        _refuse_missing_folder(target, path)
    if path.is_file():
        raise UsageError(f"{target}: a file; give the folder of a run or of a model, such as {path.parent}")
    if (path / "config.yaml").exists():
        folder = RunFolder.open(path)
        config = from_dict(folder.config, str(path / "config.yaml"))
        check(config)
        refuse_moved(config, path / "config.yaml", model=False, data=False)  # a run can be looked at without these
        refuse_code(config, path / "config.yaml", trusted=trusted)
        if task is not None and task != config.task and Path(task).absolute() != Path(config.task):
            raise UsageError(f"--task {task}: the run in {path} is one of {config.task}; leave it out")
        return Source(replace(config, output_dir=str(folder.path)), folder)  # it may have been moved
    if (path / "comparison.json").exists():
        runs = sorted(str(file.parent) for file in path.glob("*/seed*/config.yaml"))
        raise UsageError(f"{target}: a comparison; give one of its runs{f', such as {runs[0]}' if runs else ''}")
    if path.is_dir() and not (path / "config.json").exists():
        if runs := sorted(str(file.parent) for file in path.glob("*/config.yaml")):
            raise UsageError(f"{target}: a folder of runs; give one of them, such as {runs[0]}")
        if (path / "adapter_config.json").exists():
            remedy = "give the run that it came from, or export that with --merge"
            raise UsageError(f"{target}: an exported adapter, which is no whole model; {remedy}")
        neither = "neither a run (no config.yaml) nor a model (no config.json)"
        raise UsageError(f"{target}: {neither}; give the --output-dir of a run, or a model")
    config = load_config(task=task)
    refuse_task_code(config, trusted=trusted)
    config = replace(config, model=target, lora=replace(config.lora, rank=1))
    loaded = tasks.load(config.task, config.data.options)
    if not loaded.tools and loaded.step_delimiter is None:  # there are no steps
        config = replace(config, rollout=replace(config.rollout, granularity="token"))
    return Source(config, None)


def _refuse_missing_folder(target: str, path: Path) -> None:
    """Raises UsageError where `target` can only be meant as a folder, and not as owner/name on the hub: by its form, or
    since there are runs beside it; and where it is neither that nor a model on this machine."""
    runs = sorted(file.parent.name for file in path.parent.glob("*/config.yaml")) if path.parent != Path() else []
    as_folder = path.parts[:1] == ("runs",) or len(path.parts) > 2 or target[:1] in ("", ".", "~", os.sep)
    if runs or as_folder or len(target) > _LONGEST_NAME:
        one = f"a run (in {path.parent}: {', '.join(runs[:8])}{', ...' if runs[8:] else ''})" if runs else "a run"
        raise UsageError(f"{target}: no such folder; give the --output-dir of {one}, or a model's folder or hub name")
    if len(path.parts) == 1 and target != DEFAULT_MODEL and in_hub_cache(target) is None:
        hint = did_you_mean(target, [DEFAULT_MODEL])
        raise UsageError(
            f"{target}: no folder and no model has this name; give the --output-dir of a run, or a model.{hint}"
        )


def load(source: Source, data: TaskData) -> Method:
    """The reasoners in memory, within the loop they come from: it knows the prompts that they read.

    Args:
        data: the training examples, which p's prompt may show (`p_init: prompt`).
    """
    from latent_cot.run.generators import kept_generators
    from latent_cot.run.session import load_reasoners, open_session

    if source.folder is not None:
        refuse_moved(source.config, source.folder.path / "config.yaml", data=False)
    try:
        with kept_generators():
            session = open_session(source.config, load_data=False)
    except UsageError as error:
        flag = f"--model {source.config.model}: "  # which the user has not given where this is what he named
        if source.folder is not None or not str(error).startswith(flag):
            raise
        text = str(error).removeprefix(flag)
        raise UsageError(f"{source.config.model}: no folder of a run, and as a model {text}") from error
    if source.folder is not None:
        load_reasoners(session, source.folder)
    return loop_of(session, source, data)


def loop_of(session: Session, source: Source, data: TaskData) -> Method:
    """The loop of a source whose adapters are in the session's model already."""
    from latent_cot.methods.state import State

    trained = source.folder is not None and _changed_p(source.folder)  # where there is no checkpoint
    try:
        checkpoint = source.folder.latest() if source.folder is not None else None
        if checkpoint is not None:  # all that is needed of its state, whatever another version has saved besides
            where = f"{checkpoint.path / 'state.json'}: loop"
            trained = disk.decoded(Trained, checkpoint.state.get("loop"), where).m_steps > 0
    except UsageError:
        if not source.finished:
            raise
    return session.loop(data, state=State(m_steps=int(trained)))


def _changed_p(folder: RunFolder) -> bool:
    """Whether an M-step has changed p, by the results of a finished run."""
    with suppress(UsageError):
        return int(folder.results.get("m_steps", 1)) > 0
    return True


def training_data(source: Source, task: Task) -> TaskData:
    """The examples that a run learned from; none for a base model. Raises UsageError where they cannot be read."""
    if source.folder is None:
        return TaskData((), (), ())
    refuse_moved(source.config, source.folder.path / "config.yaml", model=False)
    return task.load(data_request(source.config))


def other_data(source: Source, data: TaskData) -> str | None:
    """A sentence where `data`, which were loaded for a run, are not those that it has learned from."""
    loaded = bool(data.demonstrations or data.unlabelled)
    if not loaded or source.began_with.get("training") in (None, training_digest(data)):
        return None
    what = source.config.data.train_file or source.config.task
    effect = "questions that it has learned from may now be in its tests, and others be shown in prompts"
    return f"The training data are not those that this run was trained on: {effect}; restore them ({what})."


def other_task(source: Source) -> str | None:
    """A sentence where the files of the task are not those that the run began with."""
    return next(changed_task(source.began_with, source.config), None) if source.folder is not None else None


def other_model(source: Source, lm: LanguageModel) -> str | None:
    """A sentence where the base model, as it was loaded, is not the one that the run was trained with. Another
    precision does not count."""
    saved, precision = source.began_with, source.config.precision
    same = saved.get("weights") in (None, lm.base_digest(rounded=True))
    # The other digest tells the precisions apart, too, and `auto` leaves open which one it was.
    settings = saved.get("config")
    if precision != "auto" and isinstance(settings, dict) and settings.get("precision") == precision:
        same = same and saved.get("model") in (None, lm.base_digest())
    if same:
        return None
    what = f"the weights of {source.config.model} have changed since"
    return f"The base model is not the one that this run was trained with: {what}; restore them."


def other_precision(source: Source, lm: LanguageModel) -> str | None:
    """A sentence where `precision: auto` means other weights on this machine than on that where the run was trained."""
    if other_model(source, lm) or source.began_with.get("model") in (None, lm.base_digest()):
        return None
    here, there = ("bf16", "fp32") if str(lm.dtype) == "torch.bfloat16" else ("fp32", "bf16")
    return (
        f"The base model is in {here} on this machine; the run was trained in {there}, and its figures are of that: "
        f"some answers may be others here. precision: {there} in its config.yaml loads it as it was."
    )


def needed_data(source: Source, task: Task) -> TaskData:
    """Those that decide how the reasoners answer: p's prompt may show them, or fine-tuning has learned to write
    rationales from them. Otherwise loading them is a waste, and there are none."""
    needed = shows_demonstrations(source.config) or METHODS[source.config.method].learns_demonstrations
    return training_data(source, task) if needed else TaskData((), (), ())
