"""The inner loop of the pair search on a GPU: the answers of ``pipeline.kernel.best_pairs``, by torch.

    features of both blocks, float16, on the device
        ─▶ [a tile of both: 5 products] bounds of the scores, less than what they have to reach: done with
        ─▶ the others, picture by picture: float32 scores, and what their queries have to beat from now on

Features are stored as float16, so nothing is lost before they are multiplied. A product of two such numbers
has 22 bits and is exact in float32, in which tensor cores add; the sum is given back in float16. Let N be at
least the norm of every vector. In whatever order d products are added, each addition is off by at most one
unit in the last place of a float32 that is no greater than sum |x_i y_i| <= N² (Cauchy and Schwarz), 2^-23 N²
if it cuts off; tensor cores align a few terms at once before they add, which loses no more than that again.
Rounding the sum to float16 is off by 2^-11 of it at most, or by half the least float16, 2^-25. So

    |<x, y> - p| <= (d 2^-22 + 2^-11) N² + 2^-25                                                           (1)

0.00055 for unit vectors of 256 numbers, where eight-bit codes have 0.02. Half precision must not be added in:
``_exact_sums`` forbids it. In float32 (a CPU) no number is rounded to float16, and that term falls away.

A score is the greatest of weighted means of cosines (missing ones count as 0, exactly): it is off by no more
than a cosine can be, and the better of two scores (as it is, mirrored) by no more than either.

Memory O(tile + pairs kept + blocks).
"""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch

from pipeline.kernel import MARGIN, Asking, Block, Floors, Kept, Wanted, both_sides, kind_of, tiles
from pipeline.sift import (
    NONE,
    NOT_REACHED,
    NOTHING,
    PERHAPS_REACHED,
    SAME_WEIGHTS,
    SURELY_REACHED,
    WEIGHTED,
    Found,
)
from psnet.regions import NUM_REGIONS
from psnet.similarity import room_above

# Garments of a tile: five planes of float16 (168 MB), large enough to multiply at the card's speed.
_TILE_ROWS = 4096
_TILE_COLUMNS = 4096
# Pairs of garments scored at once: three gathered arrays of (pairs, 5, d) float32.
_RESCORED_AT_ONCE = 1 << 14
# Blocks that stay on the device: the next task has one of them, as a rule.
_BLOCKS_ON_DEVICE = 3
_NONE, _NOTHING = float(NONE), float(NOTHING)
_LEAST_ROOM = float(room_above(np.ones(1, np.float32))[0])


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
    device: str = "cuda",
    dtype: torch.dtype | None = None,
) -> tuple[Kept, Kept | None]:
    """As ``pipeline.kernel.best_pairs``: nothing wanted is missed, and the count is exact.

    Args:
        device: where to compute. dtype: of the products, float16 or float32; None: float16 on a GPU, float32
            elsewhere.
    """
    place = torch.device(device)
    kind = kind_of(scoring, np.concatenate([rows.weights, columns.weights]))
    chosen = dtype or (torch.float16 if place.type == "cuda" else torch.float32)

    def search(left: Block, right: Block, known: Floors, of_right: Floors | None) -> tuple[Kept, Kept | None]:
        found = _Search(left, right, wanted, known, of_right, slack, kind, mirrored, place, chosen).run()
        return found.to_rows.kept(), None if found.to_columns is None else found.to_columns.kept()

    return both_sides(search, kind, rows, columns, row_floors, column_floors)


@dataclass(frozen=True)
class _OnDevice:
    """A block's features and flipped features there: (5, n, d) each."""

    features: torch.Tensor
    mirrored: torch.Tensor


_on_device: OrderedDict[tuple[int, torch.device, torch.dtype], tuple[Block, _OnDevice]] = OrderedDict()


def _moved(block: Block, device: torch.device, dtype: torch.dtype) -> _OnDevice:
    key = id(block), device, dtype
    held = _on_device.pop(key, None)
    if held is None:
        both = (torch.tensor(values, device=device) for values in (block.features, block.mirrored))
        # The block itself is held as well, so that no other one can have its number.
        held = block, _OnDevice(*(values.to(dtype).transpose(0, 1).contiguous() for values in both))
    _on_device[key] = held
    while len(_on_device) > _BLOCKS_ON_DEVICE:
        _on_device.popitem(last=False)
    return held[1]


@contextlib.contextmanager
def _exact_sums() -> Iterator[None]:
    """Products of float16 are added in float32, and those of float32 are not rounded before."""
    settings = torch.backends.cuda.matmul
    names = ("allow_fp16_reduced_precision_reduction", "allow_fp16_accumulation", "allow_tf32")
    before = {name: getattr(settings, name) for name in names}
    try:
        for name in names:
            setattr(settings, name, False)
        yield
    finally:
        for name, value in before.items():
            setattr(settings, name, value)


class _Side:
    """A block as the side that asks, and what it has found: ``pipeline.kernel.Asking`` with its arrays on the
    device."""

    def __init__(
        self, block: Block, wanted: Wanted, floors: Floors, slack: float, at: torch.device, dtype: torch.dtype
    ) -> None:
        self.block, self.slack = block, slack
        self.asking = Asking(block, wanted, floors, slack)
        side = self.asking.side
        held = _moved(block, at, dtype)
        self.features, self.mirrored = held.features, held.mirrored

        def there(values: np.ndarray) -> torch.Tensor:
            return torch.tensor(values, device=at)

        self.code, self.code_mirrored = there(side.code), there(side.code_mirrored)
        self.code_query, self.weights, self.half = (
            there(side.code_query),
            there(side.weights),
            there(side.half),
        )
        self.picture, self.starts = there(side.picture), there(side.starts)
        self.number = there(side.number)
        self.known = there(side.known)
        self.best = torch.full((len(block), wanted.best_k), -torch.inf, device=at)
        """The best values of each picture, descending."""

    def cut(self, garments: slice) -> torch.Tensor:
        """What a normalised score of these garments has to reach, to be among the best of their pictures."""
        pictures = self.picture[garments]
        return torch.maximum(self.known[pictures], self.best[pictures, -1]) - self.slack

    def note(
        self,
        others: Block,
        query: torch.Tensor,
        match: torch.Tensor,
        value: torch.Tensor,
        reach: torch.Tensor,
    ) -> None:
        """Take in pairs of pictures with their float32 values."""
        self._learn(query, value)
        cut = torch.maximum(self.known[query], self.best[query, -1]) - self.slack
        use = (value >= cut) | (reach != NOT_REACHED)
        parts = (query[use].int(), match[use].int(), value[use], reach[use])
        found = Found(*(part.cpu().numpy() for part in parts))
        self.asking.add(found, len(found.query), others, left_out=0)

    def _learn(self, query: torch.Tensor, value: torch.Tensor) -> None:
        order = torch.argsort(value, descending=True, stable=True)
        order = order[torch.argsort(query[order], stable=True)]
        query, value = query[order], value[order]
        asked, place, count = torch.unique_consecutive(query, return_inverse=True, return_counts=True)
        rank = torch.arange(len(query), device=query.device) - (count.cumsum(0) - count)[place]
        first = rank < self.best.shape[1]
        fresh = torch.full((len(asked), self.best.shape[1]), -torch.inf, device=query.device)
        fresh[place[first], rank[first]] = value[first]
        both = torch.cat([self.best[asked], fresh], dim=1)
        self.best[asked] = torch.topk(both, self.best.shape[1], dim=1).values

    def kept(self) -> Kept:
        least = self.best[:, -1].cpu().numpy()
        # What the candidates are cut by once more: the least of a heap stands first.
        np.maximum(self.asking.side.heap[:, 0], least, out=self.asking.side.heap[:, 0])
        return self.asking.kept()


class _Search:
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
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._kind, self._mirrored, self._wanted = kind, mirrored, wanted
        self.to_rows = _Side(rows, wanted, row_floors, slack, device, dtype)
        self.to_columns: _Side | None = None
        if columns is rows:
            self._other = self.to_rows
        else:
            none = np.full(len(columns), np.inf, np.float32)
            self._other = _Side(columns, wanted, column_floors or Floors(none, none), slack, device, dtype)
            if column_floors is not None:
                self.to_columns = self._other
        sides = (self.to_rows, self._other)
        norms = [_norm(part) for side in sides for part in (side.features, side.mirrored)]
        dim = rows.features.shape[2]
        lost = dim * 2.0**-22 + (2.0**-11 if dtype == torch.float16 else 0.0)
        self._marks = _compiled_marks() if device.type == "cuda" else _marks
        self._off = lost * max(norms, default=0.0) ** 2 + 2.0**-25 + float(MARGIN)

    def run(self) -> _Search:
        with torch.inference_mode(), _exact_sums():
            row_tiles = list(tiles(self.to_rows.block, _TILE_ROWS))
            column_tiles = list(tiles(self._other.block, _TILE_COLUMNS))
            self._seed(row_tiles, column_tiles)
            for start, stop in row_tiles:
                for first, last in column_tiles:
                    self._tile(slice(start, stop), slice(first, last))
        return self

    def _seed(self, row_tiles: Sequence[tuple[int, int]], column_tiles: Sequence[tuple[int, int]]) -> None:
        """Where nothing is known, what the rows' pairs reach with a tile of columns at least: without it the
        first tiles would hold nearly all of their pairs. Likewise the columns with a tile of rows."""
        sides = [(self.to_rows, self._other, row_tiles, column_tiles[:1])]
        if self.to_columns is not None:
            sides.append((self.to_columns, self.to_rows, column_tiles, row_tiles[:1]))
        best_k = self._wanted.best_k
        for asking, other, asked, met in sides:
            if not (asking.known == -torch.inf).any():
                continue
            for first, last in met:
                at = slice(first, last)
                if last - first <= 4 * best_k:
                    continue
                for start, stop in asked:
                    garments = slice(start, stop)
                    planes = _products(asking.features[:, garments], other.features[:, at])
                    score = _scores(self._kind, self._met(asking, garments, other, at, planes))
                    level = asking.half[garments, None] + other.half[at]
                    least = (score - self._off - level) / _room(level)
                    own = asking.number[asking.picture[garments], None] == other.number[other.picture[at]]
                    # Of a partner's garments one is enough, or its picture would count several times.
                    again = torch.zeros(last - first, dtype=torch.bool, device=score.device)
                    again[1:] = other.picture[at][1:] == other.picture[at][:-1]
                    least.masked_fill_(own | again, -torch.inf)
                    kth = torch.topk(least, best_k, dim=1).values[:, -1]
                    # What one garment of a picture reaches, the picture reaches.
                    asking.known.scatter_reduce_(0, asking.picture[garments], kth, "amax")

    def _tile(self, garments: slice, at: slice) -> None:
        rows, columns = self.to_rows, self._other
        planes = _products(rows.features[:, garments], columns.features[:, at])
        row, column = self._marked(rows, garments, columns, at, planes)
        self._refine(rows, columns, row, column)
        if self.to_columns is not None:
            column, row = self._marked(columns, at, rows, garments, planes.transpose(1, 2))
            self._refine(columns, rows, column, row)

    def _marked(
        self, asking: _Side, garments: slice, other: _Side, at: slice, planes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Garments of both sides, (p,) each, whose pair may matter to the side that asks."""
        numbers = self._wanted.threshold, self._wanted.normalised_threshold, self._off
        marks = self._marks(
            self._kind,
            self._met(asking, garments, other, at, planes),
            (asking.half[garments], other.half[at]),
            (asking.number[asking.picture[garments]], other.number[other.picture[at]]),
            asking.cut(garments),
            torch.tensor(numbers, device=planes.device),
        )
        row, column = marks.nonzero(as_tuple=True)
        return row + garments.start, column + at.start

    def _met(self, asking: _Side, garments: slice, other: _Side, at: slice, planes: torch.Tensor) -> _Tile:
        turned = None
        if self._mirrored:
            turned = _products(asking.features[:, garments], other.mirrored[:, at])
        codes = asking.code_query[:, garments], other.code[:, at], other.code_mirrored[:, at]
        return _Tile(planes, turned, *codes, asking.weights[:, garments])

    def _refine(self, asking: _Side, other: _Side, row: torch.Tensor, column: torch.Tensor) -> None:
        """Score the pictures of marked garments in float32, with all of their garments, and note them.

        Args:
            row, column: (p,) garments of the two sides.
        """
        count = len(other.block)
        pairs = torch.unique(asking.picture[row] * count + other.picture[column])
        query, match = pairs // count, pairs % count
        several = (asking.starts[query + 1] - asking.starts[query]) * (
            other.starts[match + 1] - other.starts[match]
        )
        pair = torch.repeat_interleave(torch.arange(len(pairs), device=pairs.device), several)
        within = torch.arange(len(pair), device=pair.device) - (several.cumsum(0) - several)[pair]
        width = (other.starts[match + 1] - other.starts[match])[pair]
        i = asking.starts[query][pair] + within // width.clamp(min=1)
        j = other.starts[match][pair] + within % width.clamp(min=1)
        score = torch.empty(len(i), device=i.device)
        for start in range(0, len(i), _RESCORED_AT_ONCE):
            part = slice(start, start + _RESCORED_AT_ONCE)
            score[part] = self._fine(asking, i[part], other, j[part])
        level = asking.half[i] + other.half[j]
        value, reach = self._standing(score, (score - level) / _room(level), pair, len(pairs), asking.slack)
        asking.note(other.block, query, match, value, reach)

    def _fine(self, asking: _Side, i: torch.Tensor, other: _Side, j: torch.Tensor) -> torch.Tensor:
        """Scores of pairs of garments in float32."""
        weights = list(asking.weights[:, i])
        left = asking.features[:, i].float()

        def one(features: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
            cosines = (left * features[:, j].float()).sum(-1)
            comparable = asking.code_query[:, i] + code[:, j] >= 0
            return score_of_values(self._kind, list(torch.where(comparable, cosines, _NONE)), weights)

        score = one(other.features, other.code)
        if self._mirrored:
            score = torch.maximum(score, one(other.mirrored, other.code_mirrored))
        return score

    def _standing(
        self, score: torch.Tensor, normalised: torch.Tensor, pair: torch.Tensor, count: int, slack: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``pipeline.sift.standing``, of ``count`` pairs of pictures at once; ``pair``: (garment pairs,)
        the pair of pictures that each belongs to."""
        wanted, margin = self._wanted, float(MARGIN)
        value = torch.full((count,), -torch.inf, device=score.device)
        value.scatter_reduce_(0, pair, normalised, "amax")
        # Of several garments those that may turn out to rank first count.
        first = normalised >= value[pair] - slack
        least = wanted.normalised_threshold
        possible = (score >= wanted.threshold - margin) & (normalised >= least - slack)
        doubtful = (score < wanted.threshold + margin) | (normalised < least + slack)
        reach = torch.full((count,), NOT_REACHED, dtype=torch.uint8, device=score.device)
        may, doubt = torch.zeros((2, count), dtype=torch.int32, device=score.device)
        may.scatter_reduce_(0, pair, (first & possible).int(), "amax")
        doubt.scatter_reduce_(0, pair, (first & doubtful).int(), "amax")
        reach[may > 0] = SURELY_REACHED
        reach[(may > 0) & (doubt > 0)] = PERHAPS_REACHED
        return value, reach


class _Tile(NamedTuple):
    """n garments that ask and m that they meet.

    ``planes``, ``turned``: (5, n, m) products with the garments as they are and, unless None, flipped.
    ``code_q``: (5, n), ``code_x``, ``turned_x``: (5, m), see ``pipeline.sift.presence_codes``; ``weights``:
    (16, n).
    """

    planes: torch.Tensor
    turned: torch.Tensor | None
    code_q: torch.Tensor
    code_x: torch.Tensor
    turned_x: torch.Tensor
    weights: torch.Tensor


def _products(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(5, n, d) and (5, m, d) to (5, n, m)."""
    return torch.bmm(left, right.transpose(1, 2))


def _scores(kind: int, tile: _Tile) -> torch.Tensor:
    """(n, m) float32 scores of all pairs of a tile."""
    table = [weight[:, None] for weight in tile.weights]

    def one(products: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        values = [
            torch.where(tile.code_q[r, :, None] + code[r] >= 0, products[r].float(), _NONE)
            for r in range(NUM_REGIONS)
        ]
        return score_of_values(kind, values, table)

    score = one(tile.planes, tile.code_x)
    return score if tile.turned is None else torch.maximum(score, one(tile.turned, tile.turned_x))


def _marks(
    kind: int,
    tile: _Tile,
    half: tuple[torch.Tensor, torch.Tensor],
    number: tuple[torch.Tensor, torch.Tensor],
    cut: torch.Tensor,
    numbers: torch.Tensor,
) -> torch.Tensor:
    """(n, m) bool: which pairs may matter to their rows. All of it in one pass over the products, where it is
    compiled.

    Args:
        half, number: of both sides' garments, half their levels and their pictures' numbers. cut: (n,).
        numbers: the two thresholds, and what a score may be off by.
    """
    threshold, least, off = numbers[0], numbers[1], numbers[2]
    upper = _scores(kind, tile) + off
    level = half[0][:, None] + half[1]
    room = _room(level)
    reached = torch.maximum(level + room * least, threshold)
    return (upper >= torch.minimum(level + room * cut[:, None], reached)) & (number[0][:, None] != number[1])


def score_of_values(
    kind: int, values: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Scores as ``pipeline.sift`` has them, element by element.

    Args:
        kind: how to score, see ``pipeline.kernel.kind_of``. values: five tensors of cosines, -1e30 where
            nothing can be compared; weights: the sixteen rows of ``pipeline.sift.weight_table``,
            broadcastable to them.
    """
    if kind == SAME_WEIGHTS:
        a, b, c, d, e = values
        p, q = torch.maximum(a, b), torch.maximum(c, d)
        r = torch.maximum(torch.minimum(a, b), torch.minimum(c, d))
        third = torch.maximum(torch.minimum(p, q), torch.minimum(r, e))
        return _total([_or_zero(torch.maximum(p, q)), _or_zero(torch.maximum(r, e)), _or_zero(third)]) / 3
    there = [value > _NOTHING for value in values]
    products = [w * v for w, v in zip(weights, values, strict=False)]
    total = _total([torch.where(k, one, 0.0) for k, one in zip(there, products, strict=True)])
    weight = _total([torch.where(k, w, 0.0) for k, w in zip(there, weights, strict=False)])
    if kind == WEIGHTED:
        return torch.where(weight > 0, total / weight, 0.0)
    sets = zip(combinations(products, 3), weights[NUM_REGIONS:], strict=False)
    best = functools.reduce(torch.maximum, [_total(three) * w for three, w in sets])
    missing = 3 - _total([k.float() for k in there])
    weight = weight + missing * weights[-1]
    few = torch.where(weight > 0, total / weight, 0.0)
    return torch.where(missing > 0, few, best)


def _total(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return functools.reduce(torch.add, values)


@functools.cache
def _compiled_marks() -> Callable[..., torch.Tensor]:
    """``_marks`` as one kernel, for tiles of all sizes. Step by step, each of its forty operations would read
    and write the tile."""
    compiled: Callable[..., torch.Tensor] = torch.compile(_marks, dynamic=True)
    return compiled


def _or_zero(value: torch.Tensor) -> torch.Tensor:
    return torch.where(value > _NOTHING, value, 0.0)


def _room(level: torch.Tensor) -> torch.Tensor:
    """As ``psnet.similarity.room_above``."""
    return (1 - level).clamp(min=_LEAST_ROOM)


def _norm(features: torch.Tensor) -> float:
    """At least the greatest norm of (5, n, d)."""
    if not features.numel():
        return 0.0
    return float(torch.linalg.vector_norm(features, dim=-1, dtype=torch.float32).max()) * 1.001
