"""Load and save checkpoints by name."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from . import __version__
from .config import LABEL_FIELDS, ConvNextV2Config
from .download import fetch, http_status
from .folders import new_folder
from .forks import check_not_forked
from .image_processor import PREPROCESSOR_FILE, ConvNextImageProcessor
from .layers import no_init_weights
from .messages import one_line, short
from .model import (
    ConvNextV2Backbone,
    ConvNextV2ForImageClassification,
    ConvNextV2Model,
    ConvNextV2PreTrainedModel,
)
from .model_card import CARD_FILE, model_card
from .new_head import build_with_new_head, check_new_labels, draw_head
from .quantization import restore_quantized_layers
from .sources import CONFIG_FILE, TIMM_KEYS, described_by, open_checkpoint, read_config, read_processor
from .tensor_files import MAX_SHARD_BYTES, as_dtype, dtype_name, is_floating, save_weights, write_json
from .weights import HUGGING_FACE, Checkpoint, load_weights, to_pytorch_layout

_PREFIX = "convnextv2."
_NORMS = "hidden_states_norms."
_MODEL_CLASSES = (ConvNextV2ForImageClassification, ConvNextV2Model, ConvNextV2Backbone)


def load(
    path_or_repo: str | os.PathLike[str],
    *,
    dtype: str | mx.Dtype | None = None,
    revision: str | None = None,
    model_class: type[ConvNextV2PreTrainedModel] | None = None,
    labels: Sequence[str] | None = None,
    **config_overrides: Any,
) -> tuple[Any, ConvNextImageProcessor]:
    """Load a checkpoint, converted or not, strictly: no parameter keeps a random value, no tensor is left over.

    Args:
        path_or_repo: a folder, a weights file, or a Hub id such as "facebook/convnextv2-tiny-1k-224", with weights
            under the names of Hugging Face, timm or the authors' repository. Downloads go through huggingface_hub,
            with its cache and its variables (HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE).
        dtype: "float32", "float16" or "bfloat16", or MLX's type; None keeps the checkpoint's.
        revision: branch, tag or commit of the Hub repository.
        model_class: ConvNextV2ForImageClassification, ConvNextV2Model or ConvNextV2Backbone; None takes what the
            checkpoint holds. A model or backbone leaves the parts out that it has no use for: classifier, and for a
            backbone the final norm. A backbone's own norms start at 1 and 0 where the checkpoint has none; those of
            stages that `out_features` leaves out are not read.
        labels: give the model a new head for these classes, its weights drawn as transformers draws them, and say so
            in a warning. The rest is as it is; of a checkpoint that has no head, the final norm may be new too.
        config_overrides: fields of the configuration to change, such as `out_features=["stage2", "stage4"]`.

    Returns:
        The model, in inference mode and for any thread to use, and its image processor.

    Raises:
        FileNotFoundError: no such folder, repository, revision or weights.
        OSError: the Hub is out of reach, a file cannot be read, or this process was forked from one that used MLX.
        TypeError: `path_or_repo` is no path and no id.
        ValueError: another architecture, a corrupt file, weights that do not fit (listed), a `revision` of something
            local, or another `model_class`.
    """
    model, processor = load_unread(
        path_or_repo, dtype=dtype, revision=revision, model_class=model_class, labels=labels, **config_overrides
    )
    try:
        mx.eval(model.parameters())  # lazy arrays are of use in the thread alone that made them
    except RuntimeError as error:
        if not str(error).startswith("[read]"):  # not a file's fault
            raise
        raise OSError(f"{os.fspath(path_or_repo)} cannot be read ({one_line(error)}): download it again") from None
    return model, processor


def load_unread(
    path_or_repo: str | os.PathLike[str],
    *,
    dtype: str | mx.Dtype | None = None,
    revision: str | None = None,
    model_class: type[ConvNextV2PreTrainedModel] | None = None,
    labels: Sequence[str] | None = None,
    **config_overrides: Any,
) -> tuple[Any, ConvNextImageProcessor]:
    """`load`, except that each weight is read when it is needed, which must be in this thread.

    A conversion never has to hold all of them.
    """
    check_not_forked()
    dtype = as_dtype(dtype)
    if model_class is not None and model_class not in _MODEL_CLASSES:
        names = ", ".join(known.__name__ for known in _MODEL_CLASSES)
        raise ValueError(f"model_class must be one of {names}, not {short(model_class)}")
    if labels is not None:
        config_overrides["id2label"] = check_new_labels(labels, model_class, config_overrides)
    checkpoint = open_checkpoint(fetch(path_or_repo, revision=revision))
    config = read_config(checkpoint, **config_overrides)
    if labels is not None:
        classifier, sources, left_out = build_with_new_head(config, checkpoint)
        load_weights(classifier, checkpoint, sources, left_out, dtype, described_by(checkpoint))
        draw_head(classifier, checkpoint, sources)
        return classifier.eval(), read_processor(checkpoint, config)
    model, sources, left_out = _build(config, checkpoint, model_class)
    if isinstance(model, ConvNextV2ForImageClassification) and not LABEL_FIELDS.isdisjoint(config_overrides):
        _check_head(checkpoint, config.num_labels)
    if isinstance(model, ConvNextV2Backbone) and not {"out_features", "out_indices"}.isdisjoint(config_overrides):
        unasked = set(config.stage_names) - set(config.out_features)
        left_out |= {name for name in checkpoint.tensors if re.match(rf"{_NORMS}({'|'.join(unasked)})\.", name)}
    load_weights(model, checkpoint, sources, left_out, dtype, described_by(checkpoint))
    return model.eval(), read_processor(checkpoint, config)


def save(
    model: ConvNextV2PreTrainedModel,
    path: str | os.PathLike[str],
    processor: ConvNextImageProcessor | None = None,
    *,
    format: str = "mlx",
    overwrite: bool = False,
    name: str | None = None,
    base_model: str | None = None,
    licence: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    release: bool = False,
) -> None:
    """Write a checkpoint folder: weights, config.json, preprocessor_config.json and a model card.

    The folder appears whole or not at all. `load` reads it back to the same numbers, and with format="huggingface"
    so does transformers' `from_pretrained`.

    Args:
        model: what to write, in its parameters' dtype.
        path: the folder, which must not exist.
        processor: written beside the model where given.
        format: "mlx" for MLX's layout, "huggingface" for PyTorch's.
        overwrite: replace a checkpoint folder that is there.
        name, base_model, licence: stated in the model card; the name is the folder's unless given.
        max_shard_bytes: larger weights are split into shards of this size.
        release: give up the model's weights as they are written, which saves memory and time; it is empty afterwards.

    Raises:
        FileExistsError: the folder exists.
        OSError: it cannot be written, for lack of space say.
        ValueError: an unknown format, or a config that is no longer the model's.
    """
    if format not in ("mlx", "huggingface"):
        raise ValueError(f'format must be "mlx" or "huggingface", not {format!r}')
    weights = dict(tree_flatten(model.parameters()))
    if format == "huggingface":
        weights = to_pytorch_layout(weights)
    metadata = {"format": "mlx" if format == "mlx" else "pt", "mlx_convnextv2": __version__}
    dtype = dtype_name(next(array.dtype for array in weights.values() if is_floating(array.dtype)))
    quantized = not all(is_floating(array.dtype) for array in weights.values())
    if format == "huggingface" and quantized:
        raise ValueError("transformers cannot read MLX's quantized weights: save the original checkpoint instead")
    path = os.path.expanduser(path)
    size = sum(array.nbytes for array in weights.values())
    with new_folder(path, overwrite) as folder:
        config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
        if format == "huggingface":
            config = {key: value for key, value in config.items() if key not in TIMM_KEYS}
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
        try:
            write_json(folder / CONFIG_FILE, config)
            _check_described(model, ConvNextV2Config.from_json_file(folder / CONFIG_FILE))
        except (TypeError, ValueError) as error:
            reason = str(error).replace(str(folder), path)
            raise ValueError(f"{path} is not written, because it could not be loaded again: {reason}") from None
        if release:
            model.update(tree_map(lambda _: mx.array([]), model.parameters()))
        save_weights(folder, weights, metadata, max_shard_bytes)
        if processor is not None:
            if format == "huggingface" and processor.crop_mode is not None:
                mode = processor.crop_mode
                warnings.warn(
                    f"transformers does not know crop_mode {mode!r}: it prepares images its own way", stacklevel=2
                )
            write_json(folder / PREPROCESSOR_FILE, processor.to_dict())
        card = model_card(
            model.config,
            name or Path(path).absolute().name,
            dtype=dtype,
            size=size,
            quantized=quantized,
            classifies=isinstance(model, ConvNextV2ForImageClassification) and model.config.num_labels > 0,
            format=format,
            base_model=base_model,
            licence=licence,
        )
        (folder / CARD_FILE).write_text(card, encoding="utf-8")


def upload(path: str | os.PathLike[str], repo: str) -> str:
    """Publish a checkpoint folder as a repository of the Hub, made where it does not exist, and return its address.

    Raises:
        OSError: the Hub is out of reach, or HF_TOKEN gives no right to write there.
        ValueError: `repo` is not a Hub id.
    """
    from huggingface_hub import HfApi

    check_repo_id(repo)
    api = HfApi()
    try:
        address = api.create_repo(repo, exist_ok=True)
        api.upload_folder(folder_path=os.fspath(path), repo_id=repo, commit_message="Upload a ConvNeXt V2 checkpoint")
    except Exception as error:  # whatever the HTTP client raises: its own types are not OSErrors
        status = http_status(error)
        remedy = "check that HF_TOKEN may write there" if status in (401, 403) else "try again later"
        answer = one_line(error) if status is None else f"the Hub answers status {status}: {one_line(error)}"
        raise OSError(f"{path} is written but could not be uploaded to {repo} ({answer}): {remedy}") from None
    return str(address)


def check_repo_id(repo: str) -> None:
    """Raise a ValueError if a repository of the Hub cannot have this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise ValueError(f"{short(repo)} is not a Hub id such as owner/name") from None


def _check_head(checkpoint: Checkpoint, num_labels: int) -> None:
    """Raise a ValueError if the checkpoint's head is for another number of classes."""
    head = checkpoint.tensors.get("classifier.weight")
    if head is not None and head.shape[0] != num_labels:
        raise ValueError(
            f"the head of {checkpoint.path} has {head.shape[0]} classes, so num_labels cannot be {num_labels}: "
            f"give id2label {head.shape[0]} labels, one for each class"
        )


def _check_described(model: ConvNextV2PreTrainedModel, config: ConvNextV2Config) -> None:
    """Raise a ValueError if a model built from the configuration would have other parameters than this one."""
    ours = _shapes(model)
    with no_init_weights():
        rebuilt = next(known for known in _MODEL_CLASSES if isinstance(model, known))(config)
        restore_quantized_layers(rebuilt, ours)
    described = _shapes(rebuilt)
    for name in sorted(ours.keys() | described.keys()):
        if ours.get(name) != described.get(name):
            raise ValueError(
                f"model.config is no longer the model's: {name} is {ours.get(name, 'absent')} and would be "
                f"{described.get(name, 'absent')}. Set the config back, or build a new model from it"
            )


def _shapes(model: ConvNextV2PreTrainedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in dict(tree_flatten(model.parameters())).items()}


def _build(
    config: ConvNextV2Config, checkpoint: Checkpoint, model_class: type[ConvNextV2PreTrainedModel] | None
) -> tuple[ConvNextV2PreTrainedModel, dict[str, str], set[str]]:
    """A model without its weights, the checkpoint's name for each of its parameters, and the names left out."""
    tensors = checkpoint.tensors
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in tensors) else ""
    from_transformers = checkpoint.scheme is HUGGING_FACE
    held_class: type[ConvNextV2PreTrainedModel] = ConvNextV2Model
    if prefix and (from_transformers or any(name.startswith("classifier.") for name in tensors)):
        held_class = ConvNextV2ForImageClassification
    elif any(name.startswith(_NORMS) for name in tensors):
        held_class = ConvNextV2Backbone

    model_class = model_class or held_class
    with no_init_weights():
        model = model_class(config)
    own_prefix = prefix if model_class is not ConvNextV2ForImageClassification else ""
    try:
        restore_quantized_layers(model, tensors, own_prefix)
    except ValueError as error:
        raise ValueError(f"{checkpoint.path}: {error}") from None
    names = list(dict(tree_flatten(model.parameters())))
    if model_class is ConvNextV2ForImageClassification:
        if held_class is not model_class:
            raise ValueError(f"{checkpoint.path} holds no classifier: load it as ConvNextV2Model or ConvNextV2Backbone")
        return model, {name: name for name in names}, set()

    left_out: set[str] = set()
    if model_class is not held_class:
        unused = ["classifier."]
        if model_class is ConvNextV2Backbone:
            unused.append(f"{prefix}layernorm.")
            names = [name for name in names if not name.startswith(_NORMS)]
        left_out = {name for name in tensors if name.startswith(tuple(unused))}
    elif model_class is ConvNextV2Model and not from_transformers and f"{prefix}layernorm.weight" not in tensors:
        # the outcome of pre-training alone (FCMAE)
        warnings.warn(f"{checkpoint.path} has no final norm: the pooled output is normalised without one", stacklevel=4)
        names = [name for name in names if not name.startswith("layernorm.")]
    return model, {name: prefix + name for name in names}, left_out
