"""How far outputs are from the reference's: relative error, cosine, norm ratio, non-finite values.

Every limit is written `not (value <= limit)`, so that NaN fails it. Cosine similarity alone would accept outputs
scaled by two, and a relative error alone says nothing of a single infinity: all of them must hold.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpubench.report.model import Quality

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]

FP32_TOLERANCE = 1e-3  # relative; fused and reordered fp32 sums in deep networks stay below 1e-4 (seen), ten times that
MIN_COSINE = 0.99
NORM_TOLERANCE = 0.01  # outputs scaled by more than 1 % are wrong whatever the precision
UPDATE_MIN_COSINE = 0.5  # AdamW's first updates are near sign(gradient): rounding flips the smallest ones' signs
UPDATE_NORM_RANGE = (0.5, 2.0)
# Weights kept in bfloat16 round an optimizer's small steps away. Seen with AdamW at a rate of 1e-4 after 3 steps: 17 to
# 85 % of the parameters had not moved at all; with fp32 weights under bf16 autocast, at most 0.02 %.
MAX_LOST_UPDATES = 0.05
SPREADS = 3  # one pair of runs tells a spread only roughly


def flatten(outputs: Any, path: str = "output") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a nest of tuples, lists, mappings and dataclasses, each with its path."""
    import torch

    if isinstance(outputs, torch.Tensor):
        yield path, outputs
    elif isinstance(outputs, Mapping):
        for key, value in outputs.items():
            yield from flatten(value, f"{path}.{key}")
    elif isinstance(outputs, list | tuple):
        for index, value in enumerate(outputs):
            yield from flatten(value, f"{path}.{index}")
    elif dataclasses.is_dataclass(outputs):
        for field in dataclasses.fields(outputs):
            yield from flatten(getattr(outputs, field.name), f"{path}.{field.name}")


def save_tensors(tensors: Tensors, folder: Path) -> None:
    """Writes each tensor as `<number>.npy` in fp32 (integers as they are), and the names in order."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    for index, tensor in enumerate(tensors.values()):
        value = tensor.detach().cpu()
        np.save(folder / f"{index}.npy", (value.float() if value.is_floating_point() else value).numpy())
    (folder / "names.txt").write_text("\n".join(tensors))


def load_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """What `save_tensors` wrote. Nothing is unpickled."""
    import numpy as np
    import torch

    names = (folder / "names.txt").read_text().split("\n")
    return {
        name: torch.from_numpy(np.load(folder / f"{index}.npy", allow_pickle=False)) for index, name in enumerate(names)
    }


def compare(outputs: Tensors, reference: Tensors, *, tolerance: float, what: str) -> Quality:
    """The quality of `outputs` against `reference`; tensors of the same names, shapes and kinds (float, integer).

    Floating outputs pass with a relative error (L2 norms over all of them) of at most `tolerance`, cosine of at
    least `MIN_COSINE`, norms within `NORM_TOLERANCE` (or `tolerance`, if larger) and nothing non-finite.
    Integer outputs (classes, masks) pass where at least a share of 1 - `tolerance` agrees.
    """
    import torch

    if difference := _structure_difference(outputs, reference):
        return Quality(passed=False, reason=difference, reference=what, max_relative_error=tolerance)
    squares = {"error": 0.0, "out": 0.0, "ref": 0.0, "dot": 0.0}
    non_finite, disagreeing, integers = 0, 0, 0
    for name, expected in reference.items():
        actual = outputs[name].detach().cpu()
        if expected.is_complex():
            actual, expected = (torch.view_as_real(tensor.resolve_conj()) for tensor in (actual, expected))
        if not expected.is_floating_point():
            disagreeing += int((actual != expected).sum())
            integers += expected.numel()
            continue
        out, ref = actual.double().flatten(), expected.double().flatten()
        non_finite += int((~torch.isfinite(out)).sum()) - int((~torch.isfinite(ref)).sum())
        squares["error"] += float((out - ref).square().sum())
        squares["out"] += float(out.square().sum())
        squares["ref"] += float(ref.square().sum())
        squares["dot"] += float((out * ref).sum())
    error = _ratio(math.sqrt(squares["error"]), math.sqrt(squares["ref"]))
    norms = _ratio(math.sqrt(squares["out"]), math.sqrt(squares["ref"]))
    cosine = _ratio(squares["dot"], math.sqrt(squares["out"]) * math.sqrt(squares["ref"]))
    norm_limit = max(NORM_TOLERANCE, tolerance)
    problems = []
    if not math.isfinite(squares["ref"]):
        problems.append("the reference's own outputs are not all finite")
    if non_finite > 0:
        problems.append(f"{non_finite} values are not finite")
    if not squares["ref"] == squares["error"] == 0:  # written so that NaN does not slip through
        if not error <= tolerance:
            problems.append(f"relative error {error:.2g} is above {tolerance:g}")
        if not cosine >= MIN_COSINE:
            problems.append(f"cosine similarity {cosine:.4f} is below {MIN_COSINE}")
        if not abs(norms - 1) <= norm_limit:
            problems.append(f"the norm is {norms:.4f} of the reference's")
    if integers and not disagreeing / integers <= tolerance:
        problems.append(f"{disagreeing} of {integers} integer outputs differ")
    return Quality(
        passed=not problems,
        reason="; ".join(problems),
        reference=what,
        relative_error=_finite(error),
        cosine_similarity=_finite(cosine),
        norm_ratio=_finite(norms),
        non_finite_count=max(non_finite, 0),
        max_relative_error=tolerance,
    )


def compare_training(
    losses: Sequence[float],
    reference_losses: Sequence[float],
    update: Tensors,
    reference_update: Tensors,
    *,
    tolerance: float,
    what: str,
    spread: float = 0.0,
) -> Quality:
    """The quality of a few seeded training steps: losses within `tolerance`, parameter changes alike.

    spread: what other random numbers alone change in the losses, where the model draws some (dropout). Compiled code
    draws others than eager code does. Three times as much is allowed then, and the changes' direction is not compared.

    It is the *change* of the parameters that is compared: after a few steps the parameters themselves are still
    nearly the initial ones, so that an optimizer that does nothing would pass.
    """
    changes = compare(update, reference_update, tolerance=math.inf, what=what)
    if changes.reason and changes.relative_error is None:
        return changes
    non_finite = sum(not math.isfinite(loss) for loss in losses) + (changes.non_finite_count or 0)
    error = max(
        (_ratio(abs(loss - expected), abs(expected)) for loss, expected in zip(losses, reference_losses, strict=True)),
        default=math.nan,
    )
    cosine = math.nan if changes.cosine_similarity is None else changes.cosine_similarity
    norms = math.nan if changes.norm_ratio is None else changes.norm_ratio
    lost = lost_updates(update, reference_update)
    tolerance += SPREADS * spread
    problems = []
    if not lost <= MAX_LOST_UPDATES:
        problems.append(f"{lost:.0%} of the parameters that should have moved did not: their updates were rounded away")
    if non_finite:
        problems.append(f"{non_finite} losses or parameters are not finite")
    if not error <= tolerance:
        problems.append(f"a loss is {error:.2g} off the reference's, above {tolerance:g}")
    if not spread and not cosine >= UPDATE_MIN_COSINE:
        problems.append(f"parameter changes have cosine similarity {cosine:.3f}, below {UPDATE_MIN_COSINE}")
    if not UPDATE_NORM_RANGE[0] <= norms <= UPDATE_NORM_RANGE[1]:
        problems.append(f"parameters moved {norms:.3f} times as far as the reference's")
    return Quality(
        passed=not problems,
        reason="; ".join(problems),
        reference=what,
        relative_error=_finite(error),
        cosine_similarity=changes.cosine_similarity,
        norm_ratio=changes.norm_ratio,
        non_finite_count=non_finite,
        max_relative_error=tolerance,
        losses=[_finite(loss) for loss in losses],
        reference_losses=[_finite(loss) for loss in reference_losses],
        parameter_relative_error=changes.relative_error,
        lost_update_share=_finite(lost),
    )


def lost_updates(update: Tensors, reference_update: Tensors) -> float:
    """The share of the parameters moved by the reference that did not move at all, 0..1."""
    moved = lost = 0
    for name, expected in reference_update.items():
        should = expected != 0
        moved += int(should.sum())
        lost += int((should & (update[name].detach().cpu() == 0)).sum())
    return lost / moved if moved else 0.0


def worst(qualities: Sequence[Quality]) -> Quality:
    """The one that failed, else the one with the largest relative error."""
    return max(qualities, key=lambda quality: (quality.passed is not True, quality.relative_error or 0.0))


def _structure_difference(outputs: Tensors, reference: Tensors) -> str:
    if list(outputs) != list(reference):
        return f"outputs are {', '.join(outputs) or 'empty'}; the reference's are {', '.join(reference) or 'empty'}"
    for name, expected in reference.items():
        actual = outputs[name]
        if actual.shape != expected.shape:
            return f"{name} has shape {list(actual.shape)}, the reference's is {list(expected.shape)}"
        if (actual.is_floating_point(), actual.is_complex()) != (expected.is_floating_point(), expected.is_complex()):
            return f"{name} is {actual.dtype}, the reference's is {expected.dtype}"
    return ""


def _ratio(value: float, base: float) -> float:
    return value / base if base else (0.0 if value == 0 else math.inf)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
