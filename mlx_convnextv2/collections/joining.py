"""Join the parts of a run."""

from __future__ import annotations

import os
from pathlib import Path

from ..messages import some
from .formats import read_records
from .manifest import read_manifest
from .outputs import Destination, OneFile, plan
from .runs import count_finished, find_parts
from .shards import Shard


def merge(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str] | Destination,
    *,
    format: str | None = None,
    partial: bool = False,
) -> int:
    """Write the records of all parts to one file, shard by shard, and return how many there are.

    Args:
        folder: the output of `classify_images`.
        output: the file, which appears when it is whole. Few records are in memory at a time.
        format: "jsonl", "csv" or "parquet"; by default the suffix of `output` says it.
        partial: also join the parts of an unfinished run.

    Raises:
        FileNotFoundError: the folder holds no results.
        OSError: `output` cannot be written.
        ValueError: the run is not finished, a part is missing or damaged, or `output` is a folder.
    """
    folder = Path(folder).expanduser()
    count = read_manifest(folder).get("shards")
    if not isinstance(count, int) or not 1 <= count < 1_000_000:
        raise ValueError(f"the manifest of {folder} does not say how many shards there are")
    shards = [Shard(i + 1, count) for i in range(count)]
    counts = [count_finished(folder, shard) for shard in shards]
    unfinished = [str(shard) for shard, images in zip(shards, counts, strict=True) if images is None]
    if unfinished and not partial:
        what = "" if count == 1 else f": shard {some(unfinished)} is not done"
        raise ValueError(f"the run in {folder} is not finished{what}. Start it again, or pass partial (--partial)")
    if isinstance(output, str | os.PathLike):
        chosen = plan(output, format)
        if chosen.is_folder:
            raise ValueError(f"{output} is a folder: parts are joined to one file, such as {output}.csv")
        output = OneFile(chosen.path, chosen.format)
    records = 0
    with output.part() as writer:
        for _, _, path in find_parts(folder):
            for record in read_records(path):
                writer.write(record)
                records += 1
        if not partial and records != (whole := sum(filter(None, counts))):
            raise ValueError(
                f"{folder} has {records} of {whole} images, so a part is missing. Start the run again, which makes it "
                "anew, or pass partial (--partial)"
            )
    return records
