"""Extraction against the bare models, both sides in one run, on the same images.

    python benchmarks/extraction.py CATALOGUE --images 1000 [--weights FOLDER | --weights random] [--json
    FILE]

Bare: as many processes as the stage has actors, one thread each, the same environment, precision and batches;
pictures already decoded in memory, model loaded and warm, nothing written. Stage: the whole of
``pipeline.extract.extract`` in a fresh run directory (Ray's start, loading, decoding, shards). The bare side
runs before and after the stage, and its mean counts, because a shared machine drifts. On a busy machine the
ratio of images per CPU-second says more than that of images per second; it does not see waiting. The bar is
70 %.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.catalogue import read_catalogue
from pipeline.crawl import crawl
from pipeline.extract import Job, extract, garment_shards, load_predictor
from pipeline.rundir import RunDirectory
from pipeline.runtime import WORKER_ENVIRONMENT, init_ray
from pipeline.settings import Settings, load_settings
from psnet.image import decode_image


class CpuMeter:
    """CPU seconds of this process and of all that it starts, Ray's included: sampled, because Ray's own
    processes are nobody's children when they end."""

    def __init__(self) -> None:
        self._mark = f"PSNET_BENCHMARK={os.getpid()}\0".encode()
        os.environ["PSNET_BENCHMARK"] = str(os.getpid())
        self._ticks: dict[str, int] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> CpuMeter:
        self._sample()
        self._start = sum(self._ticks.values())
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._thread.join()
        self._sample()
        self.seconds = (sum(self._ticks.values()) - self._start) / os.sysconf("SC_CLK_TCK")

    def _watch(self) -> None:
        while not self._end.wait(0.5):
            self._sample()

    def _sample(self) -> None:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                ours = process.name == str(os.getpid())
                if ours or self._mark in (process / "environ").read_bytes():
                    fields = (process / "stat").read_text().rpartition(")")[2].split()
                    self._ticks[process.name] = int(fields[11]) + int(fields[12])
            except OSError:
                continue


_barrier: Barrier


def _share(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def bare(job: Job, paths: Sequence[str]) -> tuple[float, float]:
    """One process of the bare side: seconds and CPU seconds of the model alone over ``paths``."""
    settings = job.settings
    pictures = [
        decode_image(Path(path).read_bytes(), target_side=settings.decode_side).pixels for path in paths
    ]
    predictor, _ = load_predictor(job)
    size = settings.batch_images
    predictor.predict(pictures[:size])
    _barrier.wait(timeout=600)
    start, cpu_start = time.perf_counter(), time.process_time()
    for first in range(0, len(pictures), size):
        predictor.predict(pictures[first : first + size])
    return time.perf_counter() - start, time.process_time() - cpu_start


def bare_seconds(job: Job, paths: Sequence[str], processes: int) -> tuple[float, float]:
    """Seconds, and CPU seconds, that ``processes`` bare loops side by side need for ``paths``."""
    context = multiprocessing.get_context("spawn")
    os.environ.update(WORKER_ENVIRONMENT)  # read by the allocator when a process starts
    # The barrier gives each process one share: nobody takes a second before all have begun.
    with ProcessPoolExecutor(processes, context, _share, (context.Barrier(processes),)) as pool:
        measured = list(pool.map(bare, [job] * processes, [paths[n::processes] for n in range(processes)]))
    return max(wall for wall, _ in measured), sum(cpu for _, cpu in measured)


def random_weights(folder: Path) -> Path:
    """The default network with random numbers: heavier than a trained one, which finds fewer garments."""
    import torch

    from psnet.model import PSNet, PSNetConfig
    from psnet.weights import save_psnet

    torch.manual_seed(0)
    save_psnet(PSNet(PSNetConfig()), folder)
    return folder


def measure(catalogue: Path, images: int, settings: Settings, folder: Path) -> dict[str, object]:
    """One row of results."""
    run = RunDirectory(folder / "run")
    crawl(run, read_catalogue(catalogue).slice(0, images), settings)
    items = pq.read_table(run.items_path, columns=["image_path", "image_sha256", "status"]).to_pylist()
    paths = list({row["image_sha256"]: row["image_path"] for row in items if row["status"] == "ok"}.values())

    # What the stage will choose, asked in the same way.
    processes = settings.extract.actors or os.cpu_count() or 1
    settings = replace(settings, extract=replace(settings.extract, actors=processes))
    job = Job("", "", "", "", "cpu", settings.crawl.max_pixels, settings.extract)

    before = bare_seconds(job, paths, processes)
    # Ray gives its workers a low priority (nice 15); the two sides shall be equals.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray spells it so)
    start = time.perf_counter()
    with CpuMeter() as cpu:
        init_ray(settings)
        ray_seconds = time.perf_counter() - start
        extract(run, settings)
    seconds = time.perf_counter() - start
    import ray

    ray.shutdown()
    after = bare_seconds(job, paths, processes)

    bare_wall, bare_cpu = ((a + b) / 2 for a, b in zip(before, after, strict=True))
    shards = [path.stat().st_mtime for path in garment_shards(run)]
    record = run.stage_record("extract")
    return {
        "images": len(paths),
        "garments": record["garments"],
        "processes": processes,
        "precision": record["precision"],
        "bare images/s": round(len(paths) / bare_wall, 2),
        "bare images/s before, after": [round(len(paths) / before[0], 2), round(len(paths) / after[0], 2)],
        "stage images/s": round(len(paths) / seconds, 2),
        "ratio": round(bare_wall / seconds, 3),
        "bare images/cpu-s": round(len(paths) / bare_cpu, 2),
        "stage images/cpu-s": round(len(paths) / cpu.seconds, 2),
        "ratio per cpu-s": round(bare_cpu / cpu.seconds, 3),
        "stage s": round(seconds, 1),
        "start of Ray s": round(ray_seconds, 1),
        "until first shard s": round(seconds - (max(shards) - min(shards)), 1),
        "load average": round(os.getloadavg()[0], 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("catalogue", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--weights", help="weights folder, or random; default: the shipped ones")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for psnet scan")
    parser.add_argument("--json", type=Path, help="append the row to this file of JSON lines")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights = options.weights
        if weights == "random":
            weights = str(random_weights(Path(folder) / "weights"))
        overrides = [*options.set, *([f"extract.weights={weights}"] if weights else [])]
        row = measure(options.catalogue, options.images, load_settings(None, overrides), Path(folder))
    for name, value in row.items():
        print(f"| {name} | {value} |")
    if options.json:
        with options.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
