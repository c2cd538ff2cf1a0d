"""Draw README's picture of the bundled digits, each beside the labels that `classify --demo` gives it.

python figures/digits.py docs/digits.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mlx_convnextv2 import ImageClassifier
from mlx_convnextv2.demo import DEMO

DIGITS = (3, 7, 8)
SIDE, BAR, LINE, MARGIN = 150, 170, 34, 24  # pixels
INK, FILL, EMPTY, PAPER = "#24292f", "#0072b2", "#d0d7de", "white"


def draw() -> Image.Image:
    classifier = ImageClassifier(str(DEMO))
    paths = [DEMO / "images" / f"digit-{digit}.png" for digit in DIGITS]
    width = len(DIGITS) * (SIDE + BAR + 3 * MARGIN + 70)
    page = Image.new("RGB", (width, SIDE + 2 * MARGIN), PAPER)
    for column, (path, predictions) in enumerate(zip(paths, classifier(paths, top_k=4), strict=True)):
        left = column * (width // len(DIGITS)) + MARGIN
        with Image.open(path) as digit:
            page.paste(digit.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, MARGIN))
        _bars(ImageDraw.Draw(page), left + SIDE + MARGIN, predictions)
    return page


def _bars(pen: ImageDraw.ImageDraw, left: int, predictions: list[dict]) -> None:
    font = ImageFont.load_default(18)
    for row, prediction in enumerate(predictions):
        top = MARGIN + row * (SIDE - LINE) // (len(predictions) - 1)
        pen.text((left, top + LINE / 2), prediction["label"], INK, font, anchor="lm")
        pen.rectangle((left + 20, top + 8, left + 20 + BAR, top + LINE - 8), EMPTY)
        if prediction["score"] > 0.005:
            pen.rectangle((left + 20, top + 8, left + 20 + BAR * prediction["score"], top + LINE - 8), FILL)
        pen.text((left + BAR + 90, top + LINE / 2), f"{prediction['score']:.1%}", INK, font, anchor="rm")


if __name__ == "__main__":
    draw().save(Path(sys.argv[1]))
