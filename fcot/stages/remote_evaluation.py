"""Evaluation of remote models through the completion store: the teacher itself, or an API-backed student."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from fcot.base.console import progress
from fcot.base.files import read_json
from fcot.base.records import Prediction, Problem
from fcot.curation.filters import Rules
from fcot.evaluation import scoring
from fcot.llm import connect
from fcot.llm.generate import generate_completions
from fcot.llm.plan import Plan, assemble, chosen_slots, rows_of
from fcot.llm.server import Server
from fcot.llm.store.folder import StoreFolder, open_folder, readable
from fcot.prompts.student import StudentFormat
from fcot.prompts.teacher import TeacherPrompt
from fcot.runs.run import Run
from fcot.stages.first_look import FirstLook, remedies_of
from fcot.stages.table import Context, Summary
from fcot.student.config import ApiStudentConfig
from fcot.student.interface import API_FILE


def evaluate(context: Context) -> Summary:
    """Answer the test problems from the completion store, and buy missing answers: greedy ones, or samples for a majority vote."""
    run = context.run
    problems, rule = run.select(run.split.test), run.task.rule
    form = run.prompt if run.method.prompted else text_format(run)
    usage: Summary = {}
    if run.replayed is not None:
        answers = [
            [scoring.score_completion(run.problems[index], completion, 0, run.prompt, rule) for completion in group]
            for index, group in groupby(run.replayed, key=lambda completion: completion.sample_index)
        ]
    else:
        model = answering_model(run)
        plan, folder = evaluation_plan(run, model), evaluation_store(run, model)
        first_look = FirstLook(run, form.read, Rules(()), remedies_of(run), plan.diversity) if isinstance(form, TeacherPrompt) else None
        with progress("evaluate", len(problems) * plan.diversity, "answers") as bar:
            generated = generate_completions(plan, folder, problems, bar.advance, first_look, bar.watch)
        if first_look is not None:
            first_look.report()
        answers = [list(_predict(run, plan, folder, problem, form)) for problem in problems]
        usage = {"student_usage": generated.usage()}
        del usage["student_usage"]["identical_rationales"]
    return scoring.report(answers, form, rule, run.directory) | usage


def _predict(run: Run, plan: Plan, folder: StoreFolder, problem: Problem, form: scoring.Form) -> Iterator[Prediction]:
    """The scored answers to one problem. An answer that the server never gave is empty; a missing token count is 0."""
    key = plan.root_key(folder, problem)
    shard = folder.shard(key)
    bought = [row for row, _ in rows_of(plan, shard, key, problem)]
    choices = Counter(row["request"] for row in bought)
    tokens = {row["request"]: row["completion_tokens"] / choices[row["request"]] for row in bought if row.get("completion_tokens")}
    if isinstance(form, TeacherPrompt):
        for completion, rows in assemble(plan, shard, key, problem):
            n_tokens = round(sum(tokens.get(row["request"], 0) for row in rows))
            yield scoring.score_completion(problem, completion, n_tokens, form, run.task.rule)
        return
    rows = [shard.row(key, slot) for slot in chosen_slots(plan, shard, key)]
    for row in rows + [{}] * (plan.diversity - len(rows)):
        complete, n_tokens = row.get("finish_reason") == "stop", round(tokens.get(row.get("request", ""), 0))
        yield scoring.score(problem, row.get("text", ""), complete, n_tokens, form, run.task.rule)


def text_format(run: Run) -> StudentFormat:
    """The format of the run's method for a remote model: chat turns, or a text for a teacher without a chat interface.

    A finished student has the format of its training.
    """
    if run.origin is not None:
        return run.origin.format
    kind = "decoder" if run.is_teacher and run.teacher is not None and not run.teacher.chat else "chat"
    return run.method.formats[kind]  # type: ignore[index]


def fine_tuned(model: str) -> str:
    """The beginning of the names of all models fine-tuned from a base model. Prices are looked up by it."""
    return model if model.startswith("ft:") else f"ft:{model}"


def answering_model(run: Run) -> str | None:
    """The name of the model that is evaluated; None if it is not trained yet."""
    if run.is_teacher:
        return run.teacher_name
    if not run.trains:
        return str(run.config.student.model)
    path = run.directory.student / API_FILE
    return str(read_json(path)["model"]) if path.exists() else None


def evaluation_plan(run: Run, model: str | None) -> Plan:
    """Plan the requests of an evaluation: one greedy answer per problem or several samples, in the run's prompt or the method's format.

    Args:
        run: The run.
        model: Name from :func:`answering_model`; None: the fine-tuned model that does not exist yet.
    """
    config = run.config.student
    prompt = run.prompt
    if not run.method.prompted:
        form = text_format(run)
        triggers = {str(run.task.rule.answer_type): form.answer_prefix or ""}
        limit = prompt.rationale_tokens if run.is_teacher else config.max_new_tokens
        prompt = TeacherPrompt(
            _store_name(run), form.prompt_template, triggers, two_steps=False, rationale_tokens=limit,
            system=prompt.system if run.is_teacher else "",
        )  # fmt: skip
    if run.is_teacher:
        return replace(run.plan, prompt=prompt, diversity=config.self_consistency, first_slot=0, resample_identical=False)
    model = model or fine_tuned(config.model)
    client = connect.online(server_of(config, model), config, min(8, config.self_consistency))
    return Plan(
        client, prompt, run.task.rule, config.self_consistency, run.run_id, price=config.price(model), shared_budget=run.shared_budget
    )


def evaluation_store(run: Run, model: str | None) -> StoreFolder:
    """The folder of the completion store for this task, model and prompt. A prompted teacher shares the folder of its rationales."""
    prompt = run.prompt.name if run.method.prompted else _store_name(run)
    return open_folder(run.store_dir / Path(*map(readable, (run.task.name, str(model), prompt))))


def _store_name(run: Run) -> str:
    """The prompt's name in the store. A finished student shares the answers that it gave in the run that trained it."""
    return f"student_{run.origin.method if run.origin else run.config.method.name}"


def server_of(config: ApiStudentConfig, model: str) -> Server:
    """The server of an API-backed student.

    Args:
        config: The options of ``student``.
        model: The base model, or the fine-tuned one.
    """
    temperature = config.temperature if config.self_consistency > 1 else 0.0
    return connect.server(config, "student", model, temperature=temperature)
