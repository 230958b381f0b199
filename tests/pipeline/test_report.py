from __future__ import annotations

import base64
import html.parser
import io
import json
import math
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from websockets.sync.client import connect

from pipeline.dismissed import read_dismissed
from pipeline.errors import UserError
from pipeline.report import (
    Evidence,
    PageOptions,
    embed_json,
    page_data,
    page_options,
    pair_id,
    picture_sources,
    read_evidence,
    render_page,
    report,
    web_link,
    write_pictures,
)
from pipeline.rundir import RunDirectory
from pipeline.schema import SUSPECT_SCHEMA
from pipeline.settings import Settings, load_settings
from psnet.regions import GROUPS, REGIONS
from psnet.warp import NODES
from tests.pipeline.judged_run import COSINES, HOSTILE, KEPT_THRESHOLDS, make_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return read_evidence(make_run(tmp_path_factory.mktemp("evidence")))


class Scripts(html.parser.HTMLParser):
    """Contents of the script elements as a browser would see them, and the title."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.title = ""
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data
        elif self._open == "title":
            self.title += data


# ---- the page as text


def test_what_sellers_write_cannot_leave_the_data(evidence: Evidence) -> None:
    page = Scripts(render_page(evidence, {}, PageOptions(title="<i>Tonight</i> & more")))
    assert page.title == "<i>Tonight</i> & more"
    assert [attributes for attributes, _ in page.scripts] == [
        {"type": "application/json", "id": "data"},
        {},
    ]
    data = json.loads(page.scripts[0][1])
    assert HOSTILE in {item["title"] for item in data["items"]}
    assert {item["url"] for item in data["items"]} == {
        "",
        *(f"https://shop.example/{i}" for i in range(1, 6)),
    }


def test_the_page_asks_for_nothing_from_outside(evidence: Evidence) -> None:
    page = render_page(evidence, {}, PageOptions())
    assert "default-src 'none'" in page
    assert "unsafe" not in page.split("<style>")[0]
    for word in ("src=", "@import", "url(", "<link rel=stylesheet"):
        assert word not in page


def test_embedded_json_reads_back() -> None:
    data = {"a": ["</script>", "<!--", "\u2028&é", None, 0.5]}
    text = embed_json(data)
    assert json.loads(text) == data
    assert not set("<>&\u2028") & set(text)
    with pytest.raises(ValueError):
        embed_json(math.nan)


# ---- the data


def test_pairs_are_told_as_they_were_judged(evidence: Evidence) -> None:
    data = page_data(evidence, {}, PageOptions(kept_threshold=KEPT_THRESHOLDS))
    first, second, third = data["suspects"]
    assert data["items"][first["o"]]["id"] == "000"
    assert data["items"][first["s"]]["id"] == "001"
    assert first["days"] == 1
    assert first["modified"] == ["chest"]
    assert second["cos"] == [0.8, None, None, 0.99, 0.85]
    assert second["states"] == ["kept", "not_comparable", "not_comparable", "kept", "kept"]
    assert third["mirrored"] is True
    assert third["distinct"] is None
    assert data["thresholds"] == KEPT_THRESHOLDS
    garment = data["garments"][first["og"]]
    assert garment["boxes"][0] == [10, 20, 40, 60]
    assert garment["boxes"][2] is None, "a hidden region's box is a guess and not shown"
    assert len({suspect["id"] for suspect in data["suspects"]}) == 3


def test_distinctiveness_is_shown_when_the_table_has_it(evidence: Evidence) -> None:
    suspects = evidence.suspects.append_column("distinctiveness_chest", [[0.25, 0.5, None]])
    data = page_data(replace(evidence, suspects=suspects), {}, PageOptions())
    distinct = [suspect["distinct"] for suspect in data["suspects"]]
    assert distinct == [[None, None, None, 0.25, None], [None, None, None, 0.5, None], None]


def test_a_garment_of_another_run_has_a_picture_but_no_boxes(evidence: Evidence) -> None:
    data = page_data(replace(evidence, garments=evidence.garments.slice(0, 0)), {}, PageOptions())
    assert [garment["boxes"] for garment in data["garments"]] == [None] * 6


def test_items_in_are_items_screened_and_failed_by_reason(evidence: Evidence) -> None:
    run = page_data(evidence, {}, PageOptions())["run"]
    tiles = {tile["label"]: (tile["value"], tile.get("note", "")) for tile in run["tiles"]}
    assert tiles["Items in the catalogue"] == ("9", "")
    assert tiles["Screened"] == ("7", "2 not"), "an image read at the second attempt did not fail"
    assert tiles["Garments"] == ("7", "")
    assert [(f["reason"], f["count"], f["items"]) for f in run["failures"]] == [
        ("missing_file", 1, [["006", "photographs/6.jpg", "no such file"]]),
        ("no_garment", 1, [["007", "photographs/7.jpg", "no garment was found"]]),
    ]
    assert next(row[:4] for row in run["stages"]) == ["crawl", "9", "8", "1"]


def test_a_plan_and_an_estimate_stand_beside_what_happened(evidence: Evidence) -> None:
    share = {"share": 0.01, "low": 0.005, "high": 0.02, "pairs": 400}
    missed = {"queries": 20, "best_20": share, "suspects": {**share, "pairs": 0}}
    done = {"done": True, "in": 1, "out": 1, "seconds": 30.0, "planned_seconds": 25.0, "missed": missed}
    record = {**evidence.record, "plan": {"seconds": 120.0}, "stages": {"index": done}}
    run = page_data(replace(evidence, record=record), {}, PageOptions())["run"]
    assert {"label": "Duration", "value": "30 s", "note": "2 min 0 s planned"} in run["tiles"]
    assert run["stages"] == [["index", "1", "1", "0", "30.0 (25.0 planned)"]]
    assert dict(run["facts"])["estimate of index"] == (
        "Missed by the index, estimated on 20 garments: 1.00% of the 20 best partners "
        "(0.50% to 2.00%, 400 pairs); no suspicious pairs to count"
    )


def test_only_the_best_are_shown_and_the_page_says_so(evidence: Evidence) -> None:
    data = page_data(evidence, {}, PageOptions(max_suspects=2))
    assert [suspect["rank"] for suspect in data["suspects"]] == [1, 2]
    assert "best 2 of 3" in data["notice"]
    assert len(data["items"]) == 4


def test_what_was_left_out_is_said(evidence: Evidence) -> None:
    judged = {"failed": {"beyond_max_suspects": 15, "same_seller": 2}}
    cut = replace(evidence, record={**evidence.record, "stages": {"judge": judged}})
    assert "15 more were left out by judge.max_suspects" in page_data(cut, {}, PageOptions())["notice"]
    empty = replace(cut, suspects=cut.suspects.slice(0, 0))
    said = page_data(empty, {}, PageOptions())["empty"]
    failed = sum(failure["count"] for failure in page_data(cut, {}, PageOptions())["run"]["failures"])
    assert f"None of the {cut.items.num_rows - failed} screened items" in said
    assert f"{failed} could not be screened" in said and "2 of one seller" in said


def test_a_photograph_that_was_replaced_is_not_shown(tmp_path: Path, tiny_weights: Path) -> None:
    run = make_run(tmp_path)
    path = Path(pq.read_table(run.suspects_path)["suspect_image_path"][0].as_py())
    Image.new("RGB", (300, 100), "green").save(path)
    report(run, settings_with(tiny_weights))
    assert run.stage_record("report")["unreadable_pictures"] == 1


def test_presets_follow_the_paper_unless_the_scan_has_weights_of_its_own(evidence: Evidence) -> None:
    def presets(**weights: list[float]) -> dict[str, Any]:
        data = page_data(evidence, {}, PageOptions(region_weights=weights))
        return {preset["label"]: preset["weights"] for preset in data["presets"]}

    plain = presets(**{group: [1.0] * 5 for group in GROUPS})
    assert list(plain) == ["As scanned", "Equal weights", "T-shirts", "Tops", "Outwear", "Dress"]
    assert plain["As scanned"] is None
    # Table 1: 72 % of copied T-shirts have another chest, 56 % of copied dresses another hem.
    assert min(plain["T-shirts"]) == plain["T-shirts"][3]
    assert min(plain["Dress"]) == plain["Dress"][4]
    assert presets(dress=[1.0, 2.0, 2.0, 4.0, 1.0])["Dress"] == [0.25, 0.5, 0.5, 1.0, 0.25]


def test_a_pairs_link_stays_the_same() -> None:
    assert pair_id("a", "b", 0, 0) == pair_id("a", "b", 0, 0) != pair_id("a", "b", 0, 1)
    assert pair_id("a,b", "c", 0, 0) != pair_id("a", "b,c", 0, 0)


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "data:text/html,x", "//x.example", "ftp://x", "http://a b", ""]
)
def test_only_web_addresses_become_links(url: str) -> None:
    assert web_link(url) == ""
    assert web_link("HTTPS://shop.example/1?a=b") == "HTTPS://shop.example/1?a=b"


# ---- pictures


def test_pictures_are_small_upright_and_made_once(evidence: Evidence, tmp_path: Path) -> None:
    sources = picture_sources(evidence.suspects)
    folder = tmp_path / "images"
    pictures = write_pictures(sources, folder, 60)
    turned = next(sha for sha, path in sources.items() if path.name == "0.jpg")
    with Image.open(tmp_path / pictures[turned].src) as image:
        assert image.size == (45, 60)
        pixels = np.asarray(image)
    assert pixels[10, 10, 0] > 200 > pixels[50, 40, 0], "the red quarter is at the upper left"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == 6
    (folder / "notes.jpg").write_bytes(b"somebody's own")
    assert write_pictures(dict(list(sources.items())[:2]), folder, 60) == {
        sha: pictures[sha] for sha in list(sources)[:2]
    }
    after = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "notes.jpg"}
    assert len(after) == 2
    assert after.items() <= before.items()
    assert (folder / "notes.jpg").exists()


def test_a_photograph_that_has_gone_leaves_a_page_without_it(evidence: Evidence, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    sources = {"0" * 64: tmp_path / "gone.jpg", "1" * 64: broken}
    assert [picture.src for picture in write_pictures(sources, tmp_path / "images", 60).values()] == ["", ""]


# ---- the stage


def settings_with(weights: Path, *overrides: str) -> Settings:
    return load_settings(
        None, [f"extract.weights={weights}", f"judge.kept_thresholds={KEPT_THRESHOLDS}", *overrides]
    )


def test_the_stage_runs_once_and_again_when_something_changed(tmp_path: Path, tiny_weights: Path) -> None:
    run = make_run(tmp_path)
    dismissed = tmp_path / "dismissed.csv"
    dismissed.write_text("item_id_a,item_id_b,reason\n000,005,licensed\n")
    settings = settings_with(tiny_weights, f"judge.dismissed={dismissed}", "report.image_side=64")
    report(run, settings)
    record = run.stage_record("report")
    assert (record["in"], record["out"], record["pictures"], record["unreadable_pictures"]) == (3, 3, 6, 0)
    assert len(list((run.report_dir / "images").iterdir())) == 6
    data = json.loads(Scripts(run.report_path.read_text()).scripts[0][1])
    assert data["dismissed"] == [["000", "005", "licensed"]]
    assert data["scope"] == run.read()["catalogue"]
    assert data["thresholds"] == KEPT_THRESHOLDS

    written = run.report_path.stat().st_mtime_ns
    report(run, settings)
    assert run.report_path.stat().st_mtime_ns == written
    dismissed.write_text("item_id_a,item_id_b,reason\n")
    report(run, settings)
    assert run.report_path.stat().st_mtime_ns > written

    # An item that has failed is no input of any stage before, and is named on the page.
    items = pq.read_table(run.items_path)
    lost = items.slice(0, 1).set_column(0, "item_id", pa.array(["lost"]))
    lost = lost.set_column(lost.column_names.index("status"), "status", pa.array(["missing_file"]))
    pq.write_table(pa.concat_tables([items, lost.cast(items.schema)]), run.items_path)
    report(run, settings)
    assert '"missing_file"' in run.report_path.read_text()


def test_no_report_before_the_judgement(tmp_path: Path, tiny_weights: Path) -> None:
    with pytest.raises(UserError, match="stage judge is not done"):
        report(RunDirectory(tmp_path / "run"), settings_with(tiny_weights))


def test_a_page_beside_the_report_says_what_the_report_says(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    options = page_options(run, load_settings(None, ["report.title=Tonight"]))
    assert (options.title, options.kept_threshold, options.max_suspects) == ("Tonight", KEPT_THRESHOLDS, 1000)
    with pytest.raises(UserError, match="stage report is not done"):
        page_options(RunDirectory(tmp_path / "none"), load_settings())


# ---- the page in a browser


class Browser:
    """Headless Chromium through its DevTools protocol."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        flags += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "--window-size=1400,1000"]
        self._process = subprocess.Popen([CHROMIUM, *flags, "about:blank"], stderr=subprocess.DEVNULL)
        self.events: list[dict[str, Any]] = []
        self._last = 0
        port_file = profile / "DevToolsActivePort"
        self._wait(lambda: port_file.exists() and "\n" in port_file.read_text())
        port = port_file.read_text().split()[0]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        targets = json.load(opener.open(f"http://127.0.0.1:{port}/json", timeout=10))
        page = next(target for target in targets if target["type"] == "page")
        self._socket = connect(page["webSocketDebuggerUrl"], max_size=None, proxy=None)
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(timeout=30))
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, two animation frames later."""
        frame = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        expression = f"(async () => {{ const value = {script}; await {frame}; return value; }})()"
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, path: Path, fragment: str = "") -> None:
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=path.as_uri() + (f"#{fragment}" if fragment else ""))
        self._wait(lambda: self.run("document.documentElement?.dataset.ready") == "yes")

    def photograph(self, selector: str) -> np.ndarray:
        """(H, W, 3) uint8: what the screen shows where an element is."""
        corners = "(r => [r.x, r.y, r.width, r.height])"
        where = self.run(f"{corners}(document.querySelector('{selector}').getBoundingClientRect())")
        clip = dict(zip(("x", "y", "width", "height"), where, strict=True)) | {"scale": 1}
        data = base64.b64decode(self.call("Page.captureScreenshot", clip=clip)["data"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def resize(self, width: int) -> None:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def order(self) -> list[str]:
        """Suspects on the page, best first, by the rank the scan gave them."""
        listed = self.run("[...document.querySelectorAll('#list > .card')].map(card => card.dataset.id)")
        ids = {pair_id(f"00{2 * i}", f"00{2 * i + 1}", 0, 0): str(i + 1) for i in range(len(COSINES))}
        return [ids[listed_id] for listed_id in listed]

    def complaints(self) -> list[Any]:
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [event for event in self.events if event["method"] in kinds]

    def requested(self) -> list[str]:
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def close(self) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(10)

    def _wait(self, condition: Any) -> None:
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, "Chromium does not get there"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> Path:
    run = make_run(tmp_path_factory.mktemp("page"))
    report(run, settings_with(tiny_weights, "report.image_side=64"))
    return run.report_path


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine")
    browser = Browser(tmp_path)
    yield browser
    browser.close()


def slide(name: str, value: float) -> str:
    return (
        f"(slider => {{ slider.value = {value}; slider.dispatchEvent(new Event('input')); }})"
        f"(document.getElementById('{name}'))"
    )


@pytest.mark.slow
def test_sliders_rerank_the_list_at_once(page: Path, browser: Browser) -> None:
    browser.open(page)
    assert browser.order() == ["1", "2", "3"]
    # Equal weights: means of the comparable regions 0.768, 0.88 and 0.622.
    browser.run(slide("weight-collar", 0.99))
    assert browser.order() == ["2", "1", "3"]
    # The chest alone: 0.10, 0.99, 0.86.
    for region in ("collar", "left_sleeve", "right_sleeve", "waist"):
        browser.run(slide(f"weight-{region}", 0))
    assert browser.order() == ["2", "3", "1"]
    assert browser.run("document.querySelector('.card .scorebox b').textContent") == "0.990"
    time.sleep(0.4)  # the address follows when the slider rests
    fragment = browser.run("location.hash")
    browser.open(page, fragment[1:])
    assert browser.order() == ["2", "3", "1"], "the address carries the view"
    browser.run("document.getElementById('resetweights').click()")
    assert browser.order() == ["1", "2", "3"]
    assert browser.complaints() == []


@pytest.mark.slow
def test_an_undecidable_pair_never_leads(browser: Browser, tmp_path: Path, tiny_weights: Path) -> None:
    run = make_run(tmp_path / "two", [(0.9, 0.8, 0.7, 0.8, 0.8), (0.99, None, None, None, 0.99)])
    report(run, settings_with(tiny_weights))
    browser.open(run.report_path, "preset=equal")
    assert browser.order() == ["1", "2"]
    assert browser.run("[...document.querySelectorAll('.scorebox b')].map(b => b.textContent)") == [
        "0.800",
        "0.990",
    ]


COMPARE_FIRST = (
    "[...document.querySelectorAll('#list > .card button')].find(b => b.textContent === 'Compare').click()"
)


def fade_to(share: int) -> str:
    """The script that moves the slider from the suspect (0) to the original (100)."""
    return (
        f"(() => {{ const f = document.querySelector('.fade input'); f.value = {share};"
        " f.dispatchEvent(new Event('input')); })()"
    )


@pytest.mark.slow
def test_photographs_that_lie_upon_each_other_are_shown_so(browser: Browser, tmp_path: Path) -> None:
    """The original's photograph is moved by (9, -6) px on its left side and by half of that on its right one,
    and the chest was surely changed."""
    run = make_run(tmp_path / "laid")
    rows = pq.read_table(run.suspects_path).to_pylist()
    across, down = np.meshgrid(np.linspace(10, 50, NODES), np.linspace(10, 70, NODES))
    less = 1 - (across - 10) / 80
    laid = np.stack([across, down, across + 9 * less, down - 6 * less], -1)
    rows[0] |= {"registered_points": 31, "laid": laid.ravel().tolist()}
    rows[0] |= {f"changed_{region}": 6.0 if region == "chest" else -6.0 for region in REGIONS}
    pq.write_table(pa.Table.from_pylist(rows, schema=SUSPECT_SCHEMA), run.suspects_path)
    report(run, load_settings(None))
    browser.open(run.report_path)
    values = "[...document.querySelectorAll('#list > .card')[%d].querySelectorAll('.bar .value')]"
    assert browser.run(f"{values % 0}.map(v => v.textContent)") == ["1.00", "1.00", "1.00", "0.00", "1.00"]
    assert browser.run(f"{values % 2}.map(v => v.textContent)") == ["0.30", "0.88", "0.87", "0.86", "0.20"]
    note = browser.run("document.querySelector('#list > .card .barnote').textContent")
    assert "31 points agree" in note
    browser.run(COMPARE_FIRST)
    time.sleep(0.3)
    browser.run(fade_to(100))
    shown = browser.photograph(".laid canvas")
    scale = shown.shape[1] / 90
    red = shown[..., 0].astype(int) - shown[..., 1] > 80

    def ends(line: np.ndarray) -> float:
        """Where red ends, px of the photograph."""
        return float(np.flatnonzero(line).max() + 1) / scale

    # The red quarter of the original ends at (45, 60) px; there it is moved by nine sixteenths.
    assert ends(red[round(40 * scale)]) == pytest.approx(45 + 9 * 9 / 16, abs=1.5)
    assert ends(red[:, round((20 + 9 * 7 / 8) * scale)]) == pytest.approx(60 - 6 * 7 / 8, abs=1.5)
    assert ends(red[:, round((44 + 9 * 0.575) * scale)]) == pytest.approx(60 - 6 * 0.575, abs=1.5)
    assert "unchanged with 0.00" in browser.run("document.querySelectorAll('.crop')[3].textContent")
    browser.run(fade_to(0))
    assert browser.run("getComputedStyle(document.querySelector('.laid canvas')).opacity") == "0"
    assert browser.complaints() == []


@pytest.mark.slow
@pytest.mark.parametrize("mirrored", [False, True])
def test_crops_are_as_in_the_photograph_and_flipped_where_the_pair_is(
    browser: Browser, tmp_path: Path, mirrored: bool
) -> None:
    """The red quarter ends on the right of the waist's crop; in the suspect's it does on the left, when
    the two were compared flipped."""
    run = make_run(tmp_path / "crops")
    rows = pq.read_table(run.suspects_path).to_pylist()
    rows[0]["mirrored"] = mirrored
    pq.write_table(pa.Table.from_pylist(rows, schema=SUSPECT_SCHEMA), run.suspects_path)
    report(run, load_settings(None))
    browser.open(run.report_path)
    browser.run(COMPARE_FIRST)
    time.sleep(0.3)
    for side, flipped in ((1, False), (2, mirrored)):
        crop = browser.photograph(f".crop:last-child .pair :nth-child({side})")
        red = crop[len(crop) // 2, :, 0].astype(int) - crop[len(crop) // 2, :, 1] > 80
        edges = red[len(red) // 20], red[-len(red) // 20]
        assert edges == ((False, True) if flipped else (True, False))


@pytest.mark.slow
def test_the_page_needs_no_network_and_runs_nothing_it_was_given(page: Path, browser: Browser) -> None:
    browser.open(page)
    time.sleep(0.3)
    folder = page.parent.as_uri()
    requested = [url for url in browser.requested() if not url.startswith(("about:", "data:"))]
    assert all(url.startswith(folder) for url in requested), requested
    assert sum(url.endswith(".jpg") for url in requested) == 6
    assert browser.run("document.title") == "Suspected copies"
    assert browser.run("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert browser.run("document.querySelectorAll('#list a[href^=javascript]').length") == 0
    assert browser.complaints() == []


@pytest.mark.slow
def test_filters_search_and_link_to_a_pair(page: Path, browser: Browser) -> None:
    for fragment, order in {
        "verdict=identical": ["2"],
        "changed=waist": ["3"],
        "min=0.9": ["1"],
        "query=shirt+005": ["3"],
        "seller=seller+2": ["2"],
        "seller=seller": ["1", "2", "3"],
        "sort=fewest&kind=group:T-shirts": ["2", "1", "3"],
        "kind=group:dress": [],
        "weights=0,0,0,1,0&sort=rank": ["1", "2", "3"],
        "preset=equal": ["2", "1", "3"],
        "weights=junk&sort=junk&page=9": ["1", "2", "3"],
    }.items():
        browser.open(page, fragment)
        assert browser.order() == order, fragment
    pair = pair_id("004", "005", 0, 0)
    browser.open(page, f"pair-{pair}")
    assert browser.run("document.activeElement.dataset.id") == pair
    assert browser.run("location.hash") == f"#pair-{pair}"
    assert browser.complaints() == []


@pytest.mark.slow
def test_decisions_are_kept_and_leave_as_a_file(page: Path, browser: Browser, tmp_path: Path) -> None:
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "got"))
    browser.open(page)
    for key in ("j", "d"):
        browser.run(
            "(target => target.dispatchEvent(new KeyboardEvent('keydown', "
            f"{{key: '{key}', bubbles: true}})))(document.activeElement.closest('.card') || "
            "(card => (card.focus(), card))(document.querySelector('.card')))"
        )
    browser.run(
        "(input => { input.value = 'old, \"known\"'; input.dispatchEvent(new Event('change')); })"
        "(document.querySelectorAll('.card')[1].querySelector('.reason input'))"
    )
    browser.open(page)
    assert browser.run("document.querySelectorAll('.card.dismissed').length") == 1
    browser.run("document.getElementById('savedismissed').click()")
    got = tmp_path / "got" / "dismissed.csv"
    end = time.monotonic() + 20
    while not got.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert got.read_bytes() == (b'\xef\xbb\xbfitem_id_a,item_id_b,reason\r\n002,003,"old, ""known"""\r\n')
    assert [one.reason for one in read_dismissed(got)] == ['old, "known"']
    browser.open(page, "decision=open")
    assert browser.order() == ["1", "3"]


DECIDED = "[...document.querySelectorAll('.card')].map(c => c.querySelector('.decided').textContent)"


@pytest.mark.slow
def test_decisions_of_another_tab_stay_and_those_of_another_seller_do_not_count(
    page: Path, browser: Browser
) -> None:
    browser.open(page)
    # What another tab, whose page was opened before, has written meanwhile.
    browser.run(
        "(() => { const {scope} = JSON.parse(document.getElementById('data').textContent);"
        " const one = {decision: 'confirmed', reason: '', a: '000', b: '001'};"
        " const other = {decision: 'dismissed', reason: '', a: '004', b: '005', sellers: 'somebody\\nelse'};"
        ' const both = {\'["000","001"]\': one, \'["004","005"]\': other};'
        " localStorage.setItem('psnet.decisions.' + scope, JSON.stringify(both)); return true; })()"
    )
    browser.run("document.querySelectorAll('.card')[1].querySelector('.actions button').click()")
    assert browser.run(DECIDED) == ["✓ confirmed", "✓ confirmed", ""]
    browser.open(page)
    assert browser.run(DECIDED) == ["✓ confirmed", "✓ confirmed", ""]
    # Taken back by mistake and given again: the reason stays.
    browser.run(
        "(input => { input.value = 'same mill'; input.dispatchEvent(new Event('change')); })"
        "(document.querySelectorAll('.card')[1].querySelector('.reason input'))"
    )
    for _ in range(2):
        browser.run("document.querySelectorAll('.card')[1].querySelector('.actions button').click()")
    assert (
        browser.run("document.querySelectorAll('.card')[1].querySelector('.reason input').value")
        == "same mill"
    )
    assert browser.complaints() == []


@pytest.mark.slow
def test_no_key_decides_by_accident(page: Path, browser: Browser) -> None:
    def press(key: str, repeat: str = "false") -> None:
        event = f"new KeyboardEvent('keydown', {{key: '{key}', bubbles: true, repeat: {repeat}}})"
        browser.run(f"document.activeElement.dispatchEvent({event})")

    browser.open(page)
    browser.run("document.querySelector('.card').focus()")
    press("d", "true")
    assert browser.run(DECIDED) == ["", "", ""]
    press("o")
    assert browser.run("document.getElementById('compare').open")
    assert browser.run("document.activeElement.id") == "comparehead"
    press("ArrowRight")
    assert browser.run("document.getElementById('comparehead').textContent").startswith("#2")
    for _ in range(2):  # the last one: the button is off, the keys go on working
        press("ArrowRight")
    assert browser.run("document.getElementById('comparehead').textContent").startswith("#3")
    press("ArrowLeft")
    assert browser.run("document.getElementById('comparehead').textContent").startswith("#2")


@pytest.mark.slow
def test_what_cannot_be_compared_is_not_called_unchanged(page: Path, browser: Browser) -> None:
    browser.open(page)
    heads = browser.run("[...document.querySelectorAll('.card .what')].map(w => w.textContent)")
    assert heads[1] == "Nothing comparable changed; left sleeve and right sleeve cannot be compared"
    assert "Nothing comparable changed" in browser.run(
        "document.querySelectorAll('.card')[1].querySelector('img').alt"
    )
    # With a weight on the sleeves alone nothing is known of that pair: neither 0 nor filtered out.
    browser.open(page, "weights=0,1,1,0,0&min=0.50")
    assert browser.order() == ["1", "3", "2"]
    assert browser.run("document.querySelectorAll('.scorebox b')[2].textContent") == "–"
    assert browser.complaints() == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 400])
def test_nothing_sticks_out_sideways(page: Path, browser: Browser, width: int) -> None:
    browser.resize(width)
    browser.open(page)
    for script in ("null", "document.querySelectorAll('details').forEach(fold => fold.open = true)"):
        browser.run(script)
        assert browser.run("document.documentElement.scrollWidth") <= width
    browser.run("document.querySelector('.card .photo').click()")
    assert browser.run("document.getElementById('compare').open")
    assert browser.run("document.querySelectorAll('#compare .crop').length") == 5
    assert browser.run("document.getElementById('compare').scrollWidth") <= width


@pytest.mark.slow
def test_an_empty_list_says_that_it_is_no_clearance(
    browser: Browser, tmp_path: Path, tiny_weights: Path
) -> None:
    run = make_run(tmp_path / "empty", [])
    report(run, settings_with(tiny_weights))
    browser.open(run.report_path)
    assert "No suspected copies" in browser.run("document.getElementById('empty').innerText")
    assert "no clearance" in browser.run("document.getElementById('empty').innerText")
    assert browser.run("document.getElementById('panel').hidden")
    assert browser.complaints() == []
