"""Extraction: one actor by hand here, the whole stage on a real Ray with a tiny random PS-Net below."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.catalogue import read_catalogue
from pipeline.crawl import crawl
from pipeline.errors import UserError
from pipeline.extract import (
    Extractor,
    Job,
    _sweep,
    committed_rows,
    cut_units,
    extract,
    garment_shards,
    pending_contents,
    plan_actors,
    shard_name,
    shard_prefix,
)
from pipeline.rundir import RunDirectory
from pipeline.schema import garment_schema, unpack_boxes, unpack_features, unpack_landmarks
from pipeline.settings import ExtractSettings, load_settings
from psnet.predictor import Garment

D = 4


def picture(seed: int, size: tuple[int, int] = (48, 64)) -> bytes:
    """A JPEG of a bright blot on a dark ground; ``size`` is (width, height)."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 80, (size[1], size[0], 3), dtype=np.uint8)
    pixels[size[1] // 4 :, size[0] // 4 :] += random.integers(60, 170, 3, dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Stand:
    """Stands in for the model where a test wants it to fail; features are the mean colour."""

    tag = "stand-in"

    def __init__(self) -> None:
        self.config = {"feature_dim": D}
        self.calls: list[int] = []

    def predict(self, images: list[np.ndarray]) -> list[list[Garment]]:
        self.calls.append(len(images))
        return [self.garments(pixels) for pixels in images]

    def garments(self, pixels: np.ndarray) -> list[Garment]:
        height, width = pixels.shape[:2]
        if width == height:
            raise ValueError("a square picture\nwhich this model cannot bear")
        if width > height:
            return []
        features = np.resize(pixels.mean((0, 1)).astype(np.float32), (5, D))
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        return [
            Garment(
                box=np.array([0, 0, width, height], np.float32),
                score=0.9 - 0.1 * index,
                category="vest",
                group="tops",
                category_scores=np.full(10, 0.1, np.float32),
                landmarks=np.array([[width / 2, height / 4, 0.8]], np.float32),
                region_boxes=np.tile(np.array([0, 0, width, height], np.float32), (5, 1)),
                presence=np.full(5, 2, np.uint8),
                presence_score=np.ones(5, np.float32),
                features=features,
                mirrored_features=features[:, ::-1].copy(),
            )
            for index in range(2)
        ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "garments").mkdir()
    return tmp_path / "garments"


def job_in(folder: Path, **changes: Any) -> Job:
    settings = replace(ExtractSettings(), precision="float32", batch_images=3, **changes)
    return Job(str(folder), shard_prefix("stand-in", settings), "run 1", "stand-in", "cpu", 10**8, settings)


def unit_of(folder: Path, files: dict[str, bytes]) -> tuple[pa.Table, list[str]]:
    """Write ``files`` and make them a unit; also their hashes."""
    hashes, paths = [], []
    for name, data in files.items():
        path = folder.parent / name
        path.write_bytes(data)
        hashes.append(sha(data))
        paths.append(str(path))
    return pa.table({"image_sha256": [hashes], "image_path": [paths]}), hashes


def rows_of(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])


def test_a_unit_becomes_a_shard_in_the_schema_and_only_counts_come_back(folder: Path):
    model = Stand()
    unit, hashes = unit_of(
        folder, {f"{n}.jpg": picture(n) for n in range(7)} | {"wide": picture(9, (80, 40))}
    )
    job = job_in(folder)
    answer = Extractor(job, lambda _: (model, "float32"))(unit).to_pylist()
    assert {row["status"]: (row["images"], row["garments"]) for row in answer} == {
        "ok": (7, 14),
        "no_garment": (1, 0),
    }
    (shard,) = folder.iterdir()
    assert shard.name == shard_name(job.prefix, hashes) and shard.name.startswith("stand-in-")
    rows = pq.read_table(shard)
    assert rows.schema.equals(garment_schema(D))
    assert rows.schema.metadata[b"precision"] == b"float32"
    assert model.calls == [3, 3, 2]
    keys = list(zip(rows["image_sha256"].to_pylist(), rows["garment_index"].to_pylist(), strict=True))
    assert keys == sorted(keys) and {key for key, _ in keys} == set(hashes)
    assert unpack_features(rows["features"]).shape == (15, 5, D)
    empty = next(row for row in rows.to_pylist() if row["status"] == "no_garment")
    assert (empty["garment_index"], empty["image_width"], empty["image_height"]) == (-1, 80, 40)
    assert empty["box"] is None and empty["features"] is None and empty["model_tag"] == "stand-in"


def test_bad_images_become_rows_and_the_rest_is_done(folder: Path):
    whole = picture(1)
    files = {
        "good.jpg": picture(0),
        "empty.jpg": b"",
        "text.jpg": b"this is no picture",
        "cut.jpg": whole[: len(whole) // 2],
        "square.jpg": picture(2, (40, 40)),
        "gone.jpg": picture(3),
        "other.jpg": picture(4),
        "good too.jpg": picture(5),
    }
    unit, hashes = unit_of(folder, files)
    (folder.parent / "gone.jpg").unlink()
    (folder.parent / "other.jpg").write_bytes(picture(6))
    Extractor(job_in(folder), lambda _: (Stand(), "float32"))(unit)
    rows = {row["image_sha256"]: row for row in rows_of(folder).to_pylist()}
    statuses = [rows[key]["status"] for key in hashes]
    assert statuses == [
        "ok",
        "empty_file",
        "not_an_image",
        "truncated_image",
        "predict_failed",
        "missing_file",
        "changed_file",
        "ok",
    ]
    failed = [row for row in rows.values() if row["status"] != "ok"]
    assert all(row["error"] and "\n" not in row["error"] and row["garment_index"] == -1 for row in failed)
    assert (rows[hashes[4]]["image_width"], rows[hashes[4]]["image_height"]) == (40, 40)


def test_coordinates_are_those_of_the_original_after_a_reduced_decode(folder: Path):
    unit, _ = unit_of(folder, {"large.jpg": picture(1, (402, 806))})
    Extractor(job_in(folder, decode_side=100), lambda _: (Stand(), "float32"))(unit)
    rows = rows_of(folder)
    assert (rows["image_width"][0].as_py(), rows["image_height"][0].as_py()) == (402, 806)
    np.testing.assert_allclose(unpack_boxes(rows["box"], (4,))[0], [0, 0, 402, 806], rtol=1e-6)
    np.testing.assert_allclose(unpack_boxes(rows["region_boxes"], (5, 4))[0, 3], [0, 0, 402, 806], rtol=1e-6)
    np.testing.assert_allclose(unpack_landmarks(rows["landmarks"][0].as_py()), [[201, 201.5, 0.8]], rtol=1e-6)


def test_features_that_are_not_numbers_fail_one_image(folder: Path):
    class Broken(Stand):
        def garments(self, pixels: np.ndarray) -> list[Garment]:
            found = super().garments(pixels)
            if pixels.shape[1] == 50:
                found[0].features[0, 0] = np.nan
            return found

    unit, hashes = unit_of(folder, {"a": picture(1), "b": picture(2, (50, 70)), "c": picture(3)})
    Extractor(job_in(folder), lambda _: (Broken(), "float32"))(unit)
    rows = {row["image_sha256"]: row["status"] for row in rows_of(folder).to_pylist()}
    assert [rows[key] for key in hashes] == ["ok", "predict_failed", "ok"]


def test_a_committed_shard_is_not_computed_again(folder: Path):
    unit, _ = unit_of(folder, {"a": picture(1), "b": picture(2)})
    model = Stand()
    extractor = Extractor(job_in(folder), lambda _: (model, "float32"))
    first = extractor(unit)
    (shard,) = folder.iterdir()
    before = shard.stat()
    assert extractor(unit) == first
    assert model.calls == [2]
    assert (shard.stat().st_ino, shard.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("changed", [{"batch_images": 1}, {"batch_images": 5}, {"decode_threads": 3}])
def test_rows_do_not_depend_on_batches_and_threads(folder: Path, changed: dict[str, int]):
    unit, _ = unit_of(folder, {f"{n}.jpg": picture(n) for n in range(6)})
    job = job_in(folder)
    Extractor(job, lambda _: (Stand(), "float32"))(unit)
    expected = rows_of(folder)
    next(folder.iterdir()).unlink()
    settings = replace(job.settings, **changed)
    assert shard_prefix("stand-in", settings) == job.prefix
    Extractor(replace(job, settings=settings), lambda _: (Stand(), "float32"))(unit)
    assert rows_of(folder).equals(expected)


def test_settings_that_change_the_rows_change_the_name():
    settings = ExtractSettings()
    assert shard_prefix("a", settings) != shard_prefix("b", settings)
    assert shard_prefix("a", settings) != shard_prefix(
        "a", replace(settings, decode_side=settings.decode_side + 1)
    )
    assert shard_name("p-", ["x", "y"]) == shard_name("p-", ["y", "x"]) != shard_name("p-", ["x"])


class Deadly(Stand):
    def garments(self, pixels: np.ndarray) -> list[Garment]:
        if pixels.shape[0] == pixels.shape[1]:
            os._exit(9)
        return super().garments(pixels)


def deadly_unit(folder: Path) -> pa.Table:
    return unit_of(folder, {f"{n}.jpg": picture(n) for n in range(5)} | {"deadly.jpg": picture(5, (40, 40))})[
        0
    ]


def deadly_attempts(folder: Path) -> list[int | None]:
    """Exit codes of four processes that try a unit with a deadly image."""
    unit, codes = deadly_unit(folder), []
    for _ in range(4):
        work = lambda: Extractor(job_in(folder), lambda _: (Deadly(), "float32"))(unit)  # noqa: E731
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join(30)
        codes.append(process.exitcode)
    return codes


def test_an_image_that_kills_the_process_is_found_and_given_up(folder: Path):
    # Forked from a fresh interpreter: this one has thread pools by now, whose locks a child would inherit.
    code = "import pathlib, runpy, sys; names = runpy.run_path(sys.argv[1]); "
    code += "print(names['deadly_attempts'](pathlib.Path(sys.argv[2])))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", code, __file__, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)
    assert done.stdout.strip().splitlines()[-1:] == ["[9, 9, 9, 0]"], done.stderr
    rows = {row["image_sha256"]: row["status"] for row in rows_of(folder).to_pylist()}
    assert rows.pop(sha(picture(5, (40, 40)))) == "crashed"
    assert set(rows.values()) == {"ok"} and len(rows) == 5
    assert [path.suffix for path in folder.iterdir()] == [".parquet"]


def test_an_earlier_runs_accident_is_not_held_against_an_image(folder: Path):
    unit, hashes = unit_of(folder, {"a": picture(1), "b": picture(2)})
    job = job_in(folder)
    left = folder / f".{shard_name(job.prefix, hashes)}.attempt"
    left.write_text(f"another run\nat {hashes[0]}\n")
    model = Stand()
    Extractor(job, lambda _: (model, "float32"))(unit)
    assert model.calls == [2] and set(rows_of(folder)["status"].to_pylist()) == {"ok"}


def test_what_an_earlier_run_learnt_of_an_image_counts(folder: Path):
    """A unit with many deadly images needs more than one run; what a driver's end cut short says nothing."""
    unit, hashes = unit_of(folder, {"a": picture(1), "b": picture(2)})
    job = job_in(folder)
    left = folder / f".{shard_name(job.prefix, hashes)}.attempt"
    died = f"died {hashes[0]}\n"
    for entries, status in ((died + f"at {hashes[0]}\n", "ok"), (died * 2, "crashed")):
        left.write_text(f"another run\n{entries}")
        _sweep(folder)
        model = Stand()
        Extractor(job, lambda _, model=model: (model, "float32"))(unit)
        rows = rows_of(folder).to_pylist()
        assert {row["image_sha256"]: row["status"] for row in rows} == {hashes[0]: status, hashes[1]: "ok"}
        for shard in folder.glob("*.parquet"):
            shard.unlink()
    assert not list(folder.iterdir())


def test_a_model_that_cannot_be_loaded_is_one_line(folder: Path):
    def load(job: Job) -> tuple[Any, str]:
        raise ValueError("no such\nmodel")

    unit, _ = unit_of(folder, {"a": picture(1)})
    (answer,) = Extractor(job_in(folder), load)(unit).to_pylist()
    assert answer["error"] == "the model cannot be loaded: ValueError: no such model"
    other = replace(job_in(folder), model_tag="another")
    (answer,) = Extractor(other, lambda _: (Stand(), "float32"))(unit).to_pylist()
    assert "weights changed" in answer["error"] and not list(folder.iterdir())


def test_a_full_disk_is_one_clear_answer_and_leaves_nothing_behind(folder: Path):
    unit, _ = unit_of(folder, {"a": picture(1)})
    extractor = Extractor(job_in(folder), lambda _: (Stand(), "float32"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
        answer = extractor(unit).to_pylist()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(answer) == 1 and "no space left" in answer[0]["error"] and str(folder) in answer[0]["error"]
    assert list(folder.iterdir()) == []
    assert extractor(unit).to_pylist()[0]["status"] == "ok"


def items_of(rows: list[tuple[str, str, str]]) -> pa.Table:
    hashes, paths, statuses = zip(*rows, strict=True)
    return pa.table({"image_sha256": hashes, "image_path": paths, "status": statuses})


def test_only_contents_without_a_final_row_are_pending(tmp_path: Path):
    back = tmp_path / "back.jpg"
    back.write_bytes(b"x")
    items = items_of(
        [
            ("new", "1", "ok"),
            ("", "", "missing_file"),
            ("done", "2", "ok"),
            ("new", "3", "ok"),
            ("bad", "4", "ok"),
            ("gone", "/nowhere", "ok"),
            ("back", str(back), "ok"),
            ("retried", "5", "ok"),
        ]
    )
    done = pa.table(
        {
            "image_sha256": ["done", "bad", "gone", "back", "retried", "retried", "no longer listed"],
            "status": ["ok", "decode_failed", "missing_file", "changed_file", "missing_file", "ok", "ok"],
        }
    )
    pending = pending_contents(items, done).to_pylist()
    assert [(row["image_sha256"], row["image_path"]) for row in pending] == [
        ("new", "1"),
        ("back", str(back)),
    ]
    assert pending_contents(items, committed_rows(tmp_path, "none-")).num_rows == 6


@pytest.mark.parametrize(("count", "actors"), [(1, 2), (7, 3), (300, 2), (4007, 2), (100_000, 64)])
def test_units_hold_every_content_and_shrink_at_the_end(count: int, actors: int):
    settings = replace(ExtractSettings(), batch_images=8, shard_images=128)
    sizes = cut_units(count, actors, settings)
    assert sum(sizes) == count and max(sizes) <= 128 and sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= 8 and all(size % 8 == 0 for size in sizes[:-1])


def test_actors_fit_the_cluster_or_the_user_hears_of_it():
    settings = replace(ExtractSettings(), actors=0, device="auto", cpus_per_actor=0.5, gpus_per_actor=1.0)
    gigabyte = 2**30
    assert plan_actors(settings, 50, {"CPU": 2, "memory": 16 * gigabyte}) == ("cpu", 2)
    assert plan_actors(settings, 1, {"CPU": 2, "memory": 16 * gigabyte}) == ("cpu", 1)
    assert plan_actors(settings, 50, {"CPU": 64, "memory": 12 * gigabyte}) == ("cpu", 8)
    assert plan_actors(settings, 50, {"CPU": 16, "GPU": 4, "memory": 64 * gigabyte}) == ("cuda", 4)
    assert plan_actors(replace(settings, actors=2, gpus_per_actor=0.5), 50, {"CPU": 2, "GPU": 1}) == (
        "cuda",
        2,
    )
    with pytest.raises(UserError, match=r"extract\.actors=8 on cpu needs 4 CPU, and Ray has 2 CPU"):
        plan_actors(replace(settings, actors=8), 50, {"CPU": 2})
    with pytest.raises(UserError, match=r"on cuda needs 0\.5 CPU, 1 GPU, and Ray has 2 CPU, 0 GPU"):
        plan_actors(replace(settings, device="cuda"), 50, {"CPU": 2})


GROWING_CLUSTER = """
import time
from concurrent.futures import ThreadPoolExecutor
from ray.cluster_utils import Cluster
cluster = Cluster()
options = {"object_store_memory": 80 << 20, "include_dashboard": False}
cluster.add_node(num_cpus=0, **options)
import ray
ray.init(cluster.address, log_to_driver=False)
from pipeline.errors import RunError
from pipeline.extract import _await_first_node, plan_actors
from pipeline.settings import ExtractSettings
try:
    _await_first_node(ExtractSettings(start_timeout_s=3))
except RunError as error:
    print(error, flush=True)
# Nodes can only be added by the main thread.
with ThreadPoolExecutor() as other:
    waiting = other.submit(_await_first_node, ExtractSettings(start_timeout_s=100))
    time.sleep(3)
    assert not waiting.done()
    cluster.add_node(num_cpus=1, **options)
    waiting.result()
print(plan_actors(ExtractSettings(), 9, ray.cluster_resources()), flush=True)
"""


@pytest.mark.slow
def test_a_cluster_that_starts_from_nothing_is_waited_for():
    done = subprocess.run(
        [sys.executable, "-c", GROWING_CLUSTER], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    missing, planned = done.stdout.splitlines()
    assert missing.startswith("no node with 0.5 CPU joined the cluster within 3 s (extract.start_timeout_s")
    assert planned == "('cpu', 1)"
    assert done.stderr.count("extract: no node of the cluster has 0.5 CPU; waiting for one") == 2


# --- the stage on Ray


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, one of them twice and one of them none."""
    folder = tmp_path_factory.mktemp("photographs")
    for n in range(40):
        (folder / f"{n:02}.jpg").write_bytes(picture(n, (90 + 10 * (n % 3), 120)))
    (folder / "again.jpg").write_bytes(picture(3, (90, 120)))
    whole = picture(50, (90, 120))
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


def crawled(path: Path, photographs: Path) -> RunDirectory:
    run = RunDirectory(path)
    crawl(run, read_catalogue(photographs), load_settings())
    return run


def overrides(weights: Path, **changes: Any) -> list[str]:
    values = {"weights": weights, "precision": "float32", "detection_threshold": 0.0, "actors": 2, **changes}
    return [f"extract.{name}={value}" for name, value in values.items()]


def stamps(run: RunDirectory) -> dict[str, tuple[int, int]]:
    """What changes when a shard is written again."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in run.garments_dir.glob("*.parquet")}


def assert_same_rows(a: RunDirectory, b: RunDirectory) -> None:
    one, other = (
        pa.concat_tables([pq.read_table(path) for path in garment_shards(run)]).sort_by(
            [("image_sha256", "ascending"), ("garment_index", "ascending")]
        )
        for run in (a, b)
    )
    for name in ("image_sha256", "garment_index", "status", "category", "group", "presence", "model_tag"):
        assert one[name].equals(other[name]), name
    for name in ("features", "mirrored_features"):
        f, g = (unpack_features(table[name]).astype(np.float64) for table in (one, other))
        cosines = (f * g).sum(-1) / np.maximum(np.linalg.norm(f, axis=-1) * np.linalg.norm(g, axis=-1), 1e-12)
        assert np.all(np.abs(cosines - 1)[np.linalg.norm(f, axis=-1) > 0] < 1e-5)
        np.testing.assert_allclose(f, g, atol=2**-11)  # a step of float16 below 1
    np.testing.assert_allclose(unpack_boxes(one["box"], (4,)), unpack_boxes(other["box"], (4,)), atol=1e-3)


@pytest.fixture(scope="module")
def reference(
    tmp_path_factory: pytest.TempPathFactory, photographs: Path, tiny_weights: Path, ray_local: None
) -> RunDirectory:
    """One actor, one shard, one image at a time."""
    run = crawled(tmp_path_factory.mktemp("reference") / "run", photographs)
    extract(run, load_settings(None, overrides(tiny_weights, actors=1, shard_images=500, batch_images=1)))
    return run


def test_every_content_is_accounted_for(reference: RunDirectory):
    record = reference.stage_record("extract")
    crawl_record = reference.stage_record("crawl")
    assert crawl_record["failed"] == {"truncated_image": 1}
    assert record["in"] == 40 == record["out"] and record["failed"] == {}
    rows = pa.concat_tables([pq.read_table(path) for path in garment_shards(reference)])
    assert rows.schema.equals(garment_schema(16))
    assert record["garments"] == rows.num_rows - record["images_without_garment"] > 40
    assert record["precision"] == "float32" and record["actors"] == 1
    assert set(rows["model_tag"].to_pylist()) == {reference.read()["model_tag"]}


def test_rows_do_not_depend_on_actors_batches_and_shards_and_only_new_items_are_computed(
    tmp_path: Path, reference: RunDirectory, photographs: Path, tiny_weights: Path
):
    first_half = tmp_path / "first half"
    first_half.mkdir()
    for path in sorted(photographs.iterdir())[:20]:
        (first_half / path.name).write_bytes(path.read_bytes())
    run = crawled(tmp_path / "run", first_half)
    settings = load_settings(None, overrides(tiny_weights, actors=2, shard_images=6, batch_images=4))
    extract(run, settings)
    before = stamps(run)
    assert len(before) >= 4 and run.stage_record("extract")["in"] == 20
    digest_before = run.require("extract")

    crawl(run, read_catalogue(photographs), settings)
    extract(run, replace(settings, extract=replace(settings.extract, actors=1, batch_images=7)))
    assert stamps(run).items() > before.items()
    assert run.stage_record("extract")["in"] == 40 and run.require("extract") != digest_before
    assert run.require("extract") == reference.require("extract")
    assert_same_rows(run, reference)


DRIVER = """
import sys
import time
from pipeline.extract import extract
from pipeline.rundir import RunDirectory
from pipeline.settings import load_settings
extract(RunDirectory(sys.argv[1]), load_settings(None, sys.argv[2:]))
print("ray" in sys.modules)
"""


def drive(run: RunDirectory, options: list[str]) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "PSNET_TEST_RUN": str(run.path),
    }
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(run.path), *options],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def actors_of(run: RunDirectory) -> list[int]:
    """Processes of this run's extraction actors."""
    mark, found = f"PSNET_TEST_RUN={run.path}\0".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (
                b"ray::MapWorker" in (process / "cmdline").read_bytes()
                and mark in (process / "environ").read_bytes()
            ):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def wait_for(condition: Any, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


@pytest.mark.timeout(480)
def test_killed_drivers_and_actors_lose_only_what_they_were_at(
    tmp_path: Path, reference: RunDirectory, photographs: Path, tiny_weights: Path
):
    run = crawled(tmp_path / "run", photographs)
    options = overrides(tiny_weights, shard_images=3, batch_images=1)

    driver = drive(run, options)
    wait_for(lambda: len(stamps(run)) >= 2)
    driver.kill()
    driver.wait()
    wait_for(lambda: not actors_of(run), 20)
    after_driver = stamps(run)
    assert 2 <= len(after_driver) < 13

    driver = drive(run, options)
    wait_for(lambda: len(stamps(run)) > len(after_driver))
    os.kill(actors_of(run)[0], signal.SIGKILL)
    after_actor = stamps(run)
    driver.wait(timeout=90)
    assert driver.returncode == 0
    assert stamps(run).items() >= after_actor.items() >= after_driver.items()
    assert len(stamps(run)) > len(after_actor)
    assert_same_rows(run, reference)
    assert not list(run.garments_dir.glob(".*"))

    # All done: the next driver does not even import Ray, and touches nothing.
    finished, record = stamps(run), run.stage_record("extract")
    driver = drive(run, options)
    assert driver.communicate(timeout=60)[0].strip() == "False"
    assert stamps(run) == finished and run.stage_record("extract") == record


def test_a_deleted_shard_and_a_file_that_came_back_are_done_again(
    tmp_path: Path, photographs: Path, tiny_weights: Path, ray_local: None
):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("00.jpg", "01.jpg", "02.jpg"):
        (images / name).write_bytes((photographs / name).read_bytes())
    run = crawled(tmp_path / "run", images)
    (images / "01.jpg").rename(tmp_path / "01.jpg")
    settings = load_settings(None, overrides(tiny_weights, shard_images=1, batch_images=1))
    extract(run, settings)
    assert run.stage_record("extract")["failed"] == {"missing_file": 1}
    before, digest_before = stamps(run), run.require("extract")
    extract(run, settings)
    assert stamps(run) == before and run.finished_before[-1] == "extract"

    (tmp_path / "01.jpg").rename(images / "01.jpg")
    deleted = next(path for path in garment_shards(run) if pq.read_table(path)["status"][0].as_py() == "ok")
    deleted.unlink()
    extract(run, settings)
    record = run.stage_record("extract")
    assert (record["in"], record["out"], record["failed"]) == (3, 3, {})
    assert run.require("extract") != digest_before
    kept = [name for name in before if stamps(run).get(name) == before[name]]
    assert len(kept) == 1


def test_all_that_a_shard_holds_comes_back(
    tmp_path: Path, photographs: Path, tiny_weights: Path, ray_local: None
):
    """What is to be done is then what that shard says of missing files, by name."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "00.jpg").write_bytes((photographs / "00.jpg").read_bytes())
    run = crawled(tmp_path / "run", images)
    settings = load_settings(None, overrides(tiny_weights))
    (images / "00.jpg").rename(tmp_path / "00.jpg")
    extract(run, settings)
    assert run.stage_record("extract")["failed"] == {"missing_file": 1}
    (tmp_path / "00.jpg").rename(images / "00.jpg")
    extract(run, settings)
    assert run.stage_record("extract")["failed"] == {}


def test_weights_that_cannot_be_used_are_the_users_to_mend(tmp_path: Path, photographs: Path):
    run = crawled(tmp_path / "run", photographs)
    with pytest.raises(UserError, match="no psnet weights there"):
        extract(run, load_settings(None, overrides(tmp_path / "nothing")))
    with pytest.raises(UserError, match="crawl is not done"):
        extract(RunDirectory(tmp_path / "other"), load_settings())


def test_actors_that_do_not_fit_are_refused_at_once(
    tmp_path: Path, photographs: Path, tiny_weights: Path, ray_local: None
):
    run = crawled(tmp_path / "run", photographs)
    with pytest.raises(UserError, match=r"extract\.actors=9 on cpu needs 4\.5 CPU, and Ray has 2 CPU"):
        extract(run, load_settings(None, overrides(tiny_weights, actors=9)))
    assert not stamps(run)
