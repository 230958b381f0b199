"""Landmarks and regions of labelled photographs, through the whole chain or from true garment boxes.

The normalised error is a point's distance over the longer side of the garment's true box, of visible points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from psnet.boxes import overlaps
from psnet.data.photographs import LabelledGarment
from psnet.evaluation import paper
from psnet.evaluation.detection import (
    Photograph,
    best_overlap,
    bootstrap_ap,
    matches,
    predict_all,
)
from psnet.evaluation.intervals import Estimate, bootstrap_mean, wilson, wilson_of_clusters
from psnet.evaluation.keypoints import deepfashion2_sigmas
from psnet.evaluation.tables import Cell, Table
from psnet.predictor import Garment, Predictor
from psnet.regions import REGIONS, Presence
from psnet.taxonomy import Taxonomy, to_clothing11

PARTS: dict[str, tuple[str, ...]] = {
    "collar": ("left_collar", "right_collar", "collar_bottom"),
    "armpits": ("left_armpit", "right_armpit"),
    "sleeves": ("left_sleeve", "right_sleeve"),
    "waistline": ("left_waistline", "right_waistline"),
    "hem": ("left_hem", "right_hem"),
}
_VISIBLE = 2
# A garment found with less overlap is another one.
_SAME = 0.3


@dataclass(frozen=True)
class LandmarkFigures:
    """``found``: share of labelled garments with a detection on them; the rest stand on those.

    ``error``: by part and "overall", means over garments; ``iou``: of region boxes, by region and "overall",
    where the garment has the region; ``presence``: by region and "overall", present and absent told right.
    ``ap``, ``ap50``: over OKS 0.5 to 0.95 and at 0.5, of any torso garment, not of each category by itself.
    """

    found: Estimate
    error: Mapping[str, Estimate]
    iou: Mapping[str, Estimate]
    presence: Mapping[str, Estimate]
    ap: Estimate
    ap50: Estimate


def seen_garments(
    predictor: Predictor, shown: Sequence[Photograph], *, true_boxes: bool
) -> list[list[Garment]]:
    """What the chain says of every photograph or, with ``true_boxes``, what the landmark branch sees in the
    true boxes of its garments, in their order."""
    if not true_boxes:
        return predict_all(predictor, [p.pixels for p in shown])
    return [
        predictor.describe([p.pixels] * len(p.garments), np.stack([g.box for g in p.garments])) for p in shown
    ]


def landmark_figures(
    shown: Sequence[Photograph],
    seen: Sequence[Sequence[Garment]],
    unsure: Sequence[Sequence[Garment]],
    seed: int = 0,
) -> LandmarkFigures:
    """Figures of the labelled garments, each with the detection that overlaps it most.

    Args:
        seen: the garments found in every photograph, surest first. unsure: the same with those of which the
            chain is hardly sure, for the precision-recall curves behind AP.
    """
    names = Taxonomy.load("clothing11").landmarks
    places = {part: [names.index(n) for n in of_part] for part, of_part in PARTS.items()}
    errors: dict[str, list[float]] = {part: [] for part in (*PARTS, "overall")}
    ious: dict[str, list[float]] = {name: [] for name in (*REGIONS, "overall")}
    told: dict[str, list[bool]] = {name: [] for name in REGIONS}
    count = found = 0
    for photograph, garments in zip(shown, seen, strict=True):
        for true in photograph.garments:
            count += 1
            best = best_overlap(garments, true.box)
            if best is None or best[1] < _SAME:
                continue
            found += 1
            said = best[0]
            distance = np.linalg.norm(said.landmarks[:, :2] - true.landmarks[:, :2], axis=-1)
            distance /= max(true.box[2:] - true.box[:2])
            visible = true.landmarks[:, 2] == _VISIBLE
            for part, at in places.items():
                if visible[at].any():
                    errors[part].append(float(distance[at][visible[at]].mean()))
            if visible.any():
                errors["overall"].append(float(distance[visible].mean()))
            iou = overlaps(said.region_boxes, np.nan_to_num(true.region_boxes))
            for r, name in enumerate(REGIONS):
                told[name].append(bool((said.presence[r] == Presence.PRESENT) == (not true.absent[r])))
                if not true.absent[r]:
                    ious[name].append(float(iou[r]))
            if not true.absent.all():
                ious["overall"].append(float(iou[~true.absent].mean()))
    every = np.array(list(told.values())).reshape(len(REGIONS), -1)
    ap, ap50 = bootstrap_ap(
        [_keypoint_curve(p, garments) for p, garments in zip(shown, unsure, strict=True)], seed
    )
    return LandmarkFigures(
        wilson(found, count),
        {part: bootstrap_mean(values, seed) for part, values in errors.items()},
        {name: bootstrap_mean(values, seed) for name, values in ious.items()},
        {
            **{name: wilson(sum(rights), len(rights)) for name, rights in told.items()},
            "overall": wilson_of_clusters(every.sum(0), np.full(every.shape[1], len(REGIONS))),
        },
        ap,
        ap50,
    )


def _keypoint_curve(
    photograph: Photograph, garments: Sequence[Garment]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores, hits by OKS and number of labelled garments."""
    similarity = np.zeros((len(garments), len(photograph.garments)))
    for k, true in enumerate(photograph.garments):
        for m, said in enumerate(garments):
            similarity[m, k] = keypoint_similarity(true, said.landmarks)
    return np.array([g.score for g in garments]), matches(similarity), len(photograph.garments)


def keypoint_similarity(true: LabelledGarment, said: np.ndarray) -> float:
    """OKS of landmarks (11, 3) with the labelled ones: exp(−d² / (2 · area · (2σ)²)), averaged over the
    points that are visible or estimated; 0 where none is.

    DeepFashion2's σ, of each of the eleven points the mean of those it is made of; the area is the box's.
    """
    labelled = true.landmarks[:, 2] > 0
    if not labelled.any():
        return 0.0
    sigma = _sigmas(true.category)[labelled]
    area = float((true.box[2:] - true.box[:2]).prod())
    square = ((said[labelled, :2] - true.landmarks[labelled, :2]) ** 2).sum(-1)
    return float(np.exp(-square / (2 * area * (2 * sigma) ** 2)).mean())


@cache
def _sigmas(category: str) -> np.ndarray:
    """(11,) σ of the points of a category; of those it lacks (a vest's cuffs) the mean of the others'."""
    own = deepfashion2_sigmas()[Taxonomy.load("deepfashion2").category(category).indices]
    # Sigmas mix as coordinates do.
    mixed = to_clothing11(category, np.stack([own, own, np.full(len(own), 2)], 1).astype(np.float32))[:, 0]
    return np.where(mixed > 0, mixed, mixed[mixed > 0].mean())


def error_table(title: str, note: str, columns: Mapping[str, LandmarkFigures]) -> Table:
    """A row per part, a column per way of measuring, beside the paper's."""
    rows: list[tuple[Cell, ...]] = [
        (part, *(figures.error[part] for figures in columns.values()), paper.LANDMARKS.get(part))
        for part in (*PARTS, "overall")
    ]
    rows.append(("garments found", *(figures.found for figures in columns.values()), None))
    return Table(title, note, ("part", *columns, "paper: DeepFashion"), tuple(rows))


def region_table(title: str, note: str, columns: Mapping[str, LandmarkFigures]) -> Table:
    """A row per region: overlap of its box and whether its presence is told right."""
    rows: list[tuple[Cell, ...]] = []
    for name in (*REGIONS, "overall"):
        cells: list[Cell] = [name]
        for figures in columns.values():
            cells += [figures.iou[name], figures.presence[name]]
        rows.append(tuple(cells))
    heads = [f"{column}: {what}" for column in columns for what in ("IoU", "presence right")]
    return Table(title, note, ("region", *heads), tuple(rows))


def keypoint_table(title: str, note: str, rows: Mapping[str, LandmarkFigures]) -> Table:
    """A row per way of finding the garments."""
    columns = ("landmarks", "garments", "OKS AP", "AP at OKS 0.5", "paper: AP, DeepFashion2")
    cells = tuple((name, f.found.count, f.ap, f.ap50, paper.KEYPOINT_AP) for name, f in rows.items())
    return Table(title, note, columns, cells)
