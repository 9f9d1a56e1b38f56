"""However tiles are cut out, blended and added up, the result is the same; and what is counted is what was done."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpubench.hardware.facts import Device
from gpubench.measure.trace import Operator, trace_step
from gpubench.toggles.toggle import Scope
from gpubench.worker.prepare import apply_toggles, build, make_batches
from gpubench.worker.step import Stepper
from gpubench.workloads import tiling
from gpubench.workloads.catalog import TOGGLES
from gpubench.workloads.describe import describe
from gpubench.workloads.loader import load
from gpubench.workloads.tiling import Blending, apply_tiled
from gpubench.workloads.tiling_toggles import TILING_TOGGLES

FIELDS = [each.name for each in dataclasses.fields(Blending)]
WAYS = [[str(value) for value in toggle.values] for toggle in TILING_TOGGLES]
OTHERS = [(toggle.name.removeprefix("tile_"), str(list(toggle.values)[1])) for toggle in TILING_TOGGLES]


@pytest.fixture(autouse=True)
def _nothing_counted() -> None:
    tiling.ran.clear()
    torch.manual_seed(0)


def enlarge(x: Tensor) -> Tensor:
    return F.interpolate(x * 2 + 1, scale_factor=2.0)


def test_all_ways_give_the_same_and_what_the_whole_gives() -> None:
    image = torch.randn(2, 3, 17, 11, dtype=torch.float64)
    video = torch.randn(1, 2, 5, 9, 7, dtype=torch.float64)
    for ways in itertools.product(*WAYS):
        blending = Blending(*ways)
        kept = image.clone()
        up = apply_tiled(enlarge, image, tile=8, overlap=5, up=2, blending=blending)
        torch.testing.assert_close(up, enlarge(image), rtol=1e-12, atol=1e-12)
        frames = apply_tiled(lambda x: x[:, :, ::2], video, tile=5, overlap=2, axes=2, blending=blending)
        torch.testing.assert_close(frames, video[:, :, ::2], rtol=1e-12, atol=1e-12)
        volume = apply_tiled(lambda x: x, video, tile=4, overlap=1, tiles_per_call=4, blending=blending)
        torch.testing.assert_close(volume, video, rtol=1e-12, atol=1e-12)
        assert torch.equal(image, kept)  # nothing is computed in the input's place


def test_all_ways_give_the_same_of_a_function_that_sees_no_further_than_its_tile() -> None:
    image, kernel = torch.randn(1, 3, 24, 24, dtype=torch.float64), torch.randn(3, 3, 3, 3, dtype=torch.float64)
    outputs = [
        apply_tiled(lambda x: F.conv2d(x, kernel, padding=1), image, tile=10, overlap=4, blending=Blending(*ways))
        for ways in itertools.product(*WAYS)
    ]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("field", "way"), OTHERS)
def test_half_precision_is_summed_in_fp32_in_every_way(field: str, way: str, dtype: torch.dtype) -> None:
    x = torch.randn(1, 3, 20, 20, dtype=dtype)
    fast, other = (
        apply_tiled(torch.sigmoid, x, tile=8, overlap=4, blending=blending)
        for blending in (Blending(), Blending(**{field: way}))
    )
    assert other.dtype == dtype
    torch.testing.assert_close(other, fast, rtol=torch.finfo(dtype).eps, atol=0)


def test_gradients_are_the_same_in_every_way() -> None:
    x, gradients = torch.randn(1, 1, 20, 20, dtype=torch.float64), []
    for ways in itertools.product(*WAYS):
        scale = torch.full((), 0.7, dtype=torch.float64, requires_grad=True)
        apply_tiled(
            lambda t, scale=scale: (t * scale).exp(), x, tile=7, overlap=3, blending=Blending(*ways)
        ).sum().backward()
        gradients.append(scale.grad)
    torch.testing.assert_close(torch.stack(gradients), gradients[0].expand(len(gradients)), rtol=1e-12, atol=0)


def operators_of(blending: Blending) -> list[Operator]:
    """What a tiled function that does nothing calls."""
    x = torch.randn(1, 3, 16, 12)

    def step() -> Tensor:
        return apply_tiled(lambda t: t, x, tile=8, overlap=4, blending=blending)

    step()  # ramps are cached now
    return list(trace_step(step, cuda=False).operators)


@pytest.mark.parametrize("ways", [Blending(), *(Blending(**{field: way}) for field, way in OTHERS)])
def test_what_is_counted_is_what_ran(ways: Blending) -> None:
    """Six tiles of 8 x 8, twice."""
    operators = operators_of(ways)

    def calls(name: str, *shapes: tuple[int, ...]) -> int:
        return sum(each.name == f"aten::{name}" and each.shapes[: len(shapes)] == shapes for each in operators)

    tile, whole = (1, 3, 8, 8), (1, 3, 16, 12)
    assert tiling.ran == {(field, getattr(ways, field)): 12 for field in FIELDS}
    assert calls("cat") == (6 if ways.contiguity == "contiguous" else 0)
    assert calls("cos") == (0 if ways.ramp == "cached" else 14)  # two for each pair of neighbours
    assert calls("mul", tile, (8, 8)) == (6 if ways.blend == "mask" else 0)
    in_place = ways.arithmetic == "in_place"
    assert calls("mul_", tile) == (6 if in_place and ways.blend == "separable" else 0)
    if ways.output == "preallocated":
        assert calls("new_zeros") == 1
        assert calls("add_" if in_place else "add", tile, tile) == 6
        assert calls("copy_", tile, tile) == (0 if in_place else 6)
    else:
        assert calls("new_zeros") == 0
        assert calls("add_", whole, whole) == 5


def ran_with(**configuration: str | int) -> dict[str, dict[str, bool | None]]:
    """Of each toggle, whether it says of each of its values that this is what ran."""
    tiling.ran.clear()
    case = load("vae", "tiny", {"task": "decode"})
    context = build(case, "inference", torch.device("cpu"), dict(configuration), 0)
    apply_toggles(context, make_batches(case, 1, 1, 0))
    Stepper(context).run(0)
    return {
        toggle.name: {str(value): toggle.evidence(context, value).took_effect for value in toggle.values}
        for toggle in TILING_TOGGLES
    }


def test_each_way_proves_itself_and_an_idle_one_is_caught() -> None:
    firsts = {toggle.name: str(next(iter(toggle.values))) for toggle in TILING_TOGGLES}
    for changed in ({}, *({f"tile_{field}": way} for field, way in OTHERS)):
        asked = {**firsts, **changed}
        found = ran_with(tile_size=16, tile_overlap=8, **asked)
        for toggle in TILING_TOGGLES:
            assert found[toggle.name] == {str(value): value == asked[toggle.name] for value in toggle.values}


def test_a_tile_as_large_as_the_input_is_no_tile() -> None:
    assert not any(any(values.values()) for values in ran_with(tile_size=32, tile_overlap=8).values())


def test_the_toggles_are_the_fields_of_a_blending() -> None:
    assert [toggle.name for toggle in TILING_TOGGLES] == [f"tile_{field}" for field in FIELDS]
    assert Blending() == Blending(*(ways[0] for ways in WAYS)) == Blending.of({})
    for field, way in OTHERS:
        assert Blending.of({f"tile_{field}": way, "tile_size": 8}) == Blending(**{field: way})


def test_without_tiles_only_the_first_values_are_allowed() -> None:
    case = load("vae", "tiny")
    assert TOGGLES["vae"] == tuple(toggle.name for toggle in case.workload.toggles)
    device = Device(kind="cpu", name="A CPU", cores=2)
    inference, training = (
        Scope(device=device, workload=describe(case, mode), torch_version=(2, 13)) for mode in ("inference", "training")
    )
    for toggle in TILING_TOGGLES:
        first, other = toggle.values
        assert toggle.applies(training) == "only inference is tiled"
        assert toggle.applies(inference) is None
        assert toggle.unmet(inference, first, {"tile_size": 0}) is None
        assert toggle.unmet(inference, other, {"tile_size": 16}) is None
        assert toggle.unmet(inference, other, {"tile_size": 0}) == (
            f"does nothing beside tile_size=0; only {first} is allowed there"
        )
    assert all(values[next(iter(values))] for values in ran_with(tile_size=0, tile_overlap=8).values())
