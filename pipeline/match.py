"""Stage match: all pairs of the catalogue, block by block on Ray.

    garments/*.parquet ─ vectors (memory-mapped) ─▶ background levels
        ─▶ [Ray: a task per pair of blocks] match/KEY/block-i-j.parquet, candidates scored up to rounding
        ─▶ [Ray: a task per block of queries] match/KEY/pairs-i.parquet, compared exactly ─▶ pairs.parquet

A pair is ranked by its normalised score (``match.rank_by``), which takes the levels of its two garments. So
the levels of all garments come first.

A block is a run of pictures, in the order of their items' identifiers. Blocks (i <= j) hold every pair once;
a task gives both directions. A finished block is a file, and a rerun computes only what is missing. What a
query keeps (its best ``best_k`` partners, and all from the thresholds on, at most ``max_pairs_per_item``) can
be told without the other blocks; what those have found already only spares a task from looking closely at
pairs that cannot win.

A block stays in the shared file of vectors, memory-mapped: a node reads it once, all of its workers have it,
and tasks that follow each other share blocks, so that it is still there when it is needed again. A worker
keeps the eight-bit codes of the last few, which cost less to make than to move.

In a sweep the originals are the queries and all other items the partners; pairs among the originals, or among
the others, are not looked at. Where the index is an approximate one, it says first which pictures are worth a
look (``pipeline.sweep``), and those are searched in the same way as a whole catalogue.

A pruned search (``match.search``) of a scan compares what the index proposes for every garment, and no more.

Scores come from a comparison of the pair alone (``pipeline.kernel``), and ties are broken by the items'
identifiers: neither blocks nor shards nor workers show in the result. Memory O(pairs kept for one block of
queries + block) a worker, beside ``max_pairs_per_item`` scores per picture in the driver.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from threadpoolctl import threadpool_limits

from pipeline.background import Garments, background
from pipeline.calibration import list_threshold, load_calibration
from pipeline.errors import RunError, UserError
from pipeline.extract import garment_shards
from pipeline.half import rows_as_float32
from pipeline.index_manifest import Manifest
from pipeline.kernel import (
    Block,
    Candidates,
    Floors,
    Kept,
    Pairs,
    Wanted,
    best_of,
    best_pairs,
    prune,
    rescore,
    rounding_slack,
)
from pipeline.missed import BEST
from pipeline.progress import track
from pipeline.quantise import Basis, fit_basis
from pipeline.ray_tasks import in_tasks, in_turn, on_ray
from pipeline.rundir import RunDirectory, StageRecord, inputs_digest, write_atomically
from pipeline.schema import COS_COLUMNS, DISTINCTIVENESS_COLUMNS, PAIR_SCHEMA, STATE_COLUMNS
from pipeline.settings import Settings
from pipeline.sift import push_all
from pipeline.vectors import (
    Vectors,
    first_garments,
    garment_count,
    has_vectors,
    open_vectors,
    remove_vectors,
    weights_of,
    write_vectors,
)
from psnet.config import digest
from psnet.device import resolve_device
from psnet.regions import NUM_REGIONS, REGIONS
from psnet.similarity import normalise
from psnet.verdict import CHANGED, IDENTICAL, RELATIONS, STATES, Calibration, judge

if TYPE_CHECKING:
    from pipeline.garment_index import GarmentIndex

BACKGROUND_FILE = "background.parquet"
"""In match/, see ``read_background``."""

# Garments in one task for their levels. No setting: nothing that shapes a product may differ between runs.
_LEVELS_AT_ONCE = 4096
# Of a sweep's few originals a block holds so many times as many partners, as long as there are no more pairs.
_WIDEST = 8
# The usual lists hold all copies; a garment's twenty best, most of them strangers, want more (0.99 of them).
_DEEPER = 4
# Tasks that share a GPU: one moves its pairs while another multiplies.
_GPUS_PER_TASK = 0.5

_BLOCK_SCHEMA = pa.schema(
    [("query", pa.int32()), ("match", pa.int32()), ("value", pa.float32()), ("reach", pa.uint8())]
)
"""``pipeline.kernel.Candidates``. Numbers count the search's pictures."""


def match(run: RunDirectory, settings: Settings) -> None:
    """The partners of every item: RUN/pairs.parquet. In a sweep, those of the originals.

    Raises:
        UserError: the extraction is not done, the weights cannot be used, or there is no GPU of those asked
            for.
        RunError: workers keep dying, or the disk is full. Finished blocks stay.
    """
    shards = garment_shards(run)
    calibration = load_calibration(settings)
    originals = ""
    if run.queries_path.exists():
        originals = inputs_digest(*pq.read_table(run.queries_path)["item_id"].to_pylist())
    approximate = (originals or settings.match.search == "pruned") and not Manifest.read(run.index_dir).exact
    through_index, pruned = bool(approximate and originals), bool(approximate and not originals)
    inputs = inputs_digest(
        run.require_current("crawl"),
        run.require_current("extract"),
        originals,
        digest(settings.match, results_only=True),
        calibration.to_json(),
        run.require_current("index") if approximate else "",
        digest(settings.index, results_only=True) if approximate else "",
    )
    with run.stage("match", inputs, [run.pairs_path, run.match_dir / BACKGROUND_FILE]) as stage:
        if stage.finished:
            return
        # Other blocks are other files.
        folder = run.match_dir / f"{inputs}-{settings.match.block_size}"
        with _told_in_one_line(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for former in run.match_dir.iterdir():
                if former.is_dir() and former != folder:
                    shutil.rmtree(former, ignore_errors=True)
            members = _members(run)
            sources: Sequence[Path | Vectors] = shards
            if through_index:
                # FAISS is large, and an exact search does without it.
                from pipeline.sweep import narrowed

                members, sources, said = narrowed(run, members, settings, calibration)
                stage.note(**said)
            target = folder / "vectors"
            if not has_vectors(target):
                write_vectors(target, sources, members.pictures)
            vectors = open_vectors(target)
            sides = members.sides(vectors)
            search = Search(folder, settings, calibration, sides, run if pruned else None)
            search.run()
            _write_pairs(run.pairs_path, search, stage)
            write_atomically(run.match_dir / BACKGROUND_FILE, (folder / BACKGROUND_FILE).read_bytes())
            if pruned:
                stage.note(missed=_missed(run.pairs_path, search, settings))
            remove_vectors(target)
            stage.count_in = sum(garment_count(shard, members.pictures) for shard in shards)
            if stage.count_in > len(vectors):
                stage.fail("no_visible_region", stage.count_in - len(vectors))
            stage.note(
                scoring=settings.match.scoring,
                rank_by=settings.match.rank_by,
                threshold=search.wanted.threshold,
                normalised_threshold=search.wanted.normalised_threshold,
                blocks=len(search.blocks),
                blocks_found=search.found,
                exact=not approximate,
                multiplied_dim=search.multiplied_dim,
            )


@contextlib.contextmanager
def _told_in_one_line(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{folder}: {error.strerror or error}; finished blocks are kept") from None


def read_background(run: RunDirectory) -> pa.Table:
    """Level and distinctiveness of every garment: image_sha256, garment_index, level, distinctiveness_*.

    Raises:
        UserError: the match is not done.
    """
    run.require("match")
    return pq.read_table(run.match_dir / BACKGROUND_FILE)


# --- items and pictures


@dataclass(frozen=True)
class Members:
    """Items by their picture.

    ``item_id``: of all items with a picture, ascending; ``picture``: (items,) each one's image hash;
    ``is_query``, ``is_partner``: (items,) bool. ``pictures``: distinct hashes, in the order of their first
    item.
    """

    item_id: pa.Array
    picture: pa.Array
    is_query: np.ndarray
    is_partner: np.ndarray
    pictures: pa.Array

    def sides(self, vectors: Vectors) -> Sides:
        """Queries and partners among the pictures that have a garment."""
        starts = first_garments(vectors)
        known = vectors.sha256.take(starts)
        number = np.asarray(pc.fill_null(pc.index_in(self.picture, value_set=known), -1)).astype(np.int64)
        return Sides(
            self.item_id,
            _Group.of(number, self.is_query & (number >= 0), len(starts)),
            _Group.of(number, self.is_partner & (number >= 0), len(starts)),
        )


@dataclass(frozen=True)
class _Group:
    """Items of each picture: those of picture p are items[start[p] : start[p] + count[p]], ascending."""

    items: np.ndarray
    start: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, number: np.ndarray, chosen: np.ndarray, pictures: int) -> _Group:
        items = np.flatnonzero(chosen)
        items = items[np.argsort(number[items], kind="stable")]
        count = np.bincount(number[items], minlength=pictures)
        return cls(items, np.cumsum(count) - count, count)

    def only(self, pictures: np.ndarray) -> _Group:
        """The items of these pictures (ascending) alone."""
        count = np.zeros_like(self.count)
        count[pictures] = self.count[pictures]
        items = [self.items[self.start[p] : self.start[p] + self.count[p]] for p in pictures]
        return _Group(np.concatenate([self.items[:0], *items]), np.cumsum(count) - count, count)


@dataclass(frozen=True)
class Sides:
    """Who is compared with whom. Items are numbered in the order of ``item_id``, pictures in that of the
    vectors."""

    item_id: pa.Array
    queries: _Group
    partners: _Group

    @property
    def symmetric(self) -> bool:
        """A scan: every item is query and partner."""
        return np.array_equal(self.queries.items, self.partners.items)


def _members(run: RunDirectory) -> Members:
    items = pq.read_table(run.items_path, columns=["item_id", "image_sha256", "status"])
    items = items.filter(pc.equal(items["status"], "ok")).sort_by("item_id").combine_chunks()
    is_query = np.ones(items.num_rows, bool)
    is_partner = is_query
    if run.queries_path.exists():
        originals = pq.read_table(run.queries_path)["item_id"].combine_chunks()
        is_query = np.asarray(pc.is_in(items["item_id"], value_set=originals))
        is_partner = ~is_query
    picture = items["image_sha256"].combine_chunks()
    return Members(items["item_id"].combine_chunks(), picture, is_query, is_partner, pc.unique(picture))


# --- the search


@dataclass(frozen=True)
class _Job:
    """What a worker has to know of the search. ``index_of``: the run whose index names ``candidates``
    partners of every garment, None: all pairs are compared, first by their coordinates in ``basis``."""

    target: Path
    device: str
    scoring: str
    mirrored: bool
    region_weights: np.ndarray
    wanted: Wanted
    rank_by: str
    sample: np.ndarray
    quantile: float
    index_of: Path | None
    index_digest: str
    candidates: int
    deeper: int
    basis: Basis | None = None

    def block(self, pictures: np.ndarray) -> Block:
        """The garments of these pictures (ascending). Where no picture between them is left out, their
        features stay on disk."""
        vectors, starts = _opened(self.target)
        stops = np.append(starts[1:], len(vectors))
        count = stops[pictures] - starts[pictures]
        block_starts = np.cumsum(count) - count
        rows = np.repeat(starts[pictures] - block_starts, count) + np.arange(count.sum())
        return self._block(pictures, block_starts, rows)

    def first_garments(self, pictures: np.ndarray) -> Block:
        """The first garment of each of these pictures (ascending), in memory."""
        return self._block(pictures, np.arange(len(pictures)), _opened(self.target)[1][pictures])

    def _block(self, pictures: np.ndarray, block_starts: np.ndarray, rows: np.ndarray) -> Block:
        vectors, _ = _opened(self.target)
        level = _levels(self.target)[rows]
        at: slice | np.ndarray = rows
        if len(rows) and (np.diff(rows) == 1).all():
            at = slice(rows[0], rows[-1] + 1)
        return Block(
            features=vectors.features[at],
            mirrored=vectors.mirrored[at],
            presence=vectors.presence[rows],
            weights=weights_of(vectors.group[rows], self.region_weights),
            level=level if self.rank_by == "normalised_score" else np.zeros_like(level),
            garment=vectors.garment[rows],
            starts=block_starts,
            picture=pictures,
            basis=self.basis,
        )

    def garments(self, rows: np.ndarray) -> Garments:
        """Rows of the vectors, in memory."""
        vectors, starts = _opened(self.target)
        return Garments(
            features=rows_as_float32(vectors.features, rows),
            presence=vectors.presence[rows],
            weights=weights_of(vectors.group[rows], self.region_weights),
            picture=np.searchsorted(starts, rows, side="right") - 1,
        )

    def slack(self) -> float:
        """See ``rounding_slack``; of all garments, since what is known comes from all blocks."""
        level = _levels(self.target) if self.rank_by == "normalised_score" else np.zeros(1, np.float32)
        return rounding_slack(level, level)


BLOCKS_AT_HAND = 3
"""The blocks that a worker has seen last, with their codes: the next task has one of them, as a rule."""

_at_hand: OrderedDict[tuple[Path, bytes], Block] = OrderedDict()


def _block_at_hand(job: _Job, pictures: np.ndarray) -> Block:
    key = job.target, pictures.tobytes()
    block = _at_hand.pop(key, None) or job.block(pictures)
    _at_hand[key] = block
    while len(_at_hand) > BLOCKS_AT_HAND:
        _at_hand.popitem(last=False)
    return block


@functools.lru_cache(maxsize=1)
def _opened(target: Path) -> tuple[Vectors, np.ndarray]:
    vectors = open_vectors(target)
    return vectors, first_garments(vectors)


@functools.lru_cache(maxsize=1)
def _levels(target: Path) -> np.ndarray:
    """(garments,) float32, in the order of the vectors."""
    return pq.read_table(target.with_name(BACKGROUND_FILE), columns=["level"])["level"].to_numpy()


class _Known:
    """What earlier blocks have found for every picture, so that later ones need not write what cannot win."""

    def __init__(self, pictures: int, wanted: Wanted) -> None:
        self._wanted = wanted
        self._best = np.full((pictures, wanted.best_k), -np.inf, np.float32)
        self._reached = np.full((pictures, wanted.limit), -np.inf, np.float32)

    def floors(self, pictures: np.ndarray) -> Floors:
        return Floors(self._best[pictures, 0], self._reached[pictures, 0])

    def add(self, candidates: Candidates) -> None:
        """Take in a block's pairs."""
        surely = candidates.surely
        push_all(self._best, candidates.query, candidates.value)
        push_all(self._reached, candidates.query[surely], candidates.value[surely])


class Search:
    """All blocks of one search, done and to be done, in one folder."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        calibration: Calibration,
        sides: Sides,
        index_of: RunDirectory | None = None,
        name: str = "",
    ) -> None:
        """``index_of``: the run whose index gives the pairs to compare; None: all pairs are compared.
        ``name``: what its files begin with, where two searches share a folder and its levels."""
        self.folder, self.name = folder.resolve(), name
        self.sides = sides
        self.calibration = calibration
        chosen = settings.match
        threshold = list_threshold(calibration, chosen)
        # Ranked by the score, levels are 0 and the normalised score is the score (``_Job``).
        by_score = chosen.rank_by == "score"
        self.wanted = Wanted(
            best_k=chosen.best_k,
            threshold=threshold,
            normalised_threshold=threshold if by_score else calibration.normalised_threshold,
            limit=max(chosen.max_pairs_per_item, chosen.best_k),
        )
        self._settings = settings
        queries, partners = np.flatnonzero(sides.queries.count), np.flatnonzero(sides.partners.count)
        self._rows = _slices(queries, chosen.block_size)
        wider = 1 if sides.symmetric else min(_WIDEST, chosen.block_size // max(len(queries), 1))
        self._columns = _slices(partners, chosen.block_size * max(wider, 1))
        self.blocks = [
            (i, j)
            for i in range(len(self._rows))
            for j in range(len(self._columns))
            if not sides.symmetric or i <= j
        ]
        if index_of is not None:
            self._columns = [partners]
            self.blocks = [(i, 0) for i in range(len(self._rows))]
        # The blocks on the diagonal first: they touch every picture, and what they find spares the others
        # work. Then along a curve on which neighbours share their pictures: a node's memory holds what it
        # reads again soon.
        self.blocks.sort(
            key=lambda block: (block[0] != block[1] if sides.symmetric else False, _place_on_curve(*block))
        )
        self.found = sum(self.path(*block).exists() for block in self.blocks)
        self.job = _Job(
            target=self.folder / "vectors",
            device=chosen.device,
            scoring=chosen.scoring,
            mirrored=chosen.mirrored,
            region_weights=calibration.weights,
            wanted=self.wanted,
            rank_by=chosen.rank_by,
            sample=self._sample(chosen.background_size),
            quantile=chosen.background_quantile,
            index_of=None if index_of is None else index_of.path.resolve(),
            index_digest="" if index_of is None else index_of.require("index"),
            candidates=max(settings.index.candidates, chosen.best_k),
            deeper=1 if settings.index.nprobe else _DEEPER,
        )
        if index_of is None:
            # Once, since all blocks need the same one; which one it is shows in no result.
            basis = fit_basis(self.job.garments(self.job.sample).features)
            self.job = replace(self.job, basis=basis)

    def path(self, i: int, j: int) -> Path:
        return self.folder / f"{self.name}block-{i}-{j}.parquet"

    def files(self) -> list[Path]:
        """Of all blocks."""
        return [self.path(*block) for block in self.blocks]

    @property
    def multiplied_dim(self) -> int:
        """How many numbers of a region the eight-bit products take."""
        basis = self.job.basis
        return _opened(self.job.target)[0].features.shape[2] if basis is None else basis.directions.shape[2]

    @property
    def query_blocks(self) -> list[np.ndarray]:
        """Pictures of each block of queries."""
        return self._rows

    def _sample(self, size: int) -> np.ndarray:
        """The first garment of some pictures among the partners: those of the smallest hashes, which are
        random numbers that do not depend on the catalogue's order."""
        vectors, starts = _opened(self.folder / "vectors")
        rows = starts[np.flatnonzero(self.sides.partners.count)]
        order = pc.sort_indices(vectors.sha256.take(rows)).to_numpy()
        return np.sort(rows[order[:size]])

    def run(self) -> None:
        """Compute what is missing."""
        known = _Known(len(self.sides.queries.count), self.wanted)
        missing = []
        for block in self.blocks:
            if self.path(*block).exists():
                self._read_block(block, known)
            else:
                missing.append(block)
        with track(len(missing), "match", "blocks") as progress:
            if len(missing) <= 1:
                # A start of Ray costs more than one block.
                cpus = self._settings.ray.num_cpus or len(os.sched_getaffinity(0))
                with threadpool_limits(1), ThreadPoolExecutor(cpus) as pool:
                    level_of = functools.partial(_compute_levels, self.job)
                    self._commit_levels(pool.map(level_of, self._level_parts()))
            if len(missing) <= 1:
                _has_gpu(self.job.device, torch.cuda.device_count())
                for block in missing:
                    _compute_block(*self._task(block, known))
                    progress.advance()
            else:
                self._run_on_ray(missing, known, progress.advance)

    def parts(self) -> list[Path]:
        """The pairs of each block of queries as files of PAIR_SCHEMA, of which those missing are made."""
        numbers = range(len(self._rows))
        missing = [number for number in numbers if not self.part_path(number).exists()]
        with track(len(missing), "match", "blocks of queries") as progress:
            tasks = {number: (number,) for number in missing}
            for _ in in_tasks(self._settings, "the pair search", _write_part, self, tasks):
                progress.advance()
        return [self.part_path(number) for number in numbers]

    def part_path(self, number: int) -> Path:
        return self.folder / f"{self.name}pairs-{number}.parquet"

    @property
    def levels_path(self) -> Path:
        """Level and distinctiveness of every garment, see ``read_background``."""
        return self.folder / BACKGROUND_FILE

    def _level_parts(self) -> list[np.ndarray]:
        """Garments of each task for the levels; none where those are there."""
        vectors, _ = _opened(self.job.target)
        rows = np.arange(len(vectors))
        return [] if self.levels_path.exists() else _slices(rows, _LEVELS_AT_ONCE)

    def _commit_levels(self, parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        if self.levels_path.exists():
            return
        vectors, _ = _opened(self.job.target)
        none = np.empty(0, np.float32), np.empty((0, NUM_REGIONS), np.float32)
        level, distinctiveness = (np.concatenate(values) for values in zip(none, *parts, strict=True))
        _commit(
            self.levels_path,
            pa.table(
                {
                    "image_sha256": vectors.sha256,
                    "garment_index": vectors.garment,
                    "level": level,
                    **{
                        column: pa.array(distinctiveness[:, r], from_pandas=True)
                        for r, column in enumerate(DISTINCTIVENESS_COLUMNS)
                    },
                }
            ),
        )

    def _task(self, block: tuple[int, int], known: _Known) -> tuple[Any, ...]:
        i, j = block
        rows, columns = self._rows[i], self._columns[j]
        mutual = self.sides.symmetric and i != j and self.job.index_of is None
        backward = known.floors(columns) if mutual else None
        return self.job, rows, columns, known.floors(rows), backward, self.path(i, j)

    def _read_block(self, block: tuple[int, int], known: _Known) -> None:
        known.add(_read_candidates(self.path(*block)))

    def _run_on_ray(self, missing: list[tuple[int, int]], known: _Known, advance: Callable[[], None]) -> None:
        with on_ray(self._settings, "the pair search") as (ray, as_task):
            compute, level_of = as_task(_compute_block), as_task(_compute_levels)
            if self.job.index_of is None and _has_gpu(self.job.device, ray.cluster_resources().get("GPU", 0)):
                compute = compute.options(num_gpus=_GPUS_PER_TASK)
            job = ray.put(self.job)
            self._commit_levels(ray.get([level_of.remote(job, rows) for rows in self._level_parts()]))

            def start(block: tuple[int, int]) -> Any:
                return compute.remote(job, *self._task(block, known)[1:])

            tasks = ((block, functools.partial(start, block)) for block in missing)
            for block in in_turn(ray, tasks):
                self._read_block(block, known)
                advance()


def _has_gpu(device: str, gpus: float) -> bool:
    """Whether blocks are to be compared on a GPU.

    Raises:
        UserError: they are, and there is none.
    """
    if device == "cuda" and not gpus:
        raise UserError("match.device: is cuda, and there is no GPU; set it to auto or cpu")
    return device != "cpu" and gpus > 0


def _place_on_curve(i: int, j: int) -> int:
    """Of a block of pairs, on Morton's curve: the bits of i and j in turn."""
    return sum((i >> bit & 1) << (2 * bit + 1) | (j >> bit & 1) << (2 * bit) for bit in range(32))


def _slices(pictures: np.ndarray, size: int) -> list[np.ndarray]:
    return [pictures[start : start + size] for start in range(0, len(pictures), size)]


def _compute_block(
    job: _Job,
    rows: np.ndarray,
    columns: np.ndarray,
    row_floors: Floors,
    column_floors: Floors | None,
    target: Path,
) -> None:
    """The task: one pair of blocks, committed as ``target``."""
    begun = time.process_time()
    if job.index_of is not None:
        _commit_block(target, [_through_index(job, job.block(rows))], time.process_time() - begun)
        return
    left = _block_at_hand(job, rows)
    right = left if np.array_equal(rows, columns) else _block_at_hand(job, columns)
    search = best_pairs
    if resolve_device(job.device).type == "cuda":
        from pipeline.torch_kernel import best_pairs as search
    with threadpool_limits(1):
        found = search(
            left,
            right,
            job.wanted,
            row_floors,
            column_floors,
            slack=job.slack(),
            scoring=job.scoring,
            mirrored=job.mirrored,
        )
    _commit_block(target, [side for side in found if side is not None], time.process_time() - begun)


def _through_index(job: _Job, block: Block) -> Kept:
    """The pairs that an index proposes for the pictures of a block."""
    # FAISS is large, and an exact search does without it.
    from pipeline.garment_index import Queries

    assert job.index_of is not None
    index = _opened_index(job.index_of, job.index_digest)
    vectors, starts = _opened(job.target)
    known = vectors.sha256.take(starts)
    mirrored = block.mirrored if job.mirrored else None
    queries = Queries(block.features, block.presence, block.weights, mirrored)
    # One more, since every garment finds itself. An index may hold garments of added runs, or of pictures
    # that the catalogue no longer has: they must not take the places of others.
    allowed = _rows_of_search(job.index_of, job.index_digest, job.target)
    found = index.candidates(
        queries, job.candidates + 1, scoring=job.scoring, allowed=allowed, deeper=job.deeper
    )
    match_picture = np.empty(len(found.row), np.int64)
    for number, shard in enumerate(index.shards):
        here = found.shard == number
        names = shard.vectors.sha256.take(found.row[here])
        match_picture[here] = np.asarray(pc.fill_null(pc.index_in(names, value_set=known), -1))
    query = np.searchsorted(block.starts, found.query, side="right") - 1
    others = (match_picture >= 0) & (block.picture[query] != match_picture)
    query, match_picture = np.unique(np.stack([query[others], match_picture[others]]), axis=1)
    # All of them are scored: what the index says of a pair is no bound.
    return best_of(
        block,
        _catalogue(job),
        query,
        match_picture,
        job.wanted,
        slack=job.slack(),
        scoring=job.scoring,
        mirrored=job.mirrored,
    )


@functools.lru_cache(maxsize=1)
def _opened_index(path: Path, digest: str) -> GarmentIndex:
    """``digest`` tells an index that was built anew, which a worker must not take for the one it has open."""
    from pipeline.garment_index import open_index

    return open_index(RunDirectory(path))


@functools.lru_cache(maxsize=1)
def _rows_of_search(path: Path, digest: str, target: Path) -> list[np.ndarray] | None:
    """Per shard of the index the rows of pictures that are searched; None: all of them."""
    from pipeline.sweep import rows_of

    index = _opened_index(path, digest)
    vectors, starts = _opened(target)
    rows = rows_of(index, vectors.sha256.take(starts))
    return None if sum(map(len, rows)) == len(index) else rows


def _compute_levels(job: _Job, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The task: level and distinctiveness of some garments, see ``pipeline.background``."""
    sample = job.garments(job.sample)
    with threadpool_limits(1):  # OpenBLAS loses four fifths of its speed at splitting a tile's small products
        return background(job.garments(rows), sample, job.quantile, scoring=job.scoring)


def _commit_block(target: Path, sides: Sequence[Kept], cpu_seconds: float) -> None:
    every = Candidates.joined([side.candidates for side in sides])
    left_out = sum(side.left_out for side in sides)
    table = pa.Table.from_arrays(list(vars(every).values()), schema=_BLOCK_SCHEMA)
    table = table.replace_schema_metadata(_accounts(left_out, cpu_seconds))
    # Numbers of little redundancy, read again soon.
    _commit(target, table, use_dictionary=False, compression="none")


def _accounts(left_out: int, cpu_seconds: float) -> dict[str, str]:
    """What a finished file says of itself, summed up in run.json."""
    return {"left_out": str(left_out), "cpu_seconds": f"{cpu_seconds:.3f}"}


def _read_candidates(path: Path) -> Candidates:
    table = pq.read_table(path)
    return Candidates(*(np.array(table[name]) for name in _BLOCK_SCHEMA.names))


def _commit(target: Path, table: pa.Table, **options: Any) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            pq.write_table(table, file, **options)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


# --- from pairs of pictures to pairs of items


def _write_pairs(target: Path, search: Search, stage: StageRecord) -> None:
    """pairs.parquet, one block of queries after the other."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    parts, count = search.parts(), 0
    try:
        with pq.ParquetWriter(temporary, PAIR_SCHEMA) as writer:
            for part in parts:
                table = pq.read_table(part)
                writer.write_table(table.replace_schema_metadata(PAIR_SCHEMA.metadata))
                count += table.num_rows
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    stage.count_out = count
    accounts = [[pq.read_schema(file).metadata for file in files] for files in (search.files(), parts)]
    stage.note(
        pairs_left_out=sum(int(one[b"left_out"]) for files in accounts for one in files),
        scan_cpu_seconds=round(sum(float(one[b"cpu_seconds"]) for one in accounts[0]), 2),
        compare_cpu_seconds=round(sum(float(one[b"cpu_seconds"]) for one in accounts[1]), 2),
    )


def _missed(pairs: Path, pruned: Search, settings: Settings) -> dict[str, Any]:
    """The shares of pairs that a pruned search lacks, as ``pipeline.audit.audit`` has them, by the ranking of
    the search itself: some pictures, drawn, are compared with all others."""
    from pipeline.audit import draw, shares

    sides = pruned.sides
    with_items = np.flatnonzero(sides.queries.count)
    drawn = with_items[draw(len(with_items), settings.index.audit_queries)]
    if not len(drawn):
        return {}
    asked = replace(sides, queries=sides.queries.only(drawn))
    exact = Search(pruned.folder, settings, pruned.calibration, asked, name="audit-")
    exact.run()
    columns = ["query_item_id", "match_item_id", "rank", "score", "normalised_score"]
    wanted = pa.concat_tables([pq.read_table(part, columns=columns) for part in exact.parts()])
    names = sides.item_id.take(asked.queries.items)
    given = pq.read_table(pairs, columns=columns[:2], filters=pc.field("query_item_id").isin(names))
    known = set(zip(*(column.to_pylist() for column in given.columns), strict=True))
    query, match, rank, score, normalised = (column.combine_chunks() for column in wanted.columns)
    lost = [key not in known for key in zip(query.to_pylist(), match.to_pylist(), strict=True)]
    return shares(
        np.asarray(pc.index_in(query, value_set=names)),
        len(names),
        np.array(lost, bool),
        listed=np.asarray(rank) <= BEST,
        suspects=exact.wanted.reached(
            np.asarray(score), np.asarray(score if settings.match.rank_by == "score" else normalised)
        ),
    )


def _write_part(search: Search, number: int) -> None:
    """The task: the pairs of one block of queries, from what the blocks hold for it."""
    begun = time.process_time()
    table, left_out = _item_pairs(search, number, search.query_blocks[number])
    accounts = _accounts(left_out, time.process_time() - begun)
    _commit(search.part_path(number), table.replace_schema_metadata(accounts))


def _item_pairs(search: Search, number: int, pictures: np.ndarray) -> tuple[pa.Table, int]:
    """Rows of PAIR_SCHEMA for the items of ``pictures``, and how many pairs the limit left out."""
    wanted, sides = search.wanted, search.sides
    pairs, beyond = _picture_pairs(search, number, pictures)
    pairs = pairs.take(np.lexsort((pairs.match, -pairs.score, -pairs.normalised, pairs.query)))
    kept, left_out = _best_of_each(pairs.query, pairs.score, pairs.normalised, wanted)
    left_out += beyond
    pairs = Pairs.joined([pairs.take(kept), _same_picture_pairs(search, pictures)])

    # To items: every query item of the one picture with the first partners of the other.
    partners = np.minimum(sides.partners.count[pairs.match], wanted.limit + 1)
    combinations = sides.queries.count[pairs.query] * partners
    skipped = (sides.partners.count[pairs.match] - partners) * sides.queries.count[pairs.query]
    left_out += int(skipped[wanted.reached(pairs.score, pairs.normalised)].sum())
    row = np.repeat(np.arange(len(combinations)), combinations)
    within = np.arange(len(row)) - np.repeat(np.cumsum(combinations) - combinations, combinations)
    query = sides.queries.items[sides.queries.start[pairs.query][row] + within // partners[row]]
    match_item = sides.partners.items[sides.partners.start[pairs.match][row] + within % partners[row]]
    others = query != match_item
    row, query, match_item = row[others], query[others], match_item[others]
    # By picture first: the order of the file must not show where blocks ended.
    order = np.lexsort((match_item, -pairs.score[row], -pairs.normalised[row], query, pairs.query[row]))
    row, query, match_item = row[order], query[order], match_item[order]
    kept, dropped = _best_of_each(query, pairs.score[row], pairs.normalised[row], wanted)
    row, query, match_item = row[kept], query[kept], match_item[kept]
    table = _pair_table(search, pairs.take(row), query, match_item)
    return table, left_out + dropped


def _picture_pairs(search: Search, number: int, pictures: np.ndarray) -> tuple[Pairs, int]:
    """All that the blocks hold for one block of queries, compared exactly, less what cannot be among those
    kept; how many of these the limit leaves out."""
    parts = []
    for i, j in search.blocks:
        if number == i or (search.sides.symmetric and number == j):
            part = _read_candidates(search.path(i, j))
            parts.append(part.take((part.query >= pictures[0]) & (part.query <= pictures[-1])))
    every = Candidates.joined(parts)
    job, none = search.job, np.full(len(pictures), -np.inf, np.float32)
    local = replace(every, query=np.searchsorted(pictures, every.query))
    kept, left_out = prune(local, search.wanted, Floors(none, none), job.slack())
    catalogue = _catalogue(job)
    query = pictures[kept.query]
    return rescore(
        catalogue, catalogue, query, kept.match, scoring=job.scoring, mirrored=job.mirrored
    ), left_out


def _catalogue(job: _Job) -> Block:
    """All pictures: a picture's number is its position."""
    return job.block(np.arange(len(_opened(job.target)[1])))


def _same_picture_pairs(search: Search, pictures: np.ndarray) -> Pairs:
    """Each picture that several items show, with itself: garment 0 against garment 0, score and normalised
    score 1 by definition, however few regions can be seen and however plain they are."""
    sides = search.sides
    several = sides.queries.count[pictures] + sides.partners.count[pictures] > (2 if sides.symmetric else 1)
    shared = pictures[several & (sides.partners.count[pictures] > 0)]
    block = search.job.first_garments(shared)
    rows = np.arange(len(shared))
    found = rescore(block, block, rows, rows, scoring=search.job.scoring, mirrored=False)
    one = np.ones_like(found.score)
    return replace(found, score=one, normalised=one)


def _best_of_each(
    query: np.ndarray, score: np.ndarray, normalised: np.ndarray, wanted: Wanted
) -> tuple[np.ndarray, int]:
    """Positions of the pairs that are kept, from pairs sorted by query and rank; how many the limit drops."""
    first = np.flatnonzero(np.diff(query, prepend=-1))
    rank = np.arange(len(query)) - np.repeat(first, np.diff(first, append=len(query)))
    reached = wanted.reached(score, normalised)
    # Between pairs that reach the thresholds some may stand that do not; they take no place.
    listed = (rank < wanted.best_k) | reached
    before = np.cumsum(listed) - listed
    kept = listed & (before - before[first].repeat(np.diff(first, append=len(query))) < wanted.limit)
    return np.flatnonzero(kept), int((reached & ~kept).sum())


def _pair_table(search: Search, pairs: Pairs, query: np.ndarray, match_item: np.ndarray) -> pa.Table:
    vectors, levels = _opened(search.job.target)[0], _levels(search.job.target)
    verdict = judge(pairs.cos, pairs.comparable, search.calibration.kept_threshold)
    # The same picture is the same garment, however little of it can be seen.
    same_picture = pairs.query == pairs.match
    relation = np.where(same_picture, IDENTICAL, verdict.relation)
    first = np.flatnonzero(np.diff(query, prepend=-1))
    rank = np.arange(len(query)) - np.repeat(first, np.diff(first, append=len(query))) + 1
    level = (
        _level(vectors, levels, pairs.query, pairs.query_garment)
        + _level(vectors, levels, pairs.match, pairs.match_garment)
    ) / 2
    columns = {
        "query_item_id": search.sides.item_id.take(query),
        "match_item_id": search.sides.item_id.take(match_item),
        "rank": rank,
        "score": pairs.score,
        "relation": _words(RELATIONS, relation),
        "modified_regions": _modified(verdict.states),
        **{
            column: pa.array(pairs.cos[:, r], mask=~pairs.comparable[:, r])
            for r, column in enumerate(COS_COLUMNS)
        },
        "mirrored": pairs.mirrored,
        "query_garment": pairs.query_garment,
        "match_garment": pairs.match_garment,
        **{column: _words(STATES, verdict.states[:, r]) for r, column in enumerate(STATE_COLUMNS)},
        "normalised_score": np.where(same_picture, np.float32(1), normalise(pairs.score, level)),
    }
    arrays = [
        value.cast(field.type) if isinstance(value, pa.Array) else pa.array(value).cast(field.type)
        for field, value in ((field, columns[field.name]) for field in PAIR_SCHEMA)
    ]
    return pa.Table.from_arrays(arrays, schema=PAIR_SCHEMA)


def _level(vectors: Vectors, levels: np.ndarray, picture: np.ndarray, garment: np.ndarray) -> np.ndarray:
    starts = first_garments(vectors)
    number = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(vectors)))
    # Garments stand in the order of picture and index; int16 indices fit below the picture's number.
    key = (number << 16) + vectors.garment
    return levels[np.searchsorted(key, (picture << 16) + garment)]


def _words(names: Sequence[str], codes: np.ndarray) -> pa.Array:
    return pa.array(names).take(pa.array(codes.astype(np.int32)))


def _modified(states: np.ndarray) -> pa.Array:
    """Names of the changed regions of each pair; there are only 32 different lists."""
    bits = np.packbits(states == CHANGED, axis=1, bitorder="little")[:, 0]
    lists = [[name for r, name in enumerate(REGIONS) if code >> r & 1] for code in range(1 << NUM_REGIONS)]
    return pa.array(lists, pa.list_(pa.string())).take(pa.array(bits.astype(np.int32)))
