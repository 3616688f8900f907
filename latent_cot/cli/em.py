"""`latent-cot em`: one run of the EM loop. `latent-cot fit` with the settings of EM only, and its own help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any

import tyro
import yaml

from latent_cot.cli.fit import run_tasks
from latent_cot.cli.options import parse, value_of
from latent_cot.cli.run_options import RunOptions
from latent_cot.config.schema import EMConfig, RunConfig
from latent_cot.config.settings import load_config, to_dict
from latent_cot.types import UsageError


@dataclass(frozen=True)
class EMOptions(RunOptions):
    """Train a model to reason: alternate E-step and M-step, evaluate after each round.

    Settings come from the preset, then from the file of --config, then from the flags below; each
    overrides the one before. --print-config shows the outcome. Other methods: `latent-cot fit`.
    """

    config: Annotated[EMConfig, tyro.conf.arg(name="")] = field(default_factory=EMConfig)


def run(argv: Sequence[str]) -> int:
    """The command. Returns 0, or 130 or 143 if it was stopped by SIGINT or SIGTERM."""
    return run_tasks(argv, _parsed, _to_yaml)


def _parsed(argv: Sequence[str]) -> tuple[RunConfig, RunOptions]:
    base = load_config(value_of("--preset", argv), value_of("--config", argv), task=value_of("--task", argv))
    if base.method != "em":
        raise UsageError(f"--config: its method is {base.method}; use latent-cot fit")
    options = parse(EMOptions, argv, "em", EMOptions(config=EMConfig(**_own(base))))
    return replace(base, **_own(options.config)), options


def _own(config: EMConfig) -> dict[str, Any]:
    """The settings of EM."""
    return {item.name: getattr(config, item.name) for item in fields(EMConfig)}


def _to_yaml(config: RunConfig) -> str:
    """Without the sections of other methods."""
    own = {name: value for name, value in to_dict(config).items() if name in _own(config)}
    return yaml.safe_dump(own, sort_keys=False)
