"""The package's shape: imports follow the data, files stay readable, the public surface is documented."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fcot"
FILES = sorted(PACKAGE.rglob("*.py"))
# Each part may import itself, earlier parts and the foundation, but no later part.
ORDER = [
    "prompts", "stages.table", "methods.table", "tasks", "decoding", "llm", "teacher", "curation", "student", "objectives", "evaluation",
    "reporting",
]  # fmt: skip
FOUNDATION = {"base", "__version__"}
# These parts know runs and configurations and may import every part.
ABOVE = {
    "config", "runs", "stages", "methods", "estimate", "sweeps", "report", "run", "store", "predict", "evaluate", "export", "check",
    "sweep", "prefetch", "ls", "rm", "api", "cli", "__main__",
}  # fmt: skip


def part_of(module: str) -> str:
    """The part of the package that a module belongs to: its first name, or the first two where the order has them."""
    prefix = ".".join(module.split(".")[:2])
    return prefix if prefix in ORDER else module.split(".")[0]


def imports(path: Path) -> set[str]:
    """Parts of fcot that a file imports, inside functions too; not what only a type checker imports."""
    tree = ast.parse(path.read_text())
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    guarded = {inner for block in blocks for inner in ast.walk(block)}
    parts = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in guarded and (node.module or "").split(".")[0] == "fcot":
            module = (node.module or "").removeprefix("fcot").removeprefix(".")
            parts |= {part_of(module)} if module else {alias.name for alias in node.names}
    return parts


def called(path: Path) -> set[str]:
    """Names of the methods that a file calls."""
    return {
        node.func.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_data(path):
    part = part_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    if part in ORDER:
        assert imports(path) <= FOUNDATION | set(ORDER[: ORDER.index(part) + 1])
    elif part in FOUNDATION:
        assert imports(path) <= FOUNDATION


def test_models_and_tokenizers_are_loaded_where_the_hub_may_be_missing():
    """Elsewhere a mistyped name would be retried for half a minute on a machine without the hub (fcot.base.hub)."""
    loading = {str(path.relative_to(PACKAGE)) for path in FILES if "from_pretrained" in called(path)}
    assert loading == {"decoding/models.py", "student/loading.py"}
    assert all("with hub_access(" in (PACKAGE / name).read_text() for name in loading)


def test_the_order_names_every_part():
    parts = {part_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts)) for path in FILES}
    assert parts - {"__init__"} == set(ORDER) | (FOUNDATION - {"__version__"}) | ABOVE


def test_files_stay_readable():
    long_files = {path.name: n for path in FILES if (n := len(path.read_text().splitlines())) > 450}
    assert not long_files


def test_functions_stay_readable():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno <= 75, f"{path.name}: {node.name}"
