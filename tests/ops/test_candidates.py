"""The candidates for the parts of a block: all compute the same, and a trial finds out who does not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import mlx.core as mx
import proof
import pytest
from kernel_cases import DTYPES

from mlx_convnextv2.ops import candidates, gpu
from mlx_convnextv2.ops.candidates import depthwise_trial, gelu_grn_trial
from mlx_convnextv2.ops.proving import prove, uses_tf32
from mlx_convnextv2.ops.trials import Trial


@pytest.fixture(autouse=True)
def _without_a_compiler_of_mlxs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU mx.compile would run g++ for seconds."""
    if mx.default_device().type == mx.cpu:
        monkeypatch.setattr(mx, "compile", lambda function: function)


def no_chain(*_: object) -> Callable[[], None]:
    raise AssertionError("nothing is to be timed")


def trials(dtype: mx.Dtype) -> list[Trial]:
    return [
        depthwise_trial((1, 5, 6, 24), dtype, "kernel 1x2", no_chain),
        gelu_grn_trial((2, 12, 40), dtype, candidates.ON_WEIGHT, no_chain),
        gelu_grn_trial((2, 12, 40), dtype, candidates.ON_INPUT, no_chain, quantized=True),
    ]


def reasons(trial: Trial) -> dict[str, str | None]:
    return {
        name: prove(partial(trial.results, name), trial.expected(), trial.allowed(name)) for name in trial.candidates
    }


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_candidate_is_right(dtype: mx.Dtype) -> None:
    proof.require_compiler()
    with proof.executed():
        found = [reasons(trial) for trial in trials(dtype)]
    tiles = [f"kernel {tile}" for tile in ("4x4", "2x4", "1x4", "1x2", "1x1")]
    kernels = ["kernel, scaled weight", "kernel, scaled input"]
    assert [list(one) for one in found] == [[*names, "compiled", "plain"] for names in (tiles, kernels, kernels[1:])]
    assert all(reason is None for one in found for reason in one.values())


@pytest.mark.parametrize(
    ("kernel", "blamed"),
    [
        pytest.param(
            "depthwise_layer_norm_residual", [{"kernel 1x2"}, set()], marks=pytest.mark.slow
        ),  # g++ takes long
        ("gelu_sum_of_squares", [set(), {"kernel, scaled weight"}]),
        ("grn_scale", [set(), {"kernel, scaled weight", "kernel, scaled input"}]),
        ("sum_of_squares_of_gelu", [set(), set()]),  # what all norms have in common cancels in GRN
        ("gelu_scaled", [set(), {"kernel, scaled input"}]),
    ],
)
def test_a_kernel_that_is_wrong_by_two_percent_is_found(
    kernel: str, blamed: list[set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    proof.require_compiler()
    right = getattr(gpu, kernel)

    def wrong(*inputs: object, **options: object) -> object:
        results = right(*inputs, **options)
        return tuple(result * 1.02 for result in results) if isinstance(results, tuple) else results * 1.02

    monkeypatch.setattr(gpu, "tiles", lambda channels: [(1, 2)])
    monkeypatch.setattr(gpu, kernel, wrong)
    with proof.executed():
        found = [{name for name, reason in reasons(trial).items() if reason} for trial in trials(mx.float32)[:2]]
    assert found == blamed


def test_the_number_of_strips_changes_no_more_than_the_order_of_a_sum() -> None:
    proof.require_compiler()
    hidden = mx.random.normal((1, 130, 24), key=mx.random.key(0))
    with proof.executed():
        results = [gpu.gelu_sum_of_squares(hidden, enough) for enough in (1, 3, 512)]
        scaled = [gpu.gelu_scaled(hidden, mx.ones((1, 24)), enough) for enough in (1, 512)]
    assert [sums.shape[1] for _, sums in results] == [1, 3, 5] == [gpu.strips_of(1, 130, 24, n) for n in (1, 3, 512)]
    for activations, sums in results:
        assert mx.array_equal(activations, results[0][0])
        assert mx.allclose(sums.sum(axis=1), results[0][1].sum(axis=1), rtol=1e-6)
    assert mx.array_equal(scaled[0], scaled[1])


def test_mlx_compiles_each_part_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []

    def compiler(function: Callable) -> Callable:
        compiled.append(function)
        return partial(function)

    monkeypatch.setattr(mx, "compile", compiler)
    for part in (candidates.depthwise, candidates.gelu_grn):
        assert part("compiled") is part("compiled")
    assert compiled == [candidates.depthwise("plain"), candidates.gelu_grn("plain")]


def test_more_strips_are_a_candidate_where_there_are_pixels_for_them() -> None:
    def kernels(pixels: int, channels: int, quantized: bool = False) -> list[str]:
        trial = gelu_grn_trial((1, pixels, channels), mx.float16, candidates.ON_INPUT, no_chain, quantized=quantized)
        return [name for name in trial.candidates if "kernel" in name]

    weight, on_input = "kernel, scaled weight", "kernel, scaled input"
    assert kernels(56 * 56, 384) == [weight, on_input, f"{weight}, more strips", f"{on_input}, more strips"]
    assert kernels(56 * 56, 384, quantized=True) == [on_input, f"{on_input}, more strips"]
    assert kernels(7 * 7, 3072) == [weight, on_input]


@pytest.mark.parametrize("batch", [1, 13, 14, 64])
def test_no_more_images_are_tried_than_fill_a_gpu(batch: int) -> None:
    trial = gelu_grn_trial((batch, 56 * 56, 384), mx.float16, candidates.ON_WEIGHT, no_chain)
    assert trial.operation.shape == (min(batch, 13), 56 * 56, 384)
    trial = depthwise_trial((1, 4096, 4096, 8), mx.float16, "kernel 4x4", no_chain)
    assert trial.operation.shape == (1, 4096, 4096, 8)  # but one


@pytest.mark.parametrize(
    ("architecture", "variable", "expected"),
    [
        ("applegpu_g13g", None, False),
        ("applegpu_g16s", None, False),
        ("applegpu_g17s", None, True),
        ("applegpu_g17s", "0", False),
        ("applegpu_g17s", "1", True),
        ("something new", None, False),
    ],
)
def test_tf32_is_known_and_allows_what_it_rounds(
    architecture: str, variable: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda *_: {"architecture": architecture})
    monkeypatch.setattr(mx.cuda, "is_available", lambda: False)
    monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
    if variable is not None:
        monkeypatch.setenv("MLX_ENABLE_TF32", variable)
    assert uses_tf32() is expected
    allowed = [trial.allowed(trial.rule) for trial in trials(mx.float32)]
    assert allowed == [2**-10 if expected else 1e-5, 1e-5, 1e-5]  # GRN has no products of matrices


def test_a_tile_that_registers_do_not_hold_is_no_candidate() -> None:
    assert gpu.tiles(256) == [(4, 4), (2, 4), (1, 4), (1, 2), (1, 1)]
    assert gpu.tiles(2816) == [(1, 2), (1, 1)]
    for channels in (8, 256, 257, 512, 1024, 2816, 4096):
        for side in (1, 7, 14, 56):
            assert gpu.tile_of(1, side, side, channels)[2:] in gpu.tiles(channels)
