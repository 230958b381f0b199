"""Stage index: the garments in FAISS shards, for sweeps and single questions.

    RUN/index/manifest.json        model, configuration, and hashes of every file and of what it was made from
    RUN/index/shard-KEY.faiss      vectors of 5 d numbers, the five regions side by side
    RUN/index/shard-KEY.parquet, .features    the garments behind the rows (``pipeline.vectors``)
    RUN/index/template-KEY.faiss   the trained, empty index, for factories that need training

A shard is made from whole garments files and named after their contents: when some are added or removed, only
the shards made from them are built anew. Vectors are stored unscaled. The weights of Eq. 1 scale the query
only, and "at most two regions modified" becomes one query for each three regions, the others zero: the
greatest of their inner products is the score, wherever no cosine is negative. What is found is compared
again, exactly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from pipeline.errors import RunError, UserError
from pipeline.extract import garment_shards
from pipeline.progress import track
from pipeline.rundir import RunDirectory, inputs_digest, write_atomically
from pipeline.settings import IndexSettings, Settings
from pipeline.vectors import Vectors, garment_count, open_vectors, visible_count, write_vectors
from psnet.config import digest
from psnet.regions import NUM_REGIONS, Presence
from psnet.similarity import Comparison, compare, mirrored_presence

_FORMAT = 1
_MANIFEST = "manifest.json"
_SUFFIXES = (".faiss", ".features", ".parquet")
# k-means wants some 40 points per list, and more than 256 per list change little (faiss's own bounds).
_TRAINING_GARMENTS = 200_000
_ROWS_ADDED_AT_ONCE = 16_384
_MASKED_QUERIES_AT_ONCE = 4096
# Approximate lists and negative cosines put the best out of order; so many times more are fetched and
# compared.
_OVERFETCH = 2


def build_index(run: RunDirectory, settings: Settings) -> None:
    """RUN/index/ for the garments of the run.

    Raises:
        UserError: the extraction is not done, or the factory string does not suit the garments.
        RunError: the disk is full.
    """
    shards = garment_shards(run)
    inputs = inputs_digest(run.require("extract"), digest(settings.index, results_only=True))
    manifest = run.index_dir / _MANIFEST
    with run.stage("index", inputs, [manifest]) as stage:
        if stage.finished:
            return
        try:
            run.index_dir.mkdir(parents=True, exist_ok=True)
            done = _Builder(run.index_dir, str(run.read().get("model_tag", "")), settings.index).build(shards)
        except OSError as error:
            raise RunError(f"{run.index_dir}: {error.strerror or error}; finished shards are kept") from None
        stage.count_in = sum(garment_count(shard) for shard in shards)
        stage.count_out = sum(shard["garments"] for shard in done["shards"])
        if stage.count_in > stage.count_out:
            stage.fail("no_visible_region", stage.count_in - stage.count_out)
        stage.note(shards=len(done["shards"]), factory=settings.index.factory)


@dataclass(frozen=True)
class _Source:
    """A file of garments; ``garments`` counts those with something to see."""

    path: Path
    sha256: str
    garments: int


class _Builder:
    def __init__(self, folder: Path, model_tag: str, settings: IndexSettings) -> None:
        self._folder = folder
        self._settings = settings
        self._manifest: dict[str, Any] = {
            "format": _FORMAT,
            "model_tag": model_tag,
            "factory": settings.factory,
            "nprobe": settings.nprobe,
            "template": None,
        }

    def build(self, shards: Sequence[Path]) -> dict[str, Any]:
        sources = [_Source(path, _sha256(path), visible_count(path)) for path in shards]
        former = self._former()
        groups = self._groups(sources, former)
        if groups and former and former["template"]:
            self._manifest["template"] = former["template"]
        entries = []
        with track(len(groups), "index", "shards") as progress:
            for group in groups:
                entries.append(self._shard(group, former))
                progress.advance()
        self._manifest["shards"] = entries
        write_atomically(self._folder / _MANIFEST, (json.dumps(self._manifest, indent=1) + "\n").encode())
        self._remove_what_is_not_named()
        return self._manifest

    def _former(self) -> dict[str, Any] | None:
        """The manifest that is there, if its shards can go on being used."""
        try:
            manifest = read_manifest(self._folder)
        except UserError:
            return None
        same = all(manifest[key] == self._manifest[key] for key in ("format", "model_tag", "factory"))
        return manifest if same else None

    def _groups(self, sources: Sequence[_Source], former: dict[str, Any] | None) -> list[list[_Source]]:
        """Which files go into which shard: as before where nothing has changed, the rest filled up in
        order."""
        by_hash = {source.sha256: source for source in sources}
        groups = []
        for shard in former["shards"] if former else ():
            group = [by_hash.get(sha256) for sha256 in shard["sources"].values()]
            # A shard that is less than half full takes part in the filling, or there would be one more each
            # night.
            if None not in group and shard["garments"] >= self._settings.shard_size / 2:
                groups.append([source for source in group if source is not None])
        kept = {source.sha256 for group in groups for source in group}
        room = 0
        for source in sources:
            if source.sha256 in kept or not source.garments:
                continue
            kept.add(source.sha256)
            if source.garments > room:
                groups.append([])
                room = self._settings.shard_size
            groups[-1].append(source)
            room -= source.garments
        return groups

    def _shard(self, group: Sequence[_Source], former: dict[str, Any] | None) -> dict[str, Any]:
        """The manifest's entry of one shard, built unless it is there."""
        hashes = [source.sha256 for source in group]
        name = f"shard-{inputs_digest(self._manifest['model_tag'], self._settings.factory, *hashes)}"
        for entry in former["shards"] if former else ():
            if entry["name"] == name and _mismatch(self._folder, entry) is None:
                return dict(entry)
        target = self._folder / name
        write_vectors(target, [source.path for source in group])
        vectors = open_vectors(target)
        index = self._empty(vectors)
        for start in range(0, len(vectors), _ROWS_ADDED_AT_ONCE):
            rows = vectors.features[start : start + _ROWS_ADDED_AT_ONCE].astype(np.float32)
            index.add(rows.reshape(len(rows), -1))
        _write_faiss(index, target.with_name(f"{name}.faiss"))
        return {
            "name": name,
            "garments": len(vectors),
            "sources": {source.path.name: source.sha256 for source in group},
            "files": {suffix: _sha256(target.with_name(name + suffix)) for suffix in _SUFFIXES},
        }

    def _empty(self, vectors: Vectors) -> faiss.Index:
        """A trained index without vectors, the same for all shards."""
        if not self._manifest["template"]:
            self._manifest["template"] = self._train(vectors)
        return faiss.read_index(str(self._folder / self._manifest["template"]["name"]))

    def _train(self, vectors: Vectors) -> dict[str, str]:
        """Train on the first shard; its garments stand in the order of their pictures' hashes, which is
        random."""
        count = min(len(vectors), _TRAINING_GARMENTS)
        chosen = np.linspace(0, len(vectors), count, endpoint=False).astype(np.int64)
        rows = vectors.features[chosen].astype(np.float32).reshape(count, -1)
        try:
            index = faiss.index_factory(rows.shape[1], self._settings.factory, faiss.METRIC_INNER_PRODUCT)
            if not index.is_trained:
                index.train(rows)
        except RuntimeError as error:
            reason = " ".join(str(error).split()).rpartition("Error: ")[2][:200]
            raise UserError(
                f"index.factory: {self._settings.factory!r} does not work for {count} garments of "
                f"{rows.shape[1]} numbers ({reason}); use Flat"
            ) from None
        name = f"template-{inputs_digest(self._manifest['model_tag'], self._settings.factory)}.faiss"
        _write_faiss(index, self._folder / name)
        return {"name": name, "sha256": _sha256(self._folder / name)}

    def _remove_what_is_not_named(self) -> None:
        template = self._manifest["template"]
        named = {_MANIFEST, template["name"] if template else ""}
        named |= {entry["name"] + suffix for entry in self._manifest["shards"] for suffix in _SUFFIXES}
        for path in self._folder.iterdir():
            if path.name not in named:
                path.unlink()


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of an index.

    Raises:
        UserError: there is none, or one of another version.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{folder}: holds no index; run `psnet index` first") from None
    if manifest.get("format") != _FORMAT:
        raise UserError(f"{folder}: is an index of another psnet version; run `psnet index` again")
    return manifest


def open_index(run: RunDirectory) -> GarmentIndex:
    """The index of a run, its shards memory-mapped where FAISS can; on the GPUs that FAISS sees.

    Raises:
        UserError: no index, of another model than the run's garments, or a shard that is not the one the
            manifest names.
    """
    folder = run.index_dir
    manifest = read_manifest(folder)
    tag = run.read().get("model_tag", "")
    if manifest["model_tag"] != tag:
        raise UserError(
            f"{folder}: was made with {manifest['model_tag']}, the garments with {tag}; "
            "run `psnet index` again"
        )
    for entry in manifest["shards"]:
        wrong = _mismatch(folder, entry)
        if wrong:
            raise UserError(f"{wrong}; run `psnet index` again")
    return GarmentIndex(
        [_Shard.open(folder / entry["name"], manifest["nprobe"]) for entry in manifest["shards"]]
    )


def _mismatch(folder: Path, entry: dict[str, Any]) -> str | None:
    """What is wrong with a shard's files, None when they are those of the manifest."""
    for suffix, sha256 in entry["files"].items():
        path = folder / (entry["name"] + suffix)
        if not path.exists():
            return f"{path}: is missing"
        if _sha256(path) != sha256:
            return f"{path}: is not the file that the manifest names"
    return None


@dataclass(frozen=True)
class _Shard:
    index: faiss.Index
    on_gpu: faiss.Index | None
    vectors: Vectors

    @classmethod
    def open(cls, target: Path, nprobe: int) -> _Shard:
        index = faiss.read_index(f"{target}.faiss", faiss.IO_FLAG_MMAP_IFC)
        lists = faiss.try_extract_index_ivf(index)
        if lists is not None:
            lists.nprobe = nprobe
        try:
            on_gpu = faiss.index_cpu_to_all_gpus(index) if faiss.get_num_gpus() else None
        except RuntimeError:  # a kind of index that has no GPU version, or too large for the card
            on_gpu = None
        return cls(index, on_gpu, open_vectors(target))


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

    ``query``; ``sha256`` and ``garment``: key of the garment; ``comparison``: exact.
    """

    query: np.ndarray
    sha256: np.ndarray
    garment: np.ndarray
    comparison: Comparison


class GarmentIndex:
    """All shards of an index, searched together."""

    def __init__(self, shards: Sequence[_Shard]) -> None:
        self._shards = shards

    def __len__(self) -> int:
        """Number of garments."""
        return sum(len(shard.vectors) for shard in self._shards)

    def search(
        self,
        features: np.ndarray,
        presence: np.ndarray,
        weights: np.ndarray,
        k: int,
        *,
        mirrored_features: np.ndarray | None = None,
        scoring: str = "best_regions",
    ) -> Found:
        """The best ``k`` garments of each query, exactly scored.

        Args:
            features: (nq, 5, d) unit norm where present, zero elsewhere; presence: (nq, 5) uint8.
            weights: (nq, 5) of the queries' groups. mirrored_features: (nq, 5, d) of the queries' flipped
                pictures; with them flipped garments are found as well.
            scoring: a name of ``psnet.similarity.SCORINGS``.
        """
        found = self.candidates(
            features, presence, weights, k, mirrored_features=mirrored_features, scoring=scoring
        )
        parts = []
        for number, shard in enumerate(self._shards):
            here = found.shard == number
            query, row = found.query[here], found.row[here]
            comparison = compare(
                features[query].astype(np.float32),
                presence[query],
                shard.vectors.features[row],
                shard.vectors.presence[row],
                weights[query],
                mirrored_x=None if mirrored_features is None else shard.vectors.mirrored[row],
                scoring=scoring,
            )
            sha256 = shard.vectors.sha256.take(row).to_numpy(zero_copy_only=False)
            parts.append((query, sha256, shard.vectors.garment[row], comparison))
        if not parts:
            return _nothing_found()
        query, sha256, garment = (np.concatenate([part[i] for part in parts]) for i in range(3))
        names = Comparison.__dataclass_fields__
        comparison = Comparison(*(np.concatenate([getattr(p[3], n) for p in parts]) for n in names))
        order = np.lexsort((garment, sha256, -comparison.score, query))
        first = np.searchsorted(query[order], query[order])
        order = order[np.arange(len(order)) - first < k]
        return Found(
            query[order],
            sha256[order],
            garment[order],
            Comparison(*(getattr(comparison, name)[order] for name in names)),
        )

    def candidates(
        self,
        features: np.ndarray,
        presence: np.ndarray,
        weights: np.ndarray,
        k: int,
        *,
        mirrored_features: np.ndarray | None = None,
        scoring: str = "best_regions",
        allowed: Sequence[np.ndarray] | None = None,
    ) -> Candidates:
        """Garments among which the best ``k`` of each query are; arguments as in ``search``.

        A flipped garment is found by the query's flipped picture: the index holds plain features only.

        Args:
            allowed: per shard the rows to choose from; None: all.
        """
        vectors, owner = masked_queries(features, presence, weights, scoring)
        if mirrored_features is not None:
            # Weights belong to the query's own regions, which stand elsewhere in the flipped picture.
            flipped, its_owner = masked_queries(
                mirrored_features, mirrored_presence(presence), mirrored_presence(weights), scoring
            )
            vectors, owner = np.concatenate([vectors, flipped]), np.concatenate([owner, its_owner])
        keys = [np.empty((0, 3), np.int64)]
        for number, shard in enumerate(self._shards):
            rows = None if allowed is None else allowed[number]
            count = min(_OVERFETCH * k, len(shard.vectors) if rows is None else len(rows))
            if not count:
                continue
            parameters = None if rows is None else _selecting(shard.index, rows)
            index = shard.on_gpu if shard.on_gpu is not None and rows is None else shard.index
            for start in range(0, len(vectors), _MASKED_QUERIES_AT_ONCE):
                at = slice(start, start + _MASKED_QUERIES_AT_ONCE)
                _, row = index.search(vectors[at], count, params=parameters)
                query = np.repeat(owner[at], count)
                key = np.stack([query, np.full(len(query), number), row.ravel()], axis=1)
                keys.append(np.unique(key[key[:, 2] >= 0], axis=0))
        query, shard_number, row = np.unique(np.concatenate(keys), axis=0).T
        return Candidates(query, shard_number, row)

    def pictures(self) -> list[pa.Array]:
        """Per shard the image hash of each of its rows."""
        return [shard.vectors.sha256 for shard in self._shards]


def masked_queries(
    features: np.ndarray, presence: np.ndarray, weights: np.ndarray, scoring: str
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors whose inner product with a garment is its score: (m, 5 d) float32, and the query of each (m,).

    ``weighted``: one per query, the regions scaled by their weights. ``best_regions``: one for every three
    regions of positive weight, at most ten; those that come out alike, since regions are hidden, once.
    Divided by their weights, so that inner products of one query's vectors can be compared.
    """
    visible = (presence == Presence.PRESENT) & (weights > 0)
    chosen: Sequence[Sequence[int]] = [range(NUM_REGIONS)]
    if scoring == "best_regions":
        chosen = list(combinations(range(NUM_REGIONS), 3))
    vectors, owners = [], []
    for query in range(len(features)):
        sets = {tuple(r for r in regions if visible[query, r]) for regions in chosen} - {()}
        for regions in sorted(sets):
            scale = np.zeros(NUM_REGIONS, np.float32)
            scale[list(regions)] = weights[query, list(regions)] / weights[query, list(regions)].sum()
            vectors.append((features[query] * scale[:, None]).astype(np.float32).ravel())
            owners.append(query)
    if not vectors:
        return np.empty((0, features[0].size if len(features) else 0), np.float32), np.empty(0, np.int64)
    return np.stack(vectors), np.array(owners, np.int64)


def _selecting(index: faiss.Index, rows: np.ndarray) -> faiss.SearchParameters:
    """Search among ``rows`` only; the index's own parameters stay."""
    library: Any = faiss  # its type stubs know nothing of keyword arguments
    selector = library.IDSelectorBatch(rows)
    inner = library.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    if isinstance(inner, library.IndexIVF):
        parameters = library.SearchParametersIVF(sel=selector, nprobe=inner.nprobe)
    elif isinstance(inner, library.IndexHNSW):
        parameters = library.SearchParametersHNSW(sel=selector, efSearch=inner.hnsw.efSearch)
    else:
        parameters = library.SearchParameters(sel=selector)
    if inner is not index:
        parameters = library.SearchParametersPreTransform(index_params=parameters)
    return parameters


def _nothing_found() -> Found:
    none = np.empty(0, np.int64)
    regions = np.empty((0, NUM_REGIONS), np.float32)
    empty = Comparison(none.astype(np.float32), regions, regions.astype(bool), none.astype(bool))
    return Found(none, none.astype(object), none.astype(np.int16), empty)


def _write_faiss(index: faiss.Index, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        faiss.write_index(index, str(temporary))
        temporary.replace(target)
    except RuntimeError as error:
        raise RunError(f"{target}: cannot be written ({' '.join(str(error).split())[-200:]})") from None
    finally:
        temporary.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
