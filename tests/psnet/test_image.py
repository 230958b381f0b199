"""psnet.image: every kind of file a seller may upload."""

from __future__ import annotations

import io
import struct
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile

from psnet.image import ImageError, check_header, decode_image

SIZE = (96, 64)  # width, height


def picture(size: tuple[int, int] = SIZE) -> Image.Image:
    """Red in the upper left quarter, smooth blue-green elsewhere, so that rotations show."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([np.full_like(x, 20), 255 * x // width, 255 * y // height], axis=-1).astype(np.uint8)
    pixels[: height // 2, : width // 2] = (230, 30, 30)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_header_only(width: int, height: int) -> bytes:
    """A well-formed PNG of a few bytes whose header promises width x height pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 10_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def code_of(data: bytes, **options: int) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(data, **options)
    assert "\n" not in caught.value.message
    return caught.value.code


@pytest.mark.parametrize(
    ("form", "options", "tolerance"),
    [
        ("JPEG", {"quality": 95}, 12),
        ("JPEG", {"quality": 95, "progressive": True}, 12),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("TIFF", {"compression": "packbits"}, 0),
        ("AVIF", {"quality": 95}, 20),
    ],
)
def test_formats(form: str, options: dict[str, object], tolerance: int) -> None:
    got = decode_image(encoded(picture(), form, **options))
    assert got.pixels.dtype == np.uint8 and got.pixels.flags.c_contiguous and got.pixels.flags.writeable
    assert got.pixels.shape == (64, 96, 3) and (got.width, got.height, got.scale) == (96, 64, 1.0)
    assert np.abs(got.pixels.astype(int) - np.asarray(picture())).mean() <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = picture() if undo is None else picture().transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = decode_image(encoded(stored, "PNG", exif=exif))
    assert (got.width, got.height) == SIZE
    assert np.array_equal(got.pixels, np.asarray(picture()))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_ignored() -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff" + b"\xfe" * 40)
    assert decode_image(data).pixels.shape == (64, 96, 3)


def test_cmyk() -> None:
    got = decode_image(encoded(picture().convert("CMYK"), "JPEG", quality=95))
    assert np.abs(got.pixels.astype(int) - np.asarray(picture())).mean() < 12


def test_sixteen_bits_keep_the_upper_eight() -> None:
    values = np.linspace(0, 65535, 64 * 96).astype(np.uint16).reshape(64, 96)
    for form in ("PNG", "TIFF"):
        got = decode_image(encoded(Image.fromarray(values), form))
        assert np.array_equal(got.pixels[..., 1], values >> 8)


def test_float_pixels_are_refused() -> None:
    assert code_of(encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")) == "decode_failed"


def test_transparency_is_laid_on_white() -> None:
    rgba = picture().convert("RGBA")
    rgba.putalpha(0)
    assert (decode_image(encoded(rgba, "PNG")).pixels == 255).all()
    assert (decode_image(encoded(rgba.convert("LA"), "PNG")).pixels == 255).all()
    palette = picture().quantize(16)
    clear = palette.getpixel((0, 0))
    got = decode_image(encoded(palette, "PNG", transparency=clear)).pixels
    assert (got[0, 0] == 255).all() and not (got[-1, -1] == 255).all()
    keyed = decode_image(encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3)))
    assert (keyed.pixels == 255).all()


def test_palette_and_grey_and_bilevel() -> None:
    assert decode_image(encoded(picture().quantize(64), "GIF")).pixels.shape == (64, 96, 3)
    assert decode_image(encoded(picture().convert("L"), "JPEG")).pixels.shape == (64, 96, 3)
    assert set(np.unique(decode_image(encoded(picture().convert("1"), "PNG")).pixels)) == {0, 255}


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=50, **options)
    assert (decode_image(data).pixels == (255, 0, 0)).all()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.99])
def test_half_a_picture_is_refused(form: str, share: float) -> None:
    rng = np.random.default_rng(0)
    noisy = Image.fromarray(rng.integers(0, 255, (200, 200, 3), dtype=np.uint8))
    data = encoded(noisy, form)
    assert code_of(data[: int(len(data) * share)]) in {
        "truncated_image",
        "not_an_image" if share < 0.1 else "",
    }


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_cut_anywhere_or_filled_up_with_zeros_is_refused(options: dict[str, bool]) -> None:
    exif = Image.Exif()
    exif[0x010E] = "thumbnail with its own end marker \xff\xd9"
    data = encoded(picture((640, 480)), "JPEG", exif=exif, **options)
    for keep in (len(data) - 2, len(data) // 2, len(data) // 3):
        assert code_of(data[:keep]) == "truncated_image"
        assert code_of(data[:keep] + bytes(len(data) - keep)) == "truncated_image"
        assert code_of(data[:keep], target_side=64) == "truncated_image"


def test_bytes_after_the_picture_do_no_harm() -> None:
    assert decode_image(encoded(picture(), "JPEG") + b"\n<!-- cdn -->" * 50).pixels.shape == (64, 96, 3)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": True}])
def test_a_film_after_the_picture_may_hold_any_bytes(options: dict[str, bool]) -> None:
    """Phones append one to a JPEG; its bytes may look like the start of another scan."""
    exif = Image.Exif()
    exif[0x010E] = "a thumbnail ends \xff\xd9 here"
    named = {**options, "exif": exif} if options.pop("exif", False) else options
    data = encoded(picture(), "JPEG", **named)
    film = b"\0\0\0\x18ftypmp42" + bytes(range(256)) + b"\xff\xda\0\x0c" + bytes(50)
    assert np.array_equal(decode_image(data + film).pixels, decode_image(data).pixels)
    assert code_of(data[: len(data) // 2] + film) == "truncated_image"


def test_a_bomb_is_refused_from_its_header() -> None:
    data = png_header_only(50_000, 50_000)
    tracemalloc.start()
    assert code_of(data) == "too_many_pixels"
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    with pytest.raises(ImageError, match=r"too_many_pixels.*50000 x 50000"):
        check_header(data)


def test_the_cap_is_ours_and_no_warning_of_pillow_comes_through() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_header(png_header_only(9_900, 10_000)) == (9_900, 10_000)
        assert check_header(png_header_only(20_000, 20_000), max_pixels=10**9) == (20_000, 20_000)
    assert code_of(encoded(picture(), "JPEG"), max_pixels=96 * 64 - 1) == "too_many_pixels"
    assert decode_image(encoded(picture(), "JPEG"), max_pixels=96 * 64).width == 96


def test_a_png_that_promises_more_than_it_holds_is_refused() -> None:
    assert code_of(png_header_only(1_000, 1_000)) == "truncated_image"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty_file"),
        (b"this is no picture at all, whatever it is called", "not_an_image"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "not_an_image"),
        (b"BM, said the designer", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not_an_image"),
        (b"\xff\xd8\xff", "truncated_image"),
        (bytes(1000), "not_an_image"),
    ],
)
def test_things_that_are_no_pictures(data: bytes, code: str) -> None:
    assert code_of(data) == code


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_random_damage_never_raises_anything_else() -> None:
    rng = np.random.default_rng(1)
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        whole = encoded(picture(), form)
        for _ in range(60):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(damaged), 8):
                damaged[place] = rng.integers(0, 256)
            try:
                assert decode_image(bytes(damaged), max_pixels=10_000_000).pixels.ndim == 3
            except ImageError as error:
                assert error.code and error.message


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize(("target", "factor"), [(None, 1), (800, 1), (400, 2), (224, 2), (200, 4), (50, 8)])
def test_reduced_decoding_keeps_the_shorter_side(form: str, target: int | None, factor: int) -> None:
    source = picture((1203, 801))
    got = decode_image(encoded(source, form), target_side=target)
    assert (got.width, got.height) == (1203, 801)
    assert got.pixels.shape[:2] == (-(-801 // factor), -(-1203 // factor))
    assert got.scale == got.pixels.shape[1] / 1203
    expected = np.asarray(source.reduce(factor)).astype(int)
    assert np.abs(got.pixels.astype(int) - expected).mean() < 6


def test_threads_and_global_state() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    files = [encoded(picture((300 + i, 200)), "JPEG") for i in range(20)]
    with ThreadPoolExecutor(8) as pool:
        shapes = list(pool.map(lambda data: decode_image(data).pixels.shape, files * 3))
    assert shapes == [(200, 300 + i, 3) for i in range(20)] * 3
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before
