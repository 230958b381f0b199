"""The data flow: a whole catalogue against itself, or a brand's originals against a catalogue."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.calibration import load_calibration
from pipeline.catalogue import catalogue_digest, read_catalogue
from pipeline.crawl import crawl, take_over_fetched
from pipeline.dismissed import read_dismissed
from pipeline.errors import UserError
from pipeline.extract import check_weights, extract
from pipeline.index import build_index
from pipeline.index_manifest import MANIFEST, Manifest, indexed_runs
from pipeline.index_template import check_factory
from pipeline.judge import judge
from pipeline.match import match
from pipeline.report import report
from pipeline.rundir import RECORD_FILE, RunDirectory, begin_run
from pipeline.schema import CATALOGUE_SCHEMA
from pipeline.settings import Settings
from pipeline.verify import verify

AnyPath = str | os.PathLike[str]


def check_settings(settings: Settings) -> None:
    """What a late stage would stumble over, before the first ones spend a night.

    Raises:
        UserError: weights, a list of dismissed pairs or an index factory that cannot be used.
    """
    check_weights(settings.extract)
    load_calibration(settings)
    if settings.judge.dismissed:
        read_dismissed(Path(settings.judge.dismissed))
    check_factory(settings.index.factory)


def scan(catalogue: AnyPath, out: AnyPath, settings: Settings) -> RunDirectory:
    """Every item of ``catalogue`` against every other. A run directory that exists is continued.

    Raises:
        UserError: something wrong with the catalogue, the run directory or the settings.
        RunError: a stage failed; what is finished is kept.
    """
    check_settings(settings)
    items = read_catalogue(catalogue, settings.crawl.s3_endpoint_url)
    run = begin_run(out, settings, catalogue, catalogue_digest(items))
    with run.lock():
        crawl(run, items, settings)
        _screen(run, settings)
    return run


def sweep(originals: AnyPath, against: AnyPath, out: AnyPath, settings: Settings) -> RunDirectory:
    """The items of ``originals`` against those of ``against``, which are not compared with each other.

    ``against`` is a catalogue, or the run directory of a scan: then its images are not fetched again, and its
    garments are taken over where model and settings are the same. An item that stands on both sides counts as
    an original.

    Raises:
        UserError: see ``scan``; or both sides have different items under one item_id.
        RunError: see ``scan``.
    """
    check_settings(settings)
    queries = read_catalogue(originals, settings.crawl.s3_endpoint_url)
    earlier = _earlier_run(against)
    sources = [] if earlier is None else _with_added(earlier)
    others = _all_items(sources) if sources else read_catalogue(against, settings.crawl.s3_endpoint_url)
    items = _joined(queries, others, str(originals), str(against))
    run = begin_run(out, settings, originals, catalogue_digest(items), against)
    with run.lock():
        run.queries_path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(queries.select(["item_id"]), run.queries_path)
        for source in sources:
            take_over(source, run)
        if sources:
            take_over_fetched(pa.concat_tables([_items(source) for source in sources]), run, settings)
        crawl(run, items, settings)
        _screen(run, settings)
    return run


def _screen(run: RunDirectory, settings: Settings) -> None:
    extract(run, settings)
    build_index(run, settings)
    match(run, settings)
    verify(run, settings)
    judge(run, settings)
    report(run, settings)


def _earlier_run(path: AnyPath) -> RunDirectory | None:
    """The scan at ``path``, None when it is a catalogue."""
    if not (Path(path) / RECORD_FILE).exists():
        return None
    run = RunDirectory.existing(path)
    if run.read().get("kind") == "sweep":
        raise UserError(f"{run.path}: is a sweep; name the scan or the catalogue it was run against")
    run.require("extract")
    return run


def _with_added(run: RunDirectory) -> list[RunDirectory]:
    """The scan and the runs whose garments were added to its index."""
    return indexed_runs(run, Manifest.read(run.index_dir)) if (run.index_dir / MANIFEST).exists() else [run]


def _all_items(runs: Sequence[RunDirectory]) -> pa.Table:
    """The items of all runs; one that several runs know counts as the first one's."""
    items = _fetched_items(runs[0])
    for run in runs[1:]:
        items = _joined(items, _fetched_items(run), str(runs[0].path), str(run.path))
    return items


def _items(run: RunDirectory) -> pa.Table:
    """The items of ``run`` whose image is at hand, ITEM_SCHEMA."""
    items = pq.read_table(run.items_path)
    return items.filter(pc.equal(items["status"], "ok"))


def _fetched_items(run: RunDirectory) -> pa.Table:
    """The same as a catalogue of local files."""
    items = _items(run)
    locations = pa.array([os.path.abspath(path) for path in items["image_path"].to_pylist()], pa.string())
    columns = [items[name] if name in items.column_names else locations for name in CATALOGUE_SCHEMA.names]
    return pa.table(columns, schema=CATALOGUE_SCHEMA)


def _joined(queries: pa.Table, others: pa.Table, name: str, other_name: str) -> pa.Table:
    """``queries``, and of ``others`` those that they do not hold.

    Raises:
        UserError: two different items have one item_id: one of them would not be screened.
    """
    place = pc.index_in(others["item_id"], value_set=queries["item_id"].combine_chunks())
    known = pc.is_valid(place)
    again = others.filter(known)
    pairs = zip(again.to_pylist(), queries.take(pc.drop_null(place)).to_pylist(), strict=True)
    different = [one["item_id"] for one, other in pairs if not _is_same_item(one, other)]
    if different:
        more = f" and {len(different) - 3:,} more" if len(different) > 3 else ""
        raise UserError(
            f"{name} and {other_name}: have different items under one item_id "
            f"({', '.join(map(repr, different[:3]))}{more}: neither seller_id nor image agree); "
            "rename those of one side, e.g. by a prefix"
        )
    plain = [table.replace_schema_metadata(None) for table in (queries, others.filter(pc.invert(known)))]
    return pa.concat_tables(plain)


def _is_same_item(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether rows of one item_id mean one item: of one seller, or with one picture."""
    if one["seller_id"] and one["seller_id"] == other["seller_id"]:
        return True
    return bool(_places(one) & _places(other))


def _places(item: Mapping[str, str]) -> set[str]:
    """Where its picture lies; of an earlier run's also where it was fetched from."""
    location, image = item["location"], item["image"].strip()
    fetched_from = {image} if "://" in image else set()
    return fetched_from | {location if "://" in location else os.path.realpath(location)}


def take_over(earlier: RunDirectory, run: RunDirectory) -> None:
    """Link the shards of ``earlier``; their names say model and settings, so extract uses what fits. Those of
    its index as well, unless the run has one of its own: index fills shards for what is new only."""
    _link(earlier.garments_dir.glob("*.parquet"), run.garments_dir)
    if not (run.index_dir / MANIFEST).exists():
        _link((path for path in earlier.index_dir.glob("[!.]*") if path.name != MANIFEST), run.index_dir)
        _link(earlier.index_dir.glob(MANIFEST), run.index_dir)


def _link(files: Iterable[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        target = folder / file.name
        if target.exists():
            continue
        try:
            os.link(file, target)
        except OSError:  # another file system, or one without links
            temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            shutil.copy2(file, temporary)  # the time too: it tells that the file has not been touched
            temporary.replace(target)
