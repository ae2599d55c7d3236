"""Finds the equations ``a op b = c`` in a rationale and checks whether they hold."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from fcot.prompts.answers import strip_markup

_TOKEN = re.compile(
    r"(?P<number>\d+(?:,\d+)*(?:\.\d+)?|\.\d+)|(?P<arrow>-+>)|(?P<sign>[-+*/()=%])|(?P<word>[^\W\d_]+(?:-[^\W\d_]+)*)"
    r"|(?P<money>[$€£¥])|(?P<other>\S|\n)"
)
# A calculation, as a pattern over letters for tokens: n number, o operator, w word (a unit after a number), v single letter (a variable).
_TERM = r"\(*(?:-\(*)?n%?w{0,3}\)*w{0,2}"
_CALCULATION = rf"{_TERM}(?:[-o]{_TERM})*"
_BULLET = re.compile(r"^(\s*)\*(?=\s)", re.MULTILINE)
_UNREAD = re.compile(
    r"\d\s*/\s*\d+\s*/\s*\d|\b(?:thousand|million|billion|trillion|hundred|dozen)s?\b"  # dates; numbers that continue in words
    r"|(?:\d|\))\s*[-+]\s*\d[\d.,]*\s*%", re.IGNORECASE  # "100 - 20%", a percentage of the number before it
)  # fmt: skip
_OPERATORS = {"×": "*", "·": "*", "÷": "/", "–": "-", "\\times": "*", "\\div": "/"}  # in addition to strip_markup
_UNITS = frozenset("second minute hour day week month year mm cm km meter kilometer inche inch feet foot yard mile gram kg kilogram ounce "
                   "pound cent dollar percent".split())  # an equation with two of them is a conversion  # fmt: skip
_NOISE = Fraction(1, 10**9)  # relative rounding error of printed floats such as 0.8333333333333334
_SIGNS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


@dataclass(frozen=True)
class Equation:
    """An equation between numbers.

    Attributes:
        text: The equation as the rationale writes it.
        holds: Whether both sides are equal. If the right side has decimals, the left side is first rounded to the same number of decimals.
        value: The exact value of the left side.
    """

    text: str
    holds: bool
    value: Fraction


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int

    @property
    def letter(self) -> str:
        """The token's letter in the patterns of calculations."""
        if self.kind == "sign":
            return "o" if self.text in "+*/" else self.text
        if self.kind == "word":
            return "w" if len(self.text) > 1 else "v"
        return "n" if self.kind == "number" else "_"


def equations(text: str) -> Iterator[Equation]:
    """Every equation of a text whose left side is a calculation with numbers. Equations with a variable are skipped.

    Markdown and LaTeX are removed. Units and currency signs are ignored ("5 apples + 3 apples = 8 apples"). ``x`` between numbers
    multiplies, and ``20%`` is a fifth. An equation in a chain ("3 + 4 = 7 + 2 = 9") also holds if its left side equals the first
    number of its right side.
    """
    for symbol, operator_sign in _OPERATORS.items():
        text = text.replace(symbol, operator_sign)
    text = _BULLET.sub(r"\1-", strip_markup(text))
    tokens = [_token(match, text) for match in _TOKEN.finditer(text) if match.lastgroup != "money"]
    letters = "".join(token.letter for token in tokens)
    for position in (index for index, token in enumerate(tokens) if token.text == "="):
        if (span := _sides(tokens, letters, position)) is None:
            continue
        start, end = span
        if not re.search(r"n.*[-o].*n", letters[start:position]) or _is_part(tokens, letters, start, end):
            continue
        left, right = tokens[start:position], tokens[position + 1 : end]
        n_first = letters.index("n", position + 1) - position  # number of tokens of the right side's first number, with its sign
        value, whole_right, first_right = _value(left), _value(right), _value(right[:n_first])
        if value is None or first_right is None:
            continue
        decimals = len(right[n_first - 1].text.partition(".")[2]) + 2 * (letters[position + n_first + 1 : position + n_first + 2] == "%")
        tolerance = max(Fraction(1, 2 * 10**decimals) if decimals else Fraction(0), abs(value) * _NOISE)
        text_end = max(token.end for token in right if token.kind != "word")
        equation = text[left[0].start : text_end]
        if _UNREAD.search(equation) and not re.fullmatch(r"[\d.,]+ ?%.*", equation):
            continue
        holds = any(other is not None and abs(value - other) <= tolerance for other in (whole_right, first_right))
        yield Equation(equation, holds, value)


def _sides(tokens: Sequence[_Token], letters: str, position: int) -> tuple[int, int] | None:
    """Where the left side of an equation begins and its right side ends; None if a side is no calculation.

    Args:
        tokens: The tokens of a text.
        letters: The tokens' letters.
        position: The token that is the equals sign.
    """
    left, right = re.search(rf"{_CALCULATION}$", letters[:position]), re.match(_CALCULATION, letters[position + 1 :])
    if left is None or right is None:
        return None
    start, end = left.start(), position + 1 + right.end()
    if letters[start : start + 1] == "(" and _unbalanced(letters[start:position]):  # "(5 + 3 = 8)": the bracket is around the equation
        start += 1
    if letters[start] == "-" and tokens[start + 1].start > tokens[start].end:  # a bullet or a dash, not a sign
        start += 1
    while end > position + 2 and letters[end - 1] == ")" and _unbalanced(letters[position + 1 : end]):
        end -= 1
    return start, end


def _unbalanced(letters: str) -> bool:
    return letters.count("(") != letters.count(")")


def _is_part(tokens: Sequence[_Token], letters: str, start: int, end: int) -> bool:
    """Whether an equation is part of an expression that cannot be checked: a power, function, variable, mixed number or conversion."""
    before = tokens[start - 1] if start else None
    bullet = before is not None and before.text == "-" and letters[max(0, start - 2) : start - 1] in ("", "_")  # "- 5 + 3 = 8"
    if before is not None and not bullet:
        if before.text == "^" or letters[start - 1] in "-o%vn" or before.text == "and":
            return True  # "2 1/8" and "2 and 1/8" are mixed numbers, 2(3 + 4) is a product
        if before.text == "(" and letters[end : end + 1] != ")":
            return True
        if before.kind == "word" and before.end == tokens[start].start:
            return True  # sqrt(16)
    after = tokens[end] if end < len(tokens) else None
    aside = letters[end : end + 2] == "(w"  # "8 (apples)"
    if after is not None and not aside and (letters[end] in "v-o(" or letters[end - 1 : end + 1] == "nn" or after.text in ("^", ":")):
        return True
    words = {token.text.lower().rstrip("s") for token in tokens[start:end] if token.kind == "word"}
    return "and" in words or "remainder" in words or len(words & _UNITS) > 1


def n_calculations(rationale: str) -> int:
    """The number of calculations in a person's rationale: GSM8K's marks ``<<48/2=24>>``, or the equations where there are none."""
    return rationale.count("<<") or sum(1 for _ in equations(rationale))


def calculations(text: str) -> list[str]:
    """The equations of a text in their order, without spaces."""
    return ["".join(equation.text.split()) for equation in equations(text)]


def wrong_equations(text: str) -> list[str]:
    """The equations of a text that do not hold, as the text writes them."""
    return [equation.text for equation in equations(text) if not equation.holds]


def _token(match: re.Match[str], text: str) -> _Token:
    if match.group() in ("x", "X") and re.match(r" *[$€£¥(]? *\.?\d", text[match.end() :]):  # x between two numbers multiplies
        return _Token("sign", "*", *match.span())
    return _Token(str(match.lastgroup), match.group(), *match.span())


def _value(side: Sequence[_Token]) -> Fraction | None:
    """The exact value of one side of an equation; None if its tokens are not a valid calculation."""
    source = re.sub(r"([\d.]+) %", r"(\1/100)", " ".join(token.text.replace(",", "") for token in side if token.kind != "word"))
    try:
        return _evaluate(ast.parse(re.sub(r"(?<![\d.])0+(?=\d)", "", source), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _evaluate(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _SIGNS:
        return _SIGNS[type(node.op)](_evaluate(node.left), _evaluate(node.right))
    raise ValueError("not a calculation")
