"""Products of eight-bit codes, exact in int32 whatever the processor.

torch's ``_int_mm`` is oneDNN's, which takes what instructions the processor has, and two of its choices are
not ours:

- Without VNNI (most processors from before 2019, and AMD's before Zen 4) it adds 128 to the codes of one side
  and lets pairs of products saturate in 16 bits: 2 (c + 128) c > 32767 from c = 80 on, without a word. Codes
  as large as 79 are exact there. What holds is tried out, once a process, with the codes that add up to most.
- With AMX it takes tiles of 16 by 64, which pay for long vectors. Of 48 numbers its products take about twice
  as long as with vector instructions (``benchmarks/all_pairs.py`` measures both).
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator

import torch

LARGEST_CODE = 127
# What oneDNN can add up in 16 bits, see above.
_WITHOUT_VNNI = 79
# oneDNN reads it at its first product. All of AVX-512 and no AMX; a lesser processor takes what it has.
_INSTRUCTIONS, _BEST = "ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16"
# Up to here float32 holds every integer.
_EXACT_IN_FLOAT32 = 2**24


def largest_code() -> int:
    """Codes from minus this to this have exact products in this process, see ``multiply``."""
    return _largest_in_integers() or LARGEST_CODE


def multiply(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    """Codes (rows, k) int8 with codes (columns, k) int8 to ``out``, (rows, columns) int32.

    Exact for codes of at most ``largest_code`` and k * 127 ** 2 < 2 ** 31.
    """
    if _largest_in_integers():
        torch._int_mm(left, right.T, out=out)
        return
    exact = torch.float32 if left.shape[1] * LARGEST_CODE**2 <= _EXACT_IN_FLOAT32 else torch.float64
    out.copy_(left.to(exact) @ right.to(exact).T)


@functools.lru_cache(maxsize=1)
def _largest_in_integers() -> int:
    """Up to which codes ``_int_mm`` is exact, 0 where it is for none."""
    with _vector_instructions():
        return next(filter(_is_exact, (LARGEST_CODE, _WITHOUT_VNNI)), 0)


@contextlib.contextmanager
def _vector_instructions() -> Iterator[None]:
    """A choice made from outside stands, and so does one that this process made before. The environment is as
    it was afterwards: the networks' products, in processes that this one starts, are better off with AMX."""
    if _INSTRUCTIONS in os.environ:
        yield
        return
    os.environ[_INSTRUCTIONS] = _BEST
    try:
        yield
    finally:
        del os.environ[_INSTRUCTIONS]


def _is_exact(largest: int) -> bool:
    """Of codes that add up to most, and of lengths that leave something over."""
    signs = torch.ones(64, 1, dtype=torch.int8)
    signs[1::2] = -1
    for k in (8, 48, 100):
        left = (signs * largest).expand(64, k).contiguous()
        for right in (left, left.flip(0), left * torch.tensor([1, -1], dtype=torch.int8).repeat(k // 2)):
            out = torch.empty(64, 64, dtype=torch.int32)
            torch._int_mm(left, right.T, out=out)
            if not torch.equal(out, left.int() @ right.int().T):
                return False
    return True
