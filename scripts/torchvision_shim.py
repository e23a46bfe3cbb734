"""Import torchvision where its compiled half does not fit the installed torch.

Where only a CUDA build of torchvision is to be had beside a CPU torch, its library does not load, and the import ends
in "operator torchvision::nms does not exist". A ComfyUI host imports torchvision but calls neither operator.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# The definitions live as long as this object does.
_defined: list[object] = []


def make_torchvision_importable() -> bool:
    """Import torchvision, declaring its missing operators if that is what it takes. True if they had to be declared."""
    try:
        importlib.import_module("torchvision")
        return False
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    _forget_half_imported()
    import torch

    make_library: Any = torch.library.Library  # untyped in torch
    library = make_library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    _defined.append(library)
    importlib.import_module("torchvision")
    return True


def _forget_half_imported() -> None:
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
