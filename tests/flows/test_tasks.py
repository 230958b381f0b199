"""Retries and what a flow leaves behind, on a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prefect import flow

from flows import tasks
from flows.nightly_scan import nightly_scan
from pipeline.errors import UserError
from tests.flows.conftest import PrefectServer

pytestmark = pytest.mark.usefixtures("prefect_server")


def attempts_of(failures: list[Exception]) -> tuple[int, bool]:
    """Run a stage that raises these, one a call; how often it was called, and whether the flow completed."""
    calls = 0

    def unsteady() -> None:
        nonlocal calls
        calls += 1
        if calls <= len(failures):
            raise failures[calls - 1]

    stage = tasks.stage(unsteady).with_options(retry_delay_seconds=0)

    @flow(name="unsteady", persist_result=False, result_serializer="json")
    def body() -> None:
        stage()

    state = body(return_state=True)
    return calls, state.is_completed()


def test_a_stage_is_started_again_after_a_transient_failure() -> None:
    assert attempts_of([OSError("storage is away"), TimeoutError("still away")]) == (3, True)


def test_a_stage_is_given_up_after_the_last_delay() -> None:
    attempts = 1 + len(tasks.RETRY_DELAYS_SECONDS)
    assert attempts_of([OSError("storage is gone")] * (attempts + 1)) == (attempts, False)


def test_a_users_mistake_is_not_tried_again() -> None:
    assert attempts_of([UserError("catalogue.csv: no column item_id")]) == (1, False)
    assert attempts_of([OSError("storage is away"), UserError("no such file")]) == (2, False)


def test_a_missing_catalogue_fails_the_flow_with_its_one_line(tmp_path: Path) -> None:
    state = nightly_scan(str(tmp_path / "missing.csv"), str(tmp_path / "run"), return_state=True)
    assert state.is_failed()
    with pytest.raises(UserError, match=r"missing\.csv"):
        state.result()


def test_prefect_pickles_nothing(prefect_server: PrefectServer, tmp_path: Path) -> None:
    # A failed flow's exception is stored whatever the settings say, so failures are the case to look at.
    nightly_scan(str(tmp_path / "missing.csv"), str(tmp_path / "run"), return_state=True)
    stored = [path.read_bytes() for path in (prefect_server.home / "storage").rglob("*") if path.is_file()]
    assert any(b"missing.csv" in content for content in stored)
    for content in stored:
        json.loads(content)
