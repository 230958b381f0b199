"""Two registered photographs of a garment, region by region: was this region changed?

A feature has to say what a region looks like without knowing what it will be compared with, and its box is a
few pixels off. Where two photographs can be laid upon each other (`psnet.registration`), each region is cut
out of both at the very same place, and a small network looks at both pictures at once. It tells an edit from
another light, background or camera better than the cosine of two features does, and it is asked about few
pairs: those that the features found.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from psnet.backbone import IMAGENET_MEAN, IMAGENET_STD
from psnet.crops import REGION_MARGIN, to_tensor
from psnet.homography import moved_boxes, project
from psnet.regions import NUM_REGIONS
from psnet.retrieval import CropRetrieval, Residual, first_stages, stem

# Cut out this much finer than needed and averaged: a warp alone would skip pixels.
_FINER = 2
_OUTSIDE = (128, 128, 128)

# Of a region, that must lie inside of both photographs; of less nothing is said.
_SEEN = 0.5


class RegionComparison(nn.Module):
    """One trunk looks at both pictures; what differs between their maps, cell by cell, goes through two more
    stages and one linear layer a region. Both orders of the pictures give the same answer."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int = 32, side: int = 64) -> None:
        super().__init__()
        self.side = side
        self.stem = stem(width)
        self.trunk = nn.Sequential(*first_stages(width))
        self.difference = nn.Sequential(
            nn.Conv2d(8 * width, 4 * width, 1, bias=False),
            nn.BatchNorm2d(4 * width),
            nn.ReLU(inplace=True),
            Residual(4 * width, 4 * width, 1),
            Residual(4 * width, 4 * width, 2),
        )
        self.changed = nn.Linear(8 * width, NUM_REGIONS)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def start_from(self, branch: CropRetrieval) -> None:
        """Take over the first stages of a trained retrieval branch of the same width."""
        self.stem.load_state_dict(branch.stem.state_dict())
        stages: nn.Module = branch.trunk[: len(self.trunk)]
        self.trunk.load_state_dict(stages.state_dict())

    def forward(self, pictures: Tensor) -> Tensor:
        """Region pictures of both photographs (n, 2, 5, 3, side, side) in 0…1 -> (n, 5), the log-odds that
        the region was changed."""
        n = len(pictures)
        maps = self.trunk(self.stem((pictures.flatten(0, 2) - self.mean) / self.std))
        one, other = maps.unflatten(0, (n, 2, NUM_REGIONS)).unbind(1)
        both = torch.cat([(one - other).abs(), one * other], 2).flatten(0, 1)
        different = self.difference(both)
        # The mean tells a change all over, the maximum one in a single place.
        pooled = torch.cat([different.mean((-2, -1)), different.amax((-2, -1))], 1)
        every = self.changed(pooled).unflatten(0, (n, NUM_REGIONS))
        return every.diagonal(dim1=1, dim2=2)


def boxes_to_look_at(boxes: np.ndarray, others: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Where to look for each region: (3, 5, 4), the mean of the box (5, 4) in this picture and of the other
    picture's, moved here; then either by itself. Where one of them does not show a region, the one there is;
    NaN where neither does.

    Args:
        others: (5, 4) in the other picture. matrix: (3, 3) maps the other picture's pixels to this one's.
    """
    moved = moved_boxes(others, matrix)
    boxes, moved = np.where(np.isnan(boxes), moved, boxes), np.where(np.isnan(moved), boxes, moved)
    return np.stack([(boxes + moved) / 2, boxes, moved]).astype(np.float32)


def cut_registered(
    image: Image.Image, boxes: np.ndarray, matrix: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Regions of a reference picture, cut out of ``image``.

    Args:
        boxes: (5, 4) px of the reference, NaN where there is nothing to cut.
        matrix: (3, 3) maps the reference's pixels to those of ``image``; the identity where it is itself.

    Returns:
        (5, side, side, 3) uint8, mid-grey outside of the picture, and (5,) the share of each that is inside.
    """
    fine = side * _FINER
    out = np.full((len(boxes), side, side, 3), _OUTSIDE, np.uint8)
    inside = np.zeros(len(boxes), np.float32)
    for r, (x0, y0, x1, y1) in enumerate(boxes):
        if np.isnan(x0):
            continue
        dx, dy = REGION_MARGIN * (x1 - x0), REGION_MARGIN * (y1 - y0)
        frame = np.array(
            [[(x1 - x0 + 2 * dx) / fine, 0, x0 - dx], [0, (y1 - y0 + 2 * dy) / fine, y0 - dy], [0, 0, 1]]
        )
        warp = matrix @ frame
        warp = warp / warp[2, 2]
        cut = image.transform(
            (fine, fine),
            Image.Transform.PERSPECTIVE,
            tuple(warp.reshape(-1)[:8]),
            Image.Resampling.BILINEAR,
            fillcolor=_OUTSIDE,
        )
        out[r] = np.asarray(cut.reduce(_FINER))
        grid = (np.mgrid[0:8, 0:8][::-1].reshape(2, -1).T + 0.5) * (fine / 8)
        at = project(warp, grid)
        inside[r] = ((at >= 0) & (at <= [image.width, image.height])).all(1).mean()
    return out, inside


def cut_both(
    image: Image.Image, other: Image.Image, boxes: np.ndarray, matrix: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Regions of ``image``, cut out of it and at the same place out of the other photograph.

    Args:
        boxes: (5, 4) px of ``image``. matrix: (3, 3) maps its pixels to those of ``other``.

    Returns:
        (2, 5, side, side, 3) uint8 as from `cut_registered`, and (5,) bool, which lie far enough inside of
        both.
    """
    one, inside = cut_registered(image, boxes, np.eye(3), side)
    two, within = cut_registered(other, boxes, matrix, side)
    return np.stack([one, two]), np.minimum(inside, within) > _SEEN


def log_odds(model: RegionComparison, pictures: np.ndarray) -> np.ndarray:
    """(n, 2, 5, side, side, 3) uint8 -> (n, 5) float32, see `RegionComparison`."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        return F.hardtanh(model(to_tensor(pictures).to(device)).float(), -20, 20).cpu().numpy()
