"""Which parts of the package may import which, as docs/architecture.md says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "gpubench"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
READERS = ("report", "stats", "analysis", "regression", "metrics", "render")  # what reads reports
MEASURERS = ("study", "executor", "worker")


def imported(path: Path, *, at_import: bool) -> set[str]:
    """The package's modules that a file imports; at_import: without those of functions and of type checking."""
    names = set()
    for node in statements(ast.parse(path.read_text())) if at_import else ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    found = names & set(MODULES)
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """What runs when the module is imported."""
    for node in tree.body:
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            yield node


def part(module: str) -> str:
    """The folder or file below the package."""
    return module.split(".")[1] if "." in module else ""


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: imported(path, at_import=True) for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(error.args[1]) from error
    assert len(graph) > 150
    assert graph["gpubench.cli.compare_opts"]  # the files are read at all


def test_imports_point_down() -> None:
    for name, path in MODULES.items():
        for other in imported(path, at_import=False):
            here, there = part(name), part(other)
            assert there != "cli" or here in ("cli", "__main__"), f"{name} imports {other}"
            assert there != "api" or here in ("cli", "api", ""), f"{name} imports {other}"
            assert not (here in READERS and there in MEASURERS), f"{name} imports {other}"
            assert not (here == "stats" and there in ("analysis", "regression")), f"{name} imports {other}"
            assert not (here == "analysis" and there == "regression"), f"{name} imports {other}"
            assert not (here in ("search", "executor") and there == "study"), f"{name} imports {other}"
            assert not (here == "worker" and there in ("study", "executor")), f"{name} imports {other}"


def test_only_the_command_line_prints_and_exits() -> None:
    for name, path in MODULES.items():
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        called = {ast.unparse(call.func) for call in calls}
        if (
            part(name) not in ("cli", "worker", "__main__") and name != "gpubench.hardware.probe"
        ):  # a process's own main
            assert not called & {"print", "sys.exit", "exit", "typer.echo"}, name
