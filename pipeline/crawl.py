"""The crawl stage: every image of the catalogue to local bytes, every item to one row with a status.

Distinct locations are fetched once, distinct contents are stored once. Results are committed in small chunk
files, so that a killed run loses at most the last chunk; the next run goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
import uuid
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.catalogue import catalogue_digest, unreadable_dates
from pipeline.errors import RunError
from pipeline.fetch import (
    Fetched,
    Fetcher,
    FetchError,
    host_of,
    is_retryable,
    is_unreachable,
    local_path,
    stored_path,
)
from pipeline.progress import track
from pipeline.rundir import RunDirectory, StageRecord, inputs_digest, write_atomically
from pipeline.schema import FETCH_SCHEMA, ITEM_SCHEMA
from pipeline.settings import CrawlSettings, Settings
from psnet.config import digest

# A chunk is committed when it is full or this old, whichever comes first: slow hosts must not delay it for
# hours.
_CHUNK_SECONDS = 10.0


def crawl(run: RunDirectory, catalogue: pa.Table, settings: Settings) -> None:
    """Fetch what is not fetched yet and write RUN/items/items.parquet (ITEM_SCHEMA), in the catalogue's
    order.

    A former result is taken over when the local file has the same size and modification time, or the stored
    copy of a remote one is still there. A former failure is tried again when the file is local, when a cap,
    the server or the way to ask it has changed in the settings, or when ``retry_failed`` is set and the
    failure is of the passing kind. O(items) memory, and O(workers x max_bytes) for bytes under way.

    Args:
        run: gets ``items/`` and, for remote images, ``images/``.
        catalogue: CATALOGUE_SCHEMA, from ``read_catalogue``.
        settings: the ``crawl`` section counts.

    Raises:
        RunError: an image or a result cannot be stored.
    """
    with run.lock():
        ledger = _Ledger(run.items_path.parent, settings.crawl)
        former = ledger.read()
        locations = list(dict.fromkeys(catalogue["location"].to_pylist()))
        images_dir = run.images_dir
        outcomes = {
            location: held
            for location in locations
            if location in former and (held := _held(former[location], images_dir, settings.crawl))
        }
        inputs = inputs_digest(
            catalogue_digest(catalogue),
            digest(settings.crawl, results_only=True),
            _state_of_files(locations),
            # The world outside has no digest: while something may be had now that could not be before, try.
            uuid.uuid4().hex
            if any(_is_remote(x) and x in former and x not in outcomes for x in locations)
            else "",
        )
        with run.stage("crawl", inputs, [run.items_path]) as stage:
            if stage.finished:
                return
            held_over = len(outcomes)
            _fetch_missing(locations, outcomes, ledger, run.images_dir, settings.crawl)
            fetched = _to_table([outcomes[location] for location in locations])
            items = _join(catalogue, fetched)
            _write(items, run.items_path)
            ledger.compact(fetched)
            _record(stage, items)
            stage.note(
                locations=len(locations), held_over=held_over, unreadable_dates=unreadable_dates(catalogue)
            )


def take_over_fetched(items: pa.Table, run: RunDirectory, settings: Settings) -> None:
    """Let the crawl of ``run`` know what earlier runs have read, unless it has a ledger of its own: files
    that have not changed since are not read again.

    Args:
        items: ITEM_SCHEMA, those with an image; their local copies are the locations to be crawled.
    """
    ledger = _Ledger(run.items_path.parent, settings.crawl)
    if ledger.exists():
        return
    location = pa.array([os.path.abspath(path) for path in items["image_path"].to_pylist()], pa.string())
    distinct = pc.unique(location)
    first = items.take(pc.index_in(distinct, value_set=location))
    changed = first["image_mtime_ns"].to_pylist()
    for row in np.flatnonzero(np.asarray(changed) == 0).tolist():
        # A stored copy of something remote is named by its contents, and nobody changes it.
        with contextlib.suppress(OSError):
            changed[row] = os.stat(distinct[row].as_py()).st_mtime_ns
    known = {"location": distinct, "image_path": distinct, "image_mtime_ns": changed}
    columns = [known[name] if name in known else first[name] for name in FETCH_SCHEMA.names]
    ledger.compact(pa.table(columns, schema=FETCH_SCHEMA))


def _fetch_missing(
    locations: list[str],
    outcomes: dict[str, Fetched],
    ledger: _Ledger,
    images_dir: Path,
    settings: CrawlSettings,
) -> None:
    todo = [location for location in locations if location not in outcomes]
    if not todo:
        return
    with contextlib.ExitStack() as stack:
        fetcher = stack.enter_context(Fetcher(images_dir, settings))
        fresh = stack.enter_context(contextlib.closing(_fetch_all(todo, fetcher, settings)))
        committed = stack.enter_context(contextlib.closing(ledger.committing(fresh)))
        progress = stack.enter_context(track(len(todo), "crawl", "images"))
        for row in committed:
            outcomes[row.location] = row
            progress.advance()


def _record(stage: StageRecord, items: pa.Table) -> None:
    stage.count_in = items.num_rows
    stage.count_out = pc.sum(pc.equal(items["status"], "ok")).as_py()
    for row in items["status"].value_counts().to_pylist():
        if row["values"] != "ok":
            stage.fail(row["values"], row["counts"])
    usable = items.filter(pc.equal(items["status"], "ok"))
    stage.note(distinct_images=pc.count_distinct(usable["image_sha256"]).as_py())
    # What later stages depend on: neither the wording of an error nor a file's date.
    stage.output_digest = catalogue_digest(
        usable.drop_columns(["status", "error", "image_bytes", "image_mtime_ns"])
    )


def _state_of_files(locations: list[str]) -> str:
    """Names size and modification time of all local images: the catalogue stays the same when a picture is
    replaced."""
    state = hashlib.sha256()
    for location in locations:
        with contextlib.suppress(FetchError, ValueError, OSError):
            path = local_path(location)
            if path is not None:
                now = os.stat(path)
                state.update(f"{location}\0{now.st_size}\0{now.st_mtime_ns}\0".encode())
    return state.hexdigest()


def _is_remote(location: str) -> bool:
    try:
        return local_path(location) is None
    except (FetchError, ValueError):
        return False


def _held(row: Fetched, images_dir: Path, settings: CrawlSettings) -> Fetched | None:
    """A former outcome if it says what a new fetch would, else None."""
    try:
        path = local_path(row.location)
    except (FetchError, ValueError):
        return None
    if row.status != "ok":
        return None if path is not None or (settings.retry_failed and is_retryable(row.status)) else row
    if path is None:  # the run directory may have moved since
        row = replace(row, image_path=str(stored_path(images_dir, row.image_sha256)))
    try:
        now = os.stat(row.image_path)
    except OSError:
        return None
    same = now.st_size == row.image_bytes and (path is None or now.st_mtime_ns == row.image_mtime_ns)
    return row if same else None


def _join(catalogue: pa.Table, fetched: pa.Table) -> pa.Table:
    index = pc.index_in(catalogue["location"], value_set=fetched["location"].combine_chunks())
    result = fetched.take(index)
    columns = [
        catalogue[name] if name in catalogue.column_names else result[name] for name in ITEM_SCHEMA.names
    ]
    return pa.table(columns, schema=ITEM_SCHEMA)


# --- scheduling


@dataclass
class _Host:
    name: str
    limit: int
    waiting: deque[str] = field(default_factory=deque)
    active: int = 0
    unanswered: int = 0  # locations in a row
    is_ready: bool = True  # stands in the queue of hosts


def _fetch_all(
    locations: list[str], fetcher: Fetcher, settings: CrawlSettings
) -> Generator[Fetched, None, None]:
    """Outcomes in the order they come in; at most ``workers`` at once and ``per_host_limit`` of one web host.

    A host that leaves ``host_failures`` locations in a row unanswered is given up for this run: a catalogue
    with a million images on a dead host must not wait for a million timeouts.
    """
    hosts: dict[str, _Host] = {}
    for location in locations:
        name = host_of(location)
        host = hosts.setdefault(name, _Host(name, settings.per_host_limit if name else settings.workers))
        host.waiting.append(location)
    ready = deque(hosts.values())  # hosts with something waiting and room for it, in turn
    running: dict[Future[Fetched], _Host] = {}
    pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="crawl")
    try:
        while ready or running:
            while ready and len(running) < settings.workers:
                host = ready.popleft()
                if host.waiting:
                    running[pool.submit(fetcher.fetch, host.waiting.popleft())] = host
                    host.active += 1
                host.is_ready = bool(host.waiting) and host.active < host.limit
                if host.is_ready:
                    ready.append(host)
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                host = running.pop(future)
                row = future.result()
                host.active -= 1
                host.unanswered = host.unanswered + 1 if host.name and is_unreachable(row.status) else 0
                yield row
                if host.unanswered >= settings.host_failures:
                    message = f"not tried: {host.unanswered} images in a row of {host.name} did not come"
                    while host.waiting:
                        yield Fetched(host.waiting.popleft(), "fetch_failed", message)
                elif host.waiting and not host.is_ready:
                    host.is_ready = True
                    ready.append(host)
    finally:
        # Not waited for: what is still under way is cancelled, or runs into its timeout.
        pool.shutdown(wait=False, cancel_futures=True)


# --- what is known of every location


class _Ledger:
    """Outcomes by location: one compact file, and the chunks of a run that has not ended yet."""

    def __init__(self, items_dir: Path, settings: CrawlSettings) -> None:
        self._compact = items_dir / "fetched.parquet"
        self._chunks = items_dir / "chunks"
        self._chunk_items = settings.chunk_items
        # Failures are judged by these; under others they say nothing.
        judged_by = ("max_bytes", "max_pixels", "respect_robots", "user_agent", "s3_endpoint_url")
        self._terms = {name.encode(): str(getattr(settings, name)).encode() for name in judged_by}

    def exists(self) -> bool:
        return self._compact.exists() or bool(self._chunk_files())

    def read(self) -> dict[str, Fetched]:
        former: dict[str, Fetched] = {}
        for path in (self._compact, *self._chunk_files()):
            if not path.exists():
                continue
            table = pq.read_table(path)
            metadata = table.schema.metadata or {}
            same_terms = all(metadata.get(key) == value for key, value in self._terms.items())
            for row in table.to_pylist():
                if same_terms or row["status"] == "ok":
                    former[row["location"]] = Fetched(**row)
        return former

    def committing(self, outcomes: Iterable[Fetched]) -> Generator[Fetched, None, None]:
        """Pass the outcomes on and commit them in chunks, the last one also when the run is broken off."""
        files = self._chunk_files()
        number = int(files[-1].stem) + 1 if files else 0
        pending: list[Fetched] = []
        started = time.monotonic()
        try:
            for row in outcomes:
                pending.append(row)
                if len(pending) >= self._chunk_items or time.monotonic() - started > _CHUNK_SECONDS:
                    self._commit(pending, number)
                    number += 1
                    pending = []
                    started = time.monotonic()
                yield row
        finally:
            if pending:
                self._commit(pending, number)

    def compact(self, fetched: pa.Table) -> None:
        _write(fetched.replace_schema_metadata(self._terms), self._compact)
        shutil.rmtree(self._chunks, ignore_errors=True)

    def _commit(self, rows: list[Fetched], number: int) -> None:
        _write(_to_table(rows).replace_schema_metadata(self._terms), self._chunks / f"{number:08d}.parquet")

    def _chunk_files(self) -> list[Path]:
        return sorted(self._chunks.glob("*.parquet"))


def _to_table(rows: list[Fetched]) -> pa.Table:
    return pa.table(
        {name: [getattr(row, name) for row in rows] for name in FETCH_SCHEMA.names}, schema=FETCH_SCHEMA
    )


def _write(table: pa.Table, path: Path) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    try:
        write_atomically(path, sink.getvalue().to_pybytes())
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror}); mend that and run again, what is fetched stays"
        ) from error
