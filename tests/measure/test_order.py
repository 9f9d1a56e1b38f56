"""Outputs that are sorted or selected are compared as the workload says, and the sentence says how to say it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gpubench.errors import GpubenchError
from gpubench.measure.order import displaced, how, names
from gpubench.measure.quality import judge
from gpubench.measure.values import Rounding, rounding_of
from gpubench.report.model import OutputQuality
from gpubench.workloads.workload import Workload

CHANCE = torch.Generator().manual_seed(0)
BOXES = torch.rand(40, 4, generator=CHANCE) * 300
IDS = torch.stack([torch.randperm(1000, generator=CHANCE)[:20] for _ in range(8)])  # [B, k]


def one(
    out: torch.Tensor, ref: torch.Tensor, compare: Any = "values", tolerance: float = 0.06, **more: Any
) -> OutputQuality:
    return judge({"output": out}, {"output": ref}, tolerance=tolerance, compare=compare, **more)[0]


def swapped(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Each entry changes places with its neighbour."""
    order = torch.arange(tensor.shape[axis]).reshape(-1, 2).flip(1).flatten()
    return tensor.index_select(axis, order)


@pytest.mark.parametrize(
    ("tensor", "axis"),
    [(BOXES, 0), (BOXES.expand(2, 40, 4), 1), (IDS, 1), (IDS[0], 0), (torch.complex(BOXES, BOXES), 0)],
)
def test_rows_in_another_order(tensor: torch.Tensor, axis: int) -> None:
    out = swapped(tensor, axis)
    plain = one(out, tensor)
    assert plain.passed is False
    assert plain.note.endswith("near-ties swap), give the workload compare={'output': 'set'}")
    assert one(out, tensor, "set").passed is True
    assert one(out * 2, tensor, "set").passed is False
    assert "have no counterpart" in one(out + 1000, tensor, "set").note
    assert "another order" not in one(out + 1000, tensor).note


def test_numbers_that_are_no_rows_get_no_such_advice() -> None:
    scores = torch.randn(32, 10, generator=CHANCE).softmax(-1)
    assert "another order" not in one(scores.flip(-1), scores).note
    off = BOXES.clone()
    off[:2] += 100  # the others are where they were
    assert "another order" not in one(off, BOXES).note


def test_the_number_of_selected_rows_may_differ_a_little() -> None:
    fewer = BOXES[1:]
    assert one(fewer, BOXES).note == (
        "it has shape [39, 4], the reference's is [40, 4]; where the step selects rows and their number may differ, "
        "give the workload compare='set'"
    )
    assert one(fewer, BOXES, "set").passed is True
    assert one(BOXES[20:], BOXES, "set").passed is False
    assert one(BOXES[:0], BOXES, "set").passed is False
    assert one(BOXES[:0], BOXES[:0], "set").passed is None
    assert one(torch.tensor(2.0), torch.tensor(2.0), "set").passed is True


@pytest.mark.slow
def test_large_sets_are_compared_in_part() -> None:
    many = torch.randn(20_000, 3, generator=CHANCE)
    assert one(many.flip(0), many, "set", 1e-3).passed is True
    assert one(many.flip(0) + 0.5, many, "set", 1e-3).passed is False


def test_the_order_of_ids_and_of_what_scores_sort() -> None:
    scores = torch.randn(8, 100, generator=CHANCE)
    ids = scores.argsort(-1)
    for ranked in (ids, scores):
        assert one(swapped(ranked, 1), ranked, "rank", 1e-3).passed is False
        assert one(ranked.flip(-1), ranked, "rank").passed is False
    near = ids[:, [1, 0, *range(2, 100)]]
    assert one(near, ids, "rank", 1e-3).passed is True  # one swap of neighbours a list
    assert one(scores * 3 + 1, scores, "rank", 1e-3).relative_error == 0.0
    assert displaced(torch.tensor([5, 6]), torch.tensor([1, 2]))[0] == 1.0  # other ids altogether
    assert one(torch.tensor([[5], [6]]), torch.tensor([[1], [2]]), "rank").passed is False


def test_the_same_list_is_right_even_where_entries_repeat() -> None:
    """Lists are filled up to a length, and the tokens of a text come again."""
    filled = torch.cat([IDS, torch.full((8, 12), -1)], dim=1)
    for ranked in (filled, torch.randint(0, 4, (8, 50), generator=CHANCE), torch.tensor([[True, False, True, True]])):
        assert one(ranked, ranked, "rank", 1e-3).relative_error == 0.0
    assert one(filled.flip(-1), filled, "rank").passed is False
    assert one(filled.where(filled >= 0, 5000), filled, "rank").passed is False
    assert one(IDS[:, :1].expand(8, 20), IDS, "rank").passed is False


def test_where_there_is_no_order_values_are_compared() -> None:
    for ref in (torch.tensor(3.0), torch.tensor([[3.0], [4.0]]), torch.randn(8, 4, dtype=torch.complex64)):
        assert one(ref, ref, "rank", 1e-3).passed is True
        assert one(ref * 2, ref, "rank").passed is False
        assert rounding_of([{"o": ref}], {"o": ref}, [{"o": ref * 1.01}], "rank")["o"].error > 0


def test_scores_of_eight_bits_put_in_order_too() -> None:
    scores = torch.linspace(-4, 4, 12).to(torch.float8_e4m3fn)
    assert one(scores, scores.float(), "rank", 1e-3).passed is True
    assert one(scores.float().flip(0).to(torch.float8_e4m3fn), scores.float(), "rank").passed is False


def test_selections_that_rounding_alone_changes_are_undecided() -> None:
    out = torch.cat([BOXES[12:], BOXES[:12] + 500])
    assert one(out, BOXES, "set").passed is False
    assert one(out, BOXES, "set", rounding={"output": Rounding(error=0.2)}).passed is None


def test_a_key_is_a_name_or_a_part_of_it() -> None:
    compare = {"boxes": "set", "0.boxes": "rank", "output.scores": "set"}
    assert [how(name, compare) for name in ("output.1.boxes", "output.0.boxes", "output.scores", "output.boxes2")] == [
        "set",
        "rank",
        "set",
        "values",
    ]
    assert how("anything", "set") == "set"
    assert not names("box", "output.boxes")


def test_another_word_is_refused() -> None:
    with pytest.raises(GpubenchError, match="compare takes values, set, rank"):
        Workload(
            name="w", item="x", batch_size=1, build=torch.nn.Identity, inputs=lambda b, g: (), compare={"x": "sets"}
        )


def test_each_column_of_a_row_counts() -> None:
    scores = torch.rand(40, 1, generator=CHANCE)
    found = torch.cat([BOXES, scores], -1)
    assert one(torch.cat([BOXES, 1 - scores], -1), found, "set").passed is False
    assert one(torch.cat([BOXES * 1.005, scores * 1.005], -1).flip(0), found, "set").passed is True


@pytest.mark.parametrize("fill", [math.inf, -1e9, math.nan])
def test_what_pads_a_set_hides_no_row(fill: float) -> None:
    padded = torch.cat([BOXES, torch.full((8, 4), fill)])
    assert one(padded.flip(0), padded, "set").passed is True
    assert one(torch.cat([-BOXES, torch.full((8, 4), fill)]), padded, "set").passed is False
    assert one(torch.cat([BOXES, torch.zeros(8, 4)]), padded, "set").passed is False


@pytest.mark.parametrize("compare", ["set", "rank"])
def test_a_selection_of_zeros_is_not_checked(compare: str) -> None:
    found = one(torch.zeros(4, 5), torch.zeros(4, 5), compare)
    assert (found.passed, found.note) == (
        None,
        "all its values are zero: give the model weights or inputs that change it",
    )
    assert one(torch.ones(4, 5), torch.zeros(4, 5), "set").passed is False
