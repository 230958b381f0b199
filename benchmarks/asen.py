"""What ASEN's attributes cost and are worth; writes benchmarks/ASEN.md.

    psnet eval asen --config conf/asen.yaml --set labels=clothing/labels.jsonl \\
      --set pictures=benchmarks/pictures
    python benchmarks/asen.py --evaluation asen/asen.json --run bench-dev RUN TRUTH --run rendered RUN TRUTH

``--run``: a name, the directory of a finished scan (with attributes or without: those of the suspects are
computed here) and the truth about its catalogue. The cost is measured on one thread, trunk and whole network
in turn, and the medians count, because a shared machine drifts.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from pipeline.attributes import RERANK_WEIGHT, Attributes, Garment, agreements, reranked
from pipeline.evaluate import read_truth
from pipeline.extract import garment_shards
from pipeline.items import Items
from pipeline.judge import WEIGHED_SCHEMA, find_suspects, rank_suspects
from pipeline.rundir import RunDirectory
from pipeline.schema import unpack_boxes
from pipeline.settings import JudgeSettings
from psnet.asen import AsenConfig, AttributeNetwork, build_asen
from psnet.asen_predictor import AttributePredictor
from psnet.asen_weights import load_asen
from psnet.evaluation.attributes import average_precision
from psnet.evaluation.benchmark import designs
from psnet.evaluation.intervals import wilson
from psnet.evaluation.tables import Cell, Table, read_tables
from psnet.image import decode_image

_CUTOFFS = (25, 50, 100, 200)
_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.5)
# Far below the calibrated thresholds: a list with strangers on it, on which an order matters.
_LAXER = {"score": 0.5, "normalised_score": 0.4}
_REPEATS = 15
_BATCH = 8

_HEAD = """# ASEN: the attribute-specific network

Made by `benchmarks/asen.py`. Data: `python -m psnet.render attributes attributes --count 3200 --seed 21`;
training: `psnet train asen --config conf/asen.yaml`, all methods from the same start (the landmark branch's
trunk), with the same triplets, schedule and loss. The guided methods also learn, on these rendered garments,
where their attributes' regions lie; the row "without guidance" says what that is worth. Beyond the start,
which has seen photographs, no photograph is trained on.

"""

_PICTURES = """
## Pictures

Where each attribute is looked for, on hand-labelled photographs of the test split (first row: the garments):

![attention](pictures/asen_attention.jpg)

A query (black frame) and the test images most alike to it in one attribute; green: the same value.

![retrieval](pictures/asen_retrieval.jpg)
"""


def cost_table() -> Table:
    """Time of the trunk alone and of trunk and all attributes."""
    torch.set_num_threads(1)
    published = AsenConfig(attributes=tuple(f"attribute {i}" for i in range(8)))
    networks = {
        "shipped (HRNet-W18-small, 128 px, 7 attributes)": load_asen(),
        "v2 (ResNet-50, 224 px, 8 attributes)": build_asen(published).eval(),
        "v1 (ResNet-50, 224 px, 8 attributes)": build_asen(
            AsenConfig(method="v1", attributes=published.attributes)
        ).eval(),
    }
    rows: list[tuple[Cell, ...]] = []
    for name, network in networks.items():
        trunk, whole = _times(network)
        rows.append((name, f"{1000 * trunk:.1f}", f"{1000 * whole:.1f}", f"{whole / trunk:.3f}"))
    return Table(
        "Cost per garment",
        f"CPU milliseconds, one thread, float32, batches of {_BATCH}, median of {_REPEATS} "
        f"({platform.machine()}). Bar: 1.15 trunk passes.",
        ("network", "trunk", "all attributes", "ratio"),
        tuple(rows),
    )


@torch.inference_mode()
def _times(network: AttributeNetwork) -> tuple[float, float]:
    """CPU seconds per image of the trunk and of the whole network."""
    side = network.config.side
    network.to(memory_format=torch.channels_last)
    images = torch.rand(_BATCH, 3, side, side).contiguous(memory_format=torch.channels_last)
    parts: tuple[Callable[[torch.Tensor], object], ...] = (network.backbonenet, network)
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(_REPEATS + 2):
        for part, into in zip(parts, seconds, strict=True):
            # CPU time: what else runs on the machine does not count.
            started = time.process_time()
            part(images)
            if repeat >= 2:
                into.append((time.process_time() - started) / _BATCH)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


@dataclass(frozen=True)
class Listed:
    """A suspected pair: its items, its garments (image hash, index) and the score it is ranked by."""

    items: tuple[str, str]
    garments: tuple[Garment, Garment]
    score: float


def shipped_list(run: RunDirectory) -> list[Listed]:
    """The suspects as the scan reports them."""
    rows = pq.read_table(run.suspects_path).sort_by("rank").to_pylist()
    sides = ("original", "suspect")
    out = []
    for row in rows:
        one, other = ((row[f"{side}_image_sha256"], row[f"{side}_garment"]) for side in sides)
        names = (row["original_item_id"], row["suspect_item_id"])
        out.append(Listed(names, (one, other), row["normalised_score"]))
    return out


def laxer_list(run: RunDirectory) -> list[Listed]:
    """What a scan with lower thresholds (`_LAXER`) and the relation similar would report."""
    pairs = pq.read_table(run.pairs_path)
    worth = pc.is_in(pairs["relation"], value_set=pa.array(["identical", "plagiarised", "similar"]))
    for column, least in _LAXER.items():
        worth = pc.and_(worth, pc.greater_equal(pairs[column], pa.scalar(least, pa.float32())))
    items = Items(pq.read_table(run.items_path))
    # What was seen of their photographs is left empty.
    unseen = pa.concat_tables([WEIGHED_SCHEMA.empty_table(), pairs.filter(worth)], promote_options="default")
    found, _ = find_suspects(unseen, items)
    return [
        Listed((one.original, one.suspect), one.garments(items), one.pair["normalised_score"])
        for one in rank_suspects(found, JudgeSettings())
    ]


def rerank_table(name: str, run: RunDirectory, truth: Path, suspects: Sequence[Listed]) -> Table:
    """Precision of the best suspects as the scan ranks them and ranked anew with several weights."""
    design = designs((pair.original, pair.copy) for pair in read_truth(truth))
    right = np.array([len({design.get(item, item) for item in one.items}) == 1 for one in suspects])
    predictor = AttributePredictor.load(device="cpu")
    embeddings = _embeddings(run, suspects, predictor)
    thresholds = np.array([predictor.thresholds.get(n, np.inf) for n in predictor.names], np.float32)
    said = agreements([one.garments for one in suspects], embeddings, Attributes(predictor.names, thresholds))
    rows: list[tuple[Cell, ...]] = []
    for weight in _WEIGHTS:
        ranked = right[reranked([one.score for one in suspects], said, weight)]
        cells = [wilson(int(ranked[:n].sum()), min(n, len(ranked))) for n in _CUTOFFS]
        first = None if ranked.all() else int(ranked.argmin()) + 1
        used = " (rerank=asen)" if weight == RERANK_WEIGHT else ""
        title = f"weight {weight:g}{used}" if weight else "as ranked by the scan"
        rows.append((title, *cells, float(average_precision(ranked[None])[0]), first))
    share = [
        np.mean([one.share for one, yes in zip(said, right, strict=True) if one and yes == wanted])
        for wanted in (True, False)
    ]
    return Table(
        f"Suspects ranked anew: {name}",
        f"{len(suspects):,} suspects, {int(right.sum()):,} of them copies. Attributes that agree: "
        f"{share[0]:.2f} of them in pairs of one design, {share[1]:.2f} in others. Precision of the first N, "
        "Wilson intervals.",
        ("order", *(f"precision@{n}" for n in _CUTOFFS), "average precision", "first wrong at"),
        tuple(rows),
    )


def _embeddings(
    run: RunDirectory, suspects: Sequence[Listed], predictor: AttributePredictor
) -> dict[Garment, np.ndarray]:
    """Of all garments among the suspects, from their photographs and the boxes that the scan found."""
    wanted = {garment for one in suspects for garment in one.garments}
    items = pq.read_table(run.items_path, columns=["image_sha256", "image_path"])
    paths = dict(zip(*(column.to_pylist() for column in items.columns), strict=True))
    out = {}
    for shard in garment_shards(run):
        rows = pq.read_table(shard, columns=["image_sha256", "garment_index", "box"])
        boxes = unpack_boxes(rows["box"], (4,))
        keys = zip(rows["image_sha256"].to_pylist(), rows["garment_index"].to_pylist(), strict=True)
        for key, box in zip(keys, boxes, strict=True):
            if key in wanted:
                pixels = decode_image(Path(paths[key[0]]).read_bytes()).pixels
                out[key] = predictor.describe([pixels], [box[None]])[0][0]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evaluation", type=Path, required=True, help="tables of `psnet eval asen`")
    parser.add_argument("--run", nargs=3, action="append", default=[], metavar=("NAME", "RUN", "TRUTH"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("ASEN.md"))
    arguments = parser.parse_args()
    tables, fingerprint = read_tables(arguments.evaluation)
    tables = [table for table in tables if table.title != "Pictures"]
    tables.append(cost_table())
    for name, folder, truth in arguments.run:
        run = RunDirectory.existing(Path(folder))
        tables.append(rerank_table(name, run, Path(truth), shipped_list(run)))
        tables.append(rerank_table(f"{name}, a laxer list", run, Path(truth), laxer_list(run)))
    body = "\n\n".join(table.markdown(2) for table in tables)
    arguments.out.write_text(
        f"{_HEAD}Fingerprint of the evaluation: {fingerprint}.\n\n{body}\n{_PICTURES}", encoding="utf-8"
    )
    print(body)


if __name__ == "__main__":
    main()
