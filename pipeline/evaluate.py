"""A run against the truth about its catalogue: how many copies were found, how many accusations are right.

The truth is a file as `psnet.evaluation.truth` reads it; pairs inside a design are true links.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.rundir import RunDirectory
from psnet.evaluation import truth as truths
from psnet.evaluation.retrieval import CUTOFFS, average_precision
from psnet.evaluation.truth import ACCUSED, TruthPair, designs, part_overlap, rightly_named


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
    """The pairs of a truth file.

    Raises:
        UserError: missing file, a missing column, or a value that means nothing.
    """
    try:
        return truths.read_truth(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(str(error)) from None


def retrieval(run: RunDirectory, truth: Iterable[TruthPair]) -> dict[str, dict[str, float]]:
    """Recall at ``CUTOFFS`` and mAP per group and "overall", as in PS-Net's Table 2.

    Queries are originals, relevant are their plagiarised copies; other items of the same design are neither
    right nor wrong. Recall at k is over min(k, number of copies).

    Raises:
        UserError: the run has no pairs yet.
    """
    run.require("match")
    truth = list(truth)
    design = designs(truth)
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
    design = designs(truth)
    by_key = {frozenset((pair.original, pair.copy)): pair for pair in truth}
    wanted = {key for key, pair in by_key.items() if pair.relation in ACCUSED}
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
        named_rightly.append(rightly_named(row["relation"], pair.relation))
        if pair.relation == "plagiarised":
            overlaps.append(part_overlap(row["modified_regions"], pair.parts))
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
