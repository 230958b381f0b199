"""A plagiarism benchmark in the product's own formats: a catalogue of photographs and the truth about it.

Lenient where `psnet.data.plagiarized_fashion` is strict: any catalogue with a truth can be measured on.

catalogue.csv   item_id, image (path relative to the file), seller_id
truth.csv       see `psnet.evaluation.truth`
boxes.jsonl     optional, a line per item: item_id, bbox and regions as xyxy in pixels
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from psnet.data.csv_files import read_csv
from psnet.data.plagiarized_fashion import ItemBoxes, read_boxes
from psnet.evaluation.truth import TruthPair, designs, read_truth
from psnet.image import ImageError, decode_image


@dataclass(frozen=True)
class Item:
    """One row of the catalogue."""

    item_id: str
    image: Path
    seller_id: str


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
        return designs(self.truth)

    def picture(self, row: int) -> np.ndarray:
        """The photograph of the item in this row, see `read_picture`."""
        return read_picture(self.items[row].image)

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


def read_benchmark(folder: Path, name: str | None = None) -> Benchmark:
    """Read the tables of a benchmark; pictures are read when they are needed.

    Raises:
        ValueError: a missing or malformed table; the message is one line with file and reason.
    """
    try:
        catalogue = [row for _, row in read_csv(folder / "catalogue.csv", ("item_id", "image", "seller_id"))]
        truth = read_truth(folder / "truth.csv")
    except OSError as error:
        raise ValueError(
            f"{error.filename}: cannot be read ({error.strerror}); name a benchmark's folder"
        ) from None
    items = tuple(Item(row["item_id"], folder / row["image"], row["seller_id"]) for row in catalogue)
    known = {item.item_id for item in items}
    if len(known) != len(items):
        raise ValueError(f"{folder / 'catalogue.csv'}: an item_id stands twice")
    if strange := next((name for p in truth for name in (p.original, p.copy) if name not in known), None):
        raise ValueError(f"{folder / 'truth.csv'}: {strange} is not in catalogue.csv")
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
