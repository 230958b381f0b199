"""Lay one photograph of a garment upon another: whether they show the very same thing, and where.

Whoever sells a copy often takes the original's photograph, changes a part of it and cuts it out anew. Local
features find such a pair without having learnt anything: RootSIFT (Arandjelović and Zisserman, CVPR 2012) of
the garment alone, Lowe's ratio test, mutual nearest neighbours, and a homography by MAGSAC++ (Baráth et al.,
CVPR 2020). How the cloth was bent besides is told by more points, which agree near where the homography puts
them. All of it says nothing about a garment photographed anew from elsewhere, or a plain one: then no
registration is found, and none is evidence of nothing.

Needs opencv.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np

from psnet.boxes import areas, corners, extents, mirror_boxes, moved_boxes, overlaps
from psnet.crops import expand
from psnet.homography import project
from psnet.warp import Warp, nodes

# Longer side of a garment's picture, and the most points in it.
_SIDE = 400
_POINTS = 800
_MARGIN = 0.08
# How far around the garment the floor is looked at and how far off its points may land, as shares of its box.
_AROUND, _AROUND_OFF = 0.25, 0.03
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
# How the cloth was bent is found in rounds: how far from where it is thought to be a point is looked for, and
# how far off it counts for a quarter, as shares of the longer side of the garment.
_ROUNDS = ((0.06, 0.01), (0.06, 0.005), (0.03, 0.005))
_REWEIGHTED = 4
# Near a place that is known, fewer points compete: a looser ratio, but some likeness.
_NEAR_RATIO, _LEAST_COSINE = 0.9, 0.7
# How much cloth may be bent (the likeliest is taken), how far off points are, and over what distance bends
# are alike; in shares of the longer side of the garment.
_BENT = (0.002, 0.006, 0.018, 0.05)
_POINT_NOISE = 0.003
_ALIKE = 0.45


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

    @property
    def size(self) -> float:
        """Longer side of the garment, px."""
        return float(extents(self.box).max())

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
    """``warp`` maps the first picture's pixels to the second's; ``at`` and ``onto`` (n, 2) px of the one and
    of the other: the pairs of points that agree with its homography."""

    warp: Warp
    at: np.ndarray
    onto: np.ndarray

    @property
    def points(self) -> int:
        """How many they are."""
        return len(self.at)


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


def find_keypoints(picture: np.ndarray, box: np.ndarray, around: bool = False) -> Keypoints:
    """Local features of one garment.

    Args:
        picture: (H, W, 3) uint8 RGB. box: (4,) xyxy px. around: of what surrounds it instead.

    Raises:
        ValueError: opencv is not installed.
    """
    cv2 = load_opencv("registering photographs")
    height, width = picture.shape[:2]
    box = np.asarray(box, np.float32)
    x0, y0, x1, y1 = _pixels(expand(box, _MARGIN, width, height))
    scale = _SIDE / max(x1 - x0, y1 - y0)
    if around:
        x0, y0, x1, y1 = _pixels(expand(box, _AROUND, width, height))
    size = (max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    grey = cv2.cvtColor(cv2.resize(picture[y0:y1, x0:x1], size, interpolation=how), cv2.COLOR_RGB2GRAY)
    grey = cv2.createCLAHE(2.0, (4, 4)).apply(grey)
    searched = None
    if around:
        left, top, right, bottom = np.round((box - (x0, y0, x0, y0)) * scale).astype(int).clip(0)
        searched = np.full(grey.shape, 255, np.uint8)
        searched[top:bottom, left:right] = 0
    found, described = cv2.SIFT_create(nfeatures=_POINTS, contrastThreshold=_CONTRAST).detectAndCompute(
        grey, searched
    )
    if described is None:
        found, described = [], np.zeros((0, 128), np.float32)
    points = np.array([p.pt for p in found], np.float32).reshape(-1, 2) / np.float32(scale)
    points = points + np.array([x0, y0], np.float32)
    root = root_sift(described).astype(np.float32)
    # Two garments on one floor: what surrounds them must not speak for them.
    wanted = ((points >= box[:2]) & (points <= box[2:])).all(1) != around
    return Keypoints(points[wanted], root[wanted], box, width, scale)


def _pixels(frame: np.ndarray) -> list[int]:
    """A frame (4,) in whole pixels, one at least each way."""
    x0, y0, x1, y1 = np.round(frame).astype(int).tolist()
    return [x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)]


def surroundings_agree(one: Keypoints, other: Keypoints, warp: Warp) -> int:
    """How many points around the two garments (``find_keypoints`` with ``around``) lie where ``warp`` puts
    them: more than a few, and the photographs show one floor, whatever lies on it."""
    if min(len(one.points), len(other.points)) < 2:
        return 0
    first, second = _agreeing(one.descriptors @ other.descriptors.T, _RATIO)
    off = np.linalg.norm(warp.place(one.points[first]) - other.points[second], axis=1)
    return int((off < _AROUND_OFF * other.size).sum())


def register(one: Keypoints, other: Keypoints) -> Registration | None:
    """How the one picture lies upon the other, None where too few points agree with any homography, or where
    it does not take the garment to the garment. The same call gives the same answer.

    Raises:
        ValueError: opencv is not installed.
    """
    cv2 = load_opencv("registering photographs")
    if min(len(one.points), len(other.points)) < LEAST_POINTS:
        return None
    cosines = one.descriptors @ other.descriptors.T
    first, second = _agreeing(cosines, _RATIO)
    if len(first) < LEAST_POINTS:
        return None
    cv2.setRNGSeed(0)
    matrix, inside = cv2.findHomography(
        one.points[first],
        other.points[second],
        cv2.USAC_MAGSAC,
        _TOLERANCE / other.scale,
        maxIters=2000,
        confidence=0.999,
    )
    if matrix is None or inside.sum() < LEAST_POINTS or not _lands(matrix, one.box, other.box):
        return None
    agree = inside.ravel().astype(bool)
    warp = _bent(matrix, one, other, cosines)
    return Registration(warp, one.points[first[agree]], other.points[second[agree]])


def _bent(matrix: np.ndarray, one: Keypoints, other: Keypoints, cosines: np.ndarray) -> Warp:
    """The warp that takes points where they agree near the homography's place, smoothly.

    A Gaussian process over the garment about the homography; its points are weighted anew by Geman and
    McClure's function, since some agree by chance.
    """
    size, unit = other.size, one.size
    flat = project(matrix, one.points)
    where, bends = flat, None
    for radius, scale in _ROUNDS:
        near = _squares(where.astype(np.float32), other.points) < (radius * size) ** 2
        first, second = _agreeing(np.where(near, cosines, np.float32(-1)), _NEAR_RATIO)
        alike = cosines[first, second] > _LEAST_COSINE
        first, second = first[alike], second[alike]
        if len(first) < LEAST_POINTS:
            break
        bends = _Bends(one.points[first] / unit, (other.points[second] - flat[first]) / size, scale)
        where = flat + size * bends.at(one.points / unit)
    box = one.box.astype(np.float64)
    if bends is None:
        return Warp.flat(matrix, box)
    at = nodes(box)
    return Warp(matrix, box, size * bends.at(at.reshape(-1, 2) / unit).reshape(at.shape))


class _Bends:
    """Gaussian-process regression (Rasmussen and Williams, 2006, section 2.2) of shifts (n, 2) at points
    (n, 2), with as much bending as makes them likeliest."""

    def __init__(self, points: np.ndarray, shifts: np.ndarray, scale: float) -> None:
        self._points = points
        alike = _alike(points, points)
        even = _POINT_NOISE**2 * np.eye(len(points))
        bent = max(_BENT, key=lambda much: _likelihood(much**2 * alike + even, shifts))
        counts = np.ones(len(points))
        for _ in range(_REWEIGHTED):
            noise = np.diag(_POINT_NOISE**2 / counts)
            self._weights = bent**2 * np.linalg.solve(bent**2 * alike + noise, shifts)
            left = ((shifts - alike @ self._weights) ** 2).sum(1)
            counts = np.maximum((1 + left / scale**2) ** -2, 1e-4)

    def at(self, points: np.ndarray) -> np.ndarray:
        """(n, 2) at points (n, 2)."""
        return _alike(points, self._points) @ self._weights


def _likelihood(covariance: np.ndarray, shifts: np.ndarray) -> float:
    """Logarithm of, up to a constant; the two coordinates are independent."""
    fit = float((shifts * np.linalg.solve(covariance, shifts)).sum())
    return -0.5 * fit - float(np.linalg.slogdet(covariance)[1])


def _alike(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * _squares(points, others) / _ALIKE**2)


def within(outline: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(n,) bool: which of the points (n, 2) lie in a polygon with the corners (k, 2).

    Raises:
        ValueError: opencv is not installed.
    """
    cv2 = load_opencv("registering photographs")
    corners = np.asarray(outline, np.float32)
    tested = [cv2.pointPolygonTest(corners, (float(x), float(y)), False) >= 0 for x, y in points]
    return np.array(tested, bool)


def _squares(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, m) squared distances of points (n, 2) and (m, 2)."""
    across, along = (points[:, None, axis] - others[None, :, axis] for axis in (0, 1))
    return across * across + along * along


def _agreeing(cosines: np.ndarray, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Mutual nearest neighbours nearer than ``ratio`` times the next one (Lowe's ratio test), as rows and
    columns; a cosine of -1 is out of reach."""
    rows = np.arange(len(cosines))
    first = cosines.argmax(1)
    mutual = cosines.argmax(0)[first] == rows
    best = cosines[rows, first]
    others = cosines.copy()
    others[rows, first] = -1
    near, far = (np.sqrt(np.maximum(2 - 2 * value, 0)) for value in (best, others.max(1)))
    good = mutual & (best > -1) & (near < ratio * far)
    return rows[good], first[good]


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
    moved = moved_boxes(box[None], partial(project, matrix))[0]
    grown = areas(moved) / max(areas(other), 1.0)
    return bool(1 / _MOST_GROWN < grown < _MOST_GROWN and overlaps(moved, other) > _LEAST_OVERLAP)
