"""DeepFashion2 as it is published (Ge et al., CVPR 2019, https://github.com/switchablenorms/DeepFashion2).

A split is a folder (``train/``, ``validation/``) with ``image/000001.jpg`` and ``annos/000001.json``. An
annotation has ``source`` (shop or user), ``pair_id`` and the garments ``item1``, ``item2``, …; a garment has
``category_name``, ``category_id`` (1 … 13), ``style`` (garments of one pair_id and the same style above 0
are one design), ``bounding_box`` xyxy px, ``landmarks`` ``[x, y, v, …]`` px in the category's own number
with v = 2 visible, 1 occluded, 0 not labelled, ``segmentation`` polygons ``[x1, y1, …]`` px, and the grades
``scale``, ``occlusion``, ``zoom_in`` and ``viewpoint`` (1 … 3 each).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from psnet.data.photographs import LabelledGarment
from psnet.region_boxes import regions_from_landmarks
from psnet.taxonomy import TORSO_CATEGORIES, Category, Taxonomy, to_clothing11

# The folders of the published archives that come with annotations.
SPLITS = ("train", "validation")
GRADES = ("scale", "occlusion", "zoom_in", "viewpoint")
_ITEM = re.compile(r"item(\d+)")


@dataclass(frozen=True)
class DeepFashion2Garment:
    """One ``item`` of an annotation.

    ``category`` is the taxonomy's name (``short_sleeve_top``); ``box`` (4,) xyxy px; ``landmarks`` (n, 3) x,
    y px and visibility, n by category; ``segmentation`` polygons of x1, y1, x2, y2, … px; the four grades 1
    … 3.
    """

    category: str
    style: int
    box: np.ndarray
    landmarks: np.ndarray
    segmentation: tuple[tuple[float, ...], ...]
    scale: int
    occlusion: int
    zoom_in: int
    viewpoint: int

    @property
    def category_id(self) -> int:
        """DeepFashion2's number, 1 … 13."""
        return Taxonomy.load("deepfashion2").category(self.category).id

    @property
    def vector(self) -> np.ndarray:
        """(294, 3) float32: the landmarks at their places among all categories', zeros elsewhere."""
        taxonomy = Taxonomy.load("deepfashion2")
        vector = np.zeros((len(taxonomy), 3), np.float32)
        vector[taxonomy.category(self.category).indices] = self.landmarks
        return vector


@dataclass(frozen=True)
class DeepFashion2Image:
    """One photograph with its garments; ``image_id`` is the number its file is named by."""

    image_path: Path
    image_id: int
    split: str
    source: str
    pair_id: int
    garments: tuple[DeepFashion2Garment, ...]


def _categories() -> dict[int, Category]:
    return {category.id: category for category in Taxonomy.load("deepfashion2").categories.values()}


def _garment(item: dict[str, Any]) -> DeepFashion2Garment:
    category = _categories().get(item["category_id"])
    if category is None:
        raise ValueError(f"unknown category_id {item['category_id']!r}; known: 1 to 13")
    if item["category_name"].replace(" ", "_") != category.name:
        raise ValueError(f"category_id {category.id} is {category.name}, not {item['category_name']!r}")
    box = np.asarray(item["bounding_box"], np.float32)
    if box.shape != (4,) or not np.isfinite(box).all():
        raise ValueError(f"bounding_box {item['bounding_box']} is not x0, y0, x1, y1")
    numbers = np.asarray(item["landmarks"], np.float32)
    if numbers.shape != (3 * len(category.indices),):
        raise ValueError(
            f"{category.name} has {len(category.indices)} landmarks of 3 numbers, got {numbers.size} numbers"
        )
    landmarks = numbers.reshape(-1, 3)
    if not np.isin(landmarks[:, 2], (0, 1, 2)).all():
        raise ValueError("a landmark's visibility is 0, 1 or 2")
    if odd := [len(p) for p in item["segmentation"] if len(p) % 2]:
        raise ValueError(f"an outline of {odd[0]} numbers, which are no points")
    # Now and then one has shrunk to a line or a point, which outlines nothing.
    polygons = tuple(tuple(float(v) for v in p) for p in item["segmentation"] if len(p) >= 6)
    grades = {name: int(item[name]) for name in GRADES}
    return DeepFashion2Garment(category.name, int(item["style"]), box, landmarks, polygons, **grades)


def read_image(annotation: Path, split: str) -> DeepFashion2Image:
    """Read ``annos/000001.json``; the photograph ``image/000001.jpg`` beside it is not opened.

    Raises FileNotFoundError when the file is missing, ValueError (with file and item) when it is no
    annotation.
    """
    place = str(annotation)
    try:
        if not annotation.stem.isdecimal():
            raise ValueError("the file's name is no number")
        data = json.loads(annotation.read_text(encoding="utf-8"))
        source, pair_id = str(data["source"]), int(data["pair_id"])
        numbers = sorted(int(match[1]) for match in map(_ITEM.fullmatch, data) if match)
        garments = []
        for number in numbers:
            place = f"{annotation}, item{number}"
            garments.append(_garment(data[f"item{number}"]))
    except KeyError as error:
        raise ValueError(f"{place}: no {error.args[0]!r}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{place}: not a DeepFashion2 annotation ({error})") from error
    photograph = annotation.parent.parent / "image" / f"{annotation.stem}.jpg"
    return DeepFashion2Image(photograph, int(annotation.stem), split, source, pair_id, tuple(garments))


def split_folders(folder: Path) -> dict[str, Path]:
    """The splits that lie in ``folder``, by name: ``train/`` and ``validation/``, or ``folder`` itself,
    which then is the split it is named after, or else "train"; empty where there is no ``annos/``."""
    if (folder / "annos").is_dir():
        return {folder.name if folder.name in SPLITS else "train": folder}
    return {name: folder / name for name in SPLITS if (folder / name / "annos").is_dir()}


def read_deepfashion2(folder: Path, splits: Sequence[str] | None = None) -> Iterator[DeepFashion2Image]:
    """The photographs of DeepFashion2 in ``folder``, one after another in the order of their numbers;
    ``splits`` keeps only the named ones.

    Raises FileNotFoundError where no split lies, ValueError for an annotation that is none.
    """
    found = split_folders(folder)
    if not found:
        raise FileNotFoundError(f"{folder}: no annos/, {' nor '.join(f'{s}/annos/' for s in SPLITS)}")
    for split, path in found.items():
        if splits is None or split in splits:
            for annotation in sorted((path / "annos").glob("*.json")):
                yield read_image(annotation, split)


def labelled_garment(garment: DeepFashion2Garment, image_path: Path, split: str) -> LabelledGarment | None:
    """A garment as training takes it, the eleven points of ``clothing11`` and five region boxes.

    None for legwear, and where a landmark that a region hangs on was not labelled (most often because it lies
    outside the frame): labels know no hidden regions. The cut-out is the annotation's own.
    """
    if garment.category not in TORSO_CATEGORIES:
        return None
    points = to_clothing11(garment.category, garment.landmarks)
    own = np.ones(len(points), bool)
    if "sleeve" not in garment.category:
        own[[i for i, name in enumerate(Taxonomy.load("clothing11").landmarks) if "_sleeve" in name]] = False
    if (points[own, 2] == 0).any():
        return None
    boxes = regions_from_landmarks(garment.landmarks, garment.category, garment.box, "deepfashion2")
    neck, hem = points[:2, :2].mean(0), points[9:11, :2].mean(0)
    across, down = hem - neck
    return LabelledGarment(
        image_path=image_path,
        split=split,
        category=garment.category,
        box=garment.box,
        landmarks=points,
        region_boxes=boxes,
        upright=bool(down > abs(across)),
        polygons=garment.segmentation,
    )


def read_deepfashion2_labels(
    folder: Path, splits: Sequence[str] | None = None, upright_only: bool = True
) -> list[LabelledGarment]:
    """The garments of DeepFashion2 that training can use (`labelled_garment` says which), as
    `psnet.data.photographs.read_labels` gives those of a label file.

    Raises FileNotFoundError and ValueError as `read_deepfashion2`.
    """
    garments = []
    for image in read_deepfashion2(folder, splits):
        for garment in image.garments:
            label = labelled_garment(garment, image.image_path, image.split)
            if label is not None and (label.upright or not upright_only):
                garments.append(label)
    return garments
