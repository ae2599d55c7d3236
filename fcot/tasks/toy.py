"""Toy tasks: problems generated from templates and a seed, and the oracle that writes rationales for them.

Toy tasks need no network and no teacher. They are hard enough that a student trained from scratch on a CPU shows the papers' claim: a
unique name anchors every step of a rationale, and the length of a question says nothing about its answer. The oracle reads the text of
the question alone, as any teacher does.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from fcot.base.records import Problem

NAMES = (
    "Ada Ben Cleo Dan Eva Finn Gia Hugo Ida Jack Kira Liam Mona Nick Olga Paul Quin Rosa Sam Tina Umar Vera Will Xena "
    "Yuri Zoe Amir Bella Carl Dora Emil Fay Greg Hana Ivan June Karl Lena Milo Nora"
).split()


@dataclass(frozen=True)
class ToyTask:
    """A toy task: the generator of its problems and its oracle.

    Attributes:
        problem: ``(random) -> (question, answer, template id)``.
        rationale: ``(question, wording, slip, explained) -> rationale``. ``wording`` selects one of ``n_wordings``. ``slip`` is a random
            generator that makes one step wrong, so that the answer is wrong, or None. ``explained`` is the number of a step that is
            explained in smaller steps, or None.
        results: ``rationale -> results of its steps``, in order. Steps that cannot be parsed are left out.
        conclusion: ``rationale -> answer``: the answer that the rationale concludes, right or wrong.
        n_wordings: Number of distinct wordings of a rationale for one problem.
    """

    problem: Callable[[random.Random], tuple[str, str, str]]
    rationale: Callable[..., str]
    results: Callable[[str], list[str]]
    conclusion: Callable[[str], str]
    n_wordings: int

    def first_wrong(self, question: str, rationale: str) -> int | None:
        """The number of the first wrong or missing step, from 0. None where all steps are right, even if the answer is not."""
        written = self.results(rationale)
        for number, result in enumerate(self.results(self.rationale(question, 0, None, None))):
            if written[number : number + 1] != [result]:
                return number
        return None


def make_problems(task: ToyTask, n: int, seed: int) -> list[Problem]:
    """``n`` problems with distinct questions, each with a right rationale: a pure function of ``seed``."""
    return list(_problems(task, n, seed))


@lru_cache(8)  # the jobs of a sweep and the stages of a run ask for the same ones
def _problems(task: ToyTask, n: int, seed: int) -> tuple[Problem, ...]:
    rng = random.Random(seed)
    problems: list[Problem] = []
    questions: set[str] = set()
    while len(problems) < n:
        question, answer, template_id = task.problem(rng)
        if question not in questions:
            questions.add(question)
            problems.append(Problem(len(problems), question, answer, task.rationale(question, 0, None, None), template_id))
    return tuple(problems)


def _pick(rng: random.Random, *options: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """A random entry of each tuple of template parts, and the template id that names the choice."""
    picks = [rng.randrange(len(option)) for option in options]
    return tuple(option[pick] for option, pick in zip(options, picks, strict=True)), "-".join(map(str, picks))


def _wording(index: int, *parts: Sequence[str]) -> tuple[str, ...]:
    """The ``index``-th combination of wording parts. Combinations are distinct, and consecutive ones differ in every part."""
    chosen, shift = [], 0
    for part in parts:
        index, digit = divmod(index, len(part))
        chosen.append(part[(digit + shift) % len(part)])
        shift = shift or digit
    return tuple(chosen)


# --- toy_arithmetic: one person holds some things, five others give or take ---------------------------------------

_THINGS = ("marbles", "stamps", "shells", "coins")
_OPENINGS = ("{name} has {start} {things}.", "{name} starts with {start} {things}.")
_GIVES = ("{other} gives {amount}.", "{other} adds {amount}.")
_TAKES = ("{other} takes {amount}.", "{other} removes {amount}.")
_QUESTIONS = ("How many {things} are left?", "How many {things} does {name} have now?")
_LIMIT = 20
_PEOPLE = 5

_FIRST_WORDS = ("{name} has {start}.", "At first there are {start}.", "Start with {start}.", "The count is {start}.")
_STEP_WORDS = (
    "{other} {verb} {amount}, so {equation}.",
    "{other} {verb} {amount}: {equation}.",
    "{other} {verb} {amount}, which makes {equation}.",
    "Then {other} {verb} {amount}, so {equation}.",
)
_LAST_WORDS = (
    "So {total} are left.",
    "That leaves {total}.",
    "In the end there are {total}.",
    "The total is {total}.",
    "Now there are {total}.",
)


def _arithmetic_problem(rng: random.Random) -> tuple[str, str, str]:
    name, *others = rng.sample(NAMES, _PEOPLE + 1)
    total = start = rng.randint(0, _LIMIT)
    (opening, gives, takes, question, things), template_id = _pick(rng, _OPENINGS, _GIVES, _TAKES, _QUESTIONS, _THINGS)
    sentences = [opening.format(name=name, start=start, things=things)]
    for other in others:
        change = rng.choice([change for change in range(-9, 10) if change and 0 <= total + change <= _LIMIT])
        total += change
        sentences.append((gives if change > 0 else takes).format(other=other, amount=abs(change)))
    sentences.append(question.format(name=name, things=things))
    return " ".join(sentences), str(total), template_id


def _arithmetic_rationale(question: str, wording: int, slip: random.Random | None, explained: int | None = None) -> str:
    name, start = re.match(r"(\w+) (?:has|starts with) (\d+)", question).groups()  # type: ignore[union-attr]
    moves = re.findall(r"(\w+) (gives|adds|takes|removes) (\d+)\.", question)
    first, step, last = _wording(wording, _FIRST_WORDS, _STEP_WORDS, _LAST_WORDS)
    wrong = slip.randrange(len(moves)) if slip else None
    total = int(start)
    sentences = [first.format(name=name, start=start)]
    for number, (other, verb, amount) in enumerate(moves):
        sign = "+" if verb in ("gives", "adds") else "-"
        result = total + int(amount) if sign == "+" else total - int(amount)
        if slip and number == wrong:
            result += slip.choice((-2, -1, 1, 2))
        equation = f"{total} {sign} {amount} = {result}"
        if number == explained:  # counts one by one
            unit = 1 if sign == "+" else -1
            counted = ", ".join(str(value) for value in range(total + unit, result + unit, unit))
            sentences.append(f"{other} {verb} {amount}: from {total} count {'up' if unit > 0 else 'down'} {amount}, that is {counted}.")
        sentences.append(step.format(other=other, verb=verb, amount=amount, equation=equation))
        total = result
    return " ".join([*sentences, last.format(total=total)])


def _equations(rationale: str) -> list[str]:
    return re.findall(r"-?\d+ [+-] \d+ = -?\d+", rationale)


def _last_number(rationale: str) -> str:
    return re.findall(r"-?\d+", rationale)[-1]


# --- toy_comparison: mistakes are systematic. Some sentences compare the known number with the new one ("Ada has 3 more than Ben"), ---
# so that the word that fits all other sentences selects the wrong operation (inconsistent wording: Lewis and Mayer 1987) ---------

_COMPARISONS = 4
_COMPARED_LIMIT = 20
_TURNED_SHARE = 0.2  # share of sentences that start with the person whose number is known
_COMPARED_OPENINGS = ("{name} has {start} {things}.", "{name} owns {start} {things}.")
_COMPARED_QUESTIONS = ("How many {things} has {name}?", "How many {things} does {name} have?")
_COMPARED_FIRST = ("{name} has {start}.", "Start with {name}: {start}.", "First, {name} has {start}.", "We know that {name} has {start}.")
_COMPARED_STEPS = (
    "{one} has {amount} {word} than {two}, so {new} has {equation}.",
    "{one} has {amount} {word} than {two}: {new} has {equation}.",
    "{one} has {amount} {word} than {two}, which gives {new} {equation}.",
    "Since {one} has {amount} {word} than {two}, {new} has {equation}.",
)
_COMPARED_LAST = (
    "So {name} has {total}.",
    "That leaves {name} with {total}.",
    "In the end {name} has {total}.",
    "The number of {name} is {total}.",
    "Therefore {name} has {total}.",
)


def _comparison_problem(rng: random.Random) -> tuple[str, str, str]:
    people = rng.sample(NAMES, _COMPARISONS + 1)
    total = start = rng.randint(0, _COMPARED_LIMIT)
    (opening, question, things), template_id = _pick(rng, _COMPARED_OPENINGS, _COMPARED_QUESTIONS, _THINGS)
    sentences = [opening.format(name=people[0], start=start, things=things)]
    for known, new in itertools.pairwise(people):
        change = rng.choice([change for change in range(-9, 10) if change and 0 <= total + change <= _COMPARED_LIMIT])
        total += change
        turned = rng.random() < _TURNED_SHARE
        one, two = (known, new) if turned else (new, known)
        sentences.append(f"{one} has {abs(change)} {'more' if (change > 0) != turned else 'fewer'} than {two}.")
    sentences.append(question.format(name=people[-1], things=things))
    return " ".join(sentences), str(total), template_id


def _comparison_rationale(question: str, wording: int, slip: random.Random | None, explained: int | None = None) -> str:
    """The rationale of a comparison. A slip reads one sentence by its word alone, or the other way round: a wrong operation."""
    known, start = re.match(r"(\w+) (?:has|owns) (\d+)", question).groups()  # type: ignore[union-attr]
    comparisons = re.findall(r"(\w+) has (\d+) (more|fewer) than (\w+)\.", question)
    first, step, last = _wording(wording, _COMPARED_FIRST, _COMPARED_STEPS, _COMPARED_LAST)
    wrong = slip.randrange(len(comparisons)) if slip else None
    total = int(start)
    sentences = [first.format(name=known, start=start)]
    for number, (one, amount, word, two) in enumerate(comparisons):
        new, turned = (two, True) if one == known else (one, False)
        sign = "+" if ((word == "more") != turned) != (number == wrong) else "-"
        result = total + int(amount) if sign == "+" else total - int(amount)
        if number == explained:
            sentences.append(f"Read it from {new}: {new} has {amount} {'more' if sign == '+' else 'fewer'} than {known}.")
        sentences.append(step.format(one=one, amount=amount, word=word, two=two, new=new, equation=f"{total} {sign} {amount} = {result}"))
        known, total = new, result
    return " ".join([*sentences, last.format(name=known, total=total)])


# --- toy_coin_flip: every sentence has the same number of words, so length reveals nothing -----------------------

_FLIPS = ("{other} flips the coin.", "{other} turns the coin.")
_KEEPS = ("{other} leaves the coin.", "{other} keeps the coin.")
_COIN_QUESTIONS = ("Is the coin still heads up?", "Is it still heads up?")
_COIN_FIRST = ("The coin starts heads up.", "At first it is heads.", "It begins with heads up.", "We begin with heads.")
_COIN_STEPS = (
    "{other} {verb} it, so it is {side}.",
    "{other} {verb} it: {side}.",
    "After {other} {verb} it, it is {side}.",
    "{other} {verb} the coin, which makes {side}.",
)
_COIN_LAST = (
    "It ends {side} up, so {answer}.",
    "The end is {side}: {answer}.",
    "So it is {side} now, {answer}.",
    "Thus {side}, hence {answer}.",
    "The coin is {side} up, so {answer}.",
)


def _coin_problem(rng: random.Random) -> tuple[str, str, str]:
    others = rng.sample(NAMES, 4)
    (flips, keeps, question), template_id = _pick(rng, _FLIPS, _KEEPS, _COIN_QUESTIONS)
    flipped = [rng.random() < 0.5 for _ in others]
    acts = [(flips if flip else keeps).format(other=other) for other, flip in zip(others, flipped, strict=True)]
    answer = "no" if sum(flipped) % 2 else "yes"
    return " ".join(["A coin is heads up.", *acts, question]), answer, template_id


def _coin_rationale(question: str, wording: int, slip: random.Random | None, explained: int | None = None) -> str:
    acts = re.findall(r"(\w+) (flips|turns|leaves|keeps) the coin\.", question)
    first, step, last = _wording(wording, _COIN_FIRST, _COIN_STEPS, _COIN_LAST)
    wrong = slip.randrange(len(acts)) if slip else None
    heads = True
    sentences = [first]
    for number, (other, verb) in enumerate(acts):
        before, turned = "heads" if heads else "tails", verb in ("flips", "turns")
        heads ^= turned ^ (number == wrong)
        if number == explained:
            fact = f"the other side of {before} is {'tails' if before == 'heads' else 'heads'}" if turned else f"it stays {before}"
            sentences.append(f"Now look: {other} {verb} the coin, and {fact}.")
        sentences.append(step.format(other=other, verb=verb, side="heads" if heads else "tails"))
    ending = last.format(side="heads" if heads else "tails", answer="yes" if heads else "no")
    return " ".join([*sentences, ending])


def _sides(rationale: str) -> list[str]:
    """The side that is up after each act. Sentences that explain an act are left out."""
    sentences = re.split(r"(?<=[.!?])\s+", rationale)[1:]
    acts = [sentence for sentence in sentences if not sentence.startswith("Now look")]
    return [sides[-1] for act in acts if (sides := re.findall(r"\b(heads|tails)\b", act))]


def _last_verdict(rationale: str) -> str:
    return re.findall(r"\b(yes|no)\b", rationale)[-1]


# --- toy_last_letter ----------------------------------------------------------------------------------------------

_LETTER_QUESTIONS = (
    'Take the last letters of the words in "{words}" and concatenate them.',
    'What do the last letters of "{words}" spell when joined?',
)
_LETTER_FIRST = ("Go word by word.", "Take the words in turn.", "Look at each word.", "One word at a time.")
_LETTER_STEPS = (
    'The last letter of "{word}" is "{letter}".',
    '"{word}" ends in "{letter}".',
    'From "{word}" take "{letter}".',
    'The word "{word}" ends with "{letter}".',
)
_LETTER_LAST = (
    'Joined: "{result}".',
    'Together they give "{result}".',
    'The result is "{result}".',
    'Concatenated, that is "{result}".',
    'So we get "{result}".',
)


def _letter_problem(rng: random.Random) -> tuple[str, str, str]:
    words = rng.sample(NAMES, 4)
    (question,), template_id = _pick(rng, _LETTER_QUESTIONS)
    return question.format(words=" ".join(words)), "".join(word[-1] for word in words), template_id


def _letter_rationale(question: str, wording: int, slip: random.Random | None, explained: int | None = None) -> str:
    words = re.search(r'"([^"]+)"', question).group(1).split()  # type: ignore[union-attr]
    first, step, last = _wording(wording, _LETTER_FIRST, _LETTER_STEPS, _LETTER_LAST)
    letters = [word[-1] for word in words]
    if slip:
        number = slip.randrange(len(words))
        letters[number] = slip.choice([letter for letter in "abcdefghijklmnopqrstuvwxyz" if letter != letters[number]])
    steps = [step.format(word=word, letter=letter) for word, letter in zip(words, letters, strict=True)]
    if explained is not None:
        steps[explained] = f"{words[explained]} is spelt {', '.join(words[explained])}. {steps[explained]}"
    return " ".join([first, *steps, last.format(result="".join(letters))])


def _letters(rationale: str) -> list[str]:
    return re.findall(r'"([a-z])"', rationale)


def _last_quoted(rationale: str) -> str:
    return re.findall(r'"([^"]+)"', rationale)[-1]


TOY_TASKS: dict[str, ToyTask] = {
    "toy_arithmetic": ToyTask(_arithmetic_problem, _arithmetic_rationale, _equations, _last_number, 80),
    "toy_comparison": ToyTask(_comparison_problem, _comparison_rationale, _equations, _last_number, 80),
    "toy_coin_flip": ToyTask(_coin_problem, _coin_rationale, _sides, _last_verdict, 80),
    "toy_last_letter": ToyTask(_letter_problem, _letter_rationale, _letters, _last_quoted, 80),
}
