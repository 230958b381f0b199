"""A plagiarism benchmark in the product's own formats: a catalogue of photographs and the truth about it.

Lenient where `psnet.data.plagiarized_fashion` is strict: any catalogue with a truth can be measured on.

catalogue.csv   item_id, image (path relative to the file), seller_id
truth.csv       original, copy, relation (identical | plagiarised | derived), group, modified ('|'-joined
                parts or regions), kinds ('|'-joined kinds of edit), mirrored (0 or 1), and optionally
                photographic ('|'-joined changes of the photograph)
boxes.jsonl     optional, a line per item: item_id, bbox and regions as xyxy in pixels
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from psnet.data.plagiarized_fashion import ItemBoxes, read_boxes
from psnet.image import ImageError, decode_image
from psnet.regions import GROUPS, REGIONS

RELATIONS: tuple[str, ...] = ("identical", "plagiarised", "derived")

# Other names of PS-Net's groups.
_GROUP_ALIASES = {"tshirt": "T-shirts", "T-shirt": "T-shirts", "top": "tops"}
_ITEM_COLUMNS = ("item_id", "image", "seller_id")
_TRUTH_COLUMNS = ("original", "copy", "relation", "group", "modified")


@dataclass(frozen=True)
class Item:
    """One row of the catalogue."""

    item_id: str
    image: Path
    seller_id: str


@dataclass(frozen=True)
class TruthPair:
    """An original and a copy of it. ``parts``: modified parts (sleeves count as one), ``regions``: the same
    as names of ``psnet.regions.REGIONS``; ``kinds``: kinds of edit; ``photographic``: what the copy's
    photograph differs in."""

    original: str
    copy: str
    relation: str
    group: str
    parts: frozenset[str]
    regions: frozenset[str]
    kinds: tuple[str, ...]
    mirrored: bool
    photographic: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """``boxes`` by item, for the items whose boxes are known; ``digest`` names the content of the tables."""

    name: str
    items: tuple[Item, ...]
    truth: tuple[TruthPair, ...]
    boxes: Mapping[str, ItemBoxes]
    digest: str

    @property
    def rows(self) -> dict[str, int]:
        """Item to its row in ``items``."""
        return {item.item_id: row for row, item in enumerate(self.items)}

    @property
    def design(self) -> dict[str, str]:
        """Item to the original of its design, for originals and copies."""
        return designs((pair.original, pair.copy) for pair in self.truth)

    def subset(self, originals: int) -> Benchmark:
        """The first ``originals`` designs with their copies, and the same share of the other items: for
        trying out."""
        known = list(dict.fromkeys(pair.original for pair in self.truth))
        chosen = set(known[:originals])
        design = self.design
        others = [item for item in self.items if item.item_id not in design]
        share = round(len(others) * min(originals / max(len(known), 1), 1))
        kept = {item.item_id for item in others[:share]} | {i for i, d in design.items() if d in chosen}
        return replace(
            self,
            items=tuple(item for item in self.items if item.item_id in kept),
            truth=tuple(pair for pair in self.truth if pair.original in chosen),
            digest=f"{self.digest}-{originals}",
        )


def designs(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Item to the original of its design, from originals and their copies."""
    design = {}
    for original, copy in pairs:
        design[original] = design[copy] = original
    return design


def read_benchmark(folder: Path, name: str | None = None) -> Benchmark:
    """Read the tables of a benchmark; pictures are read when they are needed.

    Raises:
        ValueError: a missing or malformed table; the message is one line with file and reason.
    """
    catalogue = _table(folder / "catalogue.csv", _ITEM_COLUMNS)
    items = tuple(Item(row["item_id"], folder / row["image"], row["seller_id"]) for row in catalogue)
    known = {item.item_id for item in items}
    if len(known) != len(items):
        raise ValueError(f"{folder / 'catalogue.csv'}: an item_id stands twice")
    truth = []
    for number, row in enumerate(_table(folder / "truth.csv", _TRUTH_COLUMNS), 2):
        where = f"{folder / 'truth.csv'}, line {number}"
        if missing := {row["original"], row["copy"]} - known:
            raise ValueError(f"{where}: {missing.pop()} is not in catalogue.csv")
        truth.append(_truth_pair(row, where))
    if not truth:
        raise ValueError(f"{folder / 'truth.csv'}: holds no pair")
    boxes_file = folder / "boxes.jsonl"
    boxes = read_boxes(boxes_file) if boxes_file.is_file() else {}
    digest = hashlib.sha256()
    for table in ("catalogue.csv", "truth.csv", "boxes.jsonl"):
        if (folder / table).is_file():
            digest.update((folder / table).read_bytes())
    return Benchmark(name or folder.name, items, tuple(truth), boxes, digest.hexdigest()[:10])


def read_picture(path: Path) -> np.ndarray:
    """Upright RGB pixels, (H, W, 3) uint8. Raises ValueError when the file is missing or no picture."""
    try:
        return decode_image(path.read_bytes()).pixels
    except (OSError, ImageError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None


def _table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or [])]
            if missing:
                raise ValueError(f"{path}: missing column {', '.join(missing)}")
            return [{key: value or "" for key, value in row.items() if key} for row in reader]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: cannot be read ({reason}); name a benchmark's folder") from None


def _truth_pair(row: Mapping[str, str], where: str) -> TruthPair:
    group = _GROUP_ALIASES.get(row["group"], row["group"])
    if group not in GROUPS:
        raise ValueError(f"{where}: unknown group {row['group']!r}; known: {', '.join(GROUPS)}")
    if row["relation"] not in RELATIONS:
        raise ValueError(f"{where}: unknown relation {row['relation']!r}; known: {', '.join(RELATIONS)}")
    modified = _names(row["modified"])
    regions = {region for part in modified for region in _regions_of(part)}
    if unknown := regions - set(REGIONS):
        raise ValueError(f"{where}: unknown region {unknown.pop()!r}; known: sleeves, {', '.join(REGIONS)}")
    return TruthPair(
        row["original"],
        row["copy"],
        row["relation"],
        group,
        parts_of(regions),
        frozenset(regions),
        _names(row.get("kinds", "")),
        row.get("mirrored", "") == "1",
        _names(row.get("photographic", "")),
    )


def parts_of(regions: Iterable[str]) -> frozenset[str]:
    """Parts of a design: the paper's Table 1 counts both sleeves as one."""
    return frozenset("sleeves" if "sleeve" in region else region for region in regions)


def _regions_of(part: str) -> tuple[str, ...]:
    return ("left_sleeve", "right_sleeve") if part == "sleeves" else (part,)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split("|") if part)
