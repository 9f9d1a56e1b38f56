"""Intervals of activity counters: only those inside the window count, longer ones more."""

from __future__ import annotations

import pytest

from gpubench.hardware.monitored import Activity
from gpubench.hardware.nvml_call import Unavailable
from gpubench.measure.readings import MonitorSample, activity_reading, slowdowns
from gpubench.report.model import Reading
from tests.measure.test_readings import samples

NAME = "sm_activity_percent"


def test_intervals_over_an_edge_are_left_out() -> None:
    read = [Activity(0.9, 1.1, 100), None, Activity(1.1, 1.3, 40), Activity(1.3, 1.9, 80), Activity(1.9, 2.1, 0)]
    found = activity_reading(read, NAME, 1.0, 2.0)
    assert isinstance(found, Reading)
    assert (found.min, found.max, found.count) == (40, 80, 2)
    assert found.mean == pytest.approx((40 * 0.2 + 80 * 0.6) / 0.8)


def test_why_there_is_none() -> None:
    short = activity_reading([Activity(0.9, 1.1, 100)], NAME, 1.0, 1.15)
    assert short == Unavailable("no interval between two readings of its counter lies in the window of 0.15 s")
    refused = activity_reading([Unavailable("not supported")], NAME, 1.0, 2.0)
    assert refused == Unavailable("not supported")
    lacking = activity_reading([Activity(1.1, 1.3, unavailable={NAME: "not this one"})], NAME, 1.0, 2.0)
    assert lacking == Unavailable("not this one")


def test_slowdowns_count_readings_and_leave_labels_out() -> None:
    # Power cap at all times, heat at 3 and 4 s, the power brake at 4 s.
    bits = {3.0: 0x4 | 0x20, 4.0: 0x4 | 0x20 | 0x80}
    read = samples([float(at) for at in range(10)], lambda at: {"throttle_bits": bits.get(at, 0x4 | 0x1)})
    assert slowdowns(read, 2.0, 6.0) == [
        "sw_thermal_slowdown (2 of 5 readings)",
        "hw_power_brake (1 of 5 readings)",
    ]
    assert slowdowns(read, 5.0, 9.0) == []
    assert slowdowns(read, 4.2, 4.8) == [  # no reading inside: those on both sides
        "sw_thermal_slowdown (1 of 2 readings)",
        "hw_power_brake (1 of 2 readings)",
    ]


def test_slowdowns_that_cannot_be_read() -> None:
    unread = samples([1.0, 2.0], lambda at: {"throttle_bits": None, "unavailable": {"throttle_reasons": "refused"}})
    assert slowdowns(unread, 0.0, 3.0) == Unavailable("refused")
    assert isinstance(slowdowns([MonitorSample(1.0, Unavailable("ended"))], 0.0, 3.0), Unavailable)
    assert slowdowns([], 0.0, 3.0) == Unavailable("no reading fell into the window of 3.00 s")
