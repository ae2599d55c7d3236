"""The wheel: configuration inside, console scripts declared, and it runs from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_runs_without_the_repository(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    shipped = {str(path.relative_to(ROOT / "conf")) for path in (ROOT / "conf").rglob("*.yaml")}
    installed = {str(path.relative_to(tmp_path / "site/fcot/conf")) for path in (tmp_path / "site/fcot/conf").rglob("*.yaml")}
    assert shipped == installed
    (scripts,) = (tmp_path / "site").glob("*.dist-info/entry_points.txt")
    assert "fcot-run = fcot.run:main" in scripts.read_text()
    assert "fcot-report = fcot.report:main" in scripts.read_text()
    empty = tmp_path / "empty"
    empty.mkdir()
    script = "import fcot.run; print(fcot.run.__file__); fcot.run.main()"
    result = subprocess.run(
        [sys.executable, "-c", script, "--cfg", "job"],
        cwd=empty, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(tmp_path / "site") in result.stdout.splitlines()[0]
    assert "diversity: 4" in result.stdout
