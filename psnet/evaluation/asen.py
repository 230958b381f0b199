"""``psnet eval asen``: ASEN, what it is compared with and its ablations, on one data set; where its attention
lies on labelled photographs; pictures.

Reads the same configuration as ``psnet train asen`` and the weights that this wrote to OUT/METHOD.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from psnet.asen import AttributeNetwork
from psnet.asen_attention import attention_inside
from psnet.asen_predictor import AttributePredictor
from psnet.asen_weights import asen_tag, load_asen, read_asen
from psnet.config import ConfigError, digest
from psnet.crops import GARMENT_MARGIN, expand, whole_frame
from psnet.data import zappos
from psnet.data.attributes import AttributeRanking, read_meta, read_ranking
from psnet.data.labels import read_any_labels
from psnet.data.photographs import LabelledGarment
from psnet.device import resolve_device
from psnet.evaluation.asen_pictures import attention_sheet, retrieval_sheet
from psnet.evaluation.attributes import (
    RankingScores,
    embed_ranking,
    embed_some,
    score_ranking,
    triplet_accuracy,
)
from psnet.evaluation.intervals import bootstrap_ratio, wilson
from psnet.evaluation.pictures import outline, save
from psnet.evaluation.tables import Cell, Table, write_tables
from psnet.train.asen_settings import AsenSettings, read_methods

_SHOWN = 8
_BATCH = 16


class AsenSession:
    """The methods of one configuration, each loaded and run once.

    Raises:
        ConfigError: see `read_methods`. ValueError: no data or weights there.
    """

    def __init__(self, settings: AsenSettings) -> None:
        self.settings = settings
        self.methods = read_methods(settings)
        # The main one first.
        self.order = sorted(self.methods, key=lambda name: name != settings.main)
        self._models: dict[str, AttributeNetwork] = {}

    def folder(self, name: str) -> Path:
        return Path(self.settings.out) / name

    def model(self, name: str) -> AttributeNetwork:
        """The trained network. Raises WeightsError when it has not been trained, ConfigError when it was on
        other attributes than those of the data set."""
        if name not in self._models:
            model, asked = load_asen(self.folder(name)), self.attributes
            if model.config.attributes != asked:
                raise ConfigError(
                    f"out: {self.folder(name)} was trained on {', '.join(model.config.attributes)}; "
                    f"{self.settings.dataset} has {', '.join(asked)}"
                )
            self._models[name] = model.to(resolve_device(self.settings.device))
        return self._models[name]

    @cached_property
    def attributes(self) -> tuple[str, ...]:
        """Of the data set."""
        if self.settings.dataset == zappos.DATASET:
            return zappos.ATTRIBUTES
        return read_meta(Path(self.settings.root), self.settings.dataset).names

    def title(self, name: str) -> str:
        """How tables call a method."""
        return self.methods[name].title or name

    @cached_property
    def ranking(self) -> AttributeRanking:
        settings = self.settings
        return read_ranking(Path(settings.root), settings.dataset, "test", skip_missing=settings.skip_missing)

    @cached_property
    def embeddings(self) -> dict[str, np.ndarray]:
        """Of the test images, by method."""
        return {
            name: embed_ranking(self.model(name), self.ranking, self.settings.precision)
            for name in self.order
        }

    @cached_property
    def scores(self) -> dict[str, RankingScores]:
        return {name: score_ranking(self.ranking, found) for name, found in self.embeddings.items()}

    @cached_property
    def photographs(self) -> list[LabelledGarment]:
        """The labelled garments that the attention is measured on."""
        if self.settings.labels is None:
            return []
        path = Path(self.settings.labels)
        garments = read_any_labels(path, [self.settings.split], upright_only=False)
        if not garments:
            raise ConfigError(f"labels: {path} has no garment of split {self.settings.split!r}")
        return garments

    @property
    def fingerprint(self) -> str:
        """Names the settings and the weights."""
        content = hashlib.sha256(digest(self.settings, results_only=True).encode())
        for name in self.order:
            content.update(asen_tag(self.folder(name)).encode())
        return content.hexdigest()[:12]


def ranking_tables(session: AsenSession) -> list[Table]:
    """mAP per attribute and overall, triplet accuracy, and how much better the main method is than each."""
    meta, scores, seed = session.ranking.images.meta, session.scores, session.settings.seed
    asked, offered = len(session.ranking.queries), len(session.ranking.candidates)
    # The others have no candidate of their value, or no other.
    scored = len(scores[session.settings.main].precision)
    of = f" of {asked:,}" if scored < asked else ""
    stands_on = (
        f"{session.settings.dataset}, split test: {len(session.ranking.images.paths):,} images, "
        f"{scored:,}{of} queries, {offered:,} candidates. A query ranks the candidates of its attribute by "
        "cosine; relevant: those of its value. 95 % intervals: photographs resampled."
    )
    columns = ("method", "overall", *(name.replace("_", " ") for name in meta.names))
    rows: list[tuple[Cell, ...]] = []
    accuracy: list[tuple[Cell, ...]] = []
    for name in session.order:
        one = scores[name]
        for into, values in ((rows, one.precision), (accuracy, one.triplets)):
            of_attribute = [one.estimate(values, a, seed) for a in range(len(meta.names))]
            into.append((session.title(name), one.estimate(values, None, seed), *of_attribute))
    main = scores[session.settings.main]
    better: list[tuple[Cell, ...]] = []
    for name in session.order:
        if name == session.settings.main:
            continue
        gain = main.precision - scores[name].precision
        of_attribute = [main.estimate(gain, a, seed) for a in range(len(meta.names))]
        better.append((session.title(name), main.estimate(gain, None, seed), *of_attribute))
    title = session.title(session.settings.main)
    return [
        Table("Mean average precision", stands_on, columns, tuple(rows)),
        Table(
            f"How much better {title} is",
            "mAP of the same queries minus that of the other method; photographs resampled.",
            columns,
            tuple(better),
        ),
        Table(
            "Triplet accuracy",
            "Share of all triplets (query, relevant and other candidate) that are ranked rightly.",
            columns,
            tuple(accuracy),
        ),
    ]


def triplet_tables(session: AsenSession) -> list[Table]:
    """Share of Zappos50k's test triplets that each method ranks rightly."""
    settings = session.settings
    listed = zappos.read_zappos(Path(settings.root), "test", skip_missing=settings.skip_missing)
    used = np.unique(listed.triplets[:, 1:])
    rows: list[tuple[Cell, ...]] = []
    for name in session.order:
        embeddings = embed_some(session.model(name), listed.paths, used, settings.precision)
        right = triplet_accuracy(embeddings, listed.triplets)
        kinds = [right[listed.triplets[:, 0] == a] for a in range(len(zappos.ATTRIBUTES))]
        rows.append((session.title(name), *(wilson(int(k.sum()), len(k)) for k in [right, *kinds])))
    note = f"{zappos.DATASET}, split test: {len(listed.triplets):,} triplets; Wilson intervals."
    return [Table("Triplet accuracy", note, ("method", "overall", *zappos.ATTRIBUTES), tuple(rows))]


def attention_table(session: AsenSession) -> Table:
    """The attention's mass inside the labelled regions of each attribute, against the regions' area."""
    settings, garments = session.settings, session.photographs
    rows: list[tuple[Cell, ...]] = []
    region_mask = torch.from_numpy(session.ranking.images.meta.region_mask())
    for name in session.order:
        model = session.model(name)
        inside = [regions_in_frame(garment, model.config.fit) for garment in garments]
        regions = torch.from_numpy(np.stack(inside))
        attention = _attention(AttributePredictor.load(session.folder(name), settings.device), garments)
        if attention is None:
            continue
        mass, known = (part.numpy() for part in attention_inside(attention, regions, region_mask))
        even = torch.full_like(attention, 1 / attention[0, 0].numel())
        area = attention_inside(even, regions, region_mask)[0].numpy()
        for a, attribute in enumerate(model.config.attributes):
            seen = known[:, a]
            if not seen.any():
                continue
            share = bootstrap_ratio(mass[seen, a], np.ones(seen.sum()), settings.seed)
            times = bootstrap_ratio(mass[seen, a], area[seen, a], settings.seed, cases=int(seen.sum()))
            where = ", ".join(session.ranking.images.meta.regions[attribute])
            cells = (session.title(name), attribute.replace("_", " "), where.replace("_", " "))
            rows.append((*cells, share, float(area[seen, a].mean()), times))
    return Table(
        "Attention on photographs",
        f"{len(garments):,} hand-labelled photographs, split {settings.split}; the garment's labelled box "
        "with the pipeline's margin. Mass: share of the attention inside the attribute's labelled regions; "
        "area: their share of the crop; times: mass over area. 95 % intervals: photographs resampled.",
        ("method", "attribute", "regions", "mass", "area", "times"),
        tuple(rows),
    )


def regions_in_frame(garment: LabelledGarment, fit: str) -> np.ndarray:
    """Region boxes (5, 4) as shares of what a network that fits pictures by ``fit`` sees of the crop that the
    pipeline makes of the labelled box, NaN where absent."""
    height, width = garment.read().shape[:2]
    frame = expand(garment.box, GARMENT_MARGIN, width, height)
    across, down = (float(v) for v in frame[2:] - frame[:2])
    seen = whole_frame(across, down, fit) + np.tile(frame[:2], 2)
    shares = (garment.region_boxes - np.tile(seen[:2], 2)) / np.tile(seen[2:] - seen[:2], 2)
    return np.clip(shares, 0, 1).astype(np.float32)


def _attention(predictor: AttributePredictor, garments: Sequence[LabelledGarment]) -> torch.Tensor | None:
    """(n, attributes, h, w), None for a method without."""
    maps = []
    for start in range(0, len(garments), _BATCH):
        chunk = garments[start : start + _BATCH]
        crops = [predictor.crop(Image.fromarray(garment.read()), garment.box) for garment in chunk]
        attention = predictor.look(crops)[1]
        if attention is None:
            return None
        maps.append(attention)
    return torch.from_numpy(np.concatenate(maps))


def draw_pictures(session: AsenSession, folder: Path) -> list[Path]:
    """Attention per attribute on the labelled photographs, if there are any, and retrieval rows per attribute
    on the test images; returns the files."""
    main = session.settings.main
    drawn: dict[str, Any] = {
        "asen_retrieval": retrieval_sheet(session.ranking, session.embeddings[main], session.settings.seed)
    }
    if session.photographs:
        predictor = AttributePredictor.load(session.folder(main), session.settings.device)
        chosen = session.photographs[:: max(len(session.photographs) // _SHOWN, 1)][:_SHOWN]
        crops = [predictor.crop(Image.fromarray(garment.read()), garment.box) for garment in chosen]
        attention = predictor.look(crops)[1]
        if attention is not None:
            # Photographs may not be ours to show.
            shown = [outline(crop) for crop in crops]
            drawn["asen_attention"] = attention_sheet(shown, attention, predictor.names)
    paths = []
    for name, picture in drawn.items():
        paths.append(folder / f"{name}.jpg")
        save(picture, paths[-1])
    return paths


def measure_asen(settings: AsenSettings) -> list[Table]:
    """All tables, also written to OUT/asen.json; pictures where ``settings.pictures`` names a folder.

    Raises:
        ValueError: a mistake in the settings or the data, one line.
    """
    session = AsenSession(settings)
    steps = {name: read_asen(session.folder(name))["provenance"].get("steps") for name in session.order}
    if len(set(steps.values())) > 1:
        unequal = ", ".join(f"{name} {count}" for name, count in steps.items())
        raise ConfigError(
            f"out: the methods were not trained equally long ({unequal} steps); train them again"
        )
    if settings.dataset == zappos.DATASET:
        tables = triplet_tables(session)
    else:
        tables = ranking_tables(session)
        if session.photographs:
            tables.append(attention_table(session))
        if settings.pictures:
            files = [(str(path),) for path in draw_pictures(session, Path(settings.pictures))]
            tables.append(Table("Pictures", "", ("file",), tuple(files)))
    write_tables(Path(settings.out) / "asen.json", tables, session.fingerprint)
    return tables
