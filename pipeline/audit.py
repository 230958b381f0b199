"""How much an approximate index misses: some of its questions are answered exactly as well.

Two shares are estimated. Of the pairs that would be listed (a query's ``BEST`` best partners), and of those
that would be suspects (from the calibrated score on). A sample of queries is drawn, seeded; the pairs of one
query are missed or found together more often than not, so the intervals count queries, not pairs
(``psnet.evaluation.intervals.wilson_of_clusters``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from pipeline.calibration import list_threshold, load_calibration
from pipeline.garment_index import (
    Candidates,
    Found,
    GarmentIndex,
    OpenShard,
    Queries,
    as_queries,
    open_shards,
)
from pipeline.index_manifest import Manifest
from pipeline.kernel import kind_of
from pipeline.missed import BEST
from pipeline.settings import Settings
from pipeline.sift import coarse_scores, presence_codes, push, weight_table
from psnet.evaluation.intervals import Estimate, wilson_of_clusters
from psnet.regions import NUM_REGIONS
from psnet.similarity import mirrored_presence

_SEED = 0
# Garments compared at once, with all of the sample: five planes of (queries, so many) float32.
_ROWS_AT_ONCE = 4096
# Half precision rounds each number by 2^-11 at most, a product of two unit vectors by 2^-10; norms likewise.
_ROUNDING = np.float32(2e-3)


def audit(
    index: GarmentIndex,
    queries: Queries,
    pictures: pa.Array,
    found: Candidates,
    sample: int,
    *,
    scoring: str,
    threshold: float,
    allowed: Sequence[np.ndarray] | None = None,
    seed: int = _SEED,
) -> dict[str, Any]:
    """The shares of exact pairs that ``found`` lacks, with 95 % intervals, as JSON for run.json.

    Args:
        pictures: each query's own picture, no partner of it. found: what the index gave for ``queries``.
        sample: queries to ask exactly, drawn from all. threshold: score from which a pair is a suspect.
        allowed: per shard the rows that count; None: all.
    """
    drawn = draw(len(queries), sample, seed)
    if not len(drawn):
        return {}
    asked, own = queries.take(drawn), pictures.take(drawn)
    place = np.searchsorted(drawn, found.query)
    of_drawn = drawn[np.minimum(place, len(drawn) - 1)] == found.query
    known = Candidates(place[of_drawn], found.shard[of_drawn], found.row[of_drawn])
    floor = _least_best(index.compare(asked, known, scoring=scoring), own)
    exact = exact_pairs(index, asked, own, scoring=scoring, threshold=threshold, allowed=allowed, floor=floor)
    given = set(zip(found.query.tolist(), found.shard.tolist(), found.row.tolist(), strict=True))
    query, shard, row, score, rank = exact
    lost = np.array(
        [key not in given for key in zip(drawn[query].tolist(), shard.tolist(), row.tolist(), strict=True)],
        bool,
    )
    return shares(query, len(drawn), lost, listed=rank < BEST, suspects=score >= threshold)


def draw(count: int, sample: int, seed: int = _SEED) -> np.ndarray:
    """``sample`` of ``count`` queries, ascending; all where there are no more."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(count, min(sample, count), replace=False).astype(np.int64))


def shares(
    query: np.ndarray, queries: int, lost: np.ndarray, *, listed: np.ndarray, suspects: np.ndarray
) -> dict[str, Any]:
    """What part of the exact pairs was ``lost``, as JSON for run.json.

    Args:
        query: each pair's, of so many ``queries``. lost, listed, suspects: (pairs,) bool.
    """
    estimates = {}
    for name, counted in ((f"best_{BEST}", listed), ("suspects", suspects)):
        pairs = np.bincount(query[counted], minlength=queries)
        missed = np.bincount(query[counted & lost], minlength=queries)
        estimates[name] = _as_json(wilson_of_clusters(missed, pairs))
    return {"queries": queries, **estimates}


def audit_index(folder: Path, manifest: Manifest, settings: Settings) -> dict[str, Any]:
    """``audit`` of an index with some of its own garments as questions."""
    index = open_shards(folder, manifest)
    drawn = draw(len(index), settings.index.audit_queries)
    ends = np.cumsum([len(shard.vectors) for shard in index.shards])
    shard = np.searchsorted(ends, drawn, side="right")
    garments = index.gather(shard, drawn - np.concatenate([[0], ends])[shard])
    calibration, chosen = load_calibration(settings), settings.match
    queries = as_queries(garments, calibration.weights, mirrored=chosen.mirrored)
    return audit(
        index,
        queries,
        garments.sha256,
        index.candidates(queries, settings.index.candidates, scoring=chosen.scoring),
        len(queries),
        scoring=chosen.scoring,
        threshold=list_threshold(calibration, chosen),
    )


def _as_json(share: Estimate) -> dict[str, float | int | None]:
    if not share.count:
        return {"share": None, "low": None, "high": None, "pairs": 0}
    return {
        "share": round(share.value, 6),
        "low": round(share.low, 6),
        "high": round(share.high, 6),
        "pairs": share.count,
    }


def _least_best(found: Found, pictures: pa.Array) -> np.ndarray:
    """(n,) score of each query's ``BEST``-th partner among those found, -inf where there are fewer: the exact
    one is no lower."""
    names = pictures.to_numpy(zero_copy_only=False)
    others = found.sha256 != names[found.query]
    query, score = found.query[others], found.comparison.score[others]
    at = np.arange(len(query)) - np.searchsorted(query, query) == BEST - 1
    least = np.full(len(names), -np.inf, np.float32)
    least[query[at]] = score[at]
    return least


def exact_pairs(
    index: GarmentIndex,
    queries: Queries,
    pictures: pa.Array,
    *,
    scoring: str,
    threshold: float,
    allowed: Sequence[np.ndarray] | None = None,
    floor: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All pairs from the threshold on, and the ``BEST`` best of every query: query, shard, row, score, rank.

    Every garment of the index is compared. Memory O(queries × block).

    Args:
        floor: (n,) what the ``BEST``-th best partner reaches at least, which spares comparisons.
    """
    parts = [np.empty((4, 0))]
    if len(queries):
        asking = _Asking(index, queries, scoring, threshold, floor)
        for number, shard in enumerate(index.shards):
            rows = np.arange(len(shard.vectors)) if allowed is None else allowed[number]
            own = np.asarray(pc.fill_null(pc.index_in(shard.vectors.sha256, value_set=pictures), -1))
            # Several garments may be of one picture, which is known by its first one.
            same = np.asarray(pc.index_in(pictures, value_set=pictures))
            for start in range(0, len(rows), _ROWS_AT_ONCE):
                there = rows[start : start + _ROWS_AT_ONCE]
                query, column = asking.survivors(shard, there, own[there], same)
                pair = Candidates(query, np.full(len(query), number), there[column])
                compared = index.compare(queries, pair, scoring=scoring)
                values = (compared.query, compared.shard, compared.row, compared.comparison.score)
                parts.append(np.stack([value.astype(float) for value in values]))
    found = np.concatenate(parts, axis=1)
    query = found[0].astype(np.int64)
    order = np.lexsort((found[2], found[1], -found[3], query))
    query, found = query[order], found[:, order]
    rank = np.arange(len(query)) - np.searchsorted(query, query)
    kept = (rank < BEST) | (found[3] >= threshold)
    return (
        query[kept],
        found[1, kept].astype(np.int64),
        found[2, kept].astype(np.int64),
        found[3, kept].astype(np.float32),
        rank[kept],
    )


class _Asking:
    """Queries that meet all garments, tile by tile: which pairs may matter, from reduced vectors.

    Region lists hold reduced vectors, a fraction of the work. With u, v what the reduction leaves of two unit
    vectors and r, s what it leaves out, cos = <u, v> + <r, s>, and |<r, s>| <= |r| |s| (Cauchy and Schwarz),
    where |r| = sqrt(1 - |u|²). A score is a mean of cosines, or the greatest of such means: it is off by no
    more than the most that one of them is.
    """

    def __init__(
        self,
        index: GarmentIndex,
        queries: Queries,
        scoring: str,
        threshold: float,
        floor: np.ndarray | None,
    ) -> None:
        self._kind = kind_of(scoring, queries.weights)
        self._mirrored = queries.mirrored is not None
        self._code = presence_codes(queries.presence, queries.weights)
        self._weights = weight_table(queries.weights)
        self._full = _planes(np.asarray(queries.features, np.float32))
        reduced = index.reduce(queries.features)
        self._reduced, self._left_out = _planes(reduced), _left_out(reduced)
        self._threshold = np.float32(threshold)
        count = len(queries)
        self._floor = np.full(count, -np.inf, np.float32) if floor is None else floor.astype(np.float32)
        self._best = np.full((count, BEST), -np.inf, np.float32)
        self._ones = np.ones((NUM_REGIONS, max(count, _ROWS_AT_ONCE)), np.float32)

    def survivors(
        self, shard: OpenShard, rows: np.ndarray, own: np.ndarray, same: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Query and place in ``rows`` of the pairs to compare exactly.

        Args:
            own: (rows,) the first query that shows the garment's picture, -1: none; same: (n,) likewise of
                the queries.
        """
        # A slice is not copied row by row.
        whole = len(rows) == rows[-1] - rows[0] + 1
        at = slice(rows[0], rows[-1] + 1) if whole else rows
        vectors = shard.vectors
        asking, left_out = self._full, np.zeros(len(self._left_out), np.float32)
        sides = [vectors.features[at], vectors.mirrored[at]]
        if shard.lists is not None:
            asking, left_out = self._reduced, self._left_out
            sides = [half[at] for half in np.split(shard.lists.reduced, 2)]
        presence = [vectors.presence[at], mirrored_presence(vectors.presence[at])]
        score = np.full((len(same), len(rows)), -np.inf, np.float32)
        lost = np.zeros(len(rows), np.float32)
        for side, seen in list(zip(sides, presence, strict=True))[: 1 + self._mirrored]:
            values = np.asarray(side, np.float32)
            lost = np.maximum(lost, _left_out(values))
            one = np.empty_like(score)
            planes = np.matmul(asking, np.ascontiguousarray(np.transpose(values, (1, 2, 0))))
            code = presence_codes(seen)
            coarse_scores(
                self._kind, planes, 0, self._ones, self._code, self._weights, self._ones, code, one
            )  # fmt: skip
            np.maximum(score, one, out=score)
        query, column = np.empty(score.size, np.int32), np.empty(score.size, np.int32)
        count = _survivors(
            score, left_out, lost, same, own, self._best, self._floor, self._threshold, query, column
        )  # fmt: skip
        return query[:count].astype(np.int64), column[:count].astype(np.int64)


@njit(cache=True, nogil=True)
def _survivors(  # type: ignore[no-untyped-def]
    score, left_out_q, left_out_x, same, own, best, floor, threshold, query, column
):
    """Pairs whose score may reach the threshold, or be among the best of their query; how many they are.

    Args:
        score: (n, m) float32, off by what both sides leave out. best: (n, BEST) heaps of what scores are at
            least; floor: (n,) likewise of the last of the best. query, column: the result.
    """
    count = 0
    for q in range(len(score)):
        for x in range(len(own)):
            off = left_out_q[q] * left_out_x[x] + _ROUNDING
            if score[q, x] - off > best[q, 0] and own[x] != same[q]:
                push(best, q, score[q, x] - off)
        cut = min(max(floor[q], best[q, 0]), threshold)
        for x in range(len(own)):
            off = left_out_q[q] * left_out_x[x] + _ROUNDING
            if score[q, x] + off >= cut and own[x] != same[q]:
                query[count], column[count] = q, x
                count += 1
    return count


def _planes(features: np.ndarray) -> np.ndarray:
    """(n, 5, d) to (5, n, d), contiguous."""
    return np.ascontiguousarray(np.moveaxis(features, 1, 0))


@njit(cache=True, nogil=True, fastmath=True)
def _left_out(reduced):  # type: ignore[no-untyped-def]
    """The greatest length of what was left out of a garment's regions: (n, 5, d') float32 to (n,). A region
    of length 0 is not there."""
    out = np.zeros(len(reduced), np.float32)
    for n in range(len(reduced)):
        for region in range(reduced.shape[1]):
            length = np.float32(0)
            for k in range(reduced.shape[2]):
                length += reduced[n, region, k] * reduced[n, region, k]
            if length > 0:
                out[n] = max(out[n], np.sqrt(max(np.float32(1) - length, np.float32(0))))
    return out
