"""Runs ``python -m MODULE`` without its imports: a process that has imported the libraries forks one child for each command.

Starting Python and importing torch, transformers and Lightning takes longer than most commands of these tests. A child differs from a
process started by itself in nothing that the tests look at: it has its own folder, environment, arguments and output files, and the module
runs as ``__main__``. Variables that libraries read while they are imported are the exception: commands with such variables get a process
of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

READ_AT_IMPORT = ("HF_", "OMP_", "MKL_", "CUDA", "TORCH", "TRANSFORMERS", "PYTHON", "LD_", "WANDB")
PRELOADED = (
    "torch", "transformers", "pytorch_lightning", "hydra", "omegaconf", "openai", "pandas", "scipy.stats", "statsmodels.stats.multitest",
    "fcot.config.checks", "fcot.llm.batch", "fcot.objectives.completion", "fcot.reporting.card", "fcot.reporting.tables", "fcot.run",
    "fcot.runs.pipeline", "fcot.stages.rationales", "fcot.stages.training", "fcot.sweeps.launch", "fcot.teacher.oracle",
)  # fmt: skip


class Zygote:
    """Starts the process on first use. One command runs at a time; a second one that arrives meanwhile gets a process of its own."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._busy = threading.Lock()

    def run(
        self, module: str, arguments: list[str], cwd: Path, environment: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Do what ``subprocess.run([sys.executable, "-m", module, ...], capture_output=True, text=True)`` does."""
        command = [sys.executable, "-m", module, *arguments]
        changed = {name for name, value in environment.items() if os.environ.get(name) != value}
        if any(name.startswith(READ_AT_IMPORT) for name in changed) or not self._busy.acquire(blocking=False):
            return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
        try:
            out, err = cwd / ".stdout", cwd / ".stderr"
            request = {"module": module, "arguments": arguments, "cwd": str(cwd), "environment": environment, "timeout": timeout}
            process = self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            texts = [path.read_text() for path in (out, err)]
            for path in (out, err):
                path.unlink()
            if answer is None:
                raise subprocess.TimeoutExpired(command, timeout, *texts)
            return subprocess.CompletedProcess(command, answer, *texts)
        finally:
            self._busy.release()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()

    def _start(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self._process


def serve() -> None:
    """Import the modules, then serve one request per line: fork, wait, reply with the exit code, or null after a timeout."""
    import importlib
    import signal

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints must not be read as an answer
    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            answers.close()
            _become(request)
        timed_out = []

        def stop(*_: object, child: int = child, timed_out: list[bool] = timed_out) -> None:
            timed_out.append(True)
            os.kill(child, signal.SIGKILL)

        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, request["timeout"])
        _, status = os.waitpid(child, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(None if timed_out else os.waitstatus_to_exitcode(status)), file=answers, flush=True)


def _become(request: dict) -> None:
    """Become the command; never returns."""
    import atexit
    import runpy
    import traceback

    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, ".stdout"), (2, ".stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, closefd=False) for number, mode in ((0, "r"), (1, "w"), (2, "w")))
    sys.stderr.reconfigure(line_buffering=True)
    sys.argv = [request["module"], *request["arguments"]]
    sys.path[0] = request["cwd"]
    sys.modules.pop(request["module"], None)  # it is run again, as __main__
    code: object = 0
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # as at the end of any process: wait for its threads, then its exit handlers
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code or 0))  # type: ignore[call-overload]


if __name__ == "__main__":
    serve()
