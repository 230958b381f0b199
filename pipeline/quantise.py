"""Garments in eight bits: what the pair search multiplies first, with a bound of what that can be off by.

Every region's vector x becomes integers and one scale, x' = scale * codes, |codes| <= 127, the scale being
the one that leaves the least: so what is lost, x - x', stands at a right angle to x'. Its length r = |x - x'|
is kept. Let p = <x', y'>, and N at least the norm of every vector and of every x' of both sides. Then

    <x, y> - p = <x - x', y'> + <x', y - y'> + <x - x', y - y'>

and x - x' meets only that part of y' which is at a right angle to x', whose squared length is
|y'|^2 - p^2 / |x'|^2 <= N^2 - p^2 / N^2. By Cauchy and Schwarz

    |<x, y> - p| <= (r_x + r_y) f(p) + r_x r_y,    f(p) = sqrt(N^2 - p^2 / N^2)                            (1)

The more alike two vectors are, the less it can be: at a cosine of 0.9 less than half. The products <codes,
codes> are exact in 32 bits as long as d * 127 * 127 < 2 ** 31.

A score is a weighted mean of cosines over a set of regions (a missing one counts as cosine 0, and nothing is
lost of it), or the best such mean of several sets. Let m' be the mean that eight bits give for a set, e_x the
greatest r of garment x. f is concave, so that a mean of f(p) is at most f(m'), and the set's mean is within
(e_x + e_y) f(m') + e_x e_y of m'. m + e f(m) rises with m wherever e < 1 / 70 or so, and m - e f(m) too: the
best of the sets is bounded by what this makes of the best m'. A tangent lies above a concave curve, and N
does: with any slope and its tangent, for a pair of garments

    |score - score'| <= (e_x + e_y) min(N, t(score')) + e_x e_y,    t a tangent of f                       (2)

which rises with the score as long as e times its slope is below 1. The better of two scores (as it is,
mirrored) is off by no more than the worse bound of the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from pipeline.half import to_float32

LARGEST_CODE = 127
# d * 127 ** 2 has to fit in int32.
_LARGEST_DIM = (2**31 - 1) // LARGEST_CODE**2
# A float32 sum of d squares is off by d * 6e-8 of itself at most, 0.8 % for the longest vectors (of which the
# root takes half); a rest of value - code * step by 2e-5 of a step at most, all d of them by the root of d.
_UP = np.float32(1.005)
_LEAST_ERROR = np.float32(0.01)


@dataclass(frozen=True)
class Quantised:
    """n garments. ``codes``: (5, n, d) int8; ``scale``: (5, n) float32; ``error``: (5, n) float32, r of (1),
    never rounded down; ``norm``: the greatest norm of all x and x'."""

    codes: np.ndarray
    scale: np.ndarray
    error: np.ndarray
    norm: float


# Where the tangent of (2) touches: copies lie above, strangers below.
_TANGENT_AT = 0.6


def tangent(norm: float) -> tuple[float, float]:
    """Value at 0 and slope of the tangent in (2), for vectors no longer than ``norm``."""
    at = _TANGENT_AT * norm**2
    value = (norm**2 - (at / norm) ** 2) ** 0.5 if norm else 0.0
    slope = -at / norm**2 / value if norm else 0.0
    return value - slope * at, slope


def quantise(features: np.ndarray) -> Quantised:
    """Quantise region by region.

    Args:
        features: (n, 5, d) float16, finite; zero where there is nothing to compare.

    Raises:
        ValueError: d is too large for exact products.
    """
    count, regions, dim = features.shape
    if dim > _LARGEST_DIM:
        raise ValueError(f"vectors of {dim} numbers: at most {_LARGEST_DIM} can be multiplied exactly")
    codes = np.empty((regions, count, dim), np.int8)
    scale = np.empty((regions, count), np.float32)
    error = np.empty((regions, count), np.float32)
    norm = _quantise(features.view(np.uint16), codes, scale, error)
    return Quantised(codes, scale, error, norm)


@njit(cache=True, nogil=True, fastmath=True)
def _quantise(bits, codes, scale, error):  # type: ignore[no-untyped-def]
    count, regions, dim = bits.shape
    norm = np.float32(0)
    for n in range(count):
        for r in range(regions):
            line, code = bits[n, r], codes[r, n]
            # Of positive floating-point numbers the greatest has the greatest bits.
            greatest_bits = np.uint16(0)
            for k in range(dim):
                greatest_bits = max(greatest_bits, np.uint16(line[k] & 0x7FFF))
            greatest = to_float32(np.uint16(greatest_bits))
            step = greatest / np.float32(LARGEST_CODE)
            per_step = np.float32(LARGEST_CODE) / greatest if greatest > 0 else np.float32(0)
            length, code_length, along = np.float32(0), np.float32(0), np.float64(0)
            for k in range(dim):
                value = to_float32(line[k])
                rounded = np.rint(value * per_step)
                code[k] = np.int8(rounded)
                length += value * value
                code_length += rounded * rounded
                along += np.float64(value) * np.float64(rounded)
            if code_length > 0:
                # Sums of whole numbers: exact up to 2 ** 24, and 6e-8 off beyond.
                step = np.float32(along / np.float64(code_length))
            lost = np.float32(0)
            for k in range(dim):
                rest = to_float32(line[k]) - np.float32(code[k]) * step
                lost += rest * rest
            scale[r, n] = step
            error[r, n] = np.sqrt(lost) * _UP + _LEAST_ERROR * step
            norm = max(norm, np.sqrt(length), np.sqrt(code_length) * step)
    return norm * _UP
