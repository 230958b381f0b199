"""Garments with attribute labels in the layout that ASEN's authors published their splits in.

Source: https://github.com/Maryeon/asen (Ma et al., AAAI 2020), FashionAI, DARN and DeepFashion alike. ROOT
has ``meta.json`` = {data set: {ATTRIBUTES: [names], ATTRIBUTES_NUM: {name: count}, ATTRIBUTES_VALUES: {name:
[values]}, the last optional}} and a folder per data set: ``filenames_SPLIT.txt``, one path a line;
``label_train.txt``, a line per image, its index and then pairs of attribute and value;
``query_SPLIT.txt`` and ``candidate_SPLIT.txt``, lines of index, attribute, value.

Ours besides: ATTRIBUTES_REGIONS: {name: [regions]} in meta.json says where an attribute is seen, and
``regions_SPLIT.jsonl`` has the region boxes of each image (px), which may guide the attention.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from psnet.data.photographs import load_pixels, read_regions
from psnet.regions import REGIONS

UNLABELLED = -1


class AttributeDataError(ValueError):
    """A data set that is not in the layout; the message says file, line, what is wrong and how to mend it."""


@dataclass(frozen=True)
class AttributeMeta:
    """A data set's attributes, the values of each (numbers where they have no names), and the regions
    (`psnet.regions.REGIONS`) that an attribute is seen in, where that is known."""

    dataset: str
    names: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def region_mask(self) -> np.ndarray:
        """(attributes, 5) bool: the regions an attribute is seen in; none where it is not known."""
        return np.array([[r in self.regions.get(name, ()) for r in REGIONS] for name in self.names])


@dataclass(frozen=True)
class AttributeImages:
    """``labels`` (n, attributes) int64 per image, `UNLABELLED` where not known; ``region_boxes`` (n, 5, 4)
    xyxy px, NaN where absent, None for a data set without."""

    meta: AttributeMeta
    paths: tuple[Path, ...]
    labels: np.ndarray
    region_boxes: np.ndarray | None


@dataclass(frozen=True)
class AttributeRanking:
    """``queries`` and ``candidates`` (m, 3) int64: image, attribute, value."""

    images: AttributeImages
    queries: np.ndarray
    candidates: np.ndarray


def read_attribute_image(path: Path) -> Image.Image:
    """The picture, upright, RGB. Raises AttributeDataError when it cannot be read."""
    try:
        return Image.fromarray(load_pixels(path))
    except ValueError as error:
        raise AttributeDataError(str(error)) from None


def write_meta(root: Path, meta: AttributeMeta) -> None:
    """Put the data set into ROOT/meta.json, beside those that are there."""
    path = root / "meta.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[meta.dataset] = {
        "ATTRIBUTES": list(meta.names),
        "ATTRIBUTES_NUM": {name: len(values) for name, values in zip(meta.names, meta.values, strict=True)},
        "ATTRIBUTES_VALUES": dict(zip(meta.names, map(list, meta.values), strict=True)),
        "ATTRIBUTES_REGIONS": {name: list(regions) for name, regions in meta.regions.items()},
    }
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def read_meta(root: Path, dataset: str) -> AttributeMeta:
    """The attributes of ``dataset``. Raises AttributeDataError."""
    path = root / "meta.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AttributeDataError(
            f"{path}: no such file; ROOT is the folder with the authors' meta.json"
        ) from None
    except ValueError as error:
        raise AttributeDataError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise AttributeDataError(f"{path}: not a meta.json, which has an entry for each data set")
    if dataset not in content:
        raise AttributeDataError(f"{path}: no data set {dataset!r}; it has {', '.join(content) or 'none'}")
    entry = content[dataset]
    try:
        names = tuple(str(name) for name in entry["ATTRIBUTES"])
        counts = [int(entry["ATTRIBUTES_NUM"][name]) for name in names]
        named = dict(entry.get("ATTRIBUTES_VALUES", {}))
        regions = {name: tuple(where) for name, where in dict(entry.get("ATTRIBUTES_REGIONS", {})).items()}
        values = tuple(
            tuple(map(str, named.get(name, range(count)))) for name, count in zip(names, counts, strict=True)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise AttributeDataError(
            f"{path}: {dataset} needs ATTRIBUTES, a list of names, and ATTRIBUTES_NUM, the number of "
            "values of each; ATTRIBUTES_VALUES and ATTRIBUTES_REGIONS, where there are any, are lists by "
            f"name ({error!r})"
        ) from None
    for name, count, known in zip(names, counts, values, strict=True):
        if len(known) != count:
            raise AttributeDataError(
                f"{path}: {dataset}, {name}: {count} values, but {len(known)} names of them"
            )
    return AttributeMeta(dataset, names, values, regions)


def read_training(root: Path, dataset: str, *, skip_missing: bool = False) -> AttributeImages:
    """The images to train on.

    Args:
        skip_missing: leave out images that are not there (the links of DARN are partly dead); otherwise they
            are an error.

    Raises:
        AttributeDataError: a file is missing or is not in the layout.
    """
    meta = read_meta(root, dataset)
    paths, present = _read_paths(root, dataset, "train", skip_missing)
    labels = np.full((len(paths), len(meta.names)), UNLABELLED, np.int64)
    path = root / dataset / "label_train.txt"
    for place, numbers in read_numbers(path):
        if len(numbers) % 2 == 0:
            raise AttributeDataError(
                f"{place}: {len(numbers)} numbers; needed: index, then attribute and value"
            )
        check_index(place, numbers[0], len(paths))
        for attribute, value in zip(numbers[1::2], numbers[2::2], strict=True):
            _check_label(place, meta, attribute, value)
            labels[numbers[0], attribute] = value
    labels[~present] = UNLABELLED
    return AttributeImages(meta, paths, labels, _read_region_boxes(root, dataset, "train", len(paths)))


def read_ranking(root: Path, dataset: str, split: str, *, skip_missing: bool = False) -> AttributeRanking:
    """Queries and candidates of ``split`` ("valid" or "test"); see `read_training`.

    Raises:
        AttributeDataError: a file is missing or is not in the layout.
    """
    meta = read_meta(root, dataset)
    paths, present = _read_paths(root, dataset, split, skip_missing)
    labels = np.full((len(paths), len(meta.names)), UNLABELLED, np.int64)
    found = []
    for kind in ("query", "candidate"):
        rows = []
        for place, numbers in read_numbers(root / dataset / f"{kind}_{split}.txt"):
            if len(numbers) != 3:
                raise AttributeDataError(f"{place}: {len(numbers)} numbers; needed: index, attribute, value")
            index, attribute, value = numbers
            check_index(place, index, len(paths))
            _check_label(place, meta, attribute, value)
            if present[index]:
                rows.append(numbers)
                labels[index, attribute] = value
        found.append(np.array(rows, np.int64).reshape(-1, 3))
    boxes = _read_region_boxes(root, dataset, split, len(paths))
    return AttributeRanking(AttributeImages(meta, paths, labels, boxes), *found)


def _read_paths(
    root: Path, dataset: str, split: str, skip_missing: bool
) -> tuple[tuple[Path, ...], np.ndarray]:
    folder = root / dataset
    path = folder / f"filenames_{split}.txt"
    paths = tuple(folder / line for _, line in read_lines(path))
    present = np.array([p.is_file() for p in paths], bool)
    if not present.all() and not skip_missing:
        raise AttributeDataError(
            f"{path}: {int((~present).sum())} of {len(paths)} images are not there, the first "
            f"{paths[int(np.argmin(present))]}; fetch them, or set skip_missing=true"
        )
    return paths, present


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """File and line number, and the line; empty ones are left out. Raises AttributeDataError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise AttributeDataError(f"{path}: no such file; the authors' splits have one") from None
    except UnicodeDecodeError:
        raise AttributeDataError(f"{path}: is not UTF-8 text") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield f"{path}, line {number}", line.strip()


def read_numbers(path: Path) -> Iterator[tuple[str, list[int]]]:
    """File and line number, and the line's whole numbers. Raises AttributeDataError."""
    for place, line in read_lines(path):
        try:
            yield place, [int(word) for word in line.split()]
        except ValueError:
            raise AttributeDataError(f"{place}: {line[:60]!r} are not whole numbers") from None


def check_index(place: str, index: int, count: int) -> None:
    """Raises AttributeDataError for an image that the list does not have."""
    if not 0 <= index < count:
        raise AttributeDataError(f"{place}: image {index}, but the list has {count} (counted from 0)")


def _check_label(place: str, meta: AttributeMeta, attribute: int, value: int) -> None:
    if not 0 <= attribute < len(meta.names):
        raise AttributeDataError(f"{place}: attribute {attribute}, but {meta.dataset} has {len(meta.names)}")
    if not 0 <= value < len(meta.values[attribute]):
        raise AttributeDataError(
            f"{place}: value {value} of {meta.names[attribute]}, which has {len(meta.values[attribute])}"
        )


def _read_region_boxes(root: Path, dataset: str, split: str, count: int) -> np.ndarray | None:
    path = root / dataset / f"regions_{split}.jsonl"
    if not path.is_file():
        return None
    rows = []
    for place, line in read_lines(path):
        try:
            rows.append(read_regions(json.loads(line)))
        except (ValueError, TypeError, AttributeError) as error:
            raise AttributeDataError(f"{place}: no region boxes ({error})") from None
    if len(rows) != count:
        raise AttributeDataError(f"{path}: {len(rows)} lines for {count} images")
    return np.stack(rows)
