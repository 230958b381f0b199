"""``python -m psnet.train PART``: train one part or all of PS-Net, calibrate, and write a weights folder; the
part asen, which "all" leaves out, trains the attribute-specific network.

Needs torch, torchvision, timm, numpy, pillow, safetensors and pyyaml; opencv only to cut garments out of
photographs, once.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from psnet.comparison import RegionComparison
from psnet.config import ConfigError, Parser, add_options, as_dict, load_options
from psnet.data.csv_files import read_csv
from psnet.data.labels import read_any_labels
from psnet.data.photographs import LabelledGarment, read_pixels, with_masks
from psnet.detector import build_detector
from psnet.device import resolve_device
from psnet.landmarks import LandmarkBranch
from psnet.model import build_landmark_branch, build_retrieval_branch, heatmap_codec
from psnet.predictor import Garment, Predictor
from psnet.regions import GROUPS, NUM_REGIONS
from psnet.retrieval import CropRetrieval
from psnet.similarity import SCORINGS
from psnet.taxonomy import TORSO_CATEGORIES
from psnet.train.asen import train_asen
from psnet.train.asen_settings import AsenSettings
from psnet.train.calibrate import calibrate, first_garments
from psnet.train.comparison import (
    ComparisonSamples,
    comparison_batch,
    comparison_figures,
    comparison_loss,
    region_box_errors,
)
from psnet.train.copies import CopySamples, Mixed
from psnet.train.detector import DetectorSamples, collate, detector_figures, detector_loss
from psnet.train.groups import GroupSamples, fit_group_head, group_figures
from psnet.train.landmarks import (
    LandmarkSamples,
    Shown,
    as_photographed,
    edited_and_photographed,
    landmark_figures,
    landmark_loss,
)
from psnet.train.loop import LoopSettings, Samples, fit, trained_steps
from psnet.train.pseudo import category_evidence, write_pseudo_labels
from psnet.train.region_weights import (
    fit_average_precision,
    fit_manipulation,
    gain_in_precision,
    mean_average_precision,
    ranking_of,
    triplets_of,
)
from psnet.train.retrieval import (
    RetrievalSamples,
    batch_of,
    features_of,
    retrieval_figures,
    retrieval_loss,
    validation_batch,
)
from psnet.train.settings import TrainSettings
from psnet.verdict import MAX_CHANGED_PARTS, Calibration
from psnet.verification import Verifier
from psnet.weights import COMPARISON_FILE, GROUPS_FILE, load_part, save_description, save_part

DETECTOR_FILE = "detector.safetensors"
LANDMARKS_FILE = "landmarks.safetensors"
RETRIEVAL_FILE = "retrieval.safetensors"
# Pictures without a torso garment that are kept for validation.
HELD_EMPTY = 80
# Pairs of photographs by which the comparison is judged.
HELD_COMPARISONS = 300
PARTS = (
    "detector",
    "landmarks",
    "self-training",
    "retrieval",
    "copies",
    "edited",
    "groups",
    "region-weights",
    "comparison",
    "calibration",
    "all",
    "asen",
)


def load_garments(
    settings: TrainSettings, pseudo_labels: Path | None = None
) -> tuple[list[LabelledGarment], list[LabelledGarment]]:
    """Training and held-out garments of all label files, each with its cut-out; those of the file
    ``pseudo_labels`` are added to the training ones, where it is there."""
    every: list[LabelledGarment] = []
    kept: set[Path] = set()
    if settings.label_weights and len(settings.label_weights) != len(settings.labels):
        raise ConfigError(
            f"label_weights: {len(settings.label_weights)} numbers for {len(settings.labels)} label files"
        )
    weights = settings.label_weights or (1.0,) * len(settings.labels)
    for path, weight in zip(settings.labels, weights, strict=True):
        garments = _with_masks(settings, Path(path), weight)
        # Of one photograph all garments, and in whatever file.
        kept |= {g.image_path.resolve() for g in garments[:: settings.holdout]}
        every += garments
    held = [g for g in every if g.image_path.resolve() in kept]
    train = [g for g in every if g.image_path.resolve() not in kept]
    if not train:
        raise ConfigError("labels: no garment to train on; name label files with --set labels=[...]")
    if pseudo_labels is not None and pseudo_labels.exists():
        train += _with_masks(settings, pseudo_labels, settings.pseudo_weight)
    return train, held


def _with_masks(settings: TrainSettings, labels: Path, weight: float) -> list[LabelledGarment]:
    garments = read_any_labels(labels, [settings.split])
    cut_out = with_masks(garments, Path(settings.masks), max(settings.workers, 1))
    return [dataclasses.replace(garment, weight=weight) for garment in cut_out]


def empty_images(settings: TrainSettings) -> list[Path]:
    """Pictures of the catalogue ``settings.empty`` that show no torso garment, labelled ones left out."""
    if settings.empty is None:
        return []
    labelled = _splits(settings)
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
    test = {name for name, splits in _splits(settings).items() if splits - {settings.split}}
    pictures = [
        (p, seller)
        for p, category, seller in _catalogue(settings.background)
        if category not in settings.empty_categories and p.name not in test
    ]
    # Drawn, not taken in steps: a catalogue's order may have a period.
    chosen = np.random.default_rng(settings.seed).permutation(len(pictures))[: settings.background_images]
    return [pictures[i] for i in sorted(chosen)]


def unlabelled_images(settings: TrainSettings) -> list[tuple[Path, np.ndarray | None]]:
    """Pictures of the catalogue ``settings.unlabelled`` that may show a torso garment and that no label file
    knows, test pictures included, with what the catalogue's name of their category says of ours, as its
    labelled training garments have it; every fourth is left out, so that the calibration meets strangers
    too."""
    if settings.unlabelled is None:
        return []
    known, catalogue = _splits(settings), _catalogue(settings.unlabelled)
    names = {p.name: name for p, name, _ in catalogue}
    labelled = [g for path in settings.labels for g in read_any_labels(Path(path), [settings.split])]
    evidence = category_evidence(
        (names[g.image_path.name], g.category) for g in labelled if g.image_path.name in names
    )
    pictures = [
        (p, evidence.get(name))
        for p, name, _ in catalogue
        if name not in settings.empty_categories and p.name not in known
    ]
    return [p for i, p in enumerate(pictures) if i % 4]


def _splits(settings: TrainSettings) -> dict[str, set[str]]:
    """Names of all labelled pictures, with the splits of their garments."""
    splits: dict[str, set[str]] = {}
    for path in settings.labels:
        for garment in read_any_labels(Path(path), upright_only=False):
            splits.setdefault(garment.image_path.name, set()).add(garment.split)
    return splits


def _pseudo_labels(settings: TrainSettings, time: int) -> Path:
    """Where the labels lie that the network gave to the unlabelled photographs the ``time``-th time."""
    return Path(settings.out) / f"pseudo-labels-{time}.jsonl"


def _catalogue(path: str) -> list[tuple[Path, str, str]]:
    """Picture, category and seller of every row."""
    return [
        (Path(path).parent / row["image"], row.get("category", ""), row["seller_id"])
        for _, row in read_csv(Path(path), ("image", "seller_id"))
    ]


def _loop(settings: TrainSettings, part: LoopSettings) -> LoopSettings:
    return dataclasses.replace(
        part,
        workers=settings.workers,
        device=settings.device,
        precision=settings.precision,
        seed=settings.seed,
    )


def _course(settings: TrainSettings, train: Sequence[LabelledGarment], **more: object) -> dict[str, object]:
    """What besides the schedule decides a part's outcome, as `fit` asks."""
    return {"model": as_dict(settings.model), "garments": len(train), **more}


def train_detector(settings: TrainSettings) -> None:
    model = build_detector(settings.model.detector)
    _fit_detector(settings, model, "detector", settings.detector, settings.seed)


def _fit_detector(
    settings: TrainSettings,
    model: nn.Module,
    name: str,
    schedule: LoopSettings,
    seed: int,
    edited: float = 0.0,
) -> None:
    """Train ``model`` in OUT/NAME on the labelled garments, ``edited`` of them edited, and save it."""
    train, held = load_garments(settings)
    empty, out = empty_images(settings), Path(settings.out)
    judged = _judged(held, seed, edited)
    fit(
        model,
        DetectorSamples(train, empty[HELD_EMPTY:], seed, edited),
        detector_loss,
        out / name,
        _loop(settings, schedule),
        lambda m: _figures(judged, lambda shown: detector_figures(m, shown, empty[:HELD_EMPTY])),
        collate,
        _course(settings, train, empty=len(empty), edited=edited),
    )
    save_part(model, out / DETECTOR_FILE)


def _judged(held: list[LabelledGarment], seed: int, edited: float) -> dict[str, list[Shown]]:
    """The photographs that a part is judged by, under the prefix that its figures get."""
    judged = {"": as_photographed(held)}
    return judged | ({"edited_": edited_and_photographed(held, seed)} if edited else {})


def _figures(
    judged: dict[str, list[Shown]], measure: Callable[[list[Shown]], dict[str, float]]
) -> dict[str, float]:
    return {f"{prefix}{k}": v for prefix, shown in judged.items() for k, v in measure(shown).items()}


def train_landmarks(settings: TrainSettings) -> None:
    model = build_landmark_branch(settings.model)
    _fit_landmarks(settings, model, "landmarks", settings.landmarks, load_garments(settings), settings.seed)


def _fit_landmarks(
    settings: TrainSettings,
    model: LandmarkBranch,
    name: str,
    schedule: LoopSettings,
    garments: tuple[list[LabelledGarment], list[LabelledGarment]],
    seed: int,
    mistaken: Mapping[Path, Sequence[np.ndarray]] | None = None,
    edited: float = 0.0,
) -> None:
    """Train ``model`` in OUT/NAME on the first of ``garments``, ``edited`` of them edited, judged on the
    second, and save it; ``mistaken`` as in ``LandmarkSamples``."""
    train, held = garments
    side, out = settings.model.crop_side, Path(settings.out)
    empty = empty_images(settings)
    judged = _judged(held, seed, edited)
    fit(
        model,
        LandmarkSamples(train, seed, side, empty[HELD_EMPTY:], mistaken, edited),
        landmark_loss,
        out / name,
        _loop(settings, schedule),
        lambda m: _figures(judged, lambda seen: landmark_figures(m, seen, side, empty[:HELD_EMPTY])),
        course=_course(settings, train, empty=len(empty), edited=edited),
    )
    save_part(model, out / LANDMARKS_FILE)


def _mistaken(settings: TrainSettings, proposer: Predictor) -> dict[Path, list[np.ndarray]]:
    """What the detector takes for garments in the pictures without one that are learnt from."""
    shown = empty_images(settings)[HELD_EMPTY:]
    return {path: proposer.propose([read_pixels(path)])[0] for path in shown}


def train_self(settings: TrainSettings) -> None:
    """Label the unlabelled photographs with what has been trained so far, and go on with the landmark branch
    on labels of both kinds (noisy student, Xie et al., CVPR 2020), and on what the detector mistakes for
    garments."""
    proposer = _proposer(settings)
    garments = _with_pseudo_labels(settings, proposer, 1)
    model = build_landmark_branch(settings.model)
    load_part(model, Path(settings.out) / LANDMARKS_FILE)
    # Another seed: the samples of the part landmarks have been seen.
    seed, mistaken = settings.seed + 1, _mistaken(settings, proposer)
    _fit_landmarks(settings, model, "self-training", settings.self_training, garments, seed, mistaken)


def _with_pseudo_labels(
    settings: TrainSettings, predictor: Predictor, time: int
) -> tuple[list[LabelledGarment], list[LabelledGarment]]:
    """``load_garments`` with the unlabelled photographs, labelled now where they have not been this
    ``time``."""
    path = _pseudo_labels(settings, time)
    if not path.exists() and (images := unlabelled_images(settings)):
        count = write_pseudo_labels(
            predictor, images, path, settings.pseudo_score, settings.pseudo_presence, settings.pseudo_group
        )
        print(f"{count} of {len(images)} unlabelled photographs labelled: {path}", flush=True)
    return load_garments(settings, path)


def _proposer(settings: TrainSettings) -> Predictor:
    """What has been trained so far, to find garments with; the landmark branch alone says what they are."""
    out = Path(settings.out)
    retrieval = out / RETRIEVAL_FILE
    if not retrieval.exists():  # a predictor is a whole network; its features are not looked at here
        save_part(build_retrieval_branch(settings.model), retrieval)
    save_description(out, settings.model, {})
    predictor = Predictor.load(out, settings.device, settings.precision)
    predictor.groups = None
    return predictor


def train_edited(settings: TrainSettings) -> None:
    """Go on with the detector and the landmark branch on garments of which many are edited: what a copyist
    changes must hide neither the garment nor its regions. The landmark branch goes on ``edited_rounds``
    times, from the second on with the unlabelled photographs labelled anew by what the round before made."""
    out, seed = Path(settings.out), settings.seed + 2
    detector = build_detector(settings.model.detector)
    load_part(detector, out / DETECTOR_FILE)
    _fit_detector(settings, detector, "edited-detector", settings.edited_detector, seed, settings.edited)
    # The detector stays as it is from here on.
    mistaken = _mistaken(settings, _proposer(settings))
    for time in range(1, settings.edited_rounds + 1):
        schedule = settings.edited_landmarks if time == 1 else settings.edited_again
        name = "edited-landmarks" if time == 1 else f"edited-landmarks-{time}"
        garments = _with_pseudo_labels(settings, _proposer(settings), time)
        branch = build_landmark_branch(settings.model)
        load_part(branch, out / LANDMARKS_FILE)
        _fit_landmarks(settings, branch, name, schedule, garments, seed + time - 1, mistaken, settings.edited)


def _retrieval_course(
    settings: TrainSettings, train: Sequence[LabelledGarment], **more: object
) -> dict[str, object]:
    loss, temperature = settings.retrieval_loss, settings.temperature
    shared = {"retrieval_loss": loss, "temperature": temperature, "box_noise": settings.box_noise}
    return _course(settings, train, **shared, **more)


def train_retrieval(settings: TrainSettings) -> None:
    train, held = load_garments(settings, _pseudo_labels(settings, 1))
    model = build_retrieval_branch(settings.model)
    if settings.model.retrieval != "crop":
        _start_from_landmarks(model, settings)
    codec = heatmap_codec(settings.model)
    batch = validation_batch(held, settings.seed + 1, settings.model)
    out = Path(settings.out)
    fit(
        model,
        RetrievalSamples(train, settings.seed, settings.model, settings.box_noise),
        retrieval_loss(settings.temperature, codec, settings.retrieval_loss),
        out / "retrieval",
        _loop(settings, settings.retrieval),
        lambda m: retrieval_figures(m, batch, codec),
        course=_retrieval_course(settings, train),
    )
    save_part(model, out / RETRIEVAL_FILE)


def train_copies(settings: TrainSettings) -> None:
    """Go on with the retrieval branch: an edit has to lower its region's cosine, and some of the samples are
    photographs of designs and their copies, each taken by itself. What comes out lies between the weights
    before and after (Wortsman et al., Robust fine-tuning, CVPR 2022): it tells edits apart as well as those
    after, and ranks as well as those before."""
    if settings.copies and settings.model.retrieval != "crop":
        raise ConfigError(
            "copies: can only be read for a branch with a crop per region (model.retrieval: crop)"
        )
    train, held = load_garments(settings, _pseudo_labels(settings, 1))
    out, seed, side = Path(settings.out), settings.seed + 3, settings.model.region_side
    before, model = out / "copies" / RETRIEVAL_FILE, build_retrieval_branch(settings.model)
    load_part(model, before if before.exists() else out / RETRIEVAL_FILE)
    # Kept, because the other file is written over in the end, and the same command may be given again.
    before.parent.mkdir(exist_ok=True)
    save_part(model, before)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    codec = heatmap_codec(settings.model)
    batch = validation_batch(held, settings.seed + 1, settings.model)
    samples: Samples = RetrievalSamples(train, seed, settings.model, settings.box_noise)
    if settings.copies:
        folders = [Path(folder) for folder in settings.copies]
        copies = CopySamples(folders, seed, side, settings.box_noise)
        samples = Mixed(samples, copies, settings.copies_share, seed)
    fit(
        model,
        samples,
        retrieval_loss(settings.temperature, codec, settings.retrieval_loss, settings.fall_weight),
        out / "copies",
        _loop(settings, settings.copies_retrieval),
        lambda m: retrieval_figures(m, batch, codec),
        course=_retrieval_course(
            settings,
            train,
            fall_weight=settings.fall_weight,
            copies_share=settings.copies_share if settings.copies else 0.0,
        ),
    )
    end = model.cpu().state_dict()
    way = settings.copies_step
    between = {k: torch.lerp(v, end[k], way) if v.is_floating_point() else end[k] for k, v in start.items()}
    model.load_state_dict(between)
    save_part(model, out / RETRIEVAL_FILE)


def train_groups(settings: TrainSettings) -> None:
    """A second opinion on the group, from the features of the regions."""
    out = Path(settings.out)
    train, held = load_garments(settings)
    named = [(path, factors) for path, factors in unlabelled_images(settings) if factors is not None]
    chain = _chain(settings)
    chain.groups = None  # where one has been learnt before
    # What a catalogue's name says is by how much it makes a category likelier than usual.
    usual = _one_hot(train).mean(0)
    head = fit_group_head(_group_samples(chain, train, named, usual))
    save_part(head, out / GROUPS_FILE)
    figures = group_figures(head, _group_samples(chain, held, [], usual))
    print("group right, held-out: " + ", ".join(f"{name} {share:.4f}" for name, share in figures.items()))
    log = out / "groups" / "log.jsonl"
    log.parent.mkdir(exist_ok=True)
    log.write_text(json.dumps({"garments": len(train) + len(named), "validation": figures}) + "\n")


def _group_samples(
    chain: Predictor,
    garments: Sequence[LabelledGarment],
    named: Sequence[tuple[Path, np.ndarray]],
    usual: np.ndarray,
) -> GroupSamples:
    """Labelled garments and pictures whose catalogue names a category, as the chain finds them."""
    pictures = [*(garment.image_path for garment in garments), *(path for path, _ in named)]
    found: list[Garment | None] = []
    for start in range(0, len(pictures), 16):
        found += first_garments(chain, [read_pixels(path) for path in pictures[start : start + 16]])
    said = np.array([factors * usual for _, factors in named]).reshape(-1, len(usual))
    chances = np.concatenate([_one_hot(garments), said / said.sum(1, keepdims=True)])
    return GroupSamples.of(found, chances, [*(g.weight for g in garments), *np.ones(len(named))])


def _one_hot(garments: Sequence[LabelledGarment]) -> np.ndarray:
    return np.eye(len(TORSO_CATEGORIES))[[TORSO_CATEGORIES.index(g.category) for g in garments]]


def _start_from_landmarks(model: nn.Module, settings: TrainSettings) -> None:
    """Give a branch that looks at the whole garment the landmark branch's backbone to start with, where that
    has been trained: from random weights the same training takes several times as long."""
    part = Path(settings.out) / LANDMARKS_FILE
    if part.exists():
        landmarks = build_landmark_branch(settings.model)
        load_part(landmarks, part)
        model.get_submodule("backbone").load_state_dict(landmarks.backbone.state_dict())


def train_region_weights(settings: TrainSettings) -> None:
    """λ per group in three ways, learnt on training garments, compared on held-out ones; writes
    region-weights.json."""
    train, held = load_garments(settings)
    out = Path(settings.out)
    model = build_retrieval_branch(settings.model)
    load_part(model, out / RETRIEVAL_FILE)
    model.to(resolve_device(settings.device)).eval()
    learnt_on = _samples_of(model, settings, train, settings.region_weight_samples)
    judged_on = _samples_of(model, settings, held, 4 * len(held))
    tables = {
        name: [fit(*_of_group(learnt_on, row)).tolist() for row in range(len(GROUPS))]
        for name, fit in REGION_WEIGHTS.items()
    }
    groups = [_of_group(judged_on, row) for row in range(len(GROUPS))]
    rankings = [ranking_of(*samples) for samples in groups]
    figures = {
        f"{name}, {scoring}": float(
            np.mean(
                [
                    mean_average_precision(ranking, weights, scoring)
                    for ranking, weights in zip(rankings, table, strict=True)
                ]
            )
        )
        for name, table in tables.items()
        for scoring in SCORINGS
    }
    for name, value in figures.items():
        print(f"mean average precision, {name}: {value:.4f}")
    # The verdict's scoring is the definition. Equal weights, which need no explanation and half the time,
    # ship unless another table is clearly better under it.
    shipped = max(tables, key=lambda name: figures[f"{name}, best_regions"])
    garments = [garment for *_, garment in groups]
    gained = gain_in_precision(rankings, garments, tables[shipped], tables["equal"])
    print(
        f"{shipped} against equal, best_regions: {gained.value:+.4f} [{gained.low:+.4f}, {gained.high:+.4f}]"
    )
    if not gained.low >= CLEARLY_BETTER:  # no query at all counts as no gain
        shipped = "equal"
    print(f"shipped: {shipped}")
    (out / REGION_WEIGHTS_FILE).write_text(
        json.dumps({"shipped": shipped, "tables": tables, "figures": figures}, indent=1) + "\n"
    )


def _samples_of(
    model: nn.Module, settings: TrainSettings, garments: list[LabelledGarment], count: int
) -> dict[str, np.ndarray]:
    samples = RetrievalSamples(garments, settings.seed + 2, settings.model, settings.box_noise)
    batch = batch_of(samples, count)
    features = features_of(model, batch, heatmap_codec(settings.model))
    return {
        "features": features.numpy(),
        "design": batch["design"].numpy(),
        "group": batch["group"].numpy(),
        "copies": (batch["parts"] <= MAX_CHANGED_PARTS).numpy(),
        "garment": batch["garment"].numpy(),
    }


def _of_group(
    samples: dict[str, np.ndarray], row: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    chosen = samples["group"] == row
    features, design, copies, garment = (
        samples[name][chosen] for name in ("features", "design", "copies", "garment")
    )
    return features, design, copies, garment


# Least gain of mean average precision on the held-out garments, at the lower end of its interval.
CLEARLY_BETTER = 0.01
REGION_WEIGHTS_FILE = "region-weights.json"
REGION_WEIGHTS = {
    "equal": lambda *_: np.full(NUM_REGIONS, 1 / NUM_REGIONS),
    "manipulation": lambda *samples: fit_manipulation(triplets_of(*samples)),
    "precision": lambda *samples: fit_average_precision(ranking_of(*samples), "weighted"),
    "best_regions_precision": lambda *samples: fit_average_precision(ranking_of(*samples), "best_regions"),
}


def train_comparison(settings: TrainSettings) -> None:
    """The network that compares registered photographs, from the retrieval branch's first stages on."""
    train, held = load_garments(settings)
    out, side = Path(settings.out), settings.model.region_side
    model = RegionComparison(settings.model.region_width, side)
    branch = build_retrieval_branch(settings.model)
    chain = _chain(settings)
    if isinstance(branch, CropRetrieval):
        load_part(branch, out / RETRIEVAL_FILE)
        model.start_from(branch)
    errors = region_box_errors(chain, held, settings.seed + 1)
    off = ", ".join(f"{share:.2f}" for share in np.nanquantile(abs(errors), (0.5, 0.9, 0.97)))
    print(f"sides of predicted region boxes, off by a share of the box (median, 90 %, 97 %): {off}")
    batch = comparison_batch(held, settings.seed + 1, side, errors, HELD_COMPARISONS)
    fit(
        model,
        ComparisonSamples(train, settings.seed, side, errors),
        comparison_loss,
        out / "comparison",
        _loop(settings, settings.comparison),
        lambda m: comparison_figures(m, batch),
        course=_course(settings, train),
    )
    save_part(model, out / COMPARISON_FILE)


def _chain(settings: TrainSettings) -> Predictor:
    """The three trained parts, not calibrated yet: makes ``settings.out`` a weights folder.

    Raises:
        psnet.weights.WeightsError: one of them has not been trained.
    """
    default = {"calibration": json.loads(Calibration.default().to_json())}
    save_description(Path(settings.out), settings.model, default)
    return Predictor.load(settings.out, settings.device, settings.precision)


def fit_calibration(settings: TrainSettings) -> None:
    """Thresholds for the three trained parts; writes model.json, which makes the folder a weights folder."""
    out = Path(settings.out)
    _, held = load_garments(settings)
    predictor = _chain(settings)
    verifier = Verifier.load(out)
    learnt = out / REGION_WEIGHTS_FILE
    weights = json.loads(learnt.read_text()) if learnt.exists() else None
    table: Sequence[Sequence[float]] = Calibration.default().region_weights
    if weights is not None and weights["shipped"] != "equal":
        table = [[round(w, 4) for w in row] for row in weights["tables"][weights["shipped"]]]
    calibration, figures = calibrate(
        predictor, verifier, held, stranger_images(settings), table, settings.seed
    )
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")
    print(calibration.to_json())
    trained = {part.name: steps for part in sorted(out.iterdir()) if (steps := trained_steps(part))}
    provenance = {
        "steps": trained,
        "seed": settings.seed,
        "figures": figures,
        "labels": [Path(p).parent.name for p in settings.labels],
    }
    save_description(
        out,
        settings.model,
        {
            "calibration": json.loads(calibration.to_json()),
            "provenance": provenance,
            **({"region_weights": weights} if weights else {}),
        },
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 with one line on stderr for a mistake in the arguments or the data."""
    parser = Parser(prog="psnet train", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    add_options(parser, "psnet.train.settings.TrainSettings (asen: psnet.train.asen_settings.AsenSettings)")
    arguments = parser.parse_args(argv)
    steps = {
        "detector": train_detector,
        "landmarks": train_landmarks,
        "self-training": train_self,
        "retrieval": train_retrieval,
        "copies": train_copies,
        "edited": train_edited,
        "groups": train_groups,
        "region-weights": train_region_weights,
        "comparison": train_comparison,
        "calibration": fit_calibration,
    }
    try:
        if arguments.part == "asen":
            train_asen(load_options(AsenSettings, arguments))
            return 0
        settings = load_options(TrainSettings, arguments)
        Path(settings.out).mkdir(parents=True, exist_ok=True)
        for name in steps if arguments.part == "all" else [arguments.part]:
            # Before the networks are built, which are random at first.
            torch.manual_seed(settings.seed)
            steps[name](settings)
    except (ValueError, FileNotFoundError) as error:  # ConfigError and WeightsError are ValueErrors
        print(f"psnet train: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
