"""What gpubench should say of each setting of one of the zoo's models, found with plain torch and none of its code.

    python benchmarks/zoo/judge.py timm/vit [--backend eager]

A setting takes effect if at least 80 % of the work it is about shows it: the FLOPs in bfloat16, the FLOPs of
convolutions in channels-last, or for `compile` any call of compiled code in a later step. Outputs are held against
those of the same weights and inputs in fp64, where the model can run in it. What is within a factor 1.5 of a limit
is borderline: it has no expected verdict.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import logging
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from differences import FACTOR, Difference, Outcome, against, compare, snapshot
from models import NAMES
from torch import nn
from work import Work

VALUES = (
    ("precision", "bf16-autocast"),
    ("precision", "bf16-weights"),
    ("channels_last", "on"),
    ("compile", "default"),
)
BASELINE = "baseline"
SHARE = 0.8
LIMITS = {"precision": 0.06, "channels_last": 1e-3, "compile": 1e-3}
STEPS, RATE = 3, 1e-4  # of training, as gpubench has them
LEAST_COSINE, LONGEST, MOST_LOST = 0.5, 2.0, 0.05  # of the parameters' changes
RANDOM = 1e-4
SMALL = 1e-3  # parameters all below this hide what feeds them
Step = Callable[[nn.Module, Any], Any]


@dataclass
class Expected:
    """The verdicts that are right for one setting; empty: borderline, so that none counts as false."""

    verdicts: list[str]
    why: str
    share: float | None = None
    error: float | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Side:
    """The model under one setting: how it is changed before its first step, and what each step runs in."""

    change: Callable[[nn.Module], None] = lambda model: None
    convert: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor
    within: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


@dataclass
class Training:
    """Losses of the first steps, and by how much the parameters moved."""

    losses: list[float]
    moved: torch.Tensor


class Judge:
    """One model in one mode."""

    def __init__(self, name: str, mode: str, backend: str) -> None:
        library, _, model = name.partition("/")
        self.workload = getattr(importlib.import_module(f"{library}_models"), model)()
        self.mode, self.backend = mode, backend

    def build(self, side: Side, *, stirred: bool = False) -> nn.Module:
        """The model with its seeded weights, changed; `stirred`: what is all zero or tiny is made small random."""
        _seed(0)
        model: nn.Module = self.workload.build()
        model.train(self.mode == "training")
        if stirred:
            generator = torch.Generator().manual_seed(7)
            for parameter in _hidden(model):
                drawn = 0.05 * torch.randn(parameter.shape, generator=generator)
                parameter.data = drawn.to(parameter.dtype)
        side.change(model)
        return model

    def batches(self, side: Side) -> list[Any]:
        """Two batches, as gpubench draws them."""
        return [
            tuple(
                side.convert(tensor)
                for tensor in self.workload.inputs(self.workload.batch_size, torch.Generator().manual_seed(1 + index))
            )
            for index in range(2)
        ]

    def forward(self, side: Side, model: nn.Module, batch: Any, seed: int = 0) -> Any:
        """One inference, or the loss of one batch."""
        _seed(seed)
        with side.within():
            if self.mode == "training":
                return self.workload.loss(model, batch)
            with torch.no_grad():
                return self.workload.infer(model, batch, {})

    def outputs(self, side: Side, *, stirred: bool = False, seed: int = 0) -> list[Any]:
        """Snapshots of both batches' outputs."""
        model = self.build(side, stirred=stirred)
        return [snapshot(self.forward(side, model, batch, seed)) for batch in self.batches(side)]

    def training(self, side: Side, seed: int = 0) -> Training:
        """The first steps with AdamW."""
        model, batches = self.build(side), self.batches(side)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        before = [parameter.detach().float().clone() for parameter in trained]
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, foreach=False)
        losses = []
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = self.forward(side, model, batches[step % 2], seed + step)
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
        moved = [(now.detach().float() - old).flatten() for now, old in zip(trained, before, strict=True)]
        return Training(losses, torch.cat(moved).double())

    def work(self, side: Side) -> Work:
        """The arithmetic of one step, backward pass included."""
        model, batch = self.build(side), self.batches(side)[0]
        work = Work()
        with work:
            result = self.forward(side, model, batch)
            if self.mode == "training":
                result.backward()
        return work

    def verdicts(self) -> dict[str, Expected]:
        """What is expected of the baseline and of each value."""
        plain = Side()
        as_built = self.work(plain)
        facts = _Facts(self, plain, as_built)
        expected = {BASELINE: facts.baseline()}
        for toggle, value in VALUES:
            try:
                expected[f"{toggle}={value}"] = facts.value(toggle, value)
            except Exception as error:  # noqa: BLE001 - a library may raise anything under a setting
                words = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                expected[f"{toggle}={value}"] = Expected(["failed"], f"plain torch fails too: {words}")
        return expected


class _Facts:
    """What the plain model gives, to hold the settings against."""

    def __init__(self, judge: Judge, plain: Side, as_built: Work) -> None:
        self.judge, self.plain, self.as_built = judge, plain, as_built
        self.built_fp32 = as_built.share_in(torch.float32)
        self.below_fp32 = self.built_fp32 is not None and self.built_fp32 < SHARE
        if judge.mode == "training":
            self.training, other = judge.training(plain), judge.training(plain, seed=100)
            self.spread = _loss_error(other, self.training)
            self.random = self.spread > RANDOM
            return
        self.references = {False: self._reference(stirred=False)}
        if any(True for _ in _hidden(judge.build(plain))):
            self.references[True] = self._reference(stirred=True)
        one, other_outputs = judge.outputs(plain), judge.outputs(plain, seed=100)
        self.random = any(compare(b, a, RANDOM).error > RANDOM for a, b in zip(one, other_outputs, strict=True))
        self.fp32_error = self._difference(plain, LIMITS["compile"], stirred=False).error

    def _reference(self, *, stirred: bool) -> list[Any]:
        # Autocast leaves fp64 alone, so that a model's own autocast does not reach this one. Random numbers differ
        # between fp32 and fp64, so that there the plain model is the reference.
        first, second = (self.judge.outputs(self.plain, seed=seed) for seed in (0, 100))
        if all(compare(b, a, RANDOM).error <= RANDOM for a, b in zip(first, second, strict=True)):
            with contextlib.suppress(Exception):
                return self.judge.outputs(_in_dtype(torch.float64), stirred=stirred)
        return self.judge.outputs(self.plain, stirred=stirred)

    def _difference(self, side: Side, limit: float, *, stirred: bool) -> Difference:
        outputs = self.judge.outputs(side, stirred=stirred)
        pairs = zip(outputs, self.references[stirred], strict=True)
        return max((compare(one, other, limit) for one, other in pairs), key=_severity)

    def baseline(self) -> Expected:
        """Of the row that the others are held against."""
        share = self.built_fp32
        if self.below_fp32:
            return Expected(["not_effective"], "the model as built does not compute in fp32", share)
        verdicts = ["ok", "unchecked"] if self.random or self._partly_unchecked() else ["ok"]
        return Expected(verdicts, "the plain model", share)

    def _partly_unchecked(self) -> bool:
        return (
            self.judge.mode == "inference" and self._difference(self.plain, 1.0, stirred=False).outcome == "unchecked"
        )

    def value(self, toggle: str, value: str) -> Expected:
        """Of one value alone."""
        if toggle == "compile":
            return self._compiled()
        side = _channels_last() if toggle == "channels_last" else _PRECISIONS[value]()
        work = self.judge.work(side)
        share = work.share_channels_last if toggle == "channels_last" else work.share_in(torch.bfloat16)
        if share is None:
            return Expected(["skipped", "not_effective", "unproven"], "there is nothing that it is about")
        expected = self._quality(side, toggle)
        expected.share = share
        if toggle == "precision" and self.below_fp32:
            expected.verdicts += ["not_effective", "skipped"] if expected.verdicts else []
            return expected
        effect = against(1 - share, 1 - SHARE)
        if effect == "borderline":
            return dataclasses.replace(expected, verdicts=[], why=f"borderline: {share:.0%} of the work")
        if effect == "wrong":
            return dataclasses.replace(expected, verdicts=["not_effective"], why=f"{share:.0%} of the work")
        return expected

    def _quality(self, side: Side, toggle: str, *, seeded_alike: bool = True, stirring: bool = True) -> Expected:
        if self.judge.mode == "training":
            return self._training_quality(side, toggle, seeded_alike=seeded_alike)
        limit = LIMITS["precision"] if self.below_fp32 else LIMITS[toggle]
        stirs = [stirred for stirred in self.references if stirring or not stirred]
        found = {stirred: self._difference(side, limit, stirred=stirred) for stirred in stirs}
        plain = found[False]
        details = {"largest": plain.largest, "tensor": plain.name}
        if True in found:
            details["error_stirred"] = found[True].error
        expected = Expected([], f"{plain.outcome}: error {plain.error:.2g} of {plain.name}", None, plain.error, details)
        if self.random:
            expected.verdicts = ["ok", "unchecked"]
            if seeded_alike and plain.outcome == "wrong":
                expected.verdicts = ["wrong", "unchecked"]
            expected.why += "; the model draws random numbers"
            return expected
        if toggle != "precision" and not self.below_fp32 and self.fp32_error > limit / (2 * FACTOR):
            expected.why = f"borderline: fp32 itself is off by {self.fp32_error:.2g}"
            return expected
        outcomes: set[Outcome] = {difference.outcome for difference in found.values()}
        if "borderline" in outcomes:
            expected.why = f"borderline: {expected.why}"
            return expected
        expected.verdicts = [plain.outcome]
        if plain.outcome == "unchecked":
            expected.verdicts = sorted(outcomes if stirring else {"ok", "unchecked"})
            expected.why += "; zero or empty as built"
        elif "wrong" in outcomes and plain.outcome == "ok":
            expected.verdicts = ["ok", "wrong"]
            expected.why += "; wrong where what is zero or tiny as built is made larger"
        if plain.reordered:
            expected.verdicts = sorted({plain.outcome, "unchecked"})
            if self.judge.workload.compare != "set":
                expected.verdicts = sorted({*expected.verdicts, "wrong"})
                expected.why += "; in another order, and the workload does not say that order is nothing"
        return expected

    def _training_quality(self, side: Side, toggle: str, *, seeded_alike: bool) -> Expected:
        training, plain = self.judge.training(side), self.training
        limit = LIMITS["precision"] if self.below_fp32 else LIMITS[toggle]
        error = _loss_error(training, plain)
        lengths = float(training.moved.norm()), float(plain.moved.norm())
        cosine = float(training.moved @ plain.moved) / max(lengths[0] * lengths[1], 1e-300)
        ratio = max(lengths[0], 1e-300) / max(lengths[1], 1e-300)
        moved = plain.moved != 0
        lost = float((training.moved[moved] == 0).double().mean())
        outcomes = {
            "loss": against(error, limit + (3 * self.spread if self.random else 0.0)),
            "lost updates": against(lost, MOST_LOST),
            "length": against(max(ratio, 1 / ratio) - 1, LONGEST - 1),
        }
        if not self.random:
            outcomes["direction"] = against(1 - cosine, 1 - LEAST_COSINE)
        details = {"cosine": cosine, "length": ratio, "lost": lost, "outcomes": outcomes}
        why = ", ".join(f"{name} {outcome}" for name, outcome in outcomes.items() if outcome != "ok") or "ok"
        expected = Expected([], f"{why}: a loss is off by {error:.2g}, {lost:.1%} lost", None, error, details)
        if "wrong" in outcomes.values():
            expected.verdicts = ["wrong"]
        elif "borderline" not in outcomes.values():
            expected.verdicts = ["ok"]
        if self.random and (expected.verdicts == ["ok"] or not seeded_alike):
            expected.verdicts = ["ok", "unchecked"]
        return expected

    def _compiled(self) -> Expected:
        judge, calls, listener = self.judge, [0], _Listener()
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        logging.getLogger("torch._dynamo").addHandler(listener)
        side = Side(
            change=lambda model: _compile(model, judge.workload.compile_targets, judge.backend, calls),
            within=lambda: _new_count(calls),
        )
        # Compiled code draws other random numbers than eager code does, and one compilation is enough to wait for.
        expected = self._quality(side, "compile", seeded_alike=False, stirring=False)
        frames = dict(torch._dynamo.utils.counters["frames"])
        breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
        expected.details |= {"frames": frames, "graph_breaks": breaks, "calls": calls[-1]}
        if not calls[-1]:
            return dataclasses.replace(expected, verdicts=["not_effective"], why=f"no compiled code ran; {frames}")
        if listener.limits:
            return dataclasses.replace(expected, verdicts=[], why="borderline: a recompile limit was hit")
        return expected


def _severity(difference: Difference) -> tuple[int, float]:
    return ("ok", "unchecked", "borderline", "wrong").index(difference.outcome), difference.error


def _loss_error(one: Training, other: Training) -> float:
    pairs = zip(one.losses, other.losses, strict=True)
    return max(abs(a - b) / max(abs(b), 1e-300) if a == a else float("inf") for a, b in pairs)


def _seed(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    with contextlib.suppress(ImportError):
        import numpy as np

        np.random.seed(seed)


def _hidden(model: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters that are zero or tiny as built, so that what comes before them hardly shows."""
    for parameter in model.parameters():
        if parameter.numel() and float(parameter.detach().abs().max()) < SMALL:
            yield parameter


def _in_dtype(dtype: torch.dtype) -> Side:
    def change(model: nn.Module) -> None:
        model.to(dtype)

    return Side(change, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def _autocast() -> Side:
    return Side(within=lambda: torch.autocast("cpu", torch.bfloat16))


_PRECISIONS: dict[str, Callable[[], Side]] = {
    "bf16-autocast": _autocast,
    "bf16-weights": lambda: _in_dtype(torch.bfloat16),
}


def _channels_last() -> Side:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        layout = formats.get(tensor.dim())
        return tensor.contiguous(memory_format=layout) if layout else tensor

    def change(model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.data = convert(parameter.data)

    return Side(change, convert)


def _compile(model: nn.Module, targets: tuple[str, ...], backend: str, calls: list[int]) -> None:
    from torch._dynamo.backends.registry import lookup_backend

    compiler = lookup_backend(backend)

    def counting(graph: Any, inputs: Any) -> Any:
        compiled = compiler(graph, inputs)

        def call(*args: Any) -> Any:
            calls[-1] += 1
            return compiled(*args)

        return call

    for target in targets:
        part = model.get_submodule(target) if target else model
        if type(part).__module__.startswith("torch.nn"):  # dynamo leaves frames of torch's own files alone
            forward = part.forward
            part.forward = torch.compile(lambda *args, run=forward, **named: run(*args, **named), backend=counting)
        else:
            part.compile(backend=counting)


@contextlib.contextmanager
def _new_count(calls: list[int]) -> Iterator[None]:
    """For one forward pass."""
    calls.append(0)
    yield


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.limits = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.limits += "hit config." in record.getMessage()


def main() -> None:
    """Prints what is expected of one model in each of its modes, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES, metavar="LIBRARY/MODEL")
    parser.add_argument("--mode", choices=("inference", "training"), help="default: each that the model has")
    parser.add_argument("--backend", default="inductor", help="of compile; eager is quicker, and checks no numbers")
    parser.add_argument("--output", type=Path, help="default: standard output")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # steps are short, and other programs may use the other cores
    found = {}
    first = Judge(given.name, "inference", given.backend)
    for mode in [given.mode] if given.mode else first.workload.modes:
        expected = Judge(given.name, mode, given.backend).verdicts()
        found[mode] = {value: dataclasses.asdict(each) for value, each in expected.items()}
    text = json.dumps(found, indent=1) + "\n"
    if given.output:
        given.output.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
