"""How far outputs are from a reference's, each tensor by itself; detections as sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

Outcome = Literal["ok", "borderline", "wrong", "unchecked"]
FACTOR = 1.5  # within it of a limit an error or a share is borderline, and is not counted
_DETECTION = {"boxes", "labels", "scores"}


@dataclass(frozen=True)
class Difference:
    """The worst of some outputs. `reordered`: alike as sets only."""

    outcome: Outcome
    error: float
    name: str
    largest: float = 0.0  # single difference, relative to the largest value
    reordered: bool = False


def against(value: float, limit: float) -> Outcome:
    """Whether `value` is below the limit, above it, or too near to say; NaN is above."""
    if value <= limit / FACTOR:
        return "ok"
    return "borderline" if value <= limit * FACTOR else "wrong"


def tensors(outputs: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a nest of mappings, sequences and objects of any class."""
    if isinstance(outputs, torch.Tensor):
        yield path or "output", outputs
    elif isinstance(outputs, Mapping):
        for key, value in outputs.items():
            yield from tensors(value, f"{path}.{key}", depth + 1)
    elif isinstance(outputs, list | tuple | set | frozenset):
        for index, value in enumerate(outputs):
            yield from tensors(value, f"{path}.{index}", depth + 1)
    elif dataclasses.is_dataclass(outputs) or (hasattr(outputs, "__dict__") and depth < 6):
        for key, value in vars(outputs).items():
            yield from tensors(value, f"{path}.{key}", depth + 1)


def snapshot(outputs: Any) -> Any:
    """The outputs as plain tensors that no later step changes: detections as they are, the rest by name."""
    if _is_detections(outputs):
        return [{name: one[name].detach().clone() for name in sorted(_DETECTION)} for one in outputs]
    return {name: tensor.detach().clone() for name, tensor in tensors(outputs)}


def compare(outputs: Any, reference: Any, limit: float) -> Difference:
    """The worst difference of two snapshots, at `limit` for each tensor's relative error."""
    if _is_detections(reference):
        return _detections(outputs, reference, limit)
    if list(outputs) != list(reference):
        return Difference("wrong", float("inf"), "other outputs")
    found = [_tensor(name, outputs[name], expected, limit) for name, expected in reference.items()]
    return worst(found)


def worst(found: list[Difference]) -> Difference:
    """The most wrong; what is unchecked counts for more than what is right."""
    order = ("ok", "unchecked", "borderline", "wrong")
    return max(found, key=lambda each: (order.index(each.outcome), each.error), default=Difference("unchecked", 0, "-"))


def _tensor(name: str, actual: torch.Tensor, expected: torch.Tensor, limit: float) -> Difference:
    if actual.shape != expected.shape:
        return Difference("wrong", float("inf"), name)
    if not expected.numel():
        return Difference("unchecked", 0.0, name)
    if not expected.is_floating_point() and not expected.is_complex():
        share = float((actual != expected).double().mean())
        return Difference(against(share, limit), share, name)
    out, ref = actual.to(torch.complex128), expected.to(torch.complex128)
    out, ref = torch.view_as_real(out), torch.view_as_real(ref)
    same = (out == ref) | (out.isnan() & ref.isnan())  # infinities that both have
    gap = torch.where(same, 0.0, out - ref)
    size = torch.where(ref.isfinite(), ref, 0.0)
    norm = float(size.norm())
    if norm == 0 and float(gap.norm()) == 0:
        return Difference("unchecked", 0.0, name)
    error = float(gap.norm()) / norm if norm else float("inf")
    return Difference(against(error, limit), error, name, float(gap.abs().max()) / max(float(size.abs().max()), 1e-300))


def _is_detections(outputs: Any) -> bool:
    return isinstance(outputs, list) and all(isinstance(one, dict) and set(one) >= _DETECTION for one in outputs)


def _detections(outputs: Any, reference: Any, limit: float) -> Difference:
    """In order if they agree so; else by the share of detections of either side that have no partner on the other."""
    ordered = worst(
        [
            _tensor(f"{index}.{name}", one[name], other[name], limit)
            for index, (one, other) in enumerate(zip(outputs, reference, strict=True))
            for name in sorted(_DETECTION)
        ]
    )
    if ordered.outcome in ("ok", "unchecked"):
        return ordered
    lonely, count = 0, 0
    for one, other in zip(outputs, reference, strict=True):
        lonely += _without_partner(one, other, limit) + _without_partner(other, one, limit)
        count += len(one["scores"]) + len(other["scores"])
    share = lonely / count if count else 0.0
    return Difference(against(share, limit), share, "detections as sets", reordered=True)


def _without_partner(one: Any, other: Any, limit: float) -> int:
    if not len(one["scores"]) or not len(other["scores"]):
        return len(one["scores"])
    size = float(torch.cat([one["boxes"], other["boxes"]]).abs().max()) or 1.0
    near = torch.cdist(one["boxes"].double(), other["boxes"].double()) <= 2 * limit * size
    alike = (one["scores"].double()[:, None] - other["scores"].double()[None]).abs() <= limit
    same = one["labels"][:, None] == other["labels"][None]
    return int((~(near & alike & same).any(1)).sum())
