"""Landmarks and regions of labelled photographs, through the whole chain or from true garment boxes.

The normalised error is a point's distance over the longer side of the garment's true box, of visible points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from psnet.data.photographs import LabelledGarment
from psnet.evaluation import paper
from psnet.evaluation.detection import Photograph, best_overlap, overlaps, predict_all
from psnet.evaluation.intervals import Estimate, bootstrap_mean, wilson
from psnet.evaluation.tables import Cell, Table
from psnet.predictor import Garment, Predictor
from psnet.regions import REGIONS, Presence
from psnet.taxonomy import Taxonomy

PARTS: dict[str, tuple[str, ...]] = {
    "collar": ("left_collar", "right_collar", "collar_bottom"),
    "armpits": ("left_armpit", "right_armpit"),
    "sleeves": ("left_sleeve", "right_sleeve"),
    "waistline": ("left_waistline", "right_waistline"),
    "hem": ("left_hem", "right_hem"),
}
_VISIBLE = 2
# A garment found with less overlap is another one.
_SAME = 0.3


@dataclass(frozen=True)
class LandmarkFigures:
    """``found``: share of labelled garments with a detection on them; the rest stand on those.

    ``error``: by part and "overall", means over garments; ``iou``: of region boxes, by region and "overall",
    where the garment has the region; ``presence``: by region and "overall", present and absent told right.
    """

    found: Estimate
    error: Mapping[str, Estimate]
    iou: Mapping[str, Estimate]
    presence: Mapping[str, Estimate]


def found_garments(
    predictor: Predictor, shown: Sequence[Photograph], *, true_boxes: bool
) -> list[tuple[LabelledGarment, Garment | None]]:
    """Every labelled garment with what the chain says of it: the best overlapping detection, None when there
    is none, or, with ``true_boxes``, what the landmark branch sees in its true box."""
    if true_boxes:
        pairs = [(p.pixels, garment) for p in shown for garment in p.garments]
        said: list[Garment] = []
        for start in range(0, len(pairs), 16):
            chunk = pairs[start : start + 16]
            said += predictor.describe([pixels for pixels, _ in chunk], np.stack([g.box for _, g in chunk]))
        return [(garment, one) for (_, garment), one in zip(pairs, said, strict=True)]
    out: list[tuple[LabelledGarment, Garment | None]] = []
    for photograph, garments in zip(shown, predict_all(predictor, [p.pixels for p in shown]), strict=True):
        for garment in photograph.garments:
            best = best_overlap(garments, garment.box)
            out.append((garment, best[0] if best is not None and best[1] >= _SAME else None))
    return out


def landmark_figures(
    pairs: Sequence[tuple[LabelledGarment, Garment | None]], seed: int = 0
) -> LandmarkFigures:
    """Figures of labelled garments with what was said of them."""
    names = Taxonomy.load("clothing11").landmarks
    places = {part: [names.index(n) for n in of_part] for part, of_part in PARTS.items()}
    errors: dict[str, list[float]] = {part: [] for part in (*PARTS, "overall")}
    ious: dict[str, list[float]] = {name: [] for name in (*REGIONS, "overall")}
    told: dict[str, list[bool]] = {name: [] for name in REGIONS}
    found = [(true, said) for true, said in pairs if said is not None]
    for true, said in found:
        distance = np.linalg.norm(said.landmarks[:, :2] - true.landmarks[:, :2], axis=-1)
        distance /= max(true.box[2:] - true.box[:2])
        visible = true.landmarks[:, 2] == _VISIBLE
        for part, at in places.items():
            if visible[at].any():
                errors[part].append(float(distance[at][visible[at]].mean()))
        if visible.any():
            errors["overall"].append(float(distance[visible].mean()))
        iou = overlaps(said.region_boxes, np.nan_to_num(true.region_boxes)).diagonal()
        for r, name in enumerate(REGIONS):
            told[name].append(bool((said.presence[r] == Presence.PRESENT) == (not true.absent[r])))
            if not true.absent[r]:
                ious[name].append(float(iou[r]))
        if not true.absent.all():
            ious["overall"].append(float(iou[~true.absent].mean()))
    every = [right for rights in told.values() for right in rights]
    return LandmarkFigures(
        wilson(len(found), len(pairs)),
        {part: bootstrap_mean(values, seed) for part, values in errors.items()},
        {name: bootstrap_mean(values, seed) for name, values in ious.items()},
        {
            **{name: wilson(sum(rights), len(rights)) for name, rights in told.items()},
            "overall": wilson(sum(every), len(every)),
        },
    )


def error_table(title: str, note: str, columns: Mapping[str, LandmarkFigures]) -> Table:
    """A row per part, a column per way of measuring, beside the paper's."""
    rows: list[tuple[Cell, ...]] = [
        (part, *(figures.error[part] for figures in columns.values()), paper.LANDMARKS.get(part))
        for part in (*PARTS, "overall")
    ]
    rows.append(("garments found", *(figures.found for figures in columns.values()), None))
    return Table(title, note, ("part", *columns, "paper: DeepFashion"), tuple(rows))


def region_table(title: str, note: str, columns: Mapping[str, LandmarkFigures]) -> Table:
    """A row per region: overlap of its box and whether its presence is told right."""
    rows: list[tuple[Cell, ...]] = []
    for name in (*REGIONS, "overall"):
        cells: list[Cell] = [name]
        for figures in columns.values():
            cells += [figures.iou[name], figures.presence[name]]
        rows.append(tuple(cells))
    heads = [f"{column}: {what}" for column in columns for what in ("IoU", "presence right")]
    return Table(title, note, ("region", *heads), tuple(rows))
