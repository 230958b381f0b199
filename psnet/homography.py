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
