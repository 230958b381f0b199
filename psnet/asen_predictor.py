"""From a photograph and its garments' boxes to attribute embeddings: ASEN in service."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from psnet.asen import AttributeNetwork, AttributeOutput
from psnet.asen_weights import asen_tag, load_asen, read_asen
from psnet.crops import GARMENT_MARGIN, cut, expand, to_tensor, whole_frame
from psnet.device import autocast, resolve_device


class AttributePredictor:
    """One pass of the trunk per garment gives the embeddings of all its attributes.

    ``names`` of the attributes; ``thresholds``: the cosine from which two garments agree in each;
    ``dimension`` of an embedding.
    """

    def __init__(
        self,
        model: AttributeNetwork,
        *,
        tag: str,
        thresholds: dict[str, float],
        device: torch.device,
        precision: str = "float32",
        batch: int = 16,
    ) -> None:
        self.model = model.to(device).to(memory_format=torch.channels_last).eval()
        self.tag, self.thresholds, self.device = tag, thresholds, device
        self.precision, self.batch = precision, batch
        self.names, self.dimension = model.config.attributes, model.config.channels

    @classmethod
    def load(
        cls,
        weights: str | Path | None = None,
        device: str = "auto",
        precision: str = "float32",
        batch: int = 16,
    ) -> AttributePredictor:
        """Load a folder of ASEN's weights (None: the shipped ones). Raises psnet.weights.WeightsError."""
        return cls(
            load_asen(weights),
            tag=asen_tag(weights),
            thresholds=read_asen(weights)["thresholds"],
            device=resolve_device(device),
            precision=precision,
            batch=batch,
        )

    def crop(self, picture: Image.Image, box: np.ndarray) -> np.ndarray:
        """The garment as the network takes it, (side, side, 3) uint8."""
        config = self.model.config
        frame = expand(box, GARMENT_MARGIN, picture.width, picture.height)
        width, height = (float(v) for v in frame[2:] - frame[:2])
        inner = whole_frame(width, height, config.fit) + np.tile(frame[:2], 2)
        return cut(picture, inner, config.side)

    def describe(self, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Embeddings of all garments of each picture.

        Args:
            images: RGB uint8 (H, W, 3). boxes: per image (k, 4) xyxy px of its garments.

        Returns:
            Per image (k, attributes, dimension) float32 of unit norm.
        """
        crops = [
            self.crop(picture, box)
            for image, found in zip(images, boxes, strict=True)
            if len(found)
            for picture in [Image.fromarray(np.ascontiguousarray(image))]
            for box in found
        ]
        parts = [self.look(crops[i : i + self.batch])[0] for i in range(0, len(crops), self.batch)]
        whole = np.concatenate(parts) if parts else np.zeros((0, len(self.names), self.dimension), np.float32)
        return np.split(whole, np.cumsum([len(found) for found in boxes])[:-1]) if len(boxes) else []

    @torch.inference_mode()
    def look(self, crops: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        """Crops (side, side, 3) uint8 -> embeddings (n, attributes, dimension) and attention (n, attributes,
        h, w), float32; no attention for a method without."""
        pixels = to_tensor(np.stack(crops)).to(self.device).contiguous(memory_format=torch.channels_last)
        with autocast(self.device, self.precision):
            out: AttributeOutput = self.model(pixels)
        attention = None if out.attention is None else out.attention.float().cpu().numpy()
        return out.embeddings.float().cpu().numpy(), attention
