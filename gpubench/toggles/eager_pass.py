"""One more forward pass in eager code, for evidence that compiled code and CUDA graphs hide.

It comes after everything was measured, like all evidence, and changes nothing that a later step computes but what each
step changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpubench.text import kind_and_message

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext

FORWARD = "eager_pass.forward"  # note: the step's `forward` as it was before a graph was captured of it


def run_eagerly(context: ModelContext) -> str:
    """Runs the forward part of a step, neither compiled nor replayed; why that failed, or nothing."""
    import torch

    parts = context.step
    forward = context.notes.get(FORWARD, parts.forward)
    try:
        with torch.compiler.set_stance("force_eager"):
            batch = parts.transfer(parts.fetch(0))
            with parts.grad_mode():
                forward(batch)
    except Exception as error:  # noqa: BLE001 - whatever the user's code raises; the evidence that needs it tells of it
        return f"one more forward pass, in eager code, failed: {kind_and_message(error)}"
    return ""
