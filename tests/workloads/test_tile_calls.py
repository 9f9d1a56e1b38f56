"""Several tiles in a call give what one in a call gives; and what is counted is what was done."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gpubench.hardware.facts import Device
from gpubench.toggles.toggle import Scope
from gpubench.worker.prepare import apply_toggles, build, make_batches
from gpubench.worker.step import Stepper
from gpubench.workloads import tiling
from gpubench.workloads.catalog import TOGGLES
from gpubench.workloads.describe import describe
from gpubench.workloads.loader import load
from gpubench.workloads.tiling import apply_tiled
from gpubench.workloads.tiling_toggles import TILE_BATCH, TILE_CALLS, TILE_STREAMS


@pytest.fixture(autouse=True)
def _nothing_counted() -> None:
    tiling.called.clear()


def ran_with(reference: str, **configuration: int) -> tuple[torch.Tensor, dict[str, dict[int, bool | None]]]:
    """The output, and of each toggle whether it says of each of its values that this is what ran."""
    tiling.called.clear()
    case = load(reference, "tiny")
    context = build(case, "inference", torch.device("cpu"), dict(configuration), 0)
    apply_toggles(context, make_batches(case, 2, 1, 0))
    stepper = Stepper(context)
    stepper.run(0)
    proofs = {
        toggle.name: {value: toggle.evidence(context, value).took_effect for value in toggle.values}
        for toggle in TILE_CALLS
    }
    return stepper.output, proofs


@pytest.mark.parametrize("reference", ["vae", "video_vae"])
def test_each_value_proves_itself_and_an_idle_one_is_caught(reference: str) -> None:
    assert {toggle.name for toggle in TILE_CALLS} < set(TOGGLES[reference])
    one, _ = ran_with(reference, tile_size=16, tile_overlap=8)
    for asked in TILE_BATCH.values:
        output, found = ran_with(reference, tile_size=16, tile_overlap=8, tile_batch=int(asked))
        torch.testing.assert_close(output, one, rtol=1e-4, atol=1e-5)
        assert found["tile_batch"] == {value: value == asked for value in TILE_BATCH.values}
        assert found["tile_streams"] == {1: True, 2: False, 4: False}


def test_calls_are_counted_with_their_tiles() -> None:
    seen: list[int] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return F.interpolate(x, scale_factor=2.0)

    x = torch.randn(2, 3, 16, 12)  # six tiles of 8 x 8
    whole = F.interpolate(x, scale_factor=2.0)
    for tiles, calls in ((1, 6), (4, 2), (8, 1)):  # no more than there are
        tiling.called.clear()
        seen.clear()
        tiled = apply_tiled(function, x, tile=8, overlap=4, up=2, tiles_per_call=tiles)
        torch.testing.assert_close(tiled, whole)
        at_once = min(tiles, 6)
        assert (tiling.called, seen) == ({(at_once, 0): calls}, [2 * at_once] * calls)


def test_streams_are_a_gpus_and_change_nothing_on_a_cpu() -> None:
    x = torch.randn(1, 1, 16, 16)
    tiled = apply_tiled(lambda t: t + 1, x, tile=8, overlap=4, streams=4)
    torch.testing.assert_close(tiled, x + 1)
    assert set(tiling.called) == {(1, 0)}


def test_without_tiles_only_the_first_values_are_allowed() -> None:
    case = load("vae", "tiny")
    devices = [Device(kind="cpu", name="A CPU"), Device(kind="cuda", name="A GPU")]
    (cpu, _), (gpu, training) = (
        [
            Scope(device=device, workload=describe(case, mode), torch_version=(2, 13))
            for mode in ("inference", "training")
        ]
        for device in devices
    )
    assert TILE_BATCH.applies(cpu) is None and TILE_STREAMS.applies(gpu) is None
    assert TILE_STREAMS.applies(cpu) == "streams are CUDA's, this is A CPU"
    for toggle in TILE_CALLS:
        assert toggle.applies(training) == "only inference is tiled"
        assert toggle.unmet(gpu, 4, {"tile_size": 16}) is None
        assert toggle.unmet(gpu, 4, {"tile_size": 0}) == "does nothing beside tile_size=0; only 1 is allowed there"
    _, found = ran_with("vae", tile_size=0)
    assert all(values[1] for values in found.values())


def test_several_tiles_in_a_call_are_no_views() -> None:
    case = load("vae", "tiny")
    device = Device(kind="cpu", name="A CPU")
    scope = Scope(device=device, workload=describe(case, "inference"), torch_version=(2, 13))
    reason = "cannot be combined with tile_contiguity=views: several tiles are put together by a copy"
    for tiles, expected in ((1, None), (2, reason), (4, reason)):
        assert TILE_BATCH.unmet(scope, tiles, {"tile_size": 16, "tile_contiguity": "views"}) == expected


def test_streams_do_not_share_the_memory_of_a_cuda_graph() -> None:
    case = load("vae", "tiny")
    scope = Scope(device=Device(kind="cuda", name="A GPU"), workload=describe(case, "inference"), torch_version=(2, 13))
    beside = {"tile_size": 16, "compile": "reduce-overhead"}
    assert TILE_STREAMS.unmet(scope, 1, beside) is None
    assert TILE_STREAMS.unmet(scope, 2, {**beside, "compile": "default"}) is None
    assert str(TILE_STREAMS.unmet(scope, 2, beside)).startswith(
        "cannot be combined with compile=reduce-overhead: a CUDA"
    )
