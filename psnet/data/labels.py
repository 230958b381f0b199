"""Labelled garments from whatever lies at a path: a label file, or a public data set as it was published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from psnet.data.deepfashion2 import read_deepfashion2_labels, split_folders
from psnet.data.photographs import LabelledGarment, read_labels


def read_any_labels(
    path: Path, splits: Sequence[str] | None = None, upright_only: bool = True
) -> list[LabelledGarment]:
    """The labelled garments at ``path``; ``splits`` keeps only the named ones.

    A file is a label file (`psnet.data.photographs`); a folder is DeepFashion2 (`psnet.data.deepfashion2`),
    or has a ``labels.jsonl``. Raises FileNotFoundError when nothing lies there, ValueError for a folder that
    is neither and, with file and line or item, for a label that is none.
    """
    if not path.is_dir():
        return read_labels(path, splits, upright_only)
    if (path / "labels.jsonl").is_file():
        return read_labels(path / "labels.jsonl", splits, upright_only)
    if split_folders(path):
        return read_deepfashion2_labels(path, splits, upright_only)
    raise ValueError(
        f"{path}: no labels in this folder; needed: labels.jsonl, or DeepFashion2's annos/, train/annos/ or"
        " validation/annos/"
    )
