"""One configuration inside the measured process: prepared once, sampled any number of times, checked."""

from __future__ import annotations

import gc
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from gpubench.flags import KEEPS_STATE, MEMOIZED, SPEED_CHANGED, WARM_CACHE, Flag
from gpubench.measure.compile_cache import came_from_cache
from gpubench.measure.memory import (
    LEAK_BYTES,
    allocation_retries,
    beyond_allocator,
    device_peaks,
    growth,
    host_memory,
    in_use,
    is_exact,
    reset_device_peak,
    reset_host_peak,
)
from gpubench.measure.outputs import MAX_SHOWN
from gpubench.measure.quality import FP32_TOLERANCE
from gpubench.measure.repeat import Pace, change, time_again
from gpubench.measure.run_delay import run_delay_s
from gpubench.measure.stages import stage_use
from gpubench.measure.steady import warm_up
from gpubench.measure.stopping import StoppingRule
from gpubench.measure.timing import CudaTimer, Timer, WallTimer, calibrate, enqueue_seconds, sample, sample_blocks
from gpubench.measure.value_range import IN_FP32, NOTHING_LOWER, watch
from gpubench.report.model import Evidence, Memory, Quality, Value
from gpubench.text import kind_and_message
from gpubench.units import format_duration
from gpubench.worker import fingerprint, limits, reference
from gpubench.worker.counts import step_counts
from gpubench.worker.fill import Filled
from gpubench.worker.memoized import memoized
from gpubench.worker.messages import Checked, EvidenceCollected, MemoryRead, Prepare, Prepared, RangeSeen, SamplesTaken
from gpubench.worker.prepare import apply_toggles, build, load_choice, make_batches, toggles_of, use_device
from gpubench.worker.reference import Reference
from gpubench.worker.repeatability import sequence
from gpubench.worker.seeding import seed_step
from gpubench.worker.settling import TrainingStart, settled_steps
from gpubench.worker.step import Stepper

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gpubench.toggles.model_context import ModelContext
    from gpubench.toggles.toggle import EvidenceResult, Toggle

MEMORY_STEPS = 4  # three differences, whose median one late allocation cannot move
MEMORY_STEPS_LEAST = 2
MEMORY_STEPS_SURE = 16  # if memory seems to grow: an allocator's pools stop growing, a leak does not
MEMORY_PASS_S = 2.0  # steps too long for this get MEMORY_STEPS_LEAST
LEAKED_BYTES = 2**29  # growth beyond this needs no further steps

FROM_A_CACHE = "the compiled code came from a cache outside this run, so compile_time_s does not include compiling"


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
        self.reference: Reference | None = None
        self.iterations = 1
        self.seconds_per_iteration = 0.0
        self.unavailable: dict[str, str] = {}
        self.memory = Memory()
        self.start: TrainingStart | None = None  # where updates may be skipped at first
        self.used_when_warm: int | None = None
        self.steps_when_warm = 0
        self.sampled = Pace([], 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Reports the phase to the tool and adds up its duration."""
        self.tell(name)
        started = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - started

    def prepare(self, others: Sequence[nn.Module] = ()) -> Prepared:
        """Builds the model, applies toggles, runs the first step, checks outputs, warms up.

        Raises Shared if the model has modules, parameters or buffers in common with `others`, which live here already.
        """
        import torch._inductor.config
        from torch._dynamo.utils import counters

        request = self.request
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = request.compile_cache
        os.environ["TRITON_CACHE_DIR"] = str(Path(request.compile_cache, "triton"))
        cold = not any(Path(request.compile_cache).iterdir())
        if not cold:  # nothing is left to compile: a pool of compilers would import torch while samples are taken
            torch._inductor.config.compile_threads = 1
        device = use_device(request.device)
        if device.type == "cpu" and "TORCHINDUCTOR_WORKER_START" not in os.environ:
            # A forked compile worker starts at once; a new interpreter would import torch for every configuration.
            torch._inductor.config.worker_start_method = "fork"
        self.memory = Memory(host_resident_at_start_bytes=host_memory().resident)
        with self.phase("build"):
            self.limit_memory(device)
            loaded, mode = load_choice(request.choice)
            self.context = build(loaded, mode, device, request.configuration, self.protocol.seed)
            self.context.facts = request.facts
            if parts(self.context.model) & {part for other in others for part in parts(other)}:
                raise Shared
            batches = make_batches(loaded, self.context.batch_size, self.protocol.input_batches, self.protocol.seed)
            if request.reference_folder:
                built, how = fingerprint.of(self.context.model, batches), loaded.workload.compare
                self.reference = Reference(Path(request.reference_folder), request.configuration, built, how)
                if self.reference.facts.state:
                    self.flags.append(KEEPS_STATE.flag(self.reference.facts.state))
            filled = Filled(self.context.model, self.protocol.seed)
        with self.phase("apply"):
            apply_toggles(self.context, batches)
        self.timer = CudaTimer(device) if device.type == "cuda" else WallTimer()
        self.stepper = Stepper(self.context)
        moves = mode == "training" or (self.reference is not None and self.reference.facts.moves)
        before = reference.parameters(self.context.model) if moves else {}
        self.start = TrainingStart(self.context) if self.context.skipped else None
        seed_step(self.protocol.seed, 0)
        with self.phase("first step"):
            self.tell("compile" if self.context.compiled else "first step")
            first = self.timer.block(lambda: self.stepper.run(0), 1).wall_s
        if self.context.compiled and cold and came_from_cache(counters):
            self.flags.append(WARM_CACHE.flag(FROM_A_CACHE))
        quality = replace(self.check(before), filled_parameters=filled.names[:MAX_SHOWN])
        filled.restore(self.context.stores)
        if device.type == "cuda":
            self.limit_memory(device)  # again: the libraries and kernels that the step needs are loaded now
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
        enqueue_s = enqueue_seconds(self.stepper.step, self.timer, warm.seconds_per_iteration)
        return Prepared(
            items_per_step=self.context.batch_size * self.context.workload.items_per_sample,
            compile_time_s=first,
            seconds_per_iteration=warm.seconds_per_iteration,
            warmup_iterations=warm.iterations,
            steady=warm.steady,
            enqueue_s=enqueue_s,
            quality=quality,
            flags=self.flags,
            phases_s=dict(self.phases),
        )

    def limit_memory(self, device: torch.device) -> None:
        """Keeps this process within the limit that the user gave, if one."""
        limit = self.protocol.max_memory_bytes
        if limit:
            limits.limit_memory(device, limit, beyond_allocator(device, self.request.device_free_bytes) or 0)

    def check(self, before: dict[str, torch.Tensor]) -> Quality:
        """The quality of the first steps, the one that has run already included; `before`: parameters then."""
        seed, tolerance = self.protocol.seed, self.request.tolerance
        if self.context.mode == "training":
            with self.phase("warm-up"):
                losses = [] if self.stepper.loss is None else [float(self.stepper.loss)]
                count = self.protocol.quality_steps
                losses, update = settled_steps(self.stepper, self.start, before, losses, count, seed)
                self.start = None  # it would count as memory of the steps
            with self.phase("quality"):
                if self.reference:
                    return self.reference.check_training(losses, update, tolerance)
        elif self.reference:
            outputs = [reference.snapshot(self.stepper.output)]
            with self.phase("warm-up"):
                for index in sequence(len(self.context.batches))[1:]:
                    outputs.append(self.seeded(index))
            with self.phase("quality"):
                update = reference.change(self.context.model, before) if before else {}
                return self.reference.check_inference(outputs, update, tolerance)
        return Quality(passed=None, reason=self.request.reference_problem, reference=reference.WHAT)

    def seeded(self, index: int) -> dict[str, torch.Tensor]:
        """The output of a step on batch `index` with the random numbers that the reference has drawn for it."""
        seed_step(self.protocol.seed, index)
        self.stepper.run(index)
        return reference.snapshot(self.stepper.output)

    def end_of_warmup(self) -> None:
        """Records the peaks so far, so that later figures do not include build and compilation."""
        gc.collect()
        self.used_when_warm, self.steps_when_warm = in_use(self.context.device), self.stepper.steps
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

    @contextmanager
    def without_garbage_collection(self) -> Iterator[None]:
        """Collects garbage, and then not until the end of the block."""
        gc.collect()
        gc.disable()
        try:
            yield
        finally:
            gc.enable()

    def sample(self, blocks: int | None) -> SamplesTaken:
        """Takes samples by the protocol, or that many blocks, with the garbage collector off."""
        self.tell("sampling")
        with self.without_garbage_collection():
            asked = time.monotonic()
            if blocks is not None:  # other models ran meanwhile and filled the caches
                self.timer.block(self.stepper.step, calibrate(self.seconds_per_iteration, self.protocol.block_s / 5))
            started, waited, steps = time.monotonic(), run_delay_s(), self.stepper.steps
            if blocks is None:
                given = self.protocol
                rule = StoppingRule(given.min_samples, given.min_sampling_s, given.target_spread, given.max_sampling_s)
                taken = sample(self.stepper.step, self.timer, iterations=self.iterations, rule=rule)
            else:
                taken = sample_blocks(self.stepper.step, self.timer, iterations=self.iterations, count=blocks)
            ended = time.monotonic()
            waited_s = max(0.0, run_delay_s() - waited) / (self.stepper.steps - steps)
        self.sampled += Pace(taken.seconds, waited_s)
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
        last = self.stepper.last_batch
        if self.context.mode != "inference" or self.reference is None or last < 0:
            return Checked(None)
        outputs = {last: reference.snapshot(self.stepper.output)}
        others = [index for index in range(len(self.context.batches)) if index != last] if every_batch else []
        outputs |= {index: self.seeded(index) for index in others}
        return Checked(self.reference.check_later(outputs, self.request.tolerance))

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
            and (self.growth(levels) or 0) >= LEAK_BYTES
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
            device_context_bytes=beyond_allocator(device, self.request.device_free_bytes),
            host_peak_resident_bytes=host_memory().peak,
            allocation_retries=None if retries is None or later is None else later - retries,
            growth_bytes_per_iteration=growth,
            unavailable=self.unavailable,
        )
        names = self.context.workload.stages
        stages = stage_use(self.context.model, names, self.stepper.step, device) if names else []
        return MemoryRead(memory, time.monotonic() - started, stages)

    def growth(self, levels: Sequence[int | None]) -> int | None:
        """Bytes that each step adds; `levels` are readings after each step."""
        steps = self.stepper.steps - self.steps_when_warm
        return growth(levels, self.used_when_warm, steps, exact=is_exact(self.context.device))

    def speed_changed(self) -> list[Flag]:
        """A flag where the step no longer takes as long as when it was sampled."""
        with self.phase("evidence"), self.without_garbage_collection():
            iterations, block_s = self.iterations, self.protocol.block_s
            again = time_again(self.stepper.step, self.timer, iterations=iterations, block_s=block_s)
        if not self.sampled.seconds or change(self.sampled, again) is None:
            return []
        before, now = (format_duration(statistics.median(pace.seconds)) for pace in (self.sampled, again))
        return [SPEED_CHANGED.flag(f"{now} a step just before the proof, {before} when it was sampled")]

    def collect_evidence(self, *, whole: bool = True) -> EvidenceCollected:
        """Each toggle's evidence, from one profiled step and the libraries' own records; `whole`: see the request."""
        from gpubench.measure.trace import trace_step

        context = self.context
        flags = self.speed_changed() if whole else []
        with self.phase("evidence"):
            try:
                # Always the same batch, however many steps the warm-up took: a step's work may depend on its input.
                context.trace = trace_step(lambda: self.stepper.run(0), cuda=context.device.type == "cuda")
            except Exception as error:  # noqa: BLE001 - the evidence that needs the trace reports it
                context.trace_error = f"the profiler failed: {kind_and_message(error)}"
            results = self.evidence()
            if missing := self.memoized() if whole else []:
                results = self.evidence()  # of a whole step
        compiled = next((result for _, _, result in results if result.graph_breaks is not None), None)
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
            flags=[*flags, *missing, *(result.flag for _, _, result in results if result.flag)],
            seconds=self.phases["evidence"],
            graph_breaks=compiled.graph_breaks if compiled else None,
            counts=step_counts(context, compiled),
            device_busy_s=context.trace.device_busy_s if context.trace else None,
        )

    def evidence(self) -> list[tuple[Toggle, Value, EvidenceResult]]:
        """What the trace and the libraries' records say of each toggle."""
        context = self.context
        return [(toggle, value, toggle.evidence(context, value)) for toggle, value in toggles_of(context)]

    def see_range(self) -> RangeSeen:
        """How large the numbers are that the layers give, in a row that computes below fp32."""
        if self.request.tolerance <= FP32_TOLERANCE:
            return RangeSeen(None, IN_FP32)
        self.tell("value range")
        seed_step(self.protocol.seed, 0)
        found = watch(self.context.model, self.context.forward_once)
        return RangeSeen(found, "" if found else NOTHING_LOWER)

    def memoized(self) -> list[Flag]:
        """A flag where the timed steps left out what a step on fresh inputs computes, whose trace is then kept."""
        context = self.context
        if context.trace is None:
            return []
        try:
            left_out, context.trace = memoized(self.stepper, context.trace, self.protocol.seed)
        except Exception:  # noqa: BLE001 - fresh inputs are the workload's own; the timed ones have been measured
            traceback.print_exc()  # to the log of this process
            return []
        return [MEMOIZED.flag(left_out)] if left_out else []
