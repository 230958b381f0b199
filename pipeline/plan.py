"""What a scan will take: time, memory, disk and cost, from a short calibration on the catalogue's own images.

    sample ─ crawl, model, kernel, index: measured here ─▶ rates ─▶ this machine or a described cluster ─▶
    stages

The arithmetic is that of the stages: crawl and extract grow with the images, index with the garments. Match
has two terms: every pair costs its product, every garment what it takes to find its best among those that
come by, of which the second shows in small catalogues (``benchmarks/SCALING.md``); then each listed pair is
compared. What is assumed stands beside the constants. A plan can be stored in the run
directory that the scan will use; the record of every stage then says what was predicted
(``pipeline.rundir``).
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from pipeline.background import Garments, background
from pipeline.calibration import load_calibration
from pipeline.crawl import crawl
from pipeline.errors import UserError
from pipeline.index_template import machine_memory, plan_index, train_template
from pipeline.kernel import Block, Floors, Wanted, best_pairs, rescore, rounding_slack
from pipeline.match import BLOCKS_AT_HAND
from pipeline.progress import track
from pipeline.quantise import fit_basis
from pipeline.rundir import STAGES, RunDirectory
from pipeline.settings import IndexSettings, Settings
from pipeline.verify import PART, one_thread
from psnet.config import ConfigError, bounded, load_config
from psnet.image import ImageError, decode_image
from psnet.regions import GROUPS, MIRROR, NUM_REGIONS, Presence
from psnet.verification import Sight, Verifier

if TYPE_CHECKING:
    from psnet.predictor import Garment

# Images fetched for the calibration; the budget decides how many of them the model sees.
_SAMPLE = 64
_FEWEST = 4
# Shares of the budget; the rest is for loading the model.
_MODEL_SHARE, _VERIFY_SHARE, _PAIRS_SHARE = 0.45, 0.05, 0.25
# Pairs a second whose photographs are laid upon each other, where no garment was found to try it with.
_VERIFIED = 10.0
_KERNEL_GARMENTS = 2048
_COMPARED = 4096
# Dimensions of a region that carry its look, and how their extents fall: 91 % of energy in the first half.
_LATENT, _DECAY = 32, 0.88
_SEED = 0
# Of what its processes reach one by one a machine loses so much to their common memory and decoding.
_TOGETHER = 0.9
# Seconds to start Ray and the model on a node, once for extract and once more for match.
_START_S = 15.0
# Seconds to load FAISS, and the compiled loops of the pair search.
_INDEX_START_S, _MATCH_START_S = 0.3, 1.0
# Bytes a garment, from the schemas: parquet of features and boxes (compressed by the zeros of absent regions
# at most); uncompressed vectors, twice five regions of d numbers in float16.
_GARMENT_BYTES_BESIDE_FEATURES = 300
# Likely pairs of an item: 4,007 photographs without planted copies have so many. Strangers that are alike by
# chance grow with the catalogue, until each item has its most.
_LIKELY_PER_ITEM, _LIKELY_OF = 0.83, 4007
# Bytes of a likely pair in the driver, and in verified.parquet.
_LIKELY_BYTES, _VERIFIED_BYTES = 1500, 100
# Bytes of a row of pairs.parquet (measured, 41) and of a suspect with its two pictures on the page.
_PAIR_BYTES = 41
_SUSPECT_BYTES = 40_000
# One item in so many is a suspect (4,007 photographs without planted copies: one in 222), and takes so long
# to show.
_ITEMS_PER_SUSPECT = 50
_SUSPECT_S = 0.01
# An extraction process with its model, see ``pipeline.extract``; the driver and Ray's own processes.
_ACTOR_BYTES = 1.5 * 2**30
_BASE_BYTES = 1.5 * 2**30
# Bytes that the driver holds per picture: its names, where its garments are.
_PICTURE_BYTES = 200
# A worker of the pair search before it has seen a block; bytes per garment of one beside its codes: scales,
# weights, presence.
_WORKER_BYTES = 0.4 * 2**30
_SIDE_BYTES = 400


@dataclass(frozen=True)
class Cluster:
    """Nodes of one kind. ``speed``: of one of their cores, this machine's being 1; ``images_per_gpu_second``
    and ``pairs_per_gpu_second``: as a plan on such a node measures them; without them GPUs are not counted
    on. ``node``: its name in the file of prices."""

    name: str = "cluster"
    node: str = ""
    nodes: int = bounded(1, 1, 100_000)
    cpus_per_node: int = bounded(1, 1, 4096)
    memory_gb_per_node: float = bounded(4.0, 0.1)
    gpus_per_node: int = bounded(0, 0, 64)
    speed: float = bounded(1.0, 0.01, 100.0)
    images_per_gpu_second: float | None = bounded(None, 0.001)
    pairs_per_gpu_second: float | None = bounded(None, 1.0)

    @classmethod
    def here(cls) -> Cluster:
        """This machine's CPUs."""
        return cls(
            name="this machine",
            cpus_per_node=len(os.sched_getaffinity(0)),
            memory_gb_per_node=round(machine_memory() / 2**30, 1),
        )


@dataclass(frozen=True)
class Prices:
    """``node_hour``: price of an hour of each kind of node; ``storage_gb_month``: of keeping a gigabyte."""

    currency: str = "USD"
    node_hour: dict[str, float] = field(default_factory=dict)
    storage_gb_month: float = bounded(0.0, 0.0)


@dataclass(frozen=True)
class Rates:
    """What one process (one thread) of this machine does, measured.

    ``images``: per second by the model; ``garments_per_image``; ``fetched``: images a second, all of crawl's
    workers together; ``image_bytes``: mean size; ``remote``: share of images that crawl has to store;
    ``pairs``: of garments, a second, when what they have to beat is known; ``searched``: garments a second,
    what each costs on top until that is known; ``compared``: pairs a second, exactly; ``verified``: pairs
    whose photographs are laid upon each other, a second; ``levels``, ``indexed``: garments a second.
    """

    sampled: int
    images: float
    garments_per_image: float
    readable: float
    fetched: float
    image_bytes: float
    remote: float
    pairs: float
    searched: float
    compared: float
    verified: float
    levels: float
    indexed: float
    feature_dim: int


@dataclass(frozen=True)
class StagePlan:
    """Of one stage; ``disk``: bytes it leaves; ``memory``: bytes on the busiest node meanwhile."""

    seconds: float
    memory: float
    disk: float


@dataclass(frozen=True)
class Plan:
    """``cost`` and ``storage_month``: None without prices."""

    cluster: Cluster
    rates: Rates
    items: int
    garments: float
    stages: dict[str, StagePlan]
    currency: str = ""
    cost: float | None = None
    storage_month: float | None = None

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages.values())

    @property
    def memory(self) -> float:
        return max(stage.memory for stage in self.stages.values())

    @property
    def disk(self) -> float:
        return sum(stage.disk for stage in self.stages.values())

    def as_dict(self) -> dict[str, Any]:
        totals = {"seconds": self.seconds, "memory": self.memory, "disk": self.disk}
        return {**asdict(self), **{name: round(value, 1) for name, value in totals.items()}}


def read_cluster(path: Path) -> Cluster:
    """Raises UserError for a file that does not fit."""
    return _read(Cluster, path)


def read_prices(path: Path, cluster: Cluster) -> Prices:
    """Raises UserError for a file that does not fit, or lacks the cluster's kind of node."""
    prices = _read(Prices, path)
    if any(price < 0 for price in prices.node_hour.values()):
        raise UserError(f"{path}: node_hour: prices are not negative")
    if cluster.node not in prices.node_hour:
        known = ", ".join(sorted(prices.node_hour)) or "none"
        named = (
            f"the node {cluster.node!r} of the cluster"
            if cluster.node
            else "the cluster's node, which has no name"
        )
        raise UserError(f"{path}: node_hour: has no price of {named}; it has {known}")
    return prices


def _read(cls: type[Any], path: Path) -> Any:
    try:
        return load_config(cls, path)
    except ConfigError as error:
        raise UserError(str(error)) from None


# --- the calibration


def calibrate(catalogue: pa.Table, settings: Settings, seconds: float) -> Rates:
    """Rates on this machine, in about so many seconds (and those that the model takes to load).

    Args:
        catalogue: CATALOGUE_SCHEMA.

    Raises:
        UserError: none of the sampled images can be read, or the weights cannot be used.
    """
    rng = np.random.default_rng(_SEED)
    rows = np.sort(rng.choice(len(catalogue), min(_SAMPLE, len(catalogue)), replace=False))
    sample = catalogue.take(rows)
    with (
        tempfile.TemporaryDirectory(prefix="psnet-plan-") as folder,
        track(3, "plan", "measurements") as progress,
    ):
        run = RunDirectory(Path(folder) / "run")
        fetched = _fetch_rate(run, sample, settings)
        items = pq.read_table(run.items_path)
        usable = items.filter(pc.equal(items["status"], "ok"))
        if not len(usable):
            reasons = ", ".join(sorted(set(items["status"].to_pylist())))
            raise UserError(
                f"none of {len(items)} images of the catalogue can be read ({reasons}); nothing to plan"
            )
        progress.advance()
        model: dict[str, Any] = _model_rates(usable["image_path"].to_pylist(), settings, seconds)
        progress.advance()
        with threadpool_limits(1):
            pair_rates: dict[str, Any] = _pair_rates(model["feature_dim"], settings, _PAIRS_SHARE * seconds)
        progress.advance()
    local = np.asarray(pc.starts_with(usable["image_path"], folder))
    return Rates(
        readable=len(usable) / len(items),
        fetched=fetched,
        image_bytes=float(np.mean(usable["image_bytes"].to_numpy())),
        remote=float(local.mean()),
        **model,
        **pair_rates,
    )


def _fetch_rate(run: RunDirectory, sample: pa.Table, settings: Settings) -> float:
    """Images a second of crawl, without what it takes to begin and to end."""
    few = max(1, len(sample) // 8)
    spent = []
    for part in (sample.slice(0, few), sample):  # the second time the first ones are there
        start = time.perf_counter()
        crawl(run, part, settings)
        spent.append(time.perf_counter() - start)
    more = spent[1] - spent[0]
    return (len(sample) - few) / more if more > 0.1 * spent[1] else len(sample) / spent[1]


def _model_rates(paths: list[str], settings: Settings, seconds: float) -> dict[str, Any]:
    """What ``Rates`` says of images, garments and photographs, of one process."""
    from pipeline.check import load_model

    predictor = load_model(settings)
    limits = {"max_pixels": settings.crawl.max_pixels, "target_side": settings.extract.decode_side}
    # The first passes choose kernels and fill allocators.
    _predict(predictor, paths[:2], limits)
    batch, done = settings.extract.batch_images, 0
    shown: list[tuple[str, Garment]] = []
    start = time.perf_counter()
    while (done < _FEWEST or time.perf_counter() - start < _MODEL_SHARE * seconds) and done < 4 * len(paths):
        chosen = [paths[(done + i) % len(paths)] for i in range(min(batch, len(paths)))]
        shown += _predict(predictor, chosen, limits)
        done += len(chosen)
    elapsed = time.perf_counter() - start
    return {
        "sampled": min(done, len(paths)),
        "images": done / elapsed,
        "garments_per_image": len(shown) / done,
        "verified": _verify_rate(shown, settings, limits, _VERIFY_SHARE * seconds),
        "feature_dim": int(predictor.config["feature_dim"]),
    }


def _predict(predictor: Any, paths: list[str], limits: dict[str, int]) -> list[tuple[str, Garment]]:
    """The garments of some pictures."""
    names, pictures = [], []
    for path in paths:
        try:
            pictures.append(decode_image(Path(path).read_bytes(), **limits).pixels)
        except ImageError:
            continue
        names.append(path)
    found = predictor.predict(pictures)
    return [(name, garment) for name, ones in zip(names, found, strict=True) for garment in ones]


def _verify_rate(
    shown: Sequence[tuple[str, Garment]], settings: Settings, limits: dict[str, int], seconds: float
) -> float:
    """Pairs a second whose photographs are looked at, as strangers come: one of them read anew, the other at
    hand from the pair before."""
    verifier = Verifier.load(settings.extract.weights)
    if verifier is None or not shown:
        return _VERIFIED

    def sight(number: int) -> Sight:
        path, garment = shown[number % len(shown)]
        pixels = decode_image(Path(path).read_bytes(), **limits).pixels
        return Sight.of(pixels, garment.box, garment.region_boxes, garment.presence, garment.landmarks)

    pairs = itertools.pairwise(map(sight, itertools.count()))

    def look() -> None:
        verifier.verify(*next(pairs))

    with one_thread():
        look()  # of the first pair both are read
        return 1 / _seconds(look, seconds)


def _pair_rates(dim: int, settings: Settings, seconds: float) -> dict[str, float]:
    """What ``Rates`` says of garments and pairs, on synthetic garments and one thread."""
    calibration, chosen = load_calibration(settings), settings.match
    rows, columns = (_synthetic_block(dim, seed, calibration.weights) for seed in (1, 2))
    basis = fit_basis(columns.features.astype(np.float32))
    rows, columns = replace(rows, basis=basis), replace(columns, basis=basis)
    thresholds = calibration.suspect_threshold, calibration.normalised_threshold
    wanted = Wanted(chosen.best_k, *thresholds, max(chosen.best_k, chosen.max_pairs_per_item))
    nothing, everything = (np.full(_KERNEL_GARMENTS, value, np.float32) for value in (-np.inf, np.inf))
    options: dict[str, Any] = {"scoring": chosen.scoring, "mirrored": chosen.mirrored}
    slack = rounding_slack(rows.level, columns.level)

    def search() -> None:
        best_pairs(rows, rows, wanted, Floors(nothing, nothing), slack=slack, **options)

    def pass_by() -> None:
        beaten = Floors(everything, everything)
        best_pairs(rows, columns, wanted, beaten, beaten, slack=slack, **options)

    chance = np.random.default_rng(_SEED).integers(_KERNEL_GARMENTS, size=(2, _COMPARED))

    def compare() -> None:
        rescore(rows, columns, *chance, **options)

    def take_levels() -> None:
        garments, sample = (
            Garments(
                block.features[:at].astype(np.float32),
                block.presence[:at],
                block.weights[:at],
                block.picture[:at],
            )
            for block, at in ((rows, _KERNEL_GARMENTS), (columns, chosen.background_size))
        )
        background(garments, sample, chosen.background_quantile, scoring=chosen.scoring)

    features = rows.features
    template = train_template(features, plan_index(IndexSettings(), _KERNEL_GARMENTS, dim))

    def fill() -> None:
        with tempfile.TemporaryDirectory(prefix="psnet-plan-") as folder:
            (Path(folder) / "features").write_bytes(features.tobytes() + rows.mirrored.tobytes())
            template.whole_vectors.add(template.rows(features))

    share = seconds / 5
    pairs = _KERNEL_GARMENTS**2 / _seconds(pass_by, share)
    # Of a block with itself every pair is looked at once.
    searching = _seconds(search, share) - _KERNEL_GARMENTS**2 / 2 / pairs
    return {
        "pairs": pairs,
        "searched": _KERNEL_GARMENTS / max(searching, 1e-6),
        "compared": _COMPARED / _seconds(compare, share),
        "levels": _KERNEL_GARMENTS / _seconds(take_levels, share),
        "indexed": _KERNEL_GARMENTS / _seconds(fill, share),
    }


def _seconds(work: Any, budget: float) -> float:
    """The median of as many runs as fit, after one that does not count."""
    work()
    spent: list[float] = []
    while not spent or (sum(spent) < budget and len(spent) < 20):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return float(np.median(spent))


def _synthetic_block(dim: int, seed: int, region_weights: np.ndarray) -> Block:
    """Garments around common looks, a picture each. As in the shipped model's features few dimensions hold
    nearly all of a region's look; how near strangers come decides how many pairs need a closer look."""
    rng, common = np.random.default_rng(seed), np.random.default_rng(_SEED)
    count, latent = _KERNEL_GARMENTS, min(_LATENT, dim)
    axes = np.linalg.qr(common.standard_normal((NUM_REGIONS, dim, latent)))[0]
    looks = common.standard_normal((count // 8, NUM_REGIONS, latent))
    own = rng.standard_normal((count, NUM_REGIONS, latent))
    drawn = (0.65 * looks[rng.integers(len(looks), size=count)] + 0.75 * own) * _DECAY ** np.arange(latent)
    features = np.einsum("nrl,rdl->nrd", drawn, axes)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    features = features.astype(np.float16)
    return Block(
        features=features,
        mirrored=features[:, list(MIRROR)],
        presence=np.full((count, NUM_REGIONS), Presence.PRESENT, np.uint8),
        weights=region_weights[rng.integers(len(GROUPS), size=count)],
        level=np.full(count, 0.5, np.float32),
        garment=np.zeros(count, np.int16),
        starts=np.arange(count),
        picture=np.arange(count) + seed * count,
    )


# --- the arithmetic


def predict(
    rates: Rates, items: int, cluster: Cluster, settings: Settings, prices: Prices | None = None
) -> Plan:
    """The stages of a scan of ``items`` items, each with a picture of its own."""
    images = items * rates.readable
    garments = images * rates.garments_per_image
    together = _TOGETHER if cluster.cpus_per_node > 1 else 1
    cores = cluster.nodes * cluster.cpus_per_node * cluster.speed * together
    gpus = cluster.nodes * cluster.gpus_per_node
    by_model = cores * rates.images
    if gpus and cluster.images_per_gpu_second:
        by_model = gpus * cluster.images_per_gpu_second
    block = settings.match.block_size
    blocks = math.ceil(images / block)
    # A single block is compared by the driver alone.
    busy = min(cores, blocks * (blocks + 1) / 2 * cluster.speed)
    searching = garments * _records(garments, settings) / _records(_KERNEL_GARMENTS, settings)
    scan = (searching / rates.searched + garments**2 / 2 / rates.pairs) / busy
    if gpus and cluster.pairs_per_gpu_second:
        scan = garments**2 / 2 / (gpus * cluster.pairs_per_gpu_second)
    vectors = 4 * NUM_REGIONS * rates.feature_dim * garments
    actors = cluster.gpus_per_node or cluster.cpus_per_node
    # Eight-bit codes, plain and flipped, of the blocks that a worker keeps; the best of their pictures.
    of_garment = 2 * NUM_REGIONS * rates.feature_dim + _SIDE_BYTES + 8 * settings.match.best_k
    in_worker = _WORKER_BYTES + BLOCKS_AT_HAND * min(block, images) * garments / max(images, 1) * of_garment
    workers = min(cluster.cpus_per_node, blocks * (blocks + 1) / 2)
    pairs_listed = items * settings.match.best_k
    driver = _BASE_BYTES + items * _PICTURE_BYTES
    held = images * 4 * (settings.match.best_k + settings.match.max_pairs_per_item)
    index = plan_index(settings.index, math.ceil(garments), rates.feature_dim)
    numbers = 2 * rates.feature_dim if index.factory == "Flat" else (index.region_dim or 40)
    store = settings.ray.object_store_mb * 2**20
    suspects = min(settings.report.max_suspects, items / _ITEMS_PER_SUSPECT)
    chosen = settings.verify
    likely = items * min(chosen.max_pairs_per_item, _LIKELY_PER_ITEM * items / _LIKELY_OF) * chosen.enabled
    stages = {
        "crawl": StagePlan(
            items / rates.fetched, driver, items * 500 + images * rates.remote * rates.image_bytes
        ),
        "extract": StagePlan(
            _START_S + images / by_model,
            driver + store + min(actors, images) * _ACTOR_BYTES,
            vectors + garments * _GARMENT_BYTES_BESIDE_FEATURES,
        ),
        "index": StagePlan(
            _INDEX_START_S + garments / (rates.indexed * cores),
            driver + index.training * NUM_REGIONS * rates.feature_dim * 6,
            vectors + garments * NUM_REGIONS * (2 * numbers + 4),
        ),
        "match": StagePlan(
            (_START_S if blocks > 1 else _MATCH_START_S)
            + garments / (rates.levels * cores)
            + scan
            + pairs_listed / (rates.compared * (cores if blocks > 1 else cluster.speed)),
            driver + store + held + workers * in_worker,
            pairs_listed * _PAIR_BYTES * 2,
        ),
        "verify": StagePlan(
            likely / (rates.verified * (cores if likely > PART else cluster.speed)),
            driver + store + likely * _LIKELY_BYTES,
            likely * _VERIFIED_BYTES,
        ),
        "judge": StagePlan(pairs_listed / 5e6, driver + pairs_listed * 50, suspects * 1000),
        "report": StagePlan(suspects * _SUSPECT_S, driver, suspects * _SUSPECT_BYTES),
    }
    rounded = {
        name: StagePlan(round(stages[name].seconds, 2), round(stages[name].memory), round(stages[name].disk))
        for name in STAGES
    }
    plan = Plan(cluster, rates, items, round(garments, 1), rounded)
    if prices is None:
        return plan
    hours = plan.seconds / 3600
    return Plan(
        cluster,
        rates,
        items,
        plan.garments,
        rounded,
        prices.currency,
        round(prices.node_hour[cluster.node] * cluster.nodes * hours, 4),
        round(prices.storage_gb_month * plan.disk / 1e9, 4),
    )


def _records(partners: float, settings: Settings) -> float:
    """How many of so many partners are among the best k of those before them, when they come in any order:
    k, then one in i / k of the i-th."""
    best_k = settings.match.best_k
    return min(best_k, partners) + best_k * math.log(max(partners / best_k, 1))


def in_words(plan: Plan) -> str:
    """The plan for people, a few lines."""
    rates, cluster = plan.rates, plan.cluster
    lines = [
        f"Measured on {rates.sampled:,} images: {rates.images:.1f} images/s, {rates.pairs / 1e6:,.1f} "
        f"million pairs/s a process, {rates.garments_per_image:.2f} garments an image.",
        f"For {plan.items:,} items on {cluster.name} ({cluster.nodes:,} × {cluster.cpus_per_node} CPUs, "
        f"{cluster.gpus_per_node} GPUs): {duration(plan.seconds)}, {plan.memory / 2**30:,.1f} GiB of memory "
        f"on a node, {plan.disk / 1e9:,.1f} GB of disk.",
    ]
    if plan.memory > cluster.memory_gb_per_node * 2**30:
        lines.append(
            f"A node has {cluster.memory_gb_per_node:g} GiB, less than that: lower extract.actors or "
            "match.block_size."
        )
    if plan.cost is not None:
        lines.append(
            f"Cost: {plan.cost:,.2f} {plan.currency} of computing, {plan.storage_month or 0:,.2f} "
            f"{plan.currency} a month to keep what it leaves."
        )
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:,.0f} seconds"
