"""A W&B run, of which nothing can fail or hang what it tells of."""

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

_INIT_S = 30.0  # for the server to take a new run
_STOPPING_S = 10.0  # for uploads where a signal ends the process: SLURM gives little more
_GIVING_UP_S = 5.0
_STUCK_S = 5.0
_FLUSH_S = 2.0  # what a kill may lose of an offline run; wandb's own 15 s can be all of a short one
_CELL = 10_000  # characters of a text in a table


@dataclass(frozen=True)
class Label:
    """How a run is found at W&B.

    Attributes:
        id: Of the W&B run; the same one continues it.
        name: As it is shown.
        project: Where it is.
        entity: Whose, None for the key's own.
        group: Of which sweep, None for none.
        tags: Short words.
        config: The configuration.
    """

    id: str
    name: str
    project: str
    entity: str | None
    group: str | None
    tags: Sequence[str]
    config: Mapping[str, Any]


class WandbRun:
    """A run at W&B, online or to be synced later; what goes wrong is said once and no more.

    Args:
        label: Which.
        folder: Where its files go, below ``wandb/``.
        mode: ``offline``, or anything else for online where there is a key that the server takes.
        wait_s: For uploads at its end, in seconds.
    """

    entity: str | None
    url: str | None

    def __init__(self, label: Label, folder: Path, mode: str, wait_s: float) -> None:
        self._label, self._folder, self._wait_s = label, folder, wait_s
        self._warned = False
        self._steps: set[str] = set()
        self._uploads: list[Any] = []  # artifacts
        self._stuck = False  # the server hangs: files, about which wandb asks it first, are not tried again
        self._run: Any = None
        self.entity, self.url = label.entity, None  # as far as they are known
        self._why = "logger.mode=offline" if mode == "offline" else self._start_online()
        if self._run is None:
            self._careful("starting", lambda: self._start("offline"))
        if self._why is None:
            say(f"W&B: {self.url}")

    def _start_online(self) -> str | None:
        """Start it at the server; why that cannot be, None where it could."""
        try:
            account()
            within(2 * _INIT_S, lambda: self._start("online"))
            self.entity, self.url = self._run.entity, self._run.url
        except Offline as error:
            return str(error)
        except Exception as error:  # wandb's own kinds
            _give_up()
            self._run = None
            return f"{type(error).__name__}: {error}"
        return None

    def _start(self, mode: str) -> None:
        import wandb

        label = self._label
        self._folder.mkdir(parents=True, exist_ok=True)  # wandb would take the system's temporary folder
        settings = wandb.Settings(
            console="off",  # progress bars are no log
            disable_git=True, disable_code=True,  # an address of a repository may hold a token
            silent=True, init_timeout=_INIT_S, finish_timeout=self._wait_s, finish_timeout_raises=True,
            x_transaction_log_flush_interval=_FLUSH_S,
        )  # fmt: skip
        self._run = wandb.init(
            id=label.id, name=label.name, project=label.project, entity=label.entity, group=label.group, tags=list(label.tags),
            config=dict(label.config), dir=str(self._folder), resume="allow", mode=mode, settings=settings,  # type: ignore[arg-type]
            allow_val_change=True,
        )  # fmt: skip

    def _careful(self, what: str, work: Callable[[], object]) -> None:
        begin = time.monotonic()
        try:
            work()
        except Exception as error:
            self._stuck |= time.monotonic() - begin > _STUCK_S
            if not self._warned:
                say(f"warning: W&B, {what}: {type(error).__name__}: {error}; the run goes on, and W&B may lack this")
            self._warned = True

    def log(self, values: Mapping[str, float], step: tuple[str, int] | None = None) -> None:
        """Numbers of one moment.

        Args:
            values: By name, such as ``train/loss``.
            step: Name of what counts, such as ``train/step``, and where it is; it is the axis of all that begins as it does.
        """
        self._careful("metrics", lambda: self._log(values, step))

    def _log(self, values: Mapping[str, float], step: tuple[str, int] | None) -> None:
        if self._run is None or not values:
            return
        if step is not None and step[0] not in self._steps:
            # W&B's own step counts calls, which are not the same after a restart.
            self._run.define_metric(f"{step[0].rpartition('/')[0]}/*", step_metric=step[0])
            self._steps.add(step[0])
        self._run.log(dict(values) | ({step[0]: step[1]} if step else {}))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table; texts that are too long are cut."""

        def log() -> None:
            import wandb

            if self._run is not None and rows and not self._stuck:
                self._run.log({name: wandb.Table(columns=list(columns), data=[[_cell(value) for value in row] for row in rows])})

        self._careful("a table", log)

    def artifact(self, name: str, kind: str, path: Path, used: bool, metadata: Mapping[str, Any]) -> None:
        """A file or folder with its lineage.

        Args:
            name: Of the artifact; a version is made where the content is another.
            kind: ``dataset`` or ``model``.
            path: Of what exists.
            used: Whether the run used it rather than made it.
            metadata: Kept with it.
        """

        def log() -> None:
            import wandb

            if self._run is None or self._stuck:
                return
            made = wandb.Artifact(artifact_name(name), kind, metadata=dict(metadata))
            # Not copied into wandb's cache: a run's files stay as they are once they are written.
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    name_in_it = str(file.relative_to(path if path.is_dir() else path.parent))
                    made.add_file(str(file.absolute()), name_in_it, policy="immutable", skip_cache=True)
            if used:  # what use_artifact does with a new one, which refuses to offline and waits for the upload online
                self._run._log_artifact(made, is_user_created=True, use_after_commit=True)
            else:
                self._run.log_artifact(made)
            self._uploads.append(made)

        self._careful(f"the {kind}", log)

    def summarise(self, values: Mapping[str, Any]) -> None:
        """What the run came to."""
        self._careful("the summary", lambda: self._run and self._run.summary.update(dict(values)))

    def finish(self, error: BaseException | None) -> None:
        """End it, waiting for uploads; says what to do with what is not at the server.

        Args:
            error: What ends the run before its time; after a signal or Ctrl-C it is expected to go on.
        """
        if self._run is None:
            return
        stopped = isinstance(error, KeyboardInterrupt)
        if stopped:
            self._careful("stopping", lambda: self._run.mark_preempting())
        elif self.url is not None:
            self._await_uploads(time.monotonic() + self._wait_s)
        try:
            within(_STOPPING_S if stopped else self._wait_s + _STOPPING_S, lambda: self._run.finish(exit_code=0 if error is None else 1))
        except Exception as problem:
            late = isinstance(problem, TimeoutError)
            self._why = "the upload was not finished in time" if late else f"{type(problem).__name__}: {problem}"
            _give_up()
        if self._why is not None:
            say(f"W&B does not have all of this run ({self._why}); to upload it: {self.sync_command()}")

    def _await_uploads(self, until: float) -> None:
        """A failed upload is told to who waits for it, and to nobody else."""
        for made in self._uploads:
            seconds = max(1, round(until - time.monotonic()))
            self._careful(f"upload of {made.name}", partial(made.wait, timeout=seconds))

    def sync_command(self) -> str:
        """Uploads what is not at the server, of earlier processes too."""
        offline = sorted((self._folder / "wandb").glob(f"offline-run-*-{self._label.id}/*.wandb"))
        parts = [file.parent for file in offline if not file.with_name(f"{file.name}.synced").exists()]
        if self.url is not None:  # it was online
            parts.append(Path(self._run.dir).parent)
        return " ".join(["wandb", "sync", *(shlex.quote(os.path.relpath(part)) for part in parts)])


def _give_up() -> None:
    """End wandb's service process: a run that could not start or end would hold its id there, and the exit of this process."""
    import wandb

    with contextlib.suppress(Exception):  # it may have died, which is why
        within(_GIVING_UP_S, lambda: wandb.teardown(exit_code=1))


def _cell(value: Any) -> Any:
    """What a table can hold: no half characters, no book."""
    return value[:_CELL].encode("utf-8", "replace").decode() if isinstance(value, str) else value


def artifact_name(name: str) -> str:
    """A name as W&B takes it: 128 of ``A-Z a-z 0-9 _ . -``; accents are dropped, other characters become dashes."""
    plain = "".join(character for character in unicodedata.normalize("NFKD", name) if not unicodedata.combining(character))
    return re.sub(r"[^\w.-]", "-", plain, flags=re.ASCII)[:128] or "unnamed"
