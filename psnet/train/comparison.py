"""Training of the comparison of registered photographs: an edit is a change, another photograph is none.

A sample is a garment photographed twice, once with some parts edited, its regions cut out of both photographs
at the same place: as well as a registration finds it (`psnet.registration`), with region boxes as far off as
the trained detector and landmark branch put them. Those errors are measured (`region_box_errors`): most are
small, some are not, and both photographs of a garment tend to share theirs, so that a region often takes in
background, which may be another one behind the copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from psnet.boxes import extents
from psnet.comparison import boxes_to_look_at, cut_both
from psnet.data.edits import edit_parts, random_parts
from psnet.data.photographs import LabelledGarment
from psnet.data.rephotograph import CameraRange, Subject, View, rephotograph, smooth_shifts
from psnet.predictor import Predictor
from psnet.regions import MIRROR, NUM_REGIONS, Presence
from psnet.taxonomy import Taxonomy
from psnet.train.calibrate import first_garments
from psnet.train.landmarks import camera_of, edited_copy, subject_of
from psnet.train.retrieval import IGNORED, RETRIEVAL_CAMERA, edited_regions, mirror_subject
from psnet.warp import Warp

# A harder light than the features are trained in: nothing but the edit may count.
COMPARISON_CAMERA = replace(RETRIEVAL_CAMERA, colour=0.22, light=0.5, bend=0.02)
# Laid upon each other, two pictures show a fainter edit than two features do (grey levels, see
# `psnet.train.retrieval.VISIBLE_EDIT`).
VISIBLE_EDIT = 6.0
# An error of a side of a region box beyond this share of the box is cut off: something else was found there.
_WORST = 1.0
# How far a registration is off, as a share of the garment's box: half of them by less, and the spread of its
# logarithm. Bent cloth is registered about so well (held-out garments: 0.004, 90 % by less than 0.023).
_OFF, _OFF_SPREAD = 0.004, 1.1


def region_box_errors(
    predictor: Predictor, garments: Sequence[LabelledGarment], seed: int, copies: int = 3
) -> np.ndarray:
    """How far off the predicted region boxes are, of garments that the networks were not trained on.

    Each is looked at as it was photographed and in ``copies`` more photographs with up to three parts edited.

    Returns:
        (garments, 1 + copies, 5, 4) float32 errors of the four sides as shares of the true box, NaN where a
        region was not predicted; garments found in fewer than two photographs are left out.
    """
    swap = Taxonomy.load("clothing11").swap
    out = []
    for index, garment in enumerate(garments):
        rng = np.random.default_rng((seed, index))
        views = [View.itself(subject_of(garment))]
        for _ in range(copies):
            donor = garments[int(rng.integers(len(garments)))]
            edited, _ = edited_copy(garment, donor, int(rng.integers(4)), rng)
            camera = replace(COMPARISON_CAMERA, new_background=1.0)  # nothing of what was cut off shows
            views.append(rephotograph(edited, rng, camera, swap=swap, other=donor.read()))
        errors = np.full((len(views), NUM_REGIONS, 4), np.nan, np.float32)
        found = first_garments(predictor, [view.pixels for view in views])
        for row, (view, one) in enumerate(zip(views, found, strict=True)):
            if one is not None:
                seen = (one.presence == Presence.PRESENT) & ~garment.absent
                errors[row, seen] = ((one.region_boxes - view.region_boxes) / extents(view.region_boxes))[
                    seen
                ]
        if (~np.isnan(errors[..., 0])).any(1).sum() > 1:
            out.append(np.clip(errors, -_WORST, _WORST))
    return np.array(out, np.float32).reshape(-1, 1 + copies, NUM_REGIONS, 4)


class ComparisonSamples:
    """``pictures`` (2, 5, 3, side, side) uint8 of both photographs; ``changed`` (5,) int64: 1 edited, 0 as it
    was, -1 where the region is absent, unseen, or the edit too faint."""

    def __init__(
        self,
        garments: Sequence[LabelledGarment],
        seed: int,
        side: int,
        box_errors: np.ndarray,
        camera: CameraRange = COMPARISON_CAMERA,
    ) -> None:
        """``box_errors``: see `region_box_errors`."""
        self.garments, self.seed, self.side, self.camera = list(garments), seed, side, camera
        flipped = box_errors[:, :, list(MIRROR)][..., [2, 1, 0, 3]] * np.array([-1, 1, -1, 1], np.float32)
        errors = np.concatenate([box_errors, flipped])
        # Per region, of the garments that show it.
        self.box_errors = [errors[(~np.isnan(errors[:, :, r, 0])).any(1), :, r] for r in range(NUM_REGIONS)]
        self.swap = Taxonomy.load("clothing11").swap

    def sample(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        count = len(self.garments)
        garment = self.garments[int(rng.integers(count))]
        subject = subject_of(garment)
        if rng.random() < 0.5:
            subject = mirror_subject(subject, self.swap)
        donor = subject_of(self.garments[int(rng.integers(count))])
        parts = random_parts(garment.sleeveless, int(rng.choice(4, p=[0.2, 0.35, 0.3, 0.15])), rng)
        edited, _ = edit_parts(subject, parts, rng, donor)
        state = edited_regions(subject, edited, parts, VISIBLE_EDIT)
        # The original is a photograph as it stands in the catalogue, or one more of the garment.
        first = View.itself(subject) if rng.random() < 0.4 else self._photograph(subject, self.camera, rng)
        second = self._photograph(edited, camera_of(self.camera, subject, edited), rng)
        if rng.random() < 0.5:
            first, second = second, first
        pictures, seen = self._registered(first, second, rng)
        return {
            "pictures": torch.from_numpy(pictures),
            "changed": torch.from_numpy(np.where(seen, state, IGNORED).astype(np.int64)),
        }

    def _photograph(self, subject: Subject, camera: CameraRange, rng: np.random.Generator) -> View:
        other = self.garments[int(rng.integers(len(self.garments)))].read()
        return rephotograph(subject, rng, camera, swap=self.swap, other=other)

    def _registered(self, a: View, b: View, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        off = _OFF * np.exp(rng.normal(0, _OFF_SPREAD))
        missed = smooth_shifts(rng, int(rng.integers(2, 6))) * off * extents(b.box)[:2]
        matrix = b.warp.matrix @ np.linalg.inv(a.warp.matrix)
        warp = Warp.of(matrix, a.box, lambda points: b.warp.place(a.warp.back(points)))
        warp = replace(warp, shifts=warp.shifts + missed)
        boxes = boxes_to_look_at(*self._predicted(a, b, rng), warp)[0]
        photographs = Image.fromarray(a.pixels), Image.fromarray(b.pixels)
        pictures, seen = cut_both(*photographs, boxes, warp, self.side)
        return np.ascontiguousarray(pictures.transpose(0, 1, 4, 2, 3)), seen

    def _predicted(self, a: View, b: View, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Region boxes of both as the networks would find them in two photographs of one garment."""
        off = np.zeros((2, NUM_REGIONS, 4), np.float32)
        for r, errors in enumerate(self.box_errors):
            if len(errors):
                one = errors[int(rng.integers(len(errors)))]
                off[:, r] = one[rng.choice(len(one), 2, replace=False)]
        boxes = np.stack([a.region_boxes, b.region_boxes])
        first, second = (boxes + off * extents(boxes)).astype(np.float32)
        return first, second


def comparison_loss(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cross-entropy over the regions that can be told."""
    said = model(batch["pictures"].float() / 255)
    told = batch["changed"] != IGNORED
    return {"changed": F.binary_cross_entropy_with_logits(said[told].float(), batch["changed"][told].float())}


def comparison_batch(
    garments: Sequence[LabelledGarment], seed: int, side: int, box_errors: np.ndarray, count: int
) -> dict[str, Tensor]:
    """Fixed samples of held-out garments."""
    samples = ComparisonSamples(garments, seed, side, box_errors)
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
