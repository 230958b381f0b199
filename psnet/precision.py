"""Choice of the floating-point type that inference runs in.

On a GPU the choice is a question to the driver. On a CPU it has to be tried: some virtual machines advertise
AMX without letting it be used, and the first bfloat16 product ends the process with SIGILL, without an
exception; others run bfloat16 correctly but slower than float32. So a child process runs the kinds of layer
that the network is made of in both types and times them. Only a child that survives, computes the same
numbers and is faster earns the low precision.

``python -m psnet.precision bfloat16`` is that child.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PRECISIONS = ("float32", "bfloat16", "float16")

# Time in low precision over time in float32 below which the change is worth its rounding.
_WORTHWHILE = 0.9
# Largest error of the low-precision output relative to the largest value. bfloat16 has 8 significant bits, so
# a sound chip stays near 1e-2 over this depth and a broken kernel is far off.
_TOLERANCE = 0.1
# The child imports torch (seconds, more on a busy machine) and computes for about a second.
_TIMEOUT_S = 120.0
_CACHE_ENTRIES = 32
_ROUNDS = 5


class PrecisionError(ValueError):
    """The requested precision does not exist or cannot run on this device."""


@dataclass(frozen=True)
class Probe:
    """What a child process found out about one low precision on this CPU.

    ``works``: it ended in order and computed the same numbers as float32. ``ratio``: time in the low
    precision over time in float32 with channels_last, both on one thread (infinite when it does not work).
    ``reason``: why it does not work, else empty. ``lasting``: the answer belongs to the machine; a timeout
    does not.
    """

    works: bool
    ratio: float
    reason: str = ""
    lasting: bool = True


_known: dict[tuple[str, str], Probe] = {}


def choose_precision(
    requested: str,
    device: str | torch.device = "cpu",
    *,
    cache: Path | None = None,
    command: Sequence[str] | None = None,
) -> str:
    """The precision to load the model in: "float32", "bfloat16" or "float16".

    ``requested`` "auto" takes bfloat16 (else float16) on a CUDA device, and on a CPU bfloat16 where the probe
    finds it sound and faster than float32, else float32. A precision asked for by name is returned as it is,
    except that on a CPU it has to survive the probe.

    ``cache`` is the file that remembers probes (default: ``psnet/precision.json`` in the user's cache folder;
    a file that cannot be written is done without). ``command`` replaces the child process of the probe.

    Raises PrecisionError for an unknown name, or a named precision that cannot run here.
    """
    if requested not in ("auto", *PRECISIONS):
        raise PrecisionError(f"precision {requested!r}: choose one of auto, {', '.join(PRECISIONS)}")
    if requested == "float32":
        return "float32"
    if torch.device(device).type == "cuda":
        return _choose_on_cuda(requested)
    if requested == "auto":
        found = _remembered_probe("bfloat16", cache, command)
        return "bfloat16" if found.works and found.ratio < _WORTHWHILE else "float32"
    found = _remembered_probe(requested, cache, command)
    if not found.works:
        raise PrecisionError(f"precision {requested}: {found.reason}; use float32 or auto")
    return requested


def _choose_on_cuda(requested: str) -> str:
    bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if requested == "auto":
        return "bfloat16" if bfloat16 else "float16"
    if requested == "bfloat16" and not bfloat16:
        raise PrecisionError("precision bfloat16: this GPU has no bfloat16 arithmetic; use float16 or auto")
    return requested


def probe(precision: str, command: Sequence[str] | None = None, timeout_s: float = _TIMEOUT_S) -> Probe:
    """Try ``precision`` on this CPU in a child process, which may die of it."""
    if command is None:
        command = (sys.executable, "-m", "psnet.precision", precision)
    # The child has to find this very package, installed or not.
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
    try:
        child = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        )
    except subprocess.TimeoutExpired:
        return Probe(False, float("inf"), f"the probe took more than {timeout_s:.0f} s", lasting=False)
    except OSError as error:
        return Probe(False, float("inf"), f"the probe did not start ({error})", lasting=False)
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        # SIGKILL is the kernel's memory killer or a person, SIGTERM a shutdown: neither is the chip's doing.
        lasting = name not in ("SIGKILL", "SIGTERM", "SIGINT")
        return Probe(False, float("inf"), f"the probe died of {name} on this CPU", lasting)
    try:
        measured = json.loads(child.stdout.strip().splitlines()[-1])
        ratio, error_size = float(measured["ratio"]), float(measured["error"])
    except (ValueError, KeyError, IndexError, TypeError):
        last = (child.stderr.strip().splitlines() or ["no output"])[-1]
        return Probe(False, float("inf"), f"the probe failed on this CPU ({last})")
    if not error_size <= _TOLERANCE:
        return Probe(False, float("inf"), f"results on this CPU are off by {error_size:.2g}")
    return Probe(True, ratio)


def _remembered_probe(precision: str, cache: Path | None, command: Sequence[str] | None) -> Probe:
    """`probe`, run once per process and, through a small JSON file, once per machine and torch version."""
    path = cache or _default_cache()
    memory_key = (str(path), precision)
    if memory_key in _known:
        return _known[memory_key]
    machine_key = f"{precision} {_machine()} torch {torch.__version__}"
    # Several workers start together on one machine: the first one probes, the others wait for its answer.
    # Probes side by side would also disturb each other's timing.
    with _locked(path):
        found = _read_cache(path).get(machine_key)
        if found is None:
            found = probe(precision, command)
            if found.lasting:
                _write_cache(path, machine_key, found)
    _known[memory_key] = found
    return found


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "psnet" / "precision.json"


def _machine() -> str:
    """Name of the CPU as this machine presents it.

    The model's name alone does not do: a virtual machine may hide or break parts of the chip, so the feature
    flags, the kernel and the host's name (a home folder may be shared by many hosts) are part of it.
    """
    model, flags = platform.machine(), ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                model = value.strip()
            elif name.strip() in ("flags", "Features"):
                flags = value.strip()
            elif not line.strip():
                break
    rest = hashlib.sha256(f"{flags} {platform.release()} {platform.node()}".encode()).hexdigest()[:12]
    return f"{model} {rest}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock beside ``path``; without one where the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path.with_suffix(".lock"), "w")  # noqa: SIM115 (closed below, after the body)
    except OSError:
        yield
        return
    with file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_cache(path: Path) -> dict[str, Probe]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): Probe(**value) for key, value in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write_cache(path: Path, key: str, found: Probe) -> None:
    entries = {**_read_cache(path), key: found}
    kept = dict(list(entries.items())[-_CACHE_ENTRIES:])
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps({k: asdict(v) for k, v in kept.items()}, indent=1), encoding="utf-8")
        os.replace(temporary, path)


class _Layers(nn.Module):
    """The kinds of layer in PS-Net at their usual sizes: 3 × 224 × 224 in, a few products out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
        )
        self.depthwise = nn.Conv2d(64, 64, 5, padding=2, groups=64)
        self.down = nn.Conv2d(64, 128, 3, stride=2, padding=1)
        self.wide = nn.Conv2d(128, 1024, 1)
        self.up = nn.ConvTranspose2d(128, 32, 4, stride=2, padding=1)
        self.head = nn.Linear(1024, 256)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (B, 64, 56, 56)
        low = self.down(x + self.depthwise(x)).relu()  # (B, 128, 28, 28)
        raised = F.interpolate(low, scale_factor=2.0, mode="bilinear", align_corners=False)
        wide = self.wide(low).sigmoid()  # (B, 1024, 28, 28)
        pooled = self.head(wide.mean((2, 3)))  # (B, 256)
        tokens = wide.flatten(2).transpose(1, 2)  # (B, 784, 1024)
        products = tokens @ tokens[:, :64].transpose(1, 2)  # (B, 784, 64)
        parts = (pooled, products.mean(1), self.up(low).mean((2, 3)), raised.mean((2, 3)))
        return torch.cat([part / part.abs().amax() for part in parts], dim=1)


def _measure(precision: str) -> dict[str, float]:
    """Time and error of ``precision`` against float32, one thread, channels_last."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = _Layers().eval().to(memory_format=torch.channels_last)
    images = torch.rand(4, 3, 224, 224).to(memory_format=torch.channels_last)
    low_type = getattr(torch, precision)
    low_model = _Layers().eval().to(memory_format=torch.channels_last)
    low_model.load_state_dict(model.state_dict())
    low_model = low_model.to(low_type)
    sides = ((model, images), (low_model, images.to(low_type)))
    best = [float("inf"), float("inf")]
    outputs: list[Tensor] = [images, images]
    with torch.inference_mode():
        # In turns, and the best of several rounds: the machine may be busy with something else.
        for _ in range(1 + _ROUNDS):
            for side, (network, x) in enumerate(sides):
                start = time.perf_counter()
                outputs[side] = network(x).float()
                best[side] = min(best[side], time.perf_counter() - start)
    error = (outputs[0] - outputs[1]).abs().max().item()
    return {"ratio": best[1] / best[0], "error": float("inf") if math.isnan(error) else error}


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1])))
