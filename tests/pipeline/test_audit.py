"""How much an index misses: exact pairs equal brute force, and the interval covers the truth."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.audit import audit, exact_pairs
from pipeline.garment_index import GarmentIndex, Queries, as_queries, open_index
from pipeline.index import build_index
from pipeline.missed import BEST, in_words
from pipeline.settings import load_settings
from psnet.similarity import compare_block, equal_weights
from tests.pipeline.synthetic_garments import catalogue, plain_items, write_run

THRESHOLD = 0.8


@pytest.fixture(scope="module")
def asked(tmp_path_factory, ray_local) -> tuple[GarmentIndex, Queries, pa.Array]:
    """An index that misses much, and all its garments as questions."""
    source = catalogue(900, dim=24, seed=2, copies=0.5)
    run = write_run(tmp_path_factory.mktemp("audit") / "run", source, plain_items(900), shards=3)
    settings = load_settings(
        None,
        [
            "index.factory='IVF32,SQfp16'",
            "index.nprobe=1",
            "index.shard_size=500",
            "index.candidates=60",
            "index.audit_queries=200",
        ],
    )
    build_index(run, settings)
    missed = run.stage_record("index")["missed"]
    assert missed["queries"] == 200 and missed["best_20"]["pairs"] == 200 * BEST
    index = open_index(run)
    shard = np.repeat(np.arange(len(index.shards)), [len(one.vectors) for one in index.shards])
    row = np.concatenate([np.arange(len(one.vectors)) for one in index.shards])
    garments = index.gather(shard, row)
    return index, as_queries(garments, equal_weights(), mirrored=True), garments.sha256


def test_exact_pairs_equal_brute_force(asked):
    index, queries, pictures = asked
    query, shard, row, score, rank = exact_pairs(
        index, queries.take(slice(0, 40)), pictures[:40], scoring="best_regions", threshold=THRESHOLD
    )
    exact = compare_block(
        queries.features[:40],
        queries.presence[:40],
        queries.features,
        queries.presence,
        queries.weights[:40],
        mirrored_x=queries.mirrored,
    ).score
    names = pictures.to_numpy(zero_copy_only=False)
    exact[names[:40, None] == names[None]] = -np.inf
    starts = np.cumsum([0, *(len(one.vectors) for one in index.shards)])
    for q in range(40):
        here = query == q
        order = np.sort(exact[q])[::-1]
        wanted = max(BEST, int((exact[q] >= THRESHOLD).sum()))
        np.testing.assert_allclose(np.sort(score[here])[::-1], order[:wanted], atol=1e-6)
        np.testing.assert_allclose(exact[q, (starts[shard] + row)[here]], score[here], atol=1e-6)
        assert sorted(rank[here]) == list(range(wanted))


def test_region_lists_are_audited_by_their_bound(asked, tmp_path):
    """Features that a reduction loses something of: the pairs and scores are those of the full vectors."""
    rng = np.random.default_rng(7)
    source = catalogue(300, dim=48, seed=4, copies=0.5)
    scale = 0.85 ** np.arange(48)
    for name in ("features", "mirrored"):
        values = getattr(source, name).astype(np.float32) * scale
        length = np.linalg.norm(values, axis=-1, keepdims=True)
        setattr(source, name, (values / np.where(length > 0, length, 1)).astype(np.float16))
    found = []
    for factory in ("Regions8", "SQfp16"):
        run = write_run(tmp_path / factory, source, plain_items(300))
        build_index(run, load_settings(None, [f"index.factory={factory}", "index.audit_queries=0"]))
        index = open_index(run)
        assert index.manifest.region_dim < 48
        rows = rng.permutation(len(index))[:50] if not found else rows  # noqa: F821 (of the first round)
        garments = index.gather(np.zeros(50, int), rows)
        queries = as_queries(garments, equal_weights(), mirrored=True)
        pairs = exact_pairs(index, queries, garments.sha256, scoring="best_regions", threshold=THRESHOLD)
        found.append(pairs)
    for first, second in zip(*found, strict=True):
        np.testing.assert_array_equal(first, second)


def test_the_interval_covers_the_truth(asked):
    index, queries, pictures = asked
    found = index.candidates(queries, 60)
    options = {"scoring": "best_regions", "threshold": THRESHOLD}
    truth = audit(index, queries, pictures, found, len(queries), **options)
    for name in ("best_20", "suspects"):
        share = truth[name]["share"]
        assert 0.02 < share < 0.9
        covered = []
        for seed in range(40):
            one = audit(index, queries, pictures, found, 60, seed=seed, **options)[name]
            assert one["low"] <= one["share"] <= one["high"]
            covered.append(one["low"] <= share <= one["high"])
        # 95 % of the intervals; 40 of them leave some room for chance.
        assert np.mean(covered) >= 0.875
    again = audit(index, queries, pictures, found, 60, **options)
    assert again == audit(index, queries, pictures, found, 60, **options)
    assert f"{again['best_20']['share']:.2%} of the 20 best partners" in in_words(again)


def test_an_index_that_looks_everywhere_misses_nothing(asked):
    index, queries, pictures = asked
    some = queries.take(slice(0, 50))
    everywhere = GarmentIndex(index.manifest, index._template, index.shards)
    for shard in everywhere.shards:
        shard.index.nprobe = 32
    index.manifest.nprobe, before = 32, index.manifest.nprobe
    found = everywhere.candidates(some, len(queries))
    index.manifest.nprobe = before
    missed = audit(index, some, pictures[:50], found, 50, scoring="best_regions", threshold=THRESHOLD)
    assert missed["best_20"]["share"] == missed["suspects"]["share"] == 0
    assert missed["best_20"]["high"] > 0  # nothing seen is not nothing
