"""Training of ASEN and of what it is compared with: triplets of an attribute, margin on cosine similarity.

Source: Ma et al., AAAI 2020, section 3.3, and the authors' samplers. An attribute is drawn, then two of its
values, two images of the one (anchor, positive) and one of the other (negative): rare attributes and values
are met as often as common ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from psnet.asen import AnySize, AsenConfig, AttributeNetwork, AttributeOutput, ResNetTrunk, build_asen
from psnet.asen_weights import save_asen
from psnet.config import ConfigError
from psnet.crops import cut, whole_frame
from psnet.data.attributes import (
    UNLABELLED,
    AttributeDataError,
    AttributeImages,
    AttributeRanking,
    read_attribute_image,
    read_ranking,
    read_training,
)
from psnet.evaluation.attributes import (
    agreement_thresholds,
    embed_ranking,
    mean_average_precision,
    score_ranking,
)
from psnet.train.asen_settings import AsenSettings, Method, read_methods
from psnet.train.loop import fit
from psnet.weights import load_psnet

ROLES = 3  # anchor, positive, negative


class TripletSamples:
    """Image ``index`` of a run: role ``index % 3`` (anchor, positive, negative) of triplet ``index // 3``.

    ``image`` (3, side, side) uint8; ``attribute`` that the triplet is about; ``labels`` (attributes,) of the
    image, -1 where unknown; ``regions`` (5, 4) xyxy as shares of the image, NaN where absent or unknown.
    """

    def __init__(self, images: AttributeImages, config: AsenConfig, seed: int, augment: float = 0.0) -> None:
        self.images, self.config, self.seed, self.augment = images, config, seed, augment
        # Per attribute, the images of each value that has at least two (an anchor needs a positive).
        self.members = [
            [m for v in range(len(values)) if len(m := np.flatnonzero(images.labels[:, a] == v)) > 1]
            for a, values in enumerate(images.meta.values)
        ]
        self.usable = [a for a, members in enumerate(self.members) if len(members) > 1]
        if not self.usable:
            raise AttributeDataError(
                f"{images.meta.dataset}: no attribute has two values with two images each; triplets need that"
            )

    def triplet(self, number: int) -> tuple[int, int, int, int]:
        """Attribute, anchor, positive and negative image; depends on (seed, number) alone."""
        rng = np.random.default_rng((self.seed, number))
        attribute = self.usable[int(rng.integers(len(self.usable)))]
        members = self.members[attribute]
        same, other = rng.choice(len(members), 2, replace=False)
        anchor, positive = rng.choice(members[same], 2, replace=False)
        return attribute, int(anchor), int(positive), int(rng.choice(members[other]))

    def sample(self, index: int) -> dict[str, Tensor]:
        attribute, *images = self.triplet(index // ROLES)
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
        regions = np.full((5, 4), np.nan) if boxes is None else boxes[image]
        regions = ((regions - np.tile(frame[:2], 2)) / size).astype(np.float32)
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
            regions = np.stack([1 - regions[:, 2], regions[:, 1], 1 - regions[:, 0], regions[:, 3]], 1)[
                [0, 2, 1, 3, 4]
            ]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)), np.ascontiguousarray(regions)


def attribute_loss(
    settings: AsenSettings, method: Method, region_mask: np.ndarray
) -> Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]:
    """The loss of a batch of `TripletSamples`; ``region_mask`` (attributes, 5) as of `AttributeMeta`."""
    mask = torch.from_numpy(region_mask)

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        output: AttributeOutput = model(batch["image"].float() / 255)
        embeddings = output.embeddings.float()
        if settings.triplets == "drawn":
            parts = {"triplet": drawn_triplets(embeddings, batch["attribute"], settings.margin)}
        else:
            parts = {"triplet": batch_triplets(embeddings, batch["labels"], settings.margin)}
        if method.guidance and output.attention is not None:
            inside, known = attention_inside(
                output.attention.float(), batch["regions"], mask.to(embeddings.device)
            )
            missed = -torch.log(inside.clamp_min(1e-4))
            parts["guidance"] = method.guidance * (missed * known).sum() / known.sum().clamp_min(1)
        return parts

    return loss


def drawn_triplets(embeddings: Tensor, attribute: Tensor, margin: float) -> Tensor:
    """max(0, margin + cos(anchor, negative) − cos(anchor, positive)), mean over the triplets as drawn.

    embeddings (3 t, attributes, d) in the order of `TripletSamples`, attribute (3 t,) -> scalar.
    """
    own = embeddings[torch.arange(len(embeddings)), attribute].unflatten(0, (-1, ROLES))
    anchor, positive, negative = own.unbind(1)
    return F.relu(margin + (anchor * negative).sum(-1) - (anchor * positive).sum(-1)).mean()


def batch_triplets(embeddings: Tensor, labels: Tensor, margin: float) -> Tensor:
    """The same loss over every triplet of the batch that violates the margin (Hermans et al., 2017, "batch
    all"): mean over an anchor's triplets, then over the anchors of a value, its values, the attributes.

    embeddings (n, attributes, d), labels (n, attributes), -1 where unknown -> scalar.
    """
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    losses = []
    for a in range(labels.shape[1]):
        label = labels[:, a]
        known = label != UNLABELLED
        same = (label[:, None] == label) & ~itself & known
        other = (label[:, None] != label) & known
        cos = embeddings[:, a] @ embeddings[:, a].T
        violation = F.relu(margin + cos[:, None, :] - cos[:, :, None])  # anchor, positive, negative
        violation = violation * (same[:, :, None] & other[:, None, :])
        of_anchor = violation.sum((1, 2)) / (violation > 0).sum((1, 2)).clamp_min(1)
        usable = same.any(1) & other.any(1) & known
        if usable.any():
            values, place = torch.unique(label[usable], return_inverse=True)
            total = of_anchor.new_zeros(len(values)).index_add(0, place, of_anchor[usable])
            losses.append((total / torch.bincount(place, minlength=len(values))).mean())
    return torch.stack(losses).mean() if losses else embeddings.sum() * 0


def attention_inside(attention: Tensor, regions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """How much of an attribute's attention lies in its regions.

    attention (n, attributes, h, w), regions (n, 5, 4) as shares of the image, mask (attributes, 5) -> share
    (n, attributes) and whether the image has any region of the attribute.
    """
    cover, there = _cover(regions, *attention.shape[-2:])
    # Regions overlap: what lies in two of them counts once.
    joined = torch.einsum("nrhw,ar->narhw", cover, mask.to(cover.dtype)).amax(2)
    return (joined * attention).sum((-2, -1)), (there[:, None] & mask).any(-1)


def _cover(regions: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Share of each cell of an h × w grid that a region covers, (n, 5, h, w), and whether it is there."""
    there = ~torch.isnan(regions[..., 0])
    x0, y0, x1, y1 = torch.nan_to_num(regions).unbind(-1)
    columns = torch.arange(w, device=regions.device)
    rows = torch.arange(h, device=regions.device)
    across = (
        torch.minimum(x1[..., None] * w, columns + 1) - torch.maximum(x0[..., None] * w, columns)
    ).clamp(0, 1)
    down = (torch.minimum(y1[..., None] * h, rows + 1) - torch.maximum(y0[..., None] * h, rows)).clamp(0, 1)
    return down[..., :, None] * across[..., None, :] * there[..., None, None], there


def network_config(settings: AsenSettings, method: Method, images: AttributeImages) -> AsenConfig:
    """The configuration of one of the networks that ``settings`` compares."""
    meta = images.meta
    return AsenConfig(
        method=method.method,
        trunk=settings.trunk,
        channels=settings.channels,
        hidden=settings.hidden,
        spatial=method.spatial,
        channel=method.channel,
        side=settings.side,
        fit=settings.fit,
        attributes=meta.names,
        values=dict(zip(meta.names, meta.values, strict=True)),
    )


def train_asen(settings: AsenSettings) -> None:
    """Train the methods that ``settings`` names, one after another, each into OUT/NAME, where a method that
    is done is left as it is.

    Raises:
        ValueError: a mistake in the settings or the data, one line.
    """
    methods = read_methods(settings)
    images = read_training(Path(settings.root), settings.dataset, skip_missing=settings.skip_missing)
    held = read_ranking(Path(settings.root), settings.dataset, "valid", skip_missing=settings.skip_missing)
    for name, method in methods.items():
        print(f"{name}: {method}", flush=True)
        _train_method(settings, name, method, images, held)


def _train_method(
    settings: AsenSettings, name: str, method: Method, images: AttributeImages, held: AttributeRanking
) -> None:
    torch.manual_seed(settings.seed)
    config = network_config(settings, method, images)
    model = build_asen(config)
    start_trunk(model, settings)
    out = Path(settings.out) / name
    loop = replace(settings.loop, device=settings.device, precision=settings.precision, seed=settings.seed)

    def figures(network: nn.Module) -> dict[str, float]:
        assert isinstance(network, AttributeNetwork)
        scores = score_ranking(held, embed_ranking(network, held, settings.precision))
        return {"mAP": mean_average_precision(scores), "triplets": float(scores.triplets.mean())}

    trained = fit(
        model,
        TripletSamples(images, config, settings.seed, settings.augment),
        attribute_loss(settings, method, images.meta.region_mask()),
        out,
        loop,
        figures,
    )
    assert isinstance(trained, AttributeNetwork)
    thresholds = agreement_thresholds(
        held, embed_ranking(trained, held, settings.precision), config.attributes
    )
    provenance = {"dataset": settings.dataset, "steps": loop.steps, "seed": settings.seed, **figures(trained)}
    save_asen(trained, out, thresholds, provenance)


def start_trunk(model: AttributeNetwork, settings: AsenSettings) -> None:
    """Give the trunk the weights it starts from. Raises ConfigError where the trunk has no such."""
    trunk = model.backbonenet
    if settings.start == "imagenet":
        if not isinstance(trunk, ResNetTrunk):
            raise ConfigError(f"start: imagenet is for resnet18, resnet34 and resnet50, not {settings.trunk}")
        whole = torchvision.models.get_model(settings.trunk, weights="IMAGENET1K_V1").state_dict()
        trunk.load_state_dict({k: whole[k] for k in trunk.state_dict()})
    elif settings.start == "landmarks":
        network = load_psnet(settings.weights)
        if not isinstance(trunk, AnySize) or settings.trunk != network.config.backbone:
            raise ConfigError(
                f"start: landmarks is for the trunk {network.config.backbone}, not {settings.trunk}"
            )
        # The layer that fuses the scales has another width here and starts anew.
        trunk.backbone.trunk.load_state_dict(network.landmarks.backbone.trunk.state_dict())
