"""Formulas become MathML, which every browser shows without a script; pictures take the page's colours."""

from __future__ import annotations

import html
import posixpath
import re

from math_core import LatexError, LatexToMathML
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
PICTURE = re.compile(r'<img alt="(?P<alt>[^"]*)" class="inline" src="(?P<src>[^"]+\.svg)" ?/?>')


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the formulas, and the pictures marked `{ .inline }`.

    Raises PluginError for a formula that cannot be read or a picture that is not there.
    """
    tex = LatexToMathML()

    def formula(match: re.Match[str]) -> str:
        display = match[2] == "["
        try:
            found = tex.convert_with_local_state(html.unescape(match[3]).strip(), displaystyle=display)
        except LatexError as error:
            raise PluginError(f"{page.file.src_uri}: {error}") from error
        return f'<div class="formula">{found}</div>' if display else found

    def picture(match: re.Match[str]) -> str:
        # Relative to the page's own address, as MkDocs has written it.
        uri = posixpath.normpath(posixpath.join(posixpath.dirname(page.url), match["src"]))
        file = files.get_file_from_path(uri)
        if file is None:
            raise PluginError(f"{page.file.src_uri}: there is no picture {uri}")
        svg = file.content_string.partition("<svg")[2]
        return f'<figure class="picture"><svg role="img" aria-label="{match["alt"]}"{svg.strip()}</figure>'

    return PICTURE.sub(picture, FORMULA.sub(formula, content))
