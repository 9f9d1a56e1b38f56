"""The allocator acts before a process starts, so its evidence is read in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from gpubench.toggles.environment import allocator
from gpubench.toggles.environment.allocator import ALLOCATOR

PROVE = """
import json, sys
from gpubench.toggles.environment.allocator import ALLOCATOR
proof = ALLOCATOR.evidence(None, sys.argv[1])
print(json.dumps([proof.took_effect, proof.detail]))
"""
# An allocator of another name that forwards to glibc's: enough to see whose malloc a process calls.
SHIM = """
#include <stddef.h>
extern void *__libc_malloc(size_t);
void *malloc(size_t size) { return __libc_malloc(size); }
"""


def clean() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if name not in ("GLIBC_TUNABLES", "LD_PRELOAD")}


def collect_evidence(value: str, environment: dict[str, str]) -> tuple[bool | None, str]:
    command = [sys.executable, "-c", PROVE, value]
    done = subprocess.run(command, env=clean() | environment, capture_output=True, text=True, check=True)
    took_effect, detail = json.loads(done.stdout)
    return took_effect, detail


def skip_unmet(kit, value: str) -> None:
    if reason := ALLOCATOR.unmet(kit.scope(), value):
        pytest.skip(f"allocator={value} {reason}")


@pytest.mark.parametrize("value", ["system", "tuned", "huge-pages", "tuned-huge-pages"])
def test_a_process_started_with_the_variables_shows_the_effect(kit, value, monkeypatch):
    skip_unmet(kit, value)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    took_effect, detail = collect_evidence(value, ALLOCATOR.environment(value))
    assert took_effect is True, detail
    assert "malloc is libc.so" in detail
    assert ("came from the heap" in detail) == ("tuned" in value)
    assert ("huge pages grew by" in detail) == ("huge-pages" in value)


@pytest.mark.parametrize("value", ["tuned", "huge-pages", "jemalloc", "tcmalloc"])
def test_a_process_started_without_them_is_caught(value):
    took_effect, detail = collect_evidence(value, {})
    assert took_effect is False
    assert "the process's environment differs: " in detail


def test_system_with_a_tunable_left_over_is_caught():
    took_effect, detail = collect_evidence("system", {"GLIBC_TUNABLES": "glibc.malloc.top_pad=1"})
    assert took_effect is False
    assert detail == "the process's environment differs: GLIBC_TUNABLES should be ''"


@pytest.mark.parametrize("value", ["tuned", "huge-pages"])
def test_variables_that_came_too_late_are_caught(kit, value):
    # Set inside the process, as a user might: glibc has read them already.
    skip_unmet(kit, value)
    if value == "huge-pages" and "[always]" in allocator._HUGE_PAGE_SWITCH.read_text():
        pytest.skip("the kernel gives huge pages to everybody here, so they cannot be missing")
    late = "import os; from gpubench.toggles.environment.allocator import ALLOCATOR as A; "
    late += f"os.environ.update(A.environment({value!r}))"
    done = subprocess.run(
        [sys.executable, "-c", late + PROVE, value], env=clean(), capture_output=True, text=True, check=True
    )
    took_effect, detail = json.loads(done.stdout)
    assert took_effect is False, detail
    assert "did not come from the heap" in detail or "huge pages grew by 0 MiB" in detail


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to build an allocator to preload")
def test_a_preloaded_allocator_is_recognised_by_whose_malloc_runs(kit, tmp_path):
    source, library = tmp_path / "shim.c", tmp_path / "libjemalloc.so.2"
    source.write_text(SHIM)
    subprocess.run(["gcc", "-shared", "-fPIC", "-fno-builtin", "-o", library, source], check=True)
    code = (
        f"from gpubench.toggles.environment import allocator; allocator.library = lambda value: {str(library)!r}"
        + PROVE
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "jemalloc"],
        env=clean() | {"LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [True, "malloc is libjemalloc.so.2's"]


def test_what_the_user_set_beside_it_stays(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.top_pad=1:glibc.cpu.hwcaps=-AVX")
    monkeypatch.setenv("LD_PRELOAD", "/opt/libmine.so /usr/lib/libjemalloc.so.2")
    assert ALLOCATOR.environment("huge-pages") == {
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX:glibc.malloc.hugetlb=1",
        "LD_PRELOAD": "/opt/libmine.so",
    }
    assert ALLOCATOR.environment("system") == {
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX",
        "LD_PRELOAD": "/opt/libmine.so",
    }
    monkeypatch.setattr(allocator, "library", lambda value: f"/usr/lib/lib{value}.so")
    assert ALLOCATOR.environment("tcmalloc")["LD_PRELOAD"] == "/usr/lib/libtcmalloc.so:/opt/libmine.so"


def test_the_system_needs_no_variable(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    assert ALLOCATOR.environment("system") == {}


def test_other_c_libraries_are_skipped(kit, monkeypatch):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    assert ALLOCATOR.unmet(kit.scope(), "tuned") == "needs glibc, this Python runs on another C library"
    assert ALLOCATOR.unmet(kit.scope(), "system") is None
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("glibc", "2.31"))
    assert ALLOCATOR.unmet(kit.scope(), "tuned") is None
    assert ALLOCATOR.unmet(kit.scope(), "huge-pages") == "needs glibc 2.35, this is 2.31"


def test_a_kernel_without_huge_pages_is_skipped(kit, monkeypatch, tmp_path):
    switch = tmp_path / "enabled"
    monkeypatch.setattr(allocator, "_HUGE_PAGE_SWITCH", switch)
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("glibc", "2.36"))
    assert ALLOCATOR.unmet(kit.scope(), "huge-pages") == "needs transparent huge pages, which this kernel lacks"
    switch.write_text("always madvise [never]\n")
    assert ALLOCATOR.unmet(kit.scope(), "tuned-huge-pages") == (
        f"needs transparent huge pages, but {switch} is set to never"
    )
    switch.write_text("always [madvise] never\n")
    assert ALLOCATOR.unmet(kit.scope(), "huge-pages") is None


def test_an_allocator_that_is_not_installed_is_skipped(kit, monkeypatch):
    monkeypatch.setattr(allocator, "library", lambda value: None)
    assert ALLOCATOR.unmet(kit.scope(), "jemalloc") == "needs the library libjemalloc, which is not installed"
    assert ALLOCATOR.unmet(kit.scope(), "tcmalloc") == "needs the library libtcmalloc, which is not installed"


def test_an_installed_allocator_is_found(monkeypatch, tmp_path):
    (tmp_path / "libtcmalloc_minimal.so.4").touch()
    monkeypatch.setattr(allocator, "_FOLDERS", (str(tmp_path),))
    assert allocator.library.__wrapped__("tcmalloc") == str(tmp_path / "libtcmalloc_minimal.so.4")


def test_applies_on_a_cpu(kit):
    assert ALLOCATOR.applies(kit.scope()) is None
    assert ALLOCATOR.applies(kit.scope(kit.AMPERE)) == "torch's own allocator manages memory on NVIDIA A100"
