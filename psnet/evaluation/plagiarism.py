"""Verdicts against the truth: who is accused, of what, and whether an edit stays in its region.

All pairs of a benchmark are compared, as a scan does it, and the photographs of likely ones are looked at
again; a pair is suspected when these lie upon each other, or its score and its normalised score reach the
calibrated thresholds, its verdict is identical or plagiarised and its items have different sellers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from psnet.evaluation.benchmark import Benchmark
from psnet.evaluation.garments import GarmentTable
from psnet.evaluation.intervals import NOTHING, ByCluster, Estimate, bootstrap_median
from psnet.evaluation.looks import Looks
from psnet.evaluation.retrieval import copy_classes
from psnet.evaluation.scores import (
    ComparedPairs,
    ScoreSettings,
    best_garments,
    blocks,
    compare_garments,
    levels,
)
from psnet.evaluation.tables import Cell, Table
from psnet.evaluation.truth import ACCUSED, TruthPair, part_overlap, rightly_named
from psnet.regions import NUM_REGIONS, REGIONS, Presence
from psnet.similarity import mirrored_presence, normalise
from psnet.verdict import (
    LOOKED_AT,
    RELATIONS,
    Calibration,
    Verdict,
    is_likely_copy,
    modified_regions,
    weigh,
)
from psnet.verification import Verification, as_arrays

# A model that takes everything for a copy must not fill the memory with pairs.
MAX_PAIRS = 500_000
# What the median cosine of an untouched region may lose, and what an edited one must lose.
UNTOUCHED_FALL, EDITED_FALL = 0.05, 0.3


@dataclass(frozen=True)
class Suspect:
    """A pair that is accused; ``relation`` a name of ``psnet.verdict.RELATIONS``, ``regions`` the modified
    ones."""

    original: str
    copy: str
    score: float
    relation: str
    regions: frozenset[str]


def settings_of(calibration: Calibration) -> ScoreSettings:
    """How the calibration's thresholds want pairs to be scored."""
    return ScoreSettings(calibration.scoring, calibration.weights)


def find_suspects(
    table: GarmentTable, benchmark: Benchmark, calibration: Calibration, looks: Looks | None = None
) -> list[Suspect]:
    """The accused pairs, each once, best score first; of a pair of an original and its copy the original is
    the query, of others the item that stands first.

    Args:
        looks: at the photographs of the likely pairs; None: features alone decide.
    """
    settings = settings_of(calibration)
    level = levels(table, settings)
    asked, found = _candidates(table, benchmark, settings, level, calibration, likely=looks is not None)
    comparison = compare_garments(table, asked, found, settings)
    normal = normalise(comparison.score, (level[asked] + level[found]) / 2)
    seen: list[Verification | None] = [None] * len(asked)
    if looks is not None:
        rows = _best_of_either(table, asked, found, normal)
        for p, said in zip(rows, looks.of(asked[rows], found[rows]), strict=True):
            seen[p] = said
    points, changed = as_arrays(seen)
    verdict, accused = weigh(
        calibration, comparison.cos, comparison.comparable, comparison.score, normal, points, changed
    )
    best: dict[tuple[str, str], tuple[tuple[bool, float], Suspect]] = {}
    for p in np.flatnonzero(accused):
        key = (
            benchmark.items[int(table.item[asked[p]])].item_id,
            benchmark.items[int(table.item[found[p]])].item_id,
        )
        regions = frozenset(modified_regions(verdict.states[p].tolist()))
        one = Suspect(*key, float(comparison.score[p]), RELATIONS[verdict.relation[p]], regions)
        rank = points[p] >= calibration.registered_points, one.score
        if key not in best or best[key][0] < rank:
            best[key] = rank, one
    return sorted((one for _, one in best.values()), key=lambda one: (-one.score, one.original, one.copy))


def _candidates(
    table: GarmentTable,
    benchmark: Benchmark,
    settings: ScoreSettings,
    level: np.ndarray,
    calibration: Calibration,
    *,
    likely: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of garments of different sellers that reach the thresholds but for rounding, or are ``likely`` as
    well: (p,) rows of the table each, at most ``MAX_PAIRS``, the best ones. Each once: the original asks for
    its copy, of others the item that stands first."""
    query, match, value = [np.zeros(0, int)], [np.zeros(0, int)], [np.zeros(0, np.float32)]
    sellers = np.array([item.seller_id for item in benchmark.items])
    rows = benchmark.rows
    known = np.zeros((len(benchmark.items),) * 2, np.int8)
    for pair in benchmark.truth:
        known[rows[pair.original], rows[pair.copy]] = 1
        known[rows[pair.copy], rows[pair.original]] = -1
    for at, score in blocks(table, np.arange(len(table)), settings):
        asks = table.item[at, None]
        score[asks == table.item] = -np.inf
        score[(sellers[asks] == sellers[table.item]) & (sellers[asks] != "")] = -np.inf
        side = known[asks, table.item]
        score[(side < 0) | ((side == 0) & (asks > table.item))] = -np.inf
        normal = normalise(score, (level[at, None] + level) / 2)
        enough = (score >= calibration.suspect_threshold - 1e-4) & (
            normal >= calibration.normalised_threshold - 1e-3
        )
        enough |= likely & is_likely_copy(score, normal)
        some, others = np.nonzero(enough)
        query.append(at[some])
        match.append(others)
        value.append(score[some, others])
    order = np.argsort(-np.concatenate(value), kind="stable")[:MAX_PAIRS]
    return np.concatenate(query)[order], np.concatenate(match)[order]


def _best_of_either(
    table: GarmentTable, query: np.ndarray, match: np.ndarray, normal: np.ndarray
) -> np.ndarray:
    """Positions of the pairs that are among the ``LOOKED_AT`` best of either item."""
    taken: Counter[int] = Counter()
    chosen = []
    for p in np.argsort(-normal, kind="stable"):
        both = int(table.item[query[p]]), int(table.item[match[p]])
        if min(taken[item] for item in both) < LOOKED_AT:
            chosen.append(p)
        taken.update(both)
    return np.array(chosen, int)


@dataclass(frozen=True)
class Verdicts:
    """The list of suspects against the truth, all shares with their intervals.

    ``precision``: two items of one design, of all suspects; ``recall``: listed, of the identical and
    plagiarised pairs; ``relation``: named rightly, of the listed pairs of the truth; ``iou``: of the named
    and the true modified parts, mean over listed plagiarised pairs.
    """

    suspects: int
    precision: Estimate
    recall: Estimate
    relation: Estimate
    iou: Estimate


def score_suspects(benchmark: Benchmark, suspects: Sequence[Suspect], seed: int = 0) -> Verdicts:
    """A pair of two copies of one design is right, and says nothing about relation and regions. Pairs of one
    design are no independent cases."""
    design = benchmark.design
    truth = {frozenset((pair.original, pair.copy)): pair for pair in benchmark.truth}
    right, wanted, named, overlaps = (ByCluster() for _ in range(4))
    found = set()
    for one in suspects:
        of = design.get(one.original, one.original)
        right.add(of, of == design.get(one.copy, one.copy))
        key = frozenset((one.original, one.copy))
        pair = truth.get(key)
        if pair is None:
            continue
        found.add(key)
        named.add(of, rightly_named(one.relation, pair.relation))
        if pair.relation == "plagiarised":
            overlaps.add(of, part_overlap(one.regions, pair.parts))
    for key, pair in truth.items():
        if pair.relation in ACCUSED:
            wanted.add(pair.original, key in found)
    return Verdicts(len(suspects), right.share(), wanted.share(), named.share(), overlaps.mean(seed))


def recall_by_class(benchmark: Benchmark, suspects: Sequence[Suspect]) -> dict[str, Estimate]:
    """Share of identical and plagiarised pairs that are listed, per kind of edit, part and photograph."""
    listed = {frozenset((one.original, one.copy)) for one in suspects}
    return _by_class(
        benchmark.truth, [frozenset((pair.original, pair.copy)) in listed for pair in benchmark.truth]
    )


def _by_class(truth: Sequence[TruthPair], hits: Sequence[bool]) -> dict[str, Estimate]:
    of_class: dict[str, ByCluster] = {}
    for pair, hit in zip(truth, hits, strict=True):
        if pair.relation in ACCUSED:
            for name in copy_classes(pair):
                of_class.setdefault(name, ByCluster()).add(pair.original, hit)
    return {name: of_class[name].share() for name in sorted(of_class)}


@dataclass(frozen=True)
class TruthVerdicts:
    """Every pair of the truth compared and judged, whatever its score; ``registered`` (p,) bool: by its
    photographs."""

    truth: tuple[TruthPair, ...]
    pairs: ComparedPairs
    verdict: Verdict
    registered: np.ndarray
    table: GarmentTable


def judge_truth(
    table: GarmentTable, benchmark: Benchmark, calibration: Calibration, looks: Looks | None = None
) -> TruthVerdicts:
    """The best garments of each original and copy, the original as the query.

    Args:
        looks: at their photographs; None: features alone decide.
    """
    rows = benchmark.rows
    pairs = best_garments(
        table, [(rows[p.original], rows[p.copy]) for p in benchmark.truth], settings_of(calibration)
    )
    one = pairs.comparison
    seen: list[Verification | None] = [None] * len(pairs.query)
    points, changed = as_arrays(seen if looks is None else looks.of(pairs.query, pairs.match))
    verdict, _ = weigh(calibration, one.cos, one.comparable, one.score, one.score, points, changed)
    registered = points >= calibration.registered_points
    return TruthVerdicts(benchmark.truth, pairs, verdict, registered, table)


def registered_by_class(judged: TruthVerdicts) -> dict[str, Estimate]:
    """Share of identical and plagiarised pairs whose photographs lie upon each other."""
    return _by_class(judged.truth, judged.registered.tolist())


OUTCOMES: tuple[str, ...] = (*RELATIONS, "no garment")


def confusion(judged: TruthVerdicts, *, by_parts: bool = False) -> np.ndarray:
    """(6, 5) counts of pairs: true number of modified regions 0…5 against the verdict, columns as
    ``OUTCOMES``. ``by_parts``: both sleeves count as one, as they do for the verdict."""
    matrix = np.zeros((NUM_REGIONS + 1, len(OUTCOMES)), int)
    outcome = np.where(judged.pairs.found, judged.verdict.relation, len(RELATIONS))
    for pair, said in zip(judged.truth, outcome, strict=True):
        matrix[len(pair.parts if by_parts else pair.regions), said] += 1
    return matrix


@dataclass(frozen=True)
class Leakage:
    """How far the cosines of one region fall from the identical copy to copies with one edited part.

    ``untouched``: median over copies whose edit is elsewhere; ``edited``: over copies whose edit is here.
    """

    untouched: Estimate
    edited: Estimate


def leakage(judged: TruthVerdicts, seed: int = 0) -> dict[str, Leakage]:
    """Per region and "overall", over plagiarised copies with one modified part, where original, identical
    copy and edited copy all show the region. Intervals by resampling designs."""
    cos = judged.pairs.comparison.cos
    base: dict[str, list[int]] = {}
    for p, pair in enumerate(judged.truth):
        if pair.relation == "identical" and judged.pairs.found[p]:
            base.setdefault(pair.original, []).append(p)
    falls: list[tuple[int, bool, float, str]] = []
    for p, pair in enumerate(judged.truth):
        if pair.relation != "plagiarised" or len(pair.parts) != 1 or not judged.pairs.found[p]:
            continue
        for r in np.flatnonzero(_seen(judged, p)):
            before = [cos[i, r] for i in base.get(pair.original, []) if _seen(judged, i)[r]]
            if before:
                fall = float(np.mean(before) - cos[p, r])
                falls.append((int(r), REGIONS[r] in pair.regions, fall, pair.original))

    def median(region: int | None, edited: bool) -> Estimate:
        chosen = [f for f in falls if region in (None, f[0]) and f[1] == edited]
        if not chosen:
            return NOTHING
        return bootstrap_median([f[2] for f in chosen], [f[3] for f in chosen], seed)

    out = {name: Leakage(median(r, False), median(r, True)) for r, name in enumerate(REGIONS)}
    return {**out, "overall": Leakage(median(None, False), median(None, True))}


def _seen(judged: TruthVerdicts, p: int) -> np.ndarray:
    """(5,) bool: present on both sides. Absent against present is a change without a cosine."""
    query, match = (judged.table.presence[rows[p]] for rows in (judged.pairs.query, judged.pairs.match))
    if judged.pairs.comparison.mirrored[p]:
        match = mirrored_presence(match)
    return (query == Presence.PRESENT) & (match == Presence.PRESENT)


# --- tables


def verdict_table(title: str, note: str, rows: Mapping[str, Verdicts]) -> Table:
    """A row per method."""
    columns = (
        "method",
        "suspects",
        "pair precision",
        "pair recall",
        "right relation",
        "modified-region IoU",
    )
    cells = tuple((name, v.suspects, v.precision, v.recall, v.relation, v.iou) for name, v in rows.items())
    return Table(title, note, columns, cells)


def confusion_table(title: str, note: str, matrix: np.ndarray, unit: str) -> Table:
    """``matrix`` as ``confusion`` gives it; ``unit`` "regions" or "parts". Rows without a pair are left
    out."""
    cells: list[tuple[Cell, ...]] = [
        (str(count), int(row.sum()), *(int(v) for v in row)) for count, row in enumerate(matrix) if row.any()
    ]
    return Table(title, note, (f"modified {unit}", "pairs", *OUTCOMES), tuple(cells))


def class_table(title: str, note: str, columns: Mapping[str, Mapping[str, Estimate]]) -> Table:
    """A row per class of copies, a column per way of finding them; number: of the copies that any of them
    counts."""
    names = sorted({name for figures in columns.values() for name in figures})
    rows = tuple(
        (
            name,
            max(figures[name].count for figures in columns.values() if name in figures),
            *(figures.get(name) for figures in columns.values()),
        )
        for name in names
    )
    return Table(title, note, ("copies", "number", *columns), rows)


def leakage_table(title: str, note: str, leaks: Mapping[str, Leakage]) -> Table:
    """A row per region, with what is demanded of it."""
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            leak.untouched,
            leak.untouched.count,
            leak.edited,
            leak.edited.count,
            _judged(leak),
        )
        for name, leak in leaks.items()
    ]
    columns = (
        "region",
        f"fall, untouched (at most {UNTOUCHED_FALL})",
        "copies",
        f"fall, edited (at least {EDITED_FALL})",
        "copies ",
        "holds",
    )
    return Table(title, note, columns, tuple(rows))


def _judged(leak: Leakage) -> str:
    if not leak.untouched.count or not leak.edited.count:
        return ""
    holds = leak.untouched.value <= UNTOUCHED_FALL and leak.edited.value >= EDITED_FALL
    return "yes" if holds else "no"
