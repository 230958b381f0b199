"""Region weights λ, per group (PS-Net, section 4.3): the paper's coordinate ascent, and λ fitted to mAP.

The paper's loss L_pla = Σ_n α L', L' = Σ_r λ_r max(D_r⁺ − D_r⁻ + m, 0), is linear in λ where every region
can be compared: its minimum over the simplex is a corner, which the schedule of steps may or may not reach.
Where some cannot, L' is the mean over those that can, as the score is (Eq. 1): otherwise a region would win
by being seen seldom. `fit_average_precision` climbs the mean average precision itself. Which one ships is
decided on held-out garments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from psnet.evaluation.intervals import ByCluster, Estimate
from psnet.regions import NUM_REGIONS
from psnet.similarity import SCORINGS

# Step of the coordinate search by epoch, as published.
SCHEDULE: tuple[tuple[int, float], ...] = ((40, 0.1), (20, 0.05), (20, 0.01))
MARGIN = 0.5


@dataclass(frozen=True)
class Triplets:
    """``positive`` and ``negative`` (n, 5): L2 distance of an original's regions to those of a plagiarised
    copy and of another garment; ``comparable`` (n, 5) bool, seen in all three."""

    positive: np.ndarray
    negative: np.ndarray
    comparable: np.ndarray


@dataclass(frozen=True)
class Ranking:
    """Queries against a gallery. ``cos``, ``comparable`` (q, x, 5); ``relevant`` (q, x) bool; ``ignored``
    (q, x) bool: neither right nor wrong (the query itself, other items of its design)."""

    cos: np.ndarray
    comparable: np.ndarray
    relevant: np.ndarray
    ignored: np.ndarray


def triplets_of(
    features: np.ndarray, design: np.ndarray, copies: np.ndarray, garment: np.ndarray
) -> Triplets:
    """Originals (view 0) against their copies (view 2) and the nearest other garment (view 1).

    features (n, 3, 5, d) and design (n, 3, 5) as `psnet.train.retrieval.RetrievalSamples` makes them; copies
    (n,) bool: which samples' copies are plagiarised ones; garment (n,): samples of equal ones show the same.
    """
    seen = design >= 0
    original, other, copy = (features[:, v] for v in range(3))
    rows = np.flatnonzero(copies)
    apart = np.sqrt(np.maximum(2 - 2 * np.einsum("ird,jrd->ijr", original[rows], other), 0))
    both = seen[rows, None, 0] & seen[None, :, 1]
    mean = np.where(both, apart, 0).sum(-1) / np.maximum(both.sum(-1), 1)
    mean[garment[rows, None] == garment[None]] = np.inf
    known = np.isfinite(mean).any(1)  # there is another garment
    rows, apart, mean = rows[known], apart[known], mean[known]
    nearest = mean.argmin(1)
    positive = np.linalg.norm(original[rows] - copy[rows], axis=-1)
    comparable = seen[rows, 0] & seen[rows, 2] & seen[nearest, 1]
    return Triplets(positive, apart[np.arange(len(rows)), nearest], comparable)


def ranking_of(features: np.ndarray, design: np.ndarray, copies: np.ndarray, garment: np.ndarray) -> Ranking:
    """Originals (view 0) as queries, all photographs of views 1 and 2 as gallery; arguments as for
    `triplets_of`."""
    n, _, _, d = features.shape
    gallery = features[:, 1:].reshape(2 * n, NUM_REGIONS, d)
    seen = design >= 0
    owner = np.repeat(np.arange(n), 2)
    plagiarised = np.stack([np.zeros(n, bool), copies], 1).reshape(-1)
    relevant = (np.arange(n)[:, None] == owner[None]) & plagiarised
    return Ranking(
        cos=np.einsum("qrd,xrd->qxr", features[:, 0], gallery),
        comparable=seen[:, None, 0] & seen[:, 1:].reshape(2 * n, NUM_REGIONS)[None],
        relevant=relevant,
        ignored=(garment[:, None] == garment[owner][None]) & ~relevant,
    )


def manipulation_loss(triplets: Triplets, weights: np.ndarray, margin: float = MARGIN) -> float:
    """L_pla of the paper, with α = avg_r D_r⁺ / max_r D_r⁺ of each triplet; L' is the mean over the regions
    that can be compared, and the margin where none with a weight can: nothing then tells copy from stranger.

    weights (5,), summing to 1.
    """
    shown = triplets.comparable
    positive = np.where(shown, triplets.positive, 0.0)
    count = np.maximum(shown.sum(1), 1)
    alpha = positive.sum(1) / count / np.maximum(positive.max(1), 1e-6)
    hinge = np.maximum(positive - np.where(shown, triplets.negative, 0.0) + margin, 0.0) * shown
    compared = shown @ weights
    loss = np.where(compared > 0, hinge @ weights / np.maximum(compared, 1e-9), margin)
    return float((alpha * loss).sum())


def coordinate_search(
    value: Callable[[np.ndarray], float], schedule: tuple[tuple[int, float], ...] = SCHEDULE
) -> np.ndarray:
    """λ (5,) that sums to 1 and makes ``value`` small: each region's weight is tried one step up and down in
    turn, normalised again, and kept where ``value`` falls."""
    weights = np.full(NUM_REGIONS, 1 / NUM_REGIONS)
    best = value(weights)
    for epochs, step in schedule:
        for _ in range(epochs):
            moved = False
            for region in range(NUM_REGIONS):
                for change in (step, -step):
                    tried = weights.copy()
                    # Steps are in the paper's scale, whose weights start at 1 each.
                    tried[region] = max(tried[region] + change / NUM_REGIONS, 0.0)
                    tried /= tried.sum()
                    now = value(tried)
                    if now < best:
                        weights, best, moved = tried, now, True
            if not moved:
                break
    return weights


def fit_manipulation(triplets: Triplets) -> np.ndarray:
    """λ (5,) by the paper's loss and schedule; equal weights where there is nothing to learn from."""
    if not len(triplets.positive):
        return np.full(NUM_REGIONS, 1 / NUM_REGIONS)
    return coordinate_search(lambda weights: manipulation_loss(triplets, weights))


def average_precisions(ranking: Ranking, weights: np.ndarray, scoring: str) -> np.ndarray:
    """(q,) of each query, NaN where nothing is relevant; ties are broken against the relevant ones."""
    scores = SCORINGS[scoring](ranking.cos, ranking.comparable, np.asarray(weights, ranking.cos.dtype))
    precisions = np.full(len(scores), np.nan)
    for query, (relevant, ignored) in enumerate(zip(ranking.relevant, ranking.ignored, strict=True)):
        if relevant.any():
            order = np.lexsort((relevant, -scores[query]))
            found = np.flatnonzero(relevant[order[~ignored[order]]])
            precisions[query] = (np.arange(1, len(found) + 1) / (found + 1)).mean()
    return precisions


def mean_average_precision(ranking: Ranking, weights: np.ndarray, scoring: str) -> float:
    """Mean of `average_precisions` over the queries that have a relevant item, 0 without one."""
    precisions = average_precisions(ranking, weights, scoring)
    known = ~np.isnan(precisions)
    return float(precisions[known].mean()) if known.any() else 0.0


def gain_in_precision(
    rankings: Sequence[Ranking],
    garments: Sequence[np.ndarray],
    table: Sequence[Sequence[float]],
    other: Sequence[Sequence[float]],
) -> Estimate:
    """By how much ``table`` (groups, 5) ranks better than ``other`` under the verdict's scoring: the mean
    difference in average precision, garments resampled.

    rankings: one a group. garments: of each the queries' garments, (q,).
    """
    differences = ByCluster()
    for ranking, names, weights, others in zip(rankings, garments, table, other, strict=True):
        precisions = average_precisions(ranking, np.array(weights), "best_regions")
        gained = precisions - average_precisions(ranking, np.array(others), "best_regions")
        for name, value in zip(names, gained, strict=True):
            if not np.isnan(value):
                differences.add(int(name), value)
    return differences.mean()


def fit_average_precision(ranking: Ranking, scoring: str) -> np.ndarray:
    """λ (5,) by climbing the mean average precision of ``scoring``."""
    return coordinate_search(lambda weights: -mean_average_precision(ranking, weights, scoring))


__all__ = [
    "MARGIN",
    "SCHEDULE",
    "Ranking",
    "Triplets",
    "average_precisions",
    "coordinate_search",
    "fit_average_precision",
    "fit_manipulation",
    "gain_in_precision",
    "manipulation_loss",
    "mean_average_precision",
    "ranking_of",
    "triplets_of",
]
