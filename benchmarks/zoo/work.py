"""The arithmetic of a step as it runs, below autograd and autocast: FLOPs by dtype, convolutions by layout."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_ATEN = torch.ops.aten
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
_SECOND = {"addmm", "baddbmm", "addmv", "addbmm", "_addmm_activation"}  # whose first argument is only added


class Work(TorchDispatchMode):
    """Counts while it is active. `by_dtype` is of all compute operators, the rest of forward convolutions."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_dtype: Counter[torch.dtype] = Counter()
        self.channels_last = 0  # FLOPs of convolutions that computed in channels-last
        self.with_layout = 0  # FLOPs of those whose layout can be told

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        count = _flops(func, args, kwargs or {}, outputs)
        if count:
            first = 1 if func.overloadpacket.__name__ in _SECOND else 0
            self.by_dtype[_dtype_of(args[first:])] += count
        if func.overloadpacket is _ATEN.convolution:
            self._layout(args, count)
        return outputs

    def share_in(self, dtype: torch.dtype) -> float | None:
        """The share of all FLOPs in `dtype`; None where there are none."""
        total = self.by_dtype.total()
        return self.by_dtype[dtype] / total if total else None

    @property
    def share_channels_last(self) -> float | None:
        """The share of convolution FLOPs in channels-last; None where no convolution has a layout that can be told."""
        return self.channels_last / self.with_layout if self.with_layout else None

    def _layout(self, args: Any, count: int) -> None:
        layouts = [_is_channels_last(tensor) for tensor in args[:2]]
        if layouts == [None, None]:
            return
        self.with_layout += count
        if any(layouts) and not _ignores_layout(args):
            self.channels_last += count


def _dtype_of(args: Iterable[Any]) -> torch.dtype:
    return next(leaf.dtype for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point())


def _is_channels_last(tensor: torch.Tensor) -> bool | None:
    # None: a tensor with one channel or one position is both, one with other strides is neither.
    layout = _FORMATS.get(tensor.dim())
    if layout is None:
        return None
    last, first = tensor.is_contiguous(memory_format=layout), tensor.is_contiguous()
    return None if last == first else last


def _ignores_layout(args: Any) -> bool:
    # What torch itself computes in 3-D, and dilated, is copied to channels-first. Its other own algorithms are not.
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args
    backend = torch._C._select_conv_backend(
        x, weight, bias, list(stride), list(padding), list(dilation), transposed, list(output_padding), groups, None
    )
    return str(backend).rpartition(".")[2] in ("Slow3d", "SlowDilated3d", "SlowTranspose3d", "SlowDilated2d")


def _flops(func: Any, args: Any, kwargs: Any, outputs: Any) -> int:
    packet = func.overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=outputs))
    by_hand = _BY_HAND.get(packet.__name__)
    return by_hand(args, outputs) if by_hand else 0


def _attention(args: Any, outputs: Any) -> int:
    query, key, value = (tensor.shape for tensor in args[:3])
    return int(2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))


def _attention_backward(args: Any, outputs: Any) -> int:
    return _attention(args[1:], outputs) * 5 // 2


def _packed_attention(args: Any, outputs: Any) -> int:
    count, length, width = args[0].shape
    return int(2 * count * length * (4 * width * width + 2 * length * width))


def _encoder_layer(args: Any, outputs: Any) -> int:
    count, length, width = args[0].shape
    hidden = next(
        tensor.shape[0] for tensor in reversed(args) if isinstance(tensor, torch.Tensor) and tensor.dim() == 2
    )
    return _packed_attention(args, outputs) + int(4 * count * length * width * max(hidden, width))


def _recurrent(args: Any, outputs: Any) -> int:
    # mkldnn_rnn_layer(input, weight of inputs, weight of states, ...): both products at each position of each sequence.
    x, weights = args[0], args[1:3]
    return int(sum(2 * math.prod(x.shape[:-1]) * weight.numel() for weight in weights))


def _grouped(args: Any, outputs: Any) -> int:
    # Each row of `[rows, k]` by the matrix of its group, of `[groups, k, n]`. Autocast does not know it.
    x, weights = args[:2]
    return int(2 * x.numel() * weights.shape[-1])


def _vector(args: Any, outputs: Any) -> int:
    matrix = max((leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)), key=torch.Tensor.numel)
    return 2 * matrix.numel()


_BY_HAND: dict[str, Callable[[Any, Any], int]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "_native_multi_head_attention": _packed_attention,
    "_transformer_encoder_layer_fwd": _encoder_layer,
    "_grouped_mm": _grouped,
    "mkldnn_rnn_layer": _recurrent,
    "mkldnn_rnn_layer_backward": lambda args, outputs: 2 * _recurrent(args, outputs),
    "mv": _vector,
    "addmv": _vector,
    "dot": _vector,
    "vdot": _vector,
}
