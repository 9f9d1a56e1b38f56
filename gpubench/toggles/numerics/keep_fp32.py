"""Layers that stay in fp32 beside a lower precision: norms, the first and the last layer, or those named."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gpubench.report.model import Value
from gpubench.text import kind_and_message, plural
from gpubench.toggles import evidence as read
from gpubench.toggles.printed import run_lines
from gpubench.toggles.toggle import AS_BUILT, EvidenceResult, Scope, Stage, Texts, Toggle
from gpubench.workloads.building import starred
from gpubench.workloads.observe import short

if TYPE_CHECKING:
    from torch import nn

    from gpubench.toggles.model_context import ModelContext

SEPARATOR = "+"  # commas separate the values of --set
_CHOOSE = {
    "norms": """chosen = {name: module for name, module in model.named_modules()
          if "Norm" in type(module).__name__ and not list(module.children())}""",
    "first-last": """layers = [(name, module) for name, module in model.named_modules()
          if not list(module.children()) and getattr(module, "weight", None) is not None and module.weight.dim() > 1
          and "Embedding" not in type(module).__name__]
chosen = dict([*layers[:1], *layers[-1:]])""",
}
_NAMED = """names = {names}  # of modules, * for any index, or of classes of layers
chosen = {{}}
for name, module in model.named_modules():
    pattern = ".".join("*" if part.isdigit() else part for part in name.split("."))
    is_layer = type(module).__name__ in names and not list(module.children())
    if name in names or pattern in names or is_layer:
        chosen[name] = module"""
_KEEP = """from torch.utils._pytree import tree_leaves, tree_map_only

def cast(values, dtype):
    return tree_map_only(torch.Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, values)

def keep_fp32(module):
    forward, own = module.forward, next((each.dtype for each in module.parameters()), torch.float32)
    def in_fp32(*args, **kwargs):
        given = [x.dtype for x in tree_leaves((args, kwargs)) if torch.is_tensor(x) and x.is_floating_point()]
        args, kwargs = cast((args, kwargs), torch.float32)
        with torch.autocast(device.type, enabled=False):
            return cast(forward(*args, **kwargs), given[0] if given else own)
    module.float().forward = in_fp32

for module in chosen.values():
    keep_fp32(module)"""
# What only moves numbers from one dtype to another, or looks at them in another way.
_CASTS = ("_to_copy", "copy_", "detach", "view", "alias", "clone", "_unsafe_view", "t", "transpose", "permute")


def _names(value: Value) -> list[str]:
    return str(value).split(SEPARATOR)


def _choose(value: Value) -> str:
    return _CHOOSE.get(str(value)) or _NAMED.format(names=_names(value))


def usage(value: Value, _: Scope | None) -> str:
    """The lines that find the layers and keep them in fp32."""
    return "# keep_fp32: none" if value == "none" else f"{_choose(value)}\n{_KEEP}"


def is_known(scope: Scope, value: Value, _: Mapping[str, Value]) -> str | None:
    """The reason why `value` names nothing in the model, or None; None too where its modules are not known."""
    classes, parts = scope.workload.modules, scope.workload.parts
    if value == "none" or not classes:
        return None
    if value == "norms":
        found = any("Norm" in each for each in classes)
        return None if found else f"finds no normalization layer among {', '.join(classes)}"
    if value == "first-last" or not parts:
        return None
    known = {*classes, *parts}
    unknown = [each for each in _names(value) if each not in known and starred(each) not in known]
    if not unknown:
        return None
    nearest = difflib.get_close_matches(unknown[0], ["norms", "first-last", *known], n=1, cutoff=0.5)
    meant = f" (did you mean {nearest[0]}?)" if nearest else f"; its layers are of {', '.join(classes)}"
    return f"names {unknown[0]!r}, which the model does not have{meant}"


def apply(context: ModelContext, value: Value) -> None:
    """Runs the printed lines; raises ValueError where they find nothing."""
    if value == "none":
        return
    chosen = _chosen(context, value)
    missing = [each for each in _names(value) if not any(_fits(each, name, part) for name, part in chosen.items())]
    if not chosen or (missing and value not in _CHOOSE):
        raise ValueError(f"keep_fp32={value} finds no {' and no '.join(missing)} in the model")
    context.kept = list(chosen.values())
    run_lines(_KEEP, chosen=chosen, device=context.device)


def _chosen(context: ModelContext, value: Value) -> dict[str, nn.Module]:
    chosen: dict[str, nn.Module] = run_lines(_choose(value), model=context.model)["chosen"]
    return chosen


def _fits(wanted: str, name: str, module: nn.Module) -> bool:
    return wanted in (name, starred(name), type(module).__name__)


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether those layers computed in fp32 in one more step, run eagerly: compiled code does not show its layers."""
    if value == "none":
        return EvidenceResult(True, "no layer is kept in fp32")
    chosen = _chosen(context, value)
    try:
        seen = _watch(context, chosen)
    except Exception as error:  # noqa: BLE001 - whatever a model or a full device raises
        return EvidenceResult(None, f"one more step, to watch the layers, failed: {kind_and_message(error)}")
    called = {name: counts for name, counts in seen.items() if counts}
    # Autocast computes some layers in fp32 by itself, so that the casts must be there too.
    kept = [name for name, counts in called.items() if "forward" in vars(chosen[name]) and set(counts) == {"fp32"}]
    others: Counter[str] = Counter()
    for counts in called.values():
        others.update(counts)
    words = (
        f"{len(kept)} of {plural(len(called), 'layer')} that ran, of {len(chosen)} chosen, have casts around them and "
    )
    words += "computed in fp32 alone"
    words += f"; their operators: {', '.join(f'{count} in {dtype}' for dtype, count in others.most_common())}"
    if not called:
        return EvidenceResult(False, f"none of {plural(len(chosen), 'chosen layer')} was called in the step")
    return EvidenceResult(len(kept) >= read.MAJORITY * len(called), words)


def _watch(context: ModelContext, chosen: Mapping[str, nn.Module]) -> dict[str, Counter[str]]:
    """For each chosen module the dtypes that the operators inside it had, those that cast left out."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    seen: dict[str, Counter[str]] = {name: Counter() for name in chosen}
    inside: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if inside and operator._schema.name.partition("::")[2] not in _CASTS:
                tensors = [each for each in tree_leaves((args, kwargs or {})) if isinstance(each, torch.Tensor)]
                dtypes = {short(each.dtype) for each in tensors if each.is_floating_point()}
                seen[inside[-1]].update(dtypes)
            return operator(*args, **(kwargs or {}))

    def entering(name: str) -> Callable[..., None]:
        return lambda *_: inside.append(name)

    def leaving(*_: Any) -> None:
        inside.pop()

    watching: Any = Watch  # torch's own class tells no types
    hooks: list[Any] = []
    for name, module in chosen.items():
        hooks.append(module.register_forward_pre_hook(entering(name)))
        hooks.append(module.register_forward_hook(leaving, always_call=True))
    try:
        with torch.compiler.set_stance("force_eager"), watching():
            context.forward_once()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


_LOWER = ("bf16-weights", "fp16-weights", "bf16-autocast", "fp16-autocast", AS_BUILT)

KEEP_FP32 = Toggle(
    name="keep_fp32",
    summary="Layers that stay in fp32 beside a lower precision, their inputs and outputs cast.",
    values={
        "none": "no layer is treated apart",
        "norms": "normalization layers: those with Norm in the name of their class",
        "first-last": "the first and the last layer that multiplies by a weight, in the order in which they were made",
    },
    texts=Texts(
        pattern=rf"[\w*.]+(\{SEPARATOR}[\w*.]+)*",
        meaning=f"names of modules or classes of layers, joined by {SEPARATOR}: GroupNorm{SEPARATOR}blocks.*.attn",
        example=f"LayerNorm{SEPARATOR}head",
    ),
    stage=Stage.DTYPE,
    after=("precision",),
    prerequisites={value: {"precision": _LOWER} for value in ("norms", "first-last")},
    idle_when={"precision": ("fp32", "torch-default", "tf32")},
    check=is_known,
    apply=apply,
    evidence=evidence,
    usage=usage,
    claims=("bf16-guide", "mmrec-cpu"),
    source="PyTorch documentation: Automatic Mixed Precision package, ops that can autocast to float32",
)
