"""Measure contenders in processes of their own: time them in alternation and compare their answers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from .exports import last_line
from .findings import Contender, Measurement, Spread
from .peers import OURS


class PeerError(ValueError):
    """A contender cannot run. The message names it and says why."""


class Worker:
    """A contender in a process of its own. The whole process, with all its threads, is stopped between its turns.

    Otherwise the threads of PyTorch and ONNX Runtime, which spin for a while after their work, would take the cores
    from the next contender.
    """

    def __init__(self, name: str, folder: Path, images: Path, dtype: str):
        self.name, self.dtype = name, dtype
        self._log = images.parent / f"{name}-{dtype}.log"
        command = [sys.executable, "-m", "mlx_convnextv2.benchmarking.worker", name, str(folder), str(images), dtype]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self._input: IO[str] = self._process.stdin  # type: ignore[assignment]
        self._output: IO[str] = self._process.stdout  # type: ignore[assignment]
        try:
            self.contender = Contender(name, dtype, **self._read())
        except BaseException:
            self.close()
            raise

    def ask(self, batch: int, side: int | None = None, logits: bool = False) -> dict[str, Any]:
        """Time a pass over `batch` images, cut to `side` pixels.

        Raises:
            PeerError: the contender failed.
        """
        self._process.send_signal(signal.SIGCONT)
        with suppress(BrokenPipeError):  # reading finds out how the worker ended
            print(json.dumps({"batch": batch, "side": side, "logits": logits}), file=self._input, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._output.readline()
        if not line:
            raise PeerError(f"{self.name} {self._how_it_ended()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{self.name} failed: {answer['error']}")
        self._process.send_signal(signal.SIGSTOP)
        return answer

    def _how_it_ended(self) -> str:
        status = self._process.wait()
        if status == -signal.SIGKILL:
            return "was killed, most likely because memory ran out"
        said = last_line(self._log.read_text(errors="replace"))
        return f"ended unexpectedly, with status {status}{': ' if said else ''}{said}"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._output.close()
        with suppress(BrokenPipeError):  # it never read the last request
            self._input.close()


@contextmanager
def contenders(
    names: Sequence[str], folder: Path, images: Path, dtype: str, failed: Callable[[str], None]
) -> Iterator[list[Worker]]:
    """The workers that load, ours first. `failed` is called with a sentence for each of the others.

    Raises:
        PeerError: this package itself fails.
    """
    workers: list[Worker] = []
    try:
        for name in names:
            try:
                workers.append(Worker(name, folder, images, dtype))
            except PeerError as error:
                if name == OURS:
                    raise
                failed(str(error))
        yield workers
    finally:
        for worker in workers:
            worker.close()


def alternate(
    workers: list[Worker], batch: int, side: int | None, rounds: int, failed: Callable[[str], None]
) -> list[Measurement]:
    """Warm each worker up, then time A B C A B C ... `rounds` times, and compare the answers with the first's.

    A ratio is our time divided by theirs in the same round. It changes little if the machine slows down meanwhile.
    A worker that fails leaves `workers`, and `failed` is called with a sentence.

    Raises:
        PeerError: the first worker fails.
    """
    answers: dict[Worker, list[dict[str, Any]]] = {worker: [] for worker in workers}
    for i in range(rounds + 1):
        for worker in list(answers):
            try:
                answers[worker].append(worker.ask(batch, side, logits=i == 0))
            except PeerError as error:
                if worker is workers[0]:
                    raise
                failed(str(error))
                worker.close()
                workers.remove(worker)
                del answers[worker]
    ours = answers[workers[0]]
    our_logits = np.array(ours[0]["logits"], np.float32)
    measurements = []
    for worker, theirs in answers.items():
        logits = np.array(theirs[0]["logits"], np.float32)
        measurements.append(
            Measurement(
                contender=worker.name,
                dtype=worker.dtype,
                batch=batch,
                side=side,
                seconds=Spread.of([answer["seconds"] for answer in theirs[1:]]),
                ratio=Spread.of([a["seconds"] / b["seconds"] for a, b in zip(ours[1:], theirs[1:], strict=True)]),
                peak_bytes=theirs[-1]["peak_bytes"],
                gpu_peak_bytes=theirs[-1]["gpu_peak_bytes"],
                difference=float(np.abs(logits - our_logits).max() / np.abs(our_logits).max()),
                top1_agreement=float((logits.argmax(-1) == our_logits.argmax(-1)).mean()),
            )
        )
    return measurements


def disagreement(result: Measurement) -> str:
    """How a result disagrees with ours."""
    return (
        f"{result.contender} answers differently: its logits differ from ours by {result.difference:.1e} "
        f"of their largest, and top-1 is the same on {result.top1_agreement:.0%}"
    )
