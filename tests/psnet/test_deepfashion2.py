"""DeepFashion2 in its published layout: annotations, labels for training, and the files of its evaluation."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psnet.config import load_config
from psnet.data.deepfashion2 import labelled_garment, read_deepfashion2, read_image
from psnet.data.deepfashion2_results import (
    RETRIEVED,
    KeypointResult,
    RetrievalResult,
    coco_ground_truth,
    read_keypoint_results,
    read_retrieval_results,
    retrieval_ground_truth,
    write_keypoint_results,
    write_retrieval_results,
)
from psnet.data.labels import read_any_labels
from psnet.data.photographs import with_masks
from psnet.evaluation.clothes_retrieval import retrieval_accuracy
from psnet.evaluation.keypoints import deepfashion2_sigmas, oks_average_precision
from psnet.render.deepfashion2 import write_deepfashion2
from psnet.render.labels import write_labels
from psnet.taxonomy import TORSO_CATEGORIES, Taxonomy, to_clothing11
from psnet.train.__main__ import load_garments
from psnet.train.settings import TrainSettings

# The shape of a published annotation: a T-shirt over trousers, a user's photograph.
SHIRT = [
    [60, 12], [45, 10], [52, 16], [60, 19], [68, 16], [75, 10],  # collar
    [35, 14], [20, 28], [10, 48], [22, 54], [30, 45], [36, 38],  # left sleeve, up to the armpit
    [36, 60], [36, 90],  # left side
    [36, 110], [60, 112], [84, 110],  # hem
    [84, 90], [84, 60],  # right side
    [84, 38], [90, 45], [98, 54], [110, 48], [100, 28], [85, 14],  # right sleeve
]  # fmt: skip


def item(category_id: int, name: str, points: list[list[int]], **changes) -> dict:
    x, y = np.array(points).T
    return {
        "segmentation": [[10, 10, 110, 10, 110, 112, 10, 112], [5, 5]],
        "scale": 2,
        "viewpoint": 2,
        "zoom_in": 1,
        "landmarks": [v for px, py in points for v in (px, py, 2)],
        "style": 1,
        "bounding_box": [int(x.min()), int(y.min()), int(x.max()), int(y.max())],
        "category_id": category_id,
        "occlusion": 1,
        "category_name": name,
        **changes,
    }


def write_split(folder: Path, annotations: list[dict]) -> Path:
    for name in ("image", "annos"):
        (folder / name).mkdir(parents=True)
    for number, annotation in enumerate(annotations, 1):
        Image.new("RGB", (120, 160), (200, 200, 200)).save(folder / "image" / f"{number:06d}.jpg")
        (folder / "annos" / f"{number:06d}.json").write_text(json.dumps(annotation))
    return folder


def shirt(**changes) -> dict:
    return item(1, "short sleeve top", SHIRT, **changes)


def trousers() -> dict:
    return item(8, "trousers", [[30 + 5 * (k % 7), 100 + 4 * k] for k in range(14)], style=0)


@pytest.fixture
def published(tmp_path) -> Path:
    occluded = shirt()
    occluded["landmarks"][2] = occluded["landmarks"][3 * 3 + 2] = 1
    shop = {"source": "shop", "pair_id": 7, "item1": shirt()}
    user = {"item2": trousers(), "source": "user", "pair_id": 7, "item1": occluded}
    write_split(tmp_path / "train", [user, shop])
    write_split(tmp_path / "validation", [shop])
    return tmp_path


def test_annotations_as_published(published):
    images = list(read_deepfashion2(published))
    assert [(i.split, i.image_id, i.source, i.pair_id, len(i.garments)) for i in images] == [
        ("train", 1, "user", 7, 2),
        ("train", 2, "shop", 7, 1),
        ("validation", 1, "shop", 7, 1),
    ]
    assert images[0].image_path == published / "train" / "image" / "000001.jpg"
    top, legs = images[0].garments
    assert (top.category, top.style, top.viewpoint, top.zoom_in) == ("short_sleeve_top", 1, 2, 1)
    assert top.box.tolist() == [10, 10, 110, 112]
    assert top.landmarks[0].tolist() == [60, 12, 1] and top.landmarks[1].tolist() == [45, 10, 2]
    assert len(top.segmentation) == 1
    # The evaluation's note: trousers are numbers 169 to 182 of 294.
    assert np.flatnonzero(legs.vector[:, 2]).tolist() == list(range(168, 182))
    assert [i.split for i in read_deepfashion2(published, ["validation"])] == ["validation"]
    assert [i.split for i in read_deepfashion2(published / "validation")] == ["validation"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category_id": 14}, "unknown category_id 14"),
        ({"category_name": "trousers"}, "category_id 1 is short_sleeve_top, not 'trousers'"),
        ({"landmarks": [1, 2, 2]}, "has 25 landmarks of 3 numbers, got 3 numbers"),
        ({"landmarks": [5] * 75}, "visibility is 0, 1 or 2"),
        ({"bounding_box": [1, 2]}, "bounding_box [1, 2] is not x0, y0, x1, y1"),
        ({"style": "new"}, "invalid literal"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "an outline of 7 numbers, which are no points"),
    ],
)
def test_a_garment_that_does_not_fit_is_named(tmp_path, changes, message):
    annotation = {"source": "shop", "pair_id": 1, "item1": shirt(), "item2": {**shirt(), **changes}}
    write_split(tmp_path / "train", [annotation])
    with pytest.raises(ValueError, match=r"000001\.json, item2: .*" + re.escape(message)):
        list(read_deepfashion2(tmp_path))


def test_files_that_are_no_annotation_are_named(tmp_path):
    write_split(tmp_path / "train", [{"source": "shop", "item1": shirt()}])
    path = tmp_path / "train" / "annos" / "000001.json"
    with pytest.raises(ValueError, match=r"000001\.json: no 'pair_id'"):
        read_image(path, "train")
    path.write_text("{")
    with pytest.raises(ValueError, match=r"000001\.json: not a DeepFashion2 annotation"):
        read_image(path, "train")
    with pytest.raises(FileNotFoundError, match="train/annos/"):
        list(read_deepfashion2(tmp_path / "nowhere"))


def test_a_query_that_has_no_partner_is_not_sought(tmp_path):
    def photograph(source, pair_id, style):
        return {"source": source, "pair_id": pair_id, "item1": {**shirt(), "style": style}}

    write_split(tmp_path, [photograph("shop", 1, 1), photograph("user", 1, 1), photograph("user", 1, 2)])
    queries, gallery = retrieval_ground_truth(read_deepfashion2(tmp_path))
    assert [entry["style"] for entry in queries] == [1, 0] and len(gallery) == 1


def test_labels_for_training(published):
    garments = read_any_labels(published, ["train"])
    assert len(garments) == 2  # the trousers have no regions
    first = garments[0]
    assert first.category == "short_sleeve_top" and first.upright and not first.absent.any()
    own = np.c_[SHIRT, [1, 2, 2, 1] + [2] * 21]
    np.testing.assert_array_equal(first.landmarks, to_clothing11("short_sleeve_top", own))
    assert first.region_boxes[0].tolist() == [45, 10, 75, 19]  # the collar's own six landmarks
    assert first.region_boxes[1].tolist() == [10, 14, 36, 54]
    mask = first.read_mask()
    assert mask.shape == (160, 120) and mask[60, 60] == 255 and mask[150, 60] == 0
    assert with_masks(garments, published / "masks") == garments and not any((published / "masks").iterdir())


def test_landmarks_that_were_not_labelled_bound_no_region(published):
    top = next(iter(read_deepfashion2(published))).garments[0]

    def without(*numbers: int):
        landmarks = top.landmarks.copy()
        landmarks[[n - 1 for n in numbers]] = 0
        return labelled_garment(replace(top, landmarks=landmarks), Path("a.jpg"), "train")

    assert without(7, 8).region_boxes[1].tolist() == [10, 38, 36, 54]  # the shoulder of six sleeve landmarks
    assert without(15) is None  # a hem corner outside the frame: the waist's extent is not known
    assert without(9) is None


def test_a_garment_on_its_side_is_left_out(tmp_path):
    sideways = [[120 - y, x] for x, y in SHIRT]
    annotation = {"source": "user", "pair_id": 1, "item1": item(1, "short sleeve top", sideways)}
    write_split(tmp_path, [annotation])
    assert read_any_labels(tmp_path) == []
    assert [g.upright for g in read_any_labels(tmp_path, upright_only=False)] == [False]


def test_what_the_renderer_writes_is_read(tmp_path):
    count = 2 * len(TORSO_CATEGORIES)
    write_deepfashion2(tmp_path, count, seed=2, size=(150, 200))
    images = list(read_deepfashion2(tmp_path))
    assert [i.garments[0].category for i in images[::2]] == list(TORSO_CATEGORIES)
    garments = read_any_labels(tmp_path)
    assert count / 2 < len(garments) <= count
    for garment in garments:
        assert garment.absent[1:3].all() == ("sleeve" not in garment.category)
        assert not garment.absent[[0, 3, 4]].any()


def test_training_takes_both_kinds_of_labels(published, tmp_path):
    rendered = write_labels(tmp_path / "rendered", 3)
    settings = load_config(
        TrainSettings,
        overrides=[f"labels=[{rendered},{published}]", f"masks={tmp_path / 'masks'}", "holdout=2"],
    )
    train, held = load_garments(settings)
    assert len(train) == 2 and len(held) == 3
    assert {g.image_path.parent.name for g in (*train, *held)} == {"images", "image"}
    assert len(read_any_labels(rendered.parent)) == 3
    with pytest.raises(ValueError, match=r"no labels in this folder; needed: labels\.jsonl"):
        read_any_labels(tmp_path / "masks")
    with pytest.raises(FileNotFoundError):
        read_any_labels(tmp_path / "nothing.jsonl")


def test_ground_truth_in_coco_layout(published):
    truth = coco_ground_truth(read_deepfashion2(published, ["train"]))
    assert [c["id"] for c in truth["categories"]] == list(range(1, 14))
    assert truth["categories"][0]["name"] == "short_sleeved_shirt"
    assert truth["categories"][9]["name"] == "short_sleeved_dress"
    assert truth["images"][0] == {"id": 1, "file_name": "000001.jpg", "width": 120, "height": 160}
    first, legs, _ = truth["annotations"]
    assert first["bbox"] == [10, 10, 100, 102] and first["area"] == 10200
    assert len(first["keypoints"]) == 882 and first["keypoints"][:6] == [60, 12, 1, 45, 10, 2]
    assert first["num_keypoints"] == 25 and (first["style"], first["pair_id"]) == (1, 7)
    assert legs["id"] == 2 and legs["image_id"] == 1 and legs["category_id"] == 8
    assert legs["keypoints"][: 3 * 168] == [0] * (3 * 168) and legs["keypoints"][3 * 168] == 30
    json.dumps(truth)
    with pytest.raises(ValueError, match="the number 1 comes twice"):
        coco_ground_truth(read_deepfashion2(published))


def results_of(images, shift: float) -> list[KeypointResult]:
    return [
        KeypointResult(i.image_id, g.category, g.landmarks + np.array([shift, 0, 0], np.float32), 0.9)
        for i in images
        for g in i.garments
    ]


def test_oks_average_precision(published, tmp_path):
    images = list(read_deepfashion2(published, ["train"]))
    truth = coco_ground_truth(images)

    def score(results):
        write_keypoint_results(tmp_path / "keys.json", results)
        return oks_average_precision(truth, json.loads((tmp_path / "keys.json").read_text()))

    perfect = score(results_of(images, 0))
    assert perfect["AP"] == pytest.approx(1) and perfect["AP_visible"] == pytest.approx(1)
    assert score(results_of(images, 300))["AP"] == 0
    # One shirt and no trousers: half the shirts' recall, none of the trousers'.
    assert score(results_of(images[1:], 0))["AR"] == pytest.approx((0.5 + 0) / 2)
    # Occluded landmarks that are far off cost nothing where only visible ones count.
    off = results_of(images, 0)
    moved = off[0].landmarks.copy()
    moved[[0, 3]] += [500, 500, 0]
    off[0] = replace(off[0], landmarks=moved)
    figures = score(off)
    assert figures["AP_visible"] == pytest.approx(1) and figures["AP50"] == pytest.approx(1)
    assert 0.9 < figures["AP"] < 1  # its OKS is 23/25


def test_oks_is_the_published_formula(published):
    """One shirt, every landmark off by the same distance: OKS is the mean of Gaussians of its sigmas."""
    (image,) = read_deepfashion2(published, ["validation"])
    truth = coco_ground_truth([image])
    sigmas = deepfashion2_sigmas()[Taxonomy.load("deepfashion2").category("short_sleeve_top").indices]
    assert len(deepfashion2_sigmas()) == 294 and (sigmas[0], sigmas[13]) == (0.012, 0.0574)
    for distance in (2.0, 4.0, 6.0, 8.0):
        oks = np.exp(-(distance**2) / (2 * 10200 * (2 * sigmas) ** 2)).mean()
        row = {"image_id": 1, "category_id": 1, "score": 1.0, "keypoints": [0.0] * 882}
        row["keypoints"][:75] = [
            float(v) for x, y, _ in image.garments[0].landmarks for v in (x + distance, y, 1)
        ]
        reached = (oks >= np.linspace(0.5, 0.95, 10)).mean()
        assert oks_average_precision(truth, [row])["AP"] == pytest.approx(reached)


def test_keypoint_results_that_do_not_fit(published, tmp_path):
    truth = coco_ground_truth(read_deepfashion2(published, ["train"]))
    row = {"image_id": 1, "category_id": 1, "score": 0.5, "keypoints": [0.0] * 882}
    with pytest.raises(ValueError, match="no keypoint results"):
        oks_average_precision(truth, [])
    with pytest.raises(ValueError, match="result 2: the ground truth has no image 9"):
        oks_average_precision(truth, [row, {**row, "image_id": 9}])
    with pytest.raises(ValueError, match="result 1: 51 numbers, not 882"):
        oks_average_precision(truth, [{**row, "keypoints": [0.0] * 51}])
    path = tmp_path / "keys.json"
    for bad in ({**row, "keypoints": [0.0] * 51}, {**row, "category_id": 14}, {"image_id": 1}):
        path.write_text(json.dumps([row, bad]))
        with pytest.raises(ValueError, match=r"keys\.json, entry 2: not a keypoint result"):
            read_keypoint_results(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"keys\.json: a result file is a list"):
        read_keypoint_results(path)
    with pytest.raises(ValueError, match="vest has 15 landmarks"):
        write_keypoint_results(path, [KeypointResult(1, "vest", np.zeros((3, 3)), 0.5)])


def test_keypoint_results_survive_the_file(published, tmp_path):
    results = results_of(read_deepfashion2(published), 0.25)
    write_keypoint_results(tmp_path / "keys.json", results)
    for before, after in zip(results, read_keypoint_results(tmp_path / "keys.json"), strict=True):
        assert (after.image_id, after.category, after.score) == (
            before.image_id,
            before.category,
            before.score,
        )
        np.testing.assert_allclose(after.landmarks, before.landmarks, atol=1e-3)


def retrieved(place: int | None, score: float = 0.9, category: int = 1) -> RetrievalResult:
    """A result of the user's shirt whose shop photograph (number 2) comes at ``place``."""
    ids = np.full(RETRIEVED, 99)
    if place is not None:
        ids[place] = 2
    box = np.array([12.0, 10, 110, 112])
    return RetrievalResult(1, box, category, score, ids, np.tile(box, (RETRIEVED, 1)))


def test_retrieval_as_deepfashion2_scores_it(published, tmp_path):
    queries, gallery = retrieval_ground_truth(read_deepfashion2(published, ["train"]))
    assert [q["cls"] for q in queries] == [1, 8] and queries[0]["query_image_id"] == 1
    assert gallery == [
        {"gallery_image_id": 2, "bbox": [10, 10, 110, 112], "cls": 1, "style": 1, "pair_id": 7}
    ]

    def score(*results):
        write_retrieval_results(tmp_path / "retrieval.json", results)
        return retrieval_accuracy(queries, gallery, read_retrieval_results(tmp_path / "retrieval.json"))

    assert score(retrieved(0)) == {"top1": 1, "top5": 1, "top10": 1, "top15": 1, "top20": 1, "missed": 0}
    assert score(retrieved(6)) == {"top1": 0, "top5": 0, "top10": 1, "top15": 1, "top20": 1, "missed": 0}
    assert score(retrieved(None))["top20"] == 0
    # The detection of the highest score stands for the garment, if its category is right.
    assert score(retrieved(0, 0.5), retrieved(None, 0.8))["top20"] == 0
    assert score(retrieved(0, 0.5), retrieved(None, 0.8, category=2))["top1"] == 1
    assert score()["missed"] == 1
    # A box elsewhere in the right photograph is not the garment.
    elsewhere = replace(retrieved(0), gallery_boxes=np.tile(np.array([0.0, 0, 20, 20]), (RETRIEVED, 1)))
    assert score(elsewhere)["top20"] == 0


def test_retrieval_results_as_published(tmp_path):
    """One entry of the official example's shape."""
    entry = {
        "gallery_bbox": [[199.6, 173.7, 413.5, 444.7]] * 20,
        "query_cls": 1,
        "query_score": 0.897,
        "gallery_image_id": [22403] * 20,
        "query_bbox": [198.6, 180.6, 291.2, 275.2],
        "query_image_id": 1,
    }
    path = tmp_path / "retrieval.json"
    path.write_text(json.dumps([entry]))
    (result,) = read_retrieval_results(path)
    assert result.gallery_boxes.shape == (20, 4) and result.query_category == 1
    path.write_text(json.dumps([{**entry, "gallery_image_id": [1, 2]}]))
    with pytest.raises(ValueError, match=r"retrieval\.json, entry 1: .*got \(4,\), \(2,\)"):
        read_retrieval_results(path)
