"""Fit the verdict's thresholds on labelled pairs: what a cosine of this model means.

Held-out garments are photographed anew, edited and not, and go through the whole chain (detector, landmarks,
features), since that is what the verdict will see. A catalogue without copies gives the scores of strangers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from psnet.data.photographs import LabelledGarment, load_pixels
from psnet.data.rephotograph import CameraRange, rephotograph
from psnet.predictor import Garment, Predictor
from psnet.regions import NUM_REGIONS
from psnet.similarity import (
    BACKGROUND_PICTURES,
    LEAST_ABOVE,
    best_regions_score,
    block_cosines,
    compare,
    compare_block,
    group_rows,
    levels_of,
    normalise,
)
from psnet.taxonomy import Taxonomy
from psnet.train.landmarks import edited_copy, subject_of
from psnet.train.retrieval import IGNORED, edited_regions
from psnet.verdict import (
    CHANGED,
    IDENTICAL,
    MAX_CHANGED_PARTS,
    PLAGIARISED,
    SIMILAR,
    Calibration,
    Verdict,
    is_likely_copy,
    judge,
    judge_registered,
    weigh,
)
from psnet.verification import Sight, Verification, Verifier, as_arrays

CALIBRATION_CAMERA = CameraRange(
    side=400,
    rotation=5,
    wild_rotation=0.0,
    fill=(0.6, 0.98),
    shift=0.03,
    mirror=0.0,
    new_background=1.0,
    colour=0.1,
    bend=0.02,
)


# Least agreeing points to choose from: fewer may be chance, of many more there are often not enough.
POINTS = range(8, 31)

# A catalogue of this many items may get one false suspect per 200 of them; pairs grow with its square.
CATALOGUE = 4000
FALSE_PER_ITEM = 1 / 200
# Of these so many by features alone. Nearly all copies show in photographs that lie upon each other, and so
# does what was changed; tops of one colour differ in nothing that features see, and would use up the rest.
BY_FEATURES_ALONE = 0.2


@dataclass(frozen=True)
class Described:
    """n garments: ``features``, ``mirrored`` (n, 5, d), ``presence`` (n, 5), ``weights`` (n, 5) of their
    regions."""

    features: np.ndarray
    mirrored: np.ndarray
    presence: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, garments: Sequence[Garment], region_weights: np.ndarray) -> Described:
        """``region_weights``: (4, 5), rows as ``psnet.regions.GROUPS``."""
        return cls(
            np.stack([g.features for g in garments]),
            np.stack([g.mirrored_features for g in garments]),
            np.stack([g.presence for g in garments]),
            region_weights[group_rows([g.group for g in garments])],
        )

    def take(self, rows: np.ndarray) -> Described:
        return Described(*(value[rows] for value in vars(self).values()))

    def levels(self, sample: Described, own: bool = False) -> np.ndarray:
        """(n,) what each reaches with a sample of others, see `psnet.similarity.normalise`; ``own``: the
        sample is the first of these, which do not count for themselves."""
        cos, both = block_cosines(self.features, self.presence, sample.features, sample.presence)
        score = best_regions_score(cos, both, self.weights[:, None])
        if own:
            np.fill_diagonal(score, -np.inf)
        return levels_of(score)


@dataclass(frozen=True)
class Pairs:
    """n pairs compared: ``cos``, ``comparable`` (n, 5), ``mirrored``, ``score``, ``normalised`` (n,); what
    `psnet.verification` says of their photographs: ``points`` (n,), 0 where they do not lie upon each other,
    and ``changed`` (n, 5)."""

    cos: np.ndarray
    comparable: np.ndarray
    mirrored: np.ndarray
    score: np.ndarray
    normalised: np.ndarray
    points: np.ndarray
    changed: np.ndarray

    @classmethod
    def of(cls, a: Described, b: Described, level: np.ndarray) -> Pairs:
        """By their features alone. Either garment may be the one that asks, with its group's weights: the
        pair is reported if one of them finds it."""
        found = compare(a.features, a.presence, b.features, b.presence, a.weights, mirrored_x=b.mirrored)
        back = compare(b.features, b.presence, a.features, a.presence, b.weights, mirrored_x=a.mirrored)
        score = np.maximum(found.score, back.score)
        points, changed = as_arrays([None] * len(level))
        normalised = normalise(score, level)
        return cls(found.cos, found.comparable, found.mirrored, score, normalised, points, changed)

    def take(self, rows: np.ndarray) -> Pairs:
        return Pairs(*(value[rows] for value in vars(self).values()))

    def verified(self, found: Sequence[Verification | None]) -> Pairs:
        """With what was seen when the photographs were laid upon each other."""
        points, changed = as_arrays(found)
        return replace(self, points=points, changed=changed)

    def judged(self, calibration: Calibration) -> tuple[Verdict, np.ndarray]:
        """What is said of each pair, as `pipeline.judge` does, and which ones would be reported."""
        return weigh(
            calibration,
            self.cos,
            self.comparable,
            self.score,
            self.normalised,
            self.points,
            self.changed,
        )


@dataclass(frozen=True)
class LabelledPairs:
    """Originals against copies of them, n pairs. ``edited`` (n, 5) int8: 1 changed, 0 kept, -1 cannot be
    told; ``parts`` (n,) how many parts were edited; ``lost`` copies in which no garment was found."""

    pairs: Pairs
    edited: np.ndarray
    parts: np.ndarray
    lost: int

    def take(self, rows: np.ndarray) -> LabelledPairs:
        return LabelledPairs(self.pairs.take(rows), self.edited[rows], self.parts[rows], self.lost)

    @property
    def clear(self) -> np.ndarray:
        """(n,) bool: every edit can be seen."""
        return (self.edited != IGNORED).all(1)


def first_garments(predictor: Predictor, images: Sequence[np.ndarray]) -> list[Garment | None]:
    """The surest garment of each image."""
    out: list[Garment | None] = []
    for start in range(0, len(images), 16):
        out += [found[0] if found else None for found in predictor.predict(images[start : start + 16])]
    return out


def labelled_pairs(
    predictor: Predictor,
    verifier: Verifier | None,
    garments: Sequence[LabelledGarment],
    sample: Described | None,
    region_weights: np.ndarray,
    seed: int,
    copies: Sequence[int] = (0, 0, 1, 1, 2, 3),
) -> LabelledPairs:
    """Each garment against ``copies`` of it, by how many parts are edited; ``sample`` gives the levels,
    ``region_weights`` (4, 5) are those of the groups."""
    swap = Taxonomy.load("clothing11").swap
    originals: list[Garment] = []
    copied: list[Garment] = []
    seen: list[Verification | None] = []
    states, counts, lost = [], [], 0
    for index, garment in enumerate(garments):
        rng = np.random.default_rng((seed, index))
        subject = subject_of(garment)
        images, edits = [garment.read()], []
        for count in copies:
            donor = garments[int(rng.integers(len(garments)))]
            # Evenly, not by Table 1: each region's threshold needs as many edited ones as the chest's.
            edited, parts = edited_copy(garment, donor, count, rng)
            edits.append((edited_regions(subject, edited, parts), len(parts)))
            images.append(rephotograph(edited, rng, CALIBRATION_CAMERA, swap=swap, other=donor.read()).pixels)
        original, *found = first_garments(predictor, images)
        for image, copy, (state, count) in zip(images[1:], found, edits, strict=True):
            if original is None or copy is None:
                lost += 1
                continue
            if verifier is not None:
                seen.append(verifier.verify(_sight(images[0], original), _sight(image, copy)))
            originals.append(original)
            copied.append(copy)
            states.append(state)
            counts.append(count)
    a, b = Described.of(originals, region_weights), Described.of(copied, region_weights)
    level = np.zeros(len(counts), np.float32) if sample is None else (a.levels(sample) + b.levels(sample)) / 2
    pairs = Pairs.of(a, b, level)
    labelled = LabelledPairs(pairs, np.array(states), np.array(counts), lost)
    return labelled if verifier is None else replace(labelled, pairs=pairs.verified(seen))


def _sight(image: np.ndarray, garment: Garment) -> Sight:
    return Sight.of(image, garment.box, garment.region_boxes, garment.presence, garment.landmarks)


def kept_thresholds(labelled: LabelledPairs) -> tuple[float, ...]:
    """Per region the cosine from which it counts as kept. Only regions seen on both sides count for the
    start: absent against present is a change at any threshold."""
    pairs = labelled.pairs

    def agreement(thresholds: np.ndarray) -> float:
        return verdict_agreement(labelled, judge(pairs.cos, pairs.comparable, tuple(thresholds)))

    usable = pairs.comparable & (pairs.cos != 0)
    # None is 0, the cosine of absent with present.
    candidates, steps = np.linspace(0.005, 0.98, 196), (0.05, 0.02, 0.01)
    start = np.array(Calibration.default().kept_threshold)
    return _region_thresholds(pairs.cos, usable, labelled.edited, candidates, steps, agreement, start)


def changed_thresholds(labelled: LabelledPairs) -> tuple[float, ...]:
    """Per region the log-odds from which it counts as changed, from pairs whose photographs lie upon each
    other."""
    labelled = labelled.take(labelled.pairs.points > 0)
    changed, even = labelled.pairs.changed, np.zeros(NUM_REGIONS)
    if not labelled.clear.any():
        return tuple(even.tolist())

    def agreement(kept: np.ndarray) -> float:
        return verdict_agreement(labelled, judge_registered(changed, tuple(-kept)))

    candidates, steps = np.linspace(-8, 8, 161), (0.5, 0.2, 0.1)
    usable = ~np.isnan(changed)
    kept = _region_thresholds(-changed, usable, labelled.edited, candidates, steps, agreement, even)
    return tuple(-t for t in kept)


def _region_thresholds(
    values: np.ndarray,
    usable: np.ndarray,
    edited: np.ndarray,
    candidates: np.ndarray,
    steps: Sequence[float],
    agreement: Callable[[np.ndarray], float],
    unknown: np.ndarray,
) -> tuple[float, ...]:
    """Per region the value (n, 5) from which it counts as kept; ``unknown`` (5,) to start from where no kept
    or no edited one has been seen.

    A start from each region's least balanced error, then a coordinate search for what the verdict is read
    for, ``agreement``: the relation of the pair and the overlap of the named with the edited regions. The
    sleeves share theirs.
    """
    thresholds = unknown.astype(np.float64)
    shared = ([0], [1, 2], [3], [4])
    for regions in shared:
        value, truth, use = values[:, regions], edited[:, regions], usable[:, regions]
        kept, changed = np.sort(value[use & (truth == 0)]), np.sort(value[use & (truth == 1)])
        if len(kept) and len(changed):
            error = np.searchsorted(kept, candidates) / len(kept)
            error += 1 - np.searchsorted(changed, candidates) / len(changed)
            thresholds[regions] = candidates[int(error.argmin())]
    best = agreement(thresholds)
    for step in steps:
        for _ in range(6):
            before = best
            for regions in shared:
                for change in (step, -step):
                    tried = thresholds.copy()
                    tried[regions] = np.clip(tried[regions] + change, candidates[0], candidates[-1])
                    if (now := agreement(tried)) > best:
                        thresholds, best = tried, now
            if best == before:
                break
    return tuple(round(float(t), 3) for t in thresholds)


def verdict_agreement(labelled: LabelledPairs, said: Verdict) -> float:
    """Share of relations said rightly plus mean overlap of the named with the edited regions, over pairs
    whose edits can be seen."""
    clear = labelled.clear
    parts = labelled.parts[clear]
    true = np.where(parts == 0, IDENTICAL, np.where(parts <= MAX_CHANGED_PARTS, PLAGIARISED, SIMILAR))
    changed, edited = said.states[clear] == CHANGED, labelled.edited[clear] == 1
    copied = (parts > 0) & (parts <= MAX_CHANGED_PARTS)
    overlap = (changed & edited).sum(1) / np.maximum((changed | edited).sum(1), 1)
    return float((said.relation[clear] == true).mean() + overlap[copied].mean())


def stranger_pairs(
    strangers: Described, sellers: np.ndarray, sample: Described, floor: float
) -> tuple[Pairs, np.ndarray, np.ndarray]:
    """Pairs of a catalogue without copies that score ``floor`` or more, each once, and which two they are.

    ``sample``: the first of the strangers, for the levels.
    Pairs of one seller do not count: they are never reported, and shops photograph one garment twice.
    """
    levels = strangers.levels(sample, own=True)
    found = []
    for start in range(0, len(sellers), 256):
        rows = np.arange(start, min(start + 256, len(sellers)))
        score = compare_block(
            strangers.features[rows],
            strangers.presence[rows],
            strangers.features,
            strangers.presence,
            strangers.weights[rows],
            mirrored_x=strangers.mirrored,
        ).score
        score[sellers[rows, None] == sellers[None]] = -1
        query, match = np.nonzero(score >= floor)
        found.append(np.sort(np.stack([rows[query], match]), axis=0))
    # Whichever of the two asks.
    query, match = np.unique(np.concatenate(found, axis=1), axis=1)
    level = (levels[query] + levels[match]) / 2
    return Pairs.of(strangers.take(query), strangers.take(match), level), query, match


def suspect_thresholds(
    copies: Pairs, strangers: Pairs, calibration: Calibration, allowed: float
) -> Calibration:
    """Least score and least normalised score of a suspect, and least agreeing points of photographs that lie
    upon each other: of those that let no more than ``allowed`` pairs of strangers pass (where photographs are
    laid upon each other, only `BY_FEATURES_ALONE` of them by features alone), the ones that keep most copies;
    of equal ones the most points."""
    laid = calibration.changed_threshold is not None
    share = BY_FEATURES_ALONE if laid else 1.0
    best: tuple[tuple[float, int, float], Calibration] | None = None
    for points in POINTS if laid else POINTS[:1]:
        for score in np.arange(0.5, 1.0, 0.01):
            tried = replace(
                calibration,
                registered_points=points,
                suspect_threshold=round(float(score), 4),
                normalised_threshold=-10.0,
            )
            by_features = strangers.points < points
            reported = strangers.judged(tried)[1]
            rest = min(share * allowed, allowed - (reported & ~by_features).sum())
            if rest < 0:
                continue
            rivals = np.sort(strangers.normalised[reported & by_features])[::-1]
            # Just above the first one too many.
            least = float(rivals[int(rest)]) + 1e-4 if len(rivals) > rest else 0.0
            tried = replace(tried, normalised_threshold=round(least, 4))
            found = float(copies.judged(tried)[1].mean())
            key = (round(found, 4), points, float(score))
            if best is None or key > best[0]:
                best = key, tried
    if best is None:
        raise ValueError(
            "the strangers' photographs lie upon each other: they are no catalogue without copies"
        )
    return best[1]


def calibrate(
    predictor: Predictor,
    verifier: Verifier | None,
    garments: Sequence[LabelledGarment],
    strangers: Sequence[tuple[Path, str]],
    region_weights: Sequence[Sequence[float]],
    seed: int,
) -> tuple[Calibration, dict[str, float]]:
    """Thresholds on the score by ``region_weights``, and the figures they stand on.

    ``strangers``: pictures and sellers of a catalogue without copies. The thresholds let at most one pair per
    200 items of a catalogue of `CATALOGUE` items pass, counted on the strangers. ``region_weights``: (4, 5),
    rows as ``psnet.regions.GROUPS``.
    """
    calibration = replace(
        Calibration.default(), region_weights=tuple(tuple(float(w) for w in row) for row in region_weights)
    )
    pictures = [load_pixels(path) for path, _ in strangers]
    found = first_garments(predictor, pictures)
    shown = [number for number, garment in enumerate(found) if garment is not None]
    sample = None
    if len(shown) >= LEAST_ABOVE:
        described = Described.of([garment for garment in found if garment is not None], calibration.weights)
        sample = described.take(np.arange(min(BACKGROUND_PICTURES, len(shown))))
    labelled = labelled_pairs(predictor, verifier, garments, sample, calibration.weights, seed)
    calibration = replace(calibration, kept_threshold=kept_thresholds(labelled))
    if verifier is not None:
        calibration = replace(calibration, changed_threshold=changed_thresholds(labelled))
    copies = labelled.pairs.take(labelled.parts <= MAX_CHANGED_PARTS)
    figures = {"pairs": float(len(labelled.parts)), "lost": float(labelled.lost)}
    if sample is None:
        score = round(float(np.quantile(copies.score, 0.02)), 4)
        return replace(calibration, suspect_threshold=score), figures
    sellers = np.array([strangers[number][1] for number in shown])
    rivals, query, match = stranger_pairs(described, sellers, sample, 0.5)
    if verifier is not None:
        rivals = rivals.verified(
            _looked_at(verifier, [(pictures[n], found[n]) for n in shown], rivals, query, match)
        )
    allowed = len(shown) ** 2 * FALSE_PER_ITEM / CATALOGUE
    calibration = suspect_thresholds(copies, rivals, calibration, allowed)
    verdict, reported = labelled.pairs.judged(calibration)
    of_copies = reported[labelled.parts <= MAX_CHANGED_PARTS]
    figures |= {
        "strangers": float(len(shown)),
        "stranger pairs allowed": float(allowed),
        "copies reported": float(of_copies.mean()),
        "copies whose photographs lie upon each other": float(
            (copies.points >= calibration.registered_points).mean()
        ),
        "strangers whose photographs lie upon each other": float(
            (rivals.points >= calibration.registered_points).sum()
        ),
        "relation right plus overlap of regions": verdict_agreement(labelled, verdict),
        "the same of reported pairs": verdict_agreement(
            labelled.take(reported), Verdict(verdict.states[reported], verdict.relation[reported])
        ),
        "median score of copies": float(np.median(copies.score)),
    }
    return calibration, figures


def _looked_at(
    verifier: Verifier,
    shown: Sequence[tuple[np.ndarray, Garment | None]],
    pairs: Pairs,
    query: np.ndarray,
    match: np.ndarray,
) -> list[Verification | None]:
    """What `Verifier.verify` says of the likely ones among the pairs of strangers."""

    @cache
    def sight(number: int) -> Sight:
        image, garment = shown[number]
        assert garment is not None
        return _sight(image, garment)

    return [
        verifier.verify(sight(a), sight(b)) if likely else None
        for a, b, likely in zip(query, match, is_likely_copy(pairs.score, pairs.normalised), strict=True)
    ]
