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

from psnet.data.edits import PART_REGIONS, edit_parts
from psnet.data.photographs import LabelledGarment
from psnet.data.rephotograph import CameraRange, rephotograph
from psnet.predictor import Garment, Predictor
from psnet.regions import NUM_REGIONS
from psnet.similarity import best_regions_score, block_cosines, cosines
from psnet.taxonomy import Taxonomy
from psnet.train.landmarks import subject_of
from psnet.train.retrieval import edited_regions
from psnet.verdict import Calibration

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


@dataclass(frozen=True)
class LabelledPairs:
    """``cos`` (n, 5) and ``comparable`` (n, 5) of original against copy; ``edited`` (n, 5) int8: 1 changed, 0
    kept, -1 cannot be told; ``parts`` (n,) how many parts were edited; ``score`` (n,); ``lost`` copies in
    which no garment was found."""

    cos: np.ndarray
    comparable: np.ndarray
    edited: np.ndarray
    parts: np.ndarray
    score: np.ndarray
    lost: int


def first_garments(predictor: Predictor, images: Sequence[np.ndarray]) -> list[Garment | None]:
    """The best detection of each image."""
    out: list[Garment | None] = []
    for start in range(0, len(images), 16):
        out += [found[0] if found else None for found in predictor.predict(images[start : start + 16])]
    return out


def labelled_pairs(
    predictor: Predictor,
    garments: Sequence[LabelledGarment],
    seed: int,
    copies: Sequence[int] = (0, 0, 1, 1, 2, 3),
) -> LabelledPairs:
    """Each garment against ``copies`` of it, by how many parts are edited."""
    swap = Taxonomy.load("clothing11").swap
    images, states, counts = [], [], []
    for index, garment in enumerate(garments):
        rng = np.random.default_rng((seed, index))
        subject = subject_of(garment)
        images.append(garment.read())
        for count in copies:
            donor = garments[int(rng.integers(len(garments)))]
            # Evenly, not by Table 1: each region's threshold needs as many edited ones as the chest's.
            free = [p for p in PART_REGIONS if p != "sleeves" or not garment.absent[1:3].all()]
            parts = tuple(str(p) for p in rng.permutation(free)[:count])
            edited, _ = edit_parts(subject, parts, rng, subject_of(donor))
            states.append(edited_regions(subject, edited, parts))
            counts.append(len(parts))
            images.append(rephotograph(edited, rng, CALIBRATION_CAMERA, swap=swap, other=donor.read()).pixels)
    found = first_garments(predictor, images)
    cos, comparable, edited_rows, parts_rows, lost = [], [], [], [], 0
    per = 1 + len(copies)
    for index in range(len(garments)):
        original = found[index * per]
        for c in range(len(copies)):
            copy = found[index * per + 1 + c]
            if original is None or copy is None:
                lost += 1
                continue
            one, both = cosines(original.features, original.presence, copy.features, copy.presence)
            cos.append(one)
            comparable.append(both)
            edited_rows.append(states[index * len(copies) + c])
            parts_rows.append(counts[index * len(copies) + c])
    stacked, both = np.array(cos, np.float32), np.array(comparable)
    return LabelledPairs(
        stacked,
        both,
        np.array(edited_rows),
        np.array(parts_rows),
        best_regions_score(stacked, both, np.ones(NUM_REGIONS)),
        lost,
    )


def kept_thresholds(pairs: LabelledPairs) -> tuple[float, ...]:
    """Per region the cosine that separates kept from edited regions with the least balanced error.

    Only regions seen on both sides count: absent against present is a change at any threshold. The sleeves
    share theirs, which is fitted on both.
    """
    thresholds = []
    for regions in ([0], [1, 2], [1, 2], [3], [4]):
        cos, edited = pairs.cos[:, regions], pairs.edited[:, regions]
        usable = pairs.comparable[:, regions] & (cos != 0)
        kept, changed = np.sort(cos[usable & (edited == 0)]), np.sort(cos[usable & (edited == 1)])
        candidates = np.linspace(0, 0.98, 197)
        error = np.searchsorted(kept, candidates) / max(len(kept), 1)
        error += 1 - np.searchsorted(changed, candidates) / max(len(changed), 1)
        thresholds.append(round(float(candidates[int(error.argmin())]), 3))
    return tuple(thresholds)


def stranger_scores(predictor: Predictor, images: Sequence[Path], sellers: Sequence[str]) -> np.ndarray:
    """(n,) for every garment the score of its best partner in a catalogue without copies, greatest first.

    Pairs of one seller do not count: they are never reported, and shops photograph one garment twice.
    """
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in images]
    found = [
        (g, s) for g, s in zip(first_garments(predictor, pictures), sellers, strict=True) if g is not None
    ]
    features = np.stack([g.features for g, _ in found])
    presence = np.stack([g.presence for g, _ in found])
    seller = np.array([s for _, s in found])
    best = np.zeros(len(found), np.float32)
    for start in range(0, len(found), 256):
        rows = slice(start, start + 256)
        cos, both = block_cosines(features[rows], presence[rows], features, presence)
        score = best_regions_score(cos, both, np.ones(NUM_REGIONS, np.float32))
        score[seller[rows, None] == seller[None]] = -1
        best[rows] = score.max(1)
    return np.sort(best)[::-1]


def calibrate(
    predictor: Predictor,
    garments: Sequence[LabelledGarment],
    strangers: Sequence[tuple[Path, str]],
    seed: int,
    false_per_item: float = 1 / 200,
) -> tuple[Calibration, dict[str, float]]:
    """Thresholds and the figures they stand on.

    ``suspect_threshold`` is the score that at most ``false_per_item`` of a catalogue without copies reach,
    and not less than the score below which fewer than 2 % of the true copies lie.
    """
    pairs = labelled_pairs(predictor, garments, seed)
    copies = pairs.score[pairs.parts <= 2]
    background = (
        stranger_scores(predictor, *zip(*strangers, strict=True)) if strangers else np.zeros(1, np.float32)
    )
    allowed = int(2 * false_per_item * len(background))  # a false pair raises the best score of two garments
    threshold = float(max(background[min(allowed, len(background) - 1)], np.quantile(copies, 0.02)))
    calibration = replace(
        Calibration.default(), kept_threshold=kept_thresholds(pairs), suspect_threshold=round(threshold, 4)
    )
    figures = {
        "pairs": float(len(pairs.score)),
        "lost": float(pairs.lost),
        "strangers": float(len(background)),
        "copies above the suspect threshold": float((copies >= threshold).mean()),
        "median score of copies": float(np.median(copies)),
        "median best stranger": float(np.median(background)),
    }
    return calibration, figures
