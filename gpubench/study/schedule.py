"""The order within rounds: random, reversed in every other round, and the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence


class Schedule:
    """Orders of rounds. A linear drift of the machine falls on all alike over each pair of rounds."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._last: list[str] = []

    def shuffled(self, ids: Sequence[str]) -> list[str]:
        """`ids` in random order."""
        return self._random.sample(list(ids), len(ids))

    def round(self, index: int, ids: Sequence[str]) -> list[str]:
        """The order of round `index` (from 1): random, or the reverse of the round before."""
        if index % 2 == 0 and sorted(self._last) == sorted(ids):
            return self._last[::-1]
        self._last = self.shuffled(ids)
        return list(self._last)

    def remember(self, order: Sequence[str]) -> None:
        """Takes `order` as that of the last round, which the next even round reverses."""
        self._last = list(order)
