"""The package's shape: imports follow the data, files stay readable, the public surface is documented."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fcot"
FILES = sorted(PACKAGE.rglob("*.py"))
# Each may import itself, what stands before it, and the foundation; a later one never.
ORDER = ["prompts", "tasks", "decoding", "teacher", "curation", "student", "objectives", "evaluation", "tailored", "reporting"]
FOUNDATION = {"errors", "records", "artifacts", "progress", "ranks", "lifeline", "stopping", "fields", "resources", "__version__"}
# prompts and tasks speak of each other's plain values: answer rules one way only.
ABOVE = {
    "config", "checks", "identity", "runs", "stages", "pipeline", "report", "run", "overrides", "store", "predict",
    "sweeps", "sweep", "prefetch", "resolvers", "draws", "vocabulary", "metrics", "cli", "__main__",
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """Top-level parts of fcot that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fcot":
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_data(path):
    part = path.relative_to(PACKAGE).parts[0]
    if part in ORDER:
        allowed = FOUNDATION | set(ORDER[: ORDER.index(part) + 1])
        assert imports(path) <= allowed
    elif part.removesuffix(".py") in FOUNDATION:
        assert imports(path) <= FOUNDATION


def test_the_order_names_every_part():
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert parts - {"__init__"} == set(ORDER) | (FOUNDATION - {"__version__"}) | ABOVE


def test_files_stay_readable():
    long_files = {path.name: n for path in FILES if (n := len(path.read_text().splitlines())) > 450}
    assert not long_files


def test_functions_stay_readable():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno <= 75, f"{path.name}: {node.name}"
