"""Each output is judged by itself: nothing hides behind what is larger, and nothing right is called wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gpubench.measure.quality import compare, judge, together
from gpubench.measure.values import Rounding, rounding_of
from gpubench.report.model import OutputQuality, Quality

INF, NAN = math.inf, math.nan
BF16 = 0.06
CHANCE = torch.Generator().manual_seed(0)
X = torch.randn(32, 20, generator=CHANCE)


def quality(outputs: dict[str, Any], reference: dict[str, Any], tolerance: float = BF16) -> Quality:
    return compare(outputs, reference, tolerance=tolerance, what="reference")


def one(out: torch.Tensor, ref: torch.Tensor, tolerance: float = BF16, **more: Any) -> OutputQuality:
    return judge({"output": out}, {"output": ref}, tolerance=tolerance, **more)[0]


def test_a_small_output_beside_a_large_one_is_judged_by_itself() -> None:
    boxes, scores = X * 300, X[:, :4].softmax(-1)
    found = quality({"boxes": boxes, "scores": scores.flip(-1)}, {"boxes": boxes, "scores": scores})
    assert found.passed is False
    assert found.reason.startswith("scores: relative error")
    assert [(each.name, each.passed) for each in found.outputs] == [("scores", False), ("boxes", True)]
    assert found.relative_error == found.outputs[0].relative_error


def test_the_order_of_names_does_not_matter() -> None:
    assert quality({"a": X, "b": X + 1}, {"b": X + 1, "a": X}).passed is True


def test_many_outputs_are_named_in_part() -> None:
    named = {f"x{index:02}": X for index in range(40)}
    found = quality(dict.fromkeys(named, -X), named)
    assert len(found.outputs) == 16
    assert found.reason.startswith("x00, x01, x02 and 37 more: relative error 2 is above 0.06")
    unlike = quality({name: X * (index + 2) for index, name in enumerate(named)}, named)
    assert unlike.reason.startswith("x39: relative error 40 is above")
    assert unlike.reason.endswith("; and 37 outputs more")


@pytest.mark.parametrize(
    ("reference", "note"),
    [
        (torch.zeros(4, 3), "all its values are zero: give the model weights or inputs that change it"),
        (torch.zeros(4, 3, dtype=torch.long), "all its values are 0 in the reference"),
        (torch.zeros(4, 3, dtype=torch.bool), "all its values are False in the reference"),
        (torch.empty(0, 4), "it is empty"),
        (torch.full((3,), INF), "all its values are infinite or masked"),
        (torch.full((3,), NAN), "3 of 3 values are NaN in the reference too"),
    ],
)
def test_what_holds_nothing_is_not_checked(reference: torch.Tensor, note: str) -> None:
    alone = quality({"output": reference}, {"output": reference})
    assert alone.passed is None
    assert note in alone.reason
    beside = quality({"x": X, "empty": reference}, {"x": X, "empty": reference})
    assert (beside.passed, beside.reason) == (True, "")
    assert beside.not_compared.startswith("empty: ")
    assert note in beside.not_compared


def test_a_single_zero_or_false_is_a_value() -> None:
    assert one(torch.tensor(0), torch.tensor(0)).passed is True
    assert one(torch.tensor(False), torch.tensor(False)).passed is True
    assert one(torch.tensor(True), torch.tensor(False)).passed is False


def test_something_where_the_reference_is_zero_is_wrong() -> None:
    assert one(torch.full((4,), 1e-6), torch.zeros(4)).passed is None  # rounding of what cancels out
    wrong = one(torch.ones(4), torch.zeros(4))
    assert (wrong.passed, wrong.note) == (False, "it is zero in the reference and 1 here (root mean square)")


def test_a_batch_in_which_nothing_was_found_does_not_hide_another() -> None:
    empty, right, wrong = one(torch.empty(0), torch.empty(0)), one(X, X), one(-X, X)
    assert together([[empty], [right]], tolerance=BF16, what="").passed is True
    assert together([[right], [wrong], [empty]], tolerance=BF16, what="").passed is False


# ----- infinities, masks, NaN, range


@pytest.mark.parametrize("mask", [-INF, INF, -1e9, -1e4, -65504.0, torch.finfo(torch.float32).min])
def test_masked_values_are_equal_and_do_not_hide_the_others(mask: float) -> None:
    reference = X.clone()
    reference[:, 15:] = mask
    assert one(reference.clone(), reference).passed is True
    rounded = one(reference.bfloat16(), reference)
    assert rounded.passed is True
    assert rounded.relative_error == pytest.approx(0.0017, rel=0.3)
    spoiled = reference.clone()
    spoiled[:, :15] *= 1.5
    assert one(spoiled, reference).passed is False
    elsewhere = reference.clone()
    elsewhere[:, 15:] = -mask
    assert "160 of 160 infinite or masked values are not so here" in one(elsewhere, reference).note


def test_the_lowest_number_of_another_type_is_a_mask_too() -> None:
    reference = X.clone()
    reference[0] = torch.finfo(torch.float32).min
    for lowest in (torch.finfo(torch.float16).min, torch.finfo(torch.bfloat16).min, -INF):
        out = reference.clone()
        out[0] = lowest
        assert one(out, reference).passed is True


def test_an_infinity_that_the_reference_has_not() -> None:
    out = X.clone()
    out[0, 0] = INF
    assert (one(out, X).note, one(out, X).non_finite_count) == ("1 value not finite", 1)
    assert one(X, out).note == "1 of 1 infinite or masked values are not so here"


def test_nan_on_both_sides_is_said_and_on_one_is_wrong() -> None:
    reference = X.clone()
    reference[0, :3] = NAN
    found = quality({"output": reference.clone()}, {"output": reference})
    assert (found.passed, found.relative_error) == (True, 0.0)
    assert found.not_compared == "3 of 640 values are NaN in the reference too"
    more = reference.clone()
    more[1] = NAN
    assert one(more, reference).note == "20 values not finite"
    assert one(-reference, reference).passed is False


@pytest.mark.parametrize("scale", [1e300, 1e-300, 1e160, 1.0])
def test_numbers_beyond_fp32_are_compared(scale: float) -> None:
    reference = X.double() * scale
    assert one(reference * 1.001, reference, 1e-2).relative_error == pytest.approx(1e-3)
    assert one(-reference, reference).passed is False


# ----- classes, truth values, pictures


def test_the_share_of_differing_classes_is_the_error() -> None:
    classes = torch.arange(1000) % 7
    other = classes.clone()
    other[:100] += 1
    found = quality({"output": other}, {"output": classes})
    assert (found.passed, found.relative_error) == (False, 0.1)
    assert "100 of 1000 values differ" in found.reason
    assert quality({"output": other}, {"output": classes}, 0.1).relative_error == 0.1


def test_few_true_values_must_agree_too() -> None:
    truth = torch.zeros(10_000, dtype=torch.bool)
    truth[:200] = True
    assert one(torch.zeros_like(truth), truth).passed is False  # only 2 % differ
    shifted = truth.roll(10)
    assert one(shifted, truth).passed is True
    assert one(shifted, truth, 1e-3).passed is False


def test_a_picture_is_judged_by_how_far_its_values_are_off() -> None:
    picture = torch.randint(0, 250, (3, 64, 64), generator=CHANCE).to(torch.uint8)
    assert one(picture + 1, picture, 0.02).passed is True  # every pixel, by one level
    spoiled = picture.flatten().clone()
    spoiled[::20] = 255 - spoiled[::20]
    found = one(spoiled.reshape(picture.shape), picture)
    assert found.passed is False  # one pixel of twenty
    assert (found.relative_error or 0.0) > 0.1


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.int16, torch.int8, torch.uint8])
def test_integers_of_every_kind(dtype: torch.dtype) -> None:
    numbers = (torch.arange(100) % 5).to(dtype)
    assert one(numbers, numbers).passed is True
    assert one((torch.arange(100) % 3).to(dtype), numbers).passed is False


# ----- what rounding alone changes


def test_noise_and_near_ties_are_not_errors() -> None:
    noise, other = X * 1e-9, X.flip(0) * 1e-9
    assert one(other, noise, 1e-3).passed is False
    assert "rounding in fp32 alone" in one(other, noise, 1e-3, rounding={"output": Rounding(nudge=0.8)}).note
    assert one(noise, noise, 1e-3, rounding={"output": Rounding(nudge=0.8)}).passed is None
    classes = torch.arange(1000)
    swapped = classes.clone()
    swapped[:300] += 1
    assert one(swapped, classes).passed is False
    tied = one(swapped, classes, rounding={"output": Rounding(error=0.2)})
    assert tied.passed is None
    assert "near-ties swap" in tied.note
    assert one(swapped, classes, 1e-3, rounding={"output": Rounding(error=0.2)}).passed is False  # not in fp32
    mean = torch.tensor(1e-3)
    assert one(mean * 2, mean).passed is False
    assert "nearly cancel out" in one(mean * 2, mean, rounding={"output": Rounding(error=1e-3)}).note


def test_a_part_that_is_small_beside_the_rest_of_its_tensor() -> None:
    boxes, scores = X.repeat(4, 1) * 300, torch.rand(128, 10, generator=CHANCE)
    reference = torch.cat([boxes, scores], 1)
    rounding = rounding_of([{"output": reference}], {"output": reference}, [{"output": reference.bfloat16().float()}])
    wrong = torch.cat([boxes, scores.flip(0)], 1)
    for out, ref in ((wrong, reference), (wrong[None].mT.contiguous(), reference[None].mT.contiguous())):
        assert one(out, ref).passed is True  # nothing is known of rounding there
        found = one(out, ref, rounding={"output": Rounding(parts={"1": rounding["output"].parts["1"]})})
        assert found.passed is False
        assert "of dimension 1 is above 0.3" in found.note
    assert one(reference.bfloat16(), reference, rounding=rounding).passed is True


def test_a_small_part_that_is_noise_of_the_rest_is_not_wrong() -> None:
    features = X.repeat(4, 1).relu()
    features[:, 3] *= 1e-3
    noise = 1e-2 * torch.randn(features.shape, generator=CHANCE)
    rounding = rounding_of([{"output": features}], {"output": features}, [{"output": features + noise}])
    assert one(features + noise.roll(1, 0), features, rounding=rounding).passed is True


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_few_values_that_are_small_beside_the_rest(axis: int) -> None:
    large, small = X[:4, :6] * 1e3, X[4:8, :6] * 1e-5
    reference = torch.stack([large, small], axis)
    rounding = rounding_of([{"output": reference}], {"output": reference}, [{"output": reference.bfloat16().float()}])
    assert one(reference.bfloat16().float(), reference, rounding=rounding).passed is True
    assert one(torch.stack([large, -small], axis), reference, rounding=rounding).passed is False


def test_few_rows_of_boxes_and_scores() -> None:
    boxes, scores = X[:4, :4] * 300, X[:4, 4:6].sigmoid()
    reference = torch.cat([boxes, scores], -1)
    rounding = rounding_of([{"output": reference}], {"output": reference}, [{"output": reference.bfloat16().float()}])
    found = one(torch.cat([boxes, 1 - scores], -1), reference, rounding=rounding)
    assert found.passed is False
    assert "of dimension 1" in found.note


def test_elements_of_a_batch_are_no_parts() -> None:
    reference = X.clone()
    rounding = rounding_of([{"output": reference}], {"output": reference}, [{"output": reference.bfloat16().float()}])
    out = reference.clone()
    out[3] *= 1.2  # another expert for one row, say
    assert one(out, reference, rounding=rounding).passed is True
