"""How fcot reads the answers of SLURM, including missing ones: no state is guessed, no job is submitted twice."""

from __future__ import annotations

import itertools
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from fake_slurm import UNREACHABLE, a_sweep, fake_slurm, write_record  # noqa: F401

from fcot import sweep as command
from fcot.base.errors import FcotError
from fcot.sweeps import controller, ledger, slurm
from fcot.sweeps.controller import MEANING, SlurmState, states
from fcot.sweeps.ledger import Status, cancel_sweep, statuses
from fcot.sweeps.plan import Sweep, read_plan
from fcot.sweeps.slurm import log_of, submissions, submit_sweep

PAGE = Path(__file__).parent.parent / "docs/slurm.md"
SILENT = f"the controller does not answer (squeue: {UNREACHABLE}): try again in a minute"


def call(capsys, *arguments: object) -> tuple[int, str]:
    """The exit code of ``fcot.sweep`` and its whole output in one line."""
    code = 0
    try:
        command.main([str(argument) for argument in arguments])
    except SystemExit as error:
        code = int(error.code or 0)
    captured = capsys.readouterr()
    return code, re.sub(r"\s+", " ", captured.out + captured.err)


def hide_slurm(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


def only_status(sweep: Sweep) -> Status:
    (status,) = statuses(sweep)
    return status


# --- no answer, no SLURM, forgotten ----------------------------------------------------------------------------------


@pytest.mark.parametrize("silence", ["fails", "hangs"])
@pytest.mark.parametrize("recorded_status", [None, "running", "requeued", "stopped", "interrupted"])
def test_the_state_of_a_job_is_unknown_while_slurm_does_not_answer(recorded_status, silence, fake_slurm, tmp_path, monkeypatch, capsys):  # noqa: F811
    sweep = a_sweep(tmp_path, submitted={"0": "7"})
    if recorded_status:
        write_record(sweep, 0, recorded_status, "7")  # no process on this machine has its lock
    fake_slurm.set(queue={"7": "RUNNING"}, **({"fail": {"squeue": UNREACHABLE}} if silence == "fails" else {"hang": ["squeue"]}))
    monkeypatch.setattr(controller, "_PATIENCE_S", 1)
    message = SILENT if silence == "fails" else "the controller does not answer (squeue: no answer within 1 s): try again in a minute"
    code, output = call(capsys, "status", sweep.folder)
    assert (code, "1 unknown" in output, message in output) == (0, True, True), output
    for subcommand in ("rerun", "cancel"):
        code, output = call(capsys, subcommand, sweep.folder)
        assert (code, message in output) == (1, True), output
    assert not fake_slurm.calls("sbatch")
    assert not fake_slurm.calls("scancel")


def test_a_recorded_failure_counts_while_slurm_does_not_answer(fake_slurm, tmp_path):  # noqa: F811
    sweep = a_sweep(tmp_path, submitted={"0": "7"})
    write_record(sweep, 0, "failed", "7")
    fake_slurm.set(fail={"squeue": UNREACHABLE})
    assert only_status(sweep).state == "failed"


def test_a_machine_without_slurm_has_a_message_of_its_own(fake_slurm, tmp_path, monkeypatch, capsys):  # noqa: F811
    sweep = a_sweep(tmp_path, submitted={"0": "7"})
    write_record(sweep, 0, "running", "7")
    hide_slurm(monkeypatch, tmp_path)
    for subcommand, expected in (("status", 0), ("rerun", 1), ("cancel", 1)):
        code, output = call(capsys, subcommand, sweep.folder)
        assert code == expected
        assert "there is no SLURM on this machine (no squeue): use a machine of the cluster" in output
        assert "try again" not in output


def test_a_slurm_that_is_not_set_up_gives_no_advice_to_try_again(fake_slurm, tmp_path, capsys):  # noqa: F811
    sweep = a_sweep(tmp_path, submitted={"0": "7"})
    fake_slurm.set(fail={"squeue": "squeue: fatal: Could not establish a configuration source"})
    output = call(capsys, "rerun", sweep.folder)[1]
    assert "SLURM is not set up on this machine" in output
    assert "SLURM_CONF" in output
    assert "try again" not in output


def test_a_sweep_launched_again_while_slurm_does_not_answer_submits_nothing(fake_slurm, tmp_path, run_fcot):  # noqa: F811
    sweep = ["-m", "seed=0", "hydra/launcher=slurm", "hydra.sweep.dir=outputs/mine", "dataset.n_problems=60", "until=generate"]
    first = run_fcot(*sweep)
    assert first.returncode == 0, first.stderr
    n = len(fake_slurm.calls("sbatch"))
    fake_slurm.set(fail={"squeue": UNREACHABLE})
    second = run_fcot(*sweep)
    assert second.returncode == 1
    assert "try again in a minute" in second.stderr
    assert "already running" not in second.stderr
    assert len(fake_slurm.calls("sbatch")) == n > 0


def test_a_running_job_whose_lock_is_not_visible_is_not_submitted_again(fake_slurm, tmp_path, capsys):  # noqa: F811
    sweep = a_sweep(tmp_path, submitted={"0": "7"})
    write_record(sweep, 0, "running", "7")
    fake_slurm.set(queue={"7": "RUNNING"})
    assert only_status(sweep).state == "running"
    assert "nothing to run again: 1 running" in call(capsys, "rerun", sweep.folder)[1]
    assert not fake_slurm.calls("sbatch")


def test_sacct_is_not_called_for_jobs_that_are_in_the_queue(fake_slurm, tmp_path):  # noqa: F811
    sweep = a_sweep(tmp_path, submitted={"0": "7"})
    fake_slurm.set(queue={"7": "PENDING|Priority"}, fail={"sacct": "sacct: error: Problem talking to the database"})
    assert (only_status(sweep).state, only_status(sweep).details) == ("queued", "Priority")
    assert not fake_slurm.calls("sacct")  # squeue has answered for every job


@pytest.mark.parametrize(("error_log", "output_log", "expected"), [
    ("", "", ("failed", [])),
    ("python: No such file or directory\n", "", ("failed", ["python: No such file or directory"])),
    (None, "srun: error: node7: task 0: Exited\n", ("failed", ["srun: error: node7: task 0: Exited"])),
    (None, None, ("missing", [])),
])  # fmt: skip
def test_a_job_that_slurm_has_forgotten_is_judged_by_its_log(error_log, output_log, expected, fake_slurm, tmp_path, capsys):  # noqa: F811
    sweep = a_sweep(tmp_path, submitted={"0": "7"})
    path = log_of(sweep, "7")
    path.parent.mkdir()
    for text, name in ((error_log, "7_0_log.err"), (output_log, "7_0_log.out")):
        if text is not None:
            (path.parent / name).write_text(text)
    status = only_status(sweep)
    assert (status.state, status.error) == expected
    if error_log is None and output_log is None:
        assert status.details.startswith("SLURM has forgotten it, and it left no files")
        assert "accounting storage is disabled" in status.details
    else:
        assert status.details == "it did not start; SLURM has forgotten it"
        assert status.log.exists()
    assert "again: jobs 0" in call(capsys, "rerun", sweep.folder)[1]  # SLURM answered, so the job has ended


def test_a_job_that_failed_to_start_does_not_show_the_error_of_an_earlier_submission(fake_slurm, tmp_path):  # noqa: F811
    sweep = a_sweep(tmp_path, submitted={"0": "7"})
    write_record(sweep, 0, "failed", "3")
    log_of(sweep, "7").parent.mkdir()
    log_of(sweep, "7").write_text("no such module: cuda/12\n")
    fake_slurm.set(queue={"7": "FAILED"})
    assert (only_status(sweep).details, only_status(sweep).error) == ("it did not start: FAILED", ["no such module: cuda/12"])


def test_a_requeued_job_that_slurm_has_forgotten_is_not_reported_as_cancelled(fake_slurm, tmp_path):  # noqa: F811
    sweep = a_sweep(tmp_path, submitted={"0": "7"})
    write_record(sweep, 0, "requeued", "7")
    assert (only_status(sweep).state, only_status(sweep).details) == ("interrupted", "requeued; SLURM has forgotten it")
    fake_slurm.set(accounting={"7": "CANCELLED by 1000"})
    assert (only_status(sweep).state, only_status(sweep).details) == ("cancelled", "while it ran")


def test_a_task_that_is_missing_from_its_live_array_was_cancelled_before_it_started(fake_slurm, tmp_path):  # noqa: F811
    sweep = a_sweep(tmp_path, n_jobs=3, submitted={"0": "7_0", "1": "7_1", "2": "8"})
    fake_slurm.set(queue={"7_0": "PENDING|Dependency"}, fail={"sacct": "sacct: error: accounting storage is disabled"})
    assert [(status.state, status.details.partition(" (")[0]) for status in statuses(sweep)] == [
        ("queued", "Dependency"),
        ("cancelled", "before it started"),
        ("missing", "SLURM has forgotten it, and it left no files"),  # no task of its array is in the queue, so nothing is known
    ]
    write_record(sweep, 1, "running", "7_1")
    assert statuses(sweep)[1].details == "it was killed"


def test_tasks_that_never_started_share_one_line_of_the_accounting(fake_slurm, tmp_path):  # noqa: F811
    numbers = [*range(4), *range(1000, 1100, 2)]
    sweep = a_sweep(tmp_path, n_jobs=len(numbers), submitted={str(job): f"7_{task}" for job, task in enumerate(numbers)})
    tasks = ",".join(["0-2", *map(str, numbers[4:])])
    fake_slurm.set(queue={"7_3": "RUNNING"}, accounting={f"7_[{tasks}%2]": "CANCELLED by 1000"})
    assert [status.state for status in statuses(sweep)] == [*["cancelled"] * 3, "starting", *["cancelled"] * 50]


# --- SLURM's state words -----------------------------------------------------------------------------------------------

WORDS = """BOOT_FAIL CANCELLED COMPLETED CONFIGURING COMPLETING DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PENDING PREEMPTED RUNNING
RESV_DEL_HOLD REQUEUE_FED REQUEUE_HOLD REQUEUED RESIZING REVOKED SIGNALING SPECIAL_EXIT STAGE_OUT STOPPED SUSPENDED TIMEOUT""".split()


def test_every_state_word_has_one_meaning_and_is_documented():
    rows = [line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    table = {word: row[2].split()[:2] for row in rows for word in re.findall("`([A-Z_]+)`", row[1])}
    wording = {"waits": ["is", "queued"], "lives": ["may", "be"], "ended": ["is", "over"]}
    assert table == {word: wording[meaning] for word, meaning in MEANING.items()}
    assert set(WORDS) <= set(MEANING)
    for word in MEANING:
        state = SlurmState(word)
        assert [state.waits, state.lives, MEANING[word] == "ended"].count(True) == 1
    assert SlurmState("SOMETHING_NEW").lives


@pytest.mark.parametrize("recorded_status", [None, "running", "requeued", "stopped", "failed"])
def test_only_an_ended_job_can_be_run_again(recorded_status, fake_slurm, tmp_path):  # noqa: F811
    words = [*WORDS, "SOMETHING_NEW", "CANCELLED by 123"]
    ids = {str(number): f"7_{number}" for number in range(len(words))}
    sweep = a_sweep(tmp_path, len(words), ids)
    fake_slurm.set(queue={ids[str(number)]: f"{word}|None" for number, word in enumerate(words)})
    for number in range(len(words) if recorded_status else 0):
        write_record(sweep, number, recorded_status, ids[str(number)])
    for word, status in zip(words, statuses(sweep), strict=True):
        meaning = MEANING.get(word.split()[0], "lives")
        if meaning == "waits":
            expected = {"queued"}
        elif recorded_status == "failed":
            expected = {"failed"}
        elif meaning == "lives":
            expected = set(ledger.ACTIVE)
        else:
            expected = {"cancelled"} if word.startswith("CANCELLED") else {"failed", "interrupted"}
        assert status.state in expected, word


def test_the_status_of_a_held_job_says_how_to_release_it(fake_slurm, tmp_path):  # noqa: F811
    sweep = a_sweep(tmp_path, submitted={"0": "7"})
    for word in ("SPECIAL_EXIT", "REQUEUE_HOLD", "RESV_DEL_HOLD"):
        fake_slurm.set(queue={"7": word})
        assert only_status(sweep).details == f"{word}: held; `scontrol release 7` lets it start"


def test_lines_of_squeue_that_describe_no_job_are_skipped(fake_slurm, tmp_path):  # noqa: F811
    sweep = a_sweep(tmp_path, submitted={"0": "7"})
    fake_slurm.set(queue={"7": "RUNNING|None\nwarning of a plugin"})
    assert only_status(sweep).state == "starting"


@pytest.mark.parametrize("ahead_s", [-3600, 0, 3600])
def test_a_clock_that_is_off_changes_no_state(ahead_s, fake_slurm, tmp_path, monkeypatch):  # noqa: F811
    sweep = a_sweep(tmp_path, submitted={"0": "7"})
    write_record(sweep, 0, "requeued", "7")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + ahead_s)
    for word, expected in (("COMPLETING", "queued"), ("PENDING", "queued"), ("RUNNING", "starting"), ("FAILED", "failed")):
        fake_slurm.set(queue={"7": word})
        assert only_status(sweep).state == expected


# --- cancelling ------------------------------------------------------------------------------------------------------


def test_a_scancel_that_fails_is_reported(fake_slurm, tmp_path, capsys):  # noqa: F811
    sweep = a_sweep(tmp_path, submitted={"0": "7"})
    error = "scancel: error: Kill job error on job id 7: Access/permission denied"
    fake_slurm.set(queue={"7": "RUNNING"}, fail={"scancel": error})
    code, output = call(capsys, "cancel", sweep.folder)
    assert code == 1
    assert f"not cancelled: 0 ({error})" in output
    assert "cancelled: 0" not in output.replace("not cancelled: 0", "")


def test_a_scancel_that_fails_because_the_jobs_have_ended_is_no_error(fake_slurm, tmp_path, monkeypatch, capsys):  # noqa: F811
    sweep = a_sweep(tmp_path, submitted={"0": "7"})
    fake_slurm.set(queue={"7": "RUNNING"})
    run = controller._run

    def ended_meanwhile(arguments):
        if arguments[0] == "scancel":
            fake_slurm.set(queue={"7": "COMPLETED"}, fail={"scancel": "scancel: error: Invalid job id specified"})
        return run(arguments)

    monkeypatch.setattr(controller, "_run", ended_meanwhile)
    assert call(capsys, "cancel", sweep.folder) == (0, "cancelled: 0 ")


def test_a_scancel_without_an_answer_is_reported(fake_slurm, tmp_path, monkeypatch):  # noqa: F811
    sweep = a_sweep(tmp_path, submitted={"0": "7"})
    fake_slurm.set(queue={"7": "PENDING"}, hang=["scancel"])
    monkeypatch.setattr(controller, "_PATIENCE_S", 1)
    with pytest.raises(FcotError, match=r"not cancelled: 0 \(scancel: no answer within 1 s\)"):
        cancel_sweep(sweep)


def test_an_array_is_cancelled_by_its_id(fake_slurm, tmp_path, capsys):  # noqa: F811
    first = {str(number): f"7_{number}" for number in range(1000)}
    sweep = a_sweep(tmp_path, 1001, first | {"1000": "8"})
    fake_slurm.set(queue=dict.fromkeys(first.values(), "PENDING") | {"8": "RUNNING", "7_3": "COMPLETED"})
    assert call(capsys, "cancel", sweep.folder) == (0, "cancelled: 0, 1, 2, 4-1000 ")
    assert fake_slurm.calls("scancel") == [["7", "8"]]
    assert {word for job, word in fake_slurm.state["queue"].items() if job != "7_3"} == {"CANCELLED"}


def test_many_submissions_are_cancelled_in_chunks_and_each_failure_is_reported(fake_slurm, tmp_path, capsys):  # noqa: F811
    sweep = a_sweep(tmp_path, 250, {str(number): str(7 + number) for number in range(250)})
    fake_slurm.set(queue={str(7 + number): "PENDING" for number in range(250)})
    assert call(capsys, "cancel", sweep.folder) == (0, "cancelled: 0-249 ")
    calls = fake_slurm.calls("scancel")
    assert len(calls) > 1
    assert max(map(len, calls)) <= 100
    assert list(itertools.chain(*calls)) == [str(7 + number) for number in range(250)]


# --- submitting ------------------------------------------------------------------------------------------------------


def throttles(cluster, jobs) -> list[str]:
    return [re.search(r"--array=(\S+)", cluster.script(job))[1] for job in jobs]


def test_a_sweep_longer_than_an_array_is_submitted_as_several_arrays(fake_slurm, tmp_path, capsys):  # noqa: F811
    fake_slurm.set(max_array_size=4, longest_array=4)
    sweep = a_sweep(tmp_path, 7, array_parallelism=7)
    submit_sweep(sweep, range(7), [], False)
    assert [submission.jobs for submission in submissions(sweep)] == [
        {"0": "7_0", "1": "7_1", "2": "7_2"}, {"3": "8_0", "4": "8_1", "5": "8_2"}, {"6": "9"},
    ]  # fmt: skip
    assert throttles(fake_slurm, "78") == ["0-2%3", "0-2%3"]  # together array_parallelism, in proportion
    assert "submitted: 7 jobs (7, 8, 9)" in capsys.readouterr().err
    assert [status.state for status in statuses(sweep)] == ["queued"] * 7


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_warning_that_comes_while_python_starts_waits_until_the_job_listens(number, fake_slurm, tmp_path):  # noqa: F811
    submit_sweep(a_sweep(tmp_path, 1), [0], [], False)
    (command,) = re.findall(r"--kill-on-bad-exit=1 (.*) -u -m submitit", fake_slurm.script("7"))
    program = """if True:
        import os, sys
        os.kill(os.getpid(), int(sys.argv[1]))  # before any handler is installed
        from fcot.base.stopping import listen, stop_requested
        assert stop_requested() is None
        listen()
        print(stop_requested())
    """
    done = subprocess.run([*shlex.split(command), "-c", program, str(int(number))], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{number!s}\n"), done.stderr


def test_an_array_that_slurm_rejects_as_too_long_is_halved(fake_slurm, tmp_path):  # noqa: F811
    fake_slurm.set(longest_array=3, fail={"scontrol": UNREACHABLE})  # MaxArraySize cannot be read
    sweep = a_sweep(tmp_path, 8)
    submit_sweep(sweep, range(8), [], False)
    assert [len(submission.jobs) for submission in submissions(sweep)] == [2, 2, 2, 2]
    assert not list((sweep.folder / "slurm").glob("????????????????????????????????.pkl"))  # arrays that were rejected leave no files


def test_a_sweep_fills_the_limit_on_submitted_jobs_and_rerun_submits_the_rest(fake_slurm, tmp_path, capsys, monkeypatch):  # noqa: F811
    fake_slurm.set(submit_limit=30)
    sweep = a_sweep(tmp_path, 50)
    with pytest.raises(SystemExit) as ended:
        submit_sweep(sweep, range(50), [], False)
    assert ended.value.code == 1
    output = capsys.readouterr().err
    assert "submitted: 30 jobs" in output
    assert "SLURM accepts no more of your jobs (QOSMaxSubmitJobPerUserLimit" in output
    assert "jobs 30-49 (20 of 50) are not submitted" in output
    assert f"python -m fcot.sweep rerun {sweep.folder}" in output
    accepted = {name for submission in submissions(sweep) for name in submission.jobs}
    assert accepted == {str(number) for number in range(30)}
    assert not fake_slurm.calls("scancel")
    at_once = sum(int(throttle.partition("%")[2]) for throttle in throttles(fake_slurm, sorted({
        slurm_id.partition("_")[0] for submission in submissions(sweep) for slurm_id in submission.jobs.values() if "_" in slurm_id
    })))  # fmt: skip
    assert 12 <= at_once <= 16  # nearly all of array_parallelism for the accepted jobs
    assert [status.state for status in statuses(sweep)] == ["queued"] * 30 + ["missing"] * 20
    monkeypatch.setattr("fcot.sweeps.launch._rerun_jobs", lambda sweep, numbers, launcher: submit_sweep(sweep, sorted(numbers), [], False))
    code, output = call(capsys, "rerun", sweep.folder)
    assert code == 1
    assert "again: jobs 30-49" in output
    assert "requested" in output  # SLURM accepted no job: the message of any rejection
    assert "sacctmgr show qos" in output
    fake_slurm.set(queue={job: "COMPLETED" if job.startswith("7_") else word for job, word in fake_slurm.state["queue"].items()})
    for number in range(25):
        write_record(sweep, number, "done", submissions(sweep)[0].jobs.get(str(number), "0"))
    code, output = call(capsys, "rerun", sweep.folder)
    assert code == 0
    assert "submitted: 20 jobs" in output


def test_the_command_line_submits_a_sweep_larger_than_the_limit_in_two_steps(fake_slurm, tmp_path, run_fcot):  # noqa: F811
    fake_slurm.set(submit_limit=4)
    sweep = ["-m", "seed=range(0,6)", "hydra/launcher=slurm", "hydra.sweep.dir=outputs/mine", "dataset.n_problems=60", "until=curate"]
    first = run_fcot(*sweep)
    assert first.returncode == 1
    assert "submitted: generation job 7, then 3 jobs (8)." in first.stderr
    assert "jobs 3, 4, 5 (3 of 6) are not submitted" in first.stderr
    assert "Traceback" not in first.stderr
    full = run_fcot("rerun", "outputs/mine", module="fcot.sweep")
    assert full.returncode == 1
    assert "SLURM rejects the jobs: QOSMaxSubmitJobPerUserLimit" in full.stderr
    fake_slurm.set(submit_limit=8)
    rest = run_fcot("rerun", "outputs/mine", module="fcot.sweep")
    assert rest.returncode == 0, rest.stderr
    assert "again: jobs 3, 4, 5\n" in rest.stderr
    jobs = [name for submission in submissions(read_plan(tmp_path / "outputs/mine")) for name in submission.jobs]
    assert jobs == ["0", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize(("error", "hint"), [
    ("sbatch: error: Requested time limit is invalid (missing or exceeds some limit)", "hydra.launcher.timeout_min"),
    ("sbatch: error: QOSMaxWallDurationPerJobLimit", "hydra.launcher.timeout_min"),
    ("sbatch: error: AssocMaxSubmitJobLimit", "sacctmgr show"),
    ("sbatch: error: QOSMaxSubmitJobPerUserLimit", "sacctmgr show"),
    ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", "squeue --me"),
])  # fmt: skip
def test_the_message_of_a_rejected_submission_says_what_to_do(error, hint, fake_slurm, tmp_path):  # noqa: F811
    fake_slurm.set(fail={"sbatch": error})
    sweep = a_sweep(tmp_path, 3)
    with pytest.raises(FcotError) as rejection:
        submit_sweep(sweep, range(3), [], False)
    assert error.removeprefix("sbatch: error: ") in str(rejection.value)
    assert hint in str(rejection.value)
    assert not list((sweep.folder / "slurm").glob("*.pkl"))


def test_a_generation_job_that_a_gpu_partition_rejects_needs_a_gpu_or_another_partition(fake_slurm, tmp_path):  # noqa: F811
    fake_slurm.set(fail={"sbatch": "sbatch: error: QOSMinGRES"})
    sweep = a_sweep(tmp_path, 3)
    with pytest.raises(FcotError) as rejection:
        submit_sweep(sweep, range(3), [0], False)
    assert "hydra.launcher.generation.gpus_per_node=1" in str(rejection.value)
    assert "hydra.launcher.generation.partition=NAME" in str(rejection.value)
    assert "gpus_per_node=null" not in str(rejection.value)


def fail_after_first(cluster, monkeypatch, error: str) -> None:
    """Make sbatch fail from the second submission on."""
    submit = slurm._submitted

    def submit_then_fail(*arguments):
        ids = submit(*arguments)
        cluster.set(fail=cluster.state["fail"] | {"sbatch": error})
        return ids

    monkeypatch.setattr(slurm, "_submitted", submit_then_fail)


def test_submitted_jobs_stay_when_slurm_accepts_no_more(fake_slurm, tmp_path, monkeypatch, capsys):  # noqa: F811
    fake_slurm.set(max_array_size=3)
    sweep = a_sweep(tmp_path, 4)
    fail_after_first(fake_slurm, monkeypatch, "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    with pytest.raises(SystemExit):
        submit_sweep(sweep, range(4), [], False)
    output = capsys.readouterr().err
    assert "submitted: 2 jobs (7)" in output
    assert "Socket timed out on send/recv operation): jobs 2, 3 (2 of 4) are not submitted" in output
    assert "squeue --me" in output  # SLURM may have accepted them nevertheless
    assert not fake_slurm.calls("scancel")
    assert [status.state for status in statuses(sweep)] == ["queued", "queued", "missing", "missing"]


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_generation_job_without_its_array_is_cancelled_or_reported(cancelled, fake_slurm, tmp_path, monkeypatch):  # noqa: F811
    fake_slurm.set(fail={} if cancelled else {"scancel": "scancel: error: Unable to contact slurm controller"})
    sweep = a_sweep(tmp_path, 4)
    fail_after_first(fake_slurm, monkeypatch, "sbatch: error: invalid partition specified: gpu")
    with pytest.raises(FcotError, match="invalid partition") as rejection:
        submit_sweep(sweep, range(4), [0], False)
    message = "submitted, and not cancelled: 7 (scancel: error: Unable to contact slurm controller)"
    assert (message in str(rejection.value)) == (not cancelled)
    assert statuses(sweep)[0].state == ("cancelled" if cancelled else "queued")


@pytest.mark.parametrize("name", [0, "generation"])
def test_a_job_whose_submission_was_not_recorded_records_itself(name, fake_slurm, tmp_path, monkeypatch, capsys):  # noqa: F811
    sweep = a_sweep(tmp_path, submitted={"0": "7"})
    monkeypatch.setenv("SLURM_JOB_ID", "9")  # sbatch accepted it, but its answer was lost
    monkeypatch.setattr(slurm, "run_job", lambda sweep, number, after: write_record(sweep, number, "running", "9"))
    monkeypatch.setattr(slurm, "run_generation", lambda sweep, numbers: None)
    monkeypatch.setattr(slurm, "listen", lambda: None)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second time as a requeued job, which is recorded already
        slurm.SlurmTask()(str(sweep.folder), name, [], None)
    assert len(submissions(sweep)) == 2
    fake_slurm.set(queue={"9": "RUNNING"}, accounting={"7": "FAILED"})
    if name == 0:
        assert only_status(sweep).state == "running"  # though its lock is not visible here, and its first submission failed
    assert call(capsys, "cancel", sweep.folder) == (0, f"cancelled: {name} ")
    assert fake_slurm.calls("scancel") == [["9"]]


# --- watching --------------------------------------------------------------------------------------------------------


def test_watching_reads_files_often_and_calls_squeue_twice_per_minute(fake_slurm, tmp_path, monkeypatch, capsys):  # noqa: F811
    sweep = a_sweep(tmp_path, 2, {"0": "7_0", "1": "7_1"})
    fake_slurm.set(queue={"7_0": "RUNNING", "7_1": "RUNNING"})
    clock, polls = [0.0], []

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        polls.append(clock[0])
        if clock[0] == 150:
            fake_slurm.set(fail={"squeue": UNREACHABLE})  # a missing answer does not end the watch
        if clock[0] == 200:
            fake_slurm.set(fail={}, queue={"7_0": "FAILED", "7_1": "FAILED"})

    monkeypatch.setattr(ledger, "time", type("Clock", (), {"monotonic": staticmethod(lambda: clock[0]), "sleep": staticmethod(sleep)}))
    _, output = call(capsys, "status", sweep.folder, "--watch")
    assert "2 failed" in output
    assert clock[0] == 210
    assert len(polls) == 105
    n_queries = len(fake_slurm.calls("squeue"))
    assert n_queries == 8  # at 0, 30, ..., 210, the report at the end included
    assert len(fake_slurm.calls("sacct")) <= n_queries


def test_a_job_submitted_after_the_last_answer_of_slurm_is_queued(fake_slurm, tmp_path):  # noqa: F811
    sweep = a_sweep(tmp_path, 2, {"0": "7"})
    fake_slurm.set(queue={"7": "RUNNING"})
    answer = states(["7"])
    with (sweep.folder / "submissions.jsonl").open("a") as file:
        file.write('{"time": 2.0, "host": "login", "generation": null, "jobs": {"1": "8"}}\n')
    assert [status.state for status in statuses(sweep, slurm=answer)] == ["starting", "queued"]
