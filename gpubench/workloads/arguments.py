"""The parameters that a workload's function accepts, and conversion of strings to them by annotation."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from gpubench.errors import GpubenchError, unknown_name
from gpubench.text import encodable

Argument = str | int | float | bool
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def bind(function: Callable[..., Any], reference: str, given: Mapping[str, object]) -> dict[str, Argument]:
    """All arguments for calling `function`: those given, converted, and the defaults of the others.

    Defaults of None and those that no report can hold (infinite ones) are left out. Raises GpubenchError for an unknown
    or missing name or a value of the wrong kind.
    """
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = {name: p for name, p in inspect.signature(function).parameters.items() if p.kind in by_name}
    for name in given:
        if name not in parameters:
            raise unknown_name(f"parameter of {reference}", name, parameters)
    arguments: dict[str, Argument] = {}
    for name, parameter in parameters.items():
        if name in given:
            arguments[name] = _convert(reference, parameter, str(given[name]))
        elif parameter.default is inspect.Parameter.empty:
            raise GpubenchError(f"{reference} needs a value for {name!r}.", f"Give it with --param {name}=VALUE.")
        elif isinstance(parameter.default, str | int | float) and _can_be_told(parameter.default):
            arguments[name] = parameter.default
    return arguments


def _kind(reference: str, parameter: inspect.Parameter) -> str:
    # Read as text: with `from __future__ import annotations` it is a string, and evaluating it could need a module that
    # the file imports only for type checking.
    annotation = parameter.annotation
    if annotation is inspect.Parameter.empty:
        default = parameter.default
        known = default is not inspect.Parameter.empty and default is not None
        text = type(default).__name__ if known else "str"
    else:
        text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    inner = re.fullmatch(r"(?:typing\.)?Optional\[(.*)\]", text)
    parts = {part.strip() for part in (inner[1] if inner else text).split("|")} - {"None"}
    kind = parts.pop() if len(parts) == 1 else text
    if kind not in ("str", "int", "float", "bool"):
        raise GpubenchError(
            f"Parameter {parameter.name!r} of {reference} is annotated {text!r} and cannot be given as text.",
            "Annotate it as str, int, float or bool.",
        )
    return kind


def _convert(reference: str, parameter: inspect.Parameter, text: str) -> Argument:
    kind = _kind(reference, parameter)
    wrong = GpubenchError(f"Parameter {parameter.name!r} of {reference} is {text!r}.", f"It must be {_MEANING[kind]}.")
    if kind == "bool":
        if text.lower() not in TRUE + FALSE:
            raise wrong
        return text.lower() in TRUE
    try:
        value = int(text) if kind == "int" else float(text) if kind == "float" else text
    except ValueError:
        raise wrong from None
    if not _can_be_told(value):
        raise wrong
    return value


def _can_be_told(value: Argument) -> bool:
    """Whether JSON can hold it: text in UTF-8, and finite numbers."""
    if isinstance(value, str):
        return value == encodable(value)
    return not isinstance(value, float) or math.isfinite(value)


_MEANING = {
    "str": "text in UTF-8",
    "int": "a whole number",
    "float": "a finite number",
    "bool": f"one of {', '.join(TRUE)} or {', '.join(FALSE)}",
}
