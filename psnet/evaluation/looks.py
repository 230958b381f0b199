"""A second look at the photographs of a benchmark's pairs, as a scan takes it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from psnet.evaluation.garments import GarmentTable
from psnet.verification import Sight, Verifier

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
        return Sight.of(pixels, table.box[row], table.region_boxes[row], table.presence[row])

    def of(
        self, query: np.ndarray, match: np.ndarray, mirrored: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is seen of p pairs.

        Args:
            query, match: (p,) rows of the table, -1: no garment. mirrored: (p,) bool, what the features say.

        Returns:
            (p,) points that agree, 0 where the photographs do not lie upon each other; (p, 5) log-odds of
            change, NaN there; (p,) bool mirrored.
        """
        points = np.zeros(len(query), np.int64)
        changed = np.full((len(query), 5), np.nan, np.float32)
        turned = mirrored.copy()
        for p, (q, x) in enumerate(zip(query.tolist(), match.tolist(), strict=True)):
            if q < 0 or x < 0:
                continue
            found = self._verifier.verify(self._sight(q), self._sight(x), bool(mirrored[p]))
            if found is not None:
                points[p], changed[p], turned[p] = found.points, found.changed, found.mirrored
        return points, changed, turned
