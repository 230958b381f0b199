"""What is measured, as one configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from psnet.config import ConfigError, bounded, load_config
from psnet.evaluation.baselines import BASELINES
from psnet.evaluation.paper import RETRIEVAL
from psnet.evaluation.photographic import CHANGES


@dataclass(frozen=True)
class Variant:
    """A model and how its cosines become a score.

    ``weights``: a weights folder (null: the shipped one), or several for an ensemble, whose scores are
    averaged; ``scoring``: a name of ``psnet.similarity.SCORINGS``, or as the weights' calibration says;
    ``region_weights``: the calibration's, all one, the prior of ``psnet.evaluation.paper``, or those that
    ``psnet train region-weights`` learnt by the paper's loss or by average precision; ``boxes``: as
    the model finds them or as the benchmark knows them; ``normalised``: by each garment's level;
    ``title``: its name in the tables (default: its key); ``paper``: its name in the paper's table, a key of
    ``psnet.evaluation.paper.RETRIEVAL``; ``verdicts``: it is in the tables of verdicts and leakage too;
    ``curve``: its precision-recall curve is drawn.
    """

    weights: str | tuple[str, ...] | None = None
    scoring: Literal["shipped", "best_regions", "weighted"] = "shipped"
    region_weights: Literal["shipped", "ones", "manual", "manipulation", "precision"] = "shipped"
    boxes: Literal["predicted", "labelled"] = "predicted"
    normalised: bool = False
    title: str = ""
    paper: str | None = None
    verdicts: bool = False
    curve: bool = False

    @property
    def folders(self) -> tuple[str | None, ...]:
        """The weights folders of all members."""
        return self.weights if isinstance(self.weights, tuple) else (self.weights,)


@dataclass(frozen=True)
class Contrast:
    """What one thing is worth: the variants ``having`` it against those ``lacking`` it, query by query; of
    several on one side the mean counts."""

    having: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationSettings:
    """``benchmarks``: folders in the layout of `psnet.evaluation.benchmark`, by the name the tables call
    them; ``labels``: label files in the layout of `psnet.data.photographs`, by name, and ``splits`` which
    split of a label file is meant (not named: every line); ``empty``: a catalogue whose ``empty_categories``
    show no garment of the torso, of which the first ``empty_images`` without a label are looked at.

    ``variants``: by name, keys of `Variant`; ``main``: the one that the tables about one method are about;
    ``contrasts``: by name, keys of `Contrast`; ``changes``: of the photograph, names of
    `psnet.evaluation.photographic.CHANGES`, made to the copies of ``changed_designs`` designs. ``baselines``:
    of phash, sift; ``skipped``: variants and baselines that are not measured on a benchmark, by its name.
    ``pictures``: folder for the
    pictures of a benchmark, by its name, and ``outlines`` which benchmarks' photographs they show as
    outlines alone. ``out``: folder for features, scores and tables. ``limit``: designs of a benchmark and
    photographs of a label file to be looked at, for trying out.
    """

    benchmarks: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    empty: str | None = None
    empty_categories: tuple[str, ...] = ("Pants", "Shorts", "Skirt", "Shoes", "Hat")
    # The pictures that training keeps for validation are the catalogue's first ones.
    empty_images: int = 80
    variants: dict[str, dict[str, Any]] = field(default_factory=lambda: {"psnet": {"verdicts": True}})
    main: str = "psnet"
    contrasts: dict[str, dict[str, Any]] = field(default_factory=dict)
    changes: tuple[str, ...] = tuple(CHANGES)
    changed_designs: int = 80
    baselines: tuple[str, ...] = ("phash", "sift")
    skipped: dict[str, tuple[str, ...]] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict, metadata={"result": False})
    outlines: tuple[str, ...] = bounded((), result=False)
    out: str = bounded("evaluation", result=False)
    device: str = bounded("auto", result=False)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    min_score: float = 0.3
    limit: int | None = None
    seed: int = 0


def read_variants(settings: EvaluationSettings) -> dict[str, Variant]:
    """The variants by name.

    Raises:
        ConfigError: an unknown key or value, an unknown main variant, paper row or baseline.
    """
    variants = {name: _variant(name, values) for name, values in settings.variants.items()}
    if settings.main not in variants:
        raise ConfigError(f"main: no variant {settings.main!r}; known: {', '.join(variants)}")
    if isinstance(variants[settings.main].weights, tuple):
        raise ConfigError(f"main: variant {settings.main!r} is an ensemble; name one with one weights folder")
    for name in settings.baselines:
        if name not in BASELINES:
            raise ConfigError(f"baselines: unknown baseline {name!r}; known: {', '.join(BASELINES)}")
    for name in settings.splits:
        if name not in settings.labels:
            raise ConfigError(f"splits: no labels {name!r}; known: {', '.join(settings.labels)}")
    for benchmark, names in settings.skipped.items():
        for name in names:
            if (name not in variants and name not in BASELINES) or name == settings.main:
                raise ConfigError(
                    f"skipped.{benchmark}: {name!r} is no variant or baseline that can be left out"
                )
    for name in settings.changes:
        if name not in CHANGES:
            raise ConfigError(f"changes: unknown change {name!r}; known: {', '.join(CHANGES)}")
    return variants


def read_contrasts(settings: EvaluationSettings) -> dict[str, Contrast]:
    """The contrasts by name.

    Raises:
        ConfigError: an unknown key, an unknown variant or none.
    """
    found = {}
    for name, values in settings.contrasts.items():
        try:
            contrast = load_config(Contrast, values)
        except ConfigError as error:
            raise ConfigError(f"contrasts.{name}: {error}") from None
        for side in (contrast.having, contrast.lacking):
            if not side:
                raise ConfigError(f"contrasts.{name}: names no variant")
            for variant in side:
                if variant not in settings.variants:
                    known = ", ".join(settings.variants)
                    raise ConfigError(f"contrasts.{name}: no variant {variant!r}; known: {known}")
        found[name] = contrast
    return found


def _variant(name: str, values: Mapping[str, Any]) -> Variant:
    try:
        variant = load_config(Variant, values)
    except ConfigError as error:
        raise ConfigError(f"variants.{name}: {error}") from None
    if variant.paper is not None and variant.paper not in RETRIEVAL:
        raise ConfigError(
            f"variants.{name}.paper: unknown row {variant.paper!r}; known: {', '.join(RETRIEVAL)}"
        )
    if variant.weights == ():
        raise ConfigError(f"variants.{name}.weights: an ensemble of no models")
    return variant
