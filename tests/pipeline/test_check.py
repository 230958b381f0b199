"""Single pictures against a run, with a network of random numbers: answers, words and mistakes."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.catalogue import read_catalogue
from pipeline.check import CANNOT_TELL, NOTHING, SUSPECTS, Checker, check, in_words
from pipeline.cli import run_command
from pipeline.crawl import crawl
from pipeline.errors import UserError
from pipeline.extract import Extractor, Job, shard_prefix
from pipeline.index import build_index
from pipeline.rundir import RunDirectory
from pipeline.settings import Settings, load_settings
from psnet.image import DecodedImage
from psnet.model import PSNet, PSNetConfig
from psnet.regions import Presence
from psnet.weights import model_tag, save_psnet


def photograph(seed: int) -> Image.Image:
    """Coarse coloured patches: random pixels all look alike to a network."""
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((80, 96), Image.Resampling.BICUBIC)


def decoded(seed: int) -> DecodedImage:
    image = photograph(seed)
    return DecodedImage(np.asarray(image), image.width, image.height, 1.0)


def png(image: Image.Image, path: Path, **options: int) -> Path:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    path.write_bytes(stream.getvalue())
    return path


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Of a network of random numbers that sees every region."""
    weights = tmp_path_factory.mktemp("weights") / "seeing"
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = PSNet(PSNetConfig.tiny())
        model.landmarks.presence.bias.view(-1, 3)[:, Presence.PRESENT] += 20
        save_psnet(model, weights)
    return load_settings(
        None,
        [
            f"extract.weights={weights}",
            "extract.detection_threshold=0.0",
            "extract.max_garments_per_image=1",
            "extract.precision=float32",
            "judge.min_score=0.9",
        ],
    )


@pytest.fixture(scope="module")
def run(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Twelve pictures, one of which two items show; extracted in this process."""
    folder = tmp_path_factory.mktemp("shop")
    rows = ["item_id,image,seller_id"]
    for number in range(12):
        png(photograph(number), folder / f"{number}.png")
        rows.append(f"{number:03d},{number}.png,seller {number}")
    rows.append("twin,3.png,another")
    (folder / "shop.csv").write_text("\n".join(rows))
    run = RunDirectory(tmp_path_factory.mktemp("runs") / "run")
    tag = model_tag(settings.extract.weights)
    run.update(kind="scan", model_tag=tag)
    table = read_catalogue(folder / "shop.csv")
    crawl(run, table, settings)
    items = (
        pq.read_table(run.items_path)
        .group_by("image_sha256", use_threads=False)
        .aggregate([("image_path", "first")])
    )
    unit = pa.table(
        {n: [c.to_pylist()] for n, c in zip(("image_sha256", "image_path"), items.columns, strict=True)}
    )
    prefix = shard_prefix(tag, settings.extract)
    run.garments_dir.mkdir()
    job = Job(str(run.garments_dir), prefix, "run", tag, "cpu", 10**8, settings.extract)
    assert Extractor(job)(unit)["error"].to_pylist() == [""]
    with run.stage("extract", "by hand") as stage:
        stage.note(shard_prefix=prefix)
    build_index(run, settings)
    return run


def picture_of(run: RunDirectory, item: str) -> Path:
    table = pq.read_table(run.items_path, columns=["item_id", "image_path"])
    return Path(dict(zip(*(column.to_pylist() for column in table.columns), strict=True))[item])


def test_a_picture_of_the_run_is_named_and_is_no_suspect_of_its_own(run, settings):
    (answer,) = check(run, [picture_of(run, "003")], settings)
    assert answer.same_picture == ["003", "twin"] and answer.status == "ok"
    for garment in answer.garments:
        assert not {"003", "twin"} & {match.item["item_id"] for match in garment.suspects}
    assert "this very picture is already in the run: item 003, twin" in in_words(answer)
    assert answer.compared_with == 12 and answer.search_seconds > 0


def test_the_same_photograph_in_another_file_is_the_first_suspect(run, settings, tmp_path):
    (answer,) = check(run, [png(photograph(3), tmp_path / "again.png", compress_level=0)], settings)
    garment = answer.garments[0]
    assert not answer.same_picture and garment.answer == SUSPECTS
    assert {match.item["item_id"] for match in garment.suspects[:2]} == {"003", "twin"}
    first = garment.suspects[0]
    assert (
        first.score == pytest.approx(1, abs=1e-3)
        and first.relation == "identical"
        and not first.modified_regions
    )
    assert first.item["seller_id"] in ("seller 3", "another")
    words = in_words(answer)
    assert "1. item 003, seller seller 3: identical, score 1.000" in words
    assert first.explanation in words and "offered" not in first.explanation


def test_an_item_that_several_runs_hold_is_named_once(run, settings, tmp_path):
    again = RunDirectory(tmp_path / "again")
    shutil.copytree(run.path, again.path, ignore=shutil.ignore_patterns("index"))
    shard = next(again.garments_dir.glob("*.parquet"))
    pq.write_table(pq.read_table(shard).slice(2), shard)  # another file, some of the same garments
    both = RunDirectory(tmp_path / "both")
    shutil.copytree(run.path, both.path)
    build_index(both, settings, add=[again.path])
    (answer,) = check(both, [png(photograph(3), tmp_path / "again.png", compress_level=0)], settings)
    assert answer.compared_with == 12 + 10
    named = [match.item["item_id"] for match in answer.garments[0].suspects]
    assert {"003", "twin"} <= set(named) and len(named) == len(set(named))
    (answer,) = check(both, [picture_of(both, "003")], settings)
    assert answer.same_picture == ["003", "twin"]


def test_a_flipped_photograph_is_found(run, settings):
    """A random detector sees another box in the flipped picture, so the flip is made behind it."""
    checker = Checker(run, settings)
    (garment,) = checker._predictor.predict([np.asarray(photograph(5))])[0]
    turned = replace(garment, features=garment.mirrored_features, mirrored_features=garment.features)
    (answer,) = checker._answers([turned], "no such hash", decoded(5), 10)
    best = answer.suspects[0]
    assert best.item["item_id"] == "005" and best.score > 0.99 and best.mirrored
    assert "the picture is flipped" in best.explanation


def test_limit_and_scores_that_are_too_low(run, settings, tmp_path):
    image = png(photograph(3), tmp_path / "again.png", compress_level=0)
    (answer,) = check(run, [image], settings, limit=1)
    assert len(answer.garments[0].suspects) == 1
    never = replace(settings, judge=replace(settings.judge, min_score=1.0, relations=("undecidable",)))
    (answer,) = check(run, [image], never)
    garment = answer.garments[0]
    assert garment.answer == NOTHING and not garment.suspects
    assert garment.nearest is not None and garment.nearest.item["item_id"] == "003"
    assert "nothing suspicious; the nearest is item 003 (identical, score 1.000" in in_words(answer)


def test_too_little_to_see_is_an_answer(run, settings):
    checker = Checker(run, settings)
    (garment,) = checker._predictor.predict([np.asarray(photograph(3))])[0]
    hidden = np.array([Presence.HIDDEN] * 3 + [Presence.PRESENT] * 2, np.uint8)
    seen = (hidden == Presence.PRESENT)[:, None]
    covered = replace(
        garment,
        presence=hidden,
        features=garment.features * seen,
        mirrored_features=garment.mirrored_features * seen,
    )
    (answer,) = checker._answers([covered], "no such hash", decoded(3), 10)
    assert (
        answer.answer == CANNOT_TELL and not answer.suspects and answer.visible_regions == ["chest", "waist"]
    )


def test_no_garment_and_no_picture(run, settings, tmp_path):
    strict = replace(settings, extract=replace(settings.extract, detection_threshold=1.0))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    nothing, unreadable = check(run, [png(photograph(3), tmp_path / "x.png"), broken], strict)
    assert nothing.status == "no_garment" and "no garment found" in in_words(nothing)
    assert unreadable.status == "truncated_image" and "cannot be read" in in_words(unreadable)


def test_the_command_prints_text_or_json(run, settings, tmp_path, capsys):
    image = png(photograph(3), tmp_path / "again.png", compress_level=0)
    keys = [
        f"extract.weights={settings.extract.weights}",
        "extract.detection_threshold=0",
        "extract.precision=float32",
    ]
    command = ["check", str(image), str(picture_of(run, "000")), "--against", str(run.path), "--limit", "2"]
    command += [part for key in keys for part in ("--set", key)]
    assert run_command(command) == 0
    text = capsys.readouterr().out
    assert "garments searched in" in text and text.count("garment 1 (") == 2
    assert run_command([*command, "--format", "json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [answer["same_picture"] for answer in answers] == [[], ["000"]]
    assert {"category", "box", "suspects", "answer"} <= answers[0]["garments"][0].keys()
    broken = tmp_path / "broken.png"
    broken.write_bytes(image.read_bytes()[:200])
    assert run_command([command[0], str(broken), *command[1:], "--format", "json"]) == 2
    answers = json.loads(capsys.readouterr().out)
    assert answers[0]["error"] and [answer["same_picture"] for answer in answers[1:]] == [[], ["000"]]


def test_an_index_without_a_garment(settings, tmp_path):
    empty = RunDirectory(tmp_path / "empty")
    empty.update(kind="scan", model_tag=model_tag(settings.extract.weights))
    crawl(empty, read_catalogue(png(photograph(1), tmp_path / "1.png").parent), settings)
    with empty.stage("extract", "nothing found") as stage:
        stage.note(shard_prefix="none-")
    build_index(empty, settings)
    (answer,) = check(empty, [tmp_path / "1.png"], settings)
    assert answer.compared_with == 0 and answer.garments[0].answer == NOTHING
    assert "nothing suspicious\n" in in_words(answer)


def test_mistakes(run, settings, tmp_path):
    image = picture_of(run, "000")
    with pytest.raises(UserError, match=r"nowhere\.jpg: no such picture"):
        check(run, [image, Path("nowhere.jpg")], settings)
    with pytest.raises(UserError, match="--limit 0"):
        check(run, [image], settings, limit=0)
    with pytest.raises(UserError, match=r"those of the run psnet-.*; name those weights"):
        check(run, [image], replace(settings, extract=replace(settings.extract, weights=None)))
    empty = RunDirectory(tmp_path / "empty")
    empty.update(kind="scan")
    with pytest.raises(UserError, match="holds no index"):
        check(empty, [image], settings)
