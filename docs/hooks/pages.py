"""Pages that are written elsewhere in the repository, links that hold both there and on the site, and what a search
finds first.

The pages of the tasks and the tools are the README.md files beside their code: a new folder `tasks/NAME/` with one is
a new page. So is each notebook, with the outputs that are committed. In all pages, code such as `docs/evaluating.md`,
`results/estep.json`, `latent_cot/em.py` or `latent_cot.em.EM` that names a page, a file of the site or documented code
becomes a link to it. So the same Markdown reads well in an editor, in a terminal and here.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

FENCE = re.compile(r"(^(?P<fence>```+|~~~+).*?^(?P=fence)$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[(?P<text>[^\[\]]*)\]\((?P<path>[^)\s:#]+)(?P<anchor>#[^)\s]*)?\)")
CODE = re.compile(r"(?<![`\[])`(?P<path>[\w./-]+\.(?:md|json|py|yaml))`(?![`\]])")
EMPTY_LINES = re.compile(r"\n\s*\n")
INTERNALS = re.compile(r"api/(?!index|interface|types|settings)")
"""Pages made of the source of what a user does not call: a search leaves them out."""
RANKS = {"api/": 0.05, "log": 0.1, "changelog": 0.1, "results/": 0.3, "notebooks/": 0.5, "cli/": 0.8}
"""How a page's path starts -> what a hit in it counts for in a search, where one in a guide counts for 2."""
NAME = re.compile(r"(?<![`\[])`(?P<name>latent_cot(?:\.(?!(?:py|json|yaml)`)\w+)+)`(?![`\]])")


def outside_pages() -> dict[str, str]:
    """Path in the repository -> path on the site, of the pages that are not under docs/."""
    pages = {
        "CHANGELOG.md": "changelog.md",
        "CONTRIBUTING.md": "contributing.md",
        "tasks/README.md": "tasks/index.md",
        "tools/README.md": "tools/index.md",
    }
    for readme in sorted(ROOT.glob("tasks/*/README.md")):
        pages[readme.relative_to(ROOT).as_posix()] = f"tasks/{readme.parent.name}.md"
    for notebook in sorted(ROOT.glob("notebooks/*.ipynb")):
        pages[notebook.relative_to(ROOT).as_posix()] = f"notebooks/{notebook.stem}.md"
    return pages


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the outside pages."""
    for path, uri in outside_pages().items():
        if path.endswith(".ipynb"):
            files.append(File.generated(config, uri, content=notebook(ROOT / path)))
        else:
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def notebook(path: Path) -> str:
    """A notebook as Markdown: its texts, its code, and what each cell showed."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [text for output in cell.get("outputs", ()) if (text := shown(output))]
    return "\n\n".join(parts)


def shown(output: Mapping[str, Any]) -> str:
    """What a notebook's cell has shown, as Markdown: the richest form of it that there is."""
    data = {kind: "".join(text) for kind, text in output.get("data", {}).items()}
    if "text/html" in data:  # without an empty line, which would end the HTML
        return f'<div class="output">{EMPTY_LINES.sub(chr(10), data["text/html"]).strip()}</div>'
    if "image/png" in data:
        return f'<img class="output" alt="What the cell draws" src="data:image/png;base64,{data["image/png"].strip()}">'
    text = data.get("text/plain") or "".join(output.get("text", ()))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn what names a file into a link to it, and say how the page ranks in a search."""
    rank = next((rank for start, rank in RANKS.items() if page.file.src_uri.startswith(start)), 2.0)
    page.meta.setdefault("search", {"exclude": True} if INTERNALS.match(page.file.src_uri) else {"boost": rank})
    outside = outside_pages()
    places = {f"docs/{file.src_uri}": file.src_uri for file in files} | outside
    sources = {uri: path for path, uri in outside.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return linked(markdown, source, page.file.src_uri, places, modules())


def linked(markdown: str, source: str, uri: str, places: Mapping[str, str], modules: Mapping[str, str]) -> str:
    """A page's Markdown with its links made.

    Args:
        markdown: as it is written.
        source: the page's path in the repository; links start there, or at the repository's root.
        uri: its path on the site.
        places: path in the repository -> path on the site, of what a link can lead to.
        modules: path in the repository -> dotted name.
    """

    def place(path: str) -> str | None:
        """Where on the site `path` is."""
        starts = (posixpath.dirname(source), "")
        found = (places.get(posixpath.normpath(posixpath.join(start, path))) for start in starts)
        return next((place for place in found if place is not None), None)

    def from_here(place: str) -> str:
        return posixpath.relpath(place, posixpath.dirname(uri) or ".")

    def link(match: re.Match[str]) -> str:
        found = place(match["path"])
        if found is not None:
            return f"[{match['text']}]({from_here(found)}{match['anchor'] or ''})"
        # A file that is in the repository and not on the site is named, not linked. Whatever else is a mistake.
        return match["text"] if (ROOT / posixpath.dirname(source) / match["path"]).exists() else match[0]

    def code(match: re.Match[str]) -> str:
        found = place(match["path"])
        if found is not None and found != uri:
            return f"[{match[0]}]({from_here(found)})"
        if match["path"] in modules:
            return reference(modules[match["path"]], match["path"])
        return match[0]

    def change(text: str) -> str:
        return NAME.sub(lambda match: reference(match["name"], match["name"]), CODE.sub(code, LINK.sub(link, text)))

    return outside_fences(markdown, change)


def reference(name: str, text: str) -> str:
    """A link to documented code, which mkdocs-autorefs makes; if the site does not document it, only the text."""
    return f'<autoref identifier="{name}" optional><code>{text}</code></autoref>'


def outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    """Change everything but the fenced blocks of code."""
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])


def modules() -> dict[str, str]:
    """Path in the repository -> dotted name, of all modules of the package."""
    found = {}
    for path in (ROOT / "latent_cot").rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        found[name] = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return found
