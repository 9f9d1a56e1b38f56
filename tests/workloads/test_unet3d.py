"""The U-Net of microscopy: its three tasks, the adversarial step, and how many windows go through it at once."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gpubench.errors import GpubenchError
from gpubench.hardware.facts import Device
from gpubench.toggles.own import declared, stand_in
from gpubench.toggles.toggle import Scope, Toggle
from gpubench.worker.prepare import apply_toggles, build, make_batches
from gpubench.worker.step import Stepper
from gpubench.workloads import sliding, unet3d
from gpubench.workloads.batch import make as make_batch
from gpubench.workloads.building import build_model
from gpubench.workloads.catalog import SIZES, TOGGLES
from gpubench.workloads.describe import describe
from gpubench.workloads.loader import load
from gpubench.workloads.sliding import slide
from gpubench.workloads.unet3d import Discriminator
from gpubench.workloads.workload import Batch, Workload

VALUES = (1, 2, 4, 8, 16)


def make(**parameters: str) -> tuple[Workload, nn.Module, Batch]:
    workload = load("unet3d", "tiny", parameters).workload
    torch.manual_seed(0)
    model = build_model(workload).eval()
    return workload, model, make_batch(workload, workload.batch_size, 1)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def gflops(module: nn.Module, *inputs: Tensor) -> float:
    with FlopCounterMode(display=False) as counted:
        module(*inputs)
    return counted.get_total_flops() / 1e9


@pytest.mark.parametrize(
    ("task", "parameters", "work"),
    [("segmentation", 22_926_531, 121.215), ("labelfree", 8_110_657, 25.413), ("superres", 10_875_266, 25.413)],
)
def test_base_has_the_documented_size(task: str, parameters: int, work: float) -> None:
    workload = load("unet3d", "base", {"task": task}).workload
    with torch.device("meta"):
        model = workload.build()
        image = torch.empty(1, 1, *[workload.resolution] * (3 if task == "segmentation" else 2))
        assert count(model) == parameters
        assert gflops(model, image) == pytest.approx(work, abs=0.001)


def test_the_discriminator_is_the_published_one() -> None:
    """Of colour images: the 2.769 M parameters of pix2pix, and 30x30 scores of patches of 70 pixels."""
    with torch.device("meta"):
        published = Discriminator(3, 64, "instance")
        assert count(published) == 2_768_705
        assert published(torch.empty(1, 3, 256, 256), torch.empty(1, 3, 256, 256)).shape == (1, 1, 30, 30)
        used = load("unet3d", "base", {"task": "superres"}).workload.build().get_submodule("discriminator")
        assert count(used) == 2_764_609
        assert gflops(used, *[torch.empty(1, 1, 256, 256)] * 2) == pytest.approx(6.260, abs=0.001)
    judge = Discriminator(1, 4, "instance").eval()
    judge.layers = nn.Sequential(*(each for each in judge.layers if isinstance(each, nn.Conv2d)))
    image = torch.randn(1, 1, 96, 96, requires_grad=True)
    judge(torch.zeros_like(image), image)[0, 0, 5, 5].backward()
    seen = image.grad[0, 0].nonzero()
    assert (seen.amax(dim=0) - seen.amin(dim=0) + 1).tolist() == [70, 70]


@pytest.mark.parametrize("task", unet3d.TASKS)
def test_each_task_has_all_sizes_that_fit_together(task: str) -> None:
    assert tuple(unet3d.TASKS[task].sizes) == SIZES
    for size in SIZES:
        patch, whole = (load("unet3d", size, {"task": task, "view": view}).workload for view in ("patch", "whole"))
        assert patch.modes == ("inference", "training")
        assert whole.modes == ("inference",)
        assert whole.resolution > patch.resolution
        assert patch.resolution % whole.tiling.multiple == whole.resolution % whole.tiling.multiple == 0


@pytest.mark.parametrize(
    ("parameters", "name", "shape"),
    [
        ({"task": "labelfree"}, "unet3d-labelfree", (2, 1, 32, 32)),
        ({"task": "superres"}, "unet3d-superres", (2, 1, 32, 32)),
        ({"task": "labelfree", "view": "sliding"}, "unet3d-labelfree-sliding", (1, 1, 48, 48)),
        ({"task": "superres", "view": "whole", "norm": "group"}, "unet3d-superres-whole", (1, 1, 48, 48)),
    ],
)
def test_an_image_gives_an_image(parameters: dict[str, str], name: str, shape: tuple[int, ...]) -> None:
    workload, model, batch = make(**parameters)
    with torch.inference_mode():
        image = workload.infer(model, batch, {})
    assert (workload.name, image.shape) == (name, shape)
    assert workload.item == ("patch" if "view" not in parameters else "image")
    assert 0.05 < image.std() < 20
    assert {tensor.shape for tensor in batch} == {shape}


def test_the_label_free_loss_is_the_squared_error_of_the_prediction() -> None:
    workload, model, (images, _) = make(task="labelfree")
    with torch.no_grad():
        assert workload.loss(model, (images, model(images) + 2.0)).item() == pytest.approx(4.0, rel=1e-5)


def test_super_resolution_trains_both_adversaries() -> None:
    case = load("unet3d", "tiny", {"task": "superres"})
    context = build(case, "training", torch.device("cpu"), {"optimizer": "fused"}, 0)
    apply_toggles(context, make_batches(case, 2, 1, 0))
    before = [parameter.detach().clone() for parameter in context.model.parameters()]
    Stepper(context).step()
    for (name, parameter), old in zip(context.model.named_parameters(), before, strict=True):
        assert parameter.requires_grad
        assert not torch.equal(parameter, old), name


@pytest.mark.parametrize("trains", ["generator", "discriminator"])
def test_each_adversary_learns_what_it_is_for(trains: str) -> None:
    workload, model, batch = make(task="superres")
    images, targets = batch
    generator, judge = model.get_submodule("generator"), model.get_submodule("discriminator")
    rates = {name: 3e-3 if name == trains else 0.0 for name in workload.optimizers}
    optimizers = {name: torch.optim.Adam(model.get_submodule(name).parameters(), rates[name]) for name in rates}

    def figures() -> Tensor:
        with torch.no_grad():
            made = generator(images)
            return torch.stack((F.l1_loss(made, targets), judge(images, made).mean(), judge(images, targets).mean()))

    error, false, true = figures()
    for _ in range(8):
        workload.train_step(model, batch, optimizers)
    if trains == "generator":
        assert figures()[0] < 0.95 * error
    else:
        assert figures()[2] - figures()[1] > true - false + 0.1


def test_the_generator_s_step_computes_no_gradients_of_the_discriminator() -> None:
    workload, model, batch = make(task="superres")
    optimizers = {name: torch.optim.SGD(model.get_submodule(name).parameters(), 0.0) for name in workload.optimizers}
    seen: list[list[Tensor]] = []
    judge = list(model.get_submodule("discriminator").parameters())
    optimizers["discriminator"].register_step_post_hook(lambda *_: seen.append([each.grad.clone() for each in judge]))
    workload.train_step(model, batch, optimizers)
    assert all(torch.equal(each.grad, gradient) for each, gradient in zip(judge, seen[0], strict=True))


@pytest.mark.slow
def test_each_part_of_the_adversarial_step_is_one_graph() -> None:
    """The discriminator's is compiled once more for the generator's step, which does not train it."""
    workload, model, batch = make(task="superres")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for target in workload.compile_targets:
        model.get_submodule(target).compile(backend="eager", fullgraph=True)
    optimizers = {name: torch.optim.Adam(model.get_submodule(name).parameters()) for name in workload.optimizers}
    for _ in range(2):
        workload.train_step(model.train(), batch, optimizers)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_sliding_windows_equal_the_whole_for_a_local_model(at_once: int) -> None:
    torch.manual_seed(0)
    model, volume, calls = nn.Conv3d(1, 3, 1), torch.randn(1, 1, 20, 20, 20), []
    with torch.inference_mode():
        tiled = slide(model, volume, 8, 4, at_once, calls)
        torch.testing.assert_close(tiled, model(volume), rtol=1e-5, atol=1e-6)
    assert calls == [min(at_once, 64)] * math.ceil(64 / at_once)


@pytest.mark.parametrize("parameters", [{"norm": "instance"}, {"norm": "group", "task": "labelfree"}])
def test_windows_at_once_give_what_they_give_alone(parameters: dict[str, str]) -> None:
    workload, model, batch = make(view="sliding", **parameters)
    with torch.inference_mode():
        alone, at_once = (workload.infer(model, batch, {"sw_batch_size": value}) for value in (1, 4))
    torch.testing.assert_close(at_once, alone, rtol=1e-4, atol=1e-5)


def toggle_and_scope(**parameters: str) -> tuple[Toggle, Scope]:
    case = load("unet3d", "tiny", parameters)
    facts = describe(case, "inference")
    scope = Scope(device=Device(kind="cpu", name="A CPU", cores=2), workload=facts, torch_version=(2, 13))
    (own,) = case.workload.toggles
    assert TOGGLES["unet3d"] == (own.name,)
    return stand_in(declared(own, scope)), scope


def test_as_many_windows_at_once_as_there_are() -> None:
    own, scope = toggle_and_scope(view="sliding")  # a 12-voxel side has two 8-voxel windows
    unmet = {value: own.unmet(scope, value) for value in VALUES}
    assert unmet == dict.fromkeys((1, 2, 4, 8)) | {16: "needs as many windows, and only 8 slide over the input"}
    own, scope = toggle_and_scope(view="patch")
    assert own.applies(scope) == "no window slides over a patch"
    own, scope = toggle_and_scope(view="whole")
    assert own.unmet(scope, 4, {"tile_size": 0}) == "does nothing beside tile_size=0; only 1 is allowed there"
    assert own.unmet(scope, 4, {"tile_size": 8}) is None


@pytest.mark.parametrize(
    ("view", "more"),
    [("sliding", {}), ("sliding", {"batch_size": 2}), ("whole", {"tile_size": 8, "tile_overlap": 4})],
)
def test_windows_at_once_are_proven_and_idle_ones_are_caught(
    view: str, more: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def proofs(asked: int) -> dict[int, bool | None]:
        case = load("unet3d", "tiny", {"view": view})
        (own,) = case.workload.toggles
        context = build(case, "inference", torch.device("cpu"), {"sw_batch_size": asked, **more}, 0)
        apply_toggles(context, make_batches(case, more.get("batch_size", 1), 1, 0))
        Stepper(context).step()
        return {value: own.evidence(context, value).took_effect for value in VALUES}

    for asked in (1, 4):
        assert proofs(asked) == {value: value == asked for value in VALUES}
    assert proofs(16)[16] is False  # there are 8, which the view of a whole volume cannot know before
    real = sliding.apply_tiled
    monkeypatch.setattr(sliding, "apply_tiled", lambda *given, **named: real(*given, **(named | {"tiles_per_call": 1})))
    assert proofs(4)[4] is False


def test_nothing_slides_over_a_whole_volume() -> None:
    workload, model, batch = make(view="whole")
    with torch.inference_mode():
        workload.infer(model, batch, {"tile_size": 8, "tile_overlap": 4, "sw_batch_size": 4})
        workload.infer(model, batch, {"tile_size": 0, "sw_batch_size": 1})
    (own,) = workload.toggles
    assert [own.evidence(None, value).took_effect for value in (1, 4)] == [True, False]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"task": "labelfre"}, "Unknown task of unet3d 'labelfre'. Did you mean 'labelfree'?"),
        ({"view": "slide"}, "Unknown view of unet3d 'slide'. Did you mean 'sliding'?"),
        ({"norm": "batch"}, "Unknown norm of unet3d 'batch'. Known: group, instance."),
        ({"task": "superres", "resolution": "16"}, "The nearest allowed value is 32."),
    ],
)
def test_wrong_values_name_what_is_allowed(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(GpubenchError) as caught:
        load("unet3d", "tiny", parameters)
    assert message in str(caught.value)
