from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import nn

from gpubench.toggles.layout.channels_last import CHANNELS_LAST
from gpubench.toggles.toggle import EvidenceResult

DO_NOTHING = dataclasses.replace(CHANNELS_LAST, apply=lambda context, value: None)


def net(kit, dimensions):
    return kit.workload(functools.partial(kit.Net, dimensions), inputs=kit.images(dimensions))


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_activations_have_channels_innermost(kit, dimensions, mode):
    context = kit.run({"channels_last": "on"}, net(kit, dimensions), mode=mode)
    assert CHANNELS_LAST.evidence(context, "on") == EvidenceResult(
        took_effect=True,
        detail="2 of 2 convolutions ran in channels-last; 2 of 2 inputs already were (at least 80% required)",
    )


@pytest.mark.parametrize("dimensions", [2, 3])
def test_an_apply_that_does_nothing_is_caught(kit, dimensions):
    context = kit.run({"channels_last": "on"}, net(kit, dimensions), replace={"channels_last": DO_NOTHING})
    proof = CHANNELS_LAST.evidence(context, "on")
    assert proof.took_effect is False
    assert "0 of 2 convolutions ran in channels-last; 0 of 2 inputs already were" in proof.detail


def test_off_shows_that_no_tensor_was_changed(kit):
    context = kit.run({"channels_last": "off"})
    proof = CHANNELS_LAST.evidence(context, "off")
    assert proof.took_effect is True
    assert "0 of 2 convolutions ran in channels-last; 0 of 2 inputs already were" in proof.detail


@pytest.mark.slow
def test_off_is_not_failed_for_the_layout_that_the_compiler_chooses(kit):
    context = kit.run({"channels_last": "off", "compile": "default"})
    proof = CHANNELS_LAST.evidence(context, "off")
    assert proof.took_effect is True
    assert "2 of 2 convolutions ran in channels-last" in proof.detail
    assert "the compiler chose that layout" in proof.detail


def test_off_says_where_the_model_itself_has_the_layout(kit):
    work = kit.workload(lambda: kit.Net().to(memory_format=torch.channels_last))
    proof = CHANNELS_LAST.evidence(kit.run({"channels_last": "off"}, work), "off")
    assert proof.took_effect is True
    assert "the model itself uses that layout" in proof.detail


@pytest.mark.parametrize("dimensions", [2, 3])
def test_on_holds_in_compiled_code(kit, dimensions):
    context = kit.run({"channels_last": "on", "compile": "default"}, net(kit, dimensions))
    assert CHANNELS_LAST.evidence(context, "on").took_effect is True


class Reordered(nn.Module):
    """Hands its second convolution a contiguous tensor, as several normalizations do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).contiguous())


WRAPPERS = {
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm hook": nn.utils.spectral_norm,
    "weight_norm hook": nn.utils.weight_norm,
}


@pytest.mark.filterwarnings("ignore")  # torch calls the hooks deprecated
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_weights_that_are_computed_are_converted_where_they_are_stored(kit, wrapper):
    def build() -> nn.Module:
        wrap = WRAPPERS[wrapper]
        return nn.Sequential(wrap(nn.Conv2d(4, 8, 3)), nn.SiLU(), wrap(nn.Conv2d(8, 8, 3)))

    work = kit.workload(build, loss=lambda model, batch: model(batch[0]).mean())
    plain = kit.prepare({"channels_last": "off"}, work, mode="training")
    applied = kit.prepare({"channels_last": "on"}, work, mode="training")
    before, after = plain.model.state_dict(), applied.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # no power iteration more
    outputs = [context.model.double()(context.batches[0][0].double()) for context in (plain, applied)]
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)  # but for sums in another order
    state = {name: value.clone() for name, value in applied.model.state_dict().items()}
    context = kit.run({"channels_last": "on"}, work, mode="training")
    assert CHANNELS_LAST.evidence(context, "on").took_effect is True
    context.model, context.trace = applied.model, kit.trace(kernels=["sm80_xmma_fprop_nhwckrsc"], graph=True)
    assert CHANNELS_LAST.evidence(context, "on").took_effect is True
    assert all(torch.equal(state[name], value) for name, value in applied.model.state_dict().items())


class Functional(nn.Module):
    """A convolution that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 4, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.weight)


@pytest.mark.filterwarnings("ignore")  # torch calls TorchScript deprecated
@pytest.mark.parametrize("kind", ["functional", "script", "trace", "compile"])
def test_a_model_in_another_form_is_converted(kit, kind):
    def build() -> nn.Module:
        plain = nn.Sequential(nn.Conv2d(4, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3))
        forms = {"functional": Functional, "script": lambda: torch.jit.script(plain)}
        forms["trace"] = lambda: torch.jit.trace(plain, torch.randn(1, 4, 8, 8))
        forms["compile"] = lambda: torch.compile(plain)
        return forms[kind]()

    context = kit.run({"channels_last": "on"}, kit.workload(build))
    weights = [weight for weight in context.model.parameters() if weight.dim() == 4]
    assert weights and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert CHANNELS_LAST.evidence(context, "on").took_effect is True
    missed = kit.run({"channels_last": "on"}, kit.workload(build), replace={"channels_last": DO_NOTHING})
    if kind != "compile":  # inductor chooses the layout itself
        assert CHANNELS_LAST.evidence(missed, "on").took_effect is False


def test_what_no_convolution_uses_keeps_its_layout(kit):
    class Positioned(kit.Net):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Parameter(torch.randn(1, 4, 8, 8))

    context = kit.prepare({"channels_last": "off"}, kit.workload(Positioned))
    context.facts = kit.scope(unconvolved=["positions"]).workload
    CHANNELS_LAST.apply(context, "on")
    assert context.model.positions.is_contiguous()
    assert "name not in ['positions']" in CHANNELS_LAST.usage("on", kit.scope(unconvolved=["positions"]))
    assert "not in" not in CHANNELS_LAST.usage("on", None)
    assert context.model.body[0].weight.is_contiguous(memory_format=torch.channels_last)


class Own(nn.Module):
    """At batch 1 and in one thread torch computes these itself: the 3-D ones always on contiguous tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.deep, self.flat = nn.Sequential(nn.Conv3d(4, 8, 3), nn.Conv3d(8, 8, 3)), nn.Conv2d(8, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.flat(self.deep(x)[:, :, 0])


def test_convolutions_that_torch_computes_itself_are_read_too(kit):
    torch.set_num_threads(1)
    work = kit.workload(Own, batch_size=1, inputs=kit.images(3))
    proof = CHANNELS_LAST.evidence(kit.run({"channels_last": "on"}, work), "on")
    assert proof.took_effect is False
    assert proof.detail.startswith("1 of 3 convolutions, 1% of their work, ran in channels-last")


@pytest.mark.parametrize(("dimensions", "layer"), [(2, nn.ConvTranspose2d), (3, nn.ConvTranspose3d)])
def test_transposed_convolutions_follow_their_weight(kit, dimensions, layer, monkeypatch):
    """oneDNN computes them in no operator of its own; where it is not used, torch does the 3-D ones contiguous."""

    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer(4, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.contiguous()).flatten(1).mean(1)

    work = kit.workload(Up, batch_size=2, inputs=kit.images(dimensions))
    proof = CHANNELS_LAST.evidence(kit.run({"channels_last": "on"}, work), "on")
    assert proof.took_effect is True
    assert proof.detail.startswith("1 of 1 convolutions ran in channels-last; 0 of 1 inputs already were")
    lazy = kit.run({"channels_last": "on"}, work, replace={"channels_last": DO_NOTHING})
    assert CHANNELS_LAST.evidence(lazy, "on").took_effect is False
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    proof = CHANNELS_LAST.evidence(kit.run({"channels_last": "on"}, work), "on")
    assert proof.took_effect is (dimensions == 2)


def test_the_share_of_the_work_decides_and_not_the_number_of_convolutions(kit):
    class Small(nn.Module):
        """Three small convolutions on contiguous tensors beside a large one."""

        def __init__(self) -> None:
            super().__init__()
            self.large, self.small = nn.Conv2d(4, 32, 5), nn.ModuleList(nn.Conv2d(2, 2, 3) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.large(x).mean()
            for layer in self.small:
                layer.weight.data = layer.weight.data.contiguous()
                y = y + layer(x[:, :2].contiguous()).mean()
            return y

    proof = CHANNELS_LAST.evidence(kit.run({"channels_last": "on"}, kit.workload(Small)), "on")
    assert proof.took_effect is True
    assert proof.detail.startswith("1 of 4 convolutions, 9")


def test_activations_that_had_to_be_reordered_are_told(kit):
    proof = CHANNELS_LAST.evidence(kit.run({"channels_last": "on"}, kit.workload(Reordered)), "on")
    assert proof.took_effect is True
    assert "2 of 2 convolutions" in proof.detail
    assert "1 of 2 inputs already were and the others are reordered at each call" in proof.detail


class Mixed(nn.Module):
    """2-D and 3-D convolutions in one model."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.deep = nn.Conv2d(4, 4, 3, padding=1), nn.Conv3d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.deep(self.flat(x)[:, :, None].expand(-1, -1, 4, -1, -1))


def test_each_convolution_gets_the_format_of_its_own_dimensions(kit):
    context = kit.prepare({"channels_last": "on"}, kit.workload(Mixed))
    assert context.model.flat.weight.is_contiguous(memory_format=torch.channels_last)
    assert context.model.deep.weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_tensors_that_are_both_layouts_prove_nothing(kit):
    # One channel, or one position in space: any strides are both layouts at once.
    work = kit.workload(lambda: nn.Sequential(nn.Conv2d(4, 1, 8), nn.Conv2d(1, 1, 1)), inputs=kit.images(side=8))
    context = kit.run({"channels_last": "on"}, work)
    proof = CHANNELS_LAST.evidence(context, "on")
    assert "1 of 1 convolutions ran in channels-last; 1 of 1 inputs already were" in proof.detail


def test_nothing_to_read_is_unknown(kit):
    work = kit.workload(lambda: nn.Sequential(nn.Conv2d(4, 1, 1)), inputs=kit.images(side=1))
    context = kit.run({"channels_last": "on"}, work)
    proof = CHANNELS_LAST.evidence(context, "on")
    assert proof.took_effect is None
    assert "no tensor has a recognizable layout" in proof.detail


def test_off_where_no_layout_can_be_seen_is_not_contradicted(kit):
    work = kit.workload(lambda: nn.Sequential(nn.Conv2d(4, 1, 1)), inputs=kit.images(side=1))
    proof = CHANNELS_LAST.evidence(kit.run({"channels_last": "off"}, work), "off")
    assert proof.took_effect is True
    assert proof.detail.startswith("no tensor has a recognizable layout: 0 of 0 convolutions")


def test_on_a_gpu_the_algorithms_are_told(kit):
    context = kit.run({"channels_last": "on"})
    context.device = torch.device("cuda")
    assert CHANNELS_LAST.evidence(context, "on").detail.endswith("; no kernel shows which algorithms were used")
    kernels = kit.trace(kernels=[("sm80_xmma_fprop_implicit_gemm_nhwc", 4e-6), ("nchwToNhwcKernel", 1e-6)]).kernels
    context.trace = dataclasses.replace(context.trace, kernels=kernels)
    proof = CHANNELS_LAST.evidence(context, "on")
    assert proof.took_effect is True
    assert "implicit GEMM 100%; reordering between NCHW and NHWC took another 25%" in proof.detail


def test_without_a_trace_nothing_is_claimed(kit):
    assert CHANNELS_LAST.evidence(kit.prepare({"channels_last": "on"}), "on").took_effect is None


def test_applies_where_there_is_a_layout(kit):
    assert CHANNELS_LAST.applies(kit.scope(convolution_dimensions=[3])) is None
    assert CHANNELS_LAST.applies(kit.scope(convolution_dimensions=[1])) == (
        "workload net has no 2-D or 3-D convolution"
    )


@pytest.mark.parametrize("graph", [True, False])
def test_convolutions_beside_what_is_hidden_do_not_speak_for_it(kit, graph):
    context = kit.run({"channels_last": "on"}, replace={"channels_last": DO_NOTHING})
    CHANNELS_LAST.apply(context, "on")
    context.device = torch.device("cuda")
    context.trace = dataclasses.replace(context.trace, names=frozenset({"cudaGraphLaunch"} if graph else ()))
    proof = CHANNELS_LAST.evidence(context, "on")
    assert proof.took_effect is None
    assert ("a CUDA graph hides them" if graph else "CUPTI gives no records here") in proof.detail
