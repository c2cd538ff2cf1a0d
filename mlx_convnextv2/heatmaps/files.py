"""Heat maps as files."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import PngImagePlugin

from ..inference.classifier import ImageClassifier
from ..messages import printable
from .explanations import Explanation, explain_images
from .pictures import HEAT_MAP_SUFFIXES, named_pictures

SUFFIXES = {suffix.rpartition(".")[2]: suffix for suffix in HEAT_MAP_SUFFIXES}


def write_heat_maps(
    classifier: ImageClassifier,
    images: Iterable[Any],
    output: str | os.PathLike[str] = "heatmaps",
    label: int | str | None = None,
    *,
    against: int | str | None = "mean",
    layer: str | None = None,
    method: str | None = None,
    format: str = "png",
    overwrite: bool = False,
    legend: bool = True,
) -> Iterator[tuple[Explanation, Path | None]]:
    """Explain pictures and write each heat map under the picture's name: `cat.jpg` gives `cat.heatmap.png`.

    Args:
        classifier, label, against, layer, method: as for `explain_images`.
        images: paths, folders, binary file objects, PIL images or uint8 arrays. A folder's pictures keep their
            subfolders below `output`. If two pictures share a name, the second gives `cat-2.heatmap.png`.
        output: the folder to write to.
        format: "png" for the map over the picture, "npy" for its numbers (h, w) in float32.
        overwrite: replace existing files.
        legend: write label and score at the bottom of a picture.

    Yields:
        Each picture's explanation and the file written, or None if the explanation has an error.

    Raises:
        ValueError: no such label, layer, method or format.
    """
    if format not in SUFFIXES:
        raise ValueError(f"format must be one of {', '.join(SUFFIXES)}, not {format!r}")
    output = Path(os.path.expanduser(output))
    planned: list[tuple[Explanation, Path]] = []
    taken: dict[str, int] = {}
    for image, name in named_pictures(images):
        target = _free(output / name, SUFFIXES[format], taken)
        planned.append((Explanation(image, error=_refusal(target, overwrite)), target))
    wanted = [plan.image for plan, _ in planned if plan.error is None]
    explained = explain_images(classifier, wanted, label, against=against, layer=layer, method=method)
    return _write_all(planned, explained, overwrite, legend)


def _write_all(
    planned: list[tuple[Explanation, Path]], explained: Iterator[Explanation], overwrite: bool, legend: bool
) -> Iterator[tuple[Explanation, Path | None]]:
    for refused, target in planned:
        result = refused if refused.error is not None else next(explained)
        if result.error is None:
            try:
                write(result, target, overwrite=overwrite, legend=legend)
            except (OSError, ValueError) as error:
                result.error = error
        yield result, None if result.error is not None else target


def write(explanation: Explanation, target: Path, *, overwrite: bool = False, legend: bool = True) -> None:
    """Write a heat map: drawn over its picture if the target ends in .png, otherwise its numbers in numpy's format.

    The file appears whole or not at all. Missing folders are made.

    Raises:
        FileExistsError: the file exists and `overwrite` is false.
        OSError, ValueError: the file cannot be written, or the picture cannot be read again.
    """
    if target.suffix == ".png":
        drawn = explanation.draw(legend)
        notes = PngImagePlugin.PngInfo()
        notes.add_itxt("Description", printable(f"Heat map of {explanation.legend()}"))
        with _new_file(target, overwrite) as file:
            drawn.save(file, "PNG", pnginfo=notes)
    else:
        with _new_file(target, overwrite) as file:
            np.save(file, np.asarray(explanation.heat_map), allow_pickle=False)


def _free(path: Path, suffix: str, taken: dict[str, int]) -> Path:
    """The path with the suffix, and with a number if another picture has taken it.

    `taken` has each target in lower case, which some disks do not tell from capitals, and the last number of its name.
    """
    target = path.with_name(f"{path.name}{suffix}")
    name = str(target).lower()
    while str(target).lower() in taken:
        taken[name] += 1
        target = path.with_name(f"{path.name}-{taken[name]}{suffix}")
    taken[str(target).lower()] = 1
    return target


def _refusal(target: Path, overwrite: bool) -> OSError | None:
    """Why a heat map cannot be written. This is checked before the map is computed."""
    try:
        _check_target(target, overwrite)
    except OSError as error:
        return error
    return None


def _check_target(target: Path, overwrite: bool) -> None:
    if os.path.lexists(target) and not (overwrite and target.is_file() and not target.is_symlink()):
        remedy = "choose another folder" if overwrite else "pass overwrite (--overwrite) or choose another folder"
        raise FileExistsError(f"{target} exists already: {remedy}")


@contextmanager
def _new_file(target: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """A file beside `target`, which takes the target's place at the end."""
    temporary = target.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
        _check_target(target, overwrite)
        os.replace(temporary, target)
    except OSError as error:
        if error.errno is None:  # the message is already ours
            raise
        raise OSError(f"{target} cannot be written ({error.strerror})") from None
    finally:
        with suppress(OSError):
            temporary.unlink()
