"""What a second Ray node is worth: extraction and the pair search on one node with one core, and on two.

    python benchmarks/nodes.py CATALOGUE --images 1500 --garments 20000 --out benchmarks/NODES.md

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
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from pipeline.catalogue import read_catalogue
from pipeline.crawl import crawl
from pipeline.extract import extract
from pipeline.rundir import RunDirectory
from pipeline.settings import Settings, load_settings


def on_nodes(count: int, work: Callable[[Settings], None], settings: Settings) -> float:
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
        start = time.perf_counter()
        work(settings)
        return time.perf_counter() - start
    finally:
        ray.shutdown()
        cluster.shutdown()


class Extraction:
    """Extraction of the first ``images`` of a catalogue."""

    def __init__(self, catalogue: Path, images: int) -> None:
        self.catalogue, self.images = catalogue, images

    def __call__(self, settings: Settings) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run = RunDirectory(Path(folder) / "run")
            crawl(run, read_catalogue(self.catalogue).slice(0, self.images), settings)
            extract(run, settings)


def compare(work: Callable[[Settings], None], settings: Settings, repeats: int) -> tuple[float, float]:
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
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, help="Markdown file; default: the terminal")
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
    one, two = compare(Extraction(options.catalogue, options.images), settings, options.repeats)
    lines.append(f"| extraction of {options.images} photographs | {one:.1f} | {two:.1f} | {one / two:.2f} |")
    text = "\n".join(lines) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
