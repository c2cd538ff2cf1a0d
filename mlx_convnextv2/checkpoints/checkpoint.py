"""An open checkpoint, as used by loading, converting and verifying."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..model.config import ConvNextV2Config
from .architecture import check_architecture
from .configuration import read_config, read_processor
from .hub import fetch
from .processor import ConvNextImageProcessor
from .weights import Weights


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's weights, not read yet, with its configuration and its image processor."""

    weights: Weights
    config: ConvNextV2Config
    processor: ConvNextImageProcessor

    @property
    def path(self) -> Path:
        """The folder or the weights file."""
        return self.weights.path

    @classmethod
    def open(
        cls,
        path_or_repo: str | os.PathLike[str],
        *,
        revision: str | None = None,
        card: bool = False,
        **config_overrides: Any,
    ) -> Checkpoint:
        """Find a checkpoint by its name, and read its headers and JSON files.

        Args:
            path_or_repo: a folder, a weights file or a Hub id. Only the needed files are downloaded.
            revision: branch, tag or commit of the Hub repository.
            card: download the model card too.
            config_overrides: fields of the configuration to change.

        Raises:
            FileNotFoundError: no such folder, repository, revision or weights.
            OSError: the Hub is out of reach, or a file cannot be read.
            ValueError: another architecture, a corrupt file, or a configuration that makes no sense.
        """
        path = fetch(path_or_repo, revision=revision, card=card)
        check_architecture(path)
        weights = Weights.open(path)
        config = read_config(weights, **config_overrides)
        return cls(weights, config, read_processor(weights, config))
