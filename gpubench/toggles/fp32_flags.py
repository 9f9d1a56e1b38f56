"""torch's process-wide permissions to compute fp32 in less: TF32 on a GPU, TF32 or bfloat16 by oneDNN on a CPU.

Each has an older name and, since torch 2.9, a newer one. Reading an older one is an error where only the newer ones
were set, and setting an older one leaves some of the newer ones as they were. So all of them are set here, the older
ones first, and after that both can be read.
"""

from __future__ import annotations

from typing import Any

# Name below torch.backends -> what plain torch sets it to. What is set "none" follows the one above it: cudnn.conv and
# cudnn.rnn follow cudnn, and all of them torch.backends itself.
_PLAIN = {
    "": "none",
    "cudnn": "none",
    "cuda.matmul": "none",
    "cudnn.conv": "tf32",
    "cudnn.rnn": "tf32",
    "mkldnn.matmul": "none",
    "mkldnn.conv": "none",
    "mkldnn.rnn": "none",
}
OVERRIDE = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"  # an environment variable; 1: torch begins with TF32 in matrix products
_USED_ON = {"cuda": ("cuda.matmul", "cudnn.conv", "cudnn.rnn"), "cpu": ("mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")}


def names(device_kind: str) -> tuple[str, ...]:
    """The permissions that count on that kind of device, by their names below torch.backends."""
    return _USED_ON.get(device_kind, ())


def setting(name: str) -> str:
    """What torch calls a permission."""
    return f"torch.backends.{name}.fp32_precision"


def state(device_kind: str) -> dict[str, str]:
    """What fp32 may be computed in on that kind of device: `{"cuda.matmul": "fp32", "cudnn.conv": "tf32", ...}`."""
    found = {name: _read(name) for name in names(device_kind)}
    return {name: value if value in ("tf32", "bf16") else "fp32" for name, value in found.items()}


def permitted(device_kind: str) -> dict[str, str]:
    """The part of `state` that is below fp32."""
    return {name: value for name, value in state(device_kind).items() if value != "fp32"}


def forbid() -> None:
    """Plain fp32 in everything that torch computes on fp32 numbers."""
    _set_older(tf32=False)
    for name in _PLAIN:
        _set(name, "ieee")


def permit_tf32() -> None:
    """TF32 for matrix products and convolutions, those that torch.compile generates included."""
    forbid()
    _set_older(tf32=True)
    for name in ("cudnn", "cuda.matmul", "cudnn.conv", "cudnn.rnn"):
        _set(name, "tf32")


def reset(*, overridden: bool = False) -> None:
    """As plain torch has them: TF32 for cuDNN's convolutions and recurrent layers, fp32 for the rest.

    overridden: TF32 for matrix products too, as torch begins with under `OVERRIDE`.
    """
    import torch

    forbid()
    torch.backends.cudnn.allow_tf32 = True
    for name, value in _PLAIN.items():
        _set(name, value)
    if overridden:
        torch.backends.cuda.matmul.allow_tf32 = True


def _set_older(*, tf32: bool) -> None:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = tf32  # sets torch.get_float32_matmul_precision() as well
    torch.backends.cudnn.allow_tf32 = tf32


def _holder(name: str) -> Any:
    """What has the attribute `fp32_precision` for that name; None where this torch does not."""
    import torch

    found: Any = torch.backends
    for part in filter(None, name.split(".")):
        found = getattr(found, part, None)
    return found if hasattr(found, "fp32_precision") else None


def _set(name: str, value: str) -> None:
    holder = _holder(name)
    if holder is not None:
        holder.fp32_precision = value


def _read(name: str) -> str:
    import torch

    holder = _holder(name)
    if holder is not None:
        return str(holder.fp32_precision)
    older: dict[str, Any] = {"cuda.matmul": torch.backends.cuda.matmul, "cudnn.conv": torch.backends.cudnn}
    if name in older:
        return "tf32" if older[name].allow_tf32 else "none"
    precision = torch.get_float32_matmul_precision() if name == "mkldnn.matmul" else "highest"
    return {"high": "tf32", "medium": "bf16"}.get(precision, "none")
