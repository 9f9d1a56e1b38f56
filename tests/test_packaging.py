"""The wheel is whole: installed outside the checkout, gpubench finds its profiles and runs from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.running import BUSY

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return next(folder.glob("gpubench_torch-*.whl"))


def test_the_wheel_holds_profiles_types_and_licence_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "gpubench/profiles/matrices/default.toml" in names
    assert "gpubench/py.typed" in names
    assert "gpubench/workloads/scans/linear_scan.cpp" in names
    assert {"gpubench/workloads/norms/norm_silu.cpp", "gpubench/workloads/norms/norm_silu.h"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {"gpubench", wheel.name.rsplit("-py3", 1)[0] + ".dist-info"}


@pytest.mark.slow
def test_the_installed_wheel_measures_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    environment, empty = tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    venv.create(environment)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    install = [*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    # torch and the other requirements come from the environment of the tests; gpubench itself does not, since a path
    # that a .pth file adds has its own .pth files, and so an editable install, left unread.
    site = next(environment.glob("lib/python*/site-packages"))
    (site / "requirements.pth").write_text(sysconfig.get_paths()["purelib"])
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    place = [str(python), "-c", "import gpubench; print(gpubench.__file__)"]
    found = subprocess.run(place, cwd=empty, env=variables, capture_output=True, text=True, check=True)
    assert str(environment) in found.stdout
    command = [str(environment / "bin" / "gpubench"), "compare-opts", "resnet50", "--size", "tiny", "--matrix", "quick"]
    done = subprocess.run(
        [*command, "--final-rounds", "0", "--quiet", *BUSY],
        cwd=empty,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Recommended for fps" in done.stdout
    written = list(empty.glob("gpubench-runs/*/resnet50-inference-*.json"))
    assert len(written) == 1
