import numpy as np

from psnet.homography import homography, project


def test_corners_land_on_their_targets_and_lines_stay_straight():
    source = np.array([[0, 0], [10, 0], [10, 20], [0, 20]], np.float64)
    target = np.array([[3, 1], [14, 2], [12, 25], [1, 20]], np.float64)
    matrix = homography(source, target)
    np.testing.assert_allclose(project(matrix, source), target, atol=1e-9)
    a, b, c = project(matrix, np.array([[0, 0], [4, 8], [10, 20]], np.float64))
    (x1, y1), (x2, y2) = b - a, c - a
    assert abs(x1 * y2 - y1 * x2) < 1e-9


def test_the_inverse_brings_points_back():
    matrix = homography(
        np.array([[0, 0], [1, 0], [1, 1], [0, 1]]), np.array([[0, 0], [2, 0.1], [1.8, 2], [0.2, 1.5]])
    )
    points = np.random.default_rng(0).random((5, 7, 2))
    np.testing.assert_allclose(project(np.linalg.inv(matrix), project(matrix, points)), points, atol=1e-9)
