"""The image-editing transformer: its size, what its output depends on, the path from noise, and what is trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gpubench.errors import GpubenchError
from gpubench.workloads.dit import SIZES, Editor, pack, unpack
from gpubench.workloads.gpt import rotate
from gpubench.workloads.loader import load
from gpubench.workloads.mmdit import Transformer, places, rotary_angles, waves
from gpubench.workloads.workload import Batch, Workload

QWEN_IMAGE = 20_430_401_088  # its checkpoint, in diffusers' format: 40,860,802,176 bytes in bf16
QWEN3 = 596_049_920  # the checkpoint of Qwen3-0.6B, its embedding once


def make(**parameters: str) -> tuple[Workload, Editor, Batch]:
    workload = load("dit", "tiny", parameters).workload
    torch.manual_seed(0)
    model = workload.build().eval()
    assert isinstance(model, Editor)
    return workload, model, workload.inputs(workload.batch_size, torch.Generator().manual_seed(1))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def flops(module: nn.Module, *inputs: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        module(*inputs)
    return counted.get_total_flops()


@pytest.mark.slow
def test_base_has_the_parameters_and_flops_of_its_docstring() -> None:
    with torch.device("meta"):
        model = load("dit", "base").workload.build()
        assert isinstance(model, Editor)
        assert (count(model), count(model.transformer)) == (1_677_895_927, 998_192_144)
        assert (count(model.text_encoder), count(model.vae)) == (QWEN3, 83_653_863)
        tokens, text = torch.empty(1, 1024, 16), torch.empty(1, 256, 1024)
        once = flops(model.transformer, tokens, tokens, text, torch.empty(1))
        # Of each block and token 12 products of width^2 by width^2, but of the last block's text 3; and attention.
        by_hand = 24 * (12 * 2304 - 9 / 12 * 256) * 1536**2 + 12 * 4 * 2304**2 * 1536
        assert once == pytest.approx(by_hand, rel=2e-3)
        assert once == pytest.approx(1.95e12, rel=2e-3)
        image = flops(model.vae.encoder, torch.empty(1, 3, 512, 512))
        image += flops(model.vae.decoder, torch.empty(1, 4, 64, 64)) + 8 * once
        image += flops(model.text_encoder, torch.zeros(1, 256, dtype=torch.long))
        assert image == pytest.approx(19.5e12, rel=3e-3)


def test_the_transformer_goes_up_to_the_published_one() -> None:
    with torch.device("meta"):
        width, depth, text = 3072, 60, SIZES["base"].text.width
        model = Transformer(width=width, depth=2, head=SIZES["base"].head, patch=16, text=text, length=1, side=1)
    found = count(model) + (depth - 2) * count(model.blocks[0])
    assert found == pytest.approx(QWEN_IMAGE, rel=0.01)
    patches = 4 * (16 - 4) * (width + width + 1)  # into the blocks and out of them: 16 channels, not 4
    words = (3584 - text) * (width + 1)  # the projection of text features, and their norm: of 3584 features
    last = (4 + 1 + 8) * width**2 + (
        4 + 1 + 5
    ) * width  # modulation, attention's output and perceptron of the last text
    assert found + patches + words + last == QWEN_IMAGE


@pytest.mark.parametrize("guidance", ["1", "4"])
def test_prompt_source_and_noise_show_in_the_image(guidance: str) -> None:
    workload, model, batch = make(guidance=guidance)
    with torch.inference_mode():
        image = workload.infer(model, batch, {})
        assert image.shape == (2, 3, 32, 32)
        assert 0.2 < image.std() < 5
        for place in range(3):
            other = list(batch)
            other[place] = batch[place].flip(0)
            changed = workload.infer(model, tuple(other), {})
            assert (changed - image).norm() > 0.15 * image.norm(), place
        assert torch.equal(workload.infer(model, batch, {}), image)


def test_the_velocity_depends_on_all_it_is_given() -> None:
    _, model, (prompts, images, noise, _, times) = make()
    with torch.inference_mode():
        given = [pack(noise), model.encode(images), model.text_encoder(prompts), times]
        velocity = model.transformer(*given)
        assert velocity.shape == (2, 4, 16)
        assert 0.5 < velocity.std() < 2
        changes = []
        for place in range(4):
            changed = [each.flip(0) if index == place else each for index, each in enumerate(given)]
            changes.append(((model.transformer(*changed) - velocity).norm() / velocity.norm()).item())
        assert min(changes) > 0.1
        assert changes[0] > 1.5 * max(changes[1:])  # it is the noisy tokens' own
        # The same tokens at the same places are another image, and not the same.
        both = model.transformer(given[1], given[1], given[2], times)
        model.transformer.cosine[-4:], model.transformer.sine[-4:] = (
            table[-8:-4].clone() for table in (model.transformer.cosine, model.transformer.sine)
        )
        assert not torch.allclose(model.transformer(given[1], given[1], given[2], times), both, atol=1e-2)


def test_noise_follows_the_velocity_to_the_image() -> None:
    """With the velocity of a straight line, every number of steps ends at the image, and the loss is zero."""
    for steps in (1, 5):
        workload, model, batch = make(steps=str(steps))
        _, _, noise, edited, _ = batch
        with torch.inference_mode():
            target = model.encode(edited)
            line = Line(pack(noise) - target)
            model.transformer = line  # type: ignore[assignment]
            torch.testing.assert_close(workload.infer(model, batch, {}), model.vae.decoder(unpack(target)))
            assert workload.loss(model, batch).item() == pytest.approx(0, abs=1e-9)
        assert line.times[:steps] == pytest.approx([1 - step / steps for step in range(steps)])
        assert len(line.times) == steps + 1


class Line(nn.Module):
    """In place of the transformer: one velocity, and a list of the times it was asked for."""

    def __init__(self, velocity: torch.Tensor) -> None:
        super().__init__()
        self.velocity, self.times = velocity, []  # type: ignore[var-annotated]

    def forward(
        self, noisy: torch.Tensor, source: torch.Tensor, text: torch.Tensor, time: torch.Tensor
    ) -> torch.Tensor:
        assert noisy.shape == source.shape == self.velocity.shape
        self.times.append(time[0].item())
        return self.velocity


def test_guidance_goes_beyond_the_velocity_without_a_prompt() -> None:
    _, model, (prompts, images, noise, _, times) = make(guidance="3")
    with torch.inference_mode():
        noisy, source = pack(noise), model.encode(images)
        told, untold = (model.text_encoder(each) for each in (prompts, torch.zeros_like(prompts)))
        time = times[0]
        with_prompt, without = (model.transformer(noisy, source, text, time.expand(2)) for text in (told, untold))
        found = model.velocity(noisy, source, torch.cat((told, untold)), time)
    torch.testing.assert_close(found, without + 3 * (with_prompt - without), rtol=1e-4, atol=1e-5)


def test_tokens_are_patches_of_the_latent() -> None:
    latents = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    tokens = pack(latents)
    assert tokens.shape == (2, 9, 16)
    assert tokens.is_contiguous() and pack(latents.to(memory_format=torch.channels_last)).is_contiguous()
    assert torch.equal(unpack(tokens), latents)
    assert torch.equal(tokens[1, 5].sort().values, latents[1, :, 2:4, 4:6].flatten().sort().values)


def test_scores_depend_on_the_distance_of_places_alone() -> None:
    at = places(side=4, length=3)
    assert at.shape == (35, 3)
    assert len(at.unique(dim=0)) == 35  # no two tokens are at one place
    assert torch.equal(at[3:19] + torch.tensor([1, 0, 0]), at[19:])  # the source lies behind the noisy image
    angles = rotary_angles(at.float(), 32)
    assert angles.shape == (35, 16)
    q, k = torch.randn(2, 32, generator=torch.Generator().manual_seed(0)).unbind()
    turn = angles.cos(), angles.sin()
    scores = rotate(q.expand(1, 1, 35, 32), *turn)[0, 0] @ rotate(k.expand(1, 1, 35, 32), *turn)[0, 0].T
    torch.testing.assert_close(scores[3:19, 3:19], scores[19:, 19:], rtol=1e-4, atol=1e-4)
    seen: dict[tuple[int, ...], list[float]] = {}
    for row, here in enumerate(at.tolist()):
        for column, there in enumerate(at.tolist()):
            seen.setdefault(tuple(a - b for a, b in zip(here, there, strict=True)), []).append(
                scores[row, column].item()
            )
    assert all(max(each) - min(each) < 1e-3 for each in seen.values())
    assert len({round(each[0], 3) for each in seen.values()}) > 0.9 * len(seen)


def test_times_are_told_apart() -> None:
    found = waves(torch.linspace(0, 1, 51))
    assert found.shape == (51, 256)
    assert torch.cdist(found, found).fill_diagonal_(9).min() > 1


def test_no_token_of_the_prompt_sees_those_after_it() -> None:
    _, model, (prompts, *_) = make()
    changed = prompts.clone()
    changed[:, 3] = changed[:, 3] % 99 + 1
    with torch.inference_mode():
        one, two = model.text_encoder(prompts), model.text_encoder(changed)
    torch.testing.assert_close(one[:, :3], two[:, :3])
    assert all(not torch.allclose(one[:, place], two[:, place], atol=1e-3) for place in range(3, 6))


@pytest.mark.parametrize("parameters", [{}, {"lora": "4"}])
def test_training_learns_and_leaves_what_is_frozen(parameters: dict[str, str]) -> None:
    workload, model, batch = make(**parameters)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapters = {name for name in before if ".adapter." in name}
    assert len(adapters) == (2 * 7 if parameters else 0)
    assert trained == (adapters or {name for name in before if name.startswith("transformer.")})
    (chosen,) = workload.optimizers.values()
    assert chosen.parts == ("transformer",)
    optimizer = torch.optim.AdamW(model.transformer.parameters(), lr=1e-2 if parameters else 1e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = workload.loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])} == trained


def test_adapters_are_few_and_show_in_the_image() -> None:
    with torch.device("meta"):
        model = load("dit", "base", {"lora": "16"}).workload.build()
    few = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert few == 16 * 1536 * (12 * 2 * (1 + 3) + 23 * (1 + 1))
    workload, model, batch = make(lora="4")
    with torch.inference_mode():
        image = workload.infer(model, batch, {})
        for name, parameter in model.named_parameters():
            if ".adapter.1." in name:
                parameter.zero_()
        assert (workload.infer(model, batch, {}) - image).norm() > 0.02 * image.norm()


def test_a_training_step_is_repeatable_and_depends_on_the_whole_batch() -> None:
    workload, model, batch = make()
    loss = workload.loss(model, batch).item()
    assert workload.loss(model, batch).item() == loss
    for place in range(5):
        other = [each.flip(0) if index == place else each for index, each in enumerate(batch)]
        assert workload.loss(model, tuple(other)).item() != loss, place


def graphs(mode: str, targets: tuple[str, ...], **parameters: str) -> int:
    """How many graphs `targets` are compiled to in one step, each of them whole."""
    workload, model, batch = make(**parameters)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for target in targets:
        model.get_submodule(target).compile(backend="eager", fullgraph=True)
    if mode == "training":
        workload.loss(model.train(), batch).backward()
    else:
        with torch.inference_mode():
            workload.infer(model, batch, {})
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_the_transformer_is_compiled_once_for_all_steps() -> None:
    assert graphs("inference", ("transformer",), steps="3") == 1


@pytest.mark.slow
def test_each_stage_is_one_graph() -> None:
    stages = load("dit", "tiny", {"compiled": "all"}).workload.compile_targets
    assert stages == load("dit", "tiny").workload.stages
    assert graphs("inference", stages, guidance="2", steps="3") == 4
    assert graphs("training", stages) == 3  # nothing is decoded


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_half_precision_stays_near_fp32(layout: torch.memory_format) -> None:
    workload, model, batch = make()
    with torch.inference_mode():
        exact = workload.infer(model, batch, {})
        model.to(memory_format=layout)
        laid = tuple(each.to(memory_format=layout) if each.dim() == 4 else each for each in batch)
        torch.testing.assert_close(workload.infer(model, laid, {}), exact, rtol=1e-3, atol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            casted = workload.infer(model, laid, {})
        model.bfloat16()
        weights = workload.infer(model, tuple(t.bfloat16() if t.is_floating_point() else t for t in laid), {})
    assert weights.dtype == torch.bfloat16
    for found in (casted, weights):
        assert (found.float() - exact).norm() < 0.04 * exact.norm()


def test_training_in_half_precision_is_finite() -> None:
    workload, model, batch = make()
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = workload.loss(model, batch)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(bool(each.grad.isfinite().all()) for each in model.transformer.parameters())
    model.bfloat16().zero_grad()
    loss = workload.loss(model, tuple(t.bfloat16() if t.is_floating_point() else t for t in batch))
    loss.backward()
    assert bool(loss.isfinite())


def test_a_deep_transformer_keeps_activations_of_one_size() -> None:
    torch.manual_seed(0)
    model = Transformer(width=128, depth=24, head=64, patch=16, text=64, length=4, side=2)
    with torch.inference_mode():
        velocity = model(*torch.randn(2, 1, 4, 16), torch.randn(1, 4, 64), torch.tensor([0.5]))
    assert 0.5 < velocity.std() < 2


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"steps": "0"}, "steps is 0. Give a whole number of at least 1."),
        ({"depth": "0"}, "depth is 0. Give a whole number of at least 1."),
        ({"lora": "-1"}, "lora is -1. Give a whole number of at least 0."),
        ({"width": "100"}, "width is 100; it must be a multiple of 32 and at least 32"),
        ({"resolution": "40"}, "resolution is 40; it must be a multiple of 16 and at least 16"),
    ],
)
def test_values_that_do_not_fit(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(GpubenchError) as caught:
        load("dit", "tiny", parameters)
    assert message in str(caught.value)
