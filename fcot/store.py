"""``python -m fcot.store``: list, verify, compact and merge completion stores; export and import completions."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import count, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcot.base.console import result_console, say
from fcot.base.entry import entry_point
from fcot.base.errors import FcotError
from fcot.base.files import read_json, write_atomic
from fcot.base.locations import store_dir
from fcot.base.records import REFUSED, Completion, Problem
from fcot.base.resources import PRICES
from fcot.llm.batch_files import set_aside
from fcot.llm.generate import Generated
from fcot.llm.money import FREE, Price, read_price
from fcot.llm.plan import Plan, SlotRange, new_request_id, to_rows
from fcot.llm.requests import Choice, Reply, Request
from fcot.llm.store.folder import Shard, StoreFolder, is_shard_file
from fcot.llm.store.inventory import Holdings, compact, faults, holdings, merge
from fcot.llm.store.rows import StoreRow
from fcot.teacher.replay import read_completions

if TYPE_CHECKING:
    from fcot.runs.run import Run

_SHOWN_FAULTS = 10
_DEFAULT_STORE = "default: FCOT_STORE, or store in FCOT_OUTPUT_DIR, or outputs/store"
_COUNTS = ("prompts", "rationales", "answers", "refused", "prompt tokens", "completion tokens")
_AUTHORS_NAMES = {"zero_shot_cot": "zs_cot", "few_shot_cot": "fs_cot"}  # the authors' names of prompts
# the options that fields of a completion file correspond to
_OPTIONS = {
    "base_model": "teacher.model_id",
    "temperature": "teacher.temperature",
    "max_tokens": "prompt.rationale_tokens",
    "system": "prompt.system",
}
_HELP = {
    "list": "what is stored, by task, model, prompt and settings, with its cost",
    "verify": "check every row; exit code 1 if one is faulty",
    "compact": "rewrite a store without torn lines, superseded rows and repeated prompts; every paid row stays",
    "merge": "add the rows of the store FROM to STORE; requests that are in both are left out",
    "adopt": "copy completions of the same prompts from TASK/MODEL/PROMPT, or from another token limit, so that a configuration uses them",
    "set-aside": "set aside a submitted batch that cannot be collected; its requests are bought again",
    "export": "write the stored completions of a configuration's training problems in the authors' format; nothing is bought",
    "import": "store the completions of a file (the authors' format) as a configuration's own, so that no run buys them again",
}


@entry_point
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point, with the exit codes of :func:`fcot.base.entry.entry_point`."""
    parser = argparse.ArgumentParser(prog="fcot.store", description="The completion store: every generation that was ever paid for.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in _HELP.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == "merge":
            command.add_argument("source", type=Path, metavar="FROM", help="the other store's folder")
        if name == "set-aside":
            command.add_argument("batch", type=Path, metavar="JOBS_FILE", help="as the message about the batch names it")
        elif name == "adopt":
            command.add_argument("folder", type=Path, metavar="FOLDER", help="TASK/MODEL/PROMPT, as the dry run and list name it")
            command.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="of the configuration that uses them, as for fcot.run")
        elif name in ("list", "verify", "compact", "merge"):
            command.add_argument("store", nargs="?", type=Path, default=store_dir(), metavar="STORE", help=_DEFAULT_STORE)
        else:
            command.add_argument("file", type=Path, metavar="FILE")
            command.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as for fcot.run: dataset=svamp teacher=openai ...")
        if name == "list":
            command.add_argument("--prices", type=Path, default=PRICES, metavar="FILE", help="YAML; default: conf/prices.yaml")
    options = parser.parse_args(arguments)
    calls: dict[str, Callable[[], None]] = {
        "list": lambda: show(options.store, options.prices),
        "verify": lambda: verify(options.store),
        "compact": lambda: compact_store(options.store),
        "merge": lambda: merge_stores(options.source, options.store),
        "adopt": lambda: adopt_folder(options.folder, configured(options.overrides)),
        "set-aside": lambda: set_batch_aside(options.batch),
        "export": lambda: export_file(options.file, configured(options.overrides)),
        "import": lambda: import_file(options.file, configured(options.overrides)),
    }
    try:
        calls[options.command]()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise FcotError(str(error)) from error


# --- list and verify ----------------------------------------------------------------------------------------------


def _folders(store: Path) -> Iterator[tuple[str, StoreFolder]]:
    """The name, relative to the store, and the folder of each task, model and prompt."""
    paths = sorted({path.parent for path in store.rglob("*.jsonl") if is_shard_file(path)})
    if not paths:
        raise FcotError(f"{store}: {'no completions are stored here' if store.is_dir() else 'no such folder'}")
    return ((str(path.relative_to(store)), StoreFolder(path)) for path in paths)


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for number, name in enumerate(columns):
        whole = max(len(row[0]) for row in rows) if number == 0 else None  # the first column is copied into commands: never broken
        table.add_column(name, justify="left" if whole or name == "settings" else "right", overflow="fold", min_width=whole)
    for row in rows:
        table.add_row(*row)
    result_console().print(table)


def show(store: Path, prices: Path) -> None:
    """Print a line per configuration of each task, model and prompt, and the total.

    Args:
        store: The store's folder.
        prices: YAML file of prices.
    """
    rows = [(name, holding) for name, folder in _folders(store) for holding in holdings(folder, _price_of(prices))]
    counts = sum((holding.counts for _, holding in rows), Counter[str]())
    priced = [holding.usd for _, holding in rows if holding.usd is not None]
    total = Holdings("", "", counts, Counter(), sum(priced) if priced else None, max(holding.last for _, holding in rows))
    lines = [_line(*row) for row in (*rows, ("total", total))]
    if 0 < len(priced) < len(rows):
        lines[-1][-3] += " + ?"
    _print_table(("task/model/prompt", *_COUNTS, "size", "USD", "last", "settings"), lines)
    for name, holding in rows:
        if len(holding.models) > 1:
            versions = ", ".join(f"{model} ({n:,})" for model, n in holding.models.most_common())
            print(f"{name}: the server answered as several models: {versions}")


def _line(name: str, holding: Holdings) -> list[str]:
    last_time = time.strftime("%Y-%m-%d %H:%M", time.localtime(holding.last))
    usd = "?" if holding.usd is None else f"{holding.usd:,.4f}"
    counts = (f"{holding.counts[column]:,}" for column in _COUNTS)
    return [name, *counts, f"{holding.counts['bytes'] / 1e6:,.1f} MB", usd, last_time, holding.settings]


def _price_of(prices: Path) -> Callable[[str], Price | None]:
    """A function that returns the price of a model by the id in its requests. The oracle costs nothing."""

    @cache
    def price(model: str) -> Price | None:
        return FREE if model.startswith("oracle-") else read_price(prices, model, "--prices") if model else None

    return price


def verify(store: Path) -> None:
    """Print a line per folder, and the first faults.

    Raises:
        FcotError: There are faults. Lines that a killed writer tore are no faults.
    """
    rows: list[list[str]] = []
    shown: list[str] = []
    by_fault: Counter[str] = Counter()
    for name, folder in _folders(store):
        counts = Counter[str]()
        for shard in folder.shards():
            for path, line, fault in faults(shard, counts):
                counts["faults"] += 1
                by_fault[fault] += 1
                if len(shown) < _SHOWN_FAULTS:
                    shown.append(f"{path}:{line}: {fault}")
            for path, fault in shard.distributions.faults():
                counts["faults"] += 1
                by_fault["damaged distributions"] += 1
                shown += [f"{path}: {fault}"][: _SHOWN_FAULTS - len(shown)]
        rows.append([name, *(f"{counts[column]:,}" for column in ("rows", "torn", "unfinished", "faults"))])
    _print_table(("task/model/prompt", "rows", "torn lines", "unfinished lines", "faults"), rows)
    if by_fault:
        print(*shown, *["..."][: by_fault.total() - len(shown)], sep="\n")
        raise FcotError(f"{store}: {by_fault.total():,} faults: " + "; ".join(f"{n:,} x {fault}" for fault, n in by_fault.most_common()))


# --- compact and merge --------------------------------------------------------------------------------------------


def compact_store(store: Path) -> None:
    """Rewrite every shard without torn lines, superseded rows and repeated prompts. Every paid row stays."""
    for name, folder in _folders(store):
        with folder.exclusive(say):
            sizes = [compact(shard) for shard in folder.shards()]
        before, after = (sum(column) for column in zip(*sizes, strict=True))
        print(f"{name}: {before / 1e6:,.1f} MB, now {after / 1e6:,.1f} MB")


def merge_stores(source: Path, target: Path) -> None:
    """Add the rows of the store ``source`` to the store ``target``. Requests that are in both are left out."""
    if source.resolve() == target.resolve():
        raise FcotError(f"{source} and {target} are the same store")
    for name, folder in _folders(source):
        if folder.open_batches():
            raise FcotError(f"{folder.path}/batches: submitted batches are not collected yet; first collect them with teacher=openai_batch")
        target_folder = StoreFolder(target / name)
        with folder.exclusive(say), target_folder.exclusive(say):
            n_new = sum(merge(shard, target_folder.shard(shard.path.stem)) for shard in folder.shards())
        print(f"{name}: {n_new:,} rows were new")


def adopt_folder(folder: Path, run: Run) -> None:
    """Copy answers to a configuration's prompts from another folder of its store, or from another limit in its own folder.

    Raises:
        FcotError: There is no such folder, or it has no completions that the configuration could use.
    """
    from fcot.runs.stored import adopt

    store = run.store_dir.resolve()
    path = (store / folder if (store / folder).is_dir() else folder).resolve()
    if not path.is_dir():
        raise FcotError(f"{folder}: no such folder in {run.store_dir}; fcot store list names them")
    if not path.is_relative_to(store):
        raise FcotError(f"{folder} belongs to another store than {run.store_dir}: first fcot store merge OTHER_STORE {run.store_dir}")
    print(adopt(run, run.store_dir / path.relative_to(store)))


def set_batch_aside(path: Path) -> None:
    """Set a submitted batch aside, and print what that means. ``path`` is the batch's jobs file."""
    new_path = set_aside(path)
    print(f"{new_path}: set aside. The next purchase buys its completions again; to collect the batch after all, move its files back")


# --- export and import --------------------------------------------------------------------------------------------


def configured(overrides: Sequence[str]) -> Run:
    """The run of a configuration. It sends no requests, so its teacher needs no key.

    Args:
        overrides: Overrides as ``fcot.run`` takes them, such as ``dataset=svamp``.

    Raises:
        FcotError: The configuration is faulty, or its method uses no teacher.
    """
    from fcot.config.checks import to_config
    from fcot.config.overrides import explained, prepare
    from fcot.methods.table import method_of
    from fcot.runs.run import resolve
    from fcot.sweeps.plan import composer

    with explained(overrides), composer([]) as compose:
        composed = compose(prepare(list(overrides)))
    if "base_url" in composed.teacher:
        composed.teacher.base_url = "http://localhost:9/no-request-is-sent"  # it needs no key, and addresses are part of no store key
        composed.teacher.api_key_env = "none"
    composed.trainer.precision = "32-true"  # nothing is trained, and resolving "auto" takes seconds
    config = to_config(composed)
    if not config.teacher.generates or not method_of(config).uses_rationales:
        if method_of(config).uses_rationales:
            raise FcotError(f"teacher={config.teacher.name} uses no stored completions: name the teacher that they are from (teacher=...)")
        raise FcotError(f"method={config.method.name} uses no completions: name a method that does, such as method=fine_tune_cot")
    return resolve(config)


def _metadata(run: Run) -> dict[str, Any]:
    """The metadata of a run's completions in the authors' format."""
    prompt = _AUTHORS_NAMES.get(run.prompt.name, run.prompt.name)
    return {
        "dataset_key": run.task.name, "base_model": run.teacher_name, "completion_key": prompt, "prediction_template": prompt,
        "temperature": run.plan.teacher.identity.get("temperature"), "max_tokens": run.prompt.rationale_tokens,
        **({"system": run.prompt.system} if run.prompt.system else {}),
    }  # fmt: skip


def _prompts(plan: Plan, problem: Problem, rationale: str) -> dict[str, str]:
    """The prompts of both requests, as texts even for chat endpoints. With a prompt of one request, both are that request's."""
    first = str(plan.prompt.first_request(problem.question, plan.rule, chat=False))
    second = str(plan.prompt.second_request(problem.question, rationale, plan.rule, chat=False)) if plan.prompt.two_steps else first
    return {"reasoning_prompt": first, "prompt": second}


def export_file(file: Path, run: Run) -> None:
    """Write the stored completions of the training problems to a file.

    Raises:
        FcotError: The store has no completions of these problems.
    """
    problems, plan, folder = run.select(run.split.train), run.plan, run.store
    folder.refresh()
    written: Counter[int] = Counter()
    write_atomic(file, _pieces(run, Generated(plan, folder, problems), written))
    n_expected = plan.diversity * len(problems)
    print(
        f"{file}: {written.total():,} completions of {len(written):,} problems; "
        f"{n_expected - written.total():,} of the {n_expected:,} ({plan.diversity} x {len(problems):,}) are missing"
    )


def _pieces(run: Run, completions: Iterable[Completion], written: Counter[int]) -> Iterator[str]:
    """The text of the exported file, one problem per piece. Counts the completions of each problem in ``written``."""
    yield f'{{"metadata": {json.dumps(_metadata(run))},\n"data": {{'
    plan = run.plan
    for index, of_problem in groupby(completions, key=lambda completion: completion.sample_index):
        usable = [completion for completion in of_problem if not (completion.finish_reason or "").startswith(REFUSED)]
        if usable:
            rows = [_to_row(plan, run.problems[index], completion) for completion in usable]
            yield f'{"," if written else ""}\n"{index}": {json.dumps(rows)}'
            written[index] = len(rows)
    if not written:
        raise FcotError(
            f"nothing of this configuration is stored in {run.store.path} (diversity=1 requests greedy rationales, a larger diversity "
            "sampled ones: check diversity and teacher.temperature)"
        )
    yield "}}\n"


def _to_row(plan: Plan, problem: Problem, completion: Completion) -> dict[str, Any]:
    finish = {} if completion.finish_reason is None else {"finish_reason": completion.finish_reason}
    return {
        "sample_index": problem.sample_index, "completion_index": completion.completion_index, "question": problem.question,
        "answer": problem.answer, **_prompts(plan, problem, completion.rationale), "completion": completion.answer_text,
        "reasoning_completion": completion.rationale, **finish,
    }  # fmt: skip


def import_file(file: Path, run: Run) -> None:
    """Store the completions of a file as a configuration's own, except those that the store has.

    Raises:
        FcotError: The file has no completions of this task, or its requests differ from those of the configuration.
    """
    if not file.is_file():
        raise FcotError(f"{file}: no such file")
    try:
        completions, _ = read_completions(file, run.task, {index: problem.question for index, problem in run.problems.items()})
    except FcotError as error:
        raise FcotError(str(error).replace(f"teacher.path={file}", str(file))) from None
    _check_requests(file, run)
    plan, folder, n_new = run.plan, run.store, 0
    texts = {
        index: [(_first_text(plan, completion, file), completion) for completion in of_problem]
        for index, of_problem in sorted(completions.items())
    }
    with folder.exclusive(say):
        for index, texts_of_problem in texts.items():
            key = plan.root_key(folder, run.problems[index])
            n_new += _store(plan, folder.shard(key), key, run.problems[index], texts_of_problem)
    total = sum(map(len, completions.values()))
    print(f"{folder.path}: {n_new:,} completions of {len(completions):,} problems imported, {total - n_new:,} were stored already")


def _check_requests(file: Path, run: Run) -> None:
    """Compare the requests that a file describes with those of the configuration. Fields that the file lacks count as equal."""
    content, plan, own = read_json(file), run.plan, _metadata(run)
    for name, option in _OPTIONS.items():
        if (value := content["metadata"].get(name, own.get(name))) != own.get(name):
            raise FcotError(f"{file} was made with {name}={value}, the configuration has {own.get(name)}: {option}={value}")
    for row in (row for rows in content["data"].values() for row in (rows if isinstance(rows, list) else [rows])):
        for name, text in _prompts(plan, run.problems[row["sample_index"]], row["reasoning_completion"]).items():
            expected, in_file = (
                " ".join(prompt.encode("utf-8", "replace").decode().split()) for prompt in (text, str(row.get(name) or text))
            )
            if expected != in_file:
                pairs = enumerate(zip(expected, in_file, strict=False))
                n_equal = next((i for i, (left, right) in pairs if left != right), min(len(expected), len(in_file)))
                start = max(0, n_equal - 60)
                raise FcotError(
                    f"{file} was made with another prompt than prompt={plan.prompt.name}: choose the file's prompt with prompt=... "
                    f"({name} of sample index {row['sample_index']})\n"
                    f"  file:          {in_file[start : start + 120]!r}\n  configuration: {expected[start : start + 120]!r}"
                )


def _first_text(plan: Plan, completion: Completion, file: Path) -> str:
    """The text that answers the first request: the rationale. With a prompt of one request, a text that splits into rationale and answer.

    Raises:
        FcotError: No such text splits into the completion's rationale and answer.
    """
    rationale, answer = completion.rationale, completion.answer_text
    if plan.prompt.two_steps:
        return rationale
    end = f"{plan.prompt.trigger(plan.rule)} {answer}"
    # Splitting drops one "so" or "therefore" before the trigger. If the rationale ends in such a word, another has to be added.
    for text in [rationale] * (not answer) + [f"{rationale} {end}", f"{rationale} Therefore, {end}"]:
        if _stripped(plan.prompt.split(text, plan.rule)) == _stripped((rationale, answer)):
            return text
    raise FcotError(
        f"{file}: completion {completion.completion_index} of sample index {completion.sample_index} cannot be an answer to "
        f"prompt={plan.prompt.name}: fcot would not split {rationale[-60:]!r} from {end[:60]!r}. Import it under the prompt that it answers"
    )


def _stripped(pair: tuple[str, str]) -> tuple[str, str]:
    return pair[0].strip(), pair[1].strip()


def _store(plan: Plan, shard: Shard, key: str, problem: Problem, texts: Sequence[tuple[str, Completion]]) -> int:
    """Append the completions of a problem that the store lacks. A completion that is in the file twice is stored twice.

    Problems with the same question share their rows, so the completions of one count as stored for the others. A rationale that is
    stored without its answer gets the answer in the file.

    Args:
        plan: The plan of the configuration.
        shard: The shard of the problem.
        key: The problem's step-1 key.
        problem: The problem.
        texts: The text that answers the first request (:func:`_first_text`) and the completion, for each completion in the file.

    Returns:
        Number of completions that were appended.
    """
    rationales = Counter(shard.row(key, slot)["text"] for slot in shard.slots(key))
    stored: dict[str, Counter[tuple[str, str]]] = {}  # by key: stored texts that match no completion of the file yet
    n_new = 0

    def parts(text: str) -> tuple[str, str]:
        return (text, "") if plan.prompt.two_steps else _stripped(plan.prompt.split(text, plan.rule))

    def row(request: Request, row_key: str, text: str, finish_reason: str | None) -> list[StoreRow]:
        free_slot = next(slot for slot in count() if not shard.has(row_key, slot))
        job = SlotRange(request, row_key, free_slot, 1, 0, plan.teacher.identity)
        return to_rows(plan, job, shard, Reply([Choice(text, finish_reason)]), new_request_id(), counted=False, run="import", seed=None)

    for first_text, completion in texts:
        if plan.prompt.two_steps:
            request, text = plan.step2(problem, {"key": key, "slot": None, "text": first_text}), completion.answer_text
        else:
            request, text = plan.step1(problem), first_text
        last_key = plan.key(request)  # of step 2, or of the only step
        if last_key not in stored:
            stored[last_key] = Counter(parts(shard.row(last_key, slot)["text"]) for slot in shard.slots(last_key))
        if stored[last_key][parts(text)]:
            stored[last_key][parts(text)] -= 1
            continue
        rows = row(request, last_key, text, None if request.root else completion.finish_reason)
        if request.root and rationales[first_text] <= len(shard.slots(last_key)):
            rows = row(plan.step1(problem), key, first_text, completion.finish_reason) + rows
            rationales[first_text] += 1
        shard.append(rows)
        n_new += 1
    return n_new


if __name__ == "__main__":
    main()
