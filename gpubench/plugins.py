"""What other distributions add by entry points: loaded, checked and named in every error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

from gpubench.errors import GpubenchError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Plugin = TypeVar("Plugin")


def plugins(group: str, kind: type[Plugin]) -> Iterator[tuple[str, Plugin]]:
    """Each object of type `kind` in an entry point group, with a description of where it is from.

    Raises GpubenchError where an entry point cannot be loaded or names something else.
    """
    from importlib.metadata import entry_points  # slow to import, and not every command needs plug-ins

    noun, remedy = kind.__name__.lower(), f"Repair or uninstall that distribution; the group is {group!r}."
    for entry_point in entry_points(group=group):
        where = described(entry_point)
        try:
            plugin = entry_point.load()
        except Exception as error:  # anything at all may happen in another distribution's module
            raise GpubenchError(
                f"The {noun} entry point {where} cannot be loaded: {type(error).__name__}: {error}.", remedy
            ) from error
        if not isinstance(plugin, kind):
            raise GpubenchError(
                f"The {noun} entry point {where} names a {type(plugin).__name__}, not a {kind.__name__}.", remedy
            )
        yield where, plugin


def described(entry_point: EntryPoint) -> str:
    """The entry point's name, its object and its distribution."""
    distribution = entry_point.dist.name if entry_point.dist else "unknown"
    return f"{entry_point.name!r} ({entry_point.value}, from distribution {distribution})"
