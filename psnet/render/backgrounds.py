"""What lies under, or hangs behind, a garment in a phone snapshot: floors, carpets, bedspreads, walls."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from psnet.render.cloth import paint, smooth_noise
from psnet.render.design import sample_colour, sample_look

Array = np.ndarray


def _lit(rng: np.random.Generator, h: int, w: int, strength: float = 0.12) -> Array:
    return 1 + strength * smooth_noise(rng, h, w, 2, 2)


def _wood(rng: np.random.Generator, h: int, w: int) -> Array:
    tone = np.array(
        [[0.72, 0.55, 0.36], [0.55, 0.38, 0.24], [0.62, 0.60, 0.57], [0.42, 0.32, 0.26], [0.8, 0.68, 0.5]][
            int(rng.integers(5))
        ]
    )
    across = rng.random() < 0.4
    rows, columns = (w, h) if across else (h, w)
    width = columns / rng.uniform(3, 9)
    u, v = np.arange(columns, dtype=np.float32)[None], np.arange(rows, dtype=np.float32)[:, None]
    board = np.floor(u / width).astype(int)
    joints = rng.uniform(0, rows, 64)
    piece = (v > joints[board % 64]).astype(int) + 2 * board
    shade = rng.normal(1, 0.06, 256).astype(np.float32)[piece % 256]
    grain = (
        smooth_noise(rng, rows, columns, 6, columns // 3) * 0.05
        + smooth_noise(rng, rows, columns, 3, columns // 9) * 0.04
    )
    seam = np.clip(1.3 - np.minimum(u % width, width - u % width), 0, 1) + np.clip(
        1 - np.abs(v - joints[board % 64]), 0, 1
    )
    sheet = (shade + grain) * (1 - 0.4 * np.clip(seam, 0, 1))
    sheet = sheet.T if across else sheet
    return sheet[..., None] * tone


def _carpet(rng: np.random.Generator, h: int, w: int) -> Array:
    base = np.array(sample_colour(rng)) * 0.9
    sheet = np.broadcast_to(base, (h, w, 3)) * (1 + 0.1 * rng.standard_normal((h, w, 1), dtype=np.float32))
    if rng.random() < 0.4:
        tile = smooth_noise(rng, h // 2, w // 2, int(rng.integers(4, 10)), int(rng.integers(4, 10)))
        tile = np.concatenate([tile, tile[:, ::-1]], 1)
        tile = np.concatenate([tile, tile[::-1]], 0)
        full = np.zeros((h, w), np.float32)
        full[: tile.shape[0], : tile.shape[1]] = tile
        mix = rng.uniform(0.15, 0.6)
        for level in (0.5, 1.1):
            colour = np.array(sample_colour(rng)) * (
                1 + 0.12 * rng.standard_normal((h, w, 1), dtype=np.float32)
            )
            sheet = np.where((full > level)[..., None], (1 - mix) * sheet + mix * colour, sheet)
    return sheet


def creases(rng: np.random.Generator, h: int, w: int, cells: float, ridged: float = 0.6) -> Array:
    """Height of crumpled cloth, (h, w) float32 of about unit deviation: waves and sharp ridges, turned at
    random."""
    total = np.zeros((h, w), np.float32)
    for octave in range(2):
        span = int(1.45 * max(h, w)) + 2
        n = cells * 1.9**octave
        field = smooth_noise(
            rng, span, span, max(int(n * rng.uniform(0.4, 0.8)), 2), max(int(n * rng.uniform(1.0, 1.7)), 2)
        )
        field = (1 - ridged) * field - ridged * 1.6 * np.abs(field)
        turned = Image.fromarray(field).rotate(float(rng.uniform(0, 180)), Image.Resampling.BILINEAR)
        x, y = (span - w) // 2, (span - h) // 2
        total += np.asarray(turned)[y : y + h, x : x + w] / (1.6**octave)
    return total


def relief(height: Array, direction: float) -> Array:
    """Light on a height field, −1 … 1, about 0.5 on average: its slope towards ``direction`` (radians)."""
    gy, gx = np.gradient(height)
    slope = gx * np.cos(direction) + gy * np.sin(direction)
    return np.tanh(slope * (0.75 / max(float(slope.std()), 1e-6)))


def _bedspread(rng: np.random.Generator, h: int, w: int) -> Array:
    if rng.random() < 0.4:
        look = sample_look(rng, patterned=True)
        height = creases(rng, h, w, 4)
        y, x = (
            np.mgrid[0:h, 0:w].astype(np.float32) / (w * rng.uniform(0.25, 0.6)) + np.float32(0.02) * height
        )
        sheet = paint(look, x, y, 2.0 / w) * 0.8 + 0.1
    else:
        sheet = np.broadcast_to(np.array(sample_colour(rng, vivid=bool(rng.random() < 0.5))), (h, w, 3))
        height = creases(rng, h, w, rng.uniform(2, 6))
    light = 1 + rng.uniform(0.03, 0.15) * relief(height, float(rng.uniform(0, 6.3)))
    return sheet * light[..., None] + 0.02 * (light[..., None] - 1)


def _wall(rng: np.random.Generator, h: int, w: int) -> Array:
    level = rng.uniform(0.45, 0.92)
    base = level * (1 + rng.normal(0, 0.025, 3))
    sheet = np.broadcast_to(base, (h, w, 3)) * _lit(rng, h, w, 0.06)[..., None]
    kind = rng.random()
    if kind < 0.3:  # door or wardrobe panels
        for x in np.sort(rng.uniform(0, w, int(rng.integers(1, 4)))):
            d = np.abs(np.arange(w) - x)
            sheet = (
                sheet * (1 - 0.35 * np.clip(1.5 - d, 0, 1) - 0.08 * np.clip(1 - d / 8, 0, 1))[None, :, None]
            )
    elif kind < 0.5:  # floor below
        edge = int(h * rng.uniform(0.75, 0.95))
        sheet[edge:] = _wood(rng, h, w)[edge:]
        sheet[max(edge - 2, 0) : edge] *= 0.7
    elif kind < 0.62:  # curtain
        sheet = sheet * (1 + 0.1 * np.sin(np.linspace(0, rng.uniform(20, 70), w)))[None, :, None]
    return sheet


def _tiles(rng: np.random.Generator, h: int, w: int) -> Array:
    base = np.clip(rng.uniform(0.5, 0.9) * (1 + rng.normal(0, 0.05, 3)), 0, 1)
    size, angle = w / rng.uniform(1.5, 6), rng.choice([0.0, np.pi / 4, rng.uniform(-0.2, 0.2)])
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    grout = np.minimum(np.minimum(u % size, size - u % size), np.minimum(v % size, size - v % size))
    sheet = base * (1 + 0.04 * smooth_noise(rng, h, w, 24, 24))[..., None]
    return sheet * (1 - 0.35 * np.clip(1.4 - grout, 0, 1))[..., None]


def _plain(rng: np.random.Generator, h: int, w: int) -> Array:
    colour = (
        np.array(sample_colour(rng, vivid=True))
        if rng.random() < 0.55
        else np.full(3, rng.uniform(0.7, 0.97))
    )
    return np.broadcast_to(colour, (h, w, 3)) * _lit(rng, h, w, 0.05)[..., None]


def _clutter(rng: np.random.Generator, sheet: Array) -> Array:
    """Things at the edge of the picture: a shoe, a box, a chair's leg."""
    h, w = sheet.shape[:2]
    image = Image.new("RGBA", (w, h))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(1, 4))):
        colour = (*(int(255 * c) for c in sample_colour(rng)), 255)
        side = rng.integers(4)
        x, y = (
            (rng.uniform(0, w), rng.choice([0, h])) if side < 2 else (rng.choice([0, w]), rng.uniform(0, h))
        )
        rx, ry = w * rng.uniform(0.04, 0.2), h * rng.uniform(0.04, 0.2)
        if rng.random() < 0.5:
            draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=colour)
        else:
            turn = rng.uniform(0, 3)
            corners = [(x + rx * np.cos(turn + a), y + ry * np.sin(turn + a)) for a in (0.0, 1.2, 3.1, 4.3)]
            draw.polygon(corners, fill=colour)
    rgba = np.asarray(image.filter(ImageFilter.GaussianBlur(1)), np.float32) / 255
    cover = rgba[..., 3:]
    return sheet * (1 - cover) + cover * rgba[..., :3] * _lit(rng, h, w, 0.2)[..., None]


_LYING = ((_wood, 0.25), (_carpet, 0.14), (_bedspread, 0.4), (_tiles, 0.07), (_plain, 0.14))
_HANGING = ((_wall, 0.75), (_plain, 0.15), (_wood, 0.1))


def sample_background(rng: np.random.Generator, size: tuple[int, int], hanging: bool) -> Array:
    """A background (h, w, 3) float32, about 0…1, for a picture of ``size`` (w, h).

    It is made at half the size: a phone's focus lies on the garment, and it costs a quarter.
    """
    w, h = size
    makers, weights = zip(*(_HANGING if hanging else _LYING), strict=True)
    make = makers[int(rng.choice(len(makers), p=weights))]
    sheet = make(rng, (h + 1) // 2, (w + 1) // 2)
    if rng.random() < 0.15:
        sheet = _clutter(rng, sheet)
    small = Image.fromarray((np.clip(sheet, 0, 1) * 255).astype(np.uint8))
    return np.asarray(small.resize((w, h), Image.Resampling.BICUBIC), np.float32) / 255
