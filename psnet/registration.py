"""Lay one photograph of a garment upon another: whether they show the very same thing, and where.

Whoever sells a copy often takes the original's photograph, changes a part of it and cuts it out anew. Local
features find such a pair without having learnt anything: RootSIFT (Arandjelović and Zisserman, CVPR 2012) of
the garment alone, Lowe's ratio test, mutual nearest neighbours, and a homography by MAGSAC++ (Baráth et al.,
CVPR 2020). It says nothing about a garment photographed anew from elsewhere, or a plain one: then no
registration is found, and none is evidence of nothing.

Needs opencv.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from psnet.boxes import areas, corners, mirror_boxes, overlaps
from psnet.crops import expand
from psnet.homography import moved_boxes, project

# Longer side of a garment's picture, and the most points in it.
_SIDE = 400
_POINTS = 800
_MARGIN = 0.08
# Points of low contrast too: a plain shirt has no others.
_CONTRAST = 0.015
_RATIO = 0.85
# How far (pixels of the reduced picture) a point may land from its partner: cloth is not quite a plane.
_TOLERANCE = 4.0
LEAST_POINTS = 8
"""Below as many agreeing points a homography may be chance, and none is reported."""
# The other garment must be about where the first one lands, and nowhere near turned inside out.
_LEAST_OVERLAP = 0.4
_MOST_GROWN = 16.0


@dataclass(frozen=True)
class Keypoints:
    """Local features of a garment.

    ``points`` (n, 2) float32 px of the picture, ``descriptors`` (n, 128) float32 of unit norm, ``box`` (4,)
    of the garment, ``width`` of the picture in px, ``scale`` px of the reduced picture for one of it.
    """

    points: np.ndarray
    descriptors: np.ndarray
    box: np.ndarray
    width: int
    scale: float

    def flipped(self) -> Keypoints:
        """Those of the picture flipped left to right, without looking at it again: of a descriptor's 4 × 4
        cells of 8 directions, which turn with the point, the rows change places and the directions their
        sign."""
        cells = self.descriptors.reshape(-1, 4, 4, 8)[:, ::-1, :, -np.arange(8) % 8]
        return replace(
            self,
            points=np.stack([self.width - 1 - self.points[:, 0], self.points[:, 1]], 1),
            descriptors=np.ascontiguousarray(cells.reshape(self.descriptors.shape)),
            box=mirror_boxes(self.box, self.width),
        )


@dataclass(frozen=True)
class Registration:
    """``matrix`` (3, 3) float64 maps the first picture's pixels to the second's; ``points``: how many pairs
    of points agree with it."""

    matrix: np.ndarray
    points: int


@cache
def load_opencv(what: str, otherwise: str = "") -> Any:
    """The library; a machine that only trains may be without.

    Args:
        what: that needs it. otherwise: what else mends it.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module("cv2")
    except ImportError:
        raise ValueError(f"{what} needs opencv; install opencv-python-headless{otherwise}") from None


def root_sift(described: np.ndarray) -> np.ndarray:
    """SIFT descriptors (n, 128) as unit vectors, whose products are Hellinger's kernel."""
    return np.sqrt(described / np.maximum(described.sum(1, keepdims=True), 1e-6))


def find_keypoints(picture: np.ndarray, box: np.ndarray) -> Keypoints:
    """Local features of one garment.

    Args:
        picture: (H, W, 3) uint8 RGB. box: (4,) xyxy px.

    Raises:
        ValueError: opencv is not installed.
    """
    cv2 = load_opencv("registering photographs")
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = np.round(expand(np.asarray(box, np.float32), _MARGIN, width, height)).astype(int)
    crop = picture[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
    scale = _SIDE / max(crop.shape[:2])
    size = (max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    grey = cv2.cvtColor(cv2.resize(crop, size, interpolation=how), cv2.COLOR_RGB2GRAY)
    grey = cv2.createCLAHE(2.0, (4, 4)).apply(grey)
    found, described = cv2.SIFT_create(nfeatures=_POINTS, contrastThreshold=_CONTRAST).detectAndCompute(
        grey, None
    )
    if described is None:
        found, described = [], np.zeros((0, 128), np.float32)
    points = np.array([p.pt for p in found], np.float32).reshape(-1, 2) / np.float32(scale)
    points = points + np.array([x0, y0], np.float32)
    root = root_sift(described).astype(np.float32)
    # Two garments on one floor: what surrounds them must not speak for them.
    inside = ((points >= box[:2]) & (points <= box[2:])).all(1)
    return Keypoints(points[inside], root[inside], np.asarray(box, np.float32), width, scale)


def register(one: Keypoints, other: Keypoints) -> Registration | None:
    """The homography from the one picture to the other, None where too few points agree with any, or where
    it does not take the garment to the garment. The same call gives the same answer.

    Raises:
        ValueError: opencv is not installed.
    """
    cv2 = load_opencv("registering photographs")
    if min(len(one.points), len(other.points)) < LEAST_POINTS:
        return None
    cosines = one.descriptors @ other.descriptors.T
    rows = np.arange(len(cosines))
    second, first = np.argpartition(cosines, -2, axis=1)[:, -2:].T
    swapped = cosines[rows, second] > cosines[rows, first]
    first, second = np.where(swapped, second, first), np.where(swapped, first, second)
    near, next_ = (np.sqrt(np.maximum(2 - 2 * cosines[rows, at], 0)) for at in (first, second))
    good = (near < _RATIO * next_) & (cosines.argmax(0)[first] == rows)
    if good.sum() < LEAST_POINTS:
        return None
    cv2.setRNGSeed(0)
    matrix, inside = cv2.findHomography(
        one.points[good],
        other.points[first[good]],
        cv2.USAC_MAGSAC,
        _TOLERANCE / other.scale,
        maxIters=2000,
        confidence=0.999,
    )
    if matrix is None or inside.sum() < LEAST_POINTS or not _lands(matrix, one.box, other.box):
        return None
    return Registration(matrix, int(inside.sum()))


def _lands(matrix: np.ndarray, box: np.ndarray, other: np.ndarray) -> bool:
    """Whether the garment's box lands, unturned, about the other garment's."""
    box = np.asarray(box, np.float64)
    ends = corners(box)
    if (np.c_[ends, np.ones(4)] @ matrix[2] <= 0).any():
        return False
    quad = project(matrix, ends)
    edges = np.roll(quad, -1, 0) - quad
    turns = edges[:, 0] * np.roll(edges[:, 1], -1) - edges[:, 1] * np.roll(edges[:, 0], -1)
    if (turns <= 0).any():
        return False
    moved = moved_boxes(box[None], matrix)[0]
    grown = areas(moved) / max(areas(other), 1.0)
    return bool(1 / _MOST_GROWN < grown < _MOST_GROWN and overlaps(moved, other) > _LEAST_OVERLAP)
