"""A series is steady when it shows no trend, and not before."""

import random

from gpubench.measure.steady import WINDOW, is_steady


def test_a_level_series_is_steady() -> None:
    assert is_steady([1.0] * WINDOW)


def test_noise_without_trend_is_steady() -> None:
    generator = random.Random(0)
    assert is_steady([1.0 + generator.uniform(-0.02, 0.02) for _ in range(WINDOW)])


def test_too_few_values_are_not_steady() -> None:
    assert not is_steady([1.0] * (WINDOW - 1))


def test_a_slow_start_inside_the_window_is_not_steady() -> None:
    assert not is_steady([4.0, 1.0, 1.0, 1.0, 1.0, 1.0])


def test_a_slow_start_before_the_window_does_not_matter() -> None:
    assert is_steady([4.0] * 20 + [1.0] * WINDOW)


def test_endless_drift_is_never_steady() -> None:
    values = [1.0]
    for _ in range(60):
        values.append(values[-1] * 1.08)
        assert not is_steady(values)


def test_two_levels_are_not_steady() -> None:
    assert not is_steady([1.0, 1.0, 1.0, 1.5, 1.5, 1.5])
