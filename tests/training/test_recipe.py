"""The settings of a run: the authors' where the options are silent, brought to the data."""

import math

import pytest

from mlx_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification
from mlx_convnextv2.model.layers import no_init_weights
from mlx_convnextv2.training.optimizer import average_decay, parameter_groups
from mlx_convnextv2.training.options import Options
from mlx_convnextv2.training.recipe import make_recipe


def recipe_of(size, images=10_000, processes=1, **options):
    return make_recipe(Options(full=True, **options), ConvNextV2Config.from_size(size), images, processes)


@pytest.mark.parametrize(
    ("size", "lr", "epochs", "warmup", "decay", "weight_decay", "drop_path", "mixup", "cutmix", "smoothing"),
    [
        ("atto", 8e-4, 600, 0, (0.9, "single"), 0.3, 0.1, 0, 0, 0.2),
        ("tiny", 3.2e-3, 300, 40, (0.9, "single"), 0.05, 0.2, 0.8, 1.0, 0.1),
        ("base", 2.5e-3, 100, 20, (0.6, "group"), 0.05, 0.1, 0.8, 1.0, 0.1),
    ],
)
def test_at_the_authors_batch_and_epochs_the_recipe_is_theirs(
    size, lr, epochs, warmup, decay, weight_decay, drop_path, mixup, cutmix, smoothing
):
    recipe = recipe_of(size, images=1_281_167, batch_size=1024, epochs=epochs)
    assert recipe.lr == pytest.approx(lr)  # their base rate times 1024 / 256
    assert recipe.steps_per_epoch == 1251
    assert recipe.warmup_steps == warmup * 1251
    assert (recipe.layer_decay, recipe.layer_groups) == decay
    assert (recipe.weight_decay, recipe.drop_path) == (weight_decay, drop_path)
    assert (recipe.mixup, recipe.cutmix, recipe.label_smoothing) == (mixup, cutmix, smoothing)
    assert recipe.ema == 0.9999


def test_a_small_batch_has_a_smaller_rate_and_few_steps_a_shorter_average():
    recipe = recipe_of("atto", images=1000, batch_size=64, epochs=10)
    assert recipe.lr == pytest.approx(8e-4 / 4)
    assert recipe.steps == 150
    assert recipe.ema == pytest.approx(1 - 10 / 150)
    assert recipe_of("atto", images=7, epochs=1).batch_size == 7


def test_an_option_counts_before_the_authors_and_zero_is_one():
    recipe = recipe_of("tiny", drop_path=0.0, mixup=0.0, ema=0.0, lr=1e-3, warmup_epochs=1.0)
    assert (recipe.drop_path, recipe.mixup, recipe.ema, recipe.lr) == (0, 0, 0, 1e-3)
    assert recipe.warmup_steps == recipe.steps_per_epoch


def test_the_rate_warms_up_and_falls_along_a_cosine():
    recipe = recipe_of("tiny", images=3200, epochs=10, lr=1.0, warmup_epochs=2.0, min_lr=0.1)
    rates = [recipe.learning_rate(step) for step in range(recipe.steps)]
    assert rates[0] == pytest.approx(1 / 200)
    assert rates[199] == 1
    assert rates[200] == 1
    assert rates[600] == pytest.approx(0.55)  # half way
    assert rates[-1] == pytest.approx(0.1, abs=1e-4)
    assert rates[199:] == sorted(rates[199:], reverse=True)


def test_a_batch_must_be_divisible_among_processes_and_parts():
    assert recipe_of("atto", images=70, batch_size=64, processes=4, accumulate=2).batch_size == 64
    assert recipe_of("atto", images=63, batch_size=64, processes=4, accumulate=2).batch_size == 56
    with pytest.raises(ValueError, match=r"batch_size 30 cannot be divided .* make it a multiple of 8"):
        recipe_of("atto", batch_size=30, processes=4, accumulate=2)
    with pytest.raises(ValueError, match="5 images are fewer than 8"):
        recipe_of("atto", images=5, batch_size=32, accumulate=8)


def test_a_part_of_a_batch_that_is_mixed_has_whole_pairs():
    """Else its last image would stay unmixed, and the losses would not be those of the batch in one part."""
    assert recipe_of("tiny", images=30, batch_size=32, accumulate=2).batch_size == 28
    assert recipe_of("tiny", images=30, batch_size=32, accumulate=2, mixup=0, cutmix=0).batch_size == 30
    assert recipe_of("tiny", images=29, batch_size=32).batch_size == 29
    with pytest.raises(ValueError, match=r"batch_size 6 cannot be .* pairs .*: make it a multiple of 4"):
        recipe_of("tiny", batch_size=6, processes=2)


def test_the_average_begins_short():
    assert average_decay(0.9999, 1) == pytest.approx(2 / 11)
    assert average_decay(0.9999, 10**6) == 0.9999


def groups_of(size, decay, groups):
    with no_init_weights():
        model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size(size, num_labels=3))
    return parameter_groups(model, model.config.depths, decay, groups)


def layers(size, groups):
    """How many layers lie between the head and a parameter, for those that the authors' assigner tells apart."""
    found = groups_of(size, 0.5, groups)
    stages = "convnextv2.encoder.stages"
    names = {
        "stem": "convnextv2.embeddings.patch_embeddings.weight",
        "first": f"{stages}.0.layers.0.dwconv.weight",
        "down 1": f"{stages}.1.downsampling_layer.1.weight",
        "deep 0": f"{stages}.2.layers.0.dwconv.weight",
        "deep 4": f"{stages}.2.layers.4.grn.weight",
        "down 3": f"{stages}.3.downsampling_layer.0.weight",
        "last": f"{stages}.3.layers.1.pwconv2.bias",
        "norm": "convnextv2.layernorm.weight",
        "head": "classifier.weight",
    }
    exponents = {short: found[name].lr_scale for short, name in names.items()}
    return {short: round(-math.log2(scale)) for short, scale in exponents.items()}


def test_layers_are_counted_as_the_authors_count_them():
    # base, "group": 12 groups, the stem before them and the head after; atto, "single": 12 blocks and the head
    assert layers("base", "group") == {
        **{"stem": 13, "first": 12, "down 1": 11, "deep 0": 10, "deep 4": 9, "down 3": 1, "last": 1},
        **{"norm": 0, "head": 0},
    }
    assert layers("atto", "single") == {
        **{"stem": 12, "first": 12, "down 1": 10, "deep 0": 8, "deep 4": 4, "down 3": 2, "last": 1},
        **{"norm": 0, "head": 0},
    }
