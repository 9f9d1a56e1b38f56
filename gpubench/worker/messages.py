"""Messages between the tool, the fork server and workers: JSON, one per line."""

from __future__ import annotations

import socket
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct, field

from gpubench.flags import Flag
from gpubench.hardware.facts import Device, Environment
from gpubench.report.model import Evidence, Memory, Protocol, Quality, StageUse, StepCounts, Value, ValueRange
from gpubench.workloads.workload_facts import Mode, WorkloadFacts

# ----- tool -> fork server, and back


class Fork(Struct, frozen=True, tag=True):
    """Start a worker. Its socket is sent with the message, and its output goes to `log`."""

    log: str


class PrepareToolchain(Struct, frozen=True, tag=True):
    """Load torch.compile's back end once for all configurations.

    `folder`: also probe the C++ compiler and store the results there; None if no C++ is compiled.
    """

    folder: str | None


class Ready(Struct, frozen=True, tag=True):
    """torch is imported. `preload_problem`: why each worker must import the workload's module itself."""

    preload_problem: str = ""


class Forked(Struct, frozen=True, tag=True):
    """A worker was started."""

    pid: int


class Exited(Struct, frozen=True, tag=True):
    """A worker ended. `code` is as in subprocess: negative for a signal."""

    pid: int
    code: int


class ToolchainReady(Struct, frozen=True, tag=True):
    """torch.compile's back end is loaded; `problem` says why it cannot be used."""

    problem: str = ""


class Activity(Struct, frozen=True, tag=True):
    """The phase that the server or the worker begins."""

    name: str


def importing(reference: str) -> str:
    """What the phase is called in which the workload's module is imported."""
    return f"importing {reference.rpartition(':')[0] or reference}"


ServerRequest = Fork | PrepareToolchain
ServerReply = Activity | Ready | Forked | Exited | ToolchainReady

# ----- tool -> worker, and back


class WorkloadChoice(Struct, frozen=True, kw_only=True):
    """Which workload, at which size, in which mode."""

    reference: str
    size: str | None
    parameters: dict[str, str]
    mode: Mode | None  # None: the first that it supports
    source_hash: str | None = None  # of the user's file, once known; a changed file is refused


class Describe(Struct, frozen=True, tag=True):
    """Describe workload, device and software."""

    choice: WorkloadChoice
    device: str  # "auto", "cpu", "cuda:0"
    batch_size: int | None = None
    max_memory_bytes: int | None = None  # the limit that each configuration will have


class Prepare(Struct, frozen=True, tag=True, kw_only=True):
    """Prepare a model in this worker. Later requests refer to it by the number `model`."""

    model: int
    choice: WorkloadChoice
    device: str
    configuration: dict[str, Value]
    protocol: Protocol
    tolerance: float
    compile_cache: str  # a folder of this configuration's own
    reference_folder: str | None  # outputs to compare with; None: there are none, see reference_problem
    reference_problem: str = ""
    facts: WorkloadFacts | None = None  # from the look at the workload, where one was taken
    device_free_bytes: int | None = None  # of a GPU, before this process touched it; None: unknown, or a CPU


class MakeReference(Struct, frozen=True, tag=True, kw_only=True):
    """Run the plain model in strict fp32 and store its outputs in `folder`."""

    choice: WorkloadChoice
    device: str
    # The baseline's, strict and plain where that is not, with the values asked for of toggles that change the problem.
    configuration: dict[str, Value]
    protocol: Protocol
    folder: str
    facts: WorkloadFacts | None = None  # from the look at the workload, where one was taken


class TakeSamples(Struct, frozen=True, tag=True):
    """Take samples by the protocol given to `Prepare`, or exactly `blocks` of them after a short warm-up."""

    model: int
    blocks: int | None = None


class CheckLast(Struct, frozen=True, tag=True):
    """Compare the last timed output with the reference; `every_batch`: also one more step on each other batch."""

    model: int
    every_batch: bool = False


class MeasureMemory(Struct, frozen=True, tag=True):
    """Run some untimed steps to measure memory."""

    model: int


class CollectEvidence(Struct, frozen=True, tag=True):
    """Collect each toggle's evidence. The last request, since the profiler keeps tens of megabytes.

    `whole`: also whether steps have kept their pace and leave nothing out, which a configuration's first process tells.
    """

    model: int
    whole: bool = True


class SeeRange(Struct, frozen=True, tag=True):
    """Run one more step with hooks in it, to see how large the numbers are. After everything else."""

    model: int


class Module(Struct, frozen=True):
    """A module of the user's own code."""

    file: str
    hash: str  # SHA-256 of the file


class ProbeResult(Struct, frozen=True, tag=True):
    """Answer to `Describe`."""

    workload: WorkloadFacts
    device: Device
    environment: Environment
    note: str = ""  # what the report must say of the choice of the device
    modules: dict[str, Module] = {}  # the user's own modules that the workload's file imported, by name


class Prepared(Struct, frozen=True, tag=True, kw_only=True):
    """The model is prepared; samples can be taken."""

    items_per_step: int
    compile_time_s: float  # the first step
    seconds_per_iteration: float
    warmup_iterations: int
    steady: bool | None
    enqueue_s: float | None = None  # the host's time to enqueue a step on an idle GPU
    quality: Quality
    flags: list[Flag]
    phases_s: dict[str, float]


class ReferenceMade(Struct, frozen=True, tag=True):
    """Answer to `MakeReference`; `where`: it did not fit into the device's memory, and was made there instead."""

    where: str = ""


class SamplesTaken(Struct, frozen=True, tag=True, kw_only=True):
    """Samples in seconds per step, and when they were taken (CLOCK_MONOTONIC, the same in every process)."""

    samples_s: list[float]  # wall clock
    device_samples_s: list[float] | None  # between CUDA events around the same blocks
    iterations_per_sample: int
    unmet: str
    warmup_s: float = 0.0  # spent on warming up again, before `started`
    started: float
    ended: float


class Checked(Struct, frozen=True, tag=True):
    """Answer to `CheckLast`; None if there is nothing to compare with."""

    quality: Quality | None


class EvidenceCollected(Struct, frozen=True, tag=True, kw_only=True):
    """Answer to `CollectEvidence`."""

    evidence: list[Evidence]
    flags: list[Flag]
    seconds: float
    graph_breaks: int | None = None  # counted by the compiler; None if nothing was compiled
    counts: StepCounts | None = None
    device_busy_s: float | None = None  # time in one profiled step in which kernels or copies ran on the GPU


class MemoryRead(Struct, frozen=True, tag=True):
    """Answer to `MeasureMemory`, without what the tool reads from outside."""

    memory: Memory
    seconds: float
    stages: list[StageUse] = field(default_factory=list)


class RangeSeen(Struct, frozen=True, tag=True):
    """Answer to `SeeRange`; `reason`: why there is none."""

    found: ValueRange | None
    reason: str = ""


class Failed(Struct, frozen=True, tag=True):
    """The request failed. `usage`: a user error, with its hint in `detail`."""

    kind: str  # "oom", "failed", "usage"; "shared": the model shares modules with another in this worker
    reason: str
    detail: str = ""


WorkerRequest = (
    Describe | Prepare | MakeReference | TakeSamples | CheckLast | MeasureMemory | CollectEvidence | SeeRange
)
WorkerReply = (
    Activity
    | ProbeResult
    | Prepared
    | ReferenceMade
    | SamplesTaken
    | Checked
    | MemoryRead
    | EvidenceCollected
    | RangeSeen
    | Failed
)

Incoming = TypeVar("Incoming")

MAX_MESSAGE = 64 * 2**20  # bytes; samples of a long run are far below


class Closed(Exception):
    """The other side has closed the connection."""


class Channel(Generic[Incoming]):
    """Typed messages over a socket, one a line."""

    def __init__(self, sock: socket.socket, incoming: Any) -> None:
        self.socket = sock
        self._decoder = msgspec.json.Decoder(incoming)
        self._encoder = msgspec.json.Encoder()
        self._buffer = bytearray()

    def send(self, message: Struct, fds: tuple[int, ...] = ()) -> None:
        """Sends `message`, and file descriptors with its first byte; raises Closed."""
        data = self._encoder.encode(message) + b"\n"
        try:
            sent = socket.send_fds(self.socket, [data], fds) if fds else 0
            self.socket.sendall(data[sent:])
        except OSError as error:
            raise Closed from error

    def pending(self) -> bool:
        """Whether a complete message has been received."""
        return b"\n" in self._buffer

    def receive(self, timeout: float | None = None) -> Incoming:
        """The next message; raises Closed, TimeoutError after `timeout` seconds, and ValueError for an invalid one."""
        return self.receive_with_fds(timeout)[0]

    def receive_with_fds(self, timeout: float | None = None) -> tuple[Incoming, list[int]]:
        """The next message and the file descriptors that came with it."""
        fds: list[int] = []
        self.socket.settimeout(timeout)
        while not self.pending():
            try:
                data, more, _, _ = socket.recv_fds(self.socket, 65536, 4)
            except TimeoutError:
                raise
            except OSError as error:
                raise Closed from error
            fds += more
            if not data:
                raise Closed
            self._buffer += data
            if len(self._buffer) > MAX_MESSAGE:
                raise ValueError(f"a message is longer than {MAX_MESSAGE} bytes")
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        message: Incoming = self._decoder.decode(line)
        return message, fds
