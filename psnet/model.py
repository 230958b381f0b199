"""PS-Net composed: detector ▸ landmark branch ▸ regions ▸ retrieval branch (Lang et al., CVPR 2020, figure
3)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from psnet.backbone import Backbone
from psnet.detector import DetectorConfig, build_detector
from psnet.heatmap import HeatmapCodec
from psnet.landmarks import LandmarkBranch
from psnet.regions import NUM_REGIONS
from psnet.retrieval import CropRetrieval, RoiRetrieval, StripeRetrieval
from psnet.taxonomy import TORSO_CATEGORIES, Taxonomy


@dataclass(frozen=True)
class PSNetConfig:
    """What a set of weights is: changing any of these needs other weights.

    ``crop_side`` px of a garment's picture; ``heatmap_side`` cells and ``heatmap_sigma`` cells; ``retrieval``
    crop (a picture per region, default), roi (the paper's ROI pooling with attention), or the baselines pcb
    (horizontal stripes) and global (one embedding); ``feature_dim`` d
    per region; ``region_side`` px of a region's picture, ``region_width`` channels of its network's first
    stage.
    """

    detector: DetectorConfig = field(default_factory=DetectorConfig)
    taxonomy: str = "clothing11"
    backbone: str = "hrnet_w18_small"
    backbone_channels: int = 1024
    crop_side: int = 224
    heatmap_side: int = 56
    heatmap_sigma: float = 1.5
    retrieval: str = "crop"
    attention: bool = True
    feature_dim: int = 256
    region_side: int = 64
    region_width: int = 32
    pretrained: bool = False

    @classmethod
    def tiny(cls) -> PSNetConfig:
        """A network small enough for tests, of the same shape as the real one."""
        return cls(
            detector=DetectorConfig(min_side=96, max_side=128, proposals=10, head_width=16),
            backbone="resnet10t",
            backbone_channels=32,
            crop_side=64,
            heatmap_side=16,
            feature_dim=16,
            region_side=32,
            region_width=8,
        )


def heatmap_codec(config: PSNetConfig) -> HeatmapCodec:
    return HeatmapCodec((config.heatmap_side,) * 2, (config.crop_side,) * 2, config.heatmap_sigma)


def build_landmark_branch(config: PSNetConfig) -> LandmarkBranch:
    """Raises ValueError for an unknown taxonomy or backbone."""
    backbone = Backbone(config.backbone, config.backbone_channels, config.pretrained)
    landmarks, categories = len(Taxonomy.load(config.taxonomy)), len(TORSO_CATEGORIES)
    return LandmarkBranch(backbone, landmarks, categories, heatmap_codec(config))


def build_retrieval_branch(config: PSNetConfig) -> CropRetrieval | RoiRetrieval | StripeRetrieval:
    """Raises ValueError when ``config.retrieval`` is none of crop, roi, pcb, global."""
    if config.retrieval == "crop":
        return CropRetrieval(config.feature_dim, config.region_width, config.region_side)
    if config.retrieval not in ("roi", "pcb", "global"):
        raise ValueError(f"unknown retrieval branch {config.retrieval!r}: choose crop, roi, pcb or global")
    backbone = Backbone(config.backbone, config.backbone_channels, config.pretrained)
    if config.retrieval == "roi":
        return RoiRetrieval(
            backbone, len(Taxonomy.load(config.taxonomy)), config.feature_dim, attention=config.attention
        )
    return StripeRetrieval(backbone, config.feature_dim, NUM_REGIONS if config.retrieval == "pcb" else 1)


class PSNet(nn.Module):
    """The parts ready-made; `psnet.predictor.Predictor` takes it from raw images to garments."""

    def __init__(self, config: PSNetConfig) -> None:
        super().__init__()
        self.config = config
        self.detector = build_detector(config.detector)
        self.landmarks = build_landmark_branch(config)
        self.retrieval = build_retrieval_branch(config)
