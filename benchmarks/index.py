"""Sweeps and single questions through the FAISS index, on synthetic garments.

    python benchmarks/index.py FOLDER --garments 1000000 --originals 1000 [--factory auto] [--out
    benchmarks/INDEX.md]

Features are synthetic: in every region 32 dimensions of 256 carry the look (as in the shipped model's
features), drawn around a few thousand styles of uneven size, so that neighbours are as near as those of
photographs. Every original has three copies in the catalogue, with none, one and two regions changed; every
other copy is flipped. The run directory is a real one, and so are its stages; only images there are none. It
stays in FOLDER (5 kB a garment and the index), and a second call goes on from there.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import time
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.garment_index import as_queries, open_index
from pipeline.index import build_index
from pipeline.index_manifest import Manifest
from pipeline.match import match
from pipeline.missed import in_words
from pipeline.rundir import RunDirectory
from pipeline.scan import take_over
from pipeline.schema import ITEM_SCHEMA, garment_schema, pack_features, pack_presence
from pipeline.settings import load_settings
from psnet.regions import GROUPS, MIRROR, NUM_REGIONS, Presence
from psnet.similarity import equal_weights

DIM, LATENT, STYLES, SHARD = 256, 32, 2000, 20_000
CHANGED = (0, 1, 2)


class Looks:
    """Draws garments; the same seed gives the same ones."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._axes = np.stack(
            [np.linalg.qr(rng.standard_normal((DIM, LATENT)))[0].T for _ in range(NUM_REGIONS)]
        )
        # Energies fall as they do in the shipped features: 91 % in the first half.
        self._scale = (0.88 ** np.arange(LATENT)).astype(np.float32)
        self._styles = rng.standard_normal((STYLES, NUM_REGIONS, LATENT)).astype(np.float32)
        self._chance = 1 / np.arange(10, STYLES + 10)
        self._chance /= self._chance.sum()

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count, 5, LATENT) looks."""
        style = rng.choice(STYLES, count, p=self._chance)
        own = rng.standard_normal((count, NUM_REGIONS, LATENT), dtype=np.float32)
        return (0.65 * self._styles[style] + 0.75 * own) * self._scale

    def features(self, looks: np.ndarray) -> np.ndarray:
        """(n, 5, 256) float16 of unit norm."""
        looks = looks / np.linalg.norm(looks, axis=-1, keepdims=True)
        return np.moveaxis(np.matmul(np.moveaxis(looks, 1, 0), self._axes.astype(np.float32)), 0, 1).astype(
            np.float16
        )


def copies(looks: np.ndarray, changed: int, source: Looks, rng: np.random.Generator) -> np.ndarray:
    """Looks of copies: what is kept is seen a little differently (cosine about 0.94), ``changed`` regions are
    others'."""
    scale = np.linalg.norm(looks, axis=-1, keepdims=True)
    noise = rng.standard_normal(looks.shape).astype(np.float32)
    made = looks + 0.36 * scale * noise / np.linalg.norm(noise, axis=-1, keepdims=True)
    others = source.draw(len(looks), rng)
    replaced = rng.permuted(np.arange(NUM_REGIONS) < np.full((len(looks), 1), changed), axis=1)
    return np.where(replaced[..., None], others, made)


def write_shard(
    path: Path, names: list[str], looks: np.ndarray, flipped: np.ndarray, source: Looks, tag: str
) -> None:
    """Garments as extract leaves them; columns that searching does not read are null."""
    plain = source.features(looks)
    turned = plain[:, list(MIRROR)]
    features = np.where(flipped[:, None, None], turned, plain)
    mirrored = np.where(flipped[:, None, None], plain, turned)
    count = len(names)
    values = {
        "image_sha256": pa.array(names),
        "garment_index": np.zeros(count, np.int16),
        "status": ["ok"] * count,
        "error": [""] * count,
        "image_width": np.zeros(count, np.int32),
        "image_height": np.zeros(count, np.int32),
        "group": [GROUPS[0]] * count,
        "presence": pack_presence(np.full((count, NUM_REGIONS), Presence.PRESENT, np.uint8)),
        "features": pack_features(features),
        "mirrored_features": pack_features(mirrored),
        "model_tag": [tag] * count,
    }
    schema = garment_schema(DIM)
    arrays = [
        values[f.name]
        if isinstance(values.get(f.name), pa.Array)
        else pa.array(values.get(f.name, [None] * count), f.type)
        for f in schema
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path)


def begin(folder: Path, kind: str, names: list[str], items: list[str]) -> RunDirectory:
    """A run that is crawled."""
    run = RunDirectory(folder)
    run.update(kind=kind, model_tag="psnet-synthetic")
    with run.stage("crawl", "synthetic") as stage:
        stage.count_in = stage.count_out = len(items)
    empty = {"string": "", "int64": 0}
    columns = [
        pa.array({"item_id": items, "image_sha256": names, "status": ["ok"] * len(items)}[f.name])
        if f.name in ("item_id", "image_sha256", "status")
        else pa.repeat(pa.scalar(empty[str(f.type)], f.type), len(items))
        for f in ITEM_SCHEMA
    ]
    run.items_path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_arrays(columns, schema=ITEM_SCHEMA), run.items_path)
    return run


def extracted(run: RunDirectory) -> None:
    with run.stage("extract", "synthetic") as stage:
        stage.note(shard_prefix="synthetic-")


def sha(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def write_runs(folder: Path, garments: int, originals: int) -> tuple[RunDirectory, RunDirectory]:
    """The catalogue's run and the sweep's, whose originals are drawn first."""
    source, rng = Looks(), np.random.default_rng(1)
    ours = source.draw(originals, rng)
    mine = [f"original-{n:06d}" for n in range(originals)]
    planted = [f"copy-{n:06d}-{changed}" for changed in CHANGED for n in range(originals)]
    others = [f"item-{n:08d}" for n in range(garments - len(planted))]
    items = planted + others
    names = [sha(item) for item in items]
    catalogue = folder / f"catalogue-{garments}"
    run = RunDirectory(catalogue)
    if not run.stage_record("extract").get("done"):
        run = begin(catalogue, "scan", names, items)
        made = np.concatenate([copies(ours, changed, source, rng) for changed in CHANGED])
        order = rng.permutation(garments)
        for number, start in enumerate(range(0, garments, SHARD)):
            rows = order[start : start + SHARD]
            looks = source.draw(len(rows), rng)
            is_copy = rows < len(planted)
            looks[is_copy] = made[rows[is_copy]]
            path = run.garments_dir / f"synthetic-{number:04d}.parquet"
            write_shard(
                path,
                [names[row] for row in rows],
                looks,
                is_copy & (rows % 2 == 1),
                source,
                "psnet-synthetic",
            )
        extracted(run)
    sweep = begin(folder / f"sweep-{garments}", "sweep", [sha(item) for item in mine] + names, mine + items)
    pq.write_table(pa.table({"item_id": mine}), sweep.queries_path)
    write_shard(
        sweep.garments_dir / "synthetic-originals.parquet",
        [sha(item) for item in mine],
        ours,
        np.zeros(originals, bool),
        source,
        "psnet-synthetic",
    )
    return run, sweep


def found_copies(sweep: RunDirectory, best: int = 20) -> dict[int, float]:
    """Share of the planted copies among their originals' best partners, by number of changed regions."""
    pairs = pq.read_table(sweep.pairs_path, columns=["query_item_id", "match_item_id", "rank"])
    pairs = pairs.filter(pc.less_equal(pairs["rank"], best))
    listed = set(zip(pairs["query_item_id"].to_pylist(), pairs["match_item_id"].to_pylist(), strict=True))
    mine = pq.read_table(sweep.queries_path)["item_id"].to_pylist()
    return {c: np.mean([(i, f"copy-{i[-6:]}-{c}") in listed for i in mine]) for c in CHANGED}


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--garments", type=int, default=1_000_000)
    parser.add_argument("--originals", type=int, default=1000)
    parser.add_argument("--factory", default="auto")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    settings = load_settings(None, [f"index.factory='{arguments.factory}'", *arguments.overrides])

    run, sweep = write_runs(arguments.folder, arguments.garments, arguments.originals)
    seconds = {}

    def timed(name: str, work: object) -> None:
        start, of_cpu = time.perf_counter(), time.process_time()
        work()  # type: ignore[operator]
        seconds[name] = time.perf_counter() - start, time.process_time() - of_cpu
        print(f"{name}: {seconds[name][0]:.2f} s, {seconds[name][1]:.2f} CPU-s", flush=True)

    timed("catalogue: template, shards and audit", lambda: build_index(run, settings))
    timed("sweep: take over garments and index", lambda: take_over(run, sweep))
    extracted(sweep)
    timed("sweep: index the originals", lambda: build_index(sweep, settings))
    timed("sweep: search, exact comparison, pairs", lambda: match(sweep, settings))
    index = open_index(run)
    timed("open the index", lambda: open_index(run))
    rng = np.random.default_rng(2)
    shard = rng.integers(len(index.shards), size=20)
    garments = index.gather(shard, rng.integers(SHARD // 2, size=20))
    queries = as_queries(garments, equal_weights(), mirrored=True)
    single = []
    for number in range(len(queries)):
        start = time.perf_counter()
        index.search(queries.take(slice(number, number + 1)), 66)
        single.append(time.perf_counter() - start)
    manifest = Manifest.read(run.index_dir)
    beside = (".features", ".parquet")
    vectors = sum(f.size for one in manifest.shards for s, f in one.files.items() if s not in beside)
    shares = ", ".join(f"{share:.3f} with {c} regions changed" for c, share in found_copies(sweep).items())
    lines = [
        f"## {arguments.garments:,} garments, {arguments.originals:,} originals, {manifest.factory}",
        "",
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, faiss {faiss.__version__}; "
        f"{manifest.region_dim or DIM} numbers a region, nprobe {manifest.nprobe}, "
        f"{len(manifest.shards)} shards, {vectors / 1e6:,.0f} MB beside the features.",
        "",
        "CPU seconds are those of this process; Ray's workers, which fill shards, are not among them.",
        "",
        "| what | seconds | CPU-s |",
        "|---|---|---|",
        *(f"| {name} | {wall:.2f} | {cpu:.2f} |" for name, (wall, cpu) in seconds.items()),
        f"| one garment: search and exact comparison, median of {len(single)} | {np.median(single):.3f} | |",
        f"| the slowest of them | {max(single):.3f} | |",
        "",
        f"Planted copies among the best 20: {shares}.",
        "",
        f"Sweep. {in_words(sweep.stage_record('match').get('missed', {}))}.",
        "",
        f"Catalogue. {in_words(run.stage_record('index').get('missed', {}))}.",
        "",
    ]
    text = "\n".join(lines)
    print(text)
    if arguments.out:
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
