"""Options that several commands share, and how their values are parsed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gpubench.errors import GpubenchError
from gpubench.flags import GATES, STRICT
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
    typer.Option("--workload", metavar="WORKLOAD", help="The same as the argument WORKLOAD.", rich_help_panel=MODEL),
]
Mode = Annotated[
    ModeName | None,
    typer.Option("--mode", help="What is timed. Default: the first mode that the workload has.", rich_help_panel=MODEL),
]
Size = Annotated[
    str,
    typer.Option(
        "--size",
        help="Model size: auto, base (the real size), small (for CPUs) or tiny (for tests).",
        rich_help_panel=MODEL,
    ),
]
Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        metavar="NAME=VALUE",
        help="Parameter of the workload's function, such as task=decode; may be repeated.",
        rich_help_panel=MODEL,
    ),
]
Resolution = Annotated[
    int | None,
    typer.Option(
        "--resolution", min=1, help="Input size in pixels per side, for workloads that have one.", rich_help_panel=MODEL
    ),
]
Device = Annotated[str, typer.Option("--device", help="Device: auto, cpu or cuda:N.", rich_help_panel=RUN)]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Items per step. Default: the workload's.", rich_help_panel=MODEL),
]
Fix = Annotated[
    list[str] | None,
    typer.Option(
        "--fix",
        metavar="TOGGLE=VALUE",
        help="Hold a toggle at this value in every row, including the baseline; may be repeated.",
        rich_help_panel=RUN,
    ),
]
Timeout = Annotated[
    str,
    typer.Option("--timeout", metavar="TIME", help="Time limit per configuration, such as 90s.", rich_help_panel=RUN),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        help="Memory limit per configuration, such as 8GiB.",
        rich_help_panel=RUN,
    ),
]
Objective = Annotated[
    ObjectiveName,
    typer.Option("--objective", help="What to optimize: items per second, step time, or memory.", rich_help_panel=RUN),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", min=0, max=2**31 - 1, help="Seed of weights, inputs and order of measuring.", rich_help_panel=RUN
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Resume the report at --output, or the newest unfinished one of this workload.",
        rich_help_panel=RUN,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print what would be measured and skipped, without measuring.", rich_help_panel=RUN),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="FILE",
        help="Report file. Default: gpubench-runs/<device>/<workload>-<mode>-<UTC time>.json.",
        rich_help_panel=OUTPUT,
    ),
]
Format = Annotated[
    OutputFormat,
    typer.Option("--format", help="Format of standard output.", rich_help_panel=OUTPUT),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress or notes on standard error.", rich_help_panel=OUTPUT)]


PairName = Literal["process", "round"]
Rounds = Annotated[
    int,
    typer.Option(
        "--rounds",
        min=1,
        max=1000,
        help="Fresh processes per configuration, in random order, which every other round reverses.",
        rich_help_panel=RUN,
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help=f"Fail rows with one of these flags, and the run with exit code 1: {', '.join(STRICT)}.",
        rich_help_panel=RUN,
    ),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="FLAG",
        help=f"Recommend rows despite this flag, one of {', '.join(GATES)}; may be repeated.",
        rich_help_panel=RUN,
    ),
]


def split_numbers(texts: list[str], option: str) -> list[int]:
    """Whole numbers from `["1", "2,4"]`, each once, in order; GpubenchError for anything else."""
    numbers: list[int] = []
    for part in (part.strip() for text in texts for part in text.split(",")):
        try:
            numbers.append(int(part))
        except ValueError:
            raise GpubenchError(
                f"{option} has {part!r}, which is not a whole number.", f"Give for example {option} 1 2 4 8."
            ) from None
    if not numbers:
        raise GpubenchError(f"{option} has no value.", f"Give for example {option} 1 2 4 8.")
    return list(dict.fromkeys(numbers))


def renamed(old: str, old_value: Any, new: str, new_value: Any) -> Any:
    """The value of an option that has a former name; GpubenchError where both names have one."""
    if old_value is not None and new_value is not None:
        names = [f"--{name.replace('_', '-')}" for name in (old, new)]
        raise GpubenchError(f"{names[0]} is the former name of {names[1]}.", "Give only one of them.")
    return new_value if old_value is None else old_value


def which_workload(argument: str | None, option: str | None) -> str:
    """The workload named by argument or option, or the default."""
    if argument and option and argument != option:
        raise GpubenchError(f"Two workloads were named: {argument!r} and {option!r}.", "Give only one.")
    return argument or option or "resnet50"
