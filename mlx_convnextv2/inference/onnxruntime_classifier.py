"""The inference-time form for a CPU with ONNX Runtime, whose fused kernels numpy cannot match."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ..messages import one_line
from ..model.convnextv2 import ConvNextV2ForImageClassification, ConvNextV2Model, body_and_classifier
from ..ops.tolerances import CONTENDER
from ..runtime.heap import return_freed_memory
from ..runtime.numpy_blas import blas_name
from ..runtime.threads import release_scratch
from .numpy_block import as_numpy
from .numpy_classifier import NumpyClassifier
from .snapshot import in_float32

if TYPE_CHECKING:
    from .onnxruntime_session import Session

IMAGES_BEFORE = 8


def is_installed() -> bool:
    """Whether there is an ONNX Runtime to try. It is not imported."""
    return "onnxruntime" in sys.modules or importlib.util.find_spec("onnxruntime") is not None


class ONNXRuntimeClassifier:
    """A ConvNextV2ForImageClassification or ConvNextV2Model in inference mode, with the weights that it has now.

    Importing ONNX Runtime and making a session takes as long as it then saves on a few images. So numpy computes until
    `IMAGES_BEFORE` images have come, and a program that classifies one or two never waits for ONNX Runtime. `start`
    makes the session at once, for a process that lives long. The session must give numpy's answer to one image. If it
    does not, or if ONNX Runtime does not work, numpy goes on and `problem` says why.

    Both engines read float32 weights in place. Other weights are converted to float32 once, for both. Several threads
    may call this object at once. ONNX Runtime's threads do not survive a fork, so numpy computes in a forked process.
    """

    def __init__(self, model: ConvNextV2ForImageClassification | ConvNextV2Model, pooled: bool = False):
        body, _ = body_and_classifier(model)
        self._check = body.embeddings.check
        self._dtype = body.embeddings.patch_embeddings.weight.dtype
        self._smallest = (1, *model.config.min_image_shape, model.config.num_channels)
        self._model, self._pooled = in_float32(model), pooled
        self.in_numpy = NumpyClassifier(self._model, pooled)
        self.session: Session | None = None
        self.problem: str | None = None
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._seen = 0

    def __call__(self, pixel_values: mx.array) -> mx.array:
        """pixel_values (N, H, W, num_channels) -> logits (N, num_labels), or the pooled output (N, C) without a
        classifier."""
        self._check(pixel_values)
        if os.getpid() == self._process:
            if self.session is None and self.problem is None:
                self._count(pixel_values)
            if self.session is not None:
                return mx.array(self.session(as_numpy(pixel_values)), self._dtype)
        logits = self.in_numpy(pixel_values)
        return logits if self._dtype == mx.float32 else mx.array(np.array(logits), self._dtype)

    def start(self) -> None:
        """Let ONNX Runtime compute from now on. Does nothing in a forked process."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._start(mx.array(np.zeros(self._smallest, np.float32)))

    def _count(self, pixel_values: mx.array) -> None:
        with self._lock:  # other threads wait, and then have the session too
            self._seen += len(pixel_values)
            image = as_numpy(pixel_values)[:1]
            if self._seen > IMAGES_BEFORE and image.size and np.isfinite(image).all():  # something to compare
                self._start(mx.array(image))

    def _start(self, pixel_values: mx.array) -> None:
        """Make the session, unless that is done or has failed. Its answer to these images must be numpy's."""
        if self.session is not None or self.problem is not None:
            return
        expected = np.array(self.in_numpy(pixel_values))
        release_scratch()  # numpy's work is done
        try:
            # In another thread, because ONNX Runtime would lose the exception that a Ctrl-C raises.
            with ThreadPoolExecutor(1) as thread:
                session, answer = thread.submit(self._try, as_numpy(pixel_values)).result()
        except Exception as error:  # whatever is wrong with ONNX Runtime, numpy computes
            self.problem = one_line(error)
            return
        largest = np.abs(expected[np.isfinite(expected)]).max(initial=0)
        tolerance = CONTENDER["float32"] * largest
        if np.isclose(answer, expected, rtol=0, atol=tolerance, equal_nan=True).all():  # NaN: of damaged weights
            self.session = session
        else:
            self.problem = "it answers otherwise"

    def _try(self, images: np.ndarray) -> tuple[Session, np.ndarray]:
        """A session, and its answer."""
        # From 1.29 on it would report to Microsoft, in a thread for which a forked process waits for ever when it ends.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        from .onnxruntime_session import Session

        session = Session(self._model, self._pooled)
        return_freed_memory()  # so that ONNX Runtime can take it for its own blocks
        return session, session(images)

    def __str__(self) -> str:
        """What computes."""
        if self.session:
            return f"in ONNX Runtime {self.session.version} on {self.session.threads} cores"
        if self.problem:
            return f"{in_numpy(self.in_numpy)}, because ONNX Runtime cannot be used here ({self.problem})"
        return f"{in_numpy(self.in_numpy)}, and in ONNX Runtime after {IMAGES_BEFORE} images"


def in_numpy(predict: NumpyClassifier) -> str:
    """What computes, if numpy does."""
    return f"in numpy on {predict.workers} cores, its BLAS {blas_name()}"
