"""Builds synthetic reports: rows with planted speeds, statuses, memory and rounds. No torch."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from gpubench.flags import Flag
from gpubench.hardware.facts import Device, Environment
from gpubench.report.migrations import flag_object
from gpubench.report.model import (
    SCHEMA_VERSION,
    Configuration,
    Evidence,
    Measurement,
    Memory,
    Objective,
    Plan,
    Protocol,
    Quality,
    Report,
    Role,
    Round,
    Status,
    Tool,
)
from gpubench.stats.latency import latency
from gpubench.workloads.workload_facts import CompileTarget, WorkloadFacts

MIB = 2**20
TARGETS = [CompileTarget(name=name, forward_module="gpubench.workloads.vae") for name in ("encoder", "decoder")]
START = 200 * MIB  # Python and torch, before the model
BASELINE: Configuration = {"precision": "fp32", "channels_last": "off", "compile": "off"}
GPU = Device(kind="cuda", name="NVIDIA Test GPU", index=0, uuid="GPU-0", total_memory_bytes=24 * 1024 * MIB)
CPU = Device(kind="cpu", name="Test CPU", cores=2)
ROLES = {
    "baseline": Role(kind="baseline"),
    "control": Role(kind="control"),
    "all": Role(kind="all"),
    "grid": Role(kind="grid"),
    "recommendation": Role(kind="recommendation"),
}


def alone(toggle: str) -> Role:
    """The role of a technique by itself."""
    return Role(kind="alone", toggle=toggle)


def rung(toggle: str, step: int) -> Role:
    """The role of a rung of the ladder."""
    return Role(kind="ladder", toggle=toggle, step=step)


def sweep(toggle: str) -> Role:
    """The role of a sweep's row."""
    return Role(kind="sweep", toggle=toggle)


def samples(median_s: float, count: int = 11, spread: float = 0.002) -> list[float]:
    """`count` (odd) samples whose median is `median_s`, within +-`spread` of it."""
    half = count // 2
    return [median_s * (1 + spread * (index - half) / max(half, 1)) for index in range(count)]


def flag(text: str) -> Flag:
    """The flag that is displayed as `text`."""
    return msgspec.convert(flag_object(text), Flag)


def row(
    id: str,
    step_s: float | None = 0.1,
    changes: Mapping[str, str | int] | None = None,
    *,
    roles: Sequence[Role] = (),
    status: Status = "ok",
    reason: str = "",
    items: int = 8,
    explore_s: Sequence[float] | None = None,
    runoff_s: Sequence[float] = (),
    final_s: Sequence[float] = (),
    round_flags: Sequence[Sequence[str]] = (),
    memory_mib: float | None = 1000,
    warmup_mib: float | None = None,
    compile_s: float | None = 0.2,
    passed: bool | None = True,
    quality: bool = True,
    evidence: Iterable[tuple[str, str | int, bool | None]] = (),
    flags: Sequence[str] = (),
    configuration: Configuration | None = None,
    noise: float = 0.002,
) -> Measurement:
    """One measurement. `step_s` None: no figures, as of a failed row. `explore_s`, `runoff_s`, `final_s`: medians.

    Without `explore_s` one exploring process gave `step_s`. Headline figures are of the latest of these.
    `round_flags`: of the first processes; without them every process carries `flags`.
    """
    configuration = {**BASELINE, **(changes or {})} if configuration is None else configuration
    base: dict[str, Any] = {
        "id": id,
        "configuration": configuration,
        "status": status,
        "reason": reason,
        "roles": list(roles),
        "flags": [flag(text) for text in flags],
    }
    if step_s is None:
        return Measurement(**base)
    processes = [("explore", index, value) for index, value in enumerate(explore_s or [step_s], start=1)]
    processes += [("runoff", index, value) for index, value in enumerate(runoff_s, start=1)]
    processes += [("final", index, value) for index, value in enumerate(final_s, start=1)]
    rounds, flat = [], []
    for position, (phase, index, median) in enumerate(processes):
        part = samples(median, spread=noise)
        flat += part
        carried = [flag(text) for text in (round_flags[position] if position < len(round_flags) else flags)]
        rounds.append(_round(phase, index, position, len(part), median, carried))
    latest = [(phase, value) for phase, _, value in processes if phase == processes[-1][0]]
    figures = latency(
        [value for _, median in latest for value in samples(median, spread=noise)], [value for _, value in latest]
    )
    return Measurement(
        **base,
        items_per_step=items,
        fps=items / figures.median if figures.median else None,
        latency_s=figures,
        samples_s=flat,
        rounds=rounds,
        compile_time_s=compile_s,
        memory=_memory(memory_mib, warmup_mib),
        quality=_quality(passed) if quality else None,
        evidence=[
            Evidence(toggle=toggle, value=value, took_effect=effect, detail="as planted")
            for toggle, value, effect in evidence
        ],
    )


def _round(phase: Any, index: int, position: int, count: int, median_s: float, flags: list[Flag]) -> Round:
    return Round(
        phase=phase,
        index=index,
        position=position,
        started_at="2026-01-02T03:04:05+00:00",
        samples=count,
        iterations_per_sample=1,
        warmup_iterations=3,
        median_s=median_s,
        flags=flags,
    )


def _memory(peak_mib: float | None, warmup_mib: float | None) -> Memory:
    if peak_mib is None:
        return Memory(unavailable={"peak_memory_reserved_bytes": "planted as not measured"})
    peak, warmup = round(peak_mib * MIB), round((warmup_mib or peak_mib) * MIB)
    return Memory(
        peak_memory_allocated_bytes=round(peak * 0.9),
        peak_memory_reserved_bytes=peak,
        warmup_peak_memory_allocated_bytes=warmup,
        host_peak_resident_bytes=START + peak,
        host_warmup_peak_resident_bytes=START + warmup,
        host_resident_at_start_bytes=START,
    )


def _quality(passed: bool | None) -> Quality:
    reasons = {True: "within tolerance", False: "relative error 0.5 is above 0.02", None: "no reference was made"}
    error = {True: 0.0012, False: 0.5, None: None}[passed]
    return Quality(
        passed=passed,
        reason=reasons[passed],
        reference="baseline",
        relative_error=error,
        max_relative_error=0.02,
        non_finite_count=0,
    )


def baseline(step_s: float = 0.1, **options: Any) -> Measurement:
    """The row `baseline`."""
    return row("baseline", step_s, roles=[ROLES["baseline"]], **options)


def report(
    *rows: Measurement,
    device: Device = GPU,
    objective: Objective = "fps",
    finished: bool = True,
    created_at: str = "2026-01-02T03:04:05+00:00",
    **workload: Any,
) -> Report:
    """A report of those rows; keyword arguments beyond the named ones are fields of the workload."""
    facts: dict[str, Any] = {
        "reference": "vae",
        "name": "vae",
        "item": "image",
        "mode": "inference",
        "modes": ["inference", "training"],
        "size": "tiny",
        "parameters": {},
        "batch_size": 8,
        "parameter_count": 1000,
        "input_shapes": [[8, 3, 32, 32]],
    }
    return Report(
        schema_version=SCHEMA_VERSION,
        created_at=created_at,
        finished_at=created_at if finished else None,
        tool=Tool(name="gpubench", version="0.1.0"),
        device=device,
        environment=Environment(platform="Linux", python="3.11.2", torch="2.13.0"),
        workload=WorkloadFacts(**{**facts, "compile_targets": TARGETS, **workload}),
        protocol=Protocol(device_timer="cuda_event" if device.kind == "cuda" else None),
        plan=Plan(
            command="compare-opts",
            matrix="default",
            strategy="ladder",
            baseline="baseline",
            objective=objective,
            configurations=[item.id for item in rows],
        ),
        measurements=list(rows),
    )


def ladder_report(**options: Any) -> Report:
    """A whole run: baseline, control, three techniques alone, the ladder, failures, runoff and final."""
    chance = random.Random(0)

    def rounds(step_s: float) -> list[float]:
        return [step_s * (1 + chance.uniform(-0.004, 0.004)) for _ in range(5)]

    half, last, compiled = {"precision": "bf16-autocast"}, {"channels_last": "on"}, {"compile": "default"}
    return report(
        baseline(0.100, runoff_s=rounds(0.100), final_s=rounds(0.100)),
        row("control", 0.1004, roles=[ROLES["control"]]),
        row("bf16", 0.060, half, roles=[alone("precision"), rung("precision", 1)], memory_mib=600),
        row("last", 0.097, last, roles=[alone("channels_last")]),
        row("compiled", 0.080, compiled, roles=[alone("compile")], compile_s=25.0, memory_mib=900),
        row("bf16-last", 0.052, {**half, **last}, roles=[rung("channels_last", 2)], memory_mib=610),
        row(
            "all",
            0.040,
            {**half, **last, **compiled},
            roles=[rung("compile", 3), ROLES["all"], ROLES["recommendation"]],
            compile_s=40.0,
            memory_mib=580,
            runoff_s=rounds(0.041),
            final_s=rounds(0.041),
        ),
        row(
            "wrong",
            0.020,
            {"precision": "fp16-autocast"},
            status="wrong",
            reason="relative error 0.5 is above 0.02",
            passed=False,
        ),
        row(
            "idle", 0.030, {"compile": "max-autotune"}, status="not_effective", reason="dynamo hit its recompile limit"
        ),
        row("oom", None, {"compile": "reduce-overhead"}, status="oom", reason="tried to allocate 3.00 GiB"),
        row("tf32", None, {"precision": "tf32"}, status="skipped", reason="needs compute capability 8.0"),
        **options,
    )


HOSTILE = (
    "[red]red[/red]",
    "a|b",
    "<script>alert(1)</script>",
    "line\nbreak",
    "\x1b[31mansi\x1b[0m",
    "=1+1",
    "`code`",
    "[link=file:///etc/passwd]x[/link]",
    "\u202eright-to-left",
)


def hostile_report(text: str) -> Report:
    """A report that carries `text` wherever a file can put its own."""
    changes = {text: text, "precision": text}
    return msgspec.structs.replace(
        report(
            baseline(),
            row(text, 0.05, changes, roles=[alone(text), rung(text, 1)], flags=[text], evidence=[(text, text, True)]),
            row(f"{text}-failed", None, {text: "x"}, status="failed", reason=text),
            row(f"{text}-skipped", None, {text: "y"}, status="skipped", reason=text),
            device=msgspec.structs.replace(GPU, name=text),
            name=text,
            reference=text,
            size=text,
            item=text,
        ),
        notes=[text],
    )
