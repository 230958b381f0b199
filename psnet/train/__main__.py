"""``python -m psnet.train PART``: train one part or all of PS-Net, calibrate, and write a weights folder.

Needs torch, torchvision, timm, numpy, pandas and pillow; opencv only to cut garments out of photographs,
once.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from psnet.config import ConfigError, load_config
from psnet.data.photographs import LabelledGarment, read_labels, with_masks
from psnet.detector import build_detector
from psnet.model import build_landmark_branch, build_retrieval_branch
from psnet.predictor import Predictor
from psnet.train.calibrate import calibrate
from psnet.train.detector import DetectorSamples, collate, detector_figures, detector_loss
from psnet.train.landmarks import LandmarkSamples, landmark_figures, landmark_loss
from psnet.train.loop import LoopSettings, fit
from psnet.train.retrieval import RetrievalSamples, retrieval_figures, retrieval_loss, validation_batch
from psnet.train.settings import TrainSettings
from psnet.verdict import Calibration
from psnet.weights import save_description, save_part

# Pictures without a torso garment that are kept for validation.
HELD_EMPTY = 80
PARTS = ("detector", "landmarks", "retrieval", "calibration", "all")


def load_garments(settings: TrainSettings) -> tuple[list[LabelledGarment], list[LabelledGarment]]:
    """Training and held-out garments of all label files, each with its cut-out."""
    train: list[LabelledGarment] = []
    held: list[LabelledGarment] = []
    if settings.label_weights and len(settings.label_weights) != len(settings.labels):
        raise ConfigError(
            f"label_weights: {len(settings.label_weights)} numbers for {len(settings.labels)} label files"
        )
    weights = settings.label_weights or (1.0,) * len(settings.labels)
    for path, weight in zip(settings.labels, weights, strict=True):
        garments = [dataclasses.replace(g, weight=weight) for g in _with_masks(settings, Path(path))]
        held += garments[:: settings.holdout]
        train += [g for i, g in enumerate(garments) if i % settings.holdout]
    if not train:
        raise ConfigError("labels: no garment to train on; name label files with --set labels=[...]")
    return train, held


def _with_masks(settings: TrainSettings, labels: Path) -> list[LabelledGarment]:
    return with_masks(read_labels(labels, [settings.split]), Path(settings.masks), max(settings.workers, 1))


def empty_images(settings: TrainSettings) -> list[Path]:
    """Pictures of the catalogue ``settings.empty`` that show no torso garment, labelled ones left out."""
    if settings.empty is None:
        return []
    labelled = {
        g.image_path.name for path in settings.labels for g in read_labels(Path(path), upright_only=False)
    }
    return [
        p
        for p, category, _ in _catalogue(settings.empty)
        if category in settings.empty_categories and p.name not in labelled
    ]


def stranger_images(settings: TrainSettings) -> list[tuple[Path, str]]:
    """Pictures of the catalogue ``settings.background`` and their sellers, for the scores of strangers; no
    labelled test picture."""
    if settings.background is None:
        return []
    test = {
        g.image_path.name
        for path in settings.labels
        for g in read_labels(Path(path), upright_only=False)
        if g.split != settings.split
    }
    pictures = [
        (p, seller)
        for p, category, seller in _catalogue(settings.background)
        if category not in settings.empty_categories and p.name not in test
    ]
    step = max(len(pictures) // settings.background_images, 1)
    return pictures[::step][: settings.background_images]


def _catalogue(path: str) -> list[tuple[Path, str, str]]:
    """Picture, category and seller of every row."""
    with open(path, newline="", encoding="utf-8") as file:
        return [
            (Path(path).parent / row["image"], row.get("category", ""), row["seller_id"])
            for row in csv.DictReader(file)
        ]


def _loop(settings: TrainSettings, part: LoopSettings) -> LoopSettings:
    return dataclasses.replace(
        part,
        workers=settings.workers,
        device=settings.device,
        precision=settings.precision,
        seed=settings.seed,
    )


def train_detector(settings: TrainSettings) -> None:
    train, held = load_garments(settings)
    empty = empty_images(settings)
    model = build_detector(settings.model.detector)
    figures = lambda m: detector_figures(m, held, empty[:HELD_EMPTY])  # noqa: E731
    out = Path(settings.out)
    fit(
        model,
        DetectorSamples(train, empty[HELD_EMPTY:], settings.seed),
        detector_loss,
        out / "detector",
        _loop(settings, settings.detector),
        figures,
        collate,
    )
    save_part(model, out / "detector.safetensors")


def train_landmarks(settings: TrainSettings) -> None:
    train, held = load_garments(settings)
    side = settings.model.crop_side
    empty = empty_images(settings)
    model = build_landmark_branch(settings.model)
    out = Path(settings.out)
    fit(
        model,
        LandmarkSamples(train, settings.seed, side, empty[HELD_EMPTY:]),
        landmark_loss,
        out / "landmarks",
        _loop(settings, settings.landmarks),
        lambda m: landmark_figures(m, held, side, empty[:HELD_EMPTY]),
    )
    save_part(model, out / "landmarks.safetensors")


def train_retrieval(settings: TrainSettings) -> None:
    train, held = load_garments(settings)
    if settings.model.retrieval != "crop":
        raise ConfigError("model.retrieval: only the crop branch is trained by this command so far")
    side = settings.model.region_side
    model = build_retrieval_branch(settings.model)
    batch = validation_batch(held, settings.seed + 1, side)
    out = Path(settings.out)
    fit(
        model,
        RetrievalSamples(train, settings.seed, side),
        retrieval_loss(settings.temperature, settings.retrieval_loss),
        out / "retrieval",
        _loop(settings, settings.retrieval),
        lambda m: retrieval_figures(m, batch),
    )
    save_part(model, out / "retrieval.safetensors")


def fit_calibration(settings: TrainSettings) -> None:
    """Thresholds for the three trained parts; writes model.json, which makes the folder a weights folder."""
    out = Path(settings.out)
    save_description(out, settings.model, {"calibration": json.loads(Calibration.default().to_json())})
    _, held = load_garments(settings)
    predictor = Predictor.load(out, settings.device, settings.precision)
    calibration, figures = calibrate(predictor, held, stranger_images(settings), settings.seed)
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")
    print(calibration.to_json())
    trained = {part: getattr(settings, part).steps for part in ("detector", "landmarks", "retrieval")}
    provenance = {
        "steps": trained,
        "seed": settings.seed,
        "figures": figures,
        "labels": [Path(p).parent.name for p in settings.labels],
    }
    save_description(
        out, settings.model, {"calibration": json.loads(calibration.to_json()), "provenance": provenance}
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 with one line on stderr for a mistake in the arguments or the data."""
    parser = argparse.ArgumentParser(prog="psnet train", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument(
        "--config", type=Path, help="YAML file with the keys of psnet.train.settings.TrainSettings"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key; may be repeated",
    )
    arguments = parser.parse_args(argv)
    steps = {
        "detector": train_detector,
        "landmarks": train_landmarks,
        "retrieval": train_retrieval,
        "calibration": fit_calibration,
    }
    try:
        layers = [arguments.config] if arguments.config else []
        settings = load_config(TrainSettings, *layers, overrides=arguments.overrides)
        Path(settings.out).mkdir(parents=True, exist_ok=True)
        for name in steps if arguments.part == "all" else [arguments.part]:
            steps[name](settings)
    except (ValueError, FileNotFoundError) as error:  # ConfigError and WeightsError are ValueErrors
        print(f"psnet train: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
