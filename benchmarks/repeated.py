"""Whether training by the shipped commands, from nothing, repeats the shipped figures.

    python benchmarks/repeated.py SHIPPED AGAIN [--out FILE]

SHIPPED, AGAIN: the folders (``out``) of two evaluations on the same data with the same titles, one of the
shipped weights, one of those that were trained again (``variants.psnet.weights``). The page has the figures
by which the model is judged, and says how many of all figures lie within the interval of the shipped ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from page import add_out, deliver

from psnet.evaluation.intervals import Estimate
from psnet.evaluation.tables import read_tables

INTRODUCTION = """# The training, repeated from nothing

`psnet train all --config conf/train.yaml`, same seed and data, on other CPU cores, beside the shipped
weights; measured by `psnet eval`, written by `benchmarks/repeated.py`. Part by part, with the logs:
[training/again](training/again/README.md).
"""

# Of the part's tables whose title, up to the data's name, ends like this: a row's first cell (None: any) and
# the columns.
JUDGED_BY = {
    "detection": [("Detection", None, ("recall at IoU 0.5", "mean IoU", "group right"))],
    "landmarks": [
        ("Landmarks, normalised error", "overall", ("whole chain",)),
        ("Regions", "overall", ("whole chain: IoU", "whole chain: presence right")),
    ],
    "retrieval": [("by group", "overall", ("Top-20", "mAP"))],
    "plagiarism": [
        ("leakage", "overall", ("fall, untouched (at most 0.05)", "fall, edited (at least 0.3)")),
        (
            "Verdicts",
            "psnet as shipped (S₂, normalised)",
            ("pair precision", "pair recall", "right relation", "modified-region IoU"),
        ),
    ],
}


class Figure(NamedTuple):
    """Where a figure stands: its table's title, its row's first cell, its column."""

    title: str
    row: str
    column: str

    def is_judged_by(self, part: str) -> bool:
        head = self.title.partition(": ")[0]
        return any(
            head.endswith(end) and row in (None, self.row) and self.column in columns
            for end, row, columns in JUDGED_BY[part]
        )


def figures_of(folder: Path, part: str) -> dict[Figure, Estimate]:
    """Every figure of the part's tables that has an interval.

    Raises:
        ValueError: the part was not measured there.
    """
    tables, _ = read_tables(folder / f"{part}.json")
    return {
        Figure(table.title, str(row[0]), column): cell
        for table in tables
        for row in table.rows
        for column, cell in zip(table.columns, row, strict=True)
        if isinstance(cell, Estimate) and cell.count
    }


def page(shipped: Path, again: Path) -> str:
    """The page as Markdown. Raises ValueError: see ``figures_of``."""
    lines, inside = [], []
    for part in JUDGED_BY:
        other = figures_of(again, part)
        for figure, old in figures_of(shipped, part).items():
            if (new := other.get(figure)) is None:
                continue
            # A share of 1 lies on the upper end of its interval, but for rounding.
            inside.append(old.low <= new.value <= max(old.value, old.high))
            if figure.is_judged_by(part):
                said = f"{old.value:.3f} [{old.low:.3f}, {old.high:.3f}] | {new.value:.3f}"
                answer = "yes" if inside[-1] else "no"
                lines.append(f"| {figure.title} | {figure.row} | {figure.column} | {said} | {answer} |")
    return (
        f"{INTRODUCTION}\n"
        "| table | row | figure | shipped | trained again | within the interval |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n\n"
        f"Of all {len(inside)} figures in these tables, {sum(inside)} of those trained again lie within the "
        "interval of the shipped ones."
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shipped", type=Path)
    parser.add_argument("again", type=Path)
    add_out(parser)
    arguments = parser.parse_args(argv)
    try:
        deliver(page(arguments.shipped, arguments.again), arguments.out)
    except ValueError as error:
        print(f"repeated.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
