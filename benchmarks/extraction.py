"""Extraction against the bare models and against the loop one would write first, on the same images.

    python benchmarks/extraction.py CATALOGUE --images 3000 [--weights FOLDER] --out benchmarks/EXTRACTION.md

Bare: as many processes as the stage has actors, one thread each, the same environment, precision and batches;
pictures already decoded in memory, model loaded and warm, nothing written. Stage: the whole of
``pipeline.extract.extract`` in a fresh run directory (Ray's start, loading, decoding, shards). The bare side
runs before and after the stage, and its mean counts, because a shared machine drifts. On a busy machine the
ratio of images per CPU-second says more than that of images per second; it does not see waiting. Plain: the
bare loop in float32 with torch's default layout and the system's default allocator, on every eighth image.
Profile: the bare loop on one of them, CPU seconds of each part.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from page import add_out, deliver
from torch import nn

from pipeline.catalogue import read_catalogue
from pipeline.crawl import crawl
from pipeline.extract import Job, extract, garment_shards, load_predictor
from pipeline.rundir import RunDirectory
from pipeline.runtime import WORKER_ENVIRONMENT, init_ray
from pipeline.settings import Settings, load_settings
from psnet.image import decode_image
from psnet.predictor import Predictor
from psnet.weights import model_tag

# What is left of the workers' environment when the allocator is the system's own.
ONE_THREAD = {name: value for name, value in WORKER_ENVIRONMENT.items() if name.endswith("_NUM_THREADS")}


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


def pictures_of(job: Job, paths: Sequence[str]) -> list[np.ndarray]:
    side = job.settings.decode_side
    return [decode_image(Path(path).read_bytes(), target_side=side).pixels for path in paths]


def predict_all(predictor: Predictor, pictures: Sequence[np.ndarray], size: int) -> None:
    for first in range(0, len(pictures), size):
        predictor.predict(pictures[first : first + size])


def bare(job: Job, paths: Sequence[str]) -> tuple[float, float]:
    """One process of the bare side: seconds and CPU seconds of the model alone over ``paths``."""
    predictor, _ = load_predictor(job)
    return _timed(job, predictor, paths)


def plain(job: Job, paths: Sequence[str]) -> tuple[float, float]:
    """One process of the plain side."""
    import torch

    torch.set_num_threads(1)
    predictor = Predictor.load(
        job.settings.weights, job.device, "float32", memory_format=torch.contiguous_format
    )
    return _timed(job, predictor, paths)


def _timed(job: Job, predictor: Predictor, paths: Sequence[str]) -> tuple[float, float]:
    pictures, size = pictures_of(job, paths), job.settings.batch_images
    predictor.predict(pictures[:size])
    _barrier.wait(timeout=600)
    start, cpu_start = time.perf_counter(), time.process_time()
    predict_all(predictor, pictures, size)
    return time.perf_counter() - start, time.process_time() - cpu_start


@contextlib.contextmanager
def in_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """For processes started meanwhile: the allocator reads its variables when one starts."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def seconds_of(
    loop: Callable[[Job, Sequence[str]], tuple[float, float]],
    environment: Mapping[str, str],
    job: Job,
    paths: Sequence[str],
    processes: int,
) -> tuple[float, float]:
    """Seconds, and CPU seconds, that ``processes`` loops side by side need for ``paths``."""
    context = multiprocessing.get_context("spawn")
    # The barrier gives each process one share: nobody takes a second before all have begun.
    barrier = context.Barrier(processes)
    with (
        in_environment(environment),
        ProcessPoolExecutor(processes, context, _share, (barrier,)) as pool,
    ):
        shares = [paths[n::processes] for n in range(processes)]
        measured = list(pool.map(loop, [job] * processes, shares))
    return max(wall for wall, _ in measured), sum(cpu for _, cpu in measured)


class Profile:
    """CPU seconds spent in a network's parts, by hooks around their forward passes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, name: str, module: nn.Module) -> None:
        started: list[float] = []

        def begin(*_: object) -> None:
            started.append(time.process_time())

        def end(*_: object) -> None:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - started.pop()

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end)


def profile(job: Job, paths: Sequence[str]) -> dict[str, float]:
    """CPU milliseconds an image of each part of the bare loop, and of decoding beside it."""
    predictor, _ = load_predictor(job)
    start = time.process_time()
    pictures = pictures_of(job, paths)
    decoding = time.process_time() - start
    size = job.settings.batch_images
    predictor.predict(pictures[:size])
    watched = Profile()
    model = predictor.model
    watched.watch("detector: scaling", model.detector.transform)
    watched.watch("detector: backbone", model.detector.backbone)
    watched.watch("detector: proposals", model.detector.rpn)
    watched.watch("detector: box head", model.detector.roi_heads)
    watched.watch("landmark branch: backbone", model.landmarks.backbone)
    watched.watch("landmark branch, whole", model.landmarks)
    watched.watch("retrieval branch", model.retrieval)
    start = time.process_time()
    predict_all(predictor, pictures, size)
    total = time.process_time() - start
    parts = watched.seconds
    parts["landmark branch: heads"] = parts.pop("landmark branch, whole") - parts["landmark branch: backbone"]
    parts["cutting, boxes, decisions"] = total - sum(parts.values())
    parts["decoding (beside the loop)"] = decoding
    return {name: 1000 * value / len(paths) for name, value in parts.items()}


def measure(
    catalogue: Path, images: int, settings: Settings, folder: Path
) -> tuple[dict[str, object], dict[str, float]]:
    """The figures, and the profile in milliseconds an image."""
    run = RunDirectory(folder / "run")
    crawl(run, read_catalogue(catalogue).slice(0, images), settings)
    items = pq.read_table(run.items_path, columns=["image_path", "image_sha256", "status"]).to_pylist()
    paths = list({row["image_sha256"]: row["image_path"] for row in items if row["status"] == "ok"}.values())

    # What the stage will choose, asked in the same way.
    processes = settings.extract.actors or os.cpu_count() or 1
    settings = replace(settings, extract=replace(settings.extract, actors=processes))
    job = Job("", "", "", "", "cpu", settings.crawl.max_pixels, settings.extract)

    before = seconds_of(bare, WORKER_ENVIRONMENT, job, paths, processes)
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
    after = seconds_of(bare, WORKER_ENVIRONMENT, job, paths, processes)
    few = paths[::8]
    with (
        in_environment(WORKER_ENVIRONMENT),
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone,
    ):
        parts = alone.submit(profile, job, few).result()
    plain_wall, _ = seconds_of(plain, ONE_THREAD, job, few, processes)

    bare_wall, bare_cpu = ((a + b) / 2 for a, b in zip(before, after, strict=True))
    shards = [path.stat().st_mtime for path in garment_shards(run)]
    record = run.stage_record("extract")
    figures: dict[str, object] = {
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
        "plain images/s": round(len(few) / plain_wall, 2),
        "stage against plain": round(len(paths) / seconds / (len(few) / plain_wall), 2),
        "stage s": round(seconds, 1),
        "start of Ray s": round(ray_seconds, 1),
        "until first shard s": round(seconds - (max(shards) - min(shards)), 1),
        "load average": round(os.getloadavg()[0], 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "model": model_tag(settings.extract.weights),
    }
    return figures, parts


def to_markdown(command: str, figures: Mapping[str, object], parts: Mapping[str, float]) -> str:
    whole = sum(ms for name, ms in parts.items() if not name.startswith("decoding"))
    lines = [
        "# Extraction",
        "",
        f"Written by `{command}`; what the sides are, its first lines say.",
        "",
        "| what | figure |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in figures.items()),
        "",
        "Where the bare loop's time goes, CPU milliseconds an image:",
        "",
        "| part | ms | share |",
        "|---|---|---|",
        *(f"| {name} | {ms:.2f} | {ms / whole:.2f} |" for name, ms in sorted(parts.items())),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("catalogue", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--weights", help="weights folder; default: the shipped ones")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for psnet scan")
    add_out(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*options.set, *([f"extract.weights={options.weights}"] if options.weights else [])]
        settings = load_settings(None, overrides)
        figures, parts = measure(options.catalogue, options.images, settings, Path(folder))
    command = f"python benchmarks/extraction.py CATALOGUE --images {options.images}"
    deliver(to_markdown(command, figures, parts), options.out)


if __name__ == "__main__":
    main()
