"""`gpubench claims`: what published guides promise against what is measured here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpubench import api
from gpubench.analysis.claims import values
from gpubench.analysis.guides import names
from gpubench.cli.measuring import told_where
from gpubench.cli.options import output_option, run_option
from gpubench.cli.progress import listener
from gpubench.cli.reports import emit, load_all, tell
from gpubench.errors import EXIT_OK
from gpubench.render.claims_document import claims_content
from gpubench.render.formats import ClaimsFormat, render
from gpubench.study.launch_claims import RUNS


def claims(
    about: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[GUIDE|WORKLOAD] [REPORT.json...]",
            help="Only the claims of this guide or about this workload. Reports, or folders of them: read them, and "
            "measure nothing.",
        ),
    ] = None,
    device: Annotated[str, run_option("--device", help="Device: cpu, cuda:N, or auto.")] = "auto",
    size: Annotated[str, run_option("--size", help="Size of the models, as in compare-opts.")] = "auto",
    rounds: Annotated[
        int, run_option("--rounds", min=1, max=1000, help="Fresh processes per configuration; intervals need 3.")
    ] = 5,
    allow: Annotated[
        list[str] | None,
        run_option(
            "--allow", metavar="FLAG", help="Count rows despite this flag, as in compare-opts; may be repeated."
        ),
    ] = None,
    seed: Annotated[int, run_option("--seed", min=0, max=2**31 - 1, help="Seed of weights, inputs and order.")] = 0,
    output: Annotated[
        Path,
        output_option(
            "--output",
            metavar="FOLDER",
            help="Where the reports go; those that are there already are not measured again.",
        ),
    ] = RUNS,
    dry_run: Annotated[bool, run_option("--dry-run", help="Print what would be measured, without measuring.")] = False,
    quiet: Annotated[bool, output_option("--quiet", help="No progress on standard error.")] = False,
    format_: Annotated[ClaimsFormat, output_option("--format", help="Format of standard output.")] = "table",
) -> int:
    """Hold what published guides claim against what is measured here.

    Every claim has a row: claimed, measured with its interval, and a verdict, or the sentence why it is not measurable
    here. Interrupted, the same command goes on.
    """
    words = list(about or [])
    name = words.pop(0) if words and not _is_path(words[0]) else None
    request = api.ClaimsRequest(name=name, device=device, size=size, rounds=rounds, allow=tuple(allow or ()), seed=seed)
    if dry_run:
        emit("".join(map(_line, api.plan_claims(request))))
        return EXIT_OK
    if words:
        sources = load_all([Path(word) for word in words])
    else:
        with listener(quiet) as progress, told_where(progress, "; the same command goes on."):
            sources = api.measure_claims(request, output, progress)
        if not quiet:
            tell(f"Reports: {output}")
    emit(render(claims_content(api.claims(sources, name)), format_))
    return EXIT_OK


def _is_path(word: str) -> bool:
    return word not in names() and (word.endswith(".json") or Path(word).exists())


def _line(request: api.StudyRequest) -> str:
    held = "".join(f" {key}={value}" for key, value in {**request.parameters, **request.fix}.items())
    rows = "; ".join(["baseline", *(values(row) for row in request.together)])
    return f"measure  {request.workload} {request.mode}{held}: {rows}\n"
