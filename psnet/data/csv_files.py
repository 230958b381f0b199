"""CSV files with named columns."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

_Row = TypeVar("_Row")


def read_csv(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Number of the line and values by column of every row; ``columns`` must be there, others may. A value
    that a short line lacks is empty in a column that need not be there.

    Raises:
        FileNotFoundError: no such file. ValueError: no text, a column is missing or a line lacks the value of
            one; one line that names the file.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(
                    f"{path}, line 1: no column {', '.join(missing)}; needed: {', '.join(columns)}"
                )
            rows = []
            for row in reader:
                if any(row[name] is None for name in columns):
                    raise ValueError(f"{path}, line {reader.line_num}: a value is missing")
                rows.append((reader.line_num, {name: value or "" for name, value in row.items() if name}))
            return rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None


def parse_csv(path: Path, columns: Sequence[str], parse: Callable[[dict[str, str]], _Row]) -> list[_Row]:
    """``read_csv``, each row as ``parse`` makes it; its ValueErrors get the file and the line."""
    rows = []
    for line, row in read_csv(path, columns):
        try:
            rows.append(parse(row))
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
    return rows
