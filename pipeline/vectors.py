"""Garments as arrays on disk: what the pair search and the index compute with, memory-mapped.

    NAME.features     raw float16 (2, n, 5, d): all features, then all mirrored features
    NAME.parquet      one row per garment: image_sha256, garment_index, group, presence; committed last

Parquet stores garments compactly and has no random access, and its shards hold them in the order of
extraction. Here they stand in an order that the caller chooses, so that a slice is a block and a row number a
garment.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import RunError, is_disk_full
from pipeline.rundir import write_atomically
from pipeline.schema import (
    GARMENT_SCHEMA,
    NO_GARMENT_INDEX,
    pack_presence,
    unpack_features,
    unpack_presence,
)
from psnet.regions import GROUPS, NUM_REGIONS, Presence
from psnet.similarity import mirrored_presence

VECTOR_SUFFIXES = (".features", ".parquet")

_KEYS = ("image_sha256", "garment_index", "group", "presence")


@dataclass(frozen=True)
class Vectors:
    """n garments. ``n``-long arrays in one order.

    ``sha256``: strings; ``garment``: int16; ``group``: int64 rows of ``psnet.regions.GROUPS``, -1 = none of
    them;
    ``presence``: (n, 5) uint8; ``features``, ``mirrored``: (n, 5, d) float16, memory-mapped.
    """

    sha256: pa.Array
    garment: np.ndarray
    group: np.ndarray
    presence: np.ndarray
    features: np.ndarray
    mirrored: np.ndarray

    def __len__(self) -> int:
        return len(self.garment)


def write_vectors(target: Path, shards: Sequence[Path | Vectors], contents: pa.Array | None = None) -> None:
    """Write the garments of ``shards`` to ``target``.features and ``target``.parquet.

    Garments without a visible region are left out: nothing can be said about them.

    Args:
        shards: files of GARMENT_SCHEMA, or vectors that were written of some (an index has them at hand).
        contents: image hashes in the wanted order; images that are not in it are left out. None: all, by
        hash.

    Raises:
        RunError: the shards hold features of several lengths, or the disk is full.

    Memory O(keys + one shard).
    """
    keys = [_keys_of(shard) for shard in shards]
    rows, table = _order(keys, contents)
    count = table.num_rows
    dim = _feature_dim(shards)
    features = target.with_name(f"{target.name}.features")
    temporary = features.with_name(f".{features.name}.tmp")
    try:
        if count:
            _reserve(temporary, 2 * count * NUM_REGIONS * dim * np.dtype(np.float16).itemsize)
            mapped = np.memmap(temporary, np.float16, "r+", shape=(2, count, NUM_REGIONS, dim))
            for shard, row in zip(shards, rows, strict=True):
                wanted = row >= 0
                if not wanted.any():
                    continue
                for place, values in enumerate(_features_of(shard, wanted)):
                    mapped[place, row[wanted]] = values
            mapped.flush()
            del mapped
        else:
            temporary.write_bytes(b"")
        temporary.replace(features)
        table = table.replace_schema_metadata({"feature_dim": str(dim)})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        write_atomically(target.with_name(f"{target.name}.parquet"), sink.getvalue().to_pybytes())
    except OSError as error:
        raise RunError(f"{features}: cannot be written ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)


def _reserve(path: Path, size: int) -> None:
    """Make a file of ``size`` bytes whose room is there: to write through a map into room that is not ends
    the process, without an exception."""
    with path.open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if is_disk_full(error):
                raise
            file.truncate(size)  # a file system that cannot reserve


def open_vectors(target: Path) -> Vectors:
    """What ``write_vectors`` wrote; the features stay on disk until they are read."""
    table = pq.read_table(target.with_name(f"{target.name}.parquet"))
    dim = int(table.schema.metadata[b"feature_dim"])
    shape = (2, table.num_rows, NUM_REGIONS, dim)
    if table.num_rows:
        # Private copies of pages that nobody writes to: compiled code knows no arrays that are read-only.
        mapped: np.ndarray = np.asarray(
            np.memmap(target.with_name(f"{target.name}.features"), np.float16, "c", shape=shape)
        )
    else:
        mapped = np.empty(shape, np.float16)
    return Vectors(
        sha256=table["image_sha256"].combine_chunks(),
        garment=table["garment_index"].to_numpy(),
        group=group_codes(table["group"]),
        presence=np.array(unpack_presence(table["presence"])),
        features=mapped[0],
        mirrored=mapped[1],
    )


def first_garments(vectors: Vectors) -> np.ndarray:
    """Row of the first garment of each picture; those of one picture stand together."""
    ends = pc.run_end_encode(vectors.sha256).run_ends.to_numpy()
    return np.concatenate([[0], ends[:-1]]).astype(np.int64) if len(ends) else np.empty(0, np.int64)


def has_vectors(target: Path) -> bool:
    """Whether ``write_vectors`` has finished for ``target``."""
    return target.with_name(f"{target.name}.parquet").exists()


def remove_vectors(target: Path) -> None:
    """Undo ``write_vectors``: its files take as much room as the garments."""
    target.with_name(f"{target.name}.parquet").unlink(missing_ok=True)
    target.with_name(f"{target.name}.features").unlink(missing_ok=True)


def garment_count(shard: Path, contents: pa.Array | None = None) -> int:
    """Number of garments in a file of GARMENT_SCHEMA; of those pictures only, where ``contents`` are
    given."""
    table = pq.read_table(shard, columns=["image_sha256", "garment_index"])
    chosen = pc.not_equal(table["garment_index"], NO_GARMENT_INDEX)
    if contents is not None:
        chosen = pc.and_(chosen, pc.is_in(table["image_sha256"], value_set=contents))
    return pc.sum(chosen).as_py() or 0


def visible_count(shard: Path) -> int:
    """Number of garments of which a region can be seen, those that ``write_vectors`` takes."""
    presence = unpack_presence(pq.read_table(shard, columns=["presence"])["presence"])
    return int((presence == Presence.PRESENT).any(1).sum())


def group_codes(groups: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Group names to rows of ``psnet.regions.GROUPS``, -1 for anything else."""
    codes = pc.index_in(groups, value_set=pa.array(GROUPS))
    return np.asarray(pc.fill_null(codes, -1)).astype(np.int64)


def weights_of(groups: np.ndarray, table: np.ndarray) -> np.ndarray:
    """(n, 5) float32 of the groups' codes (``group_codes``); ``table``: (4, 5), as
    ``psnet.verdict.Calibration.weights``. A garment of no known group weighs all regions alike."""
    return np.concatenate([table, np.ones((1, NUM_REGIONS), np.float32)])[groups]


def _keys_of(shard: Path | Vectors) -> pa.Table:
    if isinstance(shard, Path):
        return pq.read_table(shard, columns=list(_KEYS))
    names = pa.array(["", *GROUPS]).take(pa.array(shard.group + 1))
    columns = [shard.sha256, pa.array(shard.garment, pa.int16()), names, pack_presence(shard.presence)]
    return pa.table(columns, names=list(_KEYS))


def _features_of(shard: Path | Vectors, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Features, then mirrored features of some rows, (n, 5, d) float16 each. A product over a block has no
    masks: what cannot be seen is zero."""
    if not isinstance(shard, Path):
        at = np.flatnonzero(rows)
        yield from (shard.features[at], shard.mirrored[at])
        return
    stored = pq.read_table(shard, columns=["features", "mirrored_features", "presence"])
    seen = unpack_presence(stored["presence"])[rows] == Presence.PRESENT
    for name, visible in (("features", seen), ("mirrored_features", mirrored_presence(seen))):
        yield unpack_features(stored[name])[rows] * visible[..., None]


def _order(keys: Iterable[pa.Table], contents: pa.Array | None) -> tuple[list[np.ndarray], pa.Table]:
    """Per shard the new row of each of its rows (-1: left out), and the key table in the new order."""
    parts = list(keys)
    # Where no image could be read there is no shard.
    none = pa.schema([GARMENT_SCHEMA.field(name) for name in _KEYS]).empty_table()
    table = pa.concat_tables(parts) if parts else none
    presence = unpack_presence(table["presence"])
    usable = (presence == Presence.PRESENT).any(1)
    if contents is None:
        contents = pc.unique(table["image_sha256"]).sort()
    rank = np.asarray(pc.fill_null(pc.index_in(table["image_sha256"], value_set=contents), -1)).astype(
        np.int64
    )
    usable &= rank >= 0
    garment = table["garment_index"].to_numpy()
    chosen = np.flatnonzero(usable)
    chosen = chosen[np.lexsort((garment[chosen], rank[chosen]))]
    row = np.full(table.num_rows, -1, np.int64)
    row[chosen] = np.arange(len(chosen))
    ordered = pa.table(
        {
            "image_sha256": table["image_sha256"].take(chosen).cast(pa.string()),
            "garment_index": pa.array(garment[chosen], pa.int16()),
            "group": table["group"].take(chosen).cast(pa.string()),
            "presence": pack_presence(presence[chosen]),
        }
    )
    ends = np.cumsum([part.num_rows for part in parts])
    return np.split(row, ends[:-1]) if parts else [], ordered


def _feature_dim(shards: Sequence[Path | Vectors]) -> int:
    """d of all shards; 0 without a shard."""
    widths = {
        pq.read_schema(shard).field("features").type.byte_width
        if isinstance(shard, Path)
        else 2 * NUM_REGIONS * shard.features.shape[2]
        for shard in shards
    }
    if len(widths) > 1:
        where = shards[0].parent if isinstance(shards[0], Path) else "the index"
        raise RunError(
            f"{where}: holds features of several lengths ({sorted(widths)} bytes); run extract again"
        )
    return (widths.pop() if widths else 0) // (2 * NUM_REGIONS)
