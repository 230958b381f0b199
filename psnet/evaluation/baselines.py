"""Baselines that learn nothing, on whole photographs: a perceptual hash, and SIFT with a geometric check.

Both compare a query with the other picture as it is and flipped; the better one counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from psnet.evaluation.garments import Progress
from psnet.registration import load_opencv, root_sift

_HASH_SIDE = 8
_HASH_PICTURE = 32
# Longer side of the pictures SIFT sees, and the most points of each: more points find no more copies, and the
# time grows with their square.
_SIFT_SIDE = 400
_SIFT_POINTS = 300
# Lowe, IJCV 2004: a match is good when its distance is below this share of the second best one's.
_RATIO = 0.8
# Pixels a point may lie off the homography; a homography needs four pairs, with fewer there is no check.
_TOLERANCE = 8.0
_LEAST_PAIRS = 4
# Pictures matched in one product.
_SIFT_BLOCK = 64


def perceptual_hash(picture: np.ndarray) -> np.ndarray:
    """(64,) bool of a picture (H, W, 3) uint8.

    The lowest 8 × 8 frequencies of the cosine transform of the grey picture at 32 × 32, each above or below
    their median without the constant (Zauner, "Implementation and Benchmarking of Perceptual Image Hash
    Functions", 2010).
    """
    grey = Image.fromarray(picture).convert("L").resize((_HASH_PICTURE,) * 2, Image.Resampling.LANCZOS)
    k, n = np.arange(_HASH_SIDE)[:, None], np.arange(_HASH_PICTURE)[None]
    transform = np.cos(math.pi / _HASH_PICTURE * (n + 0.5) * k)
    low = (transform @ np.asarray(grey, np.float64) @ transform.T).reshape(-1)
    return low > np.median(low[1:])


def hash_scores(
    pictures: Sequence[np.ndarray], queries: Sequence[int], progress: Progress | None = None
) -> np.ndarray:
    """(q, n) float32 shares of equal bits of the pictures ``queries`` and all pictures; -inf against
    itself."""
    plain = np.stack([perceptual_hash(p) for p in pictures])
    flipped = np.stack([perceptual_hash(np.ascontiguousarray(p[:, ::-1])) for p in pictures])
    asked = plain[list(queries)]
    equal = [(asked[:, None] == other[None]).mean(-1) for other in (plain, flipped)]
    scores = np.maximum(*equal).astype(np.float32)
    scores[np.arange(len(queries)), list(queries)] = -np.inf
    if progress:
        progress(len(queries), len(queries))
    return scores


def sift_scores(
    pictures: Sequence[np.ndarray], queries: Sequence[int], progress: Progress | None = None
) -> np.ndarray:
    """(q, n) float32: points of both pictures that agree with one homography (RANSAC), 0 below four matches;
    -inf against itself.

    RootSIFT (Arandjelović and Zisserman, CVPR 2012) with Lowe's ratio test. A query against 1,000 pictures,
    both ways round, takes about 3 s on one core.

    Raises:
        ValueError: opencv is not installed.
    """
    cv2 = load_opencv("baseline sift", " or leave sift out of baselines")
    points, descriptors, _ = _sift(cv2, pictures)
    scores = np.zeros((len(queries), len(pictures)), np.float32)
    for q, query in enumerate(queries):
        for picture in (pictures[query], np.ascontiguousarray(pictures[query][:, ::-1])):
            own, described, total = _sift(cv2, [picture])
            n = int(total[0])
            if n < _LEAST_PAIRS:
                continue
            for start in range(0, len(pictures), _SIFT_BLOCK):
                best, good = _nearest(described[0, :n], descriptors[start : start + _SIFT_BLOCK])
                for i in np.flatnonzero(good.sum(0) >= _LEAST_PAIRS):
                    chosen = good[:, i]
                    _, inside = cv2.findHomography(
                        own[0, :n][chosen], points[start + i][best[chosen, i]], cv2.RANSAC, _TOLERANCE
                    )
                    agreeing = 0 if inside is None else int(inside.sum())
                    scores[q, start + i] = max(scores[q, start + i], agreeing)
        if progress:
            progress(q + 1, len(queries))
    scores[np.arange(len(queries)), list(queries)] = -np.inf
    return scores


def _sift(cv2: Any, pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, torch.Tensor, np.ndarray]:
    """Points (n, _SIFT_POINTS, 2), descriptors (n, _SIFT_POINTS, 128) of unit norm, and how many are real;
    the others are zero."""
    detector = cv2.SIFT_create(nfeatures=_SIFT_POINTS)
    points = np.zeros((len(pictures), _SIFT_POINTS, 2), np.float32)
    descriptors = np.zeros((len(pictures), _SIFT_POINTS, 128), np.float32)
    count = np.zeros(len(pictures), int)
    for i, picture in enumerate(pictures):
        grey = Image.fromarray(picture).convert("L")
        grey.thumbnail((_SIFT_SIDE, _SIFT_SIDE))
        found, described = detector.detectAndCompute(np.asarray(grey), None)
        n = min(len(found), _SIFT_POINTS)
        if n:
            points[i, :n] = [p.pt for p in found[:n]]
            descriptors[i, :n] = root_sift(described[:n])
        count[i] = n
    return points, torch.from_numpy(descriptors), count


def _nearest(query: torch.Tensor, others: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """For query descriptors (n, 128) and m pictures' (m, k, 128): the nearest of each, (n, m), and whether it
    passes the ratio test."""
    cosines = torch.einsum("nd,mkd->nmk", query, others)
    value, index = cosines.topk(2, dim=-1)
    distance = (2 - 2 * value).clamp_min(0).sqrt()
    good = (distance[..., 0] < _RATIO * distance[..., 1]) & (value[..., 0] > 0)
    return index[..., 0].numpy(), good.numpy()


BASELINES: dict[str, Callable[..., np.ndarray]] = {"phash": hash_scores, "sift": sift_scores}
NAMES: dict[str, str] = {"phash": "perceptual hash", "sift": "SIFT, geometric check"}
