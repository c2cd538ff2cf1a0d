"""Training beside PyTorch: the same weights, batches and settings give the same losses and the same weights after."""

from __future__ import annotations

import re

import numpy as np
import pytest
from conftest import SMALL

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from reference import images, nchw, pair, to_mlx

from mlx_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification
from mlx_convnextv2.training.batches import step_random
from mlx_convnextv2.training.optimizer import parameter_groups
from mlx_convnextv2.training.options import Options
from mlx_convnextv2.training.recipe import make_recipe
from mlx_convnextv2.training.step import Step, first_state

pytestmark = pytest.mark.parity

STEPS, CLASSES, BATCH = 20, 5, 8
UNDECAYED = r"bias$|norm\.weight$|grn\.weight$|downsampling_layer\.0\.weight$"  # the last is a norm


def their_optimizer(model, ours, recipe):
    """PyTorch's AdamW with a group for each parameter, whose rates and decays are told by the names alone."""
    groups = parameter_groups(ours, ours.config.depths, recipe.layer_decay, recipe.layer_groups)
    return torch.optim.AdamW(
        [
            {
                "params": [parameter],
                "lr": recipe.lr,
                "scale": groups[name].lr_scale,
                "weight_decay": 0 if re.search(UNDECAYED, name) else recipe.weight_decay,
            }
            for name, parameter in model.named_parameters()
        ]
    )


def error(ours, theirs) -> float:
    """The largest difference, as a share of the reference's largest magnitude."""
    ours, theirs = np.array(ours), np.array(theirs)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize(
    ("name", "side", "settings"),
    [
        ("small", 32, {}),
        ("small", 40, {"layer_decay": 0.6, "layer_groups": "group", "clip_norm": 0.5, "accumulate": 2}),
        ("small", 32, {"layer_decay": 1.0, "label_smoothing": 0.0, "clip_norm": 0.0, "grad_checkpoint": True}),
        ("atto", 32, {"lr": 3e-4}),
    ],
)
def test_twenty_steps_of_adamw_equal_pytorchs(name, side, settings):
    kind = {"num_labels": CLASSES}
    config = ConvNextV2Config(**SMALL, **kind) if name == "small" else ConvNextV2Config.from_size(name, **kind)
    theirs, ours = pair(ConvNextV2ForImageClassification, config)
    theirs.train().requires_grad_(True)
    options = Options(
        full=True, batch_size=BATCH, epochs=2, drop_path=0, mixup=0, cutmix=0, ema=0, lr=1e-3, warmup_epochs=0.3
    ).with_values(**settings)
    recipe = make_recipe(options, config, BATCH * STEPS // 2)
    assert recipe.steps == STEPS
    optimizer = their_optimizer(theirs, ours, recipe)
    state, step = first_state(ours, recipe), Step(ours, recipe)
    random = np.random.RandomState(5)
    for number in range(STEPS):
        pixel_values, labels = images(BATCH, side, side, 3, seed=number), random.randint(0, CLASSES, BATCH)
        logits = theirs(nchw(pixel_values)).logits
        expected = torch.nn.functional.cross_entropy(
            logits, torch.from_numpy(labels), label_smoothing=recipe.label_smoothing
        )
        optimizer.zero_grad()
        expected.backward()
        if recipe.clip_norm:
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), recipe.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(number) * group["scale"]
        optimizer.step()
        state, loss = step(state, pixel_values, labels.astype(np.int32), step_random(0, number))
        assert loss == pytest.approx(expected.item(), rel=1e-4)
    moved = 0
    for parameter_name, parameter in theirs.named_parameters():
        assert error(state.weights[parameter_name], to_mlx(parameter_name, parameter)) < 1e-4, parameter_name
        moved += 1
    assert moved == len(state.weights)
