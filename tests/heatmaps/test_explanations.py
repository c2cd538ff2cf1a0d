"""Pictures as people have them: what can be read is explained, what cannot is named."""

import io

import numpy as np
import pytest
from PIL import Image

from mlx_convnextv2 import ConvNextImageProcessor, ImageClassifier
from mlx_convnextv2.heatmaps import explain, explain_images, write_heat_maps


@pytest.fixture
def classifier(small_model, small_processor):
    return ImageClassifier(small_model, small_processor, batch_size=3)


@pytest.fixture
def folder(tmp_path, photo):
    """Pictures in a tree, one of them damaged."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/a.png", "deep/b.jpg", "z.jpg"):
        photo.save(tmp_path / "in" / name)
    (tmp_path / "in" / "broken.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:100])
    return tmp_path / "in"


def test_an_explanation_agrees_with_the_classifier_and_explain(classifier, photo):
    (result,) = explain_images(classifier, [photo])
    (prediction,) = classifier(photo, top_k=1)
    assert (result.label, result.index) == (prediction["label"], prediction["index"])
    assert abs(result.score - prediction["score"]) < 1e-5
    expected = np.array(explain(classifier.model, classifier.processor(photo)))[0]
    assert np.abs(result.heat_map - expected).max() < 1e-6
    assert result.heat_map is not None
    assert abs(result.heat_map.sum() - result.value) < 1e-5
    assert result.size == photo.size


def test_a_photo_that_a_phone_turned_is_explained_as_it_is_classified(classifier, photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "turned.jpg", exif=exif)
    (result,) = explain_images(classifier, [tmp_path / "turned.jpg"])
    (prediction,) = classifier(tmp_path / "turned.jpg", top_k=1)
    assert result.index == prediction["index"]
    assert abs(result.score - prediction["score"]) < 1e-5


def test_pictures_keep_their_order_whatever_becomes_of_them(classifier, folder, photo):
    images = [folder / "a.png", folder / "missing.png", folder, photo, io.BytesIO(b"no picture"), folder / "z.jpg"]
    results = list(explain_images(classifier, images))
    problems = [None if result.error is None else str(result.error) for result in results]
    assert [str(result.image).removeprefix(f"{folder}/") for result in results[2:7]] == [
        *("a.png", "broken.png", "deep/a.png", "deep/b.jpg", "z.jpg"),
    ]
    assert [index for index, problem in enumerate(problems) if problem] == [1, 3, 8]
    assert problems[1] == f"no such image: {folder / 'missing.png'}"
    assert "broken.png" in str(problems[3])
    assert "is not an image" in str(problems[8])


def test_pictures_of_different_sizes_are_explained_where_none_is_resized(small_model):
    classifier = ImageClassifier(small_model, ConvNextImageProcessor(do_resize=False), batch_size=4)
    pictures = [Image.new("RGB", size, "gray") for size in ((32, 32), (64, 32), (64, 32), (31, 32), (96, 64))]
    results = list(explain_images(classifier, pictures))
    assert [None if result.heat_map is None else result.heat_map.shape for result in results] == [
        *((1, 1), (1, 2), (1, 2), None, (2, 3)),
    ]
    assert "too small: the model needs 32 x 32" in str(results[3].error)


def test_a_raised_limit_of_pixels_counts_for_drawing_too(classifier, monkeypatch, photo):
    monkeypatch.setattr("mlx_convnextv2.heatmaps.drawing.MAX_PIXELS", 100)
    (result,) = explain_images(classifier, [photo])
    assert result.draw().size == photo.size
    result.max_pixels = 100
    with pytest.raises(ValueError, match="too many pixels"):
        result.draw()


def test_one_open_picture_may_be_there_twice_and_an_iterator_is_taken_one_by_one(classifier, folder):
    with Image.open(folder / "a.png") as picture:
        maps = [np.asarray(result.heat_map) for result in explain_images(classifier, [picture] * 5)]
    assert max(np.abs(maps[0] - one).max() for one in maps) < 1e-5
    asked = iter([folder / "a.png"] * 3)
    next(explain_images(classifier, asked))
    assert len(list(asked)) == 2


def test_an_open_file_is_read_once_and_can_still_be_drawn(classifier, photo):
    file = io.BytesIO()
    photo.save(file, "PNG")
    file.seek(0)
    (result,) = explain_images(classifier, [file])
    assert result.draw().size == photo.size


def test_a_label_and_what_it_is_compared_with_are_named(classifier, photo):
    (result,) = explain_images(classifier, [photo], "thing 3", against=5)
    assert result.legend().startswith("thing 3 rather than thing 5  ")
    assert result.to_dict()["against"] == "thing 5"


@pytest.mark.parametrize("arguments", [{"label": "nothing"}, {"label": 2, "against": "thing 2"}, {"layer": "stage9"}])
def test_a_wrong_argument_is_found_before_a_picture_is_read(classifier, arguments):
    with pytest.raises(ValueError, match=r"nothing|itself|stage9"):
        explain_images(classifier, iter(lambda: pytest.fail("a picture was asked for"), None), **arguments)


def test_files_keep_their_folders_and_their_numbers_are_the_maps(classifier, folder, tmp_path):
    for format in ("png", "npy"):
        written = [file for _, file in write_heat_maps(classifier, [folder], tmp_path / "out", format=format)]
        expected = [f"a.heatmap.{format}", None, *(f"deep/{n}.heatmap.{format}" for n in "ab"), f"z.heatmap.{format}"]
        assert [file and str(file.relative_to(tmp_path / "out")) for file in written] == expected
    (result,) = explain_images(classifier, [folder / "a.png"])
    assert np.abs(np.load(tmp_path / "out" / "a.heatmap.npy") - result.heat_map).max() < 1e-6
    with Image.open(tmp_path / "out" / "deep" / "b.heatmap.png") as drawn, Image.open(folder / "deep/b.jpg") as picture:
        assert drawn.size == picture.size
        assert drawn.info["Description"].startswith("Heat map of thing ")


def test_two_pictures_of_one_name_get_two_files(classifier, folder, tmp_path, photo):
    images = [folder / "a.png", folder / "deep" / "a.png", photo, photo]
    names = [file and file.name for _, file in write_heat_maps(classifier, images, tmp_path / "out")]
    assert names == ["a.heatmap.png", "a-2.heatmap.png", "picture.heatmap.png", "picture-2.heatmap.png"]
    photo.save(tmp_path / "A.png")  # on the disks of most Macs a.heatmap.png and A.heatmap.png are one file
    images = [tmp_path / "A.png", folder / "a.png", folder / "deep" / "a.png"]
    names = [file and file.name for _, file in write_heat_maps(classifier, images, tmp_path / "more")]
    assert names == ["A.heatmap.png", "a-2.heatmap.png", "a-3.heatmap.png"]


def test_a_file_that_is_there_is_left_alone_unless_asked(classifier, folder, tmp_path):
    (tmp_path / "a.heatmap.png").write_text("precious")
    ((result, file),) = write_heat_maps(classifier, [folder / "a.png"], tmp_path)
    assert "exists already: pass overwrite" in str(result.error)
    assert file is None
    assert (tmp_path / "a.heatmap.png").read_text() == "precious"
    ((result, file),) = write_heat_maps(classifier, [folder / "a.png"], tmp_path, overwrite=True)
    assert result.error is None
    assert file is not None
    assert file.read_bytes().startswith(b"\x89PNG")


def test_maps_among_the_pictures_are_not_explained_again(classifier, folder):
    first = list(write_heat_maps(classifier, [folder], folder))
    again = list(write_heat_maps(classifier, [folder], folder, overwrite=True))
    assert [result.image for result, _ in first] == [result.image for result, _ in again]


@pytest.mark.parametrize("place", ["file/below", "file"])
def test_where_nothing_can_be_written_the_error_says_so(classifier, folder, tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    ((result, file),) = write_heat_maps(classifier, [folder / "a.png"], tmp_path / place)
    assert "cannot be written" in str(result.error)
    assert file is None
    assert not list(tmp_path.glob("**/.*.partial"))


def test_a_failed_write_leaves_nothing_behind(classifier, folder, tmp_path, monkeypatch):
    def save(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    ((result, _),) = write_heat_maps(classifier, [folder / "a.png"], tmp_path / "out")
    assert "cannot be written (No space left on device)" in str(result.error)
    assert list((tmp_path / "out").iterdir()) == []
