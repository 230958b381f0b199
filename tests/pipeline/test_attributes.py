"""Attribute embeddings in a run: stored, compared, used to rank suspects anew and to list similar items."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from pipeline import cli
from pipeline.attributes import (
    RERANK_WEIGHT,
    Agreement,
    Attributes,
    agreements,
    read_embeddings,
    reranked,
    similar,
)
from pipeline.errors import UserError
from pipeline.extract import Extractor, Job, garment_shards, shard_prefix
from pipeline.judge import judge
from pipeline.match import match
from pipeline.report import PageOptions, page_data, read_evidence
from pipeline.rundir import RunDirectory
from pipeline.scan import scan
from pipeline.schema import SUSPECT_SCHEMA, garment_schema, pack_attributes, unpack_attributes
from pipeline.settings import ExtractSettings, load_settings
from pipeline.verify import verify
from psnet.asen import AsenConfig, build_asen
from psnet.asen_weights import asen_tag, save_asen
from psnet.config import as_dict
from tests.pipeline.synthetic_garments import catalogue, plain_items, write_run
from tests.pipeline.test_extract import D, Stand, picture, unit_of
from tests.pipeline.test_scan import write_catalogue

NAMES = ("collar", "sleeve_length", "pattern")


@pytest.fixture(scope="module")
def asen_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ASEN of random numbers."""
    folder = tmp_path_factory.mktemp("asen")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AsenConfig(
            trunk="resnet10t", channels=16, hidden=8, side=64, fit="stretch", attributes=NAMES
        )
        model = build_asen(config)
    save_asen(model, folder, {"collar": 0.99, "sleeve_length": -1.0})
    return folder


def extractor(folder: Path, weights: Path | None) -> Extractor:
    folder.mkdir(exist_ok=True)
    settings = dataclasses.replace(
        ExtractSettings(),
        precision="float32",
        batch_images=3,
        attributes=weights is not None,
        attribute_weights=None if weights is None else str(weights),
    )
    tag = "" if weights is None else asen_tag(weights)
    prefix = shard_prefix("stand-in", settings, tag)
    job = Job(str(folder), prefix, "run 1", "stand-in", "cpu", 10**8, settings, tag)
    return Extractor(job, lambda _: (Stand(), "float32"))


def test_embeddings_are_stored_beside_the_features(tmp_path: Path, asen_weights: Path) -> None:
    files = {f"{n}.jpg": picture(n) for n in range(4)} | {"wide": picture(9, (80, 40)), "bad": b"none"}
    with_, without = tmp_path / "with", tmp_path / "without"
    for folder, weights in ((with_, asen_weights), (without, None)):
        folder.mkdir()
        unit, _ = unit_of(folder, files)
        assert "error" not in {k for k, v in extractor(folder, weights)(unit).to_pylist()[0].items() if v}
    (shard,), (plain,) = with_.glob("*.parquet"), without.glob("*.parquet")
    assert shard.name.rsplit("-", 1)[0] != plain.name.rsplit("-", 1)[0]
    rows, bare = pq.read_table(shard), pq.read_table(plain)
    assert rows.schema.equals(garment_schema(D)) and bare.schema.equals(garment_schema(D))
    assert bare["attributes"].null_count == bare.num_rows
    assert rows.schema.metadata[b"attribute_tag"].decode() == asen_tag(asen_weights)
    for row in rows.to_pylist():
        assert (row["attributes"] is not None) == (row["status"] == "ok")
        if row["attributes"] is not None:
            embedding = unpack_attributes(row["attributes"], len(NAMES))
            assert embedding.shape == (3, 16)
            np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=2e-3)
    drop = ["attributes"]
    assert rows.drop(drop).replace_schema_metadata(None).equals(bare.drop(drop).replace_schema_metadata(None))


def test_other_weights_are_other_shards_wherever_they_lie() -> None:
    on = dataclasses.replace(ExtractSettings(), attributes=True, attribute_weights="here")
    moved = dataclasses.replace(on, attribute_weights="there")
    assert shard_prefix("a", on, "asen-1") == shard_prefix("a", moved, "asen-1")
    assert shard_prefix("a", on, "asen-1") != shard_prefix("a", on, "asen-2")


def test_packing_keeps_the_embeddings() -> None:
    values = np.random.default_rng(0).standard_normal((2, 3, 16)).astype(np.float16)
    column = pack_attributes(values)
    assert column.type == pa.binary()
    for one, value in zip(column.to_pylist(), values, strict=True):
        assert np.array_equal(unpack_attributes(one, 3), value.astype(np.float32))


def test_agreement_and_the_new_order_by_hand() -> None:
    attributes = Attributes(NAMES, np.array([0.9, 0.5, 0.5], np.float32))
    up, right, between = np.eye(2)[1], np.eye(2)[0], np.array([0.6, 0.8])
    embeddings = {
        ("a", 0): np.stack([up, up, up]),
        ("b", 1): np.stack([between, between, right]),
        ("c", 0): np.stack([right, right, right]),
    }
    one, none, other = agreements(
        [(("a", 0), ("b", 1)), (("a", 0), ("b", 0)), (("a", 0), ("c", 0))], embeddings, attributes
    )
    assert one == Agreement(("sleeve_length",), ("collar", "pattern"), pytest.approx(1.6 / 3))
    assert none is None
    assert other is not None and other.agreeing == () and other.share == 0
    # 0.5 and a third, 0.5 and (as nothing is known) a half, a little more and nothing.
    little = 0.5 + 0.4 * RERANK_WEIGHT
    assert reranked([0.5, 0.5, little], [one, none, other]) == [1, 2, 0]
    assert reranked([0.5, 0.5, 0.5], [none, none, none]) == [0, 1, 2]
    with pytest.raises(UserError, match="'neck' is unknown; known: collar, sleeve_length, pattern"):
        attributes.place("neck")


PICTURES = 120


@pytest.fixture(scope="module")
def chosen(tiny_weights: Path, asen_weights: Path) -> list[str]:
    return [f"extract.weights={tiny_weights}", f"extract.attribute_weights={asen_weights}"]


def judged(folder: Path, chosen: list[str], asen_weights: Path, *, attributes: bool = True) -> RunDirectory:
    """A run with planted copies up to its pairs; every third garment has another collar than the others."""
    source = catalogue(PICTURES, copies=0.5, seed=7)
    run = write_run(folder, source, plain_items(PICTURES))
    if attributes:
        for shard in garment_shards(run):
            rows = pq.read_table(shard)
            values = np.zeros((rows.num_rows, len(NAMES), 16), np.float32)
            values[:, :, 0] = 1
            values[::3, 0, :2] = (0.6, 0.8)
            place = rows.schema.get_field_index("attributes")
            pq.write_table(rows.set_column(place, rows.schema.field(place), pack_attributes(values)), shard)
        stages = run.read()["stages"]
        stages["extract"]["attribute_tag"] = asen_tag(asen_weights)
        run.update(stages=stages)
    match(run, load_settings(None, chosen))
    verify(run, load_settings(None, chosen))
    return run


@pytest.fixture(scope="module")
def run(chosen: list[str], asen_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return judged(tmp_path_factory.mktemp("judged") / "run", chosen, asen_weights)


def test_suspects_are_ranked_anew_and_say_where_they_agree(run: RunDirectory, chosen: list[str]) -> None:
    judge(run, load_settings(None, chosen))
    plain = pq.read_table(run.suspects_path)
    for name in ("agreeing_attributes", "differing_attributes", "attribute_similarity"):
        assert plain[name].null_count == plain.num_rows
    judge(run, load_settings(None, [*chosen, "rerank=asen"]))
    table = pq.read_table(run.suspects_path)
    assert table.schema.equals(SUSPECT_SCHEMA)
    rows = table.to_pylist()
    keys = [
        [(row["original_item_id"], row["suspect_item_id"]) for row in some]
        for some in (plain.to_pylist(), rows)
    ]
    assert sorted(keys[0]) == sorted(keys[1]) and keys[0] != keys[1]
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    embeddings = read_embeddings(run, None, len(NAMES))
    for row in rows:
        one, other = (
            embeddings[row[f"{side}_image_sha256"], row[f"{side}_garment"]]
            for side in ("original", "suspect")
        )
        same_collar = np.allclose(one[0], other[0], atol=1e-3)
        # Sleeves always agree by their threshold; of the pattern, which has none, nothing is said.
        assert row["agreeing_attributes"] == [*(["collar"] if same_collar else []), "sleeve_length"]
        assert row["differing_attributes"] == ([] if same_collar else ["collar"])
        assert row["attribute_similarity"] == pytest.approx(1 if same_collar else (0.6 + 2) / 3, abs=2e-3)
    assert {len(row["agreeing_attributes"]) for row in rows} == {1, 2}
    total = [row["normalised_score"] + RERANK_WEIGHT * len(row["agreeing_attributes"]) / 2 for row in rows]
    assert all(a >= b - 1e-6 for a, b in pairwise(total))
    first = page_data(read_evidence(run), {}, PageOptions())["suspects"][0]
    assert first["agree"] == rows[0]["agreeing_attributes"]
    assert first["differ"] == rows[0]["differing_attributes"]
    with run.suspects_csv_path.open(newline="") as file:
        line = next(csv.DictReader(file))
    for name in ("agreeing_attributes", "differing_attributes"):
        assert line[name] == "|".join(rows[0][name])


def test_items_alike_in_one_attribute(
    run: RunDirectory, chosen: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load_settings(None, chosen)
    items = plain_items(PICTURES)
    embeddings = read_embeddings(run, None, len(NAMES))
    # A picture with one garment: with two it may be like every other.
    asked = next(str(one["item_id"]) for one in items if (one["image_sha256"], 1) not in embeddings)
    run.update(config=as_dict(settings))
    found = similar(run, settings, asked, "collar", limit=PICTURES)
    assert len(found) == PICTURES - 1
    cosines = [one.cosine for one in found]
    assert cosines == sorted(cosines, reverse=True) and cosines[0] == pytest.approx(1, abs=2e-3)
    assert cosines[-1] == pytest.approx(0.6, abs=2e-3)
    assert [one.agrees for one in found] == [cosine > 0.9 for cosine in cosines]
    assert similar(run, settings, asked, "collar", limit=2) == found[:2]
    answer = CliRunner().invoke(cli.app, ["similar", asked, "--attribute", "collar", "--in", str(run.path)])
    assert answer.exit_code == 0 and found[0].item_id in answer.output
    for arguments, said in (
        (("none", "collar"), "no item 'none'"),
        ((asked, "neck"), "'neck' is unknown; known: collar"),
    ):
        command = ["similar", arguments[0], "--attribute", arguments[1], "--in", str(run.path)]
        assert cli.run_command(command) == 2
        assert said in capsys.readouterr().err


def test_without_attributes_and_with_other_weights_the_user_hears_of_it(
    run: RunDirectory, chosen: list[str], asen_weights: Path, tmp_path: Path
) -> None:
    plain = judged(tmp_path / "plain", chosen, asen_weights, attributes=False)
    with pytest.raises(
        UserError, match=r"no attributes; repeat the scan with --set extract\.attributes=true"
    ):
        judge(plain, load_settings(None, [*chosen, "rerank=asen"]))
    other = load_settings(None, [*chosen, f"extract.attribute_weights={tmp_path}"])
    with pytest.raises(UserError, match="no ASEN weights there"):
        similar(run, other, "0", "collar")
    torch.manual_seed(1)
    save_asen(build_asen(AsenConfig(trunk="resnet10t", channels=16, hidden=8, attributes=NAMES)), tmp_path)
    with pytest.raises(UserError, match=r"name those weights with extract\.attribute_weights"):
        similar(run, other, "0", "collar")


def test_weights_without_thresholds_say_nothing_of_a_pair(
    run: RunDirectory, chosen: list[str], asen_weights: Path, tmp_path: Path
) -> None:
    shutil.copytree(asen_weights, tmp_path / "asen")
    description = json.loads((tmp_path / "asen" / "asen.json").read_text())
    (tmp_path / "asen" / "asen.json").write_text(json.dumps(description | {"thresholds": {}}))
    silent = load_settings(None, [*chosen, f"extract.attribute_weights={tmp_path / 'asen'}", "rerank=asen"])
    with pytest.raises(UserError, match="have no thresholds"):
        judge(run, silent)
    nothing = Attributes(NAMES, np.full(3, np.inf, np.float32))
    garment = np.eye(16)[:3]
    (said,) = agreements([(("a", 0), ("a", 0))], {("a", 0): garment}, nothing)
    assert said == Agreement((), (), pytest.approx(1.0)) and said.share == 0.5
    asked = str(plain_items(PICTURES)[0]["item_id"])
    assert {one.agrees for one in similar(run, silent, asked, "collar")} == {None}
    shown = ["similar", asked, "--attribute", "collar", "--in", str(run.path)]
    answer = CliRunner().invoke(cli.app, [*shown, "--set", f"extract.attribute_weights={tmp_path / 'asen'}"])
    assert answer.exit_code == 0 and " - " in answer.output


def test_other_thresholds_judge_anew(
    run: RunDirectory, chosen: list[str], asen_weights: Path, tmp_path: Path
) -> None:
    shutil.copytree(asen_weights, tmp_path / "asen")
    settings = load_settings(None, [*chosen, f"extract.attribute_weights={tmp_path / 'asen'}", "rerank=asen"])
    judge(run, settings)
    assert any(
        "collar" in row for row in pq.read_table(run.suspects_path)["differing_attributes"].to_pylist()
    )
    description = json.loads((tmp_path / "asen" / "asen.json").read_text())
    lower = description["thresholds"] | {"collar": -1.0}
    (tmp_path / "asen" / "asen.json").write_text(json.dumps(description | {"thresholds": lower}))
    judge(run, settings)
    assert all("collar" in row for row in pq.read_table(run.suspects_path)["agreeing_attributes"].to_pylist())


def test_ranking_anew_asks_for_the_attributes() -> None:
    assert not load_settings(None, []).extract.attributes
    assert load_settings(None, ["rerank=asen"]).extract.attributes


@pytest.mark.slow
def test_a_scan_stores_attributes_once(
    ray_local: None, chosen: list[str], asen_weights: Path, tmp_path: Path
) -> None:
    listed = write_catalogue(tmp_path, "shop.csv", {str(i): i // 2 for i in range(6)})
    settings = load_settings(
        None, [*chosen, "extract.detection_threshold=0.0", "extract.actors=1", "rerank=asen"]
    )
    done = scan(listed, tmp_path / "run", settings)
    assert done.stage_record("extract")["attribute_tag"] == asen_tag(asen_weights)
    assert len(read_embeddings(done, None, len(NAMES))) == done.stage_record("extract")["garments"] > 0
    before = [shard.stat().st_mtime_ns for shard in garment_shards(done)]
    scan(listed, done.path, settings)
    assert [shard.stat().st_mtime_ns for shard in garment_shards(done)] == before
