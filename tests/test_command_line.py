"""The command line: flags stand anywhere, a word that is no override gets an answer, and exit codes are those of the documentation."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fcot import __version__, sweep
from fcot.base import entry
from fcot.base.entry import entry_point
from fcot.base.errors import FcotError, UsageError
from fcot.config.command_line import arrange

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("words", [
    "-m seed=0,1 diversity=2", "seed=0,1 -m diversity=2", "seed=0,1 diversity=2 -m", "seed=0,1 --multirun diversity=2",
])  # fmt: skip
def test_m_may_stand_anywhere(words):
    overrides, flags = arrange(words.split())
    assert overrides == ["seed=0,1", "diversity=2"]
    assert flags in (["-m"], ["--multirun"])


def test_the_values_of_flags_stay_with_them():
    words = ["--cfg", "job", "seed=1", "--config-dir", "a=b", "-cd=c", "--info", "seed=2", "-i", "plugins", "~logger"]
    overrides, flags = arrange(words)
    assert overrides == ["seed=1", "seed=2", "~logger"]
    assert flags == ["--cfg", "job", "--config-dir", "a=b", "-cd=c", "--info", "-i", "plugins"]


@pytest.mark.parametrize(("words", "message"), [
    ("--diversity 4", "--diversity 4: options have no dashes before them; write diversity=4"),
    ("--diversity=4", "write diversity=4"),
    ("--dry-run", "write dry_run=true"),
    ("--dry_run -m seed=0,1", "write dry_run=true"),
    ("--trainer.lr 1e-4", "write trainer.lr=1e-4"),
    ("--split-mode hash", "write split-mode=hash"),
    ("--split_mode hash", "write split-mode=hash"),
    ("--output-dir=x", "write output_dir=x"),
    ("--multirn", "--multirn: no such flag; did you mean --multirun?"),
    ("--quiet", "--quiet: no such flag; Flags: -m"),
    ("mine.csv", "mine.csv: a file is named by an override: dataset=custom dataset.path=mine.csv"),
    ("diversity", "diversity: write diversity=VALUE"),
    ("words", "words: not an override; write KEY=VALUE or GROUP=CHOICE"),
])  # fmt: skip
def test_a_word_that_is_no_override_is_answered_with_what_to_type(words, message):
    with pytest.raises(UsageError) as caught:
        arrange(words.split())
    assert message in str(caught.value)


def test_the_folder_of_a_run_is_answered_with_the_runs_command(tmp_path):
    (tmp_path / "config.yaml").write_text("# python -m fcot.run seed=3 dataset.name='a b'\ndiversity: 4\n")
    with pytest.raises(FcotError, match=r"this is a run's folder(.|\n)*python -m fcot.run seed=3 dataset.name='a b'"):
        arrange(["--config-dir", str(tmp_path), "--config-name", "config"])
    (tmp_path / "config.yaml").write_text("diversity: 4\n")
    with pytest.raises(FcotError, match=r"its config\.yaml would not be read"):
        arrange(["--config-dir", str(tmp_path)])


def test_a_command_with_flags_behind_its_overrides_runs(run_fcot):
    result = run_fcot("seed=0,1", "-m", "dataset.n_problems=20", "dry_run=true")
    assert result.returncode == 0, result.stderr
    assert "2 jobs: 2 to run" in result.stdout


@pytest.mark.parametrize(("override", "message"), [
    ("hydra.launcher=local", "the choice is hydra/launcher=local; hydra.launcher.KEY=VALUE sets its values"),
    ("hydra/launcher.partition=x", "write hydra.launcher.partition=x"),
    ("dataset.path=mine.csv", "For a file of your own: dataset=custom dataset.path=FILE"),
])  # fmt: skip
def test_an_override_of_the_wrong_form_is_answered_with_the_right_one(run_fcot, override, message):
    result = run_fcot(override, "-m", "seed=0,1")
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_launcher_parameter_without_a_value_is_answered_with_its_form():
    launcher = {"kind": "slurm", "mem_gb": 8, "generation": {"partition": None}}
    for word, message in (
        ("mem_gb", "mem_gb=VALUE (it is 8 now)"),
        ("generation.partition", "generation.partition=VALUE (it is None now)"),
    ):
        with pytest.raises(FcotError, match=re.escape(f"{word}: give a value: {message}")):
            sweep._launcher_parameters(launcher, [word])


def test_version_is_that_of_fcot(run_fcot):
    assert run_fcot("--version").stdout == f"fcot {__version__}\n"


# --- exit codes -------------------------------------------------------------------------------------------------------


def code_of(error: BaseException | None) -> int:
    @entry_point
    def main() -> None:
        if error is not None:
            raise error

    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_exit_codes_are_those_of_the_documentation(monkeypatch, capsys):
    table = (ROOT / "docs/concepts.md").read_text()
    codes = {"0": None, "1": FcotError("an error"), "2": UsageError("usage"), "130": KeyboardInterrupt()}
    for code, error in codes.items():
        assert code_of(error) == int(code)
        assert re.search(rf"^\| {code} \|", table, re.MULTILINE), code
    assert "an error\nusage\n\ninterrupted; the same command continues where this one stopped\n" in capsys.readouterr().err
    monkeypatch.setattr(entry, "stop_requested", lambda: signal.SIGTERM)
    assert code_of(KeyboardInterrupt()) == 128 + signal.SIGTERM
    assert re.search(r"^\| 128 \+ n \|", table, re.MULTILINE)


def test_a_reader_that_closes_the_pipe_ends_a_command_without_a_traceback():
    """The pipe is closed before the command writes, as ``head`` may do."""
    for module in ("fcot.run", "fcot"):
        reading, writing = os.pipe()
        os.close(reading)
        process = subprocess.run([sys.executable, "-m", module, "--help"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writing)
        assert (process.returncode, process.stderr) == (128 + signal.SIGPIPE, "")
