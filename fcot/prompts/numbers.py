r"""Reads the numbers of a text, each whole or not at all.

``5k`` is 5,000, ``3½`` is 3.5 and ``1.2e3`` is 1,200. A number that is part of another expression has no value: ``√2``, ``x^2``,
``2π``, ``5:30``, ``1,5``, ``10 - 5``. Paper A's pattern, which takes the digits from all of these, is in :mod:`fcot.prompts.answers`.

Reading takes three steps. :func:`plain` converts a text to ASCII as far as numbers need it. :func:`find` returns the numbers with their
values. :func:`first`, :func:`last` and :func:`gold` choose one of them by its context.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

SEVERAL = "several_answers"
UNREADABLE = "unreadable_answer"


@dataclass(frozen=True)
class Reading:
    """The result of reading an answer.

    Attributes:
        value: The answer in canonical spelling; None where there is none.
        fault: Why there is no value: :data:`SEVERAL`, :data:`UNREADABLE`, or None where the text has no answer.
    """

    value: str | None
    fault: str | None = None


NOTHING = Reading(None)


@dataclass(frozen=True)
class Number:
    """A number in a plain text.

    Attributes:
        value: The number in canonical spelling; None where it is part of an expression that is not read.
        start, end: Its span in the text, with its sign, currency, scale word and unit.
    """

    value: str | None
    start: int
    end: int


# --- a text in ASCII ---------------------------------------------------------------------------------------------------

_LATEX_FRACTION = re.compile(r"(?<=\d) ?\\[dt]?frac\s*(?=\{\s*\d|\d)|\\[dt]?frac\s*(?=\{\s*-?\d|\d)")
_FRACTION_PARTS = re.compile(r"\x00(?:\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)(\d)(?!\d))")
_WRAPPER = re.compile(r"\\(?:boxed|fbox|text|textbf|textit|mathrm|mathbf|mathit|operatorname)\s*\{([^{}]*)\}")
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree\b|[°º˚])")
_LATEX_SPACE = re.compile(r"\\(?:[,;:! ]|quad\b|qquad\b|left\b|right\b|displaystyle\b|[()\[\]])|~(?=[A-Za-z\\])")
_LATEX_WORDS = {r"\times": "×", r"\cdot": "×", r"\div": "÷", r"\approx": "=", r"\pi": "π", r"\infty": "∞", r"\pm": "±", r"\sqrt": "√"}
_LATEX_WORD = re.compile("|".join(rf"{re.escape(word)}(?![A-Za-z])" for word in _LATEX_WORDS))
_POWER = re.compile(r"(?<=[\d)])\s*\*\*\s*(?=[\d(-])")
_MARKUP = re.compile(r"\*\*|__|`")
_MARKUP_BETWEEN = re.compile(  # markup whose removal would join two numbers
    r"(?<=\w)(?:\*\*|__|`)+(?=\w)|(?<=\d[.,:/'])(?:\*\*|__|`)+(?=\d)|(?<=\d)(?:\*\*|__|`)+(?=[.,:/']\d)"
)
_EMPHASIS = re.compile(r"(?<![\w*])(?<!\d[.,:/'])([*_])(?=\S)([^*_\n]+)(?<=\S)\1(?![\w*]|[.,:/']\d)")
_TAG = re.compile(r"</?[A-Za-z][\w-]{0,20}\s*/?>")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴-⁹⁺⁻]+")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SUBSCRIPT = re.compile("[₀-₉]+")
_SENTENCE_DASH = re.compile(r"(?<=\S)\s+[—―]\s+|(?<=[^\W\d])[—―](?=\S)")
_GROUP_SPACE = re.compile(r"(?<=\d)[\u00a0\u2006-\u200a\u202f\u205f](?=\d{3}(?!\d))")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_NEGATIVE = re.compile(r"\bnegative\s+(?=[$.\d])", re.IGNORECASE)
_MINUS = re.compile(
    r"(?:^|(?<=\bis)|(?<=\bof)|(?<=\bequals)|(?<=\bwas)|(?<=\bare)|(?<=\bbe)|(?<=\bto)|(?<=[=:(]))(\s*)minus\s+(?=[$.\d])", re.IGNORECASE
)
_CONTROLS = dict.fromkeys(range(3), "\x03")  # the first three control characters have a meaning in this module
_KEPT = set("√∛∜π∞±∓≤≥≠×÷∑∏∫…'’")
_SAME = {
    "−": "-", "⁄": "/", "∕": "/", "≈": "=", "≅": "=", "≃": "=", "·": "×", "⋅": "×", "∙": "×", "∗": "*", "٫": ".", "٬": ",",
    "’": "'", "´": "'",
}  # fmt: skip


def plain(text: str) -> str:
    """Convert a text to the form that :func:`find` reads: no markup, no invisible characters, ASCII digits, signs and spaces."""
    text = text.translate(_CONTROLS).replace("\\$", "$").replace("\\%", "%").replace("{,}", ",").replace("\\,", "\u202f")
    text = _DEGREES.sub(" deg ", _TAG.sub("\n", text))
    text = _LATEX_FRACTION.sub(" \x00", text)
    text = _FRACTION_PARTS.sub(lambda match: f"{match[1] or match[3]}/{match[2] or match[4]} ", text).replace("\x00", "\\frac")
    text = unwrap(_WRAPPER, "\t\\1\t", text)  # a tab, because a space may join the parts of a mixed number
    text = _LATEX_WORD.sub(lambda match: _LATEX_WORDS[match[0]], _LATEX_SPACE.sub(" ", text))
    text = _SUPERSCRIPT.sub(lambda match: _raised(match[0]), text)
    text = _SUBSCRIPT.sub(lambda match: "_" + unicodedata.normalize("NFKC", match[0]), text)
    text = _GROUP_SPACE.sub(",", _SENTENCE_DASH.sub(", ", text))
    text = _NOT_ASCII.sub(lambda match: _ascii(match[0]), text)
    text = _MARKUP.sub("", _MARKUP_BETWEEN.sub("\t", _POWER.sub("^", text)))
    text = _EMPHASIS.sub(r"\2", text)
    return _MINUS.sub(r"\1-", _NEGATIVE.sub("-", text))


def _raised(superscript: str) -> str:
    """A superscript as an exponent such as ``^2``. Without a digit it marks an expression that is not read."""
    power = superscript.translate(_SUPERSCRIPTS)
    return f"^{power}" if any(map(str.isdigit, power)) else "\x02"


def unwrap(wrapper: re.Pattern[str], content: str, text: str) -> str:
    r"""Remove wrappers from a text, nested ones such as ``\boxed{\text{5}}`` up to a depth of three.

    ``wrapper`` matches a wrapper that contains no other one. ``content`` is its replacement, as in :func:`re.sub`.
    """
    for _ in range(3):
        text, count = wrapper.subn(content, text)
        if not count:
            break
    return text


@lru_cache(maxsize=4096)
def _ascii(character: str) -> str:
    """A character in ASCII if it can be part of a number; other characters unchanged."""
    if character in _SAME:
        return _SAME[character]
    if character in _KEPT:
        return character
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    category = unicodedata.category(character)
    if category == "Pd":
        return "-"
    if category == "Sc":
        return "$"
    if category == "Zs":
        return " "
    if category == "Cf" or character in "\ufe0f\u20e3":  # zero-width and direction marks; the characters that turn a digit into an emoji
        return ""
    if unicodedata.decomposition(character).startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", character).replace("⁄", "/")
    if category in ("No", "Nl", "Mn", "Me") or unicodedata.numeric(character, None) is not None:
        return f"\x02{character}"  # such as a circled digit, a Roman numeral or an overline: part of a number that is not read
    normal = unicodedata.normalize("NFKC", character)
    return f"\x02{character}" if normal[:1].isdigit() else normal  # such as "day one" as one character: its digits must not join others


# --- the numbers in a text ---------------------------------------------------------------------------------------------

_RUN = re.compile(r"(?:\d|\.(?=\d))(?:\d|[.,'_:/](?=\d))*")  # characters that may belong to one number
_MIXED = re.compile(r"(\d+) +(\d+)/(\d+)(?![\d/:]|[.,]\d)")
_PLAIN = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_GROUPED = re.compile(r"\d{1,3}([,'_])\d{3}(?:\1\d{3})*(?:\.\d+)?")
_FRACTION = re.compile(r"(\d+)/(\d+)")
_EXPONENT = re.compile(r"[eE]([-+]?\d+)(?!\w|\.\d)")
_TEN_TO = re.compile(r"[ \t]*(?:[*×xX])[ \t]*10[ \t]*(?:\^|\*\*)[ \t]*[{(]?[ \t]*([-+]?\d+)[ \t]*[})]?(?!\w|\.\d)")
_LARGEST_EXPONENT = 300

_CURRENCY = r"(?:(?:US|AU|CA|NZ|HK|SG|A|C)?\$|USD|EUR|GBP|CHF|INR|JPY|CNY|Rs\.?)"
# The text before a number's digits. A minus is a sign only where a number can start: in "10-5" and "10 apples - 5" it is an operator.
_SIGNED = re.compile(
    rf"(?<![\w.)\]}}/%$])([-+])\s{{0,2}}{_CURRENCY}\s?\Z|(?<![\w.)\]}}/%])([-+])\Z|(?:\A[ \t]*|[=:(\[{{,|]\s*)([-+])\s{{1,2}}\Z"
)
_PRICED = re.compile(rf"(?<![A-Za-z]){_CURRENCY}\s?\Z")
_PART_BEFORE = re.compile(  # text before a number that makes it part of another expression
    r"(?:[\w^)\]}/]"  # attached to a word, a bracket or a slash
    r"|\\[A-Za-z]+[ \t]*(?:\[[^\]]*\])?[ \t]*\{?[ \t]*|\}[ \t]*\{[ \t]*"  # the argument of a LaTeX command
    r"|[√∛∜π∞±∓≠≤≥∑∏∫][ \t]*[({]?[ \t]*"
    r"|(?<![-=<>])[<>]=?[ \t]*"  # a bound, but no arrow
    r"|\b(?:sqrt|log|ln|exp|sin|cos|tan|root of|root)[ \t]*[({]?[ \t]*"
    r"|(?<![A-Za-z])[b-zB-HJ-Z][ \t]*[-+*×÷^][ \t]*"  # x + 5
    r"|\)[ \t]*[-+*×÷^][ \t]*"
    r"|(?<![A-Za-z])[A-Za-z]\([ \t]*"  # f(2)
    r"|\^[ \t]*[({]?[ \t]*)\Z"
)
_SCALES = {
    "k": 10**3, "hundred": 10**2, "thousand": 10**3, "lakh": 10**5, "million": 10**6, "mn": 10**6, "mln": 10**6, "crore": 10**7,
    "billion": 10**9, "bn": 10**9, "trillion": 10**12,
}  # fmt: skip
_PRICE_SCALES = {"m": 10**6, "b": 10**9}  # "$5M"; "5 m" is a length
_SCALE = re.compile(r"(?:(k)(?![A-Za-z0-9])|[ \t]*-?(hundred|thousand|lakh|million|mn|mln|crore|billion|bn|trillion)s?\b)", re.IGNORECASE)
_PRICE_SCALE = re.compile(r"([mb])(?![A-Za-z0-9])", re.IGNORECASE)
_UNITS = frozenset(
    "st nd rd th s m g l h d t w v a j n f c p x cm mm km nm um kg mg lb lbs oz ft in yd mi ml cl dl kl ms us ns min mins sec secs "
    "hr hrs am pm mph kph kmh kw kwh mw gw gb mb kb tb hz khz mhz ghz bc ad ce bce usd eur gbp pts pt ppl pcs pc ct cts yr yrs yo wk "
    "wks day".split()
) - {"a", "n", "x"}  # these are variables
_LETTERS = re.compile(r"[A-Za-zµ]+")
_FUNCTIONS = ("sqrt", "log", "cos", "sin", "tan", "exp", "pi")
_UNIT_TAIL = re.compile(r"(?:\^\{?-?[1-3]\}?(?![\w.])|/[A-Za-z]{1,12}(?:\^\{?-?[1-3]\}?)?(?![\w.(]))*")
_SPACED_UNIT = re.compile(
    r"\s?(?:[kcmµ]?m|ft|in|yd|mi|s|feet|meters?|metres?|inches|miles|units?)(?:\^\{?-?[1-3]\}?(?![\w.])|/[A-Za-z]{1,6}(?:\^\{?-?[1-3]\}?)?(?![\w.(]))+"
)
_RATE = re.compile(r"/(?:[A-Za-z]{2,}|[hsm])\b")
_PART_AFTER = re.compile(  # text after a number that makes it part of another expression
    r"[ \t]*[√∛∜π∞±∓^∑∏∫]"
    r"|[ \t]{0,3}[_\x02]|[µ({\[](?=[ \t]*[-\d.√πa-z\\])(?![ \t]*[a-z]{2})"
    r"|[ \t]?[만억천백십]|[^\W\d_a-zA-Z]+\d|[&@#$|~\\?][ \t]*[\d.]|\+(?![ \t]*[-$.\d(√π\\])"
    r"|/(?![A-Za-z]{2})\S|!(?=[\d!=+*/^-])|…"
    r"|[ \t]*\\(?!\\|text|mathrm|n\b)[A-Za-z]+"
    r"|[ \t]*[-+*×÷][ \t]*(?:[b-zB-HJ-Z](?![A-Za-z'])|[√π\\]|\((?![ \t]*[-$.\d]))"  # 5 + x
    r"|[ \t]+deg[ \t]*\d|[ \t]+(?:squared|cubed|factorial|pi|mod|choose)\b|[ \t]+to[ \t]+the[ \t]+power\b"
    r"|[ \t]+and[ \t]+(?:a|one|three|two)[\s-]+(?:half|halves|thirds?|quarters?|fourths?|fifths?|sixths?|eighths?|tenths?)\b"
    r"|[ \t]*-?[ \t]*(?:thirds|fifths|sixths|sevenths|eighths|ninths|tenths|hundredths|thousandths)\b"
    r"|['\"](?=[ \t]?\d)"
    r"|[ \t]*-?(?:years?|yrs?|months?|weeks?|days?|hours?|hrs?|h|minutes?|mins?|feet|foot|ft|pounds?|lbs?|dollars?|meters?|km|m|kg)"
    r"\b(?:[ \t]*,?[ \t]*(?:and)?[ \t]*)[$]?\d[\d.]*[\s-]*"
    r"(?:months?|weeks?|days?|hours?|hrs?|minutes?|mins?|seconds?|secs?|s|inches|inch|in|ounces?|oz|cents?|centimeters?|cm|meters?|m|grams?|g)\b",
    re.IGNORECASE,
)
_CONTEXT = 60  # characters before a number that are examined


def find(text: str) -> list[Number]:
    """The numbers in a plain text, in their order. Digits within a word (``A5``, ``H2O``) do not count."""
    numbers: list[Number] = []
    position = 0
    while run := _RUN.search(text, position):
        start, position = run.span()
        if run[0][0] == "." and text[max(0, start - 1) : start].isalnum():  # "No.5"
            start += 1
        before = _before(text, start)
        if start and (text[start - 1].isalpha() or text[start - 1] == "_") and not _PRICED.search(before):
            continue
        number = _number(text, start, position, before)
        numbers.append(number)
        position = max(position, number.end)
    return numbers


def _before(text: str, end: int) -> str:
    r"""The text before a position; where it is long, its last characters behind a mark that keeps ``\A`` from matching there."""
    return text[:end] if end <= _CONTEXT else "\x01" + text[end - _CONTEXT : end]


def _number(text: str, start: int, end: int, before: str) -> Number:
    """The number with the digits ``text[start:end]``. An exponent, a scale word or a unit behind them belongs to it."""
    value: Fraction | None
    if (mixed := _MIXED.match(text, start)) and _integer(mixed[3]):
        end, value = mixed.end(), _fraction(mixed[2], mixed[3])
        whole_part = _integer(mixed[1])
        thousands = len(mixed[2]) == 3  # "5 000/3" may be a group of thousands over three
        value = None if value is None or whole_part is None or thousands else value + whole_part
    else:
        value = _value(text[start:end])
    decimal = "." in text[start:end]
    if exponent := _EXPONENT.match(text, end) or _TEN_TO.match(text, end):
        end, value = exponent.end(), _scaled(value, exponent[1])
    begin, negative, priced = _prefix(before, start)
    if _PART_BEFORE.search(_before(text, begin)):
        value = None
    end, value = _after(text, end, value, priced)
    if _PART_AFTER.match(text, end) or (decimal and text.startswith("...", end)):  # 0.333...; in "so it is 5..." the dots end a sentence
        value = None
    return Number(None if value is None else canonical(-value if negative else value), begin, end)


def _prefix(before: str, start: int) -> tuple[int, bool, bool]:
    """The start of the number with its sign and currency, whether it is negative, and whether it is a price."""
    length, negative = 0, False
    priced = _PRICED.search(before)
    if priced:
        length = len(before) - priced.start()
    if signed := _SIGNED.search(before) or _SIGNED.search(before[: len(before) - length]):
        sign = signed[1] or signed[2] or signed[3]
        length, negative = max(length, len(before) - before.rindex(sign)), sign == "-"
    return start - length, negative, priced is not None


def _after(text: str, end: int, value: Fraction | None, priced: bool) -> tuple[int, Fraction | None]:
    """The end of the number with its percent sign, scale words and unit, and its value including these."""
    scaled = False
    while scale := _SCALE.match(text, end) or (_PRICE_SCALE.match(text, end) if priced else None):
        word = next(group for group in scale.groups() if group).lower()
        value = None if value is None else value * (_SCALES | _PRICE_SCALES)[word]
        end, scaled = scale.end(), True
    if scaled and re.match(r"[ \t]+(?:and[ \t]+)?\d", text[end : end + 8]):  # 3 million 500 thousand
        return end, None
    if percent := re.match(r"[ \t]?%", text[end : end + 2]):
        return end + percent.end(), value
    if letters := _LETTERS.match(text, end):
        word = letters[0].lower()
        known = word in _UNITS or (len(word) > 3 and not word.startswith(_FUNCTIONS))
        tail = _UNIT_TAIL.match(text, letters.end())
        end = tail.end() if tail else letters.end()
        return end, value if known and not re.match(r"[\d_^(]", text[end : end + 1]) else None
    if unit := _SPACED_UNIT.match(text, end) or _RATE.match(text, end):
        return unit.end(), value
    return end, value


def _value(run: str) -> Fraction | None:
    if _PLAIN.fullmatch(run):
        return _decimal(run)
    if _GROUPED.fullmatch(run):
        return _decimal(re.sub("[,'_]", "", run))
    if fraction := _FRACTION.fullmatch(run):
        return _fraction(fraction[1], fraction[2])
    return None


def _decimal(digits: str) -> Fraction | None:
    try:
        return Fraction(digits)
    except ValueError:  # more digits than Python converts
        return None


def _integer(digits: str) -> int | None:
    """Digits as an integer; None where there are more digits than Python converts."""
    try:
        return int(digits)
    except ValueError:
        return None


def _fraction(numerator: str, denominator: str) -> Fraction | None:
    above, below = _integer(numerator), _integer(denominator)
    return Fraction(above, below) if above is not None and below else None


def _scaled(value: Fraction | None, exponent: str) -> Fraction | None:
    power = _integer(exponent)
    if value is None or power is None or abs(power) > _LARGEST_EXPONENT:
        return None
    return value * Fraction(10) ** power


def canonical(value: Fraction) -> str | None:
    """The shortest spelling of a number, without an exponent: ``18``, ``0.5``, ``0.000013``; None where it has too many digits."""
    try:
        return str(value.numerator) if value.denominator == 1 else f"{Decimal(repr(float(value))):f}"
    except (OverflowError, ValueError):
        return None


# --- the number that counts -----------------------------------------------------------------------------------------------

_OPERATOR = re.compile(
    r"[)\]}]*[ \t]*(?:[A-Za-z]{2,15}[ \t]+)?(?:[-+*×÷/^]|x|plus|minus|times|divided by|multiplied by|over)[ \t]*[({\[]*[ \t]*",
    re.IGNORECASE,
)
_EQUALS = re.compile(r"[)\]}\s]*(?:[A-Za-z]{2,15}\s*){0,2}=\s*[$]?")
_ALTERNATIVE = re.compile(r"\s*(?:[A-Za-z]{1,15}\s+)?(?:,?\s*(?:or|to|through|and/or|versus|vs\.?)|,?\s*and)\s+", re.IGNORECASE)
_LIST = re.compile(r"\s*[,;]\s*")
_BESIDE = re.compile(r"[ \t]*")


def _link(text: str, left: Number, right: Number) -> str:
    """The kind of link between two consecutive numbers: ``operator``, ``equals``, ``alternative``, ``list``, ``beside`` or empty."""
    gap = text[left.end : right.start]
    signed = text[right.start] in "-+"
    if _BESIDE.fullmatch(gap):
        return "operator" if signed else "beside"
    if _OPERATOR.fullmatch(gap):
        return "operator"
    if _EQUALS.fullmatch(gap):
        return "equals"
    if _ALTERNATIVE.fullmatch(gap):
        return "alternative"
    return "list" if _LIST.fullmatch(gap) else ""


def _linked(text: str) -> tuple[list[Number], list[str]]:
    """The numbers in a plain text, and the link from each to the next."""
    numbers = find(text)
    return numbers, [_link(text, left, right) for left, right in pairwise(numbers)]


def first(text: str) -> Reading:
    """The first number of a plain text. In an equation it is the right side: 129 in "76 + 53 = 129"."""
    numbers, links = _linked(text)
    if not numbers:
        return NOTHING
    end = 0
    while end < len(links) and links[end] in ("operator", "equals"):
        end += 1
    next_link = _unless_equal(numbers, links, end)
    if next_link == "list" and _is_list(text, numbers, links, end):
        return Reading(None, SEVERAL)
    return _of_chain(numbers[: end + 1], links[:end], next_link)


def last(text: str) -> Reading:
    """The last number of a plain text. In an equation it is the right side."""
    numbers, links = _linked(text)
    if not numbers:
        return NOTHING
    begin = len(links)
    while begin and links[begin - 1] in ("operator", "equals"):
        begin -= 1
    return _of_chain(numbers[begin:], links[begin:], _unless_equal(numbers, links, begin - 1) if begin else "")


def _unless_equal(numbers: Sequence[Number], links: Sequence[str], place: int) -> str:
    """The link behind the number at ``place``; empty at the end, and where it joins equal alternatives, such as "3/8 or 0.375"."""
    if place >= len(links):
        return ""
    values = [number.value for number in numbers[place : place + 2]]
    if links[place] == "alternative" and None not in values and math.isclose(*(float(value or 0) for value in values), rel_tol=1e-6):
        return ""
    return links[place]


def _is_list(text: str, numbers: Sequence[Number], links: Sequence[str], end: int) -> bool:
    """Whether the number at ``end`` begins a list of bare numbers, such as "1, 2, 3" but not "5, 3 more than 2"."""
    while end < len(links) and links[end] == "list":
        end += 1
    return re.match(r"\s*(?:[.)\]}$;\n]|$|(?:and|or)\b)", text[numbers[end].end :]) is not None


def _of_chain(chain: Sequence[Number], links: Sequence[str], outer_link: str) -> Reading:
    """The value of a chain of numbers, operators and equals signs: the number behind the last equals sign, if no other number is there.

    Args:
        chain: The numbers.
        links: The links between them.
        outer_link: The link from the chain to the next number of the text or, when reading backward, from the previous number.
    """
    if outer_link == "alternative":
        return Reading(None, SEVERAL)
    alone = not links or links[-1] == "equals"
    if outer_link == "beside" or not alone or any(number.value is None for number in chain):
        return Reading(None, UNREADABLE)
    return Reading(chain[-1].value)


_NOT_IN_GOLD = re.compile(
    r"[=<>≤≥≠√∛∜π∞±∓^∑∏∫!]|\\[A-Za-z]+|(?<![A-Za-z'])(?![aAmgslhdtwvjncfpMGSLHDTWVJNCFPI])[A-Za-z](?![A-Za-z'])"
    r"|\b(?:squared|cubed|root|pi|infinity|half|third|thirds|quarter|dozen|plus|minus|times)\b",
    re.IGNORECASE,
)


def gold(text: str) -> str | None:
    """The value of a gold answer that is one number, with only words, a currency and a unit around it; otherwise None."""
    numbers = find(text)
    if len(numbers) != 1 or _has_numeral(text) or _NOT_IN_GOLD.search(f"{text[: numbers[0].start]} {text[numbers[0].end :]}"):
        return None
    return numbers[0].value


def _has_numeral(text: str) -> bool:
    """Whether a plain text has a numeral that is not read, such as a Roman or a circled one. Accents are not numerals."""
    marked = (text[place + 1 : place + 2] for place, character in enumerate(text) if character == "\x02")
    return any(unicodedata.category(character or " ")[0] != "M" for character in marked)
