"""On demand: a run's suspects in the format that somebody asked for."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.artifacts import create_link_artifact

from flows import tasks
from pipeline.rundir import RunDirectory


@flow(
    name="export-suspects",
    flow_run_name=tasks.run_name("export", "run"),
    persist_result=False,
    result_serializer="json",
)
def export_suspects(run: str, format: str, out: str) -> None:
    """Write a run's suspects to one file.

    Args:
        run: run directory of a finished scan or sweep.
        format: csv, xlsx, json, parquet or html.
        out: the file to write.
    """
    tasks.export(RunDirectory.existing(run), format, Path(out))
    create_link_artifact(link=Path(out).resolve().as_uri(), link_text=Path(out).name, key="export")
