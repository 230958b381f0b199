"""psnet.similarity against definitions written out with plain loops."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from psnet.regions import MIRROR, Presence
from psnet.similarity import (
    best_regions_score,
    block_cosines,
    comparable_regions,
    compare,
    cosines,
    group_rows,
    mirrored_presence,
    weighted_score,
)

H, A, P = Presence.HIDDEN, Presence.ABSENT, Presence.PRESENT
ONES = np.ones(5)


def garments(count: int, dim: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit features (n, 5, d) float64 with every kind of presence (n, 5)."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((count, 5, dim))
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    presence = rng.choice([H, A, P], (count, 5), p=[0.2, 0.15, 0.65]).astype(np.uint8)
    return features * (presence == P)[..., None], presence


def plain_cosines(fq, pq, fx, px):
    cos, comparable = [0.0] * 5, [False] * 5
    for r in range(5):
        if H in (pq[r], px[r]) or (pq[r] == A and px[r] == A):
            continue
        comparable[r] = True
        if pq[r] == P and px[r] == P:
            cos[r] = sum(float(a) * float(b) for a, b in zip(fq[r], fx[r], strict=True))
    return cos, comparable


def plain_best_regions(cos, comparable, weights, drop=2, keep=3):
    used = [r for r in range(5) if comparable[r] and weights[r] > 0]
    if len(used) < keep:
        positive = [w for w in weights if w > 0]
        mean = sum(positive) / len(positive)
        weight = sum(weights[r] for r in used) + (keep - len(used)) * mean
        return sum(weights[r] * cos[r] for r in used) / weight
    best = -np.inf
    for dropped in range(min(drop, len(used)) + 1):
        for left in combinations(used, len(used) - dropped):
            if len(left) >= keep:
                mean = sum(weights[r] * cos[r] for r in left) / sum(weights[r] for r in left)
                best = max(best, mean)
    return best


@pytest.mark.parametrize("weights", [ONES, np.array([0.3, 0.1, 0.1, 0.4, 0.1]), np.array([1, 0, 0, 2, 1.0])])
def test_scores_equal_the_definition_in_every_case(weights):
    fq, pq = garments(40, seed=1)
    fx, px = garments(50, seed=2)
    cos, comparable = block_cosines(fq, pq, fx, px)
    best = best_regions_score(cos, comparable, weights)
    mean = weighted_score(cos, comparable, weights)
    for i in range(40):
        for j in range(50):
            c, m = plain_cosines(fq[i], pq[i], fx[j], px[j])
            np.testing.assert_allclose(cos[i, j], c, atol=1e-12)
            assert comparable[i, j].tolist() == m
            np.testing.assert_allclose(best[i, j], plain_best_regions(c, m, weights), atol=1e-12)
            total = sum(w for w, used in zip(weights, m, strict=True) if used)
            weighted = sum(w * v for w, v, used in zip(weights, c, m, strict=True) if used)
            expected = weighted / total if total else 0
            np.testing.assert_allclose(mean[i, j], expected, atol=1e-12)


@pytest.mark.parametrize(("drop", "keep"), [(0, 3), (1, 3), (1, 2), (2, 2), (4, 1)])
def test_best_regions_for_other_numbers_of_changes(drop, keep):
    fq, pq = garments(30, seed=3)
    fx, px = garments(30, seed=4)
    cos, comparable = cosines(fq, pq, fx, px)
    weights = np.array([0.5, 1, 1, 2, 0.7])
    scores = best_regions_score(cos, comparable, weights, drop=drop, keep=keep)
    for i in range(30):
        expected = plain_best_regions(cos[i], comparable[i], weights, drop, keep)
        np.testing.assert_allclose(scores[i], expected, atol=1e-12)


def test_two_changed_regions_cost_nothing():
    cos = np.array([0.9, 0.9, 0.9, -0.5, 0.1])
    assert best_regions_score(cos, np.ones(5, bool), ONES) == pytest.approx(0.9)


def test_a_pair_that_cannot_be_judged_ranks_low():
    comparable = np.array([True, True, False, False, False])
    assert best_regions_score(np.ones(5), comparable, ONES) == pytest.approx(2 / 3)
    assert best_regions_score(np.ones(5), np.zeros(5, bool), ONES) == 0
    assert weighted_score(np.ones(5), np.zeros(5, bool), ONES) == 0


def test_absent_against_present_is_a_change_and_absent_on_both_sides_says_nothing():
    q = np.array([P, A, A, H, H], np.uint8)
    x = np.array([A, A, P, P, A], np.uint8)
    assert comparable_regions(q, x).tolist() == [True, False, True, False, False]


def test_block_and_pairs_agree_and_keep_the_precision_of_their_input():
    fq, pq = garments(20, dim=256, seed=5)
    half = fq.astype(np.float16)
    cos, comparable = block_cosines(half, pq, half, pq)
    again, _ = cosines(half[:, None], pq[:, None], half[None], pq[None])
    assert cos.dtype == again.dtype == np.float32
    np.testing.assert_allclose(cos, again, atol=1e-6)
    assert best_regions_score(cos, comparable, ONES).dtype == np.float32


def test_a_pairs_score_does_not_depend_on_its_batch():
    fq, pq = garments(64, dim=256, seed=6)
    half = fq.astype(np.float16)
    together = compare(half, pq, half[::-1], pq[::-1], ONES, mirrored_x=half[::-1])
    for i in (0, 7, 63):
        alone = compare(half[i], pq[i], half[63 - i], pq[63 - i], ONES, mirrored_x=half[63 - i])
        assert alone.score == together.score[i]
        assert (alone.cos == together.cos[i]).all()


def test_a_mirrored_copy_is_found_and_flagged():
    rng = np.random.default_rng(8)
    q = rng.standard_normal((5, 16))
    q /= np.linalg.norm(q, axis=-1, keepdims=True)
    presence = np.array([H, P, A, P, P], np.uint8)
    q = q * (presence == P)[:, None]
    flipped = q[list(MIRROR)]
    result = compare(q, presence, flipped, mirrored_presence(presence), ONES, mirrored_x=q)
    assert result.mirrored
    assert result.score == pytest.approx(1)
    assert result.comparable.tolist() == [False, True, False, True, True]


def test_a_tie_between_plain_and_mirrored_is_plain():
    q, presence = garments(10, seed=9)
    result = compare(q, presence, q, presence, ONES, mirrored_x=q[:, list(MIRROR)][:, list(MIRROR)])
    symmetric = presence[:, 1] == presence[:, 2]
    assert not result.mirrored[symmetric].any()


def test_group_rows():
    assert group_rows(["dress", "T-shirts"]).tolist() == [3, 0]
    with pytest.raises(ValueError, match="unknown group 'hat'"):
        group_rows(["hat"])
