"""The tools a chain may call: `names` lists the built-in ones, `load` gives one, built-in or the user's own, and `tool`
makes one of a function.

Finding the names imports no tool. A tool's module should import anything slow inside `__call__`, so that
listing every tool with its description stays quick.
"""

from __future__ import annotations

if not __name__.startswith("latent_cot."):
    raise ImportError(f"import this package as `latent_cot.tools`, not as `{__name__}`")

import builtins
import inspect
import keyword
import pkgutil
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from latent_cot.tools import _user_file
from latent_cot.tools._foreign import ForeignTool
from latent_cot.types import Tool, UsageError

__all__ = ["FunctionTool", "load", "names", "tool"]

OF_PROGRAMS = {
    *("sys", "signature", "torch", "PeftModel", "AutoModelForCausalLM", "AutoTokenizer"),
    *("GenerationConfig", "MODEL", "PROMPT", "BEGIN", "STOP", "MAX_TOKENS", "CACHE", "FIRST", "FORBIDDEN"),
    *("CHOICES", "TOOLS", "CANDIDATES", "tokenizer", "model", "judge", "plain", "read", "encode", "text_of"),
    *("decode", "Chain", "reason", "answer", "solve"),
}
"""Names that the program of an export has of its own, beside a function of each tool's name."""


@dataclass
class FunctionTool:
    """A tool that is a function of the request: see `tool`."""

    name: str
    trigger: str
    description: str
    function: Callable[[str], str]
    isolated: bool = False
    """Whether its calls are made in a process of its own."""

    def request(self, text: str) -> str:
        """What the chain has written between its last comma or line break and the trigger. A comma between a digit and
        three others is none: `1,000` is one number, for the tool to take or to refuse."""
        return re.split(r"(?<![0-9]),|,(?![0-9]{3}(?![0-9]))|\n", text.removesuffix(self.trigger))[-1].strip()

    def __call__(self, request: str) -> str:
        return self.function(request)


def tool(
    *, trigger: str, name: str | None = None, description: str | None = None, isolated: bool = False
) -> Callable[[Callable[[str], str]], FunctionTool]:
    """A decorator: the function becomes a tool, which reads what follows the chain's last comma or line break.

    The function is given the request, and returns the text to write after the trigger, with its leading space. It
    raises ToolError for what it cannot answer. Its own name is the tool's, and its docstring's first line the
    description, where none is given. `isolated`: call it in a process of its own, which is ended after
    `_foreign.SECONDS`, whatever it is at.
    """

    def decorate(function: Callable[[str], str]) -> FunctionTool:
        called = name or getattr(function, "__name__", "")
        if not called:
            raise UsageError(f"{function!r}: give the tool a name: @tool(trigger=..., name=...)")
        try:
            with suppress(ValueError):  # some of C's functions tell no signature
                inspect.signature(function).bind("")
        except TypeError as error:
            raise UsageError(f"{called}: a tool is called with one text, the request: {error}") from error
        says = description or (function.__doc__ or "").strip().partition("\n")[0] or called
        made = FunctionTool(called, trigger, says, function, isolated)
        made.__module__ = getattr(function, "__module__", __name__)  # where `load` looks for it
        return made

    return decorate


def names() -> list[str]:
    """The built-in tools, sorted. A tool is a module or folder of this package whose name is public."""
    return sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))


def load(name: str) -> Tool:
    """The tool called `name`; a new instance if it is a class.

    `name` is a built-in name (`calculator`), or a Python file (`./my_tool.py`), which is run: load only
    files you trust. The file defines the tool under the name `TOOL`, or as the only public function under `tool`, or
    class with the protocol's members; `my_tool.py:Name` picks one of several.

    Raises UsageError for an unknown name, a missing file, and a file that fails or defines no tool.
    """
    found = load_unguarded(name)
    return found if name in names() else ForeignTool(found, name)


def load_unguarded(name: str) -> Tool:
    """The same as it is in its file, without the limits of `_foreign.py`."""
    where, found = _user_file.load(__name__, names(), "tool", name, lambda value: isinstance(value, Tool))
    texts = ("name", "description", "trigger")
    lacking = [member for member in (*texts, "request", "__call__") if not hasattr(found, member)]
    if lacking:
        raise UsageError(f"{where}: the tool lacks {', '.join(lacking)}")
    for member in texts:
        value = getattr(found, member)
        if not isinstance(value, str) or not value:
            raise UsageError(f"{where}: {member} must be a string that is not empty, not {value!r}")
    function = found.name.replace("-", "_")  # which an exported program has
    if not function.isidentifier():
        raise UsageError(f"{where}: the tool's name {found.name!r:.80} must be made of letters, digits, - and _")
    if keyword.iskeyword(function) or hasattr(builtins, function) or function in OF_PROGRAMS:
        raise UsageError(
            f"{where}: {found.name!r} is a name of Python's or of exported programs; name the tool otherwise"
        )
    assert isinstance(found, Tool)
    return found
