"""``python -m psnet.evaluation PART``: measure one part of PS-Net, print its tables and keep them as JSON.

Needs torch, torchvision, timm, numpy, pandas and pillow; opencv only for the baseline SIFT.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from psnet.config import ConfigError, add_options, load_options
from psnet.evaluation import asen, detection, landmarks, paper, pictures, plagiarism, retrieval
from psnet.evaluation.baselines import NAMES
from psnet.evaluation.benchmark import Benchmark, read_picture
from psnet.evaluation.intervals import Estimate
from psnet.evaluation.session import Session
from psnet.evaluation.settings import EvaluationSettings
from psnet.evaluation.tables import Table, write_tables
from psnet.regions import GROUPS
from psnet.train.asen_settings import AsenSettings

# Detections behind the precision-recall curve of AP.
_LEAST_SCORE = 0.05
# Photographs and queries on one picture.
_SHOWN = 12
_QUERIES_SHOWN = 6


def measure_detection(session: Session) -> list[Table]:
    settings = session.settings
    predictor = session.predictor(session.main, min(_LEAST_SCORE, settings.min_score))
    rows = []
    empty = session.empty_pictures
    for name, shown in session.photographs.items():
        figures = detection.evaluate_detection(
            predictor, shown, empty, min_score=settings.min_score, seed=settings.seed
        )
        rows.append((name, figures))
        empty = []  # once is enough
    note = (
        f"Model {predictor.tag}. Through the whole chain, any torso garment; only the labelled garment of a "
        "photograph counts as right. AP: mean over IoU 0.5 to 0.95, photographs resampled; shares: Wilson."
    )
    return [detection.detection_table("Detection", note, rows)]


def measure_landmarks(session: Session) -> list[Table]:
    predictor = session.predictor(session.main)
    tables = []
    for name, shown in session.photographs.items():
        figures = {
            title: landmarks.landmark_figures(
                shown,
                landmarks.seen_garments(predictor, shown, true_boxes=true_boxes),
                session.settings.seed,
            )
            for title, true_boxes in (("whole chain", False), ("true garment boxes", True))
        }
        note = (
            f"Model {predictor.tag}, {len(shown):,} photographs. Distance over the longer side of the "
            "garment's box, visible points; photographs resampled."
        )
        tables.append(landmarks.error_table(f"Landmarks, normalised error: {name}", note, figures))
        note = "Overlap of the region boxes, and whether present and absent are told right."
        tables.append(landmarks.region_table(f"Regions: {name}", note, figures))
        note = (
            "Eleven points, visible and estimated, with DeepFashion2's tolerances; any torso garment, not "
            "each category by itself; photographs resampled."
        )
        tables.append(landmarks.keypoint_table(f"Landmarks, OKS AP: {name}", note, figures))
    return tables


def measure_retrieval(session: Session) -> list[Table]:
    tables = []
    for benchmark in session.benchmarks.values():
        results = _results(session, benchmark, session.settings.main)
        title = session.title(session.settings.main)
        tables.append(
            retrieval.group_table(
                f"{title}, by group: {benchmark.name}",
                f"{_stands_on(benchmark)} Model {session.tag(session.main)}. {_RETRIEVAL_NOTE}",
                retrieval.summary(results, session.settings.seed),
            )
        )
        by_class = {
            f"in the first {k}": retrieval.recall_by_class(benchmark, results, k) for k in retrieval.CUTOFFS
        }
        note = "Share of plagiarised copies with fewer items of other designs before them; Wilson intervals."
        tables.append(
            plagiarism.class_table(f"{title}, copies found by kind: {benchmark.name}", note, by_class)
        )
    return tables


def measure_plagiarism(session: Session) -> list[Table]:
    tables = []
    for benchmark in session.benchmarks.values():
        judged, listed = {}, {}
        for name, variant in session.variants.items():
            wanted = name == session.settings.main or variant.verdicts
            if not wanted or len(variant.folders) > 1 or not session.applies(variant, benchmark):
                continue
            table, calibration = session.table(benchmark, variant), session.calibration(variant)
            listed[name] = plagiarism.find_suspects(table, benchmark, calibration)
            judged[name] = plagiarism.judge_truth(table, benchmark, calibration)
        verdicts = {
            session.title(name): plagiarism.score_suspects(benchmark, suspects, session.settings.seed)
            for name, suspects in listed.items()
        }
        where, main = benchmark.name, session.settings.main
        note = (
            f"{_stands_on(benchmark)} Suspects: calibrated thresholds, verdict identical or plagiarised, "
            "other seller. Right relation: of the listed pairs of the truth. Intervals: Wilson, for IoU "
            "bootstrap."
        )
        tables.append(plagiarism.verdict_table(f"Verdicts: {where}", note, verdicts))
        note = "Original against copy, whatever the score. Rows: what was modified in truth."
        for unit in ("regions", "parts"):
            matrix = plagiarism.confusion(judged[main], by_parts=unit == "parts")
            title = f"{session.title(main)}, verdict by number of modified {unit}: {where}"
            tables.append(plagiarism.confusion_table(title, note, matrix, unit))
        found = {"on the list": plagiarism.recall_by_class(benchmark, listed[main])}
        note = "Share of identical and plagiarised copies on the list of suspects; Wilson intervals."
        title = f"{session.title(main)}, copies listed by kind: {where}"
        tables.append(plagiarism.class_table(title, note, found))
        note = (
            "Median fall of a region's cosine from the identical copy to copies with one edited part; "
            "designs resampled."
        )
        for name, verdict in judged.items():
            title = f"{session.title(name)}, leakage: {where}"
            tables.append(
                plagiarism.leakage_table(title, note, plagiarism.leakage(verdict, session.settings.seed))
            )
    return tables


def measure_ablation(session: Session) -> list[Table]:
    tables = []
    for benchmark in session.benchmarks.values():
        summaries: list[tuple[str, str | None, Mapping[str, Mapping[str, Estimate]]]] = []
        for name, variant in session.variants.items():
            if session.applies(variant, benchmark):
                results = _results(session, benchmark, name)
                summary = retrieval.summary(results, session.settings.seed)
                summaries.append((session.title(name), variant.paper, summary))
        for name in session.settings.baselines:
            results = _results(session, benchmark, name)
            summaries.append((NAMES[name], None, retrieval.summary(results, session.settings.seed)))
        note = f"{_stands_on(benchmark)} {_RETRIEVAL_NOTE}"
        for group in ("overall", *GROUPS):
            rows = [
                (title, _paper_figures(said, group), summary[group])
                for title, said, summary in summaries
                if group in summary
            ]
            if rows:
                title = f"All methods, {group}: {benchmark.name}"
                tables.append(retrieval.variant_table(title, note if group == "overall" else "", rows))
    return tables


def _paper_figures(said: str | None, group: str) -> tuple[float, float, float] | None:
    """The paper's row; by group it gives PS-Net only."""
    if said is None:
        return None
    if group == "overall":
        return paper.RETRIEVAL[said]
    return paper.RETRIEVAL_BY_GROUP[group] if said == "psnet" else None


def curves(session: Session, benchmark: Benchmark) -> dict[str, list[tuple[float, float]]]:
    """Precision over recall of every variant and baseline, by title."""
    names = [name for name, variant in session.variants.items() if session.applies(variant, benchmark)]
    titles = {
        **{name: session.title(name) for name in names},
        **{b: NAMES[b] for b in session.settings.baselines},
    }
    return {
        title: retrieval.precision_recall(benchmark, session.scores(benchmark, name))
        for name, title in titles.items()
    }


def draw_pictures(session: Session) -> list[Table]:
    """Draws what ``settings.pictures`` asks for; the table says which files there are."""
    if not session.settings.pictures:
        raise ConfigError("pictures: no folder named; use --set pictures.BENCHMARK=FOLDER")
    rows: list[tuple[str, str]] = []
    predictor = session.predictor(session.main)
    for name, folder in session.settings.pictures.items():
        if name not in session.benchmarks:
            raise ConfigError(f"pictures: no benchmark {name!r}; known: {', '.join(session.benchmarks)}")
        benchmark = session.benchmarks[name]
        known, asked = benchmark.rows, retrieval.queries(benchmark)
        # Evenly over the catalogue of designs, which is sorted by group in some benchmarks.
        chosen = asked[:: max(len(asked) // _SHOWN, 1)][:_SHOWN]
        photographs = [read_picture(benchmark.items[known[query]].image) for query in chosen]
        found = detection.predict_all(predictor, photographs)
        drawn = {
            "landmarks": pictures.sheet(
                [pictures.draw_garments(p, g) for p, g in zip(photographs, found, strict=True)], 6, (180, 240)
            ),
            "region_weights": pictures.draw_region_weights(session.calibration(session.main).weights),
            "precision_recall": pictures.draw_curves(curves(session, benchmark)),
        }
        scores = session.scores(benchmark, session.settings.main)
        some = range(0, len(asked), max(len(asked) // _QUERIES_SHOWN, 1))[:_QUERIES_SHOWN]
        drawn["retrieval"] = pictures.draw_retrieval(benchmark, [asked[q] for q in some], scores[list(some)])
        for variant in session.variants.values():
            if session.has_attention(variant):
                attentive = session.predictor(variant)
                seen = detection.predict_all(attentive, photographs)
                maps = [
                    pictures.draw_attention(attentive, p, g[0])
                    for p, g in zip(photographs, seen, strict=True)
                    if g
                ]
                drawn["attention"] = pictures.sheet(maps, 6, (180, 180))
                break
        for what, picture in drawn.items():
            path = Path(folder) / f"{what}.jpg"
            pictures.save(picture, path)
            rows.append((what, str(path)))
    return [Table("Pictures", "", ("picture", "file"), tuple(rows))]


_RETRIEVAL_NOTE = (
    "Queries: originals; relevant: their plagiarised copies; other items of the design are left out. The "
    "whole catalogue is ranked. 95 % intervals: queries resampled."
)


def _results(session: Session, benchmark: Benchmark, name: str) -> list[retrieval.QueryResult]:
    return retrieval.rank_queries(benchmark, session.scores(benchmark, name), session.settings.seed)


def _stands_on(benchmark: Benchmark) -> str:
    """The data in one sentence."""
    counts = {
        relation: sum(pair.relation == relation for pair in benchmark.truth)
        for relation in ("identical", "plagiarised", "derived")
    }
    copies = ", ".join(f"{count:,} {relation}" for relation, count in counts.items())
    asked = len(retrieval.queries(benchmark))
    return f"{benchmark.name}: {len(benchmark.items):,} photographs, {asked:,} queries, copies: {copies}."


PARTS: dict[str, Callable[[Session], list[Table]]] = {
    "detection": measure_detection,
    "landmarks": measure_landmarks,
    "retrieval": measure_retrieval,
    "plagiarism": measure_plagiarism,
    "ablation": measure_ablation,
    "pictures": draw_pictures,
}


def measure(part: str, settings: EvaluationSettings) -> list[Table]:
    """The tables of one part, also written to OUT/PART.json.

    Raises:
        ValueError: a mistake in the settings or the data, one line.
    """
    session = Session(settings)
    tables = PARTS[part](session)
    write_tables(Path(settings.out) / f"{part}.json", tables, session.fingerprint)
    return tables


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 with one line on stderr for a mistake in the arguments or the data."""
    parser = argparse.ArgumentParser(prog="psnet eval", description=__doc__)
    parser.add_argument("part", choices=(*PARTS, "asen"))
    add_options(
        parser, "psnet.evaluation.settings.EvaluationSettings (asen: psnet.train.asen_settings.AsenSettings)"
    )
    arguments = parser.parse_args(argv)
    try:
        if arguments.part == "asen":
            tables = asen.measure_asen(load_options(AsenSettings, arguments))
        else:
            tables = measure(arguments.part, load_options(EvaluationSettings, arguments))
    except (ValueError, FileNotFoundError) as error:  # ConfigError and WeightsError are ValueErrors
        print(f"psnet eval: {error}", file=sys.stderr)
        return 2
    print("\n\n".join(table.text() for table in tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
