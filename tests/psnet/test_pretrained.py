"""The weights that ship with the package."""

import numpy as np
import pytest

from psnet.predictor import Predictor
from psnet.regions import Presence
from psnet.render.design import sample_design
from psnet.render.photo import photograph_design
from psnet.weights import PARTS, SHIPPED


@pytest.fixture(scope="module")
def predictor():
    return Predictor.load(device="cpu")


def photographs(count):
    for seed in range(count):
        rng = np.random.default_rng((2026, seed))
        yield photograph_design(sample_design(rng, "short_sleeve_top"), rng)


def overlap(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    inner = np.prod(np.clip(high - low, 0, None))
    return inner / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inner)


def test_they_are_small_and_carry_a_card_and_a_calibration(predictor):
    assert sum((SHIPPED / f"{part}.safetensors").stat().st_size for part in PARTS) < 100e6
    assert "Licence" in (SHIPPED / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert len(set(predictor.calibration.kept_threshold)) > 1  # not the default's round numbers


def test_they_find_a_garment_and_its_regions(predictor):
    shown = list(photographs(6))
    for photograph, garments in zip(shown, predictor.predict([p.pixels for p in shown]), strict=True):
        assert garments and overlap(garments[0].box, photograph.box) > 0.5
        chest = garments[0].region_boxes[3]
        assert (
            garments[0].presence[3] == Presence.PRESENT and overlap(chest, photograph.region_boxes[3]) > 0.3
        )


def test_another_photograph_of_a_design_is_nearer_than_another_design(predictor):
    designs = [sample_design(np.random.default_rng((7, i)), "short_sleeve_top") for i in range(6)]
    views = [
        photograph_design(d, np.random.default_rng((8, i, v))).pixels
        for i, d in enumerate(designs)
        for v in range(2)
    ]
    found = [garments[0].features.reshape(-1) for garments in predictor.predict(views)]
    scores = np.array(found[0::2]) @ np.array(found[1::2]).T
    assert (scores.argmax(1) == np.arange(6)).mean() >= 0.8
