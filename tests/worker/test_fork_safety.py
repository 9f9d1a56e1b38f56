"""What a workload's module may do while it is imported without every worker having to import it again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import environment

# Each module is imported in a forked process of its own, as a server does it; then a worker is forked from that.
ASK = """
import json, os, sys
from gpubench.worker.server import import_torch, preload
sys.path.insert(0, os.getcwd())
import_torch()
for name in sys.argv[1:]:
    if os.fork():
        os.wait()
        continue
    found = preload(name + ".py:make")
    if not isinstance(found, str):
        if os.fork():
            os.wait()
            os._exit(0)
        found.give_back()
        found = str(getattr(sys.modules.get("numexpr"), "threads", ""))
        import numpy
        numpy.ones((200, 200)) @ numpy.ones((200, 200))
    print(json.dumps([name, found]), flush=True)
    os._exit(0)
"""

MODULES = {
    "plain": "",
    "blas": """
import os, scipy.linalg, numpy
numpy.ones((200, 200)) @ numpy.ones((200, 200))
scipy.linalg.inv(numpy.eye(200))
assert len(os.listdir("/proc/self/task")) > 1
""",
    "uses_numexpr": "import numexpr",
    "starts_a_thread": """
import threading, time
threading.Thread(target=time.sleep, args=(60,), name="watcher", daemon=True).start()
""",
    "computes": """
import torch
torch.set_num_threads(2)
torch.ones(1000, 1000) @ torch.ones(1000, 1000)
""",
    "looks_for_cuda": """
import os, torch
here = os.getpid()
torch.cuda._is_in_bad_fork = lambda: os.getpid() != here  # as torch._C._cuda_getDeviceCount() leaves it
""",
}
# Like the real one: a pool of threads from the import on, which begins anew in a forked process.
NUMEXPR = """
import threading
threads, _pool = 0, []
def set_num_threads(count):
    global threads, _pool
    before, threads = threads, count
    for end, thread in _pool:
        end.set()
        thread.join()
    ends = [threading.Event() for _ in range(count if count > 1 else 0)]
    _pool = [(end, threading.Thread(target=end.wait, daemon=True)) for end in ends]
    for _, thread in _pool:
        thread.start()
    return before
set_num_threads(3)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("modules")
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(f"{text}\nmake = None\n")
    (folder / "numexpr.py").write_text(NUMEXPR)
    done = subprocess.run(
        [sys.executable, "-c", ASK, *MODULES],
        cwd=folder,
        env=environment({"OPENBLAS_NUM_THREADS": "2"}),
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("starts_a_thread", "starts a thread (watcher) that a forked process would lack"),
        ("computes", "that a forked process would lack: move what starts threads or computes into build"),
        ("looks_for_cuda", "its import initializes CUDA: move what asks torch.cuda into build"),
    ],
)
def test_an_import_that_a_fork_would_break_is_told(module: str, words: str, answers: dict[str, str]) -> None:
    if module == "computes" and os.cpu_count() == 1:
        pytest.skip("one core, so one thread")
    assert words in answers[module]


def test_libraries_that_care_for_forks_are_imported_once(answers: dict[str, str]) -> None:
    assert answers["plain"] == answers["blas"] == ""
    assert answers["uses_numexpr"] == "3"  # a worker has all its threads again
