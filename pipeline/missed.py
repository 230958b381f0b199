"""What an index misses (``pipeline.audit``), in words: for the terminal and the report, without the index."""

from __future__ import annotations

from typing import Any

BEST = 20
"""Partners of a query that count as listed."""


def in_words(missed: dict[str, Any]) -> str:
    """What ``audit`` found, as one line for people; "" where nothing was asked."""
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
    return f"Missed by the index, estimated on {missed['queries']:,} garments: {'; '.join(parts)}"
