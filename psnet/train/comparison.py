"""Training of the comparison of registered photographs: an edit is a change, another photograph is none.

A sample is a garment photographed twice, once with some parts edited, its regions cut out of both photographs
at the same place: as well as a registration finds it (`psnet.registration`), with region boxes as far off as
a landmark branch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from psnet.boxes import corners
from psnet.comparison import SEEN, common_boxes, cut_registered
from psnet.data.edits import edit_parts, random_parts
from psnet.data.photographs import LabelledGarment
from psnet.data.rephotograph import CameraRange, Subject, View, rephotograph
from psnet.homography import homography
from psnet.regions import NUM_REGIONS
from psnet.taxonomy import Taxonomy
from psnet.train.landmarks import subject_of
from psnet.train.retrieval import IGNORED, RETRIEVAL_CAMERA, edited_regions, jittered, mirror_subject

# A harder light than the features are trained in: nothing but the edit may count.
COMPARISON_CAMERA = replace(RETRIEVAL_CAMERA, colour=0.22, light=0.5)
# Laid upon each other, two pictures show a fainter edit than two features do (grey levels, see
# `psnet.train.retrieval.VISIBLE_EDIT`).
VISIBLE_EDIT = 6.0
# How far a registration is off, as a share of the garment's box: most, and some.
_OFF, _FAR_OFF, _OFTEN_FAR = 0.004, 0.02, 0.2


class ComparisonSamples:
    """``pictures`` (2, 5, 3, side, side) uint8 of both photographs; ``changed`` (5,) int64: 1 edited, 0 as it
    was, -1 where the region is absent, unseen, or the edit too faint."""

    def __init__(
        self,
        garments: Sequence[LabelledGarment],
        seed: int,
        side: int,
        box_noise: float = 0.06,
        camera: CameraRange = COMPARISON_CAMERA,
    ) -> None:
        self.garments, self.seed, self.side = list(garments), seed, side
        self.box_noise, self.camera = box_noise, camera
        self.swap = Taxonomy.load("clothing11").swap

    def sample(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        count = len(self.garments)
        garment = self.garments[int(rng.integers(count))]
        subject = subject_of(garment)
        if rng.random() < 0.5:
            subject = mirror_subject(subject, self.swap)
        donor = subject_of(self.garments[int(rng.integers(count))])
        parts = random_parts(
            bool(garment.absent[1:3].all()), int(rng.choice(4, p=[0.2, 0.35, 0.3, 0.15])), rng
        )
        edited, _ = edit_parts(subject, parts, rng, donor)
        state = edited_regions(subject, edited, parts, VISIBLE_EDIT)
        # The original is a photograph as it stands in the catalogue, or one more of the garment.
        first = View.itself(subject) if rng.random() < 0.4 else self._photograph(subject, rng)
        second = self._photograph(edited, rng)
        if rng.random() < 0.5:
            first, second = second, first
        pictures, seen = self._registered(first, second, rng)
        return {
            "pictures": torch.from_numpy(pictures),
            "changed": torch.from_numpy(np.where(seen, state, IGNORED).astype(np.int64)),
        }

    def _photograph(self, subject: Subject, rng: np.random.Generator) -> View:
        other = self.garments[int(rng.integers(len(self.garments)))].read()
        return rephotograph(subject, rng, self.camera, swap=self.swap, other=other)

    def _registered(self, a: View, b: View, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        off = _FAR_OFF if rng.random() < _OFTEN_FAR else _OFF
        ends = corners(a.box.astype(np.float64))
        size = a.box[2:] - a.box[:2]
        miss = homography(ends, ends + rng.normal(0, off, (4, 2)) * size)
        to_b = b.matrix @ np.linalg.inv(a.matrix) @ miss
        boxes = common_boxes(
            jittered(a, rng, self.box_noise), jittered(b, rng, self.box_noise), np.linalg.inv(to_b)
        )
        one, inside = cut_registered(Image.fromarray(a.pixels), boxes, np.eye(3), self.side)
        other, within = cut_registered(Image.fromarray(b.pixels), boxes, to_b, self.side)
        pictures = np.stack([one, other]).transpose(0, 1, 4, 2, 3)
        return np.ascontiguousarray(pictures), (inside > SEEN) & (within > SEEN)


def comparison_loss(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cross-entropy over the regions that can be told."""
    said = model(batch["pictures"].float() / 255)
    told = batch["changed"] != IGNORED
    return {"changed": F.binary_cross_entropy_with_logits(said[told].float(), batch["changed"][told].float())}


def comparison_batch(
    garments: Sequence[LabelledGarment], seed: int, side: int, count: int
) -> dict[str, Tensor]:
    """Fixed samples of held-out garments."""
    samples = ComparisonSamples(garments, seed, side)
    rows = [samples.sample(i) for i in range(count)]
    return {k: torch.stack([row[k] for row in rows]) for k in rows[0]}


@torch.inference_mode()
def comparison_figures(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, float]:
    """``accuracy`` at even odds and ``auc`` over all regions, ``whole``: of the pairs, all of whose regions
    are said rightly."""
    device = next(model.parameters()).device
    pieces = batch["pictures"].split(32)
    said = torch.cat([model(piece.to(device).float() / 255).float().cpu() for piece in pieces])
    true, told = batch["changed"] == 1, batch["changed"] != IGNORED
    right = ((said > 0) == true) | ~told
    changed, kept = said[told & true], said[told & ~true]
    auc = (changed.unsqueeze(1) > kept.unsqueeze(0)).float().mean()
    per_region = {
        f"auc_{r}": float(
            (
                said[:, r][told[:, r] & true[:, r]].unsqueeze(1)
                > said[:, r][told[:, r] & ~true[:, r]].unsqueeze(0)
            )
            .float()
            .mean()
        )
        for r in range(NUM_REGIONS)
    }
    return {
        "accuracy": float(right[told].float().mean()),
        "whole": float(right.all(1).float().mean()),
        "auc": float(auc),
        **per_region,
    }
