"""Figures with their 95 % confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

# The 97.5 % quantile of the normal distribution: 95 % lie between minus and plus this.
_Z = 1.959964
RESAMPLES = 2000
# Resamples drawn at once: an array of (_CHUNK, n).
_CHUNK = 200


@dataclass(frozen=True)
class Estimate:
    """A figure, its 95 % interval and the number of cases it stands on. All NaN where there is no case."""

    value: float
    low: float
    high: float
    count: int


NOTHING = Estimate(math.nan, math.nan, math.nan, 0)


def wilson(successes: int, trials: int) -> Estimate:
    """A share and its score interval (Wilson, JASA 1927), which stays inside 0…1 and is sound for few cases.

    Raises:
        ValueError: more successes than trials, or a negative number.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials} is no share")
    if trials == 0:
        return NOTHING
    share = successes / trials
    return Estimate(share, *_wilson(share, trials), trials)


def wilson_of_clusters(successes: np.ndarray, trials: np.ndarray) -> Estimate:
    """A share whose cases come in clusters that succeed or fail together, such as the pairs of one query.

    Wilson's interval at the effective number of cases: their number over the design effect, the variance of
    the share between clusters over that of independent cases (Kish, "Survey Sampling", 1965), and less for
    the few clusters that this variance is known from (Korn and Graubard, Survey Methodology 1998, who do so
    with Clopper and Pearson's interval). Where no variance can be seen (all or none succeed), a cluster
    counts as one case.

    Args:
        successes, trials: (n,) of each cluster; clusters without a case say nothing.

    Raises:
        ValueError: more successes than trials, or a negative number.
    """
    successes, trials = (
        np.asarray(values, np.float64)[np.asarray(trials) > 0] for values in (successes, trials)
    )
    if (successes < 0).any() or (successes > trials).any():
        raise ValueError("more successes than trials is no share")
    cases, clusters = trials.sum(), len(trials)
    if not clusters:
        return NOTHING
    share = successes.sum() / cases
    effective = float(clusters)
    if clusters > 1 and 0 < share < 1:
        spread = ((successes - share * trials) ** 2).sum() * clusters / (clusters - 1) / cases**2
        effective = min(cases, share * (1 - share) / spread) if spread else cases
        effective *= (_Z / _student(clusters - 1)) ** 2
    low, high = _wilson(share, effective)
    return Estimate(float(share), low, high, int(cases))


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution (Cornish and Fisher's expansion; 1 % off from 4 degrees
    of freedom on)."""
    z = _Z
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _wilson(share: float, trials: float) -> tuple[float, float]:
    spread = _Z * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
    scale = 1 + _Z**2 / trials
    middle = share + _Z**2 / (2 * trials)
    return max((middle - spread) / scale, 0.0), min((middle + spread) / scale, 1.0)


def bootstrap_mean(values: Sequence[float] | np.ndarray, seed: int = 0) -> Estimate:
    """Mean of independent cases, percentile bootstrap (Efron, 1979) of ``RESAMPLES`` resamples.

    Args:
        values: (n,), one a query or a photograph.
    """
    array = np.asarray(values, np.float64)
    if not len(array):
        return NOTHING
    rng = np.random.default_rng(seed)
    means = [
        array[rng.integers(len(array), size=(_CHUNK, len(array)))].mean(1) for _ in range(RESAMPLES // _CHUNK)
    ]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return Estimate(float(array.mean()), float(low), float(high), len(array))


def bootstrap_ratio(
    sums: np.ndarray, counts: np.ndarray, seed: int = 0, cases: int | None = None
) -> Estimate:
    """Σ sums / Σ counts over independent clusters (photographs, each with several cases), percentile
    bootstrap over the clusters.

    Args:
        sums, counts: (clusters,). cases: the estimate's ``count``, None: Σ counts.
    """
    sums, counts = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    if not counts.sum():
        return NOTHING
    rng = np.random.default_rng(seed)
    ratios = []
    for _ in range(RESAMPLES // _CHUNK):
        drawn = rng.integers(len(sums), size=(_CHUNK, len(sums)))
        ratios.append(sums[drawn].sum(1) / np.maximum(counts[drawn].sum(1), np.finfo(float).tiny))
    low, high = np.quantile(np.concatenate(ratios), (0.025, 0.975))
    count = int(counts.sum()) if cases is None else cases
    return Estimate(float(sums.sum() / counts.sum()), float(low), float(high), count)


class ByCluster:
    """Cases that come in clusters, such as the copies of one design: collected, then estimated."""

    def __init__(self) -> None:
        self._sums: dict[Hashable, float] = {}
        self._counts: dict[Hashable, int] = {}

    def add(self, cluster: Hashable, value: float) -> None:
        """One more case."""
        self._sums[cluster] = self._sums.get(cluster, 0.0) + float(value)
        self._counts[cluster] = self._counts.get(cluster, 0) + 1

    def share(self) -> Estimate:
        """Of cases that are true or false: ``wilson_of_clusters``."""
        return wilson_of_clusters(*self._arrays())

    def mean(self, seed: int = 0) -> Estimate:
        """Of any cases: ``bootstrap_ratio``."""
        return bootstrap_ratio(*self._arrays(), seed)

    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(list(self._sums.values())), np.array(list(self._counts.values()))


def bootstrap_median(
    values: Sequence[float] | np.ndarray, clusters: Sequence[object] | None = None, seed: int = 0
) -> Estimate:
    """Median, percentile bootstrap over ``clusters``: copies of one design are no independent cases.

    Args:
        values: (n,). clusters: (n,), equal ones are drawn together; None: every value is one of its own.
    """
    array = np.asarray(values, np.float64)
    if not len(array):
        return NOTHING
    names = list(range(len(array))) if clusters is None else list(clusters)
    places: dict[object, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    groups = [array[at] for at in places.values()]
    rng = np.random.default_rng(seed)
    medians = [
        np.median(np.concatenate([groups[g] for g in rng.integers(len(groups), size=len(groups))]))
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(medians, (0.025, 0.975))
    return Estimate(float(np.median(array)), float(low), float(high), len(array))
