"""The items table by item, and which pairs of items are never reported."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa


class Items:
    """The items table, one dictionary per item that is asked for."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._row = {item: row for row, item in enumerate(table["item_id"].to_pylist())}
        self._seen: dict[str, dict[str, str]] = {}

    def __getitem__(self, item_id: str) -> Mapping[str, str]:
        if item_id not in self._seen:
            self._seen[item_id] = self._table.slice(self._row[item_id], 1).to_pylist()[0]
        return self._seen[item_id]


def exclusion(a: Mapping[str, str], b: Mapping[str, str], dismissed: bool = False) -> str:
    """Why a pair is never reported: "same_seller", "licensed", "dismissed"; "" when it is."""
    if a["seller_id"] and a["seller_id"] == b["seller_id"]:
        return "same_seller"
    if _is_licensed(a, b) or _is_licensed(b, a):
        return "licensed"
    return "dismissed" if dismissed else ""


def _is_licensed(seller: Mapping[str, str], other: Mapping[str, str]) -> bool:
    licensors = {name.strip().casefold() for name in seller["licensed_from"].split("|")} - {""}
    return any(other[key].strip().casefold() in licensors for key in ("seller_id", "brand", "rights_holder"))
