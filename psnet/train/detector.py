"""Training of the garment detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from psnet.data.photographs import LabelledGarment, read_pixels
from psnet.data.rephotograph import CameraRange, rephotograph
from psnet.detector import CATEGORIES
from psnet.taxonomy import Taxonomy
from psnet.train.landmarks import Shown, nothing, photographed

DETECTOR_CAMERA = CameraRange(
    side=320, rotation=9, wild_rotation=0.06, fill=(0.3, 1.06), shift=0.09, new_background=0.5, colour=0.2
)


class DetectorSamples:
    """Labelled photographs photographed anew; two of them side by side at times; pictures without a torso
    garment. ``edited``: the share of the garments that are edited before they are photographed.

    ``image`` (3, H, W) uint8, ``boxes`` (n, 4) xyxy px, ``labels`` (n,) from 1.
    """

    def __init__(
        self, garments: Sequence[LabelledGarment], empty: Sequence[Path], seed: int, edited: float = 0.0
    ) -> None:
        self.garments, self.empty, self.seed = list(garments), list(empty), seed
        self.edited = edited
        self.swap = Taxonomy.load("clothing11").swap

    def _view(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
        garment = self.garments[int(rng.integers(len(self.garments)))]
        other = self.garments[int(rng.integers(len(self.garments)))].read()
        if self.empty and rng.random() < 0.5:
            other = read_pixels(self.empty[int(rng.integers(len(self.empty)))])
        view = photographed(
            garment, self.garments, self.edited, DETECTOR_CAMERA, rng, swap=self.swap, other=other
        )
        return view.pixels, view.box, CATEGORIES.index(garment.category) + 1

    def sample(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        kind = rng.random()
        if kind < 0.22 and self.empty:
            pixels = read_pixels(self.empty[int(rng.integers(len(self.empty)))])
            image = rephotograph(nothing(pixels), rng, DETECTOR_CAMERA, swap=self.swap).pixels
            boxes, labels = np.zeros((0, 4), np.float32), []
        elif kind < 0.3:
            (left, box_l, label_l), (right, box_r, label_r) = self._view(rng), self._view(rng)
            height = max(left.shape[0], right.shape[0])
            canvas = np.full((height, left.shape[1] + right.shape[1], 3), int(rng.integers(256)), np.uint8)
            canvas[: left.shape[0], : left.shape[1]] = left
            canvas[: right.shape[0], left.shape[1] :] = right
            image = canvas
            boxes, labels = (
                np.stack([box_l, box_r + np.array([left.shape[1], 0, left.shape[1], 0], np.float32)]),
                [label_l, label_r],
            )
        else:
            image, box, label = self._view(rng)
            boxes, labels = box[None], [label]
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "boxes": torch.from_numpy(boxes.astype(np.float32)),
            "labels": torch.tensor(labels, dtype=torch.int64),
        }


def collate(rows: list[dict[str, Tensor]]) -> dict[str, list[Tensor]]:
    """Pictures differ in size: lists, not stacks."""
    return {key: [row[key] for row in rows] for key in rows[0]}


def detector_loss(model: nn.Module, batch: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """The four losses of Faster R-CNN."""
    device = next(model.parameters()).device
    images = [image.to(device).float() / 255 for image in batch["image"]]
    wanted = [
        {"boxes": b.to(device), "labels": k.to(device)}
        for b, k in zip(batch["boxes"], batch["labels"], strict=True)
    ]
    return model(images, wanted)


@torch.inference_mode()
def detector_figures(
    model: nn.Module, photographs: Sequence[Shown], empty: Sequence[Path], threshold: float = 0.5
) -> dict[str, float]:
    """``recall`` at IoU 0.5 (class ignored), mean ``iou`` of the best box, ``category`` right among found
    ones, ``false`` share of pictures without a torso garment in which one is found."""
    device = next(model.parameters()).device
    best, right = [], []
    for view, category in photographs:
        out = model([torch.from_numpy(view.pixels.transpose(2, 0, 1).copy()).to(device).float() / 255])[0]
        keep = out["scores"] >= threshold
        overlap = box_iou(out["boxes"][keep].cpu(), torch.from_numpy(view.box)[None]).flatten()
        best.append(float(overlap.max()) if len(overlap) else 0.0)
        if len(overlap) and best[-1] >= 0.5:
            right.append(CATEGORIES[int(out["labels"][keep][int(overlap.argmax())]) - 1] == category)
    false = []
    for path in empty:
        out = model([torch.from_numpy(read_pixels(path).transpose(2, 0, 1).copy()).to(device).float() / 255])[
            0
        ]
        false.append(bool((out["scores"] >= threshold).any()))
    return {
        "recall": float(np.mean(np.array(best) >= 0.5)),
        "iou": float(np.mean(best)),
        "category": float(np.mean(right)) if right else 0.0,
        "false": float(np.mean(false)) if false else 0.0,
    }


__all__ = ["DETECTOR_CAMERA", "DetectorSamples", "collate", "detector_figures", "detector_loss"]
