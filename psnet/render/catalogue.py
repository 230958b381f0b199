"""A demo catalogue with planted copies, in the product's own input format, and the truth about it."""

from __future__ import annotations

import csv
import hashlib
import io
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from psnet.regions import Presence
from psnet.render.copies import copy_design
from psnet.render.design import Design, colour_name, design_distance, sample_design
from psnet.render.photo import photograph_design

SIZE = (420, 560)
_JPEG_QUALITY = 88
# Below this many differing parts two designs might be taken for copies of each other.
_UNRELATED = 2.5
_TRIES = 60
# New designs are compared with the latest this many. Two designs drawn apart are closer than _UNRELATED once
# in 530 pairs, so past about two thousand there is hardly a draw that resembles none of all before it.
_REMEMBERED = 1500
# About one photograph in eight cuts the garment off; this many tries in a row hardly ever do.
_RETAKES = 12
# Part of every file name: pictures of an older renderer are not taken for today's.
_RENDERER = 1

_WORDS = {
    "short_sleeve_top": "T-shirt", "long_sleeve_top": "Longsleeve",
    "short_sleeve_outwear": "Short-sleeved jacket",
    "long_sleeve_outwear": "Jacket", "vest": "Tank top", "sling": "Strap top", "short_sleeve_dress": "Dress",
    "long_sleeve_dress": "Long-sleeved dress", "vest_dress": "Sleeveless dress", "sling_dress": "Strap dress",
}  # fmt: skip
_COLLAR_WORDS = {
    "round": "crew-neck", "v": "V-neck", "boat": "boat-neck", "square": "square-neck",
    "turtle": "roll-neck", "polo": "polo", "shirt": "shirt-collar",
     "lapel": "lapel", "hood": "hooded", "stand": "stand-collar", "straps": "strappy",
}  # fmt: skip
_PATTERN_WORDS = {
    "solid": "plain", "melange": "heather", "hstripes": "striped", "vstripes": "pinstriped",
    "plaid": "checked",
    "dots": "dotted", "camouflage": "camo", "gradient": "ombré", "mosaic": "patchwork", "blocks": "geometric",
}  # fmt: skip
_BRANDS = (
    "Northlane",
    "Maison Verre",
    "Kite & Co",
    "Oda",
    "Sundholm",
    "Pale Harbour",
    "Tirra",
    "Fennel",
    "Brick Lane",
    "Aster",
)


@dataclass(frozen=True)
class Plan:
    """What a catalogue is made of: blocks of ``block`` items, ``families`` of an original and its copies (one
    copy per name that ``relations`` draws, ``copies`` at most) in each, then unrelated items.

    A block is made from its own seed, so the first items of a large catalogue are those of a small one.
    """

    block: int
    families: int
    copies: int
    relations: Callable[[np.random.Generator], list[str]]


def _demo_relations(rng: np.random.Generator) -> list[str]:
    relations = ["identical", "plagiarised"]
    relations += ["plagiarised"] if rng.random() < 0.5 else []
    relations += ["derived"] if rng.random() < 0.35 else []
    return relations


_DEMO = Plan(block=15, families=2, copies=4, relations=_demo_relations)


@dataclass(frozen=True)
class Item:
    """One item to photograph: ``seed`` of the photograph, ``row`` of the catalogue without ``image``."""

    item_id: str
    design: Design
    seed: tuple[int, ...]
    mirrored: bool
    row: dict[str, str]


@dataclass(frozen=True)
class PhotographJob:
    """An item and where its JPEG goes; ``size`` (width, height) px. ``keep``: a file that is there already
    stays; ``whole``: a photograph that hides a region of the garment is taken again."""

    item: Item
    path: Path
    size: tuple[int, int]
    keep: bool = False
    whole: bool = False


@dataclass(frozen=True)
class PhotographBoxes:
    """``box`` (4,) and ``region_boxes`` (5, 4) xyxy px of a photographed item, NaN where a region is
    absent."""

    item_id: str
    box: np.ndarray
    region_boxes: np.ndarray


def _title(design: Design) -> str:
    look = design.chest.look
    pattern = _PATTERN_WORDS.get(look.pattern, look.pattern)
    cut = f"{_COLLAR_WORDS[design.collar.kind]} {_WORDS[design.category].lower()}"
    words = f"{colour_name(look.colours[0])} {pattern} {cut}"
    return words[0].upper() + words[1:]


def _unlike(rng: np.random.Generator, known: Sequence[Design]) -> Design:
    """A new design that no known one could be taken for, or the best of some tries."""
    best, best_distance = sample_design(rng), -1.0
    for _ in range(_TRIES):
        candidate = sample_design(rng)
        distance = 4.0
        for other in known:
            distance = min(distance, design_distance(candidate, other))
            if distance <= best_distance:
                break
        if distance > best_distance:
            best, best_distance = candidate, distance
        if distance >= _UNRELATED:
            break
    return best


def _block(
    plan: Plan, index: int, seed: int, known: deque[Design]
) -> tuple[list[Item], list[dict[str, str]]]:
    """One block's items and its truth rows; ``known`` are the designs of earlier blocks, and this one's are
    added."""
    rng = np.random.default_rng((seed, index))
    items: list[Item] = []
    truth: list[dict[str, str]] = []

    def new_design() -> Design:
        known.append(_unlike(rng, known))
        return known[-1]

    def add(design: Design, seller: str, brand: str, day: date, mirrored: bool = False) -> str:
        number = index * plan.block + len(items)
        item_id = hashlib.blake2b(f"{_RENDERER}/{seed}/{number}".encode(), digest_size=6).hexdigest()
        row = {
            "item_id": item_id,
            "seller_id": seller,
            "brand": brand,
            "category": _WORDS[design.category],
            "title": _title(design),
            "listed_at": day.isoformat(),
        }
        items.append(Item(item_id, design, (seed, index, len(items)), mirrored, row))
        return item_id

    start = date(2025, 1, 1)
    for _ in range(plan.families):
        original = new_design()
        sellers = [f"s{n:03d}" for n in rng.choice(120, size=plan.copies + 1, replace=False)]
        day = start + timedelta(days=int(rng.integers(0, 200)))
        original_id = add(original, sellers[0], str(rng.choice(_BRANDS)), day)
        for k, relation in enumerate(plan.relations(rng)):
            copy, parts, kinds = copy_design(original, rng, relation)
            mirrored = bool(rng.random() < 0.1)
            later = day + timedelta(days=int(rng.integers(5, 180)))
            truth.append({
                "original": original_id,
                "copy": add(copy, sellers[k + 1], "", later, mirrored),
                "relation": relation,
                "group": original.group,
                "modified": "|".join(parts),
                "kinds": "|".join(kinds),
                "mirrored": str(int(mirrored)),
            })  # fmt: skip
    while len(items) < plan.block:
        brand = str(rng.choice(_BRANDS)) if rng.random() < 0.4 else ""
        day = start + timedelta(days=int(rng.integers(0, 380)))
        add(new_design(), f"s{int(rng.integers(120)):03d}", brand, day)
    return items, truth


def sample_blocks(plan: Plan, count: int, seed: int) -> Iterator[tuple[list[Item], list[dict[str, str]]]]:
    """Blocks of ``count`` items in all: the items of each, and the truth about copies among them.

    Truth rows (original, copy, relation, group, modified, kinds, mirrored) name an item before or inside
    their block; the last block is cut to fit, together with its truth. Memory is O(1): the latest 1500
    designs.
    """
    known: deque[Design] = deque(maxlen=_REMEMBERED)
    for index in range(-(-count // plan.block)):
        items, truth = _block(plan, index, seed, known)
        items = items[: count - index * plan.block]
        kept = {item.item_id for item in items}
        yield items, [row for row in truth if {row["original"], row["copy"]} <= kept]


def write_atomically(path: Path, data: bytes) -> None:
    """The file is either whole or not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _write_photograph(job: PhotographJob) -> PhotographBoxes | None:
    if job.keep and job.path.exists():
        return None
    item = job.item
    for attempt in range(_RETAKES if job.whole else 1):
        rng = np.random.default_rng((*item.seed, attempt) if attempt else item.seed)
        photograph = photograph_design(item.design, rng, job.size, mirrored=item.mirrored)
        if (photograph.presence != Presence.HIDDEN).all():
            break
    buffer = io.BytesIO()
    Image.fromarray(photograph.pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    write_atomically(job.path, buffer.getvalue())
    return PhotographBoxes(item.item_id, photograph.box, photograph.region_boxes)


def write_photographs(jobs: Iterable[PhotographJob], workers: int = 1) -> Iterator[PhotographBoxes | None]:
    """Write the photographs of ``jobs``, in their order, and say where the garments lie; None for one that
    was there already.

    ``workers`` processes share the work; at most four jobs each are taken ahead.
    """
    if workers <= 1:
        yield from map(_write_photograph, jobs)
        return
    # A forked copy of a process that has used torch's threads may hang; each worker is one thread.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        pending: deque[Future[PhotographBoxes | None]] = deque()
        for job in jobs:
            pending.append(pool.submit(_write_photograph, job))
            if len(pending) >= 4 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def csv_bytes(rows: Sequence[dict[str, str]]) -> bytes:
    """A CSV file of at least one row; the first names the columns."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def catalogue_row(item: Item, image: str) -> dict[str, str]:
    """The item's row of catalogue.csv; ``image`` is a path relative to the file."""
    return {"item_id": item.item_id, "image": image, **item.row}


def write_demo_catalogue(
    out_dir: Path | str, garments: int = 300, seed: int = 0, workers: int = 1, size: tuple[int, int] = SIZE
) -> Path:
    """Write ``images/*.jpg``, ``catalogue.csv`` and ``truth.csv`` into ``out_dir``; returns the catalogue's
    path.

    About half of the items are families: an original, an identical copy, one or two plagiarised ones and
    sometimes a derived one, by other sellers, listed later, some mirrored; the rest are unrelated.
    Photographs that are there already are kept. 300 photographs take about 22 s on one core; ``workers``
    processes share the work. Raises ValueError for fewer than 15 garments.
    """
    if garments < _DEMO.block:
        raise ValueError(f"a demo catalogue has at least {_DEMO.block} garments, got {garments}")
    out = Path(out_dir)
    (out / "images").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    truth: list[dict[str, str]] = []

    def jobs() -> Iterator[PhotographJob]:
        for items, copies in sample_blocks(_DEMO, garments, seed):
            truth.extend(copies)
            for item in items:
                image = f"images/{item.item_id}.jpg"
                rows.append(catalogue_row(item, image))
                yield PhotographJob(item, out / image, size, keep=True)

    for _ in write_photographs(jobs(), workers):
        pass
    write_atomically(out / "truth.csv", csv_bytes(truth))
    # In a real catalogue copies do not stand beside their originals.
    path = out / "catalogue.csv"
    write_atomically(path, csv_bytes(sorted(rows, key=lambda row: row["item_id"])))
    return path
