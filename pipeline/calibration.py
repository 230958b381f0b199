"""What the run's model means by its cosines: the calibration stored with the weights, and what settings
change."""

from __future__ import annotations

import json
from dataclasses import replace

from pipeline.errors import UserError
from pipeline.settings import MatchSettings, Settings
from psnet.regions import GROUPS
from psnet.verdict import Calibration


def load_calibration(settings: Settings) -> Calibration:
    """The calibration of ``settings.extract.weights``, with the thresholds and weights that settings name
    instead.

    Raises:
        UserError: the weights cannot be used, or hold no sound calibration.
    """
    # Imports torch, which most callers have not needed so far.
    from psnet.weights import WeightsError, read_description

    try:
        stored = read_description(settings.extract.weights).get("calibration")
        calibration = Calibration.default() if stored is None else Calibration.from_json(json.dumps(stored))
    except WeightsError as error:
        raise UserError(str(error)) from None
    except ValueError as error:
        raise UserError(f"extract.weights: {error}; use weights written by `psnet train`") from None
    named = settings.match.region_weights or {}
    table = tuple(
        named.get(group, row) for group, row in zip(GROUPS, calibration.region_weights, strict=True)
    )
    least = settings.judge.min_score
    try:
        return replace(
            calibration,
            scoring=settings.match.scoring,
            region_weights=table,
            kept_threshold=settings.judge.kept_thresholds or calibration.kept_threshold,
            suspect_threshold=calibration.suspect_threshold if least is None else least,
        )
    except ValueError as error:
        raise UserError(f"match.region_weights: {error}") from None


def list_threshold(calibration: Calibration, settings: MatchSettings) -> float:
    """Score from which a pair is listed beyond an item's best."""
    return calibration.suspect_threshold if settings.min_score is None else settings.min_score
