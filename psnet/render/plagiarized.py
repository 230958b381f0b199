"""A rendered benchmark in the layout of `psnet.data.plagiarized_fashion`.

The recipe: of every ten gallery items and originals, six belong to one design: the original, an identical
copy (the same design, photographed anew), three plagiarised ones (one or two parts changed, drawn from Table
1 of PS-Net) and one derived (three or more parts); the other four are unrelated designs, distractors. Every
photograph is taken independently: background, pose, lens, light and noise are its own, and one copy in ten is
mirrored. Every region of every garment can be seen, so that the truth about a modified part is in the
picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from psnet.data.plagiarized_fashion import ITEM_COLUMNS, RELATION_COLUMNS, box_row
from psnet.render.catalogue import (
    SIZE,
    PhotographJob,
    Plan,
    catalogue_row,
    csv_bytes,
    sample_blocks,
    write_atomically,
    write_photographs,
)

_COPIES = ["identical", "plagiarised", "plagiarised", "plagiarised", "derived"]


def _relations(rng: np.random.Generator) -> list[str]:
    return list(_COPIES)


_BENCHMARK = Plan(block=10, families=1, copies=len(_COPIES), relations=_relations)


def write_plagiarized_fashion(
    out_dir: Path | str, count: int = 2000, seed: int = 0, workers: int = 1, size: tuple[int, int] = SIZE
) -> Path:
    """Render ``count`` photographs and everything known about them; returns ``out_dir``.

    Writes ``query/`` and ``gallery/`` JPEGs, ``query.csv``, ``gallery.csv``, ``relations.csv`` and
    ``boxes.jsonl``, and over the same photographs ``catalogue.csv`` and ``truth.csv`` in the product's own
    formats. ``size`` (width, height) px. Everything depends on ``seed`` alone, not on ``workers``. 2,000
    photographs take about three minutes on one core. Memory: one photograph a worker, and the text rows.
    Raises ValueError for fewer than ten photographs.
    """
    if count < _BENCHMARK.block:
        raise ValueError(f"a benchmark has at least {_BENCHMARK.block} photographs, got {count}")
    out = Path(out_dir)
    for folder in ("query", "gallery"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    items: dict[str, list[dict[str, str]]] = {"query": [], "gallery": []}
    catalogue: list[dict[str, str]] = []
    truth: list[dict[str, str]] = []

    def jobs() -> Iterator[PhotographJob]:
        for block, copies in sample_blocks(_BENCHMARK, count, seed):
            truth.extend(copies)
            originals = {row["original"] for row in copies}
            for item in block:
                part = "query" if item.item_id in originals else "gallery"
                image = f"{part}/{item.item_id}.jpg"
                catalogue.append(catalogue_row(item, image))
                known = (item.item_id, image, item.design.category, item.design.group)
                items[part].append(dict(zip(ITEM_COLUMNS, known, strict=True)))
                yield PhotographJob(item, out / image, size, whole=True)

    temporary = out / ".boxes.jsonl.part"
    with temporary.open("w", encoding="utf-8") as file:
        for boxes in write_photographs(jobs(), workers):
            assert boxes is not None  # none of them is kept from an earlier run
            file.write(json.dumps(box_row(boxes.item_id, boxes.box, boxes.region_boxes)) + "\n")
    temporary.replace(out / "boxes.jsonl")
    relations = [
        {**row, "query": row["original"], "gallery": row["copy"]}
        for row in sorted(truth, key=lambda row: (row["original"], row["copy"]))
    ]
    tables = {
        "query.csv": sorted(items["query"], key=lambda row: row["item_id"]),
        "gallery.csv": sorted(items["gallery"], key=lambda row: row["item_id"]),
        "relations.csv": [{name: row[name] for name in RELATION_COLUMNS} for row in relations],
        "truth.csv": truth,
        "catalogue.csv": sorted(catalogue, key=lambda row: row["item_id"]),
    }
    for name, rows in tables.items():
        write_atomically(out / name, csv_bytes(rows))
    return out
