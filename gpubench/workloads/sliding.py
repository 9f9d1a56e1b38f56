"""Sliding-window inference, and the toggle `sw_batch_size`: how many windows go through the network in one call."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gpubench.report.model import Value
from gpubench.text import plural, times
from gpubench.toggles.model_context import ModelContext
from gpubench.toggles.toggle import EvidenceResult, Requirement, Scope, Stage, Toggle
from gpubench.workloads.tiling import apply_tiled


def slide(
    network: Callable[[Tensor], Tensor], images: Tensor, window: int, overlap: int, at_once: int, calls: list[int]
) -> Tensor:
    """What `network` makes of images or volumes [B, 1, *S], window by window: [B, K, *S].

    `at_once` windows of each sample go through it in one call; `calls` gets the samples of each call.
    """

    def counted(windows: Tensor) -> Tensor:
        calls.append(windows.shape[0])
        return network(windows)

    return apply_tiled(counted, images, tile=window, overlap=overlap, tiles_per_call=at_once)


SW_BATCH_SIZE = "sw_batch_size"


def sw_batch_size(calls: list[int], windows: int | None, idle: str) -> Toggle:
    """The toggle of that name.

    calls:   samples that the network was called with in the last step, call by call.
    windows: that slide over a sample, if that is known beforehand.
    idle:    why none slide, or nothing.
    """

    def applies(_: Scope) -> str | None:
        """Applies where windows slide."""
        return idle or None

    def evidence(context: ModelContext, value: Value) -> EvidenceResult:
        """Whether every call of the network in the step had so many windows of each sample."""
        if not calls:
            return EvidenceResult(value == 1, "nothing was cut into windows")
        found = sorted(set(calls))
        words = " or ".join(plural(samples // context.batch_size, "window") for samples in found)
        return EvidenceResult(
            found == [int(value) * context.batch_size],
            f"the network was called {times(len(calls))} in the step, with {words} of each sample",
        )

    def too_many(count: int) -> Requirement:
        def check(_: Scope) -> str | None:
            """As many windows."""
            lacking = windows is not None and windows < count
            return f"needs as many windows, and only {windows} slide over the input" if lacking else None

        return Requirement(check=check)

    values: dict[Value, str] = {1: "one after another"}
    values |= {count: f"{count} at once" for count in (2, 4, 8, 16)}
    return Toggle(
        name=SW_BATCH_SIZE,
        summary="Windows of a sliding-window inference that go through the network in one call.",
        values=values,
        stage=Stage.PROBLEM,
        applies=applies,
        requires={count: too_many(count) for count in (2, 4, 8, 16)},
        idle_when={"tile_size": (0,)},
        evidence=evidence,
        usage=lambda value, _: f'options["{SW_BATCH_SIZE}"] = {value}  # for the workload\'s infer',
        claims=("cytodl",),
        source="sw_batch_size of sliding_window_inference in MONAI (Cardoso et al., 2022)",
    )
