"""Plan the jobs of a sweep and run them: in this process, in a pool on this machine, or on SLURM."""

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
from fcot.llm.money import FREE, no_price_in
from fcot.sweeps.controller import SlurmAnswer
from fcot.sweeps.job import read_record, run_job
from fcot.sweeps.ledger import ACTIVE, counts, describe_holder, jobs_to_rerun, refuse_unknown, statuses
from fcot.sweeps.plan import PlannedJob, Sweep, display_path, format_jobs, make_plan, plan_path, read_plan, write_plan
from fcot.sweeps.pool import run_in_pool

if TYPE_CHECKING:
    from fcot.estimate.needs import RunEstimate
    from fcot.runs.run import Run

_SHOWN_JOBS = 3  # jobs listed for each error message


def launch(folder: Path, job_overrides: Sequence[Sequence[str]], searchpath: Sequence[str], launcher: dict[str, Any]) -> None:
    """Plan a sweep and run it; with ``dry_run`` or ``preview``, only show what it would do.

    Args:
        folder: The sweep's folder, created here.
        job_overrides: The overrides of each job.
        searchpath: Configuration folders that the command added, as in :class:`Sweep`.
        launcher: The launcher's parameters, ``kind`` among them.

    Raises:
        FcotError: No job can be run, or SLURM rejects them.
        SystemExit: Some jobs failed. They were listed, and the others reported.
    """
    try:
        _check(launcher)
        sweep, runs = make_plan(folder, job_overrides, searchpath, launcher)
        _refuse_if_all_are_faulty(sweep)
        _check_prices(sweep, runs)
    except FcotError:
        _remove_empty_sweep(folder)
        raise
    if looking_ahead := [run for run in runs.values() if run.config.dry_run or run.config.preview]:
        _look_ahead(sweep, runs, looking_ahead[0].config.preview)
        return
    with exclusive(sweep.launch_lock, say):
        write_plan(sweep)
        jobs = statuses(sweep, launching=False)
        refuse_unknown(jobs)
        active = {job.name for job in jobs if job.state in ACTIVE}
        if active:
            say(f"already running or queued: jobs {format_jobs(active)}")
        _run_and_report(sweep, [job for job in sweep.distinct if not sweep.is_complete(job) and job.number not in active], runs)


def rerun(sweep: Sweep, launcher: dict[str, Any]) -> None:
    """Run or submit the failed and missing jobs again, with the present configuration.

    Args:
        sweep: The sweep.
        launcher: The launcher's parameters, which replace the planned ones.

    Raises:
        FcotError: Another process is running the sweep, or an error of :func:`launch`.
        SystemExit: As in :func:`launch`.
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
        say(f"running again: jobs {format_jobs(job.number for job in todo)}")
        _rerun_jobs(sweep, {job.number for job in todo}, launcher)


def _rerun_jobs(planned: Sweep, numbers: Container[int], launcher: dict[str, Any]) -> None:
    """Run some jobs again under the launch lock. If they cannot be started, the old plan is restored."""
    sweep = replace(planned, launcher=launcher)
    present, runs = make_plan(sweep.folder, [job.overrides for job in sweep.jobs], sweep.searchpath, sweep.launcher)
    for old, new in zip(sweep.jobs, present.jobs, strict=True):
        if old.number in numbers and old.run_id not in (None, new.run_id) and new.run_id is not None:
            say(f"job {new.number} was {old.run_id} and is {new.run_id} now: code, configuration or data have changed since")
    jobs = [new if new.number in numbers else old for old, new in zip(sweep.jobs, present.jobs, strict=True)]
    sweep = replace(sweep, jobs=jobs)
    _refuse_if_all_are_faulty(sweep)
    _check_prices(sweep, runs)
    write_plan(sweep)
    try:
        _run_and_report(sweep, [job for job in sweep.distinct if job.number in numbers], runs)
    except FcotError:
        write_plan(planned)
        raise


def _run_and_report(sweep: Sweep, todo: Sequence[PlannedJob], runs: Mapping[int, Run]) -> None:
    """Run or submit jobs. A sweep on this machine ends with a report, even if it was interrupted."""
    is_local = sweep.launcher["kind"] != "slurm"
    try:
        _start(sweep, todo, runs)
    except KeyboardInterrupt:
        say(f"\nto continue: python -m fcot.sweep rerun {display_path(sweep.folder)}")
        raise
    finally:
        if is_local:
            report_sweep(sweep, launching=False)
    if is_local:
        _list_failures(sweep)


def _check(launcher: Mapping[str, Any]) -> None:
    """Check the launcher's options.

    Raises:
        FcotError: ``signal_delay_s`` is not shorter than the time limit, so that jobs would be requeued forever; or there are options for
            sbatch, and the launcher submits nothing.
    """
    if launcher["kind"] != "slurm" and launcher.get("additional_parameters"):
        raise FcotError(
            f"hydra.launcher.additional_parameters: hydra/launcher={launcher['kind']} has no such option; slurm and slurm_ddp have it"
        )
    delay, minutes = launcher.get("signal_delay_s"), launcher.get("timeout_min")
    if delay and minutes and delay >= 60 * minutes:
        raise FcotError(
            f"hydra.launcher.signal_delay_s={delay}: the time limit is timeout_min={minutes}, so the warning would come at the start; "
            "set a shorter signal_delay_s or a longer timeout_min"
        )


def _remove_empty_sweep(folder: Path) -> None:
    """Remove what Hydra created for a sweep that does not start."""
    if not plan_path(folder).exists():
        (folder / "multirun.yaml").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def _start(sweep: Sweep, todo: Sequence[PlannedJob], runs: Mapping[int, Run]) -> None:
    """Run jobs, or submit them."""
    for line in _skipped_jobs(sweep):
        say(line)
    is_serial = sweep.launcher["kind"] == "serial"
    if is_serial and not any(_is_paid(runs[job.number]) for job in todo):
        _run_serially(sweep, todo)
        return
    estimates = estimates_of(todo, runs)
    warnings = (note for needs in estimates.values() for note in needs.notes if note.startswith("warning:"))
    for line in dict.fromkeys([*summary(sweep, todo, runs, estimates), *warnings]):
        say(line)
    if is_serial:
        _run_serially(sweep, todo)
        return
    generation = generation_order(estimates, runs)
    if sweep.launcher["kind"] == "local":
        run_in_pool(sweep, [job.number for job in todo], generation)
        return
    from fcot.sweeps.slurm import submit_sweep

    on_gpu = any(runs[number].config.teacher.local for number in generation)
    submit_sweep(sweep, [job.number for job in todo], generation, on_gpu)


def _check_prices(sweep: Sweep, runs: Mapping[int, Run]) -> None:
    """Check that a budget of the whole sweep can be enforced: the price of each teacher must be known.

    Raises:
        FcotError: The budget is not positive, a price is unknown, or a teacher sends batches.
    """
    usd = sweep.launcher.get("budget_usd")
    if usd is None:
        return
    if usd <= 0:
        raise FcotError(f"hydra.launcher.budget_usd={usd:g}: it must be more than 0")
    for run in runs.values():
        if getattr(run.config.teacher, "batch", False):
            raise FcotError(
                "hydra.launcher.budget_usd does not count what batches cost: use teacher=openai, or set teacher.budget_usd for each job"
            )
        if run.teacher is not None and run.plan.price is None:
            teacher = run.config.teacher
            none = no_price_in(Path(teacher.prices or PRICES), teacher.model)
            raise FcotError(f"hydra.launcher.budget_usd needs a price, and {none}: teacher.prices=FILE")


def _is_paid(run: Run) -> bool:
    """Whether the run's teacher may cost money; a teacher of unknown price may."""
    return run.teacher is not None and run.plan.price != FREE


def most_usd(sweep: Sweep, todo: Sequence[PlannedJob], runs: Mapping[int, Run], estimates: Mapping[int, RunEstimate]) -> str | None:
    """The most a launch can cost, in words; None if nothing is bought from a paid teacher."""
    buying = [runs[job.number].plan for job in todo if estimates[job.number].buys and _is_paid(runs[job.number])]
    if not buying:
        return None
    from fcot.estimate.needs import dollars

    usd, limits = sweep.launcher.get("budget_usd"), [plan.budget_usd for plan in buying]
    set_limits = [limit for limit in limits if limit is not None]
    if len(set_limits) == len(limits) and (usd is None or sum(set_limits) <= usd):
        total = dollars(sum(set_limits))
        return f"at most {total}: teacher.budget_usd of {len(set_limits)} jobs. hydra.launcher.budget_usd limits them together"
    if usd is not None:
        return f"at most {dollars(usd)} for all jobs together (hydra.launcher.budget_usd)"
    return "no limit is set: hydra.launcher.budget_usd for all jobs together, teacher.budget_usd for each of them"


def _refuse_if_all_are_faulty(sweep: Sweep) -> None:
    """Stop a sweep in which no job can be run.

    Raises:
        FcotError: Every job has a fault.
    """
    if not sweep.distinct:
        raise FcotError("\n".join(dict.fromkeys(str(job.fault) for job in sweep.jobs)) + "\nthis holds for every job of the sweep")


# --- estimates -------------------------------------------------------------------------------------------------------


def estimates_of(todo: Sequence[PlannedJob], runs: Mapping[int, Run]) -> dict[int, RunEstimate]:
    """What each job would buy and compute, by job number; completions that several jobs share count for the first of them only."""
    from fcot.estimate.dry_run import estimate

    planned: dict[tuple[object, ...], int] = {}
    return {job.number: estimate(runs[job.number], planned, job.overrides) for job in todo}


def generation_order(estimates: Mapping[int, RunEstimate], runs: Mapping[int, Run]) -> list[int]:
    """The jobs that need completions which are not bought yet, largest D first: the completions of a smaller D are a prefix of them."""
    buying = {number for number, estimate in estimates.items() if estimate.bought}
    stores = {runs[number].store.path for number in buying}
    needing = [
        number for number in estimates if runs[number].teacher and runs[number].uses_rationales and runs[number].store.path in stores
    ]
    return sorted(needing, key=lambda number: -runs[number].config.diversity)


def summary(sweep: Sweep, todo: Sequence[PlannedJob], runs: Mapping[int, Run], estimates: Mapping[int, RunEstimate]) -> list[str]:
    """Lines that say what a launch will run, buy and cost."""
    from fcot.estimate.needs import money, sum_of

    jobs = sweep.jobs
    kinds = {
        "to run": len(todo),
        "already complete": sum(sweep.is_complete(job) for job in sweep.distinct),
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
    if needs is not None and needs.judge is not None and needs.judge.requests[2]:
        lines.append(f"judge: about {needs.judge.requests[1]:,.0f} verdicts to be bought once for all jobs, {money(needs.judge.usd)}")
    if needs is not None and needs.scores is not None:
        lines.append(f"scores: about {needs.scores.requests[1]:,.0f} of the students' own samples, {money(needs.scores.usd)}")
    if (most := most_usd(sweep, todo, runs, estimates)) is not None:
        lines.append(f"spending: {most}")
    steps = [estimates[job.number].steps for job in todo]
    return [*lines, *filter(None, [about([runs[job.number] for job in todo], steps), at_most(sweep.launcher, len(todo))])]


def _look_ahead(sweep: Sweep, runs: Mapping[int, Run], preview: int | None) -> None:
    """Show the ``dry_run`` or ``preview`` of all jobs, and leave no files.

    Raises:
        SystemExit: With code 1 after a dry run, if a job cannot be run.
    """
    _remove_empty_sweep(sweep.folder)
    if preview:
        from fcot.estimate.preview import preview as show_preview

        for run in runs.values():
            show_preview(run, preview)
        return
    from fcot.estimate.needs import show

    todo = [job for job in sweep.distinct if not sweep.is_complete(job)]
    estimates = estimates_of(sweep.distinct, runs)
    show(list(estimates.values()))
    for line in (*_skipped_jobs(sweep), *summary(sweep, todo, runs, {job.number: estimates[job.number] for job in todo})):
        print(line)
    if any(job.fault is not None for job in sweep.jobs):
        sys.exit(1)


# --- in this process -------------------------------------------------------------------------------------------------


def _run_serially(sweep: Sweep, todo: Sequence[PlannedJob]) -> None:
    """Run jobs in this process, one after another. If one fails, the others still run."""
    for job in todo:
        stop_if_requested()
        say(f"job {job.number}: {sweep.label(job)}")
        try:
            run_job(sweep, job.number)
        except FcotError as error:
            say(f"job {job.number} failed: {error}")
        except Exception as error:  # the job's record has the traceback
            say(f"job {job.number} failed: {type(error).__name__}: {error}; traceback: {sweep.record(job.number)}")


def _skipped_jobs(sweep: Sweep) -> list[str]:
    """Lines about the jobs that are not run: those with a fault, and those that are the same run as another job."""
    faulty = [f"job {job.number} ({sweep.label(job)}) cannot be run: {job.fault}" for job in sweep.jobs if job.fault]
    same = [
        f"job {job.number} ({sweep.label(job)}) is the same run as job {job.same_as}: its method does not use the options that differ"
        for job in sweep.jobs
        if job.same_as is not None
    ]
    return faulty + same


# --- the end ---------------------------------------------------------------------------------------------------------


def report_sweep(sweep: Sweep, launching: bool | None, slurm: SlurmAnswer | None = None) -> None:
    """Report the finished jobs, and name the unfinished ones.

    Args:
        sweep: The sweep.
        launching: Whether a process is launching the sweep; None checks. The launching process passes False at its end.
        slurm: SLURM's answer about the jobs; None queries SLURM.
    """
    from fcot.report import report

    if all(job.until == "generate" for job in sweep.jobs):
        return  # completions alone give nothing to compare

    try:
        report([display_path(sweep.folder)], launching=launching, slurm=slurm)
    except FcotError as error:
        say(str(error))


def _list_failures(sweep: Sweep) -> None:
    """List the failed jobs.

    Raises:
        SystemExit: With code 1, if a job failed.
    """
    if lines := failure_lines(sweep):
        say("\n".join(lines))
        sys.exit(1)


def failure_lines(sweep: Sweep) -> list[str]:
    """Lines that list the failed jobs, grouped by error message; none if no job failed."""
    failed: dict[str, list[str]] = {}
    for job in sweep.jobs:
        record = read_record(sweep.record(job.number))
        if job.fault or (record and record.status != "done" and not sweep.is_complete(job)):
            why = job.fault or (record and record.error) or "it was killed"
            failed.setdefault(why, []).append(f"{job.number} ({sweep.label(job)})")
    if not failed:
        return []
    n = sum(map(len, failed.values()))
    lines = [f"{n} job{'s' if n != 1 else ''} failed:"]
    for message, jobs in failed.items():
        first, *further = message.splitlines()
        reason = f"{first} {further[0].strip(' -')}" if first.endswith(":") and further else first
        more = f" and {len(jobs) - _SHOWN_JOBS} more" if len(jobs) > _SHOWN_JOBS else ""
        lines.append(f"  {', '.join(jobs[:_SHOWN_JOBS])}{more}: {reason}")
    return [*lines, f"to run the failed jobs again: python -m fcot.sweep rerun {display_path(sweep.folder)}"]
