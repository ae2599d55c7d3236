"""Measures real pretrained models; each command prints one table. Interrupted commands continue from the store in the output folder.

    python benchmarks/real_models.py prompts --model NAME --base-url URL --data FOLDER --output FOLDER
    python benchmarks/real_models.py validation OUTPUT_DIR
    python benchmarks/real_models.py scores --model NAME --base-url URL --folder FOLDER --data FOLDER --output FOLDER

``prompts`` sends each one-request prompt to a chat model, greedily, with the first train problems of an arithmetic, a choice, a yes/no and
a free-text task. URL is an OpenAI-compatible server, such as llama.cpp's; the folder of ``--data`` holds ``multiarith.json`` and so on.
Choose the output folder outside the checkout.

``validation`` reads the runs of ``experiment=real/learning_rate``, and prints validation accuracy by setting, pooled over tasks.

``scores`` compares the distributions that a server gives while it writes rationales with those of the same weights in transformers, at the
same tokens; ``--folder`` has the weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fcot.base.console import progress
from fcot.base.files import read_json
from fcot.base.resources import CONF
from fcot.base.run_folder import RunDirectory
from fcot.config.checks import to_config
from fcot.config.schema import register_schemas
from fcot.curation.filters import Rules, curate
from fcot.curation.outcomes import Outcomes
from fcot.evaluation.statistics import wilson_interval
from fcot.llm.distributions import TopTokens
from fcot.llm.generate import generate_completions
from fcot.llm.score import NAME, score, scoring_plan, stored_score
from fcot.runs.run import Run, resolve

TASKS = ("multiarith", "date_understanding", "coin_flip", "last_letter_concatenation")
PROMPTS = ("zero_shot_cot_chat", "reasoning_chat")


def run_of(output: Path, *overrides: str) -> Run:
    """The run of these overrides of ``fcot.run``."""
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolve(to_config(compose("config", [f"output_dir={output}", *overrides])))


def prompts(options: argparse.Namespace) -> None:
    """Print shares of empty, cut, unanswered and correct completions by task and prompt, and their mean lengths."""
    print("| task | prompt | n | empty % | cut % | no answer % | correct % | words of a rationale | tokens of a completion |")
    print("|---|---|---|---|---|---|---|---|---|")
    for task in options.tasks:
        for prompt in options.prompts:
            run = run_of(
                options.output, f"dataset={task}", f"dataset.path={options.data / task}.json", f"dataset.limit={options.n}",
                "teacher=openai", f"teacher.model={options.model}", f"teacher.base_url={options.base_url}", "teacher.timeout_s=900",
                "teacher.concurrency=4", f"prompt={prompt}", "diversity=1", "until=generate", *options.overrides,
            )  # fmt: skip
            problems = run.select(run.split.train)
            with progress("generate", len(problems), "completions") as bar:
                completions = generate_completions(run.plan, run.store, problems, bar.advance, watch=bar.watch)
            outcomes, words = Outcomes(), 0
            for completion in completions:
                (row,) = curate([completion], run.problems, run.task.rule, run.prompt.read, Rules(()))
                outcomes.count(completion, row)
                words += len(row.rationale.split())
            n = outcomes.total
            counts = (outcomes.empty, outcomes.cut, outcomes.unanswered, outcomes.correct)
            shares = " | ".join(f"{100 * count / n:.0f}" for count in counts)
            tokens = (completions.usage()["used_completion_tokens"] or 0) / n
            print(f"| {task} | {prompt} | {n} | {shares} | {words / n:.0f} | {tokens:.0f} |", flush=True)


def validation(options: argparse.Namespace) -> None:
    """Print validation accuracy at the chosen checkpoint, by setting and task, and pooled over the tasks."""
    counts: dict[tuple[str, ...], dict[str, tuple[int, int]]] = {}
    for file in sorted(options.output.glob("runs/*/config.yaml")):
        directory = RunDirectory(file.parent)
        if not directory.stage("train").exists():
            continue
        config, trained = OmegaConf.load(file), read_json(directory.stage("train"))
        n = len(read_json(directory.split)["validation"])
        setting = tuple(str(OmegaConf.select(config, key)) for key in options.by)
        correct, total = counts.setdefault(setting, {}).get(config.dataset.name, (0, 0))
        counts[setting][config.dataset.name] = (correct + round(n * trained["validation_accuracy"]), total + n)
    tasks = sorted({task for by_task in counts.values() for task in by_task})
    print("| " + " | ".join([*options.by, *tasks, "pooled, 95 %"]) + " |")
    print("|" + "---|" * (len(options.by) + len(tasks) + 1))
    for setting, by_task in sorted(counts.items()):
        cells = [f"{100 * by_task[task][0] / by_task[task][1]:.1f} of {by_task[task][1]}" if task in by_task else "" for task in tasks]
        correct, total = (sum(pair[at] for pair in by_task.values()) for at in (0, 1))
        low, high = wilson_interval(correct, total)
        pooled = f"{100 * correct / total:.1f} ({100 * low:.1f}-{100 * high:.1f}) of {total}"
        print("| " + " | ".join([*setting, *cells, pooled]) + " |")


def scores(options: argparse.Namespace) -> None:
    """Print how far a server's distributions are from those of transformers at the tokens of its rationales."""
    common = [
        f"dataset={options.task}", f"dataset.path={options.data / options.task}.json", f"dataset.limit={options.n}",
        "teacher.endpoint=chat", f"teacher.top_logprobs={options.k}", "prompt=reasoning_chat", "diversity=1", "until=generate",
    ]  # fmt: skip
    server = run_of(
        options.output, *common, "teacher=openai", f"teacher.model={options.model}", f"teacher.base_url={options.base_url}",
        "teacher.api_key_env=none", "teacher.timeout_s=900", "teacher.concurrency=4", f"teacher.tokenizer={options.folder}",
    )  # fmt: skip
    problems = server.select(server.split.train)
    with progress("generate", len(problems), "completions") as bar:
        completions = generate_completions(server.plan, server.store, problems, bar.advance)
    texts = [replace(server.problems[made.sample_index], rationale=made.rationale) for made in completions if made.rationale]
    store = server.store.refresh()
    of_server = [stored_score(server.plan, store, problem) for problem in texts]
    local = run_of(options.output, *common, "teacher=hf", f"teacher.model={options.model}", f"teacher.path={options.folder}")
    of_local = score(scoring_plan(local.plan, 0.0), local.store_of(NAME), texts)
    pairs = [pair for a, b in zip(of_server, of_local, strict=True) if a is not None and b is not None for pair in _positions(a, b)]
    same_first, differences, shared = (np.array(column) for column in zip(*pairs, strict=True))
    print(f"{len(texts)} rationales, {len(pairs):,} tokens; {sum(a is None for a in of_server)} without the server's distributions")
    print(f"the likeliest token is the same at {100 * same_first.mean():.1f} %")
    print(f"tokens of the server's {options.k} that are among transformers' {options.k}: {100 * shared.mean():.1f} %")
    mean, high = differences.mean(), np.quantile(differences, 0.99)
    print(f"difference of the written token's log-probability: mean {mean:.3f}, 99th percentile {high:.3f}")


def _positions(first: TopTokens, second: TopTokens) -> Iterator[tuple[bool, float, float]]:
    """At each token: whether the likeliest one is the same, the difference of the token's log-probability, the share of equal tokens."""
    for position in range(min(len(first), len(second))):
        token = first.tokens[position]
        if token != second.tokens[position]:
            return  # from here on the contexts differ
        a, b = (dict(zip(top.ids[position].tolist(), top.logprobs[position].tolist(), strict=True)) for top in (first, second))
        if token in a and token in b:
            yield max(a, key=a.__getitem__) == max(b, key=b.__getitem__), abs(a[token] - b[token]), len(a.keys() & b.keys()) / len(a)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    subcommand = commands.add_parser("prompts")
    subcommand.set_defaults(command=prompts)
    subcommand.add_argument("--model", required=True)
    subcommand.add_argument("--base-url", required=True)
    subcommand.add_argument("--data", type=Path, required=True)
    subcommand.add_argument("--output", type=Path, required=True)
    subcommand.add_argument("-n", type=int, default=100, help="train problems per task")
    subcommand.add_argument("--tasks", nargs="+", default=TASKS)
    subcommand.add_argument("--prompts", nargs="+", default=PROMPTS)
    subcommand.add_argument("--overrides", nargs="*", default=[], help="further overrides of fcot.run")
    subcommand = commands.add_parser("validation")
    subcommand.set_defaults(command=validation)
    subcommand.add_argument("output", type=Path)
    subcommand.add_argument("--by", nargs="+", default=["student.lora.rank", "trainer.lr", "trainer.batch_size", "trainer.max_steps"])
    subcommand = commands.add_parser("scores")
    subcommand.set_defaults(command=scores)
    for option in ("--model", "--base-url"):
        subcommand.add_argument(option, required=True)
    for option in ("--folder", "--data", "--output"):
        subcommand.add_argument(option, type=Path, required=True)
    subcommand.add_argument("--task", default="multiarith")
    subcommand.add_argument("-n", type=int, default=24, help="problems of the task, of which the train problems are used")
    subcommand.add_argument("-k", type=int, default=20)
    options = parser.parse_args(arguments)
    options.command(options)


if __name__ == "__main__":
    main()
