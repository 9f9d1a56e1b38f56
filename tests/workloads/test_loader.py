"""References to workloads, bundled and a user's own, and what is said about wrong ones."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from gpubench.errors import GpubenchError
from gpubench.workloads.catalog import SUMMARIES, names, resolve_size, summary
from gpubench.workloads.loader import load
from gpubench.workloads.source import import_module_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_model.py"
HEAD = """
from __future__ import annotations
import torch
from torch import nn
from gpubench.workloads.workload import Workload

def inputs(batch_size, generator):
    return (torch.randn(batch_size, 4, generator=generator),)

ready = Workload(name="ready", item="row", batch_size=2, build=lambda: nn.Linear(4, 4), inputs=inputs)
number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.py"


def write(file: Path, code: str) -> str:
    file.write_text(HEAD + textwrap.dedent(code))
    return f"{file}:make"


def fails(reference: str, size: str | None = None, **parameters: str) -> str:
    with pytest.raises(GpubenchError) as caught:
        load(reference, size, parameters)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys; from gpubench.workloads.catalog import names, summary, resolve_size;"
        "print([summary(n) for n in names()], resolve_size('vae', None, 'cpu')); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_and_sizes() -> None:
    assert names() == tuple(sorted(SUMMARIES))
    assert all(summary(name) for name in names())
    assert (resolve_size("vae", "auto", "cuda"), resolve_size("vae", "auto", "cpu")) == ("base", "small")
    assert resolve_size("vae", "auto", "cuda") == "base"
    by_memory = [resolve_size("vae", "auto", "cuda", round(gib * 2**30)) for gib in (79.2, 39.4, 23.6, 11.6, 10.8, 5.8)]
    assert by_memory == ["huge", "xlarge", "large", "base", "medium", "medium"]
    training = [resolve_size("dit", "auto", "cuda", gib * 2**30, "training") for gib in (79, 39, 23, 12, 6)]
    assert training == ["huge", "xlarge", "medium", "medium", "medium"]
    assert resolve_size("dit", "auto", "cuda", 23 * 2**30, "inference") == "large"
    assert resolve_size("vae", "base", "cuda", 2**30) == "base"  # asked for
    assert resolve_size("vae", None, "cpu") == "small"
    assert resolve_size("vae", "tiny", "cpu") == "tiny"
    assert resolve_size("mine.py:make", "auto", "cpu") is None
    assert resolve_size("mine.py:make", "big", "cpu") == "big"


def test_bundled_carries_every_parameter_and_comes_back_from_them() -> None:
    loaded = load("unet3d", "tiny", {"view": "sliding", "resolution": "16"})
    assert loaded.parameters == {"task": "segmentation", "view": "sliding", "norm": "instance", "resolution": 16}
    assert (loaded.size, loaded.source_hash, loaded.reference) == ("tiny", None, "unet3d")
    again = load(loaded.reference, loaded.size, loaded.parameters)
    assert (again.parameters, again.size) == (loaded.parameters, loaded.size)


def test_the_example_runs() -> None:
    loaded = load(f"{EXAMPLE}:denoiser", None, {"channels": "8"})
    assert loaded.parameters == {"channels": 8}
    assert loaded.size == "default"
    workload = loaded.workload
    model, batch = workload.build(), workload.inputs(2, torch.Generator().manual_seed(0))
    assert workload.infer(model, batch, {}).shape == (2, 3, 128, 128)
    workload.loss(model, batch).backward()
    assert len(EXAMPLE.read_text().splitlines()) < 80


def test_a_constant_and_functions_with_any_subset_of_keywords(file: Path) -> None:
    write(
        file,
        """
        def plain():
            return ready
        def sized(size: str = "small", *, width: int | None = None, scale: float = 1.5, flag: bool = False, free=2):
            assert isinstance(width, int) or width is None
            return ready
        """,
    )
    assert load(f"{file}:ready").size == "default"
    assert load(f"{file}:plain").parameters == {}
    assert load(f"{file}:plain", "default").size == "default"
    assert load(f"{file}:sized").size == "small"
    assert load(f"{file}:sized").parameters == {"scale": 1.5, "flag": False, "free": 2}
    loaded = load(f"{file}:sized", "big", {"width": "3", "scale": "2", "flag": "Yes", "free": "7"})
    assert loaded.size == "big"
    assert loaded.parameters == {"width": 3, "scale": 2.0, "flag": True, "free": 7}
    assert load(loaded.reference, loaded.size, loaded.parameters).parameters == loaded.parameters


def test_source_hash_changes_with_the_file(file: Path) -> None:
    reference = write(file, "make = ready")
    first = load(reference)
    assert load(reference).source_hash == first.source_hash
    write(file, "make = Workload(name='other', item='row', batch_size=1, build=ready.build, inputs=inputs)")
    second = load(reference)
    assert second.source_hash != first.source_hash
    assert second.workload.name == "other"


def test_a_file_is_imported_once_and_hides_no_module(tmp_path: Path) -> None:
    file = tmp_path / "torch.py"
    reference = write(file, "make = ready")
    assert import_module_of(reference) is import_module_of(reference)
    assert load(reference).workload is load(reference).workload
    assert sys.modules["torch"] is torch


def test_siblings_can_be_imported_at_once_and_later(file: Path) -> None:
    file.with_name("sibling_one.py").write_text("one = 1")
    file.with_name("sibling_two.py").write_text("two = 2")
    reference = write(
        file,
        """
        import sibling_one
        def make():
            import sibling_two
            return ready
        """,
    )
    assert load(reference).workload.name == "ready"


def test_a_package_s_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    write(package / "models.py", "make = ready")
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = load("some_package.models:make")
    assert loaded.workload.name == "ready"
    assert loaded.source_hash
    assert "Unknown name in some_package.models 'mak'. Did you mean 'make'?" in fails("some_package.models:mak")


def test_wrong_references(file: Path, tmp_path: Path) -> None:
    write(file, "make = ready")
    known = ", ".join(names())
    assert fails("vea").startswith(f"Unknown workload 'vea'. Did you mean 'vae'? Known: {known}.")
    assert "does not say which NAME in the file. Give mine.py:NAME." in fails("mine.py")
    assert "lacks a NAME. Give a name that `gpubench workloads` lists, FILE.py:NAME or package.module:NAME." in fails(
        "mine.py:"
    )
    assert "lacks a file or package" in fails(":make")
    assert "nowhere.py' does not exist" in fails(f"{tmp_path}/nowhere.py:make")
    assert "is a folder" in fails(f"{tmp_path}/:make")
    assert "Did you mean 'ready'?" in fails(f"{file}:redy")
    assert "There is no module 'no_such.package'" in fails("no_such.package:make")
    assert "There is no module 'no_such_package'" in fails("no_such_package:make")
    text = tmp_path / "notes/model.txt"
    text.parent.mkdir()
    text.write_text("")
    assert "is not a Python file" in fails(f"{text}:make")


def test_wrong_types(file: Path) -> None:
    reference = write(file, "def make(): return 3")
    assert f"{file}:number is of type int. It must be a gpubench Workload or a function" in fails(f"{file}:number")
    assert "make returned an object of type int. It must return a gpubench Workload." in fails(reference)


def test_wrong_parameters(file: Path) -> None:
    reference = write(
        file,
        """
        def make(width: int = 1, flag: bool = True, scale: float = 1.0, many: list[int] = [], *, must: str):
            return ready
        """,
    )
    assert f"Unknown parameter of {reference} 'widht'. Did you mean 'width'? Known: flag, many," in fails(
        reference, widht="1"
    )
    assert f"Unknown parameter of {reference} 'size'" in fails(reference, "big")
    assert f"{reference} needs a value for 'must'. Give it with --param must=VALUE." in fails(reference)
    assert "is '1.5'. It must be a whole number." in fails(reference, width="1.5")
    assert "is 'x'. It must be a finite number." in fails(reference, scale="x")
    assert "is 'nan'. It must be a finite number." in fails(reference, scale="nan")
    assert "It must be text in UTF-8." in fails(reference, must="a\udcff")
    assert "is 'perhaps'. It must be one of true, yes, on, 1 or false" in fails(reference, flag="perhaps")
    assert "'many' of" in fails(reference, many="1", must="x")
    assert "is annotated 'list[int]' and cannot be given as text." in fails(reference, many="1", must="x")
    assert "is a Workload, not a function, and takes no 'size'." in fails(f"{file}:ready", "big")
    assert "takes no 'width'" in fails(f"{file}:ready", width="1")


def test_defaults_that_no_report_can_hold_are_the_function_s_own(file: Path) -> None:
    code = """
        def make(limit: float = float("inf"), mark: str = "\\udcff", width: int = 2):
            return Workload(name=f"w{limit}", item="row", batch_size=width, build=ready.build, inputs=inputs)
        """
    loaded = load(write(file, code))
    assert (loaded.parameters, loaded.workload.name) == ({"width": 2}, "winf")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_thing", "line 13: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("def make(:\n    pass", "line 13: SyntaxError"),
        ("raise SystemExit(2)", "line 13: SystemExit: 2"),
        ("def make():\n    return 1 / 0", "Building the workload"),
        ("def make():\n    return 1 / 0", "line 14: ZeroDivisionError: division by zero"),
        ("def make():\n    return Workload(name='w')", "line 14: TypeError"),
        ("def make():\n    raise ValueError('one\\ntwo')", "ValueError: one."),
        (
            "make = Workload(name='w', item='row', batch_size=0, build=ready.build, inputs=inputs)",
            "Workload 'w' has batch_size 0.",
        ),
        (
            "make = Workload(name='w', item='row', batch_size=2.5, build=ready.build, inputs=inputs)",
            "Workload 'w' has batch_size 2.5.",
        ),
        (
            "make = Workload(name='w\\udcff', item='row', batch_size=1, build=ready.build, inputs=inputs)",
            "The name of a Workload is 'w\\udcff'.",
        ),
        (
            "make = Workload(name='w', item=None, batch_size=1, build=ready.build, inputs=inputs)",
            "The item of a Workload is None.",
        ),
    ],
)
def test_what_the_user_s_code_raises(file: Path, code: str, message: str) -> None:
    file.write_text(HEAD + "\n" + code)
    assert message in fails(f"{file}:make")
    # A second try must not find a half-imported module.
    assert message in fails(f"{file}:make")


def test_the_cause_stays_chained(file: Path) -> None:
    with pytest.raises(GpubenchError) as caught:
        load(write(file, "import no_such_thing"))
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
