"""A demo catalogue with planted copies, in the product's own input format, and the truth about it."""

from __future__ import annotations

import csv
import hashlib
import io
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from psnet.render.copies import copy_design
from psnet.render.design import Design, colour_name, design_distance, sample_design
from psnet.render.photo import photograph_design

SIZE = (420, 560)
_JPEG_QUALITY = 88
# Items come in blocks of fifteen: two families of an original and its copies, then unrelated ones. A block is
# made from its own seed, so the first items of a large catalogue are those of a small one.
_BLOCK = 15
# Below this many differing parts two designs might be taken for copies of each other.
_UNRELATED = 2.5
_TRIES = 60
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
class _Item:
    item_id: str
    design: Design
    seed: tuple[int, ...]
    mirrored: bool
    row: dict[str, str]


def _title(design: Design) -> str:
    look = design.chest.look
    pattern = _PATTERN_WORDS.get(look.pattern, look.pattern)
    cut = f"{_COLLAR_WORDS[design.collar.kind]} {_WORDS[design.category].lower()}"
    words = f"{colour_name(look.colours[0])} {pattern} {cut}"
    return words[0].upper() + words[1:]


def _block(
    index: int, seed: int, known: Sequence[Design]
) -> tuple[list[_Item], list[dict[str, str]], list[Design]]:
    """One block's items, its truth rows, and its new designs; ``known`` are the designs of earlier blocks."""
    rng = np.random.default_rng((seed, index))
    items: list[_Item] = []
    truth: list[dict[str, str]] = []
    fresh: list[Design] = []

    def new_design() -> Design:
        best, best_distance = sample_design(rng), -1.0
        for _ in range(_TRIES):
            candidate = sample_design(rng)
            others = (design_distance(candidate, other) for other in (*known, *fresh))
            distance = min(others, default=4.0)
            if distance >= _UNRELATED:
                best = candidate
                break
            if distance > best_distance:
                best, best_distance = candidate, distance
        fresh.append(best)
        return best

    def add(design: Design, seller: str, brand: str, day: date, mirrored: bool = False) -> str:
        number = index * _BLOCK + len(items)
        item_id = hashlib.blake2b(f"{_RENDERER}/{seed}/{number}".encode(), digest_size=6).hexdigest()
        row = {
            "item_id": item_id,
            "image": f"images/{item_id}.jpg",
            "seller_id": seller,
            "brand": brand,
            "category": _WORDS[design.category],
            "title": _title(design),
            "listed_at": day.isoformat(),
        }
        items.append(_Item(item_id, design, (seed, index, len(items)), mirrored, row))
        return item_id

    start = date(2025, 1, 1)
    for _ in range(2):
        original = new_design()
        sellers = [f"s{n:03d}" for n in rng.choice(120, size=5, replace=False)]
        day = start + timedelta(days=int(rng.integers(0, 200)))
        original_id = add(original, sellers[0], str(rng.choice(_BRANDS)), day)
        relations = ["identical", "plagiarised"]
        relations += ["plagiarised"] if rng.random() < 0.5 else []
        relations += ["derived"] if rng.random() < 0.35 else []
        for k, relation in enumerate(relations):
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
    while len(items) < _BLOCK:
        brand = str(rng.choice(_BRANDS)) if rng.random() < 0.4 else ""
        day = start + timedelta(days=int(rng.integers(0, 380)))
        add(new_design(), f"s{int(rng.integers(120)):03d}", brand, day)
    return items, truth, fresh


def write_atomically(path: Path, data: bytes) -> None:
    """The file is either whole or not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _write_photograph(job: tuple[_Item, Path, tuple[int, int]]) -> None:
    item, path, size = job
    if path.exists():
        return
    photograph = photograph_design(
        item.design, np.random.default_rng(item.seed), size, mirrored=item.mirrored
    )
    buffer = io.BytesIO()
    Image.fromarray(photograph.pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    write_atomically(path, buffer.getvalue())


def _csv(rows: Sequence[dict[str, str]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


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
    if garments < _BLOCK:
        raise ValueError(f"a demo catalogue has at least {_BLOCK} garments, got {garments}")
    out = Path(out_dir)
    (out / "images").mkdir(parents=True, exist_ok=True)
    items: list[_Item] = []
    truth: list[dict[str, str]] = []
    designs: list[Design] = []
    for index in range(-(-garments // _BLOCK)):
        more, rows, fresh = _block(index, seed, designs)
        items, truth, designs = items + more, truth + rows, designs + fresh
    items = items[:garments]
    kept = {item.item_id for item in items}
    jobs = [(item, out / "images" / f"{item.item_id}.jpg", size) for item in items]
    if workers > 1:
        # A forked copy of a process that has used torch's threads may hang; each worker is one thread.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
            list(pool.map(_write_photograph, jobs, chunksize=8))
    else:
        for job in jobs:
            _write_photograph(job)
    write_atomically(
        out / "truth.csv", _csv([row for row in truth if {row["original"], row["copy"]} <= kept])
    )
    # In a real catalogue copies do not stand beside their originals.
    path = out / "catalogue.csv"
    write_atomically(path, _csv(sorted((item.row for item in items), key=lambda row: row["item_id"])))
    return path
