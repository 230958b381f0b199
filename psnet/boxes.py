"""Boxes xyxy as arrays: how much of one lies in another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def areas(boxes: np.ndarray) -> np.ndarray:
    """Boxes (..., 4) -> (...); 0 for empty ones."""
    return np.prod(np.clip(boxes[..., 2:] - boxes[..., :2], 0, None), -1)


def intersections(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Area that boxes (..., 4) share with others (..., 4), which broadcast -> (...)."""
    low = np.maximum(boxes[..., :2], others[..., :2])
    high = np.minimum(boxes[..., 2:], others[..., 2:])
    return areas(np.concatenate([low, high], -1))


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (..., 4) and others (..., 4), which broadcast -> (...) float64; 0 for
    empty boxes."""
    both = intersections(boxes, others)
    union = areas(boxes) + areas(others) - both
    return np.divide(both, union, out=np.zeros_like(both, np.float64), where=union > 0)


def extents(boxes: np.ndarray) -> np.ndarray:
    """Boxes (..., 4) -> (..., 4): width, height, width, height, the side that each number lies along."""
    return np.tile(boxes[..., 2:] - boxes[..., :2], 2)


def corners(boxes: np.ndarray) -> np.ndarray:
    """Boxes (..., 4) -> (..., 4, 2): upper left, upper right, lower right, lower left."""
    x0, y0, x1, y1 = np.moveaxis(boxes, -1, 0)
    return np.stack([np.stack([x0, x1, x1, x0], -1), np.stack([y0, y0, y1, y1], -1)], -1)


def mirror_boxes(boxes: np.ndarray, width: float) -> np.ndarray:
    """Boxes (..., 4) in the mirror image of a picture ``width`` px wide."""
    return np.stack([width - boxes[..., 2], boxes[..., 1], width - boxes[..., 0], boxes[..., 3]], -1)


def moved_boxes(boxes: np.ndarray, place: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Axis-aligned boxes (n, 4) about where ``place``, points (..., 2) to points, takes the middles of their
    sides."""
    x0, y0, x1, y1 = boxes.T
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    middles = place(np.stack([np.stack([x0, x, x1, x], 1), np.stack([y0, y, y, y1], 1)], -1))
    return np.concatenate([middles.min(1), middles.max(1)], 1)
