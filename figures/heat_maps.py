"""Draw README's heat maps: what in two bundled digits speaks for their labels, alone and against another label.

python figures/heat_maps.py docs/heat_maps.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from mlx_convnextv2 import ImageClassifier
from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.heatmaps import explain_images, overlay

OTHERS = {8: "6", 3: "8"}  # each digit, and the label that it is compared with
LAYER = "stage1"  # the finest of the small model's maps, 8 x 8
SIDE, MARGIN = 210, 12  # pixels


def draw() -> Image.Image:
    classifier = ImageClassifier(str(DEMO))
    cells = []
    for digit, other in OTHERS.items():
        path = DEMO / "images" / f"digit-{digit}.png"
        with Image.open(path) as small:
            picture = small.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        cells.append(picture)
        for against in ("mean", other):
            (explanation,) = explain_images(classifier, [path], against=against, layer=LAYER)
            cells.append(overlay(picture, explanation.heat_map, legend=explanation.legend()))
    page = Image.new("RGB", (len(cells) * (SIDE + MARGIN) + MARGIN, SIDE + 2 * MARGIN), "white")
    for column, cell in enumerate(cells):
        page.paste(cell, (MARGIN + column * (SIDE + MARGIN), MARGIN))
    return page


if __name__ == "__main__":
    draw().save(Path(sys.argv[1]), optimize=True)
