"""Every tensor in what a step returns is found, in whatever it is wrapped; what cannot be compared is named."""

from __future__ import annotations

import collections
import dataclasses
import enum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from gpubench.measure.outputs import collect, load_tensors, on_cpu, save_tensors

X = torch.arange(6.0).reshape(2, 3)


class Posterior:
    """As diffusers' `encode` returns it."""

    def __init__(self) -> None:
        self.mean, self.logvar, self.deterministic, self.name = X, X + 1, False, "posterior"
        self._scratch, self.model, self.me = X, torch.nn.Linear(2, 2), self


class Slots:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = X


class Private:
    def __init__(self) -> None:
        self._value = X


class Pair(NamedTuple):
    boxes: torch.Tensor
    scores: torch.Tensor


class Picture:
    """As pictures of other libraries give themselves away."""

    __array_interface__ = np.full((2, 2), 7, np.uint8).__array_interface__


@dataclasses.dataclass
class Result:
    logits: torch.Tensor
    loss: float | None = None


class Color(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (X, ["output"]),
        ({"a": [X, (X,)], 1: X, Color.RED: X}, ["output.a.0", "output.a.1.0", "output.1", "output.Color.RED"]),
        (Result(X, 0.5), ["output.logits", "output.loss"]),
        (Result(X), ["output.logits"]),
        (Pair(X, X), ["output.boxes", "output.scores"]),
        (collections.deque([X, X]), ["output.0", "output.1"]),
        ({"a": X}.values(), ["output.0"]),
        (collections.UserDict(a=X), ["output.a"]),
        (Posterior(), ["output.mean", "output.logvar", "output.deterministic"]),
        (Slots(), ["output.value"]),
        (Private(), ["output._value"]),
        (torch.distributions.Normal(X, X + 1), ["output.loc", "output.scale"]),
        (torch.topk(X, 2), ["output.0", "output.1"]),
        ((X, 3, True, 1.5, 2j), ["output.0", "output.1", "output.2", "output.3", "output.4"]),
        ([1.0, 2.0, 3.0], ["output"]),
        ({3, 1, 2}, ["output"]),
        ((np.ones(3), np.float32(1.0), Picture()), ["output.0", "output.1", "output.2"]),
        ({"a\nb": X, "1": X, 1: X}, ["output.a b", "output.1", "output.1'"]),
        ({("a", 1): X}, ["output.tuple-0"]),
    ],
)  # fmt: skip
def test_tensors_are_found_with_their_paths(result: Any, names: list[str]) -> None:
    found = collect(result)
    assert list(found.tensors) == names
    assert not found.left_out
    assert all(isinstance(tensor, torch.Tensor) for tensor in found.tensors.values())


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ("a cat", "text"),
        ({X, X + 1}, "a set has no order"),
        ((each for each in [X]), "a generator: it is computed only where it is read"),
        (object(), "an object of type object without tensors"),
        (torch.nn.Linear(2, 2), "an object of type Linear"),
        (np.array(["a", "b"]), "an object of type ndarray without tensors"),
        (lambda: X, "an object of type function"),
    ],
)
def test_what_is_no_tensor_is_named(result: Any, reason: str) -> None:
    found = collect({"x": X, "other": result})
    assert list(found.tensors) == ["output.x"]
    assert reason in found.left_out["output.other"]


class Both:
    def __init__(self, public: Any, private: torch.Tensor) -> None:
        self.public, self._private = public, private


def test_private_tensors_do_not_vanish() -> None:
    assert list(collect(Both(3, X)).tensors) == ["output.public", "output._private"]
    assert list(collect(Both("text", X)).tensors) == ["output._private"]
    beside = collect(Both(X, X + 1))
    assert list(beside.tensors) == ["output.public"]
    assert beside.left_out == {"output._private": "it is private, beside public tensors: return it by itself"}
    assert not collect(Both(X, X)).left_out


def test_what_contains_itself_ends() -> None:
    endless: list[Any] = [X]
    endless.append(endless)
    assert collect(endless).left_out == {"output.1": "it contains itself"}
    assert list(collect([X] * 10_010).left_out) == ["output"]


@pytest.mark.parametrize(
    ("tensor", "dense"),
    [
        (X.to_sparse(), X),
        (X.to_sparse_csr(), X),
        (torch.nested.nested_tensor([X[0], X[1, :2]], layout=torch.jagged), torch.cat([X[0], X[1, :2]])),
        (torch.nested.nested_tensor([X[0], X[1, :2]]), torch.cat([X[0], X[1, :2]])),
        (torch.quantize_per_tensor(X, 1.0, 0, torch.qint8), X),
        (X.to(torch.float8_e4m3fn), X),
        (X.bfloat16(), X),
        (X.double() * 1e300, X.double() * 1e300),
        (X > 2, X > 2),
        (torch.complex(X, X).conj(), torch.complex(X, -X)),
        (torch.complex(X, X).to(torch.complex32), torch.complex(X, X)),
        (torch.tensor(3.0), torch.tensor(3.0)),
        (torch.empty(0, 4), torch.empty(0, 4)),
        (X.requires_grad_(False).clone().requires_grad_(), X),
        (X.to(torch.uint16), X.to(torch.uint16)),
    ],
)
def test_every_kind_of_tensor_survives_the_file(tensor: torch.Tensor, dense: torch.Tensor, tmp_path: Path) -> None:
    found = on_cpu(collect({"a\nb": tensor}))
    assert not found.left_out
    save_tensors(found.tensors, tmp_path / "new")
    assert list(load_tensors(tmp_path / "new")) == ["output.a b"]
    loaded = load_tensors(tmp_path / "new")["output.a b"]
    assert loaded.dtype in (dense.dtype, torch.complex64)
    assert torch.equal(loaded, dense)


def test_a_tensor_without_values_is_named() -> None:
    found = on_cpu(collect((X, X.to("meta"))))
    assert list(found.tensors) == ["output.0"]
    assert found.left_out == {"output.1": "its values cannot be read: it is on the meta device and has no values"}
