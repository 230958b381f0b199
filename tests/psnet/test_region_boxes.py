import numpy as np
import pytest

from psnet.region_boxes import boxes_from_points, regions_from_landmarks, torso_outline
from psnet.regions import MIRROR, REGIONS
from psnet.registration import within
from psnet.taxonomy import TORSO_CATEGORIES, Taxonomy

# A T-shirt 100 px wide, drawn by hand.
SHIRT = np.array(
    [
        [40, 10],
        [60, 10],
        [50, 18],
        [22, 40],
        [78, 40],
        [5, 36],
        [95, 36],
        [24, 76],
        [76, 76],
        [22, 95],
        [78, 95],
    ],
    np.float32,
)
BOX = np.array([2, 6, 98, 98], np.float32)


def test_regions_lie_where_a_person_would_draw_them():
    boxes = dict(zip(REGIONS, boxes_from_points(SHIRT, BOX, False), strict=True))
    assert boxes["collar"].tolist() == [40, 6, 60, 18]
    assert boxes["chest"].tolist() == [22, 18, 78, 67.5]
    assert boxes["waist"].tolist() == [22, 67.5, 78, 98]
    assert boxes["left_sleeve"][0] == 2 and boxes["left_sleeve"][2] == 22
    assert boxes["right_sleeve"][0] == 78 and boxes["right_sleeve"][2] == 98


def test_the_torso_is_what_is_left_without_sleeves():
    inside = [(50, 50), (30, 60), (42, 12), (75, 74)]
    outside = [(12, 37), (88, 37), (23, 20), (10, 80), (50, 2), (50, 80)]
    assert within(torso_outline(SHIRT), np.array(inside + outside)).tolist() == [True] * 4 + [False] * 6


def test_a_dress_is_divided_at_its_waistline():
    boxes = boxes_from_points(SHIRT, BOX, True)
    assert boxes[3, 3] == boxes[4, 1] == 76


def test_mirroring_the_landmarks_mirrors_the_regions():
    swap = Taxonomy.load("clothing11").swap
    mirrored = SHIRT[swap] * [-1, 1] + [100, 0]
    box = np.array([100 - BOX[2], BOX[1], 100 - BOX[0], BOX[3]])
    plain, flipped = boxes_from_points(SHIRT, BOX, False), boxes_from_points(mirrored, box, False)
    expected = plain[list(MIRROR)]
    expected = np.stack([100 - expected[:, 2], expected[:, 1], 100 - expected[:, 0], expected[:, 3]], -1)
    np.testing.assert_allclose(flipped, expected, atol=1e-4)


def test_upside_down_garments_still_get_boxes_with_an_area():
    boxes = boxes_from_points(SHIRT * [1, -1] + [0, 100], np.array([2, 2, 98, 94], np.float32), False)
    assert (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize("category", TORSO_CATEGORIES)
def test_deepfashion2_landmarks_give_regions_of_every_torso_category(category):
    count = len(Taxonomy.load("deepfashion2").category(category).indices)
    rng = np.random.default_rng(0)
    landmarks = np.concatenate([rng.uniform(10, 90, (count, 2)), np.full((count, 1), 2)], 1).astype(
        np.float32
    )
    boxes = regions_from_landmarks(landmarks, category, BOX, "deepfashion2")
    assert boxes.shape == (5, 4)
    assert np.isnan(boxes[1:3]).all() == ("sleeve" not in category)


def test_legwear_has_no_regions():
    with pytest.raises(ValueError, match="trousers"):
        regions_from_landmarks(np.zeros((14, 3), np.float32), "trousers", BOX, "deepfashion2")
