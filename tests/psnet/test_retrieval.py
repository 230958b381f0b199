import pytest
import torch

from psnet.attention import LandmarkAttention
from psnet.backbone import Backbone
from psnet.model import PSNetConfig, build_retrieval_branch
from psnet.pooling import pool_regions
from psnet.retrieval import CropRetrieval, RoiRetrieval


@pytest.mark.parametrize("name", ["hrnet_w18_small", "resnet18"])
def test_backbone_gives_the_papers_map(name):
    with torch.inference_mode():
        assert Backbone(name).eval()(torch.rand(1, 3, 224, 224)).shape == (1, 1024, 28, 28)


def test_crop_branch_gives_unit_norm_and_sees_no_neighbour():
    branch = CropRetrieval(32, 8, 32).eval()
    regions = torch.rand(2, 5, 3, 32, 32)
    with torch.inference_mode():
        before = branch(regions)
        regions[:, 0] = torch.rand(2, 3, 32, 32)
        after = branch(regions)
    assert before.shape == (2, 5, 32)
    assert torch.allclose(before.norm(dim=-1), torch.ones(2, 5), atol=1e-5)
    assert torch.equal(before[:, 1:], after[:, 1:])
    assert not torch.allclose(before[:, 0], after[:, 0])


def test_roi_branch_gives_unit_norm():
    branch = RoiRetrieval(Backbone("resnet10t", 32), 11, 16).eval()
    boxes = torch.tensor([[[4.0, 4.0, 30.0, 30.0]] * 5])
    with torch.inference_mode():
        features = branch(torch.rand(1, 3, 64, 64), boxes, torch.rand(1, 11, 16, 16))
    assert features.shape == (1, 5, 16)
    assert torch.allclose(features.norm(dim=-1), torch.ones(1, 5), atol=1e-5)


def test_attention_scales_by_a_half_to_three_halves():
    attention = LandmarkAttention(8, 11)
    features = torch.rand(2, 8, 7, 7) + 0.1
    scaled, weights = attention(features, torch.rand(2, 11, 28, 28))
    assert ((weights > 0) & (weights < 1)).all()
    torch.testing.assert_close(scaled / features, 0.5 + weights)


def test_pooling_reads_the_box_it_is_given():
    # A ramp along x: the mean over a box is the x of its middle (pixel centres at half-integers).
    ramp = (torch.arange(28.0) + 0.5).expand(1, 1, 28, 28) * 8
    boxes = torch.tensor(
        [[[16.0, 16.0, 80.0, 200.0], [100.0, 0.0, 164.0, 64.0]] + [[40.0, 40.0, 104.0, 104.0]] * 3]
    )
    pooled = pool_regions(ramp, boxes, 4, 8)
    assert pooled.shape == (1, 5, 1, 4, 4)
    torch.testing.assert_close(
        pooled.mean((-2, -1)).flatten(), torch.tensor([48.0, 132.0, 72.0, 72.0, 72.0]), atol=0.2, rtol=0
    )


def test_unknown_branch_is_named():
    with pytest.raises(ValueError, match="whole"):
        build_retrieval_branch(PSNetConfig(retrieval="whole"))
