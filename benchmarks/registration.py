"""How well photographs are laid upon each other, by how far the cloth was bent: by the homography alone and
by the warp about it. On held-out garments, each photographed once more with up to two parts edited: there it
is known where every point belongs.

    python benchmarks/registration.py --config conf/train.yaml --set labels=[clothing/labels.jsonl] \
        --set masks=training/masks [--out benchmarks/REGISTRATION.md]
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field, replace

import numpy as np
from page import add_out, deliver

from psnet.config import add_options, load_options
from psnet.data.photographs import LabelledGarment
from psnet.data.rephotograph import Subject, rephotograph
from psnet.homography import project
from psnet.registration import find_keypoints, register
from psnet.taxonomy import Taxonomy
from psnet.train.__main__ import load_garments
from psnet.train.calibrate import CALIBRATION_CAMERA
from psnet.train.landmarks import edited_copy
from psnet.train.settings import TrainSettings

BENDS = (0.0, 0.01, 0.02, 0.03)
SHARES = (0.5, 0.9)

INTRODUCTION = """# Photographs laid upon each other

Written by `python benchmarks/registration.py`, whose first lines say how. {count} garments that nothing
was trained on, each photographed once more with up to two parts edited. How far points of the garment
lie from where they belong, as shares of the longer side of its box: half of them by less, and nine in
ten. Bent: the standard deviation of the shifts of most; some are bent twice as much, some a third.

| bent | laid upon each other | homography, half | nine in ten | warp, half | nine in ten | CPU-ms a pair |
|---|---|---|---|---|---|---|"""


@dataclass
class Measured:
    """Distances are shares of the longer side of the garment's box, one row a garment."""

    tried: int = 0
    seconds: float = 0.0
    flat: list[np.ndarray] = field(default_factory=list)
    bent: list[np.ndarray] = field(default_factory=list)


def points_on(subject: Subject) -> np.ndarray:
    """(n, 2) px, evenly over the garment."""
    low, high = subject.box[:2], subject.box[2:]
    steps = np.linspace(0.02, 0.98, 25)
    points = low + (high - low) * np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    if subject.mask is None:
        return points
    x, y = np.clip(points.astype(int), 0, np.array(subject.mask.shape)[::-1] - 1).T
    return points[subject.mask[y, x] > 127]


def measure(garments: list[LabelledGarment], bend: float) -> Measured:
    swap, camera, out = Taxonomy.load("clothing11").swap, replace(CALIBRATION_CAMERA, bend=bend), Measured()
    for index, garment in enumerate(garments):
        rng = np.random.default_rng((5, index))
        donor = garments[int(rng.integers(len(garments)))]
        subject, _ = edited_copy(garment, donor, int(rng.integers(3)), rng)
        view = rephotograph(subject, rng, camera, swap=swap, other=donor.read())
        one, other = find_keypoints(garment.read(), garment.box), find_keypoints(view.pixels, view.box)
        started = time.process_time()
        found = register(one, other)
        out.seconds += time.process_time() - started
        out.tried += 1
        points = points_on(subject)
        if found is None or not len(points):
            continue
        true, size = view.warp.place(points), (view.box[2:] - view.box[:2]).max()
        out.flat.append(np.linalg.norm(project(found.warp.matrix, points) - true, axis=1) / size)
        out.bent.append(np.linalg.norm(found.warp.place(points) - true, axis=1) / size)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, "psnet.train.settings.TrainSettings")
    add_out(parser)
    arguments = parser.parse_args()
    settings = load_options(TrainSettings, arguments)
    _, held = load_garments(settings)
    lines = [INTRODUCTION.format(count=len(held))]
    for bend in BENDS:
        print(f"bend {bend}", file=sys.stderr, flush=True)
        found = measure(held, bend)
        cells = [
            f"{value:.4f}"
            for rows in (found.flat, found.bent)
            for value in np.quantile(np.concatenate(rows), SHARES)
        ]
        lines.append(
            f"| {bend:g} | {len(found.flat)} of {found.tried} | {' | '.join(cells)} | "
            f"{1000 * found.seconds / found.tried:.0f} |"
        )
    deliver("\n".join(lines) + "\n", arguments.out)


if __name__ == "__main__":
    main()
