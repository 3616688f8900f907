"""Chains of an exported model that a server writes, with the tools computed here.

    latent-cot export runs/mine exported/p --reasoner p --merge
    transformers serve exported/p                                  # or: vllm serve exported/p
    python examples/served.py exported/p "6 - 0 - 4 - 8" "12 + 7 - 5"

A server knows nothing of a chain's tools. So its text is read as it is written, and where it ends with a tool's
trigger, such as `=`, the connection is closed, the tool is called, and the server goes on behind the result. What it
writes is never evaluated, and no code of the folder is run. Any server with OpenAI's completions API will do, if it
takes the stop from `generation_config.json`. The alphabet, without which a model writes what it was never trained to
write, it has from there too (transformers), or from `logit_bias` (OpenAI's API, vLLM). Where the export says
`"special_tokens": false`, the server has to take `add_special_tokens`: vLLM does.
"""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from latent_cot import tools
from latent_cot.run.printable import printable
from latent_cot.types import Tool, ToolError, UsageError

SECONDS = 300
"""For which the server may say nothing: it may have to load the model first."""


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def written(url: str, request: Mapping[str, Any]) -> Iterator[str]:
    """The text that the server writes, piece by piece. Closing the iterator stops it."""
    body = json.dumps({**request, "stream": True}).encode()
    headers = {"Content-Type": "application/json"}
    posted = urllib.request.Request(f"{url}/completions", body, headers)  # the user's own address
    with urllib.request.urlopen(posted, timeout=SECONDS) as response:
        for line in response:
            data = line.decode().removeprefix("data:").strip()
            if data and data != "[DONE]":
                event = json.loads(data)
                if "error" in event:
                    raise SystemExit(f"the server says: {printable(str(event['error']))}")
                yield event["choices"][0]["text"] or ""


def result_of(text: str, called: Mapping[str, Tool]) -> str | None:
    """What the tool that a chain calls at its end puts behind it; None: none is called, or it refuses."""
    tool = next((tool for trigger, tool in called.items() if text.endswith(trigger)), None)
    try:
        return tool(tool.request(text)) if tool else None
    except ToolError:
        return None  # a call that fails writes nothing, and the chain goes on


def alphabet(folder: Path) -> dict[int, int]:
    """The tokens that a chain may have, as `logit_bias`: more of these, or less of all others, whichever are fewer."""
    forbidden = set(read(folder / "generation_config.json").get("suppress_tokens") or ())
    config = read(folder / "config.json")
    allowed = set(range(config.get("text_config", config)["vocab_size"])) - forbidden
    return dict.fromkeys(allowed, 100) if len(allowed) < len(forbidden) else dict.fromkeys(forbidden, -100)


def reason(url: str, request: Mapping[str, Any], prompt: str, called: Mapping[str, Tool], left: int, stop: str) -> str:
    """The chain behind a prompt.

    Args:
        called: trigger -> tool.
        left: tokens that it may choose.
        stop: the text that ends it, which is no part of it.
    """
    text = ""
    while left > 0:
        result = None
        with closing(written(url, {**request, "prompt": prompt + text, "max_tokens": left})) as pieces:
            for piece in pieces:  # a token or more
                left -= 1
                for character in piece:
                    text += character
                    if result := result_of(text, called):
                        break
                if result:
                    break
        if result is None:
            return text.removesuffix(stop)
        text += result
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description="Chains of an exported model that a server writes.")
    parser.add_argument("folder", type=Path, help="the exported model")
    parser.add_argument("questions", nargs="+")
    parser.add_argument("--url", default="http://localhost:8000/v1", help="where the server is (default: %(default)s)")
    parser.add_argument("--model", help="what the server calls the model (default: the folder, as it was given)")
    parser.add_argument("--tools", nargs="*", help="tools of your own, as files (default: those that the export names)")
    given = parser.parse_args()
    try:
        settings = read(given.folder / "latent_cot.json")
        if not (given.folder / "config.json").exists():
            raise SystemExit(f"{given.folder}: an adapter alone; a server needs a model: latent-cot export --merge")
        bias, named = alphabet(given.folder), [tool["name"] for tool in settings["tools"]]
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"{given.folder}: no exported model ({error})") from error
    try:
        unknown = [name for name in named if name not in tools.names()]
        if unknown and not given.tools:  # it may be a file's: no code is run but that of files the user names
            raise UsageError(f"this package has no tool {printable(unknown[0])!r}")
        called = {tool.trigger: tool for tool in map(tools.load, given.tools or named)}
    except UsageError as error:
        raise SystemExit(f"{error}; name tools of your own, all that it has, by --tools FILE.py") from error
    request = {"model": given.model or str(given.folder), "temperature": 0, "logit_bias": bias}
    if "answer" in settings["fields"]:
        raise SystemExit("prompts of this model hold the answer, too: solve.py takes both")
    if settings.get("begins"):
        raise SystemExit("prompts of this model begin with special tokens that a server cannot be told to put there")
    if not settings["special_tokens"]:  # the prompt has them already
        request["add_special_tokens"] = False
    for question in given.questions:
        prompt = settings["prompt"].format_map(dict.fromkeys(settings["fields"], question))
        try:
            chain = reason(given.url, request, prompt, called, settings["max_tokens"], settings["stop"])
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{given.url}: {error}: {printable(error.read(2000).decode(errors='replace'))}") from error
        except OSError as error:
            raise SystemExit(f"{given.url}: {error}; is the server there?") from error
        print(f"{question} ->{printable(chain)}")


if __name__ == "__main__":
    main()
