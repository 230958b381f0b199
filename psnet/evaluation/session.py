"""What several tables share: benchmarks, models, garments and scores, each computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from psnet.config import digest
from psnet.data.csv_files import read_csv
from psnet.data.labels import read_any_labels
from psnet.evaluation import garments, photographic, retrieval
from psnet.evaluation.baselines import BASELINES
from psnet.evaluation.baselines import NAMES as BASELINE_NAMES
from psnet.evaluation.benchmark import Benchmark, read_benchmark, read_picture
from psnet.evaluation.detection import Photograph, photographs
from psnet.evaluation.garments import GarmentTable
from psnet.evaluation.looks import Known, Looks
from psnet.evaluation.paper import manual_weights
from psnet.evaluation.scores import ScoreSettings, item_scores
from psnet.evaluation.settings import EvaluationSettings, Variant, read_contrasts, read_variants
from psnet.predictor import Predictor
from psnet.similarity import equal_weights
from psnet.verdict import Calibration
from psnet.verification import Verifier
from psnet.weights import (
    comparison_digest,
    model_tag,
    read_calibration,
    read_description,
    read_learnt_weights,
)


class Session:
    """One evaluation. Features lie in OUT/features, one file per model, benchmark and way of finding boxes,
    so that tables made again cost no forward pass.

    Raises:
        ConfigError: see ``read_variants``. ValueError: no benchmark, label file or weights there.
    """

    def __init__(self, settings: EvaluationSettings) -> None:
        self.settings = settings
        self.variants = read_variants(settings)
        self.contrasts = read_contrasts(settings)
        self.features = Path(settings.out) / "features"
        # Bound to the instance: two sessions share nothing.
        self._tables = cache(self._table)
        self._scores = cache(self._item_scores)
        self._calibrations = cache(read_calibration)
        self._tags = cache(model_tag)
        # By benchmark and weights.
        self._known: defaultdict[tuple[str, str | None], Known] = defaultdict(dict)

    @cached_property
    def benchmarks(self) -> dict[str, Benchmark]:
        """By the name the tables call them, cut to ``settings.limit``."""
        found = {name: read_benchmark(Path(p), name) for name, p in self.settings.benchmarks.items()}
        if not found:
            raise ValueError("benchmarks: none named; use --set benchmarks.NAME=FOLDER")
        limit = self.settings.limit
        return found if limit is None else {name: one.subset(limit) for name, one in found.items()}

    @cached_property
    def photographs(self) -> dict[str, list[Photograph]]:
        """The labelled photographs by the name of their file, cut to ``settings.limit``."""
        if not self.settings.labels:
            raise ValueError("labels: no label file named; use --set labels.NAME=FILE")
        out = {}
        for name, path in self.settings.labels.items():
            split = self.settings.splits.get(name)
            labels = read_any_labels(Path(path), None if split is None else [split], upright_only=False)
            if not labels:
                raise ValueError(f"{path}: no label of split {split!r}")
            out[name] = photographs(labels[: self.settings.limit])
        return out

    @cached_property
    def empty_pictures(self) -> list[np.ndarray]:
        """Pictures without a garment of the torso."""
        if self.settings.empty is None:
            return []
        path = Path(self.settings.empty)
        labelled = {
            garment.image_path.name
            for labels in self.settings.labels.values()
            for garment in read_any_labels(Path(labels), upright_only=False)
        }
        chosen = [
            path.parent / row["image"]
            for _, row in read_csv(path, ("image", "category"))
            if row["category"] in self.settings.empty_categories and Path(row["image"]).name not in labelled
        ]
        wanted = min(self.settings.empty_images, self.settings.limit or self.settings.empty_images)
        return [read_picture(picture) for picture in chosen[:wanted]]

    @property
    def fingerprint(self) -> str:
        """Names the settings and the content of models, benchmarks and label files: figures with another one
        are other figures."""
        content = hashlib.sha256(digest(self.settings, results_only=True).encode())
        for variant in self.variants.values():
            for folder in variant.folders:
                content.update(self._tags(folder).encode())
                content.update(self._calibrations(folder).to_json().encode())
                content.update(comparison_digest(folder).encode())
                learnt = read_description(folder).get("region_weights", {}).get("tables")
                content.update(json.dumps(learnt, sort_keys=True).encode())
        if self.settings.empty is not None:
            content.update(Path(self.settings.empty).read_bytes())
        for path in self.settings.benchmarks.values():
            content.update(read_benchmark(Path(path)).digest.encode())
        for path in self.settings.labels.values():
            file = Path(path) / "labels.jsonl" if Path(path).is_dir() else Path(path)
            content.update(file.read_bytes() if file.is_file() else path.encode())
        return content.hexdigest()[:12]

    @property
    def main(self) -> Variant:
        """The variant that the tables about one method are about."""
        return self.variants[self.settings.main]

    def title(self, name: str) -> str:
        """How tables call a variant or a baseline."""
        return self.variants[name].title or name if name in self.variants else BASELINE_NAMES[name]

    def measured(self, benchmark: Benchmark) -> list[str]:
        """The variants and then the baselines to be measured on a benchmark: not those it knows too little
        for."""
        skipped = self.settings.skipped.get(benchmark.name, ())
        known = [n for n, v in self.variants.items() if v.boxes == "predicted" or benchmark.boxes]
        return [name for name in (*known, *self.settings.baselines) if name not in skipped]

    def predictor(self, variant: Variant, min_score: float | None = None) -> Predictor:
        """The variant's model, the first of an ensemble."""
        return self._load(variant.folders[0], self.settings.min_score if min_score is None else min_score)

    def _load(self, weights: str | None, min_score: float) -> Predictor:
        return Predictor.load(weights, self.settings.device, self.settings.precision, min_score=min_score)

    def calibration(self, variant: Variant) -> Calibration:
        """The calibration stored with the variant's weights, the first of an ensemble."""
        return self._calibrations(variant.folders[0])

    def score_settings(self, variant: Variant) -> ScoreSettings:
        """How the variant's cosines become a score."""
        calibration = self.calibration(variant)
        if variant.region_weights in ("manipulation", "precision"):
            weights = read_learnt_weights(variant.folders[0], variant.region_weights)
        else:
            weights = {
                "shipped": calibration.weights,
                "ones": equal_weights(),
                "manual": manual_weights(),
            }[variant.region_weights]
        scoring = calibration.scoring if variant.scoring == "shipped" else variant.scoring
        return ScoreSettings(scoring, weights, variant.normalised)

    def tag(self, variant: Variant) -> str:
        """The names of the variant's models."""
        return ", ".join(self._tags(folder) for folder in variant.folders)

    def has_attention(self, variant: Variant) -> bool:
        """Whether the variant's model makes attention maps."""
        model = read_description(variant.folders[0])["config"]
        return model.get("retrieval") == "roi" and model.get("attention", True)

    def table(self, benchmark: Benchmark, variant: Variant) -> GarmentTable:
        """The benchmark's garments as the variant sees them, the first model of an ensemble."""
        return self._tables(benchmark.name, variant.folders[0], variant.boxes)

    def scores(self, benchmark: Benchmark, name: str) -> np.ndarray:
        """(q, items) of the benchmark's queries by a variant or a baseline; -inf where nothing is
        comparable."""
        return self._scores(benchmark.name, name)

    def changed_table(self, benchmark: Benchmark, variant: Variant, change: str) -> GarmentTable:
        """``table`` with the photographs of the copies changed, see `psnet.evaluation.photographic`; boxes
        are as the model finds them."""
        settings = self.settings
        rows, seed = photographic.changed_rows(benchmark, settings.changed_designs), settings.seed
        other = garments.cached(
            self._features_file(benchmark, variant.folders[0], f"{change}-{settings.changed_designs}-{seed}"),
            lambda: garments.gather(
                self.predictor(variant),
                benchmark,
                rows=rows,
                read=lambda row: photographic.changed_picture(benchmark, row, change, seed),
                progress=_progress(f"{benchmark.name}, {change}"),
            ),
        )
        found = self._tables(benchmark.name, variant.folders[0], "predicted")
        return photographic.replaced(found, other, rows)

    def variant_scores(self, benchmark: Benchmark, variant: Variant, table: GarmentTable) -> np.ndarray:
        """``scores`` of the variant's first model with another table of garments."""
        rows = benchmark.rows
        asked = [rows[query] for query in retrieval.queries(benchmark)]
        return item_scores(table, asked, len(benchmark.items), self.score_settings(variant))

    def looks(
        self,
        variant: Variant,
        table: GarmentTable,
        benchmark: Benchmark,
        change: str | None = None,
    ) -> Looks | None:
        """At the photographs of the benchmark's garments, of which ``table`` knows the boxes; None where the
        variant's weights have no calibrated comparison network.

        Args:
            change: of the photographs of the copies, as in ``changed_table``.
        """
        if self.calibration(variant).changed_threshold is None:
            return None
        verifier = Verifier.load(variant.folders[0])
        settings = self.settings
        changed = set(photographic.changed_rows(benchmark, settings.changed_designs) if change else ())

        def picture(row: int) -> np.ndarray:
            if change and row in changed:
                return photographic.changed_picture(benchmark, row, change, settings.seed)
            return benchmark.picture(row)

        known = self._known[benchmark.name, variant.folders[0]]
        return None if verifier is None else Looks(verifier, table, picture, known, changed)

    def _features_file(self, benchmark: Benchmark, weights: str | None, boxes: str) -> Path:
        settings = self.settings
        least = f"{settings.min_score:g}"
        key = (benchmark.name, benchmark.digest, self._tags(weights), boxes, settings.precision, least)
        return self.features / "_".join(key)

    def _table(self, benchmark: str, weights: str | None, boxes: str) -> GarmentTable:
        one = self.benchmarks[benchmark]
        return garments.cached(
            self._features_file(one, weights, boxes),
            lambda: garments.gather(
                self._load(weights, self.settings.min_score),
                one,
                true_boxes=boxes == "labelled",
                progress=_progress(one.name),
            ),
        )

    def _item_scores(self, benchmark: str, name: str) -> np.ndarray:
        one = self.benchmarks[benchmark]
        rows = one.rows
        asked = [rows[query] for query in retrieval.queries(one)]
        if name in BASELINES and name not in self.variants:
            return self._baseline_scores(one, name, asked)
        variant = self.variants[name]
        chosen = self.score_settings(variant)
        members = [
            item_scores(self._tables(benchmark, folder, variant.boxes), asked, len(one.items), chosen)
            for folder in variant.folders
        ]
        return mean_of_members(members)

    def _baseline_scores(self, benchmark: Benchmark, name: str, asked: Sequence[int]) -> np.ndarray:
        path = self.features / f"{benchmark.name}_{benchmark.digest}_{name}.npy"
        if path.is_file():
            return np.load(path, allow_pickle=False)
        pictures = [read_picture(item.image) for item in benchmark.items]
        scores = BASELINES[name](pictures, asked, _progress(f"{benchmark.name}, {name}"))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.npy")
        np.save(temporary, scores)
        os.replace(temporary, path)
        return scores


def mean_of_members(members: Sequence[np.ndarray]) -> np.ndarray:
    """Scores of an ensemble: the mean over the members that could compare the pair, -inf where none
    could."""
    stacked = np.stack(members)
    usable = np.isfinite(stacked)
    count = usable.sum(0)
    total = np.where(usable, stacked, 0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), -np.inf).astype(np.float32)


def _progress(name: str) -> garments.Progress:
    def tell(done: int, of: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done == of else ""
            print(f"\r{name}: {done:,} of {of:,}", end=end, file=sys.stderr, flush=True)

    return tell
