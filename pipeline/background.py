"""What garments reach with others that have nothing to do with them: the levels that normalise scores.

Cosines with a sample of the catalogue by one float32 product per region; scores and quantiles by compiled
loops (``pipeline.sift`` has the scores), a tile of rows at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from pipeline.kernel import kind_of
from pipeline.sift import coarse_scores, presence_codes, push, weight_table
from psnet.regions import NUM_REGIONS, Presence
from psnet.similarity import compare, level_rank

# Garments whose cosines with the sample are looked at together: five planes of float32 in the cache.
_ROWS_AT_ONCE = 128


@dataclass(frozen=True)
class Garments:
    """Garments without an order among them: n-long arrays as in ``pipeline.kernel.Block``, features of
    float32, ``picture`` of each garment."""

    features: np.ndarray
    presence: np.ndarray
    weights: np.ndarray
    picture: np.ndarray


def background(
    garments: Garments, sample: Garments, quantile: float, *, scoring: str
) -> tuple[np.ndarray, np.ndarray]:
    """What garments reach with others that have nothing to do with them.

    The level of a garment is a high quantile of its scores against the sample: generic designs score high
    with everything. (Copy detection subtracts such a level: Pizzi et al., "A Self-Supervised Descriptor for
    Image Copy Detection", CVPR 2022.) A region is distinctive when even its nearest looks in the
    sample are far.

    Args:
        sample: not compared with garments of the same picture.
        quantile: e.g. 0.99, the lower of two neighbours; in a small sample at most the tenth greatest value
            is taken, since the greatest may be copies.
        scoring: a name of ``psnet.similarity.SCORINGS``.

    Returns:
        level: (n,) float32, 0 where nothing can be compared. distinctiveness: (n, 5) float32, 1 - quantile of
        the cosine; NaN where the region is not present here, or in none of the sample.
    """
    count, size = len(garments.picture), len(sample.picture)
    level = np.zeros(count, np.float32)
    distinctiveness = np.full(garments.presence.shape, np.nan, np.float32)
    kind = kind_of(scoring, garments.weights)
    asking, weights = presence_codes(garments.presence, garments.weights), weight_table(garments.weights)
    code, ones = presence_codes(sample.presence), np.ones((NUM_REGIONS, max(count, size)), np.float32)
    seen, sample_seen = garments.presence == Presence.PRESENT, sample.presence == Presence.PRESENT
    everything = np.ones(max(count, size), bool)
    counts = np.arange(size + 1)
    rank = counts - level_rank(counts, quantile)
    left, right = (np.moveaxis(one.features, 1, 0) for one in (garments, sample))
    right = np.ascontiguousarray(np.swapaxes(right, 1, 2))
    for start in range(0, count, _ROWS_AT_ONCE):
        at = slice(start, start + _ROWS_AT_ONCE)
        planes = np.matmul(np.ascontiguousarray(left[:, at]), right)
        scores = np.empty(planes.shape[1:], np.float32)
        coarse_scores(kind, planes, start, ones, asking, weights, ones, code, scores)
        picture = garments.picture[at]
        chosen = _columns_of_rank(
            scores, everything[: len(picture)], everything[:size], picture, sample.picture, rank
        )
        rows, chosen = np.flatnonzero(chosen >= 0), chosen[chosen >= 0]
        # Quantiles are among the values; they are computed again so that nothing depends on the shape of the
        # product.
        level[start + rows] = compare(
            garments.features[start + rows],
            garments.presence[start + rows],
            sample.features[chosen],
            sample.presence[chosen],
            garments.weights[start + rows],
            scoring=scoring,
        ).score
        for region in range(NUM_REGIONS):
            chosen = _columns_of_rank(
                planes[region], seen[at, region], sample_seen[:, region], picture, sample.picture, rank
            )
            rows, chosen = start + np.flatnonzero(chosen >= 0), chosen[chosen >= 0]
            distinctiveness[rows, region] = 1 - np.einsum(
                "nd,nd->n", garments.features[rows, region], sample.features[chosen, region]
            )
    return level, distinctiveness


@njit(cache=True, nogil=True)
def _columns_of_rank(values, seen_q, seen_x, picture_q, picture_x, rank):  # type: ignore[no-untyped-def]
    """For each row the first column of the ``rank[c]``-th greatest of its c values that count: seen on both
    sides, and of another picture. -1 where there is none.

    Args:
        values: (n, m) float32; seen_q: (n,), seen_x: (m,) bool; picture_q: (n,), picture_x: (m,); rank: (m +
            1,) from 1.
    """
    columns = np.full(len(values), -1, np.int64)
    usable = np.empty(values.shape[1], np.float32)
    for row in range(len(values)):
        if not seen_q[row]:
            continue
        count = 0
        for column in range(len(usable)):
            counts = seen_x[column] and picture_x[column] != picture_q[row]
            usable[column] = values[row, column] if counts else -np.inf
            count += counts
        if count == 0:
            continue
        heap = np.full((1, rank[count]), -np.inf, np.float32)
        for column in range(len(usable)):
            if usable[column] > heap[0, 0]:
                push(heap, 0, usable[column])
        for column in range(len(usable)):
            if usable[column] == heap[0, 0]:
                columns[row] = column
                break
    return columns
