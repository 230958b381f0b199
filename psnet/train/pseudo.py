"""Labels for unlabelled photographs, made by a trained network (pseudo-labels; Lee, ICML workshop 2013).

The retrieval branch learns from many garments more than from exact boxes: a photograph whose garment a first
network places with confidence is as good a design to photograph anew and to edit as a hand-labelled one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from psnet.boxes import extents
from psnet.data.photographs import label_row, read_pixels
from psnet.data.rephotograph import LEAST_SIDE
from psnet.group_head import GROUP_OF_CATEGORY
from psnet.predictor import Garment, Predictor
from psnet.regions import Presence
from psnet.taxonomy import TORSO_CATEGORIES, Taxonomy

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


def category_evidence(known: Iterable[tuple[str, str]], strength: float = 5.0) -> dict[str, np.ndarray]:
    """What a catalogue's own names of categories say of ours: (C,) factors by name, P(ours | name) / P(ours).

    Args:
        known: name and category of every labelled garment of the catalogue. strength: so many garments of
            the usual mixture are seen under every name beforehand.
    """
    counts: dict[str, np.ndarray] = {}
    for name, category in known:
        counts.setdefault(name, np.zeros(len(TORSO_CATEGORIES)))[TORSO_CATEGORIES.index(category)] += 1
    if not counts:
        return {}
    usual = sum(counts.values(), np.full(len(TORSO_CATEGORIES), 0.5))
    usual = usual / usual.sum()
    return {
        name: (count + strength * usual) / (count.sum() + strength) / usual for name, count in counts.items()
    }


def settled_category(chances: np.ndarray, evidence: np.ndarray | None, min_group: float) -> str | None:
    """The category that the network's ``chances`` (C,) and the catalogue's ``evidence`` (C,) agree upon; None
    where their most likely group has a chance below ``min_group``, or where the catalogue makes a dress of
    what the network took for none, or the reverse: the region boxes would be another garment's."""
    both = chances if evidence is None else chances * evidence
    both = both / both.sum()
    if np.bincount(GROUP_OF_CATEGORY, both).max() < min_group:
        return None
    category, alone = TORSO_CATEGORIES[int(both.argmax())], TORSO_CATEGORIES[int(chances.argmax())]
    return category if ("dress" in category) == ("dress" in alone) else None


def write_pseudo_labels(
    predictor: Predictor,
    images: Sequence[tuple[Path, np.ndarray | None]],
    out: Path,
    min_score: float,
    min_presence: float,
    min_group: float,
    batch: int = 16,
) -> int:
    """Label the surest garment of every picture where the network is sure; returns the number of lines.

    ``images``: pictures, each with what its catalogue says of the garment's category
    (``category_evidence``), None for nothing.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    count = 0
    with temporary.open("w", encoding="utf-8") as file:
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            pixels = [read_pixels(path) for path, _ in part]
            for (path, evidence), garments in zip(part, predictor.predict(pixels), strict=True):
                if not garments or not is_confident(garments[0], min_score, min_presence):
                    continue
                category = settled_category(garments[0].category_scores, evidence, min_group)
                if category is not None:
                    row = pseudo_row(path, replace(garments[0], category=category))
                    file.write(json.dumps(row) + "\n")
                    count += 1
    os.replace(temporary, out)
    return count
