"""The contract of `latent_cot.types.Tool`, for every tool of the folder."""

from __future__ import annotations

import pytest

from latent_cot import tools
from latent_cot.types import Tool, ToolError

EXAMPLES = {
    # name: a chain that ends with the trigger, what the tool reads, what it writes
    "calculator": (" 6 - 0 = 6, 6 - 4 =", "6 - 4", " 2"),
}

BAD = {
    "nothing": "",
    "blank": " ",
    "null byte": "\0",
    "lone surrogate": "\ud800",
    "ten thousand digits": "9" * 10_000,
    "a million characters": "a" * 1_000_000,
    "deep parentheses": "(" * 10_000 + ")" * 10_000,
    "code": '__import__("os").getcwd()',
    "format string": "{0.__class__}%s%n",
}

each_tool = pytest.mark.parametrize("name", tools.names())


def test_every_tool_has_an_example() -> None:
    assert sorted(EXAMPLES) == tools.names(), "add one example a tool to EXAMPLES"


@each_tool
def test_satisfies_the_protocol(name: str) -> None:
    tool = tools.load(name)
    assert isinstance(tool, Tool)
    assert tool.name == name
    assert tool.trigger and tool.trigger == tool.trigger.strip()
    assert tool.description and "\n" not in tool.description


@each_tool
def test_example(name: str) -> None:
    tool = tools.load(name)
    chain, request, result = EXAMPLES[name]
    assert chain.endswith(tool.trigger)
    assert tool.request(chain) == request
    assert tool(request) == result
    assert result.startswith(" ")
    assert tool.trigger not in result


@each_tool
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_refuses_bad_input(name: str, bad: str) -> None:
    tool = tools.load(name)
    with pytest.raises(ToolError) as caught:
        tool(bad)
    assert 0 < len(str(caught.value)) < 500  # a reason, without all of the request
    with pytest.raises(ToolError):
        tool(tool.request(bad + tool.trigger))


@each_tool
def test_is_pure(name: str) -> None:
    tool, other = tools.load(name), tools.load(name)
    chain, request, result = EXAMPLES[name]
    for _ in range(3):
        assert tool.request(chain) == request
        assert tool(request) == other(request) == result
        with pytest.raises(ToolError):  # a refusal leaves nothing behind
            tool("")
