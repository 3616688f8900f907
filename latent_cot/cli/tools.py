"""`latent-cot tools`: which tools there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latent_cot import tools
from latent_cot.cli.options import Switch, parse, print_json

_HOW_TO_ADD = (
    "A tool of your own is a Python file: --rollout.tools ./my_tool.py. What goes into it, with an\n"
    "example: tools/README.md in the source."
)


@dataclass(frozen=True)
class ToolsOptions:
    """List the tools that a chain can call while it is being generated: what --rollout.tools takes."""

    json: Switch = False
    """Print JSON."""


def run(argv: Sequence[str]) -> int:
    """The command; returns 0."""
    options = parse(ToolsOptions, argv, "tools")
    found = [tools.load(name) for name in tools.names()]
    if options.json:
        print_json([{"name": t.name, "description": t.description, "trigger": t.trigger} for t in found])
        return 0
    for tool in found:
        print(f"{tool.name}: {tool.description}")
        print(f"  called when a chain ends with {tool.trigger!r}")
    print(f"\n{_HOW_TO_ADD}")
    return 0
