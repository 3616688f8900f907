"""One HTML file that holds everything: style, script, libraries and data.

What is in the data was written by a model, and is hostile. Three walls: the JSON is escaped so that it cannot leave
its element; the script puts it on the page as text nodes only; and a content security policy admits the scripts whose
hashes it names, and no connection at all.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from latent_cot.types import finite

LIBRARIES = ("d3.min.js", "plot.umd.min.js")
"""Of `vendor/`, in the order in which they are loaded."""
SCRIPTS = (
    *("text.js", "scale.js", "charts.js"),
    *("run.js", "accuracy.js", "metrics.js", "before.js", "training.js", "settings.js"),
    *("weights.js", "chains.js", "tree.js", "explorer.js", "main.js"),
)
"""Of `assets/`. They are one script with one scope: each may use what the others declare."""

_SLOT = re.compile(r"<!--slot:(\w+)-->")


def render(report: Mapping[str, Any]) -> str:
    """The page that shows a report (`docs/report.md` describes its JSON)."""
    own = '"use strict";\n(() => {\n' + "\n".join(_read("assets", name) for name in SCRIPTS) + "\n})();\n"
    scripts = [*(_read("vendor", name) for name in LIBRARIES), own]
    slots = {
        "title": html.escape(str(report["title"])),
        "policy": html.escape(_policy(scripts)),
        "style": f"<style>\n{_read('assets', 'report.css')}</style>",
        "data": f'<script type="application/json" id="report-data">{island(report)}</script>',
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    # In one pass, so that nothing that is put in can be taken for a slot.
    return _SLOT.sub(lambda match: slots[match[1]], _read("assets", "report.html"))


def island(value: Any) -> str:
    """JSON that cannot end the element it is in, nor begin a comment or a script: ASCII only, and no `<`, `>`, `&`."""
    text = json.dumps(finite(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(scripts: list[str]) -> str:
    """The content security policy: these scripts run, styles of the page itself apply, nothing is loaded."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    # Observable Plot sets style attributes; with nothing to be loaded from anywhere a style can do no harm.
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _read(folder: str, name: str) -> str:
    return resources.files("latent_cot.report.web").joinpath(folder, name).read_text(encoding="utf-8")
