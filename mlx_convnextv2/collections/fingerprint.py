"""A hash of everything that decides a model's answers."""

from __future__ import annotations

import hashlib
import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ..inference.classifier import ImageClassifier


def fingerprint(classifier: ImageClassifier) -> str:
    """The hash of a classifier's weights (in its computing dtype), its configuration and its preprocessing.

    The weights are hashed as they are in memory, so a converted checkpoint has the hash of its source. Hashing takes a
    second for each gigabyte.
    """
    digest = hash_weights(classifier.model)
    config = classifier.model.config
    known = {name: value for name, value in config.to_dict().items() if name not in config.extra}
    settings = [classifier.labels, known, classifier.processor.to_dict()]
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def hash_weights(model: nn.Module) -> hashlib.blake2b:
    """The hash of a model's weights: their names, types, shapes and values. The caller may update it with more."""
    digest = hashlib.blake2b(digest_size=16)
    for name, array in sorted(dict(tree_flatten(model.parameters())).items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        readable = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array  # numpy has no bfloat16
        digest.update(np.ascontiguousarray(np.array(readable, copy=None)).data)
    return digest
