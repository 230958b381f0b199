"""The data flow as a whole, with a network of random numbers: what it means is not the question here."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.rundir import STAGES, RunDirectory
from pipeline.scan import check_settings, scan, sweep
from pipeline.settings import Settings, load_settings
from psnet.weights import SHIPPED

ITEMS = 6


def write_catalogue(folder: Path, name: str, items: dict[str, int]) -> Path:
    """``items``: item_id -> seed of its picture; pictures of one seed are the same file content."""
    folder.mkdir(exist_ok=True)
    rows = ["item_id,image,seller_id"]
    for item_id, seed in items.items():
        pixels = np.random.default_rng(seed).integers(0, 255, (96, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
        rows.append(f"{item_id},{seed}.png,seller of {item_id}")
    (folder / name).write_text("\n".join(rows))
    return folder / name


@pytest.fixture(scope="module")
def settings(tiny_weights: Path) -> Settings:
    return load_settings(
        None, [f"extract.weights={tiny_weights}", "extract.detection_threshold=0.0", "extract.actors=1"]
    )


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_catalogue(
        tmp_path_factory.mktemp("shop"), "shop.csv", {str(i): i // 2 for i in range(ITEMS)}
    )


@pytest.fixture(scope="module")
def scanned(
    ray_local: None, catalogue: Path, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> RunDirectory:
    return scan(catalogue, tmp_path_factory.mktemp("runs") / "scan", settings)


def queries(run: RunDirectory) -> set[str]:
    return set(pq.read_table(run.pairs_path)["query_item_id"].to_pylist())


def test_a_scan_leaves_everything_the_contract_names(scanned: RunDirectory, catalogue: Path):
    expected = (scanned.pairs_path, scanned.suspects_path, scanned.suspects_csv_path, scanned.report_path)
    assert all(path.is_file() for path in expected)
    assert any(scanned.garments_dir.iterdir()) and any(scanned.index_dir.iterdir())
    record = scanned.read()
    assert list(record["stages"]) == list(STAGES) and all(
        stage["done"] for stage in record["stages"].values()
    )
    crawl = record["stages"]["crawl"]
    assert crawl["in"] == ITEMS == crawl["out"] + sum(crawl["failed"].values())
    assert record["model_tag"] and record["catalogue"] == str(catalogue) and record["config"]["extract"]
    assert queries(scanned) <= {str(i) for i in range(ITEMS)}


def test_the_second_scan_finds_everything_done(scanned: RunDirectory, catalogue: Path, settings: Settings):
    assert scan(catalogue, scanned.path, settings).finished_before == list(STAGES)


def test_a_sweep_of_a_scan_extracts_the_originals_only(
    scanned: RunDirectory, catalogue: Path, settings: Settings, tmp_path: Path
):
    originals = write_catalogue(catalogue.parent, "brand.csv", {"mine": 77, "0": 0})
    run = sweep(originals, scanned.path, tmp_path / "sweep", settings)
    assert queries(run) <= {"mine", "0"}
    # Item 0 stands on both sides and counts once, as an original.
    crawl = run.stage_record("crawl")
    # Only the picture that the scan does not know is read, and the one that was written again.
    assert crawl["in"] == ITEMS + 1 and crawl["locations"] - crawl["held_over"] == 2
    before = {path.name for path in scanned.garments_dir.iterdir()}
    fresh = [path for path in run.garments_dir.glob("*.parquet") if path.name not in before]
    assert len(set(pq.read_table(fresh)["image_sha256"].to_pylist())) == 1

    direct = sweep(originals, catalogue, tmp_path / "direct", settings)
    columns = ["query_item_id", "match_item_id", "rank", "relation"]
    assert pq.read_table(direct.pairs_path, columns=columns) == pq.read_table(run.pairs_path, columns=columns)

    with pytest.raises(UserError, match="is a sweep"):
        sweep(originals, run.path, tmp_path / "of a sweep", settings)
    with pytest.raises(UserError, match="holds a sweep"):
        scan(catalogue, run.path, settings)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("judge.dismissed=/nowhere.csv", "/nowhere.csv: cannot be read"),
        ("extract.weights=/nowhere", "/nowhere: no psnet weights there"),
        ("index.factory=IVFx", "index.factory: 'IVFx' is no FAISS factory"),
    ],
)
def test_what_a_late_stage_would_stumble_over_is_said_before_the_first(
    catalogue: Path, tmp_path: Path, change: str, said: str
):
    wrong = load_settings(None, [change])
    for start in (
        lambda: scan(catalogue, tmp_path / "run", wrong),
        lambda: sweep(catalogue, catalogue, tmp_path / "run", wrong),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            start()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["detector", "landmarks", "retrieval", "groups", "comparison"])
def test_weights_are_whole_or_said_to_be_damaged_before_the_first_stage(
    catalogue: Path, tmp_path: Path, part: str
):
    weights = tmp_path / "weights"
    shutil.copytree(SHIPPED, weights)
    settings = load_settings(None, [f"extract.weights={weights}"])
    check_settings(settings)
    file = weights / f"{part}.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=rf"{part}\.safetensors: weights of another model or damaged"):
        scan(catalogue, tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()


def test_two_items_of_one_id_are_not_taken_for_one(
    catalogue: Path, settings: Settings, tmp_path: Path, scanned: RunDirectory
):
    brand = write_catalogue(tmp_path / "brand", "brand.csv", {"3": 3, "mine": 9})
    brand.write_text(brand.read_text().replace("seller of ", "brand of "))
    for against in (catalogue, scanned.path):
        with pytest.raises(UserError, match=r"different items under one item_id \('3': neither"):
            sweep(brand, against, tmp_path / "out", settings)
    with pytest.raises(UserError, match="'3'"):
        sweep(brand.parent, catalogue, tmp_path / "out", settings)  # a folder: 3.png, 9.png
    assert not (tmp_path / "out").exists()


def test_a_sweep_of_a_run_that_has_not_extracted(catalogue: Path, settings: Settings, tmp_path: Path):
    half = RunDirectory(tmp_path / "half")
    half.update(kind="scan")
    with pytest.raises(UserError, match="psnet extract"):
        sweep(catalogue, half.path, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("search", ["exact", "pruned"])
def test_a_catalogue_of_which_nothing_can_be_read_ends_with_its_failures(
    tiny_weights: Path, tmp_path: Path, search: str
):
    (tmp_path / "broken.jpg").write_text("garbage")
    (tmp_path / "shop.csv").write_text("item_id,image,seller_id\na,gone.jpg,s\nb,broken.jpg,t\n")
    keys = [f"extract.weights={tiny_weights}", f"match.search={search}", "index.factory=Regions4"]
    run = scan(tmp_path / "shop.csv", tmp_path / "run", load_settings(None, keys))
    stages = run.read()["stages"]
    assert list(stages) == list(STAGES) and all(stage["done"] for stage in stages.values())
    assert stages["crawl"]["failed"] == {"missing_file": 1, "not_an_image": 1}
    assert pq.read_metadata(run.pairs_path).num_rows == 0 and run.report_path.is_file()
