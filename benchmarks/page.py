"""How the benchmarks hand out what they have measured: a page of Markdown."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="Markdown file; default: the terminal")


def deliver(text: str, out: Path | None) -> None:
    """To the terminal, and to the file, if one is named."""
    if out:
        out.write_text(text, encoding="utf-8")
    print(text)
