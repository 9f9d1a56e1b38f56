"""How far outputs are from the reference's: each tensor is judged by itself, and the worst decides.

Every limit is written `not (value <= limit)`, so that NaN fails it. Cosine similarity alone would accept outputs
scaled by two, and a relative error alone says nothing of a single infinity: all of them must hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from gpubench.measure import order, values
from gpubench.measure.outputs import MAX_SHOWN, listed
from gpubench.measure.values import ROUNDED_TOLERANCE, Rounding, distance, ratio
from gpubench.report.model import OutputQuality, Quality
from gpubench.text import plural

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
PART_FACTOR = 5  # one part of a tensor may be off by this much more than the whole
FEW = 64  # values, whose norm may be small by cancellation
EMPTY = "it is empty: give the model weights or inputs with which it finds something"
SAME = "give the model weights or inputs that change it"
NOISE = 0.1  # change by rounding in fp32 alone, beyond which an output has no value to compare
MAX_SAID = 3  # notes in a sentence, and outputs named for each


def judge(
    outputs: Tensors,
    reference: Tensors,
    *,
    tolerance: float,
    rounding: Mapping[str, Rounding] | None = None,
    compare: str | Mapping[str, str] = "values",
) -> list[OutputQuality]:
    """The quality of each output against the reference's of the same name.

    Floating outputs pass with a relative error (L2 norms) of at most `tolerance`, cosine of at least `MIN_COSINE`,
    norms within `NORM_TOLERANCE` (or `tolerance`, if larger) and infinities where the reference has them. Truth values
    and integers pass where a share of at least 1 - `tolerance` agrees.

    Args:
        rounding: what rounding alone changes in each output, where that is known.
        compare: as in `Workload`.
    """
    if set(outputs) != set(reference):
        missing = f"outputs are {listed(outputs)}; the reference's are {listed(reference)}"
        return [OutputQuality(name="", passed=False, note=missing)]
    return [
        _judge_one(
            name, outputs[name].detach().cpu(), ref, tolerance, (rounding or {}).get(name), order.how(name, compare)
        )
        for name, ref in reference.items()
    ]


def compare(outputs: Tensors, reference: Tensors, *, tolerance: float, what: str) -> Quality:
    """The quality of all outputs of one step, see `judge`."""
    return together([judge(outputs, reference, tolerance=tolerance)], tolerance=tolerance, what=what)


def together(steps: Sequence[Sequence[OutputQuality]], *, tolerance: float, what: str) -> Quality:
    """One quality from those of the outputs of several steps: that of the worst output in the worst step.

    It is undecided only where no output could be compared in any step.
    """
    by_name: dict[str, list[OutputQuality]] = {}
    for step in steps:
        for each in step:
            by_name.setdefault(each.name, []).append(each)
    judged = sorted((max(found, key=_severity) for found in by_name.values()), key=_severity, reverse=True)
    if not judged:
        return Quality(passed=None, reason="the step has no outputs", reference=what, max_relative_error=tolerance)
    lead, several = judged[0], len(judged) > 1
    noted = [each for each in judged if each.note]
    return Quality(
        passed=lead.passed,
        reason="" if lead.passed else _said([each for each in noted if each.passed is lead.passed], several),
        reference=what,
        relative_error=lead.relative_error,
        cosine_similarity=lead.cosine_similarity,
        norm_ratio=lead.norm_ratio,
        non_finite_count=sum(each.non_finite_count for each in judged),
        max_relative_error=tolerance,
        outputs=judged[:MAX_SHOWN],
        not_compared=_said(noted, several) if lead.passed else "",
    )


def _severity(one: OutputQuality) -> tuple[int, float]:
    rank = {False: 2, True: 1, None: 0}[one.passed]
    return rank, math.inf if one.relative_error is None else one.relative_error


def _said(noted: Sequence[OutputQuality], several: bool) -> str:
    """The notes in one line, each once with the outputs that it is about."""
    about: dict[str, list[str]] = {}
    for each in noted:
        about.setdefault(each.note, []).append(each.name)
    said = []
    for note, names in list(about.items())[:MAX_SAID]:
        more = f" and {len(names) - MAX_SAID} more" if len(names) > MAX_SAID else ""
        said.append(f"{', '.join(names[:MAX_SAID])}{more}: {note}" if several and names[0] else note)
    rest = sum(map(len, list(about.values())[MAX_SAID:]))
    return "; ".join([*said, f"and {plural(rest, 'output')} more"] if rest else said)


# ----- one output


def _judge_one(
    name: str, out: torch.Tensor, ref: torch.Tensor, tolerance: float, rounding: Rounding | None, how: str
) -> OutputQuality:
    if (out.is_floating_point(), out.is_complex()) != (ref.is_floating_point(), ref.is_complex()):
        return OutputQuality(name=name, passed=False, note=f"it is {out.dtype}, the reference's is {ref.dtype}")
    rounding = rounding or Rounding()
    if how != "values" and ref.numel() > 1 and not ref.any() and not out.any():
        return OutputQuality(name=name, passed=None, note=f"all its values are zero: {SAME}")
    if how == "set":
        return _judge_set(name, out, ref, tolerance, rounding)
    if out.shape != ref.shape:
        return OutputQuality(name=name, passed=False, note=_shapes(out, ref))
    if not ref.numel():
        return OutputQuality(name=name, passed=None, note=EMPTY)
    if how == "rank" and order.has_order(ref):
        return _judge_rank(name, out, ref, tolerance, rounding)
    found = (_judge_counted if values.is_counted(ref) else _judge_values)(name, out, ref, tolerance, rounding)
    if found.passed is False and not found.non_finite_count and order.permuted(out, ref, tolerance):
        advice = "the same rows are there in another order; where that is right (near-ties swap), give the workload"
        found = replace(found, note=f"{found.note}; {advice} compare={{{name!r}: 'set'}}")
    return found


def _shapes(out: torch.Tensor, ref: torch.Tensor) -> str:
    said = f"it has shape {list(out.shape)}, the reference's is {list(ref.shape)}"
    apart = [one != other for one, other in zip(out.shape, ref.shape, strict=False)]
    if out.dim() == ref.dim() and apart.index(True) < 2 and sum(apart) == 1:
        return f"{said}; where the step selects rows and their number may differ, give the workload compare='set'"
    return said


def _judge_set(name: str, out: torch.Tensor, ref: torch.Tensor, tolerance: float, rounding: Rounding) -> OutputQuality:
    if not ref.numel() and not out.numel():
        return OutputQuality(name=name, passed=None, note=EMPTY)
    share, rows = order.unmatched(out, ref, tolerance)
    limit = _chance(tolerance, rows) / rows
    note = f"{share:.2%} of its rows have no counterpart in the reference's, above {tolerance:.2%}"
    return _by_share(name, share, limit, note, tolerance, rounding)


def _judge_rank(name: str, out: torch.Tensor, ref: torch.Tensor, tolerance: float, rounding: Rounding) -> OutputQuality:
    moved, swap = order.displaced(out, ref)
    note = f"its entries moved by {moved:.2%} of the list's length on average, above {tolerance + swap:.2%}"
    return _by_share(name, moved, tolerance + swap, note, tolerance, rounding)


def _by_share(name: str, share: float, limit: float, note: str, tolerance: float, rounding: Rounding) -> OutputQuality:
    """By the share that differs: right up to `limit`, undecided where rounding alone makes about as many differ."""
    if share <= limit:
        return OutputQuality(name=name, passed=True, note="", relative_error=share)
    if share <= limit + SPREADS * rounding.error * tolerance / ROUNDED_TOLERANCE:
        note = f"{note}; rounding alone changes about as many, as near-ties swap: return the scores too"
        return OutputQuality(name=name, passed=None, note=note, relative_error=share)
    return OutputQuality(name=name, passed=False, note=note, relative_error=share)


def _chance(share: float, count: float) -> float:
    """How many of `count` may differ where `share` of them may on average: three standard deviations more."""
    return share * count + 3 * math.sqrt(share * count)


def _judge_counted(
    name: str, out: torch.Tensor, ref: torch.Tensor, tolerance: float, rounding: Rounding
) -> OutputQuality:
    """Truth values, classes and indices: the share that differs."""
    import torch

    count, differ = ref.numel(), int((out != ref).sum())
    if count > 1 and not differ and not ref.any():
        note = f"all its values are {ref.flatten()[0].item()} in the reference: {SAME}"
        return OutputQuality(name=name, passed=None, note=note)
    allowed, kind = _chance(tolerance, count), "values"
    if ref.dtype is torch.bool:  # where few are true, those must agree too
        rarer = min(int(ref.sum()), count - int(ref.sum()))
        allowed, kind = min(allowed, _chance(PART_FACTOR * tolerance, rarer)), "truth values"
    note = f"{differ} of {count} {kind} differ, more than {tolerance:.2g} of them"
    return _by_share(name, differ / count, allowed / count, note, tolerance, rounding)


def _judge_values(
    name: str, out: torch.Tensor, ref: torch.Tensor, tolerance: float, rounding: Rounding
) -> OutputQuality:
    """Floating and complex values, pictures and sounds: the size of the difference."""
    out, ref = values.as_real(out), values.as_real(ref)
    problems, notes, lost, filled = [], [], 0, False
    if not math.isfinite(values.top(out)) or not values.top(ref) < values.FILL:
        nan, fill = ref.isnan(), values.masked(ref)
        unlike = fill & ((out.sign() != ref.sign()) | ~(out.abs() >= values.FILL / 2))
        lost, filled = int((~nan & ~fill & ~out.isfinite()).sum()), bool(fill.any())
        if lost:
            problems.append(f"{plural(lost, 'value')} not finite")
        if unlike.any():
            problems.append(f"{int(unlike.sum())} of {int(fill.sum())} infinite or masked values are not so here")
        if nan.any():
            notes.append(f"{int(nan.sum())} of {nan.numel()} values are NaN in the reference too")
        numbers = ~nan & ~fill & out.isfinite()
        out, ref = out.where(numbers, 0.0), ref.where(numbers, 0.0)
    found = distance(out, ref, [int(axis) for axis in rounding.parts])
    if not found.size:
        notes = notes or ["all its values are infinite or masked" if filled else f"all its values are zero: {SAME}"]
        if not found.out_size <= tolerance:  # nothing says how large it should be; 1 is what networks compute with
            problems.append(f"it is zero in the reference and {found.out_size:.2g} here (root mean square)")
        return OutputQuality(
            name=name, passed=False if problems else None, note="; ".join(problems or notes), non_finite_count=lost
        )
    broken = bool(problems)
    if rounding.nudge > NOISE and not broken:
        said = f"rounding in fp32 alone changes it by {rounding.nudge:.2g}, so there is nothing to compare"
        return OutputQuality(name=name, passed=None, note=said, relative_error=_finite(found.error))
    problems += _off(found, tolerance)
    if not problems and (part := _worst_part(found, tolerance, rounding)):
        problems.append(part)
    elif problems and not broken and (excuse := _excuse(found, ref.numel(), tolerance, rounding)):
        return OutputQuality(name=name, passed=None, note=excuse, relative_error=found.error)
    return OutputQuality(
        name=name,
        passed=not problems,
        note="; ".join(problems or notes),
        relative_error=_finite(found.error),
        cosine_similarity=_finite(found.cosine),
        norm_ratio=_finite(found.norms),
        non_finite_count=lost,
    )


def _off(found: values.Distance, tolerance: float) -> list[str]:
    problems = []
    if not found.error <= tolerance:
        problems.append(f"relative error {found.error:.2g} is above {tolerance:g}")
    if not found.cosine >= MIN_COSINE:
        problems.append(f"cosine similarity {found.cosine:.4f} is below {MIN_COSINE}")
    if not abs(found.norms - 1) <= max(NORM_TOLERANCE, tolerance):
        problems.append(f"the norm is {found.norms:.4f} of the reference's")
    return problems


def _excuse(found: values.Distance, count: int, tolerance: float, rounding: Rounding) -> str:
    """Why an output that is far off cannot be judged: it is rounding noise in the reference as well."""
    if found.error <= SPREADS * rounding.nudge:
        return f"it is {found.error:.2g} off, and rounding in fp32 alone changes it by {rounding.nudge:.2g}"
    by_rounding = rounding.error / found.size * tolerance / ROUNDED_TOLERANCE
    if count <= FEW and found.error <= tolerance + SPREADS * by_rounding:
        return f"its values nearly cancel out: they are {found.error:.2g} off, rounding alone makes {by_rounding:.2g}"
    return ""


def _worst_part(found: values.Distance, tolerance: float, rounding: Rounding) -> str:
    """What is wrong with a part that is small beside the rest of the tensor: scores behind boxes in pixels."""
    import torch

    for axis, part in found.parts.items():
        noise = torch.tensor(rounding.parts[str(axis)], dtype=torch.float64)
        if len(noise) != len(part.size):
            continue
        part, noise = values.pooled(part, noise)
        allowed = PART_FACTOR * tolerance * part.size + SPREADS * noise * tolerance / ROUNDED_TOLERANCE
        wrong = (part.count >= values.MIN_POOL) & ~(part.error <= allowed)
        if axis == 0:
            wrong &= part.size < values.SMALL * found.size
        if wrong.any():
            index = int((part.error / part.size).where(wrong, -1.0).argmax())
            off, limit = (float(each[index] / part.size[index]) for each in (part.error, allowed))
            others = f" ({int(wrong.sum())} of {len(wrong)} are wrong)"
            return f"relative error {off:.2g} at index {index} of dimension {axis} is above {limit:.2g}{others}"
    return ""


# ----- training


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
    nearly the initial ones, so that an optimizer that does nothing would pass. All of them are compared as one vector:
    an optimizer moves them by like amounts, and those whose gradient is rounding noise any way.
    """
    if set(update) != set(reference_update):
        reason = f"parameters are {listed(update)}; the reference's are {listed(reference_update)}"
        return Quality(passed=False, reason=reason, reference=what, max_relative_error=tolerance)
    changes, non_finite = _changes(update, reference_update)
    if not all(map(math.isfinite, reference_losses)) or math.isnan(changes.norms):
        own = ", ".join(f"{loss:g}" for loss in reference_losses)
        reason = f"the reference's own losses or parameters are not finite (losses {own}): mend the loss first"
        return Quality(passed=None, reason=reason, reference=what, max_relative_error=tolerance)
    if not changes.size and not changes.out_size:
        reason = "no parameter moves in these steps, in the reference either: there is no gradient"
        return Quality(passed=None, reason=reason, reference=what, max_relative_error=tolerance)
    non_finite += sum(not math.isfinite(loss) for loss in losses)
    error = max(
        (ratio(abs(loss - expected), abs(expected)) for loss, expected in zip(losses, reference_losses, strict=True)),
        default=math.nan,
    )
    lost = lost_updates(update, reference_update)
    tolerance += SPREADS * spread
    problems = []
    if not lost <= MAX_LOST_UPDATES:
        problems.append(f"{lost:.0%} of the parameters that should have moved did not: their updates were rounded away")
    if non_finite:
        problems.append(f"{non_finite} losses or parameters are not finite")
    if not error <= tolerance:
        problems.append(f"a loss is {error:.2g} off the reference's, above {tolerance:g}")
    if not spread and not changes.cosine >= UPDATE_MIN_COSINE:
        problems.append(f"parameter changes have cosine similarity {changes.cosine:.3f}, below {UPDATE_MIN_COSINE}")
    if not UPDATE_NORM_RANGE[0] <= changes.norms <= UPDATE_NORM_RANGE[1]:
        problems.append(f"parameters moved {changes.norms:.3f} times as far as the reference's")
    return Quality(
        passed=not problems,
        reason="; ".join(problems),
        reference=what,
        relative_error=_finite(error),
        cosine_similarity=_finite(changes.cosine),
        norm_ratio=_finite(changes.norms),
        non_finite_count=non_finite,
        max_relative_error=tolerance,
        losses=[_finite(loss) for loss in losses],
        reference_losses=[_finite(loss) for loss in reference_losses],
        parameter_relative_error=_finite(changes.error),
        lost_update_share=_finite(lost),
    )


def _changes(update: Tensors, reference: Tensors) -> tuple[values.Distance, int]:
    """The distance of all parameters' changes, and how many are finite in the reference only."""
    squares = {"error": 0.0, "out": 0.0, "ref": 0.0, "dot": 0.0}
    non_finite = 0
    for name, expected in reference.items():
        out, ref = (values.as_real(each).double().flatten() for each in (update[name].detach().cpu(), expected))
        non_finite += int((ref.isfinite() & ~out.isfinite()).sum())
        squares["error"] += float((out - ref).square().sum())
        squares["out"] += float(out.square().sum())
        squares["ref"] += float(ref.square().sum())
        squares["dot"] += float(out @ ref)
    error, out_norm, ref_norm = (math.sqrt(squares[name]) for name in ("error", "out", "ref"))
    if not math.isfinite(ref_norm):
        return values.Distance(math.nan, math.nan, math.nan), non_finite
    found = values.Distance(
        error=ratio(error, ref_norm),
        cosine=ratio(squares["dot"], out_norm * ref_norm),
        norms=ratio(out_norm, ref_norm),
        size=ref_norm,
        out_size=out_norm,
    )
    return found, non_finite


def lost_updates(update: Tensors, reference_update: Tensors) -> float:
    """The share of the parameters moved by the reference that did not move at all, 0..1."""
    moved = lost = 0
    for name, expected in reference_update.items():
        should = expected != 0
        moved += int(should.sum())
        lost += int((should & (update[name].detach().cpu() == 0)).sum())
    return lost / moved if moved else 0.0


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
