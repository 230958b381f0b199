"""Region pooling: one fixed-size piece of a map or of a picture per region box."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import roi_align


def pool_regions(features: Tensor, boxes: Tensor, size: int, stride: float) -> Tensor:
    """ROI pooling of five boxes a garment.

    features (n, c, h, w), boxes (n, 5, 4) xyxy in pixels of the crop, ``stride`` crop pixels a cell
    -> (n, 5, c, size, size). roi_align with aligned=True: pixel centres, no half-cell shift.
    """
    n, r = boxes.shape[:2]
    # In float32: a half-precision map's type holds neither garment 257 nor a quarter of a pixel.
    index = torch.arange(n, device=boxes.device, dtype=torch.float32).repeat_interleave(r).unsqueeze(1)
    rois = torch.cat([index, boxes.reshape(-1, 4).float()], 1)
    pooled = roi_align(features.float(), rois, size, spatial_scale=1 / stride, sampling_ratio=2, aligned=True)
    return pooled.reshape(n, r, *pooled.shape[1:])
