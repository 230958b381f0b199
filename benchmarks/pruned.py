"""What the lists of single regions find, on the garments of a finished run of real photographs.

    python benchmarks/pruned.py RUN WORK

RUN: a scan whose match was exact. WORK: a folder for copies of it (hard links) with pruned searches in them.
Prints two tables of benchmarks/INDEX.md. The first compares lists of whole vectors with lists of each region:
what share of all pairs they would compare, what share of the twenty best by exact score are among those, and
what share of copies they find whose two changed regions are another garment's and whose kept ones are seen
differently. The second runs ``match.search=pruned`` itself beside the exact search.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq

from pipeline.garment_index import open_index
from pipeline.index import build_index
from pipeline.match import match
from pipeline.missed import BEST, in_words
from pipeline.region_lists import nearest_lists, train_centroids
from pipeline.rundir import RunDirectory
from pipeline.settings import load_settings
from psnet.similarity import best_regions_score, block_cosines, equal_weights, mirrored_presence

LISTS = 256
KEPT_COSINE = 0.94
BLOCK = 512
# Of whole vectors, and of each region: lists looked into.
PROBES = {"whole vectors": (16, 32, 64), "each region": (4, 8, 16)}
# Lists looked into and candidates of the pruned search.
SETTINGS = ((8, 40), (16, 40), (16, 100), (32, 100))


def copy_of(run: Path, work: Path, name: str) -> RunDirectory:
    """The run's items and garments under another path, by hard links; nothing else of it."""
    target = work / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for part in ("items", "garments"):
        shutil.copytree(run / part, target / part, copy_function=os.link)
    shutil.copy2(run / "run.json", target / "run.json")
    return RunDirectory.existing(target)


def best_partners(run: RunDirectory) -> dict[str, set[str]]:
    table = pq.read_table(run.pairs_path, columns=["query_item_id", "match_item_id", "rank"])
    partners: dict[str, set[str]] = {}
    for query, partner, rank in zip(*(column.to_pylist() for column in table.columns), strict=True):
        if rank <= BEST:
            partners.setdefault(query, set()).add(partner)
    return partners


def recall(exact: dict[str, set[str]], found: dict[str, set[str]]) -> float:
    shared = sum(len(partners & found.get(query, set())) for query, partners in exact.items())
    return shared / sum(len(partners) for partners in exact.values())


def searched(run: RunDirectory, *overrides: str) -> tuple[dict[str, set[str]], str]:
    """The best partners by a search with these settings, and what it says to miss."""
    settings = load_settings(None, [f"match.best_k={BEST}", *overrides])
    if "match.search=pruned" in overrides:
        build_index(run, settings)
    match(run, settings)
    return best_partners(run), in_words(run.stage_record("match").get("missed", {}), "match")


def pruned_searches(run: Path, work: Path) -> list[str]:
    exact = {
        rank_by: searched(copy_of(run, work, "exact"), f"match.rank_by={rank_by}")[0]
        for rank_by in ("score", "normalised_score")
    }
    lines = [
        f"{len(exact['score']):,} items, `match.search=pruned`, `Regions{LISTS}`, best {BEST} of every item, "
        "against the exact search.",
        "",
        f"| lists looked into | candidates | recall@{BEST} by score | by normalised score | it says itself |",
        "|---|---|---|---|---|",
    ]
    for nprobe, candidates in SETTINGS:
        shares = []
        for rank_by, partners in exact.items():
            found, said = searched(
                copy_of(run, work, "pruned"),
                "match.search=pruned",
                f"index.factory=Regions{LISTS}",
                f"index.nprobe={nprobe}",
                f"index.candidates={candidates}",
                f"match.rank_by={rank_by}",
            )
            shares.append(f"{recall(partners, found):.3f}")
        lines.append(f"| {nprobe} | {candidates} | {' | '.join(shares)} | {said} |")
    return lines


class Garments:
    """All garments of a run with their flipped pictures, and what an index reduces them to."""

    def __init__(self, run: RunDirectory) -> None:
        build_index(run, load_settings(None, [f"index.factory=Regions{LISTS}", "index.audit_queries=0"]))
        index = open_index(run)
        shards = np.concatenate([np.full(len(s.vectors), i) for i, s in enumerate(index.shards)])
        rows = np.concatenate([np.arange(len(s.vectors)) for s in index.shards])
        vectors = index.gather(shards, rows)
        self.features = vectors.features.astype(np.float32)
        self.mirrored = vectors.mirrored.astype(np.float32)
        self.presence = vectors.presence
        self.reduce = index.reduce

    def best(self) -> np.ndarray:
        """(n, BEST) the garments of greatest score of each, flipped pictures too, itself left out."""
        weights = equal_weights()[0]
        best = []
        for start in range(0, len(self.features), BLOCK):
            rows = slice(start, start + BLOCK)
            scores = np.maximum(
                *(
                    best_regions_score(
                        *block_cosines(seen[rows], codes[rows], self.features, self.presence), weights
                    )
                    for seen, codes in (
                        (self.features, self.presence),
                        (self.mirrored, mirrored_presence(self.presence)),
                    )
                )
            )
            scores[np.arange(len(scores)), np.arange(start, start + len(scores))] = -np.inf
            best.append(np.argpartition(-scores, BEST, axis=1)[:, :BEST])
        return np.concatenate(best)

    def copies(self, rng: np.random.Generator) -> np.ndarray:
        """(n, 5, d) of one copy each: two regions another garment's, the others seen differently."""
        other = rng.permutation(len(self.features))
        noise = rng.standard_normal(self.features.shape).astype(np.float32)
        noise -= (noise * self.features).sum(-1, keepdims=True) * self.features
        noise /= np.linalg.norm(noise, axis=-1, keepdims=True)
        seen = self.features.any(-1, keepdims=True)
        kept = (KEPT_COSINE * self.features + np.sqrt(1 - KEPT_COSINE**2) * noise) * seen
        changed = rng.random(self.features.shape[:2]).argsort(1) < 2
        return np.where(changed[..., None], self.features[other], kept)


Lists = Callable[[np.ndarray, int], np.ndarray]
"""Reduced vectors (n, 5, d') and a number of lists -> (sets, n, number), the nearest lists of each set, -1
where the garment does not show the region."""


def lists_of_whole_vectors(reduced: np.ndarray) -> Lists:
    means = faiss.Kmeans(reduced[0].size, LISTS, niter=10, seed=1, min_points_per_centroid=1)
    means.train(reduced.reshape(len(reduced), -1))
    return lambda asked, number: means.index.search(asked.reshape(len(asked), -1), number)[1][None]


def lists_of_each_region(reduced: np.ndarray) -> Lists:
    return partial(nearest_lists, train_centroids(reduced, LISTS))


def proposed(lists: Lists, pictures: Sequence[np.ndarray], asked: np.ndarray, probe: int) -> np.ndarray:
    """(queries, n) bool: which garments, as they are or flipped, lie in a list that the query looks into."""
    looked = lists(asked, probe)
    return np.any(
        [
            _in_lists(into, own[:, 0])
            for picture in pictures
            for into, own in zip(looked, lists(picture, 1), strict=True)
        ],
        axis=0,
    )


def _in_lists(looked: np.ndarray, own: np.ndarray) -> np.ndarray:
    """(q, n) bool from lists looked into (q, probe) and the list of each garment (n,), -1 for none."""
    table = np.zeros((len(looked), LISTS + 1), bool)
    np.put_along_axis(table, np.where(looked < 0, LISTS, looked), True, axis=1)
    table[:, LISTS] = False
    return table[:, own]


def list_table(run: RunDirectory) -> list[str]:
    garments = Garments(run)
    best = garments.best()
    copies = garments.copies(np.random.default_rng(0))
    own = np.arange(len(best))
    lines = [
        f"{len(best):,} garments. Recall@{BEST}: the best by score (mean of the best three regions, flipped "
        "pictures too) among what the lists propose; copies: two regions replaced by another garment's, the "
        f"kept ones seen differently (cosine {KEPT_COSINE}).",
        "",
        f"| lists | looked into | pairs compared | recall@{BEST} | copies found |",
        "|---|---|---|---|---|",
    ]
    pictures = [garments.reduce(seen) for seen in (garments.features, garments.mirrored)]
    asked = garments.reduce(copies)
    kinds = {
        "whole vectors": lists_of_whole_vectors(pictures[0]),
        "each region": lists_of_each_region(np.concatenate(pictures)),
    }
    for kind, lists in kinds.items():
        for probe in PROBES[kind]:
            found = proposed(lists, pictures, pictures[0], probe)
            hit = np.take_along_axis(found, best, 1).mean()
            copied = proposed(lists, pictures, asked, probe)[own, own].mean()
            lines.append(f"| {LISTS} of {kind} | {probe} | {found.mean():.3f} | {hit:.3f} | {copied:.3f} |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("work", type=Path)
    arguments = parser.parse_args(argv)
    lines = list_table(copy_of(arguments.run, arguments.work, "lists"))
    print("\n".join(lines), flush=True)
    print("\n".join(["", *pruned_searches(arguments.run, arguments.work)]))


if __name__ == "__main__":
    main()
