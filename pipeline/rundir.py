"""The run directory: where a run's files lie, what each stage has done, and one driver at a time.

    RUN/run.json          the record: counts, failures, seconds, versions, digests
    RUN/items/            items.parquet (crawl)
    RUN/images/           fetched bytes by content (crawl)
    RUN/garments/         Parquet shards (extract)
    RUN/index/            FAISS shards and their manifest (index)
    RUN/match/            finished blocks of the pair search (match)
    RUN/pairs.parquet     the partners of every item (match)
    RUN/verify/           finished parts of the verification (verify)
    RUN/verified.parquet  which photographs of likely pairs can be laid upon each other (verify)
    RUN/suspects.parquet  and suspects.csv (judge)
    RUN/report/           index.html and images/ (report)

Every file appears under its final name only when it is whole, run.json included.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from pipeline.errors import RunError, UserError, is_disk_full
from pipeline.settings import Settings
from psnet.config import as_dict, digest

LAYOUT_VERSION = 1
"""Changes when a newer psnet could no longer read an older run directory."""

RECORD_FILE = "run.json"
"""By which a folder is known as a run directory."""

STAGES = ("crawl", "extract", "index", "match", "verify", "judge", "report")

# What else could explain that two runs differ.
_RECORDED_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pillow",
    "faiss-gpu",
    "ray",
    "pyarrow",
    "opencv-python-headless",
)


class StageRecord:
    """What a stage says of its work; entered into run.json when the stage ends.

    Attributes:
        finished: done before from the same inputs, and the outputs are there; nothing is left to do.
        count_in: how many things it was given, in the grain of its inputs.
        count_out: how many it gave on, in the grain of its outputs.
        output_digest: names the outputs, where the inputs' digest does not (an image changed on disk).
    """

    def __init__(self, finished: bool = False) -> None:
        self.finished = finished
        self.count_in: int | None = None
        self.count_out: int | None = None
        self.output_digest: str | None = None
        self._failed: Counter[str] = Counter()
        self._notes: dict[str, Any] = {}

    def fail(self, reason: str, count: int = 1) -> None:
        """``count`` more failed with ``reason``, a status code."""
        self._failed[reason] += count

    def note(self, **values: Any) -> None:
        """Further JSON values for the stage's record, e.g. ``precision="float32"``."""
        self._notes.update(values)

    def as_dict(self) -> dict[str, Any]:
        """The stage's part of run.json."""
        return {
            "in": self.count_in,
            "out": self.count_out,
            "failed": dict(sorted(self._failed.items())),
            **self._notes,
        }


class RunDirectory:
    """Paths and record of one run. Making the object touches nothing on disk."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """``path``: an existing run directory, or where a new one shall be.

        Raises:
            UserError: the path holds something else, or a run of another layout version.
        """
        self.path = Path(path)
        self._lock: IO[str] | None = None
        self.finished_before: list[str] = []
        """Stages that this object found done already, in order."""
        self._check()

    def __reduce__(self) -> tuple[type[RunDirectory], tuple[Path]]:
        # Travels to workers as its path; the lock stays with the driver.
        return RunDirectory, (self.path,)

    @classmethod
    def existing(cls, path: str | os.PathLike[str]) -> RunDirectory:
        """The run at ``path``.

        Raises:
            UserError: there is none.
        """
        run = cls(path)
        if not run.record_path.exists():
            what = (
                "is not a run directory (it has no run.json)"
                if run.path.exists()
                else "no such run directory"
            )
            raise UserError(f"{run.path}: {what}; start one with `psnet scan CATALOGUE --out {run.path}`")
        return run

    def _check(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: is a file, not a run directory; name another --out")
        record = self.read()
        if record:
            layout = record.get("layout")
            if layout != LAYOUT_VERSION:
                raise UserError(
                    f"{self.path}: is a run directory of layout {layout}, this psnet "
                    f"({_version('psnet')}) reads layout {LAYOUT_VERSION}; name another --out, or use the "
                    f"psnet that made it ({record.get('versions', {}).get('psnet', 'unknown')})"
                )
        elif self.path.is_dir() and any(entry.name != ".lock" for entry in self.path.iterdir()):
            raise UserError(f"{self.path}: is neither empty nor a run directory; name another --out")

    # --- paths

    @property
    def record_path(self) -> Path:
        """run.json."""
        return self.path / RECORD_FILE

    @property
    def items_path(self) -> Path:
        """One row per item of the catalogue (ITEM_SCHEMA)."""
        return self.path / "items" / "items.parquet"

    @property
    def queries_path(self) -> Path:
        """Identifiers of a sweep's originals (one column, item_id); a scan has none."""
        return self.path / "items" / "queries.parquet"

    @property
    def images_dir(self) -> Path:
        """Fetched bytes, <sha[:2]>/<sha>."""
        return self.path / "images"

    @property
    def garments_dir(self) -> Path:
        """Parquet shards (GARMENT_SCHEMA)."""
        return self.path / "garments"

    @property
    def index_dir(self) -> Path:
        """FAISS shards and manifest.json."""
        return self.path / "index"

    @property
    def match_dir(self) -> Path:
        """Finished blocks of the pair search."""
        return self.path / "match"

    @property
    def pairs_path(self) -> Path:
        """The partners of every item (PAIR_SCHEMA)."""
        return self.path / "pairs.parquet"

    @property
    def verify_dir(self) -> Path:
        """Finished parts of the verification."""
        return self.path / "verify"

    @property
    def verified_path(self) -> Path:
        """Likely pairs of garments, looked at again (VERIFIED_SCHEMA)."""
        return self.path / "verified.parquet"

    @property
    def suspects_path(self) -> Path:
        """Reported pairs (SUSPECT_SCHEMA)."""
        return self.path / "suspects.parquet"

    @property
    def suspects_csv_path(self) -> Path:
        """The same for people and spreadsheets."""
        return self.path / "suspects.csv"

    @property
    def report_dir(self) -> Path:
        """The page and its images."""
        return self.path / "report"

    @property
    def report_path(self) -> Path:
        """The page itself."""
        return self.report_dir / "index.html"

    # --- record

    def read(self) -> dict[str, Any]:
        """The contents of run.json; empty when there is none yet.

        Raises:
            UserError: run.json is damaged.
        """
        try:
            record = json.loads(self.record_path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (ValueError, OSError) as error:
            raise UserError(
                f"{self.record_path}: cannot be read ({' '.join(str(error).split())}); name another --out"
            ) from None
        if not isinstance(record, dict):
            raise UserError(f"{self.record_path}: is not the record of a run; name another --out")
        return record

    def update(self, **values: Any) -> None:
        """Set top-level values of run.json (model_tag, catalogue, input_digest, config_digest ...)."""
        with self.lock():
            self._write({**self._started(), **values})

    def stage_record(self, name: str) -> dict[str, Any]:
        """What run.json says of a stage; empty when it never ran."""
        found: dict[str, Any] = self.read().get("stages", {}).get(name, {})
        return found

    def require_current(self, name: str) -> str:
        """As ``require``; what the stage gave must also be of the input and settings that the record names.

        Raises:
            UserError: it has not been done, or a later start of the run has not come so far.
        """
        output_digest = self.require(name)
        if self.stage_record(name).get("stale"):
            raise UserError(
                f"{self.path}: what stage {name} gave is of an earlier input or of earlier settings; "
                "what began since has not come so far: let it finish, or start it again"
            )
        return output_digest

    def require(self, name: str) -> str:
        """The digest of what stage ``name`` gave, for the inputs' digest of the stages after it.

        Raises:
            UserError: the stage has not been done.
        """
        record = self.stage_record(name)
        if not record.get("done"):
            raise UserError(f"{self.path}: stage {name} is not done; run `psnet {_command(name)}` first")
        return str(record["output_digest"])

    @contextlib.contextmanager
    def stage(self, name: str, inputs_digest: str, outputs: Sequence[Path] = ()) -> Iterator[StageRecord]:
        """Do a stage, unless it is done: ``with run.stage("match", digest, [run.pairs_path]) as stage: ...``

        The body returns at once when ``stage.finished``. Else it works, and sets the counts. The record says
        done only when the body has ended without an error; seconds add up over interrupted attempts at the
        same inputs.

        Args:
            name: one of STAGES.
            inputs_digest: names everything that the result depends on, see ``inputs_digest``.
            outputs: without these the stage is not finished, whatever the record says.

        Raises:
            UserError: another driver works on this run.
        """
        with self.lock():
            before = self.stage_record(name)
            same = before.get("inputs_digest") == inputs_digest
            if same and before.get("done") and all(output.exists() for output in outputs):
                self.finished_before.append(name)
                if before.pop("stale", False):
                    self._enter(name, before)
                yield StageRecord(finished=True)
                return
            stage = StageRecord()
            spent = float(before.get("seconds", 0)) if same and not before.get("done") else 0.0
            entry: dict[str, Any] = {
                "done": False,
                "inputs_digest": inputs_digest,
                "seconds": spent,
                "started": _now(),
            }
            self._enter(name, entry, begins=True)
            start = time.monotonic()
            try:
                yield stage
            except BaseException as error:
                entry["seconds"] = round(spent + time.monotonic() - start, 3)
                # The disk may be full, which would hide the error behind another one.
                with contextlib.suppress(OSError):
                    self._enter(
                        name, {**entry, "error": f"{type(error).__name__}: {error}".splitlines()[0][:500]}
                    )
                raise
            planned = self.read().get("plan", {}).get("stages", {}).get(name)
            self._enter(
                name,
                {
                    **entry,
                    **stage.as_dict(),
                    **({} if planned is None else {"planned_seconds": planned["seconds"]}),
                    "seconds": round(spent + time.monotonic() - start, 3),
                    "output_digest": stage.output_digest or inputs_digest,
                    "finished": _now(),
                    "done": True,
                },
            )

    def begin(self, **values: Any) -> None:
        """``update`` for a new start: where an input or a setting is another one, what the stages gave is
        ``stale`` until each has been found finished, or has been done again."""
        with self.lock():
            record = self._started()
            changed = any(record.get(name) != values[name] for name in ("input_digest", "config_digest"))
            stages = record.get("stages", {})
            if changed:
                stages = _stale(stages, stages)
            self._write({**record, **values, **({"stages": stages} if stages else {})})

    def _enter(self, name: str, entry: dict[str, Any], begins: bool = False) -> None:
        record = self._started()
        stages = {**record.get("stages", {}), name: entry}
        # What is added to an index by hand changes no suspect; a pruned search asks for the index itself.
        if begins and name != "index":
            stages = _stale(stages, STAGES[STAGES.index(name) + 1 :])
        order = {stage: position for position, stage in enumerate(STAGES)}
        record["stages"] = {
            stage: stages[stage] for stage in sorted(stages, key=lambda s: order.get(s, len(order)))
        }
        self._write(record)

    def _started(self) -> dict[str, Any]:
        record = self.read()
        versions = {"python": platform.python_version()} | {
            name: _version(name) for name in ("psnet", *_RECORDED_PACKAGES)
        }
        return {"layout": LAYOUT_VERSION, "started": _now(), **record, "versions": versions}

    def _write(self, record: dict[str, Any]) -> None:
        write_atomically(self.record_path, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())

    # --- lock

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run: no other driver works on it meanwhile. Re-entrant for this object.

        The kernel drops the lock with the process that holds it: a killed driver blocks nobody.

        Raises:
            UserError: another driver holds it, or the folder cannot be made.
        """
        if self._lock is not None:
            yield
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 (closed below)
        except OSError as error:
            if is_disk_full(error):
                raise
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); name another --out"
            ) from None
        with file:
            self._take(file)
            self._lock = file
            try:
                yield
            finally:
                self._lock = None

    def _take(self, file: IO[str]) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"{self.path}: is being worked on by {holder}; wait for it or end it") from None
        except OSError as error:
            raise RunError(
                f"{self.path}: its file system has no locks ({error.strerror}); use another one"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()


def _absolute(path: str | os.PathLike[str]) -> str:
    """As a name that means the same from everywhere."""
    return str(path) if "://" in str(path) else os.path.abspath(path)


def _stale(stages: Mapping[str, dict[str, Any]], names: Collection[str]) -> dict[str, dict[str, Any]]:
    return {
        name: {**entry, "stale": True} if name in names else dict(entry) for name, entry in stages.items()
    }


def begin_run(
    out: str | os.PathLike[str],
    settings: Settings,
    catalogue: str | os.PathLike[str],
    input_digest: str,
    against: str | os.PathLike[str] | None = None,
) -> RunDirectory:
    """The run directory for a scan (or, with ``against``, a sweep), with what is to be done in its record.

    Raises:
        UserError: ``out`` is no run directory, or one of the other kind.
    """
    run = RunDirectory(out)
    kind = "scan" if against is None else "sweep"
    former = run.read().get("kind", kind)
    if former != kind:
        raise UserError(f"{run.path}: holds a {former}, not a {kind}; name another --out")
    run.begin(
        kind=kind,
        catalogue=_absolute(catalogue),
        **({} if against is None else {"against": _absolute(against)}),
        input_digest=input_digest,
        config_digest=digest(settings),
        config=as_dict(settings),
    )
    return run


def inputs_digest(*parts: str) -> str:
    """Twelve hexadecimal digits that name ``parts``: digests of earlier stages and of settings, in order."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def write_atomically(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``: a reader, or a crash, meets the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _command(stage: str) -> str:
    # `psnet match` searches, verifies and judges.
    return "match" if stage in ("verify", "judge") else stage


def _version(package: str) -> str:
    if package == "psnet":
        import psnet

        return psnet.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
