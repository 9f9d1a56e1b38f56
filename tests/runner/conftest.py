"""A short protocol and a way to run the command line as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODELS = Path(__file__).with_name("models.py")
ROOT = Path(__file__).parents[2]


def gpubench(
    *arguments: str, cwd: Path, timeout: float = 240, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m gpubench ARGUMENTS` in folder `cwd`."""
    return subprocess.run(
        [sys.executable, "-m", "gpubench", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def models() -> Path:
    return MODELS
