"""Options that several commands share, and how their values are parsed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from gpubench.errors import GpubenchError
from gpubench.flags import GATES, STRICT
from gpubench.render.formats import ReportFormat
from gpubench.report.model import Objective
from gpubench.workloads.workload_facts import Mode

PairName = Literal["process", "round"]
Command = TypeVar("Command", bound=Callable[..., int])

run_option = partial(typer.Option, rich_help_panel="Run")
model_option = partial(typer.Option, rich_help_panel="Model")
output_option = partial(typer.Option, rich_help_panel="Output")


def measuring_options(
    workload: Annotated[
        str | None,
        typer.Argument(
            metavar="[WORKLOAD]",
            help="A bundled workload (see `gpubench workloads`), FILE.py:NAME or package.module:NAME. "
            "Default: resnet50.",
        ),
    ] = None,
    workload_option: Annotated[
        str | None, model_option("--workload", metavar="WORKLOAD", help="The same as the argument WORKLOAD.")
    ] = None,
    mode: Annotated[
        Mode | None, model_option("--mode", help="What is timed. Default: the first mode that the workload has.")
    ] = None,
    size: Annotated[
        str,
        model_option(
            "--size",
            help="Model size: auto (by the device and its memory), base (the real size), huge, xlarge, large or medium "
            "(the same model on more or less input), small (for CPUs) or tiny (for tests).",
        ),
    ] = "auto",
    param: Annotated[
        list[str] | None,
        model_option(
            "--param",
            metavar="NAME=VALUE",
            help="Parameters of the workload's function, such as steps=20 guidance=7.5; may be repeated.",
        ),
    ] = None,
    resolution: Annotated[
        int | None,
        model_option("--resolution", min=1, help="Input size in pixels per side, for workloads that have one."),
    ] = None,
    batch_size: Annotated[
        int | None, model_option("--batch-size", min=1, help="Items per step. Default: the workload's.")
    ] = None,
    pipeline: Annotated[
        Literal["resident", "host", "loader"] | None,
        model_option(
            "--pipeline",
            help="Where a step's batch comes from in every row: the device, the host's memory, or a DataLoader over "
            "the workload's dataset.",
        ),
    ] = None,
    device: Annotated[
        str, run_option("--device", help="Device: cpu, cuda:N, or auto: the largest GPU that is free, else the CPU.")
    ] = "auto",
    fix: Annotated[
        list[str] | None,
        run_option(
            "--fix",
            metavar="TOGGLE=VALUE",
            help="Hold a toggle at this value in every row, including the baseline; may be repeated.",
        ),
    ] = None,
    objective: Annotated[
        Objective, run_option("--objective", help="What to optimize: items per second, step time, or memory.")
    ] = "fps",
    max_memory: Annotated[
        str | None,
        run_option(
            "--max-memory",
            metavar="SIZE",
            help="Memory limit per configuration, such as 8GiB; on a GPU with the CUDA context and libraries.",
        ),
    ] = None,
    timeout: Annotated[
        str,
        run_option(
            "--timeout",
            metavar="TIME",
            help="Time limit per configuration, such as 90s, twice as long where it compiles first; also for importing "
            "and for building the model before that.",
        ),
    ] = "10min",
    rounds: Annotated[
        int,
        run_option(
            "--rounds",
            min=1,
            max=1000,
            help="Fresh processes per configuration, in random order; every second round reverses it.",
        ),
    ] = 1,
    strict: Annotated[
        bool,
        run_option(
            "--strict",
            help=f"Fail rows with one of these flags, and the run with exit code 1: {', '.join(STRICT)}.",
        ),
    ] = False,
    allow: Annotated[
        list[str] | None,
        run_option(
            "--allow",
            metavar="FLAG",
            help=f"Recommend rows despite this flag, one of {', '.join(GATES)}; may be repeated.",
        ),
    ] = None,
    seed: Annotated[
        int, run_option("--seed", min=0, max=2**31 - 1, help="Seed of weights, inputs and order of measuring.")
    ] = 0,
    resume: Annotated[
        bool,
        run_option(
            "--resume",
            help="Resume the report at --output, or the newest unfinished one of this workload; begin one where there "
            "is none yet.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, run_option("--dry-run", help="Print what would be measured and skipped, without measuring.")
    ] = False,
    output: Annotated[
        Path | None,
        output_option(
            "--output",
            metavar="FILE",
            help="Report file. Default: gpubench-runs/<device>/<workload>-<mode>-<UTC time>.json.",
        ),
    ] = None,
    format_: Annotated[ReportFormat, output_option("--format", help="Format of standard output.")] = "table",
    quiet: Annotated[bool, output_option("--quiet", help="No progress or notes on standard error.")] = False,
) -> None:
    """The options of every command that measures."""


def measuring(*, without: Collection[str] = (), **defaults: Any) -> Callable[[Command], Command]:
    """Gives a command `measuring_options` beside its own, which replace those of the same name.

    The command gets them as keyword arguments. `defaults` replace their defaults.
    """

    def add(command: Command) -> Command:
        own = dict(inspect.signature(command, eval_str=True).parameters)
        own.popitem()  # its **options
        shared = {
            name: parameter.replace(default=defaults.get(name, parameter.default))
            for name, parameter in inspect.signature(measuring_options, eval_str=True).parameters.items()
            if name not in without
        }
        parameters = {"workload": shared["workload"], **own, **shared, **own}
        command.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
        return command

    return add


def split_numbers(texts: list[str], option: str) -> tuple[int, ...]:
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
    return tuple(dict.fromkeys(numbers))


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
