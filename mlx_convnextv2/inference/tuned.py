"""A fused model that finds the best candidates on this device for each shape of its input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from ..model.config import ConvNextV2Config
from ..model.convnextv2 import ConvNextV2ForImageClassification, ConvNextV2Model, body_and_classifier
from ..ops import candidates, dispatch, tolerances
from ..ops.proving import Arrays, name_of, random
from ..ops.trials import PLAIN, Operation, Trial, Verdict
from ..ops.tuning import Tuner
from ..runtime.forks import check_not_forked
from . import composition
from .composition import Function, plain_block
from .gpu_block import BlockChoice, FoldedBlock, is_foldable

Model = ConvNextV2ForImageClassification | ConvNextV2Model
Shape = tuple[int, ...]


class Tuned:
    """A function of pixel_values (N, H, W, C), composed anew the first time that it meets a shape.

    Args:
        model: the model, which checks the input.
        trials: gives the trials for a shape.
        compose: makes the function from the names of the chosen candidates, one for each trial.
        tuner: runs the trials.
    """

    def __init__(
        self,
        model: Model,
        trials: Callable[[Shape], list[Trial]],
        compose: Callable[[list[str]], Function],
        tuner: Tuner,
    ):
        self._check = body_and_classifier(model)[0].embeddings.check
        self._trials = trials
        self._compose = compose
        self._tuner = tuner
        self._functions: dict[Shape, Function] = {}

    def __call__(self, pixel_values: mx.array) -> mx.array:
        check_not_forked()
        self._check(pixel_values)
        shape = tuple(pixel_values.shape)
        if shape not in self._functions:
            if _is_traced(pixel_values):  # nothing can be tried while tracing
                return self._compose([verdict.choice for _, verdict in self.verdicts(shape)])(pixel_values)
            self.prepare(shape)
        return self._functions[shape](pixel_values)

    def prepare(self, shape: Shape) -> None:
        """Run the trials for pixel_values of this shape."""
        trials = self._trials(shape)
        with self._tuner.session():
            for trial in trials:
                self._tuner.prove(trial)
            for trial in trials:
                self._tuner.measure(trial)
        mx.clear_cache()  # what the trials used
        self._functions[shape] = self._compose([verdict.choice for _, verdict in self.verdicts(shape)])

    def verdicts(self, shape: Shape) -> list[tuple[Trial, Verdict]]:
        """What is known for pixel_values of this shape, without trying anything."""
        return [(trial, self._tuner.known(trial)) for trial in self._trials(shape)]

    @property
    def shapes(self) -> list[Shape]:
        """The shapes of pixel_values seen so far."""
        return list(self._functions)


def tuned_on_gpu(model: Model, tuner: Tuner, pooled: bool = False) -> Tuned:
    """The model with a candidate for each part of each block. MLX compiles it unless one of them is plain MLX."""
    body, _ = body_and_classifier(model, pooled)
    blocks: list[list[Function]] = [
        [FoldedBlock.of(layer) if is_foldable(layer) else plain_block(layer) for layer in stage.layers]
        for stage in body.encoder.stages
    ]

    def trials(shape: Shape) -> list[Trial]:
        return [
            trial
            for own, features in zip(blocks, feature_shapes(model.config, shape), strict=True)
            for block in own
            if isinstance(block, FoldedBlock)
            for trial in block_trials(block, features, tuner)
        ]

    def compose(names: list[str]) -> Function:
        remaining = iter(names)
        chosen = [
            [
                partial(block, choice=BlockChoice(next(remaining), next(remaining)))
                if isinstance(block, FoldedBlock)
                else block
                for block in own
            ]
            for own in blocks
        ]
        predict = composition.compose(model, chosen, pooled)
        return predict if PLAIN in names else composition.compiled(predict)

    return Tuned(model, trials, compose, tuner)


def tuned_on_cpu(model: Model, tuner: Tuner, pooled: bool = False) -> Tuned:
    """The whole model, in ONNX Runtime, in numpy or in MLX's own operations."""
    from .numpy_classifier import NumpyClassifier, supports
    from .onnxruntime_classifier import ONNXRuntimeClassifier, is_installed

    body, _ = body_and_classifier(model, pooled)
    layers = [[plain_block(layer) for layer in stage.layers] for stage in body.encoder.stages]
    functions: dict[str, Function] = {PLAIN: composition.compose(model, layers, pooled)}
    config, dtype = model.config, body.embeddings.patch_embeddings.weight.dtype
    form = f"{config.hidden_sizes}, {config.depths}, {config.hidden_act}, {config.extra.get('quantization')}"
    if supports(model):
        in_numpy = NumpyClassifier(model, pooled)
        form += f", {in_numpy.workers} workers"
        functions = {"numpy": in_numpy, **functions}
        if is_installed():
            engine = ONNXRuntimeClassifier(model, pooled)
            engine.start()
            if engine.session:
                form += f", ONNX Runtime {engine.session.version}"
                functions = {"onnxruntime": engine, **functions}
    rule = next((name for name in ("onnxruntime", dispatch.choose(dtype, 1)) if name in functions), PLAIN)

    def trials(shape: Shape) -> list[Trial]:
        return [model_trial(functions, rule, shape, dtype, form)]

    return Tuned(model, trials, lambda names: functions[names[0]], tuner)


def feature_shapes(config: ConvNextV2Config, shape: Shape) -> Iterator[tuple[int, int, int, int]]:
    """The shape of each stage's features, for pixel_values of the shape (N, H, W, C)."""
    batch, height, width, _ = shape
    patch_height, patch_width = config.patch_shape
    for i, channels in enumerate(config.hidden_sizes):
        yield batch, max(height // patch_height // 2**i, 1), max(width // patch_width // 2**i, 1), channels


def block_trials(block: FoldedBlock, shape: Shape, tuner: Tuner) -> tuple[Trial, Trial]:
    """The trials of a block's two parts for hidden states of this shape. Each is timed in chains of whole blocks."""
    batch, height, width, channels = shape
    rule, dtype = block.rule(shape), block.bias.dtype
    form = f"{_form(block.pwconv1)}, {_form(block.pwconv2)}"

    def chain(choice: BlockChoice, links: int) -> Callable[[], None]:
        def run(x: mx.array) -> mx.array:
            for _ in range(links):
                x = block(x, choice)
            return x

        function = run if PLAIN in (choice.depthwise, choice.gelu_grn) else mx.compile(run)
        start = random(first.operation.shape, dtype, 0)
        mx.eval(start)
        return lambda: mx.eval(function(start))

    def depthwise_chain(name: str, links: int) -> Callable[[], None]:
        return chain(BlockChoice(name, tuner.known(second).choice), links)

    def gelu_grn_chain(name: str, links: int) -> Callable[[], None]:
        return chain(BlockChoice(tuner.known(first).choice, name), links)

    hidden = batch, height * width, 4 * channels
    first = candidates.depthwise_trial(shape, dtype, rule.depthwise, depthwise_chain, form)
    second = candidates.gelu_grn_trial(hidden, dtype, rule.gelu_grn, gelu_grn_chain, form, block.is_quantized)
    return first, second


def model_trial(functions: dict[str, Function], rule: str, shape: Shape, dtype: mx.Dtype, form: str) -> Trial:
    """The trial of functions that compute a whole model for pixel_values of this shape. One of them is plain."""
    dtype_name = name_of(dtype)

    def pixel_values() -> mx.array:
        return random(shape, mx.float32, 0)

    def results(name: str) -> Arrays:
        return [functions[name](pixel_values())]

    def chain(name: str, links: int) -> Callable[[], None]:
        start = pixel_values()
        mx.eval(start)

        def run() -> None:
            for _ in range(links):
                mx.eval(functions[name](start))

        return run

    operation = Operation("model", shape, dtype_name, form)
    return Trial(
        operation,
        tuple(functions),
        rule,
        lambda: [array.astype(mx.float32) for array in results(PLAIN)],
        results,
        lambda name: tolerances.CONTENDER[dtype_name],
        chain,
        links=(1, 4),
    )


def _form(linear: nn.Module) -> str:
    if isinstance(linear, nn.QuantizedLinear):
        return f"{linear.bits}-bit {linear.mode}, {linear.group_size} a group"
    return "dense"


def _is_traced(array: mx.array) -> bool:
    """Whether the array is a placeholder, as it is while a function is compiled or exported."""
    try:
        mx.eval(array)
    except ValueError as error:
        if "transformations" not in str(error):
            raise
        return True
    return False
