"""What the reference's own runs told of a model: whether it can be compared at all, and how."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from gpubench.measure.values import Rounding
from gpubench.report.model import Value
from gpubench.worker import fingerprint
from gpubench.worker.fingerprint import Fingerprint

NAME = "facts.json"
SEEDED = "draw from torch's, numpy's or Python's own generator, which gpubench seeds"


@dataclass(frozen=True)
class Facts:
    """`problem` says why no outputs can be compared; it is empty where they can."""

    configuration: dict[str, Value]  # of the reference
    built: Fingerprint  # the plain model and its inputs, before any step
    problem: str = ""
    state: str = ""  # what a step leaves to the next one, as a clause; empty: nothing
    moves: bool = False  # a step of inference trains parameters, and their change is compared as well
    spread: float = 0.0  # what other random numbers alone change in the outputs or losses, relative
    losses: tuple[float, ...] = ()  # training
    noise: float = 0.0  # what rounding in fp32 alone changes in these losses, relative
    what: str = ""  # what outputs are compared with, as reports say it
    left_out: dict[str, str] = field(default_factory=dict)  # what else a step returns -> why it is not compared
    rounding: dict[str, Rounding] = field(default_factory=dict)  # output -> what rounding alone changes, where known

    def save(self, folder: Path) -> None:
        """Writes them into the reference's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NAME).write_text(json.dumps(msgspec.to_builtins(self)))

    def why_incomparable(self, built: Fingerprint) -> str:
        """Why a model that was `built` as this in another process cannot be compared; empty where it can."""
        return self.problem or built_differently(fingerprint.difference(self.built, built))


def load(folder: Path) -> Facts:
    """What `save` wrote."""
    return msgspec.convert(json.loads((folder / NAME).read_text()), Facts)


def built_differently(name: str) -> str:
    """The sentence for a tensor that two builds from one seed do not have alike; empty where `name` is."""
    if not name:
        return ""
    what = "the inputs are made" if name.startswith(fingerprint.INPUT) else "the model is built"
    return f"{what} differently each time: {name} differs between two builds from one seed; {SEEDED}"
