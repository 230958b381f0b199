"""Garments in eight bits: what the pair search multiplies first, with a bound of what that can be off by.

Every region's vector x becomes integers and one scale, x' = scale * codes, |codes| <= 127; its error
r = |x - x'| is kept. For any two vectors

    |<x, y> - <x', y'>| = |<x - x', y> + <x', y - y'>| <= r_x |y| + |x'| r_y <= (r_x + r_y) N        (1)

by Cauchy and Schwarz, N being at least the norm of every vector and of every x' of both sides. The products
<codes, codes> are exact in 32 bits as long as d * 127 * 127 < 2 ** 31.

A score that is a weighted mean over some set of regions, the best of such sets, or that sum over a fixed
divisor, is off by at most the same mean of (1); the greatest region's error bounds every such mean. Where all
weigh alike, ``best_regions`` is a third of a sum of at most three regions, so that the mean of the three
greatest errors is enough, and the mean of the three greatest sums r_x + r_y is at most the sum of both sides'
means of their three greatest. So a garment has one number, ``error``, and a pair of garments may be off by

    |score - score'| <= (error_x + error_y) N                                                             (2)

The better of two scores (as it is, mirrored) is off by no more than the worse bound of the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from pipeline.half import to_float32
from psnet.regions import NUM_REGIONS

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

    def error_of_mean(self, regions: int) -> np.ndarray:
        """(n,) mean of the ``regions`` greatest errors of each garment."""
        greatest = np.sort(self.error, axis=0)[NUM_REGIONS - regions :]
        return greatest.mean(axis=0, dtype=np.float64).astype(np.float32)


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
            lost, length, code_length = np.float32(0), np.float32(0), np.float32(0)
            for k in range(dim):
                value = to_float32(line[k])
                rounded = np.rint(value * per_step)
                code[k] = np.int8(rounded)
                rest = value - rounded * step
                lost += rest * rest
                length += value * value
                code_length += rounded * rounded
            scale[r, n] = step
            error[r, n] = np.sqrt(lost) * _UP + _LEAST_ERROR * step
            norm = max(norm, np.sqrt(length), np.sqrt(code_length) * step)
    return norm * _UP
