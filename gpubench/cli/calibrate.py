"""`gpubench doctor --calibrate`: this machine's own noise, measured, kept and told."""

from __future__ import annotations

import sys

import msgspec
import typer

from gpubench.analysis.statistics import detectable
from gpubench.cli.planning import scope_of
from gpubench.cli.run import protocol_for
from gpubench.errors import EXIT_OK
from gpubench.matrix import Builder
from gpubench.results import calibrations, store
from gpubench.results.schema import Calibration, Protocol
from gpubench.runner.calibrate import ROUNDS, calibrate, fingerprint
from gpubench.runner.laboratory import Laboratory
from gpubench.text import printable
from gpubench.worker.messages import WorkloadChoice

WORKLOAD = WorkloadChoice(reference="resnet50", size=None, parameters={}, mode="inference")
WARMUP_MIN_S = 0.5  # identical processes are equally warm; a minute is all that this may take
TELL_ROUNDS = (3, 6, 10, 20, 50)


def run(device: str, format_: str) -> int:
    """Measures, keeps and prints the noise; the exit code."""
    store.check_writable(calibrations.folder() / "calibration.json")
    with Laboratory(WORKLOAD, device, Protocol(warmup_min_s=WARMUP_MIN_S)) as laboratory:
        described = laboratory.describe(None)
        laboratory.protocol = protocol_for(described.device.kind, laboratory.protocol)
        configuration = Builder(scope_of(described)).defaults
        mark = fingerprint(described.device, described.environment)
        found = calibrate(laboratory, configuration, mark, tell, ROUNDS)
    if format_ == "json":
        typer.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        typer.echo(printable(described.device.name))
        typer.echo("\n".join(lines(found)))
    path = calibrations.save(found)
    if format_ != "json":
        print(printable(f"Kept in {path}; later reports carry it."), file=sys.stderr)  # noqa: T201
    return EXIT_OK


def tell(index: int, count: int, kind: str) -> None:
    """One line a round, to standard error."""
    print(f"[{index}/{count}] {kind}", file=sys.stderr)  # noqa: T201


def lines(found: Calibration) -> list[str]:
    """The noise, and the smallest effect that so many rounds detect."""
    inside = found.inside_process
    text = [
        f"Two identical processes differ by {found.between_processes:.2%} (standard deviation of the log-ratio, "
        f"{found.rounds} rounds).",
        "Two copies inside one process could not be measured."
        if inside is None
        else f"Two copies inside one process differ by {inside:.2%}.",
        *(
            [f"Others used the machine in {found.disturbed} of the rounds: calibrate again when it is quiet."]
            if found.disturbed
            else []
        ),
        "",
        "rounds   smallest effect that is detected (one-sided 1 %, power 80 %)",
        "         between processes   inside one process",
    ]
    for rounds in TELL_ROUNDS:
        within = "-" if inside is None else f"{detectable(inside, rounds):.2%}"
        text.append(f"{rounds:6}   {detectable(found.between_processes, rounds):17.2%}   {within:>18}")
    return text
