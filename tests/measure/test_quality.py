"""Wrong outputs are caught whatever way they are wrong; right ones pass."""

import pytest
import torch

from gpubench.measure.quality import compare, compare_training

REFERENCE = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))


def check(outputs: torch.Tensor, tolerance: float = 1e-3, reference: torch.Tensor = REFERENCE):  # type: ignore[no-untyped-def]
    return compare({"output": outputs}, {"output": reference}, tolerance=tolerance, what="reference")


def test_the_same_output_passes() -> None:
    quality = check(REFERENCE.clone())
    assert quality.passed is True
    assert quality.relative_error == 0.0
    assert quality.norm_ratio == pytest.approx(1.0)


def test_rounding_to_bf16_passes_with_its_tolerance_and_not_with_fp32s() -> None:
    rounded = REFERENCE.bfloat16()
    assert check(rounded, 6e-2).passed is True
    assert check(rounded, 1e-4).passed is False


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda x: x * 2, "norm"),
        (lambda x: torch.zeros_like(x), "relative error"),
        (lambda x: -x, "cosine"),
        (lambda x: x.roll(1, 0), "relative error"),
        (lambda x: x.index_fill(1, torch.tensor([3]), float("nan")), "not finite"),
        (lambda x: x.index_fill(1, torch.tensor([3]), float("inf")), "not finite"),
        (lambda x: x[:, :50], "shape"),
        (lambda x: x.long(), "int64"),
        (lambda x: x * 1.08, "norm"),
    ],
)
def test_a_spoiled_output_fails(spoil, reason: str) -> None:  # type: ignore[no-untyped-def]
    quality = check(spoil(REFERENCE.clone()), tolerance=0.06)
    assert quality.passed is False
    assert reason in quality.reason


def test_nan_everywhere_is_never_equal() -> None:
    nan = torch.full_like(REFERENCE, float("nan"))
    assert check(nan).passed is False
    both = check(nan, reference=nan)
    assert (both.passed, both.reason) == (None, "400 of 400 values are NaN in the reference too")


def test_a_missing_output_fails() -> None:
    quality = compare({}, {"output": REFERENCE}, tolerance=1.0, what="reference")
    assert quality.passed is False
    assert "output" in quality.reason


def test_integer_outputs_may_differ_as_often_as_the_tolerance_says() -> None:
    classes = torch.arange(1000)
    one_off = classes.clone()
    one_off[0] = 5
    assert check(one_off, 1e-2, classes).passed is True
    assert check(classes + 1, 1e-2, classes).passed is False


def train(losses: list[float], update: torch.Tensor):  # type: ignore[no-untyped-def]
    return compare_training(
        losses, [1.0, 0.9, 0.8], {"weight": update}, {"weight": REFERENCE}, tolerance=0.05, what="reference"
    )


def test_training_like_the_references_passes() -> None:
    assert train([1.0, 0.9, 0.801], REFERENCE * 1.01).passed is True


def test_an_optimizer_that_does_nothing_is_caught() -> None:
    quality = train([1.0, 0.9, 0.8], torch.zeros_like(REFERENCE))
    assert quality.passed is False
    assert "moved 0.000 times" in quality.reason


def test_updates_that_were_rounded_away_are_caught() -> None:
    update = REFERENCE.clone()
    update.flatten()[::8] = 0
    quality = train([1.0, 0.9, 0.8], update)
    assert quality.lost_update_share == pytest.approx(1 / 8)
    assert quality.passed is False
    assert "rounded away" in quality.reason
    update = REFERENCE.clone()
    update.flatten()[::80] = 0
    assert train([1.0, 0.9, 0.8], update).passed is True


@pytest.mark.parametrize(
    ("losses", "update"),
    [
        ([1.0, 0.9, float("nan")], REFERENCE),
        ([1.0, 0.9, 0.7], REFERENCE),
        ([1.0, 0.9, 0.8], -REFERENCE),
        ([1.0, 0.9, 0.8], REFERENCE * 3),
    ],
)
def test_training_that_went_elsewhere_fails(losses: list[float], update: torch.Tensor) -> None:
    assert train(losses, update).passed is False


def test_complex_outputs_are_compared_as_numbers() -> None:
    chance = torch.Generator().manual_seed(0)
    expected = {"output": torch.randn(8, 8, dtype=torch.complex64, generator=chance)}
    close = {"output": expected["output"] * (1 + 1e-5)}
    assert compare(close, expected, tolerance=1e-3, what="reference").passed is True
    turned = {"output": expected["output"] * 1j}
    assert compare(turned, expected, tolerance=1e-3, what="reference").passed is False


def test_training_without_a_finite_reference_is_undecided() -> None:
    nan = float("nan")
    found = compare_training(
        [1.0, nan], [1.0, nan], {"w": REFERENCE}, {"w": REFERENCE}, tolerance=0.05, what="reference"
    )
    assert found.passed is None
    assert "the reference's own losses or parameters are not finite (losses 1, nan)" in found.reason
    lost = REFERENCE * nan
    found = compare_training([1.0], [1.0], {"w": REFERENCE}, {"w": lost}, tolerance=0.05, what="reference")
    assert found.passed is None


def test_training_in_which_nothing_moves_is_undecided() -> None:
    still = {"weight": torch.zeros(4)}
    found = compare_training([1.0], [1.0], still, still, tolerance=0.05, what="reference")
    assert (found.passed, found.reason.partition(",")[0]) == (None, "no parameter moves in these steps")
    assert compare_training([1.0], [1.0], {"weight": torch.ones(4)}, still, tolerance=0.05, what="r").passed is False


def test_training_that_overflows_says_what_is_not_finite() -> None:
    update = REFERENCE.clone()
    update[0, 0] = float("inf")
    found = train([1.0, 0.9, 0.8], update)
    assert found.passed is False
    assert "1 losses or parameters are not finite" in found.reason
    assert "above inf" not in found.reason
    assert "nan is above" not in found.reason
