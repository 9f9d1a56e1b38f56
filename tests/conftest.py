"""What every test needs: nothing of this machine's own state is read or changed, and torch is imported once."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator

import pytest

# Set here and not in a fixture, so that it holds for module-wide fixtures and for the commands that tests start too.
os.environ["GPUBENCH_STATE"] = tempfile.mkdtemp(prefix="gpubench-test-state-")
# Threads that wait must not keep the cores that other tests, and others on this machine, need meanwhile.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["GPUBENCH_QUICK_PROTOCOL"] = "1"  # tests of the protocol itself ask for `whole_protocol`


@pytest.fixture(scope="session", autouse=True)
def servers() -> Iterator[None]:
    """Pools in this process borrow fork servers that are kept for the next one."""
    from tests.servers import end, shared_servers

    with shared_servers():
        yield
    end()


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    """What toggles and builds change in torch for their process, which ends in a run, is put back here."""
    torch = sys.modules.get("torch")
    entered = torch.autocast.__enter__ if torch else None
    yield
    if torch := sys.modules.get("torch"):
        from gpubench.toggles import fp32_flags

        torch.autocast.__enter__ = entered or torch.autocast.__enter__
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        torch.compiler.set_stance("default")
        fp32_flags.reset()


@pytest.fixture
def own_servers() -> Iterator[None]:
    """For a test of how servers start or end: its pools start them and end them."""
    from tests.servers import unshared_servers

    with unshared_servers():
        yield


@pytest.fixture
def whole_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user gets: the default warm-up and sampling."""
    monkeypatch.delenv("GPUBENCH_QUICK_PROTOCOL")
