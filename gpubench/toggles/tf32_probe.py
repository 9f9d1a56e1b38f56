"""Whether a GPU currently multiplies fp32 numbers in TF32, tested with numbers that TF32 cannot represent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpubench.text import kind_and_message

if TYPE_CHECKING:
    import torch

# 1 + 2^-12 needs 12 mantissa bits: fp32 (23 bits) represents it, TF32 (10 bits) rounds it to 1.
_VALUE = 1 + 2.0**-12
# Multiplied by ones and summed as below, the relative error is 2.4e-4 in TF32. In fp32 the result is exact (22 of 24
# bits) unless an algorithm transforms its inputs (Winograd: some 1e-6). The limit, 3.1e-5, lies well between.
_LIMIT = 2.0**-15


@dataclass(frozen=True)
class Tf32Probe:
    """Whether TF32 is in use; None if the probe could not run, and `detail` says why."""

    matmul: bool | None
    convolution: bool | None
    detail: str


def tf32_in_use(device: torch.device) -> Tf32Probe:
    """Whether a matrix product and a convolution on `device` have TF32's error under the current flags."""
    import torch

    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            matmul, convolution = _matmul_error(device), _convolution_error(device)
    except RuntimeError as error:
        return Tf32Probe(None, None, f"the numeric TF32 probe failed: {kind_and_message(error)}")
    return Tf32Probe(
        matmul > _LIMIT,
        convolution > _LIMIT,
        f"a probe's relative error is {matmul:.1e} for a matrix product and {convolution:.1e} for a convolution "
        f"(TF32 above {_LIMIT:.1e})",
    )


def _matmul_error(device: torch.device) -> float:
    import torch

    like: Any = {"device": device, "dtype": torch.float32}  # the default dtype may be the workload's own
    size = 256  # large enough that cuBLAS takes tensor cores when it may
    product = torch.full((size, size), _VALUE, **like) @ torch.ones(size, size, **like)
    return float((product.double() / (size * _VALUE) - 1).abs().max())


def _convolution_error(device: torch.device) -> float:
    import torch

    channels = 128  # enough for cuDNN to take tensor cores when it may
    like: Any = {"device": device, "dtype": torch.float32}
    image = torch.full((4, channels, 28, 28), _VALUE, **like)
    output = torch.nn.functional.conv2d(image, torch.ones(channels, channels, 3, 3, **like))
    return float((output.double() / (channels * 9 * _VALUE) - 1).abs().max())
