"""The documentation is correct: its commands are accepted, its links resolve, and its tables name the existing choices."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zygote
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from identities import run_of, write_files
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fcot import check as fcot_check
from fcot import cli, export, ls, predict, report, rm, store, sweep
from fcot.base.errors import FcotError
from fcot.config.overrides import prepare
from fcot.config.schema import register_schemas
from fcot.curation.filters import CONCISE, FILTERS
from fcot.tasks.reading import FORMATS

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in PAGES}
WRITTEN = {name: text for name, text in TEXTS.items() if name != "docs/reference.md"}  # not generated
MAKEFILE = (ROOT / "Makefile").read_text()
LARGEST_README = 10_000  # bytes
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
EXAMPLE = re.compile(r"^<!-- (file|before|after|replace|run)(?:: (.+?))? -->\n```\w*\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
WRONG = re.compile(r"^<!-- wrong -->\n(```\n.*?^```\n)", re.MULTILINE | re.DOTALL)  # a command whose message is shown
ENTRY = re.compile(
    r"^(?:\w+=\S* )*(?:(?:srun|sbatch|torchrun)\b.*? )?"
    r"(?:python -m fcot|fcot(?= )|make \w|launch/|\S*-m fcot\.run|python (?:benchmarks|examples|docs)/|benchmarks/)"
)


# --- code on the pages ------------------------------------------------------------------------------------------------


def code_of(text: str) -> list[str]:
    """All code of a page: lines of its blocks and inline code, without the examples that a test runs."""
    text = EXAMPLE.sub("", text)
    blocks = [line for block in FENCE.finditer(text) for line in join_lines(block[3])]
    return blocks + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def join_lines(block: str) -> list[str]:
    """The lines of a block; lines continued with a backslash are joined."""
    return re.sub(r"\\\n\s*", "", block).splitlines()


def commands_of(text: str) -> Iterator[str]:
    """The commands on a page that call one of the project's entry points."""
    for line in code_of(text):
        for part in re.split(r"\s&&\s", line.strip().removeprefix("$ ")):
            if ENTRY.match(part):
                yield part


COMMANDS = sorted({command: name for name, text in TEXTS.items() for command in commands_of(WRONG.sub("", text))}.items())
WRONG_COMMANDS = [command for text in TEXTS.values() for block in WRONG.findall(text) for command in commands_of(block)]


# --- commands ---------------------------------------------------------------------------------------------------------


class InvalidCommand(Exception):
    """A command that its entry point would reject."""


class Parsed(Exception):
    """The arguments are valid; ends the program before it does anything."""


@pytest.fixture
def only_parsing(monkeypatch):
    """Every program ends after it has parsed its arguments."""
    parse = argparse.ArgumentParser.parse_args

    def parsed(self, args=None, namespace=None):
        raise Parsed(parse(self, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)


def compose_overrides(overrides: list[str]) -> None:
    """Compose the configuration of a run's command, its launcher included; of a sweep, the first point."""
    register_schemas()
    no_overrides = {"-m", "--multirun", "--help", "--cfg", "job", "--config-dir", "FOLDER"}
    arguments = [argument for argument in prepare(overrides) if argument not in no_overrides]
    points = [re.sub(r"=([^=,\[({'\"]*),.*$", r"=\1", argument) for argument in arguments]  # the first point of a sweep
    points = ["hydra/launcher=slurm" if point == "hydra/launcher=mysite" else point for point in points]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        OmegaConf.to_container(compose("config", points, return_hydra_config=True).hydra.launcher, resolve=False)


def parsed_by_argparse(main, arguments: list[str]) -> argparse.Namespace:
    """The arguments as an entry point's own parser reads them."""
    try:
        main(arguments)
    except Parsed as options:
        return options.args[0]
    except SystemExit as error:
        raise InvalidCommand(f"exit code {error.code}") from error
    raise InvalidCommand("parsed nothing")


def check_script(path: Path, arguments: list[str]) -> None:
    """Check a script's arguments with its own parser, or without one whether its text contains the words."""
    text = path.read_text()
    if "argparse" in text:

        def main(words: list[str]) -> None:
            sys.argv = [str(path), *words]
            runpy.run_path(str(path), run_name="__main__")

        before, folder = sys.argv, str(path.parent)
        sys.path.insert(0, folder)
        try:
            parsed_by_argparse(main, arguments)
        finally:
            sys.argv = before
            sys.path.remove(folder)
        return
    for word in arguments:
        if not (re.fullmatch(r"[\d.]+|[A-Z_]+|\S*/\S*", word) or re.search(rf"\b{re.escape(word)}\b", text)):
            raise InvalidCommand(f"{path.name} does not know {word}")


def check_launch_script(path: Path, arguments: list[str], environment: dict[str, str], folder: Path) -> None:
    """Check a script of ``launch/``: compose the runs that it would start."""
    if path.name in ("paper_a", "paper_b"):
        calls = folder / "calls"
        stub = folder / "python"
        stub.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" >> {calls}\nprintf "\\n" >> {calls}\n')
        stub.chmod(0o755)
        subprocess.run([path, *arguments], env=os.environ | environment | {"PYTHON": str(stub)}, check=True, capture_output=True)
        for call in calls.read_text().splitlines() if calls.exists() else []:
            compose_overrides(call.rstrip("\0").split("\0")[2:])
        assert calls.exists() or "--help" in arguments
    elif path.name == "local_slurm":
        check_script(path, arguments)
    elif arguments != ["--help"]:
        if "--" not in arguments[1:]:
            raise InvalidCommand("usage: MODEL [options] -- OVERRIDES")
        compose_overrides(["teacher=openai", "teacher.model=m", "teacher.base_url=http://127.0.0.1:9/v1",
                  *[word for word in arguments[arguments.index("--") + 1 :] if word != "-m"]])  # fmt: skip


def check_fcot_command(name: str, arguments: list[str]) -> None:
    """Check a command of ``fcot`` with its own parser."""
    if name in ("--version", "--help"):
        return
    if name not in cli.COMMANDS:
        raise InvalidCommand(f"fcot {name}: no such command")
    if "--help" in arguments or not arguments:
        return
    if name in ("run", "prefetch"):
        compose_overrides(arguments)
    elif name == "check":
        path, overrides = fcot_check.parse(arguments)
        compose_overrides([*(["dataset=custom"] if path else []), *overrides])
    elif name == "predict":
        predict.parse([f"file={word}" if Path(word).suffix in FORMATS else word for word in arguments])
    elif name == "evaluate":
        given = [word for word in arguments[1:] if "=" in word]
        compose_overrides(["student=causal", "student.hub_id=owner/name", "method=as_trained", *given])
    else:
        mains = {"export": export.main, "ls": ls.main, "report": report.main, "rm": rm.main, "sweep": sweep.main, "store": store.main}
        options = parsed_by_argparse(mains[name], arguments)
        if getattr(options, "overrides", None):
            compose_overrides(options.overrides)
        if getattr(options, "parameters", None):
            launcher = OmegaConf.load(CONF / "hydra/launcher/slurm.yaml")
            sweep._launcher_parameters(OmegaConf.to_container(launcher), options.parameters)


def check(command: str, folder: Path) -> None:
    """Raise an error for a command that its entry point would reject."""
    words = shlex.split(command.replace("<", "").replace(">", ""), comments=True)
    environment = {}
    while re.match(r"[A-Z_]+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    while words[0] in ("srun", "sbatch", "torchrun"):  # skip the options of these programs
        starts = [i for i, word in enumerate(words) if word == "python" or word.startswith("launch/") or word == "-m"]
        words = ["python"] * (words[starts[0]] == "-m") + words[starts[0] :]
    program, *arguments = words
    if program.startswith(("launch/", "benchmarks/")) and not arguments:  # a file name in the text
        assert (ROOT / program).exists(), program
        return
    if program == "make":
        names = [word for word in arguments if "=" not in word]
        assert all(re.search(rf"^{name}:", MAKEFILE, re.MULTILINE) for name in names), f"no such target: {names}"
    elif program.startswith("launch/"):
        check_launch_script(ROOT / program, arguments, environment, folder)
    elif program.startswith("benchmarks/"):
        check_script(ROOT / program, arguments)
    elif program == "fcot":
        check_fcot_command(arguments[0], arguments[1:])
    elif arguments[0] == "-m":
        module, *module_arguments = arguments[1:]
        if module == "fcot":
            module, module_arguments = f"fcot.{module_arguments[0]}", module_arguments[1:]
        check_fcot_command(module.removeprefix("fcot."), module_arguments)
    else:
        check_script(ROOT / arguments[0], [word for word in arguments[1:] if word != ">" and not word.endswith("reference.md")])


@pytest.mark.parametrize(("command", "page"), COMMANDS, ids=[f"{page}: {command}"[:120] for command, page in COMMANDS])
def test_every_command_is_accepted_by_its_entry_point(command, page, tmp_path, only_parsing):
    check(command, tmp_path)


@pytest.mark.parametrize("command", [
    "python -m fcot.run trainer.learning_rate=3", "python -m fcot.run student=t5_huge", "python -m fcot.run -m seed=0,1 trainer.lrs=3",
    "python -m fcot.run -m hydra/launcher=slurm hydra.launcher.partitions=gpu", "python -m fcot.report --pdf outputs/runs",
    "python -m fcot.sweep restart outputs/sweeps/x", "python -m fcot.sweep rerun outputs/sweeps/x memory=64",
    "python -m fcot.store list --cost prices.yaml", "python -m fcot.store export D.json teacher=opanai",
    "python -m fcot.predict folder=outputs/runs/x/student 2+2", "python -m fcot.prefetch student=t5_hug",
    "fcot evaluate outputs/runs/x/student dataset=swamp", "fcot export outputs/runs/x samples.jsonl --format chat",
    "fcot trian", "fcot report --wandbs x", "fcot check --all mine.csv", "fcot check mine.csv dataset.decimals=comma",
    "make demos", "launch/paper_a teacher.models=m", "DRY=1 launch/paper_b trainer.device=8", "launch/local_slurm start",
    "launch/llama_cpp MODEL.gguf -c 16384 dataset=svamp", "launch/vllm MODEL -- dataset=swamp",
    "sbatch --partition=gpu launch/vllm MODEL -- datasets=svamp", "python benchmarks/curation.py arithmetics DATA",
    "python benchmarks/teacher.py speed", "srun python -m fcot.run trainer.device=4", "torchrun --nnodes 2 -m fcot.run trainer.node=2",
    *WRONG_COMMANDS,
])  # fmt: skip
def test_an_invalid_command_is_rejected(command, tmp_path, only_parsing):
    with pytest.raises((InvalidCommand, FcotError, HydraException, OmegaConfBaseException, AssertionError)):
        check(command, tmp_path)


def test_every_entry_point_is_documented():
    documented = " ".join(command for text in WRITTEN.values() for command in commands_of(text))
    assert all(f"fcot.{name}" in documented or f"fcot {name}" in documented for name in cli.COMMANDS)
    assert all(path.name in documented for path in (ROOT / "launch").iterdir() if path.is_file())
    targets = re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE)
    assert all(re.search(rf"`make {target}`|^make {target}\b", "\n".join(WRITTEN.values()), re.MULTILINE) for target in targets)
    assert {name for command in ("store", "sweep") for name in (store if command == "store" else sweep)._HELP} - {"job"} <= set(
        re.findall(r"[\w-]+", documented)
    )


# --- the examples of extending ---------------------------------------------------------------------------------------

RIDDLES = [{"problem": f"What is {n} plus {n + 1}?", "result": str(2 * n + 1)} for n in range(30)]


def edit(root: Path, kind: str, target: str, text: str) -> None:
    """Write a file, or change one of its lines. ``target``: the file, and for a change ``FILE: START OF LINE``."""
    name, _, line = target.partition(": ")
    path = root / name
    if kind == "file":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return
    lines = path.read_text().splitlines(keepends=True)
    (line_number,) = (number for number, content in enumerate(lines) if content.startswith(line))
    lines[line_number : line_number + 1] = {
        "before": [text, lines[line_number]],
        "after": [lines[line_number], text],
        "replace": [text],
    }[kind]
    path.write_text("".join(lines))


def test_the_examples_of_extending_run(tmp_path):
    """In a copy of the package; the commands run in the order of the page."""
    for folder in ("fcot", "conf", "launch"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "riddles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in RIDDLES))
    sums = [{"question": row["problem"], "answer": row["result"]} for row in RIDDLES]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    texts = {row["problem"]: [f"It is {row['result']}. The answer is {row['result']}."] * 2 for row in RIDDLES}
    (tmp_path / "rationales.json").write_text(json.dumps(texts))
    (tmp_path / "prompt.txt").write_text("{question} End with: {trigger}")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{tmp_path / 'launch'}"}
    examples = EXAMPLE.findall(TEXTS["docs/extending.md"])
    for kind, target, text in (example for example in examples if example[0] != "run"):
        edit(tmp_path, kind, target, text)
    commands = [line for kind, _, text in examples if kind == "run" for line in text.splitlines()]
    assert len(commands) >= 8
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "python"
        environment["OPENAI_API_KEY"] = "none"
        process = zygote.run(arguments, cwd=tmp_path, env=environment)
        assert process.returncode == 0, f"{command}\n{process.stdout[-1000:]}{process.stderr[-3000:]}"


# --- the journey of getting started ------------------------------------------------------------------------------------


def shown_commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a page's blocks that begins with ``$``, and the output that the page shows for it."""
    for block in FENCE.finditer(text):
        lines = join_lines(block[3])
        starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
        for start, end in itertools.pairwise([*starts, len(lines)]):
            yield lines[start].removeprefix("$ "), [line for line in lines[start + 1 : end] if line.strip()]


def missing_line(shown: list[str], printed: str) -> str | None:
    """The first shown line that a command did not print behind the lines before it. ``...`` stands for any text, also for lines."""
    lines = iter(line.rstrip() for line in printed.splitlines())
    return next((line for line in shown if line.strip() != "..." and not any(_matches(line, other) for other in lines)), None)


def _matches(shown: str, line: str) -> bool:
    start, dots, _ = shown.partition("...")
    return line.startswith(start) if dots else line == shown


def test_the_commands_of_getting_started_print_what_the_page_shows(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from tickets import server

    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    section = TEXTS["docs/getting_started.md"].partition("## Run your own data")[2].partition("## More commands")[0]
    environment = os.environ | {"NO_PROXY": "127.0.0.1", "COLUMNS": "200"}
    environment.pop("FCOT_OUTPUT_DIR", None)
    with server(0) as teacher:
        threading.Thread(target=teacher.serve_forever, daemon=True).start()
        commands = list(shown_commands(section))
        assert len(commands) >= 9
        for command, shown in commands:
            program, *words = shlex.split(command.replace(":8000", f":{teacher.server_port}"))
            process = zygote.run(["-m", "fcot", *words] if program == "fcot" else words, cwd=tmp_path, env=environment)
            assert process.returncode == int(command == "fcot check examples/tickets.csv"), f"{command}\n{process.stderr[-3000:]}"
            messages = process.stderr + process.stdout
            missing = missing_line(shown, messages)
            assert missing is None, f"{command}\nis not in its output: {missing}\n{messages}"
        teacher.shutdown()


def test_the_readme_shows_a_part_of_getting_started():
    whole = dict(shown_commands(TEXTS["docs/getting_started.md"]))
    part = list(shown_commands(TEXTS["README.md"].partition("## Your own data")[2].partition("## Choices")[0]))
    assert len(part) >= 3
    for command, shown in part:
        assert missing_line(shown, "\n".join(whole[command])) is None, command


# --- the table of what is bought or trained again ---------------------------------------------------------------------

SERVER = ("dataset.n_problems=40", "teacher=openai", "teacher.model=m", "teacher.base_url=http://127.0.0.1:9/v1", "diversity=8")
TWO = (*SERVER, "prompt=zero_shot_cot")
OWN = ("dataset=custom", "dataset.path=FILES/rows.jsonl", "dataset.answer_type=number", *SERVER[1:])
FEW = ("dataset=custom", "dataset.path=FILES/fewer.jsonl", "dataset.answer_type=number", *SERVER[1:])
PRICED = (*SERVER, "teacher.prices=FILES/prices.yaml")
CASES = {  # first cell of the table's row -> pairs of a run's overrides and the changed override
    "`teacher.model`, `teacher.model_id`": [(SERVER, "teacher.model=n"), (SERVER, "teacher.model_id=n")],
    "`teacher.temperature`, or a sampling parameter in `teacher.parameters`": [
        (SERVER, "teacher.temperature=1"), (SERVER, "teacher.parameters={top_p: 0.5}"),
    ],
    "`teacher.endpoint`": [(TWO, "teacher.endpoint=completions")],
    "`prompt=...`, the prompt's text, its exemplars, `prompt.stop`, `prompt.system`": [
        (SERVER, "prompt.system=Be brief."),
        (SERVER, "prompt=zero_shot_cot"), (SERVER, 'prompt.template="Q: {question}"'), (SERVER, "prompt.stop=[x]"),
        ((*SERVER, "prompt=few_shot_cot", "prompt.exemplars=FILES/exemplars1.jsonl"), "prompt.exemplars=FILES/exemplars2.jsonl"),
    ],
    "`prompt.rationale_tokens`": [(SERVER, "prompt.rationale_tokens=99")],
    "`prompt.answer_tokens`, of a prompt with two requests": [(TWO, "prompt.answer_tokens=99")],
    "`prompt.name`": [(SERVER, "prompt.name=other")],
    "`dataset.name` of a custom data set": [(OWN, "dataset.name=other")],
    "`diversity=1` to `diversity=8`": [((*SERVER[:-1], "diversity=1"), "diversity=8")],
    "`diversity=8` to `diversity=64`": [(SERVER, "diversity=64")],
    "`diversity=64` to `diversity=8`": [((*SERVER[:-1], "diversity=64"), "diversity=8")],
    "`redraw_rationales=true` with `seed=0,1,2`": [((*SERVER, "redraw_rationales=true"), "seed=1")],
    "rows added to a data file": [(FEW, "dataset.path=FILES/rows.jsonl")],
    "rows in another order": [(OWN, "dataset.path=FILES/reversed.jsonl")],
    "the text of a question": [(OWN, "dataset.path=FILES/reworded.jsonl")],
    "`split-mode`, `split_mode.*`, `dataset.limit`": [(OWN, "split-mode=template"), (OWN, "split_mode.train_fraction=0.9")],
    "`dataset.group_column`, `dataset.split_column`": [(OWN, "dataset.group_column=group"), (OWN, "dataset.split_column=side")],
    "`dataset.normalize_answers`, `dataset.decimal`, where it changes an answer": [
        ((*OWN, "dataset.answer_column=price"), f"dataset.{change}") for change in ("normalize_answers=true", "decimal=comma")
    ],
    "`dataset.index_column`, `dataset.on_invalid`": [(OWN, "dataset.index_column=ticket"), (OWN, "dataset.on_invalid=skip")],
    "`trainer=paper`, `trainer.selection=last`, an API-backed student": [(SERVER, "trainer=paper"), (SERVER, "trainer.selection=last")],
    "a corrected gold answer": [(OWN, "dataset.answer_column=wrong")],
    "`dataset.path` to the same rows elsewhere": [(OWN, "dataset.path=FILES/copy.jsonl")],
    "`prompt.numbers`, `prompt.thinking`": [(SERVER, "prompt.numbers=paper"), (SERVER, "prompt.thinking=keep")],
    "`curation=...`, a setting of a filter that is used": [
        (SERVER, "curation=strict"), ((*SERVER, "curation=strict"), "curation.max_words=9"),
    ],
    "a setting of a filter that is not used": [(SERVER, "curation.max_words=9")],
    "`curation.max_per_problem`, `curation.choose_by`": [
        (SERVER, "curation.max_per_problem=2"), ((*SERVER, "curation.max_per_problem=2"), "curation.choose_by=rsr"),
    ],
    "`student=...`, `student.*`, `objective`, `trainer.lr` and other training keys": [
        (SERVER, "student=tiny_t5"), (SERVER, "student.width=128"), (SERVER, "trainer.lr=0.1"),
    ],
    "`seed`": [(SERVER, "seed=1")],
    "`teacher=openai` to `teacher=openai_batch`": [(SERVER, "teacher.batch=true")],
    "`teacher.base_url`, `teacher.api_key_env`, `teacher.headers`": [
        (SERVER, f"teacher.{change}") for change in ("base_url=http://127.0.0.1:8/v1", "api_key_env=none", "headers={X-Team: PATH}")
    ],
    "`teacher.concurrency`, rate limits, timeouts, retries, `teacher.max_choices_per_request`": [
        (SERVER, f"teacher.{key}=7") for key in
        ("concurrency", "requests_per_minute", "tokens_per_minute", "timeout_s", "max_retries", "max_choices_per_request")
    ],
    "`teacher.budget_usd`, `teacher.prices`": [(SERVER, "teacher.prices=FILES/prices.yaml"), (PRICED, "teacher.budget_usd=5")],
    "`trainer.devices`, `trainer.nodes`, `trainer.strategy`, `trainer.eval_batch_tokens`, `trainer.checkpoint_every_s`": [
        (SERVER, f"trainer.{change}") for change in
        ("devices=2", "nodes=2", "strategy=fsdp", "eval_batch_tokens=99", "checkpoint_every_s=5")
    ],
    "`trainer.micro_batches`, `trainer.packing`, `trainer.compile`, `trainer.gradient_checkpointing`, `trainer.precision`": [
        (SERVER, f"trainer.{change}") for change in
        ("micro_batches=2", "packing=true", "compile=true", "gradient_checkpointing=true", "precision=bf16-mixed")
    ],
    "`logger=...`, `until`, the launcher": [(SERVER, "logger=none"), (SERVER, "until=train")],
}  # fmt: skip
NOT_BY_KEYS = {  # rows about the folder, purchases that depend on answers, and a user's own functions (tests/test_extension.py)
    "`output_dir`", "`store_dir`", "`teacher.resample_identical=true`", "the source file of a filter of your own",
    "the source of a `teacher.function`",
    "`method`, except `tailored` and `star`", "the same keys with `method=tailored` or `star`",
    "`curation.judge`, its request, `curation.judge_tokens`",
}  # fmt: skip


def cost_table() -> dict[str, tuple[str, str]]:
    """The table on the page of concepts: change -> (does it buy again, does it train again)."""
    section = TEXTS["docs/concepts.md"].partition("## Does it buy again")[2].partition("\n## ")[0]
    rows = (line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ") and "---" not in line)
    return {row[0]: (row[1], row[2]) for row in rows if row[0] != "change"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = write_files(tmp_path_factory.mktemp("docs"))
    rows = (folder / "rows.jsonl").read_text().splitlines()
    for name, lines in {
        "reversed": rows[::-1], "copy": rows, "reworded": [line.replace("What is 4 + 1?", "What is 4 plus 1?") for line in rows],
    }.items():  # fmt: skip
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def places_of_requests(run) -> tuple[set[object], set[object]]:
    """The places in the store of a run's first and second requests: (folder, key, slot) and (folder, key)."""
    plan, problems = run.plan, run.select(run.split.train)
    place = str(run.store.path)
    keys = [plan.key(plan.step1(problem)) for problem in problems]
    row = {"key": "k", "slot": 0, "text": "So."}
    second_keys = [plan.key(plan.step2(problem, row)) for problem in problems if plan.prompt.two_steps]
    return {(place, key, slot) for key in keys for slot in plan.slots}, {(place, key) for key in second_keys}


def test_each_row_of_the_cost_table_is_checked():
    assert set(cost_table()) == set(CASES) | NOT_BY_KEYS


@pytest.mark.parametrize("row", CASES)
def test_the_cost_table_says_what_is_bought_and_trained_again(row, files, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    buys, retrains = cost_table()[row]
    for base, change in CASES[row]:
        before, after = run_of(files, *base), run_of(files, *base, change)
        (first, second), (new_first, new_second) = places_of_requests(before), places_of_requests(after)
        if buys.startswith("no"):
            assert new_first <= first, change
            assert new_second <= second, change
        elif "second requests" in buys:
            assert new_first == first, change
            assert not new_second & second, change
        elif buys.startswith("**yes") or "and seed" in buys:
            assert new_first, change
            assert not new_first & first, change
        else:
            assert new_first - first, change
            assert new_first & first, change
        assert (before.run_id != after.run_id) == retrains.startswith("yes"), change


# --- links ------------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.replace("`", "").lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", TEXTS)
def test_links_resolve(name):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", TEXTS[name])):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{name}: {target}"
        if anchor:
            assert anchor in anchors(file.read_text()), f"{name}: {target}"


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"(\w+\.md)", (ROOT / "mkdocs.yml").read_text()))
    assert listed == {path.name for path in (ROOT / "docs").glob("*.md")}


# --- choices, sizes, generated text -----------------------------------------------------------------------------------


def words_in_code(text: str) -> set[str]:
    """Words in a text's code. ``toy/cost`` counts as a word, and so do ``toy`` and ``cost``."""
    code = " ".join(code_of(text))
    return set(re.findall(r"[\w/-]+", code)) | set(re.findall(r"\w+", code))


@pytest.mark.parametrize("path", sorted(CONF.glob("*/**/*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_every_choice_is_documented(path):
    group = next(name for name in ("hydra/launcher", path.relative_to(CONF).parts[0]) if (CONF / name) in path.parents)
    choice = str(path.relative_to(CONF / group).with_suffix(""))
    (row,) = (line for line in TEXTS["README.md"].splitlines() if line.startswith(f"| `{group}` |"))
    elsewhere = words_in_code(TEXTS["docs/papers.md"]) if group == "experiment" else set()
    assert choice in words_in_code(row) | elsewhere, f"{group}={choice} is not in the README's table"


@pytest.mark.parametrize("name", [*FILTERS, CONCISE])
def test_every_filter_is_documented(name):
    table = TEXTS["docs/curation.md"].partition("| filter | rejects")[2].partition("\n\n")[0]
    assert f"| `{name}` |" in table, f"the table of filters in docs/curation.md has no {name}"
    (row,) = (line for line in TEXTS["docs/reference.md"].splitlines() if line.startswith("| `curation.filters` |"))
    assert name in re.findall(r"\w+", row), f"the comment on filters in fcot/curation/config.py does not name {name}"


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].encode()) <= LARGEST_README


def test_the_reference_is_generated():
    page = runpy.run_path(str(ROOT / "docs/make_reference.py"))["page"]()
    assert TEXTS["docs/reference.md"] == page, "python docs/make_reference.py > docs/reference.md"


@pytest.mark.parametrize("name", WRITTEN)
def test_no_page_contains_a_path_of_a_machine(name):
    assert not re.search(r"/work/|/root/|/home/\w|/tmp/", WRITTEN[name])
