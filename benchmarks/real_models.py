"""Measures real pretrained models; each command prints one table. Interrupted commands continue from the store in the output folder.

    python benchmarks/real_models.py prompts --model NAME --base-url URL --data FOLDER --output FOLDER
    python benchmarks/real_models.py validation OUTPUT_DIR

``prompts`` sends each one-request prompt to a chat model, greedily, with the first train problems of an arithmetic, a choice, a yes/no and
a free-text task. URL is an OpenAI-compatible server, such as llama.cpp's; the folder of ``--data`` holds ``multiarith.json`` and so on.
Choose the output folder outside the checkout.

``validation`` reads the runs of ``experiment=real/learning_rate``, and prints validation accuracy by setting, pooled over tasks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

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
from fcot.llm.generate import generate_completions
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
    options = parser.parse_args(arguments)
    options.command(options)


if __name__ == "__main__":
    main()
