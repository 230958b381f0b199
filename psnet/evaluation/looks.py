"""A second look at the photographs of a benchmark's pairs, as a scan takes it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from psnet.evaluation.garments import GarmentTable
from psnet.verification import Sight, Verification, Verifier, reading_order

# Photographs at hand, decoded.
_AT_HAND = 256


class Looks:
    """Pairs of garments of one table; each photograph is read when it is needed.

    Args:
        read: the picture of an item's row.
    """

    def __init__(self, verifier: Verifier, table: GarmentTable, read: Callable[[int], np.ndarray]) -> None:
        self._verifier, self._table, self._read = verifier, table, read
        self._sight = lru_cache(maxsize=_AT_HAND)(self._seen)

    def _seen(self, row: int) -> Sight:
        table = self._table
        pixels = self._read(int(table.item[row]))
        where = table.box[row], table.region_boxes[row], table.presence[row], table.landmarks[row]
        return Sight.of(pixels, *where)

    def of(self, query: np.ndarray, match: np.ndarray, mirrored: np.ndarray) -> list[Verification | None]:
        """What is seen of p pairs.

        Args:
            query, match: (p,) rows of the table, -1: no garment. mirrored: (p,) bool, what the features say.
        """
        seen: list[Verification | None] = [None] * len(query)
        shown = np.flatnonzero((query >= 0) & (match >= 0))
        for p in shown[reading_order(query[shown], match[shown])]:
            one, other = self._sight(int(query[p])), self._sight(int(match[p]))
            seen[p] = self._verifier.verify(one, other, bool(mirrored[p]))
        return seen
