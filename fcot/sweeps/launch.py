"""From all jobs of a sweep to a plan, and from the plan to processes: in this one, in a pool on this machine, or on SLURM."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcot.base.console import say
from fcot.base.errors import FcotError
from fcot.base.files import exclusive, holder
from fcot.base.resources import PRICES
from fcot.base.stopping import stop_if_requested
from fcot.estimate.hours import about, at_most
from fcot.llm.money import FREE
from fcot.sweeps.controller import SlurmAnswer
from fcot.sweeps.job import read_record, run_job
from fcot.sweeps.ledger import ACTIVE, counts, describe_holder, jobs_to_rerun, refuse_unknown, statuses
from fcot.sweeps.plan import PlannedJob, Sweep, display_path, format_jobs, make_plan, plan_path, read_plan, write_plan
from fcot.sweeps.pool import run_in_pool

if TYPE_CHECKING:
    from fcot.estimate.needs import RunEstimate
    from fcot.runs.run import Run

_SHOWN_JOBS = 3  # of those that failed for one reason


def launch(folder: Path, job_overrides: Sequence[Sequence[str]], searchpath: Sequence[str], launcher: dict[str, Any]) -> None:
    """Plan a sweep and run it; of ``dry_run`` and ``preview`` only look ahead.

    Args:
        folder: The sweep's, made here.
        job_overrides: Of every job.
        searchpath: As :class:`Sweep`'s.
        launcher: The launcher's parameters with its ``kind``.

    Raises:
        FcotError: No job can be run, or SLURM refuses them.
        SystemExit: Jobs failed, after a list of them and the report over the others.
    """
    _check(launcher)
    try:
        sweep, runs = make_plan(folder, job_overrides, searchpath, launcher)
        _refuse_if_all_are_faulty(sweep)
        _check_prices(sweep, runs)
    except FcotError:
        _leave_nothing(folder)
        raise
    if ahead := [run for run in runs.values() if run.config.dry_run or run.config.preview]:
        _look_ahead(sweep, runs, ahead[0].config.preview)
        return
    with exclusive(sweep.launch_lock, say):
        write_plan(sweep)
        found = statuses(sweep, launching=False)
        refuse_unknown(found)
        live = {one.name for one in found if one.state in ACTIVE}
        if live:
            say(f"already running or queued: jobs {format_jobs(live)}")
        _go(sweep, [job for job in sweep.distinct if not sweep.is_complete(job) and job.number not in live], runs)


def rerun(sweep: Sweep, launcher: dict[str, Any]) -> None:
    """Run failed and missing jobs again, or submit them, as their configurations are today; the same errors as :func:`launch`'s.

    Args:
        sweep: Whose.
        launcher: Its parameters, from now on.

    Raises:
        FcotError: Another process runs the sweep here.
    """
    if sweep.launcher["kind"] != "slurm" and (process := holder(sweep.launch_lock)) is not None:
        raise FcotError(f"{sweep.folder} is being run by {describe_holder(process)}: wait for it, or cancel it")
    _check(launcher)
    with exclusive(sweep.launch_lock, say):
        sweep = read_plan(sweep.folder)
        todo = jobs_to_rerun(sweep)
        if not todo:
            say(f"nothing to run again: {counts(statuses(sweep, launching=False))}")
            return
        say(f"again: jobs {format_jobs(job.number for job in todo)}")
        _again(sweep, {job.number for job in todo}, launcher)


def _again(before: Sweep, numbers: Container[int], launcher: dict[str, Any]) -> None:
    """The same of some jobs, under the launch lock; where they are refused, the plan is as it was."""
    sweep = replace(before, launcher=launcher)
    today, runs = make_plan(sweep.folder, [job.overrides for job in sweep.jobs], sweep.searchpath, sweep.launcher)
    for old, now in zip(sweep.jobs, today.jobs, strict=True):
        if old.number in numbers and old.run_id not in (None, now.run_id) and now.run_id is not None:
            say(f"job {now.number} was {old.run_id} and is {now.run_id} now: code, configuration or data have changed since")
    jobs = [now if now.number in numbers else old for old, now in zip(sweep.jobs, today.jobs, strict=True)]
    sweep = replace(sweep, jobs=jobs)
    _refuse_if_all_are_faulty(sweep)
    _check_prices(sweep, runs)
    write_plan(sweep)
    try:
        _go(sweep, [job for job in sweep.distinct if job.number in numbers], runs)
    except FcotError:
        write_plan(before)
        raise


def _go(sweep: Sweep, todo: Sequence[PlannedJob], runs: Mapping[int, Run]) -> None:
    """Start jobs; what does not run elsewhere ends in a report, finished or not."""
    here = sweep.launcher["kind"] != "slurm"
    try:
        _start(sweep, todo, runs)
    except KeyboardInterrupt:
        say(f"\nto go on: python -m fcot.sweep rerun {display_path(sweep.folder)}")
        raise
    finally:
        if here:
            report_sweep(sweep, launching=False)
    if here:
        _tell_failures(sweep)


def _check(launcher: Mapping[str, Any]) -> None:
    """A warning longer before the limit than the limit is long would come at once, again and again."""
    delay, minutes = launcher.get("signal_delay_s"), launcher.get("timeout_min")
    if delay and minutes and delay >= 60 * minutes:
        raise FcotError(
            f"hydra.launcher.signal_delay_s={delay}: the time limit is timeout_min={minutes}, the warning would come at the start"
        )


def _leave_nothing(folder: Path) -> None:
    """Take away what Hydra has made of a sweep that does not take place."""
    if not plan_path(folder).exists():
        (folder / "multirun.yaml").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def _start(sweep: Sweep, todo: Sequence[PlannedJob], runs: Mapping[int, Run]) -> None:
    """Run jobs, or submit them."""
    for line in _faults(sweep):
        say(line)
    here = sweep.launcher["kind"] == "serial"
    if here and not any(_is_paid(runs[job.number]) for job in todo):
        _one_by_one(sweep, todo)
        return
    estimates = estimates_of(todo, runs)
    for line in summary(sweep, todo, runs, estimates):
        say(line)
    if here:
        _one_by_one(sweep, todo)
        return
    generation = generation_order(estimates, runs)
    if sweep.launcher["kind"] == "local":
        run_in_pool(sweep, [job.number for job in todo], generation)
        return
    from fcot.sweeps.slurm import submit_sweep

    on_gpu = any(runs[number].config.teacher.local for number in generation)
    submit_sweep(sweep, [job.number for job in todo], generation, on_gpu)


def _check_prices(sweep: Sweep, runs: Mapping[int, Run]) -> None:
    """A budget of the whole sweep needs the price of every teacher that is paid."""
    usd = sweep.launcher.get("budget_usd")
    if usd is None:
        return
    if usd <= 0:
        raise FcotError(f"hydra.launcher.budget_usd={usd:g}: more than 0")
    for run in runs.values():
        if getattr(run.config.teacher, "batch", False):
            raise FcotError(
                "hydra.launcher.budget_usd does not count what batches cost: teacher=openai, or teacher.budget_usd for each job"
            )
        if run.teacher is not None and run.plan.price is None:
            teacher = run.config.teacher
            raise FcotError(
                f"hydra.launcher.budget_usd needs a price, and {teacher.prices or PRICES} has none for {teacher.model}: teacher.prices=FILE"
            )


def _is_paid(run: Run) -> bool:
    """Whether its teacher may charge something; an unknown price counts."""
    return run.teacher is not None and run.plan.price != FREE


def most_usd(sweep: Sweep, todo: Sequence[PlannedJob], runs: Mapping[int, Run], estimates: Mapping[int, RunEstimate]) -> str | None:
    """What a launch can cost at most, in words; None where nothing is bought from a paid teacher."""
    buying = [runs[job.number].plan for job in todo if estimates[job.number].buys and _is_paid(runs[job.number])]
    if not buying:
        return None
    from fcot.estimate.needs import dollars

    usd, limits = sweep.launcher.get("budget_usd"), [plan.budget_usd for plan in buying]
    known = [limit for limit in limits if limit is not None]
    if len(known) == len(limits) and (usd is None or sum(known) <= usd):
        return f"at most {dollars(sum(known))}: teacher.budget_usd of {len(known)} jobs. hydra.launcher.budget_usd limits them together"
    if usd is not None:
        return f"at most {dollars(usd)} for all jobs together (hydra.launcher.budget_usd)"
    return "no limit is set: hydra.launcher.budget_usd for all jobs together, teacher.budget_usd for each of them"


def _refuse_if_all_are_faulty(sweep: Sweep) -> None:
    """Faults of some jobs are theirs; those of all jobs are the command's, and it ends with them."""
    if not sweep.distinct:
        raise FcotError("\n".join(dict.fromkeys(str(job.fault) for job in sweep.jobs)) + "\nthis holds for every job of the sweep")


# --- what it will cost -----------------------------------------------------------------------------------------------


def estimates_of(todo: Sequence[PlannedJob], runs: Mapping[int, Run]) -> dict[int, RunEstimate]:
    """What jobs would buy and compute, by number; what one buys the later ones do not."""
    from fcot.estimate.dry_run import estimate

    planned: dict[tuple[object, ...], int] = {}
    return {job.number: estimate(runs[job.number], planned, job.overrides) for job in todo}


def generation_order(estimates: Mapping[int, RunEstimate], runs: Mapping[int, Run]) -> list[int]:
    """The jobs that buy from a teacher, the largest D first: of what it buys the others are prefixes."""
    buying = {number for number, one in estimates.items() if one.bought}
    shared = {runs[number].store.path for number in buying}
    touching = [
        number for number in estimates if runs[number].teacher and runs[number].uses_rationales and runs[number].store.path in shared
    ]
    return sorted(touching, key=lambda number: -runs[number].config.diversity)


def summary(sweep: Sweep, todo: Sequence[PlannedJob], runs: Mapping[int, Run], estimates: Mapping[int, RunEstimate]) -> list[str]:
    """What a launch is about to do, in lines."""
    from fcot.estimate.needs import money, sum_of

    jobs = sweep.jobs
    kinds = {
        "to run": len(todo),
        "complete already": sum(sweep.is_complete(job) for job in sweep.distinct),
        "the same as another": sum(job.same_as is not None for job in jobs),
        "with a fault": sum(job.fault is not None for job in jobs),
    }
    lines = [
        f"{len(jobs)} job{'s' if len(jobs) != 1 else ''}: "
        + ", ".join(f"{count} {name}" for name, count in kinds.items() if count or name == "to run")
    ]
    needs = sum_of(list(estimates.values())) if estimates else None
    if needs is not None and needs.bought:
        lines.append(f"teacher: {needs.bought:,} completions to be bought once for all jobs, {money(needs.usd)}")
    if (most := most_usd(sweep, todo, runs, estimates)) is not None:
        lines.append(f"spending: {most}")
    steps = [estimates[job.number].steps for job in todo]
    return [*lines, *filter(None, [about([runs[job.number] for job in todo], steps), at_most(sweep.launcher, len(todo))])]


def _look_ahead(sweep: Sweep, runs: Mapping[int, Run], preview: int | None) -> None:
    """``dry_run`` or ``preview`` of all jobs, which leave nothing behind; exit code 1 where a job cannot be run."""
    _leave_nothing(sweep.folder)
    if preview:
        from fcot.estimate.preview import preview as show_preview

        for run in runs.values():
            show_preview(run, preview)
        return
    from fcot.estimate.needs import show

    todo = [job for job in sweep.distinct if not sweep.is_complete(job)]
    estimates = estimates_of(sweep.distinct, runs)
    show(list(estimates.values()))
    for line in (*_faults(sweep), *summary(sweep, todo, runs, {job.number: estimates[job.number] for job in todo})):
        print(line)
    if any(job.fault is not None for job in sweep.jobs):
        sys.exit(1)


# --- in this process -------------------------------------------------------------------------------------------------


def _one_by_one(sweep: Sweep, todo: Sequence[PlannedJob]) -> None:
    """Jobs in this process; one that fails does not keep the others from running."""
    for job in todo:
        stop_if_requested()
        say(f"job {job.number}: {sweep.label(job)}")
        try:
            run_job(sweep, job.number)
        except FcotError as error:
            say(f"job {job.number} failed: {error}")
        except Exception as error:  # recorded with its traceback
            say(f"job {job.number} failed: {type(error).__name__}: {error}; traceback: {sweep.record(job.number)}")


def _faults(sweep: Sweep) -> list[str]:
    """What is said of jobs that are not run: faults, and equality with another job."""
    faulty = [f"job {job.number} ({sweep.label(job)}) cannot be run: {job.fault}" for job in sweep.jobs if job.fault]
    same = [
        f"job {job.number} ({sweep.label(job)}) is the same run as job {job.same_as}: its method does not use what differs"
        for job in sweep.jobs
        if job.same_as is not None
    ]
    return faulty + same


# --- the end ---------------------------------------------------------------------------------------------------------


def report_sweep(sweep: Sweep, launching: bool | None, slurm: SlurmAnswer | None = None) -> None:
    """The comparison of what the jobs left, whether or not all of them finished, and where to look next.

    Args:
        sweep: The sweep.
        launching: False from the process that launched it and is at its end; None looks whether one does.
        slurm: SLURM's answer about its jobs; None asks.
    """
    from fcot.report import report

    if all(job.until == "generate" for job in sweep.jobs):
        return  # of completions alone there is nothing to compare

    try:
        report([display_path(sweep.folder)], launching=launching, slurm=slurm)
    except FcotError as error:
        say(str(error))


def _tell_failures(sweep: Sweep) -> None:
    """List the failed jobs by what they said.

    Raises:
        SystemExit: There are some.
    """
    failed: dict[str, list[str]] = {}
    for job in sweep.jobs:
        record = read_record(sweep.record(job.number))
        if job.fault or (record and record.status != "done" and not sweep.is_complete(job)):
            why = job.fault or (record and record.error) or "it was killed"
            failed.setdefault(why, []).append(f"{job.number} ({sweep.label(job)})")
    if not failed:
        return
    n = sum(map(len, failed.values()))
    say(f"{n} job{'s' if n != 1 else ''} failed:")
    for message, jobs in failed.items():
        reason = "" if len(jobs) == 1 else f": {message.splitlines()[0]}"
        say(f"  {', '.join(jobs[:_SHOWN_JOBS])}{f' and {len(jobs) - _SHOWN_JOBS} more' if len(jobs) > _SHOWN_JOBS else ''}{reason}")
    say(f"to run what failed again: python -m fcot.sweep rerun {display_path(sweep.folder)}")
    sys.exit(1)
