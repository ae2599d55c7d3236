"""``preview=N``: requests one completion for each of N problems and shows it with curation's verdict. The store keeps the completions."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console
from rich.text import Text

from fcot.base.errors import FcotError
from fcot.base.records import Completion, Problem
from fcot.curation.filters import curate
from fcot.curation.outcomes import Outcomes, advice
from fcot.estimate.dry_run import estimate
from fcot.estimate.needs import money
from fcot.estimate.toy import toy_note
from fcot.llm.generate import generate_completions
from fcot.llm.money import paid
from fcot.llm.plan import Plan, answers, missing, rows_of
from fcot.llm.store.folder import StoreFolder
from fcot.runs.notes import say_notes
from fcot.runs.run import Run
from fcot.stages.first_look import remedies_of


def preview(run: Run, n: int) -> None:
    """Request one completion for each of the first ``n`` train problems, and print it with prompt, parsed answer, verdict and price."""
    console = Console(highlight=False)
    problems = run.select(run.split.train[:n])
    if not run.uses_rationales:
        raise FcotError(f"preview={n}: method={run.config.method.name} uses no teacher, so there are no completions to show")
    say_notes(run, None if run.replayed is not None else toy_note(run))
    outcomes = Outcomes()
    if run.replayed is not None:
        first_completions = {completion.sample_index: completion for completion in reversed(run.replayed)}
        for problem in problems:
            _show(console, run, problem, first_completions[problem.sample_index], [], "", outcomes)
        _summarise(console, run, outcomes)
        return
    assert run.teacher is not None
    teacher = getattr(run.teacher, "online", run.teacher)  # a preview through the Batch API would take hours
    plan, folder = replace(run.plan, diversity=1, teacher=teacher), run.store.refresh()
    stored = {index for index in run.split.train[:n] if _is_stored(plan, folder, run.problems[index])}
    generated = generate_completions(plan, folder, problems)
    now = "bought now" if run.config.teacher.priced else "generated now"
    for problem, completion in zip(problems, generated, strict=True):
        source = "from the store" if problem.sample_index in stored else now
        _show(console, run, problem, completion, _prompts(plan, folder, problem), f"{_price(plan, folder, problem)}; {source}", outcomes)
    _summarise(console, run, outcomes)
    console.print(_sources(len(problems), len(stored), len(run.split.train), now), markup=False, soft_wrap=True)
    usage, total = generated.usage(), estimate(run, {})
    usd = "price unknown" if usage["usd"] is None else f"${usage['usd']:.6f}"
    console.print(f"paid by this run so far: {usage['requests']:,} requests, {usd}", markup=False)
    console.print(
        f"the whole run: {total.requested:,} completions, {total.stored:,} of them in the store; the rest: {money(total.usd)}", markup=False
    )


def _is_stored(plan: Plan, folder: StoreFolder, problem: Problem) -> bool:
    """Whether the store has all that the preview shows of a problem, so that no request is sent for it."""
    key = plan.root_key(folder, problem)
    return not missing(plan, folder.shard(key), key, problem)


def _sources(n: int, n_stored: int, n_train: int, now: str) -> str:
    """Where the shown completions come from. Stored ones say nothing about the server of today."""
    text = f"{n_stored:,} of {n:,} completions from the store, {n - n_stored:,} {now}"
    if n_stored < n:
        return text
    more = f": preview={n + 1} sends a request" if n < n_train else ""
    return f"{text}. No request was sent, so the server was not tested{more}"


def _prompts(plan: Plan, folder: StoreFolder, problem: Problem) -> list[str]:
    """The prompts that were sent for a problem, one text per request."""
    request = plan.step1(problem)
    key = plan.root_key(folder, problem)
    requests = [request, *(answer.request for answer in answers(plan, folder.shard(key), key, problem))]
    return [
        sent.prompt if isinstance(sent.prompt, str) else "\n".join(f"[{message['role']}] {message['content']}" for message in sent.prompt)
        for sent in requests
    ]


def _price(plan: Plan, folder: StoreFolder, problem: Problem) -> str:
    """Tokens and dollars of a problem's completion, no matter which run paid for it."""
    key = plan.root_key(folder, problem)
    usage = paid((row for row, used in rows_of(plan, folder.shard(key), key, problem) if used), plan.price)
    tokens = f"{usage['prompt_tokens']:,} prompt and {usage['completion_tokens']:,} completion tokens"
    return tokens + (", price unknown" if usage["usd"] is None else f", ${usage['usd']:.6f}")


def _summarise(console: Console, run: Run, outcomes: Outcomes) -> None:
    """Print counts over all previewed completions, and advice."""
    console.rule()
    console.print(str(outcomes), markup=False)
    for sentence in advice(outcomes, remedies_of(run)):
        console.print(Text(f"warning: {sentence}", "yellow"), soft_wrap=True)


def _show(console: Console, run: Run, problem: Problem, completion: Completion, prompts: list[str], price: str, outcomes: Outcomes) -> None:
    """Print a problem's prompts, completion, parsed answer, verdict and price, and count its outcome."""
    (row,) = curate([completion], run.problems, run.task.rule, run.prompt.read, run.rules)
    outcomes.count(completion, row, problem.answer if problem.labelled else None)
    console.rule(Text(f"sample {problem.sample_index}" + ("" if problem.id is None else f", id {problem.id}"), "rule.text"))
    for number, prompt in enumerate(prompts, 1):
        console.print(Text(f"prompt {number}:" if len(prompts) > 1 else "prompt:", "bold"))
        console.print(Text(prompt))
    console.print(Text("rationale:", "bold"))
    console.print(Text(row.rationale or f"(none: {completion.finish_reason})"))
    console.print(Text("answer text:", "bold"), Text(completion.answer_text.strip() or "(none)"))
    verdict = Text("kept", "bold green") if row.kept else Text(f"rejected: {str(row.reason).replace('_', ' ')}", "bold red")
    right = "correct" if row.correct else "wrong" if problem.labelled else "no gold answer"
    parsed = Text(f"parsed {row.prediction!r}, gold {problem.answer!r} ({right}):")
    console.print(parsed, verdict, Text(f"  ended: {completion.finish_reason}"))
    if price:
        console.print(Text(price))
