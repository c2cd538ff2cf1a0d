"""The image processor: each field's effect on the pixels, and configurations that make no sense."""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from make_processor_goldens import CASES, GOLDENS, picture, sample
from PIL import Image

from mlx_convnextv2 import ConvNextImageProcessor

RED, BLUE = (255, 0, 0), (0, 0, 255)

# preprocessor_config.json of the published facebook/convnextv2-*-224 checkpoints
PUBLISHED = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "ConvNextImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 224},
}
RAW = {"do_rescale": False, "do_normalize": False}  # the resized bytes themselves


def pixels(image, **fields) -> np.ndarray:
    """The (H, W, C) pixel values of one image."""
    return np.array(ConvNextImageProcessor(**fields)(image))[0]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8))


# --- the result -----------------------------------------------------------------------------------------------------


def test_one_image_becomes_a_batch_of_one_in_nhwc_float32(photo):
    result = ConvNextImageProcessor.from_dict(PUBLISHED)(photo)
    assert isinstance(result, mx.array)
    assert (result.shape, result.dtype) == ((1, 224, 224, 3), mx.float32)


def test_a_batch_holds_each_image_in_order(photo):
    images = [photo, photo.rotate(90, expand=True), np.asarray(photo.convert("L")), noise(5, 9)]
    processor = ConvNextImageProcessor(size=24)
    for container in (list, tuple):
        batch = np.array(processor(container(images)))
        assert batch.shape == (4, 24, 24, 3)
        for row, image in zip(batch, images, strict=True):
            assert np.array_equal(row, np.array(processor(image))[0])


def test_paths_files_arrays_and_pil_images_give_the_same_pixels(tmp_path, photo):
    path = tmp_path / "photo.png"
    photo.save(path)
    processor = ConvNextImageProcessor(size=24)
    expected = np.array(processor(photo))
    assert np.array_equal(processor(path), expected)
    assert np.array_equal(processor(str(path)), expected)
    assert np.array_equal(processor(np.asarray(photo)), expected)
    with path.open("rb") as file:
        assert np.array_equal(processor(file), expected)


def test_an_empty_list_is_an_error_and_an_image_that_cannot_be_read_is_named(tmp_path, photo):
    with pytest.raises(ValueError, match="at least one image"):
        ConvNextImageProcessor()([])
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        ConvNextImageProcessor()([photo, tmp_path / "gone.jpg"])


@pytest.mark.parametrize(("config", "golden"), list(zip(CASES, json.loads(GOLDENS.read_text()), strict=True)))
def test_pixels_equal_those_that_transformers_gave(config, golden):
    size, fields = config
    result = np.array(ConvNextImageProcessor.from_dict(fields)(picture(*size)))[0]
    assert list(result.shape) == golden["shape"]
    scale = max(1, np.abs(golden["samples"]).max())  # without rescaling, values go to 500 and float32 has 7 digits
    assert np.abs(np.array(sample(result)) - golden["samples"]).max() <= 1e-6 * scale
    assert np.abs(result.mean(axis=(0, 1), dtype=np.float64) - golden["means"]).max() <= 1e-6 * scale


# --- rescaling and normalising --------------------------------------------------------------------------------------

MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]


@pytest.mark.parametrize("do_normalize", [True, False])
@pytest.mark.parametrize("do_rescale", [True, False])
@pytest.mark.parametrize("factor", [1 / 255, 0.5])
def test_without_resizing_each_byte_is_rescaled_and_normalised(do_rescale, do_normalize, factor):
    image = noise(11, 6)
    expected = np.asarray(image).astype(np.float64)
    if do_rescale:
        expected = expected * factor
    if do_normalize:
        expected = (expected - MEAN) / STD
    result = pixels(
        image,
        do_resize=False,
        do_rescale=do_rescale,
        rescale_factor=factor,
        do_normalize=do_normalize,
        image_mean=MEAN,
        image_std=STD,
    )
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


def test_one_mean_and_deviation_for_all_channels():
    image = noise(11, 6)
    short = pixels(image, size=8, image_mean=0.25, image_std=0.5)
    assert np.array_equal(short, pixels(image, size=8, image_mean=[0.25] * 3, image_std=[0.5] * 3))


def test_a_mean_of_one_channel_brings_images_to_grey(photo):
    processor = ConvNextImageProcessor(size=24, crop_pct=1.0, image_mean=[0.5], image_std=[0.25])
    result = np.array(processor([photo, photo.convert("L"), np.asarray(photo.convert("L"))]))
    assert result.shape == (3, 24, 24, 1)
    assert np.array_equal(result[0], result[1])
    assert np.array_equal(result[0], result[2])
    middle = photo.convert("L").resize((30, 24), Image.Resampling.BICUBIC).crop((3, 0, 27, 24))  # int(24 * 90 / 70)
    np.testing.assert_allclose(result[0, :, :, 0], (np.asarray(middle) / 255 - 0.5) / 0.25, atol=1e-5)


# --- resizing -------------------------------------------------------------------------------------------------------


def framed(width: int, height: int, left: int, top: int, right: int, bottom: int) -> Image.Image:
    """Blue inside the box, red outside."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (left, top, right, bottom))
    return image


@pytest.mark.parametrize("size", [32, {"shortest_edge": 32}])
@pytest.mark.parametrize(
    "image",
    [framed(96, 64, 16, 0, 80, 64), framed(64, 96, 0, 16, 64, 80)],
    ids=["wide", "tall"],
)
def test_below_384_the_short_side_is_resized_and_the_middle_kept(size, image):
    result = pixels(image, size=size, crop_pct=1.0, resample=0, **RAW)
    assert result.shape == (32, 32, 3)
    assert (result == BLUE).all()


def test_crop_pct_is_the_share_of_the_resized_image_that_is_kept():
    image = framed(64, 64, 16, 16, 48, 48)
    assert (pixels(image, size=32, crop_pct=0.5, resample=0, **RAW) == BLUE).all()
    blue = (pixels(image, size=32, crop_pct=1.0, resample=0, **RAW) == BLUE).all(axis=-1)
    assert blue.sum() == 16 * 16


def test_crop_pct_is_224_of_256_where_it_is_not_given():
    image = noise(50, 40)
    expected = pixels(image, size=56, crop_pct=0.875)
    assert np.array_equal(pixels(image, size=56), expected)
    assert not np.array_equal(pixels(image, size=56, crop_pct=0.9), expected)


def test_from_384_on_the_image_is_squeezed_whole_and_383_is_the_last_size_that_crops():
    image = framed(96, 64, 16, 0, 80, 64)
    red = (pixels(image, size=384, crop_pct=0.5, resample=0, **RAW) == RED).all(axis=-1)
    assert red.shape == (384, 384)
    # A third of the columns is red: nothing was cut off, whatever crop_pct says.
    assert red.all(axis=0).sum() == red.any(axis=0).sum() == pytest.approx(128, abs=1)
    image = framed(96, 64, 15, 0, 81, 64)  # the 64 columns in the middle, and one more for the rounding
    assert (pixels(image, size=383, crop_pct=1.0, resample=0, **RAW) == BLUE).all()


@pytest.mark.parametrize("resample", list(Image.Resampling))
def test_resample_is_pillows_filter(resample):
    image = noise(40, 40)
    result = pixels(image, size=16, crop_pct=1.0, resample=int(resample), **RAW)
    assert np.array_equal(result, np.asarray(image.resize((16, 16), resample)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 300), (300, 1), (3, 5), (32, 32), (31, 33)])
def test_images_of_any_shape_are_brought_to_size(shape):
    for size in (1, 32, None):
        result = pixels(Image.new("RGB", shape, (10, 20, 30)), **({"size": size} if size else {}), **RAW)
        assert result.shape == (size or 384, size or 384, 3)
        assert (result == (10, 20, 30)).all()


def test_a_strip_that_would_fill_the_memory_is_refused_and_squeezed_from_384_on():
    for shape in ((1, 60_000), (60_000, 1)):
        with pytest.raises(ValueError, match=f"{shape[0]} x {shape[1]}"):  # 256 x 15,360,000 pixels after resizing
            pixels(Image.new("RGB", shape), size=224)
        assert pixels(Image.new("RGB", shape), size=384).shape == (384, 384, 3)


@pytest.mark.parametrize("fields", [{"size": 32}, {"size": 384}, {"do_resize": False}])
def test_an_empty_image_is_an_error(fields):
    for shape in ((0, 4), (4, 0), (0, 0)):
        with pytest.raises(ValueError, match="image"):
            pixels(Image.new("RGB", shape), **fields)


def test_without_do_resize_images_keep_their_size_and_those_of_several_cannot_form_a_batch():
    processor = ConvNextImageProcessor(do_resize=False)
    assert processor([noise(7, 5), noise(7, 5)]).shape == (2, 5, 7, 3)
    with pytest.raises(ValueError, match="different sizes"):
        processor([noise(7, 5), noise(5, 7)])


# --- configurations -------------------------------------------------------------------------------------------------


def test_every_field_survives_the_round_trip_through_json():
    fields: dict[str, Any] = {
        "do_resize": False,
        "size": {"shortest_edge": 99},
        "crop_pct": 0.77,
        "resample": 4,
        "do_rescale": False,
        "rescale_factor": 0.1,
        "do_normalize": False,
        "image_mean": [0.3],
        "image_std": [0.7],
    }
    defaults = ConvNextImageProcessor().to_dict()
    assert not [name for name in fields if fields[name] == defaults[name]]  # or the test would not see it lost
    written = json.loads(json.dumps(ConvNextImageProcessor(**fields).to_dict()))
    assert ConvNextImageProcessor.from_dict(written).to_dict() == {
        "image_processor_type": "ConvNextImageProcessor",
        **fields,
    }


# Keys that transformers 4 and 5 write beside those that count, and one that is null.
INERT = {
    **{"_valid_processor_keys": ["images", "do_resize"], "data_format": "channels_first", "default_to_square": False},
    **dict.fromkeys(("auto_map", "crop_size", "device", "disable_grouping", "do_center_crop", "do_convert_rgb")),
    **dict.fromkeys(("input_data_format", "pad_size", "processor_class", "return_tensors", "size_divisor")),
    "do_pad": False,
}
WITHOUT_A_NAME = {name: value for name, value in PUBLISHED.items() if name != "image_processor_type"}


@pytest.mark.parametrize(
    "values",
    [
        PUBLISHED,
        {**PUBLISHED, **INERT},
        *(
            {**PUBLISHED, "image_processor_type": f"ConvNext{kind}"}
            for kind in ("ImageProcessorFast", "ImageProcessorPil")
        ),
        {**PUBLISHED, "image_processor_type": "ConvNextFeatureExtractor"},
        {**WITHOUT_A_NAME, "feature_extractor_type": "ConvNextFeatureExtractor", "size": 224},
    ],
)
def test_other_forms_of_the_published_configuration_are_read_as_it(values):
    assert ConvNextImageProcessor.from_dict(values).to_dict() == PUBLISHED


@pytest.mark.parametrize("key", ["image_processor_type", "feature_extractor_type"])
def test_a_configuration_of_another_processor_is_an_error_that_names_it(key):
    with pytest.raises(ValueError, match="CLIPImageProcessor"):  # it would resize without crop_pct, and crop otherwise
        ConvNextImageProcessor.from_dict({**WITHOUT_A_NAME, key: "CLIPImageProcessor"})


@pytest.mark.parametrize("name", ["do_center_crop", "do_pad", "do_flip_channel_order", "size_divisor", "crop_pc"])
def test_a_step_that_convnext_does_not_have_or_an_unknown_field_is_an_error_that_names_it(name):
    with pytest.raises(ValueError, match=name):
        ConvNextImageProcessor.from_dict({**PUBLISHED, name: True})


@pytest.mark.parametrize("values", [[], "resample", 3, None])
def test_a_configuration_that_is_no_object_is_an_error(values):
    with pytest.raises(ValueError, match="JSON object"):
        ConvNextImageProcessor.from_dict(values)


NAN, INFINITY, HUGE = float("nan"), float("inf"), 10**400
NONSENSE: dict[str, list[Any]] = {
    "do_resize": [1, "true", 0.0, []],
    "do_rescale": [1, "false"],
    "do_normalize": [0, "no"],
    "size": [
        *(0, -1, 224.0, "224", True, [224], {}, 10**9),
        *({"shortest_edge": 0}, {"shortest_edge": 224.5}, {"shortest_edge": None}, {"shortest_edge": True}),
        *({"height": 224, "width": 224}, {"shortest_edge": 224, "longest_edge": 300}, {"shortest_edge": [224]}),
    ],
    "crop_pct": [0, -0.875, 1.01, "0.875", True, NAN, INFINITY, [0.875], 1e-9, 1e-320, HUGE],
    "resample": [-1, 99, 2.5, "bicubic", True, [3], {}, NAN],
    "rescale_factor": [0, -1, "1/255", False, NAN, INFINITY, [0.1], HUGE],
    "image_mean": [
        *([], [1, 2], [0.5] * 4, "0.5", ["0.5"] * 3, [None] * 3),
        *({"r": 1}, True, [True] * 3, [NAN] * 3, [HUGE] * 3),
    ],
    "image_std": [[], [1, 2], [0.5] * 4, "0.5", [0.5, 0, 0.5], 0, [1e-60] * 3, [NAN] * 3, [INFINITY] * 3, True, HUGE],
}


@pytest.mark.parametrize("name", NONSENSE)
def test_a_value_that_makes_no_sense_is_an_error_that_names_its_field(name):
    for value in NONSENSE[name]:
        with pytest.raises(ValueError, match=name):
            ConvNextImageProcessor.from_dict({**PUBLISHED, name: value})


def test_means_and_deviations_of_different_lengths_are_an_error():
    with pytest.raises(ValueError, match=r"image_mean.*image_std"):
        ConvNextImageProcessor(image_mean=[0.5], image_std=[0.5] * 3)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)
NEARLY = {  # values that are often right, so that what lies behind the first check is reached too
    "size": st.integers(-1, 60) | st.builds(lambda side: {"shortest_edge": side}, st.integers(-1, 60)),
    "crop_pct": st.floats(-0.1, 1.1) | st.floats(),
    "resample": st.integers(-1, 6),
    "rescale_factor": st.floats(),
    "image_mean": st.lists(st.floats(), min_size=1, max_size=3),
    "image_std": st.lists(st.floats(), min_size=1, max_size=3),
    "do_resize": st.booleans(),
    "do_rescale": st.booleans(),
    "do_normalize": st.booleans(),
}


@settings(max_examples=200)
@given(st.fixed_dictionaries({}, optional={name: values | JSON for name, values in NEARLY.items()}))
def test_any_configuration_is_a_value_error_or_gives_pixels(values):
    try:
        processor = ConvNextImageProcessor.from_dict(values)
        result = processor.preprocess(np.zeros((5, 4, 3), np.uint8))
    except ValueError:
        return
    side = processor.size["shortest_edge"]
    assert result.shape[:2] == ((side, side) if processor.do_resize else (5, 4))
    assert result.shape[2] == len(processor.image_mean)
    assert np.isfinite(result).all()


def test_arguments_count_before_the_fields_of_a_configuration(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED))
    for processor in (
        ConvNextImageProcessor.from_dict(PUBLISHED, size=42, do_rescale=False),
        ConvNextImageProcessor.from_pretrained(tmp_path, size=42, do_rescale=False),
    ):
        assert processor.to_dict() == {**PUBLISHED, "size": {"shortest_edge": 42}, "do_rescale": False}
    with pytest.raises(ValueError, match="'sizes'"):
        ConvNextImageProcessor.from_dict(PUBLISHED, sizes=42)


# --- files ----------------------------------------------------------------------------------------------------------


def test_the_file_of_a_folder_is_read_and_named_where_it_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}.*preprocessor_config\.json|preprocessor.*{tmp_path}"):
        ConvNextImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ConvNextImageProcessor.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED))
    for folder in (tmp_path, str(tmp_path)):
        assert ConvNextImageProcessor.from_pretrained(folder).to_dict() == PUBLISHED


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1, 2]", b"null", b"\xff\xfe{}", json.dumps({**PUBLISHED, "resample": 9}).encode(), b"[" * 100_000],
    ids=["empty", "cut", "list", "null", "not UTF-8", "nonsense", "nested"],
)
def test_a_file_that_holds_something_else_is_named_in_the_error(tmp_path, content):
    path = tmp_path / "preprocessor_config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json") as error:
        ConvNextImageProcessor.from_pretrained(tmp_path)
    assert str(error.value).count(str(path)) == 1
