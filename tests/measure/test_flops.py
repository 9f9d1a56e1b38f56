"""The operations of an operator, against those that torch's own formulas give for the same call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gpubench.measure.flops import flops
from gpubench.measure.trace import trace_step
from gpubench.toggles.evidence import compute_operators

IMAGE, VOLUME, QUERY = torch.randn(2, 6, 9, 8), torch.randn(1, 4, 5, 6, 7), torch.randn(2, 3, 8, 4)


def convolution(image: Tensor, *shape: int, transposed: bool = False, **how: Any) -> Callable[[], Tensor]:
    weight = torch.randn(*shape, requires_grad=True)
    dimensions = image.dim() - 2
    name = f"conv{'_transpose' if transposed else ''}{dimensions}d"
    return lambda: getattr(F, name)(image, weight, **how)


CASES = {
    "mm": lambda: torch.mm(torch.ones(3, 4, requires_grad=True), torch.ones(4, 5)),
    "linear": lambda: F.linear(torch.ones(2, 7, 4), torch.ones(5, 4, requires_grad=True), torch.ones(5)),
    "bmm": lambda: torch.bmm(torch.ones(6, 3, 4, requires_grad=True), torch.ones(6, 4, 5)),
    "baddbmm": lambda: torch.baddbmm(torch.ones(6, 3, 5), torch.ones(6, 3, 4, requires_grad=True), torch.ones(6, 4, 5)),
    "einsum": lambda: torch.einsum("bij,bjk->bik", torch.ones(2, 3, 4, requires_grad=True), torch.ones(2, 4, 5)),
    "conv1d": convolution(torch.randn(2, 6, 20), 4, 6, 5, padding=2, stride=3),
    "conv2d": convolution(IMAGE, 4, 6, 3, 2, padding=(1, 2), stride=(2, 1), dilation=(2, 1)),
    "same": convolution(IMAGE, 4, 6, 3, 3, padding="same"),
    "grouped": convolution(IMAGE, 6, 2, 3, 3, groups=3),
    "depthwise": convolution(IMAGE, 6, 1, 3, 3, groups=6),
    "transposed": convolution(IMAGE, 6, 4, 3, 3, transposed=True, stride=2, padding=1, output_padding=1),
    "transposed grouped": convolution(IMAGE, 6, 2, 3, 3, transposed=True, stride=2, groups=3),
    "conv3d": convolution(VOLUME, 3, 4, 3, 3, 3, padding=1),
}
GROUPED = ("grouped", "depthwise", "transposed grouped")


@pytest.mark.parametrize("name", CASES)
def test_operations_are_counted_as_torch_counts_them(name: str) -> None:
    def step() -> None:
        result = CASES[name]().sum()
        if name not in GROUPED:  # of whose weights' gradients torch counts those between groups, which are not computed
            result.backward()

    with FlopCounterMode(display=False) as counter:
        step()
    traced = compute_operators(trace_step(step, cuda=False))
    assert sum(each.flops or 0 for each in traced) == counter.get_total_flops() > 0


def test_backward_of_groups_costs_as_much_as_forward_for_each_gradient() -> None:
    image = IMAGE.clone().requires_grad_()
    grouped = convolution(image, 6, 2, 3, 3, groups=3)
    (forward, backward) = compute_operators(trace_step(lambda: grouped().sum().backward(), cuda=False))
    assert backward.flops == 2 * (forward.flops or 0) > 0


def test_fused_attention_is_counted_as_the_products_that_it_fuses() -> None:
    query, key, value = (torch.randn(2, 3, length, 4, requires_grad=True) for length in (8, 16, 16))

    def step() -> None:
        F.scaled_dot_product_attention(query, key, value).sum().backward()

    forward = 2 * 2 * (2 * 3 * 8 * 16 * 4)
    (first, second) = compute_operators(trace_step(step, cuda=False))
    assert (first.flops, second.flops) == (forward, forward * 5 // 2)


def test_recurrent_layers_are_counted_at_each_position() -> None:
    layer, sequence = nn.LSTM(6, 5, num_layers=2, batch_first=True), torch.randn(3, 7, 6)
    with torch.no_grad():
        traced = compute_operators(trace_step(lambda: layer(sequence), cuda=False))
    weights = sum(weight.numel() for name, weight in layer.named_parameters() if "weight" in name)
    assert sum(each.flops or 0 for each in traced) == 2 * 3 * 7 * weights
    stack = [list(weight.shape) for weight in layer.parameters()]
    assert flops("aten::_cudnn_rnn", [[3, 7, 6], stack]) == 2 * 3 * 7 * weights


@pytest.mark.parametrize(
    ("name", "shapes", "numbers"),
    [
        ("mkldnn::_convolution_pointwise", [[2, 6, 9, 8], [4, 6, 3, 3], [4]], ["", "", "", "[1, 1]", "[2, 2]", "[1]"]),
        (
            "mkldnn::_convolution_pointwise",  # fused with an addition
            [[2, 6, 9, 8], [2, 4, 5, 4], [4, 6, 3, 3], [4]],
            ["", "", "", "", "[1, 1]", "[2, 2]", "[1, 1]"],
        ),
        (
            "mkldnn::_convolution_pointwise_",
            [[2, 4, 5, 4], [2, 6, 9, 8], [4, 6, 3, 3], [4]],
            ["", "", "", "", "[1, 1]", "[2, 2]", "[1, 1]"],
        ),
    ],
)
def test_what_inductor_fuses_is_counted_like_the_plain_operator(name: str, shapes: Any, numbers: Any) -> None:
    plain = flops(
        "aten::convolution", [[2, 6, 9, 8], [4, 6, 3, 3]], ["", "", "", "[2, 2]", "[1, 1]", "[1, 1]", "False"]
    )
    assert flops(name, shapes, numbers) == plain == 2 * 2 * (5 * 4) * (4 * 6 * 9)
    assert flops("mkldnn::_linear_pointwise", [[3, 7, 6], [5, 6], [5]]) == 2 * 3 * 7 * 6 * 5
    assert flops("mkldnn::_linear_pointwise", [[3, 7, 6], [3, 7, 5], [5, 6], [5]]) == 2 * 3 * 7 * 6 * 5


def test_what_cannot_be_counted_is_unknown_and_not_zero() -> None:
    assert flops("aten::add", [[2], [2]]) is None
    assert flops("aten::mm", []) is None
    assert flops("aten::convolution", [[2, 6, 9, 8], [4, 6, 3, 3]], []) is None


def test_each_row_of_a_product_by_groups_counts_once() -> None:
    """On a CPU it calls a product for each group; on a GPU it is one kernel."""
    rows, weights, ends = torch.ones(8, 16), torch.ones(2, 16, 8), torch.tensor([3, 8], dtype=torch.int32)
    trace = trace_step(lambda: torch._grouped_mm(rows, weights, offs=ends), cuda=False)
    (operator,) = compute_operators(trace)
    assert (operator.name, operator.flops) == ("aten::_grouped_mm", 2 * 8 * 16 * 8)
