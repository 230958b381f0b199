"""Stage extract: from images to garments with five region features each, on Ray Data.

    items.parquet ─ distinct contents still to do ─ units ─▶ [Ray Data: actors] ─▶ one Parquet shard per unit

The driver cuts the contents into units and hands each to Ray Data as a block. An actor loads the model once;
for every unit it decodes (a few threads, ahead of the model), detects, places landmarks, pools the regions,
drops the pixels and commits one shard: written under a temporary name, then renamed. Only counts travel back.
A shard is done when its file exists, so resume is per shard and a killed driver loses at most the units in
flight.

The key of a shard's name is the model's tag and a digest of the settings that its rows depend on; the rest is
a digest of the unit's contents, so that a unit repeated by Ray, or by the next run, lands on the same name.

Ray's own resume by row (``ray.data.checkpoint.CheckpointConfig``) is not used: it keeps a second record of
what is done beside the shards, and the two can disagree after a kill; the shards themselves hold the same
knowledge.

Memory: O(contents) for hashes and paths in the driver, O(batch of decoded images + unit of features) in an
actor.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
import uuid
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import RunError, UserError, is_disk_full
from pipeline.progress import track
from pipeline.rundir import RunDirectory, StageRecord, inputs_digest
from pipeline.runtime import WORKER_ENVIRONMENT, cluster_address, init_ray
from pipeline.schema import (
    NO_GARMENT_INDEX,
    garment_schema,
    pack_attributes,
    pack_boxes,
    pack_features,
    pack_landmarks,
    pack_presence,
)
from pipeline.settings import ExtractSettings, Settings
from psnet.config import digest
from psnet.image import ImageError, decode_image

if TYPE_CHECKING:
    from psnet.asen_predictor import AttributePredictor
    from psnet.predictor import Garment, Predictor

_log = logging.getLogger(__name__)

# Failures that say something about the disk and not about the content: tried again once the file is back.
PASSING_FAILURES = ("missing_file", "changed_file")

# A unit is repeated this often when its actor dies. The first death says that something in it is bad, two
# more for each such image say which (see _Attempts), the rest is left for accidents. An actor may be
# restarted for several such units.
_UNIT_RETRIES = 12
_NODE_POLL_S = 2.0
_ACTOR_RESTARTS = 30
# What an actor needs beside its share of a CPU: the model, a batch of activations, torch itself.
_ACTOR_MEMORY = 1.5 * 2**30


@dataclass(frozen=True)
class Job:
    """What an actor has to know; travels to it once.

    ``folder``: where shards are committed. ``prefix``: start of their names, see `shard_prefix`. ``run_id``
    tells the traces of this run from those of one that was killed. ``device``: "cpu" or "cuda".
    ``attribute_tag``: of ASEN's weights, "" when no attributes are wanted.
    """

    folder: str
    prefix: str
    run_id: str
    model_tag: str
    device: str
    max_pixels: int
    settings: ExtractSettings
    attribute_tag: str = ""


@dataclass(frozen=True)
class _Failure:
    status: str
    error: str


@dataclass(frozen=True)
class _Read:
    """A content on its way through an actor; ``width`` and ``height`` are 0 when it could not be decoded."""

    sha256: str
    width: int
    height: int
    outcome: np.ndarray | list[Garment] | _Failure


def load_predictor(job: Job) -> tuple[Predictor, str]:
    """The model on the actor's device, and the precision found best for it there."""
    import torch

    from psnet.precision import choose_precision
    from psnet.predictor import Predictor

    if job.device == "cpu":
        torch.set_num_threads(1)
    precision = choose_precision(job.settings.precision, job.device)
    limits: dict[str, Any] = {"max_garments": job.settings.max_garments_per_image}
    if job.settings.detection_threshold is not None:
        limits["min_score"] = job.settings.detection_threshold
    return Predictor.load(job.settings.weights, job.device, precision, **limits), precision


def load_attribute_predictor(job: Job, precision: str) -> AttributePredictor | None:
    """ASEN on the actor's device; None when no attributes are wanted."""
    if not job.settings.attributes:
        return None
    from psnet.asen_predictor import AttributePredictor

    return AttributePredictor.load(job.settings.attribute_weights, job.device, precision)


def extract(run: RunDirectory, settings: Settings) -> None:
    """Garments of every distinct image of the crawl: RUN/garments/*.parquet.

    Contents with a committed row are done; when none is left to do, neither Ray nor the model is loaded.

    Raises:
        UserError: the crawl is not done, the weights cannot be used, the actors do not fit the cluster.
        RunError: see `extract_contents`.
    """
    crawled = run.require("crawl")
    tag, attribute_tag = weights_tags(settings.extract)
    prefix = shard_prefix(tag, settings.extract, attribute_tag)
    with run.lock():
        folder = run.garments_dir
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        items = pq.read_table(run.items_path, columns=["image_sha256", "image_path", "status"])
        pending = pending_contents(items, committed_rows(folder, prefix))
        # Not finished, whatever the record says, while a content has no row: a shard was deleted, or a file
        # that was missing has come back.
        outputs = [folder / ".pending" if pending.num_rows else folder]  # the one is never there
        with run.stage("extract", inputs_digest(crawled, prefix), outputs) as stage:
            if stage.finished:
                return
            if pending.num_rows:
                stage.note(**_extract_pending(pending, folder, (tag, attribute_tag), prefix, settings))
                _sweep(folder)
            outcome = _count(stage, items, committed_rows(folder, prefix))
            stage.note(shard_prefix=prefix, attribute_tag=attribute_tag)
            stage.output_digest = inputs_digest(prefix, outcome)
            run.update(model_tag=tag)


def weights_tags(settings: ExtractSettings) -> tuple[str, str]:
    """Tags of the model's and of ASEN's weights, the latter "" where no attributes are wanted.

    Raises:
        UserError: they are not there, or are no weights.
    """
    from psnet.asen_weights import asen_tag
    from psnet.weights import WeightsError, model_tag

    try:
        attribute_tag = asen_tag(settings.attribute_weights) if settings.attributes else ""
        return model_tag(settings.weights), attribute_tag
    except WeightsError as error:
        raise UserError(str(error)) from None


def check_weights(settings: ExtractSettings) -> None:
    """Load all that the stages will load from the weights, which takes a fraction of a second.

    Raises:
        UserError: one of their files is missing, damaged, or of another model.
    """
    from psnet.asen_weights import load_asen
    from psnet.weights import WeightsError, load_comparison, load_group_head, load_psnet

    try:
        for load in (load_psnet, load_group_head, load_comparison):
            load(settings.weights)
        if settings.attributes:
            load_asen(settings.attribute_weights)
    except WeightsError as error:
        raise UserError(str(error)) from None


def garment_shards(run: RunDirectory) -> list[Path]:
    """The shards of the run's model and settings, in a fixed order; those of earlier ones may lie beside
    them.

    Raises:
        UserError: the stage is not done.
    """
    run.require("extract")
    return sorted(run.garments_dir.glob(f"{run.stage_record('extract')['shard_prefix']}*.parquet"))


def _extract_pending(
    pending: pa.Table, folder: Path, tags: tuple[str, str], prefix: str, settings: Settings
) -> dict[str, object]:
    """Compute what is pending; what the record shall say about how."""
    init_ray(settings)
    import ray

    units = len(cut_units(pending.num_rows, 1, settings.extract))
    if cluster_address(settings):
        _await_first_node(settings.extract)
    device, actors = plan_actors(settings.extract, units, ray.cluster_resources())
    job = Job(
        folder=str(folder.resolve()),
        prefix=prefix,
        run_id=uuid.uuid4().hex,
        model_tag=tags[0],
        device=device,
        max_pixels=settings.crawl.max_pixels,
        settings=settings.extract,
        attribute_tag=tags[1],
    )
    precisions: set[str] = set()
    with track(pending.num_rows, "extract", "images") as progress:
        for answer in extract_contents(pending, job, actors):
            precisions.update(answer["precision"].to_pylist())
            progress.advance(pc.sum(answer["images"]).as_py())
    return {"device": device, "actors": actors, "precision": "|".join(sorted(precisions))}


def _await_first_node(settings: ExtractSettings) -> None:
    """On a cluster without room for an actor, ask for a node and wait until it is there: clusters that scale
    start from nothing, and a reclaimed node is replaced in minutes.

    Raises:
        RunError: none came within ``start_timeout_s``.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    _, need, room = _room(settings, ray.cluster_resources())
    if room != 0:
        return
    needs = _in_words(need)
    print(f"extract: no node of the cluster has {needs}; waiting for one", file=sys.stderr, flush=True)
    deadline = time.monotonic() + settings.start_timeout_s
    request_resources(bundles=[need])
    try:
        while _room(settings, ray.cluster_resources())[2] == 0:
            if time.monotonic() > deadline:
                raise RunError(
                    f"no node with {needs} joined the cluster within {settings.start_timeout_s:.0f} s "
                    f"(extract.start_timeout_s, extract.device={settings.device}); see `ray status`"
                )
            time.sleep(_NODE_POLL_S)
    finally:
        request_resources(bundles=[])  # or the node would be kept for ever


def _in_words(need: Mapping[str, float], times: int = 1) -> str:
    return ", ".join(f"{times * amount:g} {kind}" for kind, amount in need.items())


def _room(
    settings: ExtractSettings, resources: Mapping[str, float]
) -> tuple[str, dict[str, float], int | None]:
    """Device, what an actor needs, and for how many of them these resources are enough (None: it needs
    nothing)."""
    auto = "cuda" if resources.get("GPU", 0.0) else "cpu"
    device = auto if settings.device == "auto" else settings.device
    need = {"CPU": settings.cpus_per_actor, **({"GPU": settings.gpus_per_actor} if device == "cuda" else {})}
    need = {kind: amount for kind, amount in need.items() if amount}
    rooms = [int(resources.get(kind, 0.0) / amount + 1e-6) for kind, amount in need.items()]
    return device, need, min(rooms, default=None)


def _sweep(folder: Path) -> None:
    """Remove what a killed run left half done, but for what it knew of images that kill. Nobody else writes
    here while the run is locked."""
    for left in folder.glob(".*.tmp"):
        left.unlink(missing_ok=True)
    for left in folder.glob(".*.attempt"):
        if _DIED not in left.read_text(encoding="ascii", errors="replace"):
            left.unlink(missing_ok=True)


def _count(stage: StageRecord, items: pa.Table, rows: pa.Table) -> str:
    """Enter the contents of this catalogue: in = out (with or without a garment) + failed.

    Returns:
        A digest of which contents there are and how they ended.
    """
    wanted = pc.unique(items.filter(pc.equal(items["status"], "ok"))["image_sha256"])
    rows = rows.filter(pc.is_in(rows["image_sha256"], value_set=wanted))
    # A content that failed for its file's sake and was tried again has two rows, of which the final one
    # counts.
    passing = pc.is_in(rows["status"], value_set=pa.array(PASSING_FAILURES))
    outdated = pc.and_(
        passing, pc.is_in(rows["image_sha256"], value_set=rows.filter(pc.invert(passing))["image_sha256"])
    )
    rows = rows.filter(pc.invert(outdated))
    garments = pc.sum(pc.equal(rows["status"], "ok")).as_py() or 0
    contents = rows.group_by(["image_sha256", "status"]).aggregate([]).sort_by("image_sha256")
    by_status = Counter(contents["status"].to_pylist())
    stage.count_in = len(wanted)
    stage.count_out = by_status["ok"] + by_status["no_garment"]
    for status in sorted(by_status.keys() - {"ok", "no_garment"}):
        stage.fail(status, by_status[status])
    stage.note(garments=garments, images_without_garment=by_status["no_garment"])
    outcome = hashlib.sha256()
    for name in ("image_sha256", "status"):
        outcome.update("\n".join(contents[name].to_pylist()).encode())
    return outcome.hexdigest()


def pending_contents(items: pa.Table, done: pa.Table) -> pa.Table:
    """Distinct contents of ``items`` that no committed row answers for, in the order of the catalogue.

    Args:
        items: ``image_sha256``, ``image_path`` and ``status`` of the crawl's rows.
        done: ``image_sha256`` and ``status`` of the committed rows.

    Returns:
        ``image_sha256`` and ``image_path``.
    """
    usable = items.filter(pc.equal(items["status"], "ok"))
    contents = usable.group_by("image_sha256", use_threads=False).aggregate([("image_path", "first")])
    contents = contents.rename_columns(["image_sha256", "image_path"])
    passing = pc.is_in(done["status"], value_set=pa.array(PASSING_FAILURES))
    final = done.filter(pc.invert(passing))["image_sha256"]
    contents = contents.filter(pc.invert(pc.is_in(contents["image_sha256"], value_set=final)))
    failed = pc.is_in(contents["image_sha256"], value_set=done.filter(passing)["image_sha256"])
    if not pc.any(failed).as_py():
        return contents
    back = [
        not was_missing or os.path.isfile(path)
        for was_missing, path in zip(failed.to_pylist(), contents["image_path"].to_pylist(), strict=True)
    ]
    return contents.filter(pa.array(back))


def cut_units(count: int, actors: int, settings: ExtractSettings) -> list[int]:
    """Sizes of the units that ``count`` contents are cut into.

    ``shard_images`` each, and smaller towards the end (a quarter of every actor's share of what is left, in
    whole batches), so that the actors finish together.
    """
    batch = settings.batch_images
    sizes = []
    while count:
        share = -(-count // (4 * actors * batch)) * batch
        sizes.append(min(count, share, settings.shard_images))
        count -= sizes[-1]
    return sizes


def shard_prefix(model_tag: str, settings: ExtractSettings, attribute_tag: str = "") -> str:
    """Start of the names of all shards of one model under one set of settings.

    Only what the rows depend on goes in: not actors, batches or the size of shards. The weights are named by
    their tag, wherever their file lies.
    """
    decisive = replace(settings, weights=None, attribute_weights=attribute_tag or None, device="auto")
    return f"{model_tag}-{digest(decisive, results_only=True)[:8]}-"


def shard_name(prefix: str, contents: Iterable[str]) -> str:
    """Name of the shard that holds these contents (hashes), whatever their order."""
    return f"{prefix}{hashlib.sha256(' '.join(sorted(contents)).encode()).hexdigest()[:16]}.parquet"


def committed_rows(
    folder: Path, prefix: str, columns: Sequence[str] = ("image_sha256", "status")
) -> pa.Table:
    """Some columns of every committed shard of one model and set of settings."""
    shards = sorted(folder.glob(f"{prefix}*.parquet"))
    if not shards:
        schema = garment_schema()
        return pa.schema([schema.field(name) for name in columns]).empty_table()
    return pa.concat_tables([_read_columns(shard, columns) for shard in shards])


def _read_columns(shard: Path, columns: Sequence[str]) -> pa.Table:
    try:
        return pq.ParquetFile(shard).read(list(columns)).replace_schema_metadata(None)
    except (pa.ArrowException, OSError) as error:
        raise RunError(
            f"{shard} cannot be read ({error}); delete it and start the same command again"
        ) from error


def extract_contents(
    contents: pa.Table,
    job: Job,
    actors: int,
    load: Callable[[Job], tuple[Predictor, str]] = load_predictor,
) -> Iterator[pa.Table]:
    """Run the actors over ``contents`` in one Ray Data execution; yields each committed unit's answer.

    Ray has to be running, with room for the actors (see `plan_actors`).

    Raises:
        RunError: the disk is full, the actors do not start or keep dying. Committed shards stay.
    """
    import ray.data
    from ray.exceptions import GetTimeoutError, RayError

    folder = Path(job.folder)
    blocks = []
    start = 0
    for size in cut_units(contents.num_rows, actors, job.settings):
        unit = contents.slice(start, size)
        start += size
        hashes, paths = unit["image_sha256"].to_pylist(), unit["image_path"].to_pylist()
        # A shard of exactly these contents, all still to do, can only say that their files were missing.
        (folder / shard_name(job.prefix, hashes)).unlink(missing_ok=True)
        blocks.append(pa.table({"image_sha256": [hashes], "image_path": [paths]}))

    # Ray Data tells all of its story on the console; what matters of it arrives as an exception.
    for handler in logging.getLogger("ray.data").handlers:
        if handler.get_name() == "console":
            handler.setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Without this an execution whose actors do not find room waits for ever and says nothing.
    context.wait_for_min_actors_s = int(job.settings.start_timeout_s)
    gpu = job.device == "cuda"
    with warnings.catch_warnings():
        # Ray 2.60 announces that the bounds on restarts will go by another way, and has no other way yet.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        answers = ray.data.from_arrow(blocks).map_batches(
            Extractor,
            fn_constructor_args=(job, load),
            batch_size=1,
            batch_format="pyarrow",
            # Two units each, so that an actor never waits for the driver.
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
            num_cpus=job.settings.cpus_per_actor,
            num_gpus=job.settings.gpus_per_actor if gpu else 0,
            runtime_env={"env_vars": WORKER_ENVIRONMENT},
            max_restarts=_ACTOR_RESTARTS,
            max_task_retries=_UNIT_RETRIES,
        )
    try:
        for batch in answers.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
            answer = cast(pa.Table, batch)
            for error in answer["error"].to_pylist():
                if error:
                    raise RunError(error)
            yield answer
    except GetTimeoutError as error:
        raise RunError(
            f"{actors} extraction actors did not start within {job.settings.start_timeout_s:.0f} s: "
            "the cluster is busy or too small, or they die while they load the model; "
            "lower extract.actors or raise extract.start_timeout_s"
        ) from error
    except RayError as error:
        raise RunError(
            f"extraction stopped: {type(error).__name__}, an actor died too often; finished shards are kept, "
            "start the same command again"
        ) from error


def plan_actors(settings: ExtractSettings, units: int, resources: Mapping[str, float]) -> tuple[str, int]:
    """Device and number of actors for a cluster with these ``resources`` (ray.cluster_resources()).

    By default one actor per GPU, else one per CPU core as far as the memory goes; never more than ``units``.

    Raises:
        UserError: the settings ask for more than the cluster has, which Ray would wait for without a word.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    device, per_actor, found = _room(settings, resources)
    room = units if found is None else found
    if room < max(1, settings.actors):
        needs = _in_words(per_actor, settings.actors or 1)
        raise UserError(
            f"extract.actors={settings.actors} on {device} needs {needs}, "
            f"and Ray has {cpus:g} CPU, {gpus:g} GPU: "
            "lower extract.actors or extract.cpus_per_actor, or set extract.device"
        )
    if settings.actors:
        return device, min(settings.actors, units)
    if device == "cpu":
        room = min(room, max(1, int(cpus)), max(1, int(resources.get("memory", 0.0) / _ACTOR_MEMORY)))
    return device, max(1, min(room, units))


class Extractor:
    """The actor: turns units of contents into committed shards.

    A call takes a table of one row, the unit's ``image_sha256`` and ``image_path`` as lists, and answers with
    a row per status, ``images`` and ``garments`` counted, or with one row whose ``error`` ends the run.
    """

    def __init__(self, job: Job, load: Callable[[Job], tuple[Predictor, str]] = load_predictor) -> None:
        self._job = job
        self._decoders = ThreadPoolExecutor(_decode_threads(job), thread_name_prefix="decode")
        self._refusal = ""
        try:
            self._predictor, self._precision = load(job)
            self._attributes = load_attribute_predictor(job, self._precision)
            self._schema = garment_schema(self._predictor.config["feature_dim"])
        except Exception as error:
            # Ray would start the actor again and again, with pages of traceback; the first answer ends it.
            _log.exception("the model cannot be loaded")
            self._refusal = f"the model cannot be loaded: {_one_line(error)}"
            return
        if self._predictor.tag != job.model_tag:
            self._refusal = (
                f"the weights changed during the run: {self._predictor.tag}, no longer {job.model_tag}; "
                "start the same command again"
            )
        elif self._attributes is not None and self._attributes.tag != job.attribute_tag:
            self._refusal = (
                f"{job.settings.attribute_weights}: the weights changed; start the same command again"
            )

    def __call__(self, unit: pa.Table) -> pa.Table:
        if self._refusal:
            return _error_answer(self._refusal)
        hashes, paths = unit["image_sha256"][0].as_py(), unit["image_path"][0].as_py()
        target = Path(self._job.folder, shard_name(self._job.prefix, hashes))
        try:
            # Ray repeats a unit whose actor died: perhaps after the rename, before the answer.
            if not target.exists():
                with _Attempts(target, self._job.run_id) as attempts:
                    read = self._read_one_by_one if attempts.careful else self._read_in_batches
                    done = read(list(zip(hashes, paths, strict=True)), attempts)
                    rows = _to_table(done, self._job.model_tag, self._schema)
                    metadata = {"model_tag": self._job.model_tag, "precision": self._precision}
                    if self._attributes is not None:
                        metadata["attribute_tag"] = self._attributes.tag
                    write_shard(target, rows, metadata)
            return _answer(target)
        except OSError as error:
            return _error_answer(_disk_error(target.parent, error))
        except Exception as error:
            _log.exception("unit %s", target.name)
            return _error_answer(f"unit {target.name}: {_one_line(error)}")

    def _read_in_batches(self, contents: Sequence[tuple[str, str]], attempts: _Attempts) -> list[_Read]:
        done: list[_Read] = []
        batch: list[_Read] = []
        for read in self._decoded_ahead(contents):
            if isinstance(read.outcome, _Failure):
                done.append(read)
                continue
            batch.append(read)
            if len(batch) == self._job.settings.batch_images:
                done += self._predict(batch)
                batch = []
        return done + self._predict(batch)

    def _read_one_by_one(self, contents: Sequence[tuple[str, str]], attempts: _Attempts) -> list[_Read]:
        done: list[_Read] = []
        for sha256, path in contents:
            if attempts.gave_up(sha256):
                failure = _Failure("crashed", "the process died each time while it worked on this image")
                done.append(_Read(sha256, 0, 0, failure))
                continue
            attempts.begin(sha256)
            read = self._decode(sha256, path)
            done += [read] if isinstance(read.outcome, _Failure) else self._predict([read])
        attempts.end()
        return done

    def _decoded_ahead(self, contents: Iterable[tuple[str, str]]) -> Iterator[_Read]:
        """Decode in order, at most two batches ahead of what has been taken."""
        waiting: deque[Future[_Read]] = deque()
        for sha256, path in contents:
            waiting.append(self._decoders.submit(self._decode, sha256, path))
            if len(waiting) > 2 * self._job.settings.batch_images:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _decode(self, sha256: str, path: str) -> _Read:
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            return _Read(sha256, 0, 0, _Failure("missing_file", f"cannot read {path}: {reason}"))
        if hashlib.sha256(data).hexdigest() != sha256:
            return _Read(
                sha256, 0, 0, _Failure("changed_file", f"{path} has changed since the catalogue was read")
            )
        try:
            image = decode_image(
                data, max_pixels=self._job.max_pixels, target_side=self._job.settings.decode_side
            )
        except ImageError as error:
            return _Read(sha256, 0, 0, _Failure(error.code, error.message))
        return _Read(sha256, image.width, image.height, image.pixels)

    def _predict(self, batch: Sequence[_Read]) -> list[_Read]:
        """Garments of decoded images; one by one when a batch fails: a bad image is one failed row."""
        if not batch:
            return []
        pixels = [read.outcome for read in batch if isinstance(read.outcome, np.ndarray)]
        try:
            found = self._predictor.predict(pixels)
            if self._attributes is not None:
                found = _with_attributes(self._attributes, pixels, found)
            for garments in found:
                _check_finite(garments)
        except Exception as error:
            if _device_is_lost(error):
                # Ray starts another process, which repeats the unit.
                os._exit(1)
            if len(batch) > 1:
                return [done for read in batch for done in self._predict([read])]
            return [replace(batch[0], outcome=_Failure("predict_failed", _one_line(error)))]
        return [
            replace(read, outcome=_in_original_pixels(garments, read, image))
            for read, image, garments in zip(batch, pixels, found, strict=True)
        ]


def _with_attributes(
    predictor: AttributePredictor, pixels: Sequence[np.ndarray], found: Sequence[Sequence[Garment]]
) -> list[list[Garment]]:
    embeddings = predictor.describe(
        pixels, [np.array([garment.box for garment in garments]).reshape(-1, 4) for garments in found]
    )
    return [
        [replace(garment, attributes=one) for garment, one in zip(garments, ones, strict=True)]
        for garments, ones in zip(found, embeddings, strict=True)
    ]


def _decode_threads(job: Job) -> int:
    """Enough to stay ahead of the model: one beside a CPU's, a GPU's share of the cores beside a GPU's."""
    if job.settings.decode_threads:
        return job.settings.decode_threads
    if job.device == "cpu":
        return 1
    import torch

    return max(1, min(16, (os.cpu_count() or 1) // max(1, torch.cuda.device_count()) - 1))


_ANSWER = pa.schema(
    [
        ("status", pa.string()),
        ("images", pa.int64()),
        ("garments", pa.int64()),
        ("precision", pa.string()),
        ("error", pa.string()),
    ]
)


def _answer(shard: Path) -> pa.Table:
    """What the driver has to know of a committed shard; read back from it, which proves that it can be."""
    rows = pq.read_table(shard, columns=["image_sha256", "status"])
    precision = (rows.schema.metadata or {}).get(b"precision", b"").decode()
    counted = rows.group_by("status").aggregate([("image_sha256", "count_distinct"), ("status", "count")])
    return pa.Table.from_pylist(
        [
            {
                "status": row["status"],
                "images": row["image_sha256_count_distinct"],
                "garments": row["status_count"] if row["status"] == "ok" else 0,
                "precision": precision,
                "error": "",
            }
            for row in counted.to_pylist()
        ],
        _ANSWER,
    )


def _error_answer(error: str) -> pa.Table:
    """Ends the run with one line; an exception would come out of Ray with pages of traceback."""
    return pa.Table.from_pylist([{"error": error}], _ANSWER)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _disk_error(folder: Path, error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    if is_disk_full(error):
        return (
            f"no space left for {folder}: make room and start the same command again; "
            "finished shards are kept"
        )
    return f"cannot write to {folder}: {reason}"


_DIED = "died "


class _Attempts:
    """Finds the image that kills the process (a decoder's crash, no memory left) without an exception.

    A small file beside the shard lives while a unit is worked on. Found again by the same run, it says that
    the process died in between: the unit is then gone through one image at a time, each image's hash written
    down first. An image that was the last entry of two such attempts is given up. What was learnt so counts
    in later runs as well: a unit with many such images needs more than one.
    """

    _GIVE_UP = 2

    def __init__(self, target: Path, run_id: str) -> None:
        self._path = target.with_name(f".{target.name}.attempt")
        self._run_id = run_id
        self._deaths: Counter[str] = Counter()
        self.careful = False

    def __enter__(self) -> Self:
        try:
            run_id, *entries = self._path.read_text(encoding="ascii").splitlines()
        except (FileNotFoundError, ValueError):
            run_id, entries = "", []
        if run_id == self._run_id:
            if entries and entries[-1].startswith("at "):
                entries.append(entries[-1].replace("at ", _DIED))
                self._append(entries[-1])
            self.careful = True
        died = [entry for entry in entries if entry.startswith(_DIED)]
        if run_id != self._run_id:
            # A killed driver takes its actors with it, which says nothing about the image at hand.
            self._path.write_text("\n".join([self._run_id, *died, ""]), encoding="ascii")
            self.careful = bool(died)
        self._deaths.update(entry.removeprefix(_DIED) for entry in died)
        return self

    def __exit__(self, *exception: object) -> None:
        self._path.unlink(missing_ok=True)

    def gave_up(self, sha256: str) -> bool:
        return self._deaths[sha256] >= self._GIVE_UP

    def begin(self, sha256: str) -> None:
        self._append(f"at {sha256}")

    def end(self) -> None:
        self._append("end")

    def _append(self, entry: str) -> None:
        with self._path.open("a", encoding="ascii") as file:
            file.write(f"{entry}\n")


def _to_table(done: Iterable[_Read], model_tag: str, schema: pa.Schema) -> pa.Table:
    """Rows of one shard, sorted by image and garment: their order does not tell how they were computed."""
    keys: list[tuple[str, int, str, str, int, int]] = []
    found: list[Garment] = []
    empty_keys: list[tuple[str, int, str, str, int, int]] = []
    for read in done:
        size = (read.width, read.height)
        if isinstance(read.outcome, _Failure):
            empty_keys.append((read.sha256, NO_GARMENT_INDEX, read.outcome.status, read.outcome.error, *size))
        elif isinstance(read.outcome, list) and read.outcome:
            keys += [(read.sha256, index, "ok", "", *size) for index in range(len(read.outcome))]
            found += read.outcome
        else:
            empty_keys.append((read.sha256, NO_GARMENT_INDEX, "no_garment", "", *size))
    tables = [_columns(empty_keys, model_tag, schema)]
    if found:
        values = {
            "box": pack_boxes(np.stack([garment.box for garment in found])),
            "detection_score": pa.array([garment.score for garment in found], pa.float32()),
            "category": pa.array([garment.category for garment in found]),
            "group": pa.array([garment.group for garment in found]),
            "landmarks": pack_landmarks(garment.landmarks for garment in found),
            "region_boxes": pack_boxes(np.stack([garment.region_boxes for garment in found])),
            "presence": pack_presence(np.stack([garment.presence for garment in found])),
            "presence_score": pack_boxes(np.stack([garment.presence_score for garment in found])),
            "features": pack_features(np.stack([garment.features for garment in found])),
            "mirrored_features": pack_features(np.stack([garment.mirrored_features for garment in found])),
        }
        if all(garment.attributes is not None for garment in found):
            values["attributes"] = pack_attributes(
                garment.attributes for garment in found if garment.attributes is not None
            )
        tables.append(_columns(keys, model_tag, schema, values))
    return pa.concat_tables(tables).sort_by([("image_sha256", "ascending"), ("garment_index", "ascending")])


def _columns(
    keys: Sequence[tuple[str, int, str, str, int, int]],
    model_tag: str,
    schema: pa.Schema,
    values: Mapping[str, pa.Array] = MappingProxyType({}),
) -> pa.Table:
    """A table of ``schema``: its six key columns, and ``values`` (else null) for the garment's columns."""
    columns = dict(zip(schema.names, zip(*keys, strict=True), strict=False)) if keys else {}
    arrays = []
    for field in schema:
        if field.name == "model_tag":
            arrays.append(pa.repeat(pa.scalar(model_tag), len(keys)))
        elif field.name in values:
            arrays.append(values[field.name])
        else:
            arrays.append(pa.array(columns.get(field.name, [None] * len(keys)), field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _check_finite(garments: Sequence[Garment]) -> None:
    for garment in garments:
        for name in ("box", "landmarks", "region_boxes", "features", "mirrored_features"):
            if not np.isfinite(getattr(garment, name)).all():
                raise ValueError(f"the model gave {name} that are not finite")
        if garment.attributes is not None and not np.isfinite(garment.attributes).all():
            raise ValueError("the model gave attributes that are not finite")


def _in_original_pixels(garments: Sequence[Garment], read: _Read, pixels: np.ndarray) -> list[Garment]:
    """Coordinates from the decoded (perhaps reduced) picture to the upright original."""
    # Per axis, because a reduced side is rounded up.
    x, y = read.width / pixels.shape[1], read.height / pixels.shape[0]
    if x == y == 1:
        return list(garments)
    box_scale = np.array([x, y, x, y], np.float32)
    return [
        replace(
            garment,
            box=garment.box * box_scale,
            region_boxes=garment.region_boxes * box_scale,
            landmarks=garment.landmarks * np.array([x, y, 1], np.float32),
        )
        for garment in garments
    ]


def _device_is_lost(error: Exception) -> bool:
    """After most CUDA errors (not: out of memory) every later call in the process fails as well."""
    import torch

    return isinstance(error, torch.AcceleratorError)


def write_shard(target: Path, rows: pa.Table, metadata: Mapping[str, str]) -> None:
    """Commit ``rows`` as ``target``: temporary name in the same folder, synced, renamed.

    Raises OSError, and leaves nothing behind, when the file cannot be written.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    known = rows.schema.metadata or {}
    rows = rows.replace_schema_metadata({**known, **metadata})
    try:
        with temporary.open("wb") as file:
            pq.write_table(rows, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
