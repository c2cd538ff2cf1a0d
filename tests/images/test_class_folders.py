"""Folders of classes: what is found, how it is split, and what is said where that is not possible."""

import unicodedata

import pytest
from PIL import Image

from mlx_convnextv2.images.class_folders import find_split_folders, find_splits, read_class_folders


@pytest.fixture
def folder(tmp_path):
    """Makes images from names such as "cats/1.png" below one folder, and returns it."""

    def folder(*names):
        for name in names:
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(path)
        return tmp_path / "data"

    return folder


def names(found, root):
    return [file.relative_to(root).as_posix() for file in found.files]


def many(*classes, count=20):
    return [f"{name}/{i}.png" for name in classes for i in range(count)]


def test_classes_are_folders_in_natural_order_and_images_are_found_below_them(folder):
    root = folder("10/a.png", "2/b.png", "2/deeper/c.jpg", "cats/d.webp")
    (root / "2" / "notes.txt").write_text("no image")
    (root / ".hidden").mkdir()
    found = read_class_folders(root)
    assert found.classes == ("2", "10", "cats")
    assert names(found, root) == ["2/b.png", "2/deeper/c.jpg", "10/a.png", "cats/d.webp"]
    assert found.labels == (0, 0, 1, 2)
    assert found.counts() == [2, 1, 1]
    assert len(found) == 4


def test_a_class_may_be_a_link_to_a_folder(folder, tmp_path):
    root = folder("cats/1.png")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.new("RGB", (4, 4)).save(elsewhere / "2.png")
    (root / "dogs").symlink_to(elsewhere)
    assert read_class_folders(root).counts() == [1, 1]


def test_a_class_is_named_in_composed_form_as_labels_are_compared(folder):
    root = folder(unicodedata.normalize("NFD", "café/1.png"), "tea/1.png")
    assert read_class_folders(root).classes == (unicodedata.normalize("NFC", "café"), "tea")


def test_images_beside_the_classes_are_left_out_and_that_is_said(folder):
    root = folder("cats/1.png", "dogs/1.png", "stray.png")
    with pytest.warns(UserWarning, match=r"images of .* that lie in no class's folder are left out: 1"):
        assert len(read_class_folders(root)) == 2


def test_a_folder_that_is_none_of_classes_is_an_error_that_says_why(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*absent"):
        read_class_folders(tmp_path / "absent")
    root = folder("one.png", "two.png")
    with pytest.raises(NotADirectoryError, match="is a file"):
        read_class_folders(root / "one.png")
    with pytest.raises(ValueError, match=r"has images \(2\) but no folders: give it a folder for each class"):
        read_class_folders(root)
    (root / "cats").mkdir()
    with pytest.raises(ValueError, match=r"no image was found in the folders of .*\(cats\)"):
        read_class_folders(root)
    folder("dogs/1.png")
    with pytest.raises(ValueError, match="folders without an image: cats"):
        read_class_folders(root)


def test_a_name_that_no_terminal_shows_is_refused(folder):
    with pytest.raises(ValueError, match=r"cannot be printed, 'a\\x1b"):
        read_class_folders(folder("a\x1b[31m/1.png", "b/1.png"))


def test_a_split_sets_the_share_of_each_class_aside_and_the_seed_decides_which(folder):
    root = folder(*many("cats"), *many("dogs", count=40), *many("few", count=2))
    splits = find_splits(root, 0.15, seed=3)
    assert splits.val.counts() == [3, 6, 1]
    assert splits.train.counts() == [17, 34, 1]
    assert splits.test is None
    assert set(splits.train.files) | set(splits.val.files) == set(read_class_folders(root).files)
    assert not set(splits.train.files) & set(splits.val.files)
    assert find_splits(root, 0.15, seed=3) == splits
    assert find_splits(root, 0.15, seed=4).val != splits.val


def test_an_image_that_is_added_moves_at_most_one_other(folder):
    root = folder(*many("cats", "dogs"))
    before = set(find_splits(root).val.files)
    after = set(find_splits(folder("cats/new.png")).val.files)
    assert len(before - after) <= 1


def test_the_split_is_the_same_wherever_the_folder_lies(folder, tmp_path):
    root = folder(*many("cats", "dogs"))
    before = names(find_splits(root).val, root)
    moved = root.rename(tmp_path / "moved")
    assert names(find_splits(moved).val, moved) == before


@pytest.mark.parametrize("val", ["val", "validation", "Valid"])
def test_folders_that_are_split_already_are_taken_as_they_are(folder, val):
    root = folder("train/a/1.png", "train/b/2.png", "train/c/3.png", f"{val}/c/4.png", "test/a/5.png")
    splits = find_splits(root)
    assert splits.test is not None
    assert splits.train.classes == splits.val.classes == splits.test.classes == ("a", "b", "c")
    assert names(splits.val, root) == [f"{val}/c/4.png"]
    assert splits.val.labels == (2,)  # an index into train's classes
    assert splits.test.labels == (0,)
    assert find_split_folders(root) == {"train": root / "train", "val": root / val, "test": root / "test"}


def test_a_train_folder_alone_is_split(folder):
    root = folder(*many("train/a", "train/b"))
    assert find_splits(root).val.counts() == [3, 3]


def test_train_may_be_a_class(folder):
    root = folder(*many("train", "tram", count=4))
    assert find_split_folders(root) == {}
    assert find_splits(root).train.classes == ("train", "tram")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["train/a/1.png", "train/b/1.png", "val/z/1.png"], "classes that there is nothing to train with for: z"),
        (["val/a/1.png", "val/b/1.png"], "has val but no train"),
        (["train/a/1.png", "val/a/1.png", "validation/a/1.png"], "could be the split val"),
        (["a/1.png", "b/1.png", "b/2.png"], "single image, which cannot be split: a"),
        (["a/1.png", "a/2.png"], "has one class alone, a"),
    ],
)
def test_folders_that_cannot_be_trained_on_are_named(folder, images, message):
    with pytest.raises(ValueError, match=message):
        find_splits(folder(*images))


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_must_leave_something_on_both_sides(folder, share):
    with pytest.raises(ValueError, match="val_split must be more than 0 and less than 1"):
        find_splits(folder(*many("a", "b", count=2)), share)
