"""How out-of-memory errors are recognized under any name, and what a limit on a GPU leaves to torch's allocator."""

from __future__ import annotations

import pytest
import torch

from gpubench.measure.memory import beyond_allocator
from gpubench.worker.limits import is_out_of_memory, limit_memory

GIB, MIB = 2**30, 2**20
CUDA = torch.device("cuda", 0)


def card(monkeypatch: pytest.MonkeyPatch, *, free: int, allocated: int, reserved: int, fraction: float = 1.0) -> None:
    """torch sees a GPU of 8 GiB with these bytes, as its functions tell them."""
    for name, answer in (
        ("is_initialized", True),
        ("mem_get_info", (free, 8 * GIB)),
        ("memory_allocated", allocated),
        ("memory_reserved", reserved),
        ("get_per_process_memory_fraction", fraction),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cuFFT error: CUFFT_ALLOC_FAILED",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
        "CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY",
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory: you tried to allocate 16 bytes.",
    ],
)
def test_memory_that_ran_out_is_recognized_under_every_name(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))
    wrapped = RuntimeError("the graph could not be compiled")
    wrapped.__context__ = RuntimeError(text)
    assert is_out_of_memory(wrapped)


@pytest.mark.parametrize(
    "text",
    [
        "GET was unable to find an engine to execute this computation",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    ],
)
def test_an_error_that_also_means_full_memory_is_judged_by_what_is_left(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError(text)
    assert not is_out_of_memory(error)  # no GPU was used here
    card(monkeypatch, free=200 * MIB, allocated=7 * GIB, reserved=7 * GIB)
    assert is_out_of_memory(error)
    card(monkeypatch, free=5 * GIB, allocated=2 * GIB, reserved=2 * GIB)
    assert not is_out_of_memory(error)
    # What torch has reserved without using it, it gives back first.
    card(monkeypatch, free=200 * MIB, allocated=2 * GIB, reserved=7 * GIB)
    assert not is_out_of_memory(error)
    # The card has room, but not this process.
    card(monkeypatch, free=5 * GIB, allocated=2 * GIB - 100 * MIB, reserved=2 * GIB, fraction=0.25)
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: an illegal memory access was encountered",
        "out of resource: shared memory, Required: 147456, Hardware limit: 101376.",
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
    ],
)
def test_other_errors_are_not_taken_for_it(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, free=0, allocated=8 * GIB, reserved=8 * GIB)
    assert not is_out_of_memory(RuntimeError(text))


def test_what_lies_outside_torchs_allocator_counts_in_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("", (), {"total_memory": 80 * GIB}))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, _: given.append(share))
    card(monkeypatch, free=6 * GIB, allocated=0, reserved=GIB)
    beyond = beyond_allocator(CUDA, 7 * GIB + 600 * MIB)
    assert beyond == 600 * MIB
    limit_memory(CUDA, 8 * GIB, beyond)
    assert given == [pytest.approx((8 * GIB - 600 * MIB) / (80 * GIB))]
    with pytest.raises(MemoryError, match=r"limit of 512 MiB is below the 600 MiB that the CUDA context"):
        limit_memory(CUDA, 512 * MIB, beyond)
    assert beyond_allocator(CUDA, None) is None  # nobody told what was free before
    assert beyond_allocator(torch.device("cpu"), GIB) is None
