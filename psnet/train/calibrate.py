"""Fit the verdict's thresholds on labelled pairs: what a cosine of this model means.

Held-out garments are photographed anew, edited and not, and go through the whole chain (detector, landmarks,
features), since that is what the verdict will see. A catalogue without copies gives the scores of strangers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from psnet.data.edits import edit_parts, random_parts
from psnet.data.photographs import LabelledGarment
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
    levels_of,
    normalise,
)
from psnet.taxonomy import Taxonomy
from psnet.train.landmarks import subject_of
from psnet.train.retrieval import IGNORED, edited_regions
from psnet.verdict import CHANGED, IDENTICAL, MAX_CHANGED_PARTS, PLAGIARISED, SIMILAR, Calibration, judge

CALIBRATION_CAMERA = CameraRange(
    side=400,
    rotation=5,
    wild_rotation=0.0,
    fill=(0.6, 0.98),
    shift=0.03,
    mirror=0.0,
    new_background=1.0,
    colour=0.1,
)


# A catalogue of this many items may get one false suspect per 200 of them; pairs grow with its square.
CATALOGUE = 4000
FALSE_PER_ITEM = 1 / 200


@dataclass(frozen=True)
class Described:
    """n garments: ``features``, ``mirrored`` (n, 5, d), ``presence`` (n, 5)."""

    features: np.ndarray
    mirrored: np.ndarray
    presence: np.ndarray

    @classmethod
    def of(cls, garments: Sequence[Garment]) -> Described:
        return cls(
            np.stack([g.features for g in garments]),
            np.stack([g.mirrored_features for g in garments]),
            np.stack([g.presence for g in garments]),
        )

    def take(self, rows: np.ndarray) -> Described:
        return Described(self.features[rows], self.mirrored[rows], self.presence[rows])

    def levels(self, sample: Described) -> np.ndarray:
        """(n,) what each reaches with a sample of others, see `psnet.similarity.normalise`."""
        cos, both = block_cosines(self.features, self.presence, sample.features, sample.presence)
        return levels_of(best_regions_score(cos, both, np.ones(NUM_REGIONS, np.float32)))


@dataclass(frozen=True)
class Pairs:
    """n pairs compared: ``cos``, ``comparable`` (n, 5), ``score``, ``normalised`` (n,)."""

    cos: np.ndarray
    comparable: np.ndarray
    score: np.ndarray
    normalised: np.ndarray

    @classmethod
    def of(cls, a: Described, b: Described, level: np.ndarray) -> Pairs:
        ones = np.ones((len(level), NUM_REGIONS), np.float32)
        found = compare(a.features, a.presence, b.features, b.presence, ones, mirrored_x=b.mirrored)
        return cls(found.cos, found.comparable, found.score, normalise(found.score, level))


@dataclass(frozen=True)
class LabelledPairs:
    """Originals against copies of them, n pairs. ``edited`` (n, 5) int8: 1 changed, 0 kept, -1 cannot be
    told; ``parts`` (n,) how many parts were edited; ``lost`` copies in which no garment was found."""

    pairs: Pairs
    edited: np.ndarray
    parts: np.ndarray
    lost: int

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
    garments: Sequence[LabelledGarment],
    sample: Described | None,
    seed: int,
    copies: Sequence[int] = (0, 0, 1, 1, 2, 3),
) -> LabelledPairs:
    """Each garment against ``copies`` of it, by how many parts are edited; ``sample`` gives the levels."""
    swap = Taxonomy.load("clothing11").swap
    originals: list[Garment] = []
    copied: list[Garment] = []
    states, counts, lost = [], [], 0
    for index, garment in enumerate(garments):
        rng = np.random.default_rng((seed, index))
        subject = subject_of(garment)
        images, edits = [garment.read()], []
        for count in copies:
            donor = garments[int(rng.integers(len(garments)))]
            # Evenly, not by Table 1: each region's threshold needs as many edited ones as the chest's.
            parts = random_parts(bool(garment.absent[1:3].all()), count, rng)
            edited, _ = edit_parts(subject, parts, rng, subject_of(donor))
            edits.append((edited_regions(subject, edited, parts), len(parts)))
            images.append(rephotograph(edited, rng, CALIBRATION_CAMERA, swap=swap, other=donor.read()).pixels)
        original, *found = first_garments(predictor, images)
        for copy, (state, count) in zip(found, edits, strict=True):
            if original is None or copy is None:
                lost += 1
                continue
            originals.append(original)
            copied.append(copy)
            states.append(state)
            counts.append(count)
    a, b = Described.of(originals), Described.of(copied)
    level = np.zeros(len(counts), np.float32) if sample is None else (a.levels(sample) + b.levels(sample)) / 2
    return LabelledPairs(Pairs.of(a, b, level), np.array(states), np.array(counts), lost)


def kept_thresholds(labelled: LabelledPairs) -> tuple[float, ...]:
    """Per region the cosine from which it counts as kept.

    A start from each region's least balanced error, then a coordinate search for what the verdict is read
    for: the relation of the pair and the overlap of the named with the edited regions. Only regions seen on
    both sides count: absent against present is a change at any threshold. The sleeves share theirs.
    """
    thresholds = np.zeros(NUM_REGIONS)
    shared = ([0], [1, 2], [3], [4])
    pairs = labelled.pairs
    for regions in shared:
        cos, edited = pairs.cos[:, regions], labelled.edited[:, regions]
        usable = pairs.comparable[:, regions] & (cos != 0)
        kept, changed = np.sort(cos[usable & (edited == 0)]), np.sort(cos[usable & (edited == 1)])
        candidates = np.linspace(0, 0.98, 197)
        error = np.searchsorted(kept, candidates) / max(len(kept), 1)
        error += 1 - np.searchsorted(changed, candidates) / max(len(changed), 1)
        thresholds[regions] = candidates[int(error.argmin())]
    best = verdict_agreement(labelled, thresholds)
    for step in (0.05, 0.02, 0.01):
        for _ in range(6):
            before = best
            for regions in shared:
                for change in (step, -step):
                    tried = thresholds.copy()
                    tried[regions] = np.clip(tried[regions] + change, 0, 1)
                    if (now := verdict_agreement(labelled, tried)) > best:
                        thresholds, best = tried, now
            if best == before:
                break
    return tuple(round(float(t), 3) for t in thresholds)


def verdict_agreement(labelled: LabelledPairs, thresholds: np.ndarray) -> float:
    """Share of relations said rightly plus mean overlap of the named with the edited regions, over pairs
    whose edits can be seen."""
    clear = labelled.clear
    said = judge(labelled.pairs.cos[clear], labelled.pairs.comparable[clear], tuple(thresholds))
    parts = labelled.parts[clear]
    true = np.where(parts == 0, IDENTICAL, np.where(parts <= MAX_CHANGED_PARTS, PLAGIARISED, SIMILAR))
    changed, edited = said.states == CHANGED, labelled.edited[clear] == 1
    copied = (parts > 0) & (parts <= MAX_CHANGED_PARTS)
    overlap = (changed & edited).sum(1) / np.maximum((changed | edited).sum(1), 1)
    return float((said.relation == true).mean() + overlap[copied].mean())


def stranger_pairs(strangers: Described, sellers: np.ndarray, sample: Described, floor: float) -> Pairs:
    """Pairs of a catalogue without copies that score ``floor`` or more, each once.

    Pairs of one seller do not count: they are never reported, and shops photograph one garment twice.
    """
    levels = strangers.levels(sample)
    queries, matches = [], []
    ones = np.ones(NUM_REGIONS, np.float32)
    for start in range(0, len(sellers), 256):
        rows = np.arange(start, min(start + 256, len(sellers)))
        score = compare_block(
            strangers.features[rows],
            strangers.presence[rows],
            strangers.features,
            strangers.presence,
            np.broadcast_to(ones, (len(rows), NUM_REGIONS)),
            mirrored_x=strangers.mirrored,
        ).score
        score[sellers[rows, None] == sellers[None]] = -1
        score[rows[:, None] >= np.arange(len(sellers))[None]] = -1
        query, match = np.nonzero(score >= floor)
        queries.append(rows[query])
        matches.append(match)
    query, match = np.concatenate(queries), np.concatenate(matches)
    level = (levels[query] + levels[match]) / 2
    return Pairs.of(strangers.take(query), strangers.take(match), level)


def suspect_thresholds(
    copies: Pairs, strangers: Pairs, kept: Sequence[float], allowed: float
) -> tuple[float, float]:
    """Least score and least normalised score of a suspect: of those that let no more than ``allowed`` pairs
    of strangers pass, the two that keep most copies."""

    def reported(pairs: Pairs) -> np.ndarray:
        relation = judge(pairs.cos, pairs.comparable, kept).relation
        return np.isin(relation, (IDENTICAL, PLAGIARISED))

    true, false = reported(copies), reported(strangers)
    best = (-1.0, 1.0, 1.0)
    for score in np.arange(0.5, 1.0, 0.01):
        rivals = np.sort(strangers.normalised[false & (strangers.score >= score)])[::-1]
        # Just above the first one too many.
        least = float(rivals[int(allowed)]) + 1e-4 if len(rivals) > allowed else 0.0
        found = float((true & (copies.score >= score) & (copies.normalised >= least)).mean())
        best = max(best, (found, round(float(score), 4), round(least, 4)))
    return best[1], best[2]


def calibrate(
    predictor: Predictor,
    garments: Sequence[LabelledGarment],
    strangers: Sequence[tuple[Path, str]],
    seed: int,
) -> tuple[Calibration, dict[str, float]]:
    """Thresholds, and the figures they stand on.

    ``strangers``: pictures and sellers of a catalogue without copies. The thresholds let at most one pair per
    200 items of a catalogue of `CATALOGUE` items pass, counted on the strangers.
    """
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path, _ in strangers]
    found = first_garments(predictor, pictures)
    sellers = np.array([s for (_, s), g in zip(strangers, found, strict=True) if g is not None])
    shown = [g for g in found if g is not None]
    if len(shown) < LEAST_ABOVE:
        labelled = labelled_pairs(predictor, garments, None, seed)
        kept = kept_thresholds(labelled)
        score = float(np.quantile(labelled.pairs.score[labelled.parts <= MAX_CHANGED_PARTS], 0.02))
        calibration = replace(Calibration.default(), kept_threshold=kept, suspect_threshold=round(score, 4))
        return calibration, {"pairs": float(len(labelled.parts)), "lost": float(labelled.lost)}
    described = Described.of(shown)
    sample = described.take(np.arange(min(BACKGROUND_PICTURES, len(shown))))
    labelled = labelled_pairs(predictor, garments, sample, seed)
    kept = kept_thresholds(labelled)
    copied = labelled.parts <= MAX_CHANGED_PARTS
    copies = Pairs(*(value[copied] for value in vars(labelled.pairs).values()))
    rivals = stranger_pairs(described, sellers, sample, 0.5)
    allowed = len(shown) ** 2 * FALSE_PER_ITEM / CATALOGUE
    score, normalised = suspect_thresholds(copies, rivals, kept, allowed)
    calibration = replace(
        Calibration.default(),
        kept_threshold=kept,
        suspect_threshold=score,
        normalised_threshold=normalised,
    )
    passed = (copies.score >= score) & (copies.normalised >= normalised)
    figures = {
        "pairs": float(len(labelled.parts)),
        "lost": float(labelled.lost),
        "strangers": float(len(shown)),
        "stranger pairs allowed": float(allowed),
        "copies above the thresholds": float(passed.mean()),
        "relation right plus overlap of regions": verdict_agreement(labelled, np.array(kept)),
        "median score of copies": float(np.median(copies.score)),
    }
    return calibration, figures
