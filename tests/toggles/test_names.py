"""No file outside `gpubench/toggles` names a toggle: what others must know of one, its traits say."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import gpubench
from gpubench.toggles import bundled_toggles

ROOT = Path(gpubench.__file__).parent
FOLDER = ROOT / "toggles"

# (file, text) -> what it is, since it is not the name of a toggle that code decides by.
FIELD = "a field of the workload in reports and profiles"
OPTION = "what `Workload.infer` is told, by the documentation of Workload"
SWEPT = "a sweep command says which toggle it varies"
HELP = "text for a user"
ALLOWED = {
    ("cli/sweeps.py", "batch_size"): SWEPT,
    ("cli/sweeps.py", "tile_overlap"): SWEPT,
    ("cli/sweeps.py", "tile_size"): SWEPT,
    ("cli/measuring.py", "pipeline"): OPTION,
    ("executor/worker_pool.py", "compile"): "a folder of scratch space",
    ("hardware/doctor_state.py", ": --fix threads="): HELP,
    ("regression/comparability.py", "batch_size"): FIELD,
    ("regression/comparison.py", "batch_size"): FIELD,
    ("render/profile.py", "batch_size"): FIELD,
    ("render/report_document.py", "batch_size"): FIELD,
    ("search/requested.py", "precision=bf16-autocast"): HELP,
    ("search/requested.py", "precision=fp32"): HELP,
    ("study/request.py", "batch_size"): FIELD,
    ("worker/prepared_model.py", "compile"): "what the progress display says of the first step",
    ("workloads/optimizing.py", "optimizer"): "the name of the variable that the printed lines set",
    ("workloads/parameters.py", "tile_overlap"): OPTION,
    ("workloads/parameters.py", "tile_size"): OPTION,
    ("workloads/sliding.py", "tile_size"): OPTION,
    ("workloads/tiling_toggles.py", "tile_size"): OPTION,
    ("workloads/unet3d.py", "a whole image or volume at once, or through windows of tile_size; inference"): HELP,
    ("workloads/unet3d.py", "tile_overlap"): OPTION,
    ("workloads/unet3d.py", "tile_size"): OPTION,
    ("workloads/workload.py", " has batch_size "): FIELD,
}


def names_a_toggle(text: str, names: set[str]) -> bool:
    """Whether `text` is a toggle's name, assigns to one, or has one that is no English word."""
    return any(
        text == name or re.search(rf"\b{name}=", text) or ("_" in name and re.search(rf"\b{name}\b", text))
        for name in names
    )


def texts(tree: ast.AST) -> Iterator[str]:
    """Every string of a module but its docstrings."""
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules that a module imports, with the names that it takes from them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def trees() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(ROOT.rglob("*.py")):
        if FOLDER not in path.parents:
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def test_no_text_outside_the_toggles_names_one() -> None:
    names = set(bundled_toggles())
    seen = {(file, text) for file, tree in trees() for text in texts(tree) if names_a_toggle(text, names)}
    assert seen - ALLOWED.keys() == set()
    assert ALLOWED.keys() - seen == set(), "no longer there: take it off the list"


def test_no_module_outside_the_toggles_imports_one_of_them() -> None:
    modules = tuple(
        f"gpubench.toggles.{family.name}." for family in FOLDER.iterdir() if (family / "__init__.py").exists()
    )
    assert len(modules) >= 6
    seen = [(file, name) for file, tree in trees() for name in imports(tree) if f"{name}.".startswith(modules)]
    assert seen == []


@pytest.mark.parametrize("text", ["compile", "--fix threads=2", "with tile_size pixels"])
def test_a_name_is_seen(text: str) -> None:
    tree = ast.parse(f'"""tile_size"""\ndef f():\n    "tile_size"\n    return {text!r}')
    assert [each for each in texts(tree) if names_a_toggle(each, set(bundled_toggles()))] == [text]
    assert list(imports(ast.parse("from gpubench.toggles import compile"))) == ["gpubench.toggles.compile"]


@pytest.mark.parametrize("text", ["compile_time_s", "torch.compile fails", "the optimizer", "minibatch_size"])
def test_a_word_is_no_name(text: str) -> None:
    assert not names_a_toggle(text, set(bundled_toggles()))
