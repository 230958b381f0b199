"""Photographs of drawn garments: drape, folds, pose, lens, light, shadow, background, occlusion and camera.

Two photographs of one drawing differ as two snapshots of one garment do; landmarks, boxes and mask follow
exactly. One core makes about 13 photographs of 420 × 560 a second, the drawing included
(`benchmarks/render.py`).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from psnet.homography import homography, project
from psnet.regions import MIRROR, NUM_REGIONS, Presence
from psnet.render.backgrounds import creases, relief, sample_background
from psnet.render.cloth import smooth_noise
from psnet.render.design import FABRICS, Design, sample_colour
from psnet.render.draw import Drawing, draw, extent, extents, region_boxes, sample_pose
from psnet.taxonomy import Taxonomy

# A region of which less than this share is seen counts as hidden.
VISIBLE_SHARE = 0.4


@dataclass(frozen=True)
class Photograph:
    """A photograph and everything known about it, in pixels of ``pixels`` (H, W, 3) uint8 RGB.

    ``landmarks`` (n, 3) float32 of the category, DeepFashion2's numbering: x, y, visibility 2 visible, 1
    covered or outside the frame; ``box`` (4,) xyxy of what is in the frame; ``region_boxes`` (5, 4), NaN
    where the garment has no such region or none of it is in the frame; ``region_seen`` (5,) share of each
    region that is in the frame and uncovered, ``presence`` (5,) uint8 codes of `psnet.regions.Presence`;
    ``mask`` (H, W) uint8, 255 on the garment.
    """

    pixels: np.ndarray
    category: str
    landmarks: np.ndarray
    box: np.ndarray
    region_boxes: np.ndarray
    region_seen: np.ndarray
    presence: np.ndarray
    mask: np.ndarray
    mirrored: bool


def mirror_drawing(drawing: Drawing) -> Drawing:
    """The drawing seen in a mirror, left and right of landmarks and regions renamed."""
    width = drawing.pixels.shape[1]
    swap = Taxonomy.load("deepfashion2").category(drawing.design.category).swap
    landmarks = drawing.landmarks[swap] * np.array([-1, 1, 1], np.float32) + np.array(
        [width, 0, 0], np.float32
    )
    renamed = np.array([0, *(1 + r for r in MIRROR)], np.uint8)

    def flip(boxes: np.ndarray) -> np.ndarray:
        out = boxes.copy()
        out[..., 0], out[..., 2] = width - boxes[..., 2], width - boxes[..., 0]
        return out

    return replace(
        drawing,
        pixels=drawing.pixels[:, ::-1],
        parts=renamed[drawing.parts[:, ::-1]],
        landmarks=landmarks.astype(np.float32),
        box=flip(drawing.box),
        region_boxes=flip(drawing.region_boxes)[list(MIRROR)],
        presence=drawing.presence[list(MIRROR)],
        frame=replace(drawing.frame, origin=(width - drawing.frame.origin[0], drawing.frame.origin[1])),
    )


class _Drape:
    """A smooth displacement of the cloth, a sum of plane waves: the place seen at q shows the drawing at q +
    d(q).

    Slopes of the waves add up to at most 0.7, so that q is found by iteration and nothing folds over.
    """

    def __init__(self, rng: np.random.Generator, side: float, strength: float) -> None:
        count = 7
        lengths = side * np.concatenate([rng.uniform(0.5, 1.3, 4), rng.uniform(0.1, 0.25, 3)])
        turn = rng.uniform(0, 2 * np.pi, count)
        self.waves = (2 * np.pi / lengths)[:, None] * np.stack([np.cos(turn), np.sin(turn)], 1)
        self.phases = rng.uniform(0, 2 * np.pi, count)
        slopes = strength * np.concatenate([rng.uniform(0.04, 0.15, 4), rng.uniform(0.01, 0.04, 3)])
        direction = rng.normal(0, 1, (count, 2))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        self.sizes = direction * (slopes * lengths / (2 * np.pi))[:, None]

    def __call__(self, points: np.ndarray) -> np.ndarray:
        return np.sin(points @ self.waves.T + self.phases) @ self.sizes

    def seen_at(self, points: np.ndarray) -> np.ndarray:
        """Where places of the drawing are seen: the inverse."""
        q = points.copy()
        for _ in range(9):
            q = points - self(q)
        return q


def _camera(rng: np.random.Generator, drawing: Drawing, size: tuple[int, int]) -> np.ndarray:
    """Homography from the drawing to the photograph: scale, turn, shift, a tilted phone."""
    w, h = size
    x0, y0, x1, y1 = drawing.box
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    outside = rng.random() < 0.12
    fill = rng.uniform(1.02, 1.2) if outside else 1 - 0.42 * rng.random() ** 1.3
    scale = fill * min(w / (x1 - x0), h / (y1 - y0))
    angle = rng.normal(0, 0.045) if drawing.pose.hanging else rng.normal(0, 0.1)
    if not drawing.pose.hanging and rng.random() < 0.06:
        angle += rng.choice([-1, 1]) * rng.uniform(0.25, 0.5)
    stretch = np.exp(rng.normal(0, 0.035))
    offsets = (corners - corners.mean(0)) * scale * np.array([stretch, 1 / stretch])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    offsets = offsets @ turn
    tilt = rng.normal(0, 0.035, (4, 2)) * np.ptp(offsets, axis=0)
    # A phone held over a bed looks slightly from below: the far end of the garment is smaller.
    offsets[:2, 0] *= 1 - abs(rng.normal(0, 0.04))
    room = np.maximum(np.array([w, h]) - np.ptp(offsets, axis=0), 0.0)
    centre = np.array([w, h]) / 2 + rng.uniform(-0.4, 0.4, 2) * room
    if outside:
        centre += rng.uniform(-0.12, 0.12, 2) * np.array([w, h])
    return homography(corners, centre + offsets + tilt)


def _folds(rng: np.random.Generator, drawing: Drawing) -> tuple[np.ndarray, np.ndarray]:
    """Light on the cloth's folds, (h, w) about 1, and their height, on the drawing's canvas."""
    h, w = drawing.parts.shape
    depth, grain, _ = FABRICS[drawing.design.fabric]
    half = ((h + 1) // 2, (w + 1) // 2)
    amount = depth * rng.uniform(0.4, 1.1)
    direction = float(rng.normal(-2.2, 0.5))
    height = creases(rng, *half, float(rng.uniform(3, 8)), ridged=float(rng.uniform(0.3, 0.8)))
    if drawing.pose.hanging:
        # Hanging cloth falls in vertical folds that grow towards the hem.
        fall = smooth_noise(rng, half[0], half[1], 2, int(rng.integers(6, 14)))
        height = 0.45 * height + 0.9 * fall * np.linspace(0.1, 1, half[0], dtype=np.float32)[:, None]
    light = relief(height, direction)
    yy, xx = np.mgrid[0 : half[0], 0 : half[1]].astype(np.float32)
    for _ in range(int(rng.integers(3, 10))):  # single sharp creases: one side lit, the other in shade
        x, y, turn = rng.uniform(0.1, 0.9) * half[1], rng.uniform(0.15, 0.95) * half[0], rng.uniform(0, np.pi)
        along = (xx - x) * np.cos(turn) + (yy - y) * np.sin(turn)
        across = (xx - x) * np.sin(turn) - (yy - y) * np.cos(turn)
        width, length = rng.uniform(1.5, 5), rng.uniform(0.08, 0.35) * half[0]
        light += (
            rng.uniform(0.4, 1.1) * across / width * np.exp(-((across / width) ** 2) - (along / length) ** 2)
        )
    if not drawing.pose.hanging and rng.random() < 0.2:  # lines where it lay folded in a drawer
        for t, axis in ((rng.uniform(0.4, 0.6), yy / half[0]), (rng.uniform(0.3, 0.7), xx / half[1])):
            d = (axis - t) * 90
            light += 0.8 * d * np.exp(-d * d)
    full = np.asarray(Image.fromarray(light.astype(np.float32)).resize((w, h), Image.Resampling.BILINEAR))
    shade = 1 + 0.13 * amount * full
    shade = shade + 0.017 * grain * rng.standard_normal((h, w), dtype=np.float32)
    tall = np.asarray(Image.fromarray(height.astype(np.float32)).resize((w, h), Image.Resampling.BILINEAR))
    return shade.astype(np.float32), tall


def _hanger(
    matrix: np.ndarray, drawing: Drawing, rng: np.random.Generator, size: tuple[int, int]
) -> Image.Image:
    """A hanger's hook and shoulders as RGBA; the garment will cover most of it."""
    scale, (ox, oy) = drawing.frame.scale, drawing.frame.origin
    neck = drawing.design.collar
    top = oy + 0.02 * scale

    def at(points: np.ndarray) -> list[tuple[float, float]]:
        return [tuple(p) for p in project(matrix, points)]

    image = Image.new("RGBA", size)
    pen = ImageDraw.Draw(image)
    wide = max(2, int(0.012 * size[0]))
    wood = rng.random() < 0.5
    colour = (
        (150, 110, 70, 255) if wood else (30, 30, 32, 255) if rng.random() < 0.6 else (225, 225, 222, 255)
    )
    t = np.linspace(np.pi, -0.6 * np.pi, 18)
    lift = 0.24 + (neck.band if neck.kind == "hood" else 0.0)
    hook = np.stack(
        [ox + 0.055 * scale * np.cos(t) + 0.055 * scale, top - lift * scale - 0.055 * scale * np.sin(t)], 1
    )
    pen.line(
        at(np.concatenate([[[ox, top]], [[ox, top - lift * scale]], hook])),
        fill=(95, 95, 98, 255),
        width=max(2, wide // 2),
        joint="curve",
    )
    shoulder = 0.88 * drawing.design.silhouette.shoulder_x * scale
    bar = np.array([[ox - shoulder, top + 0.13 * scale], [ox, top], [ox + shoulder, top + 0.13 * scale]])
    pen.line(at(bar), fill=colour, width=2 * wide if wood else wide, joint="curve")
    return image


def _occluder(
    rng: np.random.Generator, centre: np.ndarray, reach: float, size: tuple[int, int]
) -> Image.Image:
    """A thing that lies on the garment: a price tag, a hand's edge, a corner of other cloth."""
    image = Image.new("RGBA", size)
    pen = ImageDraw.Draw(image)
    kind = rng.random()
    turn = rng.uniform(0, 2 * np.pi)
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    if kind < 0.4:
        tag = np.array([[-0.5, -0.9], [0.5, -0.9], [0.5, 0.9], [-0.5, 0.9]]) * 0.1 * reach
        pen.polygon([tuple(p) for p in centre + tag @ spin.T], fill=(238, 236, 228, 255))
        for k in range(3):
            line = np.array([[-0.35, -0.4 + 0.4 * k], [0.35, -0.4 + 0.4 * k]]) * 0.1 * reach
            pen.line([tuple(p) for p in centre + line @ spin.T], fill=(90, 90, 90, 255), width=2)
    elif kind < 0.65:
        skin = [(224, 178, 148, 255), (141, 85, 56, 255), (196, 144, 110, 255)][int(rng.integers(3))]
        for k in range(4):
            finger = np.array([[0.0, 0.07 * k], [0.34, 0.07 * k + 0.01]]) * reach
            ends = centre + finger @ spin.T
            r = 0.033 * reach
            pen.line([tuple(p) for p in ends], fill=skin, width=int(2 * r))
            pen.ellipse((*(ends[1] - r), *(ends[1] + r)), fill=skin)
    else:
        colour = (*(int(255 * c) for c in sample_colour(rng)), 255)
        t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        wobble = 1 + 0.2 * np.sin(2 * t + turn) + 0.12 * np.sin(3 * t + 2 * turn)
        blob = (
            np.stack([1.4 * np.cos(t), 0.6 * np.sin(t)], 1)
            * (reach * rng.uniform(0.1, 0.2) * wobble)[:, None]
        )
        pen.polygon([tuple(p) for p in centre + blob @ spin.T], fill=colour)
    return image.filter(ImageFilter.GaussianBlur(0.7))


def _develop(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Exposure, white balance, contrast, light gradient, blur, noise and JPEG; (H, W, 3) float to uint8."""
    h, w = image.shape[:2]
    gain = np.exp(rng.normal(0, 0.05, 3) + rng.normal(0.0, 0.13)).astype(np.float32)
    turn = rng.uniform(0, 2 * np.pi)
    ramp = (
        np.cos(turn) * np.linspace(-1, 1, w, dtype=np.float32)[None]
        + np.sin(turn) * np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    )
    light = 1 + rng.uniform(0.0, 0.2) * ramp
    if rng.random() < 0.35:  # the photographer's shadow, a window
        light = light * (1 + 0.1 * smooth_noise(rng, h, w, 2, 3))
    # Gains, contrast about mid-grey and saturation are one matrix and an offset.
    contrast = float(np.exp(rng.normal(0, 0.1)))
    saturation = float(np.exp(rng.normal(-0.05, 0.15))) if rng.random() < 0.5 else 1.0
    mix = (contrast * gain[:, None]) * (saturation * np.eye(3) + (1 - saturation) / 3)
    image = (image * light[..., None].astype(np.float32)) @ mix.astype(np.float32)
    image += np.float32(0.5 - 0.5 * contrast)
    image += np.float32(rng.uniform(0.003, 0.014)) * rng.standard_normal((h, w, 1), dtype=np.float32)
    np.clip(image, 0, 1, out=image)
    result = Image.fromarray((image * 255).astype(np.uint8))
    if rng.random() < 0.5:
        result = result.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.1))))
    if rng.random() < 0.4:
        buffer = io.BytesIO()
        result.save(buffer, "JPEG", quality=int(rng.integers(50, 93)))
        result = Image.open(buffer)
    return np.asarray(result.convert("RGB"))


def photograph(
    drawing: Drawing, rng: np.random.Generator, size: tuple[int, int] = (420, 560), *, mirrored: bool = False
) -> Photograph:
    """One photograph of ``drawing``, ``size`` (w, h) px; ``mirrored`` flips the garment before it is
    photographed."""
    if mirrored:
        drawing = mirror_drawing(drawing)
    w, h = size
    canvas_h, canvas_w = drawing.parts.shape
    matrix = _camera(rng, drawing, size)
    inverse = np.linalg.inv(matrix)
    drape = _Drape(rng, max(canvas_h, canvas_w), float(rng.uniform(0.4, 1.0)))

    def seen_at(points: np.ndarray) -> np.ndarray:
        return project(matrix, drape.seen_at(points))

    # The garment's window in the photograph.
    outline = seen_at(
        np.stack(
            [a.ravel() for a in np.meshgrid(np.linspace(0, canvas_w, 9), np.linspace(0, canvas_h, 9))], 1
        )
    )
    low = np.clip(np.floor(outline.min(0)) - 4, 0, [w - 1, h - 1]).astype(int)
    high = np.clip(np.ceil(outline.max(0)) + 4, low + 1, [w, h]).astype(int)
    window = (slice(low[1], high[1]), slice(low[0], high[0]))
    rows, columns = high[1] - low[1], high[0] - low[0]

    shade, height = _folds(rng, drawing)
    rgba = drawing.pixels.astype(np.float32) / 255
    cover = rgba[..., 3:]
    # A fixed share of ambient light lets folds show on black cloth too.
    shine = FABRICS[drawing.design.fabric][2]
    lit = (
        rgba[..., :3] * shade[..., None]
        + ((0.15 + 0.5 * shine * np.maximum(shade - 1, 0)) * (shade - 1))[..., None]
    )
    layers = np.concatenate([lit * cover, cover], 2)

    # Where each pixel looks: computed on a coarse grid (both maps are smooth), then enlarged.
    step = 6
    gy, gx = (np.arange(0, n + step, step) for n in (rows, columns))
    mesh = np.stack(np.meshgrid(gx + low[0] + 0.5, gy + low[1] + 0.5), -1).reshape(-1, 2)
    q = project(inverse, mesh)
    source = ((q + drape(q)) / np.array([canvas_w, canvas_h]) * 2 - 1).reshape(len(gy), len(gx), 2)
    coarse = torch.from_numpy(source.astype(np.float32)).permute(2, 0, 1)[None]
    fine = torch.nn.functional.interpolate(
        coarse, size=((len(gy) - 1) * step + 1, (len(gx) - 1) * step + 1), mode="bilinear", align_corners=True
    )
    grid = fine[:, :, :rows, :columns].permute(0, 2, 3, 1)
    bump = np.stack(np.gradient(height)[::-1], -1) * (0.4 * drawing.frame.scale / 100)
    texture = torch.from_numpy(np.concatenate([layers, bump], 2).astype(np.float32)).permute(2, 0, 1)[None]
    # Folds shift what is printed on the cloth by a pixel or two: read their slope first, then the picture.
    slope = torch.nn.functional.grid_sample(texture[:, 4:], grid, mode="bilinear", align_corners=False)
    shifted = grid + 2 * slope.permute(0, 2, 3, 1) * torch.tensor([2.0 / canvas_w, 2.0 / canvas_h])
    sampled = torch.nn.functional.grid_sample(texture[:, :3], shifted, mode="bilinear", align_corners=False)
    alpha = torch.nn.functional.grid_sample(texture[:, 3:4], grid, mode="bilinear", align_corners=False)[
        0, 0
    ].numpy()
    moved = torch.nn.functional.grid_sample(texture[:, 3:4], shifted, mode="bilinear", align_corners=False)[
        0, 0
    ].numpy()
    colour = sampled[0].permute(1, 2, 0).numpy() / np.maximum(moved, 0.05)[..., None]
    part_map = torch.from_numpy(drawing.parts.astype(np.float32))[None, None]
    parts = np.zeros((h, w), np.uint8)
    parts[window] = torch.nn.functional.grid_sample(part_map, grid, mode="nearest", align_corners=False)[
        0, 0
    ].numpy()

    # Background, shadow, hanger, garment, and what lies on it.
    image = sample_background(rng, size, drawing.pose.hanging)
    mask = np.zeros((h, w), np.float32)
    mask[window] = alpha
    small = Image.fromarray((mask * 255).astype(np.uint8)).reduce(4)
    offset = rng.normal(0, 0.012, 2) * w + (np.array([0.015, 0.012]) * w if drawing.pose.hanging else 0)
    blur = float(rng.uniform(1.0, 3.5) * (1.6 if drawing.pose.hanging else 1.0))
    cast = small.filter(ImageFilter.GaussianBlur(blur)).transform(
        small.size, Image.Transform.AFFINE, (1, 0, -offset[0] / 4, 0, 1, -offset[1] / 4)
    )
    near = small.filter(ImageFilter.GaussianBlur(1))
    dark = np.asarray(cast.resize(size, Image.Resampling.BILINEAR), np.float32) / 255 * rng.uniform(0.15, 0.6)
    dark = np.maximum(
        dark,
        np.asarray(near.resize(size, Image.Resampling.BILINEAR), np.float32) / 255 * rng.uniform(0.08, 0.35),
    )
    image = image * (1 - dark)[..., None]
    if drawing.pose.hanging and rng.random() < 0.85:
        hanger = np.asarray(_hanger(matrix, drawing, rng, size), np.float32) / 255
        image += hanger[..., 3:] * (hanger[..., :3] - image)
    image[window] += alpha[..., None] * (np.clip(colour, 0, 1) - image[window])
    covered = np.zeros((h, w), bool)
    landmarks = drawing.landmarks.astype(np.float64)
    points = seen_at(landmarks[:, :2])
    if rng.random() < 0.07:
        x0, y0, x1, y1 = drawing.box
        centre = seen_at(np.array([[rng.uniform(x0, x1), rng.uniform(y0 + 0.2 * (y1 - y0), y1)]]))[0]
        thing = np.asarray(_occluder(rng, centre, float(np.ptp(points[:, 0])), size), np.float32) / 255
        image += thing[..., 3:] * (thing[..., :3] - image)
        covered = thing[..., 3] > 0.5
    pixels = _develop(rng, image)

    labels = np.concatenate([points, landmarks[:, 2:]], 1).astype(np.float32)
    at = np.clip(points.astype(int), 0, [w - 1, h - 1])
    inside = ((points >= 0) & (points < [w, h])).all(1)
    labels[~inside | covered[at[:, 1], at[:, 0]], 2] = 1
    seen = _region_seen(drawing, seen_at, covered)
    presence = drawing.presence.copy()
    presence[(presence == Presence.PRESENT) & (seen < VISIBLE_SHARE)] = Presence.HIDDEN
    visible = (mask > 0.5) & ~covered
    box, boxes = _boxes(drawing.design, labels, parts * (mask > 0.5), size)
    return Photograph(
        pixels,
        drawing.design.category,
        labels,
        box,
        boxes,
        seen,
        presence,
        (visible * 255).astype(np.uint8),
        mirrored,
    )


def _region_seen(
    drawing: Drawing, seen_at: Callable[[np.ndarray], np.ndarray], covered: np.ndarray
) -> np.ndarray:
    """(5,) share of each region's drawn pixels that are in the frame and uncovered, from every eighth
    pixel."""
    h, w = covered.shape
    sample = drawing.parts[::8, ::8]
    ys, xs = sample.nonzero()
    places = seen_at(np.stack([xs * 8 + 0.5, ys * 8 + 0.5], 1).astype(np.float64))
    at = places.astype(int)
    inside = (places >= 0).all(1) & (places[:, 0] < w) & (places[:, 1] < h)
    at = np.clip(at, 0, [w - 1, h - 1])
    inside &= ~covered[at[:, 1], at[:, 0]]
    which = sample[ys, xs]
    out = np.zeros(NUM_REGIONS, np.float32)
    for region in range(NUM_REGIONS):
        of_region = which == region + 1
        if of_region.any():
            out[region] = inside[of_region].mean()
    return out


def _boxes(
    design: Design, labels: np.ndarray, parts: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    limit = np.array([*size, *size], np.float32)
    part_boxes = extents(parts)
    box = extent(parts > 0)
    if np.isnan(box[0]):  # wholly outside the frame
        return np.zeros(4, np.float32), np.full((NUM_REGIONS, 4), np.nan, np.float32)
    boxes = region_boxes(design, labels, box, part_boxes)
    boxes[np.isnan(part_boxes[:, 0])] = np.nan
    clipped = np.clip(boxes, 0, limit)
    empty = (clipped[:, 2] - clipped[:, 0] < 2) | (clipped[:, 3] - clipped[:, 1] < 2)
    clipped[empty] = np.nan
    return box, clipped


def photograph_design(
    design: Design, rng: np.random.Generator, size: tuple[int, int] = (420, 560), *, mirrored: bool = False
) -> Photograph:
    """Lay the design out in a new pose, draw it and photograph it."""
    # Drawn a little larger than it is seen; more pixels would be averaged away.
    side = min(int(0.85 * max(size)), 512)
    return photograph(draw(design, sample_pose(rng, design), side), rng, size, mirrored=mirrored)
