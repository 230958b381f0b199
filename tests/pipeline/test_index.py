"""The FAISS index: equal to brute force, built only where something changed, refused where something is
wrong."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.cli import run_command
from pipeline.errors import UserError
from pipeline.extract import write_shard
from pipeline.garment_index import GarmentIndex, Queries, as_queries, masked_queries, open_index
from pipeline.index import build_index
from pipeline.index_manifest import File, Manifest
from pipeline.index_template import Plan, plan_index, train_template
from pipeline.rundir import RunDirectory
from pipeline.settings import IndexSettings, Settings, load_settings
from psnet.regions import Presence
from psnet.similarity import compare, equal_weights
from tests.pipeline.synthetic_garments import Catalogue, catalogue, garment_table, plain_items, sha, write_run


def settings(*overrides: str) -> Settings:
    return load_settings(None, list(overrides))


@pytest.fixture(autouse=True)
def ray(ray_local: None) -> None:
    """Shards are filled on it."""


@pytest.fixture(scope="module")
def source() -> Catalogue:
    return catalogue(200, dim=24, seed=8)


def unequal(count: int) -> np.ndarray:
    return np.tile(np.array([1, 0.5, 0.5, 2, 1.5], np.float32), (count, 1))


@pytest.mark.parametrize("scoring", ["best_regions", "weighted"])
@pytest.mark.parametrize("weights", [lambda n: np.ones((n, 5), np.float32), unequal])
def test_search_equals_brute_force(tmp_path, source, scoring, weights):
    source = catalogue(200, dim=24, seed=8, all_visible=scoring == "weighted")
    run = write_run(tmp_path / "run", source, plain_items(200), shards=4)
    build_index(run, settings("index.shard_size=100"))
    index = open_index(run)
    visible = np.flatnonzero((source.presence == Presence.PRESENT).sum(1) >= 3)
    assert len(index) == (source.presence == Presence.PRESENT).any(1).sum()
    asked = visible[:40]
    w = weights(len(asked))
    queries = Queries(source.features[asked], source.presence[asked], w, source.mirrored[asked])
    found = index.search(queries, 8, scoring=scoring)
    for number, q in enumerate(asked):
        exact = compare(
            source.features[q],
            source.presence[q],
            source.features,
            source.presence,
            w[number],
            mirrored_x=source.mirrored,
            scoring=scoring,
        )
        here = np.flatnonzero(found.query == number)
        assert len(here) == 8
        best = np.sort(exact.score)[::-1][:8]
        # Lower ones may have a negative cosine among their best three.
        sure = max(1, int((best > 2 / 3).sum())) if scoring == "best_regions" else 8
        here, best = here[:sure], best[:sure]
        np.testing.assert_allclose(found.comparison.score[here], best, atol=1e-6)
        row = {
            (sha(p), i): n for n, (p, i) in enumerate(zip(source.picture, source.garment_index, strict=True))
        }
        rows = [row[key] for key in zip(found.sha256[here], found.garment[here], strict=True)]
        np.testing.assert_array_equal(found.comparison.mirrored[here], exact.mirrored[rows])
        assert rows[0] == q


def test_masked_queries_are_no_more_than_needed():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((3, 5, 4)).astype(np.float32)
    presence = np.array([[2, 2, 2, 2, 2], [2, 2, 2, 0, 1], [0, 0, 0, 0, 0]], np.uint8)
    weights = np.ones((3, 5), np.float32)
    vectors, owner = masked_queries(features, presence, weights, "best_regions")
    # Ten triples; the only one; nothing to ask.
    assert np.bincount(owner, minlength=3).tolist() == [10, 1, 0]
    assert masked_queries(features, presence, weights, "weighted")[1].tolist() == [0, 1]
    assert vectors.shape == (11, 20)
    # Of two regions nothing is left out.
    vectors, owner = masked_queries(
        features[:1], np.array([[2, 0, 0, 2, 1]], np.uint8), weights[:1], "best_regions"
    )
    np.testing.assert_allclose(
        vectors.reshape(5, 4), features[0] * np.array([[0.5], [0], [0], [0.5], [0]]), rtol=1e-6
    )


def files(run: RunDirectory) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in run.index_dir.glob("shard-*")}


def extracted_again(run: RunDirectory, digest: str) -> None:
    with run.stage("extract", digest) as stage:
        stage.note(shard_prefix="t-")


def test_only_shards_that_changed_are_built(tmp_path, source):
    run = write_run(tmp_path / "run", source, plain_items(200), shards=6)
    few = settings("index.shard_size=70")
    build_index(run, few)
    before = files(run)
    assert len(before) >= 3 * 3
    build_index(run, few)
    assert files(run) == before

    more = catalogue(30, dim=24, seed=9)
    more.picture += 1000
    write_shard(run.garments_dir / "t-900.parquet", garment_table(more, np.arange(len(more.picture))), {})
    extracted_again(run, "more")
    build_index(run, few)
    added = files(run)
    assert {name: added[name] for name in before if name in added} == {
        n: t for n, t in before.items() if n in added
    }
    assert len(before.keys() - added.keys()) <= 3  # a shard that had room may have been filled up

    manifest = Manifest.read(run.index_dir)
    gone = next(iter(manifest.shards[0].sources))
    (run.garments_dir / gone).unlink()
    extracted_again(run, "less")
    build_index(run, few)
    left = files(run)
    untouched = {shard.name for shard in manifest.shards[1:] if shard.garments >= 35}
    assert {name: left[name] for name in left if name.split(".")[0] in untouched} == {
        name: added[name] for name in added if name.split(".")[0] in untouched
    }
    garments = [pq.read_table(path, columns=["presence"]) for path in run.garments_dir.glob("*.parquet")]
    visible = sum(any(v == 2 for v in p) for table in garments for p in table["presence"].to_pylist())
    assert len(open_index(run)) == visible


@pytest.mark.parametrize("suffix", [".faiss", ".features", ".parquet"])
def test_a_shard_that_is_not_the_manifests_is_refused_and_built_again(tmp_path, source, suffix):
    run = write_run(tmp_path / "run", source, plain_items(200), shards=2)
    build_index(run, settings())
    path = next(run.index_dir.glob(f"shard-*{suffix}"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"is not the file that the manifest names; run `psnet index` again"):
        open_index(run)
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        open_index(run)
    extracted_again(run, "again")
    build_index(run, settings())
    assert len(open_index(run)) > 0


def test_an_index_of_another_model_is_refused(tmp_path, source):
    run = write_run(tmp_path / "run", source, plain_items(200))
    with pytest.raises(UserError, match="holds no index"):
        open_index(run)
    build_index(run, settings())
    run.update(model_tag="psnet-other")
    with pytest.raises(UserError, match="was made with psnet-test, the garments with psnet-other"):
        open_index(run)
    manifest = Path(run.index_dir / "manifest.json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 0}))
    with pytest.raises(UserError, match="another psnet version"):
        open_index(run)


@pytest.mark.parametrize(
    "factory", ["IVF8,Flat", "SQfp16", "HNSW16", "PCA40,IVF4,Flat", "IVF4,SQfp16", "Regions8"]
)
def test_other_factories_find_copies(tmp_path, source, factory):
    run = write_run(tmp_path / "run", source, plain_items(200), shards=3)
    build_index(run, settings(f"index.factory='{factory}'", "index.shard_size=80"))
    assert run.stage_record("index")["shards"] > 1
    index = open_index(run)
    asked = np.flatnonzero((source.presence == Presence.PRESENT).all(1))[:30]
    weights = np.ones((len(asked), 5), np.float32)
    found = index.search(Queries(source.features[asked], source.presence[asked], weights), 3)
    itself = [
        (sha(source.picture[q]), source.garment_index[q])
        in set(zip(found.sha256[found.query == n], found.garment[found.query == n], strict=True))
        for n, q in enumerate(asked)
    ]
    assert np.mean(itself) > 0.9


@pytest.mark.parametrize("factory", ["IVF4096,Flat", "Hopeless"])
def test_a_factory_that_does_not_suit_is_a_line(tmp_path, source, factory):
    run = write_run(tmp_path / "run", source, plain_items(200))
    with pytest.raises(UserError, match=r"index\.factory: .*use auto or Flat") as caught:
        build_index(run, settings(f"index.factory='{factory}'"))
    assert "\n" not in str(caught.value)


def test_the_same_garments_give_the_same_answers_in_any_shards(tmp_path, source):
    answers = []
    for number, shards in enumerate((1, 5)):
        run = write_run(tmp_path / str(number), source, plain_items(200), shards=shards, seed=number)
        build_index(run, settings("index.shard_size=60"))
        weights = np.ones((20, 5), np.float32)
        answers.append(
            open_index(run).search(Queries(source.features[:20], source.presence[:20], weights), 5)
        )
    first, second = answers
    assert (first.sha256 == second.sha256).all()
    assert (first.comparison.score == second.comparison.score).all()


def keys(run: RunDirectory) -> set[tuple[str, int]]:
    return {
        key
        for shard in open_index(run).shards
        for key in zip(shard.vectors.sha256.to_pylist(), shard.vectors.garment.tolist(), strict=True)
    }


def test_runs_are_added_and_shards_dropped_without_a_rebuild(tmp_path, source):
    run = write_run(tmp_path / "run", source, plain_items(200), shards=4)
    few = settings("index.shard_size=70", "index.factory='IVF4,SQfp16'")
    build_index(run, few)
    before, own = files(run), keys(run)
    template = Manifest.read(run.index_dir).template

    more = catalogue(30, dim=24, seed=9)
    more.picture += 1000
    other = write_run(tmp_path / "other", more, plain_items(30))
    build_index(run, few, add=[other.path])
    assert before.items() <= files(run).items() and Manifest.read(run.index_dir).template == template
    new = keys(run) - own
    assert new and {sha256 for sha256, _ in new} <= {sha(p) for p in more.picture}
    assert [Path(shard.run) for shard in Manifest.read(run.index_dir).shards if shard.run] == [
        other.path.resolve()
    ]

    dropped = Manifest.read(run.index_dir).shards[0]
    build_index(run, few, drop=[dropped.name])
    left = keys(run)
    assert left == own - {key for key in own if key not in left} | new and len(left) < len(own | new)
    assert files(run).items() <= {**before, **files(run)}.items()
    assert run.stage_record("index")["failed"] == {"dropped": dropped.garments, **no_region(run)}
    extracted_again(run, "another night")
    build_index(run, few)
    assert keys(run) == left  # it stays away until the run is named again
    build_index(run, few, add=[run.path])
    assert keys(run) == own | new

    with pytest.raises(UserError, match=r"has no shard shard-1; it has shard-"):
        build_index(run, few, drop=["shard-1"])
    other.update(model_tag="psnet-other")
    fresh = write_run(tmp_path / "fresh", source, plain_items(200))
    with pytest.raises(UserError, match=r"made with psnet-other, those of .* with psnet-test"):
        build_index(fresh, few, add=[other.path])
    # An added run of other weights is no part of the index any longer; nor is it forgotten when the run's own
    # are others.
    extracted_again(run, "a third night")
    for tag in ("psnet-test", "psnet-new"):
        run.update(model_tag=tag)
        with pytest.raises(UserError, match=rf"made with psnet-other, those of .* with {tag}"):
            build_index(run, few)
    other.update(model_tag="psnet-new")
    build_index(run, few)
    assert keys(run) == own | new and Manifest.read(run.index_dir).added == [str(other.path.resolve())]


def no_region(run: RunDirectory) -> dict[str, int]:
    return {k: v for k, v in run.stage_record("index")["failed"].items() if k == "no_visible_region"}


FACTORIES = ["Flat", "SQfp16", "HNSW16,SQfp16", "IVF4,SQfp16", "IVF4,PQ10x4", "Regions8"]


@pytest.mark.parametrize("factory", FACTORIES)
def test_shards_are_mapped_not_read(tmp_path, source, factory):
    run = write_run(tmp_path / "run", source, plain_items(200))
    build_index(run, settings(f"index.factory='{factory}'"))
    index = open_index(run)
    mapped = Path("/proc/self/maps").read_text()
    shard = Manifest.read(run.index_dir).shards[0]
    suffixes = {suffix for suffix in shard.files if str(run.index_dir / (shard.name + suffix)) in mapped}
    assert suffixes == shard.files.keys() - {".parquet"}
    assert len(index) == shard.garments


def test_shards_that_do_not_fit_are_refused(tmp_path, source):
    run = write_run(tmp_path / "run", source, plain_items(200))
    build_index(run, settings())
    good = Manifest.read(run.index_dir)
    shard = good.shards[0]
    for change, message in (
        ({"template": "0" * 12}, "was filled from another template than the index's"),
        ({"model_tag": "psnet-other"}, "was made with psnet-other, the index with psnet-test"),
        ({"garments": 3}, "not 3 of 120"),
    ):
        replace(good, shards=[replace(shard, **change)]).write(run.index_dir)
        with pytest.raises(UserError, match=message) as caught:
            open_index(run)
        assert "\n" not in str(caught.value)
    (run.index_dir / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest.json: is damaged"):
        open_index(run)

    narrow = write_run(tmp_path / "narrow", catalogue(200, dim=8, seed=8), plain_items(200))
    build_index(narrow, settings())
    path = next(narrow.index_dir.glob("shard-*.faiss"))
    foreign = File.of(path)
    (run.index_dir / f"{shard.name}.faiss").write_bytes(path.read_bytes())
    replace(good, shards=[replace(shard, files={**shard.files, ".faiss": foreign})]).write(run.index_dir)
    with pytest.raises(UserError, match=r"vectors of 40 numbers, not \d+ of 120"):
        open_index(run)


def test_only_a_thorough_look_finds_what_left_size_and_time_alone(tmp_path, source, capsys):
    run = write_run(tmp_path / "run", source, plain_items(200))
    build_index(run, settings())
    assert run_command(["index", str(run.path), "--list"]) == 0
    shard = Manifest.read(run.index_dir).shards[0]
    assert shard.name in capsys.readouterr().out
    path = run.index_dir / f"{shard.name}.features"
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run_command(["index", str(run.path), "--verify"]) == 2
    assert "is not the file that the manifest names" in capsys.readouterr().err
    # A file that was only copied is the same file.
    shutil.copytree(run.path, tmp_path / "copy", copy_function=shutil.copyfile)
    assert run_command(["index", str(tmp_path / "copy"), "--list", "--add", "x"]) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not faiss.get_num_gpus(), reason="FAISS sees no GPU")
@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "IVF8,SQfp16", "IVF8,PQ8"])
def test_a_gpu_gives_what_a_cpu_gives(tmp_path, factory):
    run = write_run(tmp_path / "run", catalogue(400, dim=24, seed=8), plain_items(400))
    build_index(run, settings(f"index.factory='{factory}'", "index.nprobe=4", "index.region_dim=16"))
    index = open_index(run)
    assert all(shard.on_gpu is not None for shard in index.shards)
    on_cpu = GarmentIndex(
        index.manifest, index._template, [replace(shard, on_gpu=None) for shard in index.shards]
    )
    rows = np.arange(40)
    queries = as_queries(index.gather(np.zeros(40, int), rows), equal_weights(), mirrored=True)
    ours, theirs = (one.search(queries, 10) for one in (index, on_cpu))
    # Other orders of addition may swap neighbours that are equal but for rounding.
    pairs = [
        set(zip(f.query.tolist(), f.shard.tolist(), f.row.tolist(), strict=True)) for f in (ours, theirs)
    ]
    assert len(pairs[0] & pairs[1]) >= 0.99 * len(pairs[1])


@pytest.mark.parametrize(
    ("garments", "memory", "factory"),
    [
        (50_000, 1 << 40, "Flat"),
        (100_000, 1 << 40, "Regions1264"),
        (1_000_000, 1 << 40, "Regions4000"),
        (100_000_000, 16 << 30, "IVF40000,PQ40"),
    ],
)
def test_what_auto_chooses(garments, memory, factory):
    plan = plan_index(IndexSettings(), garments, 256, memory)
    assert plan.factory == factory
    assert garments >= plan.training >= min(garments, 20_000)


def test_reduction_keeps_what_the_features_have(tmp_path):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((64, 64)))[0][:6]
    features = rng.standard_normal((400, 5, 6)) @ basis
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    template = train_template(features.astype(np.float16), Plan("Regions4", 0, 400))
    reduced = template.reduce(features)
    assert reduced.shape == (400, 5, 8)
    np.testing.assert_allclose(
        np.einsum("ird,jrd->ijr", reduced, reduced), np.einsum("ird,jrd->ijr", features, features), atol=2e-3
    )


def test_a_sweep_sees_the_runs_that_were_added(tmp_path, source):
    from pipeline.scan import _all_items, _with_added

    run = write_run(tmp_path / "run", source, plain_items(200))
    more = catalogue(30, dim=24, seed=9)
    more.picture += 1000
    items = [{**item, "item_id": f"new {item['item_id']}"} for item in plain_items(30)]
    other = write_run(tmp_path / "other", more, items + plain_items(1))
    assert [one.path for one in _with_added(run)] == [run.path]  # it has no index yet
    build_index(run, settings(), add=[other.path])
    sources = _with_added(run)
    assert [one.path.resolve() for one in sources] == [run.path.resolve(), other.path.resolve()]
    items = _all_items(sources)
    names = items["item_id"].to_pylist()
    assert len(names) == len(set(names)) == 230
    # A sweep has the files of both; each garment counts once.
    swept = RunDirectory(tmp_path / "swept")
    shutil.copytree(run.path, swept.path)
    for shard in other.garments_dir.glob("*.parquet"):
        shutil.copy(shard, swept.garments_dir / f"t-{shard.name}")
    before = run.stage_record("index")
    extracted_again(swept, "swept")
    build_index(swept, settings())
    assert {name: swept.stage_record("index")[name] for name in ("in", "out", "failed")} == {
        name: before[name] for name in ("in", "out", "failed")
    }
    shutil.rmtree(other.path)
    with pytest.raises(UserError, match=r"other: no such run directory"):
        _with_added(run)
