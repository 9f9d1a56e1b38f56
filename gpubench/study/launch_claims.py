"""Measures what published guides claim: one run for each workload, mode and set of held values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gpubench
from gpubench.analysis.claims import Source, has_rows
from gpubench.analysis.guides import Claim, Guide, Measure, chosen
from gpubench.errors import GpubenchError
from gpubench.report import store
from gpubench.report.model import Report, Value
from gpubench.study.launch import run
from gpubench.study.listener import Listener
from gpubench.study.planning import means_cpu
from gpubench.study.request import StudyRequest
from gpubench.workloads.workload_facts import Mode

RUNS = Path("gpubench-runs") / "claims"  # where reports go unless a folder is named
ROUNDS = 5  # of fresh processes: their spread is what intervals rest on


@dataclass(frozen=True, kw_only=True)
class ClaimsRequest:
    """What `gpubench claims` is asked to measure; `gpubench.api.claims` says what each field means."""

    name: str | None = None
    device: str = "auto"
    size: str = "auto"
    rounds: int = ROUNDS
    allow: Sequence[str] = ()
    seed: int = 0

    def runs(self) -> list[tuple[StudyRequest, list[Measure]]]:
        """A run for each workload, mode and set of held values that the claims need, with what it then measures.

        Raises GpubenchError for an unknown name, or what no run could do.
        """
        kind = "cpu" if means_cpu(self.device) else "cuda"
        found: list[tuple[StudyRequest, list[Measure]]] = []
        for way, mode in _ways(chosen(self.name), kind):
            asked = StudyRequest(
                command="claims",
                workload=way.workload,
                mode=mode,
                size=self.size,
                parameters=way.parameters,
                device=self.device,
                strategy="each",
                fix=way.fix,
                rounds=self.rounds,
                final_rounds=0,
                allow=tuple(self.allow),
                seed=self.seed,
            )
            ways = next((ways for request, ways in found if request == asked), None)
            if ways is None:
                found.append((asked, [way]))
            elif way not in ways:
                ways.append(way)
        made = [(_with_rows(request, ways), ways) for request, ways in found]
        for request, _ in made:
            request.check()
        return made


def _ways(claims: Iterable[tuple[Guide, Claim]], device_kind: str) -> Iterator[tuple[Measure, Mode]]:
    for _, claim in claims:
        for way in claim.measure:
            yield from ((way, mode) for mode in claim.modes if mode in way.modes and device_kind in way.devices)


def _with_rows(request: StudyRequest, ways: Iterable[Measure]) -> StudyRequest:
    sides: list[dict[str, Value]] = []
    for way in ways:
        sides += [side for side in (way.off, way.on) if side and side not in sides]
    return replace(request, together=tuple(sides))


def name_of(request: StudyRequest) -> str:
    """The file name of its report: `video_vae-inference-small-tile_size-offered.json`; without a size that is auto."""
    size = "" if request.size == "auto" else f"-{request.size}"
    held = "".join(f"-{name}-{value}" for name, value in {**request.parameters, **request.fix}.items())
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{request.workload}-{request.mode}{size}{held}") + ".json"


def answers(report: Report, request: StudyRequest, ways: Iterable[Measure]) -> bool:
    """Whether the finished `report` is what `request` would measure, with all rows of `ways`."""
    asked = report.protocol.rounds >= request.rounds and report.protocol.seed == request.seed
    kind = report.device.kind
    there = kind == ("cpu" if means_cpu(request.device) else "cuda")
    there = there and request.device in ("auto", kind, f"{kind}:{report.device.index}")
    same = asked and there and report.tool.version == gpubench.__version__
    return report.finished_at is not None and same and all(has_rows(way, report) for way in ways)


def measure(wanted: Sequence[tuple[StudyRequest, list[Measure]]], folder: Path, listener: Listener) -> Iterator[Source]:
    """The reports, each with its path, as they are finished in `folder`.

    A finished report that is there already and has every row is used, and an unfinished one continued.
    Raises GpubenchError where one can be neither.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, (request, ways) in enumerate(wanted, start=1):
        path = folder / name_of(request)
        about = f"{request.workload} {request.mode} ({number} of {len(wanted)})"
        earlier = store.load(path) if path.exists() else None
        if earlier is not None and answers(earlier, request, ways):
            listener.note(f"{about}: {path} has it already, of {earlier.created_at}; remove it to measure again.")
            yield str(path), earlier
            continue
        listener.note(f"{about}: {path}")
        unfinished = earlier is not None and earlier.finished_at is None
        try:
            yield str(path), run(request, path, unfinished, listener)
        except GpubenchError as error:
            if earlier is not None:
                raise
            # One workload that cannot run here at all does not keep the others from being measured.
            listener.note(f"{about}: {error.message}")
