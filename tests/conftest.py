"""What several packages' tests share: one Ray, one tiny network, and who runs what at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

# What wants the machine's cores for itself, and is started once.
CLUSTERS = {"ray_local", "prefect_server"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the processes that run tests (pytest-xdist) one takes all modules with a cluster; the others go
    module by module, because their tests share what was dear to make."""
    crowded = {item.path for item in items if CLUSTERS & set(getattr(item, "fixturenames", ()))}
    for item in items:
        group = "clusters" if item.path in crowded else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray on this machine for the whole session; starting one costs seconds."""
    import ray

    from pipeline.runtime import init_ray
    from pipeline.settings import load_settings

    init_ray(load_settings(None, ["ray.num_cpus=2", "ray.object_store_mb=200"]))
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights folder of a PS-Net of random numbers, small enough to run in milliseconds."""
    import torch

    from psnet.model import PSNet, PSNetConfig
    from psnet.weights import save_psnet

    folder = tmp_path_factory.mktemp("weights") / "tiny"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_psnet(PSNet(PSNetConfig.tiny()), folder)
    return folder
