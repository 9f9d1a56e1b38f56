"""Findings about what goes on now and which limits hold. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from gpubench.hardware.doctor_facts import Checkup, DoctorFinding, Severity, note, ok, on_cuda, problem
from gpubench.hardware.monitored import BUSY_PERCENT, SLOWDOWNS
from gpubench.text import plural

BUSY_SHARE = 0.10  # of all usable cores, used by others: by then a CPU measurement says more about them
FEW_SHARE = 0.02
STEAL_SHARE = 0.01
SWAP_BYTES = 2**26  # less is what an idle system has put aside long ago


def gpu_now(facts: Checkup) -> Iterator[DoctorFinding]:
    now = facts.gpu
    if now is None:
        return
    if now.other_processes:
        found = f"others use this GPU: {'; '.join(now.other_processes)}"
        yield problem("GPU load", found, "Stop them or wait: they would distort times and memory.")
    elif now.utilization_percent is not None and now.utilization_percent > BUSY_PERCENT:
        found = f"the GPU is {now.utilization_percent:.0f} % busy although nothing was started"
        yield problem("GPU load", found, "Find out who uses it (nvidia-smi); in a container it may be a neighbour.")
    elif now.other_processes is not None and now.utilization_percent is not None:
        yield ok("GPU load", f"no other process, {now.utilization_percent:.0f} % busy")
    reasons = set(now.throttle_reasons or ())
    at = "" if now.temperature_celsius is None else f" at {now.temperature_celsius:.0f} °C"
    if slow := sorted(reasons & SLOWDOWNS):
        found = f"the clocks are throttled now{at}: {', '.join(slow)}"
        yield problem("throttling", found, "Let it cool down; look at fans, dust, airflow and power cables.")
    elif "sw_power_cap" in reasons:
        found = f"the power limit lowers the clocks now{at}"
        yield note("throttling", found, "Normal under load; before a run it means that something is running.")
    elif now.throttle_reasons is not None:
        yield ok("throttling", f"none{at}")
    limit, default = now.power_limit_watts, now.default_power_limit_watts
    if limit is not None and default is not None and limit < default:
        found = f"the power limit is {limit:.0f} W, this card's default is {default:.0f} W"
        yield note("power limit", found, f"For full speed: sudo nvidia-smi -pl {default:.0f}.")
    if now.unavailable:
        kinds = ", ".join(f"{name} ({reason})" for name, reason in sorted(now.unavailable.items()))
        yield note("NVML", f"cannot be read: {kinds}", "Reports have null there, with the reason.")


def cpu_load(facts: Checkup) -> Iterator[DoctorFinding]:
    others, steal, cores = facts.other_load_cores, facts.steal_cores, facts.cpu.cores
    if others is not None:
        found = f"others use {others:.2f} of {plural(cores, 'core')}"
        if others > BUSY_SHARE * cores:
            severity: Severity = "note" if on_cuda(facts) else "problem"
            yield DoctorFinding(severity=severity, subject="CPU load", found=found, advice="Stop them or wait.")
        elif others > FEW_SHARE * cores:
            yield note("CPU load", found, "It may hide small differences.")
        else:
            yield ok("CPU load", found)
    if steal is not None and steal > STEAL_SHARE * cores:
        found = f"the hypervisor takes {steal:.2f} of {plural(cores, 'core')} for other machines"
        yield note("steal time", found, "Expect wide intervals; a dedicated machine is steadier.")


def limits(facts: Checkup) -> Iterator[DoctorFinding]:
    cpu = facts.cpu
    if cpu.cpu_quota_cores is not None and cpu.cpu_quota_cores < cpu.cores:
        found = f"the control group allows {cpu.cpu_quota_cores:g} cores' time, torch starts threads for {cpu.cores}"
        threads = max(1, int(cpu.cpu_quota_cores))
        yield problem("CPU quota", found, f"Use at most {plural(threads, 'thread')}: --fix threads={threads}.")
    if cpu.memory_limit_bytes is not None and cpu.memory_limit_bytes < (cpu.total_memory_bytes or 0):
        found = f"the control group allows {cpu.memory_limit_bytes / 2**30:.1f} GiB"
        yield note("memory limit", found, "A row that needs more is killed, and its status is oom.")
    if cpu.swap_used_bytes is not None and cpu.swap_used_bytes > SWAP_BYTES:
        found = f"{cpu.swap_used_bytes / 2**20:.0f} MiB are swapped out"
        yield note("swap", found, "If memory is short, you measure the disk: close other programs.")


def cpu_settings(facts: Checkup) -> Iterator[DoctorFinding]:
    cpu, environment = facts.cpu, facts.environment
    if facts.device is None or facts.device.kind != "cpu" or environment is None:
        return
    preloaded = environment.variables.get("LD_PRELOAD", "")
    tuned = "mmap_threshold" in environment.variables.get("GLIBC_TUNABLES", "") or any(
        name in preloaded for name in ("jemalloc", "tcmalloc", "mimalloc")
    )
    if (environment.libc or "").startswith("glibc") and not tuned:
        yield note(
            "malloc",
            "glibc's default gives large tensors back to the system and takes them again at every step",
            "Compare other ways to allocate: `gpubench toggles` lists them under stage `environment`.",
        )
    if cpu.transparent_huge_pages == "never":
        advice = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
        yield note("huge pages", "transparent huge pages are off: asking malloc for them has no effect", advice)
    if cpu.frequency_governor not in (None, "performance", "schedutil"):
        found = f"the frequency governor is {cpu.frequency_governor}"
        yield note("frequency", found, "For steadier times: sudo cpupower frequency-set -g performance.")
