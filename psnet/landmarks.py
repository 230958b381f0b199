"""Landmark branch (PS-Net, section 4.1): where the garment's landmarks lie and which regions can be seen."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from psnet.backbone import Backbone
from psnet.heatmap import HeatmapCodec
from psnet.regions import NUM_REGIONS


class LandmarkOutput(NamedTuple):
    """``heatmaps`` (n, K, h, w) logits; ``visibility`` (n, K) logits of "visible"; ``presence`` (n, 5, 3)
    logits in the order of `psnet.regions.Presence`; ``category`` (n, C) logits over the taxonomy's torso
    categories; ``boxes`` (n, 5, 4) region boxes xyxy as shares of the crop."""

    heatmaps: Tensor
    visibility: Tensor
    presence: Tensor
    category: Tensor
    boxes: Tensor


class LandmarkBranch(nn.Module):
    """1 × 1 convolution to 128 channels, transposed convolutions up to the heatmaps, one heatmap a landmark.

    The paper goes to full resolution; ``codec.size`` decides here (56 × 56 costs a sixteenth and, decoded by
    the softmax's mean, loses nothing measurable). Three small heads on the pooled map say what the heatmaps
    cannot: visibility, the presence of each region, the category; a fourth gives the five boxes a start.
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
        self.describe = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(7),
            nn.Conv2d(width, 32, 1),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(32 * 49, 256),
            nn.ReLU(inplace=True),
        )
        self.visibility = nn.Linear(256, landmarks)
        self.presence = nn.Linear(256, NUM_REGIONS * 3)
        self.category = nn.Linear(256, categories)
        self.boxes = nn.Linear(256, NUM_REGIONS * 4)

    def forward(self, crops: Tensor) -> LandmarkOutput:
        """(n, 3, 224, 224) in 0…1."""
        squeezed = self.squeeze(self.backbone(crops))
        described = self.describe(squeezed)
        centre, size = torch.sigmoid(self.boxes(described).unflatten(1, (NUM_REGIONS, 4))).chunk(2, -1)
        return LandmarkOutput(
            heatmaps=self.heads(self.upsample(squeezed)),
            visibility=self.visibility(described),
            presence=self.presence(described).unflatten(1, (NUM_REGIONS, 3)),
            category=self.category(described),
            boxes=torch.cat([centre - size / 2, centre + size / 2], -1),
        )
