"""`--sizes 1 2 4 8`, `--param steps=20 guidance=7.5`: options that take all values of their kind that follow.

The parser itself takes one value per option.
"""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand

_NUMBER = re.compile(r"-?\d+")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
TAKE = {"--sizes": _NUMBER, "--overlaps": _NUMBER, "--param": _ASSIGNMENT, "--set": _ASSIGNMENT, "--fix": _ASSIGNMENT}


def spread(arguments: list[str]) -> list[str]:
    """`--sizes 1 2 4` as `--sizes 1 --sizes 2 --sizes 4`; it ends at the first word that is no value of that kind."""
    result: list[str] = []
    taking = ""
    for index, argument in enumerate(arguments):
        if argument == "--":
            return result + arguments[index:]
        if taking and TAKE[taking].fullmatch(argument):
            result += [taking, argument]
            continue
        name, equals, value = argument.partition("=")
        if equals and name in TAKE and TAKE[name].fullmatch(value):
            taking = name
            result += [name, value]
            continue
        following = "".join(arguments[index + 1 : index + 2])  # another value, such as `1,2,4`, is the parser's
        taking = argument if argument in TAKE and TAKE[argument].fullmatch(following) else ""
        if not taking:
            result.append(argument)
    return result


class VariadicCommand(TyperCommand):
    """A command whose options of `TAKE` take all values that follow."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args))
