"""The kernels within a model: what it answers with them, what takes them, and the graphs that hold them."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import proof
import pytest
from conftest import SMALL, parameters, randomize, small_classifier
from kernel_cases import DTYPES, assert_close, largest, random
from mlx.utils import tree_flatten

from mlx_convnextv2 import ConvNextV2Backbone, ConvNextV2Config, ConvNextV2ForImageClassification, fuse
from mlx_convnextv2.model.config import SIZES
from mlx_convnextv2.model.quantization import quantize
from mlx_convnextv2.ops import dispatch, gpu

GRADIENTS = (
    *("depthwise_norm_gradient", "depthwise_weight_gradient"),
    *("gelu_grn_sums", "grn_gradient", "gelu_grn_gradient"),
)


@pytest.fixture
def model() -> ConvNextV2ForImageClassification:
    return small_classifier(num_labels=7)


def assert_as_near(logits: mx.array, exact: mx.array, plainly: mx.array) -> None:
    """Rounding accumulates over the layers: the kernels stay as near the exact logits as plain MLX does."""
    allowed = max(1e-5 * largest(exact), 2 * largest(plainly.astype(mx.float32) - exact))
    assert largest(logits.astype(mx.float32) - exact) <= allowed


class TestAnswers:
    @pytest.mark.parametrize(
        "dtype", [mx.float32, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in DTYPES[1:])], ids=str
    )
    def test_fused(self, model, dtype: mx.Dtype, device) -> None:
        """With a head and without: both of GRN's ways are taken, on pwconv2's weight and on its input."""
        pixel_values = random(2, 75, 98, 3)
        expected, pooled = model(pixel_values).logits, model.convnextv2(pixel_values).pooler_output
        model.set_dtype(dtype)
        own = model(pixel_values).logits
        with device():
            logits, embeddings = fuse(model, "kernel")(pixel_values), fuse(model.convnextv2, "kernel")(pixel_values)
            mx.eval(logits, embeddings)
        assert logits.dtype == embeddings.dtype == dtype
        assert_as_near(logits, expected, own)
        assert mx.array_equal(logits.argmax(-1), expected.argmax(-1))
        if dtype == mx.float32:
            assert_close(embeddings, pooled)

    def test_the_model_itself_and_its_gradients(self, model, device, monkeypatch) -> None:
        pixel_values, labels = random(2, 33, 40, 3), mx.array([1, 4])

        def loss(model: nn.Module) -> mx.array:
            return model(pixel_values, labels=labels).loss

        def results() -> tuple[list[mx.array], mx.array, dict[str, mx.array]]:
            states = model(pixel_values, output_hidden_states=True).hidden_states
            value, gradients = nn.value_and_grad(model, loss)(model)
            mx.eval(states, value, gradients)
            return states, value, dict(tree_flatten(gradients))

        monkeypatch.setenv("MLX_CONVNEXTV2_OPS", "plain")
        expected_states, expected, expected_gradients = results()
        monkeypatch.setenv("MLX_CONVNEXTV2_OPS", "kernel")
        with device():
            states, value, gradients = results()
        for hidden_state, reference in zip(states, expected_states, strict=True):
            assert_close(hidden_state, reference)
        assert abs(value.item() - expected.item()) <= 1e-5 * abs(expected.item())
        for name, gradient in gradients.items():
            reference = expected_gradients[name]
            assert largest(gradient - reference) <= 1e-5 * max(largest(reference), 1e-3), name

    def test_quantized(self, device) -> None:
        config = ConvNextV2Config(hidden_sizes=[32], depths=[1], num_stages=1, num_labels=5)
        model = ConvNextV2ForImageClassification(config)
        randomize(model)
        quantize(model.eval(), bits=8, group_size=32)
        pixel_values = random(1, 32, 32, 3)
        expected = model(pixel_values).logits
        with device():
            assert_close(fuse(model, "kernel")(pixel_values), expected)

    @pytest.mark.gpu
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("size", SIZES)
    def test_every_size_on_a_gpu(self, size: str, dtype: mx.Dtype) -> None:
        if not (mx.metal.is_available() or mx.cuda.is_available()):
            pytest.skip("MLX has no GPU here")
        model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size(size))
        randomize(model)
        model.eval()
        pixel_values = random(2, 224, 224, 3)
        with mx.stream(mx.gpu):
            expected = fuse(model, "plain")(pixel_values)
            model.set_dtype(dtype)
            assert_as_near(fuse(model, "kernel")(pixel_values), expected, fuse(model, "plain")(pixel_values))


class TestChoice:
    @pytest.mark.parametrize(("platform", "path"), [("linux", "numpy"), ("darwin", "plain")])
    def test_a_cpu_takes_numpy_where_mlx_is_scalar(self, platform: str, path: str, monkeypatch) -> None:
        monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
        monkeypatch.setattr("sys.platform", platform)
        assert dispatch.choose(mx.float32, 96) == path

    def test_a_gpu_takes_kernels_for_what_they_can(self, monkeypatch) -> None:
        monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
        assert dispatch.choose(mx.bfloat16, 2816) == "kernel"
        assert dispatch.choose(mx.float32, gpu.MOST_CHANNELS + 1) == "plain"
        assert dispatch.choose(mx.float64, 96) == "plain"
        assert dispatch.choose(mx.float32, 96, "plain") == "plain"

    def test_the_argument_comes_before_the_variable(self, monkeypatch) -> None:
        monkeypatch.setenv("MLX_CONVNEXTV2_OPS", "kernel")
        choices = [dispatch.choose(mx.float32, 96, *argument) for argument in ((), ("plain",), ("auto",))]
        assert choices == ["kernel", "plain", "kernel"]

    def test_what_cannot_be_is_a_sentence(self, model, monkeypatch) -> None:
        with pytest.raises(TypeError, match="not a ConvNextV2Backbone"):
            fuse(ConvNextV2Backbone(ConvNextV2Config(**SMALL)))  # type: ignore[arg-type]
        if not (mx.metal.is_available() or mx.cuda.is_available()):
            with pytest.raises(ValueError, match='"kernel" needs a GPU'):
                fuse(model, "kernel")(random(1, 32, 32, 3))
        with pytest.raises(ValueError, match=r"path must be one of auto, plain, kernel, numpy"):
            fuse(model, "Kernel")
        monkeypatch.setenv("MLX_CONVNEXTV2_OPS", "metal")
        with pytest.raises(ValueError, match=r"MLX_CONVNEXTV2_OPS must be one of auto, plain, kernel, numpy"):
            model(random(1, 32, 32, 3))
        model.convnextv2.encoder.stages[0].layers[0].act = mx.tanh
        with pytest.raises(ValueError, match="numpy does not know"):
            fuse(model, "numpy")


class TestGraphs:
    def test_mlx_takes_the_kernels_into_a_graph_compiled_or_not(self, model, tmp_path) -> None:
        """Traced and saved without a GPU; the file holds the very text of the kernels."""
        predict, pixel_values = fuse(model, "kernel"), random(1, 96, 96, 3)
        mx.export_function(str(tmp_path / "model.mlxfn"), predict, pixel_values)
        content = (tmp_path / "model.mlxfn").read_bytes()
        for headers in (gpu.DEPTHWISE_HEADERS, gpu.GELU_HEADERS, gpu.GRN_HEADERS):
            assert gpu.source("metal", headers).encode() in content
        names = [launch.name for launch in proof.launches(predict, pixel_values)]
        for kernel in ("depthwise_layer_norm_residual", "gelu_sum_of_squares", "sum_of_squares_of_gelu", "grn_scale"):
            assert any(f"convnextv2_{kernel}_" in name for name in names), kernel
        assert len(names) >= 3 * sum(model.config.depths)
        assert sorted(names) == sorted(launch.name for launch in proof.launches(mx.compile(predict), pixel_values))

    def test_a_graph_with_kernels_is_the_weights_and_two_percent(self, tmp_path) -> None:
        """The smallest published size in float32, one batch: each of its launches holds the text of its kernel."""
        atto = ConvNextV2ForImageClassification(ConvNextV2Config.from_size("atto"))
        mx.eval(atto.parameters())
        mx.export_function(str(tmp_path / "model.mlxfn"), fuse(atto, "kernel"), random(1, 224, 224, 3))
        weights = sum(array.nbytes for array in parameters(atto).values())
        assert weights <= (tmp_path / "model.mlxfn").stat().st_size <= 1.02 * weights

    def test_a_compiled_training_step_launches_the_gradients(self, monkeypatch) -> None:
        """As a training step on a GPU is compiled: traced here, where nothing can run."""
        monkeypatch.setenv("MLX_CONVNEXTV2_OPS", "kernel")
        launched = []

        def launch(kernel: gpu.Kernel, *_: mx.array, outputs: list, **__: object) -> list[mx.array]:
            launched.append(kernel.name)
            return [mx.zeros(shape, dtype) for shape, dtype in outputs]

        monkeypatch.setattr(gpu.Kernel, "__call__", launch)
        model = ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL, num_labels=3)).train()

        def loss(parameters: dict, pixel_values: mx.array) -> mx.array:
            model.update(parameters)
            return model(pixel_values, labels=mx.array([0, 2])).loss

        gradients = mx.compile(mx.grad(loss))(model.parameters(), mx.zeros((2, 64, 64, 3)))
        shapes = {name: gradient.shape for name, gradient in dict(tree_flatten(gradients)).items()}
        assert shapes == {name: array.shape for name, array in parameters(model).items()}
        assert {*GRADIENTS} <= {*launched}
