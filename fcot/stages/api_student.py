"""The stages of a student behind OpenAI's API: train by a fine-tuning job, evaluate through the completion store."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fcot.artifacts import read_json, write_folder, write_json
from fcot.checks import price_of
from fcot.config import ApiStudent
from fcot.evaluation import scoring
from fcot.progress import progress
from fcot.prompts.student import METHODS, StudentFormat
from fcot.prompts.teacher import TeacherPrompt
from fcot.records import Prediction, Problem
from fcot.runs import Run
from fcot.student.finetune_api import FineTuned, fine_tune
from fcot.student.using import Usage, write_usage
from fcot.teacher.generate import generate_completions
from fcot.teacher.openai import OpenAITeacher, Server
from fcot.teacher.plan import Plan, chosen_slots
from fcot.teacher.store import StoreFolder, readable
from fcot.teacher.throttle import Throttle

Summary = dict[str, Any]


def train_api_student(run: Run) -> Summary:
    """Fine-tune the base model on all of train; ``student/openai.json`` names the model that came of it."""
    from fcot.stages.student import training_texts  # here: it brings torch, which a dry run need not wait for

    config, form = run.config.student, text_format(run)
    samples = [(form.prompt(question), form.completion(answer, rationale)) for question, answer, rationale in training_texts(run)]
    with progress("fine-tune", 1, "job") as bar:

        def watch(status: str) -> None:
            bar.watch(status)
            bar.advance(0)

        tuned = fine_tune(
            _server(config, config.model), samples, run.directory.fine_tuning, run.outputs / "store" / "fine_tuning.lock",
            run_id=run.run_id, epochs=config.epochs, seed=run.config.seed, poll_s=config.poll_s, max_tries=config.max_retries + 1,
            watch=watch,
        )  # fmt: skip
    _save(run, tuned)
    steps = math.ceil(len(samples) / tuned.batch_size) * config.epochs if tuned.batch_size else None
    return {
        "n_reasoning_samples": len(samples) if run.asks_teacher else 0,
        "n_steps": steps,
        "samples_per_second": None,
        "checkpoint": "last",
        "validation_accuracy": None,
        "best_test_accuracy": None,
        "history": [],
        "student_usage": {"trained_tokens": tuned.trained_tokens, "training_usd": _training_usd(run, tuned)},
    }


def _training_usd(run: Run, tuned: FineTuned) -> float | None:
    """What this run paid for the training: nothing where another run had started the job, None where the price is unknown."""
    if tuned.paid_by != run.run_id:
        return 0.0
    price = price_of(run.config.student, fine_tuned(run.config.student.model))
    usd = None if price is None or tuned.trained_tokens is None else price.training_usd(tuned.trained_tokens)
    return None if usd is None else round(usd, 6)


def _save(run: Run, tuned: FineTuned) -> None:
    config = run.config.student
    student = {
        "model": tuned.model, "base_model": config.model, "job": tuned.job, "file": tuned.file,
        "trained_tokens": tuned.trained_tokens, "epochs": config.epochs, "base_url": config.base_url,
        "max_tokens_parameter": config.max_tokens_parameter,
    }  # fmt: skip

    def fill(folder: Path) -> None:
        write_json(folder / "openai.json", student)
        write_usage(
            folder, Usage(run.task.name, run.config.method.name, text_format(run), run.task.rule, True, sys.maxsize, config.max_new_tokens)
        )

    write_folder(run.directory.student, fill)


def evaluate_api_student(run: Run) -> Summary:
    """Answers to every test problem from the completion store, the missing ones bought: greedy, or a majority vote over samples."""
    model = student_model(run)
    assert model is not None
    plan, folder, form = student_plan(run, model), student_store(run, model), text_format(run)
    problems = run.select(run.split.test)
    with progress("evaluate", len(problems) * plan.diversity, "answers") as bar:
        generated = generate_completions(plan, folder, problems, bar.advance, watch=bar.watch)
    drawn = [list(_predict(run, plan, folder, problem, form)) for problem in problems]
    summary = scoring.report(drawn, form, run.task.rule, run.directory.predictions, run.directory.samples)
    usage = generated.usage()
    del usage["identical_rationales"]
    return summary | {"student_usage": usage}


def _predict(run: Run, plan: Plan, folder: StoreFolder, problem: Problem, form: StudentFormat) -> Iterator[Prediction]:
    """One problem's answers, scored; empty ones where the server never gave any. Tokens are 0 where it did not count them."""
    key = plan.key(plan.step1(problem))
    shard = folder.shard(key)
    rows = [shard.row(key, slot) for slot in chosen_slots(plan, shard, key)]
    for row in rows + [{}] * (plan.diversity - len(rows)):
        complete = row.get("finish_reason") == "stop"
        yield scoring.score(problem, row.get("text", ""), complete, row.get("completion_tokens") or 0, form, run.task.rule)


def text_format(run: Run) -> StudentFormat:
    """The format of the run's method for API students."""
    return METHODS[run.config.method.name].formats["chat"]


def fine_tuned(model: str) -> str:
    """The beginning of the names of models fine-tuned from this one, by which their price is found."""
    return model if model.startswith("ft:") else f"ft:{model}"


def student_model(run: Run) -> str | None:
    """The name of the model that is evaluated, None where it is not trained yet."""
    if not run.trains:
        return str(run.config.student.model)
    path = run.directory.student / "openai.json"
    return str(read_json(path)["model"]) if path.exists() else None


def student_plan(run: Run, model: str) -> Plan:
    """What is asked of a student: a greedy answer a problem, or several sampled ones, the text as it comes."""
    config, form = run.config.student, text_format(run)
    throttle = Throttle(config.concurrency, config.requests_per_minute, config.tokens_per_minute, config.timeout_s)
    asked = OpenAITeacher(_server(config, model), throttle, min(8, config.self_consistency), config.max_retries)
    triggers = {str(run.task.rule.answer_type): form.answer_prefix or ""}
    prompt = TeacherPrompt(
        f"student_{run.config.method.name}", form.prompt_template, triggers, two_steps=False, rationale_tokens=config.max_new_tokens
    )
    return Plan(asked, prompt, run.task.rule, config.self_consistency, run.run_id, price=price_of(config, model))


def student_store(run: Run, model: str) -> StoreFolder:
    """The completion store's folder for this task, student and method."""
    parts = (run.task.name, model, f"student_{run.config.method.name}")
    return StoreFolder(run.outputs / "store" / Path(*map(readable, parts)))


def _server(config: ApiStudent, model: str) -> Server:
    temperature = config.temperature if config.self_consistency > 1 else 0.0
    return Server(
        model=model, model_id=model, chat=True, temperature=temperature, parameters={},
        max_tokens_parameter=config.max_tokens_parameter, base_url=config.base_url, timeout_s=config.timeout_s, group="student",
    )  # fmt: skip
