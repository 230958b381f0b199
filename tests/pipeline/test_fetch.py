"""pipeline.fetch against a real web server on this machine, a real S3 server (moto) and real files."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.errors import RunError
from pipeline.fetch import Fetched, Fetcher, is_retryable
from pipeline.settings import CrawlSettings

QUICK = CrawlSettings(
    workers=4,
    connect_timeout_s=1.0,
    read_timeout_s=0.4,
    total_timeout_s=2.0,
    retries=2,
    backoff_s=0.02,
    backoff_max_s=1.0,
    max_redirects=3,
    max_bytes=200_000,
    max_pixels=1_000_000,
)


Fetch = Callable[[str], Fetched]
MakeJpeg = Callable[..., bytes]


@pytest.fixture
def fetch(tmp_path: Path) -> Iterator[Fetch]:
    with Fetcher(tmp_path / "images", QUICK) as fetcher:
        yield fetcher.fetch


def test_a_picture_is_stored_by_its_content(
    shop: Any, fetch: Fetch, tmp_path: Path, make_jpeg: MakeJpeg
) -> None:
    got = fetch(f"{shop.url}/image/1")
    sha = hashlib.sha256(make_jpeg(1)).hexdigest()
    assert got == Fetched(
        f"{shop.url}/image/1", "ok", "", str(tmp_path / "images" / sha[:2] / sha), sha, len(make_jpeg(1))
    )
    assert Path(got.image_path).read_bytes() == make_jpeg(1)
    assert fetch(f"{shop.url}/moved/image/1").image_path == got.image_path
    assert len([path for path in (tmp_path / "images").rglob("*") if path.is_file()]) == 1


@pytest.mark.parametrize(
    ("page", "status", "words", "hits"),
    [
        ("odd", "ok", "", 1),
        ("flaky", "ok", "", 2),
        ("busy/0", "ok", "", 2),
        ("nowhere", "http_404", "Not Found", 1),
        ("broken", "http_503", "Service Unavailable", 3),
        ("html", "not_an_image", "<!DOCTYPE html>", 1),
        ("empty", "empty_file", "", 1),
        ("half", "fetch_failed", "RemoteProtocolError", 3),
        ("endless", "too_many_bytes", "200,000 bytes", 1),
        ("loop", "fetch_failed", "more than 3 redirects", 4),
        ("escape", "bad_location", "", 1),
        ("hang", "timeout", "ReadTimeout", 3),
    ],
)
def test_bad_habits(shop: Any, fetch: Fetch, page: str, status: str, words: str, hits: int) -> None:
    started = time.monotonic()
    got = fetch(f"{shop.url}/{page}")
    assert (got.status, shop.hits[f"/{page}"]) == (status, hits), got
    assert words in got.error and "\n" not in got.error and bool(got.error) == (status != "ok")
    assert time.monotonic() - started < 2.5


def test_a_slow_header_cannot_outlast_the_total_time(shop: Any, fetch: Fetch) -> None:
    started = time.monotonic()
    got = fetch(f"{shop.url}/drip")
    assert got.status == "timeout" and 1.8 < time.monotonic() - started < 3.0


def test_a_short_wish_to_wait_is_granted_a_long_one_not(shop: Any, fetch: Fetch) -> None:
    started = time.monotonic()
    assert fetch(f"{shop.url}/busy/1").status == "ok"
    assert time.monotonic() - started >= 1.0
    got = fetch(f"{shop.url}/busy/3600")
    assert got.status == "http_429" and "asks to wait 3600 s" in got.error and is_retryable(got.status)
    assert shop.hits["/busy/3600"] == 1


def test_robots_txt_is_read_once_and_obeyed(shop: Any, tmp_path: Path) -> None:
    shop.robots = (200, b"User-agent: psnet\nDisallow: /odd\n\nUser-agent: *\nDisallow: /\n")
    with Fetcher(tmp_path, QUICK) as fetcher:
        assert fetcher.fetch(f"{shop.url}/odd").status == "robots_disallowed"
        assert fetcher.fetch(f"{shop.url}/moved/odd").status == "robots_disallowed"
        assert fetcher.fetch(f"{shop.url}/image/1").status == "ok"
    assert shop.hits["/robots.txt"] == 1 and shop.hits["/odd"] == 0
    with Fetcher(tmp_path, replace(QUICK, respect_robots=False)) as fetcher:
        assert fetcher.fetch(f"{shop.url}/odd").status == "ok"
    assert shop.hits["/robots.txt"] == 1


def test_robots_txt_that_cannot_be_had_allows_nothing_for_now(shop: Any, fetch: Fetch) -> None:
    shop.robots = (503, b"")
    got = fetch(f"{shop.url}/image/1")
    assert got.status == "http_503" and "robots.txt" in got.error and shop.hits["/image/1"] == 0
    shop.robots = (403, b"")
    assert fetch(f"{shop.url}/image/1").status == "ok"


def test_nobody_at_home(fetch: Fetch) -> None:
    assert fetch("http://127.0.0.1:9/x.jpg").status == "fetch_failed"


@pytest.mark.parametrize(
    "location",
    ["ftp://host/x.jpg", "http://", "http://[::1/x", "file://elsewhere/x.jpg", "", "a\0b", "s3://bucket"],
)
def test_impossible_addresses(fetch: Fetch, location: str) -> None:
    got = fetch(location)
    assert got.status == "bad_location" and got.error, got


def test_local_files_stay_where_they_are(fetch: Fetch, tmp_path: Path, make_jpeg: MakeJpeg) -> None:
    path = tmp_path / "a b.jpg"
    path.write_bytes(make_jpeg())
    got = fetch(str(path))
    assert (got.status, got.image_path, got.image_mtime_ns) == ("ok", str(path), path.stat().st_mtime_ns)
    assert got.image_sha256 == hashlib.sha256(make_jpeg()).hexdigest() and got.image_bytes == len(make_jpeg())
    assert fetch(f"file://{tmp_path}/a%20b.jpg").image_path == str(path)
    assert not (tmp_path / "images").exists()


def test_local_faults(fetch: Fetch, tmp_path: Path, make_jpeg: MakeJpeg) -> None:
    def status(content: bytes) -> str:
        (tmp_path / "x.jpg").write_bytes(content)
        return fetch(str(tmp_path / "x.jpg")).status

    assert status(b"") == "empty_file"
    assert status(b"a text called .jpg, nothing more") == "not_an_image"
    assert status(make_jpeg()[:-100]) == "truncated_image"
    assert status(make_jpeg(side=1001)) in ("too_many_pixels", "too_many_bytes")
    assert status(make_jpeg() + bytes(200_000)) == "too_many_bytes"
    assert fetch(str(tmp_path)).status == "missing_file"
    assert fetch(str(tmp_path / "none.jpg")).status == "missing_file"
    assert fetch(str(tmp_path / "x.jpg" / "y.jpg")).status == "missing_file"
    os.mkfifo(tmp_path / "pipe.jpg")
    assert fetch(str(tmp_path / "pipe.jpg")).status == "missing_file"
    buffer = io.BytesIO()
    Image.new("1", (1200, 1200)).save(buffer, "PNG")
    assert status(buffer.getvalue()) == "too_many_pixels"


def test_a_full_disk_stops_the_run_with_a_clear_line(
    shop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", no_room)
    with (
        Fetcher(tmp_path, QUICK) as fetcher,
        pytest.raises(RunError, match=r"No space left .* free some space"),
    ):
        fetcher.fetch(f"{shop.url}/image/1")


def test_s3(s3: Any, tmp_path: Path, make_jpeg: MakeJpeg) -> None:
    s3.create_bucket(Bucket="shop")
    s3.put_object(Bucket="shop", Key="a/ü 1.jpg", Body=make_jpeg(1))
    s3.put_object(Bucket="shop", Key="big.jpg", Body=make_jpeg() + bytes(300_000))
    s3.put_object(Bucket="shop", Key="text.jpg", Body=b"a text, nothing more")
    with Fetcher(tmp_path, QUICK) as fetcher:
        got = fetcher.fetch("s3://shop/a/ü 1.jpg")
        assert got.status == "ok" and Path(got.image_path).read_bytes() == make_jpeg(1)
        assert fetcher.fetch("s3://shop/big.jpg").status == "too_many_bytes"
        assert fetcher.fetch("s3://shop/text.jpg").status == "not_an_image"
        assert fetcher.fetch("s3://shop/none.jpg").status == "missing_file"
        assert fetcher.fetch("s3://nobody/none.jpg").status == "missing_file"
