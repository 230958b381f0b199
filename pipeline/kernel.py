"""The inner loop of the pair search: two blocks of garments in, the pairs worth keeping out.

Two steps. A matrix product per region scores every pair of the block in float32 and finds the candidates;
what it rounds differently from one block shape to another is smaller than MARGIN, by which the net is cast
wider. The candidates are then compared one by one (``psnet.similarity.compare``), and only that score is
kept, so that the result does not depend on how garments were put into blocks.

Pairs are pairs of pictures: the score of two pictures is the best of their garments' pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from psnet.regions import NUM_REGIONS, Presence
from psnet.similarity import LEAST_ABOVE, SCORINGS, block_cosines, compare, mirrored_presence

MARGIN = np.float32(2e-5)
"""Above the rounding of a float32 product of two unit vectors of 256 numbers (about 1e-6), for either order
of additions, with room for longer vectors."""

# A tile's five planes of float32 stay in the second-level cache between product and reduction.
_TILE_ROWS = 128
_TILE_COLUMNS = 1024
# Pairs compared at once; three gathered arrays of (pairs, 5, d) float32.
_RESCORED_AT_ONCE = 1024


@dataclass(frozen=True)
class Block:
    """The n garments of m pictures, picture after picture.

    ``features``, ``mirrored``: (n, 5, d) float32; ``presence``: (n, 5) uint8; ``weights``: (n, 5) float32 of
    each garment's group; ``garment``: (n,) index within its picture; ``starts``: (m,) first garment of each
    picture;
    ``picture``: (m,) ascending numbers of the pictures.
    """

    features: np.ndarray
    mirrored: np.ndarray
    presence: np.ndarray
    weights: np.ndarray
    garment: np.ndarray
    starts: np.ndarray
    picture: np.ndarray

    def __len__(self) -> int:
        """m, the number of pictures."""
        return len(self.starts)


@dataclass(frozen=True)
class Wanted:
    """Which pairs of a query are kept: its ``best_k``, and all that reach ``threshold``, at most
    ``limit``."""

    best_k: int
    threshold: float
    limit: int


@dataclass(frozen=True)
class Floors:
    """Per query its ``best_k``-th and its ``limit``-th best score known from other blocks, (m,) float32, -inf
    where fewer are known. Pairs below are of no use."""

    best_k: np.ndarray
    limit: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """Compared pairs of pictures, arrays of one length p.

    ``query``, ``match``: picture numbers; ``score``, ``cos`` (p, 5), ``comparable`` (p, 5), ``mirrored`` as
    in
    ``psnet.similarity.Comparison``; ``query_garment``, ``match_garment``: int16 index of the garment that
    matched.
    ``left_out``: pairs that reach the threshold and exceed the limit.
    """

    query: np.ndarray
    match: np.ndarray
    score: np.ndarray
    cos: np.ndarray
    comparable: np.ndarray
    mirrored: np.ndarray
    query_garment: np.ndarray
    match_garment: np.ndarray
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
) -> tuple[Pairs, Pairs | None]:
    """Pairs worth keeping, for the pictures of ``rows`` as queries and for those of ``columns``.

    Args:
        row_floors, column_floors: what the queries know already. Without ``column_floors`` the columns are no
            queries, and the second result is None.
        scoring: a name of ``psnet.similarity.SCORINGS``. mirrored: compare flipped pictures as well.

    Memory O(n_rows n_columns).
    """
    both = column_floors is not None
    by_row, by_column = score_block(rows, columns, scoring=scoring, mirrored=mirrored, both_directions=both)
    # No picture is its own partner.
    _, at_row, at_column = np.intersect1d(rows.picture, columns.picture, True, True)
    by_row[at_row, at_column] = -np.inf
    query, match, left_out = select(by_row, wanted, row_floors)
    forward = rescore(rows, columns, query, match, left_out, scoring=scoring, mirrored=mirrored)
    if by_column is None or column_floors is None:
        return forward, None
    by_column[at_row, at_column] = -np.inf
    query, match, left_out = select(by_column.T, wanted, column_floors)
    return forward, rescore(columns, rows, query, match, left_out, scoring=scoring, mirrored=mirrored)


def score_block(
    rows: Block, columns: Block, *, scoring: str, mirrored: bool, both_directions: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores of all pairs of pictures with the rows as queries, and with the columns as queries.

    Both (m_rows, m_columns) float32, the second None unless wanted. The products serve both directions, since
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
    return _by_picture(forward, rows, columns), (
        None if backward is None else _by_picture(backward, rows, columns)
    )


def _planes(features: np.ndarray) -> np.ndarray:
    """(n, 5, d) whose regions are contiguous matrices, as the product wants them."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(features, 1, 0)), 0, 1)


def _by_picture(scores: np.ndarray, rows: Block, columns: Block) -> np.ndarray:
    if len(rows) != len(rows.garment):
        scores = np.maximum.reduceat(scores, rows.starts, axis=0)
    if len(columns) != len(columns.garment):
        scores = np.maximum.reduceat(scores, columns.starts, axis=1)
    return scores


def select(scores: np.ndarray, wanted: Wanted, floors: Floors) -> tuple[np.ndarray, np.ndarray, int]:
    """Indices of the scores (m_q, m_x) that may be among those wanted, and how many the limit leaves out."""
    scores = np.ascontiguousarray(scores)
    threshold = np.float32(wanted.threshold)
    cut = np.minimum(np.maximum(_kth_best(scores, wanted.best_k), floors.best_k), threshold)
    cut = np.maximum(cut, np.maximum(_kth_best(scores, wanted.limit), floors.limit))
    # A pair of a picture with itself stands at -inf and is nobody's partner.
    keep = (scores >= (cut - MARGIN)[:, None]) & (scores > -np.inf)
    query, match = np.nonzero(keep)
    left_out = int((scores >= threshold).sum()) - int((scores[query, match] >= threshold).sum())
    return query, match, left_out


def _kth_best(scores: np.ndarray, k: int) -> np.ndarray:
    """(m,) k-th greatest of each row, -inf where there are fewer."""
    width = scores.shape[1]
    if k > width or not scores.size:
        return np.full(len(scores), -np.inf, np.float32)
    return np.partition(scores, width - k, axis=1)[:, width - k]


def rescore(
    queries: Block,
    others: Block,
    query: np.ndarray,
    match: np.ndarray,
    left_out: int = 0,
    *,
    scoring: str,
    mirrored: bool,
) -> Pairs:
    """Compare pairs of pictures exactly; of several garments the best pair, then the lowest indices.

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
    best = np.arange(len(pair))
    if len(pair) > len(query):
        order = np.lexsort((x, q, -score, pair))
        best = order[np.flatnonzero(np.diff(pair[order], prepend=-1))]
    return Pairs(
        query=queries.picture[query],
        match=others.picture[match],
        score=score[best],
        cos=np.concatenate([part.cos for part in parts])[best],
        comparable=np.concatenate([part.comparable for part in parts])[best],
        mirrored=np.concatenate([part.mirrored for part in parts])[best],
        query_garment=queries.garment[q[best]],
        match_garment=others.garment[x[best]],
        left_out=left_out,
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
    among = np.floor(quantile * (count[rows] - 1)).astype(np.int64)
    among = np.minimum(among, np.maximum(count[rows] - LEAST_ABOVE, 0))
    place = values.shape[1] - count[rows] + among
    value = np.take_along_axis(np.sort(values, axis=1), place[:, None], axis=1)
    return rows, (values == value).argmax(1)
