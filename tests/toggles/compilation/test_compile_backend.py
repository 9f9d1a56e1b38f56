"""Other packages' compilers: what they are is faked here, and what dynamo does with them is not."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import types
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.backends import registry

from gpubench.toggles import usage
from gpubench.toggles.compilation import compile_backend
from gpubench.toggles.compilation.compile import COMPILE
from gpubench.toggles.compilation.compile_backend import COMPILE_BACKEND

pytestmark = pytest.mark.usefixtures("eager")
ASKED = {"compile": "default", "compile_backend": "openvino"}


class Product(nn.Module):
    """One matrix product."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.bmm(x[:, 0], x[:, 1])


class Fake:
    """A package that registers a backend when it is imported; it computes the product with numpy, or hands it on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, works: bool = True) -> None:
        self.works, self.options = works, None
        monkeypatch.setitem(registry._BACKENDS, "openvino", None)
        monkeypatch.setitem(registry._COMPILER_FNS, "openvino", self.compile)
        for name in ("openvino", "openvino.torch"):
            module = types.ModuleType(name)
            module.__spec__ = importlib.util.spec_from_loader(name, None)
            monkeypatch.setitem(sys.modules, name, module)

    def compile(self, graph: Any, inputs: Any, options: Any = None) -> Any:
        self.options = options
        if not self.works:
            return graph.forward

        def run(*arguments: torch.Tensor) -> tuple[torch.Tensor]:
            image = arguments[-1].numpy()
            return (torch.from_numpy(image[:, 0] @ image[:, 1]),)

        return run


def test_a_backend_that_ran_the_graphs_is_told(kit, monkeypatch):
    fake, work = Fake(monkeypatch), kit.workload(Product)
    context = kit.run(ASKED, work)
    proof = COMPILE_BACKEND.evidence(context, "openvino")
    assert proof.took_effect is True, proof.detail
    assert proof.detail.startswith("1 graph compiled by openvino; they have 1 convolutions, matrix products")
    assert fake.options == {"aot_autograd": True, "config": {"INFERENCE_PRECISION_HINT": "f32"}}
    assert COMPILE.evidence(context, "default").took_effect is True
    images = context.batches[0][0]
    torch.testing.assert_close(context.step.forward(context.batches[0]), Product()(images))


def test_a_backend_that_hands_its_graphs_on_is_caught(kit, monkeypatch):
    Fake(monkeypatch, works=False)
    context = kit.run(ASKED, kit.workload(Product))
    proof = COMPILE_BACKEND.evidence(context, "openvino")
    assert proof.took_effect is False
    assert "and torch itself ran 1" in proof.detail
    context.trace = dataclasses.replace(context.trace, names=context.trace.names | {"## Call CompiledFxGraph f ##"})
    proof = COMPILE_BACKEND.evidence(context, "openvino")
    assert proof.took_effect is False
    assert "handed them on to inductor" in proof.detail


def test_a_backend_that_was_not_applied_is_caught(kit, compiling, monkeypatch):
    Fake(monkeypatch)
    context = kit.run(ASKED, kit.workload(Product), replace={"compile": compiling.without_options()})
    proof = COMPILE_BACKEND.evidence(context, "openvino")
    assert (proof.took_effect, proof.detail) == (False, "1 graph compiled by inductor")
    assert COMPILE_BACKEND.evidence(context, "inductor").took_effect is True


def test_parts_outside_leave_it_unknown_who_ran_what(kit, compiling, monkeypatch):
    Fake(monkeypatch, works=False)
    context = kit.run(ASKED, compiling.stack(compile_targets=("head",)))
    proof = COMPILE_BACKEND.evidence(context, "openvino")
    assert proof.took_effect is None
    assert "in parts that are not compiled or in place of the backend" in proof.detail


def test_without_compilation_no_backend_is_asked(kit):
    context = kit.run({"compile": "off"})
    assert COMPILE_BACKEND.evidence(context, "inductor").took_effect is True


def test_packages_that_are_not_installed_are_skipped(kit, monkeypatch):
    find = importlib.util.find_spec
    missing = ("openvino", "torch_tensorrt", "onnx", "onnxscript", "onnxruntime")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find(name))
    assert COMPILE_BACKEND.unmet(kit.scope(), "openvino") == "needs the package openvino, which is not installed"
    assert COMPILE_BACKEND.unmet(kit.scope(kit.AMPERE), "tensorrt") == (
        "needs the package torch_tensorrt, which is not installed"
    )
    assert COMPILE_BACKEND.unmet(kit.scope(), "tensorrt") == "needs a CUDA device, this is A CPU"
    assert COMPILE_BACKEND.unmet(kit.scope(kit.AMPERE), "openvino") == "needs a CPU device, this is NVIDIA A100"
    assert COMPILE_BACKEND.unmet(kit.scope(mode="training"), "openvino") == "is for inference only"
    assert COMPILE_BACKEND.unmet(kit.scope(), "inductor") is None


def test_a_torch_without_the_onnx_backend_is_told(kit, monkeypatch, tmp_path):
    folder, find = tmp_path / "torch", importlib.util.find_spec
    spec = types.SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "torch" else find("json"))
    assert COMPILE_BACKEND.unmet(kit.scope(), "onnxrt") == (
        "needs a torch with the backend onnxrt, which 2.13 does not have any more"
    )
    module = folder / compile_backend._ONNXRT
    module.parent.mkdir(parents=True)
    module.touch()
    assert COMPILE_BACKEND.unmet(kit.scope(), "onnxrt") is None


def test_other_modes_are_inductors_own(kit, monkeypatch):
    Fake(monkeypatch)
    tuned = {"compile": "max-autotune-no-cudagraphs", "compile_backend": "openvino"}
    assert COMPILE_BACKEND.unmet(kit.scope(), "openvino", tuned) == "needs compile=default"
    assert COMPILE_BACKEND.unmet(kit.scope(), "openvino", ASKED) is None


def test_it_is_an_argument_of_the_one_call():
    assert usage(ASKED) == (
        "import openvino.torch  # registers the backend\n"
        'model.compile(backend="openvino", '
        'options={"aot_autograd": True, "config": {"INFERENCE_PRECISION_HINT": "f32"}})'
    )


def test_openvino_itself(kit):
    pytest.importorskip("openvino.torch", reason="needs the package openvino, which is not installed")
    context, plain = kit.run(ASKED), kit.prepare({"compile": "off"})
    proof = COMPILE_BACKEND.evidence(context, "openvino")
    assert proof.took_effect is True, proof.detail
    with torch.no_grad():
        found, expected = (each.step.forward(each.batches[0]) for each in (context, plain))
    torch.testing.assert_close(found, expected)
