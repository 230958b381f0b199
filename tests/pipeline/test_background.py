"""What garments reach with strangers: a quantile of their scores, whatever the scoring."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.background import Garments, background
from psnet.regions import Presence
from psnet.similarity import SCORINGS, cosines
from tests.pipeline.synthetic_garments import Catalogue, catalogue


def garments(source: Catalogue, weights: np.ndarray | None = None) -> Garments:
    return Garments(
        source.features.astype(np.float32),
        source.presence,
        np.ones((len(source.presence), 5), np.float32) if weights is None else weights,
        source.picture,
    )


def quantile_below_the_ten_best(values: np.ndarray) -> float:
    ranked = np.sort(values)[::-1]
    return min(np.quantile(values, 0.9, method="lower"), ranked[min(9, len(ranked) - 1)])


@pytest.mark.parametrize(
    ("scoring", "weighted"), [("best_regions", False), ("best_regions", True), ("weighted", True)]
)
def test_background_is_a_quantile_of_scores_with_strangers(scoring, weighted):
    source = catalogue(120, dim=32, seed=3)
    table = np.random.default_rng(5).choice([0, 0.5, 1, 2], (len(source.picture), 5)).astype(np.float32)
    every = garments(source, table if weighted else None)
    chosen = np.arange(0, len(source.picture), 3)
    sample = Garments(*(getattr(every, name)[chosen] for name in Garments.__dataclass_fields__))
    level, distinctiveness = background(every, sample, 0.9, scoring=scoring)
    for g in range(len(source.picture)):
        strangers = sample.picture != source.picture[g]
        cos, comparable = cosines(
            every.features[g], every.presence[g], sample.features[strangers], sample.presence[strangers]
        )
        scores = SCORINGS[scoring](cos, comparable, every.weights[g])
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
