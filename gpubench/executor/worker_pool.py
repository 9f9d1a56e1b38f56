"""What several measured processes share: fork servers, reference outputs, compile caches, scratch space."""

from __future__ import annotations

import contextlib
import hashlib
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from gpubench.errors import GpubenchError
from gpubench.executor.fork_server import took_too_long
from gpubench.executor.scratch import scratch_folder, scratch_root
from gpubench.executor.spawn_server import WorkerServer, make_server
from gpubench.executor.worker_process import OnPhase, Worker, WorkerError, WorkerFailed
from gpubench.hardware.cpu import available_memory_bytes
from gpubench.hardware.find_device import DeviceAccess, find_device
from gpubench.hardware.monitored import MonitoredDevice
from gpubench.hardware.nvml_call import Unavailable
from gpubench.measure.device_free import busy_before
from gpubench.measure.outputs import listed
from gpubench.measure.quality import FP32_TOLERANCE
from gpubench.report.model import Configuration, Protocol, Value
from gpubench.text import sentence
from gpubench.toggles import all_toggles, get
from gpubench.toggles.traits import compiles
from gpubench.worker.messages import Describe, MakeReference, ProbeResult, ReferenceMade, WorkloadChoice
from gpubench.workloads.workload_facts import WorkloadFacts

FREE_SHARE = 0.8  # of the free memory may be planned with: peaks of warming up are above those of the steps


@dataclass(frozen=True)
class Reference:
    """Where the outputs to compare with lie, or why there are none."""

    folder: str | None
    problem: str = ""


class WorkerPool:
    """Gives fresh workers the environment and files they need; a context manager that leaves nothing behind."""

    def __init__(
        self,
        choice: WorkloadChoice,
        device: str,
        protocol: Protocol,
        python: str = sys.executable,
        on_phase: OnPhase = lambda _: None,
    ) -> None:
        self.choice, self.device, self.protocol, self.python = choice, device, protocol, python
        self.on_phase = on_phase
        # Compiled code would make a CUDA context of its own in a run on the CPU (pytorch#150622).
        self._environment = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
        self.since = time.monotonic()
        self.spent: dict[str, float] = {}  # seconds that the tool itself took, by part
        self.notes: list[str] = []
        self._servers: dict[frozenset[tuple[str, str]], WorkerServer] = {}
        self._references: dict[tuple[tuple[str, Value], ...], Reference] = {}
        self._toolchains: set[int] = set()
        self._found = DeviceAccess(None)
        self._cleanup = contextlib.ExitStack()
        self.facts: WorkloadFacts | None = None  # once described
        self.busy_before = ""  # why the device was not free before the run

    def __enter__(self) -> WorkerPool:
        self.folder = self._cleanup.enter_context(scratch_folder())
        root, problem = scratch_root()
        if problem:
            self.notes.append(sentence(f"Temporary files go to {root} instead of TMPDIR: {problem}"))
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        """Adds the seconds of the block to what was spent on `part`."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.spent[part] = self.spent.get(part, 0.0) + time.monotonic() - started

    # ----- servers and workers

    def begin_servers(self, configurations: Iterable[Configuration]) -> None:
        """Starts the servers that `configurations` will need, all at once, without waiting for them."""
        for configuration in configurations:
            self._server(environment_of(configuration))

    def start_servers(self, configurations: Iterable[Configuration]) -> None:
        """Starts the servers that `configurations` will need, all at once, and waits for them."""
        with self._timed("servers"):
            configurations = list(configurations)
            self.begin_servers(configurations)
            for configuration in configurations:
                with contextlib.suppress(GpubenchError):  # becomes the row of the configuration that asks for it
                    self._server(environment_of(configuration)).wait_ready()

    def _server(self, environment: Mapping[str, str]) -> WorkerServer:
        environment = {**self._environment, **environment}
        key = frozenset(environment.items())
        if key not in self._servers:
            server = make_server(environment, self.choice.reference, self.folder, self.python)
            server.timeout_s, server.on_phase = self.protocol.timeout_s, self.on_phase
            self._cleanup.callback(server.close)
            server.start()
            self._servers[key] = server
        return self._servers[key]

    def worker(self, configuration: Mapping[str, Value]) -> Worker:
        """A fresh process in the environment that `configuration` asks for."""
        with self._timed("processes"):
            server = self._server(environment_of(configuration))
            server.wait_ready()
        if compiles(configuration):
            self._prepare_toolchain(server)
        with self._timed("processes"):
            worker = server.fork()
        if server.preload_problem:
            note = sentence(f"The workload's module is imported again in every process: {server.preload_problem}")
            if note not in self.notes:
                self.notes.append(note)
        return worker

    def _prepare_toolchain(self, server: WorkerServer) -> None:
        if id(server) in self._toolchains:
            return
        with self._timed("toolchain"):
            reply = server.prepare_toolchain(self.folder / "toolchain" if self.device == "cpu" else None)
        self._toolchains.add(id(server))
        if reply.problem:
            self.notes.append(sentence(f"torch.compile cannot work here: {reply.problem}"))

    # ----- what workers need

    def describe(self, batch_size: int | None) -> ProbeResult:
        """The facts of workload, device and software; GpubenchError where one of them is missing."""
        request = Describe(self.choice, self.device, batch_size, self.protocol.max_memory_bytes)
        with self._timed("describe"):
            worker = self._server({}).fork()
            try:
                limit_s = self.protocol.timeout_s
                described = worker.ask(request, ProbeResult, time.monotonic() + limit_s, self.on_phase)
            except (WorkerFailed, WorkerError) as error:
                if isinstance(error, WorkerFailed) and error.failed.kind == "usage":
                    raise GpubenchError(error.failed.reason, error.failed.detail) from error
                if isinstance(error, WorkerError) and error.kind == "timeout":
                    raise took_too_long(error.phase, limit_s, last_lines(worker.log_tail(), 1)) from error
                verb = "built" if isinstance(error, WorkerFailed) else "inspected"
                raise GpubenchError(
                    f"Workload {self.choice.reference!r} could not be {verb}: {error}.",
                    f"The end of its output: {last_lines(worker.log_tail())}",
                ) from error
            finally:
                worker.kill()
        facts = self.facts = described.workload
        if facts.not_compared:
            said = [f"{name}: {why}" for name, why in facts.not_compared.items()]
            self.notes.append(f"Not all that the step returns can be compared. {listed(said)}.")
        size = None if facts.size == "default" else facts.size  # what a workload that takes none calls its own
        self.choice = replace(self.choice, size=size, mode=facts.mode, source_hash=facts.source_hash)
        device = described.device
        self._found = find_device(device.kind, device.uuid, device.index or 0)
        self._cleanup.callback(self._found.close)
        if described.note:
            self.notes.append(described.note)
        if isinstance(self.monitored, Unavailable):
            self.notes.append(sentence(f"The GPU could not be watched: {self.monitored.reason}"))
        busy = busy_before(self.monitored)
        if isinstance(busy, str) and busy:
            self.busy_before = busy
            self.notes.append(f"The device was not free before the run: {busy}. The figures may be far off.")
        self.device = device.kind if device.index is None else f"{device.kind}:{device.index}"
        return described

    @property
    def monitored(self) -> MonitoredDevice | Unavailable | None:
        """The GPU in its maker's library, or why it cannot be monitored; None on a CPU."""
        return self._found.device

    @property
    def settings(self) -> dict[str, str]:
        """What the workload's own code changes in torch for the whole process."""
        return self.facts.settings if self.facts else {}

    def free_memory_bytes(self) -> float:
        """Bytes free on the device, less a margin; infinite where that cannot be read."""
        free = available_memory_bytes() if self.monitored is None else self.device_free_bytes()
        return math.inf if free is None or isinstance(free, Unavailable) else FREE_SHARE * free

    def device_free_bytes(self) -> int | None:
        """Bytes free on the GPU as its maker's library tells; None where it does not, and on a CPU."""
        device = self.monitored
        if device is None or isinstance(device, Unavailable):
            return None
        total, used = device.total_memory_bytes(), device.sample().memory_used_bytes
        return None if isinstance(total, Unavailable) or used is None else total - used

    def reference(self, configuration: Mapping[str, Value], defaults: Mapping[str, Value]) -> Reference:
        """The fp32 outputs of the problem that `configuration` computes, made on the first call."""
        problem = {
            name: value
            for name, value in configuration.items()
            if all_toggles()[name].changes_problem and value != defaults.get(name)
        }
        key = tuple(sorted(problem.items()))
        if key not in self._references:
            with self._timed("reference"):
                self._references[key] = self._make_reference({**defaults, **problem}, len(self._references))
        return self._references[key]

    def tolerance_of(self, configuration: Mapping[str, Value]) -> float:
        """The relative output error that `configuration` may have: the largest that one of its values is allowed."""
        allowed = [get(name).allowed_error(value, self.facts) for name, value in configuration.items()]
        return max(filter(None, allowed), default=FP32_TOLERANCE)

    def _make_reference(self, configuration: Configuration, number: int) -> Reference:
        folder = self.folder / f"reference-{number}"
        request = MakeReference(
            choice=self.choice,
            device=self.device,
            configuration=configuration,
            protocol=self.protocol,
            folder=str(folder),
            facts=self.facts,
        )
        try:
            worker = self._server({}).fork()
            worker.phase = "reference"
            try:
                made = worker.ask(request, ReferenceMade, time.monotonic() + self.protocol.timeout_s, self.on_phase)
            finally:
                worker.kill()
        except (WorkerFailed, WorkerError) as error:
            return Reference(None, f"the fp32 reference could not be made: {error}")
        note = f"The fp32 reference was made {made.where}: it did not fit into the device's memory as it is."
        if made.where and note not in self.notes:
            self.notes.append(note)
        return Reference(str(folder))

    def compile_cache(self, configuration: Configuration) -> str:
        """A compile cache of this configuration's own: cold the first time, warm for its later processes."""
        name = hashlib.sha256(repr(sorted(configuration.items())).encode()).hexdigest()[:16]
        folder = self.folder / "compile" / name
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)


def environment_of(configuration: Mapping[str, Value]) -> dict[str, str]:
    """The environment variables that `configuration`'s toggles ask for."""
    variables: dict[str, str] = {}
    for name, value in configuration.items():
        if environment := get(name).environment:
            variables |= environment(value)
    return variables


def last_lines(text: str, count: int = 3) -> str:
    """The last lines of `text` in one line."""
    return " / ".join(line.strip() for line in text.splitlines()[-count:]) or "nothing"
