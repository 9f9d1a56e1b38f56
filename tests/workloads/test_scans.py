"""Every way to scan gives what the loop gives, and the native one is built, refused and seen as it should be."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from gpubench.errors import GpubenchError
from gpubench.workloads import scans
from gpubench.workloads.scans import building

OTHERS = [way for way in scans.WAYS if way != "loop"]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.fixture(autouse=True)
def ready(request: pytest.FixtureRequest) -> None:
    """Builds the native scan in the user's cache, or skips the test that asks for it with the reason."""
    if "way" in request.fixturenames and request.getfixturevalue("way") == "native":
        if reason := scans.unavailable("native", "cpu"):
            pytest.skip(reason)
        scans.prepare("native")


def drawn(shape: tuple[int, int, int], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Decays between 0 and 1, inputs and a start."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(shape, generator=generator, dtype=torch.float64)
    b = torch.randn(shape, generator=generator, dtype=torch.float64)
    start = torch.randn(shape[0], shape[2], generator=generator, dtype=torch.float64)
    return a.to(dtype), b.to(dtype), start.to(dtype)


def with_gradients(way: str, *tensors: Tensor) -> list[Tensor]:
    """The states, and the gradients of a, b and start for a weighted sum of them."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    h = scans.scan(way, *leaves)
    weights = torch.randn(h.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(h.dtype)
    return [h.detach(), *torch.autograd.grad((h * weights).sum(), leaves)]


@functools.cache
def reference(length: int, dtype: torch.dtype) -> list[Tensor]:
    return with_gradients("loop", *drawn((2, length, 5), dtype))


def test_the_loop_is_the_recurrence() -> None:
    a, b, start = drawn((1, 3, 1), torch.float64)
    first = a[0, 0, 0] * start[0, 0] + b[0, 0, 0]
    second = a[0, 1, 0] * first + b[0, 1, 0]
    third = a[0, 2, 0] * second + b[0, 2, 0]
    assert scans.scan("loop", a, b, start).flatten().tolist() == [first, second, third]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("length", [1, 2, 3, 1000, 4097])
@pytest.mark.parametrize("way", OTHERS)
def test_equals_the_loop_with_its_gradients(way: str, length: int, dtype: torch.dtype) -> None:
    got = with_gradients(way, *drawn((2, length, 5), dtype))
    for one, other in zip(got, reference(length, dtype), strict=True):
        assert one.dtype == dtype and one.shape == other.shape
        assert float((one - other).abs().max()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("channels", [1, 64, 65, 600])  # 512 are the widest block, and 64 the narrowest
@pytest.mark.parametrize("way", ["native"])
def test_channels_that_fill_no_block(way: str, channels: int) -> None:
    tensors = drawn((3, 40, channels), torch.float64)
    for one, other in zip(with_gradients(way, *tensors), with_gradients("loop", *tensors), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("way", scans.WAYS)
def test_half_precision_is_accumulated_in_fp32(way: str) -> None:
    """Of 1000 additions of 1/256 bfloat16 loses all after the first 256 or 512."""
    a, b = torch.ones(1, 1000, 4, dtype=torch.bfloat16), torch.full((1, 1000, 4), 1 / 256, dtype=torch.bfloat16)
    leaves = [tensor.requires_grad_() for tensor in (a, b, torch.zeros(1, 4, dtype=torch.bfloat16))]
    h = scans.scan(way, *leaves)
    assert h.dtype == torch.bfloat16
    torch.testing.assert_close(h[0, -1].float(), torch.full((4,), 1000 / 256), rtol=2**-8, atol=0)
    (h * (1 / 256)).sum().backward()
    assert b.grad is not None and b.grad.dtype == torch.bfloat16
    torch.testing.assert_close(b.grad[0, 0].float(), torch.full((4,), 1000 / 256), rtol=2**-8, atol=0)


@pytest.mark.parametrize("way", scans.WAYS)
def test_inputs_that_are_not_contiguous(way: str) -> None:
    a, b, start = drawn((3, 7, 5), torch.float64)
    expected = with_gradients("loop", a, b, start)
    apart = torch.stack((start, start), dim=-1)[..., 0]
    strided = (a.transpose(0, 2).contiguous().transpose(0, 2), b.transpose(1, 2).contiguous().transpose(1, 2), apart)
    assert not any(tensor.is_contiguous() for tensor in strided)
    for one, other in zip(with_gradients(way, *strided), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    leaf = b.clone().requires_grad_()
    scans.scan(way, a, leaf, start).transpose(0, 2).sum().backward()  # a gradient that is expanded
    plain = b.clone().requires_grad_()
    scans.scan("loop", a, plain, start).sum().backward()
    torch.testing.assert_close(leaf.grad, plain.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("way", scans.WAYS)
def test_an_empty_batch(way: str) -> None:
    got = with_gradients(way, *drawn((0, 6, 4), torch.float32))
    assert [tuple(each.shape) for each in got] == [(0, 6, 4), (0, 6, 4), (0, 6, 4), (0, 4)]


@pytest.mark.parametrize("way", ["native"])
def test_native_refuses_what_it_would_read_past_the_end_of(way: str) -> None:
    a, b, start = drawn((2, 6, 4), torch.float32)
    for wrong in ((a[:, :5], b, start), (a, b, start[:1]), (a, b, start[:, :3]), (a[0], b[0], start)):
        with pytest.raises(RuntimeError, match="linear_scan takes"):
            torch.ops.gpubench.linear_scan(*wrong)
    with pytest.raises(RuntimeError, match="of one dtype"):
        torch.ops.gpubench.linear_scan(a.double(), b, start)


@pytest.mark.parametrize("way", ["native"])
def test_native_is_an_operator_that_compile_and_profiler_see(way: str) -> None:
    tensors = [tensor.requires_grad_() for tensor in drawn((2, 6, 4), torch.float32)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.gpubench.linear_scan.default, tensors, test_utils=checks)
    torch._dynamo.reset()
    compiled = torch.compile(functools.partial(scans.scan, way), backend="aot_eager", fullgraph=True)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        compiled(*tensors).sum().backward()
    names = {event.name for event in seen.events()}
    assert {"gpubench::linear_scan", "gpubench::linear_scan_backward"} <= names
    h = scans.scan("loop", *tensors)
    for leaf, gradient in zip(tensors, torch.autograd.grad(h.sum(), tensors), strict=True):
        torch.testing.assert_close(leaf.grad, gradient)


@pytest.fixture
def cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


def test_a_missing_compiler_is_one_sentence(cold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", "")
    sentence = "the native scan needs a C++ compiler, and there is no 'c++' on the PATH (CXX names another)"
    assert scans.unavailable("native", "cpu") == sentence
    with pytest.raises(GpubenchError, match="scan=native cannot run: the native scan needs a C") as caught:
        scans.prepare("native")
    assert "Use another value of scan" in str(caught.value)
    monkeypatch.setenv("CXX", "ccache-of-mine g++")
    assert "'ccache-of-mine'" in str(scans.unavailable("native", "cpu"))
    assert [scans.unavailable(way, "cpu") for way in ("loop", "log", "torch")] == [None, None, None]


def test_a_missing_ninja_is_one_sentence(cold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cold / "c++").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(cold))
    assert "ninja" in str(scans.unavailable("native", "cpu"))
    (building.cache_folder() / f"{building.NAME}.so").touch()
    assert scans.unavailable("native", "cpu") is None  # what is built already needs neither


def test_another_compiler_or_source_has_another_library(cold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {building.cache_folder()}
    monkeypatch.setenv("CXX", "g++")
    folders.add(building.cache_folder())
    monkeypatch.setattr(building, "FLAGS", ("-O0",))
    folders.add(building.cache_folder())
    assert len(folders) == 3
    assert all(cold in folder.parents for folder in folders)


def test_without_a_home_the_library_lies_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert building.cache_folder().parent == tmp_path / f"gpubench-cache-{os.getuid()}"


def test_a_failed_build_is_one_sentence(cold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := scans.unavailable("native", "cpu"):
        pytest.skip(reason)
    source = cold / "wrong.cpp"
    source.write_text("#error this is wrong\n")
    monkeypatch.setattr(building, "SOURCE", source)
    with pytest.raises(GpubenchError, match="could not be built") as caught:
        building.load.__wrapped__()
    assert "this is wrong" in str(caught.value)
    assert not list(cold.rglob("*.so"))


def test_a_torch_without_associative_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch._higher_order_ops.associative_scan", None)
    assert "has no associative_scan" in str(scans.unavailable("torch", "cpu"))


@pytest.mark.slow
def test_processes_that_start_together_build_once(cold: Path) -> None:
    if reason := scans.unavailable("native", "cpu"):
        pytest.skip(reason)
    code = "from gpubench.workloads import scans; scans.prepare('native'); import torch; t = torch.ones(1, 2, 1)"
    command = [sys.executable, "-c", f"{code}; print(scans.scan('native', t, t, t[:, 0]).flatten().tolist())"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0] for process in started] == ["[2.0, 3.0]\n"] * 3
    (library,) = cold.rglob("*.so")
    assert {path.name for path in library.parent.iterdir()} == {library.name, "lock"}
