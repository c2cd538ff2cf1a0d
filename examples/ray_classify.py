"""Classify a folder of photos on a Ray cluster, into a folder of Parquet files. It needs the extra `ray`.

python examples/ray_classify.py photos --output results --workers 2
"""

from __future__ import annotations

import argparse
import io
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from mlx_convnextv2 import ImageClassifier
from mlx_convnextv2.collections import stream_records
from mlx_convnextv2.collections.inputs import Input
from mlx_convnextv2.collections.parquet_files import to_table
from mlx_convnextv2.images.folders import SUFFIXES


class Classifier:
    """Lives in a worker of the cluster. Ray starts another if it dies, and gives that one what it was working at."""

    def __init__(self, model: str, top_k: int):
        self.classifier = ImageClassifier(model)
        self.top_k = top_k

    def __call__(self, files: dict[str, np.ndarray]) -> pa.Table:
        """A batch of files -> a row for each label of each image, or for its error."""
        inputs = (
            Input(path, picture(path, content)) for path, content in zip(files["path"], files["bytes"], strict=True)
        )
        return to_table(stream_records(self.classifier, inputs, self.top_k))


def picture(path: str, content: bytes) -> io.BytesIO:
    """An open file that errors can name."""
    file = io.BytesIO(content)
    file.name = path
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", help="a folder that every machine sees, or an address such as s3://bucket/photos")
    parser.add_argument("--output", required=True, help="a folder or an address for the Parquet files")
    parser.add_argument("--model", default="facebook/convnextv2-tiny-1k-224", help="a Hub id or a folder")
    parser.add_argument("--top-k", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--resource", help="what a worker needs one of, for example mlx, where nodes were started with it"
    )
    args = parser.parse_args()

    suffixes = sorted(suffix.removeprefix(".") for suffix in SUFFIXES)
    ray.init()
    cores = ray.cluster_resources().get("CPU", 0)
    if args.workers > 2 * (cores - 1):
        parser.error(f"--workers {args.workers} would leave none of {cores:g} cores to read files: take fewer")
    needs: dict[str, Any] = {"num_cpus": 0.5}
    if args.resource is not None:
        needs["resources"] = {args.resource: 1}
    ray.data.read_binary_files(args.photos, include_paths=True, file_extensions=suffixes).map_batches(
        Classifier,
        fn_constructor_args=(args.model, args.top_k),
        batch_size=64,
        compute=ray.data.ActorPoolStrategy(size=args.workers),
        **needs,
    ).write_parquet(args.output)


if __name__ == "__main__":
    main()
