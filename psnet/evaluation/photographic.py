"""Copies photographed otherwise: one change of the photograph at a time, everything else as it was.

Copies of a benchmark differ from their originals in everything at once: what was edited, background, pose,
light. Here the photograph of every identical and plagiarised copy is changed in one named way more, and what
that costs is a difference between the same copies in the same catalogue.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from psnet.boxes import extents
from psnet.evaluation.benchmark import Benchmark, read_picture
from psnet.evaluation.garments import GarmentTable
from psnet.evaluation.intervals import Estimate, bootstrap_mean, wilson_of_clusters
from psnet.evaluation.retrieval import QueryResult, queries
from psnet.evaluation.tables import Cell, Table
from psnet.evaluation.truth import ACCUSED

# How many items of other designs may rank before a copy that counts as found.
CUTOFF = 20
_CROPPED = 0.15
_TURN = 10
_WARM = (1.2, 1.0, 0.75)
_BLUR = 1.5
_JPEG_QUALITY = 20
# Share of its sides by which a garment's box is widened before what lies outside is replaced.
_MARGIN = 0.04


@dataclass(frozen=True)
class Scene:
    """A photograph ``pixels`` (H, W, 3) uint8, the box (4,) xyxy px of its garment, NaN where not known, and
    the file of a photograph of another design."""

    pixels: np.ndarray
    box: np.ndarray
    other: Path


def _cropped(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """One side cut off, the upper one never: that is where the garment is told by."""
    h, w = scene.pixels.shape[:2]
    x, y = round(_CROPPED * w), round(_CROPPED * h)
    rows, columns = [
        (slice(0, h), slice(x, w)),
        (slice(0, h), slice(0, w - x)),
        (slice(0, h - y), slice(0, w)),
    ][rng.integers(3)]
    return scene.pixels[rows, columns]


def _turned(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    border = np.concatenate([scene.pixels[[0, -1]].reshape(-1, 3), scene.pixels[:, [0, -1]].reshape(-1, 3)])
    fill = tuple(int(v) for v in np.median(border, axis=0))
    angle = _TURN * (1 if rng.random() < 0.5 else -1)
    return np.asarray(
        Image.fromarray(scene.pixels).rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=fill)
    )


def _scaled(scene: Scene, gains: Sequence[float]) -> np.ndarray:
    return np.clip(scene.pixels * np.asarray(gains, np.float32), 0, 255).astype(np.uint8)


def _half(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    picture = Image.fromarray(scene.pixels)
    size = (max(picture.width // 2, 1), max(picture.height // 2, 1))
    return np.asarray(picture.resize(size, Image.Resampling.BOX))


def _compressed(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(scene.pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return np.asarray(Image.open(buffer).convert("RGB"))


def _blurred(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(Image.fromarray(scene.pixels).filter(ImageFilter.GaussianBlur(_BLUR)))


def _surrounded(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Another photograph around the garment's box."""
    h, w = scene.pixels.shape[:2]
    out = np.array(Image.fromarray(read_picture(scene.other)).resize((w, h), Image.Resampling.BILINEAR))
    if np.isnan(scene.box).any():
        return scene.pixels
    margin = _MARGIN * extents(scene.box) * [-1, -1, 1, 1]
    x0, y0, x1, y1 = np.clip(scene.box + margin, 0, [w, h, w, h]).round().astype(int)
    out[y0:y1, x0:x1] = scene.pixels[y0:y1, x0:x1]
    return out


CHANGES: dict[str, Callable[[Scene, np.random.Generator], np.ndarray]] = {
    "flipped": lambda scene, _: np.ascontiguousarray(scene.pixels[:, ::-1]),
    "cropped": _cropped,
    "turned": _turned,
    "surroundings": _surrounded,
    "dark": lambda scene, _: _scaled(scene, (0.5, 0.5, 0.5)),
    "bright": lambda scene, _: _scaled(scene, (1.5, 1.5, 1.5)),
    "warm": lambda scene, _: _scaled(scene, _WARM),
    "half": _half,
    "jpeg": _compressed,
    "blurred": _blurred,
}
TITLES: dict[str, str] = {
    "flipped": "flipped left to right",
    "cropped": f"{_CROPPED:.0%} of one side cut off",
    "turned": f"turned by {_TURN}°",
    "surroundings": "another photograph around the garment's box",
    "dark": "half the light",
    "bright": "half as much light again",
    "warm": "warm light",
    "half": "half the side",
    "jpeg": f"JPEG, quality {_JPEG_QUALITY}",
    "blurred": f"blurred, σ {_BLUR} px",
}


def changed_designs(benchmark: Benchmark, designs: int) -> list[str]:
    """The originals whose copies are changed: ``designs`` of them, evenly over the queries."""
    asked = queries(benchmark)
    return [asked[i] for i in np.unique(np.linspace(0, len(asked) - 1, min(designs, len(asked))).astype(int))]


def changed_rows(benchmark: Benchmark, designs: int) -> list[int]:
    """Rows of the items whose photographs are changed: identical and plagiarised copies of
    ``changed_designs``."""
    rows, chosen = benchmark.rows, set(changed_designs(benchmark, designs))
    return sorted({rows[p.copy] for p in benchmark.truth if p.original in chosen and p.relation in ACCUSED})


def changed_picture(benchmark: Benchmark, row: int, change: str, seed: int = 0) -> np.ndarray:
    """The photograph of an item, changed in the way ``change`` of ``CHANGES``; chance depends on ``seed`` and
    the item alone."""
    rng = np.random.default_rng((seed, row))
    item = benchmark.items[row]
    known = benchmark.boxes.get(item.item_id)
    design = benchmark.design
    strangers = [o for o in benchmark.items if design.get(o.item_id) != design.get(item.item_id)]
    scene = Scene(
        read_picture(item.image),
        np.full(4, np.nan) if known is None else known.box,
        strangers[int(rng.integers(len(strangers)))].image if strangers else item.image,
    )
    return CHANGES[change](scene, rng)


def replaced(table: GarmentTable, other: GarmentTable, rows: Sequence[int]) -> GarmentTable:
    """``table`` with the garments of the items ``rows`` taken from ``other``, which holds no others."""
    kept = ~np.isin(table.item, np.asarray(rows))
    order = np.argsort(np.concatenate([table.item[kept], other.item]), kind="stable")
    columns = {
        field.name: np.concatenate([getattr(table, field.name)[kept], getattr(other, field.name)])[order]
        for field in fields(GarmentTable)
    }
    return GarmentTable(**columns)


def found_early(results: Sequence[QueryResult], originals: Collection[str]) -> list[list[bool]]:
    """Per query of ``originals`` and plagiarised copy of it: whether fewer than ``CUTOFF`` items of other
    designs come first."""
    return [
        [before is not None and before < CUTOFF for before in result.strangers_before.values()]
        for result in results
        if result.original in originals
    ]


def listed_copies(
    benchmark: Benchmark, listed: Collection[frozenset[str]], originals: Collection[str]
) -> list[list[bool]]:
    """Per original of ``originals`` and identical or plagiarised copy of it: whether the pair is on the list
    of suspects."""
    hits: dict[str, list[bool]] = {}
    for pair in benchmark.truth:
        if pair.relation in ACCUSED and pair.original in originals:
            hits.setdefault(pair.original, []).append(frozenset((pair.original, pair.copy)) in listed)
    return list(hits.values())


def share(hits: Sequence[Sequence[bool]]) -> Estimate:
    """Of all copies; those of one original are no independent cases."""
    return wilson_of_clusters(np.array([sum(one) for one in hits]), np.array([len(one) for one in hits]))


def difference(after: Sequence[Sequence[bool]], before: Sequence[Sequence[bool]], seed: int = 0) -> Estimate:
    """Of the mean share per original, designs resampled."""
    apart = [float(np.mean(a)) - float(np.mean(b)) for a, b in zip(after, before, strict=True)]
    return bootstrap_mean(apart, seed)


def change_table(
    title: str,
    note: str,
    hits: Mapping[str, tuple[Sequence[Sequence[bool]], Sequence[Sequence[bool]]]],
    seed: int = 0,
) -> Table:
    """A row per change of the photograph, the first one none; ``hits``: ``found_early`` and
    ``listed_copies``."""
    rows: list[tuple[Cell, ...]] = []
    unchanged = next(iter(hits.values()))
    for name, now in hits.items():
        cells: list[Cell] = [name]
        for after, before in zip(now, unchanged, strict=True):
            cells += [share(after), None if now is unchanged else difference(after, before, seed)]
        rows.append(tuple(cells))
    columns = (
        "change",
        f"in the first {CUTOFF}",
        "difference",
        "on the list",
        "difference ",
    )
    return Table(title, note, columns, tuple(rows))
