"""From cosines to words: which regions were kept, which were changed, and what that makes of the pair.

Thresholds are fitted on labelled pairs by ``psnet.train`` and stored with the weights; none stand in the
code, save those of ``Calibration.default()``, with which a model without a calibration (a test's) can be run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from psnet.regions import GROUPS, NUM_REGIONS, REGIONS
from psnet.similarity import SCORINGS

STATES: tuple[str, ...] = ("kept", "changed", "not_comparable")
KEPT, CHANGED, NOT_COMPARABLE = range(3)

RELATIONS: tuple[str, ...] = ("identical", "plagiarised", "similar", "undecidable")
IDENTICAL, PLAGIARISED, SIMILAR, UNDECIDABLE = range(4)

MIN_COMPARABLE = 3
"""With fewer regions to compare nothing is said about a pair."""

MAX_CHANGED_PARTS = 2
"""A design with more parts changed is another design (Lang et al., CVPR 2020, section 3)."""

LIKELY = 0.3
"""Normalised score from which the photographs of a pair are worth a look (`psnet.verification`)."""
ALIKE = 0.95
"""Score from which they are whatever the normalised one says: a design that a catalogue holds many times, or
that is most of what it holds, is its own background."""
LOOKED_AT = 5
"""Of each item so many pairs are looked at, its best ones."""


def is_likely_copy(
    score: np.ndarray, normalised: np.ndarray, min_score: float = ALIKE, min_normalised: float = LIKELY
) -> np.ndarray:
    """Which pairs' photographs are worth a look: (...) bool."""
    return (score >= np.float32(min_score)) | (normalised >= np.float32(min_normalised))


@dataclass(frozen=True)
class Calibration:
    """What a model's cosines mean.

    ``kept_threshold``: per region, the cosine from which it counts as the same design.
    ``suspect_threshold``: score from which a pair is worth a reviewer's time.
    ``normalised_threshold``: the same on the normalised score.
    ``scoring``: the scoring mode that the thresholds were fitted for, a name of
    ``psnet.similarity.SCORINGS``.
    ``region_weights``: (4, 5), rows as ``psnet.regions.GROUPS``, the weights of Eq. 1.
    ``registered_points``: so many agreeing points, or more, show that two photographs are of one garment.
    ``changed_threshold``: per region, the log-odds from which it counts as changed where the photographs lie
    upon each other (`psnet.verification`); None: the model was not calibrated for that.
    """

    kept_threshold: tuple[float, ...]
    suspect_threshold: float
    normalised_threshold: float = 0.0
    scoring: str = "best_regions"
    region_weights: tuple[tuple[float, ...], ...] = ((1.0,) * NUM_REGIONS,) * len(GROUPS)
    registered_points: int = 12
    changed_threshold: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.kept_threshold) != NUM_REGIONS:
            raise ValueError(f"kept_threshold needs {NUM_REGIONS} values, not {len(self.kept_threshold)}")
        if len(self.region_weights) != len(GROUPS) or any(
            len(row) != NUM_REGIONS for row in self.region_weights
        ):
            raise ValueError(f"region_weights needs {len(GROUPS)} rows of {NUM_REGIONS} values")
        if any(not math.isfinite(w) or w < 0 for row in self.region_weights for w in row):
            raise ValueError("region_weights must be finite and not negative")
        if any(not sum(row) > 0 for row in self.region_weights):
            raise ValueError("region_weights need a positive weight in every row")
        changed = self.changed_threshold
        if changed is not None and len(changed) != NUM_REGIONS:
            raise ValueError(f"changed_threshold needs {NUM_REGIONS} values, not {len(changed)}")
        if self.registered_points < 1:
            raise ValueError("registered_points must be at least 1")
        thresholds = (
            *self.kept_threshold,
            *(changed or ()),
            self.suspect_threshold,
            self.normalised_threshold,
        )
        if not all(math.isfinite(t) for t in thresholds):
            raise ValueError("thresholds must be finite numbers")
        if self.scoring not in SCORINGS:
            raise ValueError(f"unknown scoring {self.scoring!r}; known: {', '.join(SCORINGS)}")

    @classmethod
    def default(cls) -> Calibration:
        """Round numbers for a model that was never calibrated."""
        return cls(kept_threshold=(0.7,) * NUM_REGIONS, suspect_threshold=0.8)

    @property
    def weights(self) -> np.ndarray:
        """``region_weights`` as (4, 5) float32."""
        return np.array(self.region_weights, np.float32)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """The inverse of ``to_json``.

        Raises:
            ValueError: not a calibration.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            values["kept_threshold"] = tuple(float(v) for v in values["kept_threshold"])
            if "region_weights" in values:
                values["region_weights"] = tuple(
                    tuple(float(w) for w in row) for row in values["region_weights"]
                )
            if values.get("changed_threshold") is not None:
                values["changed_threshold"] = tuple(float(v) for v in values["changed_threshold"])
            return cls(**values)
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a calibration: {error!r}") from None


@dataclass(frozen=True)
class Verdict:
    """``states``: (..., 5) uint8 index into STATES; ``relation``: (...) uint8 index into RELATIONS."""

    states: np.ndarray
    relation: np.ndarray


def judge(cos: np.ndarray, comparable: np.ndarray, kept_threshold: Sequence[float]) -> Verdict:
    """The verdict on pairs.

    The sleeves are two regions but one part of the design (the paper's Table 1 counts them so): a garment
    with both sleeves and the collar changed has two modified parts.

    Args:
        cos: (..., 5); comparable: (..., 5) bool; kept_threshold: (5,).
    """
    return _verdict(cos >= np.asarray(kept_threshold, cos.dtype), comparable)


def judge_registered(changed: np.ndarray, changed_threshold: Sequence[float]) -> Verdict:
    """The verdict on pairs whose photographs were laid upon each other.

    Args:
        changed: (..., 5) log-odds that the region was changed, NaN where it cannot be compared, see
            ``psnet.verification``. changed_threshold: (5,).
    """
    return _verdict(changed < np.asarray(changed_threshold, changed.dtype), ~np.isnan(changed))


def weigh(
    calibration: Calibration,
    cos: np.ndarray,
    comparable: np.ndarray,
    score: np.ndarray,
    normalised: np.ndarray,
    points: np.ndarray,
    changed: np.ndarray,
    relations: Sequence[int] = (IDENTICAL, PLAGIARISED),
) -> tuple[Verdict, np.ndarray]:
    """What is said of n pairs, and which are worth reporting: where the photographs lie upon each other by
    what was seen there, all others by their features.

    Args:
        cos, comparable: (n, 5). score, normalised: (n,). points: (n,) that agree, 0 where the photographs do
            not lie upon each other. changed: (n, 5), see ``judge_registered``. relations: indices into
            RELATIONS that are reported.

    Returns:
        the verdict, and (n,) bool: suspicious, and of a relation that is reported.
    """
    verdict = judge(cos, comparable, calibration.kept_threshold)
    enough = (score >= np.float32(calibration.suspect_threshold)) & (
        normalised >= np.float32(calibration.normalised_threshold)
    )
    if calibration.changed_threshold is not None:
        seen = points >= calibration.registered_points
        of_seen = judge_registered(changed, calibration.changed_threshold)
        states = np.where(seen[:, None], of_seen.states, verdict.states)
        verdict, enough = Verdict(states, np.where(seen, of_seen.relation, verdict.relation)), enough | seen
    return verdict, enough & np.isin(verdict.relation, relations)


def _verdict(kept: np.ndarray, comparable: np.ndarray) -> Verdict:
    states = np.where(kept, KEPT, CHANGED).astype(np.uint8)
    states[~comparable] = NOT_COMPARABLE
    changed = states == CHANGED
    collar, left, right, chest, waist = (changed[..., r] for r in range(NUM_REGIONS))
    parts = collar.astype(np.uint8) + (left | right) + chest + waist
    relation = np.where(parts > MAX_CHANGED_PARTS, SIMILAR, PLAGIARISED)
    relation = np.where(parts == 0, IDENTICAL, relation)
    relation = np.where(comparable.sum(-1) < MIN_COMPARABLE, UNDECIDABLE, relation)
    return Verdict(states, relation.astype(np.uint8))


def modified_regions(states: Sequence[int]) -> list[str]:
    """Names of the changed regions of one pair, in the order of REGIONS."""
    return [name for name, state in zip(REGIONS, states, strict=True) if state == CHANGED]


DIRECTIONS: tuple[str, ...] = ("original_first_listed", "rights_holder", "unknown")
"""How the original was told from the copy."""


def explain(
    states: Sequence[int],
    *,
    mirrored: bool = False,
    same_picture: bool = False,
    points: int | None = None,
    direction: str | None = "unknown",
    days_later: int | None = None,
    sellers_known: bool = True,
) -> str:
    """A pair in one sentence, for a reviewer.

    Args:
        states: (5,) indices into STATES.
        mirrored: the suspect matches with its picture flipped.
        same_picture: both items show the same image file.
        points: how many agree where one photograph was laid upon the other; None: it was not.
        direction: one of DIRECTIONS; None: of a picture that nobody offers, nothing is said about who was
            first.
        days_later: days from the original's listing to the suspect's (negative: the suspect came first), None
            when a date is missing.
        sellers_known: the catalogue names both sellers, and they are two.
    """
    if same_picture:
        clauses = ["both items show the very same picture"]
    else:
        kept, changed, unknown = (
            [name for name, state in zip(REGIONS, states, strict=True) if state == code]
            for code in (KEPT, CHANGED, NOT_COMPARABLE)
        )
        clauses = []
        if kept:
            clauses.append(f"{_name(kept)} {_verb(kept, 'is', 'are')} the same design")
        if changed:
            clauses.append(f"{_name(changed)} {_verb(changed, 'differs', 'differ')}")
        if unknown:
            clauses.append(f"{_name(unknown)} cannot be compared")
        if mirrored:
            clauses.append("the picture is flipped")
        if points is not None:
            clauses.append(f"one photograph lies upon the other ({points} points agree)")
    if direction == "rights_holder":
        clauses.append("the right in the original is stated in the catalogue")
    if direction is not None:
        who = " by another seller" if sellers_known else ""
        if days_later is None:
            offered = f"offered{who}, " if sellers_known else ""
            clauses.append(f"{offered}the dates do not say who was first")
        elif days_later == 0:
            clauses.append(f"listed on the same day{who}")
        else:
            days = "1 day" if abs(days_later) == 1 else f"{abs(days_later)} days"
            clauses.append(f"listed {days} {'later' if days_later > 0 else 'earlier'}{who}")
        if not sellers_known:
            clauses.append("the sellers are not stated")
    sentence = "; ".join(clauses)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _name(regions: Sequence[str]) -> str:
    """Region names as a reviewer reads them: "the collar, both sleeves and the waist"."""
    names = [f"the {name.replace('_', ' ')}" for name in regions]
    if "left_sleeve" in regions and "right_sleeve" in regions:
        at = regions.index("left_sleeve")
        names[at : at + 2] = ["both sleeves"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _verb(regions: Sequence[str], singular: str, plural: str) -> str:
    return singular if len(regions) == 1 else plural
