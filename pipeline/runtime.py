"""What processes need before they compute: BLAS kernels, the workers' allocator, Ray.

Imported before everything else in the package, so it imports nothing heavy itself.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.settings import Settings

WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""Environment of a process that runs the model on a CPU, for a Ray actor's ``runtime_env``.

glibc hands large buffers back to the system after every forward pass and faults them in again on the next
one; keeping them is worth up to a third of the throughput. It reads these variables only when a process
starts. One thread each, because two processes with one thread beat one process with two.
"""

_AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}


def choose_blas_kernels() -> None:
    """Point FAISS's OpenBLAS to its AVX-512 kernels where the CPU has them.

    FAISS's bundled OpenBLAS does not know recent CPUs and falls back to its slowest kernels: 20 million pairs
    a core-second instead of 92 (1280 dimensions, Sapphire Rapids). A value set from outside stands, except
    "Haswell": container images set it as the safe choice for any x86 machine, and it halves the speed of one
    with AVX-512.
    """
    if os.environ.get("OPENBLAS_CORETYPE", "Haswell") == "Haswell" and cpu_flags() >= _AVX512:
        os.environ["OPENBLAS_CORETYPE"] = "SkylakeX"


def cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            line = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return set()
    return set(line.split())


def cluster_address(settings: Settings) -> str | None:
    """Of the Ray cluster to join; None where one is started on this machine."""
    return settings.ray.address or os.environ.get("RAY_ADDRESS") or None


def init_ray(settings: Settings) -> None:
    """Join the Ray cluster of ``settings.ray.address`` or of RAY_ADDRESS, else start one on this machine.

    Does nothing when this process is connected already. Ray ends with the process.

    Raises:
        RunError: no cluster at that address, or Ray does not start here.
    """
    # Read when Ray is imported or started. A machine without a GPU is no reason for a warning.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    from pipeline.errors import RunError

    if ray.is_initialized():
        return
    address = cluster_address(settings)
    if address:
        _check_reachable(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            workers_too = settings.log_level == "debug"
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=workers_too)
        else:
            try:
                _start_ray(settings)
            except Exception:
                # Ray gives itself 30 s, too few on a busy machine. The second start has its files in memory.
                ray.shutdown()
                _start_ray(settings)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        where = f"join the Ray cluster at {address}" if address else "start Ray on this machine"
        raise RunError(f"cannot {where}: {reason}") from error
    # Ray puts its own handler there, under which the program would end without a word.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)


def _start_ray(settings: Settings) -> None:
    import ray

    ray.init(
        # Never a cluster that somebody else happens to run on this machine.
        address="local",
        num_cpus=settings.ray.num_cpus,
        object_store_memory=_object_store_bytes(settings.ray.object_store_mb),
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=settings.log_level == "debug",
    )


def _check_reachable(address: str) -> None:
    """Ray itself knocks at a wrong address for minutes, and says so in pages."""
    from pipeline.errors import RunError

    host_and_port = re.fullmatch(r"(?:ray://)?\[?([^\[\]]+?)\]?:(\d+)", address)
    if host_and_port is None:  # "auto", or a scheme that only Ray knows
        return
    try:
        socket.create_connection((host_and_port[1], int(host_and_port[2])), timeout=10).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"cannot join the Ray cluster at {address}: {reason}; see ray.address") from None


def _object_store_bytes(megabytes: int) -> int:
    """The wanted size, less where shared memory is small (64 MB in a container by default).

    Ray would then put the store on disk with a page of warnings, or die writing to it. It refuses less than
    75 MB.
    """
    wanted = megabytes << 20
    shared_memory = Path("/dev/shm")
    if shared_memory.is_dir():
        wanted = min(wanted, int(0.8 * shutil.disk_usage(shared_memory).free))
    return max(wanted, 80 << 20)
