"""Searching an index: candidates from all shards, then the exact comparison.

Vectors lie in the index unscaled. The weights of Eq. 1 scale the query only, and "at most two regions
modified" becomes one query for each three visible regions, the others zero: the greatest of their inner
products is the score wherever the best three cosines are positive, as they must be for a score above 2/3. So,
but for what an approximate index loses, a query's best k with such scores are among the best k of its masked
queries. What is found is compared again, exactly, from the features themselves.

A FAISS index holds plain features only, and finds flipped garments by the query's flipped picture. Region
lists (``pipeline.region_lists``) hold both, and find them as they are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.index_manifest import Manifest, Shard, check_index
from pipeline.index_template import Template, read_template
from pipeline.region_lists import RegionLists, nearest_lists, scan_lists
from pipeline.rundir import RunDirectory
from pipeline.vectors import Vectors, first_garments, open_vectors, weights_of
from psnet.regions import NUM_REGIONS, Presence
from psnet.similarity import Comparison, compare, mirrored_presence

_QUERIES_AT_ONCE = 128
# The same where region lists are looked into: all that they propose for these is at hand.
_ASKED_AT_ONCE = 1024
_COMPARED_AT_ONCE = 4096
# FAISS's kernels on GPUs give no more; a longer list is a CPU's work.
_MOST_FROM_GPU = 2048
# Regions that must agree, see psnet.similarity.best_regions_score.
_KEPT = 3
# The reduction and lossy codes put near neighbours out of order; so many times more are fetched and compared.
_OVERFETCH = 1.5


@dataclass(frozen=True)
class Queries:
    """n garments that are asked about.

    ``features``: (n, 5, d), unit norm where present, zero elsewhere; ``presence``: (n, 5) uint8; ``weights``:
    (n, 5) of their groups; ``mirrored``: (n, 5, d) features of the flipped pictures, with which flipped
    garments are found too; None: not looked for.
    """

    features: np.ndarray
    presence: np.ndarray
    weights: np.ndarray
    mirrored: np.ndarray | None = None

    def take(self, rows: slice | np.ndarray) -> Queries:
        mirrored = None if self.mirrored is None else self.mirrored[rows]
        return Queries(self.features[rows], self.presence[rows], self.weights[rows], mirrored)

    def __len__(self) -> int:
        return len(self.presence)


def as_queries(garments: Vectors, region_weights: np.ndarray, *, mirrored: bool) -> Queries:
    """Garments as questions; ``region_weights``: (4, 5), see ``psnet.verdict.Calibration``."""
    features = garments.features.astype(np.float32)
    flipped = garments.mirrored.astype(np.float32) if mirrored else None
    return Queries(features, garments.presence, weights_of(garments.group, region_weights), flipped)


@dataclass(frozen=True)
class Candidates:
    """Garments that an index gives for queries: arrays of one length, sorted by query, each pair once.

    ``query``: number of the query; ``shard``, ``row``: where the garment is.
    """

    query: np.ndarray
    shard: np.ndarray
    row: np.ndarray


@dataclass(frozen=True)
class Found:
    """The answer to queries, best first: arrays of one length, sorted by query, then score, then garment.

    ``query``, ``shard``, ``row``: as in ``Candidates``; ``sha256`` and ``garment``: key of the garment;
    ``comparison``: exact.
    """

    query: np.ndarray
    shard: np.ndarray
    row: np.ndarray
    sha256: np.ndarray
    garment: np.ndarray
    comparison: Comparison


@dataclass(frozen=True)
class OpenShard:
    """A shard, memory-mapped: a FAISS index, with its copy on the GPUs where there are some, or region
    lists."""

    vectors: Vectors
    index: faiss.Index | None = None
    on_gpu: faiss.Index | None = None
    lists: RegionLists | None = None

    @classmethod
    def open(cls, target: Path, shard: Shard, template: Template, nprobe: int) -> OpenShard:
        """Raises UserError when the files are not a shard of this template."""
        try:
            vectors = open_vectors(target)
            if template.centroids is not None:
                lists = RegionLists.open(target)
                width, held = lists.reduced.shape[2], len(lists)
                expected = template.centroids.shape[2]
                opened = cls(vectors, lists=lists)
            else:
                # Maps what it can (codes of flat, scalar and product quantisers, lists, HNSW), reads the
                # rest.
                index = faiss.read_index(f"{target}.faiss", faiss.IO_FLAG_MMAP_IFC)
                width, held, expected = index.d, index.ntotal, template.whole_vectors.d
                inverted = faiss.try_extract_index_ivf(index)
                if inverted is not None:
                    inverted.nprobe = nprobe
                # The copy takes over how many lists are looked into.
                opened = cls(vectors, index, _on_gpu(index))
        except (RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())[-150:]
            raise UserError(f"{target}: is damaged ({reason}); run `psnet index` again") from None
        if (width, held, len(vectors)) != (expected, shard.garments, shard.garments):
            raise UserError(
                f"{target}: holds {held} vectors of {width} numbers, not {shard.garments} of {expected}; "
                "run `psnet index` again"
            )
        return opened


def _on_gpu(index: faiss.Index) -> faiss.Index | None:
    try:
        return faiss.index_cpu_to_all_gpus(index) if faiss.get_num_gpus() else None
    except RuntimeError:  # a kind of index that has no GPU version, or too large for the card
        return None


def open_index(run: RunDirectory) -> GarmentIndex:
    """The index of a run, its shards memory-mapped; on the GPUs that FAISS sees.

    Raises:
        UserError: no index, of another model than the run's garments, or a shard that does not fit.
    """
    return open_shards(run.index_dir, check_index(run))


def open_shards(folder: Path, manifest: Manifest) -> GarmentIndex:
    """The shards of a manifest whose files have been looked at."""
    if not manifest.shards:
        return GarmentIndex(manifest, Template(None, None, None), [])
    template = read_template(folder / manifest.template, manifest.template_files)
    shards = [OpenShard.open(folder / one.name, one, template, manifest.nprobe) for one in manifest.shards]
    return GarmentIndex(manifest, template, shards)


class GarmentIndex:
    """All shards of an index, searched together."""

    def __init__(self, manifest: Manifest, template: Template, shards: Sequence[OpenShard]) -> None:
        self.manifest = manifest
        self.shards = shards
        self._template = template

    def __len__(self) -> int:
        """Number of garments."""
        return sum(len(shard.vectors) for shard in self.shards)

    def reduce(self, features: np.ndarray) -> np.ndarray:
        """(n, 5, d) features as the index has them, (n, 5, d') float32."""
        return self._template.reduce(features)

    def search(self, queries: Queries, k: int, *, scoring: str = "best_regions") -> Found:
        """The best ``k`` garments of each query, exactly scored.

        Args:
            scoring: a name of ``psnet.similarity.SCORINGS``.
        """
        found = self.compare(
            queries, self.candidates(queries, int(_OVERFETCH * k) + 1, scoring=scoring), scoring=scoring
        )
        first = np.searchsorted(found.query, found.query)
        kept = np.arange(len(first)) - first < k
        return Found(
            found.query[kept],
            found.shard[kept],
            found.row[kept],
            found.sha256[kept],
            found.garment[kept],
            Comparison(*(value[kept] for value in vars(found.comparison).values())),
        )

    def compare(self, queries: Queries, candidates: Candidates, *, scoring: str) -> Found:
        """Candidates compared exactly, best first."""
        order, parts, sha256, garment = [], [], [], []
        for number, shard in enumerate(self.shards):
            here = np.flatnonzero(candidates.shard == number)
            for start in range(0, len(here), _COMPARED_AT_ONCE):
                at = here[start : start + _COMPARED_AT_ONCE]
                query, row = candidates.query[at], candidates.row[at]
                comparison = compare(
                    np.asarray(queries.features[query], np.float32),
                    queries.presence[query],
                    shard.vectors.features[row],
                    shard.vectors.presence[row],
                    queries.weights[query],
                    mirrored_x=None if queries.mirrored is None else shard.vectors.mirrored[row],
                    scoring=scoring,
                )
                order.append(at)
                parts.append(comparison)
                sha256.append(shard.vectors.sha256.take(row).to_numpy(zero_copy_only=False))
                garment.append(shard.vectors.garment[row])
        if not parts:
            return _nothing_found()
        at, names, numbers = (np.concatenate(values) for values in (order, sha256, garment))
        joined = [
            np.concatenate(values) for values in zip(*(vars(part).values() for part in parts), strict=True)
        ]
        query = candidates.query[at]
        best = np.lexsort((numbers, names, -joined[0], query))
        at = at[best]
        return Found(
            candidates.query[at],
            candidates.shard[at],
            candidates.row[at],
            names[best],
            numbers[best],
            Comparison(*(value[best] for value in joined)),
        )

    def candidates(
        self,
        queries: Queries,
        k: int,
        *,
        scoring: str = "best_regions",
        allowed: Sequence[np.ndarray] | None = None,
        deeper: int = 1,
    ) -> Candidates:
        """The ``k`` garments of each query that come out best by the index's own reckoning.

        Args:
            allowed: per shard the rows to choose from; None: all.
            deeper: look into so many times the usual number of region lists.
        """
        centroids = self._template.centroids
        if not len(queries):
            return Candidates(*np.empty((3, 0), np.int64))
        parts = [np.empty((3, 0), np.int64)]
        if centroids is not None:
            may: list[np.ndarray | None] = [None] * len(self.shards)
            if allowed is not None:
                sizes = [len(shard.vectors) for shard in self.shards]
                may = [np.isin(np.arange(n), rows) for n, rows in zip(sizes, allowed, strict=True)]
            for start in range(0, len(queries), _ASKED_AT_ONCE):
                some = queries.take(slice(start, start + _ASKED_AT_ONCE))
                query, shard, row = self._from_lists(centroids, some, k, scoring, may, deeper)
                parts.append(np.stack([start + query, shard, row]))
            return Candidates(*np.concatenate(parts, axis=1))
        selected = [
            None if allowed is None else _Rows(len(shard.vectors), allowed[n])
            for n, shard in enumerate(self.shards)
        ]
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            at = slice(start, start + _QUERIES_AT_ONCE)
            vectors, owner = self._vectors(queries.take(at), scoring)
            if len(vectors):
                query, shard, row = _best_of_each(owner, *self._search(vectors, k, selected), k)
                parts.append(np.stack([start + query, shard, row]))
        return Candidates(*np.concatenate(parts, axis=1))

    def _from_lists(
        self,
        centroids: np.ndarray,
        queries: Queries,
        k: int,
        scoring: str,
        may: Sequence[np.ndarray | None],
        deeper: int,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        features, weights = self._template.reduce(queries.features), queries.weights
        nprobe = min(deeper * self.manifest.nprobe, centroids.shape[1])
        asked = nearest_lists(centroids, features, nprobe)
        lists = [shard.lists for shard in self.shards if shard.lists is not None]
        mirrored = queries.mirrored is not None
        value, number = scan_lists(
            lists, features, weights, asked, k, scoring=scoring, mirrored=mirrored, allowed=may
        )
        ends = np.cumsum([len(shard.vectors) for shard in self.shards])
        shard = np.searchsorted(ends, number, side="right")
        row = np.where(number < 0, -1, number - np.concatenate([[0], ends])[shard])
        return _best_of_each(np.arange(len(queries)), value, shard, row, k)

    def _vectors(self, queries: Queries, scoring: str) -> tuple[np.ndarray, np.ndarray]:
        reduced = self._template.reduce(queries.features)
        vectors, owner = masked_queries(reduced, queries.presence, queries.weights, scoring)
        if queries.mirrored is None:
            return vectors, owner
        # Weights belong to the query's own regions, which stand elsewhere in the flipped picture.
        flipped, its_owner = masked_queries(
            self._template.reduce(queries.mirrored),
            mirrored_presence(queries.presence),
            mirrored_presence(queries.weights),
            scoring,
        )
        return np.concatenate([vectors, flipped]), np.concatenate([owner, its_owner])

    def _search(
        self, vectors: np.ndarray, k: int, selected: Sequence[_Rows | None]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inner product, shard and row of the best of each vector, (m, up to k shards) each; row -1: none."""
        lists = self._lists(vectors)
        values, shards, rows = [], [], []
        for number, shard in enumerate(self.shards):
            chosen = selected[number]
            count = min(k, len(shard.vectors) if chosen is None else chosen.count)
            if not count:
                continue
            value, row = _search_shard(shard, vectors, count, lists, chosen)
            values.append(value)
            rows.append(row)
            shards.append(np.full(row.shape, number))
        if not values:
            none = np.empty((len(vectors), 0), np.int64)
            return none.astype(np.float32), none, none
        joined = [np.concatenate(parts, 1) for parts in (values, shards, rows)]
        if joined[0].shape[1] > k:
            best = np.argpartition(-joined[0], k - 1, axis=1)[:, :k]
            joined = [np.take_along_axis(part, best, 1) for part in joined]
        return joined[0], joined[1], joined[2]

    def _lists(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Which lists each vector looks into, the same in all shards: the template's quantiser is asked
        once."""
        index = self._template.index
        if not isinstance(index, faiss.IndexIVF) or any(shard.on_gpu is not None for shard in self.shards):
            return None
        quantizer: Any = index.quantizer
        found: tuple[np.ndarray, np.ndarray] = quantizer.search(vectors, self.manifest.nprobe)
        return found

    def background_sample(
        self, size: int, allowed: Sequence[np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Shard and row of the first garment of ``size`` pictures, those of the smallest hashes; ``allowed``
        as above."""
        names, shards, rows = [pa.array([], pa.string())], [], []
        for number, shard in enumerate(self.shards):
            # A shard's garments stand in the order of their pictures' hashes (``write_vectors``).
            first = first_garments(shard.vectors)
            if allowed is not None:
                first = first[np.isin(first, allowed[number])]
            first = first[:size]
            names.append(shard.vectors.sha256.take(first))
            rows.append(first)
            shards.append(np.full(len(first), number))
        chosen = pc.sort_indices(pa.concat_arrays(names)).to_numpy()[:size]
        none = [np.empty(0, np.int64)]
        return np.concatenate(none + shards)[chosen], np.concatenate(none + rows)[chosen]

    def gather(self, shard: np.ndarray, row: np.ndarray) -> Vectors:
        """Some garments in memory, in the order given; features float16."""
        dim = self.manifest.shards[0].feature_dim if self.shards else 0
        features = np.empty((len(row), NUM_REGIONS, dim), np.float16)
        mirrored, presence = np.empty_like(features), np.empty((len(row), NUM_REGIONS), np.uint8)
        group, garment = np.empty(len(row), np.int64), np.empty(len(row), np.int16)
        sha256 = np.empty(len(row), object)
        for number in np.unique(shard):
            here = np.flatnonzero(shard == number)
            source = self.shards[number].vectors
            at = row[here]
            features[here], mirrored[here] = source.features[at], source.mirrored[at]
            presence[here], group[here], garment[here] = (
                source.presence[at],
                source.group[at],
                source.garment[at],
            )
            sha256[here] = source.sha256.take(at).to_numpy(zero_copy_only=False)
        return Vectors(pa.array(sha256, pa.string()), garment, group, presence, features, mirrored)


class _Rows:
    """Rows of one shard that may be found."""

    def __init__(self, total: int, rows: np.ndarray) -> None:
        self.count = len(rows)
        self.all = self.count == total
        bits = np.zeros(total, bool)
        bits[rows] = True
        self._bitmap = np.packbits(bits, bitorder="little")
        library: Any = faiss  # its type stubs know nothing of keyword arguments
        self.selector = library.IDSelectorBitmap(total, library.swig_ptr(self._bitmap))


def _search_shard(
    shard: OpenShard,
    vectors: np.ndarray,
    count: int,
    lists: tuple[np.ndarray, np.ndarray] | None,
    rows: _Rows | None,
) -> tuple[np.ndarray, np.ndarray]:
    index: Any = shard.index
    if rows is not None and rows.all:
        rows = None
    if shard.on_gpu is not None and rows is None and count <= _MOST_FROM_GPU:
        on_gpu: Any = shard.on_gpu
        found: tuple[np.ndarray, np.ndarray] = on_gpu.search(vectors, count)
        return found
    parameters = None if rows is None else _selecting(index, rows)
    if lists is None:
        found = index.search(vectors, count, params=parameters)
        return found
    products, numbers = (np.ascontiguousarray(values) for values in lists)
    product, row = np.empty((len(vectors), count), np.float32), np.empty((len(vectors), count), np.int64)
    pointers = [faiss.swig_ptr(values) for values in (vectors, numbers, products, product, row)]
    # Python's search_preassigned takes no parameters.
    vector, lists_at, products_at, to, at = pointers
    index.search_preassigned_c(len(vectors), vector, count, lists_at, products_at, to, at, False, parameters)
    return product, row


def _best_of_each(
    owner: np.ndarray, value: np.ndarray, shard: np.ndarray, row: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Query, shard and row of each query's best ``k`` garments; arguments (m,) and (m, c), several rows a
    query."""
    query = np.repeat(owner, value.shape[1])
    value, shard, row = value.ravel(), shard.ravel(), row.ravel()
    real = row >= 0
    query, value, shard, row = query[real], value[real], shard[real], row[real]
    # Several of a query's vectors find the same garment: the greatest product is its score.
    order = np.lexsort((-value, row, shard, query))
    query, value, shard, row = query[order], value[order], shard[order], row[order]
    repeated = (np.diff(query) == 0) & (np.diff(shard) == 0) & (np.diff(row) == 0)
    first = np.concatenate([[True], ~repeated])[: len(query)]
    query, value, shard, row = query[first], value[first], shard[first], row[first]
    order = np.lexsort((-value, query))
    rank = np.arange(len(order)) - np.searchsorted(query, query)
    kept = np.sort(order[rank < k])
    return query[kept], shard[kept], row[kept]


def masked_queries(
    features: np.ndarray, presence: np.ndarray, weights: np.ndarray, scoring: str
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors whose inner product with a garment is its score: (m, 5 d) float32, and the query of each (m,).

    ``weighted``: one per query, the regions scaled by their weights. ``best_regions``: one for every three
    visible regions of positive weight, at most ten; one of all that is visible where there are fewer than
    three. Divided by their weights, so that inner products of one query's vectors can be compared.
    """
    visible = (presence == Presence.PRESENT) & (weights > 0)
    rows = np.flatnonzero(visible.any(1))
    chosen = [(rows, visible[rows])]
    if scoring == "best_regions":
        few = visible[rows].sum(1) < _KEPT
        chosen = [(rows[few], visible[rows[few]])]
        for kept in combinations(range(NUM_REGIONS), _KEPT):
            mask = np.isin(np.arange(NUM_REGIONS), kept)
            whole = rows[(visible[rows] | ~mask).all(1)]
            chosen.append((whole, np.broadcast_to(mask, (len(whole), NUM_REGIONS))))
    owner = np.concatenate([at for at, _ in chosen])
    scale = np.where(np.concatenate([mask for _, mask in chosen]), weights[owner], 0).astype(np.float32)
    scale /= scale.sum(1, keepdims=True)
    vectors = features[owner] * scale[..., None]
    return vectors.astype(np.float32).reshape(len(owner), features.shape[1] * features.shape[2]), owner


def _selecting(index: faiss.Index, rows: _Rows) -> faiss.SearchParameters:
    """Search among ``rows`` only; the index's own parameters stay."""
    library: Any = faiss
    inner = library.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    if isinstance(inner, library.IndexIVF):
        parameters = library.SearchParametersIVF(sel=rows.selector, nprobe=inner.nprobe)
    elif isinstance(inner, library.IndexHNSW):
        parameters = library.SearchParametersHNSW(sel=rows.selector, efSearch=inner.hnsw.efSearch)
    else:
        parameters = library.SearchParameters(sel=rows.selector)
    if inner is not index:
        parameters = library.SearchParametersPreTransform(index_params=parameters)
    return parameters


def _nothing_found() -> Found:
    none = np.empty(0, np.int64)
    regions = np.empty((0, NUM_REGIONS), np.float32)
    empty = Comparison(none.astype(np.float32), regions, regions.astype(bool), none.astype(bool))
    return Found(none, none, none, none.astype(object), none.astype(np.int16), empty)
