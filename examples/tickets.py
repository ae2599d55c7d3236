"""The data of docs/getting_started.md, and a server that stands in for its teacher, so that the whole page runs without a key.

``examples/tickets.csv`` has 200 warehouse tickets as people write them: amounts with currency and thousands separators, line breaks,
commas, quotation marks, text in several scripts, one ticket without an answer, and two that contradict each other.

    python examples/tickets.py serve                         # http://127.0.0.1:8000/v1, until Ctrl-C
    python examples/tickets.py write more.csv --rows 250     # the same tickets and 50 further ones

The server solves the tickets, and is no better than a real one: every fifth answer has a mistake, it ignores ``n``, some requests get 429
or 502, and answers have a ``reasoning_content``. Its answers depend on the question and the seed of the request only.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SHOPS = ("Köln", "Łódź", "Saint-Étienne", "東京", "Αθήνα")
GOODS = ("crates of apples", 'boxes of 3/4" screws', "bags of coffee (1 kg)", "cartons of jalapeños", "rolls of tape, brown")
PEOPLE = ("Zoë", "Jürgen", "Søren", "Mónica", "Şule", "Anaïs")
UNANSWERED, CONTRADICTED = 62, 117  # rows: one without an answer; one whose question another row repeats with another answer
ERROR_RATE = 0.2
WORDINGS = (
    "So {} {} {} = {}.",
    "{} {} {} = {}.",
    "Then {} {} {} = {}.",
    "We get {} {} {} = {}.",
    "Now {} {} {} = {}.",
    "This is {} {} {} = {}.",
)
RATE_LIMIT_EVERY, GATEWAY_EVERY = 20, 100  # requests

Step = tuple[int, str, int]  # left operand, operator, right operand


@dataclass(frozen=True)
class Ticket:
    """A row of the file, and how to solve it."""

    id: str
    shop: str
    question: str
    answer: str
    steps: tuple[Step, ...]


def value_of(step: Step) -> int:
    """The result of a step."""
    left, operator, right = step
    return left * right if operator == "*" else left + right if operator == "+" else left - right


def ticket(number: int) -> Ticket:
    """The ticket of a row, which depends on nothing but its number."""
    rng = random.Random(f"ticket {number}")
    shop, goods, person = rng.choice(SHOPS), rng.choice(GOODS), rng.choice(PEOPLE)
    make = rng.choice((_stock, _payment, _pallets))
    question, steps, answer = make(rng, shop, goods, person)
    return Ticket(f"WH-{1000 + number}", shop, question, answer, steps)


def _stock(rng: random.Random, shop: str, goods: str, person: str) -> tuple[str, tuple[Step, ...], str]:
    start, arrived, damaged = rng.randint(900, 2500), rng.randint(100, 900), rng.randint(5, 90)
    question = (
        f'{person} writes: "We had {start:,} {goods} in {shop}; {arrived:,} more arrived, {damaged} of them damaged and thrown away." '
        "How many are there now?"
    )
    steps = (start, "+", arrived), (start + arrived, "-", damaged)
    left = value_of(steps[-1])
    return question, steps, rng.choice((f"{left:,}", f"{left}", f"{left:,} units"))


def _payment(rng: random.Random, shop: str, goods: str, person: str) -> tuple[str, tuple[Step, ...], str]:
    price, bought, rebate = rng.randint(12, 95), rng.randint(11, 60), rng.randint(5, 100)
    question = f"Invoice for {person}, {shop}:\n- {bought} {goods} at ${price} each\n- rebate: ${rebate}\nWhat has to be paid, in dollars?"
    steps = (bought, "*", price), (bought * price, "-", rebate)
    due = value_of(steps[-1])
    return question, steps, rng.choice((f"${due:,}", f"$ {due}", f"{due:,}.00 USD"))


def _pallets(rng: random.Random, shop: str, goods: str, person: str) -> tuple[str, tuple[Step, ...], str]:
    pallets, each, sold = rng.randint(4, 40), rng.randint(20, 80), rng.randint(10, 70)
    question = f"In {shop}, {person} counts {pallets} pallets with {each} {goods} on each, and sells {sold}. How many remain?"
    steps = (pallets, "*", each), (pallets * each, "-", sold)
    left = value_of(steps[-1])
    return question, steps, rng.choice((f"{left:,}", f"{left}"))


def rows(n: int) -> list[Ticket]:
    """The first ``n`` rows of the file. A row does not depend on ``n``."""
    tickets = [ticket(number) for number in range(n)]
    if n > UNANSWERED:
        tickets[UNANSWERED] = Ticket(**{**vars(tickets[UNANSWERED]), "answer": ""})
    if n > CONTRADICTED:
        first = tickets[CONTRADICTED - 100]
        wrong = f"{value_of(first.steps[-1]) + 10:,}"
        tickets[CONTRADICTED] = Ticket(tickets[CONTRADICTED].id, first.shop, first.question, wrong, first.steps)
    return tickets


def write(path: Path, n: int) -> None:
    """Write the first ``n`` rows as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("ticket", "shop", "question", "answer"))
        writer.writerows((row.id, row.shop, row.question, row.answer) for row in rows(n))


# --- the server -------------------------------------------------------------------------------------------------------


def completion(prompt: str, seed: int) -> tuple[str, str]:
    """Thoughts and answer to a prompt. One answer in five has a mistake, which depends on the prompt and the seed."""
    steps = _SOLUTIONS.get(_words(prompt.partition("\n\nFirst write")[0]))
    if steps is None:
        return "This is no ticket of mine.", "I only know the tickets of examples/tickets.py."
    rng = random.Random(f"{seed} {prompt}")
    results = [value_of(step) for step in steps]
    if rng.random() < ERROR_RATE:
        results[-1] += 10
    sentences = [rng.choice(WORDINGS).format(*step, result) for step, result in zip(steps, results, strict=True)]
    trigger = re.search(r'begins with "([^"]+)"', prompt)
    conclusion = trigger[1] if trigger else "Therefore, the answer is"
    return f"A ticket with {len(steps)} steps.", f"{' '.join(sentences)} {conclusion} {results[-1]:,}."


def _words(text: str) -> str:
    return " ".join(text.split())


_SOLUTIONS = {_words(row.question): row.steps for row in rows(2000)}


class _Handler(BaseHTTPRequestHandler):
    """Answers ``/v1/chat/completions``."""

    protocol_version = "HTTP/1.1"
    n_requests = 0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).n_requests += 1
        if self.n_requests % GATEWAY_EVERY == 0:
            self._reply(502, {"error": {"message": "Bad gateway"}})
        elif self.n_requests % RATE_LIMIT_EVERY == 0:
            self._reply(429, {"error": {"message": "Slow down", "code": "rate_limit_exceeded"}}, {"Retry-After": "0.1"})
        else:
            self._reply(200, self._answer(body))

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["messages"][-1]["content"]
        thoughts, answer = completion(prompt, body.get("seed") or 0)
        message = {"role": "assistant", "reasoning_content": thoughts, "content": answer}
        usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": (len(thoughts) + len(answer)) // 4}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"id": "ticket", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice], "usage": usage}

    def _reply(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    log_message: Callable[..., None] = lambda *_: None


def server(port: int) -> ThreadingHTTPServer:
    """The server, which does not serve yet; port 0 chooses a free one."""
    return ThreadingHTTPServer(("127.0.0.1", port), _Handler)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve").add_argument("--port", type=int, default=8000)
    writing = commands.add_parser("write")
    writing.add_argument("file", type=Path)
    writing.add_argument("--rows", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.command == "write":
        write(arguments.file, arguments.rows)
        return
    with server(arguments.port) as serving:
        print(f"http://127.0.0.1:{serving.server_port}/v1", flush=True)
        serving.serve_forever()


if __name__ == "__main__":
    main()
