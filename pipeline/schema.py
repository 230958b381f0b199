"""The Arrow schema of each grain: items, garments, pairs, suspects.

Conventions, stated once:

- Boxes are xyxy (left, top, right, bottom) in pixels of the upright (EXIF applied) original image, float32.
- Pictures are RGB uint8 HWC; they are never stored in a table.
- A region axis follows ``psnet.regions.REGIONS``: collar, left_sleeve, right_sleeve, chest, waist.
- Features are float16 (R, d), R = 5 regions, unit L2 norm where the region is present and zero elsewhere,
  stored as fixed-size binary, row-major, little endian: lists of float16 are ten times slower in Parquet.
- A higher score always means more alike.
- Identifiers are text, "" where the catalogue says nothing; numbers that do not exist are null.
- A row that failed stays a row: ``status`` holds a code, ``error`` one line for people.
- Inside a grain columns are only ever added, at the end.

Every field's metadata holds ``description``, and ``unit`` and ``shape`` where they say something; they are
written into the Parquet files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from psnet.regions import NUM_REGIONS, REGIONS
from psnet.warp import NODES

FEATURE_DIM = 256
"""d, the length of one region's feature in the shipped models."""

COS_COLUMNS: tuple[str, ...] = tuple(f"cos_{region}" for region in REGIONS)
STATE_COLUMNS: tuple[str, ...] = tuple(f"state_{region}" for region in REGIONS)
DISTINCTIVENESS_COLUMNS: tuple[str, ...] = tuple(f"distinctiveness_{region}" for region in REGIONS)

NO_GARMENT_INDEX = -1
"""``garment_index`` of the one row of an image without a garment."""


def _field(
    name: str,
    type_: pa.DataType,
    description: str,
    *,
    unit: str = "",
    shape: str = "",
    nullable: bool = False,
) -> pa.Field:
    metadata = {"description": description, "unit": unit, "shape": shape}
    return pa.field(
        name, type_, nullable=nullable, metadata={key: text for key, text in metadata.items() if text}
    )


def _text(name: str, description: str) -> pa.Field:
    return _field(name, pa.string(), description)


_CATALOGUE_FIELDS = (
    _text("item_id", "the catalogue's identifier, unique, verbatim"),
    _text("image", "where the catalogue says the image is, verbatim"),
    _text("seller_id", 'who sells it; "" = unknown'),
    _text("brand", "brand as the catalogue writes it"),
    _text("category", "category as the catalogue writes it; not the model's"),
    _text("title", "title as the catalogue writes it"),
    _text("listed_at", 'day the item was first offered, ISO 8601 (YYYY-MM-DD); "" = unknown'),
    _text("rights_holder", 'who holds the right in the design; "" = not stated'),
    _text("licensed_from", "'|'-separated seller_id, brand or rights_holder names this seller may copy"),
    _text("url", "page of the offer"),
)

_EXTRA = _text(
    "extra", 'the catalogue\'s unknown columns as one JSON object of strings; "" when there are none'
)

CATALOGUE_SCHEMA: pa.Schema = pa.schema(
    [
        *_CATALOGUE_FIELDS,
        _EXTRA,
        _text(
            "location", 'image, resolved: an absolute path or a URL; "" where the catalogue names no image'
        ),
    ]
)
"""One row per item as ``pipeline.catalogue.read_catalogue`` gives it, in the catalogue's order."""

_FETCH_FIELDS = (
    _text(
        "status",
        "ok; or missing_file, empty_file, not_an_image, truncated_image, too_many_bytes, too_many_pixels, "
        "timeout, http_<number>, robots_disallowed, bad_location, fetch_failed",
    ),
    _text("error", 'what went wrong, one line; "" when ok'),
    _text("image_path", 'local path of the image\'s bytes; "" unless ok'),
    _text("image_sha256", 'SHA-256 of the image\'s bytes, hexadecimal; "" unless ok'),
    _field("image_bytes", pa.int64(), "length of the image file; 0 unless ok", unit="byte"),
)
_MTIME = _field(
    "image_mtime_ns",
    pa.int64(),
    "modification time of a local image, by which a later run knows it unchanged; 0 = fetched",
    unit="ns since 1970-01-01 UTC",
)

FETCH_SCHEMA: pa.Schema = pa.schema(
    [_text("location", "absolute path or URL, unique"), *_FETCH_FIELDS, _MTIME]
)
"""What came of one distinct location (RUN/items/fetched.parquet and RUN/items/chunks/\\*.parquet)."""

ITEM_SCHEMA: pa.Schema = pa.schema([*_CATALOGUE_FIELDS, *_FETCH_FIELDS, _EXTRA, _MTIME])
"""One row per item of the catalogue (RUN/items/items.parquet), in the catalogue's order."""


def garment_schema(feature_dim: int = FEATURE_DIM) -> pa.Schema:
    """One row per garment per distinct image content (RUN/garments/\\*.parquet).

    The key is (image_sha256, garment_index). An image without a garment, or one that could not be read, has
    one row with ``garment_index`` -1, its status, and null in every column from ``box`` to
    ``mirrored_features``, and in ``attributes``.

    Args:
        feature_dim: d, length of one region's feature.
    """
    features = pa.binary(NUM_REGIONS * feature_dim * 2)
    shape = f"({NUM_REGIONS}, {feature_dim}) float16"
    return pa.schema(
        [
            _text("image_sha256", "SHA-256 of the image's bytes, hexadecimal"),
            _field("garment_index", pa.int16(), "0 = highest detection score of its image; -1 = no garment"),
            _text("status", "ok, no_garment, or the code of psnet.image.ImageError"),
            _text("error", 'what went wrong, one line; "" when ok'),
            _field("image_width", pa.int32(), "width of the upright original; 0 = unreadable", unit="px"),
            _field("image_height", pa.int32(), "height of the upright original; 0 = unreadable", unit="px"),
            _field(
                "box", pa.list_(pa.float32(), 4), "the garment, xyxy", unit="px", shape="(4,)", nullable=True
            ),
            _field(
                "detection_score",
                pa.float32(),
                "the landmark branch's certainty that it is a torso garment",
                unit="0..1",
                nullable=True,
            ),
            _field("category", pa.string(), "the model's category name", nullable=True),
            _field(
                "group", pa.string(), "the paper's group: T-shirts, tops, outwear or dress", nullable=True
            ),
            _field(
                "landmarks",
                pa.binary(),
                "x, y, probability of being visible; float32 little endian",
                unit="px, px, 0..1",
                shape="(K, 3) float32, K of the model's taxonomy",
                nullable=True,
            ),
            _field(
                "region_boxes",
                pa.list_(pa.float32(), NUM_REGIONS * 4),
                "the five regions, xyxy each, row-major",
                unit="px",
                shape=f"({NUM_REGIONS}, 4)",
                nullable=True,
            ),
            _field(
                "presence",
                pa.binary(NUM_REGIONS),
                "0 hidden, 1 absent, 2 present (psnet.regions.Presence)",
                shape=f"({NUM_REGIONS},) uint8",
                nullable=True,
            ),
            _field(
                "presence_score",
                pa.list_(pa.float32(), NUM_REGIONS),
                "how sure the model is that the region is visible",
                unit="0..1",
                shape=f"({NUM_REGIONS},)",
                nullable=True,
            ),
            _field(
                "features", features, "region features, unit norm where present", shape=shape, nullable=True
            ),
            _field(
                "mirrored_features",
                features,
                "features of the horizontally flipped garment, in the flipped picture's region order",
                shape=shape,
                nullable=True,
            ),
            _text("model_tag", "the model that computed the row, e.g. psnet-a1b2c3"),
            _field(
                "attributes",
                pa.binary(),
                "embedding per attribute of the ASEN that the shard's metadata names, unit norm; float16 "
                "little endian; null unless extract.attributes",
                shape="(attributes, d) float16",
                nullable=True,
            ),
        ]
    )


GARMENT_SCHEMA: pa.Schema = garment_schema()
"""``garment_schema`` at the shipped models' feature length."""

# What pairs and suspects say about a comparison; the order of columns differs, their meaning does not.
_SCORE = _field(
    "score", pa.float32(), "similarity by the scoring mode of the run", unit="-1..1, higher = more alike"
)
_RELATION = _text("relation", "identical, plagiarised, similar or undecidable")
_MODIFIED = _field(
    "modified_regions", pa.list_(pa.string()), "names of the changed regions, in the order of REGIONS"
)
_MIRRORED = _field("mirrored", pa.bool_(), "the pair matches better with one picture flipped horizontally")
_NORMALISED = _field(
    "normalised_score",
    pa.float32(),
    "where the score lies between what the pair's garments reach with anything (0) and a perfect match (1), "
    "see psnet.similarity.normalise",
    unit="1 = a perfect match, below 0 = as strangers; higher = more alike",
)
_COSINES = tuple(
    _field(
        column,
        pa.float32(),
        "cosine of the region's features; null = not comparable",
        unit="-1..1",
        nullable=True,
    )
    for column in COS_COLUMNS
)
_STATES = tuple(_text(column, "kept, changed or not_comparable") for column in STATE_COLUMNS)

PAIR_SCHEMA: pa.Schema = pa.schema(
    [
        _text("query_item_id", "the item whose partners are listed"),
        _text("match_item_id", "a partner"),
        _field(
            "rank",
            pa.int32(),
            "1 = the query's best partner: by normalised_score, then score, then match_item_id "
            "(match.rank_by=score: by score, then match_item_id)",
        ),
        _SCORE,
        _RELATION,
        _MODIFIED,
        *_COSINES,
        _MIRRORED,
        _field("query_garment", pa.int16(), "garment_index of the query's garment that matched"),
        _field("match_garment", pa.int16(), "garment_index of the partner's garment that matched"),
        *_STATES,
        _NORMALISED,
    ]
)
"""One row per item and partner (RUN/pairs.parquet), sorted by query and rank."""


CHANGED_COLUMNS: tuple[str, ...] = tuple(f"changed_{region}" for region in REGIONS)

_POINTS = _field(
    "registered_points",
    pa.int32(),
    "local features that agree where one photograph was laid upon the other; null = the photographs were "
    "not, or could not be, laid upon each other",
    nullable=True,
)
_CHANGED = tuple(
    _field(
        column,
        pa.float32(),
        "log-odds that the region was changed, from the photographs laid upon each other; null = not "
        "comparable there",
        unit="above 0 = more likely than not, by the training's share of edits",
        nullable=True,
    )
    for column in CHANGED_COLUMNS
)


def _homography(direction: str) -> pa.Field:
    return _field(
        "homography",
        pa.list_(pa.float64(), 9),
        f"how one photograph is laid upon the other, but for the bends of the cloth: {direction}, of the "
        "upright originals, row-major",
        unit="px",
        shape="(3, 3)",
        nullable=True,
    )


def _laid(one: str, other: str) -> pa.Field:
    return _field(
        "laid",
        pa.list_(pa.float32(), 4 * NODES * NODES),
        f"how one photograph is laid upon the other: a grid of points about the garment, each as x, y in "
        f"{one} and x, y in {other}, of the upright originals",
        unit="px",
        shape=f"({NODES}, {NODES}, 4)",
        nullable=True,
    )


VERIFIED_SCHEMA: pa.Schema = pa.schema(
    [
        _text("image_sha256", "of the first garment; the garment is the key that sorts first"),
        _field("garment_index", pa.int16(), "of the first garment"),
        _text("other_image_sha256", "of the other garment"),
        _field("other_garment_index", pa.int16(), "of the other garment"),
        _text("status", "registered, not_registered, or unreadable (a picture)"),
        _field(
            "mirrored", pa.bool_(), "the other photograph was flipped horizontally before it was laid upon"
        ),
        _POINTS,
        *_CHANGED,
        _homography("from the first photograph's pixels to the other's"),
        _laid("the first photograph", "the other one"),
    ]
)
"""One row per pair of garments that was looked at again (RUN/verified.parquet), sorted by its key. Regions
are named from the first garment's side."""


def _side_fields(side: str) -> tuple[pa.Field, ...]:
    of_item = ("seller_id", "brand", "category", "title", "listed_at", "url", "image")
    metadata = {field.name: field.metadata for field in _CATALOGUE_FIELDS}
    return (
        *(
            pa.field(f"{side}_{name}", pa.string(), nullable=False, metadata=metadata[name])
            for name in of_item
        ),
        _text(f"{side}_image_path", "local path of the image's bytes"),
        _text(
            f"{side}_image_sha256",
            "SHA-256 of the image's bytes; with the garment's index the key of its garment row",
        ),
        _field(f"{side}_garment", pa.int16(), "garment_index of the garment that matched"),
        _text(f"{side}_garment_category", "the model's category name"),
        _text(f"{side}_garment_group", "the paper's group: T-shirts, tops, outwear or dress"),
    )


SUSPECT_SCHEMA: pa.Schema = pa.schema(
    [
        _field("rank", pa.int32(), "1 = strongest suspicion"),
        _text("original_item_id", "the item that was there first"),
        _text("suspect_item_id", "the item suspected of copying it"),
        _SCORE,
        _RELATION,
        _MODIFIED,
        _text(
            "direction",
            "how the original was told from the copy: rights_holder, original_first_listed, or unknown (then "
            "the lexicographically smaller item_id stands as the original)",
        ),
        _MIRRORED,
        _NORMALISED,
        *_COSINES,
        *_STATES,
        *_side_fields("original"),
        *_side_fields("suspect"),
        _text("explanation", "one sentence: what is kept, what was changed, who was first"),
        *(
            _field(
                column,
                pa.float32(),
                "how rare the look of the original's region is among other items; null = not visible",
                unit="0 = everywhere, 1 = nowhere else",
                nullable=True,
            )
            for column in DISTINCTIVENESS_COLUMNS
        ),
        _field(
            "agreeing_attributes",
            pa.list_(pa.string()),
            "attributes whose cosine reaches ASEN's threshold; null unless rerank=asen",
            nullable=True,
        ),
        _field(
            "differing_attributes",
            pa.list_(pa.string()),
            "attributes whose cosine is below it (without a threshold: neither); null unless rerank=asen",
            nullable=True,
        ),
        _field(
            "attribute_similarity",
            pa.float32(),
            "mean over the attributes of the cosine of their embeddings; null unless rerank=asen",
            unit="-1..1, higher = more alike",
            nullable=True,
        ),
        _POINTS,
        *_CHANGED,
        _homography("from the original's pixels to the suspect's"),
        _laid("the original's photograph", "the suspect's"),
    ]
)
"""One row per reported pair (RUN/suspects.parquet), sorted by rank."""


def for_people(suspects: pa.Table) -> list[str]:
    """The columns of ``suspects`` that a spreadsheet shows: hundreds of coordinates tell nobody anything."""
    return [name for name in suspects.column_names if name != "laid"]


def joined(values: Sequence[Any]) -> str:
    """A list of texts or numbers as one cell of a spreadsheet."""
    return "|".join(f"{one:.9g}" if isinstance(one, float) else one for one in values)


def guard_formula(text: str) -> str:
    """``text`` with an apostrophe in front if a spreadsheet would run it (OWASP, CSV injection)."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") and text else text


def pack_features(features: np.ndarray) -> pa.FixedSizeBinaryArray:
    """(n, 5, d) floats to n values of fixed-size binary float16.

    Raises:
        ValueError: wrong shape, or values that are not finite in float16.
    """
    if features.ndim != 3 or features.shape[1] != NUM_REGIONS:
        raise ValueError(f"features have shape (n, {NUM_REGIONS}, d), not {features.shape}")
    with np.errstate(over="ignore"):  # refused below, with a clearer word
        halves = np.ascontiguousarray(features, dtype="<f2")
    if not np.isfinite(halves).all():
        raise ValueError("features hold values that are not finite in float16")
    return _pack_rows(halves)


def unpack_features(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Fixed-size binary to (n, 5, d) float16, d from the column's type; null rows become zeros.

    A single chunk without nulls is not copied; the result is then read-only.
    """
    rows = _unpack_rows(column)
    return rows.view("<f2").reshape(len(rows), NUM_REGIONS, rows.shape[1] // (NUM_REGIONS * 2))


def pack_presence(presence: np.ndarray) -> pa.FixedSizeBinaryArray:
    """(n, 5) uint8 codes to n values of fixed-size binary.

    Raises:
        ValueError: wrong shape.
    """
    if presence.ndim != 2 or presence.shape[1] != NUM_REGIONS:
        raise ValueError(f"presence has shape (n, {NUM_REGIONS}), not {presence.shape}")
    return _pack_rows(np.ascontiguousarray(presence, dtype=np.uint8))


def unpack_presence(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Fixed-size binary to (n, 5) uint8; null rows become zeros, which means hidden."""
    return _unpack_rows(column)


def pack_landmarks(landmarks: Iterable[np.ndarray]) -> pa.BinaryArray:
    """Arrays of shape (K, 3), K may differ, to binary values.

    Raises:
        ValueError: wrong shape.
    """
    values = []
    for points in landmarks:
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"landmarks have shape (K, 3), not {points.shape}")
        values.append(np.ascontiguousarray(points, dtype="<f4").tobytes())
    return pa.array(values, pa.binary())


def unpack_landmarks(value: bytes) -> np.ndarray:
    """One binary value to (K, 3) float32: x and y in pixels, probability of being visible."""
    return np.frombuffer(value, dtype="<f4").reshape(-1, 3)


def pack_attributes(embeddings: Iterable[np.ndarray]) -> pa.BinaryArray:
    """Arrays of shape (attributes, d) to binary values, float16."""
    return pa.array([np.ascontiguousarray(one, dtype="<f2").tobytes() for one in embeddings], pa.binary())


def unpack_attributes(value: bytes, count: int) -> np.ndarray:
    """One binary value of ``count`` attributes to (count, d) float32."""
    return np.frombuffer(value, dtype="<f2").reshape(count, -1).astype(np.float32)


def pack_boxes(boxes: np.ndarray) -> pa.FixedSizeListArray:
    """(n, ...) floats to n fixed-size lists of float32: (n, 4) for ``box``, (n, 5, 4) for
    ``region_boxes``."""
    width = int(np.prod(boxes.shape[1:]))
    return pa.FixedSizeListArray.from_arrays(pa.array(boxes.reshape(-1).astype(np.float32)), width)


def pack_homography(matrix: np.ndarray) -> list[float]:
    """(3, 3) to a value of ``homography``, scaled so that its last element is 1."""
    return [float(value) for value in (matrix / matrix[2, 2]).reshape(-1)]


def unpack_boxes(column: pa.Array | pa.ChunkedArray, shape: Sequence[int]) -> np.ndarray:
    """Fixed-size lists to (n, \\*shape) float32; null rows become NaN. The inverse of ``pack_boxes``."""
    width = column.type.list_size
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    out = np.full((len(array), width), np.nan, np.float32)
    valid = np.asarray(array.is_valid())
    out[valid] = np.asarray(array.drop_null().flatten()).reshape(-1, width)
    return out.reshape(len(array), *shape)


def _pack_rows(rows: np.ndarray) -> pa.FixedSizeBinaryArray:
    width = rows.nbytes // len(rows) if len(rows) else int(np.prod(rows.shape[1:])) * rows.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(rows), [None, pa.py_buffer(rows)])


def _unpack_rows(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """(n, width) uint8; null rows are zeros."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    width = column.type.byte_width
    parts = []
    for chunk in chunks:
        if not len(chunk):
            continue
        buffer = np.frombuffer(chunk.buffers()[1], np.uint8)
        rows = buffer[chunk.offset * width : (chunk.offset + len(chunk)) * width].reshape(-1, width)
        if chunk.null_count:
            rows = np.where(np.asarray(chunk.is_valid())[:, None], rows, np.uint8(0))
        parts.append(rows)
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty((0, width), np.uint8)
