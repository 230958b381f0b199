"""The scanning flows whole, on a real server and a real Ray, with a network of random numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.brand_sweep import brand_sweep
from flows.nightly_scan import nightly_scan
from pipeline.rundir import STAGES, RunDirectory

pytestmark = pytest.mark.usefixtures("prefect_server", "ray_local")


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    rows = ["item_id,image,seller_id,listed_at"]
    for i in range(6):
        pixels = np.random.default_rng(i // 2).integers(0, 255, (96, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append(f"{i},{i}.png,seller {i},2025-01-0{i + 1}")
    rows.append("6,missing.png,seller 6,2025-01-07")
    (folder / "catalogue.csv").write_text("\n".join(rows))
    return folder / "catalogue.csv"


@pytest.fixture(scope="module")
def overrides(tiny_weights: Path) -> list[str]:
    return [f"extract.weights={tiny_weights}", "extract.detection_threshold=0.0", "extract.actors=1"]


@pytest.fixture(scope="module")
def nightly(
    prefect_server: object,
    ray_local: None,
    tmp_path_factory: pytest.TempPathFactory,
    catalogue: Path,
    overrides: list[str],
) -> RunDirectory:
    out = tmp_path_factory.mktemp("runs") / "Nightly_1"
    assert nightly_scan(str(catalogue), str(out), None, overrides, return_state=True).is_completed()
    return RunDirectory.existing(out)


def artifact(key: str) -> str:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    assert len(found) == 1
    return str(found[0].data)


def test_a_night_does_every_stage_and_tells_prefect(nightly: RunDirectory) -> None:
    record = nightly.read()
    assert all(record["stages"][stage]["done"] for stage in STAGES)
    assert nightly.report_path.resolve().as_uri() in artifact("nightly-1-report")
    counts = artifact("nightly-1-counts")
    assert all(stage in counts for stage in STAGES) and "missing_file 1" in counts


def test_the_next_night_does_nothing_twice(
    nightly: RunDirectory, catalogue: Path, overrides: list[str]
) -> None:
    before = nightly.read()["stages"]
    assert nightly_scan(str(catalogue), str(nightly.path), None, overrides, return_state=True).is_completed()
    after = nightly.read()["stages"]
    assert {stage: after[stage]["finished"] for stage in STAGES} == {
        stage: before[stage]["finished"] for stage in STAGES
    }


def test_a_sweep_uses_the_garments_of_the_night(
    nightly: RunDirectory, catalogue: Path, overrides: list[str], tmp_path: Path
) -> None:
    originals = catalogue.with_name("brand.csv")
    originals.write_text("\n".join(catalogue.read_text().splitlines()[:2]))
    out = tmp_path / "sweep"
    state = brand_sweep(str(originals), str(nightly.path), str(out), None, overrides, return_state=True)
    assert state.is_completed()
    sweep = RunDirectory.existing(out)
    assert sweep.read()["stages"]["report"]["done"]
    assert sweep.report_path.resolve().as_uri() in artifact("sweep-report")
