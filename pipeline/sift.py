"""The inner loops of the pair search, compiled: which pairs of a tile may matter, and a closer look at those.

Everything here works on one tile: some rows against some columns, both ends of which fall between pictures.
``pipeline.kernel`` says what is looked for and why nothing is missed.

Plain functions over arrays, because that is what compiles. Loops over columns do the same for every column
and take no branch, so that they become vector instructions.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
from numba import njit

from pipeline.half import to_float32
from psnet.regions import NUM_REGIONS, Presence

SAME_WEIGHTS, BEST_REGIONS, WEIGHTED = range(3)
"""How regions become a score: ``best_regions`` with equal weights, with any, and ``weighted``."""

NOT_REACHED, PERHAPS_REACHED, SURELY_REACHED = range(3)
"""Whether a pair reaches the thresholds, as far as rounding lets it be told."""

FORWARD, BACKWARD, FORWARD_TURNED, BACKWARD_TURNED = (np.uint8(1 << bit) for bit in range(4))
"""Bits of a mark: the pair may matter to the row, to the column, for how alike the garments are as they are;
likewise for one of them flipped."""

_TO_ROW, _TO_COLUMN = np.uint8(FORWARD | FORWARD_TURNED), np.uint8(BACKWARD | BACKWARD_TURNED)
_ANY = np.uint8(_TO_ROW | _TO_COLUMN)
_ALL, _NOT_FORWARD, _NOT_BACKWARD = np.uint8(255), np.uint8(255 - FORWARD), np.uint8(255 - BACKWARD)
# A further bit: as they are, they may reach the thresholds.
_REACHING = np.uint8(16)

# Two regions can be compared where these add up to 0 or more; both are present where they add up to 2.
_CODE = {Presence.HIDDEN: -4.0, Presence.ABSENT: -1.0, Presence.PRESENT: 1.0}
_BOTH_PRESENT = np.float32(2)
NONE = np.float32(-1e30)
NOTHING = np.float32(-1e29)
"""``NONE`` stands for "not comparable" among cosines: far below all sums of them, and its own sums are
finite; what lies above ``NOTHING`` is a cosine."""

_THIRD = np.float32(1 / 3)
_ONE, _ZERO = np.float32(1), np.float32(0)
# As ``psnet.similarity.room_above``.
_LEAST_ROOM = np.float32(0.05)

_SETS_OF_THREE = np.array(list(combinations(range(NUM_REGIONS), 3)))


class Side(NamedTuple):
    """n garments of m pictures, arrays as the loops want them.

    ``features``, ``mirrored``: (n, 5, d) uint16, the bits of float16. ``code``, ``code_mirrored``: (5, n)
    float32, presence as a partner, see ``presence_codes``; ``code_query``: as the one that asks, ``weights``:
    (16, n) float32, see ``weight_table``. ``half``: (n,) float32, half its level. ``picture``: (n,) position
    of its picture; ``starts``: (m + 1,) first garment of each picture and n; ``number``: (m,) the pictures'
    numbers.

    What changes as pairs are found: ``cut``: (n,) float32, normalised score from which on a pair may be among
    the best of the garment's picture; ``low``, ``heap``: (m, best_k) float32, the best values of each picture
    as far as eight bits tell and in float32, binary heaps with the least of them first. ``known``, ``limit``:
    (m,) float32, from elsewhere, as ``pipeline.kernel.Floors``.
    """

    features: np.ndarray
    mirrored: np.ndarray
    code: np.ndarray
    code_mirrored: np.ndarray
    code_query: np.ndarray
    weights: np.ndarray
    half: np.ndarray
    picture: np.ndarray
    starts: np.ndarray
    number: np.ndarray
    cut: np.ndarray
    low: np.ndarray
    heap: np.ndarray
    known: np.ndarray
    limit: np.ndarray


class Held(NamedTuple):
    """Marked pairs of pictures, arrays of one length. ``row``, ``column``: int32 positions of the pictures;
    ``upper``: float32, what their normalised score as they are can be at most; ``bits``: uint8, a mark."""

    row: np.ndarray
    column: np.ndarray
    upper: np.ndarray
    bits: np.ndarray


class Found(NamedTuple):
    """Pairs of pictures scored in float32, arrays of one length.

    ``query``, ``match``: int32 positions of the pictures; ``value``: float32 normalised score; ``reach``:
    uint8.
    """

    query: np.ndarray
    match: np.ndarray
    value: np.ndarray
    reach: np.ndarray


class Cuts(NamedTuple):
    """``threshold``, ``least``: of the score and the normalised score; ``margin``, ``slack``: what these may
    be off by, twice over.

    How far a score in eight bits can be off, (2) and (3) of ``pipeline.quantise``: the errors of both sides
    times what is less, ``flat`` or ``bend + slope * score``; on top the product of both sides' rests, and
    ``extra``.
    """

    threshold: np.float32
    least: np.float32
    margin: np.float32
    slack: np.float32
    flat: np.float32
    bend: np.float32
    slope: np.float32
    extra: np.float32


def presence_codes(presence: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """(n, 5) uint8 to (5, n) float32: two regions can be compared where their codes add up to 0 or more.
    Regions of weight 0 take no part."""
    table = np.zeros(max(_CODE) + 1, np.float32)
    table[list(_CODE)] = list(_CODE.values())
    codes = table[presence]
    if weights is not None:
        codes = np.where(weights > 0, codes, np.float32(_CODE[Presence.HIDDEN]))
    return np.ascontiguousarray(codes.T)


def weight_table(weights: np.ndarray) -> np.ndarray:
    """(n, 5) weights to (16, n) float32: the weights (1 for 0, since ``presence_codes`` takes those regions
    out), one over the sum of each three of them, the mean of those above 0."""
    weights = weights.astype(np.float32)
    used = np.where(weights > 0, weights, np.float32(1))
    sums = used[:, _SETS_OF_THREE].sum(-1)
    mean = weights.sum(-1, keepdims=True) / np.maximum((weights > 0).sum(-1, keepdims=True), 1)
    return np.ascontiguousarray(np.concatenate([used, 1 / sums, mean], axis=1, dtype=np.float32).T)


@njit(cache=True, inline="always")
def _greater(a, b):  # type: ignore[no-untyped-def]
    return a if a > b else b


@njit(cache=True, inline="always")
def _lesser(a, b):  # type: ignore[no-untyped-def]
    return a if a < b else b


@njit(cache=True, inline="always")
def _or_zero(a):  # type: ignore[no-untyped-def]
    return a if a > NOTHING else _ZERO


@njit(cache=True, inline="always")
def _mean_of_best_three(a, b, c, d, e):  # type: ignore[no-untyped-def]
    """``psnet.similarity.best_regions_score`` for equal weights; a region that is missing counts as 0."""
    p, q, r = _greater(a, b), _greater(c, d), _greater(_lesser(a, b), _lesser(c, d))
    first, second = _greater(p, q), _greater(r, e)
    third = _greater(_lesser(p, q), _lesser(r, e))
    return (_or_zero(first) + _or_zero(second) + _or_zero(third)) * _THIRD


@njit(cache=True, inline="always")
def _sum_of_best_three(a, b, c, d, e):  # type: ignore[no-untyped-def]
    p, q, r = _greater(a, b), _greater(c, d), _greater(_lesser(a, b), _lesser(c, d))
    return _greater(p, q) + _greater(r, e) + _greater(_lesser(p, q), _lesser(r, e))


@njit(cache=True, inline="always")
def _weighted(kind, v0, v1, v2, v3, v4, w):  # type: ignore[no-untyped-def]
    """The other two scorings. ``w``: sixteen numbers, a column of ``weight_table``."""
    k0, k1, k2, k3, k4 = v0 > NOTHING, v1 > NOTHING, v2 > NOTHING, v3 > NOTHING, v4 > NOTHING
    p0, p1, p2, p3, p4 = w[0] * v0, w[1] * v1, w[2] * v2, w[3] * v3, w[4] * v4
    total = (p0 if k0 else _ZERO) + (p1 if k1 else _ZERO) + (p2 if k2 else _ZERO)
    total += (p3 if k3 else _ZERO) + (p4 if k4 else _ZERO)
    weight = (w[0] if k0 else _ZERO) + (w[1] if k1 else _ZERO) + (w[2] if k2 else _ZERO)
    weight += (w[3] if k3 else _ZERO) + (w[4] if k4 else _ZERO)
    if kind == WEIGHTED:
        return total / weight if weight > _ZERO else _ZERO
    best = _greater((p0 + p1 + p2) * w[5], (p0 + p1 + p3) * w[6])
    best = _greater(best, _greater((p0 + p1 + p4) * w[7], (p0 + p2 + p3) * w[8]))
    best = _greater(best, _greater((p0 + p2 + p4) * w[9], (p0 + p3 + p4) * w[10]))
    best = _greater(best, _greater((p1 + p2 + p3) * w[11], (p1 + p2 + p4) * w[12]))
    best = _greater(best, _greater((p1 + p3 + p4) * w[13], (p2 + p3 + p4) * w[14]))
    one, none = np.float32(1), np.float32(0)
    missing = np.float32(3)
    missing -= (one if k0 else none) + (one if k1 else none) + (one if k2 else none)
    missing -= (one if k3 else none) + (one if k4 else none)
    weight += missing * w[15]
    few = total / weight if weight > _ZERO else _ZERO
    return few if missing > _ZERO else best


@njit(cache=True, inline="always")
def _sixteen(w, i):  # type: ignore[no-untyped-def]
    first = (w[0, i], w[1, i], w[2, i], w[3, i], w[4, i], w[5, i], w[6, i], w[7, i])
    return (*first, w[8, i], w[9, i], w[10, i], w[11, i], w[12, i], w[13, i], w[14, i], w[15, i])


@njit(cache=True, nogil=True)
def mark(  # type: ignore[no-untyped-def]
    kind, planes, first_row, first_column,
    scale_q, code_q, error_q, rest_q, half_q, cut_q, weights_q,
    scale_x, code_x, error_x, rest_x, half_x, cut_x,
    cuts, forward, backward, marks,
):  # fmt: skip
    """Mark the pairs of a tile that may matter.

    Args:
        kind: how the rows score. Where it is SAME_WEIGHTS the columns score the same.
        planes: (5, rows, columns) int32 products of codes, the first of first_row with first_column.
            Per side: scale, code: (5, n) float32, see ``Quantised`` and ``presence_codes``; error, rest, half
            (of a level), cut: (n,) float32.
        weights_q: (16, n), see ``weight_table``. cuts: ``Cuts``.
        forward, backward: the bits to set for those that may matter to their row and to their column.
        marks: (rows, columns or more) uint8.
    """
    rows, columns = planes.shape[1:]
    c0, c1 = first_column, first_column + columns
    s0, s1, s2, s3, s4 = (
        scale_x[0, c0:c1], scale_x[1, c0:c1], scale_x[2, c0:c1], scale_x[3, c0:c1], scale_x[4, c0:c1],
    )  # fmt: skip
    m0, m1, m2, m3, m4 = (
        code_x[0, c0:c1], code_x[1, c0:c1], code_x[2, c0:c1], code_x[3, c0:c1], code_x[4, c0:c1],
    )  # fmt: skip
    error_of, rest_of, half_of, cut_of = error_x[c0:c1], rest_x[c0:c1], half_x[c0:c1], cut_x[c0:c1]
    least, threshold = cuts.least, cuts.threshold
    flat, bend, slope, extra = cuts.flat, cuts.bend, cuts.slope, cuts.extra
    for row in range(rows):
        i = first_row + row
        p0, p1, p2, p3, p4 = planes[0, row], planes[1, row], planes[2, row], planes[3, row], planes[4, row]
        q0, q1, q2, q3, q4 = scale_q[0, i], scale_q[1, i], scale_q[2, i], scale_q[3, i], scale_q[4, i]
        n0, n1, n2, n3, n4 = code_q[0, i], code_q[1, i], code_q[2, i], code_q[3, i], code_q[4, i]
        half, error, rest, cut, line = half_q[i], error_q[i], rest_q[i], cut_q[i], marks[row]
        if kind == SAME_WEIGHTS:
            for j in range(columns):
                # Regions that cannot be compared have products of 0, which is what a missing one counts as:
                # among the others it can raise the best three, never lower them.
                v0, v1 = np.float32(p0[j]) * (q0 * s0[j]), np.float32(p1[j]) * (q1 * s1[j])
                v2, v3 = np.float32(p2[j]) * (q2 * s2[j]), np.float32(p3[j]) * (q3 * s3[j])
                v4 = np.float32(p4[j]) * (q4 * s4[j])
                middle = _sum_of_best_three(v0, v1, v2, v3, v4) * _THIRD
                off = (error + error_of[j]) * _lesser(flat, bend + slope * middle)
                upper = middle + (off + (rest * rest_of[j] + extra))
                level = half + half_of[j]
                room = _greater(_ONE - level, _LEAST_ROOM)
                reached = _greater(level + room * least, threshold)
                to_row = upper >= _lesser(level + room * cut, reached)
                to_column = upper >= _lesser(level + room * cut_of[j], reached)
                line[j] |= (forward if to_row else np.uint8(0)) | (backward if to_column else np.uint8(0))
        else:
            w = _sixteen(weights_q, i)
            for j in range(columns):
                v0 = np.float32(p0[j]) * (q0 * s0[j]) if n0 + m0[j] >= _ZERO else NONE
                v1 = np.float32(p1[j]) * (q1 * s1[j]) if n1 + m1[j] >= _ZERO else NONE
                v2 = np.float32(p2[j]) * (q2 * s2[j]) if n2 + m2[j] >= _ZERO else NONE
                v3 = np.float32(p3[j]) * (q3 * s3[j]) if n3 + m3[j] >= _ZERO else NONE
                v4 = np.float32(p4[j]) * (q4 * s4[j]) if n4 + m4[j] >= _ZERO else NONE
                middle = _weighted(kind, v0, v1, v2, v3, v4, w)
                off = (error + error_of[j]) * _lesser(flat, bend + slope * middle)
                upper = middle + (off + (rest * rest_of[j] + extra))
                level = half + half_of[j]
                room = _greater(_ONE - level, _LEAST_ROOM)
                reached = _greater(level + room * least, threshold)
                line[j] |= forward if upper >= _lesser(level + room * cut, reached) else np.uint8(0)


@njit(cache=True, inline="always")
def _coarse(  # type: ignore[no-untyped-def]
    planes, region, row, column, scale_q, code_q, i, scale_x, code_x, j
):
    """A region's cosine in eight bits."""
    if code_q[region, i] + code_x[region, j] < _ZERO:
        return NONE
    return np.float32(planes[region, row, column]) * (scale_q[region, i] * scale_x[region, j])


@njit(cache=True, nogil=True)
def coarse_scores(  # type: ignore[no-untyped-def]
    kind, planes, first_row, scale_q, code_q, weights_q, scale_x, code_x, scores
):
    """Scores in eight bits of all pairs of a tile, (rows, columns) float32 in ``scores``. Arguments as in
    ``mark``; the columns are all there are."""
    rows, columns = planes.shape[1:]
    s0, s1, s2, s3, s4 = scale_x[0], scale_x[1], scale_x[2], scale_x[3], scale_x[4]
    m0, m1, m2, m3, m4 = code_x[0], code_x[1], code_x[2], code_x[3], code_x[4]
    for row in range(rows):
        i = first_row + row
        p0, p1, p2, p3, p4 = planes[0, row], planes[1, row], planes[2, row], planes[3, row], planes[4, row]
        q0, q1, q2, q3, q4 = scale_q[0, i], scale_q[1, i], scale_q[2, i], scale_q[3, i], scale_q[4, i]
        n0, n1, n2, n3, n4 = code_q[0, i], code_q[1, i], code_q[2, i], code_q[3, i], code_q[4, i]
        w, line = _sixteen(weights_q, i), scores[row]
        for j in range(columns):
            v0 = np.float32(p0[j]) * (q0 * s0[j]) if n0 + m0[j] >= _ZERO else NONE
            v1 = np.float32(p1[j]) * (q1 * s1[j]) if n1 + m1[j] >= _ZERO else NONE
            v2 = np.float32(p2[j]) * (q2 * s2[j]) if n2 + m2[j] >= _ZERO else NONE
            v3 = np.float32(p3[j]) * (q3 * s3[j]) if n3 + m3[j] >= _ZERO else NONE
            v4 = np.float32(p4[j]) * (q4 * s4[j]) if n4 + m4[j] >= _ZERO else NONE
            if kind == SAME_WEIGHTS:
                line[j] = _mean_of_best_three(v0, v1, v2, v3, v4)
            else:
                line[j] = _weighted(kind, v0, v1, v2, v3, v4, w)


@njit(cache=True, nogil=True, fastmath=True)
def _dot(a, i, b, j, region):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for k in range(a.shape[2]):
        total += to_float32(a[i, region, k]) * to_float32(b[j, region, k])
    return total


@njit(cache=True, inline="always")
def _cosine(a, i, b, j, region, code):  # type: ignore[no-untyped-def]
    return _dot(a, i, b, j, region) if code == _BOTH_PRESENT else (_ZERO if code >= _ZERO else NONE)


@njit(cache=True, nogil=True)
def score_of_pair(kind, a, code_a, i, b, code_b, j, weights_q):  # type: ignore[no-untyped-def]
    """Score of two garments in float32, as ``psnet.similarity`` has it up to rounding.

    Args:
        a, b: (n, 5, d) uint16; i, j: the garments. code_a, code_b: (5, n), code_a as the one that asks.
        weights_q: (16, n) of the side that asks.
    """
    v0 = _cosine(a, i, b, j, 0, code_a[0, i] + code_b[0, j])
    v1 = _cosine(a, i, b, j, 1, code_a[1, i] + code_b[1, j])
    v2 = _cosine(a, i, b, j, 2, code_a[2, i] + code_b[2, j])
    v3 = _cosine(a, i, b, j, 3, code_a[3, i] + code_b[3, j])
    v4 = _cosine(a, i, b, j, 4, code_a[4, i] + code_b[4, j])
    if kind == SAME_WEIGHTS:
        return _mean_of_best_three(v0, v1, v2, v3, v4)
    return _weighted(kind, v0, v1, v2, v3, v4, _sixteen(weights_q, i))


@njit(cache=True, nogil=True)
def standing(score, normalised, count, cuts):  # type: ignore[no-untyped-def]
    """What a pair of pictures is worth, and whether it reaches the thresholds.

    Args:
        score, normalised: float32 of the pairs of their garments, rounded; the first ``count`` are meant.

    Returns:
        the greatest normalised score, one of NOT_REACHED, PERHAPS_REACHED, SURELY_REACHED.
    """
    value = normalised[0]
    for g in range(1, count):
        value = _greater(value, normalised[g])
    possible, doubtful = False, False
    for g in range(count):
        # Of several garments those that may turn out to rank first count.
        if normalised[g] >= value - cuts.slack:
            possible |= score[g] >= cuts.threshold - cuts.margin and normalised[g] >= cuts.least - cuts.slack
            doubtful |= score[g] < cuts.threshold + cuts.margin or normalised[g] < cuts.least + cuts.slack
    return value, (NOT_REACHED if not possible else PERHAPS_REACHED if doubtful else SURELY_REACHED)


@njit(cache=True, nogil=True)
def push(heaps, row, value):  # type: ignore[no-untyped-def]
    """Put a value into one of the binary heaps, (m, size), of the greatest so far, the least first."""
    if not value > heaps[row, 0]:
        return
    place, size = 0, heaps.shape[1]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and heaps[row, child + 1] < heaps[row, child]:
            child += 1
        if heaps[row, child] >= value:
            break
        heaps[row, place] = heaps[row, child]
        place = child
    heaps[row, place] = value


@njit(cache=True, nogil=True)
def push_all(heaps, query, value):  # type: ignore[no-untyped-def]
    """Put (p,) values into the heaps, (m, size), of their queries."""
    for p in range(len(query)):
        push(heaps, query[p], value[p])


@njit(cache=True, nogil=True)
def kth_lower_bounds(  # type: ignore[no-untyped-def]
    scores, k, error_q, rest_q, half_q, number_q, error_x, rest_x, half_x, number_x, cuts, bounds
):
    """What the k-th best normalised score of each row is at least.

    Args:
        scores: (rows, columns) float32 in eight bits; bounds instead afterwards. Per side: error, rest, half
            (of a level), number (of the picture), one-dimensional.
        bounds: (rows,) float32, the result.
    """
    flat, bend, slope, extra = cuts.flat, cuts.bend, cuts.slope, cuts.extra
    for i in range(scores.shape[0]):
        line, error, rest, half = scores[i], error_q[i], rest_q[i], half_q[i]
        for j in range(len(line)):
            level = half + half_x[j]
            off = (error + error_x[j]) * _lesser(flat, bend + slope * line[j]) + (rest * rest_x[j] + extra)
            line[j] = (line[j] - off - level) / _greater(_ONE - level, _LEAST_ROOM)
        heap = np.full((1, k), -np.inf, np.float32)
        for j in range(len(line)):
            if line[j] > heap[0, 0] and number_x[j] != number_q[i]:  # no picture is its own partner
                push(heap, 0, line[j])
        bounds[i] = heap[0, 0]


# Below, arrays are named one by one: handing a ``Side`` on would count references to all of its arrays, which
# takes longer than the work.


@njit(cache=True, nogil=True)
def _raise_cut(known, low, heap, starts, slack, p, cut):  # type: ignore[no-untyped-def]
    value = _greater(known[p], _greater(low[p, 0], heap[p, 0])) - slack
    for garment in range(starts[p], starts[p + 1]):
        cut[garment] = value
    return value


@njit(cache=True, nogil=True)
def collect(  # type: ignore[no-untyped-def]
    kind, rows, columns, planes, first_row, first_column,
    scale_q, error_q, rest_q, scale_x, error_x, rest_x, cuts, marks, words, held,
):  # fmt: skip
    """Gather the marked pairs of a tile, picture by picture, less those that others of the tile have beaten.

    Args:
        rows, columns: ``Side``; they may be the same one. planes, ..., rest_x: as ``mark`` had them for the
            garments as they are. marks: (rows, columns or more) uint8, 0 afterwards; words: the same, 8 at a
            time. held: ``Held``, with room for all pairs of the tile.

    Returns:
        how many are held now.
    """
    picture_q, starts_q, number_q = rows.picture, rows.starts, rows.number
    code_q, weights_q, half_q = rows.code_query, rows.weights, rows.half
    known_q, low_q, heap_q, cut_q = rows.known, rows.low, rows.heap, rows.cut
    picture_x, starts_x, number_x = columns.picture, columns.starts, columns.number
    code_x, half_x = columns.code, columns.half
    known_x, low_x, heap_x, cut_x = columns.known, columns.low, columns.heap, columns.cut
    held_row, held_column, held_upper, held_bits = held.row, held.column, held.upper, held.bits
    slack, flat, bend, slope, extra = cuts.slack, cuts.flat, cuts.bend, cuts.slope, cuts.extra
    count = 0
    for row in range(marks.shape[0]):
        for word in range(words.shape[1]):
            if words[row, word] == 0:
                continue
            for column in range(8 * word, 8 * word + 8):
                if marks[row, column] == 0:
                    continue
                p, x = picture_q[first_row + row], picture_x[first_column + column]
                bits = np.uint8(0)
                upper, lower, score = NONE, NONE, NONE
                for i in range(starts_q[p], starts_q[p + 1]):
                    at = i - first_row
                    for j in range(starts_x[x], starts_x[x + 1]):
                        to = j - first_column
                        bits |= marks[at, to]
                        marks[at, to] = 0
                        v0 = _coarse(planes, 0, at, to, scale_q, code_q, i, scale_x, code_x, j)
                        v1 = _coarse(planes, 1, at, to, scale_q, code_q, i, scale_x, code_x, j)
                        v2 = _coarse(planes, 2, at, to, scale_q, code_q, i, scale_x, code_x, j)
                        v3 = _coarse(planes, 3, at, to, scale_q, code_q, i, scale_x, code_x, j)
                        v4 = _coarse(planes, 4, at, to, scale_q, code_q, i, scale_x, code_x, j)
                        if kind == SAME_WEIGHTS:
                            middle = _mean_of_best_three(v0, v1, v2, v3, v4)
                        else:
                            middle = _weighted(kind, v0, v1, v2, v3, v4, _sixteen(weights_q, i))
                        error = (error_q[i] + error_x[j]) * _lesser(flat, bend + slope * middle)
                        error += rest_q[i] * rest_x[j] + extra
                        level = half_q[i] + half_x[j]
                        room = _greater(_ONE - level, _LEAST_ROOM)
                        upper = _greater(upper, (middle + error - level) / room)
                        lower = _greater(lower, (middle - error - level) / room)
                        score = _greater(score, middle + error)
                if number_q[p] == number_x[x]:  # no picture is its own partner
                    continue
                if score >= cuts.threshold and upper >= cuts.least - slack:
                    bits |= _REACHING
                if bits & _TO_ROW:
                    push(low_q, p, lower)
                    cut = _raise_cut(known_q, low_q, heap_q, starts_q, slack, p, cut_q)
                    if upper < cut and not bits & _REACHING:
                        bits &= _NOT_FORWARD
                if bits & _TO_COLUMN:
                    push(low_x, x, lower)
                    cut = _raise_cut(known_x, low_x, heap_x, starts_x, slack, x, cut_x)
                    if upper < cut and not bits & _REACHING:
                        bits &= _NOT_BACKWARD
                if bits & _ANY:
                    held_row[count], held_column[count] = p, x
                    held_upper[count], held_bits[count] = upper, bits
                    count += 1
    return count


@njit(cache=True, inline="always")
def _still(bits, upper, cut_q, cut_x):  # type: ignore[no-untyped-def]
    """The bits of a held pair, less what others have beaten meanwhile."""
    if bits & _REACHING:
        return bits
    forward = bits & (_ALL if upper >= cut_q else _NOT_FORWARD)
    return forward & (_ALL if upper >= cut_x else _NOT_BACKWARD)


@njit(cache=True, nogil=True)
def refine(kind, mirrored, rows, columns, held, ahead, cuts, to_rows, to_columns):  # type: ignore[no-untyped-def]
    """Score held pairs in float32, less those beaten meanwhile, and note those that may matter.

    Args:
        mirrored: compare flipped pictures as well. rows, columns: ``Side``; they may be the same one.
        held: ``Held``, used up. ahead: those whose upper bound stands so far above what they have to beat go
            first; it matters for speed alone.
        to_rows, to_columns: ``Found``, with room for all that are held.

    Returns:
        pairs noted for the rows and for the columns, pairs left out for the rows and for the columns.
    """
    features_q, mirrored_q, starts_q, half_q = rows.features, rows.mirrored, rows.starts, rows.half
    query_q, turned_q, weights_q = rows.code_query, rows.code_mirrored, rows.weights
    known_q, low_q, heap_q, cut_q, limit_q = rows.known, rows.low, rows.heap, rows.cut, rows.limit
    features_x, mirrored_x, starts_x, half_x = (
        columns.features,
        columns.mirrored,
        columns.starts,
        columns.half,
    )
    code_x, query_x, turned_x, weights_x = (
        columns.code,
        columns.code_query,
        columns.code_mirrored,
        columns.weights,
    )
    known_x, low_x, heap_x, cut_x, limit_x = (
        columns.known,
        columns.low,
        columns.heap,
        columns.cut,
        columns.limit,
    )
    held_row, held_column, held_upper, held_bits = held.row, held.column, held.upper, held.bits
    query_f, match_f, noted_f, reach_f = to_rows.query, to_rows.match, to_rows.value, to_rows.reach
    query_b, match_b, noted_b, reach_b = (
        to_columns.query,
        to_columns.match,
        to_columns.value,
        to_columns.reach,
    )
    slack = cuts.slack
    count_f = count_b = left_f = left_b = 0
    size = 1
    score_f, score_b = np.empty(size, np.float32), np.empty(size, np.float32)
    value_f, value_b = np.empty(size, np.float32), np.empty(size, np.float32)
    for turn in range(2 * len(held_row)):
        h = turn % len(held_row)
        p, x = held_row[h], held_column[h]
        row_start, row_stop, column_start, column_stop = (
            starts_q[p],
            starts_q[p + 1],
            starts_x[x],
            starts_x[x + 1],
        )
        bits = _still(held_bits[h], held_upper[h], cut_q[row_start], cut_x[column_start])
        if not bits & _ANY:
            continue
        # First those that others will hardly beat: what they are worth spares a look at many others.
        least = held_upper[h] - ahead
        if turn < len(held_row) and least < cut_q[row_start] and least < cut_x[column_start]:
            continue
        held_bits[h] = 0
        pairs = (row_stop - row_start) * (column_stop - column_start)
        if pairs > size:
            size = pairs
            score_f, score_b = np.empty(size, np.float32), np.empty(size, np.float32)
            value_f, value_b = np.empty(size, np.float32), np.empty(size, np.float32)
        g = 0
        for i in range(row_start, row_stop):
            for j in range(column_start, column_stop):
                score = score_of_pair(kind, features_q, query_q, i, features_x, code_x, j, weights_q)
                score_f[g] = score_b[g] = score
                if mirrored and bits & _TO_ROW:
                    turned = score_of_pair(kind, features_q, query_q, i, mirrored_x, turned_x, j, weights_q)
                    score_f[g] = _greater(turned, score)
                if mirrored and bits & _TO_COLUMN:
                    turned = score_of_pair(kind, features_x, query_x, j, mirrored_q, turned_q, i, weights_x)
                    score_b[g] = _greater(turned, score)
                level = half_q[i] + half_x[j]
                room = _greater(_ONE - level, _LEAST_ROOM)
                value_f[g] = (score_f[g] - level) / room
                value_b[g] = (score_b[g] - level) / room
                g += 1
        if bits & _TO_ROW:
            value, reach = standing(score_f, value_f, pairs, cuts)
            push(heap_q, p, value)
            cut = _raise_cut(known_q, low_q, heap_q, starts_q, slack, p, cut_q)
            surely = reach == SURELY_REACHED
            if value >= cut or reach == PERHAPS_REACHED or (surely and value >= limit_q[p] - slack):
                query_f[count_f], match_f[count_f], noted_f[count_f], reach_f[count_f] = p, x, value, reach
                count_f += 1
            elif surely:
                left_f += 1
        if bits & _TO_COLUMN:
            value, reach = standing(score_b, value_b, pairs, cuts)
            push(heap_x, x, value)
            cut = _raise_cut(known_x, low_x, heap_x, starts_x, slack, x, cut_x)
            surely = reach == SURELY_REACHED
            if value >= cut or reach == PERHAPS_REACHED or (surely and value >= limit_x[x] - slack):
                query_b[count_b], match_b[count_b], noted_b[count_b], reach_b[count_b] = x, p, value, reach
                count_b += 1
            elif surely:
                left_b += 1
    return count_f, count_b, left_f, left_b
