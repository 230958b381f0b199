"""Batch normalisation folded into convolutions: the same function in fewer passes over memory."""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norm(module: nn.Module) -> None:
    """Fold every BatchNorm2d that follows a convolution into it, in place; ``module`` must be in evaluation
    mode and computes the same up to rounding (1e-5 of the largest value in float32).

    What follows what is read off the order of modules: within an ``nn.Sequential``, and elsewhere of pairs
    named alike, ``conv2`` and ``bn2``, as torchvision's and timm's blocks name them.
    """
    children = list(module.named_children())
    for (name, first), (next_name, second) in pairwise(children):
        alike = name.replace("conv", "") == next_name.replace("bn", "")
        # Not its subclasses: timm's with an activation would lose it.
        if type(second) is not nn.BatchNorm2d or not (isinstance(module, nn.Sequential) or alike):
            continue
        if isinstance(first, nn.ConvTranspose2d):
            setattr(module, name, fuse_conv_bn_eval(first, second, transpose=True))
        elif isinstance(first, nn.Conv2d):
            setattr(module, name, fuse_conv_bn_eval(first, second))
        else:
            continue
        setattr(module, next_name, nn.Identity())
    for _, child in module.named_children():
        fold_batch_norm(child)
