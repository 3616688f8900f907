"""A page for each command of the program, made from the options that it takes."""

from __future__ import annotations

import re
import warnings
from typing import Any
from unittest import mock

import tyro
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from latent_cot.cli import COMMANDS, call

HAVE_SETTINGS = ("em", "fit", "plan")
"""Commands with all settings of a run, of which `--help` shows few."""
# What tyro writes behind an option's help text.
DEFAULT = re.compile(r"\s*\((default: (?P<value>.*)|required|repeatable)\)$", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the overview and the commands' pages."""
    files.append(File.generated(config, "cli/index.md", content=overview()))
    for command in COMMANDS:
        files.append(File.generated(config, f"cli/{command}.md", content=page(command)))
    return files


def overview() -> str:
    """The list of commands."""
    return "\n".join(
        [
            "# Commands",
            "",
            "Made from the program: `latent-cot COMMAND --help` says the same (`em` and `fit`: `--help-all`).",
            "",
            "| command | what it does |",
            "| --- | --- |",
            *(f"| [`latent-cot {name}`]({name}.md) | {prose(text)} |" for name, text in COMMANDS.items()),
            "",
            "The exit status is 0; 2 for what the user can put right; 130 after Ctrl-C, 143 after SIGTERM, 129 "
            "where its terminal was closed.",
            "",
        ]
    )


def page(command: str) -> str:
    """What `latent-cot COMMAND --help` says, as Markdown."""
    parser = parser_of(command)
    lines = [f"# latent-cot {command}", "", parser.description or "", ""]
    for group in parser._action_groups:
        rows = [row(action) for action in group._group_actions if action.dest != "help"]
        if rows:
            section, _, kind = (group.title or "").rpartition(" ")
            name = f"`{section}`" if kind == "options" and section else (group.title or "").capitalize()
            lines += [f"## {name}", "", *([group.description, ""] if group.description else [])]
            lines += ["| | default | |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines)


def row(action: Any) -> str:
    """An option: how it is written, its default, what it is."""
    text = action.help or ""
    found = DEFAULT.search(text)
    default = found["value"] if found and found["value"] not in (None, "None", "False") else ""
    value = "" if action.nargs == 0 else str(action.metavar or "").removeprefix("{None}|")
    names = ", ".join(action.option_strings) or action.dest.upper()
    written = f"{names} {value}".strip() if action.option_strings else names
    cells = [code(written), code(default), prose(DEFAULT.sub("", text))]
    return f"| {' | '.join(cells)} |"


def parser_of(command: str) -> Any:
    """The argparse parser that the command itself makes of its dataclass."""

    class Asked(Exception):
        """Raised in place of parsing."""

    def ask(cls: object, **arguments: object) -> object:
        raise Asked(cls, arguments)

    try:
        with mock.patch("tyro.cli", ask):
            call(command, "--help-all" if command in HAVE_SETTINGS else "--help")
    except Asked as asked:
        cls, arguments = asked.args
    else:
        raise RuntimeError(f"latent-cot {command} takes its options from elsewhere than tyro")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there is no other way yet to look at the options
        return tyro.extras.get_parser(cls, prog=arguments["prog"], default=arguments.get("default", tyro.MISSING))


def code(text: str) -> str:
    """A cell that holds what is typed."""
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""


def prose(text: str) -> str:
    """A help text as one line of a table. What is in backquotes stays."""
    return " ".join(text.split()).replace("|", "\\|")
