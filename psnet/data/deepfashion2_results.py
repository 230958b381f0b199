"""The files of DeepFashion2's evaluation: ground truth in COCO's layout, and results of its two tasks.

Formats: ``evaluation/evaluation.md``, ``deepfashion2_to_coco.py`` and ``deepfashion2_retrieval_test.py`` of
https://github.com/switchablenorms/DeepFashion2. Landmark results are COCO keypoint results with 294
keypoints; retrieval results name the twenty best gallery garments of every garment detected in a user's
photograph.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from psnet.data.deepfashion2 import DeepFashion2Garment, DeepFashion2Image
from psnet.taxonomy import Taxonomy

# How many gallery garments a retrieval result names; the official script reads exactly as many.
RETRIEVED = 20


@dataclass(frozen=True)
class KeypointResult:
    """A garment found in a photograph: ``landmarks`` (n, 3) of ``category``, x, y px and a visibility (1
    where nothing is known; the score ignores it); ``score`` orders the results."""

    image_id: int
    category: str
    landmarks: np.ndarray
    score: float


@dataclass(frozen=True)
class RetrievalResult:
    """A garment detected in a user's photograph, and the twenty most similar of the shops', best first.

    ``query_box`` (4,) and ``gallery_boxes`` (20, 4) xyxy px, ``query_category`` 1 … 13, ``gallery_image_ids``
    (20,) numbers of photographs. Raises ValueError for other shapes.
    """

    query_image_id: int
    query_box: np.ndarray
    query_category: int
    query_score: float
    gallery_image_ids: np.ndarray
    gallery_boxes: np.ndarray

    def __post_init__(self) -> None:
        shapes = (self.query_box.shape, self.gallery_image_ids.shape, self.gallery_boxes.shape)
        if shapes != ((4,), (RETRIEVED,), (RETRIEVED, 4)):
            raise ValueError(
                f"query_bbox, gallery_image_id and gallery_bbox have the shapes (4,), ({RETRIEVED},) and"
                f" ({RETRIEVED}, 4), got {shapes[0]}, {shapes[1]} and {shapes[2]}"
            )


def _keypoints(category: str, landmarks: np.ndarray) -> list[float]:
    """882 numbers. The zeros are one object: those of a whole validation set would not fit into memory."""
    indices = Taxonomy.load("deepfashion2").category(category).indices
    if landmarks.shape != (len(indices), 3):
        raise ValueError(f"{category} has {len(indices)} landmarks of 3 numbers, got {landmarks.shape}")
    numbers = [0.0] * (3 * len(Taxonomy.load("deepfashion2")))
    numbers[3 * indices[0] : 3 * indices[-1] + 3] = [round(float(v), 3) for v in landmarks.ravel()]
    return numbers


def _official_name(category: str) -> str:
    """The name in the official COCO file; annotations and papers say ``short sleeve top``."""
    return category.replace("_sleeve_top", "_sleeved_shirt").replace("_sleeve_", "_sleeved_")


def _annotation(garment: DeepFashion2Garment, number: int, image: DeepFashion2Image) -> dict[str, Any]:
    x0, y0, x1, y1 = (float(v) for v in garment.box)
    return {
        "id": number,
        "image_id": image.image_id,
        "category_id": garment.category_id,
        "pair_id": image.pair_id,
        "style": garment.style,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": 0,
        "num_keypoints": int((garment.landmarks[:, 2] > 0).sum()),
        "keypoints": _keypoints(garment.category, garment.landmarks),
        "segmentation": [list(polygon) for polygon in garment.segmentation],
    }


def coco_ground_truth(images: Iterable[DeepFashion2Image]) -> dict[str, Any]:
    """What the official ``deepfashion2_to_coco.py`` makes of a split: images, annotations with 294 keypoints
    (the area is the box's), and 13 categories. Opens the photographs for their sizes.

    Raises FileNotFoundError for a photograph that is not there, ValueError for a number that comes twice:
    splits number their photographs alike, and only one fits into a file.
    """
    taxonomy = Taxonomy.load("deepfashion2")
    names = [str(number) for number in range(1, len(taxonomy) + 1)]
    truth: dict[str, Any] = {
        "info": {},
        "licenses": [],
        "images": [],
        "annotations": [],
        "categories": [
            {
                "id": category.id,
                "name": _official_name(category.name),
                "supercategory": "clothes",
                "keypoints": names,
                "skeleton": [],
            }
            for category in taxonomy.categories.values()
        ],
    }
    seen: set[int] = set()
    for image in images:
        if image.image_id in seen:
            raise ValueError(
                f"{image.image_path}: the number {image.image_id} comes twice; one split at a time"
            )
        seen.add(image.image_id)
        with Image.open(image.image_path) as picture:
            width, height = picture.size
        truth["images"].append(
            {"id": image.image_id, "file_name": image.image_path.name, "width": width, "height": height}
        )
        for garment in image.garments:
            truth["annotations"].append(_annotation(garment, len(truth["annotations"]) + 1, image))
    return truth


def retrieval_ground_truth(
    images: Iterable[DeepFashion2Image],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The entries of ``query_gt.json`` (garments in users' photographs) and ``gallery_gt.json`` (in shops').

    A query with ``style`` above 0 is sought; right are the gallery's garments of the same pair_id and style.
    Where the gallery has none, its style becomes 0, which is how the annotators say that a garment has no
    partner: some are labelled so without having one.
    """
    queries: list[dict[str, Any]] = []
    gallery: list[dict[str, Any]] = []
    for image in images:
        side, key = (queries, "query") if image.source == "user" else (gallery, "gallery")
        for garment in image.garments:
            side.append(
                {
                    f"{key}_image_id": image.image_id,
                    "bbox": [float(v) for v in garment.box],
                    "cls": garment.category_id,
                    "style": garment.style,
                    "pair_id": image.pair_id,
                }
            )
    offered = {(entry["pair_id"], entry["style"]) for entry in gallery}
    for entry in queries:
        if (entry["pair_id"], entry["style"]) not in offered:
            entry["style"] = 0
    return queries, gallery


def _read_list(path: Path) -> list[Any]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a result file is a list")
    return rows


def write_keypoint_results(path: Path, results: Iterable[KeypointResult]) -> None:
    """Write landmark results as DeepFashion2's evaluation reads them.

    Raises ValueError for a result whose landmarks are not its category's.
    """
    rows = [
        {
            "image_id": result.image_id,
            "category_id": Taxonomy.load("deepfashion2").category(result.category).id,
            "keypoints": _keypoints(result.category, result.landmarks),
            "score": float(result.score),
        }
        for result in results
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")


def read_keypoint_results(path: Path) -> list[KeypointResult]:
    """Read landmark results. Raises FileNotFoundError for a missing file, ValueError (with the entry's
    number) for an entry that is none."""
    taxonomy = Taxonomy.load("deepfashion2")
    categories = {category.id: category for category in taxonomy.categories.values()}
    results = []
    for number, row in enumerate(_read_list(path), 1):
        try:
            keypoints = np.asarray(row["keypoints"], np.float32).reshape(len(taxonomy), 3)
            category = categories[row["category_id"]]
            landmarks = keypoints[category.indices]
            results.append(
                KeypointResult(int(row["image_id"]), category.name, landmarks, float(row["score"]))
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, entry {number}: not a keypoint result ({error!r})") from error
    return results


def write_retrieval_results(path: Path, results: Sequence[RetrievalResult]) -> None:
    """Write retrieval results as DeepFashion2's evaluation reads them."""
    rows = [
        {
            "query_image_id": int(result.query_image_id),
            "query_bbox": [float(v) for v in result.query_box],
            "query_cls": int(result.query_category),
            "query_score": float(result.query_score),
            "gallery_image_id": [int(v) for v in result.gallery_image_ids],
            "gallery_bbox": [[float(v) for v in box] for box in result.gallery_boxes],
        }
        for result in results
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")


def read_retrieval_results(path: Path) -> list[RetrievalResult]:
    """Read retrieval results. Raises FileNotFoundError for a missing file, ValueError (with the entry's
    number) for an entry that is none."""
    results = []
    for number, row in enumerate(_read_list(path), 1):
        try:
            results.append(
                RetrievalResult(
                    query_image_id=int(row["query_image_id"]),
                    query_box=np.asarray(row["query_bbox"], np.float64),
                    query_category=int(row["query_cls"]),
                    query_score=float(row["query_score"]),
                    gallery_image_ids=np.asarray(row["gallery_image_id"], np.int64),
                    gallery_boxes=np.asarray(row["gallery_bbox"], np.float64),
                )
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, entry {number}: not a retrieval result ({error!r})") from error
    return results
