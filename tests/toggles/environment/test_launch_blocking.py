from __future__ import annotations

import pytest
import torch

from gpubench.toggles.environment import launch_blocking as toggle
from gpubench.toggles.environment.launch_blocking import LAUNCH_BLOCKING, VARIABLE


@pytest.mark.parametrize(
    ("value", "started", "share", "took_effect"),
    [
        ("off", None, 0.001, True),
        ("off", "0", 0.001, True),
        ("off", "1", 0.99, False),
        ("off", None, 0.99, False),  # something else blocks
        ("on", "1", 0.99, True),
        ("on", "1", 0.001, False),  # CUDA was initialized before it was set
        ("on", None, 0.99, False),
        ("on", "0", 0.001, False),
    ],
)
def test_the_variable_and_a_launch_decide(kit, monkeypatch, value, started, share, took_effect):
    monkeypatch.setattr(toggle, "variable_at_start", lambda name: started)
    monkeypatch.setattr(toggle, "_launch_share", lambda device: share)
    found = LAUNCH_BLOCKING.evidence(kit.prepare({}), value)
    assert found.took_effect is took_effect, found
    assert f"the process started with {VARIABLE}" in found.detail


def test_a_trial_that_cannot_run_is_told(kit, monkeypatch):
    def fail(device: torch.device) -> float:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(toggle, "variable_at_start", lambda name: None)
    monkeypatch.setattr(toggle, "_launch_share", fail)
    found = LAUNCH_BLOCKING.evidence(kit.prepare({}), "off")
    assert found.took_effect is None
    assert found.detail.endswith("no trial kernel could be launched: RuntimeError: out of memory")


@pytest.mark.parametrize(
    ("own", "off", "on"),
    [(None, {}, {VARIABLE: "1"}), ("0", {}, {VARIABLE: "1"}), ("1", {VARIABLE: "0"}, {})],
)
def test_the_users_own_setting_is_overruled(monkeypatch, own, off, on):
    monkeypatch.delenv(VARIABLE, raising=False)
    if own is not None:
        monkeypatch.setenv(VARIABLE, own)
    assert (LAUNCH_BLOCKING.environment("off"), LAUNCH_BLOCKING.environment("on")) == (off, on)


def test_a_cpu_launches_nothing(kit):
    assert LAUNCH_BLOCKING.applies(kit.scope()) == "nothing is launched on A CPU"
    assert LAUNCH_BLOCKING.applies(kit.scope(kit.AMPERE)) is None
    assert LAUNCH_BLOCKING.usage("on", None) == f"export {VARIABLE}=1"
