"""psnet.train.calibrate: the thresholds, on pairs whose numbers are made up."""

from dataclasses import replace

import numpy as np
import pytest

from psnet.regions import Presence
from psnet.train.calibrate import (
    BY_FEATURES_ALONE,
    POINTS,
    Described,
    LabelledPairs,
    Pairs,
    changed_thresholds,
    kept_thresholds,
    stranger_pairs,
    suspect_thresholds,
)
from psnet.verdict import Calibration

LAID = replace(Calibration.default(), changed_threshold=(0.0,) * 5)


def pairs_of(normalised, points=0):
    """Pairs that are the same all over, of a score of 0.9."""
    count = len(normalised)
    return Pairs(
        cos=np.full((count, 5), 0.99, np.float32),
        comparable=np.ones((count, 5), bool),
        mirrored=np.zeros(count, bool),
        score=np.full(count, 0.9, np.float32),
        normalised=np.asarray(normalised, np.float32),
        points=np.broadcast_to(np.asarray(points), count).copy(),
        changed=np.full((count, 5), -5.0, np.float32),
    )


COPIES, STRANGERS = pairs_of(np.linspace(0, 1, 101)), pairs_of(np.linspace(0, 0.6, 61))


def listed(pairs, calibration):
    return int(pairs.judged(calibration)[1].sum())


def test_without_registration_features_have_all_of_what_is_allowed():
    found = suspect_thresholds(COPIES, STRANGERS, Calibration.default(), 10)
    assert listed(STRANGERS, found) == 10
    assert listed(COPIES, found) == 50


def test_beside_registration_features_alone_have_a_share_of_it():
    found = suspect_thresholds(COPIES, STRANGERS, LAID, 10)
    assert listed(STRANGERS, found) == 10 * BY_FEATURES_ALONE


def test_strangers_that_lie_upon_each_other_count_first():
    strangers = pairs_of(np.linspace(0, 0.6, 61), np.r_[[99] * 9, [0] * 52])
    found = suspect_thresholds(COPIES, strangers, LAID, 10)
    # No number of points keeps those nine out.
    assert found.registered_points == max(POINTS)
    assert listed(strangers, found) == 10
    with pytest.raises(ValueError, match="lie upon each other"):
        suspect_thresholds(COPIES, pairs_of([0.5] * 11, 99), LAID, 10)


def test_so_many_points_are_asked_for_as_tell_copies_from_strangers():
    copies = pairs_of([0.1] * 60, np.arange(60))
    strangers = pairs_of([0.5] * 20, np.arange(20) % 16)
    found = suspect_thresholds(copies, strangers, LAID, 1)
    assert found.registered_points == 15
    assert listed(strangers, found) == 1 and listed(copies, found) == 45


def labelled(cos, changed, edited):
    pairs = replace(pairs_of(np.zeros(len(cos)), 50), cos=cos.astype(np.float32))
    pairs = replace(pairs, changed=changed.astype(np.float32))
    parts = np.stack([edited[:, 0], edited[:, 1:3].max(1), edited[:, 3], edited[:, 4]]).sum(0)
    return LabelledPairs(pairs, edited.astype(np.int8), parts, 0)


def test_a_region_that_nobody_has_seen_keeps_its_threshold():
    """Garments without sleeves: absent on one side only must not pass as kept."""
    edited = np.zeros((40, 5), int)
    edited[::2, 3] = 1
    cos = np.where(edited == 1, 0.2, 0.9)
    cos[:, 1:3] = 0
    changed = np.where(edited == 1, 4.0, -4.0)
    changed[:, 1:3] = np.nan
    pairs = labelled(cos, changed, edited)
    kept = kept_thresholds(pairs)
    assert kept[1:3] == Calibration.default().kept_threshold[1:3] and 0.2 < kept[3] < 0.9
    assert changed_thresholds(pairs)[1:3] == (0, 0)
    nowhere = replace(pairs, pairs=replace(pairs.pairs, points=np.zeros(40, int)))
    assert changed_thresholds(nowhere) == (0,) * 5


def test_a_garment_does_not_count_for_its_own_level():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 5, 8)).astype(np.float32)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    strangers = Described(features, features, np.full((30, 5), Presence.PRESENT, np.uint8), np.ones((30, 5)))
    sample = strangers.take(np.arange(20))
    levels, own = strangers.levels(sample), strangers.levels(sample, own=True)
    assert (own[:20] < levels[:20]).all() and np.array_equal(own[20:], levels[20:])


def test_the_thresholds_stand_on_the_score_that_the_weights_give():
    """Two garments that share chest and waist alone, one of a group for which these count three times."""
    features = np.eye(10, dtype=np.float32).reshape(2, 5, 10)
    features[1, 3:] = features[0, 3:]
    weights = np.array([[1.0, 1.0, 1.0, 3.0, 3.0], [1.0] * 5])
    two = Described(features, features, np.full((2, 5), Presence.PRESENT, np.uint8), weights)
    a, b, level = two.take(np.array([0])), two.take(np.array([1])), np.zeros(1, np.float32)
    strict = replace(a, weights=np.ones((1, 5)))
    alike, heavier = Pairs.of(strict, b, level).score, Pairs.of(a, b, level).score
    assert alike == pytest.approx(2 / 3) and heavier == pytest.approx(6 / 7)
    assert Pairs.of(b, a, level).score == heavier  # whichever asks
    sellers, between = np.array(["x", "y"]), 0.75
    for order in ([0, 1], [1, 0]):
        found, query, match = stranger_pairs(two.take(np.array(order)), sellers, two, between)
        assert (query.tolist(), match.tolist()) == ([0], [1]) and found.score == heavier
    assert not len(stranger_pairs(replace(two, weights=np.ones((2, 5))), sellers, two, between)[1])
    assert not len(stranger_pairs(two, np.array(["x", "x"]), two, between)[1])
    assert two.levels(two.take(np.array([1])))[0] > two.levels(two.take(np.array([0])))[1]


def test_thresholds_of_regions_part_the_kept_from_the_edited():
    rng = np.random.default_rng(0)
    edited = rng.random((400, 5)) < 0.3
    at = np.array([0.4, 0.5, 0.5, 0.6, 0.7])
    cos = np.where(
        edited, at - rng.uniform(0.05, 0.3, edited.shape), at + rng.uniform(0.05, 0.25, edited.shape)
    )
    found = labelled(cos, np.where(edited, 2.0, -2.0) + rng.uniform(-1, 1, edited.shape), edited)
    kept, changed = np.array(kept_thresholds(found)), np.array(changed_thresholds(found))
    assert (abs(kept - at) <= 0.06).all() and kept[1] == kept[2]
    assert (abs(changed) <= 1.1).all() and changed[1] == changed[2]
