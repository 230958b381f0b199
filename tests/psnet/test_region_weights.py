import numpy as np
import pytest

from psnet.train.region_weights import (
    Ranking,
    Triplets,
    coordinate_search,
    fit_average_precision,
    fit_manipulation,
    gain_in_precision,
    manipulation_loss,
    mean_average_precision,
    ranking_of,
    triplets_of,
)

EQUAL = np.full(5, 0.2)


def test_the_loss_equals_the_papers_by_hand():
    triplets = Triplets(
        positive=np.array([[0.2, 0.4, 0.4, 1.0, 0.5]]),
        negative=np.array([[0.9, 0.3, 0.4, 0.8, 2.0]]),
        comparable=np.array([[True, True, True, True, False]]),
    )
    # Hinges with margin 0.5: 0, 0.6, 0.5, 0.7; the waist is not comparable. α = mean(0.2, 0.4, 0.4, 1) / 1.
    alpha = 0.5
    assert manipulation_loss(triplets, EQUAL, 0.5) == pytest.approx(alpha * (0.6 + 0.5 + 0.7) / 4)
    # What cannot be compared tells nothing: neither for the region nor against it.
    waist_only = np.array([0, 0, 0, 0, 1.0])
    assert manipulation_loss(triplets, waist_only, 0.5) == pytest.approx(alpha * 0.5)


def test_the_search_stays_on_the_simplex_and_finds_a_minimum_inside():
    wanted = np.array([0.1, 0.15, 0.15, 0.4, 0.2])
    found = coordinate_search(lambda weights: float(np.square(weights - wanted).sum()))
    assert found.sum() == pytest.approx(1) and (found >= 0).all()
    assert np.abs(found - wanted).max() < 0.03


def test_the_region_that_tells_copies_from_strangers_gains_weight():
    rng = np.random.default_rng(0)
    positive, negative = rng.uniform(0.8, 1.2, (50, 5)), rng.uniform(0.8, 1.2, (50, 5))
    positive[:, 3], negative[:, 3] = 0.1, 1.3
    weights = fit_manipulation(Triplets(positive, negative, np.ones((50, 5), bool)))
    assert weights.argmax() == 3 and weights[3] > 0.3
    assert np.allclose(fit_manipulation(Triplets(*(np.zeros((0, 5)) for _ in range(3)))), EQUAL)


def test_a_region_gains_nothing_by_being_seen_seldom():
    rng = np.random.default_rng(0)
    positive, negative = rng.uniform(0.8, 1.2, (200, 5)), rng.uniform(0.8, 1.2, (200, 5))
    positive[:, 3], negative[:, 3] = 0.1, 1.3
    comparable = np.ones((200, 5), bool)
    comparable[:, 2] = rng.random(200) < 0.15  # a sleeve that tells nothing
    weights = fit_manipulation(Triplets(positive, negative, comparable))
    assert weights.argmax() == 3 and weights[2] < 0.05


def test_average_precision_by_hand_and_its_fit():
    # Query 0 has two copies among five items; item 0 is itself. The chest finds them, the waist misleads.
    chest, waist = [1, 0.9, 0.8, 0.1, 0.1], [1, 0.2, 0.3, 0.99, 0.98]
    cos = np.zeros((1, 5, 5))
    cos[0, :, 3], cos[0, :, 4] = chest, waist
    relevant = np.array([[False, True, True, False, False]])
    ignored = np.array([[True, False, False, False, False]])
    ranking = Ranking(cos, np.ones((1, 5, 5), bool), relevant, ignored)
    waist_only = np.array([0, 0, 0, 0, 1.0])
    assert mean_average_precision(ranking, waist_only, "weighted") == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert mean_average_precision(ranking, np.array([0, 0, 0, 1.0, 0]), "weighted") == 1.0
    fitted = fit_average_precision(ranking, "weighted")
    assert mean_average_precision(ranking, fitted, "weighted") >= mean_average_precision(
        ranking, EQUAL, "weighted"
    )


def test_a_gain_is_counted_garment_by_garment():
    """Six garments of two samples each; three regions tell them apart, two mislead."""
    rng = np.random.default_rng(0)
    count, told = 12, [0, 3, 4]
    garment = np.arange(count) // 2
    features = np.tile(np.eye(count)[0], (count, 3, 5, 1))
    features[:, :, told] = np.eye(count)[garment][:, None, None]
    features[:, 1] = features[rng.permutation(count), 1]  # other garments
    features[:, 1:, 1:3] = np.eye(count)[rng.integers(count, size=(count, 2))][:, :, None]
    copies = np.arange(count) != 3  # a sample without a relevant item
    samples = features, np.zeros((count, 3, 5), int), copies, garment
    few, ranking = [[0.2, 0.0, 0.0, 0.4, 0.4]], ranking_of(*samples)
    assert gain_in_precision([ranking], [garment], few, [EQUAL.tolist()]).count == 11
    gained = gain_in_precision([ranking], [garment], few, [[0.0, 0.5, 0.5, 0.0, 0.0]])
    assert gained.value > 0.2 and 0 < gained.low < gained.value < gained.high
    same = gain_in_precision([ranking], [garment], few, few)
    assert same.value == same.low == same.high == 0
    nothing = ranking_of(*(part[:0] for part in samples))
    assert np.isnan(gain_in_precision([nothing], [garment[:0]], few, few).low)


def test_triplets_take_the_nearest_other_garment():
    eye = np.eye(6)
    features = np.zeros((3, 3, 5, 6))
    for i in range(3):
        features[i, :] = eye[i]
    near = 2 * eye[0] + eye[1]
    features[1, 1] = near / np.linalg.norm(near)  # garment 1's other photograph resembles garment 0
    design = np.zeros((3, 3, 5), int)
    triplets = triplets_of(features, design, np.array([True, False, True]), np.arange(3))
    assert triplets.positive.shape == (2, 5) and np.allclose(triplets.positive, 0)
    assert np.allclose(triplets.negative[0], np.linalg.norm(eye[0] - features[1, 1, 0]))
    # The same garment drawn twice is no other garment.
    twins = triplets_of(features, design, np.array([True, False, True]), np.array([0, 0, 1]))
    assert np.allclose(twins.negative[0], np.linalg.norm(eye[0] - features[2, 1, 0]))
    alone = triplets_of(features, design, np.ones(3, bool), np.zeros(3))
    assert alone.positive.shape == (0, 5)


def test_copies_beyond_the_definition_are_neither_right_nor_wrong():
    several = np.zeros((2, 3, 5, 4)), np.zeros((2, 3, 5), int), np.array([True, False])
    ranking = ranking_of(*several, np.arange(2))
    assert ranking.relevant.tolist() == [[False, True, False, False], [False] * 4]
    assert ranking.ignored.tolist() == [[True, False, False, False], [False, False, True, True]]
    twins = ranking_of(*several, np.zeros(2))
    assert twins.ignored.tolist() == [[True, False, True, True], [True] * 4]
