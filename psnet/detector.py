"""Garment detector: Faster R-CNN (Ren et al., NeurIPS 2015) over the 13 DeepFashion2 categories, on torchvision.

``resnet50_fpn`` is the paper's; ``mobilenet_320`` costs about a thirtieth and is the default on CPUs. Its box head
has 128 units instead of torchvision's 1024, which were three quarters of all its weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from psnet.taxonomy import Taxonomy

CATEGORIES: tuple[str, ...] = tuple(Taxonomy.load("deepfashion2").categories)


@dataclass(frozen=True)
class DetectorConfig:
    """``name`` mobilenet_320 or resnet50_fpn; ``min_side`` / ``max_side`` px the picture is scaled to;
    ``proposals`` kept after the region proposal network; ``pretrained`` loads ImageNet weights from torchvision's hub."""

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
    return FasterRCNN(
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


class _BoxPredictor(nn.Module):
    """Class scores and one box per proposal and class."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(width, classes)
        self.bbox_pred = nn.Linear(width, classes * 4)

    def forward(self, x):
        return self.cls_score(x), self.bbox_pred(x)
