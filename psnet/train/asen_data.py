"""What ASEN is trained on: triplets drawn from labels or listed by a data set, and what is held out."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from psnet.asen import AsenConfig, AttributeNetwork
from psnet.config import ConfigError
from psnet.crops import cut, whole_frame
from psnet.data import zappos
from psnet.data.attributes import (
    UNLABELLED,
    AttributeDataError,
    AttributeImages,
    AttributeMeta,
    read_attribute_image,
    read_ranking,
    read_training,
)
from psnet.evaluation.attributes import (
    agreement_thresholds,
    embed_ranking,
    embed_some,
    mean_average_precision,
    score_ranking,
    triplet_accuracy,
)
from psnet.regions import MIRROR, NUM_REGIONS
from psnet.train.asen_settings import AsenSettings

ROLES = 3
"""Anchor, positive, negative."""


class Triplets(Protocol):
    """Triplet ``number`` (any non-negative integer): attribute, anchor, positive and negative image."""

    def triplet(self, number: int) -> tuple[int, int, int, int]: ...


class BalancedTriplets:
    """Drawn as the authors do: an attribute, two of its values, two images of the one and one of the other.

    Triplet i depends on (seed, i) alone. Raises AttributeDataError when no attribute has two values with two
    images each.
    """

    def __init__(self, images: AttributeImages, seed: int) -> None:
        self.seed = seed
        # Per attribute, the images of each value that has at least two (an anchor needs a positive).
        members = [
            [m for v in range(len(values)) if len(m := np.flatnonzero(images.labels[:, a] == v)) > 1]
            for a, values in enumerate(images.meta.values)
        ]
        self.usable = [(a, of_values) for a, of_values in enumerate(members) if len(of_values) > 1]
        if not self.usable:
            raise AttributeDataError(
                f"{images.meta.dataset}: no attribute has two values with two images each; triplets need that"
            )

    def triplet(self, number: int) -> tuple[int, int, int, int]:
        rng = np.random.default_rng((self.seed, number))
        attribute, of_values = self.usable[int(rng.integers(len(self.usable)))]
        same, other = rng.choice(len(of_values), 2, replace=False)
        anchor, positive = rng.choice(of_values[same], 2, replace=False)
        return attribute, int(anchor), int(positive), int(rng.choice(of_values[other]))


class ListedTriplets:
    """Drawn from a list (t, 4): a data set's own triplets, an attribute as often as another."""

    def __init__(self, listed: np.ndarray, seed: int) -> None:
        self.seed = seed
        self.of_attribute = [listed[listed[:, 0] == a] for a in np.unique(listed[:, 0])]

    def triplet(self, number: int) -> tuple[int, int, int, int]:
        rng = np.random.default_rng((self.seed, number))
        listed = self.of_attribute[int(rng.integers(len(self.of_attribute)))]
        attribute, anchor, positive, negative = listed[int(rng.integers(len(listed)))].tolist()
        return attribute, anchor, positive, negative


class TripletSamples:
    """Image ``index`` of a run: role ``index % 3`` (anchor, positive, negative) of triplet ``index // 3``.

    ``image`` (3, side, side) uint8; ``attribute`` that the triplet is about; ``labels`` (attributes,) of the
    image, -1 where unknown; ``regions`` (5, 4) xyxy as shares of the image, NaN where absent or unknown.
    """

    def __init__(
        self,
        images: AttributeImages,
        triplets: Triplets,
        config: AsenConfig,
        seed: int = 0,
        augment: float = 0.0,
    ) -> None:
        self.images, self.triplets, self.config = images, triplets, config
        self.seed, self.augment = seed, augment

    def sample(self, index: int) -> dict[str, Tensor]:
        attribute, *images = self.triplets.triplet(index // ROLES)
        image = images[index % ROLES]
        rng = np.random.default_rng((self.seed, 1, index))
        pixels, regions = self._read(image, rng)
        return {
            "image": torch.from_numpy(pixels),
            "attribute": torch.tensor(attribute),
            "labels": torch.from_numpy(self.images.labels[image]),
            "regions": torch.from_numpy(regions),
        }

    def _read(self, image: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        picture = read_attribute_image(self.images.paths[image])
        frame = whole_frame(*picture.size, self.config.fit)
        size = np.tile(frame[2:] - frame[:2], 2)
        if self.augment:
            # Boxes that a detector finds miss the garment's by a little.
            frame = frame + rng.uniform(-0.5, 0.5, 4) * self.augment * size
            frame = np.clip(frame, 0, [picture.width, picture.height] * 2)
            size = np.tile(np.maximum(frame[2:] - frame[:2], 2), 2)
        pixels = cut(picture, frame, self.config.side)
        if self.augment:
            light = np.exp(rng.normal(0, self.augment, 3) * 0.5 + rng.normal(0, self.augment))
            pixels = np.clip(pixels * light, 0, 255).astype(np.uint8)
        boxes = self.images.region_boxes
        regions = np.full((NUM_REGIONS, 4), np.nan) if boxes is None else boxes[image]
        regions = ((regions - np.tile(frame[:2], 2)) / size).astype(np.float32)
        if rng.random() < 0.5:
            x0, y0, x1, y1 = regions.T
            pixels, regions = pixels[:, ::-1], np.stack([1 - x1, y0, 1 - x0, y1], 1)[list(MIRROR)]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)), np.ascontiguousarray(regions)


class AttributeData(Protocol):
    """A data set for training: its images, its triplets, and what it says of a network on held-out ones."""

    images: AttributeImages

    def triplets(self, seed: int) -> Triplets: ...

    def figures(self, model: AttributeNetwork, precision: str) -> dict[str, float]: ...

    def thresholds(self, model: AttributeNetwork, precision: str) -> dict[str, float]: ...


class LabelledData:
    """FashionAI, DARN, DeepFashion, rendered garments: labels to train on, a ranking to judge by."""

    def __init__(self, settings: AsenSettings) -> None:
        root, missing = Path(settings.root), settings.skip_missing
        self.images = read_training(root, settings.dataset, skip_missing=missing)
        self.held = read_ranking(root, settings.dataset, "valid", skip_missing=missing)
        if not len(self.held.queries) or not len(self.held.candidates):
            raise AttributeDataError(f"{root / settings.dataset}: no queries or candidates of split valid")

    def triplets(self, seed: int) -> Triplets:
        return BalancedTriplets(self.images, seed)

    def figures(self, model: AttributeNetwork, precision: str) -> dict[str, float]:
        scores = score_ranking(self.held, embed_ranking(model, self.held, precision))
        return {"mAP": mean_average_precision(scores), "triplets": float(scores.triplets.mean())}

    def thresholds(self, model: AttributeNetwork, precision: str) -> dict[str, float]:
        return agreement_thresholds(
            self.held, embed_ranking(model, self.held, precision), self.images.meta.names
        )


class ZapposData:
    """Zappos50k: triplets alone. Raises ConfigError when the loss wants labels."""

    def __init__(self, settings: AsenSettings) -> None:
        if settings.triplets != "drawn":
            raise ConfigError(f"triplets: {zappos.DATASET} has no labels; set triplets=drawn")
        root, missing = Path(settings.root), settings.skip_missing
        self.listed = zappos.read_zappos(root, "train", skip_missing=missing)
        self.held = zappos.read_zappos(root, "val", skip_missing=missing)
        meta = AttributeMeta(zappos.DATASET, zappos.ATTRIBUTES, ((),) * len(zappos.ATTRIBUTES))
        labels = np.full((len(self.listed.paths), len(meta.names)), UNLABELLED, np.int64)
        self.images = AttributeImages(meta, self.listed.paths, labels, None)

    def triplets(self, seed: int) -> Triplets:
        return ListedTriplets(self.listed.triplets, seed)

    def figures(self, model: AttributeNetwork, precision: str) -> dict[str, float]:
        used = np.unique(self.held.triplets[:, 1:])
        embeddings = embed_some(model, self.held.paths, used, precision)
        return {"triplets": float(triplet_accuracy(embeddings, self.held.triplets).mean())}

    def thresholds(self, model: AttributeNetwork, precision: str) -> dict[str, float]:
        """None: a triplet does not say from where on two images are the same."""
        return {}


def load_data(settings: AsenSettings) -> AttributeData:
    """The data set that ``settings`` names. Raises AttributeDataError, ConfigError."""
    return ZapposData(settings) if settings.dataset == zappos.DATASET else LabelledData(settings)
