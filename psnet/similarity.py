"""How alike two garments are: region by region, and as one score.

Everything works on arrays with the region axis last, in the order of ``psnet.regions.REGIONS``, and
broadcasts over the axes before it, so that one pair, a list of pairs and a whole block of pairs are the same
call. float32 stays float32 and float64 stays float64; float16 is computed in float32.

Mirrored copies: a flipped photograph swaps left and right, so a pair is compared a second time with the
features of the other garment's flipped picture, which are in the flipped picture's region order already. The
better one counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from psnet.regions import GROUPS, MIRROR, NUM_REGIONS, Presence

# A flipped picture has to be better by more than rounding before a pair is called mirrored.
MIRROR_MARGIN = 1e-6


def comparable_regions(presence_q: np.ndarray, presence_x: np.ndarray) -> np.ndarray:
    """Which regions take part in a comparison, (..., 5) bool.

    Hidden on either side: nothing can be said. Absent on both sides: says little. Absent against present is
    compared (as a change).

    Args:
        presence_q, presence_x: (..., 5) uint8 codes of ``psnet.regions.Presence``.
    """
    seen = (presence_q != Presence.HIDDEN) & (presence_x != Presence.HIDDEN)
    return seen & ((presence_q == Presence.PRESENT) | (presence_x == Presence.PRESENT))


def cosines(
    features_q: np.ndarray, presence_q: np.ndarray, features_x: np.ndarray, presence_x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cosine of each region, and whether it means anything.

    Args:
        features_q, features_x: (..., 5, d), unit norm where present.
        presence_q, presence_x: (..., 5) uint8.

    Returns:
        cos: (..., 5), 0 where not both are present; comparable: (..., 5) bool.
    """
    features_q, features_x = _at_least_float32(features_q), _at_least_float32(features_x)
    # einsum adds in an order that depends on d alone: a pair's cosine is the same in every batch.
    cos = np.einsum("...rd,...rd->...r", features_q, features_x)
    both = (presence_q == Presence.PRESENT) & (presence_x == Presence.PRESENT)
    return np.where(both, cos, cos.dtype.type(0)), comparable_regions(presence_q, presence_x)


def block_cosines(
    features_q: np.ndarray, presence_q: np.ndarray, features_x: np.ndarray, presence_x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of every pair of a block by one matrix product per region.

    Equal to ``cosines`` of all pairs up to rounding. Absent and hidden regions must be zero in the features.

    Args:
        features_q: (nq, 5, d); features_x: (nx, 5, d); presence_q: (nq, 5) uint8; presence_x: (nx, 5) uint8.

    Returns:
        cos: (nq, nx, 5) and comparable: (nq, nx, 5) bool, both with one contiguous plane per region.
        Memory O(5 nq nx).
    """
    left = np.moveaxis(_at_least_float32(features_q), 1, 0)
    right = np.moveaxis(_at_least_float32(features_x), 1, 0)
    planes = np.matmul(left, np.swapaxes(right, 1, 2))
    presence_left = np.moveaxis(presence_q, 1, 0)[:, :, None]
    presence_right = np.moveaxis(presence_x, 1, 0)[:, None, :]
    comparable = comparable_regions(presence_left, presence_right)
    return np.moveaxis(planes, 0, 2), np.moveaxis(comparable, 0, 2)


def weighted_score(cos: np.ndarray, comparable: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Eq. 1 of Lang et al. (CVPR 2020), divided by the weight that could be compared.

    S = sum_r w_r cos_r / sum_r w_r over the comparable regions; 0 where nothing is comparable.

    Args:
        cos: (..., 5); comparable: (..., 5) bool; weights: broadcastable to (..., 5), not negative.

    Returns:
        (...) scores.
    """
    weights = np.asarray(weights, cos.dtype)
    total = np.zeros(np.broadcast_shapes(cos.shape, weights.shape)[:-1], cos.dtype)
    weight = np.zeros_like(total)
    for region in range(NUM_REGIONS):
        used = weights[..., region] * comparable[..., region]
        total += used * cos[..., region]
        weight += used
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)


def best_regions_score(
    cos: np.ndarray, comparable: np.ndarray, weights: np.ndarray, *, drop: int = 2, keep: int = 3
) -> np.ndarray:
    """The mean of the regions that agree best: "at most two regions modified" as a score.

    S2 = max over sets D of at most ``drop`` comparable regions of the weighted mean of the other comparable
    regions, of which at least ``keep`` must remain. A region of weight 0 is left out of the comparison. Where
    fewer than ``keep`` regions are comparable, each missing one counts as cosine 0 with the mean weight, so
    that a pair about which little can be said ranks low.

    Args:
        cos: (..., 5); comparable: (..., 5) bool; weights: broadcastable to (..., 5), not negative.
        drop: how many regions may differ. keep: how many must remain.

    Returns:
        (...) scores.
    """
    weights = np.asarray(weights, cos.dtype)
    shape = np.broadcast_shapes(cos.shape, weights.shape)[:-1]
    used = [comparable[..., r] & (weights[..., r] > 0) for r in range(NUM_REGIONS)]
    masked = [np.where(used[r], cos[..., r], cos.dtype.type(-np.inf)) for r in range(NUM_REGIONS)]
    if (drop, keep) == (2, 3) and np.ptp(weights, axis=-1).max(initial=0) == 0:
        score = mean_of_best_three(masked)
    else:
        score = _best_weighted_mean(masked, used, weights, shape, drop, keep)
    score = np.asarray(score)  # numpy makes a scalar of a single pair, which cannot be assigned to
    few = score == -np.inf
    if few.any():
        # Boolean indexing of the broadcast views copies only these pairs.
        weight_few = np.broadcast_to(weights, (*shape, NUM_REGIONS))[few]
        used_few = np.stack([np.broadcast_to(plane, shape)[few] for plane in used], axis=-1)
        cos_few = np.stack([np.broadcast_to(cos[..., r], shape)[few] for r in range(NUM_REGIONS)], axis=-1)
        score[few] = _with_missing_regions(cos_few, used_few, weight_few, keep)
    return score


def mean_of_best_three(planes: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of the three greatest of five, element by element; -inf where one of those is. Five arrays of one
    shape.

    A selection network: the lesser of the two minima of (a, b) and (c, d) is among the two smallest of the
    five; of the four that are left the smallest goes. No subtraction, so nothing is lost to rounding.
    """
    a, b, c, d, e = planes
    p, q, r = np.maximum(a, b), np.maximum(c, d), np.maximum(np.minimum(a, b), np.minimum(c, d))
    score = np.maximum(p, q)
    score += np.maximum(r, e)
    score += np.maximum(np.minimum(p, q), np.minimum(r, e))
    score /= 3
    return score


def _best_weighted_mean(
    masked: Sequence[np.ndarray],
    used: Sequence[np.ndarray],
    weights: np.ndarray,
    shape: tuple[int, ...],
    drop: int,
    keep: int,
) -> np.ndarray:
    """Leaving out the smallest of a set never lowers its mean, so only the smallest sets allowed are
    tried."""
    with np.errstate(invalid="ignore"):  # weight 0 times -inf
        products = [weights[..., r] * masked[r] for r in range(NUM_REGIONS)]
    count = sum(plane.astype(np.int8) for plane in used)
    score = np.full(shape, -np.inf, masked[0].dtype)
    for size in sorted({max(n - drop, keep) for n in range(keep, NUM_REGIONS + 1)}):
        droppable = count <= size + drop
        for kept in combinations(range(NUM_REGIONS), size):
            total = sum(weights[..., r] for r in kept)
            with np.errstate(divide="ignore", invalid="ignore"):
                mean = sum(products[r] for r in kept) / total
            # fmax ignores the NaN of a set that holds a region of weight 0.
            np.fmax(score, mean, out=score, where=np.broadcast_to(droppable, shape))
    return score


def _with_missing_regions(cos: np.ndarray, used: np.ndarray, weights: np.ndarray, keep: int) -> np.ndarray:
    """(n,) scores of pairs with fewer than ``keep`` comparable regions; arguments (n, 5)."""
    positive = np.maximum((weights > 0).sum(-1), 1)
    mean_weight = weights.sum(-1) / positive
    total = (weights * used * cos).sum(-1)
    weight = (weights * used).sum(-1) + (keep - used.sum(-1)) * mean_weight
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)


LEAST_ABOVE = 10
"""A level is at most the tenth greatest score: the greatest may be copies."""

BACKGROUND_PICTURES = 1000
BACKGROUND_QUANTILE = 0.99
"""What levels are taken of outside the pair search, which has settings of these names: so many pictures, and
this quantile of the scores with them."""


def level_rank(count: np.ndarray | int, quantile: float) -> np.ndarray:
    """How many of ``count`` scores lie below the level: those below the lower neighbour of the quantile, but
    never so many that fewer than ``LEAST_ABOVE`` are left.

    Args:
        count: (...) numbers of scores. quantile: 0 to 1.

    Returns:
        (...) int64, from 0; -1 where there is no score.
    """
    among = np.floor(quantile * (np.asarray(count) - 1)).astype(np.int64)
    return np.minimum(among, np.maximum(np.asarray(count) - LEAST_ABOVE, 0))


def levels_of(score: np.ndarray, quantile: float = BACKGROUND_QUANTILE) -> np.ndarray:
    """What each garment reaches with garments that have nothing to do with it: the level among its scores.

    Args:
        score: (n, m) against a sample of a catalogue, -inf: not counted.

    Returns:
        (n,) of the scores' type, 0 where there is nothing to compare with.
    """
    if not score.shape[1]:
        return np.zeros(len(score), score.dtype)
    count = np.isfinite(score).sum(1)
    place = score.shape[1] - count + level_rank(count, quantile)
    value = np.take_along_axis(np.sort(score, axis=1), place[:, None], axis=1)[:, 0]
    return np.where(count > 0, value, 0).astype(score.dtype)


# A garment that everything resembles leaves little room above its level; a division by none would blow up.
_LEAST_ROOM = 0.05


def room_above(level: np.ndarray) -> np.ndarray:
    """How far a perfect match stands above a level, and at least so far that a normalised score means
    something: what ``normalise`` divides by."""
    return np.maximum(1 - level, np.float32(_LEAST_ROOM))


def normalise(score: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Where a score lies between what the two garments reach with anything (0) and a perfect match (1).

    Rises with the score; a level of 0 leaves the score as it is.

    Args:
        score, level: of one shape; the level of a pair is the mean of its garments' levels: a high quantile
            of a garment's scores with others that have nothing to do with it. (Copy detection subtracts such
            a level: Pizzi et al., "A Self-Supervised Descriptor for Image Copy Detection", CVPR 2022.)
    """
    return ((score - level) / room_above(level)).astype(np.float32, copy=False)


Scoring = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

SCORINGS: Mapping[str, Scoring] = {"best_regions": best_regions_score, "weighted": weighted_score}
"""Scoring modes by name: ``best_regions`` is the default, ``weighted`` is the paper's."""


@dataclass(frozen=True)
class Comparison:
    """Pairs compared. Leading axes as given, regions last.

    ``score``: (...); ``cos``: (..., 5), 0 where not comparable; ``comparable``: (..., 5) bool; ``mirrored``:
    (...) bool, the flipped picture matched better and the cosines are those of the flipped comparison.
    """

    score: np.ndarray
    cos: np.ndarray
    comparable: np.ndarray
    mirrored: np.ndarray


def compare(
    features_q: np.ndarray,
    presence_q: np.ndarray,
    features_x: np.ndarray,
    presence_x: np.ndarray,
    weights: np.ndarray,
    *,
    mirrored_x: np.ndarray | None = None,
    scoring: str = "best_regions",
) -> Comparison:
    """Compare garments pairwise, as they are and, given ``mirrored_x``, flipped; the better one counts.

    Args:
        features_q, features_x: (..., 5, d); presence_q, presence_x: (..., 5) uint8.
        weights: (..., 5) of the queries' groups.
        mirrored_x: (..., 5, d), x's features in its flipped picture.
        scoring: a name of ``SCORINGS``.

    Raises:
        KeyError: unknown scoring.
    """
    plain = cosines(features_q, presence_q, features_x, presence_x)
    if mirrored_x is None:
        return _better(plain, None, weights, scoring)
    flipped = cosines(features_q, presence_q, mirrored_x, mirrored_presence(presence_x))
    return _better(plain, flipped, weights, scoring)


def compare_block(
    features_q: np.ndarray,
    presence_q: np.ndarray,
    features_x: np.ndarray,
    presence_x: np.ndarray,
    weights: np.ndarray,
    *,
    mirrored_x: np.ndarray | None = None,
    scoring: str = "best_regions",
) -> Comparison:
    """Compare every garment of a block with every other; equal to ``compare`` of all pairs up to rounding.

    Args:
        features_q: (nq, 5, d); features_x, mirrored_x: (nx, 5, d), zero where absent or hidden;
            presence_q: (nq, 5) uint8; presence_x: (nx, 5) uint8.
        weights: (nq, 5) of the queries' groups.
        scoring: a name of ``SCORINGS``.

    Returns:
        a comparison of shape (nq, nx). Memory O(10 nq nx).

    Raises:
        KeyError: unknown scoring.
    """
    plain = block_cosines(features_q, presence_q, features_x, presence_x)
    if mirrored_x is None:
        return _better(plain, None, weights[:, None], scoring)
    flipped = block_cosines(features_q, presence_q, mirrored_x, mirrored_presence(presence_x))
    return _better(plain, flipped, weights[:, None], scoring)


def _better(
    plain: tuple[np.ndarray, np.ndarray],
    flipped: tuple[np.ndarray, np.ndarray] | None,
    weights: np.ndarray,
    scoring: str,
) -> Comparison:
    """The better of the two comparisons, each as (cos, comparable)."""
    score_of = SCORINGS[scoring]
    cos, comparable = plain
    score = score_of(cos, comparable, weights)
    if flipped is None:
        return Comparison(score, cos, comparable, np.zeros(score.shape, bool))
    flipped_cos, flipped_comparable = flipped
    flipped_score = score_of(flipped_cos, flipped_comparable, weights)
    mirrored = flipped_score > score + MIRROR_MARGIN
    chosen = mirrored[..., None]
    return Comparison(
        np.where(mirrored, flipped_score, score),
        np.where(chosen, flipped_cos, cos),
        np.where(chosen, flipped_comparable, comparable),
        mirrored,
    )


def mirrored_presence(presence: np.ndarray) -> np.ndarray:
    """Presence in the flipped picture: (..., 5) to (..., 5)."""
    return presence[..., list(MIRROR)]


def equal_weights() -> np.ndarray:
    """The table of region weights that treats all alike: (4, 5) ones, rows as ``psnet.regions.GROUPS``."""
    return np.ones((len(GROUPS), NUM_REGIONS), np.float32)


def group_rows(groups: Sequence[str]) -> np.ndarray:
    """Rows of the weight table for group names, (n,) int64.

    Raises:
        ValueError: a name that is not in ``psnet.regions.GROUPS``.
    """
    rows = {name: row for row, name in enumerate(GROUPS)}
    try:
        return np.array([rows[name] for name in groups], np.int64)
    except KeyError as error:
        raise ValueError(f"unknown group {error.args[0]!r}; known: {', '.join(GROUPS)}") from None


def _at_least_float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float16 else array
