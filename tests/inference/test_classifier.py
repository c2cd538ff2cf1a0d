"""ImageClassifier: images in, predictions out, one by one, in batches and as a stream."""

from __future__ import annotations

import io
import json
import re

import mlx.core as mx
import numpy as np
import pytest
from conftest import SMALL, small_classifier
from PIL import Image

from mlx_convnextv2 import (
    ConvNextImageProcessor,
    ConvNextV2Backbone,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ConvNextV2Model,
    ImageClassifier,
    save,
)
from mlx_convnextv2.classify import main as classify
from mlx_convnextv2.model.labels import imagenet_1k

CLASSES = 7  # of small_model
PIXELS = np.random.RandomState(3).randint(0, 256, (36, 40, 3)).astype(np.uint8)


def pictures(count: int, width: int = 40, height: int = 36) -> list[Image.Image]:
    random = np.random.RandomState(0)
    coarse = [random.randint(0, 256, (3, 4, 3)).astype(np.uint8) for _ in range(count)]
    return [Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC) for array in coarse]


def scores(predictions: list[dict] | None) -> np.ndarray:
    """The scores in the order of the classes."""
    assert predictions is not None
    by_index = {prediction["index"]: prediction["score"] for prediction in predictions}
    return np.array([by_index[index] for index in sorted(by_index)])


@pytest.fixture(scope="module")
def classifier(small_model, small_processor) -> ImageClassifier:
    return ImageClassifier(small_model, small_processor)


# --- predictions ----------------------------------------------------------------------------------------------------


def test_scores_are_the_softmax_of_the_logits(classifier, small_model, small_processor, photo):
    logits = np.array(small_model(small_processor(photo)).logits)[0].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(scores(classifier(photo, top_k=CLASSES)), expected, atol=1e-6)


def test_predictions_name_label_score_and_index_with_the_best_first(classifier, photo):
    predictions = classifier(photo, top_k=CLASSES)
    assert [set(prediction) for prediction in predictions] == [{"label", "score", "index"}] * CLASSES
    assert all(prediction["label"] == f"thing {prediction['index']}" for prediction in predictions)
    found = [prediction["score"] for prediction in predictions]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == CLASSES
    assert sum(found) == pytest.approx(1, abs=1e-6)
    assert json.loads(json.dumps(predictions)) == predictions


@pytest.mark.parametrize(
    ("top_k", "count"), [(1, 1), (3, 3), (CLASSES, CLASSES), (CLASSES + 1, CLASSES), (10**9, CLASSES)]
)
def test_top_k_is_how_many_labels_there_are_at_most(classifier, photo, top_k, count):
    predictions = classifier(photo, top_k=top_k)
    assert predictions == classifier(photo, top_k=CLASSES)[:count]
    assert len(predictions) == count


def test_five_labels_by_default(classifier, photo):
    assert len(classifier(photo)) == 5


@pytest.mark.parametrize("top_k", [0, -1, 1.5, "3", None])
def test_a_top_k_that_is_no_positive_whole_number_is_an_error(classifier, photo, top_k):
    with pytest.raises(ValueError, match="top_k"):
        classifier(photo, top_k=top_k)


def test_of_equal_scores_the_lower_index_comes_first(small_processor, photo):
    model = small_classifier(num_labels=40)
    bias = mx.zeros(40)
    bias[17] = 1.0
    bias[30] = 1.0
    model.classifier.update({"weight": mx.zeros_like(model.classifier.weight), "bias": bias})
    predictions = ImageClassifier(model, small_processor)(photo, top_k=40)
    indices = [prediction["index"] for prediction in predictions]
    assert indices == [17, 30, *(index for index in range(40) if index not in (17, 30))]


def test_extreme_logits_give_scores_and_no_nan(small_processor, photo):
    model = small_classifier(num_labels=3)
    model.classifier.update({"weight": mx.zeros_like(model.classifier.weight), "bias": mx.array([-1e30, 1e30, 0.0])})
    predictions = ImageClassifier(model, small_processor)(photo, top_k=3)
    assert [(p["index"], p["score"]) for p in predictions] == [(1, 1.0), (0, 0.0), (2, 0.0)]


@pytest.mark.parametrize(("count", "names"), [(3, ["LABEL_0", "LABEL_1", "LABEL_2"]), (1000, imagenet_1k())])
def test_classes_without_labels_are_named(small_processor, photo, count, names):
    predictions = ImageClassifier(small_classifier(num_labels=count), small_processor)(photo, top_k=3)
    assert all(prediction["label"] == names[prediction["index"]] for prediction in predictions)


def test_a_model_with_one_output_gives_its_one_label(small_processor, photo):
    assert ImageClassifier(small_classifier(num_labels=1), small_processor)(photo) == [
        {"label": "LABEL_0", "score": 1.0, "index": 0}
    ]


# --- images ---------------------------------------------------------------------------------------------------------


def test_paths_files_arrays_and_pil_images_give_the_same_predictions(classifier, tmp_path, photo):
    path = tmp_path / "photo.png"
    photo.save(path)
    expected = classifier(photo)
    for image in (path, str(path), np.asarray(photo), io.BytesIO(path.read_bytes())):
        assert classifier(image) == expected
    images = [path, photo, str(path), np.asarray(photo), io.BytesIO(path.read_bytes())]
    for predictions in classifier(images, top_k=CLASSES):
        np.testing.assert_allclose(scores(predictions), scores(classifier(photo, top_k=CLASSES)), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("container", [list, tuple])
def test_a_batch_gives_what_its_images_give_one_by_one(small_model, small_processor, batch_size, container):
    images = pictures(7)
    classifier = ImageClassifier(small_model, small_processor, batch_size=batch_size)
    one_by_one = [scores(classifier(image, top_k=CLASSES)) for image in images]
    assert np.abs(np.diff(one_by_one, axis=0)).max(axis=1).min() > 1e-4  # neighbours differ, or order would not show
    batch = classifier(container(images), top_k=CLASSES)
    np.testing.assert_allclose([scores(predictions) for predictions in batch], one_by_one, atol=1e-6)


def test_a_list_of_one_is_a_list_and_an_empty_list_stays_empty(classifier, photo):
    assert classifier([photo]) == [classifier(photo)]
    assert classifier([]) == []
    assert list(classifier.stream([])) == []


def test_an_image_that_cannot_be_read_is_an_error_of_its_own_kind(classifier, tmp_path, photo):
    broken = tmp_path / "broken.jpg"
    broken.write_text("no image")
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        classifier([photo, tmp_path / "gone.jpg", broken])
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        classifier(broken)


def test_grey_checkpoints_classify(photo):
    processor = ConvNextImageProcessor(size=32, image_mean=[0.5], image_std=[0.5])
    classifier = ImageClassifier(small_classifier(num_channels=1, num_labels=3), processor)
    assert len(classifier(photo)) == 3
    assert classifier(photo) == classifier(photo.convert("L"))


# --- the stream -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize("pattern", ["gggbbgg", "bgbgbgb", "bbbb", "ggggb", "bg", "gbbbbbg"])
def test_a_stream_keeps_the_order_with_errors_in_between(small_model, small_processor, tmp_path, pattern, batch_size):
    good = iter(pictures(pattern.count("g")))
    images = [next(good) if kind == "g" else tmp_path / f"{i}.jpg" for i, kind in enumerate(pattern)]
    classifier = ImageClassifier(small_model, small_processor, batch_size=batch_size)
    results = list(classifier.stream(images, top_k=CLASSES))
    assert [result.image for result in results] == images
    for kind, image, result in zip(pattern, images, results, strict=True):
        if kind == "g":
            assert result.error is None
            expected = scores(classifier(image, top_k=CLASSES))
            np.testing.assert_allclose(scores(result.predictions), expected, atol=1e-6)
        else:
            assert result.predictions is None
            assert isinstance(result.error, FileNotFoundError)
            assert str(image) in str(result.error)


def test_a_stream_takes_no_more_images_than_it_needs(small_model, small_processor):
    taken = []

    def camera():
        for image in [None, *pictures(5)]:
            taken.append(image)
            yield image

    stream = ImageClassifier(small_model, small_processor, batch_size=2).stream(camera())
    assert taken == []
    for count in range(1, 7):
        assert (next(stream).error is None) == (count > 1)
        assert len(taken) == count  # a camera's next frame is taken when this one is answered


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_one_opened_image_many_times_in_a_list_is_read_right(small_model, small_processor, tmp_path, kind):
    """Pillow reads it when it is first used, and two threads that do so at once would spoil it."""
    path = tmp_path / f"noise.{kind}"
    Image.effect_noise((1500, 1200), 60).convert("RGB").save(path)
    classifier = ImageClassifier(small_model, small_processor)
    expected = classifier([path] * 4)
    for _ in range(3):
        with Image.open(path) as image:
            assert classifier([image] * 4) == expected


def test_things_that_are_no_image_are_errors_of_the_stream(classifier, photo):
    things = [None, photo, np.zeros((3, 8, 8), np.uint8), 5, Image.new("RGB", (0, 4))]
    results = list(classifier.stream(things))
    assert [isinstance(result.error, ValueError) for result in results] == [True, False, True, True, True]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_without_resizing_images_may_have_several_sizes(small_model, batch_size):
    processor = ConvNextImageProcessor(do_resize=False)
    classifier = ImageClassifier(small_model, processor, batch_size=batch_size)
    shapes = [(32, 32), (32, 32), (40, 36), (32, 40), (32, 32), (32, 32)]
    images = [image for i, shape in enumerate(shapes) for image in pictures(i + 1, *shape)[-1:]]
    one_by_one = [scores(classifier(image, top_k=CLASSES)) for image in images]
    batch = classifier(images, top_k=CLASSES)
    np.testing.assert_allclose([scores(predictions) for predictions in batch], one_by_one, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_without_resizing_an_image_too_small_for_the_model_does_not_stop_the_others(small_model, batch_size):
    classifier = ImageClassifier(small_model, ConvNextImageProcessor(do_resize=False), batch_size=batch_size)
    [good] = pictures(1, 32, 32)
    results = list(classifier.stream([good, Image.new("RGB", (31, 32)), good]))  # the model needs 32 x 32
    assert [type(result.error) for result in results] == [type(None), ValueError, type(None)]
    assert "32" in str(results[1].error)


@pytest.mark.parametrize("name", ["bad.png", None])
def test_what_an_image_lacks_is_said_with_its_name(small_model, tmp_path, name):
    classifier = ImageClassifier(small_model, ConvNextImageProcessor(do_resize=False))
    image = Image.new("RGB", (3, 3))
    if name is not None:
        image.save(tmp_path / name)
        image = tmp_path / name
    [result] = classifier.stream([image])
    expected = "an image of 3 x 3 pixels is too small: the model needs 32 x 32"
    assert str(result.error) == (expected if name is None else f"{image}: {expected}")


def test_an_image_too_narrow_is_named(classifier, tmp_path):
    Image.new("L", (1, 200_000)).save(tmp_path / "strip.png")
    processor = ConvNextImageProcessor(size=300)
    [result] = ImageClassifier(classifier.model, processor).stream([tmp_path / "strip.png"])
    assert re.search(r"strip\.png.*too narrow", str(result.error))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_image_for_which_memory_is_lacking_does_not_stop_the_others(small_model, monkeypatch, tmp_path, batch_size):
    processor = ConvNextImageProcessor(size=32)
    prepare = processor.preprocess

    def preprocess(image):
        if isinstance(image, str):
            raise MemoryError
        return prepare(image)

    monkeypatch.setattr(processor, "preprocess", preprocess)
    [good] = pictures(1)
    results = list(ImageClassifier(small_model, processor, batch_size=batch_size).stream([good, "vast.png", good]))
    assert [type(result.error) for result in results] == [type(None), OSError, type(None)]
    assert str(results[1].error) == "vast.png: there is not enough memory to prepare this image"


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_the_error_of_their_image(small_model, monkeypatch, batch_size, value):
    processor = ConvNextImageProcessor(size=32)
    prepare = processor.preprocess
    monkeypatch.setattr(
        processor, "preprocess", lambda image: prepare(PIXELS) * (value if isinstance(image, str) else 1)
    )
    results = list(ImageClassifier(small_model, processor, batch_size=batch_size).stream([PIXELS, "bad.png", PIXELS]))
    assert [result.predictions is None for result in results] == [False, True, False]
    assert str(results[1].error).startswith("bad.png: its scores are not finite")
    expected = ImageClassifier(small_model, ConvNextImageProcessor(size=32))(PIXELS, top_k=5)
    for good in (results[0], results[2]):
        np.testing.assert_allclose(scores(good.predictions), scores(expected), atol=1e-6)


@pytest.mark.parametrize("command", [["--format", "json"], ["--format", "csv"], []])
def test_a_damaged_model_fails_for_every_image_and_prints_no_nan(tmp_path, capsys, photo, command):
    model = small_classifier(num_labels=3)
    model.classifier.bias = mx.array([0, np.nan, 0])
    save(model, tmp_path / "damaged", ConvNextImageProcessor(size=32))
    for name in ("a.png", "b.png"):
        photo.save(tmp_path / name)
    images = [str(tmp_path / name) for name in ("a.png", "b.png")]
    assert classify([*images, "--model", str(tmp_path / "damaged"), *command]) == 2
    out, err = capsys.readouterr()
    assert "nan" not in out.lower()
    assert [line for line in err.splitlines() if "not finite" in line and "a.png" in line]
    assert [line for line in err.splitlines() if "not finite" in line and "b.png" in line]


# --- what it is made from -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, lambda folder: folder], ids=["str", "Path"])
def test_a_folder_is_a_model_with_its_processor(classifier, mlx_folder, hf_folder, photo, kind):
    for folder in (mlx_folder, hf_folder):
        np.testing.assert_allclose(
            scores(ImageClassifier(kind(folder))(photo, top_k=CLASSES)),
            scores(classifier(photo, top_k=CLASSES)),
            atol=1e-6,
        )


def test_a_processor_that_is_given_replaces_the_folders_own(mlx_folder, small_model, photo):
    processor = ConvNextImageProcessor(size=64)
    assert ImageClassifier(mlx_folder, processor)(photo) == ImageClassifier(small_model, processor)(photo)
    assert ImageClassifier(mlx_folder, processor)(photo) != ImageClassifier(mlx_folder)(photo)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", mx.float16])
def test_in_half_precision_the_best_label_is_the_same_and_scores_are_float32(classifier, mlx_folder, dtype):
    half = ImageClassifier(mlx_folder, dtype=dtype)
    assert half.model.classifier.weight.dtype in (mx.float16, mx.bfloat16)
    images = pictures(6)
    for full, rounded in zip(classifier(images, top_k=CLASSES), half(images, top_k=CLASSES), strict=True):
        assert full[0]["score"] - full[1]["score"] > 0.02  # else rounding may exchange them
        assert rounded[0]["index"] == full[0]["index"]
        np.testing.assert_allclose(scores(rounded), scores(full), atol=0.05)
        # a softmax in half precision would miss 1 by about 1e-3
        assert sum(prediction["score"] for prediction in rounded) == pytest.approx(1, abs=1e-6)


def test_a_model_in_training_is_used_as_for_inference_and_left_in_training(small_processor, photo):
    model = small_classifier(num_labels=CLASSES, drop_path_rate=0.9)
    expected = ImageClassifier(model, small_processor)(photo)
    model.train()
    assert ImageClassifier(model, small_processor)(photo) == expected
    assert model.training


@pytest.mark.parametrize(
    "make",
    [
        lambda config: ConvNextV2Model(config),
        lambda config: ConvNextV2Backbone(config),
        lambda config: ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL, num_labels=0)),
    ],
    ids=["model", "backbone", "num_labels=0"],
)
def test_a_model_without_a_head_is_an_error(small_processor, tmp_path, make):
    model = make(ConvNextV2Config(**SMALL))
    with pytest.raises(ValueError, match="head"):
        ImageClassifier(model, small_processor)
    save(model, tmp_path / "headless", small_processor)
    with pytest.raises(ValueError, match=r"headless.*head"):
        ImageClassifier(tmp_path / "headless")


def test_a_loaded_model_without_a_processor_is_an_error_that_says_what_to_pass(small_model):
    with pytest.raises(ValueError, match=r"processor.*ImageClassifier\(model, processor\)"):
        ImageClassifier(small_model)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "8", None])
def test_a_batch_size_that_is_no_positive_whole_number_is_an_error(small_model, small_processor, batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        ImageClassifier(small_model, small_processor, batch_size=batch_size)


@pytest.mark.parametrize("option", [{"dtype": "float16"}, {"revision": "main"}])
def test_options_for_loading_are_not_ignored_where_the_model_is_loaded(small_model, small_processor, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        ImageClassifier(small_model, small_processor, **option)


def test_a_folder_that_does_not_exist_is_named_in_the_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ImageClassifier(tmp_path / "nowhere")
