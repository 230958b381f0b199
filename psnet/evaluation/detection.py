"""Detection: is the garment found, is its box right, and how often is something else taken for one.

Categories do not count: detected is "a garment of the torso", as the pipeline uses it; whether its group is
right is a figure of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from psnet.boxes import overlaps
from psnet.data.photographs import LabelledGarment
from psnet.evaluation.benchmark import read_picture
from psnet.evaluation.intervals import (
    NOTHING,
    RESAMPLES,
    Estimate,
    bootstrap_mean,
    wilson,
)
from psnet.evaluation.tables import Cell, Table
from psnet.predictor import Garment, Predictor
from psnet.taxonomy import Taxonomy

# COCO's: AP is the mean over these overlaps, precision is read at 101 values of recall.
THRESHOLDS = np.round(np.arange(0.5, 0.96, 0.05), 2)
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Photograph:
    """What is shown in a picture: one labelled garment or more."""

    pixels: np.ndarray
    garments: tuple[LabelledGarment, ...]


def photographs(garments: Sequence[LabelledGarment]) -> list[Photograph]:
    """Labelled garments by the picture that shows them. Raises ValueError for a picture that cannot be
    read."""
    by_path: dict[str, list[LabelledGarment]] = {}
    for garment in garments:
        by_path.setdefault(str(garment.image_path), []).append(garment)
    return [Photograph(read_picture(shown[0].image_path), tuple(shown)) for shown in by_path.values()]


def matches(similarity: np.ndarray) -> np.ndarray:
    """Which detections of one picture hit, (m, thresholds) bool.

    As COCO's evaluation has it: the surest detection first, each takes the free true garment it is most
    similar to, if by at least the threshold.

    Args:
        similarity: (m, k) of detections, surest first, and true garments: the boxes' overlap, or OKS.
    """
    hit = np.zeros((len(similarity), len(THRESHOLDS)), bool)
    for t, threshold in enumerate(THRESHOLDS):
        free = np.ones(similarity.shape[1], bool)
        for m, row in enumerate(similarity):
            candidates = np.where(free, row, -1.0)
            if candidates.max(initial=-1.0) >= threshold:
                free[candidates.argmax()] = False
                hit[m, t] = True
    return hit


def average_precision(scores: np.ndarray, hit: np.ndarray, true: int) -> np.ndarray:
    """COCO's AP per threshold, (thresholds,): the mean over 101 recalls of the best precision from there on.

    Args:
        scores: (n,) of all detections; hit: (n, thresholds) of ``matches``; true: number of true boxes.
    """
    order = np.argsort(-scores, kind="mergesort")
    found = np.cumsum(hit[order], axis=0)
    out = np.zeros(hit.shape[1])
    if not len(scores) or not true:
        return out
    precision = found / np.arange(1, len(scores) + 1)[:, None]
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    for t in range(hit.shape[1]):
        at = np.searchsorted(found[:, t] / true, _RECALLS, side="left")
        out[t] = np.where(at < len(scores), precision[np.minimum(at, len(scores) - 1), t], 0).mean()
    return out


@dataclass(frozen=True)
class DetectionFigures:
    """``ap``: mean over ``THRESHOLDS``, ``ap50``: at 0.5; ``recall``: garments found with overlap 0.5 among
    those that count (``Predictor.min_score``); ``iou``: of the garments found; ``group``: of these, group
    right; ``empty``: pictures without a garment in which one is seen."""

    ap: Estimate
    ap50: Estimate
    recall: Estimate
    iou: Estimate
    group: Estimate
    empty: Estimate


def evaluate_detection(
    predictor: Predictor,
    unsure: Predictor,
    shown: Sequence[Photograph],
    empty: Sequence[np.ndarray],
    *,
    seed: int = 0,
) -> DetectionFigures:
    """Figures of the whole chain on photographs.

    Args:
        predictor: as the pipeline has it. unsure: the same with a ``min_score`` low enough for the
            precision-recall curve behind AP; not for the other figures, because where the chain looks again
            and what gives way to what depend on it.
        empty: pictures that show no garment of the torso.
    """
    pixels = [p.pixels for p in shown]
    curves = []
    ious, hits, groups = [], [], []
    taxonomy = Taxonomy.load("clothing11")
    found = zip(shown, predict_all(predictor, pixels), predict_all(unsure, pixels), strict=True)
    for photograph, counted, garments in found:
        true = np.stack([g.box for g in photograph.garments])
        boxes = np.stack([g.box for g in garments]) if garments else np.zeros((0, 4), np.float32)
        scores = np.array([g.score for g in garments])
        curves.append((scores, matches(overlaps(boxes[:, None], true[None])), len(true)))
        for labelled in photograph.garments:
            best = best_overlap(counted, labelled.box)
            hits.append(best is not None and best[1] >= THRESHOLDS[0])
            if best is not None and hits[-1]:
                ious.append(best[1])
                groups.append(best[0].group == taxonomy.category(labelled.category).group)
    seen = [bool(garments) for garments in predict_all(predictor, empty)]
    ap, ap50 = bootstrap_ap(curves, seed)
    return DetectionFigures(
        ap,
        ap50,
        wilson(sum(hits), len(hits)),
        bootstrap_mean(ious, seed),
        wilson(sum(groups), len(groups)),
        wilson(sum(seen), len(seen)),
    )


def predict_all(predictor: Predictor, images: Sequence[np.ndarray]) -> list[list[Garment]]:
    """The garments of any number of pictures, sixteen at a time."""
    return [
        garments
        for start in range(0, len(images), 16)
        for garments in predictor.predict(images[start : start + 16])
    ]


def best_overlap(garments: Sequence[Garment], box: np.ndarray) -> tuple[Garment, float] | None:
    """The garment that overlaps ``box`` (4,) most, with its IoU; None when none does."""
    if not garments:
        return None
    iou = overlaps(np.stack([g.box for g in garments]), box)
    best = int(iou.argmax())
    return (garments[best], float(iou[best])) if iou[best] > 0 else None


def bootstrap_ap(
    curves: Sequence[tuple[np.ndarray, np.ndarray, int]], seed: int = 0
) -> tuple[Estimate, Estimate]:
    """AP over all thresholds and at 0.5, intervals by resampling photographs.

    Args:
        curves: for every photograph the scores (m,), the hits (m, thresholds) and the number of true
            garments.
    """
    true = sum(count for _, _, count in curves)
    if not true:
        return NOTHING, NOTHING

    def of(chosen: Sequence[int] | np.ndarray) -> tuple[float, float]:
        scores = np.concatenate([curves[i][0] for i in chosen])
        hit = np.concatenate([curves[i][1] for i in chosen])
        per_threshold = average_precision(scores, hit, sum(curves[i][2] for i in chosen))
        return float(per_threshold.mean()), float(per_threshold[0])

    rng = np.random.default_rng(seed)
    value = of(range(len(curves)))
    drawn = np.array([of(rng.integers(len(curves), size=len(curves))) for _ in range(RESAMPLES)])
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    ap, ap50 = (Estimate(value[i], float(low[i]), float(high[i]), true) for i in range(2))
    return ap, ap50


def detection_table(title: str, note: str, rows: Sequence[tuple[str, DetectionFigures]]) -> Table:
    """A row per set of photographs."""
    columns = (
        "photographs",
        "garments",
        "AP",
        "AP at IoU 0.5",
        "recall at IoU 0.5",
        "mean IoU",
        "group right",
        "empty pictures",
        "with a false garment",
    )
    cells: list[tuple[Cell, ...]] = [
        (name, f.recall.count, f.ap, f.ap50, f.recall, f.iou, f.group, f.empty.count, f.empty)
        for name, f in rows
    ]
    return Table(title, note, columns, tuple(cells))
