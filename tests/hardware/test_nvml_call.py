"""Calls that never end, and packages that took the place of NVML's binding."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from gpubench.hardware import nvml_call
from gpubench.hardware.nvml import NvmlDevice
from gpubench.hardware.nvml_call import Unavailable, attempt
from tests.fake_nvml import FUNCTIONS, FakeGpu, FakeNvml, device, fake_nvml
from tests.running import environment

__all__ = ["device", "fake_nvml"]

CONSTANTS = {
    "SUCCESS": "NVML_SUCCESS",
    "TEMPERATURE_GPU": "NVML_TEMPERATURE_GPU",
    "CLOCK_SM": "NVML_CLOCK_SM",
    "CLOCK_MEM": "NVML_CLOCK_MEM",
}
ERRORS = (
    *("UNINITIALIZED", "NOT_SUPPORTED", "NO_PERMISSION", "NOT_FOUND", "DRIVER_NOT_LOADED", "LIBRARY_NOT_FOUND"),
    *("FUNCTION_NOT_FOUND", "GPU_IS_LOST", "RESET_REQUIRED", "LIB_RM_VERSION_MISMATCH"),
)


@pytest.fixture
def gpu(fake_nvml: FakeNvml) -> FakeGpu:
    return fake_nvml.add(FakeGpu())


@pytest.fixture
def hangs(monkeypatch: pytest.MonkeyPatch, fake_nvml: FakeNvml) -> Iterator[set[str]]:
    """Names of NVML's functions that do not answer before the test ends."""
    names: set[str] = set()
    end = threading.Event()
    for name, body in list(FUNCTIONS.items()):

        def function(*arguments: object, name: str = name, body: object = body) -> int:
            if name in names:
                end.wait()
            return body(*arguments)  # type: ignore[operator]

        monkeypatch.setitem(FUNCTIONS, name, function)
    # The fake tells a device's functions from others by their names alone.
    yield names
    end.set()


def test_the_numbers_are_nvmls() -> None:
    for ours, theirs in [*CONSTANTS.items(), *((name, f"NVML_ERROR_{name}") for name in ERRORS)]:
        assert getattr(nvml_call, ours) == getattr(pynvml, theirs), ours


def test_a_call_that_hangs_is_given_up_and_not_made_again(
    fake_nvml: FakeNvml, hangs: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvml_call, "LIMIT_S", 0.05)
    monkeypatch.setattr(nvml_call, "STUCK_LIMIT_S", 5.0)
    hangs.add("nvmlSystemGetDriverVersion")
    for _ in range(3):
        answer = attempt("nvmlSystemGetDriverVersion")
        assert isinstance(answer, Unavailable)
        assert answer.reason == "NVML did not answer nvmlSystemGetDriverVersion within 0.05 s, so it is not asked again"
    assert fake_nvml.calls.count("nvmlSystemGetDriverVersion") == 1
    assert attempt("nvmlSystemGetCudaDriverVersion_v2") == 12080


def test_a_driver_that_stops_answering_is_waited_for_once(
    fake_nvml: FakeNvml, gpu: FakeGpu, device: NvmlDevice, hangs: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of ten calls hung in every reading, and a window of half a second took 42 s."""
    for name in ("LIMIT_S", "STUCK_LIMIT_S"):
        monkeypatch.setattr(nvml_call, name, 0.05)
    hangs |= set(FUNCTIONS)
    sample = device.sample()
    assert len(sample.unavailable) == 9
    assert all("did not answer" in reason for reason in sample.unavailable.values())
    asked = len(fake_nvml.calls)
    assert device.sample() == sample
    assert len(fake_nvml.calls) == asked


def test_an_error_is_raised_where_the_call_was_made() -> None:
    with pytest.raises(ZeroDivisionError):
        nvml_call.Caller().answer("any", lambda: 1 / 0)


# What pynvml 8 and 11.4 and nvidia-ml-py3 have, as far as it matters.
FOREIGN = """
class NVMLError(Exception):
    pass
NVML_ERROR_NOT_SUPPORTED = 3
def nvmlInit():
    raise NVMLError("without a value")
"""
ASK = """
from gpubench.hardware.find_device import find_device
from gpubench.hardware.checkup import check_up, findings
print(find_device("cpu").device)
print(find_device("cuda").device.reason)
for finding in findings(check_up("cpu")):
    print(finding.severity, finding.subject, finding.found)
"""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            FOREIGN,
            "is that of the package nvidia-ml-py3 7.352.0, which lacks what is needed: pip uninstall nvidia-ml-py3",
        ),
        ("raise RuntimeError('not with this Python')", "cannot be imported (RuntimeError: not with this Python)"),
    ],
)
def test_a_foreign_package_is_named_and_stops_nothing(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "pynvml.py").write_text(content)
    info = tmp_path / "nvidia_ml_py3-7.352.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nvidia-ml-py3\nVersion: 7.352.0\n")
    (info / "RECORD").write_text("pynvml.py,,\n")
    (info / "top_level.txt").write_text("pynvml\n")
    env = environment()
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env={**env, "PYTHONPATH": f"{tmp_path}:{env['PYTHONPATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "None"
    assert lines[1].startswith("the Python module pynvml ") and says in lines[1]
    assert lines[1].endswith("pip install --force-reinstall nvidia-ml-py")
    assert f"note NVML cannot be used: {lines[1]}" in lines
    assert not any(line.startswith("ok GPU") for line in lines)  # nobody has looked
