"""pipeline.crawl: one row per item, nothing fetched twice, nothing lost by a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.catalogue import read_catalogue
from pipeline.crawl import crawl, take_over_fetched
from pipeline.errors import RunError
from pipeline.rundir import RunDirectory
from pipeline.schema import ITEM_SCHEMA
from pipeline.settings import CrawlSettings, Settings

MakeJpeg = Callable[..., bytes]

QUICK = CrawlSettings(
    workers=8,
    connect_timeout_s=1.0,
    read_timeout_s=0.3,
    total_timeout_s=1.5,
    retries=1,
    backoff_s=0.01,
    max_bytes=200_000,
    chunk_items=5,
)


def write_catalogue(folder: Path, images: list[str]) -> pa.Table:
    rows = "".join(f"{number:03d},{image},s{number % 3}\n" for number, image in enumerate(images))
    (folder / "catalogue.csv").write_text(f"item_id,image,seller_id\n{rows}")
    return read_catalogue(folder / "catalogue.csv")


def run_crawl(
    folder: Path, catalogue: pa.Table, **changes: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows, and the stage's record; "skipped" in the latter says that there was nothing to do."""
    run = RunDirectory(folder / "run")
    crawl(run, catalogue, Settings(crawl=replace(QUICK, **changes)))
    table = pq.read_table(run.items_path)
    assert table.schema.equals(ITEM_SCHEMA)
    record = run.stage_record("crawl") | {"skipped": "crawl" in run.finished_before}
    assert record["in"] == table.num_rows == record["out"] + sum(record["failed"].values())
    assert not (folder / "run" / "items" / "chunks").exists()
    return table.to_pylist(), record


def test_every_item_ends_as_one_row(shop: Any, tmp_path: Path, make_jpeg: MakeJpeg) -> None:
    (tmp_path / "a.jpg").write_bytes(make_jpeg(1))
    (tmp_path / "half.jpg").write_bytes(make_jpeg(1)[:-50])
    images = ["a.jpg", "none.jpg", "half.jpg", f"{shop.url}/image/1", f"{shop.url}/gone", f"{shop.url}/hang"]
    images += [f"{shop.url}/endless", "a.jpg", f"{shop.url}/image/1", "", "ftp://x/y.jpg", f"{shop.url}/html"]
    rows, record = run_crawl(tmp_path, write_catalogue(tmp_path, images))
    assert [row["image"] for row in rows] == images
    assert [row["item_id"] for row in rows] == [f"{number:03d}" for number in range(len(images))]
    expected = ["ok", "missing_file", "truncated_image", "ok", "http_404", "timeout"]
    expected += ["too_many_bytes", "ok", "ok", "bad_location", "bad_location", "not_an_image"]
    assert [row["status"] for row in rows] == expected
    assert record["failed"] == {key: n for key, n in sorted(Counter(expected).items()) if key != "ok"}
    # The same picture from two places: one content, the local one stays where it is.
    assert record["distinct_images"] == 1 and record["locations"] == 10
    assert rows[0]["image_path"] == str(tmp_path / "a.jpg") and shop.hits["/image/1"] == 1
    assert Path(rows[3]["image_path"]).is_relative_to(tmp_path / "run" / "images")


def test_a_second_run_fetches_nothing(shop: Any, tmp_path: Path, make_jpeg: MakeJpeg) -> None:
    (tmp_path / "a.jpg").write_bytes(make_jpeg(1))
    catalogue = write_catalogue(tmp_path, ["a.jpg", f"{shop.url}/image/2", f"{shop.url}/gone"])
    rows, record = run_crawl(tmp_path, catalogue)
    hits = sum(shop.hits.values())
    again, second = run_crawl(tmp_path, catalogue)
    assert second["skipped"] and again == rows and sum(shop.hits.values()) == hits
    # A new row in the catalogue costs the new row.
    grown = write_catalogue(
        tmp_path, ["a.jpg", f"{shop.url}/image/2", f"{shop.url}/gone", f"{shop.url}/image/3"]
    )
    more, third = run_crawl(tmp_path, grown)
    assert more[:3] == rows and (third["held_over"], third["locations"]) == (3, 4)
    assert shop.hits["/image/2"] == shop.hits["/gone"] == shop.hits["/image/3"] == 1
    assert third["output_digest"] != record["output_digest"]


def test_a_replaced_picture_is_noticed(tmp_path: Path, make_jpeg: MakeJpeg) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(make_jpeg(1))
    catalogue = write_catalogue(tmp_path, ["a.jpg", "b.jpg"])
    rows, record = run_crawl(tmp_path, catalogue)
    path.write_bytes(make_jpeg(2))
    changed, second = run_crawl(tmp_path, catalogue)
    assert changed[0]["image_sha256"] != rows[0]["image_sha256"] and not second["skipped"]
    assert second["output_digest"] != record["output_digest"]
    (tmp_path / "b.jpg").write_bytes(make_jpeg(3))
    rows, third = run_crawl(tmp_path, catalogue)
    assert rows[1]["status"] == "ok"
    os.utime(path)  # touched, not changed: read again, and no later stage has to run
    _, touched = run_crawl(tmp_path, catalogue)
    assert not touched["skipped"] and touched["output_digest"] == third["output_digest"]


def test_another_run_reads_only_what_has_changed_since(
    shop: Any, tmp_path: Path, make_jpeg: MakeJpeg
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(make_jpeg(number))
    rows, _ = run_crawl(
        tmp_path, write_catalogue(tmp_path, ["0.jpg", "1.jpg", f"{shop.url}/image/2", "0.jpg"])
    )
    (tmp_path / "1.jpg").write_bytes(make_jpeg(7))
    other = RunDirectory(tmp_path / "other")
    earlier = pq.read_table(tmp_path / "run" / "items" / "items.parquet")
    take_over_fetched(earlier, other, Settings(crawl=QUICK))
    copies = write_catalogue(tmp_path, [*dict.fromkeys(row["image_path"] for row in rows), "2.jpg"])
    crawl(other, copies, Settings(crawl=QUICK))
    record = other.stage_record("crawl")
    assert (record["locations"], record["held_over"]) == (4, 2)
    found = pq.read_table(other.items_path)["image_sha256"].to_pylist()
    before = [row["image_sha256"] for row in rows]
    assert [found[0], found[2]] == [before[0], before[2]] and found[1] not in before
    # What the run knows by itself counts for more.
    take_over_fetched(earlier.slice(0, 0), other, Settings(crawl=QUICK))
    crawl(other, copies, Settings(crawl=QUICK))
    assert "crawl" in other.finished_before


def test_failures_that_may_pass_are_tried_again(shop: Any, tmp_path: Path) -> None:
    catalogue = write_catalogue(tmp_path, [f"{shop.url}/flaky", f"{shop.url}/gone", f"{shop.url}/image/1"])
    rows, _ = run_crawl(tmp_path, catalogue, retries=0)
    assert [row["status"] for row in rows] == ["http_500", "http_404", "ok"]
    rows, second = run_crawl(tmp_path, catalogue, retry_failed=False)
    assert second["skipped"] and rows[0]["status"] == "http_500"
    rows, _ = run_crawl(tmp_path, catalogue)
    assert [row["status"] for row in rows] == ["ok", "http_404", "ok"]
    assert shop.hits == {"/robots.txt": 2, "/flaky": 2, "/gone": 1, "/image/1": 1}


def test_what_was_refused_is_asked_for_again_in_a_later_run(shop: Any, tmp_path: Path) -> None:
    shop.robots = (200, b"User-agent: *\nDisallow: /image/2\n")
    catalogue = write_catalogue(tmp_path, [f"{shop.url}/refused", f"{shop.url}/image/2"])
    rows, _ = run_crawl(tmp_path, catalogue)
    assert [row["status"] for row in rows] == ["http_403", "robots_disallowed"]
    assert shop.hits["/refused"] == 1
    shop.refused = False
    rows, _ = run_crawl(tmp_path, catalogue)
    assert [row["status"] for row in rows] == ["ok", "robots_disallowed"]
    rows, _ = run_crawl(tmp_path, catalogue, retry_failed=False, respect_robots=False)
    assert [row["status"] for row in rows] == ["ok", "ok"]


def test_other_caps_judge_anew(shop: Any, tmp_path: Path) -> None:
    catalogue = write_catalogue(tmp_path, [f"{shop.url}/image/1", f"{shop.url}/image/2"])
    rows, _ = run_crawl(tmp_path, catalogue, max_bytes=1000)
    assert {row["status"] for row in rows} == {"too_many_bytes"}
    rows, _ = run_crawl(tmp_path, catalogue)
    assert {row["status"] for row in rows} == {"ok"}


def test_a_lost_copy_is_fetched_again_and_a_moved_run_is_not(shop: Any, tmp_path: Path) -> None:
    catalogue = write_catalogue(tmp_path, [f"{shop.url}/image/1", f"{shop.url}/image/2"])
    rows, _ = run_crawl(tmp_path, catalogue)
    Path(rows[0]["image_path"]).unlink()
    again, _ = run_crawl(tmp_path, catalogue)
    assert again == rows and Path(rows[0]["image_path"]).exists()
    assert (shop.hits["/image/1"], shop.hits["/image/2"]) == (2, 1)
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "run").rename(moved / "run")
    grown = write_catalogue(tmp_path, [f"{shop.url}/image/{number}" for number in (1, 2, 3)])
    rows, _ = run_crawl(moved, grown)
    assert all(Path(row["image_path"]).is_relative_to(moved) for row in rows)
    assert (shop.hits["/image/1"], shop.hits["/image/2"]) == (2, 1)


def test_one_host_is_not_overrun(shop: Any, tmp_path: Path) -> None:
    catalogue = write_catalogue(tmp_path, [f"{shop.url}/slow/{number}" for number in range(20)])
    rows, _ = run_crawl(tmp_path, catalogue, workers=16, per_host_limit=3)
    assert {row["status"] for row in rows} == {"ok"} and shop.busiest == 3


def test_a_dead_host_is_given_up_and_does_not_hold_up_the_others(
    shop: Any, tmp_path: Path, make_jpeg: MakeJpeg
) -> None:
    dead = "http://127.0.0.1:9"
    for number in range(10):
        (tmp_path / f"{number}.jpg").write_bytes(make_jpeg(number))
    images = [f"{dead}/{number}.jpg" for number in range(200)] + [f"{number}.jpg" for number in range(10)]
    started = time.monotonic()
    rows, record = run_crawl(tmp_path, write_catalogue(tmp_path, images), host_failures=6, per_host_limit=2)
    assert time.monotonic() - started < 5 and record["out"] == 10
    assert {row["status"] for row in rows[:200]} == {"fetch_failed"}
    assert sum(row["error"].startswith("not tried") for row in rows[:200]) >= 190


def test_the_result_does_not_depend_on_threads_and_chunks(shop: Any, tmp_path: Path) -> None:
    catalogue = write_catalogue(tmp_path, [f"{shop.url}/image/{number % 7}" for number in range(15)])
    (tmp_path / "one").mkdir()
    first, _ = run_crawl(tmp_path, catalogue)
    second, _ = run_crawl(tmp_path / "one", catalogue, workers=1, per_host_limit=1, chunk_items=1)
    strip = lambda rows: [{**row, "image_path": Path(row["image_path"]).name} for row in rows]  # noqa: E731
    assert strip(first) == strip(second)


CRAWL = """
import sys
from dataclasses import replace
from pipeline.catalogue import read_catalogue
from pipeline.crawl import crawl
from pipeline.rundir import RunDirectory
from pipeline.settings import CrawlSettings, Settings

settings = Settings(crawl=CrawlSettings(workers=2, chunk_items=5, total_timeout_s=20.0))
crawl(RunDirectory(sys.argv[2]), read_catalogue(sys.argv[1]), settings)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_broken_off_run_goes_on_where_it_was(shop: Any, tmp_path: Path, how: signal.Signals) -> None:
    count = 80
    catalogue = write_catalogue(tmp_path, [f"{shop.url}/slow/{number}" for number in range(count)])
    # A shell's background job has SIGINT ignored, and so would all that it starts.
    command = ["env", "--default-signal=INT", sys.executable, "-c", CRAWL]
    command += [str(tmp_path / "catalogue.csv"), str(tmp_path / "run")]
    chunks = tmp_path / "run" / "items" / "chunks"
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while len(list(chunks.glob("0*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(how)
    process.communicate(timeout=10)
    assert process.returncode != 0 and not (tmp_path / "run" / "items" / "items.parquet").exists()
    committed = sum(pq.read_metadata(path).num_rows for path in chunks.glob("0*.parquet"))
    assert 15 <= committed < count

    rows, record = run_crawl(tmp_path, catalogue)
    assert {row["status"] for row in rows} == {"ok"} and record["held_over"] == committed
    repeated = sum(shop.hits.values()) - shop.hits["/robots.txt"] - count
    # At most the open chunk and what was under way.
    assert repeated <= (5 + 2 if how == signal.SIGKILL else 2)


def test_a_result_that_cannot_be_written_is_one_line(tmp_path: Path, make_jpeg: MakeJpeg) -> None:
    (tmp_path / "a.jpg").write_bytes(make_jpeg())
    catalogue = write_catalogue(tmp_path, ["a.jpg"])
    (tmp_path / "run" / "items" / "items.parquet").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text('{"layout": 1}')
    with pytest.raises(RunError, match=r"items\.parquet: cannot be written"):
        crawl(RunDirectory(tmp_path / "run"), catalogue, Settings(crawl=QUICK))
