"""Copies as they are found: a design, another photograph of it, and a photograph of its copy, each taken by
itself.

An edited photograph (`psnet.train.retrieval.RetrievalSamples`) shows the folds of the original. These do not:
cloth, pose, background and light are new in each, so what two of them share is the design. They come from
folders in the layout of `psnet.data.plagiarized_fashion`, rendered ones or a collection of one's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from psnet.boxes import mirror_boxes
from psnet.data.edits import PART_REGIONS
from psnet.data.photographs import read_pixels
from psnet.data.plagiarized_fashion import read_plagiarized_fashion
from psnet.regions import GROUPS, MIRROR, NUM_REGIONS, REGIONS
from psnet.train.loop import Samples
from psnet.train.retrieval import IGNORED, drawn, jittered, region_pictures


@dataclass(frozen=True)
class _Photograph:
    path: Path
    region_boxes: np.ndarray
    mirrored: bool

    def upright(self) -> tuple[Image.Image, np.ndarray]:
        """The picture and its region boxes (5, 4), flipped back where the copyist flipped it."""
        pixels, boxes = read_pixels(self.path), self.region_boxes
        if self.mirrored:
            boxes = mirror_boxes(boxes, pixels.shape[1])[list(MIRROR)]
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        return Image.fromarray(pixels), boxes


@dataclass(frozen=True)
class _Copy:
    photograph: _Photograph
    modified: tuple[str, ...]


@dataclass(frozen=True)
class _Design:
    """``same``: other photographs of it; ``copies``: at least one."""

    original: _Photograph
    group: str
    same: tuple[_Photograph, ...]
    copies: tuple[_Copy, ...]


class CopySamples:
    """Three photographs a sample, as `RetrievalSamples` has them for a branch with a crop per region: the
    original, an identical copy (the original again where there is none) and another copy. Designs are gone
    through, not copies: two copies of one original in a batch would make a stranger of it.

    Raises:
        FileNotFoundError: a folder lacks a table.
        ValueError: a row that does not fit, a photograph without boxes, or no copy that differs.
    """

    def __init__(self, folders: Sequence[Path], seed: int, side: int, box_noise: float) -> None:
        self.seed, self.side, self.box_noise = seed, side, box_noise
        self.designs = [design for folder in folders for design in _designs_in(folder)]
        if not self.designs:
            raise ValueError(f"{', '.join(map(str, folders))}: no copy that differs from its original")

    def sample(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, 3, index))
        chosen = self.designs[drawn((self.seed, 4), index, len(self.designs))]
        same = chosen.same or (chosen.original,)
        copy = chosen.copies[int(rng.integers(len(chosen.copies)))]
        shown = (chosen.original, same[int(rng.integers(len(same)))], copy.photograph)
        design = np.zeros((len(shown), NUM_REGIONS), np.int64)
        pictures = []
        for v, photograph in enumerate(shown):
            picture, boxes = photograph.upright()
            design[v] = np.where(np.isnan(boxes[:, 0]), IGNORED, 0)
            pictures.append(region_pictures(picture, jittered(boxes, rng, self.box_noise), self.side))
        edited = [REGIONS.index(name) for part in copy.modified for name in PART_REGIONS[part]]
        design[2, edited] = np.where(design[2, edited] == IGNORED, IGNORED, 1)
        return {
            "regions": torch.from_numpy(np.stack(pictures)),
            "design": torch.from_numpy(design),
            "group": torch.tensor(GROUPS.index(chosen.group)),
            "parts": torch.tensor(len(copy.modified)),
        }


def _designs_in(folder: Path) -> list[_Design]:
    known = read_plagiarized_fashion(folder)
    paths = {item.item_id: item.image_path for item in (*known.queries, *known.gallery)}

    def photograph(item: str, mirrored: bool = False) -> _Photograph:
        if item not in known.boxes:
            raise ValueError(
                f"{folder / 'boxes.jsonl'}: no boxes of {item!r}, so its regions cannot be cut out"
            )
        return _Photograph(paths[item], known.boxes[item].region_boxes, mirrored)

    same: dict[str, list[_Photograph]] = {}
    copies: dict[str, list[_Copy]] = {}
    groups: dict[str, str] = {}
    for relation in known.relations:
        shown = photograph(relation.gallery, relation.mirrored)
        if relation.relation == "identical":
            same.setdefault(relation.query, []).append(shown)
        else:
            copies.setdefault(relation.query, []).append(_Copy(shown, relation.modified))
            groups[relation.query] = relation.group
    return [
        _Design(photograph(query), groups[query], tuple(same.get(query, ())), tuple(found))
        for query, found in copies.items()
    ]


class Mixed:
    """``share`` of the samples from the second source, the others from the first."""

    def __init__(self, first: Samples, second: Samples, share: float, seed: int) -> None:
        self.first, self.second, self.share, self.seed = first, second, share, seed

    def sample(self, index: int) -> dict[str, Tensor]:
        second = np.random.default_rng((self.seed, 5, index)).random() < self.share
        return (self.second if second else self.first).sample(index)


__all__ = ["CopySamples", "Mixed"]
