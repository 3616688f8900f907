"""Where a run's configuration comes from: defaults < preset < the task's preset of that name < the method's own
settings < what these presets have for the method (`methods:`) < YAML file < flags.

The flags are put on top by the command line (`cli/options.py`), the rest is read here. Reading is
strict: an unknown key, a value of another type or out of range is a UsageError that names file and key.
Importing this loads no torch.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import TypeAdapter, ValidationError

from latent_cot import disk, tasks, tools
from latent_cot.config.methods import METHODS, shows_demonstrations
from latent_cot.config.schema import SECTIONS, WITHIN_RATIONALES, RunConfig
from latent_cot.types import UsageError, did_you_mean, first_line

DEFAULT_PRESET = "cpu"
MAX_CONFIG_BYTES = 2**20

_HERE = resources.files("latent_cot.config")
_PRESETS = _HERE / "presets"
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
    general = _shipped(_PRESETS / f"{name}.yaml")
    for_methods = [general.pop("methods", {})]
    config = from_dict(general, f"preset {name}")
    record, where = ({}, "") if file is None else (read_settings(file), str(file))
    own = record.get("task") if isinstance(record, Mapping) else None
    if task is not None and isinstance(own, str) and Path(own).absolute() != Path(task).absolute():
        remedy = "leave --task out, or take `task:` out of the file if its other settings suit"
        raise UsageError(f"--task {task}: the settings in {file} are those of {own}; {remedy}")
    config = replace(config, task=task or from_dict(record, where, config).task)
    of_task = task_preset(config.task, name)
    for_methods.append(of_task.pop("methods", {}))
    config = from_dict(of_task, f"preset {name} of {config.task}", config)
    config = with_method(config, method or from_dict(record, where, config).method)
    for of_methods in for_methods:
        config = from_dict(of_methods.get(config.method), f"preset {name}: methods", config)
    return replace(from_dict(record, where, config), method=config.method, task=config.task)


def _shipped(file: Traversable) -> Any:
    return parse_yaml(file.read_text(encoding="utf-8"), file.name)


def task_preset(task: str, preset: str) -> Any:
    """What a task's folder has in `presets/PRESET.yaml`; {} if it has no such file, or is a file of the user's. A task
    in a YAML file has the presets of `qa`."""
    task = "qa" if task.endswith(tasks.FILES) else task
    if not task.isidentifier():
        return {}
    file = _TASKS / task / "presets" / f"{preset}.yaml"
    return _shipped(file) if file.is_file() else {}


def with_method(config: RunConfig, method: str) -> RunConfig:
    """A configuration for another method, with the settings that this method implies. Raises UsageError."""
    if method not in METHODS:
        raise UsageError(f"--method {method}: there is no such method.{did_you_mean(method, METHODS)}")
    own = {"q_sees": METHODS[method].q_sees or config.q_sees, **_shipped(_HERE / "methods.yaml").get(method, {})}
    return from_dict({"method": method, **own}, f"method {method}", config)


def differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, value in a, value in b) of each setting in which two configurations differ."""
    for item in fields(a):
        left, right = getattr(a, item.name), getattr(b, item.name)
        inner = f"{path}.{item.name}" if path else item.name
        if is_dataclass(left):
            yield from differences(left, right, inner)
        elif left != right:
            yield inner, left, right


def leaves(record: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting that nested mappings have, by its whole name such as `e_step.steps`, and its value."""
    for name, value in record.items():
        if isinstance(value, dict) and name != "options":
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def other_settings(there: RunConfig, config: RunConfig) -> list[tuple[str, Any, Any]]:
    """`differences` of a recorded configuration from this one: those that its method reads, without the folder."""
    return [one for one in differences(there, config) if one[0] != "output_dir" and is_read(config, one[0])]


def is_read(config: RunConfig, path: str) -> bool:
    """Whether the method of a configuration reads a setting: its section may be another method's."""
    others = set(SECTIONS.values()) - {SECTIONS.get(config.method)}
    return path.partition(".")[0] not in others and METHODS[config.method].reads(config, path)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """As YAML and JSON can hold it: nested dictionaries, tuples as lists."""
    return cast("dict[str, Any]", _RUN.dump_python(config, mode="json"))


def from_dict(record: Any, where: str, base: RunConfig | None = None) -> RunConfig:
    """`base` (None: the defaults) with the values of `record`, which need not name all.

    Args:
        record: nested mappings, as YAML or JSON gives them.
        where: the file, for errors.

    Raises UsageError for an unknown key and a value of the wrong type or out of range.
    """
    values = _overlay(RunConfig() if base is None else base, record, where)
    return _validated(values, lambda path: f"{where}: {path}")


def to_yaml(config: RunConfig) -> str:
    """A file that `load_config` reads back as the same configuration: without the sections of other methods."""
    others = set(SECTIONS.values()) - {SECTIONS.get(config.method)}
    own = {name: value for name, value in to_dict(config).items() if name not in others}
    return write_yaml(own)


def flag(path: str) -> str:
    """The command-line option of a setting: `"e_step.learning_rate"` is `--e-step.learning-rate`."""
    return "--" + path.replace("_", "-")


# -- YAML ------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe, and a key that is written twice is an error, not a silent override."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is no text", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Safe, and quotes what `_Loader` takes for a number."""


# YAML 1.1 takes 1e-4 for text (it wants 1.0e-4); everybody means the number.
_SCIENTIFIC = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_FLOAT, _INT = "tag:yaml.org,2002:float", "tag:yaml.org,2002:int"
for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(_FLOAT, _SCIENTIFIC, list("-+0123456789"))
# And takes 010 for 8 and 1:30 for 90.
_Loader.yaml_implicit_resolvers = {
    first: [one for one in resolvers if one[0] != _INT] for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))


def parse_yaml(text: str, where: str) -> Any:
    """The content of a YAML text, read safely; an empty one is `{}`. Raises UsageError naming `where` and the line."""
    try:
        record = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{where}{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not valid YAML: {first_line(error)}") from error
    return {} if record is None else disk.bounded(record, where)


def write_yaml(record: Mapping[str, Any]) -> str:
    """What `parse_yaml` reads back as the same."""
    # ASCII, with escapes: with allow_unicode PyYAML writes U+0085 so that it reads back as a space.
    return yaml.dump(dict(record), Dumper=_Dumper, sort_keys=False)


def read_settings(file: str | Path) -> Any:
    """What a file of settings holds, not yet checked. Raises UsageError if it cannot be read."""
    return parse_yaml(disk.user_text(file, MAX_CONFIG_BYTES), str(file))


# -- values ----------------------------------------------------------------------------------------------

_RUN = TypeAdapter(RunConfig)
_REPR = reprlib.Repr()
_REPR.maxlevel = 2


def _overlay(base: Any, record: Any, where: str, path: str = "") -> dict[str, Any]:
    """The values of the dataclass instance `base`, with those of the mapping `record` in their place."""
    if record is None:  # a section all of whose lines are commented out
        record = {}
    if not isinstance(record, Mapping):
        hint = f".{_TASK_FILE}" if path == "data" else ""
        raise UsageError(f"{where}: {path or 'the file'} must be a mapping of settings, not {_short(record)}{hint}")
    values = {item.name: getattr(base, item.name) for item in fields(base)}
    prefix = f"{path}." if path else ""
    for key in (key for key in record if key not in values):
        name = f"{prefix}{key}"
        hint = did_you_mean(name, map(prefix.__add__, values))
        if not path and _describes_task(record):
            hint = _TASK_FILE
        section, dot, setting = str(key).partition(".")
        if dot and section in values:
            hint = f" Write {section}: {{{setting}: {_short(record[key])}}}"
        raise UsageError(f"{where}: unknown setting {_short(name)}.{hint}")
    for key, own in values.items():
        if is_dataclass(own):
            values[key] = _overlay(own, record.get(key), where, prefix + key)
        elif isinstance(own, Mapping) and isinstance(record.get(key), Mapping):
            values[key] = {**own, **record[key]}
        elif key in record:
            values[key] = record[key]
    return values


_TASK_FILE = " It is a task's: a file that describes a task is given by --task, not as settings."


def _describes_task(record: Mapping[Any, Any]) -> bool:
    """Whether it is what a file for --task holds: it names its data by a text, or columns and other keys of a task."""
    from latent_cot.tasks.qa.spec import Spec  # here: few need it

    own = Spec.model_fields.keys() - {item.name for item in fields(RunConfig)}
    return isinstance(record.get("data"), str | list) or len(own & record.keys()) > 1


def _validated(values: Mapping[str, Any], named: Callable[[str], str]) -> RunConfig:
    """The configuration with these values. Raises UsageError for the first that is out of range or of another type.

    Args:
        named: a setting's path as errors name it.
    """
    try:
        return _RUN.validate_python(values)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        path = ".".join(part for part in found["loc"] if isinstance(part, str))
        value, hint = found["input"], ""
        expected = found["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        if found["type"] == "literal_error" and isinstance(value, str):
            hint = "." + did_you_mean(value, re.findall("'(.*?)'", expected))
        raise UsageError(f"{named(path)} is {_short(value)}; it should be {expected}{hint}") from error


def _short(value: Any) -> str:
    """For messages. A few lines of YAML may be a value that is too large to be written out: aliases of aliases."""
    return f"{value!r:.80}" if isinstance(value, str) else f"{_REPR.repr(value):.80}"


# -- settings that contradict each other -----------------------------------------------------------------


def check(config: RunConfig) -> None:
    """Raises UsageError, naming the flag, for a value out of range or settings that contradict each other."""
    _validated(asdict(config), flag)
    for text in _contradictions(config):
        raise UsageError(text)


def _contradictions(config: RunConfig) -> Iterator[str]:
    e, data, rollout, tests = config.e_step, config.data, config.rollout, config.evaluation
    varied, target, method = config.augmentation, config.m_step.target, config.method
    q_sees = METHODS[method].q_sees
    of = "unlabelled" if METHODS[method].prompts and not data.demonstrations else "demonstrations"
    for path, names in (("rollout.tools", rollout.tools), ("evaluation.splits", tests.splits)):
        if any(name.startswith("[") for name in names or ()):
            yield f"{flag(path)} {' '.join(names or ())}: a flag has no brackets; write {flag(path)} A B"
    if data.demonstrations + data.unlabelled == 0:
        yield "--data.demonstrations and --data.unlabelled are both 0; there is nothing to learn from"
    if shows_demonstrations(config) and config.shots > getattr(data, of):
        yield f"--shots is {config.shots}, more than the {getattr(data, of)} --data.{of}; give fewer"
    most, of_most = min((rollout.max_tokens, "rollout"), (tests.max_tokens, "evaluation"))
    if rollout.min_tokens > most:
        remedy = "no chain could stop; lower the one or raise the other"
        yield f"--rollout.min-tokens is {rollout.min_tokens}, above --{of_most}.max-tokens ({most}): {remedy}"
    asks = METHODS[method].trains_q and e.steps
    if asks and e.demonstration_weight * data.demonstrations + data.unlabelled == 0:
        yield "--e-step.demonstration-weight is 0 and --data.unlabelled too: no question is left to draw; raise one"
    if e.temperatures[0] > e.temperatures[1]:
        yield "--e-step.temperatures {} {}: the first is above the second".format(*e.temperatures)
    if METHODS[method].has_balance and e.updates > 1 and e.steps:
        why = f"--e-step.updates {e.updates} learns again what q samples at temperature 1, and that is nothing"
        fresh = e.samples - (round(e.replay_share * e.samples) if e.mix_replay else 0)
        if e.replay_share == 1 or not fresh:
            yield f"{why} with --e-step.replay-share {e.replay_share:g}: lower it, or give --e-step.updates 1"
        elif any(round(e.tempered_share * n) == n for n in (fresh, e.samples)):
            yield f"{why} with --e-step.tempered-share {e.tempered_share:g}: lower it, or give --e-step.updates 1"
    if METHODS[method].has_balance and e.objective in WITHIN_RATIONALES and rollout.min_tokens and e.steps:
        why = "ties the states of a chain to each other only, so that nothing before the first of them is learned"
        remedy = f"with --rollout.min-tokens {rollout.min_tokens} give --e-step.objective pooled-subtb"
        yield f"--e-step.objective {e.objective} {why}: {remedy}"
    if e.max_staleness and not rollout.engine.startswith("http"):
        remedy = "give the addresses of vLLM servers, or --e-step.max-staleness 0"
        yield f"--e-step.max-staleness: --rollout.engine {rollout.engine} samples where q is trained; {remedy}"
    if rollout.granularity == "token":
        for name in ("history_dropout", "gap_share"):
            if getattr(varied, name):
                what = f"{flag(f'augmentation.{name}')} is about whole steps"
                yield f"{what}: with --rollout.granularity token there are none; give 0"
    if varied.concat_questions and target != "joint" and METHODS[method].reads(config, "m_step.target"):
        yield f"--augmentation.concat-questions leaves no answer to be learned by --m-step.target {target}; give 0"
    if q_sees not in (None, config.q_sees):
        yield f"--q-sees {config.q_sees}: with --method {method} q sees the {q_sees}; give --q-sees {q_sees}"
    stops_early = METHODS[method].learns_demonstrations and config.sft.check_every
    if stops_early and data.demonstrations and not data.validation:
        yield f"--method {method} learns --data.demonstrations and is stopped by --data.validation; give some"
    if METHODS[method].has_balance and e.steps:
        for name in ("tempered_share", *(("replay_share",) if e.mix_replay else ())):
            if (share := getattr(e, name)) and not round(share * e.samples):
                what = f"{flag(f'e_step.{name}')} is {share:g}: that is no whole one of --e-step.samples {e.samples}"
                yield f"{what}; give 0, or at least {1 / e.samples:g}"
    if config.m_step.samples > 1 and config.m_step.temperature == 0 and METHODS[method].drawn(config):
        remedy = "give a higher one, or --m-step.samples 1"
        yield f"--m-step.samples is {config.m_step.samples}: --m-step.temperature 0 draws the same each time; {remedy}"
    if e.samples < (fewest := METHODS[method].fewest_samples):
        yield f"--e-step.samples is {e.samples}; with --method {method} it must be at least {fewest}, to compare them"
    if METHODS[method].has_balance and e.steps and e.objective == "vargrad" and e.samples < 2:
        yield f"--e-step.samples is {e.samples}; vargrad compares the rationales of a question: give at least 2"
    if tests.votes > 1 and tests.temperature == 0:
        remedy = "give an --evaluation.temperature above 0, or --evaluation.votes 1"
        yield f"--evaluation.votes is {tests.votes}: chains are the same at --evaluation.temperature 0; {remedy}"


def code_named(config: RunConfig) -> list[str]:
    """The code of a user's own that a configuration names."""
    own_tools = [name for name in config.rollout.tools or () if name not in tools.names()]
    named = [*tasks.code_of(config.task, config.data.options), *own_tools]
    return named + (["the model's own code (trust_remote_code)"] if config.trust_remote_code else [])


def refuse_code(config: RunConfig, file: str | Path, *, trusted: bool) -> None:
    """A run folder may come from somebody else: the code that its configuration names runs only on the user's word.

    Raises UsageError, naming the code, unless `trusted`.
    """
    if (named := code_named(config)) and not trusted:
        raise UsageError(f"{file}: names code to run: {', '.join(named)}. If you trust it, add --trust-code")


def refuse_task_code(config: RunConfig, *, trusted: bool) -> None:
    """A task's YAML file may come from somebody else, as a run may: see `refuse_code`. (A file of Python is code that
    the user has named.)"""
    if config.task.endswith(tasks.FILES):
        own = replace(config, rollout=replace(config.rollout, tools=None), trust_remote_code=False)  # the user's flags
        refuse_code(own, config.task, trusted=trusted)
