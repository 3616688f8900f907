"""Sampling by an engine beside the model, such as vLLM: token ids in, token ids and their log-probabilities out.

An engine holds the base model and, by name, the adapters it is given. It knows nothing of rationales: what may be
written, and where a tool is asked for, is sent with each request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Request:
    """A text to go on with."""

    prompt: Sequence[int]
    """Token ids, at least one."""
    allowed: Sequence[int]
    """The token ids that may be chosen, ascending. Their probabilities come to 1."""
    ends: Sequence[int]
    """Token ids behind which the completion ends."""
    max_tokens: int
    temperature: float
    """0 is greedy."""
    top_p: float
    seed: int
    """Two requests with different seeds are independent."""


@dataclass(frozen=True)
class Completion:
    """What an engine has written: at least one token, and at most `max_tokens`."""

    tokens: Sequence[int]
    """With the one that ended it, if one did."""
    log_probs: Sequence[float]
    """Of each token by the distribution it was drawn from, nats."""


class Engine(Protocol):
    """What samples for a `LanguageModel`."""

    notes: list[str]
    """Sentences for the user on what has happened, such as a server that was lost; who tells them takes them out."""

    def put(self, adapter: str, save: Callable[[Path], None]) -> None:
        """Load the adapter that `save` writes to a folder, in PEFT's format, in place of the last one of this name.
        What is asked for next is sampled from it. Raises UsageError if the engine refuses it."""

    def complete(self, adapter: str, requests: Sequence[Request]) -> list[Completion]:
        """A completion of each request. Raises UsageError if nobody answers, or the engine refuses a request."""

    def close(self) -> None:
        """Take the adapters back."""
