"""Every night: the whole catalogue, from photographs to ranked suspects."""

from __future__ import annotations

from prefect import flow

from flows import tasks
from pipeline.catalogue import catalogue_digest
from pipeline.rundir import begin_run
from pipeline.scan import check_settings
from pipeline.settings import load_settings


@flow(
    name="nightly-scan",
    flow_run_name=tasks.run_name("scan", "catalogue"),
    persist_result=False,
    result_serializer="json",
)
def nightly_scan(
    catalogue: str, out: str, config: str | None = None, overrides: list[str] | None = None
) -> None:
    """Screen a catalogue. What an earlier night has already done in the same run directory is kept.

    Args:
        catalogue: CSV or Parquet file, or a folder of images.
        out: run directory, on the file system that every node sees.
        config: YAML file over the defaults.
        overrides: "section.key=value", over the file.
    """
    settings = load_settings(config, overrides)
    check_settings(settings)
    items = tasks.read_catalogue(catalogue, settings.crawl.s3_endpoint_url)
    run = begin_run(out, settings, catalogue, catalogue_digest(items))
    with run.lock():
        tasks.crawl(run, items, settings)
        tasks.extract(run, settings)
        tasks.build_index(run, settings)
        tasks.match(run, settings)
        tasks.verify(run, settings)
        tasks.judge(run, settings)
        tasks.report(run, settings)
    tasks.publish(run)
