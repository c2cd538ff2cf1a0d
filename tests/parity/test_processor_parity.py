"""The image processor beside transformers' PIL one: the same pixels, and each reads what the other writes."""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given, settings, strategies as st
from PIL import Image
from reference import IMAGENET, TheirProcessor, picture

from mlx_convnextv2 import ConvNextImageProcessor
from mlx_convnextv2.images.decode import open_image

pytestmark = pytest.mark.parity

GREY: dict[str, Any] = {"image_mean": [0.449], "image_std": [0.226]}
FILTERS = [0, 1, 2, 3, 4, 5]

# (width, height)
SHAPES = [
    *((1, 1), (1, 2), (3, 7), (40, 1), (224, 224), (256, 256), (224, 300), (225, 223), (640, 480), (101, 37)),
    *((900, 60), (60, 900), (333, 1000)),
]


def run_transformers(processor: TheirProcessor, *images: Image.Image) -> np.ndarray:
    """Pixel values (N, H, W, C). Arrays whose layout is stated: of tiny pictures transformers 4 would guess it."""
    arrays = [np.atleast_3d(np.asarray(image)) for image in images]
    pixels = processor(arrays, input_data_format="channels_last", return_tensors="np")["pixel_values"]
    return pixels.transpose(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)


def assert_same_pixels(image: Image.Image, config: dict[str, Any]) -> None:
    """Compare both processors on an image that is RGB, or grey where the mean has one channel."""
    config = {"resample": 3, **config}  # the default was another one in transformers 4
    assert_equal(ConvNextImageProcessor.from_dict(config)(image), run_transformers(TheirProcessor(**config), image))


def assert_equal(pixels: mx.array, theirs: np.ndarray) -> None:
    ours = np.array(pixels)
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-6


@pytest.mark.parametrize("shape", SHAPES, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("size", [224, 256, 384])
def test_every_shape_gives_the_same_pixels(shape, size):
    assert_same_pixels(picture(*shape), {"size": {"shortest_edge": size}, "crop_pct": 0.875, "resample": 3, **IMAGENET})


@pytest.mark.parametrize("step", ["do_resize", "do_rescale", "do_normalize"])
def test_a_step_that_is_null_is_left_out(tmp_path, step):
    config = {**ConvNextImageProcessor(size=64).to_dict(), step: None}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    image = picture(130, 97)
    theirs = TheirProcessor.from_pretrained(tmp_path)
    assert_equal(ConvNextImageProcessor.from_pretrained(tmp_path)(image), run_transformers(theirs, image))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_mode_gives_the_pixels_of_its_rgb_form(mode):
    image = picture(130, 97, "L").convert("I").convert(mode) if mode == "I;16" else picture(130, 97, mode)
    config = {"size": {"shortest_edge": 64}, "resample": 3, **IMAGENET}
    theirs = run_transformers(TheirProcessor(**config), open_image(image))
    assert_equal(ConvNextImageProcessor.from_dict(config)(image), theirs)


@pytest.mark.parametrize("shape", [(28, 28), (130, 97), (1, 1), (40, 3)])
def test_grey_images_give_the_same_pixels(shape):
    for size in (32, 224, 384):
        assert_same_pixels(picture(shape[0], shape[1], "L"), {"size": {"shortest_edge": size}, **GREY})


def test_a_batch_gives_the_same_pixels():
    images = [picture(*shape) for shape in [(640, 480), (101, 37), (224, 224)]]
    config = {"size": {"shortest_edge": 224}, "resample": 3, **IMAGENET}
    theirs = run_transformers(TheirProcessor(**config), *images)
    assert_equal(ConvNextImageProcessor.from_dict(config)(images), theirs)


def test_a_pil_image_passed_as_users_do_gives_the_same_pixels():
    image = picture(640, 480)
    config = {"size": {"shortest_edge": 224}, "resample": 3, **IMAGENET}
    theirs = TheirProcessor(**config)(image, return_tensors="np")["pixel_values"]
    assert_equal(ConvNextImageProcessor.from_dict(config)(image), theirs.transpose(0, 2, 3, 1))


CONFIGS = st.fixed_dictionaries(
    {
        "size": st.builds(lambda side: {"shortest_edge": side}, st.integers(1, 260) | st.integers(380, 400)),
        "crop_pct": st.floats(0.2, 1.0) | st.sampled_from([0.875, 0.9, 0.95, 1.0]),
        "resample": st.sampled_from(FILTERS),
        "rescale_factor": st.floats(1e-3, 1e-2) | st.sampled_from([1 / 255, 1 / 127.5, 1.0]),
        "do_resize": st.sampled_from([True, True, True, False]),
        "do_rescale": st.booleans(),
        "do_normalize": st.booleans(),
        "image_mean": st.lists(st.floats(0, 1), min_size=3, max_size=3),
        "image_std": st.lists(st.floats(0.2, 1), min_size=3, max_size=3),
    }
)


@settings(max_examples=200, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), config=CONFIGS)
def test_any_combination_gives_the_same_pixels(width, height, config):
    # a strip is resized to a huge picture, of which both keep a small square: slow, and nothing new
    if max(width, height) > 20 * min(width, height):
        width = height = min(width, height)
    assert_same_pixels(picture(width, height), config)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"size": {"shortest_edge": 224}, "crop_pct": 0.9, "resample": 2, **IMAGENET},
        {"size": {"shortest_edge": 32}, "do_normalize": False, **GREY},
        {"do_resize": False, "do_rescale": False, "rescale_factor": 0.5},
    ],
    ids=["defaults", "published", "grey", "steps left out"],
)
class TestFiles:
    def test_each_reads_what_the_other_writes_and_the_round_trip_loses_nothing(self, tmp_path, config):
        theirs = TheirProcessor(**config)
        theirs.save_pretrained(tmp_path)
        ours = ConvNextImageProcessor.from_pretrained(tmp_path)
        assert {name: getattr(ours, name) for name in config} == config
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(ours.to_dict()))
        again = TheirProcessor.from_pretrained(tmp_path)
        read = {name: getattr(again, name) for name in config}
        assert {name: list(value) if isinstance(value, tuple) else value for name, value in read.items()} == config
        again.save_pretrained(tmp_path / "again")
        assert ConvNextImageProcessor.from_pretrained(tmp_path / "again").to_dict() == ours.to_dict()
        image = picture(130, 97, "L" if len(config.get("image_mean", "RGB")) == 1 else "RGB")
        for processor in (theirs, again):
            assert_equal(ours(image), run_transformers(processor, image))
