"""``python -m fcot.predict student=DIR QUESTION...``: a trained student answers questions from the command line or a file."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcot.base.console import progress, say
from fcot.base.errors import FcotError
from fcot.base.locations import locate

if TYPE_CHECKING:
    from fcot.student.interface import StudentInterface
    from fcot.student.loading import Student

HELP = """Let a trained student answer questions.

  python -m fcot.predict student=outputs/runs/<run>/student "Ada has 3 coins and finds 4 more. How many has she?"
  python -m fcot.predict student=outputs/runs/<run>/student file=questions.jsonl output=answers.jsonl

  student=DIR           the student/ folder of a run
  file=FILE             questions: one per line, or a JSON list or JSON Lines with "question"; rows with "answer" are scored
  output=FILE           write JSON Lines to this file instead of text to the terminal
  self_consistency=1    answers sampled per question for a majority vote; 1 decodes greedily
  temperature=0.7       temperature of the samples
  max_new_tokens=N      limit of an answer, in tokens; default: the student's own limit
  seed=0                seed of the samples
  api_key_env=NAME      API-backed students: environment variable with the server's key; "none" sends no key
"""


@dataclass
class Options:
    """The options of the command, as in :data:`HELP`."""

    student: str
    file: str | None = None
    output: str | None = None
    self_consistency: int = 1
    temperature: float = 0.7
    max_new_tokens: int | None = None
    seed: int = 0
    api_key_env: str | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exit code 1 after an error message, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or {"--help", "-h"} & set(words):
        print(HELP, end="")
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        options, questions = parse(words)
        rows = [{"question": question} for question in questions] + (list(read_questions(options.file)) if options.file else [])
        if not rows or not all(row["question"].strip() for row in rows):
            raise FcotError("no question: write one in quotes, or file=FILE")
        answers = answer(options, rows)
        _show(answers, options.output)
    except FcotError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def parse(arguments: Sequence[str]) -> tuple[Options, list[str]]:
    """Parse the command line into options and questions. An argument that does not begin with the name of an option is a question.

    Raises:
        FcotError: An option is unknown, is out of range or has no value, or ``student`` is missing.
    """
    kinds: dict[str, type] = {
        "student": str, "file": str, "output": str, "self_consistency": int, "temperature": float, "max_new_tokens": int, "seed": int,
        "api_key_env": str,
    }  # fmt: skip
    values: dict[str, Any] = {}
    questions = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or name not in kinds or (" " in value and kinds[name] is not str):
            if equals and name.isidentifier() and " " not in argument:
                raise FcotError(f"{name}: no such option; choose from {', '.join(kinds)}")
            questions.append(argument)
            continue
        try:
            values[name] = kinds[name](value)
        except ValueError as error:
            raise FcotError(f"{argument}: {name} takes a {'whole ' if kinds[name] is int else ''}number") from error
        if kinds[name] is str and not value:
            raise FcotError(f"{argument}: the value is missing")
        if kinds[name] is not str and not (values[name] >= 0 if name == "seed" else 0 < values[name] < math.inf):
            raise FcotError(f"{argument}: the value must be {'at least' if name == 'seed' else 'more than'} 0")
    if "student" not in values:
        raise FcotError("student=DIR is missing: the student/ folder of a run")
    return Options(**values), questions


def read_questions(file: str) -> Iterator[dict[str, Any]]:
    """Read rows with ``question`` from a text file (one question per line), a JSON list, or JSON Lines.

    Raises:
        FcotError: The file cannot be read, or a row has no question.
    """
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise FcotError(f"file={file}: {getattr(error, 'strerror', None) or error}") from error
    if text.lstrip().startswith("["):
        rows: Any = enumerate(_json(text, f"file={file}"), 1)
    elif text.lstrip().startswith("{"):
        rows = ((number, _json(line, f"file={file}, line {number}")) for number, line in enumerate(text.split("\n"), 1) if line.strip())
    else:
        rows = ((number, {"question": line.strip()}) for number, line in enumerate(text.split("\n"), 1) if line.strip())
    for number, row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("question"), str):
            raise FcotError(f'file={file}, entry {number}: no "question"; an entry is {{"question": TEXT}}')
        yield row


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise FcotError(f"{where}: {error}") from error


def answer(options: Options, rows: Sequence[dict[str, Any]], loaded: Student | None = None) -> list[dict[str, Any]]:
    """Let the student answer the question of each row.

    Args:
        options: The options of the command.
        rows: Each has ``question``, and optionally ``answer``, the gold answer.
        loaded: The student, from :func:`load`; None loads it, unless it is API-backed.

    Returns:
        The rows, with ``completion``, ``prediction`` (None where the completion has no answer), ``complete`` and ``n_tokens`` added. Rows
        with ``answer`` also get ``correct``. With several samples per question, the completion is the first one with the most frequent
        prediction, and ``votes`` counts the predictions.

    Raises:
        FcotError: The folder is not a student of fcot, or a gold answer is not of the task's answer type.
    """
    from fcot.base.records import Problem
    from fcot.evaluation import scoring
    from fcot.prompts.answers import votes as count_votes
    from fcot.student.interface import read_interface

    folder = locate(Path(options.student))
    interface = read_interface(folder)
    limit = options.max_new_tokens or interface.max_new_tokens
    questions = [row["question"] for row in rows]
    if is_api_backed(folder):
        texts_by_question = _answer_by_server(folder, interface, questions, options, limit)
    else:
        texts_by_question = _answer_locally(loaded or load(folder, interface), interface, questions, options, limit)
    answers = []
    for number, (row, texts) in enumerate(zip(rows, texts_by_question, strict=True)):
        gold = interface.rule.gold(str(row["answer"])) if "answer" in row else ""
        if gold is None:
            raise FcotError(
                f"entry {number + 1}: the gold answer {row['answer']!r} is not of the answer type of {interface.task}, "
                f"{interface.rule.answer_type}"
            )
        problem = Problem(number, row["question"], gold)
        samples = [scoring.score(problem, text, complete, n_tokens, interface.format, interface.rule) for text, complete, n_tokens in texts]
        chosen = scoring.majority(samples)
        votes = {"votes": count_votes([sample.prediction for sample in samples])} if len(samples) > 1 else {}
        scored = {"correct": chosen.correct} if "answer" in row else {}
        answered = {name: getattr(chosen, name) for name in ("completion", "prediction", "complete", "n_tokens")}
        answers.append({**row, **answered, **votes, **scored})
    return answers


# For each question its sampled answers: the text, whether it ended before the token limit, its number of tokens.
Texts = list[list[tuple[str, bool, int]]]


def is_api_backed(folder: Path) -> bool:
    """Whether the student answers through a server instead of on this machine."""
    return (folder / "openai.json").exists()


def load(folder: Path, interface: StudentInterface) -> Student:
    """Load a student's model and tokenizer, onto the GPU if there is one."""
    import torch

    from fcot.student.loading import load_student

    student = load_student(str(folder), chat=interface.chat)
    student.model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    return student


def _answer_locally(student: Student, interface: StudentInterface, questions: Sequence[str], options: Options, limit: int) -> Texts:
    from fcot.decoding.engine import DecodingPrompt, Sampling
    from fcot.student.decoding import decode
    from fcot.student.tokenization import encode_questions

    ids, _, cut = encode_questions(student, interface.format, questions, interface.max_prompt_tokens)
    if cut:
        say(f"warning: {cut} questions lost their beginning: the student reads {interface.max_prompt_tokens} tokens")
    n = options.self_consistency
    prompts = [
        DecodingPrompt(prompt, limit, (options.seed, index, draw) if n > 1 else ()) for index, prompt in enumerate(ids) for draw in range(n)
    ]
    sampling = Sampling(options.temperature) if n > 1 else Sampling()
    with progress("predict", len(prompts), "answers") as bar:
        decoded = decode(student, prompts, max_tokens=32768, sampling=sampling, advance=bar.advance)
    answers = [(completion.text, completion.complete, completion.n_tokens) for completion in decoded]
    return [answers[start : start + n] for start in range(0, len(answers), n)]


def _answer_by_server(folder: Path, interface: StudentInterface, questions: Sequence[str], options: Options, limit: int) -> Texts:
    import asyncio

    from fcot.base.files import read_json
    from fcot.base.loop import run_async
    from fcot.llm import connect
    from fcot.llm.openai import key_fault
    from fcot.llm.requests import Request

    student, n = read_json(folder / "openai.json"), options.self_consistency
    key = options.api_key_env or student.get("api_key_env")
    if (fault := key_fault("", student["base_url"], key)) is not None:
        raise FcotError(f"{folder}: {fault}")
    settings = connect.Defaults(student["base_url"], key, student["max_tokens_parameter"])
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


def _show(answers: Sequence[dict[str, Any]], output: str | None) -> None:
    if output is not None:
        from fcot.base.files import write_jsonl

        write_jsonl(Path(output), answers)
        say(f"{len(answers)} answers written to {output}")
    else:
        for row in answers:
            print(f"{row['question']}\n  {row['completion'].strip()}\n  answer: {row['prediction']}", end="")
            print("" if row["complete"] else "   (cut at the length limit)")
            if "votes" in row:
                print(f"  votes: {', '.join(f'{count} for {prediction}' for prediction, count in row['votes'].items()) or 'none'}")
    verdicts = [row["correct"] for row in answers if "correct" in row]
    if verdicts:
        say(f"{sum(verdicts)} of {len(verdicts)} correct")


if __name__ == "__main__":
    main()
