"""pipeline.schema: nothing is lost between numpy, Arrow and Parquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema
from psnet.regions import REGIONS

SCHEMAS = {
    "item": schema.ITEM_SCHEMA,
    "garment": schema.GARMENT_SCHEMA,
    "pair": schema.PAIR_SCHEMA,
    "suspect": schema.SUSPECT_SCHEMA,
}


def garments(count: int, dim: int, seed: int = 0) -> pa.Table:
    """``count`` garment rows and one row without a garment in the middle of them."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((count, 5, dim)).astype(np.float16)
    rows = pa.table(
        {
            "image_sha256": [f"{i:064x}" for i in range(count)],
            "garment_index": pa.array([0] * count, pa.int16()),
            "status": ["ok"] * count,
            "error": [""] * count,
            "image_width": pa.array([640] * count, pa.int32()),
            "image_height": pa.array([480] * count, pa.int32()),
            "box": schema.pack_boxes(rng.random((count, 4))),
            "detection_score": pa.array(rng.random(count), pa.float32()),
            "category": ["vest dress"] * count,
            "group": ["dress"] * count,
            "landmarks": schema.pack_landmarks(rng.random((count, 7 + i % 2, 3))[i] for i in range(count)),
            "region_boxes": schema.pack_boxes(rng.random((count, 5, 4))),
            "presence": schema.pack_presence(rng.integers(0, 3, (count, 5)).astype(np.uint8)),
            "presence_score": schema.pack_boxes(rng.random((count, 5))),
            "features": schema.pack_features(features),
            "mirrored_features": schema.pack_features(-features),
            "model_tag": ["psnet-test"] * count,
            "attributes": schema.pack_attributes(rng.standard_normal((count, 7, 4))),
        },
        schema=schema.garment_schema(dim),
    )
    none = {
        "image_sha256": "f" * 64,
        "garment_index": -1,
        "status": "no_garment",
        "error": "",
        "image_width": 5,
    }
    none |= {"image_height": 5, "model_tag": "psnet-test"}
    failed = pa.Table.from_pylist([none], schema=schema.garment_schema(dim))
    return pa.concat_tables([rows.slice(0, count // 2), failed, rows.slice(count // 2)])


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_column_is_described_and_named_once(name: str) -> None:
    fields = list(SCHEMAS[name])
    assert len({field.name for field in fields}) == len(fields)
    for field in fields:
        assert field.metadata[b"description"], field.name
        if pa.types.is_floating(field.type):
            assert field.metadata[b"unit"], field.name
        if pa.types.is_fixed_size_list(field.type) or pa.types.is_fixed_size_binary(field.type):
            assert field.metadata[b"shape"], field.name


def test_contracted_columns() -> None:
    pair = ["query_item_id", "match_item_id", "rank", "score", "relation", "modified_regions"]
    assert schema.PAIR_SCHEMA.names[:11] == [*pair, *(f"cos_{region}" for region in REGIONS)]
    suspect = ["rank", "original_item_id", "suspect_item_id", "score", "relation", "modified_regions"]
    assert schema.SUSPECT_SCHEMA.names[:6] == suspect


@pytest.mark.parametrize("dim", [256, 8])
def test_garments_survive_parquet(tmp_path: Path, dim: int) -> None:
    table = garments(9, dim)
    pq.write_table(table, tmp_path / "garments.parquet", row_group_size=4)
    back = pq.read_table(tmp_path / "garments.parquet")
    assert back.schema.equals(schema.garment_schema(dim))
    assert [field.metadata for field in back.schema] == [
        field.metadata for field in schema.garment_schema(dim)
    ]
    assert back.equals(table)

    features = schema.unpack_features(back["features"])
    expected = np.random.default_rng(0).standard_normal((9, 5, dim)).astype(np.float16)
    valid = np.arange(10) != 4
    assert features.dtype == np.float16 and np.array_equal(features[valid], expected)
    assert not features[4].any() and np.array_equal(
        schema.unpack_features(back["mirrored_features"]), -features
    )
    assert schema.unpack_presence(back["presence"]).shape == (10, 5)
    assert schema.unpack_boxes(back["box"], (4,)).shape == (10, 4)
    regions = schema.unpack_boxes(back["region_boxes"], (5, 4))
    assert regions.shape == (10, 5, 4) and np.isnan(regions).any(axis=(1, 2)).tolist() == (~valid).tolist()
    assert [schema.unpack_landmarks(row).shape for row in back["landmarks"].drop_null().to_pylist()] == [
        (7 + i % 2, 3) for i in range(9)
    ]


def test_slices_and_empty_columns() -> None:
    column = garments(9, 8)["features"]
    whole = schema.unpack_features(column)
    assert np.array_equal(schema.unpack_features(column.slice(3, 5)), whole[3:8])
    assert np.array_equal(schema.unpack_features(column.combine_chunks().slice(2, 7)), whole[2:9])
    assert schema.unpack_features(column.slice(0, 0)).shape[0] == 0
    assert schema.unpack_boxes(garments(9, 8)["box"].slice(4, 3), (4,)).shape == (3, 4)
    assert schema.pack_features(np.empty((0, 5, 8))).type == pa.binary(80)


def test_unpacking_one_chunk_copies_nothing() -> None:
    packed = schema.pack_features(np.ones((3, 5, 8), np.float16))
    start = schema.unpack_features(packed).__array_interface__["data"][0]
    assert start == packed.buffers()[1].address


def test_wrong_shapes_and_overflow_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        schema.pack_features(np.zeros((2, 4, 8)))
    with pytest.raises(ValueError, match="finite"):
        schema.pack_features(np.full((1, 5, 8), 1e6))
    with pytest.raises(ValueError, match="shape"):
        schema.pack_presence(np.zeros(5))
    with pytest.raises(ValueError, match="shape"):
        schema.pack_landmarks([np.zeros((3, 2))])
