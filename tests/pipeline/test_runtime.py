"""What is set before anything computes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipeline import runtime
from pipeline.errors import RunError

AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}


@pytest.mark.parametrize(
    ("flags", "given", "expected"),
    [
        (AVX512, None, "SkylakeX"),
        (AVX512, "Haswell", "SkylakeX"),
        (AVX512, "Zen", "Zen"),
        ({"avx2"}, None, None),
        ({"avx2"}, "Haswell", "Haswell"),
        ({"avx2", "avx512f"}, None, None),
        (set(), None, None),
    ],
)
def test_avx512_kernels_only_where_the_cpu_has_them(
    flags: set[str], given: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(runtime, "cpu_flags", lambda: flags)
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    if given is not None:
        monkeypatch.setenv("OPENBLAS_CORETYPE", given)
    runtime.choose_blas_kernels()
    assert os.environ.get("OPENBLAS_CORETYPE") == expected


def test_any_module_of_the_package_sets_it_first():
    code = (
        "import os, sys, pipeline.schema; print(os.environ.get('OPENBLAS_CORETYPE'), 'faiss' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    wanted = "SkylakeX" if runtime.cpu_flags() >= AVX512 else "None"
    assert out.stdout.split() == [wanted, "False"]


def test_the_object_store_fits_into_shared_memory():
    assert runtime._object_store_bytes(100) <= 100 << 20
    assert runtime._object_store_bytes(1 << 30) < 1 << 50
    assert runtime._object_store_bytes(1) == 80 << 20


def test_no_cluster_at_the_address_is_one_clear_line():
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1"):
        with pytest.raises(RunError, match=r"cannot join the Ray cluster at .*:1: "):
            runtime._check_reachable(address)
    runtime._check_reachable("auto")


@pytest.mark.slow
def test_a_private_cluster_starts_quietly_computes_and_leaves_sigterm_alone():
    code = """
import signal
def handler(*_): pass
signal.signal(signal.SIGTERM, handler)
from pipeline.runtime import init_ray
from pipeline.settings import load_settings
settings = load_settings(None, ["ray.num_cpus=1", "ray.object_store_mb=100"])
init_ray(settings)
init_ray(settings)
import ray
assert ray.get(ray.remote(lambda: 6 * 7).remote()) == 42
assert ray.cluster_resources()["CPU"] == 1
assert signal.getsignal(signal.SIGTERM) is handler
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
    assert not done.stderr
