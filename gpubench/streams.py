"""Standard streams that can stop no run: closed ones are filled, and what standard error does not take is dropped."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

STDERR = 2


def fill_closed() -> None:
    """Opens whichever of the descriptors 0, 1 and 2 is closed on nothing.

    The next file or socket would get its number otherwise, and with it what is printed.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass
    os.close(descriptor)


class Forgiving(io.FileIO):
    """A file that drops what cannot be written: its reader, its terminal or the room on its disk is gone."""

    def write(self, data: Any) -> int:
        """The number of bytes that are done with."""
        try:
            return super().write(data) or len(data)  # a full pipe that does not wait takes none
        except OSError:
            return len(data)


def secure() -> None:
    """From now on nothing that is told on standard error can fail, and nothing else gets its descriptor."""
    closed = sys.stderr is None
    fill_closed()
    encoding = "utf-8" if closed else sys.stderr.encoding
    raw = io.BufferedWriter(Forgiving(STDERR, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace", line_buffering=True)
