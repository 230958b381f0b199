"""The stages of the pipeline as Prefect tasks, and what a finished flow leaves behind in Prefect.

One owner per kind of retry: Ray replaces a dead worker, a committed shard is never computed again, Prefect
starts a failed stage once more. A stage continues where its last attempt stopped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.variables import Variable

import pipeline.catalogue
import pipeline.crawl
import pipeline.export
import pipeline.extract
import pipeline.index
import pipeline.judge
import pipeline.match
import pipeline.report
import pipeline.scan
import pipeline.verify
from pipeline.errors import UserError
from pipeline.rundir import RunDirectory

P = ParamSpec("P")
R = TypeVar("R")

RETRY_DELAYS_SECONDS = [60.0, 600.0]
"""A reclaimed node is replaced within a minute or so; an outage of storage or of a shop lasts longer."""

REPORT_BASE_URL = "psnet_report_base_url"
"""Prefect variable: the URL at which the folder above the run directories is served, if it is."""


def is_transient(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed stage deserves another attempt: always, unless its input is wrong and stays wrong."""
    return not isinstance(state.result(raise_on_failure=False), UserError)


def stage(function: Callable[P, R]) -> Task[P, R]:
    """A stage as a task. Its result lives in the run directory: Prefect neither stores nor caches it."""
    return task(
        name=function.__name__,
        retries=len(RETRY_DELAYS_SECONDS),
        retry_delay_seconds=RETRY_DELAYS_SECONDS,
        retry_condition_fn=is_transient,
        persist_result=False,
        cache_policy=NO_CACHE,
        log_prints=True,
    )(function)


read_catalogue = stage(pipeline.catalogue.read_catalogue)
crawl = stage(pipeline.crawl.crawl)
extract = stage(pipeline.extract.extract)
build_index = stage(pipeline.index.build_index)
match = stage(pipeline.match.match)
verify = stage(pipeline.verify.verify)
judge = stage(pipeline.judge.judge)
report = stage(pipeline.report.report)
sweep = stage(pipeline.scan.sweep)
export = stage(pipeline.export.export)


def run_name(kind: str, parameter: str) -> Callable[[], str]:
    """Names flow runs by their kind, the file that `parameter` points to, and the scheduled day (UTC)."""

    def name() -> str:
        return f"{kind}-{Path(flow_run.parameters[parameter]).stem}-{flow_run.scheduled_start_time:%Y-%m-%d}"

    return name


def publish(run: RunDirectory) -> None:
    """Leave two artifacts in Prefect: a link to the run's report, and the counts of its stages."""
    key = re.sub("[^a-z0-9]+", "-", run.path.name.lower()).strip("-") or "run"
    page = run.report_path.resolve()
    served = Variable.get(REPORT_BASE_URL)
    link = f"{served}/{page.relative_to(run.path.resolve().parent).as_posix()}" if served else page.as_uri()
    create_link_artifact(link=link, link_text=f"Suspects of {run.path.name}", key=f"{key}-report")
    create_table_artifact(table=counts(run.read()), key=f"{key}-counts")


def counts(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages in run.json as rows: what came in, what went out, what failed and why, seconds."""
    return [
        {
            "stage": name,
            "in": stage["in"],
            "out": stage["out"],
            "failed": ", ".join(f"{reason} {count}" for reason, count in stage["failed"].items()),
            "seconds": round(stage["seconds"], 1),
        }
        for name, stage in record["stages"].items()
    ]
