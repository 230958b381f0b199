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
from pipeline.missed import BEST
from pipeline.settings import Settings
from psnet.evaluation.intervals import Estimate, wilson_of_clusters
from psnet.similarity import compare_block

_SEED = 0
# Garments compared at once, with all of the sample: an array of (queries, so many, 5) float32.
_ROWS_AT_ONCE = 4096
# Half precision rounds each number by 2^-11 at most, a product of two unit vectors by 2^-10; norms likewise.
_ROUNDING = 2e-3


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
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.choice(len(queries), min(sample, len(queries)), replace=False))
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
    shares = {}
    for name, counted in ((f"best_{BEST}", rank < BEST), ("suspects", score >= threshold)):
        pairs = np.bincount(query[counted], minlength=len(drawn))
        missed = np.bincount(query[counted & lost], minlength=len(drawn))
        shares[name] = _as_json(wilson_of_clusters(missed, pairs))
    return {"queries": len(drawn), **shares}


def audit_index(folder: Path, manifest: Manifest, settings: Settings) -> dict[str, Any]:
    """``audit`` of an index with some of its own garments as questions."""
    index = open_shards(folder, manifest)
    rng = np.random.default_rng(_SEED)
    drawn = np.sort(
        rng.choice(len(index), min(settings.index.audit_queries, len(index)), replace=False).astype(np.int64)
    )
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
    if floor is None:
        floor = np.full(len(queries), -np.inf, np.float32)
    names = pictures.to_numpy(zero_copy_only=False)
    for number, shard in enumerate(index.shards):
        rows = np.arange(len(shard.vectors)) if allowed is None else allowed[number]
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            there = rows[start : start + _ROWS_AT_ONCE]
            score, slack = _scores(index, queries, shard, there, scoring)
            own = shard.vectors.sha256.take(there).to_numpy(zero_copy_only=False)
            score[names[:, None] == own[None]] = -np.inf
            if score.shape[1] > BEST:
                floor = np.maximum(floor, np.partition(score - slack, -BEST, axis=1)[:, -BEST])
            cut = np.minimum(floor, threshold)
            query, column = np.nonzero((score + slack >= cut[:, None]) & np.isfinite(score))
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


def _scores(
    index: GarmentIndex, queries: Queries, shard: OpenShard, rows: np.ndarray, scoring: str
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of all queries with some garments, (n, rows), and what each may be off by, an array of that
    shape.

    Region lists hold reduced vectors, a fraction of the work. With u, v what the reduction leaves of two unit
    vectors and r, s what it leaves out, cos = <u, v> + <r, s>, and |<r, s>| <= |r| |s| (Cauchy and Schwarz),
    where |r| = sqrt(1 - |u|²). A score is a mean of cosines, or the greatest of such means: it is off by no
    more than the most that one of them is.
    """
    # A slice is not copied row by row.
    whole = len(rows) == rows[-1] - rows[0] + 1
    at = slice(rows[0], rows[-1] + 1) if whole else rows
    vectors = shard.vectors
    slack = np.full((len(queries), len(rows)), _ROUNDING, np.float32)
    features, plain, flipped = (
        np.asarray(queries.features, np.float32),
        vectors.features[at],
        vectors.mirrored[at],
    )
    if shard.lists is not None:
        features = index.reduce(queries.features)
        plain, flipped = (half[at] for half in np.split(shard.lists.reduced, 2))
        slack += _left_out(features)[:, None] * np.maximum(_left_out(plain), _left_out(flipped))
    score = compare_block(
        features,
        queries.presence,
        plain,
        vectors.presence[at],
        queries.weights,
        mirrored_x=None if queries.mirrored is None else flipped,
        scoring=scoring,
    ).score
    return score, slack


def _left_out(reduced: np.ndarray) -> np.ndarray:
    """The greatest length of what was left out of a garment's regions: (n, 5, d') to (n,). A region of length
    0 is not there."""
    length = np.linalg.norm(np.asarray(reduced, np.float32), axis=-1)
    out: np.ndarray = np.sqrt(np.maximum(np.where(length > 0, 1 - length**2, 0), 0)).max(axis=-1)
    return out
