"""Stage verify: look again at the photographs of likely pairs.

    pairs.parquet ─ likely, of two sellers ─▶ parts ─ [photographs laid upon each other] ─▶ verified.parquet

Whoever copies a garment often takes its photograph too. Where one photograph can be laid upon the other
(`psnet.verification`) that is evidence which no cosine gives, however much of the picture was edited, and
what was edited can be told region by region. ``pipeline.judge`` takes it above the features' word; a pair
whose photographs cannot be laid upon each other is judged by its features alone.

What costs most is to find a photograph's local features, so pairs that share photographs are looked at one
after the other. Parts are committed one by one, so a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.calibration import load_calibration
from pipeline.errors import RunError, UserError
from pipeline.extract import garment_shards, write_shard
from pipeline.items import Items, exclusion
from pipeline.progress import track
from pipeline.ray_tasks import in_tasks
from pipeline.rundir import RunDirectory, inputs_digest
from pipeline.schema import (
    CHANGED_COLUMNS,
    VERIFIED_SCHEMA,
    pack_homography,
    unpack_boxes,
    unpack_landmarks,
    unpack_presence,
)
from pipeline.settings import Settings
from psnet.config import digest
from psnet.image import ImageError, decode_image
from psnet.regions import NUM_REGIONS
from psnet.verdict import Calibration, is_likely_copy

if TYPE_CHECKING:
    from psnet.verification import Sight, Verifier

PART = 128
"""Pairs of one part: some seconds."""
# Photographs that a worker keeps, decoded.
_AT_HAND = 48

Key = tuple[str, int]
"""A garment: its picture's SHA-256 and its index there."""

_PLACE_COLUMNS = [
    "image_sha256",
    "garment_index",
    "image_width",
    "image_height",
    "box",
    "region_boxes",
    "presence",
    "landmarks",
]

_SIDES = ("", "other_")


def verify(run: RunDirectory, settings: Settings) -> None:
    """RUN/verified.parquet.

    Nothing is looked at, and the table is empty, where ``verify.enabled`` is off or the weights come without
    a comparison network.

    Raises:
        UserError: the match is not done, the weights cannot be used.
        RunError: the disk is full, or workers keep dying. Finished parts stay.
    """
    from psnet.verification import METHOD
    from psnet.weights import WeightsError, comparison_digest

    calibration = load_calibration(settings)
    try:
        network = comparison_digest(settings.extract.weights)
    except WeightsError as error:
        raise UserError(str(error)) from None
    wanted = settings.verify.enabled and bool(network) and calibration.changed_threshold is not None
    of = inputs_digest(
        run.require_current("crawl"),
        run.require_current("match"),
        digest(settings.verify, results_only=True),
        f"{network}-{METHOD}" if wanted else "",
        str(settings.extract.decode_side),
        *(str(threshold) for threshold in (calibration.suspect_threshold, calibration.normalised_threshold)),
    )
    former = run.stage_record("verify")
    inputs = of
    looked_at = bool(former.get("done")) and former.get("of") == of
    if looked_at:
        # A photograph that could not be read may be there again: those pairs are looked at anew, others not.
        again = former.get("failed", {}).get("unreadable")
        inputs = inputs_digest(of, former["inputs_digest"]) if again else former["inputs_digest"]
    with run.stage("verify", inputs, [run.verified_path]) as stage:
        if stage.finished:
            return
        try:
            found = VERIFIED_SCHEMA.empty_table()
            if wanted:
                known = found
                if looked_at and run.verified_path.exists():
                    known = pq.read_table(run.verified_path, schema=VERIFIED_SCHEMA)
                    known = known.filter(pc.not_equal(known["status"], "unreadable"))
                pairs = _without(likely_pairs(run, settings, calibration), known)
                found = _verified(run, settings, pairs, f"{network}-{METHOD}-{settings.extract.decode_side}")
                found = pa.concat_tables([known, found])
            found = found.sort_by([(name, "ascending") for name in VERIFIED_SCHEMA.names[:4]])
            write_shard(run.verified_path, found, {})
        except OSError as error:
            reason = error.strerror or error
            raise RunError(
                f"{run.verified_path}: cannot be written ({reason}); finished parts are kept"
            ) from None
        for part in run.verify_dir.glob("*.parquet"):
            part.unlink(missing_ok=True)
        count = Counter(found["status"].to_pylist())
        stage.output_digest = hashlib.sha256(run.verified_path.read_bytes()).hexdigest()
        stage.note(of=of)
        stage.count_in = found.num_rows
        stage.count_out = count["registered"]
        if count["unreadable"]:
            stage.fail("unreadable", count["unreadable"])
        stage.note(not_registered=count["not_registered"])
        if not wanted:
            stage.note(
                skipped="verify.enabled is off"
                if not settings.verify.enabled
                else "the weights have no calibrated comparison network"
            )


def is_suspicious(pairs: pa.Table, calibration: Calibration) -> pa.ChunkedArray:
    """Which rows of PAIR_SCHEMA reach the thresholds of a suspect by their features."""
    return pc.and_(
        pc.greater_equal(pairs["score"], pa.scalar(calibration.suspect_threshold, pa.float32())),
        pc.greater_equal(
            pairs["normalised_score"], pa.scalar(calibration.normalised_threshold, pa.float32())
        ),
    )


def is_likely(pairs: pa.Table, settings: Settings, calibration: Calibration) -> pa.ChunkedArray:
    """Which rows of PAIR_SCHEMA may be looked at again, or are suspects anyway."""
    score, normalised = (np.asarray(pairs[name]) for name in ("score", "normalised_score"))
    chosen = settings.verify
    looked_at = is_likely_copy(score, normalised, chosen.min_score, chosen.min_normalised_score)
    return pc.or_(pa.chunked_array([looked_at]), is_suspicious(pairs, calibration))


def likely_pairs(run: RunDirectory, settings: Settings, calibration: Calibration) -> pa.Table:
    """Pairs of garments worth a second look, each once, as the first four columns of VERIFIED_SCHEMA and
    ``mirrored``; those that share photographs stand close together.

    All that would be suspects by their features, and of each item the ``verify.max_pairs_per_item`` best from
    ``verify.min_normalised_score`` or ``verify.min_score`` on. Without those that are never reported, and
    those of one picture.
    """
    chosen = settings.verify
    columns = ["query_item_id", "match_item_id", "score", "normalised_score", "mirrored"]
    pairs = pq.read_table(run.pairs_path, columns=[*columns, "query_garment", "match_garment"])
    pairs = pairs.filter(is_likely(pairs, settings, calibration))
    pairs = pairs.append_column("suspicious", is_suspicious(pairs, calibration))
    items = Items(pq.read_table(run.items_path))
    taken: Counter[str] = Counter()
    mirrored: dict[tuple[Key, Key], bool] = {}
    for batch in pairs.to_batches(max_chunksize=10_000):
        for pair in batch.to_pylist():
            query, match = items[pair["query_item_id"]], items[pair["match_item_id"]]
            if query["image_sha256"] == match["image_sha256"] or exclusion(query, match):
                continue
            taken[query["item_id"]] += 1
            if taken[query["item_id"]] > chosen.max_pairs_per_item and not pair["suspicious"]:
                continue
            one, other = sorted(
                [
                    (query["image_sha256"], pair["query_garment"]),
                    (match["image_sha256"], pair["match_garment"]),
                ]
            )
            mirrored.setdefault((one, other), pair["mirrored"])
    rows = [(*one, *other, mirrored[one, other]) for one, other in _by_reading(sorted(mirrored))]
    schema = pa.schema([VERIFIED_SCHEMA.field(name) for name in (*VERIFIED_SCHEMA.names[:4], "mirrored")])
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)


def _by_reading(pairs: list[tuple[Key, Key]]) -> list[tuple[Key, Key]]:
    """The pairs in the order in which they are looked at."""
    from psnet.verification import reading_order

    number = {key: at for at, key in enumerate(dict.fromkeys(key for pair in pairs for key in pair))}
    ends = np.array([[number[key] for key in pair] for pair in pairs], int).reshape(-1, 2)
    return [pairs[at] for at in reading_order(*ends.T)]


@dataclass(frozen=True)
class _Job:
    """What every part needs to know."""

    weights: str | None
    network: str
    max_pixels: int
    decode_side: int


def _verified(run: RunDirectory, settings: Settings, pairs: pa.Table, network: str) -> pa.Table:
    """VERIFIED_SCHEMA of all pairs, from parts of which those missing are made."""
    folder = run.verify_dir
    folder.mkdir(parents=True, exist_ok=True)
    job = _Job(settings.extract.weights, network, settings.crawl.max_pixels, settings.extract.decode_side)
    places = _places(run, pairs)
    parts = {
        folder / _part_name(network, part): part
        for part in (pairs.slice(start, PART) for start in range(0, len(pairs), PART))
    }
    missing = {target: part for target, part in parts.items() if not _is_whole(target)}
    with track(sum(map(len, missing.values())), "verify", "pairs") as progress:
        tasks = {target: (part, _places_in(part, places), target) for target, part in missing.items()}
        for target in in_tasks(settings, "the verification", _verify_part, job, tasks):
            progress.advance(len(missing[target]))
    tables = [pq.read_table(target, schema=VERIFIED_SCHEMA) for target in parts]
    return pa.concat_tables(tables) if tables else VERIFIED_SCHEMA.empty_table()


def _is_whole(part: Path) -> bool:
    """Whether it is there, and every photograph could be read."""
    return part.exists() and "unreadable" not in pq.read_table(part, columns=["status"])["status"].to_pylist()


def _without(pairs: pa.Table, known: pa.Table) -> pa.Table:
    """``pairs`` that ``known`` does not hold."""
    if not known.num_rows:
        return pairs
    seen = set(_keys(known))
    return pairs.filter(pa.array([key not in seen for key in _keys(pairs)], pa.bool_()))


def _part_name(network: str, part: pa.Table) -> str:
    keys = hashlib.sha256(f"{network} {part.to_pylist()}".encode()).hexdigest()[:16]
    return f"part-{keys}.parquet"


@dataclass(frozen=True)
class Place:
    """A garment in its photograph on disk; boxes in pixels of the upright original."""

    path: str
    width: int
    height: int
    box: np.ndarray
    region_boxes: np.ndarray
    presence: np.ndarray
    landmarks: np.ndarray

    def scale(self, pixels: np.ndarray) -> np.ndarray:
        """(2,) by how much ``pixels`` are reduced; per axis, because a reduced side is rounded up."""
        return np.array([pixels.shape[1] / self.width, pixels.shape[0] / self.height])

    def sight(self, pixels: np.ndarray) -> Sight:
        """``pixels``: of the photograph, perhaps reduced."""
        from psnet.verification import Sight

        one = self.scale(pixels).astype(np.float32)
        scale, points = np.tile(one, 2), self.landmarks[:, :2] * one
        return Sight.of(pixels, self.box * scale, self.region_boxes * scale, self.presence, points)


def _places(run: RunDirectory, pairs: pa.Table) -> dict[Key, Place]:
    wanted = pa.concat_arrays([pairs[f"{side}image_sha256"].combine_chunks() for side in _SIDES]).unique()
    items = pq.read_table(run.items_path, columns=["image_sha256", "image_path", "status"])
    items = items.filter(
        pc.and_(pc.equal(items["status"], "ok"), pc.is_in(items["image_sha256"], value_set=wanted))
    )
    paths = dict(zip(items["image_sha256"].to_pylist(), items["image_path"].to_pylist(), strict=True))
    return dict(places_in(garment_shards(run), wanted, paths))


def places_in(
    shards: Iterable[Path], wanted: pa.Array, paths: Mapping[str, str]
) -> Iterator[tuple[Key, Place]]:
    """Where to see the garments of some pictures.

    Args:
        shards: of GARMENT_SCHEMA. wanted: SHA-256 of the pictures. paths: the local file of each.
    """
    chosen = pc.field("image_sha256").isin(wanted) & pc.field("box").is_valid()
    for shard in shards:
        yield from _places_of(pq.read_table(shard, columns=_PLACE_COLUMNS, filters=chosen), paths)


def _places_of(garments: pa.Table, paths: Mapping[str, str]) -> Iterator[tuple[Key, Place]]:
    boxes = unpack_boxes(garments["box"], (4,))
    regions = unpack_boxes(garments["region_boxes"], (NUM_REGIONS, 4))
    presence = unpack_presence(garments["presence"])
    points = [unpack_landmarks(value) for value in garments["landmarks"].to_pylist()]
    scalars = garments.select(_PLACE_COLUMNS[:4]).to_pylist()
    for row, *found in zip(scalars, boxes, regions, presence, points, strict=True):
        sha256 = row["image_sha256"]
        where = Place(paths[sha256], row["image_width"], row["image_height"], *found)
        yield (sha256, row["garment_index"]), where


def _keys(part: pa.Table) -> list[tuple[Key, Key]]:
    columns = [
        part[f"{side}{name}"].to_pylist() for side in _SIDES for name in ("image_sha256", "garment_index")
    ]
    return [((a, i), (b, j)) for a, i, b, j in zip(*columns, strict=True)]


def _places_in(part: pa.Table, places: Mapping[Key, Place]) -> dict[Key, Place]:
    return {key: places[key] for pair in _keys(part) for key in pair}


def _verify_part(job: _Job, part: pa.Table, places: Mapping[Key, Place], target: Path) -> None:
    """The task: some pairs, committed as ``target``."""
    verifier = _verifier(job.weights, job.network)
    sights = Sights(places, job.max_pixels, job.decode_side)
    rows = []
    with one_thread():
        for (one, other), mirrored in zip(_keys(part), part["mirrored"].to_pylist(), strict=True):
            row: dict[str, Any] = {
                "image_sha256": one[0],
                "garment_index": one[1],
                "other_image_sha256": other[0],
                "other_garment_index": other[1],
                "status": "unreadable",
                "mirrored": mirrored,
            }
            first, second = sights[one], sights[other]
            if first is not None and second is not None:
                row["status"] = "not_registered"
                found = verifier.verify(first, second)
                if found is not None:
                    reduced, enlarged = (
                        places[one].scale(first.pixels),
                        1 / places[other].scale(second.pixels),
                    )
                    matrix = np.diag([*enlarged, 1]) @ found.matrix @ np.diag([*reduced, 1])
                    laid = found.laid * np.concatenate([1 / reduced, enlarged])
                    row.update(
                        status="registered",
                        mirrored=found.mirrored,
                        registered_points=found.points,
                        homography=pack_homography(matrix),
                        laid=laid.ravel().tolist(),
                        **{
                            column: None if np.isnan(value) else float(value)
                            for column, value in zip(CHANGED_COLUMNS, found.changed, strict=True)
                        },
                    )
            rows.append(row)
    write_shard(target, pa.Table.from_pylist(rows, schema=VERIFIED_SCHEMA), {})


@functools.lru_cache(maxsize=1)
def _verifier(weights: str | None, network: str) -> Verifier:
    """``network`` tells weights that were trained anew, which a worker must not take for those it has."""
    from psnet.verification import Verifier

    verifier = Verifier.load(weights)
    assert verifier is not None
    return verifier


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums in another order would differ in the last bits, and the same pairs shall get the same answer."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Sights:
    """Garments as `psnet.verification` wants them, read when asked for; the last ones stay at hand."""

    def __init__(self, places: Mapping[Key, Place], max_pixels: int, decode_side: int) -> None:
        self._places, self._limits = places, {"max_pixels": max_pixels, "target_side": decode_side}
        self._sight = functools.lru_cache(maxsize=_AT_HAND)(self._read)

    def __getitem__(self, key: Key) -> Sight | None:
        """None where the picture can no longer be read, or is another one by now."""
        return self._sight(key)

    def _read(self, key: Key) -> Sight | None:
        place = self._places[key]
        try:
            data = Path(place.path).read_bytes()
            if hashlib.sha256(data).hexdigest() != key[0]:
                return None
            pixels = decode_image(data, **self._limits).pixels
        except (OSError, ImageError):
            return None
        return place.sight(pixels)
