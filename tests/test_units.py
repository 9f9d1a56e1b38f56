from __future__ import annotations

import pytest

from gpubench.errors import GpubenchError
from gpubench.units import format_bytes, format_duration, parse_bytes, parse_duration, significant


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * 2**30),
        ("8 gib", 8 * 2**30),
        ("1.5MiB", 3 * 2**19),
        ("500MB", 500_000_000),
        ("2kB", 2000),
        ("1TB", 10**12),
        ("123", 123),
        (" 7 B ", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "8 GiBs", "8 X", "1e9", "nan", "inf", "٣GiB", "1,5B", "9" * 400])
def test_what_is_no_size_is_refused_with_the_units(text: str) -> None:
    with pytest.raises(GpubenchError, match=r"Cannot read the size .*Give 8GiB.*gib"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["0", "0GiB", "0.1B"])
def test_a_size_below_one_byte_is_refused(text: str) -> None:
    with pytest.raises(GpubenchError, match="less than one byte"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5min", 90), ("2m", 120), ("1h", 3600), ("500ms", 0.5), ("2us", 2e-6)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "soon", "10 GiB"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(GpubenchError, match="Cannot read the duration"):
        parse_duration(text)


def test_a_duration_of_zero_is_refused() -> None:
    with pytest.raises(GpubenchError, match="is zero"):
        parse_duration("0s")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1536, "1.50 KiB"),
        (1.25 * 2**30, "1.25 GiB"),
        (-20 * 2**20, "-20.0 MiB"),
        (2**50, "1024 TiB"),
    ],
)
def test_bytes_for_people(size: float, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ns"),
        (2e-6, "2.00 us"),
        (0.0123, "12.3 ms"),
        (4, "4.00 s"),
        (150, "2.50 min"),
        (9000, "2.50 h"),
        (-4, "-4.00 s"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(1.6234, "1.62"), (123456, "123456"), (0.00012345, "0.000123"), (0, "0"), (2.5e12, "2.50e+12")]
)
def test_significant_figures(number: float, text: str) -> None:
    assert significant(number) == text
