"""What ASEN's embeddings say about a run's garments: in which attributes a pair agrees, and which garments
are alike in one attribute.

Needs garments that were extracted with ``extract.attributes: true``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.extract import garment_shards
from pipeline.rundir import RunDirectory
from pipeline.schema import unpack_attributes
from pipeline.settings import Settings

# How many points of the score that suspects are ranked by an agreement in all attributes is worth. Chosen on
# rendered catalogues (benchmarks/ASEN.md).
RERANK_WEIGHT = 0.2

Garment = tuple[str, int]
"""``image_sha256`` and ``garment_index``."""


@dataclass(frozen=True)
class Attributes:
    """``names`` of the attributes, and the cosine from which two garments agree in each; inf where the
    weights do not say, and nobody can tell."""

    names: tuple[str, ...]
    thresholds: np.ndarray

    def place(self, name: str) -> int:
        """Raises UserError for an unknown attribute."""
        if name not in self.names:
            raise UserError(f"attribute {name!r} is unknown; known: {', '.join(self.names)}")
        return self.names.index(name)


@dataclass(frozen=True)
class Agreement:
    """Of one pair: names of the attributes in which it agrees and differs, the mean ``similarity`` (cosine)
    of all, and the ``share`` that agrees of those that can be told; a half where none can."""

    agreeing: tuple[str, ...]
    differing: tuple[str, ...]
    similarity: float

    @property
    def share(self) -> float:
        told = len(self.agreeing) + len(self.differing)
        return len(self.agreeing) / told if told else 0.5


def read_attributes(run: RunDirectory, settings: Settings) -> Attributes:
    """What the weights say of the attributes that the run's garments were extracted with.

    Raises:
        UserError: the run has no attributes, or the weights are not there or are others by now.
    """
    from psnet.asen_weights import asen_tag, read_asen
    from psnet.weights import WeightsError

    run.require("extract")
    known = run.stage_record("extract").get("attribute_tag")
    if not known:
        raise UserError(
            f"{run.path}: its garments have no attributes; repeat the scan with --set extract.attributes=true"
        )
    try:
        if asen_tag(settings.extract.attribute_weights) != known:
            raise UserError(
                f"{run.path}: its attributes are of {known}; name those weights with "
                "extract.attribute_weights, or repeat the scan"
            )
        description = read_asen(settings.extract.attribute_weights)
    except WeightsError as error:
        raise UserError(str(error)) from None
    names = tuple(description["config"]["attributes"])
    thresholds = [description["thresholds"].get(name, np.inf) for name in names]
    return Attributes(names, np.array(thresholds, np.float32))


def read_embeddings(
    run: RunDirectory, pictures: Iterable[str] | None, count: int, place: int | None = None
) -> dict[Garment, np.ndarray]:
    """Embeddings (count, d) float32 of the garments of these pictures (None: of all); with ``place`` that of
    one attribute alone, (d,).

    Memory is O(garments and attributes asked for).
    """
    chosen = None if pictures is None else pa.array(sorted(set(pictures)), pa.string())
    found: dict[Garment, np.ndarray] = {}
    for shard in garment_shards(run):
        rows = pq.read_table(shard, columns=["image_sha256", "garment_index", "attributes"])
        rows = rows.filter(pc.is_valid(rows["attributes"]))
        if chosen is not None:
            rows = rows.filter(pc.is_in(rows["image_sha256"], value_set=chosen))
        for row in rows.to_pylist():
            key = (row["image_sha256"], row["garment_index"])
            embeddings = unpack_attributes(row["attributes"], count)
            found[key] = embeddings if place is None else embeddings[place].copy()
    return found


def agreements(
    pairs: Sequence[tuple[Garment, Garment]], embeddings: Mapping[Garment, np.ndarray], attributes: Attributes
) -> list[Agreement | None]:
    """Of each pair of garments; None where one of them has no embeddings."""
    out: list[Agreement | None] = []
    for a, b in pairs:
        if a not in embeddings or b not in embeddings:
            out.append(None)
            continue
        cosines = (embeddings[a] * embeddings[b]).sum(-1)
        answers = [
            (name, _agrees(cosine, threshold))
            for name, cosine, threshold in zip(attributes.names, cosines, attributes.thresholds, strict=True)
        ]
        out.append(
            Agreement(
                tuple(name for name, agrees in answers if agrees is True),
                tuple(name for name, agrees in answers if agrees is False),
                float(cosines.mean()),
            )
        )
    return out


def _agrees(cosine: float, threshold: float) -> bool | None:
    """None where the threshold does not say."""
    return bool(cosine >= threshold) if np.isfinite(threshold) else None


def reranked(
    scores: Sequence[float], said: Sequence[Agreement | None], weight: float = RERANK_WEIGHT
) -> list[int]:
    """The order of pairs by their score plus ``weight`` times the share of attributes that agree; a pair
    without attributes counts as one that agrees in half of them. Ties stay as they are."""
    total = [
        score + weight * (0.5 if one is None else one.share) for score, one in zip(scores, said, strict=True)
    ]
    return sorted(range(len(total)), key=lambda i: -total[i])


@dataclass(frozen=True)
class Similar:
    """An item whose garment is alike in one attribute; ``agrees``: the cosine reaches the threshold; None
    where the weights have none."""

    item_id: str
    title: str
    cosine: float
    agrees: bool | None


def similar(
    run: RunDirectory, settings: Settings, item_id: str, attribute: str, limit: int = 20
) -> list[Similar]:
    """The ``limit`` items of the run most alike to ``item_id`` in one attribute, best first; of pictures with
    several garments the most alike one counts.

    Raises:
        UserError: an unknown item or attribute, an item without a garment, a run without attributes.
    """
    attributes = read_attributes(run, settings)
    place = attributes.place(attribute)
    items = pq.read_table(run.items_path, columns=["item_id", "title", "image_sha256"]).to_pylist()
    asked = next((item for item in items if item["item_id"] == item_id), None)
    if asked is None:
        raise UserError(f"{run.path}: no item {item_id!r} in this run's catalogue")
    of_picture: dict[str, list[np.ndarray]] = {}
    for (picture, _), embedding in read_embeddings(run, None, len(attributes.names), place).items():
        of_picture.setdefault(picture, []).append(embedding)
    query = of_picture.get(asked["image_sha256"])
    if not query:
        raise UserError(f"{run.path}: item {item_id!r} has no garment")
    found = []
    for item in items:
        others = of_picture.get(item["image_sha256"])
        if item["item_id"] != item_id and others:
            cosine = float((np.stack(query) @ np.stack(others).T).max())
            agrees = _agrees(cosine, attributes.thresholds[place])
            found.append(Similar(item["item_id"], item["title"], cosine, agrees))
    return sorted(found, key=lambda one: (-one.cosine, one.item_id))[:limit]
