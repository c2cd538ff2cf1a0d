"""Which folder is which class: by label, by ImageNet's number, by a file; never by guessing."""

import json
import re
import unicodedata

import pytest

from mlx_convnextv2.evaluation.matching import match_folders
from mlx_convnextv2.model.labels import imagenet_1k, imagenet_1k_synsets

LABELS = ["tabby, tabby cat", "Golden Retriever", "crane", "crane", "caf\u00e9"]


@pytest.mark.parametrize(
    ("folder", "index"),
    [
        ("tabby, tabby cat", 0),
        ("tabby cat", 0),
        ("Tabby_Cat", 0),
        ("tabby-tabby cat", None),
        ("golden_retriever", 1),
        ("caf\u00e9", 4),
        (unicodedata.normalize("NFD", "CAF\u00c9"), 4),  # as older disks of a Mac have it
    ],
)
def test_a_folder_is_the_class_whose_label_or_one_of_whose_names_it_bears(folder, index):
    if index is None:
        with pytest.raises(ValueError, match="this folder is no class of the model: tabby-tabby cat"):
            match_folders([folder], LABELS)
    else:
        assert match_folders([folder], LABELS) == [index]


def test_a_label_counts_before_what_is_like_it():
    assert match_folders(["a", "A", "a_b", "a b"], ["A", "a", "a b", "a_b"]) == [1, 0, 3, 2]


def test_a_name_that_two_classes_share_is_an_error_that_says_what_helps():
    for folder in ("crane", "Crane"):
        with pytest.raises(ValueError, match=r"could be any of the classes 2, 3, .* by ImageNet's number, or"):
            match_folders([folder], LABELS)


def test_imagenets_folders_are_its_classes_the_two_cranes_too():
    numbers = imagenet_1k_synsets()
    assert match_folders(numbers, imagenet_1k()) == list(range(1000))
    assert match_folders(["n03126707", "n02012849"], imagenet_1k()) == [517, 134]


def test_labels_that_shorten_imagenets_are_imagenets():
    short = [name.split(",")[0].upper() for name in imagenet_1k()]
    short[8] = "chicken"
    assert match_folders(["n01514859", "n03126707"], short) == [8, 517]


def test_numbers_are_found_by_name_where_a_model_knows_a_part_of_imagenet_or_are_its_labels():
    assert match_folders(["n02123045", "n02099601"], ["golden retriever", "tabby"]) == [1, 0]
    assert match_folders(["n02123045", "n01440764"], ["n01440764", "n02123045"]) == [1, 0]
    with pytest.raises(ValueError, match="n01440764"):  # a thousand classes of one's own
        match_folders(["n01440764"], [f"thing {i}" for i in range(1000)])


def test_folders_that_are_no_class_are_listed_with_what_the_labels_are():
    folders = ["crane bird", *(f"unknown {i}" for i in range(25)), "caf\u00e9"]
    with pytest.raises(ValueError) as error:  # noqa: PT011
        match_folders(folders, LABELS)
    message = str(error.value)
    assert "26 of 27 folders are no classes of the model: crane bird, unknown 0" in message
    assert "unknown 18 and 6 more" in message
    assert "'tabby, tabby cat', 'Golden Retriever'" in message
    assert "--labels" in message


@pytest.mark.parametrize("folders", [["cat", "Cat"], ["tabby", "tabby cat"]])
def test_two_folders_for_one_class_are_an_error(folders):
    with pytest.raises(ValueError, match=r"two folders stand for one class: '.*' and '.*' for '"):
        match_folders(folders, ["cat", "tabby, tabby cat"])


@pytest.mark.parametrize(
    ("content", "folders", "labels", "expected"),
    [
        ("Katze\nHund\n", ["Hund", "katze"], ["cat", "dog"], [1, 0]),
        ("Katze\nHund\n", ["dog", "Katze"], ["cat", "dog"], [1, 0]),  # the labels are still names
        ("dog\ncat\n", ["dog", "cat"], ["cat", "dog"], [0, 1]),  # but those of the file count before them
        ("n01440764 tench, Tinca tinca\nn01443537 goldfish\n", ["n01443537"], ["LABEL_0", "LABEL_1"], [1]),
        ("n01440764 tench, Tinca tinca\nn01443537 goldfish\n", ["goldfish"], ["LABEL_0", "LABEL_1"], [1]),
        ({"Katze": "cat", "Hund": "dog"}, ["Hund", "Katze"], ["cat", "dog"], [1, 0]),
        ({"Katze": 0, "Hund": 1}, ["Hund", "Katze"], ["cat", "dog"], [1, 0]),
        ({"crane": 3}, ["crane", "tabby cat"], LABELS, [3, 0]),  # which of two classes of one name is meant
    ],
)
def test_a_file_may_name_the_classes_in_their_order_or_say_which_folder_is_which(
    tmp_path, content, folders, labels, expected
):
    file = tmp_path / ("names.txt" if isinstance(content, str) else "folders.json")
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    assert match_folders(folders, labels, file) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("names.txt", "Katze\n", "names 1 classes and the model has 2"),
        ("folders.json", '{"Katze": "mouse"}', "the folder 'Katze' is 'mouse', which is no class of the model"),
        ("folders.json", '{"Katze": 2}', "is 2, which is no class"),
        ("folders.json", '{"Katze": -1}', "is -1, which is no class"),
        ("folders.json", '{"Katze": true}', "is True, which is no class"),
        ("folders.json", '{"Katze": ["cat"]}', "which is no class"),
        ("folders.json", '{"Katze": "cat", "Tier": "cat"}', "two folders stand for one class"),
        ("absent.txt", None, "no such file of labels"),
    ],
)
def test_a_file_that_does_not_fit_is_an_error_that_says_why(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        match_folders(["Katze", "Tier"], ["cat", "dog"], tmp_path / name)
