"""A map lies where the model looked, on the picture as people see it."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mlx_convnextv2 import ConvNextImageProcessor, ConvNextV2Config
from mlx_convnextv2.heatmaps import overlay
from mlx_convnextv2.heatmaps.geometry import covered_box, seen_box
from mlx_convnextv2.heatmaps.legend import _fitted
from mlx_convnextv2.images.fonts import label_font


def is_tinted(image):
    """Where pixels are not grey, (H, W)."""
    return np.ptp(np.asarray(image).astype(int), axis=-1) > 8


@pytest.mark.parametrize("size", [(90, 70), (70, 90), (64, 64), (1, 7), (640, 11)])
def test_the_picture_keeps_its_size(size):
    drawn = overlay(Image.new("RGB", size, "gray"), np.ones((3, 3)), legend="cat  50.0%")
    assert drawn.size == size
    assert drawn.mode == "RGB"


def test_positive_is_orange_and_negative_blue():
    drawn = np.asarray(overlay(Image.new("RGB", (20, 20), "gray"), [[1.0, -1.0]])).astype(int)
    assert drawn[10, 2, 0] > drawn[10, 2, 2] + 60
    assert drawn[10, 17, 2] > drawn[10, 17, 0] + 60


def test_a_map_of_nothing_leaves_a_grey_picture():
    assert not is_tinted(overlay(Image.new("RGB", (20, 20), "red"), np.zeros((2, 2)))).any()


def test_a_scale_makes_maps_comparable():
    picture = Image.new("RGB", (8, 8), "gray")
    weak, strong = (np.asarray(overlay(picture, [[value]], scale=4.0)).astype(int) for value in (1.0, 4.0))
    assert np.ptp(weak[0, 0]) < np.ptp(strong[0, 0]) / 2


def test_exif_orientation_is_undone(tmp_path):
    picture = Image.new("RGB", (40, 20), "black")
    picture.paste("white", (0, 0, 10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right makes it upright
    picture.save(tmp_path / "turned.jpg", exif=exif)
    drawn = np.asarray(overlay(tmp_path / "turned.jpg", np.zeros((2, 2))))
    assert drawn.shape[:2] == (40, 20)
    assert drawn[2, 10].mean() > drawn[37, 10].mean() + 40  # what was left is on top


def test_a_tall_picture_is_coloured_in_bands_without_seams(monkeypatch):
    picture = Image.new("L", (50, 400), 128)
    heat = np.random.RandomState(0).randn(5, 4)
    whole = np.asarray(overlay(picture, heat, (3.3, 20.7, 44.4, 390.2))).astype(int)
    monkeypatch.setattr("mlx_convnextv2.heatmaps.drawing._BAND_PIXELS", 50 * 7)
    bands = np.asarray(overlay(picture, heat, (3.3, 20.7, 44.4, 390.2))).astype(int)
    assert np.abs(whole - bands).max() <= 2


PROCESSORS = {
    "cropped": ConvNextImageProcessor(size=32),
    "squeezed": ConvNextImageProcessor(size=384),
    "timm's crop": ConvNextImageProcessor(size=48, crop_pct=0.8, crop_mode="center"),
    "timm's squash": ConvNextImageProcessor(size=48, crop_pct=0.5, crop_mode="squash"),
    "as it is": ConvNextImageProcessor(do_resize=False),
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(300, 200), (200, 301), (97, 97)])
def test_the_box_is_what_the_processor_keeps(name, size):
    """The picture's columns, and then its rows, hold their own number, which says where the processor cut."""
    processor = PROCESSORS[name]
    box = seen_box(processor, size)
    for axis, (low, high) in enumerate([(box[0], box[2]), (box[1], box[3])]):
        ramp = np.linspace(0, 255, size[axis]).astype(np.uint8)
        picture = np.broadcast_to(ramp if axis == 0 else ramp[:, None], (size[1], size[0]))
        pixels = processor.preprocess(np.stack([picture] * 3, axis=-1)) * 127.5 + 127.5
        line = pixels[pixels.shape[0] // 2, :, 0] if axis == 0 else pixels[:, pixels.shape[1] // 2, 0]
        scale = 255 / size[axis]
        step = (high - low) / len(line) * scale
        assert abs(line[0] - (low * scale + step / 2)) < 3 + step
        assert abs(line[-1] - (high * scale - step / 2)) < 3 + step


def test_what_is_outside_of_the_box_is_dark_and_untinted():
    drawn = overlay(Image.new("RGB", (100, 60), "white"), np.ones((4, 4)), (20, 0, 80, 60))
    tinted = is_tinted(drawn)
    assert tinted[:, 20:80].all()
    assert not tinted[:, :20].any()
    assert not tinted[:, 80:].any()
    pixels = np.asarray(drawn).astype(int)
    assert pixels[:, :20].mean() < pixels[:, 20:80].mean() - 40
    assert is_tinted(overlay(Image.new("RGB", (100, 60), "white"), np.ones((4, 4)), (-9, -9, 120, 90))).all()


def test_rows_that_fill_no_patch_are_not_covered():
    config = ConvNextV2Config(hidden_sizes=[8] * 4, depths=[1] * 4)
    assert covered_box(config, (2, 3), (75, 101), (0, 0, 101, 75)) == (0, 0, 96, 64)
    assert covered_box(config, (18, 25), (75, 101), (0, 0, 202, 150)) == (0, 0, 200, 144)


@pytest.mark.parametrize("wrong", [np.ones(3), np.ones((1, 2, 2)), np.full((2, 2), np.nan), np.ones((0, 2))])
def test_what_is_no_map_is_a_sentence(wrong):
    with pytest.raises(ValueError, match="a heat map must be finite numbers of the shape"):
        overlay(Image.new("RGB", (8, 8)), wrong)


def test_a_label_too_long_is_cut_and_its_score_stays():
    draw, font = ImageDraw.Draw(Image.new("RGB", (10, 10))), label_font(10)
    text = _fitted(draw, font, "a label that goes on and on\x1b[2J  12.3%", 80)
    assert text.endswith("…  12.3%")
    assert draw.textlength(text, font) <= 80
