"""`--sizes 1 2 4 8`: options that take every number that follows. The parser underneath knows only one value each."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand

NUMBER = re.compile(r"-?\d+")


def spread(arguments: list[str], options: tuple[str, ...]) -> list[str]:
    """`--sizes 1 2 4` as `--sizes 1 --sizes 2 --sizes 4`; the list ends at the first word that is no whole number."""
    result: list[str] = []
    taking = ""
    for index, argument in enumerate(arguments):
        if argument == "--":
            return result + arguments[index:]
        if argument in options:
            taking = argument
            following = arguments[index + 1] if index + 1 < len(arguments) else ""
            if not NUMBER.fullmatch(following):  # `1,2,4`, or something to complain about
                result.append(argument)
                taking = ""
        elif taking and NUMBER.fullmatch(argument):
            result += [taking, argument]
        else:
            taking = ""
            result.append(argument)
    return result


def variadic(*options: str) -> type[TyperCommand]:
    """A command class whose `options` take all the whole numbers that follow them."""

    class VariadicCommand(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            return super().parse_args(ctx, spread(args, options))

    return VariadicCommand
