"""Consumer-to-shop retrieval scored as DeepFashion2 scores it: top-k accuracy of garments detected in
photographs.

Every sought garment of a user's photograph is stood for by the detection that overlaps it most, is of its
category and, among those, has the highest score; without one it counts as missed. A retrieved garment is
right where it overlaps a garment of the same pair and style in its shop photograph with an IoU of at least
0.5.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from psnet.boxes import overlaps
from psnet.data.deepfashion2_results import RetrievalResult

MIN_IOU = 0.5
TOP = (1, 5, 10, 15, 20)


def _boxes(entries: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.array([entry["bbox"] for entry in entries], np.float64)


def retrieval_accuracy(
    queries: Sequence[Mapping[str, Any]],
    gallery: Sequence[Mapping[str, Any]],
    results: Sequence[RetrievalResult],
) -> dict[str, float]:
    """``top1``, ``top5``, … ``top20``: share of the sought garments (style above 0) whose design is among as
    many of the best; ``missed``: share of them that no detection stood for.

    ``queries`` and ``gallery`` as `psnet.data.deepfashion2_results.retrieval_ground_truth` makes them. Raises
    ValueError when no garment is sought, or one has nothing in the gallery.
    """
    asked: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in queries:
        asked[entry["query_image_id"]].append(entry)
    designs: dict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    for entry in gallery:
        designs[entry["pair_id"], entry["style"]].append(entry)
    found: dict[int, list[RetrievalResult]] = defaultdict(list)
    for result in results:
        found[result.query_image_id].append(result)
    sought = missed = 0
    first_right: list[int] = []  # place of the first right one, from 0
    for image_id, entries in asked.items():
        own = found[image_id]
        stands_for = (
            overlaps(np.array([r.query_box for r in own])[:, None], _boxes(entries)).argmax(1)
            if own
            else np.empty(0, int)
        )
        for place, entry in enumerate(entries):
            if entry["style"] <= 0:
                continue
            sought += 1
            right = designs[entry["pair_id"], entry["style"]]
            if not right:
                raise ValueError(
                    f"query image {image_id}: nothing in the gallery has pair_id {entry['pair_id']} and style"
                    f" {entry['style']}"
                )
            candidates = [
                result
                for result, garment in zip(own, stands_for, strict=True)
                if garment == place and result.query_category == entry["cls"]
            ]
            if not candidates:
                missed += 1
                continue
            best = max(candidates, key=lambda result: result.query_score)
            overlap = overlaps(best.gallery_boxes[:, None], _boxes(right)) >= MIN_IOU
            same = best.gallery_image_ids[:, None] == np.array([e["gallery_image_id"] for e in right])[None]
            hits = np.flatnonzero((overlap & same).any(1))
            first_right += [int(hits[0])] if len(hits) else []
    if not sought:
        raise ValueError("no query garment has a style above 0")
    figures = {f"top{k}": sum(place < k for place in first_right) / sought for k in TOP}
    return figures | {"missed": missed / sought}
