"""What a second Ray node is worth: extraction and the pair search on one node with one core, and on two.

    python benchmarks/nodes.py CATALOGUE --images 1500 --garments 100000 --out benchmarks/NODES.md

Both nodes run on this machine, which needs two cores for it. The one node alone is held to one core, with all
its processes: a decoding thread could otherwise borrow the other. Each side is a process of its own with a
fresh run directory; the cluster's start does not count, loading the model and starting actors does.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from all_pairs import write_run
from page import add_out, deliver

from pipeline.catalogue import read_catalogue
from pipeline.crawl import crawl
from pipeline.extract import extract
from pipeline.match import match
from pipeline.rundir import RunDirectory
from pipeline.settings import Settings, load_settings


class Work(Protocol):
    """What is timed, and what comes before it."""

    def prepare(self, folder: Path, settings: Settings) -> RunDirectory: ...

    def compute(self, run: RunDirectory, settings: Settings) -> None: ...


class Extraction:
    """The first ``images`` of a catalogue."""

    def __init__(self, catalogue: Path, images: int) -> None:
        self.catalogue, self.images = catalogue, images

    def prepare(self, folder: Path, settings: Settings) -> RunDirectory:
        run = RunDirectory(folder / "run")
        crawl(run, read_catalogue(self.catalogue).slice(0, self.images), settings)
        return run

    def compute(self, run: RunDirectory, settings: Settings) -> None:
        extract(run, settings)


class Search:
    """All pairs of synthetic garments, see ``all_pairs.synthetic``."""

    def __init__(self, garments: int) -> None:
        self.garments = garments

    def prepare(self, folder: Path, settings: Settings) -> RunDirectory:
        return write_run(folder / "run", self.garments)

    def compute(self, run: RunDirectory, settings: Settings) -> None:
        match(run, replace(settings, match=replace(settings.match, mirrored=False, block_size=8192)))


def on_nodes(count: int, work: Work, settings: Settings) -> float:
    """Seconds that ``work`` takes on a cluster of ``count`` nodes with one core each; in a process of its
    own."""
    cores = sorted(os.sched_getaffinity(0))[:count]
    os.sched_setaffinity(0, cores)
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray spells it so)
    import ray
    from ray.cluster_utils import Cluster

    store = settings.ray.object_store_mb << 20
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": store}, connect=False
    )
    try:
        for _ in range(count - 1):
            cluster.add_node(num_cpus=1, object_store_memory=store)
        cluster.wait_for_nodes()
        settings = replace(settings, ray=replace(settings.ray, address=cluster.address))
        with tempfile.TemporaryDirectory() as folder:
            run = work.prepare(Path(folder), settings)
            start = time.perf_counter()
            work.compute(run, settings)
            return time.perf_counter() - start
    finally:
        ray.shutdown()
        cluster.shutdown()


def compare(work: Work, settings: Settings, repeats: int) -> tuple[float, float]:
    """Least seconds of ``repeats`` runs on one node and on two, taken in turns."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        for count in seconds:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as own:
                seconds[count].append(own.submit(on_nodes, count, work, settings).result())
    return min(seconds[1]), min(seconds[2])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("catalogue", type=Path)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--garments", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=1)
    add_out(parser)
    options = parser.parse_args(argv)
    settings = load_settings(None, [])
    lines = [
        "# One Ray node against two, one core each",
        "",
        "Written by `benchmarks/nodes.py`, whose first lines say what is compared.",
        "",
        "| what | one node, s | two nodes, s | times as fast |",
        "|---|---|---|---|",
    ]
    works: dict[str, Work] = {
        f"extraction of {options.images} photographs": Extraction(options.catalogue, options.images),
        f"all pairs of {options.garments:,} synthetic garments": Search(options.garments),
    }
    for name, work in works.items():
        one, two = compare(work, settings, options.repeats)
        lines.append(f"| {name} | {one:.1f} | {two:.1f} | {one / two:.2f} |")
    deliver("\n".join(lines) + "\n", options.out)


if __name__ == "__main__":
    main()
