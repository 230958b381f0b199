"""Where an attribute's attention lies: its share inside the regions that the attribute is seen in."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_inside(attention: Tensor, regions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """How much of an attribute's attention lies in its regions.

    attention (n, attributes, h, w), regions (n, 5, 4) as shares of the image, mask (attributes, 5) -> share
    (n, attributes) and whether the image has any region of the attribute.
    """
    cover, there = _cover(regions, *attention.shape[-2:])
    # Regions overlap: what lies in two of them counts once. Of a cell that two adjoining ones share, the
    # larger share counts.
    joined = torch.einsum("nrhw,ar->narhw", cover, mask.to(cover.dtype)).amax(2)
    return (joined * attention).sum((-2, -1)), (there[:, None] & mask).any(-1)


def _cover(regions: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Share of each cell of an h × w grid that a region covers, (n, 5, h, w), and whether it is there."""
    there = ~torch.isnan(regions[..., 0])
    x0, y0, x1, y1 = torch.nan_to_num(regions).unbind(-1)
    columns = torch.arange(w, device=regions.device)
    rows = torch.arange(h, device=regions.device)
    across = (
        torch.minimum(x1[..., None] * w, columns + 1) - torch.maximum(x0[..., None] * w, columns)
    ).clamp(0, 1)
    down = (torch.minimum(y1[..., None] * h, rows + 1) - torch.maximum(y0[..., None] * h, rows)).clamp(0, 1)
    return down[..., :, None] * across[..., None, :] * there[..., None, None], there
