"""DeepFashion's lists as they are published (Liu et al., CVPR 2016; landmarks: Liu et al., ECCV 2016).

Every list is a text file: the number of rows, the names of the columns, then one row per photograph, columns
apart by spaces. In-shop clothes retrieval needs ``Eval/list_eval_partition.txt`` (image_name, item_id,
evaluation_status: train, query or gallery). Fashion landmark detection (FLD) needs
``Anno/list_landmarks.txt`` (image_name, clothes_type, variation_type, then visibility, x and y px of up to
eight landmarks; a visibility of 0 is visible, 1 invisible or occluded, 2 truncated), ``Anno/list_bbox.txt``
(image_name, x_1, y_1, x_2, y_2 px) and ``Eval/list_eval_partition.txt`` (image_name, evaluation_status:
train, val or test). The in-shop set has the same lists of landmarks and boxes with ``_inshop`` in their
names. Photographs are named ``img/…``, and lie in the folder or in its ``Img/``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from psnet.taxonomy import Taxonomy

IN_SHOP_STATUS = ("train", "query", "gallery")

# clothes_type: what it means, and its landmarks in the lists' order. Left and right are sides of the picture.
_COLLARS, _SLEEVES = ("left_collar", "right_collar"), ("left_sleeve", "right_sleeve")
_WAIST, _HEM = ("left_waistline", "right_waistline"), ("left_hem", "right_hem")
CLOTHES_TYPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "1": ("upper-body", (*_COLLARS, *_SLEEVES, *_HEM)),
    "2": ("lower-body", (*_WAIST, *_HEM)),
    "3": ("full-body", (*_COLLARS, *_SLEEVES, *_WAIST, *_HEM)),
}
TORSO_TYPES = ("upper-body", "full-body")
# Visibility in the lists -> in `psnet.taxonomy`: 2 visible, 1 occluded, 0 absent.
_VISIBILITY = {"0": 2, "1": 1, "2": 0}


@dataclass(frozen=True)
class InShopPhotograph:
    """``status``: train, query or gallery; photographs of one ``item_id`` show one garment."""

    image_path: Path
    item_id: str
    status: str


@dataclass(frozen=True)
class LandmarkPhotograph:
    """``landmarks`` (11, 3) of ``clothing11``, x, y px and 2 visible, 1 occluded, 0 not in the list or out
    of the frame; ``box`` (4,) xyxy px; ``variation`` 1 … 5: normal, medium and large pose, medium and large
    zoom-in."""

    image_path: Path
    split: str
    clothes_type: str
    variation: int
    box: np.ndarray
    landmarks: np.ndarray


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str], list[str]]]:
    """Line number, the named columns, and the values after the last of them; ValueError where the file is no
    such list or has another number of rows than it says."""
    with path.open(encoding="utf-8") as file:
        count, header = file.readline().strip(), file.readline().split()
        if not count.isdecimal():
            raise ValueError(f"{path}, line 1: the number of rows, got {count[:40]!r}")
        missing = [name for name in columns if name not in header]
        if missing:
            raise ValueError(f"{path}, line 2: no column {missing[0]!r}")
        places = [header.index(name) for name in columns]
        rows = 0
        for number, line in enumerate(file, 3):
            values = line.split()
            if not values:
                continue
            if len(values) <= max(places):
                raise ValueError(
                    f"{path}, line {number}: {len(values)} values, needed {max(places) + 1} or more"
                )
            rows += 1
            named = {name: values[place] for name, place in zip(columns, places, strict=True)}
            yield number, named, values[max(places) + 1 :]
        if rows != int(count):
            raise ValueError(f"{path}: {rows} rows, but the first line says {count}")


def _images(folder: Path) -> Path:
    """Where the names of the lists start."""
    return folder if (folder / "img").is_dir() else folder / "Img"


def _list(folder: Path, name: str) -> Path:
    """``Anno/NAME.txt`` or the in-shop set's."""
    names = (f"{name}.txt", f"{name}_inshop.txt")
    for candidate in names:
        if (folder / "Anno" / candidate).is_file():
            return folder / "Anno" / candidate
    raise FileNotFoundError(f"{folder / 'Anno'}: neither {names[0]} nor {names[1]}")


def read_in_shop(folder: Path, status: Sequence[str] | None = None) -> list[InShopPhotograph]:
    """The photographs of the in-shop retrieval set in the list's order; ``status`` keeps only the named ones
    (``["query"]``, ``["gallery"]``).

    Raises FileNotFoundError for a missing list, ValueError (with the line number) for a bad row.
    """
    path = folder / "Eval" / "list_eval_partition.txt"
    images = _images(folder)
    photographs = []
    for number, row, _ in _rows(path, ("image_name", "item_id", "evaluation_status")):
        if row["evaluation_status"] not in IN_SHOP_STATUS:
            raise ValueError(
                f"{path}, line {number}: evaluation_status {row['evaluation_status']!r}; known:"
                f" {', '.join(IN_SHOP_STATUS)}"
            )
        if status is None or row["evaluation_status"] in status:
            photographs.append(
                InShopPhotograph(images / row["image_name"], row["item_id"], row["evaluation_status"])
            )
    return photographs


def _landmarks(parts: Sequence[str], values: Sequence[str]) -> np.ndarray:
    """(11, 3) from visibility, x, y of each of ``parts``; lists pad shorter types with zeros."""
    if len(values) < 3 * len(parts):
        raise ValueError(f"{len(parts)} landmarks of 3 numbers, got {len(values)} numbers")
    names = Taxonomy.load("clothing11").landmarks
    points = np.zeros((len(names), 3), np.float32)
    for k, part in enumerate(parts):
        code, x, y = values[3 * k : 3 * k + 3]
        if code not in _VISIBILITY:
            raise ValueError(f"a landmark's visibility is 0, 1 or 2, got {code!r}")
        if _VISIBILITY[code]:
            points[names.index(part)] = (float(x), float(y), _VISIBILITY[code])
    return points


def read_fashion_landmarks(
    folder: Path, splits: Sequence[str] | None = None, clothes_types: Sequence[str] = TORSO_TYPES
) -> list[LandmarkPhotograph]:
    """The landmarks of FLD or of the in-shop set; ``splits`` and ``clothes_types`` (upper-body, lower-body,
    full-body) keep only the named ones. A lower-body garment's waistline and hem are those of its legs.

    Raises FileNotFoundError for a missing list, ValueError (with the line number) for a bad row and for a
    photograph that another list lacks.
    """
    images = _images(folder)
    partition = folder / "Eval" / "list_eval_partition.txt"
    split_of = {
        row["image_name"]: row["evaluation_status"]
        for _, row, _ in _rows(partition, ("image_name", "evaluation_status"))
    }
    box_list = _list(folder, "list_bbox")
    edges = ("x_1", "y_1", "x_2", "y_2")
    box_of = {}
    for number, row, _ in _rows(box_list, ("image_name", *edges)):
        try:
            box_of[row["image_name"]] = np.array([float(row[edge]) for edge in edges], np.float32)
        except ValueError as error:
            raise ValueError(f"{box_list}, line {number}: {error}") from error
    path = _list(folder, "list_landmarks")
    photographs = []
    for number, row, values in _rows(path, ("image_name", "clothes_type", "variation_type")):
        try:
            name = row["image_name"]
            for known, other in ((split_of, partition), (box_of, box_list)):
                if name not in known:
                    raise ValueError(f"{name} is not in {other.name}")
            if row["clothes_type"] not in CLOTHES_TYPES:
                raise ValueError(f"clothes_type is 1, 2 or 3, got {row['clothes_type']!r}")
            clothes_type, parts = CLOTHES_TYPES[row["clothes_type"]]
            landmarks = _landmarks(parts, values)
            variation = int(row["variation_type"])
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if (splits is None or split_of[name] in splits) and clothes_type in clothes_types:
            photographs.append(
                LandmarkPhotograph(
                    images / name, split_of[name], clothes_type, variation, box_of[name], landmarks
                )
            )
    return photographs
