"""`python -m psnet.evaluation` from photographs to tables, with tiny networks of random numbers."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from psnet.evaluation import pictures
from psnet.evaluation.__main__ import PARTS, main, measure, region_weights
from psnet.evaluation.benchmark import read_benchmark
from psnet.evaluation.garments import gather
from psnet.evaluation.session import Session
from psnet.evaluation.settings import EvaluationSettings
from psnet.evaluation.tables import Table, read_tables
from psnet.model import PSNet, PSNetConfig
from psnet.predictor import Predictor
from psnet.regions import Presence
from psnet.render.labels import write_labels
from psnet.render.plagiarized import write_plagiarized_fashion
from psnet.weights import save_psnet


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A rendered benchmark of two designs with their copies, labelled photographs, four models."""
    folder = tmp_path_factory.mktemp("evaluation")
    write_plagiarized_fashion(folder / "bench", 20, seed=3, size=(140, 190))
    write_labels(folder / "labels", 3, seed=4)
    Image.new("RGB", (60, 80), (90, 120, 90)).save(folder / "empty.jpg")
    (folder / "empty.csv").write_text("item_id,image,seller_id,category\n1,empty.jpg,s,Shoes\n")
    torch.manual_seed(0)
    for retrieval in ("crop", "roi", "pcb"):
        config = dataclasses.replace(PSNetConfig.tiny(), retrieval=retrieval)
        save_psnet(PSNet(config), folder / retrieval)
    return folder


def settings(data: Path, out: Path, **more) -> EvaluationSettings:
    variants = {
        "psnet": {"weights": str(data / "crop"), "paper": "psnet"},
        "true": {"weights": str(data / "crop"), "boxes": "labelled", "verdicts": True},
        "roi": {
            "weights": str(data / "roi"),
            "scoring": "weighted",
            "region_weights": "manual",
            "curve": True,
        },
        "pcb": {"weights": str(data / "pcb"), "scoring": "weighted", "paper": "pcb"},
        "both": {"weights": [str(data / "crop"), str(data / "roi")], "title": "ensemble"},
    }
    values = {
        "benchmarks": {"drawn": str(data / "bench")},
        "labels": {"labelled": str(data / "labels")},
        "empty": str(data / "empty.csv"),
        "variants": variants,
        "contrasts": {"a crop per region": {"having": ["psnet"], "lacking": ["roi", "pcb"]}},
        "changes": ("flipped", "surroundings"),
        "baselines": ("phash",),
        "out": str(out),
        "device": "cpu",
        "min_score": 0.0,
        **more,
    }
    return EvaluationSettings(**values)


@pytest.fixture(scope="module")
def measured(data, tmp_path_factory) -> tuple[EvaluationSettings, dict[str, dict[str, Table]]]:
    out = tmp_path_factory.mktemp("out")
    chosen = settings(data, out)
    parts = [part for part in PARTS if part != "pictures"]
    return chosen, {part: {t.title: t for t in measure(part, chosen)} for part in parts}


def test_every_part_leaves_its_tables(measured):
    chosen, parts = measured
    for part, tables in parts.items():
        kept, _ = read_tables(Path(chosen.out) / f"{part}.json")
        assert [t.title for t in kept] == list(tables)
    (table,) = parts["detection"].values()
    assert table.rows[0][:2] == ("labelled", 3) and table.rows[0][7] == 1
    chain = parts["landmarks"]["Landmarks, normalised error: labelled"]
    assert chain.columns == ("part", "whole chain", "true garment boxes", "paper: DeepFashion")
    # In a true box the garment is found by definition.
    assert chain.rows[-1][2].value == 1


def test_all_methods_stand_side_by_side(measured):
    _, parts = measured
    table = parts["ablation"]["All methods, overall: drawn"]
    assert [row[0] for row in table.rows] == ["psnet", "true", "roi", "pcb", "ensemble", "perceptual hash"]
    assert [row[5:] for row in table.rows if row[0] == "pcb"] == [(0.391, 0.640, 0.328)]
    assert table.rows[5][5:] == (None, None, None)
    assert "20 photographs, 2 queries, copies: 2 identical, 6 plagiarised, 2 derived" in table.note
    for row in table.rows:
        assert all(0 <= cell.low <= cell.value <= cell.high <= 1 for cell in row[1:5])


def test_contrasts_name_their_sides(measured):
    _, parts = measured
    (row,) = parts["ablation"]["What each part is worth: drawn"].rows
    assert row[:3] == ("a crop per region", "psnet", "mean of 2: roi … pcb")
    overall = {r[0]: r for r in parts["ablation"]["All methods, overall: drawn"].rows}
    others = (overall["roi"][4].value + overall["pcb"][4].value) / 2
    assert row[5].value == pytest.approx(overall["psnet"][4].value - others)


def test_every_change_of_the_photograph_is_looked_at(measured):
    chosen, parts = measured
    (table,) = parts["photographs"].values()
    assert [row[0] for row in table.rows] == [
        "none", "flipped left to right", "another photograph around the garment's box",
    ]  # fmt: skip
    assert {(row[1].count, row[3].count) for row in table.rows} == {(6, 8)}
    listed = {row[0]: row for row in parts["plagiarism"]["psnet, copies listed by kind: drawn"].rows}
    assert table.rows[0][3] == listed["all"][2]
    assert len(list(Path(chosen.out).glob("features/*_flipped-80-0_*.npz"))) == 1


def test_verdicts_cover_every_copy(measured):
    _, parts = measured
    tables = parts["plagiarism"]
    confusion = tables["psnet, verdict by number of modified regions: drawn"]
    assert sum(row[1] for row in confusion.rows) == 10
    assert [row[0] for row in tables["Verdicts: drawn"].rows] == ["psnet", "true"]
    assert {"psnet, leakage: drawn", "true, leakage: drawn"} <= set(tables)
    kinds = {row[0]: row for row in tables["psnet, copies listed by kind: drawn"].rows}
    assert kinds["all"][1] == 8


def test_made_again_the_tables_need_no_network(measured, monkeypatch):
    chosen, parts = measured

    def never(*arguments):
        raise AssertionError("pictures were looked at again")

    monkeypatch.setattr(Predictor, "predict", never)
    monkeypatch.setattr(Predictor, "describe", never)
    for part in ("retrieval", "photographs", "plagiarism", "ablation"):
        assert {t.title: t.text() for t in measure(part, chosen)} == {
            title: t.text() for title, t in parts[part].items()
        }


def test_features_of_other_settings_are_other_files(data, tmp_path):
    counts = []
    for least in (0.0, 0.5, 0.99):
        session = Session(settings(data, tmp_path, min_score=least, limit=1))
        (one,) = session.benchmarks.values()
        counts.append(len(session.table(one, session.main)))
    assert counts[0] > counts[2] and len(list(tmp_path.glob("features/*.npz"))) == 3


def test_what_is_skipped_on_a_benchmark_is_not_measured(data, tmp_path):
    (tmp_path / "bare").mkdir()
    for name in ("catalogue.csv", "truth.csv"):
        (tmp_path / "bare" / name).write_bytes((data / "bench" / name).read_bytes())
    both = {"drawn": str(data / "bench"), "bare": str(tmp_path / "bare")}
    session = Session(settings(data, tmp_path, benchmarks=both, skipped={"drawn": ("pcb", "phash")}))
    assert session.measured(session.benchmarks["drawn"]) == ["psnet", "true", "roi", "both"]
    # Without boxes.jsonl there are no true boxes.
    assert session.measured(session.benchmarks["bare"]) == ["psnet", "roi", "pcb", "both", "phash"]


def test_true_boxes_are_used_as_they_stand(data):
    one = read_benchmark(data / "bench")
    predictor = Predictor.load(data / "crop", "cpu", min_score=0.0)
    table = gather(predictor, one, true_boxes=True)
    assert table.item.tolist() == list(range(20))  # one garment a picture
    for row, item in enumerate(one.items):
        regions = one.boxes[item.item_id].region_boxes
        seen = ~np.isnan(regions[:, 0])
        assert ((table.presence[row] == Presence.PRESENT) == seen).all()
        np.testing.assert_allclose(table.region_boxes[row, seen], regions[seen], atol=0.05)


def test_a_branch_without_regions_knows_no_presence(data):
    one = read_benchmark(data / "bench").subset(1)
    table = gather(Predictor.load(data / "pcb", "cpu", min_score=0.0), one)
    assert (table.presence == Presence.PRESENT).all()
    np.testing.assert_allclose(np.linalg.norm(table.exact[0], axis=-1), 1, atol=2e-3)


def test_the_pictures(data, measured, tmp_path):
    chosen, _ = measured
    chosen = dataclasses.replace(chosen, pictures={"drawn": str(tmp_path)}, outlines=("drawn",))
    (table,) = measure("pictures", chosen)
    assert {row[0] for row in table.rows} == {
        "landmarks", "region_weights", "precision_recall", "retrieval", "attention",
    }  # fmt: skip
    for _, file in table.rows:
        assert Path(file).stat().st_size <= pictures.MAX_BYTES
        with Image.open(file) as picture:
            # Not one colour all over.
            assert np.asarray(picture).std() > 5


def test_an_outline_shows_edges_alone():
    pixels = np.full((60, 60, 3), (200, 40, 40), np.uint8)
    pixels[20:40, 20:40] = (30, 200, 60)
    drawn = pictures.outline(pixels)
    assert drawn.shape == pixels.shape and (drawn[..., 0] == drawn[..., 1]).all()
    assert (drawn[5:10, 5:10] == 255).all() and (drawn[28:32, 28:32] == 255).all()
    assert drawn[30, 18:22].min() < 100


def test_the_region_weights_shown_are_those_of_the_main_model(data, tmp_path):
    variants = {
        "psnet": {"weights": str(data / "crop")},
        "manual": {"weights": str(data / "crop"), "region_weights": "manual", "title": "a prior"},
        "other": {"weights": str(data / "roi"), "region_weights": "manual"},
    }
    assert list(region_weights(Session(settings(data, tmp_path, variants=variants, contrasts={})))) == [
        "a prior"
    ]
    shipped = region_weights(Session(settings(data, tmp_path)))
    assert list(shipped) == ["psnet"] and shipped["psnet"].shape == (4, 5)


def test_the_retrieval_picture_frames_what_it_shows(data):
    one = read_benchmark(data / "bench")
    rows = one.rows
    copy = next(p for p in one.truth if p.relation == "plagiarised")
    derived = next(p for p in one.truth if p.relation == "derived" and p.original == copy.original)
    other = next(p.original for p in one.truth if p.original != copy.original)
    scores = np.full((1, 20), -np.inf)
    for place, name in enumerate((copy.copy, derived.copy, other)):
        scores[0, rows[name]] = 1 - 0.1 * place
    drawn = pictures.draw_retrieval(one, [copy.original], scores)
    frames = [drawn.getpixel((6 + 12 + 1 + k * 96, 7)) for k in range(1, 5)]
    assert frames == [(0, 158, 115), (140, 140, 140), (213, 94, 0), (255, 255, 255)]


def test_the_results_page(measured, tmp_path):
    chosen, _ = measured
    config = tmp_path / "evaluate.json"
    config.write_text(json.dumps(dataclasses.asdict(chosen)))
    (tmp_path / "pictures" / "drawn").mkdir(parents=True)
    (tmp_path / "pictures" / "drawn" / "retrieval.jpg").write_bytes(b"")
    command = [sys.executable, "-m", "benchmarks.results", "--config", str(config)]
    command += ["--out", str(tmp_path / "RESULTS.md")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    assert "measuring" not in done.stderr
    page = (tmp_path / "RESULTS.md").read_text()
    assert "## Verdicts and leakage" in page and "paper: mAP" in page
    assert "](pictures/drawn/retrieval.jpg)" in page and "attention.jpg" not in page


def test_the_fingerprint_follows_what_is_measured(data, tmp_path):
    def of(**more) -> str:
        return Session(settings(data, tmp_path, **more)).fingerprint

    first = of()
    assert of(device="cpu", pictures={"drawn": "there"}) == first != of(limit=1)
    description = data / "crop" / "model.json"
    before = description.read_text()
    calibrated = {
        **json.loads(before),
        "calibration": {"kept_threshold": [0.5] * 5, "suspect_threshold": 0.9},
    }
    description.write_text(json.dumps(calibrated))
    assert of() != first
    description.write_text(before)
    assert of() == first


def test_the_command_prints_its_tables(data, tmp_path, capsys):
    config = tmp_path / "evaluate.json"
    config.write_text(json.dumps(dataclasses.asdict(settings(data, tmp_path / "out"))))
    assert main(["retrieval", "--config", str(config), "--set", "limit=1"]) == 0
    out = capsys.readouterr().out
    assert "10 photographs, 1 queries" in out and "paper: Top-20" in out
    assert "Intervals by design" in out


def test_mistakes_are_one_line(data, tmp_path, capsys):
    out = ["--set", f"out={tmp_path}"]
    weights = ["--set", f"variants.psnet.weights={data / 'crop'}"]
    for arguments in (
        ["retrieval", *out],
        ["retrieval", *out, "--set", f"benchmarks.x={tmp_path}"],
        ["retrieval", *out, "--set", "benchmark.x=y"],
        ["ablation", *out, "--set", f"benchmarks.x={data}/bench", "--set", "variants.psnet.weights=nowhere"],
        ["landmarks", *out, *weights],
        ["landmarks", *out, *weights, "--set", "labels.x=nowhere.jsonl"],
        ["detection", *out, *weights, "--set", f"labels.x={data}/labels", "--set", "splits.x=sesame"],
        ["detection", *out, *weights, "--set", f"labels.x={data}/labels", "--set", "splits.y=test"],
        ["detection", *out, *weights, "--set", f"labels.x={data}/labels", "--set", "empty=nowhere.csv"],
        ["pictures", *out, "--set", f"benchmarks.x={data}/bench"],
    ):
        assert main(arguments) == 2, arguments
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 10 and all(line.startswith("psnet eval: ") for line in lines), lines


def test_measuring_needs_no_engine():
    code = "import sys, psnet.evaluation.__main__; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.replace("'", "").replace("[", "").replace("]", "").split(", "))
    assert not {"ray", "pyarrow", "faiss", "prefect", "scipy", "cv2", "pycocotools", "matplotlib"} & {
        name.split(".")[0] for name in loaded
    }
