"""The arithmetic: fp32, TF32, or bf16 and fp16 as autocast or as converted weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpubench.toggles import evidence as read
from gpubench.toggles.tf32_probe import tf32_in_use
from gpubench.toggles.toggle import Proof, Requirement, Stage, Toggle, Value

if TYPE_CHECKING:
    import torch

    from gpubench.measure.trace import Trace
    from gpubench.toggles.subject import Subject

_LOWER_THAN_FP32 = ("bf16", "fp16")

_USAGE = {
    "fp32": """torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False  # torch's own default is True""",
    "tf32": """torch.backends.cuda.matmul.allow_tf32 = True
torch.backends.cudnn.allow_tf32 = True""",
    "bf16-autocast": """autocast = torch.autocast(device.type, torch.bfloat16)
# in each step: with autocast: the forward pass and the loss, not the backward pass""",
    "bf16-weights": """model = model.to(torch.bfloat16)
inputs = [x.to(torch.bfloat16) if x.is_floating_point() else x for x in inputs]""",
    "fp16-autocast": """autocast = torch.autocast(device.type, torch.float16)
scaler = torch.amp.GradScaler(device.type)  # for training
# in each step: with autocast: the forward pass and the loss, not the backward pass
# training: scaler.scale(loss).backward(), then scaler.step(optimizer) and scaler.update()""",
    "fp16-weights": """model = model.to(torch.float16)
inputs = [x.to(torch.float16) if x.is_floating_point() else x for x in inputs]""",
}


def _dtype(value: Value) -> torch.dtype:
    import torch

    return torch.bfloat16 if str(value).startswith("bf16") else torch.float16


def apply(subject: Subject, value: Value) -> None:
    """Sets the TF32 flags for every value, so that no row depends on torch's default, then autocast or weights."""
    import torch

    # The flags are set through their older names, which all supported versions of torch have; setting the newer
    # `fp32_precision` would make reading these an error for other libraries in the process.
    torch.backends.cuda.matmul.allow_tf32 = value == "tf32"
    torch.backends.cudnn.allow_tf32 = value == "tf32"
    if str(value).endswith("-autocast"):
        subject.autocast_dtype = _dtype(value)
        if value == "fp16-autocast" and subject.mode == "training":
            subject.scaler = torch.amp.GradScaler(subject.device.type)
    elif str(value).endswith("-weights"):
        dtype = _dtype(value)
        subject.model.to(dtype)
        subject.batches = [
            tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in batch)
            for batch in subject.batches
        ]


def evidence(subject: Subject, value: Value) -> Proof:
    """Whether the convolutions, matrix products and attentions of a real step ran in the dtype."""
    trace = subject.trace
    if trace is None:
        return read.unreadable(subject)
    dtypes = [read.operator_dtype(operator) for operator in read.compute_operators(trace)]
    kind = "convolutions, matrix products and attentions"
    if not dtypes:
        kernels = read.compute_kernels(trace)
        dtypes = [dtype for dtype in map(read.kernel_dtype, kernels) if dtype]
        kind = f"GPU kernels whose name tells a dtype (of {len(kernels)}; a CUDA graph hides the operators)"
    if value in ("fp32", "tf32"):
        return _full_precision(subject.device, trace, str(value), dtypes, kind)
    if not dtypes:
        return Proof(took_effect=None, detail="the profiled step shows no convolution, matrix product or attention")
    wanted = str(value).split("-", maxsplit=1)[0]
    hits = sum(dtype == wanted for dtype in dtypes)
    scale = f"; the gradient scale is {subject.scaler.get_scale():g}" if subject.scaler is not None else ""
    return Proof(
        took_effect=hits >= read.MAJORITY * len(dtypes),
        detail=f"{hits} of {len(dtypes)} {kind} ran in {wanted} (at least {read.MAJORITY:.0%} must){scale}",
    )


def _full_precision(device: torch.device, trace: Trace, value: str, dtypes: Sequence[str | None], kind: str) -> Proof:
    lower = Counter(dtype for dtype in dtypes if dtype in _LOWER_THAN_FP32)
    words = f"{lower.total()} of {len(dtypes)} {kind} ran below fp32"
    if lower:
        return Proof(took_effect=False, detail=f"{words}: {', '.join(lower)}")
    if device.type != "cuda":
        return Proof(
            took_effect=True if dtypes else None,
            detail=words if dtypes else "the profiled step shows no convolution, matrix product or attention",
        )
    named = [name for name in read.compute_kernels(trace) if read.kernel_dtype(name) == "tf32"]
    probe = tf32_in_use(device)
    words += f"; {len(named)} GPU kernels are named TF32; {probe.detail}"
    if probe.matmul is None or probe.convolution is None:
        return Proof(took_effect=None, detail=words)
    if value == "tf32":
        # cuDNN may take another algorithm for the probe's shape than for the model's, which its kernels then show.
        return Proof(took_effect=probe.matmul and (probe.convolution or bool(named)), detail=words)
    return Proof(took_effect=not (probe.matmul or probe.convolution or named), detail=words)


# Relative (L2) error of a whole model's output. One rounding is off by half a unit in the last place: 2^-9 = 0.2 % in
# bfloat16, 2^-12 = 0.02 % in float16, 2^-11 = 0.05 % in TF32. Deep networks add some dozens of them up.
TOLERANCE: dict[Value, float] = {
    "tf32": 0.01,
    "bf16-autocast": 0.06,
    "bf16-weights": 0.06,
    "fp16-autocast": 0.02,
    "fp16-weights": 0.02,
}

PRECISION = Toggle(
    name="precision",
    summary="The number format of convolutions, matrix products and attention.",
    values={
        "fp32": "32-bit arithmetic throughout, TF32 off for matrix products and for cuDNN",
        "tf32": "fp32 storage; tensor cores multiply with 10 mantissa bits and add in fp32",
        "bf16-autocast": "fp32 weights; autocast computes convolutions and matrix products in bfloat16",
        "bf16-weights": "weights and floating inputs converted to bfloat16, everything computed in it",
        "fp16-autocast": "fp32 weights; autocast computes in float16; training scales the loss",
        "fp16-weights": "weights and floating inputs converted to float16, everything computed in it",
    },
    stage=Stage.DTYPE,
    requires={
        "tf32": Requirement(
            device_kinds=("cuda",), compute_capability=(8, 0), why="TF32 is a mode of tensor cores from Ampere on"
        ),
        "bf16-autocast": Requirement(compute_capability=(8, 0), fast_dtype="bfloat16"),
        "bf16-weights": Requirement(compute_capability=(8, 0), fast_dtype="bfloat16"),
        "fp16-autocast": Requirement(fast_dtype="float16"),
        "fp16-weights": Requirement(
            modes=("inference",),
            fast_dtype="float16",
            why="torch's gradient scaler refuses to unscale fp16 gradients, and unscaled ones vanish; "
            "fp16-autocast trains",
        ),
    },
    apply=apply,
    evidence=evidence,
    usage=lambda value: _USAGE[str(value)],
    tolerance=TOLERANCE,
    claims=("vae-guide", "gpu-guide", "cytodl", "bf16-guide", "mmrec-cpu"),
    source="PyTorch documentation: Automatic Mixed Precision package; CUDA semantics, TensorFloat-32 (TF32)",
)
