"""`latent-cot methods`: what `fit` and `compare` can run. `print_list` is that of the other lists too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latent_cot.cli.options import Switch, parse, print_json
from latent_cot.config.methods import METHODS


@dataclass(frozen=True)
class MethodsOptions:
    """List the methods: what `latent-cot fit --method` and `latent-cot compare --methods` take."""

    json: Switch = False
    """Print JSON."""


def run(argv: Sequence[str]) -> int:
    """The command; returns 0."""
    options = parse(MethodsOptions, argv, "methods")
    found = [{"name": name, "description": method.description} for name, method in METHODS.items()]
    how = "Each is a file in latent_cot/methods/ (em.py for EM); its settings: latent-cot fit --help-all."
    return print_list(found, how, json=options.json)


def print_list(found: Sequence[Mapping[str, Any]], how_to_add: str, *, json: bool) -> int:
    """Things by name and description, with what else they have: a text, a list or a mapping. Returns 0."""
    if json:
        print_json(found)
        return 0
    for one in found:
        print(f"{one['name']}: {one['description']}")
        for key in [key for key in one if key not in ("name", "description")]:
            value = one[key]
            if isinstance(value, Mapping):
                print("".join(f"  {name}: {text}\n" for name, text in value.items()), end="")
            else:
                print(f"  {key}: {repr(value) if isinstance(value, str) else ', '.join(value) or 'none'}")
    print(f"\n{how_to_add}")
    return 0
