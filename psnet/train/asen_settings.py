"""What is trained and measured about ASEN, as one configuration file for both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from psnet.config import ConfigError, bounded, load_config
from psnet.train.loop import LoopSettings, Precision


@dataclass(frozen=True)
class Method:
    """One network to train and compare; see `psnet.asen.AsenConfig` for the first three. ``guidance``: weight
    of the loss that draws the attention into the labelled regions of an attribute, where the data set has
    them. ``title``: its name in the tables."""

    method: Literal["v1", "v2", "shared", "masks"] = "v2"
    spatial: bool = True
    channel: bool = True
    guidance: float = bounded(0.0, 0)
    title: str = ""


@dataclass(frozen=True)
class AsenSettings:
    """``root`` and ``dataset``: data in the authors' layout (`psnet.data.attributes`); ``skip_missing``
    leaves out images that are not there. ``methods``: what is trained and compared, all with the same
    schedule; ``main``: the one that ships. ``start``: where the trunk's weights come from: "landmarks" (this
    product's landmark branch, of the weights folder ``weights``, null: the shipped one), "imagenet"
    (torchvision's, which are fetched) or "random".

    ``triplets``: drawn (the published loss: the drawn triplets alone) or batch (every triplet that the labels
    of a batch permit and that violates the margin; each image then teaches all of its attributes). ``loop``:
    ``batch`` counts images, three a triplet; the learning rate falls as a cosine, or as published by
    ``decay`` every ``decay_every`` steps. ``augment``: share by which a garment's frame and its colours vary
    in training (published: flips alone, 0). ``labels``: hand-labelled photographs whose regions the attention
    is measured on, and their ``split``.
    """

    root: str = ""
    dataset: str = "Rendered"
    skip_missing: bool = False
    out: str = "asen"
    trunk: str = "hrnet_w18_small"
    channels: int = bounded(256, 1)
    hidden: int = bounded(128, 1)
    side: int = bounded(128, 32)
    fit: Literal["centre", "stretch"] = "stretch"
    start: Literal["landmarks", "imagenet", "random"] = "landmarks"
    weights: str | None = None
    methods: dict[str, dict[str, Any]] = field(default_factory=lambda: {"asen": {}})
    main: str = "asen"
    margin: float = bounded(0.2, 0)
    triplets: Literal["drawn", "batch"] = "batch"
    augment: float = bounded(0.0, 0, 1)
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(steps=300, batch=48, weight_decay=0.0))
    device: str = "auto"
    precision: Precision = "float32"
    seed: int = 0
    labels: str | None = None
    split: str = "test"
    pictures: str | None = None


def read_methods(settings: AsenSettings) -> dict[str, Method]:
    """The methods by name.

    Raises:
        ConfigError: an unknown key or value, no method, or an unknown main one.
    """
    methods = {name: _method(name, values) for name, values in settings.methods.items()}
    if settings.main not in methods:
        raise ConfigError(f"main: no method {settings.main!r}; known: {', '.join(methods) or 'none'}")
    return methods


def _method(name: str, values: Mapping[str, Any]) -> Method:
    try:
        return load_config(Method, values)
    except ConfigError as error:
        raise ConfigError(f"methods.{name}: {error}") from None
