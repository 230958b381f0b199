"""The figures of `psnet eval` against values worked out by hand or by brute force."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psnet.boxes import overlaps
from psnet.config import ConfigError, load_config
from psnet.data.photographs import LabelledGarment, read_labels, with_masks
from psnet.data.rephotograph import View, rephotograph
from psnet.evaluation import detection, landmarks, paper, photographic, plagiarism, retrieval
from psnet.evaluation.baselines import hash_scores, perceptual_hash, sift_scores
from psnet.evaluation.benchmark import Benchmark, Item, read_benchmark, read_picture
from psnet.evaluation.garments import GarmentTable
from psnet.evaluation.intervals import Estimate, bootstrap_mean, bootstrap_median, wilson, wilson_of_clusters
from psnet.evaluation.keypoints import deepfashion2_sigmas
from psnet.evaluation.looks import Looks
from psnet.evaluation.scores import ScoreSettings, best_garments, item_scores, levels
from psnet.evaluation.session import mean_of_members
from psnet.evaluation.settings import EvaluationSettings, read_contrasts, read_variants
from psnet.evaluation.tables import Table, read_tables, write_tables
from psnet.evaluation.truth import TruthPair, parts_of
from psnet.predictor import Garment
from psnet.regions import GROUPS, MIRROR, REGIONS, Presence
from psnet.registration import find_keypoints
from psnet.render.labels import write_labels
from psnet.similarity import compare, compare_block, equal_weights, normalise
from psnet.taxonomy import Taxonomy
from psnet.train.calibrate import CALIBRATION_CAMERA
from psnet.train.landmarks import subject_of
from psnet.verdict import Calibration
from psnet.verification import Verifier, as_arrays

S2 = ScoreSettings("best_regions", equal_weights())


# --- intervals


def test_wilson_as_in_the_textbook():
    # 8 of 10: 0.4902 to 0.9433 (Newcombe, 1998).
    share = wilson(8, 10)
    assert (share.value, share.count) == (0.8, 10)
    assert (share.low, share.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 5).low == 0 and wilson(5, 5).high == 1
    assert math.isnan(wilson(0, 0).value)


def test_wilson_of_clusters_counts_clusters_where_they_fall_together():
    single = wilson_of_clusters(np.array([1] * 8 + [0] * 2), np.ones(10))
    assert (single.value, single.count) == (0.8, 10)
    assert single.low == pytest.approx(wilson(8, 10).low, abs=0.08)
    together = wilson_of_clusters(np.array([20, 0, 20, 20, 0]), np.full(5, 20))
    apart = wilson_of_clusters(np.full(5, 12), np.full(5, 20))
    assert together.value == apart.value == 0.6
    assert together.high - together.low > 3 * (apart.high - apart.low)
    assert wilson(60, 100).low - 0.05 < apart.low < wilson(60, 100).low
    # Nothing seen in five queries of twenty pairs is no more than nothing seen in five.
    assert wilson_of_clusters(np.zeros(5), np.full(5, 20)).high == pytest.approx(wilson(0, 5).high)
    assert math.isnan(wilson_of_clusters(np.zeros(3), np.zeros(3)).value)
    with pytest.raises(ValueError, match="no share"):
        wilson_of_clusters(np.array([2]), np.array([1]))

    rng, covered = np.random.default_rng(0), []
    for _ in range(300):
        rate = rng.beta(1, 4, 60)  # mean 0.2, most of it between the clusters
        trials = rng.integers(1, 40, 60)
        estimate = wilson_of_clusters(rng.binomial(trials, rate), trials)
        covered.append(estimate.low <= 0.2 <= estimate.high)
    assert np.mean(covered) > 0.92
    with pytest.raises(ValueError, match="no share"):
        wilson(3, 2)


def test_bootstrap_is_as_wide_as_the_normal_interval_and_repeats_itself():
    values = np.random.default_rng(0).normal(3, 2, 400)
    mean = bootstrap_mean(values, seed=5)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert mean.value == pytest.approx(values.mean())
    assert (mean.low, mean.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)
    assert mean == bootstrap_mean(values, seed=5) != bootstrap_mean(values, seed=6)
    assert bootstrap_mean([]).count == 0


def test_copies_of_one_design_are_no_independent_cases():
    designs = np.random.default_rng(1).normal(size=30)
    values, names = np.repeat(designs, 20), np.repeat(np.arange(30), 20)
    alone, together = bootstrap_median(values), bootstrap_median(values, names.tolist())
    assert together.value == alone.value == np.median(values)
    assert together.high - together.low > 2 * (alone.high - alone.low)


# --- benchmarks


def write_benchmark(folder: Path, truth: str, items: str = "o,c,x") -> Path:
    folder.mkdir(exist_ok=True)
    rows = "".join(f"{name},{name}.jpg,s{i}\n" for i, name in enumerate(items.split(",")))
    (folder / "catalogue.csv").write_text("item_id,image,seller_id\n" + rows)
    (folder / "truth.csv").write_text("original,copy,relation,group,modified,kinds,mirrored\n" + truth)
    return folder


def test_a_benchmark_is_read(tmp_path):
    folder = write_benchmark(tmp_path, "o,c,plagiarised,tshirt,sleeves|chest,logo|logo,1\n")
    boxes = {"item_id": "o", "bbox": [1, 2, 3, 4], "regions": {"collar": [1, 2, 3, 3], "chest": None}}
    (folder / "boxes.jsonl").write_text(json.dumps(boxes) + "\n")
    one = read_benchmark(folder, "name")
    (pair,) = one.truth
    assert (pair.group, pair.parts, pair.mirrored) == ("T-shirts", {"sleeves", "chest"}, True)
    assert pair.regions == {"left_sleeve", "right_sleeve", "chest"} and pair.kinds == ("logo", "logo")
    assert (
        one.boxes["o"].region_boxes[0].tolist() == [1, 2, 3, 3]
        and np.isnan(one.boxes["o"].region_boxes[1:]).all()
    )
    assert one.design == {"o": "o", "c": "o"} and one.rows["x"] == 2
    # The digest follows the content.
    (folder / "boxes.jsonl").write_text("")
    assert read_benchmark(folder).digest != one.digest


def test_a_subset_keeps_designs_whole(tmp_path):
    truth = "a,a1,identical,top,,,0\na,a2,plagiarised,top,chest,,0\nb,b1,plagiarised,top,chest,,0\n"
    one = read_benchmark(write_benchmark(tmp_path, truth, "a,b,a1,a2,b1,w,x,y,z")).subset(1)
    assert [item.item_id for item in one.items] == ["a", "a1", "a2", "w", "x"]
    assert len(one.truth) == 2


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ("o,nobody,identical,top,,,0\n", "nobody is not in"),
        ("o,c,stolen,top,,,0\n", "unknown relation 'stolen'"),
        ("o,c,identical,hat,,,0\n", "unknown group 'hat'"),
        ("o,c,plagiarised,top,pocket,,0\n", "unknown region 'pocket'"),
        ("", "holds no pair"),
    ],
)
def test_mistakes_in_the_truth_are_one_line(tmp_path, truth, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_benchmark(write_benchmark(tmp_path, truth))
    assert "\n" not in str(caught.value) and "truth.csv" in str(caught.value)


def test_other_mistakes_in_a_benchmark(tmp_path):
    with pytest.raises(ValueError, match=r"catalogue\.csv: cannot be read"):
        read_benchmark(tmp_path)
    folder = write_benchmark(tmp_path, "o,c,identical,top,,,0\n")
    (folder / "boxes.jsonl").write_text('{"item_id": "o"}\n')
    with pytest.raises(ValueError, match=r"boxes\.jsonl, line 1"):
        read_benchmark(folder)
    (folder / "truth.csv").write_text("original,copy\n")
    with pytest.raises(ValueError, match="no column relation, group, modified"):
        read_benchmark(folder)


# --- retrieval


def benchmark(truth: list[TruthPair], items: list[str]) -> Benchmark:
    rows = tuple(Item(name, Path(f"{name}.jpg"), f"seller of {name}") for name in items)
    return Benchmark("test", rows, tuple(truth), {}, "0")


def pair(original: str, copy: str, relation: str, regions: tuple[str, ...] = (), **more) -> TruthPair:
    values = {"group": "tops", "kinds": (), "mirrored": False, **more}
    return TruthPair(original, copy, relation, parts=parts_of(regions), regions=frozenset(regions), **values)


THREE = benchmark(
    [
        pair("a", "a1", "identical"),
        pair("a", "a2", "plagiarised", ("chest",), group="dress", kinds=("logo",)),
        pair("a", "a3", "plagiarised", ("collar",), group="dress", kinds=("logo", "colour"), mirrored=True),
        pair("b", "b1", "plagiarised", ("waist",), kinds=("colour",)),
        pair("c", "c1", "derived", ("collar", "chest", "waist")),
    ],
    ["a", "a1", "a2", "a3", "b", "b1", "c", "c1", "x"],
)


def test_retrieval_by_hand():
    low = -np.inf
    #        a    a1   a2   a3   b    b1   c    c1   x
    scores = [[low, 0.9, 0.8, 0.3, 0.1, 0.2, 0.1, 0.0, 0.5], [0.4, 0.1, 0.1, 0.1, low, 0.3, 0.1, 0.1, 0.2]]
    a, b = retrieval.rank_queries(THREE, np.array(scores, np.float32))
    # a's ranking without a1, which is neither right nor wrong: a2 right, x wrong, a3 right.
    assert a.figures == pytest.approx({"recall@1": 1, "recall@10": 1, "recall@20": 1, "mAP": (1 + 2 / 3) / 2})
    assert a.strangers_before == {"a2": 0, "a3": 1} and b.strangers_before == {"b1": 1}
    assert b.figures["recall@1"] == 0 and b.figures["mAP"] == 0.5
    summary = retrieval.summary([a, b])
    assert list(summary) == ["tops", "dress", "overall"]
    assert summary["overall"]["mAP"].value == pytest.approx(((1 + 2 / 3) / 2 + 0.5) / 2)
    by_class = retrieval.recall_by_class(THREE, [a, b], 1)
    assert {name: (e.value, e.count) for name, e in by_class.items()} == {
        "all": (pytest.approx(1 / 3), 3),
        "edit: colour": (0, 2),
        "edit: logo": (0.5, 2),
        "part: chest": (1, 1),
        "part: collar": (0, 1),
        "part: waist": (0, 1),
        "photograph flipped": (0, 1),
        "photograph not flipped": (0.5, 2),
    }


def test_a_copy_that_is_not_in_the_ranking_is_not_found():
    scores = np.full((2, 9), -np.inf, np.float32)
    scores[0, 3] = 0.5
    a, b = retrieval.rank_queries(THREE, scores)
    assert a.figures["mAP"] == 0.5 and a.figures["recall@10"] == 0.5 and a.strangers_before["a2"] is None
    assert set(b.figures.values()) == {0}


def plain_figures(partners: list[str], wanted: set[str], family: dict[str, str], query: str):
    """As the benchmark's own scoring program has it."""
    hits = [m in wanted for m in partners if m != query and (m in wanted or family.get(m) != query)]
    precisions = [sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit]
    recalls = [sum(hits[:k]) / min(k, len(wanted)) for k in (1, 10, 20)]
    return [*recalls, sum(precisions) / len(wanted)]


def test_retrieval_equals_the_plain_program():
    rng = np.random.default_rng(0)
    truth = [
        pair(f"o{i}", f"o{i}-{j}", relation)
        for i in range(8)
        for j, relation in enumerate(("identical", "plagiarised", "plagiarised", "plagiarised", "derived"))
    ]
    names = sorted({p.original for p in truth} | {p.copy for p in truth} | {f"x{i}" for i in range(40)})
    one = benchmark(truth, names)
    scores = rng.normal(size=(8, len(names))).astype(np.float32)
    for query, row, result in zip(
        retrieval.queries(one), scores, retrieval.rank_queries(one, scores), strict=True
    ):
        partners = [names[i] for i in np.argsort(-row)]
        wanted = {p.copy for p in truth if p.original == query and p.relation == "plagiarised"}
        expected = plain_figures(partners, wanted, one.design, query)
        assert list(result.figures.values()) == pytest.approx(expected)


def test_equal_scores_are_not_ordered_by_the_catalogue():
    truth = [pair(f"o{i}", f"a{i}", "plagiarised") for i in range(200)]
    names = [*(p.copy for p in truth), *(p.original for p in truth)]
    results = retrieval.rank_queries(benchmark(truth, names), np.zeros((200, 400), np.float32))
    before = [next(iter(r.strangers_before.values())) for r in results]
    assert np.mean(before) == pytest.approx(200, abs=25)


def test_precision_over_recall_by_hand():
    scores = np.full((2, 9), -np.inf, np.float32)
    scores[0, [1, 2, 3, 8]] = [0.9, 0.4, 0.2, 0.6]  # a1 right, x wrong, a2 right, a3 right
    scores[1, [5, 8]] = [0.6, 0.1]  # b1 right, but x of the other query comes first among equals
    assert retrieval.precision_recall(THREE, scores) == [
        (0.25, 1.0),
        (0.5, pytest.approx(2 / 3)),
        (0.75, 0.75),
        (1.0, 0.8),
    ]


def test_a_curve_of_one_group_knows_that_group_alone():
    scores = np.full((2, 9), -np.inf, np.float32)
    scores[0, [1, 2, 3, 8]] = [0.9, 0.4, 0.2, 0.6]
    scores[1, [5, 8]] = [0.6, 0.7]
    assert retrieval.precision_recall(THREE, scores, group="tops") == [(1.0, 0.5)]
    assert retrieval.precision_recall(THREE, scores, group="outwear") == []


def test_a_contrast_is_judged_query_by_query():
    rng = np.random.default_rng(0)
    hard = rng.uniform(0, 0.9, 60)

    def results(gain: float) -> list[retrieval.QueryResult]:
        figures = [dict.fromkeys(retrieval.FIGURES, float(h + gain)) for h in hard]
        return [retrieval.QueryResult(str(q), "tops", f, {}) for q, f in enumerate(figures)]

    # A gain that is the same for every query is certain, however much the queries differ.
    better = retrieval.contrast([results(0.02), results(0.04)], [results(0.0)])
    assert [(e.value, e.low, e.high) for e in better.values()] == [(pytest.approx(0.03),) * 3] * 4
    same = retrieval.contrast([results(0.0)], [results(0.0)])
    table = retrieval.contrast_table("t", "", [("a", "x", "y", better), ("b", "x", "y", same)])
    assert [row[-1] for row in table.rows] == ["helps", "not shown"]


# --- changes of the photograph


@pytest.mark.parametrize("change", list(photographic.CHANGES))
def test_a_change_changes_and_repeats_itself(tmp_path, change):
    rng = np.random.default_rng(1)
    for name in "ocx":
        cells = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((100, 120), Image.Resampling.BILINEAR).save(tmp_path / f"{name}.png")
    folder = write_benchmark(tmp_path, "o,c,plagiarised,top,chest,,0\n")
    (folder / "catalogue.csv").write_text(
        "item_id,image,seller_id\n" + "".join(f"{n},{n}.png,s\n" for n in "ocx")
    )
    box = {"item_id": "c", "bbox": [20, 30, 80, 100], "regions": {}}
    (folder / "boxes.jsonl").write_text(json.dumps(box) + "\n")
    one = read_benchmark(folder)
    (row,) = photographic.changed_rows(one, 1)
    before, after = read_picture(one.items[row].image), photographic.changed_picture(one, row, change)
    assert after.dtype == np.uint8 and after.ndim == 3 and after.shape[2] == 3
    assert after.shape != before.shape or (after != before).mean() > 0.2
    np.testing.assert_array_equal(after, photographic.changed_picture(one, row, change))
    if change == "flipped":
        np.testing.assert_array_equal(after[:, ::-1], before)
    if change == "surroundings":
        np.testing.assert_array_equal(after[30:100, 20:80], before[30:100, 20:80])
    if change == "cropped":
        assert after.shape in ((120, 85, 3), (102, 100, 3))


def test_garments_of_changed_photographs_take_the_place_of_the_others():
    eye = np.eye(8)[:5]
    table = garments(np.stack([eye * k for k in (1, 2, 3, 4)]), [0, 1, 1, 3])
    other = garments(np.stack([eye[::-1], eye[::-1]]), [1, 2])
    now = photographic.replaced(table, other, [1, 2])
    assert now.item.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(now.features[1], other.features[0])
    # An item in whose changed photograph nothing was found has no garment any more.
    assert photographic.replaced(table, other, [1, 2, 3]).item.tolist() == [0, 1, 2]


def test_what_a_change_costs_by_hand():
    before = ([[True, True], [True]], [[True], [False]])
    after = ([[True, False], [False]], [[True], [False]])
    table = photographic.change_table("t", "", {"none": before, "turned": after})
    assert table.rows[0][2] is None and table.rows[0][4] is None
    name, early, costs, listed, same = table.rows[1]
    assert (name, early.value, early.count, listed.value) == ("turned", pytest.approx(1 / 3), 3, 0.5)
    assert costs.value == -0.75 and (same.low, same.value, same.high) == (0, 0, 0)
    low = -np.inf
    scores = [[low, 0.9, 0.8, 0.3, 0.1, 0.2, 0.1, 0.0, 0.5], [low] * 9]
    results = retrieval.rank_queries(THREE, np.array(scores, np.float32))
    assert photographic.found_early(results, ["a", "b"]) == [[True, True], [False]]
    listed_pairs = {frozenset(("a", "a1")), frozenset(("a", "b1")), frozenset(("a", "a3"))}
    assert photographic.listed_copies(THREE, listed_pairs, ["a", "b"]) == [[True, False, True], [False]]
    # Of some designs alone.
    assert photographic.found_early(results, ["b"]) == [[False]]
    assert photographic.listed_copies(THREE, listed_pairs, ["a"]) == [[True, False, True]]
    assert photographic.changed_designs(THREE, 1) == ["a"] and photographic.changed_rows(THREE, 9) == [
        1,
        2,
        3,
        5,
    ]


# --- scores


def garments(features: np.ndarray, item: list[int], mirrored: np.ndarray | None = None, presence=None):
    """A table of garments with unit-norm features (n, 5, d)."""
    n = len(item)
    unit = features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-9)
    return GarmentTable(
        item=np.array(item, np.int32),
        group=np.zeros(n, np.int8),
        box=np.zeros((n, 4), np.float32),
        region_boxes=np.zeros((n, 5, 4), np.float32),
        presence=np.full((n, 5), Presence.PRESENT, np.uint8) if presence is None else presence,
        landmarks=np.zeros((n, 11, 2), np.float32),
        features=unit.astype(np.float16),
        mirrored=(unit[:, list(MIRROR)] if mirrored is None else mirrored).astype(np.float16),
    )


def random_table(seed: int = 0, count: int = 60, items: int = 40) -> GarmentTable:
    rng = np.random.default_rng(seed)
    presence = rng.choice(3, (count, 5), p=[0.1, 0.1, 0.8]).astype(np.uint8)
    seen = (presence == Presence.PRESENT)[..., None]
    features = rng.normal(size=(count, 5, 8)) * seen
    mirrored = rng.normal(size=(count, 5, 8))
    mirrored /= np.linalg.norm(mirrored, axis=-1, keepdims=True)
    item = np.sort(rng.choice(items, count))
    table = garments(features, item.tolist(), mirrored * seen[:, list(MIRROR)], presence)
    return dataclasses.replace(table, group=rng.integers(0, 4, count).astype(np.int8))


@pytest.mark.parametrize("scoring", ["best_regions", "weighted"])
def test_a_block_of_comparisons_equals_pair_by_pair(scoring):
    table = random_table()
    features, mirrored = table.exact
    weights = paper.manual_weights()[table.group]
    block = compare_block(
        features, table.presence, features, table.presence, weights, mirrored_x=mirrored, scoring=scoring
    )
    pairs = compare(
        features[:, None], table.presence[:, None], features, table.presence, weights[:, None],
        mirrored_x=mirrored, scoring=scoring,
    )  # fmt: skip
    np.testing.assert_allclose(block.score, pairs.score, atol=1e-5)
    np.testing.assert_array_equal(block.comparable, pairs.comparable)
    np.testing.assert_allclose(block.cos, pairs.cos, atol=1e-5)
    assert block.mirrored.any() and not block.mirrored.all()


@pytest.mark.parametrize("normalised", [False, True])
def test_an_item_pair_scores_as_its_best_garments(normalised):
    table = random_table()
    settings = ScoreSettings("best_regions", paper.manual_weights(), normalised)
    asked = [0, 3, 7, 39]
    scores = item_scores(table, asked, 41, settings)
    level = levels(table, settings)
    features, mirrored = table.exact
    for q, row in enumerate(asked):
        for other in range(41):
            values = [
                normalise(
                    compare(
                        features[i], table.presence[i], features[j], table.presence[j],
                        settings.weights[table.group[i]], mirrored_x=mirrored[j],
                    ).score,
                    (level[i] + level[j]) / 2 if normalised else np.float32(0),
                )
                for i in table.of_item(row)
                for j in table.of_item(other)
                if row != other
            ]  # fmt: skip
            assert scores[q, other] == pytest.approx(max(values, default=-np.inf), abs=1e-4)
    # No garment was found in the last picture.
    assert (scores[:, 40] == -np.inf).all()


def test_the_level_is_a_high_quantile_of_the_scores_of_strangers():
    table = random_table(count=50, items=50)
    features, _ = table.exact
    level = levels(table, S2)
    for i in range(len(table)):
        others = table.item != table.item[i]
        score = compare(
            features[i], table.presence[i], features[others], table.presence[others], np.ones(5)
        ).score
        assert level[i] == pytest.approx(np.sort(score)[-10], abs=1e-5)  # the tenth greatest of few


def test_the_best_garments_of_two_items():
    eye = np.eye(8)[:5]
    table = garments(np.stack([eye[::-1], eye, eye]), [0, 0, 2])
    pairs = best_garments(table, [(0, 2), (0, 1)], S2)
    assert (pairs.query.tolist(), pairs.match.tolist()) == ([1, -1], [2, -1])
    assert pairs.found.tolist() == [True, False]
    assert pairs.comparison.score == pytest.approx([1, 0], abs=1e-3)


def test_an_ensemble_is_the_mean_of_those_who_can_tell():
    low = -np.inf
    members = [np.array([[0.2, 0.4, low]]), np.array([[0.6, low, low]])]
    assert mean_of_members(members).tolist() == [pytest.approx([0.4, 0.4, low])]


# --- verdicts

CALIBRATION = Calibration((0.5,) * 5, suspect_threshold=0.7)


@pytest.fixture
def copied():
    """Originals a and b with copies, of features whose cosines are 1 where kept and 0 where changed."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(64, 64)))[0]
    looks = iter(range(64))

    def fresh(regions):
        return {r: basis[next(looks)] for r in regions}

    def look(base: dict[int, np.ndarray], changed: tuple[int, ...] = ()) -> np.ndarray:
        new = {**base, **fresh(changed)}
        return np.stack([new[r] for r in range(5)])

    a, b, x = fresh(range(5)), fresh(range(5)), fresh(range(5))
    flipped = look(a, (3,))[list(MIRROR)]
    names = ["a", "a-same", "a-chest", "a-sleeves", "a-three", "a-flipped", "b", "b-same", "x", "y"]
    features = np.stack(
        [
            look(a), look(a), look(a, (3,)), look(a, (1, 2)), look(a, (0, 3, 4)), flipped,
            look(b), look(b), look(x), look(x),
        ]
    )  # fmt: skip
    truth = [
        pair("a", "a-same", "identical"),
        pair("a", "a-chest", "plagiarised", ("chest",), kinds=("logo",)),
        pair("a", "a-sleeves", "plagiarised", ("left_sleeve", "right_sleeve"), kinds=("colour",)),
        pair("a", "a-three", "derived", ("collar", "chest", "waist")),
        pair("a", "a-flipped", "plagiarised", ("chest",), kinds=("logo",), mirrored=True),
        pair("b", "b-same", "identical"),
    ]
    return benchmark(truth, names), garments(features, list(range(len(names))))


def test_suspects(copied):
    one, table = copied
    found = {(s.original, s.copy): s for s in plagiarism.find_suspects(table, one, CALIBRATION)}
    # x and y look the same and have nothing to do with each other: a wrong accusation. Copies of one design
    # with at most two regions changed between them are right ones.
    assert set(found) == {
        ("a", "a-same"), ("a", "a-chest"), ("a", "a-sleeves"), ("a", "a-flipped"), ("b", "b-same"),
        ("x", "y"), ("a-same", "a-chest"), ("a-same", "a-sleeves"), ("a-same", "a-flipped"),
        ("a-chest", "a-flipped"),
    }  # fmt: skip
    assert found["a", "a-same"].relation == "identical" and found["a", "a-flipped"].relation == "plagiarised"
    assert found["a", "a-sleeves"].regions == {"left_sleeve", "right_sleeve"}
    # The same sellers: not reported.
    sellers = tuple(dataclasses.replace(item, seller_id="s") for item in one.items)
    assert not plagiarism.find_suspects(table, dataclasses.replace(one, items=sellers), CALIBRATION)


def test_verdict_figures_by_hand(copied):
    one, _ = copied
    suspect = plagiarism.Suspect
    suspects = [
        suspect("a-chest", "a", 1.0, "plagiarised", frozenset({"chest", "waist"})),
        suspect("a", "a-sleeves", 0.9, "plagiarised", frozenset({"left_sleeve"})),
        suspect("a", "a-same", 0.8, "plagiarised", frozenset({"chest"})),
        suspect("a", "a-three", 0.8, "similar", frozenset()),
        suspect("a-same", "a-chest", 0.7, "plagiarised", frozenset({"chest"})),
        suspect("x", "y", 0.6, "identical", frozenset()),
    ]
    scored = plagiarism.score_suspects(one, suspects)
    assert scored.precision.value == pytest.approx(5 / 6)
    assert scored.recall.value == pytest.approx(3 / 5)
    assert scored.relation.value == pytest.approx(3 / 4)
    assert scored.iou.value == pytest.approx((1 / 2 + 1) / 2)  # one sleeve named is the part named
    by_class = plagiarism.recall_by_class(one, suspects)
    assert (by_class["edit: logo"].value, by_class["edit: logo"].count) == (0.5, 2)
    assert by_class["photograph flipped"].value == 0


def test_confusion_and_leakage(copied):
    one, table = copied
    judged = plagiarism.judge_truth(table, one, CALIBRATION)
    matrix = plagiarism.confusion(judged)
    expected = {(0, "identical"): 2, (1, "plagiarised"): 2, (2, "plagiarised"): 1, (3, "similar"): 1}
    assert {
        (int(r), plagiarism.OUTCOMES[c]): int(matrix[r, c]) for r, c in zip(*np.nonzero(matrix), strict=True)
    } == expected
    assert plagiarism.confusion(judged, by_parts=True)[1, 1] == 3
    leaks = plagiarism.leakage(judged)
    assert leaks["chest"].edited.value == pytest.approx(1, abs=1e-3) and leaks["chest"].edited.count == 2
    assert (
        leaks["chest"].untouched.value == pytest.approx(0, abs=1e-3) and leaks["chest"].untouched.count == 1
    )
    assert leaks["left_sleeve"].edited.count == 1 and leaks["collar"].edited.count == 0
    assert (leaks["overall"].edited.count, leaks["overall"].untouched.count) == (4, 11)
    rows = {row[0]: row for row in plagiarism.leakage_table("", "", leaks).rows}
    assert rows["chest"][-1] == "yes" and rows["collar"][-1] == ""


def test_an_original_without_a_garment(copied):
    one, table = copied
    rest = GarmentTable(**{f.name: getattr(table, f.name)[1:] for f in dataclasses.fields(table)})
    judged = plagiarism.judge_truth(rest, one, CALIBRATION)
    assert plagiarism.confusion(judged)[:, -1].sum() == 5
    assert plagiarism.leakage(judged)["overall"].edited.count == 0


def test_a_second_look_finds_copies_that_features_miss(tmp_path):
    """Two rendered garments, each with a copy photographed anew, and features that say: perhaps."""
    every = with_masks(read_labels(write_labels(tmp_path / "rendered", 12, seed=3)), tmp_path / "cache")
    rich = [subject_of(g) for g in every if len(find_keypoints(g.read(), g.box).points) > 250]
    swap = Taxonomy.load("clothing11").swap
    views = []
    for seed, subject in enumerate(rich[:2]):
        copy = rephotograph(
            subject, np.random.default_rng(seed), dataclasses.replace(CALIBRATION_CAMERA, bend=0.0), swap=swap
        )
        views += [View.itself(subject), copy]
    names = ["a", "a-same", "b", "b-same"]
    one = benchmark([pair("a", "a-same", "identical"), pair("b", "b-same", "identical")], names)
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(2, 5, 64)), 2, 0) + 0.75 * rng.normal(size=(4, 5, 64))
    presence = np.array([np.where(np.isnan(v.region_boxes[:, 0]), 1, 2) for v in views], np.uint8)
    table = dataclasses.replace(
        garments(features * (presence == Presence.PRESENT)[..., None], [0, 1, 2, 3], presence=presence),
        box=np.stack([v.box for v in views]),
        region_boxes=np.stack([v.region_boxes for v in views]),
        landmarks=np.stack([v.landmarks[:, :2] for v in views]),
    )
    calibration = dataclasses.replace(
        CALIBRATION, suspect_threshold=0.97, registered_points=8, changed_threshold=(30.0,) * 5
    )
    looks = Looks(Verifier.load(), table, lambda row: views[row].pixels)
    assert not plagiarism.find_suspects(table, one, calibration)
    found = plagiarism.find_suspects(table, one, calibration, looks)
    assert {(s.original, s.copy, s.relation) for s in found} == {
        ("a", "a-same", "identical"), ("b", "b-same", "identical"),
    }  # fmt: skip
    judged = plagiarism.judge_truth(table, one, calibration, looks)
    assert judged.registered.all() and plagiarism.confusion(judged)[0, 0] == 2
    assert plagiarism.registered_by_class(judged)["all"].value == 1
    nothing = as_arrays(looks.of(np.array([-1, 0]), np.array([1, 2])))
    assert not nothing[0].any() and np.isnan(nothing[1]).all()


def test_pictures_that_did_not_change_are_looked_at_once():
    """Three pictures of one pattern; the third is changed for a second series of looks, to nothing at all."""
    pattern = np.random.default_rng(0).integers(0, 256, (30, 30, 3)).astype(np.uint8)
    pixels = np.asarray(Image.fromarray(pattern).resize((240, 240), Image.Resampling.BICUBIC))
    table = dataclasses.replace(
        garments(np.ones((3, 5, 64)), [0, 1, 2]),
        box=np.tile(np.array([20, 20, 220, 220], np.float32), (3, 1)),
        region_boxes=np.tile(np.array([60, 60, 160, 160], np.float32), (3, 5, 1)),
        landmarks=np.tile(np.random.default_rng(1).uniform(30, 210, (11, 2)).astype(np.float32), (3, 1, 1)),
    )
    asked, known = (np.array([0, 0]), np.array([1, 2])), {}
    first = Looks(Verifier.load(), table, lambda row: pixels, known).of(*asked)
    assert as_arrays(first)[0].all() and len(known) == 2
    read = []

    def changed(row):
        read.append(row)
        return pixels if row < 2 else np.full_like(pixels, 128)

    second = Looks(Verifier.load(), table, changed, known, {2}).of(*asked)
    assert second[0] is first[0] and second[1] is None
    assert sorted(read) == [0, 2] and len(known) == 2
    moved = dataclasses.replace(table, box=table.box + np.float32([0, 0, 0, 4]))
    assert Looks(Verifier.load(), moved, lambda row: pixels, known).of(*asked) and len(known) == 4


# --- detection and landmarks


def test_average_precision_by_hand():
    true = np.array([[0, 0, 10, 10], [20, 0, 30, 10]], np.float32)
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [20, 0, 30, 8], [0, 0, 10, 9]], np.float32)
    hit = detection.matches(overlaps(boxes[:, None], true[None]))
    # The third overlaps by 0.8; the fourth comes too late for a box that is taken.
    assert hit[:, 0].tolist() == [True, False, True, False] and hit[2].sum() == 7
    ap = detection.average_precision(np.array([0.9, 0.8, 0.7, 0.6]), hit, 2)
    # Recall up to 0.5 with precision 1 (51 of the 101 values), up to 1 with precision 2/3.
    assert ap[0] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert ap[-1] == pytest.approx(51 / 101)


def test_average_precision_equals_pycocotools():
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    rng = np.random.default_rng(0)
    annotations, results, curves = [], [], []
    for image in range(1, 31):
        corner = rng.uniform(0, 100, (int(rng.integers(1, 3)), 2))
        true = np.concatenate([corner, corner + rng.uniform(30, 90, corner.shape)], 1)
        boxes = np.concatenate([true + rng.normal(0, 6, true.shape), true + 40])[: int(rng.integers(0, 5))]
        scores = np.sort(rng.random(len(boxes)))[::-1]
        curves.append((scores, detection.matches(overlaps(boxes[:, None], true[None])), len(true)))

        def xywh(box):
            return [*box[:2], *(box[2:] - box[:2])]

        for box in true:
            area = float(np.prod(box[2:] - box[:2]))
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": 1,
                                "bbox": xywh(box), "area": area, "iscrowd": 0})  # fmt: skip
        results += [
            {"image_id": image, "category_id": 1, "bbox": xywh(box), "score": float(score)}
            for box, score in zip(boxes, scores, strict=True)
        ]
    truth = coco.COCO()
    truth.dataset = {"images": [{"id": i} for i in range(1, 31)], "annotations": annotations,
                     "categories": [{"id": 1, "name": "garment"}]}  # fmt: skip
    truth.createIndex()
    evaluation = cocoeval.COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    expected = evaluation.eval["precision"][:, :, 0, 0, -1].mean(1)
    ap = detection.average_precision(
        np.concatenate([c[0] for c in curves]),
        np.concatenate([c[1] for c in curves]),
        sum(c[2] for c in curves),
    )
    np.testing.assert_allclose(ap, expected, atol=1e-9)


def said(box, landmarks=None, regions=None, presence=(2,) * 5, score=0.9, group="tops") -> Garment:
    return Garment(
        box=np.array(box, np.float32),
        score=score,
        category="short_sleeve_top",
        group=group,
        category_scores=np.full(10, 0.1, np.float32),
        landmarks=np.zeros((11, 3), np.float32) if landmarks is None else landmarks,
        region_boxes=np.zeros((5, 4), np.float32) if regions is None else regions,
        presence=np.array(presence, np.uint8),
        presence_score=np.ones(5, np.float32),
        features=np.zeros((5, 4), np.float32),
        mirrored_features=np.zeros((5, 4), np.float32),
    )


class Said:
    """A predictor that says what it was told to, picture after picture."""

    def __init__(self, *garments: list[Garment]) -> None:
        self.garments = list(garments)

    def predict(self, images):
        return [self.garments.pop(0) for _ in images]


def labelled(box, category="short_sleeve_top") -> LabelledGarment:
    points = np.tile(np.array([[50, 50, 2]], np.float32), (11, 1))
    regions = np.tile(np.array(box, np.float32), (5, 1))
    return LabelledGarment(Path("x.jpg"), "test", category, np.array(box, np.float32), points, regions)


def test_detection_figures_by_hand():
    blank = np.zeros((100, 100, 3), np.uint8)
    shown = [
        detection.Photograph(blank, (labelled([0, 0, 100, 100]),)),
        detection.Photograph(blank, (labelled([0, 0, 100, 100], "short_sleeve_dress"),)),
        detection.Photograph(blank, (labelled([0, 0, 50, 50]),)),
    ]
    # What is not sure enough counts for AP alone.
    sure = [
        [said([0, 0, 100, 80], group="T-shirts")],
        [said([0, 0, 100, 100])],  # a dress taken for a top
        [said([60, 60, 100, 100])],
    ]
    unsure = [[*sure[0], said([0, 0, 100, 100], score=0.2)], *sure[1:]]
    predictor = Said(*sure, [said([0, 0, 50, 50])], [])
    figures = detection.evaluate_detection(predictor, Said(*unsure), shown, [blank, blank])
    assert figures.recall.value == pytest.approx(2 / 3)
    assert figures.iou.value == pytest.approx(0.9)
    assert figures.group.value == 0.5 and figures.empty.value == 0.5
    assert 0 < figures.ap.value < figures.ap50.value < 1


def test_landmark_figures_by_hand():
    true = labelled([0, 0, 100, 50])
    true.landmarks[[3, 4], 2] = 1  # armpits estimated: they do not count
    true.region_boxes[1:3] = np.nan
    points = true.landmarks.copy()
    points[:, 0] += 10
    points[[9, 10], 0] += 10
    regions = np.tile(np.array([0, 0, 100, 25], np.float32), (5, 1))
    garment = said([0, 0, 100, 50], points, regions, presence=(2, 1, 2, 2, 2))
    shown = [detection.Photograph(np.zeros((9, 9, 3), np.uint8), (true,))] * 2
    figures = landmarks.landmark_figures(shown, [[garment], []], [[garment], []])
    assert figures.found.value == 0.5
    assert figures.error["collar"].value == pytest.approx(0.1) and figures.error[
        "hem"
    ].value == pytest.approx(0.2)
    assert figures.error["armpits"].count == 0
    assert figures.error["overall"].value == pytest.approx((7 * 0.1 + 2 * 0.2) / 9)
    assert figures.iou["chest"].value == pytest.approx(0.5) and figures.iou["left_sleeve"].count == 0
    assert figures.presence["left_sleeve"].value == 1 and figures.presence["right_sleeve"].value == 0
    assert figures.presence["overall"].value == pytest.approx(4 / 5)


def test_the_best_overlapping_garment_is_meant():
    true = labelled([0, 0, 100, 100])
    shown = [detection.Photograph(np.zeros((9, 9, 3), np.uint8), (true,))] * 2
    near, far = said([0, 0, 100, 90], true.landmarks), said([0, 0, 20, 100])
    seen = landmarks.seen_garments(Said([far, near], [far]), shown, true_boxes=False)
    figures = landmarks.landmark_figures(shown, seen, seen)
    assert (figures.found.value, figures.error["overall"].value) == (0.5, 0)
    # By OKS one of the first picture's two is the garment: half the recall, with half the precision.
    assert figures.ap.value == pytest.approx(51 / 101 / 2)


def test_keypoint_similarity_by_hand():
    true = labelled([0, 0, 100, 50])
    true.landmarks[5:, 2] = 0
    points = true.landmarks.copy()
    assert landmarks.keypoint_similarity(true, points) == 1
    points[5:] = -1000  # not labelled: does not count
    points[2, 0] += 10
    # Points of a short-sleeved top's neckline: the lowest middle is DeepFashion2's fourth landmark.
    sigma = deepfashion2_sigmas()[3]
    assert landmarks.keypoint_similarity(true, points) == pytest.approx(
        (4 + math.exp(-100 / (2 * 5000 * (2 * sigma) ** 2))) / 5, abs=1e-5
    )
    true.landmarks[:, 2] = 0
    assert landmarks.keypoint_similarity(true, points) == 0


# --- baselines


@pytest.fixture(scope="module")
def scenes():
    """Pictures of random shapes; the last one is the first again, turned, shaded and flipped."""
    pictures = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        cells = np.zeros((240, 240, 3), np.uint8)
        for _ in range(60):
            x, y = rng.integers(0, 200, 2)
            w, h = rng.integers(8, 60, 2)
            cells[y : y + h, x : x + w] = rng.integers(0, 256, 3)
        pictures.append(cells)
    turned = Image.fromarray(pictures[0]).rotate(8, Image.Resampling.BILINEAR)
    pictures.append(np.ascontiguousarray((np.asarray(turned) * 0.8).astype(np.uint8)[:, ::-1]))
    return pictures


def test_the_hash_sees_light_and_size_as_the_same(scenes):
    one = perceptual_hash(scenes[0])
    small = np.asarray(Image.fromarray(scenes[0]).resize((120, 120), Image.Resampling.BOX))
    assert one.shape == (64,) and 20 < one.sum() < 44
    assert (one == perceptual_hash((small * 0.7).astype(np.uint8))).mean() > 0.95
    assert (one == perceptual_hash(scenes[1])).mean() < 0.8


def test_the_hash_finds_a_flipped_picture(scenes):
    flipped = np.ascontiguousarray(scenes[0][:, ::-1])
    scores = hash_scores([*scenes[:4], flipped], [0])
    assert scores[0, 4] == 1 and scores[0, 0] == -np.inf and scores[0].argmax() == 4


def test_sift_finds_a_picture_turned_and_flipped(scenes):
    pytest.importorskip("cv2")
    scores = sift_scores(scenes, [0])
    assert scores.shape == (1, 5) and scores[0, 0] == -np.inf
    assert scores[0, 4] > 3 * max(scores[0, 1:4]) and scores[0, 4] > 20


def test_the_manual_weights_trust_what_copyists_leave_alone():
    table = paper.manual_weights()
    assert table.shape == (4, 5) and table.mean(1) == pytest.approx(np.ones(4))
    assert REGIONS[int(table[GROUPS.index("T-shirts")].argmin())] == "chest"
    assert REGIONS[int(table[GROUPS.index("dress")].argmin())] == "waist"


# --- tables and settings


def test_tables_survive_the_disk(tmp_path):
    table = Table(
        "Title", "Note.", ("a|b", "figure", "n"),
        (("x|y", Estimate(0.5, 0.25, 0.75, 8), 8), ("none", wilson(0, 0), None), ("p", 0.25, 1)),
    )  # fmt: skip
    write_tables(tmp_path / "t.json", [table], "f00d")
    (again,), fingerprint = read_tables(tmp_path / "t.json")
    assert fingerprint == "f00d"
    assert again.rows == (table.rows[0], ("none", None, None), table.rows[2])
    assert again.markdown() == table.markdown()
    assert "| x\\|y | 0.500 [0.250, 0.750] | 8 |" in again.markdown() and "| none |  |  |" in again.markdown()
    assert again.text().splitlines()[:2] == ["Title", "Note."]
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(ValueError, match="no tables"):
        read_tables(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("variants.psnet.scorin=weighted", r"variants\.psnet: unknown key scorin"),
        ("variants.psnet.scoring=best", r"variants\.psnet: scoring: expected one of"),
        ("variants.psnet.paper=theirs", "unknown row 'theirs'"),
        ("variants.psnet.weights=[]", "no models"),
        ("main=other", "no variant 'other'"),
        ("variants.psnet.weights=[a, b]", "is an ensemble"),
        ("baselines=[md5]", "unknown baseline 'md5'"),
        ("changes=[eaten]", "unknown change 'eaten'"),
        ("skipped.bench=[md5]", r"skipped\.bench: 'md5' is no variant"),
        ("skipped.bench=[psnet]", r"skipped\.bench: 'psnet' is no variant"),
        ("contrasts.a={having: [psnet], lacking: [other]}", r"contrasts\.a: no variant 'other'"),
        ("contrasts.a={having: [psnet]}", r"contrasts\.a: names no variant"),
        ("contrasts.a={with: [psnet]}", r"contrasts\.a: unknown key with"),
    ],
)
def test_mistakes_in_the_settings_name_the_key(override, message):
    with pytest.raises(ConfigError, match=message):
        settings = load_config(EvaluationSettings, overrides=[override])
        read_variants(settings)
        read_contrasts(settings)


def test_the_shipped_configuration_is_sound():
    file = Path(__file__).parents[2] / "conf" / "evaluate.yaml"
    settings = load_config(EvaluationSettings, file)
    variants = read_variants(settings)
    assert read_contrasts(settings)
    assert variants["manual"].region_weights == "manual" and variants["true_boxes"].boxes == "labelled"
    defaults = EvaluationSettings()
    for field in dataclasses.fields(settings):
        if field.name not in ("variants", "contrasts"):
            assert getattr(settings, field.name) == getattr(defaults, field.name), field.name
