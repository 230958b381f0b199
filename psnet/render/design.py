"""Garment designs as objects: everything that decides how a garment looks before anyone photographs it.

Lengths are in units of the garment's width between the armpits, x to the right from the middle, y downwards
from the high point of the shoulder (the side of the neck).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from psnet.data.edits import PARTS
from psnet.taxonomy import TORSO_CATEGORIES, Taxonomy

Colour = tuple[float, float, float]

PATTERNS: tuple[str, ...] = (
    "solid",
    "melange",
    "hstripes",
    "vstripes",
    "gingham",
    "plaid",
    "dots",
    "floral",
    "camouflage",
    "gradient",
    "chevron",
    "argyle",
    "leopard",
    "mosaic",
    "marble",
    "blocks",
)
GRAPHICS: tuple[str, ...] = ("text", "emblem", "number", "picture", "blot", "star", "stack", "animal")
FABRICS: dict[str, tuple[float, float, float]] = {  # depth of folds, grain of the surface, shine
    "jersey": (1.0, 0.5, 0.0),
    "pique": (0.8, 0.9, 0.0),
    "knit": (0.7, 1.6, 0.0),
    "denim": (0.7, 1.5, 0.0),
    "satin": (1.4, 0.1, 0.7),
    "leather": (1.1, 0.4, 0.9),
    "linen": (1.3, 1.0, 0.0),
    "poplin": (1.2, 0.2, 0.1),
    "fleece": (0.6, 2.0, 0.0),
    "puffer": (0.6, 0.3, 0.4),
    "wool": (0.5, 1.6, 0.0),
}

# (colour, how common); about half of real wardrobes are black, white, grey or navy.
PALETTE: dict[str, tuple[Colour, float]] = {
    "black": ((0.09, 0.09, 0.10), 9),
    "white": ((0.93, 0.93, 0.92), 8),
    "grey": ((0.55, 0.56, 0.58), 5),
    "light grey": ((0.74, 0.75, 0.76), 3),
    "navy": ((0.12, 0.15, 0.28), 7),
    "charcoal": ((0.30, 0.31, 0.34), 4),
    "red": ((0.72, 0.10, 0.12), 3),
    "burgundy": ((0.48, 0.08, 0.16), 2),
    "blue": ((0.20, 0.36, 0.66), 3),
    "light blue": ((0.52, 0.68, 0.86), 3),
    "beige": ((0.88, 0.83, 0.72), 3),
    "tan": ((0.71, 0.58, 0.43), 2),
    "brown": ((0.40, 0.28, 0.20), 2),
    "olive": ((0.33, 0.37, 0.24), 2),
    "dark green": ((0.15, 0.38, 0.27), 2),
    "rose": ((0.93, 0.74, 0.78), 3),
    "pink": ((0.86, 0.35, 0.50), 1.5),
    "mustard": ((0.90, 0.72, 0.20), 1.5),
    "orange": ((0.87, 0.44, 0.14), 1.2),
    "purple": ((0.42, 0.27, 0.52), 1.2),
    "lilac": ((0.72, 0.66, 0.84), 1.2),
    "teal": ((0.16, 0.52, 0.56), 1.2),
    "mint": ((0.58, 0.80, 0.70), 1.2),
    "steel blue": ((0.36, 0.48, 0.62), 2.5),
}


@dataclass(frozen=True)
class Look:
    """What a piece of cloth shows: a pattern, its colours, its period, its angle (radians), and a seed for
    the rest."""

    pattern: str = "solid"
    colours: tuple[Colour, ...] = ((0.5, 0.5, 0.5),)
    scale: float = 0.1
    angle: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Graphic:
    """A print on top of the cloth, ``size`` wide, centred ``x`` from the middle; its upper edge lies ``y``
    below the border to the chest on the waist, and below `PRINT_ABOVE_ARMPIT` on the chest."""

    kind: str
    colours: tuple[Colour, ...]
    size: float
    x: float = 0.0
    y: float = 0.2
    seed: int = 0
    text: str = ""
    flipped: bool = False


@dataclass(frozen=True)
class Silhouette:
    """Half widths at the shoulder, waist and hem; heights of shoulder end, armpit, waist and hem."""

    shoulder_x: float
    shoulder_y: float
    armpit_y: float
    waist_x: float
    waist_y: float
    hem_x: float
    length: float


@dataclass(frozen=True)
class Collar:
    """``kind``: round, boat, v, square, turtle, polo, shirt, lapel, hood, stand, straps. ``neck_x`` half
    width of the neckline, ``depth`` of its lowest point, ``band`` width of the rib, strap or collar wing."""

    kind: str
    neck_x: float
    depth: float
    band: float
    look: Look


@dataclass(frozen=True)
class Sleeves:
    """``length`` along the outer edge, ``cuff`` width, ``finish``: plain, rib, rolled, puff, bell, band."""

    length: float
    cuff: float
    finish: str
    look: Look


@dataclass(frozen=True)
class Piece:
    """The cloth of chest or waist: look, print and pocket ("", chest, kangaroo, side, flap)."""

    look: Look
    graphic: Graphic | None = None
    pocket: str = ""


@dataclass(frozen=True)
class Hem:
    """``kind``: straight, shirt, rib, slit, ruffle, dip, pleats. ``cut``: share of the waist part cut off."""

    kind: str
    drop: float = 0.03
    cut: float = 0.0


@dataclass(frozen=True)
class Closure:
    """``kind``: none, placket (short, buttons), buttons, zip, open."""

    kind: str = "none"
    colour: Colour = (0.9, 0.9, 0.9)
    count: int = 6
    gap: float = 0.0


@dataclass(frozen=True)
class Design:
    """One garment design. ``sleeves`` is None for vests and slings; ``belt``: "", seam, belt, elastic."""

    category: str
    silhouette: Silhouette
    collar: Collar
    sleeves: Sleeves | None
    chest: Piece
    waist: Piece
    hem: Hem
    closure: Closure
    fabric: str
    lining: Colour
    thread: Colour | None = None
    belt: str = ""
    seed: int = 0
    yoke: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts this design has."""
        return PARTS if self.sleeves else PARTS[1:]

    @property
    def is_dress(self) -> bool:
        return self.category.endswith("dress")

    @property
    def is_outwear(self) -> bool:
        return self.category.endswith("outwear")

    @property
    def split_y(self) -> float:
        """Height of the border between chest and waist: the waist on dresses, half way from armpit to hem
        else."""
        s = self.silhouette
        return s.waist_y if self.is_dress else 0.5 * (s.armpit_y + s.length)

    @property
    def length(self) -> float:
        """Height of the hem, shortened or not."""
        return self.silhouette.length - self.hem.cut * (self.silhouette.length - self.split_y)

    @property
    def group(self) -> str:
        """PS-Net's group: T-shirts, tops, outwear or dress."""
        return Taxonomy.load("deepfashion2").category(self.category).group or ""


def as_colour(values: np.ndarray) -> Colour:
    """Three floats, clipped to what cloth reflects and rounded, so that designs compare and print well."""
    red, green, blue = (round(float(v), 4) for v in np.clip(values, 0.03, 0.97))
    return (red, green, blue)


def sample_colour(
    rng: np.random.Generator, avoid: Sequence[Colour] = (), vivid: bool = False, away: float = 0.3
) -> Colour:
    """A colour of real clothes, jittered; at least ``away`` (L2, RGB in 0…1) from those in ``avoid``."""
    colours = [c for c, _ in PALETTE.values()]
    weights = np.array([w for _, w in PALETTE.values()])
    if vivid:
        weights = weights * [1.0 if max(c) - min(c) > 0.25 else 0.3 for c in colours]
    for _ in range(20):
        base = np.array(colours[int(rng.choice(len(colours), p=weights / weights.sum()))])
        colour = np.clip(base + rng.normal(0, 0.025, 3) + rng.normal(0, 0.03), 0.03, 0.97)
        if all(np.linalg.norm(colour - np.array(a)) > away for a in avoid):
            break
    return as_colour(colour)


def colour_name(colour: Colour) -> str:
    """The palette's nearest name."""
    return min(PALETTE, key=lambda name: float(np.linalg.norm(np.subtract(PALETTE[name][0], colour))))


_PATTERN_WEIGHTS: dict[str, float] = {
    "solid": 48,
    "melange": 9,
    "hstripes": 10,
    "vstripes": 2,
    "gingham": 2,
    "plaid": 4,
    "dots": 4,
    "floral": 7,
    "camouflage": 1.5,
    "gradient": 1,
    "chevron": 1,
    "argyle": 0.7,
    "leopard": 1,
    "mosaic": 0.5,
    "marble": 2,
    "blocks": 1,
}


def sample_look(
    rng: np.random.Generator,
    avoid: Sequence[Look] = (),
    patterned: bool = False,
    colour: Colour | None = None,
) -> Look:
    """A look unlike those in ``avoid`` (another pattern or a clearly different colour); ``patterned`` rules
    out plain ones."""
    weights = dict(_PATTERN_WEIGHTS)
    if patterned:
        weights |= {
            "solid": 0,
            "melange": 0,
            "hstripes": 6,
            "dots": 5,
            "camouflage": 4,
            "leopard": 3,
            "chevron": 4,
            "blocks": 3,
            "marble": 4,
        }
    names, p = list(weights), np.array(list(weights.values()))
    pattern = names[int(rng.choice(len(names), p=p / p.sum()))]
    first = colour or sample_colour(rng, [look.colours[0] for look in avoid])
    colours = [first]
    for _ in range(int(rng.integers(1, 4))):
        colours.append(sample_colour(rng, colours[:1], vivid=True))
    scales = {
        "hstripes": (0.03, 0.22),
        "vstripes": (0.04, 0.2),
        "gingham": (0.04, 0.12),
        "plaid": (0.14, 0.34),
        "dots": (0.05, 0.2),
        "floral": (0.09, 0.28),
        "camouflage": (0.12, 0.3),
        "gradient": (0.8, 1.6),
        "chevron": (0.08, 0.24),
        "argyle": (0.14, 0.3),
        "leopard": (0.06, 0.14),
        "mosaic": (0.05, 0.12),
        "marble": (0.3, 0.8),
        "blocks": (0.1, 0.3),
    }
    low, high = scales.get(pattern, (0.1, 0.2))
    # Stripes and checks follow the thread of the cloth; prints may lie at any angle.
    angle = (
        float(rng.uniform(-0.5, 0.5))
        if pattern in ("floral", "camouflage", "leopard", "marble", "dots")
        else 0.0
    )
    scale = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    return Look(pattern, tuple(colours), round(scale, 4), round(angle, 3), int(rng.integers(1 << 30)))


_WORDS = (
    "NORTH SHORE",
    "BONJOUR",
    "EST. 1987",
    "ATHLETIC DEPT",
    "good vibes",
    "PARIS",
    "BROOKLYN",
    "Wild Heart",
    "ORIGINAL",
    "SUMMER",
    "Ocean Drive",
    "NO LIMITS",
    "TEAM",
    "hello",
    "LIBERTY",
    "Riverside",
    "MOUNTAIN CLUB",
    "1994",
    "STAY COOL",
    "ROCK & ROLL",
    "amour",
    "SPORT",
    "WEST COAST",
    "DREAM",
    "smile",
    "EXPLORE",
    "COLLEGE",
    "FUTURE",
    "Be Kind",
    "RACING",
    "GARAGE",
    "SURF",
    "VINTAGE",
    "LUNA",
)


def sample_text(rng: np.random.Generator) -> str:
    """One to three lines: known words, or letters nobody has used before."""
    lines = []
    for _ in range(int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))):
        if rng.random() < 0.65:
            lines.append(str(rng.choice(_WORDS)))
        else:
            lines.append("".join(rng.choice(list("ABCDEFGHIKLMNOPRSTUVWXYZ"), int(rng.integers(3, 8)))))
    return "\n".join(lines)


def sample_graphic(
    rng: np.random.Generator,
    look: Look,
    part: str = "chest",
    kinds: Sequence[str] = GRAPHICS,
    clear: float = 0.0,
) -> Graphic:
    """A print that stands out against ``look``, at least ``clear`` below the top of its part's place."""
    kind = str(rng.choice(list(kinds)))
    small = rng.random() < 0.22 and kind in ("emblem", "star", "text", "animal")
    size = float(rng.uniform(0.1, 0.18) if small else rng.uniform(0.3, 0.62))
    colours = [sample_colour(rng, look.colours[:1], vivid=bool(rng.random() < 0.6), away=0.55)]
    for _ in range(2):
        colours.append(sample_colour(rng, [colours[0]], vivid=True))
    x, y = 0.0, clear + float(rng.uniform(0.0, 0.07))
    if small:
        x = float(rng.choice([-0.22, 0.22]))
    if part == "waist":
        x, y, size = float(rng.choice([-0.2, 0.0, 0.2])), float(rng.uniform(0.04, 0.1)), min(size, 0.5)
    return Graphic(
        kind, tuple(colours), round(size, 4), x, round(y, 4), int(rng.integers(1 << 30)), sample_text(rng)
    )


# A chest print's place is counted from here above the armpits, whatever the collar: another collar moves no
# print.
PRINT_ABOVE_ARMPIT = 0.2


def print_clearance(collar: Collar, silhouette: Silhouette) -> float:
    """How far below its usual place a chest print must start to stay clear of the neckline."""
    return max(0.0, collar.depth + 0.05 - (silhouette.armpit_y - PRINT_ABOVE_ARMPIT))


_COLLARS: dict[str, dict[str, float]] = {
    "short_sleeve_top": {"round": 55, "v": 14, "polo": 16, "shirt": 8, "boat": 7},
    "long_sleeve_top": {"round": 38, "v": 12, "turtle": 10, "hood": 16, "shirt": 14, "boat": 5, "polo": 5},
    "short_sleeve_outwear": {"shirt": 45, "hood": 15, "lapel": 25, "v": 15},
    "long_sleeve_outwear": {"hood": 27, "shirt": 24, "lapel": 24, "stand": 20, "round": 5},
    "vest": {"round": 45, "v": 25, "stand": 15, "square": 15},
    "sling": {"straps": 1},
    "short_sleeve_dress": {"round": 50, "v": 22, "shirt": 10, "boat": 12, "square": 6},
    "long_sleeve_dress": {"round": 48, "v": 24, "shirt": 12, "turtle": 10, "boat": 6},
    "vest_dress": {"round": 48, "v": 28, "square": 14, "boat": 10},
    "sling_dress": {"straps": 1},
}


def sample_collar(rng: np.random.Generator, category: str, look: Look, avoid: str = "") -> Collar:
    """A collar that the category wears, of another kind than ``avoid`` where it has one."""
    weights = {k: w for k, w in _COLLARS[category].items() if k != avoid} or _COLLARS[category]
    p = np.array(list(weights.values()))
    kind = list(weights)[int(rng.choice(len(weights), p=p / p.sum()))]
    ranges: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
        "round": ((0.17, 0.24), (0.13, 0.26), (0.025, 0.05)),
        "boat": ((0.26, 0.33), (0.07, 0.12), (0.015, 0.03)),
        "v": ((0.16, 0.22), (0.28, 0.48), (0.02, 0.045)),
        "square": ((0.22, 0.28), (0.18, 0.3), (0.015, 0.03)),
        "turtle": ((0.17, 0.21), (0.05, 0.09), (0.12, 0.26)),
        "polo": ((0.16, 0.19), (0.1, 0.14), (0.1, 0.13)),
        "shirt": ((0.15, 0.19), (0.1, 0.16), (0.12, 0.17)),
        "lapel": ((0.15, 0.19), (0.45, 0.75), (0.15, 0.24)),
        "hood": ((0.19, 0.24), (0.1, 0.18), (0.36, 0.5)),
        "stand": ((0.17, 0.21), (0.08, 0.13), (0.08, 0.14)),
        "straps": ((0.22, 0.3), (0.16, 0.3), (0.02, 0.09)),
    }
    x, depth, band = (round(float(rng.uniform(*r)), 4) for r in ranges[kind])
    return Collar(kind, x, depth, band, look)


def sample_sleeves(
    rng: np.random.Generator, category: str, look: Look, avoid: Sleeves | None = None
) -> Sleeves | None:
    """Sleeves that the category wears; unlike ``avoid`` in finish and clearly in cuff or length."""
    if category.startswith(("vest", "sling")):
        return None
    long = category.startswith("long")
    dress = category.endswith("dress")
    finishes = (
        ["plain", "rib", "band", "bell", "puff"] if long else ["plain", "rib", "rolled", "puff", "bell"]
    )
    weights = np.array(
        [4, 3, 3, 1 + dress, 1 + dress] if long else [6, 2, 1, 0.5 + dress, 0.5 + dress], float
    )
    if avoid is not None:
        weights[[f == avoid.finish for f in finishes]] = 0
    finish = str(rng.choice(finishes, p=weights / weights.sum()))
    length = float(
        rng.uniform(1.05, 1.35)
        if long and rng.random() < 0.87
        else rng.uniform(0.75, 0.95)
        if long
        else rng.uniform(0.24, 0.5)
    )
    cuff = float(rng.uniform(0.17, 0.23) if long else rng.uniform(0.29, 0.36))
    if finish == "bell":
        cuff *= 1.6 if long else 1.25
    elif finish in ("rib", "puff"):
        cuff *= 0.85
    return Sleeves(round(length, 4), round(cuff, 4), finish, look)


_FABRICS: dict[str, tuple[tuple[str, float], ...]] = {
    "T-shirts": (("jersey", 8), ("pique", 2), ("linen", 1), ("poplin", 1)),
    "tops": (("jersey", 5), ("knit", 4), ("fleece", 2), ("poplin", 2), ("satin", 0.7), ("linen", 1)),
    "outwear": (("denim", 3), ("leather", 2), ("wool", 3), ("puffer", 3), ("poplin", 2), ("fleece", 2)),
    "dress": (("jersey", 4), ("poplin", 4), ("satin", 2), ("linen", 2), ("knit", 1), ("denim", 0.5)),
}
# How often each category is met among the torso garments of a second-hand catalogue.
_CATEGORY_WEIGHTS = (26, 20, 4, 20, 6, 4, 9, 6, 6, 4)


_DENIM: tuple[Colour, ...] = (
    (0.16, 0.22, 0.36), (0.36, 0.48, 0.62), (0.55, 0.66, 0.78), (0.1, 0.1, 0.12), (0.85, 0.84, 0.8),
)  # fmt: skip


def _cloth(rng: np.random.Generator, fabric: str) -> Look:
    if fabric == "denim":
        base = np.array(_DENIM[int(rng.integers(len(_DENIM)))])
        return Look("solid", (as_colour(base + rng.normal(0, 0.03)),))
    look = sample_look(rng)
    if fabric in ("leather", "puffer") and look.pattern not in ("solid", "camouflage", "marble"):
        look = Look("solid", look.colours[:1])
    return look


def sample_design(rng: np.random.Generator, category: str | None = None) -> Design:
    """A random design, of ``category`` or of one drawn by how common it is. Raises ValueError for other
    categories."""
    if category is None:
        p = np.array(_CATEGORY_WEIGHTS, float)
        category = TORSO_CATEGORIES[int(rng.choice(len(TORSO_CATEGORIES), p=p / p.sum()))]
    if category not in TORSO_CATEGORIES:
        raise ValueError(f"{category!r} is no torso category; known: {', '.join(TORSO_CATEGORIES)}")
    group = Taxonomy.load("deepfashion2").category(category).group
    assert group is not None
    dress, outwear = category.endswith("dress"), category.endswith("outwear")
    names, weights = zip(*_FABRICS[group], strict=True)
    fabric = str(rng.choice(names, p=np.array(weights) / sum(weights)))
    body = _cloth(rng, fabric)
    accent = Look("solid", (sample_colour(rng, [body.colours[0]]),))

    armpit = float(rng.uniform(0.44, 0.56))
    if dress:
        length = float(rng.uniform(1.7, 2.75))
        waist_y = armpit + float(rng.uniform(0.34, 0.5))
        waist_x, hem_x = float(rng.uniform(0.34, 0.47)), float(rng.uniform(0.46, 0.95))
    else:
        length = float(
            rng.uniform(1.2, 1.55) if not outwear or rng.random() < 0.7 else rng.uniform(1.55, 2.1)
        )
        if category == "sling" or rng.random() < 0.08:
            length = float(rng.uniform(1.0, 1.25))
        waist_y = armpit + 0.6 * (length - armpit)
        waist_x = float(rng.uniform(0.43, 0.51))
        hem_x = float(np.clip(waist_x + rng.normal(0.03, 0.035), 0.42, 0.62))
    sleeveless = category.startswith(("vest", "sling"))
    shoulder_x = float(rng.uniform(0.33, 0.4) if sleeveless else rng.uniform(0.42, 0.5))
    silhouette = Silhouette(
        *(
            round(v, 4)
            for v in (shoulder_x, float(rng.uniform(0.07, 0.16)), armpit, waist_x, waist_y, hem_x, length)
        )
    )

    collar = sample_collar(rng, category, accent if rng.random() < 0.16 else body)
    sleeves = sample_sleeves(rng, category, accent if rng.random() < 0.1 else body)
    waist_look = body
    if (dress and rng.random() < 0.22) or rng.random() < 0.05:
        waist_look = sample_look(rng, avoid=[body])
    printed = {"T-shirts": 0.5, "tops": 0.36, "outwear": 0.08, "dress": 0.06}[group]
    if body.pattern not in ("solid", "melange", "gradient", "hstripes") or collar.kind in (
        "shirt",
        "lapel",
        "straps",
    ):
        printed *= 0.15
    clear = print_clearance(collar, silhouette)
    graphic = sample_graphic(rng, body, clear=clear) if rng.random() < printed else None

    if outwear:
        kind = (
            "open"
            if rng.random() < 0.25
            else "zip"
            if collar.kind in ("hood", "stand", "round")
            else "buttons"
        )
        closure = Closure(
            kind, sample_colour(rng), int(rng.integers(2, 8)), round(float(rng.uniform(0.06, 0.3)), 3)
        )
    elif collar.kind == "polo":
        closure = Closure("placket", (0.9, 0.9, 0.88), int(rng.integers(2, 4)))
    elif collar.kind == "shirt" or (collar.kind in ("v", "round") and rng.random() < 0.1):
        closure = Closure(
            "buttons",
            (0.92, 0.92, 0.9) if rng.random() < 0.7 else sample_colour(rng),
            int(rng.integers(5, 9)),
        )
    else:
        closure = Closure()
    if category == "vest" and collar.kind == "stand":
        closure = Closure("zip", sample_colour(rng))
    chest_pocket = (
        "chest" if (collar.kind in ("shirt", "polo") and rng.random() < 0.5) or rng.random() < 0.06 else ""
    )
    if outwear and rng.random() < 0.4:
        chest_pocket = "flap"
    waist_pocket = "kangaroo" if collar.kind == "hood" and not outwear and rng.random() < 0.7 else ""
    if outwear and rng.random() < 0.75:
        waist_pocket = "side"
    hems, hem_weights = zip(
        *{
            "T-shirts": {"straight": 8, "shirt": 1, "dip": 1},
            "tops": {"straight": 5, "rib": 4, "shirt": 2, "slit": 1},
            "outwear": {"straight": 5, "rib": 3, "shirt": 1},
            "dress": {"straight": 5, "ruffle": 2, "dip": 1, "pleats": 2, "slit": 1},
        }[group].items(),
        strict=True,
    )
    hem = Hem(
        str(rng.choice(hems, p=np.array(hem_weights) / sum(hem_weights))),
        round(float(rng.uniform(0.01, 0.05)), 4),
    )
    belt = str(rng.choice(["", "seam", "belt", "elastic"], p=[0.3, 0.35, 0.15, 0.2])) if dress else ""
    if outwear and silhouette.length > 1.7 and rng.random() < 0.3:
        belt = "belt"
    lining = sample_colour(rng)
    if not outwear or rng.random() < 0.5:
        lining = as_colour(0.62 * np.array(body.colours[0]))
    thread: Colour | None = None
    if fabric == "denim" and rng.random() < 0.8:
        thread = (0.78, 0.55, 0.25)
    elif rng.random() < 0.08:
        thread = sample_colour(rng)
    return Design(
        category=category,
        silhouette=silhouette,
        collar=collar,
        sleeves=sleeves,
        chest=Piece(body, graphic, chest_pocket),
        waist=Piece(waist_look, None, waist_pocket),
        hem=hem,
        closure=closure,
        fabric=fabric,
        lining=lining,
        thread=thread,
        belt=belt,
        seed=int(rng.integers(1 << 30)),
        yoke=bool(collar.kind == "shirt" and rng.random() < 0.5),
    )


def look_distance(a: Look, b: Look) -> float:
    """0 for the same look … 1 for looks nobody would confuse: other pattern, or main colours far apart."""
    colour = float(np.linalg.norm(np.subtract(a.colours[0], b.colours[0])))
    if a.pattern != b.pattern and {a.pattern, b.pattern} != {"solid", "melange"}:
        return 1.0
    pattern = 0.0
    if a.pattern not in ("solid", "melange"):
        second = float(np.linalg.norm(np.subtract(a.colours[-1], b.colours[-1])))
        pattern = abs(float(np.log(a.scale / b.scale))) + second + (0.2 if a.seed != b.seed else 0.0)
    return min(1.0, colour / 0.3 + pattern)


def design_distance(a: Design, b: Design) -> float:
    """How many of the parts sleeves, collar, chest and waist clearly differ, 0 … 4, partial differences
    included.

    A part that only one of the designs has counts 1; one that neither has counts as the mean of the others.
    """

    def differ(look_a: Look, look_b: Look, shape: float) -> float:
        return min(1.0, look_distance(look_a, look_b) + shape)

    scores = [
        differ(
            a.collar.look,
            b.collar.look,
            1.0 if a.collar.kind != b.collar.kind else 2 * abs(a.collar.depth - b.collar.depth),
        )
    ]
    for x, y in ((a.chest, b.chest), (a.waist, b.waist)):
        same_print = x.graphic == y.graphic
        scores.append(
            differ(x.look, y.look, (0.0 if same_print else 1.0) + (0.3 if x.pocket != y.pocket else 0.0))
        )
    scores[2] = min(
        1.0,
        scores[2]
        + 2 * abs(a.silhouette.length - b.silhouette.length)
        + (0.3 if a.hem.kind != b.hem.kind else 0.0),
    )
    if a.sleeves and b.sleeves:
        shape = 2 * abs(a.sleeves.length - b.sleeves.length) + (
            0.3 if a.sleeves.finish != b.sleeves.finish else 0.0
        )
        scores.append(differ(a.sleeves.look, b.sleeves.look, shape))
    elif a.sleeves or b.sleeves:
        scores.append(1.0)
    return 4.0 * sum(scores) / len(scores)
