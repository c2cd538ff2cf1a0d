"""Classify everything that a user names, and write the results where the user says."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from ..inference.classifier import ImageClassifier
from .inputs import Input, Source, find_sources
from .outputs import Destination, OneFile, Output, plan
from .records import Record, Writer
from .shards import Shard
from .streams import stream_records

_COUNTED = 10_000  # names to list ahead, for a progress bar that shows the total


class Watch:
    """Is called as a run goes on. This one does nothing.

    Attributes:
        counts: whether to list the first names before anything else, so that `begin` can get the total.
    """

    counts = False

    def begin(self, total: int | None) -> None:
        """The run begins, with `total` images, or None if their number is not known."""

    def advance(self, record: Record) -> None:
        """A record is about to be written. Only the first failure of each kind has advice."""


@dataclass
class Summary:
    """What a run did: images, failures by kind, images that earlier runs had done, and seconds.

    `failed_before` counts the failures of all earlier runs into the same folder, whether they are named again or not.
    """

    images: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    before: int = 0
    failed_before: int = 0
    seconds: float = 0.0

    @property
    def failed(self) -> int:
        return self.failures.total()

    def __str__(self) -> str:
        text = f"{self.images} images in {self.seconds:.2f} s, {self.images / max(self.seconds, 1e-9):.1f} a second"
        if self.before:
            text += f"; {self.before} were done before"
            text += f", {self.failed_before} of the folder's failed" if self.failed_before else ""
        if self.failed:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.failures.most_common())
            text += f"; {self.failed} failed: {kinds}"
        return text


def classify_images(
    classifier: ImageClassifier,
    images: Iterable[str],
    output: str | os.PathLike[str] | Destination,
    *,
    format: str | None = None,
    top_k: int = 5,
    shard: Shard | None = None,
    part_size: int = 1_000,
    watch: Watch | None = None,
    **inputs: Any,
) -> Summary:
    """Classify images and write a record for each, in order. Memory does not grow with their number.

    Args:
        classifier: the model and its processor.
        images: what `find_sources` takes: paths, folders, patterns, lists, addresses, videos.
        output: a file, which appears when all is done; or a folder of parts, where an interrupted run goes on.
        format: "jsonl", "csv" or "parquet"; by default the suffix of `output` says it, and parts are jsonl.
        top_k: how many labels each image gets, at most.
        shard: the share of the images that this process takes.
        part_size: images in a part. An interrupted run loses at most one part.
        watch: is called for every image.
        inputs: the other options of `find_sources`: allow_urls, fps, null, notice.

    Raises:
        FileExistsError, OSError: `output` cannot be written.
        ValueError: no images are named, or the options do not fit each other or the results that are there.
    """
    watch = watch or Watch()
    target = output
    if isinstance(target, str | os.PathLike):
        options = {"top_k": top_k, "max_pixels": classifier.processor.max_pixels, "fps": inputs.get("fps")}
        target = _open(plan(target, format), classifier, options, shard or Shard(), part_size)
    summary = Summary(failed_before=target.failed)
    start = time.perf_counter()
    sources = iter(find_sources(images, shard=shard, max_pixels=classifier.processor.max_pixels, **inputs))
    first = list(islice(sources, _COUNTED + 1 if watch.counts else 0))
    exact = watch.counts and len(first) <= _COUNTED and not any(source.open for source in first)
    watch.begin(max(0, len(first) - target.done) if exact else None)
    wanted = _not_done(chain(_emptied(first), sources), target, summary)
    begun = [*islice(wanted, 1)]
    if not begun and not summary.before and shard is None:
        raise ValueError("no images are named")  # before an old file is replaced
    wanted = chain(begun, wanted)
    if target.part_size is None:
        with target.part() as writer:
            _write(stream_records(classifier, wanted, top_k, padded=False), writer, watch, summary)
    else:
        for one in wanted:
            with target.part() as writer:
                part = chain([one], islice(wanted, target.part_size - 1))
                _write(stream_records(classifier, part, top_k), writer, watch, summary)
    target.finish(summary.images, summary.failed)
    summary.seconds = time.perf_counter() - start
    return summary


def _open(
    chosen: Output, classifier: ImageClassifier, options: dict[str, Any], shard: Shard, part_size: int
) -> Destination:
    if not chosen.is_folder:
        return OneFile(chosen.path, chosen.format)
    from .fingerprint import fingerprint
    from .runs import RunFolder

    run = {"model": fingerprint(classifier), "name": classifier.name, **options, "batch_size": classifier.batch_size}
    return RunFolder(chosen.path, run, shard, chosen.format, part_size)


def _write(records: Iterable[Record], writer: Writer, watch: Watch, summary: Summary) -> None:
    for record in records:
        summary.images += 1
        if record.kind is not None:
            record.advice = None if record.kind in summary.failures else record.advice  # advice is given once
            summary.failures[record.kind] += 1
        watch.advance(record)
        writer.write(record)


def _not_done(sources: Iterable[Source], output: Destination, summary: Summary) -> Iterator[Input]:
    for source in sources:
        for one in source.inputs():
            if output.has(one.name):
                summary.before += 1
            else:
                yield one


def _emptied(items: list[Source]) -> Iterator[Source]:
    """The items, in order, without keeping any."""
    items.reverse()
    while items:
        yield items.pop()
