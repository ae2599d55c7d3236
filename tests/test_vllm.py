"""``launch/vllm`` starts a server, generates with it and stops it: outside SLURM, and on a real SLURM where its packages are installed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest
import zygote

TESTS = Path(__file__).parent
SCRIPT = TESTS.parent / "launch" / "vllm"
MODEL = "Org/Teacher-1.5B"
PROBLEMS, D = 38, 4  # 60 problems, less those of the test set and validation
DATA = ("dataset.n_problems=60", f"diversity={D}")
KEY = "sk-made-up-0123456789abcdefghij"

# Called like `vllm serve`: the fake server with /v1/models and a child process that ignores SIGTERM. FOLDER/PID.json counts its answers.
SERVE = """
import asyncio, json, os, subprocess, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import fake_openai

model = sys.argv[1]
assert sys.argv[2:4] == ["--host", "127.0.0.1"]
del sys.argv[1:4]
child = subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 300"])

class Fake(fake_openai.FakeOpenAI):
    def __init__(self, options):
        super().__init__(options)
        self.tuning.serve = self.models
        self.keep()

    async def models(self, writer, method, path, headers, body):
        print(method, path, flush=True)
        await fake_openai.send(writer, 200, json.dumps({{"data": [{{"id": model}}, {{"id": "adapter"}}]}}).encode())

    async def complete(self, *arguments):
        await super().complete(*arguments)
        self.keep()

    def keep(self):
        state = {{"port": self.options.port, "pids": [os.getpid(), child.pid], "good": self.good.total()}}
        state |= {{"callers": sorted({{f"{{call['authorization']}} {{call['body']['model']}}" for call in self.last}})}}
        path = Path({folder!r}, f"{{os.getpid()}}.json")
        path.with_suffix(".new").write_text(json.dumps(state))
        path.with_suffix(".new").rename(path)

fake_openai.FakeOpenAI = Fake
asyncio.run(fake_openai.main())
"""


def heed_signals():
    """React to signals like a process of a terminal, even if nohup started the tests."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Place:
    """A folder where the script runs, and the servers it has started there."""

    def __init__(self, folder):
        self.folder = folder
        self.served = folder / "served"
        self.served.mkdir()
        serve = folder / "serve.py"
        serve.write_text(SERVE.format(tests=str(TESTS), folder=str(self.served)))
        without = ("OPENAI_API_KEY", "VLLM_API_KEY")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM") and name not in without}
        # A proxy that never answers: requests to the server must not use it.
        self.environment |= {"PYTHON": shlex.join(zygote.python()), "VLLM": f"{sys.executable} {serve}", "http_proxy": "http://127.0.0.1:9"}

    def program(self, name, text):
        """Write the program of a server; returns the command for ``VLLM``."""
        (self.folder / name).write_text(text)
        return f"{sys.executable} {self.folder / name}"

    def start(self, *arguments, options=(), script=(SCRIPT,), model=MODEL, **environment):
        return subprocess.Popen(
            [*script, model, *options, "--", *arguments], cwd=self.folder, env=self.environment | environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heed_signals,
        )  # fmt: skip

    def run(self, *arguments, **settings):
        process = self.start(*arguments, **settings)
        out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def fcot(self, *arguments):
        return zygote.run(["-m", "fcot.run", *arguments], cwd=self.folder, env=self.environment)

    def servers(self):
        return [json.loads(path.read_text()) for path in self.served.glob("*.json")]

    def bought(self):
        return sum(server["good"] for server in self.servers())

    def wait_for(self, bought):
        wait_until(lambda: self.bought() >= bought)

    def stored(self):
        """Keys and slots of the store's rows."""
        rows = [json.loads(line) for path in self.folder.glob("outputs/store/*/*/*/?.jsonl") for line in path.read_text().splitlines()]
        return [(row["key"], row["slot"]) for row in rows]

    def check_whole(self):
        """Every completion was bought once."""
        assert len(set(self.stored())) == len(self.stored()) == self.bought() == PROBLEMS * D

    def check_stopped(self, number=1):
        """All servers have ended, with their child processes. (Another test's server may listen at their port by now.)"""
        assert len(self.servers()) == number
        assert [pid for server in self.servers() for pid in server["pids"] if alive(pid)] == []


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition):
    deadline = time.monotonic() + 600  # on a busy machine everything takes long
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def place(tmp_path):
    workplace = Place(tmp_path)
    yield workplace
    for pid in (pid for server in workplace.servers() for pid in server["pids"] if alive(pid)):  # left running by a failed test
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def script():
    """The script as a module."""
    loader = SourceFileLoader("launch_vllm", str(SCRIPT))
    module = module_from_spec(spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


# --- generations ---------------------------------------------------------------------------------------------------


def test_the_script_generates_and_stops_the_server_and_later_stages_need_no_server(place):
    done = place.run(*DATA, OPENAI_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    place.check_stopped()
    place.check_whole()
    (server,) = place.servers()
    assert server["callers"] == [f"Bearer unused {MODEL}"], "the user's key is not sent"
    assert f"{MODEL} answers after" in done.stderr
    (log,) = place.folder.glob("vllm-*.log")
    assert str(log) in done.stderr
    assert "GET /v1/models" in log.read_text()

    later = place.fcot("teacher=openai", f"teacher.model={MODEL}", "teacher.base_url=http://127.0.0.1:9/v1", "until=curate", *DATA)
    assert later.returncode == 0, later.stderr
    assert f"of {PROBLEMS * D} completions" in later.stdout
    place.check_whole()


LLAMA_CPP = TESTS.parent / "launch" / "llama_cpp"
AS_LLAMA_SERVER = """
import sys
assert sys.argv[1] == "--alias" and sys.argv[3] == "--model", sys.argv
open(sys.argv[4]).close()
del sys.argv[1], sys.argv[2:4]
exec(open({serve!r}).read())
"""


def test_llama_cpp_generates_in_the_same_way(place):
    weights = place.folder / "Small 1.5B.gguf"
    weights.touch()
    server = place.program("llama.py", AS_LLAMA_SERVER.format(serve=str(place.folder / "serve.py")))
    done = place.run(*DATA, script=(LLAMA_CPP,), model=str(weights), LLAMA_SERVER=server)
    assert done.returncode == 0, done.stderr
    assert "llama_cpp: Small 1.5B answers after" in done.stderr
    assert "teacher.model=Small 1.5B, all completions come from the store" in done.stderr
    assert list(place.folder.glob("llama_cpp-*.log"))
    place.check_stopped()
    place.check_whole()


@pytest.mark.parametrize(("arguments", "message"), [
    (["nowhere.gguf", "--", "diversity=1"], "llama_cpp: nowhere.gguf: no such file"),
    (["-c", "8192"], "usage: launch/llama_cpp MODEL.gguf"),
    ([str(LLAMA_CPP)], "usage: launch/llama_cpp MODEL"),
])  # fmt: skip
def test_llama_cpp_says_what_is_wrong_with_its_command(arguments, message):
    done = subprocess.run([LLAMA_CPP, *arguments], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1
    assert message in done.stderr


def test_llama_cpp_has_a_help_text():
    done = subprocess.run([LLAMA_CPP, "--help"], capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "LLAMA_SERVER" in done.stdout


def test_the_users_overrides_win_and_a_key_for_the_server_is_sent(place):
    done = place.run("until=curate", "teacher=openai", "teacher.model=other", *DATA, VLLM_API_KEY="mine")
    assert done.returncode == 0, done.stderr
    assert f"of {PROBLEMS * D} completions" in done.stdout
    (server,) = place.servers()
    assert server["callers"] == ["Bearer mine other"]


def test_a_sweep_generates_once_for_all_its_jobs(place):
    done = place.run("-m", "seed=0,1", "split_mode.validation_fraction=0.1", *DATA)
    assert done.returncode == 0, done.stderr
    place.check_stopped()
    place.check_whole()
    assert len(list(place.folder.glob("outputs/sweeps/*"))) == 1


def test_the_overrides_of_the_script_come_after_options_and_before_the_users_overrides(script):
    python = [*script.shlex.split(os.environ.get("PYTHON") or "python"), "-m", "fcot.run"]
    defaults = ["teacher=openai", "teacher.base_url=URL", "teacher.model='a/b'", "teacher.api_key_env=none", "until=generate"]
    assert script.generation(["seed=1", "until=curate"], "a/b", "URL") == [*python, *defaults, "seed=1", "until=curate"]
    assert script.generation(["-m", "--config-dir", "mine", "seed=1"], "a/b", "URL") == [
        *python,
        "-m",
        "--config-dir",
        "mine",
        *defaults,
        "seed=1",
    ]
    assert script.generation(["-m", "--config-dir=mine"], "a/b", "URL") == [*python, "-m", "--config-dir=mine", *defaults]
    assert script.generation([], "a/b", "URL") == [*python, *defaults]


def test_ports_in_use_and_ports_of_other_jobs_are_not_chosen(script, monkeypatch):
    reserved = [script.free_port() for _ in range(20)]
    assert len({port for port, _ in reserved}) == 20
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        taken = [used.getsockname()[1], reserved[0][0]]
        monkeypatch.setattr(script.random, "sample", lambda *_: [*taken, 20000, 20001, 20002])
        assert script.free_port()[0] not in taken
    for _, reservation in reserved:
        reservation.close()


# --- failures and signals ------------------------------------------------------------------------------------------


def test_if_a_server_dies_at_the_start_its_last_lines_are_shown(place):
    dies = place.program("dies.py", "for i in range(30): print('line', i)\nraise SystemExit(3)")
    done = place.run(*DATA, VLLM=dies, SERVER_PATIENCE_S="100000")  # the guard of place.run would notice waiting
    assert done.returncode == 1
    assert [int(number) for number in re.findall(r"^line (\d+)$", done.stderr, re.MULTILINE)] == list(range(10, 30))
    assert "the server ended before it answered" in done.stderr
    assert not list(place.folder.glob("outputs/store/*"))


def test_a_server_that_does_not_exist_gives_one_message(place):
    done = place.run(*DATA, VLLM="no-such-server serve")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "vllm: no-such-server: No such file or directory")


SILENT = """
import os, signal, time
from pathlib import Path
{ignore}
Path("silent.pid").write_text(str(os.getpid()))
print("loading forever", flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("stubborn", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_server_that_never_answers_is_stopped(place, stubborn):
    """A server that ignores SIGTERM is killed after 20 seconds."""
    silent = place.program("silent.py", SILENT.format(ignore="signal.signal(signal.SIGTERM, signal.SIG_IGN)" if stubborn else ""))
    began = time.monotonic()
    done = place.run(*DATA, VLLM=silent, SERVER_PATIENCE_S="2")
    seconds = time.monotonic() - began
    assert done.returncode == 1
    assert "loading forever" in done.stderr
    assert "within 2 s (SERVER_PATIENCE_S); last error: <urlopen error [Errno 111] Connection refused>" in done.stderr
    assert not alive(int((place.folder / "silent.pid").read_text()))
    if stubborn:
        assert seconds > 20


def test_a_signal_while_the_server_loads_stops_the_server(place):
    silent = place.program("silent.py", SILENT.format(ignore=""))
    process = place.start(*DATA, VLLM=silent)
    wait_until((place.folder / "silent.pid").exists)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=600)
    assert process.returncode == 130
    assert not alive(int((place.folder / "silent.pid").read_text()))


def test_mistakes_are_reported_before_the_server_is_started(place):
    for arguments, message in (
        (["dataset=gsm9k"], "there is no dataset=gsm9k"),
        (["diversity=0"], "diversity=0"),
        (["teacher=oracle"], "there is no teacher.base_url"),
        (["-m", "seed=0,1", "hydra/launcher=slurm"], "leave it out"),
        (["seed=1"], "--host and --port are chosen here"),
    ):
        done = place.run(*arguments, options=["--port=8000"] if arguments == ["seed=1"] else [])
        assert done.returncode == 1
        assert message in done.stderr
    usage = subprocess.run([SCRIPT, MODEL, *DATA], capture_output=True, text=True, check=False)
    assert (usage.returncode, usage.stderr[:6]) == (1, "usage:")
    assert not place.servers()
    assert not list(place.folder.glob("outputs/sweeps"))


def test_a_server_that_dies_during_the_generation_is_reported(place):
    process = place.start(*DATA, "teacher.concurrency=2", options=["--latency", "0.5"])
    place.wait_for(2 * D)
    os.kill(place.servers()[0]["pids"][0], signal.SIGKILL)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "the server ended during the generation" in err
    assert "GET /v1/models" in err
    place.check_stopped()
    assert place.run(*DATA).returncode == 0
    place.check_stopped(2)
    assert len(place.stored()) == len(set(place.stored())) == PROBLEMS * D


@pytest.mark.parametrize(
    ("number", "to_all"),
    [
        (signal.SIGTERM, False),
        (signal.SIGTERM, True),
        (signal.SIGINT, True),
        pytest.param(signal.SIGINT, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR2, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, False, marks=pytest.mark.slow),
    ],
)
def test_a_signal_during_the_generation_keeps_requests_in_flight_and_stops_the_server(place, number, to_all):
    """Sent to the script alone, as by `kill`; or to the generation too, as by a terminal, or by SLURM when a job ends."""
    process = place.start(*DATA, "teacher.concurrency=4", options=["--latency", "1"])
    place.wait_for(2 * D)
    (os.killpg if to_all else os.kill)(process.pid, number)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 128 + number, err
    assert "stopping: waiting for the requests" in err
    place.check_stopped()
    bought = place.bought()
    assert len(set(place.stored())) == len(place.stored()) == bought, "the script waits for requests in flight and keeps their answers"
    assert bought < PROBLEMS * D
    again = place.run(*DATA)
    assert again.returncode == 0, again.stderr
    place.check_stopped(2)
    place.check_whole()


def test_a_warned_generation_abandons_requests_that_take_too_long(place):
    """So the job can requeue itself before its time limit. The server would take ten minutes."""
    (place.folder / "hasty.py").write_text(SCRIPT.read_text().replace("DRAIN_S = 80", "DRAIN_S = 2"))
    faults = json.dumps([None] * 4 + ["slow:600"] * 50)
    process = place.start(*DATA, "teacher.concurrency=4", options=["--faults", faults], script=(sys.executable, "hasty.py"))
    place.wait_for(4 * D)
    process.send_signal(signal.SIGUSR2)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGUSR2
    assert "requests in flight took more than 2 s: abandoned" in err
    place.check_stopped()
    assert place.run(*DATA).returncode == 0
    place.check_whole()


def test_a_job_whose_server_never_loads_in_time_is_not_requeued_forever(script, monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(script, "JOB", "7")
    monkeypatch.setattr(script, "start", lambda command: commands.append(command) or subprocess.Popen(["true"]))
    for restarts, answered in (("", False), ("2", False), ("3", True), ("3", False)):
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        script.requeue(answered)
    assert commands == [["scontrol", "requeue", "7"]] * 3
    assert "warned before the server answered, 4 times, so the job is not requeued; use a longer time limit" in capsys.readouterr().err


# --- on SLURM --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment variables of a cluster on this machine."""
    folder = tmp_path_factory.mktemp("slurm")
    local = TESTS.parent / "launch" / "local_slurm"
    if not local.exists() or shutil.which("sbatch") is None:
        pytest.skip("SLURM's packages are absent")
    try:
        up = subprocess.run([local, "up", folder, "--no-accounting", "--cpus", "4"], capture_output=True, text=True, check=False)
        if re.search("Not installed|only loopback is private", up.stderr):
            pytest.skip(up.stderr.strip())
        assert up.returncode == 0, up.stderr
        yield {"SLURM_CONF": re.search("SLURM_CONF=(.*)", up.stdout)[1]}
    finally:
        subprocess.run([local, "down", folder], check=False)


def sbatch(place, slurm, *arguments, wait=False, options=()):
    """Submit a job; returns its id, with ``wait`` after the end of the job."""
    place.environment |= slurm
    command = ["sbatch", "--parsable", *(["--wait"] if wait else []), "--output=job.out", *options, SCRIPT, MODEL, *arguments]
    done = subprocess.run(command, cwd=place.folder, env=place.environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr + (place.folder / "job.out").read_text()
    return done.stdout.strip()


def run_command(place, *command):
    return subprocess.run(command, env=place.environment, capture_output=True, text=True, check=True).stdout


def state_of(place, job):
    return re.search(r"JobState=(\w+)", run_command(place, "scontrol", "show", "job", job))[1]


@pytest.mark.slow
def test_a_slurm_job_generates_and_stops_the_server(place, slurm):
    job = sbatch(place, slurm, "--", *DATA, options=["--gpus=0", "--job-name=mine"], wait=True)
    assert state_of(place, job) == "COMPLETED"
    place.check_stopped()
    place.check_whole()
    assert (place.folder / f"vllm-{job}.log").exists()
    details = run_command(place, "scontrol", "show", "job", job)
    assert "JobName=mine" in details
    assert "Requeue=1" in details


@pytest.mark.slow
def test_two_slurm_jobs_on_one_node_use_different_ports(place, slurm):
    jobs = [sbatch(place, slurm, "--latency", "0.3", "--", *DATA, f"dataset.generator_seed={i}") for i in range(2)]
    wait_until(lambda: {state_of(place, job) for job in jobs} == {"COMPLETED"})
    place.check_stopped(2)
    assert len({server["port"] for server in place.servers()}) == 2
    assert {server["good"] for server in place.servers()} == {PROBLEMS * D}


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["loading", "generating"])
def test_a_warned_slurm_job_is_requeued_and_continues(place, slurm, moment):
    """Only the batch shell gets the warning, as with --signal=B:USR2@120."""
    if moment == "loading":
        place.environment["VLLM"] = place.program("late.py", LATE.format(serve=str(place.folder / "serve.py")))
    job = sbatch(place, slurm, "--latency", "1", "--", *DATA, "teacher.concurrency=4", options=["--gpus=0"])
    if moment == "loading":
        wait_until((place.folder / "loading").exists)
    else:
        place.wait_for(2 * D)
    run_command(place, "scancel", "--signal=USR2", "--batch", job)
    wait_until(lambda: "Restarts=1" in run_command(place, "scontrol", "show", "job", job))
    assert moment == "loading" or D < place.bought() < PROBLEMS * D
    wait_until(lambda: state_of(place, job) == "COMPLETED")
    place.check_stopped(1 if moment == "loading" else 2)
    place.check_whole()
    output = (place.folder / "job.out").read_text()
    assert "warned of a time limit or a preemption: requeued" in output
    assert ("stopping: waiting for the requests" in output) == (moment == "generating")


LATE = """
import os, sys, time
if not os.path.exists("loading"):
    open("loading", "w").close()
    time.sleep(300)
os.execv(sys.executable, [sys.executable, {serve!r}, *sys.argv[1:]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("warned", [False, True])
def test_a_cancelled_slurm_job_ends_and_is_not_requeued(place, slurm, warned):
    """SLURM sends SIGTERM to all processes of the job, also while it stops after a warning."""
    job = sbatch(place, slurm, "--latency", "3" if warned else "1", "--", *DATA, "teacher.concurrency=4", options=["--gpus=0"])
    place.wait_for(2 * D)
    if warned:
        run_command(place, "scancel", "--signal=USR2", "--batch", job)
        wait_until(lambda: "stopping: waiting" in (place.folder / "job.out").read_text())
    run_command(place, "scancel", job)
    wait_until(lambda: state_of(place, job) == "CANCELLED" and not run_command(place, "squeue", "-h"))
    place.check_stopped()
    assert "requeued" not in (place.folder / "job.out").read_text()
    assert len(set(place.stored())) == len(place.stored()) >= D
