import re
from fractions import Fraction


def calculator(text: str) -> str | None:
    """Exact + - * / of two numbers: " 6 - 0 = 6, 6 - 4 =" -> " 2"; None for anything else.

    Plain text is taken apart by a pattern, never evaluated: a language model wrote it.
    """
    request = re.split(r"[;:=?!\r\n]|\.(?![0-9])|(?<![0-9]),|,(?![0-9]{3}(?![0-9]))", text[:-1])[-1].strip()
    asked, request = request, request.translate(str.maketrans("\u2212\u00d7\u00f7", "-*/"))
    number = r"(-? *(?:(?<![0-9./])[0-9]+/[0-9]+(?![0-9./])|[0-9]+(?:\.[0-9]+)?|\.[0-9]+))"
    match = re.fullmatch(rf" *{number} *([-+*/]) *{number} *", request) if len(request) <= 64 else None
    if not match or any(sum(c.isdigit() for c in part) > 12 for k in (1, 3) for part in match[k].split("/")):
        return None
    parts = [match[k].replace(" ", "").partition("/") for k in (1, 3)]
    if any(below and not int(below) for _, _, below in parts):
        return None
    a, b = (Fraction(above) / int(below or 1) for above, _, below in parts)
    if any(
        below and not 1 < int(below) == value.denominator for (_, _, below), value in zip(parts, (a, b), strict=True)
    ):
        return None  # not in lowest terms: two operands
    if match[2] == "/" and b == 0:
        return None
    value = {"+": a + b, "-": a - b, "*": a * b, "/": a / (b or 1)}[match[2]]
    places = next((n for n in range(64) if value * 10**n == int(value * 10**n)), None)  # of a finite decimal form
    if places is None or places == 0:
        written = str(value)
    else:
        digits = f"{abs(value.numerator) * 10**places // value.denominator:0{places + 1}d}"
        written = f"{'-' * (value < 0)}{digits[:-places]}.{digits[-places:]}"
    return f" {written}" if len(written) <= 32 and written != asked else None
