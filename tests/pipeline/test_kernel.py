"""The block kernel alone: bounds of what it may leave out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline import kernel
from pipeline.half import rows_as_float32
from pipeline.kernel import (
    MARGIN,
    Block,
    Candidates,
    Floors,
    Wanted,
    best_of,
    best_pairs,
    prune,
    rescore,
    rounding_slack,
)
from pipeline.quantise import Basis, quantise, tangent
from pipeline.sift import (
    BEST_REGIONS,
    SAME_WEIGHTS,
    SURELY_REACHED,
    WEIGHTED,
    Cuts,
    coarse_scores,
    presence_codes,
    score_of_pair,
    standing,
    weight_table,
)
from psnet.regions import Presence
from psnet.similarity import SCORINGS, compare, cosines, normalise
from tests.pipeline.synthetic_garments import Catalogue, catalogue, unit

KINDS = {SAME_WEIGHTS: "best_regions", BEST_REGIONS: "best_regions", WEIGHTED: "weighted"}


def levels(source: Catalogue) -> np.ndarray:
    """Of all kinds: below 0 and above 0.95, from where on the room above stays the same."""
    return np.random.default_rng(7).uniform(-0.1, 1, len(source.picture)).astype(np.float32)


def block(source: Catalogue, pictures: np.ndarray, weights: np.ndarray | None = None) -> Block:
    rows = np.flatnonzero(np.isin(source.picture, pictures))
    return Block(
        features=source.features[rows],
        mirrored=source.mirrored[rows],
        presence=source.presence[rows],
        weights=np.ones((len(rows), 5), np.float32) if weights is None else weights[rows],
        level=levels(source)[rows],
        garment=source.garment_index[rows],
        starts=np.searchsorted(source.picture[rows], pictures),
        picture=pictures,
    )


def nothing_known(pictures: int) -> Floors:
    return Floors(*(np.full(pictures, -np.inf, np.float32) for _ in range(2)))


def test_float16_is_read_as_numpy_reads_it():
    every = np.arange(1 << 16).astype(np.uint16).view(np.float16)
    finite = every[np.isfinite(every)][:63480].reshape(-1, 5, 8)
    rows = np.arange(len(finite))[::-1]
    assert (rows_as_float32(finite, rows) == finite[rows].astype(np.float32)).all()


# --- eight bits


def odd_vectors(dim: int) -> np.ndarray:
    """(n, 5, dim) float16, each region of another kind: usual ones, of one great number among small ones, of
    two values only, tiny, long, zero, with numbers just between two codes."""
    rng = np.random.default_rng(dim)
    kinds = [
        unit(rng, 40, dim),
        np.eye(dim)[rng.integers(dim, size=40)] + 0.003 * rng.standard_normal((40, dim)),
        rng.choice([-1, 1], (40, dim)) / np.sqrt(dim),
        6e-8 * rng.integers(-3, 4, (40, dim)),
        3 * unit(rng, 40, dim),
        np.zeros((40, dim)),
        (rng.integers(-127, 127, (40, dim)) + 0.5) / 127 / np.sqrt(dim),
    ]
    every = np.concatenate(kinds).astype(np.float16)
    return every[rng.permuted(np.tile(np.arange(len(every)), (5, 1)), axis=1).T]


@pytest.mark.parametrize("dim", [1, 16, 256, 2048])
def test_products_of_codes_are_within_the_bound(dim):
    vectors = odd_vectors(dim)
    one = quantise(vectors)
    exact = vectors.astype(np.float64)
    rounded = np.moveaxis(one.codes * one.scale[..., None].astype(np.float64), 0, 1)
    assert (np.linalg.norm(exact - rounded, axis=-1) <= one.error.T).all()
    assert max(np.linalg.norm(values, axis=-1).max() for values in (exact, rounded)) <= one.norm
    cos, coarse = (np.einsum("qrd,xrd->rqx", values, values) for values in (exact, rounded))
    assert np.abs((exact - rounded)[..., None, :] @ rounded[..., None]).max() < 1e-6 * one.norm**2
    angle = np.sqrt(np.maximum(one.norm**2 - (coarse / one.norm) ** 2, 0))
    error = one.error.astype(np.float64)
    bound = (error[:, :, None] + error[:, None]) * angle + error[:, :, None] * error[:, None]
    assert (np.abs(cos - coarse) <= bound + 1e-6 * one.norm**2).all()
    # Tight enough to be of use, and not so by chance: it is nearly reached where it can be.
    assert one.error[:, : len(vectors)].max() < 0.05 * one.norm


def test_the_bound_is_reached_where_what_is_lost_points_the_same_way():
    # The greatest number sets the step; all others are lost, and all lost numbers agree.
    vector = np.full((1, 5, 256), 0.49 / 127, np.float16)
    vector[..., 0] = 1
    one = quantise(vector)
    lost = 255 * float(vector[0, 0, 1]) ** 2
    assert one.error[0, 0] ** 2 == pytest.approx(lost, rel=0.03)
    exact = float((vector[0, 0].astype(np.float64) ** 2).sum())
    assert exact - 1 == pytest.approx(lost, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_coarse_scores_are_within_the_bound_of_a_garment(kind):
    rng = np.random.default_rng(kind)
    features = odd_vectors(64)
    count = len(features)
    presence = rng.choice(
        [Presence.HIDDEN, Presence.ABSENT, Presence.PRESENT], (count, 5), p=[0.15, 0.15, 0.7]
    )
    presence = presence.astype(np.uint8)
    features = features * (presence == Presence.PRESENT)[..., None].astype(np.float16)
    weights = np.ones((count, 5)) if kind == SAME_WEIGHTS else rng.choice([0, 0.2, 1, 3], (count, 5))
    one = quantise(features)
    planes = np.einsum("rqd,rxd->rqx", *[one.codes.astype(np.int32)] * 2).astype(np.int32)
    scores = np.empty((count, count), np.float32)
    asking, table = presence_codes(presence, weights), weight_table(weights)
    coarse_scores(
        kind, planes, 0, one.scale, asking, table, one.scale, presence_codes(presence), scores
    )  # fmt: skip
    exact = np.empty((count, count))
    values = features.astype(np.float64)
    for q in range(count):
        cos, comparable = cosines(values[q], presence[q], values, presence)
        exact[q] = SCORINGS[KINDS[kind]](cos, comparable, weights[q])
    error = one.error.max(0)[:, None] + one.error.max(0)
    bend, slope = tangent(one.norm)
    bound = error * np.minimum(one.norm, bend + slope * scores) + one.error.max() ** 2
    off = np.abs(scores - exact)
    assert (off <= bound + 1e-5).all()
    assert off.max() > 1e-3
    assert (bound < 0.9 * error * one.norm).any()
    # The same pairs in float32, as ``refine`` scores them.
    bits, code = features.view(np.uint16), presence_codes(presence)
    for q, x in rng.integers(count, size=(500, 2)):
        fine = score_of_pair(kind, bits, asking, q, bits, code, x, table)
        assert fine == pytest.approx(exact[q, x], abs=2e-5)


def test_vectors_too_long_for_exact_products_are_refused():
    with pytest.raises(ValueError, match="at most 133144"):
        quantise(np.zeros((1, 5, 133_145), np.float16))


# --- two blocks


@pytest.mark.parametrize("dim", [16, 256, 2048])
def test_values_of_candidates_and_exact_ones_differ_by_less_than_the_margin(dim):
    source = catalogue(150, dim=dim, several=0)
    one = replace(block(source, np.arange(150)), level=np.zeros(150, np.float32))
    every = Wanted(149, -1, -1, 149)
    kept, _ = best_pairs(one, one, every, nothing_known(150), slack=float(MARGIN))
    found = kept.candidates
    assert len(found) == 150 * 149
    exact = rescore(one, one, found.query, found.match, scoring="best_regions", mirrored=True)
    assert np.abs(exact.score - found.value).max() < MARGIN / 4


def compared(rows: Block, columns: Block, candidates: Candidates, scoring: str) -> dict:
    """(query, match) to what an exact comparison says of the candidates."""
    query, match = (
        np.searchsorted(rows.picture, candidates.query),
        np.searchsorted(columns.picture, candidates.match),
    )
    pairs = rescore(rows, columns, query, match, scoring=scoring, mirrored=True)
    rest = zip(pairs.score, pairs.normalised, pairs.mirrored, strict=True)
    return dict(zip(zip(pairs.query, pairs.match, strict=True), rest, strict=True))


def basis_of(source: Catalogue, rank: int | None) -> Basis | None:
    """The leading directions of the garments; of negative rank, some that have nothing to do with them."""
    if rank is None:
        return None
    features = source.features.astype(np.float64)
    if rank < 0:
        features = np.random.default_rng(0).standard_normal(features.shape)
    moments = np.einsum("nrd,nre->rde", features, features)
    return Basis.of(np.linalg.eigh(moments)[1][..., ::-1][..., : abs(rank)])


@pytest.mark.parametrize("rank", [1, 8, 16, 32, -8])
def test_any_basis_gives_the_same_pairs(monkeypatch, rank):
    monkeypatch.setattr(kernel, "_TILE_ROWS", 64)
    monkeypatch.setattr(kernel, "_SEEDS", 40)
    source = catalogue(250, dim=12, seed=4, padded=64)
    wanted = Wanted(5, 0.7, 0.2, 12)
    several, marked = [], []
    for basis in (None, basis_of(source, rank)):
        one = replace(block(source, np.arange(250)), basis=basis)
        kept, _ = best_pairs(one, one, wanted, nothing_known(250), slack=rounding_slack(one.level, one.level))
        found = compared(one, one, kept.candidates, "best_regions")
        order = sorted(found, key=lambda pair: (pair[0], -found[pair][1], pair[1]))
        several.append(({pair: found[pair] for pair in order}, kept.left_out))
        marked.append(one.codes.rest.max())
    assert several[0] == several[1]
    assert marked[0] == 0 < marked[1]


def test_blocks_of_two_bases_are_not_compared():
    source = catalogue(20, dim=12, padded=64)
    one, other = (replace(block(source, np.arange(20)), basis=basis_of(source, rank)) for rank in (8, 16))
    with pytest.raises(ValueError, match="two bases"):
        best_pairs(one, other, Wanted(5, 0.7, 0.2, 12), nothing_known(20), slack=1e-4)


@pytest.mark.parametrize("tile", [7, 512])
@pytest.mark.parametrize("rank", [None, 12])
@pytest.mark.parametrize(
    ("scoring", "weighted"), [("best_regions", False), ("best_regions", True), ("weighted", True)]
)
def test_both_directions_of_two_blocks_hold_what_one_pair_after_the_other_gives(
    monkeypatch, scoring, weighted, rank, tile
):
    monkeypatch.setattr(kernel, "_TILE_ROWS", tile)
    monkeypatch.setattr(kernel, "_TILE_COLUMNS", tile + 3)
    source = catalogue(90, dim=32, seed=1)
    table = np.random.default_rng(3).choice([0, 0.5, 1, 2], (len(source.picture), 5)).astype(np.float32)
    weights = table if weighted else None
    basis = basis_of(source, rank)
    one, left, right = (
        replace(block(source, pictures, weights), basis=basis)
        for pictures in (np.arange(90), np.arange(40), np.arange(40, 90))
    )
    slack = rounding_slack(one.level, one.level)
    query, match = np.nonzero(~np.eye(90, dtype=bool))
    plain = rescore(one, one, query, match, scoring=scoring, mirrored=True)
    wanted = Wanted(5, 0.7, 0.2, 12)
    options = {"slack": slack, "scoring": scoring}
    both = best_pairs(left, right, wanted, nothing_known(40), nothing_known(50), **options)
    inside = [
        best_pairs(part, part, wanted, nothing_known(len(part)), **options)[0] for part in (left, right)
    ]
    whole, none = best_pairs(one, one, wanted, nothing_known(90), **options)
    assert none is None
    found = {}
    for rows, columns, kept in (
        (left, right, both[0]),
        (right, left, both[1]),
        (left, left, inside[0]),
        (right, right, inside[1]),
    ):
        found |= compared(rows, columns, kept.candidates, scoring)
    at_once = compared(one, one, whole.candidates, scoring)
    assert found.keys() >= at_once.keys()
    assert {pair: found[pair] for pair in at_once} == at_once
    left_out = 0
    for q in range(90):
        mine = np.flatnonzero(plain.query == q)
        order = mine[np.lexsort((plain.match[mine], -plain.score[mine], -plain.normalised[mine]))]
        listed = 0
        for rank, p in enumerate(order):
            reached = bool(wanted.reached(plain.score[p], plain.normalised[p]))
            if (rank < wanted.best_k or reached) and listed < wanted.limit:
                listed += 1
                assert at_once[q, plain.match[p]] == (plain.score[p], plain.normalised[p], plain.mirrored[p])
            elif reached:
                left_out += (q, plain.match[p]) not in at_once
    assert whole.left_out == left_out


@pytest.mark.parametrize("scoring", ["best_regions", "weighted"])
def test_the_best_of_all_pairs_are_the_best_pairs(scoring):
    source = catalogue(120, dim=24, seed=6)
    table = np.random.default_rng(3).choice([0, 0.5, 1, 2], (len(source.picture), 5)).astype(np.float32)
    rows, columns = block(source, np.arange(30, 70), table), block(source, np.arange(120), table)
    wanted, slack = Wanted(5, 0.3, -1, 8), rounding_slack(columns.level, columns.level)
    query, match = np.nonzero(rows.picture[:, None] != columns.picture)
    options = {"slack": slack, "scoring": scoring}
    chosen = best_of(rows, columns, query, match, wanted, **options)
    whole, _ = best_pairs(rows, columns, wanted, nothing_known(len(rows)), **options)
    assert chosen.left_out == whole.left_out > 0
    assert compared(rows, columns, chosen.candidates, scoring) == compared(
        rows, columns, whole.candidates, scoring
    )
    few = query + match > 60
    some = best_of(rows, columns, query[few], match[few], wanted, **options).candidates
    allowed = set(zip(rows.picture[query[few]], match[few], strict=True))
    assert set(zip(some.query, some.match, strict=True)) <= allowed
    assert len(some) >= 5 * len(np.unique(query[few])) * 0.9


def test_what_is_known_saves_work_and_loses_nothing(monkeypatch):
    monkeypatch.setattr(kernel, "_SEEDS", 40)
    source = catalogue(400, dim=32, seed=2)
    one = block(source, np.arange(400))
    slack = rounding_slack(one.level, one.level)
    wanted = Wanted(5, 0.9, 0.5, 12)
    kept, _ = best_pairs(one, one, wanted, nothing_known(400), slack=slack)
    value = [np.sort(kept.candidates.value[kept.candidates.query == q])[::-1] for q in range(400)]
    floors = Floors(np.array([v[4] for v in value], np.float32), nothing_known(400).limit)
    again, _ = best_pairs(one, one, wanted, floors, slack=slack)
    pairs = [
        set(zip(k.candidates.query.tolist(), k.candidates.match.tolist(), strict=True)) for k in (kept, again)
    ]
    assert pairs[0] == pairs[1]
    beyond = Floors(np.full(400, np.inf, np.float32), np.full(400, np.inf, np.float32))
    nothing, _ = best_pairs(one, one, wanted, beyond, slack=slack)
    assert not nothing.candidates.surely.any()
    assert nothing.left_out > 0


def test_the_garments_of_the_greatest_normalised_score_stand_for_their_pictures():
    source = catalogue(60, dim=16, seed=4, several=0.9)
    one = block(source, np.arange(60))
    query, match = np.nonzero(~np.eye(60, dtype=bool))
    found = rescore(one, one, query, match, scoring="best_regions", mirrored=True)
    differ = 0
    for p, (q, x) in enumerate(zip(query, match, strict=True)):
        pairs = [
            (a, b, *exact_pair(source, one.level, a, b))
            for a in np.flatnonzero(source.picture == q)
            for b in np.flatnonzero(source.picture == x)
        ]
        a, b, score, normalised = max(pairs, key=lambda pair: (pair[3], pair[2], -pair[0], -pair[1]))
        assert (found.query_garment[p], found.match_garment[p]) == (
            source.garment_index[a],
            source.garment_index[b],
        )
        assert found.score[p] == score
        assert found.normalised[p] == normalised
        differ += score < max(pair[2] for pair in pairs)
    assert differ > 100  # the greatest score is often another pair's


def exact_pair(source: Catalogue, level: np.ndarray, a: int, b: int) -> tuple[float, float]:
    score = compare(
        source.features[a],
        source.presence[a],
        source.features[b],
        source.presence[b],
        np.ones(5, np.float32),
        mirrored_x=source.mirrored[b],
    ).score
    return float(score), float(normalise(score, (level[a] + level[b]) / 2))


# --- selection


def listed(scores: np.ndarray, wanted: Wanted) -> Candidates:
    """All pairs of queries and partners of one garment each, all levels 0: the score is the value."""
    query, match = np.indices(scores.shape).reshape(2, -1)
    value = scores.ravel().astype(np.float32)
    surely = wanted.reached(value, value)
    return Candidates(
        query.astype(np.int32), match.astype(np.int32), value, (surely * SURELY_REACHED).astype(np.uint8)
    )


def test_prune_keeps_the_best_and_all_above_the_threshold_up_to_the_limit():
    rng = np.random.default_rng(2)
    # No two of a query are so near each other that rounding might tell them apart.
    scores = rng.permuted(np.tile(np.arange(200, dtype=np.float32) / 199, (150, 1)), axis=1)
    wanted = Wanted(3, 0.8, 0.8, 30)
    kept, left_out = prune(listed(scores, wanted), wanted, nothing_known(150), float(MARGIN))
    reached = 0
    for q in range(150):
        ranked = np.sort(scores[q])[::-1]
        above = int((scores[q] >= 0.8).sum())
        assert above == 40
        reached += max(0, above - 30)
        assert np.allclose(np.sort(kept.value[kept.query == q])[::-1], ranked[: max(3, min(above, 30))])
    assert left_out == reached > 0


def test_prune_drops_what_other_blocks_have_beaten_but_nothing_above_the_threshold():
    scores = np.array([[0.1, 0.5, 0.6, 0.9, 0.95]], np.float32)

    def left(best_k: float, limit: float, wanted: Wanted) -> tuple[list[int], int]:
        floors = Floors(np.array([best_k], np.float32), np.array([limit], np.float32))
        kept, left_out = prune(listed(scores, wanted), wanted, floors, float(MARGIN))
        return kept.match.tolist(), left_out

    assert left(0.55, 0.2, Wanted(4, 0.8, 0.8, 10)) == ([2, 3, 4], 0)
    assert left(0.99, 0.2, Wanted(4, 0.8, 0.8, 10)) == ([3, 4], 0)
    assert left(0.99, 0.92, Wanted(4, 0.8, 0.8, 4)) == ([4], 1)


def cuts_of(threshold: float, least: float, slack: float) -> Cuts:
    """Without what eight bits need."""
    return Cuts(*(np.float32(value) for value in (threshold, least, MARGIN, slack, 0, 0, 0, 0)))


@pytest.mark.parametrize("garments_per_picture", [1, 3])
@pytest.mark.parametrize("seed", range(2))
def test_rounding_within_the_margin_changes_neither_what_is_found_nor_the_count(garments_per_picture, seed):
    rng = np.random.default_rng(seed)
    starts_q, starts_x = (
        np.concatenate([[0], np.cumsum(rng.integers(1, garments_per_picture + 1, pictures))])
        for pictures in (90, 250)
    )
    level_q, level_x = rng.uniform(0, 1, starts_q[-1]), rng.uniform(0, 1, starts_x[-1])
    level = ((level_q[:, None] + level_x) / 2).astype(np.float32)
    room = np.maximum(1 - level, 0.05)
    wanted = Wanted(5, 0.6, 0.1, 25)
    # Normalised scores on a grid with steps of half a slack, so that the thresholds and the cuts all have
    # neighbours that rounding may put on the other side; likewise the scores that reach the threshold.
    exact = np.where(
        rng.random(level.shape) < 0.5,
        level + room * (0.1 + rng.integers(-3, 4, level.shape) * float(MARGIN) / 0.1),
        0.6 + rng.integers(-3, 4, level.shape) * float(MARGIN) / 2,
    ).astype(np.float32)
    rounded = exact + (rng.choice([-0.49, 0.49], level.shape) * MARGIN).astype(np.float32)
    slack = rounding_slack(level_q.astype(np.float32), level_x.astype(np.float32))
    cuts = cuts_of(wanted.threshold, wanted.normalised_threshold, slack)
    inside = {
        (q, x): np.s_[starts_q[q] : starts_q[q + 1], starts_x[x] : starts_x[x + 1]]
        for q in range(90)
        for x in range(250)
    }
    off = normalise(rounded, level)
    worth = [standing(rounded[at].ravel(), off[at].ravel(), exact[at].size, cuts) for at in inside.values()]
    every = Candidates(
        np.array([q for q, _ in inside], np.int32),
        np.array([x for _, x in inside], np.int32),
        np.array([value for value, _ in worth], np.float32),
        np.array([reach for _, reach in worth], np.uint8),
    )
    kept, left_out = prune(every, wanted, nothing_known(90), slack)

    normalised = normalise(exact, level)
    picked = set(zip(kept.query.tolist(), kept.match.tolist(), strict=True))
    handed_on = beyond = 0
    for q in range(90):
        ranked = []
        for x in range(250):
            at = inside[q, x]
            value, score = max(zip(normalised[at].ravel(), exact[at].ravel(), strict=True))
            ranked.append((value, score, x))
        ranked.sort(key=lambda pair: (-pair[0], -pair[1], pair[2]))
        count = 0
        for rank, (value, score, x) in enumerate(ranked):
            reached = bool(wanted.reached(score, value))
            if (rank < wanted.best_k or reached) and count < wanted.limit:
                assert (q, x) in picked
                count += 1
            elif reached:
                beyond += 1
                handed_on += (q, x) in picked
    assert left_out + handed_on == beyond
    assert left_out > 0


def test_both_thresholds_have_to_be_reached():
    # Normalised: 0.9, 0.5, 0.7, 0.55.
    score = np.array([0.9, 0.9, 0.7, 0.5], np.float32)
    level = np.array([0.0, 0.8, 0.0, -0.1], np.float32)
    for threshold, least, expected in ((0.8, 0.6, [0]), (0.8, 0.4, [0, 1]), (0.6, 0.6, [0, 2])):
        cuts = cuts_of(threshold, least, float(MARGIN) / 0.2)
        reach = [standing(score[[x]], normalise(score[[x]], level[[x]]), 1, cuts)[1] for x in range(4)]
        assert np.flatnonzero(np.array(reach) == SURELY_REACHED).tolist() == expected
