"""`latent-cot methods`: what `fit` and `compare` can run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    if options.json:
        print_json([{"name": name, "description": method.description} for name, method in METHODS.items()])
        return 0
    for name, method in METHODS.items():
        print(f"{name}: {method.description}")
    print("\nEach is a file in latent_cot/methods/ (em.py for EM); its settings: latent-cot fit --help-all.")
    return 0
