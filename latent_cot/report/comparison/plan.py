"""Which runs a comparison consists of: its variants, and the configuration of each with a seed."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from latent_cot import disk
from latent_cot.config.methods import METHODS, MethodSpec, PlannedBudget
from latent_cot.config.schema import RunConfig
from latent_cot.config.settings import (
    MAX_CONFIG_BYTES,
    code_named,
    differences,
    flag,
    from_dict,
    is_read,
    leaves,
    load_config,
    parse_yaml,
    read_settings,
)
from latent_cot.run.paths import default_folder
from latent_cot.types import UsageError, did_you_mean

_SHIPPED = resources.files("latent_cot.config") / "presets" / "variants"

_SET_BY_ITSELF = {"method": "--methods or --variants", "seed": "--seeds", "output_dir": "--output-dir"}
"""Settings that differ from run to run -> what gives them."""


@dataclass(frozen=True)
class Variant:
    """A row of the comparison."""

    name: str
    method: str
    overrides: Mapping[str, Any]
    """Settings, in the form of a configuration file."""


@dataclass(frozen=True)
class PlannedRun:
    """A run of the comparison."""

    variant: str
    config: RunConfig
    """With the seed and the folder."""

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir or "")

    @property
    def name(self) -> str:
        return f"{self.variant}, seed {self.config.seed}"


# -- variants --------------------------------------------------------------------------------------------


def methods(names: Sequence[str]) -> list[Variant]:
    """A variant for each method, with its default settings. Raises UsageError for an unknown one."""
    return [_variant(name, {"method": name}, f"--methods {name}") for name in names]


def without_repeated(variants: Sequence[Variant], configured: Callable[[Variant], RunConfig]) -> list[Variant]:
    """Those whose run is not that of an earlier one: `em-x` is `em` where q reads X only by the task's preset."""
    kept, runs = list[Variant](), list[tuple[MethodSpec, RunConfig]]()
    for variant in variants:
        as_method = replace(METHODS[variant.method], description="", q_sees=None)  # what q sees is in the settings
        run = (as_method, replace(configured(variant), method="em"))
        if run not in runs:
            kept.append(variant)
            runs.append(run)
    return kept


def shipped() -> list[str]:
    """Names of the variant files that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _SHIPPED.iterdir())


def read_variants(source: str) -> list[Variant]:
    """The variants of a file, `name: {method: ..., overrides: {...}}`, or of a shipped one by its name.

    Raises UsageError naming the file and the variant.
    """
    where = f"--variants {source}"
    if source in shipped():
        text = (_SHIPPED / f"{source}.yaml").read_text("utf-8")
    else:
        try:
            text = disk.user_text(source, MAX_CONFIG_BYTES)
        except UsageError as error:
            raise UsageError(f"--variants {error}, or name a shipped one.{did_you_mean(source, shipped())}") from error
    record = parse_yaml(text, where)
    if not isinstance(record, Mapping) or not record:
        raise UsageError(f"{where}: must be a mapping of names to {{method: NAME, overrides: {{...}}}}")
    return [_variant(str(name), entry, f"{where}: {name}") for name, entry in record.items()]


def _variant(name: str, entry: Any, where: str) -> Variant:
    if not re.fullmatch(r"[\w+-][\w+.-]*", name):
        raise UsageError(f"{where}: a variant's name is that of a folder: letters, digits, - _ . +")
    overrides = isinstance(entry, Mapping) and (entry.get("overrides") or {})
    if not isinstance(overrides, Mapping) or not {"method"} <= entry.keys() <= {"method", "overrides"}:
        raise UsageError(f"{where}: write it as {{method: NAME, overrides: {{...}}}}")
    method = entry["method"]
    if method not in METHODS:
        raise UsageError(f"{where}: there is no method {method!r}.{did_you_mean(str(method), METHODS)}")
    _refuse_set_by_itself(overrides, where)
    return Variant(name, method, overrides)


def parse_setting(text: str, known: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """`VARIANT:flag=value`, or `flag=value` for all -> (the variant, the setting as a configuration file has it).

    Raises UsageError for another form or an unknown variant.
    """
    path, equals, value = text.partition("=")
    variant, colon, rest = path.rpartition(":")
    if not equals or not rest:
        raise UsageError(f"--set {text}: write it as flag=value or METHOD:flag=value, e.g. ppo:policy_gradient.kl=0.1")
    if colon and variant not in known:
        raise UsageError(f"--set {text}: {variant!r} is not compared.{did_you_mean(variant, known)}")
    if option := re.fullmatch(r"(?:--)?data\.options\.(.+)", rest):  # text as it stands, as `--data.options` takes it
        return (variant if colon else None), {"data": {"options": {option[1]: value}}}
    record: Any = parse_yaml(value, f"--set {text}") if value not in ("", "None", "null", "~") else None
    for key in reversed(rest.removeprefix("--").replace("-", "_").split(".")):
        record = {key: record}
    _refuse_set_by_itself(record, f"--set {text}")
    return (variant if colon else None), record


def _refuse_set_by_itself(record: Mapping[str, Any], where: str) -> None:
    for key, option in _SET_BY_ITSELF.items():
        if key in record:
            raise UsageError(f"{where}: a comparison sets {key} itself; use {option}")


# -- the runs --------------------------------------------------------------------------------------------


def parse_budget(text: str, own: PlannedBudget) -> PlannedBudget | None:
    """`trajectories=5120` or `trajectories=5120,gradient-steps=160`, what is not named as `own` has it; "none": None.

    Raises UsageError.
    """
    if text == "none":
        return None
    values = own._asdict()
    for part in text.split(","):
        key, _, value = part.partition("=")
        name = key.strip().replace("-", "_")
        if name not in values or not re.fullmatch(r"\s*[0-9]{1,18}\s*", value) or int(value) < 1:
            raise UsageError(f"--budget {text}: write it as trajectories=5120,gradient-steps=160, or none")
        values[name] = int(value)
    return PlannedBudget(**values)


def configure(
    variant: Variant,
    seed: int,
    common: Sequence[Mapping[str, Any]],
    own: Sequence[Mapping[str, Any]],
    budget: PlannedBudget | None,
    *,
    preset: str | None = None,
    file: str | None = None,
) -> RunConfig:
    """The configuration of a run: preset, method, file, the settings `common` to all, the variant's, its `own`, the
    budget.

    Raises UsageError for a bad setting, for one that contradicts the budget, and for a budget too small for a step.
    """
    records = [*common, variant.overrides, *own]
    task = next((record["task"] for record in reversed(records) if "task" in record), None)
    places = ["--set"] * len(common) + [f"variant {variant.name}"] + [f"--set {variant.name}"] * len(own)
    config = load_config(preset, file, variant.method, task)
    of_file = {} if file is None else read_settings(file)
    _refuse_set_by_itself(of_file, str(file))
    for record, where in zip(records, places, strict=True):
        config = from_dict(record, where, config)
    config = replace(config, seed=seed)
    if budget is None:
        return config
    try:
        scaled = METHODS[variant.method].fit_to_budget(config, budget)
    except UsageError as error:
        raise UsageError(f"{variant.name}: {error}") from error
    for path, value, other in differences(config, scaled):
        if any(_names(record, path) for record in (*records, of_file)):
            raise UsageError(
                f"{variant.name}: {flag(path)} is {value}, but the budget makes it {other}; leave it out, or compare "
                "with --budget none"
            )
    return scaled


def unread(
    runs: Sequence[PlannedRun], common: Sequence[Mapping[str, Any]], own: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[str]:
    """A sentence for each variant, on settings that are its `own` and that its method does not read; and one on those
    that are `common` to all and that no method reads."""
    configs = {one.variant: one.config for one in runs}
    found = []
    for name, config in configs.items():
        if paths := [path for record in own[name] for path, _ in leaves(record) if not is_read(config, path)]:
            found.append(f"{name}: --method {config.method} does not read {', '.join(map(flag, paths))}.")
    everywhere = [path for record in common for path, _ in leaves(record)]
    if paths := [path for path in everywhere if not any(is_read(config, path) for config in configs.values())]:
        found.append(f"None of the methods reads {', '.join(map(flag, paths))}.")
    return found


def command_of(run: PlannedRun, preset: str | None) -> str:
    """The command that does the run again: everything that the preset does not say. Its folder is the default one, with
    the variant's name behind it where that is not the method's."""
    config = run.config
    words = ["latent-cot", "fit", "--method", config.method]
    words += ["--preset", preset] if preset else []
    words += ["--task", config.task] if config.task != load_config(preset).task else []
    base = load_config(preset, method=config.method, task=config.task)
    for path, _, value in differences(base, config):
        if isinstance(value, bool):
            words.append(flag(path) if value else re.sub(r"^--(.*\.)?", r"--\1no-", flag(path)))
        elif path != "output_dir":
            several = itertools.chain(*value.items()) if isinstance(value, Mapping) else value
            words += [flag(path), *map(str, several if isinstance(value, Mapping | tuple) else [value])]
    words += ["--output-dir", f"{default_folder(config)}-{run.variant}"] if run.variant != config.method else []
    words += ["--trust-code"] if code_named(config) else []
    return shlex.join(words)


def _names(record: Any, path: str) -> bool:
    """Whether some settings, as a configuration file has them, name the one with this path."""
    key, _, rest = path.partition(".")
    if not isinstance(record, Mapping) or key not in record:
        return False
    return not rest or _names(record[key], rest)
