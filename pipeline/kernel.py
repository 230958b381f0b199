"""The inner loop of the pair search: two blocks of garments in, the pairs worth keeping out.

Three steps. Products of eight-bit codes bound every pair's score from above (``pipeline.quantise``), and a
pair whose bound stays below what it would have to reach is done with (``pipeline.sift``). The few others are
scored in float32, which is off by rounding; the net is cast wider by that much (MARGIN), and
what it holds are candidates (``best_pairs``, ``prune``). When all blocks have been seen, those that are left
are compared one by one (``rescore``, ``psnet.similarity.compare``), and only that score is kept, so that the
result does not depend on how garments were put into blocks.

Why eight bits: exact in int32 (``pipeline.products``), and multiplied nine times as fast as float32.
``benchmarks/SCALING.md`` has what else was tried.

Pairs are ranked by their normalised score (``psnet.similarity.normalise``), which is worth 3 to 4 points of
mAP on photographs over the score itself. Where all levels are 0 it *is* the score, and that is how pairs are
ranked by their score.

Pairs are pairs of pictures: of their garments' pairs the one that ranks first stands for the two pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from pipeline.half import rows_as_float32
from pipeline.products import largest_code, multiply
from pipeline.quantise import Basis, Quantised, quantise, tangent
from pipeline.sift import (
    BACKWARD,
    BACKWARD_TURNED,
    BEST_REGIONS,
    FORWARD,
    FORWARD_TURNED,
    NOT_REACHED,
    SAME_WEIGHTS,
    SURELY_REACHED,
    WEIGHTED,
    Cuts,
    Found,
    Held,
    Side,
    coarse_scores,
    collect,
    kth_lower_bounds,
    mark,
    presence_codes,
    push_all,
    refine,
    weight_table,
)
from psnet.regions import NUM_REGIONS
from psnet.similarity import (
    compare,
    mirrored_presence,
    normalise,
    room_above,
)

MARGIN = np.float32(2e-5)
"""Above the rounding of a float32 product of two unit vectors of 256 numbers (about 1e-6), for either order
of additions, with room for longer vectors, and twice over: both sides of a comparison may be rounded."""

# A tile's five planes of int32 (10 MB) are reduced while they are in the third-level cache;
# smaller ones multiply slower, larger ones learn later what a pair has to beat.
_TILE_ROWS = 1024
_TILE_COLUMNS = 512
# Pairs compared at once; three gathered arrays of (pairs, 5, d) float32.
_RESCORED_AT_ONCE = 1024
# Pictures that a query meets first, see ``_seed``.
_SEEDS = 1024
# Candidates held before those that cannot win are thrown out, 13 bytes each.
_HELD_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Block:
    """The n garments of m pictures, picture after picture.

    ``features``, ``mirrored``: (n, 5, d) float16, in memory or memory-mapped, zero where not present;
    ``presence``: (n, 5) uint8; ``weights``: (n, 5) float32 of each garment's group; ``level``: (n,) float32,
    what each reaches with anything (``background``), or 0 to rank by the score alone; ``garment``: (n,) index
    within its picture; ``starts``: (m,) first garment of each picture; ``picture``: (m,) ascending numbers of
    the pictures; ``basis``: what the eight-bit codes are made in, the same one for blocks that meet; for
    speed alone.
    """

    features: np.ndarray
    mirrored: np.ndarray
    presence: np.ndarray
    weights: np.ndarray
    level: np.ndarray
    garment: np.ndarray
    starts: np.ndarray
    picture: np.ndarray
    basis: Basis | None = None

    def __post_init__(self) -> None:
        for name in ("features", "mirrored"):
            # Compiled code reads the bytes, and would read on beyond those of another type.
            if getattr(self, name).dtype != np.float16:
                raise ValueError(f"{name} must be float16, not {getattr(self, name).dtype}")

    def __len__(self) -> int:
        """m, the number of pictures."""
        return len(self.starts)

    @cached_property
    def codes(self) -> Quantised:
        """Of the features."""
        return quantise(self.features, self.basis, largest_code())

    @cached_property
    def mirrored_codes(self) -> Quantised:
        """Of the mirrored features."""
        return quantise(self.mirrored, self.basis, largest_code())


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
    """What is known from other blocks, per query, (m,) float32, -inf where fewer are known. Pairs that lie
    below by more than rounding are of no use.

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
class Candidates:
    """Pairs of pictures that may be among those wanted, arrays of one length p.

    ``query``, ``match``: int32 picture numbers (positions, inside this module); ``value``: float32 normalised
    score, off by rounding; ``reach``: uint8, whether they reach the thresholds, as ``pipeline.sift`` has it.
    """

    query: np.ndarray
    match: np.ndarray
    value: np.ndarray
    reach: np.ndarray

    def __len__(self) -> int:
        return len(self.query)

    @property
    def surely(self) -> np.ndarray:
        """(p,) bool: which reach the thresholds, however they were rounded."""
        return self.reach == SURELY_REACHED

    def take(self, rows: np.ndarray) -> Candidates:
        return Candidates(*(value[rows] for value in vars(self).values()))

    @classmethod
    def joined(cls, parts: Sequence[Candidates]) -> Candidates:
        """One after the other."""
        none = (np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.uint8))
        lists = zip(none, *(vars(part).values() for part in parts), strict=True)
        return cls(*(np.concatenate(arrays) for arrays in lists))


@dataclass(frozen=True)
class Kept:
    """What a block holds for the queries of one side. ``left_out``: pairs that reach the thresholds and
    exceed the limit."""

    candidates: Candidates
    left_out: int


def rounding_slack(query_level: np.ndarray, match_level: np.ndarray) -> float:
    """What normalised scores may be off by, twice over, between garments of these levels.

    The normalised score (s - L) / room rises with s by 1 / room, and L and room are the very numbers that
    ``rescore`` uses. A score s may be off by e, 2 e <= MARGIN; then it is off by e / room at most (rounding
    its subtraction and division adds 2e-7 / room, for which MARGIN has room), so by half of MARGIN over the
    least room of any pair.
    """
    half_q, half_x = query_level / 2, match_level / 2  # the halves' sum is the mean, bit by bit
    return float(MARGIN / room_above(half_q.max(initial=-1) + half_x.max(initial=-1)))


def best_pairs(
    rows: Block,
    columns: Block,
    wanted: Wanted,
    row_floors: Floors,
    column_floors: Floors | None = None,
    *,
    slack: float,
    scoring: str = "best_regions",
    mirrored: bool = True,
) -> tuple[Kept, Kept | None]:
    """Candidates for the pictures of ``rows`` as queries and, given ``column_floors``, for those of
    ``columns``.

    Args:
        row_floors, column_floors: what the queries know already. Without ``column_floors`` the second result
            is None; where ``columns`` is ``rows``, the first holds all pairs of the block.
        slack: ``rounding_slack`` of all levels that the floors were made with.
        scoring: a name of ``psnet.similarity.SCORINGS``. mirrored: compare flipped pictures as well.

    Nothing wanted is missed. A candidate's value is off by slack / 2 at most. The greatest of several
    garments' values, and the k-th greatest of a query's, move no further than their members do. So what lies
    slack below a cut that was made of such values, or of exact ones, lies below the exact cut; and a pair is
    not even scored in float32 if the bound of its eight-bit score lies that low. Only pairs that surely reach
    the thresholds make the limit's cut: others may not be listed at all.

    The count is exact as well: a pair beyond the limit of which rounding hides whether it reaches the
    thresholds is handed on, and counted once it is compared.

    Memory O(codes + pairs kept).
    """
    kind = kind_of(scoring, np.concatenate([rows.weights, columns.weights]))

    def search(left: Block, right: Block, known: Floors, of_right: Floors | None) -> tuple[Kept, Kept | None]:
        found = _BlockSearch(left, right, wanted, known, of_right, slack, kind, mirrored).run()
        return found.to_rows.kept(), None if of_right is None else found.to_columns.kept()

    return both_sides(search, kind, rows, columns, row_floors, column_floors)


def both_sides(
    search: Callable[[Block, Block, Floors, Floors | None], tuple[Kept, Kept | None]],
    kind: int,
    rows: Block,
    columns: Block,
    row_floors: Floors,
    column_floors: Floors | None,
) -> tuple[Kept, Kept | None]:
    """What ``search`` finds for both blocks as queries, at once where a pair scores the same for both.

    Args:
        search: takes the other arguments and answers as ``best_pairs`` does. kind: ``kind_of`` both.
    """
    if kind != SAME_WEIGHTS and columns is not rows and column_floors is not None:
        # The two sides score a pair differently: each asks for itself.
        return search(rows, columns, row_floors, None)[0], search(columns, rows, column_floors, None)[0]
    return search(rows, columns, row_floors, column_floors)


def best_of(
    rows: Block,
    columns: Block,
    query: np.ndarray,
    match: np.ndarray,
    wanted: Wanted,
    *,
    slack: float,
    scoring: str = "best_regions",
    mirrored: bool = True,
) -> Kept:
    """As ``best_pairs`` for the rows, among pairs that somebody else has chosen, in float32 from the start.

    Args:
        query, match: (p,) positions of the pictures in ``rows`` and ``columns``.
    """
    none = np.full(len(rows), -np.inf, np.float32)
    beyond = np.full(len(columns), np.inf, np.float32)
    to_rows = Asking(rows, wanted, Floors(none, none), slack)
    to_columns = Asking(columns, replace(wanted, best_k=1), Floors(beyond, beyond), slack)
    thresholds = wanted.threshold, wanted.normalised_threshold, MARGIN, slack
    cuts = Cuts(*(np.float32(number) for number in (*thresholds, 0, 0, 0, 0)))
    held = Held(
        query.astype(np.int32),
        match.astype(np.int32),
        np.full(len(query), np.inf, np.float32),
        np.full(len(query), FORWARD | FORWARD_TURNED, np.uint8),
    )
    found = [Found(*(np.empty_like(values) for values in held)) for _ in range(2)]
    kind = kind_of(scoring, np.concatenate([rows.weights, columns.weights]))
    count, _, left_out, _ = refine(
        kind, mirrored, to_rows.side, to_columns.side, held, np.float32(0), cuts, *found
    )
    to_rows.add(found[0], count, columns, left_out)
    return to_rows.kept()


def kind_of(scoring: str, weights: np.ndarray) -> int:
    """How the compiled loops have to score queries of these weights, (n, 5): see ``pipeline.sift``."""
    if scoring == "weighted":
        return WEIGHTED
    alike = bool((weights == weights.ravel()[:1]).all()) and bool((weights > 0).all())
    return SAME_WEIGHTS if alike else BEST_REGIONS


class Asking:
    """One block as the side that asks: what it has found."""

    def __init__(self, block: Block, wanted: Wanted, floors: Floors, slack: float) -> None:
        self._block, self._wanted, self._slack = block, wanted, slack
        self._limit = floors.limit.astype(np.float32)
        self._parts: list[Candidates] = []
        self._held = self._left_out = 0
        stops = np.append(block.starts, len(block.garment))
        self.side = Side(
            features=block.features.view(np.uint16),
            mirrored=block.mirrored.view(np.uint16),
            code=presence_codes(block.presence),
            code_mirrored=presence_codes(mirrored_presence(block.presence)),
            code_query=presence_codes(block.presence, block.weights),
            weights=weight_table(block.weights),
            half=(block.level / 2).astype(np.float32),
            picture=np.repeat(np.arange(len(block)), np.diff(stops)),
            starts=stops.astype(np.int64),
            number=block.picture.astype(np.int64),
            cut=np.repeat(floors.best_k - np.float32(slack), np.diff(stops)).astype(np.float32),
            low=np.full((len(block), wanted.best_k), -np.inf, np.float32),
            heap=np.full((len(block), wanted.best_k), -np.inf, np.float32),
            known=floors.best_k.astype(np.float32),
            limit=self._limit,
        )

    def add(self, found: Found, count: int, others: Block, left_out: int) -> None:
        """Take in the first ``count`` pairs found."""
        query, match, value, reach = (values[:count].copy() for values in found)
        self._parts.append(Candidates(query, others.picture[match].astype(np.int32), value, reach))
        self._left_out += left_out
        self._held += count
        if self._held > _HELD_AT_ONCE:
            self._prune()

    def _prune(self) -> None:
        side = self.side
        best_k = np.maximum(side.known, np.maximum(side.low[:, 0], side.heap[:, 0]))
        floors = Floors(best_k, self._limit)
        held, left_out = prune(Candidates.joined(self._parts), self._wanted, floors, self._slack)
        self._parts, self._held = [held], len(held)
        self._left_out += left_out
        # In place: the compiled loops look at the same array.
        surely = held.surely
        known = _kth_of_each(held.query[surely], held.value[surely], self._wanted.limit, len(self._block))
        np.maximum(self._limit, known, out=self._limit)

    def kept(self) -> Kept:
        self._prune()
        (held,) = self._parts
        return Kept(replace(held, query=self._block.picture[held.query].astype(np.int32)), self._left_out)


class _BlockSearch:
    """Two blocks, tile by tile."""

    def __init__(
        self,
        rows: Block,
        columns: Block,
        wanted: Wanted,
        row_floors: Floors,
        column_floors: Floors | None,
        slack: float,
        kind: int,
        mirrored: bool,
    ) -> None:
        self._rows, self._columns, self._kind, self._mirrored = rows, columns, kind, mirrored
        self._same = columns is rows
        if rows.basis != columns.basis:
            raise ValueError("blocks of two bases cannot be compared")
        self._both = column_floors is not None or (self._same and kind == SAME_WEIGHTS)
        self.to_rows = self.to_columns = Asking(rows, wanted, row_floors, slack)
        if not self._same:
            none = np.full(len(columns), np.inf, np.float32)
            self.to_columns = Asking(columns, wanted, column_floors or Floors(none, none), slack)
        codes = [rows.codes, columns.codes]
        if mirrored:
            codes += [rows.mirrored_codes, columns.mirrored_codes]
        norm = max(one.norm for one in codes)
        error = max(one.error.max(initial=0) for one in codes)
        # Rounding of all other numbers stays far below the margin.
        extra = error**2 + MARGIN + max(one.extra() for one in codes)
        numbers = (wanted.threshold, wanted.normalised_threshold, MARGIN, slack, norm, *tangent(norm))
        self._cuts = Cuts(*(np.float32(number) for number in (*numbers, extra)))
        to_rows, to_columns = self.to_rows.side, self.to_columns.side
        self._left = self._part(rows.codes, to_rows.code_query)
        self._right = self._part(columns.codes, to_columns.code)
        if mirrored:
            self._left_turned = self._part(rows.mirrored_codes, to_rows.code_mirrored)
            self._right_turned = self._part(columns.mirrored_codes, to_columns.code_mirrored)
        # Twice the bound of a usual pair: so far apart are the most and the least that it may be worth.
        usual = self._left.error.mean() + self._right.error.mean()
        self._ahead = np.float32(2 * (usual + self._left.rest.mean() * self._right.rest.mean()))
        height = max((stop - start for start, stop in tiles(rows, _TILE_ROWS)), default=0)
        width = max((stop - start for start, stop in tiles(columns, _TILE_COLUMNS)), default=0)
        # Runs that begin elsewhere may be as long as two of them.
        width = 2 * max(width, height) if self._same else width
        self._products = torch.empty(NUM_REGIONS * height * width, dtype=torch.int32)
        self._marks = np.zeros(height * (width + 7), np.uint8)
        self._turned = torch.empty_like(self._products) if mirrored else self._products
        room = height * width
        self._tile_pairs = Held(
            np.empty(room, np.int32),
            np.empty(room, np.int32),
            np.empty(room, np.float32),
            np.empty(room, np.uint8),
        )
        self._held: list[Held] = []

    def _part(self, codes: Quantised, code: np.ndarray) -> _Part:
        return _Part(torch.from_numpy(codes.codes), codes.scale, codes.error.max(0), codes.rest.max(0), code)

    def _seed(self) -> None:
        """Find out what the rows' pairs have to beat, as long as nothing is known: their best among some
        pictures. Otherwise the first tiles would hold nearly all of their pairs."""
        rows, columns = self.to_rows.side, self.to_columns.side
        best_k, seeds = rows.heap.shape[1], min(_SEEDS, len(self._columns) // 5)
        if not (rows.known == -np.inf).any() or seeds < 4 * best_k:
            return
        step = len(self._columns) // seeds
        number, chosen = columns.number[::step][:seeds], columns.starts[:-1:step][:seeds]
        left, right = self._left, self._right
        codes, scale = right.codes[:, torch.from_numpy(chosen)], right.scale[:, chosen]
        code, half = right.code[:, chosen], columns.half[chosen]
        error, rest = right.error[chosen], right.rest[chosen]
        planes = torch.empty(NUM_REGIONS * _TILE_ROWS * seeds, dtype=torch.int32)
        for start in range(0, len(self._rows.garment), _TILE_ROWS):
            at = slice(start, start + _TILE_ROWS)
            picture = rows.picture[at]
            shape = NUM_REGIONS, len(picture), len(chosen)
            room = planes[: shape[0] * shape[1] * shape[2]].view(shape)
            products = self._multiply(left.codes[:, at], codes, room)
            scores = np.empty(shape[1:], np.float32)
            coarse_scores(
                self._kind, products, start, left.scale, left.code, rows.weights, scale, code, scores
            )  # fmt: skip
            bounds = np.empty(len(picture), np.float32)
            kth_lower_bounds(
                scores, best_k, left.error[at], left.rest[at], rows.half[at], rows.number[picture],
                error, rest, half, number, self._cuts, bounds,
            )  # fmt: skip
            # What one garment of a picture reaches, the picture reaches.
            np.maximum.at(rows.known, picture, bounds)
        rows.cut[:] = rows.known[rows.picture] - self._cuts.slack

    def run(self) -> _BlockSearch:
        self._seed()
        for start, stop in tiles(self._rows, _TILE_ROWS):
            if self._same and self._both:
                # Half of the tiles hold every pair; on the diagonal both of its orders stand in the tile.
                self._tile(start, stop, start, stop, both=False)
                for first, last in tiles(self._columns, _TILE_COLUMNS, stop):
                    self._tile(start, stop, first, last, both=True)
            else:
                for first, last in tiles(self._columns, _TILE_COLUMNS):
                    self._tile(start, stop, first, last, both=self._both)
            self._refine()
        return self

    def _tile(self, start: int, stop: int, first: int, last: int, *, both: bool) -> None:
        height, width = stop - start, last - first
        padded = -(-width // 8) * 8
        marks = self._marks[: height * padded].reshape(height, padded)
        at, none = (start, stop, first, last), np.uint8(0)
        left, right = self._left, self._right
        planes = self._mark(left, right, at, FORWARD, BACKWARD if both else none, marks, self._products)
        if self._mirrored:
            self._mark(left, self._right_turned, at, FORWARD_TURNED, none, marks, self._turned)
            if both:
                self._mark(self._left_turned, right, at, none, BACKWARD_TURNED, marks, self._turned)
        count = collect(
            self._kind, self.to_rows.side, self.to_columns.side, planes, start, first,
            left.scale, left.error, left.rest, right.scale, right.error, right.rest,
            self._cuts, marks, marks.view(np.uint64), self._tile_pairs,
        )  # fmt: skip
        self._held.append(Held(*(values[:count].copy() for values in self._tile_pairs)))

    def _refine(self) -> None:
        held = Held(*(np.concatenate(values) for values in zip(*self._held, strict=True)))
        self._held = []
        found = [Found(*(np.empty_like(values) for values in held)) for _ in range(2)]
        rows, columns = self.to_rows, self.to_columns
        to_rows, to_columns, left_f, left_b = refine(
            self._kind, self._mirrored, rows.side, columns.side, held, self._ahead, self._cuts, *found
        )
        rows.add(found[0], to_rows, self._columns, left_f)
        columns.add(found[1], to_columns, self._rows, left_b)

    def _mark(
        self,
        left: _Part,
        right: _Part,
        at: tuple[int, int, int, int],
        forward: np.uint8,
        backward: np.uint8,
        marks: np.ndarray,
        products: torch.Tensor,
    ) -> np.ndarray:
        """The products, (5, rows, columns) int32."""
        start, stop, first, last = at
        shape = NUM_REGIONS, stop - start, last - first
        room = products[: shape[0] * shape[1] * shape[2]].view(shape)
        planes = self._multiply(left.codes[:, start:stop], right.codes[:, first:last], room)
        rows, columns = self.to_rows.side, self.to_columns.side
        mark(
            self._kind, planes, start, first,
            left.scale, left.code, left.error, left.rest, rows.half, rows.cut, rows.weights,
            right.scale, right.code, right.error, right.rest, columns.half, columns.cut,
            self._cuts, forward, backward, marks,
        )  # fmt: skip
        return planes

    @staticmethod
    def _multiply(left: torch.Tensor, right: torch.Tensor, planes: torch.Tensor) -> np.ndarray:
        """Products of codes, (5, rows, k) with (5, columns, k), in ``planes``, (5, rows, columns) int32."""
        for region in range(NUM_REGIONS):
            multiply(left[region], right[region], planes[region])
        return planes.numpy()


class _Part(NamedTuple):
    """n garments. ``codes``: (5, n, k) int8; ``scale``, ``code``: (5, n), ``error``, ``rest``: (n,) float32,
    as in ``pipeline.sift.mark``."""

    codes: torch.Tensor
    scale: np.ndarray
    error: np.ndarray
    rest: np.ndarray
    code: np.ndarray


def tiles(block: Block, size: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """Runs of ``size`` garments or fewer that end between pictures, from ``start`` on; a picture of more
    garments is a run of its own."""
    stops = np.append(block.starts[1:], len(block.garment))
    while start < len(block.garment):
        last = max(
            np.searchsorted(stops, start + size, side="right") - 1,
            np.searchsorted(stops, start, side="right"),
        )
        yield start, int(stops[last])
        start = int(stops[last])


def prune(candidates: Candidates, wanted: Wanted, floors: Floors, slack: float) -> tuple[Candidates, int]:
    """Throw out what cannot win, and count what of it the limit leaves out, see ``best_pairs``.

    Args:
        candidates: ``query`` positions in ``floors``.
    """
    query, value = candidates.query, candidates.value
    count = len(floors.best_k)
    best_k = np.maximum(floors.best_k, _kth_of_each(query, value, wanted.best_k, count)) - slack
    surely = candidates.surely
    known = _kth_of_each(query[surely], value[surely], wanted.limit, count)
    limit = np.maximum(known, floors.limit) - slack
    reached = candidates.reach != NOT_REACHED
    within = value >= limit[query]
    keep = (value >= best_k[query]) | (reached & (within | ~surely))
    return candidates.take(keep), int((surely & ~keep).sum())


def _kth_of_each(query: np.ndarray, value: np.ndarray, k: int, count: int) -> np.ndarray:
    """(count,) k-th greatest of each query's values, -inf where there are fewer."""
    heaps = np.full((count, k), -np.inf, np.float32)
    push_all(heaps, query, value)
    return heaps[:, 0]


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
                rows_as_float32(queries.features, qs),
                queries.presence[qs],
                rows_as_float32(others.features, xs),
                others.presence[xs],
                queries.weights[qs],
                mirrored_x=rows_as_float32(others.mirrored, xs) if mirrored else None,
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
