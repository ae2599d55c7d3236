"""Runs the stages of a run (:mod:`fcot.stages.table`) and writes its metrics. A finished stage is never run again.

A stage writes its files in the run folder and, last, a summary under ``stages/``.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from typing import Any

from fcot.base.console import say
from fcot.base.errors import FcotError
from fcot.base.files import read_json, write_atomic, write_json
from fcot.base.ranks import Team, World, check_devices, started_outside
from fcot.base.run_folder import RunDirectory
from fcot.config.schema import Config
from fcot.estimate.toy import toy_note
from fcot.prompts.student import Architecture, FormatKind
from fcot.runs.metrics import metrics_of
from fcot.runs.notes import say_notes
from fcot.runs.nothing_right import advice_without_right_answers
from fcot.runs.origin import TRAINED_QUESTIONS, question_hashes
from fcot.runs.run import Run, resolve
from fcot.runs.splitting import calculations_of_test, templates_of_test
from fcot.stages.table import CURATE, REVISIONS, Step, directory_of, function
from fcot.stages.tracking import Tracker, tracked
from fcot.tasks.splits import questions_hash

Summary = dict[str, Any]


def execute(run: Run, config_text: str, sweep: str | None = None) -> Summary:
    """Run the stages up to ``until`` that are not finished yet.

    With several ranks, the first rank runs the stages. A rank that ``srun`` or ``torchrun`` started calls this function too: it joins the
    shared stages.

    Args:
        run: The run.
        config_text: The configuration as YAML, which is written to the run folder.
        sweep: Name of the sweep that the run is a job of, for trackers; None for a run outside a sweep.

    Returns:
        The metrics, or the last stage's summary if ``until`` ends the run earlier; empty on all ranks but the first.
    """
    trainer = run.config.trainer
    outside = started_outside(trainer.devices, trainer.nodes)
    if outside is None and trainer.nodes > 1:
        raise FcotError(f"trainer.nodes={trainer.nodes}: start one process per device on every node, by srun or torchrun")
    world = outside or World(size=trainer.devices)
    with Team(world, outside is not None, _join, (run.config,)) as team:
        if world.rank == 0:
            return _execute(run, config_text, sweep, team)
        team.follow(lambda step: step.run(run, world))
        return {}


def _join(world: World, config: Config) -> None:
    """The work of a spawned rank: its share of the shared stages."""
    run = resolve(config)
    with Team(world, False, _join, ()) as team:
        team.follow(lambda step: step.run(run, world))


def _execute(run: Run, config_text: str, sweep: str | None, team: Team) -> Summary:
    directory = run.directory
    with directory.lock(say):
        if directory.done.exists() and directory.metrics.exists() and not _reopened(run):
            say(f"nothing to do: {directory.path} is complete")
            if run.trains and not directory.student.exists():
                say(f"its student was removed; to train it again: fcot rm {directory.path}, then this command")
            metrics = dict(read_json(directory.metrics))
            if run.config.logger.at_wandb and not directory.wandb.exists():
                say("uploading the finished run's results to W&B; its training curves are not available any more")
                with tracked(run, config_text, sweep) as tracker:
                    tracker.log_results(metrics)
            return metrics
        directory.remove_partial()
        say_notes(run, None if run.directory.stage("train").exists() else toy_note(run))
        architecture = _check_student(run)
        _write_inputs(run, config_text)
        with tracked(run, config_text, sweep) as tracker:
            summaries, rounds = _run_stages(run, lambda step: tracker.log_stage(str(step), _run_once(run, step, team, tracker)))
            if "evaluate" not in summaries:
                tracker.log_results(None)
                return summaries[run.config.until]
            metrics = metrics_of(run, summaries, rounds).to_row()
            if run.trains:
                write_atomic(directory.student / "README.md", _card(run, architecture, metrics))
            write_json(directory.metrics, metrics)
            tracker.log_results(metrics)
            if advice := advice_without_right_answers(run, metrics):
                say(advice)
        budget = {"budget_usd": run.plan.budget_usd} if rounds.get("rounds_ended") == "budget" else {}
        write_json(directory.done, {"run_id": run.run_id, "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **budget})
        return metrics


def _reopened(run: Run) -> bool:
    """Whether a run that ended because its budget was spent now has another budget."""
    spent_budget = read_json(run.directory.done).get("budget_usd")
    return spent_budget is not None and run.plan.budget_usd != spent_budget


def _run_stages(run: Run, run_once: Callable[[Step], Summary]) -> tuple[dict[str, Summary], Summary]:
    """Run the stages up to ``until``. Returns their summaries by name, and the metrics about rounds (empty without rounds)."""
    if run.method.round_runner:
        result: tuple[dict[str, Summary], Summary] = function(run.method.round_runner)(run, run_once)
        return result
    summaries: dict[str, Summary] = {}
    curating = [stage.name for stage in run.stages if stage in (CURATE, *REVISIONS)]
    last = curating[-1] if run.config.until == CURATE.name else run.config.until
    for stage in run.stages:
        summaries[stage.name] = run_once(Step(stage))
        if stage in REVISIONS:  # what it leaves is what curation keeps; its own duration stays apart
            summaries[CURATE.name] |= {name: value for name, value in summaries[stage.name].items() if name != "seconds"}
        if stage.name == last:
            break
    return summaries, {}


def _check_student(run: Run) -> Architecture | None:
    """Check that the student can be loaded and trained with these options, before any money is spent on the teacher.

    Returns:
        The student's architecture; None for an API-backed student or the teacher, and if ``until`` stops before the student is used.
    """
    student, trainer = run.config.student, run.config.trainer
    if run.config.until not in ("train", "evaluate") or student.remote:
        return None
    if trainer.devices > 1:
        check_devices(trainer.devices)
    if student.pretrained:
        from fcot.stages.training import lora_of
        from fcot.student.loading import check_student, load_student

        if student.path is not None and run.teacher is not None:  # a local folder: check its parameters as well
            load_student(student.path)
        architecture: Architecture = check_student(
            student.path or str(student.hub_id), student.revision, student.max_prompt_tokens,
            student.max_completion_tokens if run.trains else 0,
            chat=student.chat_template, lora=lora_of(student) if run.trains else None, packing=trainer.packing,
        )  # fmt: skip
        if run.trains and not run.directory.stage("train").exists():
            from fcot.estimate.memory import memory_note

            if note := memory_note(run):
                say(note)
    else:
        architecture = student.architecture
    for_decoders = ("packing", "prompt_loss_weight", "demonstration_loss_weight")
    active = [name for name in for_decoders if getattr(trainer, name)] if run.trains else []
    if architecture == "encoder_decoder" and active:
        raise FcotError(f"trainer.{' and trainer.'.join(active)}: for decoders only, and student={student.name} is an encoder-decoder")
    return architecture


def _run_once(run: Run, step: Step, team: Team, tracker: Tracker) -> Summary:
    """Run a step unless it is finished, and return its summary."""
    stage, directory = step.stage, directory_of(run, step)
    path = directory.stage(stage.name)
    if path.exists() and (stage.output is None or (directory.path / stage.output).exists()):
        return dict(read_json(path))

    def run_step() -> Summary:
        return step.run(run, team.world, tracker)

    start = time.monotonic()
    interrupted = path.with_suffix(".interrupted.json")  # time that earlier, interrupted processes spent in this stage
    earlier_s = read_json(interrupted)["seconds"] if interrupted.exists() else 0.0
    try:
        summary: Summary = team.lead(step, run_step) if stage.shared else run_step()
    except BaseException as error:
        with contextlib.suppress(FcotError):  # the error may be a full disk
            write_json(interrupted, {"seconds": earlier_s + time.monotonic() - start, "error": _message(error)})
        raise
    summary["seconds"] = round(earlier_s + time.monotonic() - start, 3)
    write_json(path, summary)
    interrupted.unlink(missing_ok=True)
    if stage.output is not None and (output := directory.path / stage.output).name == directory.student.name:
        shutil.rmtree(RunDirectory(output.parent).checkpoints, ignore_errors=True)
    return summary


def _message(error: BaseException) -> str | None:
    """The message of an error that ended a stage; None for an interruption."""
    if isinstance(error, FcotError):
        return str(error)
    return f"{type(error).__name__}: {error}" if isinstance(error, Exception) else None


def _card(run: Run, architecture: Architecture | None, metrics: Summary) -> str:
    """The student's model card."""
    from fcot.reporting.card import how_to_use, model_card
    from fcot.runs.origin import base_model_of
    from fcot.student.interface import read_interface

    student = run.config.student
    format_kind: FormatKind = "chat" if architecture is None or getattr(student, "chat_template", False) else architecture
    use = how_to_use("DIR", format_kind, read_interface(run.directory.student), api=architecture is None)
    terms = run.config.teacher.terms if run.uses_rationales else None
    return model_card(metrics, run.config, terms, base_model_of(student), use)


def _write_inputs(run: Run, config_text: str) -> None:
    """Write the configuration and the split.

    The split also has the templates of the test problems, the number of calculations in their gold rationales, a hash of all questions and,
    if the run trains, a hash of each question that the student sees, by which a later evaluation on other data recognizes it.
    """
    write_atomic(run.directory.config, config_text)
    split = run.split
    order = {"questions_sha256": questions_hash(list(run.problems.values()))}
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    of_test = {"test_templates": templates_of_test(run), "test_calculations": calculations_of_test(run)}
    trained = run.select([*split.train, *split.validation]) if run.trains else []
    questions = {TRAINED_QUESTIONS: question_hashes(problem.question for problem in trained)} if run.trains else {}
    write_json(run.directory.split, order | parts | of_test | questions)
