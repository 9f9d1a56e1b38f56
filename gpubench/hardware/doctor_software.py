"""Findings about torch, device, driver, libraries and compiler. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gpubench.hardware.doctor_facts import Checkup, DoctorFinding, Severity, note, ok, on_cuda, problem
from gpubench.hardware.facts import Device, Environment
from gpubench.text import plural

OLDEST_TORCH = (2, 6)  # as the package requires
INSTALL_TORCH = "Install torch as https://pytorch.org/get-started/locally/ says for this machine."
INSTALL_COMPILER = (
    "Install one (Debian, Ubuntu: apt install g++; Fedora, RHEL: dnf install gcc-c++; conda: conda install gxx), "
    "or name another in CXX."
)
INSTALL_HEADERS = "Debian, Ubuntu: apt install python3-dev; Fedora, RHEL: dnf install python3-devel."


def _numbers(version: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def torch_itself(facts: Checkup) -> Iterator[DoctorFinding]:
    if facts.torch_error or facts.environment is None:
        yield problem("torch", f"does not work: {facts.torch_error or 'the reason is unknown'}", INSTALL_TORCH)
    elif _numbers(facts.environment.torch) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        yield problem("torch", f"{facts.environment.torch} is older than {oldest}", f"Upgrade it. {INSTALL_TORCH}")
    else:
        yield ok("torch", facts.environment.torch)


def device(facts: Checkup) -> Iterator[DoctorFinding]:
    if facts.device is not None:
        yield ok("device", _device_line(facts.device))
    elif not facts.torch_error:
        yield problem("device", facts.device_error, "Name one that is there, or see the findings below.")
    if facts.requested == "cpu" or facts.environment is None or len(facts.present) > 1:
        return
    if facts.cards:
        yield _unused_gpu(facts.environment, ", ".join(facts.cards), facts.cuda_problem)
    elif facts.cuda_problem:
        yield problem("GPU", f"CUDA does not start. {facts.cuda_problem}", "It cannot be measured on until then.")
    elif facts.nvml_foreign:
        return
    elif facts.environment.cuda and facts.nvml_error:
        found = f"torch is built for CUDA, but no GPU can be used: {facts.nvml_error}"
        yield note("GPU", found, "Nothing to do where there is no GPU; else install or repair its driver.")
    elif facts.nvml_error:
        yield ok("GPU", f"none found ({facts.nvml_error}), so there is no driver, CUDA or cuDNN to look at")


def _device_line(it: Device) -> str:
    size = f", {it.total_memory_bytes / 2**30:.1f} GiB" if it.total_memory_bytes else ""
    fast = ", ".join(it.fast_dtypes)
    if it.kind == "cuda":
        capability = ".".join(map(str, it.compute_capability or ()))
        card = f" ({it.uuid})" if it.uuid else ""
        return f"cuda:{it.index} {it.name}{card}{size}, compute capability {capability}; fast: {fast}"
    return f"{it.name}, {plural(it.cores or 0, 'core')}{size}; fast: {fast}"


def nvml_package(facts: Checkup) -> Iterator[DoctorFinding]:
    if facts.nvml_foreign:
        severity: Severity = "problem" if on_cuda(facts) else "note"
        without = "Without it nothing is known of a GPU's clocks, heat and other users. A CPU is measured all the same."
        yield DoctorFinding(severity, "NVML", f"cannot be used: {facts.nvml_error}", without)


def _unused_gpu(environment: Environment, cards: str, cuda_problem: str) -> DoctorFinding:
    visible = environment.variables.get("CUDA_VISIBLE_DEVICES")
    if environment.cuda is None:
        found = f"{cards} is here, but torch {environment.torch} is built without CUDA"
        return problem("GPU", found, INSTALL_TORCH)
    if visible is not None and not re.match(r"\s*(\d|GPU-|MIG-)", visible):
        found = f"{cards} is here, but CUDA_VISIBLE_DEVICES={visible!r} hides it"
        return note("GPU", found, "Unset CUDA_VISIBLE_DEVICES to use it.")
    if cuda_problem:
        return problem(
            "GPU", f"{cards} is here, but CUDA does not start. {cuda_problem}", "Until then the CPU is measured."
        )
    found = f"{cards} is here, but torch cannot use it"
    return problem("GPU", found, "Try: python -c 'import torch; torch.zeros(1, device=\"cuda\")', and read its error.")


def driver(facts: Checkup) -> Iterator[DoctorFinding]:
    if facts.nvml_foreign or (not on_cuda(facts) and not facts.cards):
        return
    if facts.nvml_error:
        yield note(
            "driver",
            f"NVML cannot be used: {facts.nvml_error}",
            "Power, clocks and throttling will be missing from reports. In a container, add the utility capability.",
        )
        return
    for reason in facts.unreadable:
        yield problem(
            "GPU", reason, "See nvidia-smi and the kernel's log (dmesg); restart the machine, or take the card out."
        )
    yield ok("driver", facts.driver_version or "version unknown")
    cuda = facts.environment.cuda if facts.environment else None
    if not cuda or not facts.driver_cuda or facts.cuda_problem:
        return
    newest = ".".join(map(str, facts.driver_cuda))
    needed = _numbers(cuda)
    if needed[0] > facts.driver_cuda[0]:
        yield problem(
            "CUDA",
            f"torch is built for CUDA {cuda}, the driver runs {newest} at most",
            f"Update the driver, or install torch for CUDA {facts.driver_cuda[0]}.",
        )
    elif needed > tuple(facts.driver_cuda):
        yield note(
            "CUDA",
            f"torch is built for CUDA {cuda}, the driver knows {newest}",
            "It runs, except for code that is compiled when loaded (PTX); update the driver to run that too.",
        )
    else:
        yield ok("CUDA", f"{cuda} in torch, the driver runs up to {newest}")


def gpu_code(facts: Checkup) -> Iterator[DoctorFinding]:
    if facts.device is None or not facts.device.compute_capability or not facts.architectures:
        return
    major, minor = facts.device.compute_capability
    built = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name) for name in facts.architectures]
    targets = [(found[1], int(found[2]), int(found[3])) for found in built if found]
    # Machine code runs on its own major version from its minor version on; PTX (compute_) on everything newer.
    runs = any(kind == "sm" and at == major and step <= minor for kind, at, step in targets)
    translated = any(kind == "compute" and (at, step) <= (major, minor) for kind, at, step in targets)
    listed = ", ".join(facts.architectures)
    if not runs and not translated:
        found = f"this torch has no code for compute capability {major}.{minor} (it has {listed})"
        yield problem(
            "GPU code", found, "Use a newer torch, or one for a newer CUDA: https://pytorch.org/get-started/locally/."
        )
    elif not runs:
        found = f"this torch has only PTX for compute capability {major}.{minor}, translated when first loaded"
        yield note("GPU code", found, "The first start is slow and kernels may be too; a newer torch may have it.")


def libraries(facts: Checkup) -> Iterator[DoctorFinding]:
    if not on_cuda(facts) or facts.environment is None:
        return
    for subject, version, missing, advice in (
        ("cuDNN", facts.environment.cudnn, "torch has none: convolutions will be slow", INSTALL_TORCH),
        ("triton", facts.environment.triton, "is missing: torch.compile fails on a GPU", "pip install triton"),
    ):
        yield ok(subject, version) if version else problem(subject, missing, advice)


def compiler(facts: Checkup) -> Iterator[DoctorFinding]:
    if facts.environment is None:
        return
    if facts.environment.compiler:
        yield ok("compiler", facts.environment.compiler)
    else:
        on_gpu = " (on a GPU, triton needs one to build its launchers)" if on_cuda(facts) else ""
        yield problem("compiler", f"there is no C++ compiler: torch.compile fails{on_gpu}", INSTALL_COMPILER)
    if not facts.python_headers:
        found = "Python.h is missing: torch.compile fails"
        yield problem("Python headers", found, INSTALL_HEADERS)


def steering(facts: Checkup) -> Iterator[DoctorFinding]:
    variables = facts.environment.variables if facts.environment else {}
    for name, (bad, severity, found, advice) in VARIABLES.items():
        if name in variables and (bad is None or variables[name] == bad):
            text = f"{name}={variables[name]}: {found}"
            yield DoctorFinding(severity=severity, subject="environment", found=text, advice=advice)


# Variable -> the value that matters (None: any), how bad it is, what it does, what to do.
VARIABLES: dict[str, tuple[str | None, Severity, str, str]] = {
    "CUDA_LAUNCH_BLOCKING": ("1", "problem", "every kernel waits for the one before", "Unset it."),
    "PYTORCH_NO_CUDA_MEMORY_CACHING": ("1", "problem", "every tensor is allocated from the driver", "Unset it."),
    "NVIDIA_TF32_OVERRIDE": (None, "note", "overrides the precision that a row asks for", "Unset it."),
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": (
        "1",
        "note",
        "torch begins with TF32 in matrix products, and so does the baseline, as if the workload's own code had set it",
        "Unset it to measure from torch's own default.",
    ),
    "OMP_NUM_THREADS": (
        None,
        "note",
        "sets the threads of every row on a CPU",
        "Unset it to let the threads toggle decide.",
    ),
    "TORCHDYNAMO_DISABLE": ("1", "problem", "torch.compile does nothing", "Unset it."),
    "TORCH_COMPILE_DISABLE": ("1", "problem", "torch.compile does nothing", "Unset it."),
}
