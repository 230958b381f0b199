"""From pairs to suspects: who is the original, and what is never reported."""

from __future__ import annotations

import csv
import io
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dismissed import read_dismissed
from pipeline.errors import UserError
from pipeline.items import Items, exclusion
from pipeline.judge import (
    CSV_FIRST,
    WEIGHED_SCHEMA,
    direction_of,
    find_suspects,
    judge,
    suspect_table,
    to_csv,
    weighed,
)
from pipeline.match import match
from pipeline.schema import CHANGED_COLUMNS, PAIR_SCHEMA, SUSPECT_SCHEMA, VERIFIED_SCHEMA
from pipeline.settings import load_settings
from pipeline.verify import verify
from psnet.verdict import Calibration
from psnet.warp import NODES
from tests.pipeline.synthetic_garments import catalogue, item_table, plain_items, write_run


def item(item_id: str, **values: str) -> dict[str, str]:
    empty = dict.fromkeys(("seller_id", "brand", "listed_at", "rights_holder", "licensed_from"), "")
    return {**empty, "item_id": item_id, **values}


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ({"seller_id": "s"}, {"seller_id": "s"}, "same_seller"),
        ({"seller_id": "s"}, {"seller_id": "t"}, ""),
        ({"seller_id": ""}, {"seller_id": ""}, ""),  # a folder of images names no sellers
        ({"seller_id": "s", "licensed_from": "x|t"}, {"seller_id": "t"}, "licensed"),
        ({"seller_id": "s"}, {"seller_id": "t", "licensed_from": " S "}, "licensed"),
        ({"licensed_from": "Acme"}, {"brand": "ACME"}, "licensed"),
        ({"licensed_from": "Acme Ltd"}, {"rights_holder": "acme ltd"}, "licensed"),
        ({"licensed_from": "|"}, {"seller_id": "t"}, ""),
    ],
)
def test_exclusions(a, b, reason):
    assert exclusion(item("a", **a), item("b", **b)) == reason


def test_a_dismissed_pair_is_excluded():
    assert exclusion(item("a"), item("b"), dismissed=True) == "dismissed"


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ({"listed_at": "2024-05-01"}, {"listed_at": "2024-04-30"}, ("b", "original_first_listed")),
        ({"listed_at": "2024-04-30T10:00:00Z"}, {"listed_at": "2024-05-01"}, ("a", "original_first_listed")),
        ({"listed_at": "2024-05-01"}, {"listed_at": "2024-05-01"}, ("a", "unknown")),
        ({"listed_at": "2024-05-01"}, {"listed_at": ""}, ("a", "unknown")),
        ({"listed_at": "May"}, {"listed_at": "2024-05-01"}, ("a", "unknown")),
        (
            {"listed_at": "2020-01-01", "rights_holder": "Acme"},
            {"listed_at": "2024-01-01", "seller_id": "acme"},
            ("b", "rights_holder"),
        ),
        ({"rights_holder": "Acme", "brand": "ACME"}, {"listed_at": "2020-01-01"}, ("a", "rights_holder")),
        # Both claim the right: the dates decide.
        (
            {"rights_holder": "Acme", "seller_id": "acme", "listed_at": "2024-02-01"},
            {"brand": "Acme", "listed_at": "2024-01-01"},
            ("b", "original_first_listed"),
        ),
        ({"rights_holder": "Somebody else"}, {}, ("a", "unknown")),
    ],
)
def test_direction(a, b, expected):
    for pair in ((item("a", **a), item("b", **b)), (item("b", **b), item("a", **a))):
        original, suspect, direction = direction_of(*pair)
        assert (original, direction) == expected
        assert {original, suspect} == {"a", "b"}


def pair(query: str, match: str, **values: object) -> dict[str, object]:
    row: dict[str, object] = {
        "query_item_id": query,
        "match_item_id": match,
        "rank": 1,
        "score": 0.9,
        "relation": "plagiarised",
        "modified_regions": ["left_sleeve"],
        "cos_left_sleeve": 0.1,
        "cos_right_sleeve": 0.9,
        "mirrored": False,
        "query_garment": 0,
        "match_garment": 1,
        "normalised_score": 0.5,
        **{f"state_{r}": "kept" for r in ("collar", "right_sleeve", "chest", "waist")},
        "state_left_sleeve": "changed",
    }
    row |= values
    return {"cos_mirrored": row["mirrored"], **row}


def test_where_nothing_says_who_was_first_what_was_asked_for_stands_first():
    items = [item("0123"), item("shirt", listed_at="2024-02-01"), item("soon", listed_at="2024-01-01")]
    by_name = {one["item_id"]: one for one in items}
    asked = frozenset({"shirt"})
    assert direction_of(by_name["0123"], by_name["shirt"], asked) == ("shirt", "0123", "unknown")
    assert direction_of(by_name["shirt"], by_name["soon"], asked) == (
        "soon",
        "shirt",
        "original_first_listed",
    )
    table = item_table([{**one, "image_sha256": one["item_id"]} for one in items])
    pairs = pa.Table.from_pylist([pair("shirt", "0123")], schema=WEIGHED_SCHEMA)
    for originals, first in ((asked, "shirt"), ((), "0123")):
        ((suspect,), _) = find_suspects(pairs, Items(table), originals=originals)
        assert suspect.original == first


def test_what_sellers_write_is_no_formula_and_ends_no_row():
    items = [
        item("=a", listed_at="2024-01-01", title="=HYPERLINK(1)"),
        item("b", listed_at="2024-02-01", title="two\rlines"),
    ]
    table = item_table([{**one, "image_sha256": one["item_id"]} for one in items])
    found, _ = find_suspects(pa.Table.from_pylist([pair("=a", "b")], schema=WEIGHED_SCHEMA), Items(table))
    garments = {(name, i): {"category": None, "group": None} for name in ("=a", "b") for i in (0, 1)}
    (row,) = csv.DictReader(io.StringIO(to_csv(suspect_table(found, Items(table), garments)), newline=""))
    assert row["original_title"] == "'=HYPERLINK(1)" and row["suspect_title"] == "two\nlines"
    assert row["original_item_id"] == "=a"


def suspects_of(pairs, items):
    table = item_table([{**one, "image_sha256": one["item_id"]} for one in items])
    found, excluded = find_suspects(pa.Table.from_pylist(pairs, schema=WEIGHED_SCHEMA), Items(table))
    garments = {
        (one["item_id"], index): {"category": "vest", "group": None, "distinctiveness_chest": 0.3}
        for one in items
        for index in (0, 1)
    }
    return suspect_table(found, Items(table), garments).to_pylist(), excluded


EARLY_AND_LATE = [item("late", listed_at="2024-02-01"), item("soon", listed_at="2024-01-01")]
SOLD = [{**one, "seller_id": f"seller of {one['item_id']}"} for one in EARLY_AND_LATE]


def test_a_pair_is_reported_once_and_from_the_originals_side():
    both = [pair("late", "soon", score=0.95), pair("soon", "late", score=0.9)]
    for pairs in (both, both[::-1]):
        (row,), _ = suspects_of(pairs, SOLD)
        assert (row["original_item_id"], row["suspect_item_id"]) == ("soon", "late")
        assert row["score"] == pytest.approx(0.9)
        assert (row["original_garment"], row["suspect_garment"]) == (0, 1)
        assert row["explanation"].endswith("listed 31 days later by another seller.")


@pytest.mark.parametrize(("mirrored", "changed"), [(False, "left_sleeve"), (True, "right_sleeve")])
def test_a_pair_known_from_the_copys_side_names_the_originals_regions(mirrored, changed):
    (row,), _ = suspects_of([pair("late", "soon", mirrored=mirrored)], EARLY_AND_LATE)
    assert row["original_item_id"] == "soon"
    assert (row["original_garment"], row["suspect_garment"]) == (1, 0)
    assert row["modified_regions"] == [changed]
    assert row[f"state_{changed}"] == "changed"
    assert row[f"cos_{changed}"] == pytest.approx(0.1)


CALIBRATION = Calibration((0.7,) * 5, 0.8, 0.4, registered_points=10, changed_threshold=(0.0,) * 5)
REPORTED = ("identical", "plagiarised")


def seen(one: str, other: str, **values: object) -> dict[str, object]:
    row: dict[str, object] = {
        "image_sha256": one,
        "garment_index": 0 if one == "late" else 1,
        "other_image_sha256": other,
        "other_garment_index": 0 if other == "late" else 1,
        "status": "registered",
        "mirrored": False,
        "registered_points": 12,
        **dict.fromkeys(CHANGED_COLUMNS, -3.0),
        "homography": [2.0, 0, 4, 0, 1, 0, 0, 0, 1],
        "laid": [1.0, 2.0, 6.0, 2.0] * NODES**2,
    }
    return {**row, **values}


def weigh(pairs, verified):
    items = item_table([{**one, "image_sha256": one["item_id"]} for one in EARLY_AND_LATE])
    return weighed(
        pa.Table.from_pylist(pairs, schema=PAIR_SCHEMA),
        pa.Table.from_pylist(verified, schema=VERIFIED_SCHEMA),
        items,
        CALIBRATION,
        REPORTED,
    ).to_pylist()


def weak(**values):
    return pair("late", "soon", score=0.6, normalised_score=0.2, **values)


def test_photographs_that_lie_upon_each_other_count_more_than_cosines():
    # Below every threshold, and the chest was edited.
    (row,) = weigh([weak()], [seen("late", "soon", changed_chest=2.5)])
    assert row["relation"] == "plagiarised" and row["registered_points"] == 12
    assert [row[f"state_{r}"] for r in ("collar", "left_sleeve", "chest")] == ["kept", "kept", "changed"]
    assert row["score"] == pytest.approx(0.6) and row["homography"][:3] == [2, 0, 4]
    assert row["laid"][:4] == [1, 2, 6, 2]
    # Alike by its features, but three parts were edited.
    edited = seen("late", "soon", changed_chest=2.5, changed_waist=1.0, changed_collar=0.5)
    assert weigh([pair("late", "soon")], [edited]) == []


@pytest.mark.parametrize(
    "verified",
    [
        [],
        [seen("late", "soon", registered_points=9)],
        [seen("late", "soon", status="not_registered", registered_points=None)],
        [seen("late", "soon", garment_index=3)],
    ],
)
def test_without_enough_agreeing_points_the_features_decide(verified):
    assert weigh([weak()], verified) == []
    (row,) = weigh([pair("late", "soon")], verified)
    assert row["state_left_sleeve"] == "changed" and row["registered_points"] is None


@pytest.mark.parametrize("mirrored", [False, True])
def test_what_was_seen_is_told_from_the_originals_side(mirrored):
    """The table's first garment is the copy: regions and homography are turned around, once or twice."""
    verified = [seen("late", "soon", mirrored=mirrored, changed_left_sleeve=3.0)]
    expected = "right_sleeve" if mirrored else "left_sleeve"
    for one in (weak(), {**weak(), "query_item_id": "soon", "match_item_id": "late"}):
        one |= (
            {"query_garment": 0, "match_garment": 1}
            if one["query_item_id"] == "late"
            else {
                "query_garment": 1,
                "match_garment": 0,
            }
        )
        items = [{**each, "image_sha256": each["item_id"]} for each in EARLY_AND_LATE]
        found, _ = find_suspects(
            pa.Table.from_pylist(weigh([one], verified), WEIGHED_SCHEMA), Items(item_table(items))
        )
        garments = {(name, i): {"category": None, "group": None} for name in ("soon", "late") for i in (0, 1)}
        (row,) = suspect_table(found, Items(item_table(items)), garments).to_pylist()
        assert row["original_item_id"] == "soon" and row["mirrored"] is mirrored
        assert row["modified_regions"] == [expected]
        assert row[f"changed_{expected}"] == pytest.approx(3.0)
        # The copy's x is twice the original's and four more.
        assert row["homography"][:3] == pytest.approx([0.5, 0, -2])
        assert row["laid"][:4] == [6, 2, 1, 2]
        assert "lies upon the other (12 points agree)" in row["explanation"]


def test_cosines_keep_their_sides_where_the_photographs_contradict_the_features():
    """By its features the copy is as it is, its photograph says that it is flipped: states go by the
    photograph, cosines by the features."""
    both = [{**one, "image_sha256": one["item_id"]} for one in EARLY_AND_LATE]
    verified = [seen("late", "soon", mirrored=True, changed_left_sleeve=3.0)]
    weighed_rows = pa.Table.from_pylist(weigh([weak(mirrored=False)], verified), WEIGHED_SCHEMA)
    found, _ = find_suspects(weighed_rows, Items(item_table(both)))
    garments = {(name, i): {"category": None, "group": None} for name in ("soon", "late") for i in (0, 1)}
    (row,) = suspect_table(found, Items(item_table(both)), garments).to_pylist()
    assert row["mirrored"] and row["modified_regions"] == ["right_sleeve"]
    assert row["cos_left_sleeve"] == pytest.approx(0.1) and row["cos_right_sleeve"] == pytest.approx(0.9)


def test_a_seller_who_is_not_stated_is_not_called_another_one():
    (row,), _ = suspects_of([pair("late", "soon")], EARLY_AND_LATE)
    assert row["explanation"].endswith("listed 31 days later; the sellers are not stated.")


def test_excluded_pairs_are_counted_once():
    items = [item("a", seller_id="s"), item("b", seller_id="s")]
    rows, excluded = suspects_of([pair("a", "b"), pair("b", "a")], items)
    assert rows == []
    assert excluded == {"same_seller": 1}


def test_dismissed_pairs_are_read(tmp_path):
    path = tmp_path / "dismissed.csv"
    path.write_text("\ufeffitem_id_a,item_id_b,reason\n007,b,known\nc,d\n", encoding="utf-8")
    assert {one.pair for one in read_dismissed(path)} == {frozenset(("007", "b")), frozenset("cd")}
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no column item_id_a, item_id_b"):
        read_dismissed(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_dismissed(tmp_path / "none.csv")


def test_the_stage_from_pairs_to_both_files(tmp_path, tiny_weights):
    source, items = catalogue(200, copies=0.5, seed=7), plain_items(200)
    for number, one in enumerate(items):
        one["title"] = f'Dress, "{number}"'
    run = write_run(tmp_path / "run", source, items)
    weights = f"extract.weights={tiny_weights}"
    settings = load_settings(None, [weights])
    match(run, settings)
    verify(run, settings)
    assert "no calibrated comparison network" in run.stage_record("verify")["skipped"]
    judge(run, settings)
    table = pq.read_table(run.suspects_path)
    assert table.schema.equals(SUSPECT_SCHEMA)
    rows = table.to_pylist()
    assert len(rows) > 20
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(a["normalised_score"] >= b["normalised_score"] for a, b in pairwise(rows))
    assert {row["relation"] for row in rows} == {"identical", "plagiarised"}
    assert all(row["score"] >= 0.8 for row in rows)
    assert any(row["distinctiveness_chest"] is not None for row in rows)
    assert all((row["distinctiveness_chest"] or 0) < 1.5 for row in rows)
    keys = [frozenset((row["original_item_id"], row["suspect_item_id"])) for row in rows]
    assert len(set(keys)) == len(keys)
    record = run.stage_record("judge")
    assert record["in"] == record["out"] == len(rows)
    assert sum(record["relations"].values()) == len(rows)

    with open(run.suspects_csv_path, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0])[:6] == CSV_FIRST
    for line, row in zip(lines, rows, strict=True):
        assert line["modified_regions"].split("|") == (row["modified_regions"] or [""])
        assert float(line["score"]) == pytest.approx(row["score"], abs=1e-6)
        assert line["original_title"] == row["original_title"]

    # A reviewer dismisses the first one; more is asked for, but not more than ten.
    dismissed = tmp_path / "dismissed.csv"
    dismissed.write_text("item_id_a,item_id_b\n{suspect_item_id},{original_item_id}\n".format(**rows[0]))
    judge(
        run,
        load_settings(
            None,
            [
                weights,
                f"judge.dismissed={dismissed}",
                "judge.relations=[identical, plagiarised, similar, undecidable]",
                "judge.min_score=0.3",
                "judge.rank_by=score",
                "judge.max_suspects=40",
                "match.min_score=0.3",
            ],
        ),
    )
    fewer = pq.read_table(run.suspects_path).to_pylist()
    assert len(fewer) == 40
    assert all(a["score"] >= b["score"] for a, b in pairwise(fewer))
    assert keys[0] not in {frozenset((row["original_item_id"], row["suspect_item_id"])) for row in fewer}
    assert run.stage_record("judge")["failed"]["dismissed"] == 1
    assert run.stage_record("judge")["failed"]["beyond_max_suspects"] > 0
