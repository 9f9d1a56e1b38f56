"""Reads a worker and its device from outside while it measures, and sums the readings up over a window of time."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Self

from gpubench.hardware.monitored import SLOWDOWNS, Activity, ActivityMeter, MonitoredDevice, Process, memory_of
from gpubench.hardware.nvml_call import Unavailable, where_known
from gpubench.measure.process_table import family, parse, read_stats
from gpubench.measure.process_usage import Usage, read_usage
from gpubench.measure.readings import MonitorSample, slowdowns, summarize
from gpubench.measure.stops import StopWatch
from gpubench.report.model import Utilization

PROCESS_LIST_S = 0.5  # between two looks at the process list, which costs more than all other readings together
ACTIVITY_S = 0.2  # between two readings of the activity counters, which need 0.1 s to change
ANSWER_LIMIT_S = 1.0  # the run waits so long for a reading: a driver may take longer, or never answer
STOP_LIMIT_S = 5.0
NO_CLOCKS = "a CPU reports no clock event reasons"


class Monitor:
    """A thread that reads `hz` times per second from `start` (or `with`) until `stop`.

    pid: the worker's. device: its GPU, `Unavailable` where its maker's library cannot reach it, None on a CPU.
    ours: process ids that are no strangers on the GPU; the worker's own is added, and what descends from them.
    A worker that ends is no error: its readings end there.
    """

    def __init__(
        self,
        pid: int,
        device: MonitoredDevice | Unavailable | None = None,
        *,
        hz: float = 20.0,
        ours: frozenset[int] = frozenset(),
    ) -> None:
        self.pid = pid
        self.device = device
        self.period_s = 1.0 / hz
        self.ours = ours | {pid}
        self._stops = StopWatch(self.ours)
        self._samples: list[MonitorSample] = []
        self._next_process_list = 0.0
        self._next_activity = 0.0
        self._meter: ActivityMeter | Unavailable | None = None  # None: not opened yet
        self._error: tuple[float, str] | None = None  # when, and what
        self._lock = threading.Condition()  # told of each reading; never held while the device is asked
        self._stopping = threading.Event()
        self._due = threading.Event()  # a reading is due at once
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Reads once, so that any later window has a reading before it, and starts the thread."""
        self._stops.start()
        if self._thread is None and self._read_guarded():
            self._stopping.clear()
            self._thread = threading.Thread(target=self._run, name=f"gpubench-monitor-{self.pid}", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread; `window` still works on what was read."""
        self._stops.stop()
        if self._thread is not None:
            self._stopping.set()
            self._due.set()
            self._thread.join(STOP_LIMIT_S)
            hangs = self._thread.is_alive()
            self._thread = None
            if hangs:  # it ends after that reading; what the reading may still use stays open
                return
        if self._meter is not None and not isinstance(self._meter, Unavailable):
            self._meter.close()
        self._meter = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def window(self, start: float, end: float) -> Utilization:
        """What was read between two `time.monotonic()` times, which on Linux all processes share."""
        samples, error = self._readings_until(end)
        return summarize(samples, start, end, pid=self.pid, device=self.device, ours=self.ours, error=error)

    def slowdowns(self, start: float, end: float) -> list[str] | Unavailable:
        """The thermal and power-supply slowdowns in the window; empty where there were none.

        Each with how many readings had it, such as "hw_thermal_slowdown (3 of 40 readings)".
        """
        samples, error = self._readings_until(end)
        read = samples if error is None or error[0] > end else Unavailable(error[1])
        return where_known(lambda _, read: slowdowns(read, start, end), self._gpu(NO_CLOCKS), read)

    def stopped_s(self, pid: int, start: float, end: float) -> float:
        """For how long one of `ours` or this process was stopped in the window, see `StopWatch`."""
        return self._stops.stopped_s(pid, start, end)

    def slowdowns_now(self) -> list[str] | Unavailable:
        """The thermal and power-supply slowdowns at this moment; empty where there are none."""
        sample = where_known(lambda device: device.sample(), self._gpu(NO_CLOCKS))
        if isinstance(sample, Unavailable):
            return sample
        if sample.throttle_reasons is None:
            return Unavailable(sample.unavailable["throttle_reasons"])
        return [name for name in sample.throttle_reasons if name in SLOWDOWNS]

    def device_process_memory_bytes(self) -> int | Unavailable:
        """Device memory that the worker holds now, in bytes, its CUDA context included."""
        device = self._gpu("a CPU has no device memory of its own")
        return where_known(lambda device: memory_of(device.processes(), self.pid), device)

    def _gpu(self, why_not: str) -> MonitoredDevice | Unavailable:
        return Unavailable(why_not) if self.device is None else self.device

    def _readings_until(self, end: float) -> tuple[list[MonitorSample], tuple[float, str] | None]:
        """All readings so far and the error that ended them, with one after `end` where the thread still runs."""
        with self._lock:
            if self._thread is not None and self._samples[-1].at < end:
                self._due.set()  # so that the window's end lies between two readings
                self._lock.wait_for(lambda: self._error or self._samples[-1].at >= end, ANSWER_LIMIT_S)
            return list(self._samples), self._error

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            # From the clock, not by adding sleeps up; readings that are overdue are left out, not made up for.
            due = max(due + self.period_s, time.monotonic())
            self._due.wait(due - time.monotonic())
            self._due.clear()
            if self._stopping.is_set() or not self._read_guarded():
                return

    def _read_guarded(self) -> bool:
        """One reading; False where it failed, with the error kept for `window`."""
        try:
            sample = self._read()
        except Exception as error:  # noqa: BLE001  whatever it is, the report must name it: a thread's error is shown nowhere
            with self._lock:
                self._error = (time.monotonic(), f"the monitor stopped: {type(error).__name__}: {error}")
                self._lock.notify_all()
            return False
        with self._lock:
            self._samples.append(sample)
            self._lock.notify_all()
        return True

    def _read(self) -> MonitorSample:
        usage: Usage | Unavailable = read_usage(self.pid)
        at = time.monotonic()
        if self.device is None or isinstance(self.device, Unavailable):
            return MonitorSample(at=at, usage=usage)
        processes: list[Process] | Unavailable | None = None
        if at >= self._next_process_list:
            processes = self.device.processes()
            self._next_process_list = at + PROCESS_LIST_S
            self._adopt(processes)
        activity = self._read_activity(self.device, at)
        gpu = self.device.sample()
        return MonitorSample(
            at=time.monotonic(), usage=usage, usage_at=at, gpu=gpu, processes=processes, activity=activity
        )

    def _adopt(self, listed: list[Process] | Unavailable) -> None:
        """Takes what descends from our processes for ours, such as the compilers of torch.compile."""
        if isinstance(listed, Unavailable) or self.ours.issuperset(process.pid for process in listed):
            return
        stats = read_stats(Path("/"))
        if not isinstance(stats, Unavailable):
            self.ours |= family(parse(stats), self.ours) & {process.pid for process in listed}

    def _read_activity(self, device: MonitoredDevice, at: float) -> Activity | Unavailable | None:
        if at < self._next_activity:
            return None
        self._next_activity = at + ACTIVITY_S
        if self._meter is None:
            self._meter = device.activity_meter()
        return self._meter if isinstance(self._meter, Unavailable) else self._meter.read()
