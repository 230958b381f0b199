"""Edit one region of a photographed garment, as a copyist does: the source of plagiarised training pairs.

Kinds: ``logo``, ``pattern``, ``colour``, ``mosaic``, ``flip``, ``donor`` (the same region of another garment)
and ``shorten`` (sleeves and waist). How often each part is edited follows Table 1 of PS-Net.
"""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from psnet.data.rephotograph import Subject
from psnet.regions import REGIONS

# Table 1 of the paper: share of sleeves / collar / chest / waist among the modified regions, per group.
PART_SHARES: dict[str, tuple[float, float, float, float]] = {
    "T-shirts": (0.12, 0.06, 0.72, 0.10),
    "tops": (0.13, 0.34, 0.38, 0.15),
    "outwear": (0.25, 0.21, 0.33, 0.21),
    "dress": (0.06, 0.17, 0.21, 0.56),
}
PARTS = ("sleeves", "collar", "chest", "waist")
PART_REGIONS: dict[str, tuple[str, ...]] = {
    "sleeves": ("left_sleeve", "right_sleeve"),
    "collar": ("collar",),
    "chest": ("chest",),
    "waist": ("waist",),
}
KINDS: dict[str, tuple[str, ...]] = {
    "sleeves": ("pattern", "colour", "donor", "shorten"),
    "collar": ("pattern", "colour", "donor"),
    "chest": ("logo", "pattern", "colour", "mosaic", "flip", "donor"),
    "waist": ("logo", "pattern", "colour", "mosaic", "donor", "shorten"),
}


# Further than the softening of a region's edge reaches, px.
_BLUR_REACH = (-8, -8, 8, 8)


def region_mask(subject: Subject, region: str) -> np.ndarray:
    """(H, W) float in 0…1, softly 1 on the cloth of ``region``: its box, less the collar, and of a sleeve's
    less the torso. A sleeve that hangs before chest or waist is edited with them: copyists paint over it as
    well."""
    height, width = subject.pixels.shape[:2]
    index = REGIONS.index(region)
    picture = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(picture)
    draw.rectangle([float(v) for v in subject.region_boxes[index]], fill=255)
    collar = subject.region_boxes[0]
    if region in ("left_sleeve", "right_sleeve"):
        # The torso between the armpits is not sleeve.
        side = region.split("_")[0]
        armpit = subject.landmarks[3 if side == "left" else 4]
        neck = subject.landmarks[0 if side == "left" else 1]
        hem = subject.landmarks[9 if side == "left" else 10]
        away = 1 if side == "left" else -1
        if armpit[2] > 0:
            top = armpit[:2] + 0.35 * (neck[:2] - armpit[:2]) * np.array([1, 1])
            draw.polygon(
                [
                    (top[0], 0),
                    (armpit[0], armpit[1]),
                    (hem[0] if hem[2] > 0 else armpit[0], height),
                    (armpit[0] + away * width, height),
                    (armpit[0] + away * width, 0),
                ],
                fill=0,
            )
    elif region != "collar" and not np.isnan(collar[0]):
        draw.rectangle([float(v) for v in collar], fill=0)
    if subject.mask is not None:
        cloth = np.asarray(picture, np.float32) * (subject.mask > 127)
        picture = Image.fromarray(cloth.astype(np.uint8))
    extent = picture.getbbox()
    if extent is not None:  # the rest of the picture stays as it is, black
        around = np.clip(np.add(extent, _BLUR_REACH), 0, [width, height, width, height]).tolist()
        picture.paste(picture.crop(around).filter(ImageFilter.GaussianBlur(1.2)), tuple(around[:2]))
    return np.asarray(picture, np.float32) / 255


def _vivid(rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.3:
        return np.full(3, rng.uniform(0, 255))
    return 255 * np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.3, 1), rng.uniform(0.25, 1)))


def _pattern(rng: np.random.Generator, height: int, width: int, unit: float) -> np.ndarray:
    """(H, W, 3) a printed cloth; ``unit`` px is the size of its motif."""
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    a, b = _vivid(rng), _vivid(rng)
    kind = rng.integers(0, 5)
    angle = rng.choice([0, np.pi / 2, np.pi / 4, rng.uniform(0, np.pi)])
    u, v = (xs * np.cos(angle) + ys * np.sin(angle)) / unit, (-xs * np.sin(angle) + ys * np.cos(angle)) / unit
    if kind == 0:
        on = (u % 1) < rng.uniform(0.2, 0.6)
    elif kind == 1:
        on = ((np.floor(u * 2) + np.floor(v * 2)) % 2) > 0
    elif kind == 2:
        on = ((u % 1) - 0.5) ** 2 + ((v % 1) - 0.5) ** 2 < rng.uniform(0.04, 0.15)
    elif kind == 3:
        on = ((u % 1) < 0.25) | ((v % 1) < 0.25)
    else:
        cells = max(int(width / unit), 3)
        on = (
            np.asarray(
                Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32), mode="F").resize(
                    (width, height), Image.Resampling.BICUBIC
                )
            )
            > 0
        )
    return np.where(on[..., None], a, b).astype(np.float32)


def _logo(rng: np.random.Generator, image: Image.Image, box: np.ndarray) -> None:
    x0, y0, x1, y1 = box
    draw = ImageDraw.Draw(image)
    colour = tuple(int(v) for v in _vivid(rng))
    size = rng.uniform(0.3, 0.65) * min(x1 - x0, y1 - y0)
    cx, cy = (
        rng.uniform(x0 + 0.35 * (x1 - x0), x1 - 0.35 * (x1 - x0)),
        rng.uniform(y0 + 0.35 * (y1 - y0), y1 - 0.35 * (y1 - y0)),
    )
    frame = [cx - size / 2, cy - size / 2, cx + size / 2, cy + size / 2]
    kind = rng.integers(0, 5)
    if kind == 0:
        draw.ellipse(frame, fill=colour)
    elif kind == 1:
        draw.ellipse(frame, outline=colour, width=max(int(size / 7), 2))
    elif kind == 2:
        draw.rectangle(frame, fill=colour)
        if rng.random() < 0.6:
            inner = tuple(int(v) for v in _vivid(rng))
            draw.ellipse([cx - size / 4, cy - size / 4, cx + size / 4, cy + size / 4], fill=inner)
    elif kind == 3:
        turns = np.linspace(0, 2 * np.pi, int(rng.integers(3, 8)) * 2, endpoint=False) - np.pi / 2
        radii = np.where(np.arange(len(turns)) % 2, rng.uniform(0.2, 0.5), 1.0) * size / 2
        draw.polygon(
            [(cx + r * np.cos(t), cy + r * np.sin(t)) for r, t in zip(radii, turns, strict=True)], fill=colour
        )
    else:
        letters = "".join(rng.choice(list("ABCDEHKLMNOPRSTUVXYZ0123456789"), int(rng.integers(2, 7))))
        font = ImageFont.load_default(size=max(size / len(letters) * 1.6, 8))
        for line in range(int(rng.integers(1, 3))):
            draw.text((cx, cy + line * size * 0.5), letters, fill=colour, font=font, anchor="mm")


def _recolour(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    hsv = np.asarray(Image.fromarray(pixels).convert("HSV"), np.float32)
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(40, 216)) % 256
    hsv[..., 1] = np.clip(hsv[..., 1] * rng.uniform(0.8, 1.5) + rng.uniform(20, 110), 0, 255)
    shift = rng.uniform(25, 90)
    bright = hsv[..., 2].mean() > 128
    hsv[..., 2] = np.clip(hsv[..., 2] + (-shift if bright else shift) * rng.choice([0.3, 1.0]), 0, 255)
    return np.asarray(Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB"), np.float32)


def edit_region(
    subject: Subject, region: str, kind: str, rng: np.random.Generator, donor: Subject | None = None
) -> Subject:
    """``subject`` with one region edited; labels stay, but for ``shorten``, which moves the garment's end.

    ``donor`` is needed by kind ``donor``; without one, or where the donor lacks the region, the region is
    recoloured. A region of fewer than 4 px, here or in the donor, stays as it is.
    """
    index = REGIONS.index(region)
    box = subject.region_boxes[index]
    if np.isnan(box[0]):
        return subject
    height, width = subject.pixels.shape[:2]
    x0, y0, x1, y1 = (int(v) for v in np.clip(box, 0, [width, height, width, height]))
    if x1 - x0 < 4 or y1 - y0 < 4:
        return subject
    if kind == "shorten":
        return _shorten(subject, region, rng)
    if kind == "donor" and (donor is None or np.isnan(donor.region_boxes[index, 0])):
        kind = "colour"
    old = subject.pixels[y0:y1, x0:x1]
    weight = region_mask(subject, region)[y0:y1, x0:x1, None]
    tile = Image.fromarray(old)
    size = (x1 - x0, y1 - y0)
    if kind == "logo":
        _logo(rng, tile, np.array([0, 0, *size]))
        new = np.asarray(tile, np.float32)
    elif kind == "pattern":
        cloth = _pattern(rng, size[1], size[0], rng.uniform(0.12, 0.45) * min(size))
        grey = old.mean(-1, keepdims=True, dtype=np.float32)
        shading = grey / max(float(grey.mean()), 1.0)
        new = cloth * (shading ** rng.uniform(0.3, 1.0))
    elif kind == "colour":
        new = _recolour(rng, old)
    elif kind == "mosaic":
        cells = int(rng.integers(4, 9))
        small = np.asarray(tile.resize((cells, cells), Image.Resampling.BOX)).reshape(-1, 3)
        if rng.random() < 0.7:
            small = rng.permutation(small)
        new = np.asarray(
            Image.fromarray(small.reshape(cells, cells, 3)).resize(size, Image.Resampling.NEAREST), np.float32
        )
    elif kind == "flip":
        new = (old[:, ::-1] if rng.random() < 0.7 else old[::-1]).astype(np.float32)
    elif kind == "donor":
        assert donor is not None
        dh, dw = donor.pixels.shape[:2]
        dx0, dy0, dx1, dy1 = (int(v) for v in np.clip(donor.region_boxes[index], 0, [dw, dh, dw, dh]))
        if dx1 - dx0 < 4 or dy1 - dy0 < 4:
            return subject
        new = np.asarray(
            Image.fromarray(donor.pixels[dy0:dy1, dx0:dx1]).resize(size, Image.Resampling.BILINEAR),
            np.float32,
        )
    else:
        raise ValueError(f"unknown kind of edit {kind!r}")
    pixels = subject.pixels.copy()
    pixels[y0:y1, x0:x1] = np.clip(old * (1 - weight) + np.clip(new, 0, 255) * weight, 0, 255)
    return replace(subject, pixels=pixels)


def _across(landmarks: np.ndarray, box: np.ndarray) -> tuple[float, float]:
    """From where to where the garment reaches below the armpits; as its waist's box where nobody knows."""
    sides = landmarks[[7, 8, 9, 10]]
    x = sides[sides[:, 2] > 0, 0] if (sides[:, 2] > 0).sum() > 1 else box[[0, 2]]
    return x.min(), x.max()


def _shorten(subject: Subject, region: str, rng: np.random.Generator) -> Subject:
    """Cut a sleeve or the hem off: needs the cut-out, since what was cloth becomes background."""
    index = REGIONS.index(region)
    if subject.mask is None:
        return edit_region(subject, region, "colour", rng)
    box = subject.region_boxes[index].copy()
    landmarks, mask = subject.landmarks.copy(), subject.mask.copy()
    keep = rng.uniform(0.35, 0.7)
    if region == "waist":
        end = box[1] + keep * (box[3] - box[1])
        # Sleeves that hang beside the hem stay as long as they are.
        low, high = _across(landmarks, box)
        mask[int(end) :, max(int(low) - 2, 0) : int(high) + 3] = 0
        # The sides run from the armpits over the waistline to the hem: the new hem ends on them.
        for armpit, waistline, hem in ((3, 7, 9), (4, 8, 10)):
            side = subject.landmarks[[armpit, waistline, hem]]
            side = side[side[:, 2] > 0]
            side = side[side[:, 1].argsort()]
            for point in (waistline, hem):
                if landmarks[point, 2] > 0 and landmarks[point, 1] > end:
                    landmarks[point, :2] = np.interp(end, side[:, 1], side[:, 0]), end
        box[[0, 2]] = _across(landmarks, box)
        box[3] = end
    else:
        left = region == "left_sleeve"
        tip = landmarks[5 if left else 6]
        armpit, neck = landmarks[3 if left else 4], landmarks[0 if left else 1]
        if min(tip[2], armpit[2], neck[2]) == 0:
            return edit_region(subject, region, "colour", rng)
        shoulder = 0.5 * (armpit[:2] + neck[:2])
        direction = tip[:2] - shoulder
        ys, xs = np.mgrid[0 : mask.shape[0], 0 : mask.shape[1]]
        along = ((xs - shoulder[0]) * direction[0] + (ys - shoulder[1]) * direction[1]) / max(
            float(direction @ direction), 1.0
        )
        cut = (along > keep) & (region_mask(subject, region) > 0.5)
        mask[cut] = 0
        tip[:2] = shoulder + keep * direction
        sleeve = region_mask(replace(subject, mask=mask), region) > 0.5
        ys, xs = np.nonzero(sleeve)
        if len(xs) > 20:
            box = np.array([xs.min(), ys.min(), xs.max(), ys.max()], np.float32)
    boxes = subject.region_boxes.copy()
    boxes[index] = box
    ys, xs = np.nonzero(mask > 127)
    outer = subject.box
    if len(xs) > 100:
        outer = np.array([xs.min(), ys.min(), xs.max(), ys.max()], np.float32)
    return replace(subject, mask=mask, region_boxes=boxes, landmarks=landmarks, box=outer)


def sample_parts(
    group: str, count: int, rng: np.random.Generator, sleeveless: bool = False
) -> tuple[str, ...]:
    """``count`` different parts to modify, by the paper's Table 1."""
    shares = np.array(PART_SHARES[group])
    if sleeveless:
        shares[0] = 0
    count = min(count, int((shares > 0).sum()))
    return tuple(rng.choice(PARTS, size=count, replace=False, p=shares / shares.sum()))


def random_parts(sleeveless: bool, count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """``count`` different parts to modify, each as likely as the others: what must be learnt of all of them
    evenly."""
    free = [part for part in PARTS if part != "sleeves" or not sleeveless]
    return tuple(str(part) for part in rng.permutation(free)[:count])


def edit_parts(
    subject: Subject, parts: tuple[str, ...], rng: np.random.Generator, donor: Subject | None = None
) -> tuple[Subject, tuple[str, ...]]:
    """Edit every named part; returns the edited subject and the kind drawn per part, which `edit_region` may
    not have been able to do."""
    kinds = []
    for part in parts:
        kind = str(rng.choice(KINDS[part]))
        seed = int(rng.integers(2**32))
        for region in PART_REGIONS[part]:  # both sleeves get the same edit
            subject = edit_region(subject, region, kind, np.random.default_rng(seed), donor)
        kinds.append(kind)
    return subject, tuple(kinds)
