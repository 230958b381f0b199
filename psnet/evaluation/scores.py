"""Scores of the item pairs of a benchmark: the best of their garments' pairs, as the pair search has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from psnet.evaluation.garments import GarmentTable
from psnet.similarity import (
    BACKGROUND_PICTURES,
    SCORINGS,
    Comparison,
    block_cosines,
    compare,
    compare_block,
    levels_of,
    normalise,
)

# Garments of a block of queries; a block of comparisons holds 50 bytes per pair.
_ROWS = 128
# Pairs compared at once; three gathered arrays of (pairs, 5, d) float32.
_PAIRS = 1024


@dataclass(frozen=True)
class ScoreSettings:
    """``scoring``: a name of ``psnet.similarity.SCORINGS``; ``weights``: (4, 5), rows as
    ``psnet.regions.GROUPS``; ``normalised``: by each garment's level in the benchmark."""

    scoring: str
    weights: np.ndarray
    normalised: bool = False


def blocks(
    table: GarmentTable, rows: np.ndarray, settings: ScoreSettings
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Garments ``rows`` as queries against all garments, both ways round, block by block.

    Yields:
        (b,) rows of the table and their (b, n) scores.
    """
    features, mirrored = table.exact
    level = levels(table, settings) if settings.normalised else None
    for start in range(0, len(rows), _ROWS):
        at = rows[start : start + _ROWS]
        score = compare_block(
            features[at],
            table.presence[at],
            features,
            table.presence,
            settings.weights[table.group[at]],
            mirrored_x=mirrored,
            scoring=settings.scoring,
        ).score
        if level is not None:
            score = normalise(score, (level[at, None] + level[None]) / 2)
        yield at, score


def item_scores(
    table: GarmentTable, queries: Sequence[int], items: int, settings: ScoreSettings
) -> np.ndarray:
    """Scores of query items against all items, the best of their garments' pairs.

    Args:
        queries: (q,) rows of the benchmark's items. items: how many the benchmark has.

    Returns:
        (q, items) float32, -inf where one of the two has no garment, and for a query against itself.
    """
    out = np.full((len(queries), items), -np.inf, np.float32)
    place = {row: q for q, row in enumerate(queries)}
    asked = np.flatnonzero(np.isin(table.item, np.asarray(queries)))
    if not len(asked):
        return out
    with_garments, starts = np.unique(table.item, return_index=True)
    for at, score in blocks(table, asked, settings):
        best = np.maximum.reduceat(score, starts, axis=1)
        for garment, row in zip(at, best, strict=True):
            q = place[int(table.item[garment])]
            out[q, with_garments] = np.maximum(out[q, with_garments], row)
    out[np.arange(len(queries)), list(queries)] = -np.inf
    return out


def levels(table: GarmentTable, settings: ScoreSettings, seed: int = 0) -> np.ndarray:
    """(n,) what each garment reaches with garments that have nothing to do with it.

    `psnet.similarity.levels_of` its scores against ``BACKGROUND_PICTURES`` pictures of the benchmark (Pizzi
    et al., "A Self-Supervised Descriptor for Image Copy Detection", CVPR 2022).
    """
    pictures = np.unique(table.item)
    if len(pictures) > BACKGROUND_PICTURES:
        pictures = np.random.default_rng(seed).choice(pictures, BACKGROUND_PICTURES, replace=False)
    sample = np.flatnonzero(np.isin(table.item, pictures))
    features, _ = table.exact
    out = np.zeros(len(table), np.float32)
    for start in range(0, len(table), _ROWS):
        at = slice(start, start + _ROWS)
        cos, comparable = block_cosines(
            features[at], table.presence[at], features[sample], table.presence[sample]
        )
        score = SCORINGS[settings.scoring](cos, comparable, settings.weights[table.group[at], None])
        score[table.item[at, None] == table.item[sample]] = -np.inf
        out[at] = levels_of(score)
    return out


@dataclass(frozen=True)
class ComparedPairs:
    """p pairs of garments. ``query``, ``match``: (p,) rows of the table, -1 where an item has no garment;
    ``comparison``: of these pairs, all zero at -1."""

    query: np.ndarray
    match: np.ndarray
    comparison: Comparison

    @property
    def found(self) -> np.ndarray:
        """(p,) bool, both items have a garment."""
        return self.query >= 0


def best_garments(
    table: GarmentTable, items: Sequence[tuple[int, int]], settings: ScoreSettings
) -> ComparedPairs:
    """The best pair of garments of every pair of items, the first item as the query.

    Args:
        items: p pairs of rows of the benchmark's items.
    """
    query, match = np.full(len(items), -1), np.full(len(items), -1)
    features, mirrored = table.exact
    for p, (a, b) in enumerate(items):
        left, right = table.of_item(a), table.of_item(b)
        if not len(left) or not len(right):
            continue
        if len(left) > 1 or len(right) > 1:
            score = compare(
                features[left][:, None],
                table.presence[left][:, None],
                features[right][None],
                table.presence[right][None],
                settings.weights[table.group[left]][:, None],
                mirrored_x=mirrored[right][None],
                scoring=settings.scoring,
            ).score
            i, j = np.unravel_index(int(score.argmax()), score.shape)
            left, right = left[[i]], right[[j]]
        query[p], match[p] = left[0], right[0]
    found = query >= 0
    some = compare_garments(table, query[found], match[found], settings)
    return ComparedPairs(query, match, Comparison(*(_scattered(v, found) for v in vars(some).values())))


def _scattered(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    out = np.zeros((len(at), *values.shape[1:]), values.dtype)
    out[at] = values
    return out


def compare_garments(
    table: GarmentTable, query: np.ndarray, match: np.ndarray, settings: ScoreSettings
) -> Comparison:
    """Garments compared pair by pair, (p,) rows of the table each; never normalised."""
    if not len(query):
        nothing = np.zeros((0, 5), np.float32)
        return Comparison(nothing[:, 0], nothing, nothing.astype(bool), nothing[:, 0].astype(bool))
    features, mirrored = table.exact
    parts = [
        compare(
            features[q],
            table.presence[q],
            features[x],
            table.presence[x],
            settings.weights[table.group[q]],
            mirrored_x=mirrored[x],
            scoring=settings.scoring,
        )
        for q, x in (
            (query[start : start + _PAIRS], match[start : start + _PAIRS])
            for start in range(0, len(query), _PAIRS)
        )
    ]
    return Comparison(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("score", "cos", "comparable", "mirrored")
        )
    )
