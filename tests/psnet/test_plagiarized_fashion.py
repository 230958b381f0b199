"""Plagiarism benchmarks: the layout's reader, and what the renderer writes into it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psnet.data.plagiarized_fashion import read_boxes, read_plagiarized_fashion
from psnet.render.__main__ import main
from psnet.render.plagiarized import write_plagiarized_fashion

SIZE = (90, 120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_plagiarized_fashion(tmp_path_factory.mktemp("rendered"), count=20, seed=3, size=SIZE)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_original_has_its_copies_and_distractors(folder):
    benchmark = read_plagiarized_fashion(folder)
    assert len(benchmark.queries) == 2 and len(benchmark.gallery) == 18
    for query in benchmark.queries:
        own = [r for r in benchmark.relations if r.query == query.item_id]
        counts = {
            name: sum(r.relation == name for r in own) for name in ("identical", "plagiarised", "derived")
        }
        assert counts == {"identical": 1, "plagiarised": 3, "derived": 1}
        assert all(r.group == query.group for r in own)
    copies = {r.gallery for r in benchmark.relations}
    assert len(copies) == 10 and len({i.item_id for i in benchmark.gallery} - copies) == 8
    for item in (*benchmark.queries, *benchmark.gallery):
        assert Image.open(item.image_path).size == SIZE
        boxes = benchmark.boxes[item.item_id]
        sleeveless = "sleeve" not in item.category
        assert np.isnan(boxes.region_boxes[:, 0]).tolist() == [False, sleeveless, sleeveless, False, False]
        assert (boxes.box[:2] < boxes.box[2:]).all()


def test_the_same_photographs_are_a_catalogue_with_its_truth(folder):
    benchmark = read_plagiarized_fashion(folder)
    images = {row["item_id"]: row["image"] for row in table(folder / "catalogue.csv")}
    for item in (*benchmark.queries, *benchmark.gallery):
        assert folder / images[item.item_id] == item.image_path
    truth = {(r["original"], r["copy"]): r for r in table(folder / "truth.csv")}
    assert list(next(iter(truth.values()))) == [
        "original", "copy", "relation", "group", "modified", "kinds", "mirrored"
    ]  # fmt: skip
    assert set(truth) == {(r.query, r.gallery) for r in benchmark.relations}
    for relation in benchmark.relations:
        row = truth[relation.query, relation.gallery]
        assert (row["relation"], row["modified"]) == (relation.relation, "|".join(relation.modified))


def test_a_seed_gives_one_benchmark_however_many_work_on_it(folder, tmp_path):
    other = write_plagiarized_fashion(tmp_path, count=20, seed=3, size=SIZE, workers=2)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        assert (other / path.relative_to(folder)).read_bytes() == path.read_bytes(), path.name


def test_the_command(tmp_path, capsys):
    assert main(["plagiarized", str(tmp_path / "a"), "--count", "3"]) == 2
    assert capsys.readouterr().err == "psnet.render: a benchmark has at least 10 photographs, got 3\n"


ITEMS = "item_id,image,category,group\n"
RELATIONS = "query,gallery,relation,modified,group,kinds,mirrored\n"


def write_small(folder: Path, relations: str, gallery: str = "g1,gallery/g1.jpg,vest,tops\n") -> Path:
    (folder / "query.csv").write_text(ITEMS + "q1,query/q1.jpg,vest,tops\n")
    (folder / "gallery.csv").write_text(ITEMS + gallery)
    (folder / "relations.csv").write_text(RELATIONS + relations)
    return folder


def test_mistakes_in_the_command_are_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for arguments, said in (
        (["labels", str(tmp_path / "none"), "--count", "0"], "count: at least 1 photograph, not 0"),
        (["labels", str(tmp_path / "file" / "in"), "--count", "1"], "Not a directory"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    with pytest.raises(SystemExit) as ended:
        main(["drawings", str(tmp_path)])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "invalid choice: 'drawings'" in error and error.count("\n") == 1


def test_a_small_benchmark_without_boxes(tmp_path):
    benchmark = read_plagiarized_fashion(write_small(tmp_path, "q1,g1,plagiarised,chest|waist,tops,,1\n"))
    assert benchmark.relations[0].modified == ("chest", "waist") and benchmark.relations[0].mirrored
    assert benchmark.boxes == {}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("q1,g2,identical,,tops,,0", "'g2' is not in gallery.csv"),
        ("q2,g1,identical,,tops,,0", "'q2' is not in query.csv"),
        ("q1,g1,identical,chest,tops,,0", "identical modifies 0 to 0 parts"),
        ("q1,g1,plagiarised,chest|chest,tops,,0", "plagiarised modifies 1 to 2 parts"),
        ("q1,g1,stolen,chest,tops,,0", "unknown relation 'stolen'"),
        ("q1,g1,plagiarised,belt,tops,,0", "unknown part 'belt'"),
        ("q1,g1,plagiarised,chest,hats,,0", "unknown group 'hats'"),
        ("q1,g1,plagiarised,chest,tops,,yes", "mirrored is 0 or 1"),
        ("q1,g1,plagiarised", "a value is missing"),
    ],
)
def test_a_relation_that_does_not_fit_is_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=rf"relations\.csv, line 2: .*{message}"):
        read_plagiarized_fashion(write_small(tmp_path, row + "\n"))


def test_items_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"gallery\.csv, line 2: .*trousers"):
        read_plagiarized_fashion(write_small(tmp_path, "", "g1,gallery/g1.jpg,trousers,tops\n"))
    with pytest.raises(ValueError, match="'q1' is listed twice"):
        read_plagiarized_fashion(write_small(tmp_path, "", "q1,gallery/q1.jpg,vest,tops\n"))
    (tmp_path / "query.csv").write_text("item_id,image\n")
    with pytest.raises(ValueError, match=r"query\.csv, line 1: no column category"):
        read_plagiarized_fashion(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"query\.csv"):
        read_plagiarized_fashion(tmp_path / "none")


def test_a_line_that_is_no_box_is_named(tmp_path):
    path = tmp_path / "boxes.jsonl"
    good = {"item_id": "a", "bbox": [1, 2, 3, 4], "regions": {"chest": [1, 2, 3, 4], "left_sleeve": None}}
    path.write_text(json.dumps(good) + "\n" + json.dumps({"item_id": "b", "bbox": [1], "regions": {}}) + "\n")
    with pytest.raises(ValueError, match=r"boxes\.jsonl, line 2"):
        read_boxes(path)
    path.write_text(json.dumps(good) + "\n" + json.dumps(good) + "\n")
    with pytest.raises(ValueError, match=r"boxes\.jsonl, line 2.*stands twice"):
        read_boxes(path)
