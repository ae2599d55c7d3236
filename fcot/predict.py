"""``fcot predict STUDENT FILE``: a trained student answers questions from a data file or from the command line."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcot.base.console import progress, result_console, say
from fcot.base.entry import entry_point, with_help
from fcot.base.errors import FcotError
from fcot.runs.questions import GOLD, QuestionOptions, as_in_its_run, read_questions

if TYPE_CHECKING:
    from fcot.student.interface import StudentInterface
    from fcot.student.loading import Student

HELP = """Let a trained student answer questions, and score its answers where the gold answers are known.

  fcot predict outputs/runs/<run>/student "Ada has 3 coins and finds 4 more. How many has she?"
  fcot predict outputs/runs/<run>/student questions.csv output=answers.jsonl group_column=shop

  STUDENT               the student/ folder of a run; student=DIR is the same
  FILE                  questions: CSV, TSV, JSON, JSON Lines, Parquet, a datasets folder, or a text file with one question per line;
                        file=FILE is the same
  output=FILE           write JSON Lines to this file instead of text to the terminal: all columns of the file, and the answers;
                        a missing folder is created
  question_column=NAME  column with the question
  answer_column=NAME    column with the gold answer, which the student never sees; rows that have one are scored, except those that the
                        student was trained on and those with an answer that cannot be read; none: no scores
  group_column=NAME     also score the rows of each value of this column
  option_columns=A,B    columns with the options of a multiple choice, which are written behind the question, one column per letter
  decimal=MARK          decimal mark of the gold answers: point, comma, or auto for the one that fits more answers
  on_invalid=skip       leave faulty rows out; error: they are an error. Default of these six: as in the student's run, where the file has
                        its columns; else question, answer, no groups, no options, auto, error
  self_consistency=1    answers sampled per question for a majority vote; 1 decodes greedily
  temperature=0.7       temperature of the samples
  max_new_tokens=N      limit of an answer, in tokens; default: the student's own limit
  calculator=true       correct wrong numbers after an equals sign; default: as in the student's run (student.calculator)
  seed=0                seed of the samples
  api_key_env=NAME      API-backed students: environment variable with the server's key; "none" sends no key
"""


@dataclass
class Options(QuestionOptions):
    """The options of the command, as in :data:`HELP`."""

    output: str | None = None
    self_consistency: int = 1
    temperature: float = 0.7
    max_new_tokens: int | None = None
    calculator: bool | None = None
    seed: int = 0
    api_key_env: str | None = None


@entry_point
@with_help(HELP)
def main(words: list[str]) -> None:
    """Entry point, with the exit codes of :func:`fcot.base.entry.entry_point`."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options, questions = parse(words)
    if not (questions or options.file) or not all(question.strip() for question in questions):
        raise FcotError("no question: write one in quotes, or name a file")
    _check_student(options.student)
    options = as_in_its_run(options) if options.file else options
    rows = [{"question": question} for question in questions] + (read_questions(options) if options.file else [])
    _show(_mark_trained(answer(options, rows), options), options)


def _check_student(student: str) -> None:
    """Check the student before the questions: a mistyped one is the first thing to correct.

    Raises:
        FcotError: There is no such student.
    """
    from fcot.student.interface import find_student, read_interface

    read_interface(find_student(student))


def parse(arguments: Sequence[str]) -> tuple[Options, list[str]]:
    """Parse the command line into options and questions.

    Without ``student=`` the first argument that is no option is the student. A file among the others is ``file``; the rest are questions.

    Raises:
        FcotError: An option is unknown, is out of range or has no value, a file is missing, or no student is named.
    """
    kinds: dict[str, type] = {
        "student": str, "file": str, "output": str, "question_column": str, "answer_column": str, "group_column": str,
        "option_columns": str, "decimal": str, "on_invalid": str, "self_consistency": int, "temperature": float, "max_new_tokens": int,
        "calculator": bool, "seed": int, "api_key_env": str,
    }  # fmt: skip
    values: dict[str, Any] = {}
    others = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or name not in kinds or (" " in value and kinds[name] is not str):
            if equals and _OPTION.fullmatch(name) and " " not in argument:
                known = name.rpartition(".")[2]
                remedy = f"here it is {known}=..." if known in kinds else f"choose from {', '.join(kinds)}"
                raise FcotError(f"{name}: no such option; {remedy}")
            others.append(argument)
            continue
        if kinds[name] is bool:
            if value.lower() not in ("true", "false"):
                raise FcotError(f"{argument}: choose from true, false")
            values[name] = value.lower() == "true"
            continue
        try:
            values[name] = kinds[name](value)
        except ValueError as error:
            raise FcotError(f"{argument}: {name} takes a {'whole ' if kinds[name] is int else ''}number") from error
        if kinds[name] is str and not value:
            raise FcotError(f"{argument}: the value is missing")
        if kinds[name] is not str and not (values[name] >= 0 if name == "seed" else 0 < values[name] < math.inf):
            raise FcotError(f"{argument}: the value must be {'at least' if name == 'seed' else 'more than'} 0")
    if "option_columns" in values:
        values["option_columns"] = [name.strip() for name in values["option_columns"].strip("[]").split(",")]
    for name, choices in (("decimal", ("auto", "point", "comma")), ("on_invalid", ("error", "skip"))):
        if values.get(name, choices[0]) not in choices:
            raise FcotError(f"{name}={values[name]}: choose from {', '.join(choices)}")
    if "student" not in values:
        if not others or " " in others[0]:
            raise FcotError("name the student first: fcot predict outputs/runs/<run>/student FILE")
        values["student"] = others.pop(0)
    questions = []
    for word in others:
        if not _is_file(word):
            questions.append(word)
        elif values.setdefault("file", word) != word:
            raise FcotError(f"{values['file']} and {word}: name one file")
    _check_output(values.get("output"), values.get("file"))
    return Options(**values), questions


def _check_output(output: str | None, file: str | None) -> None:
    """Check the name of the file with the answers.

    Raises:
        FcotError: It is the file with the questions, or its ending promises another format than JSON Lines.
    """
    from fcot.tasks.reading import FORMATS

    if output is None:
        return
    if file is not None and Path(output).resolve() == Path(file).resolve():
        raise FcotError(f"output={output} is the file with the questions, and would replace it; choose another name")
    suffix = Path(output).suffix.lower()
    if suffix == ".xlsx" or FORMATS.get(suffix, "JSON Lines") != "JSON Lines":
        raise FcotError(f"output={output}: answers are written as JSON Lines; choose a name that ends with .jsonl")


def _is_file(word: str) -> bool:
    """Whether an argument names a file or a ``datasets`` folder rather than being a question.

    Raises:
        FcotError: It has the form of a file's name, and there is no such file.
    """
    from fcot.tasks.reading import FORMATS

    path = Path(word)
    if len(word) < 1000 and path.exists():
        return True
    if path.suffix.lower() in (*FORMATS, ".txt") and not any(character.isspace() for character in word):
        raise FcotError(f"{word}: no such file")
    return False


_OPTION = re.compile(r"[A-Za-z_]\w*(\.\w+)*")  # the name of an option, also as `fcot run` would spell it


def answer(options: Options, rows: Sequence[Mapping[str, Any]], loaded: Student | None = None) -> list[dict[str, Any]]:
    """Let the student answer the question of each row.

    Args:
        options: The options of the command.
        rows: Each has ``question``, and optionally ``GOLD``, the gold answer in a form that the student's answer rule reads.
        loaded: The student, from :func:`load`; None loads it, unless it is API-backed.

    Returns:
        The rows, with ``completion``, ``prediction`` (None where the completion has no answer), ``complete`` and ``n_tokens`` added. Rows
        with ``GOLD`` also get ``correct``. With several samples per question, the completion is the first one with the most frequent
        prediction, and ``votes`` counts the predictions.

    Raises:
        FcotError: The folder is not a student of fcot.
    """
    from fcot.base.records import Problem
    from fcot.evaluation import scoring
    from fcot.prompts.answers import votes as count_votes
    from fcot.student.interface import find_student, read_interface

    folder = find_student(options.student)
    interface = read_interface(folder)
    limit = options.max_new_tokens or interface.max_new_tokens
    questions = [row["question"] for row in rows]
    if is_api_backed(folder):
        if options.calculator:
            raise FcotError("calculator=true: an API-backed student writes its answers at its server; leave it out")
        texts_by_question = _answer_by_server(folder, interface, questions, options, limit)
    else:
        texts_by_question = _answer_locally(loaded or load(folder, interface), interface, questions, options, limit)
    answers = []
    for number, (row, texts) in enumerate(zip(rows, texts_by_question, strict=True)):
        problem = Problem(number, row["question"], row.get(GOLD, ""))
        samples = [scoring.score(problem, text, complete, n_tokens, interface.format, interface.rule) for text, complete, n_tokens in texts]
        chosen = scoring.majority(samples)
        votes = {"votes": count_votes([sample.prediction for sample in samples])} if len(samples) > 1 else {}
        scored = {"correct": chosen.correct} if GOLD in row else {}
        answered = {name: getattr(chosen, name) for name in ("completion", "prediction", "complete", "n_tokens")}
        answers.append({**row, **answered, **votes, **scored})
    return answers


# For each question its sampled answers: the text, whether it ended before the token limit, its number of tokens.
Texts = list[list[tuple[str, bool, int]]]


def is_api_backed(folder: Path) -> bool:
    """Whether the student answers through a server instead of on this machine."""
    from fcot.student.interface import API_FILE

    return (folder / API_FILE).exists()


def load(folder: Path, interface: StudentInterface) -> Student:
    """Load a student's model and tokenizer, onto the GPU if there is one."""
    import torch

    from fcot.student.loading import load_student

    student = load_student(str(folder), chat=interface.chat)
    student.model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    return student


def _answer_locally(student: Student, interface: StudentInterface, questions: Sequence[str], options: Options, limit: int) -> Texts:
    from fcot.decoding.engine import DecodingPrompt, Sampling
    from fcot.student.calculator import Equations
    from fcot.student.decoding import decode
    from fcot.student.tokenization import encode_questions

    ids, _, cut = encode_questions(student, interface.format, questions, interface.max_prompt_tokens)
    if cut:
        say(f"warning: {cut} questions lost their beginning: the student reads {interface.max_prompt_tokens} tokens")
    n = options.self_consistency
    calculator = interface.calculator if options.calculator is None else options.calculator
    prompts = [
        DecodingPrompt(prompt, limit, (options.seed, index, draw) if n > 1 else ()) for index, prompt in enumerate(ids) for draw in range(n)
    ]
    sampling = Sampling(options.temperature) if n > 1 else Sampling()
    with progress("predict", len(prompts), "answers") as bar:
        decoded = decode(student, prompts, max_tokens=32768, sampling=sampling, calculator=calculator, advance=bar.advance)
    if calculator:
        equations = sum((answer.equations for answer in decoded if answer.equations is not None), Equations())
        say(f"calculator: {equations.changed:,} of {equations.computed:,} equations corrected")
    answers = [(completion.text, completion.complete, completion.n_tokens) for completion in decoded]
    return [answers[start : start + n] for start in range(0, len(answers), n)]


def _answer_by_server(folder: Path, interface: StudentInterface, questions: Sequence[str], options: Options, limit: int) -> Texts:
    import asyncio

    from fcot.base.files import read_json
    from fcot.base.loop import run_async
    from fcot.llm import connect
    from fcot.llm.requests import Request
    from fcot.llm.server import key_fault, unset_header_faults
    from fcot.student.interface import API_FILE

    student, n = read_json(folder / API_FILE), options.self_consistency
    key = options.api_key_env or student.get("api_key_env")
    if (fault := key_fault("", student["base_url"], key)) is not None:
        raise FcotError(f"{folder}: {fault}")
    if faults := list(unset_header_faults(f"{folder}: {API_FILE}, headers", student.get("headers", {}))):
        raise FcotError("\n".join(faults))
    settings = connect.Defaults(student["base_url"], key, student["max_tokens_parameter"], headers=student.get("headers", {}))
    server = connect.server(settings, "student", student["model"], temperature=options.temperature if n > 1 else 0.0)
    client = connect.online(server, settings, 1)

    async def run() -> Texts:
        async def sample(question: str, draw: int) -> tuple[str, bool, int]:
            prompt = [{"role": "user", "content": interface.format.prompt(question)}]
            reply = await client.generate(Request(prompt, limit), 1, options.seed + draw)
            return reply.choices[0].text, reply.choices[0].finish_reason == "stop", reply.usage.completion_tokens or 0

        try:
            answers = await asyncio.gather(*(sample(question, draw) for question in questions for draw in range(n)))
            return [answers[start : start + n] for start in range(0, len(answers), n)]
        finally:
            await client.close()

    return run_async(run())


def _mark_trained(answers: list[dict[str, Any]], options: Options) -> list[dict[str, Any]]:
    """Add ``trained_on`` to each answer: whether the student was trained on its question. Without a record nothing is added."""
    from fcot.reporting.predicted import TRAINED
    from fcot.runs.origin import trained_on
    from fcot.student.interface import find_student

    known = trained_on(find_student(options.student), [row["question"] for row in answers])
    return answers if known is None else [{**row, TRAINED: is_known} for row, is_known in zip(answers, known, strict=True)]


def _show(answers: Sequence[Mapping[str, Any]], options: Options) -> None:
    """Write or print the answers, and print the scores of those with a gold answer."""
    from fcot.reporting.predicted import GROUP, TRAINED, scores

    if options.output is not None:
        from fcot.base.files import write_jsonl

        write_jsonl(Path(options.output), ({name: _json_value(row[name]) for name in row if name not in (GOLD, GROUP)} for row in answers))
        say(f"{len(answers):,} answers written to {options.output}")
    else:
        for row in answers:
            print(f"{row['question']}\n  {row['completion'].strip()}\n  answer: {row['prediction']}", end="")
            print("   (the student was trained on this question)" if row.get(TRAINED) else "", end="")
            print("" if row["complete"] else "   (cut at the length limit)")
            if "votes" in row:
                print(f"  votes: {', '.join(f'{count} for {prediction}' for prediction, count in row['votes'].items()) or 'none'}")
    labelled = [row for row in answers if "correct" in row]
    if labelled and all(row.get(TRAINED) for row in labelled):
        print(f"no accuracy: the student was trained on all {len(labelled):,} rows with a gold answer")
    elif labelled:
        result_console().print(scores(answers, options.group_column))


def _json_value(value: Any) -> Any:
    """A cell as JSON. Values of other types, such as the dates of a Parquet file, become text."""
    if isinstance(value, Mapping):
        return {str(name): _json_value(cell) for name, cell in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(cell) for cell in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


if __name__ == "__main__":
    main()
