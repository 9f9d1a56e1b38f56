"""`gpubench doctor`: is this machine ready to measure on, and if not, what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from gpubench.hardware.doctor_facts import DoctorFinding

STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def doctor(
    device: Annotated[
        str, typer.Option("--device", help="Device: cpu, cuda:N, or auto: the largest GPU that is free, else the CPU.")
    ] = "auto",
    format_: Annotated[Literal["table", "json"], typer.Option("--format", help="Format of standard output.")] = "table",
) -> int:
    """Check device, driver, torch, compiler and load, with advice for each problem.

    Exit codes: 0 no problem, 1 a problem.
    """
    from rich.console import Console

    from gpubench.errors import EXIT_OK, EXIT_REGRESSION
    from gpubench.hardware.checkup import check_up, findings

    found = findings(check_up(device))
    if format_ == "json":
        import msgspec

        typer.echo(msgspec.json.format(msgspec.json.encode({"findings": found})).decode())
    else:
        show(Console(), found)
    return EXIT_REGRESSION if any(finding.severity == "problem" for finding in found) else EXIT_OK


def show(console: Console, found: list[DoctorFinding]) -> None:
    """Prints the findings as a table, each with its advice, and their count."""
    from rich.table import Table
    from rich.text import Text

    from gpubench.text import plural, printable

    def safe(text: str) -> str:
        # On an ASCII terminal "°" becomes a question mark instead of a traceback.
        return printable(text).encode(console.encoding, "replace").decode(console.encoding)

    table = Table(box=None, pad_edge=False, padding=(0, 1), show_header=False)
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found:
        # Text takes no markup: what a driver, a program's name or a variable says is printed as it is.
        what = Text(safe(finding.found))
        if finding.advice:
            what.append(f"\n-> {safe(finding.advice)}", style="dim")
        table.add_row(Text(finding.severity, style=STYLES[finding.severity]), Text(safe(finding.subject)), what)
    console.print(table)
    problems = sum(finding.severity == "problem" for finding in found)
    notes = sum(finding.severity == "note" for finding in found)
    verdict = plural(problems, "problem") if problems else "No problem"
    console.print(Text(f"\n{verdict}, {plural(notes, 'note')}.", style="bold"))
