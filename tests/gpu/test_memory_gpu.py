"""What a process holds of a GPU outside torch's allocator, and a limit that counts it. Run it alone on the device."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs an NVIDIA GPU: torch.cuda.is_available() is false here"
    ),
]

SKIP = "NVML does not tell which card this is: "
LIMITED = """
import sys
import torch
from gpubench.hardware.find_device import find_device
from gpubench.hardware.nvml_call import Unavailable
from gpubench.measure.memory import beyond_allocator
from gpubench.worker.limits import is_out_of_memory, limit_memory

MIB = 2**20
card = find_device("cuda", None, 0).device
if isinstance(card, Unavailable):
    sys.exit(SKIP + card.reason)
free = card.total_memory_bytes() - card.sample().memory_used_bytes  # before this process touches the device
device = torch.device("cuda", 0)
torch.ones(1024, 1024, device=device) @ torch.ones(1024, 1024, device=device)
beyond = beyond_allocator(device, free)
assert 50 * MIB < beyond < 4096 * MIB, beyond
limit_memory(device, beyond + 512 * MIB, beyond)
held = torch.empty(400 * MIB, dtype=torch.uint8, device=device)
try:
    torch.empty(200 * MIB, dtype=torch.uint8, device=device)
except RuntimeError as error:
    assert is_out_of_memory(error), error
else:
    raise AssertionError("the limit did not hold")
"""


def test_the_context_and_libraries_count_in_a_limit():
    code = f"SKIP = {SKIP!r}\n{LIMITED}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.stderr.startswith(SKIP):
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr[-4000:]
