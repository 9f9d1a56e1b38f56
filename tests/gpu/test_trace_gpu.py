"""What a trace of a real GPU holds: busy time, kernels with their durations, attention's backends."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_GPU, reason="needs an NVIDIA GPU: torch.cuda.is_available() is false here"),
]


def check(code: str) -> None:
    """Runs `code` in a process of its own; a failed assertion there fails here, with its text."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


STREAMS = """
import torch
from gpubench.measure.trace import trace_step

CYCLES = 50_000_000  # some 30 ms
first, second = torch.cuda.Stream(), torch.cuda.Stream()

def overlapping():
    for stream in (first, second):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(CYCLES)

def one_after_the_other():
    torch.cuda._sleep(CYCLES)
    torch.cuda._sleep(CYCLES)

for step in (overlapping, one_after_the_other):
    step()
trace = trace_step(overlapping, cuda=True)
total = sum(kernel.seconds for kernel in trace.kernels)
assert len(trace.kernels) == 2, trace.kernels
assert 0.4 * total < trace.device_busy_s < 0.75 * total, (trace.device_busy_s, total)
trace = trace_step(one_after_the_other, cuda=True)
total = sum(kernel.seconds for kernel in trace.kernels)
assert 0.95 * total < trace.device_busy_s < 1.05 * total, (trace.device_busy_s, total)
"""


def test_streams_that_overlap_are_counted_once():
    check(STREAMS)


def test_what_earlier_steps_launched_is_not_counted():
    check("""
import torch
from gpubench.measure.trace import trace_step

small = torch.ones(8, device="cuda")
torch.cuda.synchronize()
torch.cuda._sleep(200_000_000)
trace = trace_step(lambda: small + 1, cuda=True)
assert len(trace.kernels) == 1, trace.kernels
assert trace.device_busy_s < 1e-3, trace.device_busy_s
""")


ATTENTION = """
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from gpubench.measure.trace import trace_step
from gpubench.toggles.evidence import attention_backends, replays_graph

query = torch.randn(2, 4, 128, 64, device="cuda", dtype=torch.float16)

def attend():
    return torch.nn.functional.scaled_dot_product_attention(query, query, query)

with sdpa_kernel(SDPBackend.{backend}):
    attend()
    trace = trace_step(attend, cuda=True)
    assert attention_backends(trace) == ("{name}",), (attention_backends(trace), trace)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend()
trace = trace_step(graph.replay, cuda=True)
assert replays_graph(trace)
assert attention_backends(trace) == {in_graph}, trace
"""


@pytest.mark.parametrize(
    ("backend", "name", "in_graph"),
    [
        pytest.param(
            "FLASH_ATTENTION",
            "flash",
            ("flash",),
            marks=pytest.mark.skipif(
                HAS_GPU and torch.cuda.get_device_capability() < (8, 0), reason="flash needs compute capability 8.0"
            ),
        ),
        ("EFFICIENT_ATTENTION", "efficient", ("efficient",)),
        ("MATH", "math", ()),  # a graph replays plain matrix products
    ],
)
def test_attention_is_told_from_operators_and_inside_a_cuda_graph_from_kernels(backend, name, in_graph):
    check(ATTENTION.format(backend=backend, name=name, in_graph=in_graph))


def test_every_launch_has_its_kernel_and_what_waits_and_copies_is_seen():
    check("""
import torch
from gpubench.measure.trace import trace_step

here, small = torch.ones(8), torch.ones(8, device="cuda")

def step():
    for _ in range(20):
        small.add_(1)
    small.copy_(here)
    small.sum().item()

trace = trace_step(step, cuda=True)
assert trace.lost == 0 and trace.device_busy_s, trace
assert len(trace.kernels) == 21, trace.kernels
assert sum("HtoD" in name for name in trace.copies) == 1, trace.copies
assert any("Synchronize" in name for name in trace.cuda_calls), trace.cuda_calls
assert [each.name for each in trace.operators].count("aten::add_") == 20
""")


def test_the_hosts_time_is_short_where_the_gpu_takes_long():
    check("""
import torch
from gpubench.measure.timing import CudaTimer, enqueue_seconds

timer = CudaTimer(torch.device("cuda"))
step = lambda: torch.cuda._sleep(50_000_000)
step()
block = timer.block(step, 3)
assert enqueue_seconds(step, timer, block.wall_s / 3) < 0.1 * block.wall_s / 3
""")
