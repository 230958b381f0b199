"""Pairs that a reviewer has dismissed: the file that the report page hands out and the next scan reads."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError

COLUMNS = ("item_id_a", "item_id_b", "reason")


@dataclass(frozen=True)
class Dismissal:
    """One line of the file. The order of the two items means nothing; identifiers are verbatim."""

    item_id_a: str
    item_id_b: str
    reason: str = ""

    @property
    def pair(self) -> frozenset[str]:
        """The two identifiers, whatever their order."""
        return frozenset((self.item_id_a, self.item_id_b))


def read_dismissed(path: Path) -> list[Dismissal]:
    """Dismissals of a CSV file with the columns item_id_a, item_id_b and, if wanted, reason.

    Raises:
        UserError: missing or unreadable file, missing columns, a line without two identifiers.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS[:2] if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(
                    f"{path}: has no column {', '.join(missing)}; a file of dismissed pairs starts with "
                    f"the line {','.join(COLUMNS)}"
                )
            dismissals = []
            for row in reader:
                a, b = row["item_id_a"] or "", row["item_id_b"] or ""
                if not any((a, b, row.get("reason"))):
                    continue  # spreadsheets leave such lines behind
                if not a or not b:
                    raise UserError(
                        f"{path}: line {reader.line_num} does not name two items; mend or delete it"
                    )
                dismissals.append(Dismissal(a, b, row.get("reason") or ""))
            return dismissals
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); check judge.dismissed") from None
