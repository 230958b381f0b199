"""Retrieval branch: five unit-norm features a garment (PS-Net, section 4.2).

Ways to make them, chosen by configuration and measured side by side: `RoiRetrieval`, the paper's (one map of
the whole garment, landmark-guided attention, ROI pooling), and `CropRetrieval` (a small network on a picture
of each region alone, which cannot see its neighbours, so an edited collar does not move the chest's feature).
`StripeRetrieval` knows no regions and serves as a baseline.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psnet.attention import LandmarkAttention
from psnet.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone
from psnet.pooling import pool_regions
from psnet.regions import NUM_REGIONS


def unit_norm(features: Tensor) -> Tensor:
    """L2-normalise the last axis, in float32."""
    return F.normalize(features.float(), dim=-1)


class RoiRetrieval(nn.Module):
    """The paper's branch: F -> F' by attention -> ROI pooling -> one linear layer a region -> unit norm."""

    regional = True

    def __init__(
        self, backbone: Backbone, landmarks: int, dim: int, pool: int = 4, attention: bool = True
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.attention = LandmarkAttention(backbone.channels, landmarks) if attention else None
        self.reduce = nn.Sequential(
            nn.Conv2d(backbone.channels, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(inplace=True)
        )
        self.pool = pool
        self.embed = nn.ModuleList(nn.Linear(128 * pool * pool, dim) for _ in range(NUM_REGIONS))

    def forward(self, crops: Tensor, boxes: Tensor, heatmaps: Tensor) -> Tensor:
        """Garment crops (n, 3, H, W) in 0…1, boxes (n, 5, 4) px of the crop, heatmaps (n, K, h, w) -> (n, 5,
        dim)."""
        features = self.backbone(crops)
        if self.attention is not None:
            features, _ = self.attention(features, heatmaps)
        # The 1 × 1 reduction commutes with pooling; doing it first pools an eighth of the channels.
        pooled = pool_regions(self.reduce(features), boxes, self.pool, Backbone.STRIDE).flatten(2)
        return unit_norm(torch.stack([layer(pooled[:, r]) for r, layer in enumerate(self.embed)], 1))


class StripeRetrieval(nn.Module):
    """Baselines on the same backbone: five horizontal stripes of the map, each pooled and embedded (PCB,
    Sun et al., ECCV 2018, without the refinement), or with ``stripes`` 1 one embedding of the whole garment,
    given five times so that every comparison of regions reads it."""

    regional = False

    def __init__(self, backbone: Backbone, dim: int, stripes: int = NUM_REGIONS) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = nn.AdaptiveAvgPool2d((stripes, 1))
        self.embed = nn.ModuleList(nn.Linear(backbone.channels, dim) for _ in range(stripes))

    def forward(self, crops: Tensor) -> Tensor:
        """Garment crops (n, 3, H, W) in 0…1 -> (n, 5, dim)."""
        pooled = self.pool(self.backbone(crops)).squeeze(-1)
        stripes = [layer(pooled[:, :, s]) for s, layer in enumerate(self.embed)]
        return unit_norm(torch.stack(stripes, 1)).expand(-1, NUM_REGIONS, -1)


class Residual(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut (He et al., CVPR 2016): (n, inputs, h, w) -> (n, outputs,
    h / stride, w / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x), inplace=True)


def stem(width: int) -> nn.Sequential:
    """What a network on region pictures begins with: (n, 3, side, side) -> (n, width, side / 2, side / 2)."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    )


def first_stages(width: int) -> list[nn.Module]:
    """What follows on `stem`: (n, width, h, w) -> (n, 4 width, h / 4, w / 4)."""
    return [
        Residual(width, width, 1),
        Residual(width, 2 * width, 2),
        Residual(2 * width, 2 * width, 1),
        Residual(2 * width, 4 * width, 2),
    ]


class CropRetrieval(nn.Module):
    """A residual network on one picture per region, its trunk shared by the regions, the last layer per
    region.

    Pooling to a 2 × 2 grid and not to one cell keeps where in the region a print sits.
    """

    regional = True
    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, width: int = 32, side: int = 64, grid: int = 2) -> None:
        super().__init__()
        self.side = side
        self.stem = stem(width)
        self.trunk = nn.Sequential(
            *first_stages(width),
            Residual(4 * width, 4 * width, 1),
            Residual(4 * width, 8 * width, 2),
            nn.AdaptiveAvgPool2d(grid),
        )
        self.embed = nn.ModuleList(nn.Linear(8 * width * grid * grid, dim) for _ in range(NUM_REGIONS))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, regions: Tensor) -> Tensor:
        """Region pictures (n, 5, 3, side, side) in 0…1 -> (n, 5, dim)."""
        n = regions.shape[0]
        flat = regions.flatten(0, 1)
        pooled = self.trunk(self.stem((flat - self.mean) / self.std)).flatten(1).reshape(n, NUM_REGIONS, -1)
        return unit_norm(torch.stack([layer(pooled[:, r]) for r, layer in enumerate(self.embed)], 1))
