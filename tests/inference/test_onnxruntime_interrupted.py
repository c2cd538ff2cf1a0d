"""ONNX Runtime loses what a Ctrl-C raises within it, so it starts in a thread, where no signal arrives."""

from __future__ import annotations

import threading

import pytest

from mlx_convnextv2.inference.onnxruntime_classifier import ONNXRuntimeClassifier

pytest.importorskip("onnxruntime")


def test_a_session_is_made_where_no_signal_arrives(small_model, monkeypatch) -> None:
    from mlx_convnextv2.inference import onnxruntime_session

    session, threads = onnxruntime_session.Session, []

    def made(*arguments):
        threads.append(threading.current_thread())
        return session(*arguments)

    monkeypatch.setattr(onnxruntime_session, "Session", made)
    ONNXRuntimeClassifier(small_model).start()
    assert len(threads) == 1
    assert threading.main_thread() not in threads
