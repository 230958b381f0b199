"""Training of the landmark branch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_iou, generalized_box_iou_loss

from psnet.crops import GARMENT_MARGIN, cut, expand
from psnet.data.photographs import LabelledGarment
from psnet.data.rephotograph import CameraRange, Subject, View, rephotograph
from psnet.landmarks import LandmarkBranch
from psnet.regions import NUM_REGIONS, Presence
from psnet.taxonomy import TORSO_CATEGORIES, Taxonomy

LANDMARK_CAMERA = CameraRange(
    side=272, rotation=10, wild_rotation=0.1, fill=(0.45, 1.12), shift=0.07, colour=0.2
)


def subject_of(garment: LabelledGarment) -> Subject:
    return Subject(garment.read(), garment.read_mask(), garment.box, garment.landmarks, garment.region_boxes)


def presence_of(view: View, visible_share: float = 0.4) -> np.ndarray:
    """(5,) presence codes: a region less than ``visible_share`` inside the frame is hidden."""
    absent = np.isnan(view.region_boxes[:, 0])
    return np.where(
        absent, Presence.ABSENT, np.where(view.region_seen < visible_share, Presence.HIDDEN, Presence.PRESENT)
    )


def targets(view: View, category: str, box: np.ndarray, side: int) -> dict[str, Tensor]:
    """Crop and targets in pixels of the crop; ``box`` (4,) is what the detector would have said."""
    height, width = view.pixels.shape[:2]
    x0, y0, x1, y1 = expand(box, GARMENT_MARGIN, width, height)
    pixels = cut(Image.fromarray(view.pixels), np.array([x0, y0, x1, y1]), side)
    scale = np.array([side / (x1 - x0), side / (y1 - y0)], np.float32)
    origin = np.array([x0, y0], np.float32)
    points = (view.landmarks[:, :2] - origin) * scale
    inside = ((points > -0.02 * side) & (points < 1.02 * side)).all(-1)
    visible = view.landmarks[:, 2]
    presence = presence_of(view)
    boxes = np.nan_to_num((view.region_boxes - np.tile(origin, 2)) * np.tile(scale, 2)) / side
    return {
        "crop": torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
        "points": torch.from_numpy(points.astype(np.float32)),
        "weight": torch.from_numpy(
            np.where(inside, np.choose(visible.astype(int), [0.0, 0.5, 1.0]), 0.0).astype(np.float32)
        ),
        "visible": torch.from_numpy(((visible == 2) & inside).astype(np.float32)),
        "presence": torch.from_numpy(presence.astype(np.int64)),
        "category": torch.tensor(TORSO_CATEGORIES.index(category)),
        "boxes": torch.from_numpy(np.clip(boxes, 0, 1).astype(np.float32)),
    }


class LandmarkSamples:
    """Labelled photographs, photographed anew for every sample.

    Rare categories are drawn more often (by the square root of their frequency).
    """

    def __init__(
        self,
        garments: Sequence[LabelledGarment],
        seed: int,
        side: int,
        backgrounds: Sequence[LabelledGarment] = (),
    ) -> None:
        self.garments, self.seed, self.side = list(garments), seed, side
        self.backgrounds = list(backgrounds) or self.garments
        self.swap = Taxonomy.load("clothing11").swap
        counts = {c: sum(g.category == c for g in garments) for c in {g.category for g in garments}}
        weights = np.array([counts[g.category] ** -0.5 for g in garments])
        self.probability = weights / weights.sum()

    def sample(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        garment = self.garments[int(rng.choice(len(self.garments), p=self.probability))]
        other = self.backgrounds[int(rng.integers(len(self.backgrounds)))].read()
        view = rephotograph(subject_of(garment), rng, LANDMARK_CAMERA, swap=self.swap, other=other)
        size = np.tile(view.box[2:] - view.box[:2], 2)
        jitter = rng.normal(0, 0.035, 4) if rng.random() < 0.8 else rng.normal(0, 0.08, 4)
        box = view.box + (jitter * size).astype(np.float32)
        return targets(view, garment.category, box, self.side)


def landmark_loss(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cross-entropy between the heatmaps' softmax and Gaussians, and the heads' own losses.

    The paper regresses Gaussians by MSE; from random weights its gradient vanishes for a small peak in a
    large map, while the softmax starts moving at once.
    """
    assert isinstance(model, LandmarkBranch)
    out = model(batch["crop"].float() / 255)
    wanted = model.codec.encode(batch["points"]).flatten(2)
    log = torch.log_softmax(out.heatmaps.float().flatten(2), -1)
    entropy = -(wanted * log).sum(-1)
    weight = batch["weight"]
    present = batch["presence"] == Presence.PRESENT
    boxes, said = batch["boxes"], out.boxes.float()
    l1 = ((said - boxes).abs().mean(-1) * present).sum() / present.sum().clamp_min(1)
    giou = generalized_box_iou_loss(said[present], boxes[present], reduction="mean")
    return {
        "heatmap": (entropy * weight).sum() / weight.sum().clamp_min(1),
        "visibility": 0.3 * F.binary_cross_entropy_with_logits(out.visibility.float(), batch["visible"]),
        "presence": 0.5 * F.cross_entropy(out.presence.float().flatten(0, 1), batch["presence"].flatten()),
        "category": 0.3 * F.cross_entropy(out.category.float(), batch["category"], label_smoothing=0.05),
        "box_l1": 4 * l1,
        "box_giou": 0.5 * giou,
    }


@torch.inference_mode()
def landmark_figures(model: nn.Module, garments: Sequence[LabelledGarment], side: int) -> dict[str, float]:
    """Figures on garments as they were photographed, cut out by their true boxes.

    ``nme``: mean distance over the longer side of the box, visible points; ``iou`` of the region boxes;
    ``presence`` and ``category``: share right.
    """
    assert isinstance(model, LandmarkBranch)
    device = next(model.parameters()).device
    errors, overlaps, presences, categories = [], [], [], []
    for start in range(0, len(garments), 32):
        batch = []
        for garment in garments[start : start + 32]:
            seen = np.where(np.isnan(garment.region_boxes[:, 0]), 0.0, 1.0).astype(np.float32)
            view = View(garment.read(), garment.box, garment.landmarks, garment.region_boxes, seen, False)
            batch.append(targets(view, garment.category, garment.box, side))
        stacked = {k: torch.stack([b[k] for b in batch]).to(device) for k in batch[0]}
        out = model(stacked["crop"].float() / 255)
        points = model.codec.decode(out.heatmaps)
        for i, garment in enumerate(garments[start : start + 32]):
            size = (garment.box[2:] - garment.box[:2]) * (1 + 2 * GARMENT_MARGIN)
            difference = (points[i] - stacked["points"][i]).cpu().numpy() / side * size
            visible = stacked["visible"][i].cpu().numpy() > 0
            errors.append(
                np.linalg.norm(difference, axis=-1)[visible] / max(garment.box[2:] - garment.box[:2])
            )
            present = (stacked["presence"][i] == Presence.PRESENT).nonzero().flatten()
            iou = box_iou(out.boxes[i][present].float(), stacked["boxes"][i][present]).diagonal()
            overlaps.append(iou.cpu().numpy())
        presences.append((out.presence.argmax(-1) == stacked["presence"]).float().mean(0).cpu().numpy())
        categories.append((out.category.argmax(-1) == stacked["category"]).float().cpu().numpy())
    return {
        "nme": float(np.concatenate(errors).mean()),
        "iou": float(np.concatenate(overlaps).mean()),
        "presence": float(np.mean(presences)),
        "category": float(np.concatenate(categories).mean()),
    }


__all__ = [
    "LANDMARK_CAMERA",
    "NUM_REGIONS",
    "LandmarkSamples",
    "landmark_figures",
    "landmark_loss",
    "presence_of",
    "subject_of",
    "targets",
]
