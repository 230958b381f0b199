"""What the pair search and the extraction make of a GPU, against what the card can do.

    python benchmarks/gpu.py [--garments 131072] [--block 65536] [--catalogue CATALOGUE --images 3000]
        [--device cuda] [--out benchmarks/GPU.md]

Matrix rate: float16 products of 8192 × 8192, as torch multiplies them. Kernel: two blocks of synthetic
garments (as in ``benchmarks/index.py``), 5 regions of 256 numbers, best 20 and all above the thresholds, both
directions (``pipeline.torch_kernel``); the time of the whole call, features moved to the card before. A pair
is 2,560 operations, three times that with the mirror image. "Known": with what a first pass has found, as the
later blocks of a large catalogue meet it. A smaller pair of blocks is compared with the CPU's kernel too.
Extraction: the models alone on decoded pictures, and the whole stage with Ray's start, decoding and writing.

Without a GPU it says so and measures nothing; ``--device cpu`` tries the script itself, and its figures say
nothing about a card.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from extraction import pictures_of, predict_all
from index import Looks
from page import add_out, deliver

from pipeline import kernel, torch_kernel
from pipeline.catalogue import read_catalogue
from pipeline.crawl import crawl
from pipeline.extract import Job, extract, load_predictor
from pipeline.kernel import Block, Floors, Kept, Wanted, rounding_slack
from pipeline.rundir import RunDirectory
from pipeline.settings import load_settings
from psnet.regions import MIRROR, NUM_REGIONS, Presence

DIM = 256
OPERATIONS = 2 * NUM_REGIONS * DIM
WANTED = Wanted(best_k=20, threshold=0.85, normalised_threshold=0.6, limit=200)


def seconds_of(work: Callable[[], object], device: str, rounds: int) -> float:
    """The median of some rounds, after one that does not count."""
    spent = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - start)
    return float(np.median(spent[1:]))


def matrix_rate(device: str) -> float:
    """Operations a second of a float16 product."""
    size = 8192 if device == "cuda" else 512
    left, right = torch.randn(2, size, size, device=device).half()
    return 2 * size**3 / seconds_of(lambda: left @ right, device, 10)


def block_of(source: Looks, first: int, count: int) -> Block:
    features = source.features(source.draw(count, np.random.default_rng(first)))
    return Block(
        features=features,
        mirrored=np.ascontiguousarray(features[:, list(MIRROR)]),
        presence=np.full((count, NUM_REGIONS), Presence.PRESENT, np.uint8),
        weights=np.ones((count, NUM_REGIONS), np.float32),
        level=np.full(count, 0.5, np.float32),
        garment=np.zeros(count, np.int16),
        starts=np.arange(count),
        picture=np.arange(first, first + count),
    )


def nothing_known(count: int) -> Floors:
    return Floors(*(np.full(count, -np.inf, np.float32) for _ in range(2)))


def learnt(kept: Kept, block: Block) -> Floors:
    """What the next block may know of these pictures."""
    found = kept.candidates
    best = np.full(len(block), -np.inf, np.float32)
    order = np.lexsort((-found.value, found.query))
    query, value = found.query[order] - block.picture[0], found.value[order]
    at = np.arange(len(query)) - np.searchsorted(query, query) == WANTED.best_k - 1
    best[query[at]] = value[at]
    return Floors(best, np.full(len(block), -np.inf, np.float32))


def same_pairs(source: Looks, device: str) -> bool:
    """Whether the card's candidates and the CPU's come to the same pairs."""
    left, right = block_of(source, 0, 1000), block_of(source, 1000, 1500)
    slack = rounding_slack(left.level, right.level)
    floors = nothing_known(1000), nothing_known(1500)
    found = []
    for search, options in ((kernel.best_pairs, {}), (torch_kernel.best_pairs, {"device": device})):
        kept, _ = search(left, right, WANTED, *floors, slack=slack, **options)
        pairs = kernel.rescore(
            left,
            right,
            kept.candidates.query,
            kept.candidates.match - 1000,
            scoring="best_regions",
            mirrored=True,
        )
        order = np.lexsort((pairs.match, -pairs.score, pairs.query))
        rank = np.arange(len(order)) - np.searchsorted(pairs.query[order], pairs.query[order])
        best = order[rank < WANTED.best_k]
        found.append(list(zip(pairs.query[best], pairs.match[best], pairs.score[best], strict=True)))
    return found[0] == found[1]


def scan(source: Looks, garments: int, size: int, device: str) -> list[tuple[str, float, float]]:
    """(what, million pairs a second, operations a second) of the kernel."""
    left, right = block_of(source, 0, size), block_of(source, size, min(size, garments - size))
    slack = rounding_slack(left.level, right.level)
    rows = []
    for mirrored in (False, True):
        floors = nothing_known(len(left)), nothing_known(len(right))
        for known in (False, True):

            def search(
                floors: tuple[Floors, Floors] = floors, mirrored: bool = mirrored
            ) -> tuple[Kept, Kept]:
                return torch_kernel.best_pairs(  # type: ignore[return-value]
                    left, right, WANTED, *floors, slack=slack, mirrored=mirrored, device=device
                )

            seconds = seconds_of(search, device, 2)
            pairs = len(left) * len(right)
            name = "with the mirror image, " if mirrored else "without the mirror image, "
            name += "known" if known else "nothing known"
            rows.append((name, pairs / seconds / 1e6, (3 if mirrored else 1) * OPERATIONS * pairs / seconds))
            kept = search()
            floors = learnt(kept[0], left), learnt(kept[1], right)
    return rows


def extraction(catalogue: Path, images: int, device: str, overrides: list[str]) -> dict[str, float]:
    """Images a second of the models alone, and of the stage."""
    settings = load_settings(None, [f"extract.device={device}", *overrides])
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder) / "run")
        crawl(run, read_catalogue(catalogue).slice(0, images), settings)
        items = pq.read_table(run.items_path, columns=["image_path", "image_sha256", "status"]).to_pylist()
        paths = list(
            {row["image_sha256"]: row["image_path"] for row in items if row["status"] == "ok"}.values()
        )
        job = Job("", "", "", "", device, settings.crawl.max_pixels, settings.extract)
        bare = _bare_rate(job, paths[:1000])
        start = time.perf_counter()
        extract(run, settings)
        stage = len(paths) / (time.perf_counter() - start)
    return {"models alone": bare, "whole stage": stage, "ratio": stage / bare}


def _bare_rate(job: Job, paths: list[str]) -> float:
    """Images a second; the model is gone from the card when it returns."""
    predictor, _ = load_predictor(job)
    pictures, size = pictures_of(job, paths), job.settings.batch_images
    return len(pictures) / seconds_of(lambda: predict_all(predictor, pictures, size), job.device, 1)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--garments", type=int, default=131_072)
    parser.add_argument("--block", type=int, default=65_536)
    parser.add_argument("--catalogue", type=Path)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for psnet scan")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    add_out(parser)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "no GPU that torch can use here: nothing was measured (--device cpu tries the script itself)"
        )
    device = options.device
    card = torch.cuda.get_device_name() if device == "cuda" else f"no GPU, {platform.machine()}"
    source, bare = Looks(), matrix_rate(device)
    lines = [
        "# On a GPU",
        "",
        "Written by `python benchmarks/gpu.py`, whose first lines say what is measured. "
        f"{card}, torch {torch.__version__}.",
        "",
        f"Float16 products: {bare / 1e12:,.2f} TFLOP/s. The pairs are those of the CPU's kernel: "
        f"{'yes' if same_pairs(source, device) else 'NO'}.",
        "",
        f"Pair search, blocks of {options.block:,} garments:",
        "",
        "| | million pairs/s | TFLOP/s | of the matrix rate |",
        "|---|---|---|---|",
    ]
    for name, pairs, rate in scan(source, options.garments, options.block, device):
        lines.append(f"| {name} | {pairs:,.1f} | {rate / 1e12:,.2f} | {rate / bare:.0%} |")
    if options.catalogue:
        figures = extraction(options.catalogue, options.images, device, options.set)
        lines += ["", "Extraction, images a second:", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value:,.2f} |" for name, value in figures.items()]
    deliver("\n".join(lines) + "\n", options.out)


if __name__ == "__main__":
    main()
