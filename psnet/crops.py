"""Cutting a garment, and its regions, out of a photograph: the same function in training and in service."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Share of the box added on every side of a garment before it is cut out, so that its outline is seen.
GARMENT_MARGIN = 0.06
# The same for regions: a collar's neighbourhood tells how it is set in, and boxes are a few pixels off
# anyway.
REGION_MARGIN = 0.05


def expand(box: np.ndarray, margin: float, width: int, height: int) -> np.ndarray:
    """Boxes (..., 4) grown by ``margin`` of their sides, clipped to the picture and at least 2 px wide."""
    size = box[..., 2:] - box[..., :2]
    centre, half = box[..., :2] + 0.5 * size, np.maximum((0.5 + margin) * size, 1.0)
    grown = np.concatenate([centre - half, centre + half], -1)
    limit = np.array([width, height, width, height], np.float32)
    grown = np.clip(grown, 0, limit)
    low = np.minimum(grown[..., :2], limit[:2] - 2)
    return np.concatenate([low, np.maximum(grown[..., 2:], low + 2)], -1).astype(np.float32)


def whole_frame(width: float, height: float, fit: str) -> np.ndarray:
    """The frame (4,) of a picture that a square is made of: all of it ("stretch"), or the middle square
    ("centre", the same as resizing the shorter side and cutting out the middle)."""
    if fit == "stretch":
        return np.array([0, 0, width, height], np.float32)
    side = min(width, height)
    x, y = (width - side) / 2, (height - side) / 2
    return np.array([x, y, x + side, y + side], np.float32)


def log_aspect(frames: np.ndarray) -> np.ndarray:
    """Frames (..., 4) -> (...) float32, the logarithm of width over height."""
    size = np.maximum(frames[..., 2:] - frames[..., :2], 1e-3)
    return np.log(size[..., 0] / size[..., 1]).astype(np.float32)


def cut(image: Image.Image, box: np.ndarray, side: int) -> np.ndarray:
    """The box of ``image``, resized to (side, side, 3) uint8 with antialiasing; the aspect ratio is not
    kept."""
    x0, y0, x1, y1 = (float(v) for v in box)
    small = image.resize((side, side), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1), reducing_gap=2.0)
    return np.asarray(small)


def cut_regions(image: Image.Image, boxes: np.ndarray, side: int) -> np.ndarray:
    """Boxes (5, 4) px, NaN where absent -> (5, side, side, 3) uint8, mid-grey where absent."""
    out = np.full((len(boxes), side, side, 3), 128, np.uint8)
    for r, box in enumerate(boxes):
        if not np.isnan(box[0]):
            out[r] = cut(image, expand(box, REGION_MARGIN, image.width, image.height), side)
    return out


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(..., H, W, 3) uint8 -> (..., 3, H, W) float32 in 0…1."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, -3))).float() / 255
