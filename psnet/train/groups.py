"""Training of the second opinion on the group (`psnet.group_head`): a logistic regression, solved to the end.

It learns from the labelled garments and from what a catalogue's own names of categories say of the
photographs that nobody labelled: not from what the landmark branch says of them, whose opinion the two
together are to better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from psnet.group_head import GROUP_OF_CATEGORY, GroupHead, joint_opinion, shapes
from psnet.predictor import Garment
from psnet.regions import GROUPS
from psnet.similarity import mirrored_presence

# On the squares of all weights; figures on held-out garments are the same for half and twice as much.
PENALTY = 1e-3


@dataclass(frozen=True)
class GroupSamples:
    """``features``, ``mirrored`` (n, 5, d), ``boxes`` (n, 4), ``presence`` (n, 5), ``kinds`` (n, C) the
    landmark branch's chances of the categories, ``groups`` (n, 4) what is to be said, ``weight`` (n,)."""

    features: np.ndarray
    mirrored: np.ndarray
    boxes: np.ndarray
    presence: np.ndarray
    kinds: np.ndarray
    groups: np.ndarray
    weight: np.ndarray

    @staticmethod
    def of(
        garments: Sequence[Garment | None], categories: np.ndarray, weight: Sequence[float]
    ) -> GroupSamples:
        """The garments that were found, None where none was, with the chances of their true ``categories``
        (n, C). Their ``category_scores`` have to be the landmark branch's alone.

        Raises:
            ValueError: none was found.
        """
        rows = [i for i, garment in enumerate(garments) if garment is not None]
        if not rows:
            raise ValueError("groups: no garment was found; train the detector and the landmark branch first")
        found = [garment for garment in garments if garment is not None]
        groups = np.zeros((len(rows), len(GROUPS)), np.float32)
        np.add.at(groups.T, GROUP_OF_CATEGORY, categories[rows].T)
        return GroupSamples(
            features=np.stack([g.features for g in found]).astype(np.float32),
            mirrored=np.stack([g.mirrored_features for g in found]).astype(np.float32),
            boxes=np.stack([g.box for g in found]),
            presence=np.stack([g.presence for g in found]),
            kinds=np.stack([g.category_scores for g in found]),
            groups=groups,
            weight=np.asarray(weight, np.float32)[rows],
        )


def fit_group_head(samples: GroupSamples, penalty: float = PENALTY) -> GroupHead:
    """The weights of least cross-entropy, mirror images counted as garments too, and of least squares."""
    turned = mirrored_presence(samples.presence)
    features = torch.from_numpy(np.concatenate([samples.features, samples.mirrored]))
    shape = torch.from_numpy(
        np.concatenate([shapes(samples.boxes, samples.presence), shapes(samples.boxes, turned)])
    )
    wanted = torch.from_numpy(np.concatenate([samples.groups] * 2))
    weight = torch.from_numpy(np.concatenate([samples.weight] * 2))
    head = GroupHead(features.shape[-1])
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    optimiser = torch.optim.LBFGS(head.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimiser.zero_grad()
        entropy = -(wanted * torch.log_softmax(head(features, shape), 1)).sum(1)
        squares = head.linear.weight.square().sum()
        loss = (weight * entropy).sum() / weight.sum() + penalty * squares
        loss.backward()
        return loss

    optimiser.step(step)
    return head.eval()


def group_figures(head: GroupHead, samples: GroupSamples) -> dict[str, float]:
    """Share of garments whose group is said rightly: ``landmarks`` by the landmark branch, ``regions`` by the
    head, ``joint`` by both."""
    chances = head.chances(samples.features, samples.mirrored, samples.boxes, samples.presence)
    said = {
        "landmarks": GROUP_OF_CATEGORY[samples.kinds.argmax(1)],
        "regions": chances.argmax(1),
        "joint": GROUP_OF_CATEGORY[joint_opinion(samples.kinds, chances).argmax(1)],
    }
    true = samples.groups.argmax(1)
    return {name: float((group == true).mean()) for name, group in said.items()}
