"""From raw images to garments: the only place that knows both pixels and the network."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from psnet.boxes import areas, intersections, mirror_boxes, overlaps
from psnet.crops import GARMENT_MARGIN, cut, cut_regions, expand, log_aspect, to_tensor
from psnet.device import autocast, resolve_device
from psnet.fusion import fold_batch_norm
from psnet.group_head import GroupHead, joint_opinion
from psnet.model import PSNet
from psnet.region_boxes import boxes_from_points
from psnet.regions import MIRROR, NUM_REGIONS, Presence
from psnet.retrieval import CropRetrieval, StripeRetrieval
from psnet.taxonomy import TORSO_CATEGORIES, Taxonomy
from psnet.verdict import Calibration
from psnet.weights import load_group_head, load_psnet, model_tag, read_description


@dataclass(frozen=True)
class Garment:
    """One garment of a picture; boxes and points in pixels of the picture given.

    ``box`` (4,) xyxy; ``landmarks`` (K, 3) x, y, probability of being visible; ``region_boxes`` (5, 4);
    ``presence`` (5,) uint8 codes of `psnet.regions.Presence`, ``presence_score`` (5,) its probability;
    ``features`` (5, d) float32, unit norm where present, zero elsewhere; ``mirrored_features`` (5, d) those
    of the picture flipped left to right, in the flipped picture's own region order. ``category_scores`` (C,):
    the chance of each of `psnet.taxonomy.TORSO_CATEGORIES`. ``attributes`` (attributes, d) float32, unit
    norm, where `psnet.asen_predictor` has looked at the garment.
    """

    box: np.ndarray
    score: float
    category: str
    group: str
    category_scores: np.ndarray
    landmarks: np.ndarray
    region_boxes: np.ndarray
    presence: np.ndarray
    presence_score: np.ndarray
    features: np.ndarray
    mirrored_features: np.ndarray
    attributes: np.ndarray | None = None


# What the detector is asked for: it proposes, the landmark branch decides.
PROPOSAL_SCORE = 0.2
PROPOSALS = 6
# A garment whose box overlaps its proposal less was seen in a frame made for something else; how often a
# frame is put right.
LOOK_AGAIN = 0.9
LOOKS = 3
# A product photograph shows its garment large: what covers less of the picture may be a part of one, and its
# frame is put right by a look at the whole.
SMALL_PART = 0.6
# Two boxes that overlap more are one garment, and so are a box and a greater one that holds that much of it.
SAME_GARMENT = 0.5
PART_OF_GARMENT = 0.85
# By so many log-odds the whole may be less sure than its part; a frame that takes in the background with the
# garment is less sure still. Settled on training garments and edited copies of them.
WHOLE_LESS_SURE = 3.0
# How much of each region's box the landmarks' geometry gives, the rest being the branch's own: collars are
# best told by both, sleeves by the branch, chest and waist by the landmarks (overlap on held-out garments).
GEOMETRY_SHARE = np.array([0.5, 0.0, 0.0, 1.0, 1.0], np.float32)
_IS_DRESS = np.array(["dress" in name for name in TORSO_CATEGORIES], np.float32)
# Of a box, as a share of its crop's.
_LEAST_SIDE = 0.01


@dataclass(frozen=True)
class _Proposal:
    image: int
    box: np.ndarray


@dataclass(frozen=True)
class _Reading:
    """What the landmark branch says of one crop: ``points`` (K, 2) and ``boxes`` (6, 4), the regions' and
    the garment's, in its pixels; ``score`` of being a garment; ``visibility`` (K,), ``chances`` (5, 3) of
    each region's presence, ``kinds`` of each category, all probabilities; ``heatmaps`` (K, h, w) logits."""

    score: float
    points: np.ndarray
    boxes: np.ndarray
    visibility: np.ndarray
    chances: np.ndarray
    kinds: np.ndarray
    heatmaps: Tensor

    def mirrored(self, side: int, swap: np.ndarray) -> _Reading:
        """What it means of the mirror image; ``swap`` (K,): every landmark's partner there."""
        return replace(
            self,
            points=np.stack([side - self.points[swap, 0], self.points[swap, 1]], -1),
            boxes=mirror_boxes(self.boxes[[*MIRROR, NUM_REGIONS]], side),
            visibility=self.visibility[swap],
            chances=self.chances[list(MIRROR)],
            heatmaps=self.heatmaps.flip(-1)[torch.from_numpy(swap.copy()).to(self.heatmaps.device)],
        )

    def mean(self, other: _Reading) -> _Reading:
        return _Reading(
            *(0.5 * (a + b) for a, b in zip(vars(self).values(), vars(other).values(), strict=True))
        )


@dataclass(frozen=True)
class _Placed:
    """A garment with its landmarks, before its features. ``regions`` (5, 4) in pixels of ``crop`` (3, side,
    side), which shows ``frame`` of the picture; ``box`` of the garment in the picture."""

    image: int
    frame: np.ndarray
    crop: Tensor
    reading: _Reading
    box: np.ndarray
    regions: np.ndarray

    @property
    def score(self) -> float:
        return self.reading.score

    @property
    def presence(self) -> np.ndarray:
        return self.reading.chances.argmax(-1).astype(np.uint8)

    def to_picture(self, xy: np.ndarray) -> np.ndarray:
        """(..., 2) pixels of the crop -> pixels of the picture."""
        side = self.crop.shape[-1]
        return (xy * (self.frame[2:] - self.frame[:2]) / side + self.frame[:2]).astype(np.float32)

    def with_regions(self, boxes: np.ndarray) -> _Placed:
        """The same with other region boxes, (5, 4) px of the picture, NaN where absent."""
        absent = np.isnan(boxes[:, :1])
        scale = self.crop.shape[-1] / (self.frame[2:] - self.frame[:2])
        inside = (boxes - np.tile(self.frame[:2], 2)) * np.tile(scale, 2)
        codes = np.where(absent[:, 0], Presence.ABSENT, Presence.PRESENT)
        return replace(
            self,
            regions=np.where(absent, self.regions, inside).astype(np.float32),
            reading=replace(self.reading, chances=np.eye(len(Presence), dtype=np.float32)[codes]),
        )

    @property
    def region_boxes(self) -> np.ndarray:
        return np.concatenate(
            [self.to_picture(self.regions[:, :2]), self.to_picture(self.regions[:, 2:])], -1
        )


def _is_seeable(height: int, width: int) -> bool:
    """The detector scales pictures down to some hundred pixels, which must leave more than none."""
    short, long = sorted((height, width))
    return short >= 4 and long <= 50 * short


class Predictor:
    """Detection, landmarks, regions and features in one pass over a batch of images.

    The predictor owns ``model``, whose batch normalisation it folds away.

    ``min_score`` of a garment (the landmark branch's certainty that it is one), ``max_garments`` per image,
    ``batch`` garments per forward pass, laid out in memory as ``memory_format``. ``groups``: a second opinion
    on the group, if there is one.
    """

    def __init__(
        self,
        model: PSNet,
        *,
        tag: str,
        description: dict[str, Any],
        device: torch.device,
        precision: str = "float32",
        min_score: float = 0.3,
        max_garments: int = 4,
        batch: int = 16,
        memory_format: torch.memory_format = torch.channels_last,
        groups: GroupHead | None = None,
    ) -> None:
        self.model, self.groups = model.eval(), groups
        fold_batch_norm(self.model)
        self.model.to(device).to(memory_format=memory_format)
        self.memory_format = memory_format
        self.tag, self.config, self.device, self.precision = tag, description["config"], device, precision
        self.calibration = (
            Calibration.from_json(json.dumps(description["calibration"]))
            if "calibration" in description
            else Calibration.default()
        )
        self.min_score, self.max_garments, self.batch = min_score, max_garments, batch

    @classmethod
    def load(
        cls,
        weights: str | Path | None = None,
        device: str = "auto",
        precision: str = "float32",
        *,
        min_score: float = 0.3,
        max_garments: int = 4,
        batch: int = 16,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> Predictor:
        """Load a weights folder (None: the shipped one). ``device`` "auto" is the GPU when there is one.

        Raises psnet.weights.WeightsError when the weights are missing, damaged or of another model.
        """
        return cls(
            load_psnet(weights),
            tag=model_tag(weights),
            description=read_description(weights),
            device=resolve_device(device),
            precision=precision,
            min_score=min_score,
            max_garments=max_garments,
            batch=batch,
            memory_format=memory_format,
            groups=load_group_head(weights),
        )

    def predict(self, images: Sequence[np.ndarray]) -> list[list[Garment]]:
        """RGB uint8 (H, W, 3) images of any sizes -> each one's garments, surest first (of a line, none)."""
        garments: list[list[Garment]] = [[] for _ in images]
        seeable = [i for i, image in enumerate(images) if _is_seeable(*image.shape[:2])]
        if len(seeable) < len(images):
            for i, found in zip(seeable, self.predict([images[i] for i in seeable]), strict=True):
                garments[i] = found
            return garments
        if not images:
            return []
        with torch.inference_mode(), autocast(self.device, self.precision):
            pictures = [Image.fromarray(np.ascontiguousarray(image)) for image in images]
            placed = self._look_flipped(self._decide(self._look(pictures, self._propose(images))))
            # Both looks together may be less sure than the first one was.
            placed = [one for one in placed if one.score >= self.min_score]
            placed.sort(key=lambda one: (one.image, -one.score))
            for start in range(0, len(placed), self.batch):
                chunk = placed[start : start + self.batch]
                for one, garment in zip(chunk, self._describe(pictures, chunk), strict=True):
                    garments[one.image].append(garment)
        return garments

    def describe(
        self,
        images: Sequence[np.ndarray],
        boxes: np.ndarray,
        region_boxes: np.ndarray | None = None,
    ) -> list[Garment]:
        """The garments of ``images`` whose boxes are known, one a picture, as if they had been found there.

        What is left of the chain after the detector, or, given the regions as well, after the landmark
        branch: for measuring how much each step costs.

        Args:
            images: n RGB uint8 (H, W, 3). boxes: (n, 4) xyxy px of the garments. region_boxes: (n, 5, 4), NaN
                where the garment has no such region; all others count as present. None: as the landmark
                branch sees them.

        Raises:
            ValueError: not one box an image.
        """
        if len(boxes) != len(images) or (region_boxes is not None and len(region_boxes) != len(images)):
            raise ValueError(f"{len(images)} images need as many boxes, not {len(boxes)}")
        garments: list[Garment] = []
        with torch.inference_mode(), autocast(self.device, self.precision):
            pictures = [Image.fromarray(np.ascontiguousarray(image)) for image in images]
            for start in range(0, len(images), self.batch):
                chunk = range(start, min(start + self.batch, len(images)))
                proposals = [_Proposal(i, np.asarray(boxes[i], np.float32)) for i in chunk]
                placed = list(self._place(pictures, proposals))
                if region_boxes is None:
                    placed = self._look_flipped(placed)
                else:
                    placed = [one.with_regions(region_boxes[one.image]) for one in placed]
                placed = [replace(one, box=p.box) for one, p in zip(placed, proposals, strict=True)]
                garments += self._describe(pictures, placed)
        return garments

    @torch.inference_mode()
    def propose(self, images: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """The detector's boxes (4,) xyxy px of each image, best first, before the landmark branch decides."""
        boxes: list[list[np.ndarray]] = [[] for _ in images]
        with autocast(self.device, self.precision):
            for proposal in self._propose(images):
                boxes[proposal.image].append(proposal.box)
        return boxes

    def _propose(self, images: Sequence[np.ndarray]) -> list[_Proposal]:
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
                    boxes = out["boxes"][out["scores"] >= PROPOSAL_SCORE][:PROPOSALS]
                    found += [_Proposal(i, box) for box in boxes.float().cpu().numpy()]
        return found

    def _look(self, pictures: Sequence[Image.Image], proposals: Sequence[_Proposal]) -> list[_Placed]:
        """The landmark branch's word on all proposals, looking again where a frame was made for something
        else: at garments whose own box lies off the proposal's, and at whole pictures of which what was found
        is a small part."""
        settled: list[_Placed] = []
        for look in range(LOOKS):
            again: list[_Proposal] = []
            placed = self._place_all(pictures, proposals)
            for one, proposal in zip(placed, proposals, strict=True):
                off = one.score >= self.min_score and overlaps(one.box, proposal.box) < LOOK_AGAIN
                if off and look + 1 < LOOKS:
                    again.append(_Proposal(one.image, one.box))
                else:
                    settled.append(one)
            if look == 0:
                again += self._whole_pictures(pictures, placed)
            proposals = again
        return settled

    def _whole_pictures(self, pictures: Sequence[Image.Image], placed: Sequence[_Placed]) -> list[_Proposal]:
        covered = np.zeros(len(pictures))
        for one in placed:
            if one.score >= self.min_score:
                share = areas(one.box) / (pictures[one.image].width * pictures[one.image].height)
                covered[one.image] = max(covered[one.image], share)
        return [
            _Proposal(i, np.array([0, 0, picture.width, picture.height], np.float32))
            for i, picture in enumerate(pictures)
            if covered[i] < SMALL_PART
        ]

    def _place_all(self, pictures: Sequence[Image.Image], proposals: Sequence[_Proposal]) -> list[_Placed]:
        placed: list[_Placed] = []
        for start in range(0, len(proposals), self.batch):
            placed += self._place(pictures, proposals[start : start + self.batch])
        return placed

    def _place(self, pictures: Sequence[Image.Image], proposals: Sequence[_Proposal]) -> Iterator[_Placed]:
        """What the landmark branch says of each proposal."""
        side = self.model.config.crop_side
        frames = [
            expand(p.box, GARMENT_MARGIN, pictures[p.image].width, pictures[p.image].height)
            for p in proposals
        ]
        crops = to_tensor(
            np.stack(
                [cut(pictures[p.image], frame, side) for p, frame in zip(proposals, frames, strict=True)]
            )
        ).to(self.device)
        for proposal, frame, crop, reading in zip(
            proposals, frames, crops, self._read(crops, np.stack(frames)), strict=True
        ):
            yield self._placed(proposal.image, frame, crop, reading)

    def _read(self, crops: Tensor, frames: np.ndarray) -> Iterator[_Reading]:
        """Crops (n, 3, side, side) that show ``frames`` (n, 4) of their pictures."""
        aspect = torch.from_numpy(log_aspect(frames)).to(self.device)
        out = self.model.landmarks(crops.contiguous(memory_format=self.memory_format), aspect)
        points = self.model.landmarks.codec.decode(out.heatmaps).cpu().numpy()
        visibility = torch.sigmoid(out.visibility.float()).cpu().numpy()
        chances = torch.softmax(out.presence.float(), -1).cpu().numpy()
        kinds = torch.softmax(out.category.float(), -1).cpu().numpy()
        sure = torch.sigmoid(out.garment.float()).cpu().tolist()
        boxes = _proper(out.boxes.float().cpu().numpy()) * self.model.config.crop_side
        said = (sure, points, boxes, visibility, chances, kinds, out.heatmaps)
        return (_Reading(*one) for one in zip(*said, strict=True))

    def _placed(self, image: int, frame: np.ndarray, crop: Tensor, reading: _Reading) -> _Placed:
        scale = np.tile((frame[2:] - frame[:2]) / self.model.config.crop_side, 2)
        dress = float(reading.kinds @ _IS_DRESS)
        return _Placed(
            image=image,
            frame=frame,
            crop=crop,
            reading=reading,
            box=(reading.boxes[NUM_REGIONS] * scale + np.tile(frame[:2], 2)).astype(np.float32),
            regions=self._region_boxes(reading.points, reading.boxes, dress),
        )

    def _look_flipped(self, placed: Sequence[_Placed]) -> list[_Placed]:
        """The same garments by the mean of what the landmark branch says of them and of their mirror images:
        its errors in the two are not the same, and a flipped picture then gets the very same regions."""
        side = self.model.config.crop_side
        swap = Taxonomy.load(self.model.config.taxonomy).swap
        seen: list[_Placed] = []
        for start in range(0, len(placed), self.batch):
            chunk = placed[start : start + self.batch]
            flipped = torch.stack([one.crop for one in chunk]).flip(-1)
            for one, turned in zip(
                chunk, self._read(flipped, np.stack([p.frame for p in chunk])), strict=True
            ):
                reading = one.reading.mean(turned.mirrored(side, swap))
                seen.append(self._placed(one.image, one.frame, one.crop, reading))
        return seen

    def _region_boxes(self, points: np.ndarray, said: np.ndarray, dress: float) -> np.ndarray:
        """(5, 4) px of the crop: the branch's own boxes and what the landmarks' geometry says, each where it
        measures better. A garment between dress and top gets boxes between the two."""
        geometry = boxes_from_points(np.stack([points] * 2), said[NUM_REGIONS], np.array([True, False]))
        geometry = dress * geometry[0] + (1 - dress) * geometry[1]
        share = GEOMETRY_SHARE[:, None]
        boxes = share * geometry + (1 - share) * said[:NUM_REGIONS]
        return np.clip(boxes, 0, self.model.config.crop_side).astype(np.float32)

    def _decide(self, placed: Sequence[_Placed]) -> list[_Placed]:
        """The garments among the proposals: sure enough, each one once, at most ``max_garments`` a picture,
        surest first. A part of a garment gives way to the whole, unless that is much less sure."""
        kept: dict[int, list[_Placed]] = {}
        for one in sorted(placed, key=lambda one: -one.score):
            if one.score < self.min_score:
                continue
            of_picture = kept.setdefault(one.image, [])
            same = [k for k, other in enumerate(of_picture) if _same_garment(one.box, other.box)]
            if not same:
                of_picture.append(one)
            elif len(same) == 1 and _gives_way(of_picture[same[0]], one):
                of_picture[same[0]] = one
        return [one for image in sorted(kept) for one in kept[image][: self.max_garments]]

    def _describe(self, pictures: Sequence[Image.Image], placed: Sequence[_Placed]) -> Iterator[Garment]:
        presence = np.stack([one.presence for one in placed])
        # Stripes are no regions: a garment without sleeves has all of them.
        seen = (presence == Presence.PRESENT)[..., None] | (not self.model.retrieval.regional)
        features, mirrored = self._features(pictures, placed)
        features, mirrored = features * seen, mirrored * seen[:, list(MIRROR)]
        kinds = np.stack([one.reading.kinds for one in placed]).astype(np.float32)
        if self.groups is not None:
            boxes = np.stack([one.box for one in placed])
            kinds = joint_opinion(kinds, self.groups.chances(features, mirrored, boxes, presence))
        for one, chances, plain, flipped in zip(placed, kinds, features, mirrored, strict=True):
            category = TORSO_CATEGORIES[int(chances.argmax())]
            yield Garment(
                box=one.box,
                score=one.score,
                category=category,
                group=Taxonomy.load(self.model.config.taxonomy).category(category).group or "",
                category_scores=chances,
                landmarks=np.concatenate(
                    [one.to_picture(one.reading.points), one.reading.visibility[:, None]], -1
                ).astype(np.float32),
                region_boxes=one.region_boxes,
                presence=one.presence,
                presence_score=one.reading.chances.max(-1).astype(np.float32),
                features=plain,
                mirrored_features=flipped,
            )

    def _features(
        self, pictures: Sequence[Image.Image], placed: Sequence[_Placed]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features of the garments and of their mirror images, (n, 5, d) float32 each."""
        branch = self.model.retrieval
        order = list(MIRROR)
        if isinstance(branch, CropRetrieval):
            cuts = np.stack([cut_regions(pictures[p.image], p.region_boxes, branch.side) for p in placed])
            regions = to_tensor(cuts).to(self.device)
            plain, flipped = branch(regions), branch(regions.flip(-1)[:, order])
        else:
            side = self.model.config.crop_side
            crops = torch.stack([p.crop for p in placed]).contiguous(memory_format=self.memory_format)
            mirrored = crops.flip(-1).contiguous(memory_format=self.memory_format)
            if isinstance(branch, StripeRetrieval):
                plain, flipped = branch(crops), branch(mirrored)
                return plain.float().cpu().numpy(), flipped.float().cpu().numpy()
            heat = self.model.landmarks.codec.guide(torch.stack([p.reading.heatmaps for p in placed]))
            found = np.stack([p.regions for p in placed])
            boxes = torch.from_numpy(found).to(self.device)
            turned = torch.from_numpy(mirror_boxes(found, side)[:, order]).to(self.device)
            swap = torch.from_numpy(Taxonomy.load(self.model.config.taxonomy).swap.copy()).to(self.device)
            plain, flipped = branch(crops, boxes, heat), branch(mirrored, turned, heat.flip(-1)[:, swap])
        return plain.float().cpu().numpy(), flipped.float().cpu().numpy()


def _is_part(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether box a (4,) shows a part of what the greater box b shows."""
    shared = intersections(a, b)
    return bool(shared > PART_OF_GARMENT * areas(a) and shared < SAME_GARMENT * areas(b))


def _gives_way(part: _Placed, whole: _Placed) -> bool:
    less_sure = _log_odds(part.score) - _log_odds(whole.score)
    return _is_part(part.box, whole.box) and less_sure <= WHOLE_LESS_SURE


def _log_odds(chance: float) -> float:
    chance = min(max(chance, 1e-6), 1 - 1e-6)
    return math.log(chance / (1 - chance))


def _same_garment(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(overlaps(a, b) > SAME_GARMENT) or _is_part(a, b) or _is_part(b, a)


def _proper(boxes: np.ndarray) -> np.ndarray:
    """Boxes (..., 4) as shares of a crop, inside it, uncrossed and with some area: edges are predicted one by
    one, and on a picture that is no garment they may say anything."""
    boxes = np.clip(boxes, 0, 1)
    low = np.minimum(np.minimum(boxes[..., :2], boxes[..., 2:]), 1 - _LEAST_SIDE)
    high = np.maximum(np.maximum(boxes[..., :2], boxes[..., 2:]), low + _LEAST_SIDE)
    return np.concatenate([low, high], -1)


def _by_shape(images: Sequence[np.ndarray]) -> list[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(image.shape, []).append(index)
    return list(groups.values())
