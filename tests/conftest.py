"""What several packages' tests share: one Ray, one tiny network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


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
