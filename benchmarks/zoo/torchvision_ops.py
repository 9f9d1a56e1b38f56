"""Lets torchvision be imported beside a torch that its own binary operators do not fit.

PyPI's torchvision is built for CUDA. Beside a torch for CPUs its operators cannot be loaded, and timm, transformers and
diffusers cannot be imported either. There `nms` is defined here in plain torch, and `roi_align` is torchvision's own in
Python. Import this before any of the libraries; where torchvision is whole, it does nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch


def _loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    try:
        for folder in folders:
            torch.ops.load_library(str(Path(folder, "_C.so")))
    except OSError:
        return False
    return True


def _nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    corners = boxes.double()
    areas = (corners[:, 2:] - corners[:, :2]).prod(1)
    left = scores.argsort(descending=True, stable=True).tolist()
    kept = []
    while left:
        best, *others = left
        kept.append(best)
        if not others:
            break
        low = torch.maximum(corners[best, :2], corners[others, :2])
        high = torch.minimum(corners[best, 2:], corners[others, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        overlap = shared / (areas[best] + areas[others] - shared)
        left = [other for other, much in zip(others, (overlap > iou_threshold).tolist(), strict=True) if not much]
    return torch.tensor(kept, dtype=torch.long, device=boxes.device)


def _define() -> None:
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch.library.impl("torchvision::nms", "CPU", _nms)
    # By their names as modules, since torchvision.ops has functions of the same names.
    boxes: Any = importlib.import_module("torchvision.ops.boxes")
    aligning: Any = importlib.import_module("torchvision.ops.roi_align")

    def nothing() -> None:
        """In place of a check for the binary operators."""

    boxes._assert_has_ops = nothing
    aligning._roi_align = aligning._roi_align.__wrapped__  # it would be compiled, in an eager model too


if not _loads():
    _define()
