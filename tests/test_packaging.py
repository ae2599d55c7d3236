"""The wheel: configuration and launcher inside, console scripts declared, and it runs from an empty folder."""

from __future__ import annotations

import json
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
    page = ["browsing.js", "charts.js", "elements.js", "marks.js", "page.css", "page.html", "rounds.js", "samples.js", "start.js"]
    assert sorted(path.name for path in (tmp_path / "site/fcot/reporting/page").iterdir()) == page
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
    # Hydra finds the launcher below `hydra_plugins` of the wheel, and it plans and runs a sweep.
    script = "import hydra_plugins.fcot_launcher as plugin, fcot.run; print(plugin.__file__); fcot.run.main()"
    small = ["dataset.n_problems=40", "diversity=1", "until=generate"]
    for launcher, seeds, dry_run in (("local", "0,1", "false"), ("slurm", "2,3", "true")):
        result = subprocess.run(
            [sys.executable, "-c", script, "-m", f"seed={seeds}", f"hydra/launcher={launcher}", *small, f"dry_run={dry_run}"],
            cwd=empty, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert str(tmp_path / "site") in result.stdout.splitlines()[0]
    assert "at most 2 jobs x 4 h" in result.stdout
    (plan,) = (empty / "outputs" / "sweeps").glob("*/plan.json")
    assert all((plan.parent / json.loads(plan.read_text())["jobs"][job]["run"] / "stages/generate.json").exists() for job in (0, 1))


def test_an_editable_install_finds_the_plugin():
    result = subprocess.run(
        [sys.executable, "-c", "import hydra_plugins.fcot_launcher as p; print(p.__file__)"], capture_output=True, text=True, cwd="/"
    )
    assert result.stdout.strip() == str(ROOT / "launch" / "hydra_plugins" / "fcot_launcher" / "__init__.py"), result.stderr
