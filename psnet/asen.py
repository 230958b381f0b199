"""ASEN: one embedding per attribute, "same collar design, whatever the rest" (Ma et al., AAAI 2020).

Attribute-aware spatial attention (ASA) looks where the attribute is seen, attribute-aware channel attention
(ACA) keeps what tells its values apart. Both published variants, with the parameter names of the authors'
released models (https://github.com/Maryeon/asen), and the two methods that the paper compares with.

The trunk runs once per garment, whatever the number of attributes: what depends on the attribute alone is
made once, and the map is transformed once for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from psnet.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone
from psnet.config import bounded
from psnet.retrieval import unit_norm

# The coarsest branch of an HRNet has this stride; its branches only fit together at multiples of it.
_COARSEST = 32


@dataclass(frozen=True)
class AsenConfig:
    """What a set of weights is: changing any of these needs other weights.

    ``method``: the published variants v1 and v2, or the methods they are compared with: shared (one embedding
    for all attributes) and masks (conditional similarity networks, Veit et al., CVPR 2017). ``trunk``:
    resnet18, resnet34 or resnet50 up to the third stage, or a name for `psnet.backbone.Backbone`;
    ``channels`` of its map and of an embedding (resnet50: 1024, the others: 256), ``hidden`` of the
    attention. ``spatial`` and ``channel`` switch ASA and ACA off (ablations). Images are ``side`` px:
    ``fit`` centre (shorter side, then the middle, as published) or stretch (the aspect ratio is not kept, as
    the pipeline cuts garments). ``values``: what each of ``attributes`` can be.
    """

    method: Literal["v1", "v2", "shared", "masks"] = "v2"
    trunk: str = "resnet50"
    channels: int = bounded(1024, 1)
    hidden: int = bounded(512, 1)
    spatial: bool = True
    channel: bool = True
    side: int = bounded(224, 32)
    fit: Literal["centre", "stretch"] = "centre"
    attributes: tuple[str, ...] = ()
    values: dict[str, tuple[str, ...]] = field(default_factory=dict)


class AttributeOutput(NamedTuple):
    """``embeddings`` (n, attributes, channels) of unit norm; ``attention`` (n, attributes, h, w), which sums
    to 1 over the places of the map, None for a method without."""

    embeddings: Tensor
    attention: Tensor | None


class ResNetTrunk(nn.Module):
    """torchvision's ResNet up to its third stage: (n, 3, H, W) -> (n, 256 · expansion, H/16, W/16)."""

    mean: Tensor
    std: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        whole: Any = torchvision.models.get_model(name, weights=None)
        self.conv1, self.bn1 = whole.conv1, whole.bn1
        self.relu, self.maxpool = whole.relu, whole.maxpool
        self.layer1, self.layer2, self.layer3 = whole.layer1, whole.layer2, whole.layer3
        self.channels = whole.layer4[0].conv1.in_channels
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images in 0…1."""
        x = self.maxpool(self.relu(self.bn1(self.conv1((images - self.mean) / self.std))))
        return self.layer3(self.layer2(self.layer1(x)))


class AnySize(nn.Module):
    """A `Backbone` that takes any size: other images are resized to the next multiple of 32."""

    def __init__(self, name: str, channels: int) -> None:
        super().__init__()
        self.backbone = Backbone(name, channels)
        self.channels = channels

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) in 0…1 -> (n, channels, about H/8, about W/8)."""
        size = [-(-side // _COARSEST) * _COARSEST for side in images.shape[-2:]]
        if list(images.shape[-2:]) != size:
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        return self.backbone(images)


def _build_trunk(config: AsenConfig) -> ResNetTrunk | AnySize:
    if config.trunk not in ("resnet18", "resnet34", "resnet50"):
        return AnySize(config.trunk, config.channels)
    trunk = ResNetTrunk(config.trunk)
    if trunk.channels != config.channels:
        raise ValueError(f"channels: {config.trunk} has {trunk.channels}, not {config.channels}")
    return trunk


class AttributeNetwork(nn.Module):
    """What all methods share: images once through the trunk, then all attributes from its map."""

    def __init__(self, config: AsenConfig) -> None:
        super().__init__()
        self.config = config
        self.backbonenet = _build_trunk(config)

    def forward(self, images: Tensor) -> AttributeOutput:
        """Images (n, 3, H, W) in 0…1, of any size."""
        return self.describe(self.backbonenet(images))

    def describe(self, features: Tensor) -> AttributeOutput:
        """The trunk's map (n, channels, h, w) -> all attributes."""
        raise NotImplementedError


class Asen(AttributeNetwork):
    """What the two published variants share; they differ in how attributes are told apart."""

    def describe(self, features: Tensor) -> AttributeOutput:
        h, w = features.shape[-2:]
        places = features.flatten(2)
        attention: Tensor | None = None
        if self.config.spatial:
            attention = torch.softmax(self.attention_logits(features).flatten(2), -1)
            seen = torch.einsum("nap,ncp->nac", attention, places)
            attention = attention.unflatten(2, (h, w))
        else:
            seen = places.mean(-1).unsqueeze(1).expand(-1, len(self.config.attributes), -1)
        if self.config.channel:
            seen = seen * self.channel_gate(seen)
        return AttributeOutput(unit_norm(self.project(seen)), attention)

    def attention_logits(self, features: Tensor) -> Tensor:
        """ASA before its softmax: (n, channels, h, w) -> (n, attributes, h, w)."""
        raise NotImplementedError

    def attribute_view(self) -> Tensor:
        """The attributes as ACA sees them, (attributes, d)."""
        raise NotImplementedError

    def project(self, embeddings: Tensor) -> Tensor:
        """The last layer, if there is one."""
        return embeddings

    def channel_gate(self, seen: Tensor) -> Tensor:
        """ACA: what was seen (n, attributes, channels) -> weights in 0…1.

        The first layer takes what was seen and the attribute side by side; its second half is the same for
        all garments.
        """
        fc1: Any = self.fc1
        fc2: Any = self.fc2
        by_image, by_attribute = fc1.weight.split(
            [self.config.channels, fc1.in_features - self.config.channels], 1
        )
        hidden = F.linear(seen, by_image) + F.linear(self.attribute_view(), by_attribute, fc1.bias)
        return torch.sigmoid(fc2(torch.relu(hidden)))


class AsenV1(Asen):
    """As published at AAAI 2020: one-hot attributes, the map reduced by a convolution and tanh, a last linear
    layer."""

    def __init__(self, config: AsenConfig) -> None:
        super().__init__(config)
        count, channels, hidden = len(config.attributes), config.channels, config.hidden
        if config.spatial:
            self.mask_fc1 = nn.Linear(count, hidden, bias=False)
            self.conv1 = nn.Conv2d(channels, hidden, 1)
            self.conv2 = nn.Conv2d(hidden, 1, 1)
        if config.channel:
            self.mask_fc2 = nn.Linear(count, channels, bias=False)
            self.fc1 = nn.Linear(2 * channels, hidden)
            self.fc2 = nn.Linear(hidden, channels)
        self.feature_fc = nn.Linear(channels, channels)

    def attention_logits(self, features: Tensor) -> Tensor:
        # A convolution to one map after a product with the attribute is a convolution per attribute.
        conv2: Any = self.conv2
        kernels = torch.tanh(self.mask_fc1.weight.T) * conv2.weight.flatten(1)
        bias = conv2.bias.expand(len(kernels))
        return torch.tanh(F.conv2d(torch.tanh(self.conv1(features)), kernels[..., None, None], bias))

    def attribute_view(self) -> Tensor:
        return torch.relu(self.mask_fc2.weight.T)

    def project(self, embeddings: Tensor) -> Tensor:
        return self.feature_fc(embeddings)


class AsenV2(Asen):
    """The authors' second variant: an embedding table, batch norm, a scaled dot product over channels."""

    def __init__(self, config: AsenConfig) -> None:
        super().__init__(config)
        count, channels, hidden = len(config.attributes), config.channels, config.hidden
        if config.spatial or config.channel:
            self.attr_embedding = nn.Embedding(count, hidden)
        if config.spatial:
            self.attr_transform1 = nn.Linear(hidden, hidden)
            self.conv1 = nn.Conv2d(channels, hidden, 1)
            self.img_bn1 = nn.BatchNorm2d(hidden)
        if config.channel:
            self.attr_transform2 = nn.Linear(hidden, hidden)
            self.fc1 = nn.Linear(channels + hidden, hidden)
            self.fc2 = nn.Linear(hidden, channels)

    def attention_logits(self, features: Tensor) -> Tensor:
        attributes = torch.tanh(self.attr_transform1(self.attr_embedding.weight))
        image = torch.tanh(self.img_bn1(self.conv1(features)))
        return F.conv2d(image, attributes[..., None, None]) / self.config.hidden**0.5

    def attribute_view(self) -> Tensor:
        return torch.relu(self.attr_transform2(self.attr_embedding.weight))


class PooledNetwork(AttributeNetwork):
    """The methods ASEN is compared with: the mean over the map through a linear layer, the same for all
    attributes, or weighted by a learned mask per attribute (conditional similarity networks)."""

    def __init__(self, config: AsenConfig) -> None:
        super().__init__(config)
        self.embed_fc = nn.Linear(config.channels, config.channels)
        if config.method == "masks":
            self.masks = nn.Embedding(len(config.attributes), config.channels)
            nn.init.normal_(self.masks.weight, 0.9, 0.7)  # as its authors start

    def describe(self, features: Tensor) -> AttributeOutput:
        embedding = self.embed_fc(features.mean((-2, -1))).unsqueeze(1)
        if self.config.method == "masks":
            embedding = embedding * torch.relu(self.masks.weight)
        else:
            embedding = embedding.expand(-1, len(self.config.attributes), -1)
        return AttributeOutput(unit_norm(embedding), None)


def build_asen(config: AsenConfig) -> AttributeNetwork:
    """Raises ValueError for no attributes, an unknown trunk or channels that it does not have."""
    if not config.attributes:
        raise ValueError("attributes: none named")
    kinds: dict[str, type[AttributeNetwork]] = {"v1": AsenV1, "v2": AsenV2}
    return kinds.get(config.method, PooledNetwork)(config)
