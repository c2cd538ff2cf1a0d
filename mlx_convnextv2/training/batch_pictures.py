"""A picture of the model's input: the first batch, cropped, augmented and mixed."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image, ImageDraw

from ..checkpoints.processor import ConvNextImageProcessor
from ..files import output_files
from ..images.class_folders import ClassFolders, find_splits
from ..images.fonts import label_font
from ..messages import cut, printable
from ..runtime.prefetch import map_ahead
from ..runtime.threads import available_cpus
from .augment import Augmentation
from .batches import Batches, step_random
from .data import without_broken
from .mixing import draw_mix, mix, smooth_targets
from .options import Options
from .recipe import Recipe, make_recipe
from .start import Start, open_start

_CAPTION, _GAP = 14, 4  # pixels
_CAPTION_MOST = 40  # characters
_MOST = 64  # images of a picture


def show_batch(
    data: str | os.PathLike[str],
    model: str | os.PathLike[str] | Start,
    file: str | os.PathLike[str],
    **options: Any,
) -> Path:
    """Write the first batch of a run as one picture, each image above its class, and return the picture's path.

    With `full`, the images are augmented and mixed as in training. Without it, they are prepared as in `classify`.

    Args:
        data, model, options: as for `train`.
        file: a .png or .jpg.

    Raises:
        FileNotFoundError, OSError, ValueError: as `train`. A `file` of another kind is also a ValueError.
    """
    chosen, path = Options.of(options), Path(file)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"the batch's picture must end in .png or .jpg, not {path.name!r}")
    output_files.check(path)
    splits = find_splits(data, chosen.val_split, chosen.seed)
    ready, processor, _ = open_start(model, splits.train.classes, chosen)

    def batch(images: ClassFolders) -> tuple[np.ndarray, np.ndarray]:
        if not chosen.full:
            return _plain(images, processor, chosen)
        return _augmented(images, processor, chosen, make_recipe(chosen, ready.config, len(images)))

    try:
        pixel_values, shares = batch(splits.train)
    except (OSError, ValueError):
        pixel_values, shares = batch(_readable(splits.train, processor, chosen.workers))
    captions = [_caption(row, splits.train.classes) for row in shares[:_MOST]]
    picture = _sheet([_as_picture(values, processor) for values in pixel_values[:_MOST]], captions)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG" if path.suffix.lower() == ".png" else "JPEG")
    output_files.write(path, buffer.getvalue())
    return path


def _plain(images: ClassFolders, processor: ConvNextImageProcessor, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """Pixel values (N, H, W, C) of some images, and the shares of their classes (N, K)."""
    count = min(len(images), options.batch_size, _MOST)
    shown = images.subset(np.random.default_rng(options.seed).permutation(len(images))[:count].tolist())
    pixel_values = np.stack([processor.preprocess(image) for image in shown.files])
    return pixel_values, np.eye(len(images.classes))[list(shown.labels)]


def _augmented(
    images: ClassFolders, processor: ConvNextImageProcessor, options: Options, recipe: Recipe
) -> tuple[np.ndarray, np.ndarray]:
    """The same for the first batch of a run with all weights."""
    batches = Batches(images, Augmentation(processor, options), recipe.batch_size, options.seed)
    pixel_values, labels = next(batches.epoch(0))
    how = draw_mix(recipe.mixup, recipe.cutmix, pixel_values.shape[1:3], step_random(options.seed, 0))
    targets = smooth_targets(mx.array(labels), len(images.classes), 0.0)
    mixed, targets = mix(mx.array(pixel_values), targets, mx.array(how))
    return np.array(mixed), np.array(targets)


def _readable(images: ClassFolders, processor: ConvNextImageProcessor, workers: int | None) -> ClassFolders:
    """The images without those that a run leaves out. A warning names them."""

    def error_of(file: Path) -> Exception | None:
        try:
            processor.preprocess(file)
        except (OSError, ValueError) as error:
            return error
        return None

    workers = workers or available_cpus()
    errors = enumerate(map_ahead(error_of, images.files, workers, 2 * workers))
    return without_broken(images, {index: error for index, error in errors if error is not None}, "train")


def _caption(shares: np.ndarray, classes: tuple[str, ...]) -> str:
    """The class, or a mixed image's two classes with their shares."""
    best = [i for i in np.argsort(-shares, kind="stable")[:2] if shares[i] > 0.005]
    return classes[best[0]] if len(best) == 1 else " + ".join(f"{classes[i]} {shares[i]:.0%}" for i in best)


def _as_picture(values: np.ndarray, processor: ConvNextImageProcessor) -> Image.Image:
    """Pixel values (H, W, C) as an image again."""
    if processor.do_normalize:
        values = values * np.array(processor.image_std) + np.array(processor.image_mean)
    if processor.do_rescale:
        values = values / processor.rescale_factor
    pixels = np.rint(values).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0]).convert("RGB")


def _sheet(pictures: list[Image.Image], captions: list[str]) -> Image.Image:
    """The pictures in rows, each above its caption, in cells wide enough for the captions."""
    font = label_font(_CAPTION - 3)
    captions = [cut(printable(caption), _CAPTION_MOST) for caption in captions]
    widest = max(math.ceil(font.getlength(caption)) for caption in captions)
    width, height = max(pictures[0].width, widest) + _GAP, pictures[0].height + _CAPTION + _GAP
    columns = max(1, round(math.sqrt(len(pictures) * 1.4 * height / width)))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = (i % columns) * width + _GAP, (i // columns) * height + _GAP
        sheet.paste(picture, (left, top))
        draw.text((left, top + picture.height), caption, "black", font)
    return sheet
