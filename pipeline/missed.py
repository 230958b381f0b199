"""What an index misses (``pipeline.audit``), in words: for the terminal and the report, without the index."""

from __future__ import annotations

from typing import Any

BEST = 20
"""Partners of a query that count as listed."""


def in_words(missed: dict[str, Any], by: str = "index") -> str:
    """What ``audit`` found, as one line for people, of what the stage ``by`` misses; "" where nothing was
    asked."""
    if not missed:
        return ""
    names = {f"best_{BEST}": f"the {BEST} best partners", "suspects": "suspicious pairs"}
    parts = []
    for key, name in names.items():
        share = missed[key]
        if not share["pairs"]:
            parts.append(f"no {name} to count")
            continue
        interval = f"{share['low']:.2%} to {share['high']:.2%}, {share['pairs']:,} pairs"
        parts.append(f"{share['share']:.2%} of {name} ({interval})")
    who = {"index": "index", "match": "search"}[by]
    return f"Missed by the {who}, estimated on {missed['queries']:,} garments: {'; '.join(parts)}"
