"""A process that buys completions from a priced server: ``python tests/paying.py STORE URL ...``. Prints its usage as JSON."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from teachers import PROMPT, plan, problems

from fcot.base.errors import FcotError
from fcot.llm.budget import SharedBudget
from fcot.llm.generate import Generated, generate_completions
from fcot.llm.money import Price
from fcot.llm.openai import OpenAIModel
from fcot.llm.server import Server
from fcot.llm.store.folder import StoreFolder
from fcot.llm.throttle import Throttle

PRICE = Price(2.0, 8.0, 0.5)
ONE_STEP = replace(PROMPT, two_steps=False, rationale_tokens=40)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("url")
    parser.add_argument("--budget", type=float)
    parser.add_argument("--shared", type=float, help="a budget in dollars that all processes with the same --ledger share")
    parser.add_argument("--ledger", type=Path)
    parser.add_argument("--run", default="run")
    parser.add_argument("--problems", type=int, default=60)
    parser.add_argument("--diversity", type=int, default=4)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--timeout", type=float, default=20.0)
    parser.add_argument(
        "--without-rows-before-sending",
        action="store_true",
        help="do not reserve a request's cost before sending it: the budget tests must then fail",
    )
    options = parser.parse_args()
    if options.without_rows_before_sending:
        from fcot.llm import purchase

        purchase._Tries.sending = lambda self: None  # type: ignore[method-assign]
    server = Server(
        model="fake", model_id="fake", chat=True, temperature=0.7, parameters={}, max_tokens_parameter="max_tokens",
        base_url=options.url, timeout_s=options.timeout,
    )  # fmt: skip
    teacher = OpenAIModel(server, Throttle(options.concurrency, None, None), 1, 3)
    shared = SharedBudget(options.ledger, options.shared, "hydra.launcher.budget_usd") if options.shared else None
    purchase_plan = plan(
        teacher, options.diversity, ONE_STEP, options.run, price=PRICE, budget_usd=options.budget, shared_budget=shared,
    )  # fmt: skip
    folder, training_problems = StoreFolder(options.store), problems(options.problems)
    print("buying", flush=True)
    message = None
    try:
        generate_completions(purchase_plan, folder, training_problems)
    except FcotError as error:
        message = str(error)
    print(json.dumps(Generated(purchase_plan, folder.refresh(), training_problems).usage() | {"message": message}))


if __name__ == "__main__":
    main()
