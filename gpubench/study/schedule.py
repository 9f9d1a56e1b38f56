"""In which order configurations are measured: random within a round, reversed in every other, the same for a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence


class Schedule:
    """Orders of rounds. A linear drift of the machine falls on all alike over each pair of rounds."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._last: list[str] = []

    def shuffled(self, ids: Sequence[str]) -> list[str]:
        """`ids` in random order: a stage of the first round, which the next round reverses."""
        return self._random.sample(list(ids), len(ids))

    def round(self, index: int, ids: Sequence[str]) -> list[str]:
        """The order of round `index` (from 1): random, or the reverse of the round before."""
        if index % 2 == 0 and sorted(self._last) == sorted(ids):
            return self._last[::-1]
        self._last = self.shuffled(ids)
        return list(self._last)

    def remember(self, order: Sequence[str]) -> None:
        """The order of a round that was made up as it went."""
        self._last = list(order)
