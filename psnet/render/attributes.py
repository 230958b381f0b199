"""Rendered garments with attribute labels, in the layout of ASEN's authors (`psnet.data.attributes`).

The design's own parameters are the labels: what a designer chose, not what somebody saw in a photograph.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from psnet.crops import GARMENT_MARGIN, expand
from psnet.data.attributes import AttributeMeta, write_meta
from psnet.data.photographs import regions_row
from psnet.regions import Presence
from psnet.render.design import Design, sample_design
from psnet.render.photo import photograph_design
from psnet.taxonomy import TORSO_CATEGORIES

DATASET = "Rendered"
SPLITS = ("train", "valid", "test")
# Small photographs, as the network sees garments small.
SIZE = (240, 320)
# Of a value's held-out images as many are queries and the others candidates, as in the authors' splits; but
# no value is asked more often than so, or an attribute most garments lack would be about nothing else.
_QUERY_SHARE, _MOST_QUERIES = 0.2, 24


@dataclass(frozen=True)
class RenderedAttribute:
    """``values``: what it can be; ``of``: the value's place for a design; ``regions``: where it is seen
    (names of `psnet.regions.REGIONS`), nothing for all over."""

    values: tuple[str, ...]
    of: Callable[[Design], int]
    regions: tuple[str, ...] = ()


_NECKLINES = ("covered", "round", "boat", "v", "square", "straps")
_COLLARS = ("none", "polo", "shirt", "hood", "stand", "turtle", "lapel")
_CLOSURES = ("none", "placket", "buttons", "zip", "open")
_PATTERNS: Mapping[str, tuple[str, ...]] = {
    "plain": ("solid", "melange"),
    "horizontal stripes": ("hstripes",),
    "vertical stripes": ("vstripes",),
    "checks": ("gingham", "plaid"),
    "dots": ("dots",),
    "floral": ("floral",),
    "animal or camouflage": ("leopard", "camouflage"),
    "geometric": ("chevron", "argyle", "mosaic", "blocks"),
    "shaded": ("gradient", "marble"),
}
# Sleeves along their outer edge and heights of the hem, in widths of the garment between the armpits.
_SLEEVE_ENDS = (0.37, 0.6, 1.0)
_LENGTHS = (1.25, 1.55, 1.95, 2.35)
_LONG_LAPEL = 0.6


def _place(names: tuple[str, ...], name: str) -> int:
    return names.index(name) if name in names else 0


def _lapel(design: Design) -> int:
    if design.collar.kind != "lapel":
        return 0
    return 1 + int(design.collar.depth >= _LONG_LAPEL)


def _sleeves(design: Design) -> int:
    return 0 if design.sleeves is None else 1 + int(np.searchsorted(_SLEEVE_ENDS, design.sleeves.length))


def _pattern(design: Design) -> int:
    pattern = design.chest.look.pattern
    return next(i for i, members in enumerate(_PATTERNS.values()) if pattern in members)


ATTRIBUTES: Mapping[str, RenderedAttribute] = {
    "neckline": RenderedAttribute(_NECKLINES, lambda d: _place(_NECKLINES, d.collar.kind), ("collar",)),
    "collar": RenderedAttribute(_COLLARS, lambda d: _place(_COLLARS, d.collar.kind), ("collar",)),
    "lapel": RenderedAttribute(("none", "short", "long"), _lapel, ("collar",)),
    "sleeve_length": RenderedAttribute(
        ("sleeveless", "short", "elbow", "three-quarter", "long"), _sleeves, ("left_sleeve", "right_sleeve")
    ),
    "length": RenderedAttribute(
        ("cropped", "regular", "long", "midi", "maxi"),
        lambda d: int(np.searchsorted(_LENGTHS, d.length)),
        ("waist",),
    ),
    "closure": RenderedAttribute(
        _CLOSURES, lambda d: _place(_CLOSURES, d.closure.kind), ("collar", "chest", "waist")
    ),
    "pattern": RenderedAttribute(tuple(_PATTERNS), _pattern),
}


def rendered_meta() -> AttributeMeta:
    """The attributes of rendered garments and their values."""
    return AttributeMeta(
        DATASET,
        tuple(ATTRIBUTES),
        tuple(attribute.values for attribute in ATTRIBUTES.values()),
        {name: attribute.regions for name, attribute in ATTRIBUTES.items() if attribute.regions},
    )


def design_values(design: Design) -> tuple[int, ...]:
    """The design's value of each of `ATTRIBUTES`."""
    return tuple(attribute.of(design) for attribute in ATTRIBUTES.values())


@dataclass(frozen=True)
class _Job:
    seed: int
    split: int
    index: int
    path: Path


def _write_garment(job: _Job) -> tuple[tuple[int, ...], dict[str, list[float] | None]]:
    """Photograph one design until all of it is in view, cut it out as the pipeline does, with the margin that
    a landmark branch gets, and say its values and where its regions lie."""
    for attempt in range(40):
        rng = np.random.default_rng((job.seed, job.split, job.index, attempt))
        # The ten categories take turns; the rare ones are as frequent as the common.
        design = sample_design(rng, TORSO_CATEGORIES[job.index % len(TORSO_CATEGORIES)])
        photograph = photograph_design(design, rng, SIZE)
        if not (photograph.presence == Presence.HIDDEN).any():
            break
    picture = Image.fromarray(photograph.pixels)
    frame = expand(photograph.box, GARMENT_MARGIN, picture.width, picture.height).round()
    left, top, right, bottom = (int(v) for v in frame)
    picture.crop((left, top, right, bottom)).save(job.path, quality=90)
    return design_values(design), regions_row(photograph.region_boxes - np.tile(frame[:2], 2))


def write_attributes(
    out: Path, count: int, seed: int = 0, workers: int = 1, held: tuple[int, int] | None = None
) -> Path:
    """``count`` garments to train on and ``held`` (valid, test) others, by default a tenth and three tenths;
    returns ``out``.

    No design is photographed twice: split and index decide it. ``regions_SPLIT.jsonl`` says where the
    regions lie in each image, which the authors' layout does not know. Raises ValueError for fewer than 20.
    """
    if count < 20:
        raise ValueError(f"a data set of attributes has at least 20 garments to train on, got {count}")
    valid, test = held or (max(count // 10, 20), max(3 * count // 10, 20))
    meta = rendered_meta()
    folder = out / DATASET
    for split, name in enumerate(SPLITS):
        images = [f"{name}/{index:05d}.jpg" for index in range((count, valid, test)[split])]
        (folder / name).mkdir(parents=True, exist_ok=True)
        jobs = [_Job(seed, split, index, folder / image) for index, image in enumerate(images)]
        results = list(_all(jobs, workers))
        _write_lines(folder / f"filenames_{name}.txt", images)
        _write_lines(folder / f"regions_{name}.jsonl", [json.dumps(regions) for _, regions in results])
        labels = [values for values, _ in results]
        if name == "train":
            _write_lines(
                folder / "label_train.txt",
                [
                    f"{i} " + " ".join(f"{a} {v}" for a, v in enumerate(values))
                    for i, values in enumerate(labels)
                ],
            )
            continue
        asked = draw_queries(np.array(labels), np.random.default_rng((seed, split)))
        for kind, wanted in (("query", True), ("candidate", False)):
            rows = [
                f"{i} {a} {labels[i][a]}"
                for a in range(len(meta.names))
                for i in range(len(labels))
                if asked[i, a] == wanted
            ]
            _write_lines(folder / f"{kind}_{name}.txt", rows)
    write_meta(out, meta)
    return out


def draw_queries(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which images (n, attributes) are asked for which attribute; the others are candidates."""
    asked = np.zeros(labels.shape, bool)
    for a in range(labels.shape[1]):
        for value in np.unique(labels[:, a]):
            members = rng.permutation(np.flatnonzero(labels[:, a] == value))
            asked[members[: min(math.ceil(_QUERY_SHARE * len(members)), _MOST_QUERIES)], a] = True
    return asked


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _all(jobs: list[_Job], workers: int) -> Iterator[tuple[tuple[int, ...], dict[str, list[float] | None]]]:
    if workers <= 1:
        yield from map(_write_garment, jobs)
        return
    # A forked copy of a process that has used torch's threads may hang; each worker is one thread.
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield from pool.map(_write_garment, jobs, chunksize=16)
