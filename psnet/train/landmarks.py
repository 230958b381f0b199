"""Training of the landmark branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_iou, generalized_box_iou_loss

from psnet.boxes import extents
from psnet.crops import GARMENT_MARGIN, cut, expand, log_aspect, to_tensor
from psnet.data.edits import edit_parts, random_parts
from psnet.data.photographs import LabelledGarment, read_pixels
from psnet.data.rephotograph import CameraRange, Subject, View, rephotograph
from psnet.group_head import GROUP_OF_CATEGORY
from psnet.landmarks import LandmarkBranch
from psnet.regions import NUM_REGIONS, REGIONS, Presence
from psnet.taxonomy import TORSO_CATEGORIES, Taxonomy

LANDMARK_CAMERA = CameraRange(
    side=272, rotation=10, wild_rotation=0.1, fill=(0.45, 1.12), shift=0.07, colour=0.2
)


# Category of a crop without a garment: what cross-entropy ignores.
NO_GARMENT = -100


def subject_of(garment: LabelledGarment) -> Subject:
    return Subject(garment.read(), garment.read_mask(), garment.box, garment.landmarks, garment.region_boxes)


def edited(garment: LabelledGarment, donor: LabelledGarment, rng: np.random.Generator) -> Subject:
    """The garment with one to three parts edited: what a copyist offers has to be found and told apart into
    regions as well as what he copied.

    Where it cannot be cut out, nothing is shortened: what was cut off would still be seen.
    """
    return edited_copy(garment, donor, int(rng.integers(1, 4)), rng)[0]


def edited_copy(
    garment: LabelledGarment, donor: LabelledGarment, count: int, rng: np.random.Generator
) -> tuple[Subject, tuple[str, ...]]:
    """The garment with ``count`` parts edited, as far as it has so many, and which; each as likely as the
    others."""
    parts = random_parts(garment.sleeveless, count, rng)
    subject, _ = edit_parts(subject_of(garment), parts, rng, subject_of(donor))
    return subject, parts


def for_edited(camera: CameraRange) -> CameraRange:
    """The camera for edited garments: what was cut off one would show on its own background."""
    return replace(camera, new_background=1.0, colour=0.25)


def camera_of(camera: CameraRange, subject: Subject, edited: Subject) -> CameraRange:
    """The camera for what came of ``subject`` by edits: where something was cut off, another background."""
    return camera if edited.mask is subject.mask else replace(camera, new_background=1.0)


def photographed(
    garment: LabelledGarment,
    garments: Sequence[LabelledGarment],
    edited_share: float,
    camera: CameraRange,
    rng: np.random.Generator,
    *,
    swap: np.ndarray,
    other: np.ndarray,
) -> View:
    """One new photograph of a garment, which is edited first with the chance ``edited_share``, by another of
    ``garments``; ``swap``, ``other`` as in ``rephotograph``."""
    subject = None
    if edited_share and rng.random() < edited_share:
        donor = garments[int(rng.integers(len(garments)))]
        subject, camera = edited(garment, donor, rng), for_edited(camera)
    return rephotograph(subject or subject_of(garment), rng, camera, swap=swap, other=other)


def nothing(pixels: np.ndarray, box: np.ndarray | None = None) -> Subject:
    """A picture without a torso garment, as something to photograph: its ``box`` (4,) is what might be taken
    for one, None the whole picture."""
    height, width = pixels.shape[:2]
    return Subject(
        pixels,
        None,
        np.array([0, 0, width, height], np.float32) if box is None else box,
        np.zeros((len(Taxonomy.load("clothing11").landmarks), 3), np.float32),
        np.full((NUM_REGIONS, 4), np.nan, np.float32),
    )


def presence_of(view: View, visible_share: float = 0.4) -> np.ndarray:
    """(5,) presence codes: a region less than ``visible_share`` inside the frame is hidden."""
    absent = np.isnan(view.region_boxes[:, 0])
    return np.where(
        absent, Presence.ABSENT, np.where(view.region_seen < visible_share, Presence.HIDDEN, Presence.PRESENT)
    )


def targets(view: View, category: str | None, box: np.ndarray, side: int) -> dict[str, Tensor]:
    """Crop and targets in pixels of the crop; ``box`` (4,) is what the detector would have said.

    ``category`` None: no garment, and nothing else is to be learnt from it.
    """
    height, width = view.pixels.shape[:2]
    x0, y0, x1, y1 = expand(box, GARMENT_MARGIN, width, height)
    frame = np.array([x0, y0, x1, y1])
    pixels = cut(Image.fromarray(view.pixels), frame, side)
    scale = np.array([side / (x1 - x0), side / (y1 - y0)], np.float32)
    origin = np.array([x0, y0], np.float32)
    points = (view.landmarks[:, :2] - origin) * scale
    inside = ((points > -0.02 * side) & (points < 1.02 * side)).all(-1)
    visible = view.landmarks[:, 2]
    presence = presence_of(view)
    boxes = np.concatenate([view.region_boxes, view.box[None]])
    boxes = np.nan_to_num((boxes - np.tile(origin, 2)) * np.tile(scale, 2)) / side
    if category is None:
        visible = np.zeros_like(visible)
    return {
        "crop": torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
        "aspect": torch.from_numpy(log_aspect(frame)[None])[0],
        "points": torch.from_numpy(points.astype(np.float32)),
        "weight": torch.from_numpy(
            np.where(inside, np.choose(visible.astype(int), [0.0, 0.5, 1.0]), 0.0).astype(np.float32)
        ),
        "visible": torch.from_numpy(((visible == 2) & inside).astype(np.float32)),
        "presence": torch.from_numpy(presence.astype(np.int64)),
        "category": torch.tensor(NO_GARMENT if category is None else TORSO_CATEGORIES.index(category)),
        "boxes": torch.from_numpy(np.clip(boxes, 0, 1).astype(np.float32)),
    }


class LandmarkSamples:
    """Labelled photographs, photographed anew for every sample.

    Rare categories are drawn more often (by the square root of their frequency). Of the samples, a quarter
    show no garment of the torso where ``empty`` names pictures without one: one of those, or a piece of
    background. ``mistaken``: boxes (4,) px in them that a detector takes for garments (hard negatives).
    ``edited``: the share of the garments that are edited before they are photographed, on a new background.
    """

    def __init__(
        self,
        garments: Sequence[LabelledGarment],
        seed: int,
        side: int,
        empty: Sequence[Path] = (),
        mistaken: Mapping[Path, Sequence[np.ndarray]] | None = None,
        edited: float = 0.0,
    ) -> None:
        self.garments, self.seed, self.side, self.empty = list(garments), seed, side, list(empty)
        self.edited = edited
        self.mistaken = dict(mistaken or {})
        self.swap = Taxonomy.load("clothing11").swap
        counts = {c: sum(g.category == c for g in garments) for c in {g.category for g in garments}}
        weights = np.array([g.weight * counts[g.category] ** -0.5 for g in garments])
        self.probability = weights / weights.sum()

    def sample(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        garment = self.garments[int(rng.choice(len(self.garments), p=self.probability))]
        other = self.garments[int(rng.integers(len(self.garments)))].read()
        kind = rng.random() if self.empty else 1.0
        if kind < 0.2:
            path = self.empty[int(rng.integers(len(self.empty)))]
            proposed = self.mistaken.get(path, ())
            if len(proposed) and rng.random() < 0.7:
                shown = nothing(read_pixels(path), proposed[int(rng.integers(len(proposed)))])
                view = rephotograph(shown, rng, LANDMARK_CAMERA, swap=self.swap, other=other)
                return targets(view, None, self._missed(view.box, rng), self.side)
            view = rephotograph(nothing(read_pixels(path)), rng, LANDMARK_CAMERA, swap=self.swap, other=other)
            height, width = view.pixels.shape[:2]
            sides = rng.uniform(0.3, 1.0, 2) * (width, height)
            corner = rng.uniform(0, 1, 2) * ((width, height) - sides)
            return targets(view, None, np.concatenate([corner, corner + sides]).astype(np.float32), self.side)
        view = photographed(
            garment, self.garments, self.edited, LANDMARK_CAMERA, rng, swap=self.swap, other=other
        )
        if kind < 0.25:
            # A corner of the picture with little of the garment in it.
            height, width = view.pixels.shape[:2]
            sides = rng.uniform(0.15, 0.35, 2) * (width, height)
            corner = rng.integers(0, 2, 2) * ((width, height) - sides)
            return targets(view, None, np.concatenate([corner, corner + sides]).astype(np.float32), self.side)
        return targets(view, garment.category, self._missed(view.box, rng), self.side)

    def _missed(self, box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The box as a detector gives it, off by some share of its sides."""
        jitter = rng.normal(0, 0.045, 4) if rng.random() < 0.65 else rng.normal(0, 0.1, 4)
        return (box + jitter * extents(box)).astype(np.float32)


def landmark_loss(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cross-entropy between the heatmaps' softmax and Gaussians, and the heads' own losses.

    The paper regresses Gaussians by MSE; from random weights its gradient vanishes for a small peak in a
    large map, while the softmax starts moving at once.
    """
    assert isinstance(model, LandmarkBranch)
    out = model(batch["crop"].float() / 255, batch["aspect"])
    wanted = model.codec.encode(batch["points"]).flatten(2)
    log = torch.log_softmax(out.heatmaps.float().flatten(2), -1)
    entropy = -(wanted * log).sum(-1)
    weight = batch["weight"]
    garment = batch["category"] != NO_GARMENT
    present = (batch["presence"] == Presence.PRESENT) & garment[:, None]
    present = torch.cat([present, garment[:, None]], 1)
    boxes, said = batch["boxes"], out.boxes.float()
    l1 = ((said - boxes).abs().mean(-1) * present).sum() / present.sum().clamp_min(1)
    # Early edges may cross, and an area below zero would let the loss fall without end; L1 uncrosses them.
    proper = torch.cat([said[..., :2], torch.maximum(said[..., 2:], said[..., :2] + 0.01)], -1)
    giou = generalized_box_iou_loss(proper[present], boxes[present], reduction="mean")
    visibility = F.binary_cross_entropy_with_logits(
        out.visibility[garment].float(), batch["visible"][garment]
    )
    presence = F.cross_entropy(
        out.presence[garment].float().flatten(0, 1), batch["presence"][garment].flatten()
    )
    return {
        "heatmap": (entropy * weight).sum() / weight.sum().clamp_min(1),
        "visibility": 0.3 * visibility,
        "presence": 0.5 * presence,
        "garment": 0.5 * F.binary_cross_entropy_with_logits(out.garment.float(), garment.float()),
        "category": F.cross_entropy(out.category.float(), batch["category"], label_smoothing=0.05),
        "box_l1": 8 * l1,
        "box_giou": giou,
    }


Shown = tuple[View, str]
"""A photograph of one garment, and its category."""


def as_photographed(garments: Sequence[LabelledGarment]) -> list[Shown]:
    return [(View.itself(subject_of(g)), g.category) for g in garments]


def edited_and_photographed(garments: Sequence[LabelledGarment], seed: int) -> list[Shown]:
    """Every garment edited and photographed once; the same for the same seed."""
    swap = Taxonomy.load("clothing11").swap
    shown = []
    for index, garment in enumerate(garments):
        rng = np.random.default_rng((seed, index))
        donor, other = (garments[int(rng.integers(len(garments)))] for _ in range(2))
        view = rephotograph(
            edited(garment, donor, rng), rng, for_edited(LANDMARK_CAMERA), swap=swap, other=other.read()
        )
        shown.append((view, garment.category))
    return shown


@torch.inference_mode()
def landmark_figures(
    model: nn.Module, photographs: Sequence[Shown], side: int, empty: Sequence[Path] = ()
) -> dict[str, float]:
    """Figures on photographs of garments, cut out by boxes that miss their true ones a little.

    ``nme``: mean distance over the longer side of the box, visible points; ``iou`` of the region boxes, each
    and on average, ``iou_box`` of the garment's; ``presence``, ``category`` and ``group``: share right;
    ``garment``: share of garments taken for one, ``false`` of the pictures ``empty``.
    """
    assert isinstance(model, LandmarkBranch)
    device = next(model.parameters()).device
    group = torch.from_numpy(GROUP_OF_CATEGORY)
    rng = np.random.default_rng(0)
    errors, overlaps, whole, presences, categories, groups, taken = [], [], [], [], [], [], []
    for start in range(0, len(photographs), 32):
        batch = []
        for view, category in photographs[start : start + 32]:
            miss = rng.normal(0, 0.04, 4) * extents(view.box)
            batch.append(targets(view, category, (view.box + miss).astype(np.float32), side))
        stacked = {k: torch.stack([b[k] for b in batch]).to(device) for k in batch[0]}
        out = model(stacked["crop"].float() / 255, stacked["aspect"])
        points = model.codec.decode(out.heatmaps)
        for i, (view, _) in enumerate(photographs[start : start + 32]):
            extent = stacked["boxes"][i, -1, 2:] - stacked["boxes"][i, -1, :2]
            frame = (view.box[2:] - view.box[:2]) / extent.cpu().numpy()  # px of the picture per crop
            difference = (points[i] - stacked["points"][i]).cpu().numpy() / side * frame
            visible = stacked["visible"][i].cpu().numpy() > 0
            errors.append(np.linalg.norm(difference, axis=-1)[visible] / max(view.box[2:] - view.box[:2]))
            iou = box_iou(out.boxes[i].float(), stacked["boxes"][i]).diagonal().cpu().numpy()
            present = (stacked["presence"][i] == Presence.PRESENT).cpu().numpy()
            overlaps.append(np.where(present, iou[:NUM_REGIONS], np.nan))
            whole.append(iou[NUM_REGIONS])
        presences.append((out.presence.argmax(-1) == stacked["presence"]).float().mean(0).cpu().numpy())
        said, true = out.category.argmax(-1).cpu(), stacked["category"].cpu()
        categories += (said == true).tolist()
        groups += (group[said] == group[true]).tolist()
        taken += (out.garment > 0).tolist()
    false = []
    for start in range(0, len(empty), 32):
        pictures = [Image.fromarray(read_pixels(path)) for path in empty[start : start + 32]]
        frames = np.array([[0, 0, p.width, p.height] for p in pictures])
        crops = to_tensor(np.stack([cut(p, f, side) for p, f in zip(pictures, frames, strict=True)]))
        aspect = torch.from_numpy(log_aspect(frames))
        false += (model(crops.to(device), aspect.to(device)).garment > 0).tolist()
    regions = np.nanmean(np.array(overlaps), 0)
    return {
        "nme": float(np.concatenate(errors).mean()),
        "iou": float(np.nanmean(np.array(overlaps))),
        **{f"iou_{name}": float(v) for name, v in zip(REGIONS, regions, strict=True)},
        "iou_box": float(np.mean(whole)),
        "presence": float(np.mean(presences)),
        "category": float(np.mean(categories)),
        "group": float(np.mean(groups)),
        "garment": float(np.mean(taken)),
        "false": float(np.mean(false)) if false else 0.0,
    }


__all__ = [
    "LANDMARK_CAMERA",
    "NO_GARMENT",
    "LandmarkSamples",
    "Shown",
    "as_photographed",
    "camera_of",
    "edited",
    "edited_and_photographed",
    "for_edited",
    "landmark_figures",
    "landmark_loss",
    "nothing",
    "photographed",
    "presence_of",
    "subject_of",
    "targets",
]
