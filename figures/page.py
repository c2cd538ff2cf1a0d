"""Take README's picture of the page of `serve --demo`, in headless Chromium: one digit and its heat map.

python figures/page.py docs/page.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from mlx_convnextv2 import ImageClassifier
from mlx_convnextv2.demo import DEMO

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "serving"))
from browser import Browser
from serving_client import serving

WIDTH, HEIGHT = 900, 766  # pixels
DIGITS = (3, 8)


def main() -> None:
    browser = Browser(WIDTH, HEIGHT)
    try:
        with serving(ImageClassifier(DEMO), name="the bundled digits model") as client:
            browser.open(f"http://127.0.0.1:{client.port}")
            browser.devtools(
                "Emulation.setDeviceMetricsOverride", width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False
            )
            browser.wait("document.querySelector('#layer').options.length > 0")
            for position, digit in enumerate(DIGITS, start=1):
                browser.type("#files", str(DEMO / "images" / f"digit-{digit}.png"))
                browser.wait(f"document.querySelectorAll('#pictures .bars button').length === {5 * position}")
            browser.click("#pictures .bars button")
            browser.wait("document.querySelector('#pictures img').alt.startsWith('Heat map')")
            browser.wait("document.querySelector('#pictures img').complete")
            browser.run("document.activeElement.blur()")
            browser.screenshot(Path(sys.argv[1]), whole=False)
    finally:
        browser.close()


if __name__ == "__main__":
    main()
