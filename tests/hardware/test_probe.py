from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from gpubench.errors import GpubenchError
from gpubench.hardware import probe
from gpubench.hardware.probe import (
    DeviceProbe,
    choose_device,
    fast_cuda_dtypes,
    probe_device,
    probe_environment,
    steering_variables,
)
from gpubench.worker.messages import Describe, WorkloadChoice
from gpubench.worker.once import describe
from tests.fake_nvml import NOT_SUPPORTED, FakeGpu, FakeNvml, fake_nvml
from tests.running import MODELS

__all__ = ["fake_nvml"]

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
UUID = "aaaaaaaa-0000-0000-0000-000000000001"
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, fake_nvml: FakeNvml) -> FakeGpu:
    """Two CUDA devices as torch would show them; nothing runs on them."""
    properties = SimpleNamespace(
        name="NVIDIA Test Card",
        uuid=UUID,
        total_memory=16 * 2**30,
        major=8,
        minor=9,
        multi_processor_count=70,
        L2_cache_size=48 * 2**20,
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    return fake_nvml.add(FakeGpu(uuid=f"GPU-{UUID}", power_limit_milliwatts=285_000))


@no_cuda
def test_auto_is_the_cpu_without_cuda() -> None:
    assert choose_device("auto") == choose_device("cpu") == "cpu"


@no_cuda
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(GpubenchError) as caught:
        choose_device(device)
    assert caught.value.message.startswith(f"Device {device!r} is not there. ")
    assert caught.value.hint == "This machine has: cpu."


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built with CUDA")
def test_a_torch_without_cuda_is_named_as_the_cause() -> None:
    with pytest.raises(GpubenchError, match=r"is built without CUDA\."):
        choose_device("cuda:0")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:-1", "", "mps"])
def test_a_device_that_is_no_device(device: str) -> None:
    with pytest.raises(GpubenchError, match=r"is not understood\. Allowed: auto, cpu, cuda:N\. Here: cpu"):
        probe_device(device)


def test_choice_with_cuda(cuda: FakeGpu) -> None:
    assert [choose_device(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda:0", "cuda:0", "cuda:1", "cpu"]
    with pytest.raises(GpubenchError, match=r"'cuda:2' is not there\. This machine has: cpu, cuda:0, cuda:1\."):
        choose_device("cuda:2")


TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading"
)


def test_a_driver_too_old_for_torch_is_no_gpu(cuda: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through NVML torch sees the card all the same, and says that CUDA is available."""

    def init() -> None:
        raise RuntimeError(TOO_OLD)

    monkeypatch.setattr(torch.cuda, "init", init)
    remedy = "it runs CUDA 11.4 at most, and torch .* is built for CUDA 12.8. Update the driver, or install torch for"
    assert choose_device("auto") == "cpu"
    with pytest.raises(GpubenchError, match=rf"'cuda:0' is not there. The NVIDIA driver is too old .*{remedy}"):
        choose_device("cuda:0")
    choice = WorkloadChoice(reference=f"{MODELS}:good", size=None, parameters={}, mode=None)
    described = describe(Describe(choice, "auto"))
    assert described.device.kind == "cpu"
    assert described.note.startswith("There is a GPU, but the CPU was measured. The NVIDIA driver is too old")
    assert describe(Describe(choice, "cpu")).note == ""  # asked for


def test_of_unlike_cards_the_largest_free_one_is_taken(cuda: FakeGpu, fake_nvml: FakeNvml, monkeypatch: Any) -> None:
    cards = [cuda, *(fake_nvml.add(FakeGpu(uuid=f"GPU-{index}")) for index in (1, 2))]
    sizes = [20, 100, 60]

    def properties(device: int | str) -> SimpleNamespace:
        index = int(str(device).removeprefix("cuda:"))
        return SimpleNamespace(uuid=cards[index].uuid, multi_processor_count=sizes[index])

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    for card in cards:
        card.gpu_utilization = 0
    assert choose_device("auto") == "cuda:1"
    cards[1].processes = [(os.getpid(), 2**20)]  # the probing process itself
    assert choose_device("auto") == "cuda:1"
    cards[1].processes = [(4_000_001, 2**20)]
    assert choose_device("auto") == "cuda:2"
    cards[2].gpu_utilization = 90
    assert choose_device("auto") == "cuda:0"
    cards[0].gpu_utilization = 90
    assert choose_device("auto") == "cuda:1"  # none is free
    assert choose_device("cuda") == "cuda:0"


@pytest.mark.parametrize("given", ["00000000-0000-0000-0000-000000000000", None])
def test_a_board_without_a_uuid(cuda: FakeGpu, monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    """As on Jetson boards: torch gives zeros, or nothing, and NVML does not support it."""
    properties = torch.cuda.get_device_properties(0)
    monkeypatch.setattr(properties, "uuid", given or "")
    cuda.fails["nvmlDeviceGetUUID"] = NOT_SUPPORTED
    device = probe_device("cuda:0")
    assert device.uuid is None
    assert device.unavailable["uuid"] == "neither torch nor NVML gives one"
    assert device.power_limit_watts == 285  # the card is found by its number


def test_a_gpu(cuda: FakeGpu) -> None:
    device = probe_device("cuda:1")
    assert (device.kind, device.name, device.index, device.uuid) == ("cuda", "NVIDIA Test Card", 1, f"GPU-{UUID}")
    assert device.fast_dtypes == ["float32", "tf32", "float16", "bfloat16"]
    assert (device.compute_capability, device.multiprocessors) == ([8, 9], 70)
    assert (device.driver_version, device.power_limit_watts, device.mig, device.ecc) == (
        "570.86.15",
        285,
        False,
        False,
    )
    assert device.unavailable == {}


def test_a_gpu_without_ecc_says_so(cuda: FakeGpu) -> None:
    cuda.fails["nvmlDeviceGetEccMode"] = NOT_SUPPORTED
    device = probe_device("cuda:0")
    assert device.ecc is None
    assert device.unavailable == {"ecc": "this device does not support it (NVML: not supported)"}


def test_a_gpu_without_nvml(cuda: FakeGpu, fake_nvml: FakeNvml) -> None:
    fake_nvml.fails["nvmlInitWithFlags"] = 9
    device = probe_device("cuda:0")
    assert device.driver_version is None and device.uuid == UUID
    assert device.unavailable == dict.fromkeys(
        ("driver_version", "power_limit_watts", "mig", "ecc"), "the NVIDIA driver is not loaded"
    )


@pytest.mark.parametrize(
    ("capability", "dtypes"),
    [
        ((6, 1), ["float32"]),
        ((7, 5), ["float32", "float16"]),
        ((8, 0), ["float32", "tf32", "float16", "bfloat16"]),
        ((12, 0), ["float32", "tf32", "float16", "bfloat16"]),
    ],
)
def test_fast_types_by_compute_capability(capability: tuple[int, int], dtypes: list[str]) -> None:
    assert fast_cuda_dtypes(capability) == dtypes


@pytest.mark.parametrize(
    ("sets", "onednn", "expected"),
    [
        (["avx512f"], True, ["float32"]),  # oneDNN converts to float32 and back: emulated
        (["avx512f", "avx512_bf16"], True, ["float32", "bfloat16"]),
        (["amx_bf16", "avx512_fp16"], True, ["float32", "bfloat16", "float16"]),
        (["amx_bf16", "avx512_fp16"], False, ["float32"]),
    ],
)
def test_a_cpu_type_is_fast_where_instructions_and_onednn_have_it(
    monkeypatch: pytest.MonkeyPatch, sets: list[str], onednn: bool, expected: list[str]
) -> None:
    real = probe.read_cpu()
    monkeypatch.setattr(probe, "read_cpu", lambda: msgspec.structs.replace(real, instruction_sets=sets))
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: onednn)
    assert probe_device("cpu").fast_dtypes == expected


def test_environment_of_this_process() -> None:
    environment = probe_environment()
    assert environment.torch == torch.__version__ and type(environment.torch) is str
    assert environment.cuda == torch.version.cuda
    assert environment.python == ".".join(map(str, sys.version_info[:3]))


def test_variables_that_steer() -> None:
    given = {
        "OMP_NUM_THREADS": "2",
        "GLIBC_TUNABLES": "x",
        "TORCHINDUCTOR_FREEZING": "1",
        "KMP_AFFINITY": "compact",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "HOME": "/root",
        "XOMP_NUM_THREADS": "3",
    }
    assert list(steering_variables(given)) == [
        "GLIBC_TUNABLES",
        "KMP_AFFINITY",
        "OMP_NUM_THREADS",
        "TORCHINDUCTOR_FREEZING",
    ]


@pytest.mark.parametrize(("version", "name"), [(8902, "8.9.2"), (90100, "9.1.0"), (91002, "9.10.2")])
def test_cudnn_version(version: int, name: str) -> None:
    assert probe._cudnn_name(version) == name


def test_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "my-c++"
    compiler.write_text("#!/bin/sh\necho 'my-c++ 1.2'\necho more\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert probe._compiler() == "my-c++ 1.2"
    compiler.write_text("#!/bin/sh\nexit 3\n")
    assert probe._compiler() is None
    monkeypatch.setenv("CXX", str(tmp_path / "absent"))
    assert probe._compiler() is None


def run_probe(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gpubench.hardware.probe", *arguments]
    variables: dict[str, Any] = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=variables, check=False)


def test_as_a_program() -> None:
    done = run_probe("cpu", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(done.stdout, type=DeviceProbe)
    assert found.device == probe_device("cpu")
    assert found.environment.variables["OMP_NUM_THREADS"] == "1"
