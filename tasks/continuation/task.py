"""The continuation task.

X is the beginning of a text, Z the next sentence without its full stop, and Y the full stop, which is also the stop:
the reward is p(Z . | X), tempered by the second of `e_step.reward_temperatures`. Sampling in proportion to
p(Z . | X)^(1/T) is not what sampling each token at temperature T does: a likely sentence may begin with an unlikely
word.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

from latent_cot.tasks import embeddings
from latent_cot.tasks.continuation import metrics
from latent_cot.tasks.files import HUB, examples_of, field, read_rows, shorten
from latent_cot.tasks.plain import SourceTask
from latent_cot.types import Example, Measured, UsageError

ABBREVIATIONS = frozenset(
    ("Mr", "Mrs", "Ms", "Dr", "St", "Sen", "Rep", "Gov", "Gen", "Prof", "Jr", "Sr", "Inc", "Ltd", "Co", "Corp", "No")
)
MAX_CHARACTERS = 2_000
"""Of a prompt."""

# One to three plain sentences at the beginning of a document, as the paper's prompts are.
_BEGINNING = re.compile(r"(?:[A-Z][A-Za-z0-9, ]{15,200}[.!?]\s+){1,3}")


class Continuation(SourceTask):
    """The next sentence of a text."""

    name = "continuation"
    description = "the next sentence of a text, likely and diverse (section 4.1 of the paper)"
    own = str(Path(__file__).with_name("prompts.txt"))
    stop = "."
    # No full stop, question or exclamation mark inside: they end a sentence. No quotation mark, bracket, newline or
    # slash (a URL's), as in the paper's list of tokens.
    allowed_characters = string.ascii_letters + string.digits + " ,'-"
    default_splits = ("test",)
    metrics = metrics.METRICS
    samples = 10
    scored = True

    def require(self) -> None:
        embeddings.require()

    def allows(self, piece: str) -> bool:
        """Not what makes a full stop likely that ends no sentence: a single capital (`U.`), an abbreviation (`Mr.`)."""
        word = piece.strip()
        return not (len(word) == 1 and word.isupper() and word not in "AI") and word not in ABBREVIATIONS

    def read(self, path: str) -> list[Example]:
        """The prompts of a file, whichever share they are in; of the hub's documents, those that begin with plain
        sentences, cut to these."""
        rows = read_rows(path)
        if path.startswith(HUB):
            found = [(where, _BEGINNING.match(field((where, fields), "text", str).strip())) for where, fields in rows]
            rows = [(where, {"text": beginning.group().strip()}) for where, beginning in found if beginning]
        return examples_of(rows, lambda row: self.example(field(row, "text", str)))

    def example(self, question: str, answer: str | None = None) -> Example:
        """The question is the prompt; there is no answer to give."""
        text = question.strip()
        if not text:
            raise UsageError("the question is empty; give the beginning of a text")
        if len(text) > MAX_CHARACTERS:
            raise UsageError(f"question {shorten(text)}: more than {MAX_CHARACTERS:,} characters; shorten it")
        return Example(x=text, y=".", question=text)

    def measure(self, questions: Sequence[Measured]) -> Mapping[str, float | Sequence[float]]:
        return metrics.measure(questions)
