"""A second look at the photographs of a benchmark's pairs, as a scan takes it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache

import numpy as np

from psnet.evaluation.garments import GarmentTable
from psnet.verification import Sight, Verification, Verifier, reading_order

# Photographs at hand, decoded.
_AT_HAND = 256


Known = dict[tuple[object, ...], Verification | None]
"""What was seen of pairs of garments, each named by its item's row and its boxes."""


class Looks:
    """Pairs of garments of one table; each photograph is read when it is needed.

    Args:
        read: the picture of an item's row. known: what has been seen before, of the same benchmark by the
            same verifier, and to be told of what is seen now. changed: rows of items whose pictures are not
            the benchmark's; what is seen of them is nothing to be known.
    """

    def __init__(
        self,
        verifier: Verifier,
        table: GarmentTable,
        read: Callable[[int], np.ndarray],
        known: Known | None = None,
        changed: Collection[int] = (),
    ) -> None:
        self._verifier, self._table, self._read = verifier, table, read
        self._known, self._changed = {} if known is None else known, changed
        self._sight = lru_cache(maxsize=_AT_HAND)(self._seen)

    def _seen(self, row: int) -> Sight:
        table = self._table
        pixels = self._read(int(table.item[row]))
        where = table.box[row], table.region_boxes[row], table.presence[row], table.landmarks[row]
        return Sight.of(pixels, *where)

    def of(self, query: np.ndarray, match: np.ndarray) -> list[Verification | None]:
        """What is seen of p pairs.

        Args:
            query, match: (p,) rows of the table, -1: no garment.
        """
        seen: list[Verification | None] = [None] * len(query)
        shown = np.flatnonzero((query >= 0) & (match >= 0))
        for p in shown[reading_order(query[shown], match[shown])]:
            one, other = int(query[p]), int(match[p])
            key = self._name(one), self._name(other)
            if key in self._known:
                seen[p] = self._known[key]
                continue
            seen[p] = self._verifier.verify(self._sight(one), self._sight(other))
            if None not in key:
                self._known[key] = seen[p]
        return seen

    def _name(self, row: int) -> tuple[int, bytes] | None:
        item = int(self._table.item[row])
        boxes = self._table.box[row].tobytes() + self._table.region_boxes[row].tobytes()
        return None if item in self._changed else (item, boxes)
