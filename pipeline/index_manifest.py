"""What an index is made of: its manifest, and whether the files are still those that it names."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.index_template import EXACT
from pipeline.rundir import RunDirectory, inputs_digest, write_atomically

_FORMAT = 2
MANIFEST = "manifest.json"
"""In index/; without it there is no index, whatever else lies there."""


@dataclass(frozen=True)
class File:
    """A file as it was when it was hashed. One of that size and time is taken for the same."""

    sha256: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path, known: File | None = None) -> File:
        """``known``: what was found before, which spares the reading of a file that has not been touched."""
        stat = path.stat()
        if known and (known.size, known.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return known
        with path.open("rb") as file:
            return cls(hashlib.file_digest(file, "sha256").hexdigest(), stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True)
class Shard:
    """``sources``: the garments files it was made from, by name; ``files``: its own, by suffix; ``run``: the
    run that was added, "" for this one; ``template``: hash of what it was filled from."""

    name: str
    run: str
    model_tag: str
    feature_dim: int
    template: str
    garments: int
    sources: dict[str, File]
    files: dict[str, File]


@dataclass
class Manifest:
    """``asked``: the factory of the settings; ``factory``: the one it came to; ``trained_for``: garments
    there were when the template was trained; ``added``: runs; ``dropped``: hashes of garments files that are
    left out."""

    model_tag: str
    asked: str
    factory: str = ""
    region_dim: int = 0
    nprobe: int = 0
    trained_for: int = 0
    template: str = ""
    template_files: dict[str, File] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """manifest.json of an index.

        Raises:
            UserError: there is none, a damaged one, or one of another version.
        """
        path = folder / MANIFEST
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            raise UserError(f"{folder}: holds no index; run `psnet index` first") from None
        except ValueError:
            raise UserError(f"{path}: is damaged; delete it and run `psnet index` again") from None
        if not isinstance(values, dict) or values.pop("format", None) != _FORMAT:
            raise UserError(f"{folder}: is an index of another psnet version; run `psnet index` again")
        try:
            values["template_files"] = _files(values["template_files"])
            values["shards"] = [
                Shard(**{**one, "sources": _files(one["sources"]), "files": _files(one["files"])})
                for one in values["shards"]
            ]
            return cls(**values)
        except (TypeError, KeyError, AttributeError):
            raise UserError(f"{path}: is damaged; delete it and run `psnet index` again") from None

    def write(self, folder: Path) -> None:
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=1)
        write_atomically(folder / MANIFEST, f"{text}\n".encode())

    @property
    def exact(self) -> bool:
        """Whether comparing everything gives what the index gives, and nothing is missed."""
        return self.factory in ("", EXACT) and not self.dropped


def _files(values: dict[str, dict[str, Any]]) -> dict[str, File]:
    return {name: File(**one) for name, one in values.items()}


def mismatch(folder: Path, manifest: Manifest, shard: Shard, thorough: bool = False) -> str | None:
    """What is wrong with a shard, None when it is the one of the manifest.

    Args:
        thorough: read all files again, also those whose size and time are the manifest's.
    """
    where = folder / shard.name
    if shard.model_tag != manifest.model_tag:
        return f"{where}: was made with {shard.model_tag}, the index with {manifest.model_tag}"
    if shard.template != template_hash(manifest):
        return f"{where}: was filled from another template than the index's"
    return wrong_file(where, shard.files, thorough)


def wrong_file(target: Path, files: dict[str, File], thorough: bool = False) -> str | None:
    """What is wrong with the files ``target`` + suffix, None when nothing is."""
    for suffix, known in files.items():
        path = target.with_name(target.name + suffix)
        try:
            same = File.of(path, None if thorough else known).sha256 == known.sha256
        except OSError as error:
            return (
                f"{path}: is missing" if isinstance(error, FileNotFoundError) else f"{path}: {error.strerror}"
            )
        if not same:
            return f"{path}: is not the file that the manifest names"
    return None


def template_hash(manifest: Manifest) -> str:
    """What a shard has to be filled from."""
    return inputs_digest(*(one.sha256 for _, one in sorted(manifest.template_files.items())))


def check_index(run: RunDirectory, thorough: bool = False) -> Manifest:
    """The manifest of a run's index, once everything it names is there and fits together.

    Raises:
        UserError: no index, of another model than the run's garments, or a file that is not the one named.
    """
    folder = run.index_dir
    manifest = Manifest.read(folder)
    run.require("index")
    tag = run.read().get("model_tag", "")
    if manifest.model_tag != tag:
        raise UserError(
            f"{folder}: was made with {manifest.model_tag}, the garments with {tag}; run `psnet index` again"
        )
    wrong = (
        wrong_file(folder / manifest.template, manifest.template_files, thorough) if manifest.shards else None
    )
    for shard in manifest.shards:
        wrong = wrong or mismatch(folder, manifest, shard, thorough)
    if wrong:
        raise UserError(f"{wrong}; run `psnet index` again")
    return manifest


def indexed_runs(run: RunDirectory, manifest: Manifest) -> list[RunDirectory]:
    """The runs whose garments the index holds, the run itself first.

    Raises:
        UserError: an added run is no longer there.
    """
    return [run, *(RunDirectory.existing(path) for path in manifest.added)]
