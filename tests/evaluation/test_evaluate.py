"""`evaluate` finds the images, answers them as `classify` does, and counts what can be counted."""

import itertools
import json
import re
import shutil
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from conftest import ROOT, SMALL, randomize
from labelled import write_folders, write_image

from mlx_convnextv2 import (
    ConvNextImageProcessor,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ImageClassifier,
    save,
)
from mlx_convnextv2.evaluate import main
from mlx_convnextv2.evaluation import evaluate
from mlx_convnextv2.images.class_folders import find_splits, read_class_folders
from mlx_convnextv2.model.labels import imagenet_1k_synsets

sklearn_metrics = pytest.importorskip("sklearn.metrics")

THINGS = [f"thing {i}" for i in range(7)]


@pytest.fixture
def photos(tmp_path):
    """Makes folders of classes below one folder, and returns it."""

    def photos(*classes, count=2, root="photos"):
        return write_folders(tmp_path / root, *classes, count=count)

    return photos


def test_every_figure_is_that_of_the_answers_that_classify_gives(mlx_folder, photos):
    data = photos(*THINGS, count=3)
    found = evaluate(mlx_folder, data, batch_size=4)
    files = read_class_folders(data).files
    assert found.images == list(files)
    assert [found.labels[i] for i in found.targets] == [file.parent.name for file in files]
    answers = ImageClassifier(mlx_folder)(list(files), top_k=7)
    for i, predictions in enumerate(answers):
        assert found.answers[i].tolist() == [p["index"] for p in predictions[:5]]
        np.testing.assert_allclose(found.scores[i], [p["score"] for p in predictions[:5]], rtol=1e-4)
        order = [p["label"] for p in predictions]
        right = files[i].parent.name
        assert found.ranks[i] == order.index(right)
        assert found.target_scores[i] == pytest.approx(predictions[order.index(right)]["score"], rel=1e-4)
    predicted = [predictions[0]["label"] for predictions in answers]
    true = [file.parent.name for file in files]
    assert found.top1 == sklearn_metrics.accuracy_score(true, predicted)
    assert found.confusion_matrix.tolist() == sklearn_metrics.confusion_matrix(true, predicted, labels=THINGS).tolist()
    scores = np.array([[p["score"] for p in sorted(predictions, key=lambda p: p["index"])] for predictions in answers])
    scores /= scores.sum(axis=1, keepdims=True)  # which scikit-learn checks in float64
    assert found.loss == pytest.approx(sklearn_metrics.log_loss(true, scores, labels=THINGS), rel=1e-4)
    assert found.top5 == sklearn_metrics.top_k_accuracy_score(true, scores, k=5, labels=THINGS)


def test_a_loss_is_finite_where_a_probability_rounds_to_nothing(photos, small_processor):
    model = ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL, id2label=dict(enumerate(THINGS))))
    randomize(model)
    model.classifier.weight = model.classifier.weight * 0
    model.classifier.bias = mx.array([500.0, 0, 0, 0, 0, 0, 0])
    found = evaluate(ImageClassifier(model.eval(), small_processor), photos("thing 3"))
    assert found.losses.tolist() == [500, 500]
    assert found.target_scores.tolist() == [0, 0]


def test_images_that_cannot_be_read_are_named_and_count_in_nothing(mlx_folder, photos):
    data = photos("thing 0", "thing 4")
    whole = evaluate(mlx_folder, data)
    (data / "thing 0" / "a.png").write_bytes(b"no image")
    (data / "thing 4" / "z.jpg").write_bytes(b"")
    found = evaluate(mlx_folder, data)
    assert [failure.image.name for failure in found.failures] == ["a.png", "z.jpg"]
    assert all(str(failure.image) in failure.error for failure in found.failures)
    assert found.images == whole.images
    assert found.answers.tolist() == whole.answers.tolist()
    assert found.targets.tolist() == [0, 0, 4, 4]


def test_nothing_that_can_be_read_is_an_error(mlx_folder, tmp_path):
    (tmp_path / "data" / "thing 1").mkdir(parents=True)
    (tmp_path / "data" / "thing 1" / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"none of the 1 images could be read, the first because .*a\.png"):
        evaluate(mlx_folder, tmp_path / "data")


def test_classes_without_images_are_no_part_of_the_means(mlx_folder, photos):
    found = evaluate(mlx_folder, photos("thing 0", "thing 4"))
    assert found.classes.support.tolist() == [2, 0, 0, 0, 2, 0, 0]
    recall = [np.mean(found.correct[:2]), np.mean(found.correct[2:])]
    assert found.classes.macro()[1] == pytest.approx(np.mean(recall))


def test_it_is_watched_image_by_image(mlx_folder, photos):
    seen = []
    found = evaluate(mlx_folder, photos(*THINGS[:3]), watch=lambda *counts: seen.append(counts))
    assert [done for done, _, _ in seen] == list(range(1, 7))
    assert {total for _, total, _ in seen} == {6}
    assert seen[-1][2] == found.correct.sum()


def test_folders_read_before_and_a_classifier_made_before_are_taken(small_model, small_processor, mlx_folder, photos):
    data = photos("thing 0", "thing 4")
    found = evaluate(ImageClassifier(small_model, small_processor), read_class_folders(data))
    assert found.answers.tolist() == evaluate(mlx_folder, data).answers.tolist()
    with pytest.raises(ValueError, match="give them to the ImageClassifier"):
        evaluate(ImageClassifier(small_model, small_processor), data, dtype="float16")


# --- which images ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("splits", "asked", "taken"),
    [
        (["train", "val", "test"], None, "test"),
        (["train", "val"], None, "val"),
        (["train", "validation"], None, "validation"),
        (["train", "val", "test"], "val", "val"),
        (["train", "val", "test"], "train", "train"),
        (["train"], None, "train"),
        (["train"], "all", "train"),
        (["val"], None, "val"),
        (["val"], "all", "val"),
    ],
)
def test_the_split_that_was_not_trained_with_is_taken_unless_another_is_asked_for(
    splits, asked, taken, mlx_folder, photos, tmp_path
):
    for split in splits:
        photos("thing 0", "thing 1", root=f"photos/{split}")
    found = evaluate(mlx_folder, tmp_path / "photos", split=asked)
    assert {file.parent.parent.name for file in found.images} == {taken}
    assert found.data == str(tmp_path / "photos" / taken)


@pytest.mark.parametrize(
    ("splits", "asked", "message"),
    [
        (["train", "val"], "test", "has no test/"),
        (["train"], "val", "has no val/, and the model does not say how"),
        ([], "train", "has no train/, and the model does not say"),
        (["train", "val"], "all", "is split into train, val: say which"),
        (["train", "val"], "most", "split must be one of test, val, train, all"),
    ],
)
def test_a_split_that_is_not_there_is_an_error(splits, asked, message, mlx_folder, photos, tmp_path):
    for split in splits or ["."]:
        photos("thing 0", "thing 1", root=f"photos/{split}")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate(mlx_folder, tmp_path / "photos", split=asked)


@pytest.fixture
def trained(mlx_folder, photos, tmp_path):
    """A model that says that it was trained on a folder, and that folder."""
    data = photos("thing 0", "thing 1", count=10)
    model = shutil.copytree(mlx_folder, tmp_path / "trained")
    (model / "args.yaml").write_text(f"data: {data}\nval_split: 0.3\nseed: 5\nfull: false\n")
    return model, data


def test_what_a_model_was_trained_with_is_left_out_of_its_own_folder(trained):
    model, data = trained
    splits = find_splits(data, 0.3, 5)
    found = evaluate(model, data)
    assert found.images == list(splits.val.files)
    assert found.data == f"{data}, the 30% that training set aside"
    assert evaluate(model, data, split="train").images == list(splits.train.files)
    assert len(evaluate(model, data, split="all")) == 20


def test_another_folder_is_taken_whole_unless_asked(trained, photos):
    model, _ = trained
    others = photos("thing 0", "thing 1", root="others/photos")  # of the same name
    assert len(evaluate(model, others)) == 4
    assert evaluate(model, others, split="val").images == list(find_splits(others, 0.3, 5).val.files)


def test_a_folder_that_has_moved_is_known_by_its_name(trained, tmp_path, monkeypatch):
    model, data = trained
    expected = [file.relative_to(data) for file in find_splits(data, 0.3, 5).val.files]
    (tmp_path / "elsewhere").mkdir()
    moved = data.rename(tmp_path / "elsewhere" / data.name)
    monkeypatch.chdir(moved)
    assert [file.relative_to(".") for file in evaluate(model, ".").images] == expected
    renamed = moved.rename(tmp_path / "other")
    assert len(evaluate(model, renamed)) == 20


@pytest.mark.parametrize(
    "content",
    ["", "- 1", "data: [", "data: {data}\nval_split: 2.0\nseed: 1", "data: {data}\nseed: 1", "val_split: 0.1\nseed: 1"]
    + [
        "data: {data}\nval_split: 0.1\nseed: x",
        "a: &a [1]\ndata: *a\nval_split: 0.1\nseed: 1",
        "data: !!python/none ''",
    ]
    + ["#" * 100_001],
)
def test_what_training_left_is_believed_only_where_it_makes_sense(trained, content):
    model, data = trained
    (model / "args.yaml").write_text(content.replace("{data}", str(data)))
    assert len(evaluate(model, data)) == 20


# --- ImageNet -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A small model of ImageNet's 1000 classes, which carries no labels, and a validation set as its owners have it."""
    root = tmp_path_factory.mktemp("imagenet")
    model = ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL, num_labels=1000))
    randomize(model)
    model.eval()
    save(model, root / "model", ConvNextImageProcessor(size=32))
    for index, number in enumerate(imagenet_1k_synsets()):
        if index % 50 == 17:
            for j in range(2):
                write_image(root / "imagenet" / "val" / number / f"ILSVRC2012_val_{index:05d}{j}.JPEG", index + j)
    return root


def test_imagenets_validation_set_is_measured_with_one_command(imagenet, capsys):
    model, data = imagenet / "model", imagenet / "imagenet"
    assert main(["--model", str(model), "--data", str(data), "--json", str(imagenet / "figures.json")]) == 0
    figures = json.loads((imagenet / "figures.json").read_text())
    assert figures["images"] == 40
    files = sorted((data / "val").rglob("*.JPEG"))
    answers = [p[0]["index"] for p in ImageClassifier(model)(files, top_k=1)]
    right = [
        answer == imagenet_1k_synsets().index(file.parent.name) for answer, file in zip(answers, files, strict=True)
    ]
    assert figures["top1"] == np.mean(right)
    assert [c["support"] for c in figures["classes"]] == [2 if i % 50 == 17 else 0 for i in range(1000)]
    assert "40 in 20 of 1000 classes" in capsys.readouterr().out


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_prints_the_figures_and_writes_the_files(mlx_folder, photos, tmp_path, capsys):
    data = photos(*THINGS, count=2)
    files = {name: tmp_path / f"out.{name}" for name in ("json", "csv", "html")}
    options = ["--json", files["json"], "--csv", files["csv"], "--report", files["html"]]
    assert main(["--model", str(mlx_folder), "--data", str(data), *map(str, options)]) == 0
    out, err = capsys.readouterr()
    found = evaluate(mlx_folder, data)
    assert re.search(rf"^top-1 +{found.top1:.2%} ", out, re.MULTILINE)
    assert err == ""
    assert json.loads(files["json"].read_text())["top1"] == found.top1
    assert len(files["csv"].read_text().splitlines()) == 15
    assert files["html"].read_text().startswith("<!DOCTYPE html>")


def test_the_command_names_broken_images_and_says_so_in_its_status(mlx_folder, photos, capsys):
    data = photos("thing 0")
    (data / "thing 0" / "bad.png").write_bytes(b"no image")
    assert main(["--model", str(mlx_folder), "--data", str(data)]) == 1
    out, err = capsys.readouterr()
    assert err == f"evaluate: {data}/thing 0/bad.png is not an image, or of a format that is not read\n"
    assert "2 in 1 of 7 classes" in out
    assert "1 failed" in out
    photos("cats", "dogs")
    assert main(["--model", str(mlx_folder), "--data", str(data)]) == 2
    assert "2 of 3 folders are no classes of the model: cats, dogs." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--data": "nowhere"}, "no such folder: nowhere"),
        ({"--model": "./nowhere"}, "nowhere"),
        ({"--json": "/nowhere/figures.json"}, "/nowhere/figures.json: it cannot be written"),
        ({"--json": "a.out", "--csv": "a.out"}, "two of the files to write are one"),
        ({"--plot": "plot.txt"}, "must end in .png, .svg, .pdf"),
        ({"--labels": "nowhere.txt"}, "no such file of labels: nowhere.txt"),
        ({"--split": "test"}, "has no test/"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_status_2(options, message, mlx_folder, photos, capsys, monkeypatch):
    data = photos("thing 0")
    monkeypatch.chdir(data.parent)
    arguments = {"--model": str(mlx_folder), "--data": str(data), **options}
    assert main([part for pair in arguments.items() for part in pair]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("evaluate: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (data.parent / "a.out").exists()


def test_folders_may_be_named_by_a_file(mlx_folder, photos, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("\n".join("abcdefg"))
    assert main(["--model", str(mlx_folder), "--data", str(photos("b", "g")), "--labels", str(names)]) == 0
    assert re.search(r"^thing 1 +\S+ +\S+ +\S+ +2$", capsys.readouterr().out, re.MULTILINE)


def test_help_ends_with_examples_and_loads_nothing_heavy():
    code = "import sys; from mlx_convnextv2.evaluate import build_parser; build_parser().format_help();" + (
        "print([name for name in ('mlx', 'numpy', 'PIL', 'tqdm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_interrupted_it_says_how_far_it_came_and_writes_nothing(mlx_folder, photos, tmp_path, capsys, monkeypatch):
    whole = ImageClassifier.stream_logits

    def interrupted(self, images):
        yield from itertools.islice(whole(self, images), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageClassifier, "stream_logits", interrupted)
    report = tmp_path / "report.html"
    options = ["--data", str(photos(*THINGS)), "--report", str(report)]
    assert main(["--model", str(mlx_folder), *options]) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"evaluate: interrupted after 3 of 14 images: top-1 so far [\d.]+%\n", err)
    assert not report.exists()
