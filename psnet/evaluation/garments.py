"""The garments of a benchmark as one table of arrays, computed once per model and kept on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from psnet.evaluation.benchmark import Benchmark
from psnet.predictor import Garment, Predictor
from psnet.regions import NUM_REGIONS, Presence
from psnet.similarity import group_rows
from psnet.taxonomy import Taxonomy

# Pictures in memory at once.
_PICTURES = 16
# Raised when a table's columns or the code that makes them change: older files are then computed anew.
_FORMAT = 4

Progress = Callable[[int, int], None]
"""Called with how many of how many are done."""


@dataclass(frozen=True)
class GarmentTable:
    """n garments in the order of their items.

    ``item`` (n,) int32 row of the benchmark's items; ``group`` (n,) int8 row of ``psnet.regions.GROUPS``;
    ``box`` (n, 4) and ``region_boxes`` (n, 5, 4) px; ``presence`` (n, 5) uint8;
    ``landmarks`` (n, K, 2) px; ``features``, ``mirrored``
    (n, 5, d) float16, as a catalogue's garments are stored.
    """

    item: np.ndarray
    group: np.ndarray
    box: np.ndarray
    region_boxes: np.ndarray
    presence: np.ndarray
    landmarks: np.ndarray
    features: np.ndarray
    mirrored: np.ndarray

    def __len__(self) -> int:
        return len(self.item)

    @cached_property
    def exact(self) -> tuple[np.ndarray, np.ndarray]:
        """``features`` and ``mirrored`` in float32, what every product is taken of."""
        return self.features.astype(np.float32), self.mirrored.astype(np.float32)

    def of_item(self, row: int) -> np.ndarray:
        """Rows of an item's garments."""
        return np.arange(*np.searchsorted(self.item, (row, row + 1)))


def gather(
    predictor: Predictor,
    benchmark: Benchmark,
    *,
    true_boxes: bool = False,
    rows: Sequence[int] | None = None,
    read: Callable[[int], np.ndarray] | None = None,
    progress: Progress | None = None,
) -> GarmentTable:
    """Garments of every item; with ``true_boxes`` those of the benchmark's boxes where it knows them.

    Of a branch without regions every block counts as present.

    Args:
        rows: only of these items, in order. read: the picture of an item's row instead of its photograph.

    Raises:
        ValueError: a picture cannot be read, or true boxes are wanted and the benchmark has none.
    """
    if true_boxes and not benchmark.boxes:
        raise ValueError(f"{benchmark.name}: has no boxes.jsonl, true boxes cannot be used")
    chosen = range(len(benchmark.items)) if rows is None else rows
    picture = read or benchmark.picture
    found: list[tuple[int, Garment]] = []
    for start in range(0, len(chosen), _PICTURES):
        chunk = chosen[start : start + _PICTURES]
        pictures = [picture(row) for row in chunk]
        names = [benchmark.items[row].item_id for row in chunk]
        given = [i for i, name in enumerate(names) if true_boxes and name in benchmark.boxes]
        free = [i for i in range(len(chunk)) if i not in given]
        garments: dict[int, list[Garment]] = dict(
            zip(free, predictor.predict([pictures[i] for i in free]), strict=True)
        )
        if given:
            known = [benchmark.boxes[names[i]] for i in given]
            described = predictor.describe(
                [pictures[i] for i in given],
                np.stack([boxes.box for boxes in known]),
                np.stack([boxes.region_boxes for boxes in known]),
            )
            garments.update((i, [garment]) for i, garment in zip(given, described, strict=True))
        found += [(row, garment) for i, row in enumerate(chunk) for garment in garments[i]]
        if progress:
            progress(start + len(chunk), len(chosen))
    return _table(found, predictor)


def cached(path: Path, make: Callable[[], GarmentTable]) -> GarmentTable:
    """The table in the npz file that ``path`` is the beginning of, made and written when it is not there."""
    names = [field.name for field in fields(GarmentTable)]
    path = path.with_name(f"{path.name}-v{_FORMAT}.npz")
    if path.is_file():
        with np.load(path, allow_pickle=False) as arrays:
            return GarmentTable(**{name: arrays[name] for name in names})
    table = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
    np.savez(temporary, **{name: getattr(table, name) for name in names})
    os.replace(temporary, path)
    return table


def _table(rows: list[tuple[int, Garment]], predictor: Predictor) -> GarmentTable:
    dim = predictor.model.config.feature_dim
    points = len(Taxonomy.load(predictor.model.config.taxonomy).landmarks)
    garments = [garment for _, garment in rows]
    presence = _stack([g.presence for g in garments], (NUM_REGIONS,), np.uint8)
    if not predictor.model.retrieval.regional:
        presence = np.full_like(presence, Presence.PRESENT)
    return GarmentTable(
        item=np.array([row for row, _ in rows], np.int32),
        group=group_rows([g.group for g in garments]).astype(np.int8),
        box=_stack([g.box for g in garments], (4,), np.float32),
        region_boxes=_stack([g.region_boxes for g in garments], (NUM_REGIONS, 4), np.float32),
        presence=presence,
        landmarks=_stack([g.landmarks[:, :2] for g in garments], (points, 2), np.float32),
        features=_stack([g.features for g in garments], (NUM_REGIONS, dim), np.float16),
        mirrored=_stack([g.mirrored_features for g in garments], (NUM_REGIONS, dim), np.float16),
    )


def _stack(arrays: list[np.ndarray], shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.stack(arrays).astype(dtype) if arrays else np.zeros((0, *shape), dtype)
