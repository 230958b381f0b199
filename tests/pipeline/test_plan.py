"""Plans: a real calibration with a tiny network, and arithmetic that grows as the stages do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cli import run_command
from pipeline.errors import UserError
from pipeline.plan import Cluster, Prices, Rates, duration, in_words, predict, read_cluster, read_prices
from pipeline.rundir import STAGES, RunDirectory
from pipeline.settings import load_settings
from tests.pipeline.conftest import jpeg

CONF = Path(__file__).parents[2] / "conf"
RATES = Rates(
    sampled=64,
    images=10.0,
    garments_per_image=0.75,
    readable=1.0,
    fetched=1000.0,
    image_bytes=200_000.0,
    remote=1.0,
    pairs=50e6,
    searched=8000.0,
    compared=1e6,
    verified=15.0,
    levels=5000.0,
    indexed=10_000.0,
    feature_dim=256,
)
SETTINGS = load_settings(None)


def test_time_grows_as_the_stages_do():
    one, ten = (predict(RATES, items, Cluster(cpus_per_node=2), SETTINGS) for items in (10**6, 10**7))
    growth = {name: ten.stages[name].seconds / one.stages[name].seconds for name in STAGES}
    assert growth["crawl"] == pytest.approx(10) and growth["extract"] == pytest.approx(10, rel=0.01)
    assert growth["match"] > 60  # pairs, beside what grows with the garments alone
    assert one.stages["extract"].seconds == pytest.approx(10**6 / (10 * 2 * 0.9), rel=0.01)
    assert one.stages["match"].seconds >= 750_000**2 / 2 / (50e6 * 2 * 0.9)
    assert ten.disk == pytest.approx(10 * one.disk, rel=0.05)
    assert ten.memory < 10 * one.memory


def test_pairs_cost_more_each_in_a_small_catalogue():
    """Of the scan alone five times as much, measured among 10,000 and a million (benchmarks/SCALING.md)."""
    rates = replace(RATES, garments_per_image=1.0, levels=1e12, compared=1e12, pairs=1e9 / 4, searched=2e4)
    one = Cluster(cpus_per_node=1)
    seconds = {n: predict(rates, n, one, SETTINGS).stages["match"].seconds for n in (10_000, 10**6)}
    each = {n: value / (n * n / 2) for n, value in seconds.items()}
    assert each[10**6] == pytest.approx(4e-9, rel=0.1) and 4 < each[10_000] / each[10**6] < 10


def test_nodes_gpus_prices_and_memory():
    small = predict(RATES, 10**6, Cluster(cpus_per_node=16), SETTINGS)
    large = predict(RATES, 10**6, Cluster(cpus_per_node=16, nodes=8), SETTINGS)
    assert large.stages["extract"].seconds == pytest.approx(small.stages["extract"].seconds / 8, rel=0.02)
    gpu = Cluster(
        cpus_per_node=16, gpus_per_node=2, images_per_gpu_second=500, pairs_per_gpu_second=1e9, node="g"
    )
    assert predict(RATES, 10**6, gpu, SETTINGS).stages["extract"].seconds == pytest.approx(1000, abs=30)
    unknown = replace(gpu, images_per_gpu_second=None)
    assert (
        predict(RATES, 10**6, unknown, SETTINGS).stages["extract"].seconds == small.stages["extract"].seconds
    )

    priced = predict(RATES, 10**6, replace(gpu, nodes=3), SETTINGS, Prices("EUR", {"g": 2.0}, 0.02))
    assert priced.cost == pytest.approx(3 * 2.0 * priced.seconds / 3600, abs=1e-3)
    assert priced.storage_month == pytest.approx(0.02 * priced.disk / 1e9, abs=1e-3)
    assert f"{priced.cost:,.2f} EUR" in in_words(priced)
    assert small.cost is None and "Cost" not in in_words(small)
    assert "less than that: lower extract.actors" in in_words(small)
    assert "less than that" not in in_words(predict(RATES, 1000, Cluster(memory_gb_per_node=512), SETTINGS))
    assert (duration(50), duration(600), duration(86400 * 3)) == ("50 seconds", "10.0 minutes", "3.0 days")


def test_the_shipped_examples_fit_together():
    cluster = read_cluster(CONF / "plan-cluster.yaml")
    prices = read_prices(CONF / "plan-prices.yaml", cluster)
    assert predict(RATES, 10**6, cluster, SETTINGS, prices).cost > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes: many", "nodes: .*whole number"),
        ("nodes: 0", "nodes: .*at least 1|nodes: "),
        ("node_count: 3", "node_count"),
        ("- 3", "file.yaml"),
        ("nodes: [", "file.yaml"),
    ],
)
def test_files_that_do_not_fit(text: str, message: str, tmp_path: Path):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_cluster(path)
    assert "\n" not in str(caught.value)


def test_prices_that_do_not_fit(tmp_path: Path):
    path = tmp_path / "prices.yaml"
    path.write_text("node_hour: {a: 1.0}")
    with pytest.raises(UserError, match="no price of the node 'b' of the cluster; it has a"):
        read_prices(path, Cluster(node="b"))
    with pytest.raises(UserError, match="has no name"):
        read_prices(path, Cluster())
    path.write_text("node_hour: {a: -1.0}")
    with pytest.raises(UserError, match="not negative"):
        read_prices(path, Cluster(node="a"))
    with pytest.raises(UserError, match="nowhere"):
        read_prices(tmp_path / "nowhere.yaml", Cluster())


def test_a_plan_is_measured_stored_and_compared(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(5):
        (images / f"{number}.jpg").write_bytes(jpeg(number))
    (images / "bad.jpg").write_bytes(b"no picture")
    keys = [f"extract.weights={tiny_weights}", "extract.precision=float32", "extract.detection_threshold=0"]
    options = [part for key in keys for part in ("--set", key)]
    out = tmp_path / "run"
    assert run_command(["plan", str(images), "--seconds", "1", "--out", str(out), *options]) == 0
    text = capsys.readouterr().out
    assert "For 6 items on this machine" in text and "images/s" in text
    plan = RunDirectory(out).read()["plan"]
    assert plan["items"] == 6 and plan["rates"]["readable"] == pytest.approx(5 / 6)
    assert all(
        plan["rates"][name] > 0
        for name in ("images", "pairs", "searched", "compared", "levels", "indexed", "fetched")
    )
    assert set(plan["stages"]) == set(STAGES) and plan["seconds"] > 0

    assert run_command(["crawl", str(images), "--out", str(out), *options]) == 0
    assert "planned" in capsys.readouterr().out
    stage = RunDirectory(out).stage_record("crawl")
    assert stage["planned_seconds"] == plan["stages"]["crawl"]["seconds"] and stage["seconds"] >= 0
    assert json.dumps(plan)


def test_a_catalogue_of_which_nothing_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "c.csv").write_text("item_id,image,seller_id\n1,a.jpg,s\n")
    assert run_command(["plan", str(tmp_path / "c.csv"), "--seconds", "1"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "none of 1 images of the catalogue can be read (missing_file)" in error
