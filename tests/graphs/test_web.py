"""examples/web in a real browser: headless Chromium runs onnxruntime-web. Slow, and skipped where one is missing."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import Browser, find_chromium
from conftest import ROOT

pytest.importorskip("onnx", reason="needs the extra onnx")

from mlx_convnextv2 import ImageClassifier
from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.graphs.export import export

# Where .ci/run puts it; NODE_MODULES names another folder.
NODE_MODULES = Path(os.environ.get("NODE_MODULES", Path(sys.prefix) / "npm/node_modules"))
IMAGES = sorted((DEMO / "images").glob("*.png"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="needs chromium and chromium-driver"),
    pytest.mark.skipif(not (NODE_MODULES / "onnxruntime-web").is_dir(), reason="needs npm's onnxruntime-web"),
]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def page(tmp_path: Path):
    """The page's folder as its first lines make it, served, and opened in a browser."""
    shutil.copy(ROOT / "examples" / "web" / "index.html", tmp_path)
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    export(DEMO, tmp_path / "model", format="onnx", quantize=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    browser = Browser(camera=False)
    try:
        browser.open(f"http://127.0.0.1:{server.server_port}")
        yield browser
    finally:
        browser.close()
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_page_answers_as_python_does(page: Browser, tmp_path: Path) -> None:
    page.wait("document.querySelector('#state').textContent.endsWith('is ready.')")
    for path, answer in zip(IMAGES, ImageClassifier(DEMO)(list(map(str, IMAGES)), top_k=1), strict=True):
        page.type("input", str(path))
        page.wait("document.querySelector('#state').textContent.startsWith(arguments[0] + ', ')", path.name)
        score, _, label = page.run("return [...document.querySelector('tr').cells].map((cell) => cell.textContent)")
        assert label == answer[0]["label"]
        assert abs(float(score.removesuffix("%")) / 100 - answer[0]["score"]) <= 0.02  # the weights have 8 bits

    (tmp_path / "note.png").write_text("no image")
    page.type("input", str(tmp_path / "note.png"))
    page.wait("document.querySelector('#state').textContent.startsWith('note.png cannot be classified')")
