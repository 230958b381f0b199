"""Lists of garments by the look of one region, five sets of them: the index for copies.

Whoever copies a garment changes one or two regions and keeps three. An inverted file over the whole vector
puts such a copy wherever its changed regions belong: among 256 lists, looking into one in sixteen finds 90 %
of the copies with two changed regions. Lists of single regions hold it in three places where it is looked
for: looking into one list in 64, which compares as many pairs, finds all of them (shipped features,
``benchmarks/INDEX.md``).

    shard-KEY.reduced.npy   (2 n, 5, d') float16, the reduced region vectors; the garments, then their flipped
                            pictures
    shard-KEY.order.npy     (5, 2 n) int32, those rows list by list; -1 behind them: the region cannot be seen
    shard-KEY.bounds.npy    (5, nlist + 1) int64, where each list starts in ``order``

Many queries are answered list by list, as faiss's ``contrib.big_batch_search`` does: those that look into a
list meet all its garments in one block product, of all regions, and are scored as pairs are
(``psnet.similarity``). Vectors hold zeros where a region cannot be seen, which counts as a change: the lists
only propose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from psnet.regions import NUM_REGIONS
from psnet.similarity import SCORINGS, mean_of_best_three

SUFFIXES = (".reduced.npy", ".order.npy", ".bounds.npy")

_ROWS_AT_ONCE = 16_384
_CACHED_PAIRS = 50_000
_SEED = 1


@dataclass(frozen=True)
class RegionLists:
    """One shard, memory-mapped; arrays as in the files."""

    reduced: np.ndarray
    order: np.ndarray
    bounds: np.ndarray

    @classmethod
    def open(cls, target: Path) -> RegionLists:
        """Raises ValueError or OSError for files that are not whole."""
        mapped = (np.load(target.with_name(target.name + suffix), mmap_mode="r") for suffix in SUFFIXES)
        # A plain view of the mapping: slicing numpy's own class of mapped arrays costs more than most lists.
        return cls(*(array.view(np.ndarray) for array in mapped))

    def __len__(self) -> int:
        """Number of garments."""
        return len(self.reduced) // 2

    def rows(self, region: int, number: int) -> np.ndarray:
        """Rows of one list, from the number of garments on of their flipped pictures."""
        start, stop = self.bounds[region, number : number + 2]
        return np.asarray(self.order[region, start:stop])


def train_centroids(reduced: np.ndarray, lists: int) -> np.ndarray:
    """(5, lists, d') float32 of unit norm: spherical k-means of each region's visible vectors.

    Args:
        reduced: (n, 5, d') float32.

    Raises:
        RuntimeError: fewer vectors than lists.
    """
    centroids = np.empty((NUM_REGIONS, lists, reduced.shape[2]), np.float32)
    for region in range(NUM_REGIONS):
        vectors = np.ascontiguousarray(reduced[reduced[:, region].any(1), region])
        library: Any = faiss.Kmeans
        means = library(
            reduced.shape[2], lists, niter=10, spherical=True, seed=_SEED, min_points_per_centroid=1
        )
        means.train(vectors)
        centroids[region] = means.centroids
    return centroids


def write_lists(target: Path, reduced: np.ndarray, centroids: np.ndarray) -> None:
    """The files of one shard; ``reduced``: (2 n, 5, d') of any float type, the flipped pictures last."""
    lists = centroids.shape[1]
    order = np.full((NUM_REGIONS, len(reduced)), -1, np.int32)
    bounds = np.zeros((NUM_REGIONS, lists + 1), np.int64)
    for region in range(NUM_REGIONS):
        number = np.full(len(reduced), lists, np.int64)
        for start in range(0, len(reduced), _ROWS_AT_ONCE):
            vectors = np.asarray(reduced[start : start + _ROWS_AT_ONCE, region], np.float32)
            seen = vectors.any(1)
            nearest = (vectors[seen] @ centroids[region].T).argmax(1)
            number[start + np.flatnonzero(seen)] = nearest
        by_list = np.argsort(number, kind="stable")
        count = np.bincount(number, minlength=lists + 1)[:lists]
        bounds[region, 1:] = np.cumsum(count)
        order[region, : count.sum()] = by_list[: count.sum()]
    arrays: tuple[np.ndarray, ...] = (np.asarray(reduced, np.float16), order, bounds)
    for suffix, array in zip(SUFFIXES, arrays, strict=True):
        np.save(target.with_name(target.name + suffix), array)


def nearest_lists(centroids: np.ndarray, features: np.ndarray, nprobe: int) -> np.ndarray:
    """(5, m, nprobe): the lists that each query looks into, -1 where it does not show the region.

    Args:
        centroids: (5, nlist, d'); features: (m, 5, d') float32.
    """
    chosen = np.full((NUM_REGIONS, len(features), nprobe), -1, np.int64)
    for region in range(NUM_REGIONS):
        for start in range(0, len(features), _ROWS_AT_ONCE):
            vectors = features[start : start + _ROWS_AT_ONCE, region]
            seen = vectors.any(1)
            products = vectors[seen] @ centroids[region].T
            best = np.argpartition(-products, nprobe - 1, axis=1)[:, :nprobe]
            chosen[region, start + np.flatnonzero(seen)] = best
    return chosen


def scan_lists(
    shards: Sequence[RegionLists],
    features: np.ndarray,
    weights: np.ndarray,
    lists: np.ndarray,
    k: int,
    *,
    scoring: str,
    mirrored: bool,
    allowed: Sequence[np.ndarray | None],
) -> tuple[np.ndarray, np.ndarray]:
    """Among a query's lists the garments that score best: scores and numbers, (m, 10 k) each, not sorted; at
    least ``k`` different ones where there are so many, -1 behind the last.

    Args:
        shards: of the same lists; a garment's number counts on from shard to shard.
        features: (m, 5, d') float32; weights: (m, 5). lists: (5, m, nprobe), see ``nearest_lists``.
        mirrored: whether flipped pictures count.
        allowed: per shard (garments,) bool, which may be found; None: all.

    Memory O(m k) + one list.
    """
    # A garment may be met once in each region's lists, and so may its flipped picture.
    heap = faiss.ResultHeap(len(features), 2 * NUM_REGIONS * k, keep_max=True)
    starts = np.concatenate([[0], np.cumsum([len(shard) for shard in shards])])
    for region in range(NUM_REGIONS):
        order = np.argsort(lists[region].ravel(), kind="stable")
        asked, owner = lists[region].ravel()[order], order // lists.shape[2]
        numbers, firsts = np.unique(asked, return_index=True)
        for number, queries in zip(numbers.tolist(), np.split(owner, firsts[1:]), strict=True):
            if number < 0:
                continue
            found, members = _members(shards, starts, region, number, mirrored, allowed)
            if len(found):
                scores = _scores(features[queries], members, weights[queries], scoring)
                heap.add_result_subset(queries, scores, found)
    return heap.D, heap.I


def _members(
    shards: Sequence[RegionLists],
    starts: np.ndarray,
    region: int,
    number: int,
    mirrored: bool,
    allowed: Sequence[np.ndarray | None],
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and vectors of a list's garments in all shards."""
    found, vectors = [], []
    for start, shard, may in zip(starts, shards, allowed, strict=False):
        rows = shard.rows(region, number)
        if not mirrored:
            rows = rows[rows < len(shard)]
        if may is not None:
            rows = rows[may[rows % len(shard)]]
        found.append(start + rows % max(len(shard), 1))
        vectors.append(shard.reduced[rows])
    return np.concatenate(found), np.concatenate(vectors).astype(np.float32)


def _scores(features: np.ndarray, others: np.ndarray, weights: np.ndarray, scoring: str) -> np.ndarray:
    """(m, n) float32."""
    scores = np.empty((len(features), len(others)), np.float32)
    equal = scoring == "best_regions" and bool(np.ptp(weights, axis=1).max(initial=0) == 0)
    left = np.ascontiguousarray(np.moveaxis(features, 1, 0))
    right = np.ascontiguousarray(np.transpose(others, (1, 2, 0)))
    seen = np.broadcast_to(True, (1, 1, NUM_REGIONS))
    # Five planes that stay in the second-level cache.
    step = max(1, _CACHED_PAIRS // max(1, len(others)))
    for start in range(0, len(features), step):
        at = slice(start, start + step)
        planes = np.matmul(left[:, at], right)
        if equal:
            scores[at] = mean_of_best_three(list(planes))
        else:
            scores[at] = SCORINGS[scoring](np.moveaxis(planes, 0, 2), seen, weights[at, None])
    return scores
