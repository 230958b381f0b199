"""Lists by single regions: all lists give what brute force gives, a few still give copies."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.region_lists import RegionLists, nearest_lists, scan_lists, train_centroids, write_lists
from psnet.regions import MIRROR
from psnet.similarity import SCORINGS
from tests.pipeline.synthetic_garments import unit

LISTS = 16


@pytest.fixture(scope="module")
def garments() -> np.ndarray:
    rng = np.random.default_rng(3)
    looks = unit(rng, 40, 5, 12)
    made = 0.7 * looks[rng.integers(40, size=900)] + 0.7 * unit(rng, 900, 5, 12)
    made /= np.linalg.norm(made, axis=-1, keepdims=True)
    made[rng.random((900, 5)) < 0.1] = 0
    return made.astype(np.float16).astype(np.float32)


@pytest.fixture(scope="module")
def shards(garments, tmp_path_factory) -> tuple[np.ndarray, list[RegionLists]]:
    folder = tmp_path_factory.mktemp("lists")
    centroids = train_centroids(garments, LISTS)
    for number, part in enumerate((garments[:500], garments[500:])):
        write_lists(folder / str(number), np.concatenate([part, part[:, list(MIRROR)]]), centroids)
    return centroids, [RegionLists.open(folder / str(number)) for number in range(2)]


def test_every_garment_is_in_one_list_of_each_region_that_it_shows(garments, shards):
    _, lists = shards
    for shard, part in zip(lists, (garments[:500], garments[500:]), strict=True):
        for region in range(5):
            rows = np.concatenate([shard.rows(region, number) for number in range(LISTS)])
            both = np.concatenate([part[:, region], part[:, MIRROR[region]]])
            assert len(shard) == len(part) and sorted(rows) == np.flatnonzero(both.any(1)).tolist()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("scoring", ["best_regions", "weighted"])
def test_all_lists_give_what_brute_force_gives(garments, shards, scoring, mirrored):
    centroids, lists = shards
    queries, k = garments[:30], 7
    weights = np.tile(np.array([1, 0.5, 0.5, 2, 1], np.float32), (30, 1))
    may = [np.arange(500) % 3 > 0, None]
    asked = nearest_lists(centroids, queries, LISTS)
    options = {"scoring": scoring, "mirrored": mirrored, "allowed": may}
    value, number = scan_lists(lists, queries, weights, asked, k, **options)
    exact = np.full((len(queries), len(garments)), -np.inf)
    for others in (garments, garments[:, list(MIRROR)])[: 1 + mirrored]:
        cos = np.einsum("qrd,xrd->qxr", queries, others)
        score = SCORINGS[scoring](cos, np.ones(cos.shape, bool), weights[:, None])
        share_a_region = (queries.any(2)[:, None] & others.any(2)[None]).any(2)
        exact = np.maximum(exact, np.where(share_a_region, score, -np.inf))
    exact[:, :500][:, ~may[0]] = -np.inf
    for q in range(30):
        # The greatest of a garment's scores comes last and stays.
        found = dict(sorted(zip(number[q].tolist(), value[q].tolist(), strict=True), key=lambda one: one[1]))
        best = np.argsort(-exact[q], kind="stable")[:k]
        np.testing.assert_allclose([found[x] for x in best.tolist()], exact[q, best], atol=1e-5)


def test_copies_with_two_changed_regions_lie_in_the_nearest_lists(garments, shards):
    centroids, lists = shards
    rng = np.random.default_rng(5)
    whole = np.flatnonzero(garments.any(2).all(1))[:80]
    asked = garments[whole] + 0.2 * unit(rng, len(whole), 5, 12)
    changed = rng.permuted(np.tile([True, True, False, False, False], (len(whole), 1)), axis=1)
    asked[changed] = unit(rng, changed.sum(), 12)
    asked = (asked / np.linalg.norm(asked, axis=-1, keepdims=True)).astype(np.float32)
    nearest = nearest_lists(centroids, asked, 2)
    weights = np.ones((len(whole), 5), np.float32)
    options = {"scoring": "best_regions", "mirrored": False, "allowed": [None, None]}
    _, number = scan_lists(lists, asked, weights, nearest, 5, **options)
    assert np.mean([row in found for row, found in zip(whole, number, strict=True)]) > 0.97
