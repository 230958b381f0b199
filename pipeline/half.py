"""float16 in compiled code, which numba does not know."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic


def _to_float32(typing_context: Any, bits: Any) -> Any:
    if bits != types.uint16:
        return None

    def convert(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        half = builder.bitcast(arguments[0], ir.HalfType())
        return builder.fpext(half, ir.FloatType())

    return types.float32(types.uint16), convert


to_float32: Any = intrinsic(_to_float32)
"""The number whose bits as float16 are the argument (uint16): one instruction, and a vector of them in a
loop."""


@njit(cache=True, nogil=True)
def _convert(bits, rows, out):  # type: ignore[no-untyped-def]
    for n in range(len(rows)):
        source, target = bits[rows[n]], out[n]
        for r in range(source.shape[0]):
            line, result = source[r], target[r]
            for k in range(len(line)):
                result[k] = to_float32(line[k])


def rows_as_float32(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """``features[rows].astype(np.float32)`` for features (n, 5, d) float16, which numpy takes ten times as
    long for."""
    out = np.empty((len(rows), *features.shape[1:]), np.float32)
    _convert(features.view(np.uint16), rows, out)
    return out
