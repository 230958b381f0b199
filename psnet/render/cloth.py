"""Cloth patterns and prints as pictures: what a `Look` shows at every place of a garment."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from psnet.render.design import Graphic, Look

_TWO_PI = 2 * np.pi
_CELLS = 64  # periodic lattice of random numbers that noise and motifs are read from


def smooth_noise(rng: np.random.Generator, height: int, width: int, rows: int, columns: int) -> np.ndarray:
    """(height, width) float32 of about unit deviation that varies over ``rows`` × ``columns`` cells."""
    coarse = rng.standard_normal((max(rows, 1) + 3, max(columns, 1) + 3)).astype(np.float32)
    # Reading inside the border keeps the bicubic's flat edges out of the picture.
    box = (1.0, 1.0, coarse.shape[1] - 1.0, coarse.shape[0] - 1.0)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC, box=box))


def _lattice(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((4, _CELLS, _CELLS), dtype=np.float32)


def _noise(table: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Value noise in 0…1 at (u, v), from a periodic (64, 64) table."""
    ui, vi = np.floor(u), np.floor(v)
    fu, fv = u - ui, v - vi
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
    i, j = ui.astype(np.int32) % _CELLS, vi.astype(np.int32) % _CELLS
    i1, j1 = (i + 1) % _CELLS, (j + 1) % _CELLS
    top = table[j, i] * (1 - fu) + table[j, i1] * fu
    bottom = table[j1, i] * (1 - fu) + table[j1, i1] * fu
    return top * (1 - fv) + bottom * fv


def _edge(distance: np.ndarray, px: float) -> np.ndarray:
    """1 where ``distance`` is negative, 0 where positive, with a ramp one pixel wide."""
    return np.clip(0.5 - distance / px, 0, 1)


def _stripe(t: np.ndarray, period: float, share: float, px: float) -> np.ndarray:
    phase = np.abs((t / period) % 1.0 - 0.5) * period
    return _edge(phase - 0.5 * share * period, px)


def paint(look: Look, u: np.ndarray, v: np.ndarray, px: float) -> np.ndarray:
    """Colours of ``look`` at cloth coordinates (h, w), in garment units; ``px`` is one pixel in those units.

    Returns (h, w, 3) float32 in 0…1.
    """
    table = None
    colours = [np.array(c, np.float32) for c in look.colours]
    c0, c1, c2 = colours[0], colours[1 % len(colours)], colours[2 % len(colours)]
    if look.pattern == "solid":
        return np.broadcast_to(c0, (*u.shape, 3)).copy()
    if look.angle:
        cos, sin = np.float32(np.cos(look.angle)), np.float32(np.sin(look.angle))
        u, v = cos * u + sin * v, cos * v - sin * u
    s, choice = look.scale, np.random.default_rng(look.seed).random(6)
    table = _lattice(look.seed)

    def mix(base: np.ndarray, colour: np.ndarray, share: np.ndarray) -> np.ndarray:
        return base + (colour - base) * share[..., None]

    if look.pattern == "melange":
        grain = _noise(table[0], u * 170, v * 60) - 0.5
        return c0 + (0.05 + 0.11 * c0.mean()) * grain[..., None]
    if look.pattern in ("hstripes", "vstripes"):
        t = (v if look.pattern == "hstripes" else u) + np.float32(choice[0] * s)
        out = mix(np.broadcast_to(c0, (*u.shape, 3)), c1, _stripe(t, s, 0.25 + 0.4 * choice[1], px))
        if choice[2] < 0.3:
            out = mix(out, c2, _stripe(t + np.float32(0.5 * s), s, 0.12, px))
        return out
    if look.pattern == "gingham":
        share = 0.5 * (_stripe(u, s, 0.5, px) + _stripe(v, s, 0.5, px))
        return mix(np.broadcast_to(c0, (*u.shape, 3)), c1, share)
    if look.pattern == "plaid":
        out = mix(
            np.broadcast_to(c0, (*u.shape, 3)),
            c1,
            0.45 * _stripe(u, s, 0.45, px) + 0.45 * _stripe(v, s, 0.45, px),
        )
        out = mix(
            out,
            c2,
            0.8
            * np.maximum(
                _stripe(u + np.float32(s * 0.5), s, 0.06, px), _stripe(v + np.float32(s * 0.5), s, 0.06, px)
            ),
        )
        return out
    if look.pattern == "chevron":
        wave = np.abs((u / s) % 1.0 - 0.5) * s
        return mix(np.broadcast_to(c0, (*u.shape, 3)), c1, _stripe(v + wave, s * 0.6, 0.5, px))
    if look.pattern == "argyle":
        a, b = np.abs((u / s) % 1.0 - 0.5), np.abs((v / (1.4 * s)) % 1.0 - 0.5)
        out = mix(np.broadcast_to(c0, (*u.shape, 3)), c1, _edge((a + b - 0.5) * s, px))
        lines = np.abs((u / s + 0.5) % 1.0 - 0.5) - np.abs((v / (1.4 * s) + 0.5) % 1.0 - 0.5)
        return mix(out, c2, _edge((np.abs(lines) - 0.03) * s, px))
    if look.pattern == "gradient":
        share = np.clip(v / (1.3 * s), 0, 1)
        return mix(np.broadcast_to(c0, (*u.shape, 3)), c1, share * share * (3 - 2 * share))
    if look.pattern == "camouflage":
        out = np.broadcast_to(c0, (*u.shape, 3))
        for k, colour in enumerate((c1, c2, c0 * np.float32(0.45))):
            field = _noise(table[k], u / s, v / s * 1.3) + 0.5 * _noise(
                table[3 - k], u / s * 2.3, v / s * 2.3
            )
            out = mix(out, colour, _edge((1.02 - field) * s, 2 * px))
        return out
    if look.pattern == "marble":
        warp = 2.5 * _noise(table[0], u / s * 1.5, v / s * 1.5)
        bands = 0.5 + 0.5 * np.sin(_TWO_PI * (u / s + 0.6 * v / s + warp))
        return mix(
            mix(np.broadcast_to(c0, (*u.shape, 3)), c1, bands),
            c2,
            0.6 * _noise(table[1], u / s * 2, v / s * 2) ** 2,
        )
    # The remaining patterns put one motif into every cell of a lattice.
    gu, gv = u / s, v / s
    row = np.floor(gv)
    if look.pattern in ("dots", "floral"):
        gu = gu + 0.5 * (row % 2)
    i, j = np.floor(gu).astype(np.int32) % _CELLS, row.astype(np.int32) % _CELLS
    x, y = gu - np.floor(gu) - 0.5, gv - row - 0.5
    base = np.broadcast_to(c0, (*u.shape, 3))
    if look.pattern == "mosaic":
        return np.clip(
            c0
            + 0.5 * (np.stack([table[k][j, i] for k in range(3)], -1) - 0.5)
            + 0.25 * (table[3][j, i][..., None] - 0.5),
            0,
            1,
        )
    if look.pattern == "blocks":
        which = (table[0][j, i] * (len(colours) + 1)).astype(np.int32) % len(colours)
        return np.stack(colours)[which]
    if look.pattern == "dots":
        radius = 0.14 + 0.2 * choice[0]
        return mix(base, c1, _edge((np.hypot(x, y) - radius) * s, px))
    if look.pattern == "leopard":
        x, y = x + 0.3 * (table[0][j, i] - 0.5), y + 0.3 * (table[1][j, i] - 0.5)
        angle = np.arctan2(y, x)
        radius = np.hypot(x, y * 1.2) * (1 + 0.25 * np.sin(3 * angle + _TWO_PI * table[2][j, i]))
        out = mix(base, c0 * np.float32(0.6), _edge((radius - 0.3) * s, px))
        gap = np.sin(2 * angle + _TWO_PI * table[3][j, i]) > -0.6
        return mix(out, c0 * np.float32(0.15), _edge((np.abs(radius - 0.31) - 0.09) * s, px) * gap)
    # floral: a blossom of three to six petals with a heart, and a leaf, in most cells
    x, y = x + 0.36 * (table[0][j, i] - 0.5), y + 0.36 * (table[1][j, i] - 0.5)
    size = 0.16 + 0.2 * table[2][j, i]
    angle = np.arctan2(y, x) + _TWO_PI * table[3][j, i]
    radius = np.hypot(x, y)
    petals = float(int(3 + 4 * choice[1]))
    blossom = np.abs(np.cos(0.5 * petals * angle))
    leaf = np.clip(1 - np.abs(np.mod(angle, _TWO_PI) - 2.2) / 0.5, 0, 1) * 1.35
    leaf_colour = np.array([0.2, 0.42, 0.22], np.float32) if choice[2] < 0.6 else c2
    out = mix(base, leaf_colour, _edge((radius - size * leaf) * s, px))
    out = mix(
        out,
        c1,
        _edge((radius - size * (0.45 + 0.55 * blossom)) * s, px)
        * (0.75 + 0.25 * np.clip(radius / size, 0, 1)),
    )
    if len(colours) > 2:
        out = np.where(
            (table[3][j, i] > 0.6)[..., None],
            mix(out, c2, _edge((radius - size * (0.45 + 0.55 * blossom)) * s, px)),
            out,
        )
    return mix(out, colours[-1], _edge((radius - 0.28 * size) * s, px))


def _byte(colour: tuple[float, float, float], alpha: int = 255) -> tuple[int, int, int, int]:
    return (int(255 * colour[0]), int(255 * colour[1]), int(255 * colour[2]), alpha)


def _polygon(
    n: int, centre: tuple[float, float], outer: float, inner: float | None = None, turn: float = 0.0
) -> list[tuple[float, float]]:
    """A regular polygon, or a star when ``inner`` is given."""
    count = n if inner is None else 2 * n
    points = []
    for k in range(count):
        r = outer if inner is None or k % 2 == 0 else inner
        a = _TWO_PI * k / count - np.pi / 2 + turn
        points.append((centre[0] + r * np.cos(a), centre[1] + r * np.sin(a)))
    return points


def _draw_text(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: tuple[float, float, float, float],
    fill: tuple[int, int, int, int],
    stroke: int,
) -> None:
    """Text, line by line, each as large as its share of the box allows."""
    x0, y0, x1, y1 = box
    lines = text.split("\n")
    y, slot = y0, (y1 - y0) / len(lines)
    for line in lines:
        size = slot * 0.95
        font = ImageFont.load_default(size)
        width = draw.textlength(line, font=font) + 2 * stroke
        if width > x1 - x0:
            font = ImageFont.load_default(size * (x1 - x0) / width)
        draw.text(
            ((x0 + x1) / 2, y + slot / 2),
            line,
            fill=fill,
            font=font,
            anchor="mm",
            stroke_width=stroke,
            stroke_fill=fill,
        )
        y += slot


def draw_graphic(graphic: Graphic, side: int) -> Image.Image:
    """The print as a (side, side) RGBA picture; deterministic by its seed."""
    rng = np.random.default_rng(graphic.seed)
    image = Image.new("RGBA", (side, side), (*_byte(graphic.colours[0])[:3], 0))
    draw = ImageDraw.Draw(image)
    c0, c1, c2 = (_byte(c) for c in (graphic.colours * 3)[:3])
    half = side / 2
    word = graphic.text.split("\n")[0]
    if graphic.kind == "text":
        lines = graphic.text.count("\n") + 1
        height = side * min(0.26 * lines, 0.8)
        stroke = int(side * rng.choice([0.0, 0.006, 0.015]))
        _draw_text(draw, graphic.text, (0, 0, side, height), c0, stroke)
        if rng.random() < 0.4:
            draw.rectangle((0.05 * side, height + 0.02 * side, 0.95 * side, height + 0.05 * side), fill=c1)
    elif graphic.kind == "number":
        _draw_text(
            draw,
            str(int(rng.integers(1, 100))),
            (0.05 * side, 0, 0.95 * side, 0.72 * side),
            c0,
            int(0.02 * side),
        )
        _draw_text(draw, word, (0, 0.74 * side, side, 0.95 * side), c1, 0)
    elif graphic.kind == "emblem":
        shape = int(rng.integers(4))
        if shape == 0:
            draw.ellipse((0.02 * side, 0.02 * side, 0.98 * side, 0.98 * side), fill=c0)
            draw.ellipse(
                (0.1 * side, 0.1 * side, 0.9 * side, 0.9 * side), outline=c1, width=max(1, int(0.02 * side))
            )
        elif shape == 1:
            draw.polygon(
                [
                    (0.08 * side, 0.05 * side),
                    (0.92 * side, 0.05 * side),
                    (0.92 * side, 0.55 * side),
                    (half, 0.98 * side),
                    (0.08 * side, 0.55 * side),
                ],
                fill=c0,
            )
        elif shape == 2:
            draw.polygon(_polygon(6, (half, half), 0.48 * side), fill=c0)
        else:
            draw.rounded_rectangle(
                (0.02 * side, 0.2 * side, 0.98 * side, 0.8 * side), radius=0.1 * side, fill=c0
            )
        points = _polygon(
            int(rng.integers(3, 8)),
            (half, 0.4 * side),
            0.2 * side,
            float(rng.uniform(0.07, 0.14)) * side,
            float(rng.uniform(0, 6)),
        )
        draw.polygon(points, fill=c1)
        _draw_text(draw, word, (0.2 * side, 0.6 * side, 0.8 * side, 0.76 * side), c2 if c2 != c0 else c1, 0)
    elif graphic.kind == "star":
        n = int(rng.integers(4, 9))
        draw.polygon(_polygon(n, (half, half), 0.48 * side, float(rng.uniform(0.16, 0.3)) * side), fill=c0)
        draw.polygon(_polygon(n, (half, half), 0.3 * side, float(rng.uniform(0.1, 0.16)) * side), fill=c1)
    elif graphic.kind == "stack":
        for k in range(int(rng.integers(3, 7))):
            y = side * (0.05 + 0.14 * k)
            draw.rectangle(
                (side * rng.uniform(0, 0.15), y, side * rng.uniform(0.8, 1.0), y + 0.09 * side),
                fill=(c0, c1, c2)[k % 3],
            )
    elif graphic.kind == "picture":
        sky = smooth_noise(rng, 24, 24, 3, 3)
        top, bottom = (np.array(c[:3], np.float32) for c in (c0, c1))
        ramp = np.linspace(0, 1, 24, dtype=np.float32)[:, None, None]
        pixels = np.clip(top + (bottom - top) * ramp + 22 * sky[..., None], 0, 255).astype(np.uint8)
        image.paste(
            Image.fromarray(pixels).resize((side, int(0.86 * side)), Image.Resampling.BICUBIC), (0, 0)
        )
        r = side * rng.uniform(0.08, 0.18)
        x, y = side * rng.uniform(0.25, 0.75), side * rng.uniform(0.2, 0.4)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=c2)
        for k in range(int(rng.integers(2, 5))):
            peak, width = side * rng.uniform(0.1, 0.9), side * rng.uniform(0.25, 0.5)
            shade = tuple(int(v * (0.75 - 0.15 * k)) for v in c1[:3])
            draw.polygon(
                [
                    (max(peak - width, 0), 0.855 * side),
                    (peak, side * rng.uniform(0.35, 0.6)),
                    (min(peak + width, side - 1), 0.855 * side),
                ],
                fill=(*shade, 255),
            )
        if rng.random() < 0.5:
            _draw_text(draw, word, (0, 0.88 * side, side, 0.99 * side), c2, 0)
    elif graphic.kind == "blot":
        field = smooth_noise(rng, side, side, 7, 7)
        if rng.random() < 0.5:
            field = 0.5 * (field + field[:, ::-1]) * 1.3
        yy, xx = np.mgrid[0:side, 0:side].astype(np.float32) / side - 0.5
        field = field - 12 * np.maximum(np.hypot(xx, yy) - 0.33, 0)
        rgba = np.zeros((side, side, 4), np.uint8)
        rgba[..., :3] = np.where((field > 0.8)[..., None], c1[:3], c0[:3])
        rgba[..., 3] = np.clip(field * 12 * 20, 0, 255)
        image = Image.fromarray(rgba)
    else:  # animal: head with ears, eyes and a snout
        ears = rng.uniform(0.12, 0.22) * side
        pointed = rng.random() < 0.5
        for sx in (-1, 1):
            cx, cy = half + sx * 0.26 * side, 0.26 * side
            if pointed:
                draw.polygon(
                    [(cx - ears, cy + ears), (cx + sx * 0.1 * side, cy - ears), (cx + ears, cy + ears)],
                    fill=c0,
                )
            else:
                draw.ellipse((cx - ears, cy - ears, cx + ears, cy + ears), fill=c0)
        draw.ellipse((0.12 * side, 0.2 * side, 0.88 * side, 0.92 * side), fill=c0)
        eye, spread = rng.uniform(0.03, 0.08) * side, rng.uniform(0.12, 0.2) * side
        for sx in (-1, 1):
            draw.ellipse(
                (half + sx * spread - eye, 0.47 * side - eye, half + sx * spread + eye, 0.47 * side + eye),
                fill=c1,
            )
        draw.ellipse((0.36 * side, 0.6 * side, 0.64 * side, 0.8 * side), fill=c2 if c2 != c0 else c1)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if graphic.flipped else image
