"""timm for the parity tests, also where torchvision is there without its compiled part.

timm imports torchvision, whose published builds for Linux need PyTorch's CUDA build. The models and the Pillow
transforms use its Python part alone, which asks at import that two of its operators be declared.
"""

import pytest

_LIBRARIES: list[object] = []  # a library that is collected takes its declarations along


def import_timm():
    """timm, or a skip where it is not installed."""
    torch = pytest.importorskip("torch")
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)
    except ImportError:
        pass
    return pytest.importorskip("timm")
