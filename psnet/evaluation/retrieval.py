"""Retrieval as in PS-Net's Table 2: queries are originals, relevant are their plagiarised copies.

Other items of the same design, an identical or a derived copy, are neither right nor wrong: they are left
out of the ranking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from psnet.evaluation import paper
from psnet.evaluation.benchmark import Benchmark
from psnet.evaluation.intervals import ByCluster, Estimate, bootstrap_mean
from psnet.evaluation.tables import Cell, Table
from psnet.evaluation.truth import ACCUSED, TruthPair
from psnet.regions import GROUPS

CUTOFFS = (1, 10, 20)
FIGURES: tuple[str, ...] = (*(f"recall@{k}" for k in CUTOFFS), "mAP")


@dataclass(frozen=True)
class QueryResult:
    """``figures``: by name of ``FIGURES``; ``strangers_before``: for every plagiarised copy the number of
    items of other designs that rank before it, None where it is not in the ranking."""

    original: str
    group: str
    figures: Mapping[str, float]
    strangers_before: Mapping[str, int | None]


def average_precision(hits: Sequence[bool], relevant: int) -> float:
    """Mean over the ``relevant`` items of the precision at their rank, 0 for those not in ``hits``."""
    found, total = 0, 0.0
    for position, hit in enumerate(hits, 1):
        if hit:
            found += 1
            total += found / position
    return total / relevant


def queries(benchmark: Benchmark) -> list[str]:
    """The originals with at least one plagiarised copy."""
    return list(dict.fromkeys(p.original for p in benchmark.truth if p.relation == "plagiarised"))


def rank_queries(benchmark: Benchmark, scores: np.ndarray, seed: int = 0) -> list[QueryResult]:
    """Every query's ranking judged.

    Args:
        scores: (q, items) of ``queries(benchmark)`` against all items, -inf: not in the ranking. Equal scores
            are ordered by chance (``seed``), so that the catalogue's order cannot help.
    """
    names = [item.item_id for item in benchmark.items]
    design = benchmark.design
    wanted: dict[str, set[str]] = {}
    group = {}
    for pair in benchmark.truth:
        if pair.relation == "plagiarised":
            wanted.setdefault(pair.original, set()).add(pair.copy)
            group[pair.original] = pair.group
    tie_break = np.random.default_rng(seed).permutation(len(names))
    results = []
    for query, row in zip(queries(benchmark), scores, strict=True):
        copies = wanted[query]
        before: dict[str, int | None] = dict.fromkeys(sorted(copies))
        hits: list[bool] = []
        strangers = 0
        for index in np.lexsort((tie_break, -row)):
            name = names[index]
            if not np.isfinite(row[index]) or name == query:
                continue
            if name in copies:
                hits.append(True)
                before[name] = strangers
            elif design.get(name) != query:
                hits.append(False)
                strangers += 1
        figures = {f"recall@{k}": sum(hits[:k]) / min(k, len(copies)) for k in CUTOFFS}
        figures["mAP"] = average_precision(hits, len(copies))
        results.append(QueryResult(query, group[query], figures, before))
    return results


def summary(results: Sequence[QueryResult], seed: int = 0) -> dict[str, dict[str, Estimate]]:
    """Figures per group that occurs and "overall", means over the queries with bootstrap intervals."""
    out = {}
    for name in (*GROUPS, "overall"):
        chosen = [r for r in results if name in ("overall", r.group)]
        if chosen:
            out[name] = {f: bootstrap_mean([r.figures[f] for r in chosen], seed) for f in FIGURES}
    return out


def copy_classes(pair: TruthPair) -> list[str]:
    """The rows of the tables by kind of edit and of photograph that a copy counts for."""
    flip = "photograph flipped" if pair.mirrored else "photograph not flipped"
    return [
        *(f"edit: {kind}" for kind in sorted(set(pair.kinds))),
        *(f"part: {part}" for part in sorted(pair.parts)),
        flip,
        "all",
    ]


def recall_by_class(benchmark: Benchmark, results: Sequence[QueryResult], k: int) -> dict[str, Estimate]:
    """Share of plagiarised copies before which fewer than ``k`` items of other designs rank, per class."""
    before = {(r.original, copy): count for r in results for copy, count in r.strangers_before.items()}
    hits: dict[str, ByCluster] = {}
    for pair in benchmark.truth:
        if pair.relation == "plagiarised":
            count = before[pair.original, pair.copy]
            for name in copy_classes(pair):
                hits.setdefault(name, ByCluster()).add(pair.original, count is not None and count < k)
    return {name: hits[name].share() for name in sorted(hits)}


def contrast(
    having: Sequence[Sequence[QueryResult]], lacking: Sequence[Sequence[QueryResult]], seed: int = 0
) -> dict[str, Estimate]:
    """By how much the figures of ``having`` lie above those of ``lacking``: methods judged on the same
    queries, of several on one side the mean; queries resampled, so that what is hard for both cancels out."""

    def mean(methods: Sequence[Sequence[QueryResult]], figure: str) -> np.ndarray:
        return np.mean([[result.figures[figure] for result in results] for results in methods], axis=0)

    return {f: bootstrap_mean(mean(having, f) - mean(lacking, f), seed) for f in FIGURES}


def precision_recall(
    benchmark: Benchmark, scores: np.ndarray, points: int = 200, group: str | None = None
) -> list[tuple[float, float]]:
    """(recall, precision) of "this pair is a copy" over all thresholds on the score, at most ``points`` of
    them.

    Pairs are (query, item) of ``scores``, of the queries of ``group`` or of all; right are identical and
    plagiarised copies of the query, other items of its design are left out, a copy that has no score is never
    found. Of equal scores the wrong ones come first.
    """
    rows = benchmark.rows
    right: dict[str, set[int]] = {}
    for pair in benchmark.truth:
        if pair.relation in ACCUSED:
            right.setdefault(pair.original, set()).add(rows[pair.copy])
    design = benchmark.design
    own = np.array([design.get(item.item_id, "") for item in benchmark.items])
    groups = {pair.original: pair.group for pair in benchmark.truth}
    values, labels, wanted = [np.zeros(0)], [np.zeros(0, bool)], 0
    for query, row in zip(queries(benchmark), scores, strict=True):
        if group not in (None, groups[query]):
            continue
        positive = np.zeros(len(row), bool)
        positive[list(right[query])] = True
        used = np.isfinite(row) & (positive | (own != query))
        values.append(row[used])
        labels.append(positive[used])
        wanted += int(positive.sum())
    label, value = np.concatenate(labels), np.concatenate(values)
    label = label[np.lexsort((label, -value))]
    found = np.cumsum(label)
    recall, precision = found / max(wanted, 1), found / np.arange(1, len(label) + 1)
    at = np.flatnonzero(label)
    at = at[np.unique(np.linspace(0, len(at) - 1, min(points, len(at))).astype(int))] if len(at) else at
    return [(float(recall[i]), float(precision[i])) for i in at]


_PAPER_COLUMNS = ("paper: Top-10", "paper: Top-20", "paper: mAP")
_COLUMNS = ("Top-1", "Top-10", "Top-20", "mAP")


def group_table(title: str, note: str, summaries: Mapping[str, Mapping[str, Estimate]]) -> Table:
    """One method, a row per group, beside the paper's PS-Net."""
    rows: list[tuple[Cell, ...]] = []
    for name, figures in summaries.items():
        said = paper.RETRIEVAL_BY_GROUP[name]
        rows.append((name, figures["mAP"].count, *(figures[f] for f in FIGURES), *said))
    return Table(title, note, ("group", "queries", *_COLUMNS, *_PAPER_COLUMNS), tuple(rows))


def contrast_table(
    title: str, note: str, rows: Sequence[tuple[str, str, str, Mapping[str, Estimate]]]
) -> Table:
    """A row per contrast: its name, the methods that have it and those that lack it, as ``contrast`` compares
    them."""
    columns = ("what", "with", "without", *(f"difference in {name}" for name in _COLUMNS[1:]), "on mAP")
    cells: list[tuple[Cell, ...]] = [
        (name, having, lacking, *(figures[f] for f in FIGURES[1:]), _shown(figures["mAP"]))
        for name, having, lacking, figures in rows
    ]
    return Table(title, note, columns, tuple(cells))


def _shown(difference: Estimate) -> str:
    if difference.low > 0:
        return "helps"
    return "harms" if difference.high < 0 else "not shown"


def variant_table(
    title: str,
    note: str,
    rows: Sequence[tuple[str, tuple[float, float, float] | None, Mapping[str, Estimate]]],
) -> Table:
    """A row per method: its name, the paper's figures of it, ours."""
    nothing: tuple[Cell, ...] = (None, None, None)
    cells = tuple((name, *(figures[f] for f in FIGURES), *(said or nothing)) for name, said, figures in rows)
    return Table(title, note, ("method", *_COLUMNS, *_PAPER_COLUMNS), cells)
