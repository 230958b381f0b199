"""Pictures of ASEN: where each attribute is looked for (the paper's Figure 5), and what is found by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from psnet.data.attributes import AttributeRanking, read_attribute_image

_RIGHT, _WRONG, _QUERY, _INK, _PAPER = (0, 158, 115), (213, 94, 0), (0, 0, 0), (30, 30, 30), (255, 255, 255)
_WARM = np.array((230, 159, 0), np.float32)
_TILE, _GAP, _LABEL = 96, 4, 140


def attention_sheet(crops: Sequence[np.ndarray], attention: np.ndarray, names: Sequence[str]) -> Image.Image:
    """A row per attribute: each crop (side, side, 3), bright where its attention (n, attributes, h, w) is
    high."""
    pictures = [[Image.fromarray(crop).resize((_TILE, _TILE)) for crop in crops]]
    pictures += [[_lit(crop, attention[i, a]) for i, crop in enumerate(crops)] for a in range(len(names))]
    return _rows(["", *names], pictures)


def _lit(crop: np.ndarray, attention: np.ndarray) -> Image.Image:
    shown = Image.fromarray((255 * attention / attention.max()).astype(np.uint8))
    share = np.asarray(shown.resize((_TILE, _TILE), Image.Resampling.BICUBIC), np.float32)[..., None] / 255
    pixels = np.asarray(Image.fromarray(crop).resize((_TILE, _TILE)), np.float32)
    grey = 0.6 * pixels.mean(-1, keepdims=True)
    lit = grey * (1 - share) + (0.55 * pixels + 0.45 * _WARM) * share
    return Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))


def retrieval_sheet(
    ranking: AttributeRanking, embeddings: np.ndarray, seed: int = 0, best: int = 8, of_each: int = 2
) -> Image.Image:
    """Rows of a query and its best candidates, ``of_each`` attribute queries of different values; frames:
    green the query's value, red another."""
    rng = np.random.default_rng(seed)
    names, pictures = [], []
    for a, name in enumerate(ranking.images.meta.names):
        asked = ranking.queries[ranking.queries[:, 1] == a]
        offered = ranking.candidates[ranking.candidates[:, 1] == a]
        if not len(asked) or not len(offered):
            continue
        values = rng.permutation(np.unique(asked[:, 2]))[:of_each]
        for value in values:
            query = rng.choice(asked[asked[:, 2] == value][:, 0])
            cosines = embeddings[offered[:, 0], a] @ embeddings[query, a]
            found = offered[np.argsort(-cosines, kind="stable")[:best]]
            row = [_tile(ranking, query, _QUERY)]
            row += [_tile(ranking, i, _RIGHT if v == value else _WRONG) for i, _, v in found]
            names.append(f"{name}: {ranking.images.meta.values[a][value]}")
            pictures.append(row)
    return _rows(names, pictures)


def _tile(ranking: AttributeRanking, image: int, colour: tuple[int, int, int]) -> Image.Image:
    out = Image.new("RGB", (_TILE, _TILE), _PAPER)
    ImageDraw.Draw(out).rectangle([0, 0, _TILE - 1, _TILE - 1], outline=colour, width=3)
    picture = read_attribute_image(ranking.images.paths[image])
    picture.thumbnail((_TILE - 8, _TILE - 8))
    out.paste(picture, ((_TILE - picture.width) // 2, (_TILE - picture.height) // 2))
    return out


def _rows(names: Sequence[str], pictures: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Pictures of ``_TILE`` px side by side, each row with its name on the left."""
    width = _LABEL + max(len(row) for row in pictures) * (_TILE + _GAP)
    out = Image.new("RGB", (width, len(pictures) * (_TILE + _GAP) + _GAP), _PAPER)
    draw = ImageDraw.Draw(out)
    for r, (name, row) in enumerate(zip(names, pictures, strict=True)):
        y = _GAP + r * (_TILE + _GAP)
        text = name.replace("_", " ").replace(": ", ":\n")
        draw.multiline_text((6, y + _TILE // 2), text, _INK, ImageFont.load_default(size=12), "lm")
        for k, picture in enumerate(row):
            out.paste(picture, (_LABEL + k * (_TILE + _GAP), y))
    return out
