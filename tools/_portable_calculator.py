def calculator(text: str) -> str | None:
    """Exact + - * / of numbers: " 6 - 0 = 6, 6 - 4 =" -> " 2"; None for anything else.

    Plain text is taken apart by a grammar, never evaluated: a language model wrote it.
    """
    import math
    import re
    from fractions import Fraction
    from operator import add, mul, sub, truediv

    most = 2  # operands
    ends = r"[;:=?\r\n]|(?<![0-9)])!|\.(?![0-9])|(?<![0-9]),|,(?![0-9]{3})"
    *before, request = re.split(ends, text[:-1][-256:])  # what is longer is refused in any case
    if before or len(text) <= 256:
        request = request.strip()
    fraction = r"(?<![0-9./])[0-9]+/[0-9]+(?![0-9./])"
    known = re.compile(rf" *({fraction}|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|[-+*/()])")
    asked = request.translate(str.maketrans("\u2212\u00d7\u00f7", "-*/")) if len(request) <= 64 else ""
    tokens: list[str] = []
    place = 0
    while place < len(asked):
        found = known.match(asked, place)
        if not found:
            return None
        parts = re.split("(/)", found[1]) if len(found[1]) > 1 else [found[1]]
        if any(sum(c.isdigit() for c in part) > 12 for part in parts):
            return None
        if len(parts) == 3 and int(parts[2]) > 1 and math.gcd(int(parts[0]), int(parts[2])) == 1:
            parts = [found[1]]  # in lowest terms: one operand
        tokens, place = tokens + parts, found.end()
    if sum(token[0].isdigit() or token[0] == "." for token in tokens) < 2:  # `6/3 =` asks for a division
        tokens = [part for token in tokens for part in re.split("(/)", token) if part]
    if not 2 <= sum(token[0].isdigit() or token[0] == "." for token in tokens) <= most:
        return None

    def series(level: int) -> Fraction:
        """0: a sum of products; 1: a product of factors."""
        value = factor() if level else series(1)
        while tokens and tokens[0] in ("+-", "*/")[level]:
            compute = {"+": add, "-": sub, "*": mul, "/": truediv}[tokens.pop(0)]
            value = compute(value, factor() if level else series(1))
        return value

    def factor() -> Fraction:
        sign = -1 if tokens[0] == "-" else 1
        token = tokens.pop(0) if sign > 0 else [tokens.pop(0), tokens.pop(0)][1]
        value = series(0) if token == "(" else Fraction(token)
        if token == "(" and tokens.pop(0) != ")":
            raise ValueError("not closed")
        return sign * value

    try:
        value = series(0)
    except (IndexError, ValueError, ZeroDivisionError):
        return None
    below = value.denominator
    places = next((n for n in range(below.bit_length()) if 10**n % below == 0), 0)  # of a finite decimal form
    written = str(value)
    if places:
        whole, decimals = divmod(abs(value.numerator) * 10**places // below, 10**places)
        written = f"{'-' * (value < 0)}{whole}.{decimals:0{places}d}"
    return f" {written}" if not tokens and len(written) <= 32 and written != request else None
