"""The pair search by torch: the pairs that the compiled kernel finds, whatever products are rounded to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline import kernel, torch_kernel
from pipeline.kernel import Block, Candidates, Floors, Kept, Wanted, rounding_slack
from pipeline.sift import SAME_WEIGHTS, weight_table
from psnet.regions import Presence
from psnet.similarity import SCORINGS, comparable_regions
from tests.pipeline.synthetic_garments import catalogue, unit
from tests.pipeline.test_kernel import KINDS, block, compared, nothing_known

GPU = pytest.param(
    "cuda",
    torch.float16,
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")],
)
DEVICES = [("cpu", torch.float32), ("cpu", torch.float16), GPU]


def listed(block_q: Block, block_x: Block, kept: Kept, wanted: Wanted, scoring: str) -> tuple[dict, int]:
    """What the candidates come to once they are compared: the pairs kept, and how many are left out."""
    exact = compared(block_q, block_x, kept.candidates, scoring)
    pairs, left_out = {}, kept.left_out
    by_query: dict[int, list] = {}
    for (query, match), (score, normalised, mirrored) in exact.items():
        by_query.setdefault(query, []).append((-normalised, -score, match, mirrored))
    for query, found in by_query.items():
        count = 0
        for rank, (normalised, score, match, mirrored) in enumerate(sorted(found)):
            reached = bool(wanted.reached(-score, -normalised))
            if (rank < wanted.best_k or reached) and count < wanted.limit:
                count += 1
                pairs[query, match] = (-score, -normalised, mirrored)
            elif reached:
                left_out += 1
    return pairs, left_out


@pytest.mark.parametrize(("device", "dtype"), DEVICES)
@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize(
    ("scoring", "weighted"), [("best_regions", False), ("best_regions", True), ("weighted", True)]
)
def test_the_pairs_are_those_of_the_compiled_kernel(monkeypatch, device, dtype, scoring, weighted, mirrored):
    monkeypatch.setattr(torch_kernel, "_TILE_ROWS", 60)
    monkeypatch.setattr(torch_kernel, "_TILE_COLUMNS", 70)
    source = catalogue(220, dim=32, seed=1, plain=0.1)
    table = np.random.default_rng(3).choice([0, 0.5, 1, 2], (len(source.picture), 5)).astype(np.float32)
    weights = table if weighted else None
    left, right = block(source, np.arange(90), weights), block(source, np.arange(90, 220), weights)
    slack = rounding_slack(left.level, left.level)
    wanted = Wanted(5, 0.7, 0.2, 12)
    options = {"slack": slack, "scoring": scoring, "mirrored": mirrored}
    on_device = {**options, "device": device, "dtype": dtype}
    floors = nothing_known(90), nothing_known(130)
    for columns, known in ((right, floors[1]), (right, None), (left, None)):
        theirs = kernel.best_pairs(left, columns, wanted, floors[0], known, **options)
        ours = torch_kernel.best_pairs(left, columns, wanted, floors[0], known, **on_device)
        assert (ours[1] is None) == (theirs[1] is None) == (known is None)
        for here, there, one, other in zip((left, columns), (columns, left), ours, theirs, strict=True):
            if other is None:
                continue
            found, count = listed(here, there, one, wanted, scoring)
            expected, left_out = listed(here, there, other, wanted, scoring)
            assert len(expected) >= 5 * len(here)
            assert found == expected and count == left_out


@pytest.mark.parametrize(("device", "dtype"), DEVICES)
def test_the_limit_is_counted_and_what_is_known_loses_nothing(device, dtype):
    # A ring of 60 copies, of which only 12 can be listed.
    source = catalogue(200, dim=32, seed=2, several=0, all_visible=True)
    rng = np.random.default_rng(0)
    near = source.features[:1] + 0.02 * unit(rng, 60, 5, 32)
    source.features[100:160] = (near / np.linalg.norm(near, axis=-1, keepdims=True)).astype(np.float16)
    one = replace(block(source, np.arange(200)), level=np.zeros(len(source.picture), np.float32))
    slack, wanted = float(kernel.MARGIN), Wanted(5, 0.8, 0.8, 12)
    floors = nothing_known(200)
    for _ in range(2):
        theirs, _none = kernel.best_pairs(one, one, wanted, floors, slack=slack)
        ours, _none = torch_kernel.best_pairs(
            one, one, wanted, floors, slack=slack, device=device, dtype=dtype
        )
        expected, left_out = listed(one, one, theirs, wanted, "best_regions")
        assert listed(one, one, ours, wanted, "best_regions") == (expected, left_out)
        assert left_out >= 60 * 40
        # Again, with what another block may have told.
        fifth = [sorted(v[1] for (q, _), v in expected.items() if q == query)[-5] for query in range(200)]
        floors = Floors(np.array(fifth, np.float32), floors.limit)


@pytest.mark.parametrize(("device", "dtype"), DEVICES)
@pytest.mark.parametrize("dim", [16, 256, 2048])
def test_products_are_within_the_bound(device, dtype, dim):
    rng = np.random.default_rng(dim)
    features = unit(rng, 200, 5, dim)
    # All of one sign: what is added grows, and so does what is lost.
    features[:100] = np.abs(features[:100])
    features[150:] *= 3
    source = features.astype(np.float16)
    ones = np.ones((200, 5), np.float32)
    whole = Block(
        source, source, np.full((200, 5), Presence.PRESENT, np.uint8), ones, np.zeros(200, np.float32),
        np.zeros(200, np.int16), np.arange(200), np.arange(200),
    )  # fmt: skip
    floors = nothing_known(200)
    search = torch_kernel._Search(
        whole,
        whole,
        Wanted(5, 2.0, 2.0, 5),
        floors,
        None,
        0.0,
        SAME_WEIGHTS,
        False,
        torch.device(device),
        dtype,
    )
    side = search.to_rows
    with torch_kernel._exact_sums():
        planes = torch_kernel._products(side.features, side.features).double().cpu().numpy()
    exact = np.einsum("ird,jrd->rij", *[source.astype(np.float64)] * 2)
    # The margin is for what comes after the products.
    off = search._off - float(kernel.MARGIN)
    assert np.abs(planes - exact).max() <= off
    assert off < (2e-3 if dim < 2048 else 1e-2) * 9.1


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_comparison(kind):
    rng = np.random.default_rng(kind)
    presence = rng.choice(
        [Presence.HIDDEN, Presence.ABSENT, Presence.PRESENT], (2, 400, 5), p=[0.2, 0.2, 0.6]
    )
    cos = rng.uniform(-1, 1, (400, 5)).astype(np.float32)
    cos[(presence != Presence.PRESENT).any(0)] = 0
    weights = np.ones((400, 5)) if kind == SAME_WEIGHTS else rng.choice([0, 0.2, 1, 3], (400, 5))
    comparable = comparable_regions(presence[0].astype(np.uint8), presence[1].astype(np.uint8))
    expected = SCORINGS[KINDS[kind]](cos, comparable, weights)
    values = np.where(comparable & (weights > 0), cos, -1e30)
    score = torch_kernel.score_of_values(
        kind, [torch.tensor(v) for v in values.T], [torch.tensor(w) for w in weight_table(weights)]
    )
    np.testing.assert_allclose(score.numpy(), expected, atol=1e-6)


def test_blocks_of_nothing():
    source = catalogue(30, dim=16, seed=3)
    one, none = block(source, np.arange(30)), block(source, np.arange(0))
    wanted = Wanted(5, 0.7, 0.2, 12)
    kept, back = torch_kernel.best_pairs(
        one, none, wanted, nothing_known(30), nothing_known(0), slack=1e-4, device="cpu"
    )
    assert len(kept.candidates) == 0 and back is not None and isinstance(back.candidates, Candidates)
