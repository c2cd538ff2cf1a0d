"""Where gradients are taken, a kernel is tried before it stands for its plain form, in a trace too."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import proof
import pytest
from conftest import randomize

from mlx_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification
from mlx_convnextv2.ops import dispatch, gpu, trust, tuning
from mlx_convnextv2.ops.tuning import WrongKernelWarning

ARRAYS = [mx.ones((2, 20, 20, 6)), mx.ones(6)]


pytestmark = pytest.mark.usefixtures("nothing_tuned")


def plain_form(x: mx.array, weight: mx.array) -> mx.array:
    return mx.square(x) * weight


def kernel(value: float = 1.0, gradient: float = 1.0) -> Any:
    """The plain form in another way, or what is wrong by these factors."""

    @mx.custom_function
    def function(x: mx.array, weight: mx.array) -> mx.array:
        return x * x * weight * value

    @function.vjp
    def _(primals: Any, cotangent: mx.array, _: Any) -> Any:
        of_x, of_weight = mx.vjp(plain_form, list(primals), [cotangent])[1]
        return of_x, of_weight * gradient

    return function


def fails(*_: Any, **__: Any) -> Any:
    raise RuntimeError("[metal::Device] Unable to build metal library from source")


def test_a_right_kernel_is_tried_once_on_a_machine() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trust.is_right("square", kernel(), plain_form, ARRAYS)
    for _ in range(2):
        assert trust.is_right("square", fails, plain_form, ARRAYS)
        tuning.shared.cache_clear()  # as in the next process


@pytest.mark.parametrize(
    "wrong",
    [kernel(value=1.001), kernel(gradient=1.001), kernel(value=mx.nan), kernel(gradient=mx.nan), fails],
    ids=["a value", "a gradient", "NaN", "a gradient that is NaN", "it does not compile"],
)
def test_a_wrong_kernel_is_found_with_one_warning_and_remembered(wrong: Callable) -> None:
    with pytest.warns(WrongKernelWarning, match="square and its gradients of 1x9x7x6 in float32 by kernel") as warned:
        assert not trust.is_right("square", wrong, plain_form, ARRAYS)
    assert len(warned) == 1
    tuning.shared.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not trust.is_right("square", kernel(), plain_form, ARRAYS)


def test_each_width_and_dtype_is_tried() -> None:
    assert trust.is_right("square", kernel(), plain_form, ARRAYS)
    for other in ([mx.ones((2, 20, 20, 8)), mx.ones(8)], [array.astype(mx.float16) for array in ARRAYS]):
        with pytest.warns(WrongKernelWarning):
            assert not trust.is_right("square", kernel(2.0), plain_form, other)
        tuning.shared.cache_clear()


def test_it_can_be_asked_in_a_trace(tmp_path: Path) -> None:
    answers: list[bool] = []

    def traced(x: mx.array, weight: mx.array) -> mx.array:
        answers.append(trust.is_right("square", kernel(), plain_form, [x, weight]))
        return plain_form(x, weight)

    mx.export_function(str(tmp_path / "traced.mlxfn"), traced, *ARRAYS)
    mx.grad(lambda x: traced(x, ARRAYS[1]).sum())(ARRAYS[0])
    assert answers == [True, True]


@pytest.fixture
def model() -> ConvNextV2ForImageClassification:
    model = ConvNextV2ForImageClassification(
        ConvNextV2Config(hidden_sizes=[4, 6], depths=[1, 2], num_stages=2, num_labels=3)
    )
    randomize(model)
    model.eval()
    return model


class TestModel:
    @pytest.fixture(autouse=True)
    def _on_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))

    def test_with_broken_kernels_its_outputs_and_gradients_are_plain_with_one_warning(self, model, monkeypatch) -> None:
        monkeypatch.setattr(gpu.Kernel, "__call__", fails)
        pixel_values = mx.random.normal((1, 24, 20, 3), key=mx.random.key(0))

        def score(pixel_values: mx.array) -> mx.array:
            return model(pixel_values).logits[0, 1]

        with dispatch.path("plain"):
            expected = mx.value_and_grad(score)(pixel_values)
        with pytest.warns(WrongKernelWarning) as warned:
            value, gradient = mx.value_and_grad(score)(pixel_values)
        assert len(warned) == 1
        assert mx.array_equal(value, expected[0])
        assert mx.array_equal(gradient, expected[1])

    def test_kernels_that_are_asked_for_are_not_tried(self, model, monkeypatch) -> None:
        monkeypatch.setattr(gpu.Kernel, "__call__", fails)
        with dispatch.path("kernel"), pytest.raises(RuntimeError, match="Unable to build"):
            model(mx.zeros((1, 24, 20, 3)))

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
    def test_the_real_kernels_are_trusted(self, dtype: mx.Dtype, model) -> None:
        proof.require_compiler()
        model.set_dtype(dtype)
        pixel_values = mx.random.normal((1, 24, 20, 3), key=mx.random.key(0))
        with proof.executed(), warnings.catch_warnings():
            warnings.simplefilter("error")
            mx.eval(mx.grad(lambda x: model(x).logits[0, 1])(pixel_values))
        verdicts = tuning.shared()._verdicts
        assert len(verdicts) == 4  # two operations at two widths
        assert all(verdict.proven == ["kernel"] for verdict in verdicts.values())
