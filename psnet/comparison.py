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
from psnet.boxes import moved_boxes
from psnet.crops import REGION_MARGIN, to_tensor
from psnet.regions import NUM_REGIONS
from psnet.retrieval import CropRetrieval, Residual, first_stages, stem
from psnet.warp import Place, Warp, warped

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


def boxes_to_look_at(boxes: np.ndarray, others: np.ndarray, warp: Warp) -> np.ndarray:
    """Where to look for each region: (3, 5, 4), the mean of the box (5, 4) in this picture and of the other
    picture's, moved here; then either by itself. Where one of them does not show a region, the one there is;
    NaN where neither does.

    Args:
        others: (5, 4) in the other picture. warp: from this picture's pixels to the other's.
    """
    moved = moved_boxes(others, warp.back)
    boxes, moved = np.where(np.isnan(boxes), moved, boxes), np.where(np.isnan(moved), boxes, moved)
    return np.stack([(boxes + moved) / 2, boxes, moved]).astype(np.float32)


def cut_registered(
    image: Image.Image, boxes: np.ndarray, place: Place, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Regions of a reference picture, cut out of ``image``.

    Args:
        boxes: (5, 4) px of the reference, NaN where there is nothing to cut.
        place: takes the reference's pixels to those of ``image``.

    Returns:
        (5, side, side, 3) uint8, mid-grey outside of the picture, and (5,) the share of each that is inside.
    """
    fine = side * _FINER
    out = np.full((len(boxes), side, side, 3), _OUTSIDE, np.uint8)
    inside = np.zeros(len(boxes), np.float32)
    grid = (np.mgrid[0:8, 0:8][::-1].reshape(2, -1).T + 0.5) * (fine / 8)
    for r, box in enumerate(boxes.astype(np.float64)):
        if np.isnan(box[0]):
            continue
        size = (box[2:] - box[:2]) * (1 + 2 * REGION_MARGIN)
        corner = (box[:2] + box[2:] - size) / 2

        def lies(points: np.ndarray, corner: np.ndarray = corner, size: np.ndarray = size) -> np.ndarray:
            return place(corner + points * (size / fine))

        out[r] = np.asarray(warped(image, (fine, fine), lies, _OUTSIDE).reduce(_FINER))
        at = lies(grid)
        inside[r] = ((at >= 0) & (at <= [image.width, image.height])).all(1).mean()
    return out, inside


def cut_both(
    image: Image.Image, other: Image.Image, boxes: np.ndarray, warp: Warp, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Regions of ``image``, cut out of it and at the same place out of the other photograph.

    Args:
        boxes: (5, 4) px of ``image``. warp: takes its pixels to those of ``other``.

    Returns:
        (2, 5, side, side, 3) uint8 as from `cut_registered`, and (5,) bool, which lie far enough inside of
        both.
    """
    one, inside = cut_registered(image, boxes, lambda points: points, side)
    two, within = cut_registered(other, boxes, warp.place, side)
    return np.stack([one, two]), np.minimum(inside, within) > _SEEN


def log_odds(model: RegionComparison, pictures: np.ndarray) -> np.ndarray:
    """(n, 2, 5, side, side, 3) uint8 -> (n, 5) float32, see `RegionComparison`."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        return F.hardtanh(model(to_tensor(pictures).to(device)).float(), -20, 20).cpu().numpy()
