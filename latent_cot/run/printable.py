"""Text that a model or a stranger wrote is hostile: what may be shown of it."""

from __future__ import annotations

import unicodedata


def printable(text: str, *, keep_newlines: bool = False) -> str:
    """`text` with what could steer a terminal (control characters, escapes, text direction) made visible."""
    return "".join(
        character
        if unicodedata.category(character)[0] != "C" or (keep_newlines and character == "\n")
        else character.encode("unicode_escape").decode("ascii")
        for character in text.replace("\u2028", "\n").replace("\u2029", "\n")
    )
