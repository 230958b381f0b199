"""A catalogue that was never photographed: items and garments tables with planted copies, as crawl and
extract leave them in a run directory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.extract import write_shard
from pipeline.rundir import RunDirectory
from pipeline.schema import ITEM_SCHEMA, garment_schema, pack_features, pack_presence
from psnet.regions import GROUPS, MIRROR, Presence

HIDDEN, ABSENT, PRESENT = Presence.HIDDEN, Presence.ABSENT, Presence.PRESENT


@dataclass
class Catalogue:
    """``features`` (n, 5, d) float16 and ``presence`` (n, 5); ``picture``: (n,) number of each garment's
    picture, ascending; ``group``: (n,) names. ``mirrored``: (n, 5, d)."""

    features: np.ndarray
    mirrored: np.ndarray
    presence: np.ndarray
    picture: np.ndarray
    group: list[str]

    @property
    def garment_index(self) -> np.ndarray:
        first = np.searchsorted(self.picture, self.picture)
        return (np.arange(len(self.picture)) - first).astype(np.int16)


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    values = rng.standard_normal(shape)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def catalogue(
    pictures: int,
    *,
    dim: int = 16,
    seed: int = 0,
    copies: float = 0.3,
    flipped: float = 0.1,
    several: float = 0.2,
    plain: float = 0.0,
    all_visible: bool = False,
    padded: int = 0,
) -> Catalogue:
    """Clusters of looks, a share of copies with up to two changed regions, some flipped, some pictures with
    two garments, a share of plain garments that all resemble each other, more or less, regions hidden and
    absent at random. ``padded``: length of the vectors, all but ``dim`` directions of which are nearly
    empty."""
    rng = np.random.default_rng(seed)
    picture = np.sort(
        np.concatenate([np.arange(pictures), rng.choice(pictures, int(several * pictures), replace=False)])
    )
    count = len(picture)
    looks = unit(rng, max(4, count // 20), 5, dim)
    features = 0.6 * looks[rng.integers(len(looks), size=(count, 1)), np.arange(5)] + 0.8 * unit(
        rng, count, 5, dim
    )
    for copy in rng.choice(np.arange(1, count), int(copies * count), replace=False):
        features[copy] = features[rng.integers(copy)] + 0.15 * unit(rng, 5, dim)
        changed = rng.choice(5, rng.integers(3), replace=False)
        features[copy, changed] = unit(rng, len(changed), dim)
    everyday = rng.choice(count, int(plain * count), replace=False)
    nearness = rng.uniform(0, 0.15, (len(everyday), 1, 1))
    features[everyday] = looks[0] + nearness * unit(rng, len(everyday), 5, dim)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    # Without noise a garment of the same look, flipped, would be an exact tie.
    mirrored = features[:, list(MIRROR)] + 0.05 * unit(rng, count, 5, dim)
    mirrored /= np.linalg.norm(mirrored, axis=-1, keepdims=True)
    for turned in rng.choice(count, int(flipped * count), replace=False):
        features[turned], mirrored[turned] = mirrored[turned].copy(), features[turned].copy()
    presence = np.full((count, 5), PRESENT, np.uint8)
    if not all_visible:
        presence = rng.choice([HIDDEN, ABSENT, PRESENT], (count, 5), p=[0.1, 0.1, 0.8]).astype(np.uint8)
    seen = presence == PRESENT
    if padded:
        axes = np.stack([np.linalg.qr(rng.standard_normal((padded, dim)))[0] for _ in range(5)])
        features, mirrored = (
            np.einsum("nrd,red->nre", values, axes) + 0.05 * unit(rng, count, 5, padded)
            for values in (features, mirrored)
        )
        features /= np.linalg.norm(features, axis=-1, keepdims=True)
        mirrored /= np.linalg.norm(mirrored, axis=-1, keepdims=True)
    return Catalogue(
        (features * seen[..., None]).astype(np.float16),
        (mirrored * seen[:, list(MIRROR), None]).astype(np.float16),
        presence,
        picture,
        list(rng.choice(GROUPS, count)),
    )


def sha(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def garment_table(source: Catalogue, rows: np.ndarray, tag: str = "psnet-test") -> pa.Table:
    """Rows of GARMENT_SCHEMA; columns that matching does not read are null."""
    schema = garment_schema(source.features.shape[2])
    values = {
        "image_sha256": [sha(p) for p in source.picture[rows]],
        "garment_index": source.garment_index[rows],
        "status": ["ok"] * len(rows),
        "error": [""] * len(rows),
        "image_width": np.full(len(rows), 400),
        "image_height": np.full(len(rows), 500),
        "category": ["vest dress"] * len(rows),
        "group": [source.group[row] for row in rows],
        "presence": pack_presence(source.presence[rows]),
        "features": pack_features(source.features[rows]),
        "mirrored_features": pack_features(source.mirrored[rows]),
        "model_tag": [tag] * len(rows),
    }
    arrays = [
        values[field.name]
        if isinstance(values.get(field.name), pa.Array)
        else pa.array(values.get(field.name, [None] * len(rows)), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def item_table(rows: Sequence[Mapping[str, object]]) -> pa.Table:
    """Rows of ITEM_SCHEMA from ``item_id`` and ``image_sha256`` and what else matters; the rest is empty."""
    empty = {"string": "", "int64": 0}
    full = [
        {field.name: row.get(field.name, empty[str(field.type)]) for field in ITEM_SCHEMA}
        | {"status": "ok"}
        | row
        for row in rows
    ]
    return pa.Table.from_pylist(full, schema=ITEM_SCHEMA)


def plain_items(pictures: int) -> list[dict[str, object]]:
    """One item per picture, each of its own seller; identifiers in another order than the pictures."""
    return [
        {
            "item_id": f"i{(number * 7919) % 100_003:06d}",
            "image_sha256": sha(number),
            "seller_id": f"s{number}",
            "listed_at": f"2024-{1 + number % 12:02d}-{1 + number % 28:02d}",
        }
        for number in range(pictures)
    ]


def write_run(
    path: Path, source: Catalogue, items: Sequence[Mapping[str, object]], *, shards: int = 1, seed: int = 0
) -> RunDirectory:
    """A run directory that is crawled and extracted; garments of one picture lie in one shard, in random
    order."""
    run = RunDirectory(path)
    run.update(kind="scan", model_tag="psnet-test")
    with run.stage("crawl", "crawled") as stage:
        stage.count_in = stage.count_out = len(items)
    run.items_path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(item_table(items), run.items_path)
    run.garments_dir.mkdir(exist_ok=True)
    shard = np.random.default_rng(seed).integers(shards, size=source.picture[-1] + 1)[source.picture]
    for number in range(shards):
        rows = np.flatnonzero(shard == number)
        write_shard(run.garments_dir / f"t-{number:03d}.parquet", garment_table(source, rows), {})
    with run.stage("extract", "extracted") as stage:
        stage.note(shard_prefix="t-")
    return run
