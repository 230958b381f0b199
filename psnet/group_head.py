"""A second opinion on a garment's group, from what its regions look like.

The landmark branch tells the category from the whole garment at 224 px. What tells a jacket from a thick
shirt or a dress from a long top is often the cloth, a zip or a seam, which the retrieval branch's features of
the regions know. One linear layer on them gives a chance for each group; the product of both opinions is what
counts (product of experts, Hinton, 2002): on held-out garments it is right more often than either.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from psnet.boxes import extents
from psnet.regions import GROUPS, NUM_REGIONS, Presence
from psnet.similarity import group_rows, mirrored_presence
from psnet.taxonomy import TORSO_CATEGORIES, Taxonomy

GROUP_OF_CATEGORY = group_rows(
    [Taxonomy.load("clothing11").category(c).group or "" for c in TORSO_CATEGORIES]
)
"""(C,) row of ``psnet.regions.GROUPS`` of each torso category."""

_SLEEVES = (1, 2)
# Log of the aspect ratio, its square, and whether each sleeve is there.
SHAPE = 2 + len(_SLEEVES)
# By so much these few numbers outweigh one of a feature: the penalty on the weights is the same for all.
_SHAPE_WEIGHT = 2.0


def shapes(boxes: np.ndarray, presence: np.ndarray) -> np.ndarray:
    """What the head takes beside the features, (n, SHAPE) float32, of garments with ``boxes`` (n, 4) px and
    region codes ``presence`` (n, 5)."""
    width, height = np.maximum(extents(boxes)[:, :2].T, 1.0)
    aspect = np.log(width / height)
    sleeves = presence[:, _SLEEVES] == Presence.PRESENT
    return (_SHAPE_WEIGHT * np.column_stack([aspect, aspect**2, sleeves])).astype(np.float32)


class GroupHead(nn.Module):
    """One linear layer over the features of the five regions and the garment's shape."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(NUM_REGIONS * feature_dim + SHAPE, len(GROUPS))

    def forward(self, features: Tensor, shape: Tensor) -> Tensor:
        """Features (n, 5, d), zero where a region is not seen, and ``shapes`` (n, SHAPE) -> (n, 4) logits
        over ``psnet.regions.GROUPS``."""
        return self.linear(torch.cat([features.flatten(1), shape], 1))

    @torch.no_grad()
    def chances(
        self, features: np.ndarray, mirrored: np.ndarray, boxes: np.ndarray, presence: np.ndarray
    ) -> np.ndarray:
        """(n, 4) float32 chance of each group, the same for a garment and its mirror image.

        Args:
            features, mirrored: (n, 5, d) of the garments and of their mirror images, in region order each.
            boxes: (n, 4) px. presence: (n, 5) codes of the garments as they are.
        """
        turned = mirrored_presence(presence)
        with torch.autocast("cpu", enabled=False):
            logits = [
                self(torch.from_numpy(seen), torch.from_numpy(shapes(boxes, codes)))
                for seen, codes in ((features, presence), (mirrored, turned))
            ]
        return torch.softmax((logits[0] + logits[1]) / 2, 1).numpy()


def joint_opinion(kinds: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Chances of the categories (..., C) float32: the landmark branch's ``kinds`` (..., C) times the chance
    of each category's group (..., 4)."""
    both = kinds * groups[..., GROUP_OF_CATEGORY]
    return (both / both.sum(-1, keepdims=True)).astype(np.float32)
