"""`latent-cot plan`: memory, time and money of a round of EM, before it is started."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from platformdirs import user_cache_path

from latent_cot import __version__, disk, tasks
from latent_cot.cli.options import Switch, parse_run, preset_config, print_json, progress_console
from latent_cot.config.methods import METHODS
from latent_cot.config.schema import TRANSFORMERS, RunConfig, tested_chains, tested_splits
from latent_cot.config.settings import check, flag, from_dict, refuse_task_code
from latent_cot.planning.cost import Cost, CostModel
from latent_cot.planning.hardware import GPUS, Hardware
from latent_cot.planning.layout import Layout, layouts, split, suggested
from latent_cot.planning.lengths import Lengths, lengths_of
from latent_cot.planning.rounds import Texts
from latent_cot.planning.shape import shape_of
from latent_cot.report.tables import Table
from latent_cot.report.terminal import say, waiting
from latent_cot.types import Task, UsageError, did_you_mean

SHOWN = (
    *("task", "model", "p_init", "gradient_checkpointing", "max_batch_tokens", "data.unlabelled"),
    *("e_step.steps", "e_step.questions", "e_step.samples", "m_step.steps", "m_step.batch_size", "evaluation.size"),
)
"""The settings that `--help` shows."""
OWN = (
    *("preset", "config", "gpu", "gpus", "price", "questions", "prompt_tokens", "chain_tokens", "longest_chain"),
    *("answer_tokens", "states", "distinct", "tflops", "bandwidth", "memory", "overhead", "measure", "json"),
)
PROMPT, ANSWER = 16.0, 8.0
"""Tokens where nothing is known: those of arithmetic."""
_CACHE = "machine.json"
"""What was measured of this machine, in the user's cache."""


@dataclass(frozen=True)
class PlanOptions:
    """Predict memory, time and money of round 0 and of a round of EM, and what binds, from a cost model: see
    docs/scale.md. Nothing is trained and no weights are read.

    How long questions, rationales and answers are is counted in the task's data, with the model's tokenizer, where
    both are on this machine; the plan says so. --model takes a short name too, such as 7b: nothing but its sizes is
    needed.
    """

    preset: str | None = None
    """A set of defaults: `cpu` (used if none is given), `paper` or `smoke`."""
    config: Path | None = None
    """A YAML file with settings, in the form that `em --print-config` prints."""
    gpu: str = "cpu"
    """The device: `l4`, `4090`, `l40s`, `a100-40`, `a100`, `h100`, `h200`; or `cpu`, this machine, which is measured
    once, in half a minute."""
    gpus: int = 1
    """How many there are."""
    price: float | None = None
    """Dollars an hour for each device. None: hours only."""
    questions: int | None = None
    """Questions of training, with or without rationale. None: those of `data`."""
    prompt_tokens: float | None = None
    """Mean tokens of a question as the model reads it. None: as in the data, or 16 if these cannot be read."""
    chain_tokens: float | None = None
    """Mean tokens of a rationale, those of tools included. None: as in the demonstrations or, without any, as many as
    `rollout.max_tokens`, which is the most."""
    longest_chain: float | None = None
    """Tokens of the longest of those that are sampled at once. None: as the mean, or `rollout.max_tokens` if more."""
    answer_tokens: float | None = None
    """Mean tokens of an answer's text Y. None: as in the data, or 8 if these cannot be read."""
    states: float | None = None
    """Prefixes of a rationale at which it may stop. None: as in the demonstrations or, without any, all, or one in 16
    where chains stop after steps."""
    distinct: float = 1.0
    """Share of the E-step's sampled tokens that are run: chains of a question share what they begin with. 1 at first,
    0.15 for a sampler that is sure of itself."""
    tflops: float | None = None
    """TFLOP/s of large matrix products, in place of what is known or measured."""
    bandwidth: float | None = None
    """GB/s at which weights are read, likewise."""
    memory: float | None = None
    """GB of a device, likewise."""
    overhead: float | None = None
    """Milliseconds of a layer's small operations in a step of decoding, likewise."""
    trust_code: Switch = False
    """Run the Python files that a task's YAML file names (a tool, a grader)."""
    measure: Switch = False
    """Measure this machine again."""
    json: Switch = False
    """Print the plan as JSON to standard output."""
    settings: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


@dataclass(frozen=True)
class Assumed:
    """How long texts are taken to be."""

    texts: Texts
    origin: Mapping[str, str]
    """Field of `Texts` -> `given` by a flag, `counted` or `estimated` in the data, or `assumed`."""
    data: Mapping[str, int]
    """How many examples of each part there are, where that is known."""
    notes: Sequence[str]


@dataclass(frozen=True)
class Measured:
    """What is kept of a measurement."""

    like: str
    """The machine and versions."""
    device: Hardware


def run(argv: Sequence[str]) -> int:
    """The command; returns 0."""
    options: PlanOptions = parse_run(PlanOptions, argv, "plan", preset_config(argv), SHOWN, OWN)
    config = _config(options)
    check(config)
    refuse_task_code(config, trusted=options.trust_code)
    shape = shape_of(config.model, trust_remote_code=config.trust_remote_code)
    task = tasks.load(config.task, config.data.options)
    device = _device(options)
    costs = CostModel(shape, device, config.lora.rank, config.gradient_checkpointing)
    splits = len(tested_splits(config, task))
    assumed = _assumed(options, config, task)
    texts = assumed.texts
    config = from_dict({"data": assumed.data}, "the data", config)
    config = replace(config, evaluation=replace(config.evaluation, samples=tested_chains(config, task)))
    found = layouts(config, texts, costs, options.gpus, splits)
    chosen = suggested(found)
    if options.json:
        print_json(_record(options, device, assumed, found, chosen))
        return 0
    console = progress_console(to_stderr=False)
    shown = chosen or min(found, key=lambda one: one.round.peak)
    for table in (_memory(shown), _time(shown), _ways(found, options.price)):
        table.show(console)
    for line in (*assumed.notes, *_advice(options, found, chosen)):
        say(console, line)
    return 0


def _config(options: PlanOptions) -> RunConfig:
    """The settings of the run. Raises UsageError for an option out of range."""
    config = options.settings
    if METHODS[config.method].target != METHODS["em"].target:
        raise UsageError(f"--method {config.method}: rounds of em and em-x are planned; leave it out")
    if config.rollout.engine != TRANSFORMERS:
        it = f"--rollout.engine {config.rollout.engine}"
        raise UsageError(f"{it}: rollouts by {TRANSFORMERS} are planned; leave it out")
    if config.precision == "fp32" and options.gpu != "cpu":
        raise UsageError("--precision fp32: GPUs are planned in bf16; give bf16")
    for name, value in vars(options).items():
        if isinstance(value, int | float) and not isinstance(value, bool) and not 0 < value < math.inf:
            raise UsageError(f"{flag(name)} {value}: give a number above 0")
    if options.distinct > 1:
        raise UsageError(f"--distinct {options.distinct:g}: is a share; give at most 1")
    if options.questions is None:
        return config
    unlabelled = options.questions - config.data.demonstrations
    if unlabelled < 0:
        least = f"fewer than the {config.data.demonstrations} --data.demonstrations among them"
        raise UsageError(f"--questions {options.questions}: {least}; give more")
    return replace(config, data=replace(config.data, unlabelled=unlabelled))


def _assumed(options: PlanOptions, config: RunConfig, task: Task) -> Assumed:
    """How long texts are: as the flags say, else as in the data, else as long as the settings allow, or as usual."""
    flags = {
        "prompt": options.prompt_tokens,
        "chain": options.chain_tokens,
        "answer": options.answer_tokens,
        "states": options.states,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    known = Lengths()
    if len(given) < len(flags):
        with waiting(progress_console(to_stderr=True), "Looking at the task's data"):
            known = lengths_of(config, task, whole=options.questions is None)
    found = {name: value for name, value in known.tokens.items() if name not in given}
    if "chain" in given:  # the states are those of other chains
        found.pop("states", None)
    most = float(config.rollout.max_tokens)
    usual = {"prompt": PROMPT, "chain": most, "answer": ANSWER}
    tokens = {**usual, **found, **given}
    if options.longest_chain and options.longest_chain < tokens["chain"]:
        mean = f"below the {tokens['chain']:.3g} of a chain's mean"
        raise UsageError(f"--longest-chain {options.longest_chain:g}: {mean}; give more, or fewer --chain-tokens")
    step = 1 if config.rollout.granularity == "token" else 16
    texts = Texts(
        prompt=tokens["prompt"],
        chain=tokens["chain"],
        longest=max(tokens["chain"], options.longest_chain or most),
        answer=tokens["answer"],
        states=tokens.get("states") or max(1.0, tokens["chain"] / step),
        distinct=options.distinct,
    )
    origin = {name: "given" if name in given else known.how if name in found else "assumed" for name in flags}
    notes = _notes(texts, origin, known)
    if len(given) == len(flags) and options.questions is None:
        data = config.data
        asked = f"{data.demonstrations} demonstrations and {data.unlabelled} other questions are asked for"
        notes.append(f"The data were not counted: {asked}; --questions says how many there are.")
    return Assumed(texts, origin, known.data, notes)


def _notes(texts: Texts, origin: Mapping[str, str], known: Lengths) -> list[str]:
    """Sentences on where the lengths come from."""
    shown = {"prompt": "prompts", "chain": "rationales", "answer": "answers"}
    means = {how: _listed(texts, shown, origin, how) for how in ("counted", "estimated", "assumed")}
    lines = []
    if means["counted"]:
        lines += [f"Tokens in {known.examples} training examples, means: {means['counted']}."]
    if means["estimated"]:
        what = f"Tokens in {known.examples} training examples, means, estimated from the characters"
        lines += [f"{what} ({known.why_not}): {means['estimated']}."]
    if means["assumed"]:
        why = f"as the data were not looked at ({known.why_not})" if not known.examples else "as the data have none"
        lines += [f"Tokens taken for granted, {why}: {means['assumed']}."]
    return lines


def _listed(texts: Texts, shown: Mapping[str, str], origin: Mapping[str, str], how: str) -> str:
    return ", ".join(f"{text} {getattr(texts, name):.3g}" for name, text in shown.items() if origin[name] == how)


def _device(options: PlanOptions) -> Hardware:
    """The device, with what the flags say of it."""
    if options.gpu != "cpu" and options.gpu not in GPUS:
        names = ", ".join([*GPUS, "cpu"])
        raise UsageError(f"--gpu {options.gpu}: is not known.{did_you_mean(options.gpu, GPUS)} Give one of {names}")
    device = _measured(options) if options.gpu == "cpu" else GPUS[options.gpu]
    device = replace(
        device,
        flops=1e12 * options.tflops if options.tflops else device.flops,
        read=1e9 * options.bandwidth if options.bandwidth else device.read,
        memory=1e9 * options.memory if options.memory else device.memory,
    )
    if options.overhead is None:
        return device
    return replace(device, decode=replace(device.decode, layer_seconds=options.overhead / 1e3))


def _measured(options: PlanOptions) -> Hardware:
    """This machine, as it was measured when it was like this."""
    import torch  # here, as all that takes seconds

    precision, threads = options.settings.precision, torch.get_num_threads()
    at = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{threads} threads"
    like = f"{platform.node()}, {at}, {precision}, torch {torch.__version__}, latent-cot {__version__}"
    with suppress(OSError, UsageError, RuntimeError):  # none yet, or another version's; a user without a home
        cache = user_cache_path("latent-cot") / _CACHE
        known = disk.decoded(Measured, disk.parse_json(disk.read(cache, 2**16), str(cache)), str(cache))
        if known.like == like and not options.measure:
            return known.device
    from latent_cot.planning.measure import this_machine

    with waiting(progress_console(to_stderr=True), "Measuring this machine"):
        device = this_machine(precision=precision)
    with suppress(OSError, RuntimeError):  # it is measured again next time
        cache = user_cache_path("latent-cot", ensure_exists=True) / _CACHE
        disk.write(cache, json.dumps(asdict(Measured(like, device))).encode())
    return device


# -- showing ---------------------------------------------------------------------------------------------


def _memory(layout: Layout) -> Table:
    parts = {**layout.round.held, **layout.round.working, "at most at once": layout.round.peak}
    figures = {"GB": [f"{value / 1e9:.2f}" for value in parts.values()]}
    return Table({f"memory of each device, {layout.name}": list(parts)}, figures)


def _time(layout: Layout) -> Table:
    rounds = layout.round
    parts = {f"round 0, {name}": cost for name, cost in rounds.initial.items()}
    parts |= dict(rounds.later) | {"a round": sum(rounds.later.values(), Cost())}
    figures = {
        heading: [f"{getattr(cost, heading):,.2f}" for cost in parts.values()]
        for heading in ("seconds", "arithmetic", "bandwidth", "link", "overhead")
    }
    binds = [cost.binds if cost.seconds else "-" for cost in parts.values()]
    return Table({f"time, {layout.name}": list(parts), "binds": binds}, figures)


def _ways(found: Sequence[Layout], price: float | None) -> Table:
    figures = {
        "devices": [str(one.devices) for one in found],
        "GB of a device": [f"{one.round.peak / 1e9:.1f} of {one.memory / 1e9:.0f}" for one in found],
        "fits": ["yes" if one.fits else "no" for one in found],
        "s a round": [f"{one.seconds:,.0f}" for one in found],
        "device hours": [f"{one.device_hours:.3f}" for one in found],
    }
    if price is not None:
        figures["$ a round"] = [f"{price * one.device_hours:.2f}" for one in found]
    return Table({"layout": [one.name for one in found]}, figures)


def _advice(options: PlanOptions, found: Sequence[Layout], chosen: Layout | None) -> list[str]:
    """Sentences: what is suggested, and what to mind."""
    if chosen is None:
        least = min(one.round.peak for one in found) / 1e9
        remedy = "more or larger devices, --gradient-checkpointing, or fewer --max-batch-tokens"
        return [f"No layout fits: the smallest needs {least:.0f} GB of each device. Give {remedy}."]
    lines = [f"Suggested: {chosen.name}, {chosen.devices} of {options.gpu}."]
    if chosen.devices > 1 and chosen.round.samplers:
        samplers, trainers = split(chosen.round.samplers, options.gpus)
        lines += [
            f"An E-step samples and scores {chosen.round.samplers:.1f} times as long as it trains: apart from each "
            f"other, {samplers} samplers and {trainers} trainers would be equally busy."
        ]
    if chosen.name == "sharded":
        lines += ["How to share a run so: accelerate launch --config_file examples/fsdp.yaml (docs/performance.md)."]
    if options.gpu != "cpu":
        lines += ["GPU figures are data sheets' with assumed efficiencies; nothing of them is measured."]
    return lines


def _record(
    options: PlanOptions, device: Hardware, assumed: Assumed, found: Sequence[Layout], chosen: Layout | None
) -> dict[str, Any]:
    """The plan as JSON: bytes, seconds, device hours, dollars."""
    return {
        "model": options.settings.model,
        "device": {"name": options.gpu, **asdict(device)},
        "texts": asdict(assumed.texts),
        "texts_from": assumed.origin,
        "notes": assumed.notes,
        "suggested": chosen and chosen.name,
        "layouts": [
            {
                "name": one.name,
                "devices": one.devices,
                "fits": one.fits,
                "peak_memory": one.round.peak,
                "memory": {**one.round.held, **one.round.working},
                "round_0": _costs(one.round.initial),
                "round": _costs(one.round.later),
                "seconds": one.seconds,
                "device_hours": one.device_hours,
                "dollars": None if options.price is None else options.price * one.device_hours,
                "samplers_to_a_trainer": one.round.samplers,
            }
            for one in found
        ],
    }


def _costs(parts: Mapping[str, Cost]) -> dict[str, Any]:
    return {name: {**vars(cost), "binds": cost.binds} for name, cost in parts.items()}
