"""How well attribute embeddings rank: mAP per attribute and overall, triplet accuracy, where the attention
lies.

Scores as in ASEN (Ma et al., AAAI 2020): a query ranks the candidates that are labelled with its attribute by
cosine; relevant are those of its value. Overall is the mean over all queries of all attributes. Intervals
resample photographs, each with its queries of all attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from psnet.asen import AsenConfig, AttributeNetwork
from psnet.crops import cut, to_tensor, whole_frame
from psnet.data.attributes import AttributeRanking, read_attribute_image
from psnet.device import autocast
from psnet.evaluation.intervals import Estimate, bootstrap_ratio

_BATCH = 32


def read_square(path: Path, config: AsenConfig) -> np.ndarray:
    """The image as the network takes it, (side, side, 3) uint8."""
    picture = read_attribute_image(path)
    return cut(picture, whole_frame(*picture.size, config.fit), config.side)


@torch.inference_mode()
def embed_images(
    model: AttributeNetwork, images: Iterable[np.ndarray], precision: str = "float32"
) -> np.ndarray:
    """Squares (side, side, 3) uint8 -> (n, attributes, channels) float32 of unit norm."""
    device = next(model.parameters()).device
    out: list[np.ndarray] = []
    batch: list[np.ndarray] = []

    def embed() -> None:
        pixels = to_tensor(np.stack(batch)).to(device)
        with autocast(device, precision):
            out.append(model(pixels).embeddings.float().cpu().numpy())
        batch.clear()

    for image in images:
        batch.append(image)
        if len(batch) == _BATCH:
            embed()
    if batch:
        embed()
    return np.concatenate(out)


def embed_some(
    model: AttributeNetwork, paths: Sequence[Path], used: np.ndarray, precision: str = "float32"
) -> np.ndarray:
    """Embeddings of the images ``used`` (k,) of ``paths``, (images, attributes, channels); zero for the
    others."""
    found = embed_images(model, (read_square(paths[i], model.config) for i in used), precision)
    out = np.zeros((len(paths), *found.shape[1:]), np.float32)
    out[used] = found
    return out


def embed_ranking(
    model: AttributeNetwork, ranking: AttributeRanking, precision: str = "float32"
) -> np.ndarray:
    """`embed_some` of all images that are a query or a candidate."""
    used = np.unique(np.concatenate([ranking.queries[:, 0], ranking.candidates[:, 0]]))
    return embed_some(model, ranking.images.paths, used, precision)


@dataclass(frozen=True)
class RankingScores:
    """Per query: ``image`` and ``attribute`` (q,), its average ``precision`` and ``triplets``, the share of
    pairs of a relevant and another candidate that it ranks rightly (the expected triplet accuracy)."""

    image: np.ndarray
    attribute: np.ndarray
    precision: np.ndarray
    triplets: np.ndarray

    def estimate(self, values: np.ndarray, attribute: int | None = None, seed: int = 0) -> Estimate:
        """Mean of ``values`` (q,) over the queries, or over those of one attribute; photographs resampled."""
        chosen = slice(None) if attribute is None else self.attribute == attribute
        _, photograph = np.unique(self.image[chosen], return_inverse=True)
        return bootstrap_ratio(np.bincount(photograph, values[chosen]), np.bincount(photograph), seed)


def score_ranking(ranking: AttributeRanking, embeddings: np.ndarray) -> RankingScores:
    """Scores of every query that has a relevant and another candidate; embeddings as of `embed_ranking`."""
    images, attributes, precisions, triplets = [], [], [], []
    for a in range(len(ranking.images.meta.names)):
        asked = ranking.queries[ranking.queries[:, 1] == a]
        offered = ranking.candidates[ranking.candidates[:, 1] == a]
        if not len(asked) or not len(offered):
            continue
        cosines = embeddings[asked[:, 0], a] @ embeddings[offered[:, 0], a].T
        relevant = asked[:, 2:] == offered[None, :, 2]
        usable = relevant.any(1) & ~relevant.all(1)
        order = np.argsort(-cosines[usable], 1, kind="stable")
        ranked = np.take_along_axis(relevant[usable], order, 1)
        precisions.append(average_precision(ranked))
        # Others behind a relevant candidate are ranked rightly.
        behind = (~ranked)[:, ::-1].cumsum(1)[:, ::-1]
        pairs = ranked.sum(1) * (~ranked).sum(1)
        triplets.append((behind * ranked).sum(1) / pairs)
        images.append(asked[usable, 0])
        attributes.append(np.full(len(ranked), a))
    if not images:
        empty = np.zeros(0)
        return RankingScores(empty.astype(int), empty.astype(int), empty, empty)
    return RankingScores(*map(np.concatenate, (images, attributes, precisions, triplets)))


def average_precision(ranked: np.ndarray) -> np.ndarray:
    """(q, n) bool, relevant or not from the best on, at least one in a row -> (q,)."""
    hits = ranked.cumsum(1)
    at = hits / np.arange(1, ranked.shape[1] + 1)
    return (at * ranked).sum(1) / ranked.sum(1)


def triplet_accuracy(embeddings: np.ndarray, triplets: np.ndarray) -> np.ndarray:
    """Whether the positive is nearer than the negative, (t,) bool, for triplets (t, 4) of attribute, anchor,
    positive, negative."""
    attribute, anchor, positive, negative = triplets.T
    a = embeddings[anchor, attribute]
    return (a * embeddings[positive, attribute]).sum(-1) > (a * embeddings[negative, attribute]).sum(-1)


def mean_average_precision(scores: RankingScores) -> float:
    """Over all queries."""
    return float(scores.precision.mean()) if len(scores.precision) else float("nan")


def agreement_thresholds(
    ranking: AttributeRanking, embeddings: np.ndarray, names: Sequence[str]
) -> dict[str, float]:
    """The cosine from which a pair is said to agree in an attribute: where sensitivity plus specificity
    (Youden, 1950) is best among the pairs of query and candidate."""
    out = {}
    for a, name in enumerate(names):
        asked = ranking.queries[ranking.queries[:, 1] == a]
        offered = ranking.candidates[ranking.candidates[:, 1] == a]
        cosines = (embeddings[asked[:, 0], a] @ embeddings[offered[:, 0], a].T).ravel()
        same = (asked[:, 2:] == offered[None, :, 2]).ravel()
        if same.all() or not same.any():
            continue
        order = np.argsort(-cosines)
        right = same[order].cumsum() / same.sum()
        wrong = (~same[order]).cumsum() / (~same).sum()
        out[name] = round(float(cosines[order[int(np.argmax(right - wrong))]]), 4)
    return out
