"""Make a library of pictures, or bring it up to date."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..._version import __version__
from ...demo import DEFAULT_MODEL
from ...inference.embedder import ImageEmbedder
from ...inference.pipeline import UNNAMED
from ...messages import some
from ...model.convnextv2 import body_and_classifier
from ..fingerprint import hash_weights
from ..shards import Shard
from .files import OWN, Made, ShardFiles, another_model, find_shards
from .scan import absolute, any_pictures, check_sources
from .update import Update, Watch, update
from .writer import Writer


def embed_folder(
    folders: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    model: str | os.PathLike[str] | ImageEmbedder | None = None,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    batch_size: int = 8,
    max_pixels: int | None = None,
    shard: Shard | str | None = None,
    prune: bool = False,
    watch: Watch | None = None,
) -> Update:
    """Put the features of all pictures in folders into a library, or bring it up to date with them.

    A picture is not read if its path, size and time are as in the library. It is not computed again if the library has
    its content. Missing files are forgotten, unless their folder is empty or cannot be read, because its disk may be
    missing. What is done is kept, however the process ends.

    Args:
        folders: a folder, or a list of folders and picture files.
        output: the library's folder.
        model: a Hub id, a folder, or an `ImageEmbedder`. None means the library's, or facebook/convnextv2-tiny-1k-224
            for a new library.
        dtype, revision: as for `load`.
        batch_size: images that go through the model at once.
        max_pixels: refuse larger images.
        shard: the share of the pictures that this process takes, such as "2/8". A library keeps its number of shards.
        prune: also forget missing files whose folder is gone, empty or unreadable.
        watch: called after each picture that was read.

    Raises:
        FileNotFoundError: no such folder or checkpoint.
        FileExistsError: the output is a folder of something else.
        OSError: the library cannot be written, or another process is writing it.
        ValueError: there are no pictures for a new library; or the library was made with another model or number of
            shards, or is damaged.
    """
    sources = check_sources([folders] if isinstance(folders, str | os.PathLike) else folders, missing_too=prune)
    if not os.fspath(output):
        raise ValueError("the library's folder needs a name")
    folder = Path(output).expanduser()
    part = Shard.parse(shard) if isinstance(shard, str) else shard or Shard()
    made = check_folder(folder, part)
    if made is None and not any_pictures(sources):
        raise ValueError(f"no images in {some(sources)}: nothing is written")
    if isinstance(model, ImageEmbedder):
        if (dtype, revision) != (None, None):
            raise ValueError("dtype and revision are for loading: give them to the ImageEmbedder")
        embedder = model
    elif model is None and made is not None:
        embedder = own_model(folder, made, dtype, revision, batch_size)
    else:
        embedder = ImageEmbedder(model or DEFAULT_MODEL, dtype=dtype, revision=revision, batch_size=batch_size)
    if max_pixels is not None:
        embedder.processor.max_pixels = max_pixels
    now = made_by(embedder)
    if made is not None and not made.same(now):
        raise ValueError(another_model(folder, made, now))
    folder.mkdir(parents=True, exist_ok=True)
    writer = Writer(ShardFiles(folder, part), now)
    try:
        return update(writer, embedder, sources, prune=prune, watch=watch)
    finally:
        writer.close()


def check_folder(folder: Path, shard: Shard) -> Made | None:
    """How the library in a folder was made, or None if there is none yet.

    Raises:
        FileExistsError, NotADirectoryError: the folder is something else.
        ValueError: the library has another number of shards, or is damaged.
    """
    if not os.path.lexists(folder):
        return None
    shards = find_shards(folder)
    if not shards and not all(OWN.match(name) or name.startswith(".") for name in os.listdir(folder)):
        raise FileExistsError(f"{folder} is a folder of other things: choose another one for the library")
    for files in shards:
        if files.shard.count != shard.count:
            count = files.shard.count
            remedy = "leave --shard out" if count == 1 else f"give one of its own, such as --shard 1/{count}"
            raise ValueError(f"{folder} has {count} {'shard' if count == 1 else 'shards'}: {remedy}")
    for files in shards:
        with files.open() as connection:
            if (state := files.state(connection)) is not None:
                return state.made
    return None


def own_model(
    folder: Path, made: Made, dtype: str | None = None, revision: str | None = None, batch_size: int = 8
) -> ImageEmbedder:
    """The model that a library remembers, loaded.

    Raises:
        FileNotFoundError, OSError, ValueError: as `load`; also if the library was made with a loaded model.
    """
    if made.model == UNNAMED:
        raise ValueError(f"{folder} was made with a model that was loaded before: pass it as model (--model)")
    try:
        dtype, revision = dtype or made.dtype, revision or made.revision
        return ImageEmbedder(made.model, dtype=dtype, revision=revision, batch_size=batch_size)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. {folder} was made with it: say where it is now (--model)") from None


def made_by(embedder: ImageEmbedder) -> Made:
    """What a library remembers of the model that computes its features.

    The head does not matter: models with different heads on the same body have the same features.
    """
    body, _ = body_and_classifier(embedder.model, pooled=True)
    digest = hash_weights(body)
    digest.update(f"{body.config.hidden_act} {body.config.layer_norm_eps}".encode())
    name = absolute(embedder.name) if os.path.exists(os.path.expanduser(embedder.name)) else embedder.name
    return Made(
        model=name,
        revision=embedder.revision,
        dtype=embedder.dtype,
        weights=digest.hexdigest(),
        processor=json.loads(json.dumps(embedder.processor.to_dict())),
        features=embedder.width,
        package=__version__,
    )
