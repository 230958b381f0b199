"""One picture against a run: which of its garments look like a copy, or an original, of something in it.

    picture ─ detect, landmarks, regions, features ─▶ RUN/index ─▶ exact comparison ─▶ photographs of the
    likely ones laid upon it ─▶ verdict, in words

What counts as a suspect, its score and its verdict are those of the run (``pipeline.match``,
``pipeline.verify``, ``pipeline.judge``), as far as its index finds it. Nothing is written.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.background import Garments, background
from pipeline.calibration import load_calibration
from pipeline.errors import UserError
from pipeline.extract import garment_shards
from pipeline.garment_index import Found, Queries, open_index
from pipeline.index_manifest import indexed_runs
from pipeline.rundir import RunDirectory
from pipeline.settings import Settings
from pipeline.vectors import Vectors, group_codes, weights_of
from pipeline.verify import Sights, one_thread, places_in
from psnet.image import DecodedImage, ImageError, decode_image
from psnet.regions import REGIONS, Presence
from psnet.similarity import normalise
from psnet.verdict import (
    MIN_COMPARABLE,
    RELATIONS,
    Calibration,
    Verdict,
    explain,
    is_likely_copy,
    modified_regions,
    weigh,
)
from psnet.verification import Sight, Verification, Verifier, as_arrays

if TYPE_CHECKING:
    from psnet.predictor import Garment, Predictor

SUSPECTS, NOTHING, CANNOT_TELL = "suspects", "nothing suspicious", "cannot tell"

_ITEM_COLUMNS = ("item_id", "seller_id", "brand", "title", "url", "image_path")


@dataclass(frozen=True)
class Match:
    """An item of the run beside a garment of the picture; ``item``: some columns of its row."""

    item: dict[str, str]
    score: float
    normalised_score: float
    relation: str
    modified_regions: list[str]
    mirrored: bool
    cosines: dict[str, float | None]
    registered_points: int | None
    explanation: str


@dataclass(frozen=True)
class GarmentAnswer:
    """``answer``: "suspects", "nothing suspicious", or "cannot tell" (too few regions to be seen);
    ``suspects``: best first; ``nearest``: what comes closest where there is no suspect; ``box``: xyxy px."""

    category: str
    group: str
    box: list[float]
    certainty: float
    visible_regions: list[str]
    answer: str
    suspects: list[Match]
    nearest: Match | None


@dataclass
class Answer:
    """``status``: ok, no_garment, or why the picture cannot be read, then with ``error``;
    ``same_picture``: items
    of the run that show this very file; ``compared_with``: garments of the index."""

    image: str
    status: str
    error: str = ""
    same_picture: list[str] = field(default_factory=list)
    garments: list[GarmentAnswer] = field(default_factory=list)
    compared_with: int = 0
    model_seconds: float = 0.0
    search_seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check(run: RunDirectory, images: Sequence[Path], settings: Settings, limit: int = 10) -> list[Answer]:
    """What the run says about each picture.

    Args:
        limit: most suspects of a garment.

    Raises:
        UserError: no index or one that does not fit, a missing picture, weights that are not the run's.
    """
    missing = [str(image) for image in images if not image.is_file()]
    if missing:
        raise UserError(f"{', '.join(missing)}: no such picture")
    if limit < 1:
        raise UserError(f"--limit {limit}: at least 1 suspect can be asked for")
    checker = Checker(run, settings)
    return [checker.check(image, limit) for image in images]


class Checker:
    """The run's index and model, loaded once for any number of pictures."""

    def __init__(self, run: RunDirectory, settings: Settings) -> None:
        self._settings = settings
        self._index = open_index(run)
        self._calibration = load_calibration(settings)
        runs = indexed_runs(run, self._index.manifest)
        self._items = _Items([one.items_path for one in runs])
        self._predictor = _model_of_the_run(settings, self._index.manifest.model_tag)
        self._shards = [shard for one in runs for shard in garment_shards(one)]
        chosen = settings.verify.enabled and self._calibration.changed_threshold is not None
        self._verifier = Verifier.load(settings.extract.weights) if chosen else None
        size = settings.match.background_size
        self._sample = self._index.gather(*self._index.background_sample(size))
        # Compiled code is loaded now, and not while somebody waits for an answer.
        if len(self._sample):
            some = self._garments(self._sample, np.arange(len(self._sample)))
            self._background(some, some)

    def check(self, image: Path, limit: int) -> Answer:
        """What the run says about one picture."""
        data = image.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        start = time.perf_counter()
        try:
            crawl, extract = self._settings.crawl, self._settings.extract
            decoded = decode_image(data, max_pixels=crawl.max_pixels, target_side=extract.decode_side)
        except ImageError as error:
            return Answer(str(image), error.code, error.message)
        garments = self._predictor.predict([decoded.pixels])[0]
        found = time.perf_counter()
        answer = Answer(
            str(image),
            "ok" if garments else "no_garment",
            same_picture=[item["item_id"] for item in self._items.of([sha256]).get(sha256, [])],
            compared_with=len(self._index),
            model_seconds=round(found - start, 4),
        )
        if garments:
            answer.garments = self._answers(garments, sha256, decoded, limit)
        answer.search_seconds = round(time.perf_counter() - found, 4)
        return answer

    def _answers(
        self, garments: Sequence[Garment], sha256: str, picture: DecodedImage, limit: int
    ) -> list[GarmentAnswer]:
        queries = _as_queries(garments, self._calibration, mirrored=self._settings.match.mirrored)
        scoring = self._settings.match.scoring
        candidates = self._index.candidates(queries, self._settings.index.candidates, scoring=scoring)
        found = self._index.compare(queries, candidates, scoring=scoring)
        normalised = self._normalised(queries, sha256, found)
        items = self._items.of(set(found.sha256) - {sha256})
        ranked = self._ranked(found, normalised)
        least = self._settings.verify
        score = found.comparison.score
        worth = is_likely_copy(score, normalised, least.min_score, least.min_normalised_score)
        worth |= normalised >= self._calibration.normalised_threshold
        likely = [row for row in ranked if found.sha256[row] in items and worth[row]]
        seen = self._verified(garments, picture.pixels, found, likely, items)
        verdict, mirrored, enough = self._judged(found, normalised, seen)
        answers = []
        for number, garment in enumerate(garments):
            of_garment = [row for row in ranked if found.query[row] == number and found.sha256[row] != sha256]
            chosen = [row for row in of_garment if enough[row]]
            matches = [
                _match(item, found, row, verdict, bool(mirrored[row]), seen.get(row), float(normalised[row]))
                for row, item in _each_once(chosen or of_garment[:1], found, items, seen)
            ]
            visible = [
                name for name, code in zip(REGIONS, garment.presence, strict=True) if code == Presence.PRESENT
            ]
            answer = SUSPECTS if chosen and matches else NOTHING
            if len(visible) < MIN_COMPARABLE:
                answer = CANNOT_TELL
            answers.append(
                GarmentAnswer(
                    category=garment.category,
                    group=garment.group,
                    box=[round(float(value / picture.scale), 1) for value in garment.box],
                    certainty=round(float(garment.score), 4),
                    visible_regions=visible,
                    answer=answer,
                    suspects=matches[:limit] if answer == SUSPECTS else [],
                    nearest=matches[0] if answer == NOTHING and matches else None,
                )
            )
        return answers

    def _ranked(self, found: Found, normalised: np.ndarray) -> np.ndarray:
        """All rows, the best first, as in ``pipeline.judge``."""
        score = found.comparison.score
        by_normalised = self._settings.judge.rank_by == "normalised_score"
        first, second = (normalised, score) if by_normalised else (score, normalised)
        return np.lexsort((found.garment, found.sha256.astype(str), -second, -first))

    def _verified(
        self,
        garments: Sequence[Garment],
        pixels: np.ndarray,
        found: Found,
        likely: Sequence[int],
        items: Mapping[str, list[dict[str, str]]],
    ) -> dict[int, Verification]:
        """By row: what the photographs say, of those that can be laid upon the picture."""
        if self._verifier is None:
            return {}
        most = self._settings.verify.max_pairs_per_item
        rows = [
            row
            for number in range(len(garments))
            for row in [row for row in likely if found.query[row] == number][:most]
        ]
        wanted = pa.array({found.sha256[row] for row in rows}, pa.string())
        paths = {name: items[name][0]["image_path"] for name in wanted.to_pylist()}
        places = dict(places_in(self._shards, wanted, paths)) if rows else {}
        sights = Sights(places, self._settings.crawl.max_pixels, self._settings.extract.decode_side)
        own = {
            number: Sight.of(pixels, garment.box, garment.region_boxes, garment.presence, garment.landmarks)
            for number, garment in enumerate(garments)
            if any(found.query[row] == number for row in rows)
        }
        said = {}
        with one_thread():
            for row in rows:
                other = sights[found.sha256[row], int(found.garment[row])]
                if other is None:
                    continue
                one = self._verifier.verify(own[int(found.query[row])], other)
                if one is not None and one.points >= self._calibration.registered_points:
                    said[row] = one
        return said

    def _judged(
        self, found: Found, normalised: np.ndarray, seen: Mapping[int, Verification]
    ) -> tuple[Verdict, np.ndarray, np.ndarray]:
        """The verdicts, which pairs are flipped and which are suspects, as in ``pipeline.judge``."""
        comparison = found.comparison
        mirrored = comparison.mirrored.copy()
        for row, one in seen.items():
            mirrored[row] = one.mirrored
        points, changed = as_arrays([seen.get(row) for row in range(len(mirrored))])
        verdict, enough = weigh(
            self._calibration,
            comparison.cos,
            comparison.comparable,
            comparison.score,
            normalised,
            points,
            changed,
            [RELATIONS.index(name) for name in self._settings.judge.relations],
        )
        return verdict, mirrored, enough

    def _normalised(self, queries: Queries, sha256: str, found: Found) -> np.ndarray:
        """Normalised scores of the pairs found, against the background of the run's garments."""
        if not len(found.row):
            return np.empty(0, np.float32)
        sample = self._sample
        partners = self._index.gather(found.shard, found.row)
        names = np.concatenate([sample.sha256.to_numpy(False), found.sha256, [sha256] * len(queries)]).astype(
            str
        )
        pictures = np.unique(names, return_inverse=True)[1]
        at = len(sample), len(sample) + len(partners)
        of_partners = self._garments(partners, pictures[at[0] : at[1]])
        known = Garments(
            np.concatenate([of_partners.features, queries.features]),
            np.concatenate([of_partners.presence, queries.presence]),
            np.concatenate([of_partners.weights, queries.weights]),
            pictures[at[0] :],
        )
        level = self._background(known, self._garments(sample, pictures[: at[0]]))
        of_query = level[len(partners) :][found.query]
        return normalise(found.comparison.score, (level[: len(partners)] + of_query) / 2)

    def _garments(self, vectors: Vectors, picture: np.ndarray) -> Garments:
        weights = weights_of(vectors.group, self._calibration.weights)
        return Garments(vectors.features.astype(np.float32), vectors.presence, weights, picture)

    def _background(self, garments: Garments, others: Garments) -> np.ndarray:
        """(n,) levels."""
        match = self._settings.match
        return background(garments, others, match.background_quantile, scoring=match.scoring)[0]


def _each_once(
    rows: Sequence[int],
    found: Found,
    items: Mapping[str, list[dict[str, str]]],
    seen: Mapping[int, Verification],
) -> list[tuple[int, dict[str, str]]]:
    """Every item of these rows with one of them, in their order: as in ``pipeline.judge``, one whose
    photograph lies upon the picture, else the first."""
    chosen: dict[str, tuple[int, dict[str, str]]] = {}
    for row in rows:
        for item in items.get(found.sha256[row], []):
            former = chosen.get(item["item_id"])
            if former is None or (row in seen and former[0] not in seen):
                chosen[item["item_id"]] = row, item
    place = {row: at for at, row in enumerate(rows)}
    return sorted(chosen.values(), key=lambda one: place[one[0]])


class _Items:
    """Items by their picture."""

    def __init__(self, paths: Sequence[Path]) -> None:
        columns = [*_ITEM_COLUMNS, "image_sha256", "status"]
        table = pa.concat_tables([pq.read_table(path, columns=columns) for path in paths])
        self._table = table.filter(pc.equal(table["status"], "ok")).drop_columns(["status"])

    def of(self, pictures: Sequence[str] | set[str]) -> Mapping[str, list[dict[str, str]]]:
        rows = self._table.filter(
            pc.is_in(self._table["image_sha256"], value_set=pa.array(pictures, pa.string()))
        )
        items: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
        # An item may stand in several runs.
        for row in rows.sort_by("item_id").to_pylist():
            items[row.pop("image_sha256")].setdefault(row["item_id"], row)
        return {picture: list(known.values()) for picture, known in items.items()}


def load_model(settings: Settings) -> Predictor:
    """The model of ``settings.extract`` in this process.

    Raises:
        UserError: the weights cannot be used.
    """
    from pipeline.extract import Job, load_predictor
    from psnet.device import resolve_device
    from psnet.weights import WeightsError

    device = resolve_device(settings.extract.device).type
    job = Job("", "", "", "", device, settings.crawl.max_pixels, settings.extract)
    try:
        return load_predictor(job)[0]
    except WeightsError as error:
        raise UserError(str(error)) from None


def _model_of_the_run(settings: Settings, tag: str) -> Predictor:
    predictor = load_model(settings)
    if predictor.tag != tag:
        raise UserError(f"extract.weights: are {predictor.tag}, those of the run {tag}; name those weights")
    return predictor


def _as_queries(garments: Sequence[Garment], calibration: Calibration, *, mirrored: bool) -> Queries:
    # Rounded as stored features are, so that a picture of the run finds itself at score 1.
    features = np.stack([garment.features for garment in garments]).astype(np.float16).astype(np.float32)
    flipped = (
        np.stack([garment.mirrored_features for garment in garments]).astype(np.float16).astype(np.float32)
    )
    presence = np.stack([garment.presence for garment in garments])
    groups = group_codes(pa.array([garment.group for garment in garments]))
    weights = weights_of(groups, calibration.weights)
    return Queries(features, presence, weights, flipped if mirrored else None)


def _match(
    item: dict[str, str],
    found: Found,
    row: int,
    verdict: Verdict,
    mirrored: bool,
    seen: Verification | None,
    normalised: float,
) -> Match:
    comparison = found.comparison
    codes = [int(code) for code in verdict.states[row]]
    points = None if seen is None else seen.points
    return Match(
        item=item,
        score=round(float(comparison.score[row]), 6),
        normalised_score=round(normalised, 6),
        relation=RELATIONS[verdict.relation[row]],
        modified_regions=modified_regions(codes),
        mirrored=mirrored,
        cosines={
            name: round(float(comparison.cos[row, r]), 6) if comparison.comparable[row, r] else None
            for r, name in enumerate(REGIONS)
        },
        registered_points=points,
        explanation=explain(codes, mirrored=mirrored, points=points, direction=None),
    )


def in_words(answer: Answer) -> str:
    """An answer for people, a few lines."""
    if answer.status not in ("ok", "no_garment"):
        return f"{answer.image}: cannot be read: {answer.error} ({answer.status})"
    lines = [f"{answer.image}:"]
    if answer.same_picture:
        lines.append(f"  this very picture is already in the run: item {', '.join(answer.same_picture)}")
    if answer.status == "no_garment":
        lines.append("  no garment found")
    for number, garment in enumerate(answer.garments, 1):
        what = f"  garment {number} ({garment.category}): "
        if garment.answer == CANNOT_TELL:
            seen = ", ".join(garment.visible_regions) or "none"
            lines.append(f"{what}cannot tell, too few of its regions can be seen ({seen})")
        elif garment.answer == NOTHING:
            near = garment.nearest
            closest = f"; the nearest is item {near.item['item_id']} ({_figures(near)})" if near else ""
            lines.append(f"{what}nothing suspicious{closest}")
        else:
            count = len(garment.suspects)
            lines.append(f"{what}{count} suspect{'s' if count > 1 else ''}")
            for rank, match in enumerate(garment.suspects, 1):
                seller = f", seller {match.item['seller_id']}" if match.item["seller_id"] else ""
                lines.append(f"    {rank}. item {match.item['item_id']}{seller}: {_figures(match)}")
                lines.append(f"       {match.explanation}")
    if answer.garments:
        lines.append(
            f"  {answer.compared_with:,} garments searched in {answer.search_seconds:.3f} s, "
            f"the picture read in {answer.model_seconds:.3f} s"
        )
    return "\n".join(lines)


def _figures(match: Match) -> str:
    modified = f", modified: {', '.join(match.modified_regions)}" if match.modified_regions else ""
    return f"{match.relation}, score {match.score:.3f}, normalised {match.normalised_score:.3f}{modified}"
