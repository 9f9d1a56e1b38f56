"""`--sizes 1 2 4 8`: options that take every number that follows; the parser itself takes one value per option."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand

NUMBER = re.compile(r"-?\d+")


def spread(arguments: list[str], options: tuple[str, ...]) -> list[str]:
    """`--sizes 1 2 4` as `--sizes 1 --sizes 2 --sizes 4`; it ends at the first word that is no whole number."""
    result: list[str] = []
    taking = ""
    for index, argument in enumerate(arguments):
        if argument == "--":
            return result + arguments[index:]
        if taking and NUMBER.fullmatch(argument):
            result += [taking, argument]
            continue
        following = "".join(arguments[index + 1 : index + 2])  # no number: `1,2,4`, or an error
        taking = argument if argument in options and NUMBER.fullmatch(following) else ""
        if not taking:
            result.append(argument)
    return result


def variadic(*options: str) -> type[TyperCommand]:
    """A command class whose `options` take all whole numbers that follow."""

    class VariadicCommand(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            return super().parse_args(ctx, spread(args, options))

    return VariadicCommand
