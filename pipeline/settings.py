"""Every setting of the pipeline: names, types, defaults. The one source for command line, Python and flows.

``conf/default.yaml`` explains each key at length and a test holds it equal to these defaults. A key marked
``result=False`` changes how fast a result is reached, never the result, and stays out of the digests by which
a stage knows whether it has to run again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import UserError
from psnet.config import ConfigError, bounded, load_config
from psnet.regions import GROUPS
from psnet.verdict import ALIKE, LIKELY, LOOKED_AT

FiveNumbers = tuple[float, float, float, float, float]


@dataclass(frozen=True)
class CrawlSettings:
    """Fetching the catalogue's images."""

    connect_timeout_s: float = bounded(5.0, 0.01, result=False)
    read_timeout_s: float = bounded(15.0, 0.01, result=False)
    total_timeout_s: float = bounded(60.0, 0.01, result=False)
    retries: int = bounded(3, 0, 20, result=False)
    backoff_s: float = bounded(0.5, 0.0, result=False)
    backoff_max_s: float = bounded(30.0, 0.0, result=False)
    retry_failed: bool = field(default=True, metadata={"result": False})
    per_host_limit: int = bounded(4, 1, result=False)
    host_failures: int = bounded(20, 1)
    workers: int = bounded(32, 1, 1024, result=False)
    max_redirects: int = bounded(5, 0, 20)
    max_bytes: int = bounded(50_000_000, 1)
    max_pixels: int = bounded(100_000_000, 1)
    respect_robots: bool = True
    user_agent: str = "psnet/0.1 (catalogue screening)"
    s3_endpoint_url: str | None = None
    chunk_items: int = bounded(1000, 1, result=False)


@dataclass(frozen=True)
class ExtractSettings:
    """From images to garments with features."""

    weights: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    actors: int = bounded(0, 0, result=False)
    batch_images: int = bounded(8, 1, 4096, result=False)
    shard_images: int = bounded(256, 1, result=False)
    decode_threads: int = bounded(0, 0, 64, result=False)
    decode_side: int = bounded(512, 32)
    cpus_per_actor: float = bounded(0.5, 0.0, result=False)
    gpus_per_actor: float = bounded(1.0, 0.0, result=False)
    start_timeout_s: float = bounded(600.0, 1.0, result=False)
    detection_threshold: float | None = bounded(None, 0.0, 1.0)
    max_garments_per_image: int = bounded(4, 1, 100)
    attributes: bool = False
    attribute_weights: str | None = None


@dataclass(frozen=True)
class IndexSettings:
    """FAISS shards over the garments."""

    factory: str = "auto"
    region_dim: int = bounded(0, 0)
    shard_size: int = bounded(100_000, 1, result=False)
    nprobe: int = bounded(0, 0)
    candidates: int = bounded(100, 1)
    audit_queries: int = bounded(50, 0)


@dataclass(frozen=True)
class MatchSettings:
    """All pairs of the catalogue."""

    search: Literal["exact", "pruned"] = "exact"
    scoring: Literal["best_regions", "weighted"] = "best_regions"
    mirrored: bool = True
    region_weights: dict[str, FiveNumbers] | None = bounded(None, 0.0)
    rank_by: Literal["normalised_score", "score"] = "normalised_score"
    best_k: int = bounded(50, 1)
    min_score: float | None = bounded(None, -1.0, 1.0)
    max_pairs_per_item: int = bounded(200, 1)
    background_size: int = bounded(1000, 0, 100_000)
    background_quantile: float = bounded(0.99, 0.0, 1.0)
    block_size: int = bounded(16384, 16, result=False)
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata={"result": False})


@dataclass(frozen=True)
class VerifySettings:
    """Photographs of likely pairs laid upon each other."""

    enabled: bool = True
    min_normalised_score: float = bounded(LIKELY, -10.0, 1.0)
    min_score: float = bounded(ALIKE, 0.0, 2.0)
    max_pairs_per_item: int = bounded(LOOKED_AT, 1, 1000)


@dataclass(frozen=True)
class JudgeSettings:
    """From pairs to suspects."""

    kept_thresholds: FiveNumbers | None = bounded(None, -1.0, 1.0)
    min_score: float | None = bounded(None, -1.0, 1.0)
    rank_by: Literal["normalised_score", "score"] = "normalised_score"
    relations: tuple[Literal["identical", "plagiarised", "similar", "undecidable"], ...] = (
        "identical",
        "plagiarised",
    )
    dismissed: str | None = None
    max_suspects: int = bounded(10_000, 1)


@dataclass(frozen=True)
class ReportSettings:
    """The page of suspects."""

    title: str = "Suspected copies"
    image_side: int = bounded(480, 32, 4096)
    max_suspects: int = bounded(1000, 1)


@dataclass(frozen=True)
class RaySettings:
    """The cluster that the stages run on."""

    address: str | None = bounded(None, result=False)
    num_cpus: int | None = bounded(None, 1, result=False)
    object_store_mb: int = bounded(512, 80, result=False)


@dataclass(frozen=True)
class Settings:
    """All sections; immutable, so a run's settings are those it started with."""

    crawl: CrawlSettings = field(default_factory=CrawlSettings)
    extract: ExtractSettings = field(default_factory=ExtractSettings)
    index: IndexSettings = field(default_factory=IndexSettings)
    match: MatchSettings = field(default_factory=MatchSettings)
    verify: VerifySettings = field(default_factory=VerifySettings)
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    report: ReportSettings = field(default_factory=ReportSettings)
    ray: RaySettings = field(default_factory=RaySettings)
    rerank: Literal["none", "asen"] = "none"
    log_level: Literal["debug", "info", "warning", "error"] = field(
        default="warning", metadata={"result": False}
    )


def load_settings(
    config: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] | None = None,
    base: Mapping[str, Any] | None = None,
) -> Settings:
    """The defaults, then a configuration file, then "section.key=value" overrides.

    Relative paths mean the working directory and come back absolute: they are stored with a run, which is
    continued from other directories.

    Args:
        config: YAML file.
        overrides: see ``psnet.config.load_config``.
        base: values between the defaults and the file, e.g. those that a run was started with.

    Raises:
        UserError: whatever does not fit, see ``psnet.config.load_config``.
    """
    layers: list[Mapping[str, Any] | Path] = [base or {}, *([] if config is None else [Path(config)])]
    try:
        settings = load_config(Settings, *layers, overrides=overrides or ())
    except ConfigError as error:
        raise UserError(str(error)) from None
    unknown = set(settings.match.region_weights or ()) - set(GROUPS)
    if unknown:
        raise UserError(
            f"match.region_weights: unknown group {', '.join(sorted(unknown))}; known: {', '.join(GROUPS)}"
        )
    return replace(
        settings,
        extract=replace(
            settings.extract,
            weights=_absolute(settings.extract.weights),
            # What suspects are ranked anew by has to be there.
            attributes=settings.extract.attributes or settings.rerank == "asen",
            attribute_weights=_absolute(settings.extract.attribute_weights),
        ),
        judge=replace(settings.judge, dismissed=_absolute(settings.judge.dismissed)),
    )


def _absolute(path: str | None) -> str | None:
    return os.path.abspath(path) if path else path
