"""The inner loop of the pair search: two blocks of garments in, the pairs worth keeping out.

Two steps. A matrix product per region scores every pair of the block in float32 and finds the candidates;
what it rounds differently from one block shape to another is smaller than MARGIN, by which the net is cast
wider. The candidates are then compared one by one (``psnet.similarity.compare``), and only that score is
kept, so that the result does not depend on how garments were put into blocks.

Pairs are ranked by their normalised score (``psnet.similarity.normalise``), which is worth 3 to 4 points of
mAP on photographs over the score itself. Where all levels are 0 it *is* the score, and that is how pairs are
ranked by their score.

Pairs are pairs of pictures: of their garments' pairs the one that ranks first stands for the two pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from psnet.regions import NUM_REGIONS, Presence
from psnet.similarity import (
    SCORINGS,
    block_cosines,
    compare,
    level_rank,
    mirrored_presence,
    normalise,
    room_above,
)

MARGIN = np.float32(2e-5)
"""Above the rounding of a float32 product of two unit vectors of 256 numbers (about 1e-6), for either order
of additions, with room for longer vectors, and twice over: both sides of a comparison may be rounded."""

# A tile's five planes of float32 stay in the second-level cache between product and reduction.
_TILE_ROWS = 128
_TILE_COLUMNS = 1024
# Pairs compared at once; three gathered arrays of (pairs, 5, d) float32.
_RESCORED_AT_ONCE = 1024
# Query pictures selected from at once; a few arrays of (pictures, garments of the other block) float32.
_SELECTED_AT_ONCE = 64


@dataclass(frozen=True)
class Block:
    """The n garments of m pictures, picture after picture.

    ``features``, ``mirrored``: (n, 5, d) float32; ``presence``: (n, 5) uint8; ``weights``: (n, 5) float32 of
    each garment's group; ``level``: (n,) float32, what each reaches with anything (``background``), or 0 to
    rank by the score alone; ``garment``: (n,) index within its picture; ``starts``: (m,) first garment of
    each picture; ``picture``: (m,) ascending numbers of the pictures.
    """

    features: np.ndarray
    mirrored: np.ndarray
    presence: np.ndarray
    weights: np.ndarray
    level: np.ndarray
    garment: np.ndarray
    starts: np.ndarray
    picture: np.ndarray

    def __len__(self) -> int:
        """m, the number of pictures."""
        return len(self.starts)


@dataclass(frozen=True)
class Wanted:
    """Which pairs of a query are kept: its ``best_k``, and of the others those whose score reaches
    ``threshold`` and whose normalised score reaches ``normalised_threshold``, the best first, until there are
    ``limit`` (at least ``best_k``) together."""

    best_k: int
    threshold: float
    normalised_threshold: float
    limit: int

    def reached(self, score: np.ndarray, normalised: np.ndarray) -> np.ndarray:
        """Which pairs of exact scores reach both thresholds, bool of their shape."""
        return (score >= np.float32(self.threshold)) & (normalised >= np.float32(self.normalised_threshold))


@dataclass(frozen=True)
class Floors:
    """What is known from other blocks, per query, (m,) float32, -inf where fewer are known. Pairs below are
    of no use.

    ``best_k``: its ``best_k``-th best normalised score; ``limit``: its ``limit``-th best of the pairs that
    reach the thresholds. Others may yet turn out not to be kept.
    """

    best_k: np.ndarray
    limit: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """Compared pairs of pictures, arrays of one length p.

    ``query``, ``match``: picture numbers; ``score``, ``cos`` (p, 5), ``comparable`` (p, 5), ``mirrored`` as
    in ``psnet.similarity.Comparison``; ``normalised``: (p,) float32, what the pair is ranked by;
    ``query_garment``, ``match_garment``: int16 index of the garment that matched.
    """

    query: np.ndarray
    match: np.ndarray
    score: np.ndarray
    normalised: np.ndarray
    cos: np.ndarray
    comparable: np.ndarray
    mirrored: np.ndarray
    query_garment: np.ndarray
    match_garment: np.ndarray

    def take(self, rows: np.ndarray) -> Pairs:
        return Pairs(*(value[rows] for value in vars(self).values()))

    @classmethod
    def joined(cls, parts: Sequence[Pairs]) -> Pairs:
        """One after the other."""
        names = cls.__dataclass_fields__
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class Kept:
    """What a block holds for the queries of one side. ``left_out``: pairs that reach the thresholds and
    exceed the limit."""

    pairs: Pairs
    left_out: int


def best_pairs(
    rows: Block,
    columns: Block,
    wanted: Wanted,
    row_floors: Floors,
    column_floors: Floors | None = None,
    *,
    scoring: str = "best_regions",
    mirrored: bool = True,
) -> tuple[Kept, Kept | None]:
    """Pairs worth keeping, for the pictures of ``rows`` as queries and for those of ``columns``.

    Args:
        row_floors, column_floors: what the queries know already. Without ``column_floors`` the columns are no
            queries, and the second result is None.
        scoring: a name of ``psnet.similarity.SCORINGS``. mirrored: compare flipped pictures as well.

    Memory O(n_rows n_columns).
    """
    both = column_floors is not None
    by_row, by_column = score_block(rows, columns, scoring=scoring, mirrored=mirrored, both_directions=both)
    query, match, left_out = select(by_row, rows, columns, wanted, row_floors)
    forward = Kept(rescore(rows, columns, query, match, scoring=scoring, mirrored=mirrored), left_out)
    if by_column is None or column_floors is None:
        return forward, None
    query, match, left_out = select(by_column.T, columns, rows, wanted, column_floors)
    return forward, Kept(rescore(columns, rows, query, match, scoring=scoring, mirrored=mirrored), left_out)


def score_block(
    rows: Block, columns: Block, *, scoring: str, mirrored: bool, both_directions: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores of all pairs of garments with the rows as queries, and with the columns as queries.

    Both (n_rows, n_columns) float32, the second None unless wanted. The products serve both directions, since
    weights are applied afterwards; only the comparison with flipped pictures needs one for each.
    """
    shape = (len(rows.garment), len(columns.garment))
    forward = np.empty(shape, np.float32)
    backward = np.empty(shape, np.float32) if both_directions else None
    weights = np.concatenate([rows.weights, columns.weights])
    same_weights = bool((weights == weights[:1]).all())
    score_of = SCORINGS[scoring]
    left, right = _planes(rows.features), _planes(columns.features)
    if mirrored:
        right_flipped = _planes(columns.mirrored)
        left_flipped = _planes(rows.mirrored) if both_directions else None
    for r in range(0, shape[0], _TILE_ROWS):
        at = slice(r, r + _TILE_ROWS)
        row_weights = rows.weights[at, None]
        for c in range(0, shape[1], _TILE_COLUMNS):
            to = slice(c, c + _TILE_COLUMNS)
            column_weights = columns.weights[None, to]
            planes = block_cosines(left[at], rows.presence[at], right[to], columns.presence[to])
            plain = score_of(*planes, row_weights)
            forward[at, to] = plain
            if backward is not None:
                backward[at, to] = plain if same_weights else score_of(*planes, column_weights)
            if not mirrored:
                continue
            planes = block_cosines(
                left[at], rows.presence[at], right_flipped[to], mirrored_presence(columns.presence[to])
            )
            np.maximum(forward[at, to], score_of(*planes, row_weights), out=forward[at, to])
            if backward is not None and left_flipped is not None:
                planes = block_cosines(
                    left_flipped[at], mirrored_presence(rows.presence[at]), right[to], columns.presence[to]
                )
                np.maximum(backward[at, to], score_of(*planes, column_weights), out=backward[at, to])
    return forward, backward


def _planes(features: np.ndarray) -> np.ndarray:
    """(n, 5, d) whose regions are contiguous matrices, as the product wants them."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(features, 1, 0)), 0, 1)


def select(
    scores: np.ndarray, queries: Block, others: Block, wanted: Wanted, floors: Floors
) -> tuple[np.ndarray, np.ndarray, int]:
    """Positions of the picture pairs that may be among those wanted, and how many the limit leaves out.

    Args:
        scores: (n_queries, n_others) of the garments, as ``score_block`` gives them.

    Nothing wanted is missed. A score may be off by e, 2 e <= MARGIN. The normalised score (s - L) / room
    rises with s by 1 / room, and L and room are the very numbers that ``rescore`` uses: it is off by e / room
    at most (rounding its subtraction and division adds 2e-7 / room, for which MARGIN has room), so by
    slack / 2, if slack is MARGIN over the least room of any pair of the two blocks. The greatest of several
    garments' values, and the k-th greatest of a query's, move no further than their members do. So what lies
    slack below a cut that was made of such values, or of exact ones, lies below the exact cut.
    Only pairs that surely reach the thresholds make the limit's cut: others may not be listed at all.

    The count is exact as well: a pair beyond the limit of which rounding hides whether it reaches the
    thresholds is handed on, and counted once it is compared.
    """
    half_q, half_x = queries.level / 2, others.level / 2  # the halves' sum is the mean, bit by bit
    slack = float(MARGIN / room_above(half_q.max(initial=-1) + half_x.max(initial=-1)))
    # No picture is its own partner.
    _, own_q, own_x = np.intersect1d(queries.picture, others.picture, True, True)
    stops = np.append(queries.starts, len(queries.garment))
    chosen, left_out = [np.empty((2, 0), np.int64)], 0
    for first in range(0, len(queries), _SELECTED_AT_ONCE):
        last = min(first + _SELECTED_AT_ONCE, len(queries))
        at = slice(stops[first], stops[last])
        score = np.ascontiguousarray(scores[at])
        normalised = normalise(score, half_q[at, None] + half_x)
        best = _by_picture(normalised, queries.starts[first:last] - at.start, others.starts)
        own = (own_q >= first) & (own_q < last)
        best[own_q[own] - first, own_x[own]] = -np.inf
        best_k = np.maximum(_kth_best(best, wanted.best_k), floors.best_k[first:last]) - slack
        cut = np.minimum(best_k, np.float32(wanted.normalised_threshold) - slack)
        query, match = np.nonzero((best >= cut[:, None]) & (best > -np.inf))
        value = best[query, match]
        pair, q, x = _garment_pairs(queries, others, first + query, match)
        q -= at.start
        possibly, surely = _reaching(value, pair, score[q, x], normalised[q, x], wanted, slack)
        known = _kth_of_each(query[surely], value[surely], wanted.limit, last - first)
        limit = np.maximum(known, floors.limit[first:last]) - slack
        within = value >= limit[query]
        keep = (value >= best_k[query]) | (possibly & (within | ~surely))
        left_out += int((surely & ~keep).sum())
        chosen.append(np.stack([first + query[keep], match[keep]]))
    query, match = np.concatenate(chosen, axis=1)
    return query, match, left_out


def _by_picture(values: np.ndarray, row_starts: np.ndarray, column_starts: np.ndarray) -> np.ndarray:
    """The greatest of each picture pair's garments: (n_q, n_x) to (m_q, m_x)."""
    if len(row_starts) != values.shape[0]:
        values = np.maximum.reduceat(values, row_starts, axis=0)
    if len(column_starts) != values.shape[1]:
        values = np.maximum.reduceat(values, column_starts, axis=1)
    return values


def _reaching(
    value: np.ndarray,
    pair: np.ndarray,
    score: np.ndarray,
    normalised: np.ndarray,
    wanted: Wanted,
    slack: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Which of p picture pairs possibly reach the thresholds, and which surely do: (p,) bool each.

    Args:
        value: (p,) their normalised scores. pair: (g,) the picture pair that each pair of garments belongs
            to, ascending; score, normalised: (g,) of the garments. All of them rounded, see ``select``.
    """
    # Of several garments those that may turn out to rank first count.
    may_stand = normalised >= value[pair] - slack
    threshold, least = np.float32(wanted.threshold), np.float32(wanted.normalised_threshold)
    possible = may_stand & (score >= threshold - MARGIN) & (normalised >= least - slack)
    doubtful = may_stand & ((score < threshold + MARGIN) | (normalised < least + slack))
    if len(pair) > len(value):
        first = np.flatnonzero(np.diff(pair, prepend=-1))
        possible, doubtful = (np.logical_or.reduceat(which, first) for which in (possible, doubtful))
    return possible, ~doubtful


def _kth_best(scores: np.ndarray, k: int) -> np.ndarray:
    """(m,) k-th greatest of each row, -inf where there are fewer."""
    width = scores.shape[1]
    if k > width or not scores.size:
        return np.full(len(scores), -np.inf, np.float32)
    return np.partition(scores, width - k, axis=1)[:, width - k]


def _kth_of_each(query: np.ndarray, value: np.ndarray, k: int, count: int) -> np.ndarray:
    """(count,) k-th greatest of each query's values, -inf where there are fewer."""
    order = np.lexsort((-value, query))
    query, value = query[order], value[order]
    at = np.arange(len(query)) - np.searchsorted(query, query) == k - 1
    kth = np.full(count, -np.inf, np.float32)
    kth[query[at]] = value[at]
    return kth


def rescore(
    queries: Block,
    others: Block,
    query: np.ndarray,
    match: np.ndarray,
    *,
    scoring: str,
    mirrored: bool,
) -> Pairs:
    """Compare pairs of pictures exactly; of several garments the pair of the greatest normalised score stands
    for them, then that of the greatest score, then that of the lowest indices.

    Args:
        query, match: (p,) positions among the pictures of ``queries`` and ``others``.
    """
    pair, q, x = _garment_pairs(queries, others, query, match)
    parts = []
    for start in range(0, max(len(pair), 1), _RESCORED_AT_ONCE):
        qs, xs = q[start : start + _RESCORED_AT_ONCE], x[start : start + _RESCORED_AT_ONCE]
        parts.append(
            compare(
                queries.features[qs],
                queries.presence[qs],
                others.features[xs],
                others.presence[xs],
                queries.weights[qs],
                mirrored_x=others.mirrored[xs] if mirrored else None,
                scoring=scoring,
            )
        )
    score = np.concatenate([part.score for part in parts])
    normalised = normalise(score, (queries.level[q] + others.level[x]) / 2)
    best = np.arange(len(pair))
    if len(pair) > len(query):
        order = np.lexsort((x, q, -score, -normalised, pair))
        best = order[np.flatnonzero(np.diff(pair[order], prepend=-1))]
    return Pairs(
        query=queries.picture[query],
        match=others.picture[match],
        score=score[best],
        normalised=normalised[best],
        cos=np.concatenate([part.cos for part in parts])[best],
        comparable=np.concatenate([part.comparable for part in parts])[best],
        mirrored=np.concatenate([part.mirrored for part in parts])[best],
        query_garment=queries.garment[q[best]],
        match_garment=others.garment[x[best]],
    )


def _garment_pairs(
    queries: Block, others: Block, query: np.ndarray, match: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All garment pairs of picture pairs: number of the pair, row in ``queries``, row in ``others``."""
    count_q = np.diff(queries.starts, append=len(queries.garment))[query]
    count_x = np.diff(others.starts, append=len(others.garment))[match]
    combinations = count_q * count_x
    pair = np.repeat(np.arange(len(query)), combinations)
    within = np.arange(len(pair)) - np.repeat(np.cumsum(combinations) - combinations, combinations)
    q = queries.starts[query][pair] + within // count_x[pair]
    x = others.starts[match][pair] + within % count_x[pair]
    return pair, q, x


@dataclass(frozen=True)
class Garments:
    """Garments without an order among them: n-long arrays as in ``Block``, ``picture`` of each garment."""

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
        quantile: e.g. 0.99; in a small sample at most the tenth greatest value is taken, since the greatest
            may be copies.

    Returns:
        level: (n,) float32, 0 where nothing can be compared. distinctiveness: (n, 5) float32, 1 - quantile of
        the cosine; NaN where the region is not present here, or in none of the sample.
    """
    count = len(garments.picture)
    level = np.zeros(count, np.float32)
    distinctiveness = np.full(garments.presence.shape, np.nan, np.float32)
    features, others = _planes(garments.features), _planes(sample.features)
    for start in range(0, count, _TILE_ROWS):
        at = slice(start, start + _TILE_ROWS)
        cos, comparable = block_cosines(features[at], garments.presence[at], others, sample.presence)
        stranger = garments.picture[at, None] != sample.picture[None]
        scores = SCORINGS[scoring](cos, comparable, garments.weights[at, None])
        rows, chosen = _quantile(scores, stranger, quantile)
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
        both = (garments.presence[at] == Presence.PRESENT)[:, None] & (sample.presence == Presence.PRESENT)
        for region in range(NUM_REGIONS):
            rows, chosen = _quantile(cos[..., region], both[..., region] & stranger, quantile)
            rows += start
            distinctiveness[rows, region] = 1 - np.einsum(
                "nd,nd->n", garments.features[rows, region], sample.features[chosen, region]
            )
    return level, distinctiveness


def _quantile(values: np.ndarray, usable: np.ndarray, quantile: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows with a usable value, and for each the column of its quantile (the lower of two neighbours, and at
    most the ``LEAST_ABOVE``-th greatest)."""
    count = usable.sum(1)
    rows = np.flatnonzero(count)
    values = np.where(usable, values, -np.inf)[rows]
    place = values.shape[1] - count[rows] + level_rank(count[rows], quantile)
    value = np.take_along_axis(np.sort(values, axis=1), place[:, None], axis=1)
    return rows, (values == value).argmax(1)
