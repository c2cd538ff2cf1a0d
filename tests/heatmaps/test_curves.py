"""What a map marks matters to the model: on the digits, the trained model that is part of the package."""

import runpy

import mlx.core as mx
import numpy as np
import pytest
from conftest import ROOT

from mlx_convnextv2 import fuse, load
from mlx_convnextv2.heatmaps import deletion_curve, explain, insertion_curve

BLACK = -1.0  # as the demo's processor makes it


@pytest.fixture(scope="module")
def digits():
    """The demo model, the first digits that its training left out (N, 32, 32, 3), and their classes."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    digit_image = runpy.run_path(str(ROOT / "examples" / "train_digits.py"))["digit_image"]
    model, processor = load(ROOT / "mlx_convnextv2" / "demo")
    held_out = np.random.RandomState(0).permutation(len(data.images))[:20]
    return model, processor([digit_image(data.images[i]) for i in held_out]), data.target[held_out]


@pytest.mark.parametrize("layer", ["stage1", pytest.param("stem", marks=pytest.mark.slow)])
def test_deletion_and_insertion_curves_beat_random_maps(digits, layer):
    model, pixel_values, classes = digits
    predict = fuse(model)
    maps = np.array(explain(model, pixel_values, classes.tolist(), layer=layer))
    random = np.random.RandomState(0).standard_normal(maps.shape)
    areas = {}
    for curve in (deletion_curve, insertion_curve):
        for name, some in (("ours", maps), ("random", random)):
            areas[curve, name] = curve(predict, pixel_values, some, classes, baseline=BLACK, steps=8).mean()
    assert areas[deletion_curve, "ours"] < areas[deletion_curve, "random"] - 0.15
    assert areas[insertion_curve, "ours"] > areas[insertion_curve, "random"] + 0.08


def test_a_curve_leads_from_the_picture_to_the_baseline(digits):
    model, pixel_values, classes = digits
    predict = fuse(model)
    maps = np.random.RandomState(1).standard_normal((len(classes), 4, 4))

    def scores(images):
        return np.array(mx.softmax(predict(images), axis=-1))[np.arange(len(classes)), classes]

    deletion = deletion_curve(predict, pixel_values, maps, classes, baseline=BLACK, steps=3)
    insertion = insertion_curve(predict, pixel_values, maps, classes, baseline=BLACK, steps=3)
    assert deletion.shape == insertion.shape == (len(classes), 4)
    picture, blank = scores(pixel_values), scores(mx.full(pixel_values.shape, BLACK))
    for curve, first, last in ((deletion, picture, blank), (insertion, blank, picture)):
        assert np.abs(curve[:, 0] - first).max() < 1e-5
        assert np.abs(curve[:, -1] - last).max() < 1e-5


def test_the_strongest_position_goes_first():
    maps = np.zeros((1, 2, 2))
    maps[0, 1, 0] = 1

    def predict(pixel_values):
        seen.append(np.array(pixel_values[0, :, :, 0]))
        return mx.zeros((1, 2))

    seen: list[np.ndarray] = []
    deletion_curve(predict, mx.ones((1, 5, 4, 3)), maps, [0], steps=4)
    assert np.array_equal(seen[1], [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]])


@pytest.mark.parametrize(
    ("maps", "labels", "steps", "message"),
    [
        (np.ones((2, 2)), [0], None, "a map .h, w. and a label for each of 1 images"),
        (np.ones((1, 2, 2)), [0, 1], None, "a map .h, w. and a label for each"),
        (np.ones((1, 2, 2)), [0], 5, "steps must be from 1 to the 4 positions"),
        (np.ones((1, 9, 9)), [0], None, "finer than pixel values"),
    ],
)
def test_what_does_not_fit_is_a_sentence(maps, labels, steps, message):
    with pytest.raises(ValueError, match=message):
        deletion_curve(lambda x: mx.zeros((1, 2)), mx.ones((1, 4, 4, 3)), maps, labels, steps=steps)


@pytest.mark.parametrize("layer", ["stem", "stage1", "stage2", "stage3"])
def test_a_finer_map_sums_to_about_the_score(digits, layer):
    model, pixel_values, classes = digits
    maps = np.array(explain(model, pixel_values, classes.tolist(), layer=layer, method="hirescam"))
    scores = np.array(explain(model, pixel_values, classes.tolist())).sum(axis=(1, 2))
    assert 0.9 < np.median(maps.sum(axis=(1, 2)) / scores) < 1.4
