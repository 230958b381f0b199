"""flows/prefect.yaml against Prefect's own loader, and against a real server and worker."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml
from prefect import Flow
from prefect.cli.deploy._config import _load_deploy_configs_and_actions
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    DeploymentFilter,
    DeploymentFilterId,
)
from prefect.client.schemas.schedules import CronSchedule
from prefect.flows import load_flow_from_entrypoint
from rich.console import Console

from tests.flows.conftest import REPOSITORY, PrefectServer
from tests.pipeline.judged_run import make_run

PREFECT_FILE = REPOSITORY / "flows" / "prefect.yaml"
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load(PREFECT_FILE.read_text())["deployments"]

T = TypeVar("T")


def eventually(look: Callable[[], T], *, seconds: float) -> T:
    """The first true value that `look` gives within some time; the last one otherwise."""
    deadline = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def flow_of(deployment: dict[str, Any]) -> Flow[..., Any]:
    return load_flow_from_entrypoint(deployment["entrypoint"])


def test_prefect_keeps_every_key_of_the_file() -> None:
    # The loader drops what it does not know, and a whole file that it cannot read, with a yellow line only.
    loaded, _ = _load_deploy_configs_and_actions(PREFECT_FILE, console=Console(quiet=True))
    assert [set(deployment) for deployment in loaded] == [set(deployment) for deployment in DEPLOYMENTS]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["entrypoint"])
def test_every_parameter_exists_and_is_accepted(deployment: dict[str, Any]) -> None:
    flow = flow_of(deployment)
    parameters = inspect.signature(flow.fn).parameters
    assert set(deployment["parameters"]) <= set(parameters)
    missing = {name for name, p in parameters.items() if p.default is p.empty} - set(deployment["parameters"])
    flow.validate_parameters(deployment["parameters"] | dict.fromkeys(missing, "given"))
    # Nobody is there to fill in what a scheduled run lacks.
    assert not (deployment.get("schedules") and missing)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["entrypoint"])
def test_named_configuration_exists(deployment: dict[str, Any]) -> None:
    config = deployment["parameters"].get("config")
    assert config is None or (REPOSITORY / config).is_file()


def test_the_nightly_schedule_is_valid_and_misses_the_hour_that_summer_time_takes() -> None:
    schedules = [s for deployment in DEPLOYMENTS for s in deployment.get("schedules", [])]
    assert len(schedules) == 1
    schedule = CronSchedule(cron=schedules[0]["cron"], timezone=schedules[0]["timezone"])
    minute, hour = schedule.cron.split()[:2]
    assert minute.isdigit() and hour.isdigit() and int(hour) != 2


def test_deployed_picked_up_and_completed(prefect_server: PrefectServer, tmp_path: Path) -> None:
    prefect_server.prefect("work-pool", "create", "psnet", "--type", "process")
    prefect_server.prefect("deploy", "--all", "--prefect-file", "flows/prefect.yaml")
    finished_run = make_run(tmp_path).path
    out = tmp_path / "suspects.csv"
    worker = ("worker", "start", "--pool", "psnet")
    with (
        prefect_server.background(*worker, cwd=tmp_path, log=tmp_path / "worker.log"),
        get_client(sync_client=True) as client,
    ):
        deployments = {f"{d.name}/{client.read_flow(d.flow_id).name}": d for d in client.read_deployments()}
        assert set(deployments) == {
            "nightly/nightly-scan",
            "on-demand/brand-sweep",
            "on-demand/export-suspects",
        }
        parameters = {"run": str(finished_run), "format": "csv", "out": str(out)}
        started = client.create_flow_run_from_deployment(
            deployments["on-demand/export-suspects"].id, parameters=parameters
        )
        finished = eventually(
            lambda: (run := client.read_flow_run(started.id)).state.is_final() and run, seconds=120
        )
        assert finished and finished.state.is_completed(), (tmp_path / "worker.log").read_text()
        assert out.read_text(encoding="utf-8-sig").startswith("rank,")
        assert finished.name == f"export-{finished_run.name}-{datetime.now(UTC):%Y-%m-%d}"
        assert {"psnet", "export"} <= set(finished.tags)
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[finished.id]))
        )
        assert any(out.as_uri() in artifact.data for artifact in artifacts)

        # The cron deployment is worth nothing unless the server's scheduler makes runs from it.
        nightly = DeploymentFilter(id=DeploymentFilterId(any_=[deployments["nightly/nightly-scan"].id]))
        scheduled = eventually(lambda: client.read_flow_runs(deployment_filter=nightly), seconds=30)
        times = [run.expected_start_time for run in scheduled if run.expected_start_time]
        assert times and min(times) < datetime.now(UTC) + timedelta(hours=25)
