"""The `Workload` type: a model, its inputs and its loss. gpubench adds device, dtype, step and optimizer.

A user's file defines one, or a function that returns one:

    def my_model(size: str = "base") -> Workload:
        return Workload(name="my-model", item="image", batch_size=8, build=MyModel, inputs=images, loss=loss)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpubench.errors import GpubenchError
from gpubench.measure.order import HOW
from gpubench.text import encodable
from gpubench.workloads.optimizing import Optimizer, check

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gpubench.toggles.toggle import Toggle

Batch = Any  # a nest of tensors: a tuple, mostly
Options = Mapping[str, Any]  # name -> a number or a word


def call_model(model: nn.Module, batch: Batch, options: Options) -> Any:
    """The model's output for a whole batch; the default `infer`.

    A tuple or list is its arguments, a mapping its keyword arguments, anything else its only argument.
    """
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) and not hasattr(batch, "_fields") else model(batch)


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a workload's inference can be cut into tiles. Sizes are in pixels of the full-resolution side."""

    sizes: tuple[int, ...]  # offered by default; multiples of `multiple`
    multiple: int  # tile sizes and overlaps must be multiples of this
    overlap: int  # the default


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model with its inputs and one step.

    build:   returns the model on the CPU; called as `build()`, or `build(options)` where it has a parameter of that
             name. It is called under a fixed seed. Its own dtype, autocast, torch.compile and the modes of its parts
             are kept: they are the baseline.
    inputs:  (batch_size, generator) -> CPU tensors in a tuple, mapping, dataclass or a nest of them, the first
             dimension of each being the batch. Tensors of different sizes stand in a list as long as the batch. None,
             numbers and text may stand beside them. Draw from `generator`: random normals, never zeros, which use less
             power and run faster.
    dataset: () -> a map-style dataset of single items on the CPU, in place of `inputs`. A batch is so many items one
             after the other, as torch's DataLoader collates them; an item must be the same whenever it is read.
    infer:   (model, batch, options) -> tensor, or a nest of tuples, lists, mappings, dataclasses and objects of
             tensors, arrays and numbers. `options` holds the value of each of `toggles`, and `tile_size` (0: whole)
             and `tile_overlap` where `tiling` is given.
    loss:    (model, batch) -> scalar tensor, or (model, batch, options); None: inference only.
    train_step: (model, batch, optimizers) -> scalar tensor, or (model, batch, optimizers, options): a whole training
             step, where one loss does not make it. It zeroes the gradients, calls `backward` and takes the steps of
             `optimizers`, which have their names.
    optimizers: by name; without any, AdamW updates all parameters. With `loss` each takes one step after `backward`.
    toggles: optimizations of this workload alone, which are measured like all others. The value that is measured is in
             `options` under the toggle's name; a toggle may also have an `apply`.
    compile_targets: dotted names of the submodules to compile separately; "" is the whole model.
             Name submodules if `infer` or `loss` calls them instead of the model itself.
    stages:  dotted names of submodules that do one after another what the step does (text encoder, denoiser, decoder).
             Time and memory of each are told, and each is compiled by itself unless `compile_targets` says otherwise.
    compare: how outputs are compared with plain fp32's: "values" in their order; "set": rows in any order (detections);
             "rank": the order they are in (ids sorted by score, or scores that sort something). One word for all, or
             a mapping from an output's name or a part of it to the word: {"boxes": "set"} fits `output.0.boxes`.
    """

    name: str
    item: str  # what one element of the batch is: "image", "patch", "token"
    batch_size: int
    build: Callable[..., nn.Module]
    inputs: Callable[[int, torch.Generator], Batch] | None = None
    dataset: Callable[[], Any] | None = None
    infer: Callable[[nn.Module, Batch, Options], Any] | None = call_model  # None: training only
    loss: Callable[..., torch.Tensor] | None = None
    train_step: Callable[..., torch.Tensor] | None = None
    optimizers: Mapping[str, Optimizer] = field(default_factory=dict)
    toggles: tuple[Toggle, ...] = ()
    compile_targets: tuple[str, ...] = ("",)
    stages: tuple[str, ...] = ()
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
        if self.infer is None and self.loss is None and self.train_step is None:
            raise GpubenchError(
                f"Workload {self.name!r} has neither infer nor loss.", "Give at least one of them, or a train_step."
            )
        if self.loss is not None and self.train_step is not None:
            raise GpubenchError(
                f"Workload {self.name!r} has a loss and a train_step.", "Leave the loss out: the train_step returns it."
            )
        if (self.inputs is None) == (self.dataset is None):
            which = "neither inputs nor" if self.inputs is None else "both inputs and"
            raise GpubenchError(f"Workload {self.name!r} has {which} a dataset.", "Give one of them.")
        for what, given in (
            ("toggles", self.toggles), ("stages", self.stages), ("compile_targets", self.compile_targets)
        ):  # fmt: skip
            if not isinstance(given, tuple | list):
                raise GpubenchError(
                    f"The {what} of workload {self.name!r} are no tuple.", "Write (x,) for a single one."
                )
        check(self.optimizers, self.name)
        clipped = [name for name, each in self.optimizers.items() if each.clip is not None]
        if self.train_step is not None and clipped:
            raise GpubenchError(
                f"Workload {self.name!r} has a train_step and an optimizer with clip.",
                "Call torch.nn.utils.clip_grad_norm_ in the train_step.",
            )
        if self.stages and self.compile_targets == ("",):
            object.__setattr__(self, "compile_targets", self.stages)
        for how in (self.compare,) if isinstance(self.compare, str) else self.compare.values():
            if how not in HOW:
                raise GpubenchError(
                    f"Workload {self.name!r} compares outputs by {how!r}.", f"compare takes {', '.join(HOW)}."
                )

    @property
    def modes(self) -> tuple[str, ...]:
        """The supported modes: inference, training or both."""
        trains = self.loss or self.train_step
        return tuple(mode for mode, part in (("inference", self.infer), ("training", trains)) if part is not None)
