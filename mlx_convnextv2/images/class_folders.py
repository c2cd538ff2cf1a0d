"""Labelled images in the usual form: one folder for each class, perhaps below train/ and val/."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..messages import short, some
from .folders import SUFFIXES, find_images

# The names of a split's folders, compared without regard to case.
SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class ClassFolders:
    """Images and their classes.

    Args:
        classes: the folders' names in Unicode's composed form (NFC), in natural order ("2" before "10").
        files: every image, in the order of the classes and then of the paths.
        labels: the class of each file, an index into `classes`.
    """

    classes: tuple[str, ...]
    files: tuple[Path, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.files)

    def counts(self) -> list[int]:
        """The number of images of each class."""
        counts = [0] * len(self.classes)
        for label in self.labels:
            counts[label] += 1
        return counts

    def subset(self, indices: Iterable[int]) -> ClassFolders:
        """The images of these indices, with all classes."""
        chosen = list(indices)
        return ClassFolders(self.classes, tuple(self.files[i] for i in chosen), tuple(self.labels[i] for i in chosen))


@dataclass(frozen=True)
class Splits:
    """Images to train with, to validate with, and perhaps to test with. All have the classes of `train`."""

    train: ClassFolders
    val: ClassFolders
    test: ClassFolders | None = None


def read_class_folders(folder: str | os.PathLike[str]) -> ClassFolders:
    """The images of `folder`/CLASS/, at any depth, and their classes. `images.find_images` decides what is an image.

    A class may be a link to a folder. Hidden folders are left out. No image is opened.

    Raises:
        FileNotFoundError: no such folder.
        NotADirectoryError: it is a file.
        ValueError: it has no folders, one of them has no image, or two have the same name.
    """
    root = _existing(folder)
    folders = sorted(_folders_in(root), key=lambda path: natural_key(path.name))
    loose = sum(path.suffix.lower() in SUFFIXES for path in root.iterdir() if path.name[0] != "." and path.is_file())
    if not folders:
        has = f"images ({loose}) but no folders" if loose else "no folders"
        raise ValueError(f"{root} has {has}: give it a folder for each class, as in cats/1.jpg and dogs/2.jpg")
    names = [unicodedata.normalize("NFC", path.name) for path in folders]
    _check_names(root, names)
    images = [find_images(path) for path in folders]
    empty = [name for name, found in zip(names, images, strict=True) if not found]
    if len(empty) == len(names):
        raise ValueError(f"no image was found in the folders of {root} ({some(names)})")
    if empty:
        raise ValueError(f"{root} has folders without an image: {some(empty)}. Fill them or remove them")
    if loose:
        warnings.warn(f"images of {root} that lie in no class's folder are left out: {loose}", stacklevel=2)
    labels = [label for label, found in enumerate(images) for _ in found]
    return ClassFolders(tuple(names), tuple(file for found in images for file in found), tuple(labels))


def find_split_folders(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """The folders of `folder` that are splits: "train", "val" and "test", as far as they exist.

    Splits hold folders themselves. Otherwise `train` may be a class of pictures of trains.

    Raises:
        FileNotFoundError, NotADirectoryError: as `read_class_folders`.
        ValueError: two folders could be the same split, such as val/ and validation/.
    """
    found: dict[str, Path] = {}
    for path in _folders_in(_existing(folder)):
        for split, names in SPLIT_NAMES.items():
            if path.name.lower() not in names or not _folders_in(path):
                continue
            if split in found:
                raise ValueError(f"both {found[split]} and {path} could be the split {split}: rename or remove one")
            found[split] = path
    return found


def find_splits(folder: str | os.PathLike[str], val_split: float = 0.15, seed: int = 0) -> Splits:
    """The images to train and to validate with: `folder`/train/CLASS/ and val/CLASS/, or a split of all images.

    Without a folder val/ (or valid/, validation/), the share `val_split` of each class's images is set aside: at least
    one and never all. Only the seed and the files' paths below the folder decide which, so images that are added later
    hardly move others.

    Args:
        folder: holds the class folders, or train/ above them. A folder test/ is read too.
        val_split: more than 0 and less than 1.
        seed: a different seed sets different images aside.

    Raises:
        FileNotFoundError, NotADirectoryError: as `read_class_folders`.
        ValueError: as `read_class_folders`; also fewer than two classes, a class with too few images to split, a
            class of val/ or test/ that train/ lacks, val/ without train/.
    """
    if not 0 < val_split < 1:
        raise ValueError(f"val_split must be more than 0 and less than 1, not {short(val_split)}")
    split_folders = find_split_folders(folder)
    if split_folders and "train" not in split_folders:
        names = some([path.name for path in split_folders.values()])
        raise ValueError(f"{os.fspath(folder)} has {names} but no train: add it, or give the folder of the classes")
    root = split_folders.get("train", Path(folder).expanduser())
    whole = read_class_folders(root)
    if len(whole.classes) < 2:
        raise ValueError(f"{root} has one class alone, {whole.classes[0]}: a classifier needs at least two")
    test = _with_classes_of(whole, split_folders["test"]) if "test" in split_folders else None
    if "val" in split_folders:
        return Splits(whole, _with_classes_of(whole, split_folders["val"]), test)
    chosen = _stratified(whole, root, val_split, seed)
    rest = [i for i in range(len(whole)) if i not in chosen]
    return Splits(whole.subset(rest), whole.subset(sorted(chosen)), test)


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """A key that sorts numbers within names by value. Names that differ only in leading zeros have a fixed order."""
    parts = [part for part in re.split(r"([0-9]+)", name) if part]
    return [(not part.isdecimal(), int(part[:4000]) if part.isdecimal() else 0, part) for part in parts]


def _stratified(whole: ClassFolders, root: Path, share: float, seed: int) -> set[int]:
    """The indices to set aside: in each class, the files whose names have the smallest hashes."""
    by_class: list[list[tuple[bytes, int]]] = [[] for _ in whole.classes]
    for index, (file, label) in enumerate(zip(whole.files, whole.labels, strict=True)):
        name = f"{seed}/{file.relative_to(root).as_posix()}".encode("utf-8", "surrogateescape")
        by_class[label].append((hashlib.sha256(name).digest(), index))
    alone = [name for name, ranked in zip(whole.classes, by_class, strict=True) if len(ranked) < 2]
    if alone:
        raise ValueError(
            f"{root} has classes with a single image, which cannot be split: {some(alone)}. Add images, or make "
            "train/ and val/ by hand"
        )
    chosen: set[int] = set()
    for ranked in by_class:
        count = min(max(round(len(ranked) * share), 1), len(ranked) - 1)
        chosen.update(index for _, index in sorted(ranked)[:count])
    return chosen


def _with_classes_of(train: ClassFolders, folder: Path) -> ClassFolders:
    """The images of a folder, whose labels are indices into the classes of the training images."""
    own = read_class_folders(folder)
    unknown = [name for name in own.classes if name not in train.classes]
    if unknown:
        raise ValueError(f"{folder} has classes that there is nothing to train with for: {some(unknown)}")
    index = [train.classes.index(name) for name in own.classes]
    return ClassFolders(train.classes, own.files, tuple(index[label] for label in own.labels))


def _existing(folder: str | os.PathLike[str]) -> Path:
    path = Path(folder).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"no such folder: {path}")
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is a file: give a folder with a folder for each class")
    return path


def _folders_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _check_names(root: Path, names: list[str]) -> None:
    for name in names:
        if not name.isprintable():  # a label that neither a terminal nor a file could show
            raise ValueError(f"{root} has a folder whose name cannot be printed, {short(name)}: rename it")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"{root} has two folders that read the same: {some(twice)}. Rename or join them")
