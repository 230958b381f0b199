"""Draws a design flat: RGBA picture, exact landmarks in DeepFashion2's numbering, and the five regions.

The drawing holds what belongs to the garment (cut, cloth, print, seams); what a photograph adds (folds,
light, lens, background) is in `psnet.render.photo`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from psnet.regions import NUM_REGIONS, REGIONS, Presence
from psnet.render.cloth import draw_graphic, paint
from psnet.render.design import PRINT_ABOVE_ARMPIT, Colour, Design, Look
from psnet.taxonomy import Taxonomy, to_clothing11

_SUPERSAMPLING = 2
_NECK = 0.15  # half width of the narrowest neckline
_MARGIN = 10  # px around the garment, so that blurred edges end inside the canvas
COLLAR, LEFT_SLEEVE, RIGHT_SLEEVE, CHEST, WAIST = (
    REGIONS.index(r) for r in ("collar", "left_sleeve", "right_sleeve", "chest", "waist")
)


@dataclass(frozen=True)
class Pose:
    """How the garment is laid out. Per sleeve: angle of the upper part from the vertical (radians, outwards),
    bend of the lower part inwards, and whether it lies on top of the body."""

    angles: tuple[float, float] = (0.75, 0.75)
    bends: tuple[float, float] = (0.0, 0.0)
    over: tuple[bool, bool] = (False, False)
    hanging: bool = False


@dataclass(frozen=True)
class Frame:
    """Size of the drawing in px, px per garment unit, and the px of the garment's zero."""

    width: int
    height: int
    scale: float
    origin: tuple[float, float]


@dataclass(frozen=True)
class Drawing:
    """A design drawn flat.

    ``pixels`` (H, W, 4) uint8 RGBA, not premultiplied; ``parts`` (H, W) uint8, 0 outside the garment, else 1
    + the region's index in `psnet.regions.REGIONS`; ``landmarks`` (n, 3) float32 of the category's n
    landmarks: x, y px, visibility 2 visible or 1 covered; ``box`` (4,) and ``region_boxes`` (5, 4; NaN where
    absent) xyxy px; ``presence`` (5,) uint8.
    """

    design: Design
    pose: Pose
    pixels: np.ndarray
    parts: np.ndarray
    landmarks: np.ndarray
    box: np.ndarray
    region_boxes: np.ndarray
    presence: np.ndarray
    frame: Frame


def sample_pose(rng: np.random.Generator, design: Design) -> Pose:
    """A pose as people lay clothes out: mostly symmetric, long sleeves down, spread, or folded over the
    body."""
    hanging = bool(rng.random() < (0.45 if design.is_outwear or design.is_dress else 0.2))
    if design.sleeves is None:
        return Pose(hanging=hanging)
    if design.sleeves.length < 0.6:
        angle = rng.uniform(0.35, 0.6) if hanging else rng.uniform(0.55, 1.1)
        left, right = angle + rng.normal(0, 0.06, 2)
        return Pose((float(left), float(right)), hanging=hanging)
    if hanging:
        left, right = rng.uniform(0.12, 0.24) + rng.normal(0, 0.03, 2)
        return Pose(
            (float(left), float(right)),
            tuple(rng.normal(0.03, 0.04, 2).tolist()),
            (bool(rng.random() < 0.4),) * 2,
            True,
        )
    style = rng.random()
    angle = rng.uniform(0.22, 0.5) if style < 0.6 else rng.uniform(0.6, 1.15)
    left, right = angle + rng.normal(0, 0.07, 2)
    bends = rng.normal(0.05, 0.12, 2)
    over = [False, False]
    for k in range(2):
        if rng.random() < 0.1:
            bends[k], over[k] = rng.uniform(0.9, 1.7), True
    return Pose((float(left), float(right)), (float(bends[0]), float(bends[1])), (over[0], over[1]), False)


def _curve(
    a: tuple[float, float], control: tuple[float, float], b: tuple[float, float], n: int = 14
) -> np.ndarray:
    """Quadratic Bézier curve, (n, 2)."""
    t = np.linspace(0, 1, n)[:, None]
    return (1 - t) ** 2 * np.array(a) + 2 * t * (1 - t) * np.array(control) + t**2 * np.array(b)


def _spline(points: list[tuple[float, float]] | np.ndarray, n: int = 8) -> np.ndarray:
    """Catmull-Rom curve through the points, ``n`` samples a piece."""
    p = np.asarray(points, float)
    p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    t = np.linspace(0, 1, n, endpoint=False)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return np.concatenate([*pieces, p[-2:-1]])


def _along(curve: np.ndarray, share: float) -> np.ndarray:
    """The point at ``share`` of a curve's length."""
    steps = np.linalg.norm(np.diff(curve, axis=0), axis=1)
    at = np.concatenate([[0], np.cumsum(steps)])
    return np.array([np.interp(share * at[-1], at, curve[:, k]) for k in range(2)])


def _flip(points: np.ndarray) -> np.ndarray:
    return points * np.array([-1.0, 1.0])


@dataclass(frozen=True)
class _Sleeve:
    """Outline of one sleeve; ``outer`` and ``inner`` run from the armhole to the cuff."""

    outer: np.ndarray
    inner: np.ndarray
    elbow: np.ndarray
    upper: np.ndarray  # direction of the upper part
    lower: np.ndarray
    upper_length: float
    length: float

    def polygon(self, armhole: np.ndarray, tuck: float) -> np.ndarray:
        """The outline, closed along the body's armhole, ``tuck`` under the body."""
        seam = armhole[::-1] + np.array([tuck, 0.0]) * np.sin(np.linspace(0, np.pi, len(armhole)))[:, None]
        return np.concatenate([self.outer, self.inner[::-1], seam])

    def cloth(self, x: np.ndarray, y: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Cloth coordinates across and along the sleeve, so that its pattern turns with it."""
        x = x * side  # the outline is a left sleeve's
        start, e, d1, d2 = self.outer[0], self.elbow, self.upper, self.lower
        along1 = (x - start[0]) * d1[0] + (y - start[1]) * d1[1]
        across1 = (x - start[0]) * d1[1] - (y - start[1]) * d1[0]
        along2 = (x - e[0]) * d2[0] + (y - e[1]) * d2[1]
        across2 = (x - e[0]) * d2[1] - (y - e[1]) * d2[0]
        beyond = (x - e[0]) * (d1 + d2)[0] + (y - e[1]) * (d1 + d2)[1] > 0
        return np.where(beyond, across2, across1), np.where(beyond, self.upper_length + along2, along1)


@dataclass
class _Outline:
    """All curves of a design in garment units; left curves only, the right ones are their mirror images."""

    front: np.ndarray  # neckline, left to right
    back: np.ndarray
    shoulder: np.ndarray
    armhole: np.ndarray  # shoulder to armpit
    side: np.ndarray  # armpit to hem
    waist: np.ndarray  # the side's point at the waist
    hem: np.ndarray  # left to right
    sleeves: list[_Sleeve]
    gap: tuple[float, float]  # half width of an open front at the shoulder and at the full length
    gap_length: float
    back_visible: bool

    def body(self) -> np.ndarray:
        return np.concatenate(
            [
                self.front[:1],
                self.shoulder[None],
                self.armhole,
                self.side[1:],
                self.hem[1:-1],
                _flip(self.side[1:])[::-1],
                _flip(self.armhole)[::-1],
                _flip(self.shoulder[None]),
                self.front[::-1],
            ]
        )


# How far the front of a neckline lies below its back, at least.
_LEAST_DEPTH = 0.015


def _neckline(design: Design) -> tuple[np.ndarray, np.ndarray]:
    collar = design.collar
    x, depth = collar.neck_x, collar.depth
    t = np.linspace(0, np.pi, 25)
    if collar.kind in ("v", "lapel", "shirt", "polo"):
        bow = 0.03 if collar.kind == "v" else 0.0
        left = _curve((-x, 0), (-x * 0.5 - bow, depth * 0.5 + bow), (0, depth))
        front = np.concatenate([left, _flip(left[:-1])[::-1]])
    elif collar.kind == "square":
        left = np.concatenate(
            [
                _curve((-x, 0), (-x * 0.97, depth * 0.5), (-x * 0.94, depth * 0.93)),
                _curve((-x * 0.9, depth), (-x * 0.4, depth), (0, depth)),
            ]
        )
        front = np.concatenate([left, _flip(left[:-1])[::-1]])
    elif collar.kind == "straps":
        base = depth - 0.05
        shape = design.seed % 3  # straight, sweetheart, V
        control = (-x * 0.5, base - 0.03 if shape == 1 else depth if shape == 0 else 0.5 * (base + depth))
        left = _curve((-x + 0.5 * collar.band, base), control, (0, depth))
        front = np.concatenate([left, _flip(left[:-1])[::-1]])
    else:
        front = np.stack([-x * np.cos(t), depth * np.sin(t) ** 0.85], 1)
    dip = min(0.045, 0.4 * depth)
    back = np.stack([-x * np.cos(t), dip * np.sin(t)], 1)
    if collar.kind == "straps":
        back = np.stack([-(x - 0.5 * collar.band) * np.cos(t), depth - 0.05 + 0.035 * np.sin(t)], 1)
        return front, back
    # The neckline starts on the shoulder's slope, wherever that is: a wider one cuts the shoulder, it does
    # not move it.
    s = design.silhouette
    start = max(0.0, s.shoulder_y * (x - _NECK) / (s.shoulder_x - _NECK))
    # However wide, its front lies below its back.
    front[:, 1] = start + front[:, 1] * max(1 - start / depth, (dip + _LEAST_DEPTH) / depth)
    back[:, 1] += start
    return front, back


def _sleeve(design: Design, angle: float, bend: float) -> _Sleeve:
    assert design.sleeves is not None
    s, sleeves = design.silhouette, design.sleeves
    start, armpit = np.array([-s.shoulder_x, s.shoulder_y]), np.array([-0.5, s.armpit_y])
    opening = float(np.linalg.norm(armpit - start))
    lower_angle = angle - bend
    upper = np.array([-np.sin(angle), np.cos(angle)])
    lower = np.array([-np.sin(lower_angle), np.cos(lower_angle)])
    middle = np.array([np.cos(angle - bend / 2), np.sin(angle - bend / 2)])
    end = np.array([np.cos(lower_angle), np.sin(lower_angle)])
    upper_length = 0.5 * sleeves.length
    elbow = start + upper_length * upper
    cuff_outer = elbow + (sleeves.length - upper_length) * lower
    width = (0.45 * opening + 0.55 * sleeves.cuff) * (
        1.15 if sleeves.finish == "puff" else 0.8 if sleeves.finish == "bell" else 1.0
    )
    cuff_inner = cuff_outer + sleeves.cuff * end
    # The cap of a sleeve bulges over the shoulder before it falls; the inner edge leaves the armpit at once.
    cap = (
        start
        + 0.22 * sleeves.length * upper
        - (0.025 if sleeves.finish != "puff" else 0.06) * np.array([np.cos(angle), np.sin(angle)])
    )
    if sleeves.length > 0.6:
        before_cuff = cuff_outer - 0.1 * sleeves.length * lower
        outer = _spline(np.array([start, cap, elbow - 0.01 * middle, before_cuff, cuff_outer]))
        inner_elbow = elbow + width * middle
        before_inner = (
            before_cuff + (sleeves.cuff * (1.12 if sleeves.finish in ("rib", "band", "puff") else 1.02)) * end
        )
        inner = _spline(
            np.array([armpit, 0.6 * inner_elbow + 0.4 * armpit, inner_elbow, before_inner, cuff_inner])
        )
    else:
        outer = _spline(np.array([start, cap, cuff_outer]))
        pull = 0.5 * (armpit + cuff_inner) - 0.02 * end
        inner = _spline(np.array([armpit, pull, cuff_inner]))
    return _Sleeve(outer, inner, elbow, upper, lower, upper_length, sleeves.length)


def _outline(design: Design, pose: Pose) -> _Outline:
    s, collar = design.silhouette, design.collar
    front, back = _neckline(design)
    shoulder = np.array([-s.shoulder_x, s.shoulder_y])
    armpit = (-0.5, s.armpit_y)
    if collar.kind == "straps":
        base = (-collar.neck_x - 0.5 * collar.band, collar.depth - 0.05)
        shoulder = np.array(base)
        armhole = _curve(base, (base[0] - 0.02, s.armpit_y - 0.06), armpit)
    elif design.sleeves is None:
        armhole = _curve((shoulder[0], shoulder[1]), (-s.shoulder_x + 0.04, s.armpit_y - 0.02), armpit)
    else:
        armhole = _curve((shoulder[0], shoulder[1]), (-s.shoulder_x + 0.03, 0.7 * s.armpit_y), armpit)
    waist = (-s.waist_x, min(s.waist_y, s.length - 0.1))
    points = [armpit, waist]
    if design.is_dress and s.length - waist[1] > 0.3:
        # A skirt widens over the hips first.
        points.append((0.35 * waist[0] - 0.65 * s.hem_x, waist[1] + 0.5 * (s.length - waist[1])))
    points.append((-s.hem_x, s.length))
    side = _spline(points)
    # The hem cuts the side, it does not bend it: another hem leaves everything above as it was.
    corner_y = design.length - (0.11 if design.hem.kind == "shirt" else 0.0)
    end = np.array([np.interp(corner_y, side[:, 1], side[:, 0]), corner_y])
    rows = np.linspace(corner_y - 0.15, corner_y, 5)[:-1]
    last = np.stack([np.interp(rows, side[:, 1], side[:, 0]), rows], 1)
    side = np.concatenate([side[side[:, 1] < corner_y - 0.15 - 1e-6], last, end[None]])
    if design.hem.kind == "rib":
        side[:, 0] *= 1 - 0.07 * np.clip((side[:, 1] - corner_y + 0.13) / 0.1, 0, 1)
    hem_x = -float(side[-1, 0])
    drop = design.length - corner_y + design.hem.drop * (2.2 if design.hem.kind == "dip" else 1.0)
    x = np.linspace(-1, 1, 41)
    lift = 1 - np.abs(x) ** (2.0 if design.hem.kind != "shirt" else 3.5)
    y = corner_y + drop * lift
    if design.hem.kind == "ruffle":
        y = y + 0.018 * np.sin(np.arange(41) * 1.9 + design.seed % 7) * (1 - x**8)
    elif design.hem.kind == "slit":
        y = y - 0.1 * np.maximum(0, 1 - np.abs(np.abs(x) - 0.82) / 0.05)
    hem = np.stack([x * hem_x, y], 1)
    gap = (0.0, 0.0)
    if design.closure.kind == "open":
        gap = (0.015, 0.5 * design.closure.gap + 0.02)
    sleeves = []
    if design.sleeves is not None:
        sleeves = [_sleeve(design, pose.angles[k], pose.bends[k]) for k in range(2)]
    return _Outline(
        front,
        back,
        shoulder,
        armhole,
        side,
        np.array(waist),
        hem,
        sleeves,
        gap,
        s.length,
        collar.kind not in ("hood", "turtle"),
    )


def _landmarks(design: Design, outline: _Outline) -> np.ndarray:
    """(n, 3) in garment units, in the category's numbering (see taxonomies/deepfashion2.yaml)."""
    category = Taxonomy.load("deepfashion2").category(design.category)
    points = np.full((len(category.indices), 2), np.nan)

    def put(number: int, point: np.ndarray) -> None:
        points[number - 1] = point

    collar = design.collar
    left_neck, bottom = outline.front[0], outline.front[len(outline.front) // 2]
    if collar.kind in ("turtle", "stand"):
        left_neck = np.array([-0.95 * collar.neck_x, -collar.band])
        put(1, np.array([0.0, -collar.band + 0.012]))
    else:
        put(1, outline.back[len(outline.back) // 2])
    if collar.kind == "straps":
        left_neck = np.array([-(collar.neck_x * 0.97 - 0.5 * collar.band), 0.0])
        put(3, outline.front[0])
    else:
        put(3, _along(outline.front, 0.25))
    put(2, left_neck)
    put(4, bottom)
    side, hem = outline.side, outline.hem
    at_waist = int(np.argmin(np.linalg.norm(side - outline.waist, axis=1)))
    above, below = side[: at_waist + 1], side[at_waist:]
    if design.sleeves is not None:
        long = design.category.startswith("long")
        for k, (number, step) in enumerate(((7, 1), (len(points), -1))):
            if k == 1:
                number = category.parts["right_sleeve"][-1] + 1
            sleeve = outline.sleeves[k]
            mirror = (lambda p: p) if k == 0 else _flip
            shares = (0.25, 0.5, 0.75) if long else (0.5,)
            chain = (
                [outline.shoulder]
                + [_along(sleeve.outer, t) for t in shares]
                + [sleeve.outer[-1], sleeve.inner[-1]]
            )
            chain += [_along(sleeve.inner, t) for t in shares[::-1]] + [outline.armhole[-1]]
            for i, point in enumerate(chain):
                put(number + step * i, mirror(point))
    else:
        top = (
            np.array([-(collar.neck_x * 0.97 + 0.5 * collar.band), 0.0])
            if collar.kind == "straps"
            else outline.shoulder
        )
        put(7, top)
        put(8, outline.armhole[-1])
    sides = [n + 1 for n in category.parts["left_side"]]
    if len(sides) == 4:
        chain = [_along(above, 0.5), outline.waist, _along(below, 1 / 3), _along(below, 2 / 3)]
    elif len(sides) == 3:
        chain = [outline.waist, _along(below, 1 / 3), _along(below, 2 / 3)]
    else:
        chain = [_along(side, (i + 1) / (len(sides) + 1)) for i in range(len(sides))]
    for number, point in zip(sides, chain, strict=True):
        put(number, point)
    first_hem = category.parts["hem"][0] + 1
    put(first_hem, hem[0])
    put(first_hem + 1, hem[len(hem) // 2])
    if "opening" in category.parts:
        start = category.parts["opening"][0] + 1
        top_y, end_y = bottom[1], hem[len(hem) // 2, 1]
        for number, t in ((4, 0.0), (start + 4, 1 / 3), (start + 5, 2 / 3), (first_hem + 1, 1.0)):
            y = top_y + (end_y - top_y) * t
            put(number, np.array([-float(_edge_at(outline, y)), y]))
    missing = np.isnan(points[:, 0])
    points[missing] = _flip(points[category.swap])[missing]
    return np.concatenate([points, np.full((len(points), 1), 2.0)], 1)


class _Canvas:
    """Layers of cloth, from the back to the front, at ``scale`` px a unit."""

    def __init__(self, frame: Frame) -> None:
        width, height, scale, origin = frame.width, frame.height, frame.scale, frame.origin
        self.width, self.height, self.scale, self.origin = width, height, scale, origin
        self.rgb = np.zeros((height, width, 3), np.float32)
        self.alpha = np.zeros((height, width), np.float32)
        self.parts = np.zeros((height, width), np.uint8)
        self.x = ((np.arange(width, dtype=np.float32) + 0.5) - origin[0])[None] / scale
        self.y = ((np.arange(height, dtype=np.float32) + 0.5) - origin[1])[:, None] / scale

    def px(self, points: np.ndarray) -> np.ndarray:
        return np.asarray(points) * self.scale + np.array(self.origin)

    def window(self, points: np.ndarray, pad: int = 2) -> tuple[slice, slice]:
        p = self.px(points)
        low, high = np.floor(p.min(0)).astype(int) - pad, np.ceil(p.max(0)).astype(int) + pad
        return (
            slice(max(low[1], 0), min(high[1], self.height)),
            slice(max(low[0], 0), min(high[0], self.width)),
        )

    def _draft(self, window: tuple[slice, slice]) -> tuple[Image.Image, np.ndarray]:
        rows, columns = window
        size = (
            max(columns.stop - columns.start, 1) * _SUPERSAMPLING,
            max(rows.stop - rows.start, 1) * _SUPERSAMPLING,
        )
        return Image.new("L", size), np.array([columns.start, rows.start])

    def mask(
        self, points: np.ndarray, window: tuple[slice, slice] | None = None
    ) -> tuple[tuple[slice, slice], np.ndarray]:
        """Antialiased cover of a polygon: its window and (h, w) float32 in 0…1."""
        window = window or self.window(points)
        image, corner = self._draft(window)
        p = (self.px(points) - corner) * _SUPERSAMPLING
        ImageDraw.Draw(image).polygon([(float(a), float(b)) for a, b in p], fill=255)
        return window, np.asarray(image.reduce(_SUPERSAMPLING), np.float32) / 255

    def grid(self, window: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = window
        return np.broadcast_arrays(self.x[:, columns], self.y[rows])  # type: ignore[return-value]

    def lay(
        self, window: tuple[slice, slice], mask: np.ndarray, colour: np.ndarray, part: int | np.ndarray
    ) -> None:
        """Cover the window with ``colour`` (3,) or (h, w, 3) where ``mask``; it belongs to region
        ``part``."""
        rgb, alpha, parts = self.rgb[window], self.alpha[window], self.parts[window]
        m = mask[..., None]
        rgb += m * (colour - rgb)
        np.maximum(alpha, mask, out=alpha)
        np.copyto(parts, np.uint8(1) + np.asarray(part, np.uint8), where=mask > 0.5)

    def shade(self, window: tuple[slice, slice], factor: np.ndarray) -> None:
        self.rgb[window] *= factor[..., None]

    def line(
        self,
        points: np.ndarray,
        width: float,
        strength: float,
        colour: Colour | None = None,
        dashes: float = 0.0,
        front: bool = False,
    ) -> None:
        """A seam: darkens the cloth, or a thread of ``colour``; ``width`` in px, ``dashes`` in px.

        ``front`` keeps it on chest and waist.
        """
        window = self.window(points, 3)
        image, corner = self._draft(window)
        draw = ImageDraw.Draw(image)
        p = (self.px(points) - corner) * _SUPERSAMPLING
        thick = max(1, round(width * _SUPERSAMPLING))
        if dashes:
            length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(p, axis=0), axis=1))])
            for start in np.arange(0, length[-1], 2 * dashes * _SUPERSAMPLING):
                ends = [start, min(start + dashes * _SUPERSAMPLING, length[-1])]
                xs, ys = np.interp(ends, length, p[:, 0]), np.interp(ends, length, p[:, 1])
                draw.line([(float(xs[0]), float(ys[0])), (float(xs[1]), float(ys[1]))], fill=255, width=thick)
        else:
            draw.line([(float(a), float(b)) for a, b in p], fill=255, width=thick, joint="curve")
        mask = (
            np.asarray(image.reduce(_SUPERSAMPLING), np.float32) / 255 * strength * (self.alpha[window] > 0.5)
        )
        if front:
            mask *= self.parts[window] > CHEST  # part numbers are one up: chest and waist
        if colour is None:
            self.rgb[window] *= 1 - mask[..., None]
        else:
            self.rgb[window] += mask[..., None] * (np.array(colour, np.float32) - self.rgb[window])

    def disc(self, x: float, y: float, radius: float, colour: np.ndarray) -> None:
        """A button: rim, face and a glint; it belongs to whatever it is sewn on."""
        t = np.linspace(0, 2 * np.pi, 14)[:-1]
        ring = np.stack([np.cos(t), np.sin(t)], 1)
        for size, shade in ((1.25, 0.45), (1.0, 1.0), (0.45, 0.8)):
            window, mask = self.mask(np.array([x, y]) + radius * size * ring)
            if mask.size:
                self.rgb[window] += (mask * (self.alpha[window] > 0))[..., None] * (
                    colour * np.float32(shade) - self.rgb[window]
                )


def _grain(design: Design, x: np.ndarray, y: np.ndarray) -> np.ndarray | float:
    """Multiplicative relief of the weave at cloth coordinates."""
    if design.fabric == "knit":
        return (1 + 0.07 * np.sin(x * 230) + 0.04 * np.sin(y * 300)).astype(np.float32)
    if design.fabric == "denim":
        return (1 + 0.06 * np.sin((x + y) * 380)).astype(np.float32)
    if design.fabric == "puffer":
        bump = np.abs(np.sin(np.pi * y / 0.16))
        return (0.62 + 0.42 * bump**0.6 + 0.05 * np.sin(x * 22 + 4 * np.sin(y * 30))).astype(np.float32)
    if design.fabric == "pique":
        return (1 + 0.035 * np.sin(x * 330) * np.sin(y * 330)).astype(np.float32)
    return 1.0


def _rib(x: np.ndarray, period: float = 0.022) -> np.ndarray:
    return (0.9 + 0.1 * np.sin(x * (2 * np.pi / period))).astype(np.float32)


def _cloth(
    canvas: _Canvas,
    design: Design,
    look: Look,
    window: tuple[slice, slice],
    u: np.ndarray | None = None,
    v: np.ndarray | None = None,
) -> np.ndarray:
    x, y = canvas.grid(window)
    u, v = (x if u is None else u), (y if v is None else v)
    colour = paint(look, u, v, 1 / canvas.scale)
    grain = _grain(design, u, v)
    if isinstance(grain, np.ndarray):
        colour = colour * grain[..., None]
    return colour


def _draw_sleeve(canvas: _Canvas, design: Design, sleeve: _Sleeve, k: int, polygon: np.ndarray) -> None:
    sleeves = design.sleeves
    assert sleeves is not None
    side = 1 if k == 0 else -1
    window, mask = canvas.mask(polygon)
    x, y = canvas.grid(window)
    u, v = sleeve.cloth(x, y, side)
    colour = _cloth(canvas, design, sleeves.look, window, u, v)
    # A tube of cloth is darker towards its edges.
    across = sleeve.outer[-1] - sleeve.inner[-1]
    width = max(float(np.linalg.norm(across)), 0.1)
    round_off = np.clip(np.minimum(u + 0.02, 1.25 * width - u) / (0.28 * width), 0, 1)
    colour = colour * (0.84 + 0.16 * round_off)[..., None]
    rest = sleeve.length - v
    if sleeves.finish in ("rib", "band", "rolled"):
        depth = 0.07 if sleeves.finish != "rolled" else 0.055
        band = rest < depth
        if sleeves.finish == "rib":
            colour = np.where(band[..., None], colour * _rib(u)[..., None], colour)
        elif sleeves.finish == "rolled":
            colour = np.where(band[..., None], colour * np.float32(0.88), colour)
        colour *= (1 - 0.4 * np.exp(-(((rest - depth) / 0.007) ** 2)))[..., None]
    else:
        colour *= (1 - 0.25 * np.exp(-(((rest - 0.035) / 0.004) ** 2)))[..., None]
    if sleeves.finish in ("puff", "bell"):
        colour *= (1 + 0.08 * np.sin(u * 60) * np.clip(1.2 - rest / (0.6 * sleeve.length), 0, 1))[..., None]
    # An opening shows at the cuff: its far edge is in the dark.
    colour *= (1 - 0.5 * np.clip(1 - rest / 0.012, 0, 1))[..., None]
    canvas.lay(window, mask, colour, LEFT_SLEEVE if k == 0 else RIGHT_SLEEVE)


def _edge_at(outline: _Outline, y: float | np.ndarray) -> np.ndarray:
    """Half width of an open front at a height; given by the silhouette, so that no edit of collar or hem
    moves it."""
    (start, end), length = outline.gap, outline.gap_length
    return np.asarray(start + (end - start) * np.asarray(y) / length)


def _wedge(outline: _Outline) -> np.ndarray:
    # Longer than any neckline or hem leaves of it: the same edge is drawn, to the pixel, whatever they are.
    end = outline.gap_length + 0.2
    upper, lower = float(_edge_at(outline, 0.0)), float(_edge_at(outline, end))
    return np.array([[-upper, 0.0], [-lower, end], [lower, end], [upper, 0.0]])


def _draw_body(canvas: _Canvas, design: Design, outline: _Outline) -> None:
    body = outline.body()
    window, mask = canvas.mask(body)
    x, y = canvas.grid(window)
    if outline.gap[1] > 0:
        # The lining of the back shows between the open fronts.
        _, hole = canvas.mask(_wedge(outline), window)
        lining = np.array(design.lining, np.float32) * (0.8 + 0.1 * np.sin(x * 40))[..., None].astype(
            np.float32
        )
        shadow = np.clip((1.2 * outline.gap[1] - np.abs(x)) / 0.12, 0, 1)
        canvas.lay(
            window,
            mask,
            lining * (0.45 + 0.4 * shadow)[..., None],
            np.where(y < design.split_y, CHEST, WAIST),
        )
        mask = mask * (1 - hole)
    split = design.split_y
    share = np.clip((y - split) * canvas.scale + 0.5, 0, 1)  # one pixel of transition
    colour = _cloth(canvas, design, design.chest.look, window)
    if design.waist.look != design.chest.look:
        below = _cloth(canvas, design, design.waist.look, window)
        colour = colour + share[..., None] * (below - colour)
    if design.hem.kind == "pleats":
        colour = colour * (1 + 0.13 * share * np.sin(x * 42))[..., None]
    elif design.belt in ("seam", "elastic") or design.hem.kind == "ruffle":
        # Gathered cloth fans out from the waist.
        spread = x / np.maximum(0.35 + 0.35 * (y - split), 0.2)
        colour = (
            colour
            * (
                1
                + 0.06
                * share
                * np.sin(spread * 26 + 2 * np.sin(spread * 7))
                * np.exp(-np.maximum(y - split, 0) / 0.7)
            )[..., None]
        )
    bottom = np.interp(canvas.x[0, window[1]], outline.hem[:, 0], outline.hem[:, 1])[None]
    if design.hem.kind == "rib":
        band = y > bottom - 0.1
        colour = np.where(band[..., None], colour * _rib(x)[..., None], colour)
        colour *= (1 - 0.4 * np.exp(-(((bottom - 0.1 - y) / 0.007) ** 2)))[..., None]
    else:
        colour = colour * (1 - 0.22 * np.exp(-(((bottom - 0.035 - y) / 0.004) ** 2)))[..., None]
    canvas.lay(window, mask, colour, np.where(y < split, CHEST, WAIST))


def _draw_seams(canvas: _Canvas, design: Design, outline: _Outline) -> None:
    for mirror in (lambda p: p, _flip):
        if design.sleeves is not None:
            canvas.line(mirror(outline.armhole), 1.0, 0.35)
        else:
            canvas.line(mirror(outline.armhole + np.array([0.025, 0.0])), 0.8, 0.3)
        if design.fabric == "denim":
            princess = _curve((-0.24, 0.12), (-0.2, 0.5), (-0.27, design.silhouette.length - 0.05))
            canvas.line(mirror(princess), 1.0, 0.35)
    if design.yoke:
        for mirror in (lambda p: p, _flip):
            canvas.line(mirror(_curve((-0.48, 0.24), (-0.2, 0.27), (-0.06, 0.29))), 1.0, 0.35)
    if design.thread is not None:
        dash = 2.2
        hem = outline.hem[2:-2] - np.array([0.0, 0.035])
        canvas.line(hem, 0.7, 0.75, design.thread, dash)
        for mirror in (lambda p: p, _flip):
            canvas.line(mirror(outline.armhole + np.array([0.02, 0.0])), 0.7, 0.7, design.thread, dash)
    y = design.split_y
    half = float(np.interp(y, outline.side[:, 1], -outline.side[:, 0]))
    if design.belt == "seam":
        canvas.line(np.array([[-half, y + 0.004], [0, y + 0.012], [half, y + 0.004]]), 1.2, 0.4)
    elif design.belt == "elastic":
        for step in (0.012, 0.028, 0.044):
            canvas.line(np.array([[-half, y + step], [0, y + step + 0.008], [half, y + step]]), 1.0, 0.25)
    elif design.belt == "belt":
        colour = np.array(design.closure.colour if design.seed % 2 else design.lining, np.float32)
        strap = np.array(
            [
                [-half - 0.01, y + 0.01],
                [half + 0.01, y + 0.01],
                [half + 0.01, y + 0.075],
                [-half - 0.01, y + 0.075],
            ]
        )
        window, mask = canvas.mask(strap)
        canvas.lay(
            window, mask * (canvas.alpha[window] > 0.5), np.broadcast_to(colour, (*mask.shape, 3)), WAIST
        )
        canvas.line(strap[[0, 1]], 1.0, 0.5)
        canvas.line(strap[[3, 2]], 1.0, 0.5)
        buckle = np.array(
            [[-0.04, y + 0.005], [0.04, y + 0.005], [0.04, y + 0.08], [-0.04, y + 0.08], [-0.04, y + 0.005]]
        )
        canvas.line(buckle, 2.0, 0.9, (0.75, 0.68, 0.45))


def _draw_pockets(canvas: _Canvas, design: Design) -> None:
    stitch = design.thread

    def patch(points: np.ndarray, closed: bool = True) -> None:
        loop = np.concatenate([points, points[:1]]) if closed else points
        canvas.line(loop, 1.0, 0.4)
        if stitch is not None:
            centre = points.mean(0)
            canvas.line(centre + 0.9 * (loop - centre), 0.7, 0.7, stitch, 2.2)

    y, split = design.silhouette.armpit_y, design.split_y
    if design.chest.pocket == "chest":
        patch(
            np.array([[0.12, y - 0.08], [0.34, y - 0.08], [0.34, y + 0.1], [0.23, y + 0.14], [0.12, y + 0.1]])
        )
    elif design.chest.pocket == "flap":
        for mirror in (lambda p: p, _flip):
            patch(
                mirror(
                    np.array(
                        [
                            [0.13, y - 0.06],
                            [0.36, y - 0.06],
                            [0.35, y + 0.005],
                            [0.245, y + 0.03],
                            [0.14, y + 0.005],
                        ]
                    )
                )
            )
            patch(
                mirror(
                    np.array(
                        [
                            [0.14, y + 0.01],
                            [0.35, y + 0.01],
                            [0.34, min(y + 0.2, split - 0.02)],
                            [0.15, min(y + 0.2, split - 0.02)],
                        ]
                    )
                ),
                closed=False,
            )
    length = design.length
    if design.waist.pocket == "kangaroo":
        top, end = split + 0.03, min(split + 0.32, length - 0.1)
        patch(
            np.array(
                [[-0.2, top], [0.2, top], [0.32, top + 0.15], [0.32, end], [-0.32, end], [-0.32, top + 0.15]]
            )
        )
    elif design.waist.pocket == "side":
        start = split + 0.06
        for mirror in (lambda p: p, _flip):
            slant = np.array([[-0.34, start], [-0.27, min(start + 0.2, length - 0.08)]])
            canvas.line(mirror(slant), 2.0, 0.5)
            canvas.line(mirror(slant + np.array([0.02, 0.0])), 0.8, 0.3)


def _draw_graphic(canvas: _Canvas, design: Design, part: int) -> None:
    piece = design.chest if part == CHEST else design.waist
    graphic = piece.graphic
    if graphic is None:
        return
    top = design.silhouette.armpit_y - PRINT_ABOVE_ARMPIT if part == CHEST else design.split_y
    side = max(int(graphic.size * canvas.scale), 6)
    print_ = draw_graphic(graphic, 2 * side).resize((side, side), Image.Resampling.BOX)
    px, py = canvas.px(np.array([graphic.x - graphic.size / 2, top + graphic.y]))
    x0, y0 = round(float(px)), round(float(py))
    x1, y1 = min(x0 + side, canvas.width), min(y0 + side, canvas.height)
    x0c, y0c = max(x0, 0), max(y0, 0)
    if x1 <= x0c or y1 <= y0c:
        return
    window = (slice(y0c, y1), slice(x0c, x1))
    rgba = np.asarray(print_, np.float32)[y0c - y0 : y1 - y0, x0c - x0 : x1 - x0] / 255
    # A print stays on its own part.
    cover = rgba[..., 3] * (canvas.parts[window] == part + 1) * 0.94
    canvas.rgb[window] += cover[..., None] * (rgba[..., :3] - canvas.rgb[window])


def _draw_closure(canvas: _Canvas, design: Design, outline: _Outline) -> None:
    closure = design.closure
    top = float(outline.front[len(outline.front) // 2, 1])
    end = float(outline.hem[len(outline.hem) // 2, 1])
    colour = np.array(closure.colour, np.float32)
    if closure.kind == "open":
        for side in (-1, 1):
            edge = np.array([[side * float(_edge_at(outline, y)), y] for y in (0.0, outline.gap_length)])
            canvas.line(edge, 1.6, 0.45, front=True)
            canvas.line(edge + np.array([side * 0.035, 0]), 0.8, 0.25, front=True)
        if closure.count > 4:
            for y in np.arange(design.split_y % 0.17, end - 0.05, 0.17):
                if y > top + 0.03:
                    canvas.disc(float(_edge_at(outline, y)) + 0.018, float(y), 0.013, colour)
    elif closure.kind == "zip":
        teeth = np.array([[0, 0.0], [0, end - 0.01]])
        canvas.line(teeth, 5.0, 0.35, front=True)
        canvas.line(teeth, 2.4, 0.8, closure.colour, 1.5, front=True)
        canvas.line(np.array([[0, top + 0.02], [0, top + 0.07]]), 3.0, 0.9, (0.7, 0.7, 0.7))
        for side in (-1, 1):
            canvas.line(np.array([[side * 0.03, top], [side * 0.03, end]]), 0.8, 0.25)
    elif closure.kind in ("buttons", "placket"):
        stop = end - 0.08 if closure.kind == "buttons" else design.silhouette.armpit_y - 0.1
        for x, strength in ((-0.03, 0.25), (0.032, 0.45)):
            canvas.line(
                np.array([[x, top - 0.01], [x, end - 0.01 if closure.kind == "buttons" else stop]]),
                1.0,
                strength,
            )
        if closure.kind == "placket":
            canvas.line(np.array([[-0.03, stop], [0.032, stop]]), 1.0, 0.4)
        # Buttons are counted from the border to the waist, so that neither collar nor hem moves them.
        step = 1.25 / closure.count if closure.kind == "buttons" else 0.25 / closure.count
        anchor = design.split_y if closure.kind == "buttons" else stop - 0.03
        radius = 0.013 if closure.count > 3 or closure.kind == "placket" else 0.024
        for k in range(-closure.count - 2, 2 * closure.count):
            y = anchor + (k + 0.5 * (closure.kind == "buttons")) * step
            if top + 0.02 < y < stop:
                canvas.disc(0.0, y, radius, colour)


def _ring(inner: np.ndarray, outer: np.ndarray) -> np.ndarray:
    return np.concatenate([outer, inner[::-1]])


def _draw_back_of_neck(canvas: _Canvas, design: Design, outline: _Outline) -> None:
    """What lies behind the front: the inside of the back with its label."""
    collar = design.collar
    inside = np.array(design.lining, np.float32)
    if collar.kind in ("turtle", "stand", "hood"):
        return
    hole = np.concatenate([outline.front, outline.back[::-1]])
    window, mask = canvas.mask(hole)
    y = canvas.grid(window)[1]
    canvas.lay(
        window, mask, inside * (0.62 + 0.5 * np.clip(y / max(collar.depth, 0.1), 0, 1))[..., None], COLLAR
    )
    if collar.kind in ("round", "v", "shirt", "polo", "lapel") and design.seed % 4:
        dip = float(outline.back[len(outline.back) // 2, 1])
        label = np.array(
            [[-0.045, dip + 0.012], [0.045, dip + 0.012], [0.045, dip + 0.05], [-0.045, dip + 0.05]]
        )
        window, mask = canvas.mask(label)
        shade = np.array([0.9, 0.9, 0.88] if design.seed % 3 else [0.1, 0.1, 0.12], np.float32)
        canvas.lay(
            window, mask * (canvas.alpha[window] > 0.5), np.broadcast_to(shade, (*mask.shape, 3)), COLLAR
        )


def _draw_collar(canvas: _Canvas, design: Design, outline: _Outline) -> None:
    collar = design.collar
    x, depth, band = collar.neck_x, collar.depth, collar.band

    def piece(points: np.ndarray, relief: str = "") -> None:
        window, mask = canvas.mask(points)
        colour = _cloth(canvas, design, collar.look, window)
        if relief == "rib":
            colour = colour * _rib(canvas.grid(window)[0])[..., None]
        canvas.lay(window, mask, colour, COLLAR)

    if collar.kind in ("round", "boat", "v", "square"):
        stretch = np.array([(x + band) / x, (depth + band) / depth])
        outer = outline.front * stretch
        piece(_ring(outline.front, outer), "rib" if collar.kind == "round" and band > 0.035 else "")
        canvas.line(outer[1:-1], 1.0, 0.32)
        canvas.line(outline.front, 1.0, 0.35)
        raised = outline.back * np.array([stretch[0], 1.0]) - np.array([0, 0.6 * band])
        piece(_ring(outline.back, raised))
        canvas.line(outline.back, 1.2, 0.4)
    elif collar.kind in ("turtle", "stand"):
        t = np.linspace(0, np.pi, 21)
        top = np.stack([-0.95 * x * np.cos(t), -band + 0.025 * np.sin(t)], 1)
        bottom = np.stack([-(x + 0.02) * np.cos(t), 0.03 + depth * np.sin(t)], 1)
        piece(_ring(top, bottom), "rib" if collar.kind == "turtle" else "")
        canvas.line(bottom, 1.1, 0.38)
        if collar.kind == "turtle" and band > 0.18:
            canvas.line(0.5 * (top + bottom), 1.2, 0.3)
        back = np.stack([-0.95 * x * np.cos(t), -band - 0.03 * np.sin(t)], 1)
        hole = np.concatenate([top, back[::-1]])
        window, mask = canvas.mask(hole)
        canvas.lay(
            window, mask, np.broadcast_to(np.array(design.lining, np.float32) * 0.7, (*mask.shape, 3)), COLLAR
        )
        if collar.kind == "stand":
            canvas.line(np.array([[0, -band + 0.02], [0, 0.03 + depth]]), 2.0, 0.5)
    elif collar.kind in ("shirt", "polo"):
        fall = 0.055
        arch_t = np.linspace(0, np.pi, 17)
        arch = np.stack([-(x - 0.005) * np.cos(arch_t), 0.01 - fall * np.sin(arch_t) ** 0.7], 1)
        piece(_ring(outline.back, arch))
        canvas.line(outline.back, 1.0, 0.4)
        for mirror in (lambda p: p, _flip):
            wing = np.array(
                [
                    (-x + 0.012, -0.03),
                    (-x * 0.55, depth * 0.42),
                    (-0.004, depth),
                    (-0.55 * band, depth + 0.62 * band),
                    (-x - 0.03, 0.35 * depth),
                    (-x - 0.022, 0.02),
                ]
            )
            piece(mirror(wing))
            canvas.line(mirror(wing[2:]), 1.1, 0.45)
            canvas.line(mirror(wing[:3]), 0.8, 0.25)
            if collar.kind == "polo":
                canvas.line(mirror(wing[3:5] * 0.97), 0.8, 0.2)
    elif collar.kind == "lapel":
        arch_t = np.linspace(0, np.pi, 17)
        arch = np.stack([-x * np.cos(arch_t), 0.01 - 0.06 * np.sin(arch_t) ** 0.7], 1)
        piece(_ring(outline.back, arch))
        canvas.line(outline.back, 1.0, 0.4)
        for mirror in (lambda p: p, _flip):
            upper = np.array(
                [
                    (-x + 0.01, -0.035),
                    (-0.66 * x, 0.32 * depth),
                    (-x - 0.3 * band, 0.42 * depth),
                    (-x - 0.42 * band, 0.24 * depth),
                    (-x - 0.025, 0.02),
                ]
            )
            lower = np.array(
                [
                    (-0.68 * x, 0.3 * depth),
                    (0.0, depth),
                    (-0.35 * x - 0.45 * band, 0.72 * depth),
                    (-x - 0.55 * band, 0.47 * depth),
                    (-x - 0.3 * band, 0.4 * depth),
                ]
            )
            piece(mirror(lower))
            piece(mirror(upper))
            canvas.line(mirror(lower[1:]), 1.2, 0.45)
            canvas.line(mirror(np.concatenate([upper[1:], upper[:1]])), 1.1, 0.4)
            canvas.line(mirror(lower[:2]), 1.0, 0.4)
    elif collar.kind == "hood":
        # Laid up flat: a dome over the shoulders, whose opening narrows towards the front of the neck.
        start = float(outline.front[0, 1])
        dome = _spline(
            [(-x - 0.03, start + 0.02), (-x - 0.09, -0.4 * band), (-0.72 * x, -0.9 * band), (0, -band)]
        )
        left = np.concatenate(
            [_curve((0, depth + 0.05), (-0.6 * x, depth + 0.02), (-x - 0.03, start + 0.02)), dome]
        )
        hood = np.concatenate([left, _flip(left[1:-1])[::-1]])
        piece(hood)
        wide = 0.5 + 0.35 * ((design.seed >> 5) % 4) / 3
        rim = np.concatenate(
            [
                _curve((0, depth), (-wide * x, 0.3 * depth), (-wide * x, -0.3 * band)),
                _curve((-wide * x, -0.3 * band), (-wide * x, -0.78 * band), (0, -0.8 * band)),
            ]
        )
        opening = np.concatenate([rim, _flip(rim[1:-1])[::-1]])
        window, mask = canvas.mask(opening)
        height = np.clip(-canvas.grid(window)[1] / band, 0, 1)
        inside = np.array(design.lining, np.float32)
        canvas.lay(window, mask, inside * (0.5 + 0.4 * height)[..., None], COLLAR)
        canvas.line(hood[:14], 1.1, 0.35)
        canvas.line(_flip(hood[:14]), 1.1, 0.35)
        canvas.line(opening * np.array([1.13, 1.03]), 1.0, 0.22)
        canvas.line(np.array([[0, -band], [0, -0.8 * band]]), 1.0, 0.3)
        cord = np.array([0.92, 0.92, 0.9] if design.seed % 2 else design.lining, np.float32)
        for side in (-1, 1):
            length = 0.14 + 0.1 * ((design.seed >> 3) % 3) / 2
            strip = np.array(
                [
                    [side * 0.07, depth - 0.01],
                    [side * 0.07 + 0.012, depth - 0.01],
                    [side * 0.075 + 0.012, depth + length],
                    [side * 0.075, depth + length],
                ]
            )
            window, mask = canvas.mask(strip)
            canvas.lay(window, mask, np.broadcast_to(cord, (*mask.shape, 3)), COLLAR)
    else:  # straps
        for mirror in (lambda p: p, _flip):
            inner, outer = -x + 0.5 * band, -x - 0.5 * band
            strap = np.array(
                [
                    (inner, depth - 0.04),
                    (0.97 * -x + 0.5 * band, 0.0),
                    (0.97 * -x - 0.5 * band, 0.0),
                    (outer, depth - 0.04),
                ]
            )
            piece(mirror(strap))
            canvas.line(mirror(strap[:2]), 0.7, 0.3)
        trim = np.concatenate([outline.front, (outline.front + np.array([0, 0.03]))[::-1]])
        piece(trim)
        canvas.line(outline.front + np.array([0, 0.03]), 0.8, 0.3)


def region_boxes(
    design: Design, landmarks: np.ndarray, box: np.ndarray, part_boxes: np.ndarray
) -> np.ndarray:
    """The five region boxes (5, 4) by the rules of the hand-labelled photographs, NaN where absent.

    Collar: from neck end to neck end, from the garment's top to a little below the neckline. Chest: between
    the armpits, from the neckline's lowest point to half way to the hem (dresses: the waist). Waist: the
    rest, to the bottom. Sleeves: all of the sleeve. ``part_boxes`` (5, 4) are the extents of the drawn parts.
    """
    lc, rc, cb, la, ra, _, _, lw, rw, lh, rh = to_clothing11(design.category, landmarks)[:, :2]
    out = np.full((NUM_REGIONS, 4), np.nan, np.float32)
    armpit, hem, waist = 0.5 * (la[1] + ra[1]), 0.5 * (lh[1] + rh[1]), 0.5 * (lw[1] + rw[1])
    split = waist if design.is_dress else 0.5 * (armpit + hem)
    wide = design.collar.kind in ("shirt", "lapel", "hood", "polo", "straps")
    collar = part_boxes[COLLAR]
    left, right = min(lc[0], rc[0]), max(lc[0], rc[0])
    if wide:
        left, right = min(left, collar[0]), max(right, collar[2])
    below = 0.04 * abs(hem - armpit)
    out[COLLAR] = left, min(box[1], collar[1]) if wide else collar[1], right, cb[1] + below
    out[CHEST] = min(la[0], ra[0]), min(cb[1], split - 2), max(la[0], ra[0]), split
    xs = (lw[0], rw[0], lh[0], rh[0])
    out[WAIST] = (
        min(xs),
        split,
        max(xs),
        max(box[3] if not np.isnan(part_boxes[WAIST][3]) else hem, split + 2),
    )
    if not np.isnan(part_boxes[WAIST][3]):
        out[WAIST][3] = max(part_boxes[WAIST][3], split + 2)
    for region in (LEFT_SLEEVE, RIGHT_SLEEVE):
        out[region] = part_boxes[region]
    return out


def extent(mask: np.ndarray) -> np.ndarray:
    """(4,) float32 xyxy extent of a bool mask (H, W), NaN when it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.full(4, np.nan, np.float32)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def extents(parts: np.ndarray) -> np.ndarray:
    """(5, 4) float32 xyxy extents of the regions in a part map (H, W), NaN where a region has no pixel."""
    out = np.full((NUM_REGIONS, 4), np.nan, np.float32)
    for region in range(NUM_REGIONS):
        out[region] = extent(parts == region + 1)
    return out


def draw(design: Design, pose: Pose | None = None, side: int = 448, frame: Frame | None = None) -> Drawing:
    """Draw ``design`` in ``pose`` with its longer side ``side`` px long, or within the frame of another
    drawing.

    The same arguments give the same pixels.
    """
    pose = pose or Pose()
    outline = _outline(design, pose)
    landmarks = _landmarks(design, outline)
    spots = [outline.body(), landmarks[:, :2]]
    if outline.sleeves:
        shapes = [
            sleeve.polygon(outline.armhole, 0.0 if pose.over[k] else 0.03)
            for k, sleeve in enumerate(outline.sleeves)
        ]
        shapes[1] = _flip(shapes[1])
        spots += shapes
    head = {
        "hood": design.collar.band,
        "turtle": design.collar.band + 0.04,
        "stand": design.collar.band + 0.04,
    }.get(design.collar.kind, 0.07)
    spots.append(np.array([[0.0, -head]]))
    everything = np.concatenate(spots)
    low, high = everything.min(0), everything.max(0)
    if frame is None:
        scale = (side - 2 * _MARGIN) / float((high - low).max())
        width, height = (int(np.ceil(v * scale)) + 2 * _MARGIN for v in high - low)
        frame = Frame(width, height, scale, (_MARGIN - low[0] * scale, _MARGIN - low[1] * scale))
    width, height = frame.width, frame.height
    canvas = _Canvas(frame)

    if outline.back_visible:
        _draw_back_of_neck(canvas, design, outline)
    for k, sleeve in enumerate(outline.sleeves):
        if not pose.over[k]:
            _draw_sleeve(canvas, design, sleeve, k, shapes[k])
    _draw_body(canvas, design, outline)
    _draw_seams(canvas, design, outline)
    _draw_pockets(canvas, design)
    for part in (CHEST, WAIST):
        _draw_graphic(canvas, design, part)
    _draw_closure(canvas, design, outline)
    _draw_collar(canvas, design, outline)
    covered = np.zeros((height, width), bool)
    for k, sleeve in enumerate(outline.sleeves):
        if pose.over[k]:
            window, mask = canvas.mask(shapes[k])
            covered[window] |= (mask > 0.5) & (canvas.alpha[window] > 0.5)
            cover = Image.fromarray((mask * 255).astype(np.uint8))
            shadow = np.asarray(cover.filter(ImageFilter.GaussianBlur(4)), np.float32) / 255
            canvas.shade(window, 1 - 0.3 * shadow * (canvas.alpha[window] > 0.5))
            _draw_sleeve(canvas, design, sleeve, k, shapes[k])

    # Cloth rounds off towards its outline and lies in its own shade there.
    alpha = Image.fromarray((canvas.alpha * 255).astype(np.uint8))
    soft = np.asarray(alpha.filter(ImageFilter.BoxBlur(5)), np.float32) / 255
    canvas.rgb *= (0.82 + 0.18 * np.clip(2 * soft - 1, 0, 1) ** 0.7)[..., None]

    points = np.concatenate([canvas.px(landmarks[:, :2]), landmarks[:, 2:]], 1).astype(np.float32)
    at = np.clip(np.round(points[:, :2] - 0.5).astype(int), 0, [width - 1, height - 1])
    points[covered[at[:, 1], at[:, 0]], 2] = 1
    category = Taxonomy.load("deepfashion2").category(design.category)
    for region in (LEFT_SLEEVE, RIGHT_SLEEVE):
        # A sleeve's point is covered when the body lies over it and none of the sleeve is seen around it.
        for i in category.parts.get(REGIONS[region], ())[1:-1]:
            x, y = at[i]
            near = canvas.parts[max(y - 3, 0) : y + 4, max(x - 3, 0) : x + 4]
            points[i, 2] = 2 if (near == region + 1).any() else 1
    if design.collar.kind == "hood":
        points[0, 2] = 1
    box = extent(canvas.alpha > 0.5)
    rgba = np.concatenate([np.clip(canvas.rgb, 0, 1), canvas.alpha[..., None]], 2)
    presence = np.full(NUM_REGIONS, Presence.PRESENT, np.uint8)
    if design.sleeves is None:
        presence[[LEFT_SLEEVE, RIGHT_SLEEVE]] = Presence.ABSENT
    boxes = region_boxes(design, points, box, extents(canvas.parts))
    return Drawing(
        design, pose, (rgba * 255 + 0.5).astype(np.uint8), canvas.parts, points, box, boxes, presence, frame
    )
