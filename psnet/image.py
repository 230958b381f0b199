"""Image bytes of unknown origin to pixels, safely.

Catalogues hold whatever sellers upload: half downloads, web pages called .jpg, decompression bombs, CMYK
scans. Each ends as an :class:`ImageError` with a code, or as plain RGB. Nothing here touches Pillow's global
settings, so any number of threads may decode at once.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

MAX_PIXELS = 100_000_000
"""Default cap on width x height: 300 MB as RGB, above any product photograph."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
"""File name endings of the formats that can be decoded, in lower case."""

# What a decoder may shrink a picture by. JPEG's inverse cosine transform does these for next to nothing.
_REDUCTIONS = (8, 4, 2)

# EXIF orientation tag -> what makes the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


class ImageError(Exception):
    """A picture that cannot be used.

    ``code``: "empty_file", "not_an_image", "truncated_image", "too_many_pixels" or "decode_failed".
    ``message``: one line for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@dataclass(frozen=True)
class DecodedImage:
    """Upright RGB pixels.

    ``pixels``: (H, W, 3) uint8 RGB, C-contiguous. ``width``, ``height``: of the upright original, in pixels.
    ``scale``: W / width, 1.0 unless a smaller decode was asked for; a box in ``pixels`` divided by ``scale``
    is a box in the original.
    """

    pixels: np.ndarray
    width: int
    height: int
    scale: float


@dataclass(frozen=True)
class _Format:
    name: str
    matches: Callable[[bytes], bool]
    is_cut_short: Callable[[bytes], bool]
    open: Callable[[io.BytesIO], ImageFile.ImageFile]


def _jpeg_cut_short(data: bytes) -> bool:
    # Inside a scan 0xFF is always escaped, so an end marker behind the last start-of-scan marker is a real
    # one. Pillow lets a file pass that ends, or goes on with zeros, after the last row was begun.
    return data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda") and not _jpeg_ends(data)


# Behind an escape, a restart marker or a fill byte the scan goes on.
_OUT_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def _jpeg_ends(data: bytes) -> bool:
    """Whether the picture's own end marker is there, found segment by segment (ITU-T T.81, annex B): what
    cameras append to it, a film or a second picture, may hold any bytes."""
    at = 2
    while len(data) > at + 3 and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xD9:
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            behind = _OUT_OF_SCAN.search(data, at)
            if behind is None:
                return False
            at = behind.start()
    return data[at : at + 2] == b"\xff\xd9"


def _png_cut_short(data: bytes) -> bool:
    return data.rfind(b"IEND") < 0


def _webp_cut_short(data: bytes) -> bool:
    return int.from_bytes(data[4:8], "little") + 8 > len(data)


def _unknown_until_decoded(data: bytes) -> bool:
    return False


# Only formats that shops serve. Pillow knows forty more, some of which start other programs (EPS).
# The classes are called directly because Image.open warns, or refuses, by a process-wide limit of its own.
_FORMATS = (
    _Format("JPEG", lambda d: d[:3] == b"\xff\xd8\xff", _jpeg_cut_short, JpegImageFile),
    _Format("PNG", lambda d: d[:8] == b"\x89PNG\r\n\x1a\n", _png_cut_short, PngImageFile),
    _Format("WebP", lambda d: d[:4] == b"RIFF" and d[8:12] == b"WEBP", _webp_cut_short, WebPImageFile),
    _Format("GIF", lambda d: d[:6] in (b"GIF87a", b"GIF89a"), _unknown_until_decoded, GifImageFile),
    _Format("BMP", lambda d: d[:2] == b"BM", _unknown_until_decoded, BmpImageFile),
    _Format("TIFF", lambda d: d[:4] in (b"II*\0", b"MM\0*"), _unknown_until_decoded, TiffImageFile),
    _Format(
        "AVIF",
        lambda d: d[4:8] == b"ftyp" and d[8:12] in (b"avif", b"avis"),
        _unknown_until_decoded,
        AvifImageFile,
    ),
)


def check_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height in pixels as stored (before EXIF rotation), without decoding.

    Raises:
        ImageError: "empty_file", "not_an_image", "truncated_image" (where the file's frame shows it) or
            "too_many_pixels".
    """
    return _open(data, max_pixels).size


def decode_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, target_side: int | None = None
) -> DecodedImage:
    """Decode to upright RGB.

    Transparency is laid on white, of an animation the first frame is taken, 16 bits become the upper 8, and
    the EXIF orientation is applied.

    Args:
        data: the whole file.
        max_pixels: cap on width x height, read from the header before anything is decoded.
        target_side: the picture may be decoded at 1/2, 1/4 or 1/8 of its size as long as its shorter side
            keeps at least this many pixels. None: full size.

    Raises:
        ImageError: see there. A truncated file is refused, never filled up with grey.
    """
    image = _open(data, max_pixels)
    stored_width, stored_height = image.size
    orientation = _orientation(image)
    factor = _reduction(min(image.size), target_side)
    try:
        if factor > 1:
            image.draft(None, (stored_width // factor, stored_height // factor))
        image.load()
        rgb = _to_rgb(image)
        if factor > 1 and rgb.size == (stored_width, stored_height):
            rgb = rgb.reduce(factor)
        if orientation in _UPRIGHT:
            rgb = rgb.transpose(_UPRIGHT[orientation])
        pixels = np.array(rgb)
    except ImageError:
        raise
    except (
        Exception
    ) as error:  # hostile bytes reach every corner of a decoder: struct, zlib, index, memory errors
        reason = _one_line(error)
        if "truncated" in reason.lower() or "incomplete" in reason.lower():
            raise ImageError(
                "truncated_image", f"the file ends before its picture does ({reason})"
            ) from error
        raise ImageError("decode_failed", f"the picture is damaged ({reason})") from error
    finally:
        image.close()
    width, height = (
        (stored_height, stored_width) if orientation in _SIDEWAYS else (stored_width, stored_height)
    )
    return DecodedImage(pixels, width, height, pixels.shape[1] / width)


def _open(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    if not data:
        raise ImageError("empty_file", "the file has no bytes")
    found = next((form for form in _FORMATS if form.matches(data[:16])), None)
    if found is None:
        raise ImageError(
            "not_an_image", f"the file starts with {_describe(data)}, none of the known image formats"
        )
    if found.is_cut_short(data):
        raise ImageError(
            "truncated_image", f"the {found.name} file of {len(data)} bytes ends before its picture does"
        )
    try:
        image = found.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ImageError("too_many_pixels", _one_line(error)) from error
    except Exception as error:  # see decode_image
        raise ImageError(
            "not_an_image", f"starts like {found.name}, but has no header ({_one_line(error)})"
        ) from error
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise ImageError(
            "too_many_pixels", f"{width} x {height} pixels, more than the {max_pixels:,} allowed"
        )
    if width < 1 or height < 1:
        image.close()
        raise ImageError("not_an_image", f"the header says {width} x {height} pixels")
    return image


def _orientation(image: Image.Image) -> int:
    with contextlib.suppress(Exception):  # broken EXIF says nothing about the picture itself
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        if isinstance(value, int):
            return value
    return 1


def _reduction(shorter_side: int, target_side: int | None) -> int:
    if target_side is None:
        return 1
    return next((factor for factor in _REDUCTIONS if shorter_side // factor >= target_side), 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion has clipped at 255 in some releases and shifted in others.
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(grey, "L").convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError("decode_failed", f"32-bit pixels (mode {image.mode}) have no known white")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _describe(data: bytes) -> str:
    head = data[:16]
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head):
        return "the text " + ascii(head.decode("ascii"))
    return "bytes " + head[:8].hex(" ")


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
