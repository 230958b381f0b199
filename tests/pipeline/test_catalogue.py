"""pipeline.catalogue: what people pass, and what they are told."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.catalogue import catalogue_digest, read_catalogue, unreadable_dates
from pipeline.errors import RunError, UserError
from pipeline.schema import CATALOGUE_SCHEMA

HEADER = "item_id,image,seller_id\n"


def write(tmp_path: Path, content: str | bytes, name: str = "catalogue.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def complaint(path: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        read_catalogue(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_identifiers_stay_text(tmp_path: Path) -> None:
    ids = ["007", "12e456", "NA", "null", "None", "1.0", "true", " padded ", "-", "日本"]
    path = write(tmp_path, HEADER + "".join(f"{item},a.jpg,{item}\n" for item in ids))
    table = read_catalogue(path)
    assert table.schema.equals(CATALOGUE_SCHEMA)
    assert table["item_id"].to_pylist() == ids and table["seller_id"].to_pylist() == ids
    assert table["brand"].to_pylist() == [""] * len(ids) and table["extra"].to_pylist() == [""] * len(ids)


def test_bom_crlf_quotes_and_blank_lines(tmp_path: Path) -> None:
    text = (
        '\ufeffitem_id , image,seller_id,title\r\n1,a.jpg,s,"two\r\nlines, ""quoted"""\r\n\r\n2,b.jpg,s,\r\n'
    )
    table = read_catalogue(write(tmp_path, text))
    assert table["item_id"].to_pylist() == ["1", "2"]
    assert table["title"].to_pylist() == ['two\r\nlines, "quoted"', ""]


def test_unknown_columns_are_carried_through(tmp_path: Path) -> None:
    path = write(tmp_path, "stock,item_id,image,seller_id,Größe\n05,1,a.jpg,s,\n")
    assert json.loads(read_catalogue(path)["extra"][0].as_py()) == {"stock": "05", "Größe": ""}


def test_locations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ["a/b.jpg", "/abs/c.jpg", "https://h/x?y=1", "s3://b/k", "file:///f.jpg", "", "../up.jpg"]
    write(tmp_path, HEADER + "".join(f"{number},{image},s\n" for number, image in enumerate(images)))
    monkeypatch.chdir(tmp_path.parent)
    base = str(tmp_path)
    expected = [
        f"{base}/a/b.jpg",
        "/abs/c.jpg",
        "https://h/x?y=1",
        "s3://b/k",
        "file:///f.jpg",
        "",
        f"{base}/../up.jpg",
    ]
    table = read_catalogue(f"{tmp_path.name}/catalogue.csv")
    assert table["location"].to_pylist() == expected and table["image"].to_pylist() == images


def test_dates(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    zoned = ["2026-03-22T23:30:00-08:00", "2026-03-23T01:00:00+02:00", "0001-01-01T00:00:00+09:00"]
    dates = ["2026-03-22", "2026-03-22T10:11:12Z", "", "22.03.2026", "2026-02-30", *zoned]
    path = write(
        tmp_path, "item_id,image,seller_id,listed_at\n" + "".join(f"{d}x,a.jpg,s,{d}\n" for d in dates)
    )
    table = read_catalogue(path)
    in_greenwich = ["2026-03-23", "2026-03-22", ""]
    assert table["listed_at"].to_pylist() == ["2026-03-22", "2026-03-22", "", "", "", *in_greenwich]
    assert unreadable_dates(table) == 3
    assert json.loads(table["extra"][3].as_py()) == {"listed_at": "22.03.2026"}
    assert "line 5" in caplog.text and "3 listed_at" in caplog.text


def test_parquet_equals_csv(tmp_path: Path) -> None:
    csv_path = write(
        tmp_path, "item_id,image,seller_id,listed_at,n\n07,a.jpg,s,2026-03-22,1\n08,b.jpg,s,,2\n"
    )
    columns = {
        "item_id": pa.array(["07", "08"]).dictionary_encode(),
        "image": ["a.jpg", "b.jpg"],
        "seller_id": ["s", "s"],
        "listed_at": pa.array([20534, None], pa.int32()).cast(pa.date32()),
        "n": [1, 2],
    }
    pq.write_table(pa.table(columns), tmp_path / "catalogue.parquet")
    table = read_catalogue(tmp_path / "catalogue.parquet")
    assert table.equals(read_catalogue(csv_path))
    assert catalogue_digest(table) == catalogue_digest(read_catalogue(csv_path))


def test_parquet_faults(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.parquet"
    pq.write_table(pa.table({"item_id": [1.0], "image": ["a"], "seller_id": ["s"]}), path)
    assert "column item_id holds numbers (double)" in complaint(path)
    pq.write_table(pa.table({"item_id": ["1", None], "image": ["a", "b"], "seller_id": ["s", "s"]}), path)
    assert "row 2: item_id is blank" in complaint(path)
    pq.write_table(pa.table({"item_id": ["1"], "image": ["a"]}), path)
    assert "missing column seller_id" in complaint(path)
    path.write_bytes(path.read_bytes()[:-40])
    assert "damaged" in complaint(path)
    path.write_text(HEADER + "1,a,s\n")
    assert "is not a Parquet file" in complaint(path)


def test_a_folder_is_a_catalogue(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "a.png", "a.jpg", "c.txt", ".hidden.jpg", ".git/x.jpg", "b/007.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    table = read_catalogue(tmp_path)
    assert table["item_id"].to_pylist() == ["a.jpg", "a.png", "b/007", "b/2"]
    assert table["location"].to_pylist()[-1] == str(tmp_path / "b/2.JPG")
    assert set(table["seller_id"].to_pylist()) == {""}
    (tmp_path / "empty").mkdir()
    assert "no images in this folder" in complaint(tmp_path / "empty")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        (HEADER, "no rows"),
        (
            "item,image,seller_id\n1,a,s\n",
            "missing column item_id (is 'item' meant?); there are: item, image, seller_id",
        ),
        (
            "Item_ID,img,x\n1,a,s\n",
            "missing columns item_id (is 'Item_ID' meant?), image (is 'img' meant?), seller_id;",
        ),
        ("item_id;image;seller_id\n1;a;s\n", "separated by semicolons"),
        ("item_id,image,seller_id,image\n1,a,s,b\n", "column 'image' more than once"),
        (
            HEADER + '1,a,"two\nlines"\n2,b,s\n1,c,s\n3,d,s\n2,e,s\n',
            "duplicate item_id '1' (lines 2 and 5), '2' (lines 4",
        ),
        (HEADER + "1,a,s\n\n ,b,s\n", "line 4: item_id is blank"),
        (HEADER + "1,a,s\n2,b\n", "line 3: 2 fields, but the header has 3"),
        (HEADER + "1,a,s\n2,b,s,t\n", "line 3: 4 fields"),
        (HEADER + '1,a,"s\n', "look for a lone quote"),
        (HEADER.encode() + b"1,a,s\n2,b,caf\xe9\n", "line 3: is not UTF-8"),
        (HEADER.encode("utf-16"), "UTF-16"),
        (b"PK\x03\x04" + bytes(100), "Excel"),
        (b"\x7fELF" + bytes(range(256)) * 20, "binary file"),
        (random.Random(0).randbytes(200).replace(b"\0", b"\1"), "not UTF-8"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "is a picture"),
    ],
)
def test_clear_complaints(tmp_path: Path, content: str | bytes, words: str) -> None:
    path = write(tmp_path, content)
    message = complaint(path)
    assert words in message and str(path) in message


def test_many_duplicates_are_summed_up(tmp_path: Path) -> None:
    assert "and 96 more" in complaint(write(tmp_path, HEADER + "1,a,s\n" * 100))


def test_missing_paths(tmp_path: Path) -> None:
    write(tmp_path, HEADER)
    assert f"is {tmp_path / 'catalogue.csv'} meant?" in complaint(tmp_path / "catalog.csv")
    assert "the folder" in complaint(tmp_path / "nowhere" / "catalogue.csv")
    assert "download it first" in complaint("https://example.com/catalogue.csv")


def test_a_row_of_bad_text_far_down_is_found(tmp_path: Path) -> None:
    rows = b"".join(b"%d,a.jpg,s\n" % number for number in range(60_000))
    path = write(tmp_path, HEADER.encode() + rows + b"\xff,a,s\n")
    assert "line 60002: is not UTF-8" in complaint(path)
    path.write_bytes(HEADER.encode() + rows)
    table = read_catalogue(path)
    assert table.num_rows == 60_000
    assert catalogue_digest(table) == catalogue_digest(table.combine_chunks())
    assert catalogue_digest(table.slice(0, 55_000)) == catalogue_digest(
        table.combine_chunks().slice(0, 55_000)
    )
    assert catalogue_digest(table.slice(1)) != catalogue_digest(table.slice(0, 59_999))


def test_the_pictures_of_a_run_are_no_items_of_the_folder_that_it_lies_in(tmp_path: Path) -> None:
    for name in ("a.jpg", "sub/b.jpg", "sub/run/report/images/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"picture")
    (tmp_path / "sub/run/run.json").write_text("{}")
    assert read_catalogue(tmp_path)["item_id"].to_pylist() == ["a", "sub/b"]
    with pytest.raises(UserError, match="is a run directory; name the photographs' folder"):
        read_catalogue(tmp_path / "sub/run")


def test_a_catalogue_in_s3(s3: Any) -> None:
    s3.create_bucket(Bucket="catalogues")
    s3.put_object(Bucket="catalogues", Key="may/all.csv", Body=b"item_id,image,seller_id\n007,x/1.jpg,s\n")
    table = read_catalogue("s3://catalogues/may/all.csv")
    assert table["location"].to_pylist() == ["s3://catalogues/may/x/1.jpg"]
    with pytest.raises(UserError, match="cannot be read"):
        read_catalogue("s3://catalogues/june/all.csv")
    # A store that does not answer now may do so in a minute: no mistake of the user's.
    with pytest.raises(RunError, match="cannot be read"):
        read_catalogue("s3://catalogues/may/all.csv", "http://127.0.0.1:1")


def test_paths_in_a_bucket_mean_what_they_say(s3: Any) -> None:
    s3.create_bucket(Bucket="paths")
    images = ("./x/1.jpg", "../img/2.jpg", "a//3.jpg", "../../../4.jpg")
    rows = "".join(f"{number},{image},s\n" for number, image in enumerate(images))
    s3.put_object(Bucket="paths", Key="a/may.csv", Body=f"item_id,image,seller_id\n{rows}".encode())
    assert read_catalogue("s3://paths/a/may.csv")["location"].to_pylist() == [
        "s3://paths/a/x/1.jpg",
        "s3://paths/img/2.jpg",
        "s3://paths/a/a//3.jpg",
        "s3://paths/4.jpg",
    ]
