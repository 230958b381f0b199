"""Rendered photographs as a label file: the layout of `psnet.data.photographs`, so that training reads one
format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from psnet.data.photographs import label_row
from psnet.regions import Presence
from psnet.render.design import sample_design
from psnet.render.photo import Photograph, photograph_design
from psnet.taxonomy import TORSO_CATEGORIES, to_clothing11


def photograph_row(photograph: Photograph, image: str, mask: str) -> dict[str, object]:
    """One line of labels.jsonl; ``image`` and ``mask`` are paths relative to it."""
    height, width = photograph.pixels.shape[:2]
    return label_row(
        image=image,
        mask=mask,
        size=(width, height),
        category=photograph.category,
        box=photograph.box,
        landmarks=to_clothing11(photograph.category, photograph.landmarks),
        region_boxes=photograph.region_boxes,
    )


def write_labels(out: Path, count: int, seed: int = 0) -> Path:
    """Render ``count`` designs, one photograph each, every region in view; returns the path of labels.jsonl.

    Categories take turns. Design i depends on (seed, i) alone. Raises ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"count: at least 1 photograph, not {count}")
    (out / "images").mkdir(parents=True, exist_ok=True)
    (out / "masks").mkdir(exist_ok=True)
    rows: list[dict[str, object]] = []
    index = 0
    while len(rows) < count:
        rng = np.random.default_rng((seed, index))
        design = sample_design(rng, TORSO_CATEGORIES[index % len(TORSO_CATEGORIES)])
        photograph = photograph_design(design, rng)
        index += 1
        # The label layout knows no hidden regions: those come from cutting the frame in training.
        if (photograph.presence == Presence.HIDDEN).any():
            continue
        name = f"rendered-{seed}-{index - 1:05d}"
        Image.fromarray(photograph.pixels).save(out / "images" / f"{name}.jpg", quality=92)
        Image.fromarray(photograph.mask).save(out / "masks" / f"{name}.png", optimize=True)
        rows.append(photograph_row(photograph, f"images/{name}.jpg", f"masks/{name}.png"))
    path = out / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
