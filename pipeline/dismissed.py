"""Pairs that a reviewer has dismissed: the file that the report page hands out and the next scan reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from psnet.data.csv_files import read_csv

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
        rows = read_csv(path, COLUMNS[:2])
    except (OSError, ValueError) as error:
        reason = f"{path}: cannot be read ({error.strerror})" if isinstance(error, OSError) else error
        raise UserError(
            f"{reason}; a file of dismissed pairs (judge.dismissed) starts with the line {','.join(COLUMNS)}"
        ) from None
    dismissals = []
    for line, row in rows:
        a, b, why = row["item_id_a"], row["item_id_b"], row.get("reason", "")
        if not any((a, b, why)):
            continue  # spreadsheets leave such lines behind
        if not a or not b:
            raise UserError(f"{path}: line {line} does not name two items; mend or delete it")
        dismissals.append(Dismissal(a, b, why))
    return dismissals
