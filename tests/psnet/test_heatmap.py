import torch

from psnet.heatmap import HeatmapCodec


def test_decode_inverts_encode_within_half_a_pixel():
    codec = HeatmapCodec((56, 56), (224, 224), 1.5)
    points = torch.rand(4, 7, 2, generator=torch.Generator().manual_seed(0)) * 200 + 12
    logits = torch.log(codec.encode(points) + 1e-12)
    # A quarter of a cell: the window of the local mean is cut at whole cells.
    assert (codec.decode(logits) - points).abs().max() < 1.0


def test_cells_and_pixels_are_inverse_and_centred():
    codec = HeatmapCodec((56, 28), (224, 224), 1.5)
    points = torch.tensor([[0.0, 0.0], [224.0, 224.0], [37.5, 101.25]])
    assert torch.allclose(codec.to_pixels(codec.to_cells(points)), points)
    # The crop's left edge lies half a cell left of the first cell's centre.
    assert torch.allclose(codec.to_cells(points)[0], torch.tensor([-0.5, -0.5]))


def test_maps_sum_to_one_even_for_points_outside():
    codec = HeatmapCodec((16, 16), (64, 64), 1.0)
    maps = codec.encode(torch.tensor([[[32.0, 32.0], [-3.0, 70.0]]]))
    assert torch.allclose(maps.sum((-2, -1)), torch.ones(1, 2), atol=1e-5)


def test_decode_ignores_a_second_mode_far_away():
    codec = HeatmapCodec((56, 56), (224, 224), 1.5)
    one, two = torch.tensor([[[40.0, 40.0]]]), torch.tensor([[[200.0, 180.0]]])
    logits = torch.log(0.6 * codec.encode(one) + 0.4 * codec.encode(two) + 1e-12)
    assert (codec.decode(logits) - one).abs().max() < 1.0
