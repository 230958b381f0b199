"""Training of ASEN and of what it is compared with: triplets of an attribute, margin on cosine similarity.

Source: Ma et al., AAAI 2020, section 3.3, and the authors' samplers. An attribute is drawn, then two of its
values, two images of the one (anchor, positive) and one of the other (negative): rare attributes and values
are met as often as common ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from psnet.asen import AnySize, AsenConfig, AttributeNetwork, AttributeOutput, ResNetTrunk, build_asen
from psnet.asen_attention import attention_inside
from psnet.asen_weights import save_asen
from psnet.config import ConfigError, as_dict
from psnet.data.attributes import UNLABELLED, AttributeMeta
from psnet.train.asen_data import ROLES, AttributeData, TripletSamples, load_data
from psnet.train.asen_settings import AsenSettings, Method, read_methods
from psnet.train.loop import fit, trained_steps
from psnet.weights import load_psnet


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


def network_config(settings: AsenSettings, method: Method, meta: AttributeMeta) -> AsenConfig:
    """The configuration of one of the networks that ``settings`` compares."""
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
    """Train the methods that ``settings`` names, one after another, each into OUT/NAME.

    Raises:
        ValueError: a mistake in the settings or the data, one line.
    """
    methods = read_methods(settings)
    if settings.triplets == "drawn" and settings.loop.batch % ROLES:
        raise ConfigError(
            f"loop.batch: counts images, {ROLES} a triplet: a multiple of {ROLES}, not {settings.loop.batch}"
        )
    data = load_data(settings)
    for name, method in methods.items():
        print(f"{name}: {method}", flush=True)
        _train_method(settings, name, method, data)


def _train_method(settings: AsenSettings, name: str, method: Method, data: AttributeData) -> None:
    torch.manual_seed(settings.seed)
    meta = data.images.meta
    config = network_config(settings, method, meta)
    model = build_asen(config)
    start_trunk(model, settings)
    loop = replace(settings.loop, device=settings.device, precision=settings.precision, seed=settings.seed)

    def figures(network: nn.Module) -> dict[str, float]:
        return data.figures(cast(AttributeNetwork, network), settings.precision)

    out = Path(settings.out) / name
    samples = TripletSamples(
        data.images, data.triplets(settings.seed), config, settings.seed, settings.augment
    )
    course = {
        "config": as_dict(config),
        "dataset": settings.dataset,
        "images": len(data.images.paths),
        "start": settings.start,
        "margin": settings.margin,
        "triplets": settings.triplets,
        "augment": settings.augment,
        "guidance": method.guidance,
    }
    loss = attribute_loss(settings, method, meta.region_mask())
    fit(model, samples, loss, out, loop, figures, course=course)
    steps = trained_steps(out)
    provenance = {"dataset": settings.dataset, "steps": steps, "seed": settings.seed, **figures(model)}
    save_asen(model, out, data.thresholds(model, settings.precision), provenance)


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
