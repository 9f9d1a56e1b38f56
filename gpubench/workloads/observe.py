"""One plain step of a workload, watched: the operators that run, the modules it calls, what it returns. Needs torch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

from gpubench.text import kind_and_message
from gpubench.workloads.batch import make, map_tensors
from gpubench.workloads.building import build_model, own_options, plain_name, set_mode, with_options
from gpubench.workloads.loader import Loaded
from gpubench.workloads.optimizing import make_optimizers
from gpubench.workloads.projections import Fed, projections
from gpubench.workloads.workload_facts import Mode

if TYPE_CHECKING:
    import torch
    from torch import nn

# Operators that do the arithmetic, as far as their names tell.
_COMPUTE = re.compile(
    r"convolution|attention|rnn|lstm|gru|linear|(^|[._])(add|badd|addb)?(mm|bmm|mv)($|_)|einsum|baddbmm"
)
_SHORT = {"float32": "fp32", "float64": "fp64", "bfloat16": "bf16", "float16": "fp16"}
SMALL_BATCH = 2  # what is watched does not depend on the batch; one alone would stop batch normalization


@dataclass(frozen=True)
class Call:
    """One call of an ATen operator. The lists run over its tensor arguments."""

    name: str  # "aten.convolution"
    dtypes: tuple[torch.dtype, ...]
    shapes: tuple[tuple[int, ...], ...]


@dataclass
class Observed:
    """What one step did; `device` is None and `problem` says why where it could not be run."""

    device: str | None = None  # "meta": without memory and arithmetic; "cpu" where the code reads values
    problem: str = ""
    calls: list[Call] = field(default_factory=list)
    called: tuple[str, ...] = ()  # dotted names of the modules that the step itself calls; "" is the whole model
    attends: bool = False  # it calls torch's own function for attention, of which not every device shows an operator
    projections: tuple[tuple[str, ...], ...] = ()  # separate query, key and value layers that had one input, by name
    unconvolved: tuple[str, ...] = ()  # parameters and buffers of 4 or 5 dimensions that no convolution used
    autocast: tuple[str, ...] = ()  # dtypes of autocast contexts that the workload's own code entered: "bfloat16"
    compiled: bool = False  # it calls what torch.compile has made; that was watched as it is without
    output: Any = None  # of inference; the loss of training

    def convolution_dimensions(self) -> list[int]:
        """Spatial dimensions of the convolutions that ran: [2], [2, 3], []."""
        return sorted(
            {len(call.shapes[1]) - 2 for call in self.calls if "convolution" in call.name and call.shapes[1:]}
        )

    def dtypes(self) -> list[str]:
        """What its convolutions, matrix products and attention computed in, or all operators where there are none."""
        computing = [call for call in self.calls if _COMPUTE.search(call.name)]
        floating = ((dtype for dtype in call.dtypes if dtype.is_floating_point) for call in computing or self.calls)
        return sorted({short(dtype) for dtypes in floating for dtype in itertools.islice(dtypes, 1)})

    def attention(self) -> bool:
        """Whether torch's function or an operator for attention ran."""
        return self.attends or any("attention" in call.name for call in self.calls)


def short(dtype: torch.dtype | str) -> str:
    """`bf16` for torch.bfloat16 and "bfloat16"."""
    name = str(dtype).removeprefix("torch.")
    return _SHORT.get(name, name)


def observe(loaded: Loaded, mode: Mode, model: nn.Module) -> Observed:
    """Watches one step on a small batch: of `model` if it is on the meta device, or else of a new one on the CPU."""
    import torch

    if all(part.is_meta for part in (*model.parameters(), *model.buffers())):
        seen = _attempt(loaded, mode, lambda: model, torch.device("meta"))
        if seen.device is not None:
            return seen
    return _attempt(loaded, mode, lambda: build_model(loaded.workload), torch.device("cpu"))


def _attempt(loaded: Loaded, mode: Mode, build: Callable[[], nn.Module], device: torch.device) -> Observed:
    import torch

    workload, options, seen = loaded.workload, own_options(loaded.workload), Observed()
    try:
        torch.manual_seed(0)
        model = build()
        set_mode(model, mode)
        batch = make(workload, min(workload.batch_size, SMALL_BATCH), 0)
        batch = map_tensors(lambda tensor: tensor.to(device), batch)
        with torch.set_grad_enabled(mode == "training"), _watching(model, seen):
            if mode == "training":
                seen.output = _trained(loaded, model, batch)
            else:
                seen.output = workload.infer(model, batch, options) if workload.infer else None
    except Exception as error:  # noqa: BLE001 - whatever the user's code raises; the measured step will tell of it
        return Observed(problem=kind_and_message(error))
    seen.device = device.type
    return seen


def _trained(loaded: Loaded, model: nn.Module, batch: Any) -> Any:
    """What the training step of `model` returns."""
    workload = loaded.workload
    if workload.loss is not None:
        return with_options(workload.loss, own_options(workload))(model, batch)
    if workload.train_step is None:
        return None
    step = with_options(workload.train_step, own_options(workload))
    return step(model, batch, make_optimizers(workload.optimizers, {"foreach": False}, model))


@contextmanager
def _watching(model: nn.Module, seen: Observed) -> Iterator[None]:
    import torch
    from torch._dynamo import eval_frame
    from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.attends = seen.attends or func is torch.nn.functional.scaled_dot_product_attention
            return func(*args, **(kwargs or {}))

    weights = _Weights(model)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            tensors = [each for each in args if isinstance(each, torch.Tensor)]
            name = str(func).removesuffix(f".{func._overloadname}")
            dtypes, shapes = (each.dtype for each in tensors), (tuple(each.shape) for each in tensors)
            seen.calls.append(Call(name, tuple(dtypes), tuple(shapes)))
            result = func(*args, **(kwargs or {}))
            weights.follow(name, tensors, result)
            return result

    names, inside = {id(module): name for name, module in model.named_modules()}, [0]
    fed = Fed(projections(model))

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        fed.call(plain_name(names.get(id(module), "")), inputs)
        if not inside[0] and id(module) in names:
            seen.called = tuple(dict.fromkeys([*seen.called, names[id(module)]]))
        inside[0] += 1

    def leave(*_: Any) -> None:
        inside[0] -= 1

    def autocasting(context: Any) -> Any:
        if context._enabled:
            seen.autocast = tuple(dict.fromkeys([*seen.autocast, str(context.fast_dtype).removeprefix("torch.")]))
        return entered(context)  # type: ignore[no-untyped-call]

    def calling_compiled(callback: Any) -> Any:
        seen.compiled = seen.compiled or bool(callback)
        return chosen(callback)

    entered, chosen = torch.autocast.__enter__, eval_frame._callback_from_stance
    with ExitStack() as stack:
        # Hooks for all modules: scripted ones take none of their own.
        stack.callback(register_module_forward_pre_hook(enter).remove)
        stack.callback(register_module_forward_hook(leave, always_call=True).remove)
        stack.enter_context(mock.patch.object(torch.autocast, "__enter__", autocasting))
        stack.enter_context(mock.patch.object(eval_frame, "_callback_from_stance", calling_compiled))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(Watch())  # type: ignore[no-untyped-call]
        stack.enter_context(Functions())
        yield
    seen.unconvolved = weights.unconvolved()
    seen.projections = fed.with_one_input()


class _Weights:
    """Follows a model's weights of 4 or 5 dimensions through a step, to the convolutions that use them.

    A convolution may take what was computed from one: cast, divided by its norm, scaled for each sample. It then still
    has the sides of the kernel as its last dimensions.
    """

    def __init__(self, model: nn.Module) -> None:
        found = (*model.named_parameters(), *model.named_buffers())
        self._names = {id(weight): name for name, weight in found if weight.dim() in (4, 5)}
        self._kernels = {name: tuple(weight.shape[2:]) for name, weight in found if weight.dim() in (4, 5)}
        self._from = {key: {name} for key, name in self._names.items()}  # identity of a tensor -> what it is made of
        self._kept: list[torch.Tensor] = []  # so that no identity is given to another tensor
        self._used: set[str] = set()

    def follow(self, operator: str, arguments: list[torch.Tensor], result: Any) -> None:
        """Notes what an operator made of its arguments."""
        import torch

        if "convolution" in operator:
            for argument in arguments[1:]:
                self._used |= self._from.get(id(argument), set())
            return
        origins = set().union(*(self._from.get(id(argument), ()) for argument in arguments))
        if not origins:
            return
        for made in result if isinstance(result, tuple | list) else (result,):
            if not isinstance(made, torch.Tensor) or id(made) in self._names:
                continue
            sides = {len(kernel): tuple(made.shape[-len(kernel) :]) for kernel in self._kernels.values()}
            if kept := {name for name in origins if sides[len(self._kernels[name])] == self._kernels[name]}:
                self._from[id(made)] = kept
                self._kept.append(made)

    def unconvolved(self) -> tuple[str, ...]:
        """The weights that no convolution used."""
        return tuple(name for name in self._names.values() if name not in self._used)
