"""Tables of figures: one form that is printed, kept as JSON and turned into Markdown."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psnet.evaluation.intervals import Estimate

Cell = str | int | float | Estimate | None
"""None is an empty cell."""


@dataclass(frozen=True)
class Table:
    """``note``: the data that the figures stand on and how they are to be read. Each row has one cell a
    column."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: {len(row)} cells for {len(self.columns)} columns")

    def to_json(self) -> dict[str, Any]:
        rows = [[_plain(cell) for cell in row] for row in self.rows]
        return {"title": self.title, "note": self.note, "columns": list(self.columns), "rows": rows}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Table:
        """The inverse of ``to_json``; a figure without cases comes back as an empty cell."""
        rows = tuple(
            tuple(Estimate(**cell) if isinstance(cell, dict) else cell for cell in row)
            for row in values["rows"]
        )
        return cls(values["title"], values["note"], tuple(values["columns"]), rows)

    def text(self) -> str:
        """For a terminal: aligned columns, figures with their intervals."""
        rows = [list(self.columns), *([_shown(cell) for cell in row] for row in self.rows)]
        widths = [max(len(row[c]) for row in rows) for c in range(len(self.columns))]
        lines = [
            "  ".join(
                cell.rjust(w) if c else cell.ljust(w)
                for c, (cell, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([self.title, *([self.note] if self.note else []), *lines])

    def markdown(self, level: int = 3) -> str:
        """With a heading of ``level`` hashes."""
        rows = [list(self.columns), ["---"] * len(self.columns)]
        rows += [[_shown(cell).replace("|", "\\|") for cell in row] for row in self.rows]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        note = [self.note, ""] if self.note else []
        return "\n".join([f"{'#' * level} {self.title}", "", *note, *lines])


def write_tables(path: Path, tables: Sequence[Table], fingerprint: str) -> None:
    """JSON of the tables and of what they were measured on; the file is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    content = {"fingerprint": fingerprint, "tables": [table.to_json() for table in tables]}
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_tables(path: Path) -> tuple[list[Table], str]:
    """The tables that ``write_tables`` wrote, and their fingerprint.

    Raises:
        ValueError: the file is no such JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [Table.from_json(table) for table in content["tables"]], content["fingerprint"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no tables of `psnet eval` ({error!r})") from None


def _plain(cell: Cell) -> Any:
    if isinstance(cell, Estimate):
        # JSON knows no NaN.
        return None if math.isnan(cell.value) else vars(cell)
    return None if isinstance(cell, float) and math.isnan(cell) else cell


def _shown(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, Estimate):
        return "" if cell.count == 0 else f"{cell.value:.3f} [{cell.low:.3f}, {cell.high:.3f}]"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)
