"""On demand: one brand's originals against a catalogue."""

from __future__ import annotations

from prefect import flow

from flows import tasks
from pipeline.settings import load_settings


@flow(
    name="brand-sweep",
    flow_run_name=tasks.run_name("sweep", "originals"),
    persist_result=False,
    result_serializer="json",
)
def brand_sweep(
    originals: str, against: str, out: str, config: str | None = None, overrides: list[str] | None = None
) -> None:
    """Search for copies of originals.

    Args:
        originals: catalogue of the brand's own designs.
        against: run directory of an earlier scan (its garments are used as they are), or a catalogue.
        out: run directory of the sweep.
        config: YAML file over the defaults.
        overrides: "section.key=value", over the file.
    """
    settings = load_settings(config, overrides)
    run = tasks.sweep(originals, against, out, settings)
    tasks.publish(run)
