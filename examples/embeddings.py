"""How alike are two photos? The cosine of the angle between their embeddings, the model's pooled features.

python examples/embeddings.py cat.jpg another-cat.jpg
"""

from __future__ import annotations

import argparse

import mlx.core as mx

from mlx_convnextv2 import ConvNextV2Model, load


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", nargs=2, metavar="IMAGE")
    parser.add_argument("--model", default="facebook/convnextv2-tiny-1k-224", help="a Hub id or a folder")
    args = parser.parse_args()

    model, processor = load(args.model, model_class=ConvNextV2Model)
    embeddings = model(processor(args.images)).pooler_output.astype(mx.float32)  # (2, C)
    a, b = embeddings / mx.linalg.norm(embeddings, axis=-1, keepdims=True)
    print(f"similarity: {(a * b).sum().item():.3f}")


if __name__ == "__main__":
    main()
