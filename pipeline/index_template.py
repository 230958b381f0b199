"""What all shards of an index share: how region vectors are reduced, and the trained quantiser.

    RUN/index/template-KEY.faiss            the trained, empty FAISS index; or
    RUN/index/template-KEY.centroids.npy    the lists of single regions, see ``pipeline.region_lists``
    RUN/index/template-KEY.reduction.npy    (5, d, d') float32

Region features fill far fewer dimensions than they have numbers (32 of 256 hold 99 % of the shipped model's),
so an index that is approximate anyway works on their principal components, region by region: an eighth of the
memory and of the work. Nothing is centred: cosines of the reduced vectors are cosines of the features but for
what was left out.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from pipeline.errors import UserError
from pipeline.region_lists import train_centroids
from pipeline.settings import IndexSettings
from psnet.regions import NUM_REGIONS

EXACT = "Flat"
"""The factory whose answers are exact: full vectors, all of them compared."""

REGIONS = "Regions"
"""The factory of lists by single regions, followed by how many a region has: Regions4000."""

EXACT_UP_TO = 50_000
"""Garments up to which ``auto`` is exact: a sweep of a thousand originals takes seconds all the same."""

# k-means wants some 40 points per list (faiss's own bound); more than 64 change little and cost time.
_POINTS_PER_LIST = 64
_LEAST_TRAINING = 20_000
# Share of the features' energy that reduced vectors keep, unless index.region_dim says how many numbers.
_ENERGY = 0.99
# What that comes to with the shipped weights, to tell whether the vectors will fit before they are known.
_USUAL_REGION_DIM = 40
# Eight a region: reduced regions come in whole eights, so that they can be cut into so many.
_CODE_BYTES = 8 * NUM_REGIONS
# Of the memory that is there, what an index may fill before its vectors are compressed (PQ).
_MEMORY_SHARE = 0.5
_SEED = 1


@dataclass(frozen=True)
class Plan:
    """How an index is made. ``factory``: a FAISS factory string; ``region_dim``: numbers per region;
    ``training``: garments that the template is trained on."""

    factory: str
    region_dim: int
    training: int


def plan_index(settings: IndexSettings, garments: int, dim: int, memory: int | None = None) -> Plan:
    """The factory and its sizes for so many garments.

    ``auto``: exact up to 50,000 garments; then IVF with 4 sqrt(N) lists (Jégou et al., "Product Quantization
    for Nearest Neighbor Search", PAMI 2011; faiss's guidelines) over half-precision vectors, or over product
    codes of 40 bytes where those would fill half the memory.

    Args:
        dim: d of the features. memory: bytes; None: this machine's.
    """
    factory = settings.factory
    region_dim = min(-(-settings.region_dim // 8) * 8, dim)
    if factory == "auto":
        lists = 16 * max(1, round(4 * math.sqrt(garments) / 16))
        bytes_needed = garments * NUM_REGIONS * (region_dim or min(_USUAL_REGION_DIM, dim)) * 2
        room = _MEMORY_SHARE * (machine_memory() if memory is None else memory)
        large = f"{REGIONS}{lists}" if bytes_needed <= room else f"IVF{lists},PQ{_CODE_BYTES}"
        factory = EXACT if garments <= EXACT_UP_TO else large
    named = re.findall(rf"(?:^|,)(?:{REGIONS}|IVF)(\d+)", factory)
    lists = max(map(int, named), default=0)
    training = max(_LEAST_TRAINING, _POINTS_PER_LIST * lists)
    return Plan(factory, region_dim, min(training, garments))


def machine_memory() -> int:
    """Bytes of physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(frozen=True)
class Template:
    """A trained, empty FAISS index, or the centroids of region lists, (5, nlist, d') float32; and the
    reduction of the region vectors, (5, d, d') float32, None: as they are."""

    index: faiss.Index | None
    centroids: np.ndarray | None
    reduction: np.ndarray | None

    @property
    def whole_vectors(self) -> faiss.Index:
        """The FAISS index, where this is no template of region lists."""
        assert self.index is not None
        return self.index

    def nprobe(self, settings: IndexSettings) -> int:
        """Lists that a query looks into; 0 where there are none.

        By default one of 64 in every region, one of 16 of whole vectors, and at least eight.
        """
        if self.centroids is not None:
            lists, share = self.centroids.shape[1], 64
        else:
            inverted = faiss.try_extract_index_ivf(self.whole_vectors)
            lists, share = (inverted.nlist if inverted is not None else 0), 16
        return min(settings.nprobe or max(8, lists // share), lists)

    def reduce(self, features: np.ndarray) -> np.ndarray:
        """(n, 5, d) of any float type to (n, 5, d') float32."""
        features = np.asarray(features, np.float32)
        if self.reduction is None:
            return features
        return np.moveaxis(np.matmul(np.moveaxis(features, 1, 0), self.reduction), 0, 1)

    def rows(self, features: np.ndarray) -> np.ndarray:
        """(n, 5, d) to the vectors that the index holds: (n, 5 d') float32, contiguous."""
        return np.ascontiguousarray(self.reduce(features)).reshape(len(features), -1)


def train_template(features: np.ndarray, plan: Plan) -> Template:
    """Train on a sample of garments, (n, 5, d); the same sample gives the same template.

    Raises:
        UserError: the factory string is none, or needs more garments.
    """
    reduction = None if plan.factory == EXACT else _principal_components(features, plan.region_dim)
    template = Template(None, None, reduction)
    index, centroids = None, None
    lists = _region_lists(plan.factory)
    try:
        if lists:
            centroids = train_centroids(template.reduce(features), int(lists[1]))
        else:
            index = _train_index(template.rows(features), plan.factory)
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rpartition("Error: ")[2][:200]
        raise UserError(
            f"index.factory: {plan.factory!r} does not work for {len(features)} garments "
            f"({reason}); use auto or {EXACT}"
        ) from None
    return Template(index, centroids, reduction)


def _region_lists(factory: str) -> re.Match[str] | None:
    """Of a factory of lists by single regions; its group is how many a region has."""
    return re.fullmatch(rf"{REGIONS}(\d+)", factory)


def check_factory(factory: str) -> None:
    """Before there are features. Raises UserError for what is no factory at all; whether it suits the number
    of garments is seen when it is trained."""
    if factory == "auto" or _region_lists(factory):
        return
    try:
        faiss.index_factory(_ANY_DIM, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        if "could not parse" in str(error):
            raise UserError(
                f"index.factory: {factory!r} is no FAISS factory; use auto, {EXACT} or one of FAISS's"
            ) from None


# Divisible by most numbers of subquantisers, so that FAISS comes to what it does not understand.
_ANY_DIM = 960


def _train_index(rows: np.ndarray, factory: str) -> faiss.Index:
    index = faiss.index_factory(rows.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None:
        library: Any = lists.cp
        library.seed, library.niter, library.min_points_per_centroid = _SEED, 10, 1
    if not index.is_trained:
        index.train(rows)
    return index


def _principal_components(features: np.ndarray, region_dim: int) -> np.ndarray | None:
    """(5, d, d'): directions of the greatest energy of each region, most first; None when nothing is left
    out.

    ``region_dim`` 0: as many as keep ``_ENERGY`` in every region, in whole eights.
    """
    dim = features.shape[2]
    vectors, keep = [], []
    for region in range(NUM_REGIONS):
        block = features[:, region].astype(np.float32)
        energy, directions = np.linalg.eigh(block.T.astype(np.float64) @ block)
        energy = np.maximum(energy[::-1], 0)
        vectors.append(directions[:, ::-1])
        share = np.cumsum(energy) / max(energy.sum(), 1e-30)
        keep.append(int(np.searchsorted(share, _ENERGY)) + 1 if energy.sum() else 1)
    wanted = region_dim or min(dim, -(-max(keep) // 8) * 8)
    if wanted >= dim:
        return None
    return np.ascontiguousarray(np.stack([v[:, :wanted] for v in vectors]), np.float32)


def write_template(template: Template, target: Path) -> list[str]:
    """The files ``target`` + suffix, and their suffixes; the caller commits them by naming them in the
    manifest."""
    suffixes = []
    for suffix, array in ((".centroids.npy", template.centroids), (".reduction.npy", template.reduction)):
        if array is not None:
            np.save(target.with_name(target.name + suffix), array)
            suffixes.append(suffix)
    if template.index is not None:
        faiss.write_index(template.index, f"{target}.faiss")
        suffixes.append(".faiss")
    return suffixes


def read_template(target: Path, suffixes: Collection[str]) -> Template:
    """What ``write_template`` wrote."""
    centroids, reduction = (
        np.load(target.with_name(target.name + suffix)) if suffix in suffixes else None
        for suffix in (".centroids.npy", ".reduction.npy")
    )
    index = faiss.read_index(f"{target}.faiss") if ".faiss" in suffixes else None
    return Template(index, centroids, reduction)
