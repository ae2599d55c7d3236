"""Readers of answers and files with random input: an answer is the whole value or is rejected, and so is a file.

``make test`` tries some hundred texts. ``FUZZ_MINUTES=60 python -m pytest -m slow tests/test_fuzz.py`` tries new ones for an hour.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import time
import unicodedata
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcot.base.errors import FcotError
from fcot.curation.golden import read_golden
from fcot.llm.money import read_price
from fcot.methods.table import METHODS
from fcot.prompts.answers import AnswerRule, marked
from fcot.prompts.exemplars import load_exemplars
from fcot.prompts.teacher import TeacherPrompt
from fcot.tasks.loaders import load_problems
from fcot.tasks.reading import read_rows
from fcot.tasks.splits import read_split_file, read_templates_file
from fcot.tasks.table import TASKS, custom_task
from fcot.teacher.replay import read_completions

NUMBER, PAPER = AnswerRule("number"), AnswerRule("number", numbers="paper")
RULES = [
    NUMBER,
    PAPER,
    AnswerRule("choice", "ABCDEFGHIJ"),
    AnswerRule("choice", "ABCDE", "paper"),
    AnswerRule("yes_no"),
    AnswerRule("text"),
]
SCALES = {
    "k": 10**3,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "hundred": 10**2,
    "lakh": 10**5,
    "crore": 10**7,
}
SCALES |= {"mn": 10**6, "mln": 10**6, "bn": 10**9}
PIECES = [
    *"0123456789.,'_:/-+*^()[]{}=<>!?%$€ \n\t½¾²³⁻√π∞×÷±°–—−－５٣ⅳ①五万만\u00a0\u202f\u2009\u200b\u0305",
    *"eEkKxnm", "cm", " or ", " and ", " to ", " million", " thousand",
    "\\frac{1}{2}", "\\sqrt", "\\pi", "\\boxed{", "}", "**", "...", "e3", "e-5",
    " × 10", "^3", " half", "and a half", " hours", " 30 minutes", "th", "apples", "<b>", "#### ", "Final answer: ", " - ", " = ",
    " squared", "/3", "1/2", "\\,", "{,}", " dozen", ", ",
]  # fmt: skip
TAIL = st.one_of(st.text(max_size=12), st.lists(st.sampled_from(PIECES), max_size=6).map("".join))
VALUES = st.sampled_from(["5", "24", "1234", "1,234", "0.5", "-7", "3/4", "100"])


INVISIBLE = r"[\u200b\u200c\u200d\u2060\ufeff\u00ad\ufe0f\u20e3]"
PROMPT = TeacherPrompt("p", "{exemplars}{question}", {"number": "The answer is"}, two_steps=False)


def plain_value(text: str) -> Fraction | None:
    """The value of a text that is one number, by simple rules: digits of any script, one sign, groups of three, one scale word."""
    for dash in "–—−－‐‑‒―﹣":
        text = text.replace(dash, "-")
    text = "".join(str(unicodedata.decimal(c)) if unicodedata.decimal(c, None) is not None else c for c in text)
    text = re.sub(INVISIBLE, "", text)
    text = re.sub(r"\\boxed\{([^{}]*)\}", "\t\\1\t", text)
    space = r"(?:\\,|[\u2006-\u200a\u202f\u00a0\u205f])"
    text = re.sub(rf"(?<=\d){space}(?=\d{{3}}(?!\d))", ",", text.strip().replace("{,}", ","))
    text = re.sub(space, " ", text)
    text = text.replace("\\frac{1}{2}", " 1/2").replace("．", ".").replace("，", ",")
    text = "".join(f" {unicodedata.normalize('NFKC', c)}" if unicodedata.decomposition(c).startswith("<fraction>") else c for c in text)
    text = text.replace("⁄", "/")
    text = re.sub(
        "(?<=10)[ \t]*[⁻⁺]?[⁰¹²³⁴-⁹]+", lambda raised: "^" + unicodedata.normalize("NFKC", raised[0].strip()).replace("−", "-"), text
    )
    text = re.sub(r"(?<=10)[ \t]*\*\*[ \t]*(?=[-{(]?\d)", "^", text)
    text = re.sub(r"\*\*|__|`", "", text).strip()
    scale = Fraction(1)
    while word := re.fullmatch(r"(.*?)(?:(?<=\d)([kK])|[ \t-]*([A-Za-z]+?)s?)", text, re.DOTALL):
        name = (word[2] or word[3]).lower()
        if name not in SCALES or not word[1]:
            break
        text, scale = word[1], scale * SCALES[name]
    if exponent := re.fullmatch(r"(.*?)(?:[eE]([-+]?0*\d{1,3})|[ \t]*[×x*][ \t]*10[ \t]*\^[ \t]*[{(]?([-+]?0*\d{1,3})[})]?)", text):
        text, scale = exponent[1], scale * Fraction(10) ** int(exponent[2] or exponent[3])
    try:
        if mixed := re.fullmatch(r"(-?)(\d+) +(\d+)/(\d+)", text):
            return scale * (-1 if mixed[1] else 1) * (int(mixed[2]) + Fraction(int(mixed[3]), int(mixed[4])))
        if re.fullmatch(r"-?\d{1,3}(?:([,'_’])\d{3})(?:\1\d{3})*(?:\.\d+)?", text):
            text = re.sub("[,'_’]", "", text)
        return Fraction(text) * scale if re.fullmatch(r"-?(?:\d+(?:\.\d+)?|\.\d+|\d+/\d+)", text) else None
    except (ValueError, ZeroDivisionError):
        return None


def is_whole(start: str, text: str, reading: str | None) -> bool:
    """Whether ``reading`` is the value of the longest prefix of a text that is a number, and the next character does not extend it."""
    if reading is None:
        return True
    value = Fraction(reading)
    ends = [
        end
        for end in range(len(start), len(text) + 1)
        if (number := plain_value(text[:end])) is not None and abs(number - value) <= abs(value) / 10**9
    ]
    if not ends:
        return False
    remainder = text[max(end for end in ends if not re.search(rf"(?:[\s*_`]|\\,){INVISIBLE}*$", text[:end])) :]
    remainder = re.sub(rf"^{INVISIBLE}+", "", remainder)
    return not remainder or (unicodedata.category(remainder[0]) not in ("Nd", "Nl", "No", "Mn", "Me") and remainder[0] not in "√^∞π±")


def gold_is_whole(value, tail):
    text = value + tail
    reading = NUMBER.gold(text)
    assert is_whole(value, text, reading), (text, reading)


def reader_holds(rule, before, value, after):
    text = before + value + after
    for answer in (rule.first(text), rule.read_last(text).value, rule.after(text, "-->"), rule.gold(text), *rule.candidates(text)):
        if answer is not None and rule.answer_type == "number":
            Fraction(answer)
            assert rule.gold(answer) == answer or rule is PAPER
        assert answer is None or rule.answer_type == "text" or rule.same(answer, answer)
    marked(text)
    for method in METHODS.values():
        for form in method.formats.values():
            form.parse(text, rule)
            form.split(text)


KEYS = ["question", "answer", "rationale", "template_id", "sample_index", "data", "metadata", "dataset_key", "train", "test", "validation"]
KEYS += ["completion_index", "reasoning_completion", "completion", "toy_arithmetic", "prompt", "0", "default", "input", "output", "model"]
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**20), st.floats(), st.text(max_size=6),
    st.sampled_from(["5", "many", "²", "q-1", "\ufeff"]),
)  # fmt: skip
VALUES_OF_FILES = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)), max_leaves=12
)
ROWS = st.lists(
    st.fixed_dictionaries({"question": LEAVES, "answer": LEAVES}, optional={"sample_index": LEAVES, "rationale": LEAVES}), max_size=3
)
CONTENTS = st.one_of(
    st.builds(json.dumps, VALUES_OF_FILES).map(str.encode),
    st.builds(lambda rows: "\n".join(map(json.dumps, rows)), ROWS).map(str.encode),
    st.builds(lambda rows: "question,answer\n" + "\n".join(",".join(map(str, row.values())) for row in rows), ROWS).map(
        lambda text: text.encode("utf-8", "replace")
    ),
    st.binary(max_size=40),
    st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace")),
)
SUFFIXES = st.sampled_from([".json", ".jsonl", ".csv", ".tsv", ".yaml", ".txt"])


def file_is_read_or_rejected(content, suffix):
    """Every reader returns a value for a file with this content or raises the project's own error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        path.write_bytes(content)
        readers = [
            lambda: load_problems(custom_task("mine", NUMBER), str(path)),
            lambda: load_problems(custom_task("mine", AnswerRule("text")), str(path), unlabelled=True),
            lambda: read_rows(str(path), text_column="question"),
            lambda: read_golden(path),
            lambda: read_split_file(path, range(5)),
            lambda: read_templates_file(path, range(5)),
            lambda: read_completions(path, TASKS["toy_arithmetic"], {0: "q"}),
            lambda: read_price(path, "model"),
            lambda: load_exemplars(str(path), None, "toy_arithmetic", PROMPT, NUMBER, {}),
        ]
        for reader in readers:
            with contextlib.suppress(FcotError):
                reader()


CHECKS = {
    gold_is_whole: (VALUES, TAIL),
    reader_holds: (st.sampled_from(RULES), TAIL, VALUES, TAIL),
    file_is_read_or_rejected: (CONTENTS, SUFFIXES),
}


def fuzz(check, n: int, **options) -> None:
    settings(max_examples=n, deadline=None, database=None, suppress_health_check=list(HealthCheck), **options)(
        given(*CHECKS[check])(check)
    )()


@pytest.mark.parametrize("check", CHECKS)
def test_an_answer_is_whole_or_rejected_and_so_is_a_file(check):
    fuzz(check, 60 if check is file_is_read_or_rejected else 400, derandomize=True)


@pytest.mark.slow
def test_new_texts_and_files_are_whole_or_rejected():
    """Runs for FUZZ_MINUTES (default: 1)."""
    end, rounds = time.monotonic() + 60 * float(os.environ.get("FUZZ_MINUTES", "1")), 0
    while time.monotonic() < end:
        for check in CHECKS:
            fuzz(check, 200 if check is file_is_read_or_rejected else 2000)
        rounds += 1
    print(f"{rounds * 4000:,} texts, {rounds * 200:,} files")
