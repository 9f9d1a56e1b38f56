"""Whether workers may inherit what a module's import did to this process: a child tells what a fork leaves of it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable


class Inheritance:
    """What the import of a module changes; `problem` tells why a forked process could not live with it."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.threads = lasting_threads()
        self.numexpr_threads: int | None = None

    def problem(self) -> str:
        """Why the import must be repeated in each process, or an empty string."""
        import torch

        if numexpr := sys.modules.get("numexpr"):  # it begins anew in a forked process, but keeps its threads here
            self.numexpr_threads = numexpr.set_num_threads(1)
        # CUDA may have been asked for its devices only: then it is not initialized, and yet no child can use it.
        if torch.cuda.is_initialized() or in_child(torch.cuda._is_in_bad_fork):
            return "its import initializes CUDA: move what asks torch.cuda into build"
        if (more := lasting_threads() - self.threads) > 0:
            named = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
            names = f" ({', '.join(named)})" if named else ""
            threads = "a thread" if more == 1 else f"{more} threads"
            seconds = time.monotonic() - self.started
            return (
                f"its import, which takes {seconds:.1f} s, starts {threads}{names} that a forked process would lack: "
                "move what starts threads or computes into build"
            )
        return ""

    def give_back(self) -> None:
        """In a worker: the threads that a library would have without gpubench."""
        if self.numexpr_threads is not None:
            sys.modules["numexpr"].set_num_threads(self.numexpr_threads)


def in_child(question: Callable[[], bool]) -> bool:
    """The answer of a forked process to `question`."""
    pid = os.fork()
    if pid == 0:
        answer = True  # where it cannot even be asked, a worker could do no better
        try:
            answer = bool(question())
        finally:
            os._exit(answer)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0


def lasting_threads() -> int:
    """The threads of this process that last when it forks; 0 where they cannot be counted.

    OpenBLAS (numpy, scipy, OpenCV) ends its own before each fork and starts them again when they are needed, here and
    in the child. So they are no obstacle, and are gone once a child was forked.
    """
    in_child(bool)
    try:
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - names are enough
    except OSError:
        return 0
