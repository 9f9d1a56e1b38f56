"""Planted faults of compiled code: caches from elsewhere, caches that were tampered with, many configurations."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpubench.executor.executor import Job
from gpubench.executor.local import LocalExecutor
from gpubench.executor.outcome import Outcome
from gpubench.executor.worker_pool import WorkerPool
from gpubench.report.model import Configuration, Protocol
from gpubench.worker.messages import WorkloadChoice
from tests.running import BUSY, gpubench_here

WORKLOADS = Path(__file__).with_name("fault_models.py")
SHORT = Protocol(warmup_min_s=0.0, min_sampling_s=0.1, max_sampling_s=0.5, timeout_s=120)
COMPILED: Configuration = {"compile": "default", "threads": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compile")


@pytest.fixture(scope="module")
def bench(folder: Path) -> Iterator[LocalExecutor]:
    """Real processes of the compiled model; every configuration has a compile cache of its own that begins empty."""
    choice = WorkloadChoice(reference=f"{WORKLOADS}:fused", size=None, parameters={}, mode="inference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUBENCH_TEST_FOLDER", str(folder))
        with WorkerPool(choice, "cpu", SHORT) as pool:
            yield LocalExecutor(pool, {"compile": "off", "threads": 1}, lambda _: None)


def is_warm(result: Outcome) -> bool:
    assert result.status == "ok", result.reason
    return any(flag.kind == "warm_cache" for flag in result.flags)


@pytest.mark.slow
def test_compiled_code_from_elsewhere_is_no_compile_time(bench: LocalExecutor, folder: Path) -> None:
    cache = folder / "own"
    (folder / "cache.txt").write_text(str(cache))
    assert not is_warm(bench.run_alone(Job("first", COMPILED)))
    assert list(cache.rglob("*.so"))
    # For the next row, whose own cache is as empty, there is compiled code already.
    assert is_warm(bench.run_alone(Job("second", {**COMPILED, "channels_last": "off"})))
    # inductor's own code alone: what comes before it was done anew, but inductor has compiled nothing.
    shutil.rmtree(cache / "aotautograd", ignore_errors=True)  # torch 2.6 has none
    assert is_warm(bench.run_alone(Job("third", {**COMPILED, "allocator": "system"})))
    (folder / "cache.txt").unlink()


@pytest.mark.slow
def test_a_cache_that_was_tampered_with_is_not_believed(bench: LocalExecutor) -> None:
    assert not is_warm(bench.run_alone(Job("row", COMPILED)))
    cache = Path(bench.pool.compile_cache(COMPILED))
    whole = cache.with_name("whole")
    shutil.copytree(cache, whole)

    # The code computes something else: the outputs are compared in every process.
    changed = 0
    for path in cache.rglob("*.py"):
        text, count = re.subn(r"return \((buf\d+), \)", r"return (\1 * 3, )", path.read_text())
        path.write_text(text)
        changed += count
    assert changed
    result = bench.run_alone(Job("row", COMPILED))
    assert result.status == "wrong"
    assert "relative error" in result.reason

    # Its index is cut off: compiled again, and right.
    put_back(whole, cache)
    assert cut_off([path for name in ("aotautograd", "fxgraph") for path in cache.joinpath(name).rglob("*")])
    result = bench.run_alone(Job("row", COMPILED))
    assert result.status == "ok", result.reason
    assert result.quality is not None
    assert result.quality.passed is True

    # Its machine code is cut off: a row with a sentence, and no figure.
    put_back(whole, cache)
    assert cut_off(list(cache.rglob("*.so")))
    result = bench.run_alone(Job("row", COMPILED))
    assert result.status in ("failed", "crashed"), result.reason
    assert result.reason.endswith(".")
    assert result.sampled is None

    # None of this outlasts its process.
    put_back(whole, cache)
    assert bench.run_alone(Job("row", COMPILED)).status == "ok"


def put_back(source: Path, target: Path) -> None:
    shutil.rmtree(target)
    shutil.copytree(source, target)


def cut_off(paths: list[Path]) -> int:
    files = [path for path in paths if path.is_file()]
    for path in files:
        path.write_bytes(path.read_bytes()[:100])
    return len(files)


@pytest.mark.slow
def test_thirteen_compiled_configurations_are_each_compiled(tmp_path: Path) -> None:
    # dynamo compiles a function at most 8 times in one process, and runs it eagerly from then on.
    sizes = [str(size) for size in range(1, 14)]
    done = gpubench_here(
        "batch-sweep", f"{WORKLOADS}:product", "--sizes", *sizes, "--fix", "compile=default", "--fix", "threads=1",
        "--rounds", "1", *BUSY, "--format", "json", "--output", "report.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["measurements"]
    assert [row["items_per_step"] for row in rows] == list(range(1, 14))
    for row in rows:
        assert row["status"] == "ok", row["reason"]
        proof = next(one for one in row["evidence"] if one["toggle"] == "compile")
        assert proof["took_effect"] is True
        assert proof["detail"].startswith("1 frame compiled to 1 graph; no graph break")
        assert "limit" not in proof["detail"]
        assert row["compile_time_s"] > 20 * row["latency_s"]["median"]
        assert not any(flag["kind"] in ("partly_compiled", "warm_cache") for flag in row["flags"])


def test_a_configuration_that_compiles_first_has_twice_the_time(bench: LocalExecutor) -> None:
    eager, compiled = Job("eager", {"compile": "off"}), Job("compiled", {"compile": "default", "threads": 3})
    assert (bench.limit_s(eager), bench.limit_s(compiled)) == (SHORT.timeout_s, 2 * SHORT.timeout_s)
    Path(bench.pool.compile_cache(compiled.configuration), "code").touch()  # what its first process leaves
    assert bench.limit_s(compiled) == SHORT.timeout_s


@pytest.mark.slow
def test_a_step_that_never_calls_what_is_compiled_names_what_it_calls() -> None:
    choice = WorkloadChoice(reference=f"{WORKLOADS}:in_parts", size=None, parameters={}, mode="inference")
    with WorkerPool(choice, "cpu", SHORT) as pool:
        assert pool.describe(None).workload.misses_targets
        result = LocalExecutor(pool, {"compile": "off"}, lambda _: None).run_alone(Job("row", {"compile": "default"}))
    assert result.status == "not_effective"
    assert "it calls no compile target, name what it calls: Workload(..., compile_targets=('layer',))" in result.reason
    assert result.collected is not None and result.collected.counts is not None
    assert (result.collected.counts.frames_compiled, result.collected.counts.work) == (0, {"fp32": 1.0})
