"""Copies of a design, as a copyist makes them: the same garment, one or two parts changed, or most of them.

Which parts are changed follows Table 1 of PS-Net, per group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from psnet.data.edits import PART_SHARES, PARTS
from psnet.render.design import (
    GRAPHICS,
    Design,
    Look,
    Piece,
    as_colour,
    look_distance,
    print_clearance,
    sample_collar,
    sample_colour,
    sample_graphic,
    sample_look,
    sample_sleeves,
)

RELATIONS: tuple[str, ...] = ("identical", "plagiarised", "derived")

# Kinds of edit per part, with how often each is tried.
KINDS: dict[str, dict[str, float]] = {
    "sleeves": {"pattern": 3, "colour": 3, "shorten": 2, "sleeve": 2},
    "collar": {"collar": 5, "pattern": 2, "colour": 3},
    "chest": {"logo": 4, "text": 2, "pattern": 3, "colour": 2, "mosaic": 1, "flip": 1.5},
    "waist": {"pattern": 3, "colour": 3, "logo": 1, "mosaic": 1, "shorten": 2, "hem": 1},
}
# Prints that look different in a mirror.
_HANDED = ("text", "number", "emblem", "stack", "picture")


def _recoloured(rng: np.random.Generator, look: Look) -> Look:
    """Other colours, the same pattern; the new main colour is clearly another one."""
    first = sample_colour(rng, [look.colours[0]])
    for _ in range(50):
        if np.linalg.norm(np.subtract(first, look.colours[0])) > 0.35:
            break
        first = sample_colour(rng, [look.colours[0]])
    others = tuple(sample_colour(rng, [first], vivid=True) for _ in look.colours[1:])
    return replace(look, colours=(first, *others))


def _repatterned(rng: np.random.Generator, look: Look) -> Look:
    for _ in range(50):
        new = sample_look(rng, avoid=[look], patterned=True)
        if look_distance(new, look) >= 1:
            return new
    raise AssertionError("patterns ran out")  # sample_look has fifteen patterns to choose from


def _mosaic(rng: np.random.Generator, look: Look) -> Look:
    base = np.array(look.colours[0])
    # Squares of a colour close to black or white would hardly differ.
    middle = as_colour(0.75 * base + 0.25 * np.array(sample_colour(rng, [look.colours[0]], vivid=True)))
    return Look("mosaic", (middle,), float(rng.uniform(0.06, 0.11)), 0.0, int(rng.integers(1 << 30)))


def _edit_look(rng: np.random.Generator, look: Look, kind: str) -> Look:
    return {"pattern": _repatterned, "colour": _recoloured, "mosaic": _mosaic}[kind](rng, look)


def _edit_sleeves(rng: np.random.Generator, design: Design, kind: str) -> Design:
    sleeves = design.sleeves
    assert sleeves is not None
    if kind == "shorten":
        length = sleeves.length * float(rng.uniform(0.42, 0.62))
        cuff = sleeves.cuff + 0.5 * max(0.34 - sleeves.cuff, 0.0)
        return replace(design, sleeves=replace(sleeves, length=round(length, 4), cuff=round(cuff, 4)))
    if kind == "sleeve":
        other = sample_sleeves(rng, design.category, sleeves.look, avoid=sleeves)
        assert other is not None
        # A new finish alone is hard to see; a visibly wider or longer sleeve comes with it.
        stretch = 1.35 if other.length < 0.6 else 0.72
        return replace(design, sleeves=replace(other, length=round(sleeves.length * stretch, 4)))
    return replace(design, sleeves=replace(sleeves, look=_edit_look(rng, sleeves.look, kind)))


def _edit_collar(rng: np.random.Generator, design: Design, kind: str) -> Design:
    collar = design.collar
    if kind == "collar":
        other = sample_collar(rng, design.category, collar.look, avoid=collar.kind)
        if other.kind != collar.kind:
            return replace(design, collar=other)
        kind = "colour"  # slings have one kind of collar
    return replace(design, collar=replace(collar, look=_edit_look(rng, collar.look, kind)))


def _edit_piece(rng: np.random.Generator, design: Design, part: str, kind: str) -> Piece:
    piece: Piece = getattr(design, part)
    if kind in ("logo", "text"):
        kinds = ("text",) if kind == "text" else tuple(g for g in GRAPHICS if g != "text")
        old = piece.graphic.kind if piece.graphic else ""
        if kind == "logo":
            kinds = tuple(g for g in kinds if g != old)
        clear = print_clearance(design.collar, design.silhouette) if part == "chest" else 0.0
        graphic = sample_graphic(rng, piece.look, part, kinds, clear)
        return replace(piece, graphic=replace(graphic, size=max(graphic.size, 0.42), x=0.0))
    if kind == "flip":
        assert piece.graphic is not None
        flipped = replace(piece.graphic, flipped=not piece.graphic.flipped, x=-piece.graphic.x)
        return replace(piece, graphic=flipped)
    return replace(piece, look=_edit_look(rng, piece.look, kind))


def _edit_chest(rng: np.random.Generator, design: Design, kind: str) -> Design:
    return replace(design, chest=_edit_piece(rng, design, "chest", kind))


def _edit_waist(rng: np.random.Generator, design: Design, kind: str) -> Design:
    if kind == "shorten":
        return replace(design, hem=replace(design.hem, cut=round(float(rng.uniform(0.35, 0.6)), 4)))
    if kind == "hem":
        kinds = [k for k in ("straight", "shirt", "rib", "ruffle", "pleats") if k != design.hem.kind]
        # The cut makes the new hem's outline plain to see.
        hem = replace(design.hem, kind=str(rng.choice(kinds)), cut=round(float(rng.uniform(0.12, 0.25)), 4))
        return replace(design, hem=hem)
    return replace(design, waist=_edit_piece(rng, design, "waist", kind))


_EDITS: dict[str, Callable[[np.random.Generator, Design, str], Design]] = {
    "sleeves": _edit_sleeves,
    "collar": _edit_collar,
    "chest": _edit_chest,
    "waist": _edit_waist,
}


def _kinds_of(design: Design, part: str) -> dict[str, float]:
    kinds = dict(KINDS[part])
    graphic = design.chest.graphic
    if part == "chest" and (graphic is None or graphic.kind not in _HANDED):
        del kinds["flip"]
    if part == "collar" and design.collar.kind == "straps":
        del kinds["collar"]
    return kinds


def sample_parts(rng: np.random.Generator, design: Design, relation: str) -> tuple[str, ...]:
    """The parts a copy of this relation changes: none, one or two (two in a quarter of the cases), or at
    least three."""
    if relation == "identical":
        return ()
    available = design.parts
    count = (
        int(rng.choice([1, 2], p=[0.75, 0.25]))
        if relation == "plagiarised"
        else int(rng.integers(3, len(available) + 1))
    )
    shares = np.array([PART_SHARES[design.group][PARTS.index(p)] for p in available])
    chosen = rng.choice(len(available), size=count, replace=False, p=shares / shares.sum())
    return tuple(available[i] for i in sorted(chosen))


def copy_design(
    design: Design,
    rng: np.random.Generator,
    relation: str = "plagiarised",
    parts: Sequence[str] | None = None,
) -> tuple[Design, tuple[str, ...], tuple[str, ...]]:
    """A copy of ``design``: the new design, the parts changed, and the kind of edit of each.

    ``relation``: identical, plagiarised (one or two parts) or derived (three or more); ``parts`` overrides
    which. Raises ValueError for an unknown relation, and for parts the design lacks or that do not fit the
    relation.
    """
    if relation not in RELATIONS:
        raise ValueError(f"unknown relation {relation!r}; known: {', '.join(RELATIONS)}")
    chosen = sample_parts(rng, design, relation) if parts is None else tuple(parts)
    fits = {"identical": (0, 0), "plagiarised": (1, 2), "derived": (3, len(PARTS))}[relation]
    if not fits[0] <= len(chosen) <= fits[1] or len(set(chosen)) != len(chosen):
        raise ValueError(f"a copy that is {relation} changes {fits[0]} to {fits[1]} parts, got {chosen}")
    if not set(chosen) <= set(design.parts):
        raise ValueError(f"{design.category} has the parts {design.parts}, got {chosen}")
    kinds = []
    for part in chosen:
        weights = _kinds_of(design, part)
        p = np.array(list(weights.values()))
        kind = str(rng.choice(list(weights), p=p / p.sum()))
        design = _EDITS[part](rng, design, kind)
        kinds.append(kind)
    return design, chosen, tuple(kinds)
