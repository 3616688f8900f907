"""The model card: what the reasoner was trained on, how good it is, its limits, and a program that uses it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from latent_cot import __version__
from latent_cot.rationales import chain
from latent_cot.run.export.description import Base
from latent_cot.run.printable import printable
from latent_cot.types import JOINT

_FIGURES = {
    "variance": "variance of log R − log q over prefixes, nats²: 0 where q is the posterior",
    "elbo": "{total} less KL(q ‖ posterior), a lower bound, nats: what the training of q raises",
    "bound": "importance-weighted lower bound on {total}, nats",
    "ess": "effective sample size of the weights R(Z) / q(Z), as a share: 1 where q is the posterior",
}
"""Those of the posterior's figures that a stranger can make something of, and their meaning for a table."""


def render(d: Mapping[str, Any], base: Base, merged: bool) -> tuple[str, str]:
    """README.md, with the front matter that the hub reads; and solve.py, the program that it shows."""
    environment = Environment(
        loader=PackageLoader(__package__, "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "literal": _literal,
        "code": _code,
        "plain": _plain,
        "percent": lambda share: f"{100 * share:.1f}",
    }
    joint = d["log_reward"] == JOINT
    known = {"d": d, "base": base, "merged": merged, "o": d["outcome"], "joint": joint}
    total = "log p(Y \\| X)" if joint else "log Σ R(Z)"
    figures = {name: meaning.format(total=total) for name, meaning in _FIGURES.items()}
    program = environment.get_template("program.txt").render(**known, longest_result=chain.MAX_RESULT_TOKENS).strip()
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", program)), default=0))
    title = _plain(f"{Path(base.name).name}-{d['task']}-{d['reasoner']}")
    body = environment.get_template("card.md").render(
        **known, title=title, program=program, fence=fence, figures=figures, version=__version__
    )
    return f"---\n{_front_matter(d, base, merged)}\n---\n\n{body}\n", f"{program}\n"


def _front_matter(d: Mapping[str, Any], base: Base, merged: bool) -> str:
    return ModelCardData(
        license=base.licence,
        base_model=base.name if base.on_hub else None,
        library_name="transformers" if merged else "peft",
        pipeline_tag="text-generation",
        tags=["latent-cot", "chain-of-thought", *(["tool-use"] if d["tools"] else [])],
    ).to_yaml()


def _code(text: object) -> str:
    """Text of whatever origin as a code span, within a table too: shown as it is, never read as Markdown or HTML."""
    plain = printable(str(text)).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`"


def _literal(value: object) -> str:
    """A string, or strings, as Python source in the usual quotes."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))})"
    # `printable` would make line breaks of these two.
    source = json.dumps(value, ensure_ascii=False).replace("\u2028", r"\u2028").replace("\u2029", r"\u2029")
    return printable(source)


def _plain(text: object) -> str:
    """A name of whatever origin within a line of text: what could be Markdown, HTML or another line is left out."""
    return re.sub(r"[^\w./+ -]", "", printable(str(text)))[:200]
