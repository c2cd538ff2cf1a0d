"""Print the shapes of the backbone's feature maps, which a detector or a segmentation model would start from.

python examples/feature_maps.py street.jpg
"""

from __future__ import annotations

import argparse

from mlx_convnextv2 import ConvNextV2Backbone, load


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--model", default="facebook/convnextv2-tiny-1k-224", help="a Hub id or a folder")
    args = parser.parse_args()

    # In out_indices 0 is the stem, 1 the first stage and -1 the last one.
    model, processor = load(args.model, model_class=ConvNextV2Backbone, out_indices=[1, 2, -1])
    pixel_values = processor(args.image)
    outputs = model(pixel_values)
    for stage, feature_map in zip(model.out_features, outputs.feature_maps, strict=True):
        _, height, width, channels = feature_map.shape
        stride = pixel_values.shape[1] // height
        print(f"{stage}: {height} x {width} positions of {channels} channels, one for every {stride} pixels")


if __name__ == "__main__":
    main()
