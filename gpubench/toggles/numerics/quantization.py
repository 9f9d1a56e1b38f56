"""Linear layers in int8, int4 or fp8 by torchao; convolutions and products of two activations stay as they are.

It comes after `precision`, whose dtype is the one that a quantized layer takes and gives.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles import evidence as read
from gpubench.toggles.own_precision import own_dtypes
from gpubench.toggles.printed import run_lines
from gpubench.toggles.toggle import AS_BUILT, Conflict, EvidenceResult, Requirement, Scope, Stage, Toggle
from gpubench.workloads.building import plain_name

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gpubench.measure.trace import Operator, Trace
    from gpubench.toggles.model_context import ModelContext

_OLDEST = (0, 18)  # of torchao: what was tested, and the first whose int8 weights are all of one class
_INSTALL = "pip install 'gpubench-torch[quantization]' (or 'torchao>=0.18')"
_CLASS = "Linear"
_APART = "NonDynamicallyQuantizableLinear"  # torch's name for the output layer of its own attention: torchao leaves it
_TRAINED = "FakeQuantizedLinear"  # what torchao puts in a layer's place for training
# Products of an activation with a weight that is not quantized.
_DENSE = re.compile(
    r"aten::(_?addmm(_activation)?|mm)|mkldnn::_linear_pointwise\w*|mkl::_mkl_linear|triton_tem_\w*_(add)?mm_\w*"
)
_INT8 = "signed char"  # what the profiler calls it
# What reads no weight: it looks at it in another way, or calls what reads it.
_LOOKS = {f"aten::{name}" for name in ("t", "transpose", "as_strided", "view", "detach", "alias", "to", "_to_copy")}


@dataclass(frozen=True)
class _Kind:
    """One way to quantize a linear layer."""

    config: str  # of torchao, as an expression
    imported: str  # what that needs, beside `quantize_`
    sides: tuple[int, int] = (1, 1)  # inputs and outputs of a layer must be multiples of these
    operator: re.Pattern[str] | None = None  # that multiplies by such a weight; None: the same as without
    kernel: re.Pattern[str] | None = None  # on a GPU, where a CUDA graph hides the operators


_INT8_KERNEL = re.compile(r"_int_mm|imma|igemm|gemm_(s8|i8)|i8i8|s8s8|int8", re.I)
_INT4_OPERATOR = re.compile(r"\w+::_weight_int4pack_mm\w*|cpp_\w*int4\w*")

_KINDS = {
    "int8-dynamic": _Kind(
        "Int8DynamicActivationInt8WeightConfig()",
        "from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_",
        (8, 8),  # cuBLAS's int8 products; torchao would compute others on the CPU
        re.compile(r"aten::_int_mm|\w*::qlinear\w*|triton_\w*_int_mm\w*"),
        _INT8_KERNEL,
    ),
    "int8-weight": _Kind("Int8WeightOnlyConfig()", "from torchao.quantization import Int8WeightOnlyConfig, quantize_"),
    "int4-weight": _Kind(
        # Groups of 32 weights fit most layers, and round least.
        'Int4WeightOnlyConfig(group_size=32, int4_packing_format="tile_packed_to_4d")',
        "from torchao.quantization import Int4WeightOnlyConfig, quantize_",
        (32, 1),
        _INT4_OPERATOR,
        re.compile(r"tinygemm|int4", re.I),
    ),
    "fp8": _Kind(
        "Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())",
        "from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_",
        (16, 16),  # torchao leaves out others
        re.compile(r"aten::_scaled_mm\w*|mslk::f8f8\w*|triton_\w*_scaled_mm\w*"),
        re.compile(r"_scaled_mm|e4m3|f8f8|fp8|float8", re.I),
    ),
    "int8-qat": _Kind(
        'QATConfig(activation_config=activations, weight_config=weights, step="prepare")',
        """from torchao.quantization import quantize_
from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig
activations = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
weights = IntxFakeQuantizeConfig(torch.int8, "per_channel", is_symmetric=True)""",
    ),
}
_INT4_ON_CPU = _Kind(
    "PrototypeInt4WeightOnlyConfig(group_size=32)",
    """from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig  # the packing of CPUs
from torchao.quantization import quantize_""",
    (32, 16),
    _INT4_OPERATOR,
)


def _kind(value: Value, device: str) -> _Kind:
    return _INT4_ON_CPU if (value, device) == ("int4-weight", "cpu") else _KINDS[str(value)]


def _lines(value: Value, device: str) -> str:
    kind = _kind(value, device)
    sides = zip(("in_features", "out_features"), kind.sides, strict=True)
    fits = "".join(f" and layer.{side} % {multiple} == 0" for side, multiple in sides if multiple > 1)
    return f"""{kind.imported}

def chosen(layer, name):  # none whose forward or weight is of its own making
    plain = getattr(layer.forward, "__func__", None) is torch.nn.Linear.forward and "weight" in layer._parameters
    return plain and type(layer).__name__ != "{_APART}"{fits}

quantize_(model, {kind.config}, chosen)"""


def usage(value: Value, scope: Scope | None) -> str:
    """The lines that quantize the linear layers of `model`."""
    if value == "none":
        return "# quantization: none"
    lines = _lines(value, scope.device.kind if scope else "cuda")
    if value == "int8-qat":
        lines += '\n# after the training: quantize_(model, QATConfig(step="convert")), then quantize it for inference'
    return lines


def has_linear_layers(scope: Scope) -> str | None:
    """Applies where the model has torch.nn.Linear layers, which torchao quantizes; it leaves convolutions alone."""
    if any(_CLASS in each for each in scope.workload.modules if each != _APART):
        return None
    return f"workload {scope.workload.name} has no torch.nn.Linear layer, and torchao leaves convolutions as they are"


def is_installed(_: Scope) -> str | None:
    """torchao 0.18 or newer is installed."""
    try:
        version = importlib.metadata.version("torchao")
    except importlib.metadata.PackageNotFoundError:
        return f"needs torchao, which is not installed: {_INSTALL}"
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < _OLDEST:
        return f"needs torchao {'.'.join(map(str, _OLDEST))}, this is {version}: {_INSTALL}"
    return None


_NEEDS_BF16 = ("int4-weight", "fp8")


def _in_bf16(scope: Scope, value: Value, others: Mapping[str, Value]) -> str | None:
    """The reason why the weights that the workload has as it is built are none for `value`, or None."""
    if value not in _NEEDS_BF16 or others.get("precision") != AS_BUILT or own_dtypes(scope) == ["bf16"]:
        return None
    return "needs weights in bf16, which the workload's own code does not make; add precision=bf16-weights"


def apply(context: ModelContext, value: Value) -> None:
    """Runs the printed lines, and says how new values get into a weight that is quantized by now."""
    if value == "none":
        return
    lines = _lines(value, context.device.type)
    run_lines(lines, model=context.model)
    for name, layer in _layers(context.model).items():
        if read.is_quantized_weight(layer.weight):
            context.stores[plain_name(f"{name}.weight".lstrip("."))] = _store(layer, lines)


def _store(layer: nn.Linear, lines: str) -> Callable[[torch.Tensor], None]:
    """Puts plain values into the layer's weight, in place: they are quantized as the weight was."""
    import torch
    from torch import nn

    weight = layer.weight

    def put(values: torch.Tensor) -> None:
        with torch.no_grad():
            fresh = nn.Linear(layer.in_features, layer.out_features, False, device=weight.device, dtype=weight.dtype)
            fresh.weight.copy_(values)
            weight.copy_(run_lines(lines, model=nn.Sequential(fresh))["model"][0].weight)

    return put


def _layers(model: nn.Module) -> dict[str, Any]:
    """The linear layers by name: those with torch's own forward, and what torchao has put in their place."""
    from torch import nn

    linear = {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    return {
        name: each
        for name, each in linear.items()
        if type(each).__name__ == _TRAINED
        or (getattr(each.forward, "__func__", None) is nn.Linear.forward and type(each).__name__ != _APART)
    }


def _kind_of(layer: Any) -> str:
    """What class of torchao's a quantized layer has, or its weight; empty of any other layer."""
    if type(layer).__name__ == _TRAINED:
        return _TRAINED
    return type(layer.weight).__name__ if read.is_quantized_weight(layer.weight) else ""


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether most of the linear layers' weights are quantized, and most products with weights of the profiled step."""
    layers = list(_layers(context.model).values())
    chosen = [each for each in layers if _kind_of(each)]
    held = _share_of_weights(layers, chosen)
    words = f"{len(chosen)} of {plural(len(layers), 'linear layer')}, {held:.0%} of their weights, are quantized"
    if kinds := sorted({_kind_of(each) for each in chosen}):
        words += f" ({' and '.join(kinds)})"
    if value == "none":
        return EvidenceResult(True, f"{words} by the model itself" if chosen else words)
    if held < read.MAJORITY:
        return EvidenceResult(False, f"{words} (at least {read.MAJORITY:.0%} required){_misfits(value, context)}")
    trace = read.recorded(context)
    if isinstance(trace, EvidenceResult):
        return trace
    kind = _kind(value, context.device.type)
    if value == "int8-qat":
        return _trained(context, trace, chosen, words)
    if kind.operator is None:
        return _converted(context, trace, chosen, words)
    return _multiplied(context, trace, kind, layers, words)


def _share_of_weights(layers: list[Any], chosen: list[Any]) -> float:
    def size(some: list[Any]) -> int:
        return sum(each.in_features * each.out_features for each in some)

    return size(chosen) / size(layers) if layers else 0.0


def _misfits(value: Value, context: ModelContext) -> str:
    inputs, outputs = _kind(value, context.device.type).sides
    if (inputs, outputs) == (1, 1):
        return ""
    return f"; only layers whose inputs are a multiple of {inputs} and outputs of {outputs} can be"


def _multiplied(context: ModelContext, trace: Trace, kind: _Kind, layers: list[Any], words: str) -> EvidenceResult:
    """By the operators that multiply; by the kernels, where a CUDA graph hides those."""
    pattern, shapes = kind.operator or _DENSE, _shapes(layers)
    products = [each for each in trace.operators if pattern.fullmatch(each.name)]
    dense = [each for each in read.compute_operators(trace) if _DENSE.fullmatch(each.name) and each not in products]
    others = [each for each in dense if not shapes.isdisjoint(each.shapes)]  # not what the model multiplies itself
    if not products and (read.replays_graph(trace) or read.is_blind(context, trace)):
        named = sum(bool(kind.kernel and kind.kernel.search(each.name)) for each in trace.kernels)
        hidden = f"{words}; their products are hidden, and {plural(named, 'GPU kernel')} has the dtype in its name"
        return EvidenceResult(True if named else None, hidden)
    share = read.share([*products, *others], lambda operator: pattern.fullmatch(operator.name) is not None)
    names = " and ".join(sorted({each.name for each in products})) or "an operator of quantized products"
    words += f"; {len(products)} of {len(products) + len(others)} products with their shapes, {share:.0%} of the work"
    words += f", ran in {names} (at least {read.MAJORITY:.0%} required)"
    return EvidenceResult(share >= read.MAJORITY, words)


def _converted(context: ModelContext, trace: Trace, layers: list[Any], words: str) -> EvidenceResult:
    """Weight-only int8 multiplies as before, by a weight that is converted in the step."""
    shapes = _shapes(layers)
    converting = [each for each in trace.operators if _reads_int8(each, shapes)]
    if converting:
        names = " and ".join(sorted({each.name for each in converting}))
        return EvidenceResult(True, f"{words}; {plural(len(converting), 'int8 weight')} went through {names}")
    hidden = context.compiled or read.replays_graph(trace) or read.is_blind(context, trace)
    if not hidden:
        return EvidenceResult(False, f"{words}; no operator of the step read an int8 weight")
    # Compiled code reads them in kernels of its own. There is no other copy of these weights that it could read.
    ran = read.compute_operators(trace) or trace.kernels
    why = "compiled code converts them itself" if context.compiled else "the operators are hidden"
    return EvidenceResult(True if ran and context.compiled else None, f"{words}; {why}, which no operator shows")


def _shapes(layers: list[Any]) -> set[tuple[int, ...]]:
    """Those of the layers' weights, as they are stored and transposed."""
    sides = [(each.out_features, each.in_features) for each in layers]
    return {*sides, *(shape[::-1] for shape in sides)}


def _reads_int8(operator: Operator, shapes: set[tuple[int, ...]]) -> bool:
    arguments = zip(operator.dtypes, operator.shapes, strict=False)
    return operator.name not in _LOOKS and any(dtype == _INT8 and shape in shapes for dtype, shape in arguments)


def _trained(context: ModelContext, trace: Trace, layers: list[Any], words: str) -> EvidenceResult:
    """Fake-quantized layers keep the scale that they have found in the last step, and round."""
    quantizers = [getattr(each, f"{part}_fake_quantizer") for each in layers for part in ("activation", "weight")]
    ran = [each for each in quantizers if each is not None and each.enabled and each.scale is not None]
    words += f"; {len(ran)} of {len(quantizers)} fake quantizers of their weights and activations have found a scale"
    if len(ran) < read.MAJORITY * len(quantizers):
        return EvidenceResult(False, words)
    rounded = [each.name for each in trace.operators].count("aten::round")
    if context.compiled or read.replays_graph(trace) or read.is_blind(context, trace):
        return EvidenceResult(True, f"{words}; compiled code shows no rounding")
    return EvidenceResult(rounded >= len(ran), f"{words}; {plural(rounded, 'call')} of aten::round in the step")


# Relative (L2) error of a whole model's output. Seen on the bundled transformers and samplers of size "small": int8
# weights 0.5 to 2.1 %, int8 products 0.7 to 2.6 %, int4 weights 5 to 18 %, which is too much for some; bf16 alone gives
# 1.6 to 3.2 % there. fp8 (e4m3) has 3 mantissa bits, 4 fewer than bf16 and int8's largest values have.
TOLERANCE: dict[Value, float] = {
    "int8-dynamic": 0.06,
    "int8-weight": 0.06,
    "int4-weight": 0.14,  # beyond it the cosine falls below what any output is allowed
    "fp8": 0.14,
    "int8-qat": 0.03,
}


def _needs(**more: Any) -> Requirement:
    return Requirement(check=is_installed, **more)


QUANTIZATION = Toggle(
    name="quantization",
    summary="Linear layers quantized by torchao; convolutions and attention are left as they are.",
    values={
        "none": "weights and activations as they are",
        "int8-dynamic": "int8 weights by output, activations to int8 by row in each step, int8 products; on a GPU only "
        "of more than 16 rows",
        "int8-weight": "int8 weights by output, converted back for each product: less memory, the same arithmetic",
        "int4-weight": "int4 weights in groups of 32, multiplied by bf16 activations",
        "fp8": "fp8 (e4m3) weights by output, activations to fp8 by row in each step, fp8 products",
        "int8-qat": "training with weights and activations rounded to int8, and gradients as if they were not",
    },
    stage=Stage.DTYPE,
    after=("keep_fp32", "precision"),
    applies=has_linear_layers,
    requires={
        "int8-dynamic": _needs(modes=("inference",), compute_capability=(7, 5), why="Turing has the first int8 cores"),
        "int8-weight": _needs(modes=("inference",)),
        "int4-weight": _needs(modes=("inference",), compute_capability=(8, 0)),
        "fp8": _needs(
            modes=("inference",),
            device_kinds=("cuda",),
            compute_capability=(8, 9),
            why="fp8 products need tensor cores of Ada, Hopper or newer",
        ),
        "int8-qat": _needs(modes=("training",)),
    },
    prerequisites={value: {"precision": ("bf16-weights", AS_BUILT)} for value in _NEEDS_BF16},
    conflicts=(
        Conflict(
            value="int8-dynamic",
            other="precision",
            other_values=("bf16-autocast", "fp16-autocast"),
            reason="a quantized layer takes and gives what arrives, which autocast does not cast",
        ),
    ),
    check=_in_bf16,
    picks_by_time=("int8-dynamic", "int8-weight", "int4-weight", "fp8"),  # torchao lets inductor tune each kernel
    apply=apply,
    evidence=evidence,
    usage=usage,
    tolerance=TOLERANCE,
    claims=("cytodl", "mmrec-cpu"),
    source="torchao documentation: Quantized Inference; Quantization-Aware Training (QAT)",
)
