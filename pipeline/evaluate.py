"""A run against the truth about its catalogue: how many copies were found, how many accusations are right.

The truth is a CSV file with the columns original, copy, relation (identical, plagiarised or derived), group
and modified ('|'-joined regions). All copies of one original are one design; pairs inside a design are true
links.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.rundir import RunDirectory
from psnet.evaluation.benchmark import designs, parts_of
from psnet.evaluation.retrieval import CUTOFFS, average_precision

_COLUMNS = ("original", "copy", "relation", "group", "modified")


@dataclass(frozen=True)
class TruthPair:
    """One row of the truth."""

    original: str
    copy: str
    relation: str
    group: str
    modified: frozenset[str]


@dataclass(frozen=True)
class Verdicts:
    """The list of suspects against the truth.

    Attributes:
        suspects: how many are reported.
        right: how many of them are two items of one design.
        wanted: identical and plagiarised pairs of the truth.
        found: how many of these are reported.
        relation_accuracy: share of reported pairs of the truth whose relation is named rightly.
        modified_iou: mean overlap of the named and the true modified parts, over reported plagiarised pairs.
        precision_at: share of right ones among the first n suspects.
    """

    suspects: int
    right: int
    wanted: int
    found: int
    relation_accuracy: float
    modified_iou: float
    precision_at: dict[int, float] = field(default_factory=dict)


def read_truth(path: Path) -> list[TruthPair]:
    """Rows of a truth file.

    Raises:
        UserError: missing file, or one without the columns.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [column for column in _COLUMNS if column not in (reader.fieldnames or [])]
            if missing:
                raise UserError(
                    f"{path}: missing column {', '.join(missing)}; a truth file has {', '.join(_COLUMNS)}"
                )
            return [
                TruthPair(
                    row["original"],
                    row["copy"],
                    row["relation"],
                    row["group"],
                    parts_of(filter(None, (row["modified"] or "").split("|"))),
                )
                for row in reader
            ]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def retrieval(run: RunDirectory, truth: Iterable[TruthPair]) -> dict[str, dict[str, float]]:
    """Recall at ``CUTOFFS`` and mAP per group and "overall", as in PS-Net's Table 2.

    Queries are originals, relevant are their plagiarised copies; other items of the same design are neither
    right nor wrong. Recall at k is over min(k, number of copies).

    Raises:
        UserError: the run has no pairs yet.
    """
    run.require("match")
    truth = list(truth)
    design = designs((pair.original, pair.copy) for pair in truth)
    wanted: dict[str, set[str]] = defaultdict(set)
    group_of = {}
    for pair in truth:
        if pair.relation == "plagiarised":
            wanted[pair.original].add(pair.copy)
            group_of[pair.original] = pair.group
    table = pq.read_table(run.pairs_path, columns=["query_item_id", "match_item_id", "rank"])
    partners: dict[str, list[str]] = defaultdict(list)
    for row in table.sort_by([("query_item_id", "ascending"), ("rank", "ascending")]).to_pylist():
        if row["query_item_id"] in wanted:
            partners[row["query_item_id"]].append(row["match_item_id"])
    figures: dict[str, list[dict[str, float]]] = defaultdict(list)
    for query, copies in wanted.items():
        others = (match for match in dict.fromkeys(partners[query]) if match != query)
        hits = [match in copies for match in others if match in copies or design.get(match) != query]
        row = {f"recall@{k}": sum(hits[:k]) / min(k, len(copies)) for k in CUTOFFS}
        row["mAP"] = average_precision(hits, len(copies))
        figures[group_of[query]].append(row)
        figures["overall"].append(row)
    order = sorted(figures, key=lambda group: (group == "overall", group))
    return {
        group: {name: _mean(row[name] for row in figures[group]) for name in figures[group][0]}
        for group in order
    }


def verdicts(run: RunDirectory, truth: Iterable[TruthPair]) -> Verdicts:
    """The run's suspects against the truth.

    Raises:
        UserError: the run has no suspects yet.
    """
    run.require("judge")
    truth = list(truth)
    design = designs((pair.original, pair.copy) for pair in truth)
    by_key = {frozenset((pair.original, pair.copy)): pair for pair in truth}
    accused = ("plagiarised", "identical")
    wanted = {key for key, pair in by_key.items() if pair.relation in accused}
    columns = ["original_item_id", "suspect_item_id", "relation", "modified_regions", "rank"]
    table = pq.read_table(run.suspects_path, columns=columns)
    right: list[bool] = []
    found: set[frozenset[str]] = set()
    named_rightly: list[bool] = []
    overlaps: list[float] = []
    for row in table.sort_by("rank").to_pylist():
        a, b = row["original_item_id"], row["suspect_item_id"]
        key = frozenset((a, b))
        right.append(design.get(a, a) == design.get(b, b))
        if (pair := by_key.get(key)) is None:
            continue
        found.add(key)
        named_rightly.append(
            row["relation"] == pair.relation
            or (pair.relation == "derived" and row["relation"] not in accused)
        )
        if pair.relation == "plagiarised":
            named = parts_of(row["modified_regions"])
            overlaps.append(len(named & pair.modified) / max(len(named | pair.modified), 1))
    return Verdicts(
        suspects=len(right),
        right=sum(right),
        wanted=len(wanted),
        found=len(found & wanted),
        relation_accuracy=_mean(named_rightly),
        modified_iou=_mean(overlaps),
        precision_at={n: _mean(right[:n]) for n in (50, 100, 200, 400) if len(right) >= n},
    )


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0
