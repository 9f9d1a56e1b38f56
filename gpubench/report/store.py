"""Loads and saves reports. A report is data: it is parsed and validated, never executed or unpickled."""

from __future__ import annotations

import codecs
import contextlib
import json
import math
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from gpubench.errors import GpubenchError
from gpubench.report.migrations import NOT_A_REPORT, migrate
from gpubench.report.model import SCHEMA_VERSION, Measurement, Report, Tool
from gpubench.text import printable

SCHEMA_ID = f"urn:gpubench:report:{SCHEMA_VERSION}"
ROUNDING = 1e-6  # relative
SHORTEST_S = 1e-15  # nothing is measured in less; figures made of it leave what floats hold
DAMAGED = "Restore the file from a copy, or measure again."


class _Head(msgspec.Struct):
    """The fields that tell a report from other JSON, read before the rest is validated."""

    schema_version: int
    tool: Tool


def load_folder(folder: Path) -> tuple[list[tuple[Path, Report]], list[str]]:
    """The reports in the JSON files below `folder`, in order; and why other files were skipped, one sentence each."""
    reports, passed = [], []
    for path in sorted(folder.rglob("*.json")):
        try:
            if not path.is_file():  # reading a pipe would wait for ever
                raise GpubenchError(f"{path} is not a regular file.")
            reports.append((path, load(path)))
        except GpubenchError as error:
            passed.append(error.message)
        except OSError as error:  # a folder that may be listed and not entered
            passed.append(printable(f"Cannot read {path}: {error.strerror}."))
    return reports, passed


def load(path: Path | str) -> Report:
    """The validated report in the file at `path`.

    Raises GpubenchError, in one sentence that names the file and the place, where there is no readable, valid report.
    """
    path = Path(path)
    return decode(_read(path), str(path))


def decode(data: bytes, name: str) -> Report:
    """The validated report in `data`; `name` is what error messages call it. Raises as `load`."""
    data = data.removeprefix(codecs.BOM_UTF8)
    if not data.strip():
        raise GpubenchError(f"{name} is empty.", DAMAGED)
    try:
        data.decode()
    except UnicodeDecodeError as error:  # msgspec looks at a text only where a field asks for it
        raise GpubenchError(f"{name} is not JSON: byte {error.start} is no UTF-8.", DAMAGED) from error
    version = _version(data, name)
    if version > SCHEMA_VERSION:
        raise GpubenchError(
            f"{name} was written by a newer gpubench: its schema_version is {version}, "
            f"this gpubench reads up to {SCHEMA_VERSION}.",
            "Upgrade gpubench: pip install --upgrade gpubench-torch.",
        )
    try:
        if version == SCHEMA_VERSION:
            report = msgspec.json.decode(data, type=Report)
        else:
            report = msgspec.convert(migrate(json.loads(data), version, name), type=Report)
    except (msgspec.ValidationError, RecursionError) as error:
        raise GpubenchError(f"{name} is not a valid report: {_place(error)}.", NOT_A_REPORT) from error
    for fault in _faults(report):
        raise GpubenchError(f"{name} is not a valid report: {fault}.", DAMAGED)
    return report


def _read(path: Path) -> bytes:
    name = str(path)
    try:
        if path.is_char_device() or path.is_block_device():  # which may never end; a pipe does
            raise GpubenchError(f"{name} is a device, not a report.", "Name a JSON file.")
        return path.read_bytes()
    except FileNotFoundError:
        raise GpubenchError(f"There is no file {name}.", "Check the path.") from None
    except IsADirectoryError:
        raise GpubenchError(f"{name} is a folder, not a report.", "Name the JSON file in it.") from None
    except (OSError, ValueError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise GpubenchError(f"Cannot read {name}: {text}.", "Check the path and its permissions.") from error


def _version(data: bytes, name: str) -> int:
    try:
        head = msgspec.json.decode(data, type=_Head)
    except msgspec.ValidationError as error:
        raise GpubenchError(f"{name} is JSON but not a gpubench report: {_place(error)}.", NOT_A_REPORT) from error
    except RecursionError as error:
        raise GpubenchError(f"{name} is nested too deeply to be a gpubench report.", NOT_A_REPORT) from error
    except msgspec.DecodeError as error:
        raise GpubenchError(f"{name} {_damage(data, str(error))}.", DAMAGED) from error
    if not head.tool.name.startswith("gpubench"):
        raise GpubenchError(f"{name} was written by {head.tool.name!r}, not by gpubench.", NOT_A_REPORT)
    return head.schema_version


def _damage(data: bytes, detail: str) -> str:
    """Why `data` is not JSON, as the predicate of a sentence."""
    place = re.search(r"\(byte (\d+)\)", detail)
    if "truncated" in detail or (place and int(place[1]) >= len(data)):  # a number may end in `0.`
        return "is cut off: the JSON ends too early"
    constants: list[str] = []
    # Python's own reader takes NaN and Infinity, so it can tell them from other damage. Error path only.
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(data, parse_constant=constants.append)
    if constants:
        return f"holds the number {constants[0]}, which is not JSON; a figure that was not measured is null"
    return f"is not JSON: {detail.removeprefix('JSON is malformed: ')}"


def _place(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    what, _, place = str(error).partition(" - at ")
    return f"{place.strip('`').removeprefix('$').removeprefix('.')}: {what}" if place else what


def _faults(report: Report) -> Iterator[str]:
    """What types cannot express: ids are unique, the baseline exists, rounds, samples and figures agree."""
    for id, count in Counter(row.id for row in report.measurements).items():
        if count > 1:
            yield f"the row id {id!r} occurs more than once"
    try:
        datetime.fromisoformat(report.created_at).timestamp()
    except (ValueError, OverflowError):
        yield f"created_at {report.created_at!r} is not a date and time"
    ids: dict[object, str] = {}  # by configuration; only the control repeats another row's
    for row in report.measurements:
        same = row.id if row.is_control else ids.setdefault(frozenset(row.configuration.items()), row.id)
        if same != row.id:
            yield f"the rows {same!r} and {row.id!r} have the same configuration"
    # The baseline is measured first: where there is any row, it has one, if only to say that it failed.
    if report.measurements and report.baseline is None:
        yield f"it has no row for its baseline, {report.plan.baseline!r}"
    if advice := report.recommendation:
        ratio, low, high = advice.speedup, advice.speedup_low, advice.speedup_high
        apart = 1 + ROUNDING
        if ratio is not None and low is not None and high is not None and not low / apart <= ratio <= high * apart:
            yield f"the recommended speedup of {ratio:g} is not between {low:g} and {high:g}"
    for index, row in enumerate(report.measurements):
        yield from (f"measurements[{index}]{fault}" for fault in _row_faults(row))


def _row_faults(row: Measurement) -> Iterator[str]:
    """Each process occurs once, its median is that of its samples, and the row's figures follow from them."""
    seen = set[tuple[str, int]]()
    for number, (part, samples) in enumerate(row.samples_by_round()):
        if part.index < 1 or part.samples < 1 or (part.phase, part.index) in seen:
            yield (
                f".rounds[{number}] has {part.samples} samples and is number {part.index} of {part.phase}: both must "
                "be at least 1, and each number occurs once"
            )
        seen.add((part.phase, part.index))
        # A wrong number of samples is reported below.
        if len(samples) == part.samples and not _alike(middle := statistics.median(samples), part.median_s):
            yield f".rounds[{number}].median_s is {part.median_s:g}, but the median of its samples is {middle:g}"
    fps, latency, items = row.fps, row.latency_s, row.items_per_step
    if fps is not None and latency is not None and items is not None and not _alike(fps * latency.median, items):
        yield f".fps is {fps:g}, which does not match {items} items in {latency.median:g} s"
    if latency is not None and not row.samples_s:
        yield " has a latency and no samples"
    if any(0 < value < SHORTEST_S for value in row.samples_s):
        yield f" has a sample of {min(row.samples_s)} s"
    counted = sum(part.samples for part in row.rounds)
    if row.rounds and counted != len(row.samples_s):
        yield f".rounds account for {counted} samples, samples_s has {len(row.samples_s)}"


def _alike(value: float, other: float) -> bool:
    return math.isclose(value, other, rel_tol=ROUNDING, abs_tol=1e-12)


def encode(report: Report) -> bytes:
    """The report as indented JSON in UTF-8, with a final newline.

    Raises GpubenchError where a figure is NaN or infinite: JSON has neither, and null would say "not measured".
    """
    for place, number in _floats(msgspec.to_builtins(report), ""):
        if not math.isfinite(number):
            raise GpubenchError(
                f"The report was not saved: {place} is {number}, which JSON cannot hold.",
                "This is a bug in gpubench or in a toggle: a figure that could not be measured must be None.",
            )
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def _floats(value: Any, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield place, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _floats(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _floats(item, f"{place}[{index}]")


def save(report: Report, path: Path | str) -> None:
    """Writes the report to `path` atomically; missing folders are made.

    Raises GpubenchError where the place cannot be written or a figure is not finite; an older file then stays.
    """
    write(path, encode(report))


def create(report: Report, path: Path | str) -> None:
    """Saves a report that begins at `path`, where nothing may be but an empty file. Raises as `save`.

    Of two runs that begin there at the same moment, one is refused: they would replace each other's report.
    """
    with _replacing(path) as (target, temporary):
        _fill(temporary, encode(report))
        if target.exists() and target.stat().st_size == 0:
            target.unlink()
        try:
            os.link(temporary, target)
        except FileExistsError:
            raise GpubenchError(f"Another run has just begun {path}.", "Choose another --output.") from None
        except OSError:  # a file system without links
            temporary.replace(target)


def write(path: Path | str, data: bytes) -> None:
    """Writes `data` to `path` atomically: readers see the old file or the new one. Raises as `save`."""
    with _replacing(path) as (target, temporary):
        _fill(temporary, data)
        temporary.replace(target)


def _fill(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def check_writable(path: Path | str) -> None:
    """Raises as `save` if saving to `path` would fail now; makes missing folders. Call it before a long run."""
    with _replacing(path) as (_, temporary):
        temporary.touch()


@contextlib.contextmanager
def _replacing(path: Path | str) -> Iterator[tuple[Path, Path]]:
    """The file that `path` means, and a temporary one beside it, which is gone at the end. Raises as `save`."""
    target = _target(Path(path))
    # In the same folder, so that a rename stays on one file system; the pid keeps two runs apart.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield target, temporary
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    """`path` with links followed, so that a link stays one. Devices are refused: renaming would replace /dev/null."""
    try:
        target = path.resolve()
        if target.is_dir():
            raise GpubenchError(f"Cannot write {path}: it is a folder.", "Name a file in it.")
        if target.exists() and not target.is_file():
            raise GpubenchError(f"Cannot write {path}: it is a device or a pipe, not a file.", "Name a regular file.")
    except (OSError, RuntimeError, ValueError) as error:
        raise _unwritable(path, error) from error
    return target


def _unwritable(path: Path | str, error: Exception) -> GpubenchError:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return GpubenchError(f"Cannot write {path}: {text}.", "Choose another path, or free space or change permissions.")


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a report, made from the types that validate it."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": f"gpubench report, schema version {SCHEMA_VERSION}",
        **msgspec.json.schema(Report),
    }
