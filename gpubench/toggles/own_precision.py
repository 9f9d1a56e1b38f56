"""What a workload's own code computes in, where that is not what plain torch does with fp32; read without torch."""

from __future__ import annotations

from collections.abc import Callable

from gpubench.measure.quality import FP32_TOLERANCE
from gpubench.report.model import Value
from gpubench.toggles import fp32_flags
from gpubench.toggles.printed import cast_model, each_input
from gpubench.toggles.toggle import AS_BUILT, Scope
from gpubench.workloads.workload_facts import WorkloadFacts

STRICTLY_AS_BUILT = "as-built-without-tf32"  # of a reference only: its own dtypes, and no less
# See `precision.TOLERANCE`. Where fp32 is all that is known, torch may still use TF32 in convolutions on a GPU.
_TOLERANCES = {"bf16": 0.06, "fp16": 0.02, "tf32": 0.01, "fp32": 0.01, "fp64": FP32_TOLERANCE}


def undo(scope: Scope | None) -> str:
    """Code that makes plain fp32 of a model that its own code makes something else."""
    nested = scope is not None and scope.workload.nested_inputs
    cast = cast_model("torch.float32", scope is not None and scope.workload.complex_weights)
    return f"""# take autocast and torch.backends.*.fp32_precision settings of its own out of the code, and then
torch.set_default_dtype(torch.float32)
{cast}
{each_input("x.float() if x.is_floating_point() else x", nested)}"""


def own_dtypes(scope: Scope) -> list[str]:
    """What the workload's own code computes in on that device; empty where it is plain fp32."""
    facts, permitted = scope.workload, _permitted(scope)
    dtypes = {*facts.dtypes, *facts.autocast, *permitted.values()}.intersection(_TOLERANCES)
    return sorted(dtypes) if permitted or dtypes - {"fp32"} else []


def _permitted(scope: Scope) -> dict[str, str]:
    """What the workload's own code lets torch compute fp32 in, by the operators that it is about."""
    settings = scope.workload.settings
    names = {name: fp32_flags.setting(name) for name in fp32_flags.names(scope.device.kind)}
    return {name: settings[setting] for name, setting in names.items() if setting in settings}


def own_tolerance(workload: WorkloadFacts) -> float:
    """The relative output error that is allowed to what the workload's own code computes in."""
    dtypes = {*workload.dtypes, *workload.autocast, *workload.settings.values()}
    return max((_TOLERANCES[dtype] for dtype in dtypes.intersection(_TOLERANCES)), default=_TOLERANCES["fp32"])


def reference(scope: Scope) -> Value:
    """Strict fp32, or the workload's own fp64, which is more precise."""
    facts = scope.workload
    is_wide = "fp64" in facts.dtypes and {*facts.dtypes, *facts.autocast} <= {"fp32", "fp64"}
    return STRICTLY_AS_BUILT if is_wide else "fp32"


def remark(scope: Scope) -> str | None:
    """What the baseline computes in, and the reference, where the workload's own code says so."""
    facts = scope.workload
    if not own_dtypes(scope):
        return None
    own = " and ".join(sorted({*facts.dtypes, *facts.autocast}))
    own += " with autocast of its own" if facts.autocast else ""
    own += "".join(f", {name} in {dtype}" for name, dtype in _permitted(scope).items())
    compared = "strict fp32" if reference(scope) == "fp32" else "its own precision without TF32"
    return (
        f"The workload's own code computes in {own}, which is the baseline (precision={AS_BUILT}). "
        f"Outputs are compared with the same model in {compared}, where it runs in that; every other precision starts "
        "from the model in fp32."
    )


def is_own(scope: Scope) -> str | None:
    """The reason why there is no precision of the workload's own, or None."""
    return None if own_dtypes(scope) else "is for a workload whose own code sets its precision; this one's does not"


def differs_from(dtype: str) -> Callable[[Scope], str | None]:
    """Gives the reason why converting the weights to `dtype` would change nothing, or None."""

    def check(scope: Scope) -> str | None:
        same = own_dtypes(scope) == [dtype] and not scope.workload.autocast
        return f"is what the workload's own code does, which precision={AS_BUILT} measures" if same else None

    return check
