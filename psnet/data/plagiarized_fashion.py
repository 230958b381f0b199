"""Plagiarism benchmarks: originals, a gallery in which their copies hide, and how each copy differs.

The data set of "Which is Plagiarism" (Lang et al., CVPR 2020) was never published, and with it no layout.
This is ours; `psnet.render.plagiarized` writes it, and any other set can be brought into it::

    query/ID.jpg, gallery/ID.jpg
    query.csv       item_id, image, category, group: the originals
    gallery.csv     the same columns: copies and unrelated garments (distractors)
    relations.csv   query, gallery, relation, modified, group, kinds, mirrored: one row per copy
    boxes.jsonl     item_id, bbox, regions: where garment and regions lie (optional)

``item_id`` is text and names one item of the whole set; ``image`` is a path relative to the folder;
``category`` is a DeepFashion2 category, ``group`` one of PS-Net's four. ``relation`` is ``identical``
(nothing but the photograph differs), ``plagiarised`` (one or two parts modified) or ``derived`` (three or
four); ``modified`` names the parts, '|'-joined, out of sleeves, collar, chest and waist; ``kinds`` says how
each was modified (free text, in the same order); ``mirrored`` is 1 where the copy is flipped left to right. A
gallery item without a row is unrelated to every query. Boxes are xyxy in pixels, null where a garment lacks
the region or none of it is in the picture.

A benchmark in the product's own formats lies beside it, so that one evaluation reads both kinds:
``catalogue.csv`` (what a user would have) and ``truth.csv`` (the columns of relations.csv with ``original``
and ``copy`` for ``query`` and ``gallery``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from psnet.data.csv_files import parse_csv
from psnet.data.edits import PARTS
from psnet.data.photographs import read_box, read_regions, regions_row
from psnet.regions import GROUPS
from psnet.taxonomy import Taxonomy

ITEM_COLUMNS = ("item_id", "image", "category", "group")
RELATION_COLUMNS = ("query", "gallery", "relation", "modified", "group", "kinds", "mirrored")

# How many parts a copy of each relation modifies, least and most.
MODIFIED_PARTS: dict[str, tuple[int, int]] = {
    "identical": (0, 0),
    "plagiarised": (1, 2),
    "derived": (3, len(PARTS)),
}


@dataclass(frozen=True)
class BenchmarkItem:
    """One photograph; ``category`` of DeepFashion2, ``group`` of PS-Net."""

    item_id: str
    image_path: Path
    category: str
    group: str


@dataclass(frozen=True)
class CopyRelation:
    """How the gallery item ``gallery`` was made from the query item ``query``; ``modified`` names parts,
    ``kinds`` how each was modified."""

    query: str
    gallery: str
    relation: str
    modified: tuple[str, ...]
    group: str
    kinds: tuple[str, ...]
    mirrored: bool


@dataclass(frozen=True)
class ItemBoxes:
    """``box`` (4,) and ``region_boxes`` (5, 4) xyxy px, NaN where the garment has no such region."""

    box: np.ndarray
    region_boxes: np.ndarray


@dataclass(frozen=True)
class PlagiarizedFashion:
    """A whole benchmark; ``boxes`` by item_id, empty where the set has none."""

    queries: tuple[BenchmarkItem, ...]
    gallery: tuple[BenchmarkItem, ...]
    relations: tuple[CopyRelation, ...]
    boxes: Mapping[str, ItemBoxes]


def box_row(item_id: str, box: np.ndarray, region_boxes: np.ndarray) -> dict[str, object]:
    """One line of boxes.jsonl, what `read_boxes` reads; ``box`` (4,), ``region_boxes`` (5, 4) with NaN where
    absent."""
    return {
        "item_id": item_id,
        "bbox": [round(float(v), 1) for v in box],
        "regions": regions_row(region_boxes),
    }


def read_boxes(path: Path) -> dict[str, ItemBoxes]:
    """Read a boxes.jsonl, by item_id.

    Raises FileNotFoundError when the file is missing, ValueError (with the line number) for a line that is
    none.
    """
    boxes: dict[str, ItemBoxes] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                item = str(row["item_id"])
                if item in boxes:
                    raise ValueError(f"item {item} stands twice")
                boxes[item] = ItemBoxes(read_box(row["bbox"]), read_regions(row["regions"]))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}, line {number}: not the boxes of an item ({error!r})") from error
    return boxes


def _group(name: str) -> str:
    if name not in GROUPS:
        raise ValueError(f"unknown group {name!r}; known: {', '.join(GROUPS)}")
    return name


def _read_items(folder: Path, name: str) -> tuple[BenchmarkItem, ...]:
    def parse(row: dict[str, str]) -> BenchmarkItem:
        category = Taxonomy.load("clothing11").category(row["category"]).name
        return BenchmarkItem(row["item_id"], folder / row["image"], category, _group(row["group"]))

    return tuple(parse_csv(folder / name, ITEM_COLUMNS, parse))


def _parse_relation(row: dict[str, str]) -> CopyRelation:
    modified = tuple(part for part in row["modified"].split("|") if part)
    unknown = [part for part in modified if part not in PARTS]
    if unknown:
        raise ValueError(f"unknown part {unknown[0]!r}; known: {', '.join(PARTS)}")
    if row["relation"] not in MODIFIED_PARTS:
        raise ValueError(f"unknown relation {row['relation']!r}; known: {', '.join(MODIFIED_PARTS)}")
    least, most = MODIFIED_PARTS[row["relation"]]
    if not least <= len(set(modified)) == len(modified) <= most:
        raise ValueError(f"a copy that is {row['relation']} modifies {least} to {most} parts, got {modified}")
    if row["mirrored"] not in ("0", "1"):
        raise ValueError(f"mirrored is 0 or 1, got {row['mirrored']!r}")
    kinds = tuple(kind for kind in row["kinds"].split("|") if kind)
    return CopyRelation(
        row["query"],
        row["gallery"],
        row["relation"],
        modified,
        _group(row["group"]),
        kinds,
        row["mirrored"] == "1",
    )


def read_plagiarized_fashion(folder: Path) -> PlagiarizedFashion:
    """Read a benchmark in the layout above; the photographs themselves are not opened.

    Raises FileNotFoundError when a table is missing, ValueError (with file and line) for a row that does not
    fit, and for an item that is named twice or not at all.
    """
    queries, gallery = _read_items(folder, "query.csv"), _read_items(folder, "gallery.csv")
    seen: set[str] = set()
    for item in (*queries, *gallery):
        if item.item_id in seen:
            raise ValueError(f"{folder}: item {item.item_id!r} is listed twice in query.csv and gallery.csv")
        seen.add(item.item_id)
    query_ids, gallery_ids = {i.item_id for i in queries}, {i.item_id for i in gallery}
    copied: set[str] = set()

    def parse(row: dict[str, str]) -> CopyRelation:
        relation = _parse_relation(row)
        if relation.query not in query_ids:
            raise ValueError(f"{relation.query!r} is not in query.csv")
        if relation.gallery not in gallery_ids:
            raise ValueError(f"{relation.gallery!r} is not in gallery.csv")
        if relation.gallery in copied:
            raise ValueError(f"{relation.gallery!r} has a second row: an item is a copy of one query")
        copied.add(relation.gallery)
        return relation

    relations = tuple(parse_csv(folder / "relations.csv", RELATION_COLUMNS, parse))
    path = folder / "boxes.jsonl"
    return PlagiarizedFashion(queries, gallery, relations, read_boxes(path) if path.exists() else {})
