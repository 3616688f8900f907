"""Structure-aware damage: a JSON value with some of its parts replaced, doubled or taken away."""

from __future__ import annotations

import copy
import json
import math
import os
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st

Test = TypeVar("Test", bound=Callable[..., None])

FULL = os.environ.get("ATTACK")
SEED = int(FULL or 0)


def attack(few: int, many: int) -> Callable[[Test], Test]:
    """Run a hypothesis test on so many examples: by default, and in full."""
    quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]

    def mark(test: Test) -> Test:
        if not FULL:
            return settings(max_examples=few, suppress_health_check=quiet)(test)
        asked = settings(max_examples=many, derandomize=False, database=None, suppress_health_check=quiet)
        return seed(SEED)(asked(test))

    return mark


TALLY: Counter[tuple[str, str]] = Counter()
"""(test, what came of a case) -> cases."""


def count(what: str) -> None:
    """Note what came of a case of the test that is running."""
    TALLY[os.environ["PYTEST_CURRENT_TEST"].split("::")[1].split(" ")[0].split("[")[0], what] += 1


def nested(depth: int, empty: Any) -> Any:
    value = empty
    for _ in range(depth):
        value = [value]
    return value


HOSTILE: list[Any] = [
    *(None, True, False, -1, 0, 1, 7, 1.5, -0.0, 2**31, 2**63, 10**40, -(10**400), 1e308),
    *(math.nan, math.inf, -math.inf, "", "x", "0", "-1", "\ud800", "a\n# b\n```\nrm -rf\n", "\x1b[31m", "9" * 400),
    *("../../../etc/passwd", "/dev/zero", "~nobody/x", "nul\0", "x" * 300, "2026-99-99T00:00:00+00:00"),
    *([], {}, [None], {"": None}, [[1, 2], "x"], {"a": {"b": [1e999]}}, nested(70, 1), nested(500, {})),
]
_SCALARS = st.integers() | st.floats() | st.text(max_size=5)


@st.composite
def damaged(draw: st.DrawFn, value: Any) -> Any:
    """A copy of a JSON value with one to three of its parts damaged."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        value = _once(draw, value)
    return value


def _once(draw: st.DrawFn, value: Any) -> Any:
    parent: Any = None
    place: Any = None
    node = value
    while isinstance(node, dict | list) and node and draw(st.integers(0, 9)):  # deep down, mostly
        keys = list(node) if isinstance(node, dict) else range(len(node))
        parent, place = node, draw(st.sampled_from(keys))
        node = parent[place]
    how = draw(st.sampled_from(["hostile", "scalar", "near", "drop", "double", "other"]))
    new: Any = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
    if how == "scalar":
        new = draw(_SCALARS)
    elif how == "near" and isinstance(node, int | float) and not isinstance(node, bool):
        new = node + draw(st.sampled_from([-1, 1, 1000]))
    elif how == "other":
        new = copy.deepcopy(node)
        new = [new] if not isinstance(new, list) else new * 2
    if parent is None:
        return new
    if how == "drop":
        del parent[place]
    elif how == "double" and isinstance(parent, list):
        parent.insert(place, copy.deepcopy(node))
    elif how == "double":
        parent[f"{place}x"] = copy.deepcopy(node)
    else:
        parent[place] = new
    return value


TEXTS = ["", "{", "[]", "null", "0", '{"a": 1, "a": 2}', "[" * 100_000, "9" * 5000, "\ufeff{}", '{"\\ud800": 1}', "NaN"]


def written(value: Any) -> bytes:
    """As JSON. Half a character becomes its escape."""
    return json.dumps(value).encode()


def bad_bytes(content: bytes) -> st.SearchStrategy[bytes]:
    """A file's content, cut, with some bytes of another, or altogether another."""

    def flip(where: tuple[int, int]) -> bytes:
        place, byte = where[0] % max(1, len(content)), where[1]
        return content[:place] + bytes([byte]) + content[place + 1 :]

    return st.one_of(
        st.integers(0, len(content)).map(lambda n: content[:n]),
        st.tuples(st.integers(0), st.integers(0, 255)).map(flip),
        st.sampled_from([text.encode() for text in TEXTS]),
        st.binary(max_size=200),
    )
