"""The block kernel alone: bounds of what it may leave out, and the background level."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.kernel import (
    MARGIN,
    Block,
    Floors,
    Garments,
    Wanted,
    background,
    best_pairs,
    rescore,
    score_block,
    select,
)
from psnet.regions import Presence
from psnet.similarity import best_regions_score, compare, cosines, normalise
from tests.pipeline.synthetic_garments import Catalogue, catalogue


def levels(source: Catalogue) -> np.ndarray:
    """Of all kinds: below 0 and above 0.95, from where on the room above stays the same."""
    return np.random.default_rng(7).uniform(-0.1, 1, len(source.picture)).astype(np.float32)


def block(source: Catalogue, pictures: np.ndarray) -> Block:
    rows = np.flatnonzero(np.isin(source.picture, pictures))
    return Block(
        features=source.features[rows].astype(np.float32),
        mirrored=source.mirrored[rows].astype(np.float32),
        presence=source.presence[rows],
        weights=np.ones((len(rows), 5), np.float32),
        level=levels(source)[rows],
        garment=source.garment_index[rows],
        starts=np.searchsorted(source.picture[rows], pictures),
        picture=pictures,
    )


def nothing_known(pictures: int) -> Floors:
    return Floors(*(np.full(pictures, -np.inf, np.float32) for _ in range(2)))


@pytest.mark.parametrize("dim", [16, 256, 2048])
def test_product_and_exact_score_differ_by_less_than_the_margin(dim):
    source = catalogue(150, dim=dim, several=0)
    one = block(source, np.arange(150))
    scores, _ = score_block(one, one, scoring="best_regions", mirrored=True, both_directions=False)
    query, match = np.nonzero(~np.eye(150, dtype=bool))
    exact = rescore(one, one, query, match, scoring="best_regions", mirrored=True)
    assert np.abs(exact.score - scores[query, match]).max() < MARGIN / 4


def test_both_directions_of_two_blocks_are_those_of_one():
    source = catalogue(90, dim=32, seed=1)
    one = block(source, np.arange(90))
    whole, none = best_pairs(one, one, Wanted(5, 0.7, 0.2, 12), nothing_known(90))
    assert none is None
    left, right = block(source, np.arange(40)), block(source, np.arange(40, 90))
    every = Wanted(90, -1, -100, 90)
    both = best_pairs(left, right, every, nothing_known(40), nothing_known(50))
    inside = [best_pairs(part, part, every, nothing_known(len(part)))[0] for part in (left, right)]
    scores = {
        (q, x): rest
        for kept in (*both, *inside)
        for q, x, *rest in zip(
            kept.pairs.query,
            kept.pairs.match,
            kept.pairs.score,
            kept.pairs.normalised,
            kept.pairs.mirrored,
            strict=True,
        )
    }
    assert len(scores) == 90 * 89
    found = whole.pairs
    for q, x, *rest in zip(
        found.query, found.match, found.score, found.normalised, found.mirrored, strict=True
    ):
        assert scores[q, x] == rest


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


def bare(level: np.ndarray, starts: np.ndarray, first_picture: int = 0) -> Block:
    """Garments of which only levels and pictures matter."""
    count = len(level)
    none, ends = np.empty((count, 5, 0), np.float32), np.append(starts, count)
    return Block(
        features=none,
        mirrored=none,
        presence=np.full((count, 5), Presence.PRESENT, np.uint8),
        weights=np.ones((count, 5), np.float32),
        level=level.astype(np.float32),
        garment=(np.arange(count) - np.repeat(starts, np.diff(ends))).astype(np.int16),
        starts=starts,
        picture=first_picture + np.arange(len(starts)),
    )


def plain(scores: np.ndarray) -> tuple[np.ndarray, Block, Block]:
    """Scores with blocks of one garment a picture, all levels 0."""
    count_q, count_x = scores.shape
    return (
        scores,
        bare(np.zeros(count_q), np.arange(count_q)),
        bare(np.zeros(count_x), np.arange(count_x), count_q),
    )


def test_select_keeps_the_best_and_all_above_the_threshold_up_to_the_limit():
    rng = np.random.default_rng(2)
    # No two of a query are so near each other that rounding might tell them apart.
    scores = rng.permuted(np.tile(np.arange(200, dtype=np.float32) / 199, (150, 1)), axis=1)
    query, match, left_out = select(*plain(scores), Wanted(3, 0.8, 0.8, 30), nothing_known(150))
    reached = 0
    for q in range(150):
        ranked = np.sort(scores[q])[::-1]
        above = int((scores[q] >= 0.8).sum())
        assert above == 40
        reached += max(0, above - 30)
        assert np.allclose(np.sort(scores[q, match[query == q]])[::-1], ranked[: max(3, min(above, 30))])
    assert left_out == reached > 0


def test_select_drops_what_other_blocks_have_beaten_but_nothing_above_the_threshold():
    scores = plain(np.array([[0.1, 0.5, 0.6, 0.9, 0.95]], np.float32))
    beaten = Floors(np.array([0.55], np.float32), np.array([0.2], np.float32))
    assert select(*scores, Wanted(4, 0.8, 0.8, 10), beaten)[1].tolist() == [2, 3, 4]
    far = Floors(np.array([0.99], np.float32), np.array([0.2], np.float32))
    assert select(*scores, Wanted(4, 0.8, 0.8, 10), far)[1].tolist() == [3, 4]
    full = Floors(np.array([0.99], np.float32), np.array([0.92], np.float32))
    assert select(*scores, Wanted(4, 0.8, 0.8, 4), full)[1:] == (pytest.approx([4]), 1)


def test_both_thresholds_have_to_be_reached():
    scores, queries, others = plain(np.array([[0.9, 0.9, 0.7, 0.5]], np.float32))
    others = replace(others, level=np.array([0.0, 1.6, 0.0, -0.2], np.float32))
    # Normalised: 0.9, 0.5, 0.7, 0.55. The first is the best one.
    found = select(scores, queries, others, Wanted(1, 0.8, 0.6, 4), nothing_known(1))
    assert found[1].tolist() == [0]
    assert select(scores, queries, others, Wanted(1, 0.8, 0.4, 4), nothing_known(1))[1].tolist() == [0, 1]
    assert select(scores, queries, others, Wanted(1, 0.6, 0.6, 4), nothing_known(1))[1].tolist() == [0, 2]


@pytest.mark.parametrize("garments_per_picture", [1, 3])
@pytest.mark.parametrize("seed", range(2))
def test_rounding_within_the_margin_changes_neither_what_is_found_nor_the_count(garments_per_picture, seed):
    rng = np.random.default_rng(seed)
    starts_q, starts_x = (
        np.concatenate([[0], np.cumsum(rng.integers(1, garments_per_picture + 1, pictures))])
        for pictures in (90, 250)
    )
    queries = bare(rng.uniform(0, 1, starts_q[-1]), starts_q[:-1])
    others = bare(rng.uniform(0, 1, starts_x[-1]), starts_x[:-1], 90)
    level = (queries.level[:, None] + others.level) / 2
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
    query, match, left_out = select(rounded, queries, others, wanted, nothing_known(90))

    normalised, picked = normalise(exact, level), set(zip(query.tolist(), match.tolist(), strict=True))
    handed_on = beyond = 0
    for q in range(90):
        ranked = []
        for x in range(250):
            inside = np.s_[starts_q[q] : starts_q[q + 1], starts_x[x] : starts_x[x + 1]]
            value, score = max(zip(normalised[inside].ravel(), exact[inside].ravel(), strict=True))
            ranked.append((value, score, x))
        ranked.sort(key=lambda pair: (-pair[0], -pair[1], pair[2]))
        listed = 0
        for rank, (value, score, x) in enumerate(ranked):
            reached = bool(wanted.reached(score, value))
            if (rank < wanted.best_k or reached) and listed < wanted.limit:
                assert (q, x) in picked
                listed += 1
            elif reached:
                beyond += 1
                handed_on += (q, x) in picked
    assert left_out + handed_on == beyond
    assert left_out > 0


def garments(source: Catalogue) -> Garments:
    return Garments(
        source.features.astype(np.float32),
        source.presence,
        np.ones((len(source.presence), 5), np.float32),
        source.picture,
    )


def quantile_below_the_ten_best(values: np.ndarray) -> float:
    ranked = np.sort(values)[::-1]
    return min(np.quantile(values, 0.9, method="lower"), ranked[min(9, len(ranked) - 1)])


def test_background_is_a_quantile_of_scores_with_strangers():
    source = catalogue(120, dim=32, seed=3)
    every = garments(source)
    chosen = np.arange(0, len(source.picture), 3)
    sample = Garments(*(getattr(every, name)[chosen] for name in Garments.__dataclass_fields__))
    level, distinctiveness = background(every, sample, 0.9, scoring="best_regions")
    for g in range(len(source.picture)):
        strangers = sample.picture != source.picture[g]
        cos, comparable = cosines(
            every.features[g], every.presence[g], sample.features[strangers], sample.presence[strangers]
        )
        scores = best_regions_score(cos, comparable, np.ones(5, np.float32))
        assert level[g] == pytest.approx(quantile_below_the_ten_best(scores), abs=1e-6)
        for r in range(5):
            both = (sample.presence[strangers][:, r] == Presence.PRESENT) & (
                every.presence[g, r] == Presence.PRESENT
            )
            if both.any():
                expected = 1 - quantile_below_the_ten_best(cos[both, r])
                assert distinctiveness[g, r] == pytest.approx(expected, abs=1e-6)
            else:
                assert np.isnan(distinctiveness[g, r])


def test_background_without_anything_to_compare_with():
    every = garments(catalogue(1, several=0, copies=0, flipped=0))
    level, distinctiveness = background(every, every, 0.95, scoring="best_regions")
    assert level.tolist() == [0]
    assert np.isnan(distinctiveness).all()
