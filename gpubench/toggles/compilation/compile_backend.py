"""What compiles the graphs that dynamo captures: torch's inductor, or the compiler of another package."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gpubench.measure.trace import Trace
from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles import dynamo_records as records
from gpubench.toggles import evidence as read
from gpubench.toggles.compilation.compile_call import EAGER, usage_beside
from gpubench.toggles.toggle import Conflict, EvidenceResult, Requirement, Scope, Stage, Toggle, always

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext

_INDUCTORS = "## Call CompiledFxGraph"  # what the profiler calls inductor's code
# Relative to torch's folder: the backend's own module, which newer versions lack.
_ONNXRT = Path("onnx", "_internal", "onnxruntime.py")


def _installed(*packages: str) -> Callable[[Scope], str | None]:
    def check(_: Scope) -> str | None:
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        return f"needs the package {' and '.join(missing)}, which is not installed" if missing else None

    check.__doc__ = f"{' and '.join(packages)} installed."
    return check


def has_onnxrt(scope: Scope) -> str | None:
    """A torch that has the backend, and its packages."""
    torch = importlib.util.find_spec("torch")
    folders = (torch.submodule_search_locations if torch else None) or []
    if not any(Path(folder, _ONNXRT).exists() for folder in folders):
        version = ".".join(map(str, scope.torch_version))
        return f"needs a torch with the backend onnxrt, which {version} does not have any more"
    return _installed("onnx", "onnxscript", "onnxruntime")(scope)


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Which backend compiled each graph, and whether inductor's code or torch's own operators ran instead."""
    compiler = context.configuration.get("compile", "off")
    if compiler in EAGER:
        return EvidenceResult(True, f"compile={compiler}, so that no backend is asked")
    graphs = records.graphs_of(context)
    made = Counter(graph.backend for graph in graphs)
    words = ", ".join(f"{plural(count, 'graph')} compiled by {name}" for name, count in made.items()) or "no graph"
    if value == "inductor":  # the workload's own code may compile parts with another one
        return EvidenceResult(True, words)
    if set(made) != {value}:
        return EvidenceResult(False, words)
    trace = read.recorded(context)
    if isinstance(trace, EvidenceResult):
        return EvidenceResult(None, f"{words}; {trace.detail}")
    whole = "" in records.compiled_modules(context.model)
    return _ran_there(trace, words, sum(graph.computing for graph in graphs), whole=whole)


def _ran_there(trace: Trace, words: str, captured: int, *, whole: bool) -> EvidenceResult:
    # A backend that fails hands its graph on: to inductor, or to torch's own operators one by one.
    if any(_INDUCTORS in name for name in trace.names):
        return EvidenceResult(False, f"{words}, which handed them on to inductor, whose code ran")
    seen = len(read.compute_operators(trace))
    words += f"; they have {captured} convolutions, matrix products and attentions, and torch itself ran {seen}"
    if not captured:
        return EvidenceResult(None, f"{words}: nothing tells what ran the graphs")
    if seen and not whole:
        return EvidenceResult(None, f"{words}, in parts that are not compiled or in place of the backend")
    return EvidenceResult(seen < read.MAJORITY * captured, f"{words} in the step")


_BESIDE = {"compile": ("default",)}  # the other modes are inductor's own

COMPILE_BACKEND = Toggle(
    name="compile_backend",
    summary="torch.compile(backend=...): what compiles the graphs that dynamo captures.",
    values={
        "inductor": "torch's own compiler: Triton on a GPU, C++ on a CPU",
        "openvino": "Intel's OpenVINO, told to compute in fp32 what is fp32",
        "onnxrt": "ONNX Runtime",
        "tensorrt": "NVIDIA's TensorRT (torch_tensorrt), told not to use TF32",
    },
    stage=Stage.COMPILE,
    applies=always,
    requires={
        "openvino": Requirement(device_kinds=("cpu",), modes=("inference",), check=_installed("openvino")),
        "onnxrt": Requirement(modes=("inference",), check=has_onnxrt),
        "tensorrt": Requirement(device_kinds=("cuda",), modes=("inference",), check=_installed("torch_tensorrt")),
    },
    conflicts=(
        Conflict(value="tensorrt", other="precision", other_values=("tf32",), reason="it is told not to use TF32"),
    ),
    prerequisites={"openvino": _BESIDE, "onnxrt": _BESIDE, "tensorrt": _BESIDE},
    idle_when={"compile": EAGER},
    evidence=evidence,
    usage=lambda value, scope: usage_beside("default", scope, {"compile_backend": value}),
    usage_beside=lambda value, scope, configuration: "",
    claims=("cytodl",),
    source="OpenVINO documentation: PyTorch Deployment via torch.compile; Torch-TensorRT documentation: torch.compile "
    "backend; PyTorch documentation: ONNX Backend for TorchDynamo",
)
