"""Landmark branch (PS-Net, section 4.1): where the garment's landmarks lie and which regions can be seen."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from psnet.backbone import Backbone
from psnet.heatmap import HeatmapCodec
from psnet.regions import NUM_REGIONS

# Five regions and the garment itself.
BOXES = NUM_REGIONS + 1


class LandmarkOutput(NamedTuple):
    """``heatmaps`` (n, K, h, w) logits; ``visibility`` (n, K) logits of "visible"; ``presence`` (n, 5, 3)
    logits in the order of `psnet.regions.Presence`; ``category`` (n, C) logits over the taxonomy's torso
    categories; ``garment`` (n,) logits of "this is a torso garment"; ``boxes`` (n, 6, 4) xyxy as shares of
    the crop: the five regions, then the whole garment."""

    heatmaps: Tensor
    visibility: Tensor
    presence: Tensor
    category: Tensor
    garment: Tensor
    boxes: Tensor


class LandmarkBranch(nn.Module):
    """1 × 1 convolution to 128 channels, transposed convolutions up to the heatmaps, one heatmap a landmark.

    The paper goes to full resolution; ``codec.size`` decides here (56 × 56 costs a sixteenth and, decoded by
    the softmax's mean, loses nothing measurable). Small heads on the pooled map say what the heatmaps
    cannot: visibility, the presence of each region, the category, and whether this is a garment of the torso
    at all, which the detector, made for speed, only guesses. Each edge of a box has a map of its own, whose
    softmax's mean is the edge's place (integral regression, Sun et al., ECCV 2018).
    """

    def __init__(self, backbone: Backbone, landmarks: int, categories: int, codec: HeatmapCodec) -> None:
        super().__init__()
        self.backbone = backbone
        self.codec = codec
        self.landmarks, self.categories = landmarks, categories
        width = 128
        layers: list[nn.Module] = [
            nn.Conv2d(backbone.channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        self.squeeze = nn.Sequential(*layers)
        ups: list[nn.Module] = []
        side, stride = codec.crop[0] // Backbone.STRIDE, width
        while side < codec.size[0]:
            ups += [
                nn.ConvTranspose2d(stride, 64, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(64),
                nn.ReLU(inplace=True),
            ]
            side, stride = side * 2, 64
        if side != codec.size[0]:
            raise ValueError(
                f"heatmap side {codec.size[0]} is not {codec.crop[0] // Backbone.STRIDE} times a power of two"
            )
        self.upsample = nn.Sequential(*ups)
        self.heads = nn.Conv2d(stride, landmarks, 1)
        self.edges = nn.Conv2d(stride, 4 * BOXES, 1)
        self.describe = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(7),
            nn.Conv2d(width, 32, 1),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(32 * 49, 256),
        )
        # A square crop has lost what tells a dress from a shirt at a glance.
        self.shape = nn.Linear(1, 256, bias=False)
        self.visibility = nn.Linear(256, landmarks)
        self.presence = nn.Linear(256, NUM_REGIONS * 3)
        self.category = nn.Linear(256, categories)
        self.garment = nn.Linear(256, 1)

    def forward(self, crops: Tensor, aspect: Tensor) -> LandmarkOutput:
        """Crops (n, 3, 224, 224) in 0…1; aspect (n,), log of width over height of what each shows."""
        squeezed = self.squeeze(self.backbone(crops))
        described = torch.relu(self.describe(squeezed) + self.shape(aspect.unsqueeze(1)))
        fine = self.upsample(squeezed)
        return LandmarkOutput(
            heatmaps=self.heads(fine),
            visibility=self.visibility(described),
            presence=self.presence(described).unflatten(1, (NUM_REGIONS, 3)),
            category=self.category(described),
            garment=self.garment(described).squeeze(-1),
            boxes=_edge_places(self.edges(fine)),
        )


def _edge_places(maps: Tensor) -> Tensor:
    """Edge maps (n, 4 · boxes, h, w) -> (n, boxes, 4) xyxy as shares of the crop, in float32.

    A softmax cannot leave the map: its range is stretched by a tenth, so that an edge may lie on the crop's
    border or a little outside it.
    """
    n, _, h, w = maps.shape
    chance = torch.softmax(maps.float().flatten(2), -1).view(n, -1, 4, h, w)
    xs = (torch.arange(w, device=maps.device) + 0.5) / w
    ys = (torch.arange(h, device=maps.device) + 0.5) / h
    across = (chance[:, :, 0::2].sum(-2) * xs).sum(-1)
    down = (chance[:, :, 1::2].sum(-1) * ys).sum(-1)
    return (torch.stack([across, down], -1).flatten(2) - 0.5) * 1.1 + 0.5
