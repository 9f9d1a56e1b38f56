"""GPU performance monitoring (NVML's GPM): how busy the units inside the chip were between two readings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from gpubench.hardware.monitored import Activity
from gpubench.hardware.nvml_call import BLOCKED, SUCCESS, Unavailable, attempt, sentence

# The counters are refreshed inside the chip about that often: two readings closer than this make no difference
# (NVML reference, nvmlGpmMetricsGet: "should be greater than 100ms due to the internal sample refresh rate").
LEAST_INTERVAL_S = 0.11
NOT_THERE = "this GPU does not support it (GPM: Hopper and newer, GeForce cards from Blackwell on)"

# Field -> NVML's metric id: share of multiprocessors with work, share of time in which they did tensor operations,
# share of the peak DRAM bandwidth (nvml.h, nvmlGpmMetricId_t).
METRICS = {
    "sm_activity_percent": 2,
    "tensor_activity_percent": 5,
    "dram_activity_percent": 10,
}
METRICS_GET_VERSION = 1
HIGHEST_PERCENT = 110.0  # shares of a published peak may exceed it a little


class GpmMeter:
    """Two buffers of the driver's: each reading fills the older one, so that every pair of neighbours is compared.

    card: handle of the whole card. instance: id of a MIG GPU instance, whose share alone is then counted.
    """

    def __init__(
        self, card: Any, instance: int | None, request: Any, buffers: list[Any], clock: Callable[[], float]
    ) -> None:
        self._card, self._instance, self._clock = card, instance, clock
        self._last, self._spare = buffers
        self._read_at: float | None = None
        self._open = True
        self._request = request
        self._request.version = METRICS_GET_VERSION
        self._request.numMetrics = len(METRICS)

    @classmethod
    def open(
        cls, card: Any, instance: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> GpmMeter | Unavailable:
        """A meter, or why this device has none."""
        support = attempt("nvmlGpmQueryDeviceSupport", card)
        if isinstance(support, Unavailable):
            return support
        if not support.isSupportedDevice:
            return Unavailable(NOT_THERE)
        request = attempt("c_nvmlGpmMetricsGet_t")
        if isinstance(request, Unavailable):
            return request
        buffers: list[Any] = []
        for _ in range(2):
            buffer = attempt("nvmlGpmSampleAlloc")
            if isinstance(buffer, Unavailable):
                _free(buffers)
                return buffer
            buffers.append(buffer)
        return cls(card, instance, request, buffers, clock)

    def read(self) -> Activity | Unavailable | None:
        """The means since the reading before; None at the first, or where that was less than 0.11 s ago."""
        if not self._open:
            return Unavailable("the meter is closed")
        now = self._clock()
        before = self._read_at
        if before is not None and now - before < LEAST_INTERVAL_S:
            return None
        if self._instance is None:
            taken = attempt("nvmlGpmSampleGet", self._card, self._spare)
        else:
            taken = attempt("nvmlGpmMigSampleGet", self._card, self._instance, self._spare)
        if isinstance(taken, Unavailable):
            self._open = taken.code != BLOCKED  # a call that hangs may still write into its buffer, which is kept then
            return taken  # the reading before stays: the next one that succeeds is compared with it
        self._last, self._spare, self._read_at = self._spare, self._last, now
        return None if before is None else self._compare(before, now)

    def _compare(self, since: float, until: float) -> Activity | Unavailable:
        request = self._request
        request.sample1, request.sample2 = self._spare, self._last
        for index, metric in enumerate(METRICS.values()):
            request.metrics[index].metricId = metric
        failed = attempt("nvmlGpmMetricsGet", request)
        if isinstance(failed, Unavailable):
            self._open = failed.code != BLOCKED
            return failed
        values: dict[str, float] = {}
        unavailable: dict[str, str] = {}
        for index, name in enumerate(METRICS):
            result = request.metrics[index]
            if result.nvmlReturn != SUCCESS:
                unavailable[name] = sentence(result.nvmlReturn)
            elif not math.isfinite(result.value):
                unavailable[name] = "NVML gave no finite number"
            elif not 0 <= result.value <= HIGHEST_PERCENT:
                unavailable[name] = f"NVML gave {result.value:g} %, which cannot be"
            else:
                values[name] = float(result.value)
        return Activity(since, until, **values, unavailable=unavailable)

    def close(self) -> None:
        """Gives the driver's buffers back."""
        if self._open:
            self._open = False
            _free([self._last, self._spare])


def _free(buffers: list[Any]) -> None:
    for buffer in buffers:
        attempt("nvmlGpmSampleFree", buffer)
