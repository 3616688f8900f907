"""What `eval` and `sample` work with: the reasoners of a run, or a base model as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from latent_cot.baselines import METHODS
from latent_cot.config import RunConfig
from latent_cot.errors import UsageError
from latent_cot.run import RunFolder
from latent_cot.settings import check, from_dict, refuse_code

if TYPE_CHECKING:
    from rich.console import Console

    from latent_cot.lm import Adapter
    from latent_cot.loop import Loop
    from latent_cot.types import Example, TaskData


@dataclass(frozen=True)
class Source:
    """What the user named: a run folder, or a base model."""

    config: RunConfig
    folder: RunFolder | None
    """None: a base model, whose only reasoner is p, the model itself."""

    @property
    def reasoners(self) -> tuple[Adapter, ...]:
        """Those that answer a question whose answer is not known."""
        return ("p",) if self.folder is None else METHODS[self.config.method].reasoners(self.config)

    def describe(self) -> dict[str, str | None]:
        run = str(self.folder.path) if self.folder else None
        return {"run": run, "model": self.config.model, "task": self.config.task}

    def require(self, reasoner: Adapter) -> None:
        """Raises UsageError if it cannot answer."""
        if reasoner in self.reasoners:
            return
        if self.folder is None:
            raise UsageError(f"--reasoner {reasoner}: an untrained model has the reasoner p only")
        other = self.reasoners[0]
        why = f"a run of {self.config.method} answers with {other}"
        if reasoner == "q" and self.config.condition == "xy":
            why = "in this run q sees the answer (condition xy), so that it cannot be tested"
        raise UsageError(f"--reasoner {reasoner}: {why}; use {other}")


def find(target: str, task: str | None, *, trusted: bool = False) -> Source:
    """A run folder if `target` has a config.yaml, else a base model. Raises UsageError for neither, and for a run
    whose configuration names code unless it is `trusted`."""
    path = Path(target).expanduser()
    if (path / "config.yaml").exists():
        folder = RunFolder.open(path)
        config = from_dict(folder.config, str(path / "config.yaml"))
        check(config)
        refuse_code(config, path / "config.yaml", trusted=trusted)
        if task is not None and task != config.task and Path(task).absolute() != Path(config.task):
            raise UsageError(f"--task {task}: the run in {path} is one of {config.task}; leave it out")
        return Source(config, folder)
    if path.is_dir() and not (path / "config.json").exists():
        raise UsageError(
            f"{target}: neither a run (no config.yaml) nor a model (no config.json); give the --output-dir of "
            "a run, or a model"
        )
    config = RunConfig(model=target, lora=replace(RunConfig().lora, rank=1))
    return Source(config if task is None else replace(config, task=task), None)


def load(source: Source, data: TaskData, console: Console) -> Loop:
    """The reasoners in memory, within the loop they come from: it knows the prompts that they read.

    Args:
        data: the training examples, which p's prompt may show (`init: prompt`).
    """
    from latent_cot.session import load_reasoners, open_session
    from latent_cot.state import State

    session = open_session(source.config, console=console, load_data=False)
    if source.folder is not None:
        load_reasoners(session, source.folder)
    trained = source.folder is not None and _is_model_trained(source.folder)
    return session.loop(data, state=State(model_trained=trained))


def training_questions(source: Source, data: TaskData) -> Sequence[Example]:
    """What the reasoners were trained on: nothing, for a base model."""
    return [] if source.folder is None else [*data.demonstrations, *data.pairs]


def _is_model_trained(folder: RunFolder) -> bool:
    """Has an M-step changed p? If all checkpoints were deleted, the run is taken to be complete."""
    from latent_cot.state import State

    checkpoint = folder.latest()
    return True if checkpoint is None else State.saved_in(checkpoint).model_trained
