"""Rendered photographs in DeepFashion2's layout: ``image/000001.jpg`` and ``annos/000001.json``.

Format: https://github.com/switchablenorms/DeepFashion2 (Ge et al., CVPR 2019): bounding boxes xyxy, landmarks
``[x, y, v, …]`` of the category with v = 2 visible, 1 occluded, 0 not labelled, polygons ``[x1, y1, …]``.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from psnet.render.catalogue import write_atomically
from psnet.render.design import sample_design
from psnet.render.photo import Photograph, photograph_design
from psnet.taxonomy import TORSO_CATEGORIES, Taxonomy

_NEIGHBOURS = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))


def _trace(inside: np.ndarray, x: int, y: int) -> list[tuple[int, int]]:
    """Outer contour of the blob whose first pixel in reading order is (x, y): Moore-neighbour tracing."""
    contour, start, direction = [(x, y)], (x, y), 7
    while True:
        for turn in range(8):
            d = (direction + 6 + turn) % 8
            nx, ny = contour[-1][0] + _NEIGHBOURS[d][0], contour[-1][1] + _NEIGHBOURS[d][1]
            if inside[ny, nx]:
                break
        else:
            return contour
        if (nx, ny) == start:
            return contour
        contour.append((nx, ny))
        direction = d
        if len(contour) > inside.size:  # a contour cannot be longer than the picture has pixels
            return contour


def mask_polygons(mask: np.ndarray, step: int = 2) -> list[list[float]]:
    """Outer polygons ``[x1, y1, x2, y2, …]`` of a mask (H, W) of 0 and 255, followed at every ``step``-th
    pixel.

    Blobs under a hundredth of the mask are left out.
    """
    small = np.pad(mask[::step, ::step] > 127, 1)
    least = 0.01 * small.sum()
    polygons = []
    while small.any():
        y, x = (int(v) for v in np.unravel_index(int(np.argmax(small)), small.shape))
        contour = _trace(small, x, y)
        blob = Image.new("1", small.shape[::-1])
        pen = ImageDraw.Draw(blob)
        if len(contour) > 2:
            pen.polygon(contour, fill=1, outline=1)
        else:
            pen.point(contour, fill=1)
        filled = np.asarray(blob)
        if (filled & small).sum() > max(least, 6):
            polygons.append(
                [float(v) for px, py in contour[::2] for v in ((px - 0.5) * step, (py - 0.5) * step)]
            )
        small &= ~filled
    return polygons


def annotation(photograph: Photograph, style: int = 1) -> dict[str, Any]:
    """One ``item`` of DeepFashion2's annotation; landmarks outside the frame are "not labelled"."""
    category = Taxonomy.load("deepfashion2").category(photograph.category)
    h, w = photograph.mask.shape
    landmarks: list[float] = []
    for x, y, v in photograph.landmarks.tolist():
        inside = 0 <= x < w and 0 <= y < h
        landmarks += [round(x, 1), round(y, 1), int(v)] if inside else [0, 0, 0]
    shown = landmarks[2::3]
    area = float((photograph.mask > 127).mean())
    hidden = sum(v < 2 for v in shown) / len(shown)
    return {
        "category_name": photograph.category.replace("_", " "),
        "category_id": category.id,
        "style": style,
        "bounding_box": [round(float(v)) for v in photograph.box],
        "landmarks": landmarks,
        "segmentation": mask_polygons(photograph.mask),
        # Their three grades: small, modest, large; slight, medium, heavy; none, medium, large.
        "scale": 1 if area < 0.1 else 2 if area < 0.45 else 3,
        "occlusion": 1 if hidden < 0.2 else 2 if hidden < 0.5 else 3,
        "zoom_in": 1 if 0 not in shown else 2 if shown.count(0) < 0.5 * len(shown) else 3,
        "viewpoint": 1,  # not worn
    }


def render_pair_item(seed: int, index: int, size: tuple[int, int] = (420, 560)) -> tuple[Photograph, int]:
    """Photograph ``index`` of a data set, and its pair's number: photographs 2k and 2k + 1 show one
    design."""
    pair = index // 2
    # The ten categories come in turn, the rare ones as often as the common.
    design = sample_design(
        np.random.default_rng((seed, pair, 0)), TORSO_CATEGORIES[pair % len(TORSO_CATEGORIES)]
    )
    return photograph_design(design, np.random.default_rng((seed, pair, 1 + index % 2)), size), pair


def write_deepfashion2(
    out_dir: Path | str, n: int, seed: int = 0, size: tuple[int, int] = (420, 560)
) -> Path:
    """Write ``n`` photographs with annotations; returns ``out_dir``. Every design is shown twice (shop,
    user)."""
    out = Path(out_dir)
    for folder in ("image", "annos"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for index in range(n):
        photograph, pair = render_pair_item(seed, index, size)
        buffer = io.BytesIO()
        Image.fromarray(photograph.pixels).save(buffer, "JPEG", quality=90)
        name = f"{index + 1:06d}"
        write_atomically(out / "image" / f"{name}.jpg", buffer.getvalue())
        data = {
            "source": "shop" if index % 2 == 0 else "user",
            "pair_id": pair + 1,
            "item1": annotation(photograph),
        }
        write_atomically(out / "annos" / f"{name}.json", json.dumps(data).encode())
    return out
