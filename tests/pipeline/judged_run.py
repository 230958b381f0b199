"""A small judged run made by hand, for tests of what comes after the judgement."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.rundir import RunDirectory
from pipeline.schema import GARMENT_SCHEMA, ITEM_SCHEMA, SUSPECT_SCHEMA
from psnet.regions import REGIONS

KEPT_THRESHOLDS = [0.6, 0.6, 0.6, 0.6, 0.6]
SHARD_PREFIX = "psnet-test-"

HOSTILE = "</script><script>document.title='owned'</script><b>=1+1</b> {{data}} <!--"

# Cosines of three pairs, chosen so that the order changes with the weight of the chest: 0-1 leads as scanned.
COSINES: Sequence[Sequence[float | None]] = (
    (0.95, 0.94, 0.93, 0.10, 0.92),
    (0.80, None, None, 0.99, 0.85),
    (0.30, 0.88, 0.87, 0.86, 0.20),
)


def photograph(path: Path, width: int = 90, height: int = 120, orientation: int = 1) -> None:
    """A JPEG with a red upper left quarter; with EXIF ``orientation`` 6 it is stored turned."""
    pixels = np.full((height, width, 3), 60, np.uint8)
    pixels[: height // 2, : width // 2] = (220, 40, 40)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    if orientation == 6:
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif[0x0112] = orientation
    image.save(path, "JPEG", quality=95, exif=exif)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def suspect_row(rank: int, cos: Sequence[float | None], items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    comparable = [c for c in cos if c is not None]
    states = [
        "not_comparable" if c is None else "kept" if c >= threshold else "changed"
        for c, threshold in zip(cos, KEPT_THRESHOLDS, strict=True)
    ]
    score = sum(sorted(comparable)[-3:]) / 3
    row: dict[str, Any] = {
        "rank": rank,
        "original_item_id": items[0]["item_id"],
        "suspect_item_id": items[1]["item_id"],
        "score": score,
        "relation": "undecidable"
        if len(comparable) < 3
        else "plagiarised"
        if "changed" in states
        else "identical",
        "modified_regions": [r for r, state in zip(REGIONS, states, strict=True) if state == "changed"],
        "direction": "original_first_listed",
        "mirrored": rank == 3,
        "normalised_score": score - 0.5,
        "explanation": f"Made up by a test; {items[1]['title']}.",
        **{f"cos_{region}": c for region, c in zip(REGIONS, cos, strict=True)},
        **{f"state_{region}": state for region, state in zip(REGIONS, states, strict=True)},
    }
    for side, item in zip(("original", "suspect"), items, strict=True):
        names = ("seller_id", "brand", "category", "title", "listed_at", "url", "image")
        row |= {f"{side}_{name}": item[name] for name in names}
        row |= {
            f"{side}_image_path": item["image_path"],
            f"{side}_image_sha256": item["image_sha256"],
            f"{side}_garment": 0,
            f"{side}_garment_category": "short_sleeve_top",
            f"{side}_garment_group": "T-shirts",
        }
    return row


def make_run(folder: Path, cosines: Sequence[Sequence[float | None]] = COSINES) -> RunDirectory:
    """A run of ``2 * len(cosines) + 3`` items.

    A suspected pair for each of ``cosines``, then an item whose image is missing, one without a garment, and
    one whose image could be read at the second attempt only.
    """
    photographs = folder / "photographs"
    photographs.mkdir(parents=True)
    items: list[dict[str, Any]] = []
    for i in range(2 * len(cosines) + 3):
        path = photographs / f"{i}.jpg"
        photograph(path, width=90 + i, orientation=6 if i == 0 else 1)
        item = dict.fromkeys(ITEM_SCHEMA.names, "") | {
            "item_id": f"00{i}",
            "image": f"photographs/{i}.jpg",
            "seller_id": f"seller {i % 4}",
            "title": HOSTILE if i == 1 else f"Shirt {i}",
            "listed_at": f"2025-03-{i + 1:02d}",
            "url": "javascript:alert(1)" if i == 0 else f"https://shop.example/{i}",
            "status": "ok",
            "image_path": str(path),
            "image_sha256": sha256_of(path),
            "image_bytes": path.stat().st_size,
            "image_mtime_ns": 0,
        }
        items.append(item)
    missing, bare, retried = items[-3:]
    missing |= {"status": "missing_file", "error": "no such file", "image_sha256": "", "image_path": ""}

    def garment(item: dict[str, Any], **values: Any) -> dict[str, Any]:
        row = dict.fromkeys(GARMENT_SCHEMA.names) | {
            "image_sha256": item["image_sha256"],
            "garment_index": 0,
            "status": "ok",
            "error": "",
            "image_width": 90,
            "image_height": 120,
            "box": [10.0, 10.0, 80.0, 110.0],
            # The right sleeve is hidden: its box is a guess.
            "region_boxes": [float(v) for r in range(5) for v in (10 + r, 20 + r, 40 + r, 60 + r)],
            "presence": bytes((2, 2, 0, 2, 2)),
            "model_tag": "psnet-test",
        }
        return row | values

    nothing: dict[str, Any] = {"garment_index": -1, "box": None, "region_boxes": None, "presence": None}
    rows = [garment(item) for item in items[:-3]]
    rows.append(garment(bare, status="no_garment", error="no garment was found", **nothing))
    rows.append(garment(retried, status="missing_file", error="was away", **nothing))
    rows.append(garment(retried))

    run = RunDirectory(folder / "run")
    run.update(
        kind="scan",
        catalogue="shop/catalogue.csv",
        model_tag="psnet-test",
        config_digest="c0ffee",
        config={"report": {"title": "Suspects of a test", "image_side": 64}},
    )
    with run.stage("crawl", "1", [run.items_path]) as stage:
        run.items_path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(items, schema=ITEM_SCHEMA), run.items_path)
        stage.count_in, stage.count_out = len(items), len(items) - 1
        stage.fail("missing_file")
    with run.stage("extract", "1") as stage:
        run.garments_dir.mkdir()
        for i, half in enumerate((rows[::2], rows[1::2])):
            table = pa.Table.from_pylist(half, schema=GARMENT_SCHEMA)
            pq.write_table(table, run.garments_dir / f"{SHARD_PREFIX}{i}.parquet")
        stage.note(shard_prefix=SHARD_PREFIX)
    with run.stage("judge", "1", [run.suspects_path]) as stage:
        suspects = [suspect_row(i + 1, cos, items[2 * i : 2 * i + 2]) for i, cos in enumerate(cosines)]
        pq.write_table(pa.Table.from_pylist(suspects, schema=SUSPECT_SCHEMA), run.suspects_path)
        stage.count_out = len(suspects)
    with run.stage("report", "1") as stage:
        stage.note(kept_thresholds=KEPT_THRESHOLDS, region_weights={})
    return run
