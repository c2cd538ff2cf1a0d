"""The page stands alone, says what was found, and believes no name."""

import base64
import dataclasses
import hashlib
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from labelled import answered, three
from PIL import Image

from mlx_convnextv2.evaluation.report.charts import Axis, Line, chart
from mlx_convnextv2.evaluation.report.page import as_html
from mlx_convnextv2.evaluation.report.training import read_results, training

VOID = {"meta", "img", "br", "input"}


class Page(HTMLParser):
    """The elements of a page, its text, and whether every element that is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_says_what_was_found(tmp_path):
    page = Page(as_html(three(tmp_path)))
    for words in ("my-model", "on photos", "50.0%", "3 of 6 answers are wrong", "bad.png is broken", "answered cat"):
        assert words in page.text, words
    titles = [attributes["id"] for attributes in page.all("section")]
    assert titles == ["mistakes", "confusion", "classes", "calibration", "failures"]


def test_the_page_fetches_nothing_and_runs_no_script_but_its_own(tmp_path):
    text = as_html(three(tmp_path))
    page = Page(text)
    for _, attributes in page.elements:
        for name in ("src", "href", "action", "srcset", "data"):
            assert attributes.get(name, "data:").startswith("data:")
        assert not [name for name in attributes if name.startswith("on")]
    assert not page.all("link")
    assert "@import" not in text
    assert "url(" not in text
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_names_are_text_whatever_they_hold(tmp_path):
    evil = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a\x1b[31m\u202eb' onload='x"]
    found = three(tmp_path, model="</title><script>1</script>", data="<b>&amp;")
    found.labels[:] = evil
    found.failures[0] = type(found.failures[0])(found.images[0], "<i>broken</i>")
    page = Page(as_html(found))
    assert len(page.all("script")) == 1
    assert not page.all("i")
    assert "<script>alert(1)</script>" in page.text
    assert "a\\x1b[31m\\u202eb" in page.text
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_the_pictures_are_the_most_confident_mistakes(tmp_path):
    found = three(tmp_path)
    page = Page(as_html(found, pictures=2))
    pictures = [Image.open(io.BytesIO(base64.b64decode(img["src"].split(",")[1]))) for img in page.all("img")]
    assert len(pictures) == 2
    for picture, index in zip(pictures, found.mistakes(2), strict=True):
        np.testing.assert_array_equal(np.array(picture), np.array(Image.open(found.images[index])))


def test_a_picture_is_no_larger_than_its_place(tmp_path):
    found = three(tmp_path)
    noise = np.random.RandomState(0).randint(0, 256, (1200, 2000, 3)).astype(np.uint8)
    Image.fromarray(noise).save(found.images[5])
    text = as_html(found)
    (source,) = [img["src"] for img in Page(text).all("img") if "jpeg" in img["src"]]
    assert Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).size == (320, 192)
    assert len(source) < 100_000


def test_a_file_that_has_gone_leaves_a_word(tmp_path):
    found = three(tmp_path)
    found.images[5].unlink()
    page = Page(as_html(found))
    assert "cannot be read any more" in page.text
    assert len(page.all("img")) == 2


def test_no_mistakes_are_said_and_few_classes_are_a_table_of_counts(tmp_path):
    page = Page(as_html(answered(tmp_path, np.eye(3) * 9, range(3))))
    assert "Every answer was right." in page.text
    assert "No two classes were confused." in page.text
    (matrix,) = re.findall(r'<table class="matrix">(.*?)</table>', as_html(three(tmp_path)), re.DOTALL)
    rows = re.findall(r"<tr>(.*?)</tr>", matrix.split("<tbody>")[1], re.DOTALL)
    counts = [[int(cell or 0) for cell in re.findall(r"<td[^>]*>(\d*)</td>", row)] for row in rows]
    assert counts == [[2, 0, 0], [1, 1, 0], [1, 1, 0]]


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """2000 answers of 1000 classes, a tenth of them wrong: those of class 8k + 1 are taken for class 8k + 9."""
    targets = np.repeat(np.arange(1000), 2)
    answers = np.where((targets % 8 == 1) & (targets < 900), targets + 8, targets)
    found = answered(tmp_path_factory.mktemp("thousand"), np.eye(3)[[0, 0]], [0, 0])
    scores = np.full((2000, 5), 0.1, np.float32)
    found.labels = [f"class {i}" for i in range(1000)]
    found.images = found.images * 1000
    found.targets, found.scores, found.target_scores = targets, scores, scores[:, 0]
    found.answers = (answers[:, None] + np.arange(5)) % 1000
    found.ranks, found.losses = (answers != targets).astype(np.int64), np.ones(2000)
    return found


def test_many_classes_are_a_picture_with_names_and_a_table_of_pairs(thousand):
    text = as_html(thousand)
    page = Page(text)
    (image,) = page.all("image")
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(image["href"].split(",")[1]))))
    assert pixels.shape == (125, 125, 4)  # eight classes a row
    assert (np.diag(pixels[..., 3]) == 0).all()  # right answers are not drawn
    assert (pixels[np.arange(112), np.arange(1, 113), 3] == 255).all()
    assert "Each row and column is 8 classes" in page.text
    assert "class 0" in page.text
    assert len(re.findall(r'<tr><td>class \d+</td><td class="number', text)) == 1000
    assert len(text) < 1_000_000


def test_a_page_of_very_many_classes_stays_small(thousand):
    found = dataclasses.replace(thousand, labels=[f"class {i}" for i in range(60_000)])
    found.targets = found.targets * 60
    found.answers = found.answers * 60
    text = as_html(found, pictures=0)
    assert len(text) < 1_500_000
    assert "59,000 of the model's 60,000 classes have no images here." in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
@pytest.mark.slow
def test_a_browser_reads_the_page_and_a_click_sorts_the_table(thousand, tmp_path):
    script = (
        "const t = document.querySelector('table.sortable'); const b = t.querySelectorAll('button');"
        "const first = () => t.tBodies[0].rows[0].cells[0].textContent; const seen = [first()];"
        "b[0].click(); seen.push(first()); b[0].click(); seen.push(first()); b[3].click(); seen.push(first());"
        "const s = document.querySelector('input'); s.value = 'CLASS 77'; s.dispatchEvent(new Event('input'));"
        "seen.push([...t.tBodies[0].rows].filter((r) => !r.hidden).length); document.title = seen.join('|');"
    )
    text = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", as_html(thousand))
    (tmp_path / "page.html").write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--dump-dom"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = ["chromium", *options, f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path / 'page.html'}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    assert re.findall(r"<title>(.*?)</title>", shown)[:1] == ["class 1|class 0|class 999|class 97|11"]


# --- the curves of training -----------------------------------------------------------------------------------------

HEADER = "epoch,train_loss,val_loss,val_top1,val_top5,lr,l2,seconds\n"


def write_results(folder, *lines):
    (folder / "results.csv").write_text(HEADER + "".join(f"{line}\n" for line in lines))
    return folder


def test_epochs_are_drawn_as_loss_and_accuracy(tmp_path):
    lines = ["0,,1.5,0.4,0.8,,0.01,2", "1,1.2,1.1,0.5,0.9,0.001,,3", "2,0.9,0.8,0.75,0.95,0.001,,3"]
    text = training(write_results(tmp_path, *lines))
    page = Page(text)
    assert [line["class"] for line in page.all("polyline")] == ["line one", "line two"] * 2
    assert [len(line["points"].split()) for line in page.all("polyline")] == [2, 3, 3, 3]
    assert "validation at 2: 0.8" in page.text
    assert "top-1 at 2: 75.00%" in page.text


def test_strengths_of_the_penalty_are_drawn_where_the_head_alone_was_trained(tmp_path):
    lines = [f"0,0.5,{loss},0.5,1.0,,{l2},1" for l2, loss in ((1, 0.9), (0.01, 0.5), (0.0001, 0.7))]
    text = training(write_results(tmp_path, *lines))
    points = [[float(v) for v in p.split(",")] for p in Page(text).all("polyline")[1]["points"].split()]
    assert points == sorted(points)  # from the weakest on
    assert "as a power of ten" in text


@pytest.mark.parametrize(
    "content",
    ["", "epoch\n1\n2\n", HEADER, HEADER + "1,1,1,1,1,,,1\n", HEADER + "x,y,z\n\x00\n", HEADER + "nan,inf,1,1,1\n" * 3],
)
def test_results_that_make_no_curve_are_left_out(tmp_path, content):
    (tmp_path / "results.csv").write_text(content)
    assert training(tmp_path) == ""


def test_no_folder_no_file_and_a_huge_file_have_no_curves_and_long_runs_are_thinned_out(tmp_path):
    assert training(None) == training(tmp_path) == ""
    (tmp_path / "results.csv").write_text(HEADER + "1,1,1,1,1,,,1\n" * 1_000_000)
    assert read_results(tmp_path / "results.csv") == []
    text = training(write_results(tmp_path, *(f"{i},1,1,0.5,0.5,,,1" for i in range(5000))))
    assert all(len(line["points"].split()) <= 501 for line in Page(text).all("polyline"))
    assert 'id="training"' in as_html(three(tmp_path, folder=tmp_path))  # a part of the page


@pytest.mark.parametrize("values", [[3.0], [0.0, 1e-9], [-5, 1e6], [0.1, 0.1], [1, 2, 300]])
def test_an_axis_holds_its_values_and_few_round_marks(values):
    axis = Axis.around("x", values)
    assert axis.low <= min(values)
    assert axis.high >= max(values)
    assert 2 <= len(axis.ticks) <= 8
    assert axis.ticks[0] == axis.low
    assert axis.ticks[-1] == axis.high


def test_points_lie_where_their_values_are():
    axis = Axis("", 0, 1, [0, 1])
    (places,) = re.findall(r'points="(.*?)"', chart("c", axis, axis, [Line("l", [(0, 0), (1, 1), (0.5, 0.5)])]))
    (left, bottom), (right, top), middle = ([float(v) for v in place.split(",")] for place in places.split())
    assert left < right
    assert top < bottom
    assert middle == pytest.approx([(left + right) / 2, (top + bottom) / 2], abs=0.1)
