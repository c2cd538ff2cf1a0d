"""How alike are two photos? The cosine of the angle between their embeddings, the model's pooled features.

python examples/embeddings.py cat.jpg another-cat.jpg
"""

from __future__ import annotations

import argparse

import numpy as np

from mlx_convnextv2 import ConvNextV2Model, fuse, load


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", nargs=2, metavar="IMAGE")
    parser.add_argument("--model", default="facebook/convnextv2-tiny-1k-224", help="a Hub id or a folder")
    args = parser.parse_args()

    model, processor = load(args.model, model_class=ConvNextV2Model)
    embed = fuse(model)  # pixel_values -> pooled features, by the fastest path of the device
    a, b = np.array(embed(processor(args.images)).tolist())  # (2, C)
    print(f"similarity: {a @ b / (np.linalg.norm(a) * np.linalg.norm(b)):.3f}")


if __name__ == "__main__":
    main()
