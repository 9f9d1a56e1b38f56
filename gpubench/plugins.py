"""What other distributions add by entry points, and the sentences about those that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from gpubench.errors import GpubenchError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


def load_plugin(kind: str, entry_point: EntryPoint, expected: type[T]) -> T:
    """The object that `entry_point` names, a `kind` in messages. Raises GpubenchError where it cannot be had."""
    remedy = f"Repair or uninstall that distribution; the group is {entry_point.group!r}."
    try:
        plugin = entry_point.load()
    except (Exception, SystemExit) as error:  # anything at all may happen in another distribution's module
        raise GpubenchError(
            f"The {kind} entry point {described(entry_point)} cannot be loaded: {type(error).__name__}: {error}.",
            remedy,
        ) from error
    if not isinstance(plugin, expected):
        raise GpubenchError(
            f"The {kind} entry point {described(entry_point)} is of type {type(plugin).__name__}, "
            f"not {expected.__name__}.",
            remedy,
        )
    return plugin


def called(kind: str, name: str, function: Callable[..., T], *arguments: object) -> T:
    """What `function` of a plug-in returns. Raises GpubenchError naming the plug-in where it raises anything else."""
    try:
        return function(*arguments)
    except GpubenchError:
        raise
    except Exception as error:
        if str(getattr(function, "__module__", "")).startswith("gpubench."):
            raise  # a fault of gpubench's own
        raise GpubenchError(
            f"The {kind} {name!r} failed: {type(error).__name__}: {error}.",
            "Repair or uninstall the distribution that adds it.",
        ) from error


def name_taken(kind: str, name: str, entry_point: EntryPoint, taken: Iterable[str]) -> GpubenchError:
    """The error that another `kind` has the name that `entry_point` wants."""
    return GpubenchError(
        f"The {kind} name {name!r} of entry point {described(entry_point)} is taken.",
        f"Rename that {kind} or uninstall its distribution; taken: {', '.join(sorted(taken))}.",
    )


def described(entry_point: EntryPoint) -> str:
    """`'mine' (package.module:MINE, from distribution theirs)`."""
    return f"{entry_point.name!r} ({entry_point.value}, from distribution {distribution(entry_point)})"


def distribution(entry_point: EntryPoint) -> str:
    """The name of the distribution that has `entry_point`."""
    return entry_point.dist.name if entry_point.dist else "unknown"
