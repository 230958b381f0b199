"""The truth about a catalogue: which items are copies of which, and what was changed.

truth.csv   original, copy, relation (identical | plagiarised | derived), group, modified ('|'-joined parts or
            regions), and optionally kinds ('|'-joined kinds of edit) and mirrored (0 or 1)

All copies of one original are one design.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from psnet.data.csv_files import parse_csv
from psnet.regions import GROUPS, REGIONS

RELATIONS: tuple[str, ...] = ("identical", "plagiarised", "derived")
# Relations that are plagiarism in the paper's sense: what a list of suspects should hold.
ACCUSED: tuple[str, ...] = ("identical", "plagiarised")

# Other names of PS-Net's groups.
_GROUP_ALIASES = {"tshirt": "T-shirts", "T-shirt": "T-shirts", "top": "tops"}
_COLUMNS = ("original", "copy", "relation", "group", "modified")


@dataclass(frozen=True)
class TruthPair:
    """An original and a copy of it. ``parts``: modified parts (sleeves count as one), ``regions``: the same
    as names of ``psnet.regions.REGIONS``; ``kinds``: kinds of edit; ``mirrored``: the copy's photograph is
    flipped."""

    original: str
    copy: str
    relation: str
    group: str
    parts: frozenset[str]
    regions: frozenset[str]
    kinds: tuple[str, ...] = ()
    mirrored: bool = False


def read_truth(path: Path) -> list[TruthPair]:
    """The pairs of a truth file.

    Raises:
        FileNotFoundError: no such file. ValueError: a column is missing, or an unknown relation, group or
            region; the message is one line with file and line.
    """
    return parse_csv(path, _COLUMNS, _truth_pair)


def designs(pairs: Iterable[TruthPair]) -> dict[str, str]:
    """Item to the original of its design, for originals and copies."""
    design = {}
    for pair in pairs:
        design[pair.original] = design[pair.copy] = pair.original
    return design


def parts_of(regions: Iterable[str]) -> frozenset[str]:
    """Parts of a design: the paper's Table 1 counts both sleeves as one."""
    return frozenset("sleeves" if "sleeve" in region else region for region in regions)


def rightly_named(said: str, true: str) -> bool:
    """Whether a verdict's relation is the truth's; whatever accuses nobody is right about a derived copy."""
    return said == true or (true == "derived" and said not in ACCUSED)


def part_overlap(said: Iterable[str], true: frozenset[str]) -> float:
    """Intersection over union of the parts that the regions ``said`` and the parts ``true`` name."""
    parts = parts_of(said)
    return len(parts & true) / max(len(parts | true), 1)


def _truth_pair(row: Mapping[str, str]) -> TruthPair:
    group = _GROUP_ALIASES.get(row["group"], row["group"])
    if group not in GROUPS:
        raise ValueError(f"unknown group {row['group']!r}; known: {', '.join(GROUPS)}")
    if row["relation"] not in RELATIONS:
        raise ValueError(f"unknown relation {row['relation']!r}; known: {', '.join(RELATIONS)}")
    regions = {region for part in _names(row["modified"]) for region in _regions_of(part)}
    if unknown := regions - set(REGIONS):
        raise ValueError(f"unknown region {unknown.pop()!r}; known: sleeves, {', '.join(REGIONS)}")
    return TruthPair(
        row["original"],
        row["copy"],
        row["relation"],
        group,
        parts_of(regions),
        frozenset(regions),
        _names(row.get("kinds", "")),
        row.get("mirrored", "") == "1",
    )


def _regions_of(part: str) -> tuple[str, ...]:
    return ("left_sleeve", "right_sleeve") if part == "sleeves" else (part,)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split("|") if part)
