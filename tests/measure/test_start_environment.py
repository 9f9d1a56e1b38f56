from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpubench.measure import start_environment
from gpubench.measure.start_environment import variable_at_start

READ = """
import os
from gpubench.measure.start_environment import variable_at_start
os.environ["SET_LATER"] = "1"
os.environ["SET_BEFORE"] = "other"
print([variable_at_start(name) for name in ("SET_BEFORE", "SET_EMPTY", "SET_LATER", "SET")])
"""


def test_what_was_set_at_the_start_counts() -> None:
    environment = {"SET_BEFORE": "a=b", "SET_EMPTY": "", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", READ], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['a=b', '', None, None]"


def test_without_proc_it_is_what_is_set_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_environment, "ENVIRON", Path("/nowhere/environ"))
    monkeypatch.setenv("SET_NOW", "2")
    assert (variable_at_start("SET_NOW"), variable_at_start("SET_NEVER")) == ("2", None)
