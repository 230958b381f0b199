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

Fewer numbers. A trained network's vectors lie near a space of a few dozen dimensions, and the product of two
vectors is the product of their shadows in it, but for little. Let the columns of B, (d, k), be orthonormal,
c = B^T x, and rho = |x - B c|, rho^2 = |x|^2 - |c|^2. What x and y have outside the space meets nothing
inside:

    <x, y> = <c_x, c_y> + <x - B c_x, y - B c_y>,    |<x, y> - <c_x, c_y>| <= rho_x rho_y                  (3)

So k numbers are quantised instead of d, (1) and (2) hold for them (|c| <= |x| <= N), and rho_x rho_y comes on
top, for a pair of garments the product of the greatest rho of each. Any B will do: the bound is measured at
every garment, whatever the sample was that the space was chosen by (``fit_basis``).

That is so for exact numbers. The matrix at hand, A, and the coordinates at hand, a, are rounded.
1. Let delta = |A^T A - I|. The orthonormal matrix next to A (its polar factor, which B shall be) is no
further away than delta: A's singular values lie in [sqrt(1 - delta), sqrt(1 + delta)], and its distance is
the greatest of their distances from 1.
2. A float32 product of d terms is off by g |A_j| |x|, g = d u / (1 - d u), u = 2^-24, in whatever order it is
summed up (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 3.1), k of them by sqrt(k)
as much.
So |a - c| <= eta |x|, eta = sqrt(k) g (1 + delta) + delta. Hence |<a_x, a_y> - <c_x, c_y>| <= (2 + eta) eta
N^2, which comes on top too (3e-4 for 256 numbers and k = 64), and rho^2 <= |x|^2 - (|a| - eta |x|)^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from pipeline.half import rows_as_float32
from pipeline.products import LARGEST_CODE

# d * 127 ** 2 has to fit in int32.
_LARGEST_DIM = (2**31 - 1) // LARGEST_CODE**2
# A float32 sum of d squares is off by d * 6e-8 of itself at most, 0.8 % for the longest vectors (of which the
# root takes half); a rest of value - code * step by 2e-5 of a step at most, all d of them by the root of d.
_UP = np.float32(1.005)
_LEAST_ERROR = np.float32(0.01)
# Sums in double precision, and the result as float32.
_UP_A_BIT = 1 + 1e-6
_UNIT = 2.0**-24
# Multiples of what a processor multiplies at once. Of 32, 48 and 64, the second is the fastest for features
# of the shipped model, by a twentieth.
_RANKS = (32, 48, 64, 96, 128)
_NEARLY_EVERY, _MOST_OUTSIDE = 0.95, 0.015
# Garments converted at once: they stay in the second-level cache.
_ROWS_AT_ONCE = 128


@dataclass(frozen=True, eq=False)
class Basis:
    """A space for each region. ``directions``: (5, d, k) float32, A of the module's docstring; ``off``:
    eta."""

    directions: np.ndarray
    off: float

    def __eq__(self, other: object) -> bool:
        # Tasks get copies.
        return isinstance(other, Basis) and np.array_equal(self.directions, other.directions)

    @classmethod
    def of(cls, directions: np.ndarray) -> Basis:
        """``directions``: (5, d, k), orthonormal up to rounding."""
        rounded = np.ascontiguousarray(directions, np.float32)
        _, dim, rank = rounded.shape
        exact = rounded.astype(np.float64)
        # The Frobenius norm is no less than the spectral one.
        skew = np.linalg.norm(np.swapaxes(exact, 1, 2) @ exact - np.eye(rank), axis=(1, 2)).max() * 1.01
        rounding = dim * _UNIT / (1 - dim * _UNIT)
        return cls(rounded, float(rank**0.5 * rounding * (1 + skew) + skew))


def fit_basis(sample: np.ndarray) -> Basis | None:
    """The spaces that the sample lies nearest to, of the fewest dimensions that do.

    Fewer dimensions are cheaper to multiply, and leave more outside, so that more pairs pass that the bound
    cannot tell from good ones. Those are taken at which nearly every garment's rho squared, which is what (3)
    adds for two alike, stays below ``_MOST_OUTSIDE``, about what eight bits lose of usual vectors anyway (2).
    None where half the dimensions are too few: then all numbers are multiplied.

    Every other garment chooses the space, the others tell how far it carries. The directions are turned
    within their space at random (the same way each time): numbers of one size lose less in eight bits than
    those of the leading directions, which fall by a hundred.

    Args:
        sample: (n, 5, d) float32, zero where not present.
    """
    directions, held_out = _leading(sample[::2]), sample[1::2]
    rng = np.random.default_rng(0)
    for rank in _RANKS:
        if 2 * rank > sample.shape[2] or rank > len(held_out):
            return None
        rest = quantise(held_out.astype(np.float16), Basis.of(directions[..., :rank])).rest.max(0)
        if np.quantile(rest, _NEARLY_EVERY) ** 2 <= _MOST_OUTSIDE:
            turn = np.linalg.qr(rng.standard_normal((rank, rank)))[0]
            return Basis.of(_leading(sample)[..., :rank] @ turn)
    return None


def _leading(sample: np.ndarray) -> np.ndarray:
    """(5, d, d): of each region's second moments, eigenvectors as columns, the leading ones first."""
    regions = np.swapaxes(sample, 0, 1).astype(np.float64)
    return np.linalg.eigh(np.swapaxes(regions, 1, 2) @ regions)[1][..., ::-1]


@dataclass(frozen=True)
class Quantised:
    """n garments. ``codes``: (5, n, k) int8, k = d without a basis; ``scale``: (5, n) float32; ``error``:
    (5, n) float32, r of (1), never rounded down; ``rest``: (5, n) float32, rho of (3), never rounded down, 0
    without a basis; ``off``: eta, 0 without a basis; ``norm``: the greatest norm of all x (or a) and x'."""

    codes: np.ndarray
    scale: np.ndarray
    error: np.ndarray
    rest: np.ndarray
    off: float
    norm: float

    def extra(self) -> float:
        """What a product may be off by in any case: the rounding of coordinates."""
        return (2 + self.off) * self.off * self.norm**2


# Where the tangent of (2) touches: copies lie above, strangers below.
_TANGENT_AT = 0.6


def tangent(norm: float) -> tuple[float, float]:
    """Value at 0 and slope of the tangent in (2), for vectors no longer than ``norm``."""
    at = _TANGENT_AT * norm**2
    value = (norm**2 - (at / norm) ** 2) ** 0.5 if norm else 0.0
    slope = -at / norm**2 / value if norm else 0.0
    return value - slope * at, slope


def quantise(features: np.ndarray, basis: Basis | None = None, largest: int = LARGEST_CODE) -> Quantised:
    """Quantise region by region.

    Args:
        features: (n, 5, d) float16, finite; zero where there is nothing to compare.
        basis: quantise the coordinates in it; None: the numbers themselves.
        largest: of the codes, see ``pipeline.products``.

    Raises:
        ValueError: d is too large for exact products.
    """
    count, regions, dim = features.shape
    if dim > _LARGEST_DIM:
        raise ValueError(f"vectors of {dim} numbers: at most {_LARGEST_DIM} can be multiplied exactly")
    rank = dim if basis is None else basis.directions.shape[2]
    off = 0.0 if basis is None else basis.off
    codes = np.empty((regions, count, rank), np.int8)
    scale, error, rest = (np.empty((regions, count), np.float32) for _ in range(3))
    norm = 0.0
    for start in range(0, count, _ROWS_AT_ONCE):
        at = slice(start, min(start + _ROWS_AT_ONCE, count))
        values = np.swapaxes(rows_as_float32(features, np.arange(at.start, at.stop)), 0, 1)
        # In float32: whatever else a library may round to would be off by more than eta.
        inside = values if basis is None else np.matmul(values, basis.directions)
        parts = codes[:, at], scale[:, at], error[:, at], rest[:, at]
        norm = max(norm, _quantise(values, inside, off, basis is not None, largest, *parts))
    return Quantised(codes, scale, error, rest, off, norm)


@njit(cache=True, nogil=True, fastmath=True)
def _squared(line):  # type: ignore[no-untyped-def]
    total = np.float64(0)
    for k in range(len(line)):
        total += np.float64(line[k]) * np.float64(line[k])
    return total


@njit(cache=True, nogil=True, fastmath=True)
def _quantise(values, inside, off, projected, largest, codes, scale, error, rest):  # type: ignore[no-untyped-def]
    """Args: values: (5, n, d), inside: (5, n, k) float32; the others: (5, n, k) and (5, n), the result."""
    regions, count, rank = inside.shape
    norm = np.float64(0)
    for r in range(regions):
        for n in range(count):
            line, code = inside[r, n], codes[r, n]
            greatest = np.float32(0)
            for k in range(rank):
                greatest = max(greatest, abs(line[k]))
            step = greatest / np.float32(largest)
            per_step = np.float32(largest) / greatest if greatest > 0 else np.float32(0)
            code_length, along = np.float64(0), np.float64(0)
            for k in range(rank):
                rounded = np.float64(np.rint(line[k] * per_step))
                code[k] = np.int8(rounded)
                code_length += rounded * rounded
                along += np.float64(line[k]) * rounded
            if code_length > 0:
                step = np.float32(along / code_length)
            lost = np.float32(0)
            for k in range(rank):
                left = line[k] - np.float32(code[k]) * step
                lost += left * left
            scale[r, n] = step
            error[r, n] = np.sqrt(lost) * _UP + _LEAST_ERROR * step
            length = np.sqrt(_squared(values[r, n]))
            rest[r, n] = 0
            if projected:
                coordinates = np.sqrt(_squared(line))
                norm = max(norm, coordinates)  # rounded, they may be longer than x
                within = max(coordinates - off * length, 0)
                outside = np.sqrt(max(length * length - within * within, 0))
                rest[r, n] = np.float32(outside * _UP_A_BIT)
            norm = max(norm, length, np.sqrt(code_length) * step)
    return norm * _UP
