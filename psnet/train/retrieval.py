"""Training of the retrieval branch: an edit of one region must move that region's feature and no other.

A sample is one design photographed three times: twice as it is, once with one or more parts edited. In each
region all photographs whose region is unedited attract each other; an edited region is a design of its own
and repels, as do all other garments of the batch (supervised contrastive loss, Khosla et al., NeurIPS 2020,
per region). The paper's regional triplet loss (section 4.2) is the alternative, by ``loss: triplet``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from psnet.boxes import extents, mirror_boxes
from psnet.crops import GARMENT_MARGIN, cut, cut_regions, expand
from psnet.data.edits import PART_REGIONS, edit_parts, random_parts, sample_parts
from psnet.data.photographs import LabelledGarment
from psnet.data.rephotograph import CameraRange, Subject, View, rephotograph
from psnet.heatmap import HeatmapCodec
from psnet.model import PSNetConfig
from psnet.regions import GROUPS, MIRROR, NUM_REGIONS, REGIONS
from psnet.retrieval import RoiRetrieval
from psnet.taxonomy import Taxonomy
from psnet.train.landmarks import camera_of, subject_of
from psnet.verdict import MAX_CHANGED_PARTS

RETRIEVAL_CAMERA = CameraRange(
    side=288,
    rotation=7,
    wild_rotation=0.03,
    fill=(0.55, 1.08),
    shift=0.05,
    mirror=0.0,
    new_background=0.75,
    colour=0.16,
    blur=1.2,
    bend=0.015,
)
# By how much an edit has to lower a region's cosine, against another photograph of the same design.
EDITED_FALL = 0.5
# Below this mean change (grey levels) inside its box an edit cannot be told from a photograph's own
# variation.
VISIBLE_EDIT = 14.0
VIEWS = 3
IGNORED = -1
# Branches without regions.
WHOLE = ("pcb", "global")


def mirror_subject(subject: Subject, swap: np.ndarray) -> Subject:
    """The subject flipped left to right, landmarks and regions renamed."""
    width = subject.pixels.shape[1]
    points = subject.landmarks[swap].copy()
    points[:, 0] = width - points[:, 0]
    return Subject(
        pixels=np.ascontiguousarray(subject.pixels[:, ::-1]),
        mask=None if subject.mask is None else np.ascontiguousarray(subject.mask[:, ::-1]),
        box=mirror_boxes(subject.box, width),
        landmarks=points,
        region_boxes=mirror_boxes(subject.region_boxes, width)[list(MIRROR)],
    )


def edited_regions(
    before: Subject, after: Subject, parts: Sequence[str], visible: float = VISIBLE_EDIT
) -> np.ndarray:
    """(5,) int8: 1 where the region visibly changed, by ``visible`` grey levels on average, 0 where not, -1
    where it is too little to say."""
    state = np.zeros(NUM_REGIONS, np.int8)
    for part in parts:
        for name in PART_REGIONS[part]:
            r = REGIONS.index(name)
            box = before.region_boxes[r]
            if np.isnan(box[0]):
                continue
            if not np.array_equal(box, after.region_boxes[r]):
                state[r] = 1  # shortened
                continue
            h, w = before.pixels.shape[:2]
            x0, y0, x1, y1 = (int(v) for v in np.clip(box, 0, [w, h, w, h]))
            old = before.pixels[y0:y1, x0:x1].astype(np.int16)
            change = np.abs(old - after.pixels[y0:y1, x0:x1]).mean() if old.size else 0.0
            state[r] = 1 if change > visible else IGNORED
    return state


def jittered(region_boxes: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    """Region boxes (5, 4) as a landmark branch would give them: off by ``amount`` of their sides (standard
    deviation)."""
    off = rng.normal(0, amount, (NUM_REGIONS, 4))
    return (region_boxes + off * extents(region_boxes)).astype(np.float32)


def drawn(seed: tuple[int, ...], index: int, count: int) -> int:
    """Which of ``count`` things sample ``index`` shows: all of them, epoch after epoch, in a new order. So no
    batch holds one twice, or its twin would be taken for a stranger."""
    order = np.random.default_rng((*seed, index // count)).permutation(count)
    return int(order[index % count])


def region_pictures(picture: Image.Image, region_boxes: np.ndarray, side: int) -> np.ndarray:
    """Region boxes (5, 4) of a picture -> what `psnet.retrieval.CropRetrieval` sees, (5, 3, side, side)
    uint8."""
    return np.ascontiguousarray(cut_regions(picture, region_boxes, side).transpose(0, 3, 1, 2))


class RetrievalSamples:
    """Three photographs a sample, as ``config.retrieval`` wants to see them, with which regions agree.

    crop: ``regions`` (3, 5, 3, region_side, region_side) uint8. The others: ``crops`` (3, 3, crop_side,
    crop_side) uint8 of the whole garment, ``boxes`` (3, 5, 4) and ``points`` (3, 11, 2) in its pixels.
    ``design`` (3, 5) int64: equal numbers are the same design of a region (0 the original, 1 an edited one),
    -1 where the region is absent, unseen or undecided; ``group`` the row of `psnet.regions.GROUPS`, ``parts``
    how many were edited. Branches without regions see a copy of at most two
    edited parts as the same design, all over, which is what they have to retrieve.
    """

    def __init__(
        self,
        garments: Sequence[LabelledGarment],
        seed: int,
        config: PSNetConfig,
        box_noise: float = 0.06,
        camera: CameraRange = RETRIEVAL_CAMERA,
    ) -> None:
        self.garments, self.seed, self.config = list(garments), seed, config
        self.box_noise, self.camera = box_noise, camera
        self.swap = Taxonomy.load("clothing11").swap

    def shown(self, index: int) -> int:
        """Which of the garments sample ``index`` shows."""
        return drawn((self.seed, 1), index, len(self.garments))

    def sample(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        count = len(self.garments)
        garment = self.garments[self.shown(index)]
        subject = subject_of(garment)
        if rng.random() < 0.5:
            subject = mirror_subject(subject, self.swap)
        donor = subject_of(self.garments[int(rng.integers(count))])
        group = Taxonomy.load("clothing11").category(garment.category).group or ""
        parts = sample_parts(
            group,
            int(rng.choice([1, 2, 3], p=[0.45, 0.4, 0.15])),
            rng,
            garment.sleeveless,
        )
        # Parts are drawn by the paper's table half of the time, evenly otherwise: rare ones must be learnt as
        # well.
        if rng.random() < 0.5:
            parts = random_parts(garment.sleeveless, len(parts), rng)
        edited, _ = edit_parts(subject, parts, rng, donor)
        state = edited_regions(subject, edited, parts)
        design = np.zeros((VIEWS, NUM_REGIONS), np.int64)
        pictures = []
        for v, shown in enumerate((subject, subject, edited)):
            other = self.garments[int(rng.integers(count))].read()
            camera = camera_of(self.camera, subject, shown)
            view = rephotograph(shown, rng, camera, swap=self.swap, other=other)
            pictures.append(self._picture(view, rng))
            design[v] = np.where(view.region_seen > 0.5, 0, IGNORED)
        if self.config.retrieval in WHOLE:
            design[:] = 0
            design[2] = int(len(parts) > MAX_CHANGED_PARTS)
        else:
            design[2] = np.where((design[2] == IGNORED) | (state == IGNORED), IGNORED, state)
        return {
            **{key: torch.from_numpy(np.stack([p[key] for p in pictures])) for key in pictures[0]},
            "design": torch.from_numpy(design),
            "group": torch.tensor(GROUPS.index(group)),
            "parts": torch.tensor(len(parts)),
        }

    def _picture(self, view: View, rng: np.random.Generator) -> dict[str, np.ndarray]:
        boxes = jittered(view.region_boxes, rng, self.box_noise)
        picture = Image.fromarray(view.pixels)
        if self.config.retrieval == "crop":
            return {"regions": region_pictures(picture, boxes, self.config.region_side)}
        side = self.config.crop_side
        miss = (rng.normal(0, 0.5 * self.box_noise, 4) * extents(view.box)).astype(np.float32)
        frame = expand(view.box + miss, GARMENT_MARGIN, picture.width, picture.height)
        origin, scale = frame[:2], side / (frame[2:] - frame[:2])
        return {
            "crops": np.ascontiguousarray(cut(picture, frame, side).transpose(2, 0, 1)),
            "boxes": np.clip((np.nan_to_num(boxes) - np.tile(origin, 2)) * np.tile(scale, 2), 0, side).astype(
                np.float32
            ),
            "points": ((view.landmarks[:, :2] - origin) * scale).astype(np.float32),
        }


def embed(model: nn.Module, batch: dict[str, Tensor], codec: HeatmapCodec) -> Tensor:
    """Features (n, views, 5, d) of a batch of `RetrievalSamples`, whatever the branch wants to see."""
    n, views = batch["design"].shape[:2]
    key = "regions" if "regions" in batch else "crops"
    pictures = batch[key].flatten(0, 1).float() / 255
    if isinstance(model, RoiRetrieval):
        guide = codec.encode(batch["points"].flatten(0, 1))
        guide = guide / guide.amax((-2, -1), keepdim=True).clamp_min(1e-6)
        features = model(pictures, batch["boxes"].flatten(0, 1), guide)
    else:
        features = model(pictures)
    return features.unflatten(0, (n, views))


def region_contrast(features: Tensor, design: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss over the regions.

    features (n, views, 5, d) unit norm, design (n, views, 5) as in `RetrievalSamples` -> scalar, mean over
    regions.
    """
    n, views = features.shape[:2]
    losses = []
    garment = torch.arange(n, device=features.device).repeat_interleave(views)
    for r in range(NUM_REGIONS):
        f = features[:, :, r].reshape(n * views, -1)
        which = design[:, :, r].reshape(-1)
        valid = which >= 0
        f, which, owner = f[valid], which[valid], garment[valid]
        if len(f) < 4:
            continue
        label = owner * 2 + which
        logits = f @ f.T / temperature
        itself = torch.eye(len(f), dtype=torch.bool, device=f.device)
        logits = logits.masked_fill(itself, float("-inf"))
        positive = (label.unsqueeze(0) == label.unsqueeze(1)) & ~itself
        log = logits - torch.logsumexp(logits, 1, keepdim=True)
        has = positive.any(1)
        if has.any():
            losses.append(-(log.masked_fill(~positive, 0).sum(1)[has] / positive.sum(1)[has]).mean())
    return torch.stack(losses).mean()


def region_triplet(features: Tensor, design: Tensor, margin: float = 0.5) -> Tensor:
    """L_tri = Σ_r max(D_r⁺ − D_r⁻ + m, 0), D the L2 distance, the hardest negative of the batch (section
    4.2)."""
    n, views = features.shape[:2]
    total = features.new_zeros(())
    garment = torch.arange(n, device=features.device).repeat_interleave(views)
    for r in range(NUM_REGIONS):
        f = features[:, :, r].reshape(n * views, -1)
        which = design[:, :, r].reshape(-1)
        valid = which >= 0
        f, label = f[valid], (garment * 2 + which)[valid]
        distance = (2 - 2 * f @ f.T).clamp_min(1e-6).sqrt()
        same = label.unsqueeze(0) == label.unsqueeze(1)
        itself = torch.eye(len(f), dtype=torch.bool, device=f.device)
        far = distance.masked_fill(~(same & ~itself), float("-inf")).max(1).values
        near = distance.masked_fill(same, float("inf")).min(1).values
        usable = torch.isfinite(far) & torch.isfinite(near)
        if usable.any():
            total = total + F.relu(far - near + margin)[usable].mean()
    return total


def _cosines(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features (n, 3, 5, d) -> (n, 5) of the original with another photograph of it and with the copy."""
    original, other, copy = features.unbind(1)
    return (original * other).sum(-1), (original * copy).sum(-1)


def _told(design: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 3, 5) as in `RetrievalSamples` -> (n, 5) bool: regions that all three photographs show, and that
    the copy has unedited, or edited."""
    shown = (design[:, :2] == 0).all(1)
    return shown & (design[:, 2] == 0), shown & (design[:, 2] == 1)


def retrieval_loss(
    temperature: float, codec: HeatmapCodec, kind: str = "contrast", fall: float = 0.0
) -> Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]:
    """The loss of one batch; ``kind`` contrast (default) or triplet; ``fall``: weight of the hinge that lets
    an edit lower its region's cosine by `EDITED_FALL`."""

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        features = embed(model, batch, codec)
        same, copy = _cosines(features)
        kept, edited = _told(batch["design"])
        if kind == "triplet":
            parts = {"triplet": region_triplet(features, batch["design"])}
        else:
            # An unedited region of the copy must stay: pull its cosine to the original's towards 1 beyond
            # ranking alone.
            parts = {
                "contrast": region_contrast(features, batch["design"], temperature),
                "pull": 0.5 * ((1 - copy)[kept].mean() + (1 - same)[kept].mean()),
            }
        if fall and edited.any():
            parts["fall"] = fall * F.relu(EDITED_FALL - (same - copy))[edited].mean()
        return parts

    return loss


@torch.inference_mode()
def features_of(model: nn.Module, batch: dict[str, Tensor], codec: HeatmapCodec) -> Tensor:
    """`embed` without gradients, a piece at a time, on the processor."""
    device = next(model.parameters()).device
    pieces = [
        embed(model, {k: v[i : i + 32].to(device) for k, v in batch.items()}, codec).cpu()
        for i in range(0, len(batch["design"]), 32)
    ]
    return torch.cat(pieces)


def validation_batch(
    garments: Sequence[LabelledGarment], seed: int, config: PSNetConfig, rounds: int = 2
) -> dict[str, Tensor]:
    """Fixed samples of held-out garments, each ``rounds`` times; ``garment`` (n,) tells which one."""
    return batch_of(RetrievalSamples(garments, seed, config), rounds * len(garments))


def batch_of(samples: RetrievalSamples, count: int) -> dict[str, Tensor]:
    """The first ``count`` samples, and ``garment`` (count,) int64: which one each shows."""
    rows = [samples.sample(i) for i in range(count)]
    garment = torch.tensor([samples.shown(i) for i in range(count)])
    return {"garment": garment, **{k: torch.stack([row[k] for row in rows]) for k in rows[0]}}


@torch.inference_mode()
def retrieval_figures(model: nn.Module, batch: dict[str, Tensor], codec: HeatmapCodec) -> dict[str, float]:
    """``recall@1`` of the edited photograph by the mean of the three best regions among all validation
    photographs of other garments; ``kept`` / ``edited`` median cosine; ``auc`` of kept against edited;
    ``fall_untouched`` and, by region, ``fall_REGION`` where edited: how much lower a region's cosine is than
    that of another photograph of the same design, median."""
    features = features_of(model, batch, codec)
    design = batch["design"]
    visible = (design >= 0).float().unsqueeze(-1)
    f = features * visible
    cos = torch.einsum("qrd,xrd->qxr", f[:, 0], f[:, 2])
    score = cos.topk(3, dim=-1).values.mean(-1)
    # The same garment drawn twice is no stranger to itself.
    stranger = batch["garment"].unsqueeze(1) != batch["garment"].unsqueeze(0)
    rank = ((score > score.diagonal().unsqueeze(1)) & stranger).sum(1)
    other, own = _cosines(features)
    fall = other - own
    unedited, edited = _told(design)
    kept = own[(design[:, 0] == 0) & (design[:, 2] == 0)]
    changed = own[(design[:, 0] == 0) & (design[:, 2] == 1)]
    auc = (kept.unsqueeze(1) > changed.unsqueeze(0)).float().mean()
    by_region = {f"fall_{name}": float(fall[:, r][edited[:, r]].median()) for r, name in enumerate(REGIONS)}
    return {
        "recall@1": float((rank == 0).float().mean()),
        "recall@5": float((rank < 5).float().mean()),
        "kept": float(kept.median()),
        "edited": float(changed.median()),
        "auc": float(auc),
        "fall_untouched": float(fall[unedited].median()),
        **by_region,
    }


__all__ = [
    "EDITED_FALL",
    "RETRIEVAL_CAMERA",
    "RetrievalSamples",
    "batch_of",
    "drawn",
    "edited_regions",
    "embed",
    "features_of",
    "jittered",
    "mirror_subject",
    "region_contrast",
    "region_pictures",
    "region_triplet",
    "retrieval_figures",
    "retrieval_loss",
    "validation_batch",
]
