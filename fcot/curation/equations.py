"""The arithmetic of a rationale: every ``a op b = c`` in it, and whether it holds."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from fcot.prompts.answers import strip_markup

_TOKEN = re.compile(
    r"(?P<number>\d+(?:,\d+)*(?:\.\d+)?|\.\d+)|(?P<sign>[-+*/()=%])|(?P<word>[^\W\d_]+(?:-[^\W\d_]+)*)|(?P<money>[$€£¥])|(?P<other>\S|\n)"
)
# A calculation in the tokens' letters: n number, o operator, w word (a unit behind a number), v one letter (a variable).
_TERM = r"\(*(?:-\(*)?n%?w{0,3}\)*w{0,2}"
_CALCULATION = rf"{_TERM}(?:[-o]{_TERM})*"
_BULLET = re.compile(r"^(\s*)\*(?=\s)", re.MULTILINE)
_UNREAD = re.compile(
    r"\d\s*/\s*\d+\s*/\s*\d|\b(?:thousand|million|billion|trillion|hundred|dozen)s?\b"  # dates; numbers that go on in words
    r"|(?:\d|\))\s*[-+]\s*\d[\d.,]*\s*%", re.IGNORECASE  # "100 - 20%", a share of what stands before
)  # fmt: skip
_PLAIN = {"×": "*", "·": "*", "÷": "/", "–": "-", "\\times": "*", "\\div": "/"}  # beside strip_markup
_UNITS = frozenset("second minute hour day week month year mm cm km meter kilometer inche inch feet foot yard mile gram kg kilogram ounce "
                   "pound cent dollar percent".split())  # of which one equation with two converts  # fmt: skip
_NOISE = Fraction(1, 10**9)  # of numbers that a machine wrote: 0.8333333333333334
_SIGNS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


@dataclass(frozen=True)
class Equation:
    """An equality between numbers.

    Attributes:
        text: As it is written.
        holds: Whether both sides are equal, the right one rounded to the decimals that it shows, where it shows any.
    """

    text: str
    holds: bool


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int

    @property
    def letter(self) -> str:
        """What stands for it where calculations are looked for."""
        if self.kind == "sign":
            return "o" if self.text in "+*/" else self.text
        if self.kind == "word":
            return "w" if len(self.text) > 1 else "v"
        return "n" if self.kind == "number" else "_"


def equations(text: str) -> Iterator[Equation]:
    """Every equality of a text whose left side is a calculation with numbers; what has a variable in it is passed over.

    Markdown and LaTeX around it are taken off. Units and currency signs are ignored ("5 apples + 3 apples = 8 apples"), ``x``
    between numbers multiplies, ``20%`` is a fifth.
    In a running chain ("3 + 4 = 7 + 2 = 9") a side is held against what begins the next one.
    """
    for plain, sign in _PLAIN.items():
        text = text.replace(plain, sign)
    text = _BULLET.sub(r"\1-", strip_markup(text))
    tokens = [_token(match, text) for match in _TOKEN.finditer(text) if match.lastgroup != "money"]
    letters = "".join(token.letter for token in tokens)
    for position in (index for index, token in enumerate(tokens) if token.text == "="):
        found = re.search(rf"{_CALCULATION}$", letters[:position]), re.match(_CALCULATION, letters[position + 1 :])
        if found[0] is None or found[1] is None:
            continue
        start, end = found[0].start(), position + 1 + found[1].end()
        if letters[start : start + 1] == "(" and _unbalanced(letters[start:position]):  # "(5 + 3 = 8)": the bracket holds the equation
            start += 1
        if letters[start] == "-" and tokens[start + 1].start > tokens[start].end:  # no sign, but a bullet or a dash
            start += 1
        while end > position + 2 and letters[end - 1] == ")" and _unbalanced(letters[position + 1 : end]):
            end -= 1
        if not re.search(r"n.*[-o].*n", letters[start:position]) or _goes_on(tokens, letters, start, end):
            continue
        left, right = tokens[start:position], tokens[position + 1 : end]
        first = letters.index("n", position + 1) - position  # the right side's first number, with its sign
        value, others = _value(left), (_value(right), _value(right[:first]))
        if value is None or others[1] is None:
            continue
        decimals = len(right[first - 1].text.partition(".")[2]) + 2 * (letters[position + first + 1 : position + first + 2] == "%")
        near = max(Fraction(1, 2 * 10**decimals) if decimals else Fraction(0), abs(value) * _NOISE)
        last = max(token.end for token in right if token.kind != "word")
        written = text[left[0].start : last]
        if _UNREAD.search(written) and not re.fullmatch(r"[\d.,]+ ?%.*", written):
            continue
        yield Equation(written, any(other is not None and abs(value - other) <= near for other in others))


def _unbalanced(letters: str) -> bool:
    return letters.count("(") != letters.count(")")


def _goes_on(tokens: Sequence[_Token], letters: str, start: int, end: int) -> bool:
    """Whether an equation is a part of something that is not read: a power, a function, a variable, a mixed number, unlike units."""
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


def wrong_equations(text: str) -> list[str]:
    """Those that do not hold, as they are written."""
    return [one.text for one in equations(text) if not one.holds]


def _token(match: re.Match[str], text: str) -> _Token:
    if match.group() in ("x", "X") and re.match(r" *[$€£¥(]? *\.?\d", text[match.end() :]):  # between two numbers it multiplies
        return _Token("sign", "*", *match.span())
    return _Token(str(match.lastgroup), match.group(), *match.span())


def _value(side: Sequence[_Token]) -> Fraction | None:
    """What a calculation comes to, None where it is none."""
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
    raise ValueError("no calculation")
