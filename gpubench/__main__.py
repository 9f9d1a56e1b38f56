"""`python -m gpubench` and `gpubench`: loads the command line, which takes a moment, and runs it."""

from __future__ import annotations

import signal


def main() -> None:
    """Runs the command line. Ctrl-C while it is loaded ends the process at once, without a traceback."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # a job in the background ignores it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from gpubench.cli.main import main as command_line

    command_line()


if __name__ == "__main__":
    main()
