"""The causal video autoencoder: its published size, that it is causal, and that chunks give what the whole gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gpubench.errors import GpubenchError
from gpubench.measure.trace import trace_step
from gpubench.toggles import get
from gpubench.worker.prepare import apply_toggles, build, make_batches
from gpubench.worker.step import Stepper
from gpubench.workloads import video_vae
from gpubench.workloads.catalog import TOGGLES
from gpubench.workloads.causal_vae import Autoencoder, Memory
from gpubench.workloads.loader import load
from gpubench.workloads.video_vae import SIZES, decode, encode
from gpubench.workloads.workload import Batch, Workload


def made(**parameters: str) -> tuple[Workload, nn.Module, Batch]:
    workload = load("video_vae", "tiny", parameters).workload
    torch.manual_seed(0)
    model = workload.build().eval()
    return workload, model, workload.inputs(1, torch.Generator().manual_seed(1))


def expected_flops(frames: int, side: int) -> tuple[int, int]:
    """Of encoder and decoder, from the shapes of the published weights and the pixels that each is applied to."""
    latent = 1 + (frames - 1) // 4
    pixels = [count * (side >> level) ** 2 for level, count in enumerate((frames, frames, (frames + 1) // 2, latent))]
    inner = (latent - 1) * (side // 8) ** 2  # of the latent frames after the first

    def conv(channels: int, out: int, taps: int, positions: int) -> int:
        return 2 * channels * out * taps * positions

    def residual(channels: int, out: int, positions: int) -> int:
        shortcut = conv(channels, out, 1, positions) if channels != out else 0
        return conv(channels, out, 27, positions) + conv(out, out, 27, positions) + shortcut

    low = pixels[3]
    middle = 2 * residual(384, 384, low) + conv(384, 4 * 384, 1, low) + 4 * low * (side // 8) ** 2 * 384
    encoder = (
        conv(3, 96, 27, pixels[0]) + 2 * residual(96, 96, pixels[0]) + conv(96, 96, 9, pixels[1])
        + residual(96, 192, pixels[1]) + residual(192, 192, pixels[1])
        + conv(192, 192, 9, frames * (side // 4) ** 2) + conv(192, 192, 3, 2 * inner * 4)
        + residual(192, 384, pixels[2]) + residual(384, 384, pixels[2])
        + conv(384, 384, 9, (frames + 1) // 2 * (side // 8) ** 2) + conv(384, 384, 3, inner)
        + 2 * residual(384, 384, low) + middle + conv(384, 32, 27, low) + conv(32, 32, 1, low)
    )  # fmt: skip
    decoder = (
        conv(16, 16, 1, low) + conv(16, 384, 27, low) + middle + 3 * residual(384, 384, low)
        + conv(384, 768, 3, inner) + conv(384, 192, 9, pixels[2])
        + residual(192, 384, pixels[2]) + 2 * residual(384, 384, pixels[2])
        + conv(384, 768, 3, 2 * inner * 4) + conv(384, 192, 9, pixels[1] )
        + 3 * residual(192, 192, pixels[1]) + conv(192, 96, 9, pixels[0])
        + 3 * residual(96, 96, pixels[0]) + conv(96, 3, 27, pixels[0])
    )  # fmt: skip
    return encoder, decoder


def test_base_is_the_published_model() -> None:
    config = SIZES["base"]
    with torch.device("meta"):
        model = Autoencoder(config)
        assert sum(parameter.numel() for parameter in model.parameters()) == 126_892_531  # Wan2.1's published weights
        video = torch.empty(1, 3, config.frames, config.resolution, config.resolution)
        counted = []
        for half in (model.encoder, model.decoder):
            with FlopCounterMode(display=False) as counter:
                video = half(video)[:, :16]
            counted.append(counter.get_total_flops())
    assert tuple(counted) == expected_flops(config.frames, config.resolution)


def test_the_first_frame_alone_and_four_for_each_after_it() -> None:
    for frames in (5, 9, 17):
        workload, model, (video, latents) = made(frames=str(frames))
        assert (workload.item, workload.items_per_sample, video.shape) == ("frame", frames, (1, 3, frames, 32, 32))
        with torch.inference_mode():
            mean = encode(model, video, {})
            assert mean.shape == latents.shape == (1, 16, 1 + (frames - 1) // 4, 4, 4)
            assert decode(model, mean, {}).shape == video.shape
    with torch.inference_mode():  # the first frame is a video too
        alone = model.get_submodule("encoder")(video[:, :, :1], Memory())[:, :16]
    torch.testing.assert_close(alone, mean[:, :, :1])


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_no_frame_sees_later_ones(half: str) -> None:
    _, model, (video, latents) = made(frames="13")
    part = model.get_submodule(half)
    x, moment, first = (video, 9, 3) if half == "encoder" else (latents, 3, 9)  # one frame, then groups of four
    changed = x.clone()
    changed[:, :, moment] += 1
    with torch.inference_mode():
        difference = (part(changed) - part(x)).abs().amax((0, 1, 3, 4))
    assert not difference[:first].any()
    assert difference[first:].all()


@pytest.mark.parametrize(("chunk", "tile"), [(4, 0), (8, 16)])
def test_chunks_give_what_all_frames_at_once_give(chunk: int, tile: int) -> None:
    _, model, (video, latents) = made(frames="17")
    model.double()
    tiles = {"tile_size": tile, "tile_overlap": 8}
    lengths: list[int] = []
    model.get_submodule("decoder").register_forward_pre_hook(lambda _, x: lengths.append(x[0].shape[2]))
    with torch.inference_mode():
        for function, x in ((encode, video.double()), (decode, latents.double())):
            whole = function(model, x, tiles)
            lengths.clear()
            parts = function(model, x, {**tiles, "tile_frames": chunk})
            torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    assert lengths == [1, *[chunk // 4] * (16 // chunk)] * (1 if not tile else 9)


def test_without_memory_chunks_would_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, (video, _) = made(frames="9")
    monkeypatch.setattr(Memory, "recall", lambda memory: torch.zeros_like(memory.before.pop(0)))
    with torch.inference_mode():
        assert (encode(model, video, {"tile_frames": 4}) - encode(model, video, {})).abs().max() > 0.01


def test_nothing_of_a_chunk_stays_but_the_frames_that_its_layers_keep() -> None:
    _, model, (video, _) = made(frames="9")
    kept: list[Tensor] = []

    def look(_: nn.Module, inputs: tuple[Tensor, Memory]) -> None:
        kept[:] = inputs[1].before

    model.get_submodule("encoder").register_forward_pre_hook(look)
    with torch.inference_mode():
        encode(model, video, {"tile_frames": 4})
    assert kept
    assert all(each.untyped_storage().nbytes() == each.nbytes for each in kept)
    assert {each.shape[2] for each in kept} == {1, 2}


def test_tiles_see_their_part_alone_and_their_seams_are_blended() -> None:
    workload, model, batch = made(resolution="40")
    seen: dict[str, set[tuple[int, ...]]] = {"encoder": set(), "decoder": set()}
    for name, shapes in seen.items():
        model.get_submodule(name).register_forward_pre_hook(lambda _, x, shapes=shapes: shapes.add(tuple(x[0].shape)))
    with torch.inference_mode():
        whole = workload.infer(model, batch, {})
        for shapes in seen.values():
            shapes.clear()
        tiled = workload.infer(model, batch, {"tile_size": 24, "tile_overlap": 8})
    assert seen == {"encoder": {(1, 3, 5, 24, 24)}, "decoder": {(1, 16, 2, 3, 3)}}
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)


@pytest.mark.slow  # compiles four graphs
def test_with_chunks_each_half_is_one_more_graph_for_the_first_frame() -> None:
    workload, model, batch = made(frames="13")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch.inference_mode():
        expected = workload.infer(model, batch, {})
        for name in workload.compile_targets:
            model.get_submodule(name).compile(backend="eager", fullgraph=True)
        torch.testing.assert_close(workload.infer(model, batch, {"tile_frames": 4}), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4


def test_tile_frames_proves_itself_and_an_idle_one_is_caught() -> None:
    case = load("video_vae", "tiny")
    assert tuple(toggle.name for toggle in case.workload.toggles) == TOGGLES["video_vae"]
    chosen = case.workload.toggles[0]
    assert list(chosen.values) == [0, 4]
    for asked in chosen.values:
        context = build(case, "inference", torch.device("cpu"), {"tile_frames": asked}, 0)
        apply_toggles(context, make_batches(case, 1, 1, 0))
        video_vae.ran.clear()  # what other tests of this process ran
        Stepper(context).run(0)
        assert {each: chosen.evidence(context, each).took_effect for each in chosen.values} == {
            each: each == asked for each in chosen.values
        }


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"task": "encod"}, "Unknown task of video_vae 'encod'. Did you mean 'encode'?"),
        ({"resolution": "100"}, "resolution is 100; it must be a multiple of 8 and at least 16"),
        ({"frames": "16"}, "frames is 16; it must be at least 5, and one more than a multiple of 4."),
        ({"frames": "16"}, "The nearest allowed value is 17."),
        ({"frames": "1"}, "The nearest allowed value is 5."),
    ],
)
def test_values_that_do_not_fit(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(GpubenchError) as caught:
        load("video_vae", "tiny", parameters)
    assert message in str(caught.value)


def test_the_side_of_a_tile_is_no_number_of_frames() -> None:
    case = load("video_vae", "tiny", {"frames": "33"})
    toggle = get("tile_size")
    for asked in (0, 16):
        context = build(case, "inference", torch.device("cpu"), {"tile_size": asked, "tile_overlap": 8}, 0)
        apply_toggles(context, make_batches(case, 1, 1, 0))
        stepper = Stepper(context)
        context.trace = trace_step(lambda stepper=stepper: stepper.run(0), cuda=False)
        proof = toggle.evidence(context, asked)
        assert proof.took_effect is True, proof
