"""From raw images to garments: the only place that knows both pixels and the network."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import batched_nms

from psnet.crops import GARMENT_MARGIN, cut, cut_regions, expand, to_tensor
from psnet.detector import CATEGORIES
from psnet.model import PSNet
from psnet.region_boxes import boxes_from_points
from psnet.regions import MIRROR, Presence
from psnet.retrieval import CropRetrieval
from psnet.taxonomy import TORSO_CATEGORIES, Taxonomy
from psnet.verdict import Calibration
from psnet.weights import load_psnet, model_tag, read_description


@dataclass(frozen=True)
class Garment:
    """One garment of a picture; boxes and points in pixels of the picture given.

    ``box`` (4,) xyxy; ``landmarks`` (K, 3) x, y, probability of being visible; ``region_boxes`` (5, 4);
    ``presence`` (5,) uint8 codes of `psnet.regions.Presence`, ``presence_score`` (5,) its probability;
    ``features`` (5, d) float32, unit norm where present, zero elsewhere; ``mirrored_features`` (5, d) those
    of the picture flipped left to right, in the flipped picture's own region order.
    """

    box: np.ndarray
    score: float
    category: str
    group: str
    landmarks: np.ndarray
    region_boxes: np.ndarray
    presence: np.ndarray
    presence_score: np.ndarray
    features: np.ndarray
    mirrored_features: np.ndarray


@dataclass(frozen=True)
class _Found:
    image: int
    box: np.ndarray
    score: float


class Predictor:
    """Detection, landmarks, regions and features in one pass over a batch of images.

    ``min_score`` of a detection, ``max_garments`` per image, ``batch`` garments per forward pass.
    """

    def __init__(
        self,
        model: PSNet,
        *,
        tag: str,
        description: dict[str, Any],
        device: torch.device,
        precision: str = "float32",
        min_score: float = 0.5,
        max_garments: int = 4,
        batch: int = 16,
    ) -> None:
        self.model = model.to(device).to(memory_format=torch.channels_last).eval()
        self.tag, self.config, self.device, self.precision = tag, description["config"], device, precision
        self.calibration = (
            Calibration.from_json(json.dumps(description["calibration"]))
            if "calibration" in description
            else Calibration.default()
        )
        self.min_score, self.max_garments, self.batch = min_score, max_garments, batch
        torso = {CATEGORIES.index(name) + 1 for name in TORSO_CATEGORIES}
        self._torso = torch.tensor(sorted(torso), device=device)

    @classmethod
    def load(
        cls,
        weights: str | Path | None = None,
        device: str = "auto",
        precision: str = "float32",
        *,
        min_score: float = 0.5,
        max_garments: int = 4,
        batch: int = 16,
    ) -> Predictor:
        """Load a weights folder (None: the shipped one). ``device`` "auto" is the GPU when there is one.

        Raises psnet.weights.WeightsError when the weights are missing, damaged or of another model.
        """
        where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        return cls(
            load_psnet(weights),
            tag=model_tag(weights),
            description=read_description(weights),
            device=where,
            precision=precision,
            min_score=min_score,
            max_garments=max_garments,
            batch=batch,
        )

    def predict(self, images: Sequence[np.ndarray]) -> list[list[Garment]]:
        """RGB uint8 (H, W, 3) images of any sizes -> the garments of each, best detection first."""
        if not images:
            return []
        with torch.inference_mode(), self._autocast():
            found = self._detect(images)
            garments: list[list[Garment]] = [[] for _ in images]
            pictures = [Image.fromarray(np.ascontiguousarray(image)) for image in images]
            for start in range(0, len(found), self.batch):
                chunk = found[start : start + self.batch]
                for one, garment in zip(chunk, self._describe(pictures, chunk), strict=True):
                    garments[one.image].append(garment)
        return garments

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(self.precision)
        return torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext()

    def _detect(self, images: Sequence[np.ndarray]) -> list[_Found]:
        found = []
        for indices in _by_shape(images):
            # One shape at a time: pictures padded to a common size would see their padding, and results would
            # depend on their neighbours in the batch.
            for start in range(0, len(indices), 8):
                part = indices[start : start + 8]
                tensors = [
                    torch.from_numpy(np.ascontiguousarray(images[i].transpose(2, 0, 1)))
                    .to(self.device)
                    .float()
                    / 255
                    for i in part
                ]
                for i, out in zip(part, self.model.detector(tensors), strict=True):
                    keep = (out["scores"] >= self.min_score) & torch.isin(out["labels"], self._torso)
                    boxes, scores = out["boxes"][keep].float(), out["scores"][keep].float()
                    # One garment may be found as two categories: suppress across classes as well.
                    kept = batched_nms(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), 0.5)[
                        : self.max_garments
                    ]
                    found += [
                        _Found(i, b, float(s))
                        for b, s in zip(boxes[kept].cpu().numpy(), scores[kept].cpu(), strict=True)
                    ]
        return sorted(found, key=lambda one: (one.image, -one.score))

    def _describe(self, pictures: Sequence[Image.Image], found: Sequence[_Found]) -> Iterator[Garment]:
        side = self.model.config.crop_side
        frames = np.stack(
            [expand(f.box, GARMENT_MARGIN, pictures[f.image].width, pictures[f.image].height) for f in found]
        )
        crops = to_tensor(
            np.stack([cut(pictures[f.image], frame, side) for f, frame in zip(found, frames, strict=True)])
        )
        crops = crops.to(self.device).contiguous(memory_format=torch.channels_last)
        out = self.model.landmarks(crops)
        points = self.model.landmarks.codec.decode(out.heatmaps).cpu().numpy()
        visibility = torch.sigmoid(out.visibility.float()).cpu().numpy()
        chances = torch.softmax(out.presence.float(), -1).cpu().numpy()
        categories = out.category.argmax(-1).cpu().numpy()
        dress = np.array(["dress" in TORSO_CATEGORIES[c] for c in categories])
        boxes = self._region_boxes(points, out.boxes.float().cpu().numpy() * side, dress)
        presence = chances.argmax(-1).astype(np.uint8)

        scale = (frames[:, 2:] - frames[:, :2]) / side
        to_picture = lambda xy: xy * scale[:, None] + frames[:, None, :2]  # noqa: E731
        region_boxes = np.concatenate([to_picture(boxes[..., :2]), to_picture(boxes[..., 2:])], -1).astype(
            np.float32
        )
        features, mirrored = self._features(pictures, found, region_boxes, crops, boxes, out.heatmaps)
        for i, one in enumerate(found):
            seen = (presence[i] == Presence.PRESENT)[:, None]
            category = TORSO_CATEGORIES[categories[i]]
            yield Garment(
                box=one.box.astype(np.float32),
                score=one.score,
                category=category,
                group=Taxonomy.load(self.model.config.taxonomy).category(category).group or "",
                landmarks=np.concatenate([to_picture(points)[i], visibility[i][:, None]], -1).astype(
                    np.float32
                ),
                region_boxes=region_boxes[i],
                presence=presence[i],
                presence_score=chances[i].max(-1).astype(np.float32),
                features=features[i] * seen,
                mirrored_features=mirrored[i] * seen[list(MIRROR)],
            )

    def _region_boxes(self, points: np.ndarray, said: np.ndarray, dress: np.ndarray) -> np.ndarray:
        """The mean of the landmarks' geometry and of the branch's own boxes, which measures better than
        either on the held-out garments; but for the waist, where geometry alone does."""
        side = self.model.config.crop_side
        margin = GARMENT_MARGIN / (1 + 2 * GARMENT_MARGIN) * side
        whole = np.broadcast_to(
            np.array([margin, margin, side - margin, side - margin], np.float32), (len(points), 4)
        )
        boxes = boxes_from_points(points, whole, dress)
        boxes[:, :4] = 0.5 * (boxes[:, :4] + said[:, :4])
        return np.clip(boxes, 0, side)

    def _features(
        self,
        pictures: Sequence[Image.Image],
        found: Sequence[_Found],
        region_boxes: np.ndarray,
        crops: Tensor,
        boxes: np.ndarray,
        heatmaps: Tensor,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features of the garments and of their mirror images, (n, 5, d) float32 each."""
        branch = self.model.retrieval
        order = list(MIRROR)
        if isinstance(branch, CropRetrieval):
            cuts = np.stack(
                [
                    cut_regions(pictures[f.image], b, branch.side)
                    for f, b in zip(found, region_boxes, strict=True)
                ]
            )
            regions = to_tensor(cuts).to(self.device)
            plain, flipped = branch(regions), branch(regions.flip(-1)[:, order])
        else:
            side = self.model.config.crop_side
            heat = heatmaps.float()
            heat = torch.softmax(heat.flatten(2), -1).reshape(heat.shape)
            heat = heat / heat.amax((-2, -1), keepdim=True)
            placed = torch.from_numpy(boxes).to(self.device)
            turned = torch.stack(
                [side - placed[..., 2], placed[..., 1], side - placed[..., 0], placed[..., 3]], -1
            )[:, order]
            swap = torch.from_numpy(Taxonomy.load(self.model.config.taxonomy).swap.copy()).to(self.device)
            plain = branch(crops, placed, heat)
            flipped = branch(
                crops.flip(-1).contiguous(memory_format=torch.channels_last), turned, heat.flip(-1)[:, swap]
            )
        return plain.float().cpu().numpy(), flipped.float().cpu().numpy()


def _by_shape(images: Sequence[np.ndarray]) -> list[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(image.shape, []).append(index)
    return list(groups.values())
