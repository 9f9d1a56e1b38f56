"""Text to image: its published size, what its loop computes, and that text and noise show in the image."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gpubench.errors import GpubenchError
from gpubench.workloads.conditional_unet import UNet, waves
from gpubench.workloads.diffusion import LatentDiffusion, shares
from gpubench.workloads.loader import load
from gpubench.workloads.workload import Batch, Workload


def make(**parameters: str) -> tuple[Workload, LatentDiffusion, Batch]:
    workload = load("diffusion", "tiny", parameters).workload
    torch.manual_seed(0)
    model = workload.build().eval()
    return workload, model, workload.inputs(workload.batch_size, torch.Generator().manual_seed(1))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(module: nn.Module, *inputs: Tensor) -> tuple[int, int]:
    """Those of all operators, and those of convolutions and linear layers, by the shapes that they see."""
    layers = 0

    def add(layer: Any, _: Any, out: Tensor) -> None:
        nonlocal layers
        layers += out.numel() * layer.weight[0].numel()

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(add)
    with FlopCounterMode(display=False) as counted:
        module(*inputs)
    return counted.get_total_flops() // 2, layers


@pytest.mark.slow
def test_base_is_stable_diffusion() -> None:
    """The numbers that BK-SDM's count_macs_params.py prints of stable-diffusion-v1-4, whose shape 1.5 has.

    It counts multiply-adds of convolutions and linear layers, and 4 operations for each value of a layer norm.
    """
    with torch.device("meta"):
        model = load("diffusion", "base").workload.build()
        encoder, unet, decoder = model.text_encoder, model.unet, model.vae
        assert (count(encoder), count(unet)) == (123_060_480, 859_520_964)
        before = decoder.layers[0]  # the 1x1 convolution, which is not in what they count
        assert count(decoder) - count(before) == 49_490_179
        tokens, latents, text = torch.zeros(1, 77, dtype=torch.long), torch.empty(1, 4, 64, 64), torch.empty(1, 77, 768)
        normed = 4 * 25 * text.numel()
        assert multiply_adds(encoder, tokens)[1] + normed == 6_545_882_112
        normed = 4 * 3 * (5 * 64 * 64 * 320 + 5 * 32 * 32 * 640 + 5 * 16 * 16 * 1280 + 8 * 8 * 1280)
        all_of_them, layers = multiply_adds(unet, latents, tokens[0, :1], text)
        assert layers + normed == 338_749_194_240
        assert 2 * all_of_them == pytest.approx(803.3e9, rel=1e-4)
        layers = multiply_adds(decoder, latents)[1]
        assert layers - 16 * 64 * 64 == 1_240_079_532_032


def test_medium_is_half_as_wide() -> None:
    with torch.device("meta"):
        model = load("diffusion", "medium").workload.build()
    assert 0.25 < count(model.unet) / 859_520_964 < 0.26


def test_the_noise_schedule_is_the_published_one() -> None:
    ratios = [((1 - share) / share) ** 0.5 for share in shares()]
    assert (ratios[0], ratios[-1]) == pytest.approx((0.0292, 14.6146), rel=2e-3)  # noise over image: k-diffusion's


def test_the_loop_takes_the_noise_away_that_it_is_told() -> None:
    """A denoiser that knows the noise leads to the image in any number of steps."""

    class Knowing(nn.Module):
        def forward(self, x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
            seen.append(int(timesteps[0]))
            assert len(x) == len(timesteps) == len(text)
            return noise if len(x) == len(noise) else torch.cat((noise, noise))

    _, _, (tokens, noise, image, _) = make()
    left = shares()
    for steps, guidance, times in ((1, 7.5, [1]), (4, 7.5, [751, 501, 251, 1]), (4, 1.0, [751, 501, 251, 1])):
        _, model, _ = make(steps=str(steps), guidance=str(guidance))
        seen: list[int] = []
        model.unet = Knowing()
        at, last = left[times[0]], left[0]
        found = model.denoise(tokens, at**0.5 * image + (1 - at) ** 0.5 * noise)
        torch.testing.assert_close(found, last**0.5 * image + (1 - last) ** 0.5 * noise, rtol=1e-4, atol=1e-4)
        assert seen == times


def test_guidance_goes_further_from_the_empty_prompt() -> None:
    """A step is linear in the noise that is found, so each guidance is on the line through 0 and 1."""
    latents = {}
    for guidance in ("0", "1", "1.5", "7.5"):
        _, model, (tokens, noise, _, _) = make(steps="1", guidance=guidance)
        empty = model.nothing.expand(len(tokens), -1)
        assert empty.unique().tolist() == [62, 63]
        with torch.inference_mode():
            latents[guidance] = model.denoise(empty if guidance == "0" else tokens, noise)
    for guidance in ("1.5", "7.5"):
        expected = latents["0"] + float(guidance) * (latents["1"] - latents["0"])
        torch.testing.assert_close(latents[guidance], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", ["2", "20"])
def test_latents_stay_small_and_text_and_noise_show_in_the_image(steps: str) -> None:
    workload, model, (tokens, noise, *rest) = make(steps=steps)
    other_tokens, other_noise, *_ = workload.inputs(2, torch.Generator().manual_seed(2))
    with torch.inference_mode():
        latents, image = model.denoise(tokens, noise), workload.infer(model, (tokens, noise, *rest), {})
        assert image.shape == (2, 3, 64, 64)
        assert 0.3 < latents.std() < 10
        for inputs, least in (((other_tokens, noise), 0.1), ((tokens, other_noise), 0.3)):
            assert (model(*inputs) - image).norm() > least * image.norm()
        one_word = tokens.clone()
        one_word[:, 3] = (one_word[:, 3] + 1) % 62
        assert (model(one_word, noise) - image).norm() > 0.005 * image.norm()
        last = model.text_encoder(one_word)[:, :3], model.text_encoder(tokens)[:, :3]
        torch.testing.assert_close(*last)  # no word sees those after it


def test_the_noise_found_is_of_size_one_and_follows_the_time() -> None:
    _, model, (tokens, noise, _, _) = make()
    with torch.inference_mode():
        text = model.text_encoder(tokens)
        found = [model.unet(noise, torch.tensor([time, time]), text) for time in (1, 500, 999)]
    assert all(0.4 < each.std() < 2 for each in found)
    assert all((one - two).norm() > 0.05 * one.norm() for one, two in itertools.pairwise(found))
    far, near = waves(torch.tensor([999, 998]), 16)
    assert far.dtype == torch.float32
    torch.testing.assert_close(far[0].double(), torch.tensor(999.0).double().cos(), rtol=1e-4, atol=1e-4)
    assert (far - near).norm() > 0.5


def test_training_changes_the_unet_alone_and_knows_what_is_noise() -> None:
    workload, model, (tokens, noise, latents, timesteps) = make()
    assert workload.stages == ("text_encoder", "unet", "vae")
    assert {name: each.parts for name, each in workload.optimizers.items()} == {"unet": ("unet",)}
    assert timesteps.dtype == torch.long and timesteps.max() < 1000
    workload.loss(model.train(), (tokens, noise, latents, timesteps)).backward()
    assert all(bool(parameter.grad.any()) for parameter in model.unet.parameters())
    frozen = [*model.text_encoder.parameters(), *model.vae.parameters()]
    assert not any(parameter.requires_grad for parameter in frozen)

    seen: list[Tensor] = []
    model.unet.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]) or noise)  # type: ignore[func-returns-value]
    ends = torch.tensor([0, 999])
    assert workload.loss(model, (tokens, noise, latents, ends)).item() == 0
    torch.testing.assert_close(seen[0][0], latents[0], rtol=0, atol=0.2)
    torch.testing.assert_close(seen[0][1], noise[1], rtol=0, atol=0.4)


def test_half_precision_weights_stay_near_fp32() -> None:
    """Guidance adds up what rounding does to both halves, 10 times what it does to one."""
    _, model, (tokens, noise, _, _) = make()
    with torch.inference_mode():
        exact = model(tokens, noise)
        for dtype, limit in ((torch.float16, 0.01), (torch.bfloat16, 0.05)):
            halved = model.to(dtype)(tokens, noise.to(dtype))
            assert halved.dtype == dtype
            assert (halved.float() - exact).norm() < limit * exact.norm()


def test_the_unet_has_the_levels_of_its_configuration() -> None:
    _, model, _ = make()
    unet = model.unet
    assert isinstance(unet, UNet)
    sides = []
    for layer in (*unet.down, *unet.up):
        layer.register_forward_hook(lambda _, inputs, out: sides.append(out.shape[-1]))
    with torch.inference_mode():
        unet(torch.randn(1, 4, 12, 12), torch.tensor([3]), torch.randn(1, 16, 32))
    assert sides == [12, 6, 6, 6, 6, 12, 12, 12]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"steps": "0"}, "steps is 0. It must be from 1 to 999."),
        ({"steps": "1000"}, "steps is 1000."),
        ({"resolution": "40"}, "resolution is 40; it must be a multiple of 16 and at least 16"),
        ({"guidance": "nan"}, "Parameter 'guidance' of diffusion is 'nan'."),
    ],
)
def test_values_that_do_not_fit(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(GpubenchError) as caught:
        load("diffusion", "tiny", parameters)
    assert message in str(caught.value)
