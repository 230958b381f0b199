"""Contact sheets: many photographs on one picture, with their labels drawn, to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from psnet.regions import Presence
from psnet.render.photo import Photograph

_COLOURS = ("#ff3b30", "#34c759", "#34c759", "#ffcc00", "#00b7ff")


def contact_sheet(
    photographs: Sequence[Photograph],
    columns: int = 8,
    tile: tuple[int, int] = (210, 280),
    labels: bool = True,
    captions: Sequence[str] = (),
) -> Image.Image:
    """Photographs on a grid of ``tile`` (w, h) px; region boxes and landmarks are drawn when ``labels``."""
    rows = -(-len(photographs) // columns)
    sheet = Image.new("RGB", (columns * tile[0], max(rows, 1) * tile[1]), "white")
    for k, photograph in enumerate(photographs):
        image = Image.fromarray(photograph.pixels)
        pen = ImageDraw.Draw(image)
        if labels:
            for region, box in enumerate(photograph.region_boxes):
                if photograph.presence[region] == Presence.PRESENT and not np.isnan(box[0]):
                    pen.rectangle(tuple(float(v) for v in box), outline=_COLOURS[region], width=2)
            for x, y, visibility in photograph.landmarks:
                fill = "#7CFC00" if visibility == 2 else "#ffa500"
                pen.ellipse((float(x) - 3, float(y) - 3, float(x) + 3, float(y) + 3), fill=fill)
        image.thumbnail((tile[0] - 4, tile[1] - 4))
        corner = (k % columns * tile[0], k // columns * tile[1])
        sheet.paste(image, corner)
        if k < len(captions):
            ImageDraw.Draw(sheet).text((corner[0] + 4, corner[1] + 4), captions[k], fill="#ff00ff")
    return sheet
