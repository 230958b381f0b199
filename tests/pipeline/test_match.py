"""The pair search: equal to a plain double loop, whatever the blocks, shards and workers, and after any
crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline import quantise
from pipeline.errors import UserError
from pipeline.index import build_index
from pipeline.judge import judge
from pipeline.match import match
from pipeline.rundir import RunDirectory
from pipeline.schema import COS_COLUMNS, PAIR_SCHEMA, STATE_COLUMNS
from pipeline.settings import Settings, load_settings
from pipeline.verify import verify
from psnet.regions import GROUPS, MIRROR, REGIONS
from psnet.verdict import Calibration
from tests.pipeline.synthetic_garments import (
    ABSENT,
    HIDDEN,
    PRESENT,
    Catalogue,
    catalogue,
    plain_items,
    sha,
    write_run,
)

UNEQUAL = [1.0, 0.5, 0.5, 2.0, 1.0]


@pytest.fixture
def settings_for(tiny_weights: Path):
    def make(*overrides: str) -> Settings:
        return load_settings(None, [f"extract.weights={tiny_weights}", "match.best_k=20", *overrides])

    return make


def shared_items(pictures: int) -> list[dict[str, object]]:
    """One item per picture, and some pictures shown by three items."""
    items = plain_items(pictures)
    for number in range(0, pictures, 40):
        items += [
            {**items[number], "item_id": f"{name}{number}", "seller_id": f"{name}{number}"} for name in "az"
        ]
    return items


# --- the double loop


class Loops:
    """The search as plain loops in float64, garment by garment.

    Args:
        weights: five per group. sample: pictures whose first garments give the levels.
    """

    def __init__(
        self, source: Catalogue, scoring: str, weights: dict[str, list[float]], sample: list[int]
    ) -> None:
        self.source, self._scoring = source, scoring
        self._weights = [weights[group] for group in source.group]
        features = source.features.astype(np.float64)
        self._plain = np.einsum("qrd,xrd->qxr", features, features).tolist()
        flipped = np.einsum("qrd,xrd->qxr", features, source.mirrored.astype(np.float64))
        self._flipped = flipped.tolist()
        self._presence = source.presence.tolist()
        self._turned = source.presence[:, list(MIRROR)].tolist()
        first = [int(np.flatnonzero(source.picture == picture)[0]) for picture in sample]
        self.level = [self._level(q, first) for q in range(len(features))]

    def straight(self, q: int, x: int) -> float:
        """Score without a look at the mirror image."""
        presence = self._presence
        return loop_score(self._plain[q][x], presence[q], presence[x], self._weights[q], self._scoring)

    def _level(self, q: int, sample: list[int]) -> float:
        scores = sorted(
            self.straight(q, x) for x in sample if self.source.picture[x] != self.source.picture[q]
        )
        return scores[min(int(0.99 * (len(scores) - 1)), max(len(scores) - 10, 0))] if scores else 0.0

    def pictures(self, by: str) -> dict[tuple[str, str], tuple[float, float, bool]]:
        """Of every ordered pair of pictures (normalised score, score, mirrored) of the garments that stand
        for them: those of the greatest score of the kind ``by``."""
        best: dict[tuple[str, str], tuple[float, float, bool]] = {}
        picture, first = self.source.picture, 0 if by == "normalised_score" else 1
        for q, x in product(range(len(picture)), repeat=2):
            if picture[q] == picture[x]:
                continue
            score, turned = self.straight(q, x), False
            turn = loop_score(
                self._flipped[q][x], self._presence[q], self._turned[x], self._weights[q], self._scoring
            )
            if turn > score + 1e-6:
                score, turned = turn, True
            level = (self.level[q] + self.level[x]) / 2
            found = (score - level) / max(1 - level, 0.05), score, turned
            key = sha(picture[q]), sha(picture[x])
            if key not in best or found[first] > best[key][first]:
                best[key] = found
        return best


def sample_of(source: Catalogue, items, size: int) -> list[int]:
    """Pictures of ``items`` with a visible garment, of the smallest hashes."""
    shown = {item["image_sha256"] for item in items}
    visible = np.unique(source.picture[(source.presence == PRESENT).any(1)]).tolist()
    return sorted((p for p in visible if sha(p) in shown), key=sha)[:size]


def loop_score(cos, pq_, px, w, scoring):
    used = [r for r in range(5) if HIDDEN not in (pq_[r], px[r]) and not (pq_[r] == ABSENT == px[r])]
    c = [cos[r] if pq_[r] == PRESENT == px[r] else 0.0 for r in range(5)]
    if scoring == "weighted":
        total = sum(w[r] for r in used)
        return sum(w[r] * c[r] for r in used) / total if total else 0.0
    if len(used) < 3:
        total = sum(w[r] for r in used) + (3 - len(used)) * sum(w) / 5
        return sum(w[r] * c[r] for r in used) / total
    wc = [w[r] * c[r] for r in range(5)]
    return max((wc[a] + wc[b] + wc[d]) / (w[a] + w[b] + w[d]) for a, b, d in combinations(used, 3))


def loop_pairs(
    loops: Loops,
    queries,
    partners,
    by: str,
    threshold: float,
    normalised_threshold: float,
    k: int,
    limit: int,
):
    """query item -> [(match item, normalised score, score, mirrored)], best first; and how many reach the
    thresholds beyond the limit."""
    pictures = loops.pictures(by)
    visible = {sha(p) for p in loops.source.picture[(loops.source.presence == PRESENT).any(1)]}
    kept, left_out = defaultdict(list), 0
    for a in queries:
        ranked = []
        for b in partners:
            one, other = a["image_sha256"], b["image_sha256"]
            if a["item_id"] == b["item_id"] or one not in visible or other not in visible:
                continue
            found = (1.0, 1.0, False) if one == other else pictures[one, other]
            ranked.append((b["item_id"], *found))
        at = 1 if by == "normalised_score" else 2
        # Equal garments are equally far to the last digit but one.
        ranked.sort(key=lambda p: (-round(p[at], 9), -round(p[2], 9), p[0]))
        for rank, p in enumerate(ranked):
            reached = p[2] >= threshold and (by == "score" or p[1] >= normalised_threshold)
            if (rank < k or reached) and len(kept[a["item_id"]]) < limit:
                kept[a["item_id"]].append(p)
            elif reached:
                left_out += 1
    return kept, left_out


def assert_equal_to_loops(found: pa.Table, expected, by: str) -> None:
    assert found.schema.equals(PAIR_SCHEMA)
    assert found.num_rows == sum(map(len, expected.values()))
    rows = defaultdict(list)
    for row in found.to_pylist():
        rows[row["query_item_id"]].append(row)
    other = "score" if by == "normalised_score" else "normalised_score"
    for query, partners in expected.items():
        got = rows[query]
        assert [row["rank"] for row in got] == list(range(1, len(partners) + 1))
        assert got == sorted(
            got,
            key=lambda row: (-row[by], *([-row[other]] if other == "score" else []), row["match_item_id"]),
        )
        at = 1 if by == "normalised_score" else 2
        np.testing.assert_allclose([row[by] for row in got], [p[at] for p in partners], atol=1e-4)
        known = {p[0]: p for p in partners}
        assert {row["match_item_id"] for row in got} == set(known)
        for row in got:
            _, normalised, score, flip = known[row["match_item_id"]]
            assert abs(row["score"] - score) < 1e-5
            assert abs(row["normalised_score"] - normalised) < 1e-4
            assert row["mirrored"] == flip


def repeated(source: Catalogue, copies: int) -> Catalogue:
    """The first garment of some pictures made the very same as another picture's: those of the greatest
    hashes, which no sample holds, so that they have one level and tie."""
    *_, original = pictures = sorted(set(source.picture.tolist()), key=sha)
    (garment, *_) = np.flatnonzero(source.picture == original)
    for picture in pictures[-copies:-1]:
        (copy, *_) = np.flatnonzero(source.picture == picture)
        for values in (source.features, source.mirrored, source.presence):
            values[copy] = values[garment]
        source.group[copy] = source.group[garment]
    return source


@pytest.mark.parametrize(
    ("scoring", "weights", "pictures", "by"),
    [
        ("best_regions", None, 300, "normalised_score"),
        ("best_regions", None, 200, "score"),
        ("best_regions", UNEQUAL, 100, "normalised_score"),
        ("weighted", UNEQUAL, 100, "normalised_score"),
    ],
)
def test_blocks_find_what_a_double_loop_in_float64_finds(
    tmp_path, settings_for, ray_local, scoring, weights, pictures, by
):
    # A quarter is plain and near everything plain, and a design stands there forty times: ties across the
    # limit, which only the items' names resolve.
    source = repeated(catalogue(pictures, plain=0.25), 40)
    items = shared_items(pictures)
    run = write_run(tmp_path / "run", source, items, shards=3)
    table = {group: weights or [1.0] * 5 for group in GROUPS}
    if weights:  # two groups weigh differently: scores then depend on who asks
        table["dress"] = table["tops"] = weights[::-1]
    overrides = [f"match.region_weights={table}", f"match.scoring={scoring}", f"match.rank_by={by}"]
    overrides += ["match.block_size=64", "match.background_size=50"]
    match(run, settings_for(*overrides, "match.min_score=0.75", "match.max_pairs_per_item=30"))

    loops = Loops(source, scoring, table, sample_of(source, items, 50))
    assert max(loops.level) - min(loops.level) > 0.5 and (pictures < 300 or max(loops.level) > 0.95)
    expected, left_out = loop_pairs(loops, items, items, by, 0.75, 0.0, 20, 30)
    assert_equal_to_loops(pq.read_table(run.pairs_path), expected, by)
    assert left_out > 100
    # Of pairs of pictures that go, those of their items are not counted one by one.
    assert 0 < run.stage_record("match")["pairs_left_out"] <= left_out


def test_columns_of_a_pair_agree_with_each_other(tmp_path, settings_for):
    run = write_run(tmp_path / "run", catalogue(120), plain_items(120))
    match(run, settings_for())
    threshold = Calibration.default().kept_threshold
    for row in pq.read_table(run.pairs_path).to_pylist():
        cosines = [row[column] for column in COS_COLUMNS]
        states = [
            "not_comparable" if cos is None else "kept" if cos >= t else "changed"
            for cos, t in zip(cosines, threshold, strict=True)
        ]
        assert states == [row[column] for column in STATE_COLUMNS]
        changed = [name for name, state in zip(REGIONS, states, strict=True) if state == "changed"]
        assert changed == row["modified_regions"]
        best = sorted((cos for cos in cosines if cos is not None), reverse=True)[:3]
        assert row["score"] == pytest.approx(sum(best) / 3, abs=1e-6)
        assert (row["relation"] == "undecidable") == (len(best) < 3)
        assert row["normalised_score"] <= row["score"] + 1e-6 or row["score"] > 1 or row["score"] < 0


def test_projected_or_not_the_result_is_the_same(tmp_path, settings_for, monkeypatch):
    source = catalogue(200, seed=5, padded=64)
    several = []
    for most_outside in (0.015, 0):
        monkeypatch.setattr(quantise, "_MOST_OUTSIDE", most_outside)
        run = write_run(tmp_path / str(most_outside), source, plain_items(200))
        match(run, settings_for("match.min_score=0.5"))
        several.append((run.stage_record("match")["multiplied_dim"], pq.read_table(run.pairs_path)))
    assert [dim for dim, _ in several] == [32, 64]
    assert several[0][1].equals(several[1][1])


# --- independence


def results(run: RunDirectory) -> tuple[pa.Table, pa.Table, int]:
    return (
        pq.read_table(run.pairs_path),
        pq.read_table(run.suspects_path),
        run.stage_record("match")["pairs_left_out"],
    )


@pytest.mark.parametrize(("padded", "multiplied"), [(0, 16), (64, 32)])
def test_result_does_not_depend_on_blocks_or_shards(tmp_path, settings_for, ray_local, padded, multiplied):
    source, items = catalogue(200, copies=0.6, seed=3, padded=padded), shared_items(200)
    several = []
    for number, (shards, size) in enumerate([(1, 4096), (3, 100), (7, 37)]):
        run = write_run(tmp_path / str(number), source, items, shards=shards, seed=number)
        # Many pairs above the threshold, few allowed: what is left out has to be counted right as well.
        settings = settings_for(
            f"match.block_size={size}",
            "match.min_score=0.3",
            "match.max_pairs_per_item=25",
            "match.background_size=80",
        )
        match(run, settings)
        verify(run, settings)
        judge(run, settings)
        assert run.stage_record("match")["multiplied_dim"] == multiplied
        several.append(results(run))
    assert several[0][2] > 1000
    for other in several[1:]:
        assert other[0].equals(several[0][0])
        assert other[1].equals(several[0][1])
        assert other[2] == several[0][2]


DRIVER = """
import sys
from pipeline.match import match
from pipeline.rundir import RunDirectory
from pipeline.settings import load_settings
match(RunDirectory(sys.argv[1]), load_settings(None, sys.argv[2:]))
"""


def start_driver(run: RunDirectory, *overrides: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(run.path), "match.best_k=20", *overrides],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def process_state(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def is_alive(pid: int) -> bool:
    try:
        return process_state(pid)[0] != "Z"  # nobody may be there to bury it
    except OSError:
        return False


def descendants(pid: int) -> dict[int, str]:
    """Process ids and names of all living ones that ``pid`` has started."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and is_alive(int(entry.name)):
                parents[int(entry.name)] = int(process_state(int(entry.name))[1])
                names[int(entry.name)] = (entry / "cmdline").read_text()
        except OSError:
            pass  # gone meanwhile
    found, fresh = {}, {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh}
        found |= {child: names.get(child, "") for child in fresh}
    return found


def blocks(run: RunDirectory) -> dict[str, tuple[int, int]]:
    """Finished blocks: inode and time of writing."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in run.match_dir.glob("*/block-*.parquet")
    }


@pytest.mark.slow
def test_killed_worker_and_driver_cost_nothing_that_is_finished(tmp_path, settings_for, ray_local):
    source, items = catalogue(400, dim=128, seed=4), plain_items(400)
    size = "match.block_size=16"
    whole = write_run(tmp_path / "whole", source, items)
    settings = settings_for()
    match(whole, settings)
    verify(whole, settings)
    judge(whole, settings)

    run = write_run(tmp_path / "killed", source, items)
    driver = start_driver(
        run, f"extract.weights={settings.extract.weights}", size, "ray.num_cpus=3", "ray.object_store_mb=80"
    )
    wait_for(lambda: len(blocks(run)) >= 20, driver)

    def busy() -> list[int]:
        named = descendants(driver.pid).items()
        return [pid for pid, name in named if name.startswith("ray::_compute_block")]

    while not (workers := busy()):  # between two tasks a worker is called idle
        assert driver.poll() is None
    os.kill(workers[0], signal.SIGKILL)
    before = len(blocks(run))
    wait_for(lambda: len(blocks(run)) >= before + 20, driver)
    family = descendants(driver.pid)
    driver.kill()
    driver.wait()
    # Workers end with their driver; Ray's agents, which compute nothing, take a minute to notice.
    agents = {pid for pid, name in family.items() if "Agent" in name}
    wait_for(lambda: not any(map(is_alive, family.keys() - agents)))
    for pid in filter(is_alive, agents):
        os.kill(pid, signal.SIGKILL)
    finished = blocks(run)
    assert not run.pairs_path.exists()
    assert 40 <= len(finished) < 25 * 26 / 2

    again = settings_for(size)
    match(run, again)
    verify(run, again)
    judge(run, again)
    assert {name: blocks(run)[name] for name in finished} == finished
    assert run.stage_record("match")["blocks_found"] == len(finished)
    assert results(run)[0].equals(results(whole)[0])
    assert results(run)[1].equals(results(whole)[1])


def wait_for(condition, driver: subprocess.Popen[bytes] | None = None, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if driver is not None and driver.poll() is not None:
            raise AssertionError(f"the driver ended: {driver.stderr.read().decode()}")
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 7])
def test_any_number_of_workers_gives_the_same(tmp_path, settings_for, workers):
    source, items = catalogue(150, seed=5), plain_items(150)
    alone, settings = write_run(tmp_path / "driver", source, items), settings_for()
    match(alone, settings)
    run = write_run(tmp_path / "worker", source, items, shards=2)
    driver = start_driver(
        run,
        f"extract.weights={settings.extract.weights}",
        "match.block_size=40",
        f"ray.num_cpus={workers}",
        "ray.object_store_mb=80",
    )
    _, errors = driver.communicate(timeout=120)
    assert driver.returncode == 0, errors.decode()
    assert pq.read_table(run.pairs_path).equals(pq.read_table(alone.pairs_path))


CLUSTER_DRIVER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster()
options = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
nodes = [cluster.add_node(**options) for _ in range(2)]
print(*(node.all_processes["raylet"][0].process.pid for node in nodes), flush=True)
from pipeline.match import match
from pipeline.rundir import RunDirectory
from pipeline.settings import load_settings
match(RunDirectory(sys.argv[1]), load_settings(None, [*sys.argv[2:], f"ray.address={cluster.address}"]))
"""


@pytest.mark.slow
def test_a_node_that_dies_in_the_middle_changes_nothing(tmp_path, settings_for):
    source, items = catalogue(400, dim=128, seed=8), plain_items(400)
    alone, settings = write_run(tmp_path / "alone", source, items), settings_for()
    match(alone, settings)
    run = write_run(tmp_path / "cluster", source, items)
    overrides = ["match.best_k=20", "match.block_size=20", f"extract.weights={settings.extract.weights}"]
    # The driver sits on the first node; the other one dies.
    driver = subprocess.Popen(
        [sys.executable, "-c", CLUSTER_DRIVER, str(run.path), *overrides],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    raylets = [int(pid) for pid in driver.stdout.readline().split()]
    wait_for(lambda: len(blocks(run)) >= 30, driver)
    finished = blocks(run)
    os.kill(raylets[-1], signal.SIGKILL)
    _, errors = driver.communicate(timeout=200)
    assert driver.returncode == 0, errors.decode()
    assert len(finished) < 20 * 21 / 2 == len(blocks(run))
    assert {name: blocks(run)[name] for name in finished} == finished
    assert pq.read_table(run.pairs_path).equals(pq.read_table(alone.pairs_path))


# --- resume, bad input


def test_a_second_match_does_nothing_and_a_lost_result_is_made_from_the_blocks(
    tmp_path, settings_for, ray_local
):
    run = write_run(tmp_path / "run", catalogue(100), plain_items(100))
    settings = settings_for("match.block_size=40")
    match(run, settings)
    pairs, written = pq.read_table(run.pairs_path), run.pairs_path.stat().st_mtime_ns
    match(run, settings)
    assert run.pairs_path.stat().st_mtime_ns == written
    finished = blocks(run)
    run.pairs_path.unlink()
    match(run, settings)
    assert blocks(run) == finished
    assert pq.read_table(run.pairs_path).equals(pairs)
    match(run, settings_for("match.block_size=40", "match.mirrored=false"))
    assert not pq.read_table(run.pairs_path).equals(pairs)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize("block_size", [16384, 30])
def test_a_gpu_that_is_not_there_is_a_line(tmp_path, settings_for, ray_local, block_size):
    source, items = catalogue(60), shared_items(60)
    run = write_run(tmp_path / "run", source, items)
    with pytest.raises(UserError, match=r"match\.device: is cuda, and there is no GPU"):
        match(run, settings_for("match.device=cuda", f"match.block_size={block_size}"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_finds_the_same(tmp_path, settings_for):
    source, items = catalogue(300, seed=3), shared_items(300)
    found = []
    for device in ("cpu", "cuda"):
        run = write_run(tmp_path / device, source, items)
        match(run, settings_for(f"match.device={device}"))
        found.append(pq.read_table(run.pairs_path))
    assert found[0].equals(found[1])


def test_match_asks_for_what_comes_before(tmp_path, settings_for):
    run = RunDirectory(tmp_path / "run")
    run.update(kind="scan")
    with pytest.raises(UserError, match="extract"):
        match(run, settings_for())


@pytest.mark.parametrize("pictures", [1, 2])
def test_a_catalogue_of_almost_nothing(tmp_path, settings_for, pictures):
    source = catalogue(pictures, copies=0, flipped=0, several=0, all_visible=True)
    run = write_run(tmp_path / "run", source, plain_items(pictures))
    settings = settings_for()
    build_index(run, settings)
    match(run, settings)
    verify(run, settings)
    judge(run, settings)
    assert pq.read_table(run.pairs_path).num_rows == (0 if pictures == 1 else 2)


def test_a_catalogue_in_which_nothing_can_be_seen(tmp_path, settings_for):
    source = catalogue(20)
    source.presence[:] = HIDDEN
    source.presence[:, 0] = ABSENT
    run = write_run(tmp_path / "run", source, plain_items(20))
    settings = settings_for()
    build_index(run, settings)
    match(run, settings)
    verify(run, settings)
    judge(run, settings)
    assert pq.read_table(run.pairs_path).num_rows == pq.read_table(run.suspects_path).num_rows == 0
    record = run.stage_record("match")
    assert record["in"] == record["failed"]["no_visible_region"] == len(source.picture)


def test_items_of_one_picture_are_identical_however_little_can_be_seen(tmp_path, settings_for):
    source = catalogue(30, several=0)
    source.presence[0] = [PRESENT, HIDDEN, HIDDEN, HIDDEN, ABSENT]
    source.features[0, 0] = source.features[0, 0] * 0 + 16**-0.5
    items = plain_items(30)
    items.append({**items[0], "item_id": "again", "seller_id": "another"})
    run = write_run(tmp_path / "run", source, items)
    settings = settings_for("judge.min_score=0.3", "match.min_score=0.3")
    match(run, settings)
    verify(run, settings)
    judge(run, settings)
    (pair,) = [
        row
        for row in pq.read_table(run.suspects_path).to_pylist()
        if {row["original_item_id"], row["suspect_item_id"]} == {"again", items[0]["item_id"]}
    ]
    assert pair["relation"] == "identical"
    assert pair["modified_regions"] == []
    assert pair["explanation"].startswith("Both items show the very same picture")


# --- sweeps


def sweep_run(path: Path, source: Catalogue, items, originals, settings: Settings) -> RunDirectory:
    run = write_run(path, source, items, shards=3)
    run.update(kind="sweep")
    pq.write_table(pa.table({"item_id": [item["item_id"] for item in originals]}), run.queries_path)
    build_index(run, settings)
    match(run, settings)
    return run


def test_a_sweep_compares_originals_with_the_others_only(tmp_path, settings_for, ray_local):
    # One garment a picture: with the levels of a sweep, which come from the others only, another one might
    # stand for its picture.
    source, items = catalogue(200, seed=6, several=0), shared_items(200)
    originals = items[:30] + items[-2:]
    names = {item["item_id"] for item in originals}
    settings = settings_for("match.block_size=50", "match.best_k=300", "match.max_pairs_per_item=300")
    scan = write_run(tmp_path / "scan", source, items)
    match(scan, settings)
    run = sweep_run(tmp_path / "sweep", source, items, originals, settings)
    key = ("query_item_id", "match_item_id", "score", "relation", "mirrored")
    expected = {
        tuple(row[name] for name in key)
        for row in pq.read_table(scan.pairs_path).to_pylist()
        if row["query_item_id"] in names and row["match_item_id"] not in names
    }
    found = {tuple(row[name] for name in key) for row in pq.read_table(run.pairs_path).to_pylist()}
    assert found == expected
    verify(run, settings)
    judge(run, settings)
    suspects = pq.read_table(run.suspects_path).to_pylist()
    assert suspects
    for row in suspects:
        assert len(names & {row["original_item_id"], row["suspect_item_id"]}) == 1


def test_a_sweep_finds_what_a_double_loop_in_float64_finds(tmp_path, settings_for, ray_local):
    source, items = repeated(catalogue(150, seed=6, plain=0.25), 40), shared_items(150)
    originals, others = items[:40], items[40:]
    settings = settings_for(
        "match.block_size=30",
        "match.background_size=50",
        "match.min_score=0.7",
        "match.max_pairs_per_item=25",
    )
    run = sweep_run(tmp_path / "sweep", source, items, originals, settings)
    table = {group: [1.0] * 5 for group in GROUPS}
    loops = Loops(source, "best_regions", table, sample_of(source, others, 50))
    expected, _ = loop_pairs(loops, originals, others, "normalised_score", 0.7, 0.0, 20, 25)
    assert_equal_to_loops(pq.read_table(run.pairs_path), expected, "normalised_score")


def test_a_sweep_through_an_approximate_index_that_looks_everywhere_equals_the_exact_one(
    tmp_path, settings_for
):
    source, items = catalogue(200, seed=6), shared_items(200)
    originals = items[:30] + items[-2:]
    few = ["match.best_k=10", "match.max_pairs_per_item=40"]
    exact = sweep_run(tmp_path / "exact", source, items, originals, settings_for(*few))
    through = sweep_run(
        tmp_path / "index",
        source,
        items,
        originals,
        settings_for(*few, "index.factory='IVF4,Flat'", "index.nprobe=4", "index.shard_size=60"),
    )
    assert through.stage_record("match")["exact"] is False
    assert through.stage_record("index")["shards"] > 1
    assert pq.read_table(through.pairs_path).equals(pq.read_table(exact.pairs_path))
