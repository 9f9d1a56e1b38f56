"""The command line: every command registered, errors turned into one sentence and an exit code."""

from __future__ import annotations

import io
import signal
import sys
import traceback
from typing import Annotated

import typer

from gpubench import __version__
from gpubench.cli.ab import ab
from gpubench.cli.check import check
from gpubench.cli.claims import claims
from gpubench.cli.compare_opts import compare_opts
from gpubench.cli.doctor import doctor
from gpubench.cli.history import history
from gpubench.cli.recommend import recommend
from gpubench.cli.report import report
from gpubench.cli.schema import schema
from gpubench.cli.sweeps import batch_sweep, tile_sweep
from gpubench.cli.toggles import toggles
from gpubench.cli.variadic import VariadicCommand
from gpubench.cli.workloads import workloads
from gpubench.errors import EXIT_FAULT, EXIT_USAGE, GpubenchError
from gpubench.streams import secure
from gpubench.text import printable

app = typer.Typer(name="gpubench", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

# The base class of the parser's errors; its module differs between versions of typer.
ParserError: type[Exception] = typer.BadParameter.__mro__[2]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gpubench {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find the settings that make your PyTorch model fast on your GPU or CPU, by measuring them."""


for command in (
    compare_opts, batch_sweep, tile_sweep, recommend, report, check, ab, history, claims,
    workloads, toggles, doctor, schema,
):  # fmt: skip
    app.command(command.__name__.replace("_", "-"), cls=VariadicCommand)(command)


class Terminated(BaseException):
    """SIGTERM or SIGHUP was received; like KeyboardInterrupt, no handler of ordinary errors catches it."""


def _terminate(number: int, _: object) -> None:
    raise Terminated(number)


def main() -> None:
    """Runs the command line and exits with its code."""
    secure()
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # under nohup it is ignored, and stays so
        signal.signal(signal.SIGHUP, _terminate)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as it was while this was loaded
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of the command line `arguments`; errors are printed to standard error as one sentence."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a character that a terminal lacks is escaped
    try:
        outcome = app(arguments, standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except GpubenchError as error:
        return complain(error.message, error.hint, error.exit_code)
    except ParserError as error:
        message = error.format_message()  # type: ignore[attr-defined]
        if not message:  # `gpubench` alone: help has been printed
            return EXIT_USAGE
        return complain(f"{message.rstrip('.')}.", "See --help.", EXIT_USAGE)
    except typer.Abort:
        return complain("Stopped.", "", 130)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Terminated as error:
        return 128 + int(error.args[0])
    except (BrokenPipeError, SystemExit) as error:
        # The reader has closed the pipe (`gpubench ... | head`): no message, and no traceback at exit. Typer makes an
        # exit with code 1 of it, which would mean a regression.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        sys.stdout = None
        return 128 + signal.SIGPIPE
    except OSError as error:
        sys.stdout = None  # what is still in its buffer cannot be written either
        return complain(f"Operating system error: {error}.", "Check the current folder and the output.", EXIT_USAGE)
    except Exception as error:  # noqa: BLE001 - no fault may look like a verdict
        # Python's own exit code would be 1, which means a regression.
        traceback.print_exc()
        return complain(
            f"A fault in gpubench: {type(error).__name__}: {error}.",
            "Please report it with the lines above.",
            EXIT_FAULT,
        )
    return outcome if isinstance(outcome, int) else 0


def complain(message: str, hint: str, code: int) -> int:
    """Prints an error in one line; returns `code`."""
    text = f"gpubench: {message} {hint}".strip()
    typer.echo(printable(text), err=True)
    return code
