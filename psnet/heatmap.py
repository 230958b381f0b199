"""Landmarks as heatmaps: encoding and decoding in one place.

Pixel-centre convention: a point (x, y) in pixels of a W × H crop lies at ((x / W) · w - 0.5, (y / H) · h -
0.5) in cells of a w × h heatmap, whose cell centres have integer coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HeatmapCodec:
    """``size`` (w, h) cells, ``crop`` (W, H) pixels, ``sigma`` in cells (the paper: 1 px at full
    resolution)."""

    size: tuple[int, int] = (56, 56)
    crop: tuple[int, int] = (224, 224)
    sigma: float = 1.5

    def to_cells(self, points: Tensor) -> Tensor:
        """(..., 2) crop pixels -> heatmap cells."""
        scale = torch.tensor([self.size[0] / self.crop[0], self.size[1] / self.crop[1]], device=points.device)
        return points * scale - 0.5

    def to_pixels(self, cells: Tensor) -> Tensor:
        """(..., 2) heatmap cells -> crop pixels; inverse of `to_cells`."""
        scale = torch.tensor([self.crop[0] / self.size[0], self.crop[1] / self.size[1]], device=cells.device)
        return (cells + 0.5) * scale

    def encode(self, points: Tensor) -> Tensor:
        """(n, K, 2) crop pixels -> (n, K, h, w) Gaussians that sum to 1; a point outside gives the edge's
        tail."""
        w, h = self.size
        cells = self.to_cells(points)
        xs = torch.arange(w, device=points.device, dtype=torch.float32)
        ys = torch.arange(h, device=points.device, dtype=torch.float32)
        gx = torch.exp(-((xs - cells[..., :1]) ** 2) / (2 * self.sigma**2))
        gy = torch.exp(-((ys - cells[..., 1:]) ** 2) / (2 * self.sigma**2))
        maps = gy.unsqueeze(-1) * gx.unsqueeze(-2)
        return maps / maps.sum((-2, -1), keepdim=True).clamp_min(1e-12)

    def guide(self, logits: Tensor) -> Tensor:
        """(n, K, h, w) logits -> heatmaps with their peak at 1, what attention is guided by."""
        chance = torch.softmax(logits.float().flatten(2), -1).reshape(logits.shape)
        return chance / chance.amax((-2, -1), keepdim=True)

    def decode(self, logits: Tensor) -> Tensor:
        """(n, K, h, w) logits -> (n, K, 2) crop pixels: the mean of the softmax around its peak.

        A window of three sigmas keeps a second mode far away from pulling the mean (local soft-argmax).
        """
        n, k, h, w = logits.shape
        flat = logits.float().reshape(n, k, -1)
        peak = flat.argmax(-1)
        py, px = (peak // w).unsqueeze(-1), (peak % w).unsqueeze(-1)
        xs, ys = torch.arange(w, device=logits.device), torch.arange(h, device=logits.device)
        reach = round(3 * self.sigma)
        near = ((xs - px).abs() <= reach).unsqueeze(-2) & ((ys - py).abs() <= reach).unsqueeze(-1)
        probability = torch.softmax(flat.masked_fill(~near.reshape(n, k, -1), float("-inf")), -1).reshape(
            n, k, h, w
        )
        cells = torch.stack([(probability.sum(-2) * xs).sum(-1), (probability.sum(-1) * ys).sum(-1)], -1)
        return self.to_pixels(cells)
