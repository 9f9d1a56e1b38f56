"""One configuration inside the measured process: prepared once, sampled any number of times, checked."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from gpubench.flags import WARM_CACHE, Flag
from gpubench.measure.memory import (
    GRAIN_BYTES,
    allocation_retries,
    device_peaks,
    growth,
    host_memory,
    in_use,
    reset_device_peak,
    reset_host_peak,
)
from gpubench.measure.steady import warm_up
from gpubench.measure.stopping import StoppingRule
from gpubench.measure.timing import CudaTimer, Timer, WallTimer, calibrate, sample, sample_blocks
from gpubench.report.model import Evidence, Memory, Quality
from gpubench.worker import limits, reference
from gpubench.worker.messages import Checked, EvidenceCollected, MemoryRead, Prepare, Prepared, SamplesTaken
from gpubench.worker.prepare import apply_toggles, build, load_choice, make_batches, toggles_of, use_device
from gpubench.worker.step import Stepper

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gpubench.toggles.model_context import ModelContext

MEMORY_STEPS = 4  # three differences, whose median one late allocation cannot move
MEMORY_STEPS_LEAST = 2
MEMORY_STEPS_SURE = 16  # if memory seems to grow: an allocator's pools stop growing, a leak does not
MEMORY_PASS_S = 2.0  # steps too long for this get MEMORY_STEPS_LEAST
LEAKED_BYTES = 2**29  # growth beyond this needs no further steps

FROM_A_CACHE = "the compiled code came from a cache outside this run, so compile_time_s does not include compiling"


def came_from_cache() -> bool:
    """Whether inductor compiled nothing in this process and took all its graphs from a cache.

    Misses of AOTAutograd's cache do not matter: inductor may still have the code in its own.
    """
    from torch._dynamo.utils import counters

    seen = counters["inductor"]
    hits = seen.get("fxgraph_cache_hit", 0) + counters["aot_autograd"].get("autograd_cache_hit", 0)
    compiled = seen.get("fxgraph_cache_miss", 0) + seen.get("fxgraph_cache_bypass", 0)
    return hits > 0 and compiled == 0


class Shared(Exception):
    """The workload returns the same modules for each build, so a toggle applied to one model changes the others."""


def parts(model: nn.Module) -> set[int]:
    """Identities of a model's modules, parameters and buffers; two models that share any overlap in these."""
    return {id(part) for found in (model.modules(), model.parameters(), model.buffers()) for part in found}


class PreparedModel:
    """A model with its inputs and toggles applied. `tell` is called with the name of each phase as it begins."""

    def __init__(self, request: Prepare, tell: Callable[[str], None]) -> None:
        self.request, self.protocol, self.tell = request, request.protocol, tell
        self.phases: dict[str, float] = {}
        self.flags: list[Flag] = []
        self.context: ModelContext
        self.stepper: Stepper
        self.timer: Timer
        self.iterations = 1
        self.seconds_per_iteration = 0.0
        self.unavailable: dict[str, str] = {}
        self.memory = Memory()
        self.used_at_start: int | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Reports the phase to the tool and adds up its duration."""
        self.tell(name)
        started = time.monotonic()
        try:
            yield
        finally:
            sys.stdout.flush()
            self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - started

    def prepare(self, others: Sequence[nn.Module] = ()) -> Prepared:
        """Builds the model, applies toggles, runs the first step, checks outputs, warms up.

        Raises Shared if the model has modules, parameters or buffers in common with `others`, which live here already.
        """
        import torch._inductor.config

        request = self.request
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = request.compile_cache
        os.environ["TRITON_CACHE_DIR"] = str(Path(request.compile_cache, "triton"))
        cold = not any(Path(request.compile_cache).iterdir())
        device = use_device(request.device)
        if device.type == "cpu" and "TORCHINDUCTOR_WORKER_START" not in os.environ:
            # A forked compile worker starts at once; a new interpreter would import torch for every configuration.
            torch._inductor.config.worker_start_method = "fork"
        self.memory = Memory(host_resident_at_start_bytes=host_memory().resident)
        self.used_at_start = in_use(device)
        with self.phase("build"):
            if self.protocol.max_memory_bytes:
                limits.limit_memory(device, self.protocol.max_memory_bytes)
            loaded, mode = load_choice(request.choice)
            self.context = build(loaded, mode, device, request.configuration, self.protocol.seed)
            self.context.facts = request.facts
            if parts(self.context.model) & {part for other in others for part in parts(other)}:
                raise Shared
            batches = make_batches(loaded, self.context.batch_size, self.protocol.input_batches, self.protocol.seed)
        with self.phase("apply"):
            apply_toggles(self.context, batches)
        self.timer = CudaTimer(device) if device.type == "cuda" else WallTimer()
        self.stepper = Stepper(self.context)
        before = reference.parameters(self.context.model) if mode == "training" else {}
        with self.phase("first step"):
            self.tell("compile" if self.context.compiled else "first step")
            first = self.timer.block(lambda: self.stepper.run(0), 1).wall_s
        if self.context.compiled and cold and came_from_cache():
            self.flags.append(WARM_CACHE.flag(FROM_A_CACHE))
        quality = self.check(before)
        with self.phase("warm-up"):
            warm = warm_up(
                self.stepper.step,
                self.timer,
                min_iterations=self.protocol.warmup_min_iterations,
                min_s=self.protocol.warmup_min_s,
                max_s=self.protocol.warmup_max_s,
                block_s=self.protocol.block_s,
            )
        self.seconds_per_iteration = warm.seconds_per_iteration
        self.iterations = calibrate(warm.seconds_per_iteration, self.protocol.block_s)
        self.end_of_warmup()
        return Prepared(
            items_per_step=self.context.batch_size * self.context.workload.items_per_sample,
            compile_time_s=first,
            seconds_per_iteration=warm.seconds_per_iteration,
            warmup_iterations=warm.iterations,
            steady=warm.steady,
            quality=quality,
            flags=self.flags,
            phases_s=dict(self.phases),
        )

    def check(self, before: dict[str, torch.Tensor]) -> Quality:
        """The quality of the outputs on every batch; in training, of the first steps, which are part of the warm-up."""
        folder, tolerance = self.request.reference_folder, self.request.tolerance
        if self.context.mode == "training":
            with self.phase("warm-up"):
                losses = [] if self.stepper.loss is None else [float(self.stepper.loss)]
                losses, update = reference.training_steps(self.stepper, before, losses, self.protocol.quality_steps)
            with self.phase("quality"):
                if folder:
                    return reference.check_training(Path(folder), losses, update, tolerance)
        elif folder:
            outputs = {}
            with self.phase("warm-up"):
                for index in range(len(self.context.batches)):
                    self.stepper.run(index)
                    outputs[index] = reference.snapshot(self.stepper.output)
            with self.phase("quality"):
                return reference.check_inference(Path(folder), outputs, tolerance)
        return Quality(passed=None, reason=self.request.reference_problem, reference=reference.WHAT)

    def end_of_warmup(self) -> None:
        """Records the peaks so far, so that later figures do not include build and compilation."""
        gc.collect()
        allocated, _ = device_peaks(self.context.device)
        if allocated is None:
            for name in ("peak_memory_allocated", "peak_memory_reserved", "warmup_peak_memory_allocated"):
                self.unavailable[f"{name}_bytes"] = "torch's CPU allocator keeps no peaks"
            self.unavailable["allocation_retries"] = "torch's CPU allocator counts none"
        self.memory = replace(
            self.memory,
            warmup_peak_memory_allocated_bytes=allocated,
            host_warmup_peak_resident_bytes=host_memory().peak,
        )

    def sample(self, blocks: int | None) -> SamplesTaken:
        """Takes samples by the protocol, or that many blocks, with the garbage collector off."""
        self.tell("sampling")
        gc.collect()
        gc.disable()
        asked = time.monotonic()
        try:
            if blocks is not None:  # other models ran meanwhile and filled the caches
                self.timer.block(self.stepper.step, calibrate(self.seconds_per_iteration, self.protocol.block_s / 5))
            started = time.monotonic()
            if blocks is None:
                given = self.protocol
                rule = StoppingRule(given.min_samples, given.min_sampling_s, given.target_spread, given.max_sampling_s)
                taken = sample(self.stepper.step, self.timer, iterations=self.iterations, rule=rule)
            else:
                taken = sample_blocks(self.stepper.step, self.timer, iterations=self.iterations, count=blocks)
            ended = time.monotonic()
        finally:
            gc.enable()
        return SamplesTaken(
            samples_s=list(taken.seconds),
            device_samples_s=None if taken.device_seconds is None else list(taken.device_seconds),
            iterations_per_sample=taken.iterations_per_sample,
            unmet=taken.unmet,
            warmup_s=started - asked if blocks is not None else 0.0,
            started=started,
            ended=ended,
        )

    def check_last(self, *, every_batch: bool) -> Checked:
        """The quality of the last timed output; with `every_batch`, also of one step on each other batch.

        A stale buffer is right for the batch that filled it, possibly the last timed one; another batch exposes it.
        """
        if self.context.mode != "inference" or not self.request.reference_folder or self.stepper.last_batch < 0:
            return Checked(None)
        last = self.stepper.last_batch
        outputs = {last: reference.snapshot(self.stepper.output)}
        for index in range(len(self.context.batches) if every_batch else 0):
            if index != last:
                self.stepper.run(index)
                outputs[index] = reference.snapshot(self.stepper.output)
        return Checked(reference.check_inference(Path(self.request.reference_folder), outputs, self.request.tolerance))

    def measure_memory(self) -> MemoryRead:
        """Memory peaks over a few untimed steps that begin with an empty cache, and the growth from step to step."""
        self.tell("memory")
        started, device = time.monotonic(), self.context.device
        gc.collect()
        reset_device_peak(device)
        if problem := host_memory().unavailable or reset_host_peak():
            self.unavailable["host_peak_resident_bytes"] = problem
        retries = allocation_retries(device)
        count = MEMORY_STEPS if self.seconds_per_iteration * MEMORY_STEPS <= MEMORY_PASS_S else MEMORY_STEPS_LEAST
        levels: list[int | None] = []
        while len(levels) < count or (
            len(levels) < MEMORY_STEPS_SURE
            and (self.growth(levels) or 0) >= GRAIN_BYTES
            and (levels[-1] or 0) - (levels[0] or 0) < LEAKED_BYTES
            and time.monotonic() - started < MEMORY_PASS_S
        ):
            self.timer.block(self.stepper.step, 1)
            levels.append(in_use(device))
        allocated, reserved = device_peaks(device)
        later = allocation_retries(device)
        growth = self.growth(levels)
        if growth is None:
            self.unavailable["growth_bytes_per_iteration"] = "memory could not be read after each step"
        memory = replace(
            self.memory,
            peak_memory_allocated_bytes=allocated,
            peak_memory_reserved_bytes=reserved,
            host_peak_resident_bytes=host_memory().peak,
            allocation_retries=None if retries is None or later is None else later - retries,
            growth_bytes_per_iteration=growth,
            unavailable=self.unavailable,
        )
        return MemoryRead(memory, time.monotonic() - started)

    def growth(self, levels: Sequence[int | None]) -> int | None:
        """Bytes that each step adds; `levels` are readings after each step."""
        return growth(levels, self.used_at_start, self.stepper.steps)

    def collect_evidence(self) -> EvidenceCollected:
        """Each toggle's evidence, from one profiled step and the libraries' own records."""
        from gpubench.measure.trace import trace_step

        context = self.context
        with self.phase("evidence"):
            try:
                context.trace = trace_step(self.stepper.step, cuda=context.device.type == "cuda")
            except Exception as error:  # noqa: BLE001 - the evidence that needs the trace reports it
                context.trace_error = f"the profiler failed: {type(error).__name__}: {error}".splitlines()[0]
            results = [
                (toggle, value, toggle.evidence(context, value)) for toggle, value in toggles_of(context.configuration)
            ]
        breaks = [result.graph_breaks for _, _, result in results if result.graph_breaks is not None]
        return EvidenceCollected(
            evidence=[
                Evidence(
                    toggle=toggle.name,
                    value=value,
                    took_effect=result.took_effect,
                    detail=result.detail,
                    name=result.name,
                )
                for toggle, value, result in results
            ],
            flags=[result.flag for _, _, result in results if result.flag],
            seconds=self.phases["evidence"],
            graph_breaks=breaks[0] if breaks else None,
            device_busy_s=context.trace.device_busy_s if context.trace else None,
        )
