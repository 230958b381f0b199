"""Stage judge: from pairs to suspects, who copied whom and what a reviewer need not see.

    pairs.parquet + verified.parquet + items + garments ─▶ suspects.parquet, suspects.csv

Never reported: pairs of one seller, pairs of a licensed seller and its licensor, pairs a reviewer has
dismissed.
"""

from __future__ import annotations

import csv
import datetime
import io
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.attributes import (
    Agreement,
    Attributes,
    agreements,
    read_attributes,
    read_embeddings,
    reranked,
)
from pipeline.calibration import load_calibration
from pipeline.dismissed import read_dismissed
from pipeline.errors import RunError, UserError
from pipeline.extract import garment_shards
from pipeline.items import Items, exclusion
from pipeline.match import read_background
from pipeline.rundir import RunDirectory, inputs_digest, write_atomically
from pipeline.schema import (
    CHANGED_COLUMNS,
    COS_COLUMNS,
    DISTINCTIVENESS_COLUMNS,
    PAIR_SCHEMA,
    STATE_COLUMNS,
    SUSPECT_SCHEMA,
    VERIFIED_SCHEMA,
    for_people,
    guard_formula,
    joined,
    pack_homography,
)
from pipeline.settings import JudgeSettings, Settings
from pipeline.verify import is_likely, is_suspicious
from psnet.config import digest
from psnet.regions import MIRROR, REGIONS
from psnet.verdict import CHANGED, RELATIONS, STATES, Calibration, explain, judge_registered

CSV_FIRST = ("rank", "original_item_id", "suspect_item_id", "score", "relation", "modified_regions")
"""The columns that suspects.csv begins with, whatever follows."""

_SEEN = ("registered_points", *CHANGED_COLUMNS, "homography", "laid")
WEIGHED_SCHEMA: pa.Schema = pa.schema(
    [
        *PAIR_SCHEMA,
        *(VERIFIED_SCHEMA.field(name) for name in _SEEN),
        pa.field("cos_mirrored", pa.bool_(), nullable=False),
    ]
)
"""Pairs worth reporting: what counts of the features and of the photographs, from the query's side.
``cos_mirrored``: the cosines are those of the flipped comparison, which the photographs may contradict."""


def _attributes(run: RunDirectory, settings: Settings) -> Attributes | None:
    """What suspects are ranked anew by. Raises UserError where that is wanted and cannot be."""
    if settings.rerank != "asen":
        return None
    attributes = read_attributes(run, settings)
    if not np.isfinite(attributes.thresholds).any():
        raise UserError(
            f"{run.path}: its attributes' weights have no thresholds (asen.json), so nothing says which "
            "garments agree; use weights of `psnet train asen` on labelled images, or rerank=none"
        )
    return attributes


def judge(run: RunDirectory, settings: Settings) -> None:
    """RUN/suspects.parquet and suspects.csv.

    Raises:
        UserError: the match is not done, the weights or the list of dismissed pairs cannot be used.
        RunError: the disk is full.
    """
    calibration = load_calibration(settings)
    listed = settings.judge.dismissed
    dismissed = {one.pair for one in read_dismissed(Path(listed))} if listed else set()
    originals = _originals(run)
    attributes = _attributes(run, settings)
    inputs = inputs_digest(
        run.require_current("crawl"),
        run.require_current("verify"),
        digest(settings.judge, results_only=True),
        settings.rerank,
        *([] if attributes is None else map(str, attributes.thresholds.tolist())),
        calibration.to_json(),
        *sorted("\n".join(sorted(pair)) for pair in dismissed),
        *sorted(originals),
    )
    with run.stage("judge", inputs, [run.suspects_path, run.suspects_csv_path]) as stage:
        if stage.finished:
            return
        items_table = pq.read_table(run.items_path)
        pairs = pq.read_table(run.pairs_path)
        pairs = weighed(
            pairs.filter(is_likely(pairs, settings, calibration)),
            pq.read_table(run.verified_path),
            items_table,
            calibration,
            settings.judge.relations,
        )
        items = Items(items_table)
        found, excluded = find_suspects(pairs, items, dismissed, originals)
        ranked = rank_suspects(found, settings.judge)
        reported = ranked[: settings.judge.max_suspects]
        pictures = {items[name]["image_sha256"] for one in reported for name in (one.original, one.suspect)}
        said: Sequence[Agreement | None] = [None] * len(reported)
        if attributes is not None:
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
        stage.note(
            relations=dict(sorted(Counter(table["relation"].to_pylist()).items())),
            registered=table.num_rows - table["registered_points"].null_count,
        )


def _originals(run: RunDirectory) -> frozenset[str]:
    """The items that a sweep asked for; of a scan none."""
    if not run.queries_path.exists():
        return frozenset()
    return frozenset(pq.read_table(run.queries_path)["item_id"].to_pylist())


def weighed(
    pairs: pa.Table, verified: pa.Table, items: pa.Table, calibration: Calibration, relations: Sequence[str]
) -> pa.Table:
    """The rows worth reporting: those whose photographs lie upon each other by what was seen there, all
    others by their features.

    Args:
        pairs: PAIR_SCHEMA. verified: VERIFIED_SCHEMA. items: ITEM_SCHEMA.
        relations: that are reported.

    Returns:
        WEIGHED_SCHEMA.
    """
    features = pc.and_(
        is_suspicious(pairs, calibration),
        pc.is_in(pairs["relation"], value_set=pa.array(relations, pa.string())),
    )
    row, swapped = _verified_rows(pairs, verified, items, calibration)
    seen = row >= 0
    chosen = np.flatnonzero(seen | np.asarray(features))
    pairs, row, swapped, seen = pairs.take(chosen), row[chosen], swapped[chosen], seen[chosen]
    said = verified.take(pa.array(row, mask=~seen))
    mirrored = np.asarray(pc.if_else(seen, said["mirrored"], pairs["mirrored"]))
    changed = np.stack([np.asarray(said[column].cast(pa.float32())) for column in CHANGED_COLUMNS], 1)
    turned = swapped & mirrored
    changed[turned] = changed[turned][:, list(MIRROR)]
    verdict = judge_registered(changed, calibration.changed_threshold or (np.inf,) * len(REGIONS))
    relation = np.where(seen, np.array(RELATIONS)[verdict.relation], np.asarray(pairs["relation"]))
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "relation": pa.array(relation, pa.string()),
        "mirrored": pa.array(mirrored),
        "cos_mirrored": pairs["mirrored"],
        **{
            column: pa.array(
                np.where(seen, np.array(STATES)[verdict.states[:, r]], np.asarray(pairs[column])), pa.string()
            )
            for r, column in enumerate(STATE_COLUMNS)
        },
    }
    columns |= {
        "registered_points": said["registered_points"],
        **{name: pa.array(changed[:, r], from_pandas=True) for r, name in enumerate(CHANGED_COLUMNS)},
        "homography": _turned(said["homography"], swapped, _inverse),
        "laid": _turned(said["laid"], swapped, _from_the_other),
    }
    every = [columns[name] if name in columns else pairs[name] for name in WEIGHED_SCHEMA.names]
    return pa.table(every, schema=WEIGHED_SCHEMA).filter(np.isin(relation, relations))


def _verified_rows(
    pairs: pa.Table, verified: pa.Table, items: pa.Table, calibration: Calibration
) -> tuple[np.ndarray, np.ndarray]:
    """Of each pair: its row of ``verified``, -1 where the photographs do not lie upon each other well enough;
    and whether the query is that row's other garment."""
    enough = pc.fill_null(
        pc.greater_equal(verified["registered_points"], calibration.registered_points), False
    )
    rows = (
        np.flatnonzero(np.asarray(enough)) if calibration.changed_threshold is not None else np.empty(0, int)
    )
    known = _pair_keys(*(verified.take(rows)[name] for name in VERIFIED_SCHEMA.names[:4]))
    picture = items["image_sha256"].take(pc.index_in(pairs["query_item_id"], value_set=items["item_id"]))
    other = items["image_sha256"].take(pc.index_in(pairs["match_item_id"], value_set=items["item_id"]))
    query, match = (picture, pairs["query_garment"]), (other, pairs["match_garment"])
    places = []
    for first, second in ((query, match), (match, query)):
        place = pc.index_in(_pair_keys(*first, *second), value_set=known)
        places.append(np.asarray(pc.fill_null(place, -1)).astype(np.int64))
    forward, backward = places
    place = np.maximum(forward, backward)
    return np.where(place >= 0, np.append(rows, -1)[place], -1), backward >= 0


_Turn = Callable[[list[float] | None], list[float] | None]


def _turned(column: pa.ChunkedArray, swapped: np.ndarray, turn: _Turn) -> pa.Array:
    """From the query to the match, where they are ``swapped``."""
    values = column.to_pylist()
    turned = [turn(value) if other else value for value, other in zip(values, swapped, strict=True)]
    return pa.array(turned, column.type)


def _inverse(homography: list[float] | None) -> list[float] | None:
    if homography is None:
        return None
    return pack_homography(np.linalg.inv(np.array(homography).reshape(3, 3)))


def _from_the_other(laid: list[float] | None) -> list[float] | None:
    if laid is None:
        return None
    turned: list[float] = np.reshape(laid, (-1, 4))[:, [2, 3, 0, 1]].ravel().tolist()
    return turned


def _pair_keys(*columns: pa.ChunkedArray) -> pa.ChunkedArray:
    """One text for a pair of garments: pictures and indices."""
    return pc.binary_join_element_wise(*(column.cast(pa.string()) for column in columns), " ")


@dataclass(frozen=True)
class Suspect:
    """A pair worth reporting. ``pair``: its row of what `weighed` gives; ``reverse``: the query is the
    suspect."""

    original: str
    suspect: str
    direction: str
    pair: dict[str, Any]
    reverse: bool

    @property
    def precedence(self) -> tuple[bool, bool]:
        """Of two rows on one pair of items, the higher one is reported."""
        return self.pair["registered_points"] is not None, not self.reverse

    def garments(self, items: Items) -> tuple[tuple[str, int], tuple[str, int]]:
        """Image hash and garment index of the original's and of the suspect's garment."""
        sides = ("match_garment", "query_garment") if self.reverse else ("query_garment", "match_garment")
        original, suspect = items[self.original], items[self.suspect]
        return (
            (original["image_sha256"], self.pair[sides[0]]),
            (suspect["image_sha256"], self.pair[sides[1]]),
        )


def find_suspects(
    pairs: pa.Table,
    items: Items,
    dismissed: Iterable[frozenset[str]] = (),
    originals: Container[str] = (),
) -> tuple[list[Suspect], Counter[str]]:
    """Each pair of items once, with its direction; and how many were excluded, by reason.

    Of a pair's two rows the one whose photographs lie upon each other is taken, then the one that asks from
    the original's side.

    Args:
        pairs: what `weighed` gives.
        originals: items that somebody asked for; where nothing says who was first, they stand first.
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
                verdicts[key] = None if reason else direction_of(items[query], items[match], originals)
            verdict = verdicts[key]
            if verdict is None:
                continue
            original, suspect, direction = verdict
            reverse = query != original
            one = Suspect(original, suspect, direction, pair, reverse)
            if key not in found or one.precedence > found[key].precedence:
                found[key] = one
    return list(found.values()), excluded


def direction_of(
    a: Mapping[str, str], b: Mapping[str, str], originals: Container[str] = ()
) -> tuple[str, str, str]:
    """(original, suspect, how that is known) of two items: item ids, and one of ``psnet.verdict.DIRECTIONS``.

    The holder of the right, where exactly one side is it; else the item that was listed first; else unknown,
    and the one of ``originals``, then the lexicographically smaller identifier, stands first.
    """
    first, second = sorted((a, b), key=lambda item: (item["item_id"] not in originals, item["item_id"]))
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
    order, of_cosines = (
        MIRROR if suspect.reverse and flipped else range(len(REGIONS))
        for flipped in (pair["mirrored"], pair["cos_mirrored"])
    )
    states = [pair[STATE_COLUMNS[r]] for r in order]
    codes = [STATES.index(state) for state in states]
    row: dict[str, Any] = {
        "rank": rank,
        "original_item_id": suspect.original,
        "suspect_item_id": suspect.suspect,
        "modified_regions": [name for name, code in zip(REGIONS, codes, strict=True) if code == CHANGED],
        "direction": suspect.direction,
        **{name: pair[name] for name in ("score", "relation", "mirrored", "normalised_score")},
        **{column: pair[COS_COLUMNS[r]] for column, r in zip(COS_COLUMNS, of_cosines, strict=True)},
        **dict(zip(STATE_COLUMNS, states, strict=True)),
        "registered_points": pair["registered_points"],
        "homography": _inverse(pair["homography"]) if suspect.reverse else pair["homography"],
        "laid": _from_the_other(pair["laid"]) if suspect.reverse else pair["laid"],
        **{column: pair[CHANGED_COLUMNS[r]] for column, r in zip(CHANGED_COLUMNS, order, strict=True)},
        "explanation": explain(
            codes,
            mirrored=pair["mirrored"],
            same_picture=original["image_sha256"] == copy["image_sha256"],
            points=pair["registered_points"],
            direction=suspect.direction,
            days_later=days_later(original["listed_at"], copy["listed_at"]),
            sellers_known=bool(original["seller_id"] and copy["seller_id"]),
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
    """suspects.csv: the contract's columns first, lists joined by "|", numbers with six digits. What sellers
    wrote is kept from being run as a formula; identifiers of items stay as they are, for programs."""
    names = [*CSV_FIRST, *(name for name in for_people(suspects) if name not in CSV_FIRST)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    columns = [
        [_cell(value, verbatim=name.endswith("_item_id")) for value in suspects[name].to_pylist()]
        for name in names
    ]
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue()


def _cell(value: Any, verbatim: bool) -> Any:
    if isinstance(value, list):
        return joined(value)
    if isinstance(value, float):
        return f"{value:.6f}"
    if isinstance(value, str):
        value = value if verbatim else guard_formula(value)
        # A carriage return, which nothing quotes, would be taken for the end of the row.
        return value.replace("\r\n", "\n").replace("\r", "\n")
    return "" if value is None else value
