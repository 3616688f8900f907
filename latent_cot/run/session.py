"""From a configuration to a run of its method: load what is needed, go through the loop, save, resume."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, set_seed
from peft import LoraConfig

from latent_cot import disk
from latent_cot.config.methods import METHODS, has_safeguard
from latent_cot.config.schema import LoraSettings, RunConfig
from latent_cot.config.settings import to_dict
from latent_cot.methods.method import Method, method_class
from latent_cot.methods.state import Phase, State
from latent_cot.methods.trouble import Watch
from latent_cot.model import weights
from latent_cot.model.lm import ADAPTERS, AdapterName, LanguageModel
from latent_cot.model.optimise import load_optimizer, save_optimizer
from latent_cot.model.processes import Processes
from latent_cot.model.sharding import is_sharded
from latent_cot.rationales.chain import ChainRules
from latent_cot.run.engines import check_engine, open_engine
from latent_cot.run.paths import changed_task, task_digest
from latent_cot.run.preflight import (
    Examples,
    check_demonstrations,
    check_lengths,
    check_triggers,
    codec_of,
    load_examples,
    long_prompts,
)
from latent_cot.run.resuming import SAME, changed_settings, refuse_others, refuse_without_checkpoint, short_logs
from latent_cot.run.run_folder import Checkpoint, Follower, RunFolder
from latent_cot.run.schemas import Resources
from latent_cot.tasks.common import fingerprint, training_digest
from latent_cot.tools._foreign import failures
from latent_cot.types import Example, Task, TaskData, UsageError, first_line

SAVE_EVERY = 60.0
"""Seconds between two saves of a run's state."""
PATIENCE = timedelta(hours=1)
"""For which processes wait for each other: one may be waiting for an engine that does not answer, or for a disk."""
MODEL_SETTINGS = ("model", "precision", "gradient_checkpointing", "trust_remote_code", "lora")
"""Sessions that agree in these can have the same model."""
SLICING = (
    *("rollout.batch_size", "m_step.samples", "evaluation.votes"),
    *("evaluation.samples", "evaluation.size", "evaluation.diagnostics", "evaluation.splits"),
)
"""These decide which questions are in a unit of work. Within a phase they must not change."""


@dataclass
class Session:
    """Everything a command needs, built from a configuration."""

    config: RunConfig
    lm: LanguageModel
    model_source: Mapping[str, str]
    """Where the base model came from."""
    model_note: str
    """A sentence on its device and precision."""
    task: Task
    data: TaskData
    tests: Mapping[str, Sequence[Example]]
    rules: ChainRules
    """For training."""
    test_rules: ChainRules
    """For tests: chains may be longer."""
    notes: list[str]
    """Sentences the user should see."""

    @property
    def failures(self) -> list[str]:
        """A sentence on each, the task and the tools, whose code has failed."""
        return failures((self.task, *self.rules.tools))

    def loop(self, data: TaskData | None = None, **arguments: Any) -> Method:
        """The method's loop. `data`: other training examples than the session's own."""
        given = (self.config, self.lm, self.task, data or self.data, self.tests, self.rules, self.test_rules)
        return method_class(self.config.method)(*given, **arguments)


class Stopped(Exception):
    """The run was asked to stop; everything is saved."""


def open_session(
    config: RunConfig,
    *,
    load_data: bool = True,
    loaded: Session | None = None,
    examples: Examples | None = None,
    on_load: Callable[[], None] = lambda: None,
) -> Session:
    """Load the task, its tools and data, and the base model with two fresh adapters.

    With `load_data=False` there are no training examples and no tests (to answer a user's own questions). If `loaded`
    has the same base model with adapters of the same kind, that model is used again: a loop makes its own
    adapters afresh. `examples` are those that have been loaded already. `on_load` is called before a model is loaded,
    once it and all else is found.

    Raises UsageError for whatever the user can put right; cheap checks come before the slow loading.
    """
    found = examples or load_examples(config, load_data=load_data)
    task, data, notes = found.task, found.data, list(found.notes)
    if load_data:
        method_class(config.method).check(config, task, data)

    if loaded is not None and all(getattr(loaded.config, name) == getattr(config, name) for name in MODEL_SETTINGS):
        lm, source, note = loaded.lm, loaded.model_source, loaded.model_note
    else:
        lm, source, note = _load_model(config, on_load)
    set_seed(config.seed)
    notes.append(note)
    codec = codec_of(lm.tokenizer, task, found.tools)
    if codec.chat:
        notes.append("Questions go through the model's chat template: a rationale is the assistant's turn.")
    elif task.opening:
        why = "This model has no chat template" if task.chat else "Without `chat` there is no template"
        notes.append(f"{why}: the opening {task.opening!r} is left out.")
    if not codec.has_stop:
        end = codec.tokenizer.convert_ids_to_tokens(codec.stop_id)
        notes.append(f"The stop {task.stop!r} is several tokens to this model: a rationale ends with {end} instead.")
    if config.augmentation.gap_share > 0 and not lm.capabilities.positions:
        notes.append("This model has no positions that could be left out: --augmentation.gap-share does nothing.")
    r = config.rollout
    rules = ChainRules(codec, found.tools, r.granularity, task.step_delimiter, r.min_tokens, r.max_tokens)
    parts = (data.demonstrations, data.unlabelled, data.validation, *found.tests.values())
    asked = [example for part in parts for example in part]
    check_triggers(rules)
    notes += check_lengths(config, found, rules, lm.limit)
    notes += long_prompts(config, data, asked, codec, lm.positions)
    notes += check_demonstrations(task, data.demonstrations, rules)
    stops_early = METHODS[config.method].learns_demonstrations and config.sft.check_every
    if stops_early and task.is_measured:  # it is their loss that tells when
        notes += check_demonstrations(task, data.validation, rules, what="validation rationales")
    test_rules = replace(rules, max_tokens=config.evaluation.max_tokens)
    return Session(config, lm, source, note, task, data, found.tests, rules, test_rules, notes)


class _Running:
    """A loop with its folder: what it finds is logged, its state saved.

    Args:
        resume: the folder holds a run that has begun; it goes on from the newest intact checkpoint, or from the start.
    """

    def __init__(self, session: Session, folder: RunFolder, *, resume: bool) -> None:
        checkpoint = folder.latest() if resume else None
        newest, processes = "none" if checkpoint is None else checkpoint.path.name, session.lm.processes
        if processes.any(newest != processes.of_main(newest)):
            why = "processes do not read the same newest checkpoint"
            raise UsageError(f"{folder.path}: {why}; look at how the machines share that folder")
        self.notes = list[str]()  # on how it goes on
        if resume and checkpoint is None:
            refuse_without_checkpoint(folder)
            self.notes = ["Nothing was saved yet: it begins from the start."]
        self.session, self.folder = session, folder
        # What is saved refers to training examples by their place: they must be the same, in the same order.
        c, lm = session.config, session.lm
        settings = {"lora": to_dict(c)["lora"], **{name: getattr(c, name) for name in SAME}}
        self._made_of: dict[str, Any] = {
            "task": task_digest(c),
            "training": training_digest(session.data),
            "settings": settings,
            "model": lm.base_digest(),
            "weights": lm.base_digest(rounded=True),
        }
        if checkpoint is not None:
            refuse_others(checkpoint, self._made_of, c.data.train_file or session.task.name)
            self.notes = [
                *checkpoint.skipped,
                *changed_settings(checkpoint, folder, to_dict(c)),
                *changed_task(checkpoint.state, c),
                *short_logs(checkpoint, folder),
            ]
        self.loop = session.loop() if checkpoint is None else _restored(session, checkpoint)
        self._cost = Resources(0.0) if checkpoint is None else _cost_in(checkpoint)
        if resume:  # when nothing more can refuse it
            folder.rewind(checkpoint)
            rounds = folder.config.get("rounds", c.rounds)
            if rounds != c.rounds:
                folder.write_config({**folder.config, "rounds": c.rounds})
                self.notes.append(f"The run goes on to {c.rounds} rounds; it had {rounds}.")
        if resume and self.loop.state.phase < len(self.loop.phases):
            folder.unfinish()
        self._lap = time.monotonic()
        folder.mark("running")
        told = {event.get("text") for event in folder.events()} if session.lm.processes.main else set[Any]()
        for note in [*session.notes, *self.notes]:
            if note not in told:
                folder.log("note", text=note)

    def log(self, phase: Phase, info: Mapping[str, Any], seconds: float) -> None:
        """Log a unit of work that took so long."""
        of_phase = self._cost.phases
        place = {"round": phase.round, "unit": self.loop.state.unit}
        of_phase[phase.name] = of_phase.get(phase.name, 0.0) + seconds
        self.folder.log(phase.name, **place, **{key: value for key, value in info.items() if key != "samples"})
        self.folder.append_rationales({**place, "phase": phase.name, **one} for one in info.get("samples", ()))

    def save(self) -> None:
        """Save everything."""
        # Of training there may be more steps when it goes on; a phase without an optimiser goes through questions.
        within = self.loop.state.unit > 0 and self.loop.optimiser is None
        place = {"phases": _phases_until(self.loop), "slices": _slices(self.session.config) if within else None}
        position = {**self.loop.state_dict(), **place, "resources": self._spent(), **self._made_of}
        position |= {"config": self.folder.config, "questions": _tested(self.session)}
        self.folder.save(position, self._write)

    def _write(self, target: Path) -> None:
        self._write_adapters(target, checkpointed_adapters(self.session.config))
        if self.loop.optimiser is not None:
            save_optimizer(self.loop.optimiser.adam, target)

    def _write_adapters(self, target: Path, adapters: Iterable[AdapterName]) -> None:
        for adapter in adapters:
            self.session.lm.save_adapter(adapter, target / adapter)

    def finish(self) -> dict[str, Any]:
        """Write the adapters and `results.json`, and return what is in it."""
        self.save()
        if self.session.lm.processes.main:
            adapters = saved_adapters(self.session.config)
            self.folder.put_folders(adapters, lambda target: self._write_adapters(target, adapters))
        results = {**_describe(self.session), **self.loop.state.results(), "resources": self._spent()}
        self.folder.write_json("results.json", results)
        self.folder.mark("finished")
        for note in self.session.failures:
            self.folder.log("note", text=note)
        self.session.lm.processes.wait()
        return results

    def _spent(self) -> dict[str, Any]:
        """What the run has cost up to now, with what it had cost before it was resumed."""
        before, self._lap = self._lap, time.monotonic()
        self._cost.seconds += self._lap - before
        self._cost.peak_memory_bytes = max(self._cost.peak_memory_bytes, peak_memory_bytes())
        return asdict(self._cost)


def claim_folder(path: Path, config: RunConfig, processes: Processes, *, resume: bool) -> RunFolder:
    """The folder of a run that goes on (`resume`), or that of a new one, which is made: by the main process, which is
    the only one that writes there."""
    if processes.main:
        folder = RunFolder.open(path) if resume else RunFolder.create(path, to_dict(config))
    processes.wait()
    return folder if processes.main else Follower.open(path)


def run_loop(
    session: Session,
    folder: RunFolder,
    *,
    resume: bool = False,
    on_note: Callable[[str], None] = lambda note: None,
    on_start: Callable[[Method], None] = lambda loop: None,
    on_unit: Callable[[Method, Phase, Mapping[str, Any]], None] = lambda loop, phase, info: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Go through the loop, saving now and then, and write the adapters and `results.json`.

    The caller holds `folder.lock()`.

    Args:
        resume: go on from the newest intact checkpoint; from the start if there is none.
        on_note: called with each sentence on how a run goes on, such as on settings that have changed.
        on_start: called before the first unit of work, e.g. by a display ...
        on_unit: ... and after each. What it raises, an interrupt too, ends the run, which is saved first.
        should_stop: asked after each unit; if True in any of the processes, all is saved and `Stopped` is raised.

    Returns the content of `results.json`.
    """
    lm, data = session.lm, session.data
    with folder.marking_failure(), ExitStack() as stack:
        stack.enter_context(lm.sampling_by(engine := open_engine(session.config, lm)))
        running = _Running(session, folder, resume=resume)
        for note in running.notes:
            on_note(note)
        for example in (*data.unlabelled, *data.demonstrations)[:1]:
            check_engine(lm, example, session.rules)
        watch = Watch(session.config, own_reward=session.task.has_own_reward)
        if session.lm.processes.main:  # what has lasted when it was stopped goes on
            for event in folder.events():
                if "unit" in event:
                    numbers = {name: math.nan if value is None else value for name, value in event.items()}
                    figures = {name: value for name, value in numbers.items() if isinstance(value, int | float)}
                    watch.see(Phase(event["round"], event["kind"]), figures)
        on_start(running.loop)
        saved = started = time.monotonic()
        units = stack.enter_context(closing(running.loop.run()))
        for phase, found in units:
            info = watch.see(phase, found)
            running.log(phase, info, time.monotonic() - started)
            while engine is not None and engine.notes:
                folder.log("note", text=engine.notes.pop(0))
            broken: BaseException | None = None
            try:
                on_unit(running.loop, phase, info)
                stopping = should_stop()
            except BaseException as error:  # somebody else's, between two units: what is done is whole
                broken, stopping = error, True
            stopping = session.lm.processes.any(stopping)  # of them all, since they save together
            try:
                if stopping or time.monotonic() - saved >= SAVE_EVERY:
                    running.save()
                    saved = time.monotonic()
                if stopping and not isinstance(broken, Exception):
                    folder.mark("stopped")
                if stopping:  # a launcher kills the others when one of them has ended
                    session.lm.processes.wait()
            finally:
                if broken is not None:
                    raise broken
            if stopping:
                raise Stopped
            started = time.monotonic()
        return running.finish()


def load_reasoners(session: Session, folder: RunFolder) -> None:
    """Put the adapters of a run, its last ones or those of its newest checkpoint, into the session's model."""
    _read_adapters(session, folder.adapters(), saved_adapters(session.config))


def lora_config(settings: LoraSettings) -> LoraConfig:
    """PEFT's configuration of an adapter."""
    named = settings.target_modules
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=named if named == "all-linear" else [name.strip() for name in named.split(",")],
        task_type="CAUSAL_LM",
    )


def _choose_precision(wanted: str) -> tuple[torch.dtype, str]:
    """The type of the base model's weights, and why."""
    if wanted != "auto":
        return (torch.bfloat16 if wanted == "bf16" else torch.float32), f"--precision {wanted}"
    if torch.cuda.is_available():
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return (torch.bfloat16, "the hardware has bf16") if able else (torch.float32, "the hardware has no bf16")


def new_accelerator(precision: str) -> tuple[Accelerator, torch.dtype, str]:
    """The device of a run with that setting of `precision`, the base model's type, and why it is that."""
    dtype, reason = _choose_precision(precision)
    AcceleratorState._reset_state()  # a second session of this process may want another precision
    # Unless it is told so, accelerate does not see that processes without a GPU belong together.
    cpu = not torch.accelerator.is_available()
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision="bf16" if dtype is torch.bfloat16 else "no",
        # Each backward pass is a step's own; a launcher's number would divide its gradients.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    return accelerator, dtype, reason


def peak_memory_bytes() -> int:
    """The largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _load_model(config: RunConfig, on_load: Callable[[], None]) -> tuple[LanguageModel, Mapping[str, str], str]:
    folder = weights.resolve(config.model)
    on_load()
    accelerator, precision, reason = new_accelerator(config.precision)
    how = "its weights divided among" if is_sharded(accelerator) else "in"
    several = f", {how} {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
    note = f"{config.model} on {accelerator.device} in {str(precision).removeprefix('torch.')}{several}: {reason}."
    lora = lora_config(config.lora)
    trust = config.trust_remote_code
    checkpointing = config.gradient_checkpointing
    model, tokenizer = weights.load_model_and_tokenizer(folder, dtype=precision, trust_remote_code=trust)
    try:
        lm = LanguageModel(model, tokenizer, lora, accelerator, gradient_checkpointing=checkpointing)
    except ValueError as error:  # PEFT: a target module the model does not have
        targets = f"--lora.target-modules {config.lora.target_modules}"
        flag = "--gradient-checkpointing" if "checkpointing" in str(error) else targets
        raise UsageError(f"{flag}: {error}") from error
    return lm, weights.provenance(folder), note


def state_in(checkpoint: Checkpoint) -> State:
    """The loop's state in a checkpoint. Raises UsageError for one of a version that saved something else."""
    try:
        return State.from_json(checkpoint.state.get("loop"))
    except (ValueError, UsageError) as error:  # something is missing, or there is more
        remedy = "use that version for this run, or start again in another --output-dir"
        raise UsageError(f"{checkpoint.path}: saved by another version of latent-cot ({error}); {remedy}") from error


def _tested(session: Session) -> dict[str, str]:
    """Which questions each test has."""
    return {split: fingerprint(examples) for split, examples in session.tests.items()}


def _cost_in(checkpoint: Checkpoint) -> Resources:
    return disk.decoded(Resources, checkpoint.state.get("resources"), f"{checkpoint.path / 'state.json'}: resources")


def _restored(session: Session, checkpoint: Checkpoint) -> Method:
    loop = session.loop(state=state_in(checkpoint), restore=lambda adam: load_optimizer(adam, checkpoint.path))
    try:
        loop.load_state_dict(checkpoint.state)
    except (KeyError, TypeError, ValueError, OverflowError, UsageError) as error:
        raise UsageError(f"{checkpoint.path}: not as this run would have saved it: {first_line(error)}") from error
    own = _phases_until(loop)
    if checkpoint.state.get("phases") not in (own, own[:-1]):  # the last of these: it was finished
        why = "by config.yaml as it is now, the run has other phases up to where it stopped"
        raise UsageError(f"{checkpoint.path}: {why}; put it right, or start again in another --output-dir")
    if checkpoint.state.get("slices") not in (None, _slices(session.config)):
        why = f"it was saved within a phase that goes through its questions by other settings ({', '.join(SLICING)})"
        remedy = "put config.yaml right until that phase is over, or start again in another --output-dir"
        raise UsageError(f"{checkpoint.path}: {why}; {remedy}")
    now = _tested(session)
    was = disk.decoded(dict[str, str], checkpoint.state.get("questions", now), f"{checkpoint.path}: questions")
    if changed := [split for split in loop.state.tested if split in now and was.get(split) != now[split]]:
        remedy = "restore them, or start again in another --output-dir"
        raise UsageError(f"the test {changed[0]} has other questions than when this run was tested on it; {remedy}")
    if has_safeguard(session.config) and not (checkpoint.path / "kept").exists():
        why = "evaluation.diagnostics was 0 when it was saved, and the safeguard has nothing to put back"
        raise UsageError(f"{checkpoint.path}: {why}; put config.yaml right, or start again in another --output-dir")
    _read_adapters(session, checkpoint.path, checkpointed_adapters(session.config))
    return loop


def _phases_until(loop: Method) -> list[list[Any]]:
    """Round and name of each phase up to the present one, as JSON has them: `State.phase` only counts them."""
    return [[phase.round, phase.name] for phase in loop.phases[: loop.state.phase + 1]]


def _slices(config: RunConfig) -> dict[str, Any]:
    found = {name: attrgetter(name)(config) for name in SLICING}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}  # as JSON has it


def _read_adapters(session: Session, source: Path, adapters: Iterable[AdapterName]) -> None:
    for adapter in adapters:
        session.lm.load_adapter(adapter, source / adapter)


def saved_adapters(config: RunConfig) -> tuple[AdapterName, ...]:
    """What a run has to save of the model: its reasoners and, if its reward needs it, the sampler as it was."""
    has_prior = config.e_step.prior == "sampler" and METHODS[config.method].has_balance
    return ("prior", *ADAPTERS) if has_prior else ADAPTERS  # p and q say that all is there: they are the last


def checkpointed_adapters(config: RunConfig) -> tuple[AdapterName, ...]:
    """What it needs to go on: with a safeguard also the adapter that is being trained, as it was before."""
    return (*saved_adapters(config), "kept") if has_safeguard(config) else saved_adapters(config)


def _describe(session: Session) -> dict[str, Any]:
    """What the figures are figures of."""
    c = session.config
    return {
        **{name: getattr(c, name) for name in ("method", "task", "model", "seed", "q_sees")},
        "model_source": dict(session.model_source),
        "decoding": {name: getattr(c.evaluation, name) for name in ("max_tokens", "votes", "temperature")},
        "questions": _tested(session),
        "training": training_digest(session.data),
        "task_files": task_digest(c),
        "weights": session.lm.base_digest(rounded=True),
    }
