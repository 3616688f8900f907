"""Whether two answers say the same, as texts. Both are text that a model may have written: bounded, never run."""

from __future__ import annotations

import unicodedata
from decimal import Decimal
from fractions import Fraction

import regex

DASHES = "\u2010-\u2014\u2212\ufe63\uff0d"
"""What is written for a minus sign beside `-`, as it stands in a class of a pattern."""
SMALL = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ"
"""What a power is written in, without a `^`."""
_POWERS = str.maketrans(SMALL, "0123456789+-=()ni")
_INDICES = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎", "0123456789+-=()")
_SIGNS = "%‰‱′″‴⁗"
"""What makes another amount of a number that it stands behind."""
_OF_TEN = r"(?:e|(?P<times>\s*×\s*10\s*\^\s*))(?P<power>[-+]?[0-9]{1,3})(?![\w^]|\.[0-9])"
_AMOUNT = (
    rf"(?<!\w)(?:(?<![{_SIGNS}°\p{{Sc}}])(?P<sign>[-+]))?(?:(?<![0-9]\s)(?P<money>\p{{Sc}})\s?(?P<inner>[-+]?))?"
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]++)(?:\.[0-9]++(?!\.[0-9]))?|(?<![\w.])\.[0-9]++)"
    rf"(?:{_OF_TEN})?"
)
"""A number: its sign, its currency with a sign behind it, its digits, and a power of ten, as in `3e8` and `3×10^8`."""
_WORD = regex.compile(
    rf"{_AMOUNT}|[\w\p{{M}}\p{{N}}]+|(?<=\w)#+|\p{{Sm}}|\p{{Sc}}|[\p{{So}}--©®™℠]|[{_SIGNS}]|\^(?=\s*[-+({{\w])"
    r"|(?<=[\w)\]}])[*/](?=[\w(\[{])|(?<=\s)[-*/](?=\s)|(?<!\w)-(?=[\w(\p{Sm}])"
    r"|(?<=[\w)\]}])-(?=\W*$)|(?<=(?<!\w)\p{L})-(?!\w)",
    regex.VERSION1,
)
"""Of an answer: a number, a word, an operator, or another sign that counts. A `-` is one before a number, a word or an
operator, between spaces, and behind what ends an answer or is one letter: `A-`, not `post-war`."""
_WHOLE = regex.compile(
    rf"(?<before>[\s(\[*_'\"]*)[-{DASHES}]\s+(?=(?:\p{{Sc}}\s?)?(?:[0-9]+(?:,[0-9]{{3}})*(?:\.[0-9]+)?|\.[0-9]+)"
    rf"(?:/[0-9]+)?(?:\s?(?:[{_SIGNS}°]|\p{{Sc}}))?[\s.,;:!?)\]*_'\"]*$)"
)
"""A minus sign with spaces behind it where the whole answer is a number: elsewhere it is a list's."""
_APOSTROPHE = regex.compile(
    r"(?<=\p{L}\p{L})['’](?=\p{L})|(?<=\p{L})['’](?=\p{L}\p{L})|(?<=(?<!\w)[iI])['’](?=[mMdD](?!\w))"
    r"|(?<=[0-9])['’](?=[sS](?!\w))"
)
"""Of a word: in `f'g` it is a prime."""
_ARTICLES = frozenset(("a", "an", "the"))


def same_text(answer: str, right: str) -> bool:
    """Equal but for case, punctuation, spaces and English articles, numbers as numbers. `2³` is `2^3`, `H₂O` H2O."""
    answer, right = _plain(answer), _plain(right)
    one, other = _words(answer), _words(right)
    return one == other if one or other else answer == right


def _plain(text: str) -> str:
    """In one case, and with one way to write powers, indices, fractions, minus signs and products."""
    text = unicodedata.normalize("NFC", text)
    text = regex.sub(r"(\$\$?)(?!\s)([^$]+)(?<!\s)\1(?![0-9])", r"\2", text)  # LaTeX's dollars are no money
    text = regex.sub(r"\\(?:times|cdot)\b", "×", text)
    text = regex.sub(r"(?<=(?<!\w)\p{L})\.(?=\p{L}(?!\w))", "", text)  # U.S.
    text = _APOSTROPHE.sub("", text)
    text = regex.sub(r"(?<!\w)(['\"])((?:(?!\1).)*)\1(?!\w)", r"\2", text)  # quotes: what is left may be primes
    text = regex.sub(r"(?<=[0-9])['\"](?=\W*\w)", lambda mark: "′" if mark[0] == "'" else "″", text)
    text = text.replace("!=", "≠")
    text = regex.sub("(?<=[0-9])(?=[¼-¾⅐-⅞])", " ", text)
    text = regex.sub("[¼-¾⅐-⅞]", lambda one: unicodedata.normalize("NFKC", one[0]), text).translate({0x2044: "/"})
    text = regex.sub(rf"[{SMALL}]+", lambda power: f"^{power[0].translate(_POWERS)}", text).translate(_INDICES)
    text = regex.sub(r"\^\s*[{(]\s*([-+]?\w+[-+]?)\s*[})]", r"^\1", text)
    text = regex.sub(r"(?<![\w\p{M}\p{Sc})\]}|%‰‱°!∞′″‴⁗'\"’”]\s*)\N{MINUS SIGN}\s*(?=\S)", "-", text)
    text = _WHOLE.sub(r"\g<before>-", text) if _WHOLE.match(text) else text
    text = regex.sub(rf"(?<!\w)[{DASHES}](?=\p{{Sc}}?\s?\.?[0-9])|\N{{MINUS SIGN}}", "-", text)
    # Of numbers: 3-5 is no list. In `B-12` it is a hyphen, and 2x-3 has one letter.
    text = regex.sub(rf"(?<=[0-9)\]]|[0-9]\p{{L}})[-{DASHES}](?=[0-9(\[])", " - ", text)
    text = unicodedata.normalize("NFC", text.casefold())
    text = regex.sub(r"(?<=[0-9])(?:\s+[x*·⋅∙]\s+|[x*·⋅∙])(?=[0-9])", "×", text)
    return text.strip()


def _words(text: str) -> list[str]:
    """Without articles; where there is nothing else, the last of these: `A` may be an answer."""
    matches = list(_WORD.finditer(text))
    articles = [_is_article(text, *two) for two in zip(matches, [*matches[1:], None], strict=False)]
    if all(articles):
        matches, articles = matches[-1:], [False]
    words: list[str] = []
    for found, article in zip(matches, articles, strict=False):
        if found["digits"]:
            words += _amount(text, found, first=not words)
        elif not article:
            words.append({"*": "×"}.get(found[0], found[0].strip("_") or found[0]))
    return _as_fraction(words)


def _is_article(text: str, found: regex.Match[str], behind: regex.Match[str] | None) -> bool:
    """An `a` stands before a word: in `a-b`, `A, B`, `5a` and `vitamin A` it is a letter."""
    if found[0] not in _ARTICLES or text[max(0, found.start() - 1) : found.start()].isalnum():
        return False
    if found[0] != "a":
        return True
    if behind is None or not any(map(str.isspace, text[found.end() : behind.start()])):
        return False
    return regex.fullmatch(r"[^\W0-9]|\W+", behind[0]) is None


def _amount(text: str, found: regex.Match[str], *, first: bool) -> list[str]:
    """A number as there is one way to write it, with its currency behind it."""
    digits, power, at = found["digits"].replace(",", ""), found["power"], found.start()
    in_power = found["times"] is not None and text[:at].endswith("^")  # 2^3×10^2 has no 3×10^2
    value = Decimal(f"{digits}e{power}" if power and not in_power else digits)
    whole, _, decimals = f"{value:f}".partition(".")
    written = f"{whole}.{decimals.rstrip('0')}".rstrip(".")
    if regex.match("0[0-9]", digits) and regex.search("[0-9][.,:]$", text[:at][-2:]):
        written = digits  # 2,05 is not 2,5
    minus = (found["sign"] == "-") != (found["inner"] == "-") and value != 0
    sign = "-" if minus else "+" if found["sign"] == "+" and not first else ""
    behind = ["×", "10", "^", str(int(power))] if in_power else []
    return [sign + written, *behind, *([found["money"]] if found["money"] else [])]


def _as_fraction(words: list[str]) -> list[str]:
    """A number, or a quotient of two, in lowest terms where it is all of an answer: 3/4 is 0.75."""
    if len("".join(words)) > 64 or not (len(words) == 1 or words[1:-1] == ["/"]):
        return words
    if not all(regex.fullmatch(r"-?[0-9]+(?:\.[0-9]+)?", word) for word in words[::2]):
        return words
    value, below = Fraction(words[0]), Fraction(words[2] if len(words) == 3 else 1)
    return [str(value / below)] if below else words
