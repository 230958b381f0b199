"""The backbones by torch and by OpenVINO: images per CPU-second on one thread, and how far outputs are off.

    pip install openvino     # no dependency of psnet
    OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184
        python benchmarks/runtimes.py [--out benchmarks/RUNTIMES.md]

The shipped weights, batch normalisation folded, as extraction runs them: channels_last, batches of eight, the
allocator's settings of its workers. OpenVINO converts the traced module and runs one stream of one thread.
Outputs are compared with torch's float32, relative to the greatest value. The median of twelve batches of
noise.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from page import add_out, deliver
from torch import nn

from pipeline.check import load_model
from pipeline.settings import load_settings

BATCH, ROUNDS = 8, 12
# What part of the models' time each takes, as benchmarks/EXTRACTION.md has it.
SHARES = {"landmark branch: backbone": 0.38, "detector: backbone": 0.17}


class FirstOutput(nn.Module):
    """Of a network that gives a dictionary: its first map, as torch and OpenVINO are compared by."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.network(images)
        return next(iter(found.values())) if isinstance(found, dict) else found


def rate(work: Callable[[], object]) -> float:
    """Images a CPU-second."""
    work()
    spent = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return BATCH / float(np.median(spent))


def by_torch(network: nn.Module, images: torch.Tensor, precision: torch.dtype) -> tuple[float, np.ndarray]:
    low = precision != torch.float32
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
        return rate(lambda: network(images)), network(images).float().numpy()


def by_openvino(network: nn.Module, images: torch.Tensor, precision: str) -> tuple[float, np.ndarray]:
    import openvino

    converted = openvino.convert_model(network, example_input=images)
    options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
    request = openvino.Core().compile_model(converted, "CPU", options).create_infer_request()
    values = [images.contiguous().numpy()]
    return rate(lambda: request.infer(values)), request.get_output_tensor(0).data.copy()


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add_out(parser)
    options = parser.parse_args()
    try:
        import openvino
    except ImportError:
        sys.exit("openvino is not installed: pip install openvino, and again")
    torch.set_num_threads(1)
    model = load_model(load_settings(None, ["extract.precision=float32", "extract.device=cpu"])).model
    lines = [
        "# Runtimes",
        "",
        f"Written by `python benchmarks/runtimes.py`, whose first lines say how. torch {torch.__version__}, "
        f"OpenVINO {openvino.__version__}; load {os.getloadavg()[0]:.1f}.",
        "",
        "| network | runtime | images per CPU-s | off by |",
        "|---|---|---|---|",
    ]
    left = dict.fromkeys(("float32", "bfloat16"), 1.0)
    for name, network, side in (
        ("landmark branch: backbone", model.landmarks.backbone, 224),
        ("detector: backbone", model.detector.backbone, 320),
    ):
        images = torch.rand(BATCH, 3, side, side, generator=torch.Generator().manual_seed(0))
        images = images.contiguous(memory_format=torch.channels_last)
        whole = FirstOutput(network).eval().to(memory_format=torch.channels_last)
        found = {
            "torch float32": by_torch(whole, images, torch.float32),
            "torch bfloat16": by_torch(whole, images, torch.bfloat16),
            "OpenVINO float32": by_openvino(whole, images, "f32"),
            "OpenVINO bfloat16": by_openvino(whole, images, "bf16"),
        }
        exact = found["torch float32"][1]
        for runtime, (images_a_second, output) in found.items():
            off = np.abs(output - exact).max() / np.abs(exact).max()
            lines.append(f"| {name} | {runtime} | {images_a_second:.1f} | {off:.1e} |")
        for precision in left:
            faster = found[f"OpenVINO {precision}"][0] / found[f"torch {precision}"][0]
            left[precision] -= SHARES[name] * (1 - 1 / faster)
    shares = " and ".join(f"{100 * share:.0f} %" for share in SHARES.values())
    gains = " and ".join(f"{1 / time - 1:.0%} in {precision}" for precision, time in left.items())
    lines += [
        "",
        f"The two take {shares} of the models' time (`EXTRACTION.md`); with all else as it is, OpenVINO "
        f"would make extraction faster by {gains}. It is not taken: where bfloat16 works, that is less than "
        "a second runtime beside torch, with a conversion of its own to keep right, is worth.",
    ]
    deliver("\n".join(lines) + "\n", options.out)


if __name__ == "__main__":
    main()
