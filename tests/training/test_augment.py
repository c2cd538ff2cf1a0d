"""Augmentation: each operation is Pillow's, and one seed gives one image."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from mlx_convnextv2 import ConvNextImageProcessor
from mlx_convnextv2.training.augment import Augmentation, erase, random_box
from mlx_convnextv2.training.operations import OPERATIONS, RANDAUGMENT, TRIVIALAUGMENT, apply
from mlx_convnextv2.training.options import Options

GREY = (124, 116, 104)
BILINEAR, AFFINE = Image.Resampling.BILINEAR, Image.Transform.AFFINE


@pytest.fixture
def processor():
    return ConvNextImageProcessor(size=32, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4])


def plain(**settings):
    return Options(**{"augment": "none", "flip": 0.0, "erase": 0.0, **settings})


# With numbers written out, and Pillow called as its documentation shows.
EXPECTED: dict[str, tuple[float, Callable[[Image.Image], Image.Image]]] = {
    "autocontrast": (0, ImageOps.autocontrast),
    "equalize": (0, ImageOps.equalize),
    "invert": (0, ImageOps.invert),
    "rotate": (17, lambda image: image.rotate(17, BILINEAR, fillcolor=GREY)),
    "posterize": (3, lambda image: ImageOps.posterize(image, 3)),
    "solarize": (100, lambda image: ImageOps.solarize(image, 100)),
    "solarize_add": (40, lambda image: image.point(lambda level: min(level + 40, 255) if level < 128 else level)),
    "color": (0.6, lambda image: ImageEnhance.Color(image).enhance(1.6)),
    "contrast": (-0.6, lambda image: ImageEnhance.Contrast(image).enhance(0.4)),
    "brightness": (0.3, lambda image: ImageEnhance.Brightness(image).enhance(1.3)),
    "sharpness": (-0.9, lambda image: ImageEnhance.Sharpness(image).enhance(0.1)),
    "shear_x": (0.2, lambda image: image.transform(image.size, AFFINE, (1, 0.2, 0, 0, 1, 0), BILINEAR, fillcolor=GREY)),
    "shear_y": (-0.2, lambda i: i.transform(i.size, AFFINE, (1, 0, 0, -0.2, 1, 0), BILINEAR, fillcolor=GREY)),
    "translate_x": (0.1, lambda i: i.transform(i.size, AFFINE, (1, 0, 9, 0, 1, 0), BILINEAR, fillcolor=GREY)),
    "translate_y": (-0.1, lambda i: i.transform(i.size, AFFINE, (1, 0, 0, 0, 1, -7), BILINEAR, fillcolor=GREY)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_pillows(name, photo):
    strength, expected = EXPECTED[name]
    result = apply(name, photo, strength, GREY)
    assert result == expected(photo) != photo


@pytest.mark.parametrize("space", [RANDAUGMENT, TRIVIALAUGMENT], ids=["randaugment", "trivialaugment"])
def test_the_ends_of_every_operation_can_be_applied(space, photo):
    for name, strengths in space.items():
        for magnitude, sign in ((0.0, 1), (1.0, -1), (1.0, 1)):
            assert apply(name, photo, strengths.strength(magnitude, sign), GREY).size == photo.size


def test_the_ranges_are_the_authors():
    at_nine = {name: RANDAUGMENT[name].strength(0.9, -1) for name in OPERATIONS}
    assert at_nine["rotate"] == pytest.approx(-27)
    assert at_nine["shear_x"] == pytest.approx(-0.27)
    assert at_nine["translate_y"] == pytest.approx(-0.405)
    assert at_nine["color"] == pytest.approx(-0.81)
    assert at_nine["solarize_add"] == pytest.approx(99)
    assert TRIVIALAUGMENT["rotate"].strength(1.0) == 135
    assert RANDAUGMENT.keys() == set(OPERATIONS)
    assert len(TRIVIALAUGMENT) == 13  # and to do nothing, the paper's fourteenth


def test_without_operations_it_is_a_crop_resized_as_pillow_does_and_the_processors_values(photo, tmp_path, processor):
    photo.save(tmp_path / "a.png")
    random = np.random.default_rng(4)
    box = random_box(photo.size, 0.3, np.random.default_rng(4))
    expected = photo.crop(box).resize((32, 32), Image.Resampling.BICUBIC)
    values = (np.asarray(expected) / 255 - processor.image_mean) / processor.image_std
    result = Augmentation(processor, plain(crop_scale=0.3))(tmp_path / "a.png", random)
    np.testing.assert_allclose(result, values, atol=1e-5)
    assert result.dtype == np.float32


def test_a_mirror_image_is_pillows(photo, processor):
    crops = [
        Augmentation(processor, plain(flip=share)).picture(photo, np.random.default_rng(4)) for share in (0.0, 1.0)
    ]
    assert ImageOps.mirror(crops[0]) == crops[1]


@pytest.mark.parametrize("augment", ["randaugment", "trivialaugment"])
def test_one_seed_gives_one_image_and_others_give_others(photo, tmp_path, processor, augment):
    photo.save(tmp_path / "a.png")
    augmentation = Augmentation(processor, Options(augment=augment))
    made = [augmentation(tmp_path / "a.png", np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])
    assert made[0].shape == (32, 32, 3)


@pytest.mark.parametrize("size", [(90, 70), (3, 400), (400, 3), (1, 1)])
def test_a_crop_lies_within_the_image_and_keeps_the_share_that_was_asked(size):
    width, height = size
    for seed in range(200):
        left, top, right, bottom = random_box(size, 0.5, np.random.default_rng(seed))
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        if size == (90, 70):
            assert (right - left) * (bottom - top) > 0.48 * width * height
            assert 0.7 < (right - left) / (bottom - top) < 1.4


def test_erasing_writes_noise_into_one_rectangle():
    pixels = np.full((40, 50, 3), 7, np.float32)
    areas = []
    for seed in range(50):
        erased = erase(pixels, np.random.default_rng(seed))
        rows, columns = np.nonzero((erased != 7).any(axis=-1))
        areas.append(len(rows) / 2000)
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert abs(erased[rows, columns].mean()) < 1
    assert (pixels == 7).all()  # the caller's own stay
    assert min(areas) > 0.01
    assert max(areas) < 0.36


def test_a_grey_model_gets_one_channel(photo, tmp_path):
    photo.save(tmp_path / "a.png")
    processor = ConvNextImageProcessor(size=32, image_mean=[0.5], image_std=[0.5])
    assert Augmentation(processor, Options())(tmp_path / "a.png", np.random.default_rng(0)).shape == (32, 32, 1)
