"""The image processor of a checkpoint: `ImageProcessor`, read from a folder or from the Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.json_files import read_json
from ..files.names import PREPROCESSOR_FILE
from ..images.processor import ImageProcessor
from .hub import fetch

if TYPE_CHECKING:
    from typing_extensions import Self


class ConvNextImageProcessor(ImageProcessor):
    __doc__ = ImageProcessor.__doc__

    @classmethod
    def from_pretrained(
        cls, path_or_repo: str | os.PathLike[str], revision: str | None = None, **overrides: Any
    ) -> Self:
        """Read the preprocessor_config.json of a folder or of a Hub repository, with `overrides` as for `from_dict`.

        Raises:
            FileNotFoundError: there is none.
            OSError: the Hub is out of reach.
            ValueError: it describes something other than ConvNeXt's preprocessing.
        """
        return cls.from_folder(fetch(path_or_repo, revision=revision, weights=False), **overrides)

    @classmethod
    def from_folder(cls, folder: Path, **overrides: Any) -> Self:
        """Read the preprocessor_config.json of a folder. If there is none, raise a FileNotFoundError."""
        path = folder / PREPROCESSOR_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no {PREPROCESSOR_FILE}: copy it there from the original checkpoint")
        values = read_json(path)
        try:
            return cls.from_dict(values, **overrides)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
