"""Eight bits of projected vectors: the bound for any space, and which space is chosen."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.quantise import Basis, fit_basis, quantise
from tests.pipeline.synthetic_garments import unit


def spaces(rng: np.random.Generator, dim: int, rank: int) -> np.ndarray:
    """(5, dim, rank), orthonormal."""
    return np.stack([np.linalg.qr(rng.standard_normal((dim, rank)))[0] for _ in range(5)])


def within(rng: np.random.Generator, space: np.ndarray, count: int, outside: float) -> np.ndarray:
    """(count, 5, dim) of unit norm, ``outside`` of it at a right angle to the space."""
    inside = np.einsum("rdk,nrk->nrd", space, unit(rng, count, 5, space.shape[2]))
    beside = unit(rng, count, 5, space.shape[1])
    beside -= np.einsum("rdk,nrk->nrd", space, np.einsum("rek,nre->nrk", space, beside))
    beside /= np.linalg.norm(beside, axis=-1, keepdims=True)
    return (1 - outside**2) ** 0.5 * inside + outside * beside


def vectors(dim: int, space: np.ndarray) -> np.ndarray:
    """(n, 5, dim) float16: of all directions, of the space, near it, outside of it, long, tiny, one number
    only, zero; regions of other kinds in every garment."""
    rng = np.random.default_rng(dim)
    kinds = [
        unit(rng, 30, 5, dim),
        within(rng, space, 30, 0),
        within(rng, space, 30, 0.1),
        within(rng, space, 30, 1),
        3 * within(rng, space, 30, 0.5),
        6e-8 * rng.integers(-3, 4, (30, 5, dim)),
        np.eye(dim)[rng.integers(dim, size=(30, 5))],
        np.zeros((30, 5, dim)),
    ]
    every = np.concatenate(kinds).astype(np.float16)
    order = rng.permuted(np.tile(np.arange(len(every)), (5, 1)), axis=1)
    return np.stack([every[order[region], region] for region in range(5)], axis=1)


@pytest.mark.parametrize(("dim", "rank"), [(16, 1), (64, 48), (256, 32), (256, 128), (1024, 64)])
@pytest.mark.parametrize("skewed", [0.0, 1e-4])
def test_products_of_projected_codes_are_within_the_bound_in_any_space(dim, rank, skewed):
    rng = np.random.default_rng(rank)
    space = spaces(rng, dim, rank)
    features = vectors(dim, space)
    # Directions that are no better than nearly orthonormal cost a wider bound, and no pair.
    basis = Basis.of(space + skewed * rng.standard_normal(space.shape) / (dim * rank) ** 0.5)
    one = quantise(features, basis)
    exact = features.astype(np.float64)
    left, _, right = np.linalg.svd(basis.directions.astype(np.float64), full_matrices=False)
    nearest = left @ right
    inside = np.einsum("rdk,nrd->rnk", nearest, exact)
    outside = np.linalg.norm(exact.swapaxes(0, 1) - np.einsum("rdk,rnk->rnd", nearest, inside), axis=-1)
    length = np.linalg.norm(exact, axis=-1).T
    coordinates = np.einsum("rdk,nrd->rnk", basis.directions.astype(np.float64), exact)
    assert (np.linalg.norm(coordinates - inside, axis=-1) <= one.off * length + 1e-12).all()
    assert (outside <= one.rest + 1e-9).all()
    assert length.max() <= one.norm
    rounded = one.codes * one.scale[..., None].astype(np.float64)
    assert np.linalg.norm(rounded, axis=-1).max() <= one.norm
    cos = np.einsum("qrd,xrd->rqx", exact, exact)
    coarse = np.einsum("rqk,rxk->rqx", rounded, rounded)
    error, rest = one.error.astype(np.float64), one.rest.astype(np.float64)
    angle = np.sqrt(np.maximum(one.norm**2 - (coarse / one.norm) ** 2, 0))
    bound = (error[:, :, None] + error[:, None]) * angle + error[:, :, None] * error[:, None]
    bound += rest[:, :, None] * rest[:, None] + one.extra()
    # As the search has it: MARGIN of pipeline.kernel is more than this.
    assert (np.abs(cos - coarse) <= bound + 1e-6 * one.norm**2).all()


def test_the_bound_is_reached_where_what_is_outside_points_the_same_way():
    rng = np.random.default_rng(0)
    space = spaces(rng, 64, 8)
    beside = within(rng, space, 1, 1)
    features = (0.8 * within(rng, space, 40, 0) + 0.6 * beside).astype(np.float16)
    one = quantise(features, Basis.of(space))
    exact = features.astype(np.float64)
    rounded = one.codes * one.scale[..., None].astype(np.float64)
    off = np.einsum("qrd,xrd->rqx", exact, exact) - np.einsum("rqk,rxk->rqx", rounded, rounded)
    assert off.min() > 0.9 * 0.36
    assert one.rest.max() == pytest.approx(0.6, abs=2e-3)


def test_vectors_of_the_space_lose_nothing_by_it():
    rng = np.random.default_rng(0)
    space = spaces(rng, 256, 32)
    one = quantise(within(rng, space, 50, 0).astype(np.float16), Basis.of(space))
    # Half precision itself leaves the space by 2e-4.
    assert one.rest.max() < 0.02
    assert quantise(np.zeros((3, 5, 256), np.float16), Basis.of(space)).rest.max() == 0


def hide(rng: np.random.Generator, features: np.ndarray) -> np.ndarray:
    return features * (rng.random(features.shape[:2]) < 0.8)[..., None]


@pytest.mark.parametrize(
    ("directions", "outside", "chosen"),
    [(20, 0, 32), (40, 0.05, 48), (60, 0, 64), (30, 0.1, 32), (30, 0.5, None), (256, 0, None)],
)
def test_the_fewest_dimensions_that_hold_a_sample_are_chosen(directions, outside, chosen):
    rng = np.random.default_rng(directions)
    space = spaces(rng, 256, directions)
    sample = hide(rng, within(rng, space, 600, outside) if directions < 256 else unit(rng, 600, 5, 256))
    basis = fit_basis(sample.astype(np.float32))
    assert (None if basis is None else basis.directions.shape) == (chosen and (5, 256, chosen))
    if basis is not None:
        assert basis == fit_basis(sample.astype(np.float32))
        others = within(rng, space, 200, outside).astype(np.float16)
        one, plain = quantise(others, basis), quantise(others)
        assert (one.rest.max(0) ** 2 < 0.015).mean() > 0.9
        # Turned within the space, fewer numbers lose no more than all of them.
        assert np.median(one.error) < 1.1 * np.median(plain.error)


@pytest.mark.parametrize("count", [0, 1, 30])
def test_too_small_a_sample_chooses_nothing(count):
    rng = np.random.default_rng(count)
    sample = within(rng, spaces(rng, 256, 4), count, 0).astype(np.float32)
    assert fit_basis(sample) is None


def test_short_vectors_are_multiplied_as_they_are():
    rng = np.random.default_rng(0)
    assert fit_basis(within(rng, spaces(rng, 48, 4), 600, 0).astype(np.float32)) is None
