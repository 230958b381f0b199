"""All pairs: the stage against faiss and against the bare eight-bit product, and how it grows.

    python benchmarks/all_pairs.py measure --work FOLDER --json FILE [--white] [--sizes 10000 20000 100000]
    python benchmarks/all_pairs.py million --work FOLDER --json FILE        resumable: start it again
    python benchmarks/all_pairs.py report FILE [FILE ...] --out benchmarks/SCALING.md

The garments are synthetic, 5 regions of 256 numbers (``synthetic``): looks in clusters of many sizes around a
common mean, one garment in a hundred a copy of another with up to two regions changed, one in a thousand so
plain that it resembles all. Their second moments and scores follow those of photographs (``likeness``); with
``--white`` they have no preferred directions, and the products take all 256 numbers. The stage is the real
one (``pipeline.match.match`` with best_k 20, without the mirror image, as faiss has none; once with it), from
a finished extraction to pairs.parquet.

Ratios are of CPU seconds, which a busy machine changes least, with the same number of threads on both sides.
faiss is timed with a slice of the queries against the whole catalogue, in a process of its own, and scaled
up; its work is the same for every query.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from extraction import CpuMeter

from pipeline.extract import write_shard
from pipeline.match import match, read_background
from pipeline.products import largest_code, multiply
from pipeline.rundir import RunDirectory
from pipeline.runtime import cpu_flags
from pipeline.schema import ITEM_SCHEMA, garment_schema, pack_features, pack_presence
from pipeline.settings import load_settings
from psnet.regions import Presence

DIM, BEST_K = 256, 20
_SHARD = 20_000
_FAISS_QUERIES = 2_000
_CHECKED_QUERIES = 300

# --- the catalogue


class Nature(NamedTuple):
    """What synthetic features are like.

    ``spectrum``: {index: eigenvalue} of a region's second moments, geometric in between. ``common``: share of
    a part that the five regions have in common, the rest being each one's own. Shares of the squared norm:
    ``mean`` of all garments, ``kind``, ``style`` and ``look``; what is left is the garment's own. ``kinds``,
    ``styles``: how many.
    """

    spectrum: dict[int, float]
    common: float
    mean: float
    kind: float
    style: float
    look: float
    kinds: int
    styles: int


# Eigenvalues of 2,930 garments of photographs under the shipped model, mean of the regions (the first two
# less what the mean and the kinds bring along); the shares were fitted to the quantiles in ``MEASURED``.
PHOTOGRAPHS = Nature(
    {0: 0.037, 1: 0.082, 2: 0.104, 4: 0.077, 8: 0.0398, 12: 0.0243, 16: 0.0124, 24: 0.00242, 32: 0.0005}
    | {40: 0.00019, 48: 0.000114, 64: 0.000058, 96: 0.000028, 128: 0.000016, 255: 0.000002},
    common=0.55,
    mean=0.085,
    kind=0.29,
    style=0.13,
    look=0.04,
    kinds=21,
    styles=95,
)
WHITE = Nature({0: 1.0, 255: 1.0}, common=0, mean=0.31, kind=0, style=0, look=0.26, kinds=1, styles=1)

# Of the same photographs: quantiles of the scores of any two of them, the median of a garment's best, 5th,
# 20th and 100th score, and quantiles of what one in a hundred reaches (its level).
_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
_RANKS, _LEVELS = (1, 5, 20, 100), (0.1, 0.5, 0.9)
MEASURED = {
    "scores": (-0.219, -0.040, 0.221, 0.490, 0.674, 0.785),
    "ranks": (0.799, 0.738, 0.681, 0.574),
    "levels": (0.599, 0.668, 0.730),
}
_MEASURED_GARMENTS = 2_523


def synthetic(
    count: int, seed: int = 0, nature: Nature = PHOTOGRAPHS
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Features and those of the flipped pictures, (shard, 5, 256) float16 each, shard by shard."""
    rng = np.random.default_rng(seed)
    variance = np.exp(
        np.interp(np.arange(DIM), list(nature.spectrum), np.log(list(nature.spectrum.values())))
    )
    scale = np.sqrt(variance / variance.sum()).astype(np.float32)
    axes = np.stack([np.linalg.qr(rng.standard_normal((DIM, DIM)))[0] for _ in range(5)]).astype(np.float32)

    def draw(size: int) -> np.ndarray:
        shared = rng.standard_normal((size, 1, DIM), dtype=np.float32)
        own = rng.standard_normal((size, 5, DIM), dtype=np.float32)
        return (nature.common**0.5 * shared + (1 - nature.common) ** 0.5 * own) * scale

    def turned(features: np.ndarray) -> np.ndarray:
        """In directions of their own, half precision."""
        rotated = np.matmul(features.transpose(1, 0, 2), axes).transpose(1, 0, 2)
        return np.ascontiguousarray(rotated, np.float16)

    def popular(size: int, first: float) -> np.ndarray:
        chance = 1 / (np.arange(size) + first)
        return chance / chance.sum()

    mean = np.eye(1, DIM, dtype=np.float32)
    kinds, styles, looks = draw(nature.kinds), draw(nature.styles), draw(count // 25 + 8)
    kind_of_style = rng.choice(len(kinds), len(styles), p=popular(len(kinds), 2))
    style_of_look = rng.choice(len(styles), len(looks), p=popular(len(styles), 10))
    popularity, plain = popular(len(looks), 10), draw(1)
    left = 1 - nature.mean - nature.kind - nature.style - nature.look
    for start in range(0, count, _SHARD):
        size = min(_SHARD, count - start)
        # Half of them follow fashion, the others come from small series.
        fashion = rng.choice(len(looks), size, p=popularity)
        look = np.where(rng.random(size) < 0.5, fashion, rng.integers(len(looks), size=size))
        style = style_of_look[look]
        features = left**0.5 * draw(size) + nature.mean**0.5 * mean
        features += nature.look**0.5 * looks[look] + nature.style**0.5 * styles[style]
        features += nature.kind**0.5 * kinds[kind_of_style[style]]
        everyday = rng.choice(size, size // 1000, replace=False)
        features[everyday] = mean + 0.3 * plain + 0.3 * draw(len(everyday))
        copies = rng.choice(np.arange(1, size), size // 100, replace=False)
        features[copies] = features[rng.integers(copies)] + 0.15 * draw(len(copies))
        for copy in copies:
            changed = rng.choice(5, rng.integers(3), replace=False)
            features[copy, changed] = draw(1)[0, changed]
        features /= np.linalg.norm(features, axis=-1, keepdims=True)
        # As near to each other as those of photographs are (0.93, median).
        flipped = features + 0.39 * draw(size)
        flipped /= np.linalg.norm(flipped, axis=-1, keepdims=True)
        yield turned(features), turned(flipped)


def likeness(nature: Nature = PHOTOGRAPHS) -> dict[str, list[float]]:
    """As ``MEASURED``, of as many synthetic garments."""
    rng = np.random.default_rng(1)
    features = next(synthetic(_MEASURED_GARMENTS, nature=nature))[0].astype(np.float32)
    planes = np.matmul(features.transpose(1, 0, 2), features.transpose(1, 2, 0))
    scores = np.sort(planes, axis=0)[2:].mean(0)
    others = scores[~np.eye(len(scores), dtype=bool)].reshape(len(scores), -1)
    others = -np.sort(-others, axis=1)
    found = {
        "scores": np.quantile(rng.choice(others.ravel(), 1_000_000), _QUANTILES),
        "ranks": np.median(others[:, np.array(_RANKS) - 1], axis=0),
        "levels": np.quantile(others[:, len(others) // 100], _LEVELS),
    }
    return {name: [float(value) for value in values] for name, values in found.items()}


def write_run(work: Path, count: int, nature: Nature = PHOTOGRAPHS) -> RunDirectory:
    """A run that is crawled and extracted; one garment a picture, one picture an item."""
    run = RunDirectory(work / f"run-{'white-' if nature is WHITE else ''}{count}")
    if run.items_path.exists():
        return run
    run.update(kind="scan", model_tag="psnet-synthetic")
    run.garments_dir.mkdir(parents=True, exist_ok=True)
    schema = garment_schema(DIM)
    for number, (features, flipped) in enumerate(synthetic(count, nature=nature)):
        names = [f"{number * _SHARD + row:064x}" for row in range(len(features))]
        values: dict[str, Any] = {
            "image_sha256": names,
            "garment_index": np.zeros(len(names), np.int16),
            "status": ["ok"] * len(names),
            "group": ["tops"] * len(names),
            "presence": pack_presence(np.full((len(names), 5), Presence.PRESENT, np.uint8)),
            "features": pack_features(features),
            "mirrored_features": pack_features(flipped),
        }
        write_shard(run.garments_dir / f"s-{number:04d}.parquet", _table(values, schema, len(names)), {})
    run.items_path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"{number:064x}" for number in range(count)]
    items = {"item_id": [f"i{name[-8:]}" for name in names], "image_sha256": names, "status": ["ok"] * count}
    for stage, digest in (("extract", "extracted"), ("crawl", "crawled")):
        with run.stage(stage, digest) as record:
            record.count_in = record.count_out = count
            record.note(shard_prefix="s-")
    pq.write_table(_table(items, ITEM_SCHEMA, count), run.items_path)
    return run


def _table(values: dict[str, Any], schema: pa.Schema, count: int) -> pa.Table:
    """What the stage does not read is empty."""
    arrays = []
    for field in schema:
        value = values.get(field.name)
        if value is None:
            empty = "" if pa.types.is_string(field.type) else 0
            value = pa.nulls(count, field.type) if field.nullable else [empty] * count
        arrays.append(value if isinstance(value, pa.Array) else pa.array(value, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def all_features(run: RunDirectory) -> np.ndarray:
    """(n, 1280) float32, in the order of the items."""
    shards = [
        pq.read_table(path, columns=["features"])["features"] for path in sorted(run.garments_dir.glob("*"))
    ]
    raw = [np.frombuffer(b"".join(shard.to_pylist()), np.float16) for shard in shards]
    return np.concatenate(raw).reshape(-1, 5 * DIM).astype(np.float32)


# --- what is measured


class MemoryMeter(threading.Thread):
    """Most memory, in bytes, that this process and all it starts hold at once of their own: without the
    pages of files, which the system takes back when it needs them."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._mark, self._end, self.peak = f"PSNET_BENCHMARK={os.getpid()}\0".encode(), threading.Event(), 0

    def run(self) -> None:
        while not self._end.wait(0.5):
            total = 0
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    if process.name == str(os.getpid()) or self._mark in (process / "environ").read_bytes():
                        status = (process / "status").read_text()
                        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
                        total += int(fields["RssAnon"].split()[0]) << 10
                except (OSError, KeyError, ValueError):
                    continue
            self.peak = max(self.peak, total)

    def stop(self) -> None:
        self._end.set()
        self.join()


def run_stage(run: RunDirectory, cpus: int, *, mirrored: bool = False) -> dict[str, Any]:
    """The stage match, timed; finished blocks of the same search are kept."""
    overrides = [f"match.best_k={BEST_K}", f"match.mirrored={mirrored}", f"ray.num_cpus={cpus}"]
    with CpuMeter() as meter:
        memory = MemoryMeter()
        memory.start()
        begun = time.perf_counter()
        match(run, load_settings(None, overrides))
        wall = time.perf_counter() - begun
        memory.stop()
    record = run.stage_record("match")
    return {
        "wall_s": wall,
        "cpu_s": meter.seconds,
        "memory_bytes": memory.peak,
        **{
            name: record[name]
            for name in ("scan_cpu_seconds", "compare_cpu_seconds", "out", "pairs_left_out", "multiplied_dim")
        },
        **{name: record[name] for name in ("blocks", "blocks_found", "threshold", "normalised_threshold")},
    }


def int8_product(side: int = 2048, dim: int = DIM) -> float:
    """Nanoseconds of a pair, 5 × ``dim`` numbers, one thread: the bare product as the search takes it, the
    median of a few."""
    torch.set_num_threads(1)
    largest = largest_code()
    codes = torch.randint(-largest, largest + 1, (2, 5, side, dim), dtype=torch.int8)
    out = torch.empty(side, side, dtype=torch.int32)
    return _nanoseconds(lambda r: multiply(codes[0, r], codes[1, r], out), side)


def int8_product_by_default(side: int, dim: int) -> float | None:
    """``int8_product`` with the instructions that oneDNN takes by itself; None where it has no AMX."""
    if "amx_int8" not in cpu_flags():
        return None
    script = f"import all_pairs; print(all_pairs.int8_product({side}, {dim}))"
    found = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "DEFAULT"},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(found.stdout)


def _short_products() -> tuple[float, float | None]:
    """Of 48 numbers, as the search takes it and as oneDNN would, in turn: a virtual core's speed may change
    by a factor of two within minutes. The least of each."""
    turns = [(int8_product(512, 48), int8_product_by_default(512, 48)) for _ in range(5)]
    by_default = [ns for _, ns in turns if ns is not None]
    return min(ns for ns, _ in turns), min(by_default, default=None)


def float32_product(side: int = 2048) -> float:
    torch.set_num_threads(1)
    values = torch.randn(2, 5, side, DIM)
    out = torch.empty(side, side)
    return _nanoseconds(lambda r: torch.mm(values[0, r], values[1, r].T, out=out), side)


def numkong_product(side: int = 2048, dim: int = DIM) -> float | None:
    """None where numkong is not installed; it is no dependency."""
    try:
        import numkong
    except ImportError:
        return None
    codes = np.random.default_rng(0).integers(-127, 128, (2, 5, side, dim), dtype=np.int8)
    packed = [numkong.dots_pack(codes[1, r], "int8") for r in range(5)]
    out = numkong.zeros((side, side), dtype="int32")
    return _nanoseconds(lambda r: numkong.dots_packed(codes[0, r], packed[r], out=out), side)


def _nanoseconds(multiply: Any, side: int) -> float:
    times = []
    for _ in range(15):
        begun = time.process_time()
        for region in range(5):
            multiply(region)
        times.append(time.process_time() - begun)
    return float(np.median(times)) / side**2 * 1e9


_FAISS = """
import json, resource, sys, time
import faiss, numpy as np
queries, k, threads = (int(number) for number in sys.argv[2:])
base = np.load(sys.argv[1])
faiss.omp_set_num_threads(threads)
index = faiss.IndexFlatIP(base.shape[1])
index.add(base)
index.search(base[:64], k)
used = lambda: sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
cpu, wall = used(), time.perf_counter()
index.search(base[:queries], k)
print(json.dumps({"cpu_s": used() - cpu, "wall_s": time.perf_counter() - wall}))
"""


def faiss_search(features: Path, count: int, cpus: int, coretype: str | None) -> dict[str, float]:
    """IndexFlatIP searching itself, from a slice of the queries."""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    environment |= {"OMP_NUM_THREADS": str(cpus)} | ({"OPENBLAS_CORETYPE": coretype} if coretype else {})
    queries = min(_FAISS_QUERIES, count)
    found = subprocess.run(
        [sys.executable, "-c", _FAISS, str(features), str(queries), str(BEST_K), str(cpus)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name: value * count / queries for name, value in json.loads(found.stdout).items()}


def different_pairs(run: RunDirectory, features: np.ndarray, stage: dict[str, Any]) -> dict[str, int]:
    """The stage's pairs of some queries against float32 brute force: the best 20 and all above the thresholds
    (of those that lie within 2e-5 of a cut either answer is right)."""
    count = len(features)
    queries = np.linspace(0, count - 1, _CHECKED_QUERIES).astype(int)
    background = read_background(run)
    level = background["level"].to_numpy()
    names = [f"i{number:08x}" for number in queries]
    pairs = pq.read_table(
        run.pairs_path, columns=["query_item_id", "match_item_id", "score", "normalised_score"]
    )
    pairs = pairs.filter(pa.compute.is_in(pairs["query_item_id"], value_set=pa.array(names)))
    listed: dict[str, dict[int, tuple[float, float]]] = {}
    for query, other, score, value in zip(*(column.to_pylist() for column in pairs.columns), strict=True):
        listed.setdefault(query, {})[int(other[1:], 16)] = score, value
    missing = wrong = seen = 0
    for number, name in zip(queries, names, strict=True):
        regions = (features[number].reshape(5, 1, DIM) @ features.reshape(count, 5, DIM).transpose(1, 2, 0))[
            :, 0
        ]
        score = np.sort(regions, axis=0)[2:].mean(0)
        mean = (level[number] + level) / 2
        value = (score - mean) / np.maximum(1 - mean, 0.05)
        value[number] = -np.inf
        slack = 2e-5 / np.maximum(1 - mean, 0.05)
        kth = np.partition(value, -BEST_K)[-BEST_K]
        reached = (score >= stage["threshold"] + 2e-5) & (value >= stage["normalised_threshold"] + slack)
        surely = set(np.flatnonzero((value > kth + slack) | reached).tolist())
        possibly = (score >= stage["threshold"] - 2e-5) & (value >= stage["normalised_threshold"] - slack)
        perhaps = set(np.flatnonzero((value >= kth - slack) | possibly).tolist())
        found = listed.get(name, {})
        seen += len(found)
        missing += len(surely - found.keys())
        wrong += len(found.keys() - perhaps)
        wrong += sum(abs(found[x][1] - value[x]) > 1e-4 for x in found)
    return {"queries": len(queries), "pairs": seen, "missing": missing, "wrong": int(wrong)}


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    nature = WHITE if arguments.white else PHOTOGRAPHS
    result: dict[str, Any] = {"machine": machine(), "cpus": arguments.cpus, "white": arguments.white}
    result["sizes"] = {}
    for count in arguments.sizes:
        run = write_run(arguments.work, count, nature)
        stage = _anew(run, arguments.cpus)
        stage["int8_ns"] = int8_product()
        result["sizes"][str(count)] = stage
        print(count, json.dumps(stage), flush=True)
    largest = max(arguments.sizes)
    run = write_run(arguments.work, largest, nature)
    features = all_features(run)
    result["check"] = different_pairs(run, features, result["sizes"][str(largest)])
    result["mirrored"] = _anew(run, arguments.cpus, mirrored=True)
    file = arguments.work / "features.npy"
    np.save(file, features)
    del features
    short, by_default = _short_products()
    result["products"] = {
        "int8": int8_product(),
        "int8_48": short,
        "int8_48_amx": by_default,
        "float32": float32_product(),
        "numkong_int8": numkong_product(),
        "numkong_int8_48": numkong_product(512, 48),
    }
    result["faiss"] = {
        "best": faiss_search(file, largest, arguments.cpus, "SkylakeX"),
        "installed": faiss_search(file, largest, arguments.cpus, None),
    }
    file.unlink()
    result["likeness"] = likeness(nature)
    return result


def _anew(run: RunDirectory, cpus: int, *, mirrored: bool = False) -> dict[str, Any]:
    shutil.rmtree(run.match_dir, ignore_errors=True)
    run.pairs_path.unlink(missing_ok=True)
    return run_stage(run, cpus, mirrored=mirrored)


def million(arguments: argparse.Namespace) -> dict[str, Any]:
    count = arguments.count
    run = write_run(arguments.work, count, WHITE if arguments.white else PHOTOGRAPHS)
    stage = run_stage(run, arguments.cpus)
    stage["int8_ns"] = int8_product()
    return {
        "machine": machine(),
        "cpus": arguments.cpus,
        "white": arguments.white,
        "sizes": {str(count): stage},
    }


# --- the report

# Of a data-centre GPU (H100 or H200 class): measured there, bfloat16 product and copy of memory.
_GPU_FLOPS, _GPU_BYTES = 790e12, 4.3e12


def report(results: Sequence[dict[str, Any]]) -> str:
    stages: dict[tuple[bool, int], dict[str, Any]] = {}
    for result in results:
        stages |= {(result["white"], int(count)): stage for count, stage in result["sizes"].items()}
    full = {result["white"]: result for result in results if "faiss" in result}
    first = full[False]
    sizes = {count: stage for (white, count), stage in stages.items() if not white}
    lines = [
        "# All pairs: speed and growth",
        "",
        "Written by `python benchmarks/all_pairs.py report` from what `measure` and `million` measured; the",
        "script says how. Synthetic garments, 5 regions of 256 numbers, in clusters, with planted copies;",
        f"the best {BEST_K} of each and all above the thresholds; without the mirror image unless it says",
        "so, as faiss has none.",
        "",
        f"Machine: {first['machine']['processor']}, {first['machine']['cpus']} cores, torch "
        f"{first['machine']['torch']}; load {first['machine']['load']:.1f} when it began. Other programs ran",
        "as well: seconds on the clock say little, and CPU seconds are what is compared.",
        "",
        *_features(first["likeness"]),
        *_growth(stages),
    ]
    for white, result in full.items():
        largest = max(int(count) for count in result["sizes"])
        lines += _comparison(result["sizes"][str(largest)], result, largest, white)
    return "\n".join([*lines, *_kernels(first["products"]), *_outlook(sizes)]) + "\n"


def _features(found: dict[str, list[float]]) -> list[str]:
    names = [f"any two, {quantile:.1%}" for quantile in _QUANTILES]
    names += [f"a garment's {rank}{'st' if rank == 1 else 'th'} best, median" for rank in _RANKS]
    names += [f"what 1 in 100 reaches, {quantile:.0%}" for quantile in _LEVELS]
    columns = [[value for key in MEASURED for value in one[key]] for one in (MEASURED, found)]
    return [
        "## Features",
        "",
        "As photographs have them: the eigenvalues of each region's second moments are those of 2,930",
        "garments of photographs under the shipped model, which fall by a thousand over 40 of 256",
        f"directions, and the scores are near theirs ({_MEASURED_GARMENTS:,} of each, all visible):",
        "",
        "| score | photographs | synthetic |",
        "|---|---|---|",
        *(f"| {name} | {a:.3f} | {b:.3f} |" for name, a, b in zip(names, *columns, strict=True)),
        "",
        "White (`--white`): of no preferred directions, so that nothing can be projected; everything is done "
        "with 256",
        "numbers a region.",
        "",
    ]


def _cpu(stage: dict[str, Any]) -> float:
    return stage["scan_cpu_seconds"] + stage["compare_cpu_seconds"]


def _bare(stage: dict[str, Any], count: int) -> float:
    """CPU seconds of the bare products of all 256 numbers: each pair once, symmetry counted."""
    return stage["int8_ns"] * 1e-9 * count**2 / 2


def _growth(stages: dict[tuple[bool, int], dict[str, Any]]) -> list[str]:
    lines = [
        "## Growth",
        "",
        "Numbers: of a region, that the eight-bit products take (256 are projected on so many, "
        "`pipeline/quantise.py`).",
        "Scan: projection, eight-bit products, filter and float32 scores of what passes. Exact: the "
        "comparison that",
        "counts, and the table. Stage: everything, Ray's start, levels, reading and writing included. "
        "Memory: what all",
        "processes together hold of their own, Ray's included (some 1.5 GB that do not grow); the "
        "features stay",
        "memory-mapped on disk. Bare product: torch's product of 5 × 256 numbers in eight bits, each pair",
        "once, measured after each run; above 100 % the scan takes less than that.",
        "",
        "| garments | numbers | scan, CPU-s | exact, CPU-s | stage, CPU-s | stage, s | pairs listed | "
        "memory, GB | scan, ns a pair | bare product's share |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (white, count), stage in sorted(stages.items()):
        scan, name = stage["scan_cpu_seconds"], f"{count:,}{', white' if white else ''}"
        if "note" in stage:  # of an older measurement, written into the file by hand
            name += f", {stage['note']}"
        lines.append(
            f"| {name} | {stage['multiplied_dim']} | {scan:.1f} | "
            f"{stage['compare_cpu_seconds']:.1f} | {stage['cpu_s']:.0f} | {stage['wall_s']:.0f} | "
            f"{stage['out']:,} | {stage['memory_bytes'] / 1e9:.2f} | "
            f"{scan / (count**2 / 2) * 1e9:.2f} | {_bare(stage, count) / scan:.0%} |"
        )
    lines += [
        "",
        f"Exponent of the scan's CPU seconds from one size to the next: {_exponents(stages, False)}.",
        "A pair has two parts: its product and the filter, which grow with N², and what it takes to find the "
        "best of each",
        "item (pairs that are among the best so far, each scored in float32), which grows with N log N; the "
        "smaller the",
        "catalogue and the cheaper the product, the more the second shows, and the further the exponent "
        "stays below 2",
        "(10,000 are one block and do not start Ray).",
    ]
    if white := _exponents(stages, True):
        lines.append(f"Of white features, where nothing makes the products cheaper: {white}.")
    return [*lines, ""]


def _exponents(stages: dict[tuple[bool, int], dict[str, Any]], white: bool) -> str:
    scans = {count: stage["scan_cpu_seconds"] for (kind, count), stage in stages.items() if kind == white}
    return "; ".join(
        f"{one:,} to {other:,}: {np.log(scans[other] / scans[one]) / np.log(other / one):.2f}"
        for one, other in pairwise(sorted(scans))
    )


def _comparison(stage: dict[str, Any], full: dict[str, Any], count: int, white: bool) -> list[str]:
    scan, both, bare = stage["scan_cpu_seconds"], _cpu(stage), _bare(stage, count)
    best, installed = full["faiss"]["best"]["cpu_s"], full["faiss"]["installed"]["cpu_s"]
    check, mirrored = full["check"], full["mirrored"]
    return [
        f"## Against faiss, {count:,} garments{', white' if white else ''}, {full['cpus']} threads",
        "",
        f"faiss `IndexFlatIP` of 1,280 numbers searching itself for {BEST_K}, on the same features, from "
        f"{_FAISS_QUERIES:,} queries,",
        "scaled up. It sums all five regions; what is searched for here, the mean of the best three, it",
        "cannot express.",
        "",
        "| | CPU-s | ratio to the scan | ratio to scan and exact comparison with the table |",
        "|---|---|---|---|",
        f"| scan | {scan:.1f} | 1 | |",
        f"| scan, exact comparison, table | {both:.1f} | | 1 |",
        f"| faiss, `OPENBLAS_CORETYPE=SkylakeX` | {best:.0f} | {best / scan:.1f} | {best / both:.1f} |",
        f"| faiss as installed | {installed:.0f} | {installed / scan:.1f} | {installed / both:.1f} |",
        f"| bare eight-bit products, each pair once | {bare:.1f} | {bare / scan:.2f} | {bare / both:.2f} |",
        f"| scan with the mirror image (what a scan does unless told otherwise) | "
        f"{mirrored['scan_cpu_seconds']:.1f} | {mirrored['scan_cpu_seconds'] / scan:.2f} times | |",
        f"| the same, exact comparison, table | {_cpu(mirrored):.1f} | | {_cpu(mirrored) / both:.2f} times |",
        "",
        f"Checked against float32 brute force with {check['queries']} queries, {check['pairs']:,} "
        f"listed pairs: {check['missing']} missing, {check['wrong']} wrong.",
        "",
    ]


def _kernels(products: dict[str, float | None]) -> list[str]:
    rows = {
        "torch `_int_mm`": (
            products["int8"],
            "taken: exact in int32 (`pipeline/products.py`), and torch is there anyway",
        ),
        "numkong `dots_packed`, int8": (
            products["numkong_int8"],
            "as exact; one more dependency",
        ),
        "torch float32": (products["float32"], "what scored every pair before"),
        "torch `_int_mm` of 48 numbers": (
            products["int8_48"],
            "of projected ones, blocks of 512: what a search multiplies; writing the sums takes half of it",
        ),
        "numkong `dots_packed` of 48 numbers": (products["numkong_int8_48"], "blocks of 512 too"),
    }
    if products.get("int8_48_amx") is not None:
        rows["torch `_int_mm` of 48 numbers, with AMX"] = (
            products["int8_48_amx"],
            "what oneDNN takes by itself: tiles do not pay for short vectors (`pipeline/products.py`)",
        )
    lines = [
        "## Which product",
        "",
        "One thread, blocks of 2,048, 5 × 256 numbers a pair.",
        "",
        "| | ns a pair | |",
        "|---|---|---|",
        *(
            f"| {name} | {'not installed' if ns is None else f'{ns:.2f}'} | {why} |"
            for name, (ns, why) in rows.items()
        ),
        "",
        "faiss's `knn` gives the k nearest by one inner product: no mean of the best three "
        "regions, no presence",
        "masks, no normalised score, no thresholds; it is the yardstick above. What torch's "
        "product leaves in int32",
        "is reduced by a loop that numba compiles (`pipeline/sift.py`): scales, masks, the best "
        "three of five, the",
        "bound and both directions' cuts in one pass over the tile, half a nanosecond a pair.",
        "",
    ]
    return lines


def _outlook(sizes: dict[int, dict[str, Any]]) -> list[str]:
    count = max(sizes)
    stage = sizes[count]
    per_pair = stage["scan_cpu_seconds"] / (count**2 / 2)
    pairs = 1e8**2 / 2
    gpu = pairs * 2 * 5 * DIM / _GPU_FLOPS
    million = per_pair * 1e12 / 2
    lines = ["## Further", ""]
    if count < 1_000_000:
        exact = stage["compare_cpu_seconds"] * 1e6 / count
        lines += [
            f"1,000,000 garments, computed from the figures of {count:,}: {million:,.0f} CPU-s for the scan, "
            f"{exact:,.0f} for the exact comparison, on 2 cores {(million + exact) / 120:.0f} minutes. "
            "`all_pairs.py million` measures it and can be stopped and started again.",
            "",
        ]
    lines += [
        f"100,000,000 garments, computed: {pairs:.0e} pairs. On CPU cores as measured here "
        f"{per_pair * pairs / 3600:,.0f} core-hours, {per_pair * pairs / 3600 / 1000:,.1f} hours "
        "on a thousand cores. "
        "The mirror image multiplies products by three (each pair as it is, and each garment flipped against "
        "the other).",
        "",
        "On GPUs, computed and not measured: 2,560 operations a pair are "
        f"{pairs * 2 * 5 * DIM:.1e}; at the measured "
        f"{_GPU_FLOPS / 1e12:.0f} TFLOP/s of bfloat16 (H100, H200) that is {gpu / 3600:.1f} GPU-hours, "
        f"{2 * gpu / 3600:.0f} at half that rate, {6 * gpu / 3600:.0f} with the mirror image. "
        "Blocks of 16,384 "
        "garments are read once for 16,384² pairs: "
        f"{2 * 16384 * 5 * DIM * 2 / _GPU_BYTES * 1e6:.0f} µs of memory "
        f"for {16384**2 * 2 * 5 * DIM / _GPU_FLOPS * 1e6:.0f} µs of products. The catalogue is "
        "256 GB in bfloat16: "
        "blocks stream from disk, two at a time.",
    ]
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for name, action in (("measure", measure), ("million", million)):
        command = commands.add_parser(name)
        command.add_argument("--work", type=Path, required=True)
        command.add_argument("--json", type=Path, required=True)
        command.add_argument("--cpus", type=int, default=os.cpu_count())
        command.add_argument("--white", action="store_true", help="features of no preferred directions")
        if action is measure:
            command.add_argument("--sizes", type=int, nargs="+", default=[10_000, 20_000, 50_000, 100_000])
        else:
            command.add_argument("--count", type=int, default=1_000_000)
        command.set_defaults(action=action)
    command = commands.add_parser("report")
    command.add_argument("json", type=Path, nargs="+")
    command.add_argument("--out", type=Path, required=True)
    command.set_defaults(action=None)
    parsed = parser.parse_args(arguments)
    if parsed.action is None:
        parsed.out.write_text(report([json.loads(path.read_text()) for path in parsed.json]))
        return
    parsed.work.mkdir(parents=True, exist_ok=True)
    parsed.json.write_text(json.dumps(parsed.action(parsed), indent=1))


if __name__ == "__main__":
    main()
