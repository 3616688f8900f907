"""The calculator's source that exports carry along does what the tool does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from latent_cot.tools.calculator import Calculator
from latent_cot.types import ToolError

CALCULATORS = {n: Calculator(max_operands=n) for n in (2, 3, 5)}


@pytest.fixture(scope="module")
def portable() -> dict[int, Callable[[str], str | None]]:
    """Operands of a call -> the function that an export has."""
    found = {}
    for n, calculator in CALCULATORS.items():
        namespace: dict[str, Any] = {}
        exec(compile(calculator.portable, "portable", "exec"), namespace)  # noqa: S102
        found[n] = namespace["calculator"]
    return found


def by_the_tool(text: str, operands: int = 2) -> str | None:
    calculator = CALCULATORS[operands]
    try:
        return calculator(calculator.request(text))
    except ToolError:
        return None


NUMBERS = st.from_regex(r"\A-? ?([0-9]{1,13}(\.[0-9]{1,12})?|\.[0-9]{1,12})\Z")
EXPRESSIONS = st.builds(
    lambda a, b, operator, gap: f"{a}{gap}{operator}{gap}{b}",
    NUMBERS,
    NUMBERS,
    st.sampled_from("+-*/−×÷"),
    st.sampled_from(["", " "]),
)
ALPHABET = st.text(st.sampled_from(" ,.0123456789=+-*/();:!?\n"), max_size=30)
GAPS = st.one_of(st.sampled_from(["", ", "]), st.integers(200, 320).map(lambda n: " " * n))
"""Before an expression. So much of a chain is looked at: in a longer gap the limit is."""
NESTED = st.recursive(
    st.from_regex(r"\A[0-9]{1,3}(\.[0-9]|/[0-9]{1,2})?\Z"),
    lambda inner: st.builds(
        "{1}{0}{2}{0}{3}{4}".format,
        st.sampled_from(["", " "]),
        st.sampled_from(["", "-", "(", "-("]),
        inner,
        st.builds("{}{}".format, st.sampled_from("+-*/"), inner),
        st.sampled_from(["", ")"]),
    ),
    max_leaves=6,
)


@given(
    ALPHABET,
    GAPS,
    st.one_of(EXPRESSIONS, NESTED, ALPHABET),
    st.sampled_from(["", " "]),
    st.sampled_from([*CALCULATORS]),
)
@example("", ", ", "1/549755813888 * 1/549755813888", " ", 2)
@example("", ", ", "( 3 + 4 )", " ", 2)
@example("", ", ", "9 - 3 + 8", " ", 3)
@example("", " " * 300, "3 + 4", " ", 2)
@example("", " " * 250, "3 + 4", "", 2)
@example("", " " * 251, "3 + 4", "", 2)
@example("1,", " " * 300, "3 + 4", "", 2)
@example("", "", "3! - 2 + 1", " ", 3)
@example("", "", "1,0000 + 2", " ", 2)
def test_the_portable_calculator_is_the_tool(
    portable: dict[int, Callable[[str], str | None]], before: str, ahead: str, expression: str, gap: str, operands: int
) -> None:
    text = f"{before}{ahead}{expression}{gap}="
    assert portable[operands](text) == by_the_tool(text, operands)


def test_a_request_beyond_what_is_looked_at_is_refused_by_both(
    portable: dict[int, Callable[[str], str | None]],
) -> None:
    for gap in (0, 200, 251, 300, 1000):
        text = f"{' ' * gap}3 + 4 ="
        assert portable[2](text) == by_the_tool(text) == (" 7" if gap <= 250 else None)


@pytest.mark.parametrize(
    "text", [" 6 - 0 =", "0.5 + .25 =", "1 / 3 =", "1 / 0 =", "1 / 1024 =", "5 =", "1,000 + 2 =", "8÷3="]
)
def test_the_portable_calculator_on_what_matters(portable: dict[int, Callable[[str], str | None]], text: str) -> None:
    assert portable[2](text) == by_the_tool(text)
