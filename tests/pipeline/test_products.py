"""Products of eight-bit codes are exact, whatever instructions the processor has for them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from pipeline import products
from pipeline.products import LARGEST_CODE, largest_code, multiply

_PRODUCTS = """
import os, torch
from pipeline.products import largest_code, multiply
largest = largest_code()
assert os.environ.get("ONEDNN_MAX_CPU_ISA") == {instructions!r}
torch.manual_seed(0)
for k in (1, 16, 48, 256):
    left, right = torch.randint(-largest, largest + 1, (2, 40, k), dtype=torch.int8).unbind()
    left[:20], right[:20] = largest, -largest
    out = torch.empty(40, 40, dtype=torch.int32)
    multiply(left, right, out)
    assert torch.equal(out, left.int() @ right.int().T), k
print(largest)
"""


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE_VNNI", None])
def test_products_are_exact_with_any_instructions(instructions):
    # oneDNN chooses once, so each in a process of its own.
    environment = {k: v for k, v in os.environ.items() if k != "ONEDNN_MAX_CPU_ISA"}
    if instructions is not None:
        environment["ONEDNN_MAX_CPU_ISA"] = instructions
    script = _PRODUCTS.format(instructions=instructions)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # On a processor of another family the names mean nothing.
    assert int(done.stdout) in (79, LARGEST_CODE)


def test_where_no_integers_serve_the_products_are_those_of_floats(monkeypatch):
    monkeypatch.setattr(products, "_largest_in_integers", lambda: 0)
    largest = largest_code()
    # The longer ones have sums that float32 does not hold.
    for k in (48, 5001):
        left, right = torch.randint(-largest, largest + 1, (2, 24, k), dtype=torch.int8).unbind()
        left[:12], right[:12] = largest, largest
        left[0, 0] = largest - 1
        out = torch.empty(24, 24, dtype=torch.int32)
        multiply(left, right, out)
        assert torch.equal(out, left.int() @ right.int().T)
