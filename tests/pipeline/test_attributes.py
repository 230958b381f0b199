"""Attribute embeddings in a run: stored, compared, used to rank suspects anew and to list similar items."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from pipeline import cli
from pipeline.attributes import RERANK_WEIGHT, Agreement, Attributes, agreements, reranked, similar
from pipeline.errors import UserError
from pipeline.extract import Extractor, Job, garment_shards, shard_prefix
from pipeline.report import PageOptions, page_data, read_evidence
from pipeline.rundir import RunDirectory
from pipeline.scan import scan
from pipeline.schema import garment_schema, pack_attributes, unpack_attributes
from pipeline.settings import ExtractSettings, load_settings
from psnet.asen import AsenConfig, build_asen
from psnet.asen_weights import asen_tag, save_asen
from psnet.regions import Presence
from psnet.weights import load_psnet, save_psnet
from tests.pipeline.test_extract import D, Stand, picture, unit_of
from tests.pipeline.test_scan import write_catalogue

NAMES = ("collar", "sleeve_length", "pattern")


@pytest.fixture(scope="module")
def asen_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ASEN of random numbers; two photographs agree in a collar when they are the same."""
    folder = tmp_path_factory.mktemp("asen")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AsenConfig(
            trunk="resnet10t", channels=16, hidden=8, side=64, fit="stretch", attributes=NAMES
        )
        model = build_asen(config)
    save_asen(model, folder, {"collar": 0.99999, "sleeve_length": -1.0})
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


@pytest.fixture(scope="module")
def seeing_weights(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network with a landmark branch that takes every region for present: of random numbers, which
    it is, depends on how they are rounded."""
    model = load_psnet(tiny_weights)
    bias = model.landmarks.presence.bias
    with torch.no_grad():
        bias.view(-1, len(Presence))[:, Presence.PRESENT] += 100
    folder = tmp_path_factory.mktemp("weights") / "seeing"
    save_psnet(model, folder)
    return folder


@pytest.fixture(scope="module")
def chosen(seeing_weights: Path, asen_weights: Path) -> list[str]:
    return [
        f"extract.weights={seeing_weights}",
        f"extract.attribute_weights={asen_weights}",
        "extract.detection_threshold=0.0",
        "extract.actors=1",
        "judge.min_score=-1",
    ]


@pytest.fixture(scope="module")
def scanned(
    ray_local: None, chosen: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunDirectory]:
    """Two items a picture; the settings ask for nothing but the new order."""
    catalogue = write_catalogue(
        tmp_path_factory.mktemp("shop"), "shop.csv", {str(i): i // 2 for i in range(6)}
    )
    settings = load_settings(None, [*chosen, "rerank=asen"])
    return catalogue, scan(catalogue, tmp_path_factory.mktemp("runs") / "scan", settings)


def test_a_scan_says_in_which_attributes_each_pair_agrees(scanned: tuple[Path, RunDirectory]) -> None:
    run = scanned[1]
    rows = pq.read_table(run.suspects_path).to_pylist()
    assert rows
    for row in rows:
        same = row["original_image_sha256"] == row["suspect_image_sha256"]
        said = [*row["agreeing_attributes"], *row["differing_attributes"]]
        assert sorted(said) == sorted(NAMES)
        # Every sleeve agrees by its threshold, and the pattern has none.
        assert "sleeve_length" in row["agreeing_attributes"] and "pattern" in row["differing_attributes"]
        if same and row["original_garment"] == row["suspect_garment"]:
            assert "collar" in row["agreeing_attributes"]
            assert row["attribute_similarity"] == pytest.approx(1, abs=2e-3)
    first = page_data(read_evidence(run), {}, PageOptions())["suspects"][0]
    assert (
        first["agree"] == rows[0]["agreeing_attributes"]
        and first["differ"] == rows[0]["differing_attributes"]
    )
    assert (
        "|" in run.suspects_csv_path.read_text()
        and "agreeing_attributes" in run.suspects_csv_path.read_text()
    )
    assert "Attributes that agree" in run.report_path.read_text()


def test_items_alike_in_one_attribute(
    scanned: tuple[Path, RunDirectory], chosen: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = scanned[1]
    settings = load_settings(None, chosen)
    found = similar(run, settings, "0", "collar")
    assert found[0].item_id == "1" and found[0].agrees and found[0].cosine == pytest.approx(1, abs=2e-3)
    assert len(found) == 5 and [one.cosine for one in found] == sorted(
        (o.cosine for o in found), reverse=True
    )
    assert len(similar(run, settings, "0", "collar", limit=2)) == 2
    answer = CliRunner().invoke(cli.app, ["similar", "0", "--attribute", "collar", "--in", str(run.path)])
    assert answer.exit_code == 0 and "collar of 0" in answer.output
    for arguments, said in (
        (("99", "collar"), "no item '99'"),
        (("0", "neck"), "'neck' is unknown; known: collar"),
    ):
        command = ["similar", arguments[0], "--attribute", arguments[1], "--in", str(run.path)]
        assert cli.run_command(command) == 2
        assert said in capsys.readouterr().err


def test_without_attributes_and_with_other_weights_the_user_hears_of_it(
    scanned: tuple[Path, RunDirectory], chosen: list[str], tmp_path: Path
) -> None:
    catalogue, run = scanned
    plain = scan(catalogue, tmp_path / "plain", load_settings(None, chosen))
    table = pq.read_table(plain.suspects_path)
    assert table["agreeing_attributes"].null_count == table.num_rows
    with pytest.raises(
        UserError, match=r"have no attributes; repeat the scan with --set extract\.attributes=true"
    ):
        similar(plain, load_settings(None, chosen), "0", "collar")
    other = [*chosen, f"extract.attribute_weights={tmp_path}"]
    with pytest.raises(UserError, match="no ASEN weights there"):
        similar(run, load_settings(None, other), "0", "collar")
    torch.manual_seed(1)
    save_asen(build_asen(AsenConfig(trunk="resnet10t", channels=16, hidden=8, attributes=NAMES)), tmp_path)
    with pytest.raises(UserError, match=r"name those weights with extract\.attribute_weights"):
        similar(run, load_settings(None, other), "0", "collar")
    # The same settings again find the attributes there.
    before = [shard.stat().st_mtime_ns for shard in garment_shards(run)]
    scan(catalogue, run.path, load_settings(None, [*chosen, "rerank=asen"]))
    assert [shard.stat().st_mtime_ns for shard in garment_shards(run)] == before
    assert json.loads((run.path / "run.json").read_text())["config"]["extract"]["attributes"] is True
