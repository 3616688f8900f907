"""Prompts from a file or a data set of the hub, each in one share for good."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

from latent_cot.tasks import sources
from latent_cot.tasks.common import Share, share_of
from latent_cot.tasks.files import shorten
from latent_cot.types import Example, UsageError

OWN = str(Path(__file__).with_name("prompts.txt"))
"""The task's own few."""
MAX_CHARACTERS = 2_000
"""Of a prompt."""

# One to three plain sentences at the beginning of a document, as the paper's prompts are.
_BEGINNING = re.compile(r"(?:[A-Z][A-Za-z0-9, ]{15,200}[.!?]\s+){1,3}")


def build(text: str) -> Example:
    """The example of a prompt. Raises UsageError for one that is empty or too long."""
    text = text.strip()
    if not text:
        raise UsageError("the question is empty; give the beginning of a text")
    if len(text) > MAX_CHARACTERS:
        raise UsageError(f"question {shorten(text)}: more than {MAX_CHARACTERS:,} characters; shorten it")
    return Example(x=text, y=".", question=text)


def read(source: str) -> list[Example]:
    """Each distinct prompt of a source once, in its order; of the hub's documents, those that begin with plain
    sentences, cut to these.

    Raises UsageError naming the line.
    """
    found: dict[str, Example] = {}
    for where, text in sources.texts_of(source):
        if source.startswith(sources.HUB):
            beginning = _BEGINNING.match(text)
            if beginning is None:
                continue
            text = beginning.group().strip()
        try:
            found.setdefault(text, build(text))
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
    return list(found.values())


def share(examples: Sequence[Example], name: Share) -> list[Example]:
    """Those of a share: a hash of the prompt decides."""
    return [example for example in examples if share_of(example.question) == name]


def draw(examples: Sequence[Example], number: int, seed: str, where: str) -> list[Example]:
    """So many of the examples, at random; a smaller number gives a beginning of a larger one. Raises UsageError."""
    if number > len(examples):
        raise UsageError(
            f"{where} has {len(examples)} prompts for this, not {number}; ask for fewer, or name a larger source with "
            "--data.train-file"
        )
    return random.Random(seed).sample(examples, len(examples))[:number]
