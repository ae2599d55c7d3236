"""Takes a run through its stages (:mod:`fcot.stages.table`) and sums up its metrics. A finished stage is never run again.

What a stage leaves are the files of the run directory and, written last, one summary under ``stages/``.
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
from fcot.config.schema import Config
from fcot.prompts.student import Architecture, FormatKind
from fcot.runs.metrics import metrics_of
from fcot.runs.run import Run, resolve
from fcot.runs.splitting import templates_of_test
from fcot.stages.table import Step, directory_of, function
from fcot.stages.tracking import log_results, log_stage, tracked
from fcot.tasks.splits import questions_hash

Summary = dict[str, Any]


def execute(run: Run, config_text: str, sweep: str | None = None) -> Summary:
    """Bring a run as far as ``until`` says, doing only what is not done; returns the metrics, or the last summary.

    Where the run has several ranks, the first one does this; of the others one that ``srun`` or ``torchrun`` started comes
    here too, helps and returns nothing.

    Args:
        run: Resolved.
        config_text: The configuration as YAML, kept with the run.
        sweep: Name of the sweep it is a job of, for trackers.
    """
    trainer = run.config.trainer
    outside = started_outside(trainer.devices, trainer.nodes)
    if outside is None and trainer.nodes > 1:
        raise FcotError(f"trainer.nodes={trainer.nodes}: start one process per device on every node, by srun or torchrun")
    world = outside or World(size=trainer.devices)
    with Team(world, outside is not None, _help, (run.config,)) as team:
        if world.rank == 0:
            return _execute(run, config_text, sweep, team)
        team.follow(lambda step: step.run(run, world))
        return {}


def _help(world: World, config: Config) -> None:
    """What a spawned rank does: the stages the first one leads it to."""
    run = resolve(config)
    with Team(world, False, _help, ()) as team:
        team.follow(lambda step: step.run(run, world))


def _execute(run: Run, config_text: str, sweep: str | None, team: Team) -> Summary:
    directory = run.directory
    with directory.lock(say):
        if directory.done.exists() and directory.metrics.exists() and not _reopened(run):
            say(f"nothing to do: {directory.path} is complete")
            metrics = dict(read_json(directory.metrics))
            if run.config.logger.at_wandb and not directory.wandb.exists():
                say("W&B is told what it left; the curves of its training it is not")
                with tracked(run, config_text, sweep):
                    log_results(run, metrics)
            return metrics
        directory.remove_partial()
        architecture = _check_student(run)
        _write_inputs(run, config_text)
        with tracked(run, config_text, sweep):
            summaries, rounds = _all(run, lambda step: log_stage(str(step), _once(run, step, team)))
            if "evaluate" not in summaries:
                log_results(run, None)
                return summaries[run.config.until]
            metrics = metrics_of(run, summaries, rounds).to_row()
            if run.trains:
                write_atomic(directory.student / "README.md", _card(run, architecture, metrics, config_text))
            write_json(directory.metrics, metrics)
            log_results(run, metrics)
        spent = {"budget_usd": run.plan.budget_usd} if rounds.get("rounds_ended") == "budget" else {}
        write_json(directory.done, {"run_id": run.run_id, "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **spent})
        return metrics


def _reopened(run: Run) -> bool:
    """Whether a run whose rounds ended with its budget has another one now."""
    spent = read_json(run.directory.done).get("budget_usd")
    return spent is not None and run.plan.budget_usd != spent


def _all(run: Run, once: Callable[[Step], Summary]) -> tuple[dict[str, Summary], Summary]:
    """The summaries of the run's stages, as far as ``until`` says, and the facts about rounds where there are any."""
    if run.method.round_runner:
        rounds: tuple[dict[str, Summary], Summary] = function(run.method.round_runner)(run, once)
        return rounds
    summaries: dict[str, Summary] = {}
    for stage in run.stages:
        summaries[stage.name] = once(Step(stage))
        if stage.name == run.config.until:
            break
    return summaries, {}


def _check_student(run: Run) -> Architecture | None:
    """A student that cannot be had, or not trained like this, is found out before the teacher is paid, not after.

    Returns:
        The architecture; None for students that are asked, and where ``until`` says that no student is wanted.
    """
    student, trainer = run.config.student, run.config.trainer
    if run.config.until not in ("train", "evaluate") or student.remote:
        return None
    if trainer.devices > 1:
        check_devices(trainer.devices)
    if student.pretrained:
        from fcot.stages.training import lora_of
        from fcot.student.loading import check_student, load_student

        if student.path is not None and run.teacher is not None:  # also its weights, which are at hand
            load_student(student.path)
        architecture: Architecture = check_student(
            student.path or str(student.hub_id), student.revision, student.max_prompt_tokens, student.max_completion_tokens,
            chat=student.chat_template, lora=lora_of(student) if run.trains else None, packing=trainer.packing,
        )  # fmt: skip
        if run.trains and not run.directory.stage("train").exists():
            from fcot.estimate.memory import memory_note

            if note := memory_note(run):
                say(note)
    else:
        architecture = student.architecture
    for_decoders = ("packing", "prompt_loss_weight", "demonstration_loss_weight")
    wanted = [name for name in for_decoders if getattr(trainer, name)] if run.trains else []
    if architecture == "encoder_decoder" and wanted:
        raise FcotError(f"trainer.{' and trainer.'.join(wanted)}: for decoders only, and student={student.name} is an encoder-decoder")
    return architecture


def _once(run: Run, step: Step, team: Team) -> Summary:
    """The summary of a step, from its file or by taking the step."""
    stage, place = step.stage, directory_of(run, step)
    path = place.stage(stage.name)
    if path.exists() and (stage.output is None or (place.path / stage.output).exists()):
        return dict(read_json(path))
    start = time.monotonic()
    spent = path.with_suffix(".interrupted.json")  # by earlier processes that were stopped in this stage
    before = read_json(spent)["seconds"] if spent.exists() else 0.0
    try:
        summary: Summary = team.lead(step, lambda: step.run(run, team.world)) if stage.shared else step.run(run, team.world)
    except BaseException:
        with contextlib.suppress(FcotError):  # the disk may be what is wrong
            write_json(spent, {"seconds": before + time.monotonic() - start})
        raise
    summary["seconds"] = round(before + time.monotonic() - start, 3)
    write_json(path, summary)
    spent.unlink(missing_ok=True)
    if stage.name == "train":
        shutil.rmtree(place.checkpoints, ignore_errors=True)
    return summary


def _card(run: Run, architecture: Architecture | None, metrics: Summary, config_text: str) -> str:
    """The student's model card."""
    from fcot.reporting.card import how_to_use, model_card
    from fcot.student.interface import read_interface

    student = run.config.student
    base = getattr(student, "model", None) or (None if getattr(student, "path", None) else getattr(student, "hub_id", None))
    layout: FormatKind = "chat" if architecture is None or getattr(student, "chat_template", False) else architecture
    use = how_to_use("DIR", layout, read_interface(run.directory.student).format, api=architecture is None)
    terms = run.config.teacher.terms if run.uses_rationales else None
    return model_card(metrics, config_text, terms, base, use)


def _write_inputs(run: Run, config_text: str) -> None:
    """Configuration and split, with the hash of the ordered questions the split's indices refer to, and the test problems' templates."""
    write_atomic(run.directory.config, config_text)
    split = run.split
    order = {"questions_sha256": questions_hash(list(run.problems.values()))}
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    write_json(run.directory.split, order | parts | {"test_templates": templates_of_test(run)})
