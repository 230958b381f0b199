"""Reading the catalogue: a CSV or Parquet file, or a folder of images.

Identifiers are text, always: "007", "12e456", "NA" and "null" mean themselves.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Generator, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from pipeline import s3
from pipeline.errors import RunError, UserError
from pipeline.rundir import RECORD_FILE
from pipeline.schema import CATALOGUE_SCHEMA
from psnet.image import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)

REQUIRED = ("item_id", "image", "seller_id")
KNOWN = tuple(name for name in CATALOGUE_SCHEMA.names if name not in ("extra", "location"))

UNREADABLE_DATES = b"unreadable_dates"
"""Key in the table's schema metadata: how many ``listed_at`` values were no ISO dates, as decimal text."""

# Rows that are Python objects at once; the rest of a large file is in Arrow's compact form.
_BATCH_ROWS = 50_000

# What people pass by mistake, by the first bytes of the file.
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook; save it as CSV (UTF-8)"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook; save it as CSV (UTF-8)"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"(\xb5/\xfd", "compressed with zstd; unpack it first"),
    (b"\xff\xfe", "UTF-16 text; save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text; save it as UTF-8"),
    (b"\xff\xd8\xff", "a picture, not a catalogue; pass its folder, or a CSV file that lists it"),
    (b"\x89PNG", "a picture, not a catalogue; pass its folder, or a CSV file that lists it"),
)


def read_catalogue(path: str | os.PathLike[str], s3_endpoint_url: str | None = None) -> pa.Table:
    """Read a catalogue into CATALOGUE_SCHEMA, in the catalogue's order.

    Args:
        path: a CSV file (UTF-8, comma, header line), a Parquet file, a folder that is searched for images
            (links to folders are not followed, run directories are left out; ``item_id`` is the relative path
            without its suffix), or s3:// of a file, whose credentials come from the environment.
        s3_endpoint_url: where s3:// is served; None: as the environment says.

    Relative image paths are resolved against the catalogue's own folder. Unknown columns end in ``extra``. A
    ``listed_at`` that is no ISO date counts as missing: it is emptied, kept in ``extra``, counted in the
    schema's metadata (``UNREADABLE_DATES``) and warned of once. O(rows) memory: the table in Arrow's form,
    and a set of the identifiers while reading.

    Raises:
        UserError: missing or empty file, no rows, wrong or repeated columns, blank or duplicate ``item_id``,
            not UTF-8, a row with too many or too few fields, or no catalogue at all.
        RunError: the store of an s3:// catalogue does not answer, or is out of order.
    """
    name = os.fspath(path)
    if name.startswith("s3://"):
        return _read_file(name, io.BytesIO(_download(name, s3_endpoint_url)), base=name.rsplit("/", 1)[0])
    if "://" in name:
        raise UserError(f"{name}: a catalogue is read from a local path or s3://; download it first")
    try:
        if Path(name).is_dir():
            return _read_folder(Path(name))
        with open(name, "rb") as file:
            return _read_file(name, file, base=str(Path(name).absolute().parent))
    except FileNotFoundError:
        raise UserError(f"{name}: no such catalogue{_similar_file(Path(name))}") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from error


def catalogue_digest(table: pa.Table) -> str:
    """SHA-256, hexadecimal, of names and values of all columns; the same whatever the table's chunks."""
    digest = hashlib.sha256()
    for name in table.column_names:
        column = table[name].cast(pa.large_string())
        digest.update(f"{name}\0{len(column)}\0".encode())
        for chunk in column.chunks:
            digest.update(pc.binary_length(chunk).to_numpy(zero_copy_only=False).astype("<i8").tobytes())
        for chunk in column.chunks:
            if not len(chunk):
                continue
            offsets, data = chunk.buffers()[1:3]
            ends = memoryview(offsets).cast("q")
            if data is not None:
                digest.update(memoryview(data)[ends[chunk.offset] : ends[chunk.offset + len(chunk)]])
    return digest.hexdigest()


def unreadable_dates(table: pa.Table) -> int:
    """How many ``listed_at`` values of a table from ``read_catalogue`` were no ISO dates."""
    return int((table.schema.metadata or {}).get(UNREADABLE_DATES, b"0"))


# --- files


def _read_file(name: str, file: BinaryIO, base: str) -> pa.Table:
    head = file.read(4096)
    if not head.strip():
        raise UserError(
            f"{name}: the catalogue is empty; it needs a header line with {', '.join(REQUIRED)} and a row"
        )
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            raise UserError(f"{name}: is {what}")
    file.seek(0)
    if head.startswith(b"PAR1"):
        with contextlib.closing(_parquet_batches(name, file)) as batches:
            return _build(name, batches, base, "row")
    if name.lower().endswith((".parquet", ".pq")):
        raise UserError(f"{name}: is not a Parquet file, whatever its name says")
    if b"\0" in head:
        raise UserError(
            f"{name}: is a binary file; a catalogue is CSV (UTF-8), Parquet or a folder of images"
        )
    with contextlib.closing(_csv_batches(name, file)) as batches:
        return _build(name, batches, base, "line")


# One batch: column names, rows of text, and each row's place in the file (line or row, from 1).
_Batch = tuple[list[str], list[Sequence[str]], list[int]]


def _csv_batches(name: str, file: BinaryIO) -> Generator[_Batch, None, None]:
    # newline="" leaves line ends to the csv module, so that quoted ones survive.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    reader = csv.reader(text, strict=True)
    try:
        header = [column.strip() for column in next(reader)]
        _check_columns(name, header)
        rows: list[Sequence[str]] = []
        places: list[int] = []
        line = reader.line_num + 1
        for row in reader:
            if len(row) != len(header) and row:
                raise UserError(
                    f"{name}, line {line}: {len(row)} fields, but the header has {len(header)}; "
                    "quote values that hold a comma"
                )
            if row:  # the csv module gives [] for a blank line
                rows.append(row)
                places.append(line)
            line = reader.line_num + 1
            if len(rows) == _BATCH_ROWS:
                yield header, rows, places
                rows, places = [], []
        yield header, rows, places
    except UnicodeDecodeError:
        raise UserError(
            f"{name}, line {_undecodable_line(file)}: is not UTF-8; save the file as UTF-8"
        ) from None
    except csv.Error as error:
        raise UserError(
            f"{name}, line {reader.line_num}: is not valid CSV ({error}); look for a lone quote"
        ) from None
    finally:
        text.detach()  # the file is its opener's to close


def _undecodable_line(file: BinaryIO) -> int:
    file.seek(0)
    for number, line in enumerate(file, 1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            return number
    return 1


def _parquet_batches(name: str, file: BinaryIO) -> Generator[_Batch, None, None]:
    try:
        source = pq.ParquetFile(file)
        header = source.schema_arrow.names
        _check_columns(name, header)
        for column in ("item_id", "seller_id"):
            type_ = source.schema_arrow.field(column).type
            if pa.types.is_floating(type_) or pa.types.is_decimal(type_):
                raise UserError(
                    f"{name}: column {column} holds numbers ({type_}); identifiers are text, store them so"
                )
        first = 1
        for batch in source.iter_batches(_BATCH_ROWS):
            columns = [_as_text(column) for column in batch.columns]
            yield header, list(zip(*columns, strict=True)), list(range(first, first + batch.num_rows))
            first += batch.num_rows
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(
            f"{name}: is damaged or no Parquet file ({' '.join(str(error).split())[:200]})"
        ) from error


def _as_text(column: pa.Array) -> list[str]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_nested(column.type):
        return ["" if value is None else json.dumps(value, default=str) for value in column.to_pylist()]
    return pc.fill_null(column.cast(pa.string()), "").to_pylist()


def _check_columns(name: str, header: list[str]) -> None:
    missing = [column for column in REQUIRED if column not in header]
    if len(header) == 1 and missing:
        for separator, word in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if separator in header[0]:
                raise UserError(f"{name}: the columns are separated by {word}; save the file with commas")
    if missing:
        hints = []
        unknown = {column.lower(): column for column in header if column not in KNOWN}
        for column in missing:
            close = difflib.get_close_matches(column, unknown, n=1, cutoff=0.6)
            hints.append(f"{column} (is {unknown[close[0]]!r} meant?)" if close else column)
        there = ", ".join(header[:12]) + (", …" if len(header) > 12 else "")
        raise UserError(
            f"{name}: missing column{'s'[: len(missing) > 1]} {', '.join(hints)}; there are: {there}"
        )
    repeated = next((column for column in header if header.count(column) > 1), None)
    if repeated is not None:
        raise UserError(f"{name}: the header names column {repeated!r} more than once")


def _build(name: str, batches: Iterable[_Batch], base: str, place_word: str) -> pa.Table:
    seen: dict[str, int] = {}
    duplicates: list[str] = []
    duplicate_count = 0
    tables: list[pa.Table] = []
    bad_dates = 0
    for header, rows, places in batches:
        position = {column: header.index(column) for column in KNOWN if column in header}
        unknown = [(index, column) for index, column in enumerate(header) if column not in KNOWN]
        columns: dict[str, list[str]] = {column: [] for column in CATALOGUE_SCHEMA.names}
        for row, place in zip(rows, places, strict=True):
            item_id = row[position["item_id"]]
            if not item_id.strip():
                raise UserError(f"{name}, {place_word} {place}: item_id is blank; every item needs one")
            former = seen.setdefault(item_id, place)
            if former != place:
                duplicate_count += 1
                if len(duplicates) < 3:
                    duplicates.append(f"{item_id!r} ({place_word}s {former} and {place})")
            extra = {column: row[index] for index, column in unknown}
            for column in KNOWN:
                columns[column].append(row[position[column]] if column in position else "")
            stated = columns["listed_at"][-1]
            columns["listed_at"][-1] = _iso_date(stated)
            if stated.strip() and not columns["listed_at"][-1]:
                bad_dates += 1
                extra["listed_at"] = stated
                if bad_dates == 1:
                    logger.warning(
                        "%s, %s %d: listed_at %r is no ISO date (YYYY-MM-DD) and counts as missing",
                        name, place_word, place, stated,
                    )  # fmt: skip
            columns["extra"].append(json.dumps(extra, ensure_ascii=False) if extra else "")
            columns["location"].append(_resolve(columns["image"][-1], base))
        tables.append(pa.table(columns, schema=CATALOGUE_SCHEMA))
    if duplicates:
        more = f" and {duplicate_count - len(duplicates)} more" if duplicate_count > len(duplicates) else ""
        raise UserError(f"{name}: duplicate item_id {', '.join(duplicates)}{more}; every item needs its own")
    table = pa.concat_tables(tables)
    if not table.num_rows:
        raise UserError(f"{name}: the catalogue has a header but no rows")
    if bad_dates > 1:
        logger.warning("%s: %d listed_at values are no ISO dates and count as missing", name, bad_dates)
    return table.replace_schema_metadata({UNREADABLE_DATES: str(bad_dates).encode()})


def _iso_date(text: str) -> str:
    """YYYY-MM-DD of an ISO date or date and time, that of Greenwich where it names its zone; "" for anything
    else."""
    try:
        stated = datetime.fromisoformat(text.strip())
        return (stated if stated.tzinfo is None else stated.astimezone(UTC)).date().isoformat()
    except (ValueError, OverflowError):
        return ""


def _resolve(image: str, base: str) -> str:
    image = image.strip()
    if not image or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", image):
        return image
    if base.startswith("s3://") and not image.startswith("/"):
        return _resolve_key(image, base)
    # os.path keeps "..", which a linked folder needs; an absolute path wins over the base.
    return os.path.join(base, image)


def _resolve_key(image: str, base: str) -> str:
    """For a store, "." and ".." are letters like others: what a path means by them is worked out here."""
    bucket, _, folder = base.removeprefix("s3://").partition("/")
    parts = folder.split("/") if folder else []
    for part in image.split("/"):
        if part == "..":
            del parts[-1:]  # no way leads out of the bucket (RFC 3986, 5.2.4)
        elif part != ".":
            parts.append(part)
    return f"s3://{'/'.join([bucket, *parts])}"


# --- folders and object storage


def _read_folder(folder: Path) -> pa.Table:
    found: list[str] = []
    if (folder / RECORD_FILE).is_file():
        raise UserError(
            f"{folder}: is a run directory; name the photographs' folder, and an --out that is another one"
        )
    for parent, folders, files in os.walk(folder):
        if RECORD_FILE in files:  # a run directory: its pictures are copies of ours
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            os.path.relpath(os.path.join(parent, name), folder)
            for name in files
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
    if not found:
        raise UserError(f"{folder}: no images in this folder (looked for {', '.join(IMAGE_SUFFIXES)})")
    found.sort()
    for name in found:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{folder}: the file name {os.fsencode(name)!r} is not UTF-8; rename it"
            ) from None
    stems = [os.path.splitext(name)[0] for name in found]
    taken: dict[str, int] = {}
    for stem in stems:
        taken[stem] = taken.get(stem, 0) + 1
    # shirt.jpg beside shirt.png: both keep their suffix.
    rows: list[Sequence[str]] = [
        (stem if taken[stem] == 1 else name, name, "") for stem, name in zip(stems, found, strict=True)
    ]
    batch = (list(REQUIRED), rows, list(range(1, len(rows) + 1)))
    return _build(str(folder), [batch], str(folder.absolute()), "file")


def _download(url: str, endpoint_url: str | None) -> bytes:
    try:
        bucket, key = s3.split_url(url)
        return s3.client(endpoint_url=endpoint_url).get_object(Bucket=bucket, Key=key)["Body"].read()
    except ValueError as error:
        raise UserError(f"{error}") from None
    except (ClientError, BotoCoreError) as error:
        # A store that is out of order or out of reach may answer the next time.
        answer = error.response["ResponseMetadata"] if isinstance(error, ClientError) else {}
        refused = 400 <= answer.get("HTTPStatusCode", 500) < 500
        keyless = isinstance(error, NoCredentialsError | PartialCredentialsError)
        kind = UserError if refused or keyless else RunError
        raise kind(f"{url}: cannot be read ({' '.join(str(error).split())})") from error


def _similar_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; the folder {path.parent} does not exist either"
    names = [entry.name for entry in path.parent.iterdir()]
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; is {path.parent / close[0]} meant?" if close else ""
