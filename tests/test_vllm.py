"""``launch/vllm``: a server, a generation with it and its end; outside SLURM, and on a real one where its packages are there."""

from __future__ import annotations

import json
import os
import re
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

TESTS = Path(__file__).parent
SCRIPT = TESTS.parent / "launch" / "vllm"
MODEL = "Org/Teacher-1.5B"
PROBLEMS, D = 38, 4  # 60 problems, less those of the test set and validation
DATA = ("dataset.n_problems=60", f"diversity={D}")
KEY = "sk-made-up-0123456789abcdefghij"

# Called as `vllm serve` is: the fake server, with /v1/models, and with a process of its own that takes no SIGTERM.
# It keeps in FOLDER/PID.json what it has answered.
SERVE = """
import asyncio, json, os, subprocess, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import fake_openai

model, seen = sys.argv[1], set()
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
        kept = {{"port": self.options.port, "pids": [os.getpid(), child.pid], "good": self.good.total()}}
        kept |= {{"asked": sorted({{f"{{one['authorization']}} {{one['body']['model']}}" for one in self.last}})}}
        path = Path({folder!r}, f"{{os.getpid()}}.json")
        path.with_suffix(".new").write_text(json.dumps(kept))
        path.with_suffix(".new").rename(path)

fake_openai.FakeOpenAI = Fake
asyncio.run(fake_openai.main())
"""


def heed_signals():
    """As a process of a terminal does, also where nohup started the tests."""
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
        # A proxy that answers nobody: the server is asked directly.
        self.environment |= {"PYTHON": sys.executable, "VLLM": f"{sys.executable} {serve}", "http_proxy": "http://127.0.0.1:9"}

    def program(self, name, text):
        """A server of one's own, as ``VLLM`` names it."""
        (self.folder / name).write_text(text)
        return f"{sys.executable} {self.folder / name}"

    def start(self, *arguments, options=(), script=(SCRIPT,), model=MODEL, **environment):
        return subprocess.Popen(
            [*script, model, *options, "--", *arguments], cwd=self.folder, env=self.environment | environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heed_signals,
        )  # fmt: skip

    def run(self, *arguments, **more):
        process = self.start(*arguments, **more)
        out, err = process.communicate(timeout=180)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def fcot(self, *arguments):
        return subprocess.run(
            [sys.executable, "-m", "fcot.run", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=180,
        )

    def servers(self):
        return [json.loads(path.read_text()) for path in self.served.glob("*.json")]

    def bought(self):
        return sum(server["good"] for server in self.servers())

    def wait_for(self, bought, seconds=60.0):
        wait_until(lambda: self.bought() >= bought, seconds)

    def stored(self):
        """Keys and slots of the store's rows."""
        rows = [json.loads(line) for path in self.folder.glob("outputs/store/*/*/*/?.jsonl") for line in path.read_text().splitlines()]
        return [(row["key"], row["slot"]) for row in rows]

    def check_whole(self):
        """Everything was bought, once."""
        assert len(set(self.stored())) == len(self.stored()) == self.bought() == PROBLEMS * D

    def check_stopped(self, number=1):
        """Nothing of the servers is left."""
        assert len(self.servers()) == number
        for server in self.servers():
            assert [pid for pid in server["pids"] if alive(pid)] == []
            with socket.socket() as client:
                assert client.connect_ex(("127.0.0.1", server["port"])) != 0


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.1)


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    for pid in (pid for server in made.servers() for pid in server["pids"] if alive(pid)):  # of a test that has failed
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def script():
    """The script as a module."""
    loader = SourceFileLoader("launch_vllm", str(SCRIPT))
    module = module_from_spec(spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


# --- all goes well ---------------------------------------------------------------------------------------------------


def test_it_generates_stops_the_server_and_what_comes_later_needs_none(place):
    done = place.run(*DATA, OPENAI_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    place.check_stopped()
    place.check_whole()
    (server,) = place.servers()
    assert server["asked"] == [f"Bearer unused {MODEL}"], "the user's key stays here"
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


@pytest.mark.parametrize(("arguments", "said"), [
    (["nowhere.gguf", "--", "diversity=1"], "llama_cpp: nowhere.gguf: no such file"),
    (["-c", "8192"], "usage: launch/llama_cpp MODEL.gguf"),
    ([str(LLAMA_CPP)], "usage: launch/llama_cpp MODEL"),
])  # fmt: skip
def test_llama_cpp_says_what_is_wrong_with_its_command(arguments, said):
    done = subprocess.run([LLAMA_CPP, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert said in done.stderr


def test_llama_cpp_explains_itself():
    done = subprocess.run([LLAMA_CPP, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "LLAMA_SERVER" in done.stdout


def test_the_users_overrides_win_and_a_key_for_the_server_is_sent(place):
    done = place.run("until=curate", "teacher=openai", "teacher.model=other", *DATA, VLLM_API_KEY="mine")
    assert done.returncode == 0, done.stderr
    assert f"of {PROBLEMS * D} completions" in done.stdout
    (server,) = place.servers()
    assert server["asked"] == ["Bearer mine other"]


def test_a_sweep_generates_once_for_all_its_jobs(place):
    done = place.run("-m", "seed=0,1", "split_mode.validation_fraction=0.1", *DATA)
    assert done.returncode == 0, done.stderr
    place.check_stopped()
    place.check_whole()
    assert len(list(place.folder.glob("outputs/sweeps/*"))) == 1


def test_the_given_overrides_come_before_the_users_and_behind_options(script):
    python = [*script.shlex.split(os.environ.get("PYTHON") or "python"), "-m", "fcot.run"]
    ours = ["teacher=openai", "teacher.base_url=URL", "teacher.model='a/b'", "teacher.api_key_env=none", "until=generate"]
    assert script.generation(["seed=1", "until=curate"], "a/b", "URL") == [*python, *ours, "seed=1", "until=curate"]
    assert script.generation(["-m", "--config-dir", "mine", "seed=1"], "a/b", "URL") == [
        *python,
        "-m",
        "--config-dir",
        "mine",
        *ours,
        "seed=1",
    ]
    assert script.generation(["-m", "--config-dir=mine"], "a/b", "URL") == [*python, "-m", "--config-dir=mine", *ours]
    assert script.generation([], "a/b", "URL") == [*python, *ours]


def test_ports_in_use_and_those_of_other_jobs_are_not_taken(script, monkeypatch):
    held = [script.free_port() for _ in range(20)]
    assert len({port for port, _ in held}) == 20
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        taken = [used.getsockname()[1], held[0][0]]
        monkeypatch.setattr(script.random, "sample", lambda *_: [*taken, 20000, 20001, 20002])
        assert script.free_port()[0] not in taken
    for _, reservation in held:
        reservation.close()


# --- it does not -----------------------------------------------------------------------------------------------------


def test_a_server_that_dies_at_the_start_is_noticed_and_its_last_lines_are_shown(place):
    dies = place.program("dies.py", "for i in range(30): print('line', i)\nraise SystemExit(3)")
    began = time.monotonic()
    done = place.run(*DATA, VLLM=dies)
    assert time.monotonic() - began < 20
    assert done.returncode == 1
    assert [int(number) for number in re.findall(r"^line (\d+)$", done.stderr, re.MULTILINE)] == list(range(10, 30))
    assert "the server ended before it answered" in done.stderr
    assert not list(place.folder.glob("outputs/store/*"))


def test_a_server_that_does_not_exist(place):
    done = place.run(*DATA, VLLM="no-such-server serve")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "vllm: no-such-server: No such file or directory")


SILENT = """
import os, signal, time
from pathlib import Path
{ignore}
Path("silent.pid").write_text(str(os.getpid()))
print("loading for ever", flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("stubborn", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_server_that_never_answers(place, stubborn):
    """One that takes no SIGTERM is killed after 20 seconds."""
    silent = place.program("silent.py", SILENT.format(ignore="signal.signal(signal.SIGTERM, signal.SIG_IGN)" if stubborn else ""))
    began = time.monotonic()
    done = place.run(*DATA, VLLM=silent, SERVER_PATIENCE_S="2")
    seconds = time.monotonic() - began
    assert done.returncode == 1
    assert "loading for ever" in done.stderr
    assert "within 2 s (SERVER_PATIENCE_S); last error: <urlopen error [Errno 111] Connection refused>" in done.stderr
    assert not alive(int((place.folder / "silent.pid").read_text()))
    assert (seconds > 20) == stubborn


def test_a_signal_while_the_server_loads(place):
    silent = place.program("silent.py", SILENT.format(ignore=""))
    process = place.start(*DATA, VLLM=silent)
    wait_until((place.folder / "silent.pid").exists, 60)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert not alive(int((place.folder / "silent.pid").read_text()))


def test_mistakes_are_found_before_the_server_is_started(place):
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


def test_a_server_that_dies_while_it_is_asked(place):
    process = place.start(*DATA, "teacher.concurrency=2", options=["--latency", "0.5"])
    place.wait_for(2 * D)
    os.kill(place.servers()[0]["pids"][0], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
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
def test_a_signal_during_the_generation(place, number, to_all):
    """As `kill` sends it to the script alone; as a terminal, or SLURM at its end, to the generation too."""
    process = place.start(*DATA, "teacher.concurrency=4", options=["--latency", "1"])
    place.wait_for(2 * D)
    (os.killpg if to_all else os.kill)(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "stopping: waiting for what was sent" in err
    place.check_stopped()
    bought = place.bought()
    assert len(set(place.stored())) == len(place.stored()) == bought, "what was in flight is waited for and kept"
    assert bought < PROBLEMS * D
    again = place.run(*DATA)
    assert again.returncode == 0, again.stderr
    place.check_stopped(2)
    place.check_whole()


def test_a_warned_generation_whose_requests_take_too_long_is_left(place):
    """So that the job can requeue itself before its limit; the server would take ten minutes."""
    (place.folder / "hasty.py").write_text(SCRIPT.read_text().replace("DRAIN_S = 80", "DRAIN_S = 2"))
    faults = json.dumps([None] * 4 + ["slow:600"] * 50)
    process = place.start(*DATA, "teacher.concurrency=4", options=["--faults", faults], script=(sys.executable, "hasty.py"))
    place.wait_for(4 * D)
    process.send_signal(signal.SIGUSR2)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGUSR2
    assert "requests in flight took more than 2 s: abandoned" in err
    place.check_stopped()
    assert place.run(*DATA).returncode == 0
    place.check_whole()


def test_a_job_whose_server_never_loads_in_time_is_not_requeued_for_ever(script, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(script, "JOB", "7")
    monkeypatch.setattr(script, "start", lambda command: asked.append(command) or subprocess.Popen(["true"]))
    for restarts, answered in (("", False), ("2", False), ("3", True), ("3", False)):
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        script.requeue(answered)
    assert asked == [["scontrol", "requeue", "7"]] * 3
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
    """Its id, after its end where that is waited for."""
    place.environment |= slurm
    command = ["sbatch", "--parsable", *(["--wait"] if wait else []), "--output=job.out", *options, SCRIPT, MODEL, *arguments]
    done = subprocess.run(command, cwd=place.folder, env=place.environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr + (place.folder / "job.out").read_text()
    return done.stdout.strip()


def tell(place, *command):
    return subprocess.run(command, env=place.environment, capture_output=True, text=True, check=True).stdout


def state_of(place, job):
    return re.search(r"JobState=(\w+)", tell(place, "scontrol", "show", "job", job))[1]


@pytest.mark.slow
def test_a_slurm_job(place, slurm):
    job = sbatch(place, slurm, "--", *DATA, options=["--gpus=0", "--job-name=mine"], wait=True)
    assert state_of(place, job) == "COMPLETED"
    place.check_stopped()
    place.check_whole()
    assert (place.folder / f"vllm-{job}.log").exists()
    shown = tell(place, "scontrol", "show", "job", job)
    assert "JobName=mine" in shown
    assert "Requeue=1" in shown


@pytest.mark.slow
def test_two_slurm_jobs_on_one_node(place, slurm):
    jobs = [sbatch(place, slurm, "--latency", "0.3", "--", *DATA, f"dataset.generator_seed={i}") for i in range(2)]
    wait_until(lambda: {state_of(place, job) for job in jobs} == {"COMPLETED"}, 120)
    place.check_stopped(2)
    assert len({server["port"] for server in place.servers()}) == 2
    assert {server["good"] for server in place.servers()} == {PROBLEMS * D}


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["loading", "generating"])
def test_a_warned_slurm_job_is_requeued_and_goes_on(place, slurm, moment):
    """The batch shell alone gets the warning, as with --signal=B:USR2@120."""
    if moment == "loading":
        place.environment["VLLM"] = place.program("late.py", LATE.format(serve=str(place.folder / "serve.py")))
    job = sbatch(place, slurm, "--latency", "1", "--", *DATA, "teacher.concurrency=4", options=["--gpus=0"])
    if moment == "loading":
        wait_until((place.folder / "loading").exists, 60)
    else:
        place.wait_for(2 * D)
    tell(place, "scancel", "--signal=USR2", "--batch", job)
    wait_until(lambda: "Restarts=1" in tell(place, "scontrol", "show", "job", job), 60)
    assert moment == "loading" or D < place.bought() < PROBLEMS * D
    wait_until(lambda: state_of(place, job) == "COMPLETED", 120)
    place.check_stopped(1 if moment == "loading" else 2)
    place.check_whole()
    said = (place.folder / "job.out").read_text()
    assert "warned of a time limit or a preemption: requeued" in said
    assert ("stopping: waiting for what was sent" in said) == (moment == "generating")


LATE = """
import os, sys, time
if not os.path.exists("loading"):
    open("loading", "w").close()
    time.sleep(300)
os.execv(sys.executable, [sys.executable, {serve!r}, *sys.argv[1:]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("warned", [False, True])
def test_a_cancelled_slurm_job_ends_and_stays_so(place, slurm, warned):
    """SLURM sends SIGTERM to all processes of the job, be it while it stops after a warning."""
    job = sbatch(place, slurm, "--latency", "3" if warned else "1", "--", *DATA, "teacher.concurrency=4", options=["--gpus=0"])
    place.wait_for(2 * D)
    if warned:
        tell(place, "scancel", "--signal=USR2", "--batch", job)
        wait_until(lambda: "stopping: waiting" in (place.folder / "job.out").read_text(), 10)
    tell(place, "scancel", job)
    wait_until(lambda: "JobState=CANCELLED" in tell(place, "scontrol", "show", "job", job) and not tell(place, "squeue", "-h"), 60)
    place.check_stopped()
    assert "requeued" not in (place.folder / "job.out").read_text()
    assert len(set(place.stored())) == len(place.stored()) >= D
