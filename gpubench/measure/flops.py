"""Floating-point operations of one operator, from the shapes and numbers it was called with.

Two for each multiplication with its addition, as everywhere. Only operators that multiply matrices are counted: what
the others do is small beside them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

Shapes = Sequence[Any]  # of each argument: [2, 3]; of a list of tensors [[2, 3], [4]]; [] of what is no tensor
Numbers = Sequence[str]  # of each argument that is no tensor, as text: "[1, 1]", "False"; empty of tensors
Count = Callable[[Shapes, Numbers], int]


def flops(name: str, shapes: Shapes, numbers: Numbers = ()) -> int | None:
    """The operations of one call of the operator `name`; None where it is not known how to count them."""
    count = next((count for pattern, count in _COUNTS if re.fullmatch(pattern, name)), None)
    if count is None:
        return None
    try:
        return count(shapes, numbers)
    except (IndexError, ValueError, TypeError):  # an argument that was not recorded, or is another one in this torch
        return None


def _product(first: int) -> Count:
    """`[..., m, k] @ [..., k, n]`, the arguments `first` and the next."""
    return lambda shapes, _: 2 * math.prod(shapes[first]) * shapes[first + 1][-1]


def _vector(matrix: int) -> Count:
    """A matrix, that argument, by a vector."""
    return lambda shapes, _: 2 * math.prod(shapes[matrix])


def _integers(text: str, count: int) -> list[int]:
    """`count` whole numbers: "[1, 2]"; one alone stands for all."""
    found = [int(each) for each in re.findall(r"-?\d+", text)]
    return found * count if len(found) == 1 else found


def _correlation(image: Any, weight: Any, numbers: Numbers, stride: int, padding: int, dilation: int) -> int:
    """An image `[B, C, *S]` by a weight `[O, C / groups, *K]`: the whole weight at each position of its kernel.

    `stride`, `padding` and `dilation`: the arguments that hold them.
    """
    batch, _, *sides = image
    kernel = weight[-len(sides) :]  # oneDNN's packed weights may have the groups as a dimension of their own
    settings = (_integers(numbers[index], len(sides)) for index in (stride, padding, dilation))
    positions = [
        (side + 2 * pad - gap * (width - 1) - 1) // step + 1
        for side, width, step, pad, gap in zip(sides, kernel, *settings, strict=True)
    ]
    return 2 * int(batch * math.prod(positions) * math.prod(weight))


def _transposed(image: Any, weight: Any) -> int:
    """An image `[B, C, *S]` by a weight `[C, O / groups, *K]`: the whole weight at each position of the image."""
    batch, _, *sides = image
    return 2 * int(batch * math.prod(sides) * math.prod(weight))


def _convolution(shapes: Shapes, numbers: Numbers) -> int:
    if numbers[6] == "True":
        return _transposed(shapes[0], shapes[1])
    return _correlation(shapes[0], shapes[1], numbers, 3, 4, 5)


def _convolution_backward(shapes: Shapes, numbers: Numbers) -> int:
    gradient, image, weight = shapes[:3]
    outer = image if numbers[7] == "True" else gradient  # as many positions as the forward pass had
    asked = numbers[10].split(",")[:2]  # the gradients of image and weight: "[True, True, False]"
    return _transposed(outer, weight) * sum("True" in each for each in asked)


def _pointwise(shapes: Shapes, numbers: Numbers, image: int = 0) -> int:
    # (image, weight, bias, padding, stride, dilation, ...); fused with an addition, one more tensor before the weight.
    padding = next(index for index, text in enumerate(numbers) if text.startswith("["))
    return _correlation(shapes[image], shapes[padding - 2], numbers, padding + 1, padding, padding + 2)


def _attention(query: int, *, backward: bool = False) -> Count:
    """`[B, H, L, E]`, `[B, H, S, E]`, `[B, H, S, V]`, the argument `query` and the next two.

    Forward two products; backward two for each of them, and the first one once more.
    """

    def count(shapes: Shapes, _: Numbers) -> int:
        (batch, heads, length, width), keys, values = shapes[query : query + 3]
        widths = 3 * width + 2 * values[3] if backward else width + values[3]
        return 2 * int(batch * heads * length * keys[2] * widths)

    return count


def _recurrent(shapes: Shapes, _: Numbers) -> int:
    """One layer over `[T, B, I]`, with the weights of the input and of the state."""
    return 2 * int(math.prod(shapes[0][:-1]) * (math.prod(shapes[1]) + math.prod(shapes[2])))


def _recurrent_stack(shapes: Shapes, _: Numbers) -> int:
    """All layers at once: each matrix of the list of weights, at each position of the sequence."""
    return 2 * int(math.prod(shapes[0][:-1]) * sum(math.prod(each) for each in shapes[1] if len(each) == 2))


def _linear(shapes: Shapes, _: Numbers) -> int:
    # (input, weight, bias, ...); fused with an addition, another input before the weight.
    weight = shapes[2] if len(shapes[2]) == 2 else shapes[1]
    return 2 * math.prod(shapes[0]) * int(weight[0])


def _packed(scales: int) -> Count:
    """An activation by a weight that is packed; the argument `scales` has one or more for each of its outputs."""

    def count(shapes: Shapes, _: Numbers) -> int:
        outputs = shapes[scales][1] if len(shapes[scales]) > 1 else shapes[scales][0]
        return 2 * math.prod(shapes[0]) * int(outputs)

    return count


def _twice(count: Count) -> Count:
    return lambda shapes, numbers: 2 * count(shapes, numbers)


_COUNTS: tuple[tuple[str, Count], ...] = (
    (r"aten::(mm|bmm|_int_mm|_scaled_mm|_(scaled_)?grouped_mm\w*)", _product(0)),
    (r"aten::_weight_int4pack_mm\w*", _packed(3)),  # (input, weight, group size, scales and zeros [groups, outputs, 2])
    (r"aten::_weight_int8pack_mm", _packed(2)),  # (input, weight, scales [outputs])
    (r"aten::(_?addmm(_activation)?|baddbmm|addbmm)", _product(1)),
    (r"aten::mv", _vector(0)),
    (r"aten::addmv", _vector(1)),
    (r"aten::_?convolution", _convolution),
    (r"aten::convolution_backward", _convolution_backward),
    (r"mkldnn::_convolution_pointwise", _pointwise),
    (r"mkldnn::_convolution_pointwise_", lambda shapes, numbers: _pointwise(shapes, numbers, image=1)),
    (r"mkldnn::_convolution_transpose_pointwise", lambda shapes, _: _transposed(shapes[0], shapes[1])),
    (r"mkldnn::_linear_pointwise", _linear),
    (r"mkl::_mkl_linear", _linear),
    (r"aten::_scaled_dot_product_(flash|efficient|cudnn|fused)\w*_backward", _attention(1, backward=True)),
    (r"aten::_scaled_dot_product_(flash|efficient|cudnn|fused)\w*", _attention(0)),
    (r"aten::mkldnn_rnn_layer", _recurrent),
    (r"aten::mkldnn_rnn_layer_backward", _twice(_recurrent)),
    (r"aten::_cudnn_rnn", _recurrent_stack),
    (r"aten::_cudnn_rnn_backward", _twice(_recurrent_stack)),
)
