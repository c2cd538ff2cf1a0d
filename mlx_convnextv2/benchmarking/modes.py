"""Measurements against the peers: one checkpoint, the start of a process, and how time grows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..model.config import SIZES, ConvNextV2Config, as_pair
from ..ops import tolerances
from . import processes
from .findings import ColdStart, Growth, LeftOut, Measurement, Point, Spread
from .measure import alternate, contenders, disagreement
from .peers import COLD_PEERS, OURS, expand, known, why_not
from .report import Report, Watch
from .workload import write_images, write_model, write_picture

SIDES = (96, 160, 224, 320, 448)  # multiples of the stride, 32, with about twice the pixels each
SIDE = 224


def compare(
    *,
    model: str | None = None,
    size: str | None = None,
    against: Iterable[str] = (),
    batch_size: Iterable[int] = (1,),
    dtype: Iterable[str] = ("float32",),
    image_size: int | None = None,
    runs: int = 10,
    watch: Watch | None = None,
) -> Report[Measurement]:
    """Time a checkpoint on this device for each dtype and batch size, in turns with its peers, and compare the answers.

    Args:
        model: a Hub id or a folder.
        size: a published size with random weights, "atto" to "huge", instead of a model.
        against: names from `peers.PEERS`. A peer that cannot take part is left out, and the report says why.
        batch_size: images at once.
        dtype: "float32", "float16" or "bfloat16".
        image_size: the side of the images in pixels; None takes the model's.
        runs: timed rounds.
        watch: called whenever something is measured (see `Report`).

    Raises:
        ValueError: both or neither of model and size are given, a name does not exist, or this package itself fails.
        FileNotFoundError, OSError, ValueError: as `load`. A full temporary folder is also an OSError.
    """
    report: Report[Measurement] = Report("compare", str(size or model), runs, watch=watch)
    batches = list(dict.fromkeys(batch_size))
    rosters = _rosters(report, expand(against), dtype)
    with tempfile.TemporaryDirectory() as temporary:
        folder, images = Path(temporary, "weights"), Path(temporary, "images.npy")
        config = write_model(model, size, folder)
        report.image_size = as_pair(image_size or config.image_size)
        write_images(images, max(batches), *report.image_size, config.num_channels)
        for name, roster in rosters.items():
            with contenders(roster, folder, images, name, report.fail) as workers:
                report.add(*(worker.contender for worker in workers))
                for batch in batches:
                    _add(report, alternate(workers, batch, None, runs, report.fail))
    return report


def cold_start(
    *,
    model: str | None = None,
    size: str | None = None,
    against: Iterable[str] = COLD_PEERS,
    runs: int = 10,
    watch: Watch | None = None,
) -> Report[ColdStart]:
    """The wall time and peak memory of `classify` for one image, and of a minimal script that uses a peer.

    Args and errors: as `compare`, with peers of `peers.COLD_PEERS`.
    """
    report: Report[ColdStart] = Report("cold-start", str(size or model), runs, watch=watch)
    (roster,) = _rosters(report, known("peer", against, COLD_PEERS), ["float32"]).values()
    commands = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder, image = Path(temporary, "weights"), write_picture(Path(temporary, "picture.jpg"))
        write_model(model, size, folder)
        for name in roster:
            try:
                commands[name] = processes.command(name, folder, image)
            except ValueError as error:
                report.fail(str(error))
        timed = processes.alternate(commands, runs, report.fail)
    first = {name: own[0].answer for name, own in timed.items()}
    timed = {name: own[1:] for name, own in timed.items()}
    peaks = {name: max(run.peak_bytes for run in own) for name, own in timed.items()}
    report.add(
        *(
            ColdStart(
                contender=name,
                seconds=Spread.of([run.seconds for run in own]),
                ratio=Spread.of([mine.seconds / theirs.seconds for mine, theirs in zip(timed[OURS], own, strict=True)]),
                peak_bytes=peaks[name],
                memory_ratio=peaks[OURS] / peaks[name],
                agrees=first[name] == first[OURS],
            )
            for name, own in timed.items()
        )
    )
    for name, answer in first.items():
        if answer != first[OURS]:
            report.fail(f"{name} answers class {answer}, and we {first[OURS]}")
    return report


def scale(
    *,
    size: str = "tiny",
    against: Iterable[str] = (),
    batch_size: Iterable[int] = (1, 2, 4, 8),
    dtype: str = "float32",
    runs: int = 10,
    watch: Watch | None = None,
) -> Report[Point]:
    """How time grows with the batch, the image and the model, from random weights of atto up to `size`.

    Args and errors: as `compare`, with one dtype.
    """
    if size not in SIZES:
        ConvNextV2Config.from_size(size)  # fails with a list of the sizes
    report: Report[Point] = Report("scale", size, runs, watch=watch)
    batches = list(dict.fromkeys(batch_size))
    roster = _rosters(report, expand(against), [dtype])[dtype]
    with tempfile.TemporaryDirectory() as temporary:
        images = write_images(Path(temporary, "images.npy"), max(batches), max(SIDES), max(SIDES), 3)
        for smaller in list(SIZES)[: list(SIZES).index(size) + 1]:
            folder = Path(temporary, smaller)
            write_model(None, smaller, folder)
            # Each point (batch, side) is measured once, even if it lies on several axes.
            points: dict[tuple[int, int], dict[str, int]] = {(1, SIDE): {"size": parameters(folder)}}
            if smaller == size:
                for batch in batches:
                    points.setdefault((batch, SIDE), {})["batch"] = batch
                for side in SIDES:
                    points.setdefault((1, side), {})["pixels"] = side * side
            with contenders(roster, folder, images, dtype, report.fail) as workers:
                for (batch, side), amounts in sorted(points.items()):
                    measured = alternate(workers, batch, side, runs, report.fail)
                    _add(
                        report,
                        [Point(**vars(m), size=smaller, axis=a, amount=amounts[a]) for m in measured for a in amounts],
                    )
    report.add(*growth(report.results))
    return report


def growth(points: Sequence[Point]) -> list[Growth]:
    """The exponent e of time ~ amount^e for each contender and axis, by least squares over the logarithms."""
    lines = []
    for contender, axis in dict.fromkeys((point.contender, point.axis) for point in points):
        own = [point for point in points if (point.contender, point.axis) == (contender, axis)]
        amounts = np.log([point.amount for point in own])
        if len(set(amounts)) > 1:
            seconds = np.log([point.seconds.median for point in own])
            lines.append(Growth(contender, axis, float(np.polyfit(amounts, seconds, 1)[0])))
    return lines


def parameters(folder: Path) -> int:
    """The number of parameters of a checkpoint folder."""
    from safetensors import safe_open

    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            count += sum(int(np.prod(tensors.get_slice(name).get_shape())) for name in tensors.keys())  # noqa: SIM118 - it is no dict
    return count


def _rosters(report: Report[Any], against: Sequence[str], dtypes: Iterable[str]) -> dict[str, list[str]]:
    """The contenders for each dtype, ours first. Those that cannot take part go into the report."""
    rosters = {dtype: [OURS] for dtype in known("dtype", dtypes, tolerances.CONTENDER)}
    for peer in against:
        for dtype, roster in rosters.items():
            if reason := why_not(peer, dtype):
                report.add(LeftOut(f"{peer} is left out in {dtype}: {reason}"))
            else:
                roster.append(peer)
    return rosters


def _add(report: Report[Any], measured: Sequence[Measurement]) -> None:
    """Add what was measured together to the report, and name the contenders that answered differently."""
    report.add(*measured)
    for sentence in dict.fromkeys(disagreement(one) for one in measured if not one.agrees):
        report.fail(sentence)
