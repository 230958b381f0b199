"""DeepFashion's lists in their published layout: in-shop retrieval and fashion landmarks."""

from pathlib import Path

import numpy as np
import pytest

from psnet.data.deepfashion import read_fashion_landmarks, read_in_shop
from psnet.taxonomy import Taxonomy

LANDMARK_HEADER = "image_name  clothes_type  variation_type  " + "  ".join(
    f"landmark_visibility_{k} landmark_location_x_{k} landmark_location_y_{k}" for k in range(1, 9)
)
POINTS = Taxonomy.load("clothing11").landmarks


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def in_shop(folder: Path, *rows: str, count: str | None = None) -> Path:
    header = "image_name item_id evaluation_status"
    write(folder / "Eval" / "list_eval_partition.txt", count or str(len(rows)), header, *rows)
    return folder


ROWS = (
    "img/WOMEN/Dresses/id_00000002/02_1_front.jpg              id_00000002 train   ",
    "img/WOMEN/Blouses_Shirts/id_00000001/02_1_front.jpg       id_00000001 query   ",
    "img/WOMEN/Blouses_Shirts/id_00000001/02_2_side.jpg        id_00000001 gallery ",
)


def test_in_shop_queries_and_gallery(tmp_path):
    photographs = read_in_shop(in_shop(tmp_path, *ROWS))
    assert [(p.item_id, p.status) for p in photographs] == [
        ("id_00000002", "train"),
        ("id_00000001", "query"),
        ("id_00000001", "gallery"),
    ]
    (query,) = read_in_shop(tmp_path, ["query"])
    assert query.image_path == tmp_path / "Img/img/WOMEN/Blouses_Shirts/id_00000001/02_1_front.jpg"
    (tmp_path / "img").mkdir()  # unpacked beside the lists
    assert read_in_shop(tmp_path)[0].image_path.parts[-5:-3] == ("img", "WOMEN")


def test_in_shop_rows_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"line 4: evaluation_status 'val'"):
        read_in_shop(in_shop(tmp_path, ROWS[0], "img/a.jpg id_1 val"))
    with pytest.raises(ValueError, match=r"line 3: 2 values, needed 3"):
        read_in_shop(in_shop(tmp_path, "img/a.jpg id_1"))
    with pytest.raises(ValueError, match=r"3 rows, but the first line says 5"):
        read_in_shop(in_shop(tmp_path, *ROWS, count="5"))
    with pytest.raises(ValueError, match=r"line 1: the number of rows"):
        read_in_shop(in_shop(tmp_path, *ROWS, count="image_name"))
    other = ("1", "image_name evaluation_status", "img/a.jpg train")
    write(tmp_path / "Eval" / "list_eval_partition.txt", *other)
    with pytest.raises(ValueError, match=r"line 2: no column 'item_id'"):
        read_in_shop(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"list_eval_partition\.txt"):
        read_in_shop(tmp_path / "nowhere")


UPPER = (
    "img/img_00000001.jpg  1  1  1 092 019  1 148 021  0 051 064  2 000 000  0 069 201  0 160 204"
    + "  0 0 0" * 2
)
LOWER = "img/img_00000002.jpg  2  3  0 010 020  0 030 020  0 008 090  0 033 091"
FULL = "img/img_00000003.jpg  3  4  0 40 10  0 60 10  0 20 50  0 80 50  0 35 60  0 65 60  0 30 190  1 70 190"


def fld(folder: Path, *rows: str, suffix: str = "", boxes: list[str] | None = None) -> Path:
    names = [row.split()[0] for row in rows]
    write(folder / "Anno" / f"list_landmarks{suffix}.txt", str(len(rows)), LANDMARK_HEADER, *rows)
    if suffix:  # the in-shop list says more of each box
        header, middle = "image_name  clothes_type  pose_type  x_1  y_1  x_2  y_2", " 1 2"
    else:
        header, middle = "image_name  x_1  y_1  x_2  y_2", ""
    boxes = boxes or [f"{name}{middle}  005 010 180 210" for name in names]
    write(folder / "Anno" / f"list_bbox{suffix}.txt", str(len(boxes)), header, *boxes)
    parts = [f"{name}    {split}" for name, split in zip(names, ("train", "val", "test"), strict=False)]
    write(
        folder / "Eval" / "list_eval_partition.txt", str(len(parts)), "image_name  evaluation_status", *parts
    )
    return folder


@pytest.mark.parametrize("suffix", ["", "_inshop"])
def test_landmarks_go_to_the_points_of_the_same_name(tmp_path, suffix):
    upper, full = read_fashion_landmarks(fld(tmp_path, UPPER, LOWER, FULL, suffix=suffix))
    assert (upper.split, upper.clothes_type, upper.variation) == ("train", "upper-body", 1)
    assert upper.image_path == tmp_path / "Img/img/img_00000001.jpg"
    assert upper.box.tolist() == [5, 10, 180, 210]
    points = dict(zip(POINTS, upper.landmarks.tolist(), strict=True))
    assert points["left_collar"] == [92, 19, 1]  # invisible
    assert points["left_sleeve"] == [51, 64, 2]
    assert points["right_sleeve"] == [0, 0, 0]  # truncated
    assert points["right_hem"] == [160, 204, 2]
    assert {n for n, p in points.items() if p[2] == 0} == set(POINTS) - {
        "left_collar", "right_collar", "left_sleeve", "left_hem", "right_hem"
    }  # fmt: skip
    points = dict(zip(POINTS, full.landmarks.tolist(), strict=True))
    assert points["right_waistline"] == [65, 60, 2] and points["right_hem"] == [70, 190, 1]
    assert np.count_nonzero(full.landmarks[:, 2]) == 8


def test_landmarks_by_split_and_type(tmp_path):
    fld(tmp_path, UPPER, LOWER, FULL)
    assert [p.clothes_type for p in read_fashion_landmarks(tmp_path, ["test"])] == ["full-body"]
    (legs,) = read_fashion_landmarks(tmp_path, clothes_types=["lower-body"])
    points = dict(zip(POINTS, legs.landmarks.tolist(), strict=True))
    assert points["left_waistline"] == [10, 20, 2] and points["right_hem"] == [33, 91, 2]


def test_landmark_rows_that_do_not_fit(tmp_path):
    for bad, message in (
        ("img/b.jpg 4 1 0 1 1", "clothes_type is 1, 2 or 3, got '4'"),
        ("img/b.jpg 1 1 0 1 1", "6 landmarks of 3 numbers, got 3 numbers"),
        ("img/b.jpg 2 1 " + "3 1 1 " * 4, "a landmark's visibility is 0, 1 or 2, got '3'"),
        ("img/b.jpg 2 1 " + "0 one 1 " * 4, "could not convert string to float: 'one'"),
    ):
        with pytest.raises(ValueError, match=rf"list_landmarks\.txt, line 4: {message}"):
            read_fashion_landmarks(fld(tmp_path, UPPER, bad))
    with pytest.raises(ValueError, match=r"line 3: img/img_00000001\.jpg is not in list_bbox\.txt"):
        read_fashion_landmarks(fld(tmp_path, UPPER, boxes=["img/other.jpg 1 2 3 4"]))
    with pytest.raises(ValueError, match=r"list_bbox\.txt, line 3: .*'x'"):
        read_fashion_landmarks(fld(tmp_path, UPPER, boxes=["img/img_00000001.jpg 1 2 3 x"]))
    (fld(tmp_path, UPPER) / "Anno" / "list_landmarks.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither list_landmarks\.txt nor list_landmarks_inshop"):
        read_fashion_landmarks(tmp_path)
