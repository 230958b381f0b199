"""``python -m psnet.evaluation PART``: measure one part of PS-Net, print its tables and keep them as JSON.

Needs torch, torchvision, timm, numpy, pillow, safetensors and pyyaml; opencv and scipy only for verdicts and
the baseline SIFT.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from psnet.config import ConfigError, Parser, add_options, load_options
from psnet.evaluation import asen, detection, landmarks, paper, photographic, pictures, plagiarism, retrieval
from psnet.evaluation.benchmark import Benchmark
from psnet.evaluation.garments import GarmentTable
from psnet.evaluation.intervals import Estimate
from psnet.evaluation.session import Session
from psnet.evaluation.settings import EvaluationSettings
from psnet.evaluation.tables import Table, write_tables
from psnet.regions import GROUPS
from psnet.train.asen_settings import AsenSettings

_BY_DESIGN = "Intervals by design, whose copies are no independent cases (Wilson's at the effective number)."
# Detections behind the precision-recall curve of AP.
_LEAST_SCORE = 0.05
# Photographs and queries on one picture.
_SHOWN = 12
_QUERIES_SHOWN = 6


def measure_detection(session: Session) -> list[Table]:
    settings = session.settings
    predictor = session.predictor(session.main, settings.min_score)
    unsure = session.predictor(session.main, min(_LEAST_SCORE, settings.min_score))
    rows = []
    empty = session.empty_pictures
    for name, shown in session.photographs.items():
        figures = detection.evaluate_detection(predictor, unsure, shown, empty, seed=settings.seed)
        rows.append((name, figures))
        empty = []  # once is enough
    note = (
        f"Model {predictor.tag}. Through the whole chain, any torso garment; only the labelled garment of a "
        "photograph counts as right. AP: mean over IoU 0.5 to 0.95, photographs resampled; shares: Wilson."
    )
    return [detection.detection_table("Detection", note, rows)]


def measure_landmarks(session: Session) -> list[Table]:
    predictor = session.predictor(session.main)
    unsure = session.predictor(session.main, min(_LEAST_SCORE, session.settings.min_score))
    tables = []
    for name, shown in session.photographs.items():
        found, hardly, given = (
            landmarks.seen_garments(one, shown, true_boxes=true_boxes)
            for one, true_boxes in ((predictor, False), (unsure, False), (predictor, True))
        )
        figures = {
            title: landmarks.landmark_figures(shown, seen, every, session.settings.seed)
            for title, seen, every in (("whole chain", found, hardly), ("true garment boxes", given, given))
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
        note = (
            f"Share of plagiarised copies with fewer items of other designs before them. {_BY_DESIGN} "
            f"{_KINDS_NOTE}"
        )
        tables.append(
            plagiarism.class_table(f"{title}, copies found by kind: {benchmark.name}", note, by_class)
        )
    return tables


def measure_plagiarism(session: Session) -> list[Table]:
    tables = []
    for benchmark in session.benchmarks.values():
        judged, listed, alone = {}, {}, {}
        for name, variant in session.variants.items():
            wanted = name == session.settings.main or variant.verdicts
            if not wanted or len(variant.folders) > 1 or name not in session.measured(benchmark):
                continue
            table, calibration = session.table(benchmark, variant), session.calibration(variant)
            looks = session.looks(variant, table, benchmark)
            listed[name] = plagiarism.find_suspects(table, benchmark, calibration, looks)
            judged[name] = plagiarism.judge_truth(table, benchmark, calibration, looks)
            if looks is not None:
                alone[name] = plagiarism.find_suspects(table, benchmark, calibration)
        lists = {session.title(name): suspects for name, suspects in listed.items()}
        lists |= {f"{session.title(name)}, features alone": suspects for name, suspects in alone.items()}
        verdicts = {
            title: plagiarism.score_suspects(benchmark, suspects, session.settings.seed)
            for title, suspects in lists.items()
        }
        where, main = benchmark.name, session.settings.main
        note = (
            f"{_stands_on(benchmark)} Suspects: calibrated thresholds, verdict identical or plagiarised, "
            "other seller. Right relation: of the listed pairs of the truth. Features alone: without the "
            f"look at the photographs of likely pairs. {_BY_DESIGN}"
        )
        tables.append(plagiarism.verdict_table(f"Verdicts: {where}", note, verdicts))
        note = "Original against copy, whatever the score. Rows: what was modified in truth."
        for unit in ("regions", "parts"):
            matrix = plagiarism.confusion(judged[main], by_parts=unit == "parts")
            title = f"{session.title(main)}, verdict by number of modified {unit}: {where}"
            tables.append(plagiarism.confusion_table(title, note, matrix, unit))
        found = {
            "on the list": plagiarism.recall_by_class(benchmark, listed[main]),
            "photographs lie upon each other": plagiarism.registered_by_class(judged[main]),
        }
        note = (
            "Share of identical and plagiarised copies on the list of suspects, and of those whose "
            f"photograph can be laid upon the original's. {_BY_DESIGN} "
            f"{_KINDS_NOTE}"
        )
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
        for name in session.measured(benchmark):
            summary = retrieval.summary(_results(session, benchmark, name), session.settings.seed)
            said = session.variants[name].paper if name in session.variants else None
            summaries.append((session.title(name), said, summary))
        contrasts = _contrasts(session, benchmark)
        if contrasts:
            note = (
                "Differences query by query; 95 % intervals: queries resampled, so that what is hard for "
                "both methods cancels out. Helps or harms: the interval of mAP leaves out 0."
            )
            tables.append(
                retrieval.contrast_table(f"What each part is worth: {benchmark.name}", note, contrasts)
            )
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


def _contrasts(session: Session, benchmark: Benchmark) -> list[tuple[str, str, str, Mapping[str, Estimate]]]:
    """The contrasts that the benchmark knows enough for."""
    rows: list[tuple[str, str, str, Mapping[str, Estimate]]] = []
    for what, contrast in session.contrasts.items():
        sides = (contrast.having, contrast.lacking)
        if {*contrast.having, *contrast.lacking} <= set(session.measured(benchmark)):
            having, lacking = ([_results(session, benchmark, name) for name in side] for side in sides)
            with_it, without = (_mean_of([session.title(name) for name in side]) for side in sides)
            figures = retrieval.contrast(having, lacking, session.settings.seed)
            rows.append((what, with_it, without, figures))
    return rows


def _mean_of(titles: Sequence[str]) -> str:
    return titles[0] if len(titles) == 1 else f"mean of {len(titles)}: {titles[0]} … {titles[-1]}"


def measure_photographs(session: Session) -> list[Table]:
    """What changes of the photograph cost, one at a time."""
    tables = []
    variant = session.main
    for benchmark in session.benchmarks.values():
        hits = {"none": _hits(session, benchmark, session.table(benchmark, variant))}
        for change in session.settings.changes:
            if change != "surroundings" or benchmark.boxes:
                table = session.changed_table(benchmark, variant, change)
                hits[photographic.TITLES[change]] = _hits(session, benchmark, table, change)
        copies = len(photographic.changed_rows(benchmark, session.settings.changed_designs))
        note = (
            f"The photographs of {copies:,} identical and plagiarised copies changed in one way more; "
            "every copy, the unchanged ones too, has another background, pose, light and camera than its "
            f"original. In the first {photographic.CUTOFF}: plagiarised copies with fewer items of other "
            "designs before them; on the list: identical and plagiarised copies among the suspects. "
            f"Differences to the first row: copy by copy. {_BY_DESIGN}"
        )
        title = f"{session.title(session.settings.main)}, changes of the photograph: {benchmark.name}"
        tables.append(photographic.change_table(title, note, hits, session.settings.seed))
    return tables


def _hits(
    session: Session, benchmark: Benchmark, table: GarmentTable, change: str | None = None
) -> tuple[list[list[bool]], list[list[bool]]]:
    """Which copies are found early, and which are listed, with these garments."""
    scores = session.variant_scores(benchmark, session.main, table)
    looks = session.looks(session.main, table, benchmark, change)
    suspects = plagiarism.find_suspects(table, benchmark, session.calibration(session.main), looks)
    listed = {frozenset((one.original, one.copy)) for one in suspects}
    results = retrieval.rank_queries(benchmark, scores, session.settings.seed)
    chosen = set(photographic.changed_designs(benchmark, session.settings.changed_designs))
    return (
        photographic.found_early(results, chosen),
        photographic.listed_copies(benchmark, listed, chosen),
    )


def _paper_figures(said: str | None, group: str) -> tuple[float, float, float] | None:
    """The paper's row; by group it gives PS-Net only."""
    if said is None:
        return None
    if group == "overall":
        return paper.RETRIEVAL[said]
    return paper.RETRIEVAL_BY_GROUP[group] if said == "psnet" else None


def curves(session: Session, benchmark: Benchmark) -> dict[str, pictures.Curves]:
    """Precision over recall per group and overall, of the main variant, those whose curves are wanted, and
    the baselines, by title."""
    chosen = {
        name: session.title(name)
        for name in session.measured(benchmark)
        if name in (session.settings.main, *session.settings.baselines) or session.variants[name].curve
    }
    scores = {title: session.scores(benchmark, name) for name, title in chosen.items()}
    known = {pair.group for pair in benchmark.truth}
    return {
        group or "overall": {
            title: retrieval.precision_recall(benchmark, score, group=group)
            for title, score in scores.items()
        }
        for group in (None, *(g for g in GROUPS if g in known))
    }


def region_weights(session: Session) -> dict[str, np.ndarray]:
    """λ (4, 5) of the variants of the main model that weigh regions in ways of their own, by title; the
    shipped λ where there is none."""
    folder = session.main.folders[0]
    found = {
        session.title(name): session.score_settings(variant).weights
        for name, variant in session.variants.items()
        if variant.folders == (folder,) and variant.region_weights in ("manual", "manipulation", "precision")
    }
    return found or {session.title(session.settings.main): session.calibration(session.main).weights}


def draw_pictures(session: Session) -> list[Table]:
    """Draws what ``settings.pictures`` asks for; the table says which files there are."""
    if not session.settings.pictures:
        raise ConfigError("pictures: no folder named; use --set pictures.BENCHMARK=FOLDER")
    for name in (*session.settings.pictures, *session.settings.outlines):
        if name not in session.benchmarks:
            raise ConfigError(f"pictures: no benchmark {name!r}; known: {', '.join(session.benchmarks)}")
    rows: list[tuple[str, str]] = []
    for name, folder in session.settings.pictures.items():
        for what, picture in _pictures_of(session, session.benchmarks[name]).items():
            path = Path(folder) / f"{what}.jpg"
            pictures.save(picture, path)
            rows.append((what, str(path)))
    return [Table("Pictures", "", ("picture", "file"), tuple(rows))]


def _pictures_of(session: Session, benchmark: Benchmark) -> dict[str, Image.Image]:
    """By the name of the file. Attention: of the first variant that has it."""
    known, asked = benchmark.rows, retrieval.queries(benchmark)
    # Evenly over the catalogue of designs, which is sorted by group in some benchmarks.
    chosen = asked[:: max(len(asked) // _SHOWN, 1)][:_SHOWN]
    photographs = [benchmark.picture(known[query]) for query in chosen]
    outlined = benchmark.name in session.settings.outlines
    look = pictures.outline if outlined else _as_it_is
    shown = [look(pixels) for pixels in photographs]
    found = detection.predict_all(session.predictor(session.main), photographs)
    scores = session.scores(benchmark, session.settings.main)
    some = range(0, len(asked), max(len(asked) // _QUERIES_SHOWN, 1))[:_QUERIES_SHOWN]
    drawn = {
        "landmarks": pictures.sheet(
            [pictures.draw_garments(p, g) for p, g in zip(shown, found, strict=True)], 6, (180, 240)
        ),
        "region_weights": pictures.draw_region_weights(region_weights(session)),
        "precision_recall": pictures.draw_curves(curves(session, benchmark)),
        "retrieval": pictures.draw_retrieval(
            benchmark, [asked[q] for q in some], scores[list(some)], look=look
        ),
    }
    attentive = next((v for v in session.variants.values() if session.has_attention(v)), None)
    if attentive is not None:
        predictor = session.predictor(attentive)
        seen = detection.predict_all(predictor, photographs)
        maps = [
            pictures.draw_attention(predictor, pixels, garments[0], instead)
            for pixels, garments, instead in zip(photographs, seen, shown, strict=True)
            if garments
        ]
        drawn["attention"] = pictures.sheet(maps, 6, (180, 180))
    return drawn


def _as_it_is(pixels: np.ndarray) -> np.ndarray:
    return pixels


_KINDS_NOTE = (
    "A copy with two edits counts for both kinds and parts. Donor: the part of another garment; flip: the "
    "print flipped; collar, sleeve, hem: another shape of it."
)
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
    "photographs": measure_photographs,
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
    parser = Parser(prog="psnet eval", description=__doc__)
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
