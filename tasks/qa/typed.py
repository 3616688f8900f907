"""Filled prompts as people type them: whether a text is one, and which choices it has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from latent_cot.tasks.qa.spec import FIELD

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Form:
    """What the filled prompts of a task have in common."""

    prompt: str
    """With its columns in braces."""
    choices: Sequence[str] | None
    """Those of all questions; None: each has its own, a line each behind its letter."""

    def read(self, text: str) -> str | None:
        r"""The prompt: the text as it is or, if that is none, with line breaks for `\n`, as prompts are shown; None if
        it is none either."""
        both = (text, text.replace("\\n", "\n").strip())
        return next((x for x in both if self._fits(x)), None)

    def letters(self, x: str) -> str:
        """Those of the choices in a prompt: the last list that begins with A and has two at least, else none."""
        texts, columns = FIELD.split(self.prompt)[::2], FIELD.findall(self.prompt)
        before = re.escape(texts[columns.index("choices")]) if "choices" in columns else "^"
        for begins in reversed([*re.finditer(rf"(?:^|{before})A\. ", x, re.MULTILINE)]):
            n, at = 1, begins.end()
            while n < len(LETTERS) and (at := x.find(f"\n{LETTERS[n]}. ", at)) >= 0:
                n += 1
            if n > 1:
                return LETTERS[:n]
        return ""

    @property
    def dotted(self) -> str:
        """A prompt with dots for what the questions do not have in common."""
        listed = "A. ...\nB. ..." if self.choices is None else ", ".join(self.choices)
        return FIELD.sub(lambda match: listed if match[1] == "choices" else "...", self.prompt).strip()

    def _fits(self, x: str) -> bool:
        """Whether the texts are in it, something between each two of them, and the choices."""
        first, *others = self._texts
        if not others:
            return x == first.rstrip()
        *between, last = others
        at, end = len(first), len(x) - len(last)
        if not (x.startswith(first) and x.endswith(last)):
            return False
        for text in between:
            at = x.find(text, at + 1, end)
            if at < 0:
                return False
            at += len(text)
        lettered = self.choices is None and "choices" in FIELD.findall(self.prompt)
        return at < end and (not lettered or self.letters(x) != "")

    @cached_property
    def _texts(self) -> list[str]:
        """What stands before, between and behind the columns. Choices that all questions have are such a text."""
        texts = [""]
        for k, part in enumerate(FIELD.split(self.prompt)):  # by turns a text and a column's name
            if k % 2 == 0:
                texts[-1] += part
            elif part == "choices" and self.choices is not None:
                texts[-1] += ", ".join(self.choices)
            else:
                texts.append("")
        return [texts[0].lstrip(), *texts[1:-1], *(text.rstrip() for text in texts[1:][-1:])]
