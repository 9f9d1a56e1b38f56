"""The user workloads of the runner's tests, and a way to run the command line as a user does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.running import MODELS, ROOT, gpubench, gpubench_here

__all__ = ["MODELS", "ROOT", "gpubench", "gpubench_here"]


@pytest.fixture
def models() -> Path:
    return MODELS
