"""Maps between photographs of cloth: a plane projective one, and how far the cloth was bent off the plane.

A garment laid down anew lands nearly as a flat sheet does; sleeves turn, hems slide and lenses bend besides.
What the homography leaves is smooth: shifts on a coarse grid about the garment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from psnet.homography import project

Place = Callable[[np.ndarray], np.ndarray]
"""Where points (..., 2) of one picture lie in another."""

NODES = 9
"""Nodes of the grid of shifts, each way."""
# Of the garment's box, that the grid reaches beyond it on each side.
_MARGIN = 0.1
# A shift moves a point by a small share of the grid's cells: fixed-point iteration gains a digit a step.
_STEPS = 6


@dataclass(frozen=True)
class Warp:
    """``matrix`` (3, 3) float64, from pixels of one photograph to those of another; ``box`` (4,) px of the
    garment in the one; ``shifts`` (NODES, NODES, 2) float64 px of the other, rows first, on a grid over the
    enlarged box, bilinear in between, as on its edge beyond."""

    matrix: np.ndarray
    box: np.ndarray
    shifts: np.ndarray

    @classmethod
    def flat(cls, matrix: np.ndarray, box: np.ndarray) -> Warp:
        """The homography alone."""
        return cls(matrix, box, np.zeros((NODES, NODES, 2)))

    @classmethod
    def of(cls, matrix: np.ndarray, box: np.ndarray, place: Place) -> Warp:
        """The warp that agrees with ``place`` at the nodes."""
        at = nodes(box)
        return cls(matrix, box, place(at) - project(matrix, at))

    def place(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) of the one photograph, in the other. NaN stays NaN."""
        return project(self.matrix, points) + self._shifts_at(points)

    def back(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) of the other photograph, in the one."""
        inverse = np.linalg.inv(self.matrix)
        found = project(inverse, points)
        if self.shifts.any():
            for _ in range(_STEPS):
                found = project(inverse, points - self._shifts_at(found))
        return found

    def _shifts_at(self, points: np.ndarray) -> np.ndarray:
        low, size = _frame(self.box)
        at = np.clip(np.nan_to_num((points - low) / size), 0, 1 - 1e-9) * (NODES - 1)
        cell = at.astype(int)
        right, down = np.moveaxis(at - cell, -1, 0)[..., None]
        x, y = np.moveaxis(cell, -1, 0)
        upper = (1 - right) * self.shifts[y, x] + right * self.shifts[y, x + 1]
        lower = (1 - right) * self.shifts[y + 1, x] + right * self.shifts[y + 1, x + 1]
        return (1 - down) * upper + down * lower


def nodes(box: np.ndarray) -> np.ndarray:
    """(NODES, NODES, 2) float64 px: where the grid about a garment's box (4,) has its nodes."""
    low, size = _frame(box)
    steps = np.linspace(0, 1, NODES)
    return low + size * np.stack(np.meshgrid(steps, steps), -1)


def _frame(box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    box = np.asarray(box, np.float64)
    size = np.maximum(box[2:] - box[:2], 1.0)
    return box[:2] - _MARGIN * size, size * (1 + 2 * _MARGIN)


def warped(
    image: Image.Image,
    size: tuple[int, int],
    place: Place,
    outside: tuple[int, ...] | int = 0,
    pieces: int = 4,
) -> Image.Image:
    """A picture of ``size`` (width, height), each of whose points is taken from where ``place`` puts it in
    ``image``; ``outside`` of it one colour. Done in so many ``pieces`` each way, by a bilinear map each."""
    xs, ys = (np.linspace(0, side, pieces + 1).round().astype(int) for side in size)
    grid = place(np.stack(np.meshgrid(xs, ys), -1).astype(np.float64))
    mesh = [
        (
            (int(xs[i]), int(ys[j]), int(xs[i + 1]), int(ys[j + 1])),
            tuple(np.concatenate([grid[j, i], grid[j + 1, i], grid[j + 1, i + 1], grid[j, i + 1]]).tolist()),
        )
        for j in range(pieces)
        for i in range(pieces)
    ]
    return image.transform(size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR, fillcolor=outside)
