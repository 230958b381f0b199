"""What the paper reports, to stand beside our figures in columns of its own, and its `manual` weights.

Lang et al., "Which is Plagiarism: Fashion Image Retrieval based on Regional Representation for Design
Protection", CVPR 2020. Its data set was never published: the figures stand on other data than ours.
"""

from __future__ import annotations

import numpy as np

from psnet.data.edits import PART_SHARES
from psnet.regions import GROUPS

# Table 2, Plagiarized Fashion (60,000 images, 1,500 queries): Top-10, Top-20, mAP.
RETRIEVAL: dict[str, tuple[float, float, float]] = {
    "pcb": (0.391, 0.640, 0.328),
    "traditional": (0.397, 0.645, 0.332),
    "manual": (0.542, 0.783, 0.443),
    "psnet": (0.597, 0.842, 0.493),
    "ensemble": (0.602, 0.852, 0.501),
    "no_attention": (0.567, 0.811, 0.466),
    "no_manipulation": (0.413, 0.682, 0.361),
}
# PS-Net by group.
RETRIEVAL_BY_GROUP: dict[str, tuple[float, float, float]] = {
    "T-shirts": (0.627, 0.862, 0.513),
    "outwear": (0.587, 0.834, 0.482),
    "tops": (0.613, 0.854, 0.505),
    "dress": (0.577, 0.827, 0.474),
    "overall": (0.597, 0.842, 0.493),
}
# Normalised error on DeepFashion. The paper names no armpits.
LANDMARKS: dict[str, float] = {
    "collar": 0.0293,
    "sleeves": 0.0358,
    "waistline": 0.0310,
    "hem": 0.0396,
    "overall": 0.0339,
}
# AP on DeepFashion2, visible and occluded points.
KEYPOINT_AP = 0.633


def manual_weights() -> np.ndarray:
    """(4, 5) weights as a person might set the sliders, rows as ``psnet.regions.GROUPS``, mean 1 a row.

    The paper's `manual` is the mean of 25 people's sliders, which it does not print. Whoever looks for
    copies would trust a region the more, the less often copyists change it, so the prior is the chance that
    a region is left alone, 1 − the share of Table 1: a T-shirt's chest, changed in 72 % of the copies, weighs
    least, and so does a dress's waist. Both sleeves have their part's share.
    """
    rows = []
    for group in GROUPS:
        sleeves, collar, chest, waist = PART_SHARES[group]
        rows.append(1 - np.array([collar, sleeves, sleeves, chest, waist]))
    table = np.array(rows)
    return (table / table.mean(1, keepdims=True)).astype(np.float32)
