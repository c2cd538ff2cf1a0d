"""The same as `python -m mlx_convnextv2.convert`, from a clone."""

import sys

from mlx_convnextv2.convert import main

if __name__ == "__main__":
    sys.exit(main())
