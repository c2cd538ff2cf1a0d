"""Choose what computes a model's operations on this device, ahead of the first use."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

import mlx.core as mx

from ..files import user_cache
from ..inference.tuned import tuned_on_cpu, tuned_on_gpu
from ..model.config import as_pair
from ..ops.tuning import Tuner, WrongKernelWarning, machine
from .findings import LeftOut, TunedOperation
from .kernels import DTYPES
from .peers import known
from .report import Report, Watch
from .workload import subject


def tune(
    *,
    model: str | None = None,
    size: str | None = None,
    batch_size: Iterable[int] = (1,),
    dtype: Iterable[str] | None = None,
    image_size: int | None = None,
    watch: Watch | None = None,
) -> Report[TunedOperation]:
    """Measure again what computes a model fastest on this device, without a time limit, and keep the choices.

    On a CPU, whole models are measured, and the choices are used only if MLX_CONVNEXTV2_TUNE is 1.

    Args:
        model: a Hub id or a folder.
        size: a published size, "atto" to "huge", instead of a model.
        batch_size: images at once.
        dtype: "float32", "float16" or "bfloat16"; None takes the model's.
        image_size: the side of the images in pixels; None takes the model's.
        watch: called with the findings (see `Report`).

    Raises:
        ValueError: both or neither of model and size are given, or a name does not exist.
        FileNotFoundError, OSError, ValueError: as `load`.
    """
    dtypes = [None] if dtype is None else known("dtype", dtype, DTYPES)
    network, _ = subject(model, size)
    height, width = as_pair(image_size or network.config.image_size)
    on_gpu = mx.default_device().type == mx.gpu
    report: Report[TunedOperation] = Report(
        "tune", str(size or model), None, (height, width), machine()["device"], watch=watch
    )
    tuner = Tuner(again=True, budget=math.inf, say=lambda _: None)
    for name in dtypes:
        if name is not None:
            network.set_dtype(DTYPES[name])
            mx.eval(network.parameters())
        tuned = (tuned_on_gpu if on_gpu else tuned_on_cpu)(network, tuner)
        for batch in dict.fromkeys(batch_size):
            shape = batch, height, width, network.config.num_channels
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", WrongKernelWarning)  # the report lists the failures
                tuned.prepare(shape)
            found = {trial.operation: verdict for trial, verdict in tuned.verdicts(shape)}
            report.add(
                *(
                    TunedOperation(
                        operation.name,
                        batch,
                        operation.shape,
                        operation.dtype,
                        {name: seconds * 1e3 for name, seconds in verdict.seconds.items()},
                        verdict.failures,
                        verdict.rule,
                        verdict.choice,
                        verdict.reason,
                    )
                    for operation, verdict in found.items()
                )
            )
            for operation, verdict in found.items():
                for name, reason in verdict.failures.items():
                    report.fail(f"{operation} by {name}: {reason}")
    if not tuner.kept:
        report.add(LeftOut(f"nothing could be kept in {user_cache.folder()}: set {user_cache.VARIABLE} to a folder"))
    return report
