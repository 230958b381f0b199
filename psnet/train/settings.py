"""What a training run is, as one configuration file."""

from __future__ import annotations

from dataclasses import dataclass, field

from psnet.model import PSNetConfig
from psnet.train.loop import LoopSettings


@dataclass(frozen=True)
class TrainSettings:
    """``labels``: label files in the layout of `psnet.data.photographs` (real and rendered ones alike);
    ``label_weights`` how often a garment of each file is drawn against the others' (1 where not given);
    ``empty``: a catalogue whose ``empty_categories`` show no torso garment; ``masks``: folder of cut-outs,
    made when missing.

    Every ``holdout``-th garment of each label file is kept for validation and for the calibration. Where
    ``out`` holds the part's checkpoint, training goes on from it.
    """

    labels: tuple[str, ...] = ()
    label_weights: tuple[float, ...] = ()
    split: str = "train"
    masks: str = "masks"
    empty: str | None = None
    empty_categories: tuple[str, ...] = ("Pants", "Shorts", "Skirt", "Shoes", "Hat")
    background: str | None = None
    background_images: int = 800
    out: str = "training"
    holdout: int = 10
    workers: int = 1
    device: str = "auto"
    precision: str = "float32"
    seed: int = 0
    model: PSNetConfig = field(default_factory=PSNetConfig)
    detector: LoopSettings = field(
        default_factory=lambda: LoopSettings(
            steps=1500, batch=16, learning_rate=1e-3, warmup=150, checkpoint_every=250
        )
    )
    landmarks: LoopSettings = field(
        default_factory=lambda: LoopSettings(steps=1500, batch=32, learning_rate=1.5e-3)
    )
    retrieval: LoopSettings = field(
        default_factory=lambda: LoopSettings(steps=1500, batch=48, learning_rate=2e-3)
    )
    retrieval_loss: str = "contrast"
    temperature: float = 0.1
