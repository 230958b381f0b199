"""How far the region boxes that a trained network finds miss the true ones: what the retrieval branch has to
bear. Few are far off, and those few by much (kurtosis above 20), which no normal noise resembles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from psnet.boxes import overlaps
from psnet.data.photographs import LabelledGarment
from psnet.predictor import Predictor
from psnet.regions import NUM_REGIONS

# Found elsewhere is another garment, not a miss.
SAME_GARMENT = 0.5
# Beyond half a side there may be nothing of the region left to learn from.
GREATEST = 0.5


def measured_misses(
    predictor: Predictor, garments: Sequence[LabelledGarment], batch: int = 16
) -> list[np.ndarray]:
    """For each region (m, 4) float32: found less true edges, as shares of the true box's sides, at most
    ``GREATEST``; only of garments and regions that are found.

    Raises:
        ValueError: a region that is found in none of them.
    """
    misses: list[list[np.ndarray]] = [[] for _ in range(NUM_REGIONS)]
    for start in range(0, len(garments), batch):
        part = garments[start : start + batch]
        for garment, found in zip(part, predictor.predict([g.read() for g in part]), strict=True):
            boxes = [one.box for one in found]
            if not boxes:
                continue
            shared = overlaps(np.stack(boxes), garment.box)
            if shared.max() < SAME_GARMENT:
                continue
            true = garment.region_boxes
            sides = np.tile(true[:, 2:] - true[:, :2], 2)
            for r, miss in enumerate((found[int(shared.argmax())].region_boxes - true) / sides):
                if np.isfinite(miss).all():
                    misses[r].append(np.clip(miss, -GREATEST, GREATEST))
    for r, rows in enumerate(misses):
        if not rows:
            raise ValueError(f"region {r} is found in none of {len(garments)} garments; train longer")
    return [np.array(rows, np.float32) for rows in misses]
