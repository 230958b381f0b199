"""Categories and landmarks of a labelling, as data: names, numbering, mirror partners, groups.

Two labellings are known: ``deepfashion2`` (13 categories, 294 landmarks, each category its own) and
``clothing11`` (eleven points shared by the torso categories). `to_clothing11` goes from the first to the
second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import yaml

_FOLDER = Path(__file__).with_name("taxonomies")

# DeepFashion2's categories that have the five regions, in the order of their ids.
TORSO_CATEGORIES: tuple[str, ...] = (
    "short_sleeve_top",
    "long_sleeve_top",
    "short_sleeve_outwear",
    "long_sleeve_outwear",
    "vest",
    "sling",
    "short_sleeve_dress",
    "long_sleeve_dress",
    "vest_dress",
    "sling_dress",
)


@cache
def _read(name: str) -> dict[str, Any]:
    path = _FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in _FOLDER.glob("*.yaml")))
        raise ValueError(f"unknown taxonomy {name!r}; known: {known}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Category:
    """One category of a taxonomy.

    ``id`` is the data set's own number; ``group`` one of PS-Net's four or None for legwear; ``indices`` (n,)
    are the places, counted from 0, of the category's landmarks in the taxonomy's vector; ``swap`` (n,) gives,
    inside the category, every landmark's partner in a mirrored picture; ``parts`` names places inside the
    category, from 0.
    """

    name: str
    id: int
    group: str | None
    indices: np.ndarray
    swap: np.ndarray
    parts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Taxonomy:
    """``landmarks`` (K) names, ``swap`` (K,) int64 partner of each in a mirrored picture, ``categories`` by
    name."""

    name: str
    landmarks: tuple[str, ...]
    swap: np.ndarray
    categories: Mapping[str, Category]

    def __len__(self) -> int:
        return len(self.landmarks)

    @staticmethod
    @cache
    def load(name: str) -> Taxonomy:
        """Read a taxonomy shipped with the package. Raises ValueError for an unknown name."""
        data = _read(name)
        return _shared(data) if "landmarks" in data else _per_category(data)

    def category(self, name: str) -> Category:
        """Raises ValueError for a category the taxonomy lacks."""
        try:
            return self.categories[name]
        except KeyError:
            raise ValueError(
                f"taxonomy {self.name} has no category {name!r}; known: {', '.join(self.categories)}"
            ) from None


def _partners(count: int, pairs: list[tuple[int, int]]) -> np.ndarray:
    swap = np.arange(count)
    for a, b in pairs:
        swap[a], swap[b] = b, a
    swap.flags.writeable = False
    return swap


def _shared(data: dict[str, Any]) -> Taxonomy:
    names = tuple(data["landmarks"])
    swap = _partners(len(names), [(names.index(a), names.index(b)) for a, b in data["swap"]])
    everything = np.arange(len(names))
    everything.flags.writeable = False
    reference = Taxonomy.load("deepfashion2")
    categories = {}
    for name in TORSO_CATEGORIES:
        known = reference.category(name)
        categories[name] = Category(name, known.id, known.group, everything, swap)
    return Taxonomy(data["name"], names, swap, MappingProxyType(categories))


def _per_category(data: dict[str, Any]) -> Taxonomy:
    names: list[str] = []
    pairs: list[tuple[int, int]] = []
    categories: dict[str, Category] = {}
    for name, entry in data["categories"].items():
        start, count = entry["first"] - 1, entry["count"]
        if start != len(names):
            raise ValueError(f"{data['name']}: {name} starts at {start + 1}, expected {len(names) + 1}")
        names += [f"{name}/{number}" for number in range(1, count + 1)]
        local = [(a - 1, b - 1) for a, b in entry["swap"]]
        pairs += [(start + a, start + b) for a, b in local]
        indices = np.arange(start, start + count)
        indices.flags.writeable = False
        parts = {part: tuple(n - 1 for n in numbers) for part, numbers in entry["parts"].items()}
        categories[name] = Category(
            name, entry["id"], entry["group"], indices, _partners(count, local), MappingProxyType(parts)
        )
    return Taxonomy(data["name"], tuple(names), _partners(len(names), pairs), MappingProxyType(categories))


@cache
def _clothing11_weights(category: str) -> tuple[np.ndarray, np.ndarray]:
    """(11, n) weights of the category's landmarks, and (11,) bool, which of the points the category has."""
    entry = _read("deepfashion2")["categories"].get(category, {})
    if "clothing11" not in entry:
        raise ValueError(f"{category!r} is no torso category; known: {', '.join(TORSO_CATEGORIES)}")
    names = Taxonomy.load("clothing11").landmarks
    weights = np.zeros((len(names), entry["count"]))
    for name, mixture in entry["clothing11"].items():
        for number, weight in mixture.items():
            weights[names.index(name), number - 1] = weight
    return weights, weights.sum(1) > 0


def to_clothing11(category: str, landmarks: np.ndarray) -> np.ndarray:
    """DeepFashion2 landmarks of one category, (n, 3) x, y, visibility, to the eleven points, (11, 3) float32.

    Visibility is the least of the landmarks a point is made of; points the category lacks (a vest's cuffs)
    are zeros. Raises ValueError for legwear.
    """
    weights, known = _clothing11_weights(category)
    if landmarks.shape != (weights.shape[1], 3):
        raise ValueError(f"{category} has {weights.shape[1]} landmarks of 3 values, got {landmarks.shape}")
    points = np.zeros((len(weights), 3), np.float32)
    points[:, :2] = weights @ landmarks[:, :2]
    visibility = np.where(weights > 0, landmarks[None, :, 2], np.inf).min(1)
    points[:, 2] = np.where(known, visibility, 0)
    points[points[:, 2] == 0] = 0
    return points
