"""Reads a worker and its device from outside while it measures, and sums the readings up over a window of time."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from gpubench.hardware.nvml import NvmlDevice, Unavailable
from gpubench.hardware.nvml_device import Process
from gpubench.measure.process_usage import Usage, read_usage
from gpubench.measure.readings import Sample, summarize
from gpubench.results.schema import Utilization

PROCESS_LIST_S = 0.5  # between two looks at the process list, which costs more than all other readings together


class Monitor:
    """A thread that reads `hz` times per second from `start` (or `with`) until `stop`.

    pid: the worker's. device: its GPU in NVML, `Unavailable` where NVML cannot reach it, None on a CPU.
    ours: process ids that are no strangers on the GPU; the worker's own is added.
    A worker that ends is no error: its readings end there.
    """

    def __init__(
        self,
        pid: int,
        device: NvmlDevice | Unavailable | None = None,
        *,
        hz: float = 20.0,
        ours: frozenset[int] = frozenset(),
    ) -> None:
        self.pid = pid
        self.device = device
        self.period_s = 1.0 / hz
        self.ours = ours | {pid}
        self._samples: list[Sample] = []
        self._next_process_list = 0.0
        self._error: tuple[float, str] | None = None  # when, and what
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Reads once, so that any later window has a reading before it, and starts the thread."""
        if self._thread is None and self._read_guarded():
            self._stopping.clear()
            self._thread = threading.Thread(target=self._run, name=f"gpubench-monitor-{self.pid}", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread; `window` still works on what was read."""
        if self._thread is not None:
            self._stopping.set()
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def window(self, start: float, end: float) -> Utilization:
        """What was read between two `time.monotonic()` times, which on Linux all processes share."""
        with self._lock:
            running = self._thread is not None and self._error is None
            late = not self._samples or self._samples[-1].at < end
        if running and late:
            self._read_guarded()  # so that the window's end lies between two readings
        with self._lock:
            samples, error = list(self._samples), self._error
        return summarize(samples, start, end, pid=self.pid, device=self.device, ours=self.ours, error=error)

    def device_process_memory_bytes(self, pid: int | None = None) -> int | Unavailable:
        """Device memory that the worker (or `pid`) holds now, in bytes, its CUDA context included."""
        if self.device is None:
            return Unavailable("a CPU has no device memory of its own")
        if isinstance(self.device, Unavailable):
            return self.device
        return self.device.process_memory_bytes(self.pid if pid is None else pid)

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            # From the clock, not by adding sleeps up; readings that are overdue are left out, not made up for.
            due = max(due + self.period_s, time.monotonic())
            if self._stopping.wait(due - time.monotonic()) or not self._read_guarded():
                return

    def _read_guarded(self) -> bool:
        """One reading; False where it failed, with the error kept for `window`."""
        try:
            with self._lock:
                self._samples.append(self._read())
        except Exception as error:  # noqa: BLE001  whatever it is, the report must name it: a thread's error is shown nowhere
            with self._lock:
                self._error = (time.monotonic(), f"the monitor stopped: {type(error).__name__}: {error}")
            return False
        return True

    def _read(self) -> Sample:
        usage: Usage | Unavailable = read_usage(self.pid)
        at = time.monotonic()
        if not isinstance(self.device, NvmlDevice):
            return Sample(at=at, usage=usage)
        processes: list[Process] | Unavailable | None = None
        if at >= self._next_process_list:
            processes = self.device.processes()
            self._next_process_list = at + PROCESS_LIST_S
        return Sample(at=time.monotonic(), usage=usage, usage_at=at, gpu=self.device.sample(), processes=processes)
