"""Labels for unlabelled photographs, made by a trained network (pseudo-labels; Lee, ICML workshop 2013).

The retrieval branch learns from many garments more than from exact boxes: a photograph whose garment a first
network places with confidence is as good a design to photograph anew and to edit as a hand-labelled one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from psnet.boxes import extents
from psnet.data.photographs import label_row, read_pixels
from psnet.data.rephotograph import LEAST_SIDE
from psnet.predictor import Garment, Predictor
from psnet.regions import Presence
from psnet.taxonomy import Taxonomy

# A landmark the network would bet on counts as visible, any other as estimated.
VISIBLE = 0.5


def is_confident(garment: Garment, min_score: float, min_presence: float) -> bool:
    """Whether the network's word on this garment may be learnt from: found with ``min_score`` in a box of
    some size, every region's presence said with ``min_presence`` at least, and none of them hidden (labels
    know no hidden regions)."""
    if extents(garment.box).min() < LEAST_SIDE:
        return False
    hidden = (garment.presence == Presence.HIDDEN).any()
    return bool(garment.score >= min_score and not hidden and garment.presence_score.min() >= min_presence)


def pseudo_row(path: Path, garment: Garment) -> dict[str, object]:
    """One line of a label file for the garment found in ``path``; the path is written whole."""
    height, width = read_pixels(path).shape[:2]
    points = garment.landmarks.copy()
    points[:, 2] = np.where(points[:, 2] >= VISIBLE, 2, 1)
    sleeves = [n for n in Taxonomy.load("clothing11").landmarks if n.endswith("_sleeve")]
    names = Taxonomy.load("clothing11").landmarks
    for name, region in zip(sleeves, (1, 2), strict=True):
        if garment.presence[region] == Presence.ABSENT:
            points[names.index(name)] = 0
    boxes = np.where((garment.presence == Presence.PRESENT)[:, None], garment.region_boxes, np.nan)
    return label_row(
        image=str(path.resolve()),
        size=(width, height),
        category=garment.category,
        box=garment.box,
        landmarks=points,
        region_boxes=boxes,
    )


def write_pseudo_labels(
    predictor: Predictor,
    images: Sequence[tuple[Path, str | None]],
    out: Path,
    min_score: float,
    min_presence: float,
    batch: int = 16,
) -> int:
    """Label the surest garment of every picture where the network is sure; returns the number of lines.

    ``images``: pictures, each with the group of its garment where that is known: the network's word must
    agree with it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    count = 0
    with temporary.open("w", encoding="utf-8") as file:
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            pixels = [read_pixels(path) for path, _ in part]
            for (path, group), garments in zip(part, predictor.predict(pixels), strict=True):
                if not garments or group not in (None, garments[0].group):
                    continue
                if is_confident(garments[0], min_score, min_presence):
                    file.write(json.dumps(pseudo_row(path, garments[0])) + "\n")
                    count += 1
    os.replace(temporary, out)
    return count
