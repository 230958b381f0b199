"""Garment detector: Faster R-CNN (Ren et al., NeurIPS 2015) over the 13 DeepFashion2 categories, on
torchvision.

``resnet50_fpn`` is the paper's; ``mobilenet_320`` costs about a thirtieth and is the default on CPUs. Its box
head has 128 units instead of torchvision's 1024, which were three quarters of all its weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image, nms, remove_small_boxes

from psnet.taxonomy import Taxonomy

CATEGORIES: tuple[str, ...] = tuple(Taxonomy.load("deepfashion2").categories)


@dataclass(frozen=True)
class DetectorConfig:
    """``name`` mobilenet_320 or resnet50_fpn; ``min_side`` / ``max_side`` px the picture is scaled to;
    ``proposals`` kept after the region proposal network; ``pretrained`` loads ImageNet weights from
    torchvision's hub."""

    name: str = "mobilenet_320"
    min_side: int = 224
    max_side: int = 384
    proposals: int = 60
    head_width: int = 128
    pretrained: bool = False


def build_detector(config: DetectorConfig) -> FasterRCNN:
    """A detector whose label ``i`` is ``CATEGORIES[i - 1]``; 0 is background.

    Raises ValueError for an unknown name.
    """
    weights = "DEFAULT" if config.pretrained else None
    if config.name == "mobilenet_320":
        backbone = mobilenet_backbone(
            backbone_name="mobilenet_v3_large",
            weights=weights,
            fpn=True,
            norm_layer=nn.BatchNorm2d,
            trainable_layers=6,
        )
        levels = 3
        anchors = AnchorGenerator(((32, 64, 128, 256, 512),) * levels, ((0.5, 1.0, 2.0),) * levels)
        names = ["0", "1"]
    elif config.name == "resnet50_fpn":
        backbone = resnet_fpn_backbone(
            backbone_name="resnet50", weights=weights, norm_layer=nn.BatchNorm2d, trainable_layers=5
        )
        anchors = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
        names = ["0", "1", "2", "3"]
    else:
        raise ValueError(f"unknown detector {config.name!r}: choose mobilenet_320 or resnet50_fpn")
    detector = FasterRCNN(
        backbone,
        num_classes=None,
        min_size=config.min_side,
        max_size=config.max_side,
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_train=400,
        rpn_post_nms_top_n_train=300,
        rpn_pre_nms_top_n_test=2 * config.proposals,
        rpn_post_nms_top_n_test=config.proposals,
        rpn_score_thresh=0.0,
        rpn_batch_size_per_image=64,
        box_roi_pool=MultiScaleRoIAlign(featmap_names=names, output_size=7, sampling_ratio=2),
        box_head=TwoMLPHead(backbone.out_channels * 49, config.head_width),
        box_predictor=_BoxPredictor(config.head_width, len(CATEGORIES) + 1),
        box_batch_size_per_image=24,
        box_detections_per_img=10,
        box_score_thresh=0.05,
        box_nms_thresh=0.45,
    )
    detector.roi_heads.postprocess_detections = partial(_postprocess, detector.roi_heads)
    return detector


class _BoxPredictor(nn.Module):
    """Class scores, and one box per proposal for all classes: rare categories need no box of their own."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.cls_score = nn.Linear(width, classes)
        self.bbox_pred = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), self.bbox_pred(x).repeat(1, self.classes)


def _postprocess(
    heads: RoIHeads,
    class_logits: Tensor,
    box_regression: Tensor,
    proposals: list[Tensor],
    image_shapes: list[tuple[int, int]],
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """One detection per garment: its score is the probability of any category, its label the likeliest one.

    torchvision thresholds every category by itself, so that a shirt that may be a blouse is neither.
    """
    counts = [len(p) for p in proposals]
    # Every class has the same box: decode one.
    decoded = heads.box_coder.decode(box_regression[:, :4], proposals).reshape(-1, 4).split(counts)
    chances = torch.softmax(class_logits.float(), -1).split(counts)
    boxes, scores, labels = [], [], []
    for box, chance, shape in zip(decoded, chances, image_shapes, strict=True):
        box = clip_boxes_to_image(box.float(), shape)
        score = 1 - chance[:, 0]
        keep = (score > heads.score_thresh).nonzero().flatten()
        keep = keep[remove_small_boxes(box[keep], min_size=2)]
        keep = keep[nms(box[keep], score[keep], heads.nms_thresh)][: heads.detections_per_img]
        boxes.append(box[keep])
        scores.append(score[keep])
        labels.append(chance[keep, 1:].argmax(-1) + 1)
    return boxes, scores, labels
