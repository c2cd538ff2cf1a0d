"""Check the data before training: broken files, duplicates, classes with few images."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from ..images.class_folders import ClassFolders, Splits
from ..messages import printable, sentence, some
from ..runtime.prefetch import map_ahead
from ..runtime.threads import available_cpus

FEW_IMAGES = 10  # with fewer, a class's accuracy is mostly chance
_CHUNK_BYTES = 2**20
_NAMED = 5  # files that a warning names


def warn_of_few_images(splits: Splits) -> None:
    """Warn of classes with few images to train with or none to validate with."""
    counts, val_counts = splits.train.counts(), splits.val.counts()
    classes = splits.train.classes
    few = [f"{name} ({count})" for name, count in zip(classes, counts, strict=True) if count < FEW_IMAGES]
    if few:
        warnings.warn(f"classes with fewer than {FEW_IMAGES} images to train with: {some(few)}", stacklevel=2)
    unseen = [name for name, count in zip(classes, val_counts, strict=True) if not count]
    if unseen:
        warnings.warn(f"classes without an image to validate with: {some(unseen)}", stacklevel=2)


def warn_of_duplicates(splits: Splits, workers: int | None = None) -> int:
    """Warn of equal files in both train and val, or in two classes. Returns how many files of val are also in train.

    A model has seen the files of train, so accuracy on their copies says nothing. Unreadable files are left to `open`.
    """
    train, val = splits.train, splits.val
    hashes = content_hashes([*train.files, *val.files], workers)
    seen: dict[bytes, int] = {}  # the first file of train with this content
    conflicts = []
    for index, digest in enumerate(hashes[: len(train)]):
        if digest is None:
            continue
        first = seen.setdefault(digest, index)
        if train.labels[first] != train.labels[index]:
            conflicts.append(f"{train.files[first]} = {train.files[index]}")
    leaked = [
        f"{val.files[index]} = {train.files[seen[digest]]}"
        for index, digest in enumerate(hashes[len(train) :])
        if digest is not None and digest in seen
    ]
    if leaked:
        _warn_of_files(f"{images(len(leaked))} of val also in train, so that val looks better than it is", leaked)
    if conflicts:
        _warn_of_files(f"{images(len(conflicts))} in two classes", conflicts)
    return len(leaked)


def content_hashes(files: list[Path], workers: int | None = None) -> list[bytes | None]:
    """SHA-256 of each file's bytes; None if the file cannot be read or no other has its size."""
    sizes = [_size(file) for file in files]
    common = Counter(size for size in sizes if size is not None)
    worth = [file if size is not None and common[size] > 1 else None for file, size in zip(files, sizes, strict=True)]
    workers = workers or available_cpus()
    return list(map_ahead(_content_hash, worth, workers, 4 * workers))


def without_broken(folders: ClassFolders, errors: dict[int, Exception], name: str) -> ClassFolders:
    """The images without those that cannot be read. A warning names them.

    Raises:
        ValueError: no image is left at all, or in a class that had some.
    """
    if not errors:
        return folders
    reasons = [sentence(error) for error in errors.values()]
    _warn_of_files(f"{len(errors)} of {images(len(folders))} of {name} left out, because they cannot be read", reasons)
    kept = folders.subset(index for index in range(len(folders)) if index not in errors)
    emptied = [
        kept.classes[label]
        for label, (before, after) in enumerate(zip(folders.counts(), kept.counts(), strict=True))
        if before and not after
    ]
    if not len(kept) or (emptied and name == "train"):
        raise ValueError(f"no image of {some(emptied or [name])} can be read: {some(reasons, 1)}")
    return kept


def place(file: Path, data: str) -> str:
    """The path of an image relative to the data's folder, which does not depend on where that folder lies."""
    return os.path.relpath(file, data)


def left_out(splits: Splits, data: str, places: Collection[str]) -> Splits:
    """The splits without the files at these places."""

    def rest(folders: ClassFolders) -> ClassFolders:
        return folders.subset(i for i, file in enumerate(folders.files) if place(file, data) not in places)

    return Splits(rest(splits.train), rest(splits.val), splits.test) if places else splits


def fingerprint(splits: Splits) -> str:
    """A hash of the files' names, sizes and classes, which identifies the set of images."""
    digest = hashlib.sha256()
    for folders in (splits.train, splits.val):
        for file, label in zip(folders.files, folders.labels, strict=True):
            digest.update(f"{folders.classes[label]}\0{file.name}\0{_size(file)}\n".encode("utf-8", "surrogateescape"))
        digest.update(b"\n")
    return digest.hexdigest()


def images(count: int) -> str:
    """A number of images in words, singular or plural."""
    return f"{count:,} image" if count == 1 else f"{count:,} images"


def _warn_of_files(what: str, files: list[str]) -> None:
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    warnings.warn(f"{what}: {'; '.join(printable(file) for file in files[:_NAMED])}{more}", stacklevel=3)


def _size(file: Path) -> int | None:
    try:
        return os.stat(file).st_size
    except OSError:
        return None


def _content_hash(file: Path | None) -> bytes | None:
    if file is None:
        return None
    digest = hashlib.sha256()
    try:
        with open(file, "rb") as opened:
            while chunk := opened.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError:
        return None
    return digest.digest()
