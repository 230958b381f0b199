"""Maps between photographs of bent cloth: there and back, and pictures that follow them."""

import numpy as np
import pytest
from PIL import Image

from psnet.data.rephotograph import CameraRange, Subject, rephotograph
from psnet.homography import project
from psnet.warp import NODES, Warp, nodes, warped

BOX = np.array([20.0, 30, 220, 260])
TILTED = np.array([[1.1, 0.1, 5], [-0.05, 0.9, 8], [2e-4, 1e-4, 1]])


def test_there_and_back():
    rng = np.random.default_rng(0)
    # A homography alone goes on beyond the box; bends are as large as cloth has them, 3 % of the box.
    smooth = np.asarray(
        Image.fromarray(rng.normal(0, 6, (3, 3))).resize((NODES, NODES), Image.Resampling.BICUBIC)
    )
    for shifts in (np.zeros((NODES, NODES, 2)), np.stack([smooth, -smooth.T], -1)):
        warp = Warp(TILTED, BOX, shifts)
        points = rng.uniform(-50, 350, (4, 25, 2))
        points[0, 0] = np.nan
        there = warp.place(points)
        assert there.shape == points.shape and np.isnan(there[0, 0]).all() and np.isfinite(there[0, 1:]).all()
        np.testing.assert_allclose(warp.back(there), points, atol=0.05)


def test_the_grid_reaches_beyond_the_box_and_shifts_hold_at_its_nodes():
    at = nodes(BOX)
    np.testing.assert_allclose(at[[0, -1], [0, -1]], [[0, 7], [240, 283]])
    warp = Warp.of(np.eye(3), BOX, lambda points: points + np.sin(points / 40))
    np.testing.assert_allclose(warp.place(at), at + np.sin(at / 40), atol=1e-9)
    # In between it is bilinear, beyond as on the edge.
    middle = (at[0, 0] + at[0, 1]) / 2
    np.testing.assert_allclose(
        warp.place(middle[None])[0] - middle, (warp.shifts[0, 0] + warp.shifts[0, 1]) / 2
    )
    np.testing.assert_allclose(warp.place(at[0, :1] - 99) - at[0, :1] + 99, warp.shifts[0, :1])
    assert not Warp.flat(np.eye(3), BOX).shifts.any()


@pytest.mark.parametrize("pieces", [1, 4, 7])
def test_a_picture_follows_the_map(pieces):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (61, 50, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    assert np.array_equal(warped(image, image.size, lambda points: points, pieces=pieces), pixels)
    moved = np.asarray(
        warped(image, image.size, lambda points: points + np.array([3, -4]), (9, 8, 7), pieces=pieces)
    )
    np.testing.assert_array_equal(moved[4:, :-3], pixels[:-4, 3:])
    assert (moved[:4] == [9, 8, 7]).all() and (moved[:, -3:] == [9, 8, 7]).all()
    # As Pillow warps by a homography, but for rounding.
    smooth = image.resize((300, 300), Image.Resampling.BICUBIC)
    mine = warped(smooth, (200, 220), lambda points: project(TILTED, points), pieces=8)
    theirs = smooth.transform(
        (200, 220), Image.Transform.PERSPECTIVE, tuple(TILTED.reshape(-1)[:8]), Image.Resampling.BILINEAR
    )
    assert np.abs(np.asarray(mine, int) - np.asarray(theirs)).mean() < 0.5


def test_labels_follow_a_bent_photograph():
    """Dots on a dark cloth are seen where the landmarks are said to be, and bends take them off the plane."""
    pixels = np.full((400, 300, 3), 20, np.uint8)
    at = np.array([[80.5, 90.5], [220.5, 90.5], [90.5, 300.5], [210.5, 310.5], [150.5, 200.5]])
    for number, (x, y) in enumerate(at.astype(int)):
        pixels[y - 4 : y + 5, x - 4 : x + 5] = 0
        pixels[y - 4 : y + 5, x - 4 : x + 5, number % 3] = 255 - 30 * number
    box = np.array([50.0, 60, 250, 340])
    subject = Subject(pixels, None, box, np.column_stack([at, np.full(5, 2.0)]), np.tile(box, (5, 1)))
    camera = CameraRange(mirror=0, colour=0, light=0, blur=0, occlusion=0, wild_rotation=0, bend=0.015)
    ys, xs = np.mgrid[-12:13, -12:13]
    off, bent = [], []
    for seed in range(12):
        view = rephotograph(subject, np.random.default_rng(seed), camera, swap=np.arange(5))
        bent.append(np.linalg.norm(view.landmarks[:, :2] - project(view.warp.matrix, at), axis=1))
        for number, (x, y) in enumerate(view.landmarks[:, :2].astype(float)):
            here = view.pixels[int(y) - 12 : int(y) + 13, int(x) - 12 : int(x) + 13, number % 3].astype(float)
            if here.shape != (25, 25):
                continue  # at the edge of the frame, or outside
            assert here.max() > 100
            weight = np.maximum(here - 90, 0) / np.maximum(here - 90, 0).sum()
            seen = np.array([(xs * weight).sum(), (ys * weight).sum()]) + np.floor([x, y]) + 0.5
            off.append(np.abs(seen - [x, y]).max())
    assert len(off) > 40 and np.quantile(off, 0.9) < 1
    assert np.quantile(bent, 0.9) > 5
