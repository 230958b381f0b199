"""The second look at likely pairs: real photographs, rendered, with made-up features that find them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import pipeline.verify as stage
from pipeline.calibration import load_calibration
from pipeline.errors import RunError
from pipeline.judge import judge
from pipeline.match import match
from pipeline.rundir import RunDirectory
from pipeline.schema import CHANGED_COLUMNS, garment_schema, pack_boxes, pack_landmarks
from pipeline.settings import Settings, load_settings
from pipeline.verify import is_likely, verify
from psnet.data.photographs import read_labels, with_masks
from psnet.data.rephotograph import View, rephotograph
from psnet.homography import project
from psnet.registration import find_keypoints
from psnet.render.labels import write_labels
from psnet.taxonomy import Taxonomy
from psnet.train.calibrate import CALIBRATION_CAMERA
from psnet.train.landmarks import subject_of
from tests.pipeline.synthetic_garments import Catalogue, garment_table, item_table, unit

SWAP = Taxonomy.load("clothing11").swap
DIM = 64


@dataclass
class Shop:
    """Of every pair of pictures 2 i and 2 i + 1 the second is a copy of the first by its features; by its
    photograph too, but for the last pair."""

    views: list[View]
    paths: list[Path]
    features: np.ndarray

    @property
    def names(self) -> list[str]:
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in self.paths]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    every = with_masks(read_labels(write_labels(folder / "rendered", 12, seed=3)), folder / "cache")
    rich = [subject_of(g) for g in every if len(find_keypoints(g.read(), g.box).points) > 250]
    views: list[View] = []
    for number, subject in enumerate(rich[:3]):
        rng = np.random.default_rng(number)
        views += [
            View.itself(subject),
            rephotograph(subject, rng, replace(CALIBRATION_CAMERA, bend=0.0), swap=SWAP),
        ]
    views += [View.itself(subject) for subject in rich[3:5]]
    assert len(views) == 8
    rng = np.random.default_rng(0)
    features = np.repeat(unit(rng, 4, 5, DIM), 2, 0) + 0.2 * unit(rng, 8, 5, DIM)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    paths = []
    for number, view in enumerate(views):
        paths.append(folder / f"{number}.png")
        Image.fromarray(view.pixels).save(paths[-1])
    return Shop(views, paths, features.astype(np.float16))


@pytest.fixture
def settings() -> Settings:
    return load_settings(None)


def matched_run(
    path: Path, shop: Shop, settings: Settings, sellers: Sequence[str] = "abcdefgh", twin: bool = False
) -> RunDirectory:
    """``twin``: another seller shows the very file of picture 0."""
    path.mkdir()
    paths = [Path(shutil.copy(one, path / one.name)) for one in shop.paths]
    run = RunDirectory(path / "run")
    run.update(kind="scan", model_tag="psnet-test")
    items = [
        {
            "item_id": f"i{number}",
            "image_sha256": name,
            "image_path": str(one),
            "seller_id": seller,
            "listed_at": f"2024-01-{number + 1:02d}",
        }
        for number, (name, one, seller) in enumerate(zip(shop.names, paths, sellers, strict=True))
    ]
    if twin:
        items.append({**items[0], "item_id": "twin", "seller_id": "another"})
    with run.stage("crawl", "crawled"):
        run.items_path.parent.mkdir(parents=True)
        pq.write_table(item_table(items), run.items_path)
    seen = np.stack([np.isfinite(view.region_boxes[:, 0]) for view in shop.views])
    source = Catalogue(
        shop.features,
        np.zeros_like(shop.features),
        np.where(seen, 2, 1).astype(np.uint8),
        np.arange(len(paths)),
        ["T-shirts"] * len(paths),
    )
    table = garment_table(source, np.arange(len(paths)))
    columns = {
        "image_sha256": pa.array(shop.names),
        "image_width": pa.array([view.pixels.shape[1] for view in shop.views], pa.int32()),
        "image_height": pa.array([view.pixels.shape[0] for view in shop.views], pa.int32()),
        "box": pack_boxes(np.stack([view.box for view in shop.views])),
        "region_boxes": pack_boxes(np.stack([view.region_boxes for view in shop.views])),
        "landmarks": pack_landmarks([view.landmarks for view in shop.views]),
    }
    schema = garment_schema(DIM)
    arrays = [columns.get(name, table[name]) for name in schema.names]
    run.garments_dir.mkdir()
    pq.write_table(pa.table(arrays, schema=schema), run.garments_dir / "t-0.parquet")
    with run.stage("extract", "extracted") as done:
        done.note(shard_prefix="t-")
    match(run, settings)
    return run


def looked_at(run: RunDirectory, shop: Shop) -> dict[tuple[int, int], dict[str, object]]:
    number = {name: i for i, name in enumerate(shop.names)}
    rows = pq.read_table(run.verified_path).to_pylist()
    return {
        tuple(sorted((number[row["image_sha256"]], number[row["other_image_sha256"]]))): row for row in rows
    }


def test_copies_are_laid_upon_their_originals_and_other_garments_are_not(shop, settings, tmp_path):
    run = matched_run(tmp_path / "shop", shop, settings)
    verify(run, settings)
    found = looked_at(run, shop)
    assert set(found) >= {(0, 1), (2, 3), (4, 5), (6, 7)}
    status = {pair: row["status"] for pair, row in found.items()}
    assert all((status[pair] == "registered") == (pair in {(0, 1), (2, 3), (4, 5)}) for pair in status)
    done = run.stage_record("verify")
    assert (done["in"], done["out"]) == (len(found), 3)
    names = shop.names
    for (one, other), row in found.items():
        if row["status"] != "registered":
            assert row["registered_points"] is None and row["homography"] is None
            continue
        assert row["registered_points"] >= 8 and not row["mirrored"]
        assert all(
            np.isnan(shop.views[one].region_boxes[r, 0]) or row[column] is not None
            for r, column in enumerate(CHANGED_COLUMNS)
        )
        # From the picture that sorts first to the other; the copy's matrix says where a landmark belongs.
        matrix, laid = np.reshape(row["homography"], (3, 3)), np.reshape(row["laid"], (-1, 4))
        if row["image_sha256"] == names[other]:
            matrix, laid = np.linalg.inv(matrix), laid[:, [2, 3, 0, 1]]
        points = shop.views[one].landmarks
        points = points[points[:, 2] > 0, :2]
        off = np.linalg.norm(project(matrix, points) - shop.views[other].warp.place(points), axis=1)
        extent = np.ptp(shop.views[other].box.reshape(2, 2), axis=0).max()
        assert np.median(off) < 0.02 * extent
        # Of the grid, what lies on the garment lands where the copy has it.
        low, high = shop.views[one].box.reshape(2, 2)
        laid = laid[((laid[:, :2] > low) & (laid[:, :2] < high)).all(1)]
        off = np.linalg.norm(laid[:, 2:] - shop.views[other].warp.place(laid[:, :2]), axis=1)
        assert len(laid) >= 20 and np.median(off) < 0.02 * extent


def test_registered_pairs_are_suspects_and_say_why(shop, settings, tmp_path):
    run = matched_run(tmp_path / "shop", shop, settings)
    verify(run, settings)
    judge(run, settings)
    suspects = pq.read_table(run.suspects_path).to_pylist()
    of_pair = {(row["original_item_id"], row["suspect_item_id"]): row for row in suspects}
    for one in ("i0", "i2", "i4"):
        row = of_pair.get((one, f"i{int(one[1]) + 1}"))
        if row is None:  # three regions said to be changed: nothing to report
            continue
        assert row["registered_points"] >= 8 and "lies upon the other" in row["explanation"]
    assert sum(row["registered_points"] is not None for row in suspects) >= 2
    other = of_pair[("i6", "i7")]
    assert other["registered_points"] is None and "lies upon" not in other["explanation"]


def test_what_is_never_reported_is_not_looked_at(shop, settings, tmp_path):
    run = matched_run(tmp_path / "shop", shop, settings, sellers="aacdefgh", twin=True)
    verify(run, settings)
    found = looked_at(run, shop)
    # Picture 0 is offered by another seller as well, so its pair is looked at, once; never with itself.
    assert (0, 1) in found and (0, 0) not in found
    assert len(found) == pq.read_metadata(run.verified_path).num_rows
    alone = matched_run(tmp_path / "one", shop, settings, sellers="aacdefgh")
    verify(alone, settings)
    assert (0, 1) not in looked_at(alone, shop)


def test_the_same_in_this_process_and_on_ray(shop, settings, tmp_path, monkeypatch, ray_local):
    tables = []
    for name, part in (("here", 128), ("ray", 2)):
        monkeypatch.setattr(stage, "PART", part)
        run = matched_run(tmp_path / name, shop, settings)
        verify(run, settings)
        assert not list(run.verify_dir.glob("*.parquet"))
        tables.append(pq.read_table(run.verified_path))
    assert tables[0].equals(tables[1])
    keys = [tuple(row.values()) for row in tables[0].select(tables[0].column_names[:4]).to_pylist()]
    assert keys == sorted(keys) and len(keys) > 2


def test_finished_parts_are_kept(shop, settings, tmp_path, monkeypatch, ray_local):
    monkeypatch.setattr(stage, "PART", 2)
    run = matched_run(tmp_path / "shop", shop, settings)
    write = stage.write_shard

    def full_disk(path: Path, *rest: object) -> None:
        if path == run.verified_path:
            raise OSError(28, "No space left on device")
        write(path, *rest)

    monkeypatch.setattr(stage, "write_shard", full_disk)
    with pytest.raises(RunError, match=r"verified.parquet: cannot be written .No space left on device"):
        verify(run, settings)
    monkeypatch.setattr(stage, "write_shard", write)
    parts = sorted(run.verify_dir.glob("*.parquet"))
    assert len(parts) >= 2
    parts[0].unlink()
    # A part that is there is taken as it is: this one tells that it was read and not made again.
    told = pq.read_table(parts[1])
    points = told.column_names.index("registered_points")
    marked = told.set_column(points, told.schema.field(points), pa.array([999] * len(told), pa.int32()))
    pq.write_table(marked, parts[1])
    verify(run, settings)
    found = pq.read_table(run.verified_path)
    assert found["registered_points"].to_pylist().count(999) == len(told)
    assert len(found) == run.stage_record("verify")["in"]


def test_a_picture_that_is_gone_or_another_one_by_now(shop, settings, tmp_path):
    run = matched_run(tmp_path / "shop", shop, settings)
    (tmp_path / "shop/1.png").unlink()
    shutil.copy(shop.paths[0], tmp_path / "shop/3.png")
    verify(run, settings)
    status = {pair: row["status"] for pair, row in looked_at(run, shop).items()}
    assert status[(0, 1)] == status[(2, 3)] == "unreadable" and status[(4, 5)] == "registered"
    assert run.stage_record("verify")["failed"]["unreadable"] >= 2
    judge(run, settings)
    suspects = pq.read_table(run.suspects_path).to_pylist()
    (row,) = (row for row in suspects if row["suspect_item_id"] == "i1")
    assert row["registered_points"] is None and row["relation"] == "identical"

    # One is back: its pairs are looked at, and no others.
    shutil.copy(shop.paths[1], tmp_path / "shop/1.png")
    before = looked_at(run, shop)
    verify(run, settings)
    now = looked_at(run, shop)
    assert now[(0, 1)]["status"] == "registered" and now[(2, 3)]["status"] == "unreadable"
    assert now.keys() == before.keys() and now[(4, 5)] == before[(4, 5)]
    judge(run, settings)
    (row,) = (row for row in pq.read_table(run.suspects_path).to_pylist() if row["suspect_item_id"] == "i1")
    assert row["registered_points"] >= 8
    # The other one too: with that there is nothing left to do.
    shutil.copy(shop.paths[3], tmp_path / "shop/3.png")
    verify(run, settings)
    assert "unreadable" not in {row["status"] for row in looked_at(run, shop).values()}
    again = RunDirectory(run.path)
    verify(again, settings)
    assert again.finished_before == ["verify"]


def test_what_is_all_but_the_same_is_looked_at_whatever_the_rest_of_the_catalogue(settings):
    """A design that a catalogue holds a dozen times, or that one of two pictures, is its own background."""
    pairs = pa.table(
        {
            "score": pa.array([0.99, 0.94, 0.6, 0.5], pa.float32()),
            "normalised_score": pa.array([0.0, -0.2, 0.4, 0.1], pa.float32()),
        }
    )
    calibration = load_calibration(settings)
    assert is_likely(pairs, settings, calibration).to_pylist() == [True, False, True, False]
    off = load_settings(None, ["verify.min_score=2"])
    assert is_likely(pairs, off, calibration).to_pylist() == [False, False, True, False]


def test_nothing_is_looked_at_where_it_is_switched_off_or_no_network_came_along(
    shop, settings, tmp_path, tiny_weights
):
    run = matched_run(tmp_path / "shop", shop, settings)
    for key in ("verify.enabled=false", f"extract.weights={tiny_weights}"):
        chosen = load_settings(None, [key])
        match(run, chosen)
        verify(run, chosen)
        assert pq.read_metadata(run.verified_path).num_rows == 0
        assert run.stage_record("verify")["skipped"]
        judge(run, chosen)
