"""The page in a real browser: headless Chromium. Slow, and skipped where there is none."""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path

import pytest
from browser import Browser, find_chromium
from conftest import ROOT
from serving_client import Client, serving

from mlx_convnextv2 import ImageClassifier
from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.serving.access import Access

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="needs chromium and chromium-driver"),
]
IMAGES = DEMO / "images"
# Where .ci/run puts it; AXE_CORE names another file.
AXE = Path(os.environ.get("AXE_CORE", Path(sys.prefix) / "npm/node_modules/axe-core/axe.min.js"))
KEY = "a long random key"

DROP = """
    const [base64, name, type] = arguments;
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type }));
    document.querySelector("#drop").dispatchEvent(
        new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: transfer }));
"""
PASTE = (
    DROP.replace("DragEvent", "ClipboardEvent").replace('"drop"', '"paste"').replace("dataTransfer", "clipboardData")
)


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture
def page(browser):
    """The digits model's page, freshly opened, and at the end without a complaint of the browser's."""
    with serving(ImageClassifier(DEMO)) as client:
        open_page(browser, client)
        yield browser
        complaints = [line for line in browser.log() if "/expected" not in line]
        assert complaints == []


def open_page(browser: Browser, client: Client) -> None:
    browser.open(f"http://127.0.0.1:{client.port}")
    browser.wait("document.querySelector('#layer').options.length > 0")


def send(browser: Browser, script: str, file: Path, kind: str = "image/png") -> None:
    browser.run(script, base64.b64encode(file.read_bytes()).decode(), file.name, kind)


def first_label(browser: Browser, position: int = 1) -> str:
    selector = f"#pictures > li:nth-child({position}) .bars .name"
    browser.wait("document.querySelector(arguments[0])", selector)
    return browser.text(selector)


@pytest.mark.parametrize("script", [DROP, PASTE], ids=["dropped", "pasted"])
def test_a_digit_is_read_and_its_heat_map_shown_and_hidden(page, script):
    send(page, script, IMAGES / "digit-8.png")
    assert first_label(page) == "8"
    assert page.text("#pictures .score") == "93.5 %"
    own = page.run("return document.querySelector('#pictures img').src")
    page.click("#pictures .bars li:first-child button")
    page.wait("document.querySelector('#pictures img').alt === 'Heat map of 8 over digit-8.png'")
    shown = page.wait(
        "(({ complete, naturalWidth: width, src }) => complete && width && src)"
        "(document.querySelector('#pictures img'))"
    )
    assert shown.startswith("blob:")
    assert shown != own
    assert page.run("return document.querySelector('#pictures .bars button').ariaPressed") == "true"
    page.click("#pictures .bars li:first-child button")
    page.wait("document.querySelector('#pictures img').src === arguments[0]", own)
    assert page.run("return document.querySelector('#pictures .bars button').ariaPressed") == "false"


def test_another_label_and_another_layer_give_other_maps(page):
    page.type("#files", str(IMAGES / "digit-8.png"))
    first_label(page)
    sources = set()
    for step in ("8", "6", "layer"):
        before = page.run("return document.querySelector('#pictures img').src")
        if step == "layer":
            page.run(
                "const layer = document.querySelector('#layer'); layer.value = 'stage3';"
                "layer.dispatchEvent(new Event('change'))"
            )
        else:
            position = {"8": 1, "6": 2}[step]
            page.click(f"#pictures .bars li:nth-child({position}) button")
        page.wait("document.querySelector('#pictures img').src !== arguments[0]", before)
        sources.add(page.run("return document.querySelector('#pictures img').src"))
        assert page.run("return document.querySelectorAll('[aria-pressed=true]').length") == 1
    assert len(sources) == 3


def test_several_pictures_at_once_and_removed_again(page):
    page.type("#files", "\n".join(str(IMAGES / f"digit-{digit}.png") for digit in range(10)))
    page.wait(
        "document.querySelectorAll('#pictures .bars').length === 10 && "
        "[...document.querySelectorAll('#pictures .bars')].every((bars) => bars.children.length)"
    )
    assert [first_label(page, position) for position in range(1, 11)] == [str(digit) for digit in range(9, -1, -1)]
    page.click("#clear")
    assert page.run("return document.querySelector('#results').hidden")


def test_a_wrong_file_is_told_in_a_sentence_that_screen_readers_say(browser, tmp_path):
    (tmp_path / "expected.png").write_bytes(b"no picture")
    with serving(ImageClassifier(DEMO)) as client:
        open_page(browser, client)
        browser.type("#files", str(tmp_path / "expected.png"))
        browser.wait("document.querySelector('#problem').textContent")
        assert browser.text("#problem").startswith("expected.png: the image is not an image")
        assert browser.run("return document.querySelector('#problem').getAttribute('role')") == "alert"
        send(browser, DROP, IMAGES / "digit-3.png")
        assert first_label(browser) == "3"
        assert browser.text("#problem") == ""
    assert "status of 400" in browser.log()[0]


def test_a_server_that_has_gone_is_told(browser):
    with serving(ImageClassifier(DEMO)) as client:
        open_page(browser, client)
    send(browser, DROP, IMAGES / "digit-3.png")
    browser.wait("document.querySelector('#problem').textContent")
    assert "The server does not answer. Start it again" in browser.text("#problem")
    browser.log()


def test_the_camera_is_classified_live_and_its_rate_shown(page):
    page.click("#camera-start")
    page.wait("/^[0-9.]+ frames.s$/.test(document.querySelector('#camera-speed').textContent)")
    assert page.run("return document.querySelectorAll('#camera-labels li').length") == 5
    page.wait("document.querySelector('#status').textContent.startsWith('The camera sees')")
    page.click("#camera-stop")
    assert page.run("return document.querySelector('#camera').hidden")
    assert page.run("return document.querySelector('#video').srcObject") is None
    page.run("""
        const own = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        window.asked = 0;
        navigator.mediaDevices.getUserMedia = (...options) => { window.asked += 1; return own(...options); };
        for (const _ of "12") document.querySelector("#camera-start").click();
    """)
    page.wait("!document.querySelector('#camera').hidden")
    assert page.run("return window.asked") == 1  # a second stream would stay on
    page.click("#camera-stop")


def test_a_key_is_asked_for_and_used(browser):
    with serving(ImageClassifier(DEMO), access=Access(api_key=KEY)) as client:
        browser.open(f"http://127.0.0.1:{client.port}")
        browser.wait("document.querySelector('#key-dialog').open")
        browser.type("#key", KEY)
        browser.click("#key-form button")
        browser.wait("document.querySelector('#layer').options.length > 0")
        send(browser, DROP, IMAGES / "digit-5.png")
        assert first_label(browser) == "5"
    browser.log()


def test_the_keyboard_alone_is_enough(page):
    def focused():
        return page.run("return document.activeElement.id || document.activeElement.textContent.trim()")

    page.press("Tab")
    assert focused() == "choose"
    page.press("Tab")
    assert focused() == "camera-start"
    page.type("#files", str(IMAGES / "digit-8.png"))
    first_label(page)
    page.run("document.querySelector('#layer').focus()")
    page.press("Tab")
    assert focused().startswith("8")
    page.press("Enter")
    page.wait("document.querySelector('#pictures img').alt.startsWith('Heat map of 8')")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.run(f"return {outline}") != "none"


def test_the_about_part_shows_the_models_card_and_speed(page):
    send(page, DROP, IMAGES / "digit-3.png")
    first_label(page)
    page.click("#about summary")
    page.wait("document.querySelector('#facts').textContent.includes('ms a batch')")
    assert "154,954" in page.text("#facts")
    assert page.text("#card") == "# Card"


@pytest.mark.parametrize("width", [360, 1100])
def test_nothing_is_wider_than_the_window(page, width):
    send(page, DROP, IMAGES / "digit-3.png")
    first_label(page)
    page.devtools(
        "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500
    )
    try:
        assert page.run("return document.documentElement.scrollWidth") <= width
    finally:
        page.devtools("Emulation.clearDeviceMetricsOverride")


@pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core from npm")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_accessibility_error(page, scheme):
    page.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    send(page, DROP, IMAGES / "digit-8.png")
    first_label(page)
    page.click("#pictures .bars li:first-child button")
    page.wait("document.querySelector('#pictures img').alt.startsWith('Heat map')")
    page.click("#about summary")
    page.click("#camera-start")
    page.wait("document.querySelector('#camera-speed').textContent")
    page.devtools("Runtime.evaluate", expression=AXE.read_text(encoding="utf-8"))
    report = page.devtools(
        "Runtime.evaluate",
        expression="axe.run().then(({ violations }) => violations)",
        awaitPromise=True,
        returnByValue=True,
    )
    violations = report["result"]["value"]
    assert [(one["id"], one["help"], [node["html"][:100] for node in one["nodes"]]) for one in violations] == []
    page.click("#camera-stop")
    page.devtools("Emulation.setEmulatedMedia", features=[])


def test_the_page_asks_nobody_but_its_server(page):
    send(page, DROP, IMAGES / "digit-8.png")
    first_label(page)
    addresses = page.run("return performance.getEntriesByType('resource').map(({ name }) => name)")
    own = page.run("return location.origin")
    assert len(addresses) > 5
    assert [address for address in addresses if not address.startswith((own, f"blob:{own}"))] == []
    assert (ROOT / "mlx_convnextv2/serving/page").is_dir()


def test_a_map_that_comes_late_does_not_replace_the_one_chosen_since(page):
    send(page, DROP, IMAGES / "digit-8.png")
    first_label(page)
    page.run("""
        const ask = window.fetch;
        window.fetch = async (path, ...options) => {
            const answer = await ask(path, ...options);
            if (!String(path).startsWith("explain") || window.held) return answer;
            return new Promise((resolve) => { window.held = () => resolve(answer); });
        };
    """)
    page.click("#pictures .bars li:first-child button")
    page.wait("!!window.held")
    own = page.run("return document.querySelector('#pictures img').src")
    page.run("document.querySelector('#layer').dispatchEvent(new Event('change'))")
    newer = page.wait("(({ src }) => src !== arguments[0] && src)(document.querySelector('#pictures img'))", own)
    page.run("window.held()")
    shown = "new Promise((done) => setTimeout(() => done(document.querySelector('#pictures img').src), 300))"
    assert page.run(f"return await {shown}") == newer


def test_a_folder_that_is_dropped_is_told_and_a_name_is_text_alone(page, tmp_path):
    name = "<img src=x onerror=document.title=1>.png"
    (tmp_path / name).mkdir()
    for kind in ("dragEnter", "dragOver", "drop"):
        data = {"items": [], "files": [str(tmp_path / name)], "dragOperationsMask": 1}
        page.devtools("Input.dispatchDragEvent", type=kind, x=100, y=150, data=data)
    page.wait("document.querySelector('#problem').textContent")
    assert page.text("#problem") == f"{name}: it cannot be read: drop pictures, not a folder"
    assert page.run("return document.querySelectorAll('main img').length") == 0
