"""Stage index: the garments in FAISS shards, for sweeps and single questions.

    RUN/index/manifest.json        model, configuration, and hashes of every file and of what it was made from
    RUN/index/template-KEY.*       trained once, filled for every shard (``pipeline.index_template``)
    RUN/index/shard-KEY.faiss      one vector a garment, the five regions side by side
    RUN/index/shard-KEY.parquet, .features
                                   the garments behind the rows (``pipeline.vectors``)

A shard is made from whole garments files and named after their contents and the template's: when some are
added or removed, only the shards made from them are built anew. Garments of other runs may be added, and
shards be dropped; ``psnet index`` keeps to both. Shards are filled in parallel, each by a task that reads the
template.

How the shards are searched: ``pipeline.garment_index``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq

from pipeline import region_lists
from pipeline.audit import audit_index
from pipeline.errors import RunError, UserError
from pipeline.extract import garment_shards
from pipeline.index_manifest import MANIFEST, File, Manifest, Shard, mismatch, template_hash, wrong_file
from pipeline.index_template import (
    Plan,
    plan_index,
    read_template,
    train_template,
    write_template,
)
from pipeline.progress import track
from pipeline.region_lists import write_lists
from pipeline.rundir import RunDirectory, inputs_digest
from pipeline.runtime import init_ray
from pipeline.schema import unpack_features, unpack_presence
from pipeline.settings import Settings
from pipeline.vectors import VECTOR_SUFFIXES, garment_count, open_vectors, visible_count, write_vectors
from psnet.config import digest
from psnet.regions import NUM_REGIONS, Presence

logger = logging.getLogger(__name__)

_ROWS_ADDED_AT_ONCE = 16_384
# ``auto`` keeps the template while there are between a quarter and four times as many garments.
_STILL_FITS = 4
_TASK_RETRIES = 5
_SEED = 0


def build_index(
    run: RunDirectory, settings: Settings, add: Sequence[Path] = (), drop: Sequence[str] = ()
) -> None:
    """RUN/index/ for the garments of the run, and of runs that are added; what is there and fits stays.

    Args:
        add: further runs of the same model; the run itself takes its dropped shards back.
        drop: names of shards to leave out from now on.

    Raises:
        UserError: the extraction is not done, an added run or a dropped shard does not fit, or the factory
            string does not suit the garments.
        RunError: the disk is full, or workers keep dying. Finished shards stay.
    """
    tag = str(run.read().get("model_tag", ""))
    shards = garment_shards(run)
    last = _last_manifest(run.index_dir)
    former = last if last is not None and last.model_tag == tag else None
    added, dropped = _contents(run, last, former, add, drop)
    others = [RunDirectory.existing(path) for path in added]
    for other in others:
        _check_model(run, other, tag)
    inputs = inputs_digest(
        run.require_current("extract"),
        digest(settings.index, results_only=True),
        *(part for other in others for part in (str(other.path), other.require("extract"))),
        *dropped,
    )
    manifest = run.index_dir / MANIFEST
    with run.stage("index", inputs, [manifest]) as stage:
        if stage.finished:
            return
        files = [("", path) for path in shards]
        files += [(str(other.path), path) for other in others for path in garment_shards(other)]
        try:
            run.index_dir.mkdir(parents=True, exist_ok=True)
            builder = _Builder(run.index_dir, tag, settings, added, dropped, former)
            done = builder.build(files)
        except OSError as error:
            raise RunError(f"{run.index_dir}: {error.strerror or error}; finished shards are kept") from None
        stage.count_in = builder.count_in
        stage.count_out = sum(shard.garments for shard in done.shards)
        if builder.left_out:
            stage.fail("dropped", builder.left_out)
        if stage.count_in > stage.count_out + builder.left_out:
            stage.fail("no_visible_region", stage.count_in - stage.count_out - builder.left_out)
        stage.note(
            shards=len(done.shards),
            shards_built=builder.built,
            factory=done.factory,
            region_dim=done.region_dim,
            nprobe=done.nprobe,
        )
        if added:
            stage.note(added=added)
        # A sweep asks for its originals, when they are searched.
        if not done.exact and run.read().get("kind") != "sweep":
            stage.note(missed=audit_index(run.index_dir, done, settings))


def _last_manifest(folder: Path) -> Manifest | None:
    try:
        return Manifest.read(folder)
    except UserError:
        return None


def _check_model(run: RunDirectory, other: RunDirectory, tag: str) -> None:
    other_tag = other.read().get("model_tag", "")
    if other_tag != tag:
        raise UserError(
            f"{other.path}: its garments were made with {other_tag}, those of {run.path} with {tag}; "
            f"extract both with the same weights, or remove {run.index_dir} to go on without added runs"
        )


def _contents(
    run: RunDirectory,
    last: Manifest | None,
    former: Manifest | None,
    add: Sequence[Path],
    drop: Sequence[str],
) -> tuple[list[str], list[str]]:
    """Runs that are added and hashes of garments files that are dropped, after this command.

    Args:
        last: what the index is now; former: the same where it is of this model.
    """
    added = list(last.added) if last else []
    dropped = list(former.dropped) if former else []
    if last and last.dropped and not former:
        logger.warning(
            "%s: what was dropped from the index of other weights is in it again; see psnet index --list",
            run.index_dir,
        )
    shards = {shard.name: shard for shard in former.shards} if former else {}
    for name in drop:
        if name not in shards:
            known = f"; it has {', '.join(sorted(shards))}" if shards else ""
            raise UserError(f"{run.index_dir}: has no shard {name}{known}")
        dropped += [source.sha256 for source in shards[name].sources.values()]
    for path in add:
        other = RunDirectory.existing(path)
        other.require("extract")
        again = {File.of(shard).sha256 for shard in garment_shards(other)}
        dropped = [sha256 for sha256 in dropped if sha256 not in again]
        where = str(other.path.resolve())
        if other.path.resolve() != run.path.resolve() and where not in added:
            added.append(where)
    return added, sorted(set(dropped))


@dataclass(frozen=True)
class _Source:
    """A file of garments; ``garments`` counts those with something to see."""

    run: str
    path: Path
    file: File
    garments: int


class _Builder:
    def __init__(
        self,
        folder: Path,
        model_tag: str,
        settings: Settings,
        added: list[str],
        dropped: list[str],
        former: Manifest | None,
    ) -> None:
        self._folder = folder
        self._all_settings, self._settings = settings, settings.index
        self._former = former
        self._manifest = Manifest(model_tag, settings.index.factory, added=added, dropped=dropped)
        self.built = self.left_out = self.count_in = 0

    def build(self, files: Sequence[tuple[str, Path]]) -> Manifest:
        sources = self._sources(files)
        self._settle_template(sources)
        groups = self._groups(sources)
        ready = self._ready()
        entries: dict[int, Shard] = {}
        missing: list[tuple[int, str, list[_Source]]] = []
        for number, group in enumerate(groups):
            name = (
                f"shard-{inputs_digest(template_hash(self._manifest), *(one.file.sha256 for one in group))}"
            )
            if name in ready:
                entries[number] = ready[name]
            else:
                missing.append((number, name, group))
        with track(len(missing), "index", "shards") as progress:
            for number, shard in self._fill(missing):
                entries[number] = shard
                # A killed run goes on from here.
                self._commit(entries)
                progress.advance()
        self.built = len(missing)
        self._commit(entries)
        self._remove_what_is_not_named()
        return self._manifest

    def _commit(self, entries: dict[int, Shard]) -> None:
        self._manifest.shards = [entries[number] for number in sorted(entries)]
        self._manifest.write(self._folder)

    def _sources(self, files: Sequence[tuple[str, Path]]) -> list[_Source]:
        known = {
            (shard.run, name): file
            for shard in (self._former.shards if self._former else ())
            for name, file in shard.sources.items()
        }
        sources: list[_Source] = []
        seen: set[str] = set()
        for run, path in files:
            file = File.of(path, known.get((run, path.name)))
            # A sweep holds files of the scan that it was run against; each is indexed, and counts, once.
            if file.sha256 in seen:
                continue
            seen.add(file.sha256)
            self.count_in += garment_count(path)
            if file.sha256 in self._manifest.dropped:
                self.left_out += visible_count(path)
            else:
                sources.append(_Source(run, path, file, visible_count(path)))
        return sources

    def _settle_template(self, sources: Sequence[_Source]) -> None:
        """The former template where it still serves, else a new one."""
        manifest, former = self._manifest, self._former
        garments = sum(source.garments for source in sources)
        if not garments:
            return
        plan = plan_index(self._settings, garments, _feature_dim(sources))
        if (
            former
            and former.template
            and not wrong_file(self._folder / former.template, former.template_files)
        ):
            fits = former.trained_for / _STILL_FITS <= garments <= former.trained_for * _STILL_FITS
            wanted = inputs_digest(former.model_tag, self._settings.factory, str(plan.region_dim))
            as_asked = former.template == f"template-{wanted}-{former.trained_for}"
            if as_asked and (former.factory == plan.factory or (fits and self._settings.factory == "auto")):
                for name in ("factory", "region_dim", "trained_for", "template", "template_files"):
                    setattr(manifest, name, getattr(former, name))
        if not manifest.template:
            self._train(sources, plan, garments)
        template = read_template(self._folder / manifest.template, manifest.template_files)
        manifest.nprobe = template.nprobe(self._settings)

    def _train(self, sources: Sequence[_Source], plan: Plan, garments: int) -> None:
        manifest = self._manifest
        template = train_template(_sample(sources, plan.training, garments), plan)
        key = inputs_digest(manifest.model_tag, self._settings.factory, str(plan.region_dim))
        manifest.template = f"template-{key}-{garments}"
        target = self._folder / manifest.template
        suffixes = write_template(template, target)
        manifest.template_files = {s: File.of(target.with_name(target.name + s)) for s in suffixes}
        manifest.factory, manifest.trained_for = plan.factory, garments
        manifest.region_dim = 0 if template.reduction is None else template.reduction.shape[2]

    def _ready(self) -> dict[str, Shard]:
        """Shards that are there and whole."""
        former = self._former
        if former is None or former.template != self._manifest.template:
            return {}
        return {s.name: s for s in former.shards if mismatch(self._folder, self._manifest, s) is None}

    def _groups(self, sources: Sequence[_Source]) -> list[list[_Source]]:
        """Which files go into which shard: as before where nothing has changed, the rest filled up in order,
        those of each run by themselves."""
        by_hash = {source.file.sha256: source for source in sources}
        groups = []
        for shard in self._former.shards if self._former else ():
            group = [by_hash.get(source.sha256) for source in shard.sources.values()]
            # A shard that is less than half full takes part in the filling, or there would be one more each
            # night.
            if None not in group and shard.garments >= self._settings.shard_size / 2:
                groups.append([source for source in group if source is not None])
        kept = {source.file.sha256 for group in groups for source in group}
        room, run = 0, ""
        for source in sources:
            if source.file.sha256 in kept or not source.garments:
                continue
            kept.add(source.file.sha256)
            if source.garments > room or source.run != run:
                groups.append([])
                room, run = self._settings.shard_size, source.run
            groups[-1].append(source)
            room -= source.garments
        return groups

    def _fill(self, missing: Sequence[tuple[int, str, list[_Source]]]) -> Iterable[tuple[int, Shard]]:
        jobs = [(self._folder.resolve(), self._manifest, name, group) for _, name, group in missing]
        if len(jobs) <= 1:
            # A start of Ray costs more than one shard.
            for (number, _, _), job in zip(missing, jobs, strict=True):
                yield number, _fill_shard(*job)
            return
        init_ray(self._all_settings)
        import ray

        as_task: Any = ray.remote(num_cpus=1, max_retries=_TASK_RETRIES)
        fill = as_task(_fill_shard)
        running = {fill.remote(*job): number for (number, _, _), job in zip(missing, jobs, strict=True)}
        try:
            while running:
                done, _ = ray.wait(list(running), num_returns=1)
                yield running.pop(done[0]), ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, OSError | RunError | UserError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:200]
            raise RunError(f"filling the index stopped: {reason}; finished shards are kept") from error

    def _remove_what_is_not_named(self) -> None:
        manifest = self._manifest
        named = {MANIFEST, *(manifest.template + suffix for suffix in manifest.template_files)}
        named |= {shard.name + suffix for shard in manifest.shards for suffix in shard.files}
        for path in self._folder.iterdir():
            if path.name not in named:
                path.unlink()


def _sample(sources: Sequence[_Source], count: int, garments: int) -> np.ndarray:
    """Features of about ``count`` visible garments, drawn from all files alike: (n, 5, d) float16."""
    parts = []
    for source in sources:
        table = pq.read_table(source.path, columns=["features", "presence"])
        seen = unpack_presence(table["presence"]) == Presence.PRESENT
        visible = np.flatnonzero(seen.any(1))
        wanted = min(len(visible), -(-count * len(visible) // garments))
        # Seeded by the contents, so that the order of files does not show.
        rng = np.random.default_rng([_SEED, int(source.file.sha256[:8], 16)])
        rows = np.sort(rng.choice(visible, wanted, replace=False))
        parts.append(unpack_features(table["features"])[rows] * seen[rows, :, None])
    return np.concatenate(parts)


def _feature_dim(sources: Sequence[_Source]) -> int:
    return pq.read_schema(sources[0].path).field("features").type.byte_width // (2 * NUM_REGIONS)


def _fill_shard(folder: Path, manifest: Manifest, name: str, group: Sequence[_Source]) -> Shard:
    """The task: one shard from its garments files, committed."""
    target = folder / name
    write_vectors(target, [source.path for source in group])
    vectors = open_vectors(target)
    template = read_template(folder / manifest.template, manifest.template_files)
    suffixes: tuple[str, ...] = VECTOR_SUFFIXES
    batches = range(0, len(vectors), _ROWS_ADDED_AT_ONCE)
    if template.centroids is not None:
        parts = [
            template.reduce(side[at : at + _ROWS_ADDED_AT_ONCE]).astype(np.float16)
            for side in (vectors.features, vectors.mirrored)
            for at in batches
        ]
        write_lists(target, np.concatenate(parts), template.centroids)
        suffixes += region_lists.SUFFIXES
    else:
        for at in batches:
            template.whole_vectors.add(template.rows(vectors.features[at : at + _ROWS_ADDED_AT_ONCE]))
        write_faiss(template.whole_vectors, target.with_name(f"{name}.faiss"))
        suffixes += (".faiss",)
    return Shard(
        name=name,
        run=group[0].run,
        model_tag=manifest.model_tag,
        feature_dim=vectors.features.shape[2],
        template=template_hash(manifest),
        garments=len(vectors),
        sources={source.path.name: source.file for source in group},
        files={suffix: File.of(target.with_name(name + suffix)) for suffix in suffixes},
    )


def write_faiss(index: faiss.Index, target: Path) -> None:
    """``index`` as ``target``, whole or not at all."""
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        faiss.write_index(index, str(temporary))
        temporary.replace(target)
    except RuntimeError as error:
        raise RunError(f"{target}: cannot be written ({' '.join(str(error).split())[-200:]})") from None
    finally:
        temporary.unlink(missing_ok=True)
