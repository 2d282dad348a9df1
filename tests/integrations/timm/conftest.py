"""timm imports torchvision for its transforms. torchvision's compiled operators need a CUDA build of torch: without
them its Python code is imported if the two operators that it registers shapes for have schemas.
"""

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    LIBRARY = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
