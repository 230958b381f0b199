"""The five regions of a garment, their presence and what a mirror does to them.

The names and their order are those of PS-Net (Lang et al., CVPR 2020, section 4.2); every array with a region
axis follows this order.
"""

from __future__ import annotations

from enum import IntEnum

REGIONS: tuple[str, ...] = ("collar", "left_sleeve", "right_sleeve", "chest", "waist")
NUM_REGIONS = len(REGIONS)

# Order of the regions after a horizontal flip of the picture: left and right are sides of the picture.
MIRROR: tuple[int, ...] = (0, 2, 1, 3, 4)

# The paper's four groups; region weights are kept per group.
GROUPS: tuple[str, ...] = ("T-shirts", "tops", "outwear", "dress")


class Presence(IntEnum):
    """Whether a region can be seen. Stored as uint8.

    ``HIDDEN``: out of the frame or occluded, nothing can be said. ``ABSENT``: the garment has no such part (a
    sleeveless dress). ``PRESENT``: visible, its feature has unit norm.
    """

    HIDDEN = 0
    ABSENT = 1
    PRESENT = 2
