"""Backbone: a timm network whose scales are brought to one feature map F at stride 8 (PS-Net, section 4.1).

F has 1024 channels at 28 × 28 for a 224 × 224 crop. The landmark and the retrieval branch use the same type
with weights of their own.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """``name`` is a timm model with feature maps, e.g. hrnet_w18_small, hrnet_w32, resnet18.

    For HRNet the raw branches (timm's feature location "") are fused, as in HRNetV2's representation head:
    all scales resampled to stride 8, concatenated, one 1 × 1 convolution to ``channels``.

    Raises ValueError where timm has no such model, or none with feature maps.
    """

    STRIDE = 8
    mean: Tensor
    std: Tensor

    def __init__(self, name: str = "hrnet_w18_small", channels: int = 1024, pretrained: bool = False) -> None:
        super().__init__()
        options: dict[str, Any] = {"feature_location": ""} if name.startswith("hrnet") else {}
        try:
            trunk: Any = timm.create_model(name, features_only=True, pretrained=pretrained, **options)
        except RuntimeError as error:  # an unknown name; or a hub's, which is told as it is
            raise ValueError(f"backbone {name!r}: {error}") from None
        self.trunk: nn.Module = trunk
        info = trunk.feature_info.get_dicts()
        self.used = [i for i, entry in enumerate(info) if entry["reduction"] >= 4]
        self.fuse = nn.Sequential(
            nn.Conv2d(sum(info[i]["num_chs"] for i in self.used), channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.channels = channels
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) in 0…1 -> F (n, channels, H/8, W/8)."""
        maps = self.trunk((images - self.mean) / self.std)
        size = (images.shape[-2] // self.STRIDE, images.shape[-1] // self.STRIDE)
        scaled = []
        for index in self.used:
            feature = maps[index]
            if feature.shape[-2] > size[0]:
                feature = F.adaptive_avg_pool2d(feature, size)
            elif feature.shape[-2:] != size:
                feature = F.interpolate(feature, size=size, mode="bilinear", align_corners=False)
            scaled.append(feature)
        return self.fuse(torch.cat(scaled, 1))
