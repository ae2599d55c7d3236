"""API-backed students over real HTTP: a killed run starts no second job and buys no answer twice; errors and costs are reported."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import zygote
from configurations import composed
from fake_openai import FakeServer
from test_run import make_run

from fcot.base.errors import ConfigFaults, FcotError
from fcot.config.checks import to_config
from fcot.estimate.dry_run import estimate
from fcot.estimate.needs import money, show
from fcot.evaluate import overrides_of as overrides_of_evaluation
from fcot.llm import calls
from fcot.llm.server import Server
from fcot.predict import main as predict
from fcot.runs.pipeline import execute
from fcot.student.finetune_api import fine_tune
from fcot.sweeps.plan import resolve_job

CONF = Path(__file__).parent.parent / "conf"
NANO = "gpt-4.1-nano-2025-04-14"
SAMPLES = [(f"Question {i}?", f"Reason {i} --> {i}") for i in range(12)]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(calls, "back_off_s", lambda attempt: 0.01)


def overrides_of(server, output, *overrides):
    return [
        f"output_dir={output}", "dataset.n_problems=40", "diversity=2", "student=openai", f"student.model={NANO}",
        f"student.base_url={server.base_url}", "student.poll_s=0.02", "trainer.precision=32-true", *overrides,
    ]  # fmt: skip


def run_of(server, output, *overrides):
    return resolve_job(composed(*overrides_of(server, output, *overrides)))


def tune(
    server,
    folder,
    samples=SAMPLES,
    run_id="run",
    seed=0,
    epochs=4,
    model=NANO,
    poll_s=0.02,
    max_tries=5,
    watch=lambda status: None,
    key=None,
):
    server_settings = Server(
        model=model, model_id=model, chat=True, temperature=0.0, parameters={}, max_tokens_parameter="max_tokens",
        base_url=server.base_url, timeout_s=20.0, group="student", api_key_env=key,
    )  # fmt: skip
    return fine_tune(
        server_settings, samples, Path(folder) / run_id, Path(folder) / "lock",
        run_id=run_id, epochs=epochs, seed=seed, poll_s=poll_s, max_tries=max_tries, watch=watch,
    )  # fmt: skip


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- whole runs ---------------------------------------------------------------------------------------------------------


def test_a_whole_run_from_the_command_line(run_fcot, tmp_path):
    with FakeServer() as server:
        process = run_fcot(*overrides_of(server, "outputs"), NO_PROXY="127.0.0.1")
        assert process.returncode == 0, process.stderr
        stats = server.stats()
        second_process = run_fcot(*overrides_of(server, "outputs"), NO_PROXY="127.0.0.1")
        assert "nothing to do" in second_process.stderr
        assert server.stats()["requests"] == stats["requests"]
    folder = next((tmp_path / "outputs" / "runs").iterdir())
    metrics = json.loads((folder / "metrics.json").read_text())
    (job,) = stats["jobs"]
    assert job["model"] == NANO
    assert job["method"] == {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 4}}}
    assert job["metadata"]["fcot"] == metrics["run_id"]
    assert (metrics["accuracy"], metrics["complete"], metrics["well_formed"]) == (1.0, 1.0, 1.0)
    assert (metrics["accuracy_checkpoint"], metrics["n_validation_problems"], metrics["precision"]) == ("last", 0, None)
    assert metrics["n_train_problems"] == 28
    assert metrics["n_test"] == stats["good_choices"] == 12
    student = json.loads((folder / "student" / "openai.json").read_text())
    assert (student["model"], student["job"], student["file"]) == (job["fine_tuned_model"], job["id"], job["training_file"])
    usage = metrics["student_usage"]
    assert (usage["requests"], usage["prompt_tokens"], usage["completion_tokens"]) == (
        12, stats["prompt_tokens"], stats["completion_tokens"],
    )  # fmt: skip
    assert usage["usd"] == pytest.approx((0.2 * stats["prompt_tokens"] + 0.8 * stats["completion_tokens"]) / 1e6, abs=1e-6)
    assert usage["trained_tokens"] == job["trained_tokens"] > 0
    assert usage["training_usd"] == pytest.approx(1.5 * job["trained_tokens"] / 1e6, abs=1e-6)
    assert metrics["n_steps"] == 4 * -(-metrics["n_reasoning_samples"] // 4), "the server trains with batches of four samples"
    request_body = stats["last"][0]["body"]
    assert (request_body["temperature"], request_body["max_tokens"], request_body["n"]) == (0.0, 1024, 1)
    predictions = rows(folder / "predictions.jsonl")
    assert request_body["messages"] in [[{"role": "user", "content": row["question"]}] for row in predictions]
    assert all(row["completion"].count(" --> ") == 1 and row["n_tokens"] == len(row["completion"].split()) for row in predictions)
    assert "student: $" in process.stdout


@pytest.mark.parametrize("method", ["fine_tune_cot", "fine_tune"])
def test_the_training_file_line_by_line(method, tmp_path):
    with FakeServer() as server:
        run = run_of(server, tmp_path, f"method={method}", "until=train")
        execute(run, "")
    lines = rows(run.directory.fine_tuning / "train.jsonl")
    if method == "fine_tune":
        texts = [(problem.question, problem.answer) for problem in run.select(run.split.train)]
    else:
        kept_rows = [row for row in rows(run.directory.curated) if row["kept"]]
        texts = [(run.problems[row["sample_index"]].question, f"{row['rationale']} --> {row['answer']}") for row in kept_rows]
        assert 28 < len(kept_rows) <= 56
    expected = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in texts]
    assert lines == expected


def test_zero_shot_sends_requests_to_the_base_model_and_trains_nothing(tmp_path):
    with FakeServer() as server:
        run = run_of(server, tmp_path, "method=zero_shot")
        metrics = execute(run, "")
        stats = server.stats()
        other_metrics = execute(run_of(server, tmp_path, "method=zero_shot", "seed=1"), "")
        assert server.stats()["requests"] == stats["requests"], "another seed is the same run"
    assert (stats["jobs"], stats["uploads"]) == ([], 0)
    assert {request["body"]["model"] for request in stats["last"]} == {NANO}
    question = run.problems[run.split.test[0]].question
    assert f"Q: {question}\n\nA:" in [request["body"]["messages"][0]["content"] for request in stats["last"]]
    assert metrics["student_usage"]["usd"] == pytest.approx(
        (0.1 * stats["prompt_tokens"] + 0.4 * stats["completion_tokens"]) / 1e6, abs=1e-6
    )
    assert metrics["accuracy_checkpoint"] == "untrained"
    assert other_metrics == metrics


def test_a_change_of_evaluation_settings_alone_does_not_train_again(tmp_path):
    with FakeServer() as server:
        first = execute(run_of(server, tmp_path), "")
        run = run_of(server, tmp_path, "student.max_new_tokens=500")
        second = execute(run, "")
        assert (len(server.stats()["jobs"]), server.stats()["uploads"]) == (1, 1)
        assert second["run_id"] != first["run_id"]
        assert (first["student_usage"]["training_usd"] > 0, second["student_usage"]["training_usd"]) == (True, 0.0)
        execute(run_of(server, tmp_path, "seed=1"), "")
        execute(run_of(server, tmp_path, "student.epochs=2"), "")
        assert [job["seed"] for job in server.stats()["jobs"]] == [0, 1, 0]
        assert [job["hyperparameters"]["n_epochs"] for job in server.stats()["jobs"]] == [4, 4, 2]


def test_the_metrics_include_all_costs_after_a_stop_between_stages(tmp_path):
    with FakeServer() as server:
        run = run_of(server, tmp_path)
        first = execute(run, "")
        n_requests = server.stats()["requests"]
        for path in (run.directory.stage("train"), run.directory.stage("evaluate"), run.directory.metrics, run.directory.done):
            path.unlink()
        resumed = execute(run_of(server, tmp_path), "")
        assert (len(server.stats()["jobs"]), server.stats()["uploads"], server.stats()["requests"]) == (1, 1, n_requests)
    assert {**resumed, "seconds": None} == {**first, "seconds": None}
    assert first["student_usage"]["training_usd"] > 0


def test_the_run_id_depends_on_training_and_evaluation_settings_only(tmp_path):
    with FakeServer() as server:
        identity = run_of(server, tmp_path).run_id
        unchanged = (
            "student.concurrency=3",
            "student.poll_s=7",
            "student.timeout_s=9",
            "trainer.lr=1",
            "trainer.selection=last",
            "trainer=paper",
        )
        assert {run_of(server, tmp_path, override).run_id for override in unchanged} == {identity}
        changes = ("student.model=gpt-4.1-mini-2025-04-14", "student.epochs=3", "student.max_new_tokens=9", "seed=1")
        assert len({identity, *(run_of(server, tmp_path, override).run_id for override in changes)}) == 5
        server.base_url = "http://127.0.0.1:9/v1"
        assert run_of(server, tmp_path).run_id == identity
        zero_shot = {run_of(server, tmp_path, "method=zero_shot", f"student.epochs={epochs}").run_id for epochs in (3, 4)}
        assert len(zero_shot) == 1


def test_an_answer_that_the_server_never_gives_counts_as_wrong_and_incomplete(tmp_path):
    with FakeServer(["content_filter_400", "length"]) as server:
        run = run_of(server, tmp_path, "student.concurrency=1")
        metrics = execute(run, "")
    predictions = rows(run.directory.predictions)
    assert sum(row["completion"] == "" for row in predictions) == 1
    assert metrics["complete"] == pytest.approx(10 / 12)


def test_a_model_that_is_not_ready_yet_is_reported_and_the_same_command_continues(tmp_path):
    with FakeServer(["404"]) as server:
        with pytest.raises(FcotError, match=rf"no model student\.model=ft:{NANO}\S+ .*\. A model just trained may need some minutes"):
            execute(run_of(server, tmp_path), "")
        assert execute(run_of(server, tmp_path), "")["accuracy"] == 1.0
        assert len(server.stats()["jobs"]) == 1


# --- a finished student -----------------------------------------------------------------------------------------------------


def evaluation(folder, output, *words):
    return make_run(output, *overrides_of_evaluation([str(folder), *words]))


@pytest.fixture
def other_file(tmp_path):
    """A labelled file of 12 problems that the students of these tests were not trained on. The fake server can answer them."""
    problems = make_run(tmp_path, "dataset.n_problems=60").problems
    path = tmp_path / "other.jsonl"
    lines = [{"question": problems[index].question, "answer": problems[index].answer} for index in range(48, 60)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_a_finished_student_is_evaluated_on_its_own_task_from_the_store_and_on_another_one_at_its_server(tmp_path, other_file):
    with FakeServer() as server:
        trained = run_of(server, tmp_path)
        first = execute(trained, "student: {name: openai}\n")
        n_requests = server.stats()["requests"]
        own = evaluation(trained.directory.path, tmp_path, "dataset.n_problems=40", "dataset=toy_arithmetic")
        metrics = execute(own, "")
        assert server.stats()["requests"] == n_requests, "its answers are in the store"
        other = evaluation(trained.directory.path, tmp_path, other_file)
        other_metrics = execute(other, "")
        stats = server.stats()
    assert rows(own.directory.predictions) == rows(trained.directory.predictions)
    assert (metrics["student"], metrics["method"], metrics["accuracy"]) == (first["student"], "as_trained", first["accuracy"])
    assert (metrics["student_task"], metrics["student_method"], metrics["accuracy_checkpoint"]) == (
        "toy_arithmetic", "fine_tune_cot", "finished",
    )  # fmt: skip
    assert len(stats["jobs"]) == 1
    assert stats["requests"] == n_requests + other_metrics["n_test"] == n_requests + 12
    assert {request["body"]["model"] for request in stats["last"][n_requests:]} == {stats["jobs"][0]["fine_tuned_model"]}
    assert other_metrics["student_usage"]["usd"] > 0


def test_a_finished_student_is_not_scored_on_its_training_problems_and_answers_files(tmp_path):
    with FakeServer() as server:
        trained = run_of(server, tmp_path)
        execute(trained, "")
        everything = evaluation(trained.directory.student, tmp_path, "dataset=toy_arithmetic", "dataset.n_problems=40", "split-mode=all")
        assert (everything.split.test, everything.trained_left_out) == (trained.split.test, 28)
        known = trained.problems[trained.split.train[0]]
        lines = [{"question": known.question, "answer": known.answer}, {"question": "How many are 2 + 2?", "answer": "4"}]
        (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        on_file = evaluation(trained.directory.path, tmp_path, str(tmp_path / "mine.jsonl"))
        assert (on_file.split.test, on_file.trained_left_out, on_file.task.rule.answer_type) == ([1], 1, "number")
        assert len({everything.run_id, on_file.run_id, trained.run_id}) == 3


def test_the_dry_run_of_an_evaluation_counts_the_answers_and_no_training(tmp_path, other_file):
    with FakeServer() as server:
        trained = run_of(server, tmp_path)
        execute(trained, "")
        words = (other_file, "dry_run=true")
        result = estimate(evaluation(trained.directory.path, tmp_path, *words), {})
    assert (result.student.answers, result.student.requests) == (12, 12)
    assert not any(result.student.trained_tokens)
    assert 0 < result.student.usd_answers[0] < result.student.usd_answers[2]


def test_a_path_without_a_finished_student_and_a_method_that_trains_are_faults(tmp_path):
    with FakeServer() as server:
        trained = run_of(server, tmp_path)
        execute(trained, "")
        path = f"student.path={trained.directory.student}"
        with pytest.raises(ConfigFaults, match=r"student\.path names a finished API-backed student, and method=fine_tune_cot needs none"):
            run_of(server, tmp_path, path)
        with pytest.raises(ConfigFaults, match=r"student\.path=\S+: no finished API-backed student, because it has no openai\.json"):
            run_of(server, tmp_path, f"student.path={tmp_path}", "method=as_trained")
        with pytest.raises(ConfigFaults, match=r"evaluates a finished student, not student=openai: fcot evaluate FOLDER dataset="):
            run_of(server, tmp_path, "method=as_trained")


def test_headers_reach_the_server_in_training_evaluation_prediction_and_another_evaluation(tmp_path, other_file, monkeypatch, capsys):
    monkeypatch.setenv("TEAM_TOKEN", "team-secret-value-17")
    with FakeServer() as server:
        trained = run_of(server, tmp_path, "++student.headers={X-Team: TEAM_TOKEN}")
        assert trained.run_id == run_of(server, tmp_path).run_id, "headers change no result"
        execute(trained, "")
        execute(evaluation(trained.directory.path, tmp_path, other_file), "")
        predict([str(trained.directory.student), trained.problems[0].question])
        stats = server.stats()
        monkeypatch.delenv("TEAM_TOKEN")
        with pytest.raises(SystemExit):
            predict([str(trained.directory.student), "How many are 2 + 3?"])
        unset = "headers: the environment variable TEAM_TOKEN with the value of X-Team is not set or is empty: export TEAM_TOKEN=..."
        assert f"openai.json, {unset}" in capsys.readouterr().err
        with pytest.raises(ConfigFaults, match=rf"student\.{unset}"):
            run_of(server, tmp_path, "++student.headers={X-Team: TEAM_TOKEN}")
        assert server.stats()["requests"] == stats["requests"]
    assert stats["requests"] == 12 + 12 + 1
    assert {request["headers"].get("x-team") for request in stats["last"]} == {"team-secret-value-17"}
    assert {headers.get("x-team") for headers in stats["tuning_headers"]} == {"team-secret-value-17"}
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"team-secret-value-17" not in written


# --- kills ------------------------------------------------------------------------------------------------------------------


def start(*arguments):
    return zygote.start([__file__, *arguments])


def wait_for(condition, process):
    end = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)


MOMENTS = {  # moment of the kill -> faults that prolong it, and whether the server has reached it
    "uploaded, not recorded": ({"upload": ["late:60"]}, lambda stats, folder: stats["uploads"] == 1),
    "uploaded and recorded": ({"file": ["late:60"]}, lambda stats, folder: (folder / "job.json").exists()),
    "created, not recorded": ({"create": ["late:60"]}, lambda stats, folder: len(stats["jobs"]) == 1),
    "polling": ({"look": [None] * 3 + ["late:60"]}, lambda stats, folder: stats["looks"] == 4),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_any_moment_leaves_one_job_of_one_file(moment, tmp_path):
    faults, is_reached = MOMENTS[moment]
    with FakeServer(tuning_faults=faults, tuning_looks=6) as server:
        process = start("tune", server.base_url, tmp_path)
        wait_for(lambda: is_reached(server.stats(), tmp_path / "run"), process)
        process.kill()
        process.communicate()
        assert ("job" in json.loads((tmp_path / "run" / "job.json").read_text())) if moment == "polling" else True
        tuned = tune(server, tmp_path)
        stats = server.stats()
    (job,) = stats["jobs"]
    assert (tuned.job, tuned.model, tuned.file) == (job["id"], job["fine_tuned_model"], job["training_file"])
    assert stats["uploads"] == (2 if moment == "uploaded, not recorded" else 1)
    assert json.loads((tmp_path / "run" / "job.json").read_text())["file"] == job["training_file"]


def test_a_kill_in_evaluation_buys_no_answer_twice(tmp_path):
    with FakeServer(["slow:60" if i == 7 else None for i in range(8)]) as server:
        process = start("run", *overrides_of(server, tmp_path, "student.concurrency=1"))
        wait_for(lambda: server.stats()["requests"] == 8, process)
        process.kill()
        process.communicate()
        run = run_of(server, tmp_path)
        metrics = execute(run, "")
        stats = server.stats()
    assert len(stats["jobs"]) == 1
    # The eighth request was in flight without an answer: only that one is sent again.
    assert max(stats["good"].values()) == 1
    assert (stats["good_choices"], metrics["student_usage"]["requests"], metrics["accuracy"]) == (12, 12, 1.0)


def test_two_simultaneous_runs_share_one_job(tmp_path):
    with FakeServer(tuning_faults={"create": ["slow:6"]}) as server:  # the first process's job is not listed for six seconds
        processes = [start("tune", server.base_url, tmp_path, "one")]
        wait_for(lambda: "slow" in server.stats()["tuning_faulty"], processes[0])
        processes.append(start("tune", server.base_url, tmp_path, "two"))
        errors = [process.communicate()[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], errors
        assert len(server.stats()["jobs"]) == 1


def test_ctrl_c_leaves_the_job_running(tmp_path):
    with FakeServer(tuning_looks=1000) as server:
        process = start("tune", server.base_url, tmp_path)
        wait_for(lambda: server.stats()["looks"] > 2, process)
        process.send_signal(2)
        error = process.communicate()[1]
        assert "continues at the server; run the same command again to wait for it" in error
        assert [job["status"] for job in server.stats()["jobs"]] == ["running"]


# --- faults -----------------------------------------------------------------------------------------------------------------

TEMPORARY = ["429", "500", "503", "reset", "invalid_json", "empty_body", "no_choices", "null_choice"]


@pytest.mark.parametrize("call", ["upload", "file", "list", "create", "look"])
def test_requests_are_retried_after_temporary_errors(call, tmp_path):
    faults = [*TEMPORARY, "lost"]
    with FakeServer(tuning_faults={call: faults}) as server:
        tuned = tune(server, tmp_path, max_tries=len(faults) + 1)
        stats = server.stats()
    assert stats["tuning_faulty"] == dict.fromkeys(faults, 1), "every fault occurred"
    assert [job["id"] for job in stats["jobs"]] == [tuned.job]
    assert tuned.model == stats["jobs"][0]["fine_tuned_model"]


def test_jobs_are_found_on_later_pages_of_the_list(tmp_path):
    with FakeServer(job_page=2) as server:
        first = tune(server, tmp_path, run_id="first")
        for seed in range(1, 6):
            tune(server, tmp_path, run_id=f"seed{seed}", seed=seed)
        assert tune(server, tmp_path, run_id="again").job == first.job
        assert len(server.stats()["jobs"]) == 6


def test_a_persistent_error_ends_the_run_and_the_same_command_continues(tmp_path):
    with FakeServer(tuning_faults={"look": ["500"] * 3}) as server:
        with pytest.raises(FcotError, match=r"the fine-tuning API fails: .* The same command continues"):
            tune(server, tmp_path, max_tries=3)
        tune(server, tmp_path)
        assert len(server.stats()["jobs"]) == 1


@pytest.mark.parametrize(
    ("fault", "message"), [("failed", "failed: invalid_n_examples: Training file has too few"), ("cancelled", "cancelled: no reason")]
)
def test_the_message_about_a_failed_job_says_how_to_start_another(fault, message, tmp_path):
    with FakeServer(job_faults=[fault]) as server:
        for _ in range(2):
            with pytest.raises(FcotError, match=rf"fine-tuning job ftjob-\w+ {message}.* To start another job, delete .*job\.json"):
                tune(server, tmp_path)
        assert len(server.stats()["jobs"]) == 1, "no second job without an instruction to start it"
        (tmp_path / "run" / "job.json").unlink()
        tuned = tune(server, tmp_path)
        assert [job["id"] for job in server.stats()["jobs"]][1:] == [tuned.job]


def test_too_few_samples_cost_nothing(tmp_path):
    with FakeServer() as server:
        with pytest.raises(FcotError, match=r"9 reasoning samples, .* needs 10 or more"):
            tune(server, tmp_path, SAMPLES[:9])
        assert server.stats()["uploads"] == 0
        tune(server, tmp_path, SAMPLES[:10])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("401", "the server requires a key: .*student.api_key_env=NAME"),
        ("404", r"the server has no model student\.model=gpt-4\.1-nano-2025-04-14: .*model_not_found"),
        ("400", r"the server rejects the request: .* \(student\.model=gpt-4\.1-nano-2025-04-14\)"),
        ("quota", "the account's quota is used up"),
    ],
)
def test_permanent_errors_are_reported_without_an_upload(fault, message, tmp_path):
    with FakeServer(tuning_faults={"list": [fault]}) as server:
        with pytest.raises(FcotError, match=message):
            tune(server, tmp_path)
        assert server.stats()["uploads"] == 0


def test_a_wrong_key_is_in_no_message(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-made-up-0123456789abcdefghij")
    with FakeServer(tuning_faults={"list": ["401"]}) as server, pytest.raises(FcotError) as error:
        tune(server, tmp_path, key="OPENAI_API_KEY")
    assert "the server rejects the key in $OPENAI_API_KEY" in str(error.value)
    assert "sk-made-up" not in str(error.value)
    assert "***" in str(error.value)


def test_a_model_that_cannot_be_trained_is_named(tmp_path):
    with FakeServer(only_model="other") as server, pytest.raises(FcotError, match=r"is not available for fine-tuning.*student\.model="):
        tune(server, tmp_path)


def test_an_unreachable_server_is_reported_within_seconds(tmp_path):
    class Nowhere:
        base_url = "http://127.0.0.1:9/v1"

    with pytest.raises(FcotError, match=r"no server answers at student\.base_url=http://127\.0\.0\.1:9/v1 .* 4 tries"):
        tune(Nowhere, tmp_path, max_tries=20)


@pytest.mark.parametrize(("resource", "call"), [("training file", "file"), ("fine-tuning job", "look")])
def test_a_file_or_job_of_another_server_is_reported(resource, call, tmp_path):
    with FakeServer(tuning_faults={call: ["quota"]}) as server, pytest.raises(FcotError, match="quota"):
        tune(server, tmp_path)
    with FakeServer() as other_server:
        with pytest.raises(
            FcotError,
            match=rf"does not know the {resource} \S+: another student\.base_url or key\? To start another job, delete .*job\.json",
        ):
            tune(other_server, tmp_path)
        (tmp_path / "run" / "job.json").unlink()
        tune(other_server, tmp_path)


def test_other_training_data_start_another_job(tmp_path):
    with FakeServer() as server:
        tune(server, tmp_path)
        tune(server, tmp_path, [*SAMPLES, ("More?", "Yes --> 1")])
        assert len({job["training_file"] for job in server.stats()["jobs"]}) == 2


def test_progress_is_reported(tmp_path):
    statuses = []
    with FakeServer() as server:
        tune(server, tmp_path, watch=statuses.append)
    assert [status.partition(",")[0] for status in statuses] == ["validating_files", "queued", "running"]
    assert "s since it was created" in statuses[0]
    assert "done at about" in statuses[-1]


# --- configuration and money ------------------------------------------------------------------------------------------------


def test_all_configuration_faults_are_reported_together():
    overrides = ["student=openai_gpt4_1_mini", "student.epochs=0", "student.base_url=here", "student.poll_s=0", "student.concurrency=0"]
    with pytest.raises(ConfigFaults) as caught:
        to_config(composed(*overrides))
    assert {fault.partition("=")[0] for fault in caught.value.faults} == {
        "student.epochs", "student.base_url", "student.poll_s", "student.concurrency",
    }  # fmt: skip
    with pytest.raises(ConfigFaults) as caught:
        to_config(composed("student=openai_gpt4_1_mini"))
    assert "OPENAI_API_KEY" in str(caught.value)
    to_config(composed("student=openai_gpt4_1_mini", "until=curate"))


def test_a_dry_run_shows_the_cost_of_training_and_of_answers(tmp_path, capsys):
    with FakeServer() as server:
        run = run_of(server, tmp_path, "method=fine_tune")
        result = estimate(run, {})
        train, test = (run.select(part) for part in (run.split.train, run.split.test))
        characters = sum(len(problem.question) + len(problem.answer) for problem in train)
        assert result.student.trained_tokens == pytest.approx([4 * (characters / part + 28 * 8) for part in (5, 4, 3)])
        assert result.student.usd_training == pytest.approx(result.student.trained_tokens * 1.5 / 1e6, abs=1e-6)
        prompts = sum(len(problem.question) for problem in test)
        assert (result.student.requests, result.steps) == (12, 0)
        assert result.student.prompt_tokens == pytest.approx([prompts / part + 12 * 4 for part in (5, 4, 3)])
        micro_usd = result.student.prompt_tokens * 0.2 + result.student.completion_tokens * 0.8
        assert result.student.usd_answers == pytest.approx(micro_usd / 1e6, abs=1e-6)
        show([result])
        printed = capsys.readouterr().out
        assert f"price of the training     {money(result.student.usd_training)}" in printed
        assert f"price of the answers      {money(result.student.usd_answers)}" in printed
        assert "$1.5 training, $0.2 in, $0.8 out" in printed
        assert "optimizer steps" not in printed
        execute(run, "")
        remaining = estimate(run, {}).student
        assert (remaining.trained_tokens[2], remaining.requests, remaining.usd_training[2]) == (0, 0, 0)
        assert estimate(run_of(server, tmp_path, "method=fine_tune", "until=curate", "method=fine_tune_cot"), {}).student is None


def test_the_interval_of_a_dry_run_contains_the_trained_tokens(tmp_path):
    with FakeServer() as server:
        run = run_of(server, tmp_path)
        before = estimate(run, {}).student.trained_tokens
        execute(run, "")
        texts = [message["content"] for row in rows(run.directory.fine_tuning / "train.jsonl") for message in row["messages"]]
        assert before[0] < 4 * sum(map(len, texts)) / 4 < before[2]


def test_a_model_without_a_price_has_no_cost(tmp_path):
    with FakeServer() as server:
        result = estimate(run_of(server, tmp_path, "student.model=o3"), {})
        assert (result.student.usd_training, result.student.usd_answers) == (None, None)
        assert any("none for models fine-tuned from o3" in note for note in result.notes)
        metrics = execute(run_of(server, tmp_path, "student.model=o3"), "")
    assert (metrics["student_usage"]["usd"], metrics["student_usage"]["training_usd"]) == (None, None)


def main(kind, *arguments):
    class ServerAt:
        base_url = arguments[0]

    if kind == "tune":
        tune(ServerAt, *arguments[1:2], run_id=arguments[2] if len(arguments) > 2 else "run")
    else:
        execute(resolve_job(composed(*arguments)), "")


if __name__ == "__main__":
    main(*sys.argv[1:])
