"""The font that labels are written in."""

import pytest
from PIL import ImageFont

from mlx_convnextv2.images.fonts import label_font


@pytest.fixture(autouse=True)
def fresh():
    label_font.cache_clear()
    yield
    label_font.cache_clear()


def named(font):
    return font.getname()


def test_a_font_of_the_system_writes_letters_that_pillows_own_lacks():
    font = label_font(20)
    if named(font) == named(ImageFont.load_default(20)):
        pytest.skip("this system has none of the fonts")
    missing = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(letter)) != missing for letter in "ößéñ…")


def test_without_a_font_of_the_systems_it_is_pillows_own(monkeypatch):
    monkeypatch.setattr("mlx_convnextv2.images.fonts._FILES", ("absent.ttf",))
    assert named(label_font(20)) == named(ImageFont.load_default(20))


def test_a_pillow_that_cannot_write_is_said(monkeypatch):
    monkeypatch.setattr(ImageFont, "load_default", lambda size: None)
    monkeypatch.setattr("mlx_convnextv2.images.fonts._FILES", ())
    with pytest.raises(OSError, match="this Pillow has no FreeType"):
        label_font(20)
