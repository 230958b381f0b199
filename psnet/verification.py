"""Geometric verification of a pair: can one photograph be laid upon the other, and what was changed then?

    two photographs ─ `psnet.registration` ─▶ warp ─ `psnet.comparison` ─▶ log-odds of change per region

Features find what is alike among all pairs; this looks again at the few pairs that they found. Where the
photographs can be laid upon each other they show the very same garment, however much of it was edited, and
the regions are compared at the very same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from psnet.boxes import mirror_boxes
from psnet.comparison import RegionComparison, boxes_to_look_at, cut_both, log_odds
from psnet.homography import project
from psnet.region_boxes import torso_outline
from psnet.regions import MIRROR, NUM_REGIONS, Presence
from psnet.registration import (
    LEAST_POINTS,
    Keypoints,
    Registration,
    find_keypoints,
    register,
    surroundings_agree,
    within,
)
from psnet.taxonomy import Taxonomy
from psnet.warp import nodes
from psnet.weights import load_comparison

METHOD = 5
"""Counts up when the same weights and photographs get another answer."""
# Agreeing points that must lie on both garments, or else half of the landmarks nearer than this share of the
# garment's longer side.
_LEAST_ON_GARMENT = 4
_LANDMARKS_OFF = 0.12
# From so many agreeing points around the garments on, the photographs show one floor.
_SAME_FLOOR = 4


@dataclass(frozen=True)
class Sight:
    """A garment in its photograph, ready to be compared.

    ``pixels`` (H, W, 3) uint8 RGB, ``region_boxes`` (5, 4) px of it, NaN where the region is not to be seen,
    ``landmarks`` (11, 2) px of it, in the order of ``clothing11``.
    """

    pixels: np.ndarray
    region_boxes: np.ndarray
    landmarks: np.ndarray
    keypoints: Keypoints

    @classmethod
    def of(
        cls,
        pixels: np.ndarray,
        box: np.ndarray,
        region_boxes: np.ndarray,
        presence: np.ndarray,
        landmarks: np.ndarray,
    ) -> Sight:
        """
        Args:
            pixels: (H, W, 3) uint8 RGB. box: (4,) and region_boxes: (5, 4) px of it. presence: (5,) codes of
                ``psnet.regions.Presence``. landmarks: (11, 2 or more), x and y px first.
        """
        seen = np.where((presence == Presence.PRESENT)[:, None], region_boxes, np.nan).astype(np.float32)
        return cls(pixels, seen, landmarks[:, :2].astype(np.float32), find_keypoints(pixels, box))

    def flipped(self) -> Sight:
        """The photograph flipped left to right; what was the left sleeve is the right one."""
        width = self.pixels.shape[1]
        boxes = mirror_boxes(self.region_boxes[list(MIRROR)], width)
        points = self.landmarks[Taxonomy.load("clothing11").swap] * (-1, 1) + (width, 0)
        return Sight(np.ascontiguousarray(self.pixels[:, ::-1]), boxes, points, self.keypoints.flipped())


@dataclass(frozen=True)
class Verification:
    """Of two photographs that can be laid upon each other.

    ``points``: local features that agree. ``mirrored``: one of them has to be flipped. ``matrix`` (3, 3)
    float64: from the first one's pixels to the second's, the flip included, but for the bends of the cloth.
    ``laid`` (NODES, NODES, 4) float64, bends included: points on a grid about the garment, x and y in the
    first picture, then in the second.
    ``changed`` (5,) float32: log-odds that the region was changed, in the first photograph's names; NaN where
    neither shows it or it lies outside of one.
    """

    points: int
    mirrored: bool
    matrix: np.ndarray
    laid: np.ndarray
    changed: np.ndarray


def are_the_garments(one: Sight, other: Sight, found: Registration) -> bool:
    """Whether it is the garments that lie upon each other, not the floor that both were photographed on, nor
    one stripe upon the next.

    Some of the points that agree lie on both garments, or landmarks of the one land about those of the other:
    either may fail alone, since a garment may show nothing but its seams, and of one in hundreds the
    landmarks are wrong. Where the surroundings agree as well, only points on the garments tell anything.
    """
    both = [
        within(torso_outline(sight.landmarks), points)
        for sight, points in ((one, found.at), (other, found.onto))
    ]
    on_garments = int(np.logical_and(*both).sum())
    off = np.linalg.norm(found.warp.place(one.landmarks) - other.landmarks, axis=1)
    if on_garments < _LEAST_ON_GARMENT and np.median(off) >= _LANDMARKS_OFF * other.keypoints.size:
        return False
    if on_garments >= LEAST_POINTS:
        return True
    around, around_other = (
        find_keypoints(sight.pixels, sight.keypoints.box, around=True) for sight in (one, other)
    )
    return surroundings_agree(around, around_other, found.warp) < _SAME_FLOOR


def reading_order(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(p,) positions of pairs in an order in which those that share a photograph stand close together: what
    costs most is to find a photograph's local features, and only some can be kept at hand.

    Photographs are put in a row in which partners are near each other (Cuthill and McKee, ACM 1969), and a
    pair comes when its second one does.

    Args:
        one, other: (p,) numbers of the photographs, from 0.

    Raises ValueError without scipy.
    """
    # Only a machine that verifies has scipy.
    try:
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import reverse_cuthill_mckee
    except ImportError:
        raise ValueError(
            "laying photographs upon each other needs scipy; install it: pip install scipy"
        ) from None

    count = int(max(one.max(initial=-1), other.max(initial=-1))) + 1
    if not count:
        return np.zeros(0, int)
    graph = coo_matrix((np.ones(len(one)), (one, other)), shape=(count, count)).tocsr()
    place = np.argsort(reverse_cuthill_mckee(graph + graph.T, symmetric_mode=True))
    return np.lexsort(np.sort(place[np.stack([one, other])], axis=0))


def as_arrays(seen: Sequence[Verification | None]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) points, 0 where photographs do not lie upon each other, and (n, 5) float32 log-odds of change, NaN
    there: what `psnet.verdict.weigh` takes."""
    points = np.array([0 if one is None else one.points for one in seen], np.int64)
    changed = np.full((len(seen), NUM_REGIONS), np.nan, np.float32)
    for row, one in enumerate(seen):
        if one is not None:
            changed[row] = one.changed
    return points, changed


class Verifier:
    """The comparison network, and what it needs of a pair. On the CPU: it is asked about few pairs."""

    def __init__(self, model: RegionComparison) -> None:
        self._model = model

    @classmethod
    def load(cls, weights: str | Path | None = None) -> Verifier | None:
        """Of a weights folder (None: the shipped one); None where it has no comparison network.

        Raises:
            psnet.weights.WeightsError: they cannot be read.
        """
        model = load_comparison(weights)
        return None if model is None else cls(model)

    def verify(self, one: Sight, other: Sight) -> Verification | None:
        """What can be said of a pair, None where neither photograph can be laid upon the other. A garment may
        lie upon another's mirror image as well: the way on which more points agree counts, of equal ones that
        without a flip."""
        best: tuple[Registration, Sight, bool] | None = None
        for flip in (False, True):
            found = register(one.keypoints, other.keypoints.flipped() if flip else other.keypoints)
            if found is None or (best is not None and found.points <= best[0].points):
                continue
            turned = other.flipped() if flip else other
            if are_the_garments(one, turned, found):
                best = found, turned, flip
        if best is None:
            return None
        found, turned, flip = best
        return self._compared(one, turned, found, flip)

    def _compared(self, one: Sight, other: Sight, found: Registration, mirrored: bool) -> Verification:
        pictures = Image.fromarray(one.pixels), Image.fromarray(other.pixels)
        places = boxes_to_look_at(one.region_boxes, other.region_boxes, found.warp)
        cuts = [cut_both(*pictures, boxes, found.warp, self._model.side) for boxes in places]
        said = log_odds(self._model, np.stack([both for both, _ in cuts]))
        seen = np.stack([inside for _, inside in cuts])
        # A box that took in the background shows it changed wherever a copy was laid elsewhere; of three
        # looks the others tell.
        looks = np.where(seen.any(0), seen.sum(0), np.nan)
        changed = (np.where(seen, said, 0).sum(0) / looks).astype(np.float32)
        flip = np.array([[-1, 0, other.pixels.shape[1]], [0, 1, 0], [0, 0, 1]]) if mirrored else np.eye(3)
        at = nodes(found.warp.box)
        laid = np.concatenate([at, project(flip, found.warp.place(at))], -1)
        return Verification(found.points, mirrored, flip @ found.warp.matrix, laid, changed)
