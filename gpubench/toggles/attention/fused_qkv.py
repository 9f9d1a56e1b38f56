"""Separate query, key and value layers joined into one matrix product.

The layers stay where they are, with their parameters and names, so that optimizers, checkpoints and the check of the
outputs find them. Whichever is called first multiplies for all; the others take their part, if their input is the
very same tensor.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles import evidence as read
from gpubench.toggles.eager_pass import run_eagerly
from gpubench.toggles.printed import run_lines
from gpubench.toggles.toggle import EvidenceResult, Scope, Stage, Toggle
from gpubench.workloads.building import plain_name
from gpubench.workloads.projections import projections

if TYPE_CHECKING:
    from gpubench.measure.trace import Trace
    from gpubench.toggles.model_context import ModelContext

_NAMES = "fused_qkv.names"  # note: what the lines define
_PRODUCT = re.compile(
    r"aten::(_?addmm(_activation)?|mm|bmm|baddbmm)|mkldnn::_linear_pointwise\w*|mkl::_mkl_linear|triton_tem_\w+"
)

_CODE = """class Joined:
    # Layers that have one input, multiplied by it at once.
    def __init__(self, layers):
        self.layers, self.x, self.parts = layers, None, {}
        for name in ("weight", "bias"):
            once = not layers[0].training and getattr(layers[0], name) is not None
            layers[0].register_buffer(f"joined_{name}", self.in_one(name) if once else None, persistent=False)
        for index, layer in enumerate(layers):
            layer.__class__, layer.joined, layer.index = JoinedLayer, self, index

    def in_one(self, name):
        # The parameters become parts of one tensor, which then has whatever is written to them.
        with torch.no_grad():
            whole = torch.cat([getattr(layer, name) for layer in self.layers])
        for layer, part in zip(self.layers, whole.split([layer.out_features for layer in self.layers])):
            getattr(layer, name).data = part
        return whole

    def multiply(self, x):
        first = self.layers[0]
        weight, bias = first.joined_weight, first.joined_bias
        if weight is None or torch.is_grad_enabled():  # anew, so that gradients reach the parameters
            weight = torch.cat([layer.weight for layer in self.layers])
            bias = None if first.bias is None else torch.cat([layer.bias for layer in self.layers])
        whole, start = torch.nn.functional.linear(x, weight, bias), 0
        self.x, self.parts = x, {}
        for index, layer in enumerate(self.layers):
            self.parts[index] = whole.narrow(-1, start, layer.out_features)
            start += layer.out_features


class JoinedLayer(torch.nn.Linear):
    def forward(self, input):
        joined = self.joined
        if joined.x is not input or self.index not in joined.parts:
            joined.multiply(input)
        part = joined.parts.pop(self.index)
        if not joined.parts:
            joined.x = None
        return part
"""


def has_projections(scope: Scope) -> str | None:
    """Applies where an attention has separate query, key or value layers with one input."""
    if scope.workload.projections:
        return None
    return f"workload {scope.workload.name} has no separate query, key and value layers that have one input"


def _lines(groups: Iterable[Sequence[str]]) -> str:
    named = "".join(f"    {tuple(names)!r},\n" for names in groups)
    named = named or '    # ("layers.0.attention.to_q", "layers.0.attention.to_k", "layers.0.attention.to_v"),\n'
    return f"""{_CODE}

# once the model is on its device, in its dtype, and in model.eval() or model.train()
groups = (
{named})
joined = [Joined([model.get_submodule(name) for name in names]) for names in groups]"""


def apply(context: ModelContext, value: Value) -> None:
    """Joins the layers of each group that are plain linear layers still."""
    if value == "on":
        known = context.facts.projections if context.facts else projections(context.model)
        lines = _lines(_joinable(context, known))
        context.notes[_NAMES] = run_lines(lines, model=context.model)


def _joinable(context: ModelContext, groups: Iterable[Sequence[str]]) -> list[list[str]]:
    """The groups, by the names that their layers have in the model, whose layers and parameters are no other's."""
    from torch import nn

    names = {plain_name(name): name for name, _ in context.model.named_modules()}
    uses = Counter(map(id, (each for module in context.model.modules() for each in module._parameters.values())))
    found = []
    for group in groups:
        actual = [names[name] for name in group if name in names]
        layers = [context.model.get_submodule(name) for name in actual]
        plain = [
            layer
            for layer in layers
            if type(layer) is nn.Linear
            and type(layer.weight) is nn.Parameter
            and "forward" not in vars(layer)
            and all(uses[id(each)] == 1 for each in layer.parameters())
        ]
        if len(plain) == len(group) and len({(each.weight.dtype, each.training) for each in plain}) == 1:
            found.append(actual)
    return found


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the products of the joined width ran in the profiled step, and, in one more pass, for all their layers.

    Compiled code may have products that do not show their shapes, and graphs hide them; the pass then speaks for them.
    """
    trace = read.recorded(context)
    if isinstance(trace, EvidenceResult):
        return trace
    products = sum(bool(_PRODUCT.fullmatch(operator.name)) for operator in read.compute_operators(trace))
    words = f"{plural(products, 'matrix product')} ran in the step"
    if value == "off":
        return EvidenceResult(True, words)
    groups = context.notes.get(_NAMES, {}).get("joined")
    if not groups:
        return EvidenceResult(False, f"{words}; no layers are joined")
    multiplied, called, problem = _count(context)
    if problem:
        return EvidenceResult(None, f"{words}; {problem}")
    joined = [each for each in groups if 0 < multiplied[id(each)] * len(each.layers) == called[id(each)]]
    ran, expected = _of_joined_width(trace, groups), multiplied.total()
    words += f", {ran} of the width of joined layers; in one more pass {expected} joined {len(joined)} of "
    words += f"{plural(len(groups), 'group')} of layers"
    if len(joined) < len(groups):
        words += ", and the others were called with different inputs, so that each is computed for itself"
    hidden = context.compiled or read.replays_graph(trace) or read.is_blind(context, trace)
    return EvidenceResult(len(joined) >= read.MAJORITY * len(groups) and (hidden or ran >= expected), words)


def _of_joined_width(trace: Trace, groups: Iterable[Any]) -> int:
    shapes = set()
    for group in groups:
        inside, outside = group.layers[0].in_features, sum(layer.out_features for layer in group.layers)
        shapes |= {(inside, outside), (outside, inside)}
    return sum(any(shape[-2:] in shapes for shape in each.shapes) for each in read.compute_operators(trace))


def _count(context: ModelContext) -> tuple[Counter[int], Counter[int], str]:
    """By the group's identity its products and the calls of its layers in one more pass, and why there was none."""
    names = context.notes[_NAMES]
    multiply, forward = names["Joined"].multiply, names["JoinedLayer"].forward
    multiplied: Counter[int] = Counter()
    called: Counter[int] = Counter()

    def multiplying(group: Any, x: Any) -> None:
        multiplied[id(group)] += 1
        multiply(group, x)

    def calling(layer: Any, *arguments: Any, **named: Any) -> Any:
        called[id(layer.joined)] += 1
        return forward(layer, *arguments, **named)

    with (
        mock.patch.object(names["Joined"], "multiply", multiplying),
        mock.patch.object(names["JoinedLayer"], "forward", calling),
    ):
        problem = run_eagerly(context)
    return multiplied, called, problem


FUSED_QKV = Toggle(
    name="fused_qkv",
    summary="Separate query, key and value layers of an attention joined into one matrix product.",
    values={
        "off": "one product for each layer",
        "on": "one for all that have the same input: query, key and value, or key and value of a cross-attention",
    },
    stage=Stage.LAYOUT,  # once the parameters are where and what they stay, and before optimizers take them
    applies=has_projections,
    apply=apply,
    evidence=evidence,
    usage=lambda value, scope: (
        _lines(scope.workload.projections if scope else ()) if value == "on" else "# fused_qkv: off"
    ),
    claims=("mmrec-cpu",),
    source="Hugging Face Diffusers documentation: Accelerate inference, fuse_qkv_projections",
)
