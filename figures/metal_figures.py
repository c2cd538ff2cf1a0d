"""docs/metal-figures.md: the bytes and launches of a block, and the least time that Apple's chips can take.

python figures/metal_figures.py > docs/metal-figures.md
"""

from __future__ import annotations

import block_traffic
import lower_bounds

PAGE = """\
# The block on a GPU: bytes and bounds

`python figures/metal_figures.py` prints this page. Nothing on it was measured on a GPU.

## Launches and bytes

"plain" counts every operation of the plain graph; "compiled" is the least that `mx.compile` could make of it, with all
operations on single elements joined to those that use them; "halo" is how often the depthwise kernel reads an input by
its rule, from caches but for the first time. Other batches, resolutions and dtypes: `figures/block_traffic.py --help`.
"""
BOUNDS = """
## The least time that a Mac can take

Bytes over bandwidth, or operations over throughput; `figures/lower_bounds.py` says where the chips' figures come from.
Batch 1 cannot reach these bounds: a launch takes microseconds whatever it does, and atto has 72 in its blocks.
"""


def main() -> None:
    print(PAGE)
    block_traffic.main([])
    print(BOUNDS)
    lower_bounds.main([])


if __name__ == "__main__":
    main()
