"""The taxonomies against DeepFashion2's published numbering."""

import numpy as np
import pytest

from psnet.taxonomy import TORSO_CATEGORIES, Taxonomy, to_clothing11

# Evaluation notes of DeepFashion2: last landmark of every category, counted from 1.
LAST = {
    "short_sleeve_top": 25,
    "long_sleeve_top": 58,
    "short_sleeve_outwear": 89,
    "long_sleeve_outwear": 128,
    "vest": 143,
    "sling": 158,
    "shorts": 168,
    "trousers": 182,
    "skirt": 190,
    "short_sleeve_dress": 219,
    "long_sleeve_dress": 256,
    "vest_dress": 275,
    "sling_dress": 294,
}


def test_deepfashion2_numbering():
    taxonomy = Taxonomy.load("deepfashion2")
    assert len(taxonomy) == 294
    assert {name: int(c.indices[-1]) + 1 for name, c in taxonomy.categories.items()} == LAST
    assert [c.id for c in taxonomy.categories.values()] == list(range(1, 14))
    for category in taxonomy.categories.values():
        named = sorted(i for part, numbers in category.parts.items() for i in numbers if "armpit" not in part)
        if category.name in TORSO_CATEGORIES and "left_armpit" in category.parts:
            named = sorted(named + [i for p in ("left_armpit", "right_armpit") for i in category.parts[p]])
        assert named == list(range(len(category.indices)))


@pytest.mark.parametrize("name", ["deepfashion2", "clothing11"])
def test_mirror_is_an_involution_within_the_category(name):
    taxonomy = Taxonomy.load(name)
    np.testing.assert_array_equal(taxonomy.swap[taxonomy.swap], np.arange(len(taxonomy)))
    for category in taxonomy.categories.values():
        np.testing.assert_array_equal(taxonomy.swap[category.indices], category.indices[category.swap])


def test_mirror_swaps_left_and_right_parts():
    for category in Taxonomy.load("deepfashion2").categories.values():
        for part, numbers in category.parts.items():
            other = part.replace("left", "right") if "left" in part else part.replace("right", "left")
            if part not in ("hem", "opening", "collar"):
                assert {int(category.swap[i]) for i in numbers} == set(category.parts[other])


def test_groups():
    taxonomy = Taxonomy.load("clothing11")
    groups = {name: taxonomy.category(name).group for name in TORSO_CATEGORIES}
    assert (
        groups["short_sleeve_top"] == "T-shirts"
        and groups["vest"] == "tops"
        and groups["sling_dress"] == "dress"
    )
    assert groups["long_sleeve_outwear"] == "outwear"


@pytest.mark.parametrize("name", TORSO_CATEGORIES)
def test_clothing11_follows_and_mirrors(name):
    category = Taxonomy.load("deepfashion2").category(name)
    rng = np.random.default_rng(0)
    landmarks = np.concatenate(
        [rng.uniform(0, 100, (len(category.indices), 2)), np.full((len(category.indices), 1), 2.0)], 1
    )
    points = to_clothing11(name, landmarks)
    mirrored = landmarks[category.swap] * [-1, 1, 1]
    np.testing.assert_allclose(
        to_clothing11(name, mirrored), points[Taxonomy.load("clothing11").swap] * [-1, 1, 1], atol=1e-4
    )
    sleeves = points[[5, 6], 2]
    assert (sleeves == (0 if name.startswith(("vest", "sling")) else 2)).all()


def test_unknown_names():
    with pytest.raises(ValueError, match="clothing11"):
        Taxonomy.load("nonsense")
    with pytest.raises(ValueError, match="short_sleeve_top"):
        Taxonomy.load("clothing11").category("trousers")
    with pytest.raises(ValueError, match="torso"):
        to_clothing11("skirt", np.zeros((8, 3)))
