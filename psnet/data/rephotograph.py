"""Photograph a garment anew: another pose, lens, background, light and camera, with its labels carried along.

Two calls on one garment differ as two photographs of one design do, which is what the retrieval branch must
not see; the same transform serves the detector and the landmark branch as augmentation.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter

from psnet.boxes import corners
from psnet.homography import homography
from psnet.regions import MIRROR
from psnet.warp import NODES, Warp, warped


@dataclass(frozen=True)
class Subject:
    """A garment ready to be photographed.

    ``pixels`` (H, W, 3) uint8; ``mask`` (H, W) uint8 or None when it cannot be cut out; ``box`` (4,),
    ``landmarks`` (K, 3), ``region_boxes`` (5, 4; NaN where absent) in its pixels.
    """

    pixels: np.ndarray
    mask: np.ndarray | None
    box: np.ndarray
    landmarks: np.ndarray
    region_boxes: np.ndarray


@dataclass(frozen=True)
class View:
    """A photograph of a subject. Boxes and points in pixels of ``pixels`` (H, W, 3) uint8.

    ``region_seen`` (5,) float, the share of each region inside the frame, 0 where absent. ``warp`` maps the
    subject's pixels to the view's.
    """

    pixels: np.ndarray
    box: np.ndarray
    landmarks: np.ndarray
    region_boxes: np.ndarray
    region_seen: np.ndarray
    mirrored: bool
    warp: Warp

    @classmethod
    def itself(cls, subject: Subject) -> View:
        """The photograph that the subject was labelled in."""
        return cls(
            pixels=subject.pixels,
            box=subject.box,
            landmarks=subject.landmarks,
            region_boxes=subject.region_boxes,
            region_seen=(~np.isnan(subject.region_boxes[:, 0])).astype(np.float32),
            mirrored=False,
            warp=Warp.flat(np.eye(3), subject.box),
        )


# Of a frame, each way, that are warped by themselves: finer than the bends.
_PIECES = 12
LEAST_SIDE = 8.0
"""A thinner box (px) spans no plane, and holds no garment."""


@dataclass(frozen=True)
class CameraRange:
    """How far a new photograph may differ. Angles in degrees, the rest as shares of the frame or of the
    box."""

    side: int = 320
    rotation: float = 9.0
    wild_rotation: float = 0.08
    perspective: float = 0.07
    fill: tuple[float, float] = (0.5, 1.0)
    shift: float = 0.06
    mirror: float = 0.5
    new_background: float = 0.6
    colour: float = 0.14
    light: float = 0.35
    blur: float = 1.0
    occlusion: float = 0.1
    bend: float = 0.0


def _project_boxes(warp: Warp, boxes: np.ndarray) -> np.ndarray:
    """Axis-aligned boxes (n, 4) around moved boxes.

    Corners of a rotated box bulge; an ellipse's extent is closer to what cloth does, so both are averaged.
    """
    ends = corners(boxes)
    mids = 0.5 * (ends + np.roll(ends, -1, 1))
    outer, inner = warp.place(ends), warp.place(mids)
    low = 0.6 * outer.min(1) + 0.4 * inner.min(1)
    high = 0.6 * outer.max(1) + 0.4 * inner.max(1)
    return np.concatenate([low, high], -1)


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32), mode="F")
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def smooth_shifts(rng: np.random.Generator, cells: int) -> np.ndarray:
    """(NODES, NODES, 2) of about unit size, of so many independent values each way."""
    return np.stack([_smooth_noise(rng, NODES, NODES, cells) for _ in range(2)], -1)


def _bends(rng: np.random.Generator, bend: float) -> np.ndarray:
    """Shifts (NODES, NODES, 2) of cloth that was laid or worn anew and of a lens, as shares of its box."""
    strength = bend * rng.choice([0.3, 1.0, 2.0])
    cloth = smooth_shifts(rng, int(rng.integers(3, 6)))
    steps = np.linspace(-1, 1, NODES)
    around = np.stack(np.meshgrid(steps, steps), -1)
    lens = rng.normal() * around * (around**2).sum(-1, keepdims=True)
    return strength * (cloth + lens)


def make_background(rng: np.random.Generator, size: tuple[int, int], other: np.ndarray | None) -> Image.Image:
    """A background of ``size`` (w, h): a piece of another photograph, a plain or a textured sheet."""
    width, height = size
    kind = rng.random()
    if other is not None and kind < 0.6:
        h, w = other.shape[:2]
        # A strip along an edge rarely holds a garment.
        share = rng.uniform(0.12, 0.3)
        if rng.random() < 0.5:
            strip = (
                other[:, : max(int(w * share), 8)]
                if rng.random() < 0.5
                else other[:, -max(int(w * share), 8) :]
            )
        else:
            strip = (
                other[: max(int(h * share), 8)] if rng.random() < 0.5 else other[-max(int(h * share), 8) :]
            )
        image = Image.fromarray(strip)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.ROTATE_90)
        return image.resize(size, Image.Resampling.BILINEAR)
    if other is not None and kind < 0.75:
        h, w = other.shape[:2]
        side = int(min(h, w) * rng.uniform(0.4, 1.0))
        x, y = int(rng.integers(0, w - side + 1)), int(rng.integers(0, h - side + 1))
        piece = Image.fromarray(other[y : y + side, x : x + side]).resize(size, Image.Resampling.BILINEAR)
        return piece.filter(ImageFilter.GaussianBlur(rng.uniform(0, 4)))
    colour = (
        rng.uniform(0, 255, 3)
        if rng.random() < 0.6
        else np.full(3, rng.uniform(60, 250)) + rng.normal(0, 8, 3)
    )
    sheet = np.broadcast_to(colour, (height, width, 3)).astype(np.float32).copy()
    sheet += rng.uniform(0, 25) * _smooth_noise(rng, height, width, int(rng.integers(2, 9)))[..., None]
    if rng.random() < 0.4:  # boards, folds or tiles
        period = rng.uniform(12, 80)
        angle = rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)])
        ys, xs = np.mgrid[0:height, 0:width]
        wave = np.sin((xs * np.cos(angle) + ys * np.sin(angle)) * 2 * np.pi / period)
        sheet += rng.uniform(5, 40) * (np.sign(wave) if rng.random() < 0.5 else wave)[..., None]
    return Image.fromarray(np.clip(sheet, 0, 255).astype(np.uint8))


def _develop(rng: np.random.Generator, image: Image.Image, camera: CameraRange) -> np.ndarray:
    """White balance, exposure, contrast, saturation, a light gradient, blur, noise and JPEG.

    Point operations go through one look-up table per channel and Pillow's own loops: this runs for every
    sample.
    """
    width, height = image.size
    strength = camera.colour * rng.choice([0.3, 1.0])
    levels = np.arange(256) / 255
    gamma, contrast = np.exp(rng.normal(0, strength)), np.exp(rng.normal(0, strength * 0.8))
    gains = np.exp(rng.normal(0, strength * 0.7, 3)) * np.exp(rng.normal(0, strength))
    tables = [np.clip((0.5 + (levels**gamma * gain - 0.5) * contrast) * 255, 0, 255) for gain in gains]
    image = ImageEnhance.Color(image).enhance(float(np.exp(rng.normal(0, strength * 1.3))))
    image = image.point(np.concatenate(tables).astype(np.uint8).tolist())
    if camera.light and rng.random() < 0.6:
        field = 1 + camera.light * rng.uniform(0.1, 0.5) * rng.standard_normal((3, 3))
        shade = Image.fromarray(np.clip(field / max(field.max(), 1) * 255, 30, 255).astype(np.uint8))
        image = ImageChops.multiply(
            image, shade.resize((width, height), Image.Resampling.BICUBIC).convert("RGB")
        )
    if camera.blur and rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, camera.blur)))
    if rng.random() < 0.4:
        grain = rng.standard_normal((height, width), np.float32) * rng.uniform(2, 14) + 128
        noise = Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8)).convert("RGB")
        image = ImageChops.add(image, noise, 1.0, -128)
    if rng.random() < 0.5:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.integers(45, 95)))
        image = Image.open(buffer)
    return np.asarray(image.convert("RGB"))


def rephotograph(
    subject: Subject,
    rng: np.random.Generator,
    camera: CameraRange,
    *,
    swap: np.ndarray,
    other: np.ndarray | None = None,
) -> View:
    """One new photograph of ``subject``.

    ``swap`` (K,) gives every landmark's partner under a mirror; ``other`` is a photograph to take a
    background from.
    """
    mirrored = bool(rng.random() < camera.mirror)
    height, width = subject.pixels.shape[:2]
    x0, y0, x1, y1 = subject.box
    box_w, box_h = max(x1 - x0, LEAST_SIDE), max(y1 - y0, LEAST_SIDE)
    box = np.array([x0, y0, x0 + box_w, y0 + box_h], np.float64)
    aspect = float(np.exp(rng.normal(0, 0.18))) * (3 / 4)
    frame_w, frame_h = (
        (camera.side, round(camera.side / aspect))
        if aspect > 1
        else (round(camera.side * aspect), camera.side)
    )
    scale = rng.uniform(*camera.fill) * min(frame_w / box_w, frame_h / box_h)
    angle = rng.normal(0, camera.rotation)
    if rng.random() < camera.wild_rotation:
        angle += rng.choice([-25.0, 25.0, 40.0, -40.0])
    angle = np.deg2rad(angle)
    stretch = np.exp(rng.normal(0, 0.05))
    centre = np.array([frame_w, frame_h]) * (0.5 + rng.normal(0, camera.shift, 2))
    ends = corners(box)
    offsets = (ends - ends.mean(0)) * scale * np.array([stretch, 1 / stretch])
    if mirrored:
        offsets[:, 0] *= -1
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    jitter = rng.uniform(-1, 1, (4, 2)) * camera.perspective * scale * np.array([box_w, box_h])
    target = centre + offsets @ rotation.T + jitter
    warp = Warp.flat(homography(ends, target), box)
    if camera.bend:
        warp = replace(warp, shifts=_bends(rng, camera.bend) * scale * np.array([box_w, box_h]))
    size = (frame_w, frame_h)

    def taken(beside: Image.Image) -> tuple[Image.Image, Image.Image]:
        """The subject and a picture in grey of its size, as the camera sees them, at the price of one."""
        bands = Image.merge("CMYK", [*Image.fromarray(subject.pixels).split(), beside])
        *colours, grey = warped(bands, size, warp.back, pieces=_PIECES).split()
        return Image.merge("RGB", colours), grey

    alpha: Image.Image | None = None
    fill = tuple(int(v) for v in np.median(subject.pixels.reshape(-1, 3)[::97], 0))
    if subject.mask is not None and rng.random() < camera.new_background:
        ground = make_background(rng, size, other)
        source, alpha = taken(Image.fromarray(subject.mask))
        alpha = alpha.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.1)))
        if rng.random() < 0.6:
            shade = alpha.filter(ImageFilter.GaussianBlur(rng.uniform(2, 9)))
            dx, dy = (int(v) for v in rng.integers(-6, 7, 2))
            depth = float(rng.uniform(0.1, 0.6))
            shade = ImageChops.offset(shade, dx, dy).point([round(255 - depth * v) for v in range(256)])
            ground = ImageChops.multiply(ground, shade.convert("RGB"))
        picture = Image.composite(source, ground, alpha)
    else:
        if subject.mask is not None:
            alpha = warped(Image.fromarray(subject.mask), size, warp.back, pieces=_PIECES)
        source, inside = taken(Image.new("L", (width, height), 255))
        ground = Image.new("RGB", size, fill)
        picture = Image.composite(source, ground, inside)

    points = subject.landmarks.copy()
    points[:, :2] = warp.place(points[:, :2])
    regions = _project_boxes(warp, subject.region_boxes)
    if mirrored:
        points, regions = points[swap], regions[list(MIRROR)]
    if rng.random() < camera.occlusion:
        draw = ImageDraw.Draw(picture)
        ox, oy = rng.uniform(0, frame_w), rng.uniform(0, frame_h)
        ow, oh = rng.uniform(0.03, 0.14, 2) * np.array([frame_w, frame_h])
        draw.ellipse([ox, oy, ox + ow, oy + oh], fill=tuple(int(v) for v in rng.integers(0, 256, 3)))

    frame = np.array([frame_w, frame_h, frame_w, frame_h], np.float64)
    clipped = np.clip(np.nan_to_num(regions), 0, frame)
    full = np.maximum(np.prod(np.nan_to_num(regions[:, 2:] - regions[:, :2]), -1), 1e-6)
    seen = np.prod(np.maximum(clipped[:, 2:] - clipped[:, :2], 0), -1) / full
    outer = _project_boxes(warp, subject.box[None])[0]
    valid = points[:, 2] > 0
    extent = np.concatenate([np.nan_to_num(regions, nan=np.inf)[:, :2], points[valid, :2]]).min(0)
    reach = np.concatenate([np.nan_to_num(regions, nan=-np.inf)[:, 2:], points[valid, :2]]).max(0)
    outer[:2], outer[2:] = np.minimum(outer[:2], extent), np.maximum(outer[2:], reach)
    if alpha is not None:
        ys, xs = np.nonzero(np.asarray(alpha) > 127)
        if len(xs) > 200:  # the cut-out knows the garment's extent better than a turned box
            outer = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float64)
    outer = np.clip(outer, 0, frame)
    if (outer[2:] - outer[:2]).min() < LEAST_SIDE:
        outer = frame * np.array([0, 0, 1, 1])
    return View(
        pixels=_develop(rng, picture, camera),
        box=outer.astype(np.float32),
        landmarks=points.astype(np.float32),
        region_boxes=regions.astype(np.float32),
        region_seen=np.where(np.isnan(regions[:, 0]), 0.0, seen).astype(np.float32),
        mirrored=mirrored,
        warp=warp,
    )
