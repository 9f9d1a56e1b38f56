"""The environment that this process was started with, which libraries have read by the time that Python code runs."""

from __future__ import annotations

import os
from pathlib import Path

ENVIRON = Path("/proc/self/environ")  # as it was at exec; what is set later is not in it (Linux, proc(5))


def variable_at_start(name: str) -> str | None:
    """The value of the environment variable `name` at the start; None where it was not set.

    Where the system does not tell, it is the value that the variable has now.
    """
    try:
        entries = ENVIRON.read_bytes().split(b"\0")
    except OSError:
        return os.environ.get(name)
    values = [entry.partition(b"=")[2] for entry in entries if entry.startswith(f"{name}=".encode())]
    return os.fsdecode(values[0]) if values else None
