from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from psnet.backbone import Backbone
from psnet.detector import build_detector
from psnet.fusion import fold_batch_norm
from psnet.model import PSNetConfig, build_landmark_branch, build_retrieval_branch


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def unsettled(model):
    """With statistics that no untrained network has, so that a fold that is left out or wrong is seen."""
    for norm in norms(model):
        nn.init.uniform_(norm.running_mean, -0.3, 0.3)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.3, 0.3)
    return model.eval()


def test_a_batch_norm_with_an_activation_in_it_keeps_that():
    torch.manual_seed(0)
    model = unsettled(Backbone("regnetx_002", channels=16))
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        before = model(images)
        fold_batch_norm(model)
        after = model(images)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4 * float(before.abs().max()))


@pytest.mark.parametrize("part", ["retrieval", "roi", "landmarks", "detector"])
def test_folding_leaves_the_function_and_no_batch_norm(part):
    torch.manual_seed(0)
    config = PSNetConfig()
    inputs: tuple[torch.Tensor, ...] = (torch.rand(2, 3, 64, 64),)
    if part == "retrieval":
        model = build_retrieval_branch(config)
        inputs = (torch.rand(2, 5, 3, 64, 64),)
    elif part == "roi":
        model = build_retrieval_branch(replace(config, retrieval="roi")).backbone
    elif part == "landmarks":
        model = build_landmark_branch(config)
        inputs = (torch.rand(1, 3, 224, 224), torch.zeros(1))
    else:
        model = build_detector(config.detector).backbone
    unsettled(model)
    with torch.inference_mode():
        before = tree_flatten(model(*inputs))[0]
        fold_batch_norm(model)
        after = tree_flatten(model(*inputs))[0]
    assert not norms(model)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4 * float(one.abs().max()))
