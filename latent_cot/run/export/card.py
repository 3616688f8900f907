"""The model card: what the reasoner was trained on, how good it is, its limits, and a program that uses it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from latent_cot import __version__
from latent_cot.run.export.description import Base
from latent_cot.run.printable import printable

_FIGURES = {
    "variance": "variance of log R − log q over prefixes, nats²: 0 where q is the posterior",
    "bound": "importance-weighted lower bound on log p(Y \\| X), nats",
    "ess": "effective sample size of the weights p(Z Y \\| X) / q(Z), as a share: 1 where q is the posterior",
}
"""Those of the posterior's figures that a stranger can make something of, and their meaning for a table."""


def render(d: Mapping[str, Any], base: Base, merged: bool, hub_name: str | None) -> str:
    """README.md, with the front matter that the hub reads."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"literal": _literal, "code": _code, "percent": lambda share: f"{100 * share:.1f}"}
    known = {"d": d, "base": base, "merged": merged, "o": d["outcome"]}
    answer = _without_imports(d["answer"]) if d["answer"] else ([], None)
    delimiter = d["step_delimiter"]
    tools = [_without_imports(tool["portable"]) for tool in d["tools"]]
    program = environment.from_string(_template("program.txt")).render(
        **known,
        model=hub_name or ".",
        revision=f", revision={_literal(base.revision)}" if base.revision else "",
        trust=", trust_remote_code=True" if d["trust_remote_code"] else "",
        imports=sorted(
            {line for lines, _ in [answer, *tools] for line in lines}, key=lambda line: line.startswith("from")
        ),
        tool_sources=[source for _, source in tools],
        answer_source=answer[1],
        ends=[
            *(["self.result is not None"] if d["tools"] else []),
            *([f"decode(self.ids).endswith({_literal(delimiter)})"] if delimiter is not None else []),
        ],
    )
    longest = max(map(len, re.findall("`+", program)), default=0)
    body = environment.from_string(_template("card.md")).render(
        **known,
        title=_title(d, base, hub_name),
        program=program.strip(),
        fence="`" * max(3, longest + 1),
        figures=_FIGURES,
        version=__version__,
    )
    return f"---\n{_front_matter(d, base, merged, hub_name)}\n---\n\n{body}\n"


def _without_imports(source: str) -> tuple[list[str], str]:
    """The import statements at the top level of a portable form, and the rest."""
    imports = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    lines = source.splitlines()
    for node in imports:
        lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or node.lineno) - node.lineno + 1)
    return [ast.unparse(node) for node in imports], "\n".join(lines).strip()


def _template(name: str) -> str:
    return (files("latent_cot.run.export") / name).read_text(encoding="utf-8")


def _title(d: Mapping[str, Any], base: Base, hub_name: str | None) -> str:
    return (hub_name or f"{Path(base.name).name}-{d['task']}-{d['reasoner']}").rpartition("/")[2]


def _front_matter(d: Mapping[str, Any], base: Base, merged: bool, hub_name: str | None) -> str:
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=d["task"],
            dataset_name=f"{d['task']}, {split}",
            dataset_config=split,
            metric_type="accuracy",
            metric_value=round(found["accuracy"], 4),
        )
        for split, found in d["outcome"]["accuracy"].items()
    ]
    data: dict[str, Any] = {
        "license": base.licence,
        "base_model": base.name if base.on_hub else None,
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["latent-cot", "chain-of-thought", *(["tool-use"] if d["tools"] else [])],
    }
    if results:
        data |= {"model_name": _title(d, base, hub_name), "eval_results": results}
    return ModelCardData(**data).to_yaml()


def _code(text: object) -> str:
    """Text of whatever origin as a code span, within a table too: shown as it is, never read as Markdown or HTML."""
    plain = printable(str(text)).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`"


def _literal(value: object) -> str:
    """A string, or strings, as Python source in the usual quotes."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))})"
    return json.dumps(value, ensure_ascii=False)
