"""What a training run is, as one configuration file."""

from __future__ import annotations

from dataclasses import dataclass, field

from psnet.model import PSNetConfig
from psnet.train.loop import LoopSettings, Precision


@dataclass(frozen=True)
class TrainSettings:
    """``labels``: label files in the layout of `psnet.data.photographs` (real and rendered ones alike), and
    ``label_weights``, how often a garment of each file is drawn against the others' (1 where not given);
    ``masks``: folder of cut-outs, made when missing; ``empty``: a catalogue whose ``empty_categories`` show
    no torso garment; ``background``: a catalogue without copies.

    ``unlabelled``: a catalogue whose photographs, those of ``empty_categories`` left out, the network labels
    itself in the part self-training, where it finds a garment with ``pseudo_score``, tells its regions'
    presence with ``pseudo_presence`` and, with what the catalogue's own category says, its group with
    ``pseudo_group``; they are drawn with ``pseudo_weight``.

    Every ``holdout``-th garment of each label file is kept for validation and for the calibration. Where
    ``out`` holds the part's checkpoint, training goes on from it. In the part edited the detector and the
    landmark branch go on, by schedules of their own, and ``edited`` of the garments that they see are
    edited; the landmark branch does so ``edited_rounds`` times, by ``edited_again`` from the second on, for
    which the unlabelled photographs are labelled anew. ``box_noise``: how far the region boxes that the
    retrieval branch is trained on miss the true ones, as a share of their sides; the comparison of registered
    photographs measures it.

    In the part copies the retrieval branch goes on by ``copies_retrieval``; ``copies_share`` of its samples
    come from the folders ``copies``, in the layout of `psnet.data.plagiarized_fashion`; ``fall_weight`` is
    that of the hinge on how far an edit lowers its region's cosine; the branch that comes out lies
    ``copies_step`` of the way from the weights before to those after.
    """

    labels: tuple[str, ...] = ()
    label_weights: tuple[float, ...] = ()
    split: str = "train"
    masks: str = "masks"
    unlabelled: str | None = None
    empty: str | None = None
    empty_categories: tuple[str, ...] = ("Pants", "Shorts", "Skirt", "Shoes", "Hat")
    background: str | None = None
    background_images: int = 800
    out: str = "training"
    holdout: int = 10
    workers: int = 1
    device: str = "auto"
    precision: Precision = "float32"
    seed: int = 0
    model: PSNetConfig = field(default_factory=PSNetConfig)
    detector: LoopSettings = field(
        default_factory=lambda: LoopSettings(
            steps=1500, batch=16, learning_rate=1e-3, warmup=150, checkpoint_every=250
        )
    )
    landmarks: LoopSettings = field(
        default_factory=lambda: LoopSettings(steps=1500, batch=32, learning_rate=2e-3)
    )
    self_training: LoopSettings = field(
        default_factory=lambda: LoopSettings(steps=1500, batch=32, learning_rate=1e-3)
    )
    edited: float = 0.5
    edited_detector: LoopSettings = field(
        default_factory=lambda: LoopSettings(steps=300, batch=16, learning_rate=5e-4)
    )
    edited_landmarks: LoopSettings = field(
        default_factory=lambda: LoopSettings(steps=800, batch=32, learning_rate=7e-4)
    )
    edited_rounds: int = 1
    edited_again: LoopSettings = field(
        default_factory=lambda: LoopSettings(steps=1200, batch=32, learning_rate=7e-4)
    )
    pseudo_weight: float = 0.5
    pseudo_score: float = 0.9
    pseudo_presence: float = 0.8
    pseudo_group: float = 0.8
    retrieval: LoopSettings = field(
        default_factory=lambda: LoopSettings(steps=1500, batch=48, learning_rate=2e-3)
    )
    retrieval_loss: str = "contrast"
    copies: tuple[str, ...] = ()
    copies_share: float = 0.3
    copies_step: float = 0.7
    copies_retrieval: LoopSettings = field(
        default_factory=lambda: LoopSettings(steps=500, batch=48, learning_rate=1e-3)
    )
    fall_weight: float = 3.0
    comparison: LoopSettings = field(
        default_factory=lambda: LoopSettings(steps=1200, batch=32, learning_rate=1e-3)
    )
    box_noise: float = 0.06
    region_weight_samples: int = 1500
    temperature: float = 0.1
