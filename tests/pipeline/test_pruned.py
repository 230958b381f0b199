"""A pruned search: with an index that proposes everything it equals the exact one, with one that does not it
finds the copies and says what it misses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.index import build_index
from pipeline.match import match
from pipeline.rundir import RunDirectory
from pipeline.settings import load_settings
from tests.pipeline.synthetic_garments import Catalogue, catalogue, plain_items, write_run

PICTURES = 300


def searched(path: Path, source: Catalogue, weights: Path, *overrides: str) -> RunDirectory:
    run = write_run(path, source, plain_items(PICTURES), shards=2)
    keys = [f"extract.weights={weights}", "match.best_k=10", "match.block_size=150", *overrides]
    settings = load_settings(None, keys)
    build_index(run, settings)
    match(run, settings)
    return run


def best(run: RunDirectory) -> set[tuple[str, str]]:
    pairs = pq.read_table(run.pairs_path, columns=["query_item_id", "match_item_id", "score"])
    pairs = pairs.filter(pc.greater(pairs["score"], 0.8))
    return set(zip(*(pairs[name].to_pylist() for name in ("query_item_id", "match_item_id")), strict=True))


def ranked(run: RunDirectory) -> set[tuple[str, str]]:
    pairs = pq.read_table(run.pairs_path, columns=["query_item_id", "match_item_id", "rank"])
    pairs = pairs.filter(pc.less_equal(pairs["rank"], 10))
    return set(zip(*(pairs[name].to_pylist() for name in ("query_item_id", "match_item_id")), strict=True))


def test_pruned_and_exact(tmp_path: Path, tiny_weights: Path, ray_local: None):
    source = catalogue(PICTURES, dim=24, seed=12)
    exact = searched(tmp_path / "exact", source, tiny_weights)
    every = "index.candidates=1000"
    lists = ("match.search=pruned", "index.factory=Regions8", "index.shard_size=200")
    everything = searched(tmp_path / "everything", source, tiny_weights, *lists, every, "index.nprobe=8")
    record = everything.stage_record("match")
    assert record["exact"] is False and record["blocks"] == 2
    assert pq.read_table(everything.pairs_path).equals(pq.read_table(exact.pairs_path))

    few = searched(tmp_path / "few", source, tiny_weights, *lists, "index.candidates=20", "index.nprobe=2")
    assert len(best(exact) & best(few)) > 0.95 * len(best(exact)) > 100
    missed = few.stage_record("index")["missed"]
    assert 0 <= missed["suspects"]["low"] <= missed["suspects"]["share"] < 0.1

    # Nothing is missed where everything is proposed. Where not, a sample of all says the truth, by the
    # ranking of the search itself, and a smaller one an interval around it.
    assert record["missed"]["best_20"]["share"] == 0 and record["missed"]["queries"] == 50
    assert "missed" not in exact.stage_record("match")
    listed = [ranked(run) for run in (exact, few)]
    truth = len(listed[0] - listed[1]) / len(listed[0])
    assert truth > 0.02
    said = few.stage_record("match")["missed"]["best_20"]
    assert said["low"] <= truth <= said["high"] and said["pairs"] == 50 * 10
    fewer = ("index.candidates=20", "index.nprobe=2", "index.audit_queries=1000")
    audited = searched(tmp_path / "audited", source, tiny_weights, *lists, *fewer)
    assert audited.stage_record("match")["missed"]["best_20"]["share"] == pytest.approx(truth, abs=1e-6)

    # Garments of runs that were added take nobody's place.
    nearly_the_same = replace(source, picture=source.picture + 1000)
    again = write_run(tmp_path / "again", nearly_the_same, plain_items(PICTURES))
    keys = [f"extract.weights={tiny_weights}", "match.best_k=10", "match.block_size=150", *lists]
    keys += ["index.candidates=20", "index.nprobe=2"]
    build_index(few, load_settings(None, keys), add=[again.path])
    match(few, load_settings(None, keys))
    assert few.stage_record("match")["missed"]["best_20"]["share"] <= said["high"]

    # Another look into the index is another search.
    match(few, load_settings(None, [*keys, "index.candidates=1000"]))
    assert few.stage_record("match")["missed"]["best_20"]["share"] < said["low"]

    # An exact index leaves nothing to prune.
    flat = searched(tmp_path / "flat", source, tiny_weights, "match.search=pruned")
    assert flat.stage_record("match")["exact"] is True
