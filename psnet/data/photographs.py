"""Hand-labelled garment photographs in the layout of ``clothing/labels.jsonl``, and their cut-out masks.

One JSON object a line: ``image`` (path relative to the file), ``split``, ``category`` (a DeepFashion2 name),
optional ``mask`` (a PNG, 255 on the garment), ``bbox`` and ``regions`` as xyxy in pixels, ``landmarks`` as
[x, y, v] with v = 2 visible, 1 estimated, 0 absent.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from psnet.image import ImageError, decode_image
from psnet.regions import NUM_REGIONS, REGIONS
from psnet.registration import load_opencv
from psnet.taxonomy import Taxonomy


def load_pixels(path: Path) -> np.ndarray:
    """The picture, upright, (H, W, 3) uint8 RGB. Raises ValueError when it cannot be read."""
    try:
        return decode_image(path.read_bytes()).pixels
    except (OSError, ImageError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = getattr(error, "strerror", None) or error
    return ValueError(f"{path}: no image that can be read ({reason})")


def read_pixels(path: Path) -> np.ndarray:
    """`load_pixels`, an array that must not be written to: small ones are kept, as decoding costs as much as
    warping."""
    small = path.is_file() and path.stat().st_size <= _SMALL_FILE
    return _small_pixels(path) if small else load_pixels(path)


# Of a compressed photograph that takes about 1 MB as pixels; some 4 GB in all.
_SMALL_FILE = 200_000


@functools.lru_cache(maxsize=4096)
def _small_pixels(path: Path) -> np.ndarray:
    pixels = load_pixels(path)
    pixels.flags.writeable = False
    return pixels


@functools.lru_cache(maxsize=4096)
def _read_mask(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            mask = np.array(image.convert("L"))
    except (OSError, SyntaxError, ValueError) as error:  # the latter two of a damaged PNG
        raise _unreadable(path, error) from None
    mask.flags.writeable = False
    return mask


@dataclass(frozen=True)
class LabelledGarment:
    """One garment in one photograph.

    ``box`` (4,) xyxy px; ``landmarks`` (K, 3) x, y px and visibility (2 visible, 1 estimated, 0 absent);
    ``region_boxes`` (5, 4) xyxy px, NaN where the garment has no such region. ``weight``: how often training
    draws it, against the others. ``polygons``: the garment's outline where the data set has one, each x1,
    y1, x2, y2, … px; the cut-out is drawn from it.
    """

    image_path: Path
    split: str
    category: str
    box: np.ndarray
    landmarks: np.ndarray
    region_boxes: np.ndarray
    upright: bool = True
    mask_path: Path | None = None
    weight: float = 1.0
    polygons: tuple[tuple[float, ...], ...] = ()

    @property
    def sleeveless(self) -> bool:
        """Whether both sleeves are absent."""
        return bool(self.absent[1:3].all())

    @property
    def absent(self) -> np.ndarray:
        """(5,) bool, regions this garment does not have."""
        return np.isnan(self.region_boxes[:, 0])

    def read(self) -> np.ndarray:
        """The photograph, (H, W, 3) uint8 RGB."""
        return read_pixels(self.image_path)

    def read_mask(self) -> np.ndarray | None:
        """The cut-out, (H, W) uint8 with 255 on the garment; None when it was never made or was rejected.

        Raises ValueError for a file that is not there, cannot be read or is not of the photograph's size.
        """
        if self.polygons:
            height, width = self.read().shape[:2]
            picture = Image.new("L", (width, height))
            for polygon in self.polygons:
                ImageDraw.Draw(picture).polygon(polygon, fill=255)
            return np.asarray(picture)
        if self.mask_path is None:
            return None
        mask, photograph = _read_mask(self.mask_path), self.read()
        if mask.shape != photograph.shape[:2]:
            raise ValueError(
                f"{self.mask_path}: {mask.shape[1]} x {mask.shape[0]} px, but its photograph has "
                f"{photograph.shape[1]} x {photograph.shape[0]}"
            )
        return mask


def read_labels(
    path: Path, splits: Sequence[str] | None = None, upright_only: bool = True
) -> list[LabelledGarment]:
    """Read a labels file; ``splits`` keeps only the named ones.

    Raises FileNotFoundError when the file is missing, ValueError (with the line number) when a line is not a
    label.
    """
    taxonomy = Taxonomy.load("clothing11")
    names = taxonomy.landmarks
    garments = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            landmarks = np.asarray([row["landmarks"][name] or (0, 0, 0) for name in names], np.float32)
            if landmarks.shape != (len(names), 3) or not np.isin(landmarks[:, 2], (0, 1, 2)).all():
                raise ValueError("a landmark is x, y and a visibility of 0, 1 or 2")
            garment = LabelledGarment(
                image_path=path.parent / row["image"],
                split=row["split"],
                category=taxonomy.category(row["category"]).name,
                box=read_box(row["bbox"]),
                landmarks=landmarks,
                region_boxes=read_regions(row["regions"]),
                upright=bool(row.get("upright", True)),
                mask_path=path.parent / row["mask"] if row.get("mask") else None,
            )
        except KeyError as error:
            raise ValueError(f"{path}, line {number}: not a garment label (no {error})") from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a garment label ({error})") from error
        if (splits is None or garment.split in splits) and (garment.upright or not upright_only):
            garments.append(garment)
    return garments


def read_box(edges: Sequence[float], name: str = "bbox") -> np.ndarray:
    """(4,) float32. Raises ValueError for what is no box."""
    box = np.asarray(edges, np.float32)
    if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] <= box[:2]).any():
        raise ValueError(f"{name} {edges} is not x0, y0, x1, y1")
    return box


def regions_row(region_boxes: np.ndarray) -> dict[str, list[float] | None]:
    """Region boxes (5, 4) px, NaN where absent, as files have them: by name, null where absent."""
    return {
        name: None if np.isnan(edges[0]) else [round(float(v), 1) for v in edges]
        for name, edges in zip(REGIONS, region_boxes, strict=True)
    }


def read_regions(row: Mapping[str, Any]) -> np.ndarray:
    """The inverse of `regions_row`, (5, 4) float32; a name may be missing. Raises ValueError for what is no
    box or no region."""
    if not isinstance(row, Mapping):
        raise ValueError("regions are boxes by name")
    if unknown := sorted(set(row) - set(REGIONS)):
        raise ValueError(f"unknown region {unknown[0]!r}; known: {', '.join(REGIONS)}")
    boxes = np.full((NUM_REGIONS, 4), np.nan, np.float32)
    for r, name in enumerate(REGIONS):
        if row.get(name) is not None:
            boxes[r] = read_box(row[name], name)
    return boxes


def label_row(
    *,
    image: str,
    size: tuple[int, int],
    category: str,
    box: np.ndarray,
    landmarks: np.ndarray,
    region_boxes: np.ndarray,
    mask: str | None = None,
) -> dict[str, object]:
    """One line of a labels file, what `read_labels` reads.

    ``image`` and ``mask`` are paths relative to the file (or whole ones); ``size`` (width, height) px;
    ``landmarks`` (11, 3) of clothing11; ``region_boxes`` (5, 4), NaN where absent.
    """
    return {
        "image": image,
        **({"mask": mask} if mask else {}),
        "split": "train",
        "width": size[0],
        "height": size[1],
        "category": category,
        "upright": True,
        "bbox": [round(float(v), 1) for v in box],
        "landmarks": {
            name: [round(float(x), 1), round(float(y), 1), int(v)]
            for name, (x, y, v) in zip(Taxonomy.load("clothing11").landmarks, landmarks, strict=True)
        },
        "regions": regions_row(region_boxes),
    }


def _cut_out(garment: LabelledGarment) -> np.ndarray | None:
    """GrabCut (Rother et al., SIGGRAPH 2004) started from the box and the landmarks; None when it looks
    wrong."""
    cv2 = load_opencv("cutting garments out of photographs")
    pixels = garment.read()
    height, width = pixels.shape[:2]
    scale = 256 / max(height, width)
    small = cv2.resize(pixels, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    h, w = small.shape[:2]
    x0, y0, x1, y1 = garment.box * scale
    mask = np.full((h, w), cv2.GC_BGD, np.uint8)
    mask[max(int(y0) - 2, 0) : int(y1) + 3, max(int(x0) - 2, 0) : int(x1) + 3] = cv2.GC_PR_FGD
    point = {
        name: garment.landmarks[i, :2] * scale for i, name in enumerate(Taxonomy.load("clothing11").landmarks)
    }
    seen = {name: garment.landmarks[i, 2] > 0 for i, name in enumerate(Taxonomy.load("clothing11").landmarks)}
    torso = [
        n
        for n in ("left_armpit", "right_armpit", "right_waistline", "right_hem", "left_hem", "left_waistline")
        if seen[n]
    ]
    if len(torso) >= 4:
        polygon = np.array([point[n] for n in torso])
        centre = polygon.mean(0)
        cv2.fillPoly(mask, [np.int32(centre + 0.85 * (polygon - centre))], cv2.GC_FGD)
    for side in ("left", "right"):
        if seen[f"{side}_sleeve"] and seen[f"{side}_armpit"] and seen[f"{side}_collar"]:
            shoulder = 0.5 * (point[f"{side}_armpit"] + point[f"{side}_collar"])
            end = shoulder + 0.85 * (point[f"{side}_sleeve"] - shoulder)
            thick = max(2, int(0.05 * (x1 - x0)))
            cv2.line(mask, shoulder.astype(int).tolist(), end.astype(int).tolist(), cv2.GC_FGD, thick)
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    try:
        cv2.setRNGSeed(0)
        cv2.grabCut(small, mask, None, background, foreground, 4, cv2.GC_INIT_WITH_MASK)
    except cv2.error:
        return None
    found = ((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)).astype(np.uint8)
    found = cv2.morphologyEx(found, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    found = cv2.morphologyEx(found, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(found)
    if count < 2:
        return None
    found = (labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))).astype(np.uint8)
    contours, _ = cv2.findContours(found, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(found, contours, -1, 1, cv2.FILLED)
    area = (x1 - x0) * (y1 - y0)
    ys, xs = np.nonzero(found)
    extent = (xs.max() - xs.min()) * (ys.max() - ys.min()) if len(xs) else 0
    # A cut-out that fills its box is background taken for cloth; one that covers little of it has lost the
    # garment.
    if not 0.35 * area < found.sum() < 0.93 * area or extent < 0.75 * area:
        return None
    return cv2.resize(found * 255, (width, height), interpolation=cv2.INTER_LINEAR)


def _write_mask(job: tuple[LabelledGarment, Path]) -> bool:
    garment, path = job
    mask = _cut_out(garment)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    whole = mask if mask is not None else np.zeros((1, 1), np.uint8)
    Image.fromarray(whole).save(temporary, "PNG", optimize=True)
    os.replace(temporary, path)
    return mask is not None


def _outline_key(garment: LabelledGarment) -> str:
    """Names what a cut-out depends on besides the pixels."""
    key = hashlib.sha256(str(garment.image_path.parent.resolve()).encode())
    for part in (garment.box, garment.landmarks):
        key.update(np.asarray(part, np.float32).round(1).tobytes())
    return key.hexdigest()[:10]


def with_masks(garments: Iterable[LabelledGarment], cache: Path, workers: int = 1) -> list[LabelledGarment]:
    """Cut every garment out of its photograph, once: masks are PNG files in ``cache``, one for a photograph
    with a box and landmarks.

    A rejected cut-out leaves a 1 × 1 file, so that it is not tried again, and ``mask_path`` stays None.
    Garments that came with a mask (rendered ones) or with polygons keep it.
    """
    cache.mkdir(parents=True, exist_ok=True)
    garments = list(garments)
    kept = [g for g in garments if g.mask_path is not None or g.polygons]
    garments = [g for g in garments if g.mask_path is None and not g.polygons]
    paths = [cache / f"{g.image_path.stem}-{_outline_key(g)}.png" for g in garments]
    jobs = [(g, p) for g, p in zip(garments, paths, strict=True) if not p.exists()]
    if jobs:
        with ProcessPoolExecutor(max_workers=workers) as pool:
            list(pool.map(_write_mask, jobs, chunksize=8))
    for garment, path in zip(garments, paths, strict=True):
        with Image.open(path) as image:
            kept.append(replace(garment, mask_path=path if image.width > 1 else None))
    return kept
