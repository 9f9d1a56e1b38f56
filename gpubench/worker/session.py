"""One worker: answers the tool's requests for one configuration, in the process that is measured."""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from gpubench.errors import GpubenchError
from gpubench.measure.memory import device_memory, host_memory, reset_device_peak, reset_host_peak
from gpubench.measure.timing import CudaTimer, Stopping, Timer, WallTimer, calibrate, sample, warm_up
from gpubench.results.schema import Evidence, Protocol, Quality
from gpubench.worker import limits, reference
from gpubench.worker.messages import (
    Channel,
    Closed,
    Describe,
    Failed,
    Finish,
    MakeReference,
    MemoryRead,
    Phase,
    Prepare,
    Prepared,
    Sample,
    Sampled,
    WorkerReply,
    WorkerRequest,
)
from gpubench.worker.once import describe, make_reference
from gpubench.worker.prepare import apply_toggles, build, load_choice, make_batches, toggles_of, use_device
from gpubench.worker.step import Stepper

if TYPE_CHECKING:
    import torch

    from gpubench.toggles.subject import Subject


def serve(channel: Channel[WorkerRequest]) -> int:
    """Answers until `Finish` or until the tool goes away; the exit code."""
    session = Session(channel)
    while True:
        try:
            request = channel.receive()
        except Closed:
            return 0
        try:
            reply = session.answer(request)
        except Closed:
            return 0
        except BaseException as error:  # noqa: BLE001 - whatever a model raises becomes a row
            traceback.print_exc()
            reply = failure(error)
        try:
            channel.send(reply)
        except Closed:
            return 0
        if isinstance(request, Finish):
            return 0


def failure(error: BaseException) -> Failed:
    """What went wrong, in one sentence and by kind."""
    if isinstance(error, GpubenchError):
        return Failed("usage", error.message, error.hint)
    lines = said(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0]}".strip().removesuffix(":")
    return Failed("oom" if limits.is_out_of_memory(error) else "failed", text[:500], "\n".join(lines)[:4000])


def said(error: BaseException) -> str:
    """The error's text as it can be sent: a user's exception may hold half characters, or fail to be printed."""
    try:
        return str(error).encode("utf-8", "replace").decode()
    except Exception as second:  # noqa: BLE001 - whatever its __str__ raises
        return f"(its text cannot be had: {type(second).__name__})"


class Session:
    """One configuration's life: prepared once, sampled any number of times, finished."""

    def __init__(self, channel: Channel[WorkerRequest]) -> None:
        self.channel = channel
        self.phases: dict[str, float] = {}
        self.flags: list[str] = []
        self.subject: Subject
        self.stepper: Stepper
        self.timer: Timer
        self.protocol: Protocol
        self.request: Prepare
        self.iterations = 1
        self.unavailable: dict[str, str] = {}
        self.host_at_start: int | None = None
        self.host_warmup_peak: int | None = None
        self.warmup_allocated: int | None = None

    def answer(self, request: WorkerRequest) -> WorkerReply:
        """The reply to one request."""
        match request:
            case Describe():
                return describe(request)
            case MakeReference():
                return make_reference(request)
            case Prepare():
                return self.prepare(request)
            case Sample():
                return self.sample()
            case Finish():
                return self.finish()

    def phase(self, name: str) -> _PhaseTimer:
        """Tells the tool what begins now, and adds up how long it takes."""
        self.channel.send(Phase(name))
        return _PhaseTimer(self.phases, name)

    def prepare(self, request: Prepare) -> Prepared:
        """Build, apply, first call, warm-up, evidence, output quality."""
        import torch

        self.request, self.protocol = request, request.protocol
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = request.compile_cache
        os.environ["TRITON_CACHE_DIR"] = str(Path(request.compile_cache, "triton"))
        device = use_device(request.device)
        if device.type == "cpu" and "TORCHINDUCTOR_WORKER_START" not in os.environ:
            # A forked compile worker starts at once; a new interpreter would import torch for every configuration.
            torch._inductor.config.worker_start_method = "fork"
        memory = host_memory()
        self.host_at_start = memory.resident
        with self.phase("build"):
            if self.protocol.max_memory_bytes:
                limits.limit_memory(device, self.protocol.max_memory_bytes)
            loaded, mode = load_choice(request.choice)
            self.subject = build(loaded, mode, device, request.configuration, self.protocol.seed)
            batches = make_batches(loaded, self.subject.batch_size, self.protocol.input_batches, self.protocol.seed)
        with self.phase("apply"):
            apply_toggles(self.subject, batches)
        self.timer = CudaTimer(device) if device.type == "cuda" else WallTimer()
        self.stepper = Stepper(self.subject)
        before = reference.parameters(self.subject.model) if mode == "training" else {}
        with self.phase("first step"):
            self.channel.send(Phase("compile" if self.subject.compiled else "first step"))
            first = self.timer.block(lambda: self.stepper.run(0), 1).wall_s
        quality = self.check(before)
        with self.phase("warm-up"):
            warm = warm_up(
                self.stepper.step,
                self.timer,
                min_iterations=self.protocol.warmup_min_iterations,
                max_s=self.protocol.warmup_max_s,
                block_s=self.protocol.block_s,
            )
        with self.phase("evidence"):
            evidence = self.prove()
        self.iterations = calibrate(warm.seconds_per_iteration, self.protocol.block_s)
        self.end_of_warmup()
        return Prepared(
            items_per_step=self.subject.batch_size * self.subject.workload.items_per_sample,
            compile_time_s=first,
            seconds_per_iteration=warm.seconds_per_iteration,
            warmup_iterations=warm.iterations,
            steady=warm.steady,
            evidence=evidence,
            quality=quality,
            flags=self.flags,
            phases_s=dict(self.phases),
        )

    def check(self, before: dict[str, torch.Tensor]) -> Quality:
        """The quality of the outputs on every batch (training: of the first steps, which warm up as well)."""
        folder, tolerance = self.request.reference_folder, self.request.tolerance
        if self.subject.mode == "training":
            with self.phase("warm-up"):
                losses = [] if self.stepper.loss is None else [float(self.stepper.loss)]
                losses, update = reference.training_steps(
                    self.stepper, before, len(losses), self.protocol.quality_steps, losses
                )
            with self.phase("quality"):
                if folder:
                    return reference.check_training(Path(folder), losses, update, tolerance)
        elif folder:
            outputs = {}
            with self.phase("warm-up"):
                for index in range(len(self.subject.batches)):
                    self.stepper.run(index)
                    outputs[index] = reference.snapshot(self.stepper.output)
            with self.phase("quality"):
                return reference.check_inference(Path(folder), outputs, tolerance)
        return Quality(passed=None, reason=self.request.reference_problem, reference=reference.WHAT)

    def prove(self) -> list[Evidence]:
        """What each toggle of the configuration can show for itself."""
        from gpubench.measure.trace import trace_step

        subject = self.subject
        try:
            subject.trace = trace_step(self.stepper.step, cuda=subject.device.type == "cuda")
        except Exception as error:  # noqa: BLE001 - told by the evidence that needed it
            subject.trace_error = f"the profiler failed: {type(error).__name__}: {error}".splitlines()[0]
        found = []
        for toggle, value in toggles_of(subject.configuration):
            proof = toggle.evidence(subject, value)
            if proof.flag:
                self.flags.append(proof.flag)
            found.append(Evidence(toggle=toggle.name, value=value, took_effect=proof.took_effect, detail=proof.detail))
        return found

    def end_of_warmup(self) -> None:
        """Keeps the peaks so far and starts new ones, so that no later figure holds build or compilation."""
        gc.collect()
        device = self.subject.device
        if peaks := device_memory(device):
            self.warmup_allocated = peaks.allocated
        else:
            self.unavailable["peak_memory_allocated_bytes"] = "torch's CPU allocator keeps no peaks"
            self.unavailable["peak_memory_reserved_bytes"] = "torch's CPU allocator keeps no peaks"
        reset_device_peak(device)
        memory = host_memory()
        self.host_warmup_peak = memory.peak
        if problem := memory.unavailable or reset_host_peak():
            self.unavailable["host_peak_resident_bytes"] = problem
        if device.type == "cuda":  # the emptied cache is filled again before anything is timed
            self.stepper.step()

    def sample(self) -> Sampled:
        """Samples by the protocol; the garbage collector rests meanwhile."""
        stopping = Stopping(
            min_samples=self.protocol.min_samples,
            min_s=self.protocol.min_sampling_s,
            target_spread=self.protocol.target_spread,
            max_s=self.protocol.max_sampling_s,
        )
        self.channel.send(Phase("sampling"))
        gc.collect()
        gc.disable()
        started = time.monotonic()
        try:
            taken = sample(self.stepper.step, self.timer, iterations=self.iterations, stopping=stopping)
        finally:
            gc.enable()
        return Sampled(
            samples_s=list(taken.seconds),
            wall_samples_s=list(taken.wall_seconds),
            iterations_per_sample=taken.iterations_per_sample,
            unmet=taken.unmet,
            started=started,
            ended=time.monotonic(),
        )

    def finish(self) -> MemoryRead:
        """Peaks of the timed steps, and the quality of the very last output that was timed."""
        peaks, memory = device_memory(self.subject.device), host_memory()
        quality = None
        if self.subject.mode == "inference" and self.request.reference_folder and self.stepper.last_batch >= 0:
            quality = reference.check_inference(
                Path(self.request.reference_folder),
                {self.stepper.last_batch: reference.snapshot(self.stepper.output)},
                self.request.tolerance,
            )
        return MemoryRead(
            allocated=peaks.allocated if peaks else None,
            reserved=peaks.reserved if peaks else None,
            warmup_allocated=self.warmup_allocated,
            host_peak=memory.peak,
            host_warmup_peak=self.host_warmup_peak,
            host_at_start=self.host_at_start,
            unavailable=self.unavailable,
            final_quality=quality,
        )


class _PhaseTimer:
    def __init__(self, phases: dict[str, float], name: str) -> None:
        self.phases, self.name = phases, name

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        self.phases[self.name] = self.phases.get(self.name, 0.0) + time.monotonic() - self.started
