"""Heat maps beside PyTorch's autograd, on transformers' model with the same weights and its norms frozen by hooks."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from reference import images, nchw, pair

from mlx_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification
from mlx_convnextv2.heatmaps import explain

pytestmark = pytest.mark.parity

LABEL, OTHER = 3, 5


@pytest.fixture(scope="module")
def models():
    config = ConvNextV2Config(hidden_sizes=[16, 24, 40, 64], depths=[2, 1, 3, 1], num_labels=11)
    theirs, ours = pair(ConvNextV2ForImageClassification, config)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is too small for more
    yield theirs.double(), ours
    torch.set_num_threads(threads)


def freeze(module, inputs, _):
    """LayerNorm's output with statistics that have no gradient, over the channels of NCHW, NHWC or (N, C)."""
    x = inputs[0]
    axis = 1 if getattr(module, "data_format", "") == "channels_first" else -1
    mean = x.mean(axis, keepdim=True).detach()
    deviation = (x.var(axis, unbiased=False, keepdim=True) + module.eps).sqrt().detach()
    shape = [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]
    return (x - mean) / deviation * module.weight.reshape(shape) + module.bias.reshape(shape)


def their_map(theirs, pixel_values, stage, method, against):
    body = theirs.convnextv2
    norms = [module for module in body.modules() if "LayerNorm" in type(module).__name__]
    hooks = [norm.register_forward_hook(freeze) for norm in norms]
    try:
        with torch.no_grad():
            hidden = body(nchw(pixel_values).double(), output_hidden_states=True).hidden_states[stage]
        hidden = hidden.clone().requires_grad_()
        last = hidden
        for one in body.encoder.stages[stage:]:
            last = one(last)
        logits = theirs.classifier(body.layernorm(last.mean([-2, -1])))
    finally:
        for hook in hooks:
            hook.remove()
    less = logits.mean(1) if against == "mean" else logits[:, against]
    (gradient,) = torch.autograd.grad((logits[:, LABEL] - less).sum(), hidden)
    if method == "gradcam":
        gradient = gradient.mean([2, 3], keepdim=True)
    result = (hidden * gradient).sum(1).detach().numpy()
    return np.maximum(result, 0) if method == "gradcam" else result


@pytest.mark.parametrize("stage", [0, 1, 2, 3, 4])
@pytest.mark.parametrize(("method", "against"), [("hirescam", "mean"), ("gradcam", OTHER)])
def test_gradients_equal_autograds(models, stage, method, against):
    theirs, ours = models
    pixel_values = images(2, 35, 50, 3)
    layer = ours.config.stage_names[stage]
    maps = np.array(explain(ours, mx.array(pixel_values), LABEL, against=against, layer=layer, method=method))
    expected = their_map(theirs, pixel_values, stage, method, against)
    assert maps.shape == expected.shape
    assert np.abs(maps - expected).max() <= 2e-5 * np.abs(expected).max()


def test_the_exact_map_sums_to_transformers_logit(models):
    theirs, ours = models
    pixel_values = images(2, 35, 50, 3)
    with torch.no_grad():
        logits = theirs(nchw(pixel_values).double()).logits.numpy()
    maps = np.array(explain(ours, mx.array(pixel_values), LABEL, against=OTHER))
    assert np.abs(maps.sum(axis=(1, 2)) - (logits[:, LABEL] - logits[:, OTHER])).max() <= 1e-5 * np.abs(logits).max()


def test_the_exact_map_is_the_last_stages_hirescam_with_the_mean_and_the_biases_spread(models):
    """Both are linear in the hidden states with the same slope; what remains is the same at every position."""
    _, ours = models
    pixel_values = mx.array(images(1, 64, 64, 3))
    exact = np.array(explain(ours, pixel_values, LABEL))
    hirescam = np.array(explain(ours, pixel_values, LABEL, layer="stage4", method="hirescam"))
    assert np.ptp(exact - hirescam) <= 1e-5 * np.abs(exact).max()
