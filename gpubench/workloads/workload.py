"""The `Workload` type: a model, its inputs and its loss. gpubench adds device, dtype, step and optimizer.

A user's file defines one, or a function that returns one:

    def my_model(size: str = "base") -> Workload:
        return Workload(name="my-model", item="image", batch_size=8, build=MyModel, inputs=images, loss=loss)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpubench.errors import GpubenchError
from gpubench.measure.order import HOW
from gpubench.text import encodable

if TYPE_CHECKING:
    import torch
    from torch import nn

Batch = tuple[Any, ...]  # of tensors
Options = Mapping[str, int]


def call_model(model: nn.Module, batch: Batch, options: Options) -> Any:
    """The model's output for a whole batch; the default `infer`."""
    return model(*batch)


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a workload's inference can be cut into tiles. Sizes are in pixels of the full-resolution side."""

    sizes: tuple[int, ...]  # offered by default; multiples of `multiple`
    multiple: int  # tile sizes and overlaps must be multiples of this
    overlap: int  # the default


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model with its inputs and one step.

    build:   returns the model on the CPU. It is called under a fixed seed. Its own dtype, autocast, torch.compile and
             the modes of its parts are kept: they are the baseline.
    inputs:  (batch_size, generator) -> tuple of CPU tensors, the first dimension of each being the batch.
             Draw from `generator`: random normals, never zeros, which use less power and run faster.
    infer:   (model, batch, options) -> tensor, or a nest of tuples, lists, mappings, dataclasses and objects of
             tensors, arrays and numbers. `options` holds `tile_size` (0: whole) and `tile_overlap` where `tiling` is
             given.
    loss:    (model, batch) -> scalar tensor; None: inference only.
    compile_targets: dotted names of the submodules to compile separately; "" is the whole model.
             Name submodules if `infer` or `loss` calls them instead of the model itself.
    compare: how outputs are compared with plain fp32's: "values" in their order; "set": rows in any order (detections);
             "rank": the order they are in (ids sorted by score, or scores that sort something). One word for all, or
             a mapping from an output's name or a part of it to the word: {"boxes": "set"} fits `output.0.boxes`.
    """

    name: str
    item: str  # what one element of the batch is: "image", "patch", "token"
    batch_size: int
    build: Callable[[], nn.Module]
    inputs: Callable[[int, torch.Generator], Batch]
    infer: Callable[[nn.Module, Batch, Options], Any] | None = call_model  # None: training only
    loss: Callable[[nn.Module, Batch], torch.Tensor] | None = None
    compile_targets: tuple[str, ...] = ("",)
    tiling: Tiling | None = None
    resolution: int | None = None
    items_per_sample: int = 1  # items in one element of the batch (tokens of a sequence)
    compare: str | Mapping[str, str] = "values"

    def __post_init__(self) -> None:
        for what, text in (("name", self.name), ("item", self.item)):
            if not isinstance(text, str) or not text.strip() or text != encodable(text):
                raise GpubenchError(f"The {what} of a Workload is {text!r}.", "Give a text, such as 'image'.")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise GpubenchError(
                f"Workload {self.name!r} has batch_size {self.batch_size}.", "Give a whole number of at least 1."
            )
        if self.infer is None and self.loss is None:
            raise GpubenchError(f"Workload {self.name!r} has neither infer nor loss.", "Give at least one of them.")

        for how in (self.compare,) if isinstance(self.compare, str) else self.compare.values():
            if how not in HOW:
                raise GpubenchError(
                    f"Workload {self.name!r} compares outputs by {how!r}.", f"compare takes {', '.join(HOW)}."
                )

    @property
    def modes(self) -> tuple[str, ...]:
        """The supported modes: inference, training or both."""
        return tuple(mode for mode, part in (("inference", self.infer), ("training", self.loss)) if part is not None)
