"""Landmark-guided attention (PS-Net, section 4.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LandmarkAttention(nn.Module):
    """A = sigmoid(conv(concat(F, M))) in (0, 1); F' = F ∘ (1/2 + A).

    M, the landmark information, has ``information`` channels (32 in the paper), made from the heatmaps by a 1
    × 1 convolution and brought to F's size bilinearly. ``bottleneck`` narrows the map between concatenation
    and A.
    """

    def __init__(self, channels: int, landmarks: int, information: int = 32, bottleneck: int = 128) -> None:
        super().__init__()
        self.inform = nn.Conv2d(landmarks, information, 1)
        self.attend = nn.Sequential(
            nn.Conv2d(channels + information, bottleneck, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(bottleneck, channels, 1),
        )

    def forward(self, features: Tensor, heatmaps: Tensor) -> tuple[Tensor, Tensor]:
        """F (n, c, h, w), heatmaps (n, K, H, W) peak-normalised to 0…1 -> F' and A, both (n, c, h, w)."""
        information = F.interpolate(
            self.inform(heatmaps), size=features.shape[-2:], mode="bilinear", align_corners=False
        )
        attention = torch.sigmoid(self.attend(torch.cat([features, information], 1)))
        return features * (0.5 + attention), attention
