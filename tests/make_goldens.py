"""Writes goldens/model.json: what transformers computes, in float64, for the models and inputs that CASES describes.

Weights and inputs come from numpy's RandomState, which is frozen, so neither has to be stored. Run it by hand, with the
extra `parity` installed: python tests/make_goldens.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from conftest import SMALL, parameters, randomize
from mlx.utils import tree_flatten

from mlx_convnextv2 import ConvNextV2Backbone, ConvNextV2Config, ConvNextV2ForImageClassification
from mlx_convnextv2.model.config import PROBLEM_TYPES, SIZES

GOLDENS = Path(__file__).parent / "goldens" / "model.json"

# The shape of the input, the configuration, and whether the three losses and their gradients are wanted as well.
CASES: dict[str, dict[str, Any]] = {
    "gelu": {"shape": [2, 37, 53, 3], "config": {**SMALL, "num_labels": 7}, "losses": True},
    "gelu_new, three stages, patches of 3 x 3, grey": {
        "shape": [1, 49, 31, 1],
        "config": {
            "hidden_sizes": [7, 7, 30],
            "depths": [2, 0, 3],
            "num_stages": 3,
            "patch_size": 3,
            "num_channels": 1,
            "hidden_act": "gelu_new",
            "num_labels": 3,
        },
        "losses": True,
    },
    "gelu_pytorch_tanh, five stages, patches of 1 x 1": {
        "shape": [2, 35, 16, 3],
        "config": {
            "hidden_sizes": [16, 9, 5, 11, 6],
            "depths": [1, 1, 1, 1, 2],
            "num_stages": 5,
            "patch_size": 1,
            "hidden_act": "gelu_pytorch_tanh",
            "num_labels": 4,
        },
        "losses": True,
    },
    "relu, large epsilon": {
        "shape": [3, 32, 45, 3],
        "config": {**SMALL, "hidden_act": "relu", "layer_norm_eps": 0.1, "num_labels": 5},
        "losses": True,
    },
    "silu, patches of 2 x 3, four channels": {
        "shape": [2, 23, 29, 4],
        "config": {**SMALL, "hidden_act": "silu", "patch_size": [2, 3], "num_channels": 4, "num_labels": 2},
        "losses": True,
    },
    "swish, one stage without blocks": {
        "shape": [2, 11, 9, 3],
        "config": {"hidden_sizes": [13], "depths": [0], "num_stages": 1, "hidden_act": "swish", "num_labels": 3},
        "losses": False,
    },
    "selu, one stage, no head": {
        "shape": [2, 13, 22, 3],
        "config": {"hidden_sizes": [13], "depths": [2], "num_stages": 1, "hidden_act": "selu", "num_labels": 0},
        "losses": False,
    },
    "atto": {"shape": [1, 224, 224, 3], "config": {**SIZES["atto"], "num_labels": 1000}, "losses": False},
    "tiny": {"shape": [1, 224, 224, 3], "config": {**SIZES["tiny"], "num_labels": 1000}, "losses": False},
}


def classifier(config: dict[str, Any]) -> ConvNextV2ForImageClassification:
    model = randomize(ConvNextV2ForImageClassification(ConvNextV2Config(**config)))
    model.eval()
    return model


def backbone(config: dict[str, Any]) -> ConvNextV2Backbone:
    """A backbone that returns everything it can."""
    names = ConvNextV2Config(**config).stage_names
    model = randomize(ConvNextV2Backbone(ConvNextV2Config(**config, out_features=names)), seed=1)
    model.eval()
    return model


def pixels(shape: Sequence[int]) -> np.ndarray:
    """(N, H, W, C) as an image processor gives them: of mean 0 and standard deviation 1."""
    return np.random.RandomState(2).standard_normal(shape).astype(np.float32)


def labels(problem_type: str, batch: int, num_labels: int) -> np.ndarray:
    """Classes, the first sample's ignored where there are several; targets of any size; or zeros and ones."""
    random = np.random.RandomState(3)
    if problem_type == "single_label_classification":
        classes = random.randint(num_labels, size=batch)
        return np.where((np.arange(batch) == 0) & (batch > 1), -100, classes)
    if problem_type == "regression":
        return random.standard_normal((batch, num_labels)).astype(np.float32)
    return random.randint(2, size=(batch, num_labels)).astype(np.float32)


def trained_parameters(model: nn.Module) -> list[str]:
    """The two whose gradients are compared: one at each end of the model, the stem's weight and the last GRN's."""
    names = list(parameters(model))
    return [
        next(name for name in names if name.endswith("patch_embeddings.weight")),
        [name for name in names if name.endswith("grn.weight")][-1],
    ]


def loss_and_gradients(model: nn.Module, pixel_values: mx.array, targets: mx.array, names: Sequence[str]) -> tuple:
    """The loss, and its gradient with respect to each of these parameters."""
    model.freeze()
    modules = dict(model.named_modules())
    for name in names:
        module, _, parameter = name.rpartition(".")
        modules[module].unfreeze(recurse=False, keys=parameter)
    loss, gradients = nn.value_and_grad(model, lambda: model(pixel_values, labels=targets, return_dict=True).loss)()
    model.unfreeze()
    gradients = dict(tree_flatten(gradients))
    return loss, [gradients[name] for name in names]


def summary(array: np.ndarray, most: int = 12) -> dict[str, Any]:
    """Its shape, its largest magnitude and some of its values: first, last, and others that RandomState chooses."""
    samples = [float(str(value)) for value in array.reshape(-1)[places(array.size, most)].astype(np.float32)]
    return {"shape": list(array.shape), "largest": float(np.abs(array).max()), "samples": samples}


def places(size: int, most: int) -> np.ndarray:
    """Where in a flat array of this size the samples are taken: everywhere, if there are no more than `most`."""
    if size <= most:
        return np.arange(size)
    return np.array([0, size - 1, *np.random.RandomState(4).randint(size, size=most - 2)])


def compute(case: dict[str, Any]) -> dict[str, Any]:
    """What transformers makes of a case."""
    import torch
    import transformers

    # the documentation of transformers' configuration offers selu, and its table of activations lacks it
    transformers.activations.ACT2FN["selu"] = torch.nn.SELU

    def theirs(model_class: type, ours: nn.Module) -> Any:
        """A transformers model of our model's configuration and weights, in float64."""
        values = {name: value for name, value in ours.config.to_dict().items() if name != "model_type"}
        model = model_class(transformers.ConvNextV2Config(**values)).double().eval()
        weights = {name: np.array(weight) for name, weight in parameters(ours).items()}
        model.load_state_dict({name: torch.tensor(nchw(name, weight)) for name, weight in weights.items()})
        return model

    def nchw(name: str, weight: np.ndarray) -> np.ndarray:
        return weight.transpose(0, 3, 1, 2) if is_convolution(name, weight.ndim) else weight

    def nhwc(tensor: Any, most: int = 12) -> dict[str, Any]:
        array = tensor.detach().numpy()
        return summary(array.transpose(0, 2, 3, 1) if array.ndim == 4 else array, most)

    pixel_values = torch.tensor(pixels(case["shape"]).transpose(0, 3, 1, 2), dtype=torch.float64)
    ours = classifier(case["config"])
    model = theirs(transformers.ConvNextV2ForImageClassification, ours)
    outputs = model(pixel_values, output_hidden_states=True)
    golden: dict[str, Any] = {
        "logits": nhwc(outputs.logits, most=1000),
        "pooler_output": nhwc(model.convnextv2(pixel_values).pooler_output),
        "hidden_states": [nhwc(state) for state in outputs.hidden_states],
    }
    if case["losses"]:
        names = trained_parameters(ours)
        golden["losses"] = {}
        for problem_type in PROBLEM_TYPES:
            model.config.problem_type = problem_type
            targets = torch.tensor(labels(problem_type, case["shape"][0], case["config"]["num_labels"]))
            loss = model(pixel_values, labels=targets).loss
            gradients = torch.autograd.grad(loss, [model.get_parameter(name) for name in names])
            golden["losses"][problem_type] = {
                "loss": loss.item(),
                "gradients": {
                    # GRN's weight is (1, 1, 1, 4C) in both layouts
                    name: nhwc(gradient) if is_convolution(name, gradient.ndim) else summary(gradient.numpy())
                    for name, gradient in zip(names, gradients, strict=True)
                },
            }
    model = theirs(transformers.ConvNextV2Backbone, backbone(case["config"]))
    golden["feature_maps"] = [nhwc(feature_map) for feature_map in model(pixel_values).feature_maps]
    return golden


def is_convolution(name: str, ndim: int) -> bool:
    return ndim == 4 and ".grn." not in name


def main() -> None:
    stored = {name: {"case": case, "expected": compute(case)} for name, case in CASES.items()}
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in stored.items()]
    GOLDENS.parent.mkdir(exist_ok=True)
    GOLDENS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
