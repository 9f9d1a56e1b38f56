"""What a report holds, typed once: validation, JSON and the JSON Schema all come from here.

A field that could not be read is `None`, and its reason stands in the `unavailable` mapping beside it.
Suffixes are units. Nothing here imports torch.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from gpubench.flags import Flag
from gpubench.hardware.facts import Device, Environment
from gpubench.workloads.workload_facts import WorkloadFacts

SCHEMA_VERSION = 2

Value = str | int  # of a toggle
Configuration = dict[str, Value]  # toggle name -> value, for every toggle that applies
Status = Literal["ok", "skipped", "not_effective", "unproven", "wrong", "oom", "timeout", "crashed", "failed"]
Objective = Literal["fps", "latency", "memory"]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]  # 30 years: beyond it figures overflow
Count = Annotated[int, Meta(ge=0, le=2**53)]  # what a float holds exactly
Bytes = Count


class Tool(Struct, frozen=True, kw_only=True):
    """The gpubench that wrote the report."""

    name: str
    version: str


class Protocol(Struct, frozen=True, kw_only=True):
    """How each row was measured; rows measured under different protocols are not compared."""

    revision: int = 2  # raised whenever what is done around the samples changes, so that figures before do not compare
    timer: Literal["perf_counter"] = "perf_counter"  # of `samples_s`; blocks are synchronized on both sides
    device_timer: Literal["cuda_event"] | None = None  # beside it, around the same blocks
    interval: str = "Student's t, 95 %, over the logarithms of the processes' medians, with the machine's drift"
    machine_drift: float = 0.0  # standard deviation of the machine's own speed over minutes, a part of `interval`
    # Inputs are on the device beforehand: fetch picks a batch and transfer does nothing, unless a toggle changes them.
    timed_parts: str = "fetch, transfer, zero_grad, forward, backward, update, collect"
    block_s: float = 0.05  # least length of one sample
    min_samples: int = 10
    min_sampling_s: float = 0.5
    max_sampling_s: float = 3.0
    target_spread: float = 0.005  # stop when the samples' relative interquartile range is below this
    warmup_min_iterations: int = 25  # keeps a start that is slow for 20 iterations out of the samples
    warmup_min_s: float = 1.5  # enough, where steps are long
    warmup_max_s: float = 4.0
    input_batches: int = 2  # rotated, so that a stale output shows
    quality_steps: int = 3  # training steps whose losses and parameters are compared
    timeout_s: float = 600.0
    rounds: int = 1  # processes of every configuration while exploring
    final_rounds: int = 0  # rounds of the final between baseline and choice; 0: no runoff and no final
    turns: int = 4  # of each configuration in a round: ABBA ABBA, so that a linear drift falls on all alike
    pair: Literal["process", "round"] = "process"  # of `ab`: both sides in one process where that can be, or one each
    cool_down_s: float = 60.0  # the longest wait for a device that throttles before it is sampled again
    throttle_retries: int = 3
    monitor_hz: float = 20.0
    seed: int = 0
    max_memory_bytes: Bytes | None = None


class Latency(Struct, frozen=True, kw_only=True):
    """Seconds per step by the wall clock, over the processes of the row's latest phase.

    `median` is the geometric mean of the processes' medians, `p5` and `p95` are of all their samples. The interval is
    over processes and includes the machine's drift. It is None below 3 processes: samples of one process say nothing
    about the next.
    """

    median: Seconds
    p5: Seconds
    p95: Seconds
    ci_low: Seconds | None
    ci_high: Seconds | None
    processes: int = 1


class Memory(Struct, frozen=True, kw_only=True):
    """Peaks in bytes. `peak_*` are of the measured steps, `warmup_*` of build, compile and warm-up."""

    peak_memory_allocated_bytes: Bytes | None = None
    peak_memory_reserved_bytes: Bytes | None = None
    warmup_peak_memory_allocated_bytes: Bytes | None = None
    device_process_memory_bytes: Bytes | None = None  # NVML: includes the context, which torch does not see
    device_context_bytes: Bytes | None = None  # beyond torch's allocator: CUDA context, libraries and loaded kernels
    host_peak_resident_bytes: Bytes | None = None
    host_warmup_peak_resident_bytes: Bytes | None = None
    host_resident_at_start_bytes: Bytes | None = None  # Python and torch, before the model is built
    allocation_retries: int | None = None  # of torch's CUDA allocator: cached blocks were given back to make room
    # Median over the steps of the memory pass; a leak, if it stays.
    growth_bytes_per_iteration: Annotated[int, Meta(ge=-(2**53), le=2**53)] | None = None
    unavailable: dict[str, str] = field(default_factory=dict)


class StageUse(Struct, frozen=True, kw_only=True):
    """What one named part of the model takes of a step. The device is waited for around it, so it is no part of FPS."""

    name: str  # dotted, as the workload names it
    calls: int  # of it as a module, in one step
    seconds: Seconds | None = None  # of all of them; None where there is none
    peak_memory_allocated_bytes: Bytes | None = None  # of the device's allocator while it runs; None on a CPU
    host_peak_resident_bytes: Bytes | None = None  # of the process while it runs


class Reading(Struct, frozen=True, kw_only=True):
    """One monitored quantity over the sampling window."""

    mean: float
    min: float
    max: float
    count: int


class Utilization(Struct, frozen=True, kw_only=True):
    """What the monitor saw while samples were taken; see `unavailable` for what is None and why."""

    gpu_utilization_percent: Reading | None = None  # NVML: share of time with any kernel running, not occupancy
    memory_utilization_percent: Reading | None = None
    memory_used_bytes: Reading | None = None
    power_watts: Reading | None = None
    energy_joules: float | None = None  # over the window, of the whole device
    energy_per_item_joules: float | None = None
    temperature_celsius: Reading | None = None
    sm_clock_mhz: Reading | None = None
    memory_clock_mhz: Reading | None = None
    sm_activity_percent: Reading | None = None  # NVML GPM (Hopper and newer): share of multiprocessors with a warp
    tensor_activity_percent: Reading | None = None  # NVML GPM: share of time in which tensor cores worked
    dram_activity_percent: Reading | None = None  # NVML GPM: share of peak DRAM bandwidth
    throttle_reasons: list[str] | None = None
    other_processes: list[str] | None = None
    process_cpu_percent: Reading | None = None  # 100 = one core busy
    process_resident_bytes: Reading | None = None
    unavailable: dict[str, str] = field(default_factory=dict)


class HostUse(Struct, frozen=True, kw_only=True):
    """What the host did while samples were taken; see `unavailable` for what is None and why."""

    seconds: Seconds
    steal_cores: float | None = None  # taken by the hypervisor, on the cores that this run may use
    other_cores: float | None = None  # kept busy by processes that are not this run's
    idle_cores: float | None = None  # of those that this run may use
    busiest_other: str | None = None  # the process among them that used most CPU time; None too where there is none
    involuntary_switches: int | None = None  # times that the kernel took a core away from the worker
    major_faults: int | None = None  # pages of the worker that had to be read from disk or swap
    swapped_bytes: Bytes | None = None  # of the worker, at the end
    quota_throttled_s: float | None = None  # the control group's CPU quota held its processes back for so long
    unavailable: dict[str, str] = field(default_factory=dict)


class StepCounts(Struct, frozen=True, kw_only=True):
    """What one step does, counted: the same in every run of the same software, however busy the machine is."""

    operators: Count | None = None  # calls, those that operators make themselves included; a CUDA graph hides them
    kernels: Count | None = None  # on a GPU
    flops: Count | None = None  # of convolutions, matrix products and attentions; None where some cannot be counted
    bytes_allocated: Bytes | None = None  # in the device's memory, those given back within the step included
    frames_compiled: Count | None = None  # up to and with that step; None where nothing was compiled
    recompiles: Count | None = None  # of these, of frames that were compiled before
    copies_to_device: Count | None = None  # from the host's memory
    synchronizations: Count | None = None  # times that the host waited for the GPU
    work: dict[str, float] = field(default_factory=dict)  # share of the FLOPs by dtype: {"bf16": 0.9, "fp32": 0.1}


class Evidence(Struct, frozen=True, kw_only=True):
    """Whether a toggle's value really took effect; None: it could not be read."""

    toggle: str
    value: Value
    took_effect: bool | None
    detail: str
    name: str = ""  # what the value turned out to be, where the workload's own code makes it: "as built: bf16"


class OutputQuality(Struct, frozen=True, kw_only=True):
    """One tensor of the output against the reference's; the worst of the inputs compared."""

    name: str  # its path: "output", "output.boxes"; "" of all
    passed: bool | None  # None: it cannot be compared, see `note`
    note: str  # what is wrong, or what was not compared
    relative_error: float | None = None  # ||out - ref|| / ||ref||; of classes, masks and sets the share that differs
    cosine_similarity: float | None = None
    norm_ratio: float | None = None
    non_finite_count: int = 0


class Quality(Struct, frozen=True, kw_only=True):
    """Outputs against the fp32 baseline's on the same inputs; figures are those of the worst output."""

    passed: bool | None  # None: there was nothing to compare with, see `reason`
    reason: str
    reference: str
    relative_error: float | None = None  # ||out - ref|| / ||ref||; of classes, masks and sets the share that differs
    cosine_similarity: float | None = None
    norm_ratio: float | None = None  # ||out|| / ||ref||; cosine alone accepts outputs scaled by 2
    non_finite_count: int | None = None
    max_relative_error: float | None = None  # the tolerance
    losses: list[float | None] | None = None  # training: of the first seeded steps; null where not finite
    reference_losses: list[float | None] | None = None
    parameter_relative_error: float | None = None  # training: of the parameters' change over those steps
    lost_update_share: float | None = None  # training: parameters that the reference moved and this one did not
    outputs: list[OutputQuality] = field(default_factory=list)  # inference: the worst 16, worst first
    not_compared: str = ""  # where others passed: what could not be compared, and why
    filled_parameters: list[str] = field(default_factory=list)  # zero or tiny: they had random values while checked


class ValueRange(Struct, frozen=True, kw_only=True):
    """What layers gave in fp16 or bf16 in one step after the measured ones, run eagerly."""

    dtypes: list[str]  # "float16"
    largest_activation: float  # the largest |value| that is finite
    largest_in: str  # the layer that gave it, by its dotted name or else its class
    near_overflow: float  # share of the values above half of their dtype's largest number, or not finite
    subnormal: float  # share of the values below their dtype's smallest normal number, and not zero


class Role(Struct, frozen=True, kw_only=True):
    """Why a configuration is in the matrix."""

    kind: Literal["baseline", "alone", "ladder", "all", "recommendation", "control", "grid", "sweep"]
    toggle: str | None = None  # the technique that this row adds
    step: int | None = None  # ladder: 1, 2, ...


class Round(Struct, frozen=True, kw_only=True):
    """One fresh process's share of `samples_s`, in order."""

    phase: Literal["explore", "runoff", "final"]
    index: int  # the round within its phase, from 1
    position: int  # how many processes of configurations were measured before this one in the whole run
    started_at: str
    samples: int
    iterations_per_sample: int
    warmup_iterations: int
    median_s: Seconds  # of the samples
    device_median_s: Seconds | None = None  # between CUDA events around the same blocks
    turns: list[int] = field(default_factory=list)  # interleaved with others: samples of each turn; else empty
    shared_with: list[str] = field(default_factory=list)  # ids of the rows that lived in the same process
    flags: list[Flag] = field(default_factory=list)


class Measurement(Struct, frozen=True, kw_only=True):
    """The result of one configuration."""

    id: str
    configuration: Configuration
    status: Status
    reason: str  # one sentence; empty for a plain `ok`
    roles: list[Role]
    items_per_step: Annotated[int, Meta(ge=1, le=2**53)] | None = None
    fps: Annotated[float, Meta(ge=0, le=1e15)] | None = None  # items per second
    latency_s: Latency | None = None
    samples_s: list[Seconds] = field(default_factory=list)  # seconds per step, raw, wall clock, round after round
    device_samples_s: list[Seconds] = field(default_factory=list)  # the same between CUDA events; empty on a CPU
    rounds: list[Round] = field(default_factory=list)
    compile_time_s: Seconds | None = None  # the first call, apart from all later ones
    graph_breaks: Count | None = None  # that dynamo counted; None where nothing was compiled
    counts: StepCounts | None = None  # of one step
    device_busy_s: Seconds | None = None  # of one step: kernels and copies ran on the GPU for so long
    host_bound_fraction: Annotated[float, Meta(ge=0, le=1)] | None = None  # of the step, to enqueue it on an idle GPU
    memory: Memory | None = None
    stages: list[StageUse] = field(default_factory=list)  # of the workload's named parts, in its order
    utilization: Utilization | None = None
    host: HostUse | None = None
    quality: Quality | None = None
    value_range: ValueRange | None = None  # where the row computes in less than fp32
    evidence: list[Evidence] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)
    phases_s: dict[str, float] = field(default_factory=dict)  # where this row's time went
    unavailable: dict[str, str] = field(default_factory=dict)  # why figures of this row itself are None
    log_tail: str = ""

    @property
    def is_control(self) -> bool:
        """Whether it is the A/A control: the baseline measured once more."""
        return any(role.kind == "control" for role in self.roles)

    def samples_by_round(self) -> list[tuple[Round, list[float]]]:
        """Each process of the row with its samples."""
        ends = list(itertools.accumulate(part.samples for part in self.rounds))
        return [(part, self.samples_s[end - part.samples : end]) for part, end in zip(self.rounds, ends, strict=True)]


class Recommendation(Struct, frozen=True, kw_only=True):
    """The best valid row under the objective and limits, and why."""

    id: str
    configuration: Configuration
    objective: Objective
    speedup: float | None  # baseline latency per item / this row's
    speedup_low: float | None = None  # 95 % interval; None below 3 processes
    speedup_high: float | None = None
    versus: str  # the id of the row that speedup is relative to
    reasons: list[str]
    tied_with: list[str]
    rounds: int = 0  # of the final that the speedup is from; 0: from exploring alone
    detectable: float | None = None  # the smallest slowdown or speedup that so many rounds would find (0.02: 2 %)
    noise: float  # relative difference below which two rows count as tied
    # A/A: the speed-up over the baseline of the baseline itself, measured once more in the rounds of the final
    control: float | None = None
    control_low: float | None = None  # 95 % interval; None below 3 rounds
    control_high: float | None = None


class Plan(Struct, frozen=True, kw_only=True):
    """What the run set out to measure, so that it can be resumed."""

    command: str
    matrix: str
    strategy: str
    baseline: str  # id of the baseline row
    objective: Objective
    allow: list[str] = field(default_factory=list)  # flags that do not keep a row from being recommended
    set: dict[str, list[Value]] = field(default_factory=dict)
    fix: dict[str, Value] = field(default_factory=dict)
    configurations: list[str] = field(default_factory=list)  # ids, in order


class Summary(Struct, frozen=True, kw_only=True):
    """Conclusions of a sweep; None where the command was no sweep."""

    toggle: str
    knee: Value | None  # the smallest value within 5 % of the best FPS
    largest_fitting: Value | None
    reason: str


class Adoption(Struct, frozen=True, kw_only=True):
    """When and why a report was made a baseline."""

    at: str  # UTC, ISO 8601
    reason: str
    replaces: str | None  # created_at of the baseline before it; None: there was none


class Report(Struct, frozen=True, kw_only=True):
    """One run: one workload, one mode, one device."""

    schema_version: int
    created_at: str  # UTC, ISO 8601
    finished_at: str | None  # None: the run was cut off and can be resumed
    tool: Tool
    device: Device
    environment: Environment
    workload: WorkloadFacts
    protocol: Protocol
    plan: Plan
    measurements: list[Measurement]
    recommendation: Recommendation | None = None
    sweep: Summary | None = None
    session: str | None = None  # reports of one session were measured in the same interleaved rounds, see `Round.index`
    adopted: Adoption | None = None  # where it is a baseline (`gpubench check --update`)
    harness: dict[str, float] = field(default_factory=dict)  # seconds the tool itself took, by part
    notes: list[str] = field(default_factory=list)

    def find(self, id: str) -> Measurement | None:
        """The row of that id, or None."""
        return next((row for row in self.measurements if row.id == id), None)

    @property
    def baseline(self) -> Measurement | None:
        """The row that the others are compared with; None before it was measured."""
        return self.find(self.plan.baseline)
