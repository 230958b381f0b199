"""Where a network runs, and in which floating-point type."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


def resolve_device(name: str) -> torch.device:
    """ "auto" is the GPU when there is one. Raises ValueError for a name that torch does not know."""
    try:
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError:
        raise ValueError(f"device {name!r}: choose auto, cpu, cuda or cuda:N") from None


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Where products run in ``precision``, one of ``psnet.precision.PRECISIONS``; in float32 nothing
    changes."""
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()
