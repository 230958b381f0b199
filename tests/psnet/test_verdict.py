"""psnet.verdict: the table of relations, and what is said about them."""

from __future__ import annotations

import numpy as np
import pytest

from psnet.verdict import RELATIONS, STATES, Calibration, explain, judge, judge_registered, modified_regions

THRESHOLDS = (0.5, 0.6, 0.6, 0.7, 0.8)
K, C, N = range(3)


@pytest.mark.parametrize(
    ("states", "relation"),
    [
        ([K, K, K, K, K], "identical"),
        ([K, N, N, K, K], "identical"),
        ([C, K, K, K, K], "plagiarised"),
        ([K, C, C, K, K], "plagiarised"),  # both sleeves are one part
        ([C, C, C, K, K], "plagiarised"),
        ([C, C, K, K, K], "plagiarised"),
        ([C, K, C, C, K], "similar"),
        ([C, C, C, C, K], "similar"),
        ([C, N, N, C, C], "similar"),
        ([K, N, N, N, K], "undecidable"),
        ([C, N, N, N, K], "undecidable"),
        ([N, N, N, N, N], "undecidable"),
    ],
)
def test_relation_of_a_pair(states, relation):
    states = np.array(states, np.uint8)
    cos = np.where(states == K, np.array(THRESHOLDS), np.array(THRESHOLDS) - 0.01)
    verdict = judge(cos, states != N, THRESHOLDS)
    assert verdict.states.tolist() == states.tolist()
    assert RELATIONS[int(verdict.relation)] == relation


def test_judging_many_pairs_is_judging_each():
    rng = np.random.default_rng(0)
    cos = rng.random((4, 6, 5))
    comparable = rng.random((4, 6, 5)) < 0.8
    together = judge(cos, comparable, THRESHOLDS)
    for index in np.ndindex(4, 6):
        alone = judge(cos[index], comparable[index], THRESHOLDS)
        assert alone.states.tolist() == together.states[index].tolist()
        assert alone.relation == together.relation[index]


def test_modified_regions_are_named_one_by_one():
    assert modified_regions([C, K, C, N, K]) == ["collar", "right_sleeve"]
    assert len(STATES) == 3


def test_explanations():
    assert explain([K, K, K, C, K], direction="original_first_listed", days_later=34) == (
        "The collar, both sleeves and the waist are the same design; the chest differs; "
        "listed 34 days later by another seller."
    )
    assert explain([N, C, C, K, K], mirrored=True) == (
        "The chest and the waist are the same design; both sleeves differ; the collar cannot be compared; "
        "the picture is flipped; offered by another seller, the dates do not say who was first."
    )
    assert explain([K, K, C, K, K], direction="rights_holder", days_later=-1) == (
        "The collar, the left sleeve, the chest and the waist are the same design; the right sleeve differs; "
        "the right in the original is stated in the catalogue; listed 1 day earlier by another seller."
    )
    assert explain([K] * 5, same_picture=True, days_later=0) == (
        "Both items show the very same picture; listed on the same day by another seller."
    )


def test_photographs_upon_each_other_are_named():
    text = explain([K, K, K, C, K], points=41, direction=None)
    assert text.endswith("the chest differs; one photograph lies upon the other (41 points agree).")


@pytest.mark.parametrize("states", [[K, C, C, K, K], [C, N, K, C, C], [N, N, N, K, K]])
def test_a_registered_pair_is_judged_by_the_same_rules(states):
    states = np.array(states, np.uint8)
    changed = np.where(states == C, 0.5, 0.49).astype(np.float32)
    changed[states == N] = np.nan
    verdict = judge_registered(changed, (0.5,) * 5)
    by_features = judge(np.where(states == K, 0.9, 0.1), states != N, THRESHOLDS)
    assert verdict.states.tolist() == states.tolist() and verdict.relation == by_features.relation


def test_calibration_survives_json():
    registered = Calibration(
        (0.5,) * 5, 0.8, registered_points=15, changed_threshold=(0.1, 0.2, 0.3, 0.4, 0.5)
    )
    assert Calibration.from_json(registered.to_json()) == registered
    # One written before photographs were laid upon each other.
    old = Calibration.from_json('{"kept_threshold": [0.5, 0.5, 0.5, 0.5, 0.5], "suspect_threshold": 0.8}')
    assert old.changed_threshold is None
    calibration = Calibration(
        (0.1, 0.2, 0.3, 0.4, 0.5), 0.75, 0.2, "weighted", ((0.2, 0.1, 0.1, 0.3, 0.3),) * 4
    )
    assert Calibration.from_json(calibration.to_json()) == calibration
    assert Calibration.from_json(Calibration.default().to_json()) == Calibration.default()
    assert calibration.weights.shape == (4, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kept_threshold": (0.5,) * 4}, "needs 5 values"),
        ({"changed_threshold": (0.5,) * 4}, "needs 5 values"),
        ({"changed_threshold": (0.5, 0.5, 0.5, 0.5, float("inf"))}, "finite"),
        ({"registered_points": 0}, "at least 1"),
        ({"scoring": "cosine"}, "unknown scoring"),
        ({"suspect_threshold": float("nan")}, "finite"),
        ({"region_weights": ((1.0,) * 5,) * 3}, "4 rows"),
        ({"region_weights": ((1.0, 1.0, -1.0, 1.0, 1.0),) * 4}, "not negative"),
        ({"region_weights": ((0.0,) * 5,) * 4}, "positive weight"),
    ],
)
def test_a_senseless_calibration_is_refused(change, message):
    values = {"kept_threshold": (0.5,) * 5, "suspect_threshold": 0.8, **change}
    with pytest.raises(ValueError, match=message):
        Calibration(**values)


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"kept_threshold": [0.5], "surprise": 1}'])
def test_text_that_is_no_calibration_is_refused(text):
    with pytest.raises(ValueError, match="not a calibration"):
        Calibration.from_json(text)
