"""The least time that an image can take on Apple's chips, by bandwidth and by arithmetic: no measurement of a Mac.

    python figures/lower_bounds.py

For the blocks of each stage, in our kernels and in float16, the larger of two times counts: the bytes that all launches
move, over the published bandwidth, and the floating-point operations over the throughput. The stem, downsampling and
the head are left out. Caches are not assumed to keep anything between launches, and weights are read once a batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
from block_traffic import graphs

from mlx_convnextv2.model.config import SIZES, ConvNextV2Config


@dataclass(frozen=True)
class Chip:
    """Published bandwidth in GB/s, and 10^12 float16 operations a second with the most GPU cores."""

    name: str
    bandwidth: float
    float16: float


# Bandwidths are from Apple's technical specifications. Throughputs of M1 to M4 are those of float32, since float16 runs
# at the same rate there: Apple states them for M1 and M2, the Hub's table of hardware (huggingface.js, hardware.ts) for
# all. M5: 1024 operations per core and cycle in the neural accelerators, as measured on A19 (Zakharko 2025,
# "Investigating the GPU Neural Accelerators"), at 1.578 GHz. No M4 Ultra exists, and no source states a bandwidth for
# an M5 Ultra.
CHIPS = (
    Chip("M1", 68.25, 2.6),
    Chip("M1 Pro", 200, 5.2),
    Chip("M1 Max", 400, 10.4),
    Chip("M1 Ultra", 800, 21.0),
    Chip("M2", 100, 3.6),
    Chip("M2 Pro", 200, 6.8),
    Chip("M2 Max", 400, 13.5),
    Chip("M2 Ultra", 800, 27.2),
    Chip("M3", 100, 4.1),
    Chip("M3 Pro", 150, 7.4),
    Chip("M3 Max", 400, 14.2),
    Chip("M3 Ultra", 819, 28.4),
    Chip("M4", 120, 4.6),
    Chip("M4 Pro", 273, 9.2),
    Chip("M4 Max", 546, 18.4),
    Chip("M5", 153, 16.2),
    Chip("M5 Pro", 307, 32.3),
    Chip("M5 Max", 614, 64.6),
)


@dataclass(frozen=True)
class Stage:
    """The blocks of a stage: the bytes that they move and their floating-point operations, for a batch."""

    bytes: float
    operations: float

    def milliseconds(self, chip: Chip) -> tuple[float, str]:
        """The lower bound, and whether bytes or arithmetic set it."""
        moving, computing = self.bytes / chip.bandwidth / 1e6, self.operations / chip.float16 / 1e9
        return max((moving, "bytes"), (computing, "arithmetic"))


def stages(size: str, resolution: int, batch: int) -> list[Stage]:
    """The bytes and operations of a size's four stages."""
    config = ConvNextV2Config.from_size(size)
    found = []
    for stage, (channels, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
        side = resolution // config.patch_shape[0] // 2**stage
        _, kernels = graphs(side, channels, batch, mx.float16)
        multiply_adds = batch * side * side * channels * (49 + 8 * channels)  # 7x7, and two products with 4C
        moved = kernels.traffic(compiled=True, with_operands=True).bytes
        found.append(Stage(moved * depth, 2 * multiply_adds * depth))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--resolution", type=int, default=224, help="pixels of an image's side (default: 224)")
    parser.add_argument("--batch", type=int, default=1, help="images (default: 1)")
    args = parser.parse_args(argv)
    all_stages = {size: stages(size, args.resolution, args.batch) for size in SIZES}

    print(f"Milliseconds for one image at least, float16, batch {args.batch}, {args.resolution} x {args.resolution}.\n")
    print(f"| chip | GB/s | 10^12/s | {' | '.join(SIZES)} |")
    print(f"|---|---:|---:|{'---:|' * len(SIZES)}")
    for chip in CHIPS:
        times = [sum(stage.milliseconds(chip)[0] for stage in all_stages[size]) / args.batch for size in SIZES]
        print(f"| {chip.name} | {chip.bandwidth:g} | {chip.float16:g} | {' | '.join(f'{t:.2f}' for t in times)} |")

    print("\nStages limited by bytes rather than arithmetic:\n")
    print(f"| chip | {' | '.join(SIZES)} |")
    print(f"|---|{'---|' * len(SIZES)}")
    for chip in CHIPS:
        cells = []
        for size in SIZES:
            limits = [stage.milliseconds(chip)[1] for stage in all_stages[size]]
            cells.append(" ".join(str(i) for i, limit in enumerate(limits, start=1) if limit == "bytes") or "none")
        print(f"| {chip.name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
