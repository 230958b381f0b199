"""Pictures that show what the tables say: landmarks and regions, attention, region weights, precision-recall
curves, retrieval rows as in the paper's Figure 5.

Drawn with Pillow alone. Where a photograph may not be shown, its outlines are.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor, nn

from psnet.crops import GARMENT_MARGIN, cut, expand
from psnet.evaluation.benchmark import Benchmark
from psnet.predictor import Garment, Predictor
from psnet.regions import GROUPS, NUM_REGIONS, REGIONS, Presence
from psnet.retrieval import RoiRetrieval

# Colour-blind safe (Okabe and Ito, 2008).
_COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
    (90, 90, 90),
)
_RIGHT, _SAME_DESIGN, _WRONG, _QUERY = (0, 158, 115), (140, 140, 140), (213, 94, 0), (0, 0, 0)
_INK, _PAPER = (30, 30, 30), (255, 255, 255)
# A file in the repository should stay below this many bytes.
MAX_BYTES = 300_000
_VISIBLE = 0.5


def save(picture: Image.Image, path: Path) -> None:
    """As JPEG of at most ``MAX_BYTES``; the file is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for quality in (90, 80, 70, 60, 45, 30):
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= MAX_BYTES:
            break
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)


def outline(pixels: np.ndarray) -> np.ndarray:
    """Dark edges on white, (H, W, 3) uint8: shows where things lie, but is no copy of the photograph."""
    grey = Image.fromarray(pixels).convert("L").filter(ImageFilter.GaussianBlur(max(pixels.shape[:2]) / 300))
    steep = np.hypot(*np.gradient(np.asarray(grey, np.float32)))
    share = np.clip(steep / max(float(np.quantile(steep, 0.98)), 1e-6), 0, 1)
    return np.repeat((255 - 200 * share).astype(np.uint8)[..., None], 3, axis=2)


def draw_garments(pixels: np.ndarray, garments: Sequence[Garment]) -> Image.Image:
    """A photograph (H, W, 3) with boxes, regions and landmarks; rings are landmarks that cannot be seen."""
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    width = max(round(max(picture.size) / 250), 1)
    for garment in garments:
        draw.rectangle(_corners(garment.box), outline=_PAPER, width=width)
        for r in range(NUM_REGIONS):
            if garment.presence[r] == Presence.PRESENT:
                draw.rectangle(_corners(garment.region_boxes[r]), outline=_COLOURS[r], width=width)
        for x, y, visible in garment.landmarks.tolist():
            ring = [x - 2 * width, y - 2 * width, x + 2 * width, y + 2 * width]
            draw.ellipse(ring, fill=_INK if visible >= _VISIBLE else None, outline=_PAPER, width=1)
    return picture


def draw_attention(
    predictor: Predictor, pixels: np.ndarray, garment: Garment, shown: np.ndarray | None = None
) -> Image.Image:
    """The garment's crop, bright where the attention map A, averaged over its channels, is high.

    ``shown``: (H, W, 3) what is drawn instead of the photograph ``pixels`` that the model sees.

    Raises:
        ValueError: the model has no attention.
    """
    branch = predictor.model.retrieval
    if not isinstance(branch, RoiRetrieval) or branch.attention is None:
        raise ValueError("this model has no attention maps")
    maps: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        maps.append(output[1])

    hook = branch.attention.register_forward_hook(keep)
    try:
        predictor.describe([pixels], garment.box[None])
    finally:
        hook.remove()
    # The first call is of the garment as it is, the second of its mirror image.
    mean = maps[0][0].float().mean(0).cpu().numpy()
    bright = (mean - mean.min()) / max(float(np.ptp(mean)), 1e-6)
    picture = Image.fromarray(pixels if shown is None else shown)
    side = 224
    crop = cut(picture, expand(garment.box, GARMENT_MARGIN, picture.width, picture.height), side)
    light = Image.fromarray((255 * bright).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    share = np.asarray(light, np.float32)[..., None] / 255
    grey = crop.mean(-1, keepdims=True) * 0.5
    warm = grey * (1 - share) + (0.4 * crop + 0.6 * np.array(_COLOURS[0])) * share
    return Image.fromarray(np.clip(warm, 0, 255).astype(np.uint8))


def draw_region_weights(tables: Mapping[str, np.ndarray]) -> Image.Image:
    """λ per group as bars, a row per table by its title: (4, 5) of ``psnet.regions.GROUPS``, each row scaled
    to sum 1."""
    width, height, left, above, below = 180, 130, 20, 34, 30
    full = above + height + below
    picture = Image.new("RGB", (left + width * len(GROUPS), full * len(tables) + 30), _PAPER)
    draw = ImageDraw.Draw(picture)
    for t, (title, weights) in enumerate(tables.items()):
        floor = t * full + above + height
        _write(draw, (left, t * full + 14), title, "lm", 15)
        shares = weights / weights.sum(1, keepdims=True)
        scale = (height - 20) / max(float(shares.max()), 1 / NUM_REGIONS)
        for g, group in enumerate(GROUPS):
            x0 = left + g * width
            for r in range(NUM_REGIONS):
                x, y = x0 + 12 + r * 28, floor - shares[g, r] * scale
                draw.rectangle([x, y, x + 22, floor], fill=_COLOURS[r])
                _write(draw, (x + 11, y - 4), f"{shares[g, r]:.2f}", "ms", 11)
            _write(draw, (x0 + 80, floor + 12), group, "mm", 14)
            # What λ = 1 would be.
            y = floor - scale / NUM_REGIONS
            draw.line([x0 + 6, y, x0 + 158, y], fill=_COLOURS[-1])
    _legend(draw, (left, full * len(tables) + 8), [name.replace("_", " ") for name in REGIONS])
    return picture


Curves = Mapping[str, Sequence[tuple[float, float]]]
"""(recall, precision) by method."""


def draw_curves(panels: Mapping[str, Curves]) -> Image.Image:
    """Precision over recall, a panel per title with a curve per method, and what colour a method has; from
    the eighth method on dashed."""
    side, left, top, columns = 270, 60, 34, 3
    cell = (left + side + 20, top + side + 50)
    rows = -(-(len(panels) + 1) // columns)
    x0, y0 = len(panels) % columns * cell[0] + 20, len(panels) // columns * cell[1] + top
    methods = list(next(iter(panels.values())))
    named = x0 + 40 + max(ImageFont.load_default(size=13).getlength(_spelt(name)) for name in methods)
    picture = Image.new("RGB", (max(columns * cell[0], int(named)), rows * cell[1]), _PAPER)
    draw = ImageDraw.Draw(picture)
    for c, name in enumerate(methods):
        y, dashed = y0 + 22 * c, c >= len(_COLOURS)
        draw.line([x0, y, x0 + (10 if dashed else 24), y], fill=_COLOURS[c % len(_COLOURS)], width=4)
        _write(draw, (x0 + 32, y), name, "lm", 13)
    for p, (title, curves) in enumerate(panels.items()):
        x0, y0 = p % columns * cell[0] + left, p // columns * cell[1] + top
        _panel(draw, (x0, y0), side, title)
        for c, points in enumerate(curves.values()):
            line = [(x0 + recall * side, y0 + (1 - precision) * side) for recall, precision in points]
            for k in range(0, len(line) - 1, 2 if c >= len(_COLOURS) else 1):
                draw.line(line[k : k + 2], fill=_COLOURS[c % len(_COLOURS)], width=2)
    return picture


def _panel(draw: ImageDraw.ImageDraw, at: tuple[float, float], side: int, title: str) -> None:
    """Axes of precision over recall."""
    x0, y0 = at
    _write(draw, (x0 + side / 2, y0 - 16), title, "mm", 15)
    draw.rectangle([x0, y0, x0 + side, y0 + side], outline=_INK)
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1.0):
        x, y = x0 + tick * side, y0 + (1 - tick) * side
        draw.line([x, y0 + side, x, y0 + side + 5], fill=_INK)
        draw.line([x0 - 5, y, x0, y], fill=_INK)
        _write(draw, (x, y0 + side + 14), f"{tick:.1f}", "mm", 12)
        _write(draw, (x0 - 10, y), f"{tick:.1f}", "rm", 12)
    _write(draw, (x0 + side / 2, y0 + side + 32), "recall", "mm", 13)
    _write(draw, (x0 + 8, y0 + side - 14), "precision", "lm", 13)


def draw_retrieval(
    benchmark: Benchmark,
    queries: Sequence[str],
    scores: np.ndarray,
    best: int = 10,
    look: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels,
) -> Image.Image:
    """A row per query: the original, then its best partners. Frames: green a plagiarised copy, grey another
    item of the same design, red another design.

    Args:
        scores: (q, items) of ``queries``, -inf: not in the ranking. look: what is shown of a photograph.
    """

    def framed(row: int, colour: tuple[int, int, int]) -> Image.Image:
        return _tile(look(benchmark.picture(row)), tile, colour)

    tile, gap = (90, 120), 6
    plagiarised = {(p.original, p.copy) for p in benchmark.truth if p.relation == "plagiarised"}
    design = benchmark.design
    rows = benchmark.rows
    picture = Image.new(
        "RGB", ((best + 1) * (tile[0] + gap) + 3 * gap, len(queries) * (tile[1] + gap) + gap), _PAPER
    )
    for q, query in enumerate(queries):
        y = gap + q * (tile[1] + gap)
        picture.paste(framed(rows[query], _QUERY), (gap, y))
        order = [int(i) for i in np.argsort(-scores[q], kind="stable")[:best] if np.isfinite(scores[q, i])]
        for rank, row in enumerate(order, 1):
            name = benchmark.items[row].item_id
            colour = _SAME_DESIGN if design.get(name) == query else _WRONG
            colour = _RIGHT if (query, name) in plagiarised else colour
            picture.paste(framed(row, colour), (3 * gap + rank * (tile[0] + gap), y))
    return picture


def sheet(pictures: Sequence[Image.Image], columns: int, tile: tuple[int, int]) -> Image.Image:
    """Pictures side by side, each fitted into ``tile`` (width, height)."""
    count = -(-len(pictures) // columns)
    out = Image.new("RGB", (columns * tile[0], max(count, 1) * tile[1]), _PAPER)
    for i, picture in enumerate(pictures):
        small = picture.copy()
        small.thumbnail((tile[0] - 4, tile[1] - 4))
        out.paste(small, (i % columns * tile[0] + 2, i // columns * tile[1] + 2))
    return out


def _tile(pixels: np.ndarray, size: tuple[int, int], colour: tuple[int, int, int]) -> Image.Image:
    picture = Image.fromarray(pixels)
    picture.thumbnail((size[0] - 8, size[1] - 8))
    out = Image.new("RGB", size, _PAPER)
    ImageDraw.Draw(out).rectangle([0, 0, size[0] - 1, size[1] - 1], outline=colour, width=3)
    out.paste(picture, ((size[0] - picture.width) // 2, (size[1] - picture.height) // 2))
    return out


def _corners(box: np.ndarray) -> list[float]:
    x0, y0, x1, y1 = (float(v) for v in box)
    return [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]


def _legend(draw: ImageDraw.ImageDraw, at: tuple[float, float], names: Sequence[str]) -> None:
    x, y = at
    for r, name in enumerate(names):
        draw.rectangle([x, y, x + 12, y + 12], fill=_COLOURS[r])
        _write(draw, (x + 18, y + 6), name, "lm", 13)
        x += 130


def _write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, anchor: str, size: int) -> None:
    draw.text(at, _spelt(text), fill=_INK, font=ImageFont.load_default(size=size), anchor=anchor)


def _spelt(text: str) -> str:
    # Pillow's own font knows no Greek and no subscripts.
    return text.replace("λ", "lambda").replace("₂", "2")
