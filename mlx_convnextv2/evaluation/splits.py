"""Choose the images to measure a model on: those it was trained with only if asked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..files.yaml_files import read_yaml
from ..images.class_folders import ClassFolders, find_split_folders, find_splits, read_class_folders
from ..messages import short

SPLITS = ("test", "val", "train", "all")
ARGS_FILE = "args.yaml"  # the options of `train`, in the folder that it writes


def find_images(data: Path, split: str | None, model_folder: Path | None) -> tuple[ClassFolders, str]:
    """The images to measure on, and a description of where they come from.

    Args:
        data: a folder with a folder for each class, perhaps with train/, val/ and test/ above them.
        split: "test", "val", "train" or "all". None takes test/ if it exists, otherwise val/. If neither exists, it
            takes the images that training set aside if `model_folder` says that training used this very folder, and
            all images otherwise. If there are no folders val/ and train/, "val" and "train" are training's split.
        model_folder: the folder of a trained model.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: as `read_class_folders`; also if the split does not exist.
    """
    if split not in (None, *SPLITS):
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {short(split)}")
    folders = find_split_folders(data)
    if split is None:
        split = next((name for name in ("test", "val") if name in folders), None)
    if split in folders and not (split == "train" and "val" not in folders):
        return read_class_folders(folders[split]), os.fspath(folders[split])
    if split == "all":
        if len(folders) > 1:
            raise ValueError(f"{data} is split into {', '.join(sorted(folders))}: say which to measure on, not all")
        root = next(iter(folders.values()), data)
        return read_class_folders(root), os.fspath(root)
    root = folders.get("train", data)
    if split == "test":
        raise FileNotFoundError(f"{data} has no test/: leave the split out, or add it")
    used = _split_in_training(model_folder, data if split is None else None) if model_folder is not None else None
    if used is not None:
        share, seed = used
        splits = find_splits(data, share, seed)
        if split == "train":
            return splits.train, f"{root}, the {1 - share:.0%} that the model was trained with"
        return splits.val, f"{root}, the {share:.0%} that training set aside"
    if split == "train" and "train" in folders:
        return read_class_folders(root), os.fspath(root)
    if split is not None:
        raise FileNotFoundError(
            f"{data} has no {split}/, and the model does not say how training split its images: leave the split out"
        )
    return read_class_folders(root), os.fspath(root)


def _split_in_training(model_folder: Path, data: Path | None) -> tuple[float, int] | None:
    """The share that training set aside and its seed, or None if the model does not state them.

    Args:
        data: the folder that training used, or None for any. If that folder is gone it may have been moved, so then
            only its name must match. A split does not depend on where the folder lies.
    """
    values = _read_args(model_folder / ARGS_FILE)
    name, share, seed = (values.get(key) for key in ("data", "val_split", "seed"))
    if not (isinstance(name, str) and isinstance(share, float) and 0 < share < 1 and type(seed) is int):
        return None
    if data is None:
        return share, seed
    try:
        same = os.path.samefile(name, data)
    except FileNotFoundError:
        same = Path(name).name == data.resolve().name
    except (OSError, ValueError):
        return None
    return (share, seed) if same else None


def _read_args(file: Path) -> dict[str, Any]:
    """The options of a YAML file; empty if it is not such a file."""
    try:
        return read_yaml(file)
    except (OSError, ValueError):
        return {}
