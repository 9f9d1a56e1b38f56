"""Options that several commands share, and how their text is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gpubench.errors import GpubenchError
from gpubench.render.formats import ReportFormat

OutputFormat = ReportFormat
ObjectiveName = Literal["fps", "latency", "memory"]
ModeName = Literal["inference", "training"]

RUN = "Run"
MODEL = "Model"
OUTPUT = "Output"

WorkloadArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[WORKLOAD]",
        help="A bundled workload (see `gpubench workloads`), FILE.py:NAME or package.module:NAME. Default: resnet50.",
    ),
]
WorkloadOption = Annotated[
    str | None,
    typer.Option("--workload", metavar="WORKLOAD", help="The same as the argument.", rich_help_panel=MODEL),
]
Mode = Annotated[
    ModeName | None,
    typer.Option("--mode", help="What is timed. Default: the first that the workload can do.", rich_help_panel=MODEL),
]
Size = Annotated[
    str,
    typer.Option("--size", help="auto, base (real size), small (for CPUs), tiny (for tests).", rich_help_panel=MODEL),
]
Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        metavar="NAME=VALUE",
        help="A parameter of the workload's function, such as task=decode; may be repeated.",
        rich_help_panel=MODEL,
    ),
]
Resolution = Annotated[
    int | None,
    typer.Option("--resolution", min=1, help="Pixels of the input's side, where it has one.", rich_help_panel=MODEL),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda:N.", rich_help_panel=RUN)]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Items in a step. Default: the workload's.", rich_help_panel=MODEL),
]
Fix = Annotated[
    list[str] | None,
    typer.Option(
        "--fix",
        metavar="TOGGLE=VALUE",
        help="Hold a toggle at a value in every row, the baseline included; may be repeated.",
        rich_help_panel=RUN,
    ),
]
Timeout = Annotated[
    str,
    typer.Option(
        "--timeout", metavar="TIME", help="Time limit of one configuration, such as 90s.", rich_help_panel=RUN
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        help="Limit each configuration to, and recommend none above, such as 8GiB.",
        rich_help_panel=RUN,
    ),
]
Objective = Annotated[
    ObjectiveName, typer.Option("--objective", help="What the recommendation is best at.", rich_help_panel=RUN)
]
Seed = Annotated[
    int, typer.Option("--seed", min=0, max=2**31 - 1, help="Of weights, inputs and schedule.", rich_help_panel=RUN)
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with the report at --output, or the newest unfinished one of this workload.",
        rich_help_panel=RUN,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print what would be measured and skipped, and end.", rich_help_panel=RUN),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="FILE",
        help="The report. Default: results/<device>/<workload>-<mode>-<UTC time>.json.",
        rich_help_panel=OUTPUT,
    ),
]
Format = Annotated[
    OutputFormat,
    typer.Option("--format", help="What goes to standard output.", rich_help_panel=OUTPUT),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no notes.", rich_help_panel=OUTPUT)]


PairName = Literal["process", "round"]
Rounds = Annotated[
    int,
    typer.Option(
        "--rounds",
        min=1,
        max=1000,
        help="Fresh processes of every configuration, in random order within a round, reversed in every other.",
        rich_help_panel=RUN,
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Rows that are unsteady, noisy, throttled, contaminated, host-bound or swapped fail, and so the run.",
        rich_help_panel=RUN,
    ),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="FLAG",
        help="Recommend in spite of unsteady, contaminated or swapped; may be repeated.",
        rich_help_panel=RUN,
    ),
]


def split_assignment(text: str, option: str) -> tuple[str, str]:
    """`NAME=VALUE` in two; GpubenchError where there is no `=` or a side is empty."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals and value):
        raise GpubenchError(f"{option} {text!r} is not NAME=VALUE.", f"Give for example {option} precision=fp32.")
    return name, value


def split_numbers(texts: list[str], option: str) -> list[int]:
    """Whole numbers from `["1", "2,4"]`, each once, in order; GpubenchError for anything else."""
    numbers: list[int] = []
    for part in (part.strip() for text in texts for part in text.split(",")):
        try:
            numbers.append(int(part))
        except ValueError:
            raise GpubenchError(
                f"{option} has {part!r}, which is no whole number.", f"Give for example {option} 1 2 4 8."
            ) from None
    if not numbers:
        raise GpubenchError(f"{option} names no value.", f"Give for example {option} 1 2 4 8.")
    return list(dict.fromkeys(numbers))


def which_workload(argument: str | None, option: str | None) -> str:
    """The workload that was named, by argument or option; the default where neither was."""
    if argument and option and argument != option:
        raise GpubenchError(f"Two workloads were named: {argument!r} and {option!r}.", "Give only one.")
    return argument or option or "resnet50"
