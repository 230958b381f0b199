"""Stage judge: from pairs to suspects, who copied whom and what a reviewer need not see.

    pairs.parquet + items + garments ─▶ suspects.parquet, suspects.csv

Never reported: pairs of one seller, pairs of a licensed seller and its licensor, pairs a reviewer has
dismissed.
"""

from __future__ import annotations

import csv
import datetime
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.attributes import Agreement, agreements, read_attributes, read_embeddings, reranked
from pipeline.calibration import load_calibration
from pipeline.dismissed import read_dismissed
from pipeline.errors import RunError
from pipeline.extract import garment_shards
from pipeline.match import read_background
from pipeline.rundir import RunDirectory, inputs_digest, write_atomically
from pipeline.schema import COS_COLUMNS, DISTINCTIVENESS_COLUMNS, STATE_COLUMNS, SUSPECT_SCHEMA
from pipeline.settings import JudgeSettings, Settings
from psnet.config import digest
from psnet.regions import MIRROR, REGIONS
from psnet.verdict import CHANGED, STATES, explain

CSV_FIRST = ("rank", "original_item_id", "suspect_item_id", "score", "relation", "modified_regions")
"""The columns that suspects.csv begins with, whatever follows."""


def judge(run: RunDirectory, settings: Settings) -> None:
    """RUN/suspects.parquet and suspects.csv.

    Raises:
        UserError: the match is not done, the weights or the list of dismissed pairs cannot be used.
        RunError: the disk is full.
    """
    calibration = load_calibration(settings)
    listed = settings.judge.dismissed
    dismissed = {one.pair for one in read_dismissed(Path(listed))} if listed else set()
    inputs = inputs_digest(
        run.require("crawl"),
        run.require("match"),
        digest(settings.judge, results_only=True),
        settings.rerank,
        calibration.to_json(),
        *sorted("\n".join(sorted(pair)) for pair in dismissed),
    )
    with run.stage("judge", inputs, [run.suspects_path, run.suspects_csv_path]) as stage:
        if stage.finished:
            return
        pairs = pq.read_table(run.pairs_path)
        worth = pc.and_(
            pc.greater_equal(pairs["score"], pa.scalar(calibration.suspect_threshold, pa.float32())),
            pc.and_(
                pc.greater_equal(
                    pairs["normalised_score"], pa.scalar(calibration.normalised_threshold, pa.float32())
                ),
                pc.is_in(pairs["relation"], value_set=pa.array(settings.judge.relations, pa.string())),
            ),
        )
        items = Items(pq.read_table(run.items_path))
        found, excluded = find_suspects(pairs.filter(worth), items, dismissed)
        ranked = rank_suspects(found, settings.judge)
        reported = ranked[: settings.judge.max_suspects]
        pictures = {items[name]["image_sha256"] for one in reported for name in (one.original, one.suspect)}
        said: Sequence[Agreement | None] = [None] * len(reported)
        if settings.rerank == "asen":
            attributes = read_attributes(run, settings)
            embeddings = read_embeddings(run, pictures, len(attributes.names))
            said = agreements([one.garments(items) for one in reported], embeddings, attributes)
            order = reranked([one.pair[settings.judge.rank_by] for one in reported], said)
            reported, said = [reported[i] for i in order], [said[i] for i in order]
        table = suspect_table(reported, items, _known_garments(run, pictures), said)
        try:
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink)
            write_atomically(run.suspects_path, sink.getvalue().to_pybytes())
            write_atomically(run.suspects_csv_path, to_csv(table).encode())
        except OSError as error:
            raise RunError(f"{run.suspects_path}: cannot be written ({error.strerror or error})") from None
        stage.count_in = len(found) + sum(excluded.values())
        stage.count_out = table.num_rows
        for reason, count in excluded.items():
            stage.fail(reason, count)
        if len(found) > table.num_rows:
            stage.fail("beyond_max_suspects", len(found) - table.num_rows)
        stage.note(relations=dict(sorted(Counter(table["relation"].to_pylist()).items())))


class Items:
    """The items table, one dictionary per item that is asked for."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._row = {item: row for row, item in enumerate(table["item_id"].to_pylist())}
        self._seen: dict[str, dict[str, str]] = {}

    def __getitem__(self, item_id: str) -> Mapping[str, str]:
        if item_id not in self._seen:
            self._seen[item_id] = self._table.slice(self._row[item_id], 1).to_pylist()[0]
        return self._seen[item_id]


@dataclass(frozen=True)
class Suspect:
    """A pair worth reporting. ``pair``: its row of PAIR_SCHEMA; ``reverse``: the query is the suspect."""

    original: str
    suspect: str
    direction: str
    pair: dict[str, Any]
    reverse: bool

    def garments(self, items: Items) -> tuple[tuple[str, int], tuple[str, int]]:
        """Image hash and garment index of the original's and of the suspect's garment."""
        sides = ("match_garment", "query_garment") if self.reverse else ("query_garment", "match_garment")
        original, suspect = items[self.original], items[self.suspect]
        return (
            (original["image_sha256"], self.pair[sides[0]]),
            (suspect["image_sha256"], self.pair[sides[1]]),
        )


def find_suspects(
    pairs: pa.Table, items: Items, dismissed: Iterable[frozenset[str]] = ()
) -> tuple[list[Suspect], Counter[str]]:
    """Each pair of items once, with its direction; and how many were excluded, by reason.

    Of a pair's two rows the one that asks from the original's side is taken, where both are there.

    Args:
        pairs: PAIR_SCHEMA, rows worth reporting.
    """
    dismissed = set(dismissed)
    excluded: Counter[str] = Counter()
    found: dict[frozenset[str], Suspect] = {}
    verdicts: dict[frozenset[str], tuple[str, str, str] | None] = {}
    # Row by row: a table of all rows as dictionaries takes twenty times the memory.
    for batch in pairs.to_batches(max_chunksize=10_000):
        for pair in batch.to_pylist():
            query, match = pair["query_item_id"], pair["match_item_id"]
            key = frozenset((query, match))
            if key not in verdicts:
                reason = exclusion(items[query], items[match], key in dismissed)
                if reason:
                    excluded[reason] += 1
                verdicts[key] = None if reason else direction_of(items[query], items[match])
            verdict = verdicts[key]
            if verdict is None:
                continue
            original, suspect, direction = verdict
            reverse = query != original
            if key not in found or not reverse:
                found[key] = Suspect(original, suspect, direction, pair, reverse)
    return list(found.values()), excluded


def exclusion(a: Mapping[str, str], b: Mapping[str, str], dismissed: bool = False) -> str:
    """Why a pair is never reported: "same_seller", "licensed", "dismissed"; "" when it is."""
    if a["seller_id"] and a["seller_id"] == b["seller_id"]:
        return "same_seller"
    if _is_licensed(a, b) or _is_licensed(b, a):
        return "licensed"
    return "dismissed" if dismissed else ""


def _is_licensed(seller: Mapping[str, str], other: Mapping[str, str]) -> bool:
    licensors = {name.strip().casefold() for name in seller["licensed_from"].split("|")} - {""}
    return any(other[key].strip().casefold() in licensors for key in ("seller_id", "brand", "rights_holder"))


def direction_of(a: Mapping[str, str], b: Mapping[str, str]) -> tuple[str, str, str]:
    """(original, suspect, how that is known) of two items: item ids, and one of ``psnet.verdict.DIRECTIONS``.

    The holder of the right, where exactly one side is it; else the item that was listed first; else unknown,
    and the lexicographically smaller identifier stands first.
    """
    first, second = sorted((a, b), key=lambda item: item["item_id"])
    holders = {item["rights_holder"].strip().casefold() for item in (a, b)} - {""}
    holds = [
        any(item[key].strip().casefold() in holders for key in ("seller_id", "brand"))
        for item in (first, second)
    ]
    how = "unknown"
    if holds[0] != holds[1]:
        how = "rights_holder"
        if holds[1]:
            first, second = second, first
    else:
        later = days_later(first["listed_at"], second["listed_at"])
        if later:
            how = "original_first_listed"
            if later < 0:
                first, second = second, first
    return first["item_id"], second["item_id"], how


def days_later(first: str, second: str) -> int | None:
    """Days from one ISO date to another, None when one is missing or no date."""
    try:
        return (datetime.date.fromisoformat(second[:10]) - datetime.date.fromisoformat(first[:10])).days
    except ValueError:
        return None


def rank_suspects(suspects: Sequence[Suspect], settings: JudgeSettings) -> list[Suspect]:
    """Strongest suspicion first; ties by the other score, then by the identifiers."""
    other = "score" if settings.rank_by == "normalised_score" else "normalised_score"
    return sorted(suspects, key=lambda s: (-s.pair[settings.rank_by], -s.pair[other], s.original, s.suspect))


def suspect_table(
    suspects: Sequence[Suspect],
    items: Items,
    garments: Mapping[tuple[str, int], Mapping[str, Any]],
    said: Sequence[Agreement | None] | None = None,
) -> pa.Table:
    """SUSPECT_SCHEMA, ranked in the order given.

    Args:
        garments: by image hash and garment index: category, group and the columns of distinctiveness.
        said: of each suspect, in which attributes it agrees, where that was asked.
    """
    rows = [_row(rank, suspect, items, garments) for rank, suspect in enumerate(suspects, 1)]
    for row, one in zip(rows, said or (), strict=bool(said)):
        if one is not None:
            row["agreeing_attributes"] = list(one.agreeing)
            row["differing_attributes"] = list(one.differing)
            row["attribute_similarity"] = one.similarity
    return pa.Table.from_pylist(rows, schema=SUSPECT_SCHEMA)


def _row(
    rank: int, suspect: Suspect, items: Items, garments: Mapping[tuple[str, int], Mapping[str, Any]]
) -> dict[str, Any]:
    pair = suspect.pair
    original, copy = items[suspect.original], items[suspect.suspect]
    sides = suspect.garments(items)
    # Regions are named from the query's side. In a flipped comparison the other side's left is its right.
    order = MIRROR if suspect.reverse and pair["mirrored"] else range(len(REGIONS))
    states = [pair[STATE_COLUMNS[r]] for r in order]
    codes = [STATES.index(state) for state in states]
    row: dict[str, Any] = {
        "rank": rank,
        "original_item_id": suspect.original,
        "suspect_item_id": suspect.suspect,
        "modified_regions": [name for name, code in zip(REGIONS, codes, strict=True) if code == CHANGED],
        "direction": suspect.direction,
        **{name: pair[name] for name in ("score", "relation", "mirrored", "normalised_score")},
        **{column: pair[COS_COLUMNS[r]] for column, r in zip(COS_COLUMNS, order, strict=True)},
        **dict(zip(STATE_COLUMNS, states, strict=True)),
        "explanation": explain(
            codes,
            mirrored=pair["mirrored"],
            same_picture=original["image_sha256"] == copy["image_sha256"],
            direction=suspect.direction,
            days_later=days_later(original["listed_at"], copy["listed_at"]),
        ),
    }
    for side, item, garment in zip(("original", "suspect"), (original, copy), sides, strict=True):
        for name in _ITEM_COLUMNS:
            row[f"{side}_{name}"] = item[name]
        known = garments[garment]
        row[f"{side}_garment"] = garment[1]
        row[f"{side}_garment_category"] = known["category"] or ""
        row[f"{side}_garment_group"] = known["group"] or ""
        if side == "original":
            row.update({column: known.get(column) for column in DISTINCTIVENESS_COLUMNS})
    return row


_ITEM_COLUMNS = (
    "seller_id",
    "brand",
    "category",
    "title",
    "listed_at",
    "url",
    "image",
    "image_path",
    "image_sha256",
)


def _known_garments(run: RunDirectory, pictures: Iterable[str]) -> dict[tuple[str, int], dict[str, Any]]:
    """What ``suspect_table`` says of the garments of these pictures."""
    chosen = pa.array(sorted(pictures), pa.string())
    names = ["image_sha256", "garment_index", "category", "group"]
    tables = [pq.read_table(shard, columns=names) for shard in garment_shards(run)]
    known: dict[tuple[str, int], dict[str, Any]] = {}
    for table in (*tables, read_background(run)):
        for row in table.filter(pc.is_in(table["image_sha256"], value_set=chosen)).to_pylist():
            known.setdefault((row["image_sha256"], row["garment_index"]), {}).update(row)
    return known


def to_csv(suspects: pa.Table) -> str:
    """suspects.csv: the contract's columns first, lists joined by "|", numbers with six digits."""
    names = [*CSV_FIRST, *(name for name in suspects.column_names if name not in CSV_FIRST)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    columns = [[_cell(value) for value in suspects[name].to_pylist()] for name in names]
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return "|".join(value)
    if isinstance(value, float):
        return f"{value:.6f}"
    return "" if value is None else value
