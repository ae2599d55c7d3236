"""Runs Python commands without their imports: a process that has imported the libraries forks one child for each command.

Starting Python and importing torch, transformers and Lightning takes longer than most commands of these tests. A child differs from a
process started by itself in nothing that the tests look at: it has its own pid, folder, environment, arguments and output, receives
signals, and its module or script runs as ``__main__``. Variables that libraries read while they are imported are the exception: commands
with other values of these get a process of their own. So must tests of what a command imports.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

READ_AT_IMPORT = ("HF_", "OMP_", "MKL_", "CUDA", "TORCH_", "TRANSFORMERS", "LD_")
PRELOADED = (
    "torch", "transformers", "pytorch_lightning", "hydra", "omegaconf", "openai", "pandas", "scipy.stats", "statsmodels.stats.multitest",
    "wandb", "altair", "fsspec.implementations.local", "omegaconf.grammar_parser", "hydra.core.override_parser.overrides_parser",
    "hydra._internal.core_plugins.basic_sweeper", "hydra._internal.core_plugins.file_config_source",
    "hydra._internal.core_plugins.importlib_resources_config_source", "hydra._internal.core_plugins.structured_config_source",
    "fcot.config.checks", "fcot.estimate.dry_run", "fcot.llm.batch", "fcot.methods.tailored.rounds", "fcot.objectives.completion",
    "fcot.objectives.reflection", "fcot.report", "fcot.reporting.card", "fcot.reporting.page", "fcot.reporting.tables", "fcot.run",
    "fcot.runs.pipeline", "fcot.stages.rationales", "fcot.stages.training", "fcot.sweep", "fcot.sweeps.launch", "fcot.teacher.oracle",
)  # fmt: skip


def start(
    arguments: Sequence[object], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, stdout: Any = subprocess.PIPE,
    stderr: Any = subprocess.PIPE,
) -> Process | subprocess.Popen[str]:  # fmt: skip
    """Start ``python ARGUMENTS``, where the arguments begin with ``-m MODULE``, ``-c CODE`` or the path of a script.

    The result is used like that of ``subprocess.Popen(..., text=True)``.
    """
    words, environment = [str(argument) for argument in arguments], dict(os.environ if env is None else env)
    names = {*environment, *os.environ}
    if any(name.startswith(READ_AT_IMPORT) and environment.get(name) != os.environ.get(name) for name in names):
        return subprocess.Popen([sys.executable, *words], cwd=cwd, env=environment, stdout=stdout, stderr=stderr, text=True)
    return Process(words, str(cwd or Path.cwd()), environment, stdout, stderr)


def run(
    arguments: Sequence[object], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 900
) -> subprocess.CompletedProcess[str]:
    """Do what ``subprocess.run([sys.executable, *ARGUMENTS], capture_output=True, text=True)`` does."""
    process = start(arguments, cwd=cwd, env=env)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def python() -> list[str]:
    """The words that stand for ``python`` in a command of another program, which then is a fork too."""
    return [sys.executable, "-I", "-S", __file__, _server().path]


class Process:
    """A forked child, with the interface of ``subprocess.Popen``."""

    def __init__(self, arguments: list[str], cwd: str, environment: dict[str, str], stdout: Any, stderr: Any) -> None:
        self.args = [sys.executable, *arguments]
        self.returncode: int | None = None
        self._texts = ["", ""]
        self._readers: list[threading.Thread] = []
        self.stdout, out = _output(stdout, 1)
        self.stderr, err = _output(stderr, 2)
        status, its_status = os.pipe()
        self._status = os.fdopen(status, "rb", buffering=0)
        _server().request({"arguments": arguments, "cwd": cwd, "environment": environment}, [out, err, its_status])
        for number in {out, err, its_status} - {1, 2}:
            os.close(number)
        self.pid = int(self._status.read(16))

    def poll(self) -> int | None:
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        if self._wait(timeout) is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        if not self._readers:  # after a timeout, the next call waits for the same ones
            self._readers = [threading.Thread(target=self._read, args=(number,), daemon=True) for number in range(2)]
            for reader in self._readers:
                reader.start()
        end = None if timeout is None else time.monotonic() + timeout
        for reader in self._readers:
            reader.join(None if end is None else max(0.0, end - time.monotonic()))
            if reader.is_alive():
                assert timeout is not None
                raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait(None if end is None else max(0.0, end - time.monotonic()))
        return self._texts[0], self._texts[1]

    def _read(self, number: int) -> None:
        stream = (self.stdout, self.stderr)[number]
        if stream is not None:
            with stream:
                self._texts[number] = stream.read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = int(self._status.read(16))
            self._status.close()
        return self.returncode


def _output(target: Any, number: int) -> tuple[IO[str] | None, int]:
    """The stream to read from, if any, and the descriptor that the child writes to."""
    if target == subprocess.PIPE:
        reading, writing = os.pipe()
        return os.fdopen(reading, "r", encoding="utf-8"), writing
    return None, number if target is None else os.open(os.devnull, os.O_WRONLY)


class _Server:
    """The process that forks. A request is the length of its JSON and three descriptors in one message, then the JSON.

    The commands of a connection are killed when it is closed, as at the end of this process.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.path = f"{self._folder.name}/zygote"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen()
        self._socket = _connect(self.path)
        self._lock = threading.Lock()
        with listener:
            subprocess.Popen([sys.executable, __file__, str(listener.fileno())], pass_fds=[listener.fileno()])

    def request(self, request: dict[str, Any], descriptors: list[int]) -> None:
        with self._lock:
            _send(self._socket, request, descriptors)


_started: list[_Server] = []
_starting = threading.Lock()


def _server() -> _Server:
    """This process's server; it ends with this process."""
    with _starting:
        if not _started:
            _started.append(_Server())
    return _started[0]


def _connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection


def _send(connection: socket.socket, request: dict[str, Any], descriptors: list[int]) -> None:
    body = json.dumps(request).encode()
    socket.send_fds(connection, [len(body).to_bytes(8, "big")], descriptors)
    connection.sendall(body)


def serve(listener: socket.socket) -> None:
    """Import the modules, then serve requests until the first connection is closed."""
    import gc
    import importlib

    os.dup2(2, 1)
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches this process too
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child_ended, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup)
    connections = [listener.accept()[0]]
    running: dict[int, tuple[socket.socket, int]] = {}  # pid of a command -> its connection, where to write its exit code
    while True:
        ready, _, _ = select.select([listener, child_ended, *connections], [], [])
        if child_ended in ready:
            os.read(child_ended, 1000)
            while running and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                _, status = running.pop(ended[0])
                with contextlib.suppress(BrokenPipeError):
                    os.write(status, b"%16d" % os.waitstatus_to_exitcode(ended[1]))
                os.close(status)
        if listener in ready:
            connections.append(listener.accept()[0])
        for connection in [connection for connection in connections if connection in ready]:
            head, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
            if not head:
                for command in [pid for pid, (its_connection, _) in running.items() if its_connection is connection]:
                    os.kill(command, signal.SIGKILL)
                if connection is connections[0]:
                    return
                connections.remove(connection)
                connection.close()
                continue
            request = json.loads(connection.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))
            out, err, status = descriptors
            command = os.fork()
            if command == 0:
                signal.set_wakeup_fd(-1)
                for opened in (listener, *connections):
                    opened.close()
                for descriptor in (child_ended, wakeup, status, *(status for _, status in running.values())):
                    os.close(descriptor)
                _become(request, out, err)
            os.write(status, b"%16d" % command)
            running[command] = connection, status
            os.close(out)
            os.close(err)


def as_python(path: str, arguments: list[str]) -> None:
    """Run a command through the server at this path, as if this process were it. Never returns."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # until there is a command that receives them
    connection = _connect(path)
    status, its_status = os.pipe()
    _send(connection, {"arguments": arguments, "cwd": os.getcwd(), "environment": dict(os.environ)}, [1, 2, its_status])
    os.close(its_status)
    command = int(os.read(status, 16))

    def forward(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(command, number)

    for number in signals:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    code = int(os.read(status, 16))
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _become(request: dict[str, Any], out: int, err: int) -> None:
    """Become the command. Never returns."""
    import atexit
    import traceback

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(request["cwd"])
    before = os.environ.get("PYTHONPATH")
    os.environ.clear()
    os.environ.update(request["environment"])
    if os.environ.get("PYTHONPATH", before) != before:
        _import_from(os.environ["PYTHONPATH"].split(os.pathsep))
    null = os.open(os.devnull, os.O_RDONLY)
    for number, source in ((0, null), (1, out), (2, err)):
        os.dup2(source, number)
    for number in {null, out, err} - {0, 1, 2}:
        os.close(number)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, closefd=False) for number, mode in ((0, "r"), (1, "w"), (2, "w")))
    sys.stderr.reconfigure(line_buffering=True)
    code: object = 0
    interrupted = None
    try:
        _run(request["arguments"])
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except KeyboardInterrupt as error:
        traceback.print_exc()
        interrupted = error
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # as at the end of any process: wait for its threads, then its exit handlers
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if interrupted is not None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(int(code or 0))  # type: ignore[call-overload]


def _import_from(folders: list[str]) -> None:
    """Put folders before the others in ``sys.path``; if they contain a copy of fcot, it is imported instead of the present one."""
    sys.path[1:1] = folders
    if any(Path(folder, "fcot").exists() for folder in folders):
        for name in [name for name in sys.modules if name.partition(".")[0] in ("fcot", "hydra_plugins")]:
            del sys.modules[name]


def _run(arguments: list[str]) -> None:
    """Run ``-m MODULE``, ``-c CODE`` or a script, with the ``sys.argv`` and ``sys.path`` that it has under ``python``."""
    import runpy

    kind, *rest = arguments
    if kind == "-m":
        sys.argv, sys.path[0] = rest, os.getcwd()
        sys.modules.pop(rest[0], None)  # it is run again, as __main__
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        exec(compile(rest[0], "<string>", "exec", dont_inherit=True), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = arguments, str(Path(kind).parent.absolute())
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[2:]:
        as_python(sys.argv[1], sys.argv[2:])
    serve(socket.socket(fileno=int(sys.argv[1])))
