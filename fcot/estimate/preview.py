"""``preview=N``: requests one completion for each of N problems and shows it with curation's verdict. The store keeps the completions."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console
from rich.text import Text

from fcot.base.console import say
from fcot.base.errors import FcotError
from fcot.base.records import Completion, Problem
from fcot.curation.filters import curate
from fcot.curation.outcomes import Outcomes, advice
from fcot.estimate.dry_run import estimate
from fcot.estimate.needs import money
from fcot.llm.generate import generate_completions
from fcot.llm.money import paid
from fcot.llm.plan import Plan, answers, rows_of
from fcot.llm.store.folder import StoreFolder
from fcot.runs.run import Run, data_notes
from fcot.stages.first_look import remedies_of


def preview(run: Run, n: int) -> None:
    """Request one completion for each of the first ``n`` train problems; print prompt, completion, parsed answer, verdict and price."""
    console = Console(highlight=False)
    problems = run.select(run.split.train[:n])
    if not run.uses_rationales:
        raise FcotError(f"preview={n}: method={run.config.method.name} uses no teacher, so there are no completions to show")
    for note in data_notes(run):
        say(note)
    outcomes = Outcomes()
    if run.replayed is not None:
        first_completions = {completion.sample_index: completion for completion in reversed(run.replayed)}
        for problem in problems:
            _show(console, run, problem, first_completions[problem.sample_index], [], "", outcomes)
        _summarise(console, run, outcomes)
        return
    assert run.teacher is not None
    teacher = getattr(run.teacher, "online", run.teacher)  # a preview through the Batch API would take hours
    plan, folder = replace(run.plan, diversity=1, teacher=teacher), run.store
    generated = generate_completions(plan, folder, problems)
    for problem, completion in zip(problems, generated, strict=True):
        _show(console, run, problem, completion, _prompts(plan, folder, problem), _price(plan, folder, problem), outcomes)
    _summarise(console, run, outcomes)
    usage, total = generated.usage(), estimate(run, {})
    usd = "price unknown" if usage["usd"] is None else f"${usage['usd']:.6f}"
    console.print(f"paid by this run so far: {usage['requests']:,} requests, {usd}", markup=False)
    console.print(
        f"the whole run: {total.requested:,} completions, {total.stored:,} of them in the store; the rest: {money(total.usd)}", markup=False
    )


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
    outcomes.count(completion, row)
    console.rule(f"sample {problem.sample_index}")
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
