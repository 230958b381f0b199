"""The page a compliance officer reads: RUN/report/index.html.

One self-contained HTML file (data, style and script inline; no request leaves the page) beside a folder of
small JPEGs. Everything a seller wrote reaches the page as JSON and is put into text nodes by the script,
never parsed as HTML; the page's content security policy admits no other script.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from pipeline import missed
from pipeline.calibration import load_calibration
from pipeline.catalogue import catalogue_digest
from pipeline.dismissed import Dismissal, read_dismissed
from pipeline.extract import garment_shards
from pipeline.judge import days_later
from pipeline.progress import Progress, track
from pipeline.rundir import RunDirectory, inputs_digest, write_atomically
from pipeline.schema import (
    CHANGED_COLUMNS,
    COS_COLUMNS,
    GARMENT_SCHEMA,
    STATE_COLUMNS,
    unpack_boxes,
    unpack_presence,
)
from pipeline.settings import Settings
from psnet.config import digest
from psnet.image import MAX_PIXELS, ImageError, decode_image
from psnet.regions import GROUPS, MIRROR, REGIONS, Presence
from psnet.warp import NODES

JPEG_QUALITY = 82

FAILURES_LISTED = 50
"""Items listed on the page per failure reason; the counts are complete."""

# How often copyists changed a part, in percent (Lang et al. 2020, Table 1): sleeves, collar, chest, waist. A
# group's preset looks most at the parts that are usually left alone, because those give a copy away.
_CHANGED_BY_COPYISTS = {
    "T-shirts": (12, 6, 72, 10),
    "tops": (13, 34, 38, 15),
    "outwear": (25, 21, 33, 21),
    "dress": (6, 17, 21, 56),
}

_MEANINGS = {
    "no_garment": "No garment was found in the photograph.",
    "missing_file": "The catalogue names a file that does not exist.",
    "empty_file": "The file has no bytes.",
    "not_an_image": "The file is not a picture of a known format.",
    "truncated_image": "The file ends before its picture does.",
    "decode_failed": "The picture is damaged.",
    "too_many_bytes": "The file is larger than the configuration allows.",
    "too_many_pixels": "The picture has more pixels than the configuration allows.",
    "timeout": "The server did not answer in time.",
    "fetch_failed": "The photograph could not be fetched.",
    "robots_disallowed": "The site's robots.txt forbids the request.",
    "bad_location": "The catalogue's image location cannot be understood.",
}


@dataclass(frozen=True)
class Picture:
    """A photograph as the page shows it.

    ``src``: relative link or data: URI, "" when the photograph could not be read. ``width``, ``height``: in
    pixels, for the aspect ratio; 0 when unknown.
    """

    src: str
    width: int
    height: int


@dataclass(frozen=True)
class PageOptions:
    """What the page says besides the tables.

    ``kept_threshold``: (5,) calibrated cosine from which a region counts as kept, None when unknown.
    ``changed_threshold``: (5,) log-odds from which a region counts as changed where photographs lie upon each
    other, None when there are none.
    ``region_weights``: group -> (5,) weights of the scan, for the group presets; where they do not tell the
    regions apart, presets follow the paper's Table 1.
    ``dismissed``: before this scan; a download of decisions keeps them.
    ``max_suspects``: the best so many pairs are shown.
    """

    title: str = "Suspected copies"
    kept_threshold: Sequence[float] | None = None
    changed_threshold: Sequence[float] | None = None
    region_weights: Mapping[str, Sequence[float]] = field(default_factory=dict)
    dismissed: Sequence[Dismissal] = ()
    max_suspects: int = 1000


@dataclass(frozen=True)
class Evidence:
    """What a page is made from.

    ``suspects``: SUSPECT_SCHEMA, sorted by rank. ``garments``: GARMENT_COLUMNS of GARMENT_SCHEMA.
    ``items``: ITEM_SCHEMA. ``record``: the contents of run.json. ``chosen``: how ``suspects`` were chosen
    among the ``total`` of the run, "" where they are all.
    """

    suspects: pa.Table
    garments: pa.Table
    items: pa.Table
    record: Mapping[str, Any]
    chosen: str = ""
    total: int = 0


GARMENT_COLUMNS = (
    "image_sha256",
    "garment_index",
    "status",
    "error",
    "image_width",
    "image_height",
    "region_boxes",
    "presence",
)
"""The garments' columns that a page needs: all but the large ones."""


def report(run: RunDirectory, settings: Settings) -> None:
    """Write RUN/report/index.html and its images.

    Raises:
        UserError: the suspects are not there yet, the weights or the file of dismissed pairs cannot be used.
    """
    calibration = load_calibration(settings)
    region_weights = dict(zip(GROUPS, calibration.region_weights, strict=True))
    options = _options(settings, calibration.kept_threshold, calibration.changed_threshold, region_weights)
    with run.lock():
        inputs = inputs_digest(
            run.require_current("judge"),
            # Items that failed are no input of the stages before, but stand on the page.
            catalogue_digest(pq.read_table(run.items_path, columns=["item_id", "status", "error"])),
            digest(settings.report, results_only=True),
            calibration.to_json(),
            json.dumps([astuple(dismissal) for dismissal in options.dismissed]),
            *(hashlib.sha256(text.encode()).hexdigest() for text in _template()),
        )
        with run.stage("report", inputs, [run.report_path, run.report_dir / "images"]) as stage:
            if stage.finished:
                return
            evidence = read_evidence(run)
            page, pictures = write_page(
                evidence, run.report_dir, options, image_side=settings.report.image_side
            )
            stage.count_in = evidence.suspects.num_rows
            stage.count_out = min(evidence.suspects.num_rows, options.max_suspects)
            stage.note(
                page_bytes=page.stat().st_size,
                pictures=len(pictures),
                unreadable_pictures=sum(not picture.src for picture in pictures.values()),
                kept_thresholds=calibration.kept_threshold,
                changed_thresholds=calibration.changed_threshold,
                region_weights=region_weights,
            )


def page_options(run: RunDirectory, settings: Settings) -> PageOptions:
    """The options that the report of ``run`` was written with, for a page beside it.

    Raises:
        UserError: there is no report, or the file of dismissed pairs cannot be read.
    """
    run.require("report")
    record = run.stage_record("report")
    return _options(
        settings, record["kept_thresholds"], record.get("changed_thresholds"), record["region_weights"]
    )


def _options(
    settings: Settings,
    kept_threshold: Sequence[float],
    changed_threshold: Sequence[float] | None,
    region_weights: Mapping[str, Sequence[float]],
) -> PageOptions:
    return PageOptions(
        title=settings.report.title,
        kept_threshold=kept_threshold,
        changed_threshold=changed_threshold,
        region_weights=region_weights,
        dismissed=read_dismissed(Path(settings.judge.dismissed)) if settings.judge.dismissed else (),
        max_suspects=settings.report.max_suspects,
    )


def read_evidence(run: RunDirectory) -> Evidence:
    """The tables of a judged run. O(items + garments) memory, without the features.

    Raises:
        UserError: the run has no suspects yet.
    """
    run.require("judge")
    shards = [pq.read_table(shard, columns=list(GARMENT_COLUMNS)) for shard in garment_shards(run)]
    garments = (
        pa.concat_tables([shard.replace_schema_metadata(None) for shard in shards])
        if shards
        else pa.schema([GARMENT_SCHEMA.field(name) for name in GARMENT_COLUMNS]).empty_table()
    )
    return Evidence(pq.read_table(run.suspects_path), garments, pq.read_table(run.items_path), run.read())


def write_page(
    evidence: Evidence, folder: Path, options: PageOptions, *, image_side: int
) -> tuple[Path, dict[str, Picture]]:
    """Write ``folder``/index.html and ``folder``/images/, atomically; pictures already there are kept.

    Args:
        folder: made when missing.
        image_side: longer side of the pictures, in pixels.

    Returns:
        The path of index.html, and the pictures by the SHA-256 of their photograph.
    """
    shown = evidence.suspects.slice(0, options.max_suspects)
    pictures = write_pictures(picture_sources(shown), folder / "images", image_side)
    page = folder / "index.html"
    write_atomically(page, render_page(evidence, pictures, options).encode())
    return page, pictures


def render_page(evidence: Evidence, pictures: Mapping[str, Picture], options: PageOptions) -> str:
    """The page as one string. ``pictures``: by the SHA-256 of their photograph."""
    page, style, script = _template()
    parts = {
        "policy": (
            f"default-src 'none'; img-src 'self' file: data:; style-src {_csp_hash(style)}; "
            f"script-src {_csp_hash(script)}; base-uri 'none'; form-action 'none'"
        ),
        "title": html.escape(options.title),
        "style": style,
        "script": script,
        "data": embed_json(page_data(evidence, pictures, options)),
    }
    # One pass, so that a marker inside the data is not taken for one of the template's.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)


def _template() -> tuple[str, str, str]:
    """HTML, CSS and JavaScript of the page."""
    folder = resources.files("pipeline").joinpath("report_page")
    page, style, script = (
        folder.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    return page, style, script


def embed_json(data: Any) -> str:
    """JSON that may stand inside a <script> element: no character of it can end the element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


# ---- the data of the page


def page_data(evidence: Evidence, pictures: Mapping[str, Picture], options: PageOptions) -> dict[str, Any]:
    """Everything the script needs, as plain JSON values; arguments as in ``render_page``."""
    shown = evidence.suspects.slice(0, options.max_suspects)
    cards = _Cards(pictures, _garment_rows(shown, evidence.garments))
    rows = [cards.row(suspect) for suspect in shown.to_pylist()]
    thresholds = options.kept_threshold
    return {
        "scope": _decision_scope(evidence.record),
        "ranked_by": evidence.record.get("config", {}).get("judge", {}).get("rank_by", "score"),
        "regions": REGIONS,
        "mirror": MIRROR,
        "thresholds": thresholds and [_rounded(threshold) for threshold in thresholds],
        "changed_thresholds": options.changed_threshold,
        "presets": _presets(options.region_weights),
        "run": _run_summary(evidence),
        "empty": "" if evidence.suspects.num_rows else _empty_message(evidence),
        "notice": _notice(evidence, len(rows)),
        "items": cards.items,
        "garments": cards.garments,
        "pictures": cards.pictures,
        "suspects": rows,
        "sellers": sorted({item["seller"] for item in cards.items} - {""}, key=str.lower),
        "dismissed": [astuple(dismissal) for dismissal in options.dismissed],
    }


def _decision_scope(record: Mapping[str, Any]) -> str:
    """Under which name a browser keeps the decisions: that of the catalogue (of a sweep, of both sides), so
    that they outlive a rescan of it and no other catalogue's page shows them."""
    return "\n".join(str(record[name]) for name in ("catalogue", "against") if record.get(name))


class _Cards:
    """Collects the rows of the page, each item, garment and picture once."""

    def __init__(
        self, pictures: Mapping[str, Picture], garment_rows: Mapping[tuple[str, int], dict[str, Any]]
    ) -> None:
        self.items: list[dict[str, str]] = []
        self.garments: list[dict[str, Any]] = []
        self.pictures: list[dict[str, Any]] = []
        self._source = pictures
        self._garment_rows = garment_rows
        self._number: dict[tuple[Any, ...], int] = {}

    def row(self, suspect: Mapping[str, Any]) -> dict[str, Any]:
        original, copy = self._item(suspect, "original"), self._item(suspect, "suspect")
        listed = [self.items[i]["listed"] for i in (original, copy)]
        distinct = [_rounded(suspect.get(f"distinctiveness_{region}")) for region in REGIONS]
        return {
            "id": pair_id(
                suspect["original_item_id"],
                suspect["suspect_item_id"],
                suspect["original_garment"],
                suspect["suspect_garment"],
            ),
            "rank": suspect["rank"],
            "o": original,
            "s": copy,
            "og": self._garment(suspect, "original"),
            "sg": self._garment(suspect, "suspect"),
            "score": _rounded(suspect["score"]),
            "norm": _rounded(suspect["normalised_score"]),
            "relation": suspect["relation"],
            "modified": suspect["modified_regions"],
            "direction": suspect["direction"],
            "days": days_later(listed[0], listed[1]),
            "mirrored": suspect["mirrored"],
            "cos": [_rounded(suspect[column]) for column in COS_COLUMNS],
            "states": [suspect[column] for column in STATE_COLUMNS],
            "distinct": None if all(value is None for value in distinct) else distinct,
            "explanation": suspect["explanation"],
            "points": suspect.get("registered_points"),
            "laid": _drawn(suspect.get("laid")),
            "changed": [_rounded(suspect.get(column)) for column in CHANGED_COLUMNS],
            "agree": suspect.get("agreeing_attributes"),
            "differ": suspect.get("differing_attributes"),
        }

    def _item(self, suspect: Mapping[str, Any], side: str) -> int:
        key = ("item", suspect[f"{side}_item_id"])
        if key not in self._number:
            self._number[key] = len(self.items)
            self.items.append(
                {
                    "id": suspect[f"{side}_item_id"],
                    "seller": suspect[f"{side}_seller_id"],
                    "brand": suspect[f"{side}_brand"],
                    "category": suspect[f"{side}_category"],
                    "title": suspect[f"{side}_title"],
                    "listed": suspect[f"{side}_listed_at"],
                    "url": web_link(suspect[f"{side}_url"]),
                }
            )
        return self._number[key]

    def _garment(self, suspect: Mapping[str, Any], side: str) -> int:
        sha, index = suspect[f"{side}_image_sha256"], suspect[f"{side}_garment"]
        key = ("garment", sha, index)
        if key not in self._number:
            self._number[key] = len(self.garments)
            row = self._garment_rows.get((sha, index))
            self.garments.append(
                {
                    "picture": self._picture(sha, row),
                    "category": suspect[f"{side}_garment_category"],
                    "group": suspect[f"{side}_garment_group"],
                    "boxes": row and row["boxes"],
                    "presence": row and row["presence"],
                }
            )
        return self._number[key]

    def _picture(self, sha: str, row: Mapping[str, Any] | None) -> int:
        key = ("picture", sha)
        if key not in self._number:
            self._number[key] = len(self.pictures)
            picture = self._source.get(sha, Picture("", 0, 0))
            # Boxes are in pixels of the original, which the small picture shows whole.
            width, height = (row["width"], row["height"]) if row else (picture.width, picture.height)
            self.pictures.append({"src": picture.src, "w": width, "h": height})
        return self._number[key]


def _garment_rows(suspects: pa.Table, garments: pa.Table) -> dict[tuple[str, int], dict[str, Any]]:
    """(image_sha256, garment_index) -> boxes and presence, for the garments on the page only.

    A box of a region that is not present is None: a guess of where a hidden part would be is no evidence.
    """
    wanted = pa.concat_arrays(
        [suspects[f"{side}_image_sha256"].combine_chunks() for side in ("original", "suspect")]
    ).unique()
    chosen = garments.filter(
        pc.and_(pc.is_in(garments["image_sha256"], value_set=wanted), pc.is_valid(garments["region_boxes"]))
    )
    boxes = unpack_boxes(chosen["region_boxes"], (len(REGIONS), 4))
    presence = unpack_presence(chosen["presence"])
    rows = {}
    scalars = chosen.select(["image_sha256", "garment_index", "image_width", "image_height"])
    for i, row in enumerate(scalars.to_pylist()):
        rows[row["image_sha256"], row["garment_index"]] = {
            "width": row["image_width"],
            "height": row["image_height"],
            "boxes": [
                [round(float(v), 1) for v in box]
                if present == Presence.PRESENT and np.isfinite(box).all()
                else None
                for box, present in zip(boxes[i], presence[i], strict=True)
            ],
            "presence": [int(code) for code in presence[i]],
        }
    return rows


def pair_id(original: str, suspect: str, original_garment: int, suspect_garment: int) -> str:
    """Ten hexadecimal digits that name a pair in a link; the same in every run of a catalogue."""
    key = json.dumps([original, suspect, original_garment, suspect_garment])
    return hashlib.sha256(key.encode()).hexdigest()[:10]


def web_link(url: str) -> str:
    """``url`` when it is an http(s) address, else "": a catalogue may hold javascript: addresses."""
    return url if re.match(r"https?://[^\s]+$", url, re.IGNORECASE) else ""


def _rounded(value: float | None) -> float | None:
    # Five digits: more than a float32 of a cosine holds for certain, half the bytes of its full form.
    return None if value is None or not math.isfinite(value) else round(float(value), 5)


def _drawn(laid: Sequence[float] | None) -> list[list[list[float]]] | None:
    """Every other node of SUSPECT_SCHEMA's ``laid``, to a tenth of a pixel: bends are smooth."""
    if laid is None:
        return None
    nodes: list[list[list[float]]] = (
        np.reshape(laid, (NODES, NODES, 4))[::2, ::2].astype(float).round(1).tolist()
    )
    return nodes


def _presets(region_weights: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    presets: list[dict[str, Any]] = [
        {
            "id": "scanned",
            "label": "As scanned",
            "weights": None,
            "note": "Order of the scan. Its score is the mean of the three best comparable regions, unless "
            "configured otherwise. Move a slider to weigh the regions yourself.",
        },
        {
            "id": "equal",
            "label": "Equal weights",
            "weights": [1.0] * len(REGIONS),
            "note": "Every comparable region counts the same.",
        },
    ]
    # Equal rows say nothing about the groups.
    learned = any(len(set(weights)) > 1 for weights in region_weights.values())
    for group in GROUPS:
        if learned and group in region_weights:
            weights, note = list(region_weights[group]), "Weights of this scan."
        else:
            sleeves, collar, chest, waist = (1 - share / 100 for share in _CHANGED_BY_COPYISTS[group])
            weights = [collar, sleeves, sleeves, chest, waist]
            note = "Parts that copyists seldom change count most (PS-Net paper, Table 1)."
        top = max(weights)
        presets.append(
            {
                "id": group.lower(),
                "label": group[0].upper() + group[1:],
                "weights": [round(float(weight) / top, 2) for weight in weights],
                "note": note,
            }
        )
    return presets


def _notice(evidence: Evidence, shown: int) -> str:
    """What the page leaves out, "" for nothing."""
    found = evidence.suspects.num_rows
    beyond = _left_out(evidence).get("beyond_max_suspects", 0)
    rest = f" {beyond:,} more were left out by judge.max_suspects and are in no file." if beyond else ""
    if evidence.chosen:
        best = f"the best {shown:,} of " if shown < found else ""
        return (
            f"This page shows {best}the {found:,} of {evidence.total:,} suspected pairs chosen by "
            f"{evidence.chosen}; the run's suspects.csv has them all.{rest}"
        )
    if shown < found:
        those = f"these {found:,}" if beyond else "them all"
        best = f"the best {shown:,} of {found:,} suspected pairs"
        return f"This page shows {best}; suspects.csv has {those}.{rest}"
    return f"This page shows the best {found:,} suspected pairs.{rest}" if beyond else ""


def _left_out(evidence: Evidence) -> dict[str, int]:
    """Suspected pairs that are not on the list, by reason."""
    failed: dict[str, int] = evidence.record.get("stages", {}).get("judge", {}).get("failed") or {}
    return failed


# As a reviewer reads it.
_LEFT_OUT = {
    "same_seller": "of one seller",
    "licensed": "licensed",
    "dismissed": "dismissed before",
    "beyond_max_suspects": "beyond judge.max_suspects",
}


def _empty_message(evidence: Evidence) -> str:
    items = evidence.items
    if not items.num_rows:
        return "The catalogue of this run has no items."
    if evidence.total:
        return f"None of the {evidence.total:,} suspected pairs was chosen by {evidence.chosen}."
    failed = sum(failure["count"] for failure in _failures(evidence.garments, items))
    text = f"None of the {items.num_rows - failed:,} screened items is suspected to be a copy of another."
    if failed:
        text += f" {failed:,} could not be screened."
    left_out = _left_out(evidence)
    if left_out:
        reasons = ", ".join(f"{n:,} {_LEFT_OUT.get(reason, reason)}" for reason, n in left_out.items())
        text += f" Of pairs that look alike these were left out: {reasons}."
    return text


def _run_summary(evidence: Evidence) -> dict[str, Any]:
    record, items = evidence.record, evidence.items
    failures = list(_failures(evidence.garments, items))
    failed = sum(failure["count"] for failure in failures)
    stages = record.get("stages", {})
    seconds = sum(float(stage.get("seconds") or 0) for stage in stages.values())
    finished = max((str(stage.get("finished") or "") for stage in stages.values()), default="")
    tiles = [
        {"label": "Items in the catalogue", "value": f"{items.num_rows:,}"},
        {
            "label": "Screened",
            "value": f"{items.num_rows - failed:,}",
            "note": f"{failed:,} not" if failed else "",
        },
        {"label": "Garments", "value": f"{_count_garments(evidence.garments, items):,}"},
        {
            "label": "Suspected pairs",
            "value": f"{max(evidence.total, evidence.suspects.num_rows):,}",
            "note": f"{evidence.suspects.num_rows:,} chosen" if evidence.chosen else "",
        },
    ]
    if seconds:
        planned = record.get("plan", {}).get("seconds")
        note = f"{_duration(planned)} planned" if planned else ""
        tiles.append({"label": "Duration", "value": _duration(seconds), "note": note})
    names = ("catalogue", "against", "model_tag", "input_digest", "config_digest", "started")
    facts = [[name.replace("_", " "), str(record[name])] for name in names if record.get(name)]
    facts += [
        [f"version of {name}", str(version)] for name, version in sorted(record.get("versions", {}).items())
    ]
    facts += [
        [f"estimate of {name}", missed.in_words(stage["missed"], name)]
        for name, stage in stages.items()
        if stage.get("missed")
    ]
    subtitle = (record.get("catalogue"), finished[:10], record.get("model_tag"))
    return {
        "subtitle": " · ".join(str(text) for text in subtitle if text),
        "tiles": tiles,
        "stages": [_stage_row(name, stage) for name, stage in stages.items() if stage.get("done")],
        "facts": facts,
        "failures": failures,
        "foot": " · ".join(
            [
                "A score is not a proof. Undecidable means cannot tell.",
                *(f"{name} {value}" for name, value in facts if name in ("model tag", "config digest")),
            ]
        ),
    }


def _count_garments(garments: pa.Table, items: pa.Table) -> int:
    # The shards may hold images of an earlier catalogue too.
    of_items = pc.is_in(garments["image_sha256"], value_set=items["image_sha256"].combine_chunks())
    return pc.sum(pc.and_(of_items, pc.equal(garments["status"], "ok"))).as_py() or 0


def _stage_row(name: str, stage: Mapping[str, Any]) -> list[str]:
    failed = sum((stage.get("failed") or {}).values())
    planned = stage.get("planned_seconds")
    return [
        name,
        *("–" if stage.get(key) is None else f"{stage[key]:,}" for key in ("in", "out")),
        f"{failed:,}",
        f"{float(stage.get('seconds') or 0):,.1f}"
        + ("" if planned is None else f" ({planned:,.1f} planned)"),
    ]


def _failures(garments: pa.Table, items: pa.Table) -> Iterable[dict[str, Any]]:
    """Failed items by reason, the most frequent first: at the crawl, or with their image's content."""
    is_ok = pc.equal(garments["status"], "ok")
    # A content that failed in passing and was tried again has a row of each.
    usable = garments.filter(is_ok)["image_sha256"].combine_chunks()
    is_lost = pc.invert(pc.is_in(garments["image_sha256"], value_set=usable))
    lost = garments.filter(is_lost).group_by("image_sha256", use_threads=False)
    lost = lost.aggregate([("status", "last"), ("error", "last")])
    lost = lost.rename_columns(["image_sha256", "status", "error"])
    columns = ["item_id", "image", "status", "error"]
    crawled = pc.equal(items["status"], "ok")
    at_crawl = items.filter(pc.invert(crawled)).select(columns)
    at_extract = (
        items.filter(crawled)
        .select(["item_id", "image", "image_sha256"])
        .join(lost, keys="image_sha256", join_type="inner")
        .select(columns)
    )
    failed = pa.concat_tables(
        [table.cast(pa.schema([(c, pa.string()) for c in columns])) for table in (at_crawl, at_extract)]
    )
    counts = failed.group_by("status").aggregate([([], "count_all")]).to_pylist()
    for count in sorted(counts, key=lambda row: (-row["count_all"], row["status"])):
        reason = count["status"]
        rows = failed.filter(pc.equal(failed["status"], reason)).sort_by("item_id").slice(0, FAILURES_LISTED)
        yield {
            "reason": reason,
            "meaning": _meaning(reason),
            "count": count["count_all"],
            "items": [[row["item_id"], row["image"][-200:], row["error"][:300]] for row in rows.to_pylist()],
        }


def _meaning(reason: str) -> str:
    if reason.startswith("http_"):
        return f"The server answered with status {reason.removeprefix('http_')}."
    return _MEANINGS.get(reason, "The item could not be processed.")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


# ---- pictures


def picture_sources(suspects: pa.Table) -> dict[str, Path]:
    """SHA-256 of every photograph in ``suspects`` -> the local file that holds it."""
    return {
        sha: Path(path)
        for side in ("original", "suspect")
        for sha, path in zip(
            suspects[f"{side}_image_sha256"].to_pylist(),
            suspects[f"{side}_image_path"].to_pylist(),
            strict=True,
        )
        if sha and path
    }


def write_pictures(sources: Mapping[str, Path], folder: Path, side: int) -> dict[str, Picture]:
    """One small JPEG per photograph in ``folder``, named by content, so that a picture is made once.

    A photograph that can no longer be read gets a Picture without ``src``. Pictures of an earlier report that
    this one does not show are removed.

    Args:
        sources: SHA-256 -> local file.
        side: longer side in pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def write(sha: str) -> Picture:
        target = folder / f"{sha[:24]}-{side}.jpg"
        if not target.is_file():
            made = small_jpeg(sources[sha], side, sha)
            if made is None:
                return Picture("", 0, 0)
            write_atomically(target, made[0])
        with Image.open(target) as image:
            return Picture(f"{folder.name}/{target.name}", *image.size)

    with track(len(sources), "report", "pictures") as progress:
        pictures = _in_threads(write, sources, progress)
    kept = {Path(picture.src).name for picture in pictures.values()}
    for old in folder.glob("*.jpg"):
        if re.fullmatch(r"[0-9a-f]{1,24}-\d+\.jpg", old.name) and old.name not in kept:
            old.unlink(missing_ok=True)
    return pictures


def inline_pictures(sources: Mapping[str, Path], side: int) -> dict[str, Picture]:
    """As ``write_pictures``, but as data: URIs inside the page."""

    def inline(sha: str) -> Picture:
        made = small_jpeg(sources[sha], side, sha)
        if made is None:
            return Picture("", 0, 0)
        return Picture("data:image/jpeg;base64," + base64.b64encode(made[0]).decode(), made[1], made[2])

    with track(len(sources), "export", "pictures") as progress:
        return _in_threads(inline, sources, progress)


def small_jpeg(source: Path, side: int, sha: str) -> tuple[bytes, int, int] | None:
    """An upright JPEG with the longer side at most ``side`` px, and the original's width and height in px.

    None when the photograph cannot be read any more, or is not the one of this SHA-256, which was compared: a
    page without one picture is better than no page, and than one that shows another picture.
    """
    try:
        data = source.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha:
            return None
        decoded = decode_image(data, max_pixels=MAX_PIXELS, target_side=side)
    except (OSError, ImageError):
        return None
    image = Image.fromarray(decoded.pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return buffer.getvalue(), decoded.width, decoded.height


def _in_threads(
    make: Callable[[str], Picture], sources: Mapping[str, Path], progress: Progress
) -> dict[str, Picture]:
    def make_one(sha: str) -> Picture:
        picture = make(sha)
        progress.advance()
        return picture

    # Decoding and encoding release the interpreter's lock.
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return dict(zip(sources, pool.map(make_one, sources), strict=True))


def _csp_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
