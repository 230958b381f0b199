"""Rendered photographs per second on one core, drawing and photographing apart.

    python benchmarks/render.py [--images 200] [--size 420x560]

CPU seconds of this process are counted, not wall time, so that other work on the machine does not matter.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from psnet.render.design import sample_design
from psnet.render.draw import draw, sample_pose
from psnet.render.photo import photograph, photograph_design


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", default="420x560", help="width x height of the photographs, px")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    width, height = (int(v) for v in arguments.size.split("x"))
    side = min(int(0.85 * max(width, height)), 512)
    photograph_design(sample_design(np.random.default_rng(0)), np.random.default_rng(0))  # loads what is lazy
    drawing_s = photograph_s = 0.0
    for index in range(arguments.images):
        rng = np.random.default_rng((1, index))
        design = sample_design(rng)
        start = time.process_time()
        drawing = draw(design, sample_pose(rng, design), side)
        middle = time.process_time()
        photograph(drawing, rng, (width, height))
        drawing_s += middle - start
        photograph_s += time.process_time() - middle
    n = arguments.images
    print(f"drawing        {1000 * drawing_s / n:6.1f} ms an image")
    print(f"photographing  {1000 * photograph_s / n:6.1f} ms an image")
    print(
        f"together       {n / (drawing_s + photograph_s):6.1f} images a second and core, {width} × {height}"
    )


if __name__ == "__main__":
    main()
