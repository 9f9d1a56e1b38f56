from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpubench.hardware.cgroup import cpu_quota_cores, cpu_throttled_s, memory_limit_bytes
from gpubench.hardware.cpu import CpuTimes, instruction_sets, read_cpu, read_times
from gpubench.hardware.nvml_call import Unavailable


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


XEON = "processor : 0\nmodel name\t: Intel(R)  Xeon(R) Platinum 8488C\nflags\t\t: fpu avx2 avx512f amx_bf16 amx_tile\n"
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd asimdhp bf16 i8mm sve\n"
CORE = "sys/devices/system/cpu/cpu{}/topology/"


def test_this_machine() -> None:
    cpu = read_cpu()
    assert cpu.cores == len(os.sched_getaffinity(0))
    assert cpu.name
    assert cpu.total_memory_bytes is not None and cpu.total_memory_bytes > 2**28
    optional = set(cpu.__struct_fields__) - {"name", "cores", "instruction_sets", "unavailable"}
    for name in optional:
        assert (getattr(cpu, name) is None) == (name in cpu.unavailable), name


def test_an_intel_server(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    others = sorted(os.sched_getaffinity(0) - {core})
    topology = {
        CORE.format(number) + name: "0\n" for number in [core, *others] for name in ("physical_package_id", "core_id")
    }
    cpu = read_cpu(
        write(
            tmp_path,
            {
                "proc/cpuinfo": XEON,
                "proc/meminfo": "MemTotal: 1024 kB\nSwapTotal: 100 kB\nSwapFree: 40 kB\n",
                "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n",
                "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
                "sys/devices/system/cpu/cpu0/cache/index0/level": "1\n",
                "sys/devices/system/cpu/cpu0/cache/index0/size": "48K\n",
                **{f"sys/devices/system/cpu/cpu0/cache/index{n}/level": f"{n}\n" for n in (1, 2, 3)},
                "sys/devices/system/cpu/cpu0/cache/index1/size": "32K\n",
                "sys/devices/system/cpu/cpu0/cache/index2/size": "200M\n",  # larger, but not the last
                "sys/devices/system/cpu/cpu0/cache/index3/size": "105M\n",
                **topology,
            },
        )
    )
    assert cpu.name == "Intel(R) Xeon(R) Platinum 8488C"
    assert cpu.instruction_sets == ["avx2", "avx512f", "amx_tile", "amx_bf16"]
    assert cpu.physical_cores == 1  # hyper-threads of one core
    assert (cpu.total_memory_bytes, cpu.swap_used_bytes) == (1024 * 1024, 60 * 1024)
    assert (cpu.transparent_huge_pages, cpu.frequency_governor) == ("never", "powersave")
    assert cpu.last_level_cache_bytes == 105 * 2**20


def test_arm(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/cpuinfo": GRAVITON})
    assert instruction_sets(root) == ["neon", "neon_fp16", "neon_bf16", "neon_i8mm", "sve"]


def test_nothing_readable(tmp_path: Path) -> None:
    cpu = read_cpu(tmp_path)
    assert cpu.instruction_sets == [] and cpu.physical_cores is None
    assert len(cpu.unavailable) == 10 and all(cpu.unavailable.values())
    assert cpu.name and cpu.cores >= 1
    assert isinstance(read_times(tmp_path), Unavailable)


def test_cpu_times_of_the_cores_that_are_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 12})
    ticks = os.sysconf("SC_CLK_TCK")
    rows = [
        "cpu  9 9 9 9 9 9 9 9 9 9",
        "cpu0 8 8 8 8 8 8 8 8 0 0",
        "cpu1 1 2 3 1000 50 4 0 30 0 0",
        "cpu12 0 0 0 0 0 0 5 40 0 0",
    ]
    root = write(tmp_path, {"proc/stat": "\n".join([*rows, "intr 12"])})
    times = read_times(root)
    assert isinstance(times, CpuTimes)
    assert (times.busy, times.steal) == (15 / ticks, 70 / ticks)
    assert times.ours > 0


def test_version_2_takes_the_narrowest_of_the_groups_above(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/cpu.max": "300000 100000\n",
            "sys/fs/cgroup/a/b/memory.max": "2147483648\n",
            "sys/fs/cgroup/a/memory.max": "1073741824\n",
            "sys/fs/cgroup/memory.max": "max\n",
        },
    )
    assert cpu_quota_cores(root) == 1.5
    assert memory_limit_bytes(root) == 2**30


def test_version_2_in_a_container_with_the_hosts_path(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/docker/abc\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}
    assert cpu_quota_cores(write(tmp_path, files)) == 0.5


def test_version_1(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/job\n3:cpu,cpuacct:/job\n0::/\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "2147483648\n",
        },
    )
    assert cpu_quota_cores(root) == 4
    assert memory_limit_bytes(root) == 2**31


@pytest.mark.parametrize(
    "files",
    [
        {"sys/fs/cgroup/cpu.max": "max 100000\n", "sys/fs/cgroup/memory.max": "max\n"},
        {
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    ],
)
def test_no_limit_is_not_a_limit(tmp_path: Path, files: dict[str, str]) -> None:
    root = write(tmp_path, {"proc/self/cgroup": "2:memory:/\n1:cpu:/\n0::/\n", **files})
    assert cpu_quota_cores(root) == Unavailable("no limit is set")
    assert memory_limit_bytes(root) == Unavailable("no limit is set")


def test_no_control_group(tmp_path: Path) -> None:
    quota = cpu_quota_cores(tmp_path)
    assert isinstance(quota, Unavailable) and quota.reason.startswith("the control group cannot be read")
    root = write(tmp_path, {"proc/self/cgroup": "0::/\n"})
    assert cpu_quota_cores(root) == Unavailable("no control group file gives the CPU quota")


def test_throttled_time_of_the_groups_above_adds_up(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpu.stat": "usage_usec 9\nnr_periods 5\nnr_throttled 2\nthrottled_usec 250000\n",
            "sys/fs/cgroup/a/cpu.stat": "usage_usec 9\nthrottled_usec 1000000\n",
            "sys/fs/cgroup/cpu.stat": "usage_usec 99\n",  # the root has no quota
            "sys/fs/cgroup/a/c/cpu.stat": "throttled_usec 77000000\n",  # somebody else's
        },
    )
    assert cpu_throttled_s(root) == 1.25


def test_throttled_time_in_version_1(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "3:cpu,cpuacct:/job\n0::/\n",
        "sys/fs/cgroup/cpu/job/cpu.stat": "nr_throttled 4\nthrottled_time 1500000000\n",
    }
    assert cpu_throttled_s(write(tmp_path, files)) == 1.5


def test_throttled_time_that_is_not_told(tmp_path: Path) -> None:
    absent = cpu_throttled_s(tmp_path)
    assert isinstance(absent, Unavailable) and absent.reason.startswith("the control group cannot be read")
    root = write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.stat": "usage_usec 9\n"})
    silent = cpu_throttled_s(root)
    assert isinstance(silent, Unavailable) and "no control group file tells" in silent.reason
    broken = cpu_throttled_s(write(root, {"sys/fs/cgroup/cpu.stat": "throttled_usec soon\n"}))
    assert isinstance(broken, Unavailable)
