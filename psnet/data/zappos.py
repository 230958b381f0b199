"""Zappos50k triplets as conditional similarity networks published them (Veit et al., CVPR 2017).

Source: https://github.com/andreasveit/conditional-similarity-networks. ROOT has ``filenames.json`` (its name
notwithstanding one path a line), ``ut-zap50k-images/`` with the images, and ``tripletlists/`` with
``ATTRIBUTE_tripletlist_SPLIT.txt`` (class, closure, gender, heel; train, val, test), lines of three image
numbers: anchor, far, close.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from psnet.data.attributes import AttributeDataError, check_index, read_lines, read_numbers

DATASET = "Zappos50k"
ATTRIBUTES = ("class", "closure", "gender", "heel")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ListedTriplets:
    """``triplets`` (t, 4) int64: attribute (place in `ATTRIBUTES`), anchor, positive, negative image."""

    paths: tuple[Path, ...]
    triplets: np.ndarray


def read_zappos(root: Path, split: str, *, skip_missing: bool = False) -> ListedTriplets:
    """The triplets of ``split``, one of `SPLITS`.

    Args:
        skip_missing: leave out triplets of images that are not there; otherwise they are an error.

    Raises:
        AttributeDataError: a file is missing or is not in the layout.
    """
    if split not in SPLITS:
        raise AttributeDataError(f"{DATASET} has no split {split!r}; known: {', '.join(SPLITS)}")
    listing = root / "filenames.json"
    paths = tuple(root / "ut-zap50k-images" / line for _, line in read_lines(listing))
    rows = []
    for attribute, name in enumerate(ATTRIBUTES):
        for place, numbers in read_numbers(root / "tripletlists" / f"{name}_tripletlist_{split}.txt"):
            if len(numbers) != 3:
                raise AttributeDataError(f"{place}: {len(numbers)} numbers; needed: anchor, far, close")
            for number in numbers:
                check_index(place, number, len(paths))
            anchor, far, close = numbers
            rows.append((attribute, anchor, close, far))
    triplets = np.array(rows, np.int64).reshape(-1, 4)
    used = np.unique(triplets[:, 1:])
    missing = np.array([i for i in used if not paths[i].is_file()], np.int64)
    if len(missing) and not skip_missing:
        raise AttributeDataError(
            f"{listing}: {len(missing)} of {len(used)} images are not there, the first {paths[missing[0]]}; "
            "fetch them, or set skip_missing=true"
        )
    return ListedTriplets(paths, triplets[~np.isin(triplets[:, 1:], missing).any(1)])
