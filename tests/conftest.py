"""What several packages' tests share: one Ray, one tiny network, and who runs what at the same time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# The processes that run tests share the machine's cores: threads that wait for each other by spinning, as
# OpenMP's do, take them from whom they wait for, which can double the time. Read when PyTorch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# What wants the machine's cores for itself, and is started once.
CLUSTERS = ("ray_local", "prefect_server")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of the processes that run tests one takes all modules with a cluster; the others go module by module,
    because their tests share what was dear to make."""
    from xdist.scheduler import LoadScopeScheduling

    class ByCluster(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid.partition("::")[0])

    return ByCluster(config, log)


@cache
def _scope(module: str) -> str:
    source = (Path(__file__).parents[1] / module).read_text(encoding="utf-8")
    return "clusters" if any(name in source for name in CLUSTERS) else module


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
