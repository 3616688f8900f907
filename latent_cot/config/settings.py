"""Where a run's configuration comes from: defaults < preset < the task's preset of that name < the method's own
settings < YAML file < flags.

The flags are put on top by the command line (`cli/fit.py`), the rest is read here. Reading is
strict: an unknown key, a value of another type or out of range is a UsageError that names file and key.
Importing this loads no torch.
"""

from __future__ import annotations

import functools
import math
import re
import reprlib
import types
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import yaml

from latent_cot import tasks, tools
from latent_cot.config.methods import METHODS
from latent_cot.config.schema import RunConfig
from latent_cot.types import UsageError, did_you_mean

DEFAULT_PRESET = "cpu"
MAX_CONFIG_BYTES = 2**20

_PRESETS = resources.files("latent_cot.config") / "presets"
_TASKS = resources.files("latent_cot") / "tasks"


def presets() -> list[str]:
    """Names of the presets, sorted."""
    return sorted(entry.name[:-5] for entry in _PRESETS.iterdir() if entry.name.endswith(".yaml"))


def load_config(
    preset: str | None = None, file: str | Path | None = None, method: str | None = None, task: str | None = None
) -> RunConfig:
    """The dataclasses' defaults, with the values of `preset` (None: the default one), those of the task's own preset of
    that name, those that the method implies, and then those of `file`. `method` and `task` None: what the file or the
    preset names.

    Values are checked one by one, not against each other: flags may still change them. See `check`.
    Raises UsageError.
    """
    name = DEFAULT_PRESET if preset is None else preset
    if name not in presets():
        raise UsageError(f"--preset {name}: there is no such preset.{did_you_mean(name, presets())}")
    text = (_PRESETS / f"{name}.yaml").read_text(encoding="utf-8")
    config = from_dict(parse_yaml(text, f"preset {name}"), f"preset {name}")
    record, where = ({}, "") if file is None else (read_settings(file), str(file))
    own = record.get("task") if isinstance(record, Mapping) else None
    if task is not None and isinstance(own, str) and Path(own).absolute() != Path(task).absolute():
        raise UsageError(
            f"--task {task}: the settings in {file} are those of {own}; leave --task out, or take `task:` out of the "
            "file if its other settings suit"
        )
    config = replace(config, task=task or from_dict(record, where, config).task)
    config = from_dict(task_preset(config.task, name), f"preset {name} of {config.task}", config)
    config = with_method(config, method or from_dict(record, where, config).method)
    return replace(from_dict(record, where, config), method=config.method, task=config.task)


def task_preset(task: str, preset: str) -> Any:
    """What a task's folder has in `presets/PRESET.yaml`; {} if it has no such file, or is a file of the user's."""
    if not task.isidentifier():
        return {}
    file = _TASKS / task / "presets" / f"{preset}.yaml"
    return parse_yaml(file.read_text(encoding="utf-8"), f"preset {preset} of {task}") if file.is_file() else {}


def with_method(config: RunConfig, method: str) -> RunConfig:
    """A configuration for another method, with the settings that this method implies. Raises UsageError."""
    if method not in METHODS:
        raise UsageError(f"--method {method}: there is no such method.{did_you_mean(method, METHODS)}")
    return from_dict({"method": method, **METHODS[method].implied}, f"method {method}", config)


def differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, value in a, value in b) of each setting in which two configurations differ."""
    for item in fields(a):
        left, right = getattr(a, item.name), getattr(b, item.name)
        inner = f"{path}.{item.name}" if path else item.name
        if is_dataclass(left):
            yield from differences(left, right, inner)
        elif left != right:
            yield inner, left, right


def to_dict(config: RunConfig) -> dict[str, Any]:
    """As YAML and JSON can hold it: nested dictionaries, tuples as lists."""
    return cast("dict[str, Any]", _plain(asdict(config)))


def from_dict(record: Any, where: str, base: RunConfig | None = None) -> RunConfig:
    """`base` (None: the defaults) with the values of `record`, which need not name all.

    Args:
        record: nested mappings, as YAML or JSON gives them.
        where: the file, for errors.

    Raises UsageError for an unknown key or a value of the wrong type.
    """
    return cast("RunConfig", _overlay(RunConfig() if base is None else base, record, where, ""))


def to_yaml(config: RunConfig) -> str:
    """A file that `load_config` reads back as the same configuration."""
    # ASCII, with escapes: with allow_unicode PyYAML writes U+0085 so that it reads back as a space.
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def flag(path: str) -> str:
    """The command-line option of a setting: `"e_step.learning_rate"` is `--e-step.learning-rate`."""
    return "--" + path.replace("_", "-")


# -- YAML ------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe, and a key that is written twice is an error, not a silent override."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """The content of a YAML text, read safely; an empty one is `{}`. Raises UsageError naming `where` and the line."""
    try:
        record = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{where}{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not valid YAML: {error}") from error
    return {} if record is None else record


def read_settings(file: str | Path) -> Any:
    """What a file of `--config` holds, not yet checked. Raises UsageError if it cannot be read."""
    return parse_yaml(_read(Path(file).expanduser()), str(file))


def _read(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise UsageError(f"--config {file}: larger than 1 MiB; is this a configuration?")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"--config {file}: not UTF-8 text; save the file as UTF-8") from error
    except FileNotFoundError as error:
        raise UsageError(f"--config {file}: no such file; check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UsageError(f"--config {file}: cannot be read ({error})") from error


# -- types -----------------------------------------------------------------------------------------------

# YAML 1.1 takes 1e-4 for a string (it wants 1.0e-4); everybody means the number.
_SCIENTIFIC = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")


RENAMED = {
    "condition": "q_sees (question, or question-and-answer)",
    "init": "p_init",
    "lessons": "augmentation",
    "data.pairs": "data.unlabelled",
    "e_step.start": "e_step.q_init",
    "e_step.huber": "e_step.huber_delta",
    "e_step.reward_horizon": "e_step.reward_temperature_steps",
    "augmentation.strange_steps": "augmentation.distractor_steps",
    "augmentation.joined_questions": "augmentation.concat_questions",
} | {
    f"{section}.clip": f"{section}.max_grad_norm"
    for section in ("e_step", "init_step", "m_step", "ppo", "grpo", "forward_kl")
}
"""Settings of earlier versions -> what they are called now."""


@functools.cache
def _types(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _overlay(base: Any, record: Any, where: str, path: str) -> Any:
    """The dataclass instance `base` with the values of the mapping `record`."""
    if record is None:  # a section all of whose lines are commented out
        return base
    if not isinstance(record, Mapping):
        raise UsageError(f"{where}: {path or 'the file'} must be a mapping of settings, not {_short(record)}")
    kinds: dict[str, Any] = _types(type(base))  # type: ignore[arg-type]  # a mypy quirk
    values = {}
    for key, value in record.items():
        inner = f"{path}.{key}" if path else str(key)
        if inner in RENAMED:
            raise UsageError(
                f"{where}: {inner} is called {RENAMED[inner]} now; this was written for an earlier version of "
                "latent-cot: rename its settings, or, for a run, use that version"
            )
        if key not in kinds:
            known = [f"{path}.{name}" if path else name for name in kinds]
            raise UsageError(f"{where}: unknown setting {_short(inner)}.{did_you_mean(inner, known)}")
        own = getattr(base, key)
        values[key] = (
            _overlay(own, value, where, inner) if is_dataclass(own) else _structure(value, kinds[key], where, inner)
        )
    return replace(base, **values)


def _structure(value: Any, kind: Any, where: str, path: str) -> Any:
    """`value` as the type `kind`. Raises UsageError if it is of another."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (kind,) = (argument for argument in arguments if argument is not type(None))
        return _structure(value, kind, where, path)
    if origin is Literal and isinstance(value, str):
        if value in arguments:
            return value
        expected = f"one of {', '.join(arguments)};{did_you_mean(value, arguments)}".removesuffix(";")
        raise UsageError(f"{where}: {path} is {_short(value)}, expected {expected}")
    if origin is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if origin is dict and isinstance(value, Mapping):
        return {str(k): _option(v, where, f"{path}.{k}") for k, v in value.items()}
    if kind is float:
        if isinstance(value, str) and _SCIENTIFIC.fullmatch(value):
            return float(value)
        if type(value) is int:
            try:
                return float(value)
            except OverflowError:
                pass
    if kind in (bool, int, float, str) and type(value) is kind:  # exact: True is no integer
        return value
    raise UsageError(f"{where}: {path} is {_short(value)}, expected {_expected(kind)}")


_REPR = reprlib.Repr()
_REPR.maxlevel = 2


def _short(value: Any) -> str:
    """For messages. A few lines of YAML may be a value that is too large to be written out: aliases of aliases."""
    return f"{value!r:.80}" if isinstance(value, str) else f"{_REPR.repr(value):.80}"


def _option(value: Any, where: str, path: str) -> str:
    """A task's option is text; `digits: 1` is what one writes."""
    if isinstance(value, str) or type(value) in (int, float):
        return str(value)
    raise UsageError(f"{where}: {path} is {_short(value)}, expected text, e.g. '3,4'")


def _expected(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        return "a list of texts, e.g. [a, b]"
    if get_origin(kind) is dict:
        return "a mapping of texts, e.g. {operands: '3,4'}"
    return {bool: "true or false", int: "an integer", float: "a number", str: "text"}[kind]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


# -- ranges ----------------------------------------------------------------------------------------------

_POSITIVE = (
    *("lora.rank", "lora.alpha", "rollout.max_tokens", "rollout.batch_size"),
    *("e_step.questions", "e_step.samples", "e_step.huber_delta", "e_step.reward_floor", "e_step.buffer_capacity"),
    "e_step.answer_weight",
    *("e_step.reward_temperature", "e_step.final_reward_temperature"),
    *("e_step.temperature_low", "e_step.temperature_high"),
    *("evaluation.size", "evaluation.max_tokens", "evaluation.batch_size", "evaluation.votes"),
    "evaluation.samples",
    "evaluation.diagnostic_samples",
    *(
        f"{step}.{name}"
        for step in ("e_step", "init_step", "m_step")
        for name in ("learning_rate", "max_grad_norm", "max_batch_tokens")
    ),
    *(f"{step}.{name}" for step in ("init_step", "m_step") for name in ("batch_size", "samples")),
    *(f"sft.{name}" for name in ("check_every", "patience", "batch_size", "learning_rate")),
    *(
        f"{method}.{name}"
        for method in ("ppo", "grpo", "forward_kl")
        for name in ("questions", "samples", "learning_rate", "max_grad_norm")
    ),
    *(f"{method}.{name}" for method in ("ppo", "grpo") for name in ("epochs", "reward_floor", "clip_range")),
    *(f"decode.{name}" for name in ("top_p", "multiple")),
    "augmentation.largest_gap",
    "augmentation.kept_steps",
    *(f"rejection.{name}" for name in ("rounds", "trajectories", "per_question")),
    *(f"forward_kl.{name}" for name in ("rounds", "model_questions", "model_samples")),
)
"""Settings that must be above 0; every other number must not be negative."""

_SHARES = (
    *(f"augmentation.{name}" for name in ("history_dropout", "gap_share", "words_with_gaps")),
    *(f"{step}.interpolation" for step in ("init_step", "m_step", "sft")),
)
"""Settings that must not be above 1."""

SEEDS = 2**32
"""NumPy takes seeds below this."""

_TEMPERATURES = 1e-3, 1e3
"""Beyond these, logits that are divided by it overflow, or a sampler is uniform."""


def check_temperature(value: float | None, name: str = "--temperature") -> None:
    """Raises UsageError, naming the option, for one that nothing can be sampled at. 0 is greedy; None is a default."""
    low, high = _TEMPERATURES
    if value is not None and value != 0 and not low <= value <= high:
        raise UsageError(f"{name} is {value:g}; it must be 0, which is greedy, or from {low:g} to {high:g}")


def check(config: RunConfig) -> None:
    """Raises UsageError, naming the flag, for a number out of range or settings that contradict each other."""
    for path, value in _numbers(config, ""):
        if not math.isfinite(value):
            raise UsageError(f"{flag(path)} is {value}; it must be a finite number")
        if path in _POSITIVE and value <= 0:
            raise UsageError(f"{flag(path)} is {value}; it must be above 0")
        if value < 0:
            raise UsageError(f"{flag(path)} is {value}; it cannot be negative")
        if path in _SHARES and value > 1:
            raise UsageError(f"{flag(path)} is {value}; it is a share, at most 1")
        if "temperature" in path:
            check_temperature(value, flag(path))
    if config.seed >= SEEDS:
        raise UsageError(f"--seed is {config.seed}; it must be below {SEEDS}")
    for path, names in (("rollout.tools", config.rollout.tools), ("evaluation.splits", config.evaluation.splits)):
        if any(name.startswith("[") for name in names or ()):
            raise UsageError(f"{flag(path)} {' '.join(names or ())}: a flag has no brackets; write {flag(path)} A B")
    e, data = config.e_step, config.data
    if config.lora.dropout >= 1:
        raise UsageError(f"--lora.dropout is {config.lora.dropout}; it must be below 1")
    if data.demonstrations + data.unlabelled == 0:
        raise UsageError("--data.demonstrations and --data.unlabelled are both 0; there is nothing to learn from")
    if config.p_init == "prompt" and config.shots > data.demonstrations:
        raise UsageError(
            f"--shots is {config.shots}, more than the {data.demonstrations} --data.demonstrations; give fewer"
        )
    if config.rollout.min_tokens > config.rollout.max_tokens:
        raise UsageError(
            f"--rollout.min-tokens is {config.rollout.min_tokens}, above --rollout.max-tokens "
            f"({config.rollout.max_tokens})"
        )
    if config.rollout.min_tokens > config.evaluation.max_tokens:
        raise UsageError(
            f"--rollout.min-tokens is {config.rollout.min_tokens}, above --evaluation.max-tokens "
            f"({config.evaluation.max_tokens}): no chain of a test could stop"
        )
    if e.on_policy + e.tempered + e.replay == 0:
        raise UsageError("--e-step.on-policy, --e-step.tempered and --e-step.replay are all 0; raise one")
    if (e.demonstration_weight * data.demonstrations) + (e.pair_weight * data.unlabelled) == 0:
        raise UsageError("--e-step.demonstration-weight and --e-step.pair-weight leave no question to draw; raise one")
    if e.temperature_low > e.temperature_high:
        raise UsageError(
            f"--e-step.temperature-low is {e.temperature_low}, above --e-step.temperature-high ({e.temperature_high})"
        )
    if config.augmentation.history_dropout and config.rollout.granularity == "token":
        raise UsageError(
            f"--augmentation.history-dropout is {config.augmentation.history_dropout}: it drops complete steps, and "
            "with --rollout.granularity token there are none; give `step`, or 0"
        )
    for step in ("init_step", "m_step"):
        target = getattr(config, step).target
        if config.augmentation.concat_questions and target != "joint":
            raise UsageError(
                f"--augmentation.concat-questions is {config.augmentation.concat_questions}: a question joined to "
                f"others has no known answer, and with --{step.replace('_', '-')}.target {target} the answer is all "
                "that is learned; give 0, or joint"
            )
    _check_method(config)
    if config.evaluation.votes > 1 and config.evaluation.temperature == 0:
        raise UsageError(
            f"--evaluation.votes is {config.evaluation.votes}, but at --evaluation.temperature 0 all chains "
            "of a question are the same; raise the temperature"
        )


def _check_method(config: RunConfig) -> None:
    """What a method asks of settings that are not its own."""
    method, demonstrations = config.method, config.data.demonstrations
    q_sees = METHODS[method].q_sees
    if q_sees is not None and config.q_sees != q_sees:
        raise UsageError(
            f"--q-sees {config.q_sees}: q sees {'X only' if q_sees == 'question' else 'X and Y'} with --method "
            f"{method}; give --q-sees {q_sees}"
        )
    shown = demonstrations or config.data.unlabelled
    if method == "few-shot" and config.fewshot.k > shown:
        what = "demonstrations" if demonstrations else "unlabelled"
        raise UsageError(f"--fewshot.k is {config.fewshot.k}, more than the {shown} --data.{what}; give fewer")
    if method == "sft" and demonstrations and not config.data.validation:
        raise UsageError("--method sft learns --data.demonstrations and is stopped by --data.validation; give some")
    if config.decode.top_p > 1:
        raise UsageError(f"--decode.top-p is {config.decode.top_p}; it is a probability")
    for name, section in (("ppo", config.ppo), ("grpo", config.grpo)):
        if section.samples < 2:
            raise UsageError(f"--{name}.samples is {section.samples}; it must be at least 2, to compare them")
        if section.clip_range >= 1:
            raise UsageError(f"--{name}.clip-range is {section.clip_range}; it must be below 1")


def code_named(config: RunConfig) -> list[str]:
    """The code of a user's own that a configuration names."""
    own_tools = [name for name in config.rollout.tools or () if name not in tools.names()]
    named = [*([] if config.task in tasks.names() else [config.task]), *own_tools]
    return named + (["the model's own code (trust_remote_code)"] if config.trust_remote_code else [])


def refuse_code(config: RunConfig, file: str | Path, *, trusted: bool) -> None:
    """A run folder may come from somebody else: the code that its configuration names runs only on the user's word.

    Raises UsageError, naming the code, unless `trusted`.
    """
    if (named := code_named(config)) and not trusted:
        raise UsageError(f"{file}: names code to run: {', '.join(named)}. If you trust it, add --trust-code")


def _numbers(section: Any, path: str) -> list[tuple[str, float]]:
    """(path, value) of every number of a configuration."""
    found: list[tuple[str, float]] = []
    for item in fields(section):
        value = getattr(section, item.name)
        inner = f"{path}.{item.name}" if path else item.name
        if is_dataclass(value):
            found += _numbers(value, inner)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((inner, value))
    return found
