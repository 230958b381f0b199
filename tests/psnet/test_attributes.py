"""Data sets of attributes in their authors' layouts, and the scores of a ranking by attributes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psnet.data import zappos
from psnet.data.attributes import (
    AttributeDataError,
    AttributeImages,
    AttributeMeta,
    AttributeRanking,
    read_meta,
    read_ranking,
    read_training,
)
from psnet.evaluation.attributes import (
    agreement_thresholds,
    average_precision,
    score_ranking,
    triplet_accuracy,
)
from psnet.evaluation.intervals import bootstrap_ratio
from psnet.render.__main__ import main as render_main
from psnet.render.attributes import ATTRIBUTES, design_values, draw_queries
from psnet.render.design import sample_design


def picture(path: Path, colour: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 16), (colour, colour, colour)).save(path)


def write_data_set(root: Path, dataset: str) -> Path:
    """The three published splits look like this: FashionAI has one attribute an image, DARN and DeepFashion
    several."""
    folder = root / dataset
    names = ["skirt_length", "collar_design"]
    meta = {dataset: {"ATTRIBUTES": names, "ATTRIBUTES_NUM": {"skirt_length": 3, "collar_design": 2}}}
    (root / "meta.json").write_text(json.dumps(meta))
    for split, count in (("train", 4), ("valid", 3), ("test", 3)):
        images = [f"Images/{split}/{i}.jpg" for i in range(count)]
        for image in images:
            picture(folder / image)
        (folder / f"filenames_{split}.txt").write_text("".join(f"{image}\n" for image in images))
    labels = {
        "FashionAI": "0 0 2\n1 1 0\n2 1 1\n3 0 2\n",
        "DARN": "0 0 2 1 1\n1 1 0\n2 0 0 1 1\n3 0 2\n",
        "DeepFashion": "0 0 2\n0 1 1\n1 1 0\n2 0 0\n2 1 1\n3 0 2\n",  # an image may have several lines
    }[dataset]
    (folder / "label_train.txt").write_text(labels)
    for split in ("valid", "test"):
        (folder / f"query_{split}.txt").write_text("0 0 2\n1 1 1\n")
        (folder / f"candidate_{split}.txt").write_text("1 0 2\n2 0 0\n2 1 0\n0 1 1\n")
    return folder


@pytest.mark.parametrize("dataset", ["FashionAI", "DARN", "DeepFashion"])
def test_the_published_splits_are_read(tmp_path: Path, dataset: str) -> None:
    folder = write_data_set(tmp_path, dataset)
    images = read_training(tmp_path, dataset)
    assert images.meta.names == ("skirt_length", "collar_design")
    assert images.meta.values == (("0", "1", "2"), ("0", "1"))
    assert images.paths[3] == folder / "Images/train/3.jpg"
    expected = {
        "FashionAI": [[2, -1], [-1, 0], [-1, 1], [2, -1]],
        "DARN": [[2, 1], [-1, 0], [0, 1], [2, -1]],
        "DeepFashion": [[2, 1], [-1, 0], [0, 1], [2, -1]],
    }
    assert images.labels.tolist() == expected[dataset]
    assert images.region_boxes is None
    ranking = read_ranking(tmp_path, dataset, "test")
    assert ranking.queries.tolist() == [[0, 0, 2], [1, 1, 1]]
    assert ranking.candidates.tolist() == [[1, 0, 2], [2, 0, 0], [2, 1, 0], [0, 1, 1]]
    assert ranking.images.labels.tolist() == [[2, 1], [2, 1], [0, 0]]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("../meta.json", None, r"meta\.json: no such file"),
        ("../meta.json", "{", "not JSON"),
        ("../meta.json", '{"Other": {}}', "no data set 'DARN'; it has Other"),
        ("../meta.json", '{"DARN": {"ATTRIBUTES": ["a"]}}', "needs ATTRIBUTES, a list of names"),
        ("filenames_train.txt", None, r"filenames_train\.txt: no such file"),
        ("filenames_train.txt", "Images/train/9.jpg\n", r"1 of 1 images are not there, the first .*9\.jpg"),
        ("label_train.txt", "0 0 2\n1 1\n", "line 2: 2 numbers"),
        ("label_train.txt", "0 0 x\n", "line 1: '0 0 x' are not whole numbers"),
        ("label_train.txt", "4 0 1\n", r"image 4, but the list has 4 \(counted from 0\)"),
        ("label_train.txt", "0 2 1\n", "attribute 2, but DARN has 2"),
        ("label_train.txt", "0 1 2\n", "value 2 of collar_design, which has 2"),
    ],
)
def test_what_is_not_in_the_layout_is_said(tmp_path: Path, file: str, content: str | None, said: str) -> None:
    path = write_data_set(tmp_path, "DARN") / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(AttributeDataError, match=said) as caught:
        read_training(tmp_path, "DARN")
    assert "\n" not in str(caught.value)


def test_a_ranking_that_is_not_in_the_layout_is_said(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path, "DARN")
    (folder / "query_test.txt").write_text("0 0\n")
    with pytest.raises(AttributeDataError, match=r"query_test\.txt, line 1: 2 numbers"):
        read_ranking(tmp_path, "DARN", "test")


def test_missing_images_may_be_left_out(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path, "DARN")
    (folder / "Images/train/0.jpg").unlink()
    (folder / "Images/test/2.jpg").unlink()
    with pytest.raises(AttributeDataError, match="skip_missing=true"):
        read_training(tmp_path, "DARN")
    assert read_training(tmp_path, "DARN", skip_missing=True).labels[0].tolist() == [-1, -1]
    ranking = read_ranking(tmp_path, "DARN", "test", skip_missing=True)
    assert ranking.candidates[:, 0].tolist() == [1, 0]


def write_zappos(root: Path) -> None:
    names = [f"Shoes/Oxfords/{i}.jpg" for i in range(4)]
    for name in names:
        picture(root / "ut-zap50k-images" / name)
    (root / "filenames.json").write_text("".join(f"{name}\n" for name in names))
    (root / "tripletlists").mkdir(exist_ok=True)
    for attribute in zappos.ATTRIBUTES:
        for split in zappos.SPLITS:
            lines = "0 2 1\n3 0 1\n" if attribute == "heel" else "0 1 2\n"
            (root / "tripletlists" / f"{attribute}_tripletlist_{split}.txt").write_text(lines)


def test_zappos_triplets_are_read(tmp_path: Path) -> None:
    write_zappos(tmp_path)
    listed = zappos.read_zappos(tmp_path, "test")
    # Anchor, far, close in the file; anchor, positive, negative here.
    assert listed.triplets.tolist() == [[0, 0, 2, 1], [1, 0, 2, 1], [2, 0, 2, 1], [3, 0, 1, 2], [3, 3, 1, 0]]
    assert listed.paths[3] == tmp_path / "ut-zap50k-images/Shoes/Oxfords/3.jpg"
    (tmp_path / "ut-zap50k-images/Shoes/Oxfords/3.jpg").unlink()
    with pytest.raises(AttributeDataError, match=r"1 of 4 images are not there, the first .*3\.jpg"):
        zappos.read_zappos(tmp_path, "test")
    assert len(zappos.read_zappos(tmp_path, "test", skip_missing=True).triplets) == 4
    (tmp_path / "tripletlists/heel_tripletlist_test.txt").write_text("0 1\n")
    with pytest.raises(AttributeDataError, match="line 1: 2 numbers; needed: anchor, far, close"):
        zappos.read_zappos(tmp_path, "test")
    with pytest.raises(AttributeDataError, match="no split 'valid'"):
        zappos.read_zappos(tmp_path, "valid")


def unit(values: list[list[float]]) -> np.ndarray:
    array = np.array(values, np.float32)
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def test_scores_of_a_ranking_that_can_be_counted_by_hand() -> None:
    assert average_precision(np.array([[True, False, True]])).tolist() == [pytest.approx((1 + 2 / 3) / 2)]
    angles = np.deg2rad([0, 10, 20, 30, 40])
    one = np.stack([np.cos(angles), np.sin(angles)], 1)
    embeddings = np.stack([one, one[::-1]], 1).astype(np.float32)
    meta = AttributeMeta("by hand", ("a", "b"), (("x", "y"), ("x", "y")))
    images = AttributeImages(meta, tuple(Path(str(i)) for i in range(5)), np.zeros((5, 2), np.int64), None)
    candidates = [[1, 0, 1], [2, 0, 0], [3, 0, 1], [4, 0, 0], [1, 1, 1]]
    ranking = AttributeRanking(images, np.array([[0, 0, 1], [0, 1, 1]]), np.array(candidates))
    scores = score_ranking(ranking, embeddings)
    # Attribute b has no candidate of another value: nothing to rank.
    assert scores.attribute.tolist() == [0]
    assert scores.precision.tolist() == [pytest.approx((1 + 2 / 3) / 2)]
    assert scores.triplets.tolist() == [pytest.approx(3 / 4)]
    assert scores.estimate(scores.precision).value == pytest.approx(5 / 6)
    right = triplet_accuracy(embeddings, np.array([[0, 0, 1, 2], [0, 0, 3, 2], [1, 4, 3, 0]]))
    assert right.tolist() == [True, False, True]
    thresholds = agreement_thresholds(ranking, embeddings, meta.names)
    assert thresholds == {"a": pytest.approx(np.cos(np.deg2rad(10)), abs=1e-4)}


def test_the_interval_of_a_ratio_resamples_clusters() -> None:
    sums, counts = np.array([1.0, 0.0, 3.0, 2.0]), np.array([1.0, 2.0, 3.0, 2.0])
    estimate = bootstrap_ratio(sums, counts)
    assert estimate.value == pytest.approx(0.75) and estimate.count == 8
    assert 0 < estimate.low < 0.75 < estimate.high <= 1
    assert np.isnan(bootstrap_ratio(np.zeros(0), np.zeros(0)).value)


def test_labels_of_designs_follow_their_parameters() -> None:
    values = {name: set() for name in ATTRIBUTES}
    for seed in range(400):
        design = sample_design(np.random.default_rng(seed))
        for (name, attribute), value in zip(ATTRIBUTES.items(), design_values(design), strict=True):
            values[name].add(attribute.values[value])
            said = attribute.values[value]
            if name == "collar":
                assert said == design.collar.kind or said == "none"
            if name == "sleeve_length":
                assert (said == "sleeveless") == (design.sleeves is None)
            if name == "closure":
                assert said == design.closure.kind
            if name == "lapel":
                assert (said != "none") == (design.collar.kind == "lapel")
    for name, attribute in ATTRIBUTES.items():
        assert values[name] == set(attribute.values), name


def test_every_value_is_asked_and_no_value_too_often() -> None:
    labels = np.array([[0, 0]] * 300 + [[1, 0]] * 2 + [[0, 1]] * 10)
    asked = draw_queries(labels, np.random.default_rng(0))
    assert [asked[labels[:, 0] == v, 0].sum() for v in (0, 1)] == [24, 1]
    assert [asked[labels[:, 1] == v, 1].sum() for v in (0, 1)] == [24, 2]


def test_rendered_garments_are_written_in_the_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert render_main(["attributes", str(tmp_path / "a"), "--count", "20", "--seed", "5"]) == 0
    meta = read_meta(tmp_path / "a", "Rendered")
    assert meta.names == tuple(ATTRIBUTES) and meta.regions["collar"] == ("collar",)
    train = read_training(tmp_path / "a", "Rendered")
    test = read_ranking(tmp_path / "a", "Rendered", "test")
    assert len(train.paths) == 20 and (train.labels >= 0).all()
    assert len(test.queries) + len(test.candidates) == len(test.images.paths) * len(meta.names)
    assert train.region_boxes is not None
    for path, boxes in zip(train.paths, train.region_boxes, strict=True):
        with Image.open(path) as image:
            seen = boxes[~np.isnan(boxes[:, 0])]
            # The crop holds the whole garment, but for rounding.
            assert len(seen) >= 3 and (seen >= -1.5).all() and (seen <= np.tile(image.size, 2) + 1).all()
    # Other splits are other designs, and the same seed gives the same garments.
    first = [p.read_bytes() for p in (train.paths[0], test.images.paths[0])]
    assert first[0] != first[1]
    assert render_main(["attributes", str(tmp_path / "b"), "--count", "20", "--seed", "5"]) == 0
    assert read_training(tmp_path / "b", "Rendered").paths[0].read_bytes() == first[0]
    assert render_main(["attributes", str(tmp_path / "c"), "--count", "3"]) == 2
    assert "at least 20 garments" in capsys.readouterr().err
