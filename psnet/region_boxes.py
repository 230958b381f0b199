"""Five region boxes from a garment's landmarks (PS-Net, section 4.2): geometry, no learning.

Collar: the neckline's landmarks, up to the garment's top (a hood or lapels belong to it). Sleeves: from the
shoulder to the cuff, out to the garment's side. Chest: from the neckline's bottom to half-way between armpit
and hem, or to the waistline on dresses. Waist: the rest, down to the hem.
"""

from __future__ import annotations

import numpy as np

from psnet.regions import NUM_REGIONS
from psnet.taxonomy import Taxonomy, to_clothing11

# Along the outline: right of the neckline, down one side and up the other. Hems are told worst.
_TORSO = tuple(
    Taxonomy.load("clothing11").landmarks.index(name)
    for name in (
        "right_collar",
        "right_armpit",
        "right_waistline",
        "left_waistline",
        "left_armpit",
        "left_collar",
    )
)


def boxes_from_points(points: np.ndarray, box: np.ndarray, dress: np.ndarray | bool) -> np.ndarray:
    """Region boxes from the eleven points of ``clothing11``.

    points (..., 11, 2) px, box (..., 4) xyxy px of the garment, dress (...) bool -> (..., 5, 4) xyxy px.
    Sleeve boxes are given for every garment; presence says whether they mean anything.
    """
    (l_neck, r_neck, neck, l_pit, r_pit, l_cuff, r_cuff, l_waist, r_waist, l_hem, r_hem) = np.moveaxis(
        points, -2, 0
    )
    x, y = 0, 1
    x0, y0, x1, y1 = np.moveaxis(box, -1, 0)
    pit = 0.5 * (l_pit[..., y] + r_pit[..., y])
    hem = 0.5 * (l_hem[..., y] + r_hem[..., y])
    middle = np.where(dress, 0.5 * (l_waist[..., y] + r_waist[..., y]), 0.5 * (pit + hem))
    out = np.empty((*points.shape[:-2], NUM_REGIONS, 4), np.float32)
    neck_top = np.minimum(y0, np.minimum(l_neck[..., y], r_neck[..., y]))
    edges = np.minimum(l_neck[..., x], r_neck[..., x]), np.maximum(l_neck[..., x], r_neck[..., x])
    out[..., 0, :] = np.stack([edges[0], neck_top, edges[1], np.maximum(neck[..., y], neck_top + 1)], -1)
    for r, side, cuff, pit_point, neck_point in (
        (1, x0, l_cuff, l_pit, l_neck),
        (2, x1, r_cuff, r_pit, r_neck),
    ):
        shoulder = 0.5 * (neck_point[..., y] + pit_point[..., y])
        outer = np.minimum(side, cuff[..., x]) if r == 1 else np.maximum(side, cuff[..., x])
        low, high = np.minimum(outer, pit_point[..., x]), np.maximum(outer, pit_point[..., x])
        bottom = np.maximum(cuff[..., y], pit_point[..., y])
        out[..., r, :] = np.stack([low, np.minimum(shoulder, bottom - 1), high, bottom], -1)
    out[..., 3, :] = np.stack([l_pit[..., x], neck[..., y], r_pit[..., x], middle], -1)
    left, right = np.minimum(l_hem[..., x], l_waist[..., x]), np.maximum(r_hem[..., x], r_waist[..., x])
    out[..., 4, :] = np.stack([left, middle, right, np.maximum(y1, middle + 1)], -1)
    # Crossed landmarks (a garment upside down) still give boxes with a positive area.
    low, high = np.minimum(out[..., :2], out[..., 2:]), np.maximum(out[..., :2], out[..., 2:])
    return np.concatenate([low, np.maximum(high, low + 1)], -1)


def torso_outline(points: np.ndarray) -> np.ndarray:
    """The eleven points of ``clothing11`` (11, 2) -> corners (6, 2) of the garment from the neckline to the
    waistline, without its sleeves: what lies between lies on the garment."""
    return points[list(_TORSO)]


def regions_from_landmarks(
    landmarks: np.ndarray, category: str, box: np.ndarray, taxonomy: str = "clothing11"
) -> np.ndarray:
    """Region boxes of one garment, (5, 4) xyxy px; sleeves of a sleeveless category are NaN.

    landmarks (K, 3) x, y, visibility: all eleven of ``clothing11``, or the category's own of
    ``deepfashion2``, whose labelled collar and sleeve points then bound these regions directly. Raises
    ValueError for legwear.
    """
    known = Taxonomy.load(taxonomy).category(category)
    points = landmarks if taxonomy == "clothing11" else to_clothing11(category, landmarks)
    boxes = boxes_from_points(points[:, :2], box, "dress" in category)
    if "sleeve" not in category:
        boxes[1:3] = np.nan
    for r, part in ((0, "collar"), (1, "left_sleeve"), (2, "right_sleeve")):
        if part in known.parts:
            own = landmarks[list(known.parts[part])]
            own = own[own[:, 2] > 0, :2]  # what was not labelled stands at (0, 0)
            if len(own) > 1:
                boxes[r] = np.concatenate([own.min(0), own.max(0)])
    return boxes
