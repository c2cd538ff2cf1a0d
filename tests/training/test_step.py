"""A step of training: against a reference in numpy, and the traps that it must not fall into."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from conftest import SMALL, parameters, randomize
from numpy_reference import AdamW, loss_and_gradients, mixed

from mlx_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification
from mlx_convnextv2.training.batches import step_random
from mlx_convnextv2.training.forward import draw_drop_path, forward
from mlx_convnextv2.training.mixing import UNMIXED, draw_mix
from mlx_convnextv2.training.optimizer import average_decay
from mlx_convnextv2.training.options import Options
from mlx_convnextv2.training.recipe import make_recipe
from mlx_convnextv2.training.step import Step, first_state

CLASSES, BATCH, SIDE = 4, 6, 36


@pytest.fixture
def model():
    result = ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL, num_labels=CLASSES))
    randomize(result)
    return result


@pytest.fixture
def batch():
    random = np.random.RandomState(3)
    return random.standard_normal((BATCH, SIDE, SIDE, 3)).astype(np.float32), np.array([0, 1, 2, 3, 1, 0], np.int32)


def a_recipe(model, epochs=2, **settings):
    options = {"batch_size": BATCH, "drop_path": 0.5, "mixup": 0.8, "cutmix": 1.0, "lr": 1e-3, **settings}
    return make_recipe(Options(full=True, epochs=epochs, **options), model.config, 3 * BATCH)


def close(ours, theirs):
    """The largest difference, as a share of the largest magnitude."""
    ours, theirs = np.array(ours), np.array(theirs)
    return np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-12)


def run(model, batch, recipe, steps=3, seed=0, **arguments):
    """The state and the losses after some steps."""
    state, step, losses = first_state(model, recipe), Step(model, recipe, **arguments), []
    for number in range(steps):
        state, loss = step(state, batch[0], batch[1], step_random(seed, number))
        losses.append(loss)
    return state, losses, step


def test_drop_path_mixing_and_moving_average_equal_a_reference_in_numpy(model, batch):
    recipe = a_recipe(model, ema=0.9, label_smoothing=0.1, clip_norm=0.0, weight_decay=0.2, layer_decay=0.8)
    state, step = first_state(model, recipe), Step(model, recipe)
    weights = {name: np.array(array, np.float64) for name, array in state.weights.items()}
    average = dict(weights)
    decays = {name: recipe.weight_decay * group.decays for name, group in step.groups.items()}
    optimizer = AdamW(weights, {name: group.lr_scale for name, group in step.groups.items()}, decays)
    kinds = set()
    for number in range(6):
        random = step_random(1, number)  # in the order in which the step draws
        how = draw_mix(recipe.mixup, recipe.cutmix, (SIDE, SIDE), random)
        kinds.add("cutmix" if how[4] == 0 else "mixup")
        keep = draw_drop_path(5, recipe.drop_path, BATCH, random)
        targets = np.eye(CLASSES)[batch[1]] * 0.9 + 0.1 / CLASSES
        images, targets = mixed(batch[0].astype(np.float64), targets, how)
        expected, gradients = loss_and_gradients(weights, SMALL["depths"], images, targets, keep)
        weights = optimizer.step(weights, gradients, recipe.learning_rate(number))
        decay = average_decay(0.9, number + 1)
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in weights}
        state, loss = step(state, batch[0], batch[1], step_random(1, number))
        assert loss == pytest.approx(expected, rel=1e-4)
    assert kinds == {"mixup", "cutmix"}
    for name, weight in weights.items():
        assert close(state.weights[name], weight) < 1e-4, name
        assert close(state.average[name], average[name]) < 1e-4, name


def test_the_forward_pass_of_training_is_the_models_own_without_drop_path(model, batch):
    keep = mx.ones((5, BATCH))
    expected = model.eval()(mx.array(batch[0])).logits
    assert close(forward(model, mx.array(batch[0]), keep), expected) < 1e-6


def test_mlx_checkpoint_draws_a_new_drop_path_mask_and_ours_does_not(model, batch):
    """The trap: a mask drawn within a checkpointed function is drawn again for the backward pass."""
    x = mx.ones((64,))

    def masked(x):
        return x * mx.random.bernoulli(0.5, x.shape)

    differ = []
    for seed in range(5):
        gradients = []
        for function in (masked, mx.checkpoint(masked)):
            mx.random.seed(seed)
            gradients.append(np.array(mx.grad(lambda x, f=function: f(x).sum())(x)))
        differ.append(not np.array_equal(gradients[0], gradients[1]))
    assert any(differ)  # MLX, measured

    results = [run(model, batch, a_recipe(model, grad_checkpoint=on), steps=1) for on in (False, True)]
    for name, weight in results[0][0].weights.items():
        assert close(results[1][0].weights[name], weight) < 1e-6, name
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-6)


def test_drop_path_drops_whole_branches_by_their_rates():
    keep = draw_drop_path(5, 0.5, 4000, np.random.default_rng(0))
    np.testing.assert_allclose((keep == 0).mean(axis=1), np.linspace(0, 0.5, 5), atol=0.03)
    np.testing.assert_allclose(keep.mean(axis=1), 1, atol=0.06)  # so that inference needs no change
    assert np.unique(keep[4]).tolist() == [0, 2]


def test_masks_that_are_drawn_within_a_compiled_function_stay_the_same_for_ever():
    """The trap that the next test is about: what MLX does without mx.random.state among the inputs."""
    drawn = mx.compile(lambda x: x * mx.random.bernoulli(0.5, x.shape))
    assert np.array_equal(drawn(mx.ones((64,))), drawn(mx.ones((64,))))


@pytest.mark.slow
def test_a_compiled_step_has_other_masks_at_each_step_and_one_trace(model, batch):
    """On a CPU a C++ compiler runs for it."""
    recipe = a_recipe(model, lr=0.0)  # the weights stay, so that only masks and mixing change the loss
    _, losses, step = run(model, batch, recipe, steps=4, compiled=True)
    assert len(set(losses)) == 4
    assert step.traces == 1
    assert losses == pytest.approx(run(model, batch, recipe, steps=4)[1], rel=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_move_in_half_precision_where_half_weights_would_not(model, batch, dtype):
    """The trap: a bfloat16 weight of 1 does not move by 1e-4."""
    half = mx.array(1.0, mx.bfloat16)
    assert (half - mx.array(1e-4, mx.bfloat16)).item() == 1  # MLX, measured

    recipe = a_recipe(model, dtype=dtype, lr=1e-4, layer_decay=1.0, drop_path=0.0)
    before = first_state(model, recipe)
    state, losses, _ = run(model, batch, recipe, steps=2)
    assert np.isfinite(losses).all()
    assert state.skipped == 0
    norms = [name for name in before.weights if name.endswith("layernorm.weight")]
    assert norms
    for name in norms:
        moved = np.abs(np.array(state.weights[name] - before.weights[name]))
        assert state.weights[name].dtype == mx.float32
        assert 5e-5 < np.median(moved) < 3e-4, name
    full, _, _ = run(model, batch, a_recipe(model, lr=1e-4, layer_decay=1.0, drop_path=0.0), steps=1)
    halved, _, _ = run(model, batch, recipe, steps=1)
    assert close(halved.first["classifier.weight"], full.first["classifier.weight"]) < 0.05


def test_a_learning_rate_keeps_to_its_group_where_multi_optimizers_setter_does_not(model, batch):
    """The trap: setting MultiOptimizer's learning rate overwrites that of every group."""
    groups = optim.MultiOptimizer([optim.SGD(1.0), optim.SGD(0.1)], [lambda name, _: name == "a"])
    groups.learning_rate = 0.5
    assert [float(optimizer.learning_rate) for optimizer in groups.optimizers] == [0.5, 0.5]  # MLX, measured

    recipe = a_recipe(model, layer_decay=0.5, weight_decay=0.0)
    before = first_state(model, recipe)
    state, _, step = run(model, batch, recipe, steps=1)
    rate = recipe.learning_rate(0)
    for name in ("classifier.bias", "convnextv2.embeddings.patch_embeddings.bias"):
        moved = np.abs(np.array(state.weights[name] - before.weights[name]))
        assert np.median(moved) == pytest.approx(rate * step.groups[name].lr_scale, rel=0.05)
    assert step.groups["convnextv2.embeddings.patch_embeddings.bias"].lr_scale == 0.5**5


def test_a_batch_in_parts_gives_the_step_of_the_whole(model, batch):
    whole, losses, _ = run(model, batch, a_recipe(model))
    accumulated, in_parts, _ = run(model, batch, a_recipe(model, accumulate=3))
    assert in_parts == pytest.approx(losses, rel=1e-5)
    for name, weight in whole.weights.items():
        assert close(accumulated.weights[name], weight) < 1e-4, name


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_step_leaves_the_model_with_its_own_weights(model, batch, compiled):
    before = {name: np.array(array) for name, array in parameters(model).items()}
    run(model, batch, a_recipe(model), steps=1, compiled=compiled)
    for name, array in parameters(model).items():
        assert np.array_equal(array, before[name]), name


def test_a_loss_that_is_no_number_ends_with_a_sentence(model, batch):
    pixel_values = batch[0].copy()
    pixel_values[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"the loss is not a number at step 1: lower the learning rate \(--lr\)"):
        run(model, (pixel_values, batch[1]), a_recipe(model), steps=1)


def test_what_float16_cannot_hold_is_left_out_and_the_loss_scale_halved(model, batch):
    recipe = a_recipe(model, dtype="float16", drop_path=0.0)
    state, step = first_state(model, recipe), Step(model, recipe)
    state = replace(state, loss_scale=2.0**40)
    after, _ = step(state, batch[0], batch[1], step_random(0, 0))
    assert (after.step, after.skipped, after.loss_scale) == (1, 1, 2.0**39)
    assert all(np.array_equal(after.weights[name], weight) for name, weight in state.weights.items())


def test_unmixed_is_what_no_mixing_draws():
    assert draw_mix(0, 0, (8, 8), np.random.default_rng(0)) == UNMIXED


def test_only_weights_of_linear_layers_and_convolutions_decay(model):
    """The trap: GRN's weight has four dimensions, so that a rule for one dimension lets it decay."""
    groups = Step(model, a_recipe(model)).groups
    modules = dict(model.named_modules())
    for name, group in groups.items():
        owner, _, kind = name.rpartition(".")
        assert group.decays == (kind == "weight" and isinstance(modules[owner], nn.Linear | nn.Conv2d)), name
    assert not groups["convnextv2.encoder.stages.0.layers.0.grn.weight"].decays
    assert dict(parameters(model).items())["convnextv2.encoder.stages.0.layers.0.grn.weight"].ndim == 4
