"""The number format: fp32, TF32, or bf16 and fp16 by autocast or by converted weights.

Each value but `as-built` starts from the model in fp32, whatever its build made of it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles import evidence as read
from gpubench.toggles import fp32_flags, kernels
from gpubench.toggles.own_precision import (
    STRICTLY_AS_BUILT,
    differs_from,
    is_own,
    own_dtypes,
    own_tolerance,
    reference,
    remark,
    undo,
)
from gpubench.toggles.plain_fp32 import autocast, convert, make_plain
from gpubench.toggles.printed import cast_model, each_input
from gpubench.toggles.step_parts import update_parameters, within
from gpubench.toggles.tf32_probe import Tf32Probe, tf32_in_use
from gpubench.toggles.toggle import AS_BUILT, EvidenceResult, Requirement, Scope, Stage, Toggle
from gpubench.workloads.observe import short

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gpubench.measure.trace import Operator, Trace
    from gpubench.toggles.model_context import ModelContext

_SCALER, _SKIPPED = "precision.scaler", "precision.skipped"
_LOWER_THAN_FP32 = ("bf16", "fp16")
_KIND = "convolutions, matrix products and attentions"
_NOTHING = "the profiled step shows no convolution, matrix product or attention"

_USAGE = {
    AS_BUILT: "# precision: as the workload's own code sets it",
    "torch-default": "# precision: weights and inputs in fp32, and torch's own settings",
    "fp32": """torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False  # torch's own default is True""",
    "tf32": """torch.backends.cuda.matmul.allow_tf32 = True
torch.backends.cudnn.allow_tf32 = True
torch.backends.cudnn.fp32_precision = "tf32"  # what convolutions of torch.compile's own look at since torch 2.9""",
    "bf16-autocast": """autocast = torch.autocast(device.type, torch.bfloat16)
# in each step: with autocast: the forward pass and the loss, not the backward pass""",
    "fp16-autocast": """autocast = torch.autocast(device.type, torch.float16)
# in each step: with autocast: the forward pass and the loss, not the backward pass""",
}

_USAGE_SCALER = """
scaler = torch.amp.GradScaler(device.type)
# in each training step: scaler.scale(loss).backward(), then scaler.step(optimizer) and scaler.update();
# before gradients are clipped, scaler.unscale_(optimizer)"""


def _usage(value: Value, scope: Scope | None) -> str:
    training = scope is None or scope.workload.mode == "training"
    if str(value).endswith("-weights"):
        nested = scope is not None and scope.workload.nested_inputs
        dtype = {"bf16-weights": "torch.bfloat16", "fp16-weights": "torch.float16"}[str(value)]
        inputs = each_input(f"x.to({dtype}) if x.is_floating_point() else x", nested)
        lines = f"{cast_model(dtype, scope is not None and scope.workload.complex_weights)}\n{inputs}"
    else:
        lines = _USAGE[str(value)]
    lines += _USAGE_SCALER if value == "fp16-autocast" and training else ""
    as_it_is = value in (AS_BUILT, "torch-default", "fp32", "tf32")
    if as_it_is or (scope is not None and scope.device.kind == "cpu"):
        return lines
    return f"{_USAGE['fp32']}\n{lines}"  # `apply` sets these flags for every other value


def _can_be_scaled(scope: Scope) -> str | None:
    """A training step of the workload's own would have to scale its gradients."""
    if scope.workload.mode == "inference" or not scope.workload.own_train_step:
        return None
    return "scales the gradients, which a train_step of the workload's own would have to do"


def _dtype(value: Value) -> torch.dtype:
    import torch

    return torch.bfloat16 if str(value).startswith("bf16") else torch.float16


def apply(context: ModelContext, value: Value) -> None:
    """Makes the model plain fp32 with explicit TF32 flags, then sets up autocast or converts weights and inputs."""
    if value == AS_BUILT:
        return
    {"torch-default": fp32_flags.reset, "tf32": fp32_flags.permit_tf32}.get(str(value), fp32_flags.forbid)()
    if value == STRICTLY_AS_BUILT:
        return
    make_plain(context)
    if str(value).endswith("-autocast"):
        kind, dtype = context.device.type, _dtype(value)
        context.step.forward = within(lambda: autocast(kind, dtype), context.step.forward)
        if value == "fp16-autocast" and context.mode == "training":
            _scale_gradients(context)
    elif str(value).endswith("-weights"):
        convert(context, _dtype(value))


def _scale_gradients(context: ModelContext) -> None:
    import torch

    scaler = context.notes[_SCALER] = torch.amp.GradScaler(context.device.type)
    backward = context.step.backward

    def update() -> None:
        update_parameters(context, scaler.step, scaler.unscale_)
        scaler.update()

    last = scaler.get_scale()

    def skipped() -> bool:  # by the scale, which falls when gradients overflow; `update` must not wait for the device
        nonlocal last
        before, last = last, scaler.get_scale()
        context.notes[_SKIPPED] = context.notes.get(_SKIPPED, 0) + (last < before)
        return last < before

    context.step.backward = lambda loss: backward(scaler.scale(loss))
    context.step.update, context.skipped = update, skipped


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the convolutions, matrix products and attentions of the profiled step ran in the dtype."""
    trace = read.recorded(context)
    if isinstance(trace, EvidenceResult):
        return trace
    blind = read.is_blind(context, trace)
    if value == AS_BUILT:
        result = _as_built(context.device, trace)
    elif value in ("torch-default", "fp32", "tf32"):
        result = _full_precision(context.device, trace, str(value))
    else:
        wanted = str(value).split("-", maxsplit=1)[0]
        result = _lower_precision(trace, wanted, context.kept, blind=blind)
        if result.took_effect is None and str(value).endswith("-weights"):
            result = _around_quantized(context, wanted, result)
    silent = context.device.type == "cuda" and not trace.kernels
    words = [result.detail, "no GPU kernel was recorded" if silent else kernels.top(trace)]
    if backends := read.attention_backends(trace):
        words.append(f"attention ran in {' and '.join(backends)}")
    if scaler := context.notes.get(_SCALER):
        lost = context.notes.get(_SKIPPED)
        before = f", found after {plural(lost, 'step')} that overflowed and were skipped" if lost else ""
        words.append(f"the gradient scale is {scaler.get_scale():g}{before}")
    return dataclasses.replace(result, detail="; ".join(filter(None, words)))


def _as_built(device: torch.device, trace: Trace) -> EvidenceResult:
    # Nothing was applied, so that there is nothing to disprove: what ran gives it its name.
    dtypes = [read.operator_dtype(operator) for operator in read.compute_operators(trace)]
    if not dtypes or read.replays_graph(trace):
        dtypes = [kernels.kernel_dtype(kernel.name) for kernel in kernels.compute_kernels(trace)] or dtypes
    if not dtypes:
        dtypes = [read.operator_dtype(operator) for operator in trace.operators]
    counts = Counter(dtype for dtype in dtypes if dtype)
    name = " and ".join(dtype for dtype, _ in counts.most_common()) or "no floating-point operator"
    if counts["fp32"]:
        permitted = fp32_flags.permitted(device.type)
        name += "".join(f", {each} in {dtype}" for each, dtype in permitted.items())
    parts = ", ".join(f"{count} of {counts.total()} in {dtype}" for dtype, count in counts.most_common())
    return EvidenceResult(True, f"as built: {parts or name}", name=f"as built: {name}")


def unfit(context: ModelContext) -> str | None:
    """Why the profiled step computed in less than fp32, or why that is not known; None where it did not."""
    trace = read.recorded(context)
    result = trace if isinstance(trace, EvidenceResult) else _full_precision(context.device, trace, "fp32")
    return None if result.took_effect else result.detail


def _lower_precision(trace: Trace, wanted: str, kept: Sequence[nn.Module], *, blind: bool) -> EvidenceResult:
    # Kernel time decides where kernel names show the dtype. The operators' FLOPs decide if there are no kernels (a CPU)
    # or too many with unknown dtype, unless a CUDA graph hides them.
    operators = [each for each in read.compute_operators(trace) if not read.is_quantized(each)]
    operators = [each for each in operators if not _is_kept(each, kept)]
    in_time = kernels.share_in(trace, wanted, read.launched_dtypes(trace))
    words, by_work, by_time = [], None, None
    if not operators and in_time is None:
        words.append(_NOTHING)
    if operators:
        hits = [read.operator_dtype(operator) for operator in operators].count(wanted)
        share = read.share(operators, lambda operator: read.operator_dtype(operator) == wanted)
        by_work = share >= read.MAJORITY
        words.append(
            f"{hits} of {len(operators)} {_KIND}, {share:.0%} of their work, ran in {wanted} "
            f"(at least {read.MAJORITY:.0%} required)"
        )
    if in_time is not None:
        by_time = True if in_time.low >= read.MAJORITY else False if in_time.high < read.MAJORITY else None
        by_time = None if kept and not by_time else by_time  # kernels do not tell whose they are
        words.append(_in_time(in_time, wanted))
    if read.replays_graph(trace):
        by_work = None
        words.append("a CUDA graph hides its operators")
    elif blind and not by_work:  # a CUDA graph would not show either
        by_work = None
    return EvidenceResult(by_time if by_time is not None else by_work, "; ".join(words))


def _is_kept(operator: Operator, kept: Sequence[nn.Module]) -> bool:
    """Whether it multiplies in fp32 by a weight of one of the modules that are kept in that."""
    shapes = {tuple(weight.shape) for module in kept for weight in module.parameters() if weight.dim() > 1}
    found = {*operator.shapes, *(shape[::-1] for shape in operator.shapes if len(shape) == 2)}
    return read.operator_dtype(operator) == "fp32" and not shapes.isdisjoint(found)


def _around_quantized(context: ModelContext, wanted: str, result: EvidenceResult) -> EvidenceResult:
    """`result`, decided by the weights where layers that are quantized do all products: by what they take and give."""
    weights = [each for each in (*context.model.parameters(), *context.model.buffers()) if each.is_floating_point()]
    if not any(map(read.is_quantized_weight, weights)):
        return result
    hits = [short(each.dtype) for each in weights].count(wanted)
    words = f"{result.detail}; what is multiplied is quantized, and {hits} of {len(weights)} weights are {wanted} else"
    return EvidenceResult(hits >= read.MAJORITY * len(weights), words)


def _in_time(share: kernels.Share, dtype: str) -> str:
    unknown = f", {share.high - share.low:.0%} in kernels of unknown dtype" if share.high > share.low else ""
    return f"{share.low:.0%} of the compute kernels' time in {dtype}{unknown}"


def _full_precision(device: torch.device, trace: Trace, value: str) -> EvidenceResult:
    dtypes, kind = [read.operator_dtype(operator) for operator in read.compute_operators(trace)], _KIND
    computing = kernels.compute_kernels(trace)
    if computing and (not dtypes or read.replays_graph(trace)):
        dtypes = [kernels.kernel_dtype(kernel.name) for kernel in computing]
        kind = "GPU kernels that compute"
    lower = Counter(dtype for dtype in dtypes if dtype in _LOWER_THAN_FP32)
    words = f"{lower.total()} of {len(dtypes)} {kind} ran below fp32"
    if lower:
        return EvidenceResult(False, f"{words}: {', '.join(lower)}")
    if not dtypes:
        words = f"{_NOTHING}, so nothing ran below fp32"
    allowed = {"torch-default": ("cudnn.conv", "cudnn.rnn"), "tf32": ("cuda.matmul", "cudnn.conv", "cudnn.rnn")}
    for name, dtype in fp32_flags.permitted(device.type).items():
        if name not in allowed.get(value, ()):
            return EvidenceResult(False, f"{words}; but torch.backends.{name}.fp32_precision is {dtype}")
    if device.type != "cuda":
        return EvidenceResult(True, words)
    named = sum(kernels.kernel_dtype(kernel.name) == "tf32" for kernel in computing)
    share = kernels.share_in(trace, "tf32")
    probe = tf32_in_use(device)
    words += f"; {named} GPU kernels are named TF32" + (f", {_in_time(share, 'tf32')}" if share else "")
    words += f"; {probe.detail}"
    if value == "tf32":
        return EvidenceResult(_tf32_ran(probe, named, share, bool(dtypes)), words)
    if value == "torch-default":
        return EvidenceResult(None if probe.matmul is None else not probe.matmul, words)
    if named or probe.matmul or probe.convolution:
        return EvidenceResult(False, words)
    return EvidenceResult(None if probe.matmul is None or probe.convolution is None else True, words)


def _tf32_ran(probe: Tf32Probe, named: int, share: kernels.Share | None, computed: bool) -> bool | None:
    if probe.matmul is None or probe.convolution is None:
        return None
    # cuDNN may use another algorithm for the probe's shape than for the model's, which its kernel names then show.
    if not probe.matmul or not (probe.convolution or named):
        return False
    # TF32 is a permission: the libraries may do part of the work in fp32, and `detail` says how much. But if the kernel
    # names show that none of it was TF32, the label is wrong.
    if share is not None and not named and share.high < read.MAJORITY:
        return False
    return True if computed else None


# Relative (L2) error of a whole model's output. One rounding is off by half a unit in the last place: 2^-9 = 0.2 % in
# bfloat16, 2^-12 = 0.02 % in float16, 2^-11 = 0.05 % in TF32. Deep networks accumulate some dozens of them.
TOLERANCE: dict[Value, float] = {
    "torch-default": 0.01,
    "tf32": 0.01,
    "bf16-autocast": 0.06,
    "bf16-weights": 0.06,
    "fp16-autocast": 0.02,
    "fp16-weights": 0.02,
}


def offers(scope: Scope) -> tuple[Value, ...]:
    """All values; first what the workload's own code does, or else what plain torch does on the device."""
    plain = "torch-default" if scope.device.kind == "cuda" else "fp32"
    return tuple(dict.fromkeys((AS_BUILT if own_dtypes(scope) else plain, *PRECISION.values)))


PRECISION = Toggle(
    name="precision",
    summary="The number format of convolutions, matrix products and attention.",
    values={
        "fp32": "32-bit arithmetic throughout; TF32 is off for matrix products and for cuDNN",
        "torch-default": "fp32 as plain torch computes it on a GPU: TF32 in cuDNN, not in matrix products",
        "tf32": "stored as fp32; tensor cores multiply with 10 mantissa bits and add in fp32",
        "bf16-autocast": "fp32 weights; autocast computes convolutions and matrix products in bfloat16",
        "bf16-weights": "weights and floating-point inputs converted to bfloat16; everything is computed in it",
        "fp16-autocast": "fp32 weights; autocast computes in float16; training scales the loss",
        "fp16-weights": "weights and floating-point inputs converted to float16; everything is computed in it",
        AS_BUILT: "what the workload's own code does: its dtypes, its autocast, its settings of torch",
    },
    stage=Stage.DTYPE,
    ranks_anew_compiled=True,  # autocast casts weights and activations anew in each step, by kernels of their own
    offers=offers,
    reference=reference,
    unfit=unfit,
    remark=remark,
    undo=undo,
    requires={
        AS_BUILT: Requirement(check=is_own),
        "torch-default": Requirement(device_kinds=("cuda",), why="elsewhere it is the same as fp32"),
        "tf32": Requirement(
            device_kinds=("cuda",), compute_capability=(8, 0), why="TF32 needs tensor cores of Ampere or newer"
        ),
        "bf16-autocast": Requirement(compute_capability=(8, 0), fast_dtype="bfloat16"),
        "bf16-weights": Requirement(compute_capability=(8, 0), fast_dtype="bfloat16", check=differs_from("bf16")),
        "fp16-autocast": Requirement(fast_dtype="float16", check=_can_be_scaled),
        "fp16-weights": Requirement(
            modes=("inference",),
            fast_dtype="float16",
            check=differs_from("fp16"),
            why="torch's gradient scaler cannot unscale fp16 gradients, and unscaled ones underflow; "
            "use fp16-autocast for training",
        ),
    },
    apply=apply,
    evidence=evidence,
    usage=_usage,
    tolerance={**TOLERANCE, AS_BUILT: own_tolerance},
    claims=("vae-guide", "gpu-guide", "cytodl", "bf16-guide", "mmrec-cpu"),
    source="PyTorch documentation: Automatic Mixed Precision package; CUDA semantics, TensorFloat-32 (TF32)",
)
