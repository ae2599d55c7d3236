"""Log a run to W&B; no failure or delay of W&B can stop the run."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fcot.base.console import say
from fcot.reporting.wandb_server import Offline, account, within

_INIT_S = 30.0  # for the server to accept a new run
_STOPPING_S = 10.0  # for uploads after a signal: SLURM leaves little more time
_GIVING_UP_S = 5.0
_STUCK_S = 5.0
_FLUSH_S = 2.0  # how much of an offline run a kill may lose; wandb's default, 15 s, can be all of a short run
_CELL = 10_000  # maximum number of characters in a table cell


@dataclass(frozen=True)
class Label:
    """A run's identity and description at W&B.

    Attributes:
        id: The id of the W&B run; the same id continues it.
        name: The displayed name.
        project: The W&B project.
        entity: User or team; None takes the key's own.
        group: The sweep's name; None outside a sweep.
        tags: Tags for filtering.
        config: The run's configuration.
    """

    id: str
    name: str
    project: str
    entity: str | None
    group: str | None
    tags: Sequence[str]
    config: Mapping[str, Any]


class WandbRun:
    """A run at W&B, online or offline to be synced later. Only the first error prints a warning.

    Args:
        label: The run's identity at W&B.
        folder: The folder for wandb's files, which go into ``wandb/``.
        mode: ``offline``; any other value logs online if there is a key that the server accepts.
        wait_s: Time limit for uploads at the end, in seconds.
    """

    entity: str | None
    url: str | None

    def __init__(self, label: Label, folder: Path, mode: str, wait_s: float) -> None:
        self._label, self._folder, self._wait_s = label, folder, wait_s
        self._warned = False
        self._steps: set[str] = set()
        self._uploads: list[Any] = []  # artifacts
        self._stuck = False  # whether the server hangs: then no more files are logged, because wandb queries the server for each
        self._run: Any = None
        self.entity, self.url = label.entity, None  # set when the server accepts the run
        self._incomplete_because = "logger.mode=offline" if mode == "offline" else self._start_online()
        if self._run is None:
            self._warn_on_error("starting", lambda: self._start("offline"))
        if self._incomplete_because is None:
            say(f"W&B: {self.url}")

    def _start_online(self) -> str | None:
        """Start the run at the server; return why that failed, or None."""
        try:
            account()
            within(2 * _INIT_S, lambda: self._start("online"))
            self.entity, self.url = self._run.entity, self._run.url
        except Offline as error:
            return str(error)
        except Exception as error:  # wandb has many classes of them
            _give_up()
            self._run = None
            return f"{type(error).__name__}: {error}"
        return None

    def _start(self, mode: str) -> None:
        import wandb

        label = self._label
        self._folder.mkdir(parents=True, exist_ok=True)  # otherwise wandb uses the system's temporary folder
        settings = wandb.Settings(
            console="off",  # stdout holds progress bars
            disable_git=True, disable_code=True,  # the URL of a repository may contain a token
            silent=True, init_timeout=_INIT_S, finish_timeout=self._wait_s, finish_timeout_raises=True,
            x_transaction_log_flush_interval=_FLUSH_S,
        )  # fmt: skip
        self._run = wandb.init(
            id=label.id, name=label.name, project=label.project, entity=label.entity, group=label.group, tags=list(label.tags),
            config=dict(label.config), dir=str(self._folder), resume="allow", mode=mode, settings=settings,  # type: ignore[arg-type]
            allow_val_change=True,
        )  # fmt: skip

    def _warn_on_error(self, what: str, work: Callable[[], object]) -> None:
        """Call ``work``; the first error is printed as a warning that names ``what``, and the run continues."""
        begin = time.monotonic()
        try:
            work()
        except Exception as error:
            self._stuck |= time.monotonic() - begin > _STUCK_S
            if not self._warned:
                say(f"warning: W&B, {what}: {type(error).__name__}: {error}; the run continues, and this may be missing at W&B")
            self._warned = True

    def log(self, values: Mapping[str, float], step: tuple[str, int] | None = None) -> None:
        """Log numbers.

        Args:
            values: By name, such as ``train/loss``.
            step: Name and value of a step counter, such as ``train/step``: the x axis of all names with the same prefix.
        """
        self._warn_on_error("metrics", lambda: self._log(values, step))

    def _log(self, values: Mapping[str, float], step: tuple[str, int] | None) -> None:
        if self._run is None or not values:
            return
        if step is not None and step[0] not in self._steps:
            # W&B's own step counts the calls of this process, so it would not continue after a restart.
            self._run.define_metric(f"{step[0].rpartition('/')[0]}/*", step_metric=step[0])
            self._steps.add(step[0])
        self._run.log(dict(values) | ({step[0]: step[1]} if step else {}))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table; long texts are cut."""

        def log() -> None:
            import wandb

            if self._run is not None and rows and not self._stuck:
                self._run.log({name: wandb.Table(columns=list(columns), data=[[_cell(value) for value in row] for row in rows])})

        self._warn_on_error("a table", log)

    def artifact(self, name: str, kind: str, path: Path, used: bool, metadata: Mapping[str, Any]) -> None:
        """Log a file or folder as an artifact of the run.

        Args:
            name: The artifact's name; changed content becomes a new version.
            kind: ``dataset`` or ``model``.
            path: The file or folder.
            used: Whether the artifact is an input of the run; otherwise it is an output.
            metadata: The artifact's metadata.
        """

        def log() -> None:
            import wandb

            if self._run is None or self._stuck:
                return
            artifact = wandb.Artifact(artifact_name(name), kind, metadata=dict(metadata))
            # Not copied into wandb's cache: a run's files do not change once they are written.
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    name_in_it = str(file.relative_to(path if path.is_dir() else path.parent))
                    artifact.add_file(str(file.absolute()), name_in_it, policy="immutable", skip_cache=True)
            if used:  # as use_artifact does, but that raises an error offline, and waits for the upload online
                self._run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
            else:
                self._run.log_artifact(artifact)
            self._uploads.append(artifact)

        self._warn_on_error(f"the {kind}", log)

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Set the run's summary: its final metrics."""
        self._warn_on_error("the summary", lambda: self._run and self._run.summary.update(dict(values)))

    def finish(self, error: BaseException | None) -> None:
        """End the run and wait for its uploads. If some of it is not at the server, print the command that uploads it.

        Args:
            error: The error that ended the run, None for a finished one. After a signal or Ctrl-C the run is expected to continue.
        """
        if self._run is None:
            return
        stopped = isinstance(error, KeyboardInterrupt)
        if stopped:
            self._warn_on_error("stopping", lambda: self._run.mark_preempting())
        elif self.url is not None:
            self._await_uploads(time.monotonic() + self._wait_s)
        try:
            within(_STOPPING_S if stopped else self._wait_s + _STOPPING_S, lambda: self._run.finish(exit_code=0 if error is None else 1))
        except Exception as problem:
            late = isinstance(problem, TimeoutError)
            self._incomplete_because = "the upload was not finished in time" if late else f"{type(problem).__name__}: {problem}"
            _give_up()
        if self._incomplete_because is not None:
            say(f"W&B does not have all of this run ({self._incomplete_because}); to upload it: {self.sync_command()}")

    def _await_uploads(self, until: float) -> None:
        """Wait for each upload, because wandb reports a failed one only to those who wait for it."""
        for artifact in self._uploads:
            seconds = max(1, round(until - time.monotonic()))
            self._warn_on_error(f"upload of {artifact.name}", partial(artifact.wait, timeout=seconds))

    def sync_command(self) -> str:
        """The command that uploads what the server does not have, including the files of earlier processes."""
        offline = sorted((self._folder / "wandb").glob(f"offline-run-*-{self._label.id}/*.wandb"))
        parts = [file.parent for file in offline if not file.with_name(f"{file.name}.synced").exists()]
        if self.url is not None:  # it was online
            parts.append(Path(self._run.dir).parent)
        return " ".join(["wandb", "sync", *(shlex.quote(os.path.relpath(part)) for part in parts)])


def _give_up() -> None:
    """End wandb's service process. Otherwise a run that failed to start or end would keep its id, and delay this process's exit."""
    import wandb

    with contextlib.suppress(Exception):  # the service may have died already
        within(_GIVING_UP_S, lambda: wandb.teardown(exit_code=1))


def _cell(value: Any) -> Any:
    """A value for a table cell: long text is cut, unpaired surrogates are replaced."""
    return value[:_CELL].encode("utf-8", "replace").decode() if isinstance(value, str) else value


def artifact_name(name: str) -> str:
    """A valid artifact name: at most 128 of ``A-Z a-z 0-9 _ . -``. Accents are dropped, other characters become dashes."""
    plain = "".join(character for character in unicodedata.normalize("NFKD", name) if not unicodedata.combining(character))
    return re.sub(r"[^\w.-]", "-", plain, flags=re.ASCII)[:128] or "unnamed"
