"""The block kernel alone: bounds of what it may leave out, and the background level."""

from __future__ import annotations

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
from psnet.similarity import best_regions_score, cosines
from tests.pipeline.synthetic_garments import Catalogue, catalogue


def block(source: Catalogue, pictures: np.ndarray, dtype: type = np.float32) -> Block:
    rows = np.flatnonzero(np.isin(source.picture, pictures))
    return Block(
        features=source.features[rows].astype(dtype),
        mirrored=source.mirrored[rows].astype(dtype),
        presence=source.presence[rows],
        weights=np.ones((len(rows), 5), np.float32),
        garment=source.garment_index[rows],
        starts=np.searchsorted(source.picture[rows], pictures),
        picture=pictures,
    )


def nothing_known(pictures: int) -> Floors:
    return Floors(*(np.full(pictures, -np.inf, np.float32) for _ in range(2)))


@pytest.mark.parametrize("dim", [16, 256, 2048])
def test_product_and_exact_score_differ_by_less_than_the_margin(dim):
    source = catalogue(150, dim=dim)
    one = block(source, np.arange(150))
    scores, _ = score_block(one, one, scoring="best_regions", mirrored=True, both_directions=False)
    query, match = np.nonzero(~np.eye(150, dtype=bool))
    exact = rescore(one, one, query, match, scoring="best_regions", mirrored=True)
    assert np.abs(exact.score - scores[query, match]).max() < MARGIN / 4


def test_both_directions_of_two_blocks_are_those_of_one():
    source = catalogue(90, dim=32, seed=1)
    wanted = Wanted(5, 0.7, 12)
    whole, none = best_pairs(
        block(source, np.arange(90)), block(source, np.arange(90)), wanted, nothing_known(90)
    )
    assert none is None
    left, right = block(source, np.arange(40)), block(source, np.arange(40, 90))
    forward, backward = best_pairs(left, right, Wanted(90, -1, 90), nothing_known(40), nothing_known(50))
    inside = [
        best_pairs(part, part, Wanted(90, -1, 90), nothing_known(len(part)))[0] for part in (left, right)
    ]
    scores = {
        (q, x): (s, m)
        for pairs in (forward, backward, *inside)
        for q, x, s, m in zip(pairs.query, pairs.match, pairs.score, pairs.mirrored, strict=True)
    }
    assert len(scores) == 90 * 89
    for q, x, s, m in zip(whole.query, whole.match, whole.score, whole.mirrored, strict=True):
        assert scores[q, x] == (s, m)


def test_select_keeps_the_best_and_all_above_the_threshold_up_to_the_limit():
    rng = np.random.default_rng(2)
    scores = rng.random((50, 200)).astype(np.float32)
    query, match, left_out = select(scores, Wanted(3, 0.8, 30), nothing_known(50))
    reached = 0
    for q in range(50):
        ranked = np.sort(scores[q])[::-1]
        above = int((scores[q] >= 0.8).sum())
        reached += max(0, above - 30)
        assert np.allclose(np.sort(scores[q, match[query == q]])[::-1], ranked[: max(3, min(above, 30))])
    assert left_out == reached > 0


def test_select_drops_what_other_blocks_have_beaten_but_nothing_above_the_threshold():
    scores = np.array([[0.1, 0.5, 0.6, 0.9, 0.95]], np.float32)
    beaten = Floors(np.array([0.55], np.float32), np.array([0.2], np.float32))
    assert select(scores, Wanted(4, 0.8, 10), beaten)[1].tolist() == [2, 3, 4]
    far = Floors(np.array([0.99], np.float32), np.array([0.2], np.float32))
    assert select(scores, Wanted(4, 0.8, 10), far)[1].tolist() == [3, 4]
    full = Floors(np.array([0.99], np.float32), np.array([0.92], np.float32))
    assert select(scores, Wanted(4, 0.8, 4), full)[1:] == (pytest.approx([4]), 1)


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
