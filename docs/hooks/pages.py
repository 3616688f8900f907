"""Pages that are written elsewhere in the repository, and links that hold both there and on the site.

The pages of the tasks and the tools are the README.md files beside their code: a new folder `tasks/NAME/` with one is
a new page. In all pages, code such as `docs/evaluating.md`, `results/estep.json`, `latent_cot/em.py` or
`latent_cot.em.EM` that names a page, a file of the site or documented code becomes a link to it. So the same Markdown
reads well in an editor, in a terminal and here.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

FENCE = re.compile(r"(^(?P<fence>```+|~~~+).*?^(?P=fence)$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[(?P<text>[^\[\]]*)\]\((?P<path>[^)\s:#]+)(?P<anchor>#[^)\s]*)?\)")
CODE = re.compile(r"(?<![`\[])`(?P<path>[\w./-]+\.(?:md|json|py|yaml))`(?![`\]])")
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
    return pages


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the outside pages."""
    for path, uri in outside_pages().items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn what names a file into a link to it."""
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
