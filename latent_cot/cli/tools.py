"""`latent-cot tools`: which tools there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latent_cot import tools
from latent_cot.cli.methods import print_list
from latent_cot.cli.options import Switch, parse


@dataclass(frozen=True)
class ToolsOptions:
    """List the tools that a chain can call while it is being generated: what --rollout.tools takes."""

    json: Switch = False
    """Print JSON."""


def run(argv: Sequence[str]) -> int:
    """The command; returns 0."""
    options = parse(ToolsOptions, argv, "tools")
    loaded = map(tools.load, tools.names())
    found = [{"name": tool.name, "description": tool.description, "trigger": tool.trigger} for tool in loaded]
    how = "A tool of your own is a Python file: --rollout.tools ./my_tool.py. What goes into it, with an\n"
    return print_list(found, how + "example: tools/README.md in the source.", json=options.json)
