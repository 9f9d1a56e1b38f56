"""batch_size, tile_size and tile_overlap: what changes the problem itself."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from gpubench.errors import GpubenchError
from gpubench.toggles import parse_value
from gpubench.toggles.input.batch_size import BATCH_SIZE
from gpubench.toggles.input.tile_overlap import TILE_OVERLAP
from gpubench.toggles.input.tile_size import TILE_SIZE
from gpubench.toggles.toggle import EvidenceResult

SIDE = 32


def infer_tiled(model: nn.Module, batch, options) -> list[torch.Tensor]:
    """Runs the model on square tiles of `tile_size`, or on the whole image."""
    image, tile = batch[0], options.get("tile_size", 0) or SIDE
    stride = tile - (options.get("tile_overlap", 0) if tile < SIDE else 0)
    starts = range(0, SIDE - tile + 1, stride)
    return [model(image[:, :, top : top + tile, left : left + tile]) for top in starts for left in starts]


def tiled(kit):
    return kit.workload(
        inputs=kit.images(side=SIDE),
        infer=infer_tiled,
        resolution=SIDE,
        tiling=kit.Tiling(sizes=(8, 16), multiple=4, overlap=4),
    )


def where(kit, **changes):
    facts = {"tile_sizes": [8, 16, 32], "tile_multiple": 4, "tile_overlap": 4, "resolution": SIDE}
    return kit.scope(**(facts | changes))


@pytest.mark.parametrize("value", [1, 3])
def test_batches_have_the_size(kit, value):
    context = kit.run({"batch_size": value})
    assert BATCH_SIZE.evidence(context, value) == EvidenceResult(
        took_effect=True, detail=f"the inputs' first dimension is {value}"
    )


def test_batches_of_another_size_are_caught(kit):
    context = kit.run({"batch_size": 3})
    context.batches = [(context.batches[0][0][:2], context.batches[0][1])]
    assert BATCH_SIZE.evidence(context, 3) == EvidenceResult(
        took_effect=False, detail="the first dimension of inputs is 2"
    )


def test_batches_without_a_dimension_are_unknown(kit):
    context = kit.prepare({"batch_size": 3})
    context.batches = [(torch.ones(()),)]
    assert BATCH_SIZE.evidence(context, 3).took_effect is None


def test_inputs_of_another_batch_size_are_caught(kit):
    assert BATCH_SIZE.evidence(kit.prepare({"batch_size": 3}), 4).took_effect is False


def test_the_workloads_own_batch_size_is_the_baseline(kit):
    assert BATCH_SIZE.baseline(kit.scope(batch_size=6)) == 6


@pytest.mark.parametrize("value", [0, 8, 16])
def test_convolutions_see_tiles(kit, value):
    context = kit.run({"tile_size": value, "tile_overlap": 4}, tiled(kit))
    assert context.options == {"tile_size": value, "tile_overlap": 4}
    proof = TILE_SIZE.evidence(context, value)
    assert proof.took_effect is True, proof
    assert f"input was {value or SIDE} px" in proof.detail
    assert TILE_OVERLAP.evidence(context, 4).took_effect is True


@pytest.mark.parametrize("toggle", [TILE_SIZE, TILE_OVERLAP], ids=lambda toggle: toggle.name)
def test_an_apply_that_does_nothing_is_caught(kit, toggle):
    faulty = dataclasses.replace(toggle, apply=lambda context, value: None)
    configuration = {"tile_size": 8, "tile_overlap": 4}
    context = kit.run(configuration, tiled(kit), replace={toggle.name: faulty})
    assert toggle.evidence(context, configuration[toggle.name]) == EvidenceResult(
        took_effect=False, detail=f"the workload received {toggle.name} None"
    )


@pytest.mark.parametrize("toggle", [TILE_SIZE, TILE_OVERLAP], ids=lambda toggle: toggle.name)
def test_a_workload_that_ignores_its_options_is_caught(kit, toggle):
    deaf = dataclasses.replace(tiled(kit), infer=lambda model, batch, options: model(batch[0]))
    configuration = {"tile_size": 8, "tile_overlap": 4}
    proof = toggle.evidence(kit.run(configuration, deaf), configuration[toggle.name])
    assert proof.took_effect is False
    assert "the longest side of a convolution's input was 32 px, the tile's is 8 px" in proof.detail


def test_a_whole_input_that_was_tiled_is_caught(kit):
    always = dataclasses.replace(
        tiled(kit), infer=lambda model, batch, options: infer_tiled(model, batch, {"tile_size": 8})
    )
    assert TILE_SIZE.evidence(kit.run({"tile_size": 0}, always), 0).took_effect is False


def test_without_a_trace_or_convolutions_tiles_are_unknown(kit):
    assert TILE_SIZE.evidence(kit.prepare({"tile_size": 8}, tiled(kit)), 8).took_effect is None
    work = dataclasses.replace(tiled(kit), build=nn.ReLU)
    proof = TILE_SIZE.evidence(kit.run({"tile_size": 8}, work), 8)
    nothing = "the profiled step has no convolution input that shows the tile size"
    assert proof == EvidenceResult(took_effect=None, detail=nothing)
    assert TILE_SIZE.evidence(kit.run({"tile_size": 0}, work), 0) == EvidenceResult(
        took_effect=True, detail=f"the workload received tile_size 0; {nothing}"
    )


def test_only_tiles_smaller_than_the_input_are_offered(kit):
    assert TILE_SIZE.offered(where(kit)) == (0, 8, 16)
    assert TILE_SIZE.offered(where(kit, resolution=None)) == (0, 8, 16, 32)
    assert TILE_SIZE.baseline(where(kit)) == 0


def test_the_workloads_own_overlap_is_the_baseline(kit):
    assert TILE_OVERLAP.offered(where(kit)) == (4, 8)  # 2 is no multiple of 4
    assert TILE_OVERLAP.offered(where(kit, tile_multiple=1)) == (4, 2, 8)


def test_tiles_that_cannot_be_cut_have_their_sentence(kit):
    scope = where(kit)
    assert TILE_SIZE.unmet(scope, 16) is None
    assert TILE_SIZE.unmet(scope, 0) is None
    assert TILE_SIZE.unmet(scope, 10) == "needs to be a multiple of 4 for workload net; the nearest are 8 and 12"
    assert TILE_SIZE.unmet(scope, 32) == (
        "is not smaller than the input's longer side of 32 px; tile_size=0 runs it whole"
    )


def test_an_overlap_needs_tiles_that_are_larger(kit):
    def unmet(value: int, **configuration) -> str | None:
        return TILE_OVERLAP.unmet(where(kit), value, configuration)

    assert unmet(8) is None
    assert unmet(8, tile_size=16) is None
    assert unmet(4, tile_size=0) is None
    assert unmet(8, tile_size=0) == "does nothing beside tile_size=0; only 4 is allowed there"
    assert unmet(8, tile_size=8) == "needs to be smaller than the tile side of 8 px"
    assert unmet(6, tile_size=8) == "needs to be a multiple of 4 for workload net; the nearest are 4 and 8"


def test_a_tile_size_that_is_no_multiple_is_an_error_at_the_border(kit):
    with pytest.raises(GpubenchError, match="tile_size=10 is not allowed: it needs to be a multiple of 4") as error:
        parse_value(TILE_SIZE, "10", where(kit))
    assert error.value.hint == "Offered: 0, 8, 16. Allowed: whole numbers from 0 to 65536."
    assert parse_value(TILE_SIZE, "12", where(kit)) == 12


def test_tiles_are_for_inference_of_workloads_that_can_be_cut(kit):
    for toggle in (TILE_SIZE, TILE_OVERLAP):
        assert toggle.applies(where(kit)) is None
        assert toggle.applies(kit.scope()) == "workload net cannot be cut into tiles"
        assert toggle.applies(where(kit, mode="training")) == "only inference is tiled"
