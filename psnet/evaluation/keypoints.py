"""Landmarks scored as DeepFashion2 scores them: average precision over object keypoint similarity (OKS).

OKS is COCO's: exp(−d² / (2 · area · (2σ)²)) averaged over a garment's labelled landmarks, with a σ of its
own for each of the 294 (``deepfashion2_sigmas.yaml``), the area of the box, and results matched inside a
category. The computation is pycocotools' own.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from psnet.taxonomy import Taxonomy

_SIGMAS = Path(__file__).with_name("deepfashion2_sigmas.yaml")
_VISIBLE = 2
# In the order of pycocotools' summary of keypoints.
_FIGURES = ("AP", "AP50", "AP75", "AP_medium", "AP_large", "AR", "AR50", "AR75", "AR_medium", "AR_large")


@functools.cache
def deepfashion2_sigmas() -> np.ndarray:
    """(294,) float64: how far off each landmark may be, in units of the root of the garment's area."""
    by_category = yaml.safe_load(_SIGMAS.read_text(encoding="utf-8"))
    sigmas = np.zeros(len(Taxonomy.load("deepfashion2")))
    for name, category in Taxonomy.load("deepfashion2").categories.items():
        sigmas[category.indices] = by_category[name]
    sigmas.flags.writeable = False
    return sigmas


def _visible_only(annotation: Mapping[str, Any]) -> dict[str, Any]:
    """The annotation with its occluded landmarks no longer labelled."""
    keypoints = list(annotation["keypoints"])
    count = 0
    for place in range(2, len(keypoints), 3):
        if keypoints[place] == _VISIBLE:
            count += 1
        else:
            keypoints[place] = 0
    return {**annotation, "keypoints": keypoints, "num_keypoints": count}


def _evaluate(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    # Only evaluation needs pycocotools.
    coco: Any = importlib.import_module("pycocotools.coco")
    cocoeval: Any = importlib.import_module("pycocotools.cocoeval")

    with contextlib.redirect_stdout(io.StringIO()):
        wanted = coco.COCO()
        wanted.dataset = {**truth, "annotations": [dict(a) for a in truth["annotations"]]}
        wanted.createIndex()
        evaluation = cocoeval.COCOeval(wanted, wanted.loadRes([dict(r) for r in results]), "keypoints")
        evaluation.params.kpt_oks_sigmas = deepfashion2_sigmas()
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(_FIGURES, evaluation.stats, strict=True)}


def oks_average_precision(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """AP and AR of landmark results, over OKS 0.50 … 0.95, at 0.50, at 0.75, and by size of the garment.

    ``ground_truth`` as `psnet.data.deepfashion2_results.coco_ground_truth` makes it, ``results`` the entries
    of a keypoint result file. ``AP`` and the rest count visible and occluded landmarks, ``AP_visible`` and
    the rest visible ones only; -1 where no garment is of that kind. At most 20 results count per image and
    category. Raises ValueError when there are no results, when one is of an image that the ground truth
    lacks, or when a row has other than 294 keypoints.
    """
    if not results:
        raise ValueError("no keypoint results")
    known = {image["id"] for image in ground_truth["images"]}
    numbers = 3 * len(deepfashion2_sigmas())
    for place, row in enumerate(results, 1):
        if row["image_id"] not in known:
            raise ValueError(f"result {place}: the ground truth has no image {row['image_id']!r}")
        if len(row["keypoints"]) != numbers:
            raise ValueError(f"result {place}: {len(row['keypoints'])} numbers, not {numbers}")
    visible = {**ground_truth, "annotations": [_visible_only(a) for a in ground_truth["annotations"]]}
    figures = _evaluate(ground_truth, results)
    return figures | {f"{name}_visible": value for name, value in _evaluate(visible, results).items()}
