"""Plane projective maps: how a flat garment lands in a photograph."""

from __future__ import annotations

import numpy as np


def homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The 3 × 3 float64 matrix that maps four points (4, 2) onto four others, its last element 1."""
    rows = []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    solution = np.linalg.solve(np.asarray(rows, np.float64), target.reshape(-1).astype(np.float64))
    return np.append(solution, 1.0).reshape(3, 3)


def project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (..., 2) mapped by a homography."""
    mapped = points @ matrix[:, :2].T + matrix[:, 2]
    return mapped[..., :2] / mapped[..., 2:]


def moved_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Axis-aligned boxes (n, 4) about where a homography takes the middles of their sides."""
    x0, y0, x1, y1 = boxes.T
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    middles = project(matrix, np.stack([np.stack([x0, x, x1, x], 1), np.stack([y, y0, y, y1], 1)], -1))
    return np.concatenate([middles.min(1), middles.max(1)], 1)
